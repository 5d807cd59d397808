"""Coalescing: whatever crosses a process boundary travels with its neighbours.

While one round trip is in flight the next batch fills. At low load a batch is one item and nothing
waits; at high load one statement, pipeline or message carries dozens. Where a round trip costs more than
what it carries, an edge can be paced: a busy one lets a moment pass between two, an idle one never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class Coalescer(Generic[Item, Result]):
    """Calls `perform` with as many items as came while the call before it was under way.

    `perform` answers a list, one result for each item, in order. An exception as a result is raised
    to that item's caller alone; an exception raised by `perform` is raised to every caller of the batch.

    A caller that is cancelled leaves; the batch it was part of goes on, so a COMMIT is never
    cut short by a client that hung up.
    """

    def __init__(
        self,
        perform: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_batch: int = 256,
        max_concurrent: int = 1,
        interval_seconds: float = 0.0,
        observe: Callable[[int], None] | None = None,
    ) -> None:
        """`max_concurrent` round trips may be under way at once; `observe` is told each batch's size.

        A round trip starts at least `interval_seconds` after the one before it, unless its batch is full.
        """
        self._perform = perform
        self._max_batch = max_batch
        self._max_concurrent = max_concurrent
        self._interval_seconds = interval_seconds
        self._next_start = 0.0
        self._observe = observe
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._runners: set[asyncio.Task[None]] = set()

    def __call__(self, item: Item) -> asyncio.Future[Result]:
        """Put the item into the next batch; the future is its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((item, future))
        if len(self._runners) < self._max_concurrent:
            # A new task starts on the loop's next turn, so all items of this turn share its first batch.
            runner = loop.create_task(self._run())
            self._runners.add(runner)
        return future

    @property
    def waiting_count(self) -> int:
        """Items not yet part of a round trip."""
        return len(self._waiting)

    async def drain(self) -> None:
        """Return once everything handed in so far has been performed."""
        while self._runners:
            await asyncio.wait(set(self._runners))

    async def _run(self) -> None:
        try:
            await self._perform_waiting()
        finally:
            # Here and not in a done callback, which runs a turn later: an item handed in meanwhile
            # would count on a runner that has already looked for the last time.
            self._runners.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        rest = self._next_start - loop.time()
        if rest > 0:
            await asyncio.sleep(rest)
        self._next_start = loop.time() + self._interval_seconds

    async def _perform_waiting(self) -> None:
        while self._waiting:
            if self._interval_seconds and len(self._waiting) < self._max_batch:
                await self._pace()
            count = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(count)]
            if self._observe is not None:
                self._observe(count)
            try:
                results = await self._perform([item for item, _ in batch])
                if len(results) != count:
                    # Whose result is missing cannot be told, and nobody may wait for ever.
                    raise RuntimeError(f"{len(results)} results for {count} items")
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            except BaseException:
                for _, future in batch:
                    future.cancel()
                raise
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
