"""The client's nouns as JSON: what the REST and WebSocket clients get, and `order-engine --json` prints.

Names are camelCased mechanically; what is not known is left out. Prices are JSON numbers, amounts and a
sniper order's minLiquidity JSON strings. All are the engine's own decimal text: nothing here passes through
binary floating point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import msgspec

from client.convert import DecisionMessage, DetailsMessage, EventMessage, order_of, reason_of, status_of
from client.order import Order, OrderDetails, OrderEvent, OrderPage, Quote, Route, RouteLeg, RoutingDecision

_encode = msgspec.json.Encoder().encode

EVENT_FIELDS: Final = (
    "order_id",
    "status",
    "sequence",
    "venue",
    "price",
    "input_amount",
    "output_amount",
    "tx_hash",
    "failure_reason",
    "failure_message",
    "legs",
)
"""Of OrderEvent, in the order in which they are written; `attempt` follows from the second on."""

PRICES: Final = frozenset({"price", "limit_price", "max_price"})
"""Fields that are JSON numbers."""


def camel(name: str) -> str:
    """ "tx_hash" -> "txHash"."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def json_bytes(value: object) -> bytes:
    """Return JSON text of what `order_json` and its neighbours made."""
    return _encode(value)


def event_text(event: OrderEvent) -> str:
    """Return the event as JSON text."""
    reason = event.failure_reason
    return _event_bytes(event, event.status.value, None if reason is None else reason.value).decode()


def message_bytes(message: EventMessage) -> bytes:
    """Return the same text from the event as it came: 3.5 us, where the way through an OrderEvent takes 9."""
    reason = reason_of(message)
    return _event_bytes(message, status_of(message).value, None if reason is None else reason.value)


def _event_bytes(event: OrderEvent | EventMessage, status: str, failure_reason: str | None) -> bytes:
    # What is not known is None or, in the contract's message of the same names, empty.
    found: dict[str, Any] = {"orderId": event.order_id, "status": status, "sequence": event.sequence}
    if event.venue:
        found["venue"] = event.venue
    if event.price:
        found["price"] = msgspec.Raw(event.price.encode())
    if event.input_amount:
        found["inputAmount"] = event.input_amount
    if event.output_amount:
        found["outputAmount"] = event.output_amount
    if event.tx_hash:
        found["txHash"] = event.tx_hash
    if failure_reason:
        found["failureReason"] = failure_reason
    if event.failure_message:
        found["failureMessage"] = event.failure_message
    if event.legs:
        found["legs"] = [{key: getattr(leg, name) for name, key in _keys(RouteLeg)} for leg in event.legs]
    if event.attempt > 1:
        found["attempt"] = event.attempt
    return _encode(found)


def order_json(order: Order) -> dict[str, Any]:
    """Return the order with its spec's fields beside its own, as they were when it was submitted."""
    found = _plain(order)
    spec = found.pop("spec")
    return {"orderId": found.pop("orderId"), "status": found.pop("status"), **spec, **found}


def details_json(details: OrderDetails) -> dict[str, Any]:
    return _details(details.order, details.routing_decisions, details.realised_slippage_ppm)


def details_bytes(message: DetailsMessage) -> bytes:
    """Return the text of `details_json` from the details as they came: 50 us, through OrderDetails 97."""
    realised = message.realised_slippage_ppm if message.HasField("realised_slippage_ppm") else None
    return _encode(_details(order_of(message.order), message.routing_decisions, realised))


def _details(
    order: Order, decisions: Iterable[RoutingDecision | DecisionMessage], realised_slippage_ppm: int | None
) -> dict[str, Any]:
    found = order_json(order) | {"routingDecisions": [decision_json(decision) for decision in decisions]}
    if realised_slippage_ppm is not None:
        found["realisedSlippagePpm"] = realised_slippage_ppm
    return found


def page_json(page: OrderPage) -> dict[str, Any]:
    found: dict[str, Any] = {"orders": [order_json(order) for order in page.orders]}
    if page.next_page_token is not None:
        found["nextPageToken"] = page.next_page_token
    return found


def decision_json(decision: RoutingDecision | DecisionMessage) -> dict[str, Any]:
    found: dict[str, Any] = {
        "slot": decision.slot,
        "quotes": [_known(Quote, quote) for quote in decision.quotes],
        "reason": decision.reason,
    }
    # A message has an empty route where there is none.
    if (route := decision.route) is not None and route.legs:
        legs = [_known(RouteLeg, leg) for leg in route.legs]
        found["route"] = {"legs": legs} | _known(Route, route)
    if decision.attempt:
        found["attempt"] = decision.attempt
    return found


def _known(kind: Any, value: Any) -> dict[str, Any]:
    """Return a `kind`, or the contract's message of the same fields, without what is not known.

    That is None or, in a message, empty; its numbers are all known. Lists are for the caller to add.
    """
    found: dict[str, Any] = {}
    for name, key in _keys(kind):
        item = getattr(value, name)
        if type(item) is str and item:
            found[key] = msgspec.Raw(item.encode()) if name in PRICES else item
        elif type(item) is int:
            found[key] = item
    return found


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts with camelCase keys, without what is None."""
    kind: Any = type(value)
    # Most are one of these.
    if kind is str or kind is int:
        return value
    if kind is tuple:
        return [_plain(item) for item in value]
    if kind is datetime:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if not (keys := _keys(kind)):
        return value
    found = {}
    for name, key in keys:
        item = getattr(value, name)
        if item is not None:
            found[key] = msgspec.Raw(item.encode()) if name in PRICES else _plain(item)
    return found


@cache
def _keys(kind: Any) -> tuple[tuple[str, str], ...]:
    """Return a dataclass's names and keys; none of any other class."""
    return tuple((field.name, camel(field.name)) for field in fields(kind)) if is_dataclass(kind) else ()
