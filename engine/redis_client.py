"""How every part talks to Redis: one client, bounded waits, one version check.

Redis carries hints and nothing else, of orders and of swaps under way, so no call here waits long and none is
repeated for long: who needs certainty reads PostgreSQL.

The client is ours, on hiredis, which packs commands and reads answers: redis-py's takes several times the
CPU.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Never, Self, cast

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from engine.addresses import with_port
from engine.domain.retry import RetryPolicy
from engine.process import StartupError
from engine.settings import Settings
from engine.telemetry import Trouble

ANSWER_SECONDS: Final = 2.0
"""A Redis that takes longer than this for an answer is treated as one that is away."""

RECONNECT: Final = RetryPolicy(base_seconds=0.1, cap_seconds=2.0)
"""How long to leave Redis alone after each failure in a row. Never given up: `max_attempts` is not used."""

REDIS_ERRORS: Final = (RedisError, OSError, TimeoutError)
"""What a call may raise when Redis is away, unwilling or confused."""

_TRUST_SECONDS: Final = 1.0
"""How long after its last answer Redis is told things that it need not answer."""

_OLDEST: Final = 7
"""Before 7.0, XAUTOCLAIM answers deleted entries as nil instead of leaving them out."""

Command = tuple[str | bytes | int, ...]
_pack: Final[Callable[[Command], bytes]] = hiredis.pack_command  # type: ignore[assignment]
_NO_ANSWER: Final = _pack(("CLIENT", "REPLY", "SKIP"))
"""To the command after it."""


class RedisClient:
    """One connection, made when it is needed and again when it was lost. Use as `async with`, or `close` it.

    Commands go out at once, however many are under way, and are answered in order; so one that blocks takes a
    client of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __call__(self, *command: str | bytes | int, seconds: float = ANSWER_SECONDS) -> Any:
        """Return Redis's answer, in bytes, ints and lists. Raises one of REDIS_ERRORS.

        Without one for `seconds` the connection is given up: what comes on it later is nobody's. Making
        one may take as long again.
        """
        (answer,) = await self.together([command], seconds=seconds)
        return answer

    async def together(self, commands: Sequence[Command], *, seconds: float = ANSWER_SECONDS) -> list[Any]:
        """Send the commands in one go and return their answers. Raises the first error among them."""
        connection = self._connection
        if connection is not None and connection.is_up:
            try:
                return await connection.ask(commands, seconds)
            except RedisConnectionError:
                pass  # It may have died while it was idle. Once more, on a new one.
        return await (await self._connected(seconds)).ask(commands, seconds)

    def tell(self, commands: Sequence[Command]) -> bool:
        """Send the commands and ask for no answers; return False if nothing was sent: use `together` then.

        For what may be lost: to wait for an answer takes another 100 us of CPU. Once a second, and whenever
        there is no connection, this returns False, so a Redis that is away, hangs or refuses is noticed then.
        """
        connection = self._connection
        if connection is None or not connection.is_trusted():
            return False
        connection.tell(commands)
        return True

    async def listen(
        self, on_message: Mapping[str, Callable[[bytes], None]], on_begin: Callable[[], None]
    ) -> Never:
        """Call what `on_message` has for a channel with every message of that channel, from `on_begin` on.

        It has a connection for itself. Raises one of REDIS_ERRORS when it ends.
        """
        connection = await self._connect(ANSWER_SECONDS)
        try:
            connection.on_message = {channel.encode(): action for channel, action in on_message.items()}
            await connection.ask([("SUBSCRIBE", channel) for channel in on_message], ANSWER_SECONDS)
            on_begin()
            while True:
                # A connection that nobody closed may be dead all the same.
                await asyncio.wait([connection.lost], timeout=ANSWER_SECONDS)
                await connection.ask([("PING",)], ANSWER_SECONDS)
        finally:
            connection.close()

    async def keep_listening(
        self,
        on_message: Mapping[str, Callable[[bytes], None]],
        on_begin: Callable[[], None],
        on_end: Callable[[], None],
        trouble: Trouble,
    ) -> Never:
        """`listen` for ever, through whatever happens to Redis. `on_end` is called whenever a try is over."""
        failures = 0

        def begin() -> None:
            nonlocal failures
            failures = 0
            trouble.works()
            on_begin()

        while True:
            try:
                await self.listen(on_message, begin)
            except REDIS_ERRORS as error:
                failures += 1
                trouble.fails(error)
            finally:
                on_end()
            await asyncio.sleep(RECONNECT.delay_seconds(failures, random.random()))

    def close(self) -> None:
        """Close the connection. A later call makes another."""
        if self._connection is not None:
            self._connection.close()

    async def _connected(self, seconds: float) -> _Connection:
        async with self._connecting:
            if self._connection is None or not self._connection.is_up:
                self._connection = await self._connect(seconds)
            return self._connection

    async def _connect(self, seconds: float) -> _Connection:
        loop, settings = asyncio.get_running_loop(), self._settings
        host = settings.redis_host or "127.0.0.1"
        async with asyncio.timeout(seconds):
            if host.startswith("/"):
                _, connection = await loop.create_unix_connection(_Connection, host)
            else:
                _, connection = await loop.create_connection(_Connection, host, settings.redis_port)
        if settings.redis_password:
            try:
                await connection.ask([("AUTH", settings.redis_password)], seconds)
            except BaseException:
                connection.close()
                raise
        return connection


class _Connection(asyncio.Protocol):
    """What is asked and not answered yet, in order."""

    def __init__(self) -> None:
        self.is_up = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_message: Mapping[bytes, Callable[[bytes], None]] = {}
        """By channel."""
        self._transport: asyncio.Transport
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError,  # what follows cannot be read either
            replyError=ResponseError,
        )
        self._asked: deque[tuple[asyncio.Future[list[Any]], list[Any], int]] = deque()
        """Who asked, what was answered so far, and how many answers there are to be."""
        self._heard_time = 0.0
        """Of the last answer, on the loop's clock."""

    def is_trusted(self) -> bool:
        return self.is_up and asyncio.get_running_loop().time() < self._heard_time + _TRUST_SECONDS

    def tell(self, commands: Sequence[Command]) -> None:
        self._transport.write(b"".join([_NO_ANSWER + _pack(command) for command in commands]))

    async def ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        if not self.is_up:
            raise RedisConnectionError("the connection to Redis is lost")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._asked.append((future, [], len(commands)))
        self._transport.write(b"".join([_pack(command) for command in commands]))
        too_late = loop.call_later(seconds, self._give_up, seconds)
        try:
            answers = await future
        finally:
            too_late.cancel()
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def close(self) -> None:
        """Send what is still to be sent, and end."""
        self._lose(RedisConnectionError("the connection to Redis was closed"))
        self._transport.close()

    def _give_up(self, seconds: float) -> None:
        self._lose(TimeoutError(f"Redis did not answer for {seconds:g} s"))
        self._transport.abort()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_up = True

    def data_received(self, data: bytes) -> None:
        self._heard_time = asyncio.get_running_loop().time()
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not False:
                self._take(answer)
        except RedisConnectionError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(RedisConnectionError(str(error) if error else "Redis closed the connection"))

    def _take(self, answer: Any) -> None:
        if self.on_message and isinstance(answer, list) and answer[0] == b"message":
            self.on_message[answer[1]](answer[2])
            return
        if not self._asked:
            raise RedisConnectionError("Redis answered what was not asked")
        future, answers, count = self._asked[0]
        answers.append(answer)
        if len(answers) == count:
            self._asked.popleft()
            # Who was cancelled waits no more.
            if not future.done():
                future.set_result(answers)

    def _lose(self, error: Exception) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self.lost.set_result(None)
        for future, _, _ in self._asked:
            if not future.done():
                future.set_exception(error)
        self._asked.clear()


async def check_version(settings: Settings) -> None:
    """Raise StartupError unless a Redis or Valkey of version 7.0 or later answers at `redis_url`."""
    place = settings.redis_host or "127.0.0.1"
    if not place.startswith("/"):
        place = with_port(place, settings.redis_port)
    async with RedisClient(settings) as client:
        try:
            answer: bytes = await client("INFO", "server", seconds=2 * ANSWER_SECONDS)
        except REDIS_ERRORS as error:
            said = str(error) or "no answer"
            raise StartupError(f"Redis at {place} cannot be used: {said}") from error
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
    # Valkey keeps saying 7.2.4 here, the Redis it is compatible with.
    version = next((value.strip() for name, _, value in lines if name == "redis_version"), "unknown")
    major = version.partition(".")[0]
    if not major.isdecimal() or int(major) < _OLDEST:
        raise StartupError(f"Redis at {place} is version {version}; {_OLDEST}.0 or later is needed")
