"""Launches over JSON-RPC: which there are, one on request, and more or less in a pool."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from solders.pubkey import Pubkey

from engine.domain.tokens import BONK, SOL, USDC
from engine.settings import Settings
from engine.solana.accounts import MINT
from engine.solana.rpc import NodeClient
from simnet.chain import FIRST_SLOT
from simnet.liquidity import KINDS
from simnet.node import Node

Ask = Callable[..., Awaitable[Any]]
SLOTS = 20


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A node whose slots tick by simnet_advance alone."""
    settings = Settings(simnet_port=0, simnet_market_pools=0, simnet_launch_slots=SLOTS)
    async with Node(settings) as node:
        yield node


@pytest.fixture
async def answer(node: Node) -> AsyncIterator[Ask]:
    async with aiohttp.ClientSession() as session:

        async def ask(method: str, **asked: Any) -> Any:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": [asked]}
            async with session.post(node.url, json=body) as response:
                return await response.json()

        yield ask


@pytest.fixture
def ask(answer: Ask) -> Ask:
    async def result(method: str, **asked: Any) -> Any:
        answered = await answer(method, **asked)
        assert "error" not in answered, answered
        return answered["result"]

    return result


async def pool_json(ask: Ask, pool: str) -> Any:
    return next((each for each in await ask("simnet_pools") if each["pool"] == pool), None)


async def test_launches_are_told_before_and_after_they_open(node: Node, ask: Ask) -> None:
    await ask("simnet_advance", slots=2 * SLOTS + 1)
    told = await ask("simnet_launches", count=2)
    assert [(each["index"], each["slot"] - FIRST_SLOT, each["open"]) for each in told] == [
        (0, SLOTS, True),
        (1, 2 * SLOTS, True),
        (2, 3 * SLOTS, False),
        (3, 4 * SLOTS, False),
    ]
    assert [each["kind"] for each in told[:3]] == list(KINDS)
    newest, coming = told[1], told[2]
    assert newest.keys() == {
        "index", "requested", "mint", "decimals", "quote", "pool", "venue", "kind", "slot", "open", "price",
        "baseAmount", "quoteAmount", "liquidity",
    }  # fmt: skip
    assert [each["slot"] - newest["slot"] for each in newest["liquidity"]] == [2, 6]
    listed = await pool_json(ask, newest["pool"])
    assert (listed["base"], listed["quote"], listed["kind"]) == (newest["mint"], "SOL", newest["kind"])
    assert (listed["baseAmount"], listed["quoteAmount"]) == (newest["baseAmount"], newest["quoteAmount"])
    assert listed["price"] == pytest.approx(newest["price"], rel=1e-6)
    assert await pool_json(ask, coming["pool"]) is None
    # Clients can read the decimals of what comes next, and of nothing later.
    async with NodeClient(node.url, node.ws_url) as client:
        mints = [Pubkey.from_string(each["mint"]) for each in told]
        _, (_, _, account, absent) = await client.multiple_accounts(mints)
    assert account is not None
    assert MINT.decode(account.data).decimals == coming["decimals"]
    assert absent is None


async def test_a_token_is_launched_on_request_at_once(ask: Ask) -> None:
    asked = {"quote": "USDC", "quoteAmount": 500 * 10**6, "price": "0.0025", "kind": KINDS[1], "decimals": 7}
    launched = await ask("simnet_launch", **asked)
    slot = await ask("simnet_pause")
    assert launched == {
        "index": 1,
        "requested": True,
        "mint": launched["mint"],
        "decimals": 7,
        "quote": "USDC",
        "pool": launched["pool"],
        "venue": "Raydium",
        "kind": "raydium_amm_v4",
        "slot": slot,
        "open": True,
        "price": 0.0025,
        "baseAmount": str(200_000 * 10**7),
        "quoteAmount": str(500 * 10**6),
        "liquidity": [],
    }
    listed = await pool_json(ask, launched["pool"])
    assert listed["price"] == pytest.approx(0.0025)
    assert listed in await ask("simnet_move_price", pool=launched["pool"], bps=0)
    assert launched in await ask("simnet_launches")


async def test_requests_differ_and_come_out_the_same_on_another_node(ask: Ask) -> None:
    first = [await ask("simnet_launch", quoteAmount=10**10) for _ in range(3)]
    assert len({each["mint"] for each in first}) == 3
    assert {each["kind"] for each in first} == set(KINDS)
    async with (
        Node(Settings(simnet_port=0, simnet_market_pools=0, simnet_launch_slots=0)) as other,
        aiohttp.ClientSession() as session,
    ):
        for launched in first:
            body = {"id": 1, "method": "simnet_launch", "params": [{"quoteAmount": str(10**10)}]}
            async with session.post(other.url, json=body) as response:
                assert (await response.json())["result"] == launched


async def test_a_request_opens_as_many_slots_later_as_it_says(ask: Ask) -> None:
    launched = await ask("simnet_launch", quoteAmount=10**10, slots=5)
    assert (launched["open"], launched["slot"]) == (False, FIRST_SLOT + 5)
    await ask("simnet_advance", slots=4)
    assert await pool_json(ask, launched["pool"]) is None
    assert launched in await ask("simnet_launches")
    await ask("simnet_advance")
    assert await pool_json(ask, launched["pool"]) is not None
    assert {**launched, "open": True} in await ask("simnet_launches")


async def test_a_token_has_as_many_pools_as_are_asked_for(answer: Ask, ask: Ask) -> None:
    scheduled = (await ask("simnet_launches", count=1))[-1]
    mint = scheduled["mint"]
    # Of a token on schedule, before its own pool opens; of one kind until there are no more.
    again = {"mint": mint, "kind": scheduled["kind"], "quoteAmount": 10**10}
    pools = [(await ask("simnet_launch", **again, slots=slots))["pool"] for slots in (0, 30, 0)]
    refused = (await answer("simnet_launch", **again))["error"]
    assert (refused["code"], "take another kind" in refused["message"]) == (-32602, True)
    pools.append((await ask("simnet_launch", **{**again, "quote": "USDC"}))["pool"])
    pools.append((await ask("simnet_launch", mint=BONK.mint, quoteAmount=10**10))["pool"])
    await ask("simnet_advance", slots=SLOTS + 11)
    listed = {each["pool"]: each for each in await ask("simnet_pools")}
    assert len(set(pools)) == 5
    assert [listed[pool]["base"] for pool in (*pools, scheduled["pool"])] == [
        *[mint] * 4, "BONK", mint,
    ]  # fmt: skip


async def test_liquidity_is_set_on_request(ask: Ask) -> None:
    for kind in KINDS:
        launched = await ask("simnet_launch", quoteAmount=10**10, kind=kind)
        for quote_amount in (7 * 10**10, 10**9):
            assert await ask("simnet_liquidity", pool=launched["pool"], quoteAmount=quote_amount) == {
                "slot": FIRST_SLOT,
                "pool": launched["pool"],
                "quoteAmount": str(quote_amount),
            }
            listed = await pool_json(ask, launched["pool"])
            assert listed["quoteAmount"] == str(quote_amount)
            assert listed["price"] == pytest.approx(launched["price"], rel=1e-6)


LAUNCH = {"quoteAmount": 10**10}


@pytest.mark.parametrize(
    ("method", "asked", "sentence"),
    [
        ("simnet_launches", {"count": 0}, "count must be a whole number from 1"),
        ("simnet_launches", {"count": 101}, "count must be a whole number from 1 to 100"),
        ("simnet_launch", {}, "quoteAmount is missing"),
        ("simnet_launch", {"quoteAmount": 1.5}, "quoteAmount must be a whole number"),
        ("simnet_launch", {**LAUNCH, "quote": "DOGE"}, "quote must be one of SOL, USDC"),
        ("simnet_launch", {**LAUNCH, "quote": 7}, "quote must be one of SOL, USDC"),
        ("simnet_launch", {**LAUNCH, "kind": "raydium_clmm"}, "kind must be one of raydium_cpmm"),
        ("simnet_launch", {**LAUNCH, "kind": [1]}, "kind must be one of raydium_cpmm"),
        ("simnet_launch", {**LAUNCH, "price": 0}, "price must be a number"),
        ("simnet_launch", {**LAUNCH, "price": "1e-99999999"}, "price must be a number"),
        ("simnet_launch", {**LAUNCH, "price": "dear"}, "price must be a number"),
        ("simnet_launch", {**LAUNCH, "price": True}, "price must be a number"),
        ("simnet_launch", {**LAUNCH, "price": 1e18}, "would open with 0 base units"),
        ("simnet_launch", {**LAUNCH, "price": 1e-18}, "change price, quoteAmount or decimals"),
        ("simnet_launch", {**LAUNCH, "decimals": 30}, "decimals must be a whole number from 0 to 12"),
        ("simnet_launch", {**LAUNCH, "slots": -1}, "slots must be a whole number from 0"),
        ("simnet_launch", {**LAUNCH, "mint": "abc"}, "WrongSize"),
        ("simnet_launch", {**LAUNCH, "mint": str(Pubkey.default())}, "is no mint"),
        ("simnet_launch", {**LAUNCH, "mint": SOL.mint}, "mint is the quote token's own"),
        ("simnet_launch", {**LAUNCH, "mint": USDC.mint, "decimals": 9}, "decimals of that mint are 6"),
        ("simnet_launch", {"quoteAmount": 2**63 - 1, "quote": "BONK"}, ""),
        ("simnet_liquidity", {"quoteAmount": 1}, "pool is missing"),
        ("simnet_liquidity", {"pool": SOL.mint, "quoteAmount": 1}, "there is no such pool"),
        ("simnet_liquidity", {"pool": "clmm", "quoteAmount": 10**9}, "of raydium_clmm cannot be changed"),
        ("simnet_liquidity", {"pool": "launched", "quoteAmount": 0}, "quoteAmount must be a whole number"),
        ("simnet_liquidity", {"pool": "launched", "quoteAmount": 2**63 - 1}, "cannot"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_sentence(
    node: Node, answer: Ask, ask: Ask, method: str, asked: dict[str, Any], sentence: str
) -> None:
    launched = await ask("simnet_launch", quoteAmount=10**10, price=0.1, decimals=9)
    pools = {"clmm": "raydium_clmm", "launched": None}
    if asked.get("pool") in pools:
        kind = pools[asked["pool"]]
        listed = await ask("simnet_pools")
        pool = launched["pool"] if kind is None else next(p["pool"] for p in listed if p["kind"] == kind)
        asked = {**asked, "pool": pool}
    before = dict(node.chain.accounts)
    if not sentence:
        # There can be 2**64 - 1 of them.
        await ask(method, **asked)
        sentence = "there cannot be so many tokens"
        before = dict(node.chain.accounts)
    error = (await answer(method, **asked))["error"]
    assert error["code"] == -32602
    assert sentence in error["message"]
    assert node.chain.accounts == before
