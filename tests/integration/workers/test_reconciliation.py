"""The database is put back from a backup: what was executed since is found on the chain and not repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from solders.keypair import Keypair

from engine.domain.errors import NodeUnavailable, StoreUnavailable
from engine.domain.lifecycle import Cancelled, Lapsed
from engine.domain.order import Order, OrderStatus, Route, Side, WatchedEvent
from engine.domain.order_types import LimitOrder
from engine.domain.tokens import BONK, JUP, SOL, USDC
from engine.settings import Settings
from engine.solana.instructions import memo, transfer_lamports
from engine.solana.rpc import NodeClient, SignatureInfo, WholeTransaction
from engine.solana.transactions import Wallet
from engine.storage.migrate import migrate
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import advance, new_order, stored, transitions
from tests.integration.workers.executing import Worker, worker_of
from tests.simnet_process import Simnet, running_simnet
from workers.leases import Lease
from workers.reconciliation import Reconciliation

S = OrderStatus
OTHER = str(Keypair().pubkey())
"""A wallet that has done nothing."""


@pytest.fixture(scope="module")
async def simnet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simnet]:
    """One whose blocks come quickly: 180 of them are waited for."""
    async with running_simnet(tmp_path_factory.mktemp("simnet"), SIMNET_SLOT_MS="10") as simnet:
        yield simnet


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look as often as those blocks come."""
    monkeypatch.setattr("workers.reconciliation._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("workers.leases._NODE_AWAY_SECONDS", 0.05)


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
        await maintenance.execute(sql.SQL("DROP DATABASE IF EXISTS {copy} WITH (FORCE)").format(**names))


@asynccontextmanager
async def another_record(settings: Settings) -> AsyncIterator[Settings]:
    """A database with nothing in it."""
    new = replace(settings, db_name=f"{settings.db_name}_{uuid4().hex[:6]}")
    name = sql.Identifier(new.db_name)
    async with await psycopg.AsyncConnection.connect(
        settings.database, dbname="postgres", autocommit=True
    ) as maintenance:
        await maintenance.execute(sql.SQL("CREATE DATABASE {}").format(name))
        await migrate(new)
        yield new
        await maintenance.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


def pages_of_one(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have nodes list one transaction at a time; return a list that has a member for each page asked for."""
    monkeypatch.setattr("engine.solana.rpc.MAX_LISTED", 1)
    listed = NodeClient.signatures_of
    pages: list[int] = []

    async def counted(self: NodeClient, *its: Any, **options: Any) -> list[SignatureInfo]:
        pages.append(1)
        return await listed(self, *its, **options)

    monkeypatch.setattr(NodeClient, "signatures_of", counted)
    return pages


async def noted(settings: Settings) -> None:
    """Have the record say that it is where it is: as after a backup of the whole disk was put back."""
    async with Store(settings) as store:
        await store.set_place((await store.place()).here, OTHER)


async def execute_orders(settings: Settings, simnet: Simnet, wallet: Wallet, count: int) -> None:
    """Execute so many orders, one after the other."""
    async with worker_of(settings, simnet, wallet) as worker:
        for _ in range(count):
            order = await stored(worker.store)
            await worker.executor.take([order.order_id])
            await worker.closed(order.order_id)


async def route_of(worker: Worker, order: Order) -> Route:
    route = (await worker.decisions(order.order_id))[-1].route
    assert route is not None
    return route


async def last_heights(settings: Settings, order: Order) -> list[int]:
    """The last block heights at which the order's transactions can land, the newest one's first."""
    async with await psycopg.AsyncConnection.connect(settings.database) as connection:
        rows = await connection.execute(
            "SELECT last_valid_block_height FROM attempts WHERE order_id = %s ORDER BY attempt DESC",
            [order.order_id],
        )
        return [height for (height,) in await rows.fetchall()]


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
                # Whoever settles it asks for a history that reaches back to before it landed.
                assert await last_heights(backup, order) < await last_heights(settings, order)
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


async def test_what_another_wallet_executed_after_the_backup_is_not_executed_again(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        orders = [await stored(worker.store) for _ in range(2)]
        submitted = worker.to_submitted(orders[1])
        await advance(worker.store, orders[1], *submitted)
    async with copied(settings) as backup:
        async with worker_of(settings, simnet, wallet, sweeps=True) as worker:
            before = [await worker.closed(order.order_id) for order in orders]
        assert await executions_of(simnet, orders) == [1, 1]
        new = await simnet.make_wallet({SOL: 10_000 * 10**9, USDC: 1_000_000 * 10**6})
        async with worker_of(backup, simnet, new, sweeps=True) as worker:
            for order, once in zip(orders, before, strict=True):
                again = await worker.closed(order.order_id)
                assert (again.status, again.tx_hash) == (S.CONFIRMED, once.tx_hash)
                assert (again.input_amount, again.output_amount) == (once.input_amount, once.output_amount)
            fresh = await stored(worker.store)
            assert (await worker.closed(fresh.order_id)).status is S.CONFIRMED
            assert set((await worker.store.place()).wallets) == {str(wallet.pubkey), str(new.pubkey)}
        assert await executions_of(simnet, [*orders, fresh]) == [1, 1, 1]


async def test_what_was_sent_just_before_is_waited_for(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with Store(settings) as store:
        await store.set_place("as after a standby took over", OTHER)
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
        await store.set_place("another", OTHER)
        lease = Lease(settings, store, Reconciliation(store, nobody, str(wallet.pubkey)))
        # While no order is open none can be executed twice.
        await lease.start()
        await lease.end()
        await store.set_place("another", OTHER)
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
            await until(
                lambda: (lease.missing or "").startswith("what was executed is asked of the chain, in ")
            )
            assert lease.owner == 0
            await until(lambda: lease.missing is None)
            keeping.cancel()
        assert lease.owner


@asynccontextmanager
async def restored(
    settings: Settings, simnet: Simnet, wallet: Wallet, count: int, *, in_turn: bool = False
) -> AsyncIterator[tuple[Settings, list[Order]]]:
    """A database that was put back with its disk, and orders of its that have been executed since.

    `in_turn`: each after the one before it, so that none landed in the slot of another.
    """
    async with Store(settings) as store:
        await noted(settings)
        orders = [await stored(store) for _ in range(count)]
    async with copied(settings) as backup:
        async with worker_of(settings, simnet, wallet, sweeps=not in_turn) as worker:
            for order in orders:
                if in_turn:
                    assert await worker.executor.take([order.order_id]) == 1
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        await noted(backup)
        yield backup, orders


@pytest.mark.parametrize("is_told_by", ["the chain", "the place"])
async def test_who_ends_in_the_middle_leaves_the_rest_to_the_next(
    is_told_by: str, settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who goes on finds the first two on record, and reads only what may be lacking in spite of that.
    monkeypatch.setattr("workers.reconciliation._SIGNED_SLOTS", 0)
    async with restored(settings, simnet, wallet, 4, in_turn=True) as (backup, orders):
        if is_told_by == "the place":
            async with Store(backup) as store:
                await store.set_place("another", OTHER)
        record, recorded = Reconciliation._record, 0

        async def record_two(self: Reconciliation, *its: Any) -> bool:
            nonlocal recorded
            if recorded == 2:
                raise StoreUnavailable("PostgreSQL is away")
            recorded += 1
            return await record(self, *its)

        monkeypatch.setattr(Reconciliation, "_record", record_two)
        async with Store(backup) as store, NodeClient(simnet.url, simnet.ws_url) as node:
            with pytest.raises(StoreUnavailable):
                await Reconciliation(store, node, str(wallet.pubkey)).done()
        monkeypatch.setattr(Reconciliation, "_record", record)
        async with worker_of(backup, simnet, wallet, sweeps=True) as worker:
            for order in orders:
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        assert await executions_of(simnet, orders) == [1] * 4


@pytest.mark.parametrize("is_told_by", ["the chain", "the place"])
@pytest.mark.parametrize("hours", [-3, 3])
async def test_no_wrong_clock_hides_what_was_executed(
    hours: int, is_told_by: str, settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    """Where the record was kept last by the clock of a host that is gone."""
    async with restored(settings, simnet, wallet, 2) as (backup, orders):
        async with await psycopg.AsyncConnection.connect(backup.database, autocommit=True) as by_hand:
            await by_hand.execute("UPDATE monitors SET expire_time = now() + %s * interval '1 hour'", [hours])
        if is_told_by == "the place":
            async with Store(backup) as store:
                await store.set_place("another", OTHER)
        async with worker_of(backup, simnet, wallet, sweeps=True) as worker:
            for order in orders:
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        assert await executions_of(simnet, orders) == [1, 1]


async def test_no_more_is_read_than_what_may_be_lacking(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await execute_orders(settings, simnet, wallet, 5)
    async with restored(settings, simnet, wallet, 1) as (backup, _):
        monkeypatch.setattr("workers.reconciliation._SIGNED_SLOTS", 0)
        pages = pages_of_one(monkeypatch)
        async with Store(backup) as store, NodeClient(simnet.url, simnet.ws_url) as node:
            reconciliation = Reconciliation(store, node, str(wallet.pubkey))
            assert await reconciliation._lacks_any(await store.place())
            assert len(pages) == 1
            await reconciliation.done()
            pages.clear()
            assert not await reconciliation._lacks_any(await store.place())
            # The one that was lacking, and one before it; the other wallet has none.
            assert len(pages) == 3


async def test_a_new_record_does_not_read_all_that_its_wallet_ever_did(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await execute_orders(settings, simnet, wallet, 6)
    monkeypatch.setattr("workers.reconciliation._LOOKED_AT", 2)
    monkeypatch.setattr("workers.reconciliation._MARGIN", timedelta(hours=-1))
    pages = pages_of_one(monkeypatch)
    async with (
        another_record(settings) as new,
        Store(new) as store,
        NodeClient(simnet.url, simnet.ws_url) as node,
    ):
        await stored(store)
        assert not await Reconciliation(store, node, str(wallet.pubkey))._lacks_any(await store.place())
        assert len(pages) == 2


async def test_several_workers_that_start_at_once_record_each_transaction_once(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with restored(settings, simnet, wallet, 30) as (backup, orders):
        async with (
            Store(backup) as store,
            Store(backup) as another,
            NodeClient(simnet.url, simnet.ws_url) as node,
        ):
            await asyncio.gather(
                *(Reconciliation(each, node, str(wallet.pubkey)).done() for each in (store, another))
            )
        async with worker_of(backup, simnet, wallet, sweeps=True) as worker:
            for order in orders:
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
                assert len(await last_heights(backup, order)) == 1
        assert await executions_of(simnet, orders) == [1] * 30


async def test_what_a_node_does_not_tell_is_asked_again(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, listed, first = (
        NodeClient.whole_transaction,
        NodeClient.signatures_of,
        NodeClient.first_available_slot,
    )
    asked: list[str] = []

    async def lagging(self: NodeClient, signature: str) -> WholeTransaction | None:
        asked.append("whole")
        return None if asked.count("whole") in (1, 2, 4) else await whole(self, signature)

    async def pruned(self: NodeClient, *its: Any, **options: Any) -> list[SignatureInfo]:
        # Whoever looks for something lacking sees it; then a node answers that began later.
        began_later = asked.count("whole") >= 3 and asked.count("first") < 4
        return [] if began_later else await listed(self, *its, **options)

    async def recent(self: NodeClient) -> int:
        asked.append("first")
        return await self.slot() if asked.count("first") < 4 else await first(self)

    async with restored(settings, simnet, wallet, 2) as (backup, orders):
        monkeypatch.setattr(NodeClient, "whole_transaction", lagging)
        monkeypatch.setattr(NodeClient, "signatures_of", pruned)
        monkeypatch.setattr(NodeClient, "first_available_slot", recent)
        async with worker_of(backup, simnet, wallet, sweeps=True, waits_for_lease=False) as worker:
            for order in orders:
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        assert await executions_of(simnet, orders) == [1, 1]
        assert asked.count("first") >= 3


async def test_what_lacks_is_found_below_what_is_on_record(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with restored(settings, simnet, wallet, 1) as (backup, orders):
        async with worker_of(settings, simnet, wallet) as worker, Store(backup) as store:
            # As by a crash that lost one commit and not the one before it, which landed later.
            kept = await stored(store)
            facts = worker.to_submitted(kept)
            await advance(store, kept, *facts)
            await worker.node.send_transaction(facts[-1].attempt.raw_transaction)
            await simnet.has_landed(kept.order_id)
        async with worker_of(backup, simnet, wallet, sweeps=True) as worker:
            for order in (kept, *orders):
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        assert await executions_of(simnet, [kept, *orders]) == [1, 1]


async def test_a_transaction_that_somebody_else_sent_proves_nothing(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    stranger = await simnet.make_wallet({SOL: 10**9})
    async with worker_of(settings, simnet, wallet) as worker:
        await noted(settings)
        order = await stored(worker.store)
        blockhash = await worker.node.latest_blockhash()
        raw_transaction = stranger.sign_transaction(
            [
                transfer_lamports(stranger.pubkey, wallet.pubkey, 10**6),
                memo(f"{order.order_id}:1", stranger.pubkey),
            ],
            blockhash.value,
        )
        await worker.node.send_transaction(raw_transaction)
        await simnet.has_landed(order.order_id)
    for is_elsewhere in (False, True):
        async with Store(settings) as store:
            if is_elsewhere:
                await store.set_place("another", OTHER)
        async with worker_of(settings, simnet, wallet) as worker:
            assert (await worker.until(order.order_id, bool)).status is S.PENDING
            place = await worker.store.place()
            assert place.recorded == place.here


async def test_what_was_closed_meanwhile_is_told_of(
    settings: Settings, simnet: Simnet, wallet: Wallet, caplog: pytest.LogCaptureFixture
) -> None:
    async with restored(settings, simnet, wallet, 2) as (backup, (cancelled, open_)):
        async with Store(backup) as store:
            await advance(store, cancelled, Cancelled())
        async with worker_of(backup, simnet, wallet, sweeps=True) as worker:
            assert (await worker.closed(open_.order_id)).status is S.CONFIRMED
            assert (await worker.closed(cancelled.order_id)).status is S.CANCELLED
    assert [
        record.getMessage()
        for record in caplog.records
        if record.__dict__.get("order_id") == cancelled.order_id
    ][-1] == "executed, and cancelled on record for good"


async def test_the_database_is_exchanged_while_a_worker_runs(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with Store(settings) as store:
        await noted(settings)
        orders = [await stored(store) for _ in range(5)]
    async with copied(settings) as standby, worker_of(settings, simnet, wallet, sweeps=True) as worker:
        for order in orders:
            assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        async with await psycopg.AsyncConnection.connect(
            settings.database, dbname="postgres", autocommit=True
        ) as maintenance:
            # What was told before is on another record now.
            cast("list[WatchedEvent]", worker.told).clear()
            lost = replace(settings, db_name=f"{settings.db_name}_lost")
            for before, after in ((settings, lost), (standby, settings)):
                await maintenance.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [before.db_name],
                )
                names = sql.Identifier(before.db_name), sql.Identifier(after.db_name)
                await maintenance.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*names))
            for order in orders:
                assert (await worker.closed(order.order_id)).status is S.CONFIRMED
            assert await executions_of(simnet, orders) == [1] * 5
            await maintenance.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(lost.db_name))
            )
