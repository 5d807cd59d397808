"""Sniper orders: what they wait for, and a price that is the reverse of what it is elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest
from hypothesis import Phase, given
from hypothesis import strategies as st

from engine.domain.amounts import MAX_AMOUNT, format_amount, least_output, most_input
from engine.domain.errors import InvalidOrder
from engine.domain.order import OrderSpec, Side
from engine.domain.order_types import SniperOrder, Trigger, TriggerKind
from engine.domain.order_types import sniper as sniper_file
from engine.domain.tokens import JUP, SOL, USDC, Token
from tests.unit.engine.domain.order_types.drawn_orders import (
    ALL_PHASES,
    GENERATE,
    NO_DECIMALS,
    a_route,
    a_spec,
    amounts,
    checked,
    prices,
    tokens,
)

ANY = SniperOrder()
LARGE = SniperOrder(min_liquidity=100 * 10**9)
CHEAP = SniperOrder(max_price=Decimal("0.004"))
BOTH = SniperOrder(100 * 10**9, Decimal("0.004"))
SELL = OrderSpec(Side.SELL, 2 * 10**9, SOL, JUP)
BUY = OrderSpec(Side.BUY, 500 * 10**6, SOL, JUP)


@pytest.mark.parametrize(
    ("terms", "read", "kept"),
    [
        ({}, ANY, {}),
        ({"min_liquidity": "", "max_price": ""}, ANY, {}),
        ({"min_liquidity": "100"}, LARGE, {"min_liquidity": "100"}),
        ({"max_price": "00.0040"}, CHEAP, {"max_price": "0.004"}),
        (
            {"min_liquidity": "0100.00", "max_price": "0.004"},
            BOTH,
            {"min_liquidity": "100", "max_price": "0.004"},
        ),
    ],
)
def test_terms_are_kept_as_written_in_their_shortest_spelling(
    terms: dict[str, str], read: SniperOrder, kept: dict[str, str]
) -> None:
    assert SniperOrder.read(terms, SOL, JUP) == read
    assert read.terms(SOL) == kept


@pytest.mark.parametrize("field", ["min_liquidity", "max_price"])
@pytest.mark.parametrize("text", NO_DECIMALS)
def test_what_is_no_decimal_is_refused_by_its_field(field: str, text: str) -> None:
    with pytest.raises(InvalidOrder, match="must be a plain decimal number") as refused:
        SniperOrder.read({field: text}, SOL, JUP)
    (line,) = refused.value.violations
    assert line.field == field
    assert len(line.description) < 120, "hostile text is not echoed at length"


@pytest.mark.parametrize(
    ("terms", "lines"),
    [
        (
            {"min_liquidity": "0", "max_price": "0.0"},
            [
                ("min_liquidity", "was 0; must be greater than zero"),
                ("max_price", "was 0.0; must be greater than zero"),
            ],
        ),
        (
            {"min_liquidity": "0.0000000001"},
            [("min_liquidity", "was 0.0000000001; SOL has at most 9 decimals")],
        ),
        (
            {"min_liquidity": "99999999999"},
            [("min_liquidity", "was 99999999999; at most 18446744073.709551615 SOL fit on chain")],
        ),
    ],
)
def test_every_term_that_is_wrong_has_its_line(terms: dict[str, str], lines: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidOrder) as refused:
        SniperOrder.read(terms, SOL, JUP)
    assert [(line.field, line.description) for line in refused.value.violations] == lines


@pytest.mark.parametrize(
    ("order_type", "trigger"),
    [
        (ANY, Trigger(TriggerKind.LIQUIDITY, 0.0)),
        (LARGE, Trigger(TriggerKind.LIQUIDITY, 100e9)),
        # Where there is a price there are pools.
        (CHEAP, Trigger(TriggerKind.PRICE, 0.25)),
        (BOTH, Trigger(TriggerKind.PRICE, 0.25)),
    ],
)
def test_order_is_found_by_its_price_if_it_names_one_and_else_by_what_the_pools_hold(
    order_type: SniperOrder, trigger: Trigger
) -> None:
    assert order_type.trigger(SELL) == order_type.trigger(BUY) == trigger


def test_max_price_is_what_an_output_token_may_cost() -> None:
    # 500 JUP for 2 SOL.
    assert CHEAP.limit_amount(SELL) == 500 * 10**6
    assert CHEAP.limit_amount(BUY) == 2 * 10**9
    assert ANY.limit_amount(SELL) is None
    assert LARGE.limit_amount(BUY) is None
    # What is no whole base unit is rounded so that the price is kept.
    assert CHEAP.limit_amount(replace(SELL, amount=2 * 10**9 + 1)) == 500 * 10**6 + 1
    assert SniperOrder(max_price=Decimal("0.0045")).limit_amount(replace(BUY, amount=1)) == 4


GOOD, DEAR = a_route(2 * 10**9, 500 * 10**6), a_route(2 * 10**9, 400 * 10**6)
HELD = 100 * 10**9


@pytest.mark.parametrize(
    ("order_type", "spec", "route", "liquidity", "sentence"),
    [
        (ANY, SELL, DEAR, 0, None),
        (ANY, SELL, None, HELD, "no pool can fill the order now"),
        (LARGE, SELL, DEAR, HELD, None),
        (LARGE, SELL, GOOD, HELD - 1, "the pools hold 99.999999999 SOL; min_liquidity is 100"),
        (LARGE, BUY, None, 0, "the pools hold 0 SOL; min_liquidity is 100"),
        (LARGE, SELL, None, HELD, "no pool can fill the order now"),
        (CHEAP, SELL, GOOD, 0, None),
        (CHEAP, SELL, DEAR, 0, "an output token would cost 0.005 now; max_price is 0.004"),
        (CHEAP, SELL, a_route(2 * 10**9, 0), 0, "no pool can fill the order now"),
        (CHEAP, BUY, GOOD, 0, None),
        (
            CHEAP,
            BUY,
            a_route(2 * 10**9 + 1, 500 * 10**6),
            0,
            "an output token would cost 0.004000000002 now; max_price is 0.004",
        ),
        (BOTH, SELL, GOOD, HELD, None),
        (BOTH, SELL, GOOD, 0, "the pools hold 0 SOL; min_liquidity is 100"),
        (BOTH, SELL, DEAR, HELD, "an output token would cost 0.005 now; max_price is 0.004"),
    ],
)
def test_order_waits_while_there_is_too_little_or_it_is_too_dear_and_says_so(
    order_type: SniperOrder, spec: OrderSpec, route: Any, liquidity: int, sentence: str | None
) -> None:
    assert order_type.unmet(replace(spec, type=order_type), route, liquidity) == sentence


def test_order_that_nothing_could_ever_fill_is_refused() -> None:
    tiny = SniperOrder(max_price=Decimal("0.000000000000000001"))
    with pytest.raises(InvalidOrder, match="more output than fits on chain"):
        tiny.check(OrderSpec(Side.SELL, 10**10, USDC, SOL, type=tiny))
    with pytest.raises(InvalidOrder, match="less than one base unit of input"):
        tiny.check(OrderSpec(Side.BUY, 1, USDC, SOL, type=tiny))
    for order_type in (ANY, LARGE):
        order_type.check(OrderSpec(Side.SELL, MAX_AMOUNT, USDC, SOL, type=order_type))


# ---- Properties: each is shown to fail on a mutant --------------------------------------------------


def check_round_trip(phases: Sequence[Phase] = ALL_PHASES) -> None:
    @checked(phases)
    @given(st.one_of(st.none(), amounts), st.one_of(st.none(), prices), tokens)
    def holds(min_liquidity: int | None, max_price: Decimal | None, token: Token) -> None:
        order_type = SniperOrder(min_liquidity, max_price)
        terms = order_type.terms(token)
        assert all(terms.values()), "what is unset is left out"
        assert SniperOrder.read(terms, token, JUP) == order_type

    holds()


def check_reverse(phases: Sequence[Phase] = ALL_PHASES) -> None:
    @checked(phases)
    @given(st.sampled_from(Side), amounts, prices, tokens, tokens)
    def holds(side: Side, amount: int, price: Decimal, input_token: Token, output_token: Token) -> None:
        spec = a_spec(side, amount, input_token, output_token, SniperOrder(max_price=price))
        cost = Fraction(price) * Fraction(10**input_token.decimals, 10**output_token.decimals)
        exact = ceil(amount / cost) if side is Side.SELL else floor(amount * cost)
        assert spec.type.limit_amount(spec) == exact

    holds()


def test_terms_and_reading_round_trip() -> None:
    check_round_trip()


def test_max_price_is_exact_for_both_sides_and_all_decimals() -> None:
    check_reverse()


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("format_amount", lambda amount, token: format_amount(amount, SOL)),
        ("format_amount", lambda amount, token: f"{amount / 10**token.decimals:.9f}"),
        ("parse_price", lambda text: Decimal(repr(float(text)))),
    ],
    ids=["decimals of another token", "through a float", "price through a float"],
)
def test_the_round_trip_property_catches(
    name: str, mutant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sniper_file, name, mutant)
    with pytest.raises((AssertionError, InvalidOrder)):
        check_round_trip(GENERATE)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("least_output", lambda *terms, inverse: least_output(*terms)),
        ("most_input", lambda *terms, inverse: most_input(*terms)),
        (
            "least_output",
            lambda amount, price, *pair, inverse: least_output(amount, 1 / price, *pair),
        ),
        ("least_output", lambda *terms, inverse: least_output(*terms, inverse=inverse) - 1),
        ("most_input", lambda *terms, inverse: most_input(*terms, inverse=inverse) + 1),
    ],
    ids=["not reversed, sale", "not reversed, purchase", "reversed to 28 digits", "one less", "one more"],
)
def test_the_max_price_property_catches(
    name: str, mutant: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sniper_file, name, mutant)
    with pytest.raises(AssertionError):
        check_reverse(GENERATE)
