"""Meteora DAMM v2 compounding pools against the program's own answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    DynamicFee,
    MeteoraDammV2Pool,
)
from engine.domain.pools.pool import U64_MAX, Clock, FeeSide, SwapError, SwapRefusal
from tests.published_vectors import swap_vectors

COMPOUNDING = 2
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


def _pool(given: dict[str, Any]) -> MeteoraDammV2Pool:
    base_fee, dynamic_fee = given["base_fee"], given["dynamic_fee"]
    return MeteoraDammV2Pool(
        token_a_amount=int(given["token_a_amount"]),
        token_b_amount=int(given["token_b_amount"]),
        sqrt_price=int(given["sqrt_price"]),
        base_fee=BaseFee(**base_fee | {"mode": BaseFeeMode(base_fee["mode"])}),
        dynamic_fee=dynamic_fee and DynamicFee(**{name: int(value) for name, value in dynamic_fee.items()}),
        protocol_fee_percent=given["protocol_fee_percent"],
        compounding_fee_bps=given["compounding_fee_bps"],
        activation_type=ActivationType(given["activation_type"]),
        activation_point=given["activation_point"],
        fee_version=given["fee_version"],
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        case
        for case in swap_vectors("meteora_damm_v2_swap")
        if case.values[0]["pool"]["collect_fee_mode"] == COMPOUNDING
    ],
)
def test_swaps_agree_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    pool = _pool(given["pool"])
    clock = Clock(given["current_slot"], given["current_timestamp"])
    # A partial fill fills whole: there is no price range to leave.
    swap_of = pool.swap_exact_out if given["swap_mode"] == "exact_out" else pool.swap_exact_in
    try:
        swap = swap_of(given["a_to_b"], int(given["amount"]), clock)
    except SwapError:
        assert expected == {"error": "MathOverflow"}
        return
    after = swap.pool
    assert isinstance(after, MeteoraDammV2Pool)
    net_input = swap.input_amount - (swap.fee_amount if swap.fee_side is FeeSide.INPUT else 0)
    claimable = swap.fee_amount - int(expected["protocol_fee"]) - int(expected["compounding_fee"])
    answer = {
        "amount_in": str(swap.input_amount),
        "amount_out": str(swap.output_amount),
        "sqrt_price": str(after.sqrt_price),
        "token_a_amount": str(after.token_a_amount),
        "token_b_amount": str(after.token_b_amount),
        "included_fee_input_amount": str(swap.input_amount),
        "excluded_fee_input_amount": str(net_input),
        "amount_left": "0",
        "claiming_fee": str(claimable),
        "protocol_fee": str(after.protocol_b_fee),
        "compounding_fee": str(after.lp_b_fee - claimable),
    }
    if after.dynamic_fee is not None:
        answer["dynamic_fee_after"] = {  # type: ignore[assignment]
            name: str(getattr(after.dynamic_fee, name)) for name in expected["dynamic_fee_after"]
        }
    assert answer == expected


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
