"""Limit orders: the terms as written, the limit to the last base unit, what is said while one waits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from engine.domain.amounts import least_output
from engine.domain.errors import InvalidOrder
from engine.domain.order import OrderSpec, Side
from engine.domain.order_types import LimitOrder, TriggerKind
from engine.domain.order_types import limit as limit_file
from engine.domain.tokens import BONK, SOL, USDC, Token
from tests.unit.engine.domain.order_types.drawn_orders import (
    ALL_PHASES,
    GENERATE,
    NO_DECIMALS,
    a_route,
    a_spec,
    amounts,
    checked,
    price_texts,
    prices,
    tokens,
)

LIMIT = LimitOrder(Decimal("150.5"))
SELL = OrderSpec(Side.SELL, 2 * 10**9, SOL, USDC, type=LIMIT)
BUY = OrderSpec(Side.BUY, 301 * 10**6, SOL, USDC, type=LIMIT)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("150.5", "150.5"),
        ("007.50", "7.5"),
        ("150", "150"),
        ("100.000", "100"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("99999999999999999999.999999999999999999", "99999999999999999999.999999999999999999"),
    ],
)
def test_limit_price_is_kept_as_written_in_its_shortest_spelling(text: str, kept: str) -> None:
    order_type = LimitOrder.read({"limit_price": text}, SOL, USDC)
    assert order_type == LimitOrder(Decimal(text))
    assert order_type.terms(SOL) == {"limit_price": kept}


@pytest.mark.parametrize("text", NO_DECIMALS)
def test_what_is_no_price_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidOrder, match="must be a plain decimal number") as refused:
        LimitOrder.read({"limit_price": text}, SOL, USDC)
    (line,) = refused.value.violations
    assert line.field == "limit_price"
    assert len(line.description) < 120, "hostile text is not echoed at length"


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ({}, 'is missing; must be a price such as "150.5", output_token per input_token'),
        ({"limit_price": ""}, 'is missing; must be a price such as "150.5", output_token per input_token'),
        ({"limit_price": "0"}, "was 0; must be greater than zero"),
        ({"limit_price": "0.00"}, "was 0.00; must be greater than zero"),
        ({"limit_price": "1" + "0" * 30}, "has 31 digits before the point; at most 20"),
        ({"limit_price": "0." + "0" * 29 + "1"}, "has 30 decimals; at most 18"),
    ],
)
def test_price_that_is_missing_zero_or_too_long_is_refused_with_what_would_do(
    terms: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InvalidOrder) as refused:
        LimitOrder.read(terms, SOL, USDC)
    assert [(line.field, line.description) for line in refused.value.violations] == [
        ("limit_price", sentence)
    ]


def test_limit_is_the_least_output_of_a_sale_and_the_most_input_of_a_purchase() -> None:
    assert LIMIT.limit_amount(SELL) == 301 * 10**6
    assert LIMIT.limit_amount(BUY) == 2 * 10**9
    # What is no whole base unit is rounded so that the price is kept.
    assert LIMIT.limit_amount(replace(SELL, amount=1)) == 1
    assert LIMIT.limit_amount(replace(BUY, amount=1)) == 6
    assert LIMIT.limit_amount(replace(SELL, amount=2 * 10**9 + 1)) == 301 * 10**6 + 1


def test_order_is_found_by_the_price_of_its_limit_in_base_units() -> None:
    for spec in (SELL, BUY):
        trigger = LIMIT.trigger(spec)
        assert trigger.kind is TriggerKind.PRICE
        assert trigger.level == pytest.approx(0.1505, rel=1e-15)


@pytest.mark.parametrize(
    ("spec", "route", "sentence"),
    [
        (SELL, None, "no pool can fill the order now; the limit is 150.5"),
        (BUY, None, "no pool can fill the order now; the limit is 150.5"),
        (SELL, (2 * 10**9, 301 * 10**6), None),
        (SELL, (2 * 10**9, 301 * 10**6 + 1), None),
        (
            SELL,
            (2 * 10**9, 301 * 10**6 - 1),
            "the whole amount would be filled at 150.4999995 now; the limit is 150.5",
        ),
        (
            SELL,
            (2 * 10**9, 0),
            "the whole amount would be filled at 0 now; the limit is 150.5",
        ),
        (BUY, (2 * 10**9, 301 * 10**6), None),
        (BUY, (2 * 10**9 - 1, 301 * 10**6), None),
        (
            BUY,
            (2_010_000_000, 301 * 10**6),
            "the whole amount would be filled at 149.751243781 now; the limit is 150.5",
        ),
    ],
)
def test_order_waits_while_the_route_is_worse_than_its_limit_and_says_how_much(
    spec: OrderSpec, route: tuple[int, int] | None, sentence: str | None
) -> None:
    # What the pools hold is nothing to it.
    assert LIMIT.unmet(spec, None if route is None else a_route(*route), 0) == sentence


@pytest.mark.parametrize(
    ("spec", "price", "sentence"),
    [
        (
            OrderSpec(Side.SELL, 10**19, BONK, SOL),
            "100",
            "amount is worth, at its price, more output than fits on chain",
        ),
        (
            OrderSpec(Side.BUY, 1, USDC, BONK),
            "1000000",
            "amount is worth, at its price, less than one base unit of input",
        ),
    ],
)
def test_order_that_nothing_could_ever_fill_is_refused(spec: OrderSpec, price: str, sentence: str) -> None:
    order_type = LimitOrder(Decimal(price))
    with pytest.raises(InvalidOrder, match=re.escape(sentence)):
        order_type.check(replace(spec, type=order_type))


# ---- Properties: each is shown to fail on a mutant --------------------------------------------------


def check_round_trip(phases: Sequence[Phase] = ALL_PHASES) -> None:
    @checked(phases)
    @given(price_texts)
    def holds(text: str) -> None:
        order_type = LimitOrder.read({"limit_price": text}, SOL, USDC)
        terms = order_type.terms(SOL)
        assert Fraction(terms["limit_price"]) == Fraction(text)
        assert not re.search(r"^0\d|\.\d*0$|\.$|[^0-9.]", terms["limit_price"]), "the one shortest spelling"
        assert LimitOrder.read(terms, SOL, USDC) == order_type

    holds()


def check_limit_amount(phases: Sequence[Phase] = ALL_PHASES) -> None:
    @checked(phases)
    @given(st.sampled_from(Side), amounts, prices, tokens, tokens)
    def holds(side: Side, amount: int, price: Decimal, input_token: Token, output_token: Token) -> None:
        spec = a_spec(side, amount, input_token, output_token, LimitOrder(price))
        per_unit = Fraction(price) * Fraction(10**output_token.decimals, 10**input_token.decimals)
        exact = ceil(amount * per_unit) if side is Side.SELL else floor(amount / per_unit)
        assert spec.type.limit_amount(spec) == exact

    holds()


def test_terms_and_reading_round_trip() -> None:
    check_round_trip()


def test_limit_amount_is_exact_for_both_sides_and_all_decimals() -> None:
    check_limit_amount()


@pytest.mark.parametrize(
    "mutant",
    [Decimal, lambda text: Decimal(repr(float(text))), lambda text: Decimal(text).normalize()],
    ids=["as written", "through a float", "to 28 digits"],
)
def test_the_round_trip_property_catches(
    mutant: Callable[[str], Decimal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_file, "parse_price", mutant)
    with pytest.raises(AssertionError):
        check_round_trip(GENERATE)


Limit = Callable[[int, Decimal, Token, Token], int]


def _per_unit(price: Decimal, input_token: Token, output_token: Token) -> Fraction:
    return Fraction(price) * Fraction(10**output_token.decimals, 10**input_token.decimals)


def _by_floats(amount: int, price: Decimal, input_token: Token, output_token: Token) -> int:
    return ceil(amount * float(_per_unit(price, input_token, output_token)))


def _without_decimals(amount: int, price: Decimal, input_token: Token, output_token: Token) -> int:
    return ceil(amount * Fraction(price))


def _rounded_down(amount: int, price: Decimal, input_token: Token, output_token: Token) -> int:
    return floor(amount * _per_unit(price, input_token, output_token))


def _rounded_up(amount: int, price: Decimal, input_token: Token, output_token: Token) -> int:
    return ceil(amount / _per_unit(price, input_token, output_token))


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("least_output", _by_floats),
        ("least_output", _without_decimals),
        ("least_output", _rounded_down),
        ("most_input", _rounded_up),
        ("most_input", least_output),
    ],
)
def test_the_limit_amount_property_catches(name: str, mutant: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_file, name, mutant)
    with pytest.raises(AssertionError):
        check_limit_amount(GENERATE)
