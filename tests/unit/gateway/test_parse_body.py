"""The short way to the usual order: whatever it is given, it answers as the long way does."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import gateway.parse
from client import InvalidOrder
from gateway.parse import parse_body, parse_order, read_json
from gateway.problems import HttpRefusal

USUAL = b'{"side":"sell","amount":1.5,"inputToken":"SOL","outputToken":"USDC"}'


def outcome(of: object) -> object:
    """What is to be equal: the order, or what is told of why there is none."""
    if isinstance(of, InvalidOrder):
        return of.message, of.violations
    if isinstance(of, HttpRefusal):
        return of.reason, of.message
    return of


def both_ways(body: bytes) -> tuple[object, object]:
    found: list[object] = []
    for read in (parse_body, lambda text: parse_order(read_json(text))):
        try:
            found.append(outcome(read(body)))
        except (InvalidOrder, HttpRefusal) as refusal:
            found.append(outcome(refusal))
    return found[0], found[1]


@pytest.mark.parametrize("amount", [b"1.5", b"10", b"0", b"0.000000001", b'"1.5"', b'"10"'])
def test_the_usual_order_takes_the_short_way(amount: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    body = USUAL.replace(b"1.5", amount)
    expected = parse_order(read_json(body))
    monkeypatch.setattr(gateway.parse, "read_json", None)
    assert parse_body(body) == expected
    assert parse_body(body.replace(b":", b" : ").replace(b",", b" ,\n")) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        USUAL[:-1],
        USUAL + b" ",
        USUAL + b"x",
        b"\xef\xbb\xbf" + USUAL,
        USUAL.replace(b"SOL", b"\xff"),
        USUAL.replace(b"SOL", b"\xed\xa0\x80"),
        USUAL.replace(b"SOL", b"\\ud800"),
        USUAL.replace(b"SOL", b"S\\u004fL"),
        USUAL.replace(b"SOL", b"a:b"),
        USUAL.replace(b"SOL", b"a\x00b"),
        USUAL.replace(b"SOL", "\N{SNOWMAN}".encode()),
        USUAL.replace(b'"SOL"', b"null"),
        USUAL.replace(b'"SOL"', b"7"),
        USUAL.replace(b"sell", b"SELL"),
        USUAL.replace(b'"sell"', b"1"),
        USUAL.replace(b'"outputToken"', b'"inputToken"'),
        USUAL.replace(b'"amount":1.5', b'"amount":1.5,"amount":2'),
        USUAL.replace(b'"amount":1.5,', b'"amount":1.5,"amount":2,').replace(b'"side":"sell",', b""),
        USUAL.replace(b'"amount"', b'"Amount"'),
        USUAL.replace(b"}", b',"type":"limit","limitPrice":1}'),
        USUAL.replace(b"}", b',"slippageBps":50}'),
        USUAL.replace(b"}", b',"expireTime":"2030-01-31T12:00:00Z"}'),
        *(
            USUAL.replace(b"1.5", amount)
            for amount in (
                b"-1", b"01", b"1.", b".5", b"1e3", b"1E-7", b"NaN", b"Infinity", b"true", b"{}", b"[1]",
                b'""', b'"01"', b'"-1"', b'"1e3"', b'" 1"', b"1" * 39, b"1" * 40, b"1" * 65,
                b"0." + b"1" * 18, b"0." + b"1" * 19, b"0." + b"1" * 18 + b"0", b'"1.5', b"1.5 ", b"1 5",
            )
        ),
    ],
)  # fmt: skip
def test_whatever_else_is_read_the_long_way(body: bytes) -> None:
    short, long = both_ways(body)
    assert short == long


texts = st.text(max_size=4) | st.sampled_from(["buy", "sell", "SOL", "USDC", "1.5", "-1", "1e5"])
values = texts | st.integers() | st.floats() | st.none() | st.lists(st.integers(), max_size=1)
names = st.sampled_from(["side", "amount", "inputToken", "outputToken", "type", "limitPrice", "other"])


@given(st.lists(st.tuples(names, values), max_size=6), st.booleans())
@example([("side", "buy"), ("amount", 1.5), ("inputToken", "SOL"), ("outputToken", "USDC")], False)
def test_both_ways_agree(fields: list[tuple[str, object]], ascii_only: bool) -> None:
    members = [f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=ascii_only)}" for name, value in fields]
    body = ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")
    short, long = both_ways(body)
    assert short == long
