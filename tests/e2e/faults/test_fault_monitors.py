"""Orders that wait for a price or for a pool, while whoever follows those is killed, frozen and cut off.

Nobody but the test moves the prices, so what the judge says of crossings is exact.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from fractions import Fraction

import pytest

from tests.e2e.faults.checker import Record
from tests.e2e.faults.cluster import Cluster, running
from tests.e2e.faults.launched import SETTINGS, Launched
from tests.e2e.faults.load import WATCH_KINDS, Load

NOTICED_SECONDS = 2.0
"""Within so much a monitor's death is noticed and another one has taken over. That is the promise itself: it takes
1.6 s at most, each looking every 0.4 s and giving the other 1.2 s; the rest is for a busy machine. It is counted
from the kill, when the whole engine is up and has nothing else to do."""
FIRED = ["pending", "routing", "building", "submitted", "confirmed"]


@pytest.fixture(scope="module")
async def _cluster() -> AsyncIterator[Cluster]:
    async with running(**SETTINGS) as cluster:
        yield cluster


async def leads(cluster: Cluster, kind: str, *, not_: str | None = None) -> str:
    """Return the worker that runs the monitor of that kind, once there is one (but for one)."""
    found: list[str] = []

    async def there_is() -> bool:
        leader = await cluster.leader(kind)
        if leader is not None and leader != not_:
            found.append(leader)
        return bool(found)

    await cluster.until(there_is)
    return found[0]


async def is_followed(cluster: Cluster, kind: str, dead: str) -> None:
    """Return when another worker runs the monitor; fail if that takes longer than is promised."""

    async def is_another() -> bool:
        return await cluster.leader(kind) not in (None, dead)

    await cluster.until(is_another, NOTICED_SECONDS)


async def wait_for(load: Load, token: Launched, per_cent: float, count: int, side: str = "sell") -> list[str]:
    """Submit orders that wait until a SOL brings so much more of the token; return their ids."""
    amount = "1.00" if side == "sell" else "100.00"
    limit = await token.limit(per_cent, amount, side)
    order_ids = [
        await load.submit(load.waiting_request(amount, token.mint, side=side, limit_price=limit))
        for _ in range(count)
    ]
    load.watch(order_ids[0], WATCH_KINDS[count % 3])
    return order_ids


async def snipe(load: Load, token: Launched, **terms: str) -> str:
    """Submit a sniper order, and return its id."""
    return await load.submit(load.waiting_request("1.00", token.mint, order_type="sniper", **terms))


async def statuses(cluster: Cluster, order_id: str) -> list[str]:
    rows = await cluster.fetch(
        "SELECT status::text FROM order_events WHERE order_id = %s ORDER BY sequence", order_id
    )
    return [row[0] for row in rows]


async def are_confirmed(cluster: Cluster, order_ids: list[str]) -> None:
    async def all_are() -> bool:
        rows = await cluster.fetch(
            "SELECT FROM orders WHERE order_id = ANY (%s::uuid[]) AND status = 'confirmed'", order_ids
        )
        return len(rows) == len(order_ids)

    await cluster.until(all_are)


async def all_is_well(cluster: Cluster, load: Load, room: Fraction = Fraction(0)) -> Record:
    """Cancel what waits still, and judge what became of everything; return that."""
    await cluster.heal()
    waiting = await cluster.fetch("SELECT order_id::text FROM orders WHERE resting")
    for (order_id,) in waiting:
        await load.cancel_until_answered(order_id)
    await cluster.all_closed()
    async with asyncio.timeout(20):
        await load.watched_to_the_end()
    record = await cluster.add_offers(load.add_to(cluster.record()))
    record.room = room
    cluster.judge(record, load.complaints)
    return record


# ---- Whoever follows prices dies -------------------------------------------------------------------------


async def test_the_worker_that_follows_prices_is_killed_at_a_crossing_and_another_fires(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    crossed = await wait_for(load, token, 5, 3) + await wait_for(load, token, 5, 3, "buy")
    others = await wait_for(load, token, 12, 3)
    leader = await leads(cluster, "price")
    async with cluster.disturbance(NOTICED_SECONDS):
        await token.move(8)
        cluster.kill(leader)
    await is_followed(cluster, "price", leader)
    await are_confirmed(cluster, crossed)
    assert [await cluster.status(order_id) for order_id in others] == ["pending"] * 3
    await all_is_well(cluster, load)


async def test_the_worker_that_follows_prices_is_killed_while_it_fires_and_its_late_statement_does_no_harm(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    crossed = await wait_for(load, token, 5, 6)
    leader = await leads(cluster, "price")
    async with cluster.disturbance(NOTICED_SECONDS), cluster.unwritable("orders"):
        await token.move(8)
        await cluster.until(lambda: cluster.waits_for_a_lock("price"))
        cluster.kill(leader)
        await is_followed(cluster, "price", leader)
    await are_confirmed(cluster, crossed)
    await all_is_well(cluster, load)


async def test_the_worker_that_follows_prices_is_frozen_at_a_crossing_and_wakes_when_it_is_over(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    crossed = await wait_for(load, token, 5, 6)
    leader = await leads(cluster, "price")
    async with cluster.disturbance(NOTICED_SECONDS):
        await token.move(8)
        cluster.freeze(leader)
    await is_followed(cluster, "price", leader)
    await are_confirmed(cluster, crossed)
    await token.move(-10)
    cluster.thaw(leader)
    # It finds that it no longer leads, and fires nothing of what it remembers.
    assert await leads(cluster, "price", not_=leader) != leader
    await all_is_well(cluster, load)


async def test_the_worker_that_follows_liquidity_is_killed_when_a_pool_opens(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster, sol=100, slots=5)
    small, large = (
        [await snipe(load, token) for _ in range(3)],
        [await snipe(load, token, min_liquidity="200") for _ in range(3)],
    )
    leader = await leads(cluster, "liquidity")
    async with cluster.disturbance(NOTICED_SECONDS):
        await token.passed(0, token.slot)
        cluster.kill(leader)
    await is_followed(cluster, "liquidity", leader)
    await are_confirmed(cluster, small)
    assert [await statuses(cluster, order_id) for order_id in large] == [["pending"]] * 3
    await cluster.heal()
    await token.fill(300)
    await are_confirmed(cluster, large)
    await all_is_well(cluster, load)
