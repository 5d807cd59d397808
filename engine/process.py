"""The frame of every process: settings, logs, signals, exit codes.

Imports little at the top, because `cli.child` loads this file in front of every child it starts.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from engine.settings import Settings

_PR_SET_PDEATHSIG = 1  # prctl(2)

_ONE_STOP_SECONDS = 2.0
"""Within this, a supervised process takes a second signal for the first one, passed on."""

UNUSABLE = 2
"""Exit code of a process whose settings cannot be used or whose services cannot be reached."""


class StartupError(Exception):
    """The process cannot start. The message is one sentence for the person who started it."""


def run(
    main: Callable[[Settings, asyncio.Event], Awaitable[None]], name: str, *, supervised: bool = False
) -> int:
    """Run `main(settings, stopping)` as the process `name`; return the process's exit code.

    `stopping` is set by the first SIGTERM or SIGINT: stop taking work, finish the step, return. The
    second one ends the process at once, with the signal's own exit code. Settings that cannot be used
    and a StartupError become one sentence on stderr and exit code 2. A `supervised` process writes it to
    stdout, for its supervisor to tell: once, however many processes have the same to say.
    """
    import uvloop

    from engine.settings import SettingsError, load_settings
    from engine.telemetry import configure_logging

    if not supervised and sys.argv[0].endswith("__main__.py") and sys.argv[1:]:
        print(f"{name}: takes no arguments; settings are environment variables", file=sys.stderr)  # noqa: T201
        return UNUSABLE
    try:
        settings = load_settings()
        check_host(settings.host)
        configure_logging(name, settings.log_level)
        _spare_the_collector()
        with _runner(uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(main, settings, name, supervised))
    except (SettingsError, StartupError) as error:
        return _refuse(error, name, supervised)
    except ExceptionGroup as group:
        # A TaskGroup of `main` wraps what its tasks raise.
        refused, rest = group.split((SettingsError, StartupError))
        if refused is None or rest is not None:
            return _end_early(name)
        return _refuse(_first(refused), name, supervised)
    except Exception:
        return _end_early(name)
    return 0


def check_host(host: str) -> None:
    """Raise StartupError unless ports can be bound to `host`.

    Before any is: gRPC, for one, does not tell a host that there is not from a port in use.
    """
    import socket

    from engine.addresses import family_of

    try:
        with socket.socket(family_of(host)) as listener:
            listener.bind((host, 0))
    except (OSError, UnicodeError):  # UnicodeError: no name has labels of that shape
        raise StartupError(
            f'HOST was "{host}"; must be an address of this machine, as 127.0.0.1 or ::1, or the name of one'
        ) from None


def die_with_parent(parent: int, signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process `signal_number` when its parent (a pid) ends, however it ends.

    Linux only; elsewhere nothing happens. The setting survives exec, but not a change of user or of user
    namespace: call it after those. It follows the *thread* that started this process, so start children
    from a thread that lives as long as the process, the main one.
    """
    if sys.platform != "linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have ended before the setting was made: then nobody will send the signal.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _spare_the_collector() -> None:
    """Have the garbage collector pass over what is imported by now, and look for cycles less often.

    Nearly everything an order leaves behind is freed by its reference count. Over 6,500 watched orders the
    collector took 62 ms of the server's CPU, most of it in going over modules once; so it takes 0.1. It runs
    when so many objects are alive, and a thousand orders under way are some 50,000: at 10,000 it went over
    the workers' 22 times in a burst of 8,000 orders, for 4 % of their CPU.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def _runner(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.Runner:
    import asyncio

    return asyncio.Runner(loop_factory=loop_factory)


async def _until_stopped(
    main: Callable[[Settings, asyncio.Event], Awaitable[None]],
    settings: Settings,
    name: str,
    supervised: bool,
) -> None:
    import asyncio
    import logging

    logger = logging.getLogger(name)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    told = 0.0

    def stop(signal_number: signal.Signals) -> None:
        nonlocal told
        # Who stops a supervisor and all its children, as systemd does, is followed by the supervisor.
        if supervised and stopping.is_set() and loop.time() < told + _ONE_STOP_SECONDS:
            return
        told = loop.time()
        if stopping.is_set():
            signal.signal(signal_number, signal.SIG_DFL)
            os.kill(os.getpid(), signal_number)
        else:
            logger.info("told to stop by %s", signal_number.name)
        stopping.set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop, signal_number)
    await main(settings, stopping)
    if stopping.is_set():
        logger.info("stopped")


def _refuse(error: BaseException, name: str, supervised: bool) -> int:
    if supervised:
        print(error)  # noqa: T201
    else:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
    return UNUSABLE


def _end_early(name: str) -> int:
    """Tell of the defect that is being handled, in one line of the log; return the process's exit code."""
    import logging

    logging.getLogger(name).exception("ended by an unexpected error")
    return 1


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
