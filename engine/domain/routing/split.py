"""Sharing one order out over the pools of its pair, where that pays.

Every leg has a fixed cost, and one transaction holds few of them, so which pools to use is a choice. At a
price s at the margin a pool is worth its gain (what it gives beyond the price) less its cost; the few pools
that are worth most at the price of their own best split are the best choice there is: any others are worth no
more at that price, and so give no more at theirs. Starting from the price over all pools this is found in a
step or two. Where it is not, the fixed costs leave no such price, and the choices are tried one by one, until
what the next could come to at most is less than what the best one does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Final

from engine.domain.order import Side
from engine.domain.pools.pool import Clock, SwapError, SwapQuote
from engine.domain.routing.limits import Limits
from engine.domain.routing.offer import PoolOffer
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.sweep import marginal_price, shares

_SELL: Final = Side.SELL
_MAX_STEPS: Final = 6
_MAX_ENUMERATED: Final = 8
"""Pools whose combinations are tried one by one: at most 92 of up to three."""
_UNIT_COUNTS: Final = 1_000_000
"""An amount of fewer units than this is shared out to the last one."""


def choose_pools(
    offers: Sequence[PoolOffer],
    curves: Sequence[PriceCurve],
    amount: int,
    side: Side,
    limits: Limits,
    price: float,
    gains: Sequence[float],
) -> tuple[Sequence[int], float] | None:
    """Return which pools to share the amount out over, and the price at the margin of doing so.

    `price` is that of the best split over all pools, `gains` are theirs at it. None where no pools that one
    transaction holds take or give all of it.
    """
    at = price
    worth = _worth(offers, gains, side, limits, at)
    chosen = _worth_most(offers, worth, limits)
    seen = set(chosen)
    for _ in range(_MAX_STEPS):
        found = marginal_price([curves[index] for index in chosen], amount, side)
        if found is None:
            break
        at, before = found, chosen
        worth = _worth(offers, [curve.gain(at) for curve in curves], side, limits, at)
        chosen = _worth_most(offers, worth, limits)
        # As one that stands just at its price is worth nothing, others may be worth as much.
        if chosen == before or sum([worth[one] for one in chosen]) <= sum([worth[one] for one in before]):
            return before, at
        seen.update(chosen)
    return _best_of_all(offers, curves, amount, side, limits, at, worth, seen)


def share_out(
    offers: Sequence[PoolOffer],
    curves: Sequence[PriceCurve],
    amount: int,
    side: Side,
    price: float,
    clock: Clock,
) -> list[tuple[PoolOffer, SwapQuote]] | None:
    """Return each pool's swap of its part of the amount; None where one refuses it.

    The parts are whole base units that add up to the amount.
    """
    parts = shares(curves, amount, side, price)
    used = [(offer, part) for offer, part in zip(offers, parts, strict=True) if part]
    legs = _swaps(used, side, clock)
    if legs is None or len(legs) == 1:
        return legs
    # A unit of the input may be worth many of the output, and the other way round.
    smaller = min(sum([swap.input_amount for _, swap in legs]), sum([swap.output_amount for _, swap in legs]))
    return _without_waste(legs, side, clock) if smaller < _UNIT_COUNTS else legs


def net(legs: Sequence[tuple[PoolOffer, SwapQuote]], side: Side) -> int:
    """Return what the legs give together (SELL), or take as a negative number (BUY): more is better."""
    if side is _SELL:
        return sum([swap.output_amount for _, swap in legs])
    return -sum([swap.input_amount for _, swap in legs])


def _worth(
    offers: Sequence[PoolOffer], gains: Sequence[float], side: Side, limits: Limits, price: float
) -> list[float]:
    """Return what each pool is worth at a price beyond its cost, in base units of what is had or paid."""
    unit = 1.0 if side is _SELL else price * price
    cost = limits.lamport_price
    return [gain * unit - offer.leg_lamports * cost for gain, offer in zip(gains, offers, strict=True)]


def _worth_most(offers: Sequence[PoolOffer], worth: Sequence[float], limits: Limits) -> Sequence[int]:
    """Return the pools that are worth most together, as many as are worth anything and fit, one at least."""
    by_worth = sorted(range(len(worth)), key=worth.__getitem__, reverse=True)
    chosen = by_worth[: limits.max_legs]
    while len(chosen) > 1 and worth[chosen[-1]] <= 0:
        chosen.pop()
    chosen.sort()
    if len(chosen) == 1 or limits.fits([offers[at] for at in chosen], None):
        return chosen
    # One leg always fits, or nothing could be traded.
    return next(
        list(some)
        for some in _choices(worth, limits.max_legs, ())
        if len(some) == 1 or limits.fits([offers[at] for at in some], None)
    )


def _choices(worth: Sequence[float], max_legs: int, seen: Collection[int]) -> list[tuple[int, ...]]:
    """Return the combinations of the likeliest pools, those that are worth most together first.

    Likeliest are those that were chosen at some price, then those that are worth most at this one.
    """
    likely = sorted(range(len(worth)), key=lambda at: (at not in seen, -worth[at]))[:_MAX_ENUMERATED]
    likely.sort()
    counts = range(1, max_legs + 1)
    choices = [some for count in counts for some in combinations(likely, count)]
    worths = [worth[at] for at in likely]
    sums = [sum(some) for count in counts for some in combinations(worths, count)]
    return [choices[at] for at in sorted(range(len(choices)), key=sums.__getitem__, reverse=True)]


def _best_of_all(
    offers: Sequence[PoolOffer],
    curves: Sequence[PriceCurve],
    amount: int,
    side: Side,
    limits: Limits,
    price: float,
    worth: Sequence[float],
    seen: Collection[int],
) -> tuple[Sequence[int], float] | None:
    """Return the best combination of the likeliest pools; `worth` is what they are at this price."""
    best: tuple[float, Sequence[int], float] | None = None
    for chosen in _choices(worth, limits.max_legs, seen):
        # What they are worth at any one price bounds what they come to.
        most = _value(amount, side, price, [worth[at] for at in chosen])
        if best is not None and most <= best[0]:
            break
        some = [curves[at] for at in chosen]
        at = marginal_price(some, amount, side)
        if at is None or not (len(chosen) == 1 or limits.fits([offers[index] for index in chosen], None)):
            continue
        gains = [curve.gain(at) for curve in some]
        value = _value(amount, side, at, _worth([offers[index] for index in chosen], gains, side, limits, at))
        if best is None or value > best[0]:
            best = value, chosen, at
    return None if best is None else best[1:]


def _value(amount: int, side: Side, price: float, worth: Sequence[float]) -> float:
    """Return what pools come to at the price of their best split; of what is paid, a negative number."""
    return (amount / (price * price) if side is _SELL else -amount * price * price) + sum(worth)


def _swaps(
    parts: Sequence[tuple[PoolOffer, int]], side: Side, clock: Clock
) -> list[tuple[PoolOffer, SwapQuote]] | None:
    legs = []
    for offer, part in parts:
        quote_of = offer.pool.quote_exact_in if side is _SELL else offer.pool.quote_exact_out
        try:
            swap = quote_of(offer.a_to_b, part, clock)
        except SwapError:
            return None
        if not swap.output_amount:
            return None
        legs.append((offer, swap))
    return legs


def _without_waste(
    legs: list[tuple[PoolOffer, SwapQuote]], side: Side, clock: Clock
) -> list[tuple[PoolOffer, SwapQuote]]:
    """Return the legs with what all but the largest pay too much given to that, where it is better.

    Programs round up, so a part may pay more than the least that brings the same output (SELL), or less comes
    out than the same input would bring (BUY).
    """
    largest = max(range(len(legs)), key=lambda at: legs[at][1].input_amount)
    parts, saved = [], 0
    for at, (offer, swap) in enumerate(legs):
        part = swap.input_amount if side is _SELL else swap.output_amount
        if at != largest:
            try:
                if side is _SELL:
                    enough = offer.pool.quote_exact_out(offer.a_to_b, swap.output_amount, clock).input_amount
                    enough = min(part, enough)
                else:
                    enough = offer.pool.quote_exact_in(offer.a_to_b, swap.input_amount, clock).output_amount
                    enough = max(part, enough)
            except SwapError:
                enough = part
            saved += part - enough
            part = enough
        parts.append((offer, part))
    offer, part = parts[largest]
    parts[largest] = offer, part + saved
    better = _swaps(parts, side, clock) if saved else None
    return better if better is not None and net(better, side) > net(legs, side) else legs
