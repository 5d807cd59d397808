"""simnet_history over JSON-RPC."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from engine.domain.tokens import SOL, USDC
from engine.settings import Settings
from simnet.chain import FIRST_SLOT
from simnet.node import Node

ASKED = {"inputToken": "SOL", "outputToken": "USDC", "side": "sell", "amount": str(10**9)}


async def answer(node: Node, **asked: Any) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": "simnet_history", "params": [asked]}
    async with aiohttp.ClientSession() as session, session.post(node.url, json=body) as response:
        return await response.json()


async def test_history_is_told_by_symbols_or_mints_after_a_slot() -> None:
    async with Node(Settings(simnet_port=0, simnet_market_pools=40, simnet_history_slots=100)) as node:
        for _ in range(5):
            node.chain.advance()
        told = (await answer(node, **ASKED))["result"]
        assert [each["slot"] for each in told] == list(range(FIRST_SLOT, FIRST_SLOT + 6))
        assert all(each["inputAmount"] == str(10**9) for each in told)
        assert all(104 * 10**6 < int(each["outputAmount"]) < 107 * 10**6 for each in told)
        pools = {pool.name for pool in node.chain.market.pools}
        assert all(each["pool"] in pools for each in told)
        mints = {**ASKED, "inputToken": SOL.mint, "outputToken": USDC.mint, "after": FIRST_SLOT + 3}
        assert (await answer(node, **mints))["result"] == told[4:]
        too_much = {**ASKED, "side": "buy", "amount": 10**15, "after": FIRST_SLOT + 4}
        assert (await answer(node, **too_much))["result"] == [
            {"slot": FIRST_SLOT + 5, "pool": None, "inputAmount": None, "outputAmount": None}
        ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "SIMNET_HISTORY_SLOTS"),
        ({"side": "hold"}, "side must be sell or buy"),
        ({"amount": 0}, "amount must be a whole number from 1"),
        ({"after": -1}, "after must be a whole number from 0"),
        ({"inputToken": "DOGE"}, "Invalid param"),
        ({"outputToken": None}, "expected a string"),
    ],
)
async def test_what_cannot_be_told_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    async with Node(Settings(simnet_port=0)) as node:
        error = (await answer(node, **{**ASKED, **changes}))["error"]
    assert error["code"] == -32602
    assert sentence in error["message"]
