"""By way of another token, where that is better than directly, or the only way.

No program on chain carries over what the first hop really gave: each hop names its own exact amount. So a
sale's second hop spends what the first one guarantees (its threshold), and a purchase's first hop buys the
most that the second may take (its threshold). What the first gives beyond that stays in the wallet, in the
middle token; it is counted as lost here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from engine.domain.order import Quote, Route, Side
from engine.domain.pools.pool import Clock, SwapError
from engine.domain.routing.limits import Fits
from engine.domain.routing.offer import PoolOffer, quote
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.route import leg_of_quote, one_after_the_other, threshold
from engine.domain.routing.sweep import least_input, marginal_price, most_output
from engine.domain.tokens import Token

_SELL: Final = Side.SELL
_BPS_ONE: Final = 10_000
_ROUNDING: Final = 1e-12
"""How far floating point may be off, as a part of a price."""


@dataclass(frozen=True, slots=True)
class Detour:
    """A token between the order's two, and the pools on either side of it."""

    middle_token: Token
    first: Sequence[PoolOffer]
    """From the order's input to the middle token."""
    second: Sequence[PoolOffer]
    """From the middle token to the order's output."""
    clock: Clock
    best_price: float = field(init=False)
    """Output per input of both hops together, before they move their prices and without any fee."""
    second_price: float = field(init=False)
    """The same of the second hop alone."""

    def __post_init__(self) -> None:
        second = max(map(_price, self.second), default=0.0)
        object.__setattr__(self, "second_price", second)
        object.__setattr__(self, "best_price", max(map(_price, self.first), default=0.0) * second)


def _price(offer: PoolOffer) -> float:
    try:
        output, input_ = offer.price()
    except SwapError:
        return 0.0
    return output / input_ if input_ else 0.0


def could_beat(detour: Detour, side: Side, amount: int, best: int | None, slippage_bps: int) -> bool:
    """Return whether both hops' best prices would do; `best` is what the other route gives or asks.

    It takes next to nothing, and is what most orders spend on detours.
    """
    price = detour.best_price * (1 + _ROUNDING)
    if best is None or not price:
        return price > 0
    if side is _SELL:
        return amount * price * (_BPS_ONE - slippage_bps) > best * _BPS_ONE
    # What a purchase buys of the middle token is rounded down, by less than one unit of it.
    return amount * (_BPS_ONE + slippage_bps) < (best * price + detour.second_price) * _BPS_ONE


def by_way_of(
    detour: Detour,
    direct: Sequence[PoolOffer],
    side: Side,
    amount: int,
    slippage_bps: int,
    fits: Fits,
) -> Route | None:
    """Return the best route of one pool a hop; None where the pools refuse it, or no two fit a transaction.

    The hop that the order's amount goes through chooses first.

    Its gap counts everything in: every split over the pools of either hop and over the direct ones at once.
    """
    clock = detour.clock
    if side is _SELL:
        found = _best(detour.first, side, amount, clock, lambda offer: True)
    else:
        found = _best(detour.second, side, amount, clock, lambda offer: True)
    if found is None:
        return None
    chosen, quoted = found
    assert quoted.input_amount is not None
    assert quoted.output_amount is not None
    passed_on = threshold(side, quoted.input_amount, quoted.output_amount, slippage_bps)
    if passed_on == 0:
        return None
    if side is _SELL:
        other = _best(
            detour.second, side, passed_on, clock, lambda offer: fits((chosen, offer), detour.middle_token)
        )
    else:
        other = _best(
            detour.first, side, passed_on, clock, lambda offer: fits((offer, chosen), detour.middle_token)
        )
    if other is None:
        return None
    first, second = (quoted, other[1]) if side is _SELL else (other[1], quoted)
    first_curves = [offer.curve(clock) for offer in detour.first]
    second_curves = [offer.curve(clock) for offer in detour.second]
    if inf in (min([curve.best_price for curve in curves]) for curves in (first_curves, second_curves)):
        # They trade within a range so narrow that floating point sees none.
        return None
    bound = _bound(
        first_curves,
        second_curves,
        [offer.curve(clock) for offer in direct],
        side,
        amount,
        quoted.output_amount if side is _SELL else quoted.input_amount,
    )
    return one_after_the_other(
        leg_of_quote(first, side, slippage_bps),
        leg_of_quote(second, side, slippage_bps),
        side,
        bound,
        detour.middle_token,
    )


def _best(
    offers: Sequence[PoolOffer],
    side: Side,
    amount: int,
    clock: Clock,
    fits: Callable[[PoolOffer], bool],
) -> tuple[PoolOffer, Quote] | None:
    quoted = [(offer, quote(offer, side, amount, clock)) for offer in offers]
    usable = [(offer, one) for offer, one in quoted if one.refusal is None]
    if side is _SELL:
        usable.sort(key=lambda found: -(found[1].output_amount or 0))
    else:
        usable.sort(key=lambda found: found[1].input_amount or 0)
    return next(((offer, one) for offer, one in usable if fits(offer)), None)


def _bound(
    first: Sequence[PriceCurve],
    second: Sequence[PriceCurve],
    direct: Sequence[PriceCurve],
    side: Side,
    amount: int,
    middle_amount: int,
) -> int:
    """Return the most output (SELL) or the least input (BUY) of any split over both hops and directly.

    The dual again, with a price for the middle token. It holds at any two prices; these are those of the
    best splits of either hop alone.
    """
    amounts = (amount, middle_amount) if side is _SELL else (middle_amount, amount)
    first_price, second_price = (
        marginal_price(curves, least, side) or min([curve.best_price for curve in curves])
        for curves, least in zip((first, second), amounts, strict=True)
    )
    for curve in direct:
        curve.read_for(amount, side)
    first_gains = [curve.gain(first_price) for curve in first]
    directly = [curve.gain(first_price * second_price) for curve in direct]
    if side is _SELL:
        middle = most_output(amount, first_price, first_gains)
        for curve in second:
            curve.read_for(middle, side)
        second_gains = [curve.gain(second_price) for curve in second]
        return most_output(middle, second_price, [*second_gains, *directly])
    second_gains = [curve.gain(second_price) for curve in second]
    middle = least_input(amount, second_price, [*second_gains, *directly])
    return least_input(middle, first_price, first_gains)
