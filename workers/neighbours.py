"""Tells the other workers which swaps are under way here, and has the market reckon with theirs.

An order is priced on what the pools are after the swaps under way. Those of other workers count as much as
one's own: unknown, their orders and ours would all go for the pool that is best, and have each other
reverted.

It travels over Redis pub/sub, signed, a few times a slot. What is lost or late costs no more than that: an
order is priced as if it were alone. A worker that hears of no other one tells nothing.
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

from engine.coalesce import Coalescer
from engine.domain.errors import NodeUnavailable
from engine.market import Market, SwapUnderWay
from engine.redis_client import REDIS_ERRORS, RedisClient
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
"""Least time between two messages."""
_PUBLISH_SECONDS: Final = 0.25
_REST_SECONDS: Final = 1.0
"""How long nothing is told after Redis did not take a message."""

logger = logging.getLogger(__name__)

_News = tuple[bytes, Sequence[SwapUnderWay] | int | None]
"""An order's id in 16 bytes, and its swaps, which are under way from now on; the slot by which they have
landed, or never will; or None: it is not under way any more."""


class _Message(msgspec.Struct, frozen=True, array_like=True):
    worker: bytes
    news: list[tuple[bytes, list[SwapUnderWay] | int | None]]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Message).decode


class Neighbours:
    """The other workers, as far as they are heard of. `run` hears them; `aclose` it at the end."""

    def __init__(self, settings: Settings, key: bytes, market: Market) -> None:
        """`key` signs what is told: nobody who can only write to Redis can spoil prices."""
        self._key = key
        self._market = market
        self._name = secrets.token_bytes(8)
        self._client = RedisClient(settings)
        self._news: Coalescer[_News, None] = Coalescer(self._publish, interval_seconds=_INTERVAL_SECONDS)
        self._heard: dict[bytes, float] = {}
        """When each was heard last, by the loop's clock."""
        self._is_new_there = asyncio.Event()
        self._rest_until = 0.0
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
                {CHANNEL: self._on_message}, lambda: None, self._heard.clear, self._trouble
            )

    async def aclose(self) -> None:
        """Tell what was handed in and close the connection."""
        await self._news.drain()
        self._client.close()

    # ---- What is told; none of these raises or waits

    def begun(self, order_id: UUID, swaps: Sequence[SwapUnderWay]) -> None:
        """These swaps of an order are under way here."""
        self._tell(order_id, swaps)

    def landed(self, order_id: UUID, slot: int) -> None:
        """By that slot its swaps have landed, or never will."""
        self._tell(order_id, slot)

    def ended(self, order_id: UUID) -> None:
        """It is not under way any more."""
        self._tell(order_id, None)

    def _tell(self, order_id: UUID, what: Sequence[SwapUnderWay] | int | None) -> None:
        if self._heard:
            self._news.put((order_id.bytes, what))

    async def _greet(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._is_new_there.clear()
            await self._publish([])
            with suppress(TimeoutError):
                async with asyncio.timeout(_GREET_SECONDS):
                    await self._is_new_there.wait()
            silent = [name for name, heard in self._heard.items() if loop.time() - heard > _SILENT_SECONDS]
            for name in silent:
                del self._heard[name]

    async def _publish(self, news: Sequence[_News]) -> list[None]:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._rest_until:
            message = ("PUBLISH", CHANNEL, sign(_encode((self._name, news)), self._key))
            try:
                if not self._client.tell([message]):
                    await self._client.together([message], seconds=_PUBLISH_SECONDS)
            except REDIS_ERRORS as error:
                # That Redis is away is said by those who need it more.
                logger.debug("other workers are not told: %s", error)
                self._rest_until = loop.time() + _REST_SECONDS
        return [None] * len(news)

    # ---- What is heard

    def _on_message(self, data: bytes) -> None:
        try:
            message = _decode(verified(data, self._key))
            news = [(UUID(bytes=order_id), what) for order_id, what in message.news]
        except (ValueError, msgspec.DecodeError) as error:
            # Of an engine on another database, say, or of a newer version.
            logger.debug("a message on %s is passed over: %s", CHANNEL, error)
            return
        if message.worker == self._name:
            return
        if message.worker not in self._heard:
            self._is_new_there.set()
        self._heard[message.worker] = asyncio.get_running_loop().time()
        begun = [(order_id, what) for order_id, what in news if isinstance(what, list)]
        if begun:
            # Without prices nothing is priced here either.
            with suppress(NodeUnavailable):
                self._market.expect_swaps(begun, seconds=_SWAP_SECONDS)
        for order_id, what in news:
            if what is None:
                self._market.expect_nothing(order_id)
            elif isinstance(what, int):
                self._market.expect_landed(order_id, what)
