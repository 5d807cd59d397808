"""Strict reading of what clients send. Whatever is not plainly right is refused, with a line for each field.

JSON is read by the standard library's parser, whose hooks keep a number's own digits and see every
key: amounts and prices never pass through binary floating point, and a key that comes twice is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NoReturn

import msgspec

from client import FieldViolation, OrderSpec, OrderStatus, OrderType, Side
from client.convert import shown
from client.json_text import camel
from client.order_types import PATHS, check_type_fields
from gateway.problems import HttpRefusal, InvalidFields

MAX_BODY_BYTES: Final = 16 * 1024
MAX_DEPTH: Final = 16

_LONGEST_AMOUNT: Final = 64
"""Characters. The longest amount or price the engine takes is 39."""
_MOST_DECIMALS: Final = 18
"""No token has more, and no price is read to more."""

_NUMBER: Final = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?", re.ASCII)
_PLAIN: Final = re.compile(r"[0-9]+(?:\.([0-9]+))?", re.ASCII)
_INTEGER: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)
MOST: Final = 10**9 - 1
"""The largest _INTEGER."""
_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-5][0-9])",
    re.ASCII,
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Number(str):
    """A JSON number, as it was written."""

    __slots__ = ()


def read_json(body: bytes) -> Any:
    """Return what the JSON text says, numbers as Number.

    Raises HttpRefusal (BAD_REQUEST): not UTF-8, not JSON, NaN or Infinity, a key twice in an object, an
    unpaired surrogate, nested deeper than MAX_DEPTH.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8 at byte {error.start}") from None
    if _depth(text) > MAX_DEPTH:
        raise _malformed(f"the body is nested deeper than {MAX_DEPTH} levels")
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        # Some of its messages end with the word themselves.
        said = error.msg.removesuffix(" at")
        raise _malformed(f"the body is not JSON: {said} at character {error.pos}") from None
    if "\\u" in text and _holds_surrogate(value):
        raise _malformed("the body holds an unpaired surrogate")
    return value


class _UsualOrder(msgspec.Struct, forbid_unknown_fields=True):
    """What most ask for: a market order at the default slippage, which stays until it is executed."""

    side: Side
    amount: msgspec.Raw
    inputToken: str  # noqa: N815
    outputToken: str  # noqa: N815


_decode_usual: Final = msgspec.json.Decoder(_UsualOrder).decode
_USUAL_AMOUNT: Final = re.compile(rb'("?)((?:0|[1-9][0-9]{0,38})(?:\.[0-9]{1,18})?)\1')


def parse_body(body: bytes) -> OrderSpec:
    """Return the order that a JSON text asks for. Raises what `read_json` and `parse_order` raise.

    They take 33 us; the usual order takes 5 here, and what is unusual or wrong is theirs.
    """
    # A key that comes twice has a colon of its own.
    if body.count(b":") == len(_UsualOrder.__struct_fields__) and b"\\" not in body:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError):
            usual = _decode_usual(body)
            if amount := _USUAL_AMOUNT.fullmatch(usual.amount):
                return OrderSpec(usual.side, amount[2].decode(), usual.inputToken, usual.outputToken)
    return parse_order(read_json(body))


def parse_order(fields: Any) -> OrderSpec:
    """Return the order that a JSON object, or a query's names and values, asks for.

    Raises InvalidFields with a line for each field that is missing, unknown, of the wrong kind or of another
    order type. What amounts, prices, tokens and times are acceptable is for the order service to say.
    """
    if not isinstance(fields, dict):
        raise HttpRefusal("BAD_REQUEST", 'the body must be a JSON object such as {"side":"sell", ...}')
    lines = [
        FieldViolation(shown(name), "is not a field of an order")
        for name in fields
        if name not in _ORDER_FIELDS
    ]
    values: dict[str, Any] = {}
    for name, (required, read) in _ORDER_FIELDS.items():
        value = fields.get(name)
        if value is None:
            if required:
                lines.append(FieldViolation(name, "is missing"))
            continue
        try:
            values[name] = read(value)
        except ValueError as error:
            lines.append(FieldViolation(name, str(error)))
    lines += _misfits(fields, {line.field for line in lines}, values.get("type", OrderType.MARKET))
    if lines:
        raise InvalidFields("; ".join(f"{line.field} {line.description}" for line in lines), violations=lines)
    return OrderSpec(
        values["side"],
        values["amount"],
        values["inputToken"],
        values["outputToken"],
        values.get("slippageBps"),
        values.get("expireTime"),
        values.get("type", OrderType.MARKET),
        values.get("limitPrice"),
        values.get("minLiquidity"),
        values.get("maxPrice"),
    )


def _misfits(fields: Mapping[str, Any], told: Collection[str], order_type: OrderType) -> list[FieldViolation]:
    """Return a line for each field that the order's type does not have, or needs; but for those told."""
    if "type" in told:
        return []  # which type was meant is not known
    given = [name for name, key in _TYPE_KEYS.items() if fields.get(key) is not None]
    lines = [
        FieldViolation(_TYPE_KEYS[line.field.rpartition(".")[2]], line.description)
        for line in check_type_fields(order_type, given)
    ]
    return [line for line in lines if line.field not in told]


def parse_quote(query: Sequence[tuple[str, str]]) -> OrderSpec:
    """Return the order that a query asks the price of. Raises InvalidFields."""
    fields = _single(query)
    for name in _NUMBERS & fields.keys():
        # What is no number is told as the text that it is.
        if _NUMBER.fullmatch(fields[name]):
            fields[name] = Number(fields[name])
    return parse_order(fields)


def parse_page(query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the arguments of `OrderClient.list_page`. `status` and `type` may come often.

    Raises InvalidFields.
    """
    found: dict[str, Any] = {"statuses": [], "types": []}
    for name, value in query:
        if name in _LISTED:
            argument, members = _LISTED[name]
            if value not in members:
                raise _invalid(name, f'was "{shown(value)}"; must be one of {", ".join(members)}')
            found[argument].append(members[value])
    single = _single([(name, value) for name, value in query if name not in _LISTED])
    for name, value in single.items():
        if name == "limit":
            if not _INTEGER.fullmatch(value) or int(value) < 1:
                raise _invalid(name, f'was "{shown(value)}"; must be a whole number from 1 to {MOST}')
            found["page_size"] = int(value)
        elif name == "pageToken":
            found["page_token"] = value
        else:
            raise _invalid(shown(name), "is not a parameter; there are limit, pageToken, status and type")
    return found


def parse_watch(query: Sequence[tuple[str, str]]) -> int:
    """Return the sequence after which a watch begins, 0 if the query names none. Raises InvalidFields."""
    single = _single(query)
    text = single.pop("after", "0")
    for name in single:
        raise _invalid(shown(name), "is not a parameter; there is after")
    if not _INTEGER.fullmatch(text) or int(text) < 0:
        raise _invalid("after", f'was "{shown(text)}"; must be a whole number from 0 to {MOST}')
    return int(text)


def parse_request_id(headers: Sequence[str]) -> str | None:
    """Return the Idempotency-Key, None if there is none. Raises InvalidFields for several or an empty one."""
    if not headers:
        return None
    if len(headers) > 1:
        raise _invalid("Idempotency-Key", "comes twice")
    if not headers[0]:
        raise _invalid("Idempotency-Key", "is empty; must be 1 to 64 printable ASCII characters")
    return headers[0]


def _single(query: Sequence[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in query:
        if name in found:
            raise _invalid(shown(name), "comes twice")
        found[name] = value
    return found


# ---- Fields of an order: each reads a JSON value or raises ValueError --------------------------------


def _text(value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Number):
        raise ValueError(f"was {_kind(value)}; must be a string")
    return value


def _members(kind: type[StrEnum]) -> dict[str, Any]:
    """Return what a client may name: all but what a newer contract has."""
    return {str(member): member for member in kind if member.name != "UNKNOWN"}


def _one_of(kind: type[StrEnum]) -> Callable[[Any], Any]:
    allowed = _members(kind)

    def read(value: Any) -> Any:
        text = _text(value)
        found = allowed.get(text)
        if found is None:
            raise ValueError(f'was "{shown(text)}"; must be {" or ".join(allowed)}')
        return found

    return read


def _decimal(value: Any) -> str:
    """Return an amount or a price as plain decimal text.

    1e-7, as browsers write small numbers, becomes 0.0000001.
    """
    if not isinstance(value, str):
        raise ValueError(f'was {_kind(value)}; must be a number, or a string such as "1.5"')
    text = str(value)
    if isinstance(value, Number):
        text = _without_exponent(text)
    if not text:
        # The contract cannot tell it from an unset one, so that a price cap would be dropped unseen.
        raise ValueError('was ""; must be a plain decimal number such as "1.5"')
    if len(text) > _LONGEST_AMOUNT:
        raise ValueError(f'was "{shown(text)}"; has {len(text)} digits, more than any amount or price')
    plain = _PLAIN.fullmatch(text)
    if plain and plain[1] and len(plain[1].rstrip("0")) > _MOST_DECIMALS:
        raise ValueError(f"has {len(plain[1])} decimals; at most {_MOST_DECIMALS}")
    return text


def _without_exponent(text: str) -> str:
    match = _NUMBER.fullmatch(text)
    if match is None or match[4] is None:
        return text
    sign, whole, fraction = match[1], match[2], match[3] or ""
    if len(text) > _LONGEST_AMOUNT or abs(int(match[4])) > _LONGEST_AMOUNT:
        raise ValueError(f"was {shown(text)}; nothing is that large or small")
    digits = whole + fraction
    point = len(whole) + int(match[4])
    if point <= 0:
        digits, point = "0" * (1 - point) + digits, 1
    digits = digits.ljust(point, "0")
    whole, fraction = digits[:point].lstrip("0") or "0", digits[point:].rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def _basis_points(value: Any) -> int:
    if not isinstance(value, Number) or not _INTEGER.fullmatch(value):
        raise ValueError(f"was {_kind(value)}; must be a whole number of basis points")
    return int(value)


def _time(value: Any) -> datetime:
    text = _text(value)
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f'was "{shown(text)}"; must be a time with its zone, such as 2030-01-31T12:00:00Z'
        ) from None


_ORDER_FIELDS: Final[Mapping[str, tuple[bool, Callable[[Any], Any]]]] = {
    "side": (True, _one_of(Side)),
    "amount": (True, _decimal),
    "inputToken": (True, _text),
    "outputToken": (True, _text),
    "type": (False, _one_of(OrderType)),
    "slippageBps": (False, _basis_points),
    "expireTime": (False, _time),
    "limitPrice": (False, _decimal),
    "minLiquidity": (False, _decimal),
    "maxPrice": (False, _decimal),
}
"""Name, whether every order needs it, how it is read."""

_NUMBERS: Final = {name for name, (_, read) in _ORDER_FIELDS.items() if read in (_decimal, _basis_points)}

_TYPE_KEYS: Final = {name: camel(name) for name in PATHS}
"""Those that belong to one type of order, by the contract's names."""

_LISTED: Final = {"status": ("statuses", _members(OrderStatus)), "type": ("types", _members(OrderType))}
"""Parameters of a list that may come several times: `list_page`'s argument, and what it takes."""


# ---- JSON ------------------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _malformed(f'the key "{shown(key)}" comes twice')
            seen.add(key)
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise _malformed(f"the body is not JSON: {text} is no number")


# Made once: json.loads makes a decoder in each call that names hooks.
_decode: Final = json.JSONDecoder(
    parse_float=Number, parse_int=Number, parse_constant=_refuse_constant, object_pairs_hook=_unique
).decode


def _depth(text: str) -> int:
    """Return how deep the text nests; 0 where it has too few brackets to nest deeper than MAX_DEPTH."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _holds_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, list):
        return any(_holds_surrogate(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_surrogate(key) or _holds_surrogate(item) for key, item in value.items())
    return False


def _kind(value: Any) -> str:
    match value:
        case Number():
            return f"the number {shown(value)}"
        case str():
            return f'"{shown(value)}"'
        case bool():
            return "true" if value else "false"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "null"


def _malformed(message: str) -> HttpRefusal:
    return HttpRefusal("BAD_REQUEST", message)


def _invalid(field: str, description: str) -> InvalidFields:
    return InvalidFields(f"{field} {description}", violations=[FieldViolation(field, description)])
