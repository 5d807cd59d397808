"""POST /api/orders/execute, answered on uvicorn's connections themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from client import OrderClient, OrderError, OrderSpec, Receipt, TooManyOrders
from client.json_text import json_bytes
from gateway.cycle import Connection, Cycle
from gateway.origins import Headers, Origins
from gateway.parse import MAX_BODY_BYTES, parse_body, parse_request_id
from gateway.problems import HttpRefusal, problem_of_error, problem_of_refusal

ROUTE: Final = "/api/orders/execute"
BODY_SECONDS: Final = 10.0
"""How long a body may take to arrive."""
MAX_WAITING_SUBMITS: Final = 10_000
"""POSTs that wait for the order service, before more are refused. Bounds memory while it is away."""

_LOCATION: Final = ROUTE.rpartition("/")[0].encode() + b"/"


class Submits:
    """What all of them share."""

    def __init__(self, client: OrderClient, origins: Origins) -> None:
        self._client = client
        self.origins = origins
        self.waiting_count = 0

    def submit(
        self, spec: OrderSpec, request_id: str | None, then: Callable[[Receipt | Exception], None]
    ) -> None:
        """Raises InvalidOrder, and TooManyOrders where nothing was asked of the order service."""
        if self.waiting_count >= MAX_WAITING_SUBMITS:
            raise TooManyOrders("too many orders are waiting to be accepted; try again", retry_seconds=1.0)
        self._client.submit_then(spec, then, request_id=request_id)
        self.waiting_count += 1


class Submit(Cycle):
    """One order that is submitted."""

    __slots__ = (
        "_body",
        "_body_timer",
        "_expects_100_continue",
        "_has_turn",
        "_refusal",
        "_started",
        "_submits",
    )

    def __init__(
        self,
        submits: Submits,
        connection: Connection,
        headers: Headers,
        *,
        keep_alive: bool,
        expects_100_continue: bool,
    ) -> None:
        super().__init__(
            "POST", ROUTE, connection, headers, submits.origins, keep_alive=keep_alive, more_body=True
        )
        self._submits = submits
        self._expects_100_continue = expects_100_continue
        self._body = b""
        self._body_timer: asyncio.TimerHandle | None = None
        self._refusal: HttpRefusal | None = None
        self._has_turn = False
        self._started = False

    # ---- Called by the connection ----------------------------------------------------------------

    def take_turn(self) -> None:
        self._has_turn = True
        self._proceed()

    def on_body(self, data: bytes) -> None:
        if self._refusal is None:
            self._body += data
            if len(self._body) > MAX_BODY_BYTES:
                self._refuse_body()

    def on_message_complete(self) -> None:
        self.more_body = False
        self.stop_waiting()
        self._proceed()

    def wait_for_body(self) -> None:
        """What has come so far is not all: ask for the rest, unless it is too much, and not for ever."""
        if not self._has_turn or self._started or self._body_timer is not None:
            return
        # A header that is not a number was refused by the parser.
        if int(dict(self._headers).get(b"content-length", 0)) > MAX_BODY_BYTES:
            self._refuse_body()
            return
        self._body_timer = self._connection.loop.call_later(BODY_SECONDS, self._time_out)
        if self._expects_100_continue:
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def stop_waiting(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def refuse(self, reason: str, message: str) -> None:
        if self._refusal is None:
            self._refusal = HttpRefusal(reason, message)
            self.keep_alive = False
            self._proceed()

    # ---- From the whole request to its answer ------------------------------------------------------

    def _time_out(self) -> None:
        self.refuse("REQUEST_TIMEOUT", f"the body did not arrive within {BODY_SECONDS:g} s")

    def _refuse_body(self) -> None:
        self.refuse("CONTENT_TOO_LARGE", f"the body is larger than {MAX_BODY_BYTES} bytes")

    def _proceed(self) -> None:
        if self._started or not self._has_turn or (self.more_body and self._refusal is None):
            return
        self._started = True
        try:
            if self._refusal is not None:
                raise self._refusal
            spec, request_id = _read(self._headers, self._body, self._submits.origins)
            self._submits.submit(spec, request_id, self._answer_submit)
        except HttpRefusal as refusal:
            self._answer_problem(problem_of_refusal(refusal))
        except OrderError as error:
            self._answer_problem(problem_of_error(error))

    def _answer_submit(self, found: Receipt | Exception) -> None:
        self._submits.waiting_count -= 1
        if isinstance(found, Receipt):
            self._answer_receipt(found)
        else:
            self._answer_error(found)

    def _answer_receipt(self, receipt: Receipt) -> None:
        code, status_line, message = 202, b"202 Accepted", "Order queued successfully"
        headers = [(b"location", _LOCATION + receipt.order_id.encode())]
        if receipt.deduplicated:
            code, status_line, message = 200, b"200 OK", "Order had been accepted before"
            headers.append((b"idempotent-replayed", b"true"))
        body = json_bytes(
            {"success": True, "orderId": receipt.order_id, "status": receipt.status.value, "message": message}
        )
        self._answer_json(code, status_line, body, headers)


def _read(headers: Headers, body: bytes, origins: Origins) -> tuple[OrderSpec, str | None]:
    """Return the order and its Idempotency-Key. Raises HttpRefusal, InvalidOrder."""
    keys: list[str] = []
    content_type = b""
    from_page = coded = False
    for name, value in headers:
        if name == b"content-type":
            content_type = content_type or value
        elif name == b"idempotency-key":
            keys.append(value.decode("latin-1"))
        elif name == b"origin":
            from_page = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            coded = True
    if from_page and (refusal := origins.refusal(headers)) is not None:
        raise refusal
    request_id = parse_request_id(keys)
    if not _is_json(content_type):
        # Not only manners: a page of another site can send any other type without the browser asking first.
        raise HttpRefusal("UNSUPPORTED_MEDIA_TYPE", "the body must be application/json in UTF-8")
    if coded:
        raise HttpRefusal(
            "UNSUPPORTED_MEDIA_TYPE", "the body must be sent as it is, without a Content-Encoding"
        )
    return parse_body(body), request_id


@lru_cache(maxsize=64)
def _is_json(content_type: bytes) -> bool:
    kind, *parameters = [part.strip() for part in content_type.decode("latin-1").lower().split(";")]
    pairs = [parameter.partition("=") for parameter in parameters]
    charsets = [value.strip('"') for name, _, value in pairs if name == "charset"]
    return kind == "application/json" and all(charset in ("utf-8", "utf8") for charset in charsets)
