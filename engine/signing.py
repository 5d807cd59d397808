"""Messages between our processes over Redis, signed: whoever can write to Redis can make none up.

The key is in the database, where those who may write could as well write orders.
"""

from __future__ import annotations

import hmac
from typing import Final

_SIGNATURE_BYTES: Final = 32


def sign(body: bytes, key: bytes) -> bytes:
    """Return the message that carries the body: HMAC-SHA256 (RFC 2104) of it, and the body."""
    return hmac.digest(key, body, "sha256") + body


def verified(message: bytes, key: bytes) -> bytes:
    """Return the body of a message. Raises ValueError where `sign` did not make it with this key."""
    signature, body = message[:_SIGNATURE_BYTES], message[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, hmac.digest(key, body, "sha256")):
        raise ValueError("it is not signed by an engine on this database")
    return body
