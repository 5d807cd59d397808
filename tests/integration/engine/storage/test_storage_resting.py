"""Orders that rest until their trigger fires: stored, found due or not, fired, put back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import chain
from uuid import UUID

import psycopg
import pytest

from engine.domain.lifecycle import Cancelled, Claimed, Reverted, Routed, TimedOut
from engine.domain.order import FailureReason, Order, OrderSpec, OrderStatus, Side
from engine.domain.order_types import LimitOrder, SniperOrder, TriggerKind
from engine.domain.tokens import BONK, SOL, USDC, Token
from engine.settings import Settings
from engine.storage.postgres import NewOrder, Store
from tests.integration.engine.storage.records import (
    LIMIT,
    UNMET,
    advance,
    exists,
    new_order,
    signed,
    stored,
    transitions,
)
from tests.serving import decision

S = OrderStatus
PRICE, LIQUIDITY = TriggerKind.PRICE, TriggerKind.LIQUIDITY
MOO = Token("HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", "HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", 7)
BAA = Token("9n4nbM75f5Ui33ZbPYXn59EwSgE8CGsHtAeTH5YFeJ9E", "9n4nbM75f5Ui33ZbPYXn59EwSgE8CGsHtAeTH5YFeJ9E", 0)
FAR = datetime(2099, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
async def store(shared_database: Settings) -> AsyncIterator[Store]:
    """A store with orders of other tests in it."""
    async with Store(shared_database) as store:
        yield store


@pytest.fixture
async def owner(store: Store) -> int:
    return await store.start_lease_owner(3600)


@pytest.fixture
async def by_hand(shared_database: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(shared_database.database, autocommit=True) as connection:
        yield connection


async def row_of(connection: psycopg.AsyncConnection, order: Order, columns: str) -> tuple[object, ...]:
    statement = f"SELECT {columns} FROM orders WHERE order_id = %s"
    row = await (await connection.execute(statement.encode(), [order.order_id])).fetchone()
    assert row is not None
    return tuple(row)


async def is_due(store: Store, order: Order) -> bool:
    return order.order_id in await store.due_orders(10_000, 0.0)


# ---- Submitting and reading ------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(
    ("asked", "kind", "level"),
    [
        (new_order(type=LimitOrder(Decimal("105.25"))), PRICE, 0.10525),
        (new_order(type=LimitOrder(Decimal("0.000000000000000001")), amount=2**63), PRICE, None),
        (new_order(type=LimitOrder(Decimal("1000000.000000000000000001")), amount=10**10), PRICE, None),
        (new_order(type=SniperOrder(), expire_time=FAR), LIQUIDITY, 0.0),
        (new_order(type=SniperOrder(1_500_000_000), tokens=(SOL, MOO)), LIQUIDITY, 1.5e9),
        (new_order(type=SniperOrder(2**64 - 1), tokens=(MOO, BAA)), LIQUIDITY, float(2**64)),
        (new_order(type=SniperOrder(None, Decimal("0.5")), tokens=(SOL, MOO)), PRICE, 0.02),
        (new_order(type=SniperOrder(7, Decimal(3)), tokens=(BAA, BONK)), PRICE, None),
        (new_order(type=LIMIT, tokens=(MOO, USDC)), PRICE, 15.0),
    ],
)
async def test_what_a_waiting_order_asks_for_is_what_is_read(
    asked: NewOrder, kind: TriggerKind, level: float | None, side: Side, store: Store,
    by_hand: psycopg.AsyncConnection
) -> None:  # fmt: skip
    again = new_order()
    asked = replace(asked, order_id=again.order_id, spec=replace(asked.spec, side=side))
    submitted = await store.submit(asked)
    assert submitted.order.spec == asked.spec
    assert await exists(store, asked.order_id) == submitted.order
    (watched,) = await store.events_after((asked.order_id, 0))
    assert (watched.input_token, watched.output_token) == (asked.spec.input_token, asked.spec.output_token)
    assert watched.event.status is S.PENDING

    trigger = asked.spec.type.trigger(asked.spec)
    assert trigger is not None
    columns = "trigger_kind::text, trigger_size, trigger_level, resting, forgiven_attempts"
    size = asked.spec.amount.bit_length() - 1
    row = await row_of(by_hand, submitted.order, columns)
    # To the last bit: pages of resting orders go on from a level that the program works out again.
    assert row == (kind.value, size, trigger.level, True, 0)
    assert level is None or side is Side.BUY or trigger.level == pytest.approx(level)


async def test_decimals_are_stored_of_tokens_that_the_program_does_not_know(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    found = {
        tokens: await row_of(
            by_hand,
            await stored(store, tokens=tokens),
            "input_decimals, output_decimals, trigger_kind, terms",
        )
        for tokens in ((SOL, USDC), (SOL, MOO), (BAA, MOO))
    }
    assert found == {
        (SOL, USDC): (None, None, None, None),
        (SOL, MOO): (None, 7, None, None),
        (BAA, MOO): (0, 7, None, None),
    }


async def test_a_market_order_for_a_token_that_has_no_symbol_is_read_and_claimed(
    store: Store, owner: int
) -> None:
    order = await stored(store, tokens=(MOO, BAA))
    claim = await store.claim((order.order_id, owner))
    assert claim is not None
    assert claim.order.spec == order.spec == OrderSpec(Side.SELL, order.spec.amount, MOO, BAA)


# ---- Not due ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("expire_time", [None, FAR])
async def test_a_resting_order_is_not_due_and_nobody_can_claim_it(
    expire_time: datetime | None, store: Store, owner: int, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, type=LIMIT, expire_time=expire_time)
    before = (await store.backlog(10_000)).count
    assert not await is_due(store, order)
    assert await store.claim((order.order_id, owner)) is None
    assert await store.leased_orders(owner) == []
    assert await row_of(by_hand, order, "due_time = coalesce(expire_time, 'infinity')") == (True,)
    # Nor does it take room of those that are to be executed.
    await stored(store, type=LIMIT)
    assert (await store.backlog(10_000)).count == before


async def test_resting_orders_are_counted_by_type(database: Settings) -> None:
    async with Store(database) as store:
        assert await store.resting_orders_count() == {}
        await stored(store)
        fired = await stored(store, type=LIMIT)
        for _ in range(2):
            await stored(store, type=LIMIT)
        await stored(store, type=SniperOrder())
        await stored(store, S.CANCELLED, type=SniperOrder())
        await store.fire(PRICE, [fired])
        assert await store.resting_orders_count() == {"limit": 2, "sniper": 1}


async def test_a_resting_order_that_has_expired_is_claimed_without_being_started(
    store: Store, owner: int, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, type=LIMIT, expire_time=datetime.now(UTC) - timedelta(seconds=1))
    assert await is_due(store, order)
    claim = await store.claim((order.order_id, owner))
    assert claim is not None
    assert not claim.started
    assert (claim.order.status, claim.order.sequence, claim.order.spec) == (S.PENDING, 1, order.spec)
    assert await row_of(by_hand, order, "resting, lease_owner") == (False, owner)
    assert not await is_due(store, order)
    expired = await advance(store, claim.order, TimedOut())
    assert (expired.status, expired.sequence) == (S.EXPIRED, 2)
    assert await row_of(by_hand, order, "resting, lease_owner") == (False, None)


async def test_an_expired_one_whose_worker_died_before_it_was_closed_is_due_again(database: Settings) -> None:
    async with Store(database) as store:
        owner, rival = await store.start_lease_owner(3600), await store.start_lease_owner(3600)
        order = await stored(store, type=LIMIT, expire_time=datetime.now(UTC) - timedelta(seconds=9))
        assert await store.claim((order.order_id, owner)) is not None
        await store.end_lease_owner(owner)
        assert await store.due_orders(9, 0.5) == [order.order_id]
        claim = await store.claim((order.order_id, rival))
        assert claim is not None
        assert (claim.started, claim.order.status) == (False, S.PENDING)


async def test_what_expired_comes_after_what_is_due_each_in_the_order_of_their_times(
    database: Settings,
) -> None:
    async with Store(database) as store:
        now = datetime.now(UTC)
        late = await stored(store, type=LIMIT, expire_time=now - timedelta(seconds=1))
        early = await stored(store, type=LIMIT, expire_time=now - timedelta(seconds=5))
        first, second = await stored(store), await stored(store)
        expected = [order.order_id for order in (first, second, early, late)]
        assert await store.due_orders(10, 0.0) == expected
        assert await store.due_orders(3, 0.0) == expected[:3]
        assert await store.due_orders(10, 0.0, expired_only=True) == expected[2:]


# ---- Firing ----------------------------------------------------------------------------------------


async def test_firing_makes_an_order_due_and_its_claim_starts_it(
    store: Store, owner: int, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, type=LIMIT, expire_time=FAR)
    before = (await store.backlog(10_000)).count
    assert await store.fire(PRICE, [order]) == [order.order_id]
    assert await row_of(by_hand, order, "resting, sequence, due_time <= now()") == (False, 1, True)
    assert await is_due(store, order)
    assert (await store.backlog(10_000)).count == before + 1
    claim = await store.claim((order.order_id, owner))
    assert claim is not None
    assert claim.started
    assert (claim.order.status, claim.order.sequence, claim.order.spec) == (S.ROUTING, 2, order.spec)


async def test_an_order_fires_once(store: Store) -> None:
    order = await stored(store, type=LIMIT)
    assert await store.fire(PRICE, [order]) == [order.order_id]
    assert await store.fire(PRICE, [order]) == []


async def test_only_those_fire_that_rest_as_they_were_seen_and_have_not_expired(store: Store) -> None:
    now = datetime.now(UTC)
    rests = await stored(store, type=LIMIT)
    again = await stored(store, type=SniperOrder())
    seen_before = await stored(store, type=LIMIT)
    expired = await stored(store, type=LIMIT, expire_time=now - timedelta(seconds=1))
    cancelled = await stored(store, S.CANCELLED, type=LIMIT)
    under_way = await stored(store, S.ROUTING, type=LIMIT)
    market = await stored(store)
    missing = replace(rests, order_id=UUID(int=5))
    moved = [await advance(store, order, Claimed(), UNMET) for order in (again, seen_before)]
    orders = [rests, moved[0], seen_before, expired, cancelled, under_way, market, missing]
    fired = await store.fire(PRICE, orders)
    assert sorted(fired) == sorted([rests.order_id, again.order_id])
    assert await is_due(store, expired), "it is for the sweeper to close"
    assert not await is_due(store, seen_before)


async def test_of_monitors_that_race_one_fires_an_order(shared_database: Settings) -> None:
    async with Store(shared_database) as one, Store(shared_database) as other:
        orders = [await stored(one, type=LIMIT) for _ in range(60)]
        answers = await asyncio.gather(
            *(store.fire(PRICE, orders[at : at + 20]) for at in (0, 20, 40) for store in (one, other))
        )
        assert sorted(chain.from_iterable(answers)) == [order.order_id for order in orders]


async def test_what_was_cancelled_neither_fires_nor_is_claimed(store: Store, owner: int) -> None:
    order = await stored(store, type=LIMIT)
    await advance(store, order, Cancelled())
    assert await store.fire(PRICE, [order]) == []
    assert await store.claim((order.order_id, owner)) is None
    assert not await is_due(store, order)


async def test_what_fired_can_be_cancelled_until_it_is_claimed(store: Store, owner: int) -> None:
    order = await stored(store, type=LIMIT)
    assert await store.fire(PRICE, [order]) == [order.order_id]
    await advance(store, order, Cancelled())
    assert await store.claim((order.order_id, owner)) is None
    assert (await exists(store, order.order_id)).status is S.CANCELLED


async def test_of_a_cancel_and_a_fire_with_its_claim_exactly_one_wins(shared_database: Settings) -> None:
    async with Store(shared_database) as one, Store(shared_database) as other:
        owner = await other.start_lease_owner(3600)
        orders = [await stored(one, type=LIMIT) for _ in range(40)]

        async def fire_and_claim(order: Order) -> bool:
            await other.fire(PRICE, [order])
            return await other.claim((order.order_id, owner)) is not None

        async def cancel(order: Order) -> bool:
            return await one.advance(transitions(order, Cancelled())) is not None

        for order in orders:
            claimed, cancelled = await asyncio.gather(fire_and_claim(order), cancel(order))
            assert claimed is not cancelled
            found = await exists(one, order.order_id)
            assert (found.status, found.sequence) == (S.CANCELLED if cancelled else S.ROUTING, 2)
            assert await other.fire(PRICE, [order]) == []


# ---- Waiting again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("expire_time", [None, FAR])
async def test_an_order_whose_trigger_does_not_hold_any_more_rests_again_and_is_nobody_s(
    expire_time: datetime | None, store: Store, owner: int, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, type=LIMIT, expire_time=expire_time)
    await store.fire(PRICE, [order])
    claim = await store.claim((order.order_id, owner))
    assert claim is not None
    rests = await store.advance(transitions(claim.order, UNMET))
    assert rests is not None
    assert await row_of(
        by_hand, order, "resting, lease_owner, due_time = coalesce(expire_time, 'infinity')"
    ) == (True, None, True)
    found = await exists(store, order.order_id)
    assert found == replace(rests, update_time=found.update_time)
    assert (found.status, found.sequence, found.failure_message) == (S.PENDING, 3, "the limit is 150")
    assert await store.claim((order.order_id, owner)) is None
    assert not await is_due(store, order)
    assert await store.fire(PRICE, [order]) == [], "it was seen before it was executed"
    assert await store.fire(PRICE, [found]) == [order.order_id]
    claim = await store.claim((order.order_id, owner))
    assert claim is not None
    assert claim.order.sequence == 4


async def test_attempts_from_before_an_order_waited_again_are_forgiven(store: Store, owner: int) -> None:
    order = await stored(store, S.SUBMITTED, type=LIMIT)
    reverted = Reverted(FailureReason.SLIPPAGE_EXCEEDED, "the price moved")
    rests = await advance(store, order, reverted)
    found = await exists(store, order.order_id)
    assert (found.status, found.attempt, found.forgiven_attempts) == (S.PENDING, 2, 1)
    assert found == replace(rests, update_time=found.update_time)
    await store.fire(PRICE, [found])
    claim = await store.claim((order.order_id, owner))
    assert claim is not None
    assert (claim.order.attempt, claim.order.forgiven_attempts) == (2, 1)
    # What comes after keeps them.
    routed = Routed(replace(decision(), attempt=2))
    moved = await advance(store, claim.order, routed, signed(order.order_id, 2), reverted)
    found = await exists(store, order.order_id)
    assert (found.attempt, found.forgiven_attempts) == (moved.attempt, moved.forgiven_attempts) == (3, 2)


async def test_one_that_expired_while_it_was_executed_and_waits_again_is_due(store: Store) -> None:
    soon = datetime.now(UTC) - timedelta(seconds=1)
    order = await stored(store, S.ROUTING, type=LIMIT, expire_time=soon)
    await advance(store, order, UNMET)
    assert await is_due(store, order)


async def test_who_fires_an_order_for_itself_holds_it_from_then_on(store: Store) -> None:
    mine, nobodys = await stored(store, type=LIMIT), await stored(store, type=LIMIT)
    owner, other = await store.start_lease_owner(60.0), await store.start_lease_owner(60.0)
    fired = await store.fire(PRICE, [mine, nobodys], [owner, None])
    assert sorted(fired) == sorted([mine.order_id, nobodys.order_id])
    assert await is_due(store, nobodys)
    assert not await is_due(store, mine)
    assert await store.claim((mine.order_id, other)) is None
    claim = await store.claim((mine.order_id, owner))
    assert claim is not None
    assert claim.started
