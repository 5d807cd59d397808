"""WebSockets that follow an order: what has happened first, then what happens, then close.

They are the gateway's hot path, so they are an asyncio protocol on uvicorn's connections and not an
ASGI application: an event's frame is built once for all sockets and written as it is. What clients
send, which is little, is parsed by the websockets library.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from starlette.responses import Response
from uvicorn.server import ServerState
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.utils import accept_key

from client import OrderClient, OrderError, OrderEvent, OrderNotFound, SequenceAhead
from client.json_text import event_text
from engine.telemetry import events_sent_total, open_websockets
from gateway.parse import parse_sequence
from gateway.problems import code_of, problem, raw

MAX_SOCKETS: Final = 20_000
MAX_INBOUND_BYTES: Final = 4096
"""Of one message from a client. They mean nothing here."""
PING_SECONDS: Final = 20.0
WRITE_SECONDS: Final = 10.0
"""How long a write buffer may stay full, and how long a close may take."""

FINISHED: Final = 1000
SERVER_ERROR: Final = 1011
RESTARTING: Final = 1012
TOO_SLOW: Final = 1013
BAD_SEQUENCE: Final = 4400
UNKNOWN_ORDER: Final = 4404

_PATH: Final = re.compile(rb"/api/orders/([^/]+)/ws")
_PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)

log = logging.getLogger(__name__)


@lru_cache(maxsize=8192)
def event_frame(event: OrderEvent) -> bytes:
    """Return the event as a WebSocket text frame. Made once, however many sockets watch the order."""
    return Frame(Opcode.TEXT, event_text(event).encode()).serialize(mask=False)


class Sockets:
    """Who may follow orders, and how many at once."""

    def __init__(self, client: OrderClient, allowed_origins: Collection[str]) -> None:
        """`allowed_origins`: "https://desk.example.com", besides the gateway's own."""
        self.client = client
        self.open_count = 0
        self._allowed_origins = frozenset(allowed_origins)

    def allows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Browsers name a page's origin and let any page connect; other programs name none."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self._allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        host = headers.get(b"host", b"").decode("latin-1")
        return parts.scheme in ("http", "https") and parts.netloc == host


class Socket(asyncio.Protocol):
    """One connection, from its handshake on. Closes with one of the codes above.

    Whoever is closed with 1012 or 1013 comes back with ?after= and the last sequence it has.
    """

    def __init__(self, sockets: Sockets, server_state: ServerState, transport: asyncio.Transport) -> None:
        self._sockets = sockets
        self._server_state = server_state
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._inbound: Protocol | None = None
        self._follower: asyncio.Task[None] | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None
        self._is_open = False
        self._close_sent = False
        self._heard = True
        """Something has come from the client since the last ping."""

    def handshake(self, method: str, url: bytes, header_list: Sequence[tuple[bytes, bytes]]) -> None:
        """Answer the upgrade request, whose header names are in lower case, and begin."""
        headers = dict(header_list)
        path, _, query = url.partition(b"?")
        match = _PATH.fullmatch(path)
        refusal: Response | None = None
        if match is None or method != "GET":
            refusal = problem(404, "NOT_FOUND", "there is no WebSocket at this address")
        elif headers.get(b"sec-websocket-version") != b"13":
            version = {"Sec-WebSocket-Version": "13"}
            refusal = problem(426, "UPGRADE_REQUIRED", "this is WebSocket version 13", headers=version)
        elif not _is_key(headers.get(b"sec-websocket-key", b"")):
            refusal = problem(400, "BAD_REQUEST", "Sec-WebSocket-Key must be 16 bytes in base64")
        elif not self._sockets.allows(headers):
            refusal = problem(403, "ORIGIN_NOT_ALLOWED", "pages of this site may not follow orders")
        elif self._sockets.open_count >= MAX_SOCKETS:
            refusal = problem(503, "TOO_MANY_SOCKETS", "too many WebSockets", headers={"Retry-After": "1"})
        if refusal is not None:
            refusal.headers["Connection"] = "close"
            self._transport.write(raw(refusal))
            self._transport.close()
            return
        assert match is not None
        self._is_open = True
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._sockets.open_count += 1
        open_websockets.inc()
        accept = accept_key(headers[b"sec-websocket-key"].decode("ascii")).encode("ascii")
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept
        )
        self._ping_timer = self._loop.call_later(PING_SECONDS, self._ping)
        try:
            after_sequence = parse_sequence(_after(query))
        except ValueError as error:
            self._close(BAD_SEQUENCE, f"after {error}")
            return
        order_id = unquote(match[1].decode("latin-1"))
        self._follower = self._loop.create_task(self._follow(order_id, after_sequence))
        self._server_state.tasks.add(self._follower)
        self._follower.add_done_callback(self._server_state.tasks.discard)

    async def _follow(self, order_id: str, after_sequence: int) -> None:
        try:
            async for event in self._sockets.client.watch(order_id, after_sequence):
                if self._drained is not None:
                    await self._drained
                self._transport.write(event_frame(event))
                events_sent_total.inc()
            self._close(FINISHED)
        except OrderNotFound as error:
            self._close(UNKNOWN_ORDER, error.message)
        except SequenceAhead as error:
            self._close(BAD_SEQUENCE, error.message)
        except OrderError as error:
            if code_of(error) == 500:
                log.error("watch failed: %s", error, extra={"order_id": order_id})
            self._close(SERVER_ERROR, error.message)
        except Exception:
            log.exception("watch failed", extra={"order_id": order_id})
            self._close(SERVER_ERROR)

    # ---- Called by uvicorn and the event loop -----------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._close_sent:
            if data[0] == 0x88:
                # The client's close frame, which answers ours.
                self._transport.close()
            return
        if self._inbound is None:
            self._inbound = Protocol(Side.SERVER, max_size=MAX_INBOUND_BYTES)
        self._inbound.receive_data(data)
        self._inbound.events_received()
        for answer in self._inbound.data_to_send():
            # Pongs; the answer to a close; a close for what breaks the protocol. Empty: end of stream.
            if answer:
                self._transport.write(answer)
        if self._inbound.close_sent is not None:
            self._close_sent = True
            self._end()

    def eof_received(self) -> None:
        # Returning nothing lets the transport close.
        return

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()
        if self._end_timer is None:
            self._end_timer = self._loop.call_later(WRITE_SECONDS, self._too_slow)

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        if self._end_timer is not None and not self._close_sent:
            self._end_timer.cancel()
            self._end_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_open:
            return
        self._server_state.connections.discard(self)
        self._sockets.open_count -= 1
        open_websockets.dec()
        for timer in (self._ping_timer, self._end_timer):
            if timer is not None:
                timer.cancel()
        if self._follower is not None:
            self._follower.cancel()

    def shutdown(self) -> None:
        """The gateway ends: tell the client to come back."""
        self._close(RESTARTING)
        self._transport.close()

    # ---- Ending ------------------------------------------------------------------------------------

    def _ping(self) -> None:
        if not self._heard:
            self._transport.abort()
            return
        self._heard = False
        self._transport.write(_PING)
        self._ping_timer = self._loop.call_later(PING_SECONDS, self._ping)

    def _too_slow(self) -> None:
        self._end_timer = None
        self._close(TOO_SLOW, "reads too slowly; come back with ?after=")
        self._transport.close()

    def _close(self, code: int, reason: str = "") -> None:
        if self._close_sent or self._transport.is_closing():
            return
        self._close_sent = True
        self._transport.write(_close_frame(code, reason))
        self._end()

    def _end(self) -> None:
        """Give the client a moment to read what is left and to answer the close, then drop it."""
        if self._follower is not None and self._follower is not asyncio.current_task():
            self._follower.cancel()
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._end_timer = self._loop.call_later(WRITE_SECONDS, self._transport.abort)
        if self._inbound is not None and self._inbound.close_rcvd is not None:
            self._transport.close()


@lru_cache(maxsize=64)
def _close_frame(code: int, reason: str) -> bytes:
    # A close frame holds at most 123 bytes of reason.
    short = reason.encode()[:123].decode(errors="ignore")
    return Frame(Opcode.CLOSE, Close(code, short).serialize()).serialize(mask=False)


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def _after(query: bytes) -> str | None:
    """Return the query's `after`, the last one if there are several."""
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get("after") if query else None
