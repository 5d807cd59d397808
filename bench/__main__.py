"""`python -m bench`: measure our whole stack, a running server, or two servers side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console

from bench.bars import Finding
from bench.load import BODIES, Scenario, Target
from bench.measure import Result, Server, idle_cpu, machine, measure, server_of_folder
from bench.progress import Screen
from bench.render import every_event, print_comparison, print_findings, print_results
from bench.scale import SCENARIOS as SCALE
from bench.scale import Sizes
from bench.stack import SLOT_MS, StackError, own_server
from bench.wire import Address

UNUSABLE = 2

STANDARD = (
    Scenario(name="burst", mode="burst", order_count=10_000, concurrency=50, watch_fraction=0.02),
    Scenario(name="closed loop, 100", mode="closed", order_count=5_000, concurrency=100),
    Scenario(name="100 orders/s", mode="rate", order_count=2_000, rate=100.0),
    Scenario(name="gRPC burst", mode="grpc", order_count=10_000, concurrency=4, batch=100),
)
_WARM_UP = Scenario(name="warm-up", mode="closed", order_count=500, concurrency=20)


@dataclass(slots=True)
class _Report:
    """What is printed, and written as JSON."""

    results: list[Result] = field(default_factory=list)
    idle: dict[str, dict[str, float]] = field(default_factory=dict)
    """CPU-ms a second of each process of each server without any orders."""
    findings: list[Finding] = field(default_factory=list)

    def as_json(self, bodies: Sequence[dict[str, Any]]) -> str:
        report = {
            "machine": machine(),
            "bodies": bodies,
            "idle_cpu_ms_per_second": self.idle,
            "results": [asdict(result) for result in self.results],
            "findings": [asdict(one) | {"holds": one.holds} for one in self.findings],
        }
        return json.dumps(report, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return uvloop.run(_bench(options))
    except (StackError, LookupError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)  # noqa: T201
        return UNUSABLE
    except KeyboardInterrupt:
        return 130


async def _bench(options: argparse.Namespace) -> int:
    # In a file or a pipe a report is as wide as it is.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    screen = Screen(Console(stderr=True, highlight=False))
    bodies = [json.loads(body) for body in options.body] or list(BODIES)
    report = _Report()
    if options.mode not in SCALE:
        await _load(options, bodies, report, out, screen)
    ran = True
    if options.mode in SCALE or (options.mode is None and not _names_a_server(options)):
        ran = await _scale(options, report, out, screen)
    print_findings(out, report.findings)
    out.print(f"[dim]{machine()}; the generator runs beside the server[/dim]")
    if options.json:
        options.json.write_text(report.as_json(bodies))
    return 0 if ran else UNUSABLE


def _names_a_server(options: argparse.Namespace) -> bool:
    return bool(options.url or options.data_dir or options.against)


async def _load(
    options: argparse.Namespace,
    bodies: Sequence[dict[str, Any]],
    report: _Report,
    out: Console,
    screen: Screen,
) -> None:
    """Run the scenarios of load on one server, or on two in turn."""
    async with AsyncExitStack() as stack:
        servers = [await _first_server(options, stack, screen)]
        if options.against:
            processes = _named_pids(options.against_process)
            target = Target([options.against])
            servers.append(Server(options.against_name, target, processes, options.against_metrics))
        for server in servers:
            for url in (*server.target.urls, *server.metrics_urls):
                Address.parse(url)  # raises for one that is none
        scenarios = [scenario for scenario in _scenarios(options) if servers[0].can(scenario)]
        if not scenarios:
            raise ValueError("nothing to measure: gRPC needs --grpc")
        pairs = options.pairs if options.against else 1
        for server in servers:
            if not options.no_warm_up:
                with screen.run(f"{server.name}: warm-up", _WARM_UP.order_count) as progress:
                    await measure(_WARM_UP, server, bodies, options.timeout, progress)
        for server in servers:
            if server.processes:
                report.idle[server.name] = await idle_cpu(server)
        for scenario in scenarios:
            runs: list[list[Result]] = [[] for _ in servers]
            for pair in range(1, pairs + 1):
                for server, its in zip(servers, runs, strict=True):
                    title = f"{server.name}: {scenario.name}" + (f" ({pair}/{pairs})" if pairs > 1 else "")
                    its_own = scenario if server.can(scenario) else _over_rest(scenario)
                    with screen.run(title, scenario.order_count) as progress:
                        its.append(await measure(its_own, server, bodies, options.timeout, progress))
            report.results += [result for pair_of in zip(*runs, strict=True) for result in pair_of]
            if len(servers) == 2:
                report.findings += print_comparison(out, *runs)
    if len(servers) == 1:
        print_results(out, report.results, report.idle.get(servers[0].name, {}))
        report.findings += every_event(report.results)


async def _scale(options: argparse.Namespace, report: _Report, out: Console, screen: Screen) -> bool:
    """Run the scenarios of scale, each on engines of its own; answer whether all could be run."""
    given = {
        "watcher_count": options.sockets,
        "fan_out": options.sockets,
        "closed_count": options.stored,
        "resting_count": options.resting,
        "stored_folder": options.stored_dir,
        "order_count": options.orders,
        "memory_order_count": options.orders,
        "idle_seconds": options.idle_seconds,
        "pairs": options.pairs,
    }
    sizes = Sizes(**{name: value for name, value in given.items() if value is not None})
    ran = True
    for name, scenario in SCALE.items():
        if options.mode in (None, name):
            try:
                outcome = await scenario(sizes, screen)
            except (StackError, ValueError, OSError) as error:
                # What the others found is worth having.
                print(f"bench: {name}: {error}", file=sys.stderr)  # noqa: T201
                ran = False
                continue
            report.findings += outcome.findings
            report.results += outcome.results
            for line in outcome.troubles:
                out.print(f"[yellow]{line}[/yellow]")
    return ran


def _over_rest(scenario: Scenario) -> Scenario:
    """Return what a server without gRPC is given in its place: a burst of as many orders."""
    burst = next(one for one in STANDARD if one.mode == "burst")
    return replace(burst, name=scenario.name, order_count=scenario.order_count)


async def _first_server(options: argparse.Namespace, stack: AsyncExitStack, screen: Screen) -> Server:
    if options.url:
        return Server(
            options.name,
            Target([options.url], options.grpc),
            _named_pids(options.process),
            options.metrics,
        )
    if options.data_dir:
        return replace(server_of_folder(options.data_dir), name=options.name)
    screen.say("starting an engine of its own (order-engine up --ephemeral)")
    return await stack.enter_async_context(own_server(options.workers, options.slot_ms, name=options.name))


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    if options.mode is None:
        chosen = list(STANDARD)
    else:
        default = next(scenario for scenario in STANDARD if scenario.mode == options.mode)
        changed = {
            name: value
            for name in ("concurrency", "rate", "watch_fraction", "batch")
            if (value := getattr(options, name)) is not None
        }
        chosen = [replace(default, name=options.mode, **changed)]
    if options.orders:
        chosen = [replace(scenario, order_count=options.orders) for scenario in chosen]
    return chosen


def _named_pids(pairs: Sequence[str]) -> dict[str, int]:
    found = {}
    for pair in pairs:
        name, _, pid = pair.partition("=")
        if not name or not pid.isdigit():
            raise ValueError(f'"{pair}" is not NAME=PID')
        found[name] = int(pid)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure an order execution engine. Without options, start one and measure that.",
        epilog="How to read the report: bench/README.md",
    )
    which = parser.add_argument_group("which server (else one is started, on an ephemeral data folder)")
    which.add_argument("--url", metavar="URL", help="base URL of a running server")
    which.add_argument("--grpc", metavar="HOST:PORT", default="", help="its gRPC address")
    which.add_argument(
        "--process", metavar="NAME=PID", action="append", default=[], help="a process tree to meter"
    )
    which.add_argument(
        "--metrics", metavar="URL", action="append", default=[], help="base of a /metrics to read"
    )
    which.add_argument("--data-dir", metavar="DIR", type=Path, help="the `order-engine up` that runs on it")
    which.add_argument(
        "--workers", metavar="N", type=int, default=1, help="worker processes of one that is started"
    )
    which.add_argument(
        "--slot-ms",
        metavar="N",
        type=int,
        default=SLOT_MS,
        help=f"its simulated slots (default {SLOT_MS}; 400 in reality)",
    )
    which.add_argument("--name", default="order-engine", help="what reports call it")

    other = parser.add_argument_group("side by side with another (A B A B ...)")
    other.add_argument("--against", metavar="URL", help="base URL of the other server")
    other.add_argument("--against-process", metavar="NAME=PID", action="append", default=[])
    other.add_argument("--against-metrics", metavar="URL", action="append", default=[])
    other.add_argument("--against-name", default="other")
    other.add_argument(
        "--pairs", metavar="N", type=int, default=5, help="runs on each, alternating (default 5)"
    )

    load = parser.add_argument_group("one scenario instead of the standard ones")
    load.add_argument("--mode", choices=[*(scenario.mode for scenario in STANDARD), *SCALE])
    load.add_argument("--orders", metavar="N", type=int, help="orders in each run")
    load.add_argument(
        "--concurrency", metavar="N", type=int, help="connections, clients, or batches under way"
    )
    load.add_argument("--rate", metavar="R", type=float, help="orders a second, with --mode rate")
    load.add_argument("--watch-fraction", metavar="F", type=float, help="share of the orders that is watched")
    load.add_argument("--batch", metavar="N", type=int, help="orders in a message, with --mode grpc")
    load.add_argument(
        "--body", metavar="JSON", action="append", default=[], help="order to submit; several in turn"
    )
    load.add_argument(
        "--timeout", metavar="S", type=float, default=30.0, help="give up without progress for so long"
    )
    load.add_argument("--no-warm-up", action="store_true")

    scale = parser.add_argument_group("sizes of the scenarios of scale: " + ", ".join(SCALE))
    scale.add_argument("--sockets", metavar="N", type=int, help="watchers (10,000), fanout (1,000)")
    scale.add_argument("--idle-seconds", metavar="S", type=float, help="watchers: to measure idle CPU (50)")
    scale.add_argument("--stored", metavar="N", type=int, help="stored: closed orders (1,000,000)")
    scale.add_argument("--resting", metavar="N", type=int, help="stored: orders that wait (100,000)")
    scale.add_argument(
        "--stored-dir",
        metavar="DIR",
        type=Path,
        help="stored: fill this data folder and keep it, to be used again; else one in the temporary folder",
    )

    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
