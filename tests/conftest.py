"""Real services for the tests: an embedded PostgreSQL and Valkey for each process that runs tests.

DB_HOST and REDIS_HOST (and the settings beside them) in the environment use those servers instead. Each test
has a database of its own; Redis is emptied before each test, so REDIS_HOST must name one that is empty.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis
import uvloop
from psycopg import sql

from cli.embedded import Postgres, Valkey
from engine.settings import Settings, load_settings
from engine.storage.migrate import migrate

_TESTS = Path(__file__).parent

# Fast, and unsafe when the machine crashes: the session's database is thrown away. Tests that kill a
# PostgreSQL start one of their own, with its real settings.
_THROW_AWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "shared_buffers": "64MB",
    "max_connections": "200",
    "autovacuum_naptime": "1h",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return how many processes run tests, None for as many as there are cores: all would empty one Redis."""
    return 1 if load_settings(env_file=None).redis_host else None


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run each test on the kind of loop that its subject runs on.

    The processes run on uvloop; the launcher, the commands and programs that use the client on asyncio's own.
    Those of whole processes use some of these.
    """
    if {"cli", "client", "e2e"} & set(item.path.relative_to(_TESTS).parts):
        return {"asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """A folder for the session's services; short, because unix sockets' paths are."""
    folder = Path(tempfile.mkdtemp(prefix="oe-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(services_folder: Path) -> Iterator[Settings]:
    """The session's PostgreSQL: settings that reach it, with no database of their own yet."""
    external = load_settings(env_file=None)
    if external.db_host:
        yield external
        return
    server = Postgres(services_folder, options=_THROW_AWAY)
    server.start()
    yield Settings(db_host=server.host, db_port=server.port, db_username=server.user)
    server.stop()


@pytest.fixture(scope="session")
def valkey(services_folder: Path) -> Iterator[Settings]:
    """The session's Valkey: settings that reach it."""
    external = load_settings(env_file=None)
    if external.redis_host:
        with redis.Redis.from_url(external.redis_url) as client:
            if client.dbsize():
                pytest.exit(
                    f"REDIS_HOST is {external.redis_host}, which is not empty; the tests would empty it"
                )
            yield external
            client.flushall()
        return
    server = Valkey(services_folder)
    server.start()
    yield Settings(redis_host=server.host)
    server.stop()


@pytest.fixture
def empty_valkey(valkey: Settings) -> Settings:
    """The session's Valkey, emptied: settings that reach it."""
    with redis.Redis.from_url(valkey.redis_url) as client:
        client.flushall()
    return valkey


@pytest.fixture
async def empty_database(postgres: Settings) -> AsyncIterator[Settings]:
    """A fresh database without a schema: settings that reach it."""
    async for settings in _database(postgres, "template1"):
        yield settings


@pytest.fixture(scope="session")
async def migrated_template(postgres: Settings) -> AsyncIterator[str]:
    """The name of a database with the current schema and nothing in it, to copy."""
    async for settings in _database(postgres, "template1"):
        await migrate(settings)
        yield settings.db_name


@pytest.fixture
async def database(postgres: Settings, migrated_template: str) -> AsyncIterator[Settings]:
    """A fresh database with the current schema: settings that reach it."""
    async for settings in _database(postgres, migrated_template):
        yield settings


@pytest.fixture(scope="module")
async def shared_database(postgres: Settings, migrated_template: str) -> AsyncIterator[Settings]:
    """A database with the current schema that a module's tests share; each makes orders of its own."""
    async for settings in _database(postgres, migrated_template):
        yield settings


@pytest.fixture
def settings(database: Settings, empty_valkey: Settings) -> Settings:
    """A migrated, empty database and an empty Valkey; every port is one that the system chooses."""
    return replace(
        database,
        redis_host=empty_valkey.redis_host,
        redis_port=empty_valkey.redis_port,
        redis_password=empty_valkey.redis_password,
        port=0,
        grpc_port=0,
        server_metrics_port=0,
        workers_metrics_port=0,
        simnet_port=0,
    )


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that finds a TCP port nobody listens on, another one at each call."""
    given: set[int] = set()

    def find() -> int:
        while True:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port: int = listener.getsockname()[1]
            if port not in given:
                given.add(port)
                return port

    return find


async def _database(postgres: Settings, template: str) -> AsyncIterator[Settings]:
    settings = replace(postgres, db_name=f"test_{os.getpid()}_{uuid4().hex[:12]}")
    name = sql.Identifier(settings.db_name)
    async with await psycopg.AsyncConnection.connect(
        postgres.database, dbname="postgres", autocommit=True
    ) as maintenance:
        await maintenance.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(template))
        )
        yield settings
        await maintenance.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture
def processes_in() -> Callable[[Path], list[str]]:
    """Return a function that lists the living processes whose working folder is in a folder."""

    def find(folder: Path) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                within = Path(os.readlink(process / "cwd")).is_relative_to(folder.resolve())
                # One that has ended but was not waited for has a state of Z.
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                command = (process / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
            if within and state not in "ZX":
                found.append(f"{process.name} {command}")
        return found

    return find


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Return a coroutine function that polls until a condition holds; fails after `seconds`."""

    async def poll(condition: Callable[[], object], seconds: float = 20.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition():  # noqa: ASYNC110 - other processes set no event
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"not so after {seconds:g} s")

    return poll
