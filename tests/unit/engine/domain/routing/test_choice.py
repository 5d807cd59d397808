"""Which pool wins, in what order the others stand, and the sentence that says why."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.domain.order import OrderSpec, Quote, RoutingDecision, Side
from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    MeteoraDammV2Pool,
)
from engine.domain.pools.pool import U64_MAX, Clock
from engine.domain.pools.raydium_cpmm import Rates, RaydiumCpmmPool
from engine.domain.routing import Limits, PoolOffer, choice, decide, quote, threshold
from engine.domain.tokens import SOL, USDC, Token

NOW = Clock(slot=7, unix_timestamp=1_750_000_000)
ONE_SOL = 10**9
SELL = OrderSpec(Side.SELL, ONE_SOL, SOL, USDC)
BUY = OrderSpec(Side.BUY, 100 * 10**6, SOL, USDC)


def _raydium(address: str, *, sol: int = 1_000, usdc: int = 100_000, fee_ppm: int = 2_500) -> PoolOffer:
    pool = RaydiumCpmmPool(sol * 10**9, usdc * 10**6, Rates(fee_ppm, 0, 120_000, 40_000))
    return PoolOffer("Raydium", "raydium_cpmm", address, True, pool)


def _meteora(address: str, *, sol: int = 1_000, usdc: int = 100_000, fee_ppm: int = 2_500) -> PoolOffer:
    pool = MeteoraDammV2Pool(
        token_a_amount=usdc * 10**6,
        token_b_amount=sol * 10**9,
        sqrt_price=1 << 64,
        base_fee=BaseFee(BaseFeeMode.LINEAR, fee_ppm * 1_000),
        dynamic_fee=None,
        protocol_fee_percent=20,
        compounding_fee_bps=5_000,
        activation_type=ActivationType.SLOT,
        activation_point=0,
        fee_version=1,
    )
    return PoolOffer("Meteora", "meteora_damm_v2", address, False, pool)


DEEP, SHALLOW, DEAR = (
    _raydium("deep"),
    _meteora("shallow", sol=100, usdc=10_000),
    _raydium("dear", fee_ppm=10_000),
)
CLOSED = replace(DEEP, address="closed", pool=RaydiumCpmmPool(1, 1, Rates(1, 0, 0, 0), status=4))


ONE_LEG = Limits(max_legs=1)


def _decide(spec: OrderSpec, *offers: PoolOffer, limits: Limits = ONE_LEG) -> RoutingDecision:
    return decide(spec, 2, NOW.slot, NOW, offers, 50, limits)


@pytest.mark.parametrize("spec", [SELL, BUY], ids=["sell", "buy"])
def test_best_pool_wins_and_the_others_follow_refusals_last(spec: OrderSpec) -> None:
    decision = _decide(spec, CLOSED, SHALLOW, DEAR, DEEP)
    assert [offer.pool for offer in decision.quotes] == ["deep", "dear", "shallow", "closed"]
    best = decision.quotes[0]
    assert decision.route is not None
    (leg,) = decision.route.legs
    assert (leg.venue, leg.kind, leg.pool) == ("Raydium", "raydium_cpmm", "deep")
    assert (leg.input_amount, leg.output_amount) == (best.input_amount, best.output_amount)
    assert (leg.fee_amount, leg.fee_side, leg.fee_ppm) == (best.fee_amount, best.fee_side, best.fee_ppm)
    assert leg.threshold_amount == decision.route.threshold_amount
    assert leg.price_impact_ppm == best.price_impact_ppm == decision.route.price_impact_ppm
    assert (decision.attempt, decision.slot) == (2, NOW.slot)


def test_sell_spends_exactly_the_amount_and_buy_receives_exactly_it() -> None:
    sold, bought = _decide(SELL, DEEP).route, _decide(BUY, DEEP).route
    assert sold is not None
    assert bought is not None
    assert sold.input_amount == SELL.amount
    assert bought.output_amount == BUY.amount


def test_equal_offers_are_chosen_by_kind_and_address_whatever_their_order() -> None:
    twins = [_raydium("b"), _raydium("a"), _raydium("c")]
    for seed in range(6):
        shuffled = random.Random(seed).sample(twins, 3)
        decision = _decide(SELL, *shuffled)
        assert [offer.pool for offer in decision.quotes] == ["a", "b", "c"]
    assert (
        _decide(SELL, *twins).reason
        == "Raydium pool a..a gives 99.650598 USDC, as good as the next best, Raydium pool b..b"
    )


@pytest.mark.parametrize(
    ("side", "amounts", "slippage_bps", "expected"),
    [
        # Jupiter's documented example.
        (Side.SELL, (1, 17_057_460), 100, 16_886_885),
        (Side.SELL, (1, 999), 50, 994),
        (Side.SELL, (1, 999), 0, 999),
        (Side.SELL, (1, 999), 10_000, 0),
        (Side.BUY, (999, 1), 50, 1_003),
        (Side.BUY, (999, 1), 0, 999),
        (Side.BUY, (U64_MAX, 1), 1, U64_MAX),
    ],
)
def test_threshold_is_the_quote_less_or_plus_the_slippage_rounded_down(
    side: Side, amounts: tuple[int, int], slippage_bps: int, expected: int
) -> None:
    assert threshold(side, *amounts, slippage_bps) == expected


def test_route_carries_the_threshold_of_the_orders_slippage() -> None:
    decision = _decide(SELL, DEEP)
    assert decision.route is not None
    assert decision.route.threshold_amount == decision.route.output_amount * 9_950 // 10_000


def test_quote_tells_fee_and_how_far_the_price_moves() -> None:
    offer = quote(DEEP, Side.SELL, SELL.amount, NOW)
    assert offer.fee_ppm == 2_500
    # One part in a thousand goes in, less the fee, and about as much of the other comes out.
    assert 1_990 <= offer.price_impact_ppm <= 1_996
    bigger = quote(DEEP, Side.SELL, 10 * ONE_SOL, NOW)
    assert bigger.price_impact_ppm > 9 * offer.price_impact_ppm


def test_fee_on_the_output_is_told_as_a_part_of_the_output() -> None:
    meteora = _meteora("m")
    a_to_b = replace(meteora, a_to_b=True)
    assert quote(a_to_b, Side.SELL, 10**8, NOW).fee_ppm in (2_500, 2_501)


def test_refused_quote_has_its_reason_and_no_amounts() -> None:
    assert quote(CLOSED, Side.SELL, SELL.amount, NOW) == Quote(
        "Raydium", "raydium_cpmm", "closed", refusal="has swaps switched off"
    )


def test_pool_that_would_give_nothing_refuses() -> None:
    assert quote(SHALLOW, Side.SELL, 1, NOW).refusal == "gives nothing for so little"
    assert quote(DEEP, Side.SELL, 1, NOW).refusal == "gives nothing for so little"


@pytest.mark.parametrize(
    ("spec", "offers", "reason"),
    [
        (
            SELL,
            (DEEP, SHALLOW),
            "Raydium pool deep..deep gives 99.650598 USDC, 89.68 bps more than the next best, "
            "Meteora pool shal..llow",
        ),
        (
            BUY,
            (DEEP, SHALLOW),
            "Raydium pool deep..deep asks 1.003509777 SOL, 90.09 bps less than the next best, "
            "Meteora pool shal..llow",
        ),
        (
            SELL,
            (DEEP, CLOSED),
            "Raydium pool deep..deep gives 99.650598 USDC; no other pool can fill the order",
        ),
        (
            SELL,
            (CLOSED,),
            "no pool can fill SOL for USDC: Raydium pool clos..osed has swaps switched off",
        ),
        (SELL, (), "no pool trades SOL for USDC"),
    ],
    ids=["sell", "buy", "only one", "none can", "no pool"],
)
def test_reason_says_why(spec: OrderSpec, offers: tuple[PoolOffer, ...], reason: str) -> None:
    assert _decide(spec, *offers).reason == reason


def test_of_many_refusals_a_sentence_tells_the_first() -> None:
    closed = [replace(CLOSED, address=f"closed{number:03}") for number in range(100)]
    assert _decide(SELL, *closed).reason == (
        "no pool can fill SOL for USDC: "
        + "".join(f"Raydium pool clos..d{number:03} has swaps switched off; " for number in range(8))
        + "and 92 more"
    )


def test_no_route_when_no_pool_can_fill_the_order() -> None:
    decision = _decide(SELL, CLOSED)
    assert decision.route is None
    assert [offer.refusal for offer in decision.quotes] == ["has swaps switched off"]


# ---- Several legs -----------------------------------------------------------------------------------

BIG = replace(SELL, amount=100 * ONE_SOL)
FREE = Limits(max_legs=3)


def _costly(offer: PoolOffer, lamports: int = 5_000) -> PoolOffer:
    return replace(offer, leg_lamports=lamports)


@pytest.mark.parametrize("spec", [BIG, replace(BUY, amount=10_000 * 10**6)], ids=["sell", "buy"])
def test_large_order_is_shared_out_and_its_legs_add_up(spec: OrderSpec) -> None:
    decision = _decide(spec, DEEP, SHALLOW, DEAR, CLOSED, limits=FREE)
    route, best = decision.route, decision.quotes[0]
    assert route is not None
    assert [leg.pool for leg in route.legs] == ["deep", "dear", "shallow"], "the largest first"
    assert route.venue == "Raydium"
    assert sum(leg.input_amount for leg in route.legs) == route.input_amount
    assert sum(leg.output_amount for leg in route.legs) == route.output_amount
    assert sum(leg.threshold_amount or 0 for leg in route.legs) == route.threshold_amount
    if spec.side is Side.SELL:
        assert route.input_amount == spec.amount
        assert route.output_amount > (best.output_amount or 0)
    else:
        assert route.output_amount == spec.amount
        assert route.input_amount < (best.input_amount or 0)
    # Prices at the margin are alike, fees included, so each moves less than one alone would.
    assert route.price_impact_ppm < best.price_impact_ppm
    assert route.gap_amount is not None
    assert route.gap_amount <= 5
    assert route.gap_ppm == 1


def test_leg_that_gains_less_than_it_costs_is_left_out() -> None:
    pools = [DEEP, DEAR, SHALLOW]
    # A lamport is worth a ten thousandth of a base unit of USDC; legs cost more and more.
    legs = [
        _decide(BIG, *(_costly(pool, lamports) for pool in pools), limits=Limits(3, 0.0001)).route
        for lamports in (0, 10**10, 10**12, 10**14)
    ]
    assert [len(route.legs) for route in legs if route is not None] == [3, 3, 2, 1]
    # What is left out shows in the gap.
    gaps = [route.gap_amount or 0 for route in legs if route is not None]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 10**6


def test_small_order_is_not_swept_and_its_gap_is_within_a_legs_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    def swept(*_: Any) -> None:
        raise AssertionError("swept")

    monkeypatch.setattr(choice, "marginal_price", swept)
    limits = Limits(3, 0.1)
    offers = [_costly(pool, 10_000) for pool in (DEEP, SHALLOW)]
    route = _decide(replace(SELL, amount=ONE_SOL // 10), *offers, limits=limits).route
    assert route is not None
    assert len(route.legs) == 1
    assert route.gap_amount is not None
    assert 0 < route.gap_amount <= 1_000
    with pytest.raises(AssertionError, match="swept"):
        _decide(BIG, *offers, limits=limits)


def test_pools_that_do_not_go_together_in_a_transaction_are_not_put_together() -> None:
    def fits(legs: Sequence[PoolOffer], middle_token: Token | None) -> bool:
        return not {"deep", "dear"} <= {leg.address for leg in legs}

    route = _decide(BIG, DEEP, SHALLOW, DEAR, limits=Limits(3, 0.0, fits)).route
    assert route is not None
    assert [leg.pool for leg in route.legs] == ["deep", "shallow"]


def test_what_no_pool_can_fill_alone_several_can() -> None:
    twins = [_raydium("one", usdc=60), _raydium("two", usdc=60)]
    decision = _decide(replace(BUY, amount=80 * 10**6), *twins, limits=FREE)
    assert decision.route is not None
    assert [leg.output_amount for leg in decision.route.legs] == pytest.approx([40 * 10**6] * 2, abs=1)
    assert decision.route.output_amount == 80 * 10**6
    assert all(quoted.refusal for quoted in decision.quotes)
    assert decision.reason.endswith("; no pool can fill the order alone")
    assert _decide(replace(BUY, amount=120 * 10**6), *twins, limits=FREE).route is None


def test_reason_of_a_split_names_the_best_pool() -> None:
    decision = _decide(BIG, DEEP, SHALLOW, DEAR, limits=FREE)
    assert decision.reason.startswith("a split over 3 pools gives ")
    assert decision.reason.endswith(" bps more than the best alone, Raydium pool deep..deep")
    bought = _decide(replace(BUY, amount=10_000 * 10**6), DEEP, SHALLOW, limits=FREE)
    assert bought.reason.startswith("a split over 2 pools asks ")
    assert " bps less than the best alone" in bought.reason


OFFERS = st.lists(
    st.builds(
        lambda make, address, sol, usdc, fee: make(f"{address:04}", sol=sol, usdc=usdc, fee_ppm=fee),
        st.sampled_from([_raydium, _meteora]),
        st.integers(0, 9_999),
        st.integers(1, 10_000),
        st.integers(1, 1_000_000),
        st.integers(1, 40_000),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda offer: offer.address,
)


def nothing_offered_is_better(
    offers: list[PoolOffer], side: Side, amount: int, shuffle: random.Random
) -> None:
    spec = OrderSpec(side, amount, SOL, USDC)
    decision = _decide(spec, *offers)
    usable = [offer for offer in (quote(pool, side, amount, NOW) for pool in offers) if offer.refusal is None]
    if not usable:
        assert decision.route is None
        return
    assert decision.route is not None
    if side is Side.SELL:
        assert decision.route.output_amount == max(offer.output_amount or 0 for offer in usable)
    else:
        assert decision.route.input_amount == min(offer.input_amount or 0 for offer in usable)
    assert _decide(spec, *shuffle.sample(offers, len(offers))) == decision
    split = _decide(spec, *offers, limits=FREE)
    assert split.quotes == decision.quotes
    assert split.route is not None
    if side is Side.SELL:
        assert split.route.output_amount >= decision.route.output_amount
    else:
        assert split.route.input_amount <= decision.route.input_amount


def _check(phases: Sequence[Phase] = tuple(Phase)) -> None:
    repeatable = settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )
    amounts, shuffles = st.integers(1, 10**12), st.randoms(use_true_random=False)
    repeatable(given(OFFERS, st.sampled_from(Side), amounts, shuffles)(nothing_offered_is_better))()


def test_nothing_offered_is_better_than_what_is_chosen() -> None:
    _check()


@pytest.mark.parametrize(
    "rank",
    [
        lambda offer: (offer.refusal is not None, offer.pool),
        lambda offer: (offer.refusal is not None, -(offer.output_amount or 0), offer.input_amount or 0),
    ],
    ids=["by address alone", "ties left as they came"],
)
def test_choosing_otherwise_would_be_noticed(
    rank: Callable[[Quote], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_ranked", lambda quotes, _side: sorted(quotes, key=rank))
    with pytest.raises(AssertionError):
        _check(phases=[Phase.generate])
