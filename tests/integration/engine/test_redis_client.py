"""The engine's Redis client: answers go to who asked, and whatever happens to Redis ends within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

import engine.redis_client
from engine.redis_client import REDIS_ERRORS, RedisClient
from engine.settings import Settings
from tests.redis_py import redis_py


@pytest.fixture
async def client(empty_valkey: Settings) -> AsyncIterator[RedisClient]:
    async with RedisClient(empty_valkey) as client:
        yield client


@asynccontextmanager
async def edge(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Settings]:
    """The network's edge: a server that does what the test says."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield Settings(redis_host="127.0.0.1", redis_port=server.sockets[0].getsockname()[1])


async def test_every_answer_goes_to_who_asked(client: RedisClient) -> None:
    async def echo(number: int) -> None:
        text = b"x" * number
        assert await client("ECHO", text) == text
        assert await client.together([("ECHO", number), ("ECHO", b"\r\n")]) == [b"%d" % number, b"\r\n"]

    await asyncio.gather(*(echo(number * 37) for number in range(100)))


async def test_a_refused_command_raises_and_the_next_is_answered(client: RedisClient) -> None:
    with pytest.raises(ResponseError, match="unknown command"):
        await client("NOSUCH")
    with pytest.raises(ResponseError, match="unknown command"):
        await client.together([("ECHO", "a"), ("NOSUCH",), ("ECHO", "b")])
    assert await client("ECHO", "c") == b"c"


async def test_what_is_told_is_done_in_order_and_answered_to_nobody(client: RedisClient) -> None:
    assert await client("SET", "key", "asked") == b"OK"
    assert client.tell([("APPEND", "key", ", told"), ("NOSUCH",), ("APPEND", "key", ", told again")])
    answers = await asyncio.gather(client("GET", "key"), client("ECHO", "next"))
    assert list(answers) == [b"asked, told, told again", b"next"]


async def test_what_is_told_just_before_the_close_arrives(empty_valkey: Settings) -> None:
    async with RedisClient(empty_valkey) as client:
        await client("PING")
        assert client.tell([("SET", "key", "told")])
    async with RedisClient(empty_valkey) as client:
        assert await client("GET", "key") == b"told"


async def test_a_redis_that_was_not_heard_of_for_a_second_is_to_be_asked(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not client.tell([("PING",)])  # there is no connection yet
    assert await client("PING") == b"PONG"
    assert client.tell([("PING",)])
    monkeypatch.setattr(engine.redis_client, "_TRUST_SECONDS", 0.0)
    assert not client.tell([("PING",)])
    client.close()
    monkeypatch.setattr(engine.redis_client, "_TRUST_SECONDS", 60.0)
    assert not client.tell([("PING",)])


async def test_a_connection_that_died_while_idle_is_made_again(
    client: RedisClient, empty_valkey: Settings
) -> None:
    async with redis_py(empty_valkey) as other:
        for number in range(5):
            await other.execute_command("CLIENT", "KILL", "TYPE", "normal")  # type: ignore[no-untyped-call]
            assert await client("ECHO", number) == b"%d" % number


async def test_a_call_cancelled_at_any_moment_ends_and_takes_nobodys_answer(empty_valkey: Settings) -> None:
    for turns in range(12):
        async with RedisClient(empty_valkey) as client:
            task = asyncio.ensure_future(client("ECHO", "cancelled"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.result() == b"cancelled"
            assert await client("ECHO", "next") == b"next"


async def test_a_redis_that_hangs_is_given_up_and_its_late_answer_is_nobodys() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await reader.read()  # until the client goes
            return
        while await reader.read(4096):
            writer.write(b"+OK\r\n")

    async with edge(serve) as settings, RedisClient(settings) as client:
        with pytest.raises(TimeoutError, match=r"did not answer for 0\.05 s"):
            await client("PING", seconds=0.05)
        assert await client("PING") == b"OK"
    assert connections == 2


async def test_who_waits_is_told_when_the_connection_is_lost() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)

    async with edge(serve) as settings, RedisClient(settings) as client:
        answers = await asyncio.gather(*(client("PING") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisConnectionError] * 3


@pytest.mark.parametrize("said", [b"nonsense\r\n", b"+OK\r\n+OK\r\n"], ids=["no RESP", "more than was asked"])
async def test_what_is_not_redis_is_not_listened_to(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(said)
        await reader.read(4096)

    async with edge(serve) as settings, RedisClient(settings) as client:
        with suppress(*REDIS_ERRORS):
            await client("PING")
        assert client._connection is not None
        async with asyncio.timeout(5):
            await client._connection.lost


async def test_a_password_is_given_first_and_a_wrong_one_is_an_error() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            asked.append(data)
            writer.write(b"-WRONGPASS no\r\n" if b"wrong" in data else b"+OK\r\n")

    async with edge(serve) as settings:
        right = Settings(redis_host="127.0.0.1", redis_port=settings.redis_port, redis_password="secret")
        async with RedisClient(right) as client:
            assert await client("PING") == b"OK"
        assert [b"AUTH" in data for data in asked] == [True, False]
        wrong = Settings(redis_host="127.0.0.1", redis_port=settings.redis_port, redis_password="wrong")
        async with RedisClient(wrong) as client:
            with pytest.raises(ResponseError, match="WRONGPASS"):
                await client("PING")
