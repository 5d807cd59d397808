"""What curves share: the Pool they are, the Swap they answer, the SwapError they refuse with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

U64_MAX: Final = 2**64 - 1
"""The most base units an amount can be on chain."""


class FeeSide(StrEnum):
    """Which leg of a swap its fee is taken from."""

    INPUT = "input"
    OUTPUT = "output"


class SwapRefusal(StrEnum):
    """Why a program would refuse a swap. Its venue knows the error code."""

    ZERO_AMOUNT = "zero_amount"
    """Nothing goes in."""
    ZERO_OUTPUT = "zero_output"
    """So little goes in that nothing comes out."""
    INSUFFICIENT_LIQUIDITY = "insufficient_liquidity"
    """More is asked for than the pool holds."""
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


@dataclass(frozen=True, slots=True)
class Clock:
    """When a swap happens, by the chain's clock."""

    slot: int
    unix_timestamp: int
    """In seconds."""


@dataclass(frozen=True, slots=True)
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
        gross = self.input_amount if self.fee_side is FeeSide.INPUT else self.output_amount + self.fee_amount
        return ceil_div(self.fee_amount * 1_000_000, gross) if gross else 0


class Pool(Protocol):
    """A pool at one moment. Token a is the program's first mint (its token 0, its token A).

    A swap answers a new pool; the one it was asked of stays as it was.
    """

    def swap_exact_in(self, a_to_b: bool, input_amount: int, clock: Clock) -> Swap:
        """Spend exactly `input_amount`. Raises SwapError."""
        ...

    def swap_exact_out(self, a_to_b: bool, output_amount: int, clock: Clock) -> Swap:
        """Receive exactly `output_amount`. Raises SwapError."""
        ...

    def price(self, a_to_b: bool) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        ...


def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient rounded up; both are non-negative, the denominator is not zero."""
    return -(-numerator // denominator)
