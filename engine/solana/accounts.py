"""Layouts of accounts that belong to no venue: token accounts, mints, the clock.

Source: SPL Token `Account` and `Mint`, Solana `Clock`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from solders.pubkey import Pubkey

from engine.solana.wire import Layout, boolean, i64, pubkey, u8, u32, u64

_NO_KEY: Final = Pubkey.default()

RENT_OF_TOKEN_ACCOUNT: Final = 2_039_280
"""Lamports that a token account of 165 bytes must hold to exist; returned when it is closed."""


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """A balance of one mint. `*_option` is 1 where the field after it means something."""

    mint: pubkey
    owner: pubkey
    amount: u64
    delegate_option: u32 = 0
    delegate: pubkey = _NO_KEY
    state: u8 = 1
    """0 uninitialised, 1 initialised, 2 frozen."""
    is_native_option: u32 = 0
    """1: wrapped SOL; the reserve is the rent that the amount leaves out."""
    is_native_rent_reserve: u64 = 0
    delegated_amount: u64 = 0
    close_authority_option: u32 = 0
    close_authority: pubkey = _NO_KEY


@dataclass(frozen=True, slots=True)
class Mint:
    mint_authority_option: u32
    mint_authority: pubkey
    supply: u64
    decimals: u8
    is_initialized: boolean = True
    freeze_authority_option: u32 = 0
    freeze_authority: pubkey = _NO_KEY


@dataclass(frozen=True, slots=True)
class ClockSysvar:
    """The chain's own clock, at programs.CLOCK_SYSVAR."""

    slot: u64
    epoch_start_timestamp: i64
    epoch: u64
    leader_schedule_epoch: u64
    unix_timestamp: i64


TOKEN_ACCOUNT: Final = Layout(TokenAccount)
MINT: Final = Layout(Mint)
CLOCK: Final = Layout(ClockSysvar)

_amount = TOKEN_ACCOUNT.reader("amount")


def token_amount(data: bytes) -> int:
    """Return a token account's balance in base units, without decoding the rest of it."""
    amount: int = _amount(data)[0]
    return amount
