"""Orders for tokens that are not to be had yet: fired when a pool opens or holds enough, else put back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from engine.domain.order import Order, OrderSpec, OrderStatus, Side
from engine.domain.order_types import LimitOrder, SniperOrder, TriggerKind
from engine.domain.tokens import SOL, Token, token_of_mint
from engine.settings import Settings
from engine.solana.transactions import Wallet
from tests.integration.engine.storage.records import new_order
from tests.integration.workers.executing import Worker, worker_of
from tests.simnet_process import Simnet, running_simnet

S = OrderStatus
HAPPY = [S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED, S.CONFIRMED]
ONE_SOL = 10**9
FAR = 1_000_000
"""Slots until a pool opens that does not open in a test."""


@pytest.fixture(scope="module")
async def simnet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simnet]:
    # Slots as long as on the real network: what takes two of them there takes two here.
    async with running_simnet(tmp_path_factory.mktemp("simnet"), SIMNET_SLOT_MS="400") as simnet:
        yield simnet


@pytest.fixture
async def worker(settings: Settings, simnet: Simnet, wallet: Wallet) -> AsyncIterator[Worker]:
    async with worker_of(settings, simnet, wallet, sweeps=True, monitors=True) as worker:
        yield worker


async def launched(simnet: Simnet, *, slots: int, **asked: Any) -> tuple[dict[str, Any], Token]:
    """A token whose pool opens so many slots from now, with 20 SOL unless asked for otherwise."""
    launch = await simnet.ask(
        "simnet_launch",
        {"quote": "SOL", "quoteAmount": 20 * ONE_SOL, "price": 0.0001, "slots": slots} | asked,
    )
    return launch, token_of_mint(launch["mint"], launch["decimals"])


async def submit(worker: Worker, token: Token, order_type: SniperOrder | LimitOrder, **asked: Any) -> Order:
    spec = replace(OrderSpec(Side.SELL, ONE_SOL, SOL, token, type=order_type), **asked)
    return (await worker.store.submit(replace(new_order(), spec=spec))).order


async def statuses(worker: Worker, order: Order) -> list[OrderStatus]:
    return [event.status for event in await worker.events(order.order_id)]


async def looked_at(worker: Worker) -> None:
    """Return when the monitors have looked at what rests, with the market as it is now."""
    for _ in range(3):
        await worker.market.next_refresh()


@pytest.mark.parametrize("kind", ["raydium_cpmm", "raydium_amm_v4", "meteora_damm_v2"])
async def test_an_order_is_broadcast_at_most_two_slots_after_the_pool_opens(
    kind: str, worker: Worker, simnet: Simnet
) -> None:
    launch, token = await launched(simnet, slots=6, kind=kind)
    order = await submit(worker, token, SniperOrder())
    closed = await worker.closed(order.order_id)
    assert closed.status is S.CONFIRMED
    assert await statuses(worker, order) == HAPPY
    (landed,) = await simnet.landed(order.order_id)
    # What is broadcast in a slot lands in the next one.
    assert landed["slot"] - 1 - launch["slot"] <= 2


async def test_an_order_waits_until_the_pools_hold_enough_together(worker: Worker, simnet: Simnet) -> None:
    launch, token = await launched(simnet, slots=0)
    order = await submit(worker, token, SniperOrder(min_liquidity=50 * ONE_SOL))
    await looked_at(worker)
    assert await statuses(worker, order) == [S.PENDING]
    # A second pool of another venue; together they hold one unit less than is asked for.
    await launched(
        simnet, slots=0, mint=token.mint, kind="meteora_damm_v2", quoteAmount=30 * ONE_SOL - 1, price=0.0001
    )
    await looked_at(worker)
    held = worker.market.liquidity(SOL, token)
    assert await statuses(worker, order) == [S.PENDING]
    assert 49 * ONE_SOL < held < 50 * ONE_SOL
    await simnet.ask("simnet_liquidity", {"pool": launch["pool"], "quoteAmount": 21 * ONE_SOL})
    assert (await worker.closed(order.order_id)).status is S.CONFIRMED
    assert await statuses(worker, order) == HAPPY


async def test_a_token_that_costs_more_than_max_price_is_not_bought(worker: Worker, simnet: Simnet) -> None:
    launch, token = await launched(simnet, slots=0)
    # The pool asks 0.0001 SOL and its fee; one SOL among 20 moves the price by a tenth.
    order = await submit(worker, token, SniperOrder(max_price=Decimal("0.000105")))
    await looked_at(worker)
    assert await statuses(worker, order) == [S.PENDING]
    await simnet.ask("simnet_liquidity", {"pool": launch["pool"], "quoteAmount": 200 * ONE_SOL})
    closed = await worker.closed(order.order_id)
    assert closed.status is S.CONFIRMED
    assert closed.output_amount is not None
    assert closed.output_amount * 105 >= 10**6 * 10**token.decimals


async def test_exactly_so_many_of_a_new_token_are_bought(worker: Worker, simnet: Simnet) -> None:
    _, token = await launched(simnet, slots=4)
    wanted = 1_000 * 10**token.decimals
    order = await submit(worker, token, SniperOrder(), side=Side.BUY, amount=wanted)
    closed = await worker.closed(order.order_id)
    assert (closed.status, closed.output_amount) == (S.CONFIRMED, wanted)


async def test_what_was_sniped_is_sold_again_by_a_limit_order(worker: Worker, simnet: Simnet) -> None:
    launch, token = await launched(simnet, slots=3)
    bought = await worker.closed((await submit(worker, token, SniperOrder())).order_id)
    assert bought.output_amount is not None
    order = await submit(
        worker, SOL, LimitOrder(Decimal("0.00015")), input_token=token, amount=bought.output_amount
    )
    await looked_at(worker)
    assert await statuses(worker, order) == [S.PENDING]
    await simnet.ask("simnet_move_price", {"pool": launch["pool"], "bps": 9_000})
    closed = await worker.closed(order.order_id)
    assert closed.status is S.CONFIRMED
    assert closed.output_amount is not None
    assert closed.output_amount > ONE_SOL


async def test_a_worker_that_never_heard_of_the_token_executes_its_order_too(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    _, token = await launched(simnet, slots=0)
    async with worker_of(settings, simnet, wallet) as worker:
        order = await submit(worker, token, SniperOrder())
        assert await worker.store.fire(TriggerKind.LIQUIDITY, [order]) == [order.order_id]
        assert await worker.executor.take([order.order_id]) == 1
        assert (await worker.closed(order.order_id)).status is S.CONFIRMED


async def test_an_order_for_a_pool_that_does_not_open_rests_and_is_asked_for_once_a_slot(
    worker: Worker, simnet: Simnet
) -> None:
    _, token = await launched(simnet, slots=FAR)
    order = await submit(worker, token, SniperOrder())
    await looked_at(worker)
    assert await statuses(worker, order) == [S.PENDING]
    assert worker.market.liquidity(SOL, token) == 0
    assert worker.market.price_bound(SOL, token, Side.SELL, ONE_SOL) == 0.0
