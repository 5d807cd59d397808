"""REST as its users know it: paths, keys, numbers and codes, over the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from engine.settings import Settings
from tests.serving import ATTEMPT, BUY, POOL, Worker, address, gateway, order_server, with_grpc_port

JSON = {"content-type": "application/json"}
UNKNOWN = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def http(base: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{base}") as session:
        yield session


async def post(
    http: aiohttp.ClientSession, body: bytes | str | dict[str, Any], **headers: str
) -> tuple[aiohttp.ClientResponse, dict[str, Any]]:
    data = json.dumps(body) if isinstance(body, dict) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post("/api/orders/execute", data=data, headers=JSON | named) as answer:
        return answer, await answer.json(content_type=None)


def assert_problem(answer: aiohttp.ClientResponse, body: dict[str, Any], code: int, reason: str) -> None:
    assert answer.status == code, body
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["success"] is False
    assert body["status"] == code
    assert body["reason"] == reason
    assert body["message"] == body["detail"]


async def test_a_post_is_accepted_as_its_users_know_it(http: aiohttp.ClientSession) -> None:
    answer, body = await post(http, BUY)
    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    order_id = body.pop("orderId")
    assert UUID(order_id).version == 7
    assert body == {"success": True, "status": "pending", "message": "Order queued successfully"}
    assert answer.headers["location"] == f"/api/orders/{order_id}"


async def test_the_same_key_replays_and_other_content_is_refused(http: aiohttp.ClientSession) -> None:
    _, first = await post(http, BUY, idempotency_key="k-1")
    answer, again = await post(http, BUY, idempotency_key="k-1")
    assert (answer.status, again["orderId"]) == (200, first["orderId"])
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert again["status"] == "pending"
    answer, body = await post(http, BUY | {"amount": 11}, idempotency_key="k-1")
    assert_problem(answer, body, 422, "REQUEST_ID_REUSED")


async def test_a_replay_tells_the_present_status(http: aiohttp.ClientSession, worker: Worker) -> None:
    _, first = await post(http, BUY, idempotency_key="k-2")
    await worker.execute(first["orderId"])
    _, again = await post(http, BUY, idempotency_key="k-2")
    assert again["status"] == "confirmed"


async def test_a_key_that_is_none_is_refused(http: aiohttp.ClientSession) -> None:
    for key in ("", "x" * 65, "schlüssel"):
        answer, body = await post(http, BUY, idempotency_key=key)
        assert_problem(answer, body, 400, "INVALID_ORDER")
        assert [line["field"] for line in body["errors"]] == ["Idempotency-Key"]


WRITTEN_AND_KEPT = {
    "0.1": "0.1",
    "1e-6": "0.000001",
    "1.5e3": "1500",
    "12.5E-1": "1.25",
    "12345678901.123456": "12345678901.123456",
    "10.00": "10",
    '"0.30"': "0.3",
}


async def test_an_amount_never_passes_through_binary_floating_point(http: aiohttp.ClientSession) -> None:
    for written, kept in WRITTEN_AND_KEPT.items():
        order = '{"side":"sell","amount":AMOUNT,"inputToken":"USDC","outputToken":"SOL"}'
        answer, body = await post(http, order.replace("AMOUNT", written))
        assert answer.status == 202, body
        async with http.get(f"/api/orders/{body['orderId']}") as found:
            assert (await found.json())["amount"] == kept


WRONG_FIELDS = [
    ("amount", "1e400"),
    ("amount", "-1"),
    ("amount", "0"),
    ("amount", "1." + "1" * 30),
    ("amount", "1.0000001"),
    ("amount", '"1_0"'),
    ("amount", '"NaN"'),
    ("amount", "true"),
    ("amount", "[1]"),
    ("amount", "null"),
    ("side", '"hold"'),
    ("inputToken", '"DOGE"'),
    ("inputToken", "1"),
    ("outputToken", json.dumps("x" * 15_000)),
    ("outputToken", '"SOL"'),
    ("outputToken", "null"),
    ("x", "1"),
    ("type", '"stop"'),
    ("limitPrice", "150"),
    ("minLiquidity", "1e400"),
    ("maxPrice", "true"),
    ("slippageBps", '"9"'),
    ("slippageBps", "1.5"),
    ("slippageBps", "10001"),
    ("slippageBps", "99999999999"),
    ("expireTime", '"now"'),
    ("expireTime", '"2030-01-01T00:00:00"'),
    ("expireTime", '"9999-12-31T23:59:59-01:00"'),
]


async def test_a_field_that_is_wrong_has_its_line(http: aiohttp.ClientSession) -> None:
    good = {"side": '"buy"', "amount": "1", "inputToken": '"SOL"', "outputToken": '"USDC"'}
    for field, value in WRONG_FIELDS:
        body = ",".join(f'"{name}":{text}' for name, text in (good | {field: value}).items())
        answer, found = await post(http, f"{{{body}}}")
        assert_problem(answer, found, 400, "INVALID_ORDER")
        assert [line["field"] for line in found["errors"]] == [field], value
        assert found["errors"][0]["message"]


async def test_every_wrong_field_is_told_at_once(http: aiohttp.ClientSession) -> None:
    _, found = await post(http, '{"side":"hold","amount":"1","inputToken":1,"x":0}')
    assert {line["field"] for line in found["errors"]} == {"side", "inputToken", "outputToken", "x"}


async def test_a_field_that_is_unknown_is_told_by_its_own_name(http: aiohttp.ClientSession) -> None:
    names = ["input_token", "a.b", "spec.amount", "__proto__", "request_id"]
    _, found = await post(http, BUY | dict.fromkeys(names, 1))
    assert [line["field"] for line in found["errors"]] == names
    _, found = await post(http, BUY | {"a." * 2500: 1})
    assert found["errors"][0]["field"] == "a." * 18 + "a..."
    async with http.get(
        "/api/quote", params={name: str(value) for name, value in BUY.items()} | {"a.b": "1"}
    ) as answer:
        assert [line["field"] for line in (await answer.json(content_type=None))["errors"]] == ["a.b"]
    async with http.get("/api/orders?page_size=1") as answer:
        assert [line["field"] for line in (await answer.json(content_type=None))["errors"]] == ["page_size"]


async def test_a_refusal_speaks_of_fields_as_rest_names_them(http: aiohttp.ClientSession) -> None:
    async def told(body: dict[str, Any], **headers: str) -> Any:
        return (await post(http, BUY | body, **headers))[1]["message"]

    assert (await told({"amount": "-1"})).startswith("amount was ")
    assert await told({"slippageBps": 10_001}) == "slippageBps was 10001; must be between 0 and 10000"
    assert (await told({"outputToken": "SOL"})).endswith(", as inputToken; they must differ")
    assert 'was "input_token", ' in await told({"inputToken": "input_token"}), "the client's own text"
    assert (await told({}, idempotency_key="x" * 65)).startswith("Idempotency-Key must be 1 to 64 ")
    await told({}, idempotency_key="request_id")
    reused = await told({"amount": "11"}, idempotency_key="request_id")
    assert reused.startswith('Idempotency-Key "request_id" was used ')
    async with http.get("/api/orders?pageToken=x") as answer:
        problem = await answer.json(content_type=None)
    assert problem["errors"] == [
        {"field": "pageToken", "message": "must be the nextPageToken of the page before"}
    ]
    assert problem["message"] == "pageToken must be the nextPageToken of the page before"


NOT_STRICTLY_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"side":"buy","side":"buy"}',
    b'{"amount":NaN}',
    b'{"amount":-Infinity}',
    b'{"amount":01}',
    b'{"side":"\xff"}',
    b'{"side":"\\ud800"}',
    b'{"\\udfff":1}',
    b'{"side":"a\nb"}',
    b"[" * 8000,
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b"\xef\xbb\xbf{}",
]


async def test_what_is_not_strictly_json_is_refused(http: aiohttp.ClientSession) -> None:
    for body in NOT_STRICTLY_JSON:
        answer, found = await post(http, body)
        assert_problem(answer, found, 400, "BAD_REQUEST")


async def test_a_body_over_16_kib_is_refused_however_it_comes(http: aiohttp.ClientSession) -> None:
    answer, body = await post(http, " " * 16_385)
    assert_problem(answer, body, 413, "CONTENT_TOO_LARGE")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 4096

    async with http.post("/api/orders/execute", data=chunks(), headers=JSON) as answer:
        assert_problem(answer, await answer.json(content_type=None), 413, "CONTENT_TOO_LARGE")


async def test_only_json_is_taken(http: aiohttp.ClientSession) -> None:
    for kind in ("text/plain", "application/json; charset=latin-1", ""):
        headers = {"content-type": kind}
        async with http.post("/api/orders/execute", data=json.dumps(BUY), headers=headers) as answer:
            assert_problem(answer, await answer.json(content_type=None), 415, "UNSUPPORTED_MEDIA_TYPE")
    answer, body = await post(http, BUY, **{"content-encoding": "gzip"})
    assert_problem(answer, body, 415, "UNSUPPORTED_MEDIA_TYPE")
    for kind in ("utf8", '"UTF-8"; version=1'):
        headers = {"content-type": f"Application/JSON; charset={kind}", "content-encoding": "identity"}
        async with http.post("/api/orders/execute", data=json.dumps(BUY), headers=headers) as answer:
            assert answer.status == 202


async def test_an_order_reads_back_with_how_it_was_routed(
    http: aiohttp.ClientSession, worker: Worker
) -> None:
    _, accepted = await post(http, BUY | {"slippageBps": 25, "expireTime": "2031-01-31T12:00:00+02:00"})
    await worker.execute(accepted["orderId"])
    async with http.get(f"/api/orders/{accepted['orderId']}") as answer:
        text = await answer.text()
    body = json.loads(text)
    decision = body.pop("routingDecisions")[0]
    assert body.pop("createTime") < body.pop("updateTime")
    assert body == {
        "orderId": accepted["orderId"],
        "status": "confirmed",
        "side": "buy",
        "amount": "10",
        "inputToken": "SOL",
        "outputToken": "USDC",
        "type": "market",
        "slippageBps": 25,
        "expireTime": "2031-01-31T10:00:00Z",
        "sequence": 5,
        "attempt": 1,
        "venue": "Raydium",
        "price": 105.499999842,
        "inputAmount": "0.09478673",
        "outputAmount": "10",
        "txHash": ATTEMPT.tx_hash,
        "realisedSlippagePpm": 0,
    }
    # A number, with the engine's own digits.
    assert '"price":105.499999842,' in text
    assert decision["route"]["legs"][0]["pool"] == POOL
    assert decision["route"]["thresholdAmount"] == "0.095260663"
    assert (decision["route"]["gapAmount"], decision["route"]["gapPpm"]) == ("0.000000051", 1)
    assert decision["quotes"][0]["feeAmount"] == "0.000236967"
    assert [quote.get("refusal") for quote in decision["quotes"]] == [None, "the pool is disabled"]


async def test_an_order_reads_the_same_however_it_is_asked_for(
    http: aiohttp.ClientSession, worker: Worker
) -> None:
    """Spelled plainly it is answered ahead of the application, which answers all others."""
    order_id = (await post(http, BUY))[1]["orderId"]
    await worker.execute(order_id)
    for known, code in ((order_id, 200), (UNKNOWN, 404)):
        answers = []
        for method, path in (
            ("GET", f"/api/orders/{known}"),
            ("GET", f"/api/orders/{known}?x=1"),
            ("GET", f"/api/orders/{known.upper()}"),
            ("HEAD", f"/api/orders/{known}"),
        ):
            async with http.request(method, path, headers={"Origin": "https://desk.example.com"}) as answer:
                assert answer.status == code
                headers = {
                    name.lower(): value for name, value in answer.headers.items() if name.lower() != "date"
                }
                answers.append((headers, await answer.read()))
        (headers, body), *others = answers
        assert [head for head, _ in others] == [headers] * 3
        assert [text.lower() for _, text in others] == [body.lower(), body.lower(), b""]


async def test_orders_are_listed_in_pages(http: aiohttp.ClientSession) -> None:
    ids = [(await post(http, BUY))[1]["orderId"] for _ in range(3)]
    async with http.get("/api/orders", params={"limit": "2"}) as answer:
        first = await answer.json()
    assert [order["orderId"] for order in first["orders"]] == [ids[2], ids[1]]
    async with http.get("/api/orders", params={"pageToken": first["nextPageToken"]}) as answer:
        rest = await answer.json()
    assert [order["orderId"] for order in rest["orders"]] == [ids[0]]
    assert "nextPageToken" not in rest
    async with http.post(f"/api/orders/{ids[1]}/cancel") as answer:
        assert answer.status == 200
    async with http.get("/api/orders?status=cancelled&status=failed") as answer:
        assert [order["orderId"] for order in (await answer.json())["orders"]] == [ids[1]]


async def test_a_list_parameter_that_is_wrong_has_its_line(http: aiohttp.ClientSession) -> None:
    for query, field in (
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=done", "status"),
        ("type=stop", "type"),
        ("type=limit&type=stop&status=pending", "type"),
        ("page=2", "page"),
        ("pageToken=x", "pageToken"),
    ):
        async with http.get(f"/api/orders?{query}") as answer:
            body = await answer.json(content_type=None)
            assert_problem(answer, body, 400, "INVALID_ORDER")
        assert [line["field"] for line in body["errors"]] == [field], query


async def test_cancel_answers_with_the_status_or_why_not(http: aiohttp.ClientSession, worker: Worker) -> None:
    _, accepted = await post(http, BUY)
    async with http.post(f"/api/orders/{accepted['orderId']}/cancel") as answer:
        assert answer.status == 200
        assert await answer.json() == {
            "success": True,
            "orderId": accepted["orderId"],
            "status": "cancelled",
            "message": "Order cancelled",
        }
    _, flying = await post(http, BUY)
    facts = await worker.facts(flying["orderId"])
    await worker.move(flying["orderId"], *facts[:3])
    async with http.post(f"/api/orders/{flying['orderId']}/cancel") as answer:
        assert_problem(answer, await answer.json(content_type=None), 409, "ORDER_IN_FLIGHT")
    await worker.move(flying["orderId"], facts[3])
    async with http.post(f"/api/orders/{flying['orderId']}/cancel") as answer:
        assert_problem(answer, await answer.json(content_type=None), 409, "ORDER_CLOSED")


async def test_an_unknown_order_is_not_found(http: aiohttp.ClientSession) -> None:
    async with http.get(f"/api/orders/{UNKNOWN}") as answer:
        assert_problem(answer, await answer.json(content_type=None), 404, "ORDER_NOT_FOUND")
    async with http.post(f"/api/orders/{UNKNOWN}/cancel") as answer:
        assert_problem(answer, await answer.json(content_type=None), 404, "ORDER_NOT_FOUND")


async def test_a_quote_without_market_data_says_come_back(http: aiohttp.ClientSession) -> None:
    query = {"side": "sell", "amount": "1", "inputToken": "SOL", "outputToken": "USDC", "slippageBps": "9"}
    async with http.get("/api/quote", params=query) as answer:
        assert_problem(answer, await answer.json(content_type=None), 503, "NODE_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1


async def test_what_is_not_there_or_not_allowed_is_a_problem_too(http: aiohttp.ClientSession) -> None:
    for method, path, code, allow in (
        ("GET", "/nothing", 404, None),
        ("GET", "/api/orders/execute", 405, {"POST"}),
        ("PUT", "/api/orders/execute", 405, {"POST"}),
        ("DELETE", "/api/orders", 405, {"GET", "HEAD"}),
        ("GET", f"/api/orders/{UNKNOWN}/cancel", 405, {"POST"}),
        ("GET", f"/api/orders/{UNKNOWN}/ws", 426, None),
    ):
        async with http.request(method, path) as answer:
            body = await answer.json(content_type=None)
        assert answer.status == body["status"] == code, path
        assert answer.headers["content-type"] == "application/problem+json"
        if allow is not None:
            assert set(answer.headers["allow"].split(", ")) == allow


async def test_head_and_options_are_answered(http: aiohttp.ClientSession) -> None:
    async with http.head("/api/orders") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    async with http.head("/nothing") as answer:
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
    async with http.options("/api/orders/execute") as answer:
        assert (answer.status, answer.headers["allow"]) == (204, "POST, OPTIONS")


async def test_only_allowed_sites_may_use_the_api_from_their_pages(http: aiohttp.ClientSession) -> None:
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "idempotency-key"}
    good, bad = {"origin": "https://desk.example.com"}, {"origin": "https://evil.example.com"}
    async with http.options("/api/orders/execute", headers=ask | good) as answer:
        assert answer.headers["access-control-allow-origin"] == "https://desk.example.com"
    async with http.options("/api/orders/execute", headers=ask | bad) as answer:
        assert "access-control-allow-origin" not in answer.headers
        assert answer.status == 400


async def test_pages_of_other_sites_can_post_nothing(base: str, http: aiohttp.ClientSession) -> None:
    _, resting = await post(http, BUY)
    port = base.partition(":")[2]
    rebound = f"rebind.example:{port}"
    async with http.get("/openapi.json") as answer:
        posts = [path for path, methods in (await answer.json())["paths"].items() if "post" in methods]
    assert len(posts) == 2
    for path in posts:
        for headers in (
            {"origin": "https://evil.example.com"},
            {"origin": "null"},
            {"origin": f"http://{rebound}", "host": rebound},
        ):
            address = path.replace("{orderId}", resting["orderId"])
            data = json.dumps(BUY) if path.endswith("/execute") else None
            async with http.post(address, data=data, headers=JSON | headers) as answer:
                body = await answer.json(content_type=None)
            assert_problem(answer, body, 403, "ORIGIN_NOT_ALLOWED")
            assert "access-control-allow-origin" not in answer.headers
    async with http.get("/api/orders") as answer:
        orders = (await answer.json())["orders"]
    assert [(order["orderId"], order["status"]) for order in orders] == [(resting["orderId"], "pending")]


async def test_its_own_pages_named_sites_and_programs_may_post(
    base: str, http: aiohttp.ClientSession
) -> None:
    port = base.partition(":")[2]
    for headers in (
        {"origin": f"http://{base}"},
        {"origin": f"http://localhost:{port}", "host": f"localhost:{port}"},
        {"origin": "https://desk.example.com"},
        {"origin": "https://desk.example.com", "host": "desk.example.com"},
        {"host": f"engine.example:{port}"},
    ):
        answer, accepted = await post(http, BUY, **headers)
        assert answer.status == 202
        async with http.post(f"/api/orders/{accepted['orderId']}/cancel", headers=headers) as answer:
            assert answer.status == 200
            named = headers.get("origin") == "https://desk.example.com"
            assert ("access-control-allow-origin" in answer.headers) is named


async def test_the_document_tells_each_refusal(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as answer:
        paths = (await answer.json())["paths"]
    evil = {"origin": "https://evil.example.com"}
    upgrade = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for method, route, order_id, headers, code in (
        ("post", "/api/orders/execute", "", JSON, 400),
        ("post", "/api/orders/execute", "", evil | JSON, 403),
        ("post", "/api/orders/execute", "", {"content-type": "text/plain"}, 415),
        ("get", "/api/orders/{orderId}", "nope", {}, 400),
        ("get", "/api/orders/{orderId}", UNKNOWN, {}, 404),
        ("post", "/api/orders/{orderId}/cancel", "nope", {}, 400),
        ("post", "/api/orders/{orderId}/cancel", UNKNOWN, evil, 403),
        ("post", "/api/orders/{orderId}/cancel", UNKNOWN, {}, 404),
        ("get", "/api/orders/{orderId}/ws", UNKNOWN, {}, 426),
        ("get", "/api/orders/{orderId}/ws", UNKNOWN, upgrade | evil, 403),
        ("get", "/api/orders/{orderId}/ws", UNKNOWN, upgrade | {"sec-websocket-key": "short"}, 400),
        *((method, path, UNKNOWN, {"x": "a" * 20_000}, 431) for path in paths for method in paths[path]),
    ):
        address = route.replace("{orderId}", order_id)
        async with http.request(method, address, headers=headers) as answer:
            assert answer.status == code, address
        assert str(code) in paths[route][method]["responses"], (method, route, code)


async def test_the_document_tells_each_header_of_an_order(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as answer:
        responses = (await answer.json())["paths"]["/api/orders/execute"]["post"]["responses"]
    for code in ("202", "200"):
        answer, _ = await post(http, BUY, **{"idempotency-key": "told"})
        assert str(answer.status) == code
        told = responses[code]["headers"]
        assert all(name in answer.headers for name in told)
        assert ("Idempotent-Replayed" in told) is ("Idempotent-Replayed" in answer.headers)
        assert "Location" in told
    assert {code for code, told in responses.items() if "Retry-After" in told.get("headers", {})} == {
        "429",
        "503",
    }


async def test_nothing_is_cached_or_sniffed_or_framed(http: aiohttp.ClientSession) -> None:
    async with http.get("/api/orders") as answer:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


async def test_pages_allow_no_inline_script_and_are_sent_once(http: aiohttp.ClientSession) -> None:
    for path in ("/", "/docs", "/console.js", "/console.css", "/favicon.svg", "/docs/swagger-ui-bundle.js"):
        async with http.get(path) as answer:
            policy = answer.headers["content-security-policy"]
            assert answer.status == 200
        assert "script-src 'self';" in policy
        async with http.get(path, headers={"if-none-match": answer.headers["etag"]}) as again:
            assert (again.status, await again.read()) == (304, b"")


async def test_health_follows_the_order_service(settings: Settings, free_port: Callable[[], int]) -> None:
    settings = with_grpc_port(settings, free_port)
    async with AsyncExitStack() as stack:
        async with order_server(settings):
            host, _ = await stack.enter_async_context(gateway(settings))
            http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{host}"))
            async with http.get("/healthz") as answer:
                assert (answer.status, await answer.text()) == (200, "ok\n")
        async with http.get("/healthz") as answer:
            assert answer.status == 503
            assert address(settings) in await answer.text()
        answer, body = await post(http, BUY)
        assert_problem(answer, body, 503, "STORE_UNAVAILABLE")
        # With this key a second try cannot buy twice, though the first named none.
        assert body["requestId"]


async def test_figures_tell_requests_by_route_and_code(http: aiohttp.ClientSession) -> None:
    await post(http, BUY)
    async with http.get(f"/api/orders/{UNKNOWN}") as answer:
        assert answer.status == 404
    async with http.get("/metrics") as answer:
        text = await answer.text()
    assert 'order_engine_requests_total{code="202",method="POST /api/orders/execute"}' in text
    assert 'order_engine_requests_total{code="404",method="GET /api/orders/{orderId}"}' in text
    assert 'order_engine_request_seconds_count{method="POST /api/orders/execute"}' in text
    assert 'order_engine_batch_size_count{edge="gateway_submit"}' in text


async def test_submits_at_the_same_moment_share_a_batch(http: aiohttp.ClientSession) -> None:
    answers = await asyncio.gather(*(post(http, BUY | {"amount": number}) for number in range(1, 60)))
    assert {answer.status for answer, _ in answers} == {202}
    assert len({body["orderId"] for _, body in answers}) == 59
    async with http.get("/metrics") as answer:
        lines = [
            line.rpartition(" ")
            for line in (await answer.text()).splitlines()
            if line.startswith("order_engine_batch_size_") and "gateway_submit" in line
        ]
    figures = {name: float(value) for name, _, value in lines}
    edge = '{edge="gateway_submit"}'
    assert figures[f"order_engine_batch_size_count{edge}"] < figures[f"order_engine_batch_size_sum{edge}"]


async def test_what_is_not_http_is_answered_as_a_problem(base: str) -> None:
    host, _, port = base.partition(":")
    for head, code in (
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000, b"431"),
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 " + code)
        assert b"content-type: application/problem+json" in answer


async def test_who_offers_http_2_is_answered_in_http_1(base: str) -> None:
    """As Java's HttpClient and `curl --http2` do with each request."""
    host, _, port = base.partition(":")
    body = json.dumps(BUY).encode()
    head = (
        f"POST /api/orders/execute HTTP/1.1\r\nHost: {base}\r\nContent-Type: application/json\r\n"
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(2):
        writer.write(head + body)
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"\r\n\r\n")
            size = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert json.loads(await reader.readexactly(size))["status"] == "pending"
        assert answer.startswith(b"HTTP/1.1 202 ")
    writer.close()


async def test_a_full_engine_says_when_to_come_back(settings: Settings, free_port: Callable[[], int]) -> None:
    full = replace(with_grpc_port(settings, free_port), max_open_orders=1)
    async with (
        order_server(full),
        gateway(full) as (host, _),
        aiohttp.ClientSession(f"http://{host}") as http,
    ):
        assert (await post(http, BUY))[0].status == 202
        answer, body = await post(http, BUY)
        assert_problem(answer, body, 429, "TOO_MANY_ORDERS")
        assert int(answer.headers["retry-after"]) >= 1
