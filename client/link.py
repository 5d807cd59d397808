"""Submits, reads and watches at the servers of this host: the contract's messages over engine.link."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from typing import Final, TypeVar

from google.protobuf.message import Message
from orders.v1 import orders_pb2 as pb

from client.errors import ServerUnavailable
from engine.link import PULSE_SECONDS, SILENCE_SECONDS, LinkConnection

_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_MAX_UNREAD: Final = 64
"""Messages that a watch holds before it lets the server wait."""

_GREETING_SECONDS: Final = 2.0
"""How long a server that takes a connection may be silent before another one is tried."""
_AWAY_SECONDS: Final = 10.0
"""For how long others are then preferred to it."""

Opened = TypeVar("Opened", bound="_Connection")


class Links:
    """Connections to the servers that listen on these paths. `close` it at the end."""

    def __init__(self, paths: Sequence[str], *, take_turns: bool = True) -> None:
        """They `take_turns`; or all goes to the first, for which the others stand in while it is away."""
        self._paths = paths
        self._take_turns = take_turns
        self._turns = count()
        self._away: dict[str, float] = {}
        """Until when others are preferred to a path, by the loop's clock."""
        self._calls: dict[tuple[type[_Calls], str], _Calls] = {}
        self._opening: defaultdict[tuple[type[_Connection], str], asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while a connection of the kind is opened to the path: there is never a second one."""

    async def submit(
        self, request: pb.BatchSubmitOrdersRequest, timeout_seconds: float
    ) -> pb.BatchSubmitOrdersResponse:
        """Raises ServerUnavailable: there was no answer, so the orders may have been stored."""
        return pb.BatchSubmitOrdersResponse.FromString(await self._call(_Submits, request, timeout_seconds))

    async def get(
        self, request: pb.BatchGetOrdersRequest, timeout_seconds: float
    ) -> pb.BatchGetOrdersResponse:
        """Raises ServerUnavailable."""
        return pb.BatchGetOrdersResponse.FromString(await self._call(_Gets, request, timeout_seconds))

    async def check(self) -> None:
        """Return if a server is connected, or can be. Raises ServerUnavailable."""
        await self._in_turn(_Gets, partial(self._open_calls, _Gets))

    def watch(self) -> LinkWatch:
        """Open a stream of watches; what goes wrong ends it."""
        return LinkWatch(self._in_turn(_Watch, self._open_watch))

    def close(self) -> None:
        for connection in self._calls.values():
            connection.close()

    async def _call(self, kind: type[_Calls], request: Message, timeout_seconds: float) -> bytes:
        connection = await self._in_turn(kind, partial(self._open_calls, kind))
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await connection.call(request.SerializeToString())
        except TimeoutError:
            if connection.heard_time < began and timeout_seconds >= PULSE_SECONDS:
                # Not slow but frozen: it did not even tell that it is there.
                self._note_away(next(path for (_, path), one in self._calls.items() if one is connection))
                connection.abort()
            raise ServerUnavailable(f"no answer within {timeout_seconds:g} s") from None

    def _note_away(self, path: str) -> None:
        self._away[path] = asyncio.get_running_loop().time() + _AWAY_SECONDS

    async def _in_turn(self, kind: type[_Connection], open_at: Callable[[str], Awaitable[Opened]]) -> Opened:
        """Return a connection to the server whose turn it is, or to another if that one is away."""
        first = next(self._turns) % len(self._paths) if self._take_turns else 0
        now = asyncio.get_running_loop().time()
        paths = [*self._paths[first:], *self._paths[:first]]
        # One that hangs takes a while to be found away: others go elsewhere meanwhile, and for a time after.
        paths.sort(key=lambda path: (self._away.get(path, now) > now, self._opening[kind, path].locked()))
        refusal: OSError | None = None
        for path in paths:
            try:
                return await open_at(path)
            except OSError as error:
                refusal = error
                self._note_away(path)
        raise ServerUnavailable(f"the server cannot be reached: {refusal}")

    async def _open_calls(self, kind: type[_Calls], path: str) -> _Calls:
        away = self._away.get(path)
        async with self._opening[kind, path]:
            connection = self._calls.get((kind, path))
            if connection is None or not connection.is_open:
                if self._away.get(path) != away:
                    # Whoever tried has waited for all: one after the other they would wait very long.
                    raise ConnectionRefusedError("the server was found away a moment ago")
                connection = self._calls[kind, path] = await _opened(path, kind())
            return connection

    async def _open_watch(self, path: str) -> _Watch:
        return await _opened(path, _Watch())


class LinkWatch:
    """As much of grpc.aio's StreamStreamCall as client.watches uses."""

    def __init__(self, opening: Awaitable[_Watch]) -> None:
        self._opening = asyncio.ensure_future(opening)

    async def read(self) -> pb.WatchOrdersResponse | None:
        """Return the next message; None: the stream has ended."""
        try:
            connection = await asyncio.shield(self._opening)
        except ServerUnavailable:
            return None
        return await connection.read()

    async def write(self, request: pb.WatchOrdersRequest) -> None:
        """Send the request. Raises InvalidStateError once the stream has ended."""
        try:
            connection = await asyncio.shield(self._opening)
        except ServerUnavailable as error:
            raise asyncio.InvalidStateError(error.message) from None
        await connection.write(request)

    def cancel(self) -> None:
        if self._opening.cancel() or self._opening.cancelled():
            return
        if self._opening.exception() is None:
            self._opening.result().close()


class _Connection(LinkConnection):
    """Ends when its server is silent for too long."""

    def __init__(self) -> None:
        super().__init__(_MAX_MESSAGE_BYTES)
        self.greeted = asyncio.Event()
        """The server has said something, or never will."""
        self._heard = True
        self.heard_time = 0.0
        """When something last came, by the loop's clock."""
        self._check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._listen_on()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self.heard_time = asyncio.get_running_loop().time()
        self.greeted.set()
        super().data_received(data)

    def on_end(self) -> None:
        self.greeted.set()
        if self._check is not None:
            self._check.cancel()

    def _listen_on(self) -> None:
        if not self._heard:
            self.abort()
            return
        self._heard = False
        self._check = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._listen_on)


class _Calls(_Connection):
    """One answer to each message."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = count(1)
        self._unanswered: dict[int, asyncio.Future[bytes]] = {}

    def call(self, request: bytes) -> asyncio.Future[bytes]:
        number = next(self._numbers)
        answer = self._unanswered[number] = asyncio.get_running_loop().create_future()
        self.send(number, request)
        return answer

    def on_message(self, number: int, message: bytes) -> None:
        answer = self._unanswered.pop(number, None)
        # Its caller may have given up.
        if answer is not None and not answer.done():
            answer.set_result(message)

    def on_end(self) -> None:
        super().on_end()
        unanswered, self._unanswered = self._unanswered, {}
        for answer in unanswered.values():
            if not answer.done():
                answer.set_exception(ServerUnavailable("the connection to the server was lost"))


class _Submits(_Calls):
    method = b"BatchSubmitOrders"


class _Gets(_Calls):
    method = b"BatchGetOrders"


class _Watch(_Connection):
    method = b"WatchOrders"

    def __init__(self) -> None:
        super().__init__()
        self._unread: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None

    async def write(self, request: pb.WatchOrdersRequest) -> None:
        await self.writable()
        if not self.is_open:
            raise asyncio.InvalidStateError("the connection to the server was lost")
        self.send(0, request.SerializeToString())

    async def read(self) -> pb.WatchOrdersResponse | None:
        while not self._unread:
            if not self.is_open:
                return None
            self.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return pb.WatchOrdersResponse.FromString(self._unread.popleft())

    def on_message(self, number: int, message: bytes) -> None:
        if not message:
            return
        self._unread.append(message)
        if len(self._unread) >= _MAX_UNREAD:
            self.pause_reading()
        self._wake()

    def on_end(self) -> None:
        super().on_end()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _opened(path: str, connection: Opened) -> Opened:
    """Connect and say what it is for. Raises OSError, also if the server takes the connection and hangs."""
    await asyncio.get_running_loop().create_unix_connection(lambda: connection, path)
    connection.send(0, connection.method)
    try:
        async with asyncio.timeout(_GREETING_SECONDS):
            await connection.greeted.wait()
    except TimeoutError:
        connection.abort()
        raise
    if not connection.is_open:
        # Nothing would tell who uses it now: its end has been told.
        raise ConnectionResetError("the server hung up")
    return connection
