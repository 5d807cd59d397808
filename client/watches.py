"""All watches of one client on one WatchOrders stream.

    watcher --join--> Feed (one an order) --request--> stream --events--> Feed --accept--> watchers

What makes it right is one rule: a watcher accepts an event only if its sequence is the one after
the last it accepted. Events may therefore come twice, from an older request or after a reconnect,
and nothing is repeated or missed. All else here sees to it that the next event does come:

* An order is asked for again, from the least cursor among its watchers, whenever the stream was
  lost, a watcher joins that needs earlier events, or a slow one has caught up with its buffer.
* A watcher takes what it has room for. Other events are let go, and asked for again later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import random
from typing import Final, Protocol, TypeVar

import grpc
from google.rpc import code_pb2, status_pb2
from orders.v1 import orders_pb2 as pb

from client.backoff import Backoff
from client.convert import EventMessage, event_of, first_event_of, is_closing
from client.errors import InternalError, OrderError, SequenceAhead, error_of_call, error_of_status
from client.json_text import message_bytes
from client.order import OrderEvent

WATCHER_BUFFER: Final = 64
"""Events held for one reader that reads slower than they come."""

# Ends of a stream, or of one order on it, that coming back may get past.
_PASSING: Final = frozenset(
    {
        code_pb2.UNAVAILABLE,
        code_pb2.DEADLINE_EXCEEDED,
        code_pb2.CANCELLED,
        code_pb2.ABORTED,
        code_pb2.RESOURCE_EXHAUSTED,
    }
)
# A connection that breaks is told as one of these too; of one order they would be the server's answer.
_PASSING_FOR_STREAM: Final = _PASSING | {code_pb2.INTERNAL, code_pb2.UNKNOWN}
_ORDERS_PER_REQUEST: Final = 1000
_MOST_ACCEPTED: Final = 1024


class WatchCall(Protocol):
    """A WatchOrders stream: grpc.aio's, or a link's."""

    async def read(self) -> object:
        """Return the next response; anything else: it has ended."""

    async def write(self, request: pb.WatchOrdersRequest) -> None: ...

    def cancel(self) -> object: ...


class Told:
    """An event as it came, made into what its watchers want of it once, however many they are."""

    __slots__ = ("_event", "_text", "closing", "message")

    def __init__(self, message: EventMessage) -> None:
        self.message = message
        self.closing = is_closing(message)
        self._event: OrderEvent | None = None
        self._text: bytes | None = None

    @property
    def event(self) -> OrderEvent:
        if self._event is None:
            self._event = event_of(self.message)
        return self._event

    @property
    def text(self) -> bytes:
        """As JSON."""
        if self._text is None:
            self._text = message_bytes(self.message)
        return self._text


class Watcher:
    """Who watches one order: accepts each event once and in sequence, while there is room for it."""

    __slots__ = ("_watches", "behind", "feed", "finished", "sequence", "unchecked")

    def __init__(self, watches: Watches, feed: Feed, after_sequence: int) -> None:
        self._watches = watches
        self.feed = feed
        self.finished = False
        """Nothing will be accepted any more; what was may not have been read yet."""
        self.sequence = after_sequence
        """Of the last event accepted."""
        self.unchecked = after_sequence > 0
        """Nothing was accepted yet, so its cursor may be beyond the record."""
        self.behind = False
        """Events were let go because there was no room for them."""

    def close(self) -> None:
        """Leave. The order is not affected."""
        self._watches.leave(self.feed, self)

    def accept(self, told: Told) -> bool:
        """Take the event if it is the next one; answer whether the watcher is finished."""
        sequence = told.message.sequence
        if sequence == self.sequence + 1 and not self.behind:
            if not self._take(told):
                self.behind = True
                return False
            self.sequence = sequence
            self.unchecked = False
            if told.closing:
                self.finish()
        elif told.closing and sequence == self.sequence:
            self.finish()
        elif told.closing and sequence < self.sequence:
            self.finish(_ahead(told.message.order_id, self.sequence, sequence))
        return self.finished

    def finish(self, error: OrderError | None = None) -> None:
        self.finished = True
        self._end(error)

    def _catch_up(self) -> None:
        """There is room again: have what was let go sent once more."""
        if self.behind:
            self.behind = False
            self._watches.request(self.feed)

    def _take(self, told: Told) -> bool:
        """Take the event; answer False if there is no room for it."""
        raise NotImplementedError

    def _end(self, error: OrderError | None) -> None:
        raise NotImplementedError


class Reader(Watcher):
    """An iterator over the events. Ends after the closing one; raises what the server refused."""

    __slots__ = ("_buffer", "_error", "_waiter")

    def __init__(self, watches: Watches, feed: Feed, after_sequence: int) -> None:
        super().__init__(watches, feed, after_sequence)
        self._buffer: deque[OrderEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: OrderError | None = None

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> OrderEvent:
        while not self._buffer:
            if self._error is not None:
                raise self._error
            if self.finished:
                raise StopAsyncIteration
            self._catch_up()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._buffer.popleft()

    def _take(self, told: Told) -> bool:
        if len(self._buffer) >= WATCHER_BUFFER:
            return False
        self._buffer.append(told.event)
        self._wake()
        return True

    def _end(self, error: OrderError | None) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Listener(Watcher):
    """Has the events told to functions, without a task: for one who watches thousands of orders.

    The functions must not raise.
    """

    __slots__ = ("_on_end", "_on_event", "_paused")

    def __init__(
        self,
        watches: Watches,
        feed: Feed,
        after_sequence: int,
        on_event: Callable[[bytes], None],
        on_end: Callable[[OrderError | None], None],
    ) -> None:
        """`on_event` is told each event as JSON text, `on_end` why there are no more: None, it has closed."""
        super().__init__(watches, feed, after_sequence)
        self._on_event = on_event
        self._on_end = on_end
        self._paused = False

    def pause(self) -> None:
        """Have nothing told until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Have told what happened meanwhile, and what happens."""
        self._paused = False
        self._catch_up()

    def _take(self, told: Told) -> bool:
        if self._paused:
            return False
        self._on_event(told.text)
        return True

    def _end(self, error: OrderError | None) -> None:
        self._on_end(error)


AnyWatcher = TypeVar("AnyWatcher", bound=Watcher)


def _ahead(order_id: str, after_sequence: int, last_sequence: int) -> SequenceAhead:
    return SequenceAhead(
        f"after_sequence was {after_sequence}, but the last event of order {order_id} is {last_sequence}"
    )


class Feed:
    """One watched order. It has at least one watcher."""

    __slots__ = ("active", "backoff", "look_back", "order_id", "position", "refused", "watchers")

    def __init__(self, order_id: str, backoff: Backoff) -> None:
        self.order_id = order_id
        self.backoff = backoff
        # A dict, for a set that keeps its order.
        self.watchers: dict[Watcher, None] = {}
        self.active = False
        """A request for it has been written to the present stream and has not ended."""
        self.position = 0
        """The stream goes on with the event after this one."""
        self.look_back = False
        """The order has closed, but a watcher has not seen how: it may have begun after the closing event."""
        self.refused = False
        """The stream was asked for what is beyond the record, it said, and nobody has left since."""

    def cursor(self) -> int | None:
        """Return the sequence to ask for events after; None if no watcher has room for any."""
        least = min((watcher.sequence for watcher in self.watchers if not watcher.behind), default=None)
        return max(0, least - 1) if least is not None and self.look_back else least


class Watches:
    """Opens a stream with the first watch, and another whenever it is lost while orders are watched."""

    def __init__(
        self,
        open_stream: Callable[[], WatchCall],
        *,
        random: Callable[[], float] = random,
        interval_seconds: float = 0.0,
    ) -> None:
        """`random` answers numbers in [0, 1) that spread the attempts to reconnect.

        Requests follow each other after `interval_seconds` at the soonest: each carries what came meanwhile.
        """
        self._open_stream = open_stream
        self._random = random
        self._interval_seconds = interval_seconds
        self._feeds: dict[str, Feed] = {}
        # Orders about which the stream has to be told something. A dict, for a set that keeps its order.
        self._to_write: dict[str, None] = {}
        self._something_to_write = asyncio.Event()
        # Orders that the present stream was asked for, whether or not anyone still watches them.
        self._asked: set[str] = set()
        self._runner: asyncio.Task[None] | None = None
        self._is_closed = False
        self._accepted: dict[str, pb.Order] = {}
        """The latest orders that were accepted here, as they were stored: their first event is known."""

    @property
    def order_count(self) -> int:
        """Orders watched now."""
        return len(self._feeds)

    def accepted(self, order: pb.Order) -> None:
        """Take note of a new order as the server has stored it.

        Its watchers, who mostly come at once, are told the first event from that, and the stream is asked for
        what follows: a message less an order.
        """
        self._accepted[order.order_id] = order
        if len(self._accepted) > _MOST_ACCEPTED:
            del self._accepted[next(iter(self._accepted))]

    def join(self, order_id: str, after_sequence: int) -> Reader:
        """Return a new reader of the order's events after `after_sequence`."""
        return self._add(Reader(self, self._feed(order_id), after_sequence))

    def listen(
        self,
        order_id: str,
        after_sequence: int,
        on_event: Callable[[bytes], None],
        on_end: Callable[[OrderError | None], None],
    ) -> Listener:
        """Have the order's events after `after_sequence` told to `on_event`, and their end to `on_end`.

        The first event may be told before this returns.
        """
        return self._add(Listener(self, self._feed(order_id), after_sequence, on_event, on_end))

    def _feed(self, order_id: str) -> Feed:
        if self._is_closed:
            raise _closed()
        feed = self._feeds.get(order_id)
        if feed is None:
            feed = self._feeds[order_id] = Feed(order_id, Backoff(self._random))
        return feed

    def _add(self, watcher: AnyWatcher) -> AnyWatcher:
        feed = watcher.feed
        feed.watchers[watcher] = None
        if watcher.sequence == 0 and (order := self._accepted.get(feed.order_id)) is not None:
            watcher.accept(Told(first_event_of(order)))
        # Also when the watcher is ahead of the stream: it may be ahead of the record, which the server knows.
        if not feed.active or watcher.sequence != feed.position:
            self.request(feed)
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="watch-orders")
        return watcher

    def unchecked(self, order_id: str) -> list[Watcher]:
        """Return the order's watchers that may be ahead of the record, if the order has others too.

        The stream follows the one that is furthest back, so nobody else's cursor is checked by the server.
        """
        feed = self._feeds.get(order_id)
        if feed is None or len(feed.watchers) == 1:
            return []
        return [watcher for watcher in feed.watchers if watcher.unchecked]

    def refuse_ahead(self, watchers: Iterable[Watcher], last_sequence: int) -> None:
        """End those of the watchers that are ahead of their order's last event with SequenceAhead.

        They joined before it was read. Events may have come since: whoever has accepted one is not ahead.
        """
        for watcher in watchers:
            feed = watcher.feed
            if watcher not in feed.watchers or not watcher.unchecked:
                continue
            watcher.unchecked = False
            if watcher.sequence > last_sequence:
                watcher.finish(_ahead(feed.order_id, watcher.sequence, last_sequence))
                self._remove(feed, watcher)

    def leave(self, feed: Feed, watcher: Watcher) -> None:
        """Remove the watcher, if it has not finished; with the last one the order is no longer watched."""
        if not watcher.finished and watcher in feed.watchers:
            self._remove(feed, watcher)
            if not feed.watchers and feed.order_id in self._asked:
                self._write_soon(feed.order_id)

    def request(self, feed: Feed) -> None:
        """Have the stream send the order's events from its watchers' least cursor on."""
        if self._feeds.get(feed.order_id) is feed:
            self._write_soon(feed.order_id)

    async def close(self) -> None:
        """End all watches and the stream, for good."""
        self._is_closed = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
            self._runner = None
        self._fail_all(_closed())

    # ---- The stream ------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Keep a stream open for as long as orders are watched, through every failure."""
        backoff = Backoff(self._random)
        try:
            while True:
                await self._something_to_write.wait()
                if self._feeds:
                    await self._follow(backoff)
                    await asyncio.sleep(backoff.next_delay_seconds())
                # The stream is lost, and what it was asked for with it.
                self._asked.clear()
                self._to_write = dict.fromkeys(self._feeds)
                for feed in self._feeds.values():
                    feed.active = False
                if self._feeds:
                    self._something_to_write.set()
                else:
                    self._something_to_write.clear()
        except Exception:
            # A defect. Watchers are told, for nothing would ever wake them.
            self._runner = None
            self._fail_all(InternalError("watching stopped unexpectedly"))
            raise

    async def _follow(self, backoff: Backoff) -> None:
        """Open one stream and read it to its end."""
        call = self._open_stream()
        writer = asyncio.get_running_loop().create_task(self._write(call), name="watch-orders-writer")
        # Nothing would come of what is not asked for any more.
        writer.add_done_callback(lambda _: call.cancel())
        try:
            while True:
                response = await call.read()
                if not isinstance(response, pb.WatchOrdersResponse):
                    # It ended with OK: the server asks its watchers to come back.
                    break
                if self._dispatch(response):
                    # Only then: a server may repeat itself, or say nothing new, before each failure.
                    backoff.reset()
        except grpc.aio.AioRpcError as error:
            if error.code().value[0] not in _PASSING_FOR_STREAM:
                self._fail_all(error_of_call(error))
        except asyncio.CancelledError:
            # grpc.aio tells a stream that the server cancelled in this way too.
            if is_cancelled():
                raise
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.wait([writer])
        if not writer.cancelled() and (defect := writer.exception()) is not None:
            raise defect

    async def _write(self, call: WatchCall) -> None:
        """Tell the stream what to send, one message at a time: a call takes one write at once."""
        now = asyncio.get_running_loop().time
        next_write = 0.0
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # Ended; its reader knows why.
            while True:
                await self._something_to_write.wait()
                while self._to_write:
                    if (pause := next_write - now()) > 0:
                        await asyncio.sleep(pause)
                    request = self._next_request()
                    if request.watch or request.unwatch:
                        await call.write(request)
                        next_write = now() + self._interval_seconds
                self._something_to_write.clear()

    def _next_request(self) -> pb.WatchOrdersRequest:
        """Return what is to be told of all orders that wait for it."""
        request = pb.WatchOrdersRequest()
        while self._to_write and len(request.watch) + len(request.unwatch) < _ORDERS_PER_REQUEST:
            order_id = next(iter(self._to_write))
            del self._to_write[order_id]
            feed = self._feeds.get(order_id)
            if feed is None:
                if order_id in self._asked:
                    self._asked.discard(order_id)
                    request.unwatch.append(order_id)
                continue
            cursor = feed.cursor()
            if cursor is None:
                continue
            # Asked for again, an order's cursor moves.
            self._asked.add(order_id)
            feed.active = True
            feed.position = cursor
            request.watch.add(order_id=order_id, after_sequence=cursor)
        return request

    def _dispatch(self, response: pb.WatchOrdersResponse) -> bool:
        """Hand the events on; answer whether that brought any watcher further."""
        progress = False
        for message in response.events:
            feed = self._feeds.get(message.order_id)
            if feed is None:
                continue
            feed.position = message.sequence
            told = Told(message)
            for watcher in tuple(feed.watchers):
                before = watcher.sequence
                finished = watcher.accept(told)
                if finished:
                    self._remove(feed, watcher)
                if finished or watcher.sequence > before:
                    feed.backoff.reset()
                    progress = True
        for ended in response.ended:
            feed = self._feeds.get(ended.order_id)
            if feed is not None:
                feed.active = False
                count = len(feed.watchers)
                self._end(feed, ended.status)
                progress |= len(feed.watchers) < count
            if ended.order_id not in self._feeds:
                self._asked.discard(ended.order_id)
        return progress

    def _end(self, feed: Feed, status: status_pb2.Status) -> None:
        """The server has nothing more to send for the order on this request."""
        if status.code == code_pb2.OK:
            feed.look_back = True
        elif status.code == code_pb2.OUT_OF_RANGE:
            if feed.refused:
                # The one that is furthest is ahead of the record for certain; the others may not be.
                furthest = max(watcher.sequence for watcher in feed.watchers)
                self._fail(feed, error_of_status(status), only_at=furthest)
            else:
                # It may be the answer to one that has left. The next one, unless somebody leaves, is not.
                feed.refused = True
        elif status.code not in _PASSING:
            self._fail(feed, error_of_status(status))
        if feed.cursor() is not None:
            # Someone still waits: this was the end of an older request, the events could not be read just
            # now, or there is a look back to take. Those behind ask once their buffers are empty.
            delay = feed.backoff.next_delay_seconds()
            asyncio.get_running_loop().call_later(delay, self.request, feed)

    def _fail(self, feed: Feed, error: OrderError, only_at: int | None = None) -> None:
        for watcher in tuple(feed.watchers):
            if only_at is None or watcher.sequence == only_at:
                watcher.finish(error)
                self._remove(feed, watcher)

    def _fail_all(self, error: OrderError) -> None:
        for feed in tuple(self._feeds.values()):
            self._fail(feed, error)

    def _remove(self, feed: Feed, watcher: Watcher) -> None:
        del feed.watchers[watcher]
        feed.refused = False
        if not feed.watchers:
            del self._feeds[feed.order_id]

    def _write_soon(self, order_id: str) -> None:
        self._to_write[order_id] = None
        self._something_to_write.set()


def _closed() -> OrderError:
    return OrderError("the client was closed", reason="CLIENT_CLOSED")


def is_cancelled() -> bool:
    """Whether the running task was asked to stop: grpc.aio raises CancelledError for a peer's cancel too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
