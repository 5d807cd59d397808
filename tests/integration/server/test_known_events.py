"""Told without a read: the first event of an order that was stored here, and what came with hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from uuid import UUID

import pytest

import server.watches
from engine.domain.errors import SequenceAhead
from engine.domain.lifecycle import Cancelled, Claimed, apply
from engine.domain.order import Order, OrderEvent, WatchedEvent
from engine.domain.retry import RetryPolicy
from engine.hints import Hints
from engine.redis_client import RedisClient
from engine.settings import Settings
from engine.storage.migrate import read_news_key
from engine.storage.postgres import Store, Submitted
from server.watches import Ended, Subscription, Watches
from tests.integration.engine.storage.records import new_order
from tests.serving import Worker

Until = Callable[..., Awaitable[None]]


class Server:
    """The watches of a process, its store, and what it read."""

    def __init__(self, store: Store, hints: Hints) -> None:
        self.store, self.hints = store, hints
        self.watches = Watches(store, hints)
        self.read_orders: list[UUID] = []
        read = store.events_after.many

        def many(cursors: list[tuple[UUID, int]]) -> asyncio.Future[list[list[WatchedEvent] | Exception]]:
            self.read_orders += [order_id for order_id, _ in cursors]
            return read(cursors)  # type: ignore[return-value]

        store.events_after.many = many  # type: ignore[method-assign,assignment]

    def look_around(self) -> None:
        self.watches._look_now.set()

    async def submit(self) -> UUID:
        answer = await self.store.submit(new_order())
        assert isinstance(answer, Submitted)
        self.watches.stored([answer.order])
        return answer.order.order_id


class Stream:
    """One stream of watches."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self._news = subscription.events()

    async def news(self) -> tuple[list[WatchedEvent], list[Ended]]:
        async with asyncio.timeout(20):
            return await anext(self._news)

    async def sequences(self) -> list[int]:
        events, _ = await self.news()
        return [watched.event.sequence for watched in events]


@pytest.fixture
async def here(settings: Settings, until: Until, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    # It looks around when the test says so.
    monkeypatch.setattr(server.watches, "_LOOK_SECONDS", 60.0)
    async with Store(settings) as store, asyncio.TaskGroup() as group:
        hints = Hints(settings, await read_news_key(settings))
        here = Server(store, hints)
        running = group.create_task(here.watches.run())
        await until(lambda: hints.up)
        yield here
        running.cancel()
        await hints.aclose()


@pytest.fixture
def stream(here: Server) -> Iterator[Stream]:
    with here.watches.subscribe() as subscription:
        yield Stream(subscription)


async def order_of(worker: Worker, order_id: UUID) -> Order:
    order = await worker.store.get(order_id)
    assert order is not None
    return order


async def claim(worker: Worker, order_id: UUID) -> tuple[Order, OrderEvent]:
    """Make the order ROUTING, of which nobody is told; return it and the event."""
    transition = apply(await order_of(worker, order_id), Claimed(), RetryPolicy())
    claimed = await worker.store.advance([transition])
    assert claimed is not None
    return claimed, transition.event


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with Worker(settings) as worker:
        yield worker


async def test_the_first_event_is_told_without_a_read_as_a_read_would_tell_it(
    here: Server, stream: Stream
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    events, ended = await stream.news()
    assert (here.read_orders, ended) == ([], [])
    assert events == await here.store.events_after((order_id, 0))


async def test_what_follows_is_told_without_a_read_as_a_read_would_tell_it(
    here: Server, stream: Stream, worker: Worker
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    found, ended = await stream.news()
    await worker.execute(str(order_id))
    while not ended:
        events, ended = await stream.news()
        found += events
    assert here.read_orders == []
    assert found == await here.store.events_after((order_id, 0))
    assert [watched.event.sequence for watched in found] == [1, 2, 3, 4, 5]
    assert ended == [Ended(str(order_id), None)]


async def test_who_comes_from_elsewhere_reads_once_and_then_hears(
    here: Server, stream: Stream, worker: Worker
) -> None:
    answer = await here.store.submit(new_order())
    assert isinstance(answer, Submitted)
    order_id = answer.order.order_id
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    assert here.read_orders == [order_id]
    await worker.move(str(order_id), Claimed())
    assert await stream.sequences() == [2]
    await worker.move(str(order_id), Cancelled())
    assert await stream.sequences() == [3]
    assert here.read_orders == [order_id]


async def test_a_hint_without_events_is_read(
    here: Server, stream: Stream, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.hints, "tell", lambda order, _: worker.hints.publish([order.order_id]))
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    await worker.move(str(order_id), Claimed())
    assert await stream.sequences() == [2]
    assert here.read_orders == [order_id]


async def test_events_after_a_gap_are_told_after_what_is_missing(
    here: Server, stream: Stream, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    with monkeypatch.context() as losing:
        losing.setattr(worker.hints, "tell", lambda order, events: None)
        claimed, routed, *others = await worker.facts(str(order_id))
        await worker.move(str(order_id), claimed, routed)
    await worker.move(str(order_id), *others)
    found: list[int] = []
    while len(found) < 4:
        found += await stream.sequences()
    assert found == [2, 3, 4, 5]
    assert here.read_orders == [order_id]


async def test_events_that_are_told_again_are_not_told_on(
    here: Server, stream: Stream, worker: Worker
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    claimed, event = await claim(worker, order_id)
    for _ in range(3):
        worker.hints.tell(claimed, [event])
        await worker.hints.drain()
    assert await stream.sequences() == [2]
    await worker.move(str(order_id), Cancelled())
    assert await stream.sequences() == [3]
    assert here.read_orders == []


async def test_what_an_order_did_before_it_was_cancelled_may_be_told_after_it(
    here: Server, stream: Stream, worker: Worker
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    claimed, event = await claim(worker, order_id)
    # As CancelOrder does it, which is told at once, where a worker waits a moment.
    cancel = apply(claimed, Cancelled(), RetryPolicy())
    cancelled = await here.store.advance([cancel])
    assert cancelled is not None
    here.hints.tell(cancelled, [cancel.event])
    await here.hints.drain()
    worker.hints.tell(claimed, [event])
    await worker.hints.drain()
    found = await stream.sequences()
    while len(found) < 2:
        found += await stream.sequences()
    assert found == [2, 3]


async def test_who_has_seen_an_order_close_is_told_that_there_is_no_more(
    here: Server, stream: Stream, worker: Worker
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    await worker.move(str(order_id), Cancelled())
    assert await stream.sequences() == [2]
    stream.subscription.watch(order_id, after_sequence=2)
    assert await stream.news() == ([], [Ended(str(order_id), None)])


async def test_a_hint_that_was_lost_is_made_up_for_by_looking_around(
    here: Server, stream: Stream, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.hints, "tell", lambda order, events: None)
    order_id = await here.submit()
    await worker.execute(str(order_id))
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    here.look_around()
    events, ended = await stream.news()
    assert [watched.event.sequence for watched in events] == [2, 3, 4, 5]
    assert ended == [Ended(str(order_id), None)]


async def test_a_cancel_right_after_the_submit_is_read(
    here: Server, stream: Stream, worker: Worker, until: Until
) -> None:
    order_id = await here.submit()
    worker.hints.publish([order_id])
    await worker.move(str(order_id), Cancelled())
    await until(lambda: here.watches.known_events(order_id, 0) is None)
    stream.subscription.watch(order_id)
    events, ended = await stream.news()
    assert [watched.event.sequence for watched in events] == [1, 2]
    assert ended == [Ended(str(order_id), None)]


async def test_a_cancel_after_the_first_event_follows_it(
    here: Server, stream: Stream, worker: Worker
) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id)
    assert await stream.sequences() == [1]
    await worker.move(str(order_id), Cancelled())
    events, ended = await stream.news()
    assert [watched.event.sequence for watched in events] == [2]
    assert ended == [Ended(str(order_id), None)]


async def test_who_has_the_first_event_is_not_told_it_again(
    here: Server, stream: Stream, worker: Worker
) -> None:
    order_id = await here.submit()
    other_id = await here.submit()
    stream.subscription.watch(order_id, after_sequence=1)
    stream.subscription.watch(other_id)
    events, _ = await stream.news()
    assert [watched.event.order_id for watched in events] == [other_id]
    assert here.read_orders == []
    await worker.move(str(order_id), Cancelled())
    assert await stream.sequences() == [2]


async def test_a_cursor_beyond_the_first_event_is_refused(here: Server, stream: Stream) -> None:
    order_id = await here.submit()
    stream.subscription.watch(order_id, after_sequence=2)
    events, (ended,) = await stream.news()
    assert events == []
    assert isinstance(ended.error, SequenceAhead)


async def test_without_a_subscription_to_hints_everything_is_read(settings: Settings) -> None:
    async with Store(settings) as store:
        here = Server(store, Hints(settings, await read_news_key(settings)))
        order_id = await here.submit()
        with here.watches.subscribe() as subscription:
            subscription.watch(order_id)
            assert await Stream(subscription).sequences() == [1]
    assert here.read_orders == [order_id]


async def test_new_orders_are_forgotten_with_each_look_around_and_when_hints_are_lost(
    here: Server, settings: Settings, until: Until
) -> None:
    order_id = await here.submit()
    assert here.watches.known_events(order_id, 0) is not None
    here.look_around()
    await until(lambda: here.watches.known_events(order_id, 0) is None)
    order_id = await here.submit()
    assert here.watches.known_events(order_id, 0) is not None
    async with RedisClient(settings) as redis:
        await redis("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: here.watches.known_events(order_id, 0) is None)
