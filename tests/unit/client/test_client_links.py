"""The client's end of a link: what is unanswered when it is lost may be asked again, elsewhere too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from orders.v1 import orders_pb2 as pb

from client import InternalError, OrderClient, ServerUnavailable
from client.link import Links
from engine.link import LinkConnection

REQUEST = pb.BatchSubmitOrdersRequest(requests=[pb.SubmitOrderRequest(request_id="one")])


class Server(LinkConnection):
    """Keeps what it is sent, and does with it what the test says."""

    def __init__(self, does: Callable[[Server, int, bytes], None]) -> None:
        super().__init__(1 << 20)
        self._does = does
        self.methods: list[bytes] = []

    def on_message(self, number: int, message: bytes) -> None:
        if not self.methods:
            self.methods.append(message)
            self.send(0, b"")
        else:
            self._does(self, number, message)

    def on_end(self) -> None:
        pass


@asynccontextmanager
async def listening(path: Path, does: Callable[[Server, int, bytes], None]) -> AsyncIterator[list[Server]]:
    connections: list[Server] = []

    def accept() -> Server:
        connections.append(Server(does))
        return connections[-1]

    server = await asyncio.get_running_loop().create_unix_server(accept, str(path))
    try:
        yield connections
    finally:
        server.close()
        for connection in connections:
            connection.close()


@contextmanager
def hanging(path: Path) -> Iterator[socket.socket]:
    """As with a process that is frozen, the system takes connections and nobody answers."""
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(path))
        hangs.listen()
        yield hangs


def accept(server: Server, number: int, message: bytes) -> None:
    requests = pb.BatchSubmitOrdersRequest.FromString(message).requests
    results: list[Any] = [{"response": {"order": {"order_id": one.request_id}}} for one in requests]
    server.send(number, pb.BatchSubmitOrdersResponse(results=results).SerializeToString())


def hang_up(server: Server, _number: int, _message: bytes) -> None:
    server.close()


def say_nothing(_server: Server, _number: int, _message: bytes) -> None:
    pass


async def test_answers_find_their_requests_in_whatever_order_they_come(tmp_path: Path) -> None:
    held: list[tuple[int, bytes]] = []

    def answer_last_first(server: Server, number: int, message: bytes) -> None:
        held.append((number, message))
        if len(held) == 2:
            for one in reversed(held):
                accept(server, *one)

    links = Links([str(tmp_path / "a")])
    async with listening(tmp_path / "a", answer_last_first) as connections:
        batches = [
            pb.BatchSubmitOrdersRequest(requests=[pb.SubmitOrderRequest(request_id=name)])
            for name in ("one", "two")
        ]
        answers = await asyncio.gather(*(links.submit(batch, 5) for batch in batches))
        found = [answer.results[0].response.order.order_id for answer in answers]
        links.close()
    assert found == ["one", "two"]
    assert [connection.methods for connection in connections] == [[b"BatchSubmitOrders"]]


async def test_what_is_unanswered_when_the_connection_is_lost_is_unavailable(tmp_path: Path) -> None:
    links = Links([str(tmp_path / "a")])
    async with listening(tmp_path / "a", hang_up):
        with pytest.raises(ServerUnavailable, match="lost"):
            await links.submit(REQUEST, 5)


async def test_a_server_that_does_not_answer_is_not_waited_for_longer_than_said(tmp_path: Path) -> None:
    links = Links([str(tmp_path / "a")])
    async with listening(tmp_path / "a", say_nothing):
        with pytest.raises(ServerUnavailable, match="no answer within"):
            await links.submit(REQUEST, 0)
        links.close()


async def test_servers_take_turns_and_stand_in_for_one_that_is_away(tmp_path: Path) -> None:
    links = Links([str(tmp_path / name) for name in "abc"])
    async with listening(tmp_path / "a", accept) as at_a, listening(tmp_path / "b", accept) as at_b:
        for _ in range(3):
            await links.submit(REQUEST, 5)
        assert (len(at_a), len(at_b)) == (1, 1)
        links.close()
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        await links.submit(REQUEST, 5)


async def test_the_others_stand_in_for_the_first_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.link._AWAY_SECONDS", 0.0)
    links = Links([str(tmp_path / name) for name in "ab"], take_turns=False)
    async with listening(tmp_path / "b", accept) as at_b:
        async with listening(tmp_path / "a", accept) as at_a:
            for _ in range(3):
                await links.submit(REQUEST, 5)
            assert (len(at_a), len(at_b)) == (1, 0)
        await asyncio.sleep(0.05)  # for its end to be noticed
        await links.submit(REQUEST, 5)
        assert len(at_b) == 1
        async with listening(tmp_path / "a", accept) as at_a:
            for _ in range(3):
                await links.submit(REQUEST, 5)
            assert (len(at_a), len(at_b)) == (1, 1)
        links.close()


async def test_one_that_was_away_a_moment_ago_is_not_asked_first(tmp_path: Path) -> None:
    links = Links([str(tmp_path / name) for name in "ab"], take_turns=False)
    async with listening(tmp_path / "b", accept) as at_b:
        await links.submit(REQUEST, 5)
        async with listening(tmp_path / "a", accept) as at_a:
            await links.submit(REQUEST, 5)
            assert (len(at_a), len(at_b)) == (0, 1)
            links.close()


async def test_a_server_that_froze_after_its_greeting_is_left_with_the_first_call_it_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.link.PULSE_SECONDS", 0.1)
    links = Links([str(tmp_path / name) for name in "ab"], take_turns=False)
    async with listening(tmp_path / "a", say_nothing) as at_a, listening(tmp_path / "b", accept) as at_b:
        with pytest.raises(ServerUnavailable, match="no answer within"):
            await links.submit(REQUEST, 0.1)
        for _ in range(3):
            await links.submit(REQUEST, 5)
        assert (len(at_a), len(at_b)) == (1, 1)
        links.close()


async def test_a_server_that_is_slow_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.link.PULSE_SECONDS", 0.1)
    links = Links([str(tmp_path / name) for name in "ab"], take_turns=False)

    def pulse(server: Server, _number: int, _message: bytes) -> None:
        server.send(0, b"")

    async with listening(tmp_path / "a", pulse) as at_a, listening(tmp_path / "b", accept) as at_b:
        for _ in range(2):
            with pytest.raises(ServerUnavailable, match="no answer within"):
                await links.submit(REQUEST, 0.1)
        assert (len(at_a), len(at_b)) == (1, 0)
        links.close()


async def test_a_server_that_hangs_is_passed_over_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.link._GREETING_SECONDS", 0.05)
    links = Links([str(tmp_path / "hangs"), str(tmp_path / "b")])
    with hanging(tmp_path / "hangs"):
        async with listening(tmp_path / "b", accept):
            for _ in range(2):
                await links.submit(REQUEST, 5)
            links.close()
        monkeypatch.setattr("client.link.SILENCE_SECONDS", 0.05)
        async with listening(tmp_path / "b", say_nothing):
            # It has greeted, and says nothing more: no pulse either.
            async with asyncio.timeout(5):
                assert await links.watch().read() is None
                with pytest.raises(ServerUnavailable, match="lost"):
                    await links.submit(REQUEST, 5)


async def test_while_one_call_waits_for_a_server_that_hangs_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.link._GREETING_SECONDS", 3600)
    links = Links([str(tmp_path / "hangs"), str(tmp_path / "b")])
    with hanging(tmp_path / "hangs"):
        async with listening(tmp_path / "b", accept) as at_b, asyncio.TaskGroup() as group:
            waits = group.create_task(links.submit(REQUEST, 5))
            async with asyncio.timeout(5):
                for _ in range(3):
                    # A task too, for they begin in turn.
                    await group.create_task(links.submit(REQUEST, 5))
            assert not waits.done()
            assert len(at_b) == 1
            waits.cancel()
            links.close()


async def test_those_who_wait_for_a_server_that_hangs_wait_no_longer_than_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.link._GREETING_SECONDS", 0.05)
    links = Links([str(tmp_path / "hangs")])
    with hanging(tmp_path / "hangs") as hangs:
        hangs.setblocking(False)
        answers = await asyncio.gather(*(links.submit(REQUEST, 5) for _ in range(4)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ServerUnavailable] * 4
        hangs.accept()[0].close()
        with pytest.raises(BlockingIOError):
            hangs.accept()


async def test_a_server_that_hangs_up_at_once_is_passed_over(tmp_path: Path) -> None:
    """As one that is about to stop: what came on would never be answered."""

    async def leave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_unix_server(leave, str(tmp_path / "leaves"))
    links = Links([str(tmp_path / "leaves"), str(tmp_path / "b")])
    async with server, asyncio.timeout(5):
        async with listening(tmp_path / "b", accept):
            for _ in range(3):
                await links.submit(REQUEST, 3600)
            links.close()
        with pytest.raises(ServerUnavailable, match="cannot be reached"):
            await links.submit(REQUEST, 3600)


async def test_a_watch_ends_with_its_connection(tmp_path: Path) -> None:
    def answer(server: Server, _number: int, message: bytes) -> None:
        watched = pb.WatchOrdersRequest.FromString(message).watch
        events = [pb.OrderEvent(order_id=watch.order_id, sequence=1) for watch in watched]
        server.send(0, pb.WatchOrdersResponse(events=events).SerializeToString())
        server.close()

    watch = Links([str(tmp_path / "a")]).watch()
    assert await watch.read() is None
    with pytest.raises(asyncio.InvalidStateError):
        await watch.write(pb.WatchOrdersRequest())
    async with listening(tmp_path / "a", answer) as connections:
        watch = Links([str(tmp_path / "a")]).watch()
        await watch.write(pb.WatchOrdersRequest(watch=[pb.WatchOrderRequest(order_id="x")]))
        response = await watch.read()
        assert response is not None
        assert [event.order_id for event in response.events] == ["x"]
        assert await watch.read() is None
        with pytest.raises(asyncio.InvalidStateError):
            await watch.write(pb.WatchOrdersRequest())
        watch.cancel()
    assert connections[0].methods == [b"WatchOrders"]


async def test_reads_travel_together_on_a_connection_of_their_own(tmp_path: Path) -> None:
    batches: list[list[str]] = []

    def answer(server: Server, number: int, message: bytes) -> None:
        order_ids = pb.BatchGetOrdersRequest.FromString(message).order_ids
        batches.append(list(order_ids))
        spec = {"side": pb.SIDE_BUY}
        results: list[Any] = [{"response": {"order": {"order_id": one, "spec": spec}}} for one in order_ids]
        server.send(number, pb.BatchGetOrdersResponse(results=results).SerializeToString())

    order_ids = [str(at) for at in range(250)]
    async with (
        listening(tmp_path / "a", answer) as connections,
        OrderClient(links=[str(tmp_path / "a")]) as client,
    ):
        found = await asyncio.gather(*map(client.get, order_ids))
    assert [details.order.order_id for details in found] == order_ids
    assert sorted(map(len, batches)) == [50, 100, 100]
    assert [connection.methods for connection in connections] == [[b"BatchGetOrders"]]


async def test_a_read_that_is_answered_wrongly_ends(tmp_path: Path) -> None:
    def answer(server: Server, number: int, _message: bytes) -> None:
        server.send(number, pb.BatchGetOrdersResponse().SerializeToString())

    async with listening(tmp_path / "a", answer), OrderClient(links=[str(tmp_path / "a")]) as client:
        with pytest.raises(InternalError, match="another number of orders"):
            await client.get("one")
