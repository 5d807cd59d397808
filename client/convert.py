"""Where the contract's messages meet this package's nouns. Protobuf goes no further than here."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypedDict

from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet
from orders.v1 import orders_pb2 as pb

from client.errors import FieldViolation, InvalidOrder
from client.order import (
    CLOSED,
    FailureReason,
    Order,
    OrderDetails,
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
from client.order_types import PATHS, TYPE_FIELDS, check_type_fields

EventMessage = pb.OrderEvent
"""An event as it came, for what is made of it without an OrderEvent in between."""
DetailsMessage = pb.GetOrderResponse
"""The same of OrderDetails,"""
DecisionMessage = pb.RoutingDecision
"""and of a RoutingDecision."""

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

_LONGEST_TEXT: Final = 64
"""Characters. The longest amount the engine takes has 39, a mint 44; the limit is for Decimal("1e999999"),
and for texts that make a batch longer than the server takes, which refuses the orders beside them too."""

_LONGEST_ORDER_ID: Final = 36
_LAST_SEQUENCE: Final = 2**63 - 1

_REQUEST_ID: Final = re.compile(r"[ -~]{1,64}", re.ASCII)

_TEXTS: Final = ("amount", "input_token", "output_token", *PATHS)
"""OrderSpec's fields that the contract has as text."""


def decimal_text(value: str | int | Decimal, name: str) -> str:
    """Return the amount or price, which is OrderSpec's field `name`, as plain decimal text.

    Raises TypeError for a float (it may not be the number that was written) and InvalidOrder for a
    Decimal that has no such text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        if not value.is_finite() or abs(value.adjusted()) > _LONGEST_TEXT:
            raise _invalid(name, f'was {value}; must be a plain decimal number such as "1.5"')
        return f"{value:f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(
        f"{name} was {value!r}, a {type(value).__name__}; must be str, int or Decimal, such as "
        f'"{value}": binary floating point does not hold decimal numbers exactly'
    )


def spec_to_message(spec: OrderSpec) -> pb.OrderSpec:
    """Raises TypeError for a float or a naive expire_time, InvalidOrder for what no message is to hold."""
    message = pb.OrderSpec()
    write_spec(spec, message)
    return message


def write_spec(spec: OrderSpec, message: pb.OrderSpec) -> None:
    """Write the spec into an empty message, as `spec_to_message` does; raises what that raises."""
    message.side = _SIDES[Side(spec.side)]
    try:
        message.amount = decimal_text(spec.amount, "amount")
        message.input_token = spec.input_token
        message.output_token = spec.output_token
        _write_type(spec, message)
    except UnicodeEncodeError:
        raise _wrong_texts(spec, _is_sendable, "text that UTF-8 can hold") from None
    # No text is longer than the message, which mostly is short.
    if message.ByteSize() > _LONGEST_TEXT and not all(_is_short(getattr(spec, name)) for name in _TEXTS):
        raise _wrong_texts(spec, _is_short, f"at most {_LONGEST_TEXT} characters")
    if spec.slippage_bps is not None:
        try:
            message.slippage_bps = spec.slippage_bps
        except ValueError:
            raise _invalid("slippage_bps", f"was {spec.slippage_bps}; must be between 0 and 10000") from None
    if spec.expire_time is not None:
        if spec.expire_time.tzinfo is None:
            raise TypeError("expire_time has no time zone; must be an aware datetime")
        try:
            message.expire_time.FromDatetime(spec.expire_time.astimezone(UTC))
        except OverflowError:
            raise _invalid("expire_time", "must be a time between the years 1 and 9999 in UTC") from None


def _write_type(spec: OrderSpec, message: pb.OrderSpec) -> None:
    """Set the one message of the oneof that stands for the spec's type. Raises as spec_to_message does."""
    order_type = OrderType(spec.type)
    if order_type is OrderType.UNKNOWN:
        raise _invalid("type", "is unknown to this client; it can be read, but not submitted")
    given = [name for name in PATHS if getattr(spec, name) is not None]
    if wrong := check_type_fields(order_type, given):
        raise InvalidOrder(
            "; ".join(f"{_last(line.field)} {line.description}" for line in wrong), violations=wrong
        )
    own = getattr(message, order_type)
    # A message without fields is set by being there.
    own.SetInParent()
    for name in given:
        text = decimal_text(getattr(spec, name), name)
        if not text:
            # The contract cannot tell it from an unset one, so that a price cap would be dropped unseen.
            raise _invalid(name, 'was ""; must be a plain decimal number such as "1.5"')
        setattr(own, name, text)


def check_request_id(request_id: str) -> None:
    """Raise InvalidOrder for what is no request_id. The empty one is none to the server, not a mistake."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise _invalid_request("request_id", "must be 1 to 64 printable ASCII characters")


def check_sendable(text: str, field: str, description: str) -> None:
    """Raise InvalidOrder for a request's `field`, with this description, if UTF-8 cannot hold the text."""
    if not _is_sendable(text):
        raise _invalid_request(field, description)


def check_order_id(order_id: str) -> None:
    """Raise InvalidOrder for what cannot be a UUID and would be in the way of others: it is too long."""
    if len(order_id) > _LONGEST_ORDER_ID or not _is_sendable(order_id):
        raise _invalid_request("order_id", f"was {shown(order_id)}; must be a UUID")


def check_sequence(after_sequence: int) -> None:
    """Raise InvalidOrder for what no message can hold: the watches of other orders travel in the same one."""
    if not 0 <= after_sequence <= _LAST_SEQUENCE:
        must_be = f"must be from 0 to {_LAST_SEQUENCE}"
        raise _invalid_request("after_sequence", f"was {after_sequence}; {must_be}")


def shown(text: str) -> str:
    """Return text for an error message: no longer than a line, and fit to be encoded."""
    short = text if len(text) <= 40 else text[:37] + "..."
    return short.encode(errors="backslashreplace").decode()


def status_to_message(status: OrderStatus) -> pb.OrderStatus.ValueType:
    return pb.OrderStatus.Value(f"ORDER_STATUS_{OrderStatus(status).name}")


def type_to_message(order_type: OrderType) -> pb.OrderType.ValueType:
    return pb.OrderType.Value(f"ORDER_TYPE_{OrderType(order_type).name}")


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


def first_event_of(order: pb.Order) -> EventMessage:
    """Return the first event of an order that was just stored: PENDING, like the order."""
    event = pb.OrderEvent(order_id=order.order_id, sequence=1, status=order.status, attempt=order.attempt)
    if order.HasField("create_time"):
        event.create_time.CopyFrom(order.create_time)
    return event


def event_of(message: pb.OrderEvent) -> OrderEvent:
    return OrderEvent(**_progress(message), legs=tuple(_leg_of(leg) for leg in message.legs))


def details_of(message: pb.GetOrderResponse) -> OrderDetails:
    return OrderDetails(
        order_of(message.order),
        tuple(decision_of(decision) for decision in message.routing_decisions),
        message.realised_slippage_ppm if message.HasField("realised_slippage_ppm") else None,
    )


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
    order_type = _type_of(message)
    own = {name: getattr(getattr(message, order_type), name) or None for name in TYPE_FIELDS[order_type]}
    return OrderSpec(
        side=_SIDE_OF[message.side],
        amount=message.amount,
        input_token=message.input_token,
        output_token=message.output_token,
        slippage_bps=message.slippage_bps if message.HasField("slippage_bps") else None,
        expire_time=_time_of(message.expire_time) if message.HasField("expire_time") else None,
        type=order_type,
        **own,
    )


def _type_of(message: pb.OrderSpec) -> OrderType:
    name = message.WhichOneof("type")
    if name is not None:
        return OrderType(name)
    # A message that is newer than this client is among what it does not know. Unset it means MARKET.
    return OrderType.UNKNOWN if len(UnknownFieldSet(message)) else OrderType.MARKET


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


def _last(path: str) -> str:
    """ "spec.limit.limit_price" -> "limit_price"."""
    return path.rpartition(".")[2]


def _is_sendable(text: str) -> bool:
    """Answer whether UTF-8 can hold the text: it cannot hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_short(value: object) -> bool:
    """Answer whether an amount, price or token is no longer than any that is right."""
    return len(str(value)) <= _LONGEST_TEXT


def _wrong_texts(spec: OrderSpec, is_right: Callable[[str], bool], must_be: str) -> InvalidOrder:
    """Return the refusal of each field of a spec whose text is not right."""
    violations = [
        FieldViolation(PATHS.get(name, f"spec.{name}"), f'was "{shown(text)}"; must be {must_be}')
        for name in _TEXTS
        if not is_right(text := str(getattr(spec, name)))
    ]
    told = "; ".join(f"{_last(line.field)} {line.description}" for line in violations)
    return InvalidOrder(told, violations=violations)


def _invalid_request(field: str, description: str) -> InvalidOrder:
    """Return the refusal of a field that a request has beside the order."""
    return InvalidOrder(f"{field} {description}", violations=[FieldViolation(field, description)])


def _invalid(name: str, description: str) -> InvalidOrder:
    """Return the refusal of OrderSpec's field `name`."""
    violation = FieldViolation(PATHS.get(name, f"spec.{name}"), description)
    return InvalidOrder(f"{name} {description}", violations=[violation])
