"""The launcher: real child processes, small ones."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.children import Child
from cli.launcher import Launcher, Part, Stopped
from engine.process import StartupError

# Ready once its file is there, which it removes when it is asked to end.
STEADY = """
import pathlib, signal, sys
mark = pathlib.Path(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
mark.touch()
signal.sigwait({signal.SIGTERM})
with open(mark.parent / "ended", "a") as ended:
    ended.write(mark.name + chr(10))
mark.unlink()
"""
DEAF = "import pathlib, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + (
    "pathlib.Path(sys.argv[1]).touch(); signal.pause()"
)


def make_part(folder: Path, name: str, program: str = STEADY) -> Part:
    mark = folder / name

    async def unready_reason() -> str | None:
        return None if mark.exists() else "not there yet"

    child = Child(name, [sys.executable, "-c", program, str(mark)], log=folder / f"{name}.log", cwd=folder)
    return Part(name, child, unready_reason)


class Running:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.launcher = Launcher(self.said.append)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Running, asyncio.TaskGroup]]:
    run = Running()
    async with asyncio.TaskGroup() as group:
        try:
            yield run, group
        finally:
            await run.launcher.stop()


Until = Callable[..., Awaitable[None]]


async def test_start_returns_once_all_are_ready(tmp_path: Path) -> None:
    async with running() as (run, group):
        parts = [make_part(tmp_path, "one"), make_part(tmp_path, "two")]
        await run.launcher.start(group, *parts)
        assert [part.state for part in parts] == ["ready", "ready"]
    assert [part.program.exit_code for part in parts] == [0, 0]


async def test_a_part_that_dies_is_started_again_and_shown(tmp_path: Path, until: Until) -> None:
    async with running() as (run, group):
        part = make_part(tmp_path, "one")
        await run.launcher.start(group, part)
        for count in (1, 2):
            (tmp_path / "one").unlink()
            part.program.kill()
            await until(lambda: part.restart_count == count and part.ready)  # noqa: B023
        assert run.said == ["one was ended by SIGKILL; starting it again", "one is ready again"] * 2


async def test_a_part_that_is_not_ready_any_more_is_shown_with_its_reason(
    tmp_path: Path, until: Until
) -> None:
    async with running() as (run, group):
        part = make_part(tmp_path, "one")
        await run.launcher.start(group, part)
        (tmp_path / "one").unlink()
        await until(lambda: part.state == "not there yet")
        (tmp_path / "one").touch()
        await until(lambda: part.ready)
        assert part.restart_count == 0


async def test_a_part_is_waited_for_as_long_as_its_reason_changes_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.launcher._READY_SECONDS", 0.3)
    monkeypatch.setattr("cli.launcher._TELL_SECONDS", 0.0)
    async with running() as (run, group):
        counting, stuck = make_part(tmp_path, "counting"), make_part(tmp_path, "stuck")
        blocks = iter(range(12, 0, -1))

        async def left() -> str | None:
            count = next(blocks, None)
            return None if count is None else f"{count} blocks to go"

        async def nothing() -> str | None:
            return "no block comes"

        counting.unready_reason, stuck.unready_reason = left, nothing
        await run.launcher.start(group, counting)
        assert run.said == [f"counting: {count} blocks to go" for count in range(12, 0, -1)]
        with pytest.raises(StartupError, match=r"^stuck was not ready after 0 s: no block comes$"):
            await run.launcher.start(group, stuck)


async def test_the_sentence_of_a_process_that_cannot_start_is_passed_on(tmp_path: Path) -> None:
    async with running() as (run, group):
        unusable = make_part(tmp_path, "one", "import sys; print('PORT was 70000'); sys.exit(2)")
        with pytest.raises(StartupError, match=r"^PORT was 70000$"):
            await run.launcher.start(group, unusable)


async def test_a_process_that_ends_while_it_starts_is_named_with_its_last_words(tmp_path: Path) -> None:
    async with running() as (run, group):
        broken = make_part(tmp_path, "one", "raise RuntimeError('broken')")
        with pytest.raises(StartupError, match="one ended with exit code 1: RuntimeError: broken"):
            await run.launcher.start(group, broken)


async def test_a_structured_log_line_is_told_by_its_message(tmp_path: Path) -> None:
    async with running() as (run, group):
        program = """import sys; print('{"level": "ERROR", "message": "no such pool"}'); sys.exit(3)"""
        with pytest.raises(StartupError, match="one ended with exit code 3: no such pool"):
            await run.launcher.start(group, make_part(tmp_path, "one", program))


TOLD = "Invalid HTTP request received."
RECORD = f'{{"level": "%s", "message": "{TOLD}"}}'


@pytest.mark.parametrize(
    ("last_line", "end", "said"),
    [
        (RECORD % "ERROR", "os._exit(3)", f"one ended with exit code 3; starting it again ({TOLD})"),
        (RECORD % "CRITICAL", "os._exit(3)", f"one ended with exit code 3; starting it again ({TOLD})"),
        (RECORD % "WARNING", "os._exit(3)", "one ended with exit code 3; starting it again"),
        ("MemoryError", "os._exit(3)", "one ended with exit code 3; starting it again (MemoryError)"),
        ("[1]", "os._exit(3)", "one ended with exit code 3; starting it again ([1])"),
        ("heap corrupted", "os.abort()", "one was ended by SIGABRT; starting it again (heap corrupted)"),
        (RECORD % "INFO", "os.abort()", "one was ended by SIGABRT; starting it again"),
        ("MemoryError", "os.kill(os.getpid(), 9)", "one was ended by SIGKILL; starting it again"),
        (RECORD % "ERROR", "os.kill(os.getpid(), 9)", "one was ended by SIGKILL; starting it again"),
        (RECORD % "ERROR", "os.kill(os.getpid(), 15)", "one was ended by SIGTERM; starting it again"),
    ],
)
async def test_last_words_are_told_only_if_they_may_be_why_it_ended(
    last_line: str, end: str, said: str, tmp_path: Path, until: Until
) -> None:
    program = f"""
import os, pathlib, signal, sys
mark = pathlib.Path(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR1}})
mark.touch()
signal.sigwait({{signal.SIGUSR1}})
print({last_line!r}, flush=True)
{end}
"""
    async with running() as (run, group):
        part = make_part(tmp_path, "one", program)
        await run.launcher.start(group, part)
        assert part.program.pid is not None
        os.kill(part.program.pid, signal.SIGUSR1)
        await until(lambda: run.said != [])
        assert run.said[0] == said


async def test_an_earlier_line_is_not_told_of_a_process_that_cannot_start(tmp_path: Path) -> None:
    async with running() as (run, group):
        program = f"print({RECORD % 'INFO'!r}); raise SystemExit(3)"
        with pytest.raises(StartupError, match=r"^one ended with exit code 3$"):
            await run.launcher.start(group, make_part(tmp_path, "one", program))


async def test_stop_ends_the_last_started_first(tmp_path: Path) -> None:
    async with running() as (run, group):
        for name in ("database", "server", "gateway"):
            await run.launcher.start(group, make_part(tmp_path, name))
    assert (tmp_path / "ended").read_text().split() == ["gateway", "server", "database"]


async def test_a_start_gives_way_to_a_stop(tmp_path: Path) -> None:
    async with running() as (run, group):
        slow = make_part(tmp_path, "slow", "import time; time.sleep(600)")
        asyncio.get_running_loop().call_soon(run.launcher.stopping.set)
        with pytest.raises(Stopped):
            await run.launcher.start(group, slow)
    assert slow.program.exit_code == -signal.SIGTERM


async def test_kill_does_not_wait_for_those_that_do_not_listen(tmp_path: Path) -> None:
    async with running() as (run, group):
        deaf = make_part(tmp_path, "deaf", DEAF)
        await run.launcher.start(group, deaf)
        run.launcher.stopping.set()
        run.launcher.kill()
    assert deaf.program.exit_code == -signal.SIGKILL


async def test_a_child_that_does_not_stop_in_time_is_killed(tmp_path: Path, until: Until) -> None:
    child = Child("deaf", [sys.executable, "-c", DEAF, str(tmp_path / "mark")], log=tmp_path / "log")
    child.spawn()
    await until((tmp_path / "mark").exists)
    child.stop(seconds=0.1)
    assert child.exit_code == -signal.SIGKILL


async def test_a_log_that_grows_is_set_aside_while_its_process_runs(
    tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.children._LARGEST_LOG", 2_000)
    monkeypatch.setattr("cli.launcher._PROBE_SECONDS", 0.05)
    chatty = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
for number in range(10**6):
    print(f"line {number}", flush=True)
    time.sleep(0.0005)
"""
    async with running() as (run, group):
        part = make_part(tmp_path, "one", chatty)
        await run.launcher.start(group, part)
        pid = part.program.pid
        log, aside = tmp_path / "one.log", tmp_path / "one.log.1"
        await until(aside.exists)
        first = aside.read_text().splitlines()[0]
        assert first == "line 0"
        # And again: one is kept.
        await until(lambda: aside.read_text().partition("\n")[0] != first)
        await until(lambda: log.stat().st_size > 0)
        assert "\0" not in log.read_text()
        assert part.program.pid == pid
        part.program.kill()
