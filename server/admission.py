"""How much is taken in: refuse, with a hint when to come back, rather than fall behind without end."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import psycopg

from engine.domain.errors import EngineError, TooManyOrders
from engine.domain.order_types import MARKET, ORDER_TYPES
from engine.storage.postgres import Store
from engine.telemetry import Trouble, open_orders, resting_orders

_COUNT_SECONDS: Final = 1.0
_RESTING_PART: Final = 0.02
"""How much of the time may go into counting orders that rest: a million of them take a tenth of a second."""
_RETRY_SECONDS: Final = 2.0
_SILENT_SECONDS: Final = 5.0
"""How long the record may leave the question unanswered before it counts as away."""

logger = logging.getLogger(__name__)


class Admission:
    """Counts open orders now and then, and what was admitted since.

    Orders that rest until their trigger fires are counted apart: they take room on disk and no time.
    """

    def __init__(self, store: Store, max_open_orders: int, max_resting_orders: int) -> None:
        self._store = store
        self._max_open = max_open_orders
        self._max_resting = max_resting_orders
        self._open_count = 0
        self._resting_count = 0
        self._trouble = Trouble(logger, "open orders cannot be counted", "open orders are counted again")
        self._answered_time: float | None = None
        """When the record answered, by the loop's clock; None: it did not, the last time."""

    @property
    def store_up(self) -> bool:
        """Whether the record answers: it did the last time, and not long ago, as where it is frozen."""
        now = asyncio.get_running_loop().time()
        return self._answered_time is not None and now - self._answered_time < _SILENT_SECONDS

    def admit(self, count: int, *, resting_count: int = 0) -> None:
        """Take note of that many new orders, some of which rest.

        Raises TooManyOrders, and then none of them is counted.
        """
        open_count = count - resting_count
        if open_count and self._open_count + open_count > self._max_open:
            raise TooManyOrders(
                f"{self._max_open} orders are open, which is as many as are taken; come back in a moment",
                _RETRY_SECONDS,
            )
        if resting_count and self._resting_count + resting_count > self._max_resting:
            raise TooManyOrders(
                f"{self._max_resting} orders wait for their trigger, which is as many as are kept",
                _RETRY_SECONDS,
            )
        self._open_count += open_count
        self._resting_count += resting_count

    async def run(self) -> None:
        """Count once a second, for ever; what rests less often where there is much of it."""
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            try:
                # Counting stops at the limit: beyond it the number makes no difference.
                self._open_count = await self._store.open_orders_count(self._max_open)
                if (start := now()) >= due:
                    await self._count_resting()
                    due = now() + (now() - start) / _RESTING_PART
                self._answered_time = now()
            except (EngineError, psycopg.Error) as error:
                # What nobody expected too: somebody is at work on the database, which its end would not help.
                self._answered_time = None
                self._trouble.fails(error)
            else:
                self._trouble.works()
                open_orders.labels("open").set(self._open_count)
            await asyncio.sleep(_COUNT_SECONDS)

    async def _count_resting(self) -> None:
        resting = await self._store.resting_orders_count()
        self._resting_count = sum(resting.values())
        for name in ORDER_TYPES:
            if name != MARKET.name:
                resting_orders.labels(name).set(resting.get(name, 0))
