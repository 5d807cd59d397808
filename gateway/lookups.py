"""GET /api/orders/{orderId}, answered on uvicorn's connections themselves.

Only its plain spelling, a UUID and no more: whatever else names an order goes the way of all requests, to
the same answer in rest.py.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Final

from client import OrderClient, OrderError
from client.json_text import details_bytes
from gateway.cycle import Connection, Cycle
from gateway.origins import Headers, Origins
from gateway.problems import code_of, problem, problem_of_error

ROUTE: Final = "/api/orders/{orderId}"

_PLAIN: Final = re.compile(rb"/api/orders/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")

log = logging.getLogger(__name__)


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
        except OrderError as error:
            if code_of(error) == 500:
                log.error("GET %s: %s", ROUTE, error, extra={"order_id": self._order_id})
            self._answer_problem(problem_of_error(error))
        except Exception:
            log.exception("GET %s failed", ROUTE, extra={"order_id": self._order_id})
            self._answer_problem(problem(500, "INTERNAL", "something went wrong here; it was logged"))
        else:
            self._answer_json(200, b"200 OK", found)


def plain_order_id(url: bytes, headers: Headers) -> str | None:
    """Return the order that a GET of that URL asks for, if it is spelled plainly and has no body."""
    if (match := _PLAIN.fullmatch(url)) is None:
        return None
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
        return None
    return match[1].decode()
