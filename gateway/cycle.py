"""One request and its answer on a connection of uvicorn's, past its ASGI cycle and Starlette.

What the gateway is asked most goes this way: an order to take in (submits.py), one to look up (lookups.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Final, Protocol

from starlette.responses import Response
from uvicorn.server import ServerState

from client import OrderError
from gateway.figures import tell_answer
from gateway.origins import Headers, Origins
from gateway.problems import API_HEADERS, code_of, problem, problem_of_error, raw

_ANSWER: Final = (
    b"HTTP/1.1 %b\r\n%bcontent-length: %d\r\ncontent-type: application/json\r\n"
    + b"".join(b"%b: %b\r\n" % header for header in API_HEADERS)
    + b"\r\n%b"
)

log = logging.getLogger(__name__)


class Connection(Protocol):
    """What a cycle needs of the connection it came on."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    server_state: ServerState

    def on_answered(self, cycle: Cycle) -> None: ...


class Cycle:
    """In the place of uvicorn's RequestResponseCycle: from a request's headers to its answer."""

    __slots__ = (
        "_connection",
        "_headers",
        "_method",
        "_origins",
        "_route",
        "_start",
        "keep_alive",
        "more_body",
        "response_complete",
    )

    def __init__(
        self,
        method: str,
        route: str,
        connection: Connection,
        headers: Headers,
        origins: Origins,
        *,
        keep_alive: bool,
        more_body: bool,
    ) -> None:
        self._start = time.perf_counter()
        self._method = method
        self._route = route
        self._connection = connection
        self._headers = headers
        self._origins = origins
        self.keep_alive = keep_alive
        self.more_body = more_body
        """Whether the request has not come whole yet."""
        self.response_complete = False

    # ---- Called by the connection ----------------------------------------------------------------

    def take_turn(self) -> None:
        """The requests before it on this connection are answered."""
        raise NotImplementedError

    def on_body(self, data: bytes) -> None:
        """A piece of the body has come."""

    def on_message_complete(self) -> None:
        """The request has come whole."""

    def wait_for_body(self) -> None:
        """What has come so far is not all."""

    def stop_waiting(self) -> None:
        """Nothing more will come."""

    def refuse(self, reason: str, message: str) -> None:
        """Answer without the rest of the body, which the connection cannot be used past."""

    # ---- Its answer --------------------------------------------------------------------------------

    def _answer_json(
        self, code: int, status_line: bytes, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        lines = b"".join([b"%b: %b\r\n" % header for header in (*self._answer_headers(), *headers)])
        self._answer(code, _ANSWER % (status_line, lines, len(body), body))

    def _answer_error(self, error: Exception, order_id: str | None = None) -> None:
        """Answer what the order service refused, or why it could not be asked; log what is our own."""
        if not isinstance(error, OrderError):
            log.error("%s %s failed", self._method, self._route, exc_info=error, extra={"order_id": order_id})
            self._answer_problem(problem(500, "INTERNAL", "something went wrong here; it was logged"))
            return
        if code_of(error) == 500:
            log.error("%s %s: %s", self._method, self._route, error, extra={"order_id": order_id})
        self._answer_problem(problem_of_error(error))

    def _answer_problem(self, answer: Response) -> None:
        self._answer(answer.status_code, raw(answer, self._answer_headers()))

    def _answer_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [*self._connection.server_state.default_headers, *self._origins.readable_by(self._headers)]
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        return headers

    def _answer(self, code: int, answer: bytes) -> None:
        tell_answer(self._method, self._route, code, time.perf_counter() - self._start)
        if not self._connection.transport.is_closing():
            # In one piece: each write is a system call.
            self._connection.transport.write(answer)
        self._connection.on_answered(self)
