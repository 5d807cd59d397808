"""Swaps that are under way, here or in other workers, count as done when the next order is priced.

Else all orders of a moment would go for the one pool that is best, each as if it were alone, and have each
other reverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final
from uuid import UUID

from engine.domain.order import OrderSpec, Route
from engine.market.listing import Listing, SwapUnderWay
from engine.market.moment import Moment, Now
from engine.market.offers import Offers
from engine.market.pools import Pools
from engine.solana.rpc import NodeClient

_LANDING_SLOTS: Final = 2
"""What was sent is taken to have landed, or never to, in what the pools are so many slots later."""


@dataclass(slots=True)
class _Order:
    """The swaps of an order that is under way."""

    swaps: Sequence[tuple[Listing, SwapUnderWay]]
    end_time: float
    """When to forget them, by the monotonic clock, if nobody says before that they have landed."""
    landed_slot: int | None = None
    """From which slot on they are in what the pools are, or never will be; None: they are not sent yet."""


class SwapsUnderWay:
    """The swaps of orders that are under way, which count as done."""

    def __init__(self, node: NodeClient, pools: Pools, offers: Offers, now: Now) -> None:
        """`offers` are those that the swaps change."""
        self._node = node
        self._pools = pools
        self._offers = offers
        self._now = now
        self._by_order: dict[UUID, _Order] = {}
        self._listings: set[Listing] = set()
        """Through which they go."""

    def __contains__(self, order_id: UUID) -> bool:
        return order_id in self._by_order

    def __len__(self) -> int:
        return len(self._by_order)

    def add(self, order_id: UUID, spec: OrderSpec, route: Route) -> Sequence[SwapUnderWay]:
        """Take the order's swaps as done from now on, and return them.

        Raises NodeUnavailable on prices too old.
        """
        swaps = []
        for at, leg in enumerate(route.legs):
            takes, _ = route.tokens_of_leg(at, spec.input_token, spec.output_token)
            listing = self._pools.find(leg.pool)
            if listing is not None:  # else it is not traded any more
                a_to_b = listing.mints[0] == takes.mint
                swaps.append(SwapUnderWay(leg.pool, a_to_b, leg.input_amount, leg.price_impact_ppm))
        self.add_swaps([(order_id, swaps)])
        return swaps

    def add_swaps(
        self, orders: Sequence[tuple[UUID, Sequence[SwapUnderWay]]], *, seconds: float = inf
    ) -> None:
        """Take these orders' swaps as done from now on, and for so long at most.

        Those of pools that are not traded here do not matter. Raises NodeUnavailable on prices too old.
        """
        clock = self._now.get().clock
        end_time = self._now.monotonic_seconds() + seconds
        changed: dict[Listing, None] = {}
        for order_id, swaps in orders:
            known = [
                (listing, swap) for swap in swaps if (listing := self._pools.find(swap.pool)) is not None
            ]
            for listing, swap in known:
                listing.add_expected(swap)
                changed[listing] = None
            self._by_order[order_id] = _Order(known, end_time)
        self._listings.update(changed)
        for listing in changed:
            if listing.reckon_expected(clock):
                self._offers.forget(*listing.mints)

    def sent(self, order_id: UUID) -> int | None:
        """The order's transaction was handed to the node: its swaps are soon in what is read of the pools.

        Return from which slot on; None: it has none under way.
        """
        if order_id not in self._by_order:
            return None
        landed_slot = self._node.newest_slot + _LANDING_SLOTS
        self.landed(order_id, landed_slot)
        return landed_slot

    def landed(self, order_id: UUID, slot: int) -> None:
        """From that slot on the order's swaps are in what the pools are, or never will be."""
        order = self._by_order.get(order_id)
        if order is not None:
            order.landed_slot = slot

    def let_go(self, order_id: UUID) -> bool:
        """The order is not under way any more; the next refresh goes by that.

        Return whether it was under way, and not to have landed by some slot.
        """
        order = self._by_order.pop(order_id, None)
        return order is not None and order.landed_slot is None

    def read(self, moment: Moment) -> None:
        """The pools were read anew: take the swaps that are not in what was read as done once more."""
        for listing in self._listings:
            listing.expect_nothing()
        self._offers.clear()
        self._listings.clear()
        for order_id, order in list(self._by_order.items()):
            has_landed = order.landed_slot is not None and order.landed_slot <= moment.slot
            if has_landed or order.end_time <= moment.monotonic_seconds:
                del self._by_order[order_id]
                continue
            for listing, swap in order.swaps:
                listing.add_expected(swap)
                self._listings.add(listing)
        for listing in self._listings:
            listing.reckon_expected(moment.clock)
