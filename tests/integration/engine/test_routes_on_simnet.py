"""Routes of several legs on a real simnet process: what they exchange, and what undoes them."""

from __future__ import annotations

import pytest

from engine.domain.order import FailureReason, OrderSpec, Side
from engine.domain.tokens import BONK, JUP, SOL, USDC, USDT, Token
from engine.market import Market, RouteRules, explain_error
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet
from tests.integration.engine.on_simnet import built, route_of, settled, trading
from tests.simnet_process import Simnet

LARGE = [
    OrderSpec(Side.SELL, 800 * 10**9, SOL, USDC),
    OrderSpec(Side.SELL, 80_000 * 10**6, USDC, SOL),
    OrderSpec(Side.BUY, 60_000 * 10**6, SOL, USDC),
    OrderSpec(Side.BUY, 600 * 10**9, USDC, SOL),
    OrderSpec(Side.BUY, 60_000 * 10**6, USDT, USDC),
]


def _named(spec: OrderSpec) -> str:
    return f"{spec.side}-{spec.input_token.symbol}-{spec.output_token.symbol}"


async def _balances(market: Market, slot: int, *tokens: Token) -> list[int]:
    while market.slot <= slot:
        await market.next_refresh()
    return [market.wallet_balance(token) for token in tokens]


@pytest.mark.parametrize("spec", LARGE, ids=_named)
async def test_shared_order_lands_in_one_transaction_as_quoted(
    node: NodeClient, wallet: Wallet, spec: OrderSpec
) -> None:
    async with trading(node, wallet) as market:
        decision = market.decide(spec, 1, 50)
        route = decision.route
        assert route is not None
        assert len(route.legs) > 1
        best = decision.quotes[0]
        if spec.side is Side.SELL:
            assert route.output_amount > (best.output_amount or 0)
        else:
            assert route.input_amount < (best.input_amount or 0)
        before = await _balances(market, 0, spec.input_token, spec.output_token)
        status, record = await settled(node, built(market, wallet, spec, route))
        assert status.err is None
        assert record.exchanged(str(wallet.pubkey), spec.input_token.mint, spec.output_token.mint) == (
            route.input_amount,
            route.output_amount,
        )
        spent, received = await _balances(market, status.slot, spec.input_token, spec.output_token)
        fee = record.fee
        assert before[0] - spent == route.input_amount + (fee if spec.input_token == SOL else 0)
        assert received - before[1] == route.output_amount - (fee if spec.output_token == SOL else 0)


@pytest.mark.parametrize("spec", [LARGE[0], LARGE[2]], ids=_named)
async def test_one_leg_beyond_its_threshold_undoes_them_all(
    simnet: Simnet, node: NodeClient, wallet: Wallet, spec: OrderSpec
) -> None:
    async with trading(node, wallet) as market:
        route = route_of(market, spec)
        assert len(route.legs) > 1
        before = await _balances(market, 0, USDC)
        attempt = built(market, wallet, spec, route)
        await simnet.ask("simnet_move_price", {"pool": route.legs[-1].pool, "bps": -100})
        status, record = await settled(node, attempt)
        assert explain_error(status.err, attempt.raw_transaction)[0] is FailureReason.SLIPPAGE_EXCEEDED
        assert record.exchanged(str(wallet.pubkey), SOL.mint, USDC.mint) == (0, 0)
        assert await _balances(market, status.slot, USDC) == before
        # Quoted afresh it goes through, at today's price.
        route = route_of(market, spec)
        status, record = await settled(node, built(market, wallet, spec, route))
        assert status.err is None
        exchanged = record.exchanged(str(wallet.pubkey), SOL.mint, USDC.mint)
        assert exchanged == (route.input_amount, route.output_amount)


ROUNDABOUT = [OrderSpec(Side.SELL, 10**6 * 10**5, BONK, JUP), OrderSpec(Side.BUY, 50 * 10**6, BONK, JUP)]


@pytest.mark.parametrize("spec", ROUNDABOUT, ids=_named)
@pytest.mark.parametrize("middle", [SOL, USDC], ids=lambda token: token.symbol)
async def test_two_hops_land_in_one_transaction_and_what_is_left_stays_in_the_wallet(
    node: NodeClient, wallet: Wallet, middle: Token, spec: OrderSpec
) -> None:
    async with trading(node, wallet, rules=RouteRules(middle_tokens=(middle,))) as market:
        route = route_of(market, spec)
        assert route.middle_token == middle
        first, second = route.legs
        assert (first.threshold_amount if spec.side is Side.SELL else first.output_amount) == (
            second.input_amount if spec.side is Side.SELL else second.threshold_amount
        )
        before = await _balances(market, 0, BONK, JUP, middle)
        status, record = await settled(node, built(market, wallet, spec, route))
        assert status.err is None
        assert record.exchanged(str(wallet.pubkey), BONK.mint, JUP.mint) == (
            route.input_amount,
            route.output_amount,
        )
        after = await _balances(market, status.slot, BONK, JUP, middle)
        assert before[0] - after[0] == route.input_amount
        assert after[1] - before[1] == route.output_amount
        left = first.output_amount - second.input_amount
        assert left > 0
        rent_of_jup_account = 2_039_280
        paid = record.fee + rent_of_jup_account if middle == SOL else 0
        assert after[2] - before[2] == left - paid


@pytest.mark.parametrize("hop", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("spec", ROUNDABOUT, ids=_named)
async def test_two_hops_end_with_nothing_swapped_where_either_is_beyond_its_threshold(
    simnet: Simnet, node: NodeClient, wallet: Wallet, spec: OrderSpec, hop: int
) -> None:
    async with trading(node, wallet) as market:
        route = route_of(market, spec)
        attempt = built(market, wallet, spec, route)
        takes, gives = route.tokens_of_leg(hop, spec.input_token, spec.output_token)
        # simnet moves the price of the pair's first token, which is SOL or not USDC.
        first_token = SOL if SOL in (takes, gives) else takes if gives == USDC else gives
        bps = -100 if first_token == takes else 100
        await simnet.ask("simnet_move_price", {"pool": route.legs[hop].pool, "bps": bps})
        status, record = await settled(node, attempt)
        assert explain_error(status.err, attempt.raw_transaction)[0] is FailureReason.SLIPPAGE_EXCEEDED
        assert record.exchanged(str(wallet.pubkey), BONK.mint, JUP.mint) == (0, 0)
