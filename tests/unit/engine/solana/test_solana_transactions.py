"""Instructions as the published builders make them, and our swap transaction around the swap."""

from __future__ import annotations

import json
import stat
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders import instruction as solders_instruction
from solders.hash import Hash
from solders.instruction import AccountMeta
from solders.keypair import Keypair
from solders.message import MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from engine.domain.order import Attempt
from engine.domain.tokens import SOL, USDC, USDT
from engine.solana import instructions
from engine.solana.instructions import Instruction, Names
from engine.solana.programs import (
    ASSOCIATED_TOKEN_PROGRAM,
    COMPUTE_BUDGET_PROGRAM,
    MEMO_PROGRAM,
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    associated_token_account,
)
from engine.solana.transactions import (
    MAX_COMPUTE_UNITS,
    OVERHEAD_COMPUTE_UNITS,
    Blockhash,
    Footprint,
    Wallet,
    WalletError,
    build_swap,
    called_instruction,
    compile_message,
    fits,
    named_order,
    swap_instructions,
)
from tests.published_vectors import solana_cases

SOL_MINT, USDC_MINT, USDT_MINT = (Pubkey.from_string(token.mint) for token in (SOL, USDC, USDT))
VENUE_PROGRAM = Pubkey.from_string("CPMMoo8L3F4NbTegBCKVNunggL7H1ZpdTHKxQB5qKP1C")
WALLET = Wallet(Keypair.from_seed(bytes(range(32))))
BLOCKHASH = Blockhash("F26fH1L1SnpfDCZweDcexzJHaqUvmG6uqRWQ1X1975Bw", 390_000_150)
ORDER_ID = UUID("019a0000-0000-7000-8000-000000000001")
SWAP = Instruction(Names(VENUE_PROGRAM, (AccountMeta(WALLET.pubkey, True, False),)), b"swap")


def _key(inputs: dict[str, Any], name: str) -> Pubkey:
    return Pubkey.from_string(inputs[name])


BUILDERS: dict[str, Callable[[dict[str, Any]], Instruction]] = {
    "ata.create_idempotent": lambda given: instructions.create_token_account(
        _key(given, "payer"), _key(given, "owner"), _key(given, "mint"), _key(given, "token_program")
    ),
    "token.sync_native": lambda given: instructions.sync_native(_key(given, "account")),
    "token.close_account": lambda given: instructions.close_token_account(
        _key(given, "account"), _key(given, "destination"), _key(given, "owner")
    ),
    "system.transfer": lambda given: instructions.transfer_lamports(
        _key(given, "from"), _key(given, "to"), int(given["lamports"])
    ),
    "compute_budget.set_compute_unit_limit": lambda given: instructions.set_compute_unit_limit(
        given["units"]
    ),
    "compute_budget.set_compute_unit_price": lambda given: instructions.set_compute_unit_price(
        int(given["micro_lamports"])
    ),
    "memo": lambda given: instructions.memo(given["text"], _key(given, "signer")),
}


@pytest.mark.parametrize(
    "case",
    [case for case in solana_cases("instructions_spl_system") if case["instruction"] in BUILDERS],
    ids=lambda case: case["instruction"],
)
def test_instruction_is_the_published_builders(case: dict[str, Any]) -> None:
    instruction = BUILDERS[case["instruction"]](case["inputs"])
    assert str(instruction.program_id) == case["program_id"]
    assert bytes(instruction.data).hex() == case["data_hex"]
    assert [(str(meta.pubkey), meta.is_signer, meta.is_writable) for meta in instruction.accounts] == [
        (meta["pubkey"], meta["signer"], meta["writable"]) for meta in case["accounts"]
    ]


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in solana_cases("transactions")
        if case["version"] == 0 and case["extra_signer_seed_hex"] is None
    ],
    ids=lambda case: case["payer"][:6],
)
def test_signed_transaction_is_the_published_one(case: dict[str, Any]) -> None:
    wallet = Wallet(Keypair.from_seed(bytes.fromhex(case["payer_seed_hex"])))
    given = [
        Instruction(
            Names(
                Pubkey.from_string(item["program_id"]),
                tuple(
                    AccountMeta(Pubkey.from_string(meta["pubkey"]), meta["signer"], meta["writable"])
                    for meta in item["accounts"]
                ),
            ),
            bytes.fromhex(item["data_hex"]),
        )
        for item in case["instructions"]
    ]
    transaction = wallet.sign_transaction(given, case["recent_blockhash"])
    assert b64encode(transaction).decode() == case["solders_transaction_base64"]


_PLACES = [WALLET.pubkey, *(Pubkey.from_bytes(bytes([n]) * 32) for n in range(200, 210))]
_NAMES = st.builds(
    Names,
    st.sampled_from(_PLACES[1:4]),
    st.lists(st.builds(AccountMeta, st.sampled_from(_PLACES), st.booleans(), st.booleans()), max_size=8).map(
        tuple
    ),
)


@given(st.lists(_NAMES, min_size=1, max_size=4), st.data())
def test_message_is_what_solders_compiles_whatever_changes_from_order_to_order(
    names: list[Names], data: st.DataObject
) -> None:
    # The same names again and again, as orders have them, with other data and another blockhash.
    for _ in range(2):
        called = data.draw(st.lists(st.sampled_from(names), max_size=9))
        made = [Instruction(each, data.draw(st.binary(max_size=300))) for each in called]
        blockhash = Hash(data.draw(st.binary(min_size=32, max_size=32)))
        calls = [
            solders_instruction.Instruction(each.program_id, each.data, list(each.accounts)) for each in made
        ]
        expected = MessageV0.try_compile(WALLET.pubkey, calls, [], blockhash)
        assert compile_message(WALLET.pubkey, made, str(blockhash)) == to_bytes_versioned(expected)


def _built(input_mint: Pubkey, output_mint: Pubkey, *, attempt: int = 1) -> Attempt:
    return build_swap(
        WALLET,
        swap_instructions(WALLET.pubkey, input_mint, output_mint, 1_500, SWAP),
        BLOCKHASH,
        ORDER_ID,
        attempt,
        compute_units=80_000,
        priority_fee_micro_lamports=1_000,
    )


def _programs_and_data(attempt: Attempt) -> list[tuple[Pubkey, bytes]]:
    message = VersionedTransaction.from_bytes(attempt.raw_transaction).message
    return [(message.account_keys[item.program_id_index], bytes(item.data)) for item in message.instructions]


WRAP = [ASSOCIATED_TOKEN_PROGRAM, SYSTEM_PROGRAM, TOKEN_PROGRAM]


@pytest.mark.parametrize(
    ("input_mint", "output_mint", "programs"),
    [
        (SOL_MINT, USDC_MINT, [*WRAP, ASSOCIATED_TOKEN_PROGRAM, VENUE_PROGRAM, TOKEN_PROGRAM]),
        (USDC_MINT, SOL_MINT, [ASSOCIATED_TOKEN_PROGRAM, VENUE_PROGRAM, TOKEN_PROGRAM]),
        (USDC_MINT, USDT_MINT, [ASSOCIATED_TOKEN_PROGRAM, VENUE_PROGRAM]),
    ],
    ids=["sells SOL", "buys SOL", "no SOL"],
)
def test_sol_is_wrapped_before_and_unwrapped_after_and_nothing_else_is(
    input_mint: Pubkey, output_mint: Pubkey, programs: list[Pubkey]
) -> None:
    built = _programs_and_data(_built(input_mint, output_mint))
    assert [program for program, _ in built] == [
        COMPUTE_BUDGET_PROGRAM,
        COMPUTE_BUDGET_PROGRAM,
        *programs,
        MEMO_PROGRAM,
    ]


def test_wrapping_moves_exactly_the_amount_and_closing_pays_the_wallet() -> None:
    made = swap_instructions(WALLET.pubkey, SOL_MINT, USDC_MINT, 1_500, SWAP)
    wrapped = associated_token_account(WALLET.pubkey, SOL_MINT)
    assert made[1] == instructions.transfer_lamports(WALLET.pubkey, wrapped, 1_500)
    assert made[-1] == instructions.close_token_account(wrapped, WALLET.pubkey, WALLET.pubkey)


def test_memo_names_the_order_and_the_attempt() -> None:
    assert _programs_and_data(_built(SOL_MINT, USDC_MINT, attempt=2))[-1] == (
        MEMO_PROGRAM,
        f"{ORDER_ID}:2".encode(),
    )


def test_a_memo_as_nodes_show_it_tells_which_order_it_was_for() -> None:
    text = f"{ORDER_ID}:12"
    assert named_order(f"[{len(text)}] {text}") == ORDER_ID
    for other in (
        None,
        "",
        text,
        "[7] order-1",
        f"[39] {text} ",
        f"[44] {text}; [5] hello",
        f"[36] {ORDER_ID}",
    ):
        assert named_order(other) is None


def test_attempt_carries_what_settling_needs() -> None:
    attempt = _built(SOL_MINT, USDC_MINT)
    transaction = VersionedTransaction.from_bytes(attempt.raw_transaction)
    assert attempt.attempt == 1
    assert attempt.last_valid_block_height == BLOCKHASH.last_valid_block_height
    assert attempt.tx_hash == str(transaction.signatures[0])
    assert transaction.verify_with_results() == [True]


def test_same_attempt_is_built_to_the_same_bytes_and_the_next_to_others() -> None:
    assert _built(SOL_MINT, USDC_MINT) == _built(SOL_MINT, USDC_MINT)
    first, second = _built(SOL_MINT, USDC_MINT), _built(SOL_MINT, USDC_MINT, attempt=2)
    assert first.tx_hash != second.tx_hash
    assert Signature.from_string(first.tx_hash) != Signature.default()


def test_transaction_too_large_for_the_network_is_refused() -> None:
    accounts = [AccountMeta(Pubkey.from_bytes(bytes([n]) * 32), False, True) for n in range(1, 40)]
    with pytest.raises(ValueError, match="at most 1232 fit"):
        build_swap(
            WALLET,
            [Instruction(Names(VENUE_PROGRAM, tuple(accounts)), b"")],
            BLOCKHASH,
            ORDER_ID,
            1,
            compute_units=1,
            priority_fee_micro_lamports=1,
        )


def test_called_program_and_its_data_are_found_by_the_instructions_index() -> None:
    raw_transaction = _built(USDC_MINT, USDT_MINT).raw_transaction
    called = called_instruction(raw_transaction, 3)
    assert called is not None
    assert called[0] == VENUE_PROGRAM
    assert called[1] in raw_transaction
    assert called_instruction(raw_transaction, 99) is None


# ---- Wallet --------------------------------------------------------------------------------------


def test_wallet_is_made_for_its_owner_alone_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    made = Wallet.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Wallet.load(path).pubkey == made.pubkey
    assert len(json.loads(path.read_text())) == 64


def test_wallet_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "wallet.json"
    made = Wallet.create(path)
    with pytest.raises(WalletError, match="cannot be made"):
        Wallet.create(path)
    assert Wallet.load(path).pubkey == made.pubkey


@pytest.mark.parametrize("text", ["", "{}", "[1, 2, 3]", "[300]", "nonsense", json.dumps([7] * 64)])
def test_file_that_is_no_keypair_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wallet.json"
    path.write_text(text)
    with pytest.raises(WalletError, match=r"wallet\.json is not a keypair"):
        Wallet.load(path)


def test_missing_wallet_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WalletError, match="cannot be read: No such file"):
        Wallet.load(tmp_path / "wallet.json")


def _leg(number: int, accounts: int, size: int) -> Instruction:
    own = [Pubkey.from_bytes(bytes([number, at]) * 16) for at in range(accounts)]
    metas = [AccountMeta(address, False, True) for address in own]
    return Instruction(Names(VENUE_PROGRAM, (AccountMeta(WALLET.pubkey, True, False), *metas)), bytes(size))


@pytest.mark.parametrize("legs", [1, 2, 3])
@pytest.mark.parametrize("mints", [(SOL_MINT, USDC_MINT), (USDC_MINT, SOL_MINT), (USDC_MINT, USDT_MINT)])
def test_footprints_add_up_to_the_transaction(mints: tuple[Pubkey, Pubkey], legs: int) -> None:
    around = Footprint.of(swap_instructions(WALLET.pubkey, *mints, 1_500))
    seen = set()
    for more in range(60):
        swaps = [_leg(number, 4, 20) for number in range(1, legs)] + [
            _leg(legs, 3 + more // 2, 24 + more % 2)
        ]
        footprints = [around, *(Footprint.of([swap]) for swap in swaps)]
        made = swap_instructions(WALLET.pubkey, *mints, 1_500, *swaps)
        try:
            build_swap(WALLET, made, BLOCKHASH, ORDER_ID, 10, compute_units=1, priority_fee_micro_lamports=1)
        except ValueError:
            built = False
        else:
            built = True
        assert fits(WALLET.pubkey, footprints, 1) is built
        seen.add(built)
    assert seen == {True, False}


def test_what_uses_too_much_computing_or_names_too_many_accounts_does_not_fit() -> None:
    little = [Footprint.of([_leg(1, 2, 8)])]
    assert fits(WALLET.pubkey, little, MAX_COMPUTE_UNITS - OVERHEAD_COMPUTE_UNITS)
    assert not fits(WALLET.pubkey, little, MAX_COMPUTE_UNITS - OVERHEAD_COMPUTE_UNITS + 1)
    assert not fits(WALLET.pubkey, [Footprint.of([_leg(1, 61, 8)])], 1)
