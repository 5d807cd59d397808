"""One pool as an order meets it, and what it offers."""

from __future__ import annotations

from dataclasses import field
from typing import Final

from engine.domain.frozen import frozen
from engine.domain.order import Quote, Side
from engine.domain.pools.pool import Clock, Pool, SwapError
from engine.domain.routing.price_curve import PriceCurve

_SELL: Final = Side.SELL


class _Known:
    """What was reckoned before for the same pool; the next moment brings another PoolOffer."""

    __slots__ = ("clock", "curve", "price")

    def __init__(self) -> None:
        self.clock: Clock | None = None
        self.curve: PriceCurve | None = None
        self.price: tuple[int, int] | None = None


@frozen
class PoolOffer:
    """A pool of the order's pair, and which way the order goes through it."""

    venue: str
    """As users read it: "Raydium"."""
    kind: str
    """The venue's program: "raydium_cpmm"."""
    address: str
    """Base58."""
    a_to_b: bool
    """True: the order's input is the pool's token a."""
    pool: Pool
    leg_lamports: int = 0
    """What a leg through it costs beyond its swap: what it adds to the transaction's fee and to its risk."""
    _known: _Known = field(init=False, compare=False, repr=False, default_factory=_Known)

    def curve(self, clock: Clock) -> PriceCurve:
        """Return how much it takes down to each price; the same one for as long as the clock stands."""
        known = self._known
        if known.curve is None or (known.clock is not clock and known.clock != clock):
            # As far as fees depend on time, they depend on the clock.
            known.curve, known.clock = PriceCurve(self.pool, self.a_to_b, clock), clock
        return known.curve

    def price(self) -> tuple[int, int]:
        """Return base units of output per base unit of input, before fees: numerator and denominator."""
        known = self._known
        if known.price is None:
            known.price = self.pool.price(self.a_to_b)
        return known.price


def quote(offer: PoolOffer, side: Side, amount: int, clock: Clock) -> Quote:
    """Return what a pool offers for an amount of input (SELL) or output (BUY), or its refusal."""
    try:
        if side is _SELL:
            swap = offer.pool.quote_exact_in(offer.a_to_b, amount, clock)
        else:
            swap = offer.pool.quote_exact_out(offer.a_to_b, amount, clock)
    except SwapError as error:
        return Quote(offer.venue, offer.kind, offer.address, refusal=str(error))
    input_amount, output_amount, fee_amount, fee_side, fee_ppm, price_impact_ppm = swap
    if output_amount == 0:
        return Quote(offer.venue, offer.kind, offer.address, refusal="gives nothing for so little")
    return Quote(
        offer.venue,
        offer.kind,
        offer.address,
        input_amount,
        output_amount,
        fee_ppm,
        price_impact_ppm,
        None,
        fee_amount,
        fee_side,
    )
