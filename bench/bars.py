"""What the engine is to reach: a limit for a figure, and whether what was measured keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final


@dataclass(frozen=True, slots=True)
class Bar:
    limit: float
    at_least: bool = False
    """Else at most."""

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


EVERY_EVENT: Final = Bar(100.0, at_least=True)
"""Percent of the watchers that saw every event of their order, once and in order."""

RATIOS: Final[Mapping[tuple[str, str], Bar]] = {
    ("burst", "confirmed/s"): Bar(3.0, at_least=True),
    ("burst", "CPU-ms an order"): Bar(0.4),
    ("closed", "confirmed/s"): Bar(2.5, at_least=True),
    ("closed", "CPU-ms an order"): Bar(0.4),
    ("rate", "confirm p50 ms above the network"): Bar(1.0),
    ("rate", "confirm p99 ms above the network"): Bar(1.0),
    ("rate", "accept p50 ms"): Bar(1.0),
    ("rate", "accept p99 ms"): Bar(1.0),
    ("grpc", "confirmed/s"): Bar(4.0, at_least=True),
}
"""Side by side with another server: by mode and figure, the ratio of the first server to the other."""

WATCHER_KIB: Final = Bar(30.0)
IDLE_PERCENT: Final = Bar(3.0)
FAN_OUT_MS: Final = Bar(100.0)
STORED_RATIO: Final = Bar(1.1)
SCALE_RATIO: Final = Bar(0.95, at_least=True)
GROWTH_PERCENT: Final = Bar(5.0)
TICK_RATIO: Final = Bar(2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One figure that was measured, with its bar."""

    scenario: str
    figure: str
    value: float
    least: float
    most: float
    """What was measured least and most, where `value` is the median of several."""
    bar: Bar | None = None
    """None: for information."""
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """None where there is no bar."""
        return None if self.bar is None else self.bar.holds(self.value)


def finding(
    scenario: str, figure: str, values: Sequence[float], bar: Bar | None = None, note: str = ""
) -> Finding:
    """Return the median of `values`, of which there is at least one, as a finding."""
    return Finding(
        scenario=scenario,
        figure=figure,
        value=median(values),
        least=min(values),
        most=max(values),
        bar=bar,
        note=note,
    )
