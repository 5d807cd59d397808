"""The client's nouns as JSON. That every key is the contract's is shown beside the gateway's tests."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from orders.v1 import orders_pb2 as pb

from client import (
    Order,
    OrderDetails,
    OrderEvent,
    OrderPage,
    OrderSpec,
    OrderStatus,
    OrderType,
    RoutingDecision,
    Side,
)
from client.convert import details_of, event_of
from client.json_text import (
    EVENT_FIELDS,
    camel,
    details_bytes,
    details_json,
    event_text,
    json_bytes,
    message_bytes,
    order_json,
    page_json,
)

ORDER = Order(
    order_id="0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77",
    spec=OrderSpec(Side.SELL, "1.5", "SOL", "USDC"),
    status=OrderStatus.CONFIRMED,
    sequence=5,
    venue="Raydium",
    price="105.123456789012345678",
    input_amount="1.5",
    output_amount="157.685185",
    tx_hash="5KtP",
    create_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def test_an_order_has_its_specs_fields_beside_its_own() -> None:
    text = json_bytes(order_json(ORDER)).decode()
    assert json.loads(text, parse_float=str) == {
        "orderId": "0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77",
        "status": "confirmed",
        "side": "sell",
        "amount": "1.5",
        "inputToken": "SOL",
        "outputToken": "USDC",
        "type": "market",
        "sequence": 5,
        "attempt": 1,
        "venue": "Raydium",
        "price": "105.123456789012345678",
        "inputAmount": "1.5",
        "outputAmount": "157.685185",
        "txHash": "5KtP",
        "createTime": "2026-01-02T03:04:05Z",
    }
    assert '"price":105.123456789012345678' in text, "a number, and every digit of it"


@pytest.mark.parametrize(
    ("of_type", "text"),
    [
        ({"type": OrderType.LIMIT, "limit_price": "150.50"}, '"type":"limit","limitPrice":150.50,'),
        ({"type": OrderType.SNIPER}, '"type":"sniper","sequence"'),
        (
            {"type": OrderType.SNIPER, "min_liquidity": "10", "max_price": "0.000000000000000001"},
            '"type":"sniper","minLiquidity":"10","maxPrice":0.000000000000000001,',
        ),
    ],
)
def test_prices_of_a_spec_are_numbers_and_its_liquidity_text(of_type: dict[str, Any], text: str) -> None:
    order = replace(ORDER, spec=replace(ORDER.spec, **of_type))
    assert text in json_bytes(order_json(order)).decode()


def test_details_hold_every_routing_decision() -> None:
    decision = RoutingDecision(slot=77, quotes=(), reason="none fits")
    found = details_json(OrderDetails(ORDER, (decision,)))
    assert found["routingDecisions"] == [{"slot": 77, "quotes": [], "reason": "none fits"}]


def test_a_page_has_a_token_unless_it_is_the_last() -> None:
    assert page_json(OrderPage((), "next")) == {"orders": [], "nextPageToken": "next"}
    assert page_json(OrderPage(())) == {"orders": []}


def test_an_event_names_the_attempt_from_the_second_on() -> None:
    first = OrderEvent("id", 3, OrderStatus.BUILDING, 1, "Raydium", "105.50", "1.5", "158.25")
    assert event_text(first) == (
        '{"orderId":"id","status":"building","sequence":3,"venue":"Raydium","price":105.50,'
        '"inputAmount":"1.5","outputAmount":"158.25"}'
    )
    assert json.loads(event_text(OrderEvent("id", 4, OrderStatus.ROUTING, 2)))["attempt"] == 2


TIME = Timestamp(seconds=1_900_000_000)
PROGRESS: dict[str, Any] = {
    "venue": "Raydium",
    "price": "105.50",
    "input_amount": "1.5",
    "output_amount": "158.25",
}


@pytest.mark.parametrize(
    "message",
    [
        pb.OrderEvent(order_id="id", sequence=1, status=pb.ORDER_STATUS_PENDING, attempt=1, create_time=TIME),
        pb.OrderEvent(
            order_id="id", sequence=5, status=pb.ORDER_STATUS_CONFIRMED, tx_hash="5KtP", **PROGRESS
        ),
        pb.OrderEvent(
            order_id="id",
            sequence=4,
            status=pb.ORDER_STATUS_ROUTING,
            failure_reason=pb.FAILURE_REASON_NO_ROUTE,
            failure_message='a "quoted" reason',
            attempt=2,
        ),
        pb.OrderEvent(order_id="id", sequence=2, status=77, failure_reason=99),  # type: ignore[arg-type]
        pb.OrderEvent(
            order_id="id",
            sequence=3,
            status=pb.ORDER_STATUS_BUILDING,
            legs=[
                pb.RouteLeg(venue="Raydium", pool="p1", input_amount="1.5", input_token="SOL", fee_ppm=2500),
                pb.RouteLeg(venue="Meteora", pool="p2"),
            ],
            **PROGRESS,
        ),
    ],
    ids=["first", "last", "second attempt", "newer than this client", "with legs"],
)
def test_an_event_reads_the_same_whichever_way_it_is_made(message: pb.OrderEvent) -> None:
    assert message_bytes(message).decode() == event_text(event_of(message))


def test_an_event_is_written_in_the_documented_order() -> None:
    message = pb.OrderEvent(
        order_id="id", sequence=4, status=pb.ORDER_STATUS_FAILED, failure_reason=pb.FAILURE_REASON_INTERNAL,
        failure_message="why", attempt=2, tx_hash="5KtP", legs=[pb.RouteLeg(venue="Raydium")], **PROGRESS,
    )  # fmt: skip
    assert list(json.loads(message_bytes(message))) == [camel(name) for name in (*EVENT_FIELDS, "attempt")]


@pytest.mark.parametrize(("name", "key"), [("status", "status"), ("last_valid_slot", "lastValidSlot")])
def test_keys_are_camelled_mechanically(name: str, key: str) -> None:
    assert camel(name) == key


QUOTE: dict[str, Any] = {
    "venue": "Raydium",
    "kind": "raydium_clmm",
    "pool": "7YttLkHDoNj9wyDur5pM1ejNaAvT9X4eqaYcHQqtj2G5",
    "input_amount": "1.5",
    "output_amount": "157.685185",
    "price": "105.123456789012345678",
    "fee_ppm": 0,
    "price_impact_ppm": 12,
    "fee_amount": "0",
    "fee_token": "SOL",
}
REFUSED: dict[str, Any] = {
    "venue": "Meteora",
    "kind": "meteora_dlmm",
    "pool": "p",
    "refusal": "no \u2028 liquidity",
}
LEG = QUOTE | {"input_token": "SOL", "output_token": "USDC", "threshold_amount": "156"}
LEG.pop("price")
ROUTE: dict[str, Any] = {
    "legs": [LEG, LEG | {"price_impact_ppm": 0}],
    "input_amount": "1.5",
    "output_amount": "157.685185",
    "price": "105.123456789012345678",
    "threshold_amount": "156",
}
DETAILS: list[dict[str, Any]] = [
    {},
    {"routing_decisions": [{"slot": 0, "reason": "no pool"}]},
    {
        "routing_decisions": [
            {"attempt": 1, "slot": 7, "quotes": [QUOTE, REFUSED], "route": ROUTE, "reason": "best"},
            {
                "attempt": 2,
                "slot": 8,
                "quotes": [REFUSED],
                "route": ROUTE | {"gap_amount": "0.1", "gap_ppm": 3, "middle_token": "BONK"},
                "reason": "",
            },
        ],
        "realised_slippage_ppm": 0,
    },
    {"realised_slippage_ppm": -3},
]


def details_message(details: dict[str, Any]) -> pb.GetOrderResponse:
    order = pb.Order(
        order_id=ORDER.order_id,
        spec=pb.OrderSpec(side=pb.SIDE_BUY, amount="1", input_token="SOL", output_token="USDC"),
        status=pb.ORDER_STATUS_FAILED,
        sequence=4,
        attempt=2,
        failure_reason=pb.FAILURE_REASON_NO_ROUTE,
        create_time=Timestamp(seconds=1, nanos=5000),
    )
    return pb.GetOrderResponse(order=order, **details)


@pytest.mark.parametrize("details", DETAILS)
def test_details_as_they_came_have_the_same_text(details: dict[str, Any]) -> None:
    message = details_message(details)
    assert details_bytes(message) == json_bytes(details_json(details_of(message)))


def test_what_a_decision_does_not_know_is_left_out_and_zeroes_are_not() -> None:
    message = details_message(DETAILS[2])
    first, second = json.loads(details_bytes(message), parse_float=str)["routingDecisions"]
    assert first["quotes"][0] == {camel(name): value for name, value in QUOTE.items()}
    assert set(first["quotes"][1]) == {"venue", "kind", "pool", "refusal", "feePpm", "priceImpactPpm"}
    assert first["route"]["legs"][1] == {camel(name): value for name, value in LEG.items()} | {
        "priceImpactPpm": 0
    }
    assert "gapAmount" not in first["route"]
    assert (first["route"]["gapPpm"], second["route"]["gapPpm"]) == (0, 3)
    assert (second["route"]["middleToken"], second["reason"], second["attempt"]) == ("BONK", "", 2)
