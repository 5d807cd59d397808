"""Execute now, at the best price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from engine.domain.order_types.order_type import OrderType

if TYPE_CHECKING:
    from engine.domain.tokens import Token


@dataclass(frozen=True, slots=True)
class MarketOrder(OrderType):
    name: ClassVar[str] = "market"

    @classmethod
    def read(cls, terms: Mapping[str, str], input_token: Token, output_token: Token) -> Self:
        return cls()

    def terms(self, input_token: Token) -> dict[str, str]:
        return {}
