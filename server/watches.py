"""Streams events to watchers: a hint or the clock says "look", PostgreSQL says what happened.

Most hints bring along what happened, which is told without a read where it follows on what a watcher has.
A gap, a hint without events and a watcher from elsewhere are read.

No watcher has a queue. A stream keeps a cursor for each order it watches, and the set of orders to look at.
When it can send, it takes what is after its cursors: what is known, and the rest in one query with all other
streams of the process that read at that moment. A slow reader costs nothing but its cursors.

Nor do requests run ahead of their answers by more than a round or two: what a stream asks for beyond that
stays as it came, until there is so much of it that nothing further is received.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar
from uuid import UUID

import msgspec
import psycopg

from engine.domain.errors import (
    Draining,
    EngineError,
    OrderNotFound,
    OrderNotReadable,
    SequenceAhead,
    TooManyOrders,
)
from engine.domain.lifecycle import CLOSED
from engine.domain.order import Order, OrderEvent, WatchedEvent, watched
from engine.hints import Hints, events_told
from engine.storage.postgres import MOST_EVENTS, Store
from engine.telemetry import Trouble, open_watches

Answer = TypeVar("Answer")

_LOOK_SECONDS: Final = 1.0
"""How late an event may be when its hint was lost, where no more than `_LOOKS` orders are watched."""
_LOOKS: Final = 1024
"""Orders looked at without a hint, at a time; more are looked at in turn. 10,000 at once, each second, took
3.5 % of a processor here and 2.5 % in PostgreSQL, for hints that Redis hardly ever loses. While Redis is away
all are: 50,000 took 0.4 to 0.9 s on two busy processors, 200,000 1.8 to 2.6, and half of one processor."""
_ROUND: Final = 512
"""Orders read at a time by one stream, so that its first message does not wait for its last order, and by a
look around, so that streams read in between."""

_MOST_WATCHED: Final = 200_000
"""Orders on one stream: some 120 MB. The contract names the number."""
_MOST_UNHEARD_BYTES: Final = 16 << 20
"""Of one stream's requests. Those of 150,000 orders fit: a client that reads nothing before it has written
them all would wait for ever if they did not."""
_RETRY_SECONDS: Final = 1.0
"""When a stream that watches too many orders may ask again; it is for its client to watch fewer."""

_MOST_TOLD: Final = 2_000
"""Events of one message, of up to 1.2 kB: a client that sets no limit of its own takes 4 MB."""

_LEAST_INTERVAL_SECONDS: Final = 0.002
_MOST_REST_SECONDS: Final = 0.02
_RESTS: Final = 2
"""A busy stream rests twice as long as it took to read and send, so that under load, where that takes longer,
each message carries more: one takes 400 us of CPU, an event in it 10. An idle stream reads at once."""

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
        self._subscriptions: dict[bytes, set[Subscription]] = {}
        """By order id, as hints have it: nearly all of them are about orders that nobody watches here."""
        self._streams: set[Subscription] = set()
        self._news: dict[bytes, list[WatchedEvent]] = {}
        """The latest events of orders that were stored here or told of since the last look around: without a
        gap, and, as far as is known here, with none after them. They need no read."""
        self._look_now = asyncio.Event()
        self._draining = False

    async def run(self) -> None:
        """Pass hints on and look without one every second, for ever."""
        async with asyncio.TaskGroup() as group:
            # Hints before a new subscription were missed: look at everything.
            group.create_task(self._hints.run(self._on_moved, self._look_now.set, self._news.clear))
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
            subscription.end()

    @property
    def draining(self) -> bool:
        return self._draining

    def stored(self, orders: Iterable[Order]) -> None:
        """Take note of orders that this process has just committed, whose watchers mostly come at once."""
        if self._hints.up:
            self._news.update(
                [(order.order_id.bytes, [_first_event(order)]) for order in orders if order.create_time]
            )

    def known_events(self, order_id: UUID, after_sequence: int) -> list[WatchedEvent] | None:
        """Return the events after the cursor, if they came with hints or the order was stored here just now.

        None: read the record. A hint that was lost holds up what follows no longer than any event.
        """
        news = self._news.get(order_id.bytes)
        if news is None:
            return None
        told = after_sequence + 1 - news[0].event.sequence
        """How many of them lie before the cursor."""
        if not 0 <= told <= len(news) or (told == len(news) and news[-1].event.status in CLOSED):
            return None
        return news[told:]

    def add(self, key: bytes, subscription: Subscription) -> None:
        self._subscriptions.setdefault(key, set()).add(subscription)
        open_watches.inc()

    def remove(self, key: bytes, subscription: Subscription) -> None:
        several = self._subscriptions[key]
        several.remove(subscription)
        if not several:
            del self._subscriptions[key]
        open_watches.dec()

    def _on_moved(self, keys: Iterable[bytes], news: Sequence[msgspec.Raw] = ()) -> None:
        for index, key in enumerate(keys):
            subscriptions = self._subscriptions.get(key)
            events = events_told(news[index]) if subscriptions and news else ()
            if events:
                self._note(key, events)
            else:
                self._news.pop(key, None)
            for subscription in subscriptions or ():
                subscription.look(key)

    def _note(self, key: bytes, events: Sequence[WatchedEvent]) -> None:
        known = self._news.setdefault(key, [])
        for each in events:
            expected = known[-1].event.sequence + 1 if known else each.event.sequence
            if each.event.sequence > expected:
                # What is missing in between has to be read.
                known.clear()
            if each.event.sequence >= expected:
                known.append(each)

    async def _look_around(self) -> None:
        loop = asyncio.get_running_loop()
        turn: list[bytes] = []
        pause, is_overdue, breaks = _LOOK_SECONDS, False, self._store.break_count
        trouble = Trouble(logger, "watchers wait", "watchers are told again")
        while True:
            # Where hints were missed, or are just now, nobody waits for a turn.
            is_told = await self._told_to_look_now(pause)
            is_reconnected = (breaks_before := self._store.break_count) != breaks
            everything = is_told or is_overdue or is_reconnected or not self._hints.up
            start = loop.time()
            self._news.clear()
            if everything or not turn:
                turn = list(self._subscriptions)
            count = len(turn) if everything else _LOOKS
            looked_at, turn = turn[:count], turn[count:]
            try:
                for at in range(0, len(looked_at), _ROUND):
                    await self._look_at(looked_at[at : at + _ROUND])
                    if is_reconnected:
                        await self._doubt(looked_at[at : at + _ROUND])
            except (EngineError, psycopg.Error) as error:
                # What nobody expected too: the end of this server would not help.
                trouble.fails(error)
                turn = looked_at + turn
                is_overdue = everything
            else:
                trouble.works()
                is_overdue, breaks = False, breaks_before
            # A second after the last one began. Half a second after it ended, though, for who reads events.
            pause = max(_LOOK_SECONDS - (loop.time() - start), _LOOK_SECONDS / 2)

    async def _look_at(self, keys: Iterable[bytes]) -> None:
        # The lowest cursor of each order: who is further on finds nothing and waits on.
        cursors = {
            key: min([subscription.cursor(key) for subscription in several])
            for key in keys
            if (several := self._subscriptions.get(key))
        }
        self._on_moved(await self._store.moved_orders(cursors))

    async def _doubt(self, keys: Iterable[bytes]) -> None:
        """Have those watches verified anew whose order is not on record as they have seen it.

        The database may be one that took over, or was put back, and lacks the last commits. Nothing would
        ever be told of what it has after that, up to where the watchers are.
        """
        cursors = {
            key: max([subscription.cursor(key) for subscription in several])
            for key in keys
            if (several := self._subscriptions.get(key))
        }
        for key in await self._store.lacking_orders(cursors):
            for subscription in self._subscriptions.get(key, ()):
                subscription.doubt(key)

    async def _told_to_look_now(self, seconds: float) -> bool:
        """Wait for that, or until it is time to look at some of them anyway."""
        try:
            async with asyncio.timeout(seconds):
                await self._look_now.wait()
        except TimeoutError:
            return False
        self._look_now.clear()
        return True


class _Watch:
    """One order on one stream."""

    __slots__ = ("cursor", "order_id", "verified")

    def __init__(self, order_id: UUID, after_sequence: int) -> None:
        self.order_id = order_id
        self.cursor = after_sequence
        """Of the last event sent."""
        self.verified = False
        """Known to exist: something of it was read."""


class Subscription:
    """The orders one stream watches. Its keys are order ids, as 16 bytes."""

    def __init__(self, watches: Watches, store: Store) -> None:
        self._watches = watches
        self._store = store
        self._watched: dict[bytes, _Watch] = {}
        self._look: dict[bytes, None] = {}
        """Orders to look at, longest waiting first."""
        self._refused: list[Ended] = []
        self._unheard: deque[tuple[Iterator[None], int]] = deque()
        """Requests whose steps were not all taken, with their size."""
        self._unheard_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    def ask(self, steps: Iterator[None], size: int) -> None:
        """Have a request's steps taken in time; each may watch, unwatch or refuse one order.

        `size` is what the request takes in memory, in bytes. Ask no more until there is room.
        """
        self._unheard.append((steps, size))
        self._unheard_bytes += size
        if len(self._look) + len(self._refused) < _ROUND:
            # Where the client keeps up, at once: what is told of these orders from here on needs no read.
            self._hear()
        self._wake.set()

    @property
    def is_full(self) -> bool:
        return self._unheard_bytes > _MOST_UNHEARD_BYTES

    async def room(self) -> None:
        """Return once there is room for another request: the client has read what earlier ones led to."""
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    def watch(self, order_id: UUID, after_sequence: int = 0) -> None:
        """Watch an order from after that sequence on; once more for one that is watched moves its cursor."""
        key = order_id.bytes
        if key not in self._watched:
            if len(self._watched) >= _MOST_WATCHED:
                self.refuse(str(order_id), _too_many())
                return
            # First in the register, then a look: a hint that comes in between is not missed.
            self._watches.add(key, self)
        self._watched[key] = _Watch(order_id, after_sequence)
        self.look(key)

    def unwatch(self, order_id: UUID) -> None:
        self._let_go(order_id.bytes)

    def end(self) -> None:
        """Let go of everything."""
        self._unheard.clear()
        for key in list(self._watched):
            self._let_go(key)

    def cursor(self, key: bytes) -> int:
        return self._watched[key].cursor

    def look(self, key: bytes) -> None:
        self._look[key] = None
        self._wake.set()

    def doubt(self, key: bytes) -> None:
        """Ask the record where the order stands, if there is nothing after the cursor."""
        self._watched[key].verified = False
        self.look(key)

    def refuse(self, order_id: str, error: EngineError) -> None:
        """Have the client told that this order cannot be watched."""
        self._refused.append(Ended(order_id, error))
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def events(self) -> AsyncIterator[tuple[list[WatchedEvent], list[Ended]]]:
        """Yield what is new of the watched orders, in sequence per order, and which watches ended.

        Goes on for ever. Raises Draining when the process is to stop, StoreUnavailable when the record
        cannot be read.
        """
        loop = asyncio.get_running_loop()
        next_read = 0.0
        while True:
            await self._wake.wait()
            self._hear()
            if self._unheard:
                # A round may need no wait at all, and others have their turn.
                await asyncio.sleep(0)
            elif (pause := next_read - loop.time()) > 0 and len(self._look) < _ROUND:
                await asyncio.sleep(pause)
                self._hear()
            if self._watches.draining:
                raise Draining("the server is restarting; watch again with after_sequence")
            keys = list(islice(self._look, _ROUND))
            for key in keys:
                del self._look[key]
            if not self._look and not self._unheard:
                self._wake.clear()
            refused, self._refused = self._refused, []
            start = loop.time()
            events, ended = await self._read([self._watched[key] for key in keys])
            while len(events) > _MOST_TOLD:
                yield events[:_MOST_TOLD], []
                events = events[_MOST_TOLD:]
            if events or ended or refused:
                yield events, refused + ended
            end = loop.time()
            rest = min(_RESTS * (end - start), _MOST_REST_SECONDS)
            next_read = max(start + _LEAST_INTERVAL_SECONDS, end + rest)

    def _hear(self) -> None:
        """Take as many steps as a round reads orders, whatever else is to be read: nothing starves."""
        left = _ROUND
        while self._unheard:
            steps, size = self._unheard[0]
            for _ in steps:
                left -= 1
                if not left:
                    return
            self._unheard.popleft()
            self._unheard_bytes -= size
            self._room.set()

    async def _read(self, watches: list[_Watch]) -> tuple[list[WatchedEvent], list[Ended]]:
        answers: list[tuple[_Watch, Sequence[WatchedEvent] | OrderNotReadable]] = []
        to_read: list[_Watch] = []
        for watch in watches:
            known = self._watches.known_events(watch.order_id, watch.cursor)
            if known is None:
                to_read.append(watch)
            else:
                watch.verified = True
                answers.append((watch, known))
        if to_read:
            found = await self._store.events_after.many([(watch.order_id, watch.cursor) for watch in to_read])
            answers += zip(to_read, _answered_each(found), strict=True)
        events: list[WatchedEvent] = []
        closed: list[_Watch] = []
        silent: list[_Watch] = []
        ended: list[Ended] = []
        for watch, news in answers:
            if not self._has(watch):
                continue
            if isinstance(news, OrderNotReadable):
                # Its watcher comes back, to a newer server if there is one; the others stay.
                ended.append(self._end(watch, news))
            elif news:
                watch.verified = True
                watch.cursor = news[-1].event.sequence
                events += news
                if news[-1].event.status in CLOSED:
                    closed.append(watch)
                elif len(news) >= MOST_EVENTS:
                    # There may be more of an order that is tried again and again for days.
                    self.look(watch.order_id.bytes)
            elif not watch.verified:
                silent.append(watch)
        ended += [self._end(watch) for watch in closed]
        if silent:
            ended += await self._verify(silent)
        return events, ended

    async def _verify(self, watches: list[_Watch]) -> list[Ended]:
        """End those with nothing to come: unknown, a cursor beyond the record, or closed at it."""
        ended = []
        found = await self._store.position.many([watch.order_id for watch in watches])
        for watch, position in zip(watches, _answered(found), strict=True):
            if not self._has(watch):
                continue
            if position is None:
                ended.append(self._end(watch, OrderNotFound(watch.order_id)))
            elif watch.cursor > position.sequence:
                error = SequenceAhead(watch.order_id, watch.cursor, position.sequence)
                ended.append(self._end(watch, error))
            elif watch.cursor < position.sequence:
                self.look(watch.order_id.bytes)  # it moved between the two reads
            elif position.closed:
                ended.append(self._end(watch))
            else:
                watch.verified = True
        return ended

    def _has(self, watch: _Watch) -> bool:
        """Whether it stands as it did: not let go, nor watched anew from elsewhere, while we read."""
        return self._watched.get(watch.order_id.bytes) is watch

    def _end(self, watch: _Watch, error: EngineError | None = None) -> Ended:
        self._let_go(watch.order_id.bytes)
        return Ended(str(watch.order_id), error)

    def _let_go(self, key: bytes) -> None:
        if self._watched.pop(key, None) is not None:
            self._look.pop(key, None)
            self._watches.remove(key, self)


def _too_many() -> TooManyOrders:
    return TooManyOrders(
        f"{_MOST_WATCHED} orders are watched on this stream; unwatch some, or use another stream",
        _RETRY_SECONDS,
    )


def _first_event(order: Order) -> WatchedEvent:
    """Return the only event of an order that was just stored."""
    event = OrderEvent(order.order_id, order.sequence, order.status, order.attempt, order.create_time)
    return watched(event, order)


def _answered(results: list[Answer | Exception]) -> list[Answer]:
    """Return the results, or raise the first of them that is an exception."""
    answers = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        answers.append(result)
    return answers


def _answered_each(results: list[Answer | Exception]) -> list[Answer | OrderNotReadable]:
    """Return the results, those that an order alone lacks too, or raise the first other exception."""
    answers: list[Answer | OrderNotReadable] = []
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, OrderNotReadable):
            raise result
        answers.append(result)
    return answers
