"""What cannot be read is in its place, and is told once."""

from __future__ import annotations

from uuid import UUID

import pytest

from engine.domain.errors import OrderNotReadable
from engine.storage import rows as module
from engine.storage.rows import Rows, readable


def test_what_cannot_be_read_is_in_its_place_and_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_TOLD", 3)
    rows = Rows()
    given = [(UUID(int=number), number) for number in range(8)]
    for _ in range(2):
        found = rows.read(given, lambda row: 12 // (row[1] % 2))
        assert readable(found) == [12] * 4
        wrong = [
            (at, each.order_id.int) for at, each in enumerate(found) if isinstance(each, OrderNotReadable)
        ]
        assert wrong == [(0, 0), (2, 2), (4, 4), (6, 6)]
    assert [record.order_id.int for record in caplog.records] == [0, 2, 4]  # type: ignore[attr-defined]
    assert "ZeroDivisionError" in caplog.text
