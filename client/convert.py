"""Where the contract's messages meet this package's nouns. Protobuf goes no further than here."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypedDict

from google.protobuf.timestamp_pb2 import Timestamp
from orders.v1 import orders_pb2 as pb

from client.errors import FieldViolation, InvalidOrder
from client.order import (
    CLOSED,
    FailureReason,
    Order,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    OrderType,
    Quote,
    Receipt,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
    SubmittedOrder,
)

EventMessage = pb.OrderEvent
"""An event as it came, for what is made of it without an OrderEvent in between."""

_SIDES: Final = {Side.BUY: pb.SIDE_BUY, Side.SELL: pb.SIDE_SELL}
_SIDE_OF: Final = {number: side for side, number in _SIDES.items()}
_STATUS_OF: Final[dict[int, OrderStatus]] = {
    pb.OrderStatus.Value(f"ORDER_STATUS_{status.name}"): status
    for status in OrderStatus
    if status is not OrderStatus.UNKNOWN
}
_CLOSED: Final = frozenset(number for number, status in _STATUS_OF.items() if status in CLOSED)
_REASON_OF: Final[dict[int, FailureReason | None]] = {pb.FAILURE_REASON_UNSPECIFIED: None} | {
    pb.FailureReason.Value(f"FAILURE_REASON_{reason.name}"): reason
    for reason in FailureReason
    if reason is not FailureReason.UNKNOWN
}

_LONGEST_AMOUNT: Final = 64
"""Characters. The longest amount the engine takes is 39; the limit is for Decimal("1e999999")."""


def amount_text(amount: str | int | Decimal) -> str:
    """Return the amount as plain decimal text.

    Raises TypeError for a float (it may not be the number that was written) and InvalidOrder for a
    Decimal that has no such text.
    """
    if isinstance(amount, str):
        return amount
    if isinstance(amount, Decimal):
        if not amount.is_finite() or abs(amount.adjusted()) > _LONGEST_AMOUNT:
            raise _invalid("spec.amount", f'was {amount}; must be a plain decimal number such as "1.5"')
        return f"{amount:f}"
    if isinstance(amount, int) and not isinstance(amount, bool):
        return str(amount)
    raise TypeError(
        f"amount was {amount!r}, a {type(amount).__name__}; must be str, int or Decimal, such as "
        f'"{amount}": binary floating point does not hold decimal amounts exactly'
    )


def spec_to_message(spec: OrderSpec) -> pb.OrderSpec:
    """Raises TypeError for a float or a naive expire_time, InvalidOrder for what no message can hold."""
    message = pb.OrderSpec(
        side=_SIDES[Side(spec.side)],
        amount=amount_text(spec.amount),
        input_token=spec.input_token,
        output_token=spec.output_token,
        market=pb.MarketOrder(),
    )
    if spec.slippage_bps is not None:
        try:
            message.slippage_bps = spec.slippage_bps
        except ValueError:
            raise _invalid(
                "spec.slippage_bps", f"was {spec.slippage_bps}; must be between 0 and 10000"
            ) from None
    if spec.expire_time is not None:
        if spec.expire_time.tzinfo is None:
            raise TypeError("expire_time has no time zone; must be an aware datetime")
        message.expire_time.FromDatetime(spec.expire_time.astimezone(UTC))
    return message


def status_to_message(status: OrderStatus) -> pb.OrderStatus.ValueType:
    return pb.OrderStatus.Value(f"ORDER_STATUS_{OrderStatus(status).name}")


def order_of(message: pb.Order) -> Order:
    return Order(**_order_fields(message))


def submitted_order_of(message: pb.SubmitOrderResponse) -> SubmittedOrder:
    return SubmittedOrder(**_order_fields(message.order), deduplicated=message.deduplicated)


def receipt_of(message: pb.SubmitOrderResponse) -> Receipt:
    return Receipt(message.order.order_id, status_of(message.order), message.deduplicated)


def status_of(message: pb.Order | pb.OrderEvent) -> OrderStatus:
    return _STATUS_OF.get(message.status, OrderStatus.UNKNOWN)


def is_closing(message: pb.OrderEvent) -> bool:
    """Answer whether nothing follows the event."""
    return message.status in _CLOSED


def reason_of(message: pb.Order | pb.OrderEvent) -> FailureReason | None:
    return _REASON_OF.get(message.failure_reason, FailureReason.UNKNOWN)


def event_of(message: pb.OrderEvent) -> OrderEvent:
    return OrderEvent(**_progress(message), legs=tuple(_leg_of(leg) for leg in message.legs))


def decision_of(message: pb.RoutingDecision) -> RoutingDecision:
    return RoutingDecision(
        slot=message.slot,
        quotes=tuple(_quote_of(quote) for quote in message.quotes),
        reason=message.reason,
        route=_route_of(message.route) if message.HasField("route") else None,
        attempt=message.attempt or None,
    )


class _Progress(TypedDict):
    """What an order and its events have in common."""

    order_id: str
    sequence: int
    status: OrderStatus
    attempt: int
    venue: str | None
    price: str | None
    input_amount: str | None
    output_amount: str | None
    tx_hash: str | None
    failure_reason: FailureReason | None
    failure_message: str | None
    create_time: datetime | None


class _OrderFields(_Progress):
    spec: OrderSpec
    update_time: datetime | None


def _order_fields(message: pb.Order) -> _OrderFields:
    return {
        **_progress(message),
        "spec": _spec_of(message.spec),
        "update_time": _time_of(message.update_time) if message.HasField("update_time") else None,
    }


def _progress(message: pb.Order | pb.OrderEvent) -> _Progress:
    return {
        "order_id": message.order_id,
        "sequence": message.sequence,
        "status": status_of(message),
        "attempt": message.attempt,
        "venue": message.venue or None,
        "price": message.price or None,
        "input_amount": message.input_amount or None,
        "output_amount": message.output_amount or None,
        "tx_hash": message.tx_hash or None,
        "failure_reason": reason_of(message),
        "failure_message": message.failure_message or None,
        "create_time": _time_of(message.create_time) if message.HasField("create_time") else None,
    }


def _spec_of(message: pb.OrderSpec) -> OrderSpec:
    return OrderSpec(
        side=_SIDE_OF[message.side],
        amount=message.amount,
        input_token=message.input_token,
        output_token=message.output_token,
        slippage_bps=message.slippage_bps if message.HasField("slippage_bps") else None,
        expire_time=_time_of(message.expire_time) if message.HasField("expire_time") else None,
        type=OrderType.MARKET,
    )


def _quote_of(message: pb.Quote) -> Quote:
    return Quote(
        venue=message.venue,
        kind=message.kind,
        pool=message.pool,
        input_amount=message.input_amount or None,
        output_amount=message.output_amount or None,
        price=message.price or None,
        fee_ppm=message.fee_ppm,
        price_impact_ppm=message.price_impact_ppm,
        refusal=message.refusal or None,
        fee_amount=message.fee_amount or None,
        fee_token=message.fee_token or None,
    )


def _route_of(message: pb.Route) -> Route:
    return Route(
        legs=tuple(_leg_of(leg) for leg in message.legs),
        input_amount=message.input_amount,
        output_amount=message.output_amount,
        price=message.price,
        threshold_amount=message.threshold_amount,
        price_impact_ppm=message.price_impact_ppm,
        gap_amount=message.gap_amount or None,
        gap_ppm=message.gap_ppm,
        middle_token=message.middle_token or None,
    )


def _leg_of(message: pb.RouteLeg) -> RouteLeg:
    return RouteLeg(
        venue=message.venue,
        kind=message.kind,
        pool=message.pool,
        input_amount=message.input_amount,
        output_amount=message.output_amount,
        input_token=message.input_token,
        output_token=message.output_token,
        threshold_amount=message.threshold_amount,
        fee_amount=message.fee_amount,
        fee_token=message.fee_token,
        fee_ppm=message.fee_ppm,
        price_impact_ppm=message.price_impact_ppm,
    )


def _time_of(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _invalid(field: str, description: str) -> InvalidOrder:
    name = field.rpartition(".")[2]
    return InvalidOrder(f"{name} {description}", violations=[FieldViolation(field, description)])
