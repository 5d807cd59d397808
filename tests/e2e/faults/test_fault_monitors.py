"""Orders that wait for a price or for a pool, while whoever follows those is killed, frozen and cut off.

Nobody but the test moves the prices, so what the judge says of crossings is exact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from tests.e2e.faults.cluster import Cluster, running
from tests.e2e.faults.launched import (
    NOTICED_SECONDS,
    RECOVERED_SECONDS,
    SETTINGS,
    Launched,
    all_is_well,
    inverse,
)
from tests.e2e.faults.load import WATCH_KINDS, Load, seconds_from_now


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
    await cluster.heal()
    # For these it is too small, until it has grown.
    await token.passed(5, token.slot)
    assert [await statuses(cluster, order_id) for order_id in large] == [["pending"]] * 3
    await token.fill(300)
    await are_confirmed(cluster, large)
    await all_is_well(cluster, load)


# ---- Prices that touch and leave ---------------------------------------------------------------------------


async def test_prices_touch_and_leave_and_what_they_touched_for_two_slots_fires_once(
    cluster: Cluster, load: Load
) -> None:
    tokens = [await Launched.launch(cluster) for _ in range(4)]

    async def touch(token: Launched, slots: int) -> list[str]:
        """Let a price be there for so many slots; return the orders that it touched."""
        touched = await wait_for(load, token, 3, 2)
        limit = await token.limit(3)
        request = load.waiting_request("1.00", token.mint, order_type="sniper", max_price=inverse(limit))
        touched.append(await load.submit(request))
        await wait_for(load, token, 8, 1)
        await token.passed(slots, await token.move(5))
        await token.move(-5)
        return touched

    async def touch_again_and_again(token: Launched) -> list[str]:
        return [order_id for slots in (3, 2, 1, 2) for order_id in await touch(token, slots)]

    touched = await asyncio.gather(*(touch_again_and_again(token) for token in tokens))
    # Long enough for the judge to say that those of the last touch were not fired.
    await tokens[0].passed(10, await tokens[0].move(-1))
    # Whether it is filled before the price leaves is up to the chain; that each was fired, the judge says.
    record = await all_is_well(cluster, load)
    ids = {order_id for order_ids in touched for order_id in order_ids}
    ended = [order.status for order in record.orders if order.order_id in ids]
    assert ended.count("confirmed") > 0
    assert set(ended) <= {"confirmed", "cancelled"}


async def test_the_price_leaves_between_trigger_and_landing_and_nothing_is_filled_worse(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    order_ids = await wait_for(load, token, 5, 6)
    await cluster.node("simnet_pause")
    before = await fired_count(cluster)
    await cluster.node("simnet_move_price", {"pool": token.pool, "bps": -700})
    await cluster.node("simnet_advance", {"slots": 1})

    async def are_sent() -> bool:
        rows = await cluster.fetch("SELECT FROM orders WHERE status = 'submitted'")
        return len(rows) == len(order_ids) and await fired_count(cluster) == before + len(order_ids)

    await cluster.until(are_sent)
    # To less than the limit of 5 %, and more than slippage would allow.
    await cluster.node("simnet_move_price", {"pool": token.pool, "bps": 280})
    await cluster.node("simnet_resume")

    async def wait_again() -> bool:
        return [await statuses(cluster, order_id) for order_id in order_ids] == [
            ["pending", "routing", "building", "submitted", "pending"]
        ] * len(order_ids)

    await cluster.until(wait_again)
    await token.move(8)
    await are_confirmed(cluster, order_ids)
    await all_is_well(cluster, load)


async def fired_count(cluster: Cluster) -> float:
    sample = 'order_engine_monitor_fired_total{kind="price"}'
    return sum([await cluster.metric(name, sample) for name in cluster.workers])


# ---- The services die --------------------------------------------------------------------------------------


async def test_postgresql_is_killed_twice_while_orders_wait_and_they_fire_when_it_is_back(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    first, second = await wait_for(load, token, 5, 5), await wait_for(load, token, 12, 5)
    # While it is away, and just before: at a crossing.
    async with cluster.disturbance(RECOVERED_SECONDS):
        cluster.kill("postgres")
        await token.move(8)
        await cluster.restart("postgres")
    await are_confirmed(cluster, first)
    async with cluster.disturbance(RECOVERED_SECONDS):
        await token.move(8)
        cluster.kill("postgres")
        await cluster.restart("postgres")
    await are_confirmed(cluster, second)
    await all_is_well(cluster, load)


async def test_without_valkey_and_when_it_was_emptied_orders_that_wait_fire_as_ever(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    first, second = await wait_for(load, token, 5, 5), await wait_for(load, token, 12, 5)
    await cluster.empty_valkey()
    await token.move(8)
    await are_confirmed(cluster, first)
    cluster.kill("valkey")
    await token.move(8)
    await are_confirmed(cluster, second)
    third = await wait_for(load, token, 5, 5)
    await token.move(8)
    await are_confirmed(cluster, third)
    await cluster.restart("valkey")
    await all_is_well(cluster, load)


# ---- Cancels and expiry race with a crossing --------------------------------------------------------------


async def test_cancels_race_with_a_crossing_and_what_was_answered_ok_never_executes(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    order_ids = await wait_for(load, token, 5, 40)
    chance = random.Random(1)
    crossed = asyncio.Event()

    async def cancel(order_id: str) -> bool:
        await crossed.wait()
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        return await load.cancel_until_answered(order_id)

    async with asyncio.TaskGroup() as group:
        cancels = [group.create_task(cancel(order_id)) for order_id in order_ids]
        # The first cancels come before it: what fires is on its way a few milliseconds later.
        crossed.set()
        await token.move(10)
    await cluster.all_closed()
    for order_id, cancelled in zip(order_ids, cancels, strict=True):
        assert await cluster.status(order_id) == ("cancelled" if cancelled.result() else "confirmed")
    # All of one kind would be no race.
    assert len({cancelled.result() for cancelled in cancels}) == 2
    await all_is_well(cluster, load)


async def test_expiry_races_with_a_crossing_and_what_expired_never_executes(
    cluster: Cluster, load: Load
) -> None:
    token = await Launched.launch(cluster)
    limit = await token.limit(5)
    order_ids = [
        await load.submit(
            load.waiting_request(
                "1.00", token.mint, limit_price=limit, expire_time=seconds_from_now(1.0 + number / 20)
            )
        )
        for number in range(40)
    ]

    async def has_expired() -> bool:
        return await cluster.status(order_ids[5]) == "expired"

    await cluster.until(has_expired)
    await token.move(10)
    await cluster.all_closed()
    assert {await cluster.status(order_id) for order_id in order_ids} == {"expired", "confirmed"}
    await all_is_well(cluster, load)
