"""Several processes of one kind, kept running: `python -m workers` is a supervisor and its workers.

Each is a program of its own, started with exec: nothing is inherited from a fork of a process that has
threads, sockets and an event loop, and it works alike on every platform and Python. (taskiq's own process
manager forks, polls once a second, and neither waits for its children nor ends those that hang.)
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from engine.domain.retry import RetryPolicy
from engine.process import UNUSABLE, StartupError

RESTART: Final = RetryPolicy(base_seconds=0.2, cap_seconds=5.0)
"""How long to wait before a child that ended is started again. Never given up: `max_attempts` is not used."""

_STEADY_SECONDS: Final = 30.0
"""A child that lived for so long did not fail from the start: its failures are counted anew."""

logger = logging.getLogger(__name__)


async def supervise(
    count: int,
    command: Callable[[int], Sequence[str]],
    stopping: asyncio.Event,
    *,
    grace_seconds: float = 13.0,
) -> None:
    """Keep `count` child processes running until `stopping`; then end them with SIGTERM, and return.

    `command(index)` is what to run for each index from 0: program, then arguments. A child that ends is
    started again after a backoff; one that has not ended `grace_seconds` after SIGTERM is killed.
    Raises StartupError when a child's first start ends with UNUSABLE: trying again would not help. Later it
    says that a service is away just now, which the child is started again for and the others outlive.
    What such a child wrote to its stdout is why, in one sentence: see `supervised` of `engine.process.run`.

    Tell the children this process's pid and have them call `engine.process.die_with_parent` with it first
    of all, so that a supervisor that is killed leaves none behind. Run this in the main thread.
    """
    children: dict[int, Process] = {}
    async with asyncio.TaskGroup() as group:
        for index in range(count):
            group.create_task(_keep(index, command, stopping, children))
        await stopping.wait()
        _signal(children, signal.SIGTERM)
        last_resort = asyncio.get_running_loop().call_later(grace_seconds, _signal, children, signal.SIGKILL)
    last_resort.cancel()


async def _keep(
    index: int,
    command: Callable[[int], Sequence[str]],
    stopping: asyncio.Event,
    children: dict[int, Process],
) -> None:
    loop = asyncio.get_running_loop()
    failures = 0
    is_first = True
    while not stopping.is_set():
        started = loop.time()
        # A session of its own: Ctrl-C reaches the supervisor alone, so a child hears once that it is to stop.
        try:
            child = await asyncio.create_subprocess_exec(
                *command(index), stdin=DEVNULL, stdout=PIPE, start_new_session=True
            )
        except OSError as error:
            if is_first:
                raise StartupError(f"process {index} cannot be started: {error}") from None
            # No memory or no room for another process, just now: its siblings go on.
            logger.error("process %d cannot be started again: %s", index, error)
            failures += 1
            await _backoff(failures, stopping)
            continue
        children[index] = child
        if stopping.is_set():
            child.terminate()  # it came too late for the signal to all
        try:
            reason = (await child.communicate())[0].decode(errors="replace").strip()
        except asyncio.CancelledError:
            # A neighbour could not start: there will be no whole, so there shall be no part.
            child.kill()
            await child.wait()
            raise
        del children[index]
        if stopping.is_set():
            return
        code = child.returncode
        if code == UNUSABLE and is_first:
            raise StartupError(reason or f"process {index} cannot start")
        is_first = False
        failures = 1 if loop.time() - started > _STEADY_SECONDS else failures + 1
        why = f" ({reason})" if code == UNUSABLE and reason else ""
        logger.error("process %d ended with code %d%s; starting it again", index, code, why)
        await _backoff(failures, stopping)


async def _backoff(failures: int, stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(RESTART.delay_seconds(failures, random.random())):
            await stopping.wait()
    except TimeoutError:
        pass  # over, and not stopped


def _signal(children: Mapping[int, Process], number: signal.Signals) -> None:
    for index, child in children.items():
        if number is signal.SIGKILL:
            logger.error("process %d did not stop in time; killing it", index)
        child.send_signal(number)
