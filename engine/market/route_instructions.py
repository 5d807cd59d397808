"""The instructions that fill an order by its route, and whether one transaction holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from solders.pubkey import Pubkey

from engine.domain.order import OrderSpec, Route, Side
from engine.domain.routing import PoolOffer
from engine.domain.tokens import Token
from engine.market.pools import Pools
from engine.solana.instructions import Instruction
from engine.solana.programs import associated_token_account
from engine.solana.transactions import Footprint, fits, swap_instructions


class RouteInstructions:
    """Builds routes of the pools that are traded."""

    def __init__(
        self,
        pools: Pools,
        mints: Mapping[str, Pubkey],
        data: Mapping[Pubkey, bytes],
        measured_wallet: Pubkey,
    ) -> None:
        """`mints` has every token that is followed, `data` what is known of the pools' accounts.

        What a transaction takes is measured as if it were `measured_wallet`'s.
        """
        self._pools = pools
        self._mints = mints
        self._data = data
        self._measured_wallet = measured_wallet
        self._footprints: dict[tuple[str, bool], Footprint] = {}
        self._footprints_around: dict[tuple[Token, ...], Footprint] = {}

    def forget_swaps(self) -> None:
        """Measure swaps anew: which accounts they name goes by the pools' prices."""
        self._footprints.clear()

    def forget(self) -> None:
        """Measure everything anew."""
        self._footprints.clear()
        self._footprints_around.clear()

    def of(self, spec: OrderSpec, route: Route, wallet: Pubkey) -> list[Instruction]:
        """Return the instructions that fill the order by this route, wrapping included.

        Raises NoRoute when a pool of the route is not traded any more.
        """
        sells = spec.side is Side.SELL
        swaps = []
        for at, leg in enumerate(route.legs):
            listing = self._pools.get(leg.pool)
            takes, gives = (
                self._mints[token.mint]
                for token in route.tokens_of_leg(at, spec.input_token, spec.output_token)
            )
            threshold = route.threshold_amount if leg.threshold_amount is None else leg.threshold_amount
            swaps.append(
                listing.venue.swap_instruction(
                    listing.keys,
                    self._data,
                    a_to_b=listing.keys.mint_a == takes,
                    side=spec.side,
                    amount=leg.input_amount if sells else leg.output_amount,
                    threshold_amount=threshold,
                    owner=wallet,
                    input_account=associated_token_account(wallet, takes),
                    output_account=associated_token_account(wallet, gives),
                )
            )
        return swap_instructions(
            wallet,
            self._mints[spec.input_token.mint],
            self._mints[spec.output_token.mint],
            spec.amount if sells else route.threshold_amount,
            *swaps,
            middle_mint=None if route.middle_token is None else self._mints[route.middle_token.mint],
        )

    def compute_units(self, route: Route) -> int:
        """Return what the route's swaps use at most. Raises NoRoute when a pool is not traded any more."""
        return sum(self._pools.get(leg.pool).venue.compute_units for leg in route.legs)

    def fits(
        self,
        input_token: Token,
        output_token: Token,
        legs: Sequence[PoolOffer],
        middle_token: Token | None = None,
    ) -> bool:
        """Return whether one transaction holds legs through these pools."""
        tokens = (
            (input_token, output_token) if middle_token is None else (input_token, middle_token, output_token)
        )
        footprints = [self._footprint_around(tokens)]
        for at, offer in enumerate(legs):
            takes, gives = (input_token, output_token) if middle_token is None else tokens[at : at + 2]
            footprints.append(self._footprint(offer, takes, gives))
        return fits(
            self._measured_wallet,
            footprints,
            sum([self._pools.get(offer.address).venue.compute_units for offer in legs]),
        )

    def _footprint_around(self, tokens: tuple[Token, ...]) -> Footprint:
        footprint = self._footprints_around.get(tokens)
        if footprint is None:
            mints = [self._mints[token.mint] for token in tokens]
            around = swap_instructions(
                self._measured_wallet,
                mints[0],
                mints[-1],
                1,
                middle_mint=mints[1] if len(mints) == 3 else None,
            )
            footprint = self._footprints_around[tokens] = Footprint.of(around)
        return footprint

    def _footprint(self, offer: PoolOffer, takes: Token, gives: Token) -> Footprint:
        key = (offer.address, offer.a_to_b)
        footprint = self._footprints.get(key)
        if footprint is None:
            listing = self._pools.get(offer.address)
            wallet = self._measured_wallet
            swap = listing.venue.swap_instruction(
                listing.keys,
                self._data,
                a_to_b=offer.a_to_b,
                side=Side.SELL,
                amount=1,
                threshold_amount=1,
                owner=wallet,
                input_account=associated_token_account(wallet, self._mints[takes.mint]),
                output_account=associated_token_account(wallet, self._mints[gives.mint]),
            )
            footprint = self._footprints[key] = Footprint.of([swap])
        return footprint
