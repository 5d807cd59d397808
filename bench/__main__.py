"""`python -m bench`: measure our whole stack, a running server, or two servers side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.load import Run, Scenario, Target
from bench.measure import Result, Server, idle_cpu, machine, measure, server_of_folder
from bench.render import print_comparison, print_results
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

# Both ways, so that the pools' prices stay where they are.
_BODIES = (
    {"side": "sell", "amount": 0.1, "inputToken": "SOL", "outputToken": "USDC"},
    {"side": "sell", "amount": 15, "inputToken": "USDC", "outputToken": "SOL"},
)


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
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    err = Console(stderr=True, highlight=False)
    bodies = [json.loads(body) for body in options.body] or list(_BODIES)
    async with AsyncExitStack() as stack:
        servers = [await _first_server(options, stack, err)]
        if options.against:
            servers.append(
                Server(
                    options.against_name,
                    Target(options.against),
                    _named_pids(options.against_process),
                    options.against_metrics,
                )
            )
        for server in servers:
            for url in (server.target.url, *server.metrics_urls):
                Address.parse(url)  # raises for one that is none
        scenarios = [
            scenario for scenario in _scenarios(options) if all(server.can(scenario) for server in servers)
        ]
        if not scenarios:
            raise ValueError("nothing to measure: gRPC needs --grpc, and the other server speaks REST only")
        pairs = options.pairs if options.against else 1
        results: list[Result] = []
        for server in servers:
            if not options.no_warm_up:
                with _shown(err, f"{server.name}: warm-up", _WARM_UP.order_count) as progress:
                    await measure(_WARM_UP, server, bodies, options.timeout, progress)
        idle = {server.name: await idle_cpu(server) for server in servers if server.processes}
        for scenario in scenarios:
            for pair in range(pairs):
                for server in servers:
                    title = f"{server.name}: {scenario.name}" + (
                        f" ({pair + 1}/{pairs})" if pairs > 1 else ""
                    )
                    with _shown(err, title, scenario.order_count) as progress:
                        results.append(await measure(scenario, server, bodies, options.timeout, progress))
    _report(out, results, servers, scenarios, idle)
    if options.json:
        report = {
            "machine": machine(),
            "bodies": bodies,
            "idle_cpu_ms_per_second": idle,
            "results": [asdict(result) for result in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _report(
    out: Console,
    results: Sequence[Result],
    servers: Sequence[Server],
    scenarios: Sequence[Scenario],
    idle: Mapping[str, Mapping[str, float]],
) -> None:
    if len(servers) == 1:
        print_results(out, results, idle.get(servers[0].name, {}))
    else:
        for scenario in scenarios:
            a, b = (
                [one for one in results if one.scenario == scenario and one.server == server.name]
                for server in servers
            )
            print_comparison(out, a, b)
    out.print(f"[dim]{machine()}; the generator runs beside the server[/dim]")


async def _first_server(options: argparse.Namespace, stack: AsyncExitStack, err: Console) -> Server:
    if options.url:
        return Server(
            options.name,
            Target(options.url, options.grpc),
            _named_pids(options.process),
            options.metrics,
        )
    if options.data_dir:
        return replace(server_of_folder(options.data_dir), name=options.name)
    err.print("starting an engine of its own (order-engine up --ephemeral)")
    server = await stack.enter_async_context(own_server(options.workers, options.slot_ms))
    return replace(server, name=options.name)


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


@contextmanager
def _shown(err: Console, title: str, order_count: int) -> Iterator[Any]:
    """Show how a run stands while it runs: a bar in a terminal, a line at the end of it elsewhere."""
    last: list[Run] = []
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=order_count, said="")

        def progress(run: Run) -> None:
            last[:] = [run]
            bar.update(task, completed=run.accepted_count, said=_said(run))

        yield progress
    if last and not err.is_terminal:
        err.print(f"{title}: {_said(last[0])}")


def _said(run: Run) -> str:
    refused = f", {sum(run.refused.values()):,} refused" if run.refused else ""
    return f"{run.accepted_count:,} accepted{refused}, {run.closed_count:,} seen to close"


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
        "--pairs", metavar="N", type=int, default=3, help="runs on each, alternating (default 3)"
    )

    load = parser.add_argument_group("one scenario instead of the standard ones")
    load.add_argument("--mode", choices=[scenario.mode for scenario in STANDARD])
    load.add_argument("--orders", metavar="N", type=int, help="orders in each scenario")
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

    parser.add_argument("--json", metavar="FILE", type=Path, help="write every figure there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
