"""The nouns: immutable, one word per thing, priced only once there are amounts."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from orders.v1 import orders_pb2

from engine.domain import order as nouns
from engine.domain.order import (
    Order,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    Route,
    RouteLeg,
    Side,
    price_of,
)
from engine.domain.order_types import MARKET, LimitOrder, OrderType, SniperOrder
from engine.domain.tokens import SOL, USDC

SPEC = OrderSpec(Side.SELL, 10**9, SOL, USDC)
DATACLASSES = [noun for noun in vars(nouns).values() if isinstance(noun, type) and is_dataclass(noun)]


@pytest.mark.parametrize("noun", DATACLASSES, ids=lambda noun: noun.__name__)
def test_a_noun_is_frozen_and_slotted(noun: Any) -> None:
    value: object = object.__new__(noun)
    for field in fields(noun):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)
    assert not hasattr(value, "__dict__")


def test_a_new_order_is_pending_with_its_first_event_on_its_first_attempt() -> None:
    order = Order(UUID(int=1), SPEC)
    assert (order.status, order.sequence, order.attempt) == (OrderStatus.PENDING, 1, 1)
    assert (order.open_attempt, order.route, order.tx_hash, order.failure_reason) == (None, None, None, None)


def test_sell_fixes_the_input_and_buy_the_output() -> None:
    assert SPEC.amount_token is SOL
    assert OrderSpec(Side.BUY, 10**6, SOL, USDC).amount_token is USDC


def test_a_route_trades_on_the_venue_of_its_first_leg() -> None:
    leg = RouteLeg("Meteora", "meteora_damm_v2", "pool", 1, 1)
    assert Route((leg,), 1, 1, 1).venue == "Meteora"


@pytest.mark.parametrize(
    ("input_amount", "output_amount", "price"),
    [
        (None, None, None),
        (10**9, None, None),
        (None, 10**6, None),
        (0, 10**6, None),
        (10**9, 0, "0"),
        (10**9, 105_500_000, "105.5"),
    ],
)
def test_there_is_a_price_once_there_are_amounts(
    input_amount: int | None, output_amount: int | None, price: str | None
) -> None:
    assert price_of(SPEC.input_token, SPEC.output_token, input_amount, output_amount) == price


def test_an_order_is_a_market_order_unless_it_says_otherwise() -> None:
    assert SPEC.type is MARKET


@pytest.mark.parametrize(
    ("order_type", "waits"),
    [(MARKET, False), (LimitOrder(Decimal(150)), True), (SniperOrder(), True)],
)
def test_an_order_waits_if_its_type_has_a_trigger(order_type: OrderType, waits: bool) -> None:
    assert replace(SPEC, type=order_type).waits is waits


@pytest.mark.parametrize(
    ("words", "values", "prefix"),
    [
        (nouns.OrderStatus, orders_pb2.OrderStatus.keys(), "ORDER_STATUS_"),
        (nouns.FailureReason, orders_pb2.FailureReason.keys(), "FAILURE_REASON_"),
        (nouns.Side, orders_pb2.Side.keys(), "SIDE_"),
    ],
    ids=["OrderStatus", "FailureReason", "Side"],
)
def test_the_domain_and_the_contract_use_the_same_words(
    words: type[nouns.OrderStatus], values: list[str], prefix: str
) -> None:
    assert {f"{prefix}{word.name}" for word in words} | {f"{prefix}UNSPECIFIED"} == set(values)
    assert all(word.value == word.name.lower() for word in words)


def test_an_event_tells_only_what_the_order_knows() -> None:
    own = {"create_time", "decision"}
    assert {field.name for field in fields(OrderEvent)} - own <= {field.name for field in fields(Order)}
