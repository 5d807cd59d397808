"""WebSockets that follow orders, over the real server: replay, then live, then close."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from engine.settings import Settings, settings_as_environ
from tests.serving import ATTEMPT, BUY, POOL, Worker, gateway, order_server, with_grpc_port

Until = Callable[..., Awaitable[None]]


async def submit(base: str, **changes: Any) -> str:
    async with (
        aiohttp.ClientSession(f"http://{base}") as http,
        http.post("/api/orders/execute", json=BUY | changes) as answer,
    ):
        order_id: str = (await answer.json())["orderId"]
        return order_id


def path(base: str, order_id: str, query: str = "") -> str:
    return f"ws://{base}/api/orders/{order_id}/ws{query}"


async def messages(socket: ClientConnection) -> list[str]:
    """Read to the close, whatever its code is."""
    found = []
    async with asyncio.timeout(20):
        try:
            while True:
                found.append(str(await socket.recv()))
        except ConnectionClosed:
            return found


async def test_messages_are_as_their_users_know_them(base: str, worker: Worker) -> None:
    order_id = await submit(base)
    async with connect(path(base, order_id)) as socket:
        # Live: each step is told before the next one happens.
        told = [await socket.recv()]
        for fact in await worker.facts(order_id):
            await worker.move(order_id, fact)
            told.append(await socket.recv())
        assert await messages(socket) == []
        assert socket.close_code == 1000
    known = {"venue": "Raydium", "price": 105.499999842, "inputAmount": "0.09478673", "outputAmount": "10"}
    leg = {
        "venue": "Raydium",
        "kind": "raydium_cpmm",
        "pool": POOL,
        "inputAmount": "0.09478673",
        "outputAmount": "10",
        "inputToken": "SOL",
        "outputToken": "USDC",
        "thresholdAmount": "0.095260663",
        "feeAmount": "0.000236967",
        "feeToken": "SOL",
        "feePpm": 2500,
        "priceImpactPpm": 12,
    }
    assert [json.loads(text) for text in told] == [
        {"orderId": order_id, "status": "pending", "sequence": 1},
        {"orderId": order_id, "status": "routing", "sequence": 2},
        {"orderId": order_id, "status": "building", "sequence": 3, **known, "legs": [leg]},
        {"orderId": order_id, "status": "submitted", "sequence": 4, **known, "txHash": ATTEMPT.tx_hash},
        {"orderId": order_id, "status": "confirmed", "sequence": 5, **known, "txHash": ATTEMPT.tx_hash},
    ]
    assert '"price":105.499999842,' in str(told[2])


async def test_who_comes_late_sees_pending_first(base: str, worker: Worker) -> None:
    order_id = await submit(base)
    await worker.execute(order_id)
    async with connect(path(base, order_id)) as socket:
        statuses = [json.loads(text)["status"] for text in await messages(socket)]
    assert statuses == ["pending", "routing", "building", "submitted", "confirmed"]
    assert socket.close_code == 1000


async def test_after_skips_what_is_known(base: str, worker: Worker) -> None:
    order_id = await submit(base)
    await worker.execute(order_id)
    for after, expected in (("3", [4, 5]), ("5", [])):
        async with connect(path(base, order_id, f"?after={after}")) as socket:
            assert [json.loads(text)["sequence"] for text in await messages(socket)] == expected
            assert socket.close_code == 1000


async def test_a_failure_carries_its_reason(base: str, worker: Worker) -> None:
    from tests.serving import no_route

    order_id = await submit(base)
    facts = await worker.facts(order_id)
    await worker.move(order_id, facts[0], no_route(1), no_route(2), no_route(3))
    async with connect(path(base, order_id)) as socket:
        told = [json.loads(text) for text in await messages(socket)]
    why = {"failureReason": "no_route", "failureMessage": "no pool can fill it"}
    assert told[2:] == [
        {"orderId": order_id, "status": "routing", "sequence": 3, **why, "attempt": 2},
        {"orderId": order_id, "status": "routing", "sequence": 4, **why, "attempt": 3},
        {"orderId": order_id, "status": "failed", "sequence": 5, **why, "attempt": 3},
    ]


async def test_what_cannot_be_followed_is_closed_with_its_code(base: str) -> None:
    order_id = await submit(base)
    for address, code in (
        (path(base, "01890000-0000-7000-8000-000000000000"), 4404),
        (path(base, "nope"), 4404),
        (path(base, order_id, "?after=x"), 4400),
        (path(base, order_id, "?after=-1"), 4400),
        (path(base, order_id, "?after=7"), 4400),
    ):
        async with connect(address) as socket:
            assert await messages(socket) == []
            assert (socket.close_code, bool(socket.close_reason)) == (code, True), address


async def test_a_query_is_read_as_strictly_as_rest_reads_one(base: str) -> None:
    order_id = await submit(base)
    for query, reason in (
        ("after=1&after=2", "after comes twice"),
        ("after=0&after=0", "after comes twice"),
        ("afer=3", "afer is not a parameter; there is after"),
        ("after=0&status=pending", "status is not a parameter; there is after"),
        ("after=", 'after was ""; must be a whole number from 0 to 999999999'),
        ("after=7", f"after was 7, but the last event of order {order_id} is 1"),
    ):
        async with connect(path(base, order_id, f"?{query}")) as socket:
            assert await messages(socket) == []
            assert (socket.close_code, socket.close_reason) == (4400, reason), query
    # REST's own words.
    async with aiohttp.ClientSession(f"http://{base}") as http:
        for query, words in (
            ("limit=1&limit=2", "limit comes twice"),
            ("afer=3", "afer is not a parameter;"),
        ):
            async with http.get(f"/api/orders?{query}") as answer:
                assert (await answer.json(content_type=None))["message"].startswith(words)


async def test_pages_of_other_sites_may_not_follow_orders(base: str) -> None:
    order_id = await submit(base)
    for origin in (f"http://{base}", "https://desk.example.com", None):
        async with connect(path(base, order_id), origin=origin) as socket:  # type: ignore[arg-type]
            assert json.loads(await socket.recv())["status"] == "pending"
    for origin in ("https://evil.example.com", "null", f"http://{base}.evil.example.com", "http://["):
        with pytest.raises(InvalidStatus) as refused:
            await connect(path(base, order_id), origin=origin)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body or b"")["reason"] == "ORIGIN_NOT_ALLOWED"


async def test_a_page_whose_name_is_made_to_lead_here_may_not_follow_orders(base: str) -> None:
    order_id = await submit(base)
    host, _, port = base.partition(":")
    for name, allowed in (("rebind.example", False), ("localhost", True)):
        # The name goes into Host, the connection to the gateway.
        address = path(f"{name}:{port}", order_id)
        connecting = connect(address, origin=f"http://{name}:{port}", host=host, port=int(port))  # type: ignore[arg-type]
        if allowed:
            async with connecting as socket:
                assert json.loads(await socket.recv())["status"] == "pending"
        else:
            with pytest.raises(InvalidStatus) as refused:
                await connecting
            assert refused.value.response.status_code == 403


async def test_a_handshake_that_is_none_is_a_problem(base: str) -> None:
    good = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    order = "/api/orders/01890000-0000-7000-8000-000000000000/ws"
    async with aiohttp.ClientSession(f"http://{base}") as http:
        for change, address, code in (
            ({"sec-websocket-version": "8"}, order, 426),
            ({"sec-websocket-key": "short"}, order, 400),
            ({}, "/elsewhere", 404),
        ):
            async with http.get(address, headers=good | change) as answer:
                assert answer.status == code
                assert answer.headers["content-type"] == "application/problem+json"


async def test_many_sockets_of_one_order_all_get_everything(base: str, worker: Worker) -> None:
    order_id = await submit(base)
    early = [await connect(path(base, order_id)) for _ in range(10)]
    await worker.execute(order_id)
    late = [await connect(path(base, order_id, f"?after={number % 5}")) for number in range(10)]
    for socket in early:
        assert [json.loads(text)["sequence"] for text in await messages(socket)] == [1, 2, 3, 4, 5]
    for number, socket in enumerate(late):
        expected = list(range(number % 5 + 1, 6))
        assert [json.loads(text)["sequence"] for text in await messages(socket)] == expected


async def test_pings_are_answered_and_messages_ignored(base: str) -> None:
    order_id = await submit(base)
    async with connect(path(base, order_id)) as socket:
        await socket.send("hello")
        async with asyncio.timeout(20):
            await (await socket.ping())
        assert json.loads(await socket.recv())["status"] == "pending"


async def test_a_message_over_4_kib_ends_the_socket(base: str) -> None:
    order_id = await submit(base)
    async with connect(path(base, order_id)) as socket:
        await socket.recv()
        await socket.send("x" * 4097)
        assert await messages(socket) == []
        assert socket.close_code == 1009


@pytest.mark.parametrize("pieces", [[b"\xff\xfe"], [b"\xe2\x82", b"a"], [b"\xe2\x82"], [b"\xed\xa0\x80"]])
async def test_a_text_that_is_not_utf_8_ends_the_socket(base: str, pieces: list[bytes]) -> None:
    order_id = await submit(base)
    async with connect(path(base, order_id)) as socket:
        await socket.recv()
        # All of this is well; what is not a text may be anything.
        await socket.send([b"\xe2\x82", b"\xac"], text=True)
        await socket.send([b"\xe2\x82", b"a"], text=False)
        async with asyncio.timeout(20):
            await (await socket.ping())
        await socket.send(pieces, text=True)
        assert await messages(socket) == []
        assert socket.close_code == 1007


async def test_the_watch_ends_with_its_socket(base: str, until: Until) -> None:
    order_id = await submit(base)
    async with connect(path(base, order_id)) as socket:
        await socket.recv()
        assert await figure(base, "order_engine_open_websockets") == 1
        assert await figure(base, "order_engine_open_watches") == 1
    async with asyncio.timeout(20):
        while await figure(base, "order_engine_open_websockets"):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
    assert await figure(base, "order_engine_open_watches") == 0


async def figure(base: str, name: str) -> float:
    async with aiohttp.ClientSession(f"http://{base}") as http, http.get("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def test_a_socket_stays_open_over_a_restart_of_the_server(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    settings = with_grpc_port(settings, free_port)
    async with Worker(settings) as worker:
        server = order_server(settings)
        running = await server.__aenter__()
        async with gateway(settings) as (base, _):
            order_id = await submit(base)
            facts = await worker.facts(order_id)
            async with connect(path(base, order_id)) as socket:
                assert json.loads(await socket.recv())["sequence"] == 1
                await running.stop()
                # Nobody serves now, and the order moves on.
                await worker.move(order_id, *facts[:2])
                async with order_server(settings):
                    await worker.move(order_id, *facts[2:])
                    sequences = [json.loads(text)["sequence"] for text in await messages(socket)]
                    assert (sequences, socket.close_code) == ([2, 3, 4, 5], 1000)


# ---- The process -------------------------------------------------------------------------------------


def start(settings: Settings, **changes: str) -> subprocess.Popen[str]:
    environ = settings_as_environ(settings) | {"PYTHONPATH": ".:generated", "PATH": "/usr/bin"} | changes
    return subprocess.Popen(
        [sys.executable, "-m", "gateway"],
        env=environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def ended(process: subprocess.Popen[str], seconds: float = 20.0) -> int:
    async with asyncio.timeout(seconds):
        while process.poll() is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(0.02)
    return int(process.returncode)


async def test_sigterm_tells_watchers_to_come_back_and_exits_0(
    served: Settings, free_port: Callable[[], int]
) -> None:
    port = free_port()
    process = start(served, PORT=str(port))
    try:
        base = f"127.0.0.1:{port}"
        async with aiohttp.ClientSession() as http, asyncio.timeout(20):
            while True:
                try:
                    async with http.get(f"http://{base}/healthz") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)
        order_id = await submit(base)
        async with connect(path(base, order_id)) as socket:
            await socket.recv()
            process.send_signal(signal.SIGTERM)
            assert await messages(socket) == []
            assert socket.close_code == 1012
        assert await ended(process, 15) == 0
    finally:
        process.kill()
        process.communicate()


async def test_what_it_cannot_start_with_is_one_sentence_and_exit_2(
    served: Settings, base: str, free_port: Callable[[], int]
) -> None:
    taken = base.partition(":")[2]
    for changes, sentence in (
        ({"PORT": taken}, f"gateway: PORT {taken} on 127.0.0.1 cannot be used: Address already in use\n"),
        (
            {"ALLOWED_ORIGINS": "desk.example.com"},
            'gateway: ALLOWED_ORIGINS names "desk.example.com"; must be origins as browsers name '
            "them: https://desk.example.com\n",
        ),
        (
            {"HOST": "nowhere.invalid"},
            'gateway: HOST was "nowhere.invalid"; must be an address of this machine, as 127.0.0.1 or ::1,'
            " or the name of one\n",
        ),
    ):
        process = start(served, **changes)
        assert await ended(process) == 2
        assert process.communicate()[1] == sentence


async def test_without_an_order_service_it_says_where_it_looked(
    settings: Settings, free_port: Callable[[], int]
) -> None:
    port = free_port()
    process = start(settings, GRPC_PORT=str(port))
    assert await ended(process, 30) == 2
    sentence = process.communicate()[1]
    assert sentence.startswith(f"gateway: gRPC server 127.0.0.1:{port}")
    assert sentence.endswith("start the server, or correct GRPC_HOST, GRPC_PORT or LINK_FOLDER\n")


async def test_a_folder_of_links_without_a_server_is_no_order_service(
    served: Settings, tmp_path: Path
) -> None:
    process = start(served, LINK_FOLDER=str(tmp_path))
    assert await ended(process, 30) == 2
    sentence = process.communicate()[1]
    assert sentence.startswith("gateway: by its link the server cannot be reached: ")
