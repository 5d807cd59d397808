"""simnet over HTTP: every method's answer has a node's shape, every error a node's words."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
import solders.rpc.responses as responses
from solders.pubkey import Pubkey
from solders.signature import Signature

from engine.domain.order import Side
from engine.domain.tokens import SOL, USDC
from engine.settings import Settings
from engine.solana.instructions import memo, transfer_lamports
from engine.solana.programs import TOKEN_PROGRAM
from engine.venues import VENUES
from simnet import base58
from simnet.genesis import GenesisPool, make_genesis
from simnet.node import Node
from tests.published_vectors import solana_cases
from tests.simnet_wallets import SigningWallet

ALICE, BOB = SigningWallet(1), SigningWallet(2)
USDC_ACCOUNT = str(ALICE.token_account(USDC))
CONFIRMED = {"commitment": "confirmed"}
PROCESSED = {"commitment": "processed"}
UNKNOWN = str(Signature.default())


TOO_LARGE_FOR_BASE58 = (
    "Encoded binary (base 58) data should be less than 128 bytes, please use Base64 encoding."
)
DATA_TOO_LARGE = "Invalid param: DataTooLarge"


class Wire:
    """Asks a node and hands back what came, as text and decoded."""

    def __init__(self, node: Node, session: aiohttp.ClientSession) -> None:
        self.node = node
        self._session = session
        self.text = ""

    async def post(self, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self._session.post(self.node.url, data=data) as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            self.text = await response.text()
        return json.loads(self.text)

    async def call(self, method: str, *params: Any) -> Any:
        answer = await self.post({"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params)})
        assert answer["id"] == 7
        return answer

    async def result(self, method: str, *params: Any) -> Any:
        answer = await self.call(method, *params)
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method: str, *params: Any) -> Any:
        answer = await self.call(method, *params)
        assert "result" not in answer, answer
        return answer["error"]

    async def blockhash(self) -> bytes:
        return base58.decode((await self.result("getLatestBlockhash", PROCESSED))["value"]["blockhash"])

    async def send(self, raw: bytes, **options: Any) -> Any:
        return await self.call(
            "sendTransaction",
            b64encode(raw).decode(),
            {"encoding": "base64", "preflightCommitment": "processed", **options},
        )

    async def land(self, raw: bytes) -> str:
        """Send, and tick until it is confirmed; return its signature."""
        signature = (await self.send(raw, skipPreflight=True))["result"]
        await self.result("simnet_advance", {"slots": 2})
        return str(signature)

    async def note(self, text: str) -> bytes:
        return ALICE.sign([memo(text, ALICE.pubkey)], await self.blockhash())


@pytest.fixture(scope="module")
async def wire() -> AsyncIterator[Wire]:
    """A node whose slots tick by simnet_advance alone, and whose market stands still."""
    settings = Settings(simnet_port=0, simnet_market_pools=0, simnet_finalized_slots=4)
    async with Node(settings) as node, aiohttp.ClientSession() as session:
        wire = Wire(node, session)
        for mint in ("SOL", "USDC"):
            await wire.result("simnet_fund", {"wallet": str(ALICE.pubkey), "mint": mint, "amount": 10**12})
        await wire.result("simnet_advance", {"slots": 10})
        yield wire


@pytest.fixture(scope="module")
def pools() -> Sequence[GenesisPool]:
    return make_genesis(1).pools


def pool_of(pools: Sequence[GenesisPool], kind: str) -> GenesisPool:
    return next(pool for pool in pools if pool.venue.kind == kind)


# ---- Shapes


def assert_same_shape(example: Any, actual: Any, path: str = "result") -> None:
    """Whatever the example has, the answer has, of the same type; None may be anything and anything None."""
    if example is None or actual is None:
        return
    if isinstance(example, dict):
        assert isinstance(actual, dict), path
        assert example.keys() <= actual.keys(), path
        for key in example:
            assert_same_shape(example[key], actual[key], f"{path}.{key}")
    elif isinstance(example, list):
        assert isinstance(actual, list), path
        for each, other in zip(example, actual, strict=False):
            assert_same_shape(each, other, f"{path}[]")
    elif isinstance(example, bool):
        assert isinstance(actual, bool), path
    elif isinstance(example, int | float):
        assert isinstance(actual, int | float), path
    else:
        assert isinstance(actual, type(example)), path


def example_of(method: str) -> dict[str, Any]:
    """Return the published example of a method's success."""
    for case in solana_cases("rpc_examples"):
        if case["method"] == method and case["response"].get("result") is not None:
            return case
    raise AssertionError(f"no example of {method}")


QUESTIONS: list[tuple[str, list[Any]]] = [
    ("getLatestBlockhash", [CONFIRMED]),
    ("getEpochInfo", [CONFIRMED]),
    ("getBlockHeight", [CONFIRMED]),
    ("getSlot", [CONFIRMED]),
    ("getHealth", []),
    ("getVersion", []),
    ("getMinimumBalanceForRentExemption", [165]),
    ("getBalance", [str(ALICE.pubkey), CONFIRMED]),
    ("getAccountInfo", [USDC_ACCOUNT, {"encoding": "base64", **CONFIRMED}]),
    ("getMultipleAccounts", [[USDC_ACCOUNT, str(BOB.pubkey)], {"encoding": "base64", **CONFIRMED}]),
    ("getTokenAccountBalance", [USDC_ACCOUNT, CONFIRMED]),
    ("getSignatureStatuses", [[UNKNOWN], {"searchTransactionHistory": True}]),
    ("getSignaturesForAddress", [str(ALICE.pubkey), {"limit": 2, **CONFIRMED}]),
]


@pytest.mark.parametrize(("method", "params"), QUESTIONS, ids=[method for method, _ in QUESTIONS])
async def test_an_answer_has_a_nodes_shape_and_solders_reads_it(
    wire: Wire, method: str, params: list[Any]
) -> None:
    await wire.land(await wire.note("for the record"))
    example = example_of(method)
    assert_same_shape(example["response"]["result"], await wire.result(method, *params))
    parsed = getattr(responses, example["parsed_by_solders"]).from_json(wire.text)
    assert type(parsed).__name__ == example["parsed_by_solders"]


async def test_a_blockhash_is_good_for_150_blocks_and_says_so(wire: Wire) -> None:
    value = (await wire.result("getLatestBlockhash", PROCESSED))["value"]
    height = await wire.result("getBlockHeight", PROCESSED)
    assert value["lastValidBlockHeight"] == height + 150
    assert (await wire.result("isBlockhashValid", value["blockhash"], PROCESSED))["value"] is True
    # Confirmed is a block behind: there it is not known yet.
    assert (await wire.result("isBlockhashValid", value["blockhash"], CONFIRMED))["value"] is False
    responses.IsBlockhashValidResp.from_json(wire.text)
    await wire.result("simnet_advance", {"slots": 150})
    assert (await wire.result("isBlockhashValid", value["blockhash"], PROCESSED))["value"] is True
    await wire.result("simnet_advance")
    assert (await wire.result("isBlockhashValid", value["blockhash"], PROCESSED))["value"] is False


async def test_commitments_lie_as_many_slots_apart_as_they_are_set_to(wire: Wire) -> None:
    slots = [
        await wire.result("getSlot", {"commitment": commitment})
        for commitment in ("processed", "confirmed", "finalized")
    ]
    assert slots == [slots[0], slots[0] - 1, slots[0] - 4]
    assert await wire.result("getSlot") == slots[2]
    epoch = await wire.result("getEpochInfo", PROCESSED)
    assert epoch["absoluteSlot"] == slots[0]
    assert epoch["absoluteSlot"] == epoch["epoch"] * epoch["slotsInEpoch"] + epoch["slotIndex"]


async def test_nothing_is_ever_purged(wire: Wire) -> None:
    assert await wire.result("getFirstAvailableBlock") == 0
    responses.GetFirstAvailableBlockResp.from_json(wire.text)


async def test_a_token_balance_reads_in_base_units_and_in_whole_tokens(wire: Wire) -> None:
    await wire.result("simnet_fund", {"wallet": str(BOB.pubkey), "mint": USDC.mint, "amount": "1230000"})
    value = (await wire.result("getTokenAccountBalance", str(BOB.token_account(USDC)), PROCESSED))["value"]
    assert value == {"amount": "1230000", "decimals": 6, "uiAmount": 1.23, "uiAmountString": "1.23"}


async def test_accounts_come_whole_in_slices_or_not_at_all(wire: Wire) -> None:
    whole = (await wire.result("getAccountInfo", USDC_ACCOUNT, {"encoding": "base64", **PROCESSED}))["value"]
    data = b64decode(whole["data"][0])
    assert len(data) == whole["space"] == 165
    assert whole["rentEpoch"] == 2**64 - 1
    part = await wire.result(
        "getAccountInfo",
        USDC_ACCOUNT,
        {"encoding": "base64", "dataSlice": {"offset": 64, "length": 8}, **PROCESSED},
    )
    assert b64decode(part["value"]["data"][0]) == data[64:72]
    assert part["value"]["space"] == 165
    part = await wire.result("getAccountInfo", USDC_ACCOUNT, {"dataSlice": {"offset": 37, "length": 128}})
    assert part["value"]["data"] == [base58.encode(data[37:]), "base58"]
    # Without a word about the encoding, several come in another one than one does.
    (one,) = (await wire.result("getMultipleAccounts", [USDC_ACCOUNT], PROCESSED))["value"]
    assert one == whole
    absent = await wire.result("getAccountInfo", str(Pubkey.from_bytes(b"\x42" * 32)), {"encoding": "base64"})
    assert absent["value"] is None
    assert (await wire.result("getBalance", str(Pubkey.from_bytes(b"\x42" * 32))))["value"] == 0


@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_a_programs_pools_are_found_by_size_and_first_bytes(
    wire: Wire, venue: Any, pools: Sequence[GenesisPool]
) -> None:
    filters: list[Any] = [
        {"dataSize": venue.pool_filter.data_size},
        {
            "memcmp": {
                "offset": 0,
                "bytes": b64encode(venue.pool_filter.prefix).decode(),
                "encoding": "base64",
            }
        },
    ]
    options = {"encoding": "base64", "filters": filters, **PROCESSED}
    found = await wire.result("getProgramAccounts", str(venue.program), options)
    responses.GetProgramAccountsResp.from_json(wire.text)
    assert {each["pubkey"] for each in found} == {pool.name for pool in pools if pool.venue is venue}
    assert all(len(b64decode(each["account"]["data"][0])) == venue.pool_filter.data_size for each in found)
    # The same prefix in base58, and one pair of mints only.
    start, length = venue.mints_slice
    keys = next(pool.keys for pool in pools if pool.venue is venue)
    mints = bytes(keys.mint_a) + bytes(keys.mint_b)
    filters[1] = {"memcmp": {"offset": start, "bytes": base58.encode(mints)}}
    narrowed = await wire.result("getProgramAccounts", str(venue.program), options | {"withContext": True})
    assert {each["pubkey"] for each in narrowed["value"]} == {
        pool.name
        for pool in pools
        if pool.venue is venue and (pool.keys.mint_a, pool.keys.mint_b) == (keys.mint_a, keys.mint_b)
    }
    assert length == len(mints)


async def test_an_airdrop_lands_as_a_transaction_does_even_twice_at_once(wire: Wire) -> None:
    before = (await wire.result("getBalance", str(BOB.pubkey), PROCESSED))["value"]
    one = await wire.result("requestAirdrop", str(BOB.pubkey), 10**9)
    responses.RequestAirdropResp.from_json(wire.text)
    other = await wire.result("requestAirdrop", str(BOB.pubkey), 10**9)
    assert one != other
    await wire.result("simnet_advance")
    assert (await wire.result("getBalance", str(BOB.pubkey), PROCESSED))["value"] == before + 2 * 10**9


# ---- Transactions


async def test_a_transaction_is_sent_followed_and_read_back(wire: Wire, pools: Sequence[GenesisPool]) -> None:
    pool = pool_of(pools, "raydium_cpmm")
    raw = ALICE.sign(ALICE.swap(pool, SOL, USDC, Side.SELL, 10**9, 1), await wire.blockhash())
    sent = await wire.send(raw, skipPreflight=True)
    assert sent["result"] == str(Signature.from_bytes(raw[1:65]))
    responses.SendTransactionResp.from_json(wire.text)
    statuses = await wire.result("getSignatureStatuses", [sent["result"]])
    assert statuses["value"] == [None]

    await wire.result("simnet_advance")
    slot = await wire.result("getSlot", PROCESSED)
    (status,) = (await wire.result("getSignatureStatuses", [sent["result"]]))["value"]
    assert status == {
        "slot": slot,
        "confirmations": 0,
        "err": None,
        "status": {"Ok": None},
        "confirmationStatus": "processed",
    }
    options = {"encoding": "base64", "maxSupportedTransactionVersion": 0, **CONFIRMED}
    assert await wire.result("getTransaction", sent["result"], options) is None

    await wire.result("simnet_advance")
    record = await wire.result("getTransaction", sent["result"], options)
    parsed = responses.GetTransactionResp.from_json(wire.text)
    assert isinstance(parsed, responses.GetTransactionResp)
    assert parsed.value is not None
    assert_same_shape(example_of("getTransaction")["response"]["result"], record)
    assert b64decode(record["transaction"][0]) == raw
    assert record["slot"] == slot
    assert record["version"] == 0
    assert record["meta"]["err"] is None
    assert record["meta"]["logMessages"][-1].endswith("success")
    _assert_balances(record["meta"], pool, -(10**9))

    await wire.result("simnet_advance", {"slots": 3})
    (status,) = (await wire.result("getSignatureStatuses", [sent["result"]]))["value"]
    assert (status["confirmationStatus"], status["confirmations"]) == ("finalized", None)


def _assert_balances(meta: dict[str, Any], pool: GenesisPool, sol_change: int) -> None:
    """The vaults' owner, mint and change tell what was swapped; lamports and fee what it cost."""
    changes: dict[tuple[str, str], int] = {}
    for sign, balances in ((-1, meta["preTokenBalances"]), (1, meta["postTokenBalances"])):
        for balance in balances:
            key = (balance["owner"], balance["mint"])
            changes[key] = changes.get(key, 0) + sign * int(balance["uiTokenAmount"]["amount"])
    received = changes[str(ALICE.pubkey), USDC.mint]
    assert received > 100 * 10**6
    pools = {mint: change for (owner, mint), change in changes.items() if owner != str(ALICE.pubkey)}
    assert pools == {SOL.mint: 10**9, USDC.mint: -received}
    assert meta["postBalances"][0] - meta["preBalances"][0] == sol_change - meta["fee"]
    assert sum(meta["postBalances"]) == sum(meta["preBalances"]) - meta["fee"]


@pytest.mark.parametrize("encoding", ["json", "base58", "base64"])
async def test_a_record_comes_in_the_encoding_asked_for(wire: Wire, encoding: str) -> None:
    raw = ALICE.sign([memo("encoded", ALICE.pubkey)], await wire.blockhash(), legacy=True)
    signature = await wire.land(raw)
    record = await wire.result("getTransaction", signature, {"encoding": encoding, **CONFIRMED})
    responses.GetTransactionResp.from_json(wire.text)
    if encoding == "json":
        assert record["transaction"]["signatures"] == [signature]
        assert record["transaction"]["message"]["accountKeys"][0] == str(ALICE.pubkey)
    elif encoding == "base58":
        assert record["transaction"] == [base58.encode(raw), "base58"]
    else:
        assert record["transaction"] == [b64encode(raw).decode(), "base64"]


async def test_signatures_of_an_address_come_with_memo_and_outcome(wire: Wire) -> None:
    good = await wire.land(await wire.note("order:1"))
    bad = await wire.land(
        ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**15)], await wire.blockhash())
    )
    newest, before = await wire.result(
        "getSignaturesForAddress", str(ALICE.pubkey), {"limit": 2, **CONFIRMED}
    )
    responses.GetSignaturesForAddressResp.from_json(wire.text)
    assert (newest["signature"], newest["err"]) == (bad, {"InstructionError": [0, {"Custom": 1}]})
    assert (before["signature"], before["memo"], before["err"]) == (good, "[7] order:1", None)
    older = await wire.result(
        "getSignaturesForAddress", str(ALICE.pubkey), {"before": bad, "limit": 1, **CONFIRMED}
    )
    assert [each["signature"] for each in older] == [good]


async def test_signatures_of_an_address_are_had_a_page_at_a_time_newest_first(wire: Wire) -> None:
    carol = await _funded(wire, 21)
    sent = [
        await wire.land(carol.sign([memo(f"page {number}", carol.pubkey)], await wire.blockhash()))
        for number in range(4)
    ]

    async def listed(**options: Any) -> list[str]:
        answer = await wire.result("getSignaturesForAddress", str(carol.pubkey), {**options, **CONFIRMED})
        return [each["signature"] for each in answer]

    assert await listed() == sent[::-1]
    assert await listed(limit=3) == sent[:0:-1]
    assert await listed(before=sent[1], limit=3) == [sent[0]]
    assert await listed(before=sent[0]) == []
    assert await listed(until=sent[1]) == [sent[3], sent[2]]
    assert await listed(before=sent[3], until=sent[0]) == [sent[2], sent[1]]
    assert await listed(before=UNKNOWN) == []
    assert await listed(until=UNKNOWN) == sent[::-1]
    assert await wire.result("getSignaturesForAddress", str(SigningWallet(22).pubkey), CONFIRMED) == []


async def test_signatures_of_an_address_are_listed_once_they_reach_the_commitment(wire: Wire) -> None:
    carol, dave = await _funded(wire, 23), SigningWallet(24)
    raw = carol.sign([transfer_lamports(carol.pubkey, dave.pubkey, 10**9)], await wire.blockhash())
    signature = (await wire.send(raw, skipPreflight=True))["result"]

    async def listed(**options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await wire.result("getSignaturesForAddress", str(dave.pubkey), options)
        return found

    await wire.result("simnet_advance")
    slot = await wire.result("getSlot", PROCESSED)
    assert await listed(**CONFIRMED) == []
    await wire.result("simnet_advance")
    (info,) = await listed(**CONFIRMED)
    assert isinstance(info.pop("blockTime"), int)
    assert info == {
        "signature": signature,
        "slot": slot,
        "err": None,
        "memo": None,
        "confirmationStatus": "confirmed",
    }
    assert await listed() == []
    await wire.result("simnet_advance", {"slots": 3})
    assert [each["confirmationStatus"] for each in await listed()] == ["finalized"]


async def _funded(wire: Wire, number: int) -> SigningWallet:
    wallet = SigningWallet(number)
    await wire.result("simnet_fund", {"wallet": str(wallet.pubkey), "mint": "SOL", "amount": 10**12})
    return wallet


async def test_a_simulation_tells_what_would_be_and_changes_nothing(
    wire: Wire, pools: Sequence[GenesisPool]
) -> None:
    pool = pool_of(pools, "meteora_damm_v2")
    raw = ALICE.sign(ALICE.swap(pool, SOL, USDC, Side.SELL, 10**9, 1), b"\x03" * 32)
    before = await wire.result("getTokenAccountBalance", USDC_ACCOUNT, PROCESSED)
    answer = await wire.result(
        "simulateTransaction",
        b64encode(raw).decode(),
        {
            "encoding": "base64",
            "replaceRecentBlockhash": True,
            "accounts": {"encoding": "base64", "addresses": [USDC_ACCOUNT]},
            **PROCESSED,
        },
    )
    responses.SimulateTransactionResp.from_json(wire.text)
    value = answer["value"]
    assert value["err"] is None
    assert value["unitsConsumed"] > 0
    assert value["replacementBlockhash"]["lastValidBlockHeight"] > 0
    after = int.from_bytes(b64decode(value["accounts"][0]["data"][0])[64:72], "little")
    assert after > int(before["value"]["amount"]) + 100 * 10**6
    assert await wire.result("getTokenAccountBalance", USDC_ACCOUNT, PROCESSED) == before

    failing = ALICE.sign(ALICE.swap(pool, SOL, USDC, Side.SELL, 10**9, 10**12), await wire.blockhash())
    answer = await wire.result(
        "simulateTransaction", b64encode(failing).decode(), {"encoding": "base64", **PROCESSED}
    )
    responses.SimulateTransactionResp.from_json(wire.text)
    assert answer["value"]["err"] == {"InstructionError": [4, {"Custom": 6002}]}


# ---- What preflight finds, and what nobody tells without it


async def _swap_beyond_slippage(wire: Wire, pools: Sequence[GenesisPool]) -> bytes:
    pool = pool_of(pools, "raydium_cpmm")
    return ALICE.sign(ALICE.swap(pool, SOL, USDC, Side.SELL, 10**9, 10**12), await wire.blockhash())


async def test_preflight_says_what_would_go_wrong_and_forwards_nothing(
    wire: Wire, pools: Sequence[GenesisPool]
) -> None:
    raw = await _swap_beyond_slippage(wire, pools)
    error = (await wire.send(raw))["error"]
    assert error["code"] == -32002
    assert error["message"] == (
        "Transaction simulation failed: Error processing Instruction 4: custom program error: 0x1775"
    )
    assert error["data"]["err"] == {"InstructionError": [4, {"Custom": 6005}]}
    assert error["data"]["logs"][-1].endswith("failed: custom program error: 0x1775")
    examples = [
        case["response"]["error"]
        for case in solana_cases("rpc_examples")
        if case["response"].get("error", {}).get("code") == -32002
    ]
    assert examples
    assert examples[0]["data"].keys() <= error["data"].keys()
    parsed = responses.SendTransactionResp.from_json(wire.text)
    assert type(parsed).__name__ == "SendTransactionPreflightFailureMessage"
    signature = str(Signature.from_bytes(raw[1:65]))
    await wire.result("simnet_advance", {"slots": 2})
    assert (await wire.result("getSignatureStatuses", [signature]))["value"] == [None]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("unknown blockhash", "Blockhash not found"),
        ("landed before", "This transaction has already been processed"),
        ("no account", "Attempt to debit an account but found no record of a prior credit."),
        ("poor", "Insufficient funds for fee"),
        ("rent", "Transaction results in an account (1) with insufficient funds for rent"),
    ],
)
async def test_preflight_refuses_in_a_nodes_words(wire: Wire, what: str, text: str) -> None:
    stranger, poor = SigningWallet(11), SigningWallet(12)
    blockhash = await wire.blockhash()
    if what == "unknown blockhash":
        raw = ALICE.sign([memo("x", ALICE.pubkey)], b"\x08" * 32)
    elif what == "landed before":
        raw = await wire.note("twice")
        await wire.land(raw)
    elif what == "no account":
        raw = stranger.sign([memo("x", stranger.pubkey)], blockhash)
    elif what == "poor":
        await wire.result("simnet_fund", {"wallet": str(poor.pubkey), "mint": "SOL", "amount": 4000})
        raw = poor.sign([memo("x", poor.pubkey)], blockhash)
    else:
        raw = ALICE.sign([transfer_lamports(ALICE.pubkey, stranger.pubkey, 5)], blockhash)
    error = (await wire.send(raw))["error"]
    assert (error["code"], error["message"]) == (-32002, f"Transaction simulation failed: {text}")


async def test_a_bad_signature_is_told_with_preflight_and_silently_dropped_without(wire: Wire) -> None:
    raw = bytearray(await wire.note("forged"))
    raw[raw.index(b"forged")] ^= 1
    error = (await wire.send(bytes(raw)))["error"]
    assert error == {"code": -32003, "message": "Transaction signature verification failure"}
    signature = (await wire.send(bytes(raw), skipPreflight=True))["result"]
    await wire.result("simnet_advance", {"slots": 2})
    assert (await wire.result("getSignatureStatuses", [signature]))["value"] == [None]


async def test_an_expired_blockhash_is_silently_dropped_without_preflight(wire: Wire) -> None:
    raw = await wire.note("expired")
    await wire.result("simnet_advance", {"slots": 151})
    signature = (await wire.send(raw, skipPreflight=True))["result"]
    await wire.result("simnet_advance", {"slots": 2})
    statuses = await wire.result("getSignatureStatuses", [signature], {"searchTransactionHistory": True})
    assert statuses["value"] == [None]
    assert (await wire.send(raw))["error"]["data"]["err"] == "BlockhashNotFound"


async def test_a_transaction_sent_again_after_it_landed_changes_nothing(wire: Wire) -> None:
    raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], await wire.blockhash())
    await wire.land(raw)
    before = await wire.result("getBalance", str(BOB.pubkey), PROCESSED)
    signature = (await wire.send(raw, skipPreflight=True))["result"]
    await wire.result("simnet_advance", {"slots": 2})
    assert (await wire.result("getBalance", str(BOB.pubkey), PROCESSED))["value"] == before["value"]
    ledger = await wire.result("simnet_ledger", {"limit": 1000})
    assert [each["signature"] for each in ledger["transactions"]].count(signature) == 1


# ---- Errors


@pytest.mark.parametrize(
    ("method", "params", "code", "message"),
    [
        ("nope", [], -32601, "Method not found"),
        ("getBalance", [], -32602, "`params` should have at least 1 argument(s)"),
        ("getAccountInfo", ["not-a-key", {}], -32602, "Invalid param: Invalid"),
        ("getAccountInfo", ["abc", {}], -32602, "Invalid param: WrongSize"),
        ("getSignatureStatuses", [["abc"]], -32602, "Invalid param: WrongSize"),
        ("getAccountInfo", [USDC_ACCOUNT], -32600, TOO_LARGE_FOR_BASE58),
        ("getAccountInfo", [USDC_ACCOUNT, {"encoding": "base58"}], -32600, TOO_LARGE_FOR_BASE58),
        ("getMultipleAccounts", [[USDC_ACCOUNT], {"encoding": "base58"}], -32600, TOO_LARGE_FOR_BASE58),
        ("getProgramAccounts", [str(TOKEN_PROGRAM)], -32600, TOO_LARGE_FOR_BASE58),
        # Whether it is base58 nobody looks: that takes a minute for the longest that there can be.
        ("getBalance", ["0" * 129], -32602, "Invalid param: WrongSize"),
        ("getSignatureStatuses", [["0" * 129]], -32602, "Invalid param: WrongSize"),
        *[
            (
                "getProgramAccounts",
                [str(TOKEN_PROGRAM), {"filters": [{"memcmp": memcmp}]}],
                -32602,
                DATA_TOO_LARGE,
            )
            for memcmp in (
                {"offset": 0, "bytes": "0" * 176},
                {"offset": 0, "bytes": base58.encode(b"\xff" * 128) + "z"},
                {"offset": 0, "bytes": b64encode(bytes(129)).decode(), "encoding": "base64"},
            )
        ],
        ("getMultipleAccounts", [[USDC.mint] * 101], -32602, "Too many inputs provided; max 100"),
        ("getSignatureStatuses", [[UNKNOWN] * 257], -32602, "Too many inputs provided; max 256"),
        ("getTokenAccountBalance", [str(Pubkey.default())], -32602, "Invalid param: could not find account"),
        ("getTokenAccountBalance", [str(ALICE.pubkey)], -32602, "Invalid param: not a Token account"),
        (
            "getSlot",
            [{"minContextSlot": 500_000_000}],
            -32016,
            "Minimum context slot has not been reached",
        ),
        (
            "sendTransaction",
            ["AAAA", {"encoding": "base64"}],
            -32602,
            "failed to deserialize solana_transaction::versioned::VersionedTransaction:"
            " io error: unexpected end of file",
        ),
        (
            "sendTransaction",
            ["A" * 1648, {"encoding": "base64"}],
            -32602,
            "base64 encoded solana_transaction::versioned::VersionedTransaction too large:"
            " 1648 bytes (max: encoded/raw 1644/1232)",
        ),
        (
            "sendTransaction",
            ["AAAA", {"encoding": ["base64"]}],
            -32602,
            "Invalid params: invalid type, expected a string",
        ),
        (
            "simulateTransaction",
            [
                b64encode(ALICE.sign([memo("x", ALICE.pubkey)], bytes(32))).decode(),
                {"encoding": "base64", "sigVerify": True, "replaceRecentBlockhash": True},
            ],
            -32602,
            "sigVerify may not be used with replaceRecentBlockhash",
        ),
        (
            "getTransaction",
            [UNKNOWN, {"commitment": "processed"}],
            -32602,
            "Method does not support commitment below `confirmed`",
        ),
        (
            "getSignaturesForAddress",
            [USDC_ACCOUNT, {"commitment": "processed"}],
            -32602,
            "Method does not support commitment below `confirmed`",
        ),
        ("getSignaturesForAddress", [], -32602, "`params` should have at least 1 argument(s)"),
        ("getSignaturesForAddress", ["abc"], -32602, "Invalid param: WrongSize"),
        ("getSignaturesForAddress", [USDC_ACCOUNT, {"limit": 0}], -32602, "Invalid limit; max 1000"),
        ("getSignaturesForAddress", [USDC_ACCOUNT, {"limit": 1001}], -32602, "Invalid limit; max 1000"),
        ("getSignaturesForAddress", [USDC_ACCOUNT, {"before": "abc"}], -32602, "Invalid param: WrongSize"),
        ("getSignaturesForAddress", [USDC_ACCOUNT, {"until": "not 0"}], -32602, "Invalid param: Invalid"),
    ],
)
async def test_an_error_has_a_nodes_code_and_words(
    wire: Wire, method: str, params: list[Any], code: int, message: str
) -> None:
    error = await wire.error(method, *params)
    assert (error["code"], error["message"]) == (code, message)
    if code == -32016:
        assert error["data"] == {"contextSlot": await wire.result("getSlot")}


@pytest.mark.parametrize(
    ("options", "lag"),
    [
        ({"skipPreflight": True, "preflightCommitment": "finalized"}, 0),
        ({"preflightCommitment": "processed"}, 0),
        ({"preflightCommitment": "confirmed"}, 1),
    ],
)
async def test_a_transaction_is_sent_from_the_slot_on_that_it_names_at_its_preflights_commitment(
    wire: Wire, options: dict[str, Any], lag: int
) -> None:
    raw = await wire.note(f"from a slot on {options}")
    await wire.result("simnet_advance")
    slot = await wire.result("getSlot", PROCESSED)
    assert (await wire.send(raw, **options, minContextSlot=slot - lag + 1))["error"] == {
        "code": -32016,
        "message": "Minimum context slot has not been reached",
        "data": {"contextSlot": slot - lag},
    }
    assert "result" in await wire.send(raw, **options, minContextSlot=slot - lag)


async def test_an_unknown_commitment_is_refused(wire: Wire) -> None:
    error = await wire.error("getSlot", {"commitment": "surely"})
    assert error["code"] == -32602
    assert "unknown variant `surely`" in error["message"]


async def test_a_versioned_record_is_told_only_to_those_who_can_read_it(wire: Wire) -> None:
    signature = await wire.land(await wire.note("versioned"))
    error = await wire.error("getTransaction", signature, {"encoding": "base64", **CONFIRMED})
    assert error["code"] == -32015
    assert error["message"].startswith("Transaction version (0) is not supported")


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"{", -32700), (b"[" * 100_000, -32700), (b"[]", -32600), (b"7", -32600), (b'{"id":1}', -32600)],
)
async def test_what_is_no_call_is_answered_so(wire: Wire, body: bytes, code: int) -> None:
    assert (await wire.post(body))["error"]["code"] == code


async def test_a_batch_is_answered_call_by_call(wire: Wire) -> None:
    calls = [
        {"jsonrpc": "2.0", "id": "a", "method": "getSlot", "params": [PROCESSED]},
        {"jsonrpc": "2.0", "id": "b", "method": "nope"},
        # These read the ledger, and so take longer.
        {"jsonrpc": "2.0", "id": "c", "method": "getSignaturesForAddress", "params": [str(ALICE.pubkey)]},
        {
            "jsonrpc": "2.0",
            "id": "d",
            "method": "getTransaction",
            "params": [UNKNOWN, {"commitment": "processed"}],
        },
    ]
    answers = {answer["id"]: answer for answer in await wire.post(calls)}
    assert isinstance(answers["a"]["result"], int)
    assert answers["b"]["error"]["code"] == -32601
    assert isinstance(answers["c"]["result"], list)
    assert answers["d"]["error"]["code"] == -32602


@pytest.mark.parametrize(("method", "broken"), [("simnet_pools", "market"), ("simnet_ledger", "page")])
async def test_a_defect_costs_one_call_of_a_batch_and_is_logged(
    wire: Wire, method: str, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wire.node.chain, broken, None)
    one, other = await wire.post([{"id": 1, "method": method}, {"id": 2, "method": "getHealth"}])
    assert one == {"jsonrpc": "2.0", "error": {"code": -32603, "message": "Internal error"}, "id": 1}
    assert other == {"jsonrpc": "2.0", "result": "ok", "id": 2}
    assert [record.exc_info is not None for record in caplog.records] == [True]


# ---- What only a simulation has


async def test_faults_are_changed_at_run_time(wire: Wire) -> None:
    try:
        changed = await wire.result("simnet_faults", {"error": 1.0})
        assert changed["error"] == 1.0
        raw = await wire.note("did it or did it not")
        answer = await wire.send(raw, skipPreflight=True)
        assert answer["error"] == {"code": -32603, "message": "Internal error"}
        await wire.result("simnet_advance")
        (status,) = (await wire.result("getSignatureStatuses", [str(Signature.from_bytes(raw[1:65]))]))[
            "value"
        ]
        assert status["err"] is None
        assert (await wire.error("simnet_faults", {"drip": 1}))["code"] == -32602
        assert await wire.result("simnet_faults") == changed
    finally:
        await wire.result("simnet_faults", {"error": 0.0})


async def test_the_ledger_is_paged_and_narrowed_by_memo(wire: Wire) -> None:
    signatures = [await wire.land(await wire.note(f"paged:{number}")) for number in range(3)]
    first = await wire.result("simnet_ledger", {"memoPrefix": "paged:", "limit": 2})
    assert [each["signature"] for each in first["transactions"]] == signatures[:2]
    rest = await wire.result(
        "simnet_ledger", {"memoPrefix": "paged:", "after": first["transactions"][-1]["sequence"]}
    )
    assert [(each["signature"], each["memo"]) for each in rest["transactions"]] == [
        (signatures[2], "paged:2")
    ]


async def test_a_price_moves_on_every_pool_of_a_pair(wire: Wire) -> None:
    before = {each["pool"]: each for each in await wire.result("simnet_pools")}
    moved = await wire.result("simnet_move_price", {"pair": "RAY/USDC", "bps": -300})
    assert {each["venue"] for each in moved} == {"Raydium", "Meteora"}
    for each in moved:
        assert each["price"] / before[each["pool"]]["price"] == pytest.approx(0.97, abs=0.0005)
    assert (await wire.error("simnet_move_price", {"pair": "SOL/DOGE"}))["code"] == -32602


async def test_funding_what_is_no_mint_is_refused(wire: Wire) -> None:
    error = await wire.error("simnet_fund", {"wallet": str(BOB.pubkey), "mint": str(BOB.pubkey), "amount": 5})
    assert error["code"] == -32602


async def test_health_readiness_and_metrics_are_served(wire: Wire) -> None:
    async with aiohttp.ClientSession() as session:
        for path, text in (("/health", "ok"), ("/healthz", "ok\n")):
            async with session.get(wire.node.url + path) as response:
                assert (response.status, await response.text()) == (200, text)
        async with session.get(wire.node.url + "/metrics") as response:
            assert 'order_engine_requests_total{code="ok",method="getSlot"}' in await response.text()
        async with session.get(wire.node.url + "/elsewhere") as response:
            assert response.status == 404
