"""Raydium AMM v4: constant product, the whole fee on the input, and all of it stays in the pool.

Fees and inputs are rounded up, outputs down. Source of the mathematics: raydium-io/raydium-amm at 27f461d,
program/src/math.rs and the swap fee in processor.rs (Apache-2.0).
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


class AmmStatus(IntEnum):
    """What a pool allows; the program's other numbers all forbid swaps."""

    INITIALIZED = 1
    """Everything."""
    DISABLED = 2
    """Nothing."""
    SWAP_ONLY = 6
    WAITING_TRADE = 7
    """Swaps from pool_open_time on; the first of them makes it SWAP_ONLY."""


_OPEN: Final = frozenset({AmmStatus.INITIALIZED, AmmStatus.SWAP_ONLY})
"""Swaps are allowed, whatever the time."""


class CurveSwap(NamedTuple):
    """A swap as the curve sees it."""

    input_amount: int
    output_amount: int
    fee: int
    """Part of input_amount."""


def swap_base_in(
    amount_in: int, reserve_in: int, reserve_out: int, fee_numerator: int, fee_denominator: int
) -> CurveSwap:
    """Return the swap that spends `amount_in`; its output may be 0."""
    fee = ceil_div(amount_in * fee_numerator, fee_denominator)
    net = amount_in - fee
    return CurveSwap(amount_in, net * reserve_out // (reserve_in + net), fee)


def swap_base_out(
    amount_out: int, reserve_in: int, reserve_out: int, fee_numerator: int, fee_denominator: int
) -> CurveSwap:
    """Return the swap that receives `amount_out`. Raises SwapError."""
    if amount_out >= reserve_out:
        raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
    if fee_numerator >= fee_denominator:
        raise SwapError(SwapRefusal.OVERFLOW, "keeps everything as its fee")
    net = ceil_div(reserve_in * amount_out, reserve_out - amount_out)
    input_amount = ceil_div(net * fee_denominator, fee_denominator - fee_numerator)
    if input_amount > U64_MAX:
        raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
    return CurveSwap(input_amount, amount_out, input_amount - net)


@frozen
class RaydiumAmmV4Pool:
    """A pool's balances and fee. Token a is its coin, token b its pc."""

    coin_vault: int
    """Balance of the coin vault, in base units."""
    pc_vault: int
    need_take_pnl_coin: int = 0
    """Lies in the vault for others and is not traded with."""
    need_take_pnl_pc: int = 0
    swap_fee_numerator: int = 25
    swap_fee_denominator: int = 10_000
    status: int = AmmStatus.SWAP_ONLY
    pool_open_time: int = 0
    """Unix seconds; says something only while the pool is WAITING_TRADE."""

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
        if self.swap_fee_numerator < self.swap_fee_denominator:
            kept = 1 - self.swap_fee_numerator / self.swap_fee_denominator
            yield constant_product_segment(reserve_in, reserve_out, kept, 1.0)

    def _reserves(self, a_to_b: bool) -> tuple[int, int]:
        """Return what is traded with: what comes in, what goes out."""
        coin, pc = self.coin_vault - self.need_take_pnl_coin, self.pc_vault - self.need_take_pnl_pc
        if coin <= 0 or pc <= 0:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "is empty")
        return (coin, pc) if a_to_b else (pc, coin)

    def _check_open(self, clock: Clock) -> None:
        if self.status in _OPEN:
            return
        if self.status != AmmStatus.WAITING_TRADE:
            raise SwapError(SwapRefusal.DISABLED, "has swaps switched off")
        if clock.unix_timestamp < self.pool_open_time:
            raise SwapError(SwapRefusal.NOT_OPEN, "has not opened yet")

    def _spend(self, a_to_b: bool, input_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if input_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was offered nothing")
        reserve_in, reserve_out = self._reserves(a_to_b)
        swap = swap_base_in(
            input_amount, reserve_in, reserve_out, self.swap_fee_numerator, self.swap_fee_denominator
        )
        if swap.output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_OUTPUT, "gives nothing for so little")
        return self._checked(a_to_b, swap)

    def _buy(self, a_to_b: bool, output_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was asked for nothing")
        reserve_in, reserve_out = self._reserves(a_to_b)
        swap = swap_base_out(
            output_amount, reserve_in, reserve_out, self.swap_fee_numerator, self.swap_fee_denominator
        )
        return self._checked(a_to_b, swap)

    def _checked(self, a_to_b: bool, swap: CurveSwap) -> CurveSwap:
        if (self.coin_vault if a_to_b else self.pc_vault) + swap.input_amount > U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot hold so much of the input token")
        return swap

    def _quoted(self, a_to_b: bool, swap: CurveSwap) -> SwapQuote:
        input_amount, output_amount, fee = swap
        reserve_in, reserve_out = self._reserves(a_to_b)
        before, after = (reserve_in + input_amount) * reserve_out, reserve_in * (reserve_out - output_amount)
        return SwapQuote(
            input_amount,
            output_amount,
            fee,
            FEE_ON_INPUT,
            parts_per_million(fee, input_amount),
            parts_per_million(before - after, before),
        )

    def _swapped(self, a_to_b: bool, swap: CurveSwap) -> Swap:
        coin_vault, pc_vault = self.coin_vault, self.pc_vault
        if a_to_b:
            coin_vault, pc_vault = coin_vault + swap.input_amount, pc_vault - swap.output_amount
        else:
            coin_vault, pc_vault = coin_vault - swap.output_amount, pc_vault + swap.input_amount
        waiting = self.status == AmmStatus.WAITING_TRADE
        after = RaydiumAmmV4Pool(
            coin_vault,
            pc_vault,
            self.need_take_pnl_coin,
            self.need_take_pnl_pc,
            self.swap_fee_numerator,
            self.swap_fee_denominator,
            AmmStatus.SWAP_ONLY if waiting else self.status,
            self.pool_open_time,
        )
        return Swap(swap.input_amount, swap.output_amount, swap.fee, FEE_ON_INPUT, after)
