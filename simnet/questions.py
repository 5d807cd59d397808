"""What callers ask, read and checked; whatever is wrong with it is an RpcFault in a node's words."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from solders.pubkey import Pubkey
from solders.signature import Signature

from simnet import base58
from simnet.chain import COMMITMENTS
from simnet.shapes import Json

logger = logging.getLogger(__name__)

_MOST_DECODED: Final = 128
"""Characters of base58: a signature has 88. The time it takes to decode them grows with their square."""
_MOST_COMPARED: Final = 128
"""Bytes that memcmp compares."""
_MOST_COMPARED_TEXT: Final = 175
"""Characters that they come to, in base58."""


class RpcFault(Exception):
    """A call's answer is this error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code = code
        self.message = message
        self.data = data
        super().__init__(message)


def invalid(message: str) -> RpcFault:
    return RpcFault(-32602, message)


def fault_of(error: Exception) -> RpcFault:
    """Return the answer to a call that ended so. A defect is logged, and costs that call alone."""
    if isinstance(error, RpcFault):
        return error
    logger.error("a call could not be answered", exc_info=error)
    return RpcFault(-32603, "Internal error")


def argument(params: list[Any], position: int, least: int) -> Any:
    if not isinstance(params, list) or position >= len(params):
        raise invalid(f"`params` should have at least {least} argument(s)")
    return params[position]


def parse_options(params: list[Any], position: int) -> Json:
    if not isinstance(params, list) or position >= len(params) or params[position] is None:
        return {}
    options = params[position]
    if not isinstance(options, dict):
        raise invalid("Invalid params: invalid type, expected a map")
    return options


def parse_named(params: list[Any], *names: str) -> Json:
    asked = parse_options(params, 0)
    for name in names:
        if name not in asked:
            raise invalid(f"{name} is missing")
    return asked


def parse_commitment(options: Json, name: str = "commitment") -> str:
    commitment = options.get(name)
    if commitment is None:
        return "finalized"
    if commitment not in COMMITMENTS:
        raise invalid(
            f"Invalid params: unknown variant `{commitment}`,"
            " expected one of `processed`, `confirmed`, `finalized`"
        )
    return str(commitment)


def parse_address(text: Any) -> bytes:
    if not isinstance(text, str):
        raise invalid("Invalid params: invalid type, expected a string")
    try:
        return _address(text)
    except ValueError:
        raise invalid(f"Invalid param: {_what_is_wrong(text)}") from None


def parse_signature(text: Any) -> bytes:
    if not isinstance(text, str):
        raise invalid("Invalid params: invalid type, expected a string")
    try:
        return bytes(Signature.from_string(text))
    except ValueError:
        raise invalid(f"Invalid param: {_what_is_wrong(text)}") from None


@lru_cache(maxsize=16_384)
def _address(text: str) -> bytes:
    """Raises ValueError. Whoever follows accounts asks for the same ones all the time."""
    return bytes(Pubkey.from_string(text))


def _what_is_wrong(text: str) -> str:
    if len(text) > _MOST_DECODED:
        return "WrongSize"
    try:
        base58.decode(text)
    except ValueError:
        return "Invalid"
    return "WrongSize"


def parse_whole(value: Any, name: str, least: int, most: int) -> int:
    """Return a whole number given as a number or, for those that JavaScript cannot hold, as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise invalid(f"Invalid params: {name} must be a whole number from {least} to {most}")
    return value


def parse_data_slice(asked: Any) -> tuple[int, int] | None:
    if asked is None:
        return None
    if not isinstance(asked, dict):
        raise invalid("Invalid params: invalid type, expected a map")
    return (
        parse_whole(asked.get("offset"), "offset", 0, 2**32),
        parse_whole(asked.get("length"), "length", 0, 2**32),
    )


def parse_filters(asked: Any) -> list[Callable[[bytes], bool]]:
    """Return, for each filter of getProgramAccounts, whether an account's data passes it."""
    if asked is None:
        return []
    if not isinstance(asked, list):
        raise invalid("Invalid params: invalid type, expected a sequence")
    return [_parse_filter(each) for each in asked]


def _parse_filter(asked: Any) -> Callable[[bytes], bool]:
    if isinstance(asked, dict) and "dataSize" in asked:
        size = parse_whole(asked["dataSize"], "dataSize", 0, 2**32)
        return lambda data: len(data) == size
    memcmp = asked.get("memcmp") if isinstance(asked, dict) else None
    if not isinstance(memcmp, dict):
        raise invalid("Invalid params: a filter is dataSize or memcmp")
    offset = parse_whole(memcmp.get("offset"), "offset", 0, 2**32)
    text = memcmp.get("bytes")
    if not isinstance(text, str):
        raise invalid("Invalid params: invalid type, expected a string")
    if len(text) > _MOST_COMPARED_TEXT:
        raise invalid("Invalid param: DataTooLarge")
    try:
        wanted = b64decode(text, validate=True) if memcmp.get("encoding") == "base64" else base58.decode(text)
    except ValueError:
        raise invalid("Invalid param: Invalid") from None
    if len(wanted) > _MOST_COMPARED:
        raise invalid("Invalid param: DataTooLarge")
    return lambda data: data[offset : offset + len(wanted)] == wanted
