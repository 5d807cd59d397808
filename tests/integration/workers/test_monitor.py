"""Orders that wait for a price: fired when it is there, executed within their limit, put back when it has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from engine.domain.order import FailureReason, Order, OrderSpec, OrderStatus, Side
from engine.domain.order_types import LimitOrder, TriggerKind
from engine.domain.tokens import SOL, USDC
from engine.settings import Settings
from engine.solana.transactions import Wallet
from tests.integration.engine.storage.records import new_order
from tests.integration.workers.executing import Simnet, Worker, worker_of

S = OrderStatus
HAPPY = [S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED, S.CONFIRMED]


@pytest.fixture(scope="module")
async def simnet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simnet]:
    simnet = Simnet(tmp_path_factory.mktemp("simnet"))
    try:
        yield await simnet.start()
    finally:
        await simnet.kill()


@pytest.fixture(scope="module")
async def wallet(simnet: Simnet) -> Wallet:
    return await simnet.make_wallet()


@pytest.fixture
async def worker(settings: Settings, simnet: Simnet, wallet: Wallet) -> AsyncIterator[Worker]:
    async with worker_of(settings, simnet, wallet, retry_base_seconds=0.0) as worker:
        yield worker


async def submit(worker: Worker, spec: OrderSpec) -> Order:
    return (await worker.store.submit(replace(new_order(), spec=spec))).order


def price_of(worker: Worker, spec: OrderSpec) -> Decimal:
    """What the whole amount would be filled at now, in whole tokens."""
    route = worker.market.decide(spec, 1, 50).route
    assert route is not None
    scale = Decimal(10) ** (spec.input_token.decimals - spec.output_token.decimals)
    return Decimal(route.output_amount) / Decimal(route.input_amount) * scale


def limit(worker: Worker, side: Side, amount: int, percent: int) -> OrderSpec:
    """A SOL/USDC order whose limit is so many per cent above what there is now."""
    spec = OrderSpec(side, amount, SOL, USDC)
    price = (price_of(worker, spec) * (100 + percent) / 100).quantize(Decimal("1e-9"))
    return replace(spec, type=LimitOrder(price))


async def statuses(worker: Worker, order: Order) -> list[OrderStatus]:
    return [event.status for event in await worker.events(order.order_id)]


@pytest.mark.parametrize("side", Side)
async def test_an_order_rests_until_the_price_is_there_for_its_whole_amount(
    side: Side, worker: Worker, simnet: Simnet
) -> None:
    spec = limit(worker, side, 10**9, 5)
    order = await submit(worker, spec)
    monitor = worker.monitors[TriggerKind.PRICE]
    assert await monitor.tick() == []
    assert await worker.store.due_orders(10, 0.0) == []
    await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": 700})
    await worker.market.next_refresh()
    await worker.market.next_refresh()
    assert await monitor.tick() == [order.order_id]
    closed = await worker.closed(order.order_id)
    assert closed.status is S.CONFIRMED
    assert await statuses(worker, order) == HAPPY
    limit_amount = spec.type.limit_amount(spec)
    assert limit_amount is not None
    assert closed.input_amount is not None
    assert closed.output_amount is not None
    if side is Side.SELL:
        assert closed.output_amount >= limit_amount
    else:
        assert closed.input_amount <= limit_amount
    await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": -650})
