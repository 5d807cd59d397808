"""`order-engine up`: everything on one machine, from nothing, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from cli import probe
from cli.children import Child
from cli.embedded import EmbeddedError, Postgres, Valkey, runtime_folder
from cli.launcher import Launcher, Part, Stopped
from cli.live import LiveView, live_view
from engine.addresses import family_of, listen, with_port
from engine.domain.tokens import TOKENS, Token
from engine.process import UNUSABLE, StartupError, check_host
from engine.redis_client import check_version
from engine.settings import Settings, SettingsError, load_settings, settings_as_environ
from engine.solana.http import HttpClient, HttpError
from engine.solana.transactions import Wallet, WalletError
from engine.storage.migrate import migrate

_FUNDS = 10_000_000  # whole tokens of each kind that the simulated wallet is topped up to
_FUNDS_OF = {"BONK": 100_000_000_000}
_LAST_PORT = 65535
_PORT_PATIENCE_SECONDS = 1.0  # The ports of an instance that was just killed are free in a moment.


def up(data_folder: Path | None, process_counts: Mapping[str, Any]) -> int:
    """Run until a signal; return the exit code.

    `data_folder` None: one that is removed at the end. `process_counts` go before the settings of their name.
    """
    console = _Screen(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        settings = replace(load_settings(), **process_counts)
        with _data_folder(data_folder) as folder:
            return asyncio.run(_Up(settings, folder, data_folder is not None, console).run())
    except (SettingsError, StartupError) as error:
        print(f"order-engine: {error}", file=sys.stderr)  # noqa: T201
        return UNUSABLE


class _Screen(Console):
    """Shows what happens while anybody is there to see it. That nobody is keeps nothing from its end."""

    on_left: Callable[[], None] | None = None
    """Called once nobody is."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            # EIO: a terminal that was closed. Others pass, as a full disk does that this is written to.
            if error.errno == errno.EIO:
                self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        if self.on_left is not None:
            self.on_left()


class _Up:
    def __init__(self, settings: Settings, folder: Path, kept: bool, console: _Screen) -> None:
        self._settings = settings
        self._folder = folder
        self._kept = kept
        self._console = console
        self._launcher = Launcher(self._say)
        console.on_left = self._launcher.stopping.set
        self._signalled = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        failed: StartupError | None = None
        async with asyncio.TaskGroup() as group:
            try:
                await self._start(group)
                await self._show_until_stopped()
            except Stopped:
                pass
            except StartupError as error:
                failed = error
            finally:
                # Whatever happened: nothing is left behind.
                if failed is None:
                    self._say("stopping (once more Ctrl-C: at once)")
                await self._launcher.stop()
                with contextlib.suppress(EmbeddedError):
                    shutil.rmtree(runtime_folder(self._folder), ignore_errors=True)
        if failed is not None:
            raise failed
        self._say(f"stopped; the data are in {_shown(self._folder)}" if self._kept else "stopped")
        return 0

    # ---- Start -----------------------------------------------------------------------------------

    async def _start(self, group: asyncio.TaskGroup) -> None:
        settings = _with_ports(self._settings)
        if not settings.link_folder:
            settings = replace(settings, link_folder=str(runtime_folder(self._folder)))
        # What is somebody else's first: what is wrong with it is said before anything starts.
        if settings.redis_host:
            await check_version(settings)
            self._say(f"  Redis       {settings.redis_host}")
        if settings.solana_rpc_url:
            await _check_node(settings.solana_rpc_url)
            self._say(f"  Solana      {_without_key(settings.solana_rpc_url)}")
        settings = self._with_wallet(settings)
        if not settings.db_host:
            settings = await self._start_postgres(group, settings)
            await self._migrate(settings)
        else:
            await self._migrate(settings)
            self._say(f"  PostgreSQL  {settings.db_host}")
        if not settings.redis_host:
            settings = await self._start_valkey(group, settings)
        if not settings.solana_rpc_url:
            settings = replace(
                settings,
                solana_rpc_url=f"http://{with_port(_reachable(settings.host), settings.simnet_port)}",
                solana_ws_url=f"ws://{with_port(_reachable(settings.host), settings.simnet_port + 1)}",
                simnet_data_dir=settings.simnet_data_dir or str(self._folder.resolve() / "simnet"),
            )
            await self._start_processes(group, settings, "simnet")
            await self._fund(settings)
        await self._start_processes(group, settings, "server", "workers")
        await self._start_processes(group, settings, "gateway")  # It waits for the server, but not for long.
        self._settings = settings

    async def _start_postgres(self, group: asyncio.TaskGroup, settings: Settings) -> Settings:
        server = Postgres(self._folder)
        with self._timed({"PostgreSQL": f"embedded, in {_shown(self._folder / 'postgres')}"}):
            await self._launcher.start(group, Part("postgres", server, _asking(server.ready)))
        return replace(
            settings, db_host=server.host, db_port=server.port, db_username=server.user, db_password=""
        )

    async def _start_valkey(self, group: asyncio.TaskGroup, settings: Settings) -> Settings:
        server = Valkey(self._folder)
        with self._timed({"Valkey": f"embedded, in {_shown(self._folder / 'valkey')}"}):
            await self._launcher.start(group, Part("valkey", server, _asking(server.ready)))
        return replace(settings, redis_host=server.host, redis_password="")

    async def _migrate(self, settings: Settings) -> None:
        applied = await migrate(settings)
        if self._launcher.stopping.is_set():
            raise Stopped
        count = len(applied)
        said = f"{count} migration{'' if count == 1 else 's'} applied" if count else "up to date"
        self._say(f"  schema      {said}")

    def _with_wallet(self, settings: Settings) -> Settings:
        path = Path(settings.wallet_path) if settings.wallet_path else self._folder / "wallet.json"
        try:
            made = not settings.wallet_path and not path.exists()
            wallet = Wallet.create(path) if made else Wallet.load(path)
        except WalletError as error:
            raise StartupError(str(error)) from None
        self._wallet = str(wallet.pubkey)
        funded = "" if not settings.solana_rpc_url else "; it has to be funded" if made else ""
        self._say(f"  wallet      {self._wallet}, {'made' if made else 'read'} in {_shown(path)}{funded}")
        return replace(settings, wallet_path=str(path.resolve()))

    async def _fund(self, settings: Settings) -> None:
        """Top up the wallet on simnet, so that a first order of any token can be paid."""
        try:
            for token in TOKENS:
                # One base unit first: the answer says what there is.
                there_is = await self._give(settings, token, 1)
                if (missing := _funds(token) - there_is) > 0:
                    await self._give(settings, token, missing)
        except OSError as error:
            raise StartupError(f"the wallet could not be funded on simnet: {error}") from None

    async def _give(self, settings: Settings, token: Token, amount: int) -> int:
        """Add to the simulated wallet; return its new balance. Both in base units."""
        # The symbol, not the mint: "SOL" is native SOL, its mint address wrapped SOL.
        gift = {"wallet": self._wallet, "mint": token.symbol, "amount": amount}
        host, port = _reachable(settings.host), settings.simnet_port
        return int((await probe.call(host, port, "simnet_fund", [gift]))["balance"])

    async def _start_processes(self, group: asyncio.TaskGroup, settings: Settings, *names: str) -> None:
        """Start processes of the engine together, and say where each is once all are ready."""
        host = _reachable(settings.host)
        servers, gateways = _server_settings(settings), _gateway_settings(settings)
        workers_ports = _worker_metrics_ports(settings)
        # Each process's settings, and the ports where it is asked whether it is ready.
        processes = {
            "simnet": [(settings, [settings.simnet_port])],
            "server": [(own, [own.server_metrics_port]) for own in servers],
            "workers": [(settings, workers_ports)],
            "gateway": [(own, [own.port]) for own in gateways],
        }
        where = {
            "simnet": f"a simulated Solana, http://{with_port(host, settings.simnet_port)}",
            "server": f"gRPC, {with_port(host, _first_and_last(own.grpc_port for own in servers))}",
            "workers": f"{len(workers_ports)} process{'' if len(workers_ports) == 1 else 'es'}",
            "gateway": "REST, WebSocket and console, "
            f"http://{with_port(host, _first_and_last(own.port for own in gateways))}",
        }
        parts = [
            _part(
                name if len(processes[name]) == 1 else f"{name}-{number}",
                name,
                own,
                self._folder,
                partial(_unready_reason, host, ports),
            )
            for name in names
            for number, (own, ports) in enumerate(processes[name], start=1)
        ]
        with self._timed({name: where[name] for name in names}):
            await self._launcher.start(group, *parts)

    # ---- Show ------------------------------------------------------------------------------------

    async def _show_until_stopped(self) -> None:
        # Not wrapped: a line that is broken in two cannot be copied and run.
        self._console.print(_first_steps(self._settings, self._folder), markup=False, soft_wrap=True)
        host = _reachable(self._settings.host)
        view = LiveView(
            self._launcher.parts,
            [
                partial(probe.figures, host, own.server_metrics_port)
                for own in _server_settings(self._settings)
            ],
            worker_sources=[
                partial(probe.figures, host, port) for port in _worker_metrics_ports(self._settings)
            ],
        )
        with live_view(view, self._console):
            while not self._launcher.stopping.is_set():
                await view.refresh()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(view.interval_seconds):
                        await self._launcher.stopping.wait()

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)

    @contextmanager
    def _timed(self, where: Mapping[str, str]) -> Iterator[None]:
        """While the block starts these, show that; then say where each is and how long it took."""
        started = time.monotonic()
        with contextlib.ExitStack() as shown:
            if self._console.is_terminal:
                shown.enter_context(self._console.status(f"{', '.join(where)} ..."))
            yield
        for name, place in where.items():
            self._say(f"  {name:<10}  {place}  ({time.monotonic() - started:.1f} s)")

    def _on_signal(self) -> None:
        if self._signalled:
            self._launcher.kill()
        self._signalled = True
        self._launcher.stopping.set()


# ---- Folder and ports ----------------------------------------------------------------------------


@contextmanager
def _data_folder(wanted: Path | None) -> Iterator[Path]:
    """Yield the data folder, locked. Raises StartupError if it cannot be used or another launcher has it."""
    ephemeral = wanted is None
    folder = Path(tempfile.mkdtemp(prefix="order-engine-")) if wanted is None else wanted
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise StartupError(f"the data folder {folder} cannot be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip()
            raise StartupError(
                f"{folder} is in use by another `order-engine up` (process {pid}); "
                "stop it, or choose another --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield folder
        finally:
            if ephemeral:
                shutil.rmtree(folder, ignore_errors=True)


def _with_ports(settings: Settings) -> Settings:
    """Return the settings with every port known, and free.

    Raises StartupError for a port that is in use, and for a host that is no address of this machine.
    """
    check_host(settings.host)
    wanted = [
        ("PORT", settings.gateway_processes),
        ("GRPC_PORT", settings.server_processes),
        ("SERVER_METRICS_PORT", settings.server_processes),
        ("WORKERS_METRICS_PORT", settings.worker_processes),
    ]
    if not settings.solana_rpc_url:
        wanted.append(("SIMNET_PORT", 2))
    taken: dict[int, str] = {}
    chosen: dict[str, Any] = {}
    for name, count in wanted:
        first: int = getattr(settings, name.lower())
        if first == 0:
            continue
        if first + count - 1 > _LAST_PORT:
            raise StartupError(
                f"{name} was {first}; must be at most {_LAST_PORT - count + 1}, for it takes {count} ports"
            )
        for port in range(first, first + count):
            if port in taken:
                raise StartupError(f"{name} and {taken[port]} both need port {port}; change one of them")
            taken[port] = name
            if not _is_free(settings.host, port, _PORT_PATIENCE_SECONDS):
                raise StartupError(f"port {port} is in use; stop what listens there, or set another {name}")
    for name, count in wanted:
        if getattr(settings, name.lower()) == 0:
            chosen[name.lower()] = first = _free_ports(settings.host, count, taken)
            taken.update(dict.fromkeys(range(first, first + count), name))
    return replace(settings, grpc_host=_grpc_host(settings), **chosen)


def _free_ports(host: str, count: int, taken: dict[int, str]) -> int:
    """Return the first of `count` neighbouring ports that are free."""
    while True:
        with listen(host, 0) as listener:
            first: int = listener.getsockname()[1]
        ports = range(first, first + count)
        if ports[-1] <= _LAST_PORT and all(port not in taken and _is_free(host, port, 0.0) for port in ports):
            return first


def _is_free(host: str, port: int, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            with listen(host, port):
                return True
        except OSError as error:
            if isinstance(error, PermissionError):
                raise StartupError(f"port {port} needs more rights than this user has") from None
            if error.errno != errno.EADDRINUSE:
                raise StartupError(f"port {port} cannot be used: {error.strerror}") from None
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


def _reachable(host: str) -> str:
    """Return the address under which what is bound to `host` is reached from here."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def _grpc_host(settings: Settings) -> str:
    """Return where the gateways find the servers; several have to be listed by IP address."""
    host = _reachable(settings.host)
    if settings.server_processes == 1:
        return host
    (*_, address), *_ = socket.getaddrinfo(host, 0, family_of(host))
    return str(address[0])


# ---- Processes -----------------------------------------------------------------------------------


def _part(
    name: str,
    module: str,
    settings: Settings,
    folder: Path,
    unready_reason: Callable[[], Awaitable[str | None]],
) -> Part:
    child = Child(
        name,
        [sys.executable, "-P", "-m", module],
        log=folder / "logs" / f"{name}.log",
        environ={**os.environ, **settings_as_environ(settings)},
    )
    return Part(name, child, unready_reason)


def _server_settings(settings: Settings) -> list[Settings]:
    """Return the settings of each server process."""
    return [
        replace(
            settings,
            grpc_port=settings.grpc_port + index,
            server_metrics_port=settings.server_metrics_port + index,
        )
        for index in range(settings.server_processes)
    ]


def _gateway_settings(settings: Settings) -> list[Settings]:
    """Return the settings of each gateway process; every one uses all servers."""
    return [replace(settings, port=settings.port + index) for index in range(settings.gateway_processes)]


def _worker_metrics_ports(settings: Settings) -> list[int]:
    return [settings.workers_metrics_port + index for index in range(settings.worker_processes)]


# ---- Services ------------------------------------------------------------------------------------


async def _unready_reason(host: str, ports: list[int]) -> str | None:
    for port in ports:
        reason = await probe.unready_reason(host, port)
        if reason is not None:
            return reason
    return None


def _asking(ready: Callable[[], bool]) -> Callable[[], Awaitable[str | None]]:
    async def unready_reason() -> str | None:
        return None if await asyncio.to_thread(ready) else "no answer"

    return unready_reason


async def _check_node(url: str) -> None:
    """Raise StartupError unless a JSON-RPC node answers, asked as the workers ask it."""
    place = _without_key(url)
    version = None
    client = HttpClient(url, timeout_seconds=10.0)
    try:
        _, answer = await client.post(b'{"jsonrpc":"2.0","id":1,"method":"getVersion"}')
        version = json.loads(answer)["result"]
    except TimeoutError:
        raise StartupError(f"SOLANA_RPC_URL {place} cannot be reached: no answer within 10 s") from None
    except OSError as error:
        raise StartupError(f"SOLANA_RPC_URL {place} cannot be reached: {error}") from None
    except (HttpError, ValueError, KeyError, TypeError):
        pass  # somebody answers, who is none
    finally:
        client.close()
    if not isinstance(version, dict):
        raise StartupError(f"SOLANA_RPC_URL {place} is not a Solana node")


def _without_key(url: str) -> str:
    """Return the address without user, path and query, where providers have their customers' keys."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _funds(token: Token) -> int:
    return int(_FUNDS_OF.get(token.symbol, _FUNDS) * 10**token.decimals)


# ---- Words ---------------------------------------------------------------------------------------


def _first_steps(settings: Settings, folder: Path) -> str:
    host = _reachable(settings.host)
    rest = f"http://{with_port(host, settings.port)}"
    servers = _first_and_last(own.grpc_port for own in _server_settings(settings))
    command = _command()
    # Another terminal has the same .env, but not the variables that were set for this command.
    elsewhere = load_settings(environ={})
    if (elsewhere.grpc_host, elsewhere.grpc_port) != (settings.grpc_host, settings.grpc_port):
        where = f" --server {with_port(host, settings.grpc_port)}"
    else:
        where = ""
    order = '{"side":"sell","amount":1.5,"inputToken":"SOL","outputToken":"USDC"}'
    return f"""
  Console     {rest}/
  REST        {rest}/api/orders/execute      (documented at {rest}/docs)
  WebSocket   ws://{with_port(host, settings.port)}/api/orders/<orderId>/ws
  gRPC        {with_port(host, servers)}, orders.v1.OrderService
  Logs        {_shown(folder / "logs")}

  A first order, in another terminal:

    {command} submit sell 1.5 SOL USDC --watch{where}

  The same over REST, then watch it by its orderId:

    curl -s {rest}/api/orders/execute -H 'Content-Type: application/json' -d '{order}'
    {command} watch <orderId>{where}
"""


def _first_and_last(ports: Iterable[int]) -> str:
    first, *others = ports
    return f"{first} to {others[-1]}" if others else str(first)


def _command() -> str:
    if shutil.which("order-engine"):
        return "order-engine"
    beside = Path(sys.executable).with_name("order-engine")
    return _shown(beside) if beside.exists() else f"{_shown(Path(sys.executable))} -m cli"


def _shown(path: Path) -> str:
    """Return the path as it is shortest to type from here."""
    path = Path(os.path.abspath(path))
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
