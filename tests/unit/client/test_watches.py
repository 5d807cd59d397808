"""Watches over a stream that breaks, repeats and refuses: each watcher gets each event once, in sequence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st
from orders.v1 import orders_pb2 as pb

import client.watches
from client import InternalError, OrderError, OrderNotFound, OrderStatus, SequenceAhead
from client.backoff import Backoff
from client.watches import Feed, Reader, Told, Watches
from tests.unit.client.watch_stream import Record, broken

TURNS = 400
"""Turns of the event loop after which nothing more can be on its way: there is no real waiting here."""


class Stuck(AssertionError):
    pass


async def turn(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def rest(watcher: Reader) -> list[int]:
    """Read the watcher to its end; raise Stuck if it never comes."""
    found: list[int] = []

    async def read() -> None:
        async for event in watcher:
            found.append(event.sequence)  # noqa: PERF401 - kept when the read is given up

    task = asyncio.ensure_future(read())
    for _ in range(TURNS):
        if task.done():
            break
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        raise Stuck(f"got {found}, waits after {watcher.sequence}")
    task.result()
    return found


def make(record: Record) -> Watches:
    return Watches(record.open, random=lambda: 0.0)


async def test_every_event_comes_once_and_in_sequence() -> None:
    record = Record({"a": 5})
    watches = make(record)
    watcher = watches.join("a", 0)
    for _ in range(5):
        record.emit("a")
    assert await rest(watcher) == [1, 2, 3, 4, 5]
    await watches.close()


async def test_a_watch_goes_on_where_it_was_when_the_stream_breaks() -> None:
    record = Record({"a": 4})
    watches = make(record)
    watcher = watches.join("a", 0)
    record.emit("a")
    assert (await anext(watcher)).sequence == 1
    record.cut()
    await turn(20)
    assert [call.requests[0].watch[0].after_sequence for call in record.calls] == [1]
    for _ in range(3):
        record.emit("a")
    assert await rest(watcher) == [2, 3, 4]
    await watches.close()


async def test_a_stream_that_the_server_ends_is_opened_again() -> None:
    record = Record({"a": 2})
    watches = make(record)
    watcher = watches.join("a", 0)
    await turn(10)
    record.calls.pop().end()
    await turn(20)
    record.emit("a")
    record.emit("a")
    assert await rest(watcher) == [1, 2]
    await watches.close()


async def test_all_watches_share_one_stream() -> None:
    record = Record({f"order-{number}": 1 for number in range(50)})
    watches = make(record)
    watchers = [watches.join(order_id, 0) for order_id in record.lengths]
    for order_id in record.lengths:
        record.emit(order_id)
    for watcher in watchers:
        assert await rest(watcher) == [1]
    assert len(record.calls) == 1
    assert watches.order_count == 0
    await watches.close()


async def test_watchers_of_one_order_get_the_same_event_object() -> None:
    record = Record({"a": 1})
    watches = make(record)
    first, second = watches.join("a", 0), watches.join("a", 0)
    await turn(10)
    record.emit("a")
    assert await anext(first) is await anext(second)
    await watches.close()


async def test_a_watcher_that_joins_later_gets_what_it_missed() -> None:
    record = Record({"a": 4})
    watches = make(record)
    early = watches.join("a", 0)
    for _ in range(3):
        record.emit("a")
    assert [(await anext(early)).sequence for _ in range(3)] == [1, 2, 3]
    late = watches.join("a", 1)
    await turn(20)
    record.emit("a")
    assert await rest(late) == [2, 3, 4]
    assert await rest(early) == [4]
    await watches.close()


async def test_a_watch_after_the_closing_event_ends_without_events() -> None:
    record = Record({"a": 3}, happened={"a": 3})
    watches = make(record)
    assert await rest(watches.join("a", 3)) == []
    await watches.close()


async def test_an_unknown_order_is_refused() -> None:
    watches = make(Record({}))
    with pytest.raises(OrderNotFound):
        await rest(watches.join("nope", 0))
    await watches.close()


async def test_nothing_is_kept_of_orders_that_are_not_watched_any_more() -> None:
    record = Record({"closes": 1, "is left": 2, "ahead": 2})
    watches = make(record)
    kept = watches.join("is left", 0)
    for order_id in ("unknown 1", "unknown 2"):
        with pytest.raises(OrderNotFound):
            await rest(watches.join(order_id, 0))
    with pytest.raises(SequenceAhead):
        await rest(watches.join("ahead", 7))
    record.emit("closes")
    assert await rest(watches.join("closes", 0)) == [1]
    await turn(20)
    assert watches._asked == {"is left"}
    kept.close()
    await turn(20)
    assert not watches._asked
    assert not watches._to_write
    assert not watches._feeds
    await watches.close()


async def test_a_cursor_beyond_the_record_is_refused() -> None:
    record = Record({"a": 3}, happened={"a": 1})
    watches = make(record)
    with pytest.raises(SequenceAhead):
        await rest(watches.join("a", 2))
    await watches.close()


async def test_of_two_watchers_only_the_one_ahead_of_the_record_is_refused() -> None:
    record = Record({"a": 3}, happened={"a": 1})
    watches = make(record)
    good, ahead = watches.join("a", 0), watches.join("a", 2)
    watches.refuse_ahead(watches.unchecked("a"), last_sequence=1)
    assert watches.unchecked("a") == []
    with pytest.raises(SequenceAhead, match="was 2, but the last event of order a is 1"):
        await rest(ahead)
    record.emit("a")
    record.emit("a")
    assert await rest(good) == [1, 2, 3]
    await watches.close()


@pytest.mark.parametrize("after_sequence", [0, 1])
@pytest.mark.parametrize("turns", range(8))
async def test_the_refusal_of_one_that_has_left_is_not_the_next_ones(turns: int, after_sequence: int) -> None:
    record = Record({"a": 3}, happened={"a": 2})
    watches = make(record)
    ahead = watches.join("a", 9)
    await turn(turns)
    ahead.close()
    following = watches.join("a", after_sequence)
    await turn(20)
    record.emit("a")
    assert await rest(following) == [1, 2, 3][after_sequence:]
    await watches.close()


async def test_who_is_ahead_of_a_record_that_was_put_back_is_refused() -> None:
    record = Record({"a": 3}, happened={"a": 2})
    watches = make(record)
    watcher = watches.join("a", 0)
    await turn(20)
    record.happened["a"] = 1
    record.cut()
    with pytest.raises(SequenceAhead):
        await rest(watcher)
    await watches.close()


@pytest.mark.parametrize("turns", range(5, 16))
async def test_nor_is_it_where_the_next_one_came_before_the_other_left(turns: int) -> None:
    record = Record({"a": 3}, happened={"a": 2})
    watches = make(record)
    ahead = watches.join("a", 9)
    await turn(turns)
    following = watches.join("a", 1)
    ahead.close()
    await turn(20)
    record.emit("a")
    assert await rest(following) == [2, 3]
    await watches.close()


async def test_events_that_come_before_an_older_answer_put_nobody_ahead_of_the_record() -> None:
    record = Record({"a": 4}, happened={"a": 2})
    watches = make(record)
    early, back = watches.join("a", 0), watches.join("a", 2)
    await turn(20)
    unchecked = watches.unchecked("a")
    assert unchecked == [back]
    # While the order is read, which is then at 2: one more event, and a watcher that was told it elsewhere.
    record.emit("a")
    await turn(20)
    late = watches.join("a", 3)
    watches.refuse_ahead(unchecked, last_sequence=2)
    record.emit("a")
    assert [await rest(watcher) for watcher in (early, back, late)] == [[1, 2, 3, 4], [3, 4], [4]]
    await watches.close()


async def test_a_slow_reader_holds_no_more_than_its_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.watches, "WATCHER_BUFFER", 4)
    record = Record({"a": 30}, happened={"a": 30})
    watches = make(record)
    watcher = watches.join("a", 0)
    await turn(100)
    assert watcher.behind
    assert len(watcher._buffer) == 4
    assert await rest(watcher) == list(range(1, 31))
    await watches.close()


async def test_an_order_that_cannot_be_read_just_now_is_asked_for_again() -> None:
    away = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="no database")
    record = Record({"a": 2}, happened={"a": 2}, ends={"a": away})
    watches = make(record)
    watcher = watches.join("a", 0)
    await turn(30)
    record.ends.clear()
    assert await rest(watcher) == [1, 2]
    await watches.close()


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [pb.WatchOrdersResponse()],
        [pb.WatchOrdersResponse(events=[pb.OrderEvent(order_id="a", sequence=1)])],
        [pb.WatchOrdersResponse(events=[pb.OrderEvent(order_id="other", sequence=1)])],
    ],
    ids=["nothing", "an empty answer", "a repeated event", "another order's event"],
)
async def test_the_waits_before_a_stream_that_always_fails_grow_to_their_cap(
    answers: list[pb.WatchOrdersResponse], monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = _note_delays(monkeypatch)
    record = Record({"a": 2}, answers=answers)
    watches = make(record)
    watcher = watches.join("a", 1)
    await turn(TURNS)
    assert record.opened_count > 10
    # Each is drawn from all of that time: `make` draws the shortest, 0.
    assert delays[:8] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    watcher.close()
    await watches.close()


async def test_the_waits_before_a_new_stream_are_short_again_once_one_brought_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delays = _note_delays(monkeypatch)
    record = Record({"a": 3}, refusal=broken(grpc.StatusCode.UNKNOWN))
    watches = make(record)
    watcher = watches.join("a", 0)
    await turn(100)
    record.refusal = None
    record.calls.clear()
    await turn(20)
    record.emit("a")
    assert (await anext(watcher)).sequence == 1
    delays.clear()
    record.cut()
    await turn(20)
    assert delays == [0.05]
    record.emit("a")
    record.emit("a")
    assert await rest(watcher) == [2, 3]
    await watches.close()


def _note_delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which the longest wait of each round is added: what jitter draws from."""
    delays: list[float] = []

    class Noted(Backoff):
        def next_delay_seconds(self) -> float:
            delays.append(Backoff(lambda: 1.0, failure_count=self.failure_count).next_delay_seconds())
            return super().next_delay_seconds()

    monkeypatch.setattr(client.watches, "Backoff", Noted)
    return delays


async def test_a_stream_that_may_not_be_opened_ends_the_watches() -> None:
    record = Record({"a": 2}, refusal=broken(grpc.StatusCode.UNIMPLEMENTED))
    watches = make(record)
    with pytest.raises(OrderError, match="cut"):
        await rest(watches.join("a", 0))
    await watches.close()


async def test_an_order_nobody_watches_any_more_is_unwatched() -> None:
    record = Record({"a": 2})
    watches = make(record)
    watcher = watches.join("a", 0)
    await turn(10)
    watcher.close()
    await turn(10)
    assert record.calls[0].requests[-1].unwatch == ["a"]
    assert watches.order_count == 0
    await watches.close()


async def test_closing_the_client_ends_its_watches() -> None:
    watches = make(Record({"a": 2}))
    watcher = watches.join("a", 0)
    await turn(10)
    await watches.close()
    with pytest.raises(OrderError, match="client was closed"):
        await anext(watcher)


# ---- Told to functions ---------------------------------------------------------------------------


class Ear:
    """What a listener was told."""

    def __init__(self, watches: Watches, order_id: str, after_sequence: int = 0) -> None:
        self.texts: list[bytes] = []
        self.ends: list[OrderError | None] = []
        self.listener = watches.listen(order_id, after_sequence, self.texts.append, self.ends.append)

    @property
    def sequences(self) -> list[int]:
        return [json.loads(text)["sequence"] for text in self.texts]


async def test_a_listener_is_told_each_event_once_and_then_the_end() -> None:
    record = Record({"a": 3})
    watches = make(record)
    ear = Ear(watches, "a")
    record.emit("a")
    await turn(20)
    assert (ear.sequences, ear.ends) == ([1], [])
    record.cut()
    await turn(20)
    record.emit("a")
    record.emit("a")
    await turn(20)
    assert (ear.sequences, ear.ends) == ([1, 2, 3], [None])
    assert watches.order_count == 0
    await watches.close()


async def test_listeners_and_readers_of_an_order_share_what_comes() -> None:
    record = Record({"a": 2}, happened={"a": 2})
    watches = make(record)
    ears = [Ear(watches, "a") for _ in range(3)]
    reader = watches.join("a", 0)
    assert await rest(reader) == [1, 2]
    assert [ear.sequences for ear in ears] == [[1, 2]] * 3
    # One text for all of them.
    assert len({id(ear.texts[0]) for ear in ears}) == 1
    await watches.close()


async def test_a_paused_listener_is_told_later_what_happened_meanwhile() -> None:
    record = Record({"a": 5})
    watches = make(record)
    ear = Ear(watches, "a")
    record.emit("a")
    await turn(20)
    ear.listener.pause()
    for _ in range(4):
        record.emit("a")
    await turn(20)
    assert (ear.sequences, ear.ends) == ([1], [])
    ear.listener.resume()
    await turn(20)
    assert (ear.sequences, ear.ends) == ([1, 2, 3, 4, 5], [None])
    await watches.close()


async def test_a_listener_that_leaves_is_told_nothing_more() -> None:
    record = Record({"a": 3})
    watches = make(record)
    ear = Ear(watches, "a")
    record.emit("a")
    await turn(20)
    ear.listener.close()
    record.emit("a")
    await turn(20)
    assert (ear.sequences, ear.ends) == ([1], [])
    assert record.calls[0].requests[-1].unwatch == ["a"]
    await watches.close()


async def test_a_listener_may_leave_when_it_is_told_the_end() -> None:
    record = Record({"a": 1}, happened={"a": 1})
    watches = make(record)
    ended: list[OrderError | None] = []

    def leave(error: OrderError | None) -> None:
        ended.append(error)
        listener.close()

    listener = watches.listen("a", 0, lambda _: None, leave)
    await turn(20)
    assert (ended, watches.order_count) == ([None], 0)
    assert [list(request.unwatch) for request in record.calls[0].requests] == [[]]
    await watches.close()


async def test_a_listener_is_told_why_its_order_cannot_be_watched() -> None:
    watches = make(Record({}))
    ear = Ear(watches, "nope")
    await turn(20)
    assert isinstance(ear.ends[0], OrderNotFound)
    assert len(ear.ends) == 1
    await watches.close()


# ---- Any order of things -------------------------------------------------------------------------

ORDERS = ("a", "b")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.sampled_from(ORDERS), st.integers(0, 6)),
        st.tuples(st.just("emit"), st.sampled_from(ORDERS), st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(0, 5), st.integers(1, 3)),
        st.tuples(st.just("leave"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("cut"), st.just(0), st.just(0)),
        st.tuples(st.just("turn"), st.integers(1, 12), st.just(0)),
    ),
    max_size=30,
)
lengths = st.fixed_dictionaries({order_id: st.integers(1, 9) for order_id in ORDERS})


async def walk(record: Record, script: list[tuple[str, str | int, int]]) -> None:
    """Play the script, let everything happen, and check what each watcher got."""
    watches = make(record)
    watchers: list[tuple[str, int, Reader, list[int]]] = []
    for kind, first, second in script:
        match kind:
            case "join":
                # No further than the record: a cursor ahead of it has its own tests.
                after = min(second, record.happened.get(str(first), 0))
                watchers.append((str(first), after, watches.join(str(first), after), []))
            case "emit":
                for _ in range(second):
                    record.emit(str(first))
            case "read" if watchers:
                _, _, watcher, got = watchers[int(first) % len(watchers)]
                for _ in range(min(second, len(watcher._buffer))):
                    got.append((await anext(watcher)).sequence)
            case "leave" if watchers:
                watchers.pop(int(first) % len(watchers))[2].close()
            case "cut":
                record.cut()
            case "turn":
                await turn(int(first))
    try:
        for order_id, length in record.lengths.items():
            while record.happened.get(order_id, 0) < length - 1:
                record.emit(order_id)
        await turn(TURNS)
        for order_id, after, watcher, _ in watchers:
            # Not only in the end: whoever has room is up to date before the order closes.
            last = max(after, record.happened.get(order_id, 0))
            assert watcher.behind or watcher.sequence == last
        for order_id in record.lengths:
            record.emit(order_id)
        for order_id, after, watcher, got in watchers:
            got += await rest(watcher)
            assert got == list(range(after + 1, record.lengths[order_id] + 1))
    finally:
        await watches.close()


@given(steps, lengths, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
@example(
    [("emit", "a", 3), ("join", "a", 3), ("turn", 9, 0), ("cut", 0, 0), ("join", "a", 0)],
    {"a": 3, "b": 1},
    1,
)
def test_no_order_of_joins_cuts_and_reads_repeats_or_misses_an_event(
    script: list[tuple[str, str | int, int]], sizes: dict[str, int], chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.watches, "WATCHER_BUFFER", 3)
        asyncio.run(walk(Record(sizes, chunk=chunk), script))


def _accept_all(self: Reader, told: Told) -> bool:
    self.sequence = told.event.sequence
    self._buffer.append(told.event)
    self._wake()
    if told.closing:
        self.finish()
    return self.finished


def _accept_later(self: Reader, told: Told) -> bool:
    return _accept_all(self, told) if told.event.sequence > self.sequence else self.finished


def _request_nothing(self: Watches, feed: Feed) -> None:
    if not feed.active:
        self._write_soon(feed.order_id)


def _never_look_back(self: Feed) -> int | None:
    return min((watcher.sequence for watcher in self.watchers if not watcher.behind), default=None)


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (Reader, "accept", _accept_all),
        (Reader, "accept", _accept_later),
        (Watches, "request", _request_nothing),
        (Feed, "cursor", _never_look_back),
    ],
    ids=["repeats", "gaps", "late joiner not served", "closed order not noticed"],
)
def test_the_walks_catch_a_broken_watch(owner: type, name: str, mutant: Callable[..., object]) -> None:
    scripts: list[list[tuple[str, str | int, int]]] = [
        [
            ("emit", "a", 2),
            ("join", "a", 0),
            ("turn", 12, 0),
            ("cut", 0, 0),
            ("join", "a", 0),
            ("turn", 12, 0),
        ],
        [("emit", "a", 5), ("join", "a", 3), ("turn", 12, 0), ("join", "a", 0), ("turn", 3, 0)],
        [("emit", "a", 9), ("join", "a", 9), ("turn", 12, 0)],
        [("emit", "a", 5), ("join", "a", 0), ("join", "a", 4), ("turn", 20, 0), ("read", 0, 3)],
    ]

    def play() -> None:
        for script in scripts:
            asyncio.run(walk(Record({"a": 9, "b": 1}, chunk=2), list(script)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.watches, "WATCHER_BUFFER", 3)
        play()
        patch.setattr(owner, name, mutant)
        with pytest.raises(AssertionError):
            play()


# ---- Orders that were accepted here ----------------------------------------------------------------


def accepted(order_id: str) -> pb.Order:
    order = pb.Order(order_id=order_id, status=pb.ORDER_STATUS_PENDING, sequence=1, attempt=1)
    order.create_time.FromSeconds(1_780_000_000)
    return order


async def test_the_first_event_of_an_order_that_was_just_accepted_is_known() -> None:
    record = Record({"a": 3})
    record.emit("a")
    watches = make(record)
    watches.accepted(accepted("a"))
    watcher = watches.join("a", 0)
    first = await anext(watcher)
    assert (first.sequence, first.status, first.attempt) == (1, OrderStatus.PENDING, 1)
    assert first.create_time is not None
    await turn(10)
    assert [watch.after_sequence for call in record.calls for watch in call.requests[0].watch] == [1]
    record.emit("a")
    record.emit("a")
    assert await rest(watcher) == [2, 3]
    await watches.close()


async def test_who_has_the_first_event_of_an_accepted_order_is_not_told_it() -> None:
    record = Record({"a": 2})
    record.emit("a")
    watches = make(record)
    watches.accepted(accepted("a"))
    watcher = watches.join("a", 1)
    record.emit("a")
    assert await rest(watcher) == [2]
    await watches.close()


async def test_watchers_of_an_accepted_order_come_one_after_the_other() -> None:
    record = Record({"a": 3})
    watches = make(record)
    watches.accepted(accepted("a"))
    early = watches.join("a", 0)
    record.emit("a")
    record.emit("a")
    await turn(20)
    late = watches.join("a", 0)
    record.emit("a")
    assert await rest(late) == [1, 2, 3]
    assert await rest(early) == [1, 2, 3]
    await watches.close()


async def test_only_the_latest_accepted_orders_are_kept() -> None:
    watches = make(Record({}))
    for number in range(2000):
        watches.accepted(accepted(f"order-{number}"))
    assert len(watches._accepted) == 1024
    assert "order-1999" in watches._accepted


async def test_a_defect_in_what_is_asked_ends_the_watchers_and_the_next_ones_are_served() -> None:
    record = Record({"a": 2, "b": 2})
    watches = make(record)
    watcher = watches.join("a", 2**64)  # What no message can hold; OrderClient lets no such cursor pass.
    with pytest.raises(InternalError, match="watching stopped unexpectedly"):
        await rest(watcher)
    after = watches.join("b", 0)
    for _ in range(2):
        record.emit("b")
    assert await rest(after) == [1, 2]
    await watches.close()
