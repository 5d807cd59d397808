"""simnet's HTTP: whatever a client does on its connection, each request has its answer, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from simnet.http import MAX_BODY, MAX_HEAD, HttpConnections, answer, json_answer


class Toy:
    """Answers with what it was asked; "/later" once `go` is set, "/broken" never."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.later = asyncio.Event()
        """Somebody waits for `go`."""

    def serve(self, method: str, path: str, body: bytes) -> bytes | Coroutine[Any, Any, bytes]:
        if path == "/broken":
            raise LookupError("a defect")
        if path == "/later":
            return self._later(body)
        if path == "/large":
            return answer(b"x" * 300_000)
        return json_answer([b"%s %s %s" % (method.encode(), path.encode(), body)])

    async def _later(self, body: bytes) -> bytes:
        self.later.set()
        await self.go.wait()
        if body == b"broken":
            raise LookupError("a defect")
        if body == b"large":
            return answer(b"x" * 300_000)
        return json_answer([b"later ", body])


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status = int(head.split()[1])
            if status == 100:
                return status, b""
            lines = dict(line.lower().split(": ", 1) for line in head.strip().splitlines()[1:])
            return status, await self._reader.readexactly(int(lines["content-length"]))

    async def rest(self) -> bytes:
        """Return what comes until the server hangs up."""
        async with asyncio.timeout(10):
            return await self._reader.read()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Toy, HttpConnections, Client]]:
    toy = Toy()
    async with asyncio.TaskGroup() as tasks:
        connections = HttpConnections(toy.serve, tasks)
        server = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield toy, connections, Client(reader, writer)
        finally:
            writer.close()
            server.close()
            connections.close()


async def test_requests_sent_at_once_are_answered_in_order_even_where_one_takes_longer() -> None:
    async with served() as (toy, _, client):
        client.send(post("/a", b"1") + post("/later", b"2") + post("/b", b"3") + post("/later", b"4"))
        assert await client.answer() == (200, b"POST /a 1")
        await toy.later.wait()
        toy.go.set()
        assert await client.answer() == (200, b"later 2")
        assert await client.answer() == (200, b"POST /b 3")
        assert await client.answer() == (200, b"later 4")


async def test_a_request_may_come_byte_by_byte_and_in_chunks() -> None:
    async with served() as (_, _, client):
        request = (
            b"POST /path?query HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        for at in range(len(request)):
            client.send(request[at : at + 1])
        assert await client.answer() == (200, b"POST /path abcde")


async def test_who_waits_for_a_go_ahead_gets_it() -> None:
    async with served() as (_, _, client):
        head, body = post("/", b"body", "Expect: 100-continue").split(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert await client.answer() == (100, b"")
        client.send(body)
        assert await client.answer() == (200, b"POST / body")


async def test_head_is_answered_without_a_body() -> None:
    async with served() as (_, _, client):
        client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await client.rest()).endswith(b"Content-Length: 7\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [post("/", b"1", "Connection: close") + post("/", b"2"), b"GET / HTTP/1.0\r\n\r\n"],
    ids=["asked to close", "HTTP/1.0"],
)
async def test_a_connection_ends_with_the_request_that_says_so(request_bytes: bytes) -> None:
    async with served() as (_, _, client):
        client.send(request_bytes)
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"no HTTP at all\r\n\r\n", 400),
        (post("/", b"x" * (MAX_BODY + 1)), 413),
        (b"GET /" + b"x" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\n" + b"Host: x\r\n" * (MAX_HEAD // 9), 431),
    ],
    ids=["no HTTP", "body", "path", "header", "headers"],
)
async def test_what_cannot_be_taken_is_refused_and_the_connection_ends(
    request_bytes: bytes, status: int
) -> None:
    async with served() as (_, _, client):
        client.send(request_bytes)
        assert (await client.answer())[0] == status
        assert await client.rest() == b""


async def test_an_upgrade_to_another_protocol_is_answered_as_the_request_it_is() -> None:
    async with served() as (_, _, client):
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert await client.answer() == (200, b"GET / ")
        assert await client.rest() == b""


@pytest.mark.parametrize("request_bytes", [post("/broken", b""), post("/later", b"broken")])
async def test_a_defect_is_answered_with_500_and_logged_and_the_next_request_is_served(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as (toy, _, client):
        toy.go.set()
        client.send(request_bytes + post("/", b"next"))
        assert await client.answer() == (500, b"")
        assert await client.answer() == (200, b"POST / next")
        assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_who_does_not_read_its_answers_is_not_read_from_either_and_loses_none() -> None:
    async with served() as (_, _, client):
        for _ in range(100):
            client.send(post("/large", b""))
        for _ in range(100):
            assert await client.answer() == (200, b"x" * 300_000)


@pytest.mark.parametrize(("path", "body"), [("/large", b""), ("/later", b"large")])
async def test_no_more_is_answered_than_is_read(path: str, body: bytes) -> None:
    async with served() as (toy, connections, client):
        toy.go.set()
        client.send(post(path, body) * 100)
        for _ in range(1000):
            # Time enough for all of them.
            await asyncio.sleep(0)
        (connection,) = connections._open
        assert connection._transport.get_write_buffer_size() < 2 * 300_000
        client.send(post("/", b"last", "Connection: close"))
        for _ in range(100):
            assert await client.answer() == (200, b"x" * 300_000)
        assert await client.answer() == (200, b"POST / last")
        assert await client.rest() == b""


async def test_a_large_body_in_small_pieces_is_no_large_head() -> None:
    async with served() as (_, _, client):
        body = b"x" * (2 * MAX_HEAD)
        for request in (post("/", body), post("/", body)):
            for at in range(0, len(request), 1000):
                client.send(request[at : at + 1000])
                await asyncio.sleep(0)
        for _ in range(2):
            assert await client.answer() == (200, b"POST / " + body)


async def test_a_connection_that_nobody_uses_ends_but_not_while_it_waits_for_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simnet.http._IDLE_SECONDS", 0.01)
    async with served() as (toy, _, client):
        client.send(post("/later", b"slow"))
        await toy.later.wait()
        for _ in range(3):
            async with served() as (_, _, idle):
                assert await idle.rest() == b""
        toy.go.set()
        assert await client.answer() == (200, b"later slow")
        assert await client.rest() == b""


async def test_closing_lets_an_answer_that_is_under_way_out_first() -> None:
    async with served() as (toy, connections, client):
        client.send(post("/later", b"last"))
        await toy.later.wait()
        connections.close()
        toy.go.set()
        assert await client.answer() == (200, b"later last")
        assert await client.rest() == b""


async def test_a_client_that_is_gone_before_its_answer_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as (toy, _, client):
        client.send(post("/later", b""))
        await toy.later.wait()
        client._writer.transport.abort()
        toy.go.set()
    assert caplog.records == []
