"""`order-engine`: its commands, their options and help. What a command does is imported when it runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

REFUSED, UNUSABLE = 1, 2
"""Exit codes: the order was refused or failed; wrong usage, unusable settings, or nobody answers."""


class _Commands(TyperGroup):
    """The commands; what is wrong with their usage is told in one sentence."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            _check_text(arguments)
            code = super().main(arguments, prog_name, complete_var, False, windows_expand_args, **extra)
        except TyperException as error:
            said = error.format_message().rstrip(".")
            command = arguments[0] if arguments[0] in self.commands else ""
            how = f"see `{' '.join(['order-engine', command]).rstrip()} --help`"
            sys.exit(_refuse(f"{said[:1].lower()}{said[1:]}; {how}", UNUSABLE))
        except SystemExit as end:
            # typer and rich, each in its way, take a reader who has left for a failure.
            if isinstance(end.__context__, BrokenPipeError):
                raise end.__context__ from None
            raise
        sys.exit(code)


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8. Python has surrogates for their bytes, which nothing can print."""
    for argument in arguments:
        if re.search("[\ud800-\udfff]", argument):
            shown = os.fsencode(argument).decode(errors="backslashreplace")
            raise TyperException(f'argument "{shown}" is not UTF-8')


app = typer.Typer(
    cls=_Commands,
    help="""Execute swap orders on Solana venues.

    [bold]order-engine up[/bold] starts everything. Then, in another terminal:

      order-engine quote sell 1.5 SOL USDC
      order-engine submit sell 1.5 SOL USDC --watch
      order-engine submit sell 1.5 SOL USDC --limit 150

    Exit codes: 0 done, 1 refused or not confirmed, 2 wrong usage or nobody answers.
    """,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _address(server: str | None) -> str | None:
    if server is not None and not re.fullmatch(r"[^\s/]+:[0-9]{1,5}", server):
        raise typer.BadParameter(f'"{server}" is not HOST:PORT, such as 127.0.0.1:50051')
    return server


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"order-engine {version('order-execution-engine')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def _from_now(seconds: float | None) -> float | None:
    if seconds is not None:
        try:
            datetime.now(UTC) + timedelta(seconds=seconds)
        except (OverflowError, ValueError):  # ValueError: not a number
            raise typer.BadParameter(f"was {seconds:g}; must end before the year 10000") from None
    return seconds


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise typer.BadParameter(f'"{text}" is not a time with its zone, such as 2030-01-31T18:00:00Z')
    return time


def _expiry(seconds: float | None, time: datetime | None, request_id: str | None) -> datetime | None:
    if time is not None:
        if seconds is not None:
            raise TyperException("--expire-seconds and --expire-time exclude each other")
        return time
    if seconds is None:
        return None
    if request_id is not None:
        raise TyperException(
            "with --request-id give --expire-time: --expire-seconds counts from now, never the same"
        )
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _request_id(request_id: str | None) -> str | None:
    if request_id is not None:
        from client import InvalidOrder
        from client.convert import check_request_id

        try:
            check_request_id(request_id)
        except InvalidOrder as error:
            raise typer.BadParameter(error.violations[0].description) from None
    return request_id


Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help="gRPC server; else GRPC_HOST and GRPC_PORT.",
        callback=_address,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one line for each answer or event.")]
SideName = Annotated[
    str,
    typer.Argument(
        metavar="SIDE",
        help="sell: spend exactly AMOUNT of INPUT. buy: receive exactly AMOUNT of OUTPUT.",
    ),
]
Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="Decimal, in whole tokens: 1.5")]
InputToken = Annotated[
    str, typer.Argument(metavar="INPUT", help="Token to spend: symbol, or address of any mint.")
]
OutputToken = Annotated[str, typer.Argument(metavar="OUTPUT", help="Token to receive: the same.")]
OrderId = Annotated[str, typer.Argument(metavar="ORDER_ID")]
Slippage = Annotated[
    int | None,
    typer.Option(help="Worst acceptable move from the quoted price, in basis points; else the server's."),
]
Limit = Annotated[
    str | None,
    typer.Option(
        "--limit",
        metavar="PRICE",
        help="Wait until each INPUT brings PRICE of OUTPUT or more, everything counted in.",
    ),
]
Sniper = Annotated[bool, typer.Option("--sniper", help="Wait until there is a way to buy OUTPUT.")]
MinLiquidity = Annotated[
    str | None,
    typer.Option(
        metavar="AMOUNT", help="With --sniper: wait until the pair's pools hold so much of INPUT together."
    ),
]
MaxPrice = Annotated[
    str | None,
    typer.Option(
        metavar="PRICE",
        help="With --sniper: pay at most PRICE of INPUT for each OUTPUT, the reverse of --limit.",
    ),
]

_UNREACHABLE = ("connections to all backends failing", "errors resolving", "DNS resolution failed")
"""How gRPC begins to say that there was nobody to ask."""

_RUN = "Run the engine"
_ORDERS = "Orders"
_PROCESSES = "One process, for operators (settings come from the environment and .env)"


@app.command(rich_help_panel=_RUN)
def up(
    data_dir: Annotated[
        Path, typer.Option(help="Where orders, wallet, logs and the simulated chain are kept.")
    ] = Path(".data"),
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep nothing.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Worker processes; else WORKER_PROCESSES.")
    ] = None,
    servers: Annotated[
        int | None, typer.Option(min=1, max=64, help="gRPC servers; else SERVER_PROCESSES.")
    ] = None,
    gateways: Annotated[
        int | None, typer.Option(min=1, max=64, help="Gateways; else GATEWAY_PROCESSES.")
    ] = None,
) -> None:
    """Start everything, show it, and stop it all on Ctrl-C.

    Of several servers or gateways, each has a port of its own, one after the other.

    PostgreSQL, Valkey and a simulated Solana come embedded, unless
    DB_HOST, REDIS_HOST or SOLANA_RPC_URL, in the environment or in .env, name yours.

    Examples:
      order-engine up
      order-engine up --ephemeral --workers 4
      order-engine up --servers 2 --gateways 2 --workers 2
      PORT=8080 order-engine up --data-dir /var/lib/orders
    """
    from cli.up import up as run_up

    processes = {"worker": workers, "server": servers, "gateway": gateways}
    wanted = {f"{name}_processes": count for name, count in processes.items() if count is not None}
    raise typer.Exit(run_up(None if ephemeral else data_dir, wanted))


@app.command(rich_help_panel=_ORDERS)
def submit(
    side: SideName,
    amount: Amount,
    input_token: InputToken,
    output_token: OutputToken,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow it; exit code 0 only if it is confirmed.")
    ] = False,
    limit: Limit = None,
    sniper: Sniper = False,
    min_liquidity: MinLiquidity = None,
    max_price: MaxPrice = None,
    slippage_bps: Slippage = None,
    expire_seconds: Annotated[
        float | None,
        typer.Option(min=0.001, help="Give up unless it is broadcast by then.", callback=_from_now),
    ] = None,
    expire_time: Annotated[
        datetime | None,
        typer.Option(metavar="TIME", help="The same, as a time: 2030-01-31T18:00:00Z.", parser=_time),
    ] = None,
    request_id: Annotated[
        str | None,
        typer.Option(
            help="Your own name for it, 1 to 64 printable ASCII characters: submitting it again is the same "
            "order.",
            callback=_request_id,
        ),
    ] = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Submit an order: for now, or with --limit or --sniper for when its moment has come.

    With --watch the exit code is 0 only if it is confirmed.

    Examples:
      order-engine submit sell 1.5 SOL USDC --watch   spend exactly 1.5 SOL
      order-engine submit buy 100 SOL USDC            receive exactly 100 USDC
      order-engine submit sell 1 SOL USDC --json --request-id rent-october

    A limit order, here to sell once a SOL brings 150 USDC or more:
      order-engine submit sell 1.5 SOL USDC --limit 150
      order-engine submit sell 1.5 SOL USDC --limit 150 --expire-seconds 3600

    A sniper order, here for a new token, named by its mint address, as soon as
    it is traded; then once its pools hold 10 SOL, and for 0.001 SOL each at most:
      order-engine submit sell 1 SOL MINT --sniper
      order-engine submit sell 1 SOL MINT --sniper --min-liquidity 10 \\
        --max-price 0.001

    Both wait for days if need be; order-engine cancel ends that.
    """
    from cli import orders

    spec = replace(
        _spec(side, amount, input_token, output_token, slippage_bps, limit, sniper, min_liquidity, max_price),
        expire_time=_expiry(expire_seconds, expire_time, request_id),
    )
    _run(lambda: orders.submit(_target(server), spec, request_id=request_id, watch=watch, json=json))


@app.command(rich_help_panel=_ORDERS)
def watch(
    order_id: OrderId,
    after: Annotated[int, typer.Option(min=0, help="Only events after this sequence.")] = 0,
    server: Server = None,
    json: Json = False,
) -> None:
    """Follow an order: what has happened, then what happens, to its end.

    The exit code is 0 only if it is confirmed.

    Examples:
      order-engine watch 0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77
      order-engine watch 0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77 --after 3 --json
    """
    from cli import orders

    _run(lambda: orders.watch(_target(server), order_id, after, json=json))


@app.command(rich_help_panel=_ORDERS)
def quote(
    side: SideName,
    amount: Amount,
    input_token: InputToken,
    output_token: OutputToken,
    limit: Limit = None,
    sniper: Sniper = False,
    min_liquidity: MinLiquidity = None,
    max_price: MaxPrice = None,
    slippage_bps: Slippage = None,
    server: Server = None,
    json: Json = False,
) -> None:
    """Compare what the venues offer, without executing anything.

    The pools that an order would be routed to are marked with *.
    It takes what submit takes, and of any order tells what is offered now.

    Examples:
      order-engine quote sell 1.5 SOL USDC
      order-engine quote sell 1.5 SOL USDC --limit 150
      order-engine quote buy 1000000 USDC BONK --json
    """
    from cli import orders

    spec = _spec(
        side, amount, input_token, output_token, slippage_bps, limit, sniper, min_liquidity, max_price
    )
    _run(lambda: orders.quote(_target(server), spec, json=json))


@app.command(rich_help_panel=_ORDERS)
def get(order_id: OrderId, server: Server = None, json: Json = False) -> None:
    """Show an order as it stands, and how each attempt was routed.

    Example: order-engine get 0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77
    """
    from cli import orders

    _run(lambda: orders.get(_target(server), order_id, json=json))


@app.command("list", rich_help_panel=_ORDERS)
def list_orders(
    status: Annotated[
        list[str] | None, typer.Option("--status", "-s", help="Only these; may be given more than once.")
    ] = None,
    type: Annotated[  # noqa: A002
        list[str] | None,
        typer.Option("--type", "-t", help="market, limit or sniper; may be given more than once."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 20,
    server: Server = None,
    json: Json = False,
) -> None:
    """List orders, newest first.

    A terminal of 100 columns shows when each was made and its venue, too.

    Examples:
      order-engine list
      order-engine list --status failed --status expired --limit 100
      order-engine list --status pending --type limit --type sniper
      order-engine list --json | jq .orderId
    """
    from cli import orders
    from client import OrderStatus, OrderType

    statuses = _known(OrderStatus, status, "--status")
    types = _known(OrderType, type, "--type")
    _run(lambda: orders.list_orders(_target(server), statuses, types, limit, json=json))


@app.command(rich_help_panel=_ORDERS)
def cancel(order_id: OrderId, server: Server = None, json: Json = False) -> None:
    """Cancel an order that has not been broadcast.

    Example: order-engine cancel 0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77
    """
    from cli import orders

    _run(lambda: orders.cancel(_target(server), order_id, json=json))


@app.command(rich_help_panel=_PROCESSES)
def server() -> None:
    """Run the gRPC server.

    Example: DB_HOST=db.internal REDIS_HOST=redis.internal order-engine server
    """
    _become("server")


@app.command(rich_help_panel=_PROCESSES)
def workers() -> None:
    """Run the workers.

    Example: DB_HOST=db.internal WORKER_PROCESSES=4 order-engine workers
    """
    _become("workers")


@app.command(rich_help_panel=_PROCESSES)
def gateway() -> None:
    """Run the REST and WebSocket gateway with the console.

    Example: GRPC_HOST=orders.internal PORT=8080 order-engine gateway
    """
    _become("gateway")


@app.command(rich_help_panel=_PROCESSES)
def simnet() -> None:
    """Run the simulated Solana.

    Example: SIMNET_PORT=8899 SIMNET_DATA_DIR=.data/simnet order-engine simnet
    """
    _become("simnet")


@app.command(rich_help_panel=_PROCESSES)
def migrate() -> None:
    """Bring the database to the schema of this version.

    Example: DB_HOST=db.internal order-engine migrate
    """
    from engine.settings import load_settings
    from engine.storage.migrate import migrate as apply

    async def run() -> int:
        for migration in await apply(load_settings()):
            typer.echo(f"applied {migration.number:04d} {migration.name}")
        typer.echo("the database is up to date")
        return 0

    _run(run)


def main() -> None:
    try:
        app()
    except BrokenPipeError:
        # `order-engine list | head`: the reader has left.
        _close_output()
        sys.exit(0)
    except OSError as error:
        _close_output()
        sys.exit(_refuse(f"the output cannot be written: {error.strerror}", UNUSABLE))


def _close_output() -> None:
    """Drop what could not be written. Python would try once more, and complain, at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Run a command to its exit code; errors become one sentence on stderr."""
    import asyncio

    from client.errors import InvalidOrder, OrderError, Unavailable
    from engine.process import StartupError
    from engine.settings import SettingsError

    try:
        code = asyncio.run(command())
    except (SettingsError, StartupError) as error:
        code = _refuse(str(error), UNUSABLE)
    except InvalidOrder as error:
        lines = "; ".join(f"{line.field.rpartition('.')[2]} {line.description}" for line in error.violations)
        code = _refuse(lines or error.message, REFUSED)
    except OrderError as error:
        said = error.message
        if said.startswith(_UNREACHABLE):
            said = "no server answers; start one with `order-engine up`, or name it with --server"
        said += "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        code = _refuse(said, UNUSABLE if isinstance(error, Unavailable) else REFUSED)
    except BrokenPipeError:
        raise
    except OSError as error:
        _close_output()
        code = _refuse(f"the output cannot be written: {error.strerror}", UNUSABLE)
    except KeyboardInterrupt:
        code = 130  # as shells have it: 128 + SIGINT
    raise typer.Exit(code)


def _refuse(sentence: str, code: int) -> int:
    typer.echo(f"order-engine: {sentence}", err=True)
    return code


def _target(server: str | None) -> str:
    if server is not None:
        return server
    from engine.settings import load_settings

    return load_settings().grpc_target


def _spec(
    side: str,
    amount: str,
    input_token: str,
    output_token: str,
    slippage_bps: int | None,
    limit: str | None,
    sniper: bool,
    min_liquidity: str | None,
    max_price: str | None,
) -> Any:
    from client import OrderSpec, OrderType, Side

    if side not in list(Side):
        raise typer.BadParameter(f'"{side}" is neither sell nor buy', param_hint="SIDE")
    if limit is not None and sniper:
        raise TyperException(
            "--limit and --sniper exclude each other: the one waits for a price, the other for a way to buy"
        )
    for option, value in (("--min-liquidity", min_liquidity), ("--max-price", max_price)):
        if value is not None and not sniper:
            raise TyperException(f"{option} is for sniper orders, so --sniper must be given too")
    order_type = OrderType.LIMIT if limit is not None else OrderType.SNIPER if sniper else OrderType.MARKET
    return OrderSpec(
        Side(side),
        amount,
        input_token,
        output_token,
        slippage_bps,
        type=order_type,
        limit_price=limit,
        min_liquidity=min_liquidity,
        max_price=max_price,
    )


_Member = TypeVar("_Member", bound=StrEnum)


def _known(kind: type[_Member], names: list[str] | None, option: str) -> list[_Member]:
    """Return the members that a filter names."""
    known = [member for member in kind if member.name != "UNKNOWN"]
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f'"{name}" is not one of {", ".join(known)}', param_hint=option)
    return [kind(name) for name in names or ()]


def _become(module: str) -> None:
    """Replace this process by `python -m module`, so that signals and exit codes are its own."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", module])
