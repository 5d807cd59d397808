"""Meteora DAMM v2, price ranges and compounding pools, against the program's own answers."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt
from typing import Any

import pytest

from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    CollectFeeMode,
    DynamicFee,
    MeteoraDammV2Pool,
    RateLimiter,
)
from engine.domain.pools.pool import U64_MAX, Clock, FeeSide, SwapError, SwapRefusal, ceil_div
from tests.published_vectors import swap_vectors

NOW = Clock(slot=500, unix_timestamp=1_750_000_000)
POOL = MeteoraDammV2Pool(
    token_a_amount=5_000_000_000,
    token_b_amount=800_000_000,
    sqrt_price=(1 << 64) * 4 // 10,
    base_fee=BaseFee(BaseFeeMode.LINEAR, 2_500_000),
    dynamic_fee=None,
    protocol_fee_percent=20,
    compounding_fee_bps=5_000,
    activation_type=ActivationType.TIMESTAMP,
    activation_point=1_700_000_000,
    fee_version=1,
)


RANGE = MeteoraDammV2Pool(
    token_a_amount=10**12,
    token_b_amount=10**12,
    sqrt_price=1 << 64,
    base_fee=BaseFee(BaseFeeMode.LINEAR, 2_500_000),
    dynamic_fee=None,
    protocol_fee_percent=20,
    compounding_fee_bps=0,
    activation_type=ActivationType.TIMESTAMP,
    activation_point=1_750_000_000,
    fee_version=1,
    liquidity=10**12 << 64,
    collect_fee_mode=CollectFeeMode.ONLY_B,
    sqrt_min_price=(1 << 64) * 9 // 10,
    sqrt_max_price=(1 << 64) * 11 // 10,
)
LIMITED = replace(
    RANGE,
    base_fee=RateLimiter(
        10_000_000,
        fee_increment_bps=100,
        max_limiter_duration=60,
        max_fee_bps=500,
        reference_amount=10**9,
    ),
)

_PROGRAM_ERRORS = {
    SwapRefusal.PRICE_RANGE: "PriceRangeViolation",
    SwapRefusal.INSUFFICIENT_LIQUIDITY: "MathOverflow",
}


def _base_fee(given: dict[str, Any]) -> BaseFee | RateLimiter:
    if given["mode"] in set(BaseFeeMode):
        return BaseFee(**given | {"mode": BaseFeeMode(given["mode"])})
    return RateLimiter(**{name: int(value) for name, value in given.items() if name != "mode"})


def _pool(given: dict[str, Any]) -> MeteoraDammV2Pool:
    dynamic_fee = given["dynamic_fee"]
    return MeteoraDammV2Pool(
        token_a_amount=int(given["token_a_amount"]),
        token_b_amount=int(given["token_b_amount"]),
        sqrt_price=int(given["sqrt_price"]),
        base_fee=_base_fee(given["base_fee"]),
        dynamic_fee=dynamic_fee and DynamicFee(**{name: int(value) for name, value in dynamic_fee.items()}),
        protocol_fee_percent=given["protocol_fee_percent"],
        compounding_fee_bps=given["compounding_fee_bps"],
        activation_type=ActivationType(given["activation_type"]),
        activation_point=given["activation_point"],
        fee_version=given["fee_version"],
        liquidity=int(given["liquidity"]),
        collect_fee_mode=CollectFeeMode(given["collect_fee_mode"]),
        sqrt_min_price=int(given["sqrt_min_price"]),
        sqrt_max_price=int(given["sqrt_max_price"]),
    )


@pytest.mark.parametrize(("given", "expected"), swap_vectors("meteora_damm_v2_swap"))
def test_swaps_agree_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _answer(given) == expected


def _answer(given: dict[str, Any]) -> dict[str, Any]:
    """Return what our curve says in the words of the vectors."""
    pool, amount = _pool(given["pool"]), int(given["amount"])
    clock = Clock(given["current_slot"], given["current_timestamp"])
    swap_of = {
        "exact_in": pool.swap_exact_in,
        "partial_fill": pool.swap_partial_fill,
        "exact_out": pool.swap_exact_out,
    }[given["swap_mode"]]
    try:
        swap = swap_of(given["a_to_b"], amount, clock)
    except SwapError as error:
        return {"error": _PROGRAM_ERRORS[error.reason]}
    after = swap.pool
    assert isinstance(after, MeteoraDammV2Pool)
    net_input = swap.input_amount - (swap.fee_amount if swap.fee_side is FeeSide.INPUT else 0)
    protocol_fees, lp_fees = (after.protocol_a_fee, after.protocol_b_fee), (after.lp_a_fee, after.lp_b_fee)
    in_other_token = 1 if given["a_to_b"] is (swap.fee_side is FeeSide.INPUT) else 0
    assert (protocol_fees[in_other_token], lp_fees[in_other_token]) == (0, 0)
    protocol_fee, lp_fee = sum(protocol_fees), sum(lp_fees)
    compounding_fee = lp_fee * pool.compounding_fee_bps // 10_000
    answer: dict[str, Any] = {
        "amount_in": str(swap.input_amount),
        "amount_out": str(swap.output_amount),
        "sqrt_price": str(after.sqrt_price),
        "token_a_amount": str(after.token_a_amount),
        "token_b_amount": str(after.token_b_amount),
        "included_fee_input_amount": str(swap.input_amount),
        "excluded_fee_input_amount": str(net_input),
        "amount_left": "0",
        "claiming_fee": str(lp_fee - compounding_fee),
        "protocol_fee": str(protocol_fee),
        "compounding_fee": str(compounding_fee),
    }
    if given["swap_mode"] == "partial_fill":
        # What the whole amount would have left after its fee, without what the range took of it.
        fee = _fee_of(pool, amount, clock) if swap.fee_side is FeeSide.INPUT else 0
        answer["amount_left"] = str(amount - fee - net_input)
    if after.dynamic_fee is not None:
        answer["dynamic_fee_after"] = {
            name: str(getattr(after.dynamic_fee, name))
            for name in (
                "last_update_timestamp",
                "sqrt_price_reference",
                "volatility_accumulator",
                "volatility_reference",
            )
        }
    return answer


def _fee_of(pool: MeteoraDammV2Pool, amount: int, clock: Clock) -> int:
    """Return the fee on an input of token b."""
    now = clock.slot if pool.activation_type is ActivationType.SLOT else clock.unix_timestamp
    elapsed = now - pool.activation_point
    if isinstance(pool.base_fee, BaseFee):
        numerator = pool.base_fee.numerator(elapsed)
    elif pool.base_fee.applies(False, elapsed):
        numerator = pool.base_fee.numerator(amount)
    else:
        numerator = pool.base_fee.cliff_fee_numerator
    if pool.dynamic_fee is not None:
        numerator += pool.dynamic_fee.numerator()
    return ceil_div(amount * min(numerator, (500_000_000, 990_000_000)[pool.fee_version]), 10**9)


@pytest.mark.parametrize(
    ("elapsed", "expected"), [(0, 500), (59, 500), (60, 400), (180, 200), (240, 100), (10**9, 100)]
)
def test_linear_fee_falls_once_a_period_and_stops(elapsed: int, expected: int) -> None:
    fee = BaseFee(BaseFeeMode.LINEAR, 500, number_of_period=4, period_frequency=60, reduction_factor=100)
    assert fee.numerator(elapsed) == expected


def test_exponential_fee_falls_by_a_part_of_itself() -> None:
    fee = BaseFee(
        BaseFeeMode.EXPONENTIAL, 10**9, number_of_period=10, period_frequency=1, reduction_factor=5_000
    )
    assert [fee.numerator(elapsed) for elapsed in range(4)] == [10**9, 5 * 10**8, 25 * 10**7, 125 * 10**6]


def test_exponential_fee_without_reduction_stays_within_a_unit() -> None:
    fee = BaseFee(BaseFeeMode.EXPONENTIAL, 10**9, number_of_period=10, period_frequency=1)
    assert 10**9 - 1 <= fee.numerator(7) <= 10**9


@pytest.mark.parametrize(("fee_version", "cap"), [(0, 500_000_000), (1, 990_000_000)])
def test_fee_has_a_cap_by_version(fee_version: int, cap: int) -> None:
    greedy = replace(POOL, base_fee=BaseFee(BaseFeeMode.LINEAR, 10**9), fee_version=fee_version)
    assert greedy.swap_exact_in(False, 10**6, NOW).fee_amount == 10**6 * cap // 10**9


@pytest.mark.parametrize("a_to_b", [True, False])
def test_fee_is_always_taken_in_token_b(a_to_b: bool) -> None:
    swap = POOL.swap_exact_in(a_to_b, 10**6, NOW)
    assert swap.fee_side is (FeeSide.OUTPUT if a_to_b else FeeSide.INPUT)


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, U64_MAX, SwapRefusal.OVERFLOW),
        (replace(POOL, enabled=False), 1, SwapRefusal.DISABLED),
        (replace(POOL, activation_point=1_750_000_001), 1, SwapRefusal.NOT_OPEN),
        (replace(POOL, activation_type=ActivationType.SLOT, activation_point=501), 1, SwapRefusal.NOT_OPEN),
        (replace(POOL, token_a_amount=0), 1, SwapRefusal.INSUFFICIENT_LIQUIDITY),
    ],
)
def test_exact_in_is_refused_with_its_reason(
    pool: MeteoraDammV2Pool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_in(True, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize(("a_to_b", "all_of_it"), [(True, 800_000_000), (False, 5_000_000_000)])
def test_exact_out_of_all_the_pool_has_is_refused(a_to_b: bool, all_of_it: int) -> None:
    with pytest.raises(SwapError) as refused:
        POOL.swap_exact_out(a_to_b, all_of_it, NOW)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY


@pytest.mark.parametrize(
    ("collect_fee_mode", "a_to_b", "side"),
    [
        (CollectFeeMode.OUTPUT, True, FeeSide.OUTPUT),
        (CollectFeeMode.OUTPUT, False, FeeSide.OUTPUT),
        (CollectFeeMode.ONLY_B, True, FeeSide.OUTPUT),
        (CollectFeeMode.ONLY_B, False, FeeSide.INPUT),
    ],
)
def test_fee_of_a_range_is_taken_on_the_side_its_mode_says(
    collect_fee_mode: CollectFeeMode, a_to_b: bool, side: FeeSide
) -> None:
    swap = replace(RANGE, collect_fee_mode=collect_fee_mode).swap_exact_in(a_to_b, 10**9, NOW)
    assert swap.fee_side is side


@pytest.mark.parametrize("a_to_b", [True, False])
def test_partial_fill_ends_where_the_range_does(a_to_b: bool) -> None:
    swap = RANGE.swap_partial_fill(a_to_b, 10**12, NOW)
    after = swap.pool
    assert isinstance(after, MeteoraDammV2Pool)
    assert after.sqrt_price == (RANGE.sqrt_min_price if a_to_b else RANGE.sqrt_max_price)
    assert swap.input_amount < 10**12
    with pytest.raises(SwapError) as refused:
        RANGE.swap_exact_in(a_to_b, swap.input_amount + 10**3, NOW)
    assert refused.value.reason is SwapRefusal.PRICE_RANGE
    with pytest.raises(SwapError) as refused:
        RANGE.swap_exact_out(a_to_b, swap.output_amount + 10**3, NOW)
    assert refused.value.reason is SwapRefusal.PRICE_RANGE


def test_range_without_liquidity_is_empty() -> None:
    with pytest.raises(SwapError) as refused:
        replace(RANGE, liquidity=0).swap_exact_in(True, 10**6, NOW)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY


@pytest.mark.parametrize("a_to_b", [True, False])
def test_price_of_a_range_is_the_square_of_its_square_root(a_to_b: bool) -> None:
    numerator, denominator = replace(RANGE, sqrt_price=3 << 63).price(a_to_b)
    assert numerator / denominator == (2.25 if a_to_b else 1 / 2.25)


@pytest.mark.parametrize(
    ("amount", "fee"),
    [
        (10**9, 10**7),
        (2 * 10**9, 3 * 10**7),
        (5 * 10**9, 15 * 10**7),
        (5 * 10**9 + 10**8, 15 * 10**7 + 5 * 10**6),
        (9 * 10**9, 35 * 10**7),
    ],
)
def test_rate_limiter_charges_every_further_part_more_up_to_its_maximum(amount: int, fee: int) -> None:
    swap = LIMITED.swap_exact_in(False, amount, NOW)
    # What it is per 10**9 is rounded up, so a large amount pays that much more.
    assert 0 <= swap.fee_amount - fee <= amount // 10**9 + 1


@pytest.mark.parametrize(
    ("a_to_b", "later"),
    [(True, 0), (False, 61)],
)
def test_rate_limiter_limits_b_to_a_for_its_time_only(a_to_b: bool, later: int) -> None:
    fee = LIMITED.swap_exact_in(a_to_b, 9 * 10**9, Clock(500, NOW.unix_timestamp + later)).fee_amount
    assert fee <= 9 * 10**7
    assert LIMITED.swap_exact_in(False, 9 * 10**9, Clock(500, NOW.unix_timestamp + 60)).fee_amount > 9 * 10**7


@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("mode", [CollectFeeMode.OUTPUT, CollectFeeMode.ONLY_B])
def test_segment_of_a_range_gives_what_the_curve_gives(a_to_b: bool, mode: CollectFeeMode) -> None:
    pool = replace(RANGE, collect_fee_mode=mode)
    [segment] = pool.segments(a_to_b, NOW)
    whole = pool.swap_partial_fill(a_to_b, 10**12, NOW)
    assert segment.input_amount == pytest.approx(whole.input_amount, rel=1e-9)
    for amount in (10**9, 10**10, whole.input_amount):
        end = segment.start + amount / segment.slope
        gives = amount / (segment.start * end)
        assert pool.swap_partial_fill(a_to_b, amount, NOW).output_amount == pytest.approx(gives, rel=1e-8)


def test_segments_of_a_limited_range_follow_its_growing_fee() -> None:
    segments = list(LIMITED.segments(False, NOW))
    assert len(segments) == 6
    assert [segment.input_amount for segment in segments[:5]] == pytest.approx([1e9] * 5)
    assert segments[-1].end == pytest.approx(1.1 / sqrt(0.95), rel=1e-9)
    taken, given = 0.0, 0.0
    for segment in segments[:5]:
        taken += segment.input_amount
        given += segment.input_amount / (segment.start * segment.end)
        gives = LIMITED.swap_exact_in(False, round(taken), NOW).output_amount
        assert gives == pytest.approx(given, rel=1e-8)
        assert gives <= given + 1e-3
    assert segments == sorted(segments)
    assert all(segment.end < inf for segment in segments)


def test_range_that_does_not_trade_has_no_segments() -> None:
    assert list(replace(RANGE, liquidity=0).segments(True, NOW)) == []
    assert list(replace(RANGE, sqrt_price=RANGE.sqrt_min_price).segments(True, NOW)) == []
