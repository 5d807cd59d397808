"""A worker put together in the test's process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import chain
from typing import Any
from uuid import UUID

from msgspec import Raw

from engine.domain.lifecycle import CLOSED, Claimed, Routed, Signed
from engine.domain.order import Order, OrderEvent, RoutingDecision, WatchedEvent
from engine.domain.order_types import TriggerKind
from engine.hints import Hints, events_told
from engine.market import Market, RouteRules
from engine.queue import OrderBroker
from engine.settings import Settings
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet, build_swap
from engine.storage.migrate import read_news_key
from engine.storage.postgres import Store
from tests.simnet_process import Simnet
from workers.executor import Executor
from workers.leases import Lease, Sweeper
from workers.monitor import Monitor
from workers.neighbours import Neighbours
from workers.reconciliation import Reconciliation
from workers.settlement import Settlement


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
        neighbours: Neighbours,
        monitors: Mapping[TriggerKind, Monitor],
        told: Sequence[WatchedEvent],
    ) -> None:
        self.store = store
        self.node = node
        self.market = market
        self.wallet = wallet
        self.lease = lease
        self.executor = executor
        self.neighbours = neighbours
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

    async def decisions(self, order_id: UUID) -> Sequence[RoutingDecision]:
        """The order's routing decisions, oldest first."""
        details = await self.store.details(order_id)
        assert details is not None
        return details.decisions

    def to_submitted(self, order: Order) -> tuple[Claimed, Routed, Signed]:
        """What brings a pending order to SUBMITTED, with a transaction that would land now."""
        decision = self.market.decide(order.spec, 1, 50)
        assert decision.route is not None
        attempt = build_swap(
            self.wallet,
            self.market.swap_instructions(order.spec, decision.route, self.wallet.pubkey),
            self.market.blockhash,
            order.order_id,
            1,
            compute_units=self.market.compute_units(decision.route),
            priority_fee_micro_lamports=1000,
        )
        return Claimed(), Routed(decision), Signed(attempt)

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
    waits_for_lease: bool = True,
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
    key = await read_news_key(settings)
    hints = Hints(settings, key)
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
        neighbours = Neighbours(settings, key, market)
        lease = Lease(settings, store, Reconciliation(store, node, str(wallet.pubkey)))
        if waits_for_lease:
            await lease.start()
        async with Executor(
            settings,
            store,
            market,
            wallet,
            settlement,
            hints,
            neighbours,
            lease_owner=lambda: lease.owner,
            jitter=jitter,
        ) as executor:
            followers = [
                group.create_task(hints.run(hear)),
                group.create_task(market.run()),
                group.create_task(settlement.run()),
                group.create_task(neighbours.run()),
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
            broker = OrderBroker(settings)
            watching = {
                kind: Monitor(
                    kind, settings, store, market, executor, broker, lease_owner=lambda: lease.owner
                )
                for kind in TriggerKind
            }
            if monitors:
                followers += [group.create_task(monitor.run()) for monitor in watching.values()]
            try:
                worker = Worker(store, node, market, wallet, lease, executor, neighbours, watching, told)
                yield worker
                await worker.check_told()
            finally:
                for task in followers:
                    task.cancel()
                await broker.shutdown()
                await neighbours.aclose()
    await hints.aclose()
