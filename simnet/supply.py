"""Tokens from nowhere, and back to it: whoever makes or takes some keeps the mint's supply right."""

from __future__ import annotations

from solders.pubkey import Pubkey

from engine.domain.tokens import TOKENS
from engine.solana.accounts import MINT
from simnet.accounts import Account, is_mint, new_token_account, with_token_change
from simnet.bank import View
from simnet.programs.associated_token import address_of

_MOST = 2**64 - 1


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
    if not 0 <= supply <= _MOST:
        raise SupplyError("there cannot be so many tokens")
    view.put(mint, Account(account.lamports, account.owner, MINT.patch(account.data, supply=supply)))


def give(view: View, wallet: bytes, mint: bytes, amount: int) -> None:
    """Give a wallet so many base units, in its associated token account. Raises SupplyError."""
    change_supply(view, mint, amount)
    address = address_of(wallet, mint)
    # No balance is more than the supply, so it fits.
    view.put(address, with_token_change(view.get(address) or new_token_account(mint, wallet), amount))
