"""Tells the other workers which swaps are under way here, and has the market reckon with theirs.

An order is priced on what the pools are after the swaps under way. Those of other workers count as much as
one's own: unknown, their orders and ours would all go for the pool that is best, and have each other
reverted.

It travels over Redis pub/sub, signed, many orders in a message, and each worker tells less often the more of
them there are. What is lost or late costs no more than that: an order is priced as if it were alone. A worker
that hears of no other one tells nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import msgspec

from engine.domain.errors import NodeUnavailable
from engine.market import Market, SwapUnderWay
from engine.redis_client import REDIS_ERRORS, Command, RedisClient
from engine.settings import Settings
from engine.signing import sign, verified
from engine.telemetry import Trouble, neighbours

CHANNEL: Final = "order_engine:swaps"
"""Of signed messages, each `_Message` in MessagePack."""

_GREET_SECONDS: Final = 5.0
"""How often a worker says that it is there; at once to one that is new."""
_SILENT_SECONDS: Final = 16.0
"""After so long without a word it is taken to be gone."""
_SWAP_SECONDS: Final = 10.0
"""How long its swaps count if it never says what became of them: it may have died."""
_INTERVAL_SECONDS: Final = 0.005
"""Least time between two messages, for each worker that is heard of: one costs it 70 us of CPU."""
_LANDED_SECONDS: Final = 0.1
"""How long it may wait for others to travel with that an order's swaps have landed, or that it ended."""
_PUBLISH_SECONDS: Final = 0.25
_REST_SECONDS: Final = 1.0
"""How long nothing is told after Redis did not take a message."""

logger = logging.getLogger(__name__)

_News = tuple[bytes, Sequence[SwapUnderWay] | int | None]
"""An order's id in 16 bytes, and its swaps, which are under way from now on; the slot by which they have
landed, or never will; or None: it is not under way any more."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    worker: bytes
    number: int
    """One more than its last one had: none is heard twice."""
    news: list[tuple[bytes, list[SwapUnderWay] | int | None]]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Message).decode


class Neighbours:
    """The other workers, as far as they are heard of. `run` hears them; `aclose` it at the end."""

    def __init__(self, settings: Settings, key: bytes, market: Market) -> None:
        """`key` signs what is told: nobody who can only write to Redis can spoil prices."""
        self._key = key
        self._market = market
        self._client = RedisClient(settings)
        self._name = secrets.token_bytes(8)
        self._number = 0
        """Of the last message that was sent."""
        self._unsent: list[_News] = []
        self._timer: asyncio.TimerHandle | None = None
        """Sends them, at `_send_time`."""
        self._send_time = 0.0
        self._next_send = 0.0
        """The soonest that they are sent."""
        self._asking: asyncio.Task[None] | None = None
        self._is_late = False
        """Something was to be sent meanwhile."""
        self._rest_until = 0.0
        self._heard: dict[bytes, float] = {}
        """When each was heard last, by the loop's clock."""
        self._numbers: dict[bytes, int] = {}
        """Of the last message of each that was ever heard."""
        self._is_greeting_due = asyncio.Event()
        self._trouble = Trouble(
            logger, "other workers' swaps are not heard of", "other workers' swaps are heard of again"
        )
        neighbours.set_function(lambda: len(self._heard))

    @property
    def are_there(self) -> bool:
        """Whether any are heard of."""
        return bool(self._heard)

    async def run(self) -> None:
        """Hear what the others tell and have the market reckon with it, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._greet())
            await self._client.keep_listening(
                {CHANNEL: self._on_message}, self._is_greeting_due.set, self._heard.clear, self._trouble
            )

    async def aclose(self) -> None:
        """Tell what was handed in and close the connection."""
        if self._unsent:
            self._send()
        while self._asking is not None:
            await asyncio.wait([self._asking])
        self._client.close()

    # ---- What is told; none of these raises or waits

    def begun(self, order_id: UUID, swaps: Sequence[SwapUnderWay]) -> None:
        """These swaps of an order are under way here."""
        self._tell(order_id, swaps, 0.0)

    def landed(self, order_id: UUID, slot: int) -> None:
        """By that slot its swaps have landed, or never will."""
        self._tell(order_id, slot, _LANDED_SECONDS)

    def ended(self, order_id: UUID) -> None:
        """It is not under way any more."""
        self._tell(order_id, None, _LANDED_SECONDS)

    def _tell(self, order_id: UUID, what: Sequence[SwapUnderWay] | int | None, within_seconds: float) -> None:
        if not self._heard:
            return
        self._unsent.append((order_id.bytes, what))
        loop = asyncio.get_running_loop()
        moment = max(loop.time() + within_seconds, self._next_send)
        if self._timer is not None:
            if self._send_time <= moment:
                return
            self._timer.cancel()
        self._send_time = moment
        self._timer = loop.call_at(moment, self._send)

    async def _greet(self) -> None:
        """Say now and then that this worker is there, and take those for gone that do not."""
        loop = asyncio.get_running_loop()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GREET_SECONDS):
                    await self._is_greeting_due.wait()
            self._is_greeting_due.clear()
            self._send()
            silent = [name for name, heard in self._heard.items() if loop.time() - heard > _SILENT_SECONDS]
            for name in silent:
                del self._heard[name]

    def _send(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._is_late = True
            return
        self._next_send = now + _INTERVAL_SECONDS * len(self._heard)
        news, self._unsent = self._unsent, []
        if now < self._rest_until:
            return
        self._number += 1
        message = ("PUBLISH", CHANNEL, sign(_encode((self._name, self._number, news)), self._key))
        if not self._client.tell([message]):
            self._asking = asyncio.create_task(self._ask(message))

    async def _ask(self, message: Command) -> None:
        """Send it and see that Redis takes it; what comes meanwhile waits."""
        try:
            await self._client.together([message], seconds=_PUBLISH_SECONDS)
        except REDIS_ERRORS as error:
            # That Redis is away is said by those who need it more.
            logger.debug("other workers are not told: %s", error)
            self._rest_until = asyncio.get_running_loop().time() + _REST_SECONDS
        finally:
            self._asking = None
        if self._is_late:
            self._is_late = False
            self._send()

    # ---- What is heard

    def _on_message(self, data: bytes) -> None:
        try:
            message = _decode(verified(data, self._key))
            news = [(UUID(bytes=order_id), what) for order_id, what in message.news]
        except (ValueError, msgspec.DecodeError) as error:
            # Of an engine on another database, say, or of a newer version.
            logger.debug("a message on %s is passed over: %s", CHANNEL, error)
            return
        if message.worker == self._name or message.number <= self._numbers.get(message.worker, 0):
            return
        self._numbers[message.worker] = message.number
        if message.worker not in self._heard:
            self._is_greeting_due.set()
        self._heard[message.worker] = asyncio.get_running_loop().time()
        begun = [(order_id, what) for order_id, what in news if isinstance(what, list)]
        if begun:
            # Without prices nothing is priced here either.
            with suppress(NodeUnavailable):
                self._market.under_way.add_swaps(begun, seconds=_SWAP_SECONDS)
        for order_id, what in news:
            if what is None:
                self._market.under_way.let_go(order_id)
            elif isinstance(what, int):
                self._market.under_way.landed(order_id, what)
