"""Hosts and ports: how the two are written together, and how a process listens there.

A host is an IPv4 address, an IPv6 address without brackets, or a name.
"""

from __future__ import annotations

import socket
from typing import Final

_BACKLOG: Final = 2048


def with_port(host: str, port: int | str) -> str:
    """Return host:port, as gRPC, URLs and people read it: an IPv6 address is in brackets there."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def family_of(host: str) -> socket.AddressFamily:
    """Return IPv4 where the host has such an address, else IPv6. Raises OSError or UnicodeError: no host."""
    families = {family for family, *_ in socket.getaddrinfo(host or None, 0)}
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; port 0 is any. Raises OSError or UnicodeError.

    "::" is all interfaces, IPv4's too where the system can, as gRPC has it.
    """
    return socket.create_server(
        (host, port),
        family=family_of(host),
        backlog=_BACKLOG,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
