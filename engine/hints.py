"""Hints that orders moved, over Redis pub/sub.

One message carries many orders: their 16-byte ids, concatenated. It says "read these again", or it brings
along what they did: the events as they were committed, which saves the read, signed so that Redis cannot
make them up. A hint may be lost, repeated or late; whoever misses one finds out from PostgreSQL, which is
looked at now and then without any.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Never, TypeGuard
from uuid import UUID

import msgspec

from engine.domain.order import Order, OrderEvent, WatchedEvent, watched
from engine.redis_client import REDIS_ERRORS, Command, RedisClient
from engine.settings import Settings
from engine.signing import sign, verified
from engine.telemetry import Trouble, hints_dropped_total, observe_batch, redis_up

CHANNEL: Final = "order_engine:moved"
"""Of messages that say which orders moved."""
NEWS_CHANNEL: Final = "order_engine:signed_news"
"""Of those that also say how, signed: the number of orders in a byte, their ids, and JSON: for each an array
of its events."""

ID_BYTES: Final = 16
_VARIANT_OCTETS: Final = bytes(range(0x80, 0xC0))
MAX_ORDER_IDS: Final = 1024
"""Orders a message may carry."""

MAX_NEWS_ORDERS: Final = 64
"""Orders whose events travel with them. What an order did until it is submitted takes 11 us to write and 7 to
read; asked of PostgreSQL it takes 50, and 350 if it is the only one. More than that move together in a burst
alone, which waits for the workers, and where their objects have left the caches: 150 at a time, all watched,
took these 90 us an order, and PostgreSQL and the server 50 less."""

_INTERVAL_SECONDS: Final = 0.002
"""Least time between two messages. One costs each listener 55 us of CPU, and an order in it less than one."""

_PUBLISH_SECONDS: Final = 0.25
_REST_SECONDS: Final = 1.0
"""How long nothing is published after Redis did not take a message: nobody waits for it twice."""

_observe_batch = observe_batch("hints")

_encode_news: Final = msgspec.json.Encoder().encode
_decode_news: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_events: Final = msgspec.json.Decoder(list[WatchedEvent]).decode

OnMoved = Callable[[Sequence[bytes], Sequence[msgspec.Raw]], None]
"""Called with orders that moved, and with what each did if that came along, for `events_told`. Most are
nobody's here: of them no UUID is made, and nothing is decoded."""

_Story = list[tuple[Order, Sequence[OrderEvent]]]
"""What an order did: new events, and the order after them."""

logger = logging.getLogger(__name__)


def pack_order_ids(order_ids: Sequence[UUID]) -> bytes:
    """Return the ids as they travel: 16 bytes each, one after the other."""
    return b"".join([order_id.bytes for order_id in order_ids])


def are_order_ids(data: object, max_count: int) -> TypeGuard[bytes]:
    """Return whether `data` is 1 to `max_count` packed UUIDs (RFC 9562)."""
    if not isinstance(data, bytes) or not 0 < len(data) <= max_count * ID_BYTES or len(data) % ID_BYTES:
        return False
    # The variant is in the top two bits of byte 8; text and most garbage have others.
    return not data[8::ID_BYTES].translate(None, delete=_VARIANT_OCTETS)


def split_order_ids(data: bytes) -> list[bytes]:
    """Return the ids in `data`, which `are_order_ids` holds of, as they are: 16 bytes each."""
    return [data[at : at + ID_BYTES] for at in range(0, len(data), ID_BYTES)]


def unpack_order_ids(data: bytes) -> list[UUID]:
    """Return the ids in `data`, which `are_order_ids` holds of."""
    return [UUID(bytes=order_id) for order_id in split_order_ids(data)]


def events_told(news: msgspec.Raw) -> Sequence[WatchedEvent]:
    """Return what an order did, in order; nothing where that is not understood, and has to be read."""
    try:
        return _decode_events(news)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Of a newer version, say.
        return ()


class Hints:
    """Publishes and receives hints. One of these per process; `aclose` it at the end."""

    def __init__(self, settings: Settings, news_key: bytes) -> None:
        """`news_key` signs events: nobody who can only write to Redis has a status told that never was."""
        self._news_key = news_key
        self._client = RedisClient(settings)
        self._unsent: dict[bytes, _Story | None] = {}
        """In order; one that moved twice meanwhile is told once. None: it has to be read."""
        self._timer: asyncio.Handle | None = None
        """Sends them, at `_send_time`."""
        self._send_time = 0.0
        self._next_send = 0.0
        """The soonest that anything is sent."""
        self._asking: asyncio.Task[None] | None = None
        self._publish_trouble = Trouble(logger, "hints are not published", "hints are published again")
        self._listen_trouble = Trouble(logger, "hints are off until Redis is back", "hints are on again")
        self._rest_until = 0.0
        self.up = False
        """Whether `run` is subscribed. While it is not, hints are missed."""

    def publish(self, order_ids: Sequence[UUID]) -> None:
        """Tell everyone who listens that the orders moved. Never raises.

        While Redis is away hints are dropped and counted.
        """
        now = asyncio.get_running_loop().time()
        if now < self._rest_until:
            hints_dropped_total.labels("publish_failed").inc(len(order_ids))
            return
        self._unsent.update([(order_id.bytes, None) for order_id in order_ids])
        self._send_at(max(self._next_send, now))

    def tell(self, order: Order, events: Sequence[OrderEvent], *, within_seconds: float = 0.0) -> None:
        """The same of one order, with the events that have left it so, which were just committed.

        They are in order and without a gap; the order's is the last of them. `within_seconds` is how long it
        may take, for what can wait for others to travel with.
        """
        now = asyncio.get_running_loop().time()
        if now < self._rest_until:
            hints_dropped_total.labels("publish_failed").inc()
            return
        story = self._unsent.setdefault(order.order_id.bytes, [])
        if story is not None:
            story.append((order, events))
        self._send_at(max(self._next_send, now + within_seconds))

    async def drain(self) -> None:
        """Return once everything handed in so far was tried, which takes half a second at most."""
        while self._timer is not None or self._asking is not None:
            if self._timer is not None:
                self._timer.cancel()
                self._send()
            if self._asking is not None:
                await asyncio.wait([self._asking])

    async def run(
        self,
        on_moved: OnMoved,
        on_connected: Callable[[], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> Never:
        """Call `on_moved` with what every message tells, for ever.

        `on_connected` is called each time the subscription stands: hints before it were missed, so
        read again whatever matters. `on_lost` is called when it ends. None of them may wait.
        """

        def on_begin() -> None:
            self._set_up(True)
            if on_connected is not None:
                on_connected()

        def on_end() -> None:
            was_up = self.up
            self._set_up(False)
            if was_up and on_lost is not None:
                on_lost()

        def on_message(data: bytes) -> None:
            if are_order_ids(data, MAX_ORDER_IDS):
                on_moved(split_order_ids(data), ())
            else:
                hints_dropped_total.labels("malformed").inc()

        def on_news(data: bytes) -> None:
            try:
                order_ids, news = _unpack_news(data, self._news_key)
            except ValueError:
                hints_dropped_total.labels("malformed").inc()
            else:
                on_moved(order_ids, news)

        await self._client.keep_listening(
            {CHANNEL: on_message, NEWS_CHANNEL: on_news}, on_begin, on_end, self._listen_trouble
        )

    async def aclose(self) -> None:
        """Send what was handed in and close the connections."""
        await self.drain()
        self._client.close()

    def _send_at(self, moment: float) -> None:
        """Send what is unsent at that moment at the latest, on the loop's next turn at the soonest."""
        if not self._unsent or self._asking is not None:
            return
        if self._timer is not None:
            if self._send_time <= moment:
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._send_time = moment
        if moment > loop.time():
            self._timer = loop.call_at(moment, self._send)
        else:
            self._timer = loop.call_soon(self._send)

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        self._next_send = loop.time() + _INTERVAL_SECONDS
        unsent, self._unsent = self._unsent, {}
        _observe_batch(len(unsent))
        told: list[tuple[bytes, _Story]] = []
        if len(unsent) <= MAX_NEWS_ORDERS:
            told = [(order_id, story) for order_id, story in unsent.items() if story is not None]
        to_read = [order_id for order_id, story in unsent.items() if story is None] if told else list(unsent)
        messages: list[Command] = [
            ("PUBLISH", CHANNEL, b"".join(to_read[at : at + MAX_ORDER_IDS]))
            for at in range(0, len(to_read), MAX_ORDER_IDS)
        ]
        if told:
            messages.append(("PUBLISH", NEWS_CHANNEL, _pack_news(told, self._news_key)))
        if not self._client.tell(messages):
            self._asking = loop.create_task(self._ask(messages, len(unsent)))

    async def _ask(self, messages: Sequence[Command], count: int) -> None:
        """Send them and see that Redis takes them; what comes meanwhile waits."""
        try:
            await self._client.together(messages, seconds=_PUBLISH_SECONDS)
        except REDIS_ERRORS as error:
            self._publish_trouble.fails(error)
            hints_dropped_total.labels("publish_failed").inc(count + len(self._unsent))
            self._unsent.clear()
            self._rest_until = asyncio.get_running_loop().time() + _REST_SECONDS
        else:
            self._publish_trouble.works()
        finally:
            self._asking = None
        self._send_at(self._next_send)

    def _set_up(self, up: bool) -> None:
        self.up = up
        redis_up.labels("hints").set(int(up))


def _pack_news(told: Sequence[tuple[bytes, _Story]], key: bytes) -> bytes:
    news = [[watched(event, order) for order, events in story for event in events] for _, story in told]
    body = b"".join([bytes((len(told),)), *(order_id for order_id, _ in told), _encode_news(news)])
    return sign(body, key)


def _unpack_news(message: bytes, key: bytes) -> tuple[list[bytes], list[msgspec.Raw]]:
    """Return orders, as `split_order_ids` does, and what each did. Raises ValueError where it is not that."""
    data = verified(message, key)
    end = 1 + ID_BYTES * int.from_bytes(data[:1], "big")
    order_ids = data[1:end]
    if not are_order_ids(order_ids, MAX_ORDER_IDS):
        raise ValueError("it has no order ids")
    found, news = split_order_ids(order_ids), _decode_news(data[end:])
    if len(news) != len(found):
        raise ValueError("it has more orders or fewer than it says")
    return found, news
