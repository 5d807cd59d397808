"""Two workers price orders on what is left by the swaps that either has under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

from engine.domain.order import Order, OrderSpec, OrderStatus, Side
from engine.domain.tokens import SOL, USDC
from engine.market import Market, SwapUnderWay
from engine.settings import Settings
from engine.signing import sign
from engine.solana.transactions import Wallet
from engine.storage.migrate import read_news_key
from tests.integration.engine.storage.records import new_order
from tests.integration.workers.executing import Worker, worker_of
from tests.redis_py import redis_py
from tests.simnet_process import Simnet
from workers import neighbours
from workers.neighbours import Neighbours

ORDER_ID = UUID(int=0xAB)
SPEC = OrderSpec(Side.SELL, 1_000 * 10**9, SOL, USDC)
_encode = msgspec.msgpack.encode


def quotes(worker: Worker) -> dict[str, int | None]:
    return {quote.pool: quote.output_amount for quote in worker.market.decide(SPEC, 1, 50).quotes}


def begin(worker: Worker, order_id: UUID = ORDER_ID) -> Sequence[SwapUnderWay]:
    """Have an order's swaps under way there, and told."""
    route = worker.market.decide(SPEC, 1, 50).route
    assert route is not None
    swaps = worker.market.under_way.add(order_id, SPEC, route)
    worker.neighbours.begun(order_id, swaps)
    return swaps


@pytest.fixture(autouse=True)
def for_long() -> Iterator[None]:
    """What ends the count of a swap is what a test has told, and not that time passes."""
    # Not the test's own monkeypatch, which is to be undone before the workers end.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_SWAP_SECONDS", 3600.0)
        yield


@pytest.fixture
async def two(settings: Settings, simnet: Simnet, wallet: Wallet, until: Any) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker_of(settings, simnet, wallet)) for _ in range(2)]
        await until(lambda: all(worker.neighbours.are_there for worker in workers))
        yield workers


async def test_swaps_of_another_worker_count_until_they_have_landed(two: list[Worker], until: Any) -> None:
    one, other = two
    alone = quotes(other)
    begin(one)
    assert quotes(one) != alone
    await until(lambda: quotes(other) == quotes(one))
    await other.market.next_refresh()
    await other.market.next_refresh()
    assert quotes(other) != alone, "until it is told that they landed"
    one.neighbours.landed(ORDER_ID, other.market.slot + 3)
    await until(lambda: quotes(other) == alone)


async def test_what_is_not_under_way_any_more_counts_no_longer(two: list[Worker], until: Any) -> None:
    one, other = two
    alone = quotes(other)
    begin(one)
    await until(lambda: quotes(other) != alone)
    one.neighbours.ended(ORDER_ID)
    await until(lambda: quotes(other) == alone)


async def test_swaps_of_which_no_more_is_heard_count_for_a_while(
    two: list[Worker], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their worker died, or Redis lost what it said."""
    one, other = two
    monkeypatch.setattr(neighbours, "_SWAP_SECONDS", 0.5)
    alone = quotes(other)
    begin(one)
    await until(lambda: quotes(other) != alone)
    await until(lambda: quotes(other) == alone)
    assert quotes(one) != alone, "its own count until it knows better"


async def test_an_order_that_is_executed_is_told_from_its_route_to_its_end(
    two: list[Worker], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    heard: list[tuple[str, UUID]] = []
    for name in ("landed", "let_go"):
        does = getattr(other.market.under_way, name)

        def hear(order_id: UUID, *rest: int, name: str = name, does: Any = does) -> Any:
            heard.append((name, order_id))
            return does(order_id, *rest)

        monkeypatch.setattr(other.market.under_way, name, hear)
    orders = [await submit(one, SPEC), await submit(one, replace(SPEC, amount=10**9))]
    for order in orders:
        await one.executor.take([order.order_id])
        await until(lambda: ("landed", order.order_id) in heard)  # noqa: B023
        assert (await one.closed(order.order_id)).status is OrderStatus.CONFIRMED
    await until(lambda: not other.market.under_way)
    assert [name for name, _ in heard] == ["landed"] * 2, "what was sent needs no word when it ends"


async def test_one_that_is_let_go_before_it_is_sent_is_told_to_be_over(
    two: list[Worker], until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two
    recording = asyncio.Event()

    async def hangs(*_: Any) -> Order:
        recording.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(one.store, "advance", hangs)
    order = await submit(one, SPEC)
    await one.executor.take([order.order_id])
    await recording.wait()
    await until(lambda: order.order_id in other.market.under_way)
    one.executor.let_all_go()
    await until(lambda: order.order_id not in other.market.under_way)


async def test_many_are_begun_a_few_at_a_time_so_that_workers_hear_of_each_other(
    two: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.executor._AT_ONCE", 2)
    one, other = two
    orders = [await submit(other, replace(SPEC, amount=10**9)) for _ in range(9)]
    assert await one.executor.take([order.order_id for order in orders]) == 9
    for order in orders:
        assert (await one.closed(order.order_id)).status is OrderStatus.CONFIRMED


async def test_a_lease_that_is_lost_while_they_are_begun_begins_no_more(
    two: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.executor._AT_ONCE", 2)
    one, _ = two
    orders = [await submit(one, replace(SPEC, amount=10**9)) for _ in range(5)]
    started: list[UUID] = []

    def start(claim: Any) -> None:
        del one.executor._held[claim.order.order_id]
        started.append(claim.order.order_id)
        if len(started) == 2:
            monkeypatch.setattr(one.executor, "_lease_owner", lambda: 0)

    monkeypatch.setattr(one.executor, "_start", start)
    with pytest.raises(Exception, match="the lease was lost"):
        await one.executor.take([order.order_id for order in orders])
    assert started == [order.order_id for order in orders[:2]]
    assert not any(one.executor.holds(order.order_id) for order in orders)


async def test_a_worker_that_stops_in_between_holds_none_that_it_has_not_begun(
    two: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.executor._AT_ONCE", 2)
    one, _ = two
    orders = [await submit(one, replace(SPEC, amount=10**9)) for _ in range(5)]
    begun = asyncio.Event()
    start = one.executor._start

    def note(claim: Any) -> None:
        start(claim)
        begun.set()

    monkeypatch.setattr(one.executor, "_start", note)
    taking = asyncio.create_task(one.executor.take([order.order_id for order in orders]))
    await begun.wait()
    taking.cancel()
    with suppress(asyncio.CancelledError):
        await taking
    assert taking.cancelled()
    assert [one.executor.holds(order.order_id) for order in orders[2:]] == [False] * 3


async def test_nobody_else_has_a_price_changed(two: list[Worker], settings: Settings, until: Any) -> None:
    one, other = two
    alone = quotes(other)
    swaps = begin(one, UUID(int=1))
    one.neighbours.ended(UUID(int=1))
    key = await read_news_key(settings)
    news = [(ORDER_ID.bytes, swaps)]
    genuine = sign(_encode((b"stranger", 1, news)), key)
    async with redis_py(settings) as redis:
        for message in (
            b"",
            b"x" * 40,
            sign(_encode((b"stranger", 1, news)), b"another key"),
            genuine[:-1],
            sign(b"\xc1", key),
            sign(_encode((b"stranger", 1, [(b"short", None)])), key),
            sign(_encode((b"stranger", 1, [(ORDER_ID.bytes, "of a newer version")])), key),
        ):
            await redis.publish(neighbours.CHANNEL, message)
        await redis.publish(neighbours.CHANNEL, sign(_encode((b"another", 1, [])), key))
        await until(lambda: b"another" in other.neighbours._heard)
        assert ORDER_ID not in other.market.under_way
        await redis.publish(neighbours.CHANNEL, genuine)
        await until(lambda: ORDER_ID in other.market.under_way)
        assert quotes(other) != alone

        # Recorded and sent again it is not heard.
        other.market.under_way.let_go(ORDER_ID)
        await redis.publish(neighbours.CHANNEL, genuine)
        await redis.publish(neighbours.CHANNEL, sign(_encode((b"a third", 1, [])), key))
        await until(lambda: b"a third" in other.neighbours._heard)
        assert ORDER_ID not in other.market.under_way


async def test_pools_that_are_not_traded_here_do_not_matter(two: list[Worker], until: Any) -> None:
    one, other = two
    alone = quotes(other)
    one.neighbours.begun(ORDER_ID, [SwapUnderWay("nowhere", True, 2**64 - 1, 10**6)])
    await until(lambda: ORDER_ID in other.market.under_way)
    assert quotes(other) == alone


async def test_without_another_worker_nothing_is_told(
    settings: Settings, simnet: Simnet, wallet: Wallet, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_GREET_SECONDS", 0.05)
    monkeypatch.setattr(neighbours, "_SILENT_SECONDS", 0.3)
    async with worker_of(settings, simnet, wallet) as one:
        begin(one)
        assert not one.neighbours._unsent
        async with worker_of(settings, simnet, wallet) as other:
            await until(lambda: one.neighbours.are_there and other.neighbours.are_there)
            begin(one, UUID(int=1))
            await until(lambda: UUID(int=1) in other.market.under_way)
            assert ORDER_ID not in other.market.under_way
        await until(lambda: not one.neighbours.are_there)
        begin(one, UUID(int=2))
        assert not one.neighbours._unsent


async def test_what_is_not_urgent_waits_for_what_is(two: list[Worker], until: Any) -> None:
    one, other = two
    sent: list[int] = []
    send = one.neighbours._send

    def counted() -> None:
        sent.append(len(one.neighbours._unsent))
        send()

    one.neighbours._send = counted  # type: ignore[method-assign]
    one.neighbours.landed(UUID(int=1), 10**9)
    one.neighbours.ended(UUID(int=2))
    begin(one)
    await until(lambda: ORDER_ID in other.market.under_way)
    assert sent == [3]


async def test_what_is_urgent_takes_along_what_is_not_yet_sent(empty_valkey: Settings) -> None:
    """Of what is due at once, uvloop makes another kind of handle than of what is due later."""
    telling = Neighbours(empty_valkey, b"key", cast(Market, None))
    telling._heard[b"another"] = 0.0
    sent = asyncio.Event()
    telling._send = sent.set  # type: ignore[method-assign]
    telling.begun(ORDER_ID, [])
    telling.landed(ORDER_ID, 1)
    telling.ended(ORDER_ID)
    await sent.wait()
    assert len(telling._unsent) == 3


async def test_what_is_unsent_at_the_end_is_told(two: list[Worker], until: Any) -> None:
    one, other = two
    begin(one)
    await until(lambda: ORDER_ID in other.market.under_way)
    one.neighbours.ended(ORDER_ID)
    await one.neighbours.aclose()
    await until(lambda: ORDER_ID not in other.market.under_way)


async def test_workers_hear_of_each_other_again_as_soon_as_redis_is_back(
    two: list[Worker], settings: Settings, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_GREET_SECONDS", 3600.0)
    async with redis_py(settings) as redis:
        for worker in two:
            # Where it would wait for its next greeting, it would wait for ever.
            worker.neighbours._is_greeting_due.set()
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: not any(worker.neighbours._heard for worker in two))
        await until(lambda: all(worker.neighbours.are_there for worker in two))


async def submit(worker: Worker, spec: OrderSpec) -> Order:
    return (await worker.store.submit(replace(new_order(), spec=spec))).order
