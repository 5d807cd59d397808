"""WatchOrder and WatchOrders over a real channel: what happened first, then live, to the closing event."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc
import pytest
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc
from prometheus_client import REGISTRY

from engine.domain.lifecycle import Cancelled, Claimed
from engine.hints import Hints
from engine.settings import Settings
from server.service import listen
from server.watches import Subscription
from tests.integration.server.calls import UNKNOWN, Refusal, Stub, refusal, refusal_of, stub_of, submit
from tests.serving import Worker, address, order_server, with_grpc_port

Until = Callable[..., Awaitable[None]]

NOT_UTF8 = b"\x0a\x02\xff\xfe"
"""A WatchOrderRequest whose order_id is no text."""


@pytest.fixture(scope="module")
async def served(shared_database: Settings, valkey: Settings) -> AsyncIterator[Settings]:
    """A server that all tests of this file share."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = replace(
        shared_database,
        redis_host=valkey.redis_host,
        redis_port=valkey.redis_port,
        redis_password=valkey.redis_password,
        grpc_port=port,
        server_metrics_port=0,
        simnet_port=0,
    )
    async with order_server(settings):
        yield settings


@pytest.fixture
async def stub(served: Settings) -> AsyncIterator[Stub]:
    async with stub_of(served) as stub:
        yield stub


@pytest.fixture
async def worker(served: Settings) -> AsyncIterator[Worker]:
    async with Worker(served) as worker:
        yield worker


async def new_order(stub: Stub) -> str:
    order_id: str = (await stub.SubmitOrder(submit())).order.order_id
    return order_id


async def watched(stub: Stub, order_id: str, after_sequence: int = 0) -> list[int]:
    """The sequences of an order's events until the stream ends with OK."""
    async with asyncio.timeout(20):
        stream = stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id, after_sequence=after_sequence))
        found = [answer.event.sequence async for answer in stream]
        assert await stream.code() is grpc.StatusCode.OK
    return found


class Stream:
    """A WatchOrders stream: what it told of each order so far, and how it ended it."""

    def __init__(self, stub: Stub) -> None:
        self._call = stub.WatchOrders()
        self.sequences: dict[str, list[int]] = {}
        self.ended: dict[str, Refusal | None] = {}

    async def watch(self, order_id: str, after_sequence: int = 0) -> None:
        request = pb.WatchOrderRequest(order_id=order_id, after_sequence=after_sequence)
        await self._call.write(pb.WatchOrdersRequest(watch=[request]))

    async def unwatch(self, order_id: str) -> None:
        await self._call.write(pb.WatchOrdersRequest(unwatch=[order_id]))

    async def write(self, request: pb.WatchOrdersRequest) -> None:
        await self._call.write(request)

    async def done_writing(self) -> None:
        await self._call.done_writing()

    async def until(self, condition: Callable[[], object]) -> None:
        """Read until the condition holds."""
        async with asyncio.timeout(20):
            while not condition():
                answer = await self._call.read()
                assert answer is not grpc.aio.EOF, await self._call.code()
                for event in answer.events:
                    self.sequences.setdefault(event.order_id, []).append(event.sequence)
                for end in answer.ended:
                    assert end.order_id not in self.ended
                    self.ended[end.order_id] = refusal_of(end.status) if end.status.code else None

    async def next(self) -> object:
        """Read one more answer; for a stream that is about to break."""
        async with asyncio.timeout(20):
            return await self._call.read()

    def cancel(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def stream_of(stub: Stub) -> AsyncIterator[Stream]:
    stream = Stream(stub)
    try:
        yield stream
    finally:
        stream.cancel()


# ---- One order -------------------------------------------------------------------------------------


async def test_what_happened_comes_first_and_the_rest_as_it_happens(stub: Stub, worker: Worker) -> None:
    order_id = await new_order(stub)
    facts = await worker.facts(order_id)
    await worker.move(order_id, *facts[:2])
    stream = stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id))
    async with asyncio.timeout(20):
        assert [(await stream.read()).event.sequence for _ in range(3)] == [1, 2, 3]
        for sequence, fact in enumerate(facts[2:], start=4):
            await worker.move(order_id, fact)
            event = (await stream.read()).event
            assert event.sequence == sequence
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
    assert (event.status, event.output_amount) == (pb.ORDER_STATUS_CONFIRMED, "10")
    assert {field.name for field, _ in event.ListFields()} == {
        "order_id", "sequence", "status", "venue", "price", "input_amount", "output_amount", "tx_hash",
        "attempt", "create_time",
    }  # fmt: skip


async def test_a_watch_resumes_after_any_cursor(stub: Stub, worker: Worker) -> None:
    order_id = await new_order(stub)
    await worker.execute(order_id)
    for after_sequence in range(5):
        assert await watched(stub, order_id, after_sequence) == list(range(after_sequence + 1, 6))


async def test_a_closed_order_at_its_last_sequence_ends_at_once(stub: Stub, worker: Worker) -> None:
    order_id = await new_order(stub)
    await worker.move(order_id, Cancelled())
    assert await watched(stub, order_id, 2) == []


@pytest.mark.parametrize("after_sequence", [2, 2**63 - 1])
async def test_a_cursor_beyond_the_record_is_refused(after_sequence: int, stub: Stub) -> None:
    said = await refusal(watched(stub, await new_order(stub), after_sequence))
    assert (said.code, said.reason) == ("OUT_OF_RANGE", "SEQUENCE_AHEAD")


async def test_a_cursor_below_zero_is_refused(stub: Stub) -> None:
    said = await refusal(watched(stub, UNKNOWN, -1))
    assert (said.code, set(said.fields)) == ("INVALID_ARGUMENT", {"after_sequence"})


async def test_what_is_no_message_cannot_be_watched(
    served: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with grpc.aio.insecure_channel(address(served)) as channel:
        call: Any = channel.unary_stream("/orders.v1.OrderService/WatchOrder")
        said = await refusal(call(NOT_UTF8).read())
    assert said.code == "INVALID_ARGUMENT"
    assert said.message.startswith("request cannot be decoded; must be ")
    assert not caplog.records


async def test_a_lost_hint_delays_an_event_and_no_more(
    stub: Stub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.hints, "tell", lost)
    order_id = await new_order(stub)
    stream = stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id))
    async with asyncio.timeout(20):
        assert (await stream.read()).event.sequence == 1
        await worker.move(order_id, Claimed())
        assert (await stream.read()).event.sequence == 2
        await worker.move(order_id, Cancelled())
        assert (await stream.read()).event.sequence == 3
        assert await stream.read() is grpc.aio.EOF


def lost(_order: object, _events: object) -> None:
    """A hint that nobody gets."""


async def test_watchers_who_leave_are_forgotten(stub: Stub, worker: Worker, until: Until) -> None:
    before = open_watches()
    order_id = await new_order(stub)
    streams = [stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id)) for _ in range(3)]
    for stream in streams:
        await stream.read()
    assert open_watches() == before + 3
    for stream in streams:
        stream.cancel()
    await until(lambda: open_watches() == before)
    # And the order never noticed.
    await worker.execute(order_id)
    assert await watched(stub, order_id) == [1, 2, 3, 4, 5]


def open_watches() -> float:
    return REGISTRY.get_sample_value("order_engine_open_watches") or 0.0


# ---- Many orders -----------------------------------------------------------------------------------


async def test_one_stream_carries_many_orders_each_to_its_end(stub: Stub, worker: Worker) -> None:
    order_ids = [await new_order(stub) for _ in range(20)]
    async with stream_of(stub) as stream:
        for order_id in order_ids[:10]:
            await stream.watch(order_id)
        await worker.execute(order_ids[0])
        for order_id in order_ids[10:]:
            await stream.watch(order_id)
        await asyncio.gather(*map(worker.execute, order_ids[1:]))
        await stream.until(lambda: len(stream.ended) == 20)
        assert stream.ended == dict.fromkeys(order_ids)
        assert stream.sequences == {order_id: [1, 2, 3, 4, 5] for order_id in order_ids}
        # The stream stays open for more.
        late = await new_order(stub)
        await stream.watch(late)
        await stream.until(lambda: late in stream.sequences)


async def test_an_order_that_cannot_be_watched_is_told_and_the_others_go_on(
    stub: Stub, worker: Worker
) -> None:
    order_id, closed = await new_order(stub), await new_order(stub)
    await worker.move(closed, Cancelled())
    async with stream_of(stub) as stream:
        await stream.watch("nope")
        await stream.until(lambda: stream.ended)
        await stream.watch(UNKNOWN)
        await stream.watch(order_id, -5)
        await stream.until(lambda: len(stream.ended) == 3)
        assert {name: end and (end.code, end.reason) for name, end in stream.ended.items()} == {
            "nope": ("INVALID_ARGUMENT", "INVALID_ORDER"),
            UNKNOWN: ("NOT_FOUND", "ORDER_NOT_FOUND"),
            order_id: ("INVALID_ARGUMENT", "INVALID_ORDER"),
        }
        stream.ended.clear()
        await stream.watch(order_id, 9)
        await stream.watch(closed, 2)
        await stream.until(lambda: len(stream.ended) == 2)
        ahead = stream.ended[order_id]
        assert ahead is not None
        assert (ahead.code, ahead.reason) == ("OUT_OF_RANGE", "SEQUENCE_AHEAD")
        assert stream.ended[closed] is None
        assert not stream.sequences
        stream.ended.clear()
        await stream.watch(order_id)
        await stream.until(lambda: stream.sequences == {order_id: [1]})


async def test_an_action_that_is_none_is_passed_over(stub: Stub) -> None:
    order_id = await new_order(stub)
    async with stream_of(stub) as stream:
        await stream.write(pb.WatchOrdersRequest())
        await stream.unwatch(order_id)
        await stream.watch(order_id)
        await stream.until(lambda: order_id in stream.sequences)


async def test_a_stream_ends_with_what_is_no_message(
    stub: Stub, served: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    order_id = await new_order(stub)
    request = pb.WatchOrdersRequest(watch=[pb.WatchOrderRequest(order_id=order_id)]).SerializeToString()
    for watched in (False, True):
        async with grpc.aio.insecure_channel(address(served)) as channel:
            call: Any = channel.stream_stream("/orders.v1.OrderService/WatchOrders")()
            if watched:
                await call.write(request)
                assert await call.read()
            await call.write(b"\x0a\x04" + NOT_UTF8)
            said = await refusal(call.read())
        assert said.code == "INVALID_ARGUMENT"
        assert said.message.startswith("request cannot be decoded; must be ")
    assert not caplog.records


async def test_unwatched_orders_are_silent_until_they_are_watched_again(stub: Stub, worker: Worker) -> None:
    order_id, other = await new_order(stub), await new_order(stub)
    async with stream_of(stub) as stream:
        await stream.watch(order_id)
        await stream.until(lambda: order_id in stream.sequences)
        await stream.unwatch(order_id)
        # Requests are taken in order: once this one is answered, that one has been heard.
        await stream.watch(other)
        await stream.until(lambda: other in stream.sequences)
        await worker.execute(order_id)
        await worker.move(other, Claimed())
        await stream.until(lambda: stream.sequences[other] == [1, 2])
        assert stream.sequences[order_id] == [1]
        await stream.watch(order_id, 3)
        await stream.until(lambda: order_id in stream.ended)
        assert stream.sequences[order_id] == [1, 4, 5]


async def test_watching_again_moves_the_cursor(stub: Stub, worker: Worker) -> None:
    order_id = await new_order(stub)
    await worker.move(order_id, Claimed())
    async with stream_of(stub) as stream:
        await stream.watch(order_id)
        await stream.until(lambda: stream.sequences.get(order_id) == [1, 2])
        await stream.watch(order_id, 1)
        await stream.until(lambda: stream.sequences[order_id] == [1, 2, 2])
        await worker.move(order_id, Cancelled())
        await stream.until(lambda: order_id in stream.ended)
        assert stream.sequences[order_id] == [1, 2, 2, 3]


async def test_a_stream_goes_on_when_its_client_has_nothing_more_to_ask(stub: Stub, worker: Worker) -> None:
    order_id = await new_order(stub)
    async with stream_of(stub) as stream:
        await stream.watch(order_id)
        await stream.done_writing()
        await stream.until(lambda: order_id in stream.sequences)
        await worker.execute(order_id)
        await stream.until(lambda: order_id in stream.ended)
        assert stream.sequences[order_id] == [1, 2, 3, 4, 5]


async def test_watchers_of_one_order_have_each_their_own_cursor(stub: Stub, worker: Worker) -> None:
    order_id = await new_order(stub)
    await worker.move(order_id, *(await worker.facts(order_id))[:2])
    async with stream_of(stub) as one, stream_of(stub) as other:
        await one.watch(order_id)
        await other.watch(order_id, 3)
        await one.until(lambda: one.sequences.get(order_id) == [1, 2, 3])
        await worker.move(order_id, Cancelled())
        await one.until(lambda: one.ended)
        await other.until(lambda: other.ended)
    assert (one.sequences, other.sequences) == ({order_id: [1, 2, 3, 4]}, {order_id: [4]})


# ---- A client that asks and does not read ----------------------------------------------------------

REQUESTS = 20
ORDERS = 1000
"""In each of them."""
MOST_KEPT = 4 * 512
"""A round takes as many steps as it reads orders, twice at most; an order may be watched and to look at."""


@pytest.fixture
async def idle_stub(served: Settings) -> AsyncIterator[Stub]:
    """A stub whose channel takes 64 KiB of answers and no more before they are read."""
    options = [("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(address(served), options=options) as channel:
        yield orders_pb2_grpc.OrderServiceStub(channel)


class Received:
    """Stands in for `listen`, and sees what the server received and what it keeps of that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.count = 0
        self.most_kept = 0
        self._listen = listen
        monkeypatch.setattr(f"{module}.listen", self)

    def __call__(self, request: pb.WatchOrdersRequest, subscription: Subscription) -> None:
        self.count += 1
        self._listen(request, subscription)
        self.most_kept = max(self.most_kept, kept(subscription))


def kept(subscription: Subscription) -> int:
    """How many orders it watches, has to look at or has refused."""
    return len(subscription._watched) + len(subscription._look) + len(subscription._refused)


def watch_of_none(number: int) -> pb.WatchOrdersRequest:
    """A request for orders that cannot be watched: there are none with these ids, or they are no ids."""
    numbers = range(number * ORDERS, (number + 1) * ORDERS)
    return pb.WatchOrdersRequest(
        watch=[
            pb.WatchOrderRequest(order_id=str(UUID(int=each)) if each % 2 else f"no id {each}")
            for each in numbers
        ]
    )


async def test_what_is_asked_is_taken_up_only_as_its_answers_are_read(
    idle_stub: Stub, worker: Worker, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = Received(monkeypatch, "server.service")
    unwatched, watched = await new_order(idle_stub), await new_order(idle_stub)
    async with stream_of(idle_stub) as stream:
        await stream.watch(unwatched)
        # All of it before an answer is read, one after the other: this must not wait for ever.
        for number in range(REQUESTS):
            await stream.write(watch_of_none(number))
        await stream.unwatch(unwatched)
        await stream.watch(watched)
        await until(lambda: received.count == REQUESTS + 3)
        assert received.most_kept <= MOST_KEPT
        await stream.until(lambda: watched in stream.sequences)
        assert len(stream.ended) == REQUESTS * ORDERS
        assert all(stream.ended.values())
        await worker.move(unwatched, Claimed())
        await worker.move(watched, Claimed())
        await stream.until(lambda: stream.sequences[watched] == [1, 2])
        assert stream.sequences[unwatched] == [1]


async def test_what_is_too_much_to_hold_is_not_received_before_answers_are_read(
    idle_stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.watches._MOST_UNHEARD_BYTES", 1 << 16)
    received = Received(monkeypatch, "server.service")
    async with stream_of(idle_stub) as stream, asyncio.TaskGroup() as group:

        async def write() -> None:
            for number in range(REQUESTS):
                await stream.write(watch_of_none(number))

        group.create_task(write())
        # Time enough for the server to receive them all.
        for _ in range(100):
            await new_order(idle_stub)
        assert received.count < REQUESTS / 2
        assert received.most_kept <= MOST_KEPT
        await stream.until(lambda: len(stream.ended) == REQUESTS * ORDERS)
        assert received.count == REQUESTS


async def test_a_stream_watches_so_many_orders_and_no_more(
    stub: Stub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.watches._MOST_WATCHED", 2)
    one, other, third = [await new_order(stub) for _ in range(3)]
    async with stream_of(stub) as stream:
        for order_id in (one, other, third):
            await stream.watch(order_id)
        await stream.until(lambda: stream.ended and len(stream.sequences) == 2)
        said = stream.ended.pop(third)
        assert said is not None
        assert (said.code, said.reason, said.retry_seconds) == ("RESOURCE_EXHAUSTED", "TOO_MANY_ORDERS", 1.0)
        assert said.message == "2 orders are watched on this stream; unwatch some, or use another stream"
        # The others stand, and may be asked for again.
        await stream.watch(one)
        await stream.until(lambda: stream.sequences[one] == [1, 1])
        # One that is not watched any more leaves its place, and so does one that has closed.
        await stream.unwatch(one)
        await stream.watch(third)
        await stream.until(lambda: third in stream.sequences)
        await worker.move(other, Cancelled())
        await stream.until(lambda: other in stream.ended)
        await stream.watch(one)
        await stream.until(lambda: stream.sequences[one] == [1, 1, 1])


# ---- Stopping --------------------------------------------------------------------------------------


async def test_watchers_are_told_to_come_back_when_the_server_stops(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    async with stub_of(settings) as stub, order_server(settings) as server:
        order_id = await new_order(stub)
        single = stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id))
        assert (await single.read()).event.sequence == 1
        async with stream_of(stub) as busy, stream_of(stub) as idle:
            await busy.watch(order_id)
            await busy.until(lambda: order_id in busy.sequences)
            await idle.write(pb.WatchOrdersRequest())
            async with asyncio.timeout(12):
                *told, _ = await asyncio.gather(
                    refusal(single.read()), refusal(busy.next()), refusal(idle.next()), server.stop()
                )
        assert [(said.code, said.reason) for said in told] == [("UNAVAILABLE", "DRAINING")] * 3


async def test_hints_are_not_needed_at_all(
    settings: Settings, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is subscribed to anything: looking around once a second finds it all."""
    monkeypatch.setattr("engine.hints.Hints.run", never)
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub, Worker(settings) as worker:
        order_id = await new_order(stub)
        stream = stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id))
        async with asyncio.timeout(20):
            assert (await stream.read()).event.sequence == 1
            await worker.execute(order_id)
            assert [(await stream.read()).event.sequence for _ in range(4)] == [2, 3, 4, 5]
            assert await stream.read() is grpc.aio.EOF


async def test_where_hints_are_lost_every_order_has_its_turn(
    settings: Settings, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.hints.Hints.run", none_of_them)
    monkeypatch.setattr("server.watches._LOOKS", 2)
    monkeypatch.setattr("server.watches._LOOK_SECONDS", 0.05)
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub, Worker(settings) as worker:
        order_ids = [await new_order(stub) for _ in range(5)]
        streams = [stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id)) for order_id in order_ids]
        async with asyncio.timeout(20):
            for stream in streams:
                assert (await stream.read()).event.sequence == 1
            for order_id in order_ids:
                await worker.move(order_id, Cancelled())
            for stream in streams:
                assert (await stream.read()).event.sequence == 2


async def never(*_: object) -> None:
    """Hints while Redis is away."""
    await asyncio.Event().wait()


async def none_of_them(hints: Hints, *_: object) -> None:
    """Hints that are all lost, while Redis is there."""
    hints.up = True
    await asyncio.Event().wait()


# ---- Long histories --------------------------------------------------------------------------------


async def test_a_long_history_is_told_whole_in_messages_that_can_be_sent(
    stub: Stub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.postgres.MOST_EVENTS", 2)
    monkeypatch.setattr("server.watches.MOST_EVENTS", 2)
    monkeypatch.setattr("server.watches._MOST_TOLD", 3)
    # From the record alone.
    monkeypatch.setattr("server.watches.Watches.known_events", lambda *_: None)
    order_ids = [await new_order(stub) for _ in range(4)]
    for order_id in order_ids:
        await worker.execute(order_id)
    assert await watched(stub, order_ids[0]) == [1, 2, 3, 4, 5]
    told: dict[str, list[int]] = {order_id: [] for order_id in order_ids}
    ended: set[str] = set()
    stream = stub.WatchOrders()
    await stream.write(
        pb.WatchOrdersRequest(watch=[pb.WatchOrderRequest(order_id=order_id) for order_id in order_ids])
    )
    async with asyncio.timeout(10):
        while len(ended) < len(order_ids):
            response = await stream.read()
            assert len(response.events) <= 3
            for event in response.events:
                assert event.order_id not in ended
                told[event.order_id].append(event.sequence)
            ended |= {each.order_id for each in response.ended}
    stream.cancel()
    assert list(told.values()) == [[1, 2, 3, 4, 5]] * 4
