"""Moving orders on and holding them: conditional writes, claims, leases, in the real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

import psycopg
import pytest

from engine.domain.lifecycle import Cancelled, Claimed, Fact, Landed, Lapsed, NotBuilt, Reverted, Routed
from engine.domain.order import AttemptOutcome, FailureReason, Order, OrderStatus
from engine.settings import Settings
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import (
    LIMIT,
    advance,
    exists,
    new_order,
    path_to,
    signed,
    stored,
    transitions,
)
from tests.serving import decision, no_route

S = OrderStatus


@pytest.fixture
async def store(shared_database: Settings) -> AsyncIterator[Store]:
    async with Store(shared_database) as store:
        yield store


@pytest.fixture
async def by_hand(shared_database: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(shared_database.database, autocommit=True) as connection:
        yield connection


async def leases(connection: psycopg.AsyncConnection) -> dict[UUID, int | None]:
    cursor = await connection.execute("SELECT order_id, lease_owner FROM orders")
    return dict(await cursor.fetchall())


async def attempts(connection: psycopg.AsyncConnection, order: Order) -> list[tuple[int, str | None]]:
    cursor = await connection.execute(
        "SELECT attempt, outcome::text FROM attempts WHERE order_id = %s ORDER BY attempt", [order.order_id]
    )
    return await cursor.fetchall()


async def make_due(connection: psycopg.AsyncConnection, order_id: UUID, *, ago: str = "1 s") -> None:
    await connection.execute(
        "UPDATE orders SET due_time = now() - %s::interval WHERE order_id = %s", [ago, order_id]
    )


# ---- Conditional writes ----------------------------------------------------------------------------


async def test_a_write_decided_from_an_old_sequence_stores_nothing(store: Store) -> None:
    order = await stored(store)
    await advance(store, order, Claimed())
    assert await store.advance(transitions(order, Cancelled())) is None
    assert await store.advance(transitions(order, Claimed())) is None
    found = await exists(store, order.order_id)
    assert (found.status, found.sequence) == (S.ROUTING, 2)


async def test_a_superseded_write_leaves_the_others_of_its_batch_alone(store: Store) -> None:
    orders = [await stored(store, S.BUILDING) for _ in range(5)]
    await advance(store, orders[1], Cancelled())
    await advance(store, orders[3], signed(orders[3].order_id))
    moves = [transitions(order, signed(order.order_id)) for order in orders]
    answers = await asyncio.gather(*map(store.advance, moves))
    assert [answer is None for answer in answers] == [False, True, False, True, False]
    for order, answer in zip(orders, answers, strict=True):
        found = await exists(store, order.order_id)
        assert answer is None or (found.sequence, found.open_attempt) == (4, answer.open_attempt)
    assert (await exists(store, orders[1].order_id)).open_attempt is None


async def test_of_two_moves_of_one_order_in_one_batch_the_first_is_stored(store: Store) -> None:
    order = await stored(store, S.ROUTING)
    routed, cancelled = await asyncio.gather(
        store.advance(transitions(order, Routed(decision()))), store.advance(transitions(order, Cancelled()))
    )
    assert routed is not None
    assert cancelled is None
    assert (await exists(store, order.order_id)).status is S.BUILDING


async def test_a_move_that_the_database_refuses_for_good_fails_alone(store: Store) -> None:
    orders = [await stored(store, S.ROUTING) for _ in range(4)]
    # PostgreSQL's text holds no NUL.
    facts = [NotBuilt(FailureReason.INTERNAL, text) for text in ("one", "two\0", "three", "four")]
    moves = [transitions(order, fact) for order, fact in zip(orders, facts, strict=True)]
    answers = await asyncio.gather(*map(store.advance, moves), return_exceptions=True)
    assert [isinstance(answer, psycopg.DataError) for answer in answers] == [False, True, False, False]
    for order, answer in zip(orders, answers, strict=True):
        expected = S.FAILED if isinstance(answer, Order) else S.ROUTING
        assert (await exists(store, order.order_id)).status is expected


async def test_of_workers_that_race_for_a_sequence_one_wins(shared_database: Settings) -> None:
    async with Store(shared_database) as one, Store(shared_database) as other:
        orders = [await stored(one, S.ROUTING) for _ in range(20)]
        for order in orders:
            answers = await asyncio.gather(
                one.advance(transitions(order, Routed(decision()))),
                other.advance(transitions(order, Cancelled())),
            )
            winner = next(answer for answer in answers if answer is not None)
            assert answers.count(None) == 1
            found = await exists(one, order.order_id)
            assert (found.status, found.sequence) == (winner.status, 3)
            events = await one.events_after((order.order_id, 0))
            assert [watched.event.sequence for watched in events] == [1, 2, 3]


async def test_batches_of_the_same_orders_in_any_order_do_not_lock_each_other_out(
    shared_database: Settings,
) -> None:
    """A cancel and a worker's move, each of many orders: PostgreSQL would end one of two that deadlock."""
    chance = random.Random(5)
    async with Store(shared_database) as one, Store(shared_database) as other:
        for _ in range(12):
            orders = [await stored(one, S.ROUTING) for _ in range(40)]

            async def move(store: Store, orders: list[Order], fact: Fact) -> list[Order | Exception | None]:
                moves = [transitions(order, fact) for order in chance.sample(orders, len(orders))]
                return await store.advance.many(moves)

            ends = await asyncio.gather(
                move(one, orders, Cancelled()), move(other, orders, Routed(decision()))
            )
            moved = [each for each in chain(*ends) if each is not None]
            assert [each for each in moved if isinstance(each, Exception)] == []
            assert len(moved) == len(orders)


async def test_a_chain_of_transitions_is_stored_together_with_its_attempt(store: Store) -> None:
    order = await stored(store)
    moved = await store.advance(transitions(order, *path_to(S.SUBMITTED, order.order_id)))
    assert moved is not None
    found = await exists(store, order.order_id)
    assert (found.status, found.sequence, found.open_attempt) == (S.SUBMITTED, 4, moved.open_attempt)
    events = await store.events_after((order.order_id, 0))
    assert [watched.event.status for watched in events] == [S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED]


async def test_a_transaction_is_on_record_before_anything_can_be_known_of_it(store: Store) -> None:
    order = await stored(store, S.BUILDING)
    with pytest.raises(psycopg.IntegrityError):
        await store.advance(transitions(order, signed(order.order_id), Landed(1, 1)))
    assert (await exists(store, order.order_id)).sequence == order.sequence


async def test_a_chain_is_stored_whole_or_not_at_all(store: Store, by_hand: psycopg.AsyncConnection) -> None:
    order = await stored(store, S.ROUTING)
    chain = transitions(order, Routed(decision()), signed(order.order_id))
    await advance(store, order, no_route())
    assert await store.advance(chain) is None
    assert len(await store.events_after((order.order_id, 0))) == 3
    assert await attempts(by_hand, order) == []


@pytest.mark.parametrize("outcome", AttemptOutcome)
async def test_how_an_attempt_ended_is_recorded_with_the_transition(
    outcome: AttemptOutcome, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.SUBMITTED)
    facts: dict[AttemptOutcome, Fact] = {
        AttemptOutcome.LANDED: Landed(1, 1),
        AttemptOutcome.REVERTED: Reverted(FailureReason.SLIPPAGE_EXCEEDED, "the price moved"),
        AttemptOutcome.EXPIRED: Lapsed(),
    }
    moved = await advance(store, order, facts[outcome])
    assert await attempts(by_hand, order) == [(1, outcome.value)]
    found = await exists(store, order.order_id)
    assert found.open_attempt is None
    assert (found.attempt, found.failure_reason) == (moved.attempt, moved.failure_reason)


async def test_a_second_attempt_is_kept_beside_the_first(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.SUBMITTED)
    order = await advance(store, order, Lapsed(), Routed(replace(decision(), attempt=2)))
    order = await advance(store, order, signed(order.order_id, 2))
    assert await attempts(by_hand, order) == [(1, "expired"), (2, None)]
    assert (await exists(store, order.order_id)).open_attempt == order.open_attempt


async def test_closing_and_resting_end_the_lease_and_moving_on_keeps_it(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    owner = await store.start_lease_owner(30)
    held = {}
    for facts, name in (
        ([Routed(decision())], "goes on"),
        ([no_route()], "rests"),
        ([NotBuilt(FailureReason.INSUFFICIENT_FUNDS, "empty")], "closes"),
    ):
        order = await stored(store)
        claimed = await store.claim((order.order_id, owner))
        assert claimed is not None
        assert await store.advance(transitions(claimed.order, *facts, random=0.9)) is not None
        held[name] = (await leases(by_hand))[order.order_id]
    assert held == {"goes on": owner, "rests": None, "closes": None}


# ---- Claims ----------------------------------------------------------------------------------------


async def test_a_claim_takes_a_pending_order_up(store: Store) -> None:
    owner = await store.start_lease_owner(30)
    order = await stored(store)
    claimed = await store.claim((order.order_id, owner))
    assert claimed is not None
    assert claimed.started
    assert (claimed.order.status, claimed.order.sequence) == (S.ROUTING, 2)
    assert claimed.order == await exists(store, order.order_id)


@pytest.mark.parametrize("status", [S.ROUTING, S.BUILDING, S.SUBMITTED])
async def test_a_claim_of_an_order_under_way_gives_it_as_it_stands(status: OrderStatus, store: Store) -> None:
    owner = await store.start_lease_owner(30)
    order = await stored(store, status)
    before = await exists(store, order.order_id)
    claimed = await store.claim((order.order_id, owner))
    assert claimed is not None
    # The route while building and the bytes while submitted: what a successor needs is there.
    assert not claimed.started
    assert claimed.order == replace(before, update_time=claimed.order.update_time)
    assert (claimed.order.route is not None) == (status is S.BUILDING)
    assert (claimed.order.open_attempt is not None) == (status is S.SUBMITTED)


async def test_claims_that_race_get_each_order_once(shared_database: Settings) -> None:
    async with Store(shared_database) as one, Store(shared_database) as other:
        owners = [await one.start_lease_owner(30), await other.start_lease_owner(30)]
        order_ids = [(await stored(one)).order_id for _ in range(50)]
        answers = await asyncio.gather(
            *(
                store.claim((order_id, owner))
                for order_id in order_ids
                for store, owner in zip((one, other), owners, strict=True)
            )
        )
        got = [answer.order.order_id for answer in answers if answer is not None]
        assert sorted(got) == sorted(order_ids)


async def test_what_is_not_there_closed_or_not_due_is_not_claimed(store: Store) -> None:
    owner = await store.start_lease_owner(30)
    resting = await stored(store, S.ROUTING)
    await store.advance(transitions(resting, no_route(), random=0.99))
    wanted = [UUID(int=5), resting.order_id]
    wanted += [(await stored(store, status)).order_id for status in (S.CONFIRMED, S.FAILED, S.CANCELLED)]
    assert await asyncio.gather(*(store.claim((order_id, owner)) for order_id in wanted)) == [None] * 5


async def test_an_order_is_its_owner_s_while_the_owner_lives(database: Settings) -> None:
    async with Store(database) as one, Store(database) as other:
        owner, rival = await one.start_lease_owner(30), await other.start_lease_owner(30)
        order = await stored(one)
        assert await one.claim((order.order_id, owner)) is not None
        assert await other.claim((order.order_id, rival)) is None
        assert await other.free_dead_owners(rival) == 0
        assert await other.claim((order.order_id, rival)) is None
        # Who lost the answer to its own claim gets it again, as it stands.
        again = await one.claim((order.order_id, owner))
        assert again is not None
        assert (again.order.sequence, again.started) == (2, False)


async def test_a_dead_owner_s_orders_are_free_at_once(database: Settings) -> None:
    """Its connection held the advisory lock: nobody waits for the lease, here of an hour, to run out."""
    async with Store(database) as other:
        rival = await other.start_lease_owner(3600)
        async with Store(database) as one:
            owner = await one.start_lease_owner(3600)
            order = await stored(one)
            await one.claim((order.order_id, owner))
            assert await other.free_dead_owners(rival) == 0
        async with asyncio.timeout(10):
            while await other.free_dead_owners(rival) == 0:
                pass  # PostgreSQL needs a moment to notice the end of a connection
        assert not await other.renew_lease(owner, 3600)
        claimed = await other.claim((order.order_id, rival))
        assert claimed is not None
        assert (claimed.order.status, claimed.order.sequence) == (S.ROUTING, 2)


async def test_a_silent_owner_s_orders_are_free_once_its_lease_has_run_out(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    owner, rival = await store.start_lease_owner(3600), await store.start_lease_owner(3600)
    order = await stored(store)
    await store.claim((order.order_id, owner))
    await by_hand.execute(
        "UPDATE lease_owners SET expire_time = now() - interval '1 ms' WHERE lease_owner = %s", [owner]
    )
    assert order.order_id in await store.due_orders(1000, 0)
    assert await store.claim((order.order_id, rival)) is not None
    # It wakes up and renews, in time before it was declared dead: what it has lost stays lost.
    assert await store.renew_lease(owner, 3600)
    assert await store.claim((order.order_id, owner)) is None


async def test_a_lease_given_back_frees_its_orders(shared_database: Settings) -> None:
    async with Store(shared_database) as one, Store(shared_database) as other:
        owner, rival = await one.start_lease_owner(3600), await other.start_lease_owner(3600)
        order = await stored(one)
        await one.claim((order.order_id, owner))
        await one.end_lease_owner(owner)
        assert await other.claim((order.order_id, rival)) is not None


async def test_a_pending_order_past_its_expire_time_is_claimed_but_not_started(store: Store) -> None:
    owner = await store.start_lease_owner(30)
    order = await stored(store, expire_time=datetime.now(UTC) - timedelta(seconds=1))
    claimed = await store.claim((order.order_id, owner))
    assert claimed is not None
    assert not claimed.started
    assert (claimed.order.status, claimed.order.sequence) == (S.PENDING, 1)
    assert len(await store.events_after((order.order_id, 0))) == 1


async def test_a_claim_under_a_number_that_is_not_this_process_s_any_more_takes_nothing(store: Store) -> None:
    old, new = await store.start_lease_owner(30), await store.start_lease_owner(30)
    first, second = await stored(store), await stored(store)
    claims = await asyncio.gather(store.claim((first.order_id, old)), store.claim((second.order_id, new)))
    assert claims[0] is None
    assert claims[1] is not None


async def test_an_order_claimed_twice_in_one_batch_is_given_once(store: Store) -> None:
    owner = await store.start_lease_owner(30)
    order = await stored(store)
    claims = await asyncio.gather(*(store.claim((order.order_id, owner)) for _ in range(3)))
    assert [claim is None for claim in claims] == [False, True, True]


async def test_postponing_puts_an_order_down_unchanged(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    owner, rival = await store.start_lease_owner(30), await store.start_lease_owner(30)
    order = await stored(store)
    claimed = await store.claim((order.order_id, owner))
    await store.postpone((order.order_id, rival, 3600.0))
    assert (await leases(by_hand))[order.order_id] == owner
    await store.postpone((order.order_id, owner, 3600.0))
    assert await store.claim((order.order_id, owner)) is None
    await make_due(by_hand, order.order_id)
    again = await store.claim((order.order_id, rival))
    assert claimed is not None
    assert again is not None
    assert again.order == replace(claimed.order, update_time=again.order.update_time)


# ---- What is due -----------------------------------------------------------------------------------


async def test_due_orders_are_those_that_nobody_holds(database: Settings) -> None:
    async with (
        Store(database) as store,
        await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand,
    ):
        owner = await store.start_lease_owner(30)
        new, held = await stored(store), await stored(store)
        under_way, resting = await stored(store, S.BUILDING), await stored(store, S.ROUTING)
        await stored(store, S.CONFIRMED)
        await store.claim((held.order_id, owner))
        await store.advance(transitions(resting, no_route(), random=0.99))
        assert set(await store.due_orders(10, 0)) == {new.order_id, under_way.order_id}
        # A new order is left to its hint for a moment; one under way has none.
        assert await store.due_orders(10, 60) == [under_way.order_id]
        await make_due(by_hand, new.order_id, ago="61 s")
        assert await store.due_orders(10, 60) == [new.order_id, under_way.order_id]
        assert await store.due_orders(1, 0) == [new.order_id]
        assert await store.leased_orders(owner) == [held.order_id]


async def test_what_a_clock_that_was_ahead_put_off_is_made_due(database: Settings) -> None:
    async with (
        Store(database) as store,
        await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand,
    ):
        late, held, resting = await stored(store), await stored(store), await stored(store, type=LIMIT)
        retried, closed = await stored(store, S.ROUTING), await stored(store, S.CONFIRMED)
        owner = await store.start_lease_owner(30)
        await store.claim((held.order_id, owner))
        await store.advance(transitions(retried, no_route(), random=0.99))
        for order in (late, held):
            await make_due(by_hand, order.order_id, ago="-2 h")
        assert await store.due_orders(10, 0) == []
        assert await store.hasten_orders(60) == 2
        assert await store.due_orders(10, 0) == [late.order_id]
        assert await store.leased_orders(owner) == [held.order_id]
        assert await store.hasten_orders(60) == 0
        for order in (resting, closed):
            kept = await store.get(order.order_id)
            assert kept is not None
            assert kept.status is order.status


async def test_a_retry_is_due_after_its_delay(store: Store, by_hand: psycopg.AsyncConnection) -> None:
    order = await stored(store, S.ROUTING)
    (transition,) = transitions(order, no_route(), random=0.5)
    await store.advance([transition])
    cursor = await by_hand.execute(
        "SELECT EXTRACT(EPOCH FROM due_time - update_time)::float8 FROM orders WHERE order_id = %s",
        [order.order_id],
    )
    assert await cursor.fetchone() == (transition.delay_seconds,)
    assert transition.delay_seconds > 0


async def test_the_clock_is_the_database_s(store: Store, by_hand: psycopg.AsyncConnection) -> None:
    owner = await store.start_lease_owner(30)
    assert await store.renew_lease(owner, 30)
    before = store.now()
    row = await (await by_hand.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None
    assert before < row[0] < store.now() + timedelta(seconds=5)


async def test_moves_before_the_closing_one_touch_no_index(database: Settings) -> None:
    """Heap-only updates: an index on `status` would make of each a write to every index."""
    async with Store(database) as store:
        owner = await store.start_lease_owner(30)
        order = (await store.submit(new_order())).order
        claimed = await store.claim((order.order_id, owner))
        assert claimed is not None
        await advance(store, claimed.order, *path_to(S.SUBMITTED, order.order_id)[1:])
    # A connection hands its figures in at its end.
    figures: tuple[int, int] | None = None
    async with (
        asyncio.timeout(10),
        await psycopg.AsyncConnection.connect(database.database, autocommit=True) as connection,
    ):
        while figures is None or figures[0] < 3:
            cursor = await connection.execute(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'orders'"
            )
            figures = await cursor.fetchone()
    assert figures == (3, 3)
