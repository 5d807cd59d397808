"""What needs IPv6 is passed over where there is none."""

from __future__ import annotations

import socket

import pytest

from engine.addresses import listen


def _is_there() -> bool:
    try:
        with listen("::1", 0):
            return socket.has_dualstack_ipv6()
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _is_there(), reason="this machine has no IPv6")
