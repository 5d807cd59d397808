"""Hints over a real Valkey: many orders a message, their events with them, and gaps that are told."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from msgspec import Raw
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from cli.embedded import Valkey
from engine.domain.lifecycle import Claimed, Fact, NotBuilt, Routed
from engine.domain.order import FailureReason, Order, WatchedEvent, watched
from engine.hints import CHANNEL, MAX_NEWS_ORDERS, MAX_ORDER_IDS, NEWS_CHANNEL, Hints, events_told
from engine.settings import Settings
from tests.integration.engine.polling import until
from tests.integration.engine.storage.records import new_order, signed, transitions
from tests.redis_py import redis_py
from tests.serving import decision

KEY = b"what those share who know this database"


def sealed(news: bytes, key: bytes = KEY) -> bytes:
    return hmac.digest(key, news, "sha256") + news


class Heard:
    """What a subscriber was told, and the task that listens."""

    def __init__(self, hints: Hints) -> None:
        self.messages: list[list[UUID]] = []
        self.news: list[list[list[WatchedEvent]]] = []
        """Of each message, of each of its orders if they came along."""
        self.connected = self.lost = 0
        self._hints = hints

    async def run(self) -> None:
        await self._hints.run(self._on_moved, self._on_connected, self._on_lost)

    def _on_moved(self, order_ids: Sequence[bytes], news: Sequence[Raw]) -> None:
        self.messages.append([UUID(bytes=order_id) for order_id in order_ids])
        self.news.append([list(events_told(each)) for each in news])

    def _on_connected(self) -> None:
        assert self._hints.up
        self.connected += 1

    def _on_lost(self) -> None:
        assert not self._hints.up
        self.lost += 1

    @property
    def orders(self) -> list[UUID]:
        return [order_id for message in self.messages for order_id in message]


@asynccontextmanager
async def listening(settings: Settings) -> AsyncIterator[tuple[Hints, Heard]]:
    hints = Hints(settings, KEY)
    heard = Heard(hints)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(heard.run())
        try:
            yield hints, heard
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await hints.aclose()


@pytest.fixture
async def client(empty_valkey: Settings) -> AsyncIterator[Redis]:
    async with redis_py(empty_valkey) as client:
        yield client


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("order_engine_hints_dropped_total", {"reason": reason}) or 0.0


async def test_hints_published_at_once_travel_in_one_message(empty_valkey: Settings) -> None:
    orders = [uuid4() for _ in range(50)]
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        for order_id in orders:
            hints.publish([order_id, order_id])
        await until(lambda: heard.orders)
    assert heard.messages == [orders]


async def test_hints_that_can_wait_travel_with_the_next_that_cannot(empty_valkey: Settings) -> None:
    def wait(hints: Hints, seconds: float) -> UUID:
        return tell(hints, Claimed(), within_seconds=seconds)[0].order_id

    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        waiting, urgent = wait(hints, 60.0), uuid4()
        hints.publish([urgent])
        # One has to be read and the other was told, so that they share the moment and not the message.
        await until(lambda: len(heard.messages) == 2)
        assert heard.messages == [[urgent], [waiting]]
        orders = [wait(hints, 60.0), wait(hints, 0.01), wait(hints, 60.0)]
        await until(lambda: len(heard.messages) == 3)
        assert heard.messages[2] == orders
        left = wait(hints, 60.0)
        await hints.drain()
        await until(lambda: len(heard.messages) == 4)
        assert heard.messages[3] == [left]


async def test_more_orders_than_a_message_may_carry_are_split(empty_valkey: Settings) -> None:
    orders = [uuid4() for _ in range(MAX_ORDER_IDS + 1)]
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        hints.publish(orders)
        await hints.drain()
        hints.publish([])
        await hints.drain()
        await until(lambda: len(heard.orders) == len(orders))
    assert [len(message) for message in heard.messages] == [MAX_ORDER_IDS, 1]
    assert heard.orders == orders


def tell(
    hints: Hints, *facts: Fact, order: Order | None = None, within_seconds: float = 0.0
) -> tuple[Order, list[WatchedEvent]]:
    """Tell what the facts make of an order, by default a new one, as if it had been stored just now."""
    if order is None:
        new = new_order()
        order = Order(new.order_id, new.spec)
    moves = transitions(order, *facts)
    order = replace(moves[-1].order, update_time=datetime.now(UTC))
    hints.tell(order, [move.event for move in moves], within_seconds=within_seconds)
    return order, [watched(move.event, order) for move in moves]


async def test_events_travel_with_their_orders(empty_valkey: Settings) -> None:
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        routed, of_routed = tell(hints, Claimed(), Routed(decision()))
        failed, of_failed = tell(hints, NotBuilt(FailureReason.INTERNAL, "a defect \U0001f4a5"))
        _, of_signed = tell(hints, signed(routed.order_id), order=routed)
        await until(lambda: heard.orders)
    assert heard.messages == [[routed.order_id, failed.order_id]]
    assert heard.news == [[[*of_routed, *of_signed], of_failed]]
    # The route is for every watcher; all quotes are for who asks for the order.
    assert of_routed[1].route == decision().route
    assert of_routed[1].event.decision is None


async def test_of_many_orders_only_the_ids_travel(empty_valkey: Settings) -> None:
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        few = [tell(hints, Claimed()) for _ in range(MAX_NEWS_ORDERS)]
        await until(lambda: heard.orders)
        many = [tell(hints, Claimed()) for _ in range(MAX_NEWS_ORDERS + 1)]
        await until(lambda: len(heard.messages) == 2)
    assert heard.messages == [[order.order_id for order, _ in few], [order.order_id for order, _ in many]]
    assert heard.news == [[events for _, events in few], []]


async def test_what_has_to_be_read_is_and_the_others_are_told(empty_valkey: Settings) -> None:
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        before, _ = tell(hints, Claimed())
        hints.publish([before.order_id])
        after, events = tell(hints, Claimed())
        await until(lambda: len(heard.messages) == 2)
        hints.publish([after.order_id])
        tell(hints, Routed(decision()), order=after)
        await until(lambda: len(heard.messages) == 3)
    assert heard.messages == [[before.order_id], [after.order_id], [after.order_id]]
    assert heard.news == [[], [events], []]


async def test_events_that_are_not_understood_are_left_to_be_read(
    empty_valkey: Settings, client: Redis
) -> None:
    order_id = uuid4()
    head = b"\x01" + order_id.bytes
    before = dropped("malformed")
    async with listening(empty_valkey) as (_, heard):
        await until(lambda: heard.connected)
        for news in (b"[[]]", b"[{}]", b"[null]", b'[[{"event":{"status":"teleported"}}]]', b'[["\xff"]]'):
            await client.publish(NEWS_CHANNEL, sealed(head + news))
        await until(lambda: len(heard.messages) == 5)
        for garbage in (
            b"",
            b"\x00",
            b"\x00[]",
            b"\x01not an order id![[]]",
            b"\x02" + order_id.bytes + b"[[],[]]",
            head,
            head + b"{",
            head + b"[]",
            head + b"[[],[]]",
            head + b"\xff",
        ):
            await client.publish(NEWS_CHANNEL, sealed(garbage))
        await until(lambda: dropped("malformed") == before + 10)
    assert heard.messages == [[order_id]] * 5
    assert heard.news == [[[]]] * 5


async def test_what_nobody_of_this_database_has_signed_is_not_told(
    empty_valkey: Settings, client: Redis
) -> None:
    news = b"\x01" + uuid4().bytes + b"[[]]"
    before = dropped("malformed")
    async with listening(empty_valkey) as (_, heard):
        await until(lambda: heard.connected)
        forged = (news, b"", sealed(news)[:-1], sealed(news, b"another"), sealed(news)[:32] + news[::-1])
        for message in forged:
            await client.publish(NEWS_CHANNEL, message)
        await until(lambda: dropped("malformed") == before + len(forged))
        await client.publish(NEWS_CHANNEL, sealed(news))
        await until(lambda: heard.messages)
    assert len(heard.messages) == 1


@pytest.mark.parametrize(
    "garbage",
    [b"", b"text", b"not an order id!", uuid4().bytes[:-1], uuid4().bytes * (MAX_ORDER_IDS + 1)],
    ids=["nothing", "text", "16 letters", "a cut id", "too many"],
)
async def test_garbage_is_dropped_and_counted(empty_valkey: Settings, client: Redis, garbage: bytes) -> None:
    before = dropped("malformed")
    order_id = uuid4()
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected)
        await client.publish(CHANNEL, garbage)
        hints.publish([order_id])
        await hints.drain()
        await until(lambda: heard.orders)
    assert heard.orders == [order_id]
    assert dropped("malformed") == before + 1


async def test_a_lost_subscription_is_told_and_made_again(empty_valkey: Settings, client: Redis) -> None:
    async with listening(empty_valkey) as (hints, heard):
        await until(lambda: heard.connected == 1)
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        await until(lambda: heard.connected == 2)
        assert heard.lost == 1
        hints.publish([uuid4()])
        await hints.drain()
        await until(lambda: heard.orders)


async def test_hints_come_and_go_with_redis_over_tcp(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    server = Valkey(tmp_path / "data", options={"port": str(port)})
    settings = Settings(redis_host="127.0.0.1", redis_port=port)
    before = dropped("publish_failed")
    lost, first, second = uuid4(), uuid4(), uuid4()
    try:
        async with listening(settings) as (hints, heard):
            hints.publish([lost])  # nobody is there: dropped, not raised
            await hints.drain()
            assert dropped("publish_failed") == before + 1
            server.start()
            await until(lambda: heard.connected == 1)
            await until_heard(hints, heard, first)
            server.kill()
            await until(lambda: heard.lost == 1)
            server.start()
            await until(lambda: heard.connected == 2)
            await until_heard(hints, heard, second)
        assert lost not in heard.orders
    finally:
        server.stop()


async def test_a_redis_that_hangs_is_not_waited_for_and_what_it_did_not_take_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            if not hangs.is_set():
                writer.write(b":1\r\n" * data.count(b"PUBLISH"))
        writer.close()

    monkeypatch.setattr("engine.redis_client._TRUST_SECONDS", 0.0)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as redis:
        port = redis.sockets[0].getsockname()[1]
        hints = Hints(Settings(redis_host="127.0.0.1", redis_port=port), KEY)
        before = dropped("publish_failed")
        hints.publish([uuid4()])
        await hints.drain()
        assert dropped("publish_failed") == before
        hangs.set()
        hints.publish([uuid4()])
        await asyncio.sleep(0)
        hints.publish([uuid4(), uuid4()])  # waits for what is under way, and is dropped with it
        await hints.drain()
        assert dropped("publish_failed") == before + 3
        hints.publish([uuid4()])  # not even tried
        assert dropped("publish_failed") == before + 4
        await hints.aclose()


async def until_heard(hints: Hints, heard: Heard, order_id: UUID) -> None:
    """Publishing rests for a while after a failure: publish until it is heard."""

    async def is_heard() -> bool:
        hints.publish([order_id])
        await hints.drain()
        return order_id in heard.orders

    await until(is_heard)
