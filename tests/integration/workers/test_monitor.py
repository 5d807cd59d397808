"""Orders that wait for a price: fired when it is there, filled within it, put back when it has gone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import psycopg
import pytest

from engine.domain.lifecycle import Cancelled
from engine.domain.order import FailureReason, Order, OrderSpec, OrderStatus, Side
from engine.domain.order_types import LimitOrder, TriggerKind
from engine.domain.tokens import SOL, USDC
from engine.settings import Settings
from engine.solana.transactions import Wallet
from tests.integration.engine.storage.records import new_order, transitions
from tests.integration.workers.executing import Worker, worker_of
from tests.simnet_process import Simnet

S = OrderStatus
HAPPY = [S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED, S.CONFIRMED]


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


async def move(worker: Worker, simnet: Simnet, bps: int) -> None:
    """Move the price of SOL, and return when the worker has seen it."""
    await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": bps})
    # The refresh under way may have begun before.
    for _ in range(2):
        await worker.market.next_refresh()


@pytest.mark.parametrize("side", Side)
async def test_an_order_rests_until_the_price_is_there_for_its_whole_amount(
    side: Side, worker: Worker, simnet: Simnet
) -> None:
    spec = limit(worker, side, 10**9, 5)
    order = await submit(worker, spec)
    monitor = worker.monitors[TriggerKind.PRICE]
    assert await monitor.tick() == []
    assert await worker.store.due_orders(10, 0.0) == []
    await move(worker, simnet, 700)
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
    await move(worker, simnet, -650)


async def test_orders_fire_as_far_as_what_is_there_lasts_oldest_first(worker: Worker, simnet: Simnet) -> None:
    asked = limit(worker, Side.SELL, 400 * 10**9, 0)
    # A little below what one of them would get, far above what all of them would.
    price = asked.type.limit_price * Decimal("0.999")  # type: ignore[attr-defined]
    spec = replace(asked, type=LimitOrder(price.quantize(Decimal("1e-9"))))
    orders = [await submit(worker, spec) for _ in range(8)]
    fired = await worker.monitors[TriggerKind.PRICE].tick()
    assert 0 < len(fired) < len(orders)
    assert fired == [order.order_id for order in orders[: len(fired)]]
    for order in orders[: len(fired)]:
        assert (await worker.closed(order.order_id)).status is S.CONFIRMED
    for order in orders[len(fired) :]:
        assert await worker.store.advance(transitions(order, Cancelled())) is not None


# ---- When it has gone again --------------------------------------------------------------------------


async def test_an_order_that_was_fired_too_late_waits_again(worker: Worker, simnet: Simnet) -> None:
    spec = limit(worker, Side.SELL, 10**9, 1)
    order = await submit(worker, spec)
    assert await worker.store.fire(TriggerKind.PRICE, [order]) == [order.order_id]
    await worker.executor.take([order.order_id])
    waiting = await worker.until(order.order_id, lambda now: now.status is S.PENDING and now.sequence == 3)
    assert await statuses(worker, order) == [S.PENDING, S.ROUTING, S.PENDING]
    assert (waiting.attempt, waiting.failure_reason) == (1, None)
    assert waiting.failure_message is not None
    assert "the limit is" in waiting.failure_message
    assert await worker.store.due_orders(10, 0.0) == []
    assert await worker.monitors[TriggerKind.PRICE].tick() == []
    await move(worker, simnet, 300)
    assert await worker.monitors[TriggerKind.PRICE].tick() == [order.order_id]
    assert (await worker.closed(order.order_id)).status is S.CONFIRMED
    await move(worker, simnet, -290)


async def test_a_swap_that_the_market_overtook_is_never_worse_than_the_limit_and_costs_no_attempt(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet, max_attempts=1, retry_base_seconds=0.0) as worker:
        order = await submit(worker, limit(worker, Side.SELL, 10**9, -1))
        async with simnet.paused():
            assert await worker.monitors[TriggerKind.PRICE].tick() == [order.order_id]
            await worker.until(order.order_id, lambda now: now.status is S.SUBMITTED)
            # What was signed for lands at a price beyond its limit.
            await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": -400})
        waiting = await worker.until(order.order_id, lambda now: now.status is S.PENDING and now.sequence > 1)
        assert await statuses(worker, order) == [S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED, S.PENDING]
        assert waiting.failure_reason is FailureReason.SLIPPAGE_EXCEEDED
        assert (waiting.attempt, waiting.forgiven_attempts) == (2, 1)
        assert await worker.monitors[TriggerKind.PRICE].tick() == []
        await move(worker, simnet, 450)
        assert await worker.monitors[TriggerKind.PRICE].tick() == [order.order_id]
        closed = await worker.closed(order.order_id)
        assert (closed.status, closed.attempt) == (S.CONFIRMED, 2)
        assert len(await simnet.landed(order.order_id)) == 2
        assert await simnet.executions(order.order_id) == [f"{order.order_id}:2"]
        await move(worker, simnet, -30)


async def test_a_swap_that_reverted_while_the_databases_clock_was_ahead_is_tried_again(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with (
        worker_of(settings, simnet, wallet, retry_base_seconds=1800.0, retry_cap_seconds=3600.0) as worker,
        await psycopg.AsyncConnection.connect(settings.database, autocommit=True) as by_hand,
    ):
        order = await submit(worker, limit(worker, Side.SELL, 10**9, -1))
        async with simnet.paused():
            assert await worker.monitors[TriggerKind.PRICE].tick() == [order.order_id]
            await worker.until(order.order_id, lambda now: now.status is S.SUBMITTED)
            await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": -400})
        await worker.until(order.order_id, lambda now: now.status is S.PENDING and now.sequence > 1)
        await move(worker, simnet, 450)
        assert await worker.monitors[TriggerKind.PRICE].tick() == [], "it rests for half an hour"
        ahead = "UPDATE orders SET update_time = update_time + interval '2 h' WHERE order_id = %s"
        await by_hand.execute(ahead, [order.order_id])
        assert await worker.monitors[TriggerKind.PRICE].tick() == [order.order_id]
        assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        await move(worker, simnet, -30)


# ---- Ending while it waits -----------------------------------------------------------------------------


async def test_a_resting_order_expires_on_time(settings: Settings, simnet: Simnet, wallet: Wallet) -> None:
    async with worker_of(settings, simnet, wallet, sweeps=True, monitors=True) as worker:
        spec = limit(worker, Side.SELL, 10**9, 5)
        expire_time = worker.store.now() + timedelta(seconds=0.5)
        order = await submit(worker, replace(spec, expire_time=expire_time))
        closed = await worker.closed(order.order_id)
        assert closed.status is S.EXPIRED
        assert closed.update_time is not None
        assert closed.update_time >= expire_time
        assert await statuses(worker, order) == [S.PENDING, S.EXPIRED]


async def test_a_resting_order_that_was_cancelled_is_never_fired(worker: Worker, simnet: Simnet) -> None:
    order = await submit(worker, limit(worker, Side.SELL, 10**9, -1))
    assert await worker.store.advance(transitions(order, Cancelled())) is not None
    assert await worker.store.fire(TriggerKind.PRICE, [order]) == []
    assert await worker.monitors[TriggerKind.PRICE].tick() == []
    assert await worker.executor.take([order.order_id]) == 0
    assert await statuses(worker, order) == [S.PENDING, S.CANCELLED]
    assert await simnet.landed(order.order_id) == []


# ---- By itself -----------------------------------------------------------------------------------------


async def test_monitors_follow_the_price_by_themselves_and_one_of_two_workers_fires(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with (
        worker_of(settings, simnet, wallet, sweeps=True, monitors=True) as one,
        worker_of(settings, simnet, wallet, sweeps=True, monitors=True) as other,
    ):
        order = await submit(one, limit(one, Side.SELL, 10**9, 2))
        await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": 400})
        assert (await one.closed(order.order_id)).status is S.CONFIRMED
        assert await statuses(other, order) == HAPPY
        await move(one, simnet, -380)
