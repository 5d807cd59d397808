"""A simnet process for the tests."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import aiohttp
from solders.keypair import Keypair

from engine.domain.errors import NodeUnavailable
from engine.domain.tokens import Token
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet


class Simnet:
    """A simnet process with short slots, whose market rests until a test moves a price."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = _two_ports()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self._port + 1}"

    async def start(self, **environ: str) -> Self:
        await self._spawn(environ)
        failures = 0
        async with asyncio.timeout(20), NodeClient(self.url, self.ws_url) as node:
            while True:
                try:
                    await node.slot()
                except NodeUnavailable:
                    assert self._process is not None
                    if self._process.returncode is not None:
                        # While it was down, somebody's connection may have been given one of its ports.
                        failures += 1
                        assert failures < 3, "simnet ended"
                        await self._spawn(environ)
                    await asyncio.sleep(0.02)
                else:
                    return self

    async def _spawn(self, environ: Mapping[str, str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simnet"),
            stderr=DEVNULL,
            env={
                **os.environ,
                "SIMNET_PORT": str(self._port),
                "SIMNET_SLOT_MS": "20",
                "SIMNET_FINALIZED_SLOTS": "4",
                "SIMNET_MARKET_POOLS": "0",
                "SIMNET_LAUNCH_SLOTS": "0",
                "SIMNET_DATA_DIR": str(self._folder),
                **environ,
            },
        )

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        return await self.call(method, [] if params is None else [params])

    async def call(self, method: str, params: list[Any]) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with aiohttp.ClientSession() as session, session.post(self.url, json=body) as response:
            answer = await response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def fund(self, wallet: Wallet, token: Token, amount: int) -> None:
        await self.ask("simnet_fund", {"wallet": str(wallet.pubkey), "mint": token.symbol, "amount": amount})

    async def make_wallet(self, funds: Mapping[Token, int]) -> Wallet:
        wallet = Wallet(Keypair())
        for token, amount in funds.items():
            await self.fund(wallet, token, amount)
        return wallet

    async def landed(self, order_id: UUID) -> list[dict[str, Any]]:
        """The ledger's transactions for an order, in the order of execution."""
        page = await self.ask("simnet_ledger", {"memoPrefix": str(order_id)})
        transactions: list[dict[str, Any]] = page["transactions"]
        return transactions

    async def has_landed(self, order_id: UUID) -> None:
        """Wait until a transaction of the order is in the ledger."""
        async with asyncio.timeout(20):
            while not await self.landed(order_id):  # noqa: ASYNC110 - another process sets no event
                await asyncio.sleep(0.01)

    async def executions(self, order_id: UUID) -> list[str]:
        """Memos of the order's transactions that did what they should."""
        return [each["memo"] for each in await self.landed(order_id) if each["err"] is None]

    @asynccontextmanager
    async def faults(self, **faults: float) -> AsyncIterator[None]:
        """Misbehave like that inside the block."""
        await self.ask("simnet_faults", faults)
        try:
            yield
        finally:
            await self.ask("simnet_faults", dict.fromkeys(faults, 0.0))

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Make no slots inside the block, but those that are asked for."""
        await self.ask("simnet_pause")
        try:
            yield
        finally:
            await self.ask("simnet_resume")


@asynccontextmanager
async def running_simnet(folder: Path, **environ: str) -> AsyncIterator[Simnet]:
    """The process for as long as the block lasts, started with these settings; it may be killed meanwhile."""
    simnet = Simnet(folder)
    try:
        yield await simnet.start(**environ)
    finally:
        await simnet.kill()


def _two_ports() -> int:
    """Return a free port whose next one, for the WebSocket, is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
