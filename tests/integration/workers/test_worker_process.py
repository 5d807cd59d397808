"""`python -m workers` and what a worker process is made of: queue, lease and sweep, start and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest

from engine.domain.lifecycle import CLOSED
from engine.domain.order import Order, OrderStatus
from engine.domain.tokens import SOL
from engine.queue import OrderBroker
from engine.settings import Settings, settings_as_environ
from engine.solana.transactions import Wallet
from engine.storage.postgres import Store
from tests.integration.engine.storage.records import new_order
from tests.integration.engine.storage.refusing import read_only
from tests.simnet_process import Simnet

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
async def wallet_path(simnet: Simnet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wallet") / "wallet.json"
    wallet = Wallet.create(path)
    await simnet.fund(wallet, SOL, 10**12)
    return path


@pytest.fixture
def settings(settings: Settings, simnet: Simnet, wallet_path: Path, free_port: Callable[[], int]) -> Settings:
    return replace(
        settings, solana_rpc_url=simnet.url, wallet_path=str(wallet_path), workers_metrics_port=free_port()
    )


async def start(settings: Settings) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers"),
        cwd=ROOT,
        env={**os.environ, **settings_as_environ(settings)},
        stderr=PIPE,
    )


async def get(settings: Settings, path: str) -> str:
    """What the first worker answers; nothing while nobody listens."""
    url = f"http://127.0.0.1:{settings.workers_metrics_port}{path}"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return await response.text()
    except aiohttp.ClientError:
        return ""


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Process]:
    """The workers as processes, once the first is ready."""
    process = await start(settings)
    try:
        async with asyncio.timeout(20):
            while (await get(settings, "/healthz")).strip() != "ok":
                assert process.returncode is None, (await process.communicate())[1].decode()
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def closed(store: Store, order: Order) -> Order:
    async with asyncio.timeout(20):
        while True:
            found = await store.get(order.order_id)
            assert found is not None
            if found.status in CLOSED:
                return found
            await asyncio.sleep(0.01)


async def test_orders_come_by_the_queue_and_by_the_sweep(settings: Settings, simnet: Simnet) -> None:
    # The sweep finds the one that was never offered, and only that: it looks once a minute at first.
    async with Store(settings) as store, running(replace(settings, sweep_seconds=60.0)):
        offered = (await store.submit(new_order())).order
        broker = OrderBroker(settings)
        broker.offer_soon([offered.order_id])
        assert (await closed(store, offered)).status is OrderStatus.CONFIRMED
        await broker.shutdown()
        metrics = await get(settings, "/metrics")
        assert 'order_engine_transitions_total{status="confirmed"} 1.0' in metrics
        for stage in ("route", "build", "record", "broadcast", "land", "total"):
            assert f'order_engine_stage_seconds_count{{stage="{stage}"}}' in metrics
    async with Store(settings) as store, running(settings):
        unoffered = (await store.submit(new_order())).order
        assert (await closed(store, unoffered)).status is OrderStatus.CONFIRMED
        assert await simnet.executions(unoffered.order_id) == [f"{unoffered.order_id}:1"]


async def test_sigterm_ends_a_busy_worker_and_another_takes_up_its_orders(
    settings: Settings, simnet: Simnet
) -> None:
    async with Store(settings) as store:
        async with running(settings) as process, simnet.paused():
            order = (await store.submit(new_order())).order
            async with asyncio.timeout(20):
                while True:
                    found = await store.get(order.order_id)
                    if found is not None and found.status is OrderStatus.SUBMITTED:
                        break
                    await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(15):
                _, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            assert b"leaving orders to other workers" in errors
        async with await psycopg.AsyncConnection.connect(settings.database) as connection:
            cursor = await connection.execute("SELECT count(*) FROM lease_owners")
            assert await cursor.fetchone() == (0,), "it gave its lease back"
        async with running(settings):
            end = await closed(store, order)
        assert (end.status, end.attempt, end.tx_hash) == (OrderStatus.CONFIRMED, 1, found.tx_hash)


async def test_a_worker_waits_for_a_database_that_takes_no_writes(settings: Settings) -> None:
    async with Store(settings) as store, running(settings) as process:
        async with read_only(settings), asyncio.timeout(20):
            while "session is read-only" not in await get(settings, "/healthz"):
                assert process.returncode is None
                await asyncio.sleep(0.02)
        order = (await store.submit(new_order())).order
        assert (await closed(store, order)).status is OrderStatus.CONFIRMED


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wallet_path": ""}, "WALLET_PATH is not set"),
        ({"wallet_path": "/nowhere/wallet.json"}, "wallet /nowhere/wallet.json cannot be read"),
        ({"db_host": "127.0.0.1", "db_port": 1}, "PostgreSQL at 127.0.0.1:1 cannot be used: "),
        ({"redis_host": "127.0.0.1", "redis_port": 1}, "Redis at 127.0.0.1:1 cannot be used: "),
        ({}, "for /metrics and /healthz cannot be bound: it is in use"),
    ],
)
async def test_what_keeps_workers_from_starting_is_one_sentence(
    change: dict[str, Any], sentence: str, settings: Settings
) -> None:
    with socket.socket() as listener:
        if not change:
            listener.bind(("127.0.0.1", settings.workers_metrics_port))
            listener.listen()
        process = await start(replace(settings, log_level="ERROR", **change))
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
    words = errors.decode()
    assert process.returncode == 2, words
    # Said once, by the process that could not start or by their supervisor.
    assert len(words.splitlines()) == 1, words
    assert words.startswith("worker")
    assert sentence in words
