"""Addresses of the programs, mints and sysvars that transactions name, and addresses derived from them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from solders.pubkey import Pubkey

SYSTEM_PROGRAM: Final = Pubkey.from_string("11111111111111111111111111111111")
TOKEN_PROGRAM: Final = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
TOKEN_2022_PROGRAM: Final = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
ASSOCIATED_TOKEN_PROGRAM: Final = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
MEMO_PROGRAM: Final = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
COMPUTE_BUDGET_PROGRAM: Final = Pubkey.from_string("ComputeBudget111111111111111111111111111111")
CLOCK_SYSVAR: Final = Pubkey.from_string("SysvarC1ock11111111111111111111111111111111")
INSTRUCTIONS_SYSVAR: Final = Pubkey.from_string("Sysvar1nstructions1111111111111111111111111")

WRAPPED_SOL_MINT: Final = Pubkey.from_string("So11111111111111111111111111111111111111112")


@lru_cache(maxsize=65_536)
def program_address(program: Pubkey, *seeds: bytes) -> Pubkey:
    """Return the address a program owns for these seeds. Cached: a derivation hashes up to 255 times."""
    return Pubkey.find_program_address(list(seeds), program)[0]


@lru_cache(maxsize=65_536)
def associated_token_account(owner: Pubkey, mint: Pubkey, token_program: Pubkey = TOKEN_PROGRAM) -> Pubkey:
    """Return where `owner` keeps `mint`: the associated token program's address for the two."""
    return program_address(ASSOCIATED_TOKEN_PROGRAM, bytes(owner), bytes(token_program), bytes(mint))
