"""Which of OrderSpec's fields belong to one order type only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from client.errors import FieldViolation
from client.order import OrderType

TYPE_FIELDS: Final[Mapping[OrderType, Mapping[str, bool]]] = {
    OrderType.MARKET: {},
    OrderType.LIMIT: {"limit_price": True},
    OrderType.SNIPER: {"min_liquidity": False, "max_price": False},
    OrderType.UNKNOWN: {},
}
"""Of each type the fields that only it has, and whether it needs them."""

PATHS: Final = {name: f"spec.{owner}.{name}" for owner, own in TYPE_FIELDS.items() for name in own}
"""Those fields as the contract nests them: "spec.limit.limit_price"."""


def check_type_fields(order_type: OrderType, given: Collection[str]) -> list[FieldViolation]:
    """Return a line for each field of `given` that belongs to another type, and for each that is missing.

    `given` are those of PATHS that an order of this type comes with.
    """
    own = TYPE_FIELDS[order_type]
    if not own and not given:
        return []
    return [
        FieldViolation(PATHS[name], f"is a field of {owner} orders, and this is a {order_type} order")
        for owner, fields in TYPE_FIELDS.items()
        for name in fields
        if name in given and name not in own
    ] + [
        FieldViolation(PATHS[name], f"is missing, and a {order_type} order needs it")
        for name, needed in own.items()
        if needed and name not in given
    ]
