"""uvicorn's HTTP protocol with what it leaves open: how long and how large a request's head may be."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.problems import problem, raw
from gateway.sockets import Socket, Sockets

HEAD_SECONDS: Final = 10.0
"""From a connection's start, or a request's first byte, to the end of its headers."""
MAX_HEAD_BYTES: Final = 16 * 1024


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on each request's head, in time and in size. Upgrades become a Socket."""

    def __init__(self, sockets: Sockets, **options: Any) -> None:
        super().__init__(**options)
        self._sockets = sockets
        self._head_bytes = 0
        self._header_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # One header without an end never reaches on_header.
        if self._in_head and self._head_bytes > 2 * MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "HEADERS_TOO_LARGE", f"the headers are larger than {MAX_HEAD_BYTES} bytes")

    def handle_websocket_upgrade(self) -> None:
        self.connections.discard(self)
        connection = Socket(self._sockets, self.server_state, self.transport)
        self.transport.set_protocol(connection)
        connection.handshake(self.scope["method"], self.url, self.headers)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEAD_BYTES:
            # The parser passes it on as an error of its own, which ends in send_400_response.
            raise ValueError("headers too large")
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or too much of it."""
        if self._header_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "HEADERS_TOO_LARGE", f"the headers are larger than {MAX_HEAD_BYTES} bytes")
        else:
            self._refuse(400, "BAD_REQUEST", msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._header_bytes = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def _refuse(self, code: int, reason: str, message: str) -> None:
        """Answer where there is no request that an application could be given."""
        self.transport.write(raw(problem(code, reason, message, headers={"Connection": "close"})))
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.close()
