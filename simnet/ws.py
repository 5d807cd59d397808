"""WebSocket: slotSubscribe, blockSubscribe, signatureSubscribe and programSubscribe, and their unsubscribes.

An asyncio protocol on websockets' sans-IO one. Notifications go straight to the transport, without a queue
or task of their own; whoever does not read them loses its connection, not everybody's time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

import msgspec
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from simnet.accounts import Account
from simnet.chain import Chain
from simnet.questions import (
    RpcFault,
    argument,
    fault_of,
    invalid,
    parse_address,
    parse_commitment,
    parse_data_slice,
    parse_filters,
    parse_options,
    parse_signature,
)
from simnet.shapes import Json, account_json, address_text, block_transaction_json
from simnet.transaction import mentions

logger = logging.getLogger(__name__)
# The protocol writes a line for each connection at INFO.
logger.setLevel(logging.WARNING)

_MAX_UNREAD: Final = 2**23
"""Bytes a connection may leave unread: the blocks of a second under full load, at 4 kB a transaction."""
_HEARTBEAT_SECONDS: Final = 30.0
_GOODBYE_SECONDS: Final = 1.0
"""To let a client take leave before its connection is cut."""
_TRY_AGAIN_LATER: Final = 1013
_SERVICE_RESTART: Final = 1012

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _SignatureWatch:
    signature: bytes
    commitment: str
    tell_received: bool


@dataclass(slots=True)
class _ProgramWatch:
    program: bytes
    encoding: str
    filters: list[Callable[[bytes], bool]]


@dataclass(frozen=True, slots=True)
class _BlockWatch:
    address: bytes
    """Only what mentions it is told."""
    commitment: str


class _Blocks:
    """What blockSubscribe tells with the newest slot; encoded once for all who watch the same."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._notices: dict[_BlockWatch, bytes | None] = {}

    def of(self, watch: _BlockWatch) -> bytes | None:
        """Return the notification without the subscription's number and the end; None: there is nothing."""
        if watch not in self._notices:
            self._notices[watch] = self._notice(watch)
        return self._notices[watch]

    def _notice(self, watch: _BlockWatch) -> bytes | None:
        # With every slot one block reaches the commitment. The very first one is empty.
        chain, slot = self._chain, self._chain.slot_of(watch.commitment)
        landed = [each for each in chain.landed_in(slot) if mentions(each.raw, watch.address)]
        if not landed:
            # As a node (anza-xyz/agave, rpc/src/rpc_subscriptions.rs, filter_block_result_txs).
            return None
        return (
            b'{"jsonrpc":"2.0","method":"blockNotification","params":{"result":{"context":{"slot":%d},"value":'
            b'{"slot":%d,"block":{"previousBlockhash":"%b","blockhash":"%b","parentSlot":%d,"transactions":[%b]'
            b',"blockTime":%d,"blockHeight":%d},"err":null}},"subscription":'
            % (
                slot,
                slot,
                address_text(chain.blockhash(slot - 1)).encode(),
                address_text(chain.blockhash(slot)).encode(),
                slot - 1,
                b",".join([block_transaction_json(each) for each in landed]),
                landed[0].block_time,
                chain.block_height(slot),
            )
        )


class _Told:
    """Accounts that changed, by their programs; each is encoded once, however many are told."""

    def __init__(self, changed: Mapping[bytes, Account]) -> None:
        self._by_program: dict[bytes, list[tuple[bytes, Account]]] = {}
        self._texts: dict[tuple[bytes, str], bytes] = {}
        for address, account in changed.items():
            if account.lamports:
                self._by_program.setdefault(account.owner, []).append((address, account))

    def of(self, watch: _ProgramWatch) -> list[bytes]:
        """Return the notifications' values."""
        return [
            self._text(address, account, watch.encoding)
            for address, account in self._by_program.get(watch.program, ())
            if all(matches(account.data) for matches in watch.filters)
        ]

    def _text(self, address: bytes, account: Account, encoding: str) -> bytes:
        text = self._texts.get((address, encoding))
        if text is None:
            value = {"pubkey": address_text(address), "account": account_json(account, encoding, None)}
            text = self._texts[address, encoding] = _encode(value)
        return text


class Sockets:
    """All WebSocket connections of the node. Called, it makes the protocol of another one."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._open: set[_Connection] = set()
        self._ids = count(1)
        self._all_gone = asyncio.Event()
        chain.listeners.append(self._on_slot)
        chain.watchers.append(self._on_changes)

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self._chain, self._ids, self._open, self._all_gone)

    async def close(self) -> None:
        """Tell everybody to come back later."""
        self._all_gone.clear()
        for connection in list(self._open):
            connection.close(_SERVICE_RESTART, "restarting")
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                if self._open:
                    await self._all_gone.wait()
        except TimeoutError:
            for connection in list(self._open):
                connection.abort()

    def _on_slot(self) -> None:
        if not self._open:
            return
        slot = self._chain.slot
        # No block is ever skipped here, so the parent is the slot before.
        notice = (
            b'{"jsonrpc":"2.0","method":"slotNotification","params":'
            b'{"result":{"parent":%d,"root":%d,"slot":%d},"subscription":'
            % (slot - 1, self._chain.slot_of("finalized"), slot)
        )
        blocks = _Blocks(self._chain)
        for connection in list(self._open):
            connection.on_slot(notice, blocks)

    def _on_changes(self, changed: Mapping[bytes, Account]) -> None:
        told = None
        for connection in list(self._open):
            if connection.programs:
                told = told or _Told(changed)
                connection.on_changes(told)


class _Connection(asyncio.Protocol):
    def __init__(
        self, chain: Chain, ids: count[int], connections: set[_Connection], all_gone: asyncio.Event
    ) -> None:
        self._chain = chain
        self._ids = ids
        self._connections = connections
        self._all_gone = all_gone
        self._protocol = ServerProtocol(logger=logger)
        self._transport: asyncio.Transport
        self._heartbeat: asyncio.TimerHandle
        self._is_heard = True
        """Something came since the last heartbeat."""
        self._message: list[bytes] = []
        """What has come of a message in several frames."""
        self._slots: set[int] = set()
        self._blocks: dict[int, _BlockWatch] = {}
        self._signatures: dict[int, _SignatureWatch] = {}
        self.programs: dict[int, _ProgramWatch] = {}

    def close(self, code: int, reason: str) -> None:
        if self._protocol.state is not State.OPEN:
            self._transport.close()
            return
        self._protocol.send_close(code, reason)
        self._flush()

    def abort(self) -> None:
        self._transport.abort()

    # ---- Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._beat()

    def connection_lost(self, _error: Exception | None) -> None:
        self._heartbeat.cancel()
        self._connections.discard(self)
        if not self._connections:
            self._all_gone.set()

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._is_heard = True
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._protocol.send_response(self._protocol.accept(event))
            else:
                self._on_frame(cast(Frame, event))
        self._flush()
        # Pongs are not read either.
        if self._leaves_too_much_unread():
            self._give_up()

    def _on_frame(self, frame: Frame) -> None:
        # Pings are answered, and closes confirmed, by the protocol itself.
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._message.append(bytes(frame.data))
            if frame.fin:
                message, self._message = b"".join(self._message), []
                self._send(_encode(self._answer(message)))

    def _beat(self) -> None:
        """Ask for a sign of life, and let go of who gave none since the last time."""
        if not self._is_heard:
            self.abort()
            return
        self._is_heard = False
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()
        self._heartbeat = asyncio.get_running_loop().call_later(_HEARTBEAT_SECONDS, self._beat)

    def _flush(self) -> None:
        """Write what the protocol has to say beside messages; an empty piece is the end."""
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()

    # ---- Notifications

    def on_slot(self, notice: bytes, blocks: _Blocks) -> None:
        """Tell of a slot, and first of the blocks that reached their commitment with it.

        `notice` lacks the subscription's number and the end.
        """
        for subscription, block_watch in self._blocks.items():
            block = blocks.of(block_watch)
            if block is not None:
                self._send(b"%b%d}}" % (block, subscription))
        for subscription in self._slots:
            self._send(b"%b%d}}" % (notice, subscription))
        if self._signatures:
            for subscription, watch in list(self._signatures.items()):
                self._look(subscription, watch)

    def on_changes(self, told: _Told) -> None:
        """Tell of accounts that changed, each by itself, as a node does."""
        for subscription, watch in self.programs.items():
            for value in told.of(watch):
                self._send(
                    b'{"jsonrpc":"2.0","method":"programNotification","params":{"result":{"context":{"slot":%d},'
                    b'"value":%b},"subscription":%d}}' % (self._chain.slot, value, subscription)
                )

    def _look(self, subscription: int, watch: _SignatureWatch) -> None:
        """Tell what a signature's watcher waits for, if it has come."""
        status = self._chain.status(watch.signature)
        if watch.tell_received and (status is not None or self._chain.has(watch.signature)):
            watch.tell_received = False
            self._notify_signature(subscription, "receivedSignature")
        if status is not None and status.slot <= self._chain.slot_of(watch.commitment):
            # The last word: a node ends the subscription by itself.
            del self._signatures[subscription]
            self._notify_signature(subscription, {"err": status.error})

    def _notify_signature(self, subscription: int, value: Any) -> None:
        result = {"context": {"slot": self._chain.slot}, "value": value}
        self._send(
            _encode(
                {
                    "jsonrpc": "2.0",
                    "method": "signatureNotification",
                    "params": {"result": result, "subscription": subscription},
                }
            )
        )

    def _send(self, text: bytes) -> None:
        if self._protocol.state is not State.OPEN:
            return
        if self._leaves_too_much_unread():
            self._give_up()
            return
        # By hand, a third of what it takes by way of the protocol: a frame is nothing but its length and the
        # text as long as nothing is compressed (RFC 6455, 5.2).
        length = len(text)
        if length < 126:
            head = bytes((0x81, length))
        elif length < 65_536:
            head = b"\x81\x7e" + length.to_bytes(2, "big")
        else:
            head = b"\x81\x7f" + length.to_bytes(8, "big")
        self._transport.write(head + text)

    def _leaves_too_much_unread(self) -> bool:
        return self._transport.get_write_buffer_size() > _MAX_UNREAD

    def _give_up(self) -> None:
        self.close(_TRY_AGAIN_LATER, "too slow")
        self._transport.close()
        self._heartbeat.cancel()
        self._heartbeat = asyncio.get_running_loop().call_later(_GOODBYE_SECONDS, self.abort)

    # ---- Calls

    def _answer(self, text: bytes) -> Json:
        try:
            request = _decode(text)
        except (msgspec.DecodeError, RecursionError):
            return _fault_json(None, RpcFault(-32700, "Parse error"))
        if not isinstance(request, dict):
            return _fault_json(None, RpcFault(-32600, "Invalid request"))
        try:
            result = self._call(request.get("method"), request.get("params") or [])
        except Exception as error:
            return _fault_json(request.get("id"), fault_of(error))
        return {"jsonrpc": "2.0", "result": result, "id": request.get("id")}

    def _call(self, method: Any, params: list[Any]) -> int | bool:
        if method == "slotSubscribe":
            subscription = next(self._ids)
            self._slots.add(subscription)
            return subscription
        if method == "blockSubscribe":
            return self._watch_blocks(params)
        if method == "signatureSubscribe":
            return self._watch_signature(params)
        if method == "programSubscribe":
            return self._watch_program(params)
        if method == "slotUnsubscribe":
            return self._unsubscribe(self._slots, params)
        if method == "blockUnsubscribe":
            return self._unsubscribe(self._blocks, params)
        if method == "signatureUnsubscribe":
            return self._unsubscribe(self._signatures, params)
        if method == "programUnsubscribe":
            return self._unsubscribe(self.programs, params)
        raise RpcFault(-32601, "Method not found")

    def _watch_blocks(self, params: list[Any]) -> int:
        asked = argument(params, 0, 1)
        if not isinstance(asked, dict) or asked.keys() != {"mentionsAccountOrProgram"}:
            raise invalid("simnet announces blocks by mentionsAccountOrProgram alone; ask for that")
        address = parse_address(asked["mentionsAccountOrProgram"])
        options = parse_options(params, 1)
        commitment = parse_commitment(options)
        if commitment == "processed":
            raise invalid("Method does not support commitment below `confirmed`")
        # Beside the first one, those are a node's own defaults where nothing is asked for.
        for name, supported, default in (
            ("maxSupportedTransactionVersion", 0, None),
            ("encoding", "base64", "base64"),
            ("transactionDetails", "full", "full"),
            ("showRewards", False, False),
        ):
            given = options.get(name)
            if (default if given is None else given) != supported:
                raise invalid(
                    f"simnet announces blocks with {name} {_encode(supported).decode()} alone; ask for that"
                )
        subscription = next(self._ids)
        self._blocks[subscription] = _BlockWatch(address, commitment)
        return subscription

    def _watch_signature(self, params: list[Any]) -> int:
        signature = parse_signature(argument(params, 0, 1))
        options = parse_options(params, 1)
        commitment = parse_commitment(options)
        subscription = next(self._ids)
        self._signatures[subscription] = _SignatureWatch(
            signature, commitment, bool(options.get("enableReceivedNotification"))
        )
        return subscription

    def _watch_program(self, params: list[Any]) -> int:
        program = parse_address(argument(params, 0, 1))
        options = parse_options(params, 1)
        encoding = options.get("encoding") or "base58"
        if encoding not in ("base64", "base58"):
            raise invalid(f"Invalid params: encoding {encoding!r} is not supported; use base64")
        filters = parse_filters(options.get("filters"))
        # Read and then passed over, as a node does: the accounts come whole (anza-xyz/agave,
        # rpc/src/rpc_subscriptions.rs, filter_program_results).
        parse_data_slice(options.get("dataSlice"))
        if parse_commitment(options) != "processed":
            raise invalid("simnet announces accounts at commitment `processed` alone; ask for that")
        subscription = next(self._ids)
        self.programs[subscription] = _ProgramWatch(program, encoding, filters)
        return subscription

    def _unsubscribe(self, held: set[int] | dict[int, Any], params: list[Any]) -> bool:
        subscription = argument(params, 0, 1)
        if type(subscription) is not int or subscription not in held:
            raise RpcFault(-32602, "Invalid subscription id.")
        if isinstance(held, set):
            held.discard(subscription)
        else:
            del held[subscription]
        return True


def _fault_json(request_id: Any, fault: RpcFault) -> Json:
    return {"jsonrpc": "2.0", "error": {"code": fault.code, "message": fault.message}, "id": request_id}
