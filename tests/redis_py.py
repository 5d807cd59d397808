"""The tests' own client of Redis, which is not the engine's."""

from __future__ import annotations

from redis.asyncio import Redis

from engine.settings import Settings


def redis_py(settings: Settings) -> Redis:
    return Redis.from_url(settings.redis_url)
