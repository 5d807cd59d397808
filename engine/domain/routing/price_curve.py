"""How much a pool takes and gives down to each price: its segments, sorted, with what came before each.

Prices are s = 1/sqrt(output per input at the margin), fees included, which grows as the price worsens: what a
pool takes is piecewise linear in s, with jumps (engine/domain/pools/pool.py, Segment).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import groupby
from math import inf
from operator import itemgetter, mul
from typing import Final

from engine.domain.order import Side
from engine.domain.pools.pool import Clock, Pool, Segment

_SELL: Final = Side.SELL


Breakpoint = tuple[float, float, float]
"""A price, by how much the slope of the input changes there, and what goes in at that very price."""


_ERROR: Final = 4e-15
"""Of the output reserve that a curve behaves as if it had, and of how far its price moves: how far floating
point may be off, where prices lie close together."""
_ROUNDING: Final = 1e-14
"""Of a sum over a curve's parts."""
_LEEWAY: Final = 1e-6
"""How far all that a pool takes or gives may be off, as a part: far more than floating point, as fees are
rounded too."""
_LEEWAY_UNITS: Final = 256
"""How many base units a part of a curve may take more for rounding: two, of which a fee leaves 1 %."""


class PriceCurve:
    """One direction of one pool at one moment.

    It reads as many of the pool's segments as the orders so far have needed. Where a fee falls along the way
    they do not come sorted by price; sorted, they give more for an input than the pool does, never less.
    """

    __slots__ = (
        "_ahead",
        "_inputs",
        "_jumps",
        "_outputs",
        "_prices",
        "_segments",
        "_slopes",
        "best_price",
        "breakpoints",
        "depth",
    )

    def __init__(self, pool: Pool, a_to_b: bool, clock: Clock) -> None:
        self._ahead: Iterator[Segment] = pool.segments(a_to_b, clock)
        self._segments: list[Segment] = []
        self._prices: list[float] = []
        self._slopes: list[float] = []
        self._jumps: list[float] = []
        # What went in and came out before each price.
        self._inputs: list[float] = [0.0]
        self._outputs: list[float] = [0.0]
        self.breakpoints: list[Breakpoint] = []
        self.depth = 0.0
        """The largest output reserve that any part of the curve behaves as if it had."""
        self.best_price = inf
        """Where it begins; infinite for a pool that does not trade."""
        self._read_on(0.0, 0.0)

    def read_for(self, amount: float, side: Side) -> float:
        """Make sure that all swaps of up to so much input (SELL) or output (BUY) are covered.

        Return the most that it takes (SELL) or gives (BUY), as far as it has been read.
        """
        if side is _SELL:
            if self._inputs[-1] < amount:
                self._read_on(amount, 0.0)
            return self._inputs[-1]
        if self._outputs[-1] < amount:
            self._read_on(0.0, amount)
        return self._outputs[-1]

    def leeway(self, side: Side) -> float:
        """Return how much more than all that read_for tells a pool may take (SELL) or give (BUY) after all.

        Floating point is off by a part of the reserves that a curve behaves as if it had, and programs round
        the input of each part of a curve and its fee up, which a high fee makes many units of.
        """
        if side is Side.BUY:
            return _LEEWAY * max(self.depth, self._outputs[-1])
        reserve = max(map(mul, self._slopes, self._prices[1:]), default=0.0)
        return _LEEWAY * (reserve + self._inputs[-1]) + _LEEWAY_UNITS * (len(self._segments) + 1)

    def input_at(self, price: float) -> float:
        """Return what goes in at prices better than this one."""
        at = bisect_left(self._prices, price) - 1
        if at < 0:
            return 0.0
        return self._inputs[at] + self._jumps[at] + self._slopes[at] * (price - self._prices[at])

    def output_at(self, price: float) -> float:
        """Return what comes out at prices better than this one."""
        at = bisect_left(self._prices, price) - 1
        if at < 0:
            return 0.0
        start = self._prices[at]
        jumped = self._jumps[at] / (start * start)
        return self._outputs[at] + jumped + self._slopes[at] * (price - start) / (start * price)

    def jump_at(self, price: float) -> float:
        """Return what goes in at this very price."""
        at = bisect_left(self._prices, price)
        return self._jumps[at] if at < len(self._prices) and self._prices[at] == price else 0.0

    def slope_at(self, price: float) -> float:
        """Return by how much the input grows per unit of s just before this price."""
        at = bisect_left(self._prices, price) - 1
        return self._slopes[at] if at >= 0 else 0.0

    def gain(self, price: float) -> float:
        """Return the most that an input of any size gives beyond what it is worth at this price.

        In base units of output: the maximum over d of output(d) - d / price**2; no less than that, whatever
        floating point makes of it.
        """
        moved = (price - self.best_price) / price
        if moved <= 0:
            return 0.0
        if len(self._prices) == 1 and not self._jumps[0]:
            # The difference of the two is small beside either; here it can be had without taking it.
            return self.depth * moved * (moved + _ERROR)
        output = self.output_at(price)
        return output * (1 + _ROUNDING) - self.input_at(price) / (price * price) + _ERROR * self.depth * moved

    def _read_on(self, input_amount: float, output_amount: float) -> None:
        taken, given = self._inputs[-1], self._outputs[-1]
        before = len(self._segments)
        for segment in self._ahead:
            self._segments.append(segment)
            taken += segment.input_amount
            if segment.jump:
                given += segment.jump / (segment.start * segment.start)
            else:
                given += segment.slope * (1 / segment.start - 1 / segment.end)
            if taken > input_amount and given > output_amount:
                break
        if len(self._segments) > before:
            self._lay_out()

    def _lay_out(self) -> None:
        """Cut the curve at every price where something changes."""
        if len(self._segments) == 1:
            # All of most pools, and most orders need no more of the others.
            self._lay_out_one(*self._segments[0])
            return
        changes: list[Breakpoint] = []
        for start, end, slope, jump in self._segments:
            if jump:
                changes.append((start, 0.0, jump))
            elif end > start:
                changes.append((start, slope, 0.0))
                if end < inf:
                    changes.append((end, -slope, 0.0))
                self.depth = max(self.depth, slope / start)
        if not changes:
            return
        changes.sort()
        self._prices, self._slopes, self._jumps, self._inputs, self._outputs = [], [], [], [], []
        self.breakpoints = []
        # Slopes are added up anew at each price: what is left of a large one would hide a small one.
        active: list[float] = []
        last, slope, jump, taken, given = 0.0, 0.0, 0.0, 0.0, 0.0
        for price, here in groupby(changes, key=itemgetter(0)):
            if self._prices:
                moved = slope * (price - last)
                taken += jump + moved
                given += jump / (last * last) + moved / (last * price)
            before, jump = slope, 0.0
            for _, change, jumped in here:
                jump += jumped
                if change > 0:
                    active.append(change)
                elif change < 0:
                    active.remove(-change)
            slope, last = sum(active), price
            self._prices.append(price)
            self._slopes.append(slope)
            self._jumps.append(jump)
            self._inputs.append(taken)
            self._outputs.append(given)
            self.breakpoints.append((price, slope - before, jump))
        # Behind the last price stands what all of it comes to.
        self._inputs.append(inf if slope else taken + jump)
        self._outputs.append(given + (jump / last + slope) / last)
        self.best_price = self._prices[0]

    def _lay_out_one(self, start: float, end: float, slope: float, jump: float) -> None:
        if jump:
            self._prices, self._slopes, self._jumps = [start], [0.0], [jump]
            self._inputs, self._outputs = [0.0, jump], [0.0, jump / start / start]
            self.breakpoints = [(start, 0.0, jump)]
        elif end == inf:
            self.depth = slope / start
            self._prices, self._slopes, self._jumps = [start], [slope], [0.0]
            self._inputs, self._outputs = [0.0, inf if slope else 0.0], [0.0, self.depth]
            self.breakpoints = [(start, slope, 0.0)]
        elif end > start:
            self.depth = slope / start
            taken = slope * (end - start)
            given = taken / (start * end)
            self._prices, self._slopes, self._jumps = [start, end], [slope, 0.0], [0.0, 0.0]
            self._inputs, self._outputs = [0.0, taken, taken], [0.0, given, given]
            self.breakpoints = [(start, slope, 0.0), (end, -slope, 0.0)]
        else:
            return
        self.best_price = start
