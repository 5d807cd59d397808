"""Which pool fills an order, and why. Pure: pools come in as they were at one slot.

Every pool of the pair is asked for the whole amount; the best answer wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.domain.amounts import format_amount
from engine.domain.order import OrderSpec, Quote, Route, RouteLeg, RoutingDecision, Side
from engine.domain.pools.pool import U64_MAX, Clock, Pool, SwapError

_BPS_ONE: Final = 10_000
_PPM_ONE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class PoolOffer:
    """A pool of the order's pair, and which way the order goes through it."""

    venue: str
    """As users read it: "Raydium"."""
    kind: str
    """The venue's program: "raydium_cpmm"."""
    address: str
    """Base58."""
    a_to_b: bool
    """True: the order's input is the pool's token a."""
    pool: Pool


def decide(
    spec: OrderSpec, attempt: int, slot: int, clock: Clock, offers: Sequence[PoolOffer], slippage_bps: int
) -> RoutingDecision:
    """Quote every pool and choose the best: most output (SELL), least input (BUY).

    Quotes come best first, refusals last; equal ones by kind and address, so that the same pools always
    give the same decision. `route` is None if no pool can fill the order.
    """
    quotes = sorted((quote(spec, clock, offer) for offer in offers), key=_rank)
    usable = [offer for offer in quotes if offer.refusal is None]
    if not usable:
        return RoutingDecision(attempt, slot, tuple(quotes), None, _why_none(spec, quotes))
    best = usable[0]
    return RoutingDecision(
        attempt, slot, tuple(quotes), _route(spec, best, slippage_bps), _why_best(spec, usable)
    )


def quote(spec: OrderSpec, clock: Clock, offer: PoolOffer) -> Quote:
    """Return what one pool offers for the whole amount, or its refusal."""
    pool, a_to_b = offer.pool, offer.a_to_b
    try:
        if spec.side is Side.SELL:
            swap = pool.swap_exact_in(a_to_b, spec.amount, clock)
        else:
            swap = pool.swap_exact_out(a_to_b, spec.amount, clock)
        if swap.output_amount == 0:
            return Quote(offer.venue, offer.kind, offer.address, refusal="gives nothing for so little")
        impact_ppm = _price_impact_ppm(pool.price(a_to_b), swap.pool.price(a_to_b))
    except SwapError as error:
        return Quote(offer.venue, offer.kind, offer.address, refusal=str(error))
    return Quote(
        venue=offer.venue,
        kind=offer.kind,
        pool=offer.address,
        input_amount=swap.input_amount,
        output_amount=swap.output_amount,
        fee_ppm=swap.fee_ppm,
        price_impact_ppm=impact_ppm,
    )


def threshold(side: Side, input_amount: int, output_amount: int, slippage_bps: int) -> int:
    """Return the least output (SELL) or the most input (BUY) to accept, in base units.

    Source: Jupiter's otherAmountThreshold, floor(amount * (10^4 -+ bps) / 10^4).
    """
    if side is Side.SELL:
        return output_amount * (_BPS_ONE - slippage_bps) // _BPS_ONE
    # The program takes a u64: more than that nobody can pay anyway.
    return min(input_amount * (_BPS_ONE + slippage_bps) // _BPS_ONE, U64_MAX)


def _route(spec: OrderSpec, best: Quote, slippage_bps: int) -> Route:
    assert best.input_amount is not None
    assert best.output_amount is not None
    return Route(
        legs=(RouteLeg(best.venue, best.kind, best.pool, best.input_amount, best.output_amount),),
        input_amount=best.input_amount,
        output_amount=best.output_amount,
        threshold_amount=threshold(spec.side, best.input_amount, best.output_amount, slippage_bps),
    )


def _rank(offer: Quote) -> tuple[bool, int, int, str, str]:
    return (
        offer.refusal is not None,
        -(offer.output_amount or 0),
        offer.input_amount or 0,
        offer.kind,
        offer.pool,
    )


def _price_impact_ppm(before: tuple[int, int], after: tuple[int, int]) -> int:
    """Return by how much the pool's own price got worse, in millionths, rounded up."""
    kept, whole = after[0] * before[1], after[1] * before[0]
    return max(0, -((kept - whole) * _PPM_ONE // whole))


def _why_best(spec: OrderSpec, usable: Sequence[Quote]) -> str:
    best = usable[0]
    amount, token = (
        (best.output_amount, spec.output_token)
        if spec.side is Side.SELL
        else (best.input_amount, spec.input_token)
    )
    assert amount is not None
    offered = f"{format_amount(amount, token)} {token.symbol}"
    does = f"gives {offered}" if spec.side is Side.SELL else f"asks {offered}"
    name = f"{best.venue} pool {_short(best.pool)}"
    if len(usable) == 1:
        return f"{name} {does}; no other pool can fill the order"
    second = usable[1]
    ahead_ppm = _ahead_ppm(spec.side, best, second)
    rival = f"the next best, {second.venue} pool {_short(second.pool)}"
    if ahead_ppm == 0:
        return f"{name} {does}, as good as {rival}"
    ahead = f"{ahead_ppm // 100}.{ahead_ppm % 100:02} bps"
    return f"{name} {does}, {ahead} {'more' if spec.side is Side.SELL else 'less'} than {rival}"


def _ahead_ppm(side: Side, best: Quote, second: Quote) -> int:
    if side is Side.SELL:
        assert best.output_amount is not None
        assert second.output_amount is not None
        return (best.output_amount - second.output_amount) * _PPM_ONE // second.output_amount
    assert best.input_amount is not None
    assert second.input_amount is not None
    return (second.input_amount - best.input_amount) * _PPM_ONE // second.input_amount


def _why_none(spec: OrderSpec, quotes: Sequence[Quote]) -> str:
    pair = f"{spec.input_token.symbol} for {spec.output_token.symbol}"
    if not quotes:
        return f"no pool trades {pair}"
    refusals = "; ".join(f"{offer.venue} pool {_short(offer.pool)} {offer.refusal}" for offer in quotes)
    return f"no pool can fill {pair}: {refusals}"


def _short(address: str) -> str:
    return f"{address[:4]}..{address[-4:]}"
