"""Where the record is kept: what tells that it was put back, and what it knows of transactions."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from engine.domain.order import OrderStatus
from engine.domain.order_types import TriggerKind
from engine.settings import Settings
from engine.storage.postgres import Known, Store
from tests.integration.engine.storage.records import new_order, path_to, stored

S = OrderStatus
OTHER = "9xQeWvG816bUx9EPjHmaT23yvVM2ZWbrrpZb9PusVFin"


async def test_a_record_says_where_it_is_kept_once_it_was_told(database: Settings) -> None:
    async with Store(database) as store:
        place = await store.place()
        assert place.recorded is None
        for told in (place.here, place.here, "elsewhere"):
            await store.set_place(told, OTHER)
            found = await store.place()
            assert found == replace(place, recorded=told, now=found.now, wallets=(OTHER,))
            assert found.now > place.now
        await store.set_place("elsewhere", "1" * 32)
        assert (await store.place()).wallets == ("1" * 32, OTHER)
    # The next connections find themselves in the same one.
    async with Store(database) as store:
        assert (await store.place()).here == place.here


async def test_each_database_and_each_table_is_another_place(database: Settings) -> None:
    async with (
        Store(database) as store,
        await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand,
    ):
        here = (await store.place()).here
        system, timeline, oid, table = here.split("/")
        rows = await by_hand.execute(
            "SELECT system_identifier::text, oid::text FROM pg_control_system(), pg_database"
            " WHERE datname = current_database()"
        )
        assert await rows.fetchone() == (system, oid)
        # As by a backup of tables that is put back into the database it is of.
        await by_hand.execute("ALTER TABLE orders RENAME TO orders_before")
        await by_hand.execute("CREATE TABLE orders (LIKE orders_before INCLUDING ALL)")
    async with Store(database) as store:
        there = (await store.place()).here.split("/")
        assert there[:3] == [system, timeline, oid]
        assert there[3] != table


async def test_the_record_was_kept_when_a_monitor_last_said_that_it_lives(database: Settings) -> None:
    async with Store(database) as store:
        begin = (await store.place()).last_kept
        owner = await store.start_lease_owner(60)
        await store.renew_lease(owner, 60)
        assert (await store.place()).last_kept == begin
        assert await store.take_monitor((TriggerKind.PRICE, owner, 1.2))
        kept = (await store.place()).last_kept
        assert timedelta(0) < kept - store.now() < timedelta(seconds=1.3)
        assert await store.take_monitor((TriggerKind.LIQUIDITY, owner, 0.0))
        assert (await store.place()).last_kept == kept


async def test_whether_any_order_is_open_is_known(database: Settings) -> None:
    async with Store(database) as store:
        for status in (S.CONFIRMED, S.FAILED, S.CANCELLED, S.EXPIRED):
            await stored(store, status)
        assert not (await store.place()).has_open_orders
        await stored(store, S.SUBMITTED)
        assert (await store.place()).has_open_orders


async def test_without_the_right_to_ask_it_is_where_it_was(database: Settings) -> None:
    role = f"plain_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(database.database, autocommit=True) as by_hand:
        name = sql.Identifier(role)
        await by_hand.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'plain'").format(name))
        try:
            await by_hand.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(name))
            await by_hand.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
            async with Store(replace(database, db_username=role, db_password="plain")) as store:
                assert (await store.place()).here == ""
                await store.set_place("there", OTHER)
                assert (await store.place()).here == "there"
        finally:
            await by_hand.execute(sql.SQL("DROP OWNED BY {}").format(name))
            await by_hand.execute(sql.SQL("DROP ROLE {}").format(name))


async def test_of_transactions_that_name_orders_it_is_known_what_is_on_record(database: Settings) -> None:
    async with Store(database) as store:
        closed, out, waits = [
            (await stored(store, status)).order_id for status in (S.CONFIRMED, S.SUBMITTED, S.PENDING)
        ]

        def hash_of(order_id: UUID) -> str:
            return path_to(S.SUBMITTED, order_id)[-1].attempt.tx_hash  # type: ignore[union-attr]

        nobody = new_order().order_id
        assert await store.known_transactions(
            [
                (closed, hash_of(closed)),
                (out, hash_of(out)),
                (out, hash_of(closed)),
                (waits, "landed"),
                (nobody, "landed"),
                (closed, "landed"),
            ]
        ) == [
            Known(is_open=False, on_record=True),
            Known(is_open=True, on_record=True),
            Known(is_open=True, on_record=False),
            Known(is_open=True, on_record=False),
            Known(is_open=None, on_record=False),
            Known(is_open=False, on_record=False),
        ]
        assert await store.known_transactions([]) == []
