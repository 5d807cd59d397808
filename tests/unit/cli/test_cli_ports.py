"""Where `order-engine up` is to listen, checked before anything starts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cli import up
from cli.up import _with_ports
from engine.process import StartupError
from engine.settings import Settings
from tests.ipv6 import needs_ipv6

PORTS = ("port", "grpc_port", "server_metrics_port", "workers_metrics_port", "simnet_port")


def given(host: str) -> Settings:
    return Settings(host=host)


def chosen(host: str) -> Settings:
    ports: dict[str, Any] = dict.fromkeys(PORTS, 0)
    return replace(Settings(host=host), **ports)


# A name nobody has, what cannot be a name, addresses of others (192.0.2.1: RFC 5737; 2001:db8::1: RFC 3849).
@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "8.8.8.8", "192.0.2.1", "2001:db8::1", "[::1]"])
@pytest.mark.parametrize("make", [given, chosen])
def test_a_host_that_is_not_of_this_machine_is_refused_by_name(
    host: str, make: Callable[[str], Settings]
) -> None:
    with pytest.raises(StartupError) as refused:
        _with_ports(make(host))
    said = f'HOST was "{host}"; must be an address of this machine, as 127.0.0.1 or ::1, or the name of one'
    assert str(refused.value) == said


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0.0.0.0", "localhost", *(pytest.param(host, marks=needs_ipv6) for host in ("::1", "::"))],
)
def test_a_host_of_this_machine_will_do(host: str) -> None:
    settings = _with_ports(chosen(host))
    assert all(getattr(settings, name) > 0 for name in PORTS)


def test_a_port_that_something_listens_on_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_PORT_PATIENCE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StartupError, match=f"^port {port} is in use; stop what listens there, or set an"):
            _with_ports(Settings(port=port))


def test_a_port_that_cannot_be_had_for_another_reason_is_not_called_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(address: tuple[str, int], **_options: Any) -> socket.socket:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(StartupError, match=r"^port 3000 cannot be used: No buffer space available$"):
        _with_ports(Settings())


ANY = Settings(port=0, grpc_port=0, server_metrics_port=0, workers_metrics_port=0, simnet_port=0)
"""Free ports, whichever an engine that runs here has."""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            replace(ANY, port=65535, gateway_processes=2),
            "PORT was 65535; must be at most 65534, for it takes 2",
        ),
        (replace(ANY, simnet_port=65535), "SIMNET_PORT was 65535; must be at most 65534, for it takes 2"),
        (
            replace(ANY, workers_metrics_port=65500, worker_processes=64),
            "WORKERS_METRICS_PORT was 65500; must be at most 65472, for it takes 64",
        ),
    ],
)
def test_ports_that_there_are_not_are_refused(settings: Settings, said: str) -> None:
    with pytest.raises(StartupError, match=f"^{said} ports$"):
        _with_ports(settings)
