"""Raydium CLMM: liquidity concentrated between ticks, a base fee and an optional dynamic one.

Inputs and fees are rounded up, outputs down, and a new price never moves farther than what is paid for; what
an exact input leaves over at its last step is fee, or the pool's where the fee is taken from the output.
An exact output pays for all of the way to a tick as soon as that gives less than one unit more.

Source of the mathematics: raydium-io/raydium-clmm at 03b44b7, programs/amm/src/libraries/{tick_math,
swap_math,sqrt_price_math,liquidity_math}.rs, states/pool_fee.rs and instructions/swap.rs (Apache-2.0).
Limit orders that lie in ticks are not reckoned with: a pool that has any is not this curve.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from engine.domain.frozen import frozen
from engine.domain.pools.pool import (
    FEE_ON_INPUT,
    FEE_ON_OUTPUT,
    U64_MAX,
    Clock,
    Segment,
    Swap,
    SwapError,
    SwapQuote,
    SwapRefusal,
    ceil_div,
    liquidity_segment,
    parts_per_million,
)

RATE_ONE: Final = 1_000_000
"""Fee rates are per this many."""
MAX_FEE_RATE: Final = 100_000
"""The most that base and dynamic fee come to together."""
MIN_TICK: Final = -443_636
MAX_TICK: Final = 443_636
MIN_SQRT_PRICE: Final = 4_295_048_016
"""At MIN_TICK, Q64."""
MAX_SQRT_PRICE: Final = 79_226_673_521_066_979_257_578_248_091
"""At MAX_TICK, Q64; no pool ever reaches it."""
SWAP_DISABLED: Final = 16
"""The bit of `status` that switches swaps off."""
_Q64: Final = 1 << 64
_U128_MAX: Final = 2**128 - 1
_BPS_ONE: Final = 10_000
_VOLATILITY_PER_STEP: Final = 10_000

_SQRT_RATIOS: Final = (
    0xFFFCB933BD6FB800,
    0xFFF97272373D4000,
    0xFFF2E50F5F657000,
    0xFFE5CACA7E10F000,
    0xFFCB9843D60F7000,
    0xFF973B41FA98E800,
    0xFF2EA16466C9B000,
    0xFE5DEE046A9A3800,
    0xFCBE86C7900BB000,
    0xF987A7253AC65800,
    0xF3392B0822BB6000,
    0xE7159475A2CAF000,
    0xD097F3BDFD2F2000,
    0xA9F746462D9F8000,
    0x70D869A156F31C00,
    0x31BE135F97ED3200,
    0x09AA508B5B85A500,
    0x005D6AF8DEDC582C,
    0x00002216E584F5FA,
)
"""The program's own values of 1.0001 ** -(2**i / 2), Q64."""
_LOG_BITS: Final = 16
"""Fractional bits of the binary logarithm; enough to leave two ticks to choose from."""
_TICKS_PER_LOG2: Final = 59_543_866_431_248
"""2**32 / log2(sqrt(1.0001)), for a logarithm in Q32."""
_TICK_ERROR_BELOW: Final = 184_467_440_737_095_516
_TICK_ERROR_ABOVE: Final = 15_793_534_762_490_258_745


# A tick's price is asked for whenever a swap comes past; reckoning it takes 1.5 us, remembering it 0.1.
@lru_cache(maxsize=1 << 14)
def sqrt_price_at_tick(tick: int) -> int:
    """Return 1.0001 ** (tick / 2) in Q64. Raises ValueError for a tick out of range."""
    if not MIN_TICK <= tick <= MAX_TICK:
        raise ValueError(f"tick was {tick}; must be from {MIN_TICK} to {MAX_TICK}")
    bits = abs(tick)
    ratio = _Q64
    for factor in _SQRT_RATIOS:
        if bits & 1:
            ratio = ratio * factor >> 64
        bits >>= 1
    return _U128_MAX // ratio if tick > 0 else ratio


def tick_at_sqrt_price(sqrt_price: int) -> int:
    """Return the greatest tick whose price (Q64) is not above this one. Raises ValueError out of range."""
    if not MIN_SQRT_PRICE <= sqrt_price < MAX_SQRT_PRICE:
        raise ValueError(
            f"square-root price was {sqrt_price}; must be from {MIN_SQRT_PRICE} and below {MAX_SQRT_PRICE}"
        )
    exponent = sqrt_price.bit_length() - 1
    logarithm = exponent - 64
    mantissa = sqrt_price >> exponent - 63 if exponent >= 64 else sqrt_price << 63 - exponent
    for _ in range(_LOG_BITS):
        mantissa *= mantissa
        bit = mantissa >> 127
        mantissa >>= 63 + bit
        logarithm = logarithm << 1 | bit
    ticks = (logarithm << 32 - _LOG_BITS) * _TICKS_PER_LOG2
    low, high = ticks - _TICK_ERROR_BELOW >> 64, ticks + _TICK_ERROR_ABOVE >> 64
    return high if low == high or sqrt_price_at_tick(high) <= sqrt_price else low


class Step(NamedTuple):
    """A swap at constant liquidity, or as much of it as reaches the target price."""

    sqrt_price: int
    """Where it ends, Q64."""
    amount_in: int
    """Without a fee on the input."""
    amount_out: int
    """Without a fee on the output."""
    fee: int


def swap_step(
    sqrt_price: int,
    target: int,
    liquidity: int,
    remaining: int,
    fee_rate: int,
    *,
    exact_in: bool,
    zero_for_one: bool,
    fee_on_input: bool,
) -> Step:
    """Swap `remaining`, of input or of output, from one price towards another. Raises SwapError."""
    if exact_in:
        usable = remaining * (RATE_ONE - fee_rate) // RATE_ONE if fee_on_input else remaining
    elif fee_on_input:
        usable = remaining
    else:
        usable = _u64(ceil_div(remaining * RATE_ONE, RATE_ONE - fee_rate))
    amount_in, amount_out = _amounts(sqrt_price, target, liquidity, zero_for_one)
    # A target that is more than 64 bits away counts as out of reach.
    if usable >= (amount_in if exact_in else amount_out) and amount_in <= U64_MAX and amount_out <= U64_MAX:
        reached = target
    else:
        reached = _price_after(sqrt_price, liquidity, usable, exact_in, zero_for_one)
        if reached < target if zero_for_one else reached > target:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
        amount_in, amount_out = _amounts(sqrt_price, reached, liquidity, zero_for_one)
        if amount_in > U64_MAX or amount_out > U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
    if fee_on_input:
        if exact_in and reached != target:
            # Includes what rounding left over.
            fee = remaining - amount_in
        else:
            fee = _u64(ceil_div(amount_in * fee_rate, RATE_ONE - fee_rate))
        if not exact_in:
            amount_out = min(amount_out, remaining)
    else:
        fee = ceil_div(amount_out * fee_rate, RATE_ONE)
        amount_out -= fee
        if exact_in:
            if reached != target:
                amount_in = remaining
        elif amount_out > remaining:
            fee += amount_out - remaining
            amount_out = remaining
    return Step(reached, amount_in, amount_out, fee)


def _amounts(one_price: int, other_price: int, liquidity: int, zero_for_one: bool) -> tuple[int, int]:
    """Return what goes in, rounded up, and what comes out, rounded down, between two prices."""
    moved = liquidity * abs(one_price - other_price)  # of token 1, Q64
    if zero_for_one:
        return -(-(moved << 64) // (one_price * other_price)), moved >> 64
    return -(-moved >> 64), (moved << 64) // (one_price * other_price)


def _price_after(sqrt_price: int, liquidity: int, amount: int, exact_in: bool, zero_for_one: bool) -> int:
    """Return the price that an amount of input or of output leads to, rounded against whoever swaps."""
    if liquidity <= 0 or not MIN_SQRT_PRICE <= sqrt_price < MAX_SQRT_PRICE:
        raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
    if exact_in is not zero_for_one:  # the amount is of token 1
        if exact_in:
            return sqrt_price + (amount << 64) // liquidity
        return sqrt_price - ceil_div(amount << 64, liquidity)
    scaled = liquidity << 64
    after = scaled + amount * sqrt_price if exact_in else scaled - amount * sqrt_price
    if after <= 0:
        raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
    return ceil_div(scaled * sqrt_price, after)


def _u64(amount: int) -> int:
    """Return the amount as the program keeps it; it fails where 64 bits do not hold it."""
    if amount > U64_MAX:
        raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
    return amount


class FeeOn(IntEnum):
    """Which token the fee is taken in."""

    INPUT = 0
    ONLY_TOKEN_0 = 1
    ONLY_TOKEN_1 = 2


_INPUT: Final = FeeOn.INPUT
_ONLY_TOKEN_0: Final = FeeOn.ONLY_TOKEN_0


@frozen
class DynamicFee:
    """A surcharge that grows with how many tick spacings the price has moved lately."""

    filter_period: int
    """Seconds: swaps closer together than this share one reference."""
    decay_period: int
    """Seconds after which volatility is forgotten."""
    reduction_factor: int
    """Basis points of volatility that are left between the two."""
    dynamic_fee_control: int
    """How steeply the fee follows volatility, per 10**5."""
    max_volatility_accumulator: int
    tick_spacing_index_reference: int
    volatility_reference: int
    volatility_accumulator: int
    last_update_timestamp: int

    def referred(self, tick_spacing_index: int, unix_timestamp: int) -> DynamicFee:
        """Return it with the references that a swap at this time starts from."""
        elapsed = max(0, unix_timestamp - self.last_update_timestamp)
        if elapsed < self.filter_period:
            return self
        decays = elapsed < self.decay_period
        return replace(
            self,
            tick_spacing_index_reference=tick_spacing_index,
            volatility_reference=self.volatility_accumulator * self.reduction_factor // _BPS_ONE
            if decays
            else 0,
            last_update_timestamp=unix_timestamp,
        )

    def volatility_at(self, tick_spacing_index: int) -> int:
        """Return the volatility accumulator of a swap that has come so far."""
        moved = abs(self.tick_spacing_index_reference - tick_spacing_index)
        return min(self.volatility_reference + moved * _VOLATILITY_PER_STEP, self.max_volatility_accumulator)

    def rate(self, volatility: int, tick_spacing: int) -> int:
        """Return the surcharge per 10**6."""
        moved = volatility * tick_spacing
        return ceil_div(self.dynamic_fee_control * moved * moved, 10**13)


class Tick(NamedTuple):
    """Where positions begin and end."""

    tick: int
    liquidity_net: int
    """What active liquidity gains when the price rises past it; it loses as much when it falls."""


class _Stretch(NamedTuple):
    """How far a swap can go at one liquidity and one fee."""

    end: int
    """Square-root price, Q64."""
    liquidity: int
    fee_rate: int
    volatility: int
    tick: int
    """The current tick of a pool that has come to the end."""
    next_liquidity: int | None
    """Beyond the end; None: no tick is crossed there."""


class CurveSwap(NamedTuple):
    """A swap as the curve sees it."""

    input_amount: int
    output_amount: int
    fee: int
    """Part of input_amount, or what output_amount is without."""
    fees: Sequence[tuple[int, int]]
    """Its parts, and the liquidity that each is for."""
    sqrt_price: int
    """After, Q64."""
    tick: int | None
    """The current one after; None: that of the price."""
    liquidity: int
    """Active after."""
    dynamic_fee: DynamicFee | None
    """With the references it started from."""
    volatility: int
    """Of the dynamic fee, where it ends."""


@frozen
class RaydiumClmmPool:
    """A pool and its ticks. What a swap does to fees outside of a tick is not kept: no swap depends on it."""

    sqrt_price: int
    """Of token 0 in token 1, Q64."""
    tick_current: int
    liquidity: int
    """Active at the current price."""
    tick_spacing: int
    trade_fee_rate: int
    ticks: tuple[Tick, ...]
    """The initialised ones, ascending; a swap that comes past the last of them is refused."""
    fee_on: FeeOn = FeeOn.INPUT
    dynamic_fee: DynamicFee | None = None
    """None: the pool's dynamic fee info is all zero."""
    protocol_fee_rate: int = 0
    """Of the fee."""
    fund_fee_rate: int = 0
    """Of the fee."""
    status: int = 0
    """Bits; see SWAP_DISABLED."""
    open_time: int = 0
    """Unix seconds; swaps are allowed after it."""
    fee_growth_global_0: int = 0
    """For liquidity providers, per unit of liquidity, Q64; wraps at 128 bits."""
    fee_growth_global_1: int = 0
    protocol_fees_0: int = 0
    protocol_fees_1: int = 0
    fund_fees_0: int = 0
    fund_fees_1: int = 0

    def quote_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> SwapQuote:
        """Return what spending exactly `input_amount` comes to. Raises SwapError."""
        return self._quoted(a_to_b, self._spend(a_to_b, input_amount, clock))

    def quote_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> SwapQuote:
        """Return what receiving exactly `output_amount` comes to. Raises SwapError."""
        return self._quoted(a_to_b, self._buy(a_to_b, output_amount, clock))

    def swap_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend exactly `input_amount`. Raises SwapError."""
        return self._swapped(a_to_b, self._spend(a_to_b, input_amount, clock))

    def swap_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> Swap:
        """Receive exactly `output_amount`. Raises SwapError."""
        return self._swapped(a_to_b, self._buy(a_to_b, output_amount, clock))

    def curve_swap(self, a_to_b: bool, amount: int, exact_in: bool, clock: Clock) -> Swap:
        """Return the swap of `amount`, of input or of output, as the curve sees it. Raises SwapError.

        Its output may be 0, and it does not ask whether the pool is open.
        """
        return self._swapped(a_to_b, self._along_the_curve(a_to_b, amount, exact_in, clock))

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        prices = (self.sqrt_price * self.sqrt_price, 1 << 128)
        return prices if a_to_b else prices[::-1]

    def segments(self, a_to_b: bool, clock: Clock) -> Iterator[Segment]:
        """Yield a segment between each two ticks, and between each two fees; gaps have none."""
        try:
            self._check_open(clock)
        except SwapError:
            return
        fee_on_input = self._fee_on_input(a_to_b)
        # Reckoned once a fee and scaled, which halves the time for a pool with many ticks.
        fee_rate, scale, slope = -1, 1.0, 1.0
        start = _Q64 / self.sqrt_price if a_to_b else self.sqrt_price / _Q64
        for stretch in self._stretches(a_to_b, self._dynamic_fee_at(clock)):
            end = _Q64 / stretch.end if a_to_b else stretch.end / _Q64
            if stretch.liquidity and end > start:
                if fee_rate != stretch.fee_rate:
                    fee_rate = stretch.fee_rate
                    kept = 1 - fee_rate / RATE_ONE
                    scale, _, slope, _ = liquidity_segment(
                        1.0,
                        1.0,
                        input_kept=kept if fee_on_input else 1.0,
                        output_kept=1.0 if fee_on_input else kept,
                    )
                yield Segment(start * scale, end * scale, stretch.liquidity * slope)
            start = end

    def _spend(self, a_to_b: bool, input_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if input_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was offered nothing")
        swap = self._along_the_curve(a_to_b, _u64(input_amount), True, clock)
        if swap.output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_OUTPUT, "gives nothing for so little")
        return swap

    def _buy(self, a_to_b: bool, output_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was asked for nothing")
        return self._along_the_curve(a_to_b, _u64(output_amount), False, clock)

    def _along_the_curve(self, a_to_b: bool, amount: int, exact_in: bool, clock: Clock) -> CurveSwap:
        fee_on_input = self._fee_on_input(a_to_b)
        dynamic_fee = self._dynamic_fee_at(clock)
        sqrt_price, liquidity = self.sqrt_price, self.liquidity
        tick: int | None = self.tick_current
        remaining, calculated, total_fee = amount, 0, 0
        fees = []
        for stretch in self._stretches(a_to_b, dynamic_fee):
            moved = sqrt_price != stretch.end
            if moved:
                reached, amount_in, amount_out, fee = swap_step(
                    sqrt_price,
                    stretch.end,
                    liquidity,
                    remaining,
                    stretch.fee_rate,
                    exact_in=exact_in,
                    zero_for_one=a_to_b,
                    fee_on_input=fee_on_input,
                )
                if fee_on_input:
                    amount_in += fee
                remaining -= amount_in if exact_in else amount_out
                calculated += amount_out if exact_in else amount_in
                if fee:
                    total_fee += fee
                    fees.append((fee, liquidity))
                moved = sqrt_price != reached
                sqrt_price = reached
            if sqrt_price == stretch.end:
                if stretch.next_liquidity is not None:
                    tick, liquidity = stretch.tick, stretch.next_liquidity
                elif moved:
                    tick = stretch.tick
            elif moved:
                tick = None
            # else the tick stands still as well: it may be the one below that of its price.
            if not remaining:
                break
        else:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
        _u64(calculated)
        return CurveSwap(
            amount if exact_in else calculated,
            calculated if exact_in else amount,
            total_fee,
            fees,
            sqrt_price,
            tick,
            liquidity,
            dynamic_fee,
            stretch.volatility,
        )

    def _quoted(self, a_to_b: bool, swap: CurveSwap) -> SwapQuote:
        input_amount, output_amount, fee, _, sqrt_price, _, _, _, _ = swap
        # Both prices of token 0 in token 1, times the same.
        before, after = self.sqrt_price * self.sqrt_price, sqrt_price * sqrt_price
        if not a_to_b:
            before, after = after, before
        on_input = self._fee_on_input(a_to_b)
        return SwapQuote(
            input_amount,
            output_amount,
            fee,
            FEE_ON_INPUT if on_input else FEE_ON_OUTPUT,
            parts_per_million(fee, input_amount if on_input else output_amount + fee),
            parts_per_million(before - after, before),
        )

    def _swapped(self, a_to_b: bool, swap: CurveSwap) -> Swap:
        protocol_fees = fund_fees = fee_growth = 0
        for fee, liquidity in swap.fees:
            protocol_fee = fee * self.protocol_fee_rate // RATE_ONE
            fund_fee = fee * self.fund_fee_rate // RATE_ONE
            protocol_fees += protocol_fee
            fund_fees += fund_fee
            # A fee needs an amount, and an amount needs liquidity: it is not zero here.
            fee_growth += (fee - protocol_fee - fund_fee << 64) // liquidity
        dynamic_fee = swap.dynamic_fee
        if dynamic_fee is not None:
            dynamic_fee = replace(dynamic_fee, volatility_accumulator=swap.volatility)
        fee_on_input = self._fee_on_input(a_to_b)
        fee_in_0 = fee_on_input is a_to_b
        growth_0, growth_1 = self.fee_growth_global_0, self.fee_growth_global_1
        # By position, as names take twice as long.
        after = RaydiumClmmPool(
            swap.sqrt_price,
            tick_at_sqrt_price(swap.sqrt_price) if swap.tick is None else swap.tick,
            swap.liquidity,
            self.tick_spacing,
            self.trade_fee_rate,
            self.ticks,
            self.fee_on,
            dynamic_fee,
            self.protocol_fee_rate,
            self.fund_fee_rate,
            self.status,
            self.open_time,
            growth_0 + fee_growth & _U128_MAX if fee_in_0 else growth_0,
            growth_1 if fee_in_0 else growth_1 + fee_growth & _U128_MAX,
            self.protocol_fees_0 + (protocol_fees if fee_in_0 else 0),
            self.protocol_fees_1 + (0 if fee_in_0 else protocol_fees),
            self.fund_fees_0 + (fund_fees if fee_in_0 else 0),
            self.fund_fees_1 + (0 if fee_in_0 else fund_fees),
        )
        fee_side = FEE_ON_INPUT if fee_on_input else FEE_ON_OUTPUT
        return Swap(swap.input_amount, swap.output_amount, swap.fee, fee_side, after)

    def _stretches(self, zero_for_one: bool, dynamic_fee: DynamicFee | None) -> Iterator[_Stretch]:
        """Yield what lies before a swap in its direction, as far as the ticks are known."""
        limit = MIN_SQRT_PRICE + 1 if zero_for_one else MAX_SQRT_PRICE - 1
        beyond = bisect_left(self.ticks, (self.tick_current + 1,))
        positions = range(beyond - 1, -1, -1) if zero_for_one else range(beyond, len(self.ticks))
        liquidity, fee_rate = self.liquidity, self.trade_fee_rate
        spacing_index = self.tick_current // self.tick_spacing
        for position in positions:
            tick, liquidity_net = self.ticks[position]
            next_liquidity = liquidity - liquidity_net if zero_for_one else liquidity + liquidity_net
            if next_liquidity < 0:
                return  # ticks that are not of this pool's moment
            tick_price = sqrt_price_at_tick(tick)
            if tick_price <= limit if zero_for_one else tick_price >= limit:
                crossed = _Stretch(limit, liquidity, fee_rate, 0, tick_at_sqrt_price(limit), None)
            else:
                after = tick - 1 if zero_for_one else tick
                crossed = _Stretch(tick_price, liquidity, fee_rate, 0, after, next_liquidity)
            if dynamic_fee is None:
                yield crossed
            else:
                spacing_index = yield from self._spacings(
                    crossed, tick, spacing_index, dynamic_fee, zero_for_one
                )
            if crossed.next_liquidity is None:
                return
            liquidity = next_liquidity

    def _spacings(
        self,
        whole: _Stretch,
        tick: int,
        spacing_index: int,
        dynamic_fee: DynamicFee,
        zero_for_one: bool,
    ) -> Generator[_Stretch, None, int]:
        """Yield the parts of a stretch up to `tick` that have one fee each: one for every tick spacing.

        Return the index of the spacing that comes next.
        """
        spacing = self.tick_spacing
        while True:
            volatility = dynamic_fee.volatility_at(spacing_index)
            fee_rate = min(self.trade_fee_rate + dynamic_fee.rate(volatility, spacing), MAX_FEE_RATE)
            rest = (fee_rate, volatility, whole.tick, whole.next_liquidity)
            if whole.liquidity == 0 or volatility == dynamic_fee.max_volatility_accumulator:
                yield _Stretch(whole.end, whole.liquidity, *rest)
                return tick // spacing - 1 if zero_for_one else -(-tick // spacing)
            boundary = (spacing_index if zero_for_one else spacing_index + 1) * spacing
            boundary = min(max(boundary, MIN_TICK), MAX_TICK)
            boundary_price = sqrt_price_at_tick(boundary)
            spacing_index += -1 if zero_for_one else 1
            if whole.end >= boundary_price if zero_for_one else whole.end <= boundary_price:
                yield _Stretch(whole.end, whole.liquidity, *rest)
                return spacing_index
            yield _Stretch(boundary_price, whole.liquidity, fee_rate, volatility, boundary, None)

    def _dynamic_fee_at(self, clock: Clock) -> DynamicFee | None:
        if self.dynamic_fee is None:
            return None
        return self.dynamic_fee.referred(self.tick_current // self.tick_spacing, clock.unix_timestamp)

    def _fee_on_input(self, a_to_b: bool) -> bool:
        return self.fee_on is _INPUT or a_to_b is (self.fee_on is _ONLY_TOKEN_0)

    def _check_open(self, clock: Clock) -> None:
        if self.status & SWAP_DISABLED:
            raise SwapError(SwapRefusal.DISABLED, "has swaps switched off")
        if clock.unix_timestamp <= self.open_time:
            raise SwapError(SwapRefusal.NOT_OPEN, "has not opened yet")
