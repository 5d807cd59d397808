"""The segment of a constant product pool against the exact curve it stands for."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

import pytest

from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    MeteoraDammV2Pool,
)
from engine.domain.pools.pool import Clock, Pool, Segment, liquidity_segment
from engine.domain.pools.raydium_amm_v4 import RaydiumAmmV4Pool
from engine.domain.pools.raydium_cpmm import CreatorFeeOn, Rates, RaydiumCpmmPool

NOW = Clock(slot=1, unix_timestamp=1_750_000_000)
RATES = Rates(trade=2_500, creator=10_000, protocol=120_000, fund=40_000)
RAYDIUM = RaydiumCpmmPool(5 * 10**15, 8 * 10**14, RATES)
AMM_V4 = RaydiumAmmV4Pool(5 * 10**15, 8 * 10**14)
METEORA = MeteoraDammV2Pool(
    token_a_amount=5 * 10**15,
    token_b_amount=8 * 10**14,
    sqrt_price=(1 << 64) * 4 // 10,
    base_fee=BaseFee(BaseFeeMode.LINEAR, 2_500_000),
    dynamic_fee=None,
    protocol_fee_percent=20,
    compounding_fee_bps=5_000,
    activation_type=ActivationType.TIMESTAMP,
    activation_point=1_700_000_000,
    fee_version=1,
)
POOLS = [
    RAYDIUM,
    replace(RAYDIUM, creator_fee_on=CreatorFeeOn.ONLY_TOKEN_0),
    replace(RAYDIUM, creator_fee_on=CreatorFeeOn.ONLY_TOKEN_1),
    AMM_V4,
    METEORA,
]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("a_to_b", [True, False])
@pytest.mark.parametrize("amount", [10**11, 10**13, 10**15])
def test_segment_gives_what_the_curve_gives(pool: Pool, a_to_b: bool, amount: int) -> None:
    [segment] = pool.segments(a_to_b, NOW)
    end = segment.start + amount / segment.slope
    gives = amount / (segment.start * end)
    assert pool.swap_exact_in(a_to_b, amount, NOW).output_amount == pytest.approx(gives, rel=1e-9)
    assert segment.end == inf
    assert segment.jump == 0


@pytest.mark.parametrize(
    "pool",
    [
        replace(RAYDIUM, status=4),
        replace(RAYDIUM, open_time=NOW.unix_timestamp + 1),
        replace(RAYDIUM, vault_0=0),
        replace(RAYDIUM, rates=replace(RATES, trade=10**6)),
        replace(RAYDIUM, rates=replace(RATES, trade=0, creator=0)),
        replace(AMM_V4, status=2),
        replace(AMM_V4, need_take_pnl_coin=5 * 10**15),
        replace(AMM_V4, swap_fee_numerator=10_000),
        replace(METEORA, enabled=False),
        replace(METEORA, activation_point=NOW.unix_timestamp + 1),
        replace(METEORA, token_b_amount=0),
    ],
)
def test_pool_that_does_not_trade_has_no_segments(pool: Pool) -> None:
    assert list(pool.segments(True, NOW)) == []


def test_segment_between_two_prices_ends() -> None:
    segment = liquidity_segment(1_000.0, 2.0, 3.0, input_kept=0.25)
    assert segment == Segment(start=4.0, end=6.0, slope=2_000.0)
    assert segment.input_amount == 4_000.0  # 1000 * (3 - 2), and as much again three times for the fee


def test_fee_on_the_output_leaves_the_input_and_worsens_the_price() -> None:
    segment = liquidity_segment(1_000.0, 2.0, 3.0, output_kept=0.25)
    assert segment == Segment(start=4.0, end=6.0, slope=500.0)
    assert segment.input_amount == 1_000.0


def test_jump_takes_its_input_at_one_price() -> None:
    price = 2.25
    jump = Segment(1 / sqrt(price), 1 / sqrt(price), 0.0, 400.0)
    assert jump.input_amount == 400.0
