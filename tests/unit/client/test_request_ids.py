"""What may name a submit: an empty name is a mistake, not the wish for none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from client import InvalidOrder, OrderClient, OrderSpec, Receipt, Side, Submission, SubmittedOrder

SPEC = OrderSpec(Side.SELL, "1", "SOL", "USDC")
NO_REQUEST_IDS = ["", "x" * 65, "réponse", "two\nlines", "\t", "\udcff", "\x7f"]


class Accepting(orders_pb2_grpc.OrderServiceServicer):
    """Accepts every order."""

    def __init__(self) -> None:
        self.request_ids: list[str] = []

    async def BatchSubmitOrders(  # noqa: N802
        self, request: pb.BatchSubmitOrdersRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.BatchSubmitOrdersResponse:
        self.request_ids += [one.request_id for one in request.requests]
        return pb.BatchSubmitOrdersResponse(
            results=[
                pb.BatchSubmitOrdersResult(
                    response=pb.SubmitOrderResponse(order=pb.Order(order_id=one.request_id, spec=one.spec))
                )
                for one in request.requests
            ]
        )


@pytest.fixture
async def accepting() -> AsyncIterator[tuple[Accepting, OrderClient]]:
    server, servicer = grpc.aio.server(), Accepting()  # type: ignore[abstract]
    orders_pb2_grpc.add_OrderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with OrderClient(f"127.0.0.1:{port}") as client:
        yield servicer, client
    await server.stop(0)


def check_refusal(refusal: object) -> None:
    assert isinstance(refusal, InvalidOrder)
    assert refusal.message == "request_id must be 1 to 64 printable ASCII characters"
    assert [line.field for line in refusal.violations] == ["request_id"]


@pytest.mark.parametrize("request_id", NO_REQUEST_IDS)
async def test_what_is_no_request_id_is_refused_and_nothing_is_sent(
    request_id: str, accepting: tuple[Accepting, OrderClient]
) -> None:
    servicer, client = accepting
    told: list[Receipt | Exception] = []
    with pytest.raises(InvalidOrder) as refused:
        await client.submit(SPEC, request_id=request_id)
    check_refusal(refused.value)
    with pytest.raises(InvalidOrder) as refused:
        client.submit_then(SPEC, told.append, request_id=request_id)
    check_refusal(refused.value)
    assert (servicer.request_ids, told) == ([], [])


async def test_of_many_only_what_cannot_be_sent_is_refused(accepting: tuple[Accepting, OrderClient]) -> None:
    servicer, client = accepting
    unnamed, nameless, named, unsendable = await client.submit_many(
        [SPEC, Submission(SPEC, ""), Submission(SPEC, "mine"), replace(SPEC, amount="\udcff")]
    )
    check_refusal(nameless)
    assert isinstance(unsendable, InvalidOrder)
    assert isinstance(unnamed, SubmittedOrder)
    assert isinstance(named, SubmittedOrder)
    assert servicer.request_ids == [unnamed.order_id, named.order_id]
    assert named.order_id == "mine"


@pytest.mark.parametrize("request_id", ["x", "rent october ~", "x" * 64])
async def test_a_request_id_is_sent_as_it_is(
    request_id: str, accepting: tuple[Accepting, OrderClient]
) -> None:
    servicer, client = accepting
    await client.submit(SPEC, request_id=request_id)
    assert servicer.request_ids == [request_id]
