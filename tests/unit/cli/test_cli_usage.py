"""`order-engine`'s help and its refusals, without anything running."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from cli.main import app

COMMANDS = (
    "up", "submit", "watch", "quote", "get", "list", "cancel",
    "server", "workers", "gateway", "simnet", "migrate",
)  # fmt: skip
ORDER_ID = "0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77"
NOBODY = "127.0.0.1:1"  # tcpmux: nothing listens there


def test_without_a_command_it_shows_its_help() -> None:
    said = CliRunner().invoke(app, [])
    assert "Execute swap orders" in said.output
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", said.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    said = CliRunner().invoke(app, [command, "--help"])
    assert said.exit_code == 0
    assert "Usage:" in said.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(command: str) -> None:
    said = CliRunner().invoke(app, [command, "--help"])
    _, _, example = said.output.partition("Example")
    assert f"order-engine {command}" in example


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["submit", "swap", "1", "SOL", "USDC"],
        ["quote", "sell", "1", "SOL"],
        ["list", "--status", "done"],
        ["list", "--limit", "0"],
        ["watch", ORDER_ID, "--after", "-1"],
        ["up", "--workers", "0"],
        ["up", "--bogus"],
        ["get", ORDER_ID, "--server", "nowhere"],
        ["sell"],
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments: list[str]) -> None:
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 2
    assert said.stderr.startswith("order-engine: ")
    assert "--help`" in said.stderr
    assert said.stderr.count("\n") == 1
    assert said.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "sell", "1", "SOL", "USDC", "--request-id", "mine"],
        ["watch", ORDER_ID],
        ["quote", "sell", "1", "SOL", "USDC"],
        ["get", ORDER_ID],
        ["list"],
        ["cancel", ORDER_ID],
    ],
)
def test_no_server_is_one_sentence_and_exit_code_2(arguments: list[str]) -> None:
    said = CliRunner().invoke(app, [*arguments, "--server", NOBODY])
    assert said.exit_code == 2
    assert said.stderr.startswith("order-engine: no server answers")
    assert said.stderr.count("\n") == 1
    assert said.stdout == ""


def test_a_server_whose_name_nobody_knows_is_one_sentence_and_exit_code_2() -> None:
    said = CliRunner().invoke(app, ["list", "--server", "nowhere.invalid:50051"])
    assert said.exit_code == 2
    assert said.stderr.startswith("order-engine: no server answers")
    assert said.stderr.count("\n") == 1


def test_wrong_usage_says_what_was_wrong_with_which_argument() -> None:
    said = CliRunner().invoke(app, ["submit", "swap", "1", "SOL", "USDC"])
    assert said.stderr == (
        'order-engine: invalid value for SIDE: "swap" is neither sell nor buy; '
        "see `order-engine submit --help`\n"
    )


def test_a_submit_without_an_answer_says_how_to_submit_it_again_safely() -> None:
    said = CliRunner().invoke(
        app, ["submit", "sell", "1", "SOL", "USDC", "--request-id", "mine", "--server", NOBODY]
    )
    assert "--request-id mine" in said.stderr


def test_unusable_settings_are_one_sentence_and_exit_code_2() -> None:
    said = CliRunner().invoke(app, ["list"], env={"GRPC_PORT": "many"})
    assert said.exit_code == 2
    assert said.stderr == 'order-engine: GRPC_PORT was "many"; must be a whole number\n'
