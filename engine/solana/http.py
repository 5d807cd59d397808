"""HTTP/1.1 as JSON-RPC needs it: a body is posted to one address, status and body come back.

An asyncio protocol on httptools, with connections that are kept: what a general client does for each request
takes several times what this takes for all of it.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Final, cast
from urllib.parse import unquote, urlsplit

from httptools import HttpParserError, HttpResponseParser

_MAX_IDLE: Final = 16
"""Connections kept for the next request."""


class HttpError(Exception):
    """What came back is no HTTP, or the connection ended before all of it had come."""


class HttpClient:
    """Posts to one URL, as many at a time as are asked for. `close` it at the end."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        """Raises ValueError for what is no http:// or https:// address."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f'"{url}" is not an address such as http://127.0.0.1:8899')
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._timeout_seconds = timeout_seconds
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [
            f"POST {target} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
        ]
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            lines.append(f"Authorization: Basic {b64encode(user.encode()).decode()}")
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
        self._idle: list[_Connection] = []

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Return the answer's status and body. Raises HttpError, OSError, TimeoutError."""
        connection = await self._connected()
        # A timer takes a third of what asyncio.timeout does.
        too_late = asyncio.get_running_loop().call_later(self._timeout_seconds, connection.give_up)
        try:
            answer = await connection.ask(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        except BaseException:
            # Its answer may still come, and would be taken for the next one's.
            connection.close()
            raise
        finally:
            too_late.cancel()
        if connection.is_open and len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop().close()

    async def _connected(self) -> _Connection:
        while self._idle:
            # The one used last: the others may be let go by the other side.
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_seconds):
            _, made = await loop.create_connection(
                _Connection, self._host, self._port, ssl=True if self._tls else None
            )
        return made


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser = HttpResponseParser(self)
        self._answered: asyncio.Future[tuple[int, bytes]] | None = None
        self._body: list[bytes] = []
        self.is_open = True
        """Whether another request can follow."""

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answered

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def give_up(self) -> None:
        """Wait for the answer no longer."""
        self._fail(TimeoutError())

    # ---- Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(HttpError(f"the answer is no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or HttpError("the connection was closed before the answer"))

    def _fail(self, error: Exception) -> None:
        self.is_open = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)
        self._transport.close()

    # ---- Called by the parser

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # "100 Continue" and its like come before the answer
        body, self._body = b"".join(self._body), []
        self.is_open = self.is_open and self._parser.should_keep_alive()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result((status, body))
        else:
            self.close()  # an answer that nobody asked for
