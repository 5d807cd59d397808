"""One measured run: load on a server, what its processes spent, what they say about it themselves."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import (
    Edge,
    Histogram,
    Latency,
    Stage,
    latency_of,
    parse_histograms,
    stages_and_edges,
    together,
)
from bench.load import Run, Scenario, Target
from bench.processes import Meter, engine_processes, environment, launcher_pid
from bench.wire import Address, HttpConnection, WireError, request_bytes
from engine.settings import Settings, load_settings

_SAMPLE_SECONDS = 1.0
_IDLE_SECONDS = 5.0

Progress = Callable[[Run], None]
"""Told several times a second how a run stands."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server, and where to read what it costs."""

    name: str
    target: Target
    processes: Mapping[str, int] = field(default_factory=dict)
    """Name to pid of each process tree."""
    metrics_urls: Sequence[str] = ()
    settings: Settings | None = None
    """Of an engine of ours on this machine."""

    def network_ms(self, quantile: float) -> float:
        """Return the network's own part of the time to confirmed: from broadcast to the block that confirms.

        A transaction waits for the next slot, which is equally far away at any moment, and then for whole
        slots: those it takes to land and those until its block counts as confirmed. 0 where the network is
        not ours to know.
        """
        if self.settings is None:
            return 0.0
        whole = self.settings.simnet_landing_slots + self.settings.simnet_confirmed_slots
        return (quantile + whole) * self.settings.simnet_slot_ms

    def can(self, scenario: Scenario) -> bool:
        return scenario.mode != "grpc" or bool(self.target.grpc_address)


@dataclass(frozen=True, slots=True)
class ProcessCost:
    cpu_ms_per_order: float
    rss_peak_mb: float
    pss_mb: float | None
    """None where it may not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is reported of a run, and written as JSON under these names."""

    server: str
    scenario: Scenario
    accepted_count: int
    finals: Mapping[str, int]
    """How many orders ended in each status; "" for those that had not when the run gave up."""
    failures: Mapping[str, int]
    """The failed ones by reason."""
    retried_count: int
    """Watched orders that took more than one attempt."""
    accepted_per_second: float
    """From the first submit to the last answer."""
    confirmed_per_second: float
    """From the first submit to the last close."""
    accept_ms: Latency | None
    confirm_ms: Latency | None
    """From submit to the confirmed event, of the watched orders."""
    network_ms: tuple[float, float]
    """The network's own part of that: p50 and p99."""
    watched_count: int
    complete_count: int
    """Watchers that saw every event once and in order, to the closing one."""
    late_count: int
    """Unwatched orders that were still open when the last watched one had closed."""
    refused: Mapping[str, int]
    watch_ends: Mapping[str, int]
    costs: Mapping[str, ProcessCost]
    generator_cpu_ms_per_order: float
    other_cores: float
    """Processors kept busy by anything but the server and the generator. Above 0.2: measure again."""
    seconds: float
    stages: Sequence[Stage]
    edges: Sequence[Edge]


async def measure(
    scenario: Scenario,
    server: Server,
    bodies: Sequence[dict[str, Any]],
    stall_seconds: float,
    progress: Progress,
) -> Result:
    """Run the scenario once and return its figures."""
    run = Run(scenario, server.target, bodies, stall_seconds)
    meter = Meter(server.processes)
    before = await scrape(server.metrics_urls)
    meter.start()
    cpu_before, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_watch(run, meter, progress))
        await run.drive()
        watching.cancel()
    costs, busy_seconds = meter.finish()
    generator_seconds, seconds = time.process_time() - cpu_before, time.perf_counter() - started
    after = await scrape(server.metrics_urls)
    finished = run.finished
    late_count = await run.read_back()
    if late_count:
        finished = run.finished
    progress(run)

    accepted = max(run.accepted_count, 1)
    finals = Counter(order.final for order in run.orders)
    watched = [order for order in run.orders if order.watched]
    stages, edges = stages_and_edges(before, after)
    own_seconds = sum(cost.cpu_seconds for cost in costs.values()) + generator_seconds
    return Result(
        server=server.name,
        scenario=scenario,
        accepted_count=run.accepted_count,
        finals=dict(finals),
        failures=dict(
            Counter(order.failure_reason or "?" for order in run.orders if order.final == "failed")
        ),
        retried_count=sum(order.statuses.count("routing") > 1 for order in watched),
        accepted_per_second=_rate(run.accepted_count, run.submitted - run.started),
        confirmed_per_second=_rate(finals["confirmed"], finished - run.started),
        accept_ms=latency_of(order.accepted - order.due for order in run.orders),
        confirm_ms=latency_of(
            order.closed - order.due for order in watched if order.statuses and order.final == "confirmed"
        ),
        network_ms=(server.network_ms(0.5), server.network_ms(0.99)),
        watched_count=len(watched),
        complete_count=sum(order.complete for order in watched),
        late_count=late_count,
        refused=dict(run.refused),
        watch_ends=dict(+run.watch_ends),
        costs={
            name: ProcessCost(
                round(cost.cpu_seconds * 1000 / accepted, 3),
                round(cost.rss_peak_bytes / 2**20, 1),
                None if cost.pss_bytes is None else round(cost.pss_bytes / 2**20, 1),
            )
            for name, cost in costs.items()
        },
        generator_cpu_ms_per_order=round(generator_seconds * 1000 / accepted, 3),
        other_cores=round(max(busy_seconds - own_seconds, 0.0) / seconds, 2),
        seconds=round(seconds, 2),
        stages=stages,
        edges=edges,
    )


async def idle_cpu(server: Server, seconds: float = _IDLE_SECONDS) -> dict[str, float]:
    """Return the CPU-ms a second that each process spends while nothing is asked of it.

    It is part of what a run costs, whatever the run: at 100 orders/s, 200 CPU-ms a second are 2 an order.
    """
    meter = Meter(server.processes)
    meter.start()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    costs, _ = meter.finish()
    seconds = time.perf_counter() - started
    return {name: round(cost.cpu_seconds * 1000 / seconds, 1) for name, cost in costs.items()}


async def scrape(urls: Sequence[str]) -> dict[tuple[str, str], Histogram]:
    """Return the histograms of all these /metrics together. One that does not answer counts as empty."""
    parts = []
    for url in urls:
        address = Address.parse(url)
        connection = HttpConnection()
        try:
            answer = await connection.request(address, request_bytes(address, "GET", "/metrics"))
        except (OSError, WireError):
            continue
        finally:
            connection.close()
        parts.append(parse_histograms(answer.body.decode(errors="replace")))
    return together(parts)


def server_of_launcher(launcher: int, name: str = "order-engine") -> Server:
    """Return the server that a running `order-engine up` is. Raises LookupError where it has no gateway."""
    processes = engine_processes(launcher)
    gateways = [pid for part, pid in processes.items() if part.partition("-")[0] == "gateway"]
    if not gateways:
        raise LookupError(f"process {launcher} runs no gateway")
    # Each gateway has a port of its own; the first one's is what the others count up from.
    settings = min(
        (load_settings(environment(pid), env_file=None) for pid in gateways), key=lambda found: found.port
    )

    def urls(first_port: int, count: int) -> list[str]:
        return [f"http://{settings.grpc_host}:{port}" for port in range(first_port, first_port + count)]

    gateway_urls = urls(settings.port, settings.gateway_processes)
    return Server(
        name,
        Target(gateway_urls, settings.grpc_target),
        processes,
        [
            *gateway_urls,
            *urls(settings.server_metrics_port, settings.server_processes),
            *urls(settings.workers_metrics_port, settings.worker_processes),
        ],
        settings,
    )


def server_of_folder(data_folder: Path) -> Server:
    """Return the server that runs on that data folder. Raises LookupError."""
    return server_of_launcher(launcher_pid(data_folder))


def machine() -> str:
    """Return what this machine is, for the foot of a report."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        os.uname().machine,
    )
    return f"{os.cpu_count()} x {model}"


async def _watch(run: Run, meter: Meter, progress: Progress) -> None:
    sampled = time.perf_counter()
    while True:
        await asyncio.sleep(0.2)
        progress(run)
        if time.perf_counter() - sampled >= _SAMPLE_SECONDS:
            meter.sample()
            sampled = time.perf_counter()


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds > 0 else 0.0
