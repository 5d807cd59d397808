"""The services under the engine killed, emptied and frozen while orders flow; then everything, in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.e2e.faults.cluster import Cluster
from tests.e2e.faults.load import WATCH_KINDS, Load


@asynccontextmanager
async def flowing(cluster: Cluster, load: Load, count: int, clients: int = 4) -> AsyncIterator[None]:
    """Have `count` orders submitted and watched while the block runs, and leave it when all are accepted."""
    left = iter(range(count))

    async def client() -> None:
        for number in left:
            order_id = await load.submit(load.request())
            load.watch(order_id, WATCH_KINDS[number % 3])

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        yield


async def accepted(cluster: Cluster, load: Load, count: int) -> None:
    """Return when so many orders were accepted."""

    async def are_accepted() -> bool:
        return len(load.answers) >= count

    await cluster.until(are_accepted)


async def all_ends_well(cluster: Cluster, load: Load, count: int) -> None:
    await cluster.all_closed()
    async with asyncio.timeout(30):
        await load.watched_to_the_end()
    record = load.add_to(cluster.record())
    cluster.judge(record, load.complaints)
    assert len({answer.order_id for answer in record.answers}) == count


async def test_valkey_emptied_under_load_costs_nothing(cluster: Cluster, load: Load) -> None:
    async with flowing(cluster, load, 60):
        for count in (10, 25, 40):
            await accepted(cluster, load, count)
            await cluster.empty_valkey()
    await all_ends_well(cluster, load, 60)


async def test_orders_go_on_without_valkey_and_when_it_is_back(cluster: Cluster, load: Load) -> None:
    async with flowing(cluster, load, 40):
        await accepted(cluster, load, 10)
        cluster.kill("valkey")
    # While it is away: found by the sweep, watched by looking.
    await all_ends_well(cluster, load, 40)
    await cluster.restart("valkey")
    async with flowing(cluster, load, 10):
        pass
    await all_ends_well(cluster, load, 50)


async def test_a_frozen_valkey_holds_up_nobody(cluster: Cluster, load: Load) -> None:
    async with flowing(cluster, load, 30):
        await accepted(cluster, load, 10)
        cluster.freeze("valkey")
    await all_ends_well(cluster, load, 30)
    cluster.thaw("valkey")


async def test_postgresql_killed_twice_under_load_loses_nothing(cluster: Cluster, load: Load) -> None:
    async with flowing(cluster, load, 60):
        for count in (15, 35):
            await accepted(cluster, load, count)
            cluster.kill("postgres")
            await cluster.restart("postgres")
    await all_ends_well(cluster, load, 60)


async def test_the_node_killed_under_load_goes_on_where_it_was(cluster: Cluster, load: Load) -> None:
    async with flowing(cluster, load, 60):
        for count in (15, 35):
            await accepted(cluster, load, count)
            before = (await cluster.node("simnet_ledger", {"limit": 1}))["slot"]
            cluster.kill("simnet")
            await cluster.restart("simnet")
            assert (await cluster.node("simnet_ledger", {"limit": 1}))["slot"] >= before
    await all_ends_well(cluster, load, 60)


async def test_everything_restarted_in_turn_under_load_loses_and_doubles_nothing(
    cluster: Cluster, load: Load
) -> None:
    async with flowing(cluster, load, 90):
        for number, name in enumerate(cluster.names):
            await accepted(cluster, load, 10 + 8 * number)
            assert await cluster.terminate(name) == 0
            await cluster.restart(name)
    await all_ends_well(cluster, load, 90)
