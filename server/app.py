"""One server process: what it is made of, how it starts and how it stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from orders.v1 import orders_pb2, orders_pb2_grpc

from engine.addresses import with_port
from engine.hints import Hints
from engine.market import Market, RouteRules
from engine.process import StartupError
from engine.queue import OrderBroker
from engine.redis_client import check_version
from engine.settings import Settings
from engine.solana.rpc import NodeClient
from engine.storage.migrate import migrate, read_news_key
from engine.storage.postgres import Store
from engine.telemetry import ProbeServer, observe_batch
from server.admission import Admission
from server.link import LinkServer
from server.refusals import Decoding
from server.service import OrderService
from server.tokens import Tokens
from server.watches import Watches

SERVICE = orders_pb2.DESCRIPTOR.services_by_name["OrderService"].full_name

_FINISH_SECONDS = 8.0
"""How long calls under way may take when the process is to stop."""
_HEALTH_SECONDS = 1.0
"""How often it is looked whether the server is ready still,"""
_READY_SECONDS = 0.05
"""and whether it is at last: somebody waits for that."""

_OPTIONS = (
    # Two servers on one port would each get some of the calls; a port in use is to be an error.
    ("grpc.so_reuseport", 0),
    # 1,000 orders of a BatchSubmitOrders are some 300 kB.
    ("grpc.max_receive_message_length", 1 << 20),
    ("grpc.max_metadata_size", 8 << 10),
    # A client that pings more often than this is told to calm down; one that vanished is noticed.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

logger = logging.getLogger(__name__)


async def serve(settings: Settings, stopping: asyncio.Event) -> None:
    """Serve until `stopping`. Raises StartupError: a service is unreachable or too old, a port is taken."""
    await migrate(settings)
    await check_version(settings)
    broker = OrderBroker(settings)
    hints = Hints(settings, await read_news_key(settings))
    try:
        async with (
            Store(settings, observe_batch) as store,
            NodeClient(settings.node_url, settings.node_ws_url) as node,
            asyncio.TaskGroup() as group,
        ):
            market = Market(node, rules=RouteRules.of(settings))
            watches = Watches(store, hints)
            admission = Admission(store, settings.max_open_orders, settings.max_resting_orders)
            service = OrderService(settings, store, broker, hints, market, watches, admission, Tokens(node))

            def not_ready() -> str | None:
                if stopping.is_set():
                    return "stopping"
                return None if admission.store_up else "PostgreSQL is away"

            health_servicer = health.aio.HealthServicer()
            server = _make_server(settings, service, health_servicer)
            links = LinkServer(service, watches, group)
            followers = [
                group.create_task(watches.run()),
                group.create_task(admission.run()),
                # Quotes need the node; everything else is served without it.
                group.create_task(market.run(follow=False)),
                group.create_task(_tell_health(health_servicer, not_ready)),
            ]
            async with _probes(settings, not_ready):
                await server.start()
                for path in settings.link_paths[:1]:
                    await links.start(path)
                logger.info("listening", extra={"address": with_port(settings.host, settings.grpc_port)})
                await stopping.wait()
                await health_servicer.enter_graceful_shutdown()
                # Streams never end by themselves: send the watchers away first, then wait for the calls.
                watches.drain()
                await asyncio.gather(links.stop(_FINISH_SECONDS), server.stop(_FINISH_SECONDS))
            for task in followers:
                task.cancel()
    finally:
        await broker.shutdown()
        await hints.aclose()


def _make_server(
    settings: Settings, service: OrderService, health_servicer: health.aio.HealthServicer
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[Decoding()], options=_OPTIONS)
    orders_pb2_grpc.add_OrderServiceServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = with_port(settings.host, settings.grpc_port)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"gRPC port {address} cannot be bound: it is in use, or not ours") from error
    return server


def _probes(settings: Settings, not_ready: Callable[[], str | None]) -> ProbeServer:
    return ProbeServer(settings.host, settings.server_metrics_port, not_ready)


async def _tell_health(servicer: health.aio.HealthServicer, not_ready: Callable[[], str | None]) -> None:
    """Keep the standard health service in step with what /healthz says, for ever."""
    told: bool | None = None
    while True:
        ready = not_ready() is None
        if ready is not told:
            status = (
                health_pb2.HealthCheckResponse.SERVING
                if ready
                else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            for name in ("", SERVICE):
                await servicer.set(name, status)
            told = ready
        await asyncio.sleep(_HEALTH_SECONDS if ready else _READY_SECONDS)
