"""Meteora DLMM: bins of constant price side by side, a fee that follows volatility.

A swap goes through the bins from the active one on, x to y (a to b) by falling ids, each at its own price
and its own fee: the base fee plus one that grows with the square of how many bins lie between it and where
the price was when things were last quiet. Outputs are rounded down, inputs and fees up, bin by bin. In-pool
limit orders are not known here; a bin's amounts are without them.

Source of the mathematics: MeteoraAg/dlmm-sdk at fb02e51, commons/src (npm: ISC), quote.rs, extensions and
math/price_math.rs; checked against what the compiled program there answers to swap2 and swap_exact_out2.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from math import sqrt
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
    parts_per_million,
)

FEE_ONE: Final = 1_000_000_000
"""Fees are per this many."""
_MAX_FEE: Final = 100_000_000
_BPS_ONE: Final = 10_000
_Q64: Final = 1 << 64
_U128_MAX: Final = 2**128 - 1
_MAX_BIN_ID_BITS: Final = 19
_ALL_BINS: Final = 1 << _MAX_BIN_ID_BITS + 1


class CollectFeeMode(IntEnum):
    """Which token the fee is taken in."""

    INPUT = 0
    ONLY_Y = 1
    """The output of x to y, the input of y to x."""


_INPUT: Final = CollectFeeMode.INPUT


class ActivationType(IntEnum):
    """What activation_point counts."""

    SLOT = 0
    TIMESTAMP = 1


_SLOT: Final = ActivationType.SLOT


# The few bins that a price moves through are asked for again and again; reckoning one takes 3 us.
@lru_cache(maxsize=1 << 14)
def bin_price(bin_id: int, bin_step: int) -> int:
    """Return base units of y per base unit of x in a bin, Q64: (1 + bin_step/10**4)**bin_id.

    The program takes the power of the inverse, which is below one, by squaring and rounding down at every
    step, and inverts that again for positive ids. Raises OverflowError where 128 bits hold no such price.
    """
    exponent = abs(bin_id)
    if exponent >> _MAX_BIN_ID_BITS:
        raise OverflowError(f"bin id was {bin_id}; must be within {_MAX_BIN_ID_BITS} bits")
    if exponent == 0:
        return _Q64
    square = _U128_MAX // (_Q64 + (bin_step << 64) // _BPS_ONE)
    power = _Q64
    while exponent:
        if exponent & 1:
            power = power * square >> 64
        square = square * square >> 64
        exponent >>= 1
    if power == 0:
        raise OverflowError(f"bin {bin_id} at bin step {bin_step} has no price that 128 bits hold")
    return _U128_MAX // power if bin_id > 0 else power


class Bin(NamedTuple):
    """One price, and what is offered at it. Above the active bin there is only x, below it only y."""

    bin_id: int
    amount_x: int
    """In base units, without fees."""
    amount_y: int
    price: int
    """As bin_price says."""


@frozen
class FeeParameters:
    """What the fee is made of; it stays the same from swap to swap."""

    base_factor: int
    """Times the bin step: the base fee, in 10**-8 of the amount."""
    base_fee_power_factor: int
    """The base fee is ten to this power times as much."""
    filter_period: int
    """Seconds: swaps closer together than this share one reference bin."""
    decay_period: int
    """Seconds after which volatility is forgotten."""
    reduction_factor: int
    """Basis points of volatility that are left between the two."""
    variable_fee_control: int
    max_volatility_accumulator: int
    protocol_share: int
    """Basis points of the fee."""
    collect_fee_mode: CollectFeeMode = CollectFeeMode.INPUT

    def numerator(self, bin_step: int, volatility_accumulator: int) -> int:
        """Return the fee per 10**9."""
        base: int = self.base_factor * bin_step * 10 * 10**self.base_fee_power_factor
        moved = volatility_accumulator * bin_step
        fee = base + ceil_div(self.variable_fee_control * moved * moved, 100_000_000_000)
        return fee if fee < _MAX_FEE else _MAX_FEE


@frozen
class Volatility:
    """How far the price has moved lately, in ten thousandths of a bin."""

    accumulator: int
    """At the bin that the last swap ended in."""
    reference: int
    """What is left of it from before; distance from index_reference comes on top."""
    index_reference: int
    """The bin that was active when things were last quiet."""
    last_update_timestamp: int
    """When a swap last changed the active bin, in unix seconds."""


class CurveSwap(NamedTuple):
    """A swap as the curve sees it."""

    input_amount: int
    output_amount: int
    fee: int
    """Part of input_amount, or what output_amount is without."""
    protocol_fee: int
    """Of the fee."""
    parts: Sequence[tuple[int, int, int]]
    """For each bin on the way, where that is in the pool, what goes in there, and what comes out."""
    end_id: int
    """The bin that it ends in."""
    accumulator: int
    """Of volatility, there."""
    references: tuple[int, int]
    """Of volatility, from which it started, and the bin of that."""


@frozen
class MeteoraDlmmPool:
    """A pool's bins and fees. Token a is its x, token b its y."""

    bin_step: int
    """Basis points between the prices of neighbouring bins."""
    active_id: int
    """Where swaps begin."""
    parameters: FeeParameters
    volatility: Volatility
    bins: tuple[Bin, ...]
    """By rising id; empty ones may be missing. What is beyond the first and the last counts as empty."""
    protocol_fee_x: int = 0
    """Accrued for the protocol, in base units."""
    protocol_fee_y: int = 0
    activation_type: ActivationType = ActivationType.TIMESTAMP
    activation_point: int = 0
    """Slot or unix seconds from which swaps are allowed; 0 in pools of a type that opens at once."""
    enabled: bool = True
    max_bins: int = _ALL_BINS
    """How many bins a swap may come through: what a transaction's compute units are enough for."""

    def quote_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> SwapQuote:
        """Return what spending exactly `input_amount` comes to. Raises SwapError."""
        return self._quoted(a_to_b, self._spend(a_to_b, input_amount, clock))

    def quote_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> SwapQuote:
        """Return what receiving exactly `output_amount` comes to. Raises SwapError."""
        return self._quoted(a_to_b, self._buy(a_to_b, output_amount, clock))

    def swap_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend exactly `input_amount`. Raises SwapError."""
        return self._swapped(a_to_b, self._spend(a_to_b, input_amount, clock), clock)

    def swap_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> Swap:
        """Receive exactly `output_amount`. Raises SwapError.

        The last bin gives all that the input it takes is worth. What of that nobody asked for is part of the
        fee where that is on the output; otherwise it stays in the vault and is nobody's.
        """
        return self._swapped(a_to_b, self._buy(a_to_b, output_amount, clock), clock)

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input in the active bin, before fees."""
        price = bin_price(self.active_id, self.bin_step)
        return (price, _Q64) if a_to_b else (_Q64, price)

    def segments(self, a_to_b: bool, clock: Clock) -> Iterator[Segment]:
        """Yield a jump for every bin; nothing where the pool does not trade.

        The fee may fall on the way to the reference bin, so they need not be sorted by price.
        """
        try:
            self._check_open(clock)
        except SwapError:
            return
        fee_on_input = self._fee_on_input(a_to_b)
        for _, one, accumulator in self._ahead(a_to_b, self._references(clock)):
            kept = 1 - self.parameters.numerator(self.bin_step, accumulator) / FEE_ONE
            price = one.price / _Q64 if a_to_b else _Q64 / one.price
            net = (one.amount_y if a_to_b else one.amount_x) / price
            start = 1 / sqrt(price * kept)
            yield Segment(start, start, 0.0, net / kept if fee_on_input else net)

    def _spend(self, a_to_b: bool, input_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if input_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was offered nothing")
        fee_on_input = self._fee_on_input(a_to_b)
        bin_step, parameters = self.bin_step, self.parameters
        share = parameters.protocol_share
        left, total_output, total_fee, total_protocol_fee = input_amount, 0, 0, 0
        parts = []
        references = self._references(clock)
        for at, one, accumulator in self._ahead(a_to_b, references):
            rate = parameters.numerator(bin_step, accumulator)
            spent, net, gross_out, fee = _spend_in_bin(one, a_to_b, left, rate, fee_on_input)
            left -= spent
            total_output += gross_out if fee_on_input else gross_out - fee
            total_fee += fee
            # So little that all of it is fee brings liquidity providers nothing.
            total_protocol_fee += fee * share // _BPS_ONE if net else fee
            _check_room(one, a_to_b, net)
            parts.append((at, net, gross_out))
            if not left:
                break
        if left:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
        if not total_output:
            raise SwapError(SwapRefusal.ZERO_OUTPUT, "gives nothing for so little")
        return CurveSwap(
            input_amount,
            total_output,
            total_fee,
            total_protocol_fee,
            parts,
            one.bin_id,
            accumulator,
            references,
        )

    def _buy(self, a_to_b: bool, output_amount: int, clock: Clock) -> CurveSwap:
        self._check_open(clock)
        if output_amount <= 0:
            raise SwapError(SwapRefusal.ZERO_AMOUNT, "was asked for nothing")
        fee_on_input = self._fee_on_input(a_to_b)
        bin_step, parameters = self.bin_step, self.parameters
        share = parameters.protocol_share
        left, total_input, total_fee, total_protocol_fee = output_amount, 0, 0, 0
        parts = []
        references = self._references(clock)
        for at, one, accumulator in self._ahead(a_to_b, references):
            rate = parameters.numerator(bin_step, accumulator)
            needed = _input_for(one, a_to_b, left, rate, fee_on_input)
            spent, net, gross_out, fee = _spend_in_bin(one, a_to_b, needed, rate, fee_on_input)
            output = gross_out if fee_on_input else gross_out - fee
            total_input += spent
            total_protocol_fee += fee * share // _BPS_ONE
            if output > left:
                if not fee_on_input:
                    fee += output - left
                    total_protocol_fee += output - left
                output = left
            left -= output
            total_fee += fee
            _check_room(one, a_to_b, net)
            parts.append((at, net, gross_out))
            if not left:
                break
        if left:
            raise SwapError(SwapRefusal.INSUFFICIENT_LIQUIDITY, "holds too little of the output token")
        if total_input > U64_MAX:
            raise SwapError(SwapRefusal.OVERFLOW, "cannot hold so much of the input token")
        return CurveSwap(
            total_input,
            output_amount,
            total_fee,
            total_protocol_fee,
            parts,
            one.bin_id,
            accumulator,
            references,
        )

    def _check_open(self, clock: Clock) -> None:
        if not self.enabled:
            raise SwapError(SwapRefusal.DISABLED, "has swaps switched off")
        now = clock.slot if self.activation_type is _SLOT else clock.unix_timestamp
        if now < self.activation_point:
            raise SwapError(SwapRefusal.NOT_OPEN, "has not opened yet")

    def _fee_on_input(self, a_to_b: bool) -> bool:
        return not a_to_b or self.parameters.collect_fee_mode is _INPUT

    def _references(self, clock: Clock) -> tuple[int, int]:
        """Return the volatility reference and the reference bin as a swap at this time finds them."""
        volatility, parameters = self.volatility, self.parameters
        elapsed = clock.unix_timestamp - volatility.last_update_timestamp
        if elapsed < parameters.filter_period:
            return volatility.reference, volatility.index_reference
        if elapsed < parameters.decay_period:
            return volatility.accumulator * parameters.reduction_factor // _BPS_ONE, self.active_id
        return 0, self.active_id

    def _ahead(self, a_to_b: bool, references: tuple[int, int]) -> Iterator[tuple[int, Bin, int]]:
        """Yield the bins that a swap comes through: where they are, and the volatility accumulator there."""
        bins, active_id = self.bins, self.active_id
        reference, index_reference = references
        most = self.parameters.max_volatility_accumulator
        at = bisect_left(bins, (active_id,))
        if a_to_b:
            # From the active bin or, where that is not held, from the nearest below.
            holds_active = at < len(bins) and bins[at].bin_id == active_id
            ahead = range(at if holds_active else at - 1, -1, -1)
        else:
            ahead = range(at, len(bins))
        left = self.max_bins
        for at in ahead:
            one = bins[at]
            if one.amount_y if a_to_b else one.amount_x:
                if not left:
                    return
                left -= 1
                accumulator = reference + abs(index_reference - one.bin_id) * _BPS_ONE
                yield at, one, accumulator if accumulator < most else most

    def _quoted(self, a_to_b: bool, swap: CurveSwap) -> SwapQuote:
        input_amount, output_amount, fee, _, _, end_id, _, _ = swap
        price_impact_ppm = 0
        if end_id != self.active_id:
            before, after = bin_price(self.active_id, self.bin_step), bin_price(end_id, self.bin_step)
            if not a_to_b:
                before, after = after, before
            price_impact_ppm = parts_per_million(before - after, before)
        on_input = self._fee_on_input(a_to_b)
        return SwapQuote(
            input_amount,
            output_amount,
            fee,
            FEE_ON_INPUT if on_input else FEE_ON_OUTPUT,
            parts_per_million(fee, input_amount if on_input else output_amount + fee),
            price_impact_ppm,
        )

    def _swapped(self, a_to_b: bool, swap: CurveSwap, clock: Clock) -> Swap:
        fee_on_input = self._fee_on_input(a_to_b)
        in_x = a_to_b and fee_on_input
        bins = list(self.bins)
        for at, net, gross_out in swap.parts:
            bins[at] = _moved(bins[at], a_to_b, net, gross_out)
        reference, index_reference = swap.references
        moved = swap.end_id != self.active_id
        # By position, as names take twice as long.
        after = MeteoraDlmmPool(
            self.bin_step,
            swap.end_id,
            self.parameters,
            Volatility(
                swap.accumulator,
                reference,
                index_reference,
                clock.unix_timestamp if moved else self.volatility.last_update_timestamp,
            ),
            tuple(bins),
            self.protocol_fee_x + (swap.protocol_fee if in_x else 0),
            self.protocol_fee_y + (0 if in_x else swap.protocol_fee),
            self.activation_type,
            self.activation_point,
            self.enabled,
            self.max_bins,
        )
        fee_side = FEE_ON_INPUT if fee_on_input else FEE_ON_OUTPUT
        return Swap(swap.input_amount, swap.output_amount, swap.fee, fee_side, after)


def _spend_in_bin(
    one: Bin, a_to_b: bool, amount: int, rate: int, fee_on_input: bool
) -> tuple[int, int, int, int]:
    """Return what a bin takes of an amount: all of it, that without the fee, its output, and the fee.

    The output is with the fee, where that is on it. Raises SwapError.
    """
    price = one.price
    if a_to_b:
        held = one.amount_y
        net_for_all = -((-held << 64) // price)
    else:
        held = one.amount_x
        net_for_all = -(-held * price >> 64)
    if net_for_all > U64_MAX:
        raise SwapError(SwapRefusal.OVERFLOW, "cannot reckon with so large an amount")
    fee = -(-amount * rate // FEE_ONE) if fee_on_input else 0
    net = amount - fee
    if net < net_for_all:
        gross_out = net * price >> 64 if a_to_b else (net << 64) // price
    else:
        gross_out = held
        if net > net_for_all:
            net = net_for_all
            fee = -(-net * rate // (FEE_ONE - rate)) if fee_on_input else 0
            amount = net + fee
    if not fee_on_input:
        fee = -(-gross_out * rate // FEE_ONE)
    return amount, net, gross_out, fee


def _input_for(one: Bin, a_to_b: bool, output: int, rate: int, fee_on_input: bool) -> int:
    """Return the least input for an output from a bin; where it asks for all of it, more than that takes."""
    gross_out = output if fee_on_input else output + ceil_div(output * rate, FEE_ONE - rate)
    if gross_out >= (one.amount_y if a_to_b else one.amount_x):
        return U64_MAX
    net = ceil_div(gross_out << 64, one.price) if a_to_b else -(-gross_out * one.price >> 64)
    return net + ceil_div(net * rate, FEE_ONE - rate) if fee_on_input else net


def _check_room(one: Bin, a_to_b: bool, net: int) -> None:
    """Raise SwapError where the bin cannot hold what goes in."""
    if (one.amount_x if a_to_b else one.amount_y) + net > U64_MAX:
        raise SwapError(SwapRefusal.OVERFLOW, "cannot hold so much of the input token")


def _moved(one: Bin, a_to_b: bool, net: int, gross_out: int) -> Bin:
    """Return the bin with a swap's amounts."""
    if a_to_b:
        return Bin(one.bin_id, one.amount_x + net, one.amount_y - gross_out, one.price)
    return Bin(one.bin_id, one.amount_x - gross_out, one.amount_y + net, one.price)
