"""Raydium CPMM against its own program, and what the pool adds to the curve."""

from __future__ import annotations

from typing import Any

import pytest

from engine.domain.pools.pool import U64_MAX, Clock, FeeSide, SwapError, SwapRefusal, ceil_div
from engine.domain.pools.raydium_cpmm import (
    CreatorFeeOn,
    CurveSwap,
    Rates,
    RaydiumCpmmPool,
    swap_base_input,
    swap_base_output,
)
from tests.published_vectors import published_unit_tests, swap_vectors

NOW = Clock(slot=1, unix_timestamp=1_750_000_000)
RATES = Rates(trade=2_500, creator=0, protocol=120_000, fund=40_000)
POOL = RaydiumCpmmPool(vault_0=5_000_000_000, vault_1=800_000_000, rates=RATES)


def _answer(curve: Any, amount: str, case: dict[str, Any]) -> dict[str, Any]:
    """Return what our curve says in the words of the vectors."""
    rates = Rates(
        case["trade_fee_rate"], case["creator_fee_rate"], case["protocol_fee_rate"], case["fund_fee_rate"]
    )
    try:
        swap: CurveSwap = curve(
            int(case[amount]),
            int(case["reserve_in"]),
            int(case["reserve_out"]),
            rates,
            case["creator_fee_on_input"],
        )
    except SwapError as error:
        return {"error": "none" if error.reason is SwapRefusal.UNDEFINED else "arithmetic"}
    answer: dict[str, Any] = {
        name: str(getattr(swap, name))
        for name in (
            "input_amount",
            "output_amount",
            "trade_fee",
            "protocol_fee",
            "fund_fee",
            "creator_fee",
            "new_reserve_in",
            "new_reserve_out",
        )
    }
    if swap.input_amount > U64_MAX:
        answer["exceeds_u64"] = True
    return answer


@pytest.mark.parametrize(("given", "expected"), swap_vectors("raydium_cpmm_base_in"))
def test_base_input_agrees_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _answer(swap_base_input, "amount_in", given) == expected


@pytest.mark.parametrize(("given", "expected"), swap_vectors("raydium_cpmm_base_out"))
def test_base_output_agrees_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _answer(swap_base_output, "amount_out", given) == expected


@pytest.mark.parametrize("case", published_unit_tests("constant_product_swap_rounding"))
def test_swap_without_fees_rounds_as_the_programs_own_test_says(case: dict[str, int]) -> None:
    swap = swap_base_input(
        case["amount_in"], case["reserve_in"], case["reserve_out"], Rates(0, 0, 0, 0), False
    )
    assert swap.output_amount == case["amount_out"]


@pytest.mark.parametrize("case", published_unit_tests("trading_token_conversion"))
def test_deposit_rounds_as_the_programs_own_test_says(case: dict[str, int]) -> None:
    """The engine makes no deposits; what the program rounds up with is what its swaps are rounded up with."""
    for token in ("0", "1"):
        amount = ceil_div(case["lp_amount"] * case[f"reserve_{token}"], case["lp_supply"])
        assert amount == case[f"amount_{token}"]


@pytest.mark.parametrize("a_to_b", [True, False])
def test_vaults_move_by_the_whole_amounts(a_to_b: bool) -> None:
    swap = POOL.swap_exact_in(a_to_b, 1_000_000, NOW)
    assert isinstance(swap.pool, RaydiumCpmmPool)
    moved = (swap.pool.vault_0 - POOL.vault_0, swap.pool.vault_1 - POOL.vault_1)
    assert moved == ((1_000_000, -swap.output_amount) if a_to_b else (-swap.output_amount, 1_000_000))


def test_fees_accrue_in_the_token_they_are_taken_from_and_are_not_traded_with() -> None:
    swap = POOL.swap_exact_in(False, 10_000_000, NOW)
    after = swap.pool
    assert isinstance(after, RaydiumCpmmPool)
    assert (swap.fee_amount, swap.fee_side) == (25_000, FeeSide.INPUT)
    assert (after.protocol_fees_0, after.protocol_fees_1) == (0, 3_000)
    assert (after.fund_fees_0, after.fund_fees_1) == (0, 1_000)
    assert after.reserve_1 == after.vault_1 - 4_000


@pytest.mark.parametrize(
    ("creator_fee_on", "a_to_b", "accrues_in"),
    [
        (CreatorFeeOn.INPUT, True, 0),
        (CreatorFeeOn.INPUT, False, 1),
        (CreatorFeeOn.ONLY_TOKEN_0, True, 0),
        (CreatorFeeOn.ONLY_TOKEN_0, False, 0),
        (CreatorFeeOn.ONLY_TOKEN_1, True, 1),
        (CreatorFeeOn.ONLY_TOKEN_1, False, 1),
    ],
)
def test_creator_fee_is_taken_in_the_token_the_pool_says(
    creator_fee_on: CreatorFeeOn, a_to_b: bool, accrues_in: int
) -> None:
    pool = RaydiumCpmmPool(10**12, 10**12, Rates(2_500, 10_000, 120_000, 40_000), creator_fee_on)
    after = pool.swap_exact_in(a_to_b, 10**8, NOW).pool
    assert isinstance(after, RaydiumCpmmPool)
    accrued = (after.creator_fees_0, after.creator_fees_1)
    assert accrued[accrues_in] > 0
    assert accrued[1 - accrues_in] == 0


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 1, SwapRefusal.ZERO_OUTPUT),
        (POOL, U64_MAX, SwapRefusal.OVERFLOW),
        (RaydiumCpmmPool(5, 5, RATES, status=4), 1, SwapRefusal.DISABLED),
        (RaydiumCpmmPool(5, 5, RATES, open_time=1_750_000_001), 1, SwapRefusal.NOT_OPEN),
        (RaydiumCpmmPool(0, 5, RATES), 1, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (RaydiumCpmmPool(5, 5, Rates(0, 0, 0, 0)), 1, SwapRefusal.UNDEFINED),
    ],
)
def test_exact_in_is_refused_with_its_reason(pool: RaydiumCpmmPool, amount: int, reason: SwapRefusal) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_in(True, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 800_000_000, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (RaydiumCpmmPool(U64_MAX, 1_000, RATES), 999, SwapRefusal.OVERFLOW),
        (RaydiumCpmmPool(5, 5, Rates(10**6, 0, 0, 0)), 1, SwapRefusal.OVERFLOW),
    ],
)
def test_exact_out_is_refused_with_its_reason(
    pool: RaydiumCpmmPool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_out(True, amount, NOW)
    assert refused.value.reason is reason


def test_pools_that_allow_only_swaps_still_swap() -> None:
    no_deposits_or_withdrawals = RaydiumCpmmPool(10**9, 10**9, RATES, status=3)
    assert no_deposits_or_withdrawals.swap_exact_in(True, 10**6, NOW).output_amount > 0
