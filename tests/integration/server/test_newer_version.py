"""A server that is older than an order: it says so of that order, and serves all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from orders.v1 import orders_pb2 as pb

from engine.settings import Settings
from tests.integration.engine.storage.newer import OF_TOKEN, OF_TYPE, rewrite
from tests.integration.server.calls import refusal, refusal_of, stub_of, submit
from tests.serving import Worker, order_server, with_grpc_port


async def test_an_order_that_only_a_newer_server_can_read_disturbs_no_other(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    async with order_server(settings), stub_of(settings) as stub:
        ids = [(await stub.SubmitOrder(submit(f"request {at}"))).order.order_id for at in range(5)]
    await rewrite(settings, OF_TYPE, *map(UUID, ids[2:4]))
    await rewrite(settings, OF_TOKEN, UUID(ids[4]))
    # Another one than took the orders, which may tell of them what it knows.
    async with order_server(settings), stub_of(settings) as stub, Worker(settings) as worker:
        for order_id in ids[2:]:
            for call in (
                stub.GetOrder(pb.GetOrderRequest(order_id=order_id)),
                stub.CancelOrder(pb.CancelOrderRequest(order_id=order_id)),
            ):
                said = await refusal(call)
                assert (said.code, said.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
                assert order_id in said.message
        read = await stub.BatchGetOrders(pb.BatchGetOrdersRequest(order_ids=ids))
        assert [result.response.order.order_id for result in read.results] == [*ids[:2], "", "", ""]
        assert {refusal_of(result.error).reason for result in read.results[2:]} == {"STORE_UNAVAILABLE"}
        page = await stub.ListOrders(pb.ListOrdersRequest(page_size=1))
        assert [order.order_id for order in page.orders] == [ids[1]]
        page = await stub.ListOrders(pb.ListOrdersRequest(page_size=1, page_token=page.next_page_token))
        assert ([order.order_id for order in page.orders], page.next_page_token) == ([ids[0]], "")
        said = await refusal(stub.SubmitOrder(submit("request 4")))
        assert said.code == "UNAVAILABLE"

        # One stream of all of them: the one whose events cannot be read ends, the others go on.
        stream = stub.WatchOrders()
        await stream.write(
            pb.WatchOrdersRequest(watch=[pb.WatchOrderRequest(order_id=order_id) for order_id in ids])
        )
        events: list[pb.OrderEvent] = []
        ended: list[pb.WatchEnded] = []
        async with asyncio.timeout(20):
            while len(events) < 4 or not ended:
                answer = await stream.read()
                events += answer.events
                ended += answer.ended
            assert {event.order_id for event in events} == set(ids[:4])
            assert [end.order_id for end in ended] == [ids[4]]
            assert refusal_of(ended[0].status).code == "UNAVAILABLE"
            await worker.execute(ids[0])
            while not events or events[-1].status != pb.ORDER_STATUS_CONFIRMED:
                events += (await stream.read()).events
        stream.cancel()
