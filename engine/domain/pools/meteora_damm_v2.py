"""Meteora DAMM v2 in its compounding mode: constant product on the amounts the pool keeps for itself.

The fee, always in token b, is a base fee that may fall over time plus a dynamic fee that follows
volatility. Formulas checked against what the program answers (swap2 of the compiled program at
MeteoraAg/damm-v2-sdk 1872ee3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from math import isqrt
from typing import Final

from engine.domain.pools.pool import (
    U64_MAX,
    Clock,
    FeeSide,
    Segment,
    Swap,
    SwapError,
    SwapRefusal,
    ceil_div,
    constant_product_segment,
)

FEE_ONE: Final = 1_000_000_000
"""Fees are per this many."""
_BPS_ONE: Final = 10_000
_Q64: Final = 1 << 64
_U128_MAX: Final = 2**128 - 1
_MAX_FEE_BY_VERSION: Final = (500_000_000, 990_000_000)


class BaseFeeMode(IntEnum):
    """How the base fee changes; the program has more modes, for other pools."""

    LINEAR = 0
    EXPONENTIAL = 1


class ActivationType(IntEnum):
    """What activation_point and period_frequency count."""

    SLOT = 0
    TIMESTAMP = 1


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
        return replace(
            self,
            sqrt_price_reference=reference,
            volatility_reference=volatility,
            volatility_accumulator=min(volatility + moved, self.max_volatility_accumulator),
            last_update_timestamp=unix_timestamp if swap_moved_price else self.last_update_timestamp,
        )

    def _steps(self, one_price: int, other_price: int) -> int:
        """Return how many bin steps lie between two square-root prices."""
        lower, upper = sorted((one_price, other_price))
        # Twice, because the price is the square of what is compared.
        return 2 * (((upper << 64) // lower - _Q64) // self.bin_step_u128)


@dataclass(frozen=True, slots=True)
class MeteoraDammV2Pool:
    """A compounding pool. What is claimable by others lies in its vaults, outside of these amounts."""

    token_a_amount: int
    """What is traded with, in base units."""
    token_b_amount: int
    sqrt_price: int
    """Of a in b, Q64."""
    base_fee: BaseFee
    dynamic_fee: DynamicFee | None
    """None: the pool has none."""
    protocol_fee_percent: int
    """Of the fee."""
    compounding_fee_bps: int
    """Of what the protocol leaves of the fee: this part stays in token_b_amount."""
    activation_type: ActivationType
    activation_point: int
    """Slot or unix seconds from which swaps are allowed."""
    fee_version: int
    """0: the fee is at most 50 %; 1: at most 99 %."""
    enabled: bool = True
    liquidity: int = 0
    protocol_b_fee: int = 0
    """Accrued for the protocol, in token b."""
    lp_b_fee: int = 0
    """Accrued for liquidity providers so far, compounded or claimable, in token b."""
    fee_b_per_liquidity: int = 0
    """Claimable per unit of liquidity, Q128."""

    def swap_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend exactly `input_amount`; the output may be 0, as the program allows. Raises SwapError."""
        fee_numerator = self._fee_numerator(clock)
        if input_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was offered nothing")
        amount_a, amount_b = self.token_a_amount, self.token_b_amount
        if a_to_b:
            gross_out = input_amount * amount_b // (amount_a + input_amount)
            fee = ceil_div(gross_out * fee_numerator, FEE_ONE)
            return self._swapped(
                True, input_amount, gross_out - fee, fee, amount_a + input_amount, amount_b - gross_out, clock
            )
        fee = ceil_div(input_amount * fee_numerator, FEE_ONE)
        net = input_amount - fee
        output_amount = net * amount_a // (amount_b + net)
        return self._swapped(
            False, input_amount, output_amount, fee, amount_a - output_amount, amount_b + net, clock
        )

    def swap_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> Swap:
        """Receive exactly `output_amount`. Raises SwapError."""
        fee_numerator = self._fee_numerator(clock)
        if output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was asked for nothing")
        amount_a, amount_b = self.token_a_amount, self.token_b_amount
        if a_to_b:
            gross_out = ceil_div(output_amount * FEE_ONE, FEE_ONE - fee_numerator)
            if gross_out >= amount_b:
                raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
            input_amount = ceil_div(amount_a * gross_out, amount_b - gross_out)
            return self._swapped(
                True,
                input_amount,
                output_amount,
                gross_out - output_amount,
                amount_a + input_amount,
                amount_b - gross_out,
                clock,
            )
        if output_amount >= amount_a:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
        net = ceil_div(amount_b * output_amount, amount_a - output_amount)
        input_amount = ceil_div(net * FEE_ONE, FEE_ONE - fee_numerator)
        return self._swapped(
            False,
            input_amount,
            output_amount,
            input_amount - net,
            amount_a - output_amount,
            amount_b + net,
            clock,
        )

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        amounts = (self.token_b_amount, self.token_a_amount)
        return amounts if a_to_b else amounts[::-1]

    def segments(self, a_to_b: bool, clock: Clock) -> Iterator[Segment]:
        """Yield the whole curve, which is one segment; nothing where the pool does not trade."""
        try:
            kept = 1 - self._fee_numerator(clock) / FEE_ONE
        except SwapError:
            return
        if a_to_b:
            yield constant_product_segment(self.token_a_amount, self.token_b_amount, 1.0, kept)
        else:
            yield constant_product_segment(self.token_b_amount, self.token_a_amount, kept, 1.0)

    def _fee_numerator(self, clock: Clock) -> int:
        """Return the whole fee per 10**9. Raises SwapError where the pool does not trade."""
        if not self.enabled:
            raise SwapError(SwapRefusal.DISABLED, "has swaps switched off")
        now = clock.slot if self.activation_type is ActivationType.SLOT else clock.unix_timestamp
        if now < self.activation_point:
            raise SwapError(SwapRefusal.NOT_OPEN, "has not opened yet")
        if self.token_a_amount <= 0 or self.token_b_amount <= 0:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "is empty")
        total = self.base_fee.numerator(now - self.activation_point)
        if self.dynamic_fee is not None:
            total += self.dynamic_fee.numerator()
        return min(total, _MAX_FEE_BY_VERSION[self.fee_version])

    def _swapped(
        self,
        a_to_b: bool,
        input_amount: int,
        output_amount: int,
        fee: int,
        after_a: int,
        after_b: int,
        clock: Clock,
    ) -> Swap:
        """Return the swap; `after_b` is without the part of the fee that the pool keeps for itself."""
        protocol_fee = fee * self.protocol_fee_percent // 100
        compounding_fee = (fee - protocol_fee) * self.compounding_fee_bps // _BPS_ONE
        claiming_fee = fee - protocol_fee - compounding_fee
        after_b += compounding_fee
        if max(input_amount, after_a, after_b) > U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot hold so much of the input token")
        sqrt_price = isqrt((after_b << 128) // after_a)
        dynamic_fee = self.dynamic_fee
        if dynamic_fee is not None:
            dynamic_fee = dynamic_fee.after_swap(self.sqrt_price, sqrt_price, clock.unix_timestamp)
        after = replace(
            self,
            token_a_amount=after_a,
            token_b_amount=after_b,
            sqrt_price=sqrt_price,
            dynamic_fee=dynamic_fee,
            protocol_b_fee=self.protocol_b_fee + protocol_fee,
            lp_b_fee=self.lp_b_fee + compounding_fee + claiming_fee,
            fee_b_per_liquidity=self.fee_b_per_liquidity
            + ((claiming_fee << 128) // self.liquidity if self.liquidity else 0),
        )
        return Swap(
            input_amount=input_amount,
            output_amount=output_amount,
            fee_amount=fee,
            fee_side=FeeSide.OUTPUT if a_to_b else FeeSide.INPUT,
            pool=after,
        )


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
