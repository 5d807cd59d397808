"""The limit of an order in its route's thresholds: what is worse, programs refuse, leg by leg."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.domain.order import OrderSpec, Route, RouteLeg, Side
from engine.domain.order_types import LimitOrder
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import Detour, Limits, PoolOffer, decide
from engine.domain.routing.route import one_after_the_other, side_by_side, threshold, within_limit
from engine.domain.tokens import JUP, RAY, USDC
from tests.unit.engine.domain.routing.pools_of_a_pair import NOW

WithinLimit = Callable[[Route, Side, int], Route]


def _leg(side: Side, input_amount: int, output_amount: int, slippage_bps: int) -> RouteLeg:
    accepted = threshold(side, input_amount, output_amount, slippage_bps)
    return RouteLeg("Venue", "kind", "pool", input_amount, output_amount, accepted)


ONE = ((1_000, 2_000),)
THREE = ((1_000, 2_000), (500, 1_000), (7, 14))


@pytest.mark.parametrize(
    ("side", "amounts", "limit_amount", "thresholds"),
    [
        (Side.SELL, ONE, 1_990, (1_990,)),
        (Side.SELL, ONE, 2_000, (2_000,)),
        # 14 of 3,014 may be lost, in proportion: 9, 4 and none.
        (Side.SELL, THREE, 3_000, (1_991, 996, 14)),
        (Side.SELL, THREE, 3_014, (2_000, 1_000, 14)),
        (Side.BUY, ONE, 1_003, (1_003,)),
        (Side.BUY, ONE, 1_000, (1_000,)),
        # 10 more than 1,507 may be paid: 6, 3 and none.
        (Side.BUY, THREE, 1_517, (1_006, 503, 7)),
        (Side.BUY, THREE, 1_507, (1_000, 500, 7)),
    ],
)
def test_legs_that_share_the_order_share_what_is_between_quotes_and_limit(
    side: Side, amounts: tuple[tuple[int, int], ...], limit_amount: int, thresholds: tuple[int, ...]
) -> None:
    route = within_limit(
        side_by_side([_leg(side, *one, 300) for one in amounts], side, 0), side, limit_amount
    )
    assert tuple(leg.threshold_amount for leg in route.legs) == thresholds
    assert route.threshold_amount == sum(thresholds)


def test_two_hops_hold_the_limit_where_the_order_leaves_the_amount_open() -> None:
    hops = _leg(Side.SELL, 1_000, 3_000, 100), _leg(Side.SELL, 2_970, 6_000, 100)
    sale = within_limit(one_after_the_other(*hops, Side.SELL, 0, USDC), Side.SELL, 5_990)
    assert [leg.threshold_amount for leg in sale.legs] == [2_970, 5_990]
    assert sale.threshold_amount == 5_990
    hops = _leg(Side.BUY, 1_000, 3_030, 100), _leg(Side.BUY, 3_000, 6_000, 100)
    purchase = within_limit(one_after_the_other(*hops, Side.BUY, 0, USDC), Side.BUY, 1_005)
    assert [leg.threshold_amount for leg in purchase.legs] == [1_005, 3_030]
    assert purchase.threshold_amount == 1_005


@pytest.mark.parametrize(("side", "limit_amount"), [(Side.SELL, 1_900), (Side.BUY, 1_100)])
def test_where_the_slippage_is_tighter_than_the_limit_nothing_changes(side: Side, limit_amount: int) -> None:
    route = side_by_side([_leg(side, 1_000, 2_000, 50)], side, 0)
    assert within_limit(route, side, limit_amount) is route


# ---- As decided ------------------------------------------------------------------------------------


def _pool(address: str, reserve_in: int, reserve_out: int) -> PoolOffer:
    pool = RaydiumCpmmPool(reserve_in, reserve_out, Rates(2_500, 0, 120_000, 40_000))
    return PoolOffer("Raydium", "raydium_cpmm", address, True, pool)


TWO = [_pool("one", 10**10, 2 * 10**10), _pool("two", 10**10, 2 * 10**10)]
ROUND = Detour(USDC, [_pool("in", 10**10, 10**10)], [_pool("out", 10**10, 2 * 10**10)], NOW)
WAYS: dict[str, tuple[list[PoolOffer], list[Detour], int]] = {
    "one pool": (TWO[:1], [], 1),
    "a split": (TWO, [], 2),
    "two hops": ([], [ROUND], 2),
}


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("way", WAYS)
def test_decision_for_a_limit_order_is_within_its_limit_on_chain_too(side: Side, way: str) -> None:
    offers, detours, leg_count = WAYS[way]

    def route_at(price: Decimal | None, slippage_bps: int) -> Route:
        spec = OrderSpec(side, 10**8, JUP, RAY)
        spec = spec if price is None else replace(spec, type=LimitOrder(price))
        route = decide(spec, 1, 7, NOW, offers, slippage_bps, Limits(), detours).route
        assert route is not None
        assert len(route.legs) == leg_count
        return route

    quoted = route_at(None, 300)
    at_best = Decimal(quoted.output_amount) / Decimal(quoted.input_amount)
    limit = LimitOrder(round(at_best * Decimal("0.999"), 6))
    limit_amount = limit.limit_amount(OrderSpec(side, 10**8, JUP, RAY))
    held = route_at(limit.limit_price, 300)
    # What is quoted is the same; what is accepted is not.
    assert (held.input_amount, held.output_amount) == (quoted.input_amount, quoted.output_amount)
    if side is Side.SELL:
        assert quoted.threshold_amount < limit_amount <= held.threshold_amount < limit_amount + leg_count
    else:
        assert quoted.threshold_amount > limit_amount >= held.threshold_amount > limit_amount - leg_count
    # Neither where the slippage is tighter, nor where the limit is out of reach: that is not executed.
    assert route_at(limit.limit_price, 1) == route_at(None, 1)
    assert route_at(limit.limit_price * 2, 300) == quoted


# ---- Whatever the amounts -------------------------------------------------------------------------


AMOUNTS = st.one_of(st.integers(1, 50), st.integers(1, 10**15))
SLIPPAGES = st.sampled_from([0, 1, 50, 300, 10_000])


@st.composite
def _routes(draw: st.DrawFn, side: Side) -> Route:
    slippage_bps = draw(SLIPPAGES)
    if draw(st.integers(0, 3)):
        legs = draw(st.lists(st.tuples(AMOUNTS, AMOUNTS), min_size=1, max_size=6))
        return side_by_side([_leg(side, *one, slippage_bps) for one in legs], side, 0)
    legs = [(draw(AMOUNTS), draw(AMOUNTS)) for _ in range(2)]
    first, second = (_leg(side, *one, slippage_bps) for one in legs)
    return one_after_the_other(first, second, side, 0, USDC)


@st.composite
def _routes_within_a_limit(draw: st.DrawFn) -> tuple[Route, Side, int]:
    side = draw(st.sampled_from(Side))
    route = draw(_routes(side))
    quoted = route.output_amount if side is Side.SELL else route.input_amount
    between = abs(quoted - route.threshold_amount)
    spare = draw(st.one_of(st.integers(0, between), st.integers(0, 2 * quoted), st.integers(0, 5)))
    return route, side, max(1, quoted - spare) if side is Side.SELL else quoted + spare


def check_within_limit(within: WithinLimit, phases: Sequence[Phase] = tuple(Phase)) -> None:
    repeatable = settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )

    @repeatable
    @given(_routes_within_a_limit())
    def holds(drawn: tuple[Route, Side, int]) -> None:
        route, side, limit_amount = drawn
        # Of a purchase everything is the other way round.
        sign = 1 if side is Side.SELL else -1
        held = within(route, side, limit_amount)
        assert sign * held.threshold_amount >= sign * limit_amount, "never worse than the limit"
        assert sign * held.threshold_amount >= sign * route.threshold_amount, "nor than it was"
        accepted = [leg.threshold_amount or 0 for leg in held.legs]
        if route.middle_token is None:
            assert held.threshold_amount == sum(accepted)
        else:
            assert held.threshold_amount == accepted[1 if side is Side.SELL else 0]
        for leg in held.legs:
            quoted = leg.output_amount if side is Side.SELL else leg.input_amount
            assert sign * (leg.threshold_amount or 0) <= sign * quoted, "no better than what is quoted"
        if sign * route.threshold_amount >= sign * limit_amount:
            assert held is route
            return
        assert sign * (held.threshold_amount - limit_amount) < len(held.legs), "no stricter than needed"
        changed = [
            replace(leg, threshold_amount=before.threshold_amount)
            for leg, before in zip(held.legs, route.legs, strict=True)
        ]
        assert replace(held, legs=tuple(changed), threshold_amount=route.threshold_amount) == route
        if route.middle_token is not None:
            passed_on = 0 if side is Side.SELL else 1
            assert held.legs[passed_on] == route.legs[passed_on], "what the hops pass on stays"

    holds()


def test_thresholds_within_a_limit_hold_it_leg_by_leg_and_ask_for_no_more() -> None:
    check_within_limit(within_limit)


def _not_at_all(route: Route, side: Side, limit_amount: int) -> Route:
    return route


def _without_legs(route: Route, side: Side, limit_amount: int) -> Route:
    return replace(within_limit(route, side, limit_amount), legs=route.legs)


def _each_leg_for_all(route: Route, side: Side, limit_amount: int) -> Route:
    held = within_limit(route, side, limit_amount)
    return replace(held, legs=tuple(replace(leg, threshold_amount=limit_amount) for leg in held.legs))


def _one_unit_off(route: Route, side: Side, limit_amount: int) -> Route:
    return within_limit(route, side, limit_amount - 1 if side is Side.SELL else limit_amount + 1)


def _shares_rounded_the_other_way(route: Route, side: Side, limit_amount: int) -> Route:
    held = within_limit(route, side, limit_amount)
    if held is route or route.middle_token is not None:
        return held
    off = -1 if side is Side.SELL else 1
    legs = tuple(replace(leg, threshold_amount=(leg.threshold_amount or 0) + off) for leg in held.legs)
    return replace(held, legs=legs, threshold_amount=sum(leg.threshold_amount or 0 for leg in legs))


def _at_the_limit_even_if_that_is_worse(route: Route, side: Side, limit_amount: int) -> Route:
    return within_limit(
        replace(route, threshold_amount=0 if side is Side.SELL else 10**30), side, limit_amount
    )


def _in_the_other_hop(route: Route, side: Side, limit_amount: int) -> Route:
    held = within_limit(route, side, limit_amount)
    if held is route or route.middle_token is None:
        return held
    at = 0 if side is Side.SELL else 1
    legs = list(route.legs)
    legs[at] = replace(legs[at], threshold_amount=limit_amount)
    return replace(held, legs=tuple(legs))


@pytest.mark.parametrize(
    "mutant",
    [
        _not_at_all,
        _without_legs,
        _each_leg_for_all,
        _one_unit_off,
        _shares_rounded_the_other_way,
        _at_the_limit_even_if_that_is_worse,
        _in_the_other_hop,
    ],
)
def test_the_limit_property_catches(mutant: WithinLimit) -> None:
    with pytest.raises(AssertionError):
        check_within_limit(mutant, [Phase.generate])
