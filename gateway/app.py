"""The gateway as an ASGI application: routes, refusals, headers and figures."""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client import OrderClient, OrderError
from engine.telemetry import open_watches, open_websockets, render_metrics
from gateway import lookups, submits
from gateway.figures import tell_answer
from gateway.openapi import openapi_body
from gateway.origins import EXPOSED_HEADERS, Origins
from gateway.pages import page_routes
from gateway.problems import API_HEADERS, HttpRefusal, code_of, problem, problem_of_error, problem_of_refusal
from gateway.rest import Rest
from gateway.sockets import Sockets

log = logging.getLogger(__name__)

_REASONS: Final = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


def make_app(client: OrderClient, sockets: Sockets, origins: Origins) -> ASGIApp:
    """Return the application. `origins` may use it from pages of their own, besides its own pages."""
    rest = Rest(client, origins)

    async def healthz(_request: Request) -> Response:
        reason = await client.unready_reason()
        return PlainTextResponse("ok\n") if reason is None else PlainTextResponse(f"{reason}\n", 503)

    async def metrics(_request: Request) -> Response:
        open_watches.set(client.watched_order_count)
        open_websockets.set(sockets.open_count)
        body, content_type = render_metrics()
        return Response(body, headers={"Content-Type": content_type})

    async def openapi(_request: Request) -> Response:
        return Response(openapi_body(), media_type="application/json")

    routes: list[BaseRoute] = [
        # Ahead of this application: a POST is answered in submits.py, a WebSocket in sockets.py, and most
        # of those who look up an order in lookups.py.
        Route(submits.ROUTE, _answered_ahead, methods=["POST"]),
        Route("/api/orders/{orderId}/ws", _upgrade_required, methods=["GET"]),
        Route("/api/orders/{orderId}/cancel", rest.cancel, methods=["POST"]),
        Route(lookups.ROUTE, rest.get, methods=["GET"]),
        Route("/api/orders", rest.list, methods=["GET"]),
        Route("/api/quote", rest.quote, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        *page_routes(),
    ]
    middleware = []
    if origins.allowed:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(origins.allowed),
                allow_methods=["GET", "POST"],
                allow_headers=["Content-Type", "Idempotency-Key"],
                expose_headers=EXPOSED_HEADERS,
            )
        )
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            HTTPException: _http_exception,
            HttpRefusal: _http_refusal,
            OrderError: _order_error,
            Exception: _unexpected,
        },
    )
    app.router.redirect_slashes = False
    return _Measured(app)


async def _answered_ahead(_request: Request) -> Response:
    raise AssertionError("gateway/protocols.py keeps these for itself")


async def _upgrade_required(_request: Request) -> Response:
    raise HttpRefusal("UPGRADE_REQUIRED", "this is a WebSocket address", headers={"Upgrade": "websocket"})


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers={"Allow": headers["Allow"] + ", OPTIONS"})
    message = "there is nothing at this address"
    if error.status_code == 405:
        message = f"{request.method} is not allowed here; {headers['Allow']} is"
    return problem(
        error.status_code, _REASONS.get(error.status_code, "BAD_REQUEST"), message, headers=headers
    )


async def _http_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpRefusal)
    return problem_of_refusal(error)


async def _order_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OrderError)
    if code_of(error) == 500:
        order_id = request.path_params.get("orderId")
        log.error("%s %s: %s", request.method, request.url.path, error, extra={"order_id": order_id})
    return problem_of_error(error)


async def _unexpected(_request: Request, _error: Exception) -> Response:
    # uvicorn logs the error with its traceback; the client learns nothing of it.
    return problem(500, "INTERNAL", "something went wrong here; it was logged")


class _Measured:
    """Adds the headers every answer has, and counts and times requests by route and code."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        code = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = message["headers"]
                if not any(name == b"content-security-policy" for name, _ in headers):
                    headers.extend(API_HEADERS)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if route != "unknown" else "ANY"
            tell_answer(method, route, code, time.perf_counter() - start)
