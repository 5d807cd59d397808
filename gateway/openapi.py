"""The OpenAPI document. Schemas are made from the client's dataclasses, so names cannot drift from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from client import (
    FailureReason,
    Order,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    OrderType,
    Quote,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
)
from client.json_text import EVENT_FIELDS, PRICES, camel, json_bytes
from gateway.parse import MOST

Json = dict[str, Any]

# 3.0, the newest that the bundled Swagger UI reads.
_VERSION: Final = "3.0.3"

_ABOUT: Final[Mapping[str, str]] = {
    "side": "sell spends exactly `amount` of inputToken; buy receives exactly `amount` of outputToken.",
    "amount": "In whole tokens. As a number it is taken digit by digit, never as binary floating point.",
    "inputToken": "Symbol, or base58 address of any mint.",
    "outputToken": "Symbol, or base58 address of any mint.",
    "type": "market executes now; limit once the whole amount is to be had at limitPrice or better; sniper "
    "as soon as outputToken is to be had. Limit and sniper orders are pending until then, and may be again.",
    "limitPrice": "limit only, needed: outputToken per inputToken, the least an input token must bring, all "
    "fees, price impact and splits counted in.",
    "minLiquidity": "sniper only: whole inputToken that the pair's open pools must hold together. Absent: "
    "any route that fills the order, also one over another token.",
    "maxPrice": "sniper only: inputToken per outputToken, the most an output token may cost, everything "
    "counted in. The reverse of price and limitPrice: one divided by them. Absent: any price.",
    "slippageBps": "Worst acceptable move from the quoted price, in basis points.",
    "expireTime": "The order expires if not broadcast by then.",
    "price": "outputToken per inputToken. Quoted until confirmed, then realised.",
    "inputAmount": "In whole tokens. Quoted until confirmed, then realised.",
    "outputAmount": "In whole tokens. Quoted until confirmed, then realised.",
    "txHash": "Hash of the latest attempt's transaction.",
    "failureMessage": "For people. On a pending event after the first one, why the order waits again.",
    "sequence": "1, 2, 3 ... per order, without gaps: the cursor of a watch.",
    "attempt": "From 1.",
    "feePpm": "Hundredths of a basis point of the leg the fee is taken from.",
    "priceImpactPpm": "Hundredths of a basis point.",
    "thresholdAmount": "Least output (sell) or most input (buy) the program accepts on chain.",
    "refusal": "Why the pool cannot fill the order.",
    "feeAmount": "In whole feeToken: part of the input if that is its token, else deducted from the output.",
    "feeToken": "Symbol.",
    "gapAmount": "Proved: no way to share the order out over these pools is better by more than this, "
    "in whole tokens of output (sell) or input (buy).",
    "gapPpm": "The same in millionths, rounded up.",
    "middleToken": "What the first of two hops gives and the second takes. Absent unless there are two.",
    "legs": "The largest first; of two hops, the first one first.",
    "realisedSlippagePpm": "How much worse than quoted a confirmed order was filled, in millionths; "
    "negative if better. Quoted is the last routing decision's route, realised are the order's own amounts.",
}

_DECIMALS: Final = ("amount", "limitPrice", "minLiquidity", "maxPrice")
"""Fields of an order that may be sent as a number or as a string, and are read digit by digit."""

_LAUNCHED: Final = "XvQ7zF43oKw5Fwuphth4PC4V3Mhp2yELQc7LfXdqKqv"
"""The token that simnet launches first."""
_SELL: Final = {"side": "sell", "amount": 1.5, "inputToken": "SOL", "outputToken": "USDC"}
_EXAMPLES: Final[Json] = {
    "market": {"summary": "Sell 1.5 SOL now", "value": _SELL},
    "limit": {
        "summary": "Sell 1.5 SOL once it brings 150 USDC each",
        "value": _SELL | {"type": "limit", "limitPrice": 150, "expireTime": "2030-01-31T12:00:00Z"},
    },
    "sniper": {
        "summary": "Spend 1 SOL on a new token as soon as its pools hold 10 SOL, at 0.001 SOL each at most",
        "value": {
            "side": "sell",
            "amount": 1,
            "inputToken": "SOL",
            "outputToken": _LAUNCHED,
            "type": "sniper",
            "minLiquidity": 10,
            "maxPrice": 0.001,
        },
    },
}
"""One of each order type."""


@cache
def openapi_body() -> bytes:
    return json_bytes(openapi())


def openapi() -> Json:
    """Return the document."""
    return {
        "openapi": _VERSION,
        "info": {
            "title": "Order execution engine",
            "version": "1",
            "description": "Submit swap orders on Solana venues and follow them. The same API over gRPC, "
            "with more to it for programs, is `orders.v1.OrderService`.",
        },
        "paths": {
            "/api/orders/execute": {"post": _execute()},
            "/api/orders": {"get": _list()},
            "/api/orders/{orderId}": {"get": _get()},
            "/api/orders/{orderId}/cancel": {"post": _cancel()},
            "/api/orders/{orderId}/ws": {"get": _follow()},
            "/api/quote": {"get": _quote()},
        },
        "components": {"schemas": _schemas()},
    }


def _execute() -> Json:
    return {
        "summary": "Submit an order",
        "description": "Answers at once; follow the order on its WebSocket. Which fields a type of order "
        "has is said with them; one that belongs to another type is refused.",
        "operationId": "execute",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "1 to 64 printable ASCII characters. The same key with the same order answers "
                "the same order, for ever.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 64},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("OrderSpec"), "examples": _EXAMPLES}},
        },
        "responses": {
            "202": _answer("Accepted", "Accepted", "Location"),
            "200": _answer("Accepted before, under this key", "Accepted", "Location", "Idempotent-Replayed"),
            **_problems(400, 403, 408, 413, 415, 422, 429, 431, 500, 503),
        },
    }


def _list() -> Json:
    return {
        "summary": "List orders, newest first",
        "operationId": "list",
        "parameters": [
            _query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": MOST, "default": 50},
                "At most this many; more than 500 are taken as 500.",
            ),
            _query("pageToken", {"type": "string"}, "nextPageToken of the page before."),
            _query(
                "status",
                {"type": "array", "items": _plain_type_of("status", OrderStatus)},
                "Only orders in one of these; may come several times.",
            ),
            _query(
                "type",
                {"type": "array", "items": _plain_type_of("type", OrderType)},
                "Only orders of one of these; may come several times, and together with status.",
            ),
        ],
        "responses": {"200": _answer("A page", "OrderPage"), **_problems(400, 431, 500, 503)},
    }


def _get() -> Json:
    return {
        "summary": "An order as it stands, and how each attempt was routed",
        "operationId": "get",
        "parameters": [_ORDER_ID],
        "responses": {"200": _answer("The order", "OrderDetails"), **_problems(400, 404, 431, 500, 503)},
    }


def _cancel() -> Json:
    return {
        "summary": "Cancel an order that has not been broadcast",
        "operationId": "cancel",
        "parameters": [_ORDER_ID],
        "responses": {
            "200": _answer("Cancelled", "Accepted"),
            **_problems(400, 403, 404, 409, 431, 500, 503),
        },
    }


def _follow() -> Json:
    return {
        "summary": "Follow an order (WebSocket)",
        "description": "Each message is one `OrderEvent`: first those that have happened, then each as it "
        "happens. Closes with 1000 after the last one; 4404 for an unknown order; 4400 for an `after` that "
        "is no sequence of the order, or another parameter; 1012 when the gateway restarts and 1013 when the "
        "client reads too slowly: connect again with `after`.",
        "operationId": "follow",
        "parameters": [
            _ORDER_ID,
            _query(
                "after",
                {"type": "integer", "minimum": 0, "maximum": MOST, "default": 0},
                "Only events after this sequence.",
            ),
        ],
        "responses": {"101": {"description": "Switching to WebSocket"}, **_problems(400, 403, 426, 431, 503)},
    }


def _quote() -> Json:
    return {
        "summary": "What each pool offers, and the route that would be chosen",
        "description": "Takes what an order takes. Of a limit or sniper order too it is what is offered now.",
        "operationId": "quote",
        "parameters": [
            {**_query(name, schema), "required": name in _REQUIRED}
            for name, schema in _spec_schema()["properties"].items()
        ],
        "responses": {
            "200": _answer("The decision", "RoutingDecision"),
            **_problems(400, 409, 431, 500, 503),
        },
    }


# ---- Schemas ---------------------------------------------------------------------------------------


def _schemas() -> Json:
    order = _schema(Order)
    spec = _spec_schema()
    order["properties"] = {
        name: schema
        for name, schema in {**order["properties"], **spec["properties"]}.items()
        if name != "spec"
    }
    order["required"] = ["orderId", "status", "sequence", "attempt", *_REQUIRED, "type"]
    for name in _DECIMALS:
        order["properties"][name] = _type_of(name, str)
    event = _schema(OrderEvent)
    keys = [camel(name) for name in (*EVENT_FIELDS, "attempt")]
    event["properties"] = {key: event["properties"][key] for key in keys}
    event["required"] = ["orderId", "status", "sequence"]
    return {
        "OrderSpec": spec,
        "Order": order,
        "OrderDetails": {
            "allOf": [
                _ref("Order"),
                {
                    "type": "object",
                    "properties": {
                        "routingDecisions": {"type": "array", "items": _ref("RoutingDecision")},
                        "realisedSlippagePpm": _type_of("realisedSlippagePpm", int),
                    },
                },
            ]
        },
        "OrderPage": {
            "type": "object",
            "required": ["orders"],
            "properties": {
                "orders": {"type": "array", "items": _ref("Order")},
                "nextPageToken": {"type": "string", "description": "Absent on the last page."},
            },
        },
        "OrderEvent": event,
        **{kind.__name__: _schema(kind) for kind in (RoutingDecision, Quote, Route, RouteLeg)},
        "Accepted": {
            "type": "object",
            "required": ["success", "orderId", "status", "message"],
            "properties": {
                "success": {"type": "boolean"},
                "orderId": {"type": "string", "format": "uuid"},
                "status": _type_of("status", OrderStatus),
                "message": {"type": "string"},
            },
        },
        "Problem": {
            "type": "object",
            "required": ["type", "title", "status", "detail", "success", "message", "reason"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer", "description": "The HTTP code."},
                "detail": {"type": "string"},
                "success": {"type": "boolean"},
                "message": {"type": "string"},
                "reason": {"type": "string", "description": "For programs: ORDER_NOT_FOUND."},
                "errors": {
                    "type": "array",
                    "description": "One line for each field that was refused.",
                    "items": {
                        "type": "object",
                        "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                    },
                },
                "requestId": {
                    "type": "string",
                    "description": "Submit again with this Idempotency-Key: the order may have been stored.",
                },
            },
        },
    }


def _spec_schema() -> Json:
    schema = _schema(OrderSpec)
    schema["required"] = list(_REQUIRED)
    schema["additionalProperties"] = False
    for name in _DECIMALS:
        schema["properties"][name] = {
            "oneOf": [{"type": "number"}, {"type": "string"}],
            "description": _ABOUT[name],
        }
    schema["properties"]["type"]["default"] = str(OrderType.MARKET)
    return schema


def _schema(kind: type[Any]) -> Json:
    hints = get_type_hints(kind)
    properties = {camel(field.name): _type_of(camel(field.name), hints[field.name]) for field in fields(kind)}
    required = [camel(field.name) for field in fields(kind) if field.default is MISSING]
    return {"type": "object", "required": required, "properties": properties}


def _type_of(name: str, hint: Any) -> Json:
    schema = _plain_type_of(name, hint)
    if name in _ABOUT and "$ref" not in schema:
        schema["description"] = _ABOUT[name]
    return schema


def _plain_type_of(name: str, hint: Any) -> Json:
    if name in _PRICE_NAMES:
        return {"type": "number"}
    if isinstance(hint, UnionType):
        return _plain_type_of(name, next(part for part in get_args(hint) if part is not NoneType))
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _plain_type_of("", get_args(hint)[0])}
    if hint is datetime:
        return {"type": "string", "format": "date-time"}
    if hint in (str, Decimal):
        return {"type": "string"}
    if hint is int:
        return {"type": "integer"}
    if hint in (Side, OrderType, OrderStatus, FailureReason):
        members: type[StrEnum] = hint
        return {"type": "string", "enum": [str(member) for member in members if member.name != "UNKNOWN"]}
    return _ref(hint.__name__)


_PRICE_NAMES: Final = frozenset(map(camel, PRICES))
_REQUIRED: Final = ("side", "amount", "inputToken", "outputToken")

_ORDER_ID: Final[Json] = {
    "name": "orderId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "format": "uuid"},
}


def _query(name: str, schema: Json, about: str | None = None) -> Json:
    found: Json = {"name": name, "in": "query", "schema": schema}
    if about is not None:
        found["description"] = about
    return found


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(about: str, schema: str, *headers: str) -> Json:
    content = {"application/json": {"schema": _ref(schema)}}
    return {"description": about, "content": content, **_headers(*headers)}


_HEADERS: Final[Json] = {
    "Location": {"description": "Where the order is.", "schema": {"type": "string"}},
    "Idempotent-Replayed": {"description": "true", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}},
}


def _headers(*names: str) -> Json:
    return {"headers": {name: _HEADERS[name] for name in names}} if names else {}


_PROBLEMS: Final = {
    400: "A field, or a header, is malformed",
    403: "Pages of this origin may not use the gateway",
    404: "No such order",
    408: "The body did not arrive within 10 seconds",
    409: "The order, or the market, does not allow it",
    413: "The body is larger than 16 KiB",
    415: "The body is not JSON",
    422: "The key was used for another order",
    426: "Not a WebSocket handshake",
    429: "Too many orders; nothing was stored. Retry-After says when to come back",
    431: "The headers are larger than 16 KiB",
    500: "Something went wrong here; it was logged",
    503: "The engine cannot be reached, or the gateway is full, just now. Retry-After says when to come back",
}


def _problems(*codes: int) -> Json:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {
        str(code): {
            "description": _PROBLEMS[code],
            "content": content,
            **(_headers("Retry-After") if code in (429, 503) else {}),
        }
        for code in codes
    }
