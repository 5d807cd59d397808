"""The load generator against a server that behaves, and one that misbehaves in known ways."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import pytest
from aiohttp import web
from orders.v1 import orders_pb2

from bench.load import OrderRun, Run, Scenario, Target, grpc_code, refusal, spec_of

BODIES = [{"side": "sell", "amount": 0.1, "inputToken": "SOL", "outputToken": "USDC"}]
LIFE = ["pending", "routing", "building", "submitted", "confirmed"]
IN_ORDER = list(enumerate(LIFE, start=1))

Event = tuple[int, str]


@dataclass
class Engine:
    """Answers like an order engine: what its watchers see is `events`."""

    events: list[Event] = field(default_factory=lambda: list(IN_ORDER))
    close_code: int = 1000
    hangs: bool = False
    """Watches stay open after the last of `events`."""
    refuse_every: int = 0
    final: str = "confirmed"
    failure_reason: str | None = None
    open_reads: int = 0
    """So many reads say that an order is still open."""
    posts: int = 0
    watches: int = 0
    most_open: int = 0
    url: str = ""
    hosts: Counter[str] = field(default_factory=Counter)
    _open: int = 0
    _ids: count[int] = field(default_factory=count)

    async def post(self, request: web.Request) -> web.Response:
        self.posts += 1
        self.hosts[request.host] += 1
        assert await request.json() == BODIES[0]
        if self.refuse_every and self.posts % self.refuse_every == 0:
            return web.json_response({"success": False, "reason": "TOO_MANY_ORDERS"}, status=429)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        return web.json_response({"success": True, "orderId": f"order-{next(self._ids)}"}, status=202)

    async def get(self, request: web.Request) -> web.Response:
        self.open_reads -= 1
        status = "submitted" if self.open_reads >= 0 else self.final
        reason = {} if self.failure_reason is None else {"failureReason": self.failure_reason}
        return web.json_response({"orderId": request.match_info["id"], "status": status} | reason)

    async def watch(self, request: web.Request) -> web.WebSocketResponse:
        self.watches += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for sequence, status in self.events:
            message = {"orderId": request.match_info["id"], "status": status}
            if status == "failed" and self.failure_reason:
                message["failureReason"] = self.failure_reason
            await socket.send_json(message | ({"sequence": sequence} if sequence else {}))
        self._open -= 1
        if self.hangs:
            await socket.receive()
        await socket.close(code=self.close_code)
        return socket


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    app = web.Application()
    app.add_routes(
        [
            web.post("/api/orders/execute", engine.post),
            web.get("/api/orders/{id}", engine.get),
            web.get("/api/orders/{id}/ws", engine.watch),
        ]
    )
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield engine
    await runner.cleanup()


def a_run(engine: Engine, mode: str, orders: int, stall_seconds: float = 10.0, **scenario: float) -> Run:
    base = Scenario(name=mode, mode=mode, order_count=orders, concurrency=5, rate=500.0)
    return Run(replace(base, **scenario), Target([engine.url]), BODIES, stall_seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["burst", "closed", "rate"])
async def test_every_order_is_submitted_watched_and_seen_to_its_end(engine: Engine, mode: str) -> None:
    run = a_run(engine, mode, 40)
    await run.drive()
    assert (engine.posts, engine.watches) == (40, 40)
    assert (run.accepted_count, run.closed_count) == (40, 40)
    assert len({order.order_id for order in run.orders}) == 40
    assert all(order.complete and order.final == "confirmed" for order in run.orders)
    assert all(order.due < order.accepted < order.closed for order in run.orders)
    assert not run.refused
    assert run.finished == max(order.closed for order in run.orders)


async def test_a_closed_loop_has_no_more_orders_open_than_clients(engine: Engine) -> None:
    await a_run(engine, "closed", 30).drive()
    assert engine.most_open <= 5


async def test_at_a_rate_one_order_is_due_in_each_interval_each_at_another_moment(engine: Engine) -> None:
    run = a_run(engine, "rate", 20)
    await run.drive()
    dues = sorted((order.due - run.started) * 500 for order in run.orders)
    assert [math.floor(due + 1e-6) for due in dues] == list(range(20))
    moments = sorted(due % 1 for due in dues)
    assert max(later - earlier for earlier, later in pairwise(moments)) < 0.1


async def test_in_a_burst_only_a_share_is_watched_and_the_rest_is_read_back(engine: Engine) -> None:
    run = a_run(engine, "burst", 100, watch_fraction=0.1)
    await run.drive()
    # A tenth, and those of the last five that are not among it.
    assert engine.watches == sum(order.watched for order in run.orders) == 14
    assert Counter(order.final for order in run.orders) == {"": 86, "confirmed": 14}
    assert await run.read_back() == 0
    assert Counter(order.final for order in run.orders) == {"confirmed": 100}


async def test_an_order_that_closes_late_is_counted_and_ends_the_run(engine: Engine) -> None:
    run = a_run(engine, "burst", 20, watch_fraction=0.0)
    await run.drive()
    finished = run.finished
    engine.open_reads = 3
    assert await run.read_back() == 3
    assert run.finished > finished
    assert Counter(order.final for order in run.orders) == {"confirmed": 20}


async def test_why_orders_failed_is_known_of_watched_and_unwatched_ones(engine: Engine) -> None:
    engine.events = [(1, "pending"), (2, "routing"), (3, "failed")]
    engine.final, engine.failure_reason = "failed", "no_route"
    run = a_run(engine, "burst", 20, watch_fraction=0.0)
    await run.drive()
    await run.read_back()
    assert Counter((order.final, order.failure_reason) for order in run.orders) == {
        ("failed", "no_route"): 20
    }
    assert sum(order.watched for order in run.orders) == 5


async def test_refusals_are_counted_by_status_and_reason_and_the_rest_goes_on(engine: Engine) -> None:
    engine.refuse_every = 4
    run = a_run(engine, "closed", 40)
    await run.drive()
    assert run.refused == {"429 TOO_MANY_ORDERS": 10}
    assert (run.accepted_count, run.closed_count) == (30, 30)


async def test_a_server_that_is_not_there_is_counted_and_the_run_ends(engine: Engine) -> None:
    run = a_run(engine, "closed", 5)
    run = Run(run.scenario, Target(["http://127.0.0.1:1"]), BODIES)
    await run.drive()
    assert run.refused == {"ConnectionRefusedError": 5}
    assert run.orders == []


async def test_orders_that_never_close_are_given_up_in_the_end(engine: Engine) -> None:
    engine.events, engine.hangs = IN_ORDER[:3], True
    engine.open_reads = 10**9
    run = a_run(engine, "closed", 1000, stall_seconds=0.3)
    await run.drive()
    # Five clients, one order each: nobody goes on to the next.
    assert run.accepted_count == 5
    assert run.watch_ends == {"gave up": 5}
    assert await run.read_back() == 5
    assert [order.final for order in run.orders] == [""] * 5


@pytest.mark.parametrize(
    ("events", "complete"),
    [
        (IN_ORDER, True),
        ([(1, "pending"), (2, "routing"), (3, "failed")], True),
        ([(1, "pending"), (2, "routing"), (3, "routing"), *[(n + 1, s) for n, s in IN_ORDER[2:]]], True),
        (IN_ORDER[1:], False),
        ([*IN_ORDER[:2], *IN_ORDER[3:]], False),
        ([*IN_ORDER[:2], IN_ORDER[1], *IN_ORDER[2:]], False),
        ([IN_ORDER[1], IN_ORDER[0], *IN_ORDER[2:]], False),
        ([*IN_ORDER, (6, "failed")], False),
        ([(0, status) for status in LIFE], True),
        ([(0, status) for status in LIFE[1:]], True),
        ([(0, status) for status in ("pending", "building", "submitted", "confirmed")], False),
        ([(0, "pending"), (0, "routing"), (0, "failed")], True),
    ],
    ids=str,
)
async def test_a_watcher_is_complete_only_if_it_saw_every_event_once_and_in_order(
    engine: Engine, events: list[Event], complete: bool
) -> None:
    engine.events = events
    run = a_run(engine, "closed", 1)
    await run.drive()
    assert [order.complete for order in run.orders] == [complete]


async def test_a_watch_that_ends_before_its_order_does_is_counted_by_code(engine: Engine) -> None:
    engine.events, engine.close_code = IN_ORDER[:2], 1012
    run = a_run(engine, "closed", 3)
    await run.drive()
    assert run.watch_ends == {"1012": 3}
    assert not any(order.complete for order in run.orders)


def test_an_order_nobody_saw_the_end_of_is_not_complete() -> None:
    assert not OrderRun(due=0.0).complete


def test_watched_orders_are_spread_evenly_and_the_last_ones_are_always_watched() -> None:
    scenario = Scenario(name="burst", mode="burst", order_count=1000, concurrency=10, watch_fraction=0.02)
    watched = [index for index in range(1000) if scenario.watches(index)]
    assert watched == [*range(49, 990, 50), *range(990, 1000)]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (429, b'{"reason":"TOO_MANY_ORDERS"}', "429 TOO_MANY_ORDERS"),
        (400, b'{"message":"bad"}', "400"),
        (502, b"<html>", "502"),
        (500, b"[]", "500"),
    ],
)
def test_a_refusal_is_named_by_status_and_reason(status: int, body: bytes, said: str) -> None:
    assert refusal(status, body) == said


def test_a_grpc_code_is_named() -> None:
    assert [grpc_code(0), grpc_code(14), grpc_code(99)] == ["OK", "UNAVAILABLE", "99"]


def test_a_body_becomes_the_same_order_in_the_contract() -> None:
    spec = spec_of(
        {"side": "buy", "amount": 10, "inputToken": "SOL", "outputToken": "USDC", "slippageBps": 7}
    )
    assert spec == orders_pb2.OrderSpec(
        side=orders_pb2.SIDE_BUY,
        amount="10",
        input_token="SOL",
        output_token="USDC",
        slippage_bps=7,
        market=orders_pb2.MarketOrder(),
    )
    assert not spec_of(BODIES[0]).HasField("slippage_bps")


@pytest.mark.parametrize("mode", ["burst", "closed", "rate"])
async def test_of_several_gateways_each_gets_its_share(engine: Engine, mode: str) -> None:
    run = a_run(engine, mode, 40)
    by_name = engine.url.replace("127.0.0.1", "localhost")
    run = Run(run.scenario, Target([engine.url, by_name]), BODIES)
    await run.drive()
    assert all(order.complete for order in run.orders)
    assert set(engine.hosts) == {engine.url[7:], by_name[7:]}


async def test_nothing_is_left_running(engine: Engine) -> None:
    before = asyncio.all_tasks()
    await a_run(engine, "burst", 10, watch_fraction=0.5).drive()
    assert {task for task in asyncio.all_tasks() - before if "bench" in repr(task)} == set()
