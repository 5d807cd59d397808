"""Orders that wait for prices and pools, beside others, while prices move and everything around them breaks.

FAULTS_SEED repeats a run's orders, moves and faults; what happens in between is up to the machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import pytest

from tests.e2e.faults.checker import Record
from tests.e2e.faults.cluster import Cluster, running
from tests.e2e.faults.launched import (
    NOTICED_SECONDS,
    RECOVERED_SECONDS,
    SETTINGS,
    Launched,
    all_is_well,
    inverse,
)
from tests.e2e.faults.load import WATCH_KINDS, Load, Request, seconds_from_now
from tests.e2e.faults.waiting import count_crossings

ORDERS: Final = 130
CLIENTS: Final = 6
CHAOS_SECONDS: Final = 20.0
LONGEST_SECONDS: Final = 150.0
"""On a slow machine too; one that hangs is to say where."""
ROOM: Final = Fraction(15, 1000)
"""What all orders that wait for a token, together, take of its price at most."""
DECK: Final = {
    "kill the leader": 5,
    "kill a worker": 2,
    "freeze the leader": 2,
    "terminate the leader": 1,
    "kill postgres": 2,
    "kill valkey": 1,
    "empty valkey": 1,
    "kill server": 1,
    "kill gateway": 1,
}


class Market:
    """Tokens whose prices go up and down. All are bought for SOL: what is filled makes a price only worse."""

    def __init__(self, cluster: Cluster, chance: random.Random) -> None:
        self.tokens: list[Launched] = []
        """Those whose pools are open."""
        self.crossed = asyncio.Event()
        """A price has just moved to where orders wait."""
        self.ended = False
        self._cluster = cluster
        self._chance = chance

    async def open(self, count: int) -> None:
        self.tokens += [await Launched.launch(self._cluster) for _ in range(count)]

    async def move(self, token: Launched) -> None:
        """Move a token's price until the end: far enough to cross, and back, for one slot or for many."""
        chance = self._chance
        while not self.ended:
            per_cent = chance.choice((2, 4, 6))
            slot = await token.move(per_cent)
            self.crossed.set()
            self.crossed.clear()
            await token.passed(chance.choice((1, 2, 2, 2, 3, 3, 8)), slot)
            slot = await token.move(-100 * per_cent / (100 + per_cent) + chance.uniform(-1, 1))
            await token.passed(chance.choice((2, 8, 8)), slot)

    async def launch(self, load: Load) -> list[str]:
        """Launch a token with snipers that wait for it; return their ids."""
        token = await Launched.launch(self._cluster, slots=self._chance.randint(8, 20))
        requests = [
            load.waiting_request("1.00", token.mint, order_type="sniper", **terms)
            for terms in ({}, {"min_liquidity": "5"}, {"max_price": "0.02"}, {"max_price": "0.001"})
        ]
        order_ids = [await load.submit(request) for request in requests]
        load.watch(order_ids[0], self._chance.choice(WATCH_KINDS))
        return order_ids


async def request_of(load: Load, market: Market, chance: random.Random) -> Request:
    """Return a request for one swap or another, most of which wait."""
    if chance.random() < 0.25:
        return load.request(odd=True)
    token = chance.choice(market.tokens)
    side = chance.choice(("sell", "sell", "buy"))
    amount = f"{chance.uniform(0.2, 1.5) * (1 if side == 'sell' else 100):.2f}"
    limit = await token.limit(chance.uniform(-1.0, 6.0), amount, side)
    expire_time = seconds_from_now(chance.uniform(0.5, 8.0)) if chance.random() < 0.15 else None
    if chance.random() < 0.25:
        return load.waiting_request(
            amount,
            token.mint,
            side=side,
            order_type="sniper",
            expire_time=expire_time,
            max_price=inverse(limit),
        )
    return load.waiting_request(amount, token.mint, side=side, expire_time=expire_time, limit_price=limit)


async def client(load: Load, market: Market, numbers: Iterator[int], chance: random.Random) -> None:
    """Submit orders, watch some of them, and cancel some sooner or later."""
    async with asyncio.TaskGroup() as group:
        for number in numbers:
            request = await request_of(load, market, chance)
            order_id = await load.submit(request)
            if chance.random() < 0.5:
                load.watch(order_id, WATCH_KINDS[number % 3], restless=chance.random() < 0.3)
            if chance.random() < 0.2:
                group.create_task(cancel_later(load, order_id, chance.uniform(0.0, 5.0)))
            await asyncio.sleep(chance.uniform(0.2, 1.8) * CHAOS_SECONDS * CLIENTS / ORDERS)


async def cancel_later(load: Load, order_id: str, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await load.cancel_until_answered(order_id)


async def break_things(cluster: Cluster, market: Market, chance: random.Random) -> None:
    """Deal the deck, one fault after the other, each at a crossing."""
    cards = [card for card, count in DECK.items() for _ in range(count)]
    chance.shuffle(cards)
    for card in cards:
        await asyncio.sleep(CHAOS_SECONDS / len(cards) * chance.uniform(0.3, 0.9))
        what, _, whom = card.partition(" ")
        if whom in ("the leader", "a worker"):
            await break_a_worker(cluster, market, what, whom, chance)
        elif card == "kill postgres":
            async with cluster.disturbance(RECOVERED_SECONDS):
                cluster.kill("postgres")
                await cluster.restart("postgres")
        elif card == "empty valkey":
            await cluster.empty_valkey()
        else:
            cluster.kill(whom)
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            cluster.start(whom)


async def break_a_worker(
    cluster: Cluster, market: Market, what: str, whom: str, chance: random.Random
) -> None:
    # Somebody must be there to take over.
    while len(ready := await cluster.ready_workers()) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    leader = await cluster.leader("price") if whom == "the leader" else None
    name = chance.choice(ready) if leader is None else leader
    await market.crossed.wait()
    async with cluster.disturbance(NOTICED_SECONDS):
        if what == "kill":
            cluster.kill(name)
        elif what == "freeze":
            cluster.freeze(name)
        else:
            await cluster.terminate(name)
    await asyncio.sleep(chance.choice((0.0, 0.5, 2.5)))
    if what == "freeze":
        cluster.thaw(name)
    else:
        cluster.start(name)


async def test_orders_that_wait_survive_kills_at_crossings(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or secrets.randbelow(10**6))
    chance = random.Random(seed)
    start = time.monotonic()
    try:
        async with (
            asyncio.timeout(LONGEST_SECONDS),
            running(
                3,
                simnet_faults="error=0.03,status_lag=0.1,status_lag_slots=2",
                simnet_landing_jitter_slots=2,
                **SETTINGS,
            ) as cluster,
            Load(cluster.rest_url, cluster.grpc_target, f"waiting-{seed}", chance) as load,
        ):
            market = Market(cluster, chance)
            await market.open(3)
            numbers = iter(range(ORDERS))
            async with asyncio.TaskGroup() as group:
                movers = [group.create_task(market.move(token)) for token in market.tokens]
                clients = [group.create_task(client(load, market, numbers, chance)) for _ in range(CLIENTS)]
                launches = [group.create_task(market.launch(load)) for _ in range(2)]
                await break_things(cluster, market, chance)
                launches.append(group.create_task(market.launch(load)))
                await asyncio.wait([*clients, *launches])
                market.ended = True
                await asyncio.wait(movers)
            cluster.note("all are accepted, nothing breaks any more")
            record = await all_is_well(cluster, load, ROOM)
            told = summary(seed, record, cluster, time.monotonic() - start)
    except BaseException:
        with capsys.disabled():
            print(f"\nFAULTS_SEED={seed} repeats this run's orders, moves and faults")  # noqa: T201
        raise
    with capsys.disabled():
        print(f"\n{told}")  # noqa: T201
    assert len(record.orders) == ORDERS + 12
    assert cluster.kill_count >= 10
    ends = Counter(order.status for order in record.orders if order.type != "market")
    assert min(ends["confirmed"], ends["cancelled"]) >= 10


def summary(seed: int, record: Record, cluster: Cluster, seconds: float) -> str:
    """Return what the run was, in a few lines."""
    waiting = {order.order_id for order in record.orders if order.type != "market"}
    moves = Counter(
        (event.previous_status, event.status) for event in record.events if event.order_id in waiting
    )
    ends = Counter(f"{order.type} {order.status}" for order in record.orders)
    return "\n".join(
        (
            f"seed {seed}: {len(record.orders)} orders in {seconds:.0f} s:"
            f" {', '.join(f'{count} {name}' for name, count in sorted(ends.items()))}",
            f"{cluster.kill_count} kills, {len(cluster.disturbed)} disturbances,"
            f" {moves['pending', 'routing']} fired, {moves['routing', 'pending']} found the price gone,"
            f" {moves['submitted', 'pending']} overtaken before they landed,"
            f" {sum(answer.accepted for answer in record.cancels)} of {len(record.cancels)} cancels in time",
            f"{count_crossings(record)} crossings of two slots: 0 missed; 0 fired for nothing, 0 filled worse"
            " than their limit, 0 executed twice or after a cancel",
        )
    )
