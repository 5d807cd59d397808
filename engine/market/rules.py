"""What a route may be like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from engine.domain.tokens import SOL, USDC, Token, find_token
from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class RouteRules:
    """What a route may be like."""

    max_legs: int = 3
    """Swaps an order may be split into, as far as one transaction holds them."""
    leg_lamports: int = 100_000
    """What each further swap must gain beside its fees."""
    priority_fee_micro_lamports: int = 0
    """Per compute unit."""
    middle_tokens: tuple[Token, ...] = (SOL, USDC)
    """Where two hops may meet."""

    @classmethod
    def of(cls, settings: Settings) -> RouteRules:
        return cls(
            settings.max_route_legs,
            settings.leg_lamports,
            settings.priority_fee_micro_lamports,
            tuple(token for name in settings.middle_tokens.split(",") if (token := find_token(name.strip()))),
        )


DEFAULT_RULES: Final = RouteRules()
