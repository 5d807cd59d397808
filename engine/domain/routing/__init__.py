"""Which pools fill an order, and why. Pure: pools come in as they were at one slot.

    offer.py        one pool, and what it offers for an amount
    price_curve.py  how much it takes down to each price
    sweep.py        the best split of an amount over such curves, and the bound that proves it
    limits.py       what a transaction can hold, and what a leg costs
    split.py        few pools that share an order out, in whole base units
    two_hops.py     by way of another token
    route.py        legs with their thresholds, and what they come to
    choice.py       the choice between all of these
    bound.py        the best price there can be, for orders that wait for one

Amounts are what the pools' exact curves say. Floating point decides where to look and never what a route
promises; and it says how far from the best a route can be at most, to a part in 10**12.

Files name Side.SELL once for themselves, as pools do with other enums: looked up in its class it takes
0.1 us, in Python 3.11, and a small order asks for it 23 times.
"""

from engine.domain.routing.bound import REACH, price_bound
from engine.domain.routing.choice import decide
from engine.domain.routing.limits import Limits
from engine.domain.routing.offer import PoolOffer, quote
from engine.domain.routing.route import threshold
from engine.domain.routing.two_hops import Detour

__all__ = ["REACH", "Detour", "Limits", "PoolOffer", "decide", "price_bound", "quote", "threshold"]
