"""Limit and sniper orders, and tokens known by their mint alone, over a real channel."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from orders.v1 import orders_pb2 as pb
from solders.keypair import Keypair

from engine.domain.lifecycle import Claimed, Unmet
from engine.settings import Settings
from tests.fake_node import FakeNode
from tests.integration.server.calls import Stub, refusal, refusal_of, simnet, spec, stub_of, submit
from tests.serving import Worker, decision, order_server, with_grpc_port

LIMIT: dict[str, Any] = {"limit": pb.LimitOrder(limit_price="150")}
SNIPER: dict[str, Any] = {"sniper": pb.SniperOrder(min_liquidity="10", max_price="0.002")}


@pytest.fixture(scope="module")
async def served(shared_database: Settings, valkey: Settings) -> AsyncIterator[Settings]:
    async with simnet() as node:
        settings = replace(
            shared_database,
            redis_host=valkey.redis_host,
            redis_port=valkey.redis_port,
            redis_password=valkey.redis_password,
            grpc_port=_free_port(),
            server_metrics_port=0,
            solana_rpc_url=node.solana_rpc_url,
            solana_ws_url=node.solana_ws_url,
        )
        async with order_server(settings):
            yield settings


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
async def stub(served: Settings) -> AsyncIterator[Stub]:
    async with stub_of(served) as stub:
        yield stub


@pytest.fixture
async def worker(served: Settings) -> AsyncIterator[Worker]:
    async with Worker(served) as worker:
        yield worker


async def ask_node(settings: Settings, method: str, *params: Any) -> Any:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    async with aiohttp.ClientSession() as session, session.post(settings.node_url, json=body) as response:
        return (await response.json())["result"]


async def launched(settings: Settings, slots: int = 1_000_000, **asked: Any) -> dict[str, Any]:
    """A token whose mint is there, and whose pool opens so many slots from now."""
    asked = {"quote": "SOL", "quoteAmount": 20 * 10**9, "price": 0.001, "slots": slots} | asked
    launch: dict[str, Any] = await ask_node(settings, "simnet_launch", asked)
    return launch


@pytest.mark.parametrize("order_type", [LIMIT, SNIPER, {"sniper": pb.SniperOrder()}], ids=repr)
async def test_an_order_comes_back_with_its_terms_and_rests(
    order_type: dict[str, Any], stub: Stub, worker: Worker
) -> None:
    asked = spec(expire_time=Timestamp(seconds=4_000_000_000), **order_type)
    order = (await stub.SubmitOrder(pb.SubmitOrderRequest(spec=asked, request_id=""))).order
    assert (order.spec, order.status, order.sequence) == (asked, pb.ORDER_STATUS_PENDING, 1)
    assert (await stub.GetOrder(pb.GetOrderRequest(order_id=order.order_id))).order == order
    assert order.order_id not in {str(due) for due in await worker.store.due_orders(10_000, 0.0)}
    cancelled = (await stub.CancelOrder(pb.CancelOrderRequest(order_id=order.order_id))).order
    assert (cancelled.status, cancelled.sequence) == (pb.ORDER_STATUS_CANCELLED, 2)


async def test_the_same_request_with_other_terms_is_another_order(stub: Stub) -> None:
    first = await stub.SubmitOrder(submit("terms", **LIMIT))
    spelled = {"limit": pb.LimitOrder(limit_price="0150.00")}
    again = await stub.SubmitOrder(submit("terms", **spelled))
    assert (again.order, again.deduplicated) == (first.order, True)
    for other in ({"limit": pb.LimitOrder(limit_price="151")}, SNIPER, {}):
        said = await refusal(stub.SubmitOrder(submit("terms", **other)))
        assert said.reason == "REQUEST_ID_REUSED"


async def test_every_type_can_be_submitted_in_one_batch_and_refused_alone(stub: Stub) -> None:
    wrong = {"limit": pb.LimitOrder(limit_price="-1")}
    requests = [submit(**order_type) for order_type in (LIMIT, wrong, SNIPER, {})]
    results = (await stub.BatchSubmitOrders(pb.BatchSubmitOrdersRequest(requests=requests))).results
    assert [result.WhichOneof("result") for result in results] == [
        "response",
        "error",
        "response",
        "response",
    ]
    assert set(refusal_of(results[1].error).fields) == {"spec.limit.limit_price"}


async def test_an_order_of_a_type_that_only_a_newer_server_knows_is_refused_alone(stub: Stub) -> None:
    # Field 13, a message: one more type in the oneof.
    newer = pb.OrderSpec.FromString(spec().SerializeToString() + b"\x6a\x05\x0a\x03999")
    request = pb.SubmitOrderRequest(spec=newer)
    unknown = {"spec": "has field 13 of OrderSpec, which this server does not know"}
    for call in (stub.SubmitOrder(request), stub.GetQuote(pb.GetQuoteRequest(spec=newer))):
        said = await refusal(call)
        assert (said.code, said.fields) == ("INVALID_ARGUMENT", unknown)
    batch = pb.BatchSubmitOrdersRequest(requests=[submit(), request, submit()])
    before, refused, after = (await stub.BatchSubmitOrders(batch)).results
    assert refusal_of(refused.error).fields == unknown
    assert before.HasField("response")
    assert after.HasField("response")


async def test_why_an_order_waits_again_is_told_to_who_watches(stub: Stub, worker: Worker) -> None:
    order = (await stub.SubmitOrder(submit(**LIMIT))).order
    await worker.move(order.order_id, Claimed(), Unmet(decision(), "the limit is 150"))
    await stub.CancelOrder(pb.CancelOrderRequest(order_id=order.order_id))
    events = [answer.event async for answer in stub.WatchOrder(pb.WatchOrderRequest(order_id=order.order_id))]
    assert [pb.OrderStatus.Name(event.status).removeprefix("ORDER_STATUS_") for event in events] == [
        "PENDING", "ROUTING", "PENDING", "CANCELLED",
    ]  # fmt: skip
    assert [event.failure_message for event in events] == ["", "", "the limit is 150", ""]


async def test_a_quote_keeps_within_the_limit(stub: Stub) -> None:
    route = (await stub.GetQuote(pb.GetQuoteRequest(spec=spec(amount="1")))).decision.route
    close = f"{float(route.output_amount) * 0.9999:.6f}"
    limited = spec(amount="1", limit=pb.LimitOrder(limit_price=close))
    within = (await stub.GetQuote(pb.GetQuoteRequest(spec=limited))).decision.route
    assert float(route.threshold_amount) < float(close) <= float(within.threshold_amount)


async def test_lists_are_of_the_types_asked_for(settings: Settings, free_port: Callable[[], int]) -> None:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub:
        asked = [LIMIT, {}, SNIPER, LIMIT, {}]
        ids = [(await stub.SubmitOrder(submit(**order_type))).order.order_id for order_type in asked]
        await stub.CancelOrder(pb.CancelOrderRequest(order_id=ids[3]))
        market, limit, sniper = pb.ORDER_TYPE_MARKET, pb.ORDER_TYPE_LIMIT, pb.ORDER_TYPE_SNIPER
        pending, cancelled = pb.ORDER_STATUS_PENDING, pb.ORDER_STATUS_CANCELLED
        for types, statuses, expected in (
            ([limit], [], [3, 0]),
            ([sniper], [], [2]),
            ([market], [], [4, 1]),
            ([limit, sniper], [], [3, 2, 0]),
            ([limit, market, sniper], [], [4, 3, 2, 1, 0]),
            ([limit], [pending], [0]),
            ([limit], [cancelled], [3]),
            ([market], [cancelled], []),
            ([], [pending], [4, 2, 1, 0]),
            ([], [cancelled], [3]),
        ):
            page = await stub.ListOrders(pb.ListOrdersRequest(types=types, statuses=statuses))
            assert [order.order_id for order in page.orders] == [ids[at] for at in expected]
        said = await refusal(stub.ListOrders(pb.ListOrdersRequest(types=[pb.ORDER_TYPE_UNSPECIFIED])))
        assert set(said.fields) == {"types"}


async def test_as_many_orders_rest_as_the_setting_allows_and_others_are_still_taken(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = replace(with_grpc_port(settings, free_port), max_resting_orders=2)
    async with order_server(settings), stub_of(settings) as stub:
        await stub.BatchSubmitOrders(pb.BatchSubmitOrdersRequest(requests=[submit(**LIMIT)] * 2))
        said = await refusal(stub.SubmitOrder(submit(**LIMIT)))
        assert (said.code, said.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_ORDERS")
        assert said.retry_seconds
        assert (await stub.SubmitOrder(submit())).order.order_id
        # Nor is one refused because of who happens to be in the same batch.
        batch = pb.BatchSubmitOrdersRequest(
            requests=[submit(**LIMIT), submit(request_id="now"), submit(**LIMIT)]
        )
        results = (await stub.BatchSubmitOrders(batch)).results
        assert [each.WhichOneof("result") for each in results] == ["error", "response", "error"]
        again = (await stub.SubmitOrder(submit(request_id="now"))).order
        assert again.order_id == results[1].response.order.order_id


# ---- Tokens ----------------------------------------------------------------------------------------


async def test_a_token_is_ordered_by_its_mint_before_it_has_a_pool(served: Settings, stub: Stub) -> None:
    launch = await launched(served, decimals=5)
    asked = {"output_token": launch["mint"], "side": pb.SIDE_BUY}
    order = (await stub.SubmitOrder(submit(amount="0.00001", **asked, **SNIPER))).order
    assert (order.spec.output_token, order.spec.amount) == (launch["mint"], "0.00001")
    said = await refusal(stub.SubmitOrder(submit(amount="0.000001", **asked)))
    assert set(said.fields) == {"spec.amount"}
    said = await refusal(stub.GetQuote(pb.GetQuoteRequest(spec=spec(amount="1", **asked))))
    assert (said.code, said.reason) == ("FAILED_PRECONDITION", "NO_ROUTE")


async def test_a_token_that_was_launched_is_quoted(served: Settings, stub: Stub) -> None:
    launch = await launched(served, slots=0)
    quote = await stub.GetQuote(pb.GetQuoteRequest(spec=spec(amount="1", output_token=launch["mint"])))
    assert [leg.pool for leg in quote.decision.route.legs] == [launch["pool"]]
    assert quote.decision.route.legs[0].output_token == launch["mint"]


@pytest.mark.parametrize(
    "name",
    [
        str(Keypair.from_seed(bytes(32)).pubkey()),
        "11111111111111111111111111111111",
        "1" * 31,
        "0" * 44,
        "So" + "1" * 42,
    ],
)
async def test_what_is_no_mint_on_the_chain_is_no_token(name: str, stub: Stub) -> None:
    said = await refusal(stub.SubmitOrder(submit(output_token=name)))
    assert (said.code, set(said.fields)) == ("INVALID_ARGUMENT", {"spec.output_token"})


async def test_a_balance_is_no_token(served: Settings, stub: Stub) -> None:
    for pool in await ask_node(served, "simnet_pools"):
        said = await refusal(stub.SubmitOrder(submit(output_token=pool["baseVault"])))
        assert (said.code, set(said.fields)) == ("INVALID_ARGUMENT", {"spec.output_token"})


async def test_a_node_that_refuses_to_look_a_mint_up_is_away(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    async with FakeNode() as node:
        node.answers = defaultdict(lambda: lambda params: {"error": {"code": -32602, "message": "no"}})
        settings = replace(
            with_grpc_port(settings, free_port), solana_rpc_url=node.url, solana_ws_url=node.ws_url
        )
        async with order_server(settings), stub_of(settings) as stub:
            unknown = {"output_token": str(Keypair().pubkey())}
            for call in (
                stub.SubmitOrder(submit(**unknown)),
                stub.GetQuote(pb.GetQuoteRequest(spec=spec(**unknown))),
            ):
                said = await refusal(call)
                assert (said.code, said.reason) == ("UNAVAILABLE", "NODE_UNAVAILABLE")


async def test_a_mint_nobody_can_look_up_is_asked_for_again_later(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = replace(with_grpc_port(settings, free_port), solana_rpc_url=f"http://127.0.0.1:{free_port()}")
    async with order_server(settings), stub_of(settings) as stub:
        unknown = {"output_token": str(Keypair().pubkey())}
        said = await refusal(stub.SubmitOrder(submit(**unknown)))
        assert (said.code, said.reason) == ("UNAVAILABLE", "NODE_UNAVAILABLE")
        # What is wrong otherwise is told all the same where the chain need not be asked.
        said = await refusal(stub.SubmitOrder(submit(amount="x")))
        assert said.code == "INVALID_ARGUMENT"
        assert (await stub.SubmitOrder(submit(**LIMIT))).order.order_id
