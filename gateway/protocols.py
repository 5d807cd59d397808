"""uvicorn's protocols with what they leave open: how long and how large a request's head may be, and what
becomes of a WebSocket whose client does not read.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway.problems import problem

HEAD_SECONDS: Final = 10.0
"""From a connection's start, or a request's first byte, to the end of its headers."""
MAX_HEAD_BYTES: Final = 16 * 1024
WRITE_SECONDS: Final = 10.0
"""How long a WebSocket's write buffer may stay full; and after that, how long its close may take."""
TRY_AGAIN_LATER: Final = 1013


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on each request's head, in time and in size."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
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
        answer = problem(code, reason, message, headers={"Connection": "close"})
        lines = [b"HTTP/1.1 %d %s" % (code, HTTPStatus(code).phrase.encode())]
        lines += [b"%s: %s" % header for header in answer.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket whose write buffer may not stay full: the client is told to come back later, then dropped."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_write_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self._too_slow)

    def resume_writing(self) -> None:
        if not self.close_sent:
            self._stop_write_timer()
        super().resume_writing()

    def _too_slow(self) -> None:
        if not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": TRY_AGAIN_LATER})
            self.conn.send_close(TRY_AGAIN_LATER, "reads too slowly; come back with ?after=")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        # Closing waits for the buffer to be read, which may never happen.
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)
        self.transport.close()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
