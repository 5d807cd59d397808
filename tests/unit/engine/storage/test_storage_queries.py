"""The statements and the migrations, as files."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from engine.storage import postgres
from engine.storage.migrate import read_migrations
from engine.storage.postgres import QUERIES


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_described_run_and_typed(name: str) -> None:
    query = QUERIES[name]
    assert query.startswith("-- "), "it does not say what it is for"
    source = (resources.files(postgres.__package__ or "") / "postgres.py").read_text(encoding="utf-8")
    assert f'"{name}"' in source, "nothing runs it"
    # A parameter has its type, so that PostgreSQL need not guess it from the values of the first call.
    # Arrays and enums travel as text, everything else in binary, and so do arrays of what is long or many.
    text = r"t::(?:[\w ]+\[\]|order_side|trigger_kind)"
    binary = r"b::(?:(?:json|bytea|uuid|bigint)\[\]|[\w ]+\b(?!\[))"
    assert re.findall(rf"%\(\w+\)(?!{text}|{binary})", query) == []


def test_migrations_are_numbered_from_one_and_named() -> None:
    migrations = read_migrations()
    assert [migration.number for migration in migrations] == list(range(1, len(migrations) + 1))
    for migration in migrations:
        assert re.fullmatch(r"[a-z_]+", migration.name)
        assert len(migration.checksum) == 64
