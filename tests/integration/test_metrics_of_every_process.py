"""What /metrics of each process tells while orders run: real processes, scraped as Prometheus does."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from client import OrderClient, OrderSpec, OrderStatus, Side
from engine.domain.tokens import SOL
from engine.settings import Settings, settings_as_environ
from engine.solana.transactions import Wallet
from tests.simnet_process import Simnet

ROOT = Path(__file__).parents[2]
SOL_TO_USDC = {"side": "sell", "amount": "1", "inputToken": "SOL", "outputToken": "USDC"}


class Scraped:
    """The figures of one process at one moment, by name without the prefix, and by label."""

    def __init__(self, text: str) -> None:
        self._figures = {
            (sample.name.removeprefix("order_engine_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __getitem__(self, key: str | tuple[str, ...]) -> float:
        """The value of `name`, or of `name, label value ...`; 0 for what was not told."""
        return self._figures.get((key,) if isinstance(key, str) else key, 0.0)

    def __contains__(self, name: str) -> bool:
        return (name,) in self._figures


class Stack:
    """A server, a worker and a gateway as processes, in front of a simnet process."""

    def __init__(self, settings: Settings, simnet: Simnet) -> None:
        self.settings = settings
        self.simnet = simnet
        self.gateway = f"http://127.0.0.1:{settings.port}"
        self._urls = {
            "server": f"http://127.0.0.1:{settings.server_metrics_port}",
            "workers": f"http://127.0.0.1:{settings.workers_metrics_port}",
            "gateway": self.gateway,
            "simnet": simnet.url,
        }

    async def scrape(self, name: str) -> Scraped:
        async with aiohttp.ClientSession() as session, session.get(f"{self._urls[name]}/metrics") as answer:
            assert answer.status == 200
            return Scraped(await answer.text())

    async def scrape_until(self, name: str, condition: Callable[[Scraped], object]) -> Scraped:
        """Scrape the process until the condition holds."""
        async with asyncio.timeout(20):
            while not condition(scraped := await self.scrape(name)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        return scraped

    async def ready(self, name: str, process: Process) -> None:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while True:
                assert process.returncode is None, f"{name} ended"
                try:
                    async with session.get(f"{self._urls[name]}/healthz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)


@pytest.fixture
async def stack(
    settings: Settings, simnet: Simnet, free_port: Callable[[], int], tmp_path: Path
) -> AsyncIterator[Stack]:
    wallet = Wallet.create(tmp_path / "wallet.json")
    settings = replace(
        settings,
        solana_rpc_url=simnet.url,
        wallet_path=str(tmp_path / "wallet.json"),
        worker_processes=1,
        port=free_port(),
        grpc_port=free_port(),
        server_metrics_port=free_port(),
        workers_metrics_port=free_port(),
    )
    stack = Stack(settings, simnet)
    async with AsyncExitStack() as running:
        await simnet.fund(wallet, SOL, 10**12)
        processes = {}
        for name in ("server", "workers", "gateway"):
            processes[name] = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", name),
                cwd=ROOT,
                stderr=DEVNULL,
                env={**os.environ, **settings_as_environ(settings)},
            )
            running.push_async_callback(_end, processes[name])
        for name, process in processes.items():
            await stack.ready(name, process)
        yield stack


async def _end(process: Process) -> None:
    process.terminate()
    assert await process.wait() == 0


async def test_every_process_tells_what_it_did_with_the_orders(stack: Stack) -> None:
    async with (
        aiohttp.ClientSession(stack.gateway) as session,
        OrderClient(f"127.0.0.1:{stack.settings.grpc_port}") as client,
    ):
        # ---- While an order waits for the network, and is watched by two.
        async with stack.simnet.paused():
            async with session.post("/api/orders/execute", json=SOL_TO_USDC) as answer:
                assert answer.status == 202
                order_id = (await answer.json())["orderId"]
            async with session.ws_connect(f"/api/orders/{order_id}/ws") as socket:
                while (await socket.receive_json())["status"] != "submitted":
                    pass
                watch = client.watch(order_id)
                assert (await anext(watch)).status is OrderStatus.PENDING
                server = await stack.scrape_until("server", lambda found: found["orders", "open"])
                assert server["orders", "open"] == 1
                assert server["open_watches"] == 2
                assert (await stack.scrape("workers"))["leases_held"] == 1
                gateway = await stack.scrape_until("gateway", lambda found: found["events_sent_total"] == 4)
                assert (gateway["open_watches"], gateway["open_websockets"]) == (1, 1)
        assert [event.status async for event in watch][-1] is OrderStatus.CONFIRMED
        # Who has all of it learns from the record that there is no more.
        assert [event async for event in client.watch(order_id, after_sequence=5)] == []

        # ---- Another, that no pool can fill: it is tried again, and fails.
        too_much = await client.submit(OrderSpec(Side.BUY, "900000000", "SOL", "USDC"))
        assert [event.status async for event in client.watch(too_much.order_id)][-1] is OrderStatus.FAILED

    # ---- When all is done.
    server = await stack.scrape_until("server", lambda found: found["open_watches"] == 0)
    assert server["transitions_total", "pending"] == 2
    assert server["stage_seconds_count", "accept"] == 2
    for edge in ("submit", "offer", "events", "node_read"):
        assert server["batch_size_count", edge] > 0, edge
    assert server["redis_up", "hints"] == 1

    workers = await stack.scrape_until("workers", lambda found: found["leases_held"] == 0)
    for status, least in (("routing", 2), ("building", 1), ("submitted", 1), ("confirmed", 1), ("failed", 1)):
        assert workers["transitions_total", status] >= least, status
    for stage in ("queue", "route", "build", "record", "broadcast", "land", "total"):
        assert workers["stage_seconds_count", stage] > 0, stage
        assert workers["stage_seconds_sum", stage] > 0, stage
    for edge in ("claim", "advance", "acknowledge", "hints", "node_read", "node_send"):
        assert workers["batch_size_count", edge] > 0, edge
    assert workers["retries_total", "no_route"] == stack.settings.max_attempts - 1
    assert workers["sweeper_offered_total"] > 0, "a later attempt is found by the sweep"
    assert "sweeper_reclaimed_total" in workers
    assert workers["queue_messages_total", "run"] == 2
    assert workers["redis_up", "queue"] == 1

    gateway = await stack.scrape_until("gateway", lambda found: found["open_websockets"] == 0)
    assert gateway["requests_total", "202", "POST /api/orders/execute"] == 1
    assert gateway["request_seconds_count", "POST /api/orders/execute"] == 1
    assert gateway["batch_size_count", "gateway_submit"] == 1

    simnet = await stack.scrape("simnet")
    assert simnet["requests_total", "ok", "sendTransaction"] >= 1

    for name, scraped in (("server", server), ("workers", workers), ("gateway", gateway), ("simnet", simnet)):
        assert scraped["process_cpu_seconds_total"] > 0, name
        assert scraped["process_resident_memory_bytes"] > 0, name
