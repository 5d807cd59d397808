"""Transactions: a wallet, and the swap transaction of one attempt, signed.

Building is deterministic: the same order, attempt, route and blockhash give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from nacl.bindings import crypto_sign
from solders import instruction as solders_instruction
from solders.hash import Hash
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from engine.domain.order import Attempt
from engine.solana.accounts import RENT_OF_TOKEN_ACCOUNT
from engine.solana.instructions import (
    Instruction,
    Names,
    close_token_account,
    create_token_account,
    memo,
    set_compute_unit_limit,
    set_compute_unit_price,
    sync_native,
    transfer_lamports,
)
from engine.solana.programs import WRAPPED_SOL_MINT, associated_token_account

MAX_TRANSACTION_SIZE: Final = 1232
"""Bytes, signatures included: one network packet."""
MAX_ACCOUNT_LOCKS: Final = 64
"""Accounts a transaction may name, programs included."""
MAX_COMPUTE_UNITS: Final = 1_400_000
"""What a transaction may use."""
OVERHEAD_COMPUTE_UNITS: Final = 150_000
"""What everything but the swaps uses at most: three token accounts, wrapping, closing, the memo."""
_SIGNATURE_LAMPORTS: Final = 5_000
RENT_OF_WALLET: Final = 890_880
"""Lamports that an account without data has to keep, unless it keeps none at all."""
FEE_RESERVE: Final = 3 * RENT_OF_TOKEN_ACCOUNT + 1_000_000
"""Lamports to leave in a wallet so that it can open three token accounts and pay for its transactions."""
_EMPTY_SIZE: Final = 1 + 64 + 1 + 3 + 1 + 32 + 1 + 1
"""Bytes of a transaction of nothing: signature, version, header, blockhash, and the lengths of its lists."""


@dataclass(frozen=True, slots=True)
class Blockhash:
    """What dates a transaction: it can land until the chain is higher than last_valid_block_height."""

    value: str
    last_valid_block_height: int


class WalletError(Exception):
    """The keypair file cannot be used. The message is for the person who named it."""


class Wallet:
    """The keypair that owns the funds and signs."""

    def __init__(self, keypair: Keypair) -> None:
        self._secret = bytes(keypair)
        self.pubkey: Final = keypair.pubkey()

    @classmethod
    def load(cls, path: Path) -> Wallet:
        """Read a keypair file as solana-keygen writes it: a JSON array of 64 numbers. Raises WalletError."""
        try:
            numbers = json.loads(path.read_text(encoding="utf-8"))
            return cls(Keypair.from_bytes(bytes(numbers)))
        except OSError as error:
            raise WalletError(f"wallet {path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError):
            raise WalletError(f"wallet {path} is not a keypair: a JSON array of 64 numbers") from None

    @classmethod
    def create(cls, path: Path) -> Wallet:
        """Make a new keypair and its file, readable by its owner alone. Raises WalletError if it exists."""
        keypair = Keypair()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise WalletError(f"wallet {path} cannot be made: {error.strerror}") from None
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(list(bytes(keypair))))
            # A wallet that funds are sent to must survive a power cut.
            file.flush()
            os.fsync(file.fileno())
        return cls(keypair)

    def sign_transaction(self, instructions: Sequence[Instruction], blockhash: str) -> bytes:
        """Return a version 0 transaction that this wallet pays for and alone signs; always the same.

        Its signature is in bytes 1 to 64. libsodium makes it in 28 us, where solders takes 57.
        """
        message = compile_message(self.pubkey, instructions, blockhash)
        return b"\x01" + crypto_sign(message, self._secret)


class _Frame(NamedTuple):
    """A message without what changes from order to order: its blockhash and its instructions' data."""

    start: bytes
    """Up to the blockhash: version, header, accounts."""
    calls: tuple[bytes, ...]
    """Of each instruction what comes before its data: the places of its program and accounts."""


@lru_cache(maxsize=1024)
def _frame(payer: Pubkey, *names: Names) -> _Frame:
    """Return the frame of a message whose instructions name these. Compiling one takes 30 us."""
    empty = [solders_instruction.Instruction(each.program_id, b"", list(each.accounts)) for each in names]
    message = MessageV0.try_compile(payer, empty, [], Hash.default())
    header, keys = message.header, message.account_keys
    start = bytes(
        (
            0x80,  # version 0
            header.num_required_signatures,
            header.num_readonly_signed_accounts,
            header.num_readonly_unsigned_accounts,
        )
    )
    return _Frame(
        start + _length(len(keys)) + b"".join([bytes(key) for key in keys]),
        tuple(
            bytes((call.program_id_index,)) + _length(len(call.accounts)) + call.accounts
            for call in message.instructions
        ),
    )


def compile_message(payer: Pubkey, instructions: Sequence[Instruction], blockhash: str) -> bytes:
    """Return the bytes of a version 0 message without address tables, which are what its signers sign.

    They are what solders makes of the same instructions: docs.anza.xyz/proposals/versioned-transactions.
    """
    start, calls = _frame(payer, *[instruction.names for instruction in instructions])
    parts = [start, _hash(blockhash), _length(len(calls))]
    for call, (_, data) in zip(calls, instructions, strict=True):
        parts += (call, _length(len(data)), data)
    parts.append(b"\x00")
    return b"".join(parts)


def _length(count: int) -> bytes:
    """Return a length as it is written on the wire: 7 bits a byte, the lowest first."""
    return _SHORT_LENGTHS[count] if count < 0x80 else bytes((count & 0x7F | 0x80, count >> 7))


_SHORT_LENGTHS: Final = tuple(bytes((count,)) for count in range(0x80))


def swap_instructions(
    owner: Pubkey,
    input_mint: Pubkey,
    output_mint: Pubkey,
    max_input_amount: int,
    *swaps: Instruction,
    middle_mint: Pubkey | None = None,
) -> list[Instruction]:
    """Return the swaps with what they need around them: token accounts, and SOL wrapped and unwrapped.

    The one place that knows that SOL swaps as a token: `max_input_amount` of it (lamports) is wrapped
    before, and whatever is left over or came out is unwrapped after. Two hops meet in `middle_mint`.
    """
    instructions = []
    if input_mint == WRAPPED_SOL_MINT:
        wrapped = associated_token_account(owner, WRAPPED_SOL_MINT)
        instructions += [
            create_token_account(owner, owner, WRAPPED_SOL_MINT),
            transfer_lamports(owner, wrapped, max_input_amount),
            sync_native(wrapped),
        ]
    if middle_mint is not None:
        instructions.append(create_token_account(owner, owner, middle_mint))
    instructions += [create_token_account(owner, owner, output_mint), *swaps]
    if WRAPPED_SOL_MINT in (input_mint, middle_mint, output_mint):
        wrapped = associated_token_account(owner, WRAPPED_SOL_MINT)
        instructions.append(close_token_account(wrapped, owner, owner))
    return instructions


@dataclass(frozen=True, slots=True)
class Footprint:
    """What instructions take up in a transaction."""

    accounts: frozenset[Pubkey]
    """Programs included; each is in a transaction once, however many instructions name it."""
    size: int
    """Bytes, without the accounts."""

    @classmethod
    def of(cls, instructions: Sequence[Instruction]) -> Footprint:
        accounts: set[Pubkey] = set()
        size = 0
        for instruction in instructions:
            named = instruction.accounts
            accounts.add(instruction.program_id)
            accounts.update([account.pubkey for account in named])
            # Its program, and both lists with their lengths, which one byte each holds.
            size += 3 + len(named) + len(instruction.data)
        return cls(frozenset(accounts), size)


def fits(owner: Pubkey, parts: Sequence[Footprint], compute_units: int) -> bool:
    """Return whether one transaction of `build_swap` holds it all; `compute_units` are of the swaps alone."""
    around = _around(owner)
    accounts = around.accounts.union(*[part.accounts for part in parts])
    size = _EMPTY_SIZE + around.size + 32 * len(accounts) + sum([part.size for part in parts])
    return (
        size <= MAX_TRANSACTION_SIZE
        and len(accounts) <= MAX_ACCOUNT_LOCKS
        and compute_units + OVERHEAD_COMPUTE_UNITS <= MAX_COMPUTE_UNITS
    )


def swap_fee(compute_units: int, priority_fee_micro_lamports: int) -> int:
    """Return the lamports that the network takes of a transaction of `build_swap`, whatever becomes of it."""
    priority = (compute_units + OVERHEAD_COMPUTE_UNITS) * priority_fee_micro_lamports
    return _SIGNATURE_LAMPORTS + -(-priority // 1_000_000)


def build_swap(
    wallet: Wallet,
    instructions: Sequence[Instruction],
    blockhash: Blockhash,
    order_id: UUID,
    attempt: int,
    *,
    compute_units: int,
    priority_fee_micro_lamports: int,
) -> Attempt:
    """Return the signed transaction of an order's attempt; nothing is sent.

    `compute_units` is what the swap itself uses. The memo names the order and the attempt, so that the
    chain itself says what a transaction was for. Raises ValueError for one too large for the network.
    """
    raw_transaction = wallet.sign_transaction(
        [
            set_compute_unit_limit(compute_units + OVERHEAD_COMPUTE_UNITS),
            set_compute_unit_price(priority_fee_micro_lamports),
            *instructions,
            memo(f"{order_id}:{attempt}", wallet.pubkey),
        ],
        blockhash.value,
    )
    if len(raw_transaction) > MAX_TRANSACTION_SIZE:
        raise ValueError(
            f"the transaction has {len(raw_transaction)} bytes; at most {MAX_TRANSACTION_SIZE} fit"
        )
    return Attempt(
        attempt=attempt,
        tx_hash=str(Signature(raw_transaction[1:65])),
        raw_transaction=raw_transaction,
        last_valid_block_height=blockhash.last_valid_block_height,
    )


def named_order(memo_text: str | None) -> UUID | None:
    """Return the order that a transaction of `build_swap` was for, by its memo as nodes show it.

    They put its length before it: "[38] 0199e2a1-....:1". None for any other memo.
    """
    named = None if memo_text is None else _MEMO_TEXT.fullmatch(memo_text)
    return None if named is None else UUID(named[1])


def payer(raw_transaction: bytes) -> str:
    """Return the base58 address that pays for a transaction."""
    return str(VersionedTransaction.from_bytes(raw_transaction).message.account_keys[0])


def called_instruction(raw_transaction: bytes, index: int) -> tuple[Pubkey, bytes] | None:
    """Return the program that a transaction's instruction calls, and the instruction's data.

    None if there is no such instruction.
    """
    message = VersionedTransaction.from_bytes(raw_transaction).message
    instructions = message.instructions
    if not 0 <= index < len(instructions):
        return None
    called = instructions[index]
    return message.account_keys[called.program_id_index], bytes(called.data)


_MEMO_TEXT: Final = re.compile(r"\[[0-9]+\] ([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}):[0-9]+")


@lru_cache(maxsize=4)
def _around(owner: Pubkey) -> Footprint:
    """Return what `build_swap` puts around a swap."""
    longest_memo = memo(f"{UUID(int=0)}:{99}", owner)
    return Footprint.of([set_compute_unit_limit(1), set_compute_unit_price(1), longest_memo])


@lru_cache(maxsize=64)
def _hash(blockhash: str) -> bytes:
    return bytes(Hash.from_string(blockhash))
