"""The contract's messages to domain values and back. The only file that knows both shapes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from orders.v1 import orders_pb2 as pb

from engine.domain.amounts import format_amount, parse_amount
from engine.domain.errors import FieldViolation, InvalidOrder
from engine.domain.order import (
    FailureReason,
    Order,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    Quote,
    Route,
    RoutingDecision,
    Side,
    WatchedEvent,
    price_of,
)
from engine.domain.order_types import MARKET, ORDER_TYPES, OrderType
from engine.domain.pools.pool import FeeSide
from engine.domain.tokens import TOKENS, Token, find_token

_SIDES: Final = {pb.SIDE_BUY: Side.BUY, pb.SIDE_SELL: Side.SELL}
_SIDE_TO_PB: Final = {side: number for number, side in _SIDES.items()}
_STATUS_TO_PB: Final = {status: pb.OrderStatus.Value(f"ORDER_STATUS_{status.name}") for status in OrderStatus}
_STATUSES: Final = {number: status for status, number in _STATUS_TO_PB.items()}
_REASON_TO_PB: Final = {
    reason: pb.FailureReason.Value(f"FAILURE_REASON_{reason.name}") for reason in FailureReason
}
_TYPES: Final[dict[int, str]] = {
    pb.OrderType.Value(f"ORDER_TYPE_{name.upper()}"): name for name in ORDER_TYPES
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REQUEST_ID: Final = re.compile(r"[\x20-\x7e]{1,64}", re.ASCII)
_INT32_MAX: Final = 2**31 - 1
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

Fields = dict[str, Any]
"""A message as the arguments of its constructor, the messages in it as such mappings too.

Made of mappings, an answer of many orders is built where it is to be, in 2.5 us an order; made of messages,
which are copied into each other, in 6.3.
"""


# ---- In --------------------------------------------------------------------------------------------


FindToken = Callable[[str], Token | None]


def tokens_named(message: pb.OrderSpec) -> tuple[str, str]:
    """Return what `spec_from_proto` will ask for: the names of the order's two tokens."""
    return message.input_token, message.output_token


def spec_from_proto(message: pb.OrderSpec, find: FindToken = find_token) -> OrderSpec:
    """Return what the client asks for. Raises InvalidOrder with a line for every field that is wrong."""
    wrong: list[FieldViolation] = []

    def refuse(name: str, description: str) -> None:
        wrong.append(FieldViolation(f"spec.{name}", description))

    if unknown := _unknown_field(message):
        wrong.append(FieldViolation("spec", unknown))
    side = _SIDES.get(message.side)
    if side is None:
        refuse("side", "must be SIDE_BUY (exact output) or SIDE_SELL (exact input)")
    input_token = _token(message.input_token, "input_token", find, refuse)
    output_token = _token(message.output_token, "output_token", find, refuse)
    if input_token is not None and input_token == output_token:
        refuse("output_token", f"was {output_token.symbol}, as input_token; they must differ")
    amount = 0
    # What the amount is counted in is known only with the side and its token.
    if not message.amount:
        refuse("amount", 'is missing; must be a decimal number of whole tokens such as "1.5"')
    elif (token := input_token if side is Side.SELL else output_token) is not None and side is not None:
        try:
            amount = parse_amount(message.amount, token)
        except ValueError as error:
            refuse("amount", str(error))
    slippage_bps = message.slippage_bps if message.HasField("slippage_bps") else None
    if slippage_bps is not None and not 0 <= slippage_bps <= 10_000:
        refuse("slippage_bps", f"was {slippage_bps}; must be between 0 and 10000")
    expire_time = None
    if message.HasField("expire_time"):
        try:
            expire_time = message.expire_time.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            refuse(
                "expire_time", "must be a time between the years 1 and 9999, its nanos from 0 to 999999999"
            )
    order_type: OrderType = MARKET
    # An unset type is a market order.
    if (name := message.WhichOneof("type")) is not None:
        own = getattr(message, name)
        if unknown := _unknown_field(own):
            refuse(name, unknown)
        if name != MARKET.name and input_token is not None and output_token is not None:
            terms = {term.name: value for term, value in own.ListFields()}
            try:
                order_type = ORDER_TYPES[name].read(terms, input_token, output_token)
            except InvalidOrder as error:
                for violation in error.violations:
                    refuse(f"{name}.{violation.field}", violation.description)
    if wrong or side is None or input_token is None or output_token is None:
        raise InvalidOrder(wrong)
    spec = OrderSpec(side, amount, input_token, output_token, slippage_bps, expire_time, order_type)
    try:
        order_type.check(spec)
    except InvalidOrder as error:
        raise InvalidOrder(
            [FieldViolation(f"spec.{line.field}", line.description) for line in error.violations]
        ) from None
    return spec


def _unknown_field(message: Message) -> str:
    """Return what is wrong with a message that a newer contract gave a field; "" if nothing is.

    That field may be what the order is to wait for: passed over, the order would execute at once.
    """
    unknown = UnknownFieldSet(message)
    if not len(unknown):
        return ""
    number = unknown[0].field_number
    return f"has field {number} of {message.DESCRIPTOR.name}, which this server does not know"


def request_id_from_proto(request_id: str) -> str | None:
    """Return the idempotency key, None if there is none. Raises InvalidOrder."""
    if not request_id:
        return None
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidOrder([FieldViolation("request_id", "must be 1 to 64 printable ASCII characters")])
    return request_id


def fingerprint(spec: OrderSpec) -> bytes:
    """Return a SHA-256 of what is asked, the same however it was spelled ("1.50", a symbol or its mint)."""
    expire_time = "" if spec.expire_time is None else spec.expire_time.isoformat()
    slippage_bps = "" if spec.slippage_bps is None else str(spec.slippage_bps)
    texts = (
        spec.type.name,
        spec.side.value,
        str(spec.amount),
        spec.input_token.mint,
        spec.output_token.mint,
        slippage_bps,
        expire_time,
        *chain.from_iterable(spec.type.terms(spec.input_token).items()),
    )
    # The length in front keeps neighbours apart: ("ab", "c") is not ("a", "bc").
    return hashlib.sha256(b"".join([len(text).to_bytes(4, "big") + text.encode() for text in texts])).digest()


def order_id_from_proto(order_id: str) -> UUID:
    """Raises InvalidOrder unless it is a UUID in its usual form."""
    if not _UUID.fullmatch(order_id):
        raise InvalidOrder([FieldViolation("order_id", f"was {_shown(order_id)}; must be a UUID")])
    return UUID(order_id)


def statuses_from_proto(numbers: Iterable[int]) -> list[OrderStatus]:
    """Raises InvalidOrder for a status that does not exist."""
    statuses = []
    for number in numbers:
        status = _STATUSES.get(pb.OrderStatus.ValueType(number))
        if status is None:
            raise InvalidOrder([FieldViolation("statuses", f"{number} is not a status")])
        statuses.append(status)
    return statuses


def types_from_proto(numbers: Iterable[int]) -> list[str]:
    """Return the names of order types. Raises InvalidOrder for a type that does not exist."""
    types = []
    for number in numbers:
        name = _TYPES.get(number)
        if name is None:
            raise InvalidOrder([FieldViolation("types", f"{number} is not a type of order")])
        types.append(name)
    return types


def page_token_from_proto(page_token: str) -> UUID | None:
    """Return the order id the page starts after; None for the first page. Raises InvalidOrder."""
    if not page_token:
        return None
    try:
        return UUID(bytes=base64.b64decode(page_token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        wrong = FieldViolation("page_token", "must be the next_page_token of the page before")
        raise InvalidOrder([wrong]) from None


# ---- Out -------------------------------------------------------------------------------------------


def page_token_to_proto(order_id: UUID) -> str:
    return base64.urlsafe_b64encode(order_id.bytes).decode()


def order_to_proto(order: Order) -> pb.Order:
    return pb.Order(**order_fields(order))


def order_fields(order: Order) -> Fields:
    spec = order.spec
    fields = {
        "order_id": str(order.order_id),
        "spec": _spec_fields(spec),
        "status": _STATUS_TO_PB[order.status],
        "attempt": order.attempt,
        "sequence": order.sequence,
        **_execution_fields(order, spec.input_token, spec.output_token),
    }
    if order.create_time is not None:
        fields["create_time"] = _timestamp_fields(order.create_time)
    if order.update_time is order.create_time and order.create_time is not None:
        fields["update_time"] = fields["create_time"]
    elif order.update_time is not None:
        fields["update_time"] = _timestamp_fields(order.update_time)
    return fields


def event_fields(watched: WatchedEvent) -> Fields:
    event = watched.event
    fields = {
        "order_id": str(event.order_id),
        "sequence": event.sequence,
        "status": _STATUS_TO_PB[event.status],
        "attempt": event.attempt,
        **_execution_fields(event, watched.input_token, watched.output_token),
    }
    if watched.route is not None:
        fields["legs"] = _legs_fields(watched.route, watched.side, watched.input_token, watched.output_token)
    if event.create_time is not None:
        fields["create_time"] = _timestamp_fields(event.create_time)
    return fields


def _spec_fields(spec: OrderSpec) -> Fields:
    fields: Fields = {
        "side": _SIDE_TO_PB[spec.side],
        "amount": format_amount(spec.amount, spec.amount_token),
        "input_token": spec.input_token.symbol,
        "output_token": spec.output_token.symbol,
        spec.type.name: spec.type.terms(spec.input_token),
    }
    if spec.slippage_bps is not None:
        fields["slippage_bps"] = spec.slippage_bps
    if spec.expire_time is not None:
        fields["expire_time"] = _timestamp_fields(spec.expire_time)
    return fields


def _execution_fields(told: Order | OrderEvent, input_token: Token, output_token: Token) -> Fields:
    """Return what is known of how the order is filled, or why not; most events are told before."""
    fields: Fields = {}
    if told.venue:
        fields["venue"] = told.venue
    if told.input_amount is not None or told.output_amount is not None:
        fields |= _amounts_fields(input_token, output_token, told.input_amount, told.output_amount)
    if told.tx_hash:
        fields["tx_hash"] = told.tx_hash
    if told.failure_reason is not None:
        fields["failure_reason"] = _REASON_TO_PB[told.failure_reason]
    if told.failure_message:
        fields["failure_message"] = told.failure_message
    return fields


def decision_fields(decision: RoutingDecision, spec: OrderSpec) -> Fields:
    return {
        "attempt": decision.attempt,
        "slot": decision.slot,
        "quotes": [_quote_fields(quote, spec) for quote in decision.quotes],
        "route": None if decision.route is None else _route_fields(decision.route, spec),
        "reason": decision.reason,
    }


def realised_slippage_ppm(order: Order, decisions: Sequence[RoutingDecision]) -> int | None:
    """Return by how many millionths, rounded up, a confirmed order was filled worse than it was quoted."""
    route = decisions[-1].route if decisions else None
    if order.status is not OrderStatus.CONFIRMED or route is None:
        return None
    if order.input_amount is None or order.output_amount is None:
        return None
    if order.spec.side is Side.SELL:
        worse, quoted = route.output_amount - order.output_amount, route.output_amount
    else:
        worse, quoted = order.input_amount - route.input_amount, route.input_amount
    # A quote of next to nothing may be off by more than the contract's int32 holds.
    return max(-_INT32_MAX, min(_INT32_MAX, -(-worse * 1_000_000 // quoted)))


def _quote_fields(quote: Quote, spec: OrderSpec) -> Fields:
    fields: Fields = {
        "venue": quote.venue,
        "kind": quote.kind,
        "pool": quote.pool,
        "fee_ppm": quote.fee_ppm,
        "price_impact_ppm": quote.price_impact_ppm,
        **_amounts_fields(spec.input_token, spec.output_token, quote.input_amount, quote.output_amount),
    }
    if quote.refusal is not None:
        fields["refusal"] = quote.refusal
    else:
        fee_token = spec.input_token if quote.fee_side is FeeSide.INPUT else spec.output_token
        fields["fee_amount"] = format_amount(quote.fee_amount, fee_token)
        fields["fee_token"] = fee_token.symbol
    return fields


def _route_fields(route: Route, spec: OrderSpec) -> Fields:
    threshold_token = spec.output_token if spec.side is Side.SELL else spec.input_token
    fields: Fields = {
        "legs": _legs_fields(route, spec.side, spec.input_token, spec.output_token),
        "threshold_amount": format_amount(route.threshold_amount, threshold_token),
        "price_impact_ppm": route.price_impact_ppm,
        "gap_ppm": route.gap_ppm,
        **_amounts_fields(spec.input_token, spec.output_token, route.input_amount, route.output_amount),
    }
    if route.gap_amount is not None:
        fields["gap_amount"] = format_amount(route.gap_amount, threshold_token)
    if route.middle_token is not None:
        fields["middle_token"] = route.middle_token.symbol
    return fields


def _amounts_fields(
    input_token: Token, output_token: Token, input_amount: int | None, output_amount: int | None
) -> Fields:
    """Return those amounts that are known, and their price where both are."""
    fields: Fields = {}
    if input_amount is not None:
        fields["input_amount"] = format_amount(input_amount, input_token)
    if output_amount is not None:
        fields["output_amount"] = format_amount(output_amount, output_token)
    price = price_of(input_token, output_token, input_amount, output_amount)
    if price is not None:
        fields["price"] = price
    return fields


def _legs_fields(route: Route, side: Side, input_token: Token, output_token: Token) -> list[Fields]:
    legs = []
    for at, leg in enumerate(route.legs):
        takes, gives = route.tokens_of_leg(at, input_token, output_token)
        fee_token = takes if leg.fee_side is FeeSide.INPUT else gives
        threshold_amount = route.threshold_amount if leg.threshold_amount is None else leg.threshold_amount
        legs.append(
            {
                "venue": leg.venue,
                "kind": leg.kind,
                "pool": leg.pool,
                "input_amount": format_amount(leg.input_amount, takes),
                "output_amount": format_amount(leg.output_amount, gives),
                "input_token": takes.symbol,
                "output_token": gives.symbol,
                "threshold_amount": format_amount(threshold_amount, gives if side is Side.SELL else takes),
                "fee_amount": format_amount(leg.fee_amount, fee_token),
                "fee_token": fee_token.symbol,
                "fee_ppm": leg.fee_ppm,
                "price_impact_ppm": leg.price_impact_ppm,
            }
        )
    return legs


def _timestamp_fields(moment: datetime) -> Fields:
    # Timestamp.FromDatetime takes four times as long.
    since = moment - _EPOCH
    return {"seconds": since.days * 86_400 + since.seconds, "nanos": since.microseconds * 1000}


def _token(text: str, name: str, find: FindToken, refuse: Callable[[str, str], None]) -> Token | None:
    if not text:
        refuse(name, "is missing; must be a symbol or a mint address")
        return None
    token = find(text)
    if token is None:
        known = ", ".join(known.symbol for known in TOKENS)
        refuse(name, f"was {_shown(text)}, which is neither one of {known} nor a mint on this chain")
    return token


def _shown(text: str) -> str:
    return f'"{text}"' if len(text) <= 50 else f'"{text[:47]}..."'
