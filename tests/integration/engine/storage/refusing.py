"""A PostgreSQL that cannot do what it is asked for a moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import psycopg

from engine.settings import Settings

_REFUSE_ONCE: Final = """
CREATE SEQUENCE asked;
CREATE FUNCTION refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- What a sequence gave is not taken back with the statement.
    IF nextval('asked') = 1 THEN
        RAISE EXCEPTION 'not now' USING ERRCODE = TG_ARGV[0];
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_once BEFORE UPDATE ON orders
    FOR EACH ROW WHEN (NEW.status = '{status}') EXECUTE FUNCTION refuse_once('{sqlstate}')
"""


@asynccontextmanager
async def refusing_once(settings: Settings, sqlstate: str, status: str) -> AsyncIterator[None]:
    """While it lasts, the first statement that brings an order to this status is refused with that state."""
    async with await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as connection:
        await connection.execute(_REFUSE_ONCE.format(status=status, sqlstate=sqlstate).encode())
        yield
        await connection.execute("DROP FUNCTION refuse_once CASCADE")
        await connection.execute("DROP SEQUENCE asked")


@asynccontextmanager
async def read_only(settings: Settings) -> AsyncIterator[None]:
    """While it lasts, the database takes no writes; connections that stood before it are ended."""
    alter = f'ALTER DATABASE "{settings.db_name}"'
    async with await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as connection:
        await connection.execute(f"{alter} SET default_transaction_read_only = on".encode())
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        yield
        await connection.execute(f"{alter} RESET default_transaction_read_only".encode())
