"""An order's way through the market of a simnet process to a settled transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from engine.domain.order import Attempt, OrderSpec, Route
from engine.domain.tokens import BONK, SOL, USDC, USDT
from engine.market import Market, RouteRules
from engine.solana.rpc import NodeClient, SignatureStatus, TransactionRecord
from engine.solana.transactions import Wallet, build_swap
from engine.venues import VENUES
from engine.venues.venue import Venue

RULES = RouteRules()
RICH = {SOL: 1_000 * 10**9, USDC: 100_000 * 10**6, USDT: 100_000 * 10**6, BONK: 10**9 * 10**5}


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
            _, (status,) = await node.signature_statuses([attempt.tx_hash])
            if status is not None and status.reached("confirmed"):
                (record,) = await node.transactions([attempt.tx_hash])
                assert isinstance(record, TransactionRecord)
                return status, record
            await asyncio.sleep(0.02)
