"""Values on their way to PostgreSQL and back: an array is what it was, whatever is in its texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.settings import Settings
from engine.storage.connection import Connection


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            "text",
            [
                "",
                "NULL",
                "null",
                None,
                "a,b",
                "{}",
                '"',
                "\\",
                '\\"',
                "\n\t",
                " spaced ",
                "ключ 💱",
                "'",
                "%s",
            ],
        ),
        ("bytea", [b"", b"\x00\xff\\x", None]),
        ("bigint", [0, -1, 2**63 - 1, -(2**63), None]),
        ("boolean", [True, False, None]),
        ("double precision", [0.1, 1e-300, 1.5e300, float("inf"), None]),
        ("uuid", [uuid4(), None]),
        ("timestamptz", [datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), datetime(1, 1, 1, tzinfo=UTC), None]),
        ("timestamptz", [datetime(2026, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=-9, minutes=-30)))]),
        ("text", []),
        ("uuid", []),
    ],
)
async def test_an_array_arrives_as_it_was(settings: Settings, kind: str, values: list[Any]) -> None:
    assert await _echo(settings, kind, values) == values


async def test_a_row_in_an_array_arrives_as_it_was(settings: Settings) -> None:
    texts = [
        "",
        "NULL",
        None,
        "a,b",
        "(x)",
        '"',
        '\\"',
        "\\",
        "\n\t",
        " spaced ",
        "ключ 💱",
        "'",
        '{"a": "b\\n"}',
    ]
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    rows = [(text, 2**63 - 1, True, 0.1, uuid4(), b"\x00\xff\\x", moment) for text in texts]
    rows.append((None,) * 7)  # type: ignore[arg-type]
    connection = Connection(settings.database, "test")
    try:
        await connection.run(
            "CREATE TYPE pg_temp.seven AS (a text, b bigint, c boolean, d double precision, e uuid, f bytea,"
            " g timestamptz)",
            {},
        )
        statement = "SELECT * FROM unnest(%(rows)t::pg_temp.seven[])"
        assert await connection.run(statement, {"rows": rows}) == rows
        assert await connection.run(statement, {"rows": []}) == []
    finally:
        await connection.close()


@given(values=st.lists(st.none() | st.text(st.characters(exclude_characters="\x00", codec="utf-8"))))
@hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_text_arrives_as_it_was(settings: Settings, values: list[str | None]) -> None:
    assert await _echo(settings, "text", values) == values
    # As a field of a row.
    rows = [(None, None, text, None, None) for text in values]
    connection = Connection(settings.database, "test")
    try:
        echoed = await connection.run("SELECT tx_hash FROM unnest(%(rows)t::new_attempt[])", {"rows": rows})
    finally:
        await connection.close()
    assert [row[0] for row in echoed] == values


async def _echo(settings: Settings, kind: str, values: list[Any]) -> list[Any]:
    connection = Connection(settings.database, "test")
    try:
        rows = await connection.run(f"SELECT unnest(%(values)t::{kind}[])", {"values": values})
        return [row[0] for row in rows]
    finally:
        await connection.close()
