"""What must never happen, asked of PostgreSQL by hand: it refuses, whatever the program does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest

from engine.domain import order as domain
from engine.domain.lifecycle import CLOSED, TRANSITIONS
from engine.domain.order import Order, OrderStatus
from engine.domain.order_types import MARKET, OrderType, TriggerKind
from engine.settings import Settings
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import LIMIT, stored

S = OrderStatus

MOVE = """
WITH moved AS (
    UPDATE orders SET status = %(after)s::order_status, sequence = sequence + 1, resting = false
    WHERE order_id = %(order_id)s
    RETURNING order_id, sequence, attempt
), opened AS (
    INSERT INTO attempts (order_id, attempt, tx_hash, raw_transaction, last_valid_block_height)
    SELECT order_id, attempt, 'by hand', 'bytes', 1 FROM moved WHERE %(opens)s::boolean
), closed AS (
    UPDATE attempts SET outcome = %(outcome)s::attempt_outcome
    WHERE order_id = %(order_id)s AND outcome IS NULL AND %(outcome)s::text IS NOT NULL
)
INSERT INTO order_events (order_id, sequence, previous_status, status, attempt, failure_reason)
SELECT order_id, sequence, %(before)s::order_status, %(after)s::order_status, attempt, 'internal' FROM moved
"""
"""A move with everything that belongs to it, so that whether it is legal is all there is to object to."""


@pytest.fixture
async def store(shared_database: Settings) -> AsyncIterator[Store]:
    async with Store(shared_database) as store:
        yield store


@pytest.fixture
async def by_hand(shared_database: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(shared_database.database, autocommit=True) as connection:
        yield connection


async def refused(connection: psycopg.AsyncConnection, statement: str, *values: object) -> str:
    """Return what the database refuses the statement with; fail if it does not."""
    with pytest.raises(psycopg.IntegrityError) as refusal:
        await connection.execute(statement.encode(), values)
    return str(refusal.value)


# ---- Transitions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order_type", [MARKET, LIMIT], ids=["market", "limit"])
@pytest.mark.parametrize("before", S)
async def test_the_database_allows_exactly_the_transitions_of_the_table(
    before: OrderStatus, order_type: OrderType, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, before, type=order_type)
    allowed = set()
    for after in S:
        try:
            async with by_hand.transaction(force_rollback=True):
                await by_hand.execute(
                    MOVE.encode(),
                    {
                        "order_id": order.order_id,
                        "before": before.value,
                        "after": after.value,
                        "opens": after is S.SUBMITTED and before is not S.SUBMITTED,
                        "outcome": {S.CONFIRMED: "landed", S.SUBMITTED: None}.get(after, "expired")
                        if before is S.SUBMITTED
                        else None,
                    },
                )
        except psycopg.IntegrityError:
            continue
        allowed.add(after)
    # What has no trigger never waits again.
    assert allowed == TRANSITIONS[before] - (frozenset() if order.spec.waits else {S.PENDING})


async def test_confirmed_takes_a_transaction_that_landed(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.SUBMITTED)
    values = {"order_id": order.order_id, "before": "submitted", "after": "confirmed", "opens": False}
    with pytest.raises(psycopg.IntegrityError, match="lacks its event or its transaction"):
        await by_hand.execute(MOVE.encode(), {**values, "outcome": "reverted"})
    await by_hand.execute(MOVE.encode(), {**values, "outcome": "landed"})


@pytest.mark.parametrize(
    ("before", "after"), [(S.BUILDING, S.SUBMITTED), (S.SUBMITTED, S.ROUTING), (S.SUBMITTED, S.FAILED)]
)
async def test_an_order_is_submitted_exactly_while_a_transaction_is_open(
    before: OrderStatus, after: OrderStatus, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, before)
    values = {
        "order_id": order.order_id,
        "before": before.value,
        "after": after.value,
        "opens": False,
        "outcome": None,
    }
    with pytest.raises(psycopg.IntegrityError, match="lacks its event or its transaction"):
        await by_hand.execute(MOVE.encode(), values)


@pytest.mark.parametrize(
    ("type_name", "enum"),
    [
        ("order_status", domain.OrderStatus),
        ("order_side", domain.Side),
        ("failure_reason", domain.FailureReason),
        ("attempt_outcome", domain.AttemptOutcome),
        ("trigger_kind", TriggerKind),
    ],
)
async def test_the_database_and_the_program_know_the_same_words(
    type_name: str, enum: type[domain.OrderStatus], by_hand: psycopg.AsyncConnection
) -> None:
    cursor = await by_hand.execute(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = %s::regtype ORDER BY enumsortorder", [type_name]
    )
    assert [label for (label,) in await cursor.fetchall()] == [member.value for member in enum]


# ---- Orders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(CLOSED))
@pytest.mark.parametrize("change", ["due_time = now()", "lease_owner = 7", "attempt = attempt + 1"])
async def test_a_closed_order_never_changes(
    status: OrderStatus, change: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, status)
    said = await refused(by_hand, f"UPDATE orders SET {change} WHERE order_id = %s", order.order_id)
    assert "a closed order never changes" in said


@pytest.mark.parametrize(
    "change",
    [
        "order_id = gen_random_uuid()",
        "request_id = 'another'",
        "request_fingerprint = sha256('another')",
        "type = 'market'",
        "side = 'buy'",
        "amount = amount + 1",
        "input_mint = 'another'",
        "output_mint = 'another'",
        "slippage_bps = 10000",
        "expire_time = now()",
        "create_time = now()",
        "terms = NULL",
        "input_decimals = 7",
        "output_decimals = 7",
        "trigger_kind = 'liquidity'",
        "trigger_size = 0",
        "trigger_level = 0",
    ],
)
@pytest.mark.parametrize("order_type", [MARKET, LIMIT], ids=["market", "limit"])
async def test_what_the_client_asked_for_never_changes(
    change: str, order_type: OrderType, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, type=order_type)
    said = await refused(by_hand, f"UPDATE orders SET {change} WHERE order_id = %s", order.order_id)
    assert "what the client asked for never changes" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("status = 'failed'", "moves with its sequence"),
        ("sequence = sequence - 1", "moves with its sequence"),
        ("sequence = sequence + 1", "lacks its event"),
        ("status = 'routing', sequence = sequence + 1", "lacks its event"),
    ],
)
async def test_an_order_moves_only_with_the_event_that_says_so(
    change: str, why: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.BUILDING)
    assert why in await refused(by_hand, f"UPDATE orders SET {change} WHERE order_id = %s", order.order_id)


async def test_an_order_is_not_stored_without_its_first_event(by_hand: psycopg.AsyncConnection) -> None:
    assert "lacks its event" in await insert_order(by_hand)


async def test_an_order_whose_transaction_landed_is_confirmed_and_nothing_else(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.SUBMITTED)
    values = {"order_id": order.order_id, "before": "submitted", "after": "failed", "opens": False}
    with pytest.raises(psycopg.IntegrityError, match="lacks its event or its transaction"):
        await by_hand.execute(MOVE.encode(), {**values, "outcome": "landed"})


@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {} CASCADE"])
@pytest.mark.parametrize("table", ["orders", "order_events", "attempts"])
async def test_nothing_is_ever_deleted(
    table: str, statement: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    await stored(store, S.SUBMITTED)
    await refused(by_hand, statement.format(table))


@pytest.mark.parametrize("amount", ["0", "-1", "NaN", "0.4", "18446744073709551616"])
async def test_an_amount_is_a_whole_number_of_base_units_that_fits_on_chain(
    amount: str, by_hand: psycopg.AsyncConnection
) -> None:
    assert "amount_is_u64" in await insert_order(by_hand, amount=amount)


async def test_an_amount_may_not_be_infinite(by_hand: psycopg.AsyncConnection) -> None:
    with pytest.raises(psycopg.DataError):
        await insert_order(by_hand, amount="Infinity")


@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("slippage_bps", -1, "slippage_is_bps"),
        ("slippage_bps", 10_001, "slippage_is_bps"),
        ("request_id", "", "request_id_is_short"),
        ("request_id", "x" * 65, "request_id_is_short"),
        ("request_fingerprint", b"short", "request_fingerprint_is_sha256"),
        ("trigger_kind", "price", "triggers_are_whole"),
        ("trigger_size", 30, "triggers_are_whole"),
        ("trigger_level", 0.1, "triggers_are_whole"),
        ("resting", True, "resting_orders_wait"),
        ("status", "routing", "orders_start_pending"),
        ("sequence", 2, "orders_start_pending"),
        ("output_mint", "A", "tokens_differ"),
    ],
)
async def test_a_spec_that_makes_no_sense_is_not_stored(
    column: str, value: object, constraint: str, by_hand: psycopg.AsyncConnection
) -> None:
    assert constraint in await insert_order(by_hand, **{column: value})


@pytest.mark.parametrize(
    ("status", "change", "why"),
    [
        pytest.param(S.PENDING, "lease_owner = 7", "resting_orders_wait", id="held while it waits"),
        pytest.param(S.ROUTING, "resting = true", "resting_orders_wait", id="waiting while it is executed"),
        pytest.param(S.CONFIRMED, "resting = true", "closed order never changes", id="waiting once closed"),
    ],
)
async def test_an_order_waits_only_while_it_is_pending_and_nobody_s(
    status: OrderStatus, change: str, why: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, status, type=LIMIT)
    assert why in await refused(by_hand, f"UPDATE orders SET {change} WHERE order_id = %s", order.order_id)


async def test_a_market_order_never_waits(store: Store, by_hand: psycopg.AsyncConnection) -> None:
    order = await stored(store)
    said = await refused(by_hand, "UPDATE orders SET resting = true WHERE order_id = %s", order.order_id)
    assert "resting_orders_wait" in said


async def test_a_request_id_names_one_order(store: Store, by_hand: psycopg.AsyncConnection) -> None:
    await stored(store, request_id="mine")
    assert "orders_request_id_key" in await insert_order(by_hand, request_id="mine")


async def insert_order(connection: psycopg.AsyncConnection, **changes: object) -> str:
    """Store an order by hand, without an event, and return what it is refused with."""
    row = {
        "order_id": UUID(int=1),
        "request_fingerprint": bytes(32),
        "type": "market",
        "side": "sell",
        "amount": "1",
        "input_mint": "A",
        "output_mint": "B",
    } | changes
    places = ", ".join(["%s"] * len(row))
    return await refused(
        connection, f"INSERT INTO orders ({', '.join(row)}) VALUES ({places})", *row.values()
    )


# ---- Events ----------------------------------------------------------------------------------------


async def insert_event(connection: psycopg.AsyncConnection, order_id: UUID, **changes: object) -> str:
    """Store an event by hand and return what it is refused with."""
    row = {
        "order_id": order_id,
        "sequence": 3,
        "previous_status": "routing",
        "status": "building",
        "attempt": 1,
    }
    row |= changes
    places = ", ".join(["%s"] * len(row))
    return await refused(
        connection, f"INSERT INTO order_events ({', '.join(row)}) VALUES ({places})", *row.values()
    )


@pytest.mark.parametrize("change", ["status = 'failed'", "decision = NULL", "create_time = now()"])
async def test_an_event_never_changes(change: str, store: Store, by_hand: psycopg.AsyncConnection) -> None:
    order = await stored(store, S.BUILDING)
    said = await refused(by_hand, f"UPDATE order_events SET {change} WHERE order_id = %s", order.order_id)
    assert "events are append-only" in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        # The order stands at 2, routing.
        pytest.param({}, "does not follow", id="an event beyond what its order says"),
        pytest.param({"sequence": 4}, "does not follow", id="a gap"),
        pytest.param({"sequence": 2, "previous_status": "pending", "status": "routing"}, "_pkey", id="twice"),
        pytest.param({"sequence": 0}, "events_start_pending", id="before the first"),
        pytest.param({"sequence": 1, "status": "pending"}, "_pkey", id="a first one after another"),
        pytest.param(
            {"sequence": 3, "previous_status": None}, "events_start_pending", id="a second beginning"
        ),
        pytest.param({"status": "submitted"}, "transition_is_legal", id="no such transition"),
        pytest.param(
            {"previous_status": "confirmed"}, "transition_is_legal", id="after the last one there can be"
        ),
        pytest.param({"attempt": 0}, "attempts_count_from_one", id="no attempt"),
        pytest.param({"status": "failed"}, "failed_events_have_a_reason", id="failed without a reason"),
        pytest.param({"input_amount": "-1"}, "input_amount_is_u64", id="a negative amount"),
        pytest.param({"input_amount": "NaN"}, "input_amount_is_u64", id="an amount that is no number"),
        pytest.param({"output_amount": str(2**64)}, "output_amount_is_u64", id="an amount too large"),
        pytest.param({"output_amount": "NaN"}, "output_amount_is_u64", id="an output that is no number"),
    ],
)
async def test_an_event_follows_from_the_one_before(
    changes: dict[str, object], why: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.ROUTING)
    assert why in await insert_event(by_hand, order.order_id, **changes)


@pytest.mark.parametrize(
    ("status", "previous_status"), [("routing", None), ("pending", "routing"), ("routing", "pending")]
)
async def test_the_first_event_is_pending(
    status: str, previous_status: str | None, by_hand: psycopg.AsyncConnection
) -> None:
    order_with_event = """
    WITH begun AS (
        INSERT INTO orders (order_id, request_fingerprint, type, side, amount, input_mint, output_mint,
            status)
        VALUES (%s, sha256('it'), 'market', 'sell', 1, 'A', 'B', %s)
        RETURNING order_id, status
    )
    INSERT INTO order_events (order_id, sequence, previous_status, status, attempt)
    SELECT order_id, 1, %s::order_status, status, 1 FROM begun"""
    said = await refused(by_hand, order_with_event, UUID(int=1), status, previous_status)
    assert "_start_pending" in said


async def test_one_row_among_many_is_enough_to_refuse_all(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    orders = [await stored(store, S.ROUTING) for _ in range(3)]
    move = """
    WITH moved AS (
        UPDATE orders SET status = 'building', sequence = 3 WHERE order_id = ANY (%s) RETURNING order_id
    )
    INSERT INTO order_events (order_id, sequence, previous_status, status, attempt, input_amount)
    SELECT order_id, 3, 'routing', 'building', 1, CASE order_id WHEN %s THEN -1 ELSE 1 END FROM moved"""
    order_ids = [order.order_id for order in orders]
    with pytest.raises(psycopg.errors.CheckViolation) as refusal:
        await by_hand.execute(move, [order_ids, order_ids[1]])
    assert refusal.value.diag.constraint_name == "input_amount_is_u64"
    assert refusal.value.diag.table_name == "order_events"
    assert str(order_ids[1]) in str(refusal.value)
    for order_id in order_ids:
        standing = await store.get(order_id)
        assert standing is not None
        assert (standing.status, standing.sequence) == (S.ROUTING, 2)


async def test_an_event_of_no_order_is_refused(by_hand: psycopg.AsyncConnection) -> None:
    first = {"sequence": 1, "previous_status": None, "status": "pending"}
    assert "does not follow" in await insert_event(by_hand, UUID(int=1), **first)


async def test_an_event_that_does_not_start_where_the_last_one_ended_is_refused(
    store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.ROUTING)
    values = {"order_id": order.order_id, "after": "routing", "opens": False, "outcome": None}
    with pytest.raises(psycopg.IntegrityError, match="does not follow from the one before"):
        await by_hand.execute(MOVE.encode(), {**values, "before": "building"})


# ---- Attempts --------------------------------------------------------------------------------------


async def insert_attempt(connection: psycopg.AsyncConnection, order: Order, attempt: int) -> str:
    return await refused(
        connection,
        "INSERT INTO attempts (order_id, attempt, tx_hash, raw_transaction, last_valid_block_height)"
        " VALUES (%s, %s, 'another', 'bytes', 1)",
        order.order_id,
        attempt,
    )


@pytest.mark.parametrize("status", [S.SUBMITTED, S.CONFIRMED])
async def test_there_is_no_second_transaction_beside_one_that_is_open_or_has_landed(
    status: OrderStatus, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, status)
    assert "attempts_one_open_or_landed" in await insert_attempt(by_hand, order, 2)
    assert "attempts_pkey" in await insert_attempt(by_hand, order, 1)


@pytest.mark.parametrize("outcome", ["landed", "reverted", "expired"])
async def test_how_a_transaction_ended_is_final(
    outcome: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.SUBMITTED)
    change = "UPDATE attempts SET outcome = %s WHERE order_id = %s"
    await by_hand.execute(change.encode(), [outcome, order.order_id])
    for later in (None, "landed", "reverted", "expired"):
        assert "is final" in await refused(by_hand, change, later, order.order_id)


@pytest.mark.parametrize(
    "change",
    [
        "order_id = gen_random_uuid()",
        "attempt = 2",
        "tx_hash = 'another'",
        "raw_transaction = 'other bytes'",
        "last_valid_block_height = 0",
        "create_time = now()",
    ],
)
async def test_a_recorded_transaction_never_changes(
    change: str, store: Store, by_hand: psycopg.AsyncConnection
) -> None:
    order = await stored(store, S.SUBMITTED)
    said = await refused(by_hand, f"UPDATE attempts SET {change} WHERE order_id = %s", order.order_id)
    assert re.search("recorded transaction never changes", said)
