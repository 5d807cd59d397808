"""What all order types share: their names and fields are the contract's, and no trigger hides an order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import Phase, assume, given
from hypothesis import strategies as st
from orders.v1 import orders_pb2 as pb

from engine.domain.amounts import MAX_AMOUNT
from engine.domain.errors import InvalidOrder
from engine.domain.order import OrderSpec, Side
from engine.domain.order_types import (
    MARKET,
    ORDER_TYPES,
    LimitOrder,
    MarketOrder,
    OrderType,
    SniperOrder,
    TriggerKind,
    is_within,
    limit,
    sniper,
)
from engine.domain.order_types import order_type as order_type_file
from engine.domain.tokens import SOL, USDC, Token
from tests.unit.engine.domain.order_types.drawn_orders import (
    ALL_PHASES,
    GENERATE,
    a_route,
    a_spec,
    amounts,
    checked,
    prices,
    tokens,
)

priced_types = st.one_of(
    st.builds(LimitOrder, prices), st.builds(SniperOrder, st.one_of(st.none(), amounts), prices)
)


def test_order_types_are_those_of_the_contract_by_the_same_names() -> None:
    messages = {"market": pb.MarketOrder, "limit": pb.LimitOrder, "sniper": pb.SniperOrder}
    assert list(ORDER_TYPES) == [one.name for one in pb.OrderSpec.DESCRIPTOR.oneofs_by_name["type"].fields]
    for name, kind in ORDER_TYPES.items():
        assert kind.name == name
        assert is_dataclass(kind)
        assert list(messages[name].DESCRIPTOR.fields_by_name) == [term.name for term in fields(kind)]


def test_market_order_has_no_terms_no_limit_and_waits_for_nothing() -> None:
    spec = OrderSpec(Side.SELL, 1, SOL, USDC)
    assert MarketOrder.read({}, SOL, USDC) == MARKET == spec.type
    assert MARKET.terms(SOL) == {}
    assert (MARKET.limit_amount(spec), MARKET.trigger(spec)) == (None, None)
    assert MARKET.unmet(spec, None, 0) is None
    MARKET.check(spec)


@pytest.mark.parametrize("kind", ORDER_TYPES.values())
def test_order_type_is_a_value(kind: type[OrderType]) -> None:
    terms = {"limit_price": "150.5"}
    one, same = kind.read(terms, SOL, USDC), kind.read(terms, SOL, USDC)
    assert one == same
    assert hash(one) == hash(same)
    assert not hasattr(one, "__dict__")


@pytest.mark.parametrize(
    ("side", "route", "within"),
    [
        (Side.SELL, (5, 10), True),
        (Side.SELL, (5, 11), True),
        (Side.SELL, (5, 9), False),
        (Side.BUY, (10, 5), True),
        (Side.BUY, (9, 5), True),
        (Side.BUY, (11, 5), False),
    ],
)
def test_route_is_within_a_limit_that_it_meets(side: Side, route: tuple[int, int], within: bool) -> None:
    spec = OrderSpec(side, 5, SOL, USDC)
    assert is_within(spec, a_route(*route), 10) is within
    assert is_within(spec, a_route(*route), None)


# ---- Properties: each is shown to fail on a mutant --------------------------------------------------


def check_no_level_is_too_high(phases: Sequence[Phase] = ALL_PHASES) -> None:
    @checked(phases)
    @given(priced_types, st.sampled_from(Side), amounts, tokens, tokens, st.integers(0, 3), amounts)
    def holds(
        order_type: OrderType,
        side: Side,
        amount: int,
        input_token: Token,
        output_token: Token,
        off: int,
        elsewhere: int,
    ) -> None:
        spec = a_spec(side, amount, input_token, output_token, order_type)
        try:
            order_type.check(spec)
        except InvalidOrder:
            assume(False)
        limit_amount, trigger = order_type.limit_amount(spec), order_type.trigger(spec)
        assert limit_amount is not None
        assert trigger is not None
        assert trigger.kind is TriggerKind.PRICE
        # At the limit, within it by little, anywhere.
        for other in (limit_amount, limit_amount + off, limit_amount - off, elsewhere):
            route = a_route(amount, other) if side is Side.SELL else a_route(other, amount)
            if other > 0 and is_within(spec, route, limit_amount):
                assert route.output_amount / route.input_amount >= trigger.level * (1 - 1e-9)

    holds()


def check_refuses_what_nothing_fills(phases: Sequence[Phase] = ALL_PHASES) -> None:
    @checked(phases)
    @given(priced_types, st.sampled_from(Side), amounts, tokens, tokens)
    def holds(
        order_type: OrderType, side: Side, amount: int, input_token: Token, output_token: Token
    ) -> None:
        spec = a_spec(side, amount, input_token, output_token, order_type)
        # The best that any pool on chain could do.
        best = a_route(amount, MAX_AMOUNT) if side is Side.SELL else a_route(1, amount)
        fillable = order_type.unmet(spec, best, MAX_AMOUNT) is None
        try:
            order_type.check(spec)
        except InvalidOrder:
            assert not fillable
        else:
            assert fillable

    holds()


def test_no_trigger_is_too_high_for_a_route_within_the_limit() -> None:
    check_no_level_is_too_high()


def test_order_is_refused_if_and_only_if_nothing_on_chain_could_fill_it() -> None:
    check_refuses_what_nothing_fills()


_level_of = order_type_file.level_of


@pytest.mark.parametrize(
    "mutant",
    [
        lambda spec, limit_amount: _level_of(spec, limit_amount) * (1 + 1e-8),
        lambda spec, limit_amount: _level_of(spec, limit_amount + 1 if spec.sells else limit_amount),
        lambda spec, limit_amount: 1 / _level_of(spec, limit_amount),
        lambda spec, limit_amount: spec.amount / (limit_amount * (1 - 1e-6)),
    ],
    ids=["a little too high", "beyond the limit", "the other way round", "of a purchase, less"],
)
def test_the_level_property_catches(
    mutant: Callable[[OrderSpec, int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for order_type in (limit, sniper):
        monkeypatch.setattr(order_type, "level_of", mutant)
    with pytest.raises(AssertionError):
        check_no_level_is_too_high(GENERATE)


def _checks_nothing(self: OrderType, spec: OrderSpec) -> None:
    return


def _checks_one_side(self: OrderType, spec: OrderSpec) -> None:
    if not spec.sells:
        _check(self, spec)


def _refuses_dear_ones(self: OrderType, spec: OrderSpec) -> None:
    _check(self, spec)
    if (self.limit_amount(spec) or 0) > MAX_AMOUNT // 2:
        raise InvalidOrder([])


_check = OrderType.check


@pytest.mark.parametrize("mutant", [_checks_nothing, _checks_one_side, _refuses_dear_ones])
def test_the_refusal_property_catches(
    mutant: Callable[[OrderType, OrderSpec], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrderType, "check", mutant)
    with pytest.raises(AssertionError):
        check_refuses_what_nothing_fills(GENERATE)
