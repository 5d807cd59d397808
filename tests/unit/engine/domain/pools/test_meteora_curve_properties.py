"""What holds for every swap through Meteora's price ranges and bins; each property beside its mutants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from engine.domain.pools import meteora_damm_v2, meteora_dlmm
from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    DynamicFee,
    MeteoraDammV2Pool,
    RateLimiter,
)
from engine.domain.pools.meteora_damm_v2 import CollectFeeMode as RangeFeeMode
from engine.domain.pools.meteora_dlmm import (
    Bin,
    CollectFeeMode,
    FeeParameters,
    MeteoraDlmmPool,
    Volatility,
    bin_price,
)
from engine.domain.pools.pool import Clock, Pool, Swap, SwapError, ceil_div
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

# Small amounts make rounding loud, large ones look for overflow.
AMOUNTS = st.one_of(st.integers(1, 10_000), st.integers(1, 10**15))

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


@st.composite
def _ranges(draw: st.DrawFn) -> MeteoraDammV2Pool:
    sqrt_price = draw(st.integers(2**52, 2**76))
    sqrt_min_price = sqrt_price * draw(st.integers(10, 1_000)) // 1_000
    sqrt_max_price = sqrt_price * draw(st.integers(1_000, 100_000)) // 1_000
    liquidity = draw(st.one_of(st.integers(1, 10_000), st.integers(1, 10**16))) << 64
    return MeteoraDammV2Pool(
        token_a_amount=ceil_div(liquidity * (sqrt_max_price - sqrt_price), sqrt_price * sqrt_max_price),
        token_b_amount=ceil_div(liquidity * (sqrt_price - sqrt_min_price), 1 << 128),
        sqrt_price=sqrt_price,
        base_fee=BaseFee(
            draw(st.sampled_from(BaseFeeMode)),
            cliff_fee_numerator=draw(st.integers(1_000_000, 50_000_000)),
            number_of_period=draw(st.integers(0, 100)),
            period_frequency=draw(st.integers(0, 60)),
            reduction_factor=draw(st.integers(0, 5_000)),
        ),
        dynamic_fee=draw(st.one_of(st.none(), DYNAMIC_FEES)),
        protocol_fee_percent=draw(st.integers(0, 50)),
        compounding_fee_bps=0,
        activation_type=ActivationType.TIMESTAMP,
        activation_point=draw(st.integers(0, NOW.unix_timestamp)),
        fee_version=draw(st.integers(0, 1)),
        liquidity=liquidity,
        collect_fee_mode=draw(st.sampled_from([RangeFeeMode.OUTPUT, RangeFeeMode.ONLY_B])),
        sqrt_min_price=sqrt_min_price,
        sqrt_max_price=sqrt_max_price,
    )


@st.composite
def _bins(draw: st.DrawFn) -> MeteoraDlmmPool:
    bin_step = draw(st.sampled_from([1, 4, 10, 25, 100, 400]))
    active_id = draw(st.integers(-300, 300))
    amounts = st.one_of(st.integers(0, 1_000), st.integers(0, 10**14))
    bin_ids = sorted(draw(st.sets(st.integers(active_id - 8, active_id + 8), min_size=1, max_size=10)))
    return MeteoraDlmmPool(
        bin_step=bin_step,
        active_id=active_id,
        parameters=FeeParameters(
            base_factor=draw(st.integers(1, 20_000)),
            base_fee_power_factor=draw(st.integers(0, 1)),
            filter_period=30,
            decay_period=600,
            reduction_factor=draw(st.integers(0, 10_000)),
            variable_fee_control=draw(st.integers(0, 500_000)),
            max_volatility_accumulator=draw(st.integers(0, 500_000)),
            protocol_share=draw(st.integers(0, 2_500)),
            collect_fee_mode=draw(st.sampled_from(CollectFeeMode)),
        ),
        volatility=Volatility(
            accumulator=draw(st.integers(0, 500_000)),
            reference=draw(st.integers(0, 500_000)),
            index_reference=active_id + draw(st.integers(-20, 20)),
            last_update_timestamp=NOW.unix_timestamp - draw(st.integers(0, 700)),
        ),
        bins=tuple(
            Bin(
                bin_id,
                draw(amounts) if bin_id >= active_id else 0,
                draw(amounts) if bin_id <= active_id else 0,
                bin_price(bin_id, bin_step),
            )
            for bin_id in bin_ids
        ),
    )


CURVES: dict[str, st.SearchStrategy[Pool]] = {"range": _ranges(), "bins": _bins()}


def _swap(swap_of: Callable[[bool, int, Clock], Swap], a_to_b: bool, amount: int) -> Swap:
    """Return the swap; a pool that refuses it is no example."""
    try:
        return swap_of(a_to_b, amount, NOW)
    except SwapError:
        assume(False)
        raise


def _exact_range_output(pool: MeteoraDammV2Pool, a_to_b: bool, amount: int) -> Fraction:
    """Return what the curve gives without any rounding."""
    assert isinstance(pool.base_fee, BaseFee)
    numerator = pool.base_fee.numerator(NOW.unix_timestamp - pool.activation_point)
    if pool.dynamic_fee is not None:
        numerator += pool.dynamic_fee.numerator()
    kept = 1 - Fraction(min(numerator, 990_000_000 if pool.fee_version else 500_000_000), 10**9)
    on_output = a_to_b or pool.collect_fee_mode is RangeFeeMode.OUTPUT
    net = amount if on_output else amount * kept
    liquidity, root = Fraction(pool.liquidity, 2**64), Fraction(pool.sqrt_price, 2**64)
    # Constant product on the amounts that this much liquidity would have over all prices.
    reserves = liquidity / root, liquidity * root
    reserve_in, reserve_out = reserves if a_to_b else reserves[::-1]
    output = reserve_out * net / (reserve_in + net)
    return output * kept if on_output else output


def _exact_bins_output(pool: MeteoraDlmmPool, a_to_b: bool, amount: int) -> Fraction:
    parameters, volatility = pool.parameters, pool.volatility
    elapsed = NOW.unix_timestamp - volatility.last_update_timestamp
    reference, index_reference = volatility.reference, volatility.index_reference
    if elapsed >= parameters.filter_period:
        decayed = volatility.accumulator * parameters.reduction_factor // 10_000
        reference, index_reference = decayed if elapsed < parameters.decay_period else 0, pool.active_id
    left, output = Fraction(amount), Fraction(0)
    for one in sorted(pool.bins, reverse=a_to_b):
        if (one.bin_id - pool.active_id) * (-1 if a_to_b else 1) < 0:
            continue
        price = Fraction(one.price, 2**64) if a_to_b else Fraction(2**64, one.price)
        accumulator = min(
            reference + 10_000 * abs(index_reference - one.bin_id), parameters.max_volatility_accumulator
        )
        kept = 1 - Fraction(parameters.numerator(pool.bin_step, accumulator), 10**9)
        on_input = not a_to_b or parameters.collect_fee_mode is CollectFeeMode.INPUT
        held = one.amount_y if a_to_b else one.amount_x
        spent = min(left, held / price / (kept if on_input else 1))
        output += spent * price * kept
        left -= spent
    return output


def never_pays_more_than_the_exact_curve(pool: Pool, a_to_b: bool, amount: int) -> None:
    swap = _swap(pool.swap_exact_in, a_to_b, amount)
    if isinstance(pool, MeteoraDlmmPool):
        exact = _exact_bins_output(pool, a_to_b, amount)
    else:
        assert isinstance(pool, MeteoraDammV2Pool)
        exact = _exact_range_output(pool, a_to_b, amount)
    assert swap.output_amount <= exact


def never_pays_more_than_its_segments(pool: Pool, a_to_b: bool, amount: int) -> None:
    swap = _swap(pool.swap_exact_in, a_to_b, amount)
    left, gives = float(amount), 0.0
    segments = sorted(pool.segments(a_to_b, NOW))
    for segment in segments:
        takes = min(left, segment.input_amount)
        end = segment.start + (takes / segment.slope if segment.slope else 0)
        gives += takes / (segment.start * end)
        left -= takes
    # As far as floating point tells the ends of a segment apart.
    tell = max((segment.slope / segment.start for segment in segments), default=0.0) * 1e-15
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
    assert bought.input_amount <= amount


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


def _units_of_rounding(pool: Pool, a_to_b: bool, bought: Swap) -> int:
    """Return how many units of input an exact-out swap may ask for beyond the least that suffices.

    A range rounds its input, its output and its square-root price; a bin only what comes out anyway.
    """
    if isinstance(pool, MeteoraDlmmPool):
        return 0
    after = bought.pool
    assert isinstance(after, MeteoraDammV2Pool)
    price = Fraction(after.sqrt_price**2, 2**128)
    of_output = 1 / price if a_to_b else price
    of_price = Fraction(after.liquidity, 2**128) / (price if a_to_b else 1)
    return ceil((2 + of_output + of_price) * Fraction(10, 9))


def more_in_never_gives_less_out(pool: Pool, a_to_b: bool, amount: int, more: int) -> None:
    less = _swap(pool.swap_exact_in, a_to_b, amount)
    assert _swap(pool.swap_exact_in, a_to_b, amount + more).output_amount >= less.output_amount


def the_pool_never_gets_poorer(pool: Pool, a_to_b: bool, amount: int) -> None:
    after = _swap(pool.swap_exact_in, a_to_b, amount).pool
    if isinstance(pool, MeteoraDlmmPool):
        assert isinstance(after, MeteoraDlmmPool)
        for was, now in zip(pool.bins, after.bins, strict=True):
            assert now.price * now.amount_x + (now.amount_y << 64) >= was.price * was.amount_x + (
                was.amount_y << 64
            )
        return
    assert isinstance(pool, MeteoraDammV2Pool)
    assert isinstance(after, MeteoraDammV2Pool)
    liquidity, root = Fraction(pool.liquidity, 2**64), Fraction(pool.sqrt_price, 2**64)
    amount_a = liquidity / root + after.token_a_amount - pool.token_a_amount
    amount_b = liquidity * root + after.token_b_amount - pool.token_b_amount
    assert amount_a * amount_b >= liquidity**2
    assert min(after.token_a_amount, after.token_b_amount) >= 0


Property = Callable[..., None]

PROPERTIES: list[Property] = [
    never_pays_more_than_the_exact_curve,
    never_pays_more_than_its_segments,
    a_round_trip_never_gains,
    exact_out_asks_for_no_more_than_was_spent,
    exact_out_asks_for_the_least_that_suffices,
    more_in_never_gives_less_out,
    the_pool_never_gets_poorer,
]


def _check(holds: Property, curve: str, phases: Sequence[Phase] = tuple(Phase)) -> None:
    strategies: tuple[st.SearchStrategy[Any], ...] = (CURVES[curve], st.booleans(), AMOUNTS)
    if holds is more_in_never_gives_less_out:
        strategies = (*strategies, st.integers(1, 1_000))
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
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property_holds_for_meteora(holds: Property, curve: str) -> None:
    _check(holds, curve)


LIMITERS = st.builds(
    RateLimiter,
    cliff_fee_numerator=st.integers(1_000_000, 50_000_000),
    fee_increment_bps=st.integers(1, 500),
    max_limiter_duration=st.just(60),
    max_fee_bps=st.integers(600, 9_900),
    reference_amount=st.integers(1, 10**12),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(LIMITERS, st.integers(1, 10**15))
def test_limited_fee_of_the_net_amount_is_that_of_the_gross_one(limiter: RateLimiter, gross: int) -> None:
    numerator = limiter.numerator(gross)
    net = gross - ceil_div(gross * numerator, 10**9)
    assume(net > 0)
    # The fee is known to one part in 10**9 of the amount, and to whole base units, on every of three ways.
    tolerance = 3 + ceil_div(3 * 10**9, net)
    kept = 1 - Fraction(limiter.max_fee_bps, 10_000)
    assert abs(limiter.numerator_of_net(net) - numerator) <= tolerance / kept


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(LIMITERS, st.integers(10**9, 10**15), st.integers(1, 10**12))
def test_limited_fee_never_falls_as_the_amount_grows(limiter: RateLimiter, gross: int, more: int) -> None:
    # By a part in 10**9 it may: of an amount so large a base unit of fee is no more than that.
    assert limiter.numerator(gross + more) >= limiter.numerator(gross) - 1


# ---- Mutants: ways to get a curve wrong ----------------------------------------------------------

CLASSES = (MeteoraDammV2Pool, MeteoraDlmmPool)


def _round_down(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    patch.setattr(meteora_damm_v2, "ceil_div", lambda numerator, denominator: numerator // denominator)


def _give_a_unit_more_from_a_bin(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    original = meteora_dlmm._spend_in_bin

    def changed(*asked: Any) -> tuple[int, int, int, int]:
        spent, net, gross_out, fee = original(*asked)
        return spent, net, gross_out + 1, fee

    patch.setattr(meteora_dlmm, "_spend_in_bin", changed)


def _take_no_fee(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        # A curve that forgets a fee on the output hands it out.
        return replace(swap, output_amount=swap.output_amount + swap.fee_amount)

    change(patch, classes, "swap_exact_in", wrong)


def _pay_a_tenth_more(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        return replace(swap, output_amount=swap.output_amount * 11 // 10 + 1)

    change(patch, classes, "swap_exact_in", wrong)


def _take_output_twice(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        after: Any = swap.pool
        if isinstance(after, MeteoraDammV2Pool):
            name = "token_b_amount" if a_to_b else "token_a_amount"
            left = getattr(after, name) - swap.output_amount
            return replace(swap, pool=replace(after, **{name: left}))
        name = "amount_y" if a_to_b else "amount_x"
        bins = tuple(
            one._replace(**{name: getattr(one, name) - swap.output_amount})
            if one.bin_id == after.active_id
            else one
            for one in after.bins
        )
        return replace(swap, pool=replace(after, bins=bins))

    change(patch, classes, "swap_exact_in", wrong)


@dataclass(frozen=True)
class Mutant:
    apply: Callable[[pytest.MonkeyPatch, Classes], None]
    caught_by: Property
    curves: Sequence[str] = tuple(CURVES)


MUTANTS = [
    Mutant(_round_down, never_pays_more_than_the_exact_curve, ["range"]),
    Mutant(_give_a_unit_more_from_a_bin, never_pays_more_than_the_exact_curve, ["bins"]),
    Mutant(pay_one_more, never_pays_more_than_the_exact_curve),
    Mutant(_take_no_fee, never_pays_more_than_the_exact_curve),
    Mutant(pay_one_more, never_pays_more_than_its_segments),
    Mutant(_take_no_fee, never_pays_more_than_its_segments),
    Mutant(_pay_a_tenth_more, a_round_trip_never_gains),
    Mutant(ask_one_more, exact_out_asks_for_no_more_than_was_spent),
    Mutant(_round_down, exact_out_asks_for_the_least_that_suffices, ["range"]),
    Mutant(ask_one_less, exact_out_asks_for_the_least_that_suffices),
    Mutant(ask_one_more, exact_out_asks_for_the_least_that_suffices, ["bins"]),
    Mutant(ask_a_tenth_more, exact_out_asks_for_the_least_that_suffices),
    Mutant(keep_the_change, more_in_never_gives_less_out),
    Mutant(_take_output_twice, the_pool_never_gets_poorer),
    Mutant(_give_a_unit_more_from_a_bin, the_pool_never_gets_poorer, ["bins"]),
]


@pytest.mark.parametrize(
    ("mutant", "curve"),
    [
        pytest.param(mutant, curve, id=f"{mutant.apply.__name__}-{mutant.caught_by.__name__}-{curve}")
        for mutant in MUTANTS
        for curve in mutant.curves
    ],
)
def test_property_of_meteora_catches_its_mutant(
    mutant: Mutant, curve: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.apply(monkeypatch, CLASSES)
    with pytest.raises(AssertionError):
        _check(mutant.caught_by, curve, phases=[Phase.generate])


def test_limited_fee_that_forgets_its_steps_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateLimiter, "numerator_of_net", lambda limiter, net: limiter.cliff_fee_numerator)
    with pytest.raises(AssertionError):
        test_limited_fee_of_the_net_amount_is_that_of_the_gross_one()


def test_limited_fee_that_starts_again_at_every_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = RateLimiter.numerator

    def changed(limiter: RateLimiter, gross: int) -> int:
        return original(limiter, gross % (2 * limiter.reference_amount) + 1)

    monkeypatch.setattr(RateLimiter, "numerator", changed)
    with pytest.raises(AssertionError):
        test_limited_fee_never_falls_as_the_amount_grows()
