"""How much is taken in: what is to be executed and what waits for its trigger are counted apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest
from prometheus_client import REGISTRY

import server.admission
from engine.domain.order import OrderStatus
from engine.domain.order_types import SniperOrder
from engine.settings import Settings
from engine.storage.postgres import Backlog, Store
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


def take(admission: Admission, kinds: str) -> str:
    """Ask for orders, "m" for one to be executed now and "r" for one that rests; return those that are taken.

    In the place of one that is refused is "M" or "R", by the limit that it is refused for.
    """
    with admission.admit([kind == "r" for kind in kinds]) as refusals:
        return "".join(
            kind if why is None else "R" if "wait for their trigger" in str(why) else "M"
            for kind, why in zip(kinds, refusals, strict=True)
        )


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
            assert take(admission, "m") == "M"
            assert take(admission, "r") == "r"
            assert take(admission, "r") == "R"
            with admission.admit([False, True]) as refusals:
                assert [str(why) for why in refusals] == [
                    "2 orders are open, which is as many as are taken; come back in a moment",
                    "4 orders wait for their trigger, which is as many as are kept",
                ]
        async with counting(store, until, 3, 3) as admission:
            assert take(admission, "rm") == "Rm"
            assert take(admission, "m") == "M"


async def test_it_tells_for_how_long_the_oldest_order_is_due(database: Settings, until: Until) -> None:
    def told() -> float | None:
        return REGISTRY.get_sample_value("order_engine_oldest_due_seconds")

    async with (
        Store(database) as store,
        await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand,
    ):
        async with counting(store, until, 9, 9):
            assert told() == 0.0
        await stored(store, type=LIMIT)
        oldest = await stored(store)
        await stored(store)
        await by_hand.execute(
            "UPDATE orders SET due_time = now() - interval '1 h' WHERE order_id = %s", [oldest.order_id]
        )
        async with counting(store, until, 9, 9):
            assert 3600 <= (told() or 0.0) < 3700


async def test_of_a_batch_the_first_of_each_kind_are_taken(database: Settings, until: Until) -> None:
    async with Store(database) as store, counting(store, until, 3, 2) as admission:
        assert take(admission, "mrm") == "mrm"
        assert take(admission, "rmrmm") == "rmRMM"
        assert take(admission, "mr") == "MR"


async def test_what_is_refused_is_not_counted(database: Settings, until: Until) -> None:
    async with Store(database) as store, counting(store, until, 3, 3) as admission:
        assert take(admission, "rrrrmm") == "rrrRmm"
        assert take(admission, "rrr") == "RRR"
        assert take(admission, "m") == "m"


@pytest.mark.parametrize("admitted_first", [True, False])
@pytest.mark.parametrize("rests", [False, True])
async def test_an_order_that_is_being_stored_while_the_record_counts_takes_room(
    database: Settings, until: Until, rests: bool, admitted_first: bool
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class SlowStore(Store):
        """A record that has counted, and whose answer takes its time."""

        async def backlog(self, limit: int) -> Backlog:
            backlog = await super().backlog(limit)
            if not rests:
                asked.set()
                await answer.wait()
            return backlog

        async def resting_orders_count(self) -> dict[str, int]:
            counts = await super().resting_orders_count()
            asked.set()
            await answer.wait()
            return counts

    async with SlowStore(database) as store:
        admission = Admission(store, 1, 1)
        counting = asyncio.create_task(admission.run()) if not admitted_first else None
        if counting:
            await asked.wait()
        with admission.admit([rests]):
            counting = counting or asyncio.create_task(admission.run())
            await asked.wait()
            await (stored(store, type=LIMIT) if rests else stored(store))
        answer.set()
        await until(lambda: admission.store_up)
        assert take(admission, "r" if rests else "m") in "RM"
        counting.cancel()


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
