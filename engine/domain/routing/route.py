"""Routes made of quotes: legs with their thresholds, and what they come to together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from engine.domain.order import Quote, Route, RouteLeg, Side
from engine.domain.pools.pool import U64_MAX, SwapQuote, ceil_div
from engine.domain.routing.offer import PoolOffer
from engine.domain.tokens import Token

_SELL: Final = Side.SELL
_BPS_ONE: Final = 10_000
_PPM_ONE: Final = 1_000_000


def threshold(side: Side, input_amount: int, output_amount: int, slippage_bps: int) -> int:
    """Return the least output (SELL) or the most input (BUY) to accept, in base units.

    Source: Jupiter's otherAmountThreshold, floor(amount * (10^4 -+ bps) / 10^4).
    """
    if side is _SELL:
        return output_amount * (_BPS_ONE - slippage_bps) // _BPS_ONE
    # The program takes a u64: more than that nobody can pay anyway.
    return min(input_amount * (_BPS_ONE + slippage_bps) // _BPS_ONE, U64_MAX)


def leg_of_quote(quoted: Quote, side: Side, slippage_bps: int) -> RouteLeg:
    """Return the leg that takes what a pool offers."""
    assert quoted.input_amount is not None
    assert quoted.output_amount is not None
    return RouteLeg(
        quoted.venue,
        quoted.kind,
        quoted.pool,
        quoted.input_amount,
        quoted.output_amount,
        threshold(side, quoted.input_amount, quoted.output_amount, slippage_bps),
        quoted.fee_ppm,
        quoted.price_impact_ppm,
        quoted.fee_amount,
        quoted.fee_side,
    )


def leg_of_part(offer: PoolOffer, part: SwapQuote, side: Side, slippage_bps: int) -> RouteLeg:
    """Return the leg that does a pool's part of the order."""
    return RouteLeg(
        offer.venue,
        offer.kind,
        offer.address,
        part.input_amount,
        part.output_amount,
        threshold(side, part.input_amount, part.output_amount, slippage_bps),
        part.fee_ppm,
        part.price_impact_ppm,
        part.fee_amount,
        part.fee_side,
    )


def side_by_side(legs: Sequence[RouteLeg], side: Side, bound: int) -> Route:
    """Return the route whose legs share the order.

    Each leg's program refuses what is worse than the leg's own threshold, so together they refuse what is
    worse than the sum. `bound` is the most output (SELL) or the least input (BUY) there can be.
    """
    if len(legs) == 1:
        # Most orders are no more than this.
        (leg,) = legs
        inputs, outputs = leg.input_amount, leg.output_amount
        return Route(
            (leg,),
            inputs,
            outputs,
            leg.threshold_amount or 0,
            leg.price_impact_ppm,
            *_gap(side, inputs, outputs, bound),
        )
    legs = tuple(sorted(legs, key=lambda leg: -leg.input_amount))
    inputs = sum([leg.input_amount for leg in legs])
    outputs = sum([leg.output_amount for leg in legs])
    threshold_amount = min(sum([leg.threshold_amount or 0 for leg in legs]), U64_MAX)
    impact_ppm = ceil_div(sum([leg.price_impact_ppm * leg.input_amount for leg in legs]), inputs)
    return Route(legs, inputs, outputs, threshold_amount, impact_ppm, *_gap(side, inputs, outputs, bound))


def one_after_the_other(
    first: RouteLeg, second: RouteLeg, side: Side, bound: int, middle_token: Token
) -> Route:
    """Return the route of two hops, the first of which guarantees the second what that takes."""
    inputs, outputs = first.input_amount, second.output_amount
    kept = (_PPM_ONE - first.price_impact_ppm) * (_PPM_ONE - second.price_impact_ppm) // _PPM_ONE
    guaranteed = second if side is _SELL else first
    return Route(
        (first, second),
        inputs,
        outputs,
        guaranteed.threshold_amount or 0,
        _PPM_ONE - kept,
        *_gap(side, inputs, outputs, bound),
        middle_token,
    )


def within_limit(route: Route, side: Side, limit_amount: int) -> Route:
    """Return the route such that programs refuse what is worse than the limit, which its quotes are not.

    `limit_amount` is the least output (SELL) or the most input (BUY) of all legs. What there is between
    quotes and limit, legs that share the order may lose in proportion; two hops lose it where the order
    leaves the amount open: in the second of a sale, in the first of a purchase.
    """
    if side is _SELL:
        if route.threshold_amount >= limit_amount:
            return route
        spare, whole = route.output_amount - limit_amount, route.output_amount
    else:
        if route.threshold_amount <= limit_amount:
            return route
        spare, whole = limit_amount - route.input_amount, route.input_amount
    legs = list(route.legs)
    if route.middle_token is not None:
        open_at = 1 if side is _SELL else 0
        legs[open_at] = replace(legs[open_at], threshold_amount=limit_amount)
    elif side is _SELL:
        legs = [
            replace(leg, threshold_amount=leg.output_amount - spare * leg.output_amount // whole)
            for leg in legs
        ]
    else:
        legs = [
            replace(leg, threshold_amount=leg.input_amount + spare * leg.input_amount // whole)
            for leg in legs
        ]
    if route.middle_token is None:
        # Rounding each leg's share down leaves the sum at the limit or on the safe side of it.
        limit_amount = sum([leg.threshold_amount or 0 for leg in legs])
    return replace(route, legs=tuple(legs), threshold_amount=limit_amount)


def _gap(side: Side, input_amount: int, output_amount: int, bound: int) -> tuple[int, int]:
    """Return how far the route is from the bound, and that in millionths of what is better, rounded up."""
    if side is _SELL:
        gap, whole = max(0, bound - output_amount), max(bound, output_amount)
    else:
        gap, whole = max(0, input_amount - bound), input_amount
    return gap, ceil_div(gap * _PPM_ONE, whole) if whole else 0
