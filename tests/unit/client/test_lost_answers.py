"""Calls whose answer is lost on the way, over a real connection to a server that loses it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from client import InternalError, OrderClient, OrderClosed, OrderSpec, OrderStatus, ServerUnavailable, Side

ORDER_ID = "01890000-0000-7000-8000-000000000000"
SPEC = pb.OrderSpec(side=pb.SIDE_SELL, amount="1", input_token="SOL", output_token="USDC")

Context = grpc.aio.ServicerContext[object, object]


class Losing(orders_pb2_grpc.OrderServiceServicer):
    """Does what it is asked, and loses as many answers as `to_lose` says."""

    def __init__(self) -> None:
        self.to_lose = 0
        self.status = pb.ORDER_STATUS_PENDING
        self.request_ids: list[str] = []

    async def CancelOrder(  # noqa: N802
        self, request: pb.CancelOrderRequest, context: Context
    ) -> pb.CancelOrderResponse:
        if self.status != pb.ORDER_STATUS_PENDING:
            info = AnyMessage()
            info.Pack(error_details_pb2.ErrorInfo(reason="ORDER_CLOSED", domain="orders.v1"))
            status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="closed", details=[info])
            await context.abort_with_status(rpc_status.to_status(status))
        self.status = pb.ORDER_STATUS_CANCELLED
        await self._lose(context)
        return pb.CancelOrderResponse(order=self._order())

    async def BatchGetOrders(  # noqa: N802
        self, request: pb.BatchGetOrdersRequest, context: Context
    ) -> pb.BatchGetOrdersResponse:
        response = pb.GetOrderResponse(order=self._order())
        return pb.BatchGetOrdersResponse(results=[{"response": response}])  # type: ignore[list-item]

    async def BatchSubmitOrders(  # noqa: N802
        self, request: pb.BatchSubmitOrdersRequest, context: Context
    ) -> pb.BatchSubmitOrdersResponse:
        self.request_ids += [one.request_id for one in request.requests]
        await self._lose(context)
        response = pb.SubmitOrderResponse(order=self._order())
        return pb.BatchSubmitOrdersResponse(results=[pb.BatchSubmitOrdersResult(response=response)])

    async def _lose(self, context: Context) -> None:
        if self.to_lose:
            self.to_lose -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")

    def _order(self) -> pb.Order:
        return pb.Order(order_id=ORDER_ID, spec=SPEC, status=self.status, sequence=2)


@pytest.fixture
async def losing() -> AsyncIterator[tuple[Losing, OrderClient]]:
    # It has no other methods: they are answered with UNIMPLEMENTED.
    server, servicer = grpc.aio.server(), Losing()  # type: ignore[abstract]
    orders_pb2_grpc.add_OrderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with OrderClient(f"127.0.0.1:{port}", random=lambda: 0.0) as client:
        yield servicer, client
    await server.stop(0)


async def test_a_cancel_whose_answer_was_lost_is_told_as_done(losing: tuple[Losing, OrderClient]) -> None:
    servicer, client = losing
    servicer.to_lose = 1
    assert (await client.cancel(ORDER_ID)).status is OrderStatus.CANCELLED


async def test_a_cancel_of_an_order_that_was_closed_before_is_refused(
    losing: tuple[Losing, OrderClient],
) -> None:
    servicer, client = losing
    servicer.status = pb.ORDER_STATUS_CANCELLED
    with pytest.raises(OrderClosed):
        await client.cancel(ORDER_ID)


async def test_a_submit_is_repeated_under_one_request_id_and_not_for_ever(
    losing: tuple[Losing, OrderClient],
) -> None:
    servicer, client = losing
    spec = OrderSpec(Side.SELL, "1", "SOL", "USDC")
    servicer.to_lose = 2
    assert (await client.submit(spec)).order_id == ORDER_ID
    assert len(servicer.request_ids) == 3
    assert len(set(servicer.request_ids)) == 1
    servicer.to_lose, servicer.request_ids = 1000, []
    with pytest.raises(ServerUnavailable) as refused:
        await client.submit(spec)
    assert len(servicer.request_ids) == 5
    assert {refused.value.request_id} == set(servicer.request_ids)


async def test_what_is_not_a_passing_failure_is_not_repeated(losing: tuple[Losing, OrderClient]) -> None:
    _, client = losing
    # The server has no such method: asking again will not change that.
    with pytest.raises(InternalError):
        await client.quote(OrderSpec(Side.SELL, "1", "SOL", "USDC"))
