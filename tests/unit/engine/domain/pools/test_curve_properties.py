"""What holds for every curve and every swap; each property beside the mutants that break it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from engine.domain.pools import meteora_damm_v2, raydium_cpmm
from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    DynamicFee,
    MeteoraDammV2Pool,
)
from engine.domain.pools.pool import Clock, Pool, Swap, SwapError
from engine.domain.pools.raydium_cpmm import CreatorFeeOn, Rates, RaydiumCpmmPool

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
POOLS: st.SearchStrategy[Pool] = st.one_of(RAYDIUM_POOLS, METEORA_POOLS)

SWAPS = (POOLS, st.booleans(), AMOUNTS)


def _swap(swap_of: Callable[[bool, int, Clock], Swap], a_to_b: bool, amount: int) -> Swap:
    """Return the swap; a pool that refuses it is no example."""
    try:
        return swap_of(a_to_b, amount, NOW)
    except SwapError:
        assume(False)
        raise


def _reserves(pool: Pool, a_to_b: bool) -> tuple[int, int]:
    """Return what comes in and what goes out, of what the pool trades with."""
    if isinstance(pool, RaydiumCpmmPool):
        reserves = pool.reserve_0, pool.reserve_1
    else:
        assert isinstance(pool, MeteoraDammV2Pool)
        reserves = pool.token_a_amount, pool.token_b_amount
    return reserves if a_to_b else reserves[::-1]


def _fee_rates(pool: Pool, a_to_b: bool) -> tuple[Fraction, Fraction]:
    """Return the fee as an exact part of the input, and as one of the output."""
    if isinstance(pool, RaydiumCpmmPool):
        trade, creator = Fraction(pool.rates.trade, 10**6), Fraction(pool.rates.creator, 10**6)
        on_input = pool.creator_fee_on is CreatorFeeOn.INPUT or a_to_b is (
            pool.creator_fee_on is CreatorFeeOn.ONLY_TOKEN_0
        )
        return (trade + creator, Fraction(0)) if on_input else (trade, creator)
    assert isinstance(pool, MeteoraDammV2Pool)
    now = NOW.slot if pool.activation_type is ActivationType.SLOT else NOW.unix_timestamp
    numerator = pool.base_fee.numerator(now - pool.activation_point)
    if pool.dynamic_fee is not None:
        numerator += pool.dynamic_fee.numerator()
    rate = Fraction(min(numerator, 990_000_000 if pool.fee_version else 500_000_000), 10**9)
    return (Fraction(0), rate) if a_to_b else (rate, Fraction(0))


def never_pays_more_than_the_exact_curve(pool: Pool, a_to_b: bool, amount: int) -> None:
    swap = _swap(pool.swap_exact_in, a_to_b, amount)
    reserve_in, reserve_out = _reserves(pool, a_to_b)
    input_fee, output_fee = _fee_rates(pool, a_to_b)
    net = amount * (1 - input_fee)
    exact = net * reserve_out / (reserve_in + net) * (1 - output_fee)
    assert swap.output_amount <= exact


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
    if bought.input_amount > 1:
        try:
            cheaper = pool.swap_exact_in(a_to_b, bought.input_amount - 1, NOW)
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

PROPERTIES: list[Property] = [
    never_pays_more_than_the_exact_curve,
    a_round_trip_never_gains,
    exact_out_asks_for_no_more_than_was_spent,
    exact_out_asks_for_the_least_that_suffices,
    more_in_never_gives_less_out,
    the_product_of_the_reserves_never_falls,
]


def _check(holds: Property, phases: Sequence[Phase] = tuple(Phase)) -> None:
    strategies = (*SWAPS, st.integers(1, 1_000)) if holds is more_in_never_gives_less_out else SWAPS
    # The same examples every time, so that a mutant is caught every time.
    repeatable = settings(max_examples=200, deadline=None, derandomize=True, database=None, phases=phases)
    repeatable(given(*strategies)(holds))()


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_property_holds_for_every_curve(holds: Property) -> None:
    _check(holds)


# ---- Mutants: ways to get a curve wrong ----------------------------------------------------------

MODULES: list[ModuleType] = [raydium_cpmm, meteora_damm_v2]


def _round_fees_down(patch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        patch.setattr(module, "ceil_div", lambda numerator, denominator: numerator // denominator)


def _change(patch: pytest.MonkeyPatch, method: str, change: Callable[[Any, bool, Swap], Swap]) -> None:
    for curve in (RaydiumCpmmPool, MeteoraDammV2Pool):
        original = getattr(curve, method)

        def changed(pool: Any, a_to_b: bool, amount: int, clock: Clock, original: Any = original) -> Swap:
            return change(pool, a_to_b, original(pool, a_to_b, amount, clock))

        patch.setattr(curve, method, changed)


def _take_output_twice(patch: pytest.MonkeyPatch) -> None:
    def change(pool: Any, a_to_b: bool, swap: Swap) -> Swap:
        after: Any = swap.pool
        names = (
            ("vault_0", "vault_1")
            if isinstance(after, RaydiumCpmmPool)
            else ("token_a_amount", "token_b_amount")
        )
        name = names[1 if a_to_b else 0]
        left = getattr(after, name) - swap.output_amount
        return replace(swap, pool=replace(after, **{name: left})) if left > 0 else swap

    _change(patch, "swap_exact_in", change)


def _pay_one_more(patch: pytest.MonkeyPatch) -> None:
    def change(pool: Any, a_to_b: bool, swap: Swap) -> Swap:
        return replace(swap, output_amount=swap.output_amount + 1)

    _change(patch, "swap_exact_in", change)


def _ask_one_more(patch: pytest.MonkeyPatch) -> None:
    def change(pool: Any, a_to_b: bool, swap: Swap) -> Swap:
        return replace(swap, input_amount=swap.input_amount + 1)

    _change(patch, "swap_exact_out", change)


def _keep_the_change(patch: pytest.MonkeyPatch) -> None:
    def change(pool: Any, a_to_b: bool, swap: Swap) -> Swap:
        return replace(swap, output_amount=max(0, swap.output_amount - swap.input_amount % 1_000))

    _change(patch, "swap_exact_in", change)


@dataclass(frozen=True)
class Mutant:
    apply: Callable[[pytest.MonkeyPatch], None]
    caught_by: Property


MUTANTS = [
    Mutant(_round_fees_down, never_pays_more_than_the_exact_curve),
    Mutant(_pay_one_more, never_pays_more_than_the_exact_curve),
    Mutant(_take_output_twice, a_round_trip_never_gains),
    Mutant(_ask_one_more, exact_out_asks_for_no_more_than_was_spent),
    Mutant(_round_fees_down, exact_out_asks_for_the_least_that_suffices),
    Mutant(_keep_the_change, more_in_never_gives_less_out),
    Mutant(_take_output_twice, the_product_of_the_reserves_never_falls),
]


@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: f"{mutant.apply.__name__}-{mutant.caught_by.__name__}"
)
def test_property_catches_its_mutant(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.apply(monkeypatch)
    with pytest.raises(AssertionError):
        _check(mutant.caught_by, phases=[Phase.generate])
