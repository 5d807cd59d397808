"""Workers killed and frozen at every stage of an order. A stage is held open from outside: a table nobody
may write to, a chain that stands still, a node that is gone."""

from __future__ import annotations

import asyncio

from tests.e2e.faults.checker import read_ledger
from tests.e2e.faults.cluster import Cluster
from tests.e2e.faults.load import WATCH_KINDS, Load


async def submitted(load: Load) -> str:
    """Submit an order, watched in every way, and return its id."""
    order_id = await load.submit(load.request(), "gRPC")
    for kind in WATCH_KINDS:
        load.watch(order_id, kind)
    return order_id


def on_ledger(cluster: Cluster, order_id: str) -> list[str]:
    """Return the signatures on the ledger that name the order."""
    return [
        row.signature for row in read_ledger(cluster.ledger_file) if (row.memo or "").startswith(order_id)
    ]


async def recorded(cluster: Cluster, order_id: str) -> list[str]:
    """Return the signatures on record for the order."""
    rows = await cluster.fetch("SELECT tx_hash FROM attempts WHERE order_id = %s ORDER BY attempt", order_id)
    return [row[0] for row in rows]


async def broadcasts(cluster: Cluster) -> float:
    """Return how many transactions the workers have sent since they started."""
    sample = 'order_engine_stage_seconds_count{stage="broadcast"}'
    return sum([await cluster.metric(name, sample) for name in cluster.workers])


async def is_closed(cluster: Cluster, load: Load, order_id: str) -> None:
    """Return when the order is confirmed by one transaction, and nothing else is wrong."""
    await cluster.all_closed()
    async with asyncio.timeout(20):
        await load.watched_to_the_end()
    assert await cluster.status(order_id) == "confirmed"
    assert on_ledger(cluster, order_id) == await recorded(cluster, order_id)
    assert len(on_ledger(cluster, order_id)) == 1
    cluster.judge(load.add_to(cluster.record()), load.complaints)


async def held_by(cluster: Cluster, order_id: str) -> str:
    """Return the worker that executes the order."""
    name = cluster.holder(order_id)
    assert name is not None
    return name


async def test_a_worker_killed_while_routing_is_succeeded_and_its_late_statement_does_no_harm(
    cluster: Cluster, load: Load
) -> None:
    async with cluster.unwritable("attempts"):
        order_id = await submitted(load)
        await cluster.until(lambda: cluster.waits_for_a_lock("advance"))
        assert await cluster.status(order_id) == "routing"
        owner = await cluster.lease_owner(order_id)
        cluster.kill(await held_by(cluster, order_id))

        async def is_succeeded() -> bool:
            return await cluster.lease_owner(order_id) != owner

        await cluster.until(is_succeeded)
    # Now both statements go on: the dead worker's, which PostgreSQL has not given up, and its successor's.
    await is_closed(cluster, load, order_id)


async def test_what_a_killed_worker_had_recorded_and_not_sent_is_sent_by_its_successor(
    cluster: Cluster, load: Load
) -> None:
    async with cluster.unwritable("attempts"):
        order_id = await submitted(load)
        await cluster.until(lambda: cluster.waits_for_a_lock("advance"))
        cluster.kill("simnet")

    async def is_submitted() -> bool:
        return await cluster.status(order_id) == "submitted"

    await cluster.until(is_submitted)
    cluster.kill(await held_by(cluster, order_id))
    assert on_ledger(cluster, order_id) == []
    [signature] = await recorded(cluster, order_id)
    await cluster.restart("simnet")
    await is_closed(cluster, load, order_id)
    assert on_ledger(cluster, order_id) == [signature]


async def sent_and_not_landed(cluster: Cluster, load: Load) -> str:
    """Stop the chain and return an order whose transaction was sent and waits for the next block."""
    await cluster.node("simnet_pause")
    before = await broadcasts(cluster)
    order_id = await submitted(load)

    async def is_sent() -> bool:
        return await broadcasts(cluster) > before

    await cluster.until(is_sent)
    assert await cluster.status(order_id) == "submitted"
    assert on_ledger(cluster, order_id) == []
    return order_id


async def has_landed(cluster: Cluster, order_id: str) -> None:
    async def is_on_ledger() -> bool:
        return bool(on_ledger(cluster, order_id))

    await cluster.until(is_on_ledger)


async def test_a_worker_killed_before_its_transaction_landed_is_succeeded(
    cluster: Cluster, load: Load
) -> None:
    order_id = await sent_and_not_landed(cluster, load)
    owner = await cluster.lease_owner(order_id)
    cluster.kill(await held_by(cluster, order_id))

    async def is_succeeded() -> bool:
        return await cluster.lease_owner(order_id) != owner

    await cluster.until(is_succeeded)
    await cluster.node("simnet_resume")
    await is_closed(cluster, load, order_id)


async def test_a_worker_killed_after_its_transaction_landed_unseen_is_succeeded(
    cluster: Cluster, load: Load
) -> None:
    order_id = await sent_and_not_landed(cluster, load)
    holder = await held_by(cluster, order_id)
    cluster.freeze(holder)
    await cluster.node("simnet_resume")
    await has_landed(cluster, order_id)
    cluster.kill(holder)
    await is_closed(cluster, load, order_id)


async def test_a_worker_killed_while_it_records_the_landing_is_succeeded(
    cluster: Cluster, load: Load
) -> None:
    order_id = await sent_and_not_landed(cluster, load)
    async with cluster.unwritable("attempts"):
        await cluster.node("simnet_resume")
        await cluster.until(lambda: cluster.waits_for_a_lock("advance"))
        cluster.kill(await held_by(cluster, order_id))
    # Its statement is on its way still, and so is its successor.
    await is_closed(cluster, load, order_id)


async def test_all_workers_killed_at_once_are_succeeded_by_the_next_ones(
    cluster: Cluster, load: Load
) -> None:
    order_id = await sent_and_not_landed(cluster, load)
    for name in cluster.workers:
        cluster.kill(name)
    await cluster.node("simnet_resume")
    await has_landed(cluster, order_id)
    await cluster.restart(*cluster.workers)
    await is_closed(cluster, load, order_id)


async def test_a_worker_frozen_past_its_lease_wakes_and_writes_nothing(cluster: Cluster, load: Load) -> None:
    order_id = await sent_and_not_landed(cluster, load)
    zombie = await held_by(cluster, order_id)
    cluster.freeze(zombie)
    await cluster.node("simnet_resume")
    await is_closed(cluster, load, order_id)
    await wakes_and_writes_nothing(cluster, zombie, order_id)


async def test_a_worker_frozen_while_it_claims_wakes_and_neither_records_nor_sends(
    cluster: Cluster, load: Load
) -> None:
    zombie, successor = cluster.workers
    await cluster.terminate(successor)
    # One order before, so that its statements are prepared.
    await submitted(load)
    await cluster.all_closed()
    cluster.freeze(zombie)
    order_id = await submitted(load)
    async with cluster.unwritable("order_events"):
        cluster.thaw(zombie)
        await cluster.until(lambda: cluster.waits_for_a_lock("claim"))
        cluster.freeze(zombie)

    async def is_claimed() -> bool:
        return await cluster.status(order_id) == "routing"

    # It will wake to a claim that was granted, of an order that is long done.
    await cluster.until(is_claimed)
    await cluster.restart(successor)
    await is_closed(cluster, load, order_id)
    await wakes_and_writes_nothing(cluster, zombie, order_id)


async def wakes_and_writes_nothing(cluster: Cluster, zombie: str, order_id: str) -> None:
    """Wake a frozen worker whose order was finished by another; it must leave all as it was."""
    before = cluster.record()
    sent = len(cluster.log(zombie))
    cluster.thaw(zombie)

    async def has_let_go() -> bool:
        said = [line for line in cluster.log(zombie)[sent:] if line.get("order_id") == order_id]
        return any(line["message"].startswith(("superseded", "resting", "letting go")) for line in said)

    await cluster.until(has_let_go)
    after = cluster.record()
    assert (after.orders, after.events, after.attempts) == (before.orders, before.events, before.attempts)
    assert after.landed == before.landed
    await cluster.ready(zombie)
