"""A worker put together in the test's process, and the simnet process that it trades on."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import aiohttp
from msgspec import Raw
from solders.keypair import Keypair

from engine.domain.errors import NodeUnavailable
from engine.domain.lifecycle import CLOSED
from engine.domain.order import Order, OrderEvent, WatchedEvent
from engine.domain.order_types import TriggerKind
from engine.domain.tokens import SOL, USDC, Token
from engine.hints import Hints, events_told
from engine.market import Market, RouteRules
from engine.queue import make_broker
from engine.settings import Settings
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet
from engine.storage.migrate import read_news_key
from engine.storage.postgres import Store
from workers.executor import Executor
from workers.leases import Lease, Sweeper
from workers.monitor import Monitor
from workers.settlement import Settlement

RICH = {SOL: 10_000 * 10**9, USDC: 1_000_000 * 10**6}


class Simnet:
    """A simnet process with short slots, whose market rests until a test moves a price."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _two_ports()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self, **environ: str) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simnet"),
            stderr=DEVNULL,
            env={
                **os.environ,
                "SIMNET_PORT": str(self._port),
                "SIMNET_SLOT_MS": "20",
                "SIMNET_FINALIZED_SLOTS": "4",
                "SIMNET_MARKET_POOLS": "0",
                "SIMNET_LAUNCH_SLOTS": "0",
                "SIMNET_DATA_DIR": str(self._folder),
                **environ,
            },
        )
        async with asyncio.timeout(20), NodeClient(self.url, self.url) as node:
            while True:
                try:
                    await node.slot()
                except NodeUnavailable:
                    assert self._process.returncode is None, "simnet ended"
                    await asyncio.sleep(0.02)
                else:
                    return self

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        return await self.call(method, [] if params is None else [params])

    async def call(self, method: str, params: list[Any]) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with aiohttp.ClientSession() as session, session.post(self.url, json=body) as response:
            answer = await response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def make_wallet(self, funds: dict[Token, int] = RICH) -> Wallet:
        wallet = Wallet(Keypair())
        for token, amount in funds.items():
            asked = {"wallet": str(wallet.pubkey), "mint": token.symbol, "amount": amount}
            await self.ask("simnet_fund", asked)
        return wallet

    async def landed(self, order_id: UUID) -> list[dict[str, Any]]:
        """The ledger's transactions for an order, in the order of execution."""
        page = await self.ask("simnet_ledger", {"memoPrefix": str(order_id)})
        transactions: list[dict[str, Any]] = page["transactions"]
        return transactions

    async def has_landed(self, order_id: UUID) -> None:
        """Wait until a transaction of the order is in the ledger."""
        async with asyncio.timeout(20):
            while not await self.landed(order_id):  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.01)

    async def executions(self, order_id: UUID) -> list[str]:
        """Memos of the order's transactions that did what they should."""
        return [each["memo"] for each in await self.landed(order_id) if each["err"] is None]

    @asynccontextmanager
    async def faults(self, **faults: float) -> AsyncIterator[None]:
        """Misbehave like that inside the block."""
        await self.ask("simnet_faults", faults)
        try:
            yield
        finally:
            await self.ask("simnet_faults", dict.fromkeys(faults, 0.0))

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Make no slots inside the block, but those that are asked for."""
        await self.ask("simnet_pause")
        try:
            yield
        finally:
            await self.ask("simnet_resume")


class Worker:
    """The parts of a worker process."""

    def __init__(
        self,
        store: Store,
        node: NodeClient,
        market: Market,
        wallet: Wallet,
        lease: Lease,
        executor: Executor,
        monitors: Mapping[TriggerKind, Monitor],
        told: Sequence[WatchedEvent],
    ) -> None:
        self.store = store
        self.node = node
        self.market = market
        self.wallet = wallet
        self.lease = lease
        self.executor = executor
        self.monitors = monitors
        self.told = told
        """Events that came with hints."""

    async def until(self, order_id: UUID, condition: Callable[[Order], bool]) -> Order:
        """Wait until the order is on record as the condition says, and return it."""
        async with asyncio.timeout(20):
            while True:
                order = await self.store.get(order_id)
                assert order is not None
                if condition(order):
                    return order
                await asyncio.sleep(0.01)

    async def closed(self, order_id: UUID) -> Order:
        return await self.until(order_id, lambda order: order.status in CLOSED)

    async def events(self, order_id: UUID) -> Sequence[OrderEvent]:
        """The order's events; fails if there is a gap."""
        events = [watched.event for watched in await self.store.events_after((order_id, 0))]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        return events

    async def check_told(self) -> None:
        """Fail if an event was told that is not on record just so."""
        orders = {each.event.order_id for each in self.told}
        record = [each for order_id in orders for each in await self.store.events_after((order_id, 0))]
        assert [each for each in self.told if each not in record] == []


@asynccontextmanager
async def worker_of(
    settings: Settings,
    simnet: Simnet,
    wallet: Wallet,
    *,
    sweeps: bool = False,
    monitors: bool = False,
    has_node: bool = True,
    jitter: Callable[[], float] = lambda: 0.5,
    **changes: Any,
) -> AsyncIterator[Worker]:
    """A worker that is ready; it takes what it is told to take, and with `sweeps` whatever is due.

    With `monitors` it fires what waits for a trigger, once a slot; else when a test lets its monitors tick.
    """
    url = simnet.url if has_node else "http://127.0.0.1:1"
    figures: dict[str, Any] = {
        "retry_base_seconds": 0.1,
        "resend_seconds": 0.1,
        "sweep_seconds": 0.05,
        "solana_rpc_url": url,
    }
    settings = replace(settings, **(figures | changes))
    hints = Hints(settings, await read_news_key(settings))
    told: list[WatchedEvent] = []

    def hear(_order_ids: Sequence[bytes], news: Sequence[Raw]) -> None:
        told.extend(chain.from_iterable(map(events_told, news)))

    async with (
        Store(settings) as store,
        NodeClient(settings.node_url, settings.node_ws_url) as node,
        asyncio.TaskGroup() as group,
    ):
        market = Market(node, wallet.pubkey, rules=RouteRules.of(settings))
        settlement = Settlement(
            node,
            str(wallet.pubkey),
            commitment=settings.commitment,
            resend_seconds=settings.resend_seconds,
        )
        lease = Lease(settings, store)
        await lease.start()
        async with Executor(
            settings,
            store,
            market,
            wallet,
            settlement,
            hints,
            lease_owner=lambda: lease.owner,
            jitter=jitter,
        ) as executor:
            followers = [
                group.create_task(hints.run(hear)),
                group.create_task(market.run()),
                group.create_task(settlement.run()),
                group.create_task(lease.keep(executor.let_all_go)),
            ]
            if has_node:
                async with asyncio.timeout(20):
                    await market.wait_ready()
            if sweeps:
                sweeper = Sweeper(
                    settings,
                    store,
                    executor,
                    lease,
                    can_work=lambda: market.ready,
                    hints_work=lambda: False,
                )
                followers.append(group.create_task(sweeper.run()))
            broker = make_broker(settings)
            watching = {
                kind: Monitor(
                    kind, settings, store, market, executor, broker, lease_owner=lambda: lease.owner
                )
                for kind in TriggerKind
            }
            if monitors:
                followers += [group.create_task(monitor.run()) for monitor in watching.values()]
            try:
                worker = Worker(store, node, market, wallet, lease, executor, watching, told)
                yield worker
                await worker.check_told()
            finally:
                for task in followers:
                    task.cancel()
                await broker.shutdown()
    await hints.aclose()


def _two_ports() -> int:
    """Return a free port whose next one, for the WebSocket, is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
