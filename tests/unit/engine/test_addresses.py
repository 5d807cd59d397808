"""A host with its port, and a socket that listens there, of either IP version."""

from __future__ import annotations

import socket

import pytest

from engine.addresses import listen, with_port
from tests.ipv6 import needs_ipv6


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1", "127.0.0.1:3000"),
        ("orders.example.com", "orders.example.com:3000"),
        ("::1", "[::1]:3000"),
        ("[::1]", "[::1]:3000"),
    ],
)
def test_an_ipv6_address_is_in_brackets_before_a_port(host: str, text: str) -> None:
    assert with_port(host, 3000) == text


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        pytest.param("::1", ["::1"], marks=needs_ipv6),
        pytest.param("::", ["::1", "127.0.0.1"], marks=needs_ipv6),
    ],
)
def test_a_socket_is_reached_at_the_hosts_addresses(host: str, reached_at: list[str]) -> None:
    with listen(host, 0) as listener:
        for address in reached_at:
            socket.create_connection((address, listener.getsockname()[1]), timeout=5).close()
