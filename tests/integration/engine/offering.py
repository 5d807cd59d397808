"""Offers that are waited for, as nobody in the engine does."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from prometheus_client import REGISTRY

from engine.queue import OrderBroker
from tests.integration.engine.polling import until


async def offer(broker: OrderBroker, order_ids: Sequence[UUID]) -> None:
    """Offer them, and return once Redis has them. Raises one of REDIS_ERRORS when it is away."""
    broker.offer_soon(order_ids)
    await broker._offers.drain()
    # Most offers are not answered; what is asked behind them is.
    await broker._offering("PING")


def dropped_offers() -> float:
    return REGISTRY.get_sample_value("order_engine_hints_dropped_total", {"reason": "offer_failed"}) or 0.0


async def until_dropped(broker: OrderBroker, order_ids: Sequence[UUID]) -> None:
    """Offer them until they are counted as dropped: from when Redis fails, they may be lost for a moment."""
    before = dropped_offers()

    async def are_dropped() -> bool:
        broker.offer_soon(order_ids)
        await broker._offers.drain()
        return dropped_offers() > before

    await until(are_dropped)
