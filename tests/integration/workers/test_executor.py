"""Orders carried from the record to the chain and back: a worker, PostgreSQL and a simnet process."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Never
from uuid import UUID

import psycopg
import pytest

from engine.coalesce import Coalescer
from engine.domain.errors import NodeUnavailable, StoreUnavailable
from engine.domain.lifecycle import CANCELLABLE, Cancelled, Transition
from engine.domain.order import FailureReason, Order, OrderSpec, OrderStatus, RoutingDecision, Side
from engine.domain.order_types import LimitOrder
from engine.domain.tokens import JUP, SOL, USDC, USDT, Token
from engine.market import Market
from engine.settings import Settings
from engine.solana.transactions import Wallet
from engine.storage.postgres import Claim, Store, Submitted
from tests.integration.engine.storage.records import advance, new_order, transitions
from tests.integration.engine.storage.refusing import refusing_once
from tests.integration.workers.executing import Worker, worker_of
from tests.simnet_process import Simnet

S = OrderStatus
R = FailureReason
Until = Callable[..., Awaitable[None]]
HAPPY = [S.PENDING, S.ROUTING, S.BUILDING, S.SUBMITTED, S.CONFIRMED]


@pytest.fixture(scope="module")
def settings(shared_database: Settings, valkey: Settings) -> Settings:
    return replace(
        shared_database,
        redis_host=valkey.redis_host,
        redis_port=valkey.redis_port,
        redis_password=valkey.redis_password,
    )


@pytest.fixture
async def by_hand(shared_database: Settings) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(shared_database.database, autocommit=True) as connection:
        yield connection


async def submit(store: Store, **asked: object) -> Order:
    return (await store.submit(new_order(**asked))).order  # type: ignore[arg-type]


async def execute(worker: Worker, order: Order) -> Order:
    assert await worker.executor.take([order.order_id]) == 1
    return await worker.closed(order.order_id)


async def statuses(worker: Worker, order_id: UUID) -> list[OrderStatus]:
    return [event.status for event in await worker.events(order_id)]


# ---- What goes well --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        OrderSpec(Side.SELL, 1_500_000_000, SOL, USDC),
        OrderSpec(Side.BUY, 25_000_000, SOL, USDC),
        OrderSpec(Side.SELL, 25_000_000, USDC, SOL),
        OrderSpec(Side.BUY, 10**9, USDC, SOL),
    ],
    ids=lambda spec: f"{spec.side}-{spec.input_token.symbol}",
)
async def test_an_order_goes_its_way_to_the_chain_once(
    spec: OrderSpec, worker: Worker, simnet: Simnet
) -> None:
    order = (await worker.store.submit(replace(new_order(), spec=spec))).order
    closed = await execute(worker, order)
    assert closed.status is S.CONFIRMED
    assert await statuses(worker, order.order_id) == HAPPY
    (landed,) = await simnet.landed(order.order_id)
    assert (landed["signature"], landed["memo"]) == (closed.tx_hash, f"{order.order_id}:1")
    # What the record says was exchanged is what the ledger says the pools took and gave.
    wallet = str(worker.wallet.pubkey)
    pools = {
        amount["mint"]: int(amount["change"]) for amount in landed["amounts"] if amount["owner"] != wallet
    }
    assert (closed.input_amount, closed.output_amount) == (
        pools[spec.input_token.mint],
        -pools[spec.output_token.mint],
    )
    assert spec.amount == (closed.input_amount if spec.side is Side.SELL else closed.output_amount)
    (decision,) = await worker.decisions(order.order_id)
    assert {quote.venue for quote in decision.quotes} == {"Raydium", "Meteora"}
    assert decision.route is not None
    assert decision.route.venue == closed.venue


async def test_what_an_order_does_is_told_with_its_hints_as_it_is_on_record(
    worker: Worker, until: Until
) -> None:
    submitted = await worker.store.submit(new_order())
    assert isinstance(submitted, Submitted)
    order_id = submitted.order.order_id
    await worker.executor.take([order_id])
    await until(lambda: len(worker.told) == 4)
    _pending, *others = await worker.store.events_after((order_id, 0))
    assert worker.told == others
    assert others[1].route is not None


@pytest.mark.parametrize(
    ("spec", "venues"),
    [
        (OrderSpec(Side.SELL, 800 * 10**9, SOL, USDC), "several pools"),
        (OrderSpec(Side.BUY, 60_000 * 10**6, SOL, USDC), "several pools"),
        (OrderSpec(Side.SELL, 50 * 10**6, USDT, JUP), "two hops"),
        (OrderSpec(Side.BUY, 50 * 10**6, USDT, JUP), "two hops"),
    ],
    ids=lambda value: f"{value.side}-{value.input_token.symbol}" if isinstance(value, OrderSpec) else value,
)
async def test_an_order_of_several_legs_is_one_transaction_and_realised_as_quoted(
    spec: OrderSpec, venues: str, worker: Worker, simnet: Simnet
) -> None:
    await simnet.fund(worker.wallet, USDT, 10**9)
    while worker.market.wallet_balance(USDT) < 10**9:
        await worker.market.next_refresh()
    order = (await worker.store.submit(replace(new_order(), spec=spec))).order
    closed = await execute(worker, order)
    assert closed.status is S.CONFIRMED
    assert await statuses(worker, order.order_id) == HAPPY
    (decision,) = await worker.decisions(order.order_id)
    route = decision.route
    assert route is not None
    assert len(route.legs) > 1
    assert (route.middle_token is not None) is (venues == "two hops")
    assert (closed.input_amount, closed.output_amount) == (route.input_amount, route.output_amount)
    (landed,) = await simnet.landed(order.order_id)
    wallet = str(worker.wallet.pubkey)
    changes: dict[str, int] = {}
    for amount in landed["amounts"]:
        if amount["owner"] != wallet:
            changes[amount["mint"]] = changes.get(amount["mint"], 0) + int(amount["change"])
    assert changes[spec.input_token.mint] == closed.input_amount
    assert -changes[spec.output_token.mint] == closed.output_amount
    # A watcher is told the legs with the event that says so, and with no other.
    events = await worker.store.events_after((order.order_id, 0))
    told = [(watched.event.status, watched.route) for watched in events]
    assert told == [(status, route if status is S.BUILDING else None) for status in HAPPY]


async def test_many_orders_are_carried_at_once(worker: Worker, simnet: Simnet) -> None:
    orders = [await submit(worker.store, amount=10_000_000) for _ in range(40)]
    order_ids = [order.order_id for order in orders]
    # Offered more than once, as a queue does.
    taken = await asyncio.gather(*(worker.executor.take(order_ids) for _ in range(3)))
    assert sum(taken) == 40
    for order_id in order_ids:
        assert (await worker.closed(order_id)).status is S.CONFIRMED
        assert await simnet.executions(order_id) == [f"{order_id}:1"]
    await worker.executor.wait_idle()
    assert worker.executor.room == Settings().max_in_flight


async def test_orders_of_one_moment_do_not_have_each_other_reverted(worker: Worker) -> None:
    # Together they move any pool's price by more than the slippage that each allows.
    orders = [await submit(worker.store, amount=20 * 10**9) for _ in range(60)]
    assert await worker.executor.take([order.order_id for order in orders]) == 60
    for order in orders:
        closed = await worker.closed(order.order_id)
        assert (closed.status, closed.attempt) == (S.CONFIRMED, 1), closed.failure_message


# ---- What cannot be done ---------------------------------------------------------------------------


async def test_an_order_the_wallet_cannot_fund_fails_and_sends_nothing(
    settings: Settings, simnet: Simnet
) -> None:
    poor = await simnet.make_wallet({SOL: 10**9})
    async with worker_of(settings, simnet, poor) as worker:
        closed = await execute(worker, await submit(worker.store))
        events = await worker.events(closed.order_id)
        assert [event.status for event in events] == [S.PENDING, S.ROUTING, S.BUILDING, S.FAILED]
        assert closed.failure_reason is R.INSUFFICIENT_FUNDS
        assert str(closed.failure_message).startswith("needs 1.5 SOL, the wallet has 0.9")
        assert await simnet.landed(closed.order_id) == []


@pytest.mark.parametrize("lamports", [5_000, 890_880])
async def test_an_order_whose_fee_the_wallet_cannot_pay_fails_and_sends_nothing(
    lamports: int, settings: Settings, simnet: Simnet
) -> None:
    poor = await simnet.make_wallet({USDC: 10**9})
    await simnet.fund(poor, SOL, lamports)
    async with worker_of(settings, simnet, poor) as worker:
        closed = await execute(worker, await submit(worker.store, tokens=(USDC, SOL), amount=10**6))
        assert (closed.status, closed.attempt) == (S.FAILED, 1)
        assert closed.failure_reason is R.INSUFFICIENT_FUNDS
        why = r"needs 0\.000896\d* SOL for the network's fee and its own rent, the wallet has 0\.00\d+"
        assert re.fullmatch(why, str(closed.failure_message))
        assert await simnet.landed(closed.order_id) == []


async def test_an_order_without_a_route_is_retried_with_backoff_and_fails_after_the_last(
    settings: Settings, simnet: Simnet, wallet: Wallet, by_hand: psycopg.AsyncConnection
) -> None:
    async with worker_of(settings, simnet, wallet, sweeps=True, jitter=lambda: 0.9) as worker:
        order = await submit(worker.store, side=Side.BUY, amount=2**63)
        closed = await worker.closed(order.order_id)
        events = await worker.events(order.order_id)
        assert [(event.status, event.attempt, event.failure_reason) for event in events] == [
            (S.PENDING, 1, None),
            (S.ROUTING, 1, None),
            (S.ROUTING, 2, R.NO_ROUTE),
            (S.ROUTING, 3, R.NO_ROUTE),
            (S.FAILED, 3, R.NO_ROUTE),
        ]
        assert closed.failure_message == events[2].failure_message
        assert closed.failure_message
        # 0.9 of 0.1 s, then of twice that: PostgreSQL's clock is the only judge.
        waited = [
            (after.create_time - before.create_time).total_seconds()
            for before, after in pairwise(events[2:])
            if after.create_time and before.create_time
        ]
        assert waited[0] >= 0.09
        assert waited[1] >= 0.18
        decisions = await worker.decisions(order.order_id)
        assert [(decision.attempt, decision.route) for decision in decisions] == [
            (n, None) for n in (1, 2, 3)
        ]


async def test_a_revert_for_slippage_is_a_second_attempt(worker: Worker, simnet: Simnet) -> None:
    order = await submit(worker.store)
    async with simnet.paused():
        await worker.executor.take([order.order_id])
        await worker.until(order.order_id, lambda order: order.status is S.SUBMITTED)
        # It is on its way; the price moves by more than the half percent it allows.
        await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": -500, "hold": True})
    closed = await worker.closed(order.order_id)
    events = await worker.events(order.order_id)
    assert [(event.status, event.attempt, event.failure_reason) for event in events[3:]] == [
        (S.SUBMITTED, 1, None),
        (S.ROUTING, 2, R.SLIPPAGE_EXCEEDED),
        (S.BUILDING, 2, None),
        (S.SUBMITTED, 2, None),
        (S.CONFIRMED, 2, None),
    ]
    assert closed.status is S.CONFIRMED
    reverted, landed = await simnet.landed(order.order_id)
    assert (reverted["memo"], landed["memo"]) == (f"{order.order_id}:1", f"{order.order_id}:2")
    assert (reverted["err"] is None, landed["err"]) == (False, None)
    assert events[3].tx_hash == reverted["signature"] != closed.tx_hash


async def test_reverts_use_the_attempts_up(settings: Settings, simnet: Simnet, wallet: Wallet) -> None:
    async with (
        simnet.faults(revert=1.0),
        worker_of(settings, simnet, wallet, sweeps=True, max_attempts=2, retry_base_seconds=0.01) as worker,
    ):
        closed = await worker.closed((await submit(worker.store)).order_id)
        assert (closed.status, closed.attempt, closed.failure_reason) == (S.FAILED, 2, R.SLIPPAGE_EXCEEDED)
        assert await simnet.executions(closed.order_id) == []
        assert len(await simnet.landed(closed.order_id)) == 2


# ---- A network that loses things -------------------------------------------------------------------


async def test_a_transaction_that_was_dropped_is_sent_again_as_it_is(worker: Worker, simnet: Simnet) -> None:
    order = await submit(worker.store)
    async with simnet.faults(drop=1.0):
        await worker.executor.take([order.order_id])
        submitted = await worker.until(order.order_id, lambda order: order.status is S.SUBMITTED)
        # Slots pass: it has had its chance.
        await simnet.ask("simnet_advance", {"slots": 10})
        assert await simnet.landed(order.order_id) == []
    closed = await worker.closed(order.order_id)
    assert (closed.status, closed.attempt, closed.tx_hash) == (S.CONFIRMED, 1, submitted.tx_hash)
    assert await statuses(worker, order.order_id) == HAPPY


async def test_a_transaction_dropped_for_good_is_given_up_on_proof_and_made_anew(
    worker: Worker, simnet: Simnet
) -> None:
    order = await submit(worker.store)
    async with simnet.faults(drop=1.0):
        await worker.executor.take([order.order_id])
        submitted = await worker.until(order.order_id, lambda order: order.status is S.SUBMITTED)
        attempt = submitted.open_attempt
        assert attempt is not None
        # Its blockhash was of a slot shortly before, so 140 blocks later it may still land.
        await simnet.ask("simnet_advance", {"slots": 100})
        assert (await worker.store.get(order.order_id)) == submitted
        await simnet.ask("simnet_advance", {"slots": 60})
        await worker.until(order.order_id, lambda order: order.attempt == 2)
        finalized = await worker.node.position("finalized")
        assert finalized.block_height > attempt.last_valid_block_height
    closed = await worker.closed(order.order_id)
    told = (await worker.events(order.order_id))[4]
    assert (told.status, told.attempt, told.failure_reason) == (S.ROUTING, 2, R.TRANSACTION_EXPIRED)
    assert (closed.status, closed.attempt) == (S.CONFIRMED, 2)
    assert closed.tx_hash != attempt.tx_hash
    assert await simnet.executions(order.order_id) == [f"{order.order_id}:2"]


async def test_an_error_after_the_node_accepted_is_no_failure(worker: Worker, simnet: Simnet) -> None:
    async with simnet.faults(error=1.0):
        closed = await execute(worker, await submit(worker.store))
    assert (closed.status, closed.attempt) == (S.CONFIRMED, 1)
    assert await simnet.executions(closed.order_id) == [f"{closed.order_id}:1"]


async def test_a_status_that_lags_is_waited_for(worker: Worker, simnet: Simnet) -> None:
    async with simnet.faults(status_lag=1.0):
        closed = await execute(worker, await submit(worker.store))
    assert (closed.status, closed.attempt) == (S.CONFIRMED, 1)


async def test_while_the_node_is_away_orders_rest_and_use_up_no_attempt(
    settings: Settings, simnet: Simnet, wallet: Wallet, by_hand: psycopg.AsyncConnection
) -> None:
    async with worker_of(settings, simnet, wallet, has_node=False) as cut_off:
        order = await submit(cut_off.store)
        assert await cut_off.executor.take([order.order_id]) == 1
        await cut_off.executor.wait_idle()
        cursor = await by_hand.execute(
            "SELECT status::text, attempt, sequence, lease_owner, due_time > update_time FROM orders"
            " WHERE order_id = %s",
            [order.order_id],
        )
        assert await cursor.fetchone() == ("routing", 1, 2, None, True)
    async with worker_of(settings, simnet, wallet, sweeps=True) as worker:
        closed = await worker.closed(order.order_id)
        assert (closed.status, closed.attempt) == (S.CONFIRMED, 1)
        assert await statuses(worker, order.order_id) == HAPPY


async def test_a_defect_of_ours_ends_the_order_it_comes_up_for(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decide = worker.market.decide

    def broken_for_some(spec: OrderSpec, attempt: int, slippage_bps: int) -> RoutingDecision:
        if spec.amount == 13:
            raise ArithmeticError("two and two is five")
        return decide(spec, attempt, slippage_bps)

    monkeypatch.setattr(worker.market, "decide", broken_for_some)
    orders = [await submit(worker.store, amount=amount) for amount in (10_000_000, 13, 10_000_001)]
    await worker.executor.take(order.order_id for order in orders)
    ends = [await worker.closed(order.order_id) for order in orders]
    assert [(end.status, end.failure_reason) for end in ends] == [
        (S.CONFIRMED, None),
        (S.FAILED, R.INTERNAL),
        (S.CONFIRMED, None),
    ]
    assert ends[1].failure_message == "internal error"
    (record,) = [record for record in caplog.records if record.message == "unexpected error"]
    assert record.__dict__["order_id"] == orders[1].order_id
    assert worker.executor.room == Settings().max_in_flight


async def test_a_database_that_takes_no_writes_for_a_moment_ends_no_order(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet, sweeps=True) as worker:
        order = await submit(worker.store)
        async with refusing_once(settings, "25006", "submitted"):
            closed = await worker.closed(order.order_id)
    assert (closed.status, closed.attempt) == (S.CONFIRMED, 1)
    assert await simnet.executions(order.order_id) == [f"{order.order_id}:1"]


async def test_a_defect_while_a_transaction_is_out_does_not_end_the_order(
    worker: Worker, simnet: Simnet, monkeypatch: pytest.MonkeyPatch, by_hand: psycopg.AsyncConnection
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("two and two is five")

    order = await submit(worker.store)
    with monkeypatch.context() as defect:
        defect.setattr("workers.settlement.Settlement.settle", broken)
        await worker.executor.take([order.order_id])
        await worker.executor.wait_idle()
    found = await worker.store.get(order.order_id)
    assert found is not None
    assert found.status is S.SUBMITTED
    assert await worker.executor.take([order.order_id]) == 0, "it rests"
    await by_hand.execute("UPDATE orders SET due_time = now() WHERE order_id = %s", [order.order_id])
    closed = await execute(worker, order)
    assert (closed.status, closed.tx_hash) == (S.CONFIRMED, found.tx_hash)


# ---- Time and cancels ------------------------------------------------------------------------------


async def test_an_order_past_its_expire_time_is_expired_and_nothing_is_sent(
    worker: Worker, simnet: Simnet
) -> None:
    order = await submit(worker.store, expire_time=datetime.now(UTC) - timedelta(seconds=1))
    closed = await execute(worker, order)
    assert (closed.status, closed.failure_reason) == (S.EXPIRED, None)
    assert await statuses(worker, order.order_id) == [S.PENDING, S.EXPIRED]
    assert await simnet.landed(order.order_id) == []


async def test_an_order_expires_between_its_attempts(
    settings: Settings,
    simnet: Simnet,
    wallet: Wallet,
    by_hand: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with worker_of(settings, simnet, wallet, retry_base_seconds=10.0) as worker:
        expire_time = datetime.now(UTC) + timedelta(days=1)
        order = await submit(worker.store, side=Side.BUY, amount=2**63, expire_time=expire_time)
        await worker.executor.take([order.order_id])
        await worker.executor.wait_idle()
        assert await statuses(worker, order.order_id) == [S.PENDING, S.ROUTING, S.ROUTING]
        await by_hand.execute("UPDATE orders SET due_time = now() WHERE order_id = %s", [order.order_id])
        monkeypatch.setattr(worker.store, "now", lambda: expire_time)
        closed = await execute(worker, order)
        # Why the attempt before did not succeed is not why it closed.
        assert (closed.status, closed.failure_reason) == (S.EXPIRED, None)
        assert await simnet.landed(order.order_id) == []


async def test_an_order_that_expires_while_the_node_is_asked_is_not_sent(
    worker: Worker, simnet: Simnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire_time = datetime.now(UTC) + timedelta(days=1)

    async def take_a_day() -> None:
        monkeypatch.setattr(worker.store, "now", lambda: expire_time)

    monkeypatch.setattr(worker.market, "wake", take_a_day)
    order = await submit(worker.store, expire_time=expire_time)
    assert (await execute(worker, order)).status is S.EXPIRED
    assert await statuses(worker, order.order_id) == [S.PENDING, S.ROUTING, S.EXPIRED]
    assert await simnet.executions(order.order_id) == []


async def test_an_order_that_expires_while_its_transaction_is_recorded_is_not_sent(
    worker: Worker, simnet: Simnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire_time = worker.store.now() + timedelta(seconds=1)
    order = await submit(worker.store, expire_time=expire_time)
    advance = worker.store.advance

    async def late(move: Sequence[Transition]) -> Order | None:
        if move[-1].order.status is S.SUBMITTED:
            while worker.store.now() < expire_time:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return await advance(move)

    monkeypatch.setattr(worker.store, "advance", late)
    assert (await execute(worker, order)).status is S.EXPIRED
    assert await statuses(worker, order.order_id) == [S.PENDING, S.ROUTING, S.EXPIRED]
    assert await simnet.executions(order.order_id) == []


async def test_once_broadcast_an_order_does_not_expire(
    worker: Worker, simnet: Simnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire_time = datetime.now(UTC) + timedelta(days=1)
    order = await submit(worker.store, expire_time=expire_time)
    async with simnet.faults(drop=1.0):
        await worker.executor.take([order.order_id])
        await worker.until(order.order_id, lambda order: order.status is S.SUBMITTED)
        worker.executor.let_all_go()
        await worker.executor.wait_idle()
        monkeypatch.setattr(worker.store, "now", lambda: expire_time + timedelta(days=1))
        # Its own lease: it may take it up again.
        await worker.executor.take([order.order_id])
    assert (await worker.closed(order.order_id)).status is S.CONFIRMED


async def test_a_cancel_at_any_moment_cancels_or_comes_too_late(
    settings: Settings, worker: Worker, simnet: Simnet
) -> None:
    """Cancelled orders are never on the chain; the others are there once."""
    orders = [await submit(worker.store, amount=10_000_000) for _ in range(60)]

    async def cancel(order: Order) -> None:
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
        standing: Order | None = order
        while standing is not None and standing.status in CANCELLABLE:
            if await other.advance(transitions(standing, Cancelled())) is not None:
                return
            standing = await other.get(order.order_id)

    chance = random.Random(7)
    async with Store(settings) as other:
        for at in range(0, 60, 6):
            wave = orders[at : at + 6]
            await asyncio.gather(
                worker.executor.take(order.order_id for order in wave), *(cancel(order) for order in wave)
            )
    for order in orders:
        closed = await worker.closed(order.order_id)
        assert closed.status in (S.CANCELLED, S.CONFIRMED)
        expected = [f"{order.order_id}:1"] if closed.status is S.CONFIRMED else []
        assert await simnet.executions(order.order_id) == expected
        await worker.events(order.order_id)


# ---- Several workers -------------------------------------------------------------------------------


async def test_a_worker_that_was_overtaken_finds_out_and_stops(
    settings: Settings, simnet: Simnet, wallet: Wallet, worker: Worker, by_hand: psycopg.AsyncConnection
) -> None:
    order = await submit(worker.store)
    async with worker_of(settings, simnet, wallet) as rival:
        async with simnet.faults(drop=1.0):
            await worker.executor.take([order.order_id])
            await worker.until(order.order_id, lambda order: order.status is S.SUBMITTED)
            # As if it had been stopped for longer than its lease.
            await by_hand.execute(
                "UPDATE lease_owners SET expire_time = now() - interval '1 s' WHERE lease_owner = %s",
                [worker.lease.owner],
            )
            assert await rival.executor.take([order.order_id]) == 1
            assert worker.executor.holds(order.order_id)
        closed = await worker.closed(order.order_id)
        async with asyncio.timeout(10):
            await worker.executor.wait_idle()
            await rival.executor.wait_idle()
    assert closed.status is S.CONFIRMED
    assert await statuses(worker, order.order_id) == HAPPY
    assert await simnet.executions(order.order_id) == [f"{order.order_id}:1"]


async def test_an_order_that_was_let_go_before_it_was_begun_is_taken_up_again(worker: Worker) -> None:
    order = await submit(worker.store)
    assert await worker.executor.take([order.order_id]) == 1
    # Its task has not run yet.
    worker.executor.let_all_go()
    await asyncio.sleep(0.01)
    assert not worker.executor.holds(order.order_id)
    assert await worker.executor.take([order.order_id]) == 1
    assert (await worker.closed(order.order_id)).status is S.CONFIRMED


async def test_who_loses_its_lease_lets_go_and_another_finishes(
    settings: Settings, simnet: Simnet, wallet: Wallet, by_hand: psycopg.AsyncConnection, until: Until
) -> None:
    async with simnet.faults(drop=1.0), worker_of(settings, simnet, wallet, lease_seconds=0.35) as loser:
        order = await submit(loser.store)
        assert await loser.executor.take([order.order_id]) == 1
        await loser.until(order.order_id, lambda order: order.status is S.SUBMITTED)
        async with worker_of(settings, simnet, wallet, sweeps=True) as other:
            assert not other.executor.holds(order.order_id)
            owner = loser.lease.owner
            await by_hand.execute("DELETE FROM lease_owners WHERE lease_owner = %s", [owner])
            await until(lambda: other.executor.holds(order.order_id))
            await until(lambda: not loser.executor.holds(order.order_id))
            await until(lambda: loser.lease.owner not in (0, owner))
            await simnet.ask("simnet_faults", {"drop": 0.0})
            closed = await other.closed(order.order_id)
            assert (closed.status, closed.attempt) == (S.CONFIRMED, 1)
            assert await statuses(other, order.order_id) == HAPPY
            assert await simnet.executions(order.order_id) == [f"{order.order_id}:1"]


async def test_who_alone_has_lost_the_node_leaves_what_is_open_to_another(
    settings: Settings, simnet: Simnet, wallet: Wallet, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> Never:
        raise NodeUnavailable("no route to host")

    async def silent(*_: object) -> Never:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("workers.settlement._AWAY_SECONDS", 0.5)
    async with worker_of(settings, simnet, wallet) as lonely:
        monkeypatch.setattr(lonely.node, "send_transaction", away)
        monkeypatch.setattr(lonely.node, "next_slot", silent)
        order = await submit(lonely.store)
        assert await lonely.executor.take([order.order_id]) == 1
        await lonely.until(order.order_id, lambda order: order.status is S.SUBMITTED)
        async with worker_of(settings, simnet, wallet, sweeps=True) as other:
            closed = await other.closed(order.order_id)
            assert not lonely.executor.holds(order.order_id)
            assert (closed.status, closed.attempt) == (S.CONFIRMED, 1)
            assert await statuses(other, order.order_id) == HAPPY
            assert await simnet.executions(order.order_id) == [f"{order.order_id}:1"]


async def test_the_sweeper_needs_no_redis_at_all(settings: Settings, simnet: Simnet, wallet: Wallet) -> None:
    away = replace(settings, redis_host="127.0.0.1", redis_port=1)
    async with worker_of(away, simnet, wallet, sweeps=True) as worker:
        order_ids = [(await submit(worker.store, amount=10_000_000)).order_id for _ in range(10)]
        for order_id in order_ids:
            assert (await worker.closed(order_id)).status is S.CONFIRMED
            assert await simnet.executions(order_id) == [f"{order_id}:1"]


async def test_an_order_that_a_clock_put_off_by_hours_is_executed_once_that_is_set_right(
    settings: Settings, simnet: Simnet, wallet: Wallet, by_hand: psycopg.AsyncConnection
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        order = await submit(worker.store)
        await by_hand.execute(
            "UPDATE orders SET due_time = now() + interval '2 h' WHERE order_id = %s", [order.order_id]
        )
    async with worker_of(settings, simnet, wallet, sweeps=True, sweep_seconds=0.01) as worker:
        assert (await worker.closed(order.order_id)).status is S.CONFIRMED


async def test_a_claim_whose_answer_was_lost_is_found_by_the_sweep(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet, sweeps=True) as worker:
        order = await submit(worker.store)
        # Claimed for this worker, which never learned of it.
        async with Store(settings) as store:
            await store.claim((order.order_id, worker.lease.owner))
        assert (await worker.closed(order.order_id)).status is S.CONFIRMED
        assert await statuses(worker, order.order_id) == HAPPY


async def test_claims_that_could_not_be_asked_are_not_executed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(_: object) -> list[Order]:
        raise StoreUnavailable("PostgreSQL cannot be reached")

    order = await submit(worker.store)
    with monkeypatch.context() as outage:
        outage.setattr(worker.store, "claim", Coalescer(away))
        with pytest.raises(StoreUnavailable):
            await worker.executor.take([order.order_id])
    assert not worker.executor.holds(order.order_id)
    assert (await execute(worker, order)).status is S.CONFIRMED


async def test_an_order_for_one_token_too_many_does_not_wait_for_ever(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.market.discovery.MOST_LEARNED", 0)
    token = Token(
        "HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", "HeLp6NuQkmYB4pYWo2zYs22mESHXPQYzXbB8n4V98jwC", 7
    )
    async with worker_of(
        settings, simnet, wallet, sweeps=True, max_attempts=2, retry_base_seconds=0.0
    ) as worker:
        spec = OrderSpec(Side.SELL, 10**9, SOL, token)
        order = (await worker.store.submit(replace(new_order(), spec=spec))).order
        closed = await worker.closed(order.order_id)
        assert (closed.status, closed.attempt) == (S.FAILED, 2)
        assert closed.failure_reason is FailureReason.NO_ROUTE
        assert closed.failure_message == "0 tokens are followed, which is as many as can be"


async def test_what_a_claim_gets_after_its_taker_was_stopped_is_given_back(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Awaitable[None]]
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    claim = worker.store.claim

    async def slow(items: list[tuple[UUID, int]]) -> Sequence[Claim | Exception | None]:
        asked.set()
        await answer.wait()
        return await claim.many(items)

    order = await submit(worker.store)
    monkeypatch.setattr(worker.store, "claim", Coalescer(slow))
    taking = asyncio.create_task(worker.executor.take([order.order_id]))
    await asked.wait()
    taking.cancel()
    await asyncio.wait([taking])
    answer.set()
    await worker.store.claim.drain()
    async with asyncio.timeout(10):
        # Another worker finds it, and need not wait for this one's end.
        while await worker.store.due_orders(10, 0.0) != [order.order_id]:  # noqa: ASYNC110 - of the record
            await asyncio.sleep(0.01)
    assert await worker.store.leased_orders(worker.lease.owner) == []


async def test_without_a_node_orders_expire_and_nothing_else_happens(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker_of(settings, simnet, wallet, sweeps=True, sweep_seconds=0.01) as worker:
        monkeypatch.setattr(Market, "ready", False)
        waits = await submit(worker.store)
        soon = worker.store.now() + timedelta(milliseconds=50)
        expires = await submit(worker.store, type=LimitOrder(Decimal(10**6)), expire_time=soon)
        assert (await worker.closed(expires.order_id)).status is S.EXPIRED
        found = await worker.store.get(waits.order_id)
        assert found is not None
        assert found.status is S.PENDING


# ---- Where a dead worker left off ------------------------------------------------------------------


@pytest.mark.parametrize("blocks_later", [0, 200])
@pytest.mark.parametrize("left", ["routing", "building", "submitted, not sent", "submitted, sent and landed"])
async def test_an_order_is_taken_up_where_a_dead_worker_left_it(
    left: str, blocks_later: int, worker: Worker, simnet: Simnet
) -> None:
    order = await submit(worker.store)
    facts = worker.to_submitted(order)
    signed = facts[-1].attempt
    steps = 1 if left == "routing" else 2 if left == "building" else 3
    await advance(worker.store, order, *facts[:steps])
    if left.endswith("landed"):
        await worker.node.send_transaction(signed.raw_transaction)
        await simnet.has_landed(order.order_id)
    if blocks_later:
        # Beyond what the recorded transaction is good for.
        await simnet.ask("simnet_advance", {"slots": blocks_later})
    # A blockhash of before would give the dead worker's transaction again. One refresh may be under way.
    for _ in range(2):
        await worker.market.next_refresh()
    await worker.executor.take([order.order_id])
    lapsed = left == "submitted, not sent" and blocks_later > 0
    closed = await worker.closed(order.order_id)
    assert (closed.status, closed.attempt) == (S.CONFIRMED, 2 if lapsed else 1)
    assert await simnet.executions(order.order_id) == [f"{order.order_id}:{closed.attempt}"]
    assert (closed.tx_hash == signed.tx_hash) == (steps == 3 and not lapsed)
    if not lapsed:
        assert await statuses(worker, order.order_id) == HAPPY
