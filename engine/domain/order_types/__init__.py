"""When an order executes: one file an order type.

A type is a frozen dataclass with a `name`, as the contract's `oneof type` spells it. Adding one:
its file here, its message in the contract, its line in ORDER_TYPES.
"""

from __future__ import annotations

from typing import Final

from engine.domain.order_types.market import MarketOrder

OrderType = MarketOrder
"""The union of all order types."""

MARKET: Final = MarketOrder()
ORDER_TYPES: Final[dict[str, type[OrderType]]] = {MarketOrder.name: MarketOrder}
