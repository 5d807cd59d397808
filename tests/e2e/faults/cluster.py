"""The whole engine as real processes, each of which can be killed, frozen and started again by its name.

    postgres  valkey  simnet  server  gateway  worker-0  worker-1 ...

A process that ends without having been told to is started again, as `order-engine up` does, and how it
ended is noted: `crashes` must be empty at the end of a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, LiteralString

import psycopg
import redis.asyncio
from psycopg import sql

from cli import probe
from cli.children import Child
from cli.embedded import Postgres, Valkey, runtime_folder
from cli.launcher import Program
from engine.settings import Settings, settings_as_environ
from engine.solana.transactions import Wallet
from engine.storage.migrate import migrate
from tests.e2e.faults.checker import LedgerWatch, Record, check, describe, read_database, read_ledger
from tests.e2e.faults.waiting import Offer, Spec

ROOT: Final = Path(__file__).parents[3]
SERVICES: Final = ("postgres", "valkey", "simnet")
FUNDS: Final = {"SOL": 10**16, "USDC": 10**13, "USDT": 10**13, "BONK": 10**16, "JUP": 10**13, "RAY": 10**13}
"""What the wallet is given, in base units."""

_UNUSABLE: Final = 2  # exit code of a process that finds a service away when it starts
_READY_SECONDS: Final = 60.0
_RESTART_SECONDS: Final = 0.2
_POLL_SECONDS: Final = 0.02


class Cluster:
    """Use as `async with running(...)`. Its methods may be called at any time, in any order."""

    def __init__(self, folder: Path, settings: Settings, worker_count: int) -> None:
        self._postgres = Postgres(folder, options={"track_commit_timestamp": "on"})
        self._valkey = Valkey(folder)
        self.folder = folder
        self.settings = replace(
            settings,
            db_host=self._postgres.host,
            db_port=self._postgres.port,
            db_username=self._postgres.user,
            redis_host=self._valkey.host,
            link_folder=str(runtime_folder(folder)),
            wallet_path=str(folder / "wallet.json"),
            simnet_data_dir=str(folder / "simnet"),
        )
        self.workers = tuple(f"worker-{index}" for index in range(worker_count))
        self.trace: list[str] = []
        """What was done to whom, and what ended by itself, with the second."""
        self.crashes: list[str] = []
        """Processes that ended though nobody told them to."""
        self.kill_count = 0
        """Running processes that were ended with SIGKILL."""
        self.disturbed: list[tuple[float, float]] = []
        """From when to when the engine was not whole, in Unix seconds."""
        self._start_time = time.monotonic()
        self._programs: dict[str, Program] = {}
        self._wanted: set[str] = set()
        """Those that are to run; started again should they end."""
        self._frozen: set[str] = set()
        self._ledger: LedgerWatch | None = None
        self._tending: asyncio.Task[None] | None = None

    # ---- One process

    def pid(self, name: str) -> int:
        pid = self._programs[name].pid
        assert pid is not None, f"{name} was never started"
        return pid

    def running(self, name: str) -> bool:
        return name in self._programs and self._programs[name].running

    def kill(self, name: str) -> None:
        """SIGKILL, and leave it dead. A frozen one dies too."""
        self.kill_count += self.running(name)
        self._told(name, "SIGKILL")
        self._programs[name].kill()

    async def terminate(self, name: str) -> int | None:
        """SIGTERM, and leave it; return its exit code. One that does not end in time is killed."""
        self.thaw(name)
        self._told(name, "SIGTERM")
        program = self._programs[name]
        await asyncio.to_thread(program.stop, 16.0)
        self.note(f"{name} ended with {program.exit_code}")
        return program.exit_code

    def freeze(self, name: str) -> None:
        """SIGSTOP: it neither runs nor ends."""
        if self.running(name):
            self.note(f"SIGSTOP {name}")
            self._frozen.add(name)
            os.kill(self.pid(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT, if it is frozen."""
        if name in self._frozen:
            self._frozen.discard(name)
            if self.running(name):
                self.note(f"SIGCONT {name}")
                os.kill(self.pid(name), signal.SIGCONT)

    def start(self, name: str) -> None:
        """Start it (again), without waiting until it is ready; keep it running from now on."""
        self.note(f"start {name}")
        if name not in self._programs:
            self._programs[name] = self._program(name)
        self._wanted.add(name)
        if not self._programs[name].running:
            self._programs[name].spawn()

    async def ready(self, *names: str) -> None:
        """Return once they do their work."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                for name in names:
                    while (reason := await self.unready_reason(name)) is not None:  # noqa: ASYNC110
                        await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"{name} was not ready: {reason}") from None

    async def unready_reason(self, name: str) -> str | None:
        if not self.running(name):
            return "it does not run"
        if name in ("postgres", "valkey"):
            service = self._postgres if name == "postgres" else self._valkey
            return None if await asyncio.to_thread(service.ready) else "no answer"
        return await probe.unready_reason("127.0.0.1", self.port(name))

    async def empty_valkey(self) -> None:
        self.note("FLUSHALL")
        async with redis.asyncio.Redis.from_url(self.settings.redis_url) as valkey:
            await valkey.flushall()

    async def cut_connections(self, random_numbers: random.Random, *, crash: bool = False) -> None:
        """End every second connection of the engine to PostgreSQL, whatever it is doing just now.

        With `crash` one of them is killed instead, at which PostgreSQL ends all of them and recovers.
        """
        rows = await self.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'order-engine %%'"
        )
        chosen = [row[0] for row in rows if random_numbers.random() < 0.5]
        self.note(f"{'SIGKILL one' if crash else 'cut'} of {len(chosen)} connections")
        if crash and chosen:
            self.kill_count += 1
            os.kill(chosen[0], signal.SIGKILL)
        elif not crash:
            await self.fetch("SELECT pg_terminate_backend(pid) FROM unnest(%s::integer[]) AS pid", chosen)

    async def restart(self, *names: str) -> None:
        for name in names:
            self.start(name)
        await self.ready(*names)

    def port(self, name: str) -> int:
        """Return the port on which it serves /healthz and /metrics."""
        if name.startswith("worker-"):
            return self.settings.workers_metrics_port + int(name.removeprefix("worker-"))
        return {
            "simnet": self.settings.simnet_port,
            "server": self.settings.server_metrics_port,
            "gateway": self.settings.port,
        }[name]

    async def metric(self, name: str, sample: str) -> float:
        """Return a figure of the process by the start of its line in /metrics; 0 if it is not there."""
        _, body = await probe.request("127.0.0.1", self.port(name), "/metrics")
        for line in body.decode().splitlines():
            if line.startswith(sample):
                return float(line.rpartition(" ")[2])
        return 0.0

    def log(self, name: str) -> list[dict[str, Any]]:
        """Return what it logged since the cluster was started."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "logs" / f"{name}.log").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    # ---- What may be looked at, and stood in the way of

    async def fetch(self, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database."""
        async with await self._connect() as connection:
            return await (await connection.execute(query, values)).fetchall()

    async def status(self, order_id: str) -> str:
        """Return an order's status on record."""
        [(status,)] = await self.fetch("SELECT status::text FROM orders WHERE order_id = %s", order_id)
        return str(status)

    async def lease_owner(self, order_id: str) -> int | None:
        [(owner,)] = await self.fetch("SELECT lease_owner FROM orders WHERE order_id = %s", order_id)
        return None if owner is None else int(owner)

    async def leader(self, kind: str) -> str | None:
        """Return the worker that says it runs the monitor of that kind; None if none does."""
        sample = f'order_engine_monitor_leads{{kind="{kind}"}}'
        for name in self.workers:
            if self.running(name) and name not in self._frozen:
                # One that was started a moment ago does not answer yet.
                with contextlib.suppress(OSError):
                    if await self.metric(name, sample):
                        return name
        return None

    async def ready_workers(self) -> list[str]:
        """Return the workers that do their work."""
        awake = [name for name in self.workers if name not in self._frozen]
        return [name for name in awake if await self.unready_reason(name) is None]

    @asynccontextmanager
    async def disturbance(self, recovery_seconds: float) -> AsyncIterator[None]:
        """Excuse the engine while the block runs, and for so long after it."""
        start = time.time()
        try:
            yield
        finally:
            self.disturbed.append((start, time.time() + recovery_seconds))

    async def waits_for_a_lock(self, edge: str) -> bool:
        """Say whether a statement of that edge of the store waits for a lock."""
        return bool(
            await self.fetch(
                "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'",
                f"order-engine {edge}",
            )
        )

    @asynccontextmanager
    async def unwritable(self, table: str) -> AsyncIterator[None]:
        """Let nobody write to the table while the block runs; whoever wants to waits."""
        async with await self._connect() as connection, connection.transaction():
            await connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(sql.Identifier(table)))
            yield

    def holder(self, order_id: str) -> str | None:
        """Return the worker that executes an order, by what the workers log; the last one to begin."""
        begun = {
            line["time"]: name
            for name in self.workers
            for line in self.log(name)
            if line.get("order_id") == order_id
        }
        return begun[max(begun)] if begun else None

    async def until(self, condition: Callable[[], Awaitable[object]], seconds: float = 30.0) -> None:
        """Return once the condition holds; fail when it does not within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while not await condition():  # noqa: ASYNC110 - other processes set no event
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise AssertionError(f"not so after {seconds:g} s") from None

    async def all_closed(self, seconds: float = 60.0) -> None:
        """Return once no order is open."""

        async def none_open() -> bool:
            return not await self.fetch("SELECT FROM orders WHERE closed_status IS NULL LIMIT 1")

        await self.until(none_open, seconds)

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        return await psycopg.AsyncConnection.connect(self.settings.database, autocommit=True)

    # ---- All of them

    @property
    def names(self) -> tuple[str, ...]:
        return (*SERVICES, "server", *self.workers, "gateway")

    async def heal(self) -> None:
        """Thaw and start whatever is not running, and return when all of it is ready."""
        for name in self.names:
            self.thaw(name)
        for name in SERVICES:
            if not self.running(name):
                self.start(name)
        await self.ready(*SERVICES)
        for name in self.names:
            if not self.running(name):
                self.start(name)
        await self.ready(*self.names)

    async def node(self, method: str, params: Any = None) -> Any:
        """Call simnet."""
        asked = [] if params is None else [params]
        return await probe.call("127.0.0.1", self.settings.simnet_port, method, asked)

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.settings.grpc_port}"

    @property
    def ledger_file(self) -> Path:
        return self.folder / "simnet" / "ledger.sqlite3"

    def record(self) -> Record:
        """Return what database and ledger say now; clients' and watchers' logs are for the caller to add."""
        assert self._ledger is not None
        self._ledger.look(time.time())
        orders, events, attempts = read_database(self.settings.database)
        return Record(
            answers=[],
            watches=[],
            orders=orders,
            events=events,
            attempts=attempts,
            landed=read_ledger(self.ledger_file),
            bystander=self._ledger.notes,
            finalized_slots=self.settings.simnet_finalized_slots,
            disturbed=list(self.disturbed),
        )

    async def add_offers(self, record: Record) -> Record:
        """Return the record with what simnet's history says pools would have given for what waits."""
        offers = {}
        for order in record.orders:
            if order.type != "market" and order.spec is not None:
                offers[order.order_id] = await self.offers(order.spec)
        return replace(record, offers=offers)

    async def offers(self, spec: Spec) -> list[Offer]:
        """Return what pools would have given for a whole amount, by simnet's history, oldest slot first."""
        asked = {
            "inputToken": spec.input_mint,
            "outputToken": spec.output_mint,
            "side": spec.side,
            "amount": spec.amount,
        }
        return [
            Offer(row["slot"], None, None)
            if row["pool"] is None
            else Offer(row["slot"], int(row["inputAmount"]), int(row["outputAmount"]))
            for row in await self.node("simnet_history", asked)
        ]

    def judge(self, record: Record, complaints: list[str] | None = None) -> None:
        """Fail unless every promise was kept, nobody complained and nothing crashed."""
        if self._tending is not None and self._tending.done():
            self._tending.result()
        wrong = [*check(record), *(complaints or ()), *self.crashes, *self._errors_logged()]
        if wrong:
            concerned = [row.order_id for row in record.orders if any(row.order_id in line for line in wrong)]
            stories = [describe(record, order_id) for order_id in concerned[:5]]
            raise AssertionError("\n".join([*wrong[:50], "", *stories]))

    def report(self) -> str:
        """Return what was done and the last words of every process."""
        lines = ["trace:", *(f"  {line}" for line in self.trace)]
        for name in self.names:
            lines.append(f"{name}:")
            lines += [f"  {_short(line)}" for line in self.log(name)[-8:]]
        return "\n".join(lines)

    def note(self, text: str) -> None:
        self.trace.append(f"{time.monotonic() - self._start_time:7.3f} {text}")

    # ---- Starting and ending

    async def open(self) -> None:
        """Start everything, and return when it is ready. `close` whatever happens."""
        for name in ("postgres", "valkey"):
            self.start(name)
        await self.ready("postgres", "valkey")
        await migrate(self.settings)
        wallet = Wallet.create(Path(self.settings.wallet_path))
        self.start("simnet")
        await self.ready("simnet")
        for symbol, amount in FUNDS.items():
            await self.node("simnet_fund", {"wallet": str(wallet.pubkey), "mint": symbol, "amount": amount})
        self._ledger = LedgerWatch(self.ledger_file)
        self._tending = asyncio.get_running_loop().create_task(self._tend())
        await self.restart("server", *self.workers, "gateway")

    async def _tend(self) -> None:
        """Look at the ledger and after the processes, for ever."""
        due: dict[str, float] = {}
        while True:
            now = time.monotonic()
            if self._ledger is not None:
                self._ledger.look(time.time())
            for name in tuple(self._wanted):
                program = self._programs[name]
                if program.running or name not in self._wanted:
                    continue
                if name not in due:
                    due[name] = now + _RESTART_SECONDS
                    self._ended(name, program.exit_code)
                elif now >= due[name]:
                    del due[name]
                    self.start(name)
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Kill everything."""
        self._wanted.clear()
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])
        for program in reversed(self._programs.values()):
            program.kill()
        if self._ledger is not None:
            self._ledger.close()

    def _told(self, name: str, what: str) -> None:
        self.note(f"{what} {name}")
        self._wanted.discard(name)
        self._frozen.discard(name)

    def _ended(self, name: str, code: int | None) -> None:
        said = self._programs[name].last_words()
        self.note(f"{name} ended by itself with {code}: {said[:300]}")
        # A process that is started while a service is away says so and leaves. So does a PostgreSQL while
        # what is left of a killed one is still leaving.
        child = self._postgres.child
        is_early = name == "postgres" and child is not None and child.logged("shared memory block")
        if code != _UNUSABLE and not is_early:
            log = (self.folder / "logs" / f"{name}.log").read_text(errors="replace")
            self.crashes.append(f"crash: {name} ended by itself with {code}: {log[-4000:]}")

    def _errors_logged(self) -> Iterator[str]:
        for name in self.names:
            for line in self.log(name):
                if "error" in line or line.get("level") in ("ERROR", "CRITICAL"):
                    yield f"logged: {name}: {line.get('message')} {line.get('error', '')}"

    def _program(self, name: str) -> Program:
        if name == "postgres":
            return self._postgres
        if name == "valkey":
            return self._valkey
        command = [sys.executable, "-m", name]
        if name.startswith("worker-"):
            # As their supervisor starts them; this process stands in for it, so that each is killed by name.
            command = [sys.executable, "-m", "workers", name.removeprefix("worker-"), str(os.getpid())]
        return Child(
            name,
            command,
            log=self.folder / "logs" / f"{name}.log",
            environ=_environ() | settings_as_environ(self.settings),
            cwd=self.folder,
        )


@asynccontextmanager
async def running(worker_count: int = 2, **settings: Any) -> AsyncIterator[Cluster]:
    """Run the engine in a temporary folder, with `settings` other than the fault tests' own.

    Yields when all of it is ready.
    """
    folder = Path(tempfile.mkdtemp(prefix="oe-faults-"))
    chosen: dict[str, Any] = {
        # Blockhashes age in 4 s, and a transaction is final in half a second.
        "simnet_slot_ms": 25,
        "simnet_finalized_slots": 16,
        "lease_seconds": 2.0,
        "resend_seconds": 0.5,
        "retry_base_seconds": 0.1,
        "slippage_bps": 300,
    }
    server, metrics, gateway, simnet, *_ = ports = _free_ports(5 + worker_count)
    chosen |= {
        "grpc_port": server,
        "server_metrics_port": metrics,
        "port": gateway,
        "simnet_port": simnet,  # and the next one
        "workers_metrics_port": ports[5],
    }
    cluster = Cluster(folder, Settings(**(chosen | settings)), worker_count)
    try:
        await cluster.open()
        yield cluster
    except BaseException as error:
        error.add_note(cluster.report())
        raise
    finally:
        await cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Return neighbouring ports that nobody listens on.

    None of those that the system gives to outgoing connections: while a process is dead, one of its
    neighbours' connections might take its port.
    """
    while True:
        first = random.randrange(10_000, 30_000)
        ports = list(range(first, first + count))
        with contextlib.ExitStack() as stack:
            try:
                for port in ports:
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return ports


def _environ() -> dict[str, str]:
    path = [str(ROOT), str(ROOT / "generated"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def _short(line: dict[str, Any]) -> str:
    kept = {name: line[name] for name in ("time", "message", "order_id", "error") if name in line}
    return json.dumps(kept)[:400]
