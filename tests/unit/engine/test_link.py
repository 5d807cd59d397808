"""Messages over a Unix socket: whole, in order and numbered, however the bytes come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from engine.link import LinkConnection


class Kept(LinkConnection):
    def __init__(self) -> None:
        super().__init__(1000)
        self.messages: list[tuple[int, bytes]] = []
        self.ended = asyncio.Event()

    def on_message(self, number: int, message: bytes) -> None:
        self.messages.append((number, message))
        if message == b"last":
            self.close()

    def on_end(self) -> None:
        self.ended.set()


class Transport:
    """What a connection writes to, and whether it was closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


MESSAGES = [(1, b"first"), (0xFFFFFFFF, b""), (2, bytes(1000))]


def connected() -> tuple[Kept, Transport]:
    connection, transport = Kept(), Transport()
    connection.connection_made(cast("asyncio.Transport", transport))
    return connection, transport


@pytest.mark.parametrize("size", [1, 3, 8, 9, 500, 5000])
async def test_messages_are_whole_however_their_bytes_are_cut(size: int) -> None:
    sender, transport = connected()
    for number, message in MESSAGES:
        sender.send(number, message)
    receiver, _ = connected()
    for at in range(0, len(transport.written), size):
        receiver.data_received(transport.written[at : at + size])
    assert receiver.messages == MESSAGES


async def test_a_message_that_is_too_long_ends_the_connection() -> None:
    sender, transport = connected()
    sender.send(0, bytes(1001))
    receiver, end = connected()
    receiver.data_received(transport.written[:8])
    assert end.closing
    assert not receiver.messages


async def test_both_sides_are_told_of_the_end_and_wait_for_nothing(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    here, there = Kept(), Kept()
    server = await loop.create_unix_server(lambda: there, str(tmp_path / "s"))
    await loop.create_unix_connection(lambda: here, str(tmp_path / "s"))
    here.send(7, b"last")
    async with asyncio.timeout(5):
        await here.ended.wait()
        await there.ended.wait()
        await here.writable()
    assert there.messages == [(7, b"last")]
    assert not here.is_open
    here.send(8, b"nobody hears")
    server.close()


async def test_who_does_not_read_is_waited_for() -> None:
    connection, _ = connected()
    connection.pause_writing()
    waiting = asyncio.ensure_future(connection.writable())
    await asyncio.sleep(0)
    assert not waiting.done()
    connection.resume_writing()
    await waiting
