"""How the engine scales: many watchers, much stored, several processes, many orders.

Each scenario starts engines of its own, so it can be run alone; what it finds is a list of figures with
their bars.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from bench.bars import (
    EVERY_EVENT,
    FAN_OUT_MS,
    GROWTH_PERCENT,
    IDLE_PERCENT,
    SCALE_RATIO,
    STORED_RATIO,
    WATCHER_KIB,
    Finding,
    finding,
)
from bench.database import fill, store_later, wake
from bench.load import BODIES, OrderRun, Run, Scenario
from bench.measure import Result, Server, idle_cpu, measure
from bench.processes import Memory, memory
from bench.progress import Screen, Update
from bench.render import cpu_ms, troubles
from bench.stack import own_server
from bench.wire import Address, WebSocket

REAL_SLOT_MS: Final = 400
_STALL_SECONDS: Final = 60.0
_OPENING: Final = 100
"""Sockets that shake hands at a time."""
_SETTLE_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    watcher_count: int = 10_000
    fan_out: int = 1_000
    rounds: int = 5
    """Orders that are told to `fan_out` sockets, one after the other."""
    idle_seconds: float = 50.0
    """Longer than the gateway's interval of pings."""
    closed_count: int = 1_000_000
    resting_count: int = 100_000
    order_count: int = 5_000
    """In each run of `stored` and of `scale`."""
    pairs: int = 5
    warm_up_count: int = 500
    memory_order_count: int = 100_000
    stored_folder: Path | None = None
    """Where the filled data folder is kept, and used again; None: removed at the end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    findings: Sequence[Finding]
    troubles: Sequence[str] = ()
    results: Sequence[Result] = ()


# ---- Watchers ----------------------------------------------------------------------------------------


class _Event(msgspec.Struct):
    status: str
    sequence: int


_decode_event = msgspec.json.Decoder(_Event).decode


class Crowd:
    """Sockets that follow orders, one each: what each was told, and when."""

    def __init__(self, url: str, order_ids: Sequence[str]) -> None:
        self.orders = [OrderRun(0.0, order_id, watched=True) for order_id in order_ids]
        self.told: list[list[float]] = [[] for _ in order_ids]
        """When each socket had each event, as time.perf_counter."""
        self.closed_count = 0
        self._address = Address.parse(url)
        self._sockets: list[WebSocket] = []
        self._begun_count = 0
        self._ended_count = 0
        self._moved = asyncio.Event()

    async def open(self, progress: Update) -> None:
        """Open every socket; return when each was told its first event. Raises OSError."""
        waiting = iter(range(len(self.orders)))

        async def opener() -> None:
            for index in waiting:
                await self._open(index)

        async with asyncio.TaskGroup() as group:
            for _ in range(_OPENING):
                group.create_task(opener())
        await self._until(lambda: self._begun_count + self._ended_count >= len(self.orders), progress)

    async def until_ended(self, progress: Update) -> None:
        """Return when every socket has ended, or when nothing has happened for a minute."""
        await self._until(lambda: self._ended_count == len(self.orders), progress)

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()

    @property
    def complete_percent(self) -> float:
        return 100.0 * sum(order.complete for order in self.orders) / len(self.orders)

    async def _open(self, index: int) -> None:
        order, told = self.orders[index], self.told[index]

        def on_text(message: bytes) -> None:
            now = time.perf_counter()
            event = _decode_event(message)
            self._begun_count += not told
            told.append(now)
            self.closed_count += order.saw(event.status, event.sequence, now)
            self._moved.set()

        def on_end(_code: int) -> None:
            self._ended_count += 1
            self._moved.set()

        socket = WebSocket(self._address, f"/api/orders/{order.order_id}/ws", on_text, on_end)
        self._sockets.append(socket)
        await socket.open()

    async def _until(self, condition: Callable[[], bool], progress: Update) -> None:
        while not condition():
            self._moved.clear()
            try:
                async with asyncio.timeout(_STALL_SECONDS):
                    await self._moved.wait()
            except TimeoutError:
                return
            progress(
                self.closed_count or self._begun_count,
                f"{self._begun_count:,} told, {self.closed_count:,} told the end",
            )


async def watchers(sizes: Sizes, screen: Screen) -> Outcome:
    """Many WebSockets of orders that wait, in one gateway: memory, and CPU while nothing happens."""
    count = sizes.watcher_count
    _need_files(count)
    async with own_server(slot_ms=REAL_SLOT_MS) as server:
        assert server.settings is not None
        await _warm_up(server, sizes, screen)
        with screen.shown("watchers: idle, without any", 1):
            idle_before = await idle_cpu(server, sizes.idle_seconds / 2)
        order_ids = await store_later(server.settings, count)
        await asyncio.sleep(_SETTLE_SECONDS)
        before = memory(server.processes)
        crowd = Crowd(server.target.urls[0], order_ids)
        try:
            with screen.shown(f"watchers: open {count:,}", count) as update:
                await crowd.open(update)
            with screen.shown("watchers: idle, with all of them", 1):
                idle = await idle_cpu(server, sizes.idle_seconds)
            after = memory(server.processes)
            with screen.shown(f"watchers: wake {count:,} orders", count) as update:
                await wake(server.settings)
                await crowd.until_ended(update)
        finally:
            crowd.close()
    grown = {name: (after[name].pss_bytes - before[name].pss_bytes) / 1024 / count for name in before}
    name = f"watchers, {count:,}"
    return Outcome(
        [
            finding(
                name, "KiB each, all processes", [sum(grown.values())], WATCHER_KIB, _parts(grown, ".1f")
            ),
            finding(
                name, "idle CPU %, all processes", [_percent(idle)], IDLE_PERCENT, _parts(idle, ".1f", 10)
            ),
            finding(
                name, "  before there were any", [_percent(idle_before)], None, _parts(idle_before, ".1f", 10)
            ),
            finding(name, "% that saw every event", [crowd.complete_percent], EVERY_EVENT),
        ]
    )


async def fanout(sizes: Sizes, screen: Screen) -> Outcome:
    """One order that many sockets watch: how much later the last one is told than the first."""
    count = sizes.fan_out
    _need_files(count)
    spreads_ms, complete = [], []
    async with own_server() as server:
        assert server.settings is not None
        await _warm_up(server, sizes, screen)
        for number in range(1, sizes.rounds + 1):
            order_ids = await store_later(server.settings, 1) * count
            crowd = Crowd(server.target.urls[0], order_ids)
            title = f"fanout: {count:,} sockets, order {number} of {sizes.rounds}"
            try:
                with screen.shown(title, count) as update:
                    await crowd.open(update)
                    # The generator shares the machine, and its own pauses would count.
                    with _without_gc():
                        await wake(server.settings)
                        await crowd.until_ended(update)
            finally:
                crowd.close()
            complete.append(crowd.complete_percent)
            spreads_ms.append(spread_ms(crowd.told))
    name = f"fanout, {count:,}"
    return Outcome(
        [
            finding(
                name,
                "ms from the first told to the last",
                spreads_ms,
                FAN_OUT_MS,
                "worst event of each order",
            ),
            finding(name, "% that saw every event", [min(complete)], EVERY_EVENT),
        ]
    )


def spread_ms(told: Sequence[Sequence[float]]) -> float:
    """Return how much later the last was told than the first, of the event where that was longest.

    `told` are the seconds at which each watcher had each event. The first event was there before them.
    """
    longest = min(map(len, told))
    return 1000 * max(
        (max(one[index] for one in told) - min(one[index] for one in told) for index in range(1, longest)),
        default=0.0,
    )


# ---- Much stored, several processes ------------------------------------------------------------------


async def stored(sizes: Sizes, screen: Screen) -> Outcome:
    """What an order costs with many stored, against an empty database; in turn."""
    closed, resting = sizes.closed_count, sizes.resting_count
    with (
        nullcontext(str(sizes.stored_folder))
        if sizes.stored_folder is not None
        else tempfile.TemporaryDirectory(prefix="order-bench-")
    ) as folder:
        with screen.shown(
            f"stored: {closed:,} closed and {resting:,} waiting orders", closed + resting
        ) as update:
            await fill(Path(folder), closed, resting, lambda done: update(done, f"{done:,} stored"))
        async with (
            own_server(data_folder=Path(folder), name="loaded") as loaded,
            own_server(name="empty") as empty,
        ):
            scenario = Scenario(
                name="stored", mode="burst", order_count=sizes.order_count, watch_fraction=0.02
            )
            a, b = await _in_turn(scenario, (loaded, empty), sizes, screen)
    name = f"stored, {closed:,} + {resting:,}"
    return Outcome(
        [
            _ratio(name, "CPU-ms an order, loaded / empty", cpu_ms, a, b, STORED_RATIO),
            _ratio(name, "confirmed/s, loaded / empty", _confirmed, a, b, None),
        ],
        _troubles(a, b),
        [*a, *b],
    )


async def scale(sizes: Sizes, screen: Screen) -> Outcome:
    """Two processes of each kind against one of each; in turn."""
    findings, said, results = [], [], []
    async with (
        own_server(2, server_count=2, gateway_count=2, name="2 + 2 + 2") as two,
        own_server(name="1 + 1 + 1") as one,
    ):
        for mode, concurrency in (("burst", 50), ("closed", 100)):
            scenario = Scenario(
                name=f"scale, {mode}",
                mode=mode,
                order_count=sizes.order_count,
                concurrency=concurrency,
                watch_fraction=0.02,
            )
            a, b = await _in_turn(scenario, (two, one), sizes, screen)
            name = scenario.name
            findings += [
                _ratio(name, "confirmed/s, 2 + 2 + 2 / 1 + 1 + 1", _confirmed, a, b, SCALE_RATIO),
                _ratio(name, "CPU-ms an order, 2 + 2 + 2 / 1 + 1 + 1", cpu_ms, a, b, None),
            ]
            said += _troubles(a, b)
            results += [*a, *b]
    return Outcome(findings, said, results)


async def _in_turn(
    scenario: Scenario, servers: tuple[Server, Server], sizes: Sizes, screen: Screen
) -> tuple[list[Result], list[Result]]:
    for server in servers:
        await _warm_up(server, sizes, screen)
    results: tuple[list[Result], list[Result]] = ([], [])
    for pair in range(1, sizes.pairs + 1):
        for server, its in zip(servers, results, strict=True):
            with screen.run(
                f"{scenario.name}: {server.name} ({pair}/{sizes.pairs})", scenario.order_count
            ) as progress:
                its.append(await measure(scenario, server, BODIES, _STALL_SECONDS, progress))
    return results


def _ratio(
    name: str,
    figure: str,
    of: Callable[[Result], float],
    a: Sequence[Result],
    b: Sequence[Result],
    bar: Any,
) -> Finding:
    pairs = [(of(one), of(other)) for one, other in zip(a, b, strict=True)]
    note = " / ".join(f"{median(side):,.2f}" for side in zip(*pairs, strict=True))
    return finding(name, figure, [one / other for one, other in pairs if other] or [0.0], bar, note)


def _confirmed(result: Result) -> float:
    return result.confirmed_per_second


# ---- Memory ------------------------------------------------------------------------------------------


async def memory_growth(sizes: Sizes, screen: Screen) -> Outcome:
    """How much the processes grow over many orders, once they are warm."""
    total = sizes.memory_order_count
    # The first tenth fills caches; of a short run, half, for PostgreSQL's shared buffers fill slowly.
    warm = max(total // 10, min(total // 2, 50_000))
    chunk = min(5_000, warm)
    done = 0
    samples: list[tuple[int, Mapping[str, Memory]]] = []
    said: list[str] = []
    async with own_server() as server:
        with screen.shown(f"memory: {total:,} orders", total) as update:
            while done < total:
                count = min(chunk, total - done)
                scenario = Scenario(name="memory", mode="burst", order_count=count, watch_fraction=0.02)
                run = Run(scenario, server.target, BODIES, _STALL_SECONDS)
                await run.drive()
                if not run.accepted_count:
                    said.append(f"memory: gave up after {done:,} orders: {dict(run.refused)}")
                    break
                await run.read_back()
                done += run.accepted_count
                samples.append((done, memory(server.processes)))
                update(done, f"{_mib(samples[-1][1]):.0f} MiB")
    if said:
        return Outcome([], said)
    name = f"memory, {total:,} orders"
    first, last = next(seen for at, seen in samples if at >= warm), samples[-1][1]
    note = f"{_mib(first):.0f} -> {_mib(last):.0f} MiB from {warm:,} orders on"
    return Outcome(
        [
            finding(
                name, "growth %, all processes", [_growth(_pss(first), _pss(last))], GROWTH_PERCENT, note
            ),
            *(
                finding(
                    name,
                    f"  {process}",
                    [_growth(first[process].pss_bytes, last[process].pss_bytes)],
                    None,
                    f"{first[process].pss_bytes / 2**20:.1f} -> {last[process].pss_bytes / 2**20:.1f} MiB;"
                    f" RSS {first[process].rss_bytes / 2**20:.1f} -> {last[process].rss_bytes / 2**20:.1f}",
                )
                for process in last
            ),
        ]
    )


def _pss(processes: Mapping[str, Memory]) -> int:
    """Return the PSS of all together."""
    return sum(one.pss_bytes for one in processes.values())


def _growth(before: int, after: int) -> float:
    return 100.0 * (after - before) / before


def _mib(processes: Mapping[str, Memory]) -> float:
    return _pss(processes) / 2**20


# ---- All of them -------------------------------------------------------------------------------------

SCENARIOS: Final[Mapping[str, Callable[[Sizes, Screen], Awaitable[Outcome]]]] = {
    "watchers": watchers,
    "fanout": fanout,
    "stored": stored,
    "scale": scale,
    "memory": memory_growth,
}


async def _warm_up(server: Server, sizes: Sizes, screen: Screen) -> None:
    scenario = Scenario(name="warm-up", mode="closed", order_count=sizes.warm_up_count, concurrency=100)
    with screen.run(f"{server.name}: warm-up", scenario.order_count) as progress:
        await measure(scenario, server, BODIES, _STALL_SECONDS, progress)


def _need_files(count: int) -> None:
    """Raise the limit of open files for so many sockets. Raises ValueError where it cannot be.

    The gateway raises its own, to the same hard limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{count:,} sockets need {needed:,} open files, and at most {hard:,} are allowed (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def _without_gc() -> Any:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _percent(cpu_ms_per_second: Mapping[str, float]) -> float:
    return sum(cpu_ms_per_second.values()) / 10


def _parts(values: Mapping[str, float], how: str, divisor: float = 1) -> str:
    """Return what each process's part is; those that have none are left out."""
    said = {name: f"{value / divisor:{how}}" for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in said.items() if float(value))


def _troubles(*runs: Sequence[Result]) -> list[str]:
    return [
        f"{result.scenario.name}, {result.server}: {line}"
        for results in runs
        for result in results
        for line in troubles(result)
    ]
