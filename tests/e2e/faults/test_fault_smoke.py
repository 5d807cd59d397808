"""500 orders while everything breaks, by chance, again and again: nothing is lost, doubled or skipped.

FAULTS_SEED repeats a run's faults and orders; what happens in between is up to the machine.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.e2e.faults.chaos import SMOKE, Chaos
from tests.e2e.faults.checker import Record
from tests.e2e.faults.cluster import Cluster, running
from tests.e2e.faults.load import WATCH_KINDS, Load

ORDERS = 500
CLIENTS = 8
CHAOS_SECONDS = 32.0
LONGEST_SECONDS = 180.0
"""On a slow machine too; one that hangs is to say where."""
MISCHIEF = "drop=0.02,delay=0.05,delay_slots=30,error=0.05,revert=0.04,status_lag=0.1,status_lag_slots=10"
"""What the node does besides."""


async def client(load: Load, numbers: Iterator[int], random_numbers: random.Random, pause: float) -> None:
    """Submit orders, watch most of them, and be difficult at times."""
    for number in numbers:
        request = load.request(odd=True)
        order_id = await load.submit(request)
        if random_numbers.random() < 0.75:
            load.watch(order_id, WATCH_KINDS[number % 3], restless=random_numbers.random() < 0.3)
        if random_numbers.random() < 0.2:
            load.watch(order_id, random_numbers.choice(WATCH_KINDS))
        if random_numbers.random() < 0.1:
            await load.submit(request)
        if random_numbers.random() < 0.05:
            await load.submit_differently(request)
        if random_numbers.random() < 0.05:
            await load.cancel(order_id)
        # Some come close together.
        await asyncio.sleep(random_numbers.choice((0.0, 0.0, pause, 3 * pause)))


async def test_500_orders_survive_at_least_30_kills(capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FAULTS_SEED") or secrets.randbelow(10**6))
    chance = random.Random(seed)
    start = time.monotonic()
    try:
        async with (
            asyncio.timeout(LONGEST_SECONDS),
            running(3, simnet_faults=MISCHIEF, simnet_landing_jitter_slots=30) as cluster,
            Load(cluster.rest_url, cluster.grpc_target, f"smoke-{seed}", chance) as load,
        ):
            chaos = Chaos(cluster, SMOKE, chance)
            numbers = iter(range(ORDERS))
            pause = CHAOS_SECONDS * CLIENTS / ORDERS
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(client(load, numbers, chance, pause))
                group.create_task(chaos.run(CHAOS_SECONDS))
            cluster.note("all are accepted, nothing breaks any more")
            record = await settled(cluster, load)
            cluster.judge(record, load.complaints)
            reasons = await cluster.fetch(
                "SELECT failure_reason::text, count(*) FROM order_events WHERE status = 'failed' GROUP BY 1"
            )
            told = summary(seed, record, cluster, load, chaos, time.monotonic() - start)
            told += f"\nfailed for {_counted(Counter(dict(reasons)))}"
    except BaseException:
        with capsys.disabled():
            print(f"\nFAULTS_SEED={seed} repeats this run's orders and faults")  # noqa: T201
        raise
    with capsys.disabled():
        print(f"\n{told}")  # noqa: T201
    assert len(record.orders) == ORDERS
    assert cluster.kill_count >= 30


async def settled(cluster: Cluster, load: Load) -> Record:
    """Mend everything, wait until all orders are closed and all watchers know, and return the record."""
    await cluster.heal()
    await cluster.all_closed()
    try:
        async with asyncio.timeout(20):
            await load.watched_to_the_end()
    except TimeoutError:
        cluster.note("watchers wait still")  # The judge will name them.
    return load.add_to(cluster.record())


def summary(seed: int, record: Record, cluster: Cluster, load: Load, chaos: Chaos, seconds: float) -> str:
    """Return what the run was, in a few lines."""
    ends = Counter(order.status for order in record.orders)
    reconnects = sum(watch.connects - 1 for watch in record.watches)
    return "\n".join(
        (
            f"seed {seed}: {len(record.orders)} orders ({_counted(ends)}) in {seconds:.0f} s",
            f"{cluster.kill_count} kills; faults dealt: {_counted(chaos.dealt)}",
            f"{load.retry_count} submits repeated, {len(record.attempts)} transactions recorded,"
            f" {len(record.landed)} on the ledger, {len(record.watches)} watches, {reconnects} reconnects",
            "0 lost, 0 executed twice, 0 gaps",
        )
    )


def _counted(what: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(what.items()))
