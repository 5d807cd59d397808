"""Order ids: UUIDv7 (RFC 9562), so that newer orders sort later and index pages stay hot.

48 bits  unix time in milliseconds
 4 bits  version, 7
12 bits  random
 2 bits  variant, 0b10
52 bits  random
10 bits  shard: which database holds the order; 0 until there is more than one
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

SHARD_BITS: Final = 10


def make_order_id(unix_ms: int, entropy: int, shard: int = 0) -> UUID:
    """Return the id of an order accepted at `unix_ms`; `entropy` is at least 64 random bits.

    Raises ValueError if `shard` does not fit its 10 bits.
    """
    if not 0 <= shard < 1 << SHARD_BITS:
        raise ValueError(f"shard was {shard}; must be between 0 and {(1 << SHARD_BITS) - 1}")
    value = (unix_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76
    value |= (entropy & 0xFFF) << 64
    value |= 0b10 << 62
    value |= (entropy >> 12 & (1 << 52) - 1) << SHARD_BITS
    value |= shard
    return UUID(int=value)


def shard_of(order_id: UUID) -> int:
    """Return which database holds the order."""
    return order_id.int & (1 << SHARD_BITS) - 1
