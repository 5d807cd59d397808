"""Orders that rest until their trigger fires, put straight into a database: a million in half a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import sql

from bench.database import ORDER_ID, TABLES, connected, drop_indexes, names
from engine.domain.order import Side
from engine.domain.order_types import TriggerKind
from engine.domain.tokens import Token
from engine.settings import Settings
from engine.storage.convert import decimals_to_row

_CHUNK: Final = 50_000
_TYPES: Final = {TriggerKind.PRICE: "limit", TriggerKind.LIQUIDITY: "sniper"}


@dataclass(frozen=True, slots=True)
class Group:
    """Orders of one pair, side and size, whose levels are spread from `level` to three times as much."""

    input_token: Token
    output_token: Token
    side: Side
    size: int
    """Whole part of the amounts' binary logarithm."""
    level: float
    """Trigger.level of the first one. Of liquidity zero: all of them wait for any pool."""


# Order number i is of group i modulo their count; two numbers that look random say where in it.
_STORE: Final[LiteralString] = (
    """
    INSERT INTO orders (order_id, request_id, request_fingerprint, type, side, amount, input_mint,
        output_mint, input_decimals, output_decimals, terms, trigger_kind, trigger_size, trigger_level,
        resting, due_time, create_time, update_time)
    SELECT """
    + ORDER_ID
    + """, gen_random_uuid()::text, sha256(i::text::bytea), %(type)s, side, amount, input_mint, output_mint,
        input_decimals, output_decimals,
        CASE WHEN price_scale IS NOT NULL THEN
            jsonb_build_object('limit_price', trim_scale(round((level * price_scale)::numeric, 18))::text)
        END,
        %(trigger_kind)s, size, level, true, 'infinity', created, created
    FROM (
        SELECT i, g.*,
            (1::bigint << g.size) + (hashint8(i) & ((1::bigint << least(g.size, 31)) - 1)) AS amount,
            g.lowest_level * (1 + 2 * ((hashint8(i + 1) & 1048575) / 1048576.0)::double precision) AS level,
            to_timestamp((%(first_ms)s + i) / 1000.0) AS created
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
        JOIN (
            SELECT row_number() OVER () - 1 AS number, each.*
            FROM unnest(%(input_mint)s::text[], %(output_mint)s::text[], %(side)s::order_side[],
                %(size)s::integer[], %(lowest_level)s::double precision[], %(input_decimals)s::smallint[],
                %(output_decimals)s::smallint[], %(price_scale)s::double precision[])
                AS each (input_mint, output_mint, side, size, lowest_level, input_decimals, output_decimals,
                    price_scale)
        ) AS g ON g.number = i %% %(group_count)s
    ) AS asked"""
)


async def fill_resting(
    settings: Settings,
    kind: TriggerKind,
    groups: Sequence[Group],
    count: int,
    progress: Callable[[int], None],
) -> None:
    """Make the record hold these orders and nothing else. `progress` is told how many are stored.

    Orders alone: what looks for those that rest reads no events. It is one transaction, without triggers, and
    the indexes come after the rows.
    """
    prices = kind is TriggerKind.PRICE
    values = {
        "type": _TYPES[kind],
        "trigger_kind": kind.value,
        "group_count": len(groups),
        "first_ms": int(time.time() * 1000) - count,
        "input_mint": [group.input_token.mint for group in groups],
        "output_mint": [group.output_token.mint for group in groups],
        "side": [group.side.value for group in groups],
        "size": [group.size for group in groups],
        "lowest_level": [group.level for group in groups],
        "input_decimals": [decimals_to_row(group.input_token) for group in groups],
        "output_decimals": [decimals_to_row(group.output_token) for group in groups],
        "price_scale": [
            10.0 ** (group.input_token.decimals - group.output_token.decimals) if prices else None
            for group in groups
        ],
    }
    async with await connected(settings) as connection:
        async with connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            indexes = await drop_indexes(connection)
            await connection.execute(sql.SQL("TRUNCATE {}").format(names(TABLES)))
            for first in range(1, count + 1, _CHUNK):
                last = min(first + _CHUNK - 1, count)
                await connection.execute(_STORE, values | {"first": first, "last": last})
                progress(last)
            for index in indexes:
                await connection.execute(index)
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("CHECKPOINT")
