"""Runs the real server and gateway inside a test, and moves orders on as a worker would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from client import OrderClient
from engine.domain.lifecycle import Claimed, Fact, Landed, NotRouted, Routed, Signed, apply
from engine.domain.order import Attempt, Order, Quote, Route, RouteLeg, RoutingDecision
from engine.domain.retry import RetryPolicy
from engine.hints import Hints
from engine.settings import Settings
from engine.storage.migrate import read_news_key
from engine.storage.postgres import Store
from gateway.server import serve as serve_gateway
from server.app import serve as serve_orders

POOL = "7YttLkHDoNj9wyDur5pM1ejNaAvT9X4eqaYcHQqtj2G5"
ATTEMPT = Attempt(1, "5" * 88, b"signed", 1000)

BUY = {"side": "buy", "amount": 10, "inputToken": "SOL", "outputToken": "USDC"}


class Running:
    """A process's `serve` as a task of this one, until the block ends or `stop` is called."""

    def __init__(self, main: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._task = asyncio.ensure_future(main)

    async def stop(self) -> None:
        """Stop as SIGTERM does, and wait for the end."""
        self._stopping.set()
        await self._task

    def check(self) -> None:
        """Raise what it failed with, if it has."""
        if self._task.done():
            self._task.result()


@asynccontextmanager
async def order_server(settings: Settings) -> AsyncIterator[Running]:
    """The gRPC server on `settings.grpc_port`, serving."""
    stopping = asyncio.Event()
    running = Running(serve_orders(settings, stopping), stopping)
    try:
        async with OrderClient(address(settings)) as client, asyncio.timeout(20):
            while await client.unready_reason(0.5) is not None:
                running.check()
                await asyncio.sleep(0.02)
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[tuple[str, Running]]:
    """The gateway in front of that server: "127.0.0.1:<port>", and what stops it."""
    stopping = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    running = Running(serve_gateway(settings, stopping, port.set_result), stopping)
    try:
        async with asyncio.timeout(20):
            while not port.done():
                running.check()
                await asyncio.sleep(0.01)
        yield f"127.0.0.1:{port.result()}", running
    finally:
        await running.stop()


def address(settings: Settings) -> str:
    return f"{settings.grpc_host}:{settings.grpc_port}"


def with_grpc_port(settings: Settings, free_port: Callable[[], int]) -> Settings:
    return replace(settings, grpc_port=free_port())


class Worker:
    """Moves orders through their statuses by storing the facts a worker would find."""

    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings)
        self._settings = settings
        self.hints: Hints

    async def __aenter__(self) -> Self:
        self.hints = Hints(self._settings, await read_news_key(self._settings))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.store.__aexit__(kind, error, trace)
        await self.hints.aclose()

    async def move(self, order_id: str, *facts: Fact) -> Order:
        """Apply the facts, one transition each, and tell the watchers."""
        order = await self.store.get(UUID(order_id))
        assert order is not None
        for fact in facts:
            transition = apply(order, fact, RetryPolicy())
            moved = await self.store.advance([transition])
            assert moved is not None
            order = moved
            self.hints.tell(order, [transition.event])
            await self.hints.drain()
        return order

    async def execute(self, order_id: str) -> Order:
        """Take the order all the way to CONFIRMED."""
        return await self.move(order_id, *await self.facts(order_id))

    async def facts(self, order_id: str) -> Sequence[Fact]:
        """What happens to an order that goes well: claimed, routed, signed, landed."""
        return [Claimed(), Routed(decision()), Signed(ATTEMPT), Landed(94_786_730, 10_000_000)]


def decision(reason: str = "Raydium asks least") -> RoutingDecision:
    """10 USDC for 0.09478673 SOL at Raydium; Meteora's pool refuses."""
    leg = RouteLeg("Raydium", "raydium_cpmm", POOL, 94_786_730, 10_000_000, 95_260_663, 2500, 12, 236_967)
    return RoutingDecision(
        attempt=1,
        slot=7,
        quotes=(
            Quote("Raydium", "raydium_cpmm", POOL, 94_786_730, 10_000_000, 2500, 12, fee_amount=236_967),
            Quote("Meteora", "meteora_damm_v2", POOL[::-1], refusal="the pool is disabled"),
        ),
        route=Route((leg,), leg.input_amount, leg.output_amount, 95_260_663, 12, 51, 1),
        reason=reason,
    )


def no_route(attempt: int = 1) -> NotRouted:
    return NotRouted(replace(decision("no pool can fill it"), attempt=attempt, route=None))
