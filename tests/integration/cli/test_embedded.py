"""Embedded PostgreSQL and Valkey: as root and not, after crashes, in awkward folders."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
import redis

from cli import embedded
from cli.children import in_front
from cli.embedded import EmbeddedError, Postgres, Valkey, runtime_folder

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
# A crash is simulated by SIGKILL; losing the machine is not: initdb need not wait for the disk.
QUICK = {"shared_buffers": "16MB"}


def _namespaces_allowed() -> bool:
    return subprocess.run(in_front(["/bin/true"], identity="namespace"), capture_output=True).returncode == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder below one that only its owner may enter, as homes are."""
    home = Path(tempfile.mkdtemp(prefix="oe-home-"))
    home.chmod(0o700)
    yield home / "data"
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def started() -> Iterator[Callable[[Postgres | Valkey], None]]:
    """Return a function that starts a service, which is stopped after the test."""
    services: list[Postgres | Valkey] = []

    def start(service: Postgres | Valkey) -> None:
        services.append(service)
        service.start()

    yield start
    for service in services:
        service.stop()


def _run(server: Postgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(
        host=server.host, user=server.user, dbname="postgres", autocommit=True
    ) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


Start = Callable[[Postgres | Valkey], None]


def test_postgres_is_durable_and_listens_on_its_socket_alone(folder: Path, started: Start) -> None:
    server = Postgres(folder)
    started(server)
    names = "'fsync', 'full_page_writes', 'synchronous_commit', 'listen_addresses'"
    rows = _run(server, f"SELECT name, setting FROM pg_settings WHERE name IN ({names})")
    assert {str(name): value for name, value in rows} == {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "listen_addresses": "",
    }
    assert Path(server.host).stat().st_mode & 0o077 == 0


def test_what_was_committed_survives_kill_9_and_a_restart(folder: Path, started: Start) -> None:
    server = Postgres(folder, options=QUICK)
    started(server)
    _run(server, "CREATE TABLE kept AS SELECT 1 AS value")
    server.kill()
    assert not server.running
    server.start()
    assert _run(server, "SELECT value FROM kept") == [(1,)]
    server.stop()
    again = Postgres(folder, options=QUICK)
    started(again)
    assert _run(again, "SELECT value FROM kept") == [(1,)]


@as_root
@pytest.mark.parametrize("identities", [("65534", None), (None, "65534")])
def test_the_data_may_be_taken_over_by_another_identity(
    folder: Path, started: Start, identities: tuple[str | None, str | None]
) -> None:
    for turn, identity in enumerate(identities):
        server = Postgres(folder, options=QUICK, identity=identity)
        started(server)
        _run(server, f"CREATE TABLE turn_{turn} ()")
        assert _run(server, "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'turn%'") == [(turn + 1,)]
        server.stop()


@as_root
def test_where_user_namespaces_are_forbidden_root_becomes_an_unprivileged_user(
    folder: Path, started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidding(program: Sequence[str], identity: str = "same") -> list[str]:
        return in_front(["/bin/false"]) if identity == "namespace" else in_front(program, identity=identity)

    monkeypatch.setattr(embedded, "in_front", forbidding)
    server = Postgres(folder, options=QUICK)
    started(server)
    assert server.pid is not None
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert "\nUid:\t65534\t65534\t65534\t65534\n" in status


@as_root
@pytest.mark.skipif(IS_ROOT and not _namespaces_allowed(), reason="user namespaces are forbidden here")
def test_in_a_user_namespace_the_files_stay_roots(folder: Path, started: Start) -> None:
    server = Postgres(folder, options=QUICK)
    started(server)
    assert (folder / "postgres").stat().st_uid == 0
    assert os.readlink(f"/proc/{server.pid}/ns/user") != os.readlink("/proc/self/ns/user")


def test_a_pid_file_that_names_a_strangers_process_is_no_obstacle(folder: Path, started: Start) -> None:
    server = Postgres(folder, options=QUICK)
    started(server)
    pid_file = folder / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.stop()
    # As after a crash in a container, where today's process has yesterday's pid.
    with subprocess.Popen(["/bin/sleep", "60"]) as stranger:
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.start()
        assert stranger.poll() is None
        stranger.kill()


def test_a_server_that_outlived_its_launcher_is_ended_first(folder: Path, started: Start) -> None:
    left = Postgres(folder, options=QUICK)
    started(left)
    server = Postgres(folder, options=QUICK)
    started(server)
    assert not left.running
    assert _run(server, "SELECT 1") == [(1,)]


def test_sockets_of_a_data_folder_with_a_long_path_are_in_a_short_one(started: Start) -> None:
    with tempfile.TemporaryDirectory(prefix="oe-") as parent:
        folder = Path(parent) / ("long" * 30) / "data"
        place = runtime_folder(folder)
        try:
            assert place == runtime_folder(folder), "the same at each start"
            assert place.stat().st_mode & 0o077 == 0
            valkey, postgres = Valkey(folder), Postgres(folder, options=QUICK)
            started(valkey)
            started(postgres)
            assert _run(postgres, "SELECT 1") == [(1,)]
            postgres.stop()
            valkey.stop()
        finally:
            shutil.rmtree(place)


def test_a_runtime_folder_that_is_a_trap_is_refused(folder: Path) -> None:
    folder.mkdir()
    (folder / "run").symlink_to("/tmp")
    with pytest.raises(EmbeddedError, match="belongs to somebody else"):
        runtime_folder(folder)


def test_data_of_a_postgres_that_is_not_installed_are_left_alone(folder: Path) -> None:
    (folder / "postgres").mkdir(parents=True)
    (folder / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedError, match=r"was made by PostgreSQL 12, .* choose another --data-dir"):
        Postgres(folder).start()


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    server = Postgres(folder, options={"shared_buffers": "much"})
    with pytest.raises(EmbeddedError, match="shared_buffers"):
        server.start()
    assert not server.running


def test_valkey_keeps_what_it_holds_over_kill_9(folder: Path, started: Start) -> None:
    server = Valkey(folder)
    started(server)
    with redis.Redis(unix_socket_path=server.host) as client:
        client.set("kept", "1")
    server.kill()
    server.start()
    with redis.Redis(unix_socket_path=server.host) as client:
        assert client.get("kept") == b"1"
        assert client.config_get("port") == {"port": "0"}


async def test_both_die_with_a_launcher_that_is_killed(
    folder: Path, processes_in: Callable[[Path], list[str]], until: Callable[..., Awaitable[None]]
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from cli.embedded import Postgres, Valkey;"
        "folder = Path(sys.argv[1]); a, b = Postgres(folder), Valkey(folder); a.start(); b.start();"
        "print('ready', flush=True); time.sleep(600)"
    )
    launcher = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(folder)), stdout=asyncio.subprocess.PIPE, cwd=folder.parent
    )
    assert launcher.stdout is not None
    try:
        assert await launcher.stdout.readline() == b"ready\n"
        assert len(processes_in(folder)) >= 3
    finally:
        launcher.kill()
        await launcher.wait()
    await until(lambda: not processes_in(folder))
