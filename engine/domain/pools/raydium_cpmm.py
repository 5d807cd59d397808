"""Raydium CPMM: constant product, trade fee on the input, an optional creator fee on either leg.

Source of the mathematics: raydium-io/raydium-cp-swap at 609780f, programs/cp-swap/src/curve and
instructions/swap_base_{input,output}.rs (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from engine.domain.frozen import frozen
from engine.domain.pools.pool import (
    FEE_ON_INPUT,
    U64_MAX,
    Clock,
    Segment,
    Swap,
    SwapError,
    SwapQuote,
    SwapRefusal,
    ceil_div,
    constant_product_segment,
    parts_per_million,
)

RATE_ONE: Final = 1_000_000
"""Rates are per this many."""
_U128_MAX: Final = 2**128 - 1
SWAP_DISABLED: Final = 4
"""The bit of `status` that switches swaps off."""


class CreatorFeeOn(IntEnum):
    """Which token the creator fee is taken in."""

    INPUT = 0
    ONLY_TOKEN_0 = 1
    ONLY_TOKEN_1 = 2


_INPUT: Final = CreatorFeeOn.INPUT
_ONLY_TOKEN_0: Final = CreatorFeeOn.ONLY_TOKEN_0


@frozen
class Rates:
    """Per million."""

    trade: int
    """Of the input."""
    creator: int
    """Of the input or the output; 0 where the pool has no creator fee."""
    protocol: int
    """Of the trade fee."""
    fund: int
    """Of the trade fee."""


class CurveSwap(NamedTuple):
    """A swap as the curve sees it, oriented: `input` is whichever token comes in."""

    input_amount: int
    output_amount: int
    trade_fee: int
    """Includes protocol_fee and fund_fee; the rest of it stays in the pool."""
    protocol_fee: int
    fund_fee: int
    creator_fee: int
    new_reserve_in: int
    """Without the trade fee that stays."""
    new_reserve_out: int


def swap_base_input(
    amount_in: int, reserve_in: int, reserve_out: int, rates: Rates, creator_fee_on_input: bool
) -> CurveSwap:
    """Return the swap that spends `amount_in`; its output may be 0. Raises SwapError."""
    if creator_fee_on_input:
        fee = ceil_div(amount_in * (rates.trade + rates.creator), RATE_ONE)
        trade_fee, creator_fee = _split_input_fee(fee, rates)
        net = amount_in - fee
        output_amount = gross_out = net * reserve_out // (reserve_in + net)
    else:
        trade_fee = ceil_div(amount_in * rates.trade, RATE_ONE)
        net = amount_in - trade_fee
        gross_out = net * reserve_out // (reserve_in + net)
        creator_fee = ceil_div(gross_out * rates.creator, RATE_ONE)
        output_amount = gross_out - creator_fee
    return CurveSwap(
        amount_in,
        output_amount,
        trade_fee,
        trade_fee * rates.protocol // RATE_ONE,
        trade_fee * rates.fund // RATE_ONE,
        creator_fee,
        reserve_in + net,
        reserve_out - gross_out,
    )


def swap_base_output(
    amount_out: int, reserve_in: int, reserve_out: int, rates: Rates, creator_fee_on_input: bool
) -> CurveSwap:
    """Return the swap that receives `amount_out`. Its input may not fit a u64. Raises SwapError."""
    gross_out = amount_out if creator_fee_on_input else _before_fee(amount_out, rates.creator)
    if gross_out >= reserve_out:
        raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
    net = ceil_div(reserve_in * gross_out, reserve_out - gross_out)
    if creator_fee_on_input:
        input_amount = _before_fee(net, _input_rate(rates))
        trade_fee, creator_fee = _split_input_fee(input_amount - net, rates)
    else:
        input_amount = _before_fee(net, rates.trade)
        trade_fee, creator_fee = input_amount - net, gross_out - amount_out
    return CurveSwap(
        input_amount,
        amount_out,
        trade_fee,
        _u128(trade_fee * rates.protocol) // RATE_ONE,
        _u128(trade_fee * rates.fund) // RATE_ONE,
        creator_fee,
        reserve_in + net,
        reserve_out - gross_out,
    )


def _input_rate(rates: Rates) -> int:
    return rates.trade + rates.creator


def _split_input_fee(fee: int, rates: Rates) -> tuple[int, int]:
    """Return the trade and the creator part of a fee taken from the input at the sum of both rates."""
    if rates.creator == 0 < rates.trade:
        return fee, 0
    total_rate = _input_rate(rates)
    if total_rate == 0:
        # The program divides by the sum of the rates, and fails where it is zero.
        raise SwapError(SwapRefusal.UNDEFINED, "charges no fee, and its program fails without one")
    creator_fee = _u128(fee * rates.creator) // total_rate
    return fee - creator_fee, creator_fee


def _before_fee(net: int, rate: int) -> int:
    """Return the least amount that leaves at least `net` after a fee of `rate`."""
    if rate == 0:
        return net
    if rate >= RATE_ONE:
        raise SwapError(SwapRefusal.OVERFLOW, "keeps everything as its fee")
    return ceil_div(_u128(net * RATE_ONE), RATE_ONE - rate)


def _u128(product: int) -> int:
    """Return the product as the program keeps it; it fails where 128 bits do not hold it."""
    if product > _U128_MAX:
        raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
    return product


@frozen
class RaydiumCpmmPool:
    """A pool's balances and rates. Fees accrued for others lie in the vaults but are not traded with."""

    vault_0: int
    """Balance of the vault of token 0, in base units."""
    vault_1: int
    rates: Rates
    creator_fee_on: CreatorFeeOn = CreatorFeeOn.INPUT
    protocol_fees_0: int = 0
    protocol_fees_1: int = 0
    fund_fees_0: int = 0
    fund_fees_1: int = 0
    creator_fees_0: int = 0
    creator_fees_1: int = 0
    status: int = 0
    """Bits that switch off deposits (1), withdrawals (2) and swaps (4)."""
    open_time: int = 0
    """Unix seconds."""

    @property
    def reserve_0(self) -> int:
        """What of token 0 is traded with, in base units."""
        return self.vault_0 - self.protocol_fees_0 - self.fund_fees_0 - self.creator_fees_0

    @property
    def reserve_1(self) -> int:
        """What of token 1 is traded with, in base units."""
        return self.vault_1 - self.protocol_fees_1 - self.fund_fees_1 - self.creator_fees_1

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

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        reserve_in, reserve_out = self._reserves(a_to_b)
        return reserve_out, reserve_in

    def segments(self, a_to_b: bool, clock: Clock) -> Iterator[Segment]:
        """Yield the whole curve, which is one segment; nothing where the pool does not trade."""
        try:
            self._check_open(clock)
            reserve_in, reserve_out = self._reserves(a_to_b)
        except SwapError:
            return
        creator_on_input = self._creator_fee_on_input(a_to_b)
        input_rate = _input_rate(self.rates) if creator_on_input else self.rates.trade
        output_rate = 0 if creator_on_input else self.rates.creator
        free = creator_on_input and input_rate == 0  # which makes the program fail
        if free or max(input_rate, output_rate) >= RATE_ONE:
            return
        yield constant_product_segment(
            reserve_in, reserve_out, 1 - input_rate / RATE_ONE, 1 - output_rate / RATE_ONE
        )

    def _reserves(self, a_to_b: bool) -> tuple[int, int]:
        # As reserve_0 and reserve_1 have it, whose look-ups take as long as the rest of a quote's balances.
        reserve_0 = self.vault_0 - self.protocol_fees_0 - self.fund_fees_0 - self.creator_fees_0
        reserve_1 = self.vault_1 - self.protocol_fees_1 - self.fund_fees_1 - self.creator_fees_1
        if reserve_0 <= 0 or reserve_1 <= 0:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "is empty")
        return (reserve_0, reserve_1) if a_to_b else (reserve_1, reserve_0)

    def _creator_fee_on_input(self, a_to_b: bool) -> bool:
        if self.creator_fee_on is _INPUT:
            return True
        return a_to_b is (self.creator_fee_on is _ONLY_TOKEN_0)

    def _check_open(self, clock: Clock) -> None:
        if self.status & SWAP_DISABLED:
            raise SwapError(SwapRefusal.DISABLED, "has swaps switched off")
        if clock.unix_timestamp < self.open_time:
            raise SwapError(SwapRefusal.NOT_OPEN, "has not opened yet")

    def _spend(self, a_to_b: bool, input_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if input_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was offered nothing")
        reserve_in, reserve_out = self._reserves(a_to_b)
        on_input = self._creator_fee_on_input(a_to_b)
        swap = swap_base_input(input_amount, reserve_in, reserve_out, self.rates, on_input)
        if swap.output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_OUTPUT, "gives nothing for so little")
        return self._checked(a_to_b, swap)

    def _buy(self, a_to_b: bool, output_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was asked for nothing")
        reserve_in, reserve_out = self._reserves(a_to_b)
        on_input = self._creator_fee_on_input(a_to_b)
        return self._checked(
            a_to_b, swap_base_output(output_amount, reserve_in, reserve_out, self.rates, on_input)
        )

    def _checked(self, a_to_b: bool, swap: CurveSwap) -> CurveSwap:
        if (self.vault_0 if a_to_b else self.vault_1) + swap.input_amount > U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot hold so much of the input token")
        return swap

    def _quoted(self, a_to_b: bool, swap: CurveSwap) -> SwapQuote:
        paid, given, trade_fee, protocol_fee, fund_fee, creator_fee, after_in, after_out = swap
        # A creator fee on the output is out of what is given already; a quote tells one leg's fee.
        on_input = self._creator_fee_on_input(a_to_b)
        fee = trade_fee + creator_fee if on_input else trade_fee
        before_in = after_in - paid + fee
        before_out = after_out + given if on_input else after_out + given + creator_fee
        # What of the trade fee others get lies in the vault, but is not traded with.
        after_in += trade_fee - protocol_fee - fund_fee
        if after_in <= 0 or after_out <= 0:  # as rates of more than 100 % leave it
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "is empty")
        before = after_in * before_out
        return SwapQuote(
            paid,
            given,
            fee,
            FEE_ON_INPUT,
            parts_per_million(fee, paid),
            parts_per_million(before - before_in * after_out, before),
        )

    def _swapped(self, a_to_b: bool, swap: CurveSwap) -> Swap:
        vault_in, vault_out = (self.vault_0, self.vault_1) if a_to_b else (self.vault_1, self.vault_0)
        vault_in += swap.input_amount
        vault_out -= swap.output_amount
        on_input = self._creator_fee_on_input(a_to_b)
        # Protocol and fund take their parts out of the trade fee, so always on the input.
        protocol_0, protocol_1 = (swap.protocol_fee, 0) if a_to_b else (0, swap.protocol_fee)
        fund_0, fund_1 = (swap.fund_fee, 0) if a_to_b else (0, swap.fund_fee)
        creator_0, creator_1 = (swap.creator_fee, 0) if on_input is a_to_b else (0, swap.creator_fee)
        # By position, as names take a third longer.
        after = RaydiumCpmmPool(
            vault_in if a_to_b else vault_out,
            vault_out if a_to_b else vault_in,
            self.rates,
            self.creator_fee_on,
            self.protocol_fees_0 + protocol_0,
            self.protocol_fees_1 + protocol_1,
            self.fund_fees_0 + fund_0,
            self.fund_fees_1 + fund_1,
            self.creator_fees_0 + creator_0,
            self.creator_fees_1 + creator_1,
            self.status,
            self.open_time,
        )
        # A creator fee on the output is out of output_amount already; a swap tells one leg's fee.
        fee_amount = swap.trade_fee + (swap.creator_fee if on_input else 0)
        return Swap(swap.input_amount, swap.output_amount, fee_amount, FEE_ON_INPUT, after)
