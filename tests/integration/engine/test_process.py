"""engine.process: how every process starts, is told to stop, and refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

_FRAME = """
import asyncio, sys
from engine.process import StartupError, run
from engine.settings import SettingsError
async def main(settings, stopping):
    {body}
sys.exit(run(main, "example"))
"""
_WAITS = "print('ready', flush=True); await stopping.wait(); print('drained', flush=True)"
_DEAF = "print('ready', flush=True); await asyncio.Event().wait()"
_GROUP = """
    async def refuse(): raise StartupError("Redis is away")
    async with asyncio.TaskGroup() as group:
        group.create_task(refuse())
"""


async def _start(program: str, **environ: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), stdout=PIPE, stderr=PIPE, env={**os.environ, **environ}
    )


async def _ended(process: Process) -> tuple[int | None, str, str]:
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def _messages(said: str) -> list[str]:
    """What a log says."""
    return [json.loads(line)["message"] for line in said.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_it_to_stop_and_it_exits_with_0(number: signal.Signals) -> None:
    process = await _start(_FRAME.format(body=_WAITS))
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    code, out, said = await _ended(process)
    assert (code, out) == (0, "drained\n")
    assert _messages(said) == [f"told to stop by {number.name}", "stopped"]


async def test_a_second_signal_ends_it_at_once(until: Callable[..., Awaitable[None]]) -> None:
    process = await _start(_FRAME.format(body=_DEAF))
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"

    def ended_after_another() -> bool:
        # Two that arrive together are one to the kernel: send until it has noticed both.
        if process.returncode is None:
            process.terminate()
        return process.returncode is not None

    await until(ended_after_another)
    assert process.returncode == -signal.SIGTERM
    await process.communicate()


async def test_a_supervised_process_takes_two_signals_that_come_together_for_one() -> None:
    # As where systemd stops a supervisor and its children, and the supervisor stops them too.
    frame = _FRAME.replace('"example"', '"example", supervised=True')
    process = await _start(frame.format(body=f"{_WAITS}; await asyncio.sleep(0.5); print('done')"))
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert await process.stdout.readline() == b"drained\n"
    process.send_signal(signal.SIGTERM)
    code, out, said = await _ended(process)
    assert (code, out) == (0, "done\n")
    assert _messages(said) == ["told to stop by SIGTERM", "stopped"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('raise StartupError("PostgreSQL is away")', "example: PostgreSQL is away\n"),
        ('raise SettingsError("PORT was 1")', "example: PORT was 1\n"),
        (_GROUP, "example: Redis is away\n"),
    ],
    ids=["startup", "settings", "in a task group"],
)
async def test_what_cannot_start_says_one_sentence_and_exits_with_2(body: str, sentence: str) -> None:
    assert await _ended(await _start(_FRAME.format(body=body))) == (2, "", sentence)


async def test_a_supervised_process_leaves_the_sentence_to_its_supervisor() -> None:
    frame = _FRAME.replace('"example"', '"example", supervised=True')
    process = await _start(frame.format(body=_GROUP))
    assert await _ended(process) == (2, "Redis is away\n", "")


async def test_unusable_settings_are_refused_before_anything_else() -> None:
    process = await _start(_FRAME.format(body=_WAITS), PORT="70000")
    assert await _ended(process) == (2, "", "example: PORT was 70000; must be between 0 and 65535\n")


@pytest.mark.parametrize(
    "body",
    [
        'raise RuntimeError("defect")',
        _GROUP.replace("group.create_task(refuse())", 'raise RuntimeError("defect")'),
        _GROUP + '        raise RuntimeError("defect")',
    ],
    ids=["alone", "in a task group", "beside a refusal"],
)
async def test_a_defect_is_one_line_of_the_log_and_not_mistaken_for_a_refusal(body: str) -> None:
    code, _, said = await _ended(await _start(_FRAME.format(body=body)))
    assert code == 1
    entry = json.loads(said)
    assert (entry["level"], entry["process"]) == ("ERROR", "example")
    assert "RuntimeError: defect" in entry["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing, on Linux")
async def test_a_child_dies_with_its_parent(
    tmp_path: Path, processes_in: Callable[[Path], list[str]], until: Callable[..., Awaitable[None]]
) -> None:
    child = "import os, time; from engine.process import die_with_parent; die_with_parent(os.getppid()); "
    child += "print('ready', flush=True); time.sleep(600)"
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"),
        stdout=PIPE,
        cwd=tmp_path,
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"
    assert len(processes_in(tmp_path)) == 2
    parent.kill()
    await parent.wait()
    await until(lambda: not processes_in(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing, on Linux")
async def test_a_child_whose_parent_is_already_gone_ends_itself() -> None:
    program = "from engine.process import die_with_parent; die_with_parent(1 << 22); print('lives on')"
    assert (await _ended(await _start(program)))[:2] == (-signal.SIGKILL, "")


async def test_what_it_imported_is_out_of_the_garbage_collectors_way() -> None:
    body = "import gc; print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    process = await _start(_FRAME.format(body=body))
    assert await _ended(process) == (0, "True True\n", "")
