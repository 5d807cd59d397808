"""Server and gateway killed while orders are watched: every watcher sees every status once, in order."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.faults.checker import Watch
from tests.e2e.faults.cluster import Cluster
from tests.e2e.faults.load import WATCH_KINDS, Load


async def have_seen(cluster: Cluster, watches: list[Watch], status: str) -> None:
    """Return when all of them have seen a status."""

    async def all_have() -> bool:
        return all(any(seen.status == status for seen in watch.seen) for watch in watches)

    await cluster.until(all_have)


@pytest.mark.parametrize("ends", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("victims", [["server"], ["gateway"], ["gateway", "server"]], ids="-".join)
async def test_watchers_resume_where_they_were(
    cluster: Cluster, load: Load, victims: list[str], ends: str
) -> None:
    await cluster.node("simnet_pause")
    order_ids = [await load.submit(load.request()) for _ in range(4)]
    early = [load.watch(order_id, kind) for order_id in order_ids for kind in WATCH_KINDS]
    await have_seen(cluster, early, "submitted")
    for victim in victims:
        if ends == "SIGKILL":
            cluster.kill(victim)
        else:
            assert await cluster.terminate(victim) == 0
    # These come while nobody is there.
    late = [load.watch(order_id, kind) for order_id in order_ids for kind in WATCH_KINDS]
    await cluster.node("simnet_resume")
    await cluster.all_closed()
    await cluster.restart(*reversed(victims))
    async with asyncio.timeout(30):
        await load.watched_to_the_end()
    cut = [watch for watch in early if watch.connects > 1]
    # The Python client comes back by itself; who watches a server over gRPC does not notice the gateway.
    assert {watch.name.split()[0] for watch in cut} >= ({"gRPC"} if "server" in victims else {"WebSocket"})
    assert all(watch.finished for watch in late)
    cluster.judge(load.add_to(cluster.record()), load.complaints)
