"""Messages between two processes of one host over a Unix socket, for the one path every order takes.

With 8 ms in between, a message and its answer on an open gRPC stream cost 360 us of CPU at either end, where
three threads are woken for each, and 600 us of time; here 120 and 80, and 220.

A connection carries the messages of one method. The client's first frame names it; after that each side sends
what it likes, and numbers tell which answer is whose. There is no other end than a closed connection. The
server sends an empty message at once and then every PULSE_SECONDS; a client leaves one that is silent.

    frame = length of the message, number (4 bytes each, big-endian), message
"""

from __future__ import annotations

import asyncio
import struct
from typing import ClassVar, Final

PULSE_SECONDS: Final = 3.0
"""Less than a client waits for one server: of one that is late it knows so whether it hangs."""
SILENCE_SECONDS: Final = 13.0
"""As of gRPC, whose pings find out about a peer that hangs as late."""

_HEADER: Final = struct.Struct(">II")


class LinkConnection(asyncio.Protocol):
    """One end of a connection; subclasses say what is done with a message, and when there are no more."""

    method: ClassVar[bytes] = b""
    """What the client's end of it is for."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._transport: asyncio.Transport | None = None
        """None once it has ended, and before it has begun."""
        self._received = b""
        self._writable = asyncio.Event()

    def on_message(self, number: int, message: bytes) -> None:
        """Nothing that this raises is caught: the connection would end without a word why."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The connection is lost or closed: nothing that was sent is sure to have arrived."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, number: int, message: bytes) -> None:
        """Send it, unless the connection has ended, which `on_end` tells."""
        if self._transport is not None:
            # In one piece: each write is a system call.
            self._transport.write(_HEADER.pack(len(message), number) + message)

    async def writable(self) -> None:
        """Return once the other side reads what it is sent, or nothing can be sent to it any more."""
        await self._writable.wait()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self) -> None:
        """Send what is still to be sent, and end."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once, whatever is still to be sent: the other side may not read any more."""
        if self._transport is not None:
            self._transport.abort()

    # ---- Called by the event loop ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        at = 0
        while len(received) - at >= _HEADER.size:
            size, number = _HEADER.unpack_from(received, at)
            if size > self._max_message_bytes:
                self.close()
                return
            start = at + _HEADER.size
            if len(received) < start + size:
                break
            at = start + size
            self.on_message(number, received[start:at])
        self._received = received[at:]

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._writable.set()
        self.on_end()
