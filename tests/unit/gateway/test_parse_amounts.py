"""The digits of an amount or a price survive, whatever way a JSON number is written."""

from __future__ import annotations

import json
import re
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


TYPES = {"amount": "market", "limitPrice": "limit", "minLiquidity": "sniper", "maxPrice": "sniper"}
"""Every field that is read so, and a type of order that has it."""


def read(field: str, written: str) -> str:
    order = {"side": "sell", "inputToken": "SOL", "outputToken": "USDC", "type": TYPES[field], "amount": 1}
    body = json.dumps(order | {field: "WRITTEN"}).replace('"WRITTEN"', written)
    found = getattr(parse_order(read_json(body.encode())), re.sub("[A-Z]", r"_\g<0>", field).lower())
    assert isinstance(found, str)
    return found


def check_exact(field: str, whole: str, fraction: str, exponent: int | None) -> None:
    written = (whole.lstrip("0") or "0") + f".{fraction}"
    if exponent is not None:
        written += f"e{exponent:+d}"
    try:
        amount = read(field, written)
    except InvalidOrder:
        # Only for decimals that no token has.
        assert Decimal(written) * 10**18 % 1 != 0
        return
    assert Decimal(amount) == Decimal(written)
    assert "e" not in amount.lower()


@given(st.sampled_from(list(TYPES)), digits, digits, exponents)
@example("amount", "0", "1", None)
@example("limitPrice", "0", "30000000000000004", None)
@example("minLiquidity", "1", "5", 3)
@example("maxPrice", "1", "0", -12)
def test_a_json_number_means_exactly_what_is_written(
    field: str, whole: str, fraction: str, exponent: int | None
) -> None:
    check_exact(field, whole, fraction, exponent)


def test_an_exponent_may_have_zeros_before_it() -> None:
    assert read("amount", "1e+0005") == "100000"


def _through_float(text: str) -> str:
    return repr(float(text))


def _without_the_point(text: str) -> str:
    return text.replace(".", "").split("e")[0]


@pytest.mark.parametrize("mutant", [_through_float, _without_the_point])
@pytest.mark.parametrize("field", TYPES)
def test_the_check_catches_digits_that_are_lost(field: str, mutant: Callable[[str], str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.parse, "_without_exponent", mutant)
        with pytest.raises(AssertionError):
            check_exact(field, "12345678901", "12345678901", 1)


@given(
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=200)
)
@example(b'{"amount":1e999999999999}')
@example(b'"\\ud800"')
def test_no_body_does_anything_but_parse_or_be_refused(body: bytes) -> None:
    try:
        parse_order(read_json(body))
    except HttpRefusal as refused:
        # What is shown of it can be sent.
        refused.message.encode()
    except InvalidOrder as refused:
        json.dumps([refused.message, *(line.field for line in refused.violations)]).encode()
        refused.message.encode()


@pytest.mark.parametrize("field", TYPES)
@pytest.mark.parametrize(
    "written",
    ["1e400", "1e-400", "1e99999999999999999999", "1" * 65, "0." + "1" * 19, '"0.' + "1" * 30 + '"', "true"],
)
def test_what_no_amount_and_no_price_can_be_is_refused_at_once(field: str, written: str) -> None:
    with pytest.raises(InvalidOrder) as refused:
        read(field, written)
    assert [line.field for line in refused.value.violations] == [field]
    assert len(refused.value.message) < 120


@pytest.mark.parametrize("field", TYPES)
def test_what_is_no_number_at_all_is_no_json(field: str) -> None:
    with pytest.raises(HttpRefusal, match="NaN is no number"):
        read(field, "NaN")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"side":"se\nll"}', "Invalid control character at character 11"),
        (b'{"side":"sell', "Unterminated string starting at character 8"),
        (b'{"side" 1}', "Expecting ':' delimiter at character 8"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(body: bytes, said: str) -> None:
    with pytest.raises(HttpRefusal) as refused:
        read_json(body)
    assert refused.value.message == f"the body is not JSON: {said}"
