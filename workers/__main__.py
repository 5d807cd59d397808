"""`python -m workers`: a supervisor and its worker processes, WORKER_PROCESSES of them."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

from engine.process import die_with_parent, run
from engine.settings import Settings
from engine.supervisor import supervise


async def _supervise(settings: Settings, stopping: asyncio.Event) -> None:
    supervisor = os.getpid()
    await supervise(
        settings.worker_processes,
        lambda index: (sys.executable, "-P", "-m", "workers", str(index), str(supervisor)),
        stopping,
    )


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        return run(_supervise, "workers")
    # All of the engine, which the supervisor has no use for: a second, and 50 MB.
    from workers.app import work

    index, supervisor = map(int, arguments)
    die_with_parent(supervisor)
    return run(partial(work, index=index), f"worker-{index}", supervised=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
