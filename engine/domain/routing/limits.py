"""What a route may be like."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.domain.frozen import frozen
from engine.domain.routing.offer import PoolOffer
from engine.domain.tokens import Token

Fits = Callable[[Sequence[PoolOffer], Token | None], bool]
"""Whether one transaction holds legs through these pools; of two hops, with the token between them."""


def _always(legs: Sequence[PoolOffer], middle_token: Token | None) -> bool:
    return True


@frozen
class Limits:
    """How many legs there may be, and what each but the first has to gain."""

    max_legs: int = 3
    lamport_price: float = 0.0
    """Base units of output (SELL) or of input (BUY) that a lamport is worth; 0 where nobody knows."""
    fits: Fits = _always
