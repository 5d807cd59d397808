"""Whose turn it is to follow a kind of trigger, in the real PostgreSQL."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from engine.domain.order_types import TriggerKind
from engine.settings import Settings
from engine.storage.postgres import Store

PRICE, LIQUIDITY = TriggerKind.PRICE, TriggerKind.LIQUIDITY


async def let_expire(settings: Settings) -> None:
    async with await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as connection:
        await connection.execute("UPDATE monitors SET expire_time = now() - interval '1 ms'")


@pytest.mark.parametrize("kind", TriggerKind)
async def test_there_is_a_row_for_each_kind_and_whoever_comes_first_takes_it(
    kind: TriggerKind, database: Settings
) -> None:
    async with Store(database) as store:
        assert await store.take_monitor((kind, await store.start_lease_owner(3600), 3600))


async def test_one_at_a_time_follows_a_kind_of_trigger(database: Settings) -> None:
    async with Store(database) as store:
        owner, rival = [await store.start_lease_owner(3600) for _ in range(2)]
        assert await store.take_monitor((PRICE, owner, 3600))
        assert not await store.take_monitor((PRICE, rival, 3600))
        assert await store.take_monitor((PRICE, owner, 3600)), "it goes on with it"
        assert await store.take_monitor((LIQUIDITY, rival, 3600)), "the other kind is another matter"


async def test_who_leaves_is_followed_at_once(database: Settings) -> None:
    async with Store(database) as store:
        owner, rival = [await store.start_lease_owner(3600) for _ in range(2)]
        assert await store.take_monitor((PRICE, owner, 3600))
        await store.leave_monitor(PRICE, rival)
        assert not await store.take_monitor((PRICE, rival, 3600)), "only its own can be left"
        await store.leave_monitor(PRICE, owner)
        assert await store.take_monitor((PRICE, rival, 3600))
        assert not await store.take_monitor((PRICE, owner, 3600))


async def test_who_died_is_followed_as_soon_as_that_is_known(database: Settings) -> None:
    """Its connection held the advisory lock: nobody waits for its row, here of an hour, to grow old."""
    async with Store(database) as other:
        rival = await other.start_lease_owner(3600)
        async with Store(database) as one:
            assert await one.take_monitor((PRICE, await one.start_lease_owner(3600), 3600))
            assert not await other.take_monitor((PRICE, rival, 3600))
        async with asyncio.timeout(10):
            while await other.free_dead_owners(rival) == 0:
                pass  # PostgreSQL needs a moment to notice the end of a connection
        assert await other.take_monitor((PRICE, rival, 3600))


async def test_who_says_nothing_is_followed_once_its_row_is_old(database: Settings) -> None:
    async with Store(database) as store:
        owner, rival = [await store.start_lease_owner(3600) for _ in range(2)]
        assert await store.take_monitor((PRICE, owner, 3600))
        await let_expire(database)
        assert await store.take_monitor((PRICE, rival, 3600))
        assert not await store.take_monitor((PRICE, owner, 3600)), (
            "it wakes up and finds that it is not its turn"
        )


async def test_of_those_that_race_one_gets_it(database: Settings) -> None:
    async with Store(database) as one, Store(database) as other, Store(database) as third:
        stores = (one, other, third)
        owners = [await store.start_lease_owner(3600) for store in stores]
        for _ in range(20):
            took = await asyncio.gather(
                *(
                    store.take_monitor((PRICE, owner, 3600))
                    for store, owner in zip(stores, owners, strict=True)
                )
            )
            assert took.count(None) == 2
            await let_expire(database)
