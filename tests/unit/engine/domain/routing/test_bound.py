"""The bound by which orders that wait for a price are found: never too low, and worth looking by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.domain.order import OrderSpec, Route, Side
from engine.domain.pools.meteora_dlmm import Bin, FeeParameters, MeteoraDlmmPool, Volatility, bin_price
from engine.domain.pools.pool import Pool
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import Detour, Limits, PoolOffer, bound, decide, price_bound
from engine.domain.routing.sweep import least_input, marginal_price, most_output
from engine.domain.tokens import BONK, JUP, SOL, USDC
from tests.unit.engine.domain.routing.pools_of_a_pair import NOW, pairs

RATES = Rates(100, 0, 120_000, 40_000)
ANY_LEGS = Limits(max_legs=1_000)


def _offers(name: str, pools: Sequence[Pool], a_to_b: bool = True) -> list[PoolOffer]:
    return [PoolOffer("Venue", "kind", f"{name} {at}", a_to_b, pool) for at, pool in enumerate(pools)]


def _cpmm(reserve_in: int, reserve_out: int, *, status: int = 0) -> RaydiumCpmmPool:
    return RaydiumCpmmPool(reserve_in, reserve_out, RATES, status=status)


def _price(route: Route) -> Fraction:
    return Fraction(route.output_amount, route.input_amount)


def _best_price(
    side: Side,
    amount: int,
    offers: Sequence[PoolOffer],
    detours: Sequence[Detour] = (),
    limits: Limits = ANY_LEGS,
    slippage_bps: int = 0,
) -> Fraction | None:
    spec = OrderSpec(side, amount, BONK, JUP)
    route = decide(spec, 1, 7, NOW, offers, slippage_bps, limits, detours).route
    return None if route is None else _price(route)


TWO = _offers("direct", [_cpmm(10**10, 4 * 10**10), _cpmm(10**9, 4 * 10**9)])
CLOSED = _offers("closed", [_cpmm(10**10, 10**11, status=4)])
NOT_OPEN = _offers("not open", [replace(_cpmm(10**10, 10**11), open_time=NOW.unix_timestamp + 1)])
IN, OUT = _offers("in", [_cpmm(10**10, 3 * 10**10)]), _offers("out", [_cpmm(10**10, 2 * 10**10)])
ROUND = Detour(USDC, IN, OUT, NOW)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("dead", [[], CLOSED, NOT_OPEN], ids=["no pool", "closed", "not open yet"])
def test_where_nothing_trades_there_is_no_price(side: Side, dead: list[PoolOffer]) -> None:
    assert price_bound(side, 10**6, NOW, dead, ()) == 0.0
    for first, second in ((dead, OUT), (IN, dead), (dead, dead)):
        way = Detour(USDC, first, second, NOW)
        assert price_bound(side, 10**6, NOW, dead, [way]) == 0.0
        # Nor does it take away what there is elsewhere.
        assert price_bound(side, 10**6, NOW, [*dead, *TWO], [way]) == price_bound(side, 10**6, NOW, TWO, ())
        assert price_bound(side, 10**6, NOW, dead, [way, ROUND]) == price_bound(side, 10**6, NOW, (), [ROUND])


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(("offers", "detours"), [(TWO, ()), ((), [ROUND]), (TWO, [ROUND])])
def test_bound_is_what_a_route_without_costs_comes_to(
    side: Side, offers: Sequence[PoolOffer], detours: Sequence[Detour]
) -> None:
    for amount in (10**6, 10**7, 10**8, 10**9):
        reached = _best_price(side, amount, offers, detours)
        assert reached is not None
        limit = Fraction(price_bound(side, amount, NOW, offers, detours))
        # All but what is rounded to whole base units.
        assert reached <= limit <= reached * (1 + Fraction(20, amount))


@pytest.mark.parametrize("side", Side)
def test_bound_of_a_small_order_is_less_than_the_legs_cost_away(side: Side) -> None:
    costly, cost = [replace(offer, leg_lamports=100_000) for offer in TWO], 100_000
    route = decide(OrderSpec(side, 10**7, BONK, JUP), 1, 7, NOW, costly, 0, Limits(3, 1.0)).route
    assert route is not None
    assert len(route.legs) == 1
    limit = price_bound(side, 10**7, NOW, costly, ())
    if side is Side.SELL:
        assert route.output_amount <= limit * 10**7 <= route.output_amount + cost
    else:
        assert route.input_amount - cost <= 10**7 / limit <= route.input_amount


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(("offers", "detours"), [(TWO, ()), ((), [ROUND]), (TWO, [ROUND])])
def test_bound_falls_with_the_amount_and_holds_for_any_larger_one(
    side: Side, offers: Sequence[PoolOffer], detours: Sequence[Detour]
) -> None:
    amounts = [1, 10, 10**3, 10**6, 10**8, 10**9, 5 * 10**9]
    bounds = [price_bound(side, amount, NOW, offers, detours) for amount in amounts]
    assert all(more < less for less, more in pairwise(bounds))
    for amount in amounts:
        reached = _best_price(side, amount, offers, detours)
        assert all(reached is None or reached <= at for at in bounds[: amounts.index(amount) + 1])


@pytest.mark.parametrize("side", Side)
def test_pools_that_hold_less_than_the_amount_bound_it_by_the_price_they_begin_with(side: Side) -> None:
    bins = tuple(Bin(at, 10**6, 10**6, bin_price(at, 10)) for at in range(-3, 4))
    pool = MeteoraDlmmPool(10, 0, FeeParameters(10_000, 0, 0, 0, 0, 0, 0, 0), Volatility(0, 0, 0, 0), bins)
    offers = _offers("small", [pool])
    best = 1 / offers[0].curve(NOW).best_price ** 2
    assert _best_price(side, 10**9, offers) is None
    assert price_bound(side, 10**9, NOW, offers, ()) == pytest.approx(best, rel=1e-11)
    for hops in ((offers, OUT), (IN, offers)):
        assert price_bound(side, 10**9, NOW, (), [Detour(USDC, *hops, NOW)]) > 0


def test_price_that_comes_late_for_a_falling_fee_is_seen_from_half_the_amount_on() -> None:
    # The price has come ten bins up lately, which drove the fee up; on the way back it falls with every bin.
    bins = tuple(Bin(at, 0, 10**6 if at <= 0 else 0, bin_price(at, 10)) for at in range(-10, 1))
    parameters = FeeParameters(10_000, 0, 30, 600, 5_000, 2_000_000, 350_000, 0)
    volatility = Volatility(100_000, 0, -10, NOW.unix_timestamp)
    pool = MeteoraDlmmPool(10, 0, parameters, volatility, bins)
    offers = _offers("falling", [pool])
    small, large = 10**6, 2 * 10**6 - 1
    early, late = _best_price(Side.SELL, small, offers), _best_price(Side.SELL, large, offers)
    assert early is not None
    assert late is not None
    assert early < late
    assert late <= price_bound(Side.SELL, small, NOW, offers, ())
    # With nothing to look ahead for it would not be seen.
    fresh = _offers("falling", [pool])
    assert price_bound(Side.SELL, small, NOW, fresh, (), reach=1) < late


# ---- Whatever the pools ---------------------------------------------------------------------------


def no_decision_beats_the_bound(
    three: tuple[list[Pool], list[Pool], list[Pool]],
    a_to_b: bool,
    side: Side,
    amount: int,
    more_percent: int,
    max_legs: int,
    slippage_bps: int,
) -> None:
    direct, first, second = (
        _offers(name, pools, a_to_b) for name, pools in zip(("direct", "first", "second"), three, strict=True)
    )
    detours = [Detour(SOL, first, second, NOW)]
    larger = amount + amount * more_percent // 100
    for offers, ways in ((direct, []), ([], detours), (direct, detours)):
        limit = price_bound(side, amount, NOW, offers, ways)
        reached = _best_price(side, larger, offers, ways, Limits(max_legs), slippage_bps)
        assert reached is None or reached <= limit


def _check(holds: Callable[..., None], phases: Sequence[Phase] = tuple(Phase)) -> None:
    repeatable = settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    repeatable(
        given(
            st.tuples(pairs(3), pairs(2), pairs(2)),
            st.booleans(),
            st.sampled_from(Side),
            st.one_of(st.integers(1, 10**5), st.integers(10**6, 10**13)),
            st.one_of(st.just(0), st.integers(0, 99)),
            st.sampled_from([1, 3, 1_000]),
            st.sampled_from([0, 50, 300]),
        )(holds)
    )()


def test_no_decision_for_the_amount_or_up_to_twice_as_much_beats_the_bound() -> None:
    _check(no_decision_beats_the_bound)


_bound = bound._bound


def _in_whole_units(side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Any) -> float:
    curves, amount = [offer.curve(clock) for offer in offers], int(least) or 1
    price = marginal_price(curves, amount, side)
    if price is None:
        return _bound(side, least, most, offers, clock)
    gains = [curve.gain(price) for curve in curves]
    if side is Side.SELL:
        return most_output(amount, price, gains) / amount
    return amount / (least_input(amount, price, gains) or 1)


def _without_gains(side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Any) -> float:
    price = marginal_price([offer.curve(clock) for offer in offers], least, side)
    return _bound(side, least, most, offers, clock) if price is None else 1 / (price * price)


def _of_twice_as_much(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Any
) -> float:
    return _bound(side, 2 * least, most, offers, clock)


def _of_the_best_pool(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Any
) -> float:
    return max((_bound(side, least, most, [offer], clock) for offer in offers), default=0.0)


@pytest.mark.parametrize("mutant", [_in_whole_units, _without_gains, _of_twice_as_much, _of_the_best_pool])
def test_reckoning_otherwise_would_be_noticed(
    mutant: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "_bound", mutant)
    with pytest.raises(AssertionError):
        _check(no_decision_beats_the_bound, [Phase.generate])
