"""Tokens that an order names and nobody knew: learned with their pools, followed as these open, forgotten."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from solders.keypair import Keypair

from engine.domain.errors import NodeUnavailable, TooManyTokens
from engine.domain.order import OrderSpec, Side
from engine.domain.tokens import SOL, USDC, Token, token_of_mint
from engine.market import Market
from engine.market.discovery import FORGET_SECONDS
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet
from tests.integration.engine.on_simnet import built, route_of, settled, trading
from tests.simnet_process import Simnet

ONE_SOL = 10**9


async def launched(simnet: Simnet, slots: int, **asked: Any) -> tuple[dict[str, Any], Token]:
    launch = await simnet.ask(
        "simnet_launch", {"quote": "SOL", "quoteAmount": 20 * ONE_SOL, "price": 0.001, "slots": slots} | asked
    )
    return launch, token_of_mint(launch["mint"], launch["decimals"])


def spending(token: Token) -> OrderSpec:
    return OrderSpec(Side.SELL, ONE_SOL, SOL, token)


def is_traded(market: Market, token: Token) -> bool:
    return market.decide(spending(token), 1, 50).route is not None


async def test_a_token_is_traded_as_soon_as_it_is_learned(
    simnet: Simnet, node: NodeClient, wallet: Wallet
) -> None:
    launch, token = await launched(simnet, 0)
    async with trading(node, wallet) as market:
        assert not is_traded(market, token)
        # However many ask at once.
        await asyncio.gather(*(market.learn((SOL, token)) for _ in range(5)))
        assert market.liquidity(SOL, token) == 20 * ONE_SOL
        route = route_of(market, spending(token))
        assert [leg.pool for leg in route.legs] == [launch["pool"]]
        status, record = await settled(node, built(market, wallet, spending(token), route))
        assert status.err is None
        exchanged = record.exchanged(str(wallet.pubkey), SOL.mint, token.mint)
        assert exchanged == (route.input_amount, route.output_amount)
        # What was bought is known to be there, and can be sold.
        await market.next_refresh()
        await market.next_refresh()
        assert market.wallet_balance(token) == route.output_amount
        back = OrderSpec(Side.SELL, route.output_amount, token, USDC)
        assert route_of(market, back).middle_token == SOL


async def test_pools_of_a_learned_token_are_traded_as_they_open(
    simnet: Simnet, node: NodeClient, wallet: Wallet
) -> None:
    async with trading(node, wallet) as market:
        launch, token = await launched(simnet, 25)
        await market.learn((token,))
        assert not is_traded(market, token)
        async with asyncio.timeout(20):
            while not is_traded(market, token):
                await market.next_refresh()
        second, _ = await launched(simnet, 5, mint=token.mint, kind="meteora_damm_v2")
        async with asyncio.timeout(20):
            while len(market.decide(spending(token), 1, 50).quotes) < 2:
                await market.next_refresh()
        pools = {quote.pool for quote in market.decide(spending(token), 1, 50).quotes}
        assert pools == {launch["pool"], second["pool"]}


async def test_a_pool_that_opens_takes_the_place_of_one_that_holds_less_where_a_pair_is_full(
    simnet: Simnet, node: NodeClient, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with trading(node, wallet) as market:
        _, token = await launched(simnet, 0, quoteAmount=ONE_SOL)
        await market.learn((token,))
        monkeypatch.setattr("engine.market.pools.MOST_POOLS", 1)
        better, _ = await launched(simnet, 5, mint=token.mint, kind="meteora_damm_v2")
        async with asyncio.timeout(20):
            while [quote.pool for quote in market.decide(spending(token), 1, 50).quotes] != [better["pool"]]:
                await market.next_refresh()


async def test_as_many_tokens_are_learned_as_can_be_followed(
    simnet: Simnet, node: NodeClient, wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.market.discovery.MOST_LEARNED", 1)
    _, one = await launched(simnet, 0)
    _, other = await launched(simnet, 0)
    async with trading(node, wallet) as market:
        for _ in range(2):
            with pytest.raises(TooManyTokens, match="1 tokens are followed, which is as many as can be"):
                await market.learn((one, other))
            assert is_traded(market, one)
            assert not is_traded(market, other)


async def test_what_opened_while_the_node_was_gone_is_found_when_it_is_back(
    simnet: Simnet, node: NodeClient, wallet: Wallet
) -> None:
    async with trading(node, wallet) as market:
        _, token = await launched(simnet, 40)
        await market.learn((token,))
        await simnet.kill()
        with pytest.raises(NodeUnavailable):
            await market.learn((token_of_mint(str(Keypair().pubkey()), 6),))
        await simnet.start()
        async with asyncio.timeout(30):
            while not market.ready or not is_traded(market, token):
                await market.next_refresh()


async def test_a_token_that_no_order_names_any_more_is_forgotten(
    simnet: Simnet, node: NodeClient, wallet: Wallet
) -> None:
    _, named = await launched(simnet, 0)
    _, unnamed = await launched(simnet, 0)
    ahead = 0.0
    market = Market(
        node, wallet.pubkey, discovery_seconds=0.05, monotonic_seconds=lambda: time.monotonic() + ahead
    )
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(market.run())
        await market.wait_ready()
        known = market.pool_count
        await market.learn((named, unnamed))
        assert market.pool_count == known + 2
        ahead = FORGET_SECONDS - 1
        await market.learn((named,))
        ahead = FORGET_SECONDS + 1
        while market.pool_count > known + 1:
            await market.next_refresh()
        assert is_traded(market, named)
        assert not is_traded(market, unnamed)
        await market.learn((unnamed,))
        assert is_traded(market, unnamed)
        following.cancel()
