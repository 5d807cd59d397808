"""Tokens that orders may name: those known by a symbol, and any other whose mint the chain has."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from solders.pubkey import Pubkey

from engine.coalesce import Coalescer
from engine.domain.errors import NodeUnavailable
from engine.domain.tokens import Token, find_token, token_of_mint
from engine.solana.accounts import MINT
from engine.solana.programs import TOKEN_PROGRAM
from engine.solana.rpc import MAX_ACCOUNTS, Account, NodeClient, RpcError
from engine.solana.wire import WireError

MISS_SECONDS: Final = 2.0
"""For how long a mint that was not there is not looked for again: it may be made at any moment."""
_MOST_KEPT: Final = 10_000
"""Mints that are remembered, and as many of those that are none."""
_MOST_CALLS: Final = 4
"""Under way at once, so that one that is slow does not hold up all others."""
_SHORTEST, _LONGEST = 32, 44
"""Characters of an address."""


class Tokens:
    """Finds tokens by symbol or mint; remembers what it learned of the chain, up to a number of mints."""

    def __init__(
        self,
        node: NodeClient,
        *,
        most_kept: int = _MOST_KEPT,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._most_kept = most_kept
        self._monotonic_seconds = monotonic_seconds
        self._learned: OrderedDict[str, Token] = OrderedDict()
        self._missed: OrderedDict[str, float] = OrderedDict()
        """When to look again for what was not there, soonest first."""
        self._look_up: Coalescer[tuple[str, Pubkey], None] = Coalescer(
            self._look_up_together, max_batch=MAX_ACCOUNTS, max_concurrent=_MOST_CALLS
        )

    def find(self, symbol_or_mint: str) -> Token | None:
        """Return the token if it is known by now."""
        return find_token(symbol_or_mint) or self._learned.get(symbol_or_mint)

    async def learn(self, names: Iterable[str]) -> None:
        """Look up those names on chain that are mints not yet known. Raises NodeUnavailable.

        What is no mint of the token program that the venues swap stays unknown.
        """
        unknown = [
            (name, address)
            for name in dict.fromkeys(names)
            if self._is_to_be_asked(name) and (address := _address(name))
        ]
        for answer in await self._look_up.many(unknown):
            if isinstance(answer, Exception):
                raise answer

    def _is_to_be_asked(self, name: str) -> bool:
        return self.find(name) is None and self._missed.get(name, 0.0) <= self._monotonic_seconds()

    async def _look_up_together(self, names: list[tuple[str, Pubkey]]) -> Sequence[None]:
        # Several may ask for one name, and some of that was answered while these waited.
        wanted = {name: address for name, address in names if self._is_to_be_asked(name)}
        if wanted:
            try:
                _, accounts = await self._node.multiple_accounts(list(wanted.values()), "confirmed")
            except RpcError as error:
                # Whether these are mints is not known, as when there is no answer at all.
                raise NodeUnavailable(f"the Solana node does not tell of mints: {error}") from error
            again = self._monotonic_seconds() + MISS_SECONDS
            for name, account in zip(wanted, accounts, strict=True):
                if (token := _token(name, account)) is not None:
                    self._learned[name] = token
                    self._missed.pop(name, None)
                else:
                    self._missed[name] = again
                    self._missed.move_to_end(name)
            for kept in (self._learned, self._missed):
                while len(kept) > self._most_kept:
                    kept.popitem(last=False)
        return [None] * len(names)


def _token(name: str, account: Account | None) -> Token | None:
    """Return the token of a mint's account; None for any other."""
    if account is None or account.owner != str(TOKEN_PROGRAM):
        return None
    data = account.data
    # The program tells its accounts apart by their size alone: longer ones are balances.
    if len(data) != MINT.size:
        return None
    try:
        mint = MINT.decode(data)
    except WireError:
        return None
    return token_of_mint(name, mint.decimals) if mint.is_initialized else None


def _address(name: str) -> Pubkey | None:
    if not _SHORTEST <= len(name) <= _LONGEST:
        return None
    try:
        return Pubkey.from_string(name)
    except ValueError:
        return None
