"""The gateway process: connects to the order service, serves until told to stop, then drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import uvicorn

from client import OrderClient
from engine.addresses import listen, with_port
from engine.process import StartupError
from engine.settings import Settings
from engine.telemetry import observe_batch
from gateway.app import make_app
from gateway.lookups import Lookups
from gateway.origins import Origins
from gateway.protocols import HttpProtocol
from gateway.sockets import Sockets
from gateway.submits import Submits

STARTUP_SECONDS: Final = 5.0
"""How long the order service may take to be there."""
DRAIN_SECONDS: Final = 10
"""How long requests under way may take to end after SIGTERM."""

logger = logging.getLogger(__name__)


async def serve(
    settings: Settings, stopping: asyncio.Event, on_listening: Callable[[int], None] | None = None
) -> None:
    """Serve until `stopping` is set. `on_listening` is told the port, which matters where PORT is 0.

    Raises StartupError when the port is in use or the order service cannot be reached.
    """
    origins = Origins(settings.origins, settings.host)
    listener = _listen(settings.host, settings.port)
    _raise_file_limit()
    with listener:
        async with OrderClient(
            settings.grpc_target,
            links=_own_first(settings),
            links_take_turns=settings.gateway_processes < settings.server_processes,
            observe_batch=observe_batch("gateway_submit"),
        ) as client:
            await _until_ready(client, stopping)
            sockets = Sockets(client, origins)
            config = uvicorn.Config(
                make_app(client, sockets, origins),
                http=partial(  # type: ignore[arg-type]
                    HttpProtocol, sockets, Submits(client, origins), Lookups(client, origins)
                ),
                lifespan="off",
                log_config=None,
                # At INFO it writes a line for each connection.
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
            port: int = listener.getsockname()[1]
            logger.info("listening", extra={"address": with_port(settings.host, port)})
            if on_listening is not None:
                on_listening(port)
            await _Server(config, stopping).serve(sockets=[listener])


def _own_first(settings: Settings) -> list[str]:
    """Return the servers' links, each gateway's own first: neighbours have neighbouring ports.

    A server knows what it has stored, and tells it without a read to who asked it for that.
    """
    paths = settings.link_paths
    own = settings.port % len(paths) if paths else 0
    return paths[own:] + paths[:own]


async def _until_ready(client: OrderClient, stopping: asyncio.Event) -> None:
    end = time.monotonic() + STARTUP_SECONDS
    while not stopping.is_set() and (reason := await client.unready_reason()) is not None:
        if time.monotonic() >= end:
            raise StartupError(f"{reason}; start the server, or correct GRPC_HOST, GRPC_PORT or LINK_FOLDER")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await stopping.wait()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise StartupError(f"PORT {port} on {host} cannot be used: {why}") from None


def _raise_file_limit() -> None:
    """A connection is a file, and the usual limit of 1024 is a default for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def main_loop(self) -> None:
        """Keep the date of answers right, until `stopping`; uvicorn's own looks ten times a second."""
        while not (await self.on_tick(0) or self._stopping.is_set()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: engine.process turns them into `stopping`."""
        yield
