"""simnet's WebSocket: slots as they come, what landed of an account, the end of a signature, and accounts
of a program that change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from socket import create_connection
from typing import Any

import aiohttp
import msgspec
import pytest
import solders.rpc.responses as responses
import websockets
from solders.pubkey import Pubkey
from solders.signature import Signature

from engine.domain.pools.pool import Clock
from engine.settings import Settings
from engine.solana.instructions import memo, transfer_lamports
from engine.solana.programs import SYSTEM_PROGRAM
from simnet import base58
from simnet.accounts import Account
from simnet.bank import View
from simnet.faults import Faults
from simnet.node import Node
from simnet.transaction import Transaction
from tests.simnet_wallets import SigningWallet

ALICE, BOB = SigningWallet(1), SigningWallet(2)
PROGRAM = Pubkey.from_bytes(bytes([9]) * 32)


class Socket:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def ask(self, method: str, *params: Any) -> Any:
        await self._socket.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        return await self.next()

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self._socket.receive_json()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    settings = Settings(simnet_port=0, simnet_market_pools=0, simnet_finalized_slots=4)
    async with Node(settings) as node:
        node.chain.change(lambda view, _: view.put(ALICE.address, Account(10**12)))
        yield node


@pytest.fixture
async def socket(node: Node) -> AsyncIterator[Socket]:
    async with aiohttp.ClientSession() as session, session.ws_connect(node.ws_url) as socket:
        yield Socket(socket)


def notification(method: str, subscription: int, result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": {"result": result, "subscription": subscription}}


async def test_every_slot_is_announced_until_unsubscribed(node: Node, socket: Socket) -> None:
    subscription = (await socket.ask("slotSubscribe"))["result"]
    for _ in range(2):
        node.chain.advance()
        slot = node.chain.slot
        assert await socket.next() == notification(
            "slotNotification",
            subscription,
            {"parent": slot - 1, "root": node.chain.slot_of("finalized"), "slot": slot},
        )
    assert (await socket.ask("slotUnsubscribe", subscription))["result"] is True
    node.chain.advance()
    assert (await socket.ask("slotUnsubscribe", subscription))["error"]["code"] == -32602


ABOUT_ALICE = {"mentionsAccountOrProgram": str(ALICE.pubkey)}
WHOLE = {
    "encoding": "base64",
    "transactionDetails": "full",
    "maxSupportedTransactionVersion": 0,
    "showRewards": False,
}


def _sent(node: Node, wallet: SigningWallet, text: str, *, legacy: bool = False) -> bytes:
    """Send a memo and return its transaction."""
    blockhash = node.chain.blockhash(node.chain.slot)
    raw = wallet.sign([memo(text, wallet.pubkey)], blockhash, legacy=legacy)
    node.chain.accept(Transaction(raw))
    return raw


async def _recorded(node: Node, raw: bytes) -> dict[str, Any]:
    """Return what getTransaction answers, as far as it is told in a block."""
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "getTransaction",
        "params": [str(Signature.from_bytes(raw[1:65])), {"commitment": "confirmed", **WHOLE}],
    }
    async with aiohttp.ClientSession() as session, session.post(node.url, json=call) as response:
        result = (await response.json())["result"]
    return {
        "transaction": result["transaction"],
        "meta": result["meta"] | {"rewards": None},
        "version": result["version"],
    }


@pytest.mark.parametrize("commitment", ["confirmed", "finalized"])
async def test_what_landed_of_an_account_is_announced_with_its_block_before_the_slot_until_unsubscribed(
    node: Node, socket: Socket, commitment: str
) -> None:
    node.chain.change(lambda view, _: view.put(BOB.address, Account(10**12)))
    await socket.ask("slotSubscribe")
    subscription = (await socket.ask("blockSubscribe", ABOUT_ALICE, {"commitment": commitment, **WHOLE}))[
        "result"
    ]
    first, others = _sent(node, ALICE, "first"), _sent(node, BOB, "not hers")
    failed = ALICE.sign(
        [transfer_lamports(ALICE.pubkey, BOB.pubkey, 2**62)], node.chain.blockhash(node.chain.slot)
    )
    node.chain.accept(Transaction(failed))
    last = _sent(node, ALICE, "last", legacy=True)
    node.chain.advance()
    slot, block_time = node.chain.slot, node.chain.block_time
    _sent(node, BOB, "in the next slot, which is not told of")
    for _ in range(5):
        node.chain.advance()
    told = [await socket.next() for _ in range(7)]
    lag = {"confirmed": 1, "finalized": 4}[commitment]
    # Before the notification of the slot with which it has reached its commitment.
    assert [each["method"] for each in told] == [
        *["slotNotification"] * lag,
        "blockNotification",
        *["slotNotification"] * (6 - lag),
    ]
    (read,) = responses.parse_websocket_message(msgspec.json.encode(told[lag]).decode())
    assert isinstance(read, responses.BlockNotification)
    transactions = [await _recorded(node, raw) for raw in (first, failed, last)]
    assert [each["version"] for each in transactions] == [0, 0, "legacy"]
    assert transactions[1]["meta"]["err"] == {"InstructionError": [0, {"Custom": 1}]}
    assert (await _recorded(node, others))["meta"]["err"] is None
    assert told[lag] == notification(
        "blockNotification",
        subscription,
        {
            "context": {"slot": slot},
            "value": {
                "slot": slot,
                "block": {
                    "previousBlockhash": str(Pubkey.from_bytes(node.chain.blockhash(slot - 1))),
                    "blockhash": str(Pubkey.from_bytes(node.chain.blockhash(slot))),
                    "parentSlot": slot - 1,
                    "transactions": transactions,
                    "blockTime": block_time,
                    "blockHeight": node.chain.block_height(slot),
                },
                "err": None,
            },
        },
    )
    assert (await socket.ask("blockUnsubscribe", subscription))["result"] is True
    _sent(node, ALICE, "unheard")
    for _ in range(5):
        node.chain.advance()
    assert [(await socket.next())["method"] for _ in range(5)] == ["slotNotification"] * 5


async def test_a_transaction_whose_status_lags_is_left_out_of_its_block(node: Node, socket: Socket) -> None:
    await socket.ask("blockSubscribe", ABOUT_ALICE, {"commitment": "confirmed", **WHOLE})
    node.chain.faults = Faults(status_lag=1.0, status_lag_slots=1000)
    _sent(node, ALICE, "late")
    node.chain.advance()
    node.chain.faults = Faults()
    told = _sent(node, ALICE, "in time")
    for _ in range(6):
        node.chain.advance()
    (transaction,) = (await socket.next())["params"]["result"]["value"]["block"]["transactions"]
    assert transaction == await _recorded(node, told)
    # The next thing to come is the answer to this.
    assert "error" in await socket.ask("nope")


@pytest.mark.parametrize("commitment", ["processed", "confirmed", "finalized"])
async def test_a_signature_is_announced_once_at_its_commitment(
    node: Node, socket: Socket, commitment: str
) -> None:
    raw = ALICE.sign([memo("watched", ALICE.pubkey)], node.chain.blockhash(node.chain.slot))
    signature = str(Signature.from_bytes(raw[1:65]))
    subscription = (await socket.ask("signatureSubscribe", signature, {"commitment": commitment}))["result"]
    node.chain.accept(Transaction(raw))
    for _ in range(6):
        node.chain.advance()
    lag = {"processed": 0, "confirmed": 1, "finalized": 4}[commitment]
    first = node.chain.slot - 5
    assert await socket.next() == notification(
        "signatureNotification", subscription, {"context": {"slot": first + lag}, "value": {"err": None}}
    )
    # The node has ended the subscription by itself.
    assert (await socket.ask("signatureUnsubscribe", subscription))["error"]["code"] == -32602


async def test_a_failed_transaction_is_announced_with_its_error_and_receipt_where_asked_for(
    node: Node, socket: Socket
) -> None:
    raw = ALICE.sign(
        [transfer_lamports(ALICE.pubkey, BOB.pubkey, 2**62)], node.chain.blockhash(node.chain.slot)
    )
    signature = str(Signature.from_bytes(raw[1:65]))
    options = {"commitment": "confirmed", "enableReceivedNotification": True}
    subscription = (await socket.ask("signatureSubscribe", signature, options))["result"]
    node.chain.accept(Transaction(raw))
    node.chain.advance()
    slot = node.chain.slot
    assert await socket.next() == notification(
        "signatureNotification", subscription, {"context": {"slot": slot}, "value": "receivedSignature"}
    )
    node.chain.advance()
    assert await socket.next() == notification(
        "signatureNotification",
        subscription,
        {"context": {"slot": slot + 1}, "value": {"err": {"InstructionError": [0, {"Custom": 1}]}}},
    )


async def test_an_unsubscribed_signature_is_not_announced(node: Node, socket: Socket) -> None:
    raw = ALICE.sign([memo("unwatched", ALICE.pubkey)], node.chain.blockhash(node.chain.slot))
    signature = str(Signature.from_bytes(raw[1:65]))
    subscription = (await socket.ask("signatureSubscribe", signature, {"commitment": "processed"}))["result"]
    assert (await socket.ask("signatureUnsubscribe", subscription))["result"] is True
    node.chain.accept(Transaction(raw))
    node.chain.advance()
    # The next thing to come is the answer to this.
    assert "error" in await socket.ask("nope")


def _account(owner: bytes, data: bytes) -> Account:
    return Account(10**7, owner, data)


async def _changed(node: Node, **accounts: Account) -> None:
    """Change accounts between slots; their names are their addresses' first letters."""

    def act(view: View, _clock: Clock) -> None:
        for name, account in accounts.items():
            view.put(name.encode() * 32, account)

    node.chain.change(act)


async def test_accounts_of_a_program_are_announced_as_they_change_until_unsubscribed(
    node: Node, socket: Socket
) -> None:
    program, other = bytes(PROGRAM), bytes([8]) * 32
    options = {
        "encoding": "base64",
        "commitment": "processed",
        "filters": [
            {"dataSize": 4},
            {"memcmp": {"offset": 1, "bytes": base58.encode(b"bc")}},
        ],
        # As a node: accounts come whole all the same.
        "dataSlice": {"offset": 0, "length": 1},
    }
    subscription = (await socket.ask("programSubscribe", str(PROGRAM), options))["result"]
    await _changed(
        node,
        a=_account(program, b"abcd"),
        b=_account(program, b"abc"),
        c=_account(program, b"xxxx"),
        d=_account(other, b"abcd"),
        e=Account(0, program, b"abcd"),
    )
    told = await socket.next()
    (read,) = responses.parse_websocket_message(msgspec.json.encode(told).decode())
    assert isinstance(read, responses.ProgramNotification)
    assert told == notification(
        "programNotification",
        subscription,
        {
            "context": {"slot": node.chain.slot},
            "value": {
                "pubkey": str(Pubkey.from_bytes(b"a" * 32)),
                "account": {
                    "data": ["YWJjZA==", "base64"],
                    "executable": False,
                    "lamports": 10**7,
                    "owner": str(PROGRAM),
                    "rentEpoch": 2**64 - 1,
                    "space": 4,
                },
            },
        },
    )
    assert (await socket.ask("programUnsubscribe", subscription))["result"] is True
    await _changed(node, a=_account(program, b"zbcd"))
    # The next thing to come is the answer to this.
    assert (await socket.ask("programUnsubscribe", subscription))["error"]["code"] == -32602


async def test_an_account_that_is_too_large_for_base58_is_announced_without_its_data(
    node: Node, socket: Socket
) -> None:
    await socket.ask("programSubscribe", str(PROGRAM), {"commitment": "processed"})
    data = b"\xff" * 128
    await _changed(node, a=_account(bytes(PROGRAM), data), b=_account(bytes(PROGRAM), data + b"\xff"))
    told = [(await socket.next())["params"]["result"]["value"]["account"]["data"] for _ in range(2)]
    assert told == [[base58.encode(data), "base58"], ["error: data too large for bs58 encoding", "base58"]]


async def test_accounts_that_a_slot_changes_are_announced_with_it(node: Node, socket: Socket) -> None:
    options = {"encoding": "base64", "commitment": "processed"}
    subscription = (await socket.ask("programSubscribe", str(SYSTEM_PROGRAM), options))["result"]
    await socket.ask("slotSubscribe")
    raw = ALICE.sign(
        [transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], node.chain.blockhash(node.chain.slot)
    )
    node.chain.accept(Transaction(raw))
    node.chain.advance()
    told = [await socket.next() for _ in range(4)]
    assert [each["method"] for each in told] == [*["programNotification"] * 3, "slotNotification"]
    changes = [each["params"] for each in told[:3]]
    assert {each["subscription"] for each in changes} == {subscription}
    assert {each["result"]["context"]["slot"] for each in changes} == {node.chain.slot}
    lamports = {
        each["result"]["value"]["pubkey"]: each["result"]["value"]["account"]["lamports"] for each in changes
    }
    assert lamports[str(BOB.pubkey)] == 10**9


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("nope", [], -32601),
        ("programSubscribe", [], -32602),
        ("programSubscribe", [str(PROGRAM)], -32602),
        ("programSubscribe", [str(PROGRAM), {"commitment": "confirmed"}], -32602),
        ("programSubscribe", [str(PROGRAM), {"commitment": "processed", "encoding": "jsonParsed"}], -32602),
        ("programSubscribe", [str(PROGRAM), {"commitment": "processed", "filters": 7}], -32602),
        ("programSubscribe", [str(PROGRAM), {"commitment": "processed", "filters": [{}]}], -32602),
        ("programSubscribe", [str(PROGRAM), {"commitment": "processed", "dataSlice": 7}], -32602),
        ("blockSubscribe", [], -32602),
        ("blockSubscribe", ["all", WHOLE], -32602),
        ("blockSubscribe", [{"mentionsAccountOrProgram": 7}, WHOLE], -32602),
        ("blockSubscribe", [{"mentionsAccountOrProgram": "abc"}, WHOLE], -32602),
        ("blockSubscribe", [ABOUT_ALICE], -32602),
        ("blockSubscribe", [ABOUT_ALICE, WHOLE | {"commitment": "processed"}], -32602),
        ("blockSubscribe", [ABOUT_ALICE, WHOLE | {"encoding": "json"}], -32602),
        ("blockSubscribe", [ABOUT_ALICE, WHOLE | {"transactionDetails": "signatures"}], -32602),
        ("blockSubscribe", [ABOUT_ALICE, WHOLE | {"maxSupportedTransactionVersion": None}], -32602),
        ("blockSubscribe", [ABOUT_ALICE, WHOLE | {"showRewards": True}], -32602),
        ("blockUnsubscribe", [77], -32602),
        ("blockUnsubscribe", [[77]], -32602),
        ("slotUnsubscribe", [{}], -32602),
        ("signatureSubscribe", [], -32602),
        ("signatureSubscribe", ["abc"], -32602),
        ("signatureSubscribe", [str(Signature.default()), {"commitment": "surely"}], -32602),
    ],
)
async def test_what_cannot_be_subscribed_is_refused(
    socket: Socket, method: str, params: list[Any], code: int
) -> None:
    assert (await socket.ask(method, *params))["error"]["code"] == code


async def test_what_is_wrong_with_a_call_costs_no_subscription(
    node: Node, socket: Socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_text: Any) -> None:
        raise LookupError("a defect")

    assert (await socket.ask("slotSubscribe"))["result"] == 1
    # True is 1, but no number of a subscription.
    assert (await socket.ask("slotUnsubscribe", True))["error"]["code"] == -32602
    await socket._socket.send_str("[" * 100_000)
    assert (await socket.next())["error"]["code"] == -32700
    monkeypatch.setattr("simnet.ws.parse_signature", failing)
    assert (await socket.ask("signatureSubscribe", "x"))["error"]["code"] == -32603
    assert [record.exc_info is not None for record in caplog.records] == [True]
    node.chain.advance()
    assert (await socket.next())["params"]["subscription"] == 1


async def test_sockets_are_told_to_come_back_when_the_node_stops() -> None:
    async with aiohttp.ClientSession() as session:
        async with Node(Settings(simnet_port=0)) as node:
            socket = await session.ws_connect(node.ws_url)
            # An answer shows that the connection is served, not only accepted.
            await socket.send_str('{"jsonrpc":"2.0","id":1,"method":"slotSubscribe"}')
            await socket.receive_json()
        async with asyncio.timeout(10):
            message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)


async def test_a_client_that_is_gone_before_its_handshake_is_no_error(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    hello = (
        b"GET / HTTP/1.1\r\nHost: simnet\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    # Nothing is awaited in between: the node hears of all of it at once.
    for _ in range(4):
        with create_connection(("127.0.0.1", node.port + 1)) as connection:
            connection.sendall(hello)
    async with aiohttp.ClientSession() as session, session.ws_connect(node.ws_url) as socket:
        assert (await Socket(socket).ask("slotSubscribe"))["result"] == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_message_in_several_frames_is_one_call(node: Node) -> None:
    async with websockets.connect(node.ws_url, compression=None) as socket:
        await socket.send(['{"jsonrpc":"2.0","id":1,', '"method":"slot', 'Subscribe"}'])
        assert msgspec.json.decode(await socket.recv()) == {"jsonrpc": "2.0", "result": 1, "id": 1}
        # Answered between two messages, as any time.
        await (await socket.ping())


async def _until_closed(socket: websockets.ClientConnection) -> AsyncIterator[str | bytes]:
    with suppress(websockets.ConnectionClosed):
        while True:
            yield await socket.recv()


async def test_who_does_not_read_loses_its_connection_and_nobody_else_notices(
    node: Node, socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simnet.ws._GOODBYE_SECONDS", 0.01)
    monkeypatch.setattr("simnet.ws._MAX_UNREAD", 2**20)
    subscription = (await socket.ask("slotSubscribe"))["result"]
    async with websockets.connect(node.ws_url, compression=None, max_queue=1) as lazy:
        for _ in range(1000):
            await lazy.send('{"jsonrpc":"2.0","id":1,"method":"slotSubscribe"}')
            await lazy.recv()
        lazy.transport.pause_reading()
        # More than a megabyte beyond what the system itself keeps for it.
        for _ in range(120):
            node.chain.advance()
            assert (await socket.next())["params"]["subscription"] == subscription
        lazy.transport.resume_reading()
        # What had been written is still read; then it ends.
        async with asyncio.timeout(20):
            assert len([message async for message in _until_closed(lazy)]) < 120_000


async def test_who_sends_pings_and_reads_no_pong_loses_its_connection(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simnet.ws._GOODBYE_SECONDS", 0.01)
    monkeypatch.setattr("simnet.ws._MAX_UNREAD", 2**18)
    pings = (b"\x89\xfd" + bytes(4) + b"p" * 125) * 500
    async with websockets.connect(node.ws_url, compression=None) as lazy:
        lazy.transport.pause_reading()
        # Far more than the system itself keeps for it.
        for _ in range(400):
            if lazy.transport.is_closing():
                break
            lazy.transport.write(pings)
            await asyncio.sleep(0)
        lazy.transport.resume_reading()
        async with asyncio.timeout(20):
            await lazy.wait_closed()


async def test_what_is_no_websocket_handshake_is_refused(node: Node) -> None:
    url = node.ws_url.replace("ws:", "http:")
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 426
    with create_connection(("127.0.0.1", node.port + 1)) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        assert await asyncio.to_thread(connection.recv, 1) == b""
