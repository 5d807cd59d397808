"""A pool, as it is and as it will be after the swaps that are under way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from solders.pubkey import Pubkey

from engine.domain.pools.pool import Clock, Pool, SwapError
from engine.domain.routing import PoolOffer
from engine.venues.venue import PoolKeys, Venue

logger = logging.getLogger(__name__)

_MATTERS_PPM: Final = 300
_MATTERS_COUNT: Final = 4
"""By how much swaps under way move a pool's price, or how many they are, before the next order is priced on
that. It is a small part of the slippage that orders allow."""


class SwapUnderWay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A swap that is decided and not yet in what is read of its pool."""

    pool: str
    """Its address."""
    a_to_b: bool
    """Whether it takes the pool's first token."""
    input_amount: int
    """Base units."""
    price_impact_ppm: int


class Listing:
    """A pool: what never changes of it and, while it is traded, how it is now."""

    __slots__ = (
        "_further",
        "_further_count",
        "_further_ppm",
        "accounts",
        "address",
        "expected",
        "is_known",
        "keys",
        "leg_lamports",
        "mints",
        "offers",
        "reads_vaults",
        "venue",
    )

    def __init__(self, venue: Venue[Any], keys: PoolKeys, leg_lamports: int, *, reads_vaults: bool) -> None:
        self.venue = venue
        self.keys = keys
        self.leg_lamports = leg_lamports
        self.reads_vaults = reads_vaults
        """Whether somebody asks what it holds."""
        self.address = str(keys.pool)
        self.mints = (str(keys.mint_a), str(keys.mint_b))
        self.accounts: tuple[Pubkey, ...] = ()
        """What is read of it; changes where the price decides which tick or bin arrays are next."""
        self.is_known = True
        """Whether these are what it takes to quote it; False while what was read last does not say."""
        self.offers: tuple[PoolOffer, PoolOffer] | None = None
        """b to a, and a to b; None while the pool cannot be read."""
        self.expected: tuple[PoolOffer, PoolOffer] | None = None
        """The same after the swaps that are under way; None: there are none."""
        self._further: list[int]
        """Input amounts of swaps under way that are not in `expected` yet: b to a, and a to b."""
        self._further_count: int
        self._further_ppm: int
        """By how many millionths they move the price."""
        self._clear_further()

    def offer(self, a_to_b: bool) -> PoolOffer | None:
        """Return what is there; None while the pool cannot be read."""
        return None if self.offers is None else self.offers[a_to_b]

    def expected_offer(self, a_to_b: bool) -> PoolOffer | None:
        """Return what an order has to reckon with: what is there, or less after the swaps under way.

        Never more: they may come later than the order, or not at all, and then it would be reverted.
        """
        if self.offers is None or self.expected is None:
            return self.offer(a_to_b)
        offer, expected = self.offers[a_to_b], self.expected[a_to_b]
        (output, price), (expected_output, expected_price) = offer.price(), expected.price()
        return expected if expected_output * price <= output * expected_price else offer

    def vault_of(self, mint: str) -> Pubkey:
        """Return where it holds one of its tokens."""
        return self.keys.vault_a if mint == self.mints[0] else self.keys.vault_b

    def wanted(self, known: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        """Return what is to be read of it, by what is known of it."""
        try:
            accounts = self.venue.quote_accounts(self.keys, known)
        except Exception as error:
            self.is_known = False
            self._fail(error)
            return self.accounts or (self.keys.pool,)
        self.is_known = True
        if not self.reads_vaults:
            return accounts
        return tuple(dict.fromkeys((*accounts, self.keys.vault_a, self.keys.vault_b)))

    def read(self, accounts: Mapping[Pubkey, bytes]) -> None:
        """Take over the pool's accounts as they are now."""
        if not self.is_known:
            return
        try:
            self.offers = self._offers_of(self.venue.pool(self.keys, accounts))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Offer nothing until it can be read again: one pool, whatever is in it, is not to stop the others.

        It was closed, or changed by a newer program into something we do not know.
        """
        logger.warning("pool %s of %s cannot be read: %r", self.address, self.venue.kind, error)
        self.offers = None

    def add_expected(self, swap: SwapUnderWay) -> None:
        """Note a swap that is under way."""
        self._further[swap.a_to_b] += swap.input_amount
        self._further_count += 1
        self._further_ppm += swap.price_impact_ppm

    def reckon_expected(self, clock: Clock) -> bool:
        """Take the swaps that were noted as done, if together they matter; say whether they do.

        A pool that is another with each order has its curve reckoned anew for each, which costs more than
        the order's own quotes.
        """
        if self._further_ppm < _MATTERS_PPM and self._further_count < _MATTERS_COUNT:
            return False
        # Together, one swap each way: each by itself would be exact only if they landed in this order.
        for a_to_b, amount in enumerate(self._further):
            offers = self.expected or self.offers
            # What is more than it takes reverts, and changes nothing.
            if amount and offers is not None:
                with suppress(SwapError):
                    swap = offers[a_to_b].pool.swap_exact_in(bool(a_to_b), amount, clock)
                    self.expected = self._offers_of(swap.pool)
        self._clear_further()
        return True

    def expect_nothing(self) -> None:
        self.expected = None
        self._clear_further()

    def _clear_further(self) -> None:
        self._further = [0, 0]
        self._further_count = self._further_ppm = 0

    def _offers_of(self, pool: Pool) -> tuple[PoolOffer, PoolOffer]:
        name, kind, address = self.venue.name, self.venue.kind, self.address
        return (
            PoolOffer(name, kind, address, False, pool, self.leg_lamports),
            PoolOffer(name, kind, address, True, pool, self.leg_lamports),
        )
