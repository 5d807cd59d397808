"""Raydium AMM v4 against its own program, and what the pool adds to the curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.domain.pools.pool import U64_MAX, Clock, FeeSide, SwapError, SwapRefusal
from engine.domain.pools.raydium_amm_v4 import (
    AmmStatus,
    RaydiumAmmV4Pool,
    swap_base_in,
    swap_base_out,
)
from tests.published_vectors import swap_vectors

NOW = Clock(slot=1, unix_timestamp=1_750_000_000)
POOL = RaydiumAmmV4Pool(coin_vault=5_000_000_000, pc_vault=800_000_000)


@pytest.mark.parametrize(("given", "expected"), swap_vectors("raydium_amm_v4_swap"))
def test_curve_agrees_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    reserves = int(given["reserve_coin"]), int(given["reserve_pc"])
    reserve_in, reserve_out = reserves if given["direction"] == "coin_to_pc" else reserves[::-1]
    fee = given["swap_fee_numerator"], given["swap_fee_denominator"]
    try:
        if given["kind"] == "base_in":
            swap = swap_base_in(int(given["amount_in"]), reserve_in, reserve_out, *fee)
        else:
            swap = swap_base_out(int(given["amount_out"]), reserve_in, reserve_out, *fee)
    except SwapError:
        assert expected == {"error": "arithmetic"}
        return
    assert expected == {
        "amount_in": str(swap.input_amount),
        "amount_out": str(swap.output_amount),
        "fee": str(swap.fee),
    }


@pytest.mark.parametrize("a_to_b", [True, False])
def test_vaults_move_by_the_whole_amounts_so_that_the_fee_is_traded_with(a_to_b: bool) -> None:
    swap = POOL.swap_exact_in(a_to_b, 1_000_000, NOW)
    after = swap.pool
    assert isinstance(after, RaydiumAmmV4Pool)
    assert (swap.fee_amount, swap.fee_side) == (2_500, FeeSide.INPUT)
    moved = (after.coin_vault - POOL.coin_vault, after.pc_vault - POOL.pc_vault)
    assert moved == ((1_000_000, -swap.output_amount) if a_to_b else (-swap.output_amount, 1_000_000))


def test_what_is_owed_to_others_is_not_traded_with() -> None:
    owing = RaydiumAmmV4Pool(
        POOL.coin_vault + 11, POOL.pc_vault + 222, need_take_pnl_coin=11, need_take_pnl_pc=222
    )
    for a_to_b in (True, False):
        assert owing.price(a_to_b) == POOL.price(a_to_b)
        there, plain = (pool.swap_exact_in(a_to_b, 10**6, NOW) for pool in (owing, POOL))
        assert there.output_amount == plain.output_amount
        assert isinstance(there.pool, RaydiumAmmV4Pool)
        assert (there.pool.need_take_pnl_coin, there.pool.need_take_pnl_pc) == (11, 222)


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 1, SwapRefusal.ZERO_OUTPUT),
        (POOL, U64_MAX, SwapRefusal.OVERFLOW),
        (replace(POOL, status=0), 1, SwapRefusal.DISABLED),
        (replace(POOL, status=AmmStatus.DISABLED), 1, SwapRefusal.DISABLED),
        (replace(POOL, status=5), 1, SwapRefusal.DISABLED),
        (
            replace(POOL, status=AmmStatus.WAITING_TRADE, pool_open_time=1_750_000_001),
            1,
            SwapRefusal.NOT_OPEN,
        ),
        (replace(POOL, need_take_pnl_pc=800_000_000), 1, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (replace(POOL, coin_vault=0), 1, SwapRefusal.INSUFFICIENT_LIQUIDITY),
    ],
)
def test_exact_in_is_refused_with_its_reason(
    pool: RaydiumAmmV4Pool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_in(True, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 800_000_000, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (replace(POOL, coin_vault=U64_MAX, pc_vault=1_000), 999, SwapRefusal.OVERFLOW),
        (replace(POOL, swap_fee_numerator=10_000), 1, SwapRefusal.OVERFLOW),
        (replace(POOL, status=3), 1, SwapRefusal.DISABLED),
    ],
)
def test_exact_out_is_refused_with_its_reason(
    pool: RaydiumAmmV4Pool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_out(True, amount, NOW)
    assert refused.value.reason is reason


def test_first_swap_after_the_opening_ends_the_waiting() -> None:
    waiting = replace(POOL, status=AmmStatus.WAITING_TRADE, pool_open_time=1_750_000_000)
    after = waiting.swap_exact_in(True, 10**6, NOW).pool
    assert isinstance(after, RaydiumAmmV4Pool)
    assert after.status == AmmStatus.SWAP_ONLY
