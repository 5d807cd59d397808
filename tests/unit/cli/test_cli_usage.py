"""`order-engine`'s help and its refusals, without anything running."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import grpc
import pytest
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc
from typer.testing import CliRunner

from cli.main import app
from cli.orders import submit
from client import OrderSpec, OrderStatus, OrderType, Side

COMMANDS = (
    "up", "submit", "watch", "quote", "get", "list", "cancel",
    "server", "workers", "gateway", "simnet", "migrate",
)  # fmt: skip
ORDER_ID = "0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77"
MINT = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
NOT_UTF8 = os.fsdecode(b"S\xffOL")
NOBODY = "127.0.0.1:1"  # tcpmux: nothing listens there


def test_without_a_command_it_shows_its_help() -> None:
    said = CliRunner().invoke(app, [])
    assert "Execute swap orders" in said.output
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", said.output)


def test_the_version_is_that_of_the_installed_package() -> None:
    said = CliRunner().invoke(app, ["--version"])
    assert (said.exit_code, said.stdout, said.stderr) == (
        0,
        f"order-engine {version('order-execution-engine')}\n",
        "",
    )


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
        ["list", "--type", "stop"],
        ["list", "--type", "unknown"],
        ["submit", "sell", "1", "SOL", "USDC", "--limit"],
        ["submit", "sell", "1", "SOL", "USDC", "--limit", "150", "--sniper"],
        ["submit", "sell", "1", "SOL", "USDC", "--min-liquidity", "10"],
        ["submit", "sell", "1", "SOL", "USDC", "--limit", "150", "--max-price", "1"],
        ["quote", "sell", "1", "SOL", "USDC", "--max-price", "1"],
        ["watch", ORDER_ID, "--after", "-1"],
        ["up", "--workers", "0"],
        ["up", "--bogus"],
        ["get", ORDER_ID, "--server", "nowhere"],
        *(
            ["submit", "sell", "1", "SOL", "USDC", "--expire-seconds", seconds]
            for seconds in ("0", "-1", "soon", "nan", "inf", "1e12", "1e30")
        ),
        *(
            ["submit", "sell", "1", "SOL", "USDC", "--expire-time", time]
            for time in ("", "soon", "2030-01-31", "2030-01-31T18:00:00", "2030-01-32T18:00:00Z")
        ),
        [
            "submit",
            "sell",
            "1",
            "SOL",
            "USDC",
            "--expire-seconds",
            "9",
            "--expire-time",
            "2030-01-31T18:00:00Z",
        ],
        ["submit", "sell", "1", "SOL", "USDC", "--expire-seconds", "9", "--request-id", "mine"],
        *(
            ["submit", "sell", "1", "SOL", "USDC", "--request-id", request_id]
            for request_id in ("", "x" * 65, "r\u00e9ponse", "two\nlines")
        ),
        ["submit", "sell", "1", NOT_UTF8, "USDC"],
        ["submit", "sell", "1", "SOL", "USDC", "--request-id", NOT_UTF8],
        *([command, NOT_UTF8] for command in ("get", "watch", "cancel")),
        ["up", "--data-dir", NOT_UTF8],
        [NOT_UTF8],
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


def test_an_argument_that_is_not_utf8_is_told_with_its_bytes() -> None:
    said = CliRunner().invoke(app, ["get", NOT_UTF8])
    assert said.stderr == 'order-engine: argument "S\\xffOL" is not UTF-8; see `order-engine get --help`\n'


def test_an_empty_request_id_is_refused_and_not_taken_for_none() -> None:
    said = CliRunner().invoke(app, ["submit", "sell", "1", "SOL", "USDC", "--request-id", ""])
    assert "--request-id" in said.stderr
    assert "must be 1 to 64 printable ASCII characters; see `order-engine submit --help`\n" in said.stderr


@pytest.mark.parametrize("option", ["--limit", "--max-price", "--min-liquidity"])
def test_an_empty_price_is_refused_and_not_taken_for_none(option: str) -> None:
    sniper = [] if option == "--limit" else ["--sniper"]
    said = CliRunner().invoke(
        app, ["submit", "sell", "1", "SOL", MINT, *sniper, option, "", "--server", NOBODY]
    )
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.endswith(' was ""; must be a plain decimal number such as "1.5"\n')


def test_an_order_cannot_wait_beyond_the_last_time_there_is() -> None:
    said = CliRunner().invoke(app, ["submit", "sell", "1", "SOL", "USDC", "--expire-seconds", "1e12"])
    assert "was 1e+12; must end before the year 10000; see `order-engine submit --help`\n" in said.stderr


@pytest.mark.parametrize("command", ["submit", "quote"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-price", "1"], "--max-price is for sniper orders, so --sniper must be given too"),
        (["--min-liquidity", "1"], "--min-liquidity is for sniper orders, so --sniper must be given too"),
        (
            ["--limit", "1", "--sniper"],
            "--limit and --sniper exclude each other: the one waits for a price, the other for a way to buy",
        ),
    ],
)
def test_an_option_of_another_order_type_says_what_to_do(command: str, options: list[str], said: str) -> None:
    refused = CliRunner().invoke(app, [command, "sell", "1", "SOL", "USDC", *options])
    assert refused.stderr == f"order-engine: {said}; see `order-engine {command} --help`\n"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], {}),
        (["--limit", "150"], {"type": OrderType.LIMIT, "limit_price": "150"}),
        (["--sniper"], {"type": OrderType.SNIPER}),
        (
            ["--sniper", "--min-liquidity", "10", "--max-price", "0.001"],
            {"type": OrderType.SNIPER, "min_liquidity": "10", "max_price": "0.001"},
        ),
    ],
)
@pytest.mark.parametrize("command", ["submit", "quote"])
def test_options_make_an_order_of_their_type(
    command: str, options: list[str], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[OrderSpec] = []

    async def take(server: str, spec: OrderSpec, **_: object) -> int:
        given.append(spec)
        return 0

    monkeypatch.setattr(f"cli.orders.{command}", take)
    said = CliRunner().invoke(app, [command, "sell", "1", "SOL", MINT, "--slippage-bps", "50", *options])
    assert said.exit_code == 0, said.output
    assert given == [OrderSpec(Side.SELL, "1", "SOL", MINT, 50, **asked)]


def test_the_list_takes_several_types_and_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, ...]] = []

    async def take(server: str, *arguments: object, json: bool) -> int:
        given.append(arguments)
        return 0

    monkeypatch.setattr("cli.orders.list_orders", take)
    arguments = ["list", "-t", "limit", "--type", "sniper", "-s", "pending", "-n", "3"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert given == [([OrderStatus.PENDING], [OrderType.LIMIT, OrderType.SNIPER], 3)]


class Accepting(orders_pb2_grpc.OrderServiceServicer):
    """Accepts every order, answers it as it was asked for, and leaves it at that."""

    async def BatchSubmitOrders(  # noqa: N802
        self, request: pb.BatchSubmitOrdersRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.BatchSubmitOrdersResponse:
        orders = [
            pb.Order(order_id=ORDER_ID, spec=one.spec, status=pb.ORDER_STATUS_PENDING, attempt=1, sequence=1)
            for one in request.requests
        ]
        return pb.BatchSubmitOrdersResponse(
            results=[
                pb.BatchSubmitOrdersResult(response=pb.SubmitOrderResponse(order=order)) for order in orders
            ]
        )

    async def BatchGetOrders(  # noqa: N802
        self, request: pb.BatchGetOrdersRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.BatchGetOrdersResponse:
        found = pb.GetOrderResponse(order=stored(request.order_ids[0]))
        return pb.BatchGetOrdersResponse(results=[pb.BatchGetOrdersResult(response=found)])

    async def WatchOrders(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.WatchOrdersRequest],
        context: grpc.aio.ServicerContext[object, object],
    ) -> AsyncIterator[pb.WatchOrdersResponse]:
        async for _ in request_iterator:
            if False:
                yield  # nothing ever happens

    async def ListOrders(  # noqa: N802
        self, request: pb.ListOrdersRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListOrdersResponse:
        return pb.ListOrdersResponse(orders=[stored(ORDER_ID)] * 3)


def stored(order_id: str) -> pb.Order:
    spec = pb.OrderSpec(side=pb.SIDE_SELL, amount="1", input_token="SOL", output_token="USDC")
    return pb.Order(order_id=order_id, spec=spec, status=pb.ORDER_STATUS_PENDING, attempt=1, sequence=1)


@pytest.fixture
async def accepting() -> AsyncIterator[str]:
    server = grpc.aio.server()
    orders_pb2_grpc.add_OrderServiceServicer_to_server(Accepting(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_an_order_that_expires_keeps_its_type(
    accepting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expires = datetime(2070, 1, 31, 18, tzinfo=UTC)
    spec = OrderSpec(
        Side.SELL, "1.5", "SOL", "USDC", type=OrderType.LIMIT, limit_price="150", expire_time=expires
    )
    for json in (True, False):
        assert await submit(accepting, spec, request_id=None, watch=False, json=json) == 0
    as_json, for_people = capsys.readouterr().out.splitlines()
    assert '"type":"limit","limitPrice":150,' in as_json
    assert '"expireTime":"2070-01-31T18:00:00' in as_json
    assert for_people == f"order {ORDER_ID}: sell 1.5 SOL -> USDC at 150 or better"


async def order_engine(*arguments: str, stdout: int) -> tuple[int | None, str]:
    """Run it with that as its output, which is closed; return its exit code and what it says on stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *arguments), stdout=stdout, stderr=PIPE
    )
    os.close(stdout)
    _, said = await process.communicate()
    return process.returncode, said.decode()


@pytest.mark.parametrize("json", [(), ("--json",)])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("submit", "sell", "1", "SOL", "USDC"), f"; order {ORDER_ID} is submitted"),
        (("get", ORDER_ID), ""),
        (("list",), ""),
    ],
)
async def test_output_that_cannot_be_written_is_one_sentence_and_tells_an_order_that_was_submitted(
    arguments: tuple[str, ...], told: str, json: tuple[str, ...], accepting: str
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    said = await order_engine(*arguments, *json, "--server", accepting, stdout=full)
    assert said == (
        2,
        f"order-engine: the output cannot be written: No space left on device{told}\n",
    )


def without_reader() -> int:
    """The end of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "arguments", [("get", ORDER_ID), ("get", ORDER_ID, "--json"), ("list",), ("list", "--json")]
)
async def test_a_reader_who_has_left_is_no_failure(arguments: tuple[str, ...], accepting: str) -> None:
    assert await order_engine(*arguments, "--server", accepting, stdout=without_reader()) == (0, "")


@pytest.mark.parametrize("arguments", [("--help",), ("submit", "--help"), ("--version",)])
async def test_a_reader_of_the_help_who_has_left_is_no_failure(arguments: tuple[str, ...]) -> None:
    assert await order_engine(*arguments, stdout=without_reader()) == (0, "")


@pytest.mark.parametrize("arguments", [("--help",), ("submit", "--help"), ("--version",)])
async def test_help_that_cannot_be_written_is_one_sentence(arguments: tuple[str, ...]) -> None:
    said = await order_engine(*arguments, stdout=os.open("/dev/full", os.O_WRONLY))
    assert said == (2, "order-engine: the output cannot be written: No space left on device\n")


async def test_a_watch_whose_reader_has_left_ends(accepting: str) -> None:
    async with asyncio.timeout(30):
        assert await order_engine("watch", ORDER_ID, "--server", accepting, stdout=without_reader()) == (
            0,
            "",
        )


SUBMIT = ("submit", "sell", "1", "SOL", "USDC")


def test_a_submit_without_an_answer_says_how_to_submit_it_again_safely() -> None:
    said = CliRunner().invoke(app, [*SUBMIT, "--request-id", "mine", "--server", NOBODY])
    assert said.stderr.endswith(" (to submit it again safely, add --request-id mine)\n")
    said = CliRunner().invoke(app, [*SUBMIT, "--expire-seconds", "3600", "--server", NOBODY])
    again = re.search(r"--request-id \w{32} --expire-time \S+(?=\))", said.stderr)
    assert again is not None
    # What it says is what can be given.
    said = CliRunner().invoke(app, [*SUBMIT, *again[0].split(), "--server", NOBODY])
    assert said.stderr.endswith(f" (to submit it again safely, add {again[0]})\n")


class Silent(orders_pb2_grpc.OrderServiceServicer):
    """Takes orders and answers nothing."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def BatchSubmitOrders(  # noqa: N802
        self, request: pb.BatchSubmitOrdersRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.BatchSubmitOrdersResponse:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")


async def test_a_submit_that_is_interrupted_says_how_to_submit_it_again_safely() -> None:
    server, silent = grpc.aio.server(), Silent()  # type: ignore[abstract]
    orders_pb2_grpc.add_OrderServiceServicer_to_server(silent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *SUBMIT, "--server", f"127.0.0.1:{port}"),
        stdout=PIPE,
        stderr=PIPE,
        # What a shell starts in the background ignores it, and all that is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    await silent.asked.wait()
    process.send_signal(signal.SIGINT)
    out, said = await process.communicate()
    await server.stop(0)
    assert (process.returncode, out) == (130, b"")
    again = r"to submit it again safely, add --request-id \w{32}"
    assert re.fullmatch(rf"order-engine: the order may have been submitted; {again}\n", said.decode())


def test_unusable_settings_are_one_sentence_and_exit_code_2() -> None:
    said = CliRunner().invoke(app, ["list"], env={"GRPC_PORT": "many"})
    assert said.exit_code == 2
    assert said.stderr == 'order-engine: GRPC_PORT was "many"; must be a whole number\n'
