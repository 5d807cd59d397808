"""The supervisor with real child processes: killed, refusing, deaf, orphaned."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.process import StartupError
from engine.supervisor import supervise
from tests.integration.engine.polling import until

ROOT = Path(__file__).resolve().parents[3]
CHILD = Path(__file__).with_name("supervised_child.py")


class Children:
    def __init__(self, folder: Path, what: str = "run") -> None:
        self._folder = folder
        self._what = what

    def command(self, index: int) -> Sequence[str]:
        where = ["env", f"PYTHONPATH={ROOT}", sys.executable, str(CHILD)]
        return [*where, str(os.getpid()), str(self._folder), str(index), self._what]

    def pids(self, index: int) -> list[int]:
        file = self._folder / str(index)
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    def stopped_by(self, index: int) -> str:
        return (self._folder / f"{index}.stopped").read_text()


@asynccontextmanager
async def supervised(children: Children, count: int, grace_seconds: float = 13.0) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(supervise(count, children.command, stopping, grace_seconds=grace_seconds))
        yield
        stopping.set()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A process that ended and that nobody waited for yet still answers; its state says so.
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_children_run_until_they_are_told_to_stop_and_end_in_peace(tmp_path: Path) -> None:
    children = Children(tmp_path)
    async with supervised(children, 2):
        await until(lambda: children.pids(0) and children.pids(1))
    assert [children.stopped_by(0), children.stopped_by(1)] == ["SIGTERM", "SIGTERM"]
    assert not alive(children.pids(0)[0])
    assert not alive(children.pids(1)[0])


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    children = Children(tmp_path)
    async with supervised(children, 2):
        await until(lambda: children.pids(0) and children.pids(1))
        os.kill(children.pids(0)[0], signal.SIGKILL)
        await until(lambda: len(children.pids(0)) == 2)
        assert len(children.pids(1)) == 1
    assert children.stopped_by(0) == "SIGTERM"


async def test_a_child_that_cannot_start_is_an_error_and_leaves_no_other(tmp_path: Path) -> None:
    refusing, running = Children(tmp_path, "refuse"), Children(tmp_path)
    with pytest.raises(ExceptionGroup) as refused:
        await supervise(2, lambda index: (refusing if index else running).command(index), asyncio.Event())
    (error,) = refused.value.exceptions
    assert isinstance(error, StartupError)
    assert str(error) == "nothing to work with", "the child's own sentence"
    assert not any(alive(pid) for pid in running.pids(0))


async def test_a_killed_child_whose_service_is_away_comes_back_with_it_and_takes_no_other_down(
    tmp_path: Path,
) -> None:
    children = Children(tmp_path)
    async with supervised(children, 2):
        await until(lambda: children.pids(0) and children.pids(1))
        (tmp_path / "away").touch()
        os.kill(children.pids(0)[0], signal.SIGKILL)
        await until(lambda: (tmp_path / "0.refused").exists())
        (tmp_path / "away").unlink()
        await until(lambda: len(children.pids(0)) == 2)
        assert len(children.pids(1)) == 1
        assert alive(children.pids(1)[0])
    assert [children.stopped_by(0), children.stopped_by(1)] == ["SIGTERM", "SIGTERM"]


async def test_a_child_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    children = Children(tmp_path, "ignore")
    async with supervised(children, 1, grace_seconds=0.1):
        await until(lambda: children.pids(0))
    assert not alive(children.pids(0)[0])


SUPERVISOR = """
import asyncio, os, sys
from engine.supervisor import supervise
command = lambda index: [sys.executable, sys.argv[1], str(os.getpid()), sys.argv[2], str(index), "ignore"]
asyncio.run(supervise(2, command, asyncio.Event()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties children to their parent on Linux only")
async def test_a_killed_supervisor_leaves_no_child_behind(tmp_path: Path) -> None:
    children = Children(tmp_path)
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SUPERVISOR, str(CHILD), str(tmp_path)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        await until(lambda: children.pids(0) and children.pids(1))
    finally:
        supervisor.kill()
        await supervisor.wait()
    await until(lambda: not alive(children.pids(0)[0]) and not alive(children.pids(1)[0]))
