"""The ledger: what is committed is there, all of it or none, and anybody may read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.domain.tokens import SOL
from engine.solana.instructions import memo, transfer_lamports
from simnet.accounts import Account
from simnet.bank import Meta
from simnet.ledger import FILE_NAME, Landed, Ledger, LedgerError, LedgerReader, Progress
from tests.simnet_wallets import SigningWallet, open_chain

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
        assert await chain.naming(BOB.address, before=None, until=None, limit=1, commitment="confirmed") == []
