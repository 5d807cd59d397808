"""The REST endpoints: read strictly, ask the order service, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from client import OrderClient, TooManyOrders
from client.json_text import decision_json, details_json, json_bytes, page_json
from gateway.parse import (
    MAX_BODY_BYTES,
    parse_order,
    parse_page,
    parse_quote,
    parse_request_id,
    read_json,
)
from gateway.problems import HttpRefusal

BODY_SECONDS: Final = 10.0
"""How long a body may take to arrive."""
MAX_WAITING_SUBMITS: Final = 10_000
"""POSTs that wait for the order service, before more are refused. Bounds memory while it is away."""


class Rest:
    def __init__(self, client: OrderClient) -> None:
        self._client = client
        self._waiting_submits = 0

    async def execute(self, request: Request) -> Response:
        """POST /api/orders/execute"""
        request_id = parse_request_id(request.headers.getlist("idempotency-key"))
        _require_json(request)
        spec = parse_order(read_json(await _read_body(request)))
        if self._waiting_submits >= MAX_WAITING_SUBMITS:
            raise TooManyOrders("too many orders are waiting to be accepted; try again", retry_seconds=1.0)
        self._waiting_submits += 1
        try:
            order = await self._client.submit(spec, request_id=request_id)
        finally:
            self._waiting_submits -= 1
        body = {
            "success": True,
            "orderId": order.order_id,
            "status": order.status,
            "message": "Order queued successfully",
        }
        headers = {"Location": f"/api/orders/{order.order_id}"}
        if order.deduplicated:
            body["message"] = "Order had been accepted before"
            return _json(body, 200, headers | {"Idempotent-Replayed": "true"})
        return _json(body, 202, headers)

    async def get(self, request: Request) -> Response:
        """GET /api/orders/{orderId}"""
        if request.path_params["orderId"] == "execute":
            raise HTTPException(405, headers={"Allow": "POST"})
        return _json(details_json(await self._client.get(request.path_params["orderId"])))

    async def list(self, request: Request) -> Response:
        """GET /api/orders"""
        page = await self._client.list_page(**parse_page(request.query_params.multi_items()))
        return _json(page_json(page))

    async def cancel(self, request: Request) -> Response:
        """POST /api/orders/{orderId}/cancel"""
        order = await self._client.cancel(request.path_params["orderId"])
        return _json(
            {
                "success": True,
                "orderId": order.order_id,
                "status": order.status,
                "message": "Order cancelled",
            }
        )

    async def quote(self, request: Request) -> Response:
        """GET /api/quote"""
        spec = parse_quote(request.query_params.multi_items())
        return _json(decision_json(await self._client.quote(spec)))


def _require_json(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        # Not only manners: a page of another site can send any other type without the browser asking first.
        raise HttpRefusal("UNSUPPORTED_MEDIA_TYPE", "the body must be application/json in UTF-8")


async def _read_body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    # A header that is not a number is refused by the HTTP parser before it comes here.
    if int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise HttpRefusal(
            "REQUEST_TIMEOUT",
            f"the body did not arrive within {BODY_SECONDS:g} s",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        # Nobody reads the answer.
        raise HttpRefusal("BAD_REQUEST", "the connection was closed before the body had arrived") from None
    return body


def _too_large() -> HttpRefusal:
    return HttpRefusal(
        "CONTENT_TOO_LARGE",
        f"the body is larger than {MAX_BODY_BYTES} bytes",
        headers={"Connection": "close"},
    )


def _json(body: Mapping[str, Any], code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_bytes(body), code, headers, media_type="application/json")
