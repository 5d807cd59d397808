"""What has to be done, however long the node is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from engine.domain.errors import EngineError
from engine.telemetry import Trouble

RETRY_SECONDS: Final = 0.5


async def until_done(work: Callable[[], Awaitable[object]], trouble: Trouble) -> None:
    """Return once it was done without an error of the engine's; until then tell `trouble`."""
    while True:
        try:
            await work()
        except EngineError as error:
            trouble.fails(error)
        else:
            trouble.works()
            return
        await asyncio.sleep(RETRY_SECONDS)
