"""Parameters that are arrays, as PostgreSQL reads them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from engine.storage.connection import (
    ByteaArray,
    Int8Array,
    JsonArray,
    UuidArray,
    _ArrayDumper,
    _BinaryArrayDumper,
)

ORDER_ID = UUID(int=0xAB)


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([], "{}"),
        ([None, True, 7, 1.5], "{NULL,t,7,1.5}"),
        (["NULL", 'a "b"'], r'{"NULL","a \"b\""}'),
        ([ORDER_ID], "{000000000000000000000000000000ab}"),
        ([(None, "", "word", 7)], r'{"(,\"\",word,7)"}'),
        ([("NULL", "two words", "-1")], r'{"(NULL,\"two words\",\"-1\")"}'),
        ([('a"b', "a\\b")], r'{"(\"a\"\"b\",\"a\\\\b\")"}'),
    ],
)
def test_an_array_is_written_as_text(values: list[Any], written: str) -> None:
    assert _ArrayDumper(list).dump(values) == written.encode()


def test_what_is_long_travels_as_it_is() -> None:
    assert _BinaryArrayDumper(JsonArray).dump(JsonArray([b"{}", None])) == bytes.fromhex(
        # one dimension, perhaps with NULLs, of json: two elements from 1 on
        "00000001 00000001 00000072 00000002 00000001"
        # two bytes; NULL
        "00000002 7b7d ffffffff"
    )
    assert _BinaryArrayDumper(ByteaArray).dump(ByteaArray())[8:12] == bytes([0, 0, 0, 17])


def test_ids_and_numbers_travel_so_too() -> None:
    assert _BinaryArrayDumper(UuidArray).dump(UuidArray([ORDER_ID.bytes])) == bytes.fromhex(
        "00000001 00000001 00000b86 00000001 00000001 00000010" + ORDER_ID.hex
    )
    assert _BinaryArrayDumper(Int8Array).dump(Int8Array([(7).to_bytes(8)])) == bytes.fromhex(
        "00000001 00000001 00000014 00000001 00000001 00000008 0000000000000007"
    )
