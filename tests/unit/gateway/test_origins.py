"""Which pages may use the gateway: its own and those that were named, by whatever name it is reached."""

from __future__ import annotations

import pytest

from gateway.origins import Origins

ORIGINS = Origins(["https://desk.example.com"], "Engine.internal")


def refused(*headers: tuple[str, str]) -> bool:
    return ORIGINS.refusal([(name.encode(), value.encode()) for name, value in headers]) is not None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:3000", "127.0.0.1:3000"),
        ("http://192.168.1.7:3000", "192.168.1.7:3000"),
        ("http://[::1]:3000", "[::1]:3000"),
        ("http://localhost:3000", "localhost:3000"),
        ("http://desk.localhost", "desk.localhost"),
        # HOST is this name.
        ("http://engine.internal:3000", "engine.internal:3000"),
        # Named, whether or not a proxy keeps Host; and by its name, on another port.
        ("https://desk.example.com", "desk.example.com"),
        ("https://desk.example.com", "127.0.0.1:3000"),
        ("http://desk.example.com:3000", "desk.example.com:3000"),
    ],
)
def test_its_own_pages_and_named_ones_may(origin: str, host: str) -> None:
    assert not refused(("host", host), ("origin", origin))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example.com", "127.0.0.1:3000"),
        ("http://127.0.0.1:3001", "127.0.0.1:3000"),
        ("http://desk.example.com:3000", "127.0.0.1:3000"),
        ("http://127.0.0.1:3000.evil.example.com", "127.0.0.1:3000"),
        # A name of somebody else that leads to this gateway.
        ("http://rebind.example:3000", "rebind.example:3000"),
        ("http://localhost.rebind.example", "localhost.rebind.example"),
        ("http://notlocalhost", "notlocalhost"),
        ("http://2130706433", "2130706433"),
        ("http://", ""),
        ("ftp://localhost", "localhost"),
        ("null", "localhost"),
        ("", "localhost"),
        ("http://[", "["),
    ],
)
def test_no_other_page_may(origin: str, host: str) -> None:
    assert refused(("host", host), ("origin", origin))


def test_programs_name_no_origin_and_may_use_any_name() -> None:
    assert not refused(("host", "rebind.example:3000"))
    assert not refused()


def test_each_of_several_origins_must_be_allowed() -> None:
    good, bad = ("origin", "https://desk.example.com"), ("origin", "https://evil.example.com")
    assert not refused(good, good)
    assert refused(good, bad)
    assert refused(bad, good)


def test_a_gateway_bound_to_no_name_has_none() -> None:
    assert Origins([], "").refusal([(b"host", b""), (b"origin", b"http://")]) is not None
