"""Types of orders: which fields each takes, in a body, in a quote's query and as a filter of the list."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from client import InvalidOrder, OrderSpec, OrderStatus, OrderType, Side
from gateway.openapi import openapi
from gateway.parse import parse_order, parse_page, parse_quote, read_json

MINT = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
BARE = {"side": "sell", "amount": 1, "inputToken": "SOL", "outputToken": MINT}


def parsed(**fields: Any) -> OrderSpec:
    return parse_order(read_json(json.dumps(BARE | fields).encode()))


def spec(order_type: OrderType, **fields: str) -> OrderSpec:
    return OrderSpec(Side.SELL, "1", "SOL", MINT, type=order_type, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, spec(OrderType.MARKET)),
        ({"type": "market", "limitPrice": None}, spec(OrderType.MARKET)),
        ({"type": "limit", "limitPrice": 150}, spec(OrderType.LIMIT, limit_price="150")),
        ({"type": "limit", "limitPrice": "0.10"}, spec(OrderType.LIMIT, limit_price="0.10")),
        ({"type": "limit", "limitPrice": 1e-7}, spec(OrderType.LIMIT, limit_price="0.0000001")),
        ({"type": "sniper"}, spec(OrderType.SNIPER)),
        (
            {"type": "sniper", "minLiquidity": "10", "maxPrice": 0.001},
            spec(OrderType.SNIPER, min_liquidity="10", max_price="0.001"),
        ),
    ],
)
def test_an_order_of_each_type_is_read(fields: dict[str, Any], expected: OrderSpec) -> None:
    assert parsed(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"limitPrice": 150}, {"limitPrice": "is a field of limit orders, and this is a market order"}),
        ({"type": "limit"}, {"limitPrice": "is missing, and a limit order needs it"}),
        (
            {"type": "limit", "maxPrice": 1, "minLiquidity": 1},
            {
                "limitPrice": "is missing, and a limit order needs it",
                "maxPrice": "is a field of sniper orders, and this is a limit order",
                "minLiquidity": "is a field of sniper orders, and this is a limit order",
            },
        ),
        (
            {"type": "sniper", "limitPrice": 1},
            {"limitPrice": "is a field of limit orders, and this is a sniper order"},
        ),
        # One line a field: what is wrong with its value comes first.
        ({"limitPrice": True}, {"limitPrice": 'was true; must be a number, or a string such as "1.5"'}),
        # Which type was meant is not known, so nothing is said of its fields.
        ({"type": "stop", "limitPrice": 1}, {"type": 'was "stop"; must be market or limit or sniper'}),
        ({"type": "unknown"}, {"type": 'was "unknown"; must be market or limit or sniper'}),
    ],
)
def test_a_field_of_another_type_has_its_line(fields: dict[str, Any], lines: dict[str, str]) -> None:
    with pytest.raises(InvalidOrder) as refused:
        parsed(**fields)
    assert {line.field: line.description for line in refused.value.violations} == lines
    assert len(refused.value.violations) == len(lines)


def test_fields_of_another_type_are_told_with_all_else_that_is_wrong() -> None:
    with pytest.raises(InvalidOrder) as refused:
        parsed(side="hold", maxPrice=1, x=1)
    assert {line.field for line in refused.value.violations} == {"side", "maxPrice", "x"}


def test_a_quote_takes_what_an_order_takes() -> None:
    query = [(name, str(value)) for name, value in BARE.items()]
    limit = [*query, ("type", "limit"), ("limitPrice", "150"), ("slippageBps", "50")]
    assert parse_quote(limit) == OrderSpec(
        Side.SELL, "1", "SOL", MINT, 50, type=OrderType.LIMIT, limit_price="150"
    )
    sniper = [*query, ("type", "sniper"), ("minLiquidity", "10"), ("maxPrice", "0.001")]
    assert parse_quote(sniper) == spec(OrderType.SNIPER, min_liquidity="10", max_price="0.001")
    # As JavaScript spells them.
    small = [("side", "sell"), ("amount", "1e-7"), ("inputToken", "SOL"), ("outputToken", MINT)]
    assert parse_quote([*small, ("type", "limit"), ("limitPrice", "1e+21")]) == OrderSpec(
        Side.SELL, "0.0000001", "SOL", MINT, type=OrderType.LIMIT, limit_price="1" + 21 * "0"
    )
    with pytest.raises(InvalidOrder, match="limitPrice comes twice"):
        parse_quote([*limit, ("limitPrice", "150")])


def test_an_empty_text_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(InvalidOrder) as refused:
        parsed(type="sniper", amount="", minLiquidity="", maxPrice="", expireTime="")
    lines = {line.field: line.description for line in refused.value.violations}
    assert lines.keys() == {"amount", "minLiquidity", "maxPrice", "expireTime"}
    assert lines["maxPrice"] == 'was ""; must be a plain decimal number such as "1.5"'
    for order_type, name in (("sniper", "maxPrice"), ("market", "slippageBps"), ("market", "type")):
        query = BARE | {"type": order_type, name: ""}
        with pytest.raises(InvalidOrder, match=f"^{name} was "):
            parse_quote([(each, str(value)) for each, value in query.items()])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", '""'),
        ("abc", '"abc"'),
        ("1e2x", '"1e2x"'),
        ("0.5", "the number 0.5"),
        ("9" * 12, "the number 999999999999"),
    ],
)
def test_what_is_no_slippage_is_told_as_it_was_asked(asked: str, said: str) -> None:
    query = [(name, str(value)) for name, value in BARE.items()]
    with pytest.raises(InvalidOrder) as refused:
        parse_quote([*query, ("slippageBps", asked)])
    assert refused.value.message == f"slippageBps was {said}; must be a whole number of basis points"


@pytest.mark.parametrize("zone", ["+00:60", "-00:99", "+24:00", "+1:00", "", "z"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(InvalidOrder, match=r"^expireTime was .*; must be a time with its zone"):
        parsed(expireTime=f"2030-01-31T12:00:00{zone}")


def test_a_time_is_read_in_any_zone() -> None:
    noon = datetime(2030, 1, 31, 12, tzinfo=UTC)
    for text in ("2030-01-31T12:00:00Z", "2030-01-31T17:45:00+05:45", "2030-01-31T00:01:00-11:59"):
        assert parsed(expireTime=text).expire_time == noon


def test_a_list_is_filtered_by_several_types_and_statuses() -> None:
    query = [("type", "limit"), ("status", "pending"), ("type", "sniper"), ("limit", "5")]
    assert parse_page(query) == {
        "statuses": [OrderStatus.PENDING],
        "types": [OrderType.LIMIT, OrderType.SNIPER],
        "page_size": 5,
    }


@pytest.mark.parametrize("name", ["stop", "unknown", "", "LIMIT"])
def test_a_type_that_is_none_is_refused_as_a_filter(name: str) -> None:
    with pytest.raises(InvalidOrder, match="must be one of market, limit, sniper") as refused:
        parse_page([("type", name)])
    assert [line.field for line in refused.value.violations] == ["type"]


def test_the_documentation_has_an_example_of_each_type_that_can_be_sent() -> None:
    post = openapi()["paths"]["/api/orders/execute"]["post"]
    examples = post["requestBody"]["content"]["application/json"]["examples"]
    read = {
        name: parse_order(read_json(json.dumps(found["value"]).encode())) for name, found in examples.items()
    }
    assert {name: order.type for name, order in read.items()} == {
        str(known): known for known in OrderType if known is not OrderType.UNKNOWN
    }


def test_prices_are_documented_as_they_are_sent() -> None:
    schemas = openapi()["components"]["schemas"]
    kinds = {
        name: schemas["Order"]["properties"][name]["type"]
        for name in ("limitPrice", "maxPrice", "minLiquidity")
    }
    assert kinds == {"limitPrice": "number", "maxPrice": "number", "minLiquidity": "string"}
    for name in kinds:
        assert schemas["OrderSpec"]["properties"][name]["oneOf"] == [{"type": "number"}, {"type": "string"}]


def test_a_filter_and_a_query_are_documented() -> None:
    paths = openapi()["paths"]
    parameters = {found["name"]: found for found in paths["/api/orders"]["get"]["parameters"]}
    assert parameters["type"]["schema"]["items"]["enum"] == ["market", "limit", "sniper"]
    assert {"type", "limitPrice", "minLiquidity", "maxPrice"} <= {
        found["name"] for found in paths["/api/quote"]["get"]["parameters"]
    }
