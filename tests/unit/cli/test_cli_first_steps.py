"""What `order-engine up` says to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.up import _first_steps
from engine.settings import Settings


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder without a .env, and no variables of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("GRPC_HOST", "GRPC_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_the_first_order_needs_no_address_where_the_server_is_where_it_is_looked_for(tmp_path: Path) -> None:
    said = _first_steps(Settings(), tmp_path)
    assert "submit sell 1.5 SOL USDC --watch\n" in said


def test_the_first_order_names_the_server_that_only_this_commands_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_PORT", "50999")
    said = _first_steps(Settings(grpc_port=50999), tmp_path)
    assert "submit sell 1.5 SOL USDC --watch --server 127.0.0.1:50999\n" in said
    assert "watch <orderId> --server 127.0.0.1:50999\n" in said


def test_the_env_file_is_another_terminals_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GRPC_PORT=50999\n")
    assert "--server" not in _first_steps(Settings(grpc_port=50999), tmp_path)


def test_several_servers_are_named_by_their_first_and_last_port(tmp_path: Path) -> None:
    assert "127.0.0.1:50051 to 50053, orders.v1" in _first_steps(Settings(server_processes=3), tmp_path)
