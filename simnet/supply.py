"""Tokens from nowhere, and back to it: whoever makes or takes some keeps the mint's supply right."""

from __future__ import annotations

from typing import Final

from solders.pubkey import Pubkey

from engine.domain.tokens import TOKENS
from engine.solana.accounts import MINT
from simnet.accounts import (
    WRAPPED_SOL,
    Account,
    is_made,
    is_mint,
    new_token_account,
    with_lamports_of,
    with_token_change,
)
from simnet.bank import View
from simnet.programs.associated_token import address_of

_MOST: Final = 2**64 - 1
_MOST_WRAPPED: Final = 2**61
_MOST_LAMPORTS: Final = 2**62
"""Of all accounts together, when some are given. Wrapped SOL is lamports too: both stay below 2**63 together,
which is more than the ledger can record of an account."""


class SupplyError(ValueError):
    """There is no such mint, or there cannot be so many tokens; the message says which."""


def change_supply(view: View, mint: bytes, change: int) -> None:
    """Change how many base units of a mint there are. Raises SupplyError, with nothing changed."""
    account = view.get(mint)
    if account is None or not is_mint(account):
        symbols = ", ".join(token.symbol for token in TOKENS)
        raise SupplyError(
            f"{Pubkey.from_bytes(mint)} is no mint; there are {symbols} and what simnet_launches lists"
        )
    supply = MINT.decode(account.data).supply + change
    if not 0 <= supply <= (_MOST_WRAPPED if mint == WRAPPED_SOL else _MOST):
        raise SupplyError("there cannot be so many tokens")
    view.put(mint, Account(account.lamports, account.owner, MINT.patch(account.data, supply=supply)))


def give(view: View, wallet: bytes, mint: bytes, amount: int) -> None:
    """Give a wallet so many base units, in its associated token account. Raises SupplyError."""
    change_supply(view, mint, amount)
    # No balance is more than the supply, so it fits.
    view.put(address_of(wallet, mint), with_token_change(token_account(view, wallet, mint), amount))


def give_lamports(view: View, address: bytes, amount: int, total: int) -> None:
    """Give an address so many lamports, where there are `total` in all. Raises SupplyError."""
    if total + amount > _MOST_LAMPORTS:
        raise SupplyError(
            f"there cannot be so many lamports; {max(0, _MOST_LAMPORTS - total)} more there can"
        )
    account = view.get(address) or Account(0)
    view.put(address, Account(account.lamports + amount, account.owner, account.data, account.executable))


def token_account(view: View, wallet: bytes, mint: bytes) -> Account:
    """Return a wallet's associated token account; a new one, for the caller to put, where it has none."""
    existing = view.get(address_of(wallet, mint))
    return existing if is_made(existing) else with_lamports_of(new_token_account(mint, wallet), existing)
