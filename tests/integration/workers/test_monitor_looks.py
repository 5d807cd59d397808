"""What a monitor looks at in a tick, and that it fires neither more nor less for looking at little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from engine.domain.errors import NodeUnavailable, StoreUnavailable
from engine.domain.lifecycle import Cancelled, apply
from engine.domain.order import Order, OrderSpec, Side
from engine.domain.order_types import LimitOrder, OrderType, SniperOrder, TriggerKind
from engine.domain.retry import RetryPolicy
from engine.domain.tokens import SOL, USDC, Token
from engine.queue import STREAM
from engine.settings import Settings
from engine.solana.rpc import RpcError
from engine.solana.transactions import Wallet
from engine.storage.postgres import Lead, RestingGroup
from tests.integration.engine.storage.records import new_order
from tests.integration.workers.executing import Worker, worker_of
from tests.redis_py import redis_py
from tests.simnet_process import Simnet
from workers import monitor
from workers.executor import Executor

PRICE, LIQUIDITY = TriggerKind.PRICE, TriggerKind.LIQUIDITY
LEAST = 1 << 40
"""Lamports: enough to move the price by a tenth of a per cent."""
UNHEARD_OF = Token(
    "HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", "HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", 7
)


@pytest.fixture
async def worker(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Worker]:
    """One without room: what fires stays due."""
    monkeypatch.setattr(Executor, "room", 0)
    async with worker_of(settings, simnet, wallet) as worker:
        yield worker


@pytest.fixture
def pages(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many orders were read in each page."""
    read, sizes = worker.store.resting_orders, []

    async def counted(*asked: Any) -> list[Order]:
        page = await read(*asked)
        sizes.append(len(page))
        return page

    monkeypatch.setattr(worker.store, "resting_orders", counted)
    return sizes


async def submit(worker: Worker, *specs: OrderSpec) -> list[Order]:
    return [(await worker.store.submit(replace(new_order(), spec=spec))).order for spec in specs]


def there_is(worker: Worker, spec: OrderSpec) -> Decimal:
    """What the whole amount would be filled at now, in whole tokens."""
    route = worker.market.decide(spec, 1, 50).route
    assert route is not None
    scale = Decimal(10) ** (spec.input_token.decimals - spec.output_token.decimals)
    return Decimal(route.output_amount) / Decimal(route.input_amount) * scale


def limit(price: Decimal) -> LimitOrder:
    return LimitOrder(price.quantize(Decimal("1e-9")))


@pytest.mark.parametrize("order_type", [SniperOrder(), SniperOrder(10**9)])
@pytest.mark.parametrize("side", Side)
async def test_orders_for_a_token_without_a_pool_are_not_read(
    side: Side, order_type: OrderType, worker: Worker, pages: list[int]
) -> None:
    await submit(worker, OrderSpec(side, 10**9, SOL, UNHEARD_OF, type=order_type))
    assert await worker.monitors[LIQUIDITY].tick() == []
    assert pages == []


async def test_an_order_that_waits_for_any_pool_fires_where_there_is_one(worker: Worker) -> None:
    (order,) = await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=SniperOrder()))
    assert await worker.monitors[LIQUIDITY].tick() == [order.order_id]


async def test_what_fires_where_there_is_no_room_is_offered_to_other_workers(
    worker: Worker, settings: Settings
) -> None:
    (order,) = await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=SniperOrder()))
    assert await worker.monitors[LIQUIDITY].tick() == [order.order_id]
    async with asyncio.timeout(20), redis_py(settings) as client:
        streams: Any = await client.xread({STREAM: 0}, block=0)
    [[_, [[_, fields]]]] = streams
    assert fields == {b"orders": order.order_id.bytes}


@pytest.mark.parametrize("side", Side)
async def test_no_order_is_read_whose_group_asks_for_more_than_there_is(
    side: Side, worker: Worker, pages: list[int]
) -> None:
    specs = [OrderSpec(side, 1 << size, SOL, USDC) for size in range(27, 42)]
    await submit(worker, *(replace(each, type=limit(there_is(worker, each) * 2)) for each in specs))
    assert await worker.monitors[PRICE].tick() == []
    assert pages == []


@pytest.mark.parametrize("side", Side)
async def test_every_order_that_is_met_fires_and_no_other_whatever_its_size(
    side: Side, worker: Worker
) -> None:
    specs = [OrderSpec(side, 1 << size, SOL, USDC) for size in range(27, 42)]
    prices = [there_is(worker, each) for each in specs]
    met = [
        replace(spec, type=limit(price * Decimal("0.99")))
        for spec, price in zip(specs[::2], prices[::2], strict=True)
    ]
    unmet = [
        replace(spec, type=limit(price * Decimal("1.0001")))
        for spec, price in zip(specs, prices, strict=True)
    ]
    fire, _ = await submit(worker, *met), await submit(worker, *unmet)
    assert sorted(await worker.monitors[PRICE].tick()) == sorted(order.order_id for order in fire)


async def test_of_many_within_their_group_s_reach_those_fire_that_are_within_their_own(
    worker: Worker, pages: list[int]
) -> None:
    """Most are too large for the price they ask for; the part of the group's amounts they are in tells."""

    def bound(amount: int) -> Decimal:
        return Decimal(worker.market.price_bound(SOL, USDC, Side.SELL, amount)) * 1000

    missed = []
    for number in range(200):
        amount = LEAST + LEAST * (number % 40 + 1) // 41
        price = bound(amount) + (bound(LEAST) - bound(amount)) * (number // 40 + 1) / 7
        missed.append(OrderSpec(Side.SELL, amount, SOL, USDC, type=limit(price)))
    await submit(worker, *missed)
    least = OrderSpec(Side.SELL, LEAST, SOL, USDC)
    (met,) = await submit(worker, replace(least, type=limit(there_is(worker, least))))
    assert await worker.monitors[PRICE].tick() == [met.order_id]
    assert sum(pages) < 130


async def test_a_tick_that_looks_at_many_in_vain_leaves_the_others_to_the_next_one(
    worker: Worker, pages: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_TICK_SECONDS", 0.0)
    # There is a pool, and no pool holds as much as that.
    await submit(worker, *[OrderSpec(Side.BUY, 1 << 62, SOL, USDC, type=SniperOrder())] * 150)
    assert await worker.monitors[LIQUIDITY].tick() == []
    assert pages == [], "nobody looks for what cannot be"
    # As where it nearly does, and the bound does not tell.
    monkeypatch.setattr(worker.market, "price_bound", lambda *asked: 1.0)
    for _ in range(4):
        assert await worker.monitors[LIQUIDITY].tick() == []
    assert pages == [64, 64, 64, 64, 22, 64], "the first ones each time, then those after where it left off"
    # What was left off is nothing to the next crossing: the first that fire may lie before it.
    with monkeypatch.context() as gone:
        gone.setattr(worker.market, "price_bound", lambda *asked: 0.0)
        assert await worker.monitors[LIQUIDITY].tick() == []
    for _ in range(3):
        assert await worker.monitors[LIQUIDITY].tick() == []
    assert pages[6:] == [64, 64, 64, 64, 22]


async def test_an_order_that_asks_for_least_does_not_wait_for_many_that_are_looked_at_in_vain(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_TICK_SECONDS", 0.0)
    monkeypatch.setattr(worker.market, "price_bound", lambda *asked: 1e9)
    least = OrderSpec(Side.SELL, LEAST, SOL, USDC)
    price = there_is(worker, least)
    await submit(worker, *[replace(least, type=limit(price * Decimal("1.001")))] * 150)
    for _ in range(2):
        assert await worker.monitors[PRICE].tick() == []
        (met,) = await submit(worker, replace(least, type=limit(price)))
        assert await worker.monitors[PRICE].tick() == [met.order_id]


async def test_many_that_cross_fire_together_and_the_last_ones_are_met_by_what_is_left(
    worker: Worker,
) -> None:
    spec = OrderSpec(Side.SELL, 1 << 37, SOL, USDC)
    # Together they take the price down past what the later ones ask for.
    price = there_is(worker, replace(spec, amount=100 * spec.amount))
    orders = await submit(worker, *[replace(spec, type=limit(price))] * 200)
    fired = await worker.monitors[PRICE].tick()
    assert fired == [order.order_id for order in orders[: len(fired)]], "the oldest first"
    # A hundred of them would have that price on average, and the last of a hundred less.
    assert 20 < len(fired) < 100

    def part_of(amount: int) -> Decimal:
        route = worker.market.decide(replace(spec, amount=amount), 1, 50).route
        assert route is not None
        return Decimal(route.output_amount)

    for number, holds in ((len(fired), True), (len(fired) + 1, False)):
        share = part_of(number * spec.amount) - part_of((number - 1) * spec.amount)
        assert (share / spec.amount * 1000 >= price) is holds


async def test_a_pair_that_nobody_can_reckon_with_keeps_no_other_from_firing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reckon = worker.market.price_bound

    def fails_for_usdc(input_token: Token, *asked: Any) -> float:
        if input_token == USDC:
            raise ZeroDivisionError
        return reckon(input_token, *asked)

    monkeypatch.setattr(worker.market, "price_bound", fails_for_usdc)
    (order,) = await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=limit(Decimal(1))))
    await submit(worker, OrderSpec(Side.SELL, 10**9, USDC, SOL, type=limit(Decimal("0.0001"))))
    assert await worker.monitors[PRICE].tick() == [order.order_id]


async def test_an_order_that_cannot_be_reckoned_with_keeps_no_other_from_firing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = worker.market.decide

    def fails_for_some(spec: OrderSpec, *asked: Any) -> Any:
        if spec.amount % 10 == 7:
            raise ZeroDivisionError
        return decide(spec, *asked)

    monkeypatch.setattr(worker.market, "decide", fails_for_some)
    specs = [OrderSpec(Side.SELL, 10**9 + odd, SOL, USDC, type=limit(Decimal(1))) for odd in (0, 7, 20)]
    first, _, last = await submit(worker, *specs)
    assert await worker.monitors[PRICE].tick() == [first.order_id, last.order_id]


async def test_a_token_whose_pools_the_node_does_not_tell_of_delays_nobody(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = asyncio.Event(), asyncio.Event()

    async def slowly(*_: Any, **__: Any) -> Any:
        asked.set()
        await told.wait()
        raise RpcError("getProgramAccounts", -32012, "scan aborted")

    monkeypatch.setattr(worker.node, "program_accounts", slowly)
    await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, UNHEARD_OF, type=SniperOrder()))
    (order,) = await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=SniperOrder()))
    assert await worker.monitors[LIQUIDITY].tick() == [order.order_id]
    await asked.wait()
    told.set()
    with pytest.raises(NodeUnavailable, match="scan aborted"):
        await worker.market.learn((UNHEARD_OF,))


async def test_who_holds_no_lease_takes_nothing(worker: Worker) -> None:
    (order,) = await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=limit(Decimal(1))))
    worker.lease._owner, owner = 0, worker.lease._owner
    with pytest.raises(StoreUnavailable):
        await worker.executor.take([order.order_id])
    worker.lease._owner = owner


async def test_nothing_is_asked_of_groups_while_no_order_waits(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setattr(monitor, "_ASK_SECONDS", 0.05)
    async with worker_of(settings, simnet, wallet, monitors=True) as worker:
        kind, asked = TriggerKind.PRICE, list[list[RestingGroup]]()
        read = worker.store.resting_groups

        async def counted(kind: TriggerKind) -> list[RestingGroup]:
            asked.append(await read(kind))
            return asked[-1]

        await until(lambda: worker.monitors[kind].leads)
        monkeypatch.setattr(worker.store, "resting_groups", counted)
        for _ in range(3):
            assert await worker.store.take_monitor((kind, worker.lease.owner, 1.0)) == Lead(orders_wait=False)
        assert not asked
        (order,) = await submit(worker, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=limit(Decimal(10**6))))
        await until(lambda: len(asked) > 1)
        assert all(asked)
        assert await worker.store.take_monitor((kind, worker.lease.owner, 1.0)) == Lead(orders_wait=True)
        await worker.store.advance([apply(order, Cancelled(), RetryPolicy())])
        await until(lambda: not asked[-1])
        count = len(asked)
        await asyncio.sleep(0.3)
        assert len(asked) == count


async def test_who_ends_while_it_asks_for_the_lead_leaves_it_all_the_same(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    take = worker.store.take_monitor._perform

    async def slowly(items: list[Any]) -> Any:
        asked.set()
        await answered.wait()
        return await take(items)

    monkeypatch.setattr(worker.store.take_monitor, "_perform", slowly)
    running = asyncio.create_task(worker.monitors[PRICE].run())
    await asked.wait()
    running.cancel()
    ending = asyncio.create_task(worker.monitors[PRICE].end())
    await asyncio.sleep(0.05)
    answered.set()
    await ending
    rival = await worker.store.start_lease_owner(3600)
    assert await worker.store.take_monitor((PRICE, rival, 1.0)) is not None


async def test_who_ends_no_tick_leaves_the_lead_to_another(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setattr(monitor, "_STUCK_ASKS", 1)
    async with worker_of(settings, simnet, wallet, monitors=True) as stuck:
        kind = TriggerKind.PRICE
        await until(lambda: stuck.monitors[kind].leads)

        async def hangs(*_: Any) -> list[RestingGroup]:
            await asyncio.Event().wait()
            return []

        monkeypatch.setattr(stuck.store, "resting_groups", hangs)
        await submit(stuck, OrderSpec(Side.SELL, 10**9, SOL, USDC, type=limit(Decimal(10**6))))
        async with worker_of(settings, simnet, wallet, monitors=True) as other:
            await until(lambda: other.monitors[kind].leads)
            assert not stuck.monitors[kind].leads
