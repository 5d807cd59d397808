"""What is looked at without a hint: every order while Redis is away, and once more when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID, uuid4

import psycopg
import pytest

from engine.domain.errors import EngineError, OrderNotFound, SequenceAhead, StoreUnavailable
from engine.domain.order import OrderStatus
from engine.hints import Hints
from engine.settings import Settings
from engine.storage.migrate import read_news_key
from engine.storage.postgres import Store
from server.watches import Watches
from tests.integration.engine.storage.records import stored

Until = Callable[..., Awaitable[None]]

ORDER_IDS = {uuid4() for _ in range(5)}


class Looks:
    """Which orders each statement asked for."""

    def __init__(self, store: Store, failure: Exception | None = None) -> None:
        """The first one ends with the failure."""
        self.asked: list[set[UUID]] = []
        self._moved_orders = store.moved_orders
        self._failure = failure
        store.moved_orders = self._look  # type: ignore[method-assign]

    async def _look(self, cursors: Mapping[bytes, int]) -> list[bytes]:
        self.asked.append({UUID(bytes=key) for key in cursors})
        if self._failure is not None and len(self.asked) == 1:
            raise self._failure
        return await self._moved_orders(cursors)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it look often, at two orders of those that wait for their turn."""
    monkeypatch.setattr("server.watches._LOOKS", 2)
    monkeypatch.setattr("server.watches._LOOK_SECONDS", 0.05)


@asynccontextmanager
async def watching(settings: Settings, store: Store) -> AsyncIterator[None]:
    """A process where the orders are watched."""
    hints = Hints(settings, await read_news_key(settings))
    watches = Watches(store, hints)
    with watches.subscribe() as subscription:
        for order_id in ORDER_IDS:
            subscription.watch(order_id, 1)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(watches.run())
            yield
            running.cancel()
    await hints.aclose()


async def test_while_redis_is_away_a_look_is_at_every_order(
    settings: Settings, free_port: Callable[[], int], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.watches._ROUND", 3)
    away = replace(settings, redis_host="127.0.0.1", redis_port=free_port())
    async with Store(settings) as store, watching(away, store):
        looks = Looks(store)
        await until(lambda: len(looks.asked) >= 4)
    # Statements of so many, one after the other.
    for first, second in (looks.asked[:2], looks.asked[2:4]):
        assert (len(first), len(second)) == (3, 2)
        assert first | second == ORDER_IDS


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("PostgreSQL is away"), psycopg.errors.UndefinedTable("unexpected")]
)
async def test_a_look_at_every_order_that_fails_is_made_up_for(
    failure: Exception, settings: Settings, until: Until
) -> None:
    async with Store(settings) as store, watching(settings, store):
        looks = Looks(store, failure)
        # From then on some, in turn.
        await until(lambda: any(len(asked) == 2 for asked in looks.asked))
    assert looks.asked[:2] == [ORDER_IDS, ORDER_IDS]


async def test_who_has_seen_what_another_database_lacks_is_told_so(settings: Settings, until: Until) -> None:
    """As after a standby took over without the last commits: nothing would ever be told of it again."""
    hints = Hints(settings, await read_news_key(settings))
    ended: dict[str, EngineError | None] = {}
    async with (
        Store(settings) as store,
        await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as by_hand,
    ):
        behind, gone, stays = [await stored(store, OrderStatus.SUBMITTED) for _ in range(3)]
        watches = Watches(store, hints)
        with watches.subscribe() as subscription:

            async def read() -> None:
                async for _, over in subscription.events():
                    ended.update({each.order_id: each.error for each in over})

            for order in (behind, gone, stays):
                subscription.watch(order.order_id)
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(watches.run()), group.create_task(read())]
                await until(lambda: all(watch.cursor == 4 for watch in subscription._watched.values()))
                await by_hand.execute("SET session_replication_role = replica")
                await by_hand.execute("UPDATE orders SET sequence = 2 WHERE order_id = %s", [behind.order_id])
                await by_hand.execute("DELETE FROM orders WHERE order_id = %s", [gone.order_id])
                await by_hand.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await until(lambda: len(ended) == 2)
                assert isinstance(ended[str(behind.order_id)], SequenceAhead)
                assert isinstance(ended[str(gone.order_id)], OrderNotFound)
                assert list(subscription._watched) == [stays.order_id.bytes]
                for task in running:
                    task.cancel()
    await hints.aclose()
