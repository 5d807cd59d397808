"""With a hundred thousand orders that rest and many that are closed, a statement touches a few of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from engine.domain.lifecycle import CLOSED
from engine.domain.order_types import ORDER_TYPES
from engine.domain.tokens import SOL, TOKENS, USDC
from engine.settings import Settings
from engine.storage.connection import Connection
from tests.integration.engine.storage.plans import plan_of, touched_by

RESTING: Final = 100_000
CLOSED_COUNT: Final = 50_000
PAIRS: Final = [(a.mint, b.mint) for a in TOKENS[:4] for b in TOKENS[:4] if a != b]
SIZES: Final = 5
GROUPS: Final = len(PAIRS) * 2 * SIZES

FILL: Final = """
INSERT INTO orders (order_id, request_fingerprint, type, side, amount, input_mint, output_mint, terms,
    trigger_kind, trigger_size, trigger_level, resting, due_time, expire_time, status, sequence)
SELECT (lpad(to_hex(i), 12, '0') || '70008' || substr(md5(i::text), 1, 15))::uuid, sha256(i::text::bytea),
    %(type)s, side::order_side, (1 << size) + i %% (1 << size), (%(input_mint)s::text[])[pair + 1],
    (%(output_mint)s::text[])[pair + 1], '{"limit_price": "150"}', kind::trigger_kind,
    CASE WHEN kind IS NOT NULL THEN size END, CASE WHEN kind IS NOT NULL THEN i END,
    kind IS NOT NULL AND %(status)s = 'pending', coalesce(expire_time, 'infinity'), expire_time,
    %(status)s::order_status, 1
FROM (
    SELECT i, %(kind)s::text AS kind, i %% cardinality(%(input_mint)s::text[]) AS pair,
        (20 + (i / 1000) %% %(sizes)s)::integer AS size,
        CASE WHEN (i / 17) %% 2 = 0 THEN 'buy' ELSE 'sell' END AS side,
        CASE WHEN i %% 3 = 0 THEN now() + interval '1 day' END AS expire_time
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
) AS asked
"""


MANY: Final = (
    (1_000, "market", None, "confirmed"),
    (CLOSED_COUNT // 2, "limit", "price", "confirmed"),
    (500, "limit", "price", "cancelled"),
    (RESTING, "limit", "price", "pending"),
    (1_000, "sniper", "liquidity", "pending"),
    (CLOSED_COUNT // 2, "market", None, "confirmed"),
    (40, "market", None, "failed"),
    (20, "market", None, "routing"),
)


async def fill(settings: Settings, orders: Sequence[tuple[int, str, str | None, str]] = MANY) -> None:
    """Orders almost alone: what is planned here reads no events, but those of the lowest levels are fired."""
    async with await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as connection:
        await connection.execute("SET session_replication_role = replica")
        first = 1
        for count, order_type, kind, status in orders:
            await connection.execute(
                FILL.encode(),
                {
                    "input_mint": [pair[0] for pair in PAIRS],
                    "output_mint": [pair[1] for pair in PAIRS],
                    "sizes": SIZES,
                    "type": order_type,
                    "kind": kind,
                    "status": status,
                    "first": first,
                    "last": first + count - 1,
                },
            )
            first += count
        await connection.execute(
            "INSERT INTO order_events (order_id, sequence, status, attempt)"
            " SELECT order_id, 1, 'pending', 1 FROM orders WHERE resting ORDER BY trigger_level LIMIT 64"
        )
        await connection.execute("VACUUM (ANALYZE) orders")


@pytest.fixture(scope="module")
async def filled(shared_database: Settings) -> Settings:
    await fill(shared_database)
    return shared_database


@pytest.fixture
async def connection(filled: Settings) -> AsyncIterator[Connection]:
    connection = Connection(filled.database, "test")
    yield connection
    await connection.close()


LAST: Final = UUID(int=(1 << 128) - 1)
STATUSES: Final = sorted(status.value for status in CLOSED)
TYPES: Final = list(ORDER_TYPES)
GROUP: Final[dict[str, Any]] = {
    "trigger_kind": "price",
    "input_mint": SOL.mint,
    "output_mint": USDC.mint,
    "side": "sell",
    "trigger_size": 21,
    "part_level": [1e9],
    "least_amount": 2.0**21,
    "after_level": -1.0,
    "after_order_id": UUID(int=0),
    "limit": 64,
}


def of_page(name: str, **values: Any) -> Any:
    """A list's page of 51, which may look at as many of each type and status, and at their open ones."""
    return pytest.param(name, {"before": LAST, "limit": 51} | values, 51 * 12, 51 * 12 * 2 + 100, id=name)


@pytest.mark.parametrize(
    ("name", "values", "rows", "buffers"),
    [
        # The monitors' rows, and of each kind the first order that waits.
        pytest.param(
            "take_monitors",
            {"trigger_kind": ["price", "liquidity"], "lease_owner": 7, "lease_seconds": 1.0},
            4, 30, id="take_monitors",
        ),
        # Down the index once for each group, and to its first order.
        pytest.param("resting_groups", {"trigger_kind": "price"}, GROUPS + 1, GROUPS * 8, id="of price"),
        pytest.param("resting_groups", {"trigger_kind": "liquidity"}, GROUPS, GROUPS * 8, id="liquidity"),
        # And why each waits again, of those that do.
        pytest.param("resting_orders", GROUP | {"trigger_level": 1e9}, 128, 64 * 4 + 8, id="resting_orders"),
        pytest.param("resting_orders", GROUP | {"trigger_level": 1.0}, 0, 8, id="none of a group"),
        pytest.param(
            "resting_orders",
            GROUP | {"trigger_level": 1e9, "after_level": 60_000.0, "after_order_id": UUID(int=1)},
            64, 64 * 2 + 8, id="a later page",
        ),
        pytest.param(
            "due_orders",
            {"limit": 256, "due_limit": 256, "hint_seconds": 0, "type": TYPES},
            0, 16, id="due_orders",
        ),
        pytest.param("leased_orders", {"lease_owner": 7}, 20, 30, id="leased_orders"),
        pytest.param("backlog", {"limit": 10_000}, 21, 30, id="backlog"),
        of_page("list_orders"),
        of_page("list_closed_orders", status=STATUSES, type=TYPES),
        of_page("list_open_orders", status=["pending", "routing"], type=TYPES),
        of_page("list_resting_orders", type=TYPES),
    ],
)  # fmt: skip
async def test_a_statement_touches_a_few_of_many_orders(
    name: str, values: dict[str, Any], rows: int, buffers: int, connection: Connection
) -> None:
    touched = await touched_by(connection, name, **values)
    assert touched.rows <= rows, touched.plan
    assert touched.buffers <= buffers, touched.plan
    # What is put in order are pages, never what rests.
    assert touched.sorted_rows <= 51 * 12, touched.plan


@pytest.mark.parametrize(
    ("order_type", "kind", "statement", "values"),
    [
        (order_type, kind, statement, values)
        for order_type, kind in (("limit", "price"), ("sniper", "liquidity"))
        for statement, values in (
            (
                "take_monitors",
                {"trigger_kind": ["price", "liquidity"], "lease_owner": 7, "lease_seconds": 1.0},
            ),
            ("resting_groups", {"trigger_kind": "price"}),
            ("resting_groups", {"trigger_kind": "liquidity"}),
        )
    ],
)
async def test_a_kind_of_which_none_rests_is_not_looked_for_among_the_others(
    order_type: str, kind: str, statement: str, values: dict[str, Any], database: Settings
) -> None:
    """Where all that rest are of one kind, as PostgreSQL knows, any of their indexes looks as good."""
    await fill(database, [(10_000, order_type, kind, "pending")])
    connection = Connection(database.database, "test")
    touched = await touched_by(connection, statement, **values)
    await connection.close()
    assert touched.rows <= GROUPS + 1, touched.plan
    assert touched.buffers <= GROUPS * 8, touched.plan


@pytest.mark.parametrize("order_type", ORDER_TYPES)
@pytest.mark.parametrize("status", STATUSES)
async def test_a_rare_type_or_status_is_not_looked_for_among_the_others(
    order_type: str, status: str, connection: Connection
) -> None:
    """The first market orders are older than all that rest; of many statuses there is none."""
    for before in (LAST, UUID("00000000-03e9-7000-8000-000000000000")):
        page: dict[str, Any] = {"before": before, "limit": 51, "type": [order_type]}
        closed = await touched_by(connection, "list_closed_orders", status=[status], **page)
        resting = await touched_by(connection, "list_resting_orders", **page)
        for touched in (closed, resting):
            assert touched.rows <= 51, touched.plan
            assert touched.buffers <= 51 * 2 + 8, touched.plan


async def test_a_claim_and_a_fire_touch_their_orders_alone(connection: Connection) -> None:
    rows = await connection.run(
        "SELECT order_id FROM orders WHERE resting ORDER BY trigger_level LIMIT 64", {}
    )
    order_ids = [row[0] for row in rows]
    held = await touched_by(
        connection, "claim_orders", order_id=order_ids, lease_owner=7, type=TYPES, interruptions=3
    )
    assert held.rows <= 64 * 2
    assert held.buffers <= 64 * 8
    fired = await touched_by(
        connection, "fire_orders", fired=[f'"({order_id},1,7)"' for order_id in order_ids]
    )
    assert fired.rows == 64
    # Each of the few indexes that a fired order is put into, at four pages the way down.
    assert fired.buffers <= 64 * 30


async def test_resting_orders_are_counted_by_their_index_alone(connection: Connection) -> None:
    touched = await touched_by(connection, "resting_orders_count")
    plan = str(touched.plan)
    assert "Index Only Scan" in plan
    assert "orders_resting_of_type" in plan
    assert "'Node Type': 'Sort'" not in plan
    assert touched.buffers < RESTING / 50


@pytest.mark.parametrize(
    "name", ["resting_groups", "resting_orders", "list_closed_orders", "list_resting_orders"]
)
async def test_the_plan_is_the_same_while_there_is_nothing(
    name: str, connection: Connection, database: Settings
) -> None:
    empty = Connection(database.database, "test")
    plans = [await plan_of(each, name) for each in (empty, connection)]
    await empty.close()
    for plan in plans:
        assert "orders_pkey" not in plan, plan
        assert "Seq Scan on orders" not in plan, plan
