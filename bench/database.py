"""Orders put straight into an engine's database, where the load generator would take hours or cannot.

`store_later` makes market orders that are due in an hour, so that nobody takes them up; `wake` makes them
due now. `fill` makes a data folder with as many closed and waiting orders as one likes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from cli.embedded import Postgres
from engine.domain.tokens import SOL, USDC
from engine.settings import Settings
from engine.storage.migrate import migrate

TABLES: Final = ("orders", "order_events", "attempts")
BYTES_PER_ORDER: Final = 2_200
"""What a closed order with its five events and its transaction takes on disk, indexes included."""
_CHUNK: Final = 50_000

# An id as engine/domain/order_ids.py makes it, of order number i, accepted i ms after first_ms.
ORDER_ID: Final[LiteralString] = """(
    lpad(to_hex(%(first_ms)s::bigint + i), 12, '0') || '7' || substr(md5(i::text), 1, 3)
    || '8' || substr(md5(i::text), 4, 12) || '000')::uuid"""

_ORDERS: Final[LiteralString] = """
    INSERT INTO orders (order_id, request_id, request_fingerprint, type, side, amount, input_mint,
        output_mint, status, sequence, due_time, create_time, update_time)
    SELECT order_id, gen_random_uuid()::text, sha256(order_id::text::bytea), 'market', 'sell',
        CASE WHEN i %% 2 = 0 THEN 100000000 ELSE 15000000 END,
        CASE WHEN i %% 2 = 0 THEN %(sol)s ELSE %(usdc)s END,
        CASE WHEN i %% 2 = 0 THEN %(usdc)s ELSE %(sol)s END,
        %(status)s, %(sequence)s, now() + %(due)s::interval, created, created
    FROM numbered"""

_NUMBERED: Final[LiteralString] = (
    "WITH numbered AS (SELECT i, to_timestamp((%(first_ms)s + i) / 1000.0) AS created, "
    + ORDER_ID
    + " AS order_id FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i)"
)

_LATER: Final[LiteralString] = (
    _NUMBERED
    + ", resting AS ("
    + _ORDERS
    + """ RETURNING order_id)
    INSERT INTO order_events (order_id, sequence, status, attempt)
    SELECT order_id, 1, 'pending', 1 FROM resting
    RETURNING order_id::text"""
)

_CLOSED_EVENTS: Final[LiteralString] = (
    _NUMBERED
    + """
    INSERT INTO order_events (order_id, sequence, previous_status, status, attempt, venue, input_amount,
        output_amount, tx_hash, create_time)
    SELECT order_id, sequence, previous_status::order_status, status::order_status, 1,
        CASE WHEN sequence >= 3 THEN 'Raydium' END,
        CASE WHEN sequence >= 3 THEN 100000000 END,
        CASE WHEN sequence >= 3 THEN 15000000 END,
        CASE WHEN sequence >= 4 THEN repeat(md5(i::text), 2) || substr(md5(i::text), 1, 24) END,
        created
    FROM numbered
    CROSS JOIN (VALUES (1, NULL, 'pending'), (2, 'pending', 'routing'), (3, 'routing', 'building'),
        (4, 'building', 'submitted'), (5, 'submitted', 'confirmed'))
        AS life (sequence, previous_status, status)
    ORDER BY order_id, sequence"""
)

_CLOSED_ATTEMPTS: Final[LiteralString] = (
    _NUMBERED
    + """
    INSERT INTO attempts (order_id, attempt, tx_hash, raw_transaction, last_valid_block_height, outcome)
    SELECT order_id, 1, repeat(md5(i::text), 2) || substr(md5(i::text), 1, 24), decode(md5(i::text), 'hex'),
        i, 'landed'
    FROM numbered"""
)


async def store_later(settings: Settings, count: int) -> list[str]:
    """Store market orders that are due in an hour; return their ids."""
    values = _values(1, count, int(time.time() * 1000) - count)
    async with await connected(settings) as connection:
        rows = await (await connection.execute(_LATER, values)).fetchall()
    return [row[0] for row in rows]


async def wake(settings: Settings) -> None:
    """Make every order that waits due now: a worker's sweeper finds them."""
    async with await connected(settings) as connection:
        await connection.execute("UPDATE orders SET due_time = now() WHERE closed_status IS NULL")


async def fill(
    data_folder: Path, closed_count: int, resting_count: int, progress: Callable[[int], None]
) -> None:
    """Make a data folder for `order-engine up` that holds so many closed and waiting orders.

    One that was filled with as many before is left as it is. Raises ValueError where the disk is too small or
    the folder holds something else. `progress` is told how many of the orders are stored.
    """
    if _is_filled(data_folder, closed_count, resting_count):
        progress(closed_count + resting_count)
        return
    # What a crash would cost is only the time to do it again.
    options = {
        "fsync": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "max_wal_size": "4GB",
        "maintenance_work_mem": "512MB",
    }
    server = Postgres(data_folder, options=options)
    server.start()
    try:
        settings = Settings(db_host=server.host, db_port=server.port, db_username=server.user)
        await migrate(settings)
        async with await connected(settings) as connection:
            await _store(connection, closed_count, resting_count, progress)
            await connection.execute("VACUUM (ANALYZE)")
            await connection.execute("CHECKPOINT")
    finally:
        server.stop(seconds=120.0)
    _told(data_folder).write_text(json.dumps(_contents(closed_count, resting_count)))


def _is_filled(data_folder: Path, closed_count: int, resting_count: int) -> bool:
    """Answer whether it was filled with as many before. Raises ValueError where it cannot be filled now."""
    data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _told(data_folder).exists():
        contents = _told(data_folder).read_text()
        if json.loads(contents) == _contents(closed_count, resting_count):
            return True
        raise ValueError(f"{data_folder} was filled with {contents}; remove it, or name another")
    if any(data_folder.iterdir()):
        raise ValueError(f"{data_folder} is not empty, and was not filled by bench; name another")
    count, free = closed_count + resting_count, shutil.disk_usage(data_folder).free
    if count * BYTES_PER_ORDER * 1.5 > free:
        raise ValueError(
            f"{count:,} orders take {count * BYTES_PER_ORDER / 2**30:.1f} GiB, and half of that again to work"
            f" with; {data_folder} has {free / 2**30:.1f} GiB"
        )
    return False


def _told(data_folder: Path) -> Path:
    """Return the file that says what the folder was filled with."""
    return data_folder / "filled.json"


def _contents(closed_count: int, resting_count: int) -> dict[str, int]:
    return {"closed": closed_count, "resting": resting_count}


async def _store(
    connection: psycopg.AsyncConnection,
    closed_count: int,
    resting_count: int,
    progress: Callable[[int], None],
) -> None:
    """Store orders in one transaction, without triggers, and the indexes after the rows.

    The tables are truncated in it, for what is written to a table that is as new as its transaction needs no
    write-ahead log (wal_level=minimal).
    """
    now_ms = int(time.time() * 1000)
    async with connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        indexes = await drop_indexes(connection)
        await connection.execute(sql.SQL("TRUNCATE {}").format(names(TABLES)))
        for first in range(1, closed_count + 1, _CHUNK):
            last = min(first + _CHUNK - 1, closed_count)
            values = _values(first, last, now_ms - closed_count - resting_count)
            closed = values | {"status": "confirmed", "sequence": 5, "due": "0"}
            await connection.execute(_NUMBERED + _ORDERS, closed)
            await connection.execute(_CLOSED_EVENTS, values)
            await connection.execute(_CLOSED_ATTEMPTS, values)
            progress(last)
        for first in range(1, resting_count + 1, _CHUNK):
            last = min(first + _CHUNK - 1, resting_count)
            await connection.execute(_LATER, _values(first, last, now_ms - resting_count))
            progress(closed_count + last)
        for index in indexes:
            await connection.execute(index)


async def drop_indexes(connection: psycopg.AsyncConnection) -> list[sql.SQL]:
    """Drop the tables' indexes and what is made of them; return the statements that make them again."""
    again: list[sql.SQL] = []
    constraints = await connection.execute(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = ANY (%s::regclass[]) AND contype IN ('p', 'u')",
        [list(TABLES)],
    )
    for table, name, definition in await constraints.fetchall():
        names = {"table": sql.Identifier(table), "name": sql.Identifier(name)}
        await connection.execute(sql.SQL("ALTER TABLE {table} DROP CONSTRAINT {name}").format(**names))
        made = sql.SQL("ALTER TABLE {table} ADD CONSTRAINT {name} ").format(**names).as_string(connection)
        again.append(sql.SQL(made + definition))
    indexes = await connection.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY (%s::regclass[])",
        [list(TABLES)],
    )
    for name, definition in await indexes.fetchall():
        await connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        again.append(sql.SQL(definition))
    return again


def _values(first: int, last: int, first_ms: int) -> dict[str, object]:
    return {
        "first": first,
        "last": last,
        "first_ms": first_ms,
        "sol": SOL.mint,
        "usdc": USDC.mint,
        "status": "pending",
        "sequence": 1,
        "due": "1 hour",
    }


def names(tables: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, tables))


async def connected(settings: Settings) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(settings.database, autocommit=True)
