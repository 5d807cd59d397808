"""GET /api/orders/{orderId}, answered on uvicorn's connections themselves.

Only its plain spelling, a UUID and no more: whatever else names an order goes the way of all requests, to
the same answer in rest.py.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from client import OrderClient
from client.json_text import details_bytes
from gateway.cycle import Connection, Cycle
from gateway.origins import Headers, Origins

ROUTE: Final = "/api/orders/{orderId}"

_PLAIN: Final = re.compile(rb"/api/orders/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


class Lookups:
    """What all of them share."""

    def __init__(self, client: OrderClient, origins: Origins) -> None:
        self.client = client
        self.origins = origins
        self.under_way: set[asyncio.Task[None]] = set()
        """Which the loop alone would let go."""


class Lookup(Cycle):
    """One order that is asked for."""

    __slots__ = ("_lookups", "_order_id")

    def __init__(
        self, lookups: Lookups, connection: Connection, headers: Headers, order_id: str, *, keep_alive: bool
    ) -> None:
        super().__init__(
            "GET", ROUTE, connection, headers, lookups.origins, keep_alive=keep_alive, more_body=False
        )
        self._lookups = lookups
        self._order_id = order_id

    def take_turn(self) -> None:
        task = self._connection.loop.create_task(self._look_up())
        self._lookups.under_way.add(task)
        task.add_done_callback(self._lookups.under_way.discard)

    async def _look_up(self) -> None:
        try:
            found = details_bytes(await self._lookups.client.get_message(self._order_id))
        except Exception as error:
            self._answer_error(error, self._order_id)
        else:
            self._answer_json(200, b"200 OK", found)


def plain_order_id(url: bytes, headers: Headers) -> str | None:
    """Return the order that a GET of that URL asks for, if it is spelled plainly and has no body."""
    if (match := _PLAIN.fullmatch(url)) is None:
        return None
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
        return None
    return match[1].decode()
