"""The client's nouns as JSON. That every key is the contract's is shown beside the gateway's tests."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from client import Order, OrderDetails, OrderEvent, OrderPage, OrderSpec, OrderStatus, RoutingDecision, Side
from client.json_text import camel, details_json, event_text, json_bytes, order_json, page_json

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


@pytest.mark.parametrize(("name", "key"), [("status", "status"), ("last_valid_slot", "lastValidSlot")])
def test_keys_are_camelled_mechanically(name: str, key: str) -> None:
    assert camel(name) == key
