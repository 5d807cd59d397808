"""Execute as soon as output_token is to be had: once there is a way to buy it, or the pair's pools are large.

A way over a middle token is one too: only `min_liquidity` asks for pools of the pair itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from engine.domain.amounts import (
    format_amount,
    format_price,
    least_output,
    most_input,
    parse_amount,
    parse_price,
)
from engine.domain.errors import FieldViolation, InvalidOrder
from engine.domain.order_types.order_type import OrderType, Trigger, TriggerKind, is_within, level_of

if TYPE_CHECKING:
    from engine.domain.order import OrderSpec, Route
    from engine.domain.tokens import Token


@dataclass(frozen=True, slots=True)
class SniperOrder(OrderType):
    min_liquidity: int | None = None
    """What the pair's open pools must hold of input_token together, in base units; None: nothing."""
    max_price: Decimal | None = None
    """input_token per output_token, whole tokens: what one may cost at most, all counted in. None: any price.

    The reverse of what a price is elsewhere: who buys what is new thinks of what it costs.
    """

    name: ClassVar[str] = "sniper"

    @classmethod
    def read(cls, terms: Mapping[str, str], input_token: Token, output_token: Token) -> Self:
        wrong = []
        min_liquidity = max_price = None
        try:
            if text := terms.get("min_liquidity", ""):
                min_liquidity = parse_amount(text, input_token)
        except ValueError as error:
            wrong.append(FieldViolation("min_liquidity", str(error)))
        try:
            if text := terms.get("max_price", ""):
                max_price = parse_price(text)
        except ValueError as error:
            wrong.append(FieldViolation("max_price", str(error)))
        if wrong:
            raise InvalidOrder(wrong)
        return cls(min_liquidity, max_price)

    def terms(self, input_token: Token) -> dict[str, str]:
        found = {}
        if self.min_liquidity is not None:
            found["min_liquidity"] = format_amount(self.min_liquidity, input_token)
        if self.max_price is not None:
            found["max_price"] = f"{self.max_price:f}"
        return found

    @property
    def least_liquidity(self) -> int:
        return self.min_liquidity or 0

    def limit_amount(self, spec: OrderSpec) -> int | None:
        if self.max_price is None:
            return None
        amount_of = least_output if spec.sells else most_input
        return amount_of(spec.amount, self.max_price, spec.input_token, spec.output_token, inverse=True)

    def trigger(self, spec: OrderSpec) -> Trigger:
        limit_amount = self.limit_amount(spec)
        if limit_amount is None:
            return Trigger(TriggerKind.LIQUIDITY, float(self.least_liquidity))
        # Where there is no pool there is no price either.
        return Trigger(TriggerKind.PRICE, level_of(spec, limit_amount))

    def unmet(self, spec: OrderSpec, route: Route | None, liquidity: int) -> str | None:
        if liquidity < self.least_liquidity:
            token = spec.input_token
            return (
                f"the pools hold {format_amount(liquidity, token)} {token.symbol};"
                f" min_liquidity is {format_amount(self.least_liquidity, token)}"
            )
        if route is None or route.output_amount <= 0:
            # What orders ahead of it leave to a small one may be nothing, which has no price.
            return "no pool can fill the order now"
        if is_within(spec, route, self.limit_amount(spec)):
            return None
        cost = format_price(route.output_amount, route.input_amount, spec.output_token, spec.input_token)
        return f"an output token would cost {cost} now; max_price is {self.max_price:f}"
