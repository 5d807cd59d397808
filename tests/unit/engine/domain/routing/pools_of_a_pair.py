"""Pools of one pair: those of the published routing problems, and drawn ones of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

from hypothesis import strategies as st

from engine.domain.order import Side
from engine.domain.pools.meteora_damm_v2 import (
    ActivationType,
    BaseFee,
    BaseFeeMode,
    CollectFeeMode,
    MeteoraDammV2Pool,
    RateLimiter,
)
from engine.domain.pools.meteora_dlmm import Bin, FeeParameters, MeteoraDlmmPool, Volatility, bin_price
from engine.domain.pools.pool import U64_MAX, Clock, Pool, SwapError
from engine.domain.pools.raydium_amm_v4 import RaydiumAmmV4Pool
from engine.domain.pools.raydium_clmm import (
    MAX_SQRT_PRICE,
    MAX_TICK,
    MIN_SQRT_PRICE,
    MIN_TICK,
    DynamicFee,
    RaydiumClmmPool,
    Tick,
    sqrt_price_at_tick,
    tick_at_sqrt_price,
)
from engine.domain.pools.raydium_cpmm import CreatorFeeOn, Rates, RaydiumCpmmPool
from engine.domain.routing.price_curve import PriceCurve

NOW = Clock(slot=400_000_000, unix_timestamp=1_750_000_000)


def problem_of(asked: dict[str, Any]) -> tuple[int, bool, list[Pool]]:
    """Return the amount, the direction and the pools of a published routing problem."""
    a_to_b = asked.get("a_to_b", True)
    return int(asked["amount_in"]), a_to_b, [_pool_of(pool, a_to_b) for pool in asked["pools"]]


def curves_of(pools: Sequence[Pool], a_to_b: bool) -> list[PriceCurve]:
    return [PriceCurve(pool, a_to_b, NOW) for pool in pools]


def exchanged(pool: Pool, a_to_b: bool, side: Side, amount: int) -> int | None:
    """Return the output for so much input (SELL), the input for so much output (BUY); None if refused."""
    if amount == 0:
        return 0
    try:
        if side is Side.SELL:
            return pool.swap_exact_in(a_to_b, amount, NOW).output_amount
        return pool.swap_exact_out(a_to_b, amount, NOW).input_amount
    except SwapError:
        return None


def _pool_of(pool: dict[str, Any], a_to_b: bool) -> Pool:
    if pool["type"] == "cpmm":
        reserves = int(pool["reserve_in"]), int(pool["reserve_out"])
        # Some charge nothing, which the program takes only where a creator's fee would be on the output.
        output = CreatorFeeOn.ONLY_TOKEN_1 if a_to_b else CreatorFeeOn.ONLY_TOKEN_0
        rates = Rates(pool["trade_fee_rate"], 0, 120_000, 40_000)
        return RaydiumCpmmPool(*(reserves if a_to_b else reserves[::-1]), rates, output)
    if pool["type"] == "clmm":
        return RaydiumClmmPool(
            sqrt_price=int(pool["sqrt_price_x64"]),
            tick_current=pool["tick_current"],
            liquidity=int(pool["liquidity"]),
            tick_spacing=pool["tick_spacing"],
            trade_fee_rate=pool["trade_fee_rate"],
            ticks=tuple(Tick(tick, int(net)) for tick, net in pool["ticks"]),
        )
    assert pool["type"] == "dlmm"
    return MeteoraDlmmPool(
        bin_step=pool["bin_step"],
        active_id=pool["active_id"],
        parameters=FeeParameters(pool["base_factor"], 0, 0, 0, 0, 0, 0, 0),
        volatility=Volatility(0, 0, pool["active_id"], 0),
        bins=tuple(Bin(at, int(x), int(y), bin_price(at, pool["bin_step"])) for at, x, y in pool["bins"]),
    )


# ---- Drawn ones. Token b costs about `price` millionths of a token a in all of them.


PRICES = st.integers(10_000, 10_000_000)
DEPTHS = st.one_of(st.integers(10**4, 10**7), st.integers(10**9, 10**15))


def pools_around(price: int) -> st.SearchStrategy[Pool]:
    """Return pools of every kind whose price is within 1 % of `price` millionths of b for an a."""
    return st.one_of(
        _constant_product(price), _constant_product(price), _ranges(price), _ticks(price), _bins(price)
    )


@st.composite
def pairs(draw: st.DrawFn, max_size: int = 5) -> list[Pool]:
    price = draw(PRICES)
    return draw(st.lists(pools_around(price), min_size=1, max_size=max_size))


@st.composite
def _constant_product(draw: st.DrawFn, price: int) -> Pool:
    a = draw(DEPTHS)
    b = max(1, a * price * draw(st.integers(990, 1_010)) // 10**9)
    fee = draw(st.integers(1, 20_000))
    match draw(st.integers(0, 2)):
        case 0:
            return RaydiumCpmmPool(
                a,
                b,
                Rates(fee, draw(st.integers(0, 10_000)), 120_000, 40_000),
                draw(st.sampled_from(CreatorFeeOn)),
            )
        case 1:
            return RaydiumAmmV4Pool(a, b)
        case _:
            return _damm(a, b, BaseFee(BaseFeeMode.LINEAR, fee * 1_000), CollectFeeMode.COMPOUNDING)


def _damm(
    a: int, b: int, fee: BaseFee | RateLimiter, mode: CollectFeeMode, reach: int = 1_000
) -> MeteoraDammV2Pool:
    sqrt_price = isqrt((b << 128) // a)
    return MeteoraDammV2Pool(
        token_a_amount=a,
        token_b_amount=b,
        sqrt_price=sqrt_price,
        base_fee=fee,
        dynamic_fee=None,
        protocol_fee_percent=20,
        compounding_fee_bps=0,
        activation_type=ActivationType.SLOT,
        activation_point=NOW.slot,
        fee_version=1,
        liquidity=isqrt(a * b) << 64,
        collect_fee_mode=mode,
        sqrt_min_price=sqrt_price * 1_000 // (1_000 + reach),
        sqrt_max_price=sqrt_price * (1_000 + reach) // 1_000,
    )


@st.composite
def _ranges(draw: st.DrawFn, price: int) -> Pool:
    a = draw(DEPTHS)
    b = max(1, a * price * draw(st.integers(990, 1_010)) // 10**9)
    limiter = RateLimiter(2_500_000, 50, 10**6, 1_000, max(1, b // 50))
    fees: list[BaseFee | RateLimiter] = [BaseFee(BaseFeeMode.LINEAR, 2_500_000), limiter]
    fee = draw(st.sampled_from(fees))
    mode = draw(st.sampled_from([CollectFeeMode.OUTPUT, CollectFeeMode.ONLY_B]))
    return _damm(
        a, b, fee, mode if fee is not limiter else CollectFeeMode.ONLY_B, draw(st.integers(5, 3_000))
    )


@st.composite
def _ticks(draw: st.DrawFn, price: int) -> Pool:
    spacing = draw(st.sampled_from([1, 10, 60]))
    # Where b for an a is price / 10**6, its square root in Q64 is this.
    sqrt_price = isqrt((price * draw(st.integers(990, 1_010)) << 128) // 10**9)
    tick = tick_at_sqrt_price(sqrt_price)
    middle = tick // spacing
    wide = draw(DEPTHS)
    net = {-400_020: wide, 400_020: -wide}
    for below, width, liquidity in draw(
        st.lists(st.tuples(st.integers(-15, 10), st.integers(1, 15), DEPTHS), max_size=4)
    ):
        lower, upper = (middle + below) * spacing, (middle + below + width) * spacing
        net[lower] = net.get(lower, 0) + 20 * liquidity
        net[upper] = net.get(upper, 0) - 20 * liquidity
    # Its reference may lie ahead of the price: then the fee falls at first.
    reference = middle + draw(st.integers(-5, 5))
    dynamic_fee = DynamicFee(10, 120, 5_000, 20_000, 60_000, reference, 0, 0, NOW.unix_timestamp)
    return RaydiumClmmPool(
        sqrt_price=max(sqrt_price, sqrt_price_at_tick(tick)),
        tick_current=tick,
        liquidity=sum(change for at, change in net.items() if at <= tick),
        tick_spacing=spacing,
        trade_fee_rate=draw(st.sampled_from([100, 500, 2_500, 10_000])),
        ticks=tuple(Tick(at, change) for at, change in sorted(net.items())),
        dynamic_fee=draw(st.sampled_from([None, dynamic_fee])),
    )


@st.composite
def _bins(draw: st.DrawFn, price: int) -> Pool:
    bin_step = draw(st.sampled_from([1, 10, 50]))
    wanted = (price * draw(st.integers(990, 1_010)) << 64) // 10**9
    active_id = 0
    for step in (4_096, 1_024, 256, 64, 16, 4, 1):
        while bin_price(active_id + step, bin_step) <= wanted:
            active_id += step
        while bin_price(active_id, bin_step) > wanted:
            active_id -= step
    amount = draw(DEPTHS)
    held = draw(st.lists(st.integers(0, 8), min_size=9, max_size=41))
    first = active_id - len(held) // 2
    bins = []
    for at, part in enumerate(held, start=first):
        value = amount * part // len(held)
        in_b = value * price // 10**6
        bins.append(
            Bin(at, value if at >= active_id else 0, in_b if at <= active_id else 0, bin_price(at, bin_step))
        )
    varies = draw(st.booleans())
    return MeteoraDlmmPool(
        bin_step=bin_step,
        active_id=active_id,
        parameters=FeeParameters(10_000, 0, 30, 600, 5_000, 40_000 if varies else 0, 150_000, 500),
        volatility=Volatility(30_000, 10_000, active_id + draw(st.integers(-5, 5)), NOW.unix_timestamp),
        bins=tuple(bins),
    )


# ---- As lopsided as anybody can make them. Nothing is so small or so large that a test need not see it.


ANY_AMOUNT = st.one_of(
    st.sampled_from([1, 2, 3, U64_MAX - 1, U64_MAX]),
    st.integers(0, 63).map(lambda bits: 1 << bits),
    st.integers(1, U64_MAX),
)
ANY_LIQUIDITY = st.one_of(ANY_AMOUNT, st.integers(0, 127).map(lambda bits: 1 << bits))
ANY_SQRT_PRICE = st.one_of(
    st.sampled_from([MIN_SQRT_PRICE, MIN_SQRT_PRICE + 1, 1 << 64, (1 << 64) + 1, MAX_SQRT_PRICE - 1]),
    st.integers(33, 95).map(lambda bits: 1 << bits),
    st.integers(MIN_SQRT_PRICE, MAX_SQRT_PRICE - 1),
)


def extreme_pools() -> st.SearchStrategy[Pool]:
    """Return pools of every kind with reserves from one base unit to all that a u64 holds."""
    return st.one_of(_extreme_products(), _extreme_products(), _extreme_ranges(), _extreme_bins())


@st.composite
def _extreme_products(draw: st.DrawFn) -> Pool:
    a, b = draw(ANY_AMOUNT), draw(ANY_AMOUNT)
    match draw(st.integers(0, 2)):
        case 0:
            rates = Rates(draw(st.sampled_from([100, 2_500, 40_000, 999_999])), 0, 120_000, 40_000)
            return RaydiumCpmmPool(a, b, rates)
        case 1:
            return RaydiumAmmV4Pool(a, b)
        case _:
            fee = BaseFee(BaseFeeMode.LINEAR, draw(st.sampled_from([100_000, 990_000_000])))
            return replace(_damm(1, 1, fee, CollectFeeMode.COMPOUNDING), token_a_amount=a, token_b_amount=b)


@st.composite
def _extreme_ranges(draw: st.DrawFn) -> Pool:
    sqrt_price = draw(ANY_SQRT_PRICE)
    if draw(st.booleans()):
        fee = BaseFee(BaseFeeMode.LINEAR, draw(st.sampled_from([100_000, 990_000_000])))
        mode = draw(st.sampled_from([CollectFeeMode.OUTPUT, CollectFeeMode.ONLY_B]))
        return replace(
            _damm(1, 1, fee, mode),
            token_a_amount=draw(ANY_AMOUNT),
            token_b_amount=draw(ANY_AMOUNT),
            sqrt_price=sqrt_price,
            liquidity=draw(ANY_LIQUIDITY),
            sqrt_min_price=min(sqrt_price, draw(ANY_SQRT_PRICE)),
            sqrt_max_price=max(sqrt_price, draw(ANY_SQRT_PRICE)),
        )
    net: dict[int, int] = {}
    tick = tick_at_sqrt_price(sqrt_price)
    for below, width in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 500_000)), max_size=3)):
        lower, upper = max(tick - below, MIN_TICK), min(tick - below + width, MAX_TICK)
        liquidity = draw(ANY_LIQUIDITY)
        net[lower] = net.get(lower, 0) + liquidity
        net[upper] = net.get(upper, 0) - liquidity
    return RaydiumClmmPool(
        sqrt_price=sqrt_price,
        tick_current=tick,
        liquidity=sum(change for at, change in net.items() if at <= tick),
        tick_spacing=1,
        trade_fee_rate=draw(st.sampled_from([100, 2_500, 40_000])),
        ticks=tuple(Tick(at, change) for at, change in sorted(net.items())),
    )


@st.composite
def _extreme_bins(draw: st.DrawFn) -> Pool:
    bin_step, active_id = 100, draw(st.sampled_from([-4_000, -1, 0, 1, 4_000]))
    bins = []
    for at in range(active_id - 2, active_id + 3):
        x, y = draw(ANY_AMOUNT), draw(ANY_AMOUNT)
        bins.append(
            Bin(at, x if at >= active_id else 0, y if at <= active_id else 0, bin_price(at, bin_step))
        )
    parameters = FeeParameters(10_000, 0, 30, 600, 5_000, 40_000, 150_000, 500)
    volatility = Volatility(0, 0, active_id, NOW.unix_timestamp)
    return MeteoraDlmmPool(bin_step, active_id, parameters, volatility, tuple(bins))
