"""`python -m server`: starts or says why not, is found by reflection, and tells whether it is ready."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import sysconfig
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from orders.v1 import orders_pb2 as pb

from cli.embedded import Postgres
from engine.addresses import with_port
from engine.settings import Settings, settings_as_environ
from tests.integration.server.calls import stub_of, submit
from tests.ipv6 import needs_ipv6

ROOT = Path(__file__).parents[3]
BUF = Path(sysconfig.get_path("scripts")) / "buf"
SERVICE = "orders.v1.OrderService"

Until = Callable[..., Awaitable[None]]


@pytest.fixture
def settings(settings: Settings, free_port: Callable[[], int]) -> Settings:
    """The session's services, and ports of the process's own."""
    return replace(settings, grpc_port=free_port(), server_metrics_port=free_port())


async def start(settings: Settings) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server"),
        cwd=ROOT,
        env={**os.environ, **settings_as_environ(settings)},
        stderr=PIPE,
    )


async def said(process: Process) -> str:
    """Wait for the process's end and return what it wrote."""
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    return errors.decode()


async def healthz(settings: Settings) -> tuple[int, str]:
    """What /healthz answers; 0 while nobody listens."""
    url = f"http://{with_port(settings.grpc_host, settings.server_metrics_port)}/healthz"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, (await response.text()).strip()
    except aiohttp.ClientError:
        return 0, ""


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Process]:
    """The server as a process, once it is ready."""
    process = await start(settings)
    try:
        async with asyncio.timeout(20):
            while await healthz(settings) != (200, "ok"):
                assert process.returncode is None, await said(process)
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def buf(*arguments: str) -> str:
    """What `buf` prints; its schema comes from the server, by reflection."""
    process = await asyncio.create_subprocess_exec(str(BUF), *arguments, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


# ---- Ad hoc ----------------------------------------------------------------------------------------


async def test_a_client_that_knows_nothing_of_the_contract_submits_an_order(settings: Settings) -> None:
    async with running(settings):
        address = f"http://127.0.0.1:{settings.grpc_port}"
        curl = ("curl", "--http2-prior-knowledge", "--protocol", "grpc")
        services = (await buf(*curl, address, "--list-services")).split()
        assert sorted(services) == [
            "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", SERVICE,
        ]  # fmt: skip
        methods = (await buf(*curl, address, "--list-methods")).split()
        assert f"{SERVICE}/SubmitOrder" in methods
        spec = {"side": "SIDE_SELL", "amount": "1.5", "inputToken": "SOL", "outputToken": "USDC"}
        answer: dict[str, Any] = json.loads(
            await buf(*curl, "-d", json.dumps({"spec": spec}), f"{address}/{SERVICE}/SubmitOrder")
        )
        assert answer["order"]["status"] == "ORDER_STATUS_PENDING"
        async with stub_of(settings) as stub:
            listed = await stub.ListOrders(pb.ListOrdersRequest())
        assert [order.order_id for order in listed.orders] == [answer["order"]["orderId"]]
        await reflects(settings)


async def reflects(settings: Settings) -> None:
    """The files that describe the service come by reflection, with all that they import."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([question]))]
    assert len(answers[0].file_descriptor_response.file_descriptor_proto) >= 3


# ---- Health ----------------------------------------------------------------------------------------


@pytest.fixture
def postgres_of_its_own(services_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL that a test may stop."""
    folder = services_folder / "stopped"
    folder.mkdir()
    server = Postgres(folder, options={"fsync": "off"})
    server.start()
    yield server
    server.stop()


async def test_health_follows_readiness(
    settings: Settings, postgres_of_its_own: Postgres, services_folder: Path
) -> None:
    database = postgres_of_its_own
    settings = replace(settings, db_host=database.host, db_port=database.port, db_username=database.user)
    async with (
        running(settings) as process,
        grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            found: int = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
            return found

        async def become(wanted: int) -> None:
            async with asyncio.timeout(20):
                while {await status(""), await status(SERVICE)} != {wanted}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        await become(serving)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == serving
        database.stop()
        await become(not_serving)
        assert await healthz(settings) == (503, "PostgreSQL is away")
        assert (await watch.read()).status == not_serving
        async with stub_of(settings) as orders:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await orders.SubmitOrder(submit())
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            database.start()
            await become(serving)
            assert await healthz(settings) == (200, "ok")
            await orders.SubmitOrder(submit())
        watch.cancel()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "::"])
async def test_a_server_at_an_ipv6_address_is_reached_there(settings: Settings, host: str) -> None:
    settings = replace(settings, host=host, grpc_host="[::1]")
    async with running(settings), stub_of(settings) as stub:
        assert (await stub.ListOrders(pb.ListOrdersRequest())).orders == []


# ---- What keeps it from starting -------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["grpc_port", "server_metrics_port"])
async def test_a_port_in_use_is_one_sentence(setting: str, settings: Settings) -> None:
    port = getattr(settings, setting)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        process = await start(replace(settings, log_level="ERROR"))
        words = await said(process)
    assert process.returncode == 2
    # grpc logs the failure on its own, in a line of its own.
    sentence = words.splitlines()[-1]
    assert sentence.startswith("server: ")
    assert f"127.0.0.1:{port}" in sentence
    assert "cannot be bound: it is in use" in sentence
    assert "Traceback" not in words


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"db_host": "127.0.0.1", "db_port": 1}, "server: PostgreSQL at 127.0.0.1:1 cannot be used: "),
        ({"redis_host": "127.0.0.1", "redis_port": 1}, "server: Redis at 127.0.0.1:1 cannot be used: "),
        ({"host": "nowhere.invalid"}, 'server: HOST was "nowhere.invalid"; must be an address of this m'),
        ({"host": "192.0.2.1"}, 'server: HOST was "192.0.2.1"; must be an address of this m'),
    ],
)
async def test_a_service_that_is_away_or_a_host_of_others_is_one_sentence(
    change: dict[str, Any], sentence: str, settings: Settings
) -> None:
    process = await start(replace(settings, log_level="ERROR", **change))
    words = await said(process)
    assert process.returncode == 2
    assert words.startswith(sentence)
    assert words.count("\n") == 1


async def test_a_server_without_calls_stops_at_once(settings: Settings) -> None:
    async with running(settings) as process:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(15):
            assert await process.wait() == 0
