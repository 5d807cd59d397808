"""When to try again: exponential backoff with full jitter.

Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    max_attempts: int = 3
    base_seconds: float = 0.5
    cap_seconds: float = 10.0

    def delay_seconds(self, attempt: int, random: float) -> float:
        """Return how long to wait after `attempt` (from 1) did not succeed; `random` is in [0, 1)."""
        # The exponent is bounded because 2.0**1024 overflows.
        return random * min(self.cap_seconds, self.base_seconds * 2.0 ** min(attempt - 1, 60))
