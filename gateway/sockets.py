"""WebSockets that follow an order: what has happened first, then what happens, then close.

They are the gateway's hot path, so they are an asyncio protocol on uvicorn's connections and not an
ASGI application, and none has a task or a timer of its own while it is open: the client calls when there
is an event, whose frame is built once for all sockets. What clients send, which is little, is parsed by
the websockets library.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import logging
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, unquote

from starlette.responses import Response
from uvicorn.server import ServerState
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.utils import accept_key

from client import InvalidOrder, OrderClient, OrderError, OrderNotFound, SequenceAhead
from client.watches import Listener
from engine.telemetry import events_sent_total
from gateway.origins import Headers, Origins
from gateway.parse import parse_watch
from gateway.problems import code_of, in_own_names, problem, problem_of_refusal, raw

MAX_SOCKETS: Final = 20_000
MAX_INBOUND_BYTES: Final = 4096
"""Of one message from a client. They mean nothing here."""
PING_SECONDS: Final = 45.0
"""How often a socket is pinged. Proxies cut a connection that is silent for a minute, as nginx does."""
PING_ROUNDS: Final = 30
"""Sockets are pinged in so many groups, each at its own moment of PING_SECONDS."""
WRITE_SECONDS: Final = 10.0
"""How long a write buffer may stay full, and how long a close may take."""

FINISHED: Final = 1000
SERVER_ERROR: Final = 1011
RESTARTING: Final = 1012
TOO_SLOW: Final = 1013
BAD_QUERY: Final = 4400
UNKNOWN_ORDER: Final = 4404

_PATH: Final = re.compile(rb"/api/orders/([^/]+)/ws")
_PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)
_PONG: Final = b"\x8a\x80"
"""How the answer to our ping, six bytes with its mask, begins."""
_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")

log = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def text_frame(text: bytes) -> bytes:
    """Return the text as a WebSocket frame (RFC 6455, 5.2). Made once, however many sockets it is for."""
    size = len(text)
    if size < 126:
        return b"\x81%c%b" % (size, text)
    if size < 65_536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), text)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), text)


class Sockets:
    """Who may follow orders, how many at once, and what is done for all of them together."""

    def __init__(self, client: OrderClient, origins: Origins) -> None:
        self.client = client
        self.origins = origins
        self.open_count = 0
        self._loop = asyncio.get_running_loop()
        self._unwritten: list[Socket] = []
        self.unwritten_event_count = 0
        self._rounds: list[set[Socket]] = [set() for _ in range(PING_ROUNDS)]
        self._round = 0
        """The next to be pinged."""
        self._ping_timer: asyncio.TimerHandle | None = None

    def opened(self, socket: Socket) -> set[Socket]:
        """Count the socket and have it pinged; return its group, which it leaves in the end."""
        self.open_count += 1
        if self._ping_timer is None:
            self._start_ping_timer()
        # Those pinged last, for the longest time before its first ping.
        group = self._rounds[self._round - 1]
        group.add(socket)
        return group

    def closed(self, socket: Socket, group: set[Socket]) -> None:
        self.open_count -= 1
        group.discard(socket)

    def call_later(self, seconds: float, action: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, action)

    def write_soon(self, socket: Socket) -> None:
        """Have the socket write its events at the end of this turn of the loop."""
        if not self._unwritten:
            self._loop.call_soon(self._write)
        self._unwritten.append(socket)

    def _write(self) -> None:
        sockets, self._unwritten = self._unwritten, []
        events_sent_total.inc(self.unwritten_event_count)
        self.unwritten_event_count = 0
        for socket in sockets:
            socket.write()

    def _start_ping_timer(self) -> None:
        self._ping_timer = self._loop.call_later(PING_SECONDS / PING_ROUNDS, self._ping)

    def _ping(self) -> None:
        for socket in tuple(self._rounds[self._round]):
            socket.ping()
        self._round = (self._round + 1) % PING_ROUNDS
        if self.open_count:
            self._start_ping_timer()
        else:
            self._ping_timer = None


class Socket(asyncio.Protocol):
    """One connection, from its handshake on. Closes with one of the codes above.

    Whoever is closed with 1012 or 1013 comes back with ?after= and the last sequence it has.
    """

    __slots__ = (
        "_close_sent",
        "_end_timer",
        "_group",
        "_heard",
        "_inbound",
        "_order_id",
        "_server_state",
        "_sockets",
        "_text",
        "_transport",
        "_unwritten",
        "_watch",
    )

    def __init__(self, sockets: Sockets, server_state: ServerState, transport: asyncio.Transport) -> None:
        self._sockets = sockets
        self._server_state = server_state
        self._transport = transport
        self._order_id = ""
        self._group: set[Socket] | None = None
        """None before the handshake."""
        self._watch: Listener | None = None
        self._inbound: Protocol | None = None
        self._text: codecs.IncrementalDecoder | None = None
        """Of the text whose frames are coming in."""
        self._end_timer: asyncio.TimerHandle | None = None
        self._unwritten = b""
        """Frames of this turn of the loop. Each write is a system call, which costs more than all else."""
        self._close_sent = False
        self._heard = True
        """Something has come from the client since the last ping."""

    def handshake(self, method: str, url: bytes, header_list: Headers) -> None:
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
        elif (not_allowed := self._sockets.origins.refusal(header_list)) is not None:
            refusal = problem_of_refusal(not_allowed)
        elif self._sockets.open_count >= MAX_SOCKETS:
            refusal = problem(503, "TOO_MANY_SOCKETS", "too many WebSockets", headers={"Retry-After": "1"})
        if refusal is not None:
            refusal.headers["Connection"] = "close"
            self._transport.write(raw(refusal))
            self._transport.close()
            return
        assert match is not None
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._group = self._sockets.opened(self)
        accept = accept_key(headers[b"sec-websocket-key"].decode("ascii")).encode("ascii")
        # Goes out with what can be told at once.
        self._unwritten = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept
        )
        try:
            after_sequence = _after(query)
        except InvalidOrder as error:
            self._close(BAD_QUERY, error.message)
            return
        self._order_id = unquote(match[1].decode("latin-1"))
        try:
            self._watch = self._sockets.client.follow(
                self._order_id, after_sequence, self._on_event, self._on_end
            )
        except OrderNotFound as error:
            self._close(UNKNOWN_ORDER, error.message)
        self.write()

    # ---- Called by the client ----------------------------------------------------------------------

    def _on_event(self, text: bytes) -> None:
        if not self._unwritten:
            self._sockets.write_soon(self)
        self._unwritten += text_frame(text)
        self._sockets.unwritten_event_count += 1

    def _on_end(self, error: OrderError | None) -> None:
        if error is None:
            self._close(FINISHED)
        elif isinstance(error, OrderNotFound):
            self._close(UNKNOWN_ORDER, error.message)
        elif isinstance(error, SequenceAhead):
            self._close(BAD_QUERY, in_own_names(error.message))
        else:
            if code_of(error) == 500:
                log.error("watch failed: %s", error, extra={"order_id": self._order_id})
            self._close(SERVER_ERROR, error.message)

    def write(self) -> None:
        """Write the frames of this turn, if a close has not taken them along."""
        if self._unwritten and not self._transport.is_closing():
            frames, self._unwritten = self._unwritten, b""
            self._transport.write(frames)

    # ---- Called by uvicorn and the event loop -----------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self._inbound is None and len(data) == 6 and data.startswith(_PONG):
            # All that most clients ever send: not worth a parser for each.
            return
        if self._close_sent and data[0] == 0x88:
            # The client's close frame, which answers ours.
            self._transport.close()
            return
        if self._inbound is None:
            self._inbound = Protocol(Side.SERVER, max_size=MAX_INBOUND_BYTES)
        self._inbound.receive_data(data)
        self._check_texts(self._inbound)
        answers = self._inbound.data_to_send()
        if self._close_sent:
            if self._inbound.close_rcvd is not None:
                # It came behind a pong, or another frame.
                self._transport.close()
            return
        # Before the answer, which may be a close.
        self.write()
        for answer in answers:
            # Pongs; the answer to a close; a close for what breaks the protocol. Empty: end of stream.
            if answer:
                self._transport.write(answer)
        if self._inbound.close_sent is not None:
            self._close_sent = True
            self._end()

    def _check_texts(self, inbound: Protocol) -> None:
        """Nothing that a client sends is asked for, but a text has to be one (RFC 6455, 8.1)."""
        for frame in inbound.events_received():
            if not isinstance(frame, Frame) or frame.opcode not in _DATA:
                continue
            if frame.opcode is Opcode.TEXT:
                self._text = _utf8_decoder()
            if self._text is not None:
                try:
                    self._text.decode(frame.data, final=frame.fin)
                except UnicodeDecodeError:
                    inbound.fail(CloseCode.INVALID_DATA, "a text must be UTF-8")
                    return
            if frame.fin:
                self._text = None

    def eof_received(self) -> None:
        # Returning nothing lets the transport close.
        return

    def pause_writing(self) -> None:
        if self._watch is not None:
            self._watch.pause()
        if not self._transport.is_closing():
            # Who sends pings and does not read is owed a pong for each.
            self._transport.pause_reading()
        if self._end_timer is None:
            self._end_timer = self._sockets.call_later(WRITE_SECONDS, self._too_slow)

    def resume_writing(self) -> None:
        if self._watch is not None:
            self._watch.resume()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        if self._end_timer is not None and not self._close_sent:
            self._end_timer.cancel()
            self._end_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._group is None:
            return
        self._server_state.connections.discard(self)
        self._sockets.closed(self, self._group)
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._leave()

    def shutdown(self) -> None:
        """The gateway ends: tell the client to come back."""
        self._close(RESTARTING)
        self._transport.close()

    # ---- Ending ------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Ask whether the client is still there; drop it if it has not answered the last time."""
        if self._close_sent:
            # How long its end may take has a timer of its own.
            return
        if not self._heard:
            self._transport.abort()
        elif not self._transport.is_closing():
            self._heard = False
            self._transport.write(_PING)

    def _too_slow(self) -> None:
        self._end_timer = None
        self._close(TOO_SLOW, "reads too slowly; come back with ?after=")
        self._transport.close()

    def _close(self, code: int, reason: str = "") -> None:
        if self._close_sent or self._transport.is_closing():
            return
        self._close_sent = True
        frames, self._unwritten = self._unwritten, b""
        self._transport.write(frames + _close_frame(code, reason))
        self._end()

    def _end(self) -> None:
        """Give the client a moment to read what is left and to answer the close, then drop it."""
        self._leave()
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._end_timer = self._sockets.call_later(WRITE_SECONDS, self._transport.abort)
        if self._inbound is not None and self._inbound.close_rcvd is not None:
            self._transport.close()

    def _leave(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


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


def _after(query: bytes) -> int:
    """Return the sequence after which to begin. Raises InvalidOrder."""
    return parse_watch(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else 0
