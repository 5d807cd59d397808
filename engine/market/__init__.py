"""What the engine knows of the market, and how it comes to know it.

`market` is what others ask: prices, balances, an order's route. Behind it, `discovery` finds the pools of
the tokens that are followed, `pools` tells which of them are traded, `accounts` keeps what was last read,
`listing` one pool, `offers` what a pair's pools offer, and `under_way` the swaps they have to reckon with.
`route_instructions` builds a route, and `chain_errors` explains why one failed.
"""

from engine.market.chain_errors import explain_error
from engine.market.listing import SwapUnderWay
from engine.market.market import Market
from engine.market.rules import RouteRules

__all__ = ["Market", "RouteRules", "SwapUnderWay", "explain_error"]
