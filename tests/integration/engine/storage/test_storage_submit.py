"""Submitting, reading and listing orders in the real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest

from engine.domain.errors import RequestIdReused
from engine.domain.lifecycle import Claimed, Routed
from engine.domain.order import OrderStatus, Side
from engine.settings import Settings
from engine.storage.postgres import NewOrder, Position, Store, Submitted
from tests.integration.engine.storage.records import (
    advance,
    decisions_of,
    exists,
    new_order,
    path_to,
    stored,
)
from tests.serving import decision, no_route

S = OrderStatus


@pytest.fixture
async def store(shared_database: Settings) -> AsyncIterator[Store]:
    """A store with orders of other tests in it."""
    async with Store(shared_database) as store:
        yield store


@pytest.fixture
async def empty_store(database: Settings) -> AsyncIterator[Store]:
    async with Store(database) as store:
        yield store


async def count(settings: Settings, table: str) -> int:
    async with await psycopg.AsyncConnection.connect(settings.database) as connection:
        row = await (await connection.execute(f"SELECT count(*) FROM {table}".encode())).fetchone()
    assert row is not None
    return int(row[0])


async def submit_all(store: Store, orders: list[NewOrder]) -> list[Submitted | BaseException]:
    return await asyncio.gather(*map(store.submit, orders), return_exceptions=True)


def ids(answers: list[Submitted | BaseException]) -> set[UUID]:
    return {answer.order.order_id for answer in answers if isinstance(answer, Submitted)}


# ---- Submitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        new_order(),
        new_order("as it was asked"),
        new_order(side=Side.BUY, amount=1),
        new_order(amount=2**64 - 1, expire_time=datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        replace(new_order(), spec=replace(new_order().spec, slippage_bps=0)),
    ],
)
async def test_what_was_asked_is_what_is_read(asked: NewOrder, store: Store) -> None:
    submitted = await store.submit(asked)
    assert not submitted.deduplicated
    assert submitted.order.spec == asked.spec
    assert submitted.order.create_time is not None
    assert await exists(store, asked.order_id) == submitted.order
    (watched,) = await store.events_after((asked.order_id, 0))
    assert (watched.event.sequence, watched.event.status) == (1, S.PENDING)


async def test_the_same_request_is_the_same_order_for_ever(store: Store) -> None:
    first = await store.submit(new_order("for ever"))
    for status in (S.PENDING, S.ROUTING, S.CANCELLED):
        if status is not S.PENDING:
            order = await exists(store, first.order.order_id)
            await advance(
                store, order, *([Claimed()] if status is S.ROUTING else [no_route(n) for n in (1, 2, 3)])
            )
        again = await store.submit(new_order("for ever"))
        assert again.deduplicated
        assert again.order == await exists(store, first.order.order_id)


async def test_a_request_id_with_other_content_is_refused(empty_store: Store, database: Settings) -> None:
    await empty_store.submit(new_order("mine"))
    with pytest.raises(RequestIdReused, match='"mine" was used for a different order'):
        await empty_store.submit(new_order("mine", amount=7))
    assert await count(database, "orders") == 1


async def test_of_requests_that_race_in_several_servers_one_makes_the_order(database: Settings) -> None:
    """The loser's snapshot may be older than the winner's commit: it must find the winner all the same."""
    async with Store(database) as one, Store(database) as other, Store(database) as third:
        stores = (one, other, third)
        for round_number in range(40):
            request_id = f"request {round_number}"
            answers = await asyncio.gather(
                *(store.submit(new_order(request_id)) for _ in range(4) for store in stores)
            )
            assert len({answer.order.order_id for answer in answers}) == 1
            assert [answer.deduplicated for answer in answers].count(False) == 1
    assert await count(database, "orders") == 40
    assert await count(database, "order_events") == 40


async def test_of_different_orders_that_race_for_a_request_id_one_gets_it(database: Settings) -> None:
    async with Store(database) as one, Store(database) as other:
        for round_number in range(20):
            request_id = f"request {round_number}"
            answers = await asyncio.gather(
                *(
                    store.submit(new_order(request_id, amount=amount))
                    for amount, store in enumerate((one, other, one, other), start=1)
                ),
                return_exceptions=True,
            )
            assert len(ids(answers)) == 1
            assert sum(isinstance(answer, RequestIdReused) for answer in answers) == 3


async def test_within_one_batch_a_request_id_makes_one_order(empty_store: Store, database: Settings) -> None:
    answers = await submit_all(
        empty_store,
        [new_order("mine"), new_order("mine"), new_order("mine", amount=7), new_order(), new_order()],
    )
    first, second, reused, *others = answers
    assert isinstance(first, Submitted)
    assert isinstance(second, Submitted)
    assert (first.order.order_id, first.deduplicated) == (second.order.order_id, False)
    assert second.deduplicated
    assert isinstance(reused, RequestIdReused)
    assert len(ids(others)) == 2
    assert await count(database, "orders") == 3


async def test_many_orders_travel_in_few_statements(database: Settings) -> None:
    sizes: dict[str, list[int]] = {}
    async with Store(database, lambda edge: sizes.setdefault(edge, []).append) as store:
        answers = await submit_all(store, [new_order() for _ in range(600)])
        assert len(ids(answers)) == 600
    assert sizes["submit"] == [256, 256, 88]


# ---- Reading ---------------------------------------------------------------------------------------


async def test_an_order_reads_as_its_latest_event_left_it(store: Store) -> None:
    for status in S:
        order = (await store.submit(new_order())).order
        order = await advance(store, order, *path_to(status, order.order_id))
        found = await exists(store, order.order_id)
        # The route is kept for building, and the record's clock says when it moved.
        kept = order.route if status is S.BUILDING else None
        assert found == replace(order, route=kept, update_time=found.update_time)
        assert found.update_time is not None
        assert order.create_time is not None
        assert (found.update_time > order.create_time) == (status is not S.PENDING)


async def test_an_unknown_order_is_none_among_known_ones(store: Store) -> None:
    order = await stored(store)
    found = await asyncio.gather(*map(store.get, (order.order_id, UUID(int=5), order.order_id)))
    assert found == [order, None, order]
    assert await asyncio.gather(*map(store.position, (order.order_id, UUID(int=5)))) == [
        Position(1, False),
        None,
    ]


async def test_every_routing_decision_is_kept_with_all_its_quotes(store: Store) -> None:
    order = await stored(store, S.ROUTING)
    refused = no_route(1)
    second = replace(decision("it is cheapest now"), attempt=2)
    await advance(store, order, refused, Routed(second))
    assert await decisions_of(store, order.order_id) == [refused.decision, second]


async def test_of_many_routing_decisions_the_latest_are_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.postgres.MOST_DECISIONS", 2)
    order = await stored(store, S.ROUTING)
    last = replace(decision("it is cheapest now"), attempt=3)
    await advance(store, order, no_route(1), second := no_route(2), Routed(last))
    assert await decisions_of(store, order.order_id) == [second.decision, last]


async def test_of_a_long_history_so_many_events_are_read_at_a_time_and_none_is_left_out(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.storage.postgres.MOST_EVENTS", 2)
    order = await stored(store, S.CONFIRMED)
    cursors = [(order.order_id, after_sequence) for after_sequence in (0, 3, 5)]
    found = await asyncio.gather(*map(store.events_after, cursors))
    # The first two and the fourth and fifth are there; the third, which the first watcher needs next, is not.
    assert [[watched.event.sequence for watched in events] for events in found] == [[1, 2], [4, 5], []]


async def test_events_come_after_each_watcher_s_cursor(store: Store) -> None:
    order = await stored(store, S.CONFIRMED)
    other = await stored(store)
    cursors = [
        (order.order_id, 0),
        (order.order_id, 3),
        (order.order_id, 5),
        (other.order_id, 0),
        (UUID(int=5), 0),
    ]
    found = await asyncio.gather(*map(store.events_after, cursors))
    assert [[watched.event.sequence for watched in events] for events in found] == [
        [1, 2, 3, 4, 5], [4, 5], [], [1], [],
    ]  # fmt: skip
    assert [watched.event.status for watched in found[0]] == [
        S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED, S.CONFIRMED,
    ]  # fmt: skip
    times = [watched.event.create_time for watched in found[0]]
    assert times == sorted(times, key=lambda moment: moment or datetime.min.replace(tzinfo=UTC))
    watched = {order_id.bytes: after_sequence for order_id, after_sequence in cursors}
    assert await store.moved_orders(watched) == [other.order_id.bytes]
    assert await store.lacking_orders(watched) == [UUID(int=5).bytes]
    assert await store.lacking_orders({order.order_id.bytes: 6}) == [order.order_id.bytes]
    watched[order.order_id.bytes] = 3
    assert await store.moved_orders(watched) == [order.order_id.bytes, other.order_id.bytes]
    assert await asyncio.gather(*map(store.position, (order.order_id, other.order_id))) == [
        Position(5, True), Position(1, False),
    ]  # fmt: skip


# ---- Lists -----------------------------------------------------------------------------------------


async def test_pages_go_from_the_newest_to_the_oldest(empty_store: Store) -> None:
    newest_first = [(await stored(empty_store)).order_id for _ in range(5)][::-1]
    seen: list[UUID] = []
    while page := await empty_store.list_orders(2, seen[-1] if seen else None):
        assert len(page) <= 2
        seen += [order.order_id for order in page]
    assert seen == newest_first


WANTED: list[list[OrderStatus]] = [
    [],
    [S.PENDING],
    [S.CONFIRMED],
    [S.SUBMITTED, S.BUILDING],
    [S.FAILED, S.CANCELLED, S.EXPIRED],
    [S.PENDING, S.CONFIRMED, S.ROUTING, S.EXPIRED],
    list(S),
]


async def test_a_list_holds_the_newest_orders_of_the_wanted_statuses(empty_store: Store) -> None:
    newest_first = [await stored(empty_store, status) for _ in range(2) for status in S][::-1]
    before = newest_first[5].order_id
    for wanted in WANTED:
        expected = [order.order_id for order in newest_first if order.status in wanted or not wanted]
        for limit in (1, 3, 100):
            page = await empty_store.list_orders(limit, None, wanted)
            assert [order.order_id for order in page] == expected[:limit]
        later = [order_id for order_id in expected if order_id < before]
        page = await empty_store.list_orders(4, before, wanted)
        assert [order.order_id for order in page] == later[:4]


async def test_open_orders_are_counted_no_further_than_asked(empty_store: Store) -> None:
    for status in (S.PENDING, S.SUBMITTED, S.CONFIRMED, S.ROUTING):
        await stored(empty_store, status)
    assert [(await empty_store.backlog(limit)).count for limit in (2, 3, 9)] == [2, 3, 3]
