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
from engine.domain.pools.pool import U64_MAX, Clock, Pool
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import Detour, Limits, PoolOffer, bound, decide, price_bound
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.sweep import least_input, marginal_price, most_output
from engine.domain.tokens import BONK, JUP, SOL, USDC
from tests.unit.engine.domain.routing.pools_of_a_pair import ANY_AMOUNT, NOW, extreme_pools, pairs

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


BINS = tuple(Bin(at, 10**6, 10**6, bin_price(at, 10)) for at in range(-3, 4))
BIN_POOL = MeteoraDlmmPool(10, 0, FeeParameters(10_000, 0, 0, 0, 0, 0, 0, 0), Volatility(0, 0, 0, 0), BINS)
SMALL = _offers("small", [BIN_POOL])


def _most(
    side: Side, offers: Sequence[PoolOffer], detours: Sequence[Detour] = (), slippage_bps: int = 0
) -> int:
    """Return the largest amount that there is a route for; 1 if there is none."""
    low, high = 1, U64_MAX
    while high - low > 1:
        middle = (low + high) // 2
        filled = _best_price(side, middle, offers, detours, ANY_LEGS, slippage_bps) is not None
        low, high = (middle, high) if filled else (low, middle)
    return low


@pytest.mark.parametrize("side", Side)
def test_more_than_all_pools_hold_together_has_no_price(side: Side) -> None:
    for offers in (SMALL, _offers("small", [BIN_POOL, BIN_POOL])):
        held = _most(side, offers)
        assert 0 < price_bound(side, held, NOW, offers, ()) < price_bound(side, held // 2, NOW, offers, ())
        for more in (held * 101 // 100, 2 * held, 10**12, 2**64 - 1):
            assert _best_price(side, more, offers) is None
            assert price_bound(side, more, NOW, offers, ()) == 0.0
    # It does not take away what there is elsewhere.
    larger = price_bound(side, 10**9, NOW, [*SMALL, *TWO], ())
    assert larger >= price_bound(side, 10**9, NOW, TWO, ()) > 0
    assert price_bound(side, 10**9, NOW, SMALL, [ROUND]) == price_bound(side, 10**9, NOW, (), [ROUND])


@pytest.mark.parametrize("amount", [4 * 10**10, 4 * 10**10 - 1])
def test_all_that_is_in_a_pool_whose_price_has_no_end_has_next_to_none(amount: int) -> None:
    all_of_it = [TWO[0]]
    assert price_bound(Side.BUY, 2 * amount, NOW, all_of_it, ()) == 0.0
    # So near to what it holds floating point does not tell what it cannot give.
    least = price_bound(Side.BUY, amount, NOW, all_of_it, ())
    assert 0 < least < 1e-6
    assert (_best_price(Side.BUY, amount, all_of_it) or 0) <= least
    # Of input it takes any amount.
    assert price_bound(Side.SELL, 2**64 - 1, NOW, all_of_it, ()) > 0


def test_more_than_the_hops_hold_has_no_price_either() -> None:
    # All but the second hop of a sale is asked for no less than an amount that is known.
    for side, hops in ((Side.SELL, (SMALL, OUT)), (Side.BUY, (IN, SMALL)), (Side.BUY, (SMALL, OUT))):
        way = [Detour(USDC, *hops, NOW)]
        held = _most(side, (), way)
        assert price_bound(side, held, NOW, (), way) > 0
        assert price_bound(side, 2 * held, NOW, (), way) == 0.0
    way = [Detour(USDC, IN, SMALL, NOW)]
    held = _most(Side.SELL, (), way)
    assert (
        0 < price_bound(Side.SELL, 100 * held, NOW, (), way) < price_bound(Side.SELL, held, NOW, (), way) / 20
    )
    # With as much slippage as that it fits.
    reached = _best_price(Side.SELL, 100 * held, (), way, slippage_bps=9_950)
    assert reached is not None
    assert reached <= price_bound(Side.SELL, 100 * held, NOW, (), way)


def test_what_is_rounded_up_is_taken_beyond_what_the_curve_tells() -> None:
    # A unit of y is worth a small part of one of x, and a whole one is paid for it.
    pool = replace(BIN_POOL, active_id=4_000, bins=(Bin(4_000, 0, 1, bin_price(4_000, 10)),))
    offers = _offers("dust", [pool])
    assert offers[0].curve(NOW).read_for(10, Side.SELL) < 0.1
    assert _best_price(Side.SELL, 2, offers) == Fraction(1, 2)
    assert price_bound(Side.SELL, 2, NOW, offers, ()) > 0


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
    larger = min(amount + amount * more_percent // 100, U64_MAX)
    for offers, ways in ((direct, []), ([], detours), (direct, detours)):
        limit = price_bound(side, amount, NOW, offers, ways)
        reached = _best_price(side, larger, offers, ways, Limits(max_legs), slippage_bps)
        assert reached is None or reached <= limit


def what_is_far_more_than_is_filled_has_no_price(
    three: tuple[list[Pool], list[Pool], list[Pool]],
    a_to_b: bool,
    side: Side,
    amount: int,
    more_percent: int,
    max_legs: int,
    slippage_bps: int,
) -> None:
    offers = _offers("direct", three[0], a_to_b)
    most = _most(side, offers)
    if most < U64_MAX // 4:
        # Dust apart.
        assert price_bound(side, 2 * most + 10**5, NOW, offers, ()) == 0.0


THREE = st.tuples(pairs(3), pairs(2), pairs(2))
AMOUNTS = st.one_of(st.integers(1, 10**5), st.integers(10**6, 10**13))
_EXTREME = st.lists(extreme_pools(), max_size=2)
THREE_EXTREME = st.tuples(_EXTREME, _EXTREME, _EXTREME)


def the_most_that_is_filled_has_a_price(
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
    for offers, ways in ((direct, []), ([], detours)):
        most = _most(side, offers, ways, slippage_bps)
        reached = _best_price(side, most, offers, ways, ANY_LEGS, slippage_bps)
        for least in (most, most - most * more_percent // 200):
            assert reached is None or reached <= price_bound(side, least, NOW, offers, ways)


def _check(
    holds: Callable[..., None],
    phases: Sequence[Phase] = tuple(Phase),
    three: st.SearchStrategy[tuple[list[Pool], list[Pool], list[Pool]]] = THREE,
    amounts: st.SearchStrategy[int] = AMOUNTS,
    examples: int = 200,
) -> None:
    repeatable = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    repeatable(
        given(
            three,
            st.booleans(),
            st.sampled_from(Side),
            amounts,
            st.one_of(st.just(0), st.integers(0, 99)),
            st.sampled_from([1, 3, 1_000]),
            st.sampled_from([0, 50, 300]),
        )(holds)
    )()


def test_no_decision_for_the_amount_or_up_to_twice_as_much_beats_the_bound() -> None:
    _check(no_decision_beats_the_bound)


def test_whatever_is_in_the_pools_nothing_raises_and_no_decision_beats_the_bound() -> None:
    _check(no_decision_beats_the_bound, three=THREE_EXTREME, amounts=ANY_AMOUNT)


@pytest.mark.parametrize("three", [THREE, THREE_EXTREME], ids=["usual", "extreme"])
def test_the_most_that_is_filled_has_a_price(three: Any) -> None:
    _check(the_most_that_is_filled_has_a_price, three=three, examples=50)


def test_what_is_far_more_than_is_filled_has_no_price() -> None:
    _check(what_is_far_more_than_is_filled_has_no_price, examples=50)


_bound = bound._bound


def _in_whole_units(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    curves, amount = [offer.curve(clock) for offer in offers], int(least) or 1
    price = marginal_price(curves, amount, side)
    if price is None:
        return _bound(side, least, most, offers, clock, **how)
    gains = [curve.gain(price) for curve in curves]
    if side is Side.SELL:
        return most_output(amount, price, gains) / amount
    return amount / (least_input(amount, price, gains) or 1)


def _without_gains(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    price = marginal_price([offer.curve(clock) for offer in offers], least, side)
    return _bound(side, least, most, offers, clock, **how) if price is None else 1 / (price * price)


def _of_twice_as_much(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    return _bound(side, 2 * least, most, offers, clock, **how)


def _of_the_best_pool(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    return max((_bound(side, least, most, [offer], clock, **how) for offer in offers), default=0.0)


@pytest.mark.parametrize("mutant", [_in_whole_units, _without_gains, _of_twice_as_much, _of_the_best_pool])
def test_reckoning_otherwise_would_be_noticed(
    mutant: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound, "_bound", mutant)
    with pytest.raises(AssertionError):
        _check(no_decision_beats_the_bound, [Phase.generate])


def _all_that_goes_in(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    return _bound(side, least, most, offers, clock)


def _of_the_largest_pool(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    held = max((offer.curve(clock).read_for(most, side) for offer in offers), default=0.0)
    return 0.0 if least > held else _bound(side, least, most, offers, clock, **how)


def _whatever_the_pools_hold(
    side: Side, least: float, most: float, offers: Sequence[PoolOffer], clock: Clock, **how: bool
) -> float:
    return _bound(side, least, most, offers, clock, or_less=True)


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "holds"),
    [
        (bound, "_bound", _of_the_largest_pool, the_most_that_is_filled_has_a_price),
        (bound, "_bound", _whatever_the_pools_hold, what_is_far_more_than_is_filled_has_no_price),
        (PriceCurve, "leeway", lambda self, side: 0.0, the_most_that_is_filled_has_a_price),
    ],
    ids=["pools do not add up", "pools hold anything", "no leeway"],
)
def test_telling_otherwise_what_can_be_filled_would_be_noticed(
    owner: Any,
    name: str,
    mutant: Callable[..., float],
    holds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        _check(holds, [Phase.generate])


def test_second_hop_that_takes_all_or_nothing_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "_bound", _all_that_goes_in)
    with pytest.raises(AssertionError):
        test_more_than_the_hops_hold_has_no_price_either()


def _divides_by_what_is_left(curves: Sequence[PriceCurve], amount: float, side: Side) -> float | None:
    price = marginal_price(curves, amount, side)
    if price is not None and side is Side.BUY:
        given = sum(curve.output_at(price) for curve in curves)
        return price / (1 - given / amount) * (1 - given / amount)
    return price


def test_dividing_by_what_floating_point_leaves_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "marginal_price", _divides_by_what_is_left)
    with pytest.raises(ZeroDivisionError):
        _check(no_decision_beats_the_bound, [Phase.generate], THREE_EXTREME, ANY_AMOUNT)
