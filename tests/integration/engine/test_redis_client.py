"""The one Redis client over a real Valkey: whoever is cancelled in the middle of a call ends."""

from __future__ import annotations

import asyncio

from engine.redis_client import make_client
from engine.settings import Settings


async def test_a_call_cancelled_at_any_moment_ends(settings: Settings) -> None:
    # A first call connects, sends and reads in some 30 turns of the loop: stop it after each of them.
    for turns in range(60):
        async with make_client(settings) as client:
            task = asyncio.ensure_future(client.blpop(["nothing"], timeout=1))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), f"the cancellation after {turns} turns was forgotten"
            assert await client.ping()
