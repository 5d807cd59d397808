"""The fixtures of conftest.py: services that are fresh for each test."""

from __future__ import annotations

import psycopg
import pytest
import redis

from engine.settings import Settings


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_migrated_and_empty_database(settings: Settings, turn: int) -> None:
    async with await psycopg.AsyncConnection.connect(settings.database) as connection:
        tables = await (
            await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).fetchall()
        assert ("orders",) in tables
        assert ("only_here",) not in tables
        await connection.execute("CREATE TABLE only_here ()")


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_valkey(settings: Settings, turn: int) -> None:
    with redis.Redis.from_url(settings.redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


async def test_an_empty_database_has_no_tables(empty_database: Settings) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database.database) as connection:
        found = await connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        assert await found.fetchone() == (0,)
