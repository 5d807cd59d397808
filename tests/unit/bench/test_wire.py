"""The generator's own HTTP and WebSocket: every cut of the stream, every shape of answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from bench.wire import (
    ABNORMAL,
    CLOSE,
    NO_CODE,
    PING,
    TEXT,
    Address,
    Answer,
    FrameReader,
    HttpConnection,
    WebSocket,
    WireError,
    frame_bytes,
    read_answer,
    request_bytes,
)

PLAIN = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1;extension=1\r\ny\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
LAST = b"HTTP/1.1 503 Busy\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n"


# ---- HTTP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (PLAIN, Answer(202, b"body", closes=False)),
        (CHUNKED, Answer(200, b"body", closes=False)),
        (EMPTY, Answer(204, b"", closes=False)),
        (LAST, Answer(503, b"", closes=True)),
    ],
    ids=["plain", "chunked", "empty", "last"],
)
def test_an_answer_is_read_once_it_is_whole_and_never_before(data: bytes, answer: Answer) -> None:
    for cut in range(len(data)):
        assert read_answer(data[:cut]) is None
    assert read_answer(data + b"HTTP/1.1 200") == (answer, b"HTTP/1.1 200")


def test_what_is_not_http_is_an_error() -> None:
    with pytest.raises(WireError):
        read_answer(b"SSH-2.0-OpenSSH\r\n\r\n")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:3000", Address("127.0.0.1", 3000, "")),
        ("http://example.com/base/", Address("example.com", 80, "/base")),
        ("http://[::1]:3000", Address("::1", 3000, "")),
    ],
)
def test_an_address_is_host_port_and_path(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "https://example.com", "", "http://"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address such as"):
        Address.parse(url)


def test_a_request_names_its_host_and_length() -> None:
    request = request_bytes(Address("::1", 3000, "/base"), "POST", "/api", b"{}")
    assert request == (
        b"POST /base/api HTTP/1.1\r\nHost: [::1]:3000\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


async def _serve_http(answers: list[bytes]) -> tuple[asyncio.Server, Address]:
    """Serve `answers` in turn, one for each request on any connection; an empty one hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while answers:
                await reader.readuntil(b"\r\n\r\n")
                answer = answers.pop(0)
                if not answer:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, Address("127.0.0.1", server.sockets[0].getsockname()[1], "")


async def test_a_connection_is_kept_and_made_again_after_the_server_closed_it() -> None:
    server, address = await _serve_http([PLAIN, LAST, PLAIN])
    async with server:
        connection = HttpConnection()
        request = request_bytes(address, "GET", "/")
        statuses = [(await connection.request(address, request)).status for _ in range(3)]
        connection.close()
    assert statuses == [202, 503, 202]


async def test_a_request_that_is_never_answered_is_an_error() -> None:
    server, address = await _serve_http([b""])
    async with server:
        with pytest.raises(ConnectionResetError):
            await HttpConnection().request(address, request_bytes(address, "GET", "/"))


async def test_nobody_listening_is_an_error(free_port: Callable[[], int]) -> None:
    address = Address("127.0.0.1", free_port(), "")
    with pytest.raises(ConnectionRefusedError):
        await HttpConnection().request(address, request_bytes(address, "GET", "/"))


# ---- WebSocket frames ------------------------------------------------------------------------------


def server_frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 65536:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes([(0x80 if final else 0) | opcode]) + length + payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_a_frame_of_any_length_is_read_whole(size: int) -> None:
    frame = server_frame(TEXT, b"x" * size)
    reader = FrameReader()
    for cut in range(min(len(frame), 12)):
        assert FrameReader().feed(frame[:cut]) == []
    assert reader.feed(frame[:-1]) == []
    assert reader.feed(frame[-1:]) == [(TEXT, b"x" * size)]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 400), max_size=12), st.data())
def test_messages_come_out_as_they_went_in_wherever_the_stream_is_cut(
    messages: list[bytes], cuts: list[int], data: st.DataObject
) -> None:
    stream = b""
    expected: list[tuple[int, bytes]] = []
    for message in messages:
        middle = data.draw(st.integers(0, len(message)))
        if data.draw(st.booleans()):
            # In two fragments, with a ping between them.
            stream += server_frame(TEXT, message[:middle], final=False)
            stream += server_frame(PING, b"still there?")
            stream += server_frame(0x0, message[middle:])
            expected.append((PING, b"still there?"))
        else:
            stream += server_frame(TEXT, message)
        expected.append((TEXT, message))
    reader, found, at = FrameReader(), [], 0
    for cut in [*cuts, len(stream)]:
        found += reader.feed(stream[at : at + cut])
        at += cut
    assert found == expected


@pytest.mark.parametrize("first", [b"\x81\x80mask", b"\xc1\x00"], ids=["masked", "extended"])
def test_a_frame_that_servers_may_not_send_is_an_error(first: bytes) -> None:
    with pytest.raises(WireError):
        FrameReader().feed(first)


def test_our_frames_are_masked_and_short() -> None:
    assert frame_bytes(CLOSE, b"\x03\xe8") == b"\x88\x82\0\0\0\0\x03\xe8"
    with pytest.raises(ValueError, match="125"):
        frame_bytes(CLOSE, b"x" * 126)


# ---- WebSocket against a real server ---------------------------------------------------------------


class Listener:
    """What a WebSocket told its owner."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def socket(self, port: int) -> WebSocket:
        address = Address("127.0.0.1", port, "/base")
        return WebSocket(address, "/orders/7/ws", self.texts.append, self.ended.set_result)


@pytest.fixture
async def listener() -> Listener:
    return Listener()


Serve = Callable[[Callable[[ServerConnection], Awaitable[None]]], Awaitable[int]]


@pytest.fixture
async def serving() -> AsyncIterator[Serve]:
    """Start a real WebSocket server with this handler; return its port."""
    servers = []

    async def start(handler: Callable[[ServerConnection], Awaitable[None]]) -> int:
        server = await serve(handler, "127.0.0.1", 0)
        servers.append(server)
        port: int = next(iter(server.sockets)).getsockname()[1]
        return port

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_messages_and_the_close_code_arrive(listener: Listener, serving: Serve) -> None:
    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        await connection.send(connection.request.path)
        await connection.send("x" * 70_000)
        await connection.send(["in ", "fragments"])
        await connection.close(4404, "unknown order")

    await listener.socket(await serving(handle)).open()
    assert await listener.ended == 4404
    assert listener.texts == [b"/base/orders/7/ws", b"x" * 70_000, b"in fragments"]


async def test_a_ping_is_answered(listener: Listener, serving: Serve) -> None:
    async def handle(connection: ServerConnection) -> None:
        await (await connection.ping())
        await connection.send("ponged")

    await listener.socket(await serving(handle)).open()
    assert await listener.ended == 1000
    assert listener.texts == [b"ponged"]


async def test_a_close_without_a_code_has_one_of_its_own(listener: Listener, serving: Serve) -> None:
    async def handle(connection: ServerConnection) -> None:
        connection.transport.write(b"\x88\x00")
        await connection.wait_closed()

    await listener.socket(await serving(handle)).open()
    assert await listener.ended == NO_CODE


async def test_a_connection_that_breaks_is_told_apart_from_one_that_closes(
    listener: Listener, serving: Serve
) -> None:
    async def handle(connection: ServerConnection) -> None:
        connection.transport.abort()

    await listener.socket(await serving(handle)).open()
    assert await listener.ended == ABNORMAL


async def test_a_refused_upgrade_is_told_by_its_http_status(listener: Listener) -> None:
    server, address = await _serve_http([LAST])
    async with server:
        await listener.socket(address.port).open()
        assert await listener.ended == 503


async def test_leaving_is_silent_for_us_and_clean_for_the_server(listener: Listener, serving: Serve) -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def handle(connection: ServerConnection) -> None:
        came.set()
        try:
            await connection.recv()
        except websockets.ConnectionClosed:
            left.set()

    socket = listener.socket(await serving(handle))
    await socket.open()
    await came.wait()
    socket.close()
    await left.wait()
    assert not listener.ended.done()
