"""`python -m simnet`: the simulated node, as a process."""

from __future__ import annotations

import asyncio
import gc
import sys

from engine.process import run
from engine.settings import Settings
from simnet.node import Node


async def main(settings: Settings, stopping: asyncio.Event) -> None:
    # Hardly anything here forms cycles, and looking for them among all that is remembered takes time.
    gc.set_threshold(100_000, 50, 100)
    async with Node(settings) as node, asyncio.TaskGroup() as tasks:
        producing = tasks.create_task(node.run())
        await stopping.wait()
        producing.cancel()


if __name__ == "__main__":
    sys.exit(run(main, "simnet"))
