"""How long to wait before asking again: exponential, with full jitter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Full jitter, so that the clients of a server that restarts do not all come back at once.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    random: Callable[[], float]
    """Answers a number in [0, 1)."""
    base_seconds: float = 0.05
    cap_seconds: float = 2.0
    failure_count: int = 0

    def next_delay_seconds(self) -> float:
        """Return how long to wait after one more failure."""
        # The exponent is bounded because 2.0**1024 overflows.
        longest = min(self.cap_seconds, self.base_seconds * 2.0 ** min(self.failure_count, 60))
        self.failure_count += 1
        return self.random() * longest

    def reset(self) -> None:
        self.failure_count = 0
