"""Drives a server with orders, and keeps what became of each.

Three shapes of load:

    burst     every connection submits as fast as it is answered; a few orders are watched
    closed    every client submits an order, watches it to its end, and only then submits the next
    rate      orders are due at a fixed rate, whether the server keeps up or not; latencies count from
              when an order was due, so a stalled server cannot hide behind a stalled generator

The same three go over REST and WebSocket to any server that offers them; `burst` also goes over gRPC,
many orders a message and all watches on one stream.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final
from uuid import uuid4

import grpc
import msgspec
from orders.v1 import orders_pb2, orders_pb2_grpc

from bench.wire import Address, HttpConnection, WebSocket, WireError, request_bytes

BODIES: Final[Sequence[dict[str, Any]]] = (
    # Both ways, so that the pools' prices stay where they are.
    {"side": "sell", "amount": 0.1, "inputToken": "SOL", "outputToken": "USDC"},
    {"side": "sell", "amount": 15, "inputToken": "USDC", "outputToken": "SOL"},
)
CLOSED: Final = frozenset({"confirmed", "failed", "cancelled", "expired"})
_LIFE: Final = ("routing", "building", "submitted", "confirmed")
"""What a watcher of a confirmed order has to have seen where events carry no sequence."""
_PATH: Final = "/api/orders/execute"
_STATUS_NAMES: Final = {
    number: name.removeprefix("ORDER_STATUS_").lower() for name, number in orders_pb2.OrderStatus.items()
}
_REASON_NAMES: Final = {
    number: "" if number == 0 else name.removeprefix("FAILURE_REASON_").lower()
    for name, number in orders_pb2.FailureReason.items()
}
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""Its multiples are spread evenly over the unit interval, any number of them (Weyl)."""
_LINGER_SECONDS: Final = 2.0
_READERS: Final = 8
"""Connections that read orders back after the clock has stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    mode: str
    """burst, closed, rate or grpc."""
    order_count: int
    concurrency: int = 50
    """Connections that submit (burst), clients (closed), batches under way (grpc)."""
    rate: float = 0.0
    """Orders a second (rate)."""
    watch_fraction: float = 1.0
    batch: int = 100
    """Orders in one message (grpc)."""

    def watches(self, index: int) -> bool:
        """Answer whether the order of that index is watched: evenly spread, and the last ones always.

        When the last orders have closed the run is over, so their end has to be seen.
        """
        if self.mode == "closed" or index >= self.order_count - min(self.concurrency, 50):
            return True
        return int((index + 1) * self.watch_fraction) > int(index * self.watch_fraction)


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load."""

    urls: Sequence[str]
    """Its gateways; connections are spread over them."""
    grpc_address: str = ""


@dataclass(frozen=True, slots=True)
class _Gateway:
    address: Address
    requests: Sequence[bytes]
    """What is submitted to it, in turn."""


class _Event(msgspec.Struct):
    status: str = ""
    sequence: int = 0
    failure_reason: str | None = msgspec.field(name="failureReason", default=None)


class _Accepted(msgspec.Struct):
    order_id: str = msgspec.field(name="orderId", default="")


Read = Callable[[str], Awaitable[tuple[str, str | None]]]
"""Reads an order back: its status, and why it failed."""

_decode_event = msgspec.json.Decoder(_Event).decode
_decode_accepted = msgspec.json.Decoder(_Accepted).decode


@dataclass(slots=True)
class OrderRun:
    """What became of one order. Times are of time.perf_counter."""

    due: float
    order_id: str = ""
    accepted: float = 0.0
    """0: not accepted."""
    watched: bool = False
    closed: float = 0.0
    """When a watcher saw the closing event; 0: none did."""
    final: str = ""
    failure_reason: str = ""
    """Why it failed, where the server says so."""
    statuses: list[str] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)

    def saw(self, status: str, sequence: int, now: float, failure_reason: str | None = None) -> bool:
        """Note an event; answer whether it closed the order."""
        self.statuses.append(status)
        self.sequences.append(sequence)
        if status not in CLOSED or self.closed:
            return False
        self.closed = now
        self.ended(status, failure_reason)
        return True

    def ended(self, status: str, failure_reason: str | None) -> None:
        self.final, self.failure_reason = status, failure_reason or ""

    @property
    def complete(self) -> bool:
        """Whether the watcher saw every event once and in order, up to the closing one.

        By sequence, 1 to n; by status where the server's events carry no sequence. `pending` is what
        the answer to the submit says, so a server need not repeat it.
        """
        closing = [status for status in self.statuses if status in CLOSED]
        if len(closing) != 1 or self.statuses[-1] != closing[0]:
            return False
        if any(self.sequences):
            return self.sequences == list(range(1, len(self.sequences) + 1))
        seen = [status for status in self.statuses if status != "pending"]
        return self.final != "confirmed" or tuple(seen) == _LIFE


class Run:
    """One scenario against one target. `drive` does it; then the figures are here."""

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        bodies: Sequence[dict[str, Any]],
        stall_seconds: float = 30.0,
    ) -> None:
        """`bodies` are submitted in turn; after `stall_seconds` without any progress the run gives up."""
        self.scenario = scenario
        self.orders: list[OrderRun] = []
        self.refused: Counter[str] = Counter()
        """Submits that were not accepted: HTTP status or gRPC code, with the reason where one is given."""
        self.watch_ends: Counter[str] = Counter()
        """How watches ended, by close code or gRPC code."""
        self.accepted_count = 0
        self.closed_count = 0
        self.started = 0.0
        self.submitted = 0.0
        """When the last order was accepted."""
        self._target = target
        self._bodies = bodies
        self._stall_seconds = stall_seconds
        self._progressed = 0.0
        self._given_up = False
        self._closings: dict[str, asyncio.Future[None]] = {}
        self._open_watches: dict[str, WebSocket | None] = {}
        """By order; over gRPC they share a stream, so there is nothing to hold."""
        self._last_ended = asyncio.Event()
        self._connections: list[HttpConnection] = []
        bodies_as_json = [json.dumps(body, separators=(",", ":")).encode() for body in bodies]
        self._gateways = [
            _Gateway(address, [request_bytes(address, "POST", _PATH, body) for body in bodies_as_json])
            for address in map(Address.parse, target.urls)
        ]

    async def drive(self) -> None:
        """Submit every order and follow the watched ones to their end."""
        self.started = self._progressed = time.perf_counter()
        drivers = {"burst": self._burst, "closed": self._closed, "rate": self._rate, "grpc": self._grpc}
        async with asyncio.TaskGroup() as group:
            guard = group.create_task(self._give_up_when_stalled())
            await drivers[self.scenario.mode]()
            await self._linger()
            guard.cancel()
        for socket in self._open_watches.values():
            if socket is not None:
                socket.close()
        for connection in self._connections:
            connection.close()

    @property
    def finished(self) -> float:
        """When the last watched order closed; where none was watched, when the last was accepted."""
        return max((order.closed for order in self.orders), default=0.0) or self.submitted

    # ---- REST and WebSocket ------------------------------------------------------------------------

    async def _burst(self) -> None:
        indexes = self._indexes()

        async def client(group: asyncio.TaskGroup, gateway: _Gateway) -> None:
            connection = self._connection()
            for index in indexes:
                order = OrderRun(time.perf_counter(), watched=self.scenario.watches(index))
                accepted = await self._submit(connection, gateway, index, order)
                if accepted and order.watched:
                    group.create_task(self._watch(gateway, order))

        async with asyncio.TaskGroup() as group:
            for _, gateway in zip(range(self.scenario.concurrency), cycle(self._gateways), strict=False):
                group.create_task(client(group, gateway))

    async def _closed(self) -> None:
        indexes = self._indexes()

        async def client(gateway: _Gateway) -> None:
            connection = self._connection()
            for index in indexes:
                order = OrderRun(time.perf_counter(), watched=True)
                if await self._submit(connection, gateway, index, order):
                    await self._watch(gateway, order)

        async with asyncio.TaskGroup() as group:
            for _, gateway in zip(range(self.scenario.concurrency), cycle(self._gateways), strict=False):
                group.create_task(client(gateway))

    async def _rate(self) -> None:
        free_of_each: list[list[HttpConnection]] = [[] for _ in self._gateways]

        async def client(index: int, due: float) -> None:
            gateway = self._gateways[index % len(self._gateways)]
            free = free_of_each[index % len(self._gateways)]
            connection = free.pop() if free else self._connection()
            order = OrderRun(due, watched=self.scenario.watches(index))
            accepted = await self._submit(connection, gateway, index, order)
            free.append(connection)
            if accepted and order.watched:
                await self._watch(gateway, order)

        async with asyncio.TaskGroup() as group:
            for index in self._indexes():
                # Each at another moment of its interval, or all would come at the same moment of a slot.
                due = self.started + (index + index * _GOLDEN % 1) / self.scenario.rate
                # uvloop counts in milliseconds, and may wake up to one too early.
                while (wait := due - time.perf_counter()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(wait)
                group.create_task(client(index, due))

    async def _linger(self) -> None:
        """Give the server time to end the watches of closed orders: an event too many would come now."""
        self._last_ended.clear()
        if self._open_watches and not self._given_up:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    await self._last_ended.wait()
            self.watch_ends["left open"] += len(self._open_watches)

    def _watch_ended(self, order_id: str, code: str) -> None:
        """Note how a watch ended; it will see no more."""
        if order_id in self._open_watches:
            del self._open_watches[order_id]
            self.watch_ends[code] += 1
        if not self._open_watches:
            self._last_ended.set()
        self._release(order_id)

    def _release(self, order_id: str) -> None:
        """Let whoever waits for the end of that order go on."""
        closing = self._closings.get(order_id)
        if closing is not None and not closing.done():
            closing.set_result(None)

    def _indexes(self, step: int = 1) -> Iterator[int]:
        """Yield the orders' indexes, shared by all clients, until the run gives up."""
        for index in range(0, self.scenario.order_count, step):
            if self._given_up:
                return
            yield index

    def _connection(self) -> HttpConnection:
        connection = HttpConnection()
        self._connections.append(connection)
        return connection

    async def _submit(
        self, connection: HttpConnection, gateway: _Gateway, index: int, order: OrderRun
    ) -> bool:
        request = gateway.requests[index % len(gateway.requests)]
        try:
            answer = await connection.request(gateway.address, request)
        except (OSError, WireError) as error:
            self._refuse(type(error).__name__)
            # A server that is down would be asked thousands of times a second.
            await asyncio.sleep(0.05)
            return False
        if answer.status >= 300:
            self._refuse(refusal(answer.status, answer.body))
            return False
        try:
            order.order_id = _decode_accepted(answer.body).order_id
        except msgspec.DecodeError:
            order.order_id = ""
        if not order.order_id:
            self._refuse(f"{answer.status} without an orderId")
            return False
        self._accept(order)
        return True

    async def _watch(self, gateway: _Gateway, order: OrderRun) -> None:
        """Return once the order has closed, or its watch has ended otherwise."""
        if self._given_up:
            return
        closing = asyncio.get_running_loop().create_future()
        self._closings[order.order_id] = closing

        def on_text(message: bytes) -> None:
            now = self._progressed = time.perf_counter()
            try:
                event = _decode_event(message)
            except msgspec.DecodeError:
                order.saw("unreadable", -1, now)
                return
            if order.saw(event.status.lower(), event.sequence, now, event.failure_reason):
                self.closed_count += 1
                self._release(order.order_id)

        def on_end(code: int) -> None:
            self._watch_ended(order.order_id, str(code))

        socket = WebSocket(gateway.address, f"/api/orders/{order.order_id}/ws", on_text, on_end)
        self._open_watches[order.order_id] = socket
        try:
            await socket.open()
        except OSError as error:
            self._watch_ended(order.order_id, type(error).__name__)
        await closing
        del self._closings[order.order_id]

    # ---- gRPC --------------------------------------------------------------------------------------

    async def _grpc(self) -> None:
        """Submit in batches and watch on one stream, all on one connection."""
        options = [("grpc.max_receive_message_length", 64 * 1024 * 1024)]
        async with grpc.aio.insecure_channel(self._target.grpc_address, options=options) as channel:
            stub = orders_pb2_grpc.OrderServiceStub(channel)
            waiting: asyncio.Queue[list[str]] = asyncio.Queue()
            watched: dict[str, OrderRun] = {}
            stream = stub.WatchOrders(_watch_requests(waiting))
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read_events(stream, watched))
                firsts = self._indexes(self.scenario.batch)
                run_id = uuid4().hex

                async def submitter() -> None:
                    for first in firsts:
                        await self._submit_batch(stub, run_id, first, watched, waiting)

                async with asyncio.TaskGroup() as submitters:
                    for _ in range(self.scenario.concurrency):
                        submitters.create_task(submitter())
                await asyncio.gather(*self._closings.values())
                await self._linger()
                reader.cancel()

    async def _submit_batch(
        self,
        stub: orders_pb2_grpc.OrderServiceAsyncStub,
        run_id: str,
        first: int,
        watched: dict[str, OrderRun],
        waiting: asyncio.Queue[list[str]],
    ) -> None:
        indexes = range(first, min(first + self.scenario.batch, self.scenario.order_count))
        requests = [
            orders_pb2.SubmitOrderRequest(
                spec=spec_of(self._bodies[index % len(self._bodies)]), request_id=f"{run_id}-{index}"
            )
            for index in indexes
        ]
        due = time.perf_counter()
        try:
            answer = await stub.BatchSubmitOrders(
                orders_pb2.BatchSubmitOrdersRequest(requests=requests), timeout=self._stall_seconds
            )
        except grpc.aio.AioRpcError as error:
            for _ in indexes:
                self._refuse(error.code().name)
            return
        to_watch: list[str] = []
        for index, result in zip(indexes, answer.results, strict=True):
            if result.HasField("error"):
                self._refuse(f"{grpc_code(result.error.code)} {result.error.message}"[:60])
                continue
            order = OrderRun(due, result.response.order.order_id, watched=self.scenario.watches(index))
            self._accept(order)
            if order.watched:
                watched[order.order_id] = order
                self._closings[order.order_id] = asyncio.get_running_loop().create_future()
                self._open_watches[order.order_id] = None
                to_watch.append(order.order_id)
        waiting.put_nowait(to_watch)

    async def _read_events(
        self, stream: AsyncIterable[orders_pb2.WatchOrdersResponse], watched: dict[str, OrderRun]
    ) -> None:
        try:
            async for response in stream:
                now = self._progressed = time.perf_counter()
                for event in response.events:
                    order = watched[event.order_id]
                    status = _STATUS_NAMES.get(event.status, "unknown")
                    if order.saw(status, event.sequence, now, _REASON_NAMES.get(event.failure_reason)):
                        self.closed_count += 1
                        self._release(event.order_id)
                for ended in response.ended:
                    self._watch_ended(ended.order_id, grpc_code(ended.status.code))
        except grpc.aio.AioRpcError as error:
            for order_id in tuple(self._open_watches):
                self._watch_ended(order_id, error.code().name)

    # ---- After the clock has stopped ---------------------------------------------------------------

    async def read_back(self) -> int:
        """Read every order whose end was not seen until it has closed; return how many were still open.

        Fills in `final`, and `closed` for those that were open at first, so that a run is not over before
        its last order is. Gives up when nothing has closed for `stall_seconds`.
        """
        unseen = await self._read([order for order in self.orders if not order.final])
        late_count = len(unseen)
        self._progressed = time.perf_counter()
        while unseen and time.perf_counter() - self._progressed < self._stall_seconds:
            await asyncio.sleep(0.05)
            still_open = await self._read(unseen)
            now = time.perf_counter()
            for order in unseen:
                if order.final:
                    order.closed = self._progressed = now
            unseen = still_open
        return late_count

    async def _read(self, orders: Sequence[OrderRun]) -> list[OrderRun]:
        """Read these orders once; return those that are still open, or could not be read."""
        waiting = iter(orders)

        async def reader(read: Read) -> None:
            for order in waiting:
                try:
                    status, failure_reason = await read(order.order_id)
                except (OSError, WireError, msgspec.DecodeError, grpc.aio.AioRpcError):
                    continue
                if status in CLOSED:
                    order.ended(status, failure_reason)

        async with AsyncExitStack() as stack:
            if self.scenario.mode == "grpc":
                channel = await stack.enter_async_context(
                    grpc.aio.insecure_channel(self._target.grpc_address)
                )
                readers = [reader(_grpc_reader(channel)) for _ in range(_READERS)]
            else:
                address = self._gateways[0].address
                connections = [HttpConnection() for _ in range(_READERS)]
                for connection in connections:
                    stack.callback(connection.close)
                readers = [reader(_rest_reader(connection, address)) for connection in connections]
            await asyncio.gather(*readers)
        return [order for order in orders if not order.final]

    # ---- Counting ----------------------------------------------------------------------------------

    def _accept(self, order: OrderRun) -> None:
        order.accepted = self.submitted = self._progressed = time.perf_counter()
        self.accepted_count += 1
        self.orders.append(order)

    def _refuse(self, code: str) -> None:
        self.refused[code] += 1

    async def _give_up_when_stalled(self) -> None:
        while True:
            left = self._progressed + self._stall_seconds - time.perf_counter()
            if left <= 0:
                break
            await asyncio.sleep(left)
        self._given_up = True
        for connection in self._connections:
            connection.close()
        for order_id, closing in self._closings.items():
            if not closing.done():
                self.watch_ends["gave up"] += 1
                self._release(order_id)


def _rest_reader(connection: HttpConnection, address: Address) -> Read:
    async def read(order_id: str) -> tuple[str, str | None]:
        request = request_bytes(address, "GET", f"/api/orders/{order_id}")
        order = _decode_event((await connection.request(address, request)).body)
        return order.status.lower(), order.failure_reason

    return read


def _grpc_reader(channel: grpc.aio.Channel) -> Read:
    stub = orders_pb2_grpc.OrderServiceStub(channel)

    async def read(order_id: str) -> tuple[str, str | None]:
        request = orders_pb2.GetOrderRequest(order_id=order_id)
        order = (await stub.GetOrder(request, timeout=10.0)).order
        return _STATUS_NAMES.get(order.status, "unknown"), _REASON_NAMES.get(order.failure_reason)

    return read


async def _watch_requests(
    waiting: asyncio.Queue[list[str]],
) -> AsyncIterator[orders_pb2.WatchOrdersRequest]:
    while True:
        order_ids = await waiting.get()
        yield orders_pb2.WatchOrdersRequest(
            watch=[orders_pb2.WatchOrderRequest(order_id=order_id) for order_id in order_ids]
        )


def spec_of(body: dict[str, Any]) -> orders_pb2.OrderSpec:
    """Return a REST body as the contract has it."""
    return orders_pb2.OrderSpec(
        side=orders_pb2.Side.SIDE_BUY if body["side"] == "buy" else orders_pb2.Side.SIDE_SELL,
        amount=str(body["amount"]),
        input_token=body["inputToken"],
        output_token=body["outputToken"],
        slippage_bps=body.get("slippageBps"),
        market=orders_pb2.MarketOrder(),
    )


def refusal(status: int, body: bytes) -> str:
    """Return an HTTP status with the reason a problem+json body gives."""
    try:
        reason = json.loads(body).get("reason", "")
    except (ValueError, AttributeError):
        reason = ""
    return f"{status} {reason}".strip()


def grpc_code(number: int) -> str:
    """Return the name of a google.rpc.Code."""
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))
