"""Raydium CLMM against its own program and its vendor's simulator, and what the pool adds to the curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.domain.pools.pool import U64_MAX, Clock, FeeSide, Swap, SwapError, SwapRefusal
from engine.domain.pools.raydium_clmm import (
    MAX_SQRT_PRICE,
    MAX_TICK,
    MIN_SQRT_PRICE,
    MIN_TICK,
    DynamicFee,
    FeeOn,
    RaydiumClmmPool,
    Tick,
    sqrt_price_at_tick,
    swap_step,
    tick_at_sqrt_price,
)
from tests.published_vectors import published_unit_tests, swap_vectors

NOW = Clock(slot=1, unix_timestamp=1_750_000_000)
POOL = RaydiumClmmPool(
    sqrt_price=sqrt_price_at_tick(5),
    tick_current=5,
    liquidity=10**12,
    tick_spacing=10,
    trade_fee_rate=2_500,
    ticks=(Tick(-100, 10**12), Tick(-90, 10**9), Tick(90, -(10**9)), Tick(100, -(10**12))),
    protocol_fee_rate=120_000,
    fund_fee_rate=40_000,
)
VOLATILE = DynamicFee(
    filter_period=10,
    decay_period=120,
    reduction_factor=5_000,
    dynamic_fee_control=20_000,
    max_volatility_accumulator=100_000,
    tick_spacing_index_reference=7,
    volatility_reference=20_000,
    volatility_accumulator=60_000,
    last_update_timestamp=NOW.unix_timestamp - 60,
)


# ---- Against the vectors -------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), swap_vectors("raydium_clmm_tick_math"))
def test_ticks_agree_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    answer: dict[str, Any]
    try:
        if given["fn"] == "tick_to_sqrt_price_x64":
            answer = {"sqrt_price_x64": str(sqrt_price_at_tick(given["tick"]))}
        else:
            answer = {"tick": tick_at_sqrt_price(int(given["sqrt_price_x64"]))}
    except ValueError:
        answer = {"error": "tick_out_of_range"}
    assert answer == expected


@pytest.mark.parametrize(("given", "expected"), swap_vectors("raydium_clmm_swap_step"))
def test_steps_agree_with_the_program(given: dict[str, Any], expected: dict[str, Any]) -> None:
    try:
        step = swap_step(
            int(given["sqrt_price_current_x64"]),
            int(given["sqrt_price_target_x64"]),
            int(given["liquidity"]),
            int(given["amount_remaining"]),
            given["fee_rate"],
            exact_in=given["is_base_input"],
            zero_for_one=given["zero_for_one"],
            fee_on_input=given["is_fee_on_input"],
        )
    except SwapError:
        assert expected == {"error": "program_error"}
        return
    assert expected == {
        "sqrt_price_next_x64": str(step.sqrt_price),
        "amount_in": str(step.amount_in),
        "amount_out": str(step.amount_out),
        "fee_amount": str(step.fee),
    }


def _pool(given: dict[str, Any]) -> RaydiumClmmPool:
    return RaydiumClmmPool(
        sqrt_price=int(given["sqrt_price_x64"]),
        tick_current=given["tick_current"],
        liquidity=int(given["liquidity"]),
        tick_spacing=given["tick_spacing"],
        trade_fee_rate=given["trade_fee_rate"],
        ticks=tuple(Tick(tick, int(liquidity_net)) for tick, liquidity_net in given["ticks"]),
        fee_on=FeeOn(given.get("fee_on", 0)),
        dynamic_fee=DynamicFee(**given["dynamic_fee"]) if given.get("dynamic_fee") else None,
    )


def _after(swap: Swap) -> RaydiumClmmPool:
    assert isinstance(swap.pool, RaydiumClmmPool)
    return swap.pool


@pytest.mark.parametrize(("given", "expected"), swap_vectors("raydium_clmm_multi_tick"))
def test_swaps_agree_with_the_vendor(given: dict[str, Any], expected: dict[str, Any]) -> None:
    pool, clock = _pool(given), Clock(1, given["block_timestamp"])
    amount, exact_in = int(given["amount_specified"]), given["is_base_input"]
    try:
        swap = pool.curve_swap(given["zero_for_one"], amount, exact_in, clock)
    except SwapError as error:
        answer: dict[str, Any] = {"error": str(error.reason)}
    else:
        after = _after(swap)
        lower, upper = sorted((pool.tick_current, after.tick_current))
        answer = {
            "amount_in": str(swap.input_amount),
            "amount_out": str(swap.output_amount),
            "fee_amount": str(swap.fee_amount),
            "sqrt_price_x64": str(after.sqrt_price),
            "tick_current": after.tick_current,
            "liquidity": str(after.liquidity),
            "ticks_crossed": sum(lower < tick.tick <= upper for tick in pool.ticks),
        }
    assert answer == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        case
        for case in swap_vectors("raydium_clmm_multi_tick")
        if case.values[0]["is_base_input"] and "error" not in case.values[1]
    ],
)
def test_segments_say_what_the_vendor_says_but_for_rounding(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    left, gives, count, price = float(given["amount_specified"]), 0.0, 0, 0.0
    for segment in _pool(given).segments(given["zero_for_one"], Clock(1, given["block_timestamp"])):
        takes = min(left, segment.input_amount)
        gives += takes / (segment.start * (segment.start + takes / segment.slope))
        left -= takes
        count += 1
        price = max(price, 1 / segment.start**2)
        if left <= 0:
            break
    assert left <= 0
    output_amount = int(expected["amount_out"])
    assert output_amount <= gives * (1 + 1e-12)
    # Two base units at each end of a segment, of the input or of the output, whichever is worth more.
    assert gives - output_amount <= 2 * (count + 1) * max(1.0, price) + gives * 1e-12


@pytest.mark.parametrize("case", published_unit_tests("cross_tick_array_test"), ids=lambda case: case["test"])
def test_swaps_in_a_row_cross_the_ticks_that_the_programs_own_test_crosses(case: dict[str, Any]) -> None:
    pool = _pool(case["initial_state"])
    for given in case["steps"]:
        expected = given["expect"]
        swap = pool.curve_swap(
            case["zero_for_one"], int(given["amount_specified"]), case["is_base_input"], NOW
        )
        after = _after(swap)
        lower, upper = expected["tick_current_exclusive_range"]
        assert after.liquidity == pool.liquidity + int(expected["liquidity_after_delta"])
        assert lower < after.tick_current < upper
        assert lower < tick_at_sqrt_price(after.sqrt_price) < upper
        pool = after


@pytest.mark.parametrize("case", published_unit_tests("programs/amm/src/libraries/tick_math.rs"))
def test_bounds_are_the_programs_own(case: dict[str, Any]) -> None:
    assert sqrt_price_at_tick(case["tick"]) == int(case["sqrt_price_x64"])
    assert (case["tick"], int(case["sqrt_price_x64"])) in [
        (MIN_TICK, MIN_SQRT_PRICE),
        (MAX_TICK, MAX_SQRT_PRICE),
    ]


# ---- Ticks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tick", [MIN_TICK, -60_000, -1, 0, 1, 7, 60_000, MAX_TICK - 1])
def test_tick_of_a_price_is_the_greatest_that_is_not_above_it(tick: int) -> None:
    price, next_price = sqrt_price_at_tick(tick), sqrt_price_at_tick(tick + 1)
    assert tick_at_sqrt_price(price) == tick
    assert tick_at_sqrt_price(next_price - 1) == tick


@pytest.mark.parametrize("price", [MIN_SQRT_PRICE - 1, MAX_SQRT_PRICE])
def test_price_out_of_range_has_no_tick(price: int) -> None:
    with pytest.raises(ValueError, match=f"price was {price}"):
        tick_at_sqrt_price(price)


# ---- The pool ------------------------------------------------------------------------------------


def test_swap_that_ends_on_a_tick_has_crossed_it() -> None:
    to_the_tick = swap_step(
        POOL.sqrt_price,
        sqrt_price_at_tick(-90),
        POOL.liquidity,
        10**18,
        POOL.trade_fee_rate,
        exact_in=True,
        zero_for_one=True,
        fee_on_input=True,
    )
    amount = to_the_tick.amount_in + to_the_tick.fee
    short_of_it = _after(POOL.swap_exact_in(True, amount - 1, NOW))
    assert (short_of_it.tick_current, short_of_it.liquidity) == (-90, 10**12)
    after = _after(POOL.swap_exact_in(True, amount, NOW))
    assert (after.sqrt_price, after.tick_current) == (sqrt_price_at_tick(-90), -91)
    assert after.liquidity == 10**12 - 10**9
    back = _after(after.swap_exact_in(False, 10**6, NOW))
    assert (back.tick_current, back.liquidity) == (-90, 10**12)


def test_exact_out_pays_for_the_way_on_to_a_tick_when_it_gives_less_than_a_unit_more() -> None:
    """The program's own rounding: an exact-in swap for the same output can be had for far less."""
    steep = replace(
        POOL,
        sqrt_price=sqrt_price_at_tick(0),
        tick_current=0,
        liquidity=10**6,
        trade_fee_rate=0,
        ticks=(Tick(-400_020, 10**6), Tick(400_020, -(10**6))),
    )
    assert steep.swap_exact_in(False, 10**12, NOW).output_amount == 999_999
    bought = steep.swap_exact_out(False, 999_999, NOW)
    assert _after(bought).sqrt_price == sqrt_price_at_tick(400_020)
    assert bought.input_amount > 400 * 10**12


@pytest.mark.parametrize(
    ("fee_on", "a_to_b", "accrues_in"),
    [
        (FeeOn.INPUT, True, 0),
        (FeeOn.INPUT, False, 1),
        (FeeOn.ONLY_TOKEN_0, True, 0),
        (FeeOn.ONLY_TOKEN_0, False, 0),
        (FeeOn.ONLY_TOKEN_1, True, 1),
        (FeeOn.ONLY_TOKEN_1, False, 1),
    ],
)
def test_fee_is_taken_in_the_token_the_pool_says(fee_on: FeeOn, a_to_b: bool, accrues_in: int) -> None:
    swap = replace(POOL, fee_on=fee_on).swap_exact_in(a_to_b, 10**9, NOW)
    after = _after(swap)
    assert swap.fee_side is (FeeSide.INPUT if (accrues_in == 0) is a_to_b else FeeSide.OUTPUT)
    protocol_fees = (after.protocol_fees_0, after.protocol_fees_1)
    fund_fees = (after.fund_fees_0, after.fund_fees_1)
    growths = (after.fee_growth_global_0, after.fee_growth_global_1)
    assert protocol_fees[accrues_in] == swap.fee_amount * 120_000 // 10**6
    assert fund_fees[accrues_in] == swap.fee_amount * 40_000 // 10**6
    lp_fee = swap.fee_amount - protocol_fees[accrues_in] - fund_fees[accrues_in]
    assert growths[accrues_in] == (lp_fee << 64) // POOL.liquidity
    assert protocol_fees[1 - accrues_in] == fund_fees[1 - accrues_in] == growths[1 - accrues_in] == 0


def test_fee_growth_wraps_at_128_bits() -> None:
    after = _after(replace(POOL, fee_growth_global_0=2**128 - 1).swap_exact_in(True, 10**9, NOW))
    fresh = _after(POOL.swap_exact_in(True, 10**9, NOW))
    assert after.fee_growth_global_0 == fresh.fee_growth_global_0 - 1


def test_input_too_small_to_move_the_price_is_all_fee() -> None:
    swap = POOL.curve_swap(True, 1, True, NOW)
    after = _after(swap)
    assert (swap.output_amount, swap.fee_amount) == (0, 1)
    assert (after.sqrt_price, after.tick_current) == (POOL.sqrt_price, POOL.tick_current)


def test_gap_without_liquidity_is_stepped_over_and_has_no_segment() -> None:
    gap = replace(
        POOL, ticks=(Tick(-90, 10**12), Tick(-80, -(10**12)), Tick(0, 10**12), Tick(100, -(10**12)))
    )
    after = _after(gap.swap_exact_in(True, 5 * 10**8, NOW))
    assert -90 <= after.tick_current < -80
    assert after.liquidity == 10**12
    near, far = gap.segments(True, NOW)
    assert far.start > near.end


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 1, SwapRefusal.ZERO_OUTPUT),
        (POOL, 10**11, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (POOL, U64_MAX + 1, SwapRefusal.OVERFLOW),
        (replace(POOL, ticks=()), 10**6, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (replace(POOL, ticks=(Tick(-90, 10**13),)), 10**6, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (replace(POOL, status=16), 10**6, SwapRefusal.DISABLED),
        (replace(POOL, open_time=1_750_000_000), 10**6, SwapRefusal.NOT_OPEN),
    ],
)
def test_exact_in_is_refused_with_its_reason(pool: RaydiumClmmPool, amount: int, reason: SwapRefusal) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_in(True, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("pool", "amount", "reason"),
    [
        (POOL, 0, SwapRefusal.ZERO_AMOUNT),
        (POOL, 10**11, SwapRefusal.INSUFFICIENT_LIQUIDITY),
        (POOL, U64_MAX + 1, SwapRefusal.OVERFLOW),
        (replace(POOL, status=16), 10**6, SwapRefusal.DISABLED),
        (replace(POOL, open_time=1_750_000_000), 10**6, SwapRefusal.NOT_OPEN),
    ],
)
def test_exact_out_is_refused_with_its_reason(
    pool: RaydiumClmmPool, amount: int, reason: SwapRefusal
) -> None:
    with pytest.raises(SwapError) as refused:
        pool.swap_exact_out(True, amount, NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize("pool", [replace(POOL, status=16), replace(POOL, open_time=1_750_000_000)])
def test_pool_that_does_not_trade_has_no_segments(pool: RaydiumClmmPool) -> None:
    assert list(pool.segments(True, NOW)) == []


@pytest.mark.parametrize("a_to_b", [True, False])
def test_no_swap_leaves_the_range_of_prices(a_to_b: bool) -> None:
    endless = replace(POOL, liquidity=10**9, ticks=(Tick(MIN_TICK, 10**9), Tick(MAX_TICK, -(10**9))))
    with pytest.raises(SwapError) as refused:
        endless.swap_exact_in(a_to_b, U64_MAX, NOW)
    assert refused.value.reason is SwapRefusal.INSUFFICIENT_LIQUIDITY
    [segment] = endless.segments(a_to_b, NOW)
    assert segment.end == pytest.approx(
        2**64 / MIN_SQRT_PRICE if a_to_b else MAX_SQRT_PRICE / 2**64, rel=2e-3
    )


# ---- The dynamic fee -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed", "index_reference", "volatility_reference"),
    [(-1, 7, 20_000), (0, 7, 20_000), (9, 7, 20_000), (10, 3, 30_000), (119, 3, 30_000), (120, 3, 0)],
)
def test_references_are_kept_then_decay_then_are_forgotten(
    elapsed: int, index_reference: int, volatility_reference: int
) -> None:
    now = VOLATILE.last_update_timestamp + elapsed
    fee = VOLATILE.referred(3, now)
    assert (fee.tick_spacing_index_reference, fee.volatility_reference) == (
        index_reference,
        volatility_reference,
    )
    assert fee.last_update_timestamp == (now if elapsed >= 10 else VOLATILE.last_update_timestamp)


def test_volatility_grows_with_the_way_and_stops_at_its_maximum() -> None:
    assert [VOLATILE.volatility_at(index) for index in (7, 8, 6, 17)] == [20_000, 30_000, 30_000, 100_000]


def test_dynamic_fee_is_the_square_of_the_way_rounded_up() -> None:
    assert VOLATILE.rate(30_000, 10) == 180  # 20000 * (30000 * 10)**2 / 10**13
    assert VOLATILE.rate(1, 10) == 1


def test_fee_rises_along_the_way_to_at_most_a_tenth() -> None:
    steep = replace(VOLATILE, dynamic_fee_control=99_999, max_volatility_accumulator=10**6)
    pool = replace(POOL, dynamic_fee=steep, tick_spacing=1, ticks=(Tick(-900, 10**12), Tick(900, -(10**12))))
    fees = [pool.swap_exact_in(True, amount, NOW).fee_ppm for amount in (10**6, 10**8, 10**9, 10**10)]
    assert fees == sorted(fees)
    wide = replace(pool, tick_spacing=100, trade_fee_rate=90_000)
    assert wide.swap_exact_in(True, 10**10, NOW).fee_amount == pytest.approx(10**9, abs=2)


def test_swap_leaves_the_volatility_of_the_last_spacing_it_came_to() -> None:
    pool = replace(POOL, dynamic_fee=VOLATILE)
    after = _after(pool.swap_exact_in(True, 10**9, NOW))
    assert after.dynamic_fee is not None
    assert after.dynamic_fee.last_update_timestamp == NOW.unix_timestamp
    assert after.dynamic_fee.tick_spacing_index_reference == 0
    assert after.dynamic_fee.volatility_reference == 30_000
    spacings = 0 - after.tick_current // 10
    assert spacings == 2
    assert after.dynamic_fee.volatility_accumulator == 30_000 + 10_000 * spacings
