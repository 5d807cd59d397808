"""Makes orders what only a newer version could have written."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import psycopg

from engine.settings import Settings

MINT: Final = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
"""Of a token that this version does not know."""

OF_TYPE: Final = "UPDATE orders SET type = 'iceberg'"
OF_TOKEN: Final = f"UPDATE orders SET output_mint = '{MINT}', output_decimals = NULL"
OF_TERMS: Final = """UPDATE orders SET terms = '{"limit_price": {"least": "150"}}'"""
OF_DECISION: Final = "UPDATE order_events SET decision = '{\"route\": 7}'"


async def rewrite(settings: Settings, change: str, *order_ids: UUID, only: str = "true") -> None:
    """Change what no statement of the program can."""
    async with await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            f"{change} WHERE order_id = ANY (%s) AND {only}".encode(), (list(order_ids),)
        )
