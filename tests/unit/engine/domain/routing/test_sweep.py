"""The sweep against published optima, and its bound against every split there is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from math import inf
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from engine.domain.order import Side
from engine.domain.pools.pool import Pool
from engine.domain.pools.raydium_clmm import RaydiumClmmPool, Tick
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import sweep
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.sweep import least_input, marginal_price, most_output, shares
from tests.published_vectors import swap_vectors
from tests.unit.engine.domain.routing.pools_of_a_pair import curves_of, exchanged, pairs, problem_of

PROBLEMS = [*swap_vectors("routing_split_cpmm"), *swap_vectors("routing_split_mixed")]


@pytest.mark.parametrize(("asked", "answered"), PROBLEMS)
def test_published_optimum_is_found_and_bounded(asked: dict[str, Any], answered: dict[str, Any]) -> None:
    amount, a_to_b, pools = problem_of(asked)
    curves = curves_of(pools, a_to_b)
    price = marginal_price(curves, amount, Side.SELL)
    if "error" in answered:
        assert price is None
        return
    assert price is not None
    assert 1 / price**2 == pytest.approx(float(answered["marginal_price"]), rel=1e-9)
    optimum = Decimal(answered["continuous_optimum_out"])
    bound = most_output(amount, price, gains_of(curves, price))
    # Never less than the optimum in whole base units, and not more than floating point takes.
    assert int(optimum) <= bound <= optimum * (1 + Decimal("1e-11")) + 1
    parts = shares(curves, amount, Side.SELL, price)
    assert sum(parts) == amount
    outputs = [exchanged(pool, a_to_b, Side.SELL, part) for pool, part in zip(pools, parts, strict=True)]
    output = sum(amount or 0 for amount in outputs)
    assert output <= optimum
    crossed = sum(point[0] <= price for curve in curves for point in curve.breakpoints)
    unit = max(Decimal(1), Decimal(answered["marginal_price"]))
    assert optimum - output <= max(optimum * Decimal("1e-9"), 3 * crossed * unit)


@pytest.mark.parametrize(
    ("asked", "answered"), [case for case in PROBLEMS if "exact_integer_optimum_out" in case.values[1]]
)
def test_bound_is_no_less_than_the_best_split_in_whole_units(
    asked: dict[str, Any], answered: dict[str, Any]
) -> None:
    amount, a_to_b, pools = problem_of(asked)
    curves = curves_of(pools, a_to_b)
    optimum = int(answered["exact_integer_optimum_out"])
    price = marginal_price(curves, amount, Side.SELL)
    assert price is not None
    # Whatever the price it is taken at.
    for away in (0.5, 0.999, 1, 1.001, 2):
        assert most_output(amount, price * away, gains_of(curves, price * away)) >= optimum


@pytest.mark.parametrize(
    ("asked", "answered"), [case for case in PROBLEMS[:40] if "error" not in case.values[1]]
)
def test_buying_the_optimum_takes_what_was_sold_for_it(
    asked: dict[str, Any], answered: dict[str, Any]
) -> None:
    amount, a_to_b, pools = problem_of(asked)
    curves = curves_of(pools, a_to_b)
    output = int(Decimal(answered["continuous_optimum_out"]))
    price = marginal_price(curves, output, Side.BUY)
    assert price is not None
    worst = Decimal(answered["marginal_price"])
    least = least_input(output, price, gains_of(curves, price))
    # The optimum has a fraction of a unit more.
    assert amount * (1 - Decimal("1e-9")) - 1 / worst - 1 <= least <= amount
    parts = shares(curves, output, Side.BUY, price)
    assert sum(parts) == output
    inputs = [exchanged(pool, a_to_b, Side.BUY, part) for pool, part in zip(pools, parts, strict=True)]
    paid = sum(amount or 0 for amount in inputs)
    assert least <= paid <= amount * (1 + Decimal("1e-9")) + 5 * len(pools) * max(Decimal(1), 1 / worst) + 1


# ---- Whatever the pools ---------------------------------------------------------------------------


def gains_of(curves: Sequence[PriceCurve], price: float) -> list[float]:
    return [curve.gain(price) for curve in curves]


def _split(amount: int, count: int, shuffle: random.Random) -> list[int]:
    cuts = sorted(shuffle.randint(0, amount) for _ in range(count - 1))
    return [after - before for before, after in zip([0, *cuts], [*cuts, amount], strict=True)]


def no_split_is_better_than_the_bound(
    pools: list[Pool], a_to_b: bool, side: Side, amount: int, shuffle: random.Random
) -> None:
    curves = curves_of(pools, a_to_b)
    price = marginal_price(curves, amount, side)
    assume(price is not None)
    assert price is not None
    bound_of = most_output if side is Side.SELL else least_input
    bound = bound_of(amount, price, gains_of(curves, price))
    tried = [shares(curves, amount, side, price)]
    tried += [[amount if at == chosen else 0 for at in range(len(pools))] for chosen in range(len(pools))]
    tried += [_split(amount, len(pools), shuffle) for _ in range(4)]
    for parts in tried:
        assert sum(parts) == amount
        if min(parts) < 0:
            continue
        given_or_taken = [
            exchanged(pool, a_to_b, side, part) for pool, part in zip(pools, parts, strict=True)
        ]
        if None in given_or_taken:
            continue
        total = sum(one or 0 for one in given_or_taken)
        if side is Side.SELL:
            assert total <= bound
        else:
            assert total >= bound


def best_split_has_no_gap(
    pools: list[Pool], a_to_b: bool, side: Side, amount: int, shuffle: random.Random
) -> None:
    """The curves themselves, shared out at the price found, come to the bound."""
    curves = curves_of(pools, a_to_b)
    price = marginal_price(curves, amount, side)
    assume(price is not None)
    assert price is not None
    jumps = sum(curve.jump_at(price) for curve in curves)
    taken = sum(curve.input_at(price) for curve in curves)
    given_ = sum(curve.output_at(price) for curve in curves)
    depth = sum(curve.depth for curve in curves)
    if side is Side.SELL:
        assert taken <= amount * (1 + 1e-9) + depth * price**2 * 1e-14
        assert amount <= (taken + jumps) * (1 + 1e-9) + depth * price**2 * 1e-14
        given_ += (amount - taken) / price**2
        bound = most_output(amount, price, gains_of(curves, price))
        assert bound <= given_ * (1 + 1e-9) + depth * 1e-14 + 1
    else:
        assert given_ <= amount * (1 + 1e-9) + depth * 1e-14
        assert amount <= (given_ + jumps / price**2) * (1 + 1e-9) + depth * 1e-14
        taken += (amount - given_) * price**2
        slack = 1 + (1e-9 * amount + depth * 1e-14) * price**2
        bound = least_input(amount, price, gains_of(curves, price))
        assert bound >= taken * (1 - 1e-9) - slack


AMOUNTS = st.one_of(st.integers(1, 10**5), st.integers(10**6, 10**15))


def _check(holds: Callable[..., None], phases: Sequence[Phase] = tuple(Phase)) -> None:
    repeatable = settings(
        max_examples=250,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    shuffles = st.randoms(use_true_random=False)
    repeatable(given(pairs(), st.booleans(), st.sampled_from(Side), AMOUNTS, shuffles)(holds))()


@pytest.mark.parametrize("holds", [no_split_is_better_than_the_bound, best_split_has_no_gap])
def test_every_draw_of_pools_shows_it(holds: Callable[..., None]) -> None:
    _check(holds)


def _forgets_the_first(self: PriceCurve, price: float) -> float:
    return 0.0 if self.best_price < price * 0.999 else _gain(self, price)


def _without_jumps(self: PriceCurve, price: float) -> float:
    return 0.0


def _too_early(curves: Sequence[PriceCurve], amount: float, side: Side) -> float | None:
    price = sweep.marginal_price(curves, amount, side)
    best = min(curve.best_price for curve in curves)
    return None if price is None or best == inf else (price + best) / 2


_gain = PriceCurve.gain


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "holds"),
    [
        (PriceCurve, "gain", _forgets_the_first, no_split_is_better_than_the_bound),
        (PriceCurve, "gain", lambda self, price: _gain(self, price) / 2, no_split_is_better_than_the_bound),
        (PriceCurve, "gain", lambda self, price: _gain(self, price) * 1.01, best_split_has_no_gap),
        (PriceCurve, "jump_at", _without_jumps, best_split_has_no_gap),
        (None, "marginal_price", _too_early, best_split_has_no_gap),
    ],
    ids=["gains lost", "gains halved", "gains too large", "jumps lost", "price too good"],
)
def test_reckoning_otherwise_would_be_noticed(
    owner: type | None,
    name: str,
    mutant: Callable[..., Any],
    holds: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if owner is None:
        monkeypatch.setitem(globals(), name, mutant)
    else:
        monkeypatch.setattr(owner, name, mutant)
    with pytest.raises(AssertionError):
        _check(holds, [Phase.generate])


def test_more_than_all_pools_hold_has_no_price() -> None:
    _, a_to_b, pools = problem_of(PROBLEMS[0].values[0])
    curves = curves_of(pools, a_to_b)
    held = int(sum(curve.read_for(inf, Side.BUY) for curve in curves))
    assert marginal_price(curves, held + 1, Side.BUY) is None
    assert marginal_price([], 1, Side.SELL) is None


# ---- Where floating point sees less than there is ------------------------------------------------------


def test_price_is_not_beyond_the_one_that_the_amount_is_reached_by() -> None:
    for amount, fee in ((2**45, 40_000), (2**46, 2_500), (2**63, 40_000)):
        rates = Rates(fee, 0, 120_000, 40_000)
        # What one pool holds, to the last unit: floating point has it all of that pool, at no price at all.
        pools = [RaydiumCpmmPool(1, amount, rates), RaydiumCpmmPool(2**64 - 1, 2, rates)]
        curves = curves_of(pools, True)
        price = marginal_price(curves, amount, Side.BUY)
        assert price is not None
        assert curves[0].best_price < price <= curves[1].best_price


def test_slope_that_a_far_larger_one_hid_leaves_the_price_where_that_ended() -> None:
    ticks = (Tick(-1, 2**127), Tick(0, -(2**127)))
    # Endless, and its slope less than the last digit of the other's.
    flat = RaydiumCpmmPool(1, 1, Rates(100, 0, 120_000, 40_000))
    steep = RaydiumClmmPool(2**64 - 2**40, -1, 2**127, 1, 100, ticks)
    curves = curves_of([flat, steep], True)
    amount = int(curves[1].read_for(inf, Side.SELL)) * 2
    price = marginal_price(curves, amount, Side.SELL)
    assert price is not None
    assert price == pytest.approx(curves[1].breakpoints[-1][0])
    assert sum(shares(curves, amount, Side.SELL, price)) == amount
