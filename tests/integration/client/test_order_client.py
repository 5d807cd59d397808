"""The Python client against the real server, on PostgreSQL and Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

import pytest

from client import (
    InvalidOrder,
    OrderClient,
    OrderClosed,
    OrderError,
    OrderInFlight,
    OrderNotFound,
    OrderSpec,
    OrderStatus,
    RequestIdReused,
    SequenceAhead,
    ServerUnavailable,
    Side,
    Submission,
    SubmittedOrder,
    TooManyOrders,
)
from engine.settings import Settings
from tests.serving import ATTEMPT, Worker, address, decision, no_route, order_server, with_grpc_port

SPEC = OrderSpec(Side.SELL, "1.5", "SOL", "USDC")


@pytest.fixture
async def served(settings: Settings, free_port: Callable[[], int]) -> AsyncIterator[Settings]:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings):
        yield settings


@pytest.fixture
async def client(served: Settings) -> AsyncIterator[OrderClient]:
    async with OrderClient(address(served)) as client:
        yield client


@pytest.fixture
async def worker(served: Settings) -> AsyncIterator[Worker]:
    async with Worker(served) as worker:
        yield worker


async def sequences(client: OrderClient, order_id: str, after_sequence: int = 0) -> list[int]:
    async with asyncio.timeout(20):
        return [event.sequence async for event in client.watch(order_id, after_sequence)]


async def test_an_order_is_submitted_read_and_listed(client: OrderClient) -> None:
    order = await client.submit(SPEC)
    assert (order.status, order.sequence, order.deduplicated) == (OrderStatus.PENDING, 1, False)
    details = await client.get(order.order_id)
    assert details.order.spec == SPEC
    assert details.order.create_time is not None
    assert [listed.order_id async for listed in client.list()] == [order.order_id]


@pytest.mark.parametrize("amount", [Decimal("1.50"), "1.5"])
async def test_amounts_are_taken_digit_by_digit(client: OrderClient, amount: str | Decimal) -> None:
    order = await client.submit(replace(SPEC, amount=amount))
    assert order.spec.amount == "1.5"


async def test_whole_amounts_may_be_int(client: OrderClient) -> None:
    assert (await client.submit(replace(SPEC, amount=3))).spec.amount == "3"


async def test_a_float_amount_is_refused_before_anything_is_sent(client: OrderClient) -> None:
    with pytest.raises(
        TypeError, match=r'amount was 0\.1, a float; must be str, int or Decimal, such as "0\.1"'
    ):
        await client.submit(replace(SPEC, amount=0.1))  # type: ignore[arg-type]
    assert [order async for order in client.list()] == []


@pytest.mark.parametrize("amount", [Decimal("NaN"), Decimal("Infinity"), Decimal("1e999999")])
async def test_a_decimal_without_plain_text_is_refused(client: OrderClient, amount: Decimal) -> None:
    with pytest.raises(InvalidOrder) as refused:
        await client.submit(replace(SPEC, amount=amount))
    assert refused.value.violations[0].field == "spec.amount"


async def test_every_wrong_field_has_its_line(client: OrderClient) -> None:
    with pytest.raises(InvalidOrder) as refused:
        await client.submit(OrderSpec(Side.SELL, "-1", "SOL", "NOPE"))
    assert refused.value.reason == "INVALID_ORDER"
    assert {line.field for line in refused.value.violations} == {"spec.amount", "spec.output_token"}


async def test_the_same_request_id_names_the_same_order_for_ever(client: OrderClient) -> None:
    request_id = str(uuid4())
    first = await client.submit(SPEC, request_id=request_id)
    again = await client.submit(SPEC, request_id=request_id)
    assert (again.order_id, again.deduplicated) == (first.order_id, True)
    with pytest.raises(RequestIdReused) as refused:
        await client.submit(replace(SPEC, amount="2"), request_id=request_id)
    assert refused.value.request_id == request_id


async def test_orders_submitted_together_travel_together_and_fail_alone(served: Settings) -> None:
    batches: list[int] = []
    async with OrderClient(address(served), observe_batch=batches.append) as client:
        answers = await client.submit_many(
            [SPEC, replace(SPEC, amount="x"), Submission(SPEC, "mine"), Submission(SPEC, "mine")]
        )
    assert isinstance(answers[0], SubmittedOrder)
    assert isinstance(answers[1], InvalidOrder)
    assert isinstance(answers[2], SubmittedOrder)
    assert isinstance(answers[3], SubmittedOrder)
    assert answers[2].order_id == answers[3].order_id != answers[0].order_id
    assert batches == [4]


async def test_a_full_engine_says_when_to_come_back(settings: Settings, free_port: Callable[[], int]) -> None:
    full = replace(with_grpc_port(settings, free_port), max_open_orders=1)
    async with order_server(full), OrderClient(address(full)) as client:
        await client.submit(SPEC)
        with pytest.raises(TooManyOrders) as refused:
            await client.submit(SPEC)
        assert refused.value.retry_seconds is not None
        assert refused.value.retry_seconds > 0


async def test_pages_are_gone_through_newest_first(client: OrderClient) -> None:
    submitted = [(await client.submit(SPEC)).order_id for _ in range(5)]
    assert [order.order_id async for order in client.list(page_size=2)] == submitted[::-1]
    page = await client.list_page(page_size=2)
    assert len(page.orders) == 2
    assert page.next_page_token is not None
    await client.cancel(submitted[0])
    cancelled = [order.order_id async for order in client.list(statuses=[OrderStatus.CANCELLED])]
    assert cancelled == submitted[:1]


async def test_cancel_closes_a_pending_order_once(client: OrderClient) -> None:
    order = await client.submit(SPEC)
    assert (await client.cancel(order.order_id)).status is OrderStatus.CANCELLED
    with pytest.raises(OrderClosed, match="already cancelled"):
        await client.cancel(order.order_id)


async def test_cancel_too_late_is_refused_with_the_reason(client: OrderClient, worker: Worker) -> None:
    order = await client.submit(OrderSpec(Side.BUY, "10", "SOL", "USDC"))
    facts = await worker.facts(order.order_id)
    await worker.move(order.order_id, *facts[:3])
    with pytest.raises(OrderInFlight):
        await client.cancel(order.order_id)
    await worker.move(order.order_id, facts[3])
    with pytest.raises(OrderClosed):
        await client.cancel(order.order_id)


async def test_unknown_orders_are_not_found(client: OrderClient) -> None:
    unknown = "01890000-0000-7000-8000-000000000000"
    for call in (client.get(unknown), client.cancel(unknown), sequences(client, unknown)):
        with pytest.raises(OrderNotFound):
            await call
    with pytest.raises(OrderNotFound, match="an order_id is a UUID"):
        await sequences(client, "nope")


async def test_a_watch_tells_everything_known_at_each_step(client: OrderClient, worker: Worker) -> None:
    order = await client.submit(OrderSpec(Side.BUY, "10", "SOL", "USDC"))
    await worker.execute(order.order_id)
    async with asyncio.timeout(20):
        events = [event async for event in client.watch(order.order_id.upper())]
    assert [event.status.value for event in events] == [
        "pending", "routing", "building", "submitted", "confirmed",
    ]  # fmt: skip
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5]
    assert events[1].venue is None
    assert (events[2].venue, events[2].output_amount) == ("Raydium", "10")
    assert events[2].price == "105.499999842"
    assert events[3].tx_hash == ATTEMPT.tx_hash
    decisions = (await client.get(order.order_id)).routing_decisions
    assert [quote.refusal for quote in decisions[0].quotes] == [None, "the pool is disabled"]
    assert decisions[0].route is not None
    assert decisions[0].reason == decision().reason


async def test_a_retry_is_an_event_with_its_reason(client: OrderClient, worker: Worker) -> None:
    order = await client.submit(SPEC)
    facts = await worker.facts(order.order_id)
    await worker.move(order.order_id, facts[0], no_route(1), no_route(2), no_route(3))
    async with asyncio.timeout(20):
        events = [event async for event in client.watch(order.order_id)]
    assert [(event.status.value, event.attempt) for event in events[2:]] == [
        ("routing", 2),
        ("routing", 3),
        ("failed", 3),
    ]
    assert events[2].failure_reason == "no_route"
    assert events[-1].failure_message == "no pool can fill it"


async def test_a_watch_resumes_after_its_cursor(client: OrderClient, worker: Worker) -> None:
    order = await client.submit(SPEC)
    await worker.execute(order.order_id)
    assert await sequences(client, order.order_id, 3) == [4, 5]
    assert await sequences(client, order.order_id, 5) == []
    with pytest.raises(SequenceAhead):
        await sequences(client, order.order_id, 6)


async def test_a_cursor_ahead_is_refused_while_others_watch_the_order(client: OrderClient) -> None:
    order = await client.submit(SPEC)
    first = client.watch(order.order_id)
    async with asyncio.timeout(20):
        assert (await anext(first)).sequence == 1
        with pytest.raises(SequenceAhead):
            await anext(client.watch(order.order_id, 4))
    await first.aclose()


@pytest.mark.parametrize("after", [-1, 2**63, 10**30])
async def test_a_cursor_that_no_message_holds_is_refused_and_keeps_no_other_from_being_told(
    after: int, client: OrderClient
) -> None:
    order = await client.submit(SPEC)
    async with asyncio.timeout(20):
        with pytest.raises(InvalidOrder, match=f"after_sequence was {after}"):
            await anext(client.watch(order.order_id, after))
        watch = client.watch(order.order_id)
        assert (await anext(watch)).sequence == 1
    await watch.aclose()


async def test_watchers_and_submits_get_over_a_restart_of_the_server(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    async with OrderClient(address(settings)) as client, Worker(settings) as worker:
        async with order_server(settings):
            order = await client.submit(SPEC)
            seen = asyncio.ensure_future(sequences(client, order.order_id))
            facts = await worker.facts(order.order_id)
            await worker.move(order.order_id, *facts[:2])
        # Nobody listens now: the order moves on all the same, and a submit waits for the server.
        await worker.move(order.order_id, facts[2])
        late = asyncio.ensure_future(client.submit(SPEC))
        async with order_server(settings):
            assert (await late).status is OrderStatus.PENDING
            await worker.move(order.order_id, facts[3])
            assert await seen == [1, 2, 3, 4, 5]


async def test_without_a_server_a_submit_ends_with_the_request_id_to_try_again_with(
    free_port: Callable[[], int],
) -> None:
    async with OrderClient(f"127.0.0.1:{free_port()}", random=lambda: 0.0) as client:
        with pytest.raises(ServerUnavailable) as refused:
            await client.submit(SPEC)
        assert refused.value.request_id
        assert await client.unready_reason() is not None
        with pytest.raises(ServerUnavailable):
            await client.get(str(uuid4()))


async def test_leaving_a_watch_stops_watching(client: OrderClient, until: Callable[..., object]) -> None:
    order = await client.submit(SPEC)
    watch = client.watch(order.order_id)
    assert (await anext(watch)).sequence == 1
    assert client.watched_order_count == 1
    await watch.aclose()
    assert client.watched_order_count == 0


async def test_a_closed_client_says_so(served: Settings) -> None:
    async with OrderClient(address(served)) as client:
        order = await client.submit(SPEC)
    with pytest.raises(ServerUnavailable, match="the client was closed") as submitted:
        await client.submit(SPEC, request_id="mine")
    assert submitted.value.request_id == "mine"
    with pytest.raises(ServerUnavailable, match="the client was closed"):
        await client.get(order.order_id)
    with pytest.raises(OrderError, match="the client was closed"):
        await sequences(client, order.order_id)


async def test_what_a_closed_client_watched_ends(served: Settings) -> None:
    async with OrderClient(address(served)) as client:
        order = await client.submit(SPEC)
        watch = client.watch(order.order_id)
        await anext(watch)
    with pytest.raises(OrderError, match="closed"):
        await anext(watch)
