"""The order queue's broker against a real Valkey, in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from taskiq import TaskiqMessage
from taskiq.result_backends.dummy import DummyResultBackend

from cli.embedded import Valkey
from engine import queue
from engine.process import StartupError
from engine.queue import GROUP, MAX_ORDER_IDS, ORDERS_PER_MESSAGE, STREAM, TASK_NAME, OrderBroker, run_tasks
from engine.redis_client import check_version
from engine.settings import Settings
from tests.integration.engine.offering import dropped_offers, offer, until_dropped
from tests.integration.engine.polling import until
from tests.redis_py import redis_py


@pytest.fixture
async def client(empty_valkey: Settings) -> AsyncIterator[Redis]:
    async with redis_py(empty_valkey) as client:
        yield client


@pytest.fixture
async def broker(empty_valkey: Settings) -> AsyncIterator[OrderBroker]:
    broker = OrderBroker(empty_valkey, block_seconds=0.05, idle_seconds=0.2)
    await broker.startup()
    yield broker
    await broker.shutdown()


class Ran:
    """What the task was given, and a way to wait for it."""

    def __init__(self, broker: OrderBroker, error: Exception | None = None) -> None:
        self.messages: list[list[UUID]] = []
        self._changed = asyncio.Event()

        @broker.task(TASK_NAME)
        async def execute_orders(order_ids: list[UUID]) -> None:
            self.messages.append(order_ids)
            self._changed.set()
            if error is not None:
                raise error

    @property
    def orders(self) -> list[UUID]:
        return [order_id for message in self.messages for order_id in message]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20.0):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def running(broker: OrderBroker) -> AsyncIterator[None]:
    """Run the broker's tasks for as long as the block lasts, and finish what is under way."""
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_tasks(broker, stopping))
        try:
            yield
        finally:
            stopping.set()


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("order_engine_queue_messages_total", {"result": result}) or 0.0


async def test_a_message_on_the_wire_is_order_ids_and_nothing_else(
    broker: OrderBroker, client: Redis
) -> None:
    orders = [uuid4(), uuid4()]
    await offer(broker, orders)
    entries = await client.xrange(STREAM)
    assert [fields for _, fields in entries or []] == [{b"orders": orders[0].bytes + orders[1].bytes}]


async def test_offers_made_at_once_travel_together_and_arrive_once_each(
    broker: OrderBroker, client: Redis
) -> None:
    orders = [uuid4() for _ in range(200)]
    async with asyncio.TaskGroup() as group:
        for order_id in orders:
            group.create_task(offer(broker, [order_id, order_id]))
    assert await client.xlen(STREAM) == 200 // ORDERS_PER_MESSAGE
    ran = Ran(broker)
    async with running(broker):
        await ran.until(lambda: len(ran.orders) >= 200)
    assert ran.orders == orders
    assert await client.xlen(STREAM) == 0


async def test_taskiqs_own_kiq_queues_the_same_message(broker: OrderBroker, client: Redis) -> None:
    ran = Ran(broker)
    task = broker.find_task(TASK_NAME)
    assert task is not None
    order_id = uuid4()
    await task.kiq([order_id])
    async with running(broker):
        await ran.until(lambda: ran.orders == [order_id])


GARBAGE: dict[str, dict[str | bytes, str | bytes]] = {
    "text": {"orders": "not an order id!"},
    "nothing": {"orders": ""},
    "a cut id": {"orders": uuid4().bytes[:-1]},
    "no uuid": {"orders": b"\xff" * 16},
    "too many": {"orders": uuid4().bytes * (MAX_ORDER_IDS + 1)},
    "another field": {"data": uuid4().bytes},
    "a field more": {"orders": uuid4().bytes, "data": ""},
    "stock taskiq": {
        "data": b'{"task_id":"1","task_name":"execute_orders","labels":{},"args":[],"kwargs":{}}'
    },
    "pickle": {"orders": b"\x80\x04\x95\x11\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94."},
}


@pytest.mark.parametrize("fields", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_is_dropped_deleted_and_counted(
    broker: OrderBroker, client: Redis, fields: dict[str | bytes, str | bytes]
) -> None:
    before = counted("dropped")
    order_id = uuid4()
    await client.xadd(STREAM, fields)  # type: ignore[arg-type]
    await offer(broker, [order_id])
    ran = Ran(broker)
    async with running(broker):
        await ran.until(lambda: bool(ran.orders))
    await broker.shutdown()
    assert ran.orders == [order_id]
    assert counted("dropped") == before + 1
    assert await client.xlen(STREAM) == 0
    assert (await client.xpending(STREAM, GROUP))["pending"] == 0


async def test_a_task_that_raises_is_not_tried_again_by_the_queue(broker: OrderBroker, client: Redis) -> None:
    first, second = uuid4(), uuid4()
    ran = Ran(broker, error=RuntimeError("no claim"))
    await offer(broker, [first])
    async with running(broker):
        await ran.until(lambda: first in ran.orders)
        await offer(broker, [second])
        await ran.until(lambda: second in ran.orders)
    assert ran.orders == [first, second]
    assert await client.xlen(STREAM) == 0


def test_there_is_no_result_backend_and_no_retry(valkey: Settings) -> None:
    broker = OrderBroker(valkey)
    assert isinstance(broker.result_backend, DummyResultBackend)
    assert broker.middlewares == []


async def test_nothing_is_read_while_there_is_no_room(broker: OrderBroker, client: Redis) -> None:
    ran = Ran(broker)
    asked = 0
    room = False
    asked_often = asyncio.Event()

    def has_room() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:
            asked_often.set()
        return room

    broker.has_room = has_room
    await offer(broker, [uuid4()])
    async with running(broker):
        async with asyncio.timeout(20.0):
            await asked_often.wait()
        assert (await client.xpending(STREAM, GROUP))["pending"] == 0
        assert ran.messages == []
        room = True
        await ran.until(lambda: len(ran.messages) == 1)


async def test_no_more_than_the_capacity_is_read_at_once(empty_valkey: Settings, client: Redis) -> None:
    broker = OrderBroker(empty_valkey, capacity=3, read_count=2, block_seconds=0.05)
    started: list[UUID] = []
    full, go_on = asyncio.Event(), asyncio.Event()

    @broker.task(TASK_NAME)
    async def execute_orders(order_ids: list[UUID]) -> None:
        started.extend(order_ids)
        if len(started) == 3:
            full.set()
        await go_on.wait()

    orders = [uuid4() for _ in range(10)]
    for order_id in orders:
        await offer(broker, [order_id])
    async with running(broker):
        async with asyncio.timeout(20.0):
            await full.wait()
        assert (await client.xpending(STREAM, GROUP))["pending"] == 3
        assert started == orders[:3]
        go_on.set()
        await until(lambda: len(started) == len(orders))
    await broker.shutdown()
    assert started == orders


async def test_consumers_that_are_gone_are_removed_unless_they_hold_something(
    broker: OrderBroker, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_FORGET_SECONDS", 0.2)
    monkeypatch.setattr(broker, "_idle_seconds", 3600.0)  # so that what they hold stays theirs
    await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    await client.xgroup_createconsumer(STREAM, GROUP, "gone")
    await offer(broker, [uuid4()])
    await client.xreadgroup(GROUP, "holding", {STREAM: ">"})

    async def names() -> set[str]:
        return {each["name"].decode() for each in await client.xinfo_consumers(STREAM, GROUP)}

    assert await names() == {"gone", "holding"}

    async def only_the_living_and_the_holding() -> bool:
        return await names() == {"holding", broker.consumer_name}

    async with running(broker):
        await until(only_the_living_and_the_holding)
    await broker.shutdown()
    assert await names() == {"holding"}


async def test_offers_to_a_redis_that_is_away_are_counted_and_for_a_while_refused_at_once(
    tmp_path: Path,
) -> None:
    broker = OrderBroker(Settings(redis_host=str(tmp_path / "nobody.sock")))
    await broker.startup()
    before = dropped_offers()
    broker.offer_soon([uuid4()])
    assert dropped_offers() == before
    await broker._offers.drain()
    assert dropped_offers() == before + 1
    broker.offer_soon([uuid4(), uuid4()])  # not even tried
    assert dropped_offers() == before + 3
    await broker.shutdown()
    assert dropped_offers() == before + 3


async def test_a_redis_that_stops_answering_is_noticed_by_who_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_OFFER_SECONDS", 0.1)
    server = Valkey(tmp_path)
    server.start()
    broker = OrderBroker(Settings(redis_host=server.host))
    try:
        await offer(broker, [uuid4()])
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        await until_dropped(broker, [uuid4()])
    finally:
        await broker.shutdown()
        server.kill()


async def test_a_redis_that_refuses_offers_and_answers_all_else_is_noticed_by_who_offers(
    broker: OrderBroker, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    Ran(broker)
    # It listens too: what it asks meanwhile is answered all the time.
    async with running(broker):
        await offer(broker, [uuid4()])
        was = await client.config_get("maxmemory")
        await client.config_set("maxmemory", 1)
        try:
            await until_dropped(broker, [uuid4()])
        finally:
            await client.config_set("maxmemory", was["maxmemory"] or 0)
    assert caplog.text.count("orders are not offered to workers: OOM") == 1


async def test_what_was_offered_just_before_the_shutdown_arrives(broker: OrderBroker, client: Redis) -> None:
    assert await client.xlen(STREAM) == 0
    broker.offer_soon([uuid4()])
    await broker.shutdown()
    assert await client.xlen(STREAM) == 1


def test_another_task_cannot_be_queued(valkey: Settings) -> None:
    message = TaskiqMessage(task_id="1", task_name="rm", labels={}, args=[[uuid4()]], kwargs={})
    with pytest.raises(ValueError, match="only execute_orders"):
        OrderBroker(valkey).formatter.dumps(message)


# ---- Which Redis will do -------------------------------------------------------------------------


@asynccontextmanager
async def redis_that_says(version: str) -> AsyncIterator[Settings]:
    """The network's edge: a server that answers every command like a Redis of this version answers INFO."""
    about = f"# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(f"${len(about)}\r\n{about}\r\n".encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Settings(redis_host="127.0.0.1", redis_port=server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("version", ["6.2.14", "5.0", "unknown"])
async def test_a_redis_that_is_too_old_is_refused_in_one_sentence(version: str) -> None:
    async with redis_that_says(version) as settings:
        with pytest.raises(StartupError) as refused:
            await check_version(settings)
        place = f"127.0.0.1:{settings.redis_port}"
    assert str(refused.value) == f"Redis at {place} is version {version}; 7.0 or later is needed"


@pytest.mark.parametrize("version", ["7.0.0", "8.2.1", "10.0.0"])
async def test_a_redis_of_version_7_or_later_will_do(version: str) -> None:
    async with redis_that_says(version) as settings:
        await check_version(settings)


async def test_the_valkey_at_hand_will_do(valkey: Settings) -> None:
    await check_version(valkey)


async def test_a_redis_that_is_not_there_is_refused_in_one_sentence() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(StartupError, match=f"^Redis at 127.0.0.1:{port} cannot be used: .*"):
            await check_version(Settings(redis_host="127.0.0.1", redis_port=port))
