"""What the pools of a pair offer at one moment, and the ways through a middle token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.domain.pools.pool import Clock
from engine.domain.routing import Detour, PoolOffer
from engine.domain.tokens import Token
from engine.market.listing import Listing


class Offers:
    """What the pools of a pair offer at this moment: worked out when first asked for, then known."""

    def __init__(
        self,
        by_pair: Mapping[tuple[str, str], Sequence[tuple[Listing, bool]]],
        middle_tokens: Sequence[Token],
        offer_of: Callable[[Listing, bool], PoolOffer | None],
    ) -> None:
        """`offer_of` tells what a pool offers one way (True: its token a is the input), if anything."""
        self._by_pair = by_pair
        self._middle_tokens = middle_tokens
        self._offer_of = offer_of
        self._offers: dict[tuple[str, str], list[PoolOffer]] = {}
        self._detours: dict[tuple[str, str], list[Detour]] = {}

    def of(self, input_mint: str, output_mint: str) -> list[PoolOffer]:
        pair = (input_mint, output_mint)
        offers = self._offers.get(pair)
        if offers is None:
            offers = self._offers[pair] = [
                offer
                for listing, a_to_b in self._by_pair.get(pair, ())
                if (offer := self._offer_of(listing, a_to_b)) is not None
            ]
        return offers

    def detours(self, input_mint: str, output_mint: str, clock: Clock) -> list[Detour]:
        """Return the ways through a middle token. Until they are forgotten, `clock` is always the same."""
        pair = (input_mint, output_mint)
        detours = self._detours.get(pair)
        if detours is None:
            detours = self._detours[pair] = [
                Detour(token, first, second, clock)
                for token in self._middle_tokens
                if token.mint not in pair
                and (first := self.of(input_mint, token.mint))
                and (second := self.of(token.mint, output_mint))
            ]
        return detours

    def forget(self, one_mint: str, other_mint: str) -> None:
        """Forget what this pair's pools offer in either direction, and detours with a hop through them."""
        pools = {one_mint, other_mint}
        self._offers.pop((one_mint, other_mint), None)
        self._offers.pop((other_mint, one_mint), None)
        # A hop is from a token of the order's to one that is neither.
        for pair in [pair for pair in self._detours if len(pools.intersection(pair)) == 1]:
            del self._detours[pair]

    def clear(self) -> None:
        self._offers.clear()
        self._detours.clear()
