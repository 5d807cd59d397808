"""`python -m bench.floor`: what the primitive operations of an order cost alone, on this machine, now.

Every line is measured by itself: CPU time, not wall time, in microseconds an operation, of the process that
does it and of the one at the other end. What a process of the engine spends on an order beyond the sum of its
lines is its own: tasks, queues, decisions. `--report FILE`, written by `python -m bench --json FILE`, sets
the two side by side. The SQL lines are those of engine/storage, conversion to and from rows included.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final, cast

import grpc
import httptools
import msgspec
import uvloop
from orders.v1 import orders_pb2, orders_pb2_grpc
from rich.console import Console
from rich.table import Table
from solders.hash import Hash
from solders.instruction import AccountMeta
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from websockets.utils import accept_key

from bench.measure import machine
from bench.processes import PROC, all_processes, tree
from bench.wire import TEXT, Address, WebSocket, request_bytes
from cli.embedded import Postgres, Valkey
from engine.domain.lifecycle import Landed, Routed, Signed, apply
from engine.domain.order import Attempt, Order, OrderSpec, Quote, Route, RouteLeg, RoutingDecision, Side
from engine.domain.order_ids import make_order_id
from engine.domain.retry import RetryPolicy
from engine.domain.tokens import SOL, USDC
from engine.link import LinkConnection
from engine.redis_client import RedisClient
from engine.settings import Settings
from engine.solana.instructions import Instruction, Names
from engine.solana.transactions import Wallet, compile_message
from engine.storage.migrate import migrate
from engine.storage.postgres import NewOrder, Store
from engine.telemetry import JsonFormatter

_SECONDS: Final = 0.2
"""CPU time that a line is measured for, three times; the least of them counts."""
_BATCHES: Final = (1, 10, 30, 100)
_OFFERED: Final = 25
"""Orders in a message of the queue."""
_BURST_BATCH, _CLOSED_BATCH = 100, 30
"""Orders that travel together under load: in a burst, and in the closed loop."""


@dataclass(frozen=True, slots=True)
class Use:
    """How often a process does it for one order."""

    process: str
    burst: float
    closed: float


@dataclass(frozen=True, slots=True)
class Line:
    operation: str
    us: float
    """Of the process that does it."""
    other_us: float | None = None
    """Of the one at the other end; None: there is none."""
    uses: Sequence[Use] = ()
    other_uses: Sequence[Use] = ()


Measured = tuple[float, float]
"""CPU microseconds an item, here and in the other processes."""


class Meter:
    """Repeats operations for long enough to tell what one costs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def pure(self, operation: Callable[[], object], items: int = 1) -> float:
        """Return the CPU microseconds an item of `operation`, which does `items` of them."""
        best = float("inf")
        for _ in range(3):
            done, start, spent = 0, time.process_time_ns(), 0
            while spent < self.seconds * 1e9:
                for _ in range(100):
                    operation()
                done += 100 * items
                spent = time.process_time_ns() - start
            best = min(best, spent / done / 1000)
        return best

    async def shared(
        self, operation: Callable[[], Awaitable[object]], items: int = 1, others: Sequence[int] = ()
    ) -> Measured:
        """Return the same of one that talks to `others`, pids of process trees, and what they spent."""
        await operation()
        best: Measured = float("inf"), 0.0
        for _ in range(3):
            done, start, others_start, spent = 0, time.process_time_ns(), cpu_ns(others), 0
            while spent < self.seconds * 1e9:
                await operation()
                done += items
                spent = time.process_time_ns() - start
            best = min(best, (spent / done / 1000, (cpu_ns(others) - others_start) / done / 1000))
        return best


def cpu_ns(roots: Sequence[int]) -> int:
    """Return the CPU time of these process trees. To the nanosecond: /proc/PID/stat counts in 10 ms."""
    if not roots:
        return 0
    processes = all_processes()
    total = 0
    for root in roots:
        for stat in tree(processes, root):
            total += int((PROC / str(stat.pid) / "schedstat").read_text().split()[0])
    return total


# ---- What orders are made of -------------------------------------------------------------------------

_WALLET: Final = Wallet(Keypair())
_POLICY: Final = RetryPolicy()
_SPEC: Final = OrderSpec(Side.SELL, 100_000_000, SOL, USDC)
_BODY: Final = b'{"side":"sell","amount":0.1,"inputToken":"SOL","outputToken":"USDC"}'
_EVENT_TEXT: Final = (
    b'{"orderId":"0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77","status":"confirmed","sequence":5,"venue":"Raydium",'
    b'"price":105.5,"txHash":"' + b"5" * 88 + b'"}'
)
_numbers = count(1)


def _new_order() -> NewOrder:
    number = next(_numbers)
    order_id = make_order_id(int(time.time() * 1000), number * 0x9E3779B97F4A7C15)
    return NewOrder(order_id, _SPEC, str(order_id), order_id.bytes * 2)


def _decision() -> RoutingDecision:
    leg = RouteLeg("Raydium", "raydium_cpmm", str(_WALLET.pubkey), 100_000_000, 10_000_000)
    quotes = tuple(
        Quote(venue, venue.lower(), leg.pool, leg.input_amount, leg.output_amount, 2500, 12)
        for venue in ("Raydium", "Meteora") * 4  # as many as simnet has pools of a pair
    )
    route = Route((leg,), leg.input_amount, leg.output_amount, 9_950_000)
    return RoutingDecision(attempt=1, slot=7, quotes=quotes, route=route, reason="Raydium pays 0.12 % more")


def _instructions() -> list[Instruction]:
    """Return what a swap that wraps SOL consists of: seven instructions over some twenty accounts."""
    keys = [AccountMeta(Pubkey.new_unique(), False, True) for _ in range(14)]
    owner = AccountMeta(_WALLET.pubkey, True, True)
    programs = [Pubkey.new_unique() for _ in range(4)]
    return [
        Instruction(Names(programs[number % 4], (owner, *keys[number : number + 7])), bytes(24))
        for number in range(7)
    ]


def _event() -> orders_pb2.OrderEvent:
    return orders_pb2.OrderEvent(
        order_id="0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77",
        sequence=5,
        status=orders_pb2.ORDER_STATUS_CONFIRMED,
        attempt=1,
        venue="Raydium",
        price="105.500000000",
        tx_hash="5" * 88,
    )


# ---- One process -------------------------------------------------------------------------------------


def pure_lines(meter: Meter) -> list[Line]:
    """Return what needs nobody else."""
    instructions, blockhash = _instructions(), str(Hash.new_unique())
    raw_transaction = _WALLET.sign_transaction(instructions, blockhash)
    signature, signed_bytes = Signature(raw_transaction[1:65]), raw_transaction[65:]

    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode

    def call() -> bytes:
        transaction = base64.b64encode(raw_transaction).decode()
        params = [transaction, {"encoding": "base64", "skipPreflight": True}]
        return encode({"jsonrpc": "2.0", "id": 1, "method": "sendTransaction", "params": params})

    call_bytes = call()
    post = request_bytes(Address("127.0.0.1", 3000, ""), "POST", "/api/orders/execute", _BODY)
    event_fields = decode(_EVENT_TEXT)
    submit = orders_pb2.SubmitOrderRequest(
        request_id="0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77",
        spec=orders_pb2.OrderSpec(
            side=orders_pb2.SIDE_SELL,
            amount="0.1",
            input_token="SOL",
            output_token="USDC",
            market=orders_pb2.MarketOrder(),
        ),
    )
    submit_bytes = submit.SerializeToString()
    event = _event()
    event_bytes = event.SerializeToString()
    record = logging.LogRecord("workers.executor", logging.INFO, "", 0, "order moved", (), None)
    record.order_id = "0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77"
    formatter = JsonFormatter("worker-0")
    ledger = sqlite3.connect(":memory:", isolation_level=None)
    ledger.execute(
        "CREATE TABLE transactions (sequence INTEGER PRIMARY KEY, signature BLOB UNIQUE, raw BLOB)"
    )
    signatures = count()

    def record_hundred() -> None:
        ledger.execute("BEGIN")
        ledger.executemany(
            "INSERT INTO transactions (signature, raw) VALUES (?, ?)",
            [(next(signatures).to_bytes(64, "little"), raw_transaction) for _ in range(100)],
        )
        ledger.execute("COMMIT")

    def line(operation: str, of: Callable[[], object], *uses: Use, items: int = 1) -> Line:
        return Line(operation, meter.pure(of, items), uses=uses)

    return [
        line(
            "transaction: compile seven instructions, sign it",
            lambda: _WALLET.sign_transaction(instructions, blockhash),
            Use("workers", 1, 1),
        ),
        line(
            "of that, compile",
            lambda: compile_message(_WALLET.pubkey, instructions, blockhash),
        ),
        line(
            "ed25519: verify one",
            lambda: signature.verify(_WALLET.pubkey, signed_bytes),
            Use("simnet", 1, 1),
        ),
        line("JSON-RPC: encode sendTransaction", call, Use("workers", 1, 1)),
        line("JSON-RPC: decode it", lambda: decode(call_bytes), Use("simnet", 1, 1)),
        line("sqlite: a transaction's row, 100 a commit", record_hundred, Use("simnet", 1, 1), items=100),
        line("HTTP: parse a POST", lambda: _Parser().feed(post), Use("gateway", 1, 1)),
        line("JSON: decode a REST order", lambda: decode(_BODY), Use("gateway", 1, 1)),
        line("JSON: encode an event", lambda: encode(event_fields), Use("gateway", 0.12, 5)),
        line("protobuf: encode a submit", submit.SerializeToString, Use("gateway", 1, 1)),
        line(
            "protobuf: decode a submit",
            lambda: orders_pb2.SubmitOrderRequest.FromString(submit_bytes),
            Use("server", 1, 1),
        ),
        line("protobuf: encode an event", event.SerializeToString, Use("server", 0.12, 5)),
        line(
            "protobuf: decode an event",
            lambda: orders_pb2.OrderEvent.FromString(event_bytes),
            Use("gateway", 0.12, 5),
        ),
        line("log: a JSON line, formatted", lambda: formatter.format(record), Use("workers", 1, 1)),
    ]


class _Parser:
    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.body = b""

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body = body


# ---- Two ends in this process ------------------------------------------------------------------------


class _Answering(asyncio.Protocol):
    """Answers whatever comes with `answer`; a WebSocket's handshake as RFC 6455 has it, then a close."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is not None:
            self._transport.write(self._answer)
        elif data.startswith(b"GET"):
            key = data.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
            self._transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %s\r\n\r\n" % accept_key(key).encode()
            )
            frame = bytes((0x80 | TEXT, 126)) + len(_EVENT_TEXT).to_bytes(2, "big") + _EVENT_TEXT
            self._transport.write(frame)
            self._transport.write(b"\x88\x02\x03\xe8")


class _Asking(asyncio.Protocol):
    def __init__(self) -> None:
        self.answered: asyncio.Future[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.answered.set_result(None)

    async def ask(self, question: bytes) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(question)
        await self.answered


async def loopback_lines(meter: Meter) -> list[Line]:
    """Return what crosses a socket. Both ends are here, and each is taken to cost half."""
    loop = asyncio.get_running_loop()
    lines = []
    echo = await loop.create_server(lambda: _Answering(_EVENT_TEXT), "127.0.0.1", 0)
    async with echo:
        port = echo.sockets[0].getsockname()[1]
        asking = [(await loop.create_connection(_Asking, "127.0.0.1", port))[1] for _ in range(50)]
        us, _ = await meter.shared(lambda: asyncio.gather(*(one.ask(_BODY) for one in asking)), 2 * 50)
        # In the closed loop five events follow, which need no answer.
        uses = [Use("gateway", 1, 3.5)]
        lines.append(Line("TCP: receive a message and answer it", us, uses=uses))
        for one in asking:
            one.transport.close()
    handshake = await loop.create_server(lambda: _Answering(None), "127.0.0.1", 0)
    async with handshake:
        address = Address("127.0.0.1", handshake.sockets[0].getsockname()[1], "")

        async def follow() -> None:
            ended = loop.create_future()
            socket = WebSocket(address, "/", lambda _text: None, ended.set_result)
            await socket.open()
            await ended

        us, _ = await meter.shared(lambda: asyncio.gather(*(follow() for _ in range(50))), 2 * 50)
        uses = [Use("gateway", 0.025, 1)]
        lines.append(Line("WebSocket: connect, shake hands, a frame, close", us, uses=uses))
    return [*lines, await _link_line(meter), *await _grpc_lines(meter)]


class _AnsweringLink(LinkConnection):
    def on_message(self, number: int, message: bytes) -> None:
        self.send(number, message)

    def on_end(self) -> None:
        pass


class _AskingLink(LinkConnection):
    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self.answered: asyncio.Future[None]

    def on_message(self, number: int, message: bytes) -> None:
        self.answered.set_result(None)

    def on_end(self) -> None:
        pass

    async def ask(self, message: bytes) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self.send(1, message)
        await self.answered


async def _link_line(meter: Meter) -> Line:
    loop, message = asyncio.get_running_loop(), _event().SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        server = await loop.create_unix_server(lambda: _AnsweringLink(1 << 20), f"{folder}/link")
        async with server:
            _, link = await loop.create_unix_connection(lambda: _AskingLink(1 << 20), f"{folder}/link")
            # There and back are two messages, each with two ends.
            us, _ = await meter.shared(lambda: link.ask(message), 4)
            link.close()
    # A batch of submits and its answer, and one of events.
    uses = [
        Use(end, 2 / _BURST_BATCH + 0.12 / _CLOSED_BATCH, 7 / _CLOSED_BATCH) for end in ("gateway", "server")
    ]
    return Line("link: send or receive a message", us, uses=uses)


async def _submit(
    _request: orders_pb2.BatchSubmitOrdersRequest, _context: object
) -> orders_pb2.BatchSubmitOrdersResponse:
    return orders_pb2.BatchSubmitOrdersResponse()


async def _watch(
    requests: AsyncIterator[orders_pb2.WatchOrdersRequest], _context: object
) -> AsyncIterator[orders_pb2.WatchOrdersResponse]:
    async for _ in requests:
        yield orders_pb2.WatchOrdersResponse(events=[_event()])


def _service() -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "BatchSubmitOrders": grpc.unary_unary_rpc_method_handler(
            _submit,
            orders_pb2.BatchSubmitOrdersRequest.FromString,
            orders_pb2.BatchSubmitOrdersResponse.SerializeToString,
        ),
        "WatchOrders": grpc.stream_stream_rpc_method_handler(
            _watch,
            orders_pb2.WatchOrdersRequest.FromString,
            orders_pb2.WatchOrdersResponse.SerializeToString,
        ),
    }
    return grpc.method_handlers_generic_handler("orders.v1.OrderService", methods)


async def _grpc_lines(meter: Meter) -> list[Line]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_service(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = orders_pb2_grpc.OrderServiceStub(channel)
        request = orders_pb2.BatchSubmitOrdersRequest()
        unary, _ = await meter.shared(lambda: stub.BatchSubmitOrders(request), 2)
        stream = stub.WatchOrders()

        async def message() -> None:
            await stream.write(orders_pb2.WatchOrdersRequest())
            await stream.read()

        # There and back are two messages, each with two ends.
        streamed, _ = await meter.shared(message, 4)
        await stream.done_writing()
        await stream.read()
        await server.stop(1.0)
    # For clients from elsewhere.
    return [Line("gRPC: a unary call", unary), Line("gRPC: a message on a stream", streamed)]


# ---- Redis -------------------------------------------------------------------------------------------


async def redis_lines(meter: Meter, server: Valkey) -> list[Line]:
    """Return the queue's and the hints' commands, each alone on its way."""
    assert server.pid is not None
    others = [server.pid]
    stream, group, body = "floor", "workers", bytes(16 * _OFFERED)
    read = ("XREADGROUP", "GROUP", group, "floor", "COUNT", 1, "STREAMS", stream, ">")
    async with RedisClient(Settings(redis_host=server.host)) as client:
        await client("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
        add = await meter.shared(lambda: client("XADD", stream, "*", "orders", body), 1, others)
        await client("XTRIM", stream, "MAXLEN", 0)

        async def take() -> None:
            while not (answer := await client(*read)):
                # So many at once add little to what one costs.
                await client.together([("XADD", stream, "*", "orders", body)] * 1000)
            ids = [entry_id for entry_id, _ in answer[0][1]]
            await client.together([("XDEL", stream, *ids), ("XACK", stream, group, *ids)])

        taken = await meter.shared(take, 1, others)
        publish = await meter.shared(lambda: client("PUBLISH", "moved", bytes(160)), 1, others)
    offered = Use("valkey", 1 / _OFFERED, 1 / _CLOSED_BATCH)
    return [
        Line(
            "Redis: XADD, one message",
            *add,
            uses=[replace(offered, process="server")],
            other_uses=[offered],
        ),
        Line(
            "Redis: XREADGROUP, XACK and XDEL of it",
            *taken,
            uses=[replace(offered, process="workers")],
            other_uses=[offered],
        ),
        Line(
            "Redis: PUBLISH, one message",
            *publish,
            uses=[Use("workers", 2 / _BURST_BATCH, 2 / _CLOSED_BATCH)],
            other_uses=[Use("valkey", 2 / _BURST_BATCH, 2 / _CLOSED_BATCH)],
        ),
    ]


# ---- PostgreSQL --------------------------------------------------------------------------------------


async def postgres_lines(meter: Meter, server: Postgres) -> list[Line]:
    """Return the statements of an order's life, an order, by how many orders share one."""
    assert server.pid is not None
    settings = Settings(db_host=server.host, db_port=server.port, db_username=server.user)
    await migrate(settings)
    lines = []
    async with Store(settings) as store:
        owner = await store.start_lease_owner(3600.0)
        for batch in _BATCHES:
            measured = await _lives(meter, store, owner, batch, [server.pid])
            for (name, process, _), (own, other) in zip(_STEPS, measured, strict=True):
                watched = 0.025 if name.startswith("read") else 1.0
                burst, closed = watched * (batch == _BURST_BATCH), float(batch == _CLOSED_BATCH)
                lines.append(
                    Line(
                        f"SQL: {name}, {batch} together",
                        own,
                        other,
                        [Use(process, burst, closed)],
                        [Use("postgres", burst, closed)],
                    )
                )
    # By statement, then by batch.
    return [line for index in range(len(_STEPS)) for line in lines[index :: len(_STEPS)]]


class _Life:
    """A batch of orders, taken from the submit to the end."""

    def __init__(self, store: Store, lease_owner: int, batch: int) -> None:
        self._store = store
        self._owner = lease_owner
        self._new = [_new_order() for _ in range(batch)]
        self._orders: list[Order] = []

    async def submit(self) -> None:
        await asyncio.gather(*map(self._store.submit, self._new))

    async def claim(self) -> None:
        claims = [self._store.claim((order.order_id, self._owner)) for order in self._new]
        self._orders = [claim.order for claim in await asyncio.gather(*claims) if claim is not None]

    async def record(self) -> None:
        moves = []
        for order in self._orders:
            routed = apply(order, Routed(_DECISION), _POLICY)
            attempt = Attempt(1, f"{order.order_id.hex:5<88}", _RAW, 1000)
            moves.append(self._store.advance([routed, apply(routed.order, Signed(attempt), _POLICY)]))
        self._orders = [order for order in await asyncio.gather(*moves) if order is not None]

    async def close(self) -> None:
        landed = Landed(100_000_000, 10_000_000)
        await asyncio.gather(
            *(self._store.advance([apply(order, landed, _POLICY)]) for order in self._orders)
        )

    async def read(self) -> None:
        await asyncio.gather(*(self._store.events_after((order.order_id, 3)) for order in self._new))


async def _lives(
    meter: Meter, store: Store, lease_owner: int, batch: int, others: Sequence[int]
) -> list[Measured]:
    """Return what each step costs an order, here and in the database."""
    spent = [[0, 0] for _ in _STEPS]
    done = 0
    # The first round prepares statements and warms caches.
    for is_counted in count():
        # Several batches for each look at what the others spent: looking is not cheap itself.
        lives = [_Life(store, lease_owner, batch) for _ in range(max(1, 200 // batch))]
        for (_, _, step), totals in zip(_STEPS, spent, strict=True):
            others_start, start = cpu_ns(others), time.process_time_ns()
            for life in lives:
                await step(life)
            if is_counted:
                totals[0] += time.process_time_ns() - start
                totals[1] += cpu_ns(others) - others_start
        done += batch * len(lives) if is_counted else 0
        if sum(own for own, _ in spent) >= meter.seconds * 2e9:
            break
    return [(own / done / 1000, other / done / 1000) for own, other in spent]


_STEPS: Final[Sequence[tuple[str, str, Callable[[_Life], Awaitable[None]]]]] = (
    ("submit", "server", _Life.submit),
    ("claim, ROUTING", "workers", _Life.claim),
    ("BUILDING, SUBMITTED and the attempt", "workers", _Life.record),
    ("CONFIRMED", "workers", _Life.close),
    ("read events for a watcher", "server", _Life.read),
)
_DECISION: Final = _decision()
_RAW: Final = bytes(700)


# ---- Report ------------------------------------------------------------------------------------------


def floors(lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
    """Return the sum of an order's lines by process: CPU microseconds in a burst, and in the closed loop."""
    sums: dict[str, list[float]] = {}
    for line in lines:
        for us, uses in ((line.us, line.uses), (line.other_us or 0.0, line.other_uses)):
            for use in uses:
                both = sums.setdefault(use.process, [0.0, 0.0])
                both[0] += us * use.burst
                both[1] += us * use.closed
    return {process: (burst, closed) for process, (burst, closed) in sums.items()}


def measured_costs(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return CPU microseconds an order by mode and process, of what `python -m bench --json` wrote."""
    found: dict[str, dict[str, float]] = {}
    for result in report["results"]:
        its = found.setdefault(result["scenario"]["mode"], {})
        if not its:
            for name, cost in result["costs"].items():
                kind = name.partition("-")[0]
                its[kind] = its.get(kind, 0.0) + cost["cpu_ms_per_order"] * 1000
    return found


def print_lines(console: Console, lines: Sequence[Line]) -> None:
    table = Table(title="CPU microseconds an operation", title_justify="left", title_style="bold")
    table.add_column("operation")
    for name in ("here", "other end"):
        table.add_column(name, justify="right")
    table.add_column("who, for an order: in a burst, in the closed loop")
    for line in lines:
        who = ", ".join(f"{use.process} {use.burst:.2g}, {use.closed:.2g}" for use in line.uses)
        other = "" if line.other_us is None else f"{line.other_us:,.1f}"
        table.add_row(line.operation, f"{line.us:,.1f}", other, f"[dim]{who}[/dim]")
    console.print(table)


def print_floors(console: Console, lines: Sequence[Line], costs: Mapping[str, Mapping[str, float]]) -> None:
    """Print the sum by process, beside what was measured of the whole engine."""
    table = Table(title="CPU microseconds an order", title_justify="left", title_style="bold")
    table.add_column("process")
    for mode in ("burst", "closed"):
        for name in ("floor", "measured", "times the floor"):
            table.add_column(f"{mode}: {name}", justify="right")
    sums = floors(lines)
    sums["together"] = sum(burst for burst, _ in sums.values()), sum(closed for _, closed in sums.values())
    for process, both in sums.items():
        cells = []
        for mode, floor in zip(("burst", "closed"), both, strict=True):
            its = costs.get(mode, {})
            measured = sum(its.values()) if process == "together" else its.get(process)
            known = bool(measured)
            cells += [
                f"{floor:,.0f}",
                f"{measured:,.0f}" if known else "",
                f"{measured / floor:.1f}" if measured and floor else "",
            ]
        table.add_row(process, *cells, style="bold" if process == "together" else None)
    console.print(table)


@asynccontextmanager
async def _services() -> AsyncIterator[tuple[Postgres, Valkey]]:
    with tempfile.TemporaryDirectory(prefix="order-floor-") as folder:
        postgres, valkey = Postgres(Path(folder)), Valkey(Path(folder))
        try:
            postgres.start()
            valkey.start()
            yield postgres, valkey
        finally:
            valkey.stop()
            postgres.stop()


async def measure_lines(seconds: float) -> list[Line]:
    """Return every line; `seconds` of CPU time are spent on each, three times."""
    meter = Meter(seconds)
    async with _services() as (postgres, valkey):
        lines = pure_lines(meter) + await loopback_lines(meter) + await redis_lines(meter, valkey)
        return lines + await postgres_lines(meter, postgres)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.floor", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="what `python -m bench --json FILE` wrote"
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=_SECONDS, help="CPU time for each of three tries"
    )
    options = parser.parse_args(arguments)
    try:
        costs = measured_costs(json.loads(options.report.read_text())) if options.report else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"bench.floor: {options.report} is no report of bench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    lines = uvloop.run(measure_lines(options.seconds))
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    print_lines(out, lines)
    print_floors(out, lines, costs)
    out.print(f"[dim]{machine()}[/dim]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
