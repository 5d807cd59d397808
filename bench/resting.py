"""`python -m bench.resting`: what a tick of the monitors costs with few and with many orders that rest.

The monitor's own tick, on an embedded PostgreSQL and a simnet process, in this process; nothing executes what
it fires. Few and many take turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final, cast
from uuid import UUID

import uvloop
from rich.console import Console
from solders.keypair import Keypair

from bench.bars import TICK_RATIO, Finding, finding
from bench.measure import machine
from bench.processes import all_processes, tree
from bench.progress import Screen
from bench.render import print_findings
from bench.resting_orders import Group, fill_resting
from bench.stack import free_ports
from cli.children import in_front
from cli.embedded import Postgres, Valkey
from engine.domain.errors import NodeUnavailable
from engine.domain.order import OrderSpec, Side
from engine.domain.order_ids import make_order_id
from engine.domain.order_types import LimitOrder, TriggerKind
from engine.domain.tokens import BONK, JUP, RAY, SOL, USDC, USDT, Token
from engine.market import Market
from engine.queue import OrderBroker
from engine.settings import Settings
from engine.solana.rpc import NodeClient
from engine.storage.migrate import migrate
from engine.storage.postgres import NewOrder, Store
from workers.executor import Executor
from workers.monitor import Monitor

_PAIRS: Final = (
    (SOL, USDC), (SOL, USDT), (SOL, BONK), (SOL, JUP), (SOL, RAY), (USDT, USDC), (BONK, USDC), (JUP, USDC),
    (RAY, USDC),
)  # fmt: skip
"""Those that simnet has pools of."""
_WORTH: Final = {SOL: 1 / 105, USDC: 1.0, USDT: 1.0, BONK: 1 / 0.0000227, JUP: 1 / 0.482, RAY: 1 / 2.14}
"""Whole tokens for a dollar, about."""
_SIZES: Final = 14
"""From 16 dollars on, each twice as much as the one before: 504 groups with the pairs and sides."""
_SNIPER_SIZES: Final = 10
_AWAY: Final = 1.05
"""How far the nearest limit is from the best price there is."""
_AMOUNTS: Final = 1_000
"""Different ones among the near misses."""
_START_SECONDS: Final = 30.0
_SLOT_MS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    few: int = 1_000
    many: int = 1_000_000
    rounds: int = 5
    """Of few and many in turn."""
    ticks: int = 20
    """In a round."""
    near_misses: int = 10_000
    crossing: tuple[int, ...] = (10, 100, 1_000)


@dataclass(frozen=True, slots=True)
class Tick:
    """What one cost, in milliseconds; the mean of a round's."""

    wall_ms: float
    worker_ms: float
    """CPU of this process."""
    postgres_ms: float
    """CPU."""

    @property
    def cpu_ms(self) -> float:
        return self.worker_ms + self.postgres_ms


class _Full:
    """An executor without room: what fires is offered to the other workers, of which there are none."""

    room = 0

    async def take(self, order_ids: Iterable[UUID]) -> int:
        return 0


class Bench:
    """One PostgreSQL with a database for each record, one simulated node, one market."""

    def __init__(
        self, settings: Settings, postgres_pid: int, market: Market, broker: OrderBroker, screen: Screen
    ) -> None:
        self._settings = settings
        self._postgres_pid = postgres_pid
        self.market = market
        self._broker = broker
        self.screen = screen

    @asynccontextmanager
    async def record(
        self, name: str, kind: TriggerKind, groups: Sequence[Group], count: int
    ) -> AsyncIterator[Record]:
        """A database of so many orders that rest."""
        settings = replace(self._settings, db_name=name)
        await migrate(settings)
        with self.screen.shown(f"{name}: store {count:,} orders", count) as update:
            await fill_resting(settings, kind, groups, count, lambda done: update(done, f"{done:,} stored"))
        async with Store(settings) as store:
            owner = await store.start_lease_owner(3600)
            monitor = Monitor(
                kind,
                settings,
                store,
                self.market,
                cast(Executor, _Full()),
                self._broker,
                lease_owner=lambda: owner,
            )
            yield Record(self, store, monitor)

    def postgres_seconds(self) -> float:
        """CPU of all its processes so far."""
        return sum(stat.cpu_seconds for stat in tree(all_processes(), self._postgres_pid))


class Record:
    def __init__(self, bench: Bench, store: Store, monitor: Monitor) -> None:
        self._bench = bench
        self.store = store
        self._monitor = monitor

    async def ticks(self, count: int, fires: int = 0) -> Tick:
        """Tick so often, each on prices that were just read. Raises ValueError if another number fires."""
        wall = worker = 0.0
        postgres = self._bench.postgres_seconds()
        for _ in range(count):
            await self._bench.market.refresh(0.0)
            start, busy = time.perf_counter(), time.process_time()
            fired = await self._monitor.tick()
            wall += time.perf_counter() - start
            worker += time.process_time() - busy
            if len(fired) != fires:
                raise ValueError(f"{len(fired)} orders fired, and {fires} were to")
        postgres = self._bench.postgres_seconds() - postgres
        return Tick(wall * 1000 / count, worker * 1000 / count, postgres * 1000 / count)

    async def submit(self, specs: Sequence[OrderSpec]) -> None:
        """Store orders as the server does."""
        now = int(time.time() * 1000)
        new = [
            NewOrder(make_order_id(now, number), spec, None, sha256(str(number).encode()).digest())
            for number, spec in enumerate(specs)
        ]
        for answer in await self.store.submit.many(new):
            if isinstance(answer, Exception):
                raise answer


# ---- What is measured --------------------------------------------------------------------------------


async def price(bench: Bench, sizes: Sizes) -> list[Finding]:
    """Limit orders that do not cross; near misses; and some that do."""
    groups = _price_groups(bench.market)
    kind = TriggerKind.PRICE
    async with (
        bench.record("few_limit", kind, groups, sizes.few) as few,
        bench.record("many_limit", kind, groups, sizes.many) as many,
    ):
        name = f"{sizes.many:,} limit orders in {len(groups)} groups"
        findings = await _few_and_many(bench, sizes, name, few, many)
        for count in sizes.crossing:
            ticks: list[Tick] = []
            with bench.screen.shown(f"{name}: {count:,} cross", sizes.rounds) as update:
                for number in range(1, sizes.rounds + 1):
                    await bench.market.refresh(0.0)
                    await many.submit(_crossing(bench.market, count))
                    ticks.append(await many.ticks(1, fires=count))
                    update(number, f"{ticks[-1].wall_ms:,.1f} ms")
            findings += _findings(f"{name}, {count:,} cross", ticks)
        await bench.market.refresh(0.0)
        await many.submit(_near_misses(bench.market, sizes.near_misses))
        with bench.screen.shown(f"{name}: {sizes.near_misses:,} near misses", 1):
            missed = [await many.ticks(1) for _ in range(sizes.rounds)]
        findings += _findings(f"{name}, {sizes.near_misses:,} near misses", missed)
    return findings


async def liquidity(bench: Bench, sizes: Sizes, token_count: int) -> list[Finding]:
    """Sniper orders for tokens that have no pool yet."""
    groups = _sniper_groups(token_count)
    kind, which = TriggerKind.LIQUIDITY, f"{token_count} token{'s' if token_count > 1 else ''}"
    async with (
        bench.record(f"few_{token_count}", kind, groups, sizes.few) as few,
        bench.record(f"many_{token_count}", kind, groups, sizes.many) as many,
    ):
        return await _few_and_many(bench, sizes, f"{sizes.many:,} sniper orders for {which}", few, many)


async def _few_and_many(bench: Bench, sizes: Sizes, name: str, few: Record, many: Record) -> list[Finding]:
    """Tick on few and on many in turn, of which none fires."""
    pairs = []
    # Statements are prepared, caches filled, tokens learned.
    for record in (few, many):
        await record.ticks(3)
    with bench.screen.shown(f"{name}: {sizes.few:,} and {sizes.many:,} in turn", sizes.rounds) as update:
        for number in range(1, sizes.rounds + 1):
            pairs.append((await few.ticks(sizes.ticks), await many.ticks(sizes.ticks)))
            update(number, " / ".join(f"{tick.wall_ms:.1f}" for tick in reversed(pairs[-1])) + " ms")
    findings = []
    for figure, part, bar in (
        ("ms a tick", "wall_ms", TICK_RATIO),
        ("CPU-ms a tick", "cpu_ms", TICK_RATIO),
        ("  of the worker", "worker_ms", None),
        ("  of PostgreSQL", "postgres_ms", None),
    ):
        sides = [[getattr(pair[at], part) for pair in pairs] for at in (1, 0)]
        ratios = [one / other for one, other in zip(*sides, strict=True) if other]
        note = " / ".join(f"{median(side):,.2f}" for side in sides)
        findings.append(finding(name, f"{figure}, to that of {sizes.few:,}", ratios or [0.0], bar, note))
    return findings


def _findings(name: str, ticks: Sequence[Tick]) -> list[Finding]:
    return [
        finding(name, "ms a tick", [tick.wall_ms for tick in ticks]),
        finding(name, "CPU-ms of the worker", [tick.worker_ms for tick in ticks]),
        # Told in hundredths of a second.
        finding(name, "CPU-ms of PostgreSQL", [fmean(tick.postgres_ms for tick in ticks)]),
    ]


# ---- Orders ------------------------------------------------------------------------------------------


def _price_groups(market: Market) -> list[Group]:
    """Return every pair both ways, both sides and every size, whose limits are beyond the best price."""
    groups = []
    for pair in _PAIRS:
        for input_token, output_token in (pair, pair[::-1]):
            for side in Side:
                token = input_token if side is Side.SELL else output_token
                first = int(16 * _WORTH[token] * 10**token.decimals).bit_length() - 1
                best = market.price_bound(input_token, output_token, side, 1 << first)
                groups += [
                    Group(input_token, output_token, side, size, best * _AWAY)
                    for size in range(first, first + _SIZES)
                ]
    return groups


def _sniper_groups(token_count: int) -> list[Group]:
    mints = [
        str(Keypair.from_seed(sha256(b"token %d" % number).digest()).pubkey())
        for number in range(token_count)
    ]
    return [
        Group(SOL, Token(mint, mint, 6), Side.SELL, 27 + size, 0.0)
        for mint in mints
        for size in range(_SNIPER_SIZES)
    ]


def _crossing(market: Market, count: int) -> list[OrderSpec]:
    """Return small orders whose limits are a tenth below the price."""
    limit = _limit(market, OrderSpec(Side.SELL, 10**8, SOL, USDC), Decimal("0.9"))
    return [OrderSpec(Side.SELL, 10**8 + number, SOL, USDC, type=limit) for number in range(count)]


def _near_misses(market: Market, count: int) -> list[OrderSpec]:
    """Return orders that the least of their group's amounts would cross, and their own does not."""
    least = 1 << 42  # 4,400 SOL: large enough to move the price by per cents
    best = market.price_bound(SOL, USDC, Side.SELL, least)
    steps = max(1, count // _AMOUNTS)
    found = []
    for place in range(_AMOUNTS):
        amount = least + least * (place + 1) // (_AMOUNTS + 2)
        own = market.price_bound(SOL, USDC, Side.SELL, amount)
        for step in range(steps):
            # A part of the way from what there is for its own amount to what there is for the least.
            level = own + (best - own) * (step + 1) / (steps + 2)
            limit = LimitOrder(Decimal(f"{level * 1000:.12f}"))
            found.append(OrderSpec(Side.SELL, amount, SOL, USDC, type=limit))
    return found[:count]


def _limit(market: Market, spec: OrderSpec, part: Decimal) -> LimitOrder:
    level = market.price_bound(spec.input_token, spec.output_token, spec.side, spec.amount)
    scale = Decimal(10) ** (spec.input_token.decimals - spec.output_token.decimals)
    return LimitOrder((Decimal(level) * scale * part).quantize(Decimal("1e-9")))


# ---- Where it is measured ----------------------------------------------------------------------------


@asynccontextmanager
async def started(folder: Path, screen: Screen) -> AsyncIterator[Bench]:
    """Start PostgreSQL, Valkey, and a node whose prices rest; stop them at the end."""
    async with AsyncExitStack() as stack:
        postgres, valkey = Postgres(folder), Valkey(folder)
        for service in (postgres, valkey):
            service.start()
            stack.callback(service.stop)
        node = await stack.enter_async_context(_simnet(folder))
        settings = Settings(
            db_host=postgres.host,
            db_port=postgres.port,
            db_username=postgres.user,
            redis_host=valkey.host,
            solana_rpc_url=node,
        )
        broker = OrderBroker(settings)
        stack.push_async_callback(broker.shutdown)
        client = await stack.enter_async_context(NodeClient(settings.node_url, settings.node_ws_url))
        market = Market(client, Keypair().pubkey())
        # Prices are read before each tick, and not beside it.
        following = asyncio.ensure_future(market.run(follow=False))
        stack.callback(following.cancel)
        async with asyncio.timeout(_START_SECONDS):
            while not market.ready:
                await asyncio.sleep(0.05)
                await market.refresh(0.0)
        assert postgres.child is not None
        assert postgres.child.pid is not None
        yield Bench(settings, postgres.child.pid, market, broker, screen)


@asynccontextmanager
async def _simnet(folder: Path) -> AsyncIterator[str]:
    (port,) = free_ports(2)
    process = await asyncio.create_subprocess_exec(
        *in_front([sys.executable, "-m", "simnet"], signal.SIGTERM),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={
            **os.environ,
            "SIMNET_PORT": str(port),
            "SIMNET_SLOT_MS": str(_SLOT_MS),
            "SIMNET_MARKET_POOLS": "0",
            "SIMNET_LAUNCH_SLOTS": "0",
            "SIMNET_FAULTS": "",
            "SIMNET_DATA_DIR": str(folder / "simnet"),
        },
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(_START_SECONDS), NodeClient(url, url) as node:
            while True:
                try:
                    await node.slot()
                    break
                except NodeUnavailable:
                    await asyncio.sleep(0.1)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measure_all(sizes: Sizes, screen: Screen, folder: Path) -> list[Finding]:
    async with started(folder, screen) as bench:
        findings = await price(bench, sizes)
        for token_count in (1, 100):
            findings += await liquidity(bench, sizes, token_count)
    return findings


def main(arguments: Sequence[str] | None = None) -> None:
    default = Sizes()
    parser = argparse.ArgumentParser(prog="python -m bench.resting", description=__doc__)
    for name in ("few", "many", "rounds", "ticks"):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", metavar="N", type=int, default=value, help=f"({value:,})")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    screen = Screen(Console(stderr=True, highlight=False))
    with tempfile.TemporaryDirectory(prefix="order-bench-") as folder:
        print_findings(out, uvloop.run(measure_all(Sizes(**options), screen, Path(folder))))
    out.print(f"[dim]{machine()}[/dim]")


if __name__ == "__main__":
    main()
