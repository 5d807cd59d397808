"""Orders that wait for a price, on one pool, as plainly as it can be said: what workers are compared with.

The pool is Raydium's CPMM by its published rounding: the fee is taken from the input and rounded up, what
comes out is rounded down, what must go in is rounded up; 12 % and 4 % of the fee leave the pool's reserves
and stay in its vault. Nothing of the engine is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from typing import Final

_MILLION: Final = 1_000_000
WHOLE_SOL, WHOLE_TOKEN = 10**9, 10**6


@dataclass(frozen=True, slots=True)
class ModelPool:
    """SOL goes in, the token comes out. Amounts are base units."""

    fee_ppm: int
    sol: int
    token: int
    vault_sol: int
    """With fees that are not traded with."""

    def swap(self, side: str, amount: int) -> tuple[int, int] | None:
        """Return what goes in and what comes out; None: it cannot be."""
        if side == "sell":
            net = amount - self._fee(amount)
            got = net * self.token // (self.sol + net)
            return (amount, got) if got else None
        if amount >= self.token:
            return None
        net = _up(Fraction(self.sol * amount, self.token - amount))
        return _up(Fraction(net * _MILLION, _MILLION - self.fee_ppm)), amount

    def after(self, paid: int, got: int) -> ModelPool:
        """Return the pool after a swap."""
        fee = self._fee(paid)
        gone = fee * 120_000 // _MILLION + fee * 40_000 // _MILLION
        return replace(
            self, sol=self.sol + paid - gone, token=self.token - got, vault_sol=self.vault_sol + paid
        )

    def _fee(self, amount: int) -> int:
        return _up(Fraction(amount * self.fee_ppm, _MILLION))


@dataclass(slots=True)
class ModelOrder:
    """`number` tells who came first. Prices are of whole tokens."""

    number: int
    side: str
    amount: int
    least_price: Decimal | None = None
    """Tokens a SOL: of a limit order."""
    most_price: Decimal | None = None
    """SOL a token: of a sniper."""
    least_sol: int | None = None
    """What the pool must hold of it: of a sniper. Base units."""
    expires: bool = False
    """It has expired before anybody looks at it."""
    status: str = "pending"
    filled: tuple[int, int] | None = None
    """What it paid and got."""
    threshold: int = 0
    """What its transaction, if it is on its way, is refused beyond."""

    @property
    def price(self) -> Fraction | None:
        """The least it takes, tokens a SOL; None: anything."""
        if self.least_price is not None:
            return Fraction(self.least_price)
        return None if self.most_price is None else 1 / Fraction(self.most_price)

    @property
    def kind(self) -> str:
        return "liquidity" if self.price is None else "price"

    @property
    def limit(self) -> int | None:
        """The least output or the most input in base units; None: any."""
        if self.price is None:
            return None
        ratio = self.price * WHOLE_TOKEN / WHOLE_SOL
        return _up(self.amount * ratio) if self.side == "sell" else int(self.amount / ratio)

    @property
    def level(self) -> Fraction:
        """By which orders fire one after the other, those that ask for least first."""
        limit = self.limit
        if limit is None:
            return Fraction(self.least_sol or 0)
        return Fraction(limit, self.amount) if self.side == "sell" else Fraction(self.amount, limit)

    def is_met(self, paid: int, got: int) -> bool:
        limit = self.limit
        return limit is None or (got >= limit if self.side == "sell" else paid <= limit)


def fire(
    kind: str, orders: Iterable[ModelOrder], pool: ModelPool, expected: ModelPool, slippage_bps: int
) -> tuple[list[ModelOrder], ModelPool]:
    """Return the orders that a monitor fires now, in that order and signed, and what is then expected.

    `expected` is what the swaps that are under way leave of the pool. Orders of a side and of much the same
    size fire one after the other, from the lowest level on, older ones first: each for what one order would
    leave it that does what all those ahead of it do. They are signed before the next ones are looked at.
    """

    def group(order: ModelOrder) -> tuple[str, int]:
        return order.side, order.amount.bit_length()

    waiting = [
        order for order in orders if order.kind == kind and order.status == "pending" and not order.expires
    ]
    waiting.sort(key=lambda order: (group(order), order.level, order.number))
    all_fired = []
    for _, members in groupby(waiting, group):
        ahead, paid, got = 0, 0, 0
        fired = []
        for order in members:
            together = expected.swap(order.side, ahead + order.amount)
            if together is None or pool.vault_sol < (order.least_sol or 0):
                continue
            if order.is_met(together[0] - paid, together[1] - got):
                ahead += order.amount
                paid, got = together
                fired.append(order)
        for order in fired:
            expected = sign(order, expected, slippage_bps)
        all_fired += fired
    return all_fired, expected


def sign(order: ModelOrder, expected: ModelPool, slippage_bps: int) -> ModelPool:
    """Decide what the order's transaction may come to at worst: its limit, or what slippage allows.

    Return what it leaves of what those before it leave; they may be of other sizes and sides, and leave too
    little for it to be sent at all.
    """
    swap = expected.swap(order.side, order.amount)
    if swap is None or not order.is_met(*swap):
        return expected
    limit = order.limit
    if order.side == "sell":
        order.threshold = max(swap[1] * (10_000 - slippage_bps) // 10_000, limit or 0)
    else:
        most = swap[0] * (10_000 + slippage_bps) // 10_000
        order.threshold = most if limit is None else min(most, limit)
    order.status = "submitted"
    # Only what goes in is known to all.
    paid = swap[0]
    leaves = expected.swap("sell", paid)
    assert leaves is not None
    return expected.after(*leaves)


def land(order: ModelOrder, pool: ModelPool) -> ModelPool:
    """Execute the order's transaction, or let it wait again; return the pool after it."""
    swap = pool.swap(order.side, order.amount)
    sells = order.side == "sell"
    if swap is None or (swap[1] < order.threshold if sells else swap[0] > order.threshold):
        order.status = "pending"
        return pool
    order.status, order.filled = "confirmed", swap
    return pool.after(*swap)


def _up(number: Fraction) -> int:
    return -(-number.numerator // number.denominator)
