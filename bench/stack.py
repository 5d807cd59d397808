"""A whole engine of our own to measure: `order-engine up --ephemeral` on free ports, gone at the end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from bench.measure import Server, server_of_launcher
from bench.wire import Address, HttpConnection, WireError, request_bytes
from cli.children import in_front

_START_SECONDS = 90.0
_STOP_SECONDS = 45.0
_BLOCKHASH_SECONDS = 60
# Below those that systems give to outgoing connections, of which a load test makes thousands.
_PORTS = range(20_000, 32_000)

SLOT_MS = 10
"""Real slots take 400 ms: the network's time would hide the engine's."""


class StackError(Exception):
    """The engine could not be started; the message is what it said."""


@asynccontextmanager
async def own_server(
    worker_count: int = 1,
    slot_ms: int = SLOT_MS,
    *,
    server_count: int = 1,
    gateway_count: int = 1,
    data_folder: Path | None = None,
    name: str = "order-engine",
) -> AsyncIterator[Server]:
    """Start everything, yield once it is ready, stop everything. Raises StackError.

    `data_folder` None: one that is removed at the end. `name` is what reports call it.
    """
    ports = dict(
        zip(
            ("PORT", "GRPC_PORT", "SERVER_METRICS_PORT", "SIMNET_PORT", "WORKERS_METRICS_PORT"),
            free_ports(gateway_count, server_count, server_count, 2, worker_count),
            strict=True,
        )
    )
    counts = {"--workers": worker_count, "--servers": server_count, "--gateways": gateway_count}
    command = [sys.executable, "-m", "cli", "up"]
    command += ["--ephemeral"] if data_folder is None else ["--data-dir", str(data_folder)]
    command += [word for option, count in counts.items() for word in (option, str(count))]
    environ = {
        **os.environ,
        **{name: str(port) for name, port in ports.items()},
        "HOST": "127.0.0.1",
        # Embedded, whatever the environment or .env name: a load test is not for anybody's own services.
        **dict.fromkeys(
            ("DB_HOST", "DB_NAME", "REDIS_HOST", "SOLANA_RPC_URL", "SOLANA_WS_URL", "WALLET_PATH"), ""
        ),
        "SIMNET_SLOT_MS": str(slot_ms),
        "SIMNET_LANDING_SLOTS": "0",
        "SIMNET_LANDING_JITTER_SLOTS": "0",
        # As long as in reality: 150 blocks of 10 ms are too short for a queue to pass.
        "SIMNET_BLOCKHASH_BLOCKS": str(_BLOCKHASH_SECONDS * 1000 // slot_ms),
        "SIMNET_FAULTS": "",
        # Prices move by the orders alone: moved every slot, at slots of 10 ms, the market is forty times as
        # fast as it should be, and what fails then is no figure of the engine.
        "SIMNET_MARKET_POOLS": "0",
        # Orders that wait are put into the database as due in an hour. What is put off for longer than any
        # retry is taken to have been so by a wrong clock, and made due.
        "RETRY_CAP_SECONDS": "7200",
        # Nobody here orders what is launched.
        "SIMNET_LAUNCH_SLOTS": "0",
        "SIMNET_HISTORY_SLOTS": "0",
    }
    with tempfile.TemporaryFile() as said:
        launcher = await asyncio.create_subprocess_exec(
            # It stops in order, and removes its folder, when this process ends, however it ends.
            *in_front(command, signal.SIGTERM),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=asyncio.subprocess.STDOUT,
            env=environ,
        )
        try:
            why_not = await _until_ready(launcher, range(ports["PORT"], ports["PORT"] + gateway_count))
            if why_not is not None:
                said.seek(0)
                raise StackError(f"the engine {why_not}; it said:\n{said.read().decode(errors='replace')}")
            yield server_of_launcher(launcher.pid, name)
        finally:
            with suppress(ProcessLookupError):
                launcher.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await launcher.wait()
            except TimeoutError:
                # Its children die with it.
                launcher.kill()
                await launcher.wait()


async def _until_ready(launcher: asyncio.subprocess.Process, ports: Iterable[int]) -> str | None:
    """Return None once the gateways, the last to start, are ready; else why they will not be."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            for port in ports:
                while not await _is_ready(port):
                    if launcher.returncode is not None:
                        return "did not start"
                    await asyncio.sleep(0.1)
    except TimeoutError:
        return f"was not ready after {_START_SECONDS:.0f} s"
    return None


async def _is_ready(port: int) -> bool:
    address = Address("127.0.0.1", port, "")
    connection = HttpConnection()
    with suppress(OSError, WireError), closing(connection):
        request = request_bytes(address, "GET", "/healthz")
        return (await connection.request(address, request)).status == 200
    return False


def free_ports(*counts: int) -> list[int]:
    """Return the first of so many neighbouring free ports, for each count."""
    held: list[socket.socket] = []
    firsts = []
    try:
        for count in counts:
            while True:
                first = random.choice(_PORTS)
                try:
                    held += [socket.create_server(("127.0.0.1", first + n)) for n in range(count)]
                except OSError:
                    continue
                firsts.append(first)
                break
    finally:
        for listener in held:
            listener.close()
    return firsts
