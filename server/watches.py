"""Streams events to watchers: a hint or the clock says "look", PostgreSQL says what happened.

No watcher has a queue. A stream keeps a cursor for each order it watches, and the set of orders to look at.
When it can send, it reads what is after its cursors, in one query with all other streams of the process
that read at that moment. A slow reader costs nothing but its cursors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from engine.domain.errors import Draining, EngineError, OrderNotFound, SequenceAhead
from engine.domain.lifecycle import CLOSED
from engine.hints import Hints
from engine.storage.postgres import Store, WatchedEvent
from engine.telemetry import open_watches

_LOOK_SECONDS: Final = 1.0
"""How late an event may be when its hint was lost."""
_ROUND: Final = 512
"""Orders one stream reads at a time, so that its first message does not wait for its last order."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """An order is watched no longer: it closed and all was sent (None), or it cannot be watched."""

    order_id: str
    """As the client wrote it, where that is no UUID."""
    error: EngineError | None


class Watches:
    """All watches of a process."""

    def __init__(self, store: Store, hints: Hints) -> None:
        self._store = store
        self._hints = hints
        self._subscriptions: dict[UUID, set[Subscription]] = {}
        self._streams: set[Subscription] = set()
        self._look_now = asyncio.Event()
        self._draining = False

    async def run(self) -> None:
        """Pass hints on and look without one every second, for ever."""
        async with asyncio.TaskGroup() as group:
            # Hints before a new subscription were missed: look at everything.
            group.create_task(self._hints.run(self._mark, self._look_now.set))
            group.create_task(self._look_around())

    def drain(self) -> None:
        """End every stream: its client is to come back, to another server."""
        self._draining = True
        for subscription in self._streams:
            subscription.wake()

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """A stream's subscription; what it watches is let go when the block is left."""
        subscription = Subscription(self, self._store)
        # Also those that watch nothing just now: an idle stream would hold up the stop.
        self._streams.add(subscription)
        if self._draining:
            subscription.wake()
        try:
            yield subscription
        finally:
            self._streams.discard(subscription)
            subscription.unwatch_all()

    @property
    def draining(self) -> bool:
        return self._draining

    def add(self, order_id: UUID, subscription: Subscription) -> None:
        self._subscriptions.setdefault(order_id, set()).add(subscription)
        open_watches.inc()

    def remove(self, order_id: UUID, subscription: Subscription) -> None:
        several = self._subscriptions[order_id]
        several.remove(subscription)
        if not several:
            del self._subscriptions[order_id]
        open_watches.dec()

    def _mark(self, order_ids: Iterable[UUID]) -> None:
        for order_id in order_ids:
            for subscription in self._subscriptions.get(order_id, ()):
                subscription.look(order_id)

    async def _look_around(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look_now.wait()
            except TimeoutError:
                pass
            self._look_now.clear()
            # The lowest cursor of each order: who is further on finds nothing and waits on.
            cursors = [
                (order_id, min(subscription.cursor(order_id) for subscription in several))
                for order_id, several in self._subscriptions.items()
            ]
            try:
                for at in range(0, len(cursors), _ROUND):
                    self._mark(await self._store.moved_orders(cursors[at : at + _ROUND]))
            except EngineError as error:
                logger.warning("watchers wait: %s", error)


class Subscription:
    """The orders one stream watches."""

    def __init__(self, watches: Watches, store: Store) -> None:
        self._watches = watches
        self._store = store
        self._cursors: dict[UUID, int] = {}
        self._unverified: set[UUID] = set()
        """Not known to exist yet: nothing of them was read so far."""
        self._look: dict[UUID, None] = {}
        """Orders to look at, longest waiting first."""
        self._refused: list[Ended] = []
        self._wake = asyncio.Event()

    def watch(self, order_id: UUID, after_sequence: int = 0) -> None:
        """Watch an order from after that sequence on; once more for one that is watched moves its cursor."""
        if order_id not in self._cursors:
            # First in the register, then a look: a hint that comes in between is not missed.
            self._watches.add(order_id, self)
        self._cursors[order_id] = after_sequence
        self._unverified.add(order_id)
        self.look(order_id)

    def unwatch(self, order_id: UUID) -> None:
        if order_id in self._cursors:
            del self._cursors[order_id]
            self._unverified.discard(order_id)
            self._look.pop(order_id, None)
            self._watches.remove(order_id, self)

    def unwatch_all(self) -> None:
        for order_id in list(self._cursors):
            self.unwatch(order_id)

    def cursor(self, order_id: UUID) -> int:
        return self._cursors[order_id]

    def look(self, order_id: UUID) -> None:
        self._look[order_id] = None
        self._wake.set()

    def refuse(self, order_id: str, error: EngineError) -> None:
        """Have the client told that this order cannot be watched."""
        self._refused.append(Ended(str(order_id), error))
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def events(self) -> AsyncIterator[tuple[list[WatchedEvent], list[Ended]]]:
        """Yield what is new of the watched orders, in sequence per order, and which watches ended.

        Goes on for ever. Raises Draining when the process is to stop, StoreUnavailable when the record
        cannot be read.
        """
        while True:
            await self._wake.wait()
            if self._watches.draining:
                raise Draining("the server is restarting; watch again with after_sequence")
            order_ids = list(self._look)[:_ROUND]
            for order_id in order_ids:
                del self._look[order_id]
            if not self._look:
                self._wake.clear()
            refused, self._refused = self._refused, []
            events, ended = await self._read(order_ids)
            if events or ended or refused:
                yield events, refused + [Ended(str(order_id), error) for order_id, error in ended.items()]

    async def _read(self, order_ids: list[UUID]) -> tuple[list[WatchedEvent], dict[UUID, EngineError | None]]:
        cursors = [(order_id, self._cursors[order_id]) for order_id in order_ids]
        found = await asyncio.gather(*(self._store.events_after(cursor) for cursor in cursors))
        events: list[WatchedEvent] = []
        ended: dict[UUID, EngineError | None] = {}
        silent: list[UUID] = []
        for (order_id, after_sequence), news in zip(cursors, found, strict=True):
            if self._cursors.get(order_id) != after_sequence:
                continue  # let go, or watched anew from elsewhere, while we read
            if not news:
                if order_id in self._unverified:
                    silent.append(order_id)
                continue
            self._unverified.discard(order_id)
            self._cursors[order_id] = news[-1].event.sequence
            events += news
            if news[-1].event.status in CLOSED:
                ended[order_id] = None
        ended |= await self._verify(silent)
        for order_id in ended:
            self.unwatch(order_id)
        return events, ended

    async def _verify(self, order_ids: list[UUID]) -> dict[UUID, EngineError | None]:
        """Return those with nothing to come: unknown, a cursor beyond the record, or closed at it."""
        ended: dict[UUID, EngineError | None] = {}
        positions = await asyncio.gather(*(self._store.position(order_id) for order_id in order_ids))
        for order_id, position in zip(order_ids, positions, strict=True):
            after_sequence = self._cursors.get(order_id)
            if after_sequence is None:
                continue
            if position is None:
                ended[order_id] = OrderNotFound(order_id)
            elif after_sequence > position.sequence:
                ended[order_id] = SequenceAhead(order_id, after_sequence, position.sequence)
            elif after_sequence < position.sequence:
                self.look(order_id)  # it moved between the two reads
            elif position.closed:
                ended[order_id] = None
            else:
                self._unverified.discard(order_id)
        return ended
