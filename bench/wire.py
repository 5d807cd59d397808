"""HTTP/1.1 and WebSocket, as little of them as a load generator needs.

The generator shares its machine with what it measures, so what it spends distorts the result, and a
general client library does more for each request than is needed here. One connection carries one request at
a time; a WebSocket only listens, apart from pongs and the answer to a close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
NO_CODE: Final = 1005
"""A close frame without a code (RFC 6455, 7.4.1)."""
ABNORMAL: Final = 1006
"""The connection ended without a close frame."""

# The key protects caches from confusion, not us: a constant one will do (RFC 6455, 10.3).
_KEY: Final = b"b3JkZXItZW5naW5lLWJlbg=="
_MASK: Final = b"\0\0\0\0"
"""Clients must mask; with zeros the payload stays as it is."""


class WireError(Exception):
    """The other side broke the protocol, or the connection."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    path: str
    """Before the endpoint's own, without a trailing slash."""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ValueError for what is not http://HOST[:PORT][/PATH]."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f'"{url}" is not an address such as http://127.0.0.1:3000')
        return cls(parts.hostname, parts.port or 80, parts.path.rstrip("/"))

    @property
    def host_header(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# ---- HTTP ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    closes: bool
    """The connection ends with this answer."""


def request_bytes(address: Address, method: str, path: str, body: bytes = b"") -> bytes:
    """Return a whole request; `path` is below the address's own."""
    head = f"{method} {address.path}{path} HTTP/1.1\r\nHost: {address.host_header}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def read_answer(data: bytes) -> tuple[Answer, bytes] | None:
    """Return the first answer in `data` and what follows it; None while it is incomplete.

    Raises WireError for what is not HTTP/1.1.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    if not data.startswith(b"HTTP/1."):
        raise WireError("the answer is not HTTP/1.1")
    status = int(data[9:12])
    head = data[:end].lower()
    closes = b"\r\nconnection: close" in head
    start = end + 4
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        stop = start + int(head[at + 17 :].split(b"\r\n", 1)[0])
        if len(data) < stop:
            return None
        return Answer(status, data[start:stop], closes), data[stop:]
    if b"\r\ntransfer-encoding: chunked" in head:
        chunks: list[bytes] = []
        while True:
            line_end = data.find(b"\r\n", start)
            if line_end < 0:
                return None
            size = int(data[start:line_end].split(b";", 1)[0], 16)
            stop = line_end + 2 + size
            if len(data) < stop + 2:
                return None
            if size == 0:
                return Answer(status, b"".join(chunks), closes), data[stop + 2 :]
            chunks.append(data[line_end + 2 : stop])
            start = stop + 2
    return Answer(status, b"", closes), data[start:]


class HttpConnection:
    """A keep-alive connection, for one request at a time; made at the first, and anew once it is lost."""

    def __init__(self) -> None:
        self._link = _HttpLink()

    async def request(self, address: Address, request: bytes) -> Answer:
        """Send and return the answer. Raises OSError, WireError."""
        if self._link.transport is None:
            self._link = _HttpLink()
            await asyncio.get_running_loop().create_connection(lambda: self._link, address.host, address.port)
        return await self._link.request(request)

    def close(self) -> None:
        self._link.close()


class _HttpLink(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        """None before and after the connection."""
        self._waiter: asyncio.Future[Answer] | None = None
        self._data = b""

    def request(self, request: bytes) -> asyncio.Future[Answer]:
        assert self.transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiter

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        if self._waiter is None or self._waiter.done():
            return
        try:
            read = read_answer(self._data)
        except (WireError, ValueError) as error:
            self._waiter.set_exception(WireError(str(error)))
            self.close()
            return
        if read is None:
            return
        answer, self._data = read
        if answer.closes:
            self.close()
        self._waiter.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error or ConnectionResetError("the server closed the connection"))


# ---- WebSocket -------------------------------------------------------------------------------------


def frame_bytes(opcode: int, payload: bytes) -> bytes:
    """Return a whole, masked frame, as clients send them. At most 125 bytes: that is all we send."""
    if len(payload) > 125:
        raise ValueError("a control frame holds at most 125 bytes")
    return bytes((0x80 | opcode, 0x80 | len(payload))) + _MASK + payload


class FrameReader:
    """Cuts a server's stream into messages."""

    def __init__(self) -> None:
        self._data = b""
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the messages and control frames that are now complete, as (opcode, payload).

        Raises WireError for a frame that servers may not send.
        """
        data = self._data + data if self._data else data
        found: list[tuple[int, bytes]] = []
        at = 0
        while len(data) - at >= 2:
            first, second = data[at], data[at + 1]
            if first & 0x70 or second & 0x80:
                raise WireError("a masked or extended frame from the server")
            size, start = second & 0x7F, at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if len(data) < start or len(data) - start < size:
                break
            payload, at = data[start : start + size], start + size
            opcode, final = first & 0x0F, first & 0x80
            if opcode & 0x8:
                found.append((opcode, payload))
            elif final:
                found.append((TEXT, b"".join((*self._parts, payload)) if self._parts else payload))
                self._parts.clear()
            else:
                self._parts.append(payload)
        self._data = data[at:]
        return found


class WebSocket(asyncio.Protocol):
    """Listens to one path: `on_text` for each message, then `on_end` once.

    `on_end` is told the close code, or an HTTP status where the upgrade was refused.
    """

    def __init__(
        self, address: Address, path: str, on_text: Callable[[bytes], None], on_end: Callable[[int], None]
    ) -> None:
        self._address = address
        self._path = path
        self._on_text = on_text
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._frames: FrameReader | None = None
        self._head = b""
        self._ended = False

    async def open(self) -> None:
        """Connect; what follows comes by the callbacks. Raises OSError."""
        await asyncio.get_running_loop().create_connection(
            lambda: self, self._address.host, self._address.port
        )

    def close(self) -> None:
        """Leave without a word more; `on_end` is not called any more."""
        self._ended = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            f"GET {self._address.path}{self._path} HTTP/1.1\r\nHost: {self._address.host_header}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".encode()
            + b"Sec-WebSocket-Key: %b\r\n\r\n" % _KEY
        )

    def data_received(self, data: bytes) -> None:
        if self._frames is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            status = int(self._head[9:12]) if self._head[9:12].isdigit() else 0
            if status != 101:
                self._end(status)
                return
            self._frames = FrameReader()
            data = self._head[end + 4 :]
        try:
            messages = self._frames.feed(data)
        except WireError:
            self._end(ABNORMAL)
            return
        for opcode, payload in messages:
            if self._ended:
                return
            if opcode == TEXT:
                self._on_text(payload)
            elif opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                self._send(CLOSE, payload[:2])
                self._end(int.from_bytes(payload[:2], "big") if len(payload) >= 2 else NO_CODE)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(ABNORMAL)

    def _send(self, opcode: int, payload: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame_bytes(opcode, payload))

    def _end(self, code: int) -> None:
        if not self._ended:
            self._ended = True
            if self._transport is not None:
                self._transport.close()
            self._on_end(code)
