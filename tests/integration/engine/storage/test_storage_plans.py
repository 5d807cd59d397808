"""How PostgreSQL runs the statements: along indexes, however large the tables have become."""

from __future__ import annotations

import asyncio
import re

import pytest

from engine.domain.order import OrderStatus
from engine.settings import Settings
from engine.storage.connection import Connection
from engine.storage.postgres import QUERIES, Store
from tests.integration.engine.storage.plans import plan_of
from tests.integration.engine.storage.records import new_order, path_to, transitions

S = OrderStatus

TABLES = ("orders", "order_events", "attempts")


async def fill(settings: Settings) -> None:
    """Mostly closed orders, and some open ones, as a record looks after a while."""
    async with Store(settings) as store:
        new = [
            (await asyncio.gather(*(store.submit(new_order(f"r{batch}-{n}")) for n in range(150))))
            for batch in range(3)
        ]
        orders = [submitted.order for batch in new for submitted in batch]
        for number, order in enumerate(orders):
            if number % 50 == 0:
                continue
            status = S.CONFIRMED if number % 3 else S.SUBMITTED if number % 30 == 3 else S.FAILED
            facts = path_to(status, order.order_id)
            # Record and proof are two statements, always.
            submitted = store.advance(transitions(order, *facts[:3]))
            if len(facts) > 3:
                moved = await submitted
                assert moved is not None
                await store.advance(transitions(moved, *facts[3:]))
            elif number % 10 == 0:
                await submitted
        await store.advance.drain()
    connection = Connection(settings.database, "test")
    await connection.run("ANALYZE", {})
    await connection.close()


@pytest.fixture(scope="module")
async def filled(shared_database: Settings) -> Settings:
    await fill(shared_database)
    return shared_database


@pytest.mark.parametrize("name", QUERIES)
async def test_no_statement_reads_a_whole_table(name: str, filled: Settings) -> None:
    connection = Connection(filled.database, "test")
    plan = await plan_of(connection, name)
    await connection.close()
    for table in TABLES:
        assert f"Seq Scan on {table}" not in plan, plan
    # It would look cheap on an empty database, and the plan is kept while the tables grow.
    assert "Hash Join" not in plan, plan
    assert "Merge Join" not in plan, plan


async def test_no_statement_plans_to_read_a_whole_table_while_there_is_nothing_in_it(
    database: Settings,
) -> None:
    connection = Connection(database.database, "test")
    for name in QUERIES:
        plan = await plan_of(connection, name)
        for table in TABLES:
            assert f"Seq Scan on {table}" not in plan, (name, plan)
    await connection.close()


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("due_orders", "orders_due"),
        ("leased_orders", "orders_due"),
        ("hasten_orders", "orders_due"),
        ("backlog", "orders_due"),
        ("list_open_orders", "orders_due"),
        ("list_closed_orders", "orders_closed"),
        ("list_resting_orders", "orders_resting_of_type"),
        ("resting_orders_count", "orders_resting_of_type"),
        ("resting_groups", "orders_resting"),
        ("resting_orders", "orders_resting"),
        ("due_orders", "orders_expiring"),
        ("fire_orders", "orders_pkey"),
        ("list_orders", "orders_pkey"),
        ("orders_by_request_id", "orders_request_id_key"),
        ("claim_orders", "orders_pkey"),
        ("advance_orders", "orders_pkey"),
        ("events_after", "order_events_pkey"),
        ("get_orders", "attempts_one_open_or_landed"),
    ],
)
async def test_a_statement_goes_by_the_index_that_was_made_for_it(
    name: str, index: str, filled: Settings
) -> None:
    connection = Connection(filled.database, "test")
    plan = await plan_of(connection, name)
    await connection.close()
    assert re.search(rf"(using|on) {index}\b", plan), plan


async def test_a_list_of_some_orders_does_not_walk_past_all_the_others(
    filled: Settings, database: Settings
) -> None:
    for settings in (filled, database):
        connection = Connection(settings.database, "test")
        for name in ("list_open_orders", "list_closed_orders", "due_orders", "backlog"):
            plan = await plan_of(connection, name)
            assert "orders_pkey" not in plan, plan
        await connection.close()
