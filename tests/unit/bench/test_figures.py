"""Exact quantiles, and those that histograms allow."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as PrometheusHistogram

from bench.figures import Edge, Histogram, Latency, latency_of, parse_histograms, stages_and_edges, together


@pytest.mark.parametrize(
    ("milliseconds", "latency"),
    [
        ([7], Latency(1, 7, 7, 7, 7)),
        ([2, 1], Latency(2, 1, 2, 2, 2)),
        (range(1, 101), Latency(100, 50, 95, 99, 100)),
        (range(1000, 0, -1), Latency(1000, 500, 950, 990, 1000)),
    ],
)
def test_a_quantile_is_the_measured_value_at_its_rank(milliseconds: list[int], latency: Latency) -> None:
    assert latency_of(value / 1000 for value in milliseconds) == latency


def test_there_is_no_latency_of_nothing() -> None:
    assert latency_of([]) is None


@pytest.mark.parametrize(
    ("quantile", "value"),
    [
        (0.0, 0.0),
        (0.25, 0.5),
        (0.5, 1.0),
        (0.75, 2.0),
        (0.84375, 3.0),
        (0.9375, 4.0),
        (0.99, 4.0),
        (1.0, 4.0),
    ],
)
def test_a_histograms_quantile_is_linear_within_its_bucket(quantile: float, value: float) -> None:
    # 8 up to 1, 4 up to 2, 3 up to 4, 1 beyond.
    histogram = Histogram((1.0, 2.0, 4.0, inf), (8, 12, 15, 16), 30.0)
    assert histogram.quantile(quantile) == pytest.approx(value)


def test_an_empty_bucket_holds_no_quantile() -> None:
    histogram = Histogram((1.0, 2.0, 4.0, inf), (2, 2, 4, 4), 8.0)
    assert histogram.quantile(0.5) == 1.0
    assert histogram.quantile(0.75) == 3.0


def test_an_empty_histogram_is_all_zero() -> None:
    histogram = Histogram((1.0, inf), (0, 0), 0.0)
    assert (histogram.mean, histogram.quantile(0.99), histogram.count) == (0.0, 0.0, 0)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_an_estimate_is_off_by_no_more_than_its_bucket(values: list[float], quantile: float) -> None:
    bounds = (1.0, 2.0, 5.0, 10.0, 20.0, inf)
    cumulative = tuple(sum(value <= bound for value in values) for bound in bounds)
    estimate = Histogram(bounds, cumulative, sum(values)).quantile(quantile)
    exact = latency_of(values)
    assert exact is not None
    ordered = sorted(values)
    rank = max(1, -(-quantile * len(ordered) // 1))
    true = ordered[int(rank) - 1]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < true), default=0.0)
    assert lower <= estimate <= upper


def scrape(*observations: tuple[str, float]) -> str:
    """Return a real /metrics with these stages observed, among other metrics."""
    registry = CollectorRegistry()
    stages = PrometheusHistogram(
        "order_engine_stage_seconds", "About.", ["stage"], buckets=(0.01, 0.1, 1), registry=registry
    )
    for stage, seconds in observations:
        stages.labels(stage).observe(seconds)
    Counter("order_engine_transitions", "About.", ["status"], registry=registry).labels("confirmed").inc(3)
    Gauge("order_engine_redis_up", "About.", registry=registry).set(1)
    PrometheusHistogram("unlabelled_seconds", "About.", registry=registry).observe(1)
    return generate_latest(registry).decode()


def test_histograms_are_read_from_what_prometheus_client_writes() -> None:
    found = parse_histograms(scrape(("route", 0.005), ("route", 0.05), ("total", 7.0)))
    assert found == {
        ("order_engine_stage_seconds", "route"): Histogram((0.01, 0.1, 1.0, inf), (1, 2, 2, 2), 0.055),
        ("order_engine_stage_seconds", "total"): Histogram((0.01, 0.1, 1.0, inf), (0, 0, 0, 1), 7.0),
    }


def test_what_is_reported_is_what_came_between_two_scrapes_of_all_processes() -> None:
    before = parse_histograms(scrape(("route", 0.05)))
    one = parse_histograms(scrape(("route", 0.05), ("route", 0.02), ("total", 0.5)))
    other = parse_histograms(scrape(("route", 0.03), ("accept", 0.001)))
    stages, edges = stages_and_edges(before, together([one, other]))
    assert [(stage.name, stage.count, stage.mean) for stage in stages] == [
        ("accept", 1, 1.0),
        ("route", 2, 25.0),
        ("total", 1, 500.0),
    ]
    assert edges == []


def test_an_edge_tells_how_full_its_batches_were() -> None:
    before = {("order_engine_batch_size", "submit"): Histogram((1, 8, inf), (4, 4, 4), 4)}
    after = {
        ("order_engine_batch_size", "submit"): Histogram((1, 8, inf), (5, 8, 8), 29),
        ("order_engine_batch_size", "idle"): Histogram((1, 8, inf), (0, 0, 0), 0),
    }
    assert stages_and_edges(before, after)[1] == [Edge("submit", 4, 25, 6.25, 7.5)]


def test_histograms_of_other_buckets_do_not_add_up() -> None:
    one, other = Histogram((1, inf), (0, 0), 0), Histogram((2, inf), (0, 0), 0)
    with pytest.raises(ValueError, match="buckets"):
        one.plus(other)
    with pytest.raises(ValueError, match="buckets"):
        one.since(other)
