"""Finds orders whose trigger holds, and fires them: they are due from then on, and executed like any other.

One monitor follows prices, another what pools hold. Each runs in one worker process of all there are, on
whatever host: the one whose number stands in its row. It keeps that row ahead of the clock; when it dies, the
others find its lease freed or the row grown old, and one of them goes on. Two at once for a moment do no
harm: an order is fired on the condition that it rests.

A tick, once a slot while any orders rest: which pairs, sides and sizes have such orders; for each, the best
there is to be had; the orders whose level that reaches, from the lowest on; and of those, the ones to whose
route their type has no objection. So a tick costs what there are pairs and sizes, and what fires, however
many orders rest. What is within reach and held back by something else is looked at in turn, for as long as a
tick may take.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from math import inf
from typing import Final
from uuid import UUID

from engine.domain.errors import EngineError, NodeUnavailable, OutcomeUnknown, StoreUnavailable
from engine.domain.order import Order, OrderSpec, Route, Side
from engine.domain.order_types import TriggerKind
from engine.domain.retry import RetryPolicy
from engine.domain.routing import REACH
from engine.domain.tokens import Token
from engine.market import Market
from engine.queue import OrderBroker
from engine.settings import Settings
from engine.storage.postgres import RestingGroup, Store
from engine.telemetry import monitor_fired_total, monitor_leads, monitor_tick_seconds
from workers.executor import Executor

_LEASE_SECONDS: Final = 1.2
"""How long a monitor that says nothing is taken to be alive. It is found dead and followed within 2 s."""
_ASK_SECONDS: Final = 0.4
"""How often it says so and learns whether any orders wait: once a slot, or what the first of them waits for
could come and go unseen. How often the others look, too."""
_PAGE: Final = 64
"""Orders of a group that are looked at between two turns of the loop for everybody else."""
_TICK_SECONDS: Final = 0.2
"""How long a tick looks further than at a page of each group; the next one goes on from there."""
_STUCK_ASKS: Final = 5
"""A monitor that has said so often since its last tick, in 2 s, leaves it to others, who may see what it does
not. Not by the clock, by which a process that stood still for a moment would be stuck."""
_PARTS: Final = 64
"""Into which the amounts of a group with many orders within reach are cut."""
_ROUNDING: Final = 1e-9
"""How far a bound and a level may be off, as a part of them."""

logger = logging.getLogger(__name__)

Bound = Callable[[RestingGroup, int, int], float]
"""The highest level there is, in this moment, for a group's pair and side, for orders of an amount to so many
times as much."""


def _price_bound(market: Market) -> Bound:
    return lambda group, amount, reach: market.price_bound(
        group.input_token, group.output_token, group.side, amount, reach
    )


def _liquidity_bound(market: Market) -> Bound:
    def bound(group: RestingGroup, amount: int, reach: int) -> float:
        # Pools that trade may hold none of the input; where nothing trades, who asks for nothing waits too.
        if not market.price_bound(group.input_token, group.output_token, group.side, amount, reach):
            return -inf
        try:
            return float(market.liquidity(group.input_token, group.output_token))
        except NodeUnavailable:
            # Not known before the next refresh; who asks for nothing need not wait for it.
            return 0.0

    return bound


_BOUNDS: Final[Mapping[TriggerKind, Callable[[Market], Bound]]] = {
    TriggerKind.PRICE: _price_bound,
    TriggerKind.LIQUIDITY: _liquidity_bound,
}
"""What bounds the level of each kind of trigger."""


class Monitor:
    """`run` ticks while this process is the one that follows this kind of trigger."""

    def __init__(
        self,
        kind: TriggerKind,
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
        self._bound = _BOUNDS[kind](market)
        self._slippage_bps = settings.slippage_bps
        self._policy = RetryPolicy(
            base_seconds=settings.retry_base_seconds, cap_seconds=settings.retry_cap_seconds
        )
        self._store = store
        self._market = market
        self._executor = executor
        self._broker = broker
        self._lease_owner = lease_owner
        self.leads = False
        """Whether this worker is the one that follows this kind of trigger."""
        self._leading = asyncio.Event()
        """As `leads`."""
        self._orders_wait = asyncio.Event()
        """As far as was seen last."""
        self._asks = 0
        """How often it has asked for the lead, while orders wait, since it began to or last ended a tick."""
        self._left_off: dict[_Which, Order] = {}
        """The last order that was looked at, of groups that the last tick ended in."""
        self._fired_total = monitor_fired_total.labels(kind.value)
        self._tick_seconds = monitor_tick_seconds.labels(kind.value)

    async def run(self) -> None:
        """Follow this kind of trigger whenever no other worker does, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_lead())
            group.create_task(self._tick_every_slot())

    async def end(self) -> None:
        """Leave it to the others, once it asks no more."""
        # What it asked last may be answered after it has ended.
        await self._store.take_monitor.drain()
        if owner := self._lease_owner():
            with suppress(StoreUnavailable, OutcomeUnknown):
                await self._store.leave_monitor(self._kind, owner)
        self._lead(False)

    # ---- Whose turn it is -------------------------------------------------------------------------

    async def _keep_lead(self) -> None:
        while True:
            owner, lead = self._lease_owner(), None
            is_stuck = self.leads and self._asks >= _STUCK_ASKS
            try:
                if owner and self._market.ready and not is_stuck:
                    lead = await self._store.take_monitor((self._kind, owner, _LEASE_SECONDS))
                elif self.leads:
                    await self._store.leave_monitor(self._kind, owner)
            except (StoreUnavailable, OutcomeUnknown) as error:
                logger.warning("the %s monitor rests: %s", self._kind, error)
            self._lead(lead is not None)
            if lead is not None and lead.orders_wait:
                self._orders_wait.set()
            if self._orders_wait.is_set():
                self._asks += 1
            # The others ask once in this time, if there are any.
            await asyncio.sleep(2 * _ASK_SECONDS if is_stuck else _ASK_SECONDS)

    def _lead(self, leads: bool) -> None:
        if leads is not self.leads:
            self.leads = leads
            (self._leading.set if leads else self._leading.clear)()
            self._asks = 0
            self._left_off.clear()
            monitor_leads.labels(self._kind.value).set(int(leads))
            logger.info("the %s monitor %s here", self._kind, "runs" if leads else "no longer runs")

    # ---- One tick -----------------------------------------------------------------------------------

    async def _tick_every_slot(self) -> None:
        seen = None
        while True:
            await self._leading.wait()
            await self._orders_wait.wait()
            # Prices are kept fresh for who asks for them.
            seen = await self._market.next_refresh(seen)
            if not self.leads:
                continue
            try:
                start = time.perf_counter()
                await self.tick()
                self._tick_seconds.observe(time.perf_counter() - start)
                self._asks = 0
            except EngineError as error:
                logger.warning("a tick of the %s monitor is left out: %s", self._kind, error)
            except Exception:
                logger.exception("a tick of the %s monitor ended early", self._kind)

    async def tick(self) -> list[UUID]:
        """Fire every order whose trigger holds now, and return which. Raises EngineError."""
        groups = await self._store.resting_groups(self._kind)
        if not groups:
            self._orders_wait.clear()
            self._left_off.clear()
            return []
        await self._market.wake()
        # What is not known yet is not waited for: nothing of it is traded.
        self._market.learn_soon(
            {token for group in groups for token in (group.input_token, group.output_token)}
        )
        due = asyncio.get_running_loop().time() + _TICK_SECONDS
        left_off, self._left_off = self._left_off, {}
        fired: list[UUID] = []
        for pair, of_pair in groupby(
            groups, lambda group: (group.input_token, group.output_token, group.side)
        ):
            try:
                for group, level in self._reached(list(of_pair)):
                    fired += await self._fire_group(group, level, due, left_off.get(_which(group)))
            except NodeUnavailable as error:
                logger.info("%s for %s: %s", pair[0].symbol, pair[1].symbol, error)
            except EngineError:
                raise
            except Exception:
                # Pools that nobody can reckon with must not keep orders of other pairs from firing.
                logger.exception("%s for %s cannot be looked at", pair[0].symbol, pair[1].symbol)
        return fired

    def _reached(self, groups: Sequence[RestingGroup]) -> list[tuple[RestingGroup, float]]:
        """Return those groups of a pair and side, smallest first, that have orders within reach, with it."""
        first, last = groups[0], groups[-1]
        # Mostly one bound, for all sizes together, tells that there are none.
        highest = self._level(first, first.least_amount, REACH << (last.size - first.size))
        levels = [
            (group, highest if group.lowest_level > highest else self._level(group, group.least_amount))
            for group in groups
        ]
        return [(group, level) for group, level in levels if group.lowest_level <= level]

    def _level(self, group: RestingGroup, amount: int, reach: int = REACH) -> float:
        return self._bound(group, amount, reach) * (1 + _ROUNDING)

    async def _fire_group(
        self, group: RestingGroup, level: float, due: float, left_off: Order | None
    ) -> list[UUID]:
        """Fire what fires of a group; when it is due, what is left is for the next tick.

        Of those first that ask for least, which are looked at in every tick, then of those after the one at
        which the last tick left off.
        """
        loop, fired, last = asyncio.get_running_loop(), list[UUID](), None
        ahead = _Ahead(self._market, self._slippage_bps)
        levels = [level]
        while True:
            page = await self._store.resting_orders(self._kind, group, levels, _PAGE, last)
            if met := ahead.leaves_enough_for([order for order in page if self._has_rested(order)]):
                fired += await self._fire(met)
            if len(page) < _PAGE:
                return fired
            if left_off is not None:
                last, left_off = left_off, None
                continue
            last = page[-1]
            if loop.time() >= due:
                self._left_off[_which(group)] = last
                return fired
            if len(levels) == 1:
                # Of many, most may be too large for what the least of their size would get.
                part = group.least_amount / _PARTS
                levels = [
                    self._level(group, int(group.least_amount + number * part)) for number in range(_PARTS)
                ]

    def _has_rested(self, order: Order) -> bool:
        """Return whether an order whose last transaction reverted has waited before it tries again.

        Each costs fees, and what overtook one may overtake the next.
        """
        if order.failure_reason is None or order.update_time is None:
            return True
        delay_seconds = self._policy.delay_seconds(order.forgiven_attempts, 1.0)
        # One that reverted in what is the future was put down while the database's clock was ahead.
        return not timedelta() <= self._store.now() - order.update_time < timedelta(seconds=delay_seconds)

    async def _fire(self, orders: Sequence[Order]) -> list[UUID]:
        # Held here at once, as far as there is room: a worker that sees another moment of the market would
        # find the price gone. One that dies now leaves them to the others with all that it holds.
        room = min(max(0, self._executor.room), len(orders))
        owners = [self._lease_owner() or None] * room + [None] * (len(orders) - room)
        fired = await self._store.fire(self._kind, orders, owners)
        if not fired:
            return fired
        self._fired_total.inc(len(fired))
        logger.info("the %s monitor fires %d orders", self._kind, len(fired))
        mine = {order.order_id for order in orders[:room]}
        await self._executor.take([order_id for order_id in fired if order_id in mine])
        self._broker.offer_soon([order_id for order_id in fired if order_id not in mine])
        return fired


_Which = tuple[Token, Token, Side, int]


def _which(group: RestingGroup) -> _Which:
    """Return what stays the same of a group."""
    return group.input_token, group.output_token, group.side, group.size


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
        self._together = 1
        """How many are tried at once: twice as many whenever all of them are met."""

    def leaves_enough_for(self, orders: Sequence[Order]) -> list[Order]:
        """Return the orders, lowest level first, whose triggers hold; they are ahead from then on.

        Raises NodeUnavailable.
        """
        wanted = [order for order in orders if self._is_within_bound(order.spec)]
        met: list[Order] = []
        at = 0
        while at < len(wanted):
            some = wanted[at : at + self._together]
            if self._is_taken(some):
                met += some
                at += len(some)
                self._together *= 2
            elif len(some) > 1:
                self._together = 1
            else:
                at += 1
        return met

    def _is_taken(self, orders: Sequence[Order]) -> bool:
        try:
            return self._take([order.spec for order in orders])
        except EngineError:
            raise
        except Exception:
            # One that cannot be reckoned with waits; it does not keep the others from firing.
            if len(orders) == 1:
                logger.exception("an order cannot be looked at", extra={"order_id": orders[0].order_id})
            return False

    def _is_within_bound(self, spec: OrderSpec) -> bool:
        if self._market.liquidity_for(spec) < spec.type.least_liquidity:
            return False
        trigger = spec.type.trigger(spec)
        if trigger is None or trigger.kind is not TriggerKind.PRICE:
            return True
        # Most that are within the group's bound and do not fire are not within their own; a decision takes
        # ten times as long.
        bound = self._market.price_bound(spec.input_token, spec.output_token, spec.side, spec.amount)
        return trigger.level <= bound * (1 + _ROUNDING)

    def _take(self, specs: Sequence[OrderSpec]) -> bool:
        """Put all of these ahead if there is enough for all of them, else none.

        The last one is served worst and asks for most: with a share like its own, all others are met too.
        """
        last = specs[-1]
        amount = self._amount + sum([spec.amount for spec in specs])
        whole = self._route(replace(last, amount=amount))
        if whole is None:
            return False
        paid, got = self._input_amount, self._output_amount
        if len(specs) > 1:
            before = self._route(replace(last, amount=amount - last.amount))
            if before is None:
                return False
            paid, got = before.input_amount, before.output_amount
        share = replace(
            whole, input_amount=whole.input_amount - paid, output_amount=whole.output_amount - got
        )
        for spec in specs:
            liquidity = self._market.liquidity_for(spec)
            if spec.type.unmet(spec, _in_proportion(share, spec, last.amount), liquidity) is not None:
                return False
        self._amount = amount
        self._input_amount, self._output_amount = whole.input_amount, whole.output_amount
        return True

    def _route(self, spec: OrderSpec) -> Route | None:
        slippage_bps = spec.slippage_bps_or(self._slippage_bps)
        return self._market.decide(spec, 0, slippage_bps).route


def _in_proportion(share: Route, spec: OrderSpec, amount: int) -> Route:
    """Return what the order would pay and get at the price of a share for `amount`, rounded against it."""
    if spec.sells:
        return replace(
            share, input_amount=spec.amount, output_amount=share.output_amount * spec.amount // amount
        )
    return replace(
        share, input_amount=-(-share.input_amount * spec.amount // amount), output_amount=spec.amount
    )
