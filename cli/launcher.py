"""Keeps the parts of a running engine alive, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import Protocol

from engine.process import UNUSABLE, StartupError

_READY_SECONDS = 60.0
_TELL_SECONDS = 10.0  # how often it is told what is waited for
_DRAIN_SECONDS = 16.0  # each process drains within 15
_POLL_SECONDS = 0.1  # of a part that is not ready
_PROBE_SECONDS = 5.0  # of one that is
_LONGEST_BACKOFF = 10.0
_STEADY_SECONDS = 30.0  # After running for so long, a process that ends is started again at once.


_OWN_SIGNALS = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)
"""Those that a process brings on itself and may have said why. The others come from somebody else."""


class Program(Protocol):
    """What a part runs: a Child, or an embedded service."""

    @property
    def running(self) -> bool: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def pid(self) -> int | None: ...
    def spawn(self) -> None: ...
    def stop(self, seconds: float) -> None: ...
    def kill(self) -> None: ...
    def last_words(self) -> str: ...
    def trim_log(self) -> None: ...


class Part:
    """One program of the engine, and how it fares."""

    def __init__(
        self, name: str, program: Program, unready_reason: Callable[[], Awaitable[str | None]]
    ) -> None:
        """`unready_reason` answers None when the program does its work."""
        self.name = name
        self.program = program
        self.unready_reason = unready_reason
        self.state = "starting"
        """ready, or why it is not."""
        self.restart_count = 0

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def ended(self) -> str:
        """Say how the program ended."""
        code = self.program.exit_code
        if code is not None and code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name}"
        return f"{self.name} ended with exit code {code}"

    def explanation(self) -> str:
        """Return what the program said last, where that may be why it ended; else ""."""
        code = self.program.exit_code
        is_foreign = code is not None and code < 0 and -code not in _OWN_SIGNALS
        return "" if is_foreign else self.program.last_words()


class Stopped(Exception):
    """The launcher was asked to stop before everything had started."""


class Launcher:
    """Starts parts one after the other, restarts those that die, and stops them in the reverse order.

    Everything runs in one thread, the main one: children die with the thread that spawned them.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` is told what a person should know: that a part died, that it is back."""
        self.parts: list[Part] = []
        self.stopping = asyncio.Event()
        self._say = say
        self._groups: list[list[Part]] = []
        self._child_ended = asyncio.Event()

    async def start(self, group: asyncio.TaskGroup, *parts: Part) -> None:
        """Start these parts together and return when all are ready; from then on they are kept running.

        Raises StartupError with the sentence for the person who waits; Stopped.
        """
        # Ten looks a second at every child would cost 1 % of a processor for ever.
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._wake)
        self._groups.append(list(parts))
        for part in parts:
            self.parts.append(part)
            part.program.spawn()
        for part in parts:
            await self._until_ready(part)
            group.create_task(self._keep(part))

    async def stop(self) -> None:
        """End everything: each start's parts together, the last started first."""
        self.stopping.set()
        self._wake()
        for parts in reversed(self._groups):
            await asyncio.gather(*(asyncio.to_thread(part.program.stop, _DRAIN_SECONDS) for part in parts))
            for part in parts:
                part.state = "stopped"
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def kill(self) -> None:
        """End everything at once, without a word."""
        for parts in reversed(self._groups):
            for part in parts:
                part.program.kill()

    async def _until_ready(self, part: Part) -> None:
        clock, said, deadline = asyncio.get_running_loop().time, "", 0.0
        tell_time = clock() + _TELL_SECONDS
        while (reason := await part.unready_reason()) is not None:
            if reason != said:
                # It goes on: workers may wait for blocks, and count them.
                said, deadline = reason, clock() + _READY_SECONDS
            if self.stopping.is_set():
                raise Stopped
            if not part.program.running:
                why = part.explanation()
                if part.program.exit_code == UNUSABLE and why:
                    raise StartupError(why)  # It is a sentence for the same person.
                raise StartupError(f"{part.ended()}: {why}" if why else part.ended())
            if clock() > tell_time:
                tell_time = clock() + _TELL_SECONDS
                self._say(f"{part.name}: {reason}")
            if clock() > deadline:
                raise StartupError(f"{part.name} was not ready after {_READY_SECONDS:.0f} s: {reason}")
            await asyncio.sleep(_POLL_SECONDS)
        part.state = "ready"

    async def _keep(self, part: Part) -> None:
        clock = asyncio.get_running_loop().time
        failures = 0
        started = probed = clock()
        while not self.stopping.is_set():
            if not part.program.running:
                failures = 1 if clock() - started > _STEADY_SECONDS else failures + 1
                part.restart_count += 1
                part.state = part.ended()
                said = part.explanation()
                self._say(f"{part.ended()}; starting it again" + (f" ({said})" if said else ""))
                await self._pause(min(0.1 * 2**failures, _LONGEST_BACKOFF))
                if self.stopping.is_set():
                    return
                try:
                    part.program.spawn()
                except (StartupError, OSError) as error:
                    # As where the disk is full: it may not be, the next time.
                    part.state = str(error)
                started = probed = clock()
            elif (rest := probed + (_PROBE_SECONDS if part.ready else _POLL_SECONDS) - clock()) > 0:
                await self._pause(rest, self._child_ended)
            else:
                reason = await part.unready_reason()
                if reason is None and not part.ready and part.program.running:
                    self._say(f"{part.name} is ready again")
                if part.program.running:
                    part.state = reason or "ready"
                with contextlib.suppress(OSError):  # The disk is full: there is nowhere to set it aside.
                    await asyncio.to_thread(part.program.trim_log)
                probed = clock()

    async def _pause(self, seconds: float, until: asyncio.Event | None = None) -> None:
        """Wait for that long, but no longer than `until` is set; None: than the launcher is to run."""
        try:
            async with asyncio.timeout(seconds):
                await (until or self.stopping).wait()
        except TimeoutError:
            pass

    def _wake(self) -> None:
        """Have everyone who waits for a child's end look, now and once."""
        self._child_ended.set()
        self._child_ended.clear()
