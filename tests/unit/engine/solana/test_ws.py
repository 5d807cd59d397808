"""WebSocket frames as a server may send them, from one that sends what the test tells it to."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1

import pytest

from engine.solana.ws import WebSocket, WebSocketError, connected

TEXT, CONTINUED, CLOSE, PING, PONG = 0x1, 0x0, 0x8, 0x9, 0xA
FINAL = 0x80


def frame(head: int, content: bytes) -> bytes:
    size = len(content)
    if size < 126:
        return bytes((head, size)) + content
    if size < 65_536:
        return bytes((head, 126)) + size.to_bytes(2, "big") + content
    return bytes((head, 127)) + size.to_bytes(8, "big") + content


class Server:
    """Accepts one connection."""

    def __init__(self) -> None:
        self.request = b""
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.answer: bytes | None = None
        """To the request, instead of what accepts it."""
        self._server: asyncio.Server
        self.url = ""

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"ws://user:pass%21@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/path?key=1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.request = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"Sec-WebSocket-Key: (\S+)", self.request)
        assert found is not None
        accept = b64encode(sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(
            self.answer
            or b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n"
            % accept
            # What follows at once may come in the same piece.
            + frame(FINAL | TEXT, b"welcome")
        )

    async def read_frame(self) -> tuple[int, bytes]:
        """Return the first byte and the content of the next frame from the client."""
        head, size = await self.reader.readexactly(2)
        assert size & 0x80, "a client's frames are masked"
        size &= 0x7F
        if size == 127:
            size = int.from_bytes(await self.reader.readexactly(8), "big")
        mask = await self.reader.readexactly(4)
        content = await self.reader.readexactly(size)
        return head, bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))


@asynccontextmanager
async def conversation() -> AsyncIterator[tuple[Server, WebSocket]]:
    async with asyncio.timeout(10), Server() as server, connected(server.url, 5.0) as socket:
        assert await anext(socket) == b"welcome"
        yield server, socket


async def test_the_request_names_the_path_and_who_asks() -> None:
    async with conversation() as (server, _):
        lines = server.request.split(b"\r\n")
        assert lines[0] == b"GET /path?key=1 HTTP/1.1"
        assert b"Authorization: Basic " + b64encode(b"user:pass!") in lines
        assert re.search(rb"Host: 127.0.0.1:\d+\r\n", server.request)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000])
async def test_texts_of_any_size_go_both_ways(size: int) -> None:
    text = bytes(at % 251 for at in range(size))
    async with conversation() as (server, socket):
        server.writer.write(frame(FINAL | TEXT, text) + frame(FINAL | TEXT, b"next"))
        assert await anext(socket) == text
        assert await anext(socket) == b"next"
        socket.send(text)
        assert await server.read_frame() == (FINAL | TEXT, text)


async def test_a_text_may_come_in_pieces_of_frames_and_frames_of_text() -> None:
    frames = (
        frame(TEXT, b"one ")
        + frame(FINAL | PING, b"are you there")
        + frame(CONTINUED, b"two ")
        + frame(FINAL | CONTINUED, b"x" * 200)
    )
    async with conversation() as (server, socket):
        for byte in frames:
            server.writer.write(bytes((byte,)))
            await server.writer.drain()
            await asyncio.sleep(0)
        assert await anext(socket) == b"one two " + b"x" * 200
        assert await server.read_frame() == (FINAL | PONG, b"are you there")


async def test_a_flood_of_texts_waits_at_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.solana.ws._MAX_UNREAD", 3)
    async with conversation() as (server, socket):
        flood = [b"%d" % number + bytes(100_000) for number in range(200)]
        for text in flood:
            server.writer.write(frame(FINAL | TEXT, text))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await server.writer.drain()
        for text in flood:
            assert await anext(socket) == text
        await server.writer.drain()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame(FINAL | CLOSE, b"\x03\xf4restarting"), "closed it: restarting"),
        (frame(FINAL | TEXT | 0x40, b"compressed"), "begins with 0xc1"),
        (bytes((FINAL | TEXT, 0x80 | 1)) + b"mask1", "masked"),
        (bytes((FINAL | TEXT, 127)) + (2**40).to_bytes(8, "big"), "is of 1099511627776 bytes"),
    ],
    ids=["close", "compressed", "masked", "endless"],
)
async def test_what_ends_it_is_told_after_the_texts_that_came_before(sent: bytes, reason: str) -> None:
    async with conversation() as (server, socket):
        server.writer.write(frame(FINAL | TEXT, b"last") + sent)
        assert await anext(socket) == b"last"
        for _ in range(2):
            with pytest.raises(WebSocketError, match=reason):
                await anext(socket)
        # Nobody hears it, and nobody minds.
        socket.send(b"too late")


async def test_a_connection_that_is_cut_ends_it() -> None:
    async with conversation() as (server, socket):
        server.writer.transport.abort()
        with pytest.raises(WebSocketError, match="lost"):
            await anext(socket)


async def test_who_gives_no_sign_of_life_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.solana.ws._BEAT_SECONDS", 0.05)
    async with conversation() as (server, socket):
        for _ in range(3):
            assert await server.read_frame() == (FINAL | PING, b"")
            server.writer.write(frame(FINAL | PONG, b""))
        with pytest.raises(WebSocketError, match="nothing has been heard"):
            await anext(socket)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "HTTP 403"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP 200"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: c29tZWJvZHkgZWxzZQ==\r\n\r\n",
            "did not mean this connection",
        ),
        (b"what?\r\n\r\n", "ended"),
    ],
    ids=["refused", "not upgraded", "another's", "no HTTP"],
)
async def test_a_server_that_does_not_agree_is_an_error(answer: bytes, reason: str) -> None:
    async with asyncio.timeout(10), Server() as server:
        server.answer = answer
        with pytest.raises(WebSocketError, match=reason):
            async with connected(server.url, 5.0):
                raise AssertionError("it did not agree")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1:1", "ws://"])
async def test_an_address_of_another_kind_is_an_error(url: str) -> None:
    with pytest.raises(WebSocketError, match="is not an address"):
        async with connected(url, 1.0):
            raise AssertionError("there is no such place")


async def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_allowed() -> None:
    async with asyncio.timeout(10), Server() as server:
        server.answer = b"HTTP/1.1 101 Switching"
        with pytest.raises(TimeoutError):
            async with connected(server.url, 0.05):
                raise AssertionError("it did not answer")
