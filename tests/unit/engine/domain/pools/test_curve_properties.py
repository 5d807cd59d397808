"""What holds for every curve and every swap; each property beside the mutants that break it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import ceil
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from engine.domain.pools import meteora_damm_v2, raydium_amm_v4, raydium_clmm, raydium_cpmm
from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    DynamicFee,
    MeteoraDammV2Pool,
)
from engine.domain.pools.pool import Clock, Pool, Swap, SwapError
from engine.domain.pools.raydium_amm_v4 import RaydiumAmmV4Pool
from engine.domain.pools.raydium_clmm import (
    FeeOn,
    RaydiumClmmPool,
    Tick,
    sqrt_price_at_tick,
    tick_at_sqrt_price,
)
from engine.domain.pools.raydium_cpmm import CreatorFeeOn, Rates, RaydiumCpmmPool
from tests.unit.engine.domain.pools.curve_mutants import (
    Classes,
    ask_a_tenth_more,
    ask_one_less,
    ask_one_more,
    change,
    keep_the_change,
    pay_one_more,
)

NOW = Clock(slot=400_000_000, unix_timestamp=1_750_000_000)

# Small pools make rounding loud, large ones look for overflow.
BALANCES = st.one_of(st.integers(1, 10_000), st.integers(1, 10**18))
AMOUNTS = st.one_of(st.integers(1, 10_000), st.integers(1, 10**18))

RAYDIUM_POOLS = st.builds(
    RaydiumCpmmPool,
    vault_0=BALANCES,
    vault_1=BALANCES,
    rates=st.builds(
        Rates,
        trade=st.integers(1, 50_000),
        creator=st.integers(0, 20_000),
        protocol=st.integers(0, 500_000),
        fund=st.integers(0, 500_000),
    ),
    creator_fee_on=st.sampled_from(CreatorFeeOn),
)
AMM_V4_POOLS = st.builds(
    RaydiumAmmV4Pool, coin_vault=BALANCES, pc_vault=BALANCES, swap_fee_numerator=st.integers(0, 500)
)
DYNAMIC_FEES = st.builds(
    DynamicFee,
    max_volatility_accumulator=st.just(14_460_000),
    variable_fee_control=st.integers(1, 2_000),
    bin_step=st.just(1),
    filter_period=st.just(10),
    decay_period=st.just(120),
    reduction_factor=st.just(5_000),
    last_update_timestamp=st.integers(NOW.unix_timestamp - 200, NOW.unix_timestamp),
    bin_step_u128=st.just(1_844_674_407_370_955),
    sqrt_price_reference=st.integers(2**50, 2**80),
    volatility_accumulator=st.integers(0, 14_460_000),
    volatility_reference=st.integers(0, 14_460_000),
)
METEORA_POOLS = st.builds(
    MeteoraDammV2Pool,
    token_a_amount=BALANCES,
    token_b_amount=BALANCES,
    sqrt_price=st.integers(2**50, 2**80),
    base_fee=st.builds(
        BaseFee,
        mode=st.sampled_from(BaseFeeMode),
        cliff_fee_numerator=st.integers(1_000_000, 50_000_000),
        number_of_period=st.integers(0, 100),
        period_frequency=st.integers(0, 60),
        reduction_factor=st.integers(0, 5_000),
    ),
    dynamic_fee=st.one_of(st.none(), DYNAMIC_FEES),
    protocol_fee_percent=st.integers(0, 50),
    compounding_fee_bps=st.integers(0, 10_000),
    activation_type=st.sampled_from(ActivationType),
    activation_point=st.integers(0, 1_000),
    fee_version=st.integers(0, 1),
)
LIQUIDITIES = st.one_of(st.integers(1, 10**6), st.integers(1, 10**18), st.integers(1, 2**80))


@st.composite
def _clmm_pools(draw: st.DrawFn) -> RaydiumClmmPool:
    """Draw a few positions around the price, and one that reaches nearly everywhere."""
    spacing = draw(st.sampled_from([1, 10, 60]))
    middle = draw(st.integers(-1_500, 1_500))
    net = {-400_020: (widest := draw(st.integers(10**6, 10**15))), 400_020: -widest}
    for below, width, liquidity in draw(
        st.lists(st.tuples(st.integers(-15, 10), st.integers(1, 15), LIQUIDITIES), max_size=4)
    ):
        lower = (middle + below) * spacing
        upper = lower + width * spacing
        net[lower] = net.get(lower, 0) + liquidity
        net[upper] = net.get(upper, 0) - liquidity
    tick = middle * spacing + draw(st.integers(0, spacing - 1))
    dynamic_fees = st.builds(
        raydium_clmm.DynamicFee,
        filter_period=st.just(10),
        decay_period=st.just(120),
        reduction_factor=st.just(5_000),
        dynamic_fee_control=st.integers(1, 50_000),
        # Few enough spacings that the fee is at its most after VARYING of them.
        max_volatility_accumulator=st.integers(0, 60_000),
        tick_spacing_index_reference=st.integers(middle - 3, middle + 3),
        volatility_reference=st.integers(0, 60_000),
        volatility_accumulator=st.integers(0, 60_000),
        last_update_timestamp=st.integers(NOW.unix_timestamp - 200, NOW.unix_timestamp),
    )
    return RaydiumClmmPool(
        sqrt_price=draw(st.integers(sqrt_price_at_tick(tick), sqrt_price_at_tick(tick + 1) - 1)),
        tick_current=tick,
        liquidity=sum(change for at, change in net.items() if at <= tick),
        tick_spacing=spacing,
        trade_fee_rate=draw(st.integers(0, 50_000)),
        ticks=tuple(Tick(at, change) for at, change in sorted(net.items())),
        fee_on=draw(st.sampled_from(FeeOn)),
        dynamic_fee=draw(st.one_of(st.none(), dynamic_fees)),
        protocol_fee_rate=draw(st.integers(0, 500_000)),
        fund_fee_rate=draw(st.integers(0, 500_000)),
    )


VARYING = 12
CURVES: dict[str, st.SearchStrategy[Any]] = {
    "raydium_cpmm": RAYDIUM_POOLS,
    "raydium_amm_v4": AMM_V4_POOLS,
    "raydium_clmm": _clmm_pools(),
    "meteora_damm_v2": METEORA_POOLS,
}


def _swap(swap_of: Callable[[bool, int, Clock], Swap], a_to_b: bool, amount: int) -> Swap:
    """Return the swap; a pool that refuses it is no example."""
    try:
        return swap_of(a_to_b, amount, NOW)
    except SwapError:
        assume(False)
        raise


def _reserves(pool: Pool, a_to_b: bool) -> tuple[int, int]:
    """Return what comes in and what goes out, of what a constant product pool trades with."""
    if isinstance(pool, RaydiumCpmmPool):
        reserves = pool.reserve_0, pool.reserve_1
    elif isinstance(pool, RaydiumAmmV4Pool):
        reserves = pool.coin_vault, pool.pc_vault
    else:
        assert isinstance(pool, MeteoraDammV2Pool)
        reserves = pool.token_a_amount, pool.token_b_amount
    return reserves if a_to_b else reserves[::-1]


def _fee_rates(pool: Pool, a_to_b: bool) -> tuple[Fraction, Fraction]:
    """Return the fee of a constant product pool as an exact part of the input, and as one of the output."""
    if isinstance(pool, RaydiumCpmmPool):
        trade, creator = Fraction(pool.rates.trade, 10**6), Fraction(pool.rates.creator, 10**6)
        on_input = pool.creator_fee_on is CreatorFeeOn.INPUT or a_to_b is (
            pool.creator_fee_on is CreatorFeeOn.ONLY_TOKEN_0
        )
        return (trade + creator, Fraction(0)) if on_input else (trade, creator)
    if isinstance(pool, RaydiumAmmV4Pool):
        return Fraction(pool.swap_fee_numerator, pool.swap_fee_denominator), Fraction(0)
    assert isinstance(pool, MeteoraDammV2Pool)
    now = NOW.slot if pool.activation_type is ActivationType.SLOT else NOW.unix_timestamp
    numerator = pool.base_fee.numerator(now - pool.activation_point)
    if pool.dynamic_fee is not None:
        numerator += pool.dynamic_fee.numerator()
    rate = Fraction(min(numerator, 990_000_000 if pool.fee_version else 500_000_000), 10**9)
    return (Fraction(0), rate) if a_to_b else (rate, Fraction(0))


def _exact_output(pool: Pool, a_to_b: bool, amount: int) -> Fraction:
    """Return what the curve would give if nothing were ever rounded."""
    if isinstance(pool, RaydiumClmmPool):
        return _exact_clmm_output(pool, a_to_b, amount)
    reserve_in, reserve_out = _reserves(pool, a_to_b)
    input_fee, output_fee = _fee_rates(pool, a_to_b)
    net = amount * (1 - input_fee)
    return net * reserve_out / (reserve_in + net) * (1 - output_fee)


def _exact_clmm_output(pool: RaydiumClmmPool, a_to_b: bool, amount: int) -> Fraction:
    """Go from tick to tick, and from tick spacing to tick spacing as long as the fee varies with it."""
    spacing, fee = pool.tick_spacing, pool.dynamic_fee
    index = pool.tick_current // spacing
    ends = dict(pool.ticks)
    if fee is not None:
        fee = fee.referred(index, NOW.unix_timestamp)
        for step in range(VARYING):
            ends.setdefault((index - step if a_to_b else index + 1 + step) * spacing, 0)
    fee_on_input = pool.fee_on is FeeOn.INPUT or a_to_b is (pool.fee_on is FeeOn.ONLY_TOKEN_0)
    price, liquidity = Fraction(pool.sqrt_price, 2**64), pool.liquidity
    left, given = Fraction(amount), Fraction(0)
    for tick in sorted(ends, reverse=a_to_b):
        if (tick > pool.tick_current) is a_to_b:
            continue
        rate = pool.trade_fee_rate
        if fee is not None:
            volatility = fee.volatility_at(tick // spacing if a_to_b else (tick - 1) // spacing)
            rate = min(rate + fee.rate(volatility, spacing), 100_000)
        kept = 1 - Fraction(rate, 10**6)
        end = Fraction(sqrt_price_at_tick(tick), 2**64)
        takes = liquidity * (1 / end - 1 / price if a_to_b else end - price)
        net = left * kept if fee_on_input else left
        if net < takes:
            end = 1 / (1 / price + net / liquidity) if a_to_b else price + net / liquidity
        gives = liquidity * (price - end if a_to_b else 1 / price - 1 / end)
        given += gives if fee_on_input else gives * kept
        if net < takes:
            return given
        left -= takes / kept if fee_on_input else takes
        price, liquidity = end, liquidity + (-ends[tick] if a_to_b else ends[tick])
    assert left == 0
    return given


def _units_of_rounding(pool: Pool, a_to_b: bool, bought: Swap) -> int:
    """Return how many units of input an exact-out swap may ask for beyond the least that suffices.

    Where liquidity is concentrated every stretch of it rounds its input, its output and its price.
    """
    if not isinstance(pool, RaydiumClmmPool):
        return 0
    after = bought.pool
    assert isinstance(after, RaydiumClmmPool)
    stretches = 2 + len(pool.ticks) + (VARYING if pool.dynamic_fee else 0)
    price = Fraction(after.sqrt_price**2, 2**128)
    most = max(pool.liquidity, after.liquidity, *accumulate(tick.liquidity_net for tick in pool.ticks))
    of_output = 1 / price if a_to_b else price
    of_price = Fraction(most, 2**64) / (price if a_to_b else 1)
    return ceil(stretches * (2 + of_output + of_price) * Fraction(10, 9))


def _is_on_a_tick(pool: Pool) -> bool:
    if not isinstance(pool, RaydiumClmmPool):
        return False
    return sqrt_price_at_tick(tick_at_sqrt_price(pool.sqrt_price)) == pool.sqrt_price


def never_pays_more_than_the_exact_curve(pool: Pool, a_to_b: bool, amount: int) -> None:
    swap = _swap(pool.swap_exact_in, a_to_b, amount)
    assert swap.output_amount <= _exact_output(pool, a_to_b, amount)


def never_pays_more_than_its_segments(pool: Pool, a_to_b: bool, amount: int) -> None:
    swap = _swap(pool.swap_exact_in, a_to_b, amount)
    left, gives = float(amount), 0.0
    for segment in pool.segments(a_to_b, NOW):
        takes = min(left, segment.input_amount)
        gives += takes / (segment.start * (segment.start + takes / segment.slope))
        left -= takes
    # As far as floating point tells the ends of a segment apart.
    tell = max(s.slope / s.start for s in pool.segments(a_to_b, NOW)) * 1e-15
    assert swap.output_amount <= gives * (1 + 1e-12) + tell


def a_round_trip_never_gains(pool: Pool, a_to_b: bool, amount: int) -> None:
    there = _swap(pool.swap_exact_in, a_to_b, amount)
    assume(there.output_amount > 0)
    back = _swap(there.pool.swap_exact_in, not a_to_b, there.output_amount)
    assert back.output_amount <= amount


def exact_out_asks_for_no_more_than_was_spent(pool: Pool, a_to_b: bool, amount: int) -> None:
    spent = _swap(pool.swap_exact_in, a_to_b, amount)
    assume(spent.output_amount > 0)
    bought = _swap(pool.swap_exact_out, a_to_b, spent.output_amount)
    # The way on to a tick is taken, and paid for, as soon as it gives less than a unit more.
    for_nothing = _units_of_rounding(pool, a_to_b, bought) if _is_on_a_tick(bought.pool) else 0
    assert bought.input_amount <= amount + for_nothing


def exact_out_asks_for_the_least_that_suffices(pool: Pool, a_to_b: bool, amount: int) -> None:
    bought = _swap(pool.swap_exact_out, a_to_b, amount)
    assert _swap(pool.swap_exact_in, a_to_b, bought.input_amount).output_amount >= amount
    too_little = bought.input_amount - _units_of_rounding(pool, a_to_b, bought) - 1
    if too_little > 0:
        try:
            cheaper = pool.swap_exact_in(a_to_b, too_little, NOW)
        except SwapError:
            return
        assert cheaper.output_amount < amount


def more_in_never_gives_less_out(pool: Pool, a_to_b: bool, amount: int, more: int) -> None:
    less = _swap(pool.swap_exact_in, a_to_b, amount)
    assert _swap(pool.swap_exact_in, a_to_b, amount + more).output_amount >= less.output_amount


def the_product_of_the_reserves_never_falls(pool: Pool, a_to_b: bool, amount: int) -> None:
    swap = _swap(pool.swap_exact_in, a_to_b, amount)
    before, after = _reserves(pool, a_to_b), _reserves(swap.pool, a_to_b)
    assert after[0] * after[1] >= before[0] * before[1]


Property = Callable[..., None]

EVERYWHERE: list[Property] = [
    never_pays_more_than_the_exact_curve,
    never_pays_more_than_its_segments,
    a_round_trip_never_gains,
    exact_out_asks_for_no_more_than_was_spent,
    exact_out_asks_for_the_least_that_suffices,
    more_in_never_gives_less_out,
]
CONSTANT_PRODUCT = ["raydium_cpmm", "raydium_amm_v4", "meteora_damm_v2"]


def _check(holds: Property, curve: str, phases: Sequence[Phase] = tuple(Phase)) -> None:
    strategies = [CURVES[curve], st.booleans(), AMOUNTS]
    if holds is more_in_never_gives_less_out:
        strategies.append(st.integers(1, 1_000))
    # The same examples every time, so that a mutant is caught every time.
    repeatable = settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        # Pools refuse many swaps, and how fast the machine is proves nothing.
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    repeatable(given(*strategies)(holds))()


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("holds", EVERYWHERE, ids=lambda holds: holds.__name__)
def test_property_holds_for_every_curve(holds: Property, curve: str) -> None:
    _check(holds, curve)


@pytest.mark.parametrize("curve", CONSTANT_PRODUCT)
def test_product_of_the_reserves_never_falls(curve: str) -> None:
    _check(the_product_of_the_reserves_never_falls, curve)


# ---- Mutants: ways to get a curve wrong ----------------------------------------------------------

CLASSES = (RaydiumCpmmPool, RaydiumAmmV4Pool, RaydiumClmmPool, MeteoraDammV2Pool)
MODULES: list[ModuleType] = [raydium_cpmm, raydium_amm_v4, raydium_clmm, meteora_damm_v2]


def _round_fees_down(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    for module in MODULES:
        patch.setattr(module, "ceil_div", lambda numerator, denominator: numerator // denominator)


def _take_output_twice(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    names = {
        RaydiumCpmmPool: ("vault_0", "vault_1"),
        RaydiumAmmV4Pool: ("coin_vault", "pc_vault"),
        MeteoraDammV2Pool: ("token_a_amount", "token_b_amount"),
    }

    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        after: Any = swap.pool
        name = names[type(after)][1 if a_to_b else 0]
        left = getattr(after, name) - swap.output_amount
        return replace(swap, pool=replace(after, **{name: left})) if left > 0 else swap

    change(patch, classes, "swap_exact_in", wrong)


def _move_the_price_too_far(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        after = swap.pool
        assert isinstance(after, RaydiumClmmPool)
        farther = after.sqrt_price * 9 // 10 if a_to_b else after.sqrt_price * 10 // 9
        return replace(swap, pool=replace(after, sqrt_price=farther))

    change(patch, classes, "swap_exact_in", wrong)


@dataclass(frozen=True)
class Mutant:
    apply: Callable[[pytest.MonkeyPatch, Classes], None]
    caught_by: Property
    curves: Sequence[str] = tuple(CURVES)


MUTANTS = [
    Mutant(_round_fees_down, never_pays_more_than_the_exact_curve),
    Mutant(pay_one_more, never_pays_more_than_the_exact_curve),
    Mutant(pay_one_more, never_pays_more_than_its_segments),
    Mutant(_take_output_twice, a_round_trip_never_gains, CONSTANT_PRODUCT),
    Mutant(_move_the_price_too_far, a_round_trip_never_gains, ["raydium_clmm"]),
    Mutant(ask_one_more, exact_out_asks_for_no_more_than_was_spent),
    Mutant(_round_fees_down, exact_out_asks_for_the_least_that_suffices, CONSTANT_PRODUCT),
    Mutant(ask_one_less, exact_out_asks_for_the_least_that_suffices),
    Mutant(ask_a_tenth_more, exact_out_asks_for_the_least_that_suffices),
    Mutant(keep_the_change, more_in_never_gives_less_out),
    Mutant(_take_output_twice, the_product_of_the_reserves_never_falls, CONSTANT_PRODUCT),
]


@pytest.mark.parametrize(
    ("mutant", "curve"),
    [
        pytest.param(mutant, curve, id=f"{mutant.apply.__name__}-{mutant.caught_by.__name__}-{curve}")
        for mutant in MUTANTS
        for curve in mutant.curves
    ],
)
def test_property_catches_its_mutant(mutant: Mutant, curve: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.apply(monkeypatch, CLASSES)
    with pytest.raises(AssertionError):
        _check(mutant.caught_by, curve, phases=[Phase.generate])
