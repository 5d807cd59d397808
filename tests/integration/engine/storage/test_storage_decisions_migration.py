"""Routing decisions from when they were jsonb: they are read as they were, beside those that are text."""

from __future__ import annotations

import msgspec
import psycopg

from engine.domain.lifecycle import Claimed
from engine.domain.order import OrderStatus
from engine.settings import Settings
from engine.storage.migrate import migrate, read_migrations
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import (
    advance,
    decisions_of,
    exists,
    new_order,
    path_to,
    stored,
)
from tests.integration.engine.storage.test_storage_order_types_migration import store_by_hand
from tests.serving import decision

S = OrderStatus


async def test_decisions_from_before_are_read_as_they_were(empty_database: Settings) -> None:
    known = read_migrations()
    await migrate(empty_database, known[:3])
    building, closed = new_order(), new_order()
    async with await psycopg.AsyncConnection.connect(empty_database.database, autocommit=True) as by_hand:
        await store_by_hand(by_hand, building, S.BUILDING)
        await store_by_hand(by_hand, closed, S.CONFIRMED)
        await by_hand.execute("ALTER TABLE order_events DISABLE TRIGGER USER")
        await by_hand.execute(
            "UPDATE order_events SET decision = %s WHERE status = 'building'",
            [msgspec.json.encode(decision()).decode()],
        )
        await by_hand.execute("ALTER TABLE order_events ENABLE TRIGGER USER")
    assert await migrate(empty_database) == known[3:]

    async with Store(empty_database) as store:
        found = await exists(store, building.order_id)
        assert found.route == decision().route
        owner = await store.start_lease_owner(3600)
        claim = await store.claim((building.order_id, owner))
        assert claim is not None
        assert claim.order.route == decision().route
        for order in (building, closed):
            assert await decisions_of(store, order.order_id) == [decision()]
            events = await store.events_after((order.order_id, 0))
            routes = [watched.route for watched in events if watched.event.status is S.BUILDING]
            assert routes == [decision().route]
        # It goes on as any other, and what it decides next is beside it.
        again = await stored(store)
        moved = await advance(store, again, Claimed(), *path_to(S.SUBMITTED, again.order_id)[1:])
        assert moved.status is S.SUBMITTED
        assert len(await decisions_of(store, again.order_id)) == 1
