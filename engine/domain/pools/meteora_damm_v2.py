"""Meteora DAMM v2: one price range of constant liquidity, or constant product on the pool's own amounts.

The latter is the compounding mode. The fee is a base fee, which falls over time or grows with the amount,
plus a dynamic fee that follows volatility; it is taken from either leg, by mode and direction. Outputs are
rounded down, inputs and fees up, and square-root prices towards what the swap is worse off with.

Formulas checked against what the program answers (swap2 of the compiled program at MeteoraAg/damm-v2-sdk
1872ee3); those of the rate limiter as docs.meteora.ag and @meteora-ag/cp-amm-sdk (MIT) state them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from math import inf, isqrt
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
    constant_product_segment,
    liquidity_segment,
    parts_per_million,
)

FEE_ONE: Final = 1_000_000_000
"""Fees are per this many."""
_BPS_ONE: Final = 10_000
_FEE_PER_BPS: Final = FEE_ONE // _BPS_ONE
_Q64: Final = 1 << 64
_U128_MAX: Final = 2**128 - 1
_MAX_FEE_BY_VERSION: Final = (500_000_000, 990_000_000)


class CollectFeeMode(IntEnum):
    """Which token the fee is taken in, and with it what kind of curve the pool has."""

    OUTPUT = 0
    """Whichever goes out; a price range."""
    ONLY_B = 1
    """Token b: the output of a to b, the input of b to a; a price range."""
    COMPOUNDING = 2
    """Token b; constant product."""


_OUTPUT: Final = CollectFeeMode.OUTPUT
_COMPOUNDING: Final = CollectFeeMode.COMPOUNDING


class BaseFeeMode(IntEnum):
    """How the base fee changes over time; the program has more modes, for other pools."""

    LINEAR = 0
    EXPONENTIAL = 1


class ActivationType(IntEnum):
    """What activation_point and period_frequency count."""

    SLOT = 0
    TIMESTAMP = 1


_SLOT: Final = ActivationType.SLOT
_MOST_PARTS: Final = 64
"""Of a curve whose fee grows in steps."""


@frozen
class BaseFee:
    """Starts at the cliff when the pool opens and falls `number_of_period` times."""

    mode: BaseFeeMode
    cliff_fee_numerator: int
    number_of_period: int = 0
    period_frequency: int = 0
    """Slots or seconds; 0: the fee stays at the cliff."""
    reduction_factor: int = 0
    """A period: of the fee numerator (LINEAR), in basis points of the fee (EXPONENTIAL)."""

    def numerator(self, elapsed: int) -> int:
        """Return the fee per 10**9, `elapsed` slots or seconds after the pool opened."""
        if self.period_frequency == 0:
            return self.cliff_fee_numerator
        periods = min(self.number_of_period, elapsed // self.period_frequency)
        if self.mode is BaseFeeMode.LINEAR:
            return self.cliff_fee_numerator - periods * self.reduction_factor
        kept = _power_q64(_Q64 - (self.reduction_factor << 64) // _BPS_ONE, periods)
        return self.cliff_fee_numerator * kept >> 64


@frozen
class RateLimiter:
    """A base fee that grows with the amount b to a, for a time after the pool has opened.

    The first reference_amount pays the cliff fee, every further one an increment more than the one before,
    up to the maximum. Otherwise it is the cliff fee.
    """

    cliff_fee_numerator: int
    fee_increment_bps: int
    max_limiter_duration: int
    """Slots or seconds."""
    max_fee_bps: int
    reference_amount: int
    """In base units of token b; 0: the fee stays at the cliff."""

    def applies(self, a_to_b: bool, elapsed: int) -> bool:
        """Return whether the fee grows with the amount, `elapsed` slots or seconds after the pool opened."""
        return not a_to_b and elapsed <= self.max_limiter_duration and self.reference_amount > 0

    def numerator(self, gross: int) -> int:
        """Return the fee per 10**9 of an input, fee included.

        The exact fee is rounded up to a base unit first, and what that is per 10**9 is rounded up again.
        """
        unit, cliff = self.reference_amount, self.cliff_fee_numerator
        if gross <= unit:
            return cliff
        increment, most, steps_to_most = self._steps()
        whole, rest = divmod(gross - unit, unit)
        steps = min(whole, steps_to_most)
        rest += (whole - steps) * unit
        rest_fee = cliff + increment * (steps + 1) if whole < steps_to_most else most
        fee = unit * (cliff * (steps + 1) + increment * steps * (steps + 1) // 2) + rest * rest_fee
        return ceil_div(ceil_div(fee, FEE_ONE) * FEE_ONE, gross)

    def numerator_of_net(self, net: int) -> int:
        """Return the fee per 10**9 of the input that leaves `net`, to the program's own precision.

        It solves net = x - fee(x) for an x with whole steps, and takes the rest at the fee of its step.
        Raises SwapError.
        """
        unit, cliff = self.reference_amount, self.cliff_fee_numerator
        if net <= self._net(unit):
            return cliff
        increment, most, steps_to_most = self._steps()
        gross_to_most = min((steps_to_most + 1) * unit, U64_MAX)
        net_to_most = self._net(gross_to_most)
        if net < net_to_most:
            half_linear = 2 * FEE_ONE * unit + increment * unit - 2 * cliff * unit
            root = isqrt(half_linear * half_linear - 8 * increment * net * FEE_ONE * unit)
            gross = (half_linear - root) // (2 * increment)
            rest, rest_fee = net - self._net(gross), cliff + increment * (gross // unit)
        elif net > net_to_most and gross_to_most == U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
        else:
            gross, rest, rest_fee = gross_to_most, net - net_to_most, most
        gross += ceil_div(rest * FEE_ONE, FEE_ONE - rest_fee)
        return ceil_div((gross - net) * FEE_ONE, gross)

    def marginal_numerators(self) -> Iterator[tuple[int, float]]:
        """Yield the fee per 10**9 of each further part of an input, or less, and how large that part is.

        Anybody can make a pool whose fee grows in ten thousand steps: of many, several are taken together, at
        the fee of the first.
        """
        increment, most, steps_to_most = self._steps()
        together = ceil_div(steps_to_most + 1, _MOST_PARTS)
        for step in range(0, steps_to_most + 1, together):
            count = min(together, steps_to_most + 1 - step)
            yield self.cliff_fee_numerator + step * increment, count * self.reference_amount
        yield most, inf

    def _steps(self) -> tuple[int, int, int]:
        """Return a step of the fee and its maximum per 10**9, and how many steps reach that."""
        increment, most = self.fee_increment_bps * _FEE_PER_BPS, self.max_fee_bps * _FEE_PER_BPS
        return increment, most, (most - self.cliff_fee_numerator) // increment

    def _net(self, gross: int) -> int:
        return gross - ceil_div(gross * self.numerator(gross), FEE_ONE)


@frozen
class DynamicFee:
    """A surcharge that grows with how far the price has moved lately."""

    max_volatility_accumulator: int
    variable_fee_control: int
    bin_step: int
    """Basis points of price that count as one step."""
    filter_period: int
    """Seconds: swaps closer together than this share one reference price."""
    decay_period: int
    """Seconds after which volatility is forgotten."""
    reduction_factor: int
    """Basis points of volatility that are left between the two."""
    last_update_timestamp: int
    bin_step_u128: int
    """bin_step as a fraction of one, in Q64."""
    sqrt_price_reference: int
    volatility_accumulator: int
    volatility_reference: int

    def numerator(self) -> int:
        """Return the surcharge per 10**9. It rests on volatility as the swap before left it."""
        moved = self.volatility_accumulator * self.bin_step
        return ceil_div(self.variable_fee_control * moved * moved, 100_000_000_000)

    def after_swap(self, sqrt_price_before: int, sqrt_price_after: int, unix_timestamp: int) -> DynamicFee:
        """Return it as a swap between these prices (Q64) leaves it."""
        reference, volatility = self.sqrt_price_reference, self.volatility_reference
        elapsed = unix_timestamp - self.last_update_timestamp
        if elapsed >= self.filter_period:
            reference = sqrt_price_before
            decays = elapsed < self.decay_period
            volatility = self.volatility_accumulator * self.reduction_factor // _BPS_ONE if decays else 0
        moved = self._steps(reference, sqrt_price_after) * _BPS_ONE
        swap_moved_price = self._steps(sqrt_price_before, sqrt_price_after) > 0
        return DynamicFee(
            max_volatility_accumulator=self.max_volatility_accumulator,
            variable_fee_control=self.variable_fee_control,
            bin_step=self.bin_step,
            filter_period=self.filter_period,
            decay_period=self.decay_period,
            reduction_factor=self.reduction_factor,
            last_update_timestamp=unix_timestamp if swap_moved_price else self.last_update_timestamp,
            bin_step_u128=self.bin_step_u128,
            sqrt_price_reference=reference,
            volatility_accumulator=min(volatility + moved, self.max_volatility_accumulator),
            volatility_reference=volatility,
        )

    def _steps(self, one_price: int, other_price: int) -> int:
        """Return how many bin steps lie between two square-root prices."""
        lower, upper = (one_price, other_price) if one_price < other_price else (other_price, one_price)
        # Twice, because the price is the square of what is compared.
        return 2 * (((upper << 64) // lower - _Q64) // self.bin_step_u128)


class CurveSwap(NamedTuple):
    """A swap as the curve sees it."""

    input_amount: int
    output_amount: int
    fee: int
    """Part of input_amount, or what output_amount is without."""
    fee_on_output: bool
    protocol_fee: int
    """Of the fee, as is the next."""
    compounding_fee: int
    token_a_amount: int
    """Of the pool, after."""
    token_b_amount: int
    sqrt_price: int
    """After, Q64; 0 in a compounding pool, whose price is that of its amounts."""


@frozen
class MeteoraDammV2Pool:
    """A pool. What is claimable by others lies in its vaults, outside of these amounts."""

    token_a_amount: int
    """In base units; what a compounding pool trades with."""
    token_b_amount: int
    sqrt_price: int
    """Of a in b, Q64."""
    base_fee: BaseFee | RateLimiter
    dynamic_fee: DynamicFee | None
    """None: the pool has none."""
    protocol_fee_percent: int
    """Of the fee."""
    compounding_fee_bps: int
    """Of what the protocol leaves of the fee: this part stays in token_b_amount. 0 in a price range."""
    activation_type: ActivationType
    activation_point: int
    """Slot or unix seconds from which swaps are allowed."""
    fee_version: int
    """0: the fee is at most 50 %; 1: at most 99 %."""
    enabled: bool = True
    liquidity: int = 0
    """sqrt(a*b) in Q64; what a price range trades with."""
    protocol_b_fee: int = 0
    """Accrued for the protocol, in token b."""
    lp_b_fee: int = 0
    """Accrued for liquidity providers so far, compounded or claimable, in token b."""
    fee_b_per_liquidity: int = 0
    """Claimable per unit of liquidity, Q128."""
    collect_fee_mode: CollectFeeMode = CollectFeeMode.COMPOUNDING
    sqrt_min_price: int = 0
    """Where the price range begins, Q64; this and its end do not concern a compounding pool."""
    sqrt_max_price: int = _U128_MAX
    protocol_a_fee: int = 0
    lp_a_fee: int = 0
    fee_a_per_liquidity: int = 0

    def quote_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> SwapQuote:
        """Return what spending exactly `input_amount` comes to; the output may be 0. Raises SwapError."""
        return self._quoted(a_to_b, self._spend(a_to_b, input_amount, clock))

    def quote_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> SwapQuote:
        """Return what receiving exactly `output_amount` comes to. Raises SwapError."""
        return self._quoted(a_to_b, self._buy(a_to_b, output_amount, clock))

    def swap_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend exactly `input_amount`; the output may be 0, as the program allows. Raises SwapError."""
        return self._swapped(a_to_b, self._spend(a_to_b, input_amount, clock), clock)

    def swap_partial_fill(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend `input_amount`, or as much of it as the price range takes. Raises SwapError."""
        return self._swapped(a_to_b, self._spend(a_to_b, input_amount, clock, partial_fill=True), clock)

    def swap_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> Swap:
        """Receive exactly `output_amount`. Raises SwapError."""
        return self._swapped(a_to_b, self._buy(a_to_b, output_amount, clock), clock)

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        if self.collect_fee_mode is _COMPOUNDING:
            price = (self.token_b_amount, self.token_a_amount)
        else:
            price = (self.sqrt_price * self.sqrt_price, 1 << 128)
        return price if a_to_b else price[::-1]

    def segments(self, a_to_b: bool, clock: Clock) -> Iterator[Segment]:
        """Yield the whole curve; nothing where the pool does not trade.

        It is one segment, cut into one for every step of the fee where that grows with the amount.
        """
        try:
            elapsed = self._elapsed(clock)
        except SwapError:
            return
        if self.collect_fee_mode is _COMPOUNDING:
            kept = 1 - self._fee_numerator(a_to_b, elapsed, gross=0) / FEE_ONE
            if a_to_b:
                yield constant_product_segment(self.token_a_amount, self.token_b_amount, 1.0, kept)
            else:
                yield constant_product_segment(self.token_b_amount, self.token_a_amount, kept, 1.0)
            return
        liquidity = self.liquidity / _Q64
        if a_to_b:
            start, last = _Q64 / self.sqrt_price, _Q64 / self.sqrt_min_price
        else:
            start, last = self.sqrt_price / _Q64, self.sqrt_max_price / _Q64
        for kept, net in self._kept_along(a_to_b, elapsed):
            if start >= last:
                return
            end = min(start + net / liquidity, last)
            if self._fee_on_output(a_to_b):
                yield liquidity_segment(liquidity, start, end, output_kept=kept)
            else:
                yield liquidity_segment(liquidity, start, end, input_kept=kept)
            start = end

    def _kept_along(self, a_to_b: bool, elapsed: int) -> Iterator[tuple[float, float]]:
        """Yield what part the fee leaves and for how much input without it, in the order of a swap."""
        base_fee = self.base_fee
        if not (isinstance(base_fee, RateLimiter) and base_fee.applies(a_to_b, elapsed)):
            yield 1 - self._fee_numerator(a_to_b, elapsed, gross=0) / FEE_ONE, inf
            return
        dynamic_fee = self.dynamic_fee.numerator() if self.dynamic_fee is not None else 0
        for base, gross in base_fee.marginal_numerators():
            kept = 1 - min(base + dynamic_fee, _MAX_FEE_BY_VERSION[self.fee_version]) / FEE_ONE
            yield kept, gross * kept

    def _elapsed(self, clock: Clock) -> int:
        """Return slots or seconds since the pool opened. Raises SwapError where it does not trade."""
        if not self.enabled:
            raise SwapError(SwapRefusal.DISABLED, "has swaps switched off")
        now = clock.slot if self.activation_type is _SLOT else clock.unix_timestamp
        if now < self.activation_point:
            raise SwapError(SwapRefusal.NOT_OPEN, "has not opened yet")
        if self.collect_fee_mode is _COMPOUNDING:
            empty = self.token_a_amount <= 0 or self.token_b_amount <= 0
        else:
            empty = self.liquidity <= 0
        if empty:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "is empty")
        return now - self.activation_point

    def _fee_on_output(self, a_to_b: bool) -> bool:
        return a_to_b or self.collect_fee_mode is _OUTPUT

    def _fee_numerator(self, a_to_b: bool, elapsed: int, *, gross: int = 0, net: int = 0) -> int:
        """Return the whole fee per 10**9 for an input with the fee (gross) or without it (net)."""
        base_fee = self.base_fee
        if isinstance(base_fee, BaseFee):
            total = base_fee.numerator(elapsed)
        elif not base_fee.applies(a_to_b, elapsed):
            total = base_fee.cliff_fee_numerator
        else:
            total = base_fee.numerator_of_net(net) if net else base_fee.numerator(gross)
        if self.dynamic_fee is not None:
            total += self.dynamic_fee.numerator()
        most = _MAX_FEE_BY_VERSION[self.fee_version]
        return total if total < most else most

    def _spend(
        self, a_to_b: bool, input_amount: int, clock: Clock, *, partial_fill: bool = False
    ) -> CurveSwap:
        elapsed = self._elapsed(clock)
        if input_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was offered nothing")
        fee_numerator = self._fee_numerator(a_to_b, elapsed, gross=input_amount)
        if self._fee_on_output(a_to_b):
            net, gross_out, sqrt_price = self._output_for(a_to_b, input_amount, partial_fill)
            fee = ceil_div(gross_out * fee_numerator, FEE_ONE)
            return self._exchanged(a_to_b, net, gross_out, fee, True, sqrt_price)
        fee = ceil_div(input_amount * fee_numerator, FEE_ONE)
        offered = input_amount - fee
        net, gross_out, sqrt_price = self._output_for(a_to_b, offered, partial_fill)
        if net < offered:
            kept = FEE_ONE - self._fee_numerator(a_to_b, elapsed, net=net)
            fee = ceil_div(net * FEE_ONE, kept) - net
        return self._exchanged(a_to_b, net, gross_out, fee, False, sqrt_price)

    def _buy(self, a_to_b: bool, output_amount: int, clock: Clock) -> CurveSwap:
        elapsed = self._elapsed(clock)
        if output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was asked for nothing")
        if self._fee_on_output(a_to_b):
            kept = FEE_ONE - self._fee_numerator(a_to_b, elapsed, gross=0)
            gross_out = ceil_div(output_amount * FEE_ONE, kept)
            net, sqrt_price = self._input_for(a_to_b, gross_out)
            return self._exchanged(a_to_b, net, gross_out, gross_out - output_amount, True, sqrt_price)
        net, sqrt_price = self._input_for(a_to_b, output_amount)
        kept = FEE_ONE - self._fee_numerator(a_to_b, elapsed, net=net)
        fee = ceil_div(net * FEE_ONE, kept) - net
        return self._exchanged(a_to_b, net, output_amount, fee, False, sqrt_price)

    def _output_for(self, a_to_b: bool, net: int, partial_fill: bool) -> tuple[int, int, int]:
        """Return how much of an input the curve takes, the output, and the square-root price after.

        The last is 0 in a compounding pool, where the fee has a part in it. Raises SwapError.
        """
        if self.collect_fee_mode is _COMPOUNDING:
            amount_a, amount_b = self.token_a_amount, self.token_b_amount
            if a_to_b:
                return net, net * amount_b // (amount_a + net), 0
            return net, net * amount_a // (amount_b + net), 0
        liquidity, before = self.liquidity, self.sqrt_price
        if a_to_b:
            after = ceil_div(liquidity * before, liquidity + net * before)
            left_range = after < self.sqrt_min_price
            if left_range:
                after = self.sqrt_min_price
            output_amount = liquidity * (before - after) >> 128
        else:
            after = before + (net << 128) // liquidity
            left_range = after > self.sqrt_max_price
            if left_range:
                after = self.sqrt_max_price
            output_amount = liquidity * (after - before) // (before * after)
        if left_range:
            if not partial_fill:
                raise SwapError(SwapRefusal.PRICE_RANGE, "holds too little of the output token")
            net = self._input_to(a_to_b, after)
        return net, output_amount, after

    def _input_for(self, a_to_b: bool, gross_out: int) -> tuple[int, int]:
        """Return the input an output takes, and the square-root price after as _output_for does.

        Raises SwapError.
        """
        if self.collect_fee_mode is _COMPOUNDING:
            amounts = self.token_a_amount, self.token_b_amount
            reserve_in, reserve_out = amounts if a_to_b else amounts[::-1]
            if gross_out >= reserve_out:
                raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
            return ceil_div(reserve_in * gross_out, reserve_out - gross_out), 0
        liquidity, before = self.liquidity, self.sqrt_price
        if a_to_b:
            after = before - ceil_div(gross_out << 128, liquidity)
            exhausted, left_range = after <= 0, after < self.sqrt_min_price
        else:
            rest = liquidity - gross_out * before
            exhausted = rest <= 0
            after = 0 if exhausted else ceil_div(liquidity * before, rest)
            left_range = after > self.sqrt_max_price
        if exhausted:
            # Not even an endless range would hold it: the program's arithmetic fails before its check.
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
        if left_range:
            raise SwapError(SwapRefusal.PRICE_RANGE, "holds too little of the output token")
        return self._input_to(a_to_b, after), after

    def _input_to(self, a_to_b: bool, after: int) -> int:
        """Return the input that takes the square-root price to `after`, within the range."""
        before = self.sqrt_price
        if a_to_b:
            return ceil_div(self.liquidity * (before - after), before * after)
        return ceil_div(self.liquidity * (after - before), 1 << 128)

    def _exchanged(
        self, a_to_b: bool, net: int, gross_out: int, fee: int, fee_on_output: bool, sqrt_price: int
    ) -> CurveSwap:
        """Return the swap whose input without a fee is `net`, whose output with one `gross_out`.

        Raises SwapError.
        """
        if fee_on_output:
            input_amount, output_amount = net, gross_out - fee
        else:
            input_amount, output_amount = net + fee, gross_out
        protocol_fee = fee * self.protocol_fee_percent // 100
        compounding_fee = (fee - protocol_fee) * self.compounding_fee_bps // _BPS_ONE
        if a_to_b:
            after_a, after_b = self.token_a_amount + net, self.token_b_amount - gross_out + compounding_fee
        else:
            after_a, after_b = self.token_a_amount - gross_out, self.token_b_amount + net + compounding_fee
        if input_amount > U64_MAX or after_a > U64_MAX or after_b > U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot hold so much of the input token")
        return CurveSwap(
            input_amount,
            output_amount,
            fee,
            fee_on_output,
            protocol_fee,
            compounding_fee,
            after_a,
            after_b,
            sqrt_price,
        )

    def _quoted(self, a_to_b: bool, swap: CurveSwap) -> SwapQuote:
        input_amount, output_amount, fee, fee_on_output, _, _, after_a, after_b, sqrt_price = swap
        # Both prices of a in b, times the same.
        if self.collect_fee_mode is _COMPOUNDING:
            before, after = self.token_b_amount * after_a, after_b * self.token_a_amount
        else:
            before, after = self.sqrt_price * self.sqrt_price, sqrt_price * sqrt_price
        if not a_to_b:
            before, after = after, before
        return SwapQuote(
            input_amount,
            output_amount,
            fee,
            FEE_ON_OUTPUT if fee_on_output else FEE_ON_INPUT,
            parts_per_million(fee, output_amount + fee if fee_on_output else input_amount),
            parts_per_million(before - after, before),
        )

    def _swapped(self, a_to_b: bool, swap: CurveSwap, clock: Clock) -> Swap:
        sqrt_price, after_a, after_b = swap.sqrt_price, swap.token_a_amount, swap.token_b_amount
        if self.collect_fee_mode is _COMPOUNDING:
            sqrt_price = isqrt((after_b << 128) // after_a)
        dynamic_fee = self.dynamic_fee
        if dynamic_fee is not None:
            dynamic_fee = dynamic_fee.after_swap(self.sqrt_price, sqrt_price, clock.unix_timestamp)
        protocol_fee, lp_fee = swap.protocol_fee, swap.fee - swap.protocol_fee
        claiming_fee = lp_fee - swap.compounding_fee
        per_liquidity = (claiming_fee << 128) // self.liquidity if self.liquidity else 0
        # Only where the output is taken as it comes can the fee be in token a.
        in_a = swap.fee_on_output and not a_to_b
        # By position, as names take twice as long.
        after = MeteoraDammV2Pool(
            after_a,
            after_b,
            sqrt_price,
            self.base_fee,
            dynamic_fee,
            self.protocol_fee_percent,
            self.compounding_fee_bps,
            self.activation_type,
            self.activation_point,
            self.fee_version,
            self.enabled,
            self.liquidity,
            self.protocol_b_fee + (0 if in_a else protocol_fee),
            self.lp_b_fee + (0 if in_a else lp_fee),
            self.fee_b_per_liquidity + (0 if in_a else per_liquidity),
            self.collect_fee_mode,
            self.sqrt_min_price,
            self.sqrt_max_price,
            self.protocol_a_fee + (protocol_fee if in_a else 0),
            self.lp_a_fee + (lp_fee if in_a else 0),
            self.fee_a_per_liquidity + (per_liquidity if in_a else 0),
        )
        fee_side = FEE_ON_OUTPUT if swap.fee_on_output else FEE_ON_INPUT
        return Swap(swap.input_amount, swap.output_amount, swap.fee, fee_side, after)


def _power_q64(base: int, exponent: int) -> int:
    """Return base**exponent in Q64, rounded step by step as the program rounds.

    `base` is at most one. Squares would overflow above it, so at one itself the program works on the inverse.
    """
    if exponent == 0:
        return _Q64
    inverted = base >= _Q64
    if inverted:
        base = _U128_MAX // base
    result = _Q64
    while exponent:
        if exponent & 1:
            result = result * base >> 64
        base = base * base >> 64
        exponent >>= 1
    return _U128_MAX // result if inverted else result
