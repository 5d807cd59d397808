"""Tokens that orders may name: those known by a symbol, and any other whose mint the chain has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from solders.pubkey import Pubkey

from engine.domain.tokens import Token, find_token, token_of_mint
from engine.solana.accounts import MINT
from engine.solana.programs import TOKEN_PROGRAM
from engine.solana.rpc import NodeClient
from engine.solana.wire import WireError

_MOST_KEPT: Final = 10_000
_SHORTEST, _LONGEST = 32, 44
"""Characters of an address."""


class Tokens:
    """Finds tokens by symbol or mint; remembers what it learned of the chain, up to a number of mints."""

    def __init__(self, node: NodeClient) -> None:
        self._node = node
        self._learned: OrderedDict[str, Token] = OrderedDict()

    def find(self, symbol_or_mint: str) -> Token | None:
        """Return the token if it is known by now."""
        return find_token(symbol_or_mint) or self._learned.get(symbol_or_mint)

    async def learn(self, names: Iterable[str]) -> None:
        """Look up those names on chain that are mints not yet known. Raises NodeUnavailable.

        What is no mint of the token program that the venues swap stays unknown.
        """
        unknown = {
            name: address for name in set(names) if not self.find(name) and (address := _address(name))
        }
        if not unknown:
            return
        _, accounts = await self._node.multiple_accounts(list(unknown.values()), "confirmed")
        for name, account in zip(unknown, accounts, strict=True):
            if account is None or account.owner != str(TOKEN_PROGRAM):
                continue
            try:
                mint = MINT.decode(account.data)
            except WireError:
                continue
            if mint.is_initialized:
                self._learned[name] = token_of_mint(name, mint.decimals)
        while len(self._learned) > _MOST_KEPT:
            self._learned.popitem(last=False)


def _address(name: str) -> Pubkey | None:
    if not _SHORTEST <= len(name) <= _LONGEST:
        return None
    try:
        return Pubkey.from_string(name)
    except ValueError:
        return None
