"""Order ids: UUIDv7 (RFC 9562), so that newer orders sort later and index pages stay hot.

48 bits  unix time in milliseconds
 4 bits  version, 7
12 bits  random
 2 bits  variant, 0b10
52 bits  random
10 bits  0: room for which database holds the order, if there ever are several
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

_ZERO_BITS: Final = 10


def make_order_id(unix_ms: int, entropy: int) -> UUID:
    """Return the id of an order accepted at `unix_ms`; `entropy` is at least 64 random bits."""
    value = (unix_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76
    value |= (entropy & 0xFFF) << 64
    value |= 0b10 << 62
    value |= (entropy >> 12 & (1 << 52) - 1) << _ZERO_BITS
    return UUID(int=value)
