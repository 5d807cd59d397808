"""An amount's digits survive, whatever way a JSON number is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gateway.parse
from client import InvalidOrder
from gateway.parse import parse_order, read_json
from gateway.problems import HttpRefusal

digits = st.text("0123456789", min_size=1, max_size=12)
exponents = st.one_of(st.none(), st.integers(-12, 12))


def amount_of(written: str) -> str:
    body = f'{{"side":"sell","amount":{written},"inputToken":"SOL","outputToken":"USDC"}}'
    amount = parse_order(read_json(body.encode())).amount
    assert isinstance(amount, str)
    return amount


def check_exact(whole: str, fraction: str, exponent: int | None) -> None:
    written = (whole.lstrip("0") or "0") + f".{fraction}"
    if exponent is not None:
        written += f"e{exponent:+d}"
    try:
        amount = amount_of(written)
    except InvalidOrder:
        # Only for decimals that no token has.
        assert Decimal(written) * 10**18 % 1 != 0
        return
    assert Decimal(amount) == Decimal(written)
    assert "e" not in amount.lower()


@given(digits, digits, exponents)
@example("0", "1", None)
@example("0", "30000000000000004", None)
@example("1", "5", 3)
@example("1", "0", -12)
def test_a_json_number_means_exactly_what_is_written(whole: str, fraction: str, exponent: int | None) -> None:
    check_exact(whole, fraction, exponent)


def _through_float(text: str) -> str:
    return repr(float(text))


def _without_the_point(text: str) -> str:
    return text.replace(".", "").split("e")[0]


@pytest.mark.parametrize("mutant", [_through_float, _without_the_point])
def test_the_check_catches_digits_that_are_lost(mutant: Callable[[str], str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.parse, "_without_exponent", mutant)
        with pytest.raises(AssertionError):
            check_exact("12345678901", "12345678901", 1)


@given(
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=200)
)
@example(b'{"amount":1e999999999999}')
@example(b'"\\ud800"')
def test_no_body_does_anything_but_parse_or_be_refused(body: bytes) -> None:
    try:
        parse_order(read_json(body))
    except (HttpRefusal, InvalidOrder) as refused:
        # What is shown of it can be sent.
        json.dumps([refused.message, *(line.field for line in refused.violations)]).encode()
        refused.message.encode()


@pytest.mark.parametrize("written", ["1e400", "1e-400", "1e99999999999999999999", "1" * 65, "0." + "1" * 19])
def test_what_no_amount_can_be_is_refused_at_once(written: str) -> None:
    with pytest.raises(InvalidOrder) as refused:
        amount_of(written)
    assert [line.field for line in refused.value.violations] == ["amount"]
    assert len(refused.value.message) < 120
