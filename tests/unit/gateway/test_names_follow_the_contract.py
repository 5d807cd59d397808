"""One word per thing: every JSON key is a field of the contract, camelCased, but for a few of HTTP's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor
from orders.v1 import orders_pb2 as pb

import client
from client import (
    FailureReason,
    Order,
    OrderDetails,
    OrderEvent,
    OrderPage,
    OrderSpec,
    OrderStatus,
    OrderType,
    Quote,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
)
from client.json_text import camel, details_json, event_text, json_bytes, page_json
from gateway.openapi import openapi
from gateway.parse import parse_order, read_json

HTTPS_OWN = {
    "success": "what clients of this API have always looked at first",
    "message": "the same; on a problem, for people to read",
    "type": "of a problem (RFC 9457); of an order it is the name of the contract's oneof; "
    "of a list: types, which may come several times",
    "title": "RFC 9457",
    "detail": "RFC 9457",
    "errors": "a problem's lines",
    "field": "google.rpc.BadRequest.FieldViolation.field",
    "requestId": "of a problem: the Idempotency-Key to come back with",
    "limit": "page_size, as REST spells it",
    "status": "of a list: statuses, which may come several times",
    "after": "after_sequence, as WebSocket addresses spell it",
}

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
ORDER = Order(
    "01890000-0000-7000-8000-000000000000",
    OrderSpec(Side.SELL, "1.5", "SOL", "USDC", 50, NOW),
    OrderStatus.FAILED,
    7,
    2,
    "Raydium",
    "105.5",
    "1.5",
    "158.25",
    "5" * 88,
    FailureReason.SLIPPAGE_EXCEEDED,
    "moved",
    NOW,
    NOW,
)
ORDERS = (
    ORDER,
    replace(ORDER, spec=replace(ORDER.spec, type=OrderType.LIMIT, limit_price="150.50")),
    replace(
        ORDER,
        spec=replace(ORDER.spec, type=OrderType.SNIPER, min_liquidity="10", max_price="0.000000001234567891"),
    ),
)
"""One of each type, with all that it can have."""
LEG = RouteLeg("Raydium", "raydium_cpmm", "pool", "1", "2", "SOL", "USDC", "1", "0.1", "SOL", 1, 1)
DECISION = RoutingDecision(
    1,
    (Quote("Raydium", "raydium_cpmm", "pool", "1", "2", "2", 1, 1, "no", "0.1", "SOL"),),
    "why",
    Route((LEG,), "1", "2", "2", "1", 1, "0.1", 1, "USDT"),
    1,
)
EVENT = OrderEvent(
    ORDER.order_id, 7, OrderStatus.FAILED, 2, "Raydium", "105.5", "1.5", "158.25", "5" * 88,
    FailureReason.SLIPPAGE_EXCEEDED, "moved", NOW, (LEG,),
)  # fmt: skip


def messages() -> Iterator[Descriptor]:
    yield from pb.DESCRIPTOR.message_types_by_name.values()


CONTRACT = {field.name for message in messages() for field in message.fields} | {
    oneof.name for message in messages() for oneof in message.oneofs
}
CAMELLED = {camel(name) for name in CONTRACT}


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


def schema_keys(schema: Any) -> Iterator[str]:
    """Names of properties anywhere in a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from schema_keys(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from schema_keys(inner)


def test_rest_and_websocket_keys_are_the_contracts() -> None:
    answers = [
        json.loads(json_bytes(details_json(OrderDetails(ORDER, (DECISION,), 12)))),
        json.loads(json_bytes(page_json(OrderPage(ORDERS, "next")))),
        json.loads(event_text(EVENT)),
    ]
    assert set(keys(answers)) - CAMELLED == set()


def test_openapi_names_are_the_contracts_or_https() -> None:
    document = openapi()
    parameters = {
        parameter["name"]
        for path in document["paths"].values()
        for operation in path.values()
        for parameter in operation.get("parameters", [])
    }
    names = set(schema_keys(document["components"])) | parameters - {"Idempotency-Key"}
    assert names - CAMELLED - set(HTTPS_OWN) == set()
    # A line that explains a name nobody uses is stale.
    assert set(HTTPS_OWN) <= names


def test_openapi_tells_every_key_that_is_sent() -> None:
    schemas = openapi()["components"]["schemas"]
    orders = json.loads(json_bytes(page_json(OrderPage(ORDERS))))["orders"]
    assert set().union(*orders) == set(schemas["Order"]["properties"])
    assert set(json.loads(event_text(EVENT))) == set(schemas["OrderEvent"]["properties"])
    decision = json.loads(json_bytes(details_json(OrderDetails(ORDER, (DECISION,)))))["routingDecisions"][0]
    assert set(decision) == set(schemas["RoutingDecision"]["properties"])
    assert set(decision["quotes"][0]) == set(schemas["Quote"]["properties"])
    assert set(decision["route"]) == set(schemas["Route"]["properties"])
    assert set(decision["route"]["legs"][0]) == set(schemas["RouteLeg"]["properties"])


def test_every_field_of_the_clients_nouns_is_the_contracts() -> None:
    for noun, message in (
        (client.OrderSpec, pb.OrderSpec),
        (client.Order, pb.Order),
        (client.OrderEvent, pb.OrderEvent),
        (client.Quote, pb.Quote),
        (client.Route, pb.Route),
        (client.RouteLeg, pb.RouteLeg),
        (client.RoutingDecision, pb.RoutingDecision),
    ):
        spelled = {field.name for field in message.DESCRIPTOR.fields}
        oneofs = {oneof.name for oneof in message.DESCRIPTOR.oneofs if not oneof.name.startswith("_")}
        members = [
            field for oneof in message.DESCRIPTOR.oneofs for field in oneof.fields if oneof.name in oneofs
        ]
        # An order's type is a message there, and its name with that message's fields here.
        kinds = [member.message_type for member in members if member.message_type is not None]
        flat = {field.name for kind in kinds for field in kind.fields}
        spelled -= {member.name for member in members}
        assert {field.name for field in fields(noun)} == spelled | oneofs | flat, noun


def test_every_status_type_and_reason_of_the_contract_is_known_to_the_client() -> None:
    for enum, prefix, mine in (
        (pb.OrderStatus, "ORDER_STATUS_", OrderStatus),
        (pb.FailureReason, "FAILURE_REASON_", FailureReason),
        (pb.Side, "SIDE_", Side),
        (pb.OrderType, "ORDER_TYPE_", OrderType),
    ):
        names = {name.removeprefix(prefix) for name, _ in enum.items()} - {"UNSPECIFIED"}
        assert {member.name for member in mine} - {"UNKNOWN"} == names


def test_an_order_that_is_read_can_be_posted_again() -> None:
    schema = openapi()["components"]["schemas"]["OrderSpec"]["properties"]
    page = msgspec.json.decode(
        json_bytes(page_json(OrderPage(ORDERS))), type=dict[str, list[dict[str, msgspec.Raw]]]
    )
    for order, body in zip(ORDERS, page["orders"], strict=True):
        # Digit by digit: Python's own reading of a number would be another.
        spec = {name: value for name, value in body.items() if name in schema}
        assert parse_order(read_json(msgspec.json.encode(spec))) == order.spec


def test_a_price_keeps_the_engines_digits() -> None:
    long = "0.000000001234567891"
    assert f'"price":{long}' in event_text(replace(EVENT, price=long))
    assert msgspec.json.decode(event_text(EVENT))["price"] == 105.5
