"""Execute now, at the best price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class MarketOrder:
    name: ClassVar[str] = "market"
