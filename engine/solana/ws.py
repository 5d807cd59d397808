"""WebSocket (RFC 6455) as a node's announcements need it: texts go out, texts come in.

An asyncio protocol that reads frames by hand: with a general client a text of 120 bytes takes twice the time.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha1
from typing import Final, Self, cast
from urllib.parse import unquote, urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

_CONTINUED, _TEXT, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x8, 0x9, 0xA
_FINAL: Final = 0x80
_MASKED: Final = 0x80
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_MESSAGE: Final = 16 * 2**20
"""Bytes. An account has at most 10 MiB, of which base64 makes a third more."""
_MAX_UNREAD: Final = 1_000
"""Texts that may wait to be taken; the other side has to wait then."""
_BEAT_SECONDS: Final = 15.0


class WebSocketError(Exception):
    """The other side does not speak WebSocket, or the connection has ended."""


class WebSocket(asyncio.Protocol):
    """Iterated over, it yields each text that comes; WebSocketError ends that."""

    def __init__(self, request: bytes, accept: bytes) -> None:
        """`request` asks for the upgrade; `accept` is the header that grants it."""
        self._request = request
        self._accept = accept
        self._transport: asyncio.Transport
        self._handshake: HttpResponseParser | None = HttpResponseParser(self)
        """None once the connection is one of frames."""
        self._accepted = b""
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._data = b""
        """The beginning of a frame whose end has not come."""
        self._parts: list[bytes] = []
        """What has come of a text in several frames."""
        self._texts: deque[bytes] = deque()
        self._come = asyncio.Event()
        self._is_paused = False
        """Too many texts wait for more to be read."""
        self._error: WebSocketError | None = None
        """Why nothing more comes."""
        self._is_heard = True
        """Something came since the last beat."""
        self._next_beat: asyncio.TimerHandle | None = None

    def send(self, text: bytes) -> None:
        """Send a text; after the end, nothing."""
        self._send(_TEXT, text)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._texts:
            if self._error is not None:
                raise self._error
            self._come.clear()
            await self._come.wait()
        text = self._texts.popleft()
        if self._is_paused and not self._texts and self._error is None:
            self._is_paused = False
            self._transport.resume_reading()
        return text

    def close(self) -> None:
        """Take leave, and hang up."""
        if self._error is None and self._handshake is None:
            self._send(_CLOSE, b"")
        self._end("it was closed here")

    # ---- Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)
        self._beat()

    def data_received(self, data: bytes) -> None:
        self._is_heard = True
        try:
            if self._handshake is not None:
                try:
                    self._handshake.feed_data(data)
                except HttpParserUpgrade as upgraded:
                    self._handshake = None
                    if self._accepted != self._accept:
                        raise WebSocketError("the other side did not mean this connection") from None
                    self.opened.set_result(None)
                    data = data[upgraded.args[0] :]
                else:
                    return
            self._read_frames(data)
        except (HttpParserError, WebSocketError) as error:
            self._end(str(error))

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection was lost: {error!r}")
        if self._next_beat is not None:
            self._next_beat.cancel()

    # ---- Called by the parser of the handshake

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"sec-websocket-accept":
            self._accepted = value

    def on_message_complete(self) -> None:
        assert self._handshake is not None
        if (status := self._handshake.get_status_code()) != 101:
            self._end(f"it was refused: HTTP {status}")

    # ---- Frames

    def _read_frames(self, data: bytes) -> None:
        """Read what has come whole, and keep the rest. Raises WebSocketError."""
        data = self._data + data if self._data else data
        at, length = 0, len(data)
        while length - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            elif size > 127:
                raise WebSocketError("a frame is masked, as none from a server may be")
            if size > _MAX_MESSAGE:
                raise WebSocketError(f"a frame is of {size} bytes")
            if length < start + size:
                break
            self._on_frame(data[at], data[start : start + size])
            at = start + size
        self._data = data[at:]
        if len(self._texts) > _MAX_UNREAD and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _on_frame(self, head: int, content: bytes) -> None:
        if head == _FINAL | _TEXT:
            self._texts.append(content)
            self._come.set()
        elif head & ~_FINAL in (_TEXT, _CONTINUED):
            self._parts.append(content)
            if sum(map(len, self._parts)) > _MAX_MESSAGE:
                raise WebSocketError("a text has no end")
            if head & _FINAL:
                self._texts.append(b"".join(self._parts))
                self._parts.clear()
                self._come.set()
        elif head == _FINAL | _PING:
            self._send(_PONG, content)
        elif head == _FINAL | _CLOSE:
            self._send(_CLOSE, content[:2])
            raise WebSocketError(f"the other side closed it: {content[2:].decode(errors='replace')}")
        elif head != _FINAL | _PONG:
            raise WebSocketError(f"a frame begins with {head:#x}")

    def _send(self, kind: int, content: bytes) -> None:
        if self._transport.is_closing():
            return
        size = len(content)
        if size < 126:
            head = bytes((_FINAL | kind, _MASKED | size))
        else:
            head = bytes((_FINAL | kind, _MASKED | 127)) + size.to_bytes(8, "big")
        mask = os.urandom(4)
        masking = (mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(content, "big") ^ int.from_bytes(masking, "big")
        self._transport.write(head + mask + masked.to_bytes(size, "big"))

    # ---- Its end

    def _beat(self) -> None:
        """Ask for a sign of life, and hang up on who gave none since the last time."""
        if not self._is_heard:
            self._end("nothing has been heard for long")
            return
        self._is_heard = False
        if self._handshake is None:
            self._send(_PING, b"")
        self._next_beat = asyncio.get_running_loop().call_later(_BEAT_SECONDS, self._beat)

    def _end(self, reason: str) -> None:
        if self._error is None:
            self._error = WebSocketError(f"the WebSocket has ended: {reason}")
            self._come.set()
            if not self.opened.done():
                self.opened.set_exception(self._error)
            self._transport.close()


@asynccontextmanager
async def connected(url: str, timeout_seconds: float) -> AsyncGenerator[WebSocket, None]:
    """Connect, and hang up at the end. Raises WebSocketError, OSError, TimeoutError."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise WebSocketError(f'"{url}" is not an address such as ws://127.0.0.1:8900')
    key = b64encode(os.urandom(16))
    lines = [
        f"GET {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key.decode()}",
    ]
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Authorization: Basic {b64encode(user.encode()).decode()}")
    request = "\r\n".join([*lines, "", ""]).encode()
    tls = parts.scheme == "wss"
    async with asyncio.timeout(timeout_seconds):
        _, socket = await asyncio.get_running_loop().create_connection(
            lambda: WebSocket(request, b64encode(sha1(key + _GUID).digest())),
            parts.hostname,
            parts.port or (443 if tls else 80),
            ssl=True if tls else None,
        )
        try:
            await socket.opened
        except BaseException:
            socket.close()
            raise
    try:
        yield socket
    finally:
        socket.close()
