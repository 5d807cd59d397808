"""Submits, reads and watches over a Unix socket: what they answer is what they answer over gRPC."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from orders.v1 import orders_pb2 as pb

from client import (
    InvalidOrder,
    OrderClient,
    OrderDetails,
    OrderNotFound,
    OrderSpec,
    OrderStatus,
    SequenceAhead,
    Side,
)
from engine.link import LinkConnection
from engine.settings import Settings
from engine.storage.postgres import Store
from tests.integration.server.test_order_watches import MOST_KEPT, ORDERS, REQUESTS, Received, watch_of_none
from tests.serving import Worker, address, order_server, with_grpc_port

UNKNOWN = "01890000-0000-7000-8000-000000000000"
SPEC = OrderSpec(Side.BUY, 10, "SOL", "USDC")
PENDING_TO_CONFIRMED = [
    OrderStatus.PENDING,
    OrderStatus.ROUTING,
    OrderStatus.BUILDING,
    OrderStatus.SUBMITTED,
    OrderStatus.CONFIRMED,
]


@pytest.fixture
def linked(settings: Settings, free_port: Callable[[], int], services_folder: Path) -> Settings:
    """Settings with a folder for links."""
    return replace(with_grpc_port(settings, free_port), link_folder=str(services_folder / "links"))


@pytest.fixture
async def client(linked: Settings) -> AsyncIterator[OrderClient]:
    """A client of a server that runs, over its link."""
    async with order_server(linked), OrderClient(address(linked), links=linked.link_paths) as client:
        yield client


async def watched(client: OrderClient, order_id: str) -> list[OrderStatus]:
    """Watch the order to its end; its events have to be numbered 1, 2, 3 ..."""
    events = [event async for event in client.watch(order_id)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.status for event in events]


async def test_orders_are_accepted_repeated_and_refused(client: OrderClient) -> None:
    first = await client.submit(SPEC, request_id="one")
    again = await client.submit(SPEC, request_id="one")
    assert (first.status, first.deduplicated) == (OrderStatus.PENDING, False)
    assert (again.order_id, again.deduplicated) == (first.order_id, True)
    with pytest.raises(InvalidOrder) as refusal:
        await client.submit(replace(SPEC, amount="-1"))
    assert [line.field for line in refusal.value.violations] == ["spec.amount"]


async def test_each_of_many_orders_has_its_own_answer(client: OrderClient) -> None:
    answers = await client.submit_many([replace(SPEC, amount=str(amount)) for amount in range(-1, 700)])
    assert [isinstance(answer, InvalidOrder) for answer in answers] == [True, True] + [False] * 699


async def test_orders_are_read_as_over_grpc(client: OrderClient, linked: Settings) -> None:
    order = await client.submit(SPEC)
    async with Worker(linked) as worker:
        await worker.execute(order.order_id)
    async with OrderClient(address(linked)) as over_grpc:
        read = await client.get(order.order_id)
        assert read == await over_grpc.get(order.order_id)
        assert (read.order.status, len(read.routing_decisions)) == (OrderStatus.CONFIRMED, 1)
        for either in (client, over_grpc):
            answers = await asyncio.gather(
                *map(either.get, [order.order_id, UNKNOWN, "nope"]), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [OrderDetails, OrderNotFound, InvalidOrder]


async def test_a_watcher_sees_every_event_in_sequence(client: OrderClient, linked: Settings) -> None:
    order = await client.submit(SPEC)
    async with Worker(linked) as worker, asyncio.TaskGroup() as group:
        watch = group.create_task(watched(client, order.order_id))
        await worker.execute(order.order_id)
    assert watch.result() == PENDING_TO_CONFIRMED


async def test_what_cannot_be_watched_is_refused(client: OrderClient) -> None:
    with pytest.raises(OrderNotFound):
        await watched(client, UNKNOWN)
    order = await client.submit(SPEC)
    with pytest.raises(SequenceAhead):
        await anext(client.watch(order.order_id, after_sequence=7))


async def test_a_watch_goes_on_and_a_submit_is_stored_once_when_the_server_restarts(linked: Settings) -> None:
    async with OrderClient(address(linked), links=linked.link_paths) as client, Worker(linked) as worker:
        async with order_server(linked):
            order = await client.submit(SPEC)
            watch = client.watch(order.order_id)
            assert (await anext(watch)).sequence == 1
        submit = asyncio.ensure_future(client.submit(SPEC, request_id="while it is away"))
        async with order_server(linked):
            await worker.execute(order.order_id)
            assert [event.sequence async for event in watch] == [2, 3, 4, 5]
            assert (await submit).status is OrderStatus.PENDING
    async with Store(linked) as store:
        assert len(await store.list_orders(10)) == 2


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x00\x00\x09\x00\x00\x00\x00GetOrders",
        b"\x7f\xff\xff\xff\x00\x00\x00\x00",
        b"\x00\x00\x00\x11\x00\x00\x00\x00BatchSubmitOrders\x00\x00\x00\x02\x00\x00\x00\x01\xff\xff",
        b"\x00\x00\x00\x0e\x00\x00\x00\x00BatchGetOrders\x00\x00\x00\x02\x00\x00\x00\x01\xff\xff",
    ],
    ids=["no method of a link", "too long", "no submit", "no read"],
)
async def test_what_is_none_of_ours_is_cut_off(client: OrderClient, linked: Settings, sent: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(linked.link_paths[0])
    writer.write(sent)
    async with asyncio.timeout(5):
        # The greeting, an empty message, and nothing more.
        assert await reader.read() == bytes(8)
    writer.close()
    assert (await client.submit(SPEC)).status is OrderStatus.PENDING


class Asker(LinkConnection):
    """Asks for watches; what is refused of them."""

    def __init__(self) -> None:
        super().__init__(1 << 24)
        self.ended: set[str] = set()

    def on_message(self, number: int, message: bytes) -> None:
        self.ended.update(end.order_id for end in pb.WatchOrdersResponse.FromString(message).ended)

    def on_end(self) -> None:
        pass


async def test_a_gateway_that_does_not_read_is_not_heard_before_it_does(
    client: OrderClient,
    linked: Settings,
    until: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.watches._MOST_UNHEARD_BYTES", 1 << 16)
    received = Received(monkeypatch, "server.link")
    loop = asyncio.get_running_loop()
    _, gateway = await loop.create_unix_connection(Asker, linked.link_paths[0])
    gateway.pause_reading()
    gateway.send(0, b"WatchOrders")

    async def write() -> None:
        for number in range(REQUESTS):
            await gateway.writable()
            gateway.send(0, watch_of_none(number).SerializeToString())

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        # Time enough for the server to receive them all.
        for _ in range(100):
            await client.submit(SPEC)
        assert received.count < REQUESTS / 2
        assert received.most_kept <= MOST_KEPT
        gateway.resume_reading()
        await until(lambda: len(gateway.ended) == REQUESTS * ORDERS)
    assert received.count == REQUESTS
    gateway.close()


async def test_only_the_same_user_may_connect(client: OrderClient, linked: Settings) -> None:
    assert stat.S_IMODE(os.stat(linked.link_paths[0]).st_mode) == 0o600
