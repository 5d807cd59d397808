"""HTTP as JSON-RPC needs it: the requests of a connection are answered in order, most of them on the spot.

An asyncio protocol on httptools, because aiohttp's server takes 150 us of every request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

logger = logging.getLogger(__name__)

MAX_BODY: Final = 2**20
"""Bytes of a request; larger ones are refused with 413."""
MAX_HEAD: Final = 2**16
"""Bytes before a request's body that are waited for; beyond them it is refused with 431."""
_IDLE_SECONDS: Final = 300.0
"""Far longer than a client leaves a connection alone that it means to use again."""

Serve = Callable[[str, str, bytes], bytes | Coroutine[Any, Any, bytes]]
"""Takes method, path and body, and gives a whole answer, or a coroutine of one."""

_STATUS_LINES: Final = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n" for each in HTTPStatus}
_JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def json_answer(pieces: list[bytes]) -> bytes:
    """Return the whole answer that carries this JSON."""
    return b"".join([_JSON_HEAD % sum(map(len, pieces)), *pieces])


def answer(body: bytes, *, status: int = 200, content_type: str = "text/plain; charset=utf-8") -> bytes:
    """Return the whole answer of that status."""
    head = f"{_STATUS_LINES[status]}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class HttpConnections:
    """All HTTP connections of the node. Called, it makes the protocol of another one."""

    def __init__(self, serve: Serve, tasks: asyncio.TaskGroup) -> None:
        """Answers that take longer are made in `tasks`."""
        self._serve = serve
        self._tasks = tasks
        self._open: set[_Connection] = set()

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self._serve, self._tasks, self._open)

    def close(self) -> None:
        """Hang up, where an answer is under way after it."""
        for connection in list(self._open):
            connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self, serve: Serve, tasks: asyncio.TaskGroup, connections: set[_Connection]) -> None:
        self._serve = serve
        self._tasks = tasks
        self._connections = connections
        self._parser = HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._head_size = 0
        """Bytes that came without completing a head, or being a body."""
        self._is_heard = True
        """Something came since the connection was last looked after."""
        self._idle_timer: asyncio.TimerHandle
        self._asked: deque[tuple[str, str, bytes]] = deque()
        """Method, path and body of requests that wait for the one before to be answered."""
        self._is_answering = False
        self._is_blocked = False
        """Whoever asks does not read its answers: there are no more until it has read some."""
        self._is_last = False
        """The connection ends after the requests that have been read."""

    def close(self) -> None:
        self._is_last = True
        if not self._is_answering:
            self._transport.close()

    # ---- Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._look_after()

    def connection_lost(self, _error: Exception | None) -> None:
        self._idle_timer.cancel()
        self._connections.discard(self)
        self._asked.clear()

    def data_received(self, data: bytes) -> None:
        self._is_heard = True
        self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            # To a protocol that is not spoken here: the request itself is all that is answered.
            self._is_last = True
        except HttpParserError:
            # What follows the last request is not looked at, whatever it is.
            if not self._is_last:
                self._refuse(answer(b"this is no HTTP request\n", status=400))
                return
        if self._head_size > MAX_HEAD:
            self._refuse(answer(b"the request's head is too large\n", status=431))
            return
        self._answer_asked()

    def pause_writing(self) -> None:
        self._is_blocked = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_blocked = False
        if not self._is_answering:
            self._transport.resume_reading()
            self._answer_asked()

    # ---- Called by the parser

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_headers_complete(self) -> None:
        self._head_size = 0

    def on_body(self, body: bytes) -> None:
        self._head_size = 0
        self._size += len(body)
        if self._size <= MAX_BODY:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._size > MAX_BODY:
            self._refuse(answer(b"the request is too large\n", status=413))
        elif not self._is_last:
            self._asked.append(
                (
                    self._parser.get_method().decode("ascii"),
                    self._url.partition(b"?")[0].decode("latin-1"),
                    b"".join(self._body),
                )
            )
            self._is_last = not self._parser.should_keep_alive()
        self._url, self._body, self._size = b"", [], 0

    # ---- Answers

    def _look_after(self) -> None:
        """Let go of a connection of which nothing came since the last time, unless it waits for an answer."""
        if not self._is_heard and not self._is_answering:
            self._transport.abort()
            return
        self._is_heard = False
        self._idle_timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._look_after)

    def _answer_asked(self) -> None:
        while self._asked and not self._is_answering and not self._is_blocked:
            method, path, body = self._asked.popleft()
            try:
                answered = self._serve(method, path, body)
            except Exception:
                logger.exception("a request could not be answered")
                answered = answer(b"", status=500)
            if isinstance(answered, bytes):
                if method == "HEAD":
                    answered = answered[: answered.index(b"\r\n\r\n") + 4]
                self._transport.write(answered)
            else:
                self._is_answering = True
                self._transport.pause_reading()
                self._tasks.create_task(self._answer_later(answered))
        if self._is_last and not self._is_answering and not self._asked:
            self._transport.close()

    async def _answer_later(self, making: Coroutine[Any, Any, bytes]) -> None:
        try:
            answered = await making
        except Exception:
            logger.exception("a request could not be answered")
            answered = answer(b"", status=500)
        self._is_answering = False
        if not self._transport.is_closing():
            self._transport.write(answered)
            if not self._is_blocked:
                self._transport.resume_reading()
            self._answer_asked()

    def _refuse(self, answered: bytes) -> None:
        self._transport.write(answered)
        self._transport.close()
        self._asked.clear()
