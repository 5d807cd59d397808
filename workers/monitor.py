"""Finds orders whose trigger holds, and fires them: they are due from then on, and executed like any other.

One monitor follows prices, another what pools hold. Each runs in one worker process of all there are, on
whatever host: the one whose number stands in its row. It keeps that row ahead of the clock; when it dies, the
others find its lease freed or the row grown old, and one of them goes on. Two at once for a moment do no
harm: an order is fired on the condition that it rests.

A tick, once a slot: which pairs and sizes have orders that rest; for each, the best there is to be had; the
orders whose level that reaches, from the lowest on; and of those, the ones to whose route their type has no
objection. So a tick costs what there are pairs and sizes, and what fires, however many orders rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

from engine.domain.errors import EngineError, NodeUnavailable, OutcomeUnknown, StoreUnavailable
from engine.domain.order import Order, OrderSpec, Route
from engine.domain.order_types import TriggerKind
from engine.market import Market
from engine.queue import OrderBroker
from engine.redis_client import REDIS_ERRORS
from engine.settings import Settings
from engine.storage.postgres import RestingGroup, Store
from engine.telemetry import monitor_fired_total, monitor_leads, monitor_tick_seconds
from workers.executor import Executor

_LEASE_SECONDS: Final = 1.2
"""How long a monitor that says nothing is taken to be alive. It is found dead and followed within 2 s."""
_ASK_SECONDS: Final = 0.4
"""How often it says so, and how often the others look."""
_PAGE: Final = 64
"""Orders of a group that are looked at between two turns of the loop for everybody else."""
_ROUNDING: Final = 1e-9
"""How far a bound and a level may be off, as a part of them."""

logger = logging.getLogger(__name__)

Bound = Callable[[RestingGroup], float]
"""The highest level there is for the orders of a group, in this moment."""


def _price_bound(market: Market) -> Bound:
    return lambda group: market.price_bound(
        group.input_token, group.output_token, group.side, group.least_amount
    )


def _liquidity_bound(market: Market) -> Bound:
    return lambda group: float(market.liquidity(group.input_token, group.output_token))


MONITORS: Final[Mapping[TriggerKind, Callable[[Market], Bound]]] = {
    TriggerKind.PRICE: _price_bound,
    TriggerKind.LIQUIDITY: _liquidity_bound,
}
"""How far each kind of trigger is followed."""


class Monitor:
    """`run` ticks while this process is the one that follows this kind of trigger."""

    def __init__(
        self,
        kind: TriggerKind,
        bound: Bound,
        settings: Settings,
        store: Store,
        market: Market,
        executor: Executor,
        broker: OrderBroker,
        *,
        lease_owner: Callable[[], int],
    ) -> None:
        """`lease_owner` tells the number this process holds leases under now; 0: it holds none."""
        self._kind = kind
        self._bound = bound
        self._slippage_bps = settings.slippage_bps
        self._store = store
        self._market = market
        self._executor = executor
        self._broker = broker
        self._lease_owner = lease_owner
        self._leads = False
        self._fired_total = monitor_fired_total.labels(kind.value)
        self._tick_seconds = monitor_tick_seconds.labels(kind.value)

    async def run(self) -> None:
        """Follow this kind of trigger whenever no other worker does, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_lead())
            group.create_task(self._tick_every_slot())

    async def end(self) -> None:
        """Leave it to the others."""
        if self._leads:
            with suppress(StoreUnavailable, OutcomeUnknown):
                await self._store.leave_monitor(self._kind, self._lease_owner())
            self._lead(False)

    # ---- Whose turn it is -------------------------------------------------------------------------

    async def _keep_lead(self) -> None:
        while True:
            owner, leads = self._lease_owner(), False
            try:
                if owner and self._market.ready:
                    leads = await self._store.take_monitor(self._kind, owner, _LEASE_SECONDS)
            except (StoreUnavailable, OutcomeUnknown) as error:
                logger.warning("the %s monitor rests: %s", self._kind, error)
            self._lead(leads)
            await asyncio.sleep(_ASK_SECONDS)

    def _lead(self, leads: bool) -> None:
        if leads is not self._leads:
            self._leads = leads
            monitor_leads.labels(self._kind.value).set(int(leads))
            logger.info("the %s monitor %s here", self._kind, "runs" if leads else "no longer runs")

    # ---- One tick -----------------------------------------------------------------------------------

    async def _tick_every_slot(self) -> None:
        while True:
            await self._market.next_refresh()
            if not self._leads:
                continue
            try:
                with self._tick_seconds.time():
                    await self.tick()
            except EngineError as error:
                logger.warning("a tick of the %s monitor is left out: %s", self._kind, error)

    async def tick(self) -> list[UUID]:
        """Fire every order whose trigger holds now, and return which. Raises EngineError."""
        fired: list[UUID] = []
        for group in await self._store.resting_groups(self._kind):
            try:
                await self._market.learn((group.input_token, group.output_token))
                level = self._bound(group) * (1 + _ROUNDING)
            except NodeUnavailable as error:
                logger.info("%s for %s: %s", group.input_token.symbol, group.output_token.symbol, error)
                continue
            if group.lowest_level <= level:
                fired += await self._fire_group(group, level)
        return fired

    async def _fire_group(self, group: RestingGroup, level: float) -> list[UUID]:
        fired: list[UUID] = []
        ahead = _Ahead(self._market, self._slippage_bps)
        last: Order | None = None
        while True:
            page = await self._store.resting_orders(self._kind, group, level, _PAGE, last)
            met = [order for order in page if ahead.leaves_enough_for(order)]
            if met:
                fired += await self._fire(met)
            if len(page) < _PAGE:
                return fired
            last = page[-1]

    async def _fire(self, orders: Sequence[Order]) -> list[UUID]:
        fired = await self._store.fire(self._kind, orders)
        self._fired_total.inc(len(fired))
        if not fired:
            return fired
        logger.info("the %s monitor fires %d orders", self._kind, len(fired))
        room = max(0, self._executor.room)
        # Here at once, as far as there is room; a worker that dies in between leaves them to the sweeper.
        await self._executor.take(fired[:room])
        if fired[room:]:
            with suppress(*REDIS_ERRORS):
                await self._broker.offer(fired[room:])
        return fired


class _Ahead:
    """Orders of one group in the order in which they fire, each on what those ahead of it leave.

    Else a thousand orders would fire on what is there for ten, and all but ten return to waiting.
    """

    def __init__(self, market: Market, slippage_bps: int) -> None:
        self._market = market
        self._slippage_bps = slippage_bps
        self._amount = 0
        """Of the orders that fire."""
        self._input_amount = 0
        self._output_amount = 0
        """What one order of that amount would pay and get."""

    def leaves_enough_for(self, order: Order) -> bool:
        """Return whether the order's trigger holds, and count it in if it does. Raises NodeUnavailable."""
        spec = order.spec
        trigger = spec.type.trigger(spec)
        if trigger is not None and trigger.kind is TriggerKind.PRICE:
            # Most that are within the group's bound and do not fire are not within their own; a decision
            # takes ten times as long.
            bound = self._market.price_bound(spec.input_token, spec.output_token, spec.side, spec.amount)
            if bound * (1 + _ROUNDING) < trigger.level:
                return False
        liquidity = self._market.liquidity(spec.input_token, spec.output_token)
        route = self._route(spec)
        if route is None or spec.type.unmet(spec, route, liquidity) is not None:
            return False
        if not self._amount:
            self._amount = spec.amount
            self._input_amount, self._output_amount = route.input_amount, route.output_amount
            return True
        together = replace(spec, amount=self._amount + spec.amount)
        whole = self._route(together)
        if whole is None:
            return False
        left = replace(
            route,
            input_amount=whole.input_amount - self._input_amount,
            output_amount=whole.output_amount - self._output_amount,
        )
        if spec.type.unmet(spec, left, liquidity) is not None:
            return False
        self._amount += spec.amount
        self._input_amount, self._output_amount = whole.input_amount, whole.output_amount
        return True

    def _route(self, spec: OrderSpec) -> Route | None:
        slippage_bps = self._slippage_bps if spec.slippage_bps is None else spec.slippage_bps
        return self._market.decide(spec, 0, slippage_bps).route
