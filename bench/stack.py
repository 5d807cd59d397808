"""A whole engine of our own to measure: `order-engine up --ephemeral` on free ports, gone at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from bench.measure import Server, server_of_launcher
from bench.wire import Address, HttpConnection, WireError, request_bytes

_START_SECONDS = 90.0
_STOP_SECONDS = 45.0

SLOT_MS = 10
"""Real slots take 400 ms: the network's time would hide the engine's."""


class StackError(Exception):
    """The engine could not be started; the message is what it said."""


@asynccontextmanager
async def own_server(worker_count: int = 1) -> AsyncIterator[Server]:
    """Start everything, yield once it is ready, stop everything. Raises StackError."""
    ports = dict(
        zip(
            ("PORT", "GRPC_PORT", "SERVER_METRICS_PORT", "SIMNET_PORT", "WORKERS_METRICS_PORT"),
            _free_ports(1, 1, 1, 2, worker_count),
            strict=True,
        )
    )
    environ = {
        **os.environ,
        **{name: str(port) for name, port in ports.items()},
        "HOST": "127.0.0.1",
        "SIMNET_SLOT_MS": str(SLOT_MS),
        "SIMNET_LANDING_SLOTS": "0",
        "SIMNET_LANDING_JITTER_SLOTS": "0",
        "SIMNET_FAULTS": "",
        "LOG_LEVEL": "WARNING",
    }
    launcher = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli", "up", "--ephemeral", "--workers", str(worker_count)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environ,
    )
    assert launcher.stdout is not None
    said: list[str] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(_listen(launcher.stdout, said))
        try:
            await _until_ready(launcher, ports["PORT"], said)
            yield server_of_launcher(launcher.pid)
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


async def _until_ready(launcher: asyncio.subprocess.Process, port: int, said: list[str]) -> None:
    address = Address("127.0.0.1", port, "")
    request = request_bytes(address, "GET", "/healthz")
    try:
        async with asyncio.timeout(_START_SECONDS):
            while launcher.returncode is None:
                connection = HttpConnection()
                with suppress(OSError, WireError):
                    # The gateway is the last to start.
                    if (await connection.request(address, request)).status == 200:
                        return
                connection.close()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise StackError(f"the engine was not ready after {_START_SECONDS:.0f} s:\n{_tail(said)}") from None
    raise StackError(f"the engine did not start:\n{_tail(said)}")


async def _listen(output: asyncio.StreamReader, said: list[str]) -> None:
    async for line in output:
        said.append(line.decode(errors="replace").rstrip())
        del said[:-50]


def _tail(said: list[str]) -> str:
    return "\n".join(said[-15:])


def _free_ports(*counts: int) -> list[int]:
    """Return the first of so many neighbouring free ports, for each count."""
    held: list[socket.socket] = []
    firsts = []
    try:
        for count in counts:
            while True:
                held.append(socket.create_server(("127.0.0.1", 0)))
                first: int = held[-1].getsockname()[1]
                try:
                    held += [socket.create_server(("127.0.0.1", first + n)) for n in range(1, count)]
                except (OSError, OverflowError):
                    continue
                firsts.append(first)
                break
    finally:
        for listener in held:
            listener.close()
    return firsts
