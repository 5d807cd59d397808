"""Execute once the whole amount is to be had at this price or better, and never worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, ClassVar, Self

from engine.domain.amounts import format_price, least_output, most_input, parse_price
from engine.domain.errors import FieldViolation, InvalidOrder
from engine.domain.order_types.order_type import OrderType, Trigger, TriggerKind, is_within, level_of

if TYPE_CHECKING:
    from engine.domain.order import OrderSpec, Route
    from engine.domain.tokens import Token


@dataclass(frozen=True, slots=True)
class LimitOrder(OrderType):
    limit_price: Decimal
    """output_token per input_token, whole tokens; net of fees, price impact and splits."""

    name: ClassVar[str] = "limit"

    @classmethod
    def read(cls, terms: Mapping[str, str], input_token: Token, output_token: Token) -> Self:
        text = terms.get("limit_price", "")
        try:
            if not text:
                raise ValueError('is missing; must be a price such as "150.5", output_token per input_token')
            return cls(parse_price(text))
        except ValueError as error:
            raise InvalidOrder([FieldViolation("limit_price", str(error))]) from None

    def terms(self, input_token: Token) -> dict[str, str]:
        return {"limit_price": f"{self.limit_price:f}"}

    def limit_amount(self, spec: OrderSpec) -> int:
        amount_of = least_output if spec.sells else most_input
        return amount_of(spec.amount, self.limit_price, spec.input_token, spec.output_token)

    def trigger(self, spec: OrderSpec) -> Trigger:
        return Trigger(TriggerKind.PRICE, level_of(spec, self.limit_amount(spec)))

    def unmet(self, spec: OrderSpec, route: Route | None, liquidity: int) -> str | None:
        limit = f"the limit is {self.limit_price:f}"
        if route is None:
            return f"no pool can fill the order now; {limit}"
        if is_within(spec, route, self.limit_amount(spec)):
            return None
        price = format_price(route.input_amount, route.output_amount, spec.input_token, spec.output_token)
        return f"the whole amount would be filled at {price} now; {limit}"
