"""The REST endpoints, but for that which submits: read strictly, ask the order service, answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from client import OrderClient
from client.json_text import decision_json, details_bytes, json_bytes, page_json
from gateway.origins import Origins
from gateway.parse import parse_page, parse_quote


class Rest:
    def __init__(self, client: OrderClient, origins: Origins) -> None:
        self._client = client
        self._origins = origins

    async def get(self, request: Request) -> Response:
        """GET /api/orders/{orderId}"""
        if request.path_params["orderId"] == "execute":
            raise HTTPException(405, headers={"Allow": "POST"})
        details = await self._client.get_message(request.path_params["orderId"])
        return Response(details_bytes(details), media_type="application/json")

    async def list(self, request: Request) -> Response:
        """GET /api/orders"""
        page = await self._client.list_page(**parse_page(request.query_params.multi_items()))
        return _json(page_json(page))

    async def cancel(self, request: Request) -> Response:
        """POST /api/orders/{orderId}/cancel"""
        # It has no body, so browsers send it for any page without asking first.
        if (refusal := self._origins.refusal(request.headers.raw)) is not None:
            raise refusal
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


def _json(body: Mapping[str, Any]) -> Response:
    return Response(json_bytes(body), media_type="application/json")
