"""WebSockets that follow an order: what has happened first, then what happens, then close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from client import OrderClient, OrderError, OrderNotFound, SequenceAhead
from engine.telemetry import events_sent_total, open_websockets
from gateway.convert import event_text
from gateway.parse import parse_sequence
from gateway.problems import code_of, problem

MAX_SOCKETS: Final = 20_000

CLOSED: Final = 1000
SERVER_ERROR: Final = 1011
BAD_SEQUENCE: Final = 4400
UNKNOWN_ORDER: Final = 4404

log = logging.getLogger(__name__)


class Sockets:
    """Closes each socket with one of the codes above.

    Two more come from gateway/protocols.py: 1012 when the gateway restarts, 1013 when the client reads too
    slowly. Whoever gets these comes back with ?after= and the last sequence it has.
    """

    def __init__(self, client: OrderClient, allowed_origins: Collection[str]) -> None:
        """`allowed_origins`: "https://desk.example.com", besides the gateway's own."""
        self._client = client
        self._allowed_origins = frozenset(allowed_origins)
        self._open_count = 0

    async def follow(self, socket: WebSocket) -> None:
        """WS /api/orders/{orderId}/ws?after=N"""
        if not self._is_allowed(socket):
            await socket.send_denial_response(
                problem(403, "ORIGIN_NOT_ALLOWED", "pages of this site may not follow orders")
            )
            return
        if self._open_count >= MAX_SOCKETS:
            await socket.send_denial_response(
                problem(503, "TOO_MANY_SOCKETS", "too many connections", headers={"Retry-After": "1"})
            )
            return
        self._open_count += 1
        open_websockets.inc()
        try:
            await socket.accept()
            await self._serve(socket)
        finally:
            self._open_count -= 1
            open_websockets.dec()

    async def _serve(self, socket: WebSocket) -> None:
        try:
            after_sequence = parse_sequence(socket.query_params.get("after"))
        except ValueError as error:
            await socket.close(BAD_SEQUENCE, f"after {error}")
            return
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(self._send(socket, socket.path_params["orderId"], after_sequence))
            # What clients send means nothing here, but their leaving does.
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
            sender.cancel()

    async def _send(self, socket: WebSocket, order_id: str, after_sequence: int) -> None:
        try:
            async for event in self._client.watch(order_id, after_sequence):
                await socket.send_text(event_text(event))
                events_sent_total.inc()
            await socket.close(CLOSED)
        except OrderNotFound as error:
            await _close(socket, UNKNOWN_ORDER, error)
        except SequenceAhead as error:
            await _close(socket, BAD_SEQUENCE, error)
        except OrderError as error:
            if code_of(error) >= 500:
                log.error("watch failed: %s", error, extra={"order_id": order_id})
            await _close(socket, SERVER_ERROR, error)
        except WebSocketDisconnect:
            # It left while an event was on its way to it.
            pass

    def _is_allowed(self, socket: WebSocket) -> bool:
        """Browsers name the page's origin and let any page connect; other programs name none."""
        origin = socket.headers.get("origin")
        if origin is None or origin in self._allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc == socket.headers.get("host")


async def _close(socket: WebSocket, code: int, error: OrderError) -> None:
    if socket.application_state is WebSocketState.CONNECTED:
        # A close frame's reason is at most 123 bytes.
        await socket.close(code, error.message.encode()[:123].decode(errors="ignore"))
