"""The scenarios of scale on whole engines, as small as they go; the orders they put into a database."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from rich.console import Console

from bench.bars import Finding
from bench.database import TABLES, fill, store_later, wake
from bench.progress import Screen
from bench.scale import SCENARIOS, Sizes
from cli.embedded import Postgres
from engine.settings import Settings
from engine.storage.postgres import Store

SMALL = Sizes(
    watcher_count=30,
    fan_out=20,
    rounds=2,
    idle_seconds=0.2,
    closed_count=300,
    resting_count=20,
    order_count=40,
    pairs=1,
    warm_up_count=10,
    memory_order_count=60,
)


async def outcome(name: str) -> dict[str, Finding]:
    """Run the scenario; return what it found by figure."""
    found = await SCENARIOS[name](SMALL, Screen(Console(stderr=True)))
    return {f"{one.scenario}: {one.figure}".replace(":   ", ": "): one for one in found.findings}


async def test_watchers_of_waiting_orders_are_all_told_once_the_orders_move() -> None:
    found = await outcome("watchers")
    assert list(found) == [
        "watchers, 30: KiB each, all processes",
        "watchers, 30: idle CPU %, all processes",
        "watchers, 30: before there were any",
        "watchers, 30: % that saw every event",
    ]
    assert found["watchers, 30: % that saw every event"].value == 100.0


async def test_all_sockets_of_one_order_are_told_every_event() -> None:
    found = await outcome("fanout")
    assert found["fanout, 20: % that saw every event"].value == 100.0
    spread = found["fanout, 20: ms from the first told to the last"]
    assert 0.0 < spread.least <= spread.value <= spread.most


async def test_an_engine_with_much_stored_is_measured_against_an_empty_one() -> None:
    found = await outcome("stored")
    ratio = found["stored, 300 + 20: CPU-ms an order, loaded / empty"]
    assert ratio.value > 0
    assert str(ratio.bar) == "<= 1.1"


async def test_two_processes_of_each_kind_are_measured_against_one_of_each() -> None:
    found = await SCENARIOS["scale"](SMALL, Screen(Console(stderr=True)))
    assert [one.value > 0 for one in found.findings] == [True] * 4
    parts = {result.server: set(result.costs) for result in found.results}
    both = {f"{name}-{number}" for name in ("server", "gateway") for number in (1, 2)}
    assert parts["2 + 2 + 2"] == parts["1 + 1 + 1"] - {"server", "gateway"} | both
    assert all(result.finals == {"confirmed": 40} for result in found.results)
    assert all(result.complete_count == result.watched_count for result in found.results)


async def test_memory_is_told_of_every_process_and_of_all() -> None:
    found = await outcome("memory")
    names = {"all", "up", "postgres", "valkey", "simnet", "server", "workers", "gateway"}
    assert {figure.removeprefix("growth %, ").partition(" ")[0] for _, figure in
            (key.split(": ") for key in found)} == names  # fmt: skip


# ---- Orders put into a database ----------------------------------------------------------------------


async def test_orders_stored_for_later_are_real_ones_that_nobody_is_to_look_at_until_they_are_woken(
    database: Settings,
) -> None:
    order_ids = await store_later(database, 7)
    assert len(set(order_ids)) == 7
    async with Store(database) as store:
        orders = [await store.get(order_id) for order_id in map(UUID, order_ids)]
        assert {(order.status.value, order.sequence) for order in orders if order is not None} == {
            ("pending", 1)
        }
        assert await store.due_orders(100, 0.0) == []
        await wake(database)
        assert set(await store.due_orders(100, 0.0)) == set(map(UUID, order_ids))


async def test_a_filled_folder_has_the_schema_of_any_other_and_orders_of_every_table(
    tmp_path: Path, database: Settings
) -> None:
    told: list[int] = []
    folder = tmp_path / "data"
    await fill(folder, 40, 5, told.append)
    assert told[-1] == 45

    server = Postgres(folder)
    server.start()
    try:
        filled = Settings(db_host=server.host, db_port=server.port, db_username=server.user)
        async with await psycopg.AsyncConnection.connect(filled.database, autocommit=True) as connection:
            counts = [
                await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
                for table in TABLES
            ]
            assert counts == [(45,), (205,), (40,)]
            assert await _schema(connection) == await _schema_of(database)
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="never deleted"):
                await connection.execute("DELETE FROM orders")
    finally:
        server.stop()

    told.clear()
    await fill(folder, 40, 5, told.append)
    assert told == [45], "it is used again as it is"
    with pytest.raises(ValueError, match=r"was filled with .*40.*; remove it, or name another"):
        await fill(folder, 41, 5, told.append)


async def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").touch()
    with pytest.raises(ValueError, match="is not empty, and was not filled by bench"):
        await fill(tmp_path, 1, 1, lambda _: None)


async def test_what_the_disk_cannot_hold_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1,000,000,000,000 orders take .* GiB"):
        await fill(tmp_path / "data", 10**12, 0, lambda _: None)


async def _schema_of(settings: Settings) -> list[tuple[str, ...]]:
    async with await psycopg.AsyncConnection.connect(settings.database) as connection:
        return await _schema(connection)


async def _schema(connection: psycopg.AsyncConnection) -> list[tuple[str, ...]]:
    """Return every index and constraint of the tables, as PostgreSQL spells them."""
    rows = await connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = ANY (%(tables)s)"
        " UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = ANY (%(tables)s::regclass[]) ORDER BY 1, 2",
        {"tables": list(TABLES)},
    )
    return await rows.fetchall()
