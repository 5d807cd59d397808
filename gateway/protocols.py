"""uvicorn's HTTP protocol with what it leaves open: how long and how large a request's head may be.

What comes most leaves it as soon as it is known as such: a POST of an order becomes a Submit, a GET of one a
Lookup, an upgrade a Socket. Only what goes to the application has an ASGI scope made for it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from httptools import HttpParserError, HttpParserUpgrade, parse_url
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from gateway.cycle import Cycle
from gateway.lookups import Lookup, Lookups, plain_order_id
from gateway.problems import CODE_OF, problem, raw
from gateway.sockets import Socket, Sockets
from gateway.submits import ROUTE, Submit, Submits

HEAD_SECONDS: Final = 10.0
"""From a connection's start, or a request's first byte, to the end of its headers."""
MAX_HEAD_BYTES: Final = 16 * 1024

_SUBMIT_PATH: Final = ROUTE.encode()


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on each request's head, in time and in size."""

    def __init__(self, sockets: Sockets, submits: Submits, lookups: Lookups, **options: Any) -> None:
        super().__init__(**options)
        self._sockets = sockets
        self._submits = submits
        self._lookups = lookups
        self._method = b""
        self._head_bytes = 0
        """Received since the last head, or piece of a body, was complete."""
        self._header_bytes = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread: Cycle | None = None
        """Answered, while the client has yet to read answers."""
        self._turns: list[Cycle] | None = None
        """Whose turn has come while another one takes its own; None: none does."""

    # ---- The connection --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # In place of uvicorn's, which asks for addresses that only a scope needs: two system calls.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "http"
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if isinstance(self.cycle, Cycle):
            self.cycle.stop_waiting()
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        # Most requests come in one piece, for which no timer is needed.
        if self._in_head or self._is_idle():
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)
        elif isinstance(self.cycle, Cycle) and self.cycle.more_body:
            self.cycle.wait_for_body()
        # One header without an end never reaches on_header. A trailer, after the body, may hold it too.
        if self._head_bytes > 2 * MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def _is_idle(self) -> bool:
        """Whether nothing is under way and nothing ends the connection: after a blank line, which is none."""
        return (
            self.timeout_keep_alive_task is None
            and self.parser is not None
            and (self.cycle is None or self.cycle.response_complete)
            and not self.transport.is_closing()
        )

    def handle_websocket_upgrade(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # They would go out amid its frames.
            self._close_after_answers()
            return
        self.connections.discard(self)
        # It refers to this object, which ends here.
        self.parser = None  # type: ignore[assignment]
        connection = Socket(self._sockets, self.server_state, self.transport)
        self.transport.set_protocol(connection)
        connection.handshake(self._method.decode("ascii"), self.url, self.headers)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            cycle, self._unread = self._unread, None
            self.on_answered(cycle)

    def _parse(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                # h2c and the like, offered by Java and curl, are to be ignored (RFC 9110, 7.8). The parser
                # takes no body where anything is offered, so it is given the same head without the offer.
                data = memoryview(data)[upgrade.args[0] :]
                self.parser.feed_data(self._head_without_upgrade())

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self._method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    # ---- The parser ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._header_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEAD_BYTES:
            # The parser passes it on as an error of its own, which ends in send_400_response.
            raise ValueError("headers too large")
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self._in_head = False
        self._head_bytes = 0
        if self.transport.is_closing():
            # The answer to the request before told the client that no other will be (RFC 9112, 9.6).
            return
        self._method = self.parser.get_method()
        if self.parser.should_upgrade():
            if self._method == b"CONNECT":
                raise ValueError("this is not a proxy")
            return
        if self._method == b"POST" and self._is_submit():
            submit = Submit(
                self._submits,
                self,
                self.headers,
                keep_alive=self._keeps_alive(),
                expects_100_continue=self.expect_100_continue,
            )
            self._begin(submit)
        elif self._method == b"GET" and (order_id := plain_order_id(self.url, self.headers)) is not None:
            self._begin(Lookup(self._lookups, self, self.headers, order_id, keep_alive=self._keeps_alive()))
        else:
            self._make_scope()
            super().on_headers_complete()

    def on_chunk_header(self) -> None:
        # What follows the last chunk is not the request's own (RFC 9110, 6.5.1): it is counted and left.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self.transport.is_closing():
            return
        if isinstance(self.cycle, Cycle):
            self.cycle.on_body(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        if isinstance(self.cycle, Cycle):
            self.cycle.on_message_complete()
        elif not self.parser.should_upgrade():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or too much of it."""
        if self.transport.is_closing():
            return
        if self._header_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            self._refuse("BAD_REQUEST", msg)

    # ---- Requests --------------------------------------------------------------------------------

    def _is_submit(self) -> bool:
        if self.url == _SUBMIT_PATH:
            return True
        path: bytes = parse_url(self.url).path
        return unquote_to_bytes(path) == _SUBMIT_PATH

    def _keeps_alive(self) -> bool:
        keeps: bool = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        return keeps

    def _begin(self, cycle: Cycle) -> None:
        before = self.cycle
        self.cycle = cycle  # type: ignore[assignment]
        if before is None or before.response_complete:
            cycle.take_turn()
        else:
            # As uvicorn does with requests that do not wait for the answer to the one before.
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, Cycle):
            super()._start_asgi_task(cycle, app)
            return
        if self._turns is not None:
            # One that was refused at once leads here: hundreds of them would be as many calls deep.
            self._turns.append(cycle)
            return
        self._turns = [cycle]
        try:
            while self._turns and not self.transport.is_closing():
                cycle = self._turns.pop()
                cycle.take_turn()
                if cycle.more_body:
                    cycle.wait_for_body()
        finally:
            self._turns = None

    def on_answered(self, cycle: Cycle) -> None:
        """The connection is free for the next request, unless its client does not read the answers."""
        if self.flow.write_paused and not self.transport.is_closing():
            self.flow.pause_reading()
            self._unread = cycle
            return
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _make_scope(self) -> None:
        if self.server is None:
            self.server = get_local_addr(self.transport)
            self.client = get_remote_addr(self.transport)
        url, headers, expect_100_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url = url
        self.headers += headers
        self.expect_100_continue = expect_100_continue

    def _refuse_head(self) -> None:
        self._refuse("HEADERS_TOO_LARGE", f"the headers are larger than {MAX_HEAD_BYTES} bytes")

    def _refuse(self, reason: str, message: str) -> None:
        """Answer what cannot be read on, in its turn, and close."""
        if isinstance(self.cycle, Cycle) and self.cycle.more_body:
            self.cycle.refuse(reason, message)
        elif self.cycle is None or self.cycle.response_complete:
            headers = {"Connection": "close"}
            self.transport.write(raw(problem(CODE_OF[reason], reason, message, headers=headers)))
            self.transport.close()
        else:
            # What was written now would be taken for the first answer under way: an order that is executed
            # would seem refused.
            self._close_after_answers()

    def _close_after_answers(self) -> None:
        self.cycle.keep_alive = False
        self._in_head = False
        self.flow.pause_reading()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        # Which lets the answers under way go out first.
        self.shutdown()
