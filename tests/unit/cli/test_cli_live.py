"""The live view of `order-engine up`: figures from counters, on a clock of the test's own."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console

from cli.children import Child
from cli.launcher import Part
from cli.live import Figures, LiveView, live_view


class _Process:
    """A source of figures that the test sets."""

    def __init__(self) -> None:
        self.found: Figures | None = {}

    async def __call__(self) -> Figures | None:
        return self.found


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _moved(**counts: float) -> Figures:
    return {("transitions_total", status): count for status, count in counts.items()}


async def test_orders_a_second_are_the_counters_growth_over_all_processes() -> None:
    server, workers, clock = _Process(), _Process(), _Clock()
    view = LiveView([], [server, workers], clock)
    await view.refresh()
    clock.now, server.found, workers.found = 2.0, _moved(pending=20), _moved(confirmed=10)
    await view.refresh()
    assert view.line().plain.split() == [
        "accepted",
        "10.0/s",
        "confirmed",
        "5.0/s",
        "failed",
        "0.0/s",
        "open",
        "0",
    ]


async def test_what_was_counted_before_the_view_began_is_not_counted() -> None:
    server, clock = _Process(), _Clock()
    server.found = _moved(pending=1000)
    view = LiveView([], [server], clock)
    await view.refresh()
    assert view.per_second["pending"] == 0


async def test_a_process_that_is_away_or_was_restarted_does_not_disturb_the_figures() -> None:
    server, clock = _Process(), _Clock()
    server.found = _moved(pending=1000)
    view = LiveView([], [server], clock)
    await view.refresh()
    for now, found, expected in (
        (1.0, None, 0.0),
        (2.0, _moved(pending=5), 0.0),
        (3.0, _moved(pending=9), 4.0),
    ):
        clock.now, server.found = now, found
        await view.refresh()
        assert view.per_second["pending"] == expected


async def test_open_orders_are_those_the_server_counts() -> None:
    server = _Process()
    server.found = {("orders", "open"): 5.0}
    view = LiveView([], [server], _Clock())
    await view.refresh()
    assert view.open_count == 5


async def test_open_orders_are_not_counted_once_more_by_each_server() -> None:
    servers = _Process(), _Process()
    servers[0].found, servers[1].found = {("orders", "open"): 5.0}, {("orders", "open"): 6.0}
    view = LiveView([], servers, _Clock())
    await view.refresh()
    assert view.open_count == 6


async def test_resting_orders_have_a_line_of_their_own_while_there_are_any() -> None:
    servers = _Process(), _Process()
    view = LiveView([], servers, _Clock())
    await view.refresh()
    assert view.resting_line() is None
    assert len(view.lines()) == 1
    # Each server counts all of them, and one may be a moment behind.
    servers[0].found = {("resting_orders", "limit"): 1199.0, ("resting_orders", "sniper"): 4.0}
    servers[1].found = {("resting_orders", "limit"): 1200.0, ("orders", "open"): 1300.0}
    await view.refresh()
    line = view.resting_line()
    assert line is not None
    assert line.plain.strip() == "resting 1,204 (limit 1,200, sniper 4)"
    assert view.open_count == 1300
    servers[0].found = servers[1].found = {
        ("resting_orders", "limit"): 2.0,
        ("resting_orders", "sniper"): 0.0,
    }
    await view.refresh()
    line = view.resting_line()
    assert line is not None
    assert line.plain.strip() == "resting 2 (limit 2)"
    servers[0].found = servers[1].found = {("resting_orders", "limit"): 0.0}
    await view.refresh()
    assert view.resting_line() is None


async def test_an_order_that_waits_again_is_not_accepted_again() -> None:
    server, worker, clock = _Process(), _Process(), _Clock()
    view = LiveView([], [server], clock, worker_sources=[worker])
    await view.refresh()
    clock.now, server.found, worker.found = 1.0, _moved(pending=3), _moved(pending=5, confirmed=2)
    await view.refresh()
    assert (view.per_second["pending"], view.per_second["confirmed"]) == (3.0, 2.0)


async def test_health_names_what_is_not_ready_and_what_was_restarted() -> None:
    async def unready() -> str | None:
        return "away"

    child = Child("any", ["/bin/true"], log=Path("/dev/null"))
    good, bad = Part("server", child, unready), Part("workers", child, unready)
    good.state, good.restart_count, bad.state = "ready", 2, "PostgreSQL is away"
    said = LiveView([good, bad], []).health().plain
    assert "● server (restarted 2x)" in said
    assert "○ workers (PostgreSQL is away)" in said


async def test_outside_a_terminal_a_line_is_printed_only_when_it_differs() -> None:
    server, clock = _Process(), _Clock()
    view = LiveView([], [server], clock)
    console = Console(file=StringIO(), width=200)
    with live_view(view, console):
        for _ in range(3):
            clock.now += 10
            await view.refresh()
        server.found = {("orders", "open"): 1.0}
        await view.refresh()
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0", "1"]


async def test_outside_a_terminal_resting_orders_are_in_the_same_line() -> None:
    server = _Process()
    server.found = {("resting_orders", "sniper"): 4.0}
    view = LiveView([], [server], _Clock())
    console = Console(file=StringIO(), width=200)
    with live_view(view, console):
        await view.refresh()
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().endswith("open 0   resting 4 (sniper 4)\n")


async def test_in_a_terminal_the_view_stays_in_its_place() -> None:
    server, clock = _Process(), _Clock()
    view = LiveView([], [server], clock)
    console = Console(file=StringIO(), width=100, force_terminal=True)
    with live_view(view, console):
        await view.refresh()
        server.found = {("orders", "open"): 7.0}
        await view.refresh()
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "\x1b[2K" in shown, "lines are written over"
    assert shown.rindex("open") > shown.rindex("\x1b[2K")
    assert "7" in shown[shown.rindex("open") :]
