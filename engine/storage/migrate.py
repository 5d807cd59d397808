"""Bring the database to the schema this program is written for.

Migrations are the numbered files in migrations/, applied in order, each in its own transaction,
under one advisory lock so that processes that start together do not race. They only go forward, and a file
that was applied is never edited: its checksum is kept and compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Final

import psycopg
from psycopg import sql

from engine.addresses import with_port
from engine.process import StartupError
from engine.settings import Settings
from engine.storage.connection import first_line
from engine.telemetry import Trouble

MINIMUM_POSTGRES: Final = 15
_LOCK: Final = 0x6F72646572  # "order"
_WAIT_BRIEFLY: Final = "SET LOCAL lock_timeout = '50ms'"
_RETRY_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class SchemaError(StartupError):
    """The database cannot be used by this program."""


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_migrations() -> list[Migration]:
    """Return this program's migrations, in order. Raises SchemaError if the numbers are not 1, 2, 3 ..."""
    found = []
    for file in (resources.files("engine.storage") / "migrations").iterdir():
        number, _, name = file.name.removesuffix(".sql").partition("_")
        if file.name.endswith(".sql"):
            found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise SchemaError("the migration files are not numbered 1, 2, 3 ...")
    return found


async def migrate(settings: Settings, migrations: list[Migration] | None = None) -> list[Migration]:
    """Create the database if it is missing, apply what it lacks, and return what was applied.

    Raises SchemaError: unreachable, too old, made by a newer program, an applied migration differs, or
    the role may not.
    """
    migrations = read_migrations() if migrations is None else migrations
    # If it goes away half way, whatever was not committed is for the next start.
    async with _connected(settings) as connection:
        return await _apply(connection, migrations)


async def read_news_key(settings: Settings) -> bytes:
    """Return what hints sign events with, as every process on the migrated database. Raises SchemaError."""
    async with _connected(settings) as connection:
        row = await (await connection.execute("SELECT key FROM news_key")).fetchone()
    if row is None:
        raise SchemaError("the database has lost its news_key")
    return bytes(row[0])


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    try:
        connection = await _connect(settings)
        try:
            yield connection
        finally:
            await connection.close()
    except psycopg.errors.InsufficientPrivilege as error:
        role = settings.db_username
        raise SchemaError(
            f'database "{settings.db_name}" cannot be used by role "{role}": {first_line(error)}; let it own'
            f' the database and what is in it, or GRANT CREATE ON SCHEMA public TO "{role}"'
        ) from error
    except psycopg.Error as error:
        raise SchemaError(f"{_place(settings)} cannot be used: {first_line(error)}") from error


def _place(settings: Settings) -> str:
    return f"PostgreSQL at {with_port(settings.db_host or '127.0.0.1', settings.db_port)}"


async def _connect(settings: Settings) -> psycopg.AsyncConnection:
    try:
        return await psycopg.AsyncConnection.connect(settings.database, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        # libpq reports a missing database without an SQLSTATE.
        if f'database "{settings.db_name}" does not exist' not in str(error):
            raise
    await _create(settings)
    return await psycopg.AsyncConnection.connect(settings.database, autocommit=True, connect_timeout=5)


async def _create(settings: Settings) -> None:
    name = settings.db_name
    try:
        maintenance = await psycopg.AsyncConnection.connect(
            settings.database, dbname="postgres", autocommit=True, connect_timeout=5
        )
        try:
            await maintenance.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            pass  # another process was quicker
        finally:
            await maintenance.close()
    except psycopg.Error as error:
        # Misspelled more often than missing.
        role = settings.db_username
        raise SchemaError(
            f'{_place(settings)} has no database "{name}", and role "{role}" cannot create it:'
            f' {first_line(error)}; correct DB_NAME, or CREATE DATABASE "{name}" OWNER "{role}"'
        ) from error


async def _apply(connection: psycopg.AsyncConnection, migrations: list[Migration]) -> list[Migration]:
    major = connection.info.server_version // 10000
    if major < MINIMUM_POSTGRES:
        raise SchemaError(f"PostgreSQL is version {major}; {MINIMUM_POSTGRES} or newer is needed")
    applied_now = []
    await _until_alone(connection)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            " number integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
            " apply_time timestamptz NOT NULL DEFAULT now())"
        )
        cursor = await connection.execute("SELECT number, checksum FROM schema_migrations ORDER BY number")
        applied: dict[int, str] = dict(await cursor.fetchall())
        if applied and max(applied) > len(migrations):
            raise SchemaError(
                f"the database has migration {max(applied)}, this program knows {len(migrations)}: upgrade it"
            )
        for migration in migrations:
            known = applied.get(migration.number)
            if known is None:
                await _apply_one(connection, migration)
                applied_now.append(migration)
            elif known != migration.checksum:
                raise SchemaError(
                    f"migration {migration.number} ({migration.name}) was edited after it was applied"
                )
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
    return applied_now


async def _until_alone(connection: psycopg.AsyncConnection) -> None:
    """Return with the lock on migrations; others may be at them."""
    waits = False
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,))
        row = await cursor.fetchone()
        if row is not None and row[0]:
            return
        if not waits:
            logger.info("waiting for another process to migrate the database")
        waits = True
        await asyncio.sleep(_RETRY_SECONDS)


async def _apply_one(connection: psycopg.AsyncConnection, migration: Migration) -> None:
    """Apply a migration, however long somebody reads the tables that it changes.

    Whoever waits for such a table has everybody else wait who wants to read it. So it waits for a moment at a
    time.
    """
    said = f"migration {migration.number:04d} {migration.name}"
    trouble = Trouble(logger, f"{said} waits for others to leave the tables", f"{said} goes on")
    while True:
        try:
            async with connection.transaction():
                await connection.execute(_WAIT_BRIEFLY)
                await connection.execute(migration.text.encode())
                await connection.execute(
                    "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                    (migration.number, migration.name, migration.checksum),
                )
        except psycopg.errors.LockNotAvailable as error:
            trouble.fails(error)
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            trouble.works()
            logger.info("applied %s", said)
            return
