"""What monitors read: the groups that have orders which rest, and their orders from the lowest level on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby

import pytest

from engine.domain.lifecycle import Claimed
from engine.domain.order import Order, OrderStatus, Side
from engine.domain.order_types import LimitOrder, OrderType, SniperOrder, TriggerKind
from engine.domain.tokens import SOL, USDC, Token
from engine.settings import Settings
from engine.storage.postgres import RestingGroup, Store
from tests.integration.engine.storage.records import LIMIT, UNMET, advance, new_order, stored

S = OrderStatus
PRICE, LIQUIDITY = TriggerKind.PRICE, TriggerKind.LIQUIDITY
MOO = Token("HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", "HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", 7)


@pytest.fixture
async def store(database: Settings) -> AsyncIterator[Store]:
    async with Store(database) as store:
        yield store


def limit(price: str) -> LimitOrder:
    return LimitOrder(Decimal(price))


def level(order: Order) -> float:
    trigger = order.spec.type.trigger(order.spec)
    assert trigger is not None
    return trigger.level


async def groups(store: Store, kind: TriggerKind) -> list[RestingGroup]:
    """Every group there is; fails if one is named twice."""
    found = await store.resting_groups(kind)
    assert len({(g.input_token, g.output_token, g.side, g.size) for g in found}) == len(found)
    return found


async def all_pages(store: Store, kind: TriggerKind, group: RestingGroup, size: int) -> list[Order]:
    orders: list[Order] = []
    while True:
        page = await store.resting_orders(kind, group, [float("inf")], size, orders[-1] if orders else None)
        orders += page
        if len(page) < size:
            return orders


async def test_where_nothing_rests_there_is_no_group(store: Store) -> None:
    await stored(store)
    await stored(store, S.CANCELLED, type=LIMIT)
    await stored(store, S.ROUTING, type=LIMIT)
    for kind in TriggerKind:
        assert await store.resting_groups(kind) == []


async def test_a_group_is_of_one_kind_pair_side_and_size_and_knows_its_lowest_level(store: Store) -> None:
    asked: list[tuple[OrderType, tuple[Token, Token], Side, int]] = [
        (order_type, tokens, side, amount)
        for tokens in ((SOL, USDC), (USDC, SOL), (SOL, MOO), (MOO, SOL))
        for side in Side
        for amount in (10**6, 10**6 + 1, 2**21 - 1, 2**21, 2**40)
        for order_type in (
            limit("3"),
            limit("2.5"),
            SniperOrder(5),
            SniperOrder(),
            SniperOrder(7, Decimal(2)),
        )
    ]
    orders = [
        (await store.submit(new_order(type=order_type, tokens=tokens, side=side, amount=amount))).order
        for order_type, tokens, side, amount in asked
    ]

    def place(order: Order) -> tuple[str, str, str, int]:
        spec = order.spec
        return spec.input_token.mint, spec.output_token.mint, spec.side.value, spec.amount.bit_length() - 1

    for kind in TriggerKind:
        of_kind = [order for order in orders if kind_of(order) is kind]
        found = await groups(store, kind)
        expected = {
            at: sorted(together, key=lambda order: (level(order), order.order_id))
            for at, together in groupby(sorted(of_kind, key=place), key=place)
        }
        assert {
            (g.input_token.mint, g.output_token.mint, g.side.value, g.size): g.lowest_level for g in found
        } == {at: level(together[0]) for at, together in expected.items()}
        for group in found:
            at = (group.input_token.mint, group.output_token.mint, group.side.value, group.size)
            # Sizes of a pair and side stand together, the smallest first: one bound may do for all of them.
            assert group.least_amount == 2**group.size
            assert await all_pages(store, kind, group, 2) == expected[at]
        together = [(g.input_token, g.output_token, g.side) for g in found]
        assert len([1 for _ in groupby(together)]) == len(set(together))
        for _, of_pair in groupby(found, key=lambda g: (g.input_token, g.output_token, g.side)):
            sizes = [group.size for group in of_pair]
            assert sizes == sorted(sizes)


def kind_of(order: Order) -> TriggerKind:
    trigger = order.spec.type.trigger(order.spec)
    assert trigger is not None
    return trigger.kind


async def test_orders_come_by_level_and_of_one_level_the_oldest_first(store: Store) -> None:
    prices = ["2", "1", "3", "1", "1", "2"]
    orders = [(await store.submit(new_order(type=limit(price)))).order for price in prices]
    (group,) = await groups(store, PRICE)
    assert group.lowest_level == level(orders[1])
    expected = [orders[at] for at in (1, 3, 4, 0, 5, 2)]
    for size in (1, 2, 3, 6, 7):
        assert await all_pages(store, PRICE, group, size) == expected


async def test_only_orders_up_to_the_level_are_read(store: Store) -> None:
    orders = [(await store.submit(new_order(type=limit(price)))).order for price in ("1", "2", "3")]
    (group,) = await groups(store, PRICE)
    for highest, order in enumerate(orders, start=1):
        assert await store.resting_orders(PRICE, group, [level(order)], 9) == orders[:highest]
    assert await store.resting_orders(PRICE, group, [level(orders[0]) * 0.999], 9) == []
    assert await store.resting_orders(PRICE, group, [-1.0], 9) == []


@pytest.mark.parametrize("size", [0, 20, 63])
async def test_each_part_of_a_group_s_amounts_has_a_level_of_its_own(size: int, store: Store) -> None:
    least = 1 << size
    amounts = sorted({least + least * part // 8 for part in range(8)} | {2 * least - 1})
    asked = [
        new_order(type=SniperOrder(10**6 + number), amount=amount) for number, amount in enumerate(amounts)
    ]
    orders = [(await store.submit(each)).order for each in asked]
    (group,) = await groups(store, LIQUIDITY)
    for levels in ([0.0] * 4, [1e9, 0.0, 0.0, 0.0], [0.0, 1e9, 0.0, 1e9], [1e6 + 1, 0.0, 1e6 + 4, 1e9]):
        expected = [
            order
            for order in orders
            if level(order) <= levels[(order.spec.amount - least) * len(levels) // least]
        ]
        assert await store.resting_orders(LIQUIDITY, group, levels, 99) == expected


async def test_a_page_goes_on_where_the_one_before_ended_though_its_orders_are_gone(store: Store) -> None:
    orders = [(await store.submit(new_order(type=limit("1")))).order for _ in range(5)]
    (group,) = await groups(store, PRICE)
    first = await store.resting_orders(PRICE, group, [1.0], 2)
    await store.fire(PRICE, first)
    assert await store.resting_orders(PRICE, group, [1.0], 9, first[-1]) == orders[2:]


async def test_orders_that_wait_for_another_kind_of_trigger_are_not_among_them(store: Store) -> None:
    sniper = await stored(store, type=SniperOrder())
    priced = await stored(store, type=SniperOrder(None, Decimal(1)))
    for kind, order in ((LIQUIDITY, sniper), (PRICE, priced)):
        (group,) = await groups(store, kind)
        assert await all_pages(store, kind, group, 9) == [order]


async def test_what_was_fired_or_cancelled_leaves_its_group_and_what_waits_again_returns(
    store: Store,
) -> None:
    order, other = await stored(store, type=limit("1")), await stored(store, type=limit("2"))
    await store.fire(PRICE, [order])
    (group,) = await groups(store, PRICE)
    assert group.lowest_level == level(other)
    assert await all_pages(store, PRICE, group, 9) == [other]
    again = await advance(store, order, Claimed(), UNMET)
    (group,) = await groups(store, PRICE)
    assert group.lowest_level == level(order)
    first, second = await all_pages(store, PRICE, group, 9)
    assert first == replace(again, update_time=first.update_time)
    assert second == other


async def test_an_order_that_expired_and_was_not_closed_yet_is_read_and_does_not_fire(store: Store) -> None:
    order = await stored(store, type=LIMIT, expire_time=datetime.now(UTC) - timedelta(seconds=1))
    (group,) = await groups(store, PRICE)
    assert await all_pages(store, PRICE, group, 9) == [order]
    assert await store.fire(PRICE, [order]) == []
