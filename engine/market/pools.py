"""Which pools are traded: of each pair those that hold the most."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Final

from solders.pubkey import Pubkey

from engine.domain.errors import NoRoute
from engine.market.accounts import Accounts
from engine.market.listing import Listing

MOST_POOLS: Final = 32
"""That are traded of a pair. Anybody can open any number, and those that are traded are read with every slot
and quoted for every order."""

Pair = tuple[str, str]
"""Two mints, of the input and of the output."""


class Pools:
    """Every pool we know of, and those of them that are traded."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._known: dict[str, Listing] = {}
        self._traded: dict[str, Listing] = {}
        self._by_pair: dict[Pair, list[tuple[Listing, bool]]] = {}
        """Those that are traded, and whether the input is their token a."""
        self._of_mints: dict[Pair, dict[Listing, None]] = {}
        """All, by their own tokens, sorted."""

    def __contains__(self, address: str) -> bool:
        return address in self._known

    @property
    def traded(self) -> Collection[Listing]:
        return self._traded.values()

    @property
    def by_pair(self) -> Mapping[Pair, Sequence[tuple[Listing, bool]]]:
        """Of each pair the pools that are traded, and whether the input is their token a."""
        return self._by_pair

    def find(self, address: str) -> Listing | None:
        """Return the pool, if it is traded."""
        return self._traded.get(address)

    def get(self, address: str) -> Listing:
        """Return the pool. Raises NoRoute where it is not traded any more."""
        listing = self._traded.get(address)
        if listing is None:
            raise NoRoute(f"pool {address} is not traded any more")
        return listing

    def crowded(self, mints: Set[str] | None) -> list[list[Listing]]:
        """Return the pools of each pair that has more than are traded; with `mints`, only of theirs."""
        return [
            list(pools)
            for pair, pools in self._of_mints.items()
            if len(pools) > MOST_POOLS and (mints is None or not mints.isdisjoint(pair))
        ]

    def add(self, listing: Listing, data: bytes) -> None:
        """Know a pool whose account holds `data`; trade it if its pair has room."""
        self._known[listing.address] = listing
        self._of_mints.setdefault(_sorted(listing.mints), {})[listing] = None
        if len(self._by_pair.get(listing.mints, ())) < MOST_POOLS:
            self._trade(listing, data)

    def trade_best(self, ranked: Sequence[Listing]) -> bool:
        """Of a pair's pools, best first, trade so many; say whether they are others than before.

        Some may have been forgotten since they were asked for.
        """
        known = [listing for listing in ranked if self._known.get(listing.address) is listing]
        left = [listing for listing in known[MOST_POOLS:] if listing.address in self._traded]
        new = [listing for listing in known[:MOST_POOLS] if listing.address not in self._traded]
        for listing in left:
            self._leave(listing)
        for listing in new:
            self._trade(listing)
        return bool(left or new)

    def remove(self, mints: Collection[Pubkey]) -> None:
        """Forget all pools of these tokens."""
        for listing in list(self._known.values()):
            if listing.keys.mint_a in mints or listing.keys.mint_b in mints:
                del self._known[listing.address]
                self._of_mints.pop(_sorted(listing.mints), None)
                if listing.address in self._traded:
                    self._leave(listing)

    def _trade(self, listing: Listing, data: bytes | None = None) -> None:
        self._traded[listing.address] = listing
        for pair, a_to_b in _ways(listing):
            self._by_pair.setdefault(pair, []).append((listing, a_to_b))
        self._accounts.add_pool(listing, data)

    def _leave(self, listing: Listing) -> None:
        del self._traded[listing.address]
        for pair, a_to_b in _ways(listing):
            self._by_pair[pair].remove((listing, a_to_b))
            if not self._by_pair[pair]:
                del self._by_pair[pair]
        self._accounts.remove_pool(listing)


def _ways(listing: Listing) -> tuple[tuple[Pair, bool], tuple[Pair, bool]]:
    mint_a, mint_b = listing.mints
    return ((mint_a, mint_b), True), ((mint_b, mint_a), False)


def _sorted(mints: Pair) -> Pair:
    one, other = mints
    return (one, other) if one < other else (other, one)
