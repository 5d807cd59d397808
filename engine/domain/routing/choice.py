"""The choice: one pool, several, or a way round; and the sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from operator import attrgetter
from typing import Final

from engine.domain.amounts import format_amount
from engine.domain.order import OrderSpec, Quote, Route, RouteLeg, RoutingDecision, Side
from engine.domain.order_types import is_within
from engine.domain.pools.pool import Clock
from engine.domain.routing.limits import Limits
from engine.domain.routing.offer import PoolOffer, quote
from engine.domain.routing.route import leg_of_part, leg_of_quote, side_by_side, within_limit
from engine.domain.routing.split import choose_pools, net, share_out
from engine.domain.routing.sweep import least_input, marginal_price, most_output
from engine.domain.routing.two_hops import Detour, by_way_of, could_beat

_SELL: Final = Side.SELL
_PPM_ONE: Final = 1_000_000
_NO_LIMITS: Final = Limits()
_MOST_REFUSALS: Final = 8
"""That a sentence tells of."""


def decide(
    spec: OrderSpec,
    attempt: int,
    slot: int,
    clock: Clock,
    offers: Sequence[PoolOffer],
    slippage_bps: int,
    limits: Limits = _NO_LIMITS,
    detours: Sequence[Detour] = (),
) -> RoutingDecision:
    """Quote every pool and choose the best route: most output (SELL), least input (BUY).

    Quotes are for the whole amount, best first, refusals last; equal ones by kind and address, so that the
    same pools always give the same decision. `route` is None if nothing can fill the order. A route that is
    within the order's own limit has thresholds within it too.
    """
    side, amount = spec.side, spec.amount
    quotes = _ranked([quote(offer, side, amount, clock) for offer in offers], side)
    best = quotes[0] if quotes and quotes[0].refusal is None else None
    route = direct_route(side, amount, clock, offers, best, slippage_bps, limits)
    reason = None
    if limits.max_legs > 1 and detours:
        detour = _detour(side, amount, offers, route, slippage_bps, limits, detours)
        if detour is not None:
            reason = _why_detour(spec, detour, route)
            route = detour
    if route is None:
        reason = _why_none(spec, quotes)
    elif reason is None:
        reason = _why_split(spec, route, best) if len(route.legs) > 1 else _why_best(spec, quotes)
    limit_amount = spec.type.limit_amount(spec)
    if route is not None and limit_amount is not None and is_within(spec, route, limit_amount):
        route = within_limit(route, side, limit_amount)
    return RoutingDecision(attempt, slot, tuple(quotes), route, reason)


def direct_route(
    side: Side,
    amount: int,
    clock: Clock,
    offers: Sequence[PoolOffer],
    best: Quote | None,
    slippage_bps: int,
    limits: Limits,
) -> Route | None:
    """Return the best pool's route, or the best split where that gains more than its further legs cost."""
    alone = () if best is None else (leg_of_quote(best, side, slippage_bps),)
    if not alone and limits.max_legs < 2:
        return None
    bound_of = most_output if side is _SELL else least_input
    curves = [offer.curve(clock) for offer in offers]
    for curve in curves:
        # Where a fee falls along the way the best price may come later.
        curve.read_for(amount, side)
    best_price = min([curve.best_price for curve in curves], default=inf)
    if best_price == inf:
        return None
    if alone:
        bound = bound_of(amount, best_price, ())
        least_cost = min([offer.leg_lamports for offer in offers]) * limits.lamport_price
        if _behind(side, alone[0], bound) <= least_cost:
            # So little is lost to the price's own movement that no further leg could earn its cost.
            return side_by_side(alone, side, bound)
    price = marginal_price(curves, amount, side)
    if price is None:
        # More than the curves together say they hold: there is nothing to choose from.
        return side_by_side(alone, side, bound) if alone else None
    gains = [curve.gain(price) for curve in curves]
    bound = bound_of(amount, price, gains)
    if limits.max_legs > 1:
        found = choose_pools(offers, curves, amount, side, limits, price, gains)
        if found is not None and (len(found[0]) > 1 or not alone):
            chosen, at = found
            legs = share_out(
                [offers[index] for index in chosen],
                [curves[index] for index in chosen],
                amount,
                side,
                at,
                clock,
            )
            lamports = [offers[index].leg_lamports for index in chosen]
            further = (sum(lamports) - max(lamports)) * limits.lamport_price
            if legs is not None and (not alone or net(legs, side) - _net(alone[0], side) > further):
                return side_by_side(
                    [leg_of_part(offer, part, side, slippage_bps) for offer, part in legs], side, bound
                )
    return side_by_side(alone, side, bound) if alone else None


def _detour(
    side: Side,
    amount: int,
    offers: Sequence[PoolOffer],
    direct: Route | None,
    slippage_bps: int,
    limits: Limits,
    detours: Sequence[Detour],
) -> Route | None:
    """Return the best route of two hops where it beats the direct one by more than a further leg costs."""
    best = None
    for detour in detours:
        beaten = direct if best is None else best
        if not could_beat(detour, side, amount, _other(side, beaten), slippage_bps):
            continue
        route = by_way_of(detour, offers, side, amount, slippage_bps, limits.fits)
        if route is None:
            continue
        ahead = inf if beaten is None else _ahead(side, route, beaten)
        further = 0.0
        if beaten is direct and direct is not None and len(direct.legs) == 1:
            cost = max([offer.leg_lamports for offer in (*detour.first, *detour.second)])
            further = cost * limits.lamport_price
        if ahead > further:
            best = route
    return best


def _behind(side: Side, leg: RouteLeg, bound: int) -> int:
    return bound - leg.output_amount if side is _SELL else leg.input_amount - bound


def _net(leg: RouteLeg, side: Side) -> int:
    return leg.output_amount if side is _SELL else -leg.input_amount


def _ahead(side: Side, one: Route, other: Route) -> int:
    if side is _SELL:
        return one.output_amount - other.output_amount
    return other.input_amount - one.input_amount


def _other(side: Side, route: Route | None) -> int | None:
    if route is None:
        return None
    return route.output_amount if side is _SELL else route.input_amount


def _ranked(quotes: list[Quote], side: Side) -> list[Quote]:
    """Return quotes, refusals last, best first, and equal ones by kind and address."""
    quotes.sort(key=_KIND_AND_POOL)
    filling = [each for each in quotes if each.refusal is None]
    refused = [each for each in quotes if each.refusal is not None] if len(filling) < len(quotes) else []
    # A sort leaves equal ones as they were. All sell, or buy, the same amount.
    if side is _SELL:
        filling.sort(key=_OUTPUT_AMOUNT, reverse=True)
    else:
        filling.sort(key=_INPUT_AMOUNT)
    return filling + refused


_KIND_AND_POOL: Final = attrgetter("kind", "pool")
_INPUT_AMOUNT: Final = attrgetter("input_amount")
_OUTPUT_AMOUNT: Final = attrgetter("output_amount")


# ---- Why ---------------------------------------------------------------------------------------------


def _why_best(spec: OrderSpec, quotes: Sequence[Quote]) -> str:
    best = quotes[0]
    name = f"{best.venue} pool {_short(best.pool)}"
    does = _does(spec, best)
    if len(quotes) == 1 or quotes[1].refusal is not None:
        return f"{name} {does}; no other pool can fill the order"
    second = quotes[1]
    return f"{name} {does}, {_compared(spec, best, second, 'the next best')}"


def _why_split(spec: OrderSpec, route: Route, best: Quote | None) -> str:
    does = f"a split over {len(route.legs)} pools {_does(spec, route)}"
    if best is None:
        return f"{does}; no pool can fill the order alone"
    return f"{does}, {_compared(spec, route, best, 'the best alone')}"


def _why_detour(spec: OrderSpec, route: Route, direct: Route | None) -> str:
    assert route.middle_token is not None
    does = f"the way through {route.middle_token.symbol} {_does(spec, route)}"
    if direct is None:
        return f"{does}; no pool can fill the order directly"
    ahead = _bps(_ahead_ppm(spec.side, route, direct))
    return f"{does}, {ahead} {'more' if spec.side is _SELL else 'less'} than directly"


def _compared(spec: OrderSpec, best: Quote | Route, second: Quote, what: str) -> str:
    ahead_ppm = _ahead_ppm(spec.side, best, second)
    rival = f"{what}, {second.venue} pool {_short(second.pool)}"
    if ahead_ppm == 0:
        return f"as good as {rival}"
    return f"{_bps(ahead_ppm)} {'more' if spec.side is _SELL else 'less'} than {rival}"


def _does(spec: OrderSpec, offered: Quote | Route) -> str:
    if spec.side is _SELL:
        token, amount = spec.output_token, offered.output_amount
    else:
        token, amount = spec.input_token, offered.input_amount
    assert amount is not None
    return f"{'gives' if spec.side is _SELL else 'asks'} {format_amount(amount, token)} {token.symbol}"


def _ahead_ppm(side: Side, best: Quote | Route, second: Quote | Route) -> int:
    if side is _SELL:
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
    refusals = [
        f"{offer.venue} pool {_short(offer.pool)} {offer.refusal}" for offer in quotes[:_MOST_REFUSALS]
    ]
    if (further := len(quotes) - len(refusals)) > 0:
        refusals.append(f"and {further} more")
    return f"no pool can fill {pair}: {'; '.join(refusals)}"


def _bps(ppm: int) -> str:
    return f"{ppm // 100}.{ppm % 100:02} bps"


def _short(address: str) -> str:
    return f"{address[:4]}..{address[-4:]}"
