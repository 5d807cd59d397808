"""A simnet process to trade on, and an order's way through the market to a settled transaction."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from engine.domain.errors import NodeUnavailable
from engine.domain.order import Attempt, OrderSpec, Route
from engine.domain.tokens import BONK, SOL, USDC, USDT, Token
from engine.market import Market, RouteRules
from engine.solana.rpc import NodeClient, SignatureStatus, TransactionRecord
from engine.solana.transactions import Wallet, build_swap
from engine.venues import VENUES
from engine.venues.venue import Venue

RULES = RouteRules()
RICH = {SOL: 1_000 * 10**9, USDC: 100_000 * 10**6, USDT: 100_000 * 10**6, BONK: 10**9 * 10**5}


class Simnet:
    """A simnet process whose market rests, so that a quote holds until the test moves a price."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _two_ports()
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port + 1}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "simnet"),
            stderr=DEVNULL,
            env={
                **os.environ,
                "SIMNET_PORT": str(self.port),
                "SIMNET_SLOT_MS": "20",
                "SIMNET_MARKET_POOLS": "0",
                "SIMNET_LAUNCH_SLOTS": "0",
                "SIMNET_DATA_DIR": str(self.folder),
            },
        )
        async with asyncio.timeout(20), NodeClient(self.url, self.ws_url) as node:
            while True:
                try:
                    await node.slot()
                except NodeUnavailable:
                    assert self._process.returncode is None, "simnet ended"
                    await asyncio.sleep(0.02)
                else:
                    return

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": [] if params is None else [params]}
        async with aiohttp.ClientSession() as session, session.post(self.url, json=body) as response:
            answer = await response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def fund(self, wallet: Wallet, token: Token, amount: int) -> None:
        await self.ask("simnet_fund", {"wallet": str(wallet.pubkey), "mint": token.symbol, "amount": amount})


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


@asynccontextmanager
async def trading(
    node: NodeClient,
    wallet: Wallet,
    venues: Sequence[Venue[Any]] = VENUES,
    rules: RouteRules = RULES,
) -> AsyncIterator[Market]:
    market = Market(node, wallet.pubkey, venues=venues, rules=rules)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(market.run())
        await market.wait_ready()
        yield market
        following.cancel()


def route_of(market: Market, spec: OrderSpec, slippage_bps: int = 50) -> Route:
    decision = market.decide(spec, 1, slippage_bps)
    assert decision.route is not None, decision.reason
    return decision.route


def built(market: Market, wallet: Wallet, spec: OrderSpec, route: Route) -> Attempt:
    return build_swap(
        wallet,
        market.swap_instructions(spec, route, wallet.pubkey),
        market.blockhash,
        uuid4(),
        1,
        compute_units=market.compute_units(route),
        priority_fee_micro_lamports=1_000,
    )


async def settled(node: NodeClient, attempt: Attempt) -> tuple[SignatureStatus, TransactionRecord]:
    """Send a transaction and return its confirmed end."""
    await node.send_transaction(attempt.raw_transaction)
    async with asyncio.timeout(20):
        while True:
            (status,) = await node.signature_statuses([attempt.tx_hash])
            if status is not None and status.reached("confirmed"):
                (record,) = await node.transactions([attempt.tx_hash])
                assert record is not None
                return status, record
            await asyncio.sleep(0.02)
