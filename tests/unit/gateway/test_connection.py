"""Requests on one connection: one after the other however they come, and bounded in size and time."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from orders.v1 import orders_pb2 as pb
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

import gateway.submits
from client import InternalError, OrderNotFound, OrderSpec, OrderStatus, Receipt, ServerUnavailable
from gateway.lookups import Lookups
from gateway.openapi import openapi
from gateway.origins import Origins
from gateway.protocols import HttpProtocol
from gateway.sockets import Sockets
from gateway.submits import Submits

ORDER_ID = "01890000-0000-7000-8000-000000000000"
BODY = b'{"side":"sell","amount":1.5,"inputToken":"SOL","outputToken":"USDC"}'
SITE = "https://desk.example.com"


def post(
    body: bytes = BODY, *headers: str, path: str = "/api/orders/execute", version: str = "1.1", size: int = -1
) -> bytes:
    lines = [
        f"POST {path} HTTP/{version}",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if size < 0 else size}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post_chunked(body: bytes = BODY, *headers: str, trailer: bytes = b"") -> bytes:
    request = post(b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer), *headers)
    return re.sub(rb"Content-Length: [0-9]+", b"Transfer-Encoding: chunked", request)


class Transport:
    """The network's edge: keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.reading_paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def set_protocol(self, _protocol: object) -> None:
        raise AssertionError("it has become a WebSocket")

    def get_extra_info(self, _name: str) -> None:
        return None

    def answers(self) -> list[tuple[int, dict[str, str], bytes]]:
        """Code, headers and body of each answer so far."""
        found, rest = [], self.written
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            status, *lines = head.decode().split("\r\n")
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            assert len(headers) == len(pairs), "a header comes twice"
            size = int(headers.get("content-length", "0"))
            found.append((int(status.split()[1]), headers, rest[:size]))
            rest = rest[size:]
        return found

    def codes(self) -> list[int]:
        return [code for code, _, _ in self.answers()]


class Orders:
    """A client that answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[OrderSpec, str | None]] = []
        self.looked_up: list[tuple[str, asyncio.Future[pb.GetOrderResponse]]] = []
        self._waiting: list[Callable[[Receipt | Exception], None]] = []

    def submit_then(
        self, spec: OrderSpec, then: Callable[[Receipt | Exception], None], *, request_id: str | None = None
    ) -> None:
        self.asked.append((spec, request_id))
        self._waiting.append(then)

    async def get_message(self, order_id: str) -> pb.GetOrderResponse:
        future: asyncio.Future[pb.GetOrderResponse] = asyncio.get_running_loop().create_future()
        self.looked_up.append((order_id, future))
        return await future

    def answer(self, found: Receipt | Exception | None = None) -> None:
        self._waiting.pop(0)(found or Receipt(ORDER_ID, OrderStatus.PENDING))


class Timer:
    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Connection:
    def __init__(self, allowed_origins: tuple[str, ...] = ()) -> None:
        self.orders, self.transport = Orders(), Transport()
        self.timers: list[Timer] = []
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today")]
        origins = Origins(allowed_origins, "127.0.0.1")
        config = uvicorn.Config(PlainTextResponse("the application"), lifespan="off", log_config=None)
        self.protocol = HttpProtocol(
            Sockets(self.orders, origins),  # type: ignore[arg-type]
            Submits(self.orders, origins),  # type: ignore[arg-type]
            Lookups(self.orders, origins),  # type: ignore[arg-type]
            config=config,
            server_state=self.state,
            app_state={},
        )
        loop = asyncio.get_running_loop()

        class Loop:
            call_later = staticmethod(self.call_later)
            create_task = staticmethod(loop.create_task)

        self.protocol.loop = Loop()  # type: ignore[assignment]
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]
        self.receive = self.protocol.data_received

    def call_later(self, _seconds: float, action: Callable[[], object]) -> Timer:
        self.timers.append(Timer(action))
        return self.timers[-1]

    def fire(self, name: str) -> None:
        """Run the timer whose action has that name; fail if there is none."""
        (timer,) = [timer for timer in self.timers if timer.action.__name__ == name and not timer.cancelled]
        timer.cancelled = True
        timer.action()


async def test_an_order_is_answered_in_one_piece() -> None:
    connection = Connection()
    connection.receive(post(BODY, "Idempotency-Key: k"))
    connection.orders.answer()
    ((code, headers, body),) = connection.transport.answers()
    assert code == 202
    assert headers == {
        "date": "today",
        "content-length": str(len(body)),
        "content-type": "application/json",
        "location": f"/api/orders/{ORDER_ID}",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    }
    assert json.loads(body)["orderId"] == ORDER_ID
    assert [(spec.amount, key) for spec, key in connection.orders.asked] == [("1.5", "k")]
    assert not connection.transport.closed
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize(
    "path",
    ["/api/orders/execute?x=1", "/api/orders/%65xecute", "http://localhost/api/orders/execute"],
)
async def test_an_order_is_known_however_its_address_is_spelled(path: str) -> None:
    connection = Connection()
    connection.receive(post(path=path))
    connection.orders.answer()
    assert connection.transport.codes() == [202]
    connection.protocol.connection_lost(None)


async def test_a_request_in_pieces_is_put_together() -> None:
    connection = Connection()
    request = post()
    for at in range(len(request)):
        assert connection.orders.asked == []
        connection.receive(request[at : at + 1])
    connection.orders.answer()
    assert connection.transport.codes() == [202]
    # What was to end a request that never comes has been called off; the next one has its time again.
    assert [timer.action.__name__ for timer in connection.timers if not timer.cancelled] == [
        "timeout_keep_alive_handler"
    ]
    connection.protocol.connection_lost(None)


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_an_upgrade_to_what_is_not_spoken_is_ignored(chunked: bool, step: int) -> None:
    connection = Connection()
    request = (post_chunked if chunked else post)(BODY, *H2C, "Idempotency-Key: k")
    other = b"GET /anything HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join([*H2C, "", ""]).encode()
    requests = request + other + request + post()
    for at in range(0, len(requests), step):
        connection.receive(requests[at : at + step])
    connection.orders.answer()
    await asyncio.gather(*connection.state.tasks)
    connection.orders.answer()
    connection.orders.answer()
    assert [key for _, key in connection.orders.asked] == ["k", "k", None]
    assert connection.transport.codes() == [202, 200, 202, 202]
    assert not connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_a_first_request_that_offers_an_upgrade_has_no_body_to_be_read() -> None:
    connection = Connection()
    connection.receive(b"GET /anything HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n")
    await asyncio.gather(*connection.state.tasks)
    assert connection.transport.codes() == [200]
    connection.protocol.connection_lost(None)


UPGRADE = (
    f"GET /api/orders/{ORDER_ID}/ws HTTP/1.1\r\nHost: localhost\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()


@pytest.mark.parametrize("before", [post(), b"GET /anything HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_an_answer_under_way_does_not_end_up_in_a_websocket(before: bytes) -> None:
    connection = Connection()
    connection.receive(before + UPGRADE)
    assert connection.transport.written == b""
    for _ in connection.orders.asked:
        connection.orders.answer()
    await asyncio.gather(*connection.state.tasks)
    (code,) = connection.transport.codes()
    assert code in (200, 202)
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize("address", ["localhost:3000", "http://localhost/"])
async def test_the_gateway_is_no_proxy(address: str) -> None:
    connection = Connection()
    connection.receive(f"CONNECT {address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert connection.transport.codes() == [400]
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_requests_that_come_together_are_answered_one_after_the_other() -> None:
    connection = Connection()
    other = b"GET /anything HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection.receive(post() + post(BODY, "Idempotency-Key: 2") + other + post())
    assert len(connection.orders.asked) == 1
    connection.orders.answer()
    assert [key for _, key in connection.orders.asked] == [None, "2"]
    connection.orders.answer()
    await asyncio.gather(*connection.state.tasks)
    connection.orders.answer()
    assert connection.transport.codes() == [202, 202, 200, 202]
    assert connection.transport.answers()[2][2] == b"the application"
    connection.protocol.connection_lost(None)


async def test_who_does_not_read_the_answers_is_not_asked_for_more() -> None:
    connection = Connection()
    connection.receive(post() + post())
    connection.protocol.pause_writing()
    connection.orders.answer()
    assert (len(connection.orders.asked), connection.transport.reading_paused) == (1, True)
    connection.protocol.resume_writing()
    assert (len(connection.orders.asked), connection.transport.reading_paused) == (2, False)
    connection.orders.answer()
    assert connection.transport.codes() == [202, 202]
    connection.protocol.connection_lost(None)


async def test_a_body_that_does_not_come_is_given_up() -> None:
    connection = Connection()
    connection.receive(post(BODY[:10], size=len(BODY)))
    connection.fire("_time_out")
    ((code, headers, body),) = connection.transport.answers()
    assert (code, json.loads(body)["reason"]) == (408, "REQUEST_TIMEOUT")
    assert str(code) in openapi()["paths"]["/api/orders/execute"]["post"]["responses"]
    assert headers["connection"] == "close"
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize("piece", [b"a" * 1024, b"a: b\r\n" * 200])
async def test_a_trailer_is_no_larger_than_a_head(piece: bytes) -> None:
    connection = Connection()
    connection.receive(post_chunked(trailer=b"x: ").removesuffix(b"\r\n"))
    pieces = 0
    while not connection.transport.closed and pieces < 100:
        connection.receive(piece)
        pieces += 1
    ((code, headers, body),) = connection.transport.answers()
    assert (code, json.loads(body)["reason"]) == (431, "HEADERS_TOO_LARGE")
    assert headers["connection"] == "close"
    assert connection.orders.asked == []
    connection.protocol.connection_lost(None)


async def test_a_trailer_is_not_read_as_headers() -> None:
    connection = Connection()
    trailer = (
        b"Origin: https://evil.example.com\r\nIdempotency-Key: k\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"
    )
    connection.receive(post_chunked(trailer=trailer))
    connection.orders.answer()
    untyped = post_chunked(trailer=b"Content-Type: application/json\r\n")
    connection.receive(untyped.replace(b"Content-Type: application/json\r\n", b"", 1))
    connection.receive(post())
    connection.orders.answer()
    assert connection.transport.codes() == [202, 415, 202]
    assert [key for _, key in connection.orders.asked] == [None, None]
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize("size", [16_385, 10**12])
async def test_a_body_that_is_announced_too_large_is_not_waited_for(size: int) -> None:
    connection = Connection()
    connection.receive(post(b"", "Expect: 100-continue", size=size))
    assert connection.transport.codes() == [413]
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_a_body_is_asked_for_where_the_client_waits_for_that() -> None:
    connection = Connection()
    connection.receive(post(b"", "Expect: 100-continue", size=len(BODY)))
    assert connection.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.receive(BODY)
    connection.orders.answer()
    assert connection.transport.codes() == [100, 202]
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize(("version", "header"), [("1.0", "X: y"), ("1.1", "Connection: close")])
async def test_a_connection_ends_where_the_client_says_so(version: str, header: str) -> None:
    connection = Connection()
    connection.receive(post(BODY, header, version=version))
    connection.orders.answer()
    ((code, headers, _),) = connection.transport.answers()
    assert (code, headers["connection"]) == (202, "close")
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize(
    "rest",
    [b"}", b" x", b"0", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n"],
)
async def test_what_cannot_be_read_after_an_order_is_not_taken_for_its_answer(rest: bytes) -> None:
    connection = Connection()
    connection.receive(post() + post() + rest)
    connection.receive(b"more")
    assert (connection.transport.written, connection.transport.reading_paused) == (b"", True)
    connection.orders.answer()
    connection.receive(b"more")
    assert not connection.transport.closed
    connection.orders.answer()
    (code, headers, _), (next_code, next_headers, _) = connection.transport.answers()
    assert (code, next_code) == (202, 202)
    assert ("connection" in headers, next_headers["connection"]) == (False, "close")
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_any_number_of_refusals_that_come_together_are_answered() -> None:
    connection = Connection()
    connection.receive(post() + post(b"{") * 2_000 + post())
    connection.orders.answer()
    connection.orders.answer()
    assert connection.transport.codes() == [202, *[400] * 2_000, 202]
    assert not connection.transport.closed
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize("behind", [post(), b"GET /api/orders HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_nothing_is_done_for_a_request_behind_one_that_closes(behind: bytes) -> None:
    connection = Connection()
    connection.receive(post(b" " * 20_000) + behind)
    await asyncio.sleep(0)
    ((code, headers, _),) = connection.transport.answers()
    assert (code, headers["connection"]) == (413, "close")
    assert connection.transport.closed
    assert connection.orders.asked == []
    connection.protocol.connection_lost(None)


async def test_a_blank_line_after_an_answer_does_not_keep_the_connection_for_ever() -> None:
    connection = Connection()
    connection.receive(post())
    connection.orders.answer()
    connection.receive(b"\r\n")
    connection.fire("_give_up")
    assert connection.transport.codes() == [202]
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_a_body_that_cannot_be_read_is_answered_in_its_turn() -> None:
    connection = Connection()
    broken = post().replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
    connection.receive(post() + broken)
    connection.orders.answer()
    assert connection.transport.codes() == [202, 400]
    assert connection.transport.closed
    assert len(connection.orders.asked) == 1
    connection.protocol.connection_lost(None)


async def test_half_a_head_after_an_order_does_not_cost_its_answer() -> None:
    connection = Connection()
    connection.receive(post() + b"G")
    connection.fire("_give_up")
    connection.orders.answer()
    assert connection.transport.codes() == [202]
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_a_stop_waits_for_the_answer_and_closes() -> None:
    connection = Connection()
    connection.receive(post())
    connection.protocol.shutdown()
    assert not connection.transport.closed
    connection.orders.answer()
    assert connection.transport.answers()[0][1]["connection"] == "close"
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_nothing_is_written_to_who_has_gone() -> None:
    connection = Connection()
    connection.receive(post())
    connection.transport.close()
    connection.protocol.connection_lost(None)
    connection.orders.answer()
    assert connection.transport.written == b""
    assert connection.state.connections == set()


async def test_a_page_of_an_allowed_site_may_read_the_answer() -> None:
    for origin, allowed in ((SITE, True), ("http://localhost", False)):
        connection = Connection((SITE,))
        connection.receive(post(BODY, f"Origin: {origin}"))
        connection.orders.answer()
        headers = connection.transport.answers()[0][1]
        assert (headers.get("access-control-allow-origin") == origin) is allowed
        assert ("access-control-expose-headers" in headers) is allowed
        assert (headers.get("vary") == "Origin") is allowed
        connection.protocol.connection_lost(None)


async def test_a_page_of_another_site_submits_nothing_and_the_connection_goes_on() -> None:
    connection = Connection((SITE,))
    connection.receive(post(BODY, "Origin: https://evil.example.com") + post())
    assert len(connection.orders.asked) == 1
    connection.orders.answer()
    (code, headers, body), (next_code, _, _) = connection.transport.answers()
    assert (code, json.loads(body)["reason"], next_code) == (403, "ORIGIN_NOT_ALLOWED", 202)
    assert "access-control-allow-origin" not in headers
    connection.protocol.connection_lost(None)


async def test_more_waiting_orders_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.submits, "MAX_WAITING_SUBMITS", 0)
    connection = Connection()
    connection.receive(post())
    ((code, headers, body),) = connection.transport.answers()
    assert connection.orders.asked == []
    assert (code, headers["retry-after"], json.loads(body)["reason"]) == (429, "1", "TOO_MANY_ORDERS")
    connection.protocol.connection_lost(None)


FAILURES: list[tuple[Exception, int, str]] = [
    (ServerUnavailable("away"), 503, "STORE_UNAVAILABLE"),
    (InternalError("broken"), 500, "INTERNAL"),
    (RuntimeError("a defect"), 500, "INTERNAL"),
]


@pytest.mark.parametrize(("error", "code", "reason"), FAILURES)
async def test_what_fails_is_told_and_the_connection_goes_on(
    error: Exception, code: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection()
    connection.receive(post())
    connection.orders.answer(error)
    connection.receive(post())
    connection.orders.answer()
    assert connection.transport.codes() == [code, 202]
    problem: dict[str, Any] = json.loads(connection.transport.answers()[0][2])
    assert problem["reason"] == reason
    assert "defect" not in json.dumps(problem)
    assert bool(caplog.records) is (code == 500)
    connection.protocol.connection_lost(None)


# ---- Orders that are looked up -------------------------------------------------------------------------


def get(path: str = f"/api/orders/{ORDER_ID}", *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: localhost", *headers, "", ""]).encode()


DETAILS = pb.GetOrderResponse(
    order=pb.Order(
        order_id=ORDER_ID,
        spec=pb.OrderSpec(side=pb.SIDE_SELL, amount="1", input_token="SOL", output_token="USDC"),
        status=pb.ORDER_STATUS_PENDING,
        sequence=1,
    )
)


async def asked(connection: Connection, count: int = 1) -> None:
    """Let that many orders be looked up."""
    await _until(lambda: len(connection.orders.looked_up) >= count)


async def answered(connection: Connection, count: int = 1) -> None:
    await _until(lambda: len(connection.transport.answers()) >= count)


async def _until(happened: Callable[[], bool]) -> None:
    for _ in range(20):
        if happened():
            return
        await asyncio.sleep(0)
    raise AssertionError("it has not happened")


async def test_an_order_is_looked_up_past_the_application() -> None:
    connection = Connection((SITE,))
    connection.receive(get(f"/api/orders/{ORDER_ID}", f"Origin: {SITE}"))
    await asked(connection)
    ((order_id, future),) = connection.orders.looked_up
    assert order_id == ORDER_ID
    future.set_result(DETAILS)
    await answered(connection)
    ((code, headers, body),) = connection.transport.answers()
    assert code == 200
    assert json.loads(body)["orderId"] == ORDER_ID
    assert headers == {
        "date": "today",
        "content-length": str(len(body)),
        "content-type": "application/json",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "access-control-allow-origin": SITE,
        "access-control-expose-headers": "Idempotent-Replayed, Location, Retry-After",
        "vary": "Origin",
    }
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize(
    "request_bytes",
    [
        get(f"/api/orders/{ORDER_ID}?x=1"),
        get("/api/orders/01890000-0000-7000-8000-00000000000A"),
        get(f"/api/orders/{ORDER_ID}/"),
        get("/api/orders/execute"),
        get("/api/orders"),
        get(f"http://localhost/api/orders/{ORDER_ID}"),
        get().replace(b"GET", b"HEAD"),
        get(f"/api/orders/{ORDER_ID}", "Content-Length: 2") + b"{}",
    ],
)
async def test_what_is_not_plainly_one_order_is_for_the_application(request_bytes: bytes) -> None:
    connection = Connection()
    connection.receive(request_bytes)
    await asyncio.gather(*connection.state.tasks)
    assert connection.orders.looked_up == []
    assert connection.transport.codes() == [200]
    connection.protocol.connection_lost(None)


async def test_lookups_take_their_turn_among_all_requests_of_a_connection() -> None:
    connection = Connection()
    other = b"GET /anything HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection.receive(get() + post() + get() + other + get())
    await asked(connection)
    assert connection.orders.asked == []
    connection.orders.looked_up[0][1].set_result(DETAILS)
    await answered(connection)
    assert len(connection.orders.asked) == 1
    connection.orders.answer()
    await asked(connection, 2)
    connection.orders.looked_up[1][1].set_result(DETAILS)
    await asked(connection, 3)
    connection.orders.looked_up[2][1].set_result(DETAILS)
    await answered(connection, 5)
    assert connection.transport.codes() == [200, 202, 200, 200, 200]
    assert connection.transport.answers()[3][2] == b"the application"
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize(
    ("error", "code", "reason"), [*FAILURES, (OrderNotFound("no order"), 404, "ORDER_NOT_FOUND")]
)
async def test_a_lookup_that_fails_is_told_and_the_connection_goes_on(
    error: Exception, code: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection()
    connection.receive(get())
    await asked(connection)
    connection.orders.looked_up[0][1].set_exception(error)
    await answered(connection)
    connection.receive(post())
    connection.orders.answer()
    assert connection.transport.codes() == [code, 202]
    problem: dict[str, Any] = json.loads(connection.transport.answers()[0][2])
    assert problem["reason"] == reason
    assert "defect" not in json.dumps(problem)
    assert bool(caplog.records) is (code == 500)
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize(("version", "header"), [("1.0", "X: y"), ("1.1", "Connection: close")])
async def test_a_connection_ends_after_a_lookup_where_the_client_says_so(version: str, header: str) -> None:
    connection = Connection()
    connection.receive(get(f"/api/orders/{ORDER_ID}", header, version=version))
    await asked(connection)
    connection.orders.looked_up[0][1].set_result(DETAILS)
    await answered(connection)
    assert connection.transport.answers()[0][1]["connection"] == "close"
    assert connection.transport.closed
    connection.protocol.connection_lost(None)


async def test_a_lookup_ends_quietly_whose_client_has_gone() -> None:
    connection = Connection()
    connection.receive(get())
    await asked(connection)
    connection.transport.close()
    connection.protocol.connection_lost(None)
    connection.orders.looked_up[0][1].set_result(DETAILS)
    await asyncio.sleep(0)
    assert connection.transport.written == b""
    assert connection.state.connections == set()


@pytest.mark.parametrize("rest", [b"0", b"GET /\xff HTTP/1.1\r\n\r\n"])
async def test_what_cannot_be_read_after_a_lookup_is_not_taken_for_its_answer(rest: bytes) -> None:
    connection = Connection()
    connection.receive(get() + rest)
    await asked(connection)
    assert connection.transport.written == b""
    connection.orders.looked_up[0][1].set_result(DETAILS)
    await answered(connection)
    assert connection.transport.codes() == [200]
    assert connection.transport.closed
    connection.protocol.connection_lost(None)
