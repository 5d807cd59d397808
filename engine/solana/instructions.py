"""Instructions of the programs that every transaction of ours uses besides the swap itself.

Data and account lists as @solana/spl-token 0.4.15 and @solana/web3.js 1.99.0 build them.
"""

from __future__ import annotations

import struct

from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from engine.solana.programs import (
    ASSOCIATED_TOKEN_PROGRAM,
    COMPUTE_BUDGET_PROGRAM,
    MEMO_PROGRAM,
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    associated_token_account,
)


def set_compute_unit_limit(units: int) -> Instruction:
    """Allow the transaction this many compute units in all."""
    return Instruction(COMPUTE_BUDGET_PROGRAM, struct.pack("<BI", 2, units), [])


def set_compute_unit_price(micro_lamports: int) -> Instruction:
    """Pay this many millionths of a lamport for each unit allowed: the priority fee."""
    return Instruction(COMPUTE_BUDGET_PROGRAM, struct.pack("<BQ", 3, micro_lamports), [])


def transfer_lamports(source: Pubkey, destination: Pubkey, lamports: int) -> Instruction:
    """Move lamports between system accounts; `source` signs."""
    return Instruction(
        SYSTEM_PROGRAM,
        struct.pack("<IQ", 2, lamports),
        [AccountMeta(source, True, True), AccountMeta(destination, False, True)],
    )


def create_token_account(
    payer: Pubkey, owner: Pubkey, mint: Pubkey, token_program: Pubkey = TOKEN_PROGRAM
) -> Instruction:
    """Create the owner's associated token account of `mint`; succeed if it is there already."""
    return Instruction(
        ASSOCIATED_TOKEN_PROGRAM,
        b"\x01",
        [
            AccountMeta(payer, True, True),
            AccountMeta(associated_token_account(owner, mint, token_program), False, True),
            AccountMeta(owner, False, False),
            AccountMeta(mint, False, False),
            AccountMeta(SYSTEM_PROGRAM, False, False),
            AccountMeta(token_program, False, False),
        ],
    )


def sync_native(account: Pubkey) -> Instruction:
    """Count the lamports sent to a wrapped SOL account as its amount."""
    return Instruction(TOKEN_PROGRAM, b"\x11", [AccountMeta(account, False, True)])


def close_token_account(account: Pubkey, destination: Pubkey, owner: Pubkey) -> Instruction:
    """Close a token account and pay its lamports out: for wrapped SOL, all of it."""
    return Instruction(
        TOKEN_PROGRAM,
        b"\x09",
        [
            AccountMeta(account, False, True),
            AccountMeta(destination, False, True),
            AccountMeta(owner, True, False),
        ],
    )


def memo(text: str, signer: Pubkey) -> Instruction:
    """Write `text` into the transaction, vouched for by `signer`."""
    return Instruction(MEMO_PROGRAM, text.encode(), [AccountMeta(signer, True, False)])
