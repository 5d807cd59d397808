"""From bytes to a transaction: what is read out of them, and what is refused."""

from __future__ import annotations

from base64 import b64decode

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from engine.solana.instructions import memo, set_compute_unit_limit, transfer_lamports
from simnet import base58
from simnet.transaction import Transaction, Undecodable, Unsanitary, mentions
from tests.published_vectors import solana_cases
from tests.simnet_wallets import SigningWallet

ALICE, BOB = SigningWallet(1), SigningWallet(2)

PUBLISHED = [
    b64decode(case["request"]["params"][0])
    for case in solana_cases("rpc_examples")
    if case["method"] == "sendTransaction" and len(case["request"]["params"][0]) > 400
]


def test_there_are_published_transactions_to_read() -> None:
    assert PUBLISHED


@pytest.mark.parametrize("raw", PUBLISHED[:1])
@pytest.mark.parametrize("legacy", [None, True, False])
def test_keys_instructions_and_blockhash_are_as_solders_reads_them(raw: bytes, legacy: bool | None) -> None:
    if legacy is not None:
        raw = ALICE.sign(
            [
                set_compute_unit_limit(5),
                transfer_lamports(ALICE.pubkey, BOB.pubkey, 3),
                # Longer than 127 bytes: its length takes two.
                memo("x" * 300, ALICE.pubkey),
            ],
            bytes(range(32)),
            legacy=legacy,
        )
    ours, theirs = Transaction(raw), VersionedTransaction.from_bytes(raw)
    message = theirs.message
    assert list(ours.keys) == [bytes(key) for key in message.account_keys]
    assert ours.blockhash == bytes(message.recent_blockhash)
    assert ours.signature == bytes(theirs.signatures[0])
    assert [(each.program, each.accounts, each.data) for each in ours.instructions] == [
        (each.program_id_index, each.accounts, each.data) for each in message.instructions
    ]
    header = message.header
    writable = [
        index < header.num_required_signatures - header.num_readonly_signed_accounts
        or header.num_required_signatures <= index < len(ours.keys) - header.num_readonly_unsigned_accounts
        for index in range(len(ours.keys))
    ]
    assert [flag == 1 for flag in ours.outline.writable] == writable
    if legacy is not None:
        written = {key for index, key in enumerate(ours.keys) if ours.outline.writable[index]}
        assert written == {ALICE.address, BOB.address}
    assert ours.verified()


def test_what_is_worked_out_of_a_message_is_not_kept_for_ever() -> None:
    nobody = Pubkey.from_bytes(bytes(32))
    metas = [AccountMeta(nobody, False, False), AccountMeta(ALICE.pubkey, True, True)]
    # Both are named always, so that it is one outline: in other orders, and with data of other lengths.
    for number in range(300):
        accounts = [*metas, *(metas[number >> bit & 1] for bit in range(9))]
        outline = Transaction(
            ALICE.sign([Instruction(BOB.pubkey, bytes(number), accounts)], bytes(32))
        ).outline
    assert 0 < len(outline.named) < 100
    assert 0 < len(outline.calls) < 100


@pytest.mark.parametrize("legacy", [True, False])
def test_what_follows_a_message_is_left_out(legacy: bool) -> None:
    raw = ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 3)], bytes(32), legacy=legacy)
    for more in (b"", b"\0", b"more"):
        transaction = Transaction(raw + more)
        assert transaction.raw == raw
        assert transaction.message_hash == Transaction(raw).message_hash
        assert transaction.verified()


@pytest.mark.parametrize("legacy", [True, False])
def test_it_mentions_the_accounts_it_names_and_nothing_that_only_reads_like_one(legacy: bool) -> None:
    carol = SigningWallet(3)
    raw = ALICE.sign(
        [transfer_lamports(ALICE.pubkey, BOB.pubkey, 3), memo("x" * 32, ALICE.pubkey)],
        carol.address,
        legacy=legacy,
    )
    assert all(mentions(raw, key) for key in Transaction(raw).keys)
    assert not mentions(raw, carol.address)
    assert not mentions(raw, b"x" * 32)
    # Part of one account and part of the next.
    keys = b"".join(Transaction(raw).keys)
    assert not mentions(raw, keys[1:33])


@pytest.mark.parametrize("legacy", [True, False])
def test_messages_of_the_same_accounts_and_length_are_each_read_for_themselves(legacy: bool) -> None:
    texts = [("abc", "defgh"), ("abcd", "efgh"), ("xyz", "uvwxy"), ("abc", "defgh")]
    read = [
        Transaction(ALICE.sign([memo(text, ALICE.pubkey) for text in pair], bytes(32), legacy=legacy))
        for pair in texts
    ]
    assert len({len(each.raw) for each in read}) == 1
    assert [tuple(call.data.decode() for call in each.instructions) for each in read] == texts
    assert [each.memo for each in read] == [first for first, _ in texts]
    assert all(each.verified() for each in read)


def test_a_message_that_loads_keys_from_a_table_is_refused_even_after_one_that_does_not() -> None:
    raw = ALICE.sign([memo("mine", ALICE.pubkey)], bytes(32))
    Transaction(raw)
    # One table, whose address follows, with no writable and no read-only key of it.
    with pytest.raises(Unsanitary, match="address table account that doesn't exist"):
        Transaction(raw[:-1] + b"\1" + bytes(32) + b"\0\0")


def test_a_signature_over_other_bytes_is_noticed() -> None:
    raw = bytearray(ALICE.sign([memo("mine", ALICE.pubkey)], bytes(32)))
    raw[raw.index(b"mine")] ^= 1
    assert not Transaction(bytes(raw)).verified()


@pytest.mark.parametrize("cut", [0, 1, 64, 100, -1])
def test_bytes_that_end_too_early_are_no_transaction(cut: int) -> None:
    raw = ALICE.sign([memo("whole", ALICE.pubkey)], bytes(32))
    with pytest.raises(Undecodable, match="failed to deserialize"):
        Transaction(raw[:cut])


def test_an_instruction_that_names_no_key_of_the_message_is_refused() -> None:
    raw = bytearray(ALICE.sign([memo("lost", ALICE.pubkey)], bytes(32), legacy=True))
    at = 1 + 64 + 4 + 32 * 2 + 32 + 1
    raw[at] = 9
    with pytest.raises(Unsanitary, match="failed to sanitize"):
        Transaction(bytes(raw))


def test_the_memo_is_read_along_the_way() -> None:
    raw = ALICE.sign([memo("019a:1", ALICE.pubkey)], bytes(32))
    assert Transaction(raw).memo == "019a:1"


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\1", b"hello world", bytes(range(256))])
def test_base58_goes_there_and_back(data: bytes) -> None:
    assert base58.decode(base58.encode(data)) == data


def test_base58_is_everybodys_base58() -> None:
    assert base58.encode(bytes(Pubkey.from_string("So11111111111111111111111111111111111111112"))) == (
        "So11111111111111111111111111111111111111112"
    )
    with pytest.raises(ValueError, match="'0' is no base58"):
        base58.decode("0OIl")
