"""One worker process: what it is made of, how it starts and how it stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from engine.domain.errors import OutcomeUnknown, StoreUnavailable
from engine.domain.order_types import TriggerKind
from engine.hints import Hints
from engine.market import Market, RouteRules
from engine.process import StartupError
from engine.queue import TASK_NAME, OrderBroker, run_tasks
from engine.redis_client import check_version
from engine.settings import Settings
from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet, WalletError
from engine.storage.migrate import migrate, read_news_key
from engine.storage.postgres import Store
from engine.telemetry import ProbeServer, observe_batch
from workers.executor import Executor
from workers.leases import Lease, Sweeper
from workers.monitor import Monitor
from workers.neighbours import Neighbours
from workers.reconciliation import Reconciliation
from workers.settlement import Settlement

_FINISH_SECONDS = 5.0
"""How long orders under way may still reach their end when the process is to stop."""

logger = logging.getLogger(__name__)


async def work(settings: Settings, stopping: asyncio.Event, index: int = 0) -> None:
    """Execute orders until `stopping`. `index` is this process's place among its host's workers.

    Raises StartupError: a service is unreachable or too old, the wallet cannot be read, the port is taken.
    """
    wallet = _load_wallet(settings)
    logger.info("orders are signed for with wallet %s", wallet.pubkey)
    await migrate(settings)
    await check_version(settings)
    broker = OrderBroker(settings)
    key = await read_news_key(settings)
    hints = Hints(settings, key)
    try:
        async with (
            Store(settings, observe_batch) as store,
            NodeClient(settings.node_url, settings.node_ws_url) as node,
        ):
            market = Market(node, wallet.pubkey, rules=RouteRules.of(settings))
            neighbours = Neighbours(settings, key, market)
            settlement = Settlement(
                node,
                str(wallet.pubkey),
                commitment=settings.commitment,
                resend_seconds=settings.resend_seconds,
                is_told=settings.worker_processes == 1,
            )
            lease = Lease(settings, store, Reconciliation(store, node, str(wallet.pubkey)))

            def not_ready() -> str | None:
                return lease.missing or (None if market.ready else "the Solana node is away")

            port = settings.workers_metrics_port and settings.workers_metrics_port + index
            async with (
                ProbeServer(settings.host, port, not_ready),
                Executor(
                    settings,
                    store,
                    market,
                    wallet,
                    settlement,
                    hints,
                    neighbours,
                    lease_owner=lambda: lease.owner,
                ) as executor,
            ):

                @broker.task(TASK_NAME)
                async def execute_orders(order_ids: list[UUID]) -> None:
                    # Returns once the claim was tried: from there on PostgreSQL holds the lease.
                    if market.ready:
                        try:
                            await executor.take(order_ids)
                        except (StoreUnavailable, OutcomeUnknown) as error:
                            logger.warning("left to the sweeper: %s", error)

                broker.has_room = lambda: lease.owner > 0 and executor.room > 0
                sweeper = Sweeper(
                    settings,
                    store,
                    executor,
                    lease,
                    can_work=lambda: market.ready,
                    hints_work=lambda: broker.up is not False,
                )
                monitors = [
                    Monitor(kind, settings, store, market, executor, broker, lease_owner=lambda: lease.owner)
                    for kind in TriggerKind
                ]
                await broker.startup()
                await _run(
                    stopping, executor, lease, sweeper, monitors, market, settlement, neighbours, broker
                )
            # A claim that came after it would be taken for that of a worker that died.
            await store.drain()
            await lease.end()
            await neighbours.aclose()
    finally:
        await broker.shutdown()
        await hints.aclose()


async def _run(
    stopping: asyncio.Event,
    executor: Executor,
    lease: Lease,
    sweeper: Sweeper,
    monitors: Sequence[Monitor],
    market: Market,
    settlement: Settlement,
    neighbours: Neighbours,
    broker: OrderBroker,
) -> None:
    async with asyncio.TaskGroup() as group:
        followers = [
            group.create_task(market.run()),
            group.create_task(settlement.run()),
            group.create_task(neighbours.run()),
            group.create_task(lease.keep(executor.let_all_go)),
        ]
        taking_up = [
            group.create_task(sweeper.run()),
            *(group.create_task(monitor.run()) for monitor in monitors),
        ]
        await run_tasks(broker, stopping)
        # Nothing new from here on. What is nearly done may end; the rest another worker takes up at once.
        for task in taking_up:
            task.cancel()
        for monitor in monitors:
            await monitor.end()
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                await executor.wait_idle()
        except TimeoutError:
            logger.info("leaving orders to other workers")
        executor.let_all_go()
        # Each tells the other workers that its swaps are not under way any more.
        await executor.wait_idle()
        for task in followers:
            task.cancel()


def _load_wallet(settings: Settings) -> Wallet:
    if not settings.wallet_path:
        raise StartupError("WALLET_PATH is not set; it names the keypair file that swaps are signed with")
    try:
        return Wallet.load(Path(settings.wallet_path))
    except WalletError as error:
        raise StartupError(str(error)) from error
