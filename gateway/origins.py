"""Which pages may use the gateway: asked of each POST and each WebSocket, by one rule.

Browsers let any page send a POST or open a WebSocket, and name the page's origin with it; other programs
name none. Reads need no rule: browsers keep their answers from pages of other sites.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from client.convert import shown
from gateway.problems import HttpRefusal

EXPOSED_HEADERS: Final = ("Idempotent-Replayed", "Location", "Retry-After")
"""What pages of other sites may read of an answer, besides its body."""

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""


class Origins:
    def __init__(self, allowed: Collection[str], host: str) -> None:
        """`allowed`: "https://desk.example.com", besides the gateway's own. `host`: what it is bound to."""
        self.allowed = frozenset(allowed)
        self._encoded = frozenset(origin.encode() for origin in self.allowed)
        self._names = {"localhost", host.lower(), *(urlsplit(origin).hostname for origin in self.allowed)}

    def refusal(self, headers: Headers) -> HttpRefusal | None:
        """Return why the page that sent these headers may not use the gateway, None if it may."""
        host = b""
        origins = []
        for name, value in headers:
            if name == b"origin":
                origins.append(value.decode("latin-1"))
            elif name == b"host":
                host = value
        for origin in origins:
            if origin not in self.allowed and not self._is_own(origin, host.decode("latin-1")):
                return HttpRefusal(
                    "ORIGIN_NOT_ALLOWED",
                    f'pages of "{shown(origin)}" may not use this gateway; see its ALLOWED_ORIGINS',
                )
        return None

    def readable_by(self, headers: Headers) -> Headers:
        """Return what lets the page that sent these headers, if it is of another site, read the answer."""
        if not self._encoded:
            return ()
        origin = dict(headers).get(b"origin")
        if origin not in self._encoded:
            return ()
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode()),
            (b"vary", b"Origin"),
        )

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or parts.netloc != host:
            return False
        # Not enough: whoever owns a name can have it lead here, and its pages then seem to be the gateway's.
        name = parts.hostname or ""
        return bool(name) and (name in self._names or name.endswith(".localhost") or _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
