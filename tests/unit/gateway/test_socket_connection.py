"""A socket whose client does not read, does not answer, or vanishes: bounded, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.server import ServerState
from websockets.frames import Opcode
from websockets.protocol import Protocol, Side

import gateway.sockets
from client import OrderError
from gateway.openapi import openapi
from gateway.origins import Origins
from gateway.sockets import PING_ROUNDS, Socket, Sockets, text_frame

ORDER = "01890000-0000-7000-8000-000000000000"
HEADERS = [(b"sec-websocket-version", b"13"), (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")]


class Transport:
    """The network's edge: keeps what is written and knows whether it was closed or cut."""

    def __init__(self) -> None:
        self.written = b""
        self.write_count = 0
        self.closed = self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        self.written += data
        self.write_count += 1

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        assert not self.is_closing(), "uvloop raises"
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def frames(self) -> list[Any]:
        """What a client makes of it."""
        reader = Protocol(Side.CLIENT)
        reader.receive_data(self.written.partition(b"\r\n\r\n")[2])
        return reader.events_received()


class Events:
    """A client whose watch tells an event whenever the test says so, unless it is paused."""

    def __init__(self) -> None:
        self.left = self.paused = False
        self.missed = 0
        self.known = b""
        """An event that is told before `follow` returns."""

    def follow(
        self,
        order_id: str,
        after_sequence: int,
        on_event: Callable[[bytes], None],
        on_end: Callable[[OrderError | None], None],
    ) -> Events:
        self.on_event, self.on_end = on_event, on_end
        if self.known:
            on_event(self.known)
        return self

    def tell(self, text: bytes) -> None:
        if self.paused or self.left:
            self.missed += 1
        else:
            self.on_event(text)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.left = True


class Timers:
    """The clock: timers run when the test says so."""

    def __init__(self) -> None:
        self.pending: list[tuple[Callable[[], object], Timer]] = []

    def call_later(self, _delay: float, action: Callable[[], object]) -> Timer:
        timer = Timer()
        self.pending.append((action, timer))
        return timer

    def fire(self, name: str) -> None:
        """Run the timer whose action has that name; fail if there is none."""
        for entry in self.pending:
            action, timer = entry
            if action.__name__ == name and not timer.cancelled:
                self.pending.remove(entry)
                action()
                return
        raise AssertionError(f"no timer {name}")


class Timer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Connection:
    def __init__(self, known: bytes = b"") -> None:
        self.transport, self.events, self.timers = Transport(), Events(), Timers()
        self.events.known = known
        self.sockets = Sockets(self.events, Origins([], "127.0.0.1"))  # type: ignore[arg-type]
        self.state = ServerState()
        self.socket = Socket(self.sockets, self.state, self.transport)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()

        class Loop:
            call_later = staticmethod(self.timers.call_later)
            call_soon = staticmethod(loop.call_soon)

        self.sockets._loop = Loop()  # type: ignore[assignment]
        self.socket.handshake("GET", f"/api/orders/{ORDER}/ws".encode(), HEADERS)

    async def tell(self, *sequences: int) -> None:
        """Have the events told in one turn of the loop."""
        for sequence in sequences:
            self.events.tell(b'{"sequence":%d}' % sequence)
        await asyncio.sleep(0)

    def pass_ping_seconds(self) -> None:
        for _ in range(PING_ROUNDS):
            self.timers.fire("_ping")


async def test_what_is_known_already_goes_out_with_the_answer_to_the_handshake() -> None:
    connection = Connection(known=b'{"sequence":1}')
    assert connection.transport.written.startswith(b"HTTP/1.1 101 ")
    assert [frame.data for frame in connection.transport.frames()] == [b'{"sequence":1}']
    assert connection.transport.write_count == 1
    await connection.tell(2, 3)
    assert len(connection.transport.frames()) == 3
    assert connection.transport.write_count == 2


async def test_a_client_that_does_not_read_is_told_1013_and_then_dropped() -> None:
    connection = Connection()
    await connection.tell(1)
    connection.socket.pause_writing()
    for sequence in range(2, 50):
        await connection.tell(sequence)
    # Nothing more is written, and nothing is held for it either: nor does it make us owe it pongs.
    assert not connection.transport.reading
    assert len(connection.transport.frames()) == 1
    assert connection.events.missed == 48
    connection.timers.fire("_too_slow")
    closing = connection.transport.frames()[-1]
    assert closing.opcode is Opcode.CLOSE
    assert int.from_bytes(closing.data[:2], "big") == 1013
    assert connection.transport.closed
    connection.timers.fire("abort")
    assert connection.transport.aborted
    connection.socket.connection_lost(None)
    assert connection.events.left
    assert (connection.sockets.open_count, connection.state.connections) == (0, set())


async def test_a_client_that_reads_again_in_time_goes_on() -> None:
    connection = Connection()
    connection.socket.pause_writing()
    assert connection.events.paused
    assert not connection.transport.reading
    connection.socket.resume_writing()
    assert connection.transport.reading
    await connection.tell(1)
    assert len(connection.transport.frames()) == 1
    with pytest.raises(AssertionError, match="no timer _too_slow"):
        connection.timers.fire("_too_slow")
    connection.socket.connection_lost(None)


async def test_a_client_that_does_not_answer_a_ping_is_dropped() -> None:
    connection = Connection()
    connection.pass_ping_seconds()
    assert connection.transport.frames()[-1].opcode is Opcode.PING
    # A pong, masked as clients do: it lives.
    connection.socket.data_received(b"\x8a\x80\x00\x00\x00\x00")
    connection.pass_ping_seconds()
    assert not connection.transport.aborted
    connection.pass_ping_seconds()
    assert connection.transport.aborted
    connection.socket.connection_lost(None)


async def test_a_client_that_goes_is_answered_and_forgotten() -> None:
    connection = Connection()
    await connection.tell(1)
    # A masked close frame, code 1000.
    connection.socket.data_received(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
    assert connection.transport.frames()[-1].opcode is Opcode.CLOSE
    assert connection.transport.closed
    connection.socket.connection_lost(None)
    assert connection.events.left


PONG = b"\x8a\x80\x00\x00\x00\x00"
HELLO = b"\x81\x85\x00\x00\x00\x00hello"
CLOSE = b"\x88\x82\x00\x00\x00\x00\x03\xe8"


@pytest.mark.parametrize(
    "pieces", [(CLOSE,), (PONG, CLOSE), (PONG + CLOSE,), (HELLO + CLOSE,), (PONG[:3], PONG[3:] + CLOSE)]
)
async def test_the_answer_to_a_close_is_known_whatever_comes_before_it(pieces: tuple[bytes, ...]) -> None:
    connection = Connection()
    connection.events.on_end(None)
    for piece in pieces:
        assert not connection.transport.closed
        connection.socket.data_received(piece)
    assert connection.transport.closed
    assert connection.transport.frames()[-1].opcode is Opcode.CLOSE
    assert connection.transport.write_count == 2, "the answer to the handshake, and our close"
    connection.socket.connection_lost(None)


async def test_more_sockets_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.sockets, "MAX_SOCKETS", 0)
    connection = Connection()
    assert connection.transport.written.startswith(b"HTTP/1.1 503 ")
    assert "503" in openapi()["paths"]["/api/orders/{orderId}/ws"]["get"]["responses"]
    assert b"retry-after: 1" in connection.transport.written
    assert connection.transport.closed
    connection.socket.connection_lost(None)
    assert connection.sockets.open_count == 0


async def test_a_restart_is_told_as_1012() -> None:
    connection = Connection()
    await connection.tell(1)
    connection.socket.shutdown()
    closing = connection.transport.frames()[-1]
    assert int.from_bytes(closing.data[:2], "big") == 1012
    assert connection.transport.closed
    connection.socket.connection_lost(None)


async def test_events_of_one_moment_are_one_write_with_the_close_that_follows() -> None:
    connection = Connection()
    await connection.tell(1, 2)
    assert connection.transport.write_count == 2, "the handshake's answer, and both events"
    connection.events.tell(b"{}")
    connection.events.on_end(None)
    assert connection.transport.write_count == 3
    await asyncio.sleep(0)
    assert connection.transport.write_count == 3
    assert [frame.opcode for frame in connection.transport.frames()] == [Opcode.TEXT] * 3 + [Opcode.CLOSE]
    connection.socket.connection_lost(None)


async def test_an_event_goes_before_the_answer_to_a_close() -> None:
    connection = Connection()
    connection.events.tell(b"{}")
    connection.socket.data_received(b"\x88\x82\x00\x00\x00\x00\x03\xe8")
    await asyncio.sleep(0)
    assert [frame.opcode for frame in connection.transport.frames()] == [Opcode.TEXT, Opcode.CLOSE]
    connection.socket.connection_lost(None)


async def test_a_close_is_not_followed_by_a_ping() -> None:
    connection = Connection()
    connection.events.on_end(None)
    connection.pass_ping_seconds()
    connection.pass_ping_seconds()
    assert connection.transport.frames()[-1].opcode is Opcode.CLOSE
    assert not connection.transport.aborted
    connection.timers.fire("abort")
    assert connection.transport.aborted
    connection.socket.connection_lost(None)


async def test_nothing_is_pinged_once_all_sockets_are_gone() -> None:
    connection = Connection()
    connection.socket.connection_lost(None)
    connection.timers.fire("_ping")
    with pytest.raises(AssertionError, match="no timer _ping"):
        connection.timers.fire("_ping")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_a_text_of_any_size_is_one_frame(size: int) -> None:
    reader = Protocol(Side.CLIENT)
    reader.receive_data(text_frame(b"x" * size))
    (frame,) = reader.events_received()
    assert (frame.opcode, frame.data, frame.fin) == (Opcode.TEXT, b"x" * size, True)  # type: ignore[union-attr]
