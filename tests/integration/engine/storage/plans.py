"""What PostgreSQL does for a statement of the store: the plan that connections keep, and what it touches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.storage.connection import Connection
from engine.storage.postgres import QUERIES


async def plan_of(connection: Connection, name: str) -> str:
    """Return the plan that a connection of the store keeps for a statement: the one for any values."""
    names = await _prepare(connection, name)
    nothing = f"({', '.join(['NULL'] * len(names))})" if names else ""
    rows = await connection.run(f"EXPLAIN (COSTS OFF) EXECUTE {name}{nothing}", {})
    await connection.run(f"DEALLOCATE {name}", {})
    return "\n".join(row[0] for row in rows)


@dataclass(frozen=True, slots=True)
class Touched:
    """What a statement touched when it was run by the plan that is kept."""

    plan: dict[str, Any]
    buffers: int
    """Pages, those of indexes included."""
    rows: int
    """Read from tables and indexes, those that a filter then threw away included."""
    sorted_rows: int


async def touched_by(connection: Connection, name: str, **values: Any) -> Touched:
    """Run a statement with these values, write back what it wrote, and return what it touched."""
    names = await _prepare(connection, name)
    given = ", ".join([_literal(values[each]) for each in names])
    await connection.run("BEGIN", {})
    try:
        ((text,),) = await connection.run(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE {name}"
            + (f"({given})" if given else ""),
            {},
        )
    finally:
        await connection.run("ROLLBACK", {})
        await connection.run(f"DEALLOCATE {name}", {})
    found = text if isinstance(text, list) else json.loads(text)
    nodes = list(_nodes(found[0]["Plan"]))
    return Touched(
        found[0]["Plan"],
        found[0]["Plan"]["Shared Hit Blocks"] + found[0]["Plan"]["Shared Read Blocks"],
        sum(_rows(node) for node in nodes if "Relation Name" in node and "Scan" in node["Node Type"]),
        sum(
            round(node["Actual Rows"] * node["Actual Loops"]) for node in nodes if "Sort" in node["Node Type"]
        ),
    )


def _rows(node: dict[str, Any]) -> int:
    thrown_away: float = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
    rows: float = (node["Actual Rows"] + thrown_away) * node["Actual Loops"]
    return round(rows)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _literal(value: Any) -> str:
    if isinstance(value, list):
        value = "{" + ",".join(map(str, value)) + "}"
    return f"'{value}'"


async def _prepare(connection: Connection, name: str) -> list[str]:
    """Prepare a statement as its own name; return its parameters in their order."""
    names: list[str] = []

    def place(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    statement = re.sub(r"%\((\w+)\)[bt]", place, QUERIES[name])
    await connection.run(f"PREPARE {name} AS {statement}", {})
    return names
