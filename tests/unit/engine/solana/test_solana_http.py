"""The HTTP client against servers that answer in every way HTTP/1.1 has, and in some it has not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from engine.solana.http import HttpClient, HttpError

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"


class Server:
    """Reads each request whole and writes what `answer` makes of it, as it comes."""

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self.connection_count = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            self.requests.append(head + body)
            pieces = self._answer(body)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if not pieces:
                writer.close()
                return


@asynccontextmanager
async def serving(answer: Callable[[bytes], list[bytes]]) -> AsyncIterator[Server]:
    made = Server(answer)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(made.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(lambda _: writer.close())

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def posting_to(url: str, timeout_seconds: float = 5.0) -> AsyncIterator[HttpClient]:
    client = HttpClient(url, timeout_seconds=timeout_seconds)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [_OK],
        [_OK[index : index + 1] for index in range(len(_OK))],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n", b"1\r\n]\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n", _OK],
    ],
)
async def test_answers_come_in_any_pieces_on_one_connection(pieces: list[bytes]) -> None:
    async with serving(lambda body: pieces) as server, posting_to(server.url) as client:
        for _ in range(3):
            assert await client.post(b"{}") == (200, b"[]")
        assert server.connection_count == 1


async def test_as_many_connections_as_requests_at_a_time() -> None:
    async with serving(lambda body: [_OK]) as server, posting_to(server.url) as client:
        for _ in range(2):
            await asyncio.gather(*(client.post(b"") for _ in range(3)))
        assert server.connection_count == 3


async def test_path_query_and_user_are_the_urls_own() -> None:
    async with serving(lambda body: [_OK]) as server:
        url = server.url.replace("//", "//me:p%40ss@") + "/rpc?api-key=1"
        async with posting_to(url) as client:
            await client.post(b"{}")
        (request,) = server.requests
        lines = request.split(b"\r\n")
        assert lines[0] == b"POST /rpc?api-key=1 HTTP/1.1"
        assert b"Authorization: Basic bWU6cEBzcw==" in lines
        assert f"Host: {server.url.partition('//')[2]}".encode() in lines


async def test_a_connection_that_the_server_ends_is_not_used_again() -> None:
    last = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    async with serving(lambda body: [last]) as server, posting_to(server.url) as client:
        assert await client.post(b"{}") == (503, b"")
        assert await client.post(b"{}") == (503, b"")
        assert server.connection_count == 2


@pytest.mark.parametrize("pieces", [[], [b"what?\r\n\r\n"]])
async def test_what_is_no_answer_is_an_error_and_the_next_request_has_a_new_connection(
    pieces: list[bytes],
) -> None:
    answers = [pieces, [_OK]]
    async with serving(lambda body: answers.pop(0)) as server, posting_to(server.url) as client:
        with pytest.raises(HttpError):
            await client.post(b"{}")
        assert await client.post(b"{}") == (200, b"[]")
        assert server.connection_count == 2


async def test_an_answer_that_nobody_waits_for_any_more_is_not_the_next_ones() -> None:
    asked = asyncio.Event()

    def answer(body: bytes) -> list[bytes]:
        asked.set()
        return [b"HTTP/1.1 200 OK\r\n"] if body == b"first" else [_OK]

    async with serving(answer) as server, posting_to(server.url) as client:
        first = asyncio.ensure_future(client.post(b"first"))
        await asked.wait()
        first.cancel()
        assert await client.post(b"second") == (200, b"[]")
        assert server.connection_count == 2


async def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async with (
        serving(lambda body: [b"HTTP/1.1 200 OK\r\n"]) as server,
        posting_to(server.url, timeout_seconds=0.01) as client,
    ):
        with pytest.raises(TimeoutError):
            await client.post(b"{}")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8899", "ftp://127.0.0.1", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        HttpClient(url, timeout_seconds=1.0)
