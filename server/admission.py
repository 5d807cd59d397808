"""How much is taken in: refuse, with a hint when to come back, rather than fall behind without end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import psycopg

from engine.domain.errors import EngineError, TooManyOrders
from engine.domain.order_types import MARKET, ORDER_TYPES
from engine.storage.postgres import Store
from engine.telemetry import Trouble, oldest_due_seconds, open_orders, resting_orders

_COUNT_SECONDS: Final = 1.0
_RESTING_PART: Final = 0.02
"""How much of the time may go into counting orders that rest: a million of them take a tenth of a second."""
_RETRY_SECONDS: Final = 2.0
_SILENT_SECONDS: Final = 5.0
"""How long the record may leave the question unanswered before it counts as away."""

logger = logging.getLogger(__name__)


class _Level:
    """How many orders of a kind there are: those the record counted, and those it may not have seen yet.

    An order that is being stored while the record counts may be among those counted or not. It is taken
    for one that is not, until the next count: the limit may then be met a few orders early.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counted = 0
        self._taken = 0
        """Ever, like the two below."""
        self._stored = 0
        self._surely_counted = 0

    @property
    def room(self) -> int:
        """How many more may be taken."""
        return max(0, self.limit - self.counted - self._taken + self._surely_counted)

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Take that many, which are being stored until the block ends."""
        self._taken += count
        try:
            yield
        finally:
            self._stored += count

    async def count(self, answer: Awaitable[int]) -> None:
        """Count anew: `answer` asks the record only once it is awaited."""
        stored = self._stored
        self.counted = await answer
        self._surely_counted = stored


class Admission:
    """Counts open orders now and then, and what was admitted since.

    Orders that rest until their trigger fires are counted apart: they take room on disk and no time.
    """

    def __init__(self, store: Store, max_open_orders: int, max_resting_orders: int) -> None:
        self._store = store
        self._open = _Level(max_open_orders)
        self._resting = _Level(max_resting_orders)
        self._trouble = Trouble(logger, "open orders cannot be counted", "open orders are counted again")
        self._answered_time: float | None = None
        """When the record answered, by the loop's clock; None: it did not, the last time."""

    @property
    def store_up(self) -> bool:
        """Whether the record answers: it did the last time, and not long ago, as where it is frozen."""
        now = asyncio.get_running_loop().time()
        return self._answered_time is not None and now - self._answered_time < _SILENT_SECONDS

    @contextmanager
    def admit(self, rests: Sequence[bool]) -> Iterator[list[TooManyOrders | None]]:
        """Take new orders, told whether each rests, and store those that are taken inside the block.

        These are the first of each kind, as far as there is room. Gives None for each that is taken, and for
        each that is not the reason.
        """
        refusals: list[TooManyOrders | None] = [None] * len(rests)
        with ExitStack() as taken:
            for level, kind, said in (
                (self._open, False, "orders are open, which is as many as are taken; come back in a moment"),
                (self._resting, True, "orders wait for their trigger, which is as many as are kept"),
            ):
                places = [place for place, each in enumerate(rests) if each is kind]
                room = level.room
                for place in places[room:]:
                    refusals[place] = TooManyOrders(f"{level.limit} {said}", _RETRY_SECONDS)
                taken.enter_context(level.take(min(room, len(places))))
            yield refusals

    async def run(self) -> None:
        """Count once a second, for ever; what rests less often where there is much of it."""
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            try:
                # Counting stops at the limit: beyond it the number makes no difference.
                await self._open.count(self._count_open())
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
                open_orders.labels("open").set(self._open.counted)
            await asyncio.sleep(_COUNT_SECONDS)

    async def _count_open(self) -> int:
        backlog = await self._store.backlog(self._open.limit)
        oldest_due_seconds.set(backlog.oldest_due_seconds)
        return backlog.count

    async def _count_resting(self) -> None:
        async def count() -> int:
            resting = await self._store.resting_orders_count()
            for name in ORDER_TYPES:
                if name != MARKET.name:
                    resting_orders.labels(name).set(resting.get(name, 0))
            return sum(resting.values())

        await self._resting.count(count())
