"""When an order executes: one file an order type.

A type is a frozen dataclass, an OrderType (order_type.py says what that is). Adding one: its file here, its
message in the contract, whose fields are its own, its place in ORDER_TYPES.
"""

from __future__ import annotations

from typing import Final

from engine.domain.order_types.limit import LimitOrder
from engine.domain.order_types.market import MarketOrder
from engine.domain.order_types.order_type import OrderType, Trigger, TriggerKind, is_within
from engine.domain.order_types.sniper import SniperOrder

__all__ = [
    "MARKET",
    "ORDER_TYPES",
    "LimitOrder",
    "MarketOrder",
    "OrderType",
    "SniperOrder",
    "Trigger",
    "TriggerKind",
    "is_within",
]

MARKET: Final = MarketOrder()
ORDER_TYPES: Final[dict[str, type[OrderType]]] = {
    kind.name: kind for kind in (MarketOrder, LimitOrder, SniperOrder)
}
"""Every order type by its name."""
