"""The accounts that prices and balances are read from: which they are, and what they held last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

from solders.pubkey import Pubkey

from engine.market.listing import Listing
from engine.solana.programs import CLOCK_SYSVAR
from engine.solana.rpc import MAX_ACCOUNTS, Account


class Accounts:
    """What a refresh reads: the clock, the wallet's own accounts, and those of every pool that is traded.

    Only what changed is decoded. A pool's accounts are read together, so that they are all of one slot.
    """

    def __init__(self, wallet: Pubkey | None) -> None:
        self.data: Final[dict[Pubkey, bytes]] = {}
        """As they were last read; one that does not exist is not in it."""
        self.wallet_lamports = 0
        self.reads: Sequence[Sequence[Pubkey]] = ()
        """What to read, in groups that one question holds; empty before anything was planned."""
        self._wallet = wallet
        self._own = dict.fromkeys([CLOCK_SYSVAR] if wallet is None else [CLOCK_SYSVAR, wallet])
        self._pools: dict[Listing, None] = {}
        self._readers: dict[Pubkey, list[Listing]] = {}
        """Pools that an account is read for."""
        self._texts: dict[Pubkey, str] = {}
        """The same as `data`, as the node tells it: to compare it takes no decoding."""

    def add(self, account: Pubkey) -> None:
        """Read an account of our own from the next plan on."""
        self._own[account] = None

    def remove(self, account: Pubkey) -> None:
        """Read an account of our own no longer."""
        self._own.pop(account, None)
        self._forget(account)

    def add_pool(self, listing: Listing, data: bytes | None) -> None:
        """Read a pool's accounts from the next plan on; `data` is what the first of them holds, if known."""
        self._pools[listing] = None
        self._read_for(listing, {} if data is None else {listing.keys.pool: data})

    def remove_pool(self, listing: Listing) -> None:
        """Read for a pool no longer; it offers nothing."""
        del self._pools[listing]
        self._read_instead(listing, ())
        listing.offers = None

    def read_more(self, listing: Listing) -> None:
        """A pool wants more than before."""
        self._read_for(listing, self.data)
        self.plan()

    def plan(self) -> None:
        """Share out what to read."""
        reads = [dict.fromkeys(self._own)]
        for listing in self._pools:
            wanted = dict.fromkeys((*reads[-1], *listing.accounts))
            if len(wanted) > MAX_ACCOUNTS:
                wanted = dict.fromkeys(listing.accounts)
                reads.append(wanted)
            reads[-1] = wanted
        self.reads = [list(wanted) for wanted in reads]

    def take(
        self,
        reads: Sequence[Sequence[Pubkey]],
        answers: Iterable[tuple[int, Sequence[Account | None]]],
    ) -> int:
        """Take over the answers to `reads`, which was the plan once; return the oldest slot they are of."""
        # What was forgotten meanwhile would stay, and be taken for read when it is followed again.
        wanted = None if self.reads is reads else set(chain.from_iterable(self.reads))
        changed: dict[Listing, None] = {}
        slots = []
        for group, (slot, accounts) in zip(reads, answers, strict=True):
            slots.append(slot)
            for address, account in zip(group, accounts, strict=True):
                if account is not None and self._texts.get(address) == account.encoded[0]:
                    continue  # most of them
                if wanted is not None and address not in wanted:
                    continue
                # Compared with None, an address takes 3 us.
                if self._wallet is not None and address == self._wallet:
                    self.wallet_lamports = 0 if account is None else account.lamports
                    continue
                # One without data is none: anybody can send lamports to where a pool has no account yet.
                if account is not None and account.encoded[0]:
                    self.data[address] = account.data
                    self._texts[address] = account.data_base64
                elif self._texts.pop(address, None) is not None:
                    del self.data[address]
                else:
                    continue
                changed.update(dict.fromkeys(self._readers.get(address, ())))
        # New arrays are read from the next refresh on, with the rest of their pool: all of one slot.
        moved = [listing for listing in changed if self._read_for(listing, self.data)]
        if moved:
            self.plan()
        for listing in changed:
            listing.read(self.data)
        return min(slots)

    def _read_for(self, listing: Listing, known: Mapping[Pubkey, bytes]) -> bool:
        """Read for a pool what it wants by what is known of it; say whether that is another set than before.

        Arrays that it has no more use for are forgotten: what is not read any more grows old.
        """
        wanted = listing.wanted(known)
        if wanted == listing.accounts:
            return False
        self._read_instead(listing, wanted)
        return True

    def _read_instead(self, listing: Listing, wanted: tuple[Pubkey, ...]) -> None:
        before = listing.accounts
        listing.accounts = wanted
        for account in wanted:
            if account not in before:
                self._readers.setdefault(account, []).append(listing)
        for account in before:
            if account not in wanted:
                readers = self._readers[account]
                readers.remove(listing)
                if not readers:
                    del self._readers[account]
                    self._forget(account)

    def _forget(self, account: Pubkey) -> None:
        self._texts.pop(account, None)
        self.data.pop(account, None)
