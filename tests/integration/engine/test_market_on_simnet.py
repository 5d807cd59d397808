"""The market, its transactions and the node client against a real simnet process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from engine.domain.order import FailureReason, OrderSpec, Side
from engine.domain.pools.meteora_damm_v2 import CollectFeeMode
from engine.domain.tokens import BONK, SOL, USDC, USDT, Token
from engine.market import explain_error
from engine.solana.rpc import NodeClient
from engine.solana.transactions import FEE_RESERVE, Wallet
from engine.venues import VENUES, meteora_damm_v2
from engine.venues.venue import Venue
from tests.integration.engine.on_simnet import RICH, built, route_of, settled, trading
from tests.simnet_process import Simnet, running_simnet


async def test_every_pool_of_simnet_is_traded(simnet: Simnet, node: NodeClient, wallet: Wallet) -> None:
    pools = await simnet.ask("simnet_pools")
    async with trading(node, wallet) as market:
        assert market.pool_count == len(pools)
        assert {
            offer.kind for offer in market.decide(OrderSpec(Side.SELL, 10**9, SOL, USDC), 1, 50).quotes
        } == {venue.kind for venue in VENUES}


async def test_wallet_balances_are_the_chains(node: NodeClient, wallet: Wallet) -> None:
    async with trading(node, wallet) as market:
        assert market.wallet_balance(SOL) == RICH[SOL] - FEE_RESERVE
        assert market.wallet_balance(USDC) == RICH[USDC]


SPECS = [
    OrderSpec(Side.SELL, 3 * 10**9, SOL, USDC),
    OrderSpec(Side.SELL, 250 * 10**6, USDC, SOL),
    OrderSpec(Side.SELL, 250 * 10**6, USDT, USDC),
    OrderSpec(Side.BUY, 100 * 10**6, SOL, USDC),
    OrderSpec(Side.BUY, 2 * 10**9, USDC, SOL),
    OrderSpec(Side.BUY, 5_000_000 * 10**5, SOL, BONK),
]


@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.side}-{spec.input_token.symbol}-{spec.output_token.symbol}"
)
@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_what_is_quoted_is_what_is_exchanged(
    node: NodeClient, wallet: Wallet, venue: Venue[Any], spec: OrderSpec
) -> None:
    async with trading(node, wallet, [venue]) as market:
        route = route_of(market, spec)
        status, record = await settled(node, built(market, wallet, spec, route))
        assert status.err is None
        assert record.exchanged(str(wallet.pubkey), spec.input_token.mint, spec.output_token.mint) == (
            route.input_amount,
            route.output_amount,
        )
        # The wallet has what the pool gave, and paid what it took; SOL also paid the fee.
        while market.slot <= status.slot:
            await market.next_refresh()
        for token, change in (
            (spec.input_token, -route.input_amount),
            (spec.output_token, route.output_amount),
        ):
            held = RICH[token] - FEE_RESERVE if token == SOL else RICH[token]
            assert market.wallet_balance(token) - held == change - (record.fee if token == SOL else 0)


async def test_pool_in_a_price_range_is_traded(node: NodeClient, wallet: Wallet) -> None:
    spec = SPECS[1]
    async with trading(node, wallet, [meteora_damm_v2.VENUE]) as market:
        route = route_of(market, spec)
        # Its fee is the lowest.
        _, (pool,) = await node.multiple_accounts([Pubkey.from_string(route.legs[0].pool)])
        assert pool is not None
        assert meteora_damm_v2.POOL.decode(pool.data).collect_fee_mode == CollectFeeMode.OUTPUT
        status, record = await settled(node, built(market, wallet, spec, route))
        assert status.err is None
        assert record.exchanged(str(wallet.pubkey), spec.input_token.mint, spec.output_token.mint) == (
            route.input_amount,
            route.output_amount,
        )


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3]], ids=["sell", "buy"])
@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_price_that_moved_away_is_slippage(
    simnet: Simnet, node: NodeClient, wallet: Wallet, venue: Venue[Any], spec: OrderSpec
) -> None:
    async with trading(node, wallet, [venue]) as market:
        route = route_of(market, spec)
        attempt = built(market, wallet, spec, route)
        await simnet.ask("simnet_move_price", {"pool": route.legs[0].pool, "bps": -100})
        status, record = await settled(node, attempt)
        assert explain_error(status.err, attempt.raw_transaction)[0] is FailureReason.SLIPPAGE_EXCEEDED
        assert record.exchanged(str(wallet.pubkey), SOL.mint, USDC.mint) == (0, 0)


@pytest.mark.parametrize("input_token", [SOL, USDT], ids=lambda token: token.symbol)
@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_wallet_without_the_input_is_told_so(
    simnet: Simnet, node: NodeClient, venue: Venue[Any], input_token: Token
) -> None:
    poor = Wallet(Keypair())
    await simnet.fund(poor, SOL, 10**8)
    await simnet.fund(poor, USDT, 10)
    spec = OrderSpec(Side.SELL, 10**9, input_token, USDC)
    async with trading(node, poor, [venue]) as market:
        attempt = built(market, poor, spec, route_of(market, spec))
        status, _ = await settled(node, attempt)
        assert explain_error(status.err, attempt.raw_transaction)[0] is FailureReason.INSUFFICIENT_FUNDS


async def test_same_bytes_sent_again_change_nothing(simnet: Simnet, node: NodeClient, wallet: Wallet) -> None:
    spec = SPECS[2]
    async with trading(node, wallet) as market:
        attempt = built(market, wallet, spec, route_of(market, spec))
        status, _ = await settled(node, attempt)
        assert await settled(node, attempt) == (status, (await node.transactions([attempt.tx_hash]))[0])
        while market.slot <= status.slot + 2:
            await market.next_refresh()
        assert market.wallet_balance(spec.input_token) == RICH[spec.input_token] - spec.amount


async def test_market_goes_on_after_simnet_was_killed(tmp_path: Path) -> None:
    async with (
        running_simnet(tmp_path) as simnet,
        NodeClient(simnet.url, simnet.ws_url) as node,
        trading(node, Wallet(Keypair())) as market,
    ):
        before = market.slot
        await simnet.kill()
        await simnet.start()
        while market.slot <= before:
            await market.next_refresh()
        assert route_of(market, SPECS[0]).output_amount > 0


@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_pool_whose_price_went_far_is_quoted_as_exactly_as_before(
    simnet: Simnet, node: NodeClient, wallet: Wallet, venue: Venue[Any]
) -> None:
    async with trading(node, wallet, [venue]) as market:
        for bps, spec in ((900, SPECS[1]), (-1_000, SPECS[0]), (90, SPECS[4])):
            # So far that other tick and bin arrays are the next ones.
            await simnet.ask("simnet_move_price", {"pair": "SOL/USDC", "bps": bps})
            moved_at = await node.slot()
            # In one refresh the new arrays are found, in the next they are read.
            while market.slot <= moved_at + 2:
                await market.next_refresh()
            await market.next_refresh()
            route = route_of(market, spec)
            status, record = await settled(node, built(market, wallet, spec, route))
            assert status.err is None
            assert record.exchanged(str(wallet.pubkey), spec.input_token.mint, spec.output_token.mint) == (
                route.input_amount,
                route.output_amount,
            )
