"""Reports for people: runs, where CPU and time went, two servers side by side, and which bars hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.bars import EVERY_EVENT, RATIOS, Finding, finding
from bench.figures import Latency
from bench.measure import Result

_CLEAN_ENDS = {"1000", "OK"}


def print_results(console: Console, results: Sequence[Result], idle: Mapping[str, float]) -> None:
    """Print everything that was measured of one server: a column for each scenario.

    `idle`: CPU-ms a second of each process without any orders.
    """
    tables = [
        (_load_table(results), "confirm: from submit to the confirmed event, as a watcher saw it"),
        (
            _cpu_table(results, idle),
            "idle: CPU-ms a second without orders; memory of the last run, in MB:"
            " highest RSS, and PSS at its end",
        ),
        (_stage_table(results), "as the processes measured it themselves (order_engine_stage_seconds)"),
        (
            _edge_table(results),
            "a mean of 1 under load is an edge that does not coalesce (order_engine_batch_size)",
        ),
    ]
    for table, note in tables:
        if table.row_count:
            # By itself: a table would wrap it at its own width.
            title, table.title = table.title, None
            console.print(f"[bold]{title}[/bold]")
            console.print(table)
            console.print(f"[dim]{note}[/dim]\n")
    for result in results:
        for line in troubles(result):
            console.print(f"[yellow]{result.scenario.name}: {line}[/yellow]")


def troubles(result: Result) -> list[str]:
    """Return what did not go as it should have, a sentence each."""
    found = []
    if result.refused:
        found.append("refused: " + _counts(result.refused))
    not_confirmed = {
        status or "still open": n for status, n in result.finals.items() if status != "confirmed"
    }
    if not_confirmed:
        found.append("not confirmed: " + _counts(not_confirmed))
    if result.failures:
        found.append("why they failed: " + _counts(result.failures))
    if result.complete_count < result.watched_count:
        missed = result.watched_count - result.complete_count
        found.append(f"{missed} of {result.watched_count} watchers missed an event or saw one twice")
    unclean = {code: n for code, n in result.watch_ends.items() if code not in _CLEAN_ENDS}
    if unclean:
        found.append("watches that ended otherwise: " + _counts(unclean))
    if result.late_count:
        found.append(f"{result.late_count} unwatched orders closed after the last watched one")
    if result.other_cores > 0.2:
        found.append(f"something else kept {result.other_cores:.1f} processors busy; measure again")
    return found


def _table(title: str, results: Sequence[Result]) -> Table:
    table = Table(title=title)
    table.add_column()
    for result in results:
        table.add_column(result.scenario.name, justify="right")
    return table


def _load_table(results: Sequence[Result]) -> Table:
    table = _table("Load", results)
    rows: list[tuple[str, Callable[[Result], str]]] = [
        ("orders accepted", lambda result: f"{result.accepted_count:,}"),
        ("accepted/s", lambda result: f"{result.accepted_per_second:,.0f}"),
        ("confirmed/s", lambda result: f"{result.confirmed_per_second:,.0f}"),
        ("accept ms, p50 / p95", lambda result: _latency(result.accept_ms, "p50", "p95")),
        ("  p99 / max", lambda result: _latency(result.accept_ms, "p99", "max")),
        ("confirm ms, p50 / p95", lambda result: _latency(result.confirm_ms, "p50", "p95")),
        ("  p99 / max", lambda result: _latency(result.confirm_ms, "p99", "max")),
        ("watchers", lambda result: f"{result.watched_count:,}"),
        ("  that saw every event", lambda result: f"{result.complete_count:,}"),
        ("  that saw a retry", lambda result: f"{result.retried_count:,}"),
        (
            "orders not confirmed",
            lambda result: f"{result.scenario.order_count - result.finals.get('confirmed', 0):,}",
        ),
    ]
    for name, cell in rows:
        table.add_row(name, *(cell(result) for result in results))
    return table


def _cpu_table(results: Sequence[Result], idle: Mapping[str, float]) -> Table:
    table = _table("CPU-ms an order", results)
    table.add_column("idle", justify="right")
    table.add_column("memory", justify="right")
    for name in dict.fromkeys(name for result in results for name in result.costs):
        costs = [result.costs.get(name) for result in results]
        last = next(cost for cost in reversed(costs) if cost)
        pss = "?" if last.pss_mb is None else f"{last.pss_mb:.0f}"
        cells = [f"{cost.cpu_ms_per_order:.3f}" if cost else "" for cost in costs]
        table.add_row(name, *cells, f"{idle.get(name, 0.0):.0f}", f"{last.rss_peak_mb:.0f}, {pss}")
    if table.row_count:
        table.add_section()
        memory = sum(cost.pss_mb or 0.0 for cost in results[-1].costs.values())
        totals = [f"{cpu_ms(result):.3f}" for result in results]
        table.add_row("together", *totals, f"{sum(idle.values()):.0f}", f"{memory:.0f}", style="bold")
        generator = [f"{result.generator_cpu_ms_per_order:.3f}" for result in results]
        table.add_row("the generator", *generator, "", "", style="dim")
    return table


def _stage_table(results: Sequence[Result]) -> Table:
    table = _table("Where an order's time goes: mean / p95 ms", results)
    for name in dict.fromkeys(stage.name for result in results for stage in result.stages):
        cells = []
        for result in results:
            stage = next((stage for stage in result.stages if stage.name == name), None)
            cells.append(f"{stage.mean:,.1f} / {stage.p95:,.0f}" if stage else "")
        table.add_row(name, *cells)
    return table


def _edge_table(results: Sequence[Result]) -> Table:
    table = _table("What travels together: mean batch (round trips)", results)
    for name in sorted({edge.name for result in results for edge in result.edges}):
        cells = []
        for result in results:
            edge = next((edge for edge in result.edges if edge.name == name), None)
            cells.append(f"{edge.mean:,.1f} ({edge.batch_count:,})" if edge else "")
        table.add_row(name, *cells)
    return table


def cpu_ms(result: Result) -> float:
    """Return the CPU-ms an order of all metered processes together."""
    return sum(cost.cpu_ms_per_order for cost in result.costs.values())


# ---- Two servers -----------------------------------------------------------------------------------

_COMPARED: Sequence[tuple[str, Callable[[Result], float | None]]] = (
    ("accepted/s", lambda result: result.accepted_per_second),
    ("confirmed/s", lambda result: result.confirmed_per_second),
    ("accept p50 ms", lambda result: result.accept_ms.p50 if result.accept_ms else None),
    ("accept p99 ms", lambda result: result.accept_ms.p99 if result.accept_ms else None),
    ("confirm p50 ms", lambda result: result.confirm_ms.p50 if result.confirm_ms else None),
    ("confirm p99 ms", lambda result: result.confirm_ms.p99 if result.confirm_ms else None),
    (
        "confirm p50 ms above the network",
        lambda result: result.confirm_ms.p50 - result.network_ms[0] if result.confirm_ms else None,
    ),
    (
        "confirm p99 ms above the network",
        lambda result: result.confirm_ms.p99 - result.network_ms[1] if result.confirm_ms else None,
    ),
    ("CPU-ms an order", cpu_ms),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of two servers, measured in pairs of runs."""

    figure: str
    a: float
    b: float
    """Medians."""
    ratio: Finding
    """a / b within each pair, so that what slows the machine for a while slows both sides of it."""


def compare(a: Sequence[Result], b: Sequence[Result]) -> list[Compared]:
    """Return what both servers have figures of. A figure that some run lacks is left out."""
    scenario = a[0].scenario
    compared = []
    for name, figure in _COMPARED:
        pairs = [(figure(one), figure(other)) for one, other in zip(a, b, strict=True)]
        known = [(one, other) for one, other in pairs if one is not None and other]
        if len(known) == len(pairs):
            ratios = [one / other for one, other in known]
            medians = median(one for one, _ in known), median(other for _, other in known)
            note = " / ".join(f"{value:,.2f}" for value in medians)
            ratio = finding(scenario.name, name, ratios, RATIOS.get((scenario.mode, name)), note)
            compared.append(Compared(name, *medians, ratio))
    return compared


def print_comparison(console: Console, a: Sequence[Result], b: Sequence[Result]) -> list[Finding]:
    """Print one scenario's runs on both servers, side by side; return what there are bars for."""
    scenario = a[0].scenario.name
    title = f"{scenario}: {len(a)} pairs, alternating"
    if a[0].scenario.mode != b[0].scenario.mode:
        title += f"; {b[0].server} by {b[0].scenario.mode}, over REST and WebSocket"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("figure (median)")
    for name in (a[0].server, b[0].server, "ratio of pairs (median)", "min - max", "bar", "holds"):
        table.add_column(name, justify="right")
    rows = compare(a, b)
    for row in rows:
        table.add_row(row.figure, f"{row.a:,.2f}", f"{row.b:,.2f}", *_measured(row.ratio))
    console.print(table)
    for result in (*a, *b):
        for line in troubles(result):
            console.print(f"[yellow]{scenario}, {result.server}: {line}[/yellow]")
    return [row.ratio for row in rows if row.ratio.bar] + every_event(a)


# ---- Bars ------------------------------------------------------------------------------------------


def every_event(results: Sequence[Result]) -> list[Finding]:
    """Return how many of a server's watchers saw every event, by scenario."""
    found: dict[str, list[float]] = {}
    for result in results:
        if result.watched_count:
            percent = 100.0 * result.complete_count / result.watched_count
            found.setdefault(result.scenario.name, []).append(percent)
    # The worst run counts.
    return [finding(name, "% that saw every event", [min(each)], EVERY_EVENT) for name, each in found.items()]


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print figures with their bars, and which of them hold."""
    table = Table(title="Bars", title_justify="left", title_style="bold")
    table.add_column("scenario")
    table.add_column("figure")
    for name in ("measured", "min - max", "bar", "holds"):
        table.add_column(name, justify="right")
    table.add_column("of which")
    last = ""
    for one in findings:
        if last and one.scenario != last:
            table.add_section()
        table.add_row(
            "" if one.scenario == last else one.scenario,
            one.figure,
            *_measured(one),
            f"[dim]{one.note}[/dim]",
        )
        last = one.scenario
    console.print(table)


def _measured(one: Finding) -> list[str]:
    spread = "" if one.least == one.most else f"{one.least:,.2f} - {one.most:,.2f}"
    if one.bar is None:
        return [f"{one.value:,.2f}", spread, "", ""]
    return [f"{one.value:,.2f}", spread, str(one.bar), "[green]yes[/green]" if one.holds else "[red]no[/red]"]


def _latency(latency: Latency | None, *names: str) -> str:
    return "" if latency is None else " / ".join(f"{getattr(latency, name):,.1f}" for name in names)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
