"""WebSocket: slotSubscribe and signatureSubscribe, and their unsubscribes.

Each connection has a queue of its own; one that does not read loses its connection, not everybody's time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import msgspec
from aiohttp import WSMsgType, web

from simnet.chain import COMMITMENTS, Chain
from simnet.rpc import RpcFault, argument, parse_signature
from simnet.shapes import Json

_QUEUE: Final = 4096
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _SignatureWatch:
    signature: bytes
    commitment: str
    tell_received: bool


class Sockets:
    """All WebSocket connections of the node."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._connections: set[_Connection] = set()
        self._ids = count(1)
        chain.listeners.append(self._on_slot)

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse(heartbeat=30.0, compress=False)
        try:
            await socket.prepare(request)
        except ConnectionResetError:
            return web.Response()  # Gone before the handshake; nobody reads this either.
        connection = _Connection(socket, self._chain, self._ids)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
        return socket

    async def close(self) -> None:
        """Tell everybody to come back later."""
        for connection in list(self._connections):
            await connection.socket.close(code=1012, message=b"restarting")

    def _on_slot(self) -> None:
        slot = self._chain.slot
        # No block is ever skipped here, so the parent is the slot before.
        notice = {"parent": slot - 1, "root": self._chain.slot_of("finalized"), "slot": slot}
        for connection in list(self._connections):
            connection.on_slot(notice)


class _Connection:
    def __init__(self, socket: web.WebSocketResponse, chain: Chain, ids: count[int]) -> None:
        self.socket = socket
        self._chain = chain
        self._ids = ids
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        self._slots: set[int] = set()
        self._signatures: dict[int, _SignatureWatch] = {}
        self._too_slow = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            giving_up = tasks.create_task(self._give_up())
            try:
                async for message in self.socket:
                    if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                        self._send(self._answer(message.data))
            finally:
                writing.cancel()
                giving_up.cancel()

    def on_slot(self, notice: Json) -> None:
        for subscription in self._slots:
            self._notify("slotNotification", subscription, notice)
        for subscription, watch in list(self._signatures.items()):
            self._look(subscription, watch)

    def _look(self, subscription: int, watch: _SignatureWatch) -> None:
        """Tell what a signature's watcher waits for, if it has come."""
        status = self._chain.status(watch.signature)
        if watch.tell_received and (status is not None or self._chain.has(watch.signature)):
            watch.tell_received = False
            self._notify("signatureNotification", subscription, self._result("receivedSignature"))
        if status is not None and status.slot <= self._chain.slot_of(watch.commitment):
            # The last word: a node ends the subscription by itself.
            del self._signatures[subscription]
            self._notify("signatureNotification", subscription, self._result({"err": status.error}))

    def _result(self, value: Any) -> Json:
        return {"context": {"slot": self._chain.slot}, "value": value}

    def _answer(self, text: str | bytes) -> Json:
        try:
            request = _decode(text)
        except msgspec.DecodeError:
            return _fault_json(None, RpcFault(-32700, "Parse error"))
        if not isinstance(request, dict):
            return _fault_json(None, RpcFault(-32600, "Invalid request"))
        try:
            result = self._call(request.get("method"), request.get("params") or [])
        except RpcFault as fault:
            return _fault_json(request.get("id"), fault)
        return {"jsonrpc": "2.0", "result": result, "id": request.get("id")}

    def _call(self, method: Any, params: list[Any]) -> int | bool:
        if method == "slotSubscribe":
            subscription = next(self._ids)
            self._slots.add(subscription)
            return subscription
        if method == "signatureSubscribe":
            return self._watch_signature(params)
        if method in ("slotUnsubscribe", "signatureUnsubscribe"):
            return self._unsubscribe(self._slots if method == "slotUnsubscribe" else self._signatures, params)
        raise RpcFault(-32601, "Method not found")

    def _watch_signature(self, params: list[Any]) -> int:
        signature = parse_signature(argument(params, 0, 1))
        options = params[1] if len(params) > 1 and isinstance(params[1], dict) else {}
        commitment = options.get("commitment") or "finalized"
        if commitment not in COMMITMENTS:
            raise RpcFault(-32602, f"Invalid params: unknown variant `{commitment}`")
        subscription = next(self._ids)
        self._signatures[subscription] = _SignatureWatch(
            signature, commitment, bool(options.get("enableReceivedNotification"))
        )
        return subscription

    def _unsubscribe(self, held: set[int] | dict[int, _SignatureWatch], params: list[Any]) -> bool:
        subscription = argument(params, 0, 1)
        if subscription not in held:
            raise RpcFault(-32602, "Invalid subscription id.")
        if isinstance(held, set):
            held.discard(subscription)
        else:
            del held[subscription]
        return True

    def _notify(self, method: str, subscription: int, result: Json) -> None:
        self._send(
            {"jsonrpc": "2.0", "method": method, "params": {"result": result, "subscription": subscription}}
        )

    def _send(self, message: Json) -> None:
        try:
            self._outgoing.put_nowait(_encode(message))
        except asyncio.QueueFull:
            self._too_slow.set()

    async def _write(self) -> None:
        while True:
            message = await self._outgoing.get()
            try:
                await self.socket.send_str(message.decode())
            except ConnectionError:
                # It hung up; the reading side ends the connection.
                return

    async def _give_up(self) -> None:
        await self._too_slow.wait()
        await self.socket.close(code=1013, message=b"too slow")


def _fault_json(request_id: Any, fault: RpcFault) -> Json:
    return {"jsonrpc": "2.0", "error": {"code": fault.code, "message": fault.message}, "id": request_id}
