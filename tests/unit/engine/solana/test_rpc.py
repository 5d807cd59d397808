"""The node client against a node's published answers, and against a node that misbehaves."""

from __future__ import annotations

import asyncio
import logging
import socket
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from solders.pubkey import Pubkey
from solders.signature import Signature

from engine.domain.errors import NodeUnavailable
from engine.solana.programs import TOKEN_PROGRAM
from engine.solana.rpc import (
    ChainPosition,
    NodeClient,
    ProgramChange,
    ProgramWatch,
    RpcError,
    SignatureInfo,
    SignatureStatus,
    TransactionRecord,
)
from engine.solana.transactions import Blockhash
from tests.fake_node import FakeNode
from tests.published_vectors import solana_cases

KEY = Pubkey.from_string("BVExP6GCcTEfiCHAWcEN5tet9eHMWzeJ7vgoiEyijFxT")


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    async with FakeNode() as fake:
        yield fake


@pytest.fixture
async def client(node: FakeNode) -> AsyncIterator[NodeClient]:
    async with NodeClient(node.url, node.ws_url, timeout_seconds=5.0) as made:
        yield made


def _published(method: str, holds: Any = lambda response: "result" in response) -> dict[str, Any]:
    """Return the first published answer to a method that fits."""
    response: dict[str, Any] = next(
        case["response"]
        for case in solana_cases("rpc_examples")
        if case["method"] == method and holds(case["response"])
    )
    return {name: value for name, value in response.items() if name in ("result", "error")}


def _answer(node: FakeNode, method: str, answer: dict[str, Any]) -> None:
    node.answers[method] = lambda params: answer


# ---- What a node answers -------------------------------------------------------------------------


async def test_blockhash_comes_with_how_long_it_lasts(node: FakeNode, client: NodeClient) -> None:
    _answer(node, "getLatestBlockhash", _published("getLatestBlockhash"))
    assert await client.latest_blockhash() == Blockhash(
        "F26fH1L1SnpfDCZweDcexzJHaqUvmG6uqRWQ1X1975Bw", 390_000_150
    )


async def test_heights_and_slots_are_of_the_commitment_asked_for(node: FakeNode, client: NodeClient) -> None:
    _answer(node, "getEpochInfo", _published("getEpochInfo"))
    _answer(node, "getSlot", _published("getSlot"))
    assert await client.position("finalized") == ChainPosition(412_345_678, 390_000_000)
    assert await client.slot("processed") == 412_345_678
    assert [call["params"] for (call,) in node.requests] == [
        [{"commitment": "finalized"}],
        [{"commitment": "processed"}],
    ]


async def test_history_begins_with_the_first_block_that_is_available(
    node: FakeNode, client: NodeClient
) -> None:
    _answer(node, "getFirstAvailableBlock", {"result": 250_000})
    assert await client.first_available_slot() == 250_000


async def test_accounts_come_in_order_with_none_where_there_is_none(
    node: FakeNode, client: NodeClient
) -> None:
    _answer(node, "getMultipleAccounts", _published("getMultipleAccounts"))
    slot, (account, absent) = await client.multiple_accounts([KEY, KEY])
    assert slot == 412_345_678
    assert absent is None
    assert account is not None
    assert (account.lamports, account.owner, len(account.data)) == (2_039_280, str(TOKEN_PROGRAM), 165)


async def test_any_number_of_accounts_is_one_request(node: FakeNode, client: NodeClient) -> None:
    def answer(params: list[Any]) -> dict[str, Any]:
        accounts = [
            {"data": ["", "base64"], "lamports": int(key == str(KEY)), "owner": key, "space": 0}
            for key in params[0]
        ]
        return {"result": {"context": {"slot": len(accounts)}, "value": accounts}}

    node.answers["getMultipleAccounts"] = answer
    asked = [Pubkey.from_bytes(number.to_bytes(32, "big")) for number in range(250)]
    slot, accounts = await client.multiple_accounts(asked)
    assert [account.owner for account in accounts if account] == [str(key) for key in asked]
    assert slot == 50
    assert [[len(call["params"][0]) for call in request] for request in node.requests] == [[100, 100, 50]]


async def test_no_accounts_are_no_request(node: FakeNode, client: NodeClient) -> None:
    assert await client.multiple_accounts([]) == (0, [])
    assert node.requests == []


async def test_program_accounts_are_asked_for_by_size_prefix_and_slice(
    node: FakeNode, client: NodeClient
) -> None:
    found = {"pubkey": str(KEY), "account": {"data": ["AQI=", "base64"], "lamports": 1, "owner": "x"}}
    _answer(node, "getProgramAccounts", {"result": [found]})
    assert await client.program_accounts(
        TOKEN_PROGRAM, data_size=637, prefix=b"\x01\x02", data_slice=(168, 64)
    ) == [(KEY, b"\x01\x02")]
    ((call,),) = node.requests
    program, options = call["params"]
    assert program == str(TOKEN_PROGRAM)
    assert options["filters"] == [
        {"dataSize": 637},
        {"memcmp": {"offset": 0, "bytes": "AQI=", "encoding": "base64"}},
    ]
    assert options["dataSlice"] == {"offset": 168, "length": 64}


async def test_program_accounts_are_narrowed_by_what_they_contain(node: FakeNode, client: NodeClient) -> None:
    _answer(node, "getProgramAccounts", {"result": []})
    assert await client.program_accounts(TOKEN_PROGRAM, data_size=752, contains=(400, b"\x01\x02")) == []
    ((call,),) = node.requests
    assert call["params"][1]["filters"] == [
        {"dataSize": 752},
        {"memcmp": {"offset": 400, "bytes": "AQI=", "encoding": "base64"}},
    ]


async def test_statuses_tell_finality_and_error(node: FakeNode, client: NodeClient) -> None:
    _answer(node, "getSignatureStatuses", _published("getSignatureStatuses"))
    slot, (landed, reverted, unseen) = await client.signature_statuses(["a", "b", "c"])
    assert slot == 412_345_678
    assert landed == SignatureStatus(412_345_670, None, "confirmed")
    assert reverted == SignatureStatus(412_345_600, {"InstructionError": [2, {"Custom": 6005}]}, "finalized")
    assert unseen is None
    assert node.requests[0][0]["params"] == [["a", "b", "c"], {"searchTransactionHistory": True}]


@pytest.mark.parametrize(
    ("status", "commitment", "reached"),
    [
        ("processed", "confirmed", False),
        ("confirmed", "confirmed", True),
        ("confirmed", "finalized", False),
        ("finalized", "confirmed", True),
    ],
)
def test_status_reaches_its_own_commitment_and_those_below(
    status: str, commitment: str, reached: bool
) -> None:
    assert SignatureStatus(1, None, status).reached(commitment) is reached


async def test_statuses_of_many_are_chunks_of_one_request(node: FakeNode, client: NodeClient) -> None:
    node.answers["getSignatureStatuses"] = lambda params: {
        "result": {
            "context": {"slot": len(params[0])},
            "value": [
                {"slot": int(text), "err": None, "confirmationStatus": "finalized"} for text in params[0]
            ],
        }
    }
    slot, statuses = await client.signature_statuses([str(number) for number in range(600)])
    assert slot == 88
    assert [status.slot for status in statuses if status] == list(range(600))
    assert [[len(call["params"][0]) for call in request] for request in node.requests] == [[256, 256, 88]]


async def test_an_addresss_transactions_come_as_the_node_lists_them(
    node: FakeNode, client: NodeClient
) -> None:
    _answer(node, "getSignaturesForAddress", _published("getSignaturesForAddress"))
    newest, older = await client.signatures_of(str(KEY))
    assert newest == SignatureInfo(
        "5uHPNru5jKPUC4G26iJgDhVsb6G3AgjESgurWFeM55nuzPFEwxQ4fYM7D9LzBqcGdQKUxkSrtuzMaUDcb2bddSr7",
        412_345_600,
        {"InstructionError": [2, {"Custom": 6005}]},
        None,
        1_763_828_970,
    )
    assert older == SignatureInfo(
        "4v9XPmsuytY2xBTHvcEhFzAAEAqyYy5Pit63hukGkQYqtZgsy6wZavBpcdRbHr3kCVUWJBWNUYuXRnH8BoTHf2US",
        412_345_500,
        None,
        "[7] order-1",
        1_763_828_930,
    )
    await client.signatures_of(str(KEY), older.signature, seen_slot=7)
    options = {"limit": 1000, "commitment": "confirmed"}
    assert [call["params"] for (call,) in node.requests] == [
        [str(KEY), options],
        [str(KEY), {**options, "before": older.signature, "minContextSlot": 7}],
    ]


async def test_a_list_of_transactions_may_be_empty_and_lack_times(node: FakeNode, client: NodeClient) -> None:
    listed = {"signature": "a", "slot": 9, "err": None, "memo": None, "blockTime": None}
    answers: dict[str | None, list[Any]] = {None: [listed], "a": []}
    node.answers["getSignaturesForAddress"] = lambda params: {"result": answers[params[1].get("before")]}
    assert await client.signatures_of(str(KEY)) == [SignatureInfo("a", 9, None, None, None)]
    assert await client.signatures_of(str(KEY), "a") == []


async def test_transactions_that_cannot_be_listed_raise(node: FakeNode, client: NodeClient) -> None:
    _answer(
        node,
        "getSignaturesForAddress",
        {"error": {"code": -32602, "message": "Invalid param: WrongSize"}},
    )
    with pytest.raises(RpcError, match="getSignaturesForAddress: Invalid param: WrongSize"):
        await client.signatures_of("abc")
    _answer(node, "getSignaturesForAddress", {"result": [{"signature": "a"}]})
    with pytest.raises(NodeUnavailable, match="in a shape we do not know"):
        await client.signatures_of(str(KEY))
    node.http_status = 503
    with pytest.raises(NodeUnavailable, match="HTTP 503"):
        await client.signatures_of(str(KEY))


async def test_transaction_tells_what_became_of_token_accounts(node: FakeNode, client: NodeClient) -> None:
    _answer(node, "getTransaction", _published("getTransaction", lambda response: response.get("result")))
    (record,) = await client.transactions(["a"])
    assert isinstance(record, TransactionRecord)
    assert (record.slot, record.err, record.fee) == (412_345_670, None, 5_300)
    # The account is in the first list only: it was closed on the way.
    before, after = record.meta.pre_token_balances, record.meta.post_token_balances
    assert before
    assert not after
    (balance,) = before
    assert record.exchanged("me", balance.mint, "USDC") == (-12_345, 0)
    assert record.exchanged("me", "USDC", balance.mint) == (0, 12_345)
    assert record.exchanged(balance.owner, balance.mint, "USDC") == (0, 0)


async def test_transaction_that_is_not_there_is_none(node: FakeNode, client: NodeClient) -> None:
    _answer(
        node, "getTransaction", _published("getTransaction", lambda response: not response.get("result", 1))
    )
    assert await client.transactions(["a"]) == [None]


async def test_transactions_that_cannot_be_read_keep_no_other_from_being_read(
    node: FakeNode, client: NodeClient
) -> None:
    meta = {"err": None, "fee": 5_000}
    answers: dict[str, dict[str, Any]] = {
        "landed": {"result": {"slot": 9, "meta": meta}},
        "without meta": {"result": {"slot": 9, "meta": None}},
        "refused": {"error": {"code": -32015, "message": "Transaction version (1) is not supported"}},
        "absent": {"result": None},
    }
    node.answers["getTransaction"] = lambda params: answers[params[0]]
    landed, without_meta, refused, absent = await client.transactions(list(answers))
    assert isinstance(landed, TransactionRecord)
    assert isinstance(without_meta, NodeUnavailable)
    assert isinstance(refused, RpcError)
    assert absent is None


async def test_transactions_of_which_none_can_be_read_raise(node: FakeNode, client: NodeClient) -> None:
    assert await client.transactions([]) == []
    node.http_status = 503
    with pytest.raises(NodeUnavailable, match="HTTP 503"):
        await client.transactions(["a", "b"])


async def test_exchanged_amounts_are_what_the_pools_took_and_gave(node: FakeNode, client: NodeClient) -> None:
    def balance(index: int, mint: str, owner: str, amount: int) -> dict[str, Any]:
        return {
            "accountIndex": index,
            "mint": mint,
            "owner": owner,
            "uiTokenAmount": {"amount": str(amount), "decimals": 6},
        }

    meta = {
        "err": None,
        "fee": 5_000,
        "preTokenBalances": [balance(1, "SOL", "pool", 900), balance(2, "USDC", "pool", 5_000)],
        "postTokenBalances": [
            balance(1, "SOL", "pool", 1_000),
            balance(2, "USDC", "pool", 4_600),
            balance(3, "USDC", "me", 400),
        ],
    }
    _answer(node, "getTransaction", {"result": {"slot": 9, "meta": meta}})
    (record,) = await client.transactions(["a"])
    assert isinstance(record, TransactionRecord)
    assert record.exchanged("me", "SOL", "USDC") == (100, 400)


# ---- Sending -------------------------------------------------------------------------------------


async def test_transaction_is_sent_once_without_preflight(node: FakeNode, client: NodeClient) -> None:
    _answer(node, "sendTransaction", _published("sendTransaction"))
    await client.send_transaction(b"\x01\x02")
    ((call,),) = node.requests
    assert call["params"] == ["AQI=", {"encoding": "base64", "skipPreflight": True, "maxRetries": 0}]


async def test_transaction_that_landed_before_counts_as_sent(node: FakeNode, client: NodeClient) -> None:
    def already(response: dict[str, Any]) -> bool:
        data = response.get("error", {}).get("data") or {}
        return bool(data.get("err") == "AlreadyProcessed")

    _answer(node, "sendTransaction", _published("sendTransaction", already))
    await client.send_transaction(b"\x01")
    assert node.calls["sendTransaction"] == 1


async def test_transaction_the_node_cannot_read_is_refused(node: FakeNode, client: NodeClient) -> None:
    refused = _published("sendTransaction", lambda response: response.get("error", {}).get("code") == -32602)
    _answer(node, "sendTransaction", refused)
    with pytest.raises(RpcError, match="sendTransaction: failed to deserialize") as error:
        await client.send_transaction(b"\x00\x00\x00")
    assert error.value.code == -32602


async def test_sends_of_one_moment_travel_together_and_fail_alone(node: FakeNode, client: NodeClient) -> None:
    def answer(params: list[Any]) -> dict[str, Any]:
        if params[0] == "AQ==":
            return {"error": {"code": -32602, "message": "bad"}}
        return {"result": "signature"}

    node.answers["sendTransaction"] = answer
    outcomes = await asyncio.gather(
        *(client.send_transaction(bytes([number])) for number in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), RpcError, type(None)]
    assert [len(request) for request in node.requests] == [3]


async def test_sending_does_not_wait_for_reading(node: FakeNode, client: NodeClient) -> None:
    released = asyncio.Event()
    node.hold = released
    _answer(node, "getSlot", {"result": 1})
    _answer(node, "sendTransaction", {"result": "signature"})
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        reads = [tasks.create_task(client.slot()) for _ in range(3)]
        await node.asked.wait()
        node.hold = None
        await client.send_transaction(b"\x01")
        assert not any(read.done() for read in reads)
        released.set()


# ---- No answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_overloaded_node_is_unavailable(node: FakeNode, client: NodeClient, status: int) -> None:
    node.http_status = status
    with pytest.raises(NodeUnavailable, match=f"HTTP {status}"):
        await client.slot()


async def test_node_that_is_behind_is_unavailable(node: FakeNode, client: NodeClient) -> None:
    behind = _published("sendTransaction", lambda response: response.get("error", {}).get("code") == -32005)
    _answer(node, "sendTransaction", behind)
    with pytest.raises(NodeUnavailable, match="behind by 200 slots"):
        await client.send_transaction(b"\x01")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'"text"', b"[1]"])
async def test_answer_that_is_none_is_unavailable(node: FakeNode, client: NodeClient, body: bytes) -> None:
    node.body = body
    with pytest.raises(NodeUnavailable):
        await client.slot()


async def test_a_result_of_another_shape_is_unavailable_to_its_caller_alone(
    node: FakeNode, client: NodeClient
) -> None:
    node.answers = {
        "getSlot": lambda _: {"result": {"slot": 5}},
        "getFirstAvailableBlock": lambda _: {"result": 7},
    }
    slot, first = await asyncio.gather(client.slot(), client.first_available_slot(), return_exceptions=True)
    assert isinstance(slot, NodeUnavailable)
    assert "answered getSlot in a shape we do not know" in str(slot)
    assert first == 7


async def test_unreachable_node_is_unavailable(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    async with NodeClient(url, url) as client:
        with pytest.raises(NodeUnavailable, match="unreachable"):
            await client.slot()


async def test_silent_node_is_unavailable(node: FakeNode) -> None:
    node.hold = asyncio.Event()
    async with NodeClient(node.url, node.ws_url, timeout_seconds=0.05) as client:
        with pytest.raises(NodeUnavailable, match="in time"):
            await client.slot()
    node.hold.set()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# ---- Slots ---------------------------------------------------------------------------------------


async def test_slots_come_as_they_are_announced(node: FakeNode, client: NodeClient) -> None:
    async with asyncio.timeout(5):
        first = asyncio.ensure_future(client.next_slot(-1))
        await node.subscribed.wait()
        await node.announce(41)
        assert await first == 41
        await node.announce(41)
        await node.announce(43)
        assert await client.next_slot(41) == 43
        assert await client.next_slot(40) == 43
    assert node.calls["getSlot"] == 0


async def test_the_query_of_an_address_that_refuses_is_not_told_to_the_log(
    node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    refuses = f"{node.url}/nowhere?api-key=secret".replace("http://", "ws://")
    for ws_url, why in ((refuses, "the node answers 404 "), ("ws://[::1?api-key=secret", "not an address")):
        _answer(node, "getSlot", {"result": 7})
        async with NodeClient(node.url, ws_url) as client:
            assert await client.next_slot(None) == 7
        assert why in caplog.text
    assert "secret" not in caplog.text


async def test_slots_are_polled_while_nothing_announces_them_and_announced_again_after(
    node: FakeNode, client: NodeClient
) -> None:
    polled = iter(range(50, 100))
    node.answers["getSlot"] = lambda params: {"result": next(polled)}
    async with asyncio.timeout(10):
        first = asyncio.ensure_future(client.next_slot(-1))
        await node.subscribed.wait()
        await node.announce(41)
        assert await first == 41
        await node.drop_sockets()
        assert [await client.next_slot(41), await client.next_slot(50)] == [50, 51]
        later = asyncio.ensure_future(client.next_slot(51))
        await node.subscribed.wait()
        await node.announce(1_000)
        while (slot := await later) < 1_000:
            later = asyncio.ensure_future(client.next_slot(slot))


async def test_slots_are_announced_once_for_all_and_to_nobody_who_does_not_wait(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.solana.rpc._UNHEARD_SECONDS", 0.0)
    async with asyncio.timeout(5):
        waiting = [asyncio.ensure_future(client.next_slot(-1)) for _ in range(3)]
        await node.subscribed.wait()
        await node.announce(41)
        assert [await each for each in waiting] == [41] * 3
        # Nobody waits for the next one: it is the last that is announced.
        await node.announce(42)
        await node.unsubscribed.wait()
        node.subscribed.clear()
        later = asyncio.ensure_future(client.next_slot(42))
        await node.subscribed.wait()
        await node.announce(45)
        assert await later == 45
    assert node.slot_calls == ["slotSubscribe", "slotUnsubscribe", "slotSubscribe"]


async def test_a_node_that_refuses_to_announce_slots_is_polled_and_tried_again(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.solana.rpc._RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr("engine.solana.rpc._POLL_SECONDS", 0.01)
    polled = iter(range(50, 1_000))
    node.answers["getSlot"] = lambda params: {"result": next(polled)}
    node.slot_answer = {"error": {"code": -32005, "message": "too many subscriptions"}}
    slot = -1
    async with asyncio.timeout(10):
        while node.slot_calls.count("slotSubscribe") < 3:
            slot = await client.next_slot(slot)
        assert slot >= 50
        node.slot_answer = {"result": 7}
        waiting = asyncio.ensure_future(client.next_slot(1_000))
        await node.subscribed.wait()
        await node.announce(1_001)
        assert await waiting == 1_001
    # Refused thrice, said once.
    (record,) = caplog.records
    assert (record.levelname, "too many subscriptions" in record.getMessage()) == ("WARNING", True)


async def test_a_node_that_announces_no_slot_is_polled_until_it_does(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.solana.rpc._SILENT_SECONDS", 0.05)
    monkeypatch.setattr("engine.solana.rpc._RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr("engine.solana.rpc._POLL_SECONDS", 0.01)
    polled = iter(range(50, 1_000))
    node.answers["getSlot"] = lambda params: {"result": next(polled)}
    async with asyncio.timeout(10):
        slot = await client.next_slot(-1)
        # The connections that are tried from here on are given their time, and it is polled all the same.
        monkeypatch.setattr("engine.solana.rpc._SILENT_SECONDS", 60.0)
        for _ in range(20):
            slot = await client.next_slot(slot)
        assert 2 <= node.slot_calls.count("slotSubscribe") <= 3
        await node.subscribed.wait()
        await _announced(node, client, 2_000)
        # A poll that was on its way is answered by now; there is no other.
        await client.slot()
        polls = node.calls["getSlot"]
        await _announced(node, client, 2_001)
        assert node.calls["getSlot"] == polls
    (record,) = caplog.records
    assert (record.levelname, "no slot was announced" in record.getMessage()) == ("WARNING", True)


async def test_a_node_that_is_to_announce_nothing_is_not_taken_for_a_silent_one(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.solana.rpc._UNHEARD_SECONDS", 0.0)
    async with asyncio.timeout(5):
        await _announced(node, client, 41)
        monkeypatch.setattr("engine.solana.rpc._SILENT_SECONDS", 0.0)
        await node.announce(42)
        await node.unsubscribed.wait()
        monkeypatch.setattr("engine.solana.rpc._SILENT_SECONDS", 60.0)
        node.subscribed.clear()
        await _announced(node, client, 43)
    assert caplog.records == []
    assert node.calls["getSlot"] == 0


# ---- What lands of a wallet ------------------------------------------------------------------------

OURS, OTHERS = (Signature.from_bytes(bytes([number]) * 64) for number in (3, 4))
STANDS = {"result": 9}


def _landed(signature: Signature, meta: Any = None) -> dict[str, Any]:
    """A transaction in a block; what is told of it is wrong unless a test says otherwise."""
    raw = b"\1" + bytes(signature) + b"the message"
    return {"transaction": [b64encode(raw).decode(), "base64"], "meta": meta, "version": 0}


class _Follower:
    """Who is told of what landed; `seen` is the newest slot when it was."""

    def __init__(self, client: NodeClient) -> None:
        self.told: list[tuple[str, TransactionRecord]] = []
        self.seen: list[int] = []
        self._client = client
        client.follow_landed(str(KEY), "confirmed", {str(OURS)}, self._on_landed)

    def _on_landed(self, signature: str, record: TransactionRecord) -> None:
        self.told.append((signature, record))
        self.seen.append(self._client.newest_slot)


async def _announced(node: FakeNode, client: NodeClient, slot: int) -> None:
    """Announce a slot, and return once the client has heard of it."""
    waiting = asyncio.ensure_future(client.next_slot(slot - 1))
    await node.subscribed.wait()
    await node.announce(slot)
    assert await waiting == slot


async def test_what_lands_is_told_where_it_is_awaited_before_the_slot_goes_on(
    node: FakeNode, client: NodeClient
) -> None:
    node.block_answer = STANDS
    follower = _Follower(client)
    async with asyncio.timeout(5):
        assert not client.tells_landed
        await _announced(node, client, 41)
        assert client.tells_landed
        meta = {"err": None, "fee": 5000, "preTokenBalances": [], "postTokenBalances": []}
        # What is told of others' is passed over, whatever it is.
        await node.tell_block(40, {"transactions": [_landed(OTHERS), _landed(OURS, meta)]})
        await node.tell_block(41, None)
        await _announced(node, client, 42)
    ((signature, record),) = follower.told
    assert (signature, record.slot, record.err, record.fee) == (str(OURS), 40, None, 5000)
    assert follower.seen == [41]
    assert [(call["method"], call["params"]) for call in node.block_calls] == [
        (
            "blockSubscribe",
            [
                {"mentionsAccountOrProgram": str(KEY)},
                {
                    "commitment": "confirmed",
                    "encoding": "base64",
                    "transactionDetails": "full",
                    "maxSupportedTransactionVersion": 0,
                    "showRewards": False,
                },
            ],
        )
    ]


async def test_a_node_that_does_not_tell_what_lands_is_followed_without(
    node: FakeNode, client: NodeClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "engine.solana.rpc")
    node.block_answer = {"error": {"code": -32601, "message": "Method not found"}}
    _Follower(client)
    async with asyncio.timeout(5):
        for slot in (41, 42, 43):
            await _announced(node, client, slot)
    assert not client.tells_landed
    (record,) = caplog.records
    assert (record.levelname, "Method not found" in record.getMessage()) == ("INFO", True)
    assert [call["method"] for call in node.block_calls] == ["blockSubscribe"]


async def test_what_lands_is_told_to_nobody_who_does_not_wait_for_slots(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.solana.rpc._UNHEARD_SECONDS", 0.0)
    node.block_answer = STANDS
    _Follower(client)
    async with asyncio.timeout(5):
        await _announced(node, client, 41)
        # Nobody waits for this one.
        await node.announce(42)
        await node.blocks_left.wait()
        assert not client.tells_landed
        node.subscribed.clear()
        await _announced(node, client, 43)
        assert client.tells_landed
    calls = [(call["method"], call["params"]) for call in node.block_calls]
    assert [method for method, _ in calls] == ["blockSubscribe", "blockUnsubscribe", "blockSubscribe"]
    assert calls[1][1] == [9]


async def test_a_late_answer_leaves_no_second_subscription(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.solana.rpc._UNHEARD_SECONDS", 0.0)
    _Follower(client)
    async with asyncio.timeout(5):
        await _announced(node, client, 41)
        await node.announce(42)
        await node.unsubscribed.wait()
        # Both calls are answered now.
        node.block_answer = STANDS
        node.subscribed.clear()
        await _announced(node, client, 43)
        await node.answer_blocks(8)
        await node.blocks_left.wait()
        assert client.tells_landed
    assert node.block_calls[-1]["params"] == [8]


async def test_a_lost_connection_tells_nothing_until_it_stands_again(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.solana.rpc._RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr("engine.solana.rpc._POLL_SECONDS", 0.01)
    node.answers["getSlot"] = lambda params: {"result": 50}
    node.block_answer = STANDS
    follower = _Follower(client)
    async with asyncio.timeout(5):
        await _announced(node, client, 41)
        node.block_answer = None
        await node.drop_sockets()
        assert await client.next_slot(41) == 50
        assert not client.tells_landed
        node.block_answer = STANDS
        await node.drop_sockets()
        await _announced(node, client, 60)
        assert client.tells_landed
        await node.tell_block(60, {"transactions": [_landed(OURS, {"err": "Odd", "fee": 1})]})
        await _announced(node, client, 61)
    assert [record.err for _, record in follower.told] == ["Odd"]


@pytest.mark.parametrize(
    "transaction",
    [_landed(OURS), {"transaction": ["AQ==", "base64"], "meta": {}}, {"transaction": {"message": {}}}],
    ids=["meta", "signature", "encoding"],
)
async def test_blocks_in_an_unknown_shape_cost_the_slots_once(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch, transaction: Any
) -> None:
    monkeypatch.setattr("engine.solana.rpc._RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr("engine.solana.rpc._POLL_SECONDS", 0.01)
    node.answers["getSlot"] = lambda params: {"result": 50}
    node.block_answer = STANDS
    follower = _Follower(client)
    async with asyncio.timeout(5):
        await _announced(node, client, 41)
        await node.tell_block(41, {"transactions": [transaction]})
        assert await client.next_slot(41) == 50
        node.subscribed.clear()
        waiting = asyncio.ensure_future(client.next_slot(60))
        await node.subscribed.wait()
        await node.announce(61)
        assert await waiting == 61
    assert not client.tells_landed
    assert follower.told == []
    assert len(node.block_calls) == 1


# ---- Changes of accounts --------------------------------------------------------------------------


async def test_a_watch_that_is_refused_is_tried_again_until_it_stands(
    node: FakeNode, client: NodeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.solana.rpc._RECONNECT_SECONDS", 0.01)
    value = {"pubkey": str(KEY), "account": {"data": ["AQID", "base64"], "lamports": 1, "owner": "x"}}
    early = {
        "method": "programNotification",
        "params": {"result": {"context": {"slot": 9}, "value": value}, "subscription": 20},
    }
    # The second time, the first subscription has something to tell before the second one stands.
    node.socket_answers = iter(
        [
            [{"id": 0, "error": {"code": -32601, "message": "Method not found"}}],
            [],
            [{"id": 0, "result": 20}, early],
            [{"id": 1, "result": 21}],
        ]
    )
    watches = [ProgramWatch(TOKEN_PROGRAM, 3), ProgramWatch(KEY, 752)]
    async with asyncio.timeout(10), aclosing(client.program_changes(watches)) as changes:
        assert await anext(changes) is None
        assert await anext(changes) == ProgramChange(TOKEN_PROGRAM, KEY, b"\x01\x02\x03")
    assert [call["method"] for call in node.socket_calls] == ["programSubscribe"] * len(node.socket_calls)
    program, options = node.socket_calls[-1]["params"]
    assert (program, options) == (
        str(KEY),
        {"encoding": "base64", "commitment": "processed", "filters": [{"dataSize": 752}]},
    )


async def test_an_error_of_the_block_leaves_it_as_it_is(node: FakeNode) -> None:
    with pytest.raises(ZeroDivisionError):
        async with NodeClient(node.url, node.ws_url):
            raise ZeroDivisionError


async def test_a_defect_in_following_slots_ends_the_block(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(NodeClient, "_connected", defect)
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(5), NodeClient(node.url, node.ws_url) as client:
            await client.next_slot(None)
    assert raised.group_contains(ZeroDivisionError)
