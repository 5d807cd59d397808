"""Accounts as the bank keeps them: lamports, an owner program and bytes.

Addresses are 32 raw bytes here, as they are in transactions: most are compared and looked up, few are read.
"""

from __future__ import annotations

from typing import Final, TypeGuard

import msgspec
from solders.pubkey import Pubkey

from engine.solana.accounts import MINT, RENT_OF_TOKEN_ACCOUNT, TOKEN_ACCOUNT, Mint, TokenAccount
from engine.solana.programs import SYSTEM_PROGRAM, TOKEN_PROGRAM, WRAPPED_SOL_MINT

SYSTEM: Final = bytes(SYSTEM_PROGRAM)
TOKEN: Final = bytes(TOKEN_PROGRAM)
WRAPPED_SOL: Final = bytes(WRAPPED_SOL_MINT)

TOKEN_ACCOUNT_SIZE: Final = TOKEN_ACCOUNT.size
MINT_SIZE: Final = MINT.size
LAMPORTS_PER_SIGNATURE: Final = 5000

_AMOUNT_AT: Final = TOKEN_ACCOUNT.offset("amount")
_AMOUNT_END: Final = _AMOUNT_AT + 8
_STATE_AT: Final = TOKEN_ACCOUNT.offset("state")
_NATIVE_AT: Final = TOKEN_ACCOUNT.offset("is_native_option")
_DECIMALS_AT: Final = MINT.offset("decimals")


_NO_KEY: Final = Pubkey.default()
_PLAIN_REST: Final = TOKEN_ACCOUNT.encode(TokenAccount(_NO_KEY, _NO_KEY, 0))[_AMOUNT_END:]
_NATIVE_REST: Final = TOKEN_ACCOUNT.encode(
    TokenAccount(_NO_KEY, _NO_KEY, 0, is_native_option=1, is_native_rent_reserve=RENT_OF_TOKEN_ACCOUNT)
)[_AMOUNT_END:]
"""What follows the amount in a token account that nobody has delegated or frozen."""


class Account(msgspec.Struct, frozen=True, gc=False):
    """An account at one moment; a change is a new value. One of 0 lamports does not exist."""

    lamports: int
    owner: bytes = SYSTEM
    """The program that may change it."""
    data: bytes = b""
    executable: bool = False


def rent_exempt_minimum(size: int) -> int:
    """Return the lamports an account of `size` bytes must hold.

    Solana: 3480 lamports a byte and year, two years, for the data and 128 bytes more.
    """
    return (128 + size) * 6960


def is_made(account: Account | None) -> TypeGuard[Account]:
    """Say whether there is an account of a program; lamports alone anybody can send to its address before."""
    return account is not None and account.data != b""


def is_token_account(account: Account) -> bool:
    data = account.data
    return len(data) == TOKEN_ACCOUNT_SIZE and data[_STATE_AT] != 0 and account.owner == TOKEN


def is_mint(account: Account) -> bool:
    return account.owner == TOKEN and len(account.data) == MINT_SIZE


def token_mint(account: Account) -> bytes:
    return account.data[:32]


def token_owner(account: Account) -> bytes:
    """Return the wallet or authority that may move the balance."""
    return account.data[32:64]


def token_balance(account: Account) -> int:
    """Return a token account's balance in base units."""
    return int.from_bytes(account.data[_AMOUNT_AT:_AMOUNT_END], "little")


def balance_if_any(account: Account) -> int | None:
    """Return the same of any account; None if it is no token account."""
    data = account.data
    if len(data) != TOKEN_ACCOUNT_SIZE or data[_STATE_AT] == 0 or account.owner != TOKEN:
        return None
    return int.from_bytes(data[_AMOUNT_AT:_AMOUNT_END], "little")


def is_native(account: Account) -> bool:
    """Say whether a token account holds wrapped SOL: its lamports then follow its balance."""
    return account.data[_NATIVE_AT] == 1


def is_frozen(account: Account) -> bool:
    return account.data[_STATE_AT] == 2


def with_token_balance(account: Account, amount: int) -> Account:
    """Return the token account with another balance, and with the lamports to match if it is wrapped SOL."""
    return with_token_change(account, amount - token_balance(account))


def with_token_change(account: Account, change: int) -> Account:
    """Return the token account with its balance changed by so much, and its lamports if it is wrapped SOL."""
    data = account.data
    amount = int.from_bytes(data[_AMOUNT_AT:_AMOUNT_END], "little") + change
    return Account(
        account.lamports + change if data[_NATIVE_AT] == 1 else account.lamports,
        account.owner,
        data[:_AMOUNT_AT] + amount.to_bytes(8, "little") + data[_AMOUNT_END:],
    )


def with_lamports_of(account: Account, existing: Account | None) -> Account:
    """Return a new account at an address that may hold lamports already.

    These count towards its reserve; what is beyond it stays, and becomes balance if it is wrapped SOL.
    """
    surplus = 0 if existing is None else existing.lamports - rent_exempt_minimum(len(account.data))
    if surplus <= 0:
        return account
    if is_token_account(account) and is_native(account):
        return with_token_change(account, surplus)
    return Account(account.lamports + surplus, account.owner, account.data)


def mint_decimals(account: Account) -> int:
    return account.data[_DECIMALS_AT]


def new_token_account(mint: bytes, owner: bytes, amount: int = 0) -> Account:
    """Return a token account that holds `amount` base units, rent-exempt."""
    reserve = RENT_OF_TOKEN_ACCOUNT
    native = mint == WRAPPED_SOL
    data = mint + owner + amount.to_bytes(8, "little") + (_NATIVE_REST if native else _PLAIN_REST)
    return Account(reserve + (amount if native else 0), TOKEN, data)


def new_mint(decimals: int, supply: int) -> Account:
    """Return a mint that nobody can mint from; simnet's own funding edits its supply."""
    data = MINT.encode(
        Mint(mint_authority_option=0, mint_authority=Pubkey.default(), supply=supply, decimals=decimals)
    )
    return Account(rent_exempt_minimum(MINT_SIZE), TOKEN, data)
