"""`order-engine server, workers, gateway, simnet, migrate`: for those who run the processes themselves."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from engine.settings import Settings, settings_as_environ


async def _order_engine(
    command: str, environ: dict[str, str], *, folder: Path | None = None
) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        # As the installed command has it: nothing is imported from the folder it is run in.
        *(sys.executable, "-P", "-m", "cli", command),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **environ},
        cwd=folder,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("command", ["server", "workers", "gateway", "simnet"])
async def test_each_process_answers_for_itself_wherever_it_is_started(command: str, tmp_path: Path) -> None:
    for name in (command, "engine"):
        (tmp_path / f"{name}.py").write_text("print('a file of the user')")
    assert await _order_engine(command, {"SLIPPAGE_BPS": "10001"}, folder=tmp_path) == (
        2,
        "",
        f"{command}: SLIPPAGE_BPS was 10001; must be between 0 and 10000\n",
    )


async def test_migrate_says_what_it_did_and_has_nothing_to_do_again(empty_database: Settings) -> None:
    environ = settings_as_environ(empty_database)
    code, said, _ = await _order_engine("migrate", environ)
    assert code == 0
    assert said.startswith("applied 0001 ")
    assert said.endswith("\nthe database is up to date\n")
    assert await _order_engine("migrate", environ) == (0, "the database is up to date\n", "")


async def test_migrate_refuses_a_database_that_it_cannot_reach() -> None:
    code, said, err = await _order_engine("migrate", {"DB_HOST": "127.0.0.1", "DB_PORT": "1"})
    assert (code, said) == (2, "")
    assert err.startswith("order-engine: PostgreSQL at 127.0.0.1:1 cannot be used: ")
    assert err.count("\n") == 1
