"""How every part talks to Redis: one client, bounded waits, one version check.

Redis carries hints and nothing else, so no call here waits long and none is repeated for long: who
needs certainty reads PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from engine.domain.retry import RetryPolicy
from engine.process import StartupError
from engine.settings import Settings

ANSWER_SECONDS: Final = 2.0
"""A Redis that takes longer than this for an answer is treated as one that is away."""

RECONNECT: Final = RetryPolicy(base_seconds=0.1, cap_seconds=2.0)
"""How long to leave Redis alone after each failure in a row. Never given up: `max_attempts` is not used."""

REDIS_ERRORS: Final = (RedisError, OSError, TimeoutError)
"""What a call may raise when Redis is away, unwilling or confused."""

_OLDEST: Final = 7
"""Before 7.0, XAUTOCLAIM answers deleted entries as nil instead of leaving them out."""


def connection_options(retries: int = 1) -> dict[str, Any]:
    """Return how every connection to Redis behaves.

    `retries` is how often a call goes out again, at once, when its connection turns out to be dead: a
    pooled one may have died while it was idle. The waiting in between is the callers' own.
    """
    return {
        "socket_timeout": ANSWER_SECONDS,
        "socket_connect_timeout": ANSWER_SECONDS,
        # Not after a timeout: a server that hangs is not helped by being asked twice.
        "retry": Retry(NoBackoff(), retries, supported_errors=(RedisConnectionError,)),
        # RESP2 needs no HELLO, and no client name is announced: a new connection costs no extra round trip.
        "protocol": 2,
        "driver_info": None,
    }


def make_client(settings: Settings, *, retries: int = 1) -> Redis:
    """Return a client with a pool of connections, over TCP or a Unix socket as `redis_url` says."""
    client = Redis.from_url(settings.redis_url, **connection_options(retries))
    keep_cancellations(client.connection_pool)
    return client


def keep_cancellations(pool: ConnectionPool) -> None:
    """Have the pool's connections end a task that is cancelled while it sends a command.

    redis-py sends through `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that meets
    the end of what it waits for (github.com/python/cpython/issues/86296): a task that listens for ever
    would then never stop. Call it before the pool makes its first connection.
    """
    pool.connection_class = _keeping_cancellations(pool.connection_class)


def _keeping_cancellations(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    class Connection(connection_class):  # type: ignore[misc, valid-type]
        async def send_packed_command(
            self, command: bytes | str | Iterable[bytes], check_health: bool = True
        ) -> None:
            task = asyncio.current_task()
            before = task.cancelling() if task else 0
            await super().send_packed_command(command, check_health)
            if task and task.cancelling() > before:
                # The answer is not going to be read, so the connection must not be used again.
                await self.disconnect(nowait=True)
                raise asyncio.CancelledError

    return Connection


async def check_version(settings: Settings) -> None:
    """Raise StartupError unless a Redis or Valkey of version 7.0 or later answers at `redis_url`."""
    place = settings.redis_host or "127.0.0.1"
    if not place.startswith("/"):
        place = f"{place}:{settings.redis_port}"
    async with make_client(settings) as client:
        try:
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                server = await client.info("server")
        except REDIS_ERRORS as error:
            said = str(error) or "no answer"
            raise StartupError(f"Redis at {place} cannot be used: {said}") from error
    # Valkey keeps saying 7.2.4 here, the Redis it is compatible with.
    version = str(server.get("redis_version", "unknown"))
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST:
        raise StartupError(f"Redis at {place} is version {version}; {_OLDEST}.0 or later is needed")
