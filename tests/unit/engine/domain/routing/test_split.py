"""Orders shared out in whole base units, against published optima and against every choice of pools."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from engine.domain.order import Side
from engine.domain.pools.pool import Pool
from engine.domain.routing import Limits, PoolOffer, choice, quote, split
from engine.domain.routing.choice import direct_route
from engine.domain.routing.price_curve import PriceCurve
from engine.domain.routing.split import choose_pools
from engine.domain.routing.sweep import marginal_price, shares
from engine.domain.tokens import Token
from tests.published_vectors import swap_vectors
from tests.unit.engine.domain.routing.pools_of_a_pair import NOW, exchanged, pairs, problem_of

PROBLEMS = [*swap_vectors("routing_split_cpmm"), *swap_vectors("routing_split_mixed")]
ALL_LEGS = Limits(max_legs=100)


def offers_of(pools: Sequence[Pool], a_to_b: bool, leg_lamports: int = 0) -> list[PoolOffer]:
    return [
        PoolOffer("Venue", "kind", f"pool {at}", a_to_b, pool, leg_lamports) for at, pool in enumerate(pools)
    ]


@pytest.mark.parametrize(("asked", "answered"), PROBLEMS)
def test_published_optimum_is_reached_and_the_gap_says_how_nearly(
    asked: dict[str, Any], answered: dict[str, Any]
) -> None:
    amount, a_to_b, pools = problem_of(asked)
    offers = offers_of(pools, a_to_b)
    quotes = [quote(offer, Side.SELL, amount, NOW) for offer in offers]
    best = max(quotes, key=lambda one: one.output_amount or 0)
    route = direct_route(Side.SELL, amount, NOW, offers, None if best.refusal else best, 50, ALL_LEGS)
    if "error" in answered:
        assert route is None
        return
    assert route is not None
    assert route.gap_amount is not None
    assert route.input_amount == amount == sum(leg.input_amount for leg in route.legs)
    optimum = Decimal(answered["continuous_optimum_out"])
    assert route.output_amount <= optimum
    assert route.output_amount >= (best.output_amount or 0)
    crossed = sum(
        point[0] <= (marginal_price([offer.curve(NOW)], amount, Side.SELL) or 0)
        for offer in offers
        for point in offer.curve(NOW).breakpoints
    )
    unit = max(Decimal(1), Decimal(answered["marginal_price"]))
    assert optimum - route.output_amount <= max(optimum * Decimal("1e-9"), 2 * max(1, crossed) * unit)
    # Never less than the true gap.
    assert route.output_amount + route.gap_amount >= int(optimum)
    if "exact_integer_optimum_out" in answered:
        exact = int(answered["exact_integer_optimum_out"])
        assert route.output_amount <= exact <= route.output_amount + route.gap_amount
        # Two pools: rounding may cost each a unit of input or two.
        assert exact - route.output_amount <= 2 * unit


# ---- Whatever the pools ---------------------------------------------------------------------------


def value_of(
    curves: Sequence[Any], chosen: Sequence[int], amount: int, side: Side, cost: float
) -> float | None:
    """Return what a choice of pools comes to, its legs' cost deducted; more is better."""
    some = [curves[at] for at in chosen]
    price = marginal_price(some, amount, side)
    if price is None:
        return None
    taken = sum(curve.input_at(price) for curve in some)
    given_ = sum(curve.output_at(price) for curve in some)
    # What is left of the amount is for pools that have some at this very price.
    if side is Side.SELL:
        return float(given_ + (amount - taken) / price**2 - cost * len(chosen))
    return float(-taken - (amount - given_) * price**2 - cost * len(chosen))


def no_choice_of_pools_is_better(
    pools: list[Pool], a_to_b: bool, side: Side, amount: int, max_legs: int, cost: float, seed: int
) -> None:
    def fits(legs: Sequence[PoolOffer], middle_token: Token | None) -> bool:
        """Some pairs do not go together."""
        return seed % 3 == 0 or random.Random(f"{seed} {[leg.address for leg in legs]}").random() < 0.7

    offers = offers_of(pools, a_to_b, 1)
    curves = [offer.curve(NOW) for offer in offers]
    price = marginal_price(curves, amount, side)
    assume(price is not None)
    assert price is not None
    limits = Limits(max_legs, cost, fits)
    gains = [curve.gain(price) for curve in curves]
    found = choose_pools(offers, curves, amount, side, limits, price, gains)
    every = {
        some: value_of(curves, some, amount, side, cost)
        for count in range(1, max_legs + 1)
        for some in combinations(range(len(pools)), count)
        if count == 1 or fits([offers[at] for at in some], None)
    }
    possible = [value for value in every.values() if value is not None]
    if not possible:
        assert found is None
        return
    assert found is not None
    chosen, at = found
    value = every[tuple(chosen)]
    assert value is not None
    assert at == marginal_price([curves[index] for index in chosen], amount, side)
    assert value >= max(possible) - 1e-9 * abs(max(possible)) - 1e-6


def legs_are_exact_and_within_the_bound(
    pools: list[Pool], a_to_b: bool, side: Side, amount: int, max_legs: int, cost: float, seed: int
) -> None:
    offers = offers_of(pools, a_to_b, 1)
    by_address = {offer.address: offer for offer in offers}
    quotes = [quote(offer, side, amount, NOW) for offer in offers]
    usable = [one for one in quotes if one.refusal is None]
    if side is Side.SELL:
        best = max(usable, key=lambda one: one.output_amount or 0, default=None)
    else:
        best = min(usable, key=lambda one: one.input_amount or 0, default=None)
    route = direct_route(side, amount, NOW, offers, best, 50, Limits(max_legs, cost))
    if route is None:
        assert best is None
        return
    assert len(route.legs) <= max_legs
    for leg in route.legs:
        given_part = leg.input_amount if side is Side.SELL else leg.output_amount
        other = exchanged(by_address[leg.pool].pool, a_to_b, side, given_part)
        assert other == (leg.output_amount if side is Side.SELL else leg.input_amount)
    assert route.gap_amount is not None
    if side is Side.SELL:
        assert sum(leg.input_amount for leg in route.legs) == route.input_amount == amount
        assert route.threshold_amount == sum(leg.output_amount * 9_950 // 10_000 for leg in route.legs)
        if best is not None:
            # What it gains pays for its legs.
            ahead = route.output_amount - (best.output_amount or 0)
    else:
        assert sum(leg.output_amount for leg in route.legs) == route.output_amount == amount
        assert route.threshold_amount == sum(leg.input_amount * 10_050 // 10_000 for leg in route.legs)
        if best is not None:
            ahead = (best.input_amount or 0) - route.input_amount
    # Nothing offered is better than the gap admits.
    shuffle = random.Random(seed)
    for _ in range(4):
        cuts = sorted(shuffle.randint(0, amount) for _ in range(len(pools) - 1))
        parts = [after - before for before, after in zip([0, *cuts], [*cuts, amount], strict=True)]
        others = [exchanged(pool, a_to_b, side, part) for pool, part in zip(pools, parts, strict=True)]
        if None in others:
            continue
        total = sum(other or 0 for other in others)
        if side is Side.SELL:
            assert total <= route.output_amount + route.gap_amount
        else:
            assert total >= route.input_amount - route.gap_amount
    if best is not None:
        assert ahead >= 0
        assert ahead > cost * (len(route.legs) - 1) or len(route.legs) == 1


AMOUNTS = st.one_of(st.integers(1, 10**5), st.integers(10**6, 10**15))
COSTS = st.sampled_from([0.0, 1.0, 1e3, 1e6, 1e9])


def _check(holds: Callable[..., None], phases: Sequence[Phase] = tuple(Phase)) -> None:
    repeatable = settings(
        max_examples=250,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    repeatable(
        given(
            pairs(6),
            st.booleans(),
            st.sampled_from(Side),
            AMOUNTS,
            st.integers(1, 4),
            COSTS,
            st.integers(0, 10**6),
        )(holds)
    )()


@pytest.mark.parametrize("holds", [no_choice_of_pools_is_better, legs_are_exact_and_within_the_bound])
def test_every_draw_of_pools_shows_it(holds: Callable[..., None]) -> None:
    _check(holds)


def _by_address(offers: Sequence[PoolOffer], worth: Sequence[float], limits: Limits) -> Sequence[int]:
    return sorted(range(len(offers)), key=lambda at: offers[at].address)[: limits.max_legs]


def _without_costs(offers: Sequence[PoolOffer], worth: Sequence[float], limits: Limits) -> Sequence[int]:
    return _worth_most(offers, [one + limits.lamport_price for one in worth], limits)


def _whatever_fits(offers: Sequence[PoolOffer], worth: Sequence[float], limits: Limits) -> Sequence[int]:
    return _worth_most(offers, worth, Limits(limits.max_legs, limits.lamport_price))


_worth_most = split._worth_most


@pytest.mark.parametrize("mutant", [_by_address, _without_costs, _whatever_fits])
def test_choosing_pools_otherwise_would_be_noticed(
    mutant: Callable[..., Sequence[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split, "_worth_most", mutant)
    with pytest.raises((AssertionError, KeyError)):
        _check(no_choice_of_pools_is_better, [Phase.generate])


def _any_pools(
    offers: Sequence[PoolOffer],
    curves: Sequence[PriceCurve],
    amount: int,
    side: Side,
    limits: Limits,
    price: float,
    gains: Sequence[float],
) -> tuple[Sequence[int], float] | None:
    chosen = range(min(len(offers), limits.max_legs))
    at = marginal_price([curves[index] for index in chosen], amount, side)
    return None if at is None else (chosen, at)


@pytest.mark.parametrize(
    "mutants",
    [
        [(split, "shares", lambda *asked: [max(part - 1, 0) for part in shares(*asked)])],
        [(choice, "choose_pools", _any_pools), (choice, "net", lambda legs, side: 10**30)],
    ],
    ids=["parts do not add up", "what is gained is made up"],
)
def test_sharing_out_otherwise_would_be_noticed(
    mutants: Sequence[tuple[Any, str, Callable[..., Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, mutant in mutants:
        monkeypatch.setattr(module, name, mutant)
    with pytest.raises(AssertionError):
        _check(legs_are_exact_and_within_the_bound, [Phase.generate])


def test_poor_choice_of_pools_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choose_pools", _any_pools)
    _check(legs_are_exact_and_within_the_bound)
