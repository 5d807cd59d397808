"""A quote says what the swap does, without doing it: the same figures, or the same refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.pools import meteora_damm_v2, meteora_dlmm, raydium_cpmm
from engine.domain.pools.pool import Pool, Swap, SwapError, SwapQuote
from tests.unit.engine.domain.pools import test_curve_properties, test_meteora_curve_properties
from tests.unit.engine.domain.routing.pools_of_a_pair import ANY_AMOUNT, NOW, extreme_pools, pools_around

AMOUNTS = st.one_of(st.integers(0, 10_000), st.integers(1, 10**13), st.integers(1, 10**18), ANY_AMOUNT)
POOLS: st.SearchStrategy[Any] = st.one_of(
    *test_curve_properties.CURVES.values(),
    *test_meteora_curve_properties.CURVES.values(),
    pools_around(150_000),
    extreme_pools(),
)


def _asked(pool: Pool, does: str, exact: str, a_to_b: bool, amount: int) -> Any:
    try:
        return getattr(pool, f"{does}_{exact}")(a_to_b, amount, NOW)
    except SwapError as error:
        return error.reason, str(error)


def quotes_are_what_swaps_do(pool: Pool, exact: str, a_to_b: bool, amount: int) -> None:
    swap, quote = (_asked(pool, does, exact, a_to_b, amount) for does in ("swap", "quote"))
    if not isinstance(swap, Swap):
        assert quote == swap
        return
    assert isinstance(quote, SwapQuote)
    figures = swap.input_amount, swap.output_amount, swap.fee_amount, swap.fee_side, swap.fee_ppm
    assert quote[:5] == figures
    before, after = pool.price(a_to_b), swap.pool.price(a_to_b)
    kept, whole = after[0] * before[1], after[1] * before[0]
    assert quote.price_impact_ppm == max(0, -((kept - whole) * 1_000_000 // whole))


@given(POOLS, st.sampled_from(["exact_in", "exact_out"]), st.booleans(), AMOUNTS)
def test_quotes_are_what_swaps_do(pool: Any, exact: str, a_to_b: bool, amount: int) -> None:
    quotes_are_what_swaps_do(pool, exact, a_to_b, amount)


# ---- Mutants -----------------------------------------------------------------------------------------


def _forgets_what_others_get(swap: raydium_cpmm.CurveSwap) -> raydium_cpmm.CurveSwap:
    return swap._replace(protocol_fee=0)


def _forgets_what_compounds(swap: meteora_damm_v2.CurveSwap) -> meteora_damm_v2.CurveSwap:
    return swap._replace(token_b_amount=swap.token_b_amount - swap.compounding_fee)


def _stays_in_its_bin(swap: meteora_dlmm.CurveSwap) -> meteora_dlmm.CurveSwap:
    return swap._replace(end_id=0)


EXAMPLES: dict[Any, tuple[Pool, str, bool, int]] = {
    raydium_cpmm.RaydiumCpmmPool: (
        raydium_cpmm.RaydiumCpmmPool(10**9, 10**9, raydium_cpmm.Rates(40_000, 0, 500_000, 0)),
        "exact_in",
        True,
        10**7,
    ),
    meteora_damm_v2.MeteoraDammV2Pool: (
        meteora_damm_v2.MeteoraDammV2Pool(
            token_a_amount=10**9,
            token_b_amount=10**9,
            sqrt_price=1 << 64,
            base_fee=meteora_damm_v2.BaseFee(meteora_damm_v2.BaseFeeMode.LINEAR, 40_000_000),
            dynamic_fee=None,
            protocol_fee_percent=20,
            compounding_fee_bps=5_000,
            activation_type=meteora_damm_v2.ActivationType.SLOT,
            activation_point=0,
            fee_version=1,
        ),
        "exact_in",
        True,
        10**7,
    ),
    meteora_dlmm.MeteoraDlmmPool: (
        meteora_dlmm.MeteoraDlmmPool(
            bin_step=10,
            active_id=0,
            parameters=meteora_dlmm.FeeParameters(10_000, 0, 30, 600, 5_000, 40_000, 150_000, 500),
            volatility=meteora_dlmm.Volatility(0, 0, 0, NOW.unix_timestamp),
            bins=tuple(meteora_dlmm.Bin(at, 0, 10**6, meteora_dlmm.bin_price(at, 10)) for at in range(-9, 1)),
        ),
        "exact_in",
        True,
        5 * 10**6,
    ),
}


@pytest.mark.parametrize(
    ("curve", "mutant"),
    [
        (raydium_cpmm.RaydiumCpmmPool, _forgets_what_others_get),
        (meteora_damm_v2.MeteoraDammV2Pool, _forgets_what_compounds),
        (meteora_dlmm.MeteoraDlmmPool, _stays_in_its_bin),
    ],
    ids=lambda each: each.__name__,
)
def test_quote_that_leaves_something_out_is_caught(
    curve: Any, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = curve._quoted
    monkeypatch.setattr(curve, "_quoted", lambda pool, a_to_b, swap: original(pool, a_to_b, mutant(swap)))
    with pytest.raises(AssertionError):
        quotes_are_what_swaps_do(*EXAMPLES[curve])
