"""What every order type is: when an order executes, and at what price at worst."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Self

from engine.domain.amounts import MAX_AMOUNT
from engine.domain.errors import FieldViolation, InvalidOrder

if TYPE_CHECKING:
    from engine.domain.order import OrderSpec, Route
    from engine.domain.tokens import Token


class TriggerKind(StrEnum):
    """What a waiting order is found by. A monitor follows each kind."""

    PRICE = "price"
    """The price of its pair."""
    LIQUIDITY = "liquidity"
    """What the pools of its pair hold."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """Where a monitor looks for a waiting order. Whether the order executes, `unmet` says.

    So a level may be too low, never too high.
    """

    kind: TriggerKind
    level: float
    """PRICE: the least price, in base units of output per base unit of input. LIQUIDITY: what the pair's open
    pools must hold of input_token, in base units."""


class OrderType(ABC):
    """One type; its fields are the terms that the contract's message of that name has.

    A type without a trigger is executed at once. One with a trigger rests until its monitor finds that
    `unmet` has no objection, and again whenever `unmet` has one before its transaction is signed.
    """

    __slots__ = ()

    name: ClassVar[str]
    """As the contract's `oneof type` spells it."""

    @classmethod
    @abstractmethod
    def read(cls, terms: Mapping[str, str], input_token: Token, output_token: Token) -> Self:
        """Return the type with these terms: decimal texts by name; empty or missing: unset.

        Raises InvalidOrder with a line for every term that is wrong, under its plain name.
        """

    @abstractmethod
    def terms(self, input_token: Token) -> dict[str, str]:
        """Return what `read` takes: the terms that are set, each in its one shortest spelling."""

    def limit_amount(self, spec: OrderSpec) -> int | None:
        """Return the least output (SELL) or the most input (BUY) to be filled at, base units; None: any.

        The transaction's own thresholds enforce it.
        """
        return None

    @property
    def least_liquidity(self) -> int:
        """What the pair's open pools must hold of input_token together, base units; 0: whatever they do."""
        return 0

    def check(self, spec: OrderSpec) -> None:
        """Raise InvalidOrder for an order that nothing on chain could ever fill."""
        limit_amount = self.limit_amount(spec)
        if limit_amount is None:
            return
        if limit_amount > MAX_AMOUNT if spec.sells else limit_amount == 0:
            what = "more output than fits on chain" if spec.sells else "less than one base unit of input"
            raise InvalidOrder([FieldViolation("amount", f"is worth, at its price, {what}")])

    def trigger(self, spec: OrderSpec) -> Trigger | None:
        """Return what the order waits for; None if for nothing."""
        return None

    def unmet(self, spec: OrderSpec, route: Route | None, liquidity: int) -> str | None:
        """Return why the order is not to be executed now, as a sentence for its user; None if it is.

        `route` is the best there is now, None if there is none; `liquidity` what the pair's open pools hold
        of input_token, in base units, for a type that asks for any.
        """
        return None


def is_within(spec: OrderSpec, route: Route, limit_amount: int | None) -> bool:
    """Return whether the route, as quoted, is no worse than the limit."""
    if limit_amount is None:
        return True
    return route.output_amount >= limit_amount if spec.sells else route.input_amount <= limit_amount


def level_of(spec: OrderSpec, limit_amount: int) -> float:
    """Return a limit as a price: base units of output per base unit of input."""
    return limit_amount / spec.amount if spec.sells else spec.amount / limit_amount
