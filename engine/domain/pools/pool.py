"""What curves share: the Pool they are, SwapQuote and Swap that they answer, the SwapError they refuse with.

And the Segments a curve consists of, which is all that splitting an order over pools has to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from math import inf, sqrt
from typing import Final, NamedTuple, Protocol

from engine.domain.frozen import frozen

U64_MAX: Final = 2**64 - 1
"""The most base units an amount can be on chain."""
_PPM_ONE: Final = 1_000_000


class FeeSide(StrEnum):
    """Which leg of a swap its fee is taken from."""

    INPUT = "input"
    OUTPUT = "output"


FEE_ON_INPUT: Final = FeeSide.INPUT
FEE_ON_OUTPUT: Final = FeeSide.OUTPUT
"""By themselves, as what quotes look at of other enums is too: in its class a member takes 0.1 us to look up,
in Python 3.11, and a quote asks for up to six of them."""


class SwapRefusal(StrEnum):
    """Why a program would refuse a swap. Its venue knows the error code."""

    ZERO_AMOUNT = "zero_amount"
    """Nothing goes in."""
    ZERO_OUTPUT = "zero_output"
    """So little goes in that nothing comes out."""
    INSUFFICIENT_LIQUIDITY = "insufficient_liquidity"
    """More is asked for than the pool holds."""
    PRICE_RANGE = "price_range"
    """The price would leave the range that the pool trades in."""
    OVERFLOW = "overflow"
    """An amount does not fit what the program keeps it in."""
    UNDEFINED = "undefined"
    """The program's own formula has no answer."""
    DISABLED = "disabled"
    """Swaps are switched off in this pool."""
    NOT_OPEN = "not_open"
    """The pool opens later."""


class SwapError(Exception):
    """The pool cannot do this swap; the message is a clause for users: "holds too little"."""

    def __init__(self, reason: SwapRefusal, message: str) -> None:
        self.reason = reason
        super().__init__(message)


@frozen
class Clock:
    """When a swap happens, by the chain's clock."""

    slot: int
    unix_timestamp: int
    """In seconds."""


class SwapQuote(NamedTuple):
    """What a swap would come to, without the pool that it would leave behind."""

    input_amount: int
    """All that the user pays, fee included."""
    output_amount: int
    """All that the user receives, fee deducted."""
    fee_amount: int
    """Base units of the leg that `fee_side` names."""
    fee_side: FeeSide
    fee_ppm: int
    """The fee in millionths of the leg it is taken from, rounded up."""
    price_impact_ppm: int
    """By how many millionths the pool's own price, before fees, gets worse; rounded up."""


@frozen
class Swap:
    """One swap, done: what it costs, what it gives, and the pool it leaves behind."""

    input_amount: int
    """All that the user pays, fee included."""
    output_amount: int
    """All that the user receives, fee deducted."""
    fee_amount: int
    """Base units of the leg that `fee_side` names."""
    fee_side: FeeSide
    pool: Pool
    """The pool after."""

    @property
    def fee_ppm(self) -> int:
        """The fee in millionths of the leg it is taken from, rounded up."""
        gross = self.input_amount if self.fee_side is FEE_ON_INPUT else self.output_amount + self.fee_amount
        return parts_per_million(self.fee_amount, gross)


class Segment(NamedTuple):
    """A stretch of a curve: what goes in is a linear function of s = 1/sqrt(output per input at the margin).

    From start to s, slope * (s - start) goes in, and that divided by (start * s) comes out. Where start and
    end are the same, `jump` goes in at that one price and jump / start**2 comes out. s grows as the price
    worsens, so the least start is the best price. Fees are in it, rounding is not: no swap gets more than
    this says. Floating point, as it only says where to look; what a swap gives is for the curve to say.
    """

    start: float
    """1/sqrt(base units of output per base unit of input) at its beginning."""
    end: float
    """At its end; infinite for constant product."""
    slope: float
    """Base units of input, fee included, per unit of s; 0 for a jump."""
    jump: float = 0.0
    """Base units of input, fee included, at one price; 0 unless start is end."""

    @property
    def input_amount(self) -> float:
        """All that it takes, fee included."""
        return self.jump or self.slope * (self.end - self.start)


def liquidity_segment(
    liquidity: float,
    start: float,
    end: float = inf,
    *,
    input_kept: float = 1.0,
    output_kept: float = 1.0,
) -> Segment:
    """Return the segment of constant liquidity sqrt(x*y) between two prices.

    Prices are sqrt(input per output) without fees; end is beyond start. Kept is what the fee leaves, as a
    part of one.
    """
    root = sqrt(input_kept * output_kept)
    return Segment(start / root, end / root, liquidity * sqrt(output_kept / input_kept))


def constant_product_segment(
    reserve_in: int, reserve_out: int, input_kept: float, output_kept: float
) -> Segment:
    """Return the one segment of x*y = k. Kept is what the fee leaves, as a part of one."""
    return liquidity_segment(
        sqrt(reserve_in * reserve_out),
        sqrt(reserve_in / reserve_out),
        input_kept=input_kept,
        output_kept=output_kept,
    )


class Pool(Protocol):
    """A pool at one moment. Token a is the program's first mint (its token 0, its token A).

    A swap answers a new pool; the one it was asked of stays as it was. A quote has the figures of the same
    swap, or its refusal, and makes no pool: whoever compares pools throws all of those away.
    """

    def quote_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> SwapQuote:
        """Return what spending exactly `input_amount` comes to. Raises SwapError."""
        ...

    def quote_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> SwapQuote:
        """Return what receiving exactly `output_amount` comes to. Raises SwapError."""
        ...

    def swap_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend exactly `input_amount`. Raises SwapError."""
        ...

    def swap_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> Swap:
        """Receive exactly `output_amount`. Raises SwapError."""
        ...

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        ...

    def segments(self, a_to_b: bool, clock: Clock) -> Iterator[Segment]:
        """Yield the curve in the order a swap goes through it; nothing where the pool does not trade.

        Enough for an order are the first ones that together take all of it. Where a fee falls along the way
        they are not sorted by price; sorted, they bound the curve from above.
        """
        ...


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient rounded up; both are non-negative, the denominator is not zero."""
    return -(-numerator // denominator)


def parts_per_million(part: int, whole: int) -> int:
    """Return how many millionths of the whole a part is, rounded up; 0 where there is no part."""
    return -(-part * _PPM_ONE // whole) if part > 0 else 0
