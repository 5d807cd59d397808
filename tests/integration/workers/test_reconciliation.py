"""The database is put back from a backup: what was executed since is found on the chain and not repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from engine.domain.errors import NodeUnavailable
from engine.domain.lifecycle import Lapsed
from engine.domain.order import Order, OrderStatus, Route, Side
from engine.domain.order_types import LimitOrder
from engine.domain.tokens import BONK, JUP, SOL, USDC
from engine.settings import Settings
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import advance, new_order, stored, transitions
from tests.integration.workers.executing import Worker, worker_of
from tests.simnet_process import Simnet
from workers.leases import Lease
from workers.reconciliation import Reconciliation

S = OrderStatus


@pytest.fixture
async def wallet(simnet: Simnet) -> Wallet:
    return await simnet.make_wallet({SOL: 10_000 * 10**9, USDC: 1_000_000 * 10**6, BONK: 10**15})


@asynccontextmanager
async def copied(settings: Settings) -> AsyncIterator[Settings]:
    """A copy of the database as it is now. Nobody may be connected to it."""
    copy = replace(settings, db_name=f"{settings.db_name}_{uuid4().hex[:6]}")
    names = {"copy": sql.Identifier(copy.db_name), "original": sql.Identifier(settings.db_name)}
    async with await psycopg.AsyncConnection.connect(
        settings.database, dbname="postgres", autocommit=True
    ) as maintenance:
        await maintenance.execute(sql.SQL("CREATE DATABASE {copy} TEMPLATE {original}").format(**names))
        yield copy
        await maintenance.execute(sql.SQL("DROP DATABASE {copy} WITH (FORCE)").format(**names))


async def noted(settings: Settings) -> None:
    """Have the record say that it is where it is: as after a backup of the whole disk was put back."""
    async with Store(settings) as store:
        await store.set_place((await store.place()).here)


async def route_of(worker: Worker, order: Order) -> Route:
    route = (await worker.decisions(order.order_id))[-1].route
    assert route is not None
    return route


async def executions_of(simnet: Simnet, orders: Sequence[Order]) -> list[int]:
    return [len(await simnet.executions(order.order_id)) for order in orders]


async def orders_of_every_kind(worker: Worker) -> list[Order]:
    """Open orders in every status and of several shapes, none of which was sent yet."""
    store = worker.store
    resting = new_order(type=LimitOrder(Decimal("0.001")))
    two_hops = new_order(tokens=(BONK, JUP), amount=10**11)
    buying = new_order(side=Side.BUY, amount=10**9, tokens=(USDC, SOL))
    orders = [(await store.submit(each)).order for each in (new_order(), resting, two_hops, buying)]
    orders += [await stored(store, status) for status in (S.ROUTING, S.BUILDING)]
    # Its transaction was given up and another one made, after the backup.
    given_up = await stored(store)
    await advance(store, given_up, *worker.to_submitted(given_up))
    return [*orders, given_up]


@pytest.mark.parametrize("is_told_by", ["the chain", "the place"])
async def test_what_was_executed_after_the_backup_is_not_executed_again(
    is_told_by: str, settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        await noted(settings)
        orders = await orders_of_every_kind(worker)
        far = (await worker.store.submit(new_order(type=LimitOrder(Decimal(10**6))))).order
    async with copied(settings) as backup:
        async with Store(settings) as store:
            given_up = await store.get(orders[-1].order_id)
            assert given_up is not None
            await store.advance(transitions(given_up, Lapsed()))
        async with worker_of(settings, simnet, wallet, sweeps=True, monitors=True) as worker:
            # Accepted after the backup, which so knows nothing of it.
            lost = await stored(worker.store)
            before = [await worker.closed(order.order_id) for order in [*orders, lost]]
            routes = [await route_of(worker, order) for order in orders]
        assert {order.status for order in before} == {S.CONFIRMED}
        assert await executions_of(simnet, [*orders, lost]) == [1] * len(before)
        if is_told_by == "the chain":
            await noted(backup)
        async with Store(backup) as store:
            place = await store.place()
            assert (place.recorded == place.here) is (is_told_by == "the chain")

        async with worker_of(backup, simnet, wallet, sweeps=True, monitors=True) as worker:
            for order, once, route in zip(orders, before, routes, strict=False):
                again = await worker.closed(order.order_id)
                assert again.status is S.CONFIRMED
                assert again.tx_hash == once.tx_hash
                assert (again.input_amount, again.output_amount) == (once.input_amount, once.output_amount)
                # Begun before the backup, that one has its first decision, and its transaction another route.
                if order.status is not S.BUILDING:
                    found = await route_of(worker, order)
                    assert again.venue == once.venue
                    assert found.middle_token == route.middle_token
                    assert [leg.pool for leg in found.legs] == [leg.pool for leg in route.legs]
                    assert (found.input_amount, found.output_amount) == (
                        once.input_amount,
                        once.output_amount,
                    )
                    if len(found.legs) == 1 or found.middle_token:
                        # What went in at its beginning and came out at its end.
                        assert found.legs[0].input_amount == once.input_amount
                        assert found.legs[-1].output_amount == once.output_amount
                await worker.events(order.order_id)
            # What waited waits still, and new ones are executed as ever.
            assert (await worker.until(far.order_id, bool)).status is S.PENDING
            fresh = await stored(worker.store)
            assert (await worker.closed(fresh.order_id)).status is S.CONFIRMED
            place = await worker.store.place()
            assert place.recorded == place.here
        assert await executions_of(simnet, [*orders, lost, fresh, far]) == [1] * (len(orders) + 2) + [0]


async def test_what_was_sent_just_before_is_waited_for(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with Store(settings) as store:
        await store.set_place("as after a standby took over")
        sent, unsent = await stored(store), await stored(store)
    async with copied(settings) as standby, AsyncExitStack() as until_it_goes_on:
        async with worker_of(settings, simnet, wallet) as worker:
            await until_it_goes_on.enter_async_context(simnet.paused())
            await worker.executor.take([sent.order_id])
            await worker.until(sent.order_id, lambda order: order.status is S.SUBMITTED)
            # With the chain at rest it is out and has not landed.
            await asyncio.sleep(0.2)
        assert await simnet.landed(sent.order_id) == []

        async def go_on() -> None:
            await asyncio.sleep(0.5)
            await until_it_goes_on.aclose()

        async with asyncio.TaskGroup() as group:
            group.create_task(go_on())
            async with worker_of(standby, simnet, wallet, sweeps=True) as worker:
                for order in (sent, unsent):
                    assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        assert await executions_of(simnet, [sent, unsent]) == [1, 1]


async def test_without_a_node_nothing_is_claimed_and_no_lease_is_left_behind(
    settings: Settings, simnet: Simnet, wallet: Wallet, until: Callable[..., Awaitable[None]]
) -> None:
    async with (
        Store(settings) as store,
        NodeClient("http://127.0.0.1:1", "ws://127.0.0.1:1") as nobody,
        NodeClient(simnet.url, simnet.ws_url) as node,
    ):
        await store.set_place("another")
        lease = Lease(settings, store, Reconciliation(store, nobody, str(wallet.pubkey)))
        # While no order is open none can be executed twice.
        await lease.start()
        await lease.end()
        await store.set_place("another")
        await stored(store)
        lease = Lease(settings, store, Reconciliation(store, nobody, str(wallet.pubkey)))
        for _ in range(3):
            with pytest.raises(NodeUnavailable):
                await lease.start()
            assert lease.owner == 0
        assert (await store.place()).recorded == "another"
        assert await store._connections["sweep"].run("SELECT lease_owner FROM lease_owners", {}) == []

        lease = Lease(settings, store, Reconciliation(store, node, str(wallet.pubkey)))
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(lease.keep(lambda: None))
            await until(lambda: lease.missing == "the chain is asked what was executed")
            assert lease.owner == 0
            await until(lambda: lease.missing is None)
            keeping.cancel()
        assert lease.owner
