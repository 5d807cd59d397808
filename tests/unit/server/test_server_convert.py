"""What is asked, however it is spelled, is told apart from everything else that can be asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given, reject
from hypothesis import strategies as st
from orders.v1 import orders_pb2 as pb

from engine.domain.amounts import parse_price
from engine.domain.errors import InvalidOrder
from engine.domain.order import (
    Order,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    Quote,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
    WatchedEvent,
)
from engine.domain.order_types import ORDER_TYPES, LimitOrder, MarketOrder, SniperOrder
from engine.domain.pools.pool import FeeSide
from engine.domain.tokens import BONK, SOL, TOKENS, USDC, Token
from server.convert import (
    decision_fields,
    event_fields,
    fingerprint,
    order_id_from_proto,
    order_to_proto,
    page_token_from_proto,
    page_token_to_proto,
    realised_slippage_ppm,
    spec_from_proto,
    statuses_from_proto,
    types_from_proto,
)

prices = st.decimals("1e-18", 10**20 - 1, places=18).map(lambda price: parse_price(f"{price:f}"))
order_types = st.one_of(
    st.just(MarketOrder()),
    prices.map(LimitOrder),
    st.builds(SniperOrder, st.none() | st.integers(1, 2**64 - 1), st.none() | prices),
)


@st.composite
def specs(draw: st.DrawFn) -> OrderSpec:
    input_token, output_token = draw(st.permutations(TOKENS))[:2]
    spec = OrderSpec(
        draw(st.sampled_from(Side)),
        draw(st.integers(1, 2**64 - 1)),
        input_token,
        output_token,
        draw(st.none() | st.integers(0, 10_000)),
        # Microseconds: what the database keeps of a time.
        draw(st.none() | st.datetimes(timezones=st.just(UTC))),
        draw(order_types),
    )
    try:
        spec.type.check(spec)
    except InvalidOrder:
        reject()
    return spec


@given(specs())
def test_a_spec_survives_the_wire_digit_by_digit(spec: OrderSpec) -> None:
    assert spec_from_proto(order_to_proto(Order(UUID(int=1), spec)).spec) == spec


def collides(make: Any, one: OrderSpec, other: OrderSpec) -> bool:
    return make(one) == make(other) and one != other


def run_together(spec: OrderSpec) -> bytes:
    """The mutant: a fingerprint of the fields without anything between them."""
    slippage_bps = "" if spec.slippage_bps is None else str(spec.slippage_bps)
    texts = (spec.side.value, spec.input_token.mint, spec.output_token.mint, str(spec.amount), slippage_bps)
    return sha256("".join(texts).encode()).digest()


NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
NEIGHBOURS = [
    OrderSpec(Side.SELL, 12, TOKENS[0], TOKENS[1], 3, NOON),
    OrderSpec(Side.SELL, 1, TOKENS[0], TOKENS[1], 23, NOON),
    OrderSpec(Side.SELL, 123, TOKENS[0], TOKENS[1], None, NOON),
    OrderSpec(Side.SELL, 123, TOKENS[0], TOKENS[1], 0, NOON),
    OrderSpec(Side.BUY, 123, TOKENS[0], TOKENS[1], None, NOON),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, NOON),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, NOON + timedelta(microseconds=1)),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, None),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, None, LimitOrder(Decimal(1))),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, None, LimitOrder(Decimal(12))),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, None, SniperOrder()),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, None, SniperOrder(None, Decimal(1))),
    OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, None, SniperOrder(10**9, None)),
]


def test_orders_that_differ_have_different_fingerprints() -> None:
    assert len({fingerprint(spec) for spec in NEIGHBOURS}) == len(NEIGHBOURS)
    assert collides(run_together, NEIGHBOURS[0], NEIGHBOURS[1])


@given(specs(), specs())
@example(NEIGHBOURS[0], NEIGHBOURS[1])
def test_a_fingerprint_is_of_all_that_was_asked(one: OrderSpec, other: OrderSpec) -> None:
    assert not collides(fingerprint, one, other)
    assert fingerprint(one) == fingerprint(replace(one))
    assert len(fingerprint(one)) == 32


def test_the_fingerprint_of_a_market_order_is_what_it_always_was() -> None:
    texts = ("market", "buy", "123", TOKENS[1].mint, TOKENS[0].mint, "", NOON.isoformat())
    known = sha256(b"".join([len(text).to_bytes(4, "big") + text.encode() for text in texts])).digest()
    assert fingerprint(OrderSpec(Side.BUY, 123, TOKENS[1], TOKENS[0], None, NOON)) == known


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ({"limit": {"limit_price": "150.50"}}, {"limit": {"limit_price": "0150.5"}}),
        (
            {"sniper": {"max_price": "0.10", "min_liquidity": "5.0"}},
            {"sniper": {"max_price": "0.1", "min_liquidity": "5"}},
        ),
        ({"market": {}}, {}),
    ],
)  # fmt: skip
def test_terms_are_the_same_however_they_are_spelled(asked: dict[str, Any], same: dict[str, Any]) -> None:
    plain: dict[str, Any] = {
        "side": pb.SIDE_SELL,
        "amount": "1",
        "input_token": "SOL",
        "output_token": "USDC",
    }
    one, other = (spec_from_proto(pb.OrderSpec(**plain, **type_)) for type_ in (asked, same))
    assert one == other
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"limit": {}}, {"spec.limit.limit_price"}),
        ({"limit": {"limit_price": "0"}}, {"spec.limit.limit_price"}),
        ({"limit": {"limit_price": "NaN"}}, {"spec.limit.limit_price"}),
        ({"limit": {"limit_price": "1e400"}}, {"spec.limit.limit_price"}),
        ({"limit": {"limit_price": "-1"}}, {"spec.limit.limit_price"}),
        ({"limit": {"limit_price": "1." + "1" * 30}}, {"spec.limit.limit_price"}),
        ({"limit": {"limit_price": "9" * 20}}, {"spec.amount"}),
        (
            {"sniper": {"max_price": "x", "min_liquidity": "0"}},
            {"spec.sniper.max_price", "spec.sniper.min_liquidity"},
        ),
        ({"sniper": {"min_liquidity": "0.0000000001"}}, {"spec.sniper.min_liquidity"}),
        ({"limit": {"limit_price": "x"}, "amount": "-1", "side": 0}, {"spec.side", "spec.limit.limit_price"}),
    ],
)  # fmt: skip
def test_every_term_that_is_wrong_has_its_line(asked: dict[str, Any], fields: set[str]) -> None:
    plain: dict[str, Any] = {
        "side": pb.SIDE_SELL, "amount": "18446744073", "input_token": "SOL", "output_token": "USDC",
    }  # fmt: skip
    with pytest.raises(InvalidOrder) as caught:
        spec_from_proto(pb.OrderSpec(**(plain | asked)))
    assert {line.field for line in caught.value.violations} == fields


@pytest.mark.parametrize(
    ("newer", "field", "said"),
    [
        # One more type in the oneof, with a text in its first field.
        (b"\x6a\x05\x0a\x03999", "spec", "field 13 of OrderSpec"),
        (b"\xf8\x3f\x01", "spec", "field 1023 of OrderSpec"),
        (b"\x52\x02\x08\x01", "spec.market", "field 1 of MarketOrder"),
        (b"\x5a\x06\x0a\x011\x12\x019", "spec.limit", "field 2 of LimitOrder"),
        (b"\x62\x03\x1a\x019", "spec.sniper", "field 3 of SniperOrder"),
    ],
)
def test_a_field_of_a_newer_contract_is_not_passed_over(newer: bytes, field: str, said: str) -> None:
    plain = pb.OrderSpec(side=pb.SIDE_SELL, amount="1", input_token="SOL", output_token="USDC")
    with pytest.raises(InvalidOrder) as refused:
        spec_from_proto(pb.OrderSpec.FromString(plain.SerializeToString() + newer))
    (line,) = refused.value.violations
    assert (line.field, line.description) == (field, f"has {said}, which this server does not know")


@pytest.mark.parametrize("time", [Timestamp(nanos=-1), Timestamp(nanos=10**9), Timestamp(seconds=2**40)])
def test_a_time_that_is_none_is_told_what_it_may_be(time: Timestamp) -> None:
    with pytest.raises(
        InvalidOrder, match="a time between the years 1 and 9999, its nanos from 0 to 999999999"
    ):
        spec_from_proto(pb.OrderSpec(expire_time=time))


def test_a_purchase_that_may_cost_nothing_is_refused() -> None:
    asked = pb.OrderSpec(
        side=pb.SIDE_BUY, amount="0.000001", input_token="SOL", output_token="USDC",
        limit=pb.LimitOrder(limit_price="9" * 20),
    )  # fmt: skip
    with pytest.raises(InvalidOrder, match="less than one base unit of input"):
        spec_from_proto(asked)


def test_any_token_that_is_found_can_be_ordered_and_is_told_by_its_mint() -> None:
    token = Token("HXzn" + "1" * 40, "HXzn" + "1" * 40, 9)
    asked = pb.OrderSpec(
        side=pb.SIDE_BUY, amount="1.5", input_token="SOL", output_token=token.mint, sniper=pb.SniperOrder()
    )
    spec = spec_from_proto(asked, find={"SOL": SOL, token.mint: token}.get)
    assert (spec.output_token, spec.amount, spec.type) == (token, 1_500_000_000, SniperOrder())
    assert order_to_proto(Order(UUID(int=1), spec)).spec == asked
    with pytest.raises(InvalidOrder, match="nor a mint on this chain"):
        spec_from_proto(asked)


def test_every_type_can_be_asked_for() -> None:
    numbers = [value.number for value in pb.OrderType.DESCRIPTOR.values if value.number]
    assert types_from_proto(numbers) == list(ORDER_TYPES)
    with pytest.raises(InvalidOrder, match="9 is not a type"):
        types_from_proto([9])


@given(st.uuids())
def test_a_page_token_names_its_order(order_id: Any) -> None:
    assert page_token_from_proto(page_token_to_proto(order_id)) == order_id
    assert order_id_from_proto(str(order_id).upper()) == order_id


@given(st.text(max_size=60))
def test_any_text_is_a_page_token_or_refused(text: str) -> None:
    try:
        order_id = page_token_from_proto(text)
    except InvalidOrder:
        return
    assert order_id is None or page_token_from_proto(page_token_to_proto(order_id)) == order_id


def test_every_status_can_be_asked_for() -> None:
    numbers = [value.number for value in pb.OrderStatus.DESCRIPTOR.values if value.number]
    assert statuses_from_proto(numbers) == list(OrderStatus)


@pytest.mark.parametrize("number", [0, 9, -1, 2**31 - 1])
def test_a_status_that_is_none_cannot(number: int) -> None:
    with pytest.raises(InvalidOrder, match=f"{number} is not a status"):
        statuses_from_proto([number])


# ---- Routes -----------------------------------------------------------------------------------------

HOPS = (
    RouteLeg("Raydium", "raydium_clmm", "p1", 2 * 10**9, 200 * 10**6, 199 * 10**6, 400, 3, 800_000),
    RouteLeg(
        "Meteora", "meteora_dlmm", "p2", 199 * 10**6, 8_700_000_00000, 8_656_500_00000, 100, 2, 1,
        FeeSide.OUTPUT,
    ),
)  # fmt: skip
TWO_HOPS = Route(HOPS, 2 * 10**9, 8_700_000_00000, 8_656_500_00000, 5, 43_500_00000, 4976, USDC)
SELL = OrderSpec(Side.SELL, 2 * 10**9, SOL, BONK)


def test_every_leg_is_told_in_its_own_tokens() -> None:
    decision = RoutingDecision(1, 7, (), TWO_HOPS, "why")
    told = pb.RoutingDecision(**decision_fields(decision, SELL)).route
    first, second = told.legs
    assert (first.input_amount, first.input_token) == ("2", "SOL")
    assert (first.output_amount, first.output_token) == ("200", "USDC")
    assert (first.threshold_amount, first.fee_amount, first.fee_token) == ("199", "0.0008", "SOL")
    assert (second.input_amount, second.input_token) == ("199", "USDC")
    assert (second.output_amount, second.output_token) == ("8700000", "BONK")
    assert (second.threshold_amount, second.fee_amount, second.fee_token) == ("8656500", "0.00001", "BONK")
    assert (told.middle_token, told.threshold_amount) == ("USDC", "8656500")
    assert (told.gap_amount, told.gap_ppm, told.price_impact_ppm) == ("43500", 4976, 5)


def test_what_a_leg_accepts_of_a_purchase_is_told_in_what_it_pays() -> None:
    fields = decision_fields(RoutingDecision(1, 7, (), TWO_HOPS, "why"), replace(SELL, side=Side.BUY))
    legs = pb.RoutingDecision(**fields).route.legs
    assert [leg.threshold_amount for leg in legs] == ["0.199", "865650"]


def test_a_fee_is_told_in_the_token_it_is_taken_in() -> None:
    quotes = tuple(Quote("Meteora", "meteora_dlmm", "p", 10, 20, 1, 1, None, 3, side) for side in FeeSide)
    refused = Quote("Meteora", "meteora_dlmm", "p", refusal="is empty")
    fields = decision_fields(RoutingDecision(1, 7, (*quotes, refused), None, "why"), SELL)
    told = pb.RoutingDecision(**fields).quotes
    assert [(quote.fee_amount, quote.fee_token) for quote in told] == [
        ("0.000000003", "SOL"),
        ("0.00003", "BONK"),
        ("", ""),
    ]


def test_only_an_event_with_a_route_has_legs() -> None:
    event = OrderEvent(UUID(int=1), 3, OrderStatus.BUILDING, 1)
    told = pb.OrderEvent(**event_fields(WatchedEvent(event, SOL, BONK, Side.SELL, TWO_HOPS)))
    assert [leg.pool for leg in told.legs] == ["p1", "p2"]
    assert not pb.OrderEvent(**event_fields(WatchedEvent(event, SOL, BONK))).legs


@pytest.mark.parametrize(
    ("side", "filled", "expected"),
    [
        (Side.SELL, (2 * 10**9, 8_700_000_00000), 0),
        (Side.SELL, (2 * 10**9, 8_613_000_00000), 10_000),
        (Side.SELL, (2 * 10**9, 8_700_000_00001), 0),
        (Side.SELL, (2 * 10**9, 8_700_870_00000), -100),
        (Side.BUY, (2 * 10**9 + 1, 8_700_000_00000), 1),
        (Side.BUY, (1_998_000_000, 8_700_000_00000), -1_000),
        # As far as the contract's int32 goes.
        (Side.BUY, (2 * 10**13, 8_700_000_00000), 2**31 - 1),
    ],
)
def test_realised_slippage_is_against_the_last_route(
    side: Side, filled: tuple[int, int], expected: int
) -> None:
    decisions = [
        RoutingDecision(1, 7, (), replace(TWO_HOPS, input_amount=1, output_amount=1), "before"),
        RoutingDecision(2, 9, (), TWO_HOPS, "now"),
    ]
    order = Order(UUID(int=1), replace(SELL, side=side), OrderStatus.CONFIRMED, 5, 2, None, *filled)
    assert realised_slippage_ppm(order, decisions) == expected
    assert realised_slippage_ppm(replace(order, status=OrderStatus.SUBMITTED), decisions) is None
    assert realised_slippage_ppm(order, []) is None
