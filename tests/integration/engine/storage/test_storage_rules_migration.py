"""From CHECKs to rules asked once a statement: under a program that runs, and without reading a row."""

from __future__ import annotations

import psycopg
import pytest

from engine.domain.lifecycle import TRANSITIONS
from engine.domain.order import OrderStatus
from engine.settings import Settings
from engine.storage.migrate import migrate, read_migrations
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import advance, path_to, stored

S = OrderStatus

FILES = """
    SELECT relname, relfilenode FROM pg_class
    WHERE relkind IN ('r', 'i') AND relname ~ '^(orders|order_events|attempts)'
    ORDER BY relname"""
RULES = """
    SELECT conname FROM pg_constraint
    WHERE contype = 'c' AND conrelid IN ('orders'::regclass, 'order_events'::regclass)"""


async def test_a_program_that_runs_goes_on_and_no_table_is_rewritten(empty_database: Settings) -> None:
    known = read_migrations()
    # Of what came later, the column that today's statements write.
    (column,) = (one for one in known if one.name == "interruptions")
    await migrate(empty_database, [*known[:4], column])
    async with (
        Store(empty_database) as store,
        await psycopg.AsyncConnection.connect(empty_database.database, autocommit=True) as by_hand,
    ):
        files = await (await by_hand.execute(FILES)).fetchall()
        orders = {
            status: await stored(store, status) for status in S if status not in ("cancelled", "expired")
        }
        rules = {name for (name,) in await (await by_hand.execute(RULES)).fetchall()}
        assert await migrate(empty_database) == [one for one in known[4:] if one is not column]

        assert await (await by_hand.execute(FILES)).fetchall() == files
        for status, order in orders.items():
            if TRANSITIONS[status]:
                facts = path_to(S.CONFIRMED, order.order_id)[order.sequence - 1 :]
                assert (await advance(store, order, *facts)).status is S.CONFIRMED
        # Every rule that there was is still known by its name.
        assert not await (await by_hand.execute(RULES)).fetchall()
        texts = await (
            await by_hand.execute("SELECT prosrc FROM pg_proc WHERE proname ~ '^check_'")
        ).fetchall()
        assert [rule for rule in rules if not any(f"'{rule}: " in text for (text,) in texts)] == []
        with pytest.raises(psycopg.errors.CheckViolation, match="closed_orders_are_immutable"):
            await by_hand.execute("UPDATE orders SET due_time = now() WHERE status = 'confirmed'")
