"""What is asked, however it is spelled, is told apart from everything else that can be asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from orders.v1 import orders_pb2 as pb

from engine.domain.errors import InvalidOrder
from engine.domain.order import OrderSpec, OrderStatus, Side
from engine.domain.tokens import TOKENS
from server.convert import (
    fingerprint,
    order_id_from_proto,
    page_token_from_proto,
    page_token_to_proto,
    spec_from_proto,
    spec_to_proto,
    statuses_from_proto,
)


@st.composite
def specs(draw: st.DrawFn) -> OrderSpec:
    input_token, output_token = draw(st.permutations(TOKENS))[:2]
    return OrderSpec(
        draw(st.sampled_from(Side)),
        draw(st.integers(1, 2**64 - 1)),
        input_token,
        output_token,
        draw(st.none() | st.integers(0, 10_000)),
        # Microseconds: what the database keeps of a time.
        draw(st.none() | st.datetimes(timezones=st.just(UTC))),
    )


@given(specs())
def test_a_spec_survives_the_wire_digit_by_digit(spec: OrderSpec) -> None:
    assert spec_from_proto(spec_to_proto(spec)) == spec


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
