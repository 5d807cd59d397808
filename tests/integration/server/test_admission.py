"""How much is taken in: what is to be executed and what waits for its trigger are counted apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest

import server.admission
from engine.domain.errors import TooManyOrders
from engine.domain.order import OrderStatus
from engine.domain.order_types import SniperOrder
from engine.settings import Settings
from engine.storage.postgres import Store
from server.admission import Admission
from tests.integration.engine.storage.records import LIMIT, stored

Until = Callable[..., Awaitable[None]]


@asynccontextmanager
async def counting(store: Store, until: Until, max_open: int, max_resting: int) -> AsyncIterator[Admission]:
    """An admission that has counted what there is."""
    admission = Admission(store, max_open, max_resting)
    task = asyncio.create_task(admission.run())
    try:
        await until(lambda: admission.store_up)
        yield admission
    finally:
        task.cancel()


async def test_orders_that_rest_take_no_room_of_those_to_be_executed_nor_the_other_way_round(
    database: Settings, until: Until
) -> None:
    async with Store(database) as store:
        for _ in range(2):
            await stored(store)
        for order_type in (LIMIT, LIMIT, SniperOrder()):
            await stored(store, type=order_type)
        await stored(store, OrderStatus.CANCELLED, type=LIMIT)
        async with counting(store, until, 2, 4) as admission:
            with pytest.raises(TooManyOrders, match="2 orders are open"):
                admission.admit(1)
            admission.admit(1, resting_count=1)
            with pytest.raises(TooManyOrders, match="4 orders wait for their trigger"):
                admission.admit(1, resting_count=1)
        async with counting(store, until, 3, 3) as admission:
            with pytest.raises(TooManyOrders, match="3 orders wait for their trigger"):
                admission.admit(2, resting_count=1)
            admission.admit(1)
            with pytest.raises(TooManyOrders, match="3 orders are open"):
                admission.admit(1)


async def test_what_is_refused_is_not_counted(database: Settings, until: Until) -> None:
    async with Store(database) as store, counting(store, until, 3, 3) as admission:
        for _ in range(2):
            with pytest.raises(TooManyOrders):
                admission.admit(6, resting_count=4)
            with pytest.raises(TooManyOrders):
                admission.admit(6, resting_count=2)
        admission.admit(6, resting_count=3)


async def test_counting_goes_on_after_an_error_that_nobody_expected(
    database: Settings, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Store(database) as store,
        counting(store, until, 3, 3) as admission,
        await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand,
    ):
        await by_hand.execute("ALTER TABLE orders RENAME TO elsewhere")
        await until(lambda: not admission.store_up)
        await by_hand.execute("ALTER TABLE elsewhere RENAME TO orders")
        await until(lambda: admission.store_up)
    assert caplog.text.count("open orders cannot be counted") == 1


async def test_a_record_that_leaves_a_question_unanswered_counts_as_away(
    database: Settings, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.admission, "_SILENT_SECONDS", 1.5)
    async with (
        Store(database) as store,
        counting(store, until, 3, 3) as admission,
        await psycopg.AsyncConnection.connect(database.database) as by_hand,
    ):
        await by_hand.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        await until(lambda: not admission.store_up)
        assert "cannot be counted" not in caplog.text
        await by_hand.rollback()
        await until(lambda: admission.store_up)
