"""What is known after the connection to PostgreSQL broke: reads are asked again, writes are settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from engine.domain.errors import OutcomeUnknown, RequestIdReused, StoreUnavailable
from engine.domain.lifecycle import Claimed, Transition
from engine.domain.order import Order, OrderStatus
from engine.settings import Settings
from engine.storage.postgres import Store, Submitted
from engine.storage.session import Session
from tests.integration.engine.storage.cut_off import Wire
from tests.integration.engine.storage.records import advance, exists, new_order, stored, transitions
from tests.integration.engine.storage.refusing import read_only, refusing_once
from tests.serving import no_route

S = OrderStatus


@pytest.fixture
async def wire(database: Settings) -> AsyncIterator[Wire]:
    async with Wire(database) as wire:
        yield wire


@pytest.fixture
async def store(wire: Wire) -> AsyncIterator[Store]:
    """A store behind a wire that can be cut."""
    async with Store(wire.settings) as store:
        yield store


@pytest.fixture
async def by_hand(database: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database.database, autocommit=True) as connection:
        yield connection


async def terminate(connection: psycopg.AsyncConnection) -> int:
    """End every other connection to the database, from its side, and wait until they are gone."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    cursor = await connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {others}".encode())
    return len(await cursor.fetchall())


async def test_reads_are_asked_again_on_a_new_connection(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store)
    for _ in range(2):
        assert await store.get(order.order_id) == order
        assert len(await store.events_after((order.order_id, 0))) == 1
        assert await store.list_orders(5) == [order]
        assert await store.due_orders(5, 0) == [order.order_id]
        assert await terminate(by_hand) >= 4


async def test_a_connection_that_has_gone_silent_is_given_up(
    store: Store, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.session._LOOK_SECONDS", 0.02)
    order = await stored(store, S.ROUTING)
    assert await store.get(order.order_id) == order
    wire.silence()
    async with asyncio.timeout(20):
        assert await store.get(order.order_id) == order
        with pytest.raises(OutcomeUnknown, match="does not answer"):
            await store.advance(retried(order))
        assert await store.advance(retried(order)) is not None


async def test_a_connection_that_ended_while_nobody_used_it_is_followed_by_another_unnoticed(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.ROUTING)
    for _ in range(2):
        await terminate(by_hand)
        # Its end has arrived; the next turn of the loop reads it.
        await asyncio.sleep(0.05)
        moved = await store.advance(retried(order))
        assert moved is not None
        order = await exists(store, order.order_id)
        assert not (await store.submit(new_order())).deduplicated


async def test_a_notice_that_comes_unasked_is_no_end(database: Settings) -> None:
    async with await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand:
        session = Session(await psycopg.AsyncConnection.connect(database.database, autocommit=True))
        await session.run("LISTEN told", {})
        ((pid,),) = await session.run("SELECT pg_backend_pid()", {})
        await by_hand.execute("NOTIFY told")
        await asyncio.sleep(0.05)
        assert not session.is_broken
        assert await session.run("SELECT pg_backend_pid()", {}) == [(pid,)]
        # After it the end is noticed too.
        await by_hand.execute("NOTIFY told")
        await asyncio.sleep(0.05)
        await by_hand.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        await asyncio.sleep(0.05)
        assert session.is_broken
        await session.close()


@pytest.mark.parametrize("edge", ["lease", "claim", "list"])
async def test_whichever_connection_breaks_it_may_be_another_database(
    store: Store, by_hand: psycopg.AsyncConnection, edge: str
) -> None:
    owner = await store.start_lease_owner(60)
    await store.claim((new_order().order_id, owner))
    await store.list_orders(1)
    assert store.is_same_database
    await by_hand.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = %s AND datname = current_database()",
        [f"order-engine {edge}"],
    )
    await asyncio.sleep(0.05)
    assert not store.is_same_database
    # Nor when others have followed, until the lease is begun anew.
    await store.claim((new_order().order_id, owner))
    await store.list_orders(1)
    assert not store.is_same_database
    await store.start_lease_owner(60)
    assert store.is_same_database


async def test_a_write_that_did_not_arrive_may_have_happened(store: Store, wire: Wire) -> None:
    await advance(store, await stored(store), Claimed())
    order = await stored(store, S.ROUTING)
    wire.lose_questions = 1
    with pytest.raises(OutcomeUnknown):
        await store.advance(retried(order))
    # The next one has a new connection, and the record is the judge of the last.
    assert (await exists(store, order.order_id)).sequence == order.sequence
    assert await store.advance(retried(order)) is not None


def retried(order: Order) -> list[Transition]:
    """The move of an order that found no route."""
    return transitions(order, no_route())


async def test_a_move_whose_answer_was_lost_has_happened_and_is_not_repeated(
    store: Store, wire: Wire
) -> None:
    await advance(store, await stored(store), Claimed())
    order = await stored(store)
    wire.lose_answers = 1
    with pytest.raises(OutcomeUnknown):
        await store.advance(transitions(order, Claimed()))
    assert (await exists(store, order.order_id)).sequence == 2
    assert await store.advance(transitions(order, Claimed())) is None


async def test_a_submit_whose_answer_was_lost_is_read_again(store: Store, wire: Wire) -> None:
    # Prepared: from now on a statement is one message there and one back.
    await stored(store, request_id="another")
    wire.lose_answers = 1
    asked = [new_order(), new_order("mine"), new_order("mine"), new_order("mine", amount=7)]
    answers = await asyncio.gather(*map(store.submit, asked), return_exceptions=True)
    fresh, first, again, reused = answers
    assert isinstance(fresh, Submitted)
    assert isinstance(first, Submitted)
    assert isinstance(again, Submitted)
    assert (fresh.order.order_id, fresh.deduplicated) == (asked[0].order_id, False)
    assert fresh.order == await exists(store, asked[0].order_id)
    assert (first.order.order_id, again.order.order_id) == (asked[1].order_id, asked[1].order_id)
    assert isinstance(reused, RequestIdReused)


async def test_a_submit_that_did_not_arrive_can_be_sent_again(store: Store, wire: Wire) -> None:
    await stored(store)
    wire.lose_questions = 1
    asked = new_order("mine")
    with pytest.raises(StoreUnavailable, match="send it again"):
        await store.submit(asked)
    assert not (await store.submit(asked)).deduplicated


async def test_a_submit_that_cannot_be_settled_is_unavailable(store: Store, wire: Wire) -> None:
    await stored(store, request_id="another")
    wire.lose_answers, wire.refuses = 1, True
    asked = new_order("mine")
    with pytest.raises(StoreUnavailable):
        await store.submit(asked)
    wire.refuses = False
    again = await store.submit(new_order("mine"))
    assert again.deduplicated
    assert again.order.order_id == asked.order_id


async def test_a_replay_whose_answer_was_lost_is_answered_all_the_same(store: Store, wire: Wire) -> None:
    first = await stored(store, request_id="mine")
    wire.lose_answers = 1
    answers = await asyncio.gather(
        store.submit(new_order("mine")), store.submit(new_order()), return_exceptions=True
    )
    replay, fresh = answers
    assert isinstance(replay, Submitted)
    assert isinstance(fresh, Submitted)
    assert (replay.order.order_id, replay.deduplicated) == (first.order_id, True)
    assert not fresh.deduplicated


async def test_without_a_database_nothing_happened(free_port: Callable[[], int]) -> None:
    async with Store(Settings(db_host="127.0.0.1", db_port=free_port())) as store:
        for call in (
            store.submit(new_order()),
            store.get(new_order().order_id),
            store.claim((new_order().order_id, 1)),
        ):
            with pytest.raises(StoreUnavailable, match="PostgreSQL cannot be reached"):
                await call


async def test_a_read_during_an_outage_is_unavailable_and_works_again_after_it(
    store: Store, wire: Wire
) -> None:
    order = await stored(store)
    assert await store.get(order.order_id) == order
    wire.refuses = True
    wire.cut()
    with pytest.raises(StoreUnavailable):
        await store.get(order.order_id)
    wire.refuses = False
    assert await store.get(order.order_id) == order


async def test_a_statement_that_takes_too_long_did_not_happen(
    store: Store, database: Settings, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.ROUTING)
    await by_hand.execute(f"ALTER DATABASE {database.db_name} SET lock_timeout = '50ms'".encode())
    async with Store(database) as impatient, by_hand.transaction():
        await by_hand.execute("SELECT FROM orders WHERE order_id = %s FOR UPDATE", [order.order_id])
        with pytest.raises(StoreUnavailable, match="refused for now"):
            await impatient.advance(retried(order))
    assert await store.advance(retried(order)) is not None


@pytest.mark.parametrize(
    "sqlstate",
    [
        "25006",  # read_only_sql_transaction
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "53100",  # disk_full
        "53200",  # out_of_memory
        "53300",  # too_many_connections
        "55P03",  # lock_not_available
        "57014",  # query_canceled
        "57P03",  # cannot_connect_now
        "58030",  # io_error
    ],
)
async def test_what_a_server_cannot_do_for_now_did_not_happen(
    store: Store, database: Settings, sqlstate: str
) -> None:
    order = await stored(store, S.ROUTING)
    async with refusing_once(database, sqlstate, "routing"):
        with pytest.raises(StoreUnavailable, match="refused for now: not now"):
            await store.advance(retried(order))
        assert await store.get(order.order_id) == order
        assert await store.advance(retried(order)) is not None


async def test_a_connection_to_a_server_that_takes_no_writes_any_more_is_followed_by_another(
    store: Store,
) -> None:
    order = await stored(store, S.ROUTING)
    await store.start_lease_owner(60)
    await store._connections["advance"].run("SET default_transaction_read_only = on", {})
    with pytest.raises(StoreUnavailable, match="refused for now: cannot execute"):
        await store.advance(retried(order))
    # The writes may go to a standby by now, which lacks the last commits.
    assert not store.is_same_database
    assert await store.advance(retried(order)) is not None


async def test_a_server_that_takes_no_writes_cannot_be_reached(store: Store, database: Settings) -> None:
    async with read_only(database):
        for call in (store.submit(new_order()), store.list_orders(1)):
            with pytest.raises(StoreUnavailable, match=r"cannot be reached: .* session is read-only"):
                await call
    assert not (await store.submit(new_order())).deduplicated


async def test_a_caller_that_leaves_does_not_cut_its_batch_short(store: Store) -> None:
    asked = [new_order() for _ in range(3)]
    waiting = [asyncio.ensure_future(store.submit(order)) for order in asked]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(*waiting[1:])
    assert await exists(store, asked[0].order_id)


async def test_the_end_waits_for_writes_under_way(database: Settings) -> None:
    async with Store(database) as store:
        submitted = store.submit(new_order())
    assert submitted.done()
    assert not submitted.result().deduplicated


async def test_closing_a_connection_that_broke_leaves_the_one_alone_that_has_its_descriptor(
    postgres: Settings,
) -> None:
    async def connected() -> Session:
        return Session(await psycopg.AsyncConnection.connect(postgres.database, dbname="postgres"))

    broken = await connected()
    ((pid,),) = await broken.run("SELECT pg_backend_pid()", {})
    other = await connected()
    await other.run("SELECT pg_terminate_backend(%(pid)b::integer)", {"pid": pid})
    with pytest.raises(psycopg.OperationalError):
        await broken.run("SELECT 1", {})
    assert broken.is_broken
    # It is given the number that libpq has let go of.
    next_one = await connected()
    waiting = asyncio.create_task(next_one.run("SELECT 1 FROM pg_sleep(0.2)", {}))
    await asyncio.sleep(0)
    await broken.close()
    async with asyncio.timeout(10):
        assert await waiting == [(1,)]
    await next_one.close()
    await other.close()


async def test_an_answer_is_found_though_somebody_else_ended_the_watch_of_its_socket(
    database: Settings,
) -> None:
    connection = await psycopg.AsyncConnection.connect(database.database, autocommit=True)
    session = Session(connection)
    asked = asyncio.create_task(session.run("SELECT pg_sleep(0.3)::text, 7", {}))
    # Twice, for what is sent before the statement and for the statement itself.
    for _ in range(2):
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().remove_reader(session._socket)
    async with asyncio.timeout(20):
        assert await asked == [("", 7)]
        assert await session.run("SELECT 8", {}) == [(8,)]
    await session.close()
