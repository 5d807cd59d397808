"""A worker process for the queue's tests: appends what it runs to a file.

    python queue_worker.py <file> <capacity> <idle seconds> <task seconds> [hold]

Lines are `start <pid> <order_id>` and `end <pid> <order_id>`. With `hold`, a task goes on until the file
`<file>.release` exists.
"""

from __future__ import annotations

import asyncio
import os
import sys
from uuid import UUID

from engine.process import run
from engine.queue import TASK_NAME, OrderBroker, run_tasks
from engine.settings import Settings


async def work(settings: Settings, stopping: asyncio.Event) -> None:
    record, capacity, idle_seconds, task_seconds, *hold = sys.argv[1:]
    release = f"{record}.release"
    file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    broker = OrderBroker(
        settings, capacity=int(capacity), idle_seconds=float(idle_seconds), block_seconds=0.1
    )

    @broker.task(TASK_NAME)
    async def execute_orders(order_ids: list[UUID]) -> None:
        os.write(file, b"".join(b"start %d %s\n" % (os.getpid(), str(each).encode()) for each in order_ids))
        await asyncio.sleep(float(task_seconds))
        while hold and not os.path.exists(release):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(float(task_seconds))
        os.write(file, b"".join(b"end %d %s\n" % (os.getpid(), str(each).encode()) for each in order_ids))

    await broker.startup()
    try:
        await run_tasks(broker, stopping)
    finally:
        await broker.shutdown()


if __name__ == "__main__":
    sys.exit(run(work, "queue_worker"))
