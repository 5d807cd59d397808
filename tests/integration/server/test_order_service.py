"""Every call of OrderService and every error it can have, over a real channel."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import chain
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from orders.v1 import orders_pb2 as pb

from engine.domain.lifecycle import Claimed, Signed
from engine.domain.order import OrderStatus, WatchedEvent
from engine.domain.tokens import SOL, USDC
from engine.hints import Hints, events_told
from engine.settings import Settings
from engine.storage.migrate import read_news_key
from tests.integration.engine.storage.refusing import read_only
from tests.integration.server.calls import UNKNOWN, Stub, refusal, refusal_of, simnet, spec, stub_of, submit
from tests.serving import ATTEMPT, Worker, address, no_route, order_server, with_grpc_port

Until = Callable[..., Awaitable[None]]

NO_STATUS: Any = 99
FIELDS_OF_ORDER = {"order_id", "spec", "status", "attempt", "sequence", "create_time", "update_time"}


@pytest.fixture(scope="module")
async def served(shared_database: Settings, valkey: Settings) -> AsyncIterator[Settings]:
    """A server that all tests of this file share, with a node to ask for prices."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    async with simnet() as node:
        settings = replace(
            shared_database,
            redis_host=valkey.redis_host,
            redis_port=valkey.redis_port,
            redis_password=valkey.redis_password,
            grpc_port=port,
            server_metrics_port=0,
            solana_rpc_url=node.solana_rpc_url,
            solana_ws_url=node.solana_ws_url,
        )
        async with order_server(settings):
            yield settings


@pytest.fixture
async def stub(served: Settings) -> AsyncIterator[Stub]:
    async with stub_of(served) as stub:
        yield stub


@pytest.fixture
async def worker(served: Settings) -> AsyncIterator[Worker]:
    async with Worker(served) as worker:
        yield worker


async def submitted(stub: Stub, request_id: str = "", **changes: Any) -> pb.Order:
    order: pb.Order = (await stub.SubmitOrder(submit(request_id, **changes))).order
    return order


@pytest.fixture
async def told(served: Settings, until: Until) -> AsyncIterator[list[WatchedEvent]]:
    """The events that come with hints."""
    hints, told = Hints(served, await read_news_key(served)), list[WatchedEvent]()
    async with asyncio.TaskGroup() as group:
        hearing = group.create_task(
            hints.run(lambda _order_ids, news: told.extend(chain.from_iterable(map(events_told, news))))
        )
        await until(lambda: hints.up)
        yield told
        hearing.cancel()
    await hints.aclose()


# ---- Submitting ------------------------------------------------------------------------------------


async def test_submit_answers_with_the_stored_order(stub: Stub) -> None:
    answer = await stub.SubmitOrder(submit())
    order = answer.order
    assert not answer.deduplicated
    assert {field.name for field, _ in order.ListFields()} == FIELDS_OF_ORDER
    assert (order.status, order.sequence, order.attempt) == (pb.ORDER_STATUS_PENDING, 1, 1)
    assert order.spec == spec(market=pb.MarketOrder())
    read = await stub.GetOrder(pb.GetOrderRequest(order_id=order.order_id))
    assert read.order == order
    assert not read.routing_decisions


async def test_order_ids_are_uuid7_that_end_with_ten_bits_of_zero(stub: Stub) -> None:
    before = time.time_ns() // 1_000_000
    order_id = UUID((await submitted(stub)).order_id)
    assert order_id.version == 7
    assert before <= order_id.int >> 80 <= time.time_ns() // 1_000_000
    assert order_id.int & 0x3FF == 0


async def test_everything_that_can_be_asked_comes_back(stub: Stub) -> None:
    asked = spec(
        side=pb.SIDE_BUY,
        amount="0.000001",
        input_token=SOL.mint,
        output_token=USDC.mint,
        slippage_bps=0,
        expire_time=Timestamp(seconds=253_402_300_799, nanos=123_456_000),
        market=pb.MarketOrder(),
    )
    order = (await stub.SubmitOrder(pb.SubmitOrderRequest(spec=asked))).order
    asked.input_token, asked.output_token = "SOL", "USDC"
    assert order.spec == asked
    assert order.spec.HasField("slippage_bps")
    assert (await stub.GetOrder(pb.GetOrderRequest(order_id=order.order_id))).order.spec == asked


@pytest.mark.parametrize(
    ("amount", "token", "kept"),
    [
        ("1", "SOL", "1"),
        ("1.50", "SOL", "1.5"),
        ("0.000000001", "SOL", "0.000000001"),
        ("18446744073.709551615", "SOL", "18446744073.709551615"),
        ("00.10", "SOL", "0.1"),
        ("0.00001", "BONK", "0.00001"),
        ("1.000000000000000000", "BONK", "1"),
    ],
)
async def test_amounts_keep_every_digit(amount: str, token: str, kept: str, stub: Stub) -> None:
    assert (await submitted(stub, amount=amount, input_token=token)).spec.amount == kept


@pytest.mark.parametrize(
    "amount",
    [
        "", "0", "0.0", "-1", "+1", "NaN", "nan", "Infinity", "-inf", "1e400", "1e5", "1E5", "1_000", "1,5",
        " 1", "1 ", "0x10", ".5", "5.", "1.2.3", "\uff11", "\u0663", "0.0000000001", "0." + "1" * 30,
        "18446744073.709551616", "1" * 21, "9" * 100_000, "1\n", "one",
    ],
)  # fmt: skip
async def test_amounts_that_are_none_are_refused(amount: str, stub: Stub) -> None:
    said = await refusal(stub.SubmitOrder(submit(amount=amount)))
    assert (said.code, said.reason) == ("INVALID_ARGUMENT", "INVALID_ORDER")
    assert set(said.fields) == {"spec.amount"}
    assert len(said.message) < 200


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"side": 0}, {"spec.side"}),
        ({"side": 99}, {"spec.side"}),
        ({"input_token": ""}, {"spec.input_token"}),
        ({"input_token": "sol"}, {"spec.input_token"}),
        ({"output_token": "x" * 5000}, {"spec.output_token"}),
        ({"output_token": "SOL"}, {"spec.output_token"}),
        ({"output_token": SOL.mint}, {"spec.output_token"}),
        ({"slippage_bps": -1}, {"spec.slippage_bps"}),
        ({"slippage_bps": 10_001}, {"spec.slippage_bps"}),
        ({"expire_time": Timestamp(seconds=253_402_300_800)}, {"spec.expire_time"}),
        ({"expire_time": Timestamp(seconds=-(2**62))}, {"spec.expire_time"}),
        ({"expire_time": Timestamp(nanos=2_000_000_000)}, {"spec.expire_time"}),
        (
            {"amount": "x", "output_token": "NOPE", "slippage_bps": -1},
            {"spec.amount", "spec.output_token", "spec.slippage_bps"},
        ),
    ],
)
async def test_every_field_that_is_wrong_has_its_line(
    changes: dict[str, Any], fields: set[str], stub: Stub
) -> None:
    said = await refusal(stub.SubmitOrder(submit(**changes)))
    assert (said.code, said.reason) == ("INVALID_ARGUMENT", "INVALID_ORDER")
    assert set(said.fields) == fields
    quote = await refusal(stub.GetQuote(pb.GetQuoteRequest(spec=spec(**changes))))
    assert quote.fields == said.fields


async def test_a_request_without_anything_names_every_field(stub: Stub) -> None:
    said = await refusal(stub.SubmitOrder(pb.SubmitOrderRequest(request_id="\t")))
    assert set(said.fields) == {
        "spec.side", "spec.amount", "spec.input_token", "spec.output_token", "request_id",
    }  # fmt: skip


# ---- Idempotency -----------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ["x", "0", "a b", " ", "~" * 64, '{"quote":\'"\'}'])
async def test_a_request_id_is_any_printable_ascii(request_id: str, stub: Stub) -> None:
    first = await stub.SubmitOrder(submit(request_id, amount="2"))
    again = await stub.SubmitOrder(submit(request_id, amount="2"))
    assert (again.order, again.deduplicated) == (first.order, True)


@pytest.mark.parametrize("request_id", ["x" * 65, "tab\t", "new\nline", "\x7f", "é", "\x00", "\u200b"])
async def test_any_other_request_id_is_refused(request_id: str, stub: Stub) -> None:
    said = await refusal(stub.SubmitOrder(submit(request_id)))
    assert (said.code, set(said.fields)) == ("INVALID_ARGUMENT", {"request_id"})


async def test_without_a_request_id_each_request_is_an_order(stub: Stub) -> None:
    assert (await submitted(stub)).order_id != (await submitted(stub)).order_id


async def test_a_replay_is_answered_for_ever_with_the_order_as_it_stands(stub: Stub, worker: Worker) -> None:
    first = await submitted(stub, "for ever")
    await worker.move(first.order_id, Claimed())
    under_way = await stub.SubmitOrder(submit("for ever"))
    assert (under_way.order.order_id, under_way.deduplicated) == (first.order_id, True)
    assert under_way.order.status == pb.ORDER_STATUS_ROUTING
    await stub.CancelOrder(pb.CancelOrderRequest(order_id=first.order_id))
    closed = await stub.SubmitOrder(submit("for ever"))
    assert (closed.order.order_id, closed.order.status) == (first.order_id, pb.ORDER_STATUS_CANCELLED)


async def test_the_same_order_in_other_words_is_the_same(stub: Stub) -> None:
    first = await submitted(stub, "other words", amount="1.5")
    again = await submitted(
        stub, "other words", amount="01.500", input_token=SOL.mint, market=pb.MarketOrder()
    )
    assert again.order_id == first.order_id


@pytest.mark.parametrize(
    "changes",
    [
        {"side": pb.SIDE_BUY},
        {"amount": "1.6"},
        {"input_token": "RAY"},
        {"output_token": "USDT"},
        {"slippage_bps": 50},
        {"slippage_bps": 0},
        {"expire_time": Timestamp(seconds=4_000_000_000)},
    ],
)
async def test_a_request_id_with_another_order_is_refused(changes: dict[str, Any], stub: Stub) -> None:
    request_id = f"reused, {'/'.join(changes)} {len(str(changes))}"
    await submitted(stub, request_id)
    said = await refusal(stub.SubmitOrder(submit(request_id, **changes)))
    assert (said.code, said.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


# ---- Batches ---------------------------------------------------------------------------------------


async def test_orders_of_a_batch_have_each_their_own_result_in_order(stub: Stub) -> None:
    await submitted(stub, "batch, earlier")
    answer = await stub.BatchSubmitOrders(
        pb.BatchSubmitOrdersRequest(
            requests=[
                submit(amount="1"),
                submit(amount="nothing"),
                submit("batch, new"),
                submit("batch, new"),
                submit("batch, new", amount="7"),
                submit("batch, earlier"),
                pb.SubmitOrderRequest(),
                submit(amount="2"),
            ]
        )
    )
    results = answer.results
    assert [result.WhichOneof("result") for result in results] == [
        "response", "error", "response", "response", "error", "response", "error", "response",
    ]  # fmt: skip
    assert [result.response.order.spec.amount for result in results if result.HasField("response")] == [
        "1", "1.5", "1.5", "1.5", "2",
    ]  # fmt: skip
    assert results[2].response.order.order_id == results[3].response.order.order_id
    assert [results[at].response.deduplicated for at in (0, 2, 3, 5, 7)] == [False, False, True, True, False]
    assert refusal_of(results[1].error).fields.keys() == {"spec.amount"}
    assert refusal_of(results[4].error).reason == "REQUEST_ID_REUSED"
    assert len(refusal_of(results[6].error).fields) == 4


async def test_a_batch_holds_up_to_a_thousand_orders(stub: Stub) -> None:
    longest = submit("x" * 64, input_token=SOL.mint, output_token=USDC.mint, amount="1" * 10 + "." + "2" * 9)
    requests = [longest] * 1000
    answer = await stub.BatchSubmitOrders(pb.BatchSubmitOrdersRequest(requests=requests))
    assert len({result.response.order.order_id for result in answer.results}) == 1
    assert [result.response.deduplicated for result in answer.results].count(False) == 1
    for wrong in ([], [*requests, longest]):
        said = await refusal(stub.BatchSubmitOrders(pb.BatchSubmitOrdersRequest(requests=wrong)))
        assert (said.code, said.reason, set(said.fields)) == (
            "INVALID_ARGUMENT", "INVALID_ORDER", {"requests"},
        )  # fmt: skip


# ---- Admission -------------------------------------------------------------------------------------


async def test_a_full_engine_refuses_new_orders_and_answers_replays(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    full = replace(with_grpc_port(settings, free_port), max_open_orders=2)
    async with order_server(full), stub_of(full) as stub:
        # At once: an order that is being stored while the orders are counted takes the room of two.
        two = await stub.BatchSubmitOrders(pb.BatchSubmitOrdersRequest(requests=[submit("mine"), submit()]))
        first = two.results[0].response.order
        said = await refusal(stub.SubmitOrder(submit()))
        assert (said.code, said.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_ORDERS")
        assert said.retry_seconds is not None
        assert said.retry_seconds > 0
        again = await stub.SubmitOrder(submit("mine"))
        assert (again.order.order_id, again.deduplicated) == (first.order_id, True)
        assert (await refusal(stub.SubmitOrder(submit("mine", amount="2")))).reason == "REQUEST_ID_REUSED"
        batch = await stub.BatchSubmitOrders(
            pb.BatchSubmitOrdersRequest(requests=[submit("mine"), submit(), submit(amount="x")])
        )
        assert batch.results[0].response.deduplicated
        assert refusal_of(batch.results[1].error).reason == "TOO_MANY_ORDERS"
        assert refusal_of(batch.results[2].error).reason == "INVALID_ORDER"
        assert len((await stub.ListOrders(pb.ListOrdersRequest())).orders) == 2
        # Once one has closed there is room again, as soon as that is counted.
        await stub.CancelOrder(pb.CancelOrderRequest(order_id=first.order_id))
        async with asyncio.timeout(10):
            while True:
                try:
                    await submitted(stub)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                else:
                    break


# ---- Reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order_id", ["", "nope", "0" * 32, UNKNOWN + "0", "{" + UNKNOWN + "}", "x" * 10_000])
async def test_an_order_id_is_a_uuid(order_id: str, stub: Stub) -> None:
    for call in (
        stub.GetOrder(pb.GetOrderRequest(order_id=order_id)),
        stub.CancelOrder(pb.CancelOrderRequest(order_id=order_id)),
        aiter_first(stub.WatchOrder(pb.WatchOrderRequest(order_id=order_id))),
    ):
        said = await refusal(call)
        assert (said.code, set(said.fields)) == ("INVALID_ARGUMENT", {"order_id"})


async def aiter_first(stream: AsyncIterable[object]) -> object:
    return await anext(aiter(stream))


async def test_unknown_orders_are_not_found(stub: Stub) -> None:
    for call in (
        stub.GetOrder(pb.GetOrderRequest(order_id=UNKNOWN)),
        stub.CancelOrder(pb.CancelOrderRequest(order_id=UNKNOWN.upper())),
        aiter_first(stub.WatchOrder(pb.WatchOrderRequest(order_id=UNKNOWN))),
    ):
        said = await refusal(call)
        assert (said.code, said.reason) == ("NOT_FOUND", "ORDER_NOT_FOUND")


async def test_an_order_shows_every_venue_s_quote_of_every_attempt(stub: Stub, worker: Worker) -> None:
    order = await submitted(stub, side=pb.SIDE_BUY, amount="10")
    facts = await worker.facts(order.order_id)
    second_attempt = Signed(replace(ATTEMPT, attempt=2))
    await worker.move(order.order_id, facts[0], no_route(1), facts[1], second_attempt, facts[3])
    read = await stub.GetOrder(pb.GetOrderRequest(order_id=order.order_id))
    assert read.order.status == pb.ORDER_STATUS_CONFIRMED
    assert (read.order.venue, read.order.input_amount, read.order.output_amount, read.order.price) == (
        "Raydium", "0.09478673", "10", "105.499999842",
    )  # fmt: skip
    assert not read.order.failure_reason
    first, second = read.routing_decisions
    assert (first.HasField("route"), first.reason) == (False, "no pool can fill it")
    assert [quote.venue for quote in second.quotes] == ["Raydium", "Meteora"]
    assert (second.quotes[0].output_amount, second.quotes[1].refusal) == ("10", "the pool is disabled")
    assert second.route.threshold_amount == "0.095260663"
    assert (second.route.legs[0].venue, second.reason) == ("Raydium", "Raydium asks least")


async def test_many_orders_are_read_at_once_each_with_its_own_result(stub: Stub, worker: Worker) -> None:
    confirmed, pending = await submitted(stub), await submitted(stub)
    await worker.execute(confirmed.order_id)
    asked = [pending.order_id, UNKNOWN, "nope", confirmed.order_id.upper(), pending.order_id]
    results = (await stub.BatchGetOrders(pb.BatchGetOrdersRequest(order_ids=asked))).results
    for order_id, result in zip(asked, results, strict=True):
        if result.HasField("response"):
            assert result.response == await stub.GetOrder(pb.GetOrderRequest(order_id=order_id))
    assert [result.response.order.order_id for result in results] == [
        pending.order_id, "", "", confirmed.order_id, pending.order_id,
    ]  # fmt: skip
    assert len(results[3].response.routing_decisions) == 1
    assert refusal_of(results[1].error).reason == "ORDER_NOT_FOUND"
    assert refusal_of(results[2].error).fields.keys() == {"order_id"}


async def test_a_hundred_orders_can_be_read_at_once(stub: Stub) -> None:
    order_ids = [(await submitted(stub)).order_id] * 100
    answer = await stub.BatchGetOrders(pb.BatchGetOrdersRequest(order_ids=order_ids))
    assert [result.response.order.order_id for result in answer.results] == order_ids
    for wrong in ([], [*order_ids, UNKNOWN]):
        said = await refusal(stub.BatchGetOrders(pb.BatchGetOrdersRequest(order_ids=wrong)))
        assert (said.code, said.reason, set(said.fields)) == (
            "INVALID_ARGUMENT", "INVALID_ORDER", {"order_ids"},
        )  # fmt: skip


async def test_an_answer_that_would_be_too_large_says_which_orders_to_ask_for_again(
    stub: Stub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = await submitted(stub)
    await worker.execute(order.order_id)
    one = await stub.GetOrder(pb.GetOrderRequest(order_id=order.order_id))
    for fit in (0, 1, 2):
        monkeypatch.setattr("server.service._MAX_GET_BYTES", fit * one.ByteSize())
        answer = await stub.BatchGetOrders(pb.BatchGetOrdersRequest(order_ids=[order.order_id] * 3))
        answered = [result.HasField("response") for result in answer.results]
        assert answered == [at < max(1, fit) for at in range(3)]
        said = refusal_of(answer.results[2].error)
        assert (said.code, said.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")


async def test_an_order_that_cannot_be_told_keeps_no_other_back(
    stub: Stub, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed, pending = await submitted(stub), await submitted(stub)
    await worker.execute(confirmed.order_id)
    monkeypatch.setattr(
        "server.service.realised_slippage_ppm", lambda order, _: 2**40 if order.tx_hash else None
    )
    asked = pb.BatchGetOrdersRequest(order_ids=[confirmed.order_id, pending.order_id])
    first, second = (await stub.BatchGetOrders(asked)).results
    assert refusal_of(first.error).reason == "INTERNAL"
    assert second.response.order.order_id == pending.order_id


async def test_pages_of_a_list_join_without_a_gap_or_a_repeat(stub: Stub) -> None:
    newest_first = [(await submitted(stub)).order_id for _ in range(7)][::-1]
    seen: list[str] = []
    token = ""
    while len(seen) < 7:
        page = await stub.ListOrders(pb.ListOrdersRequest(page_size=3, page_token=token))
        assert len(page.orders) == 3
        seen += [order.order_id for order in page.orders]
        token = page.next_page_token
        assert token
    assert seen[:7] == newest_first


async def test_the_last_page_has_no_token(settings: Settings, free_port: Callable[[], int]) -> None:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub:
        assert await stub.ListOrders(pb.ListOrdersRequest()) == pb.ListOrdersResponse()
        requests = [submit() for _ in range(55)]
        await stub.BatchSubmitOrders(pb.BatchSubmitOrdersRequest(requests=requests))
        for size, count, more in ((0, 50, True), (54, 54, True), (55, 55, False), (2**31 - 1, 55, False)):
            page = await stub.ListOrders(pb.ListOrdersRequest(page_size=size))
            assert (len(page.orders), bool(page.next_page_token)) == (count, more)
        first = page.orders[0].order_id
        await stub.CancelOrder(pb.CancelOrderRequest(order_id=first))
        for statuses, count in (
            ([pb.ORDER_STATUS_CANCELLED], 1),
            ([pb.ORDER_STATUS_PENDING], 54),
            ([pb.ORDER_STATUS_CANCELLED, pb.ORDER_STATUS_PENDING], 55),
            ([pb.ORDER_STATUS_CONFIRMED], 0),
        ):
            page = await stub.ListOrders(pb.ListOrdersRequest(page_size=500, statuses=statuses))
            assert len(page.orders) == count


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListOrdersRequest(page_size=-1), "page_size"),
        (pb.ListOrdersRequest(page_token="nonsense"), "page_token"),
        (pb.ListOrdersRequest(page_token="é"), "page_token"),
        (pb.ListOrdersRequest(page_token="AAAA"), "page_token"),
        (pb.ListOrdersRequest(page_token="A" * 10_000), "page_token"),
        (pb.ListOrdersRequest(statuses=[pb.ORDER_STATUS_UNSPECIFIED]), "statuses"),
        (pb.ListOrdersRequest(statuses=[pb.ORDER_STATUS_PENDING, NO_STATUS]), "statuses"),
    ],
)
async def test_a_list_that_cannot_be_made_says_why(
    request_: pb.ListOrdersRequest, field: str, stub: Stub
) -> None:
    said = await refusal(stub.ListOrders(request_))
    assert (said.code, said.reason, set(said.fields)) == ("INVALID_ARGUMENT", "INVALID_ORDER", {field})


# ---- Prices ----------------------------------------------------------------------------------------


@pytest.fixture
async def priced(stub: Stub) -> Stub:
    """The stub, once the server has read the market."""
    async with asyncio.timeout(20):
        while True:
            try:
                await quote(stub)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            else:
                return stub


async def quote(stub: Stub, **changes: Any) -> pb.RoutingDecision:
    decision: pb.RoutingDecision = (await stub.GetQuote(pb.GetQuoteRequest(spec=spec(**changes)))).decision
    return decision


async def test_a_quote_compares_every_pool_and_stores_nothing(priced: Stub) -> None:
    newest = (await priced.ListOrders(pb.ListOrdersRequest(page_size=1))).orders
    decision = await quote(priced)
    assert {quote.venue for quote in decision.quotes} == {"Raydium", "Meteora"}
    offers = [float(quote.output_amount) for quote in decision.quotes if not quote.refusal]
    assert offers == sorted(offers, reverse=True)
    assert decision.route.output_amount == decision.quotes[0].output_amount
    assert (decision.attempt, decision.route.input_amount) == (0, "1.5")
    assert decision.reason
    assert decision.slot > 0
    assert (await priced.ListOrders(pb.ListOrdersRequest(page_size=1))).orders == newest


async def test_a_quote_allows_the_slippage_that_was_asked_for(priced: Stub) -> None:
    exact, loose = [(await quote(priced, slippage_bps=bps)).route for bps in (0, 10_000)]
    assert exact.threshold_amount == exact.output_amount
    assert float(loose.threshold_amount) < float(loose.output_amount)


async def test_a_quote_that_no_pool_can_fill_is_refused(priced: Stub) -> None:
    said = await refusal(quote(priced, side=pb.SIDE_BUY, amount="9000000000000"))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "NO_ROUTE")


async def test_without_a_node_there_are_no_quotes_and_everything_else_works(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub:
        said = await refusal(stub.GetQuote(pb.GetQuoteRequest(spec=spec())))
        assert (said.code, said.reason) == ("UNAVAILABLE", "NODE_UNAVAILABLE")
        assert (await submitted(stub)).status == pb.ORDER_STATUS_PENDING


# ---- Cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_an_order_can_be_cancelled_until_it_is_broadcast(
    steps: int, stub: Stub, worker: Worker
) -> None:
    order = await submitted(stub)
    await worker.move(order.order_id, *(await worker.facts(order.order_id))[:steps])
    answer = await stub.CancelOrder(pb.CancelOrderRequest(order_id=order.order_id))
    assert (answer.order.status, answer.order.sequence) == (pb.ORDER_STATUS_CANCELLED, steps + 2)
    assert answer.order == (await stub.GetOrder(pb.GetOrderRequest(order_id=order.order_id))).order


async def test_a_cancel_is_told_with_its_event(
    stub: Stub, worker: Worker, told: list[WatchedEvent], until: Until
) -> None:
    order_id = (await submitted(stub)).order_id
    await worker.move(order_id, Claimed())
    await stub.CancelOrder(pb.CancelOrderRequest(order_id=order_id))
    events = await worker.store.events_after((UUID(order_id), 1))
    await until(lambda: len(told) >= 2)
    assert told == events
    assert [watched.event.status for watched in told] == [OrderStatus.ROUTING, OrderStatus.CANCELLED]


async def test_a_cancel_that_comes_too_late_says_why(stub: Stub, worker: Worker) -> None:
    order = await submitted(stub)
    facts = await worker.facts(order.order_id)
    await worker.move(order.order_id, *facts[:3])
    said = await refusal(stub.CancelOrder(pb.CancelOrderRequest(order_id=order.order_id)))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "ORDER_IN_FLIGHT")
    await worker.move(order.order_id, facts[3])
    said = await refusal(stub.CancelOrder(pb.CancelOrderRequest(order_id=order.order_id)))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "ORDER_CLOSED")
    assert "already confirmed" in said.message


async def test_of_cancels_that_race_one_cancels(stub: Stub) -> None:
    order = await submitted(stub)
    request = pb.CancelOrderRequest(order_id=order.order_id)
    answers = await asyncio.gather(*(stub.CancelOrder(request) for _ in range(8)), return_exceptions=True)
    cancelled = [answer for answer in answers if isinstance(answer, pb.CancelOrderResponse)]
    late = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(cancelled) == 1
    assert {error.code() for error in late} == {grpc.StatusCode.FAILED_PRECONDITION}


async def test_a_database_that_takes_no_writes_is_asked_again_later(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub:
        cancel = pb.CancelOrderRequest(order_id=(await submitted(stub)).order_id)
        async with read_only(settings):
            for call in (stub.SubmitOrder(submit()), stub.CancelOrder(cancel)):
                said = await refusal(call)
                assert (said.code, said.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
        assert (await stub.CancelOrder(cancel)).order.status == pb.ORDER_STATUS_CANCELLED
        assert (await submitted(stub)).status == pb.ORDER_STATUS_PENDING


# ---- What is no message --------------------------------------------------------------------------

NOT_UTF8 = b"\x0a\x02\xff\xfe"
"""A message whose first field, a text, cannot be read."""


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        *((method, b"\xff\xff\xff") for method in ("SubmitOrder", "BatchSubmitOrders", "GetQuote")),
        *((method, b"\xff\xff\xff") for method in ("BatchGetOrders", "ListOrders")),
        *((method, NOT_UTF8) for method in ("GetOrder", "CancelOrder", "BatchGetOrders")),
    ],
)
async def test_what_is_no_message_is_refused_and_is_no_fault_of_ours(
    method: str, sent: bytes, served: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with grpc.aio.insecure_channel(address(served)) as channel:
        call: Any = channel.unary_unary(f"/orders.v1.OrderService/{method}")
        said = await refusal(call(sent))
    assert (said.code, said.reason) == ("INVALID_ARGUMENT", "INVALID_ORDER")
    assert said.message.startswith("request cannot be decoded; must be ")
    assert not caplog.records


# ---- What nobody expected --------------------------------------------------------------------------


async def test_what_is_wrong_inside_is_not_told_outside(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("the password is swordfish")

    monkeypatch.setattr("server.service.order_fields", fail)
    said = await refusal(stub.SubmitOrder(submit()))
    assert (said.code, said.reason, said.message) == ("INTERNAL", "INTERNAL", "internal error")
    assert "swordfish" in caplog.text
