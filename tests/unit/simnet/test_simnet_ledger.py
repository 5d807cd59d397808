"""The ledger: what is committed is there, all of it or none, and anybody may read it."""

from __future__ import annotations

import sqlite3
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from engine.domain.tokens import SOL, USDC
from engine.solana.instructions import memo, transfer_lamports
from engine.solana.programs import CLOCK_SYSVAR
from simnet.accounts import Account
from simnet.bank import Meta
from simnet.faults import Faults
from simnet.ledger import FILE_NAME, Landed, Ledger, LedgerError, LedgerReader, Progress
from simnet.questions import RpcFault
from tests.simnet_wallets import OpenChain, SigningWallet, open_chain

ALICE, BOB = SigningWallet(1), SigningWallet(2)
META = Meta(["log"], 150, [5], [4], [])


def landed(sequence: int, memo_text: str | None = None, slot: int = 10) -> Landed:
    return Landed(sequence, sequence.to_bytes(64, "big"), slot, 1, None, 5000, memo_text, b"raw", META)


def test_a_ledger_returns_what_was_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    failed = Landed(2, b"\x02" * 64, 11, 1, {"InstructionError": [1, {"Custom": 6005}]}, 1, None, b"", META)
    ledger.commit(Progress(1, 10, 99, 1), {b"a" * 32: Account(5, data=b"x")}, [landed(1, "o:1")])
    ledger.commit(Progress(1, 11, 100, 2, (b"p" * 32,)), {b"a" * 32: Account(0)}, [failed])
    ledger.close()
    reader = LedgerReader(tmp_path / FILE_NAME)
    assert reader.progress() == Progress(1, 11, 100, 2, (b"p" * 32,))
    assert reader.accounts() == {}
    assert reader.page() == [landed(1, "o:1"), failed]
    assert list(reader.since(11)) == [failed]
    assert reader.find([b"\x02" * 64, b"\x03" * 64]) == {b"\x02" * 64: failed}
    reader.close()


def test_the_accounts_are_what_was_committed_last_however_often_they_change(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    expected: dict[bytes, Account] = {}
    for number in range(1, 201):
        # Some stay, some change, some come and go.
        changed = {
            bytes([address]) * 32: Account(number * (number % address > 0), data=b"x" * address)
            for address in (1, 2, 3, 50)
        }
        ledger.commit(Progress(1, number, 1, 0), changed)
        expected |= changed
        assert ledger.accounts() == {key: each for key, each in expected.items() if each.lamports}
        if number in (63, 100):
            # Some changes are not folded yet.
            ledger.close()
            ledger = Ledger(tmp_path)
    reader = LedgerReader(tmp_path / FILE_NAME)
    assert reader.accounts() == ledger.accounts()
    reader.close()
    ledger.close()
    again = Ledger(tmp_path)
    assert again.accounts() == {key: each for key, each in expected.items() if each.lamports}
    again.close()


def test_pages_follow_the_order_of_execution_and_a_prefix_narrows_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    memos = ["a:1", "b:1", None, "a:2", "ab:1"]
    ledger.commit(Progress(1, 10, 1, 5), {}, [landed(number, text) for number, text in enumerate(memos, 1)])
    assert [each.sequence for each in ledger.page(limit=2)] == [1, 2]
    assert [each.sequence for each in ledger.page(after=2, limit=2)] == [3, 4]
    assert [each.memo for each in ledger.page(memo_prefix="a:")] == ["a:1", "a:2"]
    assert [each.memo for each in ledger.page(memo_prefix="a:", after=1)] == ["a:2"]
    ledger.close()


def test_a_slot_goes_on_record_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit(Progress(1, 10, 1, 1), {b"a" * 32: Account(5)}, [landed(1)])
    with pytest.raises(Exception, match="UNIQUE"):
        ledger.commit(
            Progress(1, 11, 1, 2),
            {b"a" * 32: Account(6)},
            [Landed(2, landed(1).signature, 11, 1, None, 0, None, b"", META)],
        )
    progress = ledger.progress()
    assert progress is not None
    assert progress.slot == 10
    assert ledger.accounts() == {b"a" * 32: Account(5)}
    ledger.close()


async def test_no_account_comes_to_hold_more_lamports_than_the_ledger_can_record(tmp_path: Path) -> None:
    most = 2**63 - 1
    async with open_chain(tmp_path) as net:
        alice, bob = str(ALICE.pubkey), str(BOB.pubkey)
        await net.fund(ALICE, SOL, 10**18)
        await net.fund(BOB, SOL, 2 * 10**18)
        pool = net.pool("raydium_cpmm", SOL, USDC)
        before = net.chain.accounts.copy()
        for method, asked in (
            ("simnet_fund", {"wallet": alice, "mint": "SOL", "amount": most}),
            ("simnet_fund", {"wallet": alice, "mint": "SOL", "amount": 2 * 10**18}),
            ("simnet_fund", {"wallet": alice, "mint": SOL.mint, "amount": most}),
            ("simnet_launch", {"quote": "SOL", "quoteAmount": most, "price": 1_000_000}),
            ("simnet_liquidity", {"pool": pool.name, "quoteAmount": 10**18}),
        ):
            with pytest.raises(RpcFault, match="there cannot be so many"):
                net.rpc._methods[method]([asked])
            assert net.chain.accounts == before
        # It is not made before its slot; then it is left out.
        net.rpc._methods["simnet_launch"]([{"quoteAmount": most, "price": 1_000_000, "slots": 2}])
        net.rpc._methods["simnet_move_price"]([{"pair": "SOL/USDC", "bps": 1_000_000}])
        gathered = BOB.sign([transfer_lamports(BOB.pubkey, ALICE.pubkey, 10**18)], net.blockhash)
        assert await net.land(gathered) is None
        net.rpc.request_airdrop([alice, 4 * 10**17])
        for _ in range(80):
            net.chain.advance()
            net.rpc.simnet_fund([{"wallet": bob, "mint": "USDC", "amount": 1}])
        assert net.lamports(ALICE.pubkey) == 24 * 10**17
        kept = net.chain.accounts.copy()
    async with open_chain(tmp_path) as net:
        kept.pop(bytes(CLOCK_SYSVAR))
        assert {key: net.chain.accounts[key] for key in kept} == kept
        with pytest.raises(RpcFault, match="there cannot be so many"):
            await net.fund(ALICE, SOL, 2 * 10**18)


async def test_what_a_full_disk_refuses_does_not_happen_later_either(tmp_path: Path) -> None:
    def state(net: OpenChain) -> tuple[Any, ...]:
        pools = net.rpc.simnet_pools([])
        return (
            net.lamports(ALICE.pubkey),
            list(net.chain.launches.requested),
            set(net.chain.market.held),
            pools,
        )

    async with open_chain(tmp_path) as net:
        disk = net.chain._ledger._connection
        (pages,) = disk.execute("PRAGMA page_count").fetchone()
        disk.execute(f"PRAGMA max_page_count = {pages}")
        asked = {"wallet": str(ALICE.pubkey), "mint": "SOL", "amount": 10**9}
        with pytest.raises(sqlite3.OperationalError, match="full"):
            all(map(net.rpc.simnet_fund, repeat([asked])))
        before = state(net)
        for refused, params in (
            (net.rpc._methods["simnet_launch"], {"quoteAmount": 10**10, "slots": 20}),
            (net.rpc.simnet_move_price, {"pair": "SOL/USDC", "bps": 50, "hold": True}),
        ):
            with pytest.raises(sqlite3.OperationalError, match="full"):
                refused([params])
        disk.execute("PRAGMA max_page_count = 100000")
        await net.fund(BOB, SOL, 10**9)
        assert state(net) == before
    async with open_chain(tmp_path) as net:
        assert state(net) == before
        assert net.lamports(BOB.pubkey) == 10**9


def test_two_writers_cannot_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with pytest.raises(LedgerError, match="in use by another simnet"):
        Ledger(tmp_path)
    ledger.close()
    Ledger(tmp_path).close()


def test_a_missing_ledger_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no readable ledger"):
        LedgerReader(tmp_path / FILE_NAME)


async def test_the_ledger_can_be_read_while_the_chain_writes_it_and_does_not_grow_while_idle(
    tmp_path: Path,
) -> None:
    async with open_chain(tmp_path, market_pools=2) as net:
        await net.fund(ALICE, SOL, 10**12)
        reader = LedgerReader(tmp_path / FILE_NAME)
        raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], net.blockhash)
        assert await net.land(raw) is None
        assert [each.raw for each in reader.page()] == [raw]
        # Once around, so that every account the market touches has its row.
        for _ in range(40):
            net.chain.advance()
        rows = len(reader.accounts())
        for _ in range(100):
            net.chain.advance()
        assert len(reader.accounts()) == rows
        assert len(reader.page()) == 1
        assert reader.accounts() == net.chain.accounts
        reader.close()


async def test_transactions_that_name_an_address_are_found_newest_first_between_two_others(
    tmp_path: Path,
) -> None:
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**12)
        sent = []
        for number in range(5):
            raw = ALICE.sign([memo(f"n:{number}", ALICE.pubkey)], net.blockhash)
            assert await net.land(raw) is None
            sent.append(raw[1:65])
        net.chain.advance()
        chain = net.chain

        async def memos(before: bytes | None, until: bytes | None, limit: int) -> list[str | None]:
            found = await chain.naming(
                ALICE.address, before=before, until=until, limit=limit, commitment="confirmed"
            )
            return [each.memo for each in found]

        assert await memos(None, None, 2) == ["n:4", "n:3"]
        assert await memos(sent[3], None, 10) == ["n:2", "n:1", "n:0"]
        assert await memos(None, sent[2], 10) == ["n:4", "n:3"]
        assert await memos(sent[4], sent[1], 10) == ["n:3", "n:2"]
        assert await memos(sent[0], None, 10) == []
        assert await chain.naming(BOB.address, before=None, until=None, limit=1, commitment="confirmed") == []


async def test_nothing_is_found_before_an_unknown_signature_and_an_unknown_end_is_none(
    tmp_path: Path,
) -> None:
    async with open_chain(tmp_path) as net:
        await net.fund(ALICE, SOL, 10**12)
        for number in range(2):
            assert await net.land(ALICE.sign([memo(f"n:{number}", ALICE.pubkey)], net.blockhash)) is None
        first, second = net.chain.landed_in(net.chain.slot - 1) + net.chain.landed_in(net.chain.slot)
        unknown = b"\x09" * 64

        async def memos(before: bytes | None, until: bytes | None) -> list[str | None]:
            found = await net.chain.naming(
                ALICE.address, before=before, until=until, limit=10, commitment="confirmed"
            )
            return [each.memo for each in found]

        assert await memos(unknown, None) == []
        assert await memos(None, unknown) == ["n:0"]
        # It is known to nobody who asks for what is confirmed.
        assert await memos(second.signature, None) == []
        assert await memos(None, second.signature) == ["n:0"]
        net.chain.advance()
        assert await memos(second.signature, None) == ["n:0"]
        assert await memos(None, first.signature) == ["n:1"]


async def test_a_transaction_does_not_name_what_only_stands_in_its_bytes(tmp_path: Path) -> None:
    async with open_chain(tmp_path, confirmed_slots=0) as net:
        await net.fund(ALICE, SOL, 10**12)
        address = b"address as text and of 32 bytes."
        noted = ALICE.sign([memo(address.decode(), ALICE.pubkey)], net.blockhash)
        named = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 10**9)], net.blockhash)
        for raw in (named, noted):
            assert await net.land(raw) is None

        async def naming(asked: bytes) -> list[bytes]:
            found = await net.chain.naming(asked, before=None, until=None, limit=1, commitment="confirmed")
            return [each.raw for each in found]

        assert await naming(address) == []
        assert await naming(BOB.address) == [named]
        assert await naming(ALICE.address) == [noted]


async def test_a_transaction_whose_status_lags_is_not_listed_before_it_is_told(tmp_path: Path) -> None:
    async with open_chain(tmp_path, finalized_slots=8) as net:
        await net.fund(ALICE, SOL, 10**12)
        assert await net.land(ALICE.sign([memo("early", ALICE.pubkey)], net.blockhash)) is None
        late = ALICE.sign([memo("late", ALICE.pubkey)], net.blockhash)
        net.chain.faults = Faults(status_lag=1.0, status_lag_slots=3)
        assert await net.land(late) == "not landed"
        net.chain.faults = Faults()
        assert await net.land(ALICE.sign([memo("soon", ALICE.pubkey)], net.blockhash)) is None

        async def memos(before: bytes | None = None) -> list[str | None]:
            found = await net.chain.naming(
                ALICE.address, before=before, until=None, limit=10, commitment="confirmed"
            )
            return [each.memo for each in found]

        net.chain.advance()
        assert await memos() == ["soon", "early"]
        assert await memos(late[1:65]) == []
        net.chain.advance()
        assert await memos() == ["soon", "late", "early"]
        assert await memos(late[1:65]) == ["early"]
