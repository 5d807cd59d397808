"""Bringing a database to the schema: fresh, twice, together, and what is refused."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from engine.settings import Settings, settings_as_environ
from engine.storage.migrate import Migration, SchemaError, migrate, read_migrations
from tests.integration.engine.storage.refusing import read_only

FIRST = Migration(1, "first", "CREATE TABLE first (id integer)")
SECOND = Migration(2, "second", "CREATE TABLE second (id integer)")

PROGRAM = """
import asyncio
from engine.settings import load_settings
from engine.storage.migrate import migrate
print(len(asyncio.run(migrate(load_settings(env_file=None)))))
"""


async def rows(settings: Settings, statement: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(settings.database) as connection:
        return await (await connection.execute(statement.encode())).fetchall()


async def test_a_fresh_database_gets_every_migration_once(empty_database: Settings) -> None:
    known = read_migrations()
    assert await migrate(empty_database) == known
    assert await migrate(empty_database) == []
    kept = await rows(empty_database, "SELECT number, name, checksum FROM schema_migrations ORDER BY number")
    assert kept == [(each.number, each.name, each.checksum) for each in known]


async def test_the_database_is_made_if_there_is_none(postgres: Settings) -> None:
    missing = replace(postgres, db_name=f'made "{uuid4().hex[:8]}')
    try:
        # Whoever comes second finds it there.
        applied = await asyncio.gather(*(migrate(missing) for _ in range(4)))
        assert sorted(map(len, applied)) == [0, 0, 0, len(read_migrations())]
    finally:
        async with await psycopg.AsyncConnection.connect(
            postgres.database, dbname="postgres", autocommit=True
        ) as connection:
            await connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(missing.db_name))
            )


async def test_of_processes_that_start_together_one_applies_and_the_others_wait(
    empty_database: Settings,
) -> None:
    environ = {**os.environ, **settings_as_environ(empty_database)}
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, env=environ, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(3)
    ]
    said = [(await process.communicate())[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(map(int, said)) == [0, 0, len(read_migrations())]


async def test_only_what_is_lacking_is_applied(empty_database: Settings) -> None:
    assert await migrate(empty_database, [FIRST]) == [FIRST]
    assert await migrate(empty_database, [FIRST, SECOND]) == [SECOND]


async def test_a_migration_that_was_edited_after_it_was_applied_is_refused(empty_database: Settings) -> None:
    await migrate(empty_database, [FIRST])
    edited = replace(FIRST, text=FIRST.text + " -- better")
    with pytest.raises(SchemaError, match=r"migration 1 \(first\) was edited after it was applied"):
        await migrate(empty_database, [edited, SECOND])
    assert await rows(empty_database, "SELECT to_regclass('second')") == [(None,)]


async def test_a_database_of_a_newer_program_is_refused(empty_database: Settings) -> None:
    await migrate(empty_database, [FIRST, SECOND])
    with pytest.raises(SchemaError, match="has migration 2, this program knows 1: upgrade it"):
        await migrate(empty_database, [FIRST])


async def test_a_migration_that_waits_for_a_table_keeps_nobody_from_it_for_long(
    empty_database: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate(empty_database, [FIRST])
    wider = Migration(2, "wider", "ALTER TABLE first ADD COLUMN more integer")
    async with await psycopg.AsyncConnection.connect(empty_database.database) as backup:
        # As pg_dump does, for as long as it takes.
        await backup.execute("LOCK TABLE first IN ACCESS SHARE MODE")
        with caplog.at_level("INFO"):
            migrating = asyncio.create_task(migrate(empty_database, [FIRST, wider]))
            async with asyncio.timeout(20):
                while "0002 wider waits for others to leave the tables" not in caplog.text:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for _ in range(3):
                async with asyncio.timeout(2):
                    assert await rows(empty_database, "SELECT count(*) FROM first") == [(0,)]
                await asyncio.sleep(0.2)
            assert not migrating.done()
            await backup.rollback()
            assert await migrating == [wider]
    assert "applied migration 0002 wider" in caplog.text


async def test_a_migration_that_fails_leaves_nothing_and_keeps_nobody_out(empty_database: Settings) -> None:
    broken = Migration(2, "second", "CREATE TABLE half (id integer); SELECT nonsense")
    with pytest.raises(SchemaError, match=r'cannot be used: column "nonsense" does not exist$'):
        await migrate(empty_database, [FIRST, broken])
    assert await rows(empty_database, "SELECT to_regclass('half')") == [(None,)]
    async with asyncio.timeout(10):
        assert await migrate(empty_database, [FIRST, SECOND]) == [SECOND]


async def test_a_postgresql_that_is_too_old_is_refused(
    empty_database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = await rows(empty_database, "SHOW server_version_num")
    major = int(str(version[0])) // 10000
    monkeypatch.setattr("engine.storage.migrate.MINIMUM_POSTGRES", major + 1)
    with pytest.raises(SchemaError, match=f"PostgreSQL is version {major}; {major + 1} or newer is needed"):
        await migrate(empty_database)
    assert await rows(empty_database, "SELECT to_regclass('schema_migrations')") == [(None,)]


async def test_a_postgresql_that_is_not_there_is_named_in_one_sentence(free_port: object) -> None:
    assert callable(free_port)
    port = free_port()
    with pytest.raises(SchemaError) as refused:
        await migrate(Settings(db_host="127.0.0.1", db_port=port))
    assert str(refused.value).startswith(f"PostgreSQL at 127.0.0.1:{port} cannot be used: ")
    assert "\n" not in str(refused.value)


async def test_a_postgresql_that_takes_no_writes_is_one_sentence(empty_database: Settings) -> None:
    async with read_only(empty_database):
        with pytest.raises(SchemaError, match=r"^PostgreSQL at .* cannot be used: .* session is read-only$"):
            await migrate(empty_database)


async def test_a_postgresql_that_goes_away_half_way_is_one_sentence_and_the_next_start_goes_on(
    empty_database: Settings,
) -> None:
    cut_short = Migration(2, "second", "SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(SchemaError, match=r"^PostgreSQL at .* cannot be used: ") as refused:
        await migrate(empty_database, [FIRST, cut_short])
    assert "\n" not in str(refused.value)
    assert await migrate(empty_database, [FIRST, SECOND]) == [SECOND]


@pytest.fixture
async def role(empty_database: Settings) -> AsyncIterator[str]:
    """A role that may log in and nothing else."""
    name = f"trader_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(empty_database.database, autocommit=True) as connection:
        role = sql.Identifier(name)
        await connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(role))
        yield name
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_a_database_that_is_missing_and_may_not_be_made_is_one_sentence(
    empty_database: Settings, role: str
) -> None:
    misspelled = replace(empty_database, db_username=role, db_password="secret", db_name="ordrs")
    with pytest.raises(SchemaError) as refused:
        await migrate(misspelled)
    assert str(refused.value) == (
        f'PostgreSQL at {misspelled.db_host}:{misspelled.db_port} has no database "ordrs", and role "{role}"'
        " cannot create it: permission denied to create database;"
        f' correct DB_NAME, or CREATE DATABASE "ordrs" OWNER "{role}"'
    )


async def test_a_role_that_may_not_make_tables_is_told_what_to_grant(
    empty_database: Settings, role: str
) -> None:
    theirs = replace(empty_database, db_username=role, db_password="secret")
    with pytest.raises(SchemaError) as refused:
        await migrate(theirs)
    said = str(refused.value)
    assert said == (
        f'database "{theirs.db_name}" cannot be used by role "{role}": permission denied for schema public;'
        f' let it own the database and what is in it, or GRANT CREATE ON SCHEMA public TO "{role}"'
    )
    async with await psycopg.AsyncConnection.connect(empty_database.database, autocommit=True) as connection:
        await connection.execute(said.rpartition(", or ")[2].encode())
    assert await migrate(theirs) == read_migrations()
