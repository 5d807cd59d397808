"""What a report says: its tables, its troubles, and two servers side by side."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from bench.bars import Bar, finding
from bench.figures import Edge, Latency, Stage
from bench.load import Scenario
from bench.measure import ProcessCost, Result
from bench.render import compare, every_event, print_comparison, print_findings, print_results, troubles

GOOD = Result(
    server="ours",
    scenario=Scenario(name="burst", mode="burst", order_count=1000),
    accepted_count=1000,
    finals={"confirmed": 1000},
    failures={},
    retried_count=0,
    accepted_per_second=2000.0,
    confirmed_per_second=1500.0,
    accept_ms=Latency(1000, 1.0, 2.0, 3.0, 4.0),
    confirm_ms=Latency(100, 10.0, 20.0, 30.0, 40.0),
    network_ms=(4.0, 9.0),
    watched_count=100,
    complete_count=100,
    late_count=0,
    refused={},
    watch_ends={"1000": 100},
    costs={"server": ProcessCost(0.5, 100.0, 60.0), "postgres": ProcessCost(0.25, 500.0, None)},
    generator_cpu_ms_per_order=0.1,
    other_cores=0.05,
    seconds=1.0,
    stages=[Stage("route", 1000, 0.5, 0.4, 1.0, 2.0)],
    edges=[Edge("submit", 10, 1000, 100.0, 128.0)],
)


def printed(*results: Result) -> str:
    out = StringIO()
    print_results(Console(file=out, width=200), results, {"server": 12.0})
    return out.getvalue()


def test_a_report_has_a_column_for_each_scenario_and_a_row_for_each_figure() -> None:
    closed = replace(GOOD, scenario=replace(GOOD.scenario, name="closed loop"), confirmed_per_second=777.0)
    rows = {
        cells[0]: cells[1:]
        for line in printed(GOOD, closed).splitlines()
        if len(cells := [cell.strip() for cell in line.strip("│").split("│")]) > 2
    }
    assert rows["confirmed/s"] == ["1,500", "777"]
    assert rows["confirm ms, p50 / p95"] == ["10.0 / 20.0"] * 2
    assert rows["server"] == ["0.500", "0.500", "12", "100, 60"]
    assert rows["postgres"] == ["0.250", "0.250", "0", "500, ?"]
    assert rows["together"] == ["0.750", "0.750", "12", "60"]
    assert rows["route"] == ["0.5 / 1"] * 2
    assert rows["submit"] == ["100.0 (10)"] * 2
    assert rows["orders not confirmed"] == ["0", "0"]


def test_a_server_that_is_only_known_by_its_address_has_no_empty_tables() -> None:
    text = printed(replace(GOOD, costs={}, stages=[], edges=[], confirm_ms=None))
    assert "confirmed/s" in text
    assert "CPU-ms" not in text
    assert "time goes" not in text
    assert "travels together" not in text


def test_a_run_without_trouble_has_none() -> None:
    assert troubles(GOOD) == []


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (replace(GOOD, refused={"429 TOO_MANY_ORDERS": 3}), "refused: 3 429 TOO_MANY_ORDERS"),
        (replace(GOOD, finals={"confirmed": 990, "": 10}), "not confirmed: 10 still open"),
        (
            replace(GOOD, finals={"confirmed": 1, "failed": 9}, failures={"no_route": 9}),
            "why they failed: 9 no_route",
        ),
        (replace(GOOD, complete_count=98), "2 of 100 watchers missed an event or saw one twice"),
        (replace(GOOD, watch_ends={"1000": 99, "1006": 1}), "watches that ended otherwise: 1 1006"),
        (replace(GOOD, late_count=5), "5 unwatched orders closed after the last watched one"),
        (replace(GOOD, other_cores=1.3), "something else kept 1.3 processors busy; measure again"),
    ],
)
def test_what_went_wrong_is_said(result: Result, sentence: str) -> None:
    assert sentence in troubles(result)
    assert sentence in printed(result)


def test_two_servers_are_compared_pair_by_pair() -> None:
    # The machine is half as fast in the second pair: the ratio does not care.
    ours = [replace(GOOD, confirmed_per_second=rate) for rate in (1000.0, 500.0, 900.0)]
    theirs = [replace(GOOD, server="theirs", confirmed_per_second=rate) for rate in (500.0, 250.0, 300.0)]
    [confirmed] = [row for row in compare(ours, theirs) if row.figure == "confirmed/s"]
    assert (confirmed.a, confirmed.b) == (900.0, 300.0)
    ratio = confirmed.ratio
    assert (ratio.value, ratio.least, ratio.most) == (2.0, 2.0, 3.0)

    out = StringIO()
    bars = print_comparison(Console(file=out, width=150), ours, theirs)
    assert "burst: 3 pairs, alternating" in out.getvalue()
    row = next(line for line in out.getvalue().splitlines() if "confirmed/s" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "confirmed/s", "900.00", "300.00", "2.00", "2.00 - 3.00", ">= 3", "no",
    ]  # fmt: skip
    assert [(bar.figure, bar.holds) for bar in bars] == [
        ("confirmed/s", False),
        ("CPU-ms an order", False),
        ("% that saw every event", True),
    ]


def test_what_the_network_takes_is_not_counted_as_the_engines() -> None:
    rate = replace(GOOD, scenario=replace(GOOD.scenario, mode="rate"))
    theirs = replace(
        rate, server="theirs", network_ms=(0.0, 0.0), confirm_ms=Latency(100, 12.0, 20.0, 42.0, 50.0)
    )
    above = {row.figure: row for row in compare([rate], [theirs]) if "above" in row.figure}
    p50, p99 = above["confirm p50 ms above the network"], above["confirm p99 ms above the network"]
    assert (p50.a, p50.ratio.value, p50.ratio.holds) == (6.0, 0.5, True)
    assert (p99.a, p99.ratio.value, p99.ratio.holds) == (21.0, 0.5, True)


def test_a_server_without_grpc_is_compared_by_what_it_has() -> None:
    ours = replace(GOOD, scenario=Scenario(name="gRPC burst", mode="grpc", order_count=1000))
    out = StringIO()
    [bar, _] = print_comparison(Console(file=out, width=150), [ours], [replace(GOOD, server="theirs")])
    assert "theirs by burst, over REST and WebSocket" in out.getvalue()
    assert str(bar.bar) == ">= 4"


def test_the_worst_run_says_how_many_watchers_saw_every_event() -> None:
    [found] = every_event([GOOD, replace(GOOD, complete_count=99), replace(GOOD, watched_count=0)])
    assert (found.scenario, found.value, found.holds) == ("burst", 99.0, False)


def test_findings_are_listed_with_their_bars_and_whether_they_hold() -> None:
    out = StringIO()
    found = [
        finding("watchers", "KiB each", [4.0, 2.0, 9.0], Bar(30.0), "gateway 3"),
        finding("watchers", "idle CPU %", [3.5], Bar(3.0)),
        finding("scale", "confirmed/s", [1.25]),
    ]
    print_findings(Console(file=out, width=150), found)
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in out.getvalue().splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        ["watchers", "KiB each", "4.00", "2.00 - 9.00", "<= 30", "yes", "gateway 3"],
        ["", "idle CPU %", "3.50", "", "<= 3", "no", ""],
        ["scale", "confirmed/s", "1.25", "", "", "", ""],
    ]


def test_a_figure_that_only_one_side_has_is_not_compared() -> None:
    theirs = [replace(GOOD, costs={}, confirm_ms=None)]
    assert {row.figure for row in compare([GOOD], theirs)} == {
        "accepted/s",
        "confirmed/s",
        "accept p50 ms",
        "accept p99 ms",
    }
