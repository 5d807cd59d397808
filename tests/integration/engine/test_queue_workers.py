"""The order queue with real worker processes and a real Valkey: killed, frozen out, emptied, restarted.

Together with test_queue_broker.py: one test for each way in which a stock stream broker loses,
repeats or keeps messages.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from cli.embedded import Valkey
from engine.queue import GROUP, STREAM, OrderBroker
from engine.redis_client import REDIS_ERRORS
from engine.settings import Settings, settings_as_environ
from tests.integration.engine.offering import dropped_offers, offer, until_dropped
from tests.integration.engine.polling import until
from tests.redis_py import redis_py

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("queue_worker.py")


class Crew:
    """Worker processes that write what they run to one file."""

    def __init__(self, settings: Settings, record: Path) -> None:
        self._environ = {
            **os.environ,
            **settings_as_environ(settings),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}",
        }
        self._record = record
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, *, capacity: int = 8, idle_seconds: float = 0.5, task_seconds: float = 0.02, hold: bool = False
    ) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            str(PROGRAM),
            str(self._record),
            str(capacity),
            str(idle_seconds),
            str(task_seconds),
        ]
        process = subprocess.Popen([*command, "hold"] if hold else command, cwd=ROOT, env=self._environ)
        self.processes.append(process)
        return process

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def release(self) -> None:
        """Let the tasks of workers that hold them end."""
        Path(f"{self._record}.release").touch()

    def lines(self) -> list[tuple[str, int, UUID]]:
        if not self._record.exists():
            return []
        # The last line may be only half written.
        whole, _, _ = self._record.read_text().rpartition("\n")
        found = [line.split() for line in whole.splitlines()]
        return [(word, int(pid), UUID(order_id)) for word, pid, order_id in found]

    def starts(self, order_id: UUID) -> list[int]:
        """The pids that started the order's task."""
        return [pid for word, pid, each in self.lines() if (word, each) == ("start", order_id)]

    def ends(self) -> Counter[UUID]:
        return Counter(order_id for word, _, order_id in self.lines() if word == "end")

    async def ends_by_itself(self, process: subprocess.Popen[bytes]) -> int:
        """Its exit code, within the 15 seconds that a process has to stop."""
        await until(lambda: process.poll() is not None, 15.0)
        return process.wait()


@pytest.fixture
def crew(empty_valkey: Settings, tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(empty_valkey, tmp_path / "record")
    yield crew
    crew.kill()


@pytest.fixture
async def broker(empty_valkey: Settings) -> AsyncIterator[OrderBroker]:
    """What a server has: it offers, by the task's name alone."""
    broker = OrderBroker(empty_valkey)
    await broker.startup()
    yield broker
    await broker.shutdown()


@pytest.fixture
async def client(empty_valkey: Settings) -> AsyncIterator[Redis]:
    async with redis_py(empty_valkey) as client:
        yield client


async def consumers(client: Redis) -> dict[str, int]:
    """Pending messages by consumer; nothing while there is no group."""
    if not await client.exists(STREAM):
        return {}
    groups = await client.xinfo_groups(STREAM)
    found = await client.xinfo_consumers(STREAM, GROUP) if groups else []
    return {each["name"].decode(): each["pending"] for each in found}


async def until_listening(client: Redis) -> None:
    await until(lambda: consumers(client))


async def until_nothing_is_left(client: Redis) -> None:
    async def nothing_is_left() -> bool:
        return not await client.xlen(STREAM) and not any((await consumers(client)).values())

    await until(nothing_is_left)


async def until_offered(broker: OrderBroker, orders: list[UUID]) -> None:
    async def offered() -> bool:
        before = dropped_offers()
        try:
            await offer(broker, orders)
        except REDIS_ERRORS:
            return False
        return dropped_offers() == before

    await until(offered)


def order_ids(count: int) -> list[UUID]:
    return [uuid4() for _ in range(count)]


async def offer_singly(broker: OrderBroker, orders: list[UUID]) -> None:
    """One message for each order, as they are offered when there is little to do."""
    for order_id in orders:
        await offer(broker, [order_id])


async def test_orders_offered_before_the_first_worker_ever_starts_are_run(
    crew: Crew, broker: OrderBroker, client: Redis
) -> None:
    orders = order_ids(3)
    await offer_singly(broker, orders)
    crew.start()
    await until(lambda: crew.ends() == Counter(orders))
    await until_nothing_is_left(client)


async def test_the_messages_of_a_killed_worker_are_run_by_another_on_a_quiet_queue(
    crew: Crew, broker: OrderBroker, client: Redis
) -> None:
    (order,) = order_ids(1)
    doomed = crew.start(hold=True)
    await offer(broker, [order])
    await until(lambda: crew.starts(order) == [doomed.pid])
    doomed.kill()
    heir = crew.start()
    await until(lambda: crew.ends()[order] == 1)
    assert crew.starts(order) == [doomed.pid, heir.pid]
    await until_nothing_is_left(client)


async def test_a_slow_task_is_not_run_twice(crew: Crew, broker: OrderBroker, client: Redis) -> None:
    slow_order, left_order = order_ids(2)
    slow = crew.start(hold=True, capacity=1, idle_seconds=1.5)
    await offer(broker, [slow_order])
    await until(lambda: crew.starts(slow_order))
    # A younger message is left behind by a consumer that is gone.
    await offer(broker, [left_order])
    assert await client.xreadgroup(GROUP, "gone", {STREAM: ">"}, count=1)
    other = crew.start(idle_seconds=1.5)
    await until(lambda: crew.ends()[left_order] == 1)
    # So by now the slow one would have been taken over, too, had its worker not kept it.
    assert crew.starts(slow_order) == [slow.pid]
    assert crew.starts(left_order) == [other.pid]
    crew.release()
    await until(lambda: crew.ends()[slow_order] == 1)
    await until_nothing_is_left(client)
    assert crew.starts(slow_order) == [slow.pid]


async def test_a_worker_survives_redis_going_away_and_drops_no_task(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = free_port()
    server = Valkey(tmp_path / "data", options={"port": str(port), "appendfsync": "always"})
    server.start()
    settings = Settings(redis_host="127.0.0.1", redis_port=port)
    crew = Crew(settings, tmp_path / "record")
    running, later = order_ids(2)
    broker, client = OrderBroker(settings), redis_py(settings)
    try:
        worker = crew.start(hold=True, idle_seconds=60.0)
        await offer(broker, [running])
        await until(lambda: crew.starts(running))
        server.kill()
        await until_dropped(broker, [later])
        crew.release()
        await until(lambda: crew.ends()[running] == 1)
        server.start()
        await until_offered(broker, [later])
        await until(lambda: crew.ends()[later] == 1)
        await until_nothing_is_left(client)
        assert crew.starts(running) == crew.starts(later) == [worker.pid]
        worker.send_signal(signal.SIGTERM)
        assert await crew.ends_by_itself(worker) == 0
    finally:
        crew.kill()
        await broker.shutdown()
        await client.aclose()
        server.stop()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_worker_survives_flushall(crew: Crew, broker: OrderBroker, client: Redis, busy: bool) -> None:
    running, later = order_ids(2)
    worker = crew.start(hold=busy)
    await until_listening(client)
    if busy:
        await offer(broker, [running])
        await until(lambda: crew.starts(running))
    await client.flushall()
    await offer(broker, [later])
    await until(lambda: crew.starts(later) == [worker.pid])
    crew.release()
    await until(lambda: set(crew.ends()) == ({running, later} if busy else {later}))
    await until_nothing_is_left(client)
    assert worker.poll() is None


async def test_a_long_backlog_is_run_whole_and_the_stream_does_not_grow(
    crew: Crew, broker: OrderBroker, client: Redis
) -> None:
    orders = order_ids(1000)
    await offer_singly(broker, orders)
    assert await client.xlen(STREAM) == 1000
    crew.start(capacity=200)
    await until(lambda: len(crew.ends()) == 1000)
    await until_nothing_is_left(client)
    assert crew.ends() == Counter(orders)


async def test_a_backlog_longer_than_workers_may_hold_is_not_run_twice(
    crew: Crew, broker: OrderBroker, client: Redis
) -> None:
    # A worker that read ahead would have a dozen waiting for three seconds: thrice what makes them look left.
    orders = order_ids(24)
    await offer_singly(broker, orders)
    workers = [crew.start(capacity=1, idle_seconds=1.0, task_seconds=0.25) for _ in range(2)]
    await until(lambda: len(crew.ends()) == len(orders))
    await until_nothing_is_left(client)
    assert crew.ends() == Counter(orders)
    assert {pid for _, pid, _ in crew.lines()} == {worker.pid for worker in workers}


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_worker_stops_in_time(crew: Crew, client: Redis, stop: signal.Signals) -> None:
    worker = crew.start()
    await until_listening(client)
    worker.send_signal(stop)
    assert await crew.ends_by_itself(worker) == 0
    assert await consumers(client) == {}


async def test_a_busy_worker_finishes_its_task_and_stops_in_time(
    crew: Crew, broker: OrderBroker, client: Redis
) -> None:
    (order,) = order_ids(1)
    worker = crew.start(hold=True)
    await offer(broker, [order])
    await until(lambda: crew.starts(order))
    worker.send_signal(signal.SIGTERM)
    crew.release()
    assert await crew.ends_by_itself(worker) == 0
    assert crew.ends() == Counter([order])
    # Acknowledged, deleted, and the worker's name is gone from the group.
    assert await client.xlen(STREAM) == 0
    assert await consumers(client) == {}


async def test_a_worker_stops_in_time_while_redis_is_away(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "data")
    server.start()
    settings = Settings(redis_host=server.host)
    crew = Crew(settings, tmp_path / "record")
    client = redis_py(settings)
    try:
        worker = crew.start()
        await until_listening(client)
        server.kill()
        worker.send_signal(signal.SIGTERM)
        assert await crew.ends_by_itself(worker) == 0
    finally:
        crew.kill()
        await client.aclose()
        server.stop()
