"""The best price there can be for an amount or more: where to look for orders that wait for a price.

What pools give is no more than a concave function of what goes in, however it is split over them, so the
average price only gets worse with the amount: a bound at one amount holds for larger ones. It is the same
dual that proves how good a route is (sweep.py), and costs as little. Of two hops it is the product.

A bound that is too high costs a look, one that is too low an order. So nothing is rounded to whole base units
here: one in few is much of a price, and of a larger amount it would be less.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from engine.domain.order import Side
from engine.domain.pools.pool import Clock
from engine.domain.routing.offer import PoolOffer
from engine.domain.routing.sweep import marginal_price
from engine.domain.routing.two_hops import Detour

_SELL: Final = Side.SELL
REACH: Final = 2
"""Up to how many times the amount the bound holds: orders between two powers of two are looked for together.
Where a fee falls along the way a pool's best price may come late, and a curve tells no more than was read of
it; to read all of it would take ten times as long."""
_ROUNDING: Final = 1e-12
"""How far floating point may be off, as a part of a price."""
_NEARLY_ALL: Final = 1 - 2e-9
"""The part of what pools hold that is reckoned with where an amount asks for all: that may have no price."""


def price_bound(
    side: Side,
    amount: int,
    clock: Clock,
    offers: Sequence[PoolOffer],
    detours: Sequence[Detour],
    reach: int = REACH,
) -> float:
    """Return a price that no order of this amount to `reach` times as much exceeds.

    0.0 where nothing trades, or not so much: then no order of this amount or more can be filled.

    Base units of output per base unit of input, all fees and price impact counted in. `amount` is of input
    (SELL) or of output (BUY), in base units.
    """
    best = _bound(side, amount, reach * amount, offers, clock)
    for detour in detours:
        best = max(best, _bound_by_way_of(detour, side, amount, reach * amount))
    return best


def _bound_by_way_of(detour: Detour, side: Side, amount: int, most: int) -> float:
    clock = detour.clock
    if side is _SELL:
        first = _bound(side, amount, most, detour.first, clock)
        if not first:
            return 0.0
        # At most so much goes into the second hop. How much less, nothing says, so it need not take all that.
        return first * _bound(side, amount * first, most * first, detour.second, clock, or_less=True)
    second = _bound(side, amount, most, detour.second, clock)
    # At least so much has to go into the second hop. How much may, nothing says.
    return second and second * _bound(side, amount / second, inf, detour.first, clock)


def _bound(
    side: Side,
    least: float,
    most: float,
    offers: Sequence[PoolOffer],
    clock: Clock,
    *,
    or_less: bool = False,
) -> float:
    """Return a price that no split over the pools exceeds, of any amount from least to most.

    0.0 where the pools do not take or give so much, unless they may be asked for less: what they give for all
    they take counts then.
    """
    curves = [offer.curve(clock) for offer in offers]
    limit = sum([curve.read_for(most, side) for curve in curves])
    best = min([curve.best_price for curve in curves], default=inf)
    if best == inf:
        return 0.0
    asked = taken = least
    if least > limit * _NEARLY_ALL:
        taken = min(least, limit + sum([curve.leeway(side) for curve in curves]))
        if taken < least and not or_less:
            return 0.0
        asked = limit * _NEARLY_ALL
    # The dual holds at every price; it is least at that of the amount, or of nearly all that the pools hold.
    price = marginal_price(curves, asked, side) or best
    gained = sum([curve.gain(price) for curve in curves]) / least
    if side is _SELL:
        return (taken / least / (price * price) + gained) * (1 + _ROUNDING)
    # What is left of the output may be little, so the error is one of the output.
    worst, best = price * price * (1 - _ROUNDING - gained), best * best
    return (1 + _ROUNDING) / (worst if worst > best else best)
