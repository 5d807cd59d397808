"""Numbers: exact quantiles of latencies, and what Prometheus histograms tell of stages and batches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Final

_SAMPLE: Final = re.compile(
    r'^(\w+?)_(bucket|sum|count)\{(?:le="([^"]+)",)?(?!le=)(\w+)="([^"]+)"(?:,le="([^"]+)")?\} (\S+)$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Latency:
    """In milliseconds; nearest-rank quantiles, so each figure is one that was measured."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


def latency_of(seconds: Iterable[float]) -> Latency | None:
    """Return None where nothing was measured."""
    ordered = sorted(seconds)
    if not ordered:
        return None

    def rank(quantile: float) -> float:
        return round(ordered[ceil(quantile * len(ordered)) - 1] * 1000, 3)

    return Latency(len(ordered), rank(0.5), rank(0.95), rank(0.99), rank(1.0))


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram: bounds ascending, the last one infinite."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    """How many were at most the bound."""
    sum: float

    @property
    def count(self) -> float:
        return self.cumulative[-1]

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0

    def quantile(self, quantile: float) -> float:
        """Return an estimate, linear within its bucket; the highest finite bound for what is beyond it.

        Source: histogram_quantile in the Prometheus documentation.
        """
        if not self.count:
            return 0.0
        rank = quantile * self.count
        below, bound_below = 0.0, 0.0
        for bound, cumulative in zip(self.bounds, self.cumulative, strict=True):
            if cumulative >= rank and cumulative > below:
                if bound == inf:
                    return bound_below
                return bound_below + (bound - bound_below) * (rank - below) / (cumulative - below)
            below, bound_below = cumulative, bound if bound != inf else bound_below
        return bound_below

    def since(self, before: Histogram | None) -> Histogram:
        """Return what was observed after `before`."""
        if before is None:
            return self
        if before.bounds != self.bounds:
            raise ValueError("the buckets changed in between")
        return Histogram(
            self.bounds,
            tuple(now - then for now, then in zip(self.cumulative, before.cumulative, strict=True)),
            self.sum - before.sum,
        )

    def plus(self, other: Histogram) -> Histogram:
        """Return both together."""
        if other.bounds != self.bounds:
            raise ValueError("different buckets do not add up")
        cumulative = tuple(a + b for a, b in zip(self.cumulative, other.cumulative, strict=True))
        return Histogram(self.bounds, cumulative, self.sum + other.sum)


Histograms = Mapping[tuple[str, str], Histogram]
"""By metric and by the value of its one label."""


def parse_histograms(text: str) -> dict[tuple[str, str], Histogram]:
    """Return the histograms with exactly one label in a /metrics answer."""
    buckets: dict[tuple[str, str], dict[float, float]] = {}
    sums: dict[tuple[str, str], float] = {}
    for metric, kind, le_first, _label, value, le_last, number in _SAMPLE.findall(text):
        key = (metric, value)
        if kind == "bucket":
            buckets.setdefault(key, {})[float((le_first or le_last).replace("+Inf", "inf"))] = float(number)
        elif kind == "sum":
            sums[key] = float(number)
    found = {}
    for key, counts in buckets.items():
        bounds = tuple(sorted(counts))
        if bounds[-1] == inf and key in sums:
            found[key] = Histogram(bounds, tuple(counts[bound] for bound in bounds), sums[key])
    return found


def together(parts: Sequence[Histograms]) -> dict[tuple[str, str], Histogram]:
    """Return the histograms of several processes as one."""
    merged: dict[tuple[str, str], Histogram] = {}
    for part in parts:
        for key, histogram in part.items():
            merged[key] = merged[key].plus(histogram) if key in merged else histogram
    return merged


@dataclass(frozen=True, slots=True)
class Stage:
    """Where an order's time went. Milliseconds, estimated from histograms but for count and mean."""

    name: str
    count: int
    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Edge:
    """How full the batches were that crossed a process boundary."""

    name: str
    batch_count: int
    item_count: int
    mean: float
    p95: float


_ORDER: Final = ("accept", "queue", "route", "build", "record", "broadcast", "land", "total")


def stages_and_edges(before: Histograms, after: Histograms) -> tuple[list[Stage], list[Edge]]:
    """Return what the processes themselves measured between two scrapes, stages as an order meets them."""
    stages, edges = [], []
    for (metric, name), now in sorted(after.items()):
        histogram = now.since(before.get((metric, name)))
        if histogram.count == 0:
            continue
        if metric == "order_engine_stage_seconds":
            mean, *quantiles = (
                round(seconds * 1000, 3)
                for seconds in (histogram.mean, *(histogram.quantile(q) for q in (0.5, 0.95, 0.99)))
            )
            stages.append(Stage(name, round(histogram.count), mean, *quantiles))
        elif metric == "order_engine_batch_size":
            edges.append(
                Edge(
                    name,
                    round(histogram.count),
                    round(histogram.sum),
                    round(histogram.mean, 2),
                    round(histogram.quantile(0.95), 1),
                )
            )
    stages.sort(key=lambda stage: (_ORDER.index(stage.name) if stage.name in _ORDER else 99, stage.name))
    return stages, edges
