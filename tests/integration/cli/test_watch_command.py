"""`order-engine watch` while the server is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from cli import orders
from client import OrderClient, OrderSpec, Side
from engine.settings import Settings
from tests.serving import Worker, address, order_server, with_grpc_port


async def test_a_watch_says_that_the_server_is_away_and_goes_on_when_it_is_back(
    settings: Settings,
    free_port: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orders, "_LOOK_SECONDS", 0.05)
    served = with_grpc_port(settings, free_port)
    said = ""

    async def until_said(text: str) -> None:
        nonlocal said
        async with asyncio.timeout(20):
            while text not in said:
                await asyncio.sleep(0.02)
                said += capsys.readouterr().err

    async with order_server(served):
        async with OrderClient(address(served)) as client:
            order = await client.submit(OrderSpec(Side.SELL, 1, "SOL", "USDC"))
        watching = asyncio.ensure_future(orders.watch(address(served), order.order_id, 0, json=True))
        await asyncio.sleep(0.3)
        assert capsys.readouterr().err == ""
    await until_said("order-engine: waiting for the server; the watch goes on when it is back (gRPC server ")
    async with order_server(served), Worker(served) as worker:
        await until_said("order-engine: the server is back\n")
        await worker.execute(order.order_id)
        async with asyncio.timeout(20):
            assert await watching == 0
    assert said.count("\n") == 2
    out = capsys.readouterr().out
    assert [json.loads(line)["sequence"] for line in out.splitlines()] == [2, 3, 4, 5]
