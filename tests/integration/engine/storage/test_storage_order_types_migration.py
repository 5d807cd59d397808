"""From a record of market orders alone to one of every type: nothing is lost, and open orders go on."""

from __future__ import annotations

from typing import Final

import psycopg

from engine.domain.lifecycle import CLOSED, TRANSITIONS, Cancelled
from engine.domain.order import OrderStatus
from engine.domain.order_types import MARKET
from engine.settings import Settings
from engine.storage.migrate import migrate, read_migrations
from engine.storage.postgres import NewOrder, Store
from tests.integration.engine.storage.records import (
    LIMIT,
    advance,
    exists,
    new_order,
    path_to,
    stored,
)

S = OrderStatus

STORE: Final = """
WITH life AS (
    SELECT %(path)s::order_status[] AS statuses, cardinality(%(path)s::text[]) AS length
), stored AS (
    INSERT INTO orders (order_id, request_id, request_fingerprint, type, side, amount, input_mint,
        output_mint, status, sequence, due_time)
    SELECT %(order_id)s, %(request_id)s, %(fingerprint)s, 'market', 'sell', %(amount)s, %(input_mint)s,
        %(output_mint)s, statuses[length], length, now() - interval '1 s'
    FROM life
    RETURNING order_id
), told AS (
    INSERT INTO order_events (order_id, sequence, previous_status, status, attempt, failure_reason)
    SELECT order_id, n, statuses[n - 1], statuses[n], 1,
        CASE WHEN statuses[n] = 'failed' THEN 'internal'::failure_reason END
    FROM stored, life, generate_series(1, length) AS n
)
INSERT INTO attempts (order_id, attempt, tx_hash, raw_transaction, last_valid_block_height, outcome)
SELECT order_id, 1, order_id::text, 'bytes', 1,
    CASE WHEN 'confirmed' = ANY (statuses) THEN 'landed'::attempt_outcome END
FROM stored, life
WHERE 'submitted' = ANY (statuses)
"""
"""An order as the first migration alone can hold it, by hand: the program writes the present schema."""

KEPT: Final = """
SELECT o.order_id::text, o.request_id, o.request_fingerprint, o.type, o.side::text, o.amount, o.input_mint,
    o.output_mint, o.slippage_bps, o.expire_time, o.status::text, o.sequence, o.attempt,
    o.closed_status::text, o.due_time, o.lease_owner, o.create_time, o.update_time, e.*, a.*
FROM orders o
JOIN order_events e USING (order_id)
LEFT JOIN attempts a USING (order_id)
ORDER BY o.order_id, e.sequence
"""


async def store_by_hand(connection: psycopg.AsyncConnection, order: NewOrder, status: OrderStatus) -> None:
    path, at = ["pending"], [S.ROUTING, S.BUILDING, S.SUBMITTED, S.CONFIRMED]
    path += [each.value for each in at[: at.index(status) + 1]] if status in at else []
    path += [status.value] if status in CLOSED - {S.CONFIRMED} else []
    await connection.execute(
        STORE.encode(),
        {
            "order_id": order.order_id,
            "request_id": order.request_id,
            "fingerprint": order.fingerprint,
            "amount": order.spec.amount,
            "input_mint": order.spec.input_token.mint,
            "output_mint": order.spec.output_token.mint,
            "path": path,
        },
    )


async def test_market_orders_from_before_there_were_other_types_are_kept_and_go_on(
    empty_database: Settings,
) -> None:
    known = read_migrations()
    await migrate(empty_database, known[:1])
    orders = {status: new_order(f"asked for {status}") for status in S}
    async with await psycopg.AsyncConnection.connect(empty_database.database, autocommit=True) as by_hand:
        for status, order in orders.items():
            await store_by_hand(by_hand, order, status)
        before = await (await by_hand.execute(KEPT.encode())).fetchall()
        assert await migrate(empty_database, known[:2]) == known[1:2]
        assert await (await by_hand.execute(KEPT.encode())).fetchall() == before
        await migrate(empty_database)

    async with Store(empty_database) as store:
        for status, order in orders.items():
            found = await exists(store, order.order_id)
            assert (found.status, found.spec, found.spec.type) == (status, order.spec, MARKET)
            assert (await store.submit(order)).deduplicated
            assert [each.order_id for each in await store.list_orders(9, None, [status], ["market"])] == [
                order.order_id
            ]
        still_open = [orders[status] for status in S if TRANSITIONS[status]]
        assert (await store.backlog(99)).count == len(still_open)
        assert await store.resting_orders_count() == {}
        owner = await store.start_lease_owner(3600)
        assert sorted(await store.due_orders(99, 0.0)) == [order.order_id for order in still_open]
        for order in still_open:
            claim = await store.claim((order.order_id, owner))
            assert claim is not None
            facts = path_to(S.CONFIRMED, order.order_id)[claim.order.sequence - 1 :]
            closed = await advance(store, claim.order, *facts)
            assert (closed.status, closed.sequence) == (S.CONFIRMED, 5)
        waiting = await stored(store, type=LIMIT)
        assert (await advance(store, waiting, Cancelled())).status is S.CANCELLED


async def test_no_row_from_before_is_read_to_check_it(empty_database: Settings) -> None:
    """While constraints are added nobody else may read or write their table, however many orders it has."""
    await migrate(empty_database, read_migrations()[:2])
    async with await psycopg.AsyncConnection.connect(empty_database.database) as connection:
        rows = await (
            await connection.execute("SELECT conname FROM pg_constraint WHERE NOT convalidated")
        ).fetchall()
    assert {name for (name,) in rows} == {"triggers_are_whole", "resting_orders_wait", "transition_is_legal"}
