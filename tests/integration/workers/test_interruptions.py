"""Orders that their workers do not survive: told from those that were there by chance, and ended."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.domain.lifecycle import CLOSED
from engine.domain.order import FailureReason, Order, OrderStatus
from engine.domain.tokens import SOL
from engine.settings import Settings, settings_as_environ
from engine.solana.transactions import Wallet
from engine.storage.postgres import Claim, Store
from tests.integration.engine.storage.records import advance, new_order, path_to, stored
from tests.integration.workers.executing import worker_of
from tests.simnet_process import Simnet

S = OrderStatus
ROOT = Path(__file__).parents[3]
DEADLY_AMOUNT = 66_600_000

# Imported by Python before the worker's own code: its process is gone at once, as by a fault in a library.
SITECUSTOMIZE = f"""
import os
from engine.market import Market

decide = Market.decide

def decide_or_die(self, spec, *rest):
    if spec.amount == {DEADLY_AMOUNT}:
        os.kill(os.getpid(), 9)
    return decide(self, spec, *rest)

Market.decide = decide_or_die
"""


async def interrupted(store: Store, order: Order, count: int) -> None:
    """Have the order claimed by so many workers that end, one after the other."""
    for _ in range(count):
        owner = await store.start_lease_owner(60)
        assert await store.claim_apart(order.order_id, owner) is not None
        await die(store, owner)


async def die(store: Store, owner: int) -> None:
    """End a worker without a word: its row goes, what it holds stays as it is."""
    connection = store._connections["lease"]
    await connection.run(f"DELETE FROM lease_owners WHERE lease_owner = {owner}", {})


async def all_closed(store: Store, orders: Sequence[Order]) -> list[Order]:
    async with asyncio.timeout(60):
        while True:
            found = await store.get.many([order.order_id for order in orders])
            standing = [order for order in found if isinstance(order, Order)]
            if all(order.status in CLOSED for order in standing):
                return standing
            await asyncio.sleep(0.05)


async def test_workers_that_end_are_counted_until_the_order_moves_on(database: Settings) -> None:
    async with Store(database) as store:
        order = await stored(store)
        for expected in range(4):
            owner = await store.start_lease_owner(60)
            claim = await store.claim_apart(order.order_id, owner)
            assert claim is not None
            assert claim.interruptions == expected
            # Again by the same one, whose first answer was lost.
            claim = await store.claim_apart(order.order_id, owner)
            assert claim is not None
            assert claim.interruptions == expected
            await die(store, owner)
        owner = await store.start_lease_owner(60)
        claim = await store.claim_apart(order.order_id, owner)
        assert claim is not None
        await advance(store, claim.order, *path_to(S.SUBMITTED, order.order_id)[1:])
        await die(store, owner)
        owner = await store.start_lease_owner(60)
        claim = await store.claim_apart(order.order_id, owner)
        assert claim is not None
        assert claim.interruptions == 1


async def test_a_lease_that_is_lost_is_no_death(
    settings: Settings, simnet: Simnet, wallet: Wallet, until: Callable[..., object]
) -> None:
    async with worker_of(settings, simnet, wallet, lease_seconds=0.5) as worker:
        order = await stored(worker.store)
        for _ in range(5):
            owner = worker.lease.owner
            assert await worker.store.claim((order.order_id, owner)) is not None
            # As by a database that restarts.
            await worker.store._connections["sweep"].run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'order-engine lease' AND datname = current_database()",
                {},
            )
            await until(lambda owner=owner: worker.lease.owner not in (0, owner))  # type: ignore[misc]
        claim = await worker.store.claim((order.order_id, worker.lease.owner))
        assert claim is not None
        assert claim.interruptions == 0


async def test_suspects_are_held_by_nobody_until_they_are_executed(database: Settings) -> None:
    async with Store(database) as store:
        order, beside = await stored(store), await stored(store)
        await interrupted(store, order, 3)
        for _ in range(5):
            # Among others, whose worker then ends.
            owner = await store.start_lease_owner(60)
            claim, other = await store.claim.many([(order.order_id, owner), (beside.order_id, owner)])
            assert isinstance(claim, Claim)
            assert isinstance(other, Claim)
            assert (claim.interruptions, claim.is_suspect) == (3, True)
            if other.is_suspect:
                break
            await die(store, owner)


async def test_workers_that_end_in_peace_are_not_counted(database: Settings) -> None:
    async with Store(database) as store:
        order = await stored(store)
        for _ in range(3):
            owner = await store.start_lease_owner(60)
            claim = await store.claim_apart(order.order_id, owner)
            assert claim is not None
            assert claim.interruptions == 0
            await store.end_lease_owner(owner)


async def test_an_order_that_workers_do_not_survive_is_ended_and_takes_no_other_with_it(
    settings: Settings, simnet: Simnet, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    wallet = Wallet.create(tmp_path / "wallet.json")
    await simnet.fund(wallet, SOL, 10**12)
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    settings = replace(
        settings,
        solana_rpc_url=simnet.url,
        wallet_path=str(tmp_path / "wallet.json"),
        workers_metrics_port=free_port(),
    )
    async with Store(settings) as store:
        amounts = [1_000_000] * 10 + [DEADLY_AMOUNT] + [1_000_000] * 10
        orders = [(await store.submit(new_order(amount=amount))).order for amount in amounts]
        workers = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "workers"),
            cwd=ROOT,
            env={
                **os.environ,
                **settings_as_environ(settings),
                "PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'generated'}",
            },
            stderr=PIPE,
        )
        try:
            closed = await all_closed(store, orders)
        finally:
            workers.terminate()
            log = (await workers.communicate())[1].decode()
    deadly = closed.pop(10)
    assert (deadly.status, deadly.failure_reason) == (S.FAILED, FailureReason.INTERNAL)
    assert deadly.failure_message == "executing it ended 4 workers"
    assert log.count("ended with code -9") == 4
    assert [order for order in closed if order.status is not S.CONFIRMED] == []
    for order in closed:
        # At a later attempt, where a worker ended after it had signed the one before and not yet sent it.
        assert len(await simnet.executions(order.order_id)) == 1


@pytest.mark.parametrize("count", [3, 4, 5])
async def test_one_that_was_there_by_chance_is_executed(
    count: int, settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        order = await stored(worker.store)
        async with Store(settings) as others:
            await interrupted(others, order, count)
        beside = await stored(worker.store)
        await worker.executor.take([beside.order_id, order.order_id])
        closed = await worker.closed(order.order_id)
        assert closed.status is (S.CONFIRMED if count == 3 else S.FAILED)
        assert (await worker.closed(beside.order_id)).status is S.CONFIRMED
        assert worker.executor.room > 0


async def test_one_whose_transaction_is_out_is_only_followed(
    settings: Settings, simnet: Simnet, wallet: Wallet
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        order = (await worker.store.submit(new_order())).order
        facts = worker.to_submitted(order)
        await advance(worker.store, order, *facts)
        async with Store(settings) as others:
            await interrupted(others, order, 7)
        await worker.executor.take([order.order_id])
        closed = await worker.closed(order.order_id)
        assert (closed.status, closed.tx_hash) == (S.CONFIRMED, facts[-1].attempt.tx_hash)


async def test_many_of_them_are_executed_one_at_a_time(
    settings: Settings, simnet: Simnet, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        orders = [await stored(worker.store) for _ in range(5)]
        async with Store(settings) as others:
            for order in orders:
                await interrupted(others, order, 3)
        executor, alone = worker.executor, []
        route = executor._route

        async def watched(order: Order) -> Order | None:
            # Prices may move, and it is tried again, when it is no suspect any more.
            if order.attempt == 1:
                beside = [
                    task
                    for order_id, task in executor._held.items()
                    if order_id not in executor._settling and not (task and task.done())
                ]
                alone.append(len(beside) == 1 and executor.room == 0)
            return await route(order)

        monkeypatch.setattr(executor, "_route", watched)
        assert await executor.take([order.order_id for order in orders]) == 0
        assert {order.status for order in await all_closed(worker.store, orders)} == {S.CONFIRMED}
        assert alone == [True] * 5


async def test_one_that_is_executed_apart_stays_in_hand_when_its_hint_comes_again(
    settings: Settings,
    simnet: Simnet,
    wallet: Wallet,
    until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        order = await stored(worker.store)
        async with Store(settings) as others:
            await interrupted(others, order, 3)
        may_go_on, wake = asyncio.Event(), worker.market.wake

        async def wait_and_wake() -> None:
            await may_go_on.wait()
            await wake()

        monkeypatch.setattr(worker.market, "wake", wait_and_wake)
        assert await worker.executor.take([order.order_id]) == 0
        await until(lambda: worker.executor.holds(order.order_id))
        assert await worker.executor.take([order.order_id]) == 0
        assert await worker.store.leased_orders(worker.lease.owner) == [order.order_id]
        may_go_on.set()
        assert (await worker.closed(order.order_id)).status is S.CONFIRMED


async def test_who_loses_the_lease_lets_go_of_them(
    settings: Settings, simnet: Simnet, wallet: Wallet, until: Callable[..., object]
) -> None:
    async with worker_of(settings, simnet, wallet) as worker:
        orders = [await stored(worker.store) for _ in range(3)]
        async with Store(settings) as others:
            for order in orders:
                await interrupted(others, order, 3)
        async with simnet.paused():
            await worker.executor.take([order.order_id for order in orders])
            worker.executor.let_all_go()
            await until(lambda: worker.executor.room == settings.max_in_flight)  # type: ignore[misc]
        await worker.executor.take([order.order_id for order in orders])
        assert {order.status for order in await all_closed(worker.store, orders)} == {S.CONFIRMED}
