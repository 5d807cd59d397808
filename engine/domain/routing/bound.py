"""The best price there can be for an amount or more: where to look for orders that wait for a price.

What pools give is concave in what goes in, however it is split over them and over ways round, so the average
price only gets worse with the amount: a bound at one amount holds for every larger one. It is the same dual
that proves how good a route is (sweep.py), and costs as little.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from engine.domain.order import Side
from engine.domain.pools.pool import Clock
from engine.domain.routing.offer import PoolOffer
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.sweep import least_input, marginal_price, most_output
from engine.domain.routing.two_hops import Detour, bound_by_way_of


def price_bound(
    side: Side, amount: int, clock: Clock, offers: Sequence[PoolOffer], detours: Sequence[Detour]
) -> float:
    """Return a price that no order of this amount or more exceeds; 0.0 where nothing trades.

    Base units of output per base unit of input, all fees and price impact counted in. `amount` is of input
    (SELL) or of output (BUY), in base units.
    """
    curves = [offer.curve(clock) for offer in offers]
    best = _directly(side, amount, curves)
    for detour in detours:
        reached = bound_by_way_of(detour, curves, side, amount)
        best = max(best, reached / amount if side is Side.SELL else amount / reached if reached else inf)
    return best


def _directly(side: Side, amount: int, curves: Sequence[PriceCurve]) -> float:
    for curve in curves:
        curve.read_for(amount, side)
    trading = [curve for curve in curves if curve.best_price < inf]
    if not trading:
        return 0.0
    # More than they hold together is to be had at no price; at that of a little less the bound holds too.
    price = marginal_price(trading, amount, side) or min([curve.best_price for curve in trading])
    gains = [curve.gain(price) for curve in trading]
    if side is Side.SELL:
        return most_output(amount, price, gains) / amount
    needed = least_input(amount, price, gains)
    return amount / needed if needed else inf
