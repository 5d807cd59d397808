"""When prices and balances were read, and for how long they may be traded on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from engine.domain.errors import NodeUnavailable
from engine.domain.pools.pool import Clock
from engine.solana.transactions import Blockhash

STALE_SECONDS: Final = 5.0
"""Older than this, prices and balances are not traded on."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When the accounts in memory were read."""

    slot: int
    clock: Clock
    blockhash: Blockhash
    monotonic_seconds: float


class Now:
    """The latest moment, as long as it is fresh."""

    def __init__(self, monotonic_seconds: Callable[[], float]) -> None:
        self.monotonic_seconds: Final = monotonic_seconds
        self._moment: Moment | None = None

    def set(self, moment: Moment) -> None:
        self._moment = moment

    @property
    def is_fresh(self) -> bool:
        return self.age <= STALE_SECONDS

    @property
    def age(self) -> float:
        """In seconds; infinite before anything was read."""
        moment = self._moment
        return inf if moment is None else self.monotonic_seconds() - moment.monotonic_seconds

    def get(self) -> Moment:
        """Return the latest moment. Raises NodeUnavailable when it is too old, or there is none."""
        moment = self._moment
        if moment is None:
            raise NodeUnavailable("the Solana node has not told any prices yet")
        age = self.monotonic_seconds() - moment.monotonic_seconds
        if age > STALE_SECONDS:
            raise NodeUnavailable(f"the Solana node has told no prices for {age:.0f} s")
        return moment
