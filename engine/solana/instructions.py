"""Instructions of the programs that every transaction of ours uses besides the swap itself.

Data and account lists as @solana/spl-token 0.4.15 and @solana/web3.js 1.99.0 build them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from solders.instruction import AccountMeta
from solders.pubkey import Pubkey

from engine.solana.programs import (
    ASSOCIATED_TOKEN_PROGRAM,
    COMPUTE_BUDGET_PROGRAM,
    MEMO_PROGRAM,
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    associated_token_account,
)


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """What an instruction names: a program, and accounts in the program's order.

    It is the same from order to order while data changes, and transactions know it again by its identity: so
    whoever makes instructions keeps the Names of each kind.
    """

    program_id: Pubkey
    accounts: tuple[AccountMeta, ...]


class Instruction(NamedTuple):
    """One call of a program."""

    names: Names
    data: bytes

    @property
    def program_id(self) -> Pubkey:
        return self.names.program_id

    @property
    def accounts(self) -> tuple[AccountMeta, ...]:
        return self.names.accounts


_COMPUTE_BUDGET = Names(COMPUTE_BUDGET_PROGRAM, ())


@lru_cache(maxsize=64)
def set_compute_unit_limit(units: int) -> Instruction:
    """Allow the transaction this many compute units in all."""
    return Instruction(_COMPUTE_BUDGET, struct.pack("<BI", 2, units))


@lru_cache(maxsize=64)
def set_compute_unit_price(micro_lamports: int) -> Instruction:
    """Pay this many millionths of a lamport for each unit allowed: the priority fee."""
    return Instruction(_COMPUTE_BUDGET, struct.pack("<BQ", 3, micro_lamports))


def transfer_lamports(source: Pubkey, destination: Pubkey, lamports: int) -> Instruction:
    """Move lamports between system accounts; `source` signs."""
    return Instruction(_transfer(source, destination), struct.pack("<IQ", 2, lamports))


@lru_cache(maxsize=64)
def _transfer(source: Pubkey, destination: Pubkey) -> Names:
    return Names(SYSTEM_PROGRAM, (AccountMeta(source, True, True), AccountMeta(destination, False, True)))


@lru_cache(maxsize=4096)
def create_token_account(
    payer: Pubkey, owner: Pubkey, mint: Pubkey, token_program: Pubkey = TOKEN_PROGRAM
) -> Instruction:
    """Create the owner's associated token account of `mint`; succeed if it is there already."""
    accounts = (
        AccountMeta(payer, True, True),
        AccountMeta(associated_token_account(owner, mint, token_program), False, True),
        AccountMeta(owner, False, False),
        AccountMeta(mint, False, False),
        AccountMeta(SYSTEM_PROGRAM, False, False),
        AccountMeta(token_program, False, False),
    )
    return Instruction(Names(ASSOCIATED_TOKEN_PROGRAM, accounts), b"\x01")


@lru_cache(maxsize=64)
def sync_native(account: Pubkey) -> Instruction:
    """Count the lamports sent to a wrapped SOL account as its amount."""
    return Instruction(Names(TOKEN_PROGRAM, (AccountMeta(account, False, True),)), b"\x11")


@lru_cache(maxsize=64)
def close_token_account(account: Pubkey, destination: Pubkey, owner: Pubkey) -> Instruction:
    """Close a token account and pay its lamports out: for wrapped SOL, all of it."""
    accounts = (
        AccountMeta(account, False, True),
        AccountMeta(destination, False, True),
        AccountMeta(owner, True, False),
    )
    return Instruction(Names(TOKEN_PROGRAM, accounts), b"\x09")


def memo(text: str, signer: Pubkey) -> Instruction:
    """Write `text` into the transaction, vouched for by `signer`."""
    return Instruction(_memo(signer), text.encode())


@lru_cache(maxsize=64)
def _memo(signer: Pubkey) -> Names:
    return Names(MEMO_PROGRAM, (AccountMeta(signer, True, False),))
