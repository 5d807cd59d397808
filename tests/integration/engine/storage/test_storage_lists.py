"""Lists by type, by status and by both, page by page, against the plain reading of what they should hold."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from itertools import combinations
from uuid import UUID

import pytest

from engine.domain.lifecycle import Claimed
from engine.domain.order import Order, OrderStatus
from engine.domain.order_types import MARKET, ORDER_TYPES, OrderType, SniperOrder, TriggerKind
from engine.settings import Settings
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import LIMIT, UNMET, advance, exists, stored

S = OrderStatus
TYPES: tuple[OrderType, ...] = (MARKET, LIMIT, SniperOrder())
STATUSES: list[tuple[OrderStatus, ...]] = [
    (),
    *((status,) for status in S),
    (S.PENDING, S.ROUTING),
    (S.SUBMITTED, S.BUILDING),
    (S.CONFIRMED, S.FAILED),
    (S.FAILED, S.CANCELLED, S.EXPIRED),
    (S.PENDING, S.CONFIRMED, S.ROUTING, S.EXPIRED),
    tuple(S),
]


@pytest.fixture(scope="module")
async def store(shared_database: Settings) -> AsyncIterator[Store]:
    async with Store(shared_database) as store:
        yield store


@pytest.fixture(scope="module")
async def newest_first(store: Store) -> list[Order]:
    """Some orders of each type and status, mixed; of those that wait, some were fired, some wait again."""
    wanted = [(order_type, status) for order_type in TYPES for status in S for _ in range(3)]
    random.Random(1).shuffle(wanted)
    orders = [await stored(store, status, type=order_type) for order_type, status in wanted]
    waiting = [order for order in orders if order.spec.waits and order.status is S.PENDING]
    await store.fire(TriggerKind.PRICE, waiting[::3])
    for order in waiting[1::3]:
        await advance(store, order, Claimed(), UNMET)
    return [await exists(store, order.order_id) for order in reversed(orders)]


async def listed(
    store: Store, limit: int, statuses: tuple[OrderStatus, ...], types: tuple[str, ...]
) -> list[Order]:
    """Every page, one after the other."""
    found: list[Order] = []
    before: UUID | None = None
    while page := await store.list_orders(limit, before, statuses, types):
        assert len(page) <= limit
        found += page
        before = page[-1].order_id
    return found


@pytest.mark.parametrize(
    "types", [types for count in range(4) for types in combinations(ORDER_TYPES, count)], ids="-".join
)
async def test_a_list_holds_the_newest_orders_of_the_wanted_types_and_statuses(
    types: tuple[str, ...], store: Store, newest_first: list[Order]
) -> None:
    for statuses in STATUSES:
        expected = [
            order
            for order in newest_first
            if (order.status in statuses or not statuses) and (order.spec.type.name in types or not types)
        ]
        for limit in (1, 4, 500):
            assert await listed(store, limit, statuses, types) == expected, statuses


async def test_a_type_that_nobody_knows_has_no_orders(store: Store, newest_first: list[Order]) -> None:
    assert len(newest_first) == 72
    for statuses in STATUSES:
        assert await store.list_orders(9, None, statuses, ["iceberg"]) == []
