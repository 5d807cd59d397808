"""Orders that only a newer version can read: they fail nobody but who asks for them, and wait for it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from engine.domain.errors import OrderNotReadable, StoreUnavailable
from engine.domain.order import Order, OrderStatus
from engine.domain.order_types import MARKET, LimitOrder, TriggerKind
from engine.domain.tokens import SOL, USDC, USDT
from engine.settings import Settings
from engine.storage.postgres import Claim, Store
from tests.integration.engine.storage.newer import OF_DECISION, OF_TERMS, OF_TOKEN, OF_TYPE, rewrite
from tests.integration.engine.storage.records import LIMIT, exists, new_order, stored

S = OrderStatus
PRICE = TriggerKind.PRICE

KINDS = pytest.mark.parametrize("change", [OF_TYPE, OF_TOKEN, OF_TERMS], ids=["type", "token", "terms"])


async def several(store: Store, count: int, status: OrderStatus = S.PENDING) -> list[Order]:
    return [await stored(store, status) for _ in range(count)]


@KINDS
async def test_who_asks_for_one_is_told_and_others_are_answered(
    change: str, database: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with Store(database) as store:
        first, newer, last = [await stored(store, type=LIMIT) for _ in range(3)]
        await rewrite(database, change, newer.order_id)
        unknown = new_order().order_id
        for _ in range(3):
            found = await store.get.many([first.order_id, newer.order_id, unknown, last.order_id])
            assert [found[0], found[2], found[3]] == [first, None, last]
            assert isinstance(found[1], OrderNotReadable)
        with pytest.raises(OrderNotReadable, match=str(newer.order_id)):
            await store.get(newer.order_id)
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.order_id for record in said] == [newer.order_id]  # type: ignore[attr-defined]


@KINDS
@pytest.mark.parametrize("statuses", [(), (S.PENDING,), tuple(S)], ids=["all", "pending", "every status"])
async def test_a_list_goes_on_behind_them(
    change: str, statuses: tuple[OrderStatus, ...], database: Settings
) -> None:
    async with Store(database) as store:
        orders = [await stored(store, type=LIMIT) for _ in range(9)]
        await rewrite(database, change, *(orders[at].order_id for at in (1, 2, 4, 5, 6, 8)))
        expected = [orders[at] for at in (7, 3, 0)]
        for limit in (1, 2, 3, 500):
            found: list[Order] = []
            while page := await store.list_orders(limit, found[-1].order_id if found else None, statuses):
                assert len(page) == min(limit, len(expected) - len(found)), "it would look like the last one"
                found += page
            assert found == expected


async def test_of_a_type_that_is_not_known_they_are_not_due_and_not_claimed(database: Settings) -> None:
    async with Store(database) as store:
        owner = await store.start_lease_owner(3600)
        newer, known = await several(store, 3), await several(store, 2)
        await rewrite(database, OF_TYPE, *(order.order_id for order in newer))
        expired = await stored(store, type=LIMIT)
        await rewrite(database, "UPDATE orders SET type = 'iceberg', due_time = now()", expired.order_id)
        # They are older, and leave the room to those that can be executed.
        assert await store.due_orders(2, 0) == [order.order_id for order in known]
        assert await store.due_orders(99, 0) == [order.order_id for order in known]
        claims = await store.claim.many([(order.order_id, owner) for order in [*newer, expired, *known]])
        assert claims[:4] == [None] * 4
        assert all(isinstance(claim, Claim) for claim in claims[4:])
        assert await store.leased_orders(owner) == [order.order_id for order in known]
        # The newer version has them as they were.
        await rewrite(database, "UPDATE orders SET type = 'market'", newer[0].order_id)
        assert await exists(store, newer[0].order_id) == newer[0]
        assert await store.claim((newer[0].order_id, owner)) is not None


@pytest.mark.parametrize("change", [OF_TOKEN, "UPDATE orders SET terms = '7'"], ids=["token", "terms"])
async def test_a_claimed_one_is_put_down_for_others(change: str, database: Settings) -> None:
    async with Store(database) as store:
        owner, newer_worker = [await store.start_lease_owner(3600) for _ in range(2)]
        newer, known = await several(store, 2)
        await rewrite(database, change, newer.order_id)
        claims = await store.claim.many([(newer.order_id, owner), (known.order_id, owner)])
        assert claims[0] is None
        assert isinstance(claims[1], Claim)
        assert await store.leased_orders(owner) == [known.order_id]
        assert await store.due_orders(9, 0) == [], "not over and over"
        # Some seconds later.
        await rewrite(
            database,
            f"UPDATE orders SET due_time = now(), terms = NULL, output_mint = '{USDC.mint}'",
            newer.order_id,
        )
        assert await store.due_orders(9, 0) == [newer.order_id]
        claim = await store.claim((newer.order_id, newer_worker))
        assert claim is not None
        assert (claim.order.status, claim.order.spec) == (S.ROUTING, newer.spec)


async def test_one_that_could_not_be_put_down_is_found_and_put_down_later(
    database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store(database) as store:
        owner = await store.start_lease_owner(3600)
        order = await stored(store)
        await rewrite(database, OF_TOKEN, order.order_id)

        async def away(items: object) -> list[None]:
            raise StoreUnavailable("PostgreSQL is away")

        with monkeypatch.context() as patch:
            patch.setattr(store, "_postpone", away)
            assert await store.claim((order.order_id, owner)) is None
        # The sweep claims again what it holds and nobody executes.
        assert await store.leased_orders(owner) == [order.order_id]
        assert await store.claim((order.order_id, owner)) is None
        assert await store.leased_orders(owner) == []


@KINDS
async def test_what_rests_behind_them_is_found(change: str, database: Settings) -> None:
    if change == OF_TOKEN:
        # One of the group, with the token as the newer version knows it.
        change = "UPDATE orders SET side = side, terms = '{}'"
    async with Store(database) as store:
        orders = [await stored(store, type=LimitOrder(LIMIT.limit_price + at)) for at in range(9)]
        other = await stored(store, type=LIMIT, tokens=(SOL, USDT))
        await rewrite(database, change, *(orders[at].order_id for at in (1, 2, 3, 4, 7, 8)))
        groups = await store.resting_groups(PRICE)
        (group,) = [group for group in groups if group.output_token == USDC]
        assert [group for group in groups if group.output_token == USDT]
        expected = [orders[at] for at in (0, 5, 6)]
        for limit in (1, 2, 3, 64):
            found: list[Order] = []
            levels = [float("inf")]
            while page := await store.resting_orders(
                PRICE, group, levels, limit, found[-1] if found else None
            ):
                assert len(page) == min(limit, len(expected) - len(found)), "it would look like the last one"
                found += page
            assert found == expected
        assert await store.get(other.order_id) == other


async def test_a_group_of_a_token_that_is_not_known_is_left_out(database: Settings) -> None:
    async with Store(database) as store:
        newer, known = await stored(store, type=LIMIT), await stored(store, type=LIMIT, tokens=(SOL, USDT))
        await rewrite(database, OF_TOKEN, newer.order_id)
        (group,) = await store.resting_groups(PRICE)
        assert await store.resting_orders(PRICE, group, [float("inf")], 9) == [known]


async def test_watchers_have_the_events_before_the_one_that_cannot_be_read(database: Settings) -> None:
    async with Store(database) as store:
        newer, known = await several(store, 2, S.CONFIRMED)
        await rewrite(database, OF_DECISION, newer.order_id, only="status = 'building'")
        cursors = [(newer.order_id, 0), (newer.order_id, 1), (newer.order_id, 2), (newer.order_id, 3)]
        *found, of_known = await store.events_after.many([*cursors, (known.order_id, 0)])
        assert [[each.event.sequence for each in told] for told in found if isinstance(told, list)] == [
            [1, 2],
            [2],
            [4, 5],
        ]
        assert isinstance(found[2], OrderNotReadable)
        assert isinstance(of_known, list)
        assert [each.event.sequence for each in of_known] == [1, 2, 3, 4, 5]
        with pytest.raises(OrderNotReadable):
            await store.details(newer.order_id)


async def test_a_repeated_request_is_not_stored_anew(database: Settings) -> None:
    async with Store(database) as store:
        asked, other = new_order("mine", type=MARKET), new_order("another")
        first = await store.submit(asked)
        await store.submit(other)
        await rewrite(database, OF_TOKEN, first.order.order_id)
        again, known = await asyncio.gather(store.submit(asked), store.submit(other), return_exceptions=True)
        assert isinstance(again, OrderNotReadable)
        assert not isinstance(known, BaseException)
        assert known.deduplicated
        assert len(await store.list_orders(9)) == 1
