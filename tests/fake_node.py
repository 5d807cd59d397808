"""A Solana node's network edge that answers what a test tells it to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

Answer = Callable[[list[Any]], dict[str, Any]]
"""From a call's parameters to `{"result": ..}` or `{"error": ..}`."""


class FakeNode:
    """Serves JSON-RPC at `url` and slot announcements at `ws_url`, while its `async with` block runs."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[list[dict[str, Any]]] = []
        """Every HTTP request: the calls in it."""
        self.calls: Counter[str] = Counter()
        self.http_status = 200
        self.body: bytes | None = None
        """Sent instead of an answer, if set."""
        self.hold: asyncio.Event | None = None
        """Answers wait for it, if set."""
        self.asked = asyncio.Event()
        """Set by every HTTP request."""
        self.subscribed = asyncio.Event()
        self.unsubscribed = asyncio.Event()
        self.slot_calls: list[str] = []
        """Every slotSubscribe and slotUnsubscribe."""
        self.slot_answer: dict[str, Any] = {"result": 7}
        """What slotSubscribe is answered with. After an error nothing is announced."""
        self.block_calls: list[dict[str, Any]] = []
        """Every blockSubscribe and blockUnsubscribe."""
        self.block_answer: dict[str, Any] | None = None
        """What blockSubscribe is answered with; None: nothing."""
        self.blocks_left = asyncio.Event()
        """Set by every blockUnsubscribe."""
        self.socket_calls: list[dict[str, Any]] = []
        """Whatever else came over WebSockets."""
        self.socket_answers: Iterator[list[dict[str, Any]]] = iter(())
        """What each of those is answered with, one after the other."""
        self._sockets: set[web.WebSocketResponse] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.add_routes([web.post("/", self._call), web.get("/ws", self._socket)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drop_sockets()
        if self._runner is not None:
            await self._runner.cleanup()

    async def announce(self, slot: int) -> None:
        """Tell every subscriber of a new slot."""
        for socket in set(self._sockets):
            await socket.send_json(
                {
                    "jsonrpc": "2.0",
                    "method": "slotNotification",
                    "params": {
                        "result": {"parent": slot - 1, "root": slot - 32, "slot": slot},
                        "subscription": 7,
                    },
                }
            )

    async def tell_block(self, slot: int, block: dict[str, Any] | None) -> None:
        """Tell every subscriber of slots of a block."""
        value = {"slot": slot, "block": block, "err": None if block else "BlockStoreError"}
        result = {"context": {"slot": slot}, "value": value}
        for socket in set(self._sockets):
            await socket.send_json(
                {
                    "jsonrpc": "2.0",
                    "method": "blockNotification",
                    "params": {"result": result, "subscription": 9},
                }
            )

    async def answer_blocks(self, number: int) -> None:
        """Answer the first blockSubscribe with the number of a subscription."""
        for socket in set(self._sockets):
            answer = {"jsonrpc": "2.0", "result": number, "id": self.block_calls[0]["id"]}
            await socket.send_json(answer)

    async def drop_sockets(self) -> None:
        """Close every WebSocket."""
        self.subscribed.clear()
        for socket in set(self._sockets):
            await socket.close()

    async def _call(self, request: web.Request) -> web.Response:
        asked = await request.json()
        calls = asked if isinstance(asked, list) else [asked]
        self.requests.append(calls)
        self.calls.update(call["method"] for call in calls)
        self.asked.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.body is not None or self.http_status != 200:
            return web.Response(body=self.body or b"", status=self.http_status)
        answers = [
            {"jsonrpc": "2.0", "id": call["id"], **self.answers[call["method"]](call.get("params", []))}
            for call in calls
        ]
        # A node may answer a batch in any order.
        return web.json_response(answers[::-1] if isinstance(asked, list) else answers[0])

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        try:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                method = message.json()["method"]
                if method.startswith("slot"):
                    self.slot_calls.append(method)
                if method == "slotSubscribe":
                    await socket.send_json({"jsonrpc": "2.0", **self.slot_answer, "id": message.json()["id"]})
                    if "result" in self.slot_answer:
                        self._sockets.add(socket)
                        self.subscribed.set()
                    continue
                if method == "slotUnsubscribe":
                    assert message.json()["params"] == [7]
                    self._sockets.discard(socket)
                    self.unsubscribed.set()
                    continue
                if method.startswith("block"):
                    self.block_calls.append(message.json())
                    if method == "blockUnsubscribe":
                        self.blocks_left.set()
                    elif self.block_answer is not None:
                        await socket.send_json(
                            {"jsonrpc": "2.0", **self.block_answer, "id": message.json()["id"]}
                        )
                    continue
                self.socket_calls.append(message.json())
                for answer in next(self.socket_answers, []):
                    await socket.send_json({"jsonrpc": "2.0", **answer})
        finally:
            self._sockets.discard(socket)
        return socket
