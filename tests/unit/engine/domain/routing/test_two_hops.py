"""The way through another token: when it is taken, what it guarantees, and what its gap is worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from engine.domain.order import OrderSpec, Side
from engine.domain.pools.meteora_damm_v2 import ActivationType, BaseFee, BaseFeeMode, MeteoraDammV2Pool
from engine.domain.pools.pool import Pool, SwapError
from engine.domain.pools.raydium_clmm import RaydiumClmmPool, Tick
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import Detour, Limits, PoolOffer, decide, quote, threshold, two_hops
from engine.domain.routing.two_hops import by_way_of
from engine.domain.tokens import BONK, JUP, SOL, USDC, Token
from tests.unit.engine.domain.routing.pools_of_a_pair import NOW, pairs

SELL = OrderSpec(Side.SELL, 10**6, BONK, JUP)
BUY = OrderSpec(Side.BUY, 10**6, BONK, JUP)
BPS = 50


def _pool(address: str, reserve_in: int, reserve_out: int, fee_ppm: int = 100) -> PoolOffer:
    rates = Rates(fee_ppm, 0, 120_000, 40_000)
    return PoolOffer(
        "Raydium", "raydium_cpmm", address, True, RaydiumCpmmPool(reserve_in, reserve_out, rates)
    )


def _detour(first: Sequence[PoolOffer], second: Sequence[PoolOffer], middle_token: Token = USDC) -> Detour:
    return Detour(middle_token, first, second, NOW)


IN = _pool("in", 10**10, 2 * 10**10)
OUT = _pool("out", 10**10, 2 * 10**10)
DETOUR = _detour([IN], [OUT])
DEAR_DIRECT = _pool("direct", 10**10, 3 * 10**10)
FAIR_DIRECT = _pool("direct", 10**10, 4 * 10**10)
ALWAYS = Limits().fits


@pytest.mark.parametrize("spec", [SELL, BUY], ids=["sell", "buy"])
def test_way_round_is_taken_where_it_is_better_net_of_what_is_left_over(spec: OrderSpec) -> None:
    there = decide(spec, 1, 7, NOW, [DEAR_DIRECT], BPS, Limits(), [DETOUR])
    assert there.route is not None
    assert there.route.middle_token == USDC
    assert [leg.pool for leg in there.route.legs] == ["in", "out"]
    assert "the way through USDC" in there.reason
    # The fees of the way round are less than half a per cent, and still it is not worth it: what the first
    # hop gives beyond its threshold is left over.
    here = decide(spec, 1, 7, NOW, [FAIR_DIRECT], BPS, Limits(), [DETOUR])
    assert here.route is not None
    assert here.route.middle_token is None
    slightly_dear = _pool("direct", 10**10, 4 * 10**10, 4_000)
    still_here = decide(spec, 1, 7, NOW, [slightly_dear], BPS, Limits(), [DETOUR]).route
    assert still_here is not None
    assert still_here.middle_token is None
    tight = decide(spec, 1, 7, NOW, [slightly_dear], 1, Limits(), [DETOUR]).route
    assert tight is not None
    assert tight.middle_token == USDC


def test_only_way_is_taken_and_the_reason_says_so() -> None:
    decision = decide(SELL, 1, 7, NOW, [], BPS, Limits(), [DETOUR])
    assert decision.route is not None
    assert decision.quotes == ()
    assert decision.reason.endswith("; no pool can fill the order directly")


@pytest.mark.parametrize("side", Side)
def test_hop_whose_range_floating_point_does_not_see_is_none(side: Side) -> None:
    # It takes and gives thousands of units within less than the last digit of its price.
    ticks = (Tick(0, 2**68), Tick(1, -(2**68)))
    narrow = PoolOffer("V", "k", "narrow", True, RaydiumClmmPool(2**64 + 1_000, 0, 2**68, 1, 100, ticks))
    assert quote(narrow, side, 10**4, NOW).refusal is None
    for hops in (([narrow], [OUT]), ([IN], [narrow]), ([narrow], [narrow])):
        assert (
            decide(replace(SELL, side=side, amount=5_000), 1, 7, NOW, [], BPS, detours=[_detour(*hops)]).route
            is None
        )
    assert by_way_of(_detour([narrow, IN], [OUT, narrow]), [narrow], side, 5_000, BPS, ALWAYS) is not None


def test_pool_without_a_price_is_no_way() -> None:
    empty = MeteoraDammV2Pool(0, 1, 0, BaseFee(BaseFeeMode.LINEAR, 0), None, 0, 0, ActivationType.SLOT, 0, 0)
    assert _detour([PoolOffer("V", "k", "empty", True, empty)], [OUT]).best_price == 0.0


def test_second_hop_of_a_sale_spends_what_the_first_guarantees() -> None:
    route = by_way_of(DETOUR, [], Side.SELL, 10**6, BPS, ALWAYS)
    assert route is not None
    first, second = route.legs
    assert second.input_amount == first.threshold_amount == threshold(Side.SELL, 1, first.output_amount, BPS)
    assert route.threshold_amount == second.threshold_amount
    assert (route.input_amount, route.output_amount) == (10**6, second.output_amount)
    assert second.output_amount == quote(OUT, Side.SELL, second.input_amount, NOW).output_amount


def test_first_hop_of_a_purchase_buys_the_most_that_the_second_may_take() -> None:
    route = by_way_of(DETOUR, [], Side.BUY, 10**6, BPS, ALWAYS)
    assert route is not None
    first, second = route.legs
    assert first.output_amount == second.threshold_amount
    assert route.threshold_amount == first.threshold_amount
    assert (route.input_amount, route.output_amount) == (first.input_amount, 10**6)
    assert first.input_amount == quote(IN, Side.BUY, first.output_amount, NOW).input_amount


def test_best_of_several_ways_is_taken() -> None:
    worse = _detour([_pool("a", 10**10, 10**10)], [_pool("b", 10**10, 10**10)], SOL)
    for detours in ([worse, DETOUR], [DETOUR, worse]):
        route = decide(SELL, 1, 7, NOW, [], BPS, Limits(), detours).route
        assert route is not None
        assert route.middle_token == USDC


def test_way_round_pays_for_its_second_leg() -> None:
    direct = [replace(DEAR_DIRECT, leg_lamports=1)]
    dear_legs = _detour([replace(IN, leg_lamports=1)], [replace(OUT, leg_lamports=1)])
    gained = 900_000
    for lamport_price, taken in ((gained, True), (2 * gained, False)):
        route = decide(SELL, 1, 7, NOW, direct, BPS, Limits(3, lamport_price), [dear_legs]).route
        assert route is not None
        assert (route.middle_token is not None) is taken


def test_hops_that_no_transaction_holds_together_are_not_put_together() -> None:
    other = _pool("other", 10**10, 19 * 10**9)

    def fits(legs: Sequence[PoolOffer], middle_token: Token | None) -> bool:
        assert middle_token == USDC
        return [leg.address for leg in legs] != ["in", "out"]

    for side in Side:
        route = by_way_of(_detour([IN], [OUT, other]), [], side, 10**6, BPS, fits)
        if side is Side.SELL:
            assert route is not None
            assert [leg.pool for leg in route.legs] == ["in", "other"]
        else:
            # The second hop chooses first, and nothing goes with its choice.
            assert route is None


def test_one_leg_at_most_allows_no_way_round() -> None:
    assert decide(SELL, 1, 7, NOW, [], BPS, Limits(max_legs=1), [DETOUR]).route is None


def test_pools_that_refuse_are_no_way_round() -> None:
    small = _pool("small", 10**3, 10**3)
    assert by_way_of(_detour([IN], [small]), [], Side.BUY, 10**6, BPS, ALWAYS) is None
    assert by_way_of(_detour([small], [OUT]), [], Side.BUY, 10**6, BPS, ALWAYS) is None
    assert by_way_of(DETOUR, [], Side.SELL, 1, BPS, ALWAYS) is None
    assert decide(BUY, 1, 7, NOW, [], BPS, Limits(), [_detour([small], [OUT])]).route is None


# ---- Whatever the pools ---------------------------------------------------------------------------


def _offers(name: str, pools: Sequence[Pool], a_to_b: bool) -> list[PoolOffer]:
    return [PoolOffer("Venue", "kind", f"{name} {at}", a_to_b, pool) for at, pool in enumerate(pools)]


def _shared(offers: Sequence[PoolOffer], side: Side, amount: int, shuffle: random.Random) -> int | None:
    """Return what a random split over the pools gives or takes; None where one refuses."""
    cuts = sorted(shuffle.randint(0, amount) for _ in range(len(offers) - 1))
    parts = [after - before for before, after in zip([0, *cuts], [*cuts, amount], strict=True)]
    total = 0
    for offer, part in zip(offers, parts, strict=True):
        if part:
            try:
                if side is Side.SELL:
                    total += offer.pool.swap_exact_in(offer.a_to_b, part, NOW).output_amount
                else:
                    total += offer.pool.swap_exact_out(offer.a_to_b, part, NOW).input_amount
            except SwapError:
                return None
    return total


def nothing_beats_the_gap(
    three: tuple[list[Pool], list[Pool], list[Pool]],
    a_to_b: bool,
    side: Side,
    amount: int,
    slippage_bps: int,
    shuffle: random.Random,
) -> None:
    """No mixture of directly and through the middle, however shared out, is better than the bound."""
    first, second, direct = (
        _offers(name, pools, a_to_b) for name, pools in zip(("first", "second", "direct"), three, strict=True)
    )
    route = by_way_of(_detour(first, second), direct, side, amount, slippage_bps, ALWAYS)
    assume(route is not None)
    assert route is not None
    assert route.gap_amount is not None
    for _ in range(6):
        directly = shuffle.choice([0, 0, amount, shuffle.randint(0, amount)])
        by_hops = amount - directly
        other = _shared(direct, side, directly, shuffle) if directly else 0
        hops = (first, second) if side is Side.SELL else (second, first)
        passed_on: int | None = by_hops
        for offers in hops:
            if passed_on:
                passed_on = _shared(offers, side, passed_on, shuffle)
        if other is None or passed_on is None:
            continue
        if side is Side.SELL:
            assert other + passed_on <= route.output_amount + route.gap_amount
        else:
            assert other + passed_on >= route.input_amount - route.gap_amount


def way_round_that_is_better_is_looked_at(
    three: tuple[list[Pool], list[Pool], list[Pool]],
    a_to_b: bool,
    side: Side,
    amount: int,
    slippage_bps: int,
    shuffle: random.Random,
) -> None:
    first, second, _ = (_offers(name, pools, a_to_b) for name, pools in zip("abc", three, strict=True))
    detour = _detour(first, second)
    route = by_way_of(detour, [], side, amount, slippage_bps, ALWAYS)
    assume(route is not None)
    assert route is not None
    # To a hair better than another route would be.
    if side is Side.SELL:
        assert two_hops.could_beat(detour, side, amount, route.output_amount - 1, slippage_bps)
    else:
        assert two_hops.could_beat(detour, side, amount, route.input_amount + 2, slippage_bps)


def _check(holds: Callable[..., None], phases: Sequence[Phase] = tuple(Phase)) -> None:
    repeatable = settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    repeatable(
        given(
            st.tuples(pairs(2), pairs(2), pairs(2)),
            st.booleans(),
            st.sampled_from(Side),
            st.integers(10**4, 10**13),
            st.sampled_from([0, 1, 50, 300]),
            st.randoms(use_true_random=False),
        )(holds)
    )()


@pytest.mark.parametrize("holds", [nothing_beats_the_gap, way_round_that_is_better_is_looked_at])
def test_every_draw_of_pools_shows_it(holds: Callable[..., None]) -> None:
    _check(holds)


_could_beat = two_hops.could_beat


@pytest.mark.parametrize(
    ("name", "mutant", "holds"),
    [
        ("most_output", lambda amount, price, gains: int(amount / price**2), nothing_beats_the_gap),
        ("least_input", lambda amount, price, gains: int(amount * price**2), nothing_beats_the_gap),
        (
            "could_beat",
            lambda detour, side, amount, best, bps: _could_beat(detour, side, amount, best, bps + 200),
            way_round_that_is_better_is_looked_at,
        ),
    ],
    ids=["gains lost of a sale", "gains lost of a purchase", "more slippage than there is"],
)
def test_reckoning_otherwise_would_be_noticed(
    name: str, mutant: Callable[..., int], holds: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_hops, name, mutant)
    with pytest.raises(AssertionError):
        _check(holds, [Phase.generate])
