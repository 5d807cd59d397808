"""How much is taken in: refuse, with a hint when to come back, rather than fall behind without end."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from engine.domain.errors import EngineError, TooManyOrders
from engine.storage.postgres import Store
from engine.telemetry import orders_by_status

_COUNT_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 2.0

logger = logging.getLogger(__name__)


class Admission:
    """Counts open orders now and then, and what was admitted since."""

    def __init__(self, store: Store, max_open_orders: int) -> None:
        self._store = store
        self._max = max_open_orders
        self._count = 0
        self.store_up = False
        """Whether the record answered last time."""

    def admit(self, count: int) -> None:
        """Take note of that many new orders. Raises TooManyOrders, and then none of them is counted."""
        if self._count + count > self._max:
            raise TooManyOrders(
                f"{self._max} orders are open, which is as many as are taken; come back in a moment",
                _RETRY_SECONDS,
            )
        self._count += count

    async def run(self) -> None:
        """Count once a second, for ever."""
        while True:
            try:
                # Counting stops at the limit: beyond it the number makes no difference.
                self._count = await self._store.open_orders_count(self._max)
                self.store_up = True
            except EngineError as error:
                self.store_up = False
                logger.warning("open orders cannot be counted: %s", error)
            else:
                orders_by_status.labels("open").set(self._count)
            await asyncio.sleep(_COUNT_SECONDS)
