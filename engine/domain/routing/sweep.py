"""The best split of one amount over price curves, and the bound that proves how good a route is.

Each pool gives a concave function o(d) of what goes in, so the best split of an input D has one price at the
margin of all pools. What they take down to a price s = 1/sqrt(output per input) is piecewise linear in s: the
breakpoints are swept from the best price on until D is reached, and what is left is one linear equation. For
an output to be bought the same is linear in 1/s. Nothing is searched for, nothing converges.

Whatever the price s, no split gives more than D / s**2 + the sum over pools of max(o(d) - d / s**2): the dual
of the problem. At the price of the best split that is what the split itself gives, but for rounding. And
since the programs round against whoever swaps, no split in whole base units gives more either.

Source: Angeris, Chitra, Evans and Boyd, Optimal Routing for Constant Function Market Makers (2022), and
Diamandis et al., An Efficient Algorithm for Optimal Routing (2023, arXiv 2302.04938).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import ceil, floor, inf
from typing import Final

from engine.domain.order import Side
from engine.domain.routing.price_curve import PriceCurve

_SELL: Final = Side.SELL
_ROUNDING: Final = 1e-12
"""How far floating point may be off, as a part of the result."""
_LEFT: Final = 1e-9
"""Nobody buys so nearly all that is in a pool whose price has no end."""


def marginal_price(curves: Sequence[PriceCurve], amount: float, side: Side) -> float | None:
    """Return s at the margin of the best split of so much input (SELL) or output (BUY).

    None where the pools take or give less than that together.
    """
    limit = sum([curve.read_for(amount, side) for curve in curves])
    if limit < amount:
        return None
    breakpoints = sorted(chain.from_iterable([curve.breakpoints for curve in curves]))
    price, slope, filled = 1.0, 0.0, 0.0
    if side is _SELL:
        for at, change, jump in breakpoints:
            reached = filled + slope * (at - price)
            if reached >= amount:
                break
            price = at
            filled = reached + jump
            if filled >= amount:
                return price
            slope += change
        else:
            # Beside a far larger one that ended, floating point may have lost the slope that goes on.
            if limit < inf or slope <= 0:
                return price
        return price + (amount - filled) / slope
    for at, change, jump in breakpoints:
        reached = filled + slope * (at - price) / (at * price)
        if reached >= amount:
            left = 1 - price * (amount - filled) / slope
            # It is not beyond this, though where pools hold far more than they have left before it floating
            # point may see nothing left.
            return at if left * at <= price else price / left
        price = at
        filled = reached + jump / (at * at)
        if filled >= amount:
            return price
        slope += change
    if price * (amount - filled) >= slope * (1 - _LEFT):
        # All that pools hold: of those that end there, rounding apart; of the others it cannot be had.
        return price if filled > amount * (1 - _ROUNDING) else None
    return price / (1 - price * (amount - filled) / slope)


def most_output(input_amount: int, price: float, gains: Iterable[float]) -> int:
    """Return an output in base units that no split of the input exceeds.

    `gains` are those of all pools at this price. It holds at every price s; it is least at that of the best
    split.
    """
    return floor((input_amount / (price * price) + sum(gains)) * (1 + _ROUNDING))


def least_input(output_amount: int, price: float, gains: Iterable[float]) -> int:
    """Return an input in base units that no split that gives the output takes less than.

    `gains` are those of all pools at this price. It holds at every price s; it is most at that of the best
    split.
    """
    # What is left of the output may be little, so the error is one of the output.
    worth = output_amount * (1 - _ROUNDING) - sum(gains)
    return max(0, ceil(worth * price * price * (1 - _ROUNDING)))


def shares(curves: Sequence[PriceCurve], amount: int, side: Side, price: float) -> list[int]:
    """Return what each pool gets of the amount, in base units, at the price at the margin; zero for some.

    What rounding leaves over goes to the pool whose price it moves least.
    """
    if side is _SELL:
        parts = [floor(curve.input_at(price)) for curve in curves]
        jumps = [curve.jump_at(price) for curve in curves]
    else:
        parts = [floor(curve.output_at(price)) for curve in curves]
        jumps = [curve.jump_at(price) / (price * price) for curve in curves]
    rest = amount - sum(parts)
    for at, jump in enumerate(jumps):
        if jump and rest > 0:
            taken = min(rest, floor(jump))
            parts[at] += taken
            rest -= taken
    flattest = max(
        range(len(curves)), key=lambda at: (jumps[at] > 0 and parts[at] > 0, curves[at].slope_at(price))
    )
    parts[flattest] += rest
    return parts
