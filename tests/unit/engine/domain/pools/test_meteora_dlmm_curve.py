"""Meteora DLMM against the program's own answers, and what its pool adds to the bins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine.domain.pools.meteora_dlmm import (
    ActivationType,
    Bin,
    CollectFeeMode,
    FeeParameters,
    MeteoraDlmmPool,
    Volatility,
    bin_price,
)
from engine.domain.pools.pool import U64_MAX, Clock, FeeSide, Swap, SwapError, SwapRefusal
from tests.published_vectors import swap_vectors

NOW = Clock(slot=500, unix_timestamp=1_750_000_000)
PARAMETERS = FeeParameters(
    base_factor=10_000,
    base_fee_power_factor=0,
    filter_period=30,
    decay_period=600,
    reduction_factor=5_000,
    variable_fee_control=40_000,
    max_volatility_accumulator=350_000,
    protocol_share=500,
)
POOL = MeteoraDlmmPool(
    bin_step=25,
    active_id=-3,
    parameters=PARAMETERS,
    volatility=Volatility(0, 0, -3, 0),
    bins=tuple(
        Bin(bin_id, 10**9 if bin_id >= -3 else 0, 10**9 if bin_id <= -3 else 0, bin_price(bin_id, 25))
        for bin_id in (-90, -6, -5, -3, -2, 0, 80)
    ),
)

_PROGRAM_ERRORS = {
    # Seen once instead of the other, when liquidity ran out in the second bin array that a swap came to.
    "MathOverflow": SwapRefusal.INSUFFICIENT_LIQUIDITY,
    "BitmapExtensionAccountIsNotProvided": SwapRefusal.INSUFFICIENT_LIQUIDITY,
    "InsufficientOutAmount": SwapRefusal.ZERO_OUTPUT,
}


@pytest.mark.parametrize(("given", "expected"), swap_vectors("meteora_dlmm_bin_price"))
def test_bin_price_agrees_with_the_program(given: dict[str, int], expected: dict[str, str]) -> None:
    try:
        answer = {"price_x64": str(bin_price(given["bin_id"], given["bin_step"]))}
    except OverflowError:
        answer = {"error": "overflow"}
    assert answer == expected


def _pool(given: dict[str, Any]) -> MeteoraDlmmPool:
    parameters, volatility = given["parameters"], given["v_parameters"]
    return MeteoraDlmmPool(
        bin_step=given["bin_step"],
        active_id=given["active_id"],
        parameters=FeeParameters(
            **parameters | {"collect_fee_mode": CollectFeeMode(parameters["collect_fee_mode"])}
        ),
        volatility=Volatility(
            volatility["volatility_accumulator"],
            volatility["volatility_reference"],
            volatility["index_reference"],
            volatility["last_update_timestamp"],
        ),
        bins=tuple(
            Bin(bin_id, int(amount_x), int(amount_y), bin_price(bin_id, given["bin_step"]))
            for bin_id, amount_x, amount_y in given["bins"]
        ),
    )


def _answer(swap_of: Callable[[bool, int, Clock], Swap], given: dict[str, Any], amount: str) -> Any:
    """Return what our curve says in the words of the vectors; for a refusal the reason."""
    pool = _pool(given)
    x_to_y = given["swap_for_y"]
    try:
        swap = swap_of(x_to_y, int(given[amount]), Clock(0, given["current_timestamp"]))
    except SwapError as error:
        return error.reason
    after = swap.pool
    assert isinstance(after, MeteoraDlmmPool)
    fee_on_input = swap.fee_side is FeeSide.INPUT
    protocol_fee = after.protocol_fee_x + after.protocol_fee_y
    return {
        "amount_in": str(swap.input_amount),
        "amount_out": str(swap.output_amount),
        "active_id": after.active_id,
        "volatility_accumulator": after.volatility.accumulator,
        "volatility_reference": after.volatility.reference,
        "index_reference": after.volatility.index_reference,
        "last_update_timestamp": after.volatility.last_update_timestamp,
        "protocol_fee_x": str(after.protocol_fee_x),
        "protocol_fee_y": str(after.protocol_fee_y),
        "start_bin_id": pool.active_id,
        "end_bin_id": after.active_id,
        "lp_fee": str(swap.fee_amount - protocol_fee),
        "protocol_fee": str(protocol_fee),
        "fee_rate_1e9": pool.parameters.numerator(pool.bin_step, after.volatility.accumulator),
        "fee_on_input": fee_on_input,
        "fee_on_token_x": fee_on_input is x_to_y,
        "bins_changed": [
            [now.bin_id, str(now.amount_x), str(now.amount_y)]
            for was, now in zip(pool.bins, after.bins, strict=True)
            if was != now
        ],
    }


def _of_the_program(expected: dict[str, Any]) -> Any:
    return _PROGRAM_ERRORS[expected["error"]] if "error" in expected else expected


@pytest.mark.parametrize(("given", "expected"), swap_vectors("meteora_dlmm_swap_exact_in"))
def test_exact_in_agrees_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _answer(_pool(given).swap_exact_in, given, "amount_in") == _of_the_program(expected)


@pytest.mark.parametrize(("given", "expected"), swap_vectors("meteora_dlmm_swap_exact_out"))
def test_exact_out_agrees_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _answer(_pool(given).swap_exact_out, given, "amount_out") == _of_the_program(expected)


def _after(swap: Swap) -> MeteoraDlmmPool:
    assert isinstance(swap.pool, MeteoraDlmmPool)
    return swap.pool


@pytest.mark.parametrize(("a_to_b", "end_id"), [(True, -6), (False, 0)])
def test_swap_skips_bins_that_hold_nothing_of_the_output(a_to_b: bool, end_id: int) -> None:
    assert _after(POOL.swap_exact_out(a_to_b, 21 * 10**8, NOW)).active_id == end_id


@pytest.mark.parametrize(("a_to_b", "end_id"), [(True, -5), (False, -2)])
def test_swap_starts_beside_an_active_bin_that_is_not_held(a_to_b: bool, end_id: int) -> None:
    pool = replace(POOL, bins=tuple(one for one in POOL.bins if one.bin_id != -3))
    assert _after(pool.swap_exact_in(a_to_b, 10**6, NOW)).active_id == end_id


@pytest.mark.parametrize(
    ("elapsed", "reference", "index_reference"),
    [(29, 1_000, 5), (30, 6_172, -3), (599, 6_172, -3), (600, 0, -3)],
)
def test_volatility_is_kept_then_reduced_then_forgotten(
    elapsed: int, reference: int, index_reference: int
) -> None:
    pool = replace(POOL, volatility=Volatility(12_345, 1_000, 5, NOW.unix_timestamp - elapsed))
    volatility = _after(pool.swap_exact_in(True, 10**6, NOW)).volatility
    assert (volatility.reference, volatility.index_reference) == (reference, index_reference)
    assert volatility.accumulator == reference + 10_000 * abs(index_reference - -3)


def test_time_of_volatility_is_that_of_the_last_move() -> None:
    stays = POOL.swap_exact_in(True, 10**6, NOW)
    moves = POOL.swap_exact_out(True, 15 * 10**8, NOW)
    assert _after(stays).volatility.last_update_timestamp == 0
    assert _after(moves).volatility.last_update_timestamp == NOW.unix_timestamp


def test_fee_grows_with_distance_to_its_maximum() -> None:
    fees = [PARAMETERS.numerator(25, 10_000 * bins) for bins in (0, 1, 2, 1_000)]
    assert fees == [2_500_000, 2_525_000, 2_600_000, 100_000_000]


@pytest.mark.parametrize(
    ("mode", "a_to_b", "side", "in_x"),
    [
        (CollectFeeMode.INPUT, True, FeeSide.INPUT, True),
        (CollectFeeMode.INPUT, False, FeeSide.INPUT, False),
        (CollectFeeMode.ONLY_Y, True, FeeSide.OUTPUT, False),
        (CollectFeeMode.ONLY_Y, False, FeeSide.INPUT, False),
    ],
)
def test_fee_is_taken_in_the_token_the_pool_says(
    mode: CollectFeeMode, a_to_b: bool, side: FeeSide, in_x: bool
) -> None:
    pool = replace(POOL, parameters=replace(PARAMETERS, collect_fee_mode=mode))
    swap = pool.swap_exact_in(a_to_b, 10**8, NOW)
    accrued = (_after(swap).protocol_fee_x, _after(swap).protocol_fee_y)
    assert swap.fee_side is side
    assert accrued[0 if in_x else 1] > 0
    assert accrued[1 if in_x else 0] == 0


@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("mode", CollectFeeMode)
def test_segments_give_what_the_bins_give(a_to_b: bool, mode: CollectFeeMode) -> None:
    pool = replace(POOL, parameters=replace(PARAMETERS, collect_fee_mode=mode))
    segments = list(pool.segments(a_to_b, NOW))
    assert len(segments) == 4
    assert segments == sorted(segments)
    taken, given = 0.0, 0.0
    for segment in segments:
        taken += segment.input_amount
        given += segment.input_amount / segment.start**2
        assert pool.swap_exact_in(a_to_b, int(taken), NOW).output_amount == pytest.approx(given, rel=1e-8)


def test_segments_are_not_sorted_where_the_fee_falls_along_the_way() -> None:
    volatile = replace(POOL, bin_step=1, volatility=Volatility(0, 0, -90, NOW.unix_timestamp))
    volatile = replace(
        volatile, bins=tuple(one._replace(price=bin_price(one.bin_id, 1)) for one in POOL.bins)
    )
    costly = replace(volatile, parameters=replace(PARAMETERS, variable_fee_control=10**8))
    segments = list(costly.segments(True, NOW))
    assert segments != sorted(segments)
    best_first = sorted(segments)
    # Sorted, they bound what any amount gets.
    for amount in (10**6, 10**9, 2 * 10**9, 4 * 10**9):
        left, most = float(amount), 0.0
        for segment in best_first:
            most += min(left, segment.input_amount) / segment.start**2
            left -= min(left, segment.input_amount)
        assert costly.swap_exact_in(True, amount, NOW).output_amount <= most


def test_price_is_that_of_the_active_bin() -> None:
    numerator, denominator = POOL.price(True)
    assert numerator / denominator == pytest.approx(1.0025**-3)
    assert POOL.price(False) == (denominator, numerator)


CLOSED = [
    (replace(POOL, enabled=False), SwapRefusal.DISABLED),
    (replace(POOL, activation_point=NOW.unix_timestamp + 1), SwapRefusal.NOT_OPEN),
    (replace(POOL, activation_type=ActivationType.SLOT, activation_point=501), SwapRefusal.NOT_OPEN),
]


@pytest.mark.parametrize(("pool", "reason"), CLOSED)
def test_pool_that_does_not_trade_refuses_and_has_no_segments(
    pool: MeteoraDlmmPool, reason: SwapRefusal
) -> None:
    for swap_of in (pool.swap_exact_in, pool.swap_exact_out):
        with pytest.raises(SwapError) as refused:
            swap_of(True, 1, NOW)
        assert refused.value.reason is reason
    assert list(pool.segments(True, NOW)) == []


def _with_x(amount_x: int, amount_y: int, price: int) -> MeteoraDlmmPool:
    return replace(POOL, bins=(Bin(-3, amount_x, amount_y, price),))


@pytest.mark.parametrize(
    ("pool", "a_to_b", "amount", "reason"),
    [
        (POOL, True, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, True, 1, SwapRefusal.ZERO_OUTPUT),
        (POOL, True, 10**10, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (replace(POOL, bins=()), True, 10, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        # To take all of it would need more than a u64 holds.
        (_with_x(U64_MAX, 0, 2 << 64), False, 10, SwapRefusal.OVERFLOW),
        (_with_x(10, U64_MAX, 1 << 64), False, 10, SwapRefusal.OVERFLOW),
    ],
)
def test_exact_in_is_refused_with_its_reason(
    pool: MeteoraDlmmPool, a_to_b: bool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_in(a_to_b, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 4 * 10**9 + 1, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (
            replace(
                POOL, bins=tuple(Bin(bin_id, 0, 2**62, 1 << 63) for bin_id in (-5, -4, -3)), active_id=-3
            ),
            3 * 2**62,
            SwapRefusal.OVERFLOW,
        ),
    ],
)
def test_exact_out_is_refused_with_its_reason(
    pool: MeteoraDlmmPool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_out(True, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("mode", CollectFeeMode)
def test_all_that_the_bins_hold_can_be_bought(a_to_b: bool, mode: CollectFeeMode) -> None:
    pool = replace(POOL, parameters=replace(PARAMETERS, collect_fee_mode=mode))
    all_of_it = 4 * 10**9
    if mode is CollectFeeMode.ONLY_Y and a_to_b:
        all_of_it = sum(
            10**9 - -(-(10**9) * PARAMETERS.numerator(25, min(10_000 * abs(bin_id + 3), 350_000)) // 10**9)
            for bin_id in (-3, -5, -6, -90)
        )
    after = _after(pool.swap_exact_out(a_to_b, all_of_it, NOW))
    assert sum(one.amount_y if a_to_b else one.amount_x for one in after.bins) == 0
