"""Answers BatchSubmitOrders, BatchGetOrders and WatchOrders of gateways on this host, over engine.link."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import ExitStack
from typing import Any, Final

from google.protobuf.message import DecodeError
from orders.v1 import orders_pb2 as pb

from engine.link import PULSE_SECONDS, LinkConnection
from engine.process import StartupError
from server.refusals import to_status
from server.service import OrderService, listen, news_to_proto
from server.watches import Subscription, Watches

_MAX_MESSAGE_BYTES: Final = 1 << 20
"""As of a message over gRPC."""

logger = logging.getLogger(__name__)


class LinkServer:
    """Listens at a path until it is stopped; what its connections do are tasks of the group."""

    def __init__(self, service: OrderService, watches: Watches, group: asyncio.TaskGroup) -> None:
        self.service = service
        self.watches = watches
        self._group = group
        self._connections: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._pulse_timer: asyncio.TimerHandle | None = None

    async def start(self, path: str) -> None:
        """Raises StartupError."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            # What a server before this one has left behind is replaced.
            self._server = await asyncio.get_running_loop().create_unix_server(lambda: Link(self), path)
            os.chmod(path, 0o600)
            self._pulse()
        except OSError as error:
            raise StartupError(f"the Unix socket {path} cannot be used: {error.strerror}") from None

    async def stop(self, seconds: float) -> None:
        """Let what is under way end, for so long at most, and close the connections."""
        if self._server is not None:
            self._server.close()
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        for connection in self._connections:
            connection.close()

    def _pulse(self) -> None:
        for connection in self._connections:
            connection.send(0, b"")
        self._pulse_timer = asyncio.get_running_loop().call_later(PULSE_SECONDS, self._pulse)

    def opened(self, connection: Link) -> None:
        self._connections.add(connection)

    def ended(self, connection: Link) -> None:
        self._connections.discard(connection)

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Link(LinkConnection):
    """One gateway's connection."""

    def __init__(self, server: LinkServer) -> None:
        super().__init__(_MAX_MESSAGE_BYTES)
        self._server = server
        self._method: _Method | None = None
        """What each message is answered by; known with the first."""
        self._subscription: Subscription | None = None
        self._watching: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        """Not None while nothing is received."""
        self._at_end = ExitStack()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._server.opened(self)
        self.send(0, b"")

    def on_message(self, number: int, message: bytes) -> None:
        try:
            if self._subscription is not None:
                listen(pb.WatchOrdersRequest.FromString(message), self._subscription)
                if self._subscription.is_full and self._resuming is None:
                    self.pause_reading()
                    self._resuming = self._server.start_task(self._resume(self._subscription))
            elif self._method is not None:
                self._server.start_task(self._answer(self._method, number, message))
            elif message in _METHODS:
                self._method = _METHODS[message]
            elif message == b"WatchOrders":
                self._subscription = self._at_end.enter_context(self._server.watches.subscribe())
                self._watching = self._server.start_task(self._watch(self._subscription))
            else:
                raise DecodeError("no method of a link")
        except DecodeError as error:
            self._refuse(error)

    def _refuse(self, error: DecodeError) -> None:
        logger.warning("a link is closed: %s", error)
        self.close()

    def on_end(self) -> None:
        self._server.ended(self)
        self._at_end.close()
        for task in (self._watching, self._resuming):
            if task is not None:
                task.cancel()

    async def _answer(self, method: _Method, number: int, message: bytes) -> None:
        try:
            response = await method(self._server.service, message)
        except DecodeError as error:
            self._refuse(error)
        else:
            self.send(number, response.SerializeToString())

    async def _resume(self, subscription: Subscription) -> None:
        await subscription.room()
        self._resuming = None
        self.resume_reading()

    async def _watch(self, subscription: Subscription) -> None:
        try:
            async for events, ended in subscription.events():
                self.send(0, news_to_proto(events, ended).SerializeToString())
                await self.writable()
        except Exception as error:
            # Logs it if nobody expected it. The gateway comes back, to where it was.
            to_status(error)
            self.close()


async def _submit(service: OrderService, message: bytes) -> pb.BatchSubmitOrdersResponse:
    request = pb.BatchSubmitOrdersRequest.FromString(message)
    try:
        return await service.submit_batch(request)
    except Exception as error:
        refused = pb.BatchSubmitOrdersResult(error=to_status(error))
        return pb.BatchSubmitOrdersResponse(results=[refused] * len(request.requests))


async def _get(service: OrderService, message: bytes) -> pb.BatchGetOrdersResponse:
    request = pb.BatchGetOrdersRequest.FromString(message)
    try:
        return await service.get_batch(request)
    except Exception as error:
        refused = pb.BatchGetOrdersResult(error=to_status(error))
        return pb.BatchGetOrdersResponse(results=[refused] * len(request.order_ids))


_Method = Callable[[OrderService, bytes], Awaitable[pb.BatchSubmitOrdersResponse | pb.BatchGetOrdersResponse]]
"""Raises DecodeError for a message that is no request; what refuses all of one is each one's result."""
_METHODS: Final[Mapping[bytes, _Method]] = {b"BatchSubmitOrders": _submit, b"BatchGetOrders": _get}
