"""Whole numbers in a query: a `limit` of a list, the `after` of a watch."""

from __future__ import annotations

import pytest

from client import InvalidOrder
from gateway.openapi import openapi
from gateway.parse import parse_page, parse_watch

NO_NUMBERS = ["", "x", "1.5", "1e3", "+1", " 1", "１", "-1", "1000000000", "9" * 30]  # noqa: RUF001


@pytest.mark.parametrize("text", ["0", *NO_NUMBERS])
def test_a_limit_out_of_range_is_refused_with_both_ends(text: str) -> None:
    with pytest.raises(InvalidOrder) as refused:
        parse_page([("limit", text)])
    (line,) = refused.value.violations
    assert line.field == "limit"
    assert line.description == f'was "{text}"; must be a whole number from 1 to 999999999'


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_a_sequence_out_of_range_is_refused_with_both_ends(text: str) -> None:
    with pytest.raises(InvalidOrder) as refused:
        parse_watch([("after", text)])
    (line,) = refused.value.violations
    assert (line.field, line.description) == (
        "after",
        f'was "{text}"; must be a whole number from 0 to 999999999',
    )


def test_both_ends_are_taken() -> None:
    assert [parse_page([("limit", text)])["page_size"] for text in ("1", "999999999")] == [1, 999_999_999]
    assert [parse_watch([("after", text)]) for text in ("0", "999999999")] == [0, 999_999_999]
    assert parse_watch([]) == 0


@pytest.mark.parametrize(("path", "name", "least"), [("", "limit", 1), ("/{orderId}/ws", "after", 0)])
def test_the_document_tells_both_ends(path: str, name: str, least: int) -> None:
    parameters = openapi()["paths"][f"/api/orders{path}"]["get"]["parameters"]
    (schema,) = [parameter["schema"] for parameter in parameters if parameter["name"] == name]
    assert (schema["minimum"], schema["maximum"]) == (least, 999_999_999)
