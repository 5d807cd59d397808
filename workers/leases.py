"""Which orders are this process's own: its lease, and the sweep for orders that are nobody's.

A process holds all its leases through one row, which it renews, and one advisory lock, which
PostgreSQL drops with the connection of a process that dies. Whoever can take that lock has proved
the process dead and frees what it held, without waiting for the row to expire.

The sweep is what makes Redis expendable: every due order is found here, hint or no hint.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from engine.domain.errors import EngineError, NodeUnavailable, OutcomeUnknown, StoreUnavailable
from engine.settings import Settings
from engine.storage.postgres import Store
from engine.telemetry import Trouble, sweeper_offered_total, sweeper_reclaimed_total
from workers.executor import Executor
from workers.reconciliation import Reconciliation

_HINT_SECONDS: Final = 0.5
"""How long a new order is left to its hint before the sweep takes it."""
_LOOK_SECONDS: Final = 0.4
"""How often it is looked whether the connection stands that the lease hangs on."""
_RECOVERY_SECONDS: Final = 0.5
"""How long to wait for a database that is away before asking again."""
_NODE_AWAY_SECONDS: Final = 2.0
"""The same for a node, which is asked much."""
_MARGIN_SECONDS: Final = 60.0
"""By how much longer an order may be put off elsewhere than what this process puts off longest."""

logger = logging.getLogger(__name__)


class Lease:
    """This process's row in lease_owners."""

    def __init__(self, settings: Settings, store: Store, reconciliation: Reconciliation) -> None:
        self._seconds = settings.lease_seconds
        self._store = store
        self._reconciliation = reconciliation
        self._owner = 0
        self._lost = 0
        """The number that was lost, until what was held under it is put down."""
        self._missing = "no lease is held yet"

    @property
    def owner(self) -> int:
        """The number orders are claimed under; 0 while there is none."""
        # Where a connection broke, the next one may be to another database.
        return self._owner if self._store.is_same_database else 0

    @property
    def missing(self) -> str | None:
        """Why there is none; None while there is."""
        return None if self.owner else self._reconciliation.under_way or self._missing

    async def start(self) -> None:
        """Get a number, and with it the right to claim. Raises EngineError."""
        owner = await self._store.start_lease_owner(self._seconds)
        try:
            # Under it, so that it cannot be another database by the time that this is known.
            await self._reconciliation.done()
            is_held = await self._store.renew_lease(owner, self._seconds)
            if not (is_held and self._store.is_same_database):
                raise StoreUnavailable("the lease was lost before it was held")
        except BaseException:
            with suppress(EngineError):
                await self._store.end_lease_owner(owner)
            raise
        self._owner = owner

    async def keep(self, on_lost: Callable[[], None]) -> None:
        """Renew for ever. When the lease is lost, `on_lost` lets go of all orders before it is begun anew."""
        while True:
            await self._begin()
            await self._until_lost()
            on_lost()

    async def end(self) -> None:
        """Free whatever is still held."""
        if owner := self._owner or self._lost:
            try:
                await self._store.end_lease_owner(owner)
            except (StoreUnavailable, OutcomeUnknown) as error:
                logger.warning("the lease was not given back, it will expire: %s", error)

    async def _begin(self) -> None:
        while not self._owner:
            try:
                if self._lost:
                    # This process lives: none of what it held has ended it.
                    await self._store.end_lease_owner(self._lost)
                    self._lost = 0
                await self.start()
            except EngineError as error:
                if str(error) != self._missing:
                    logger.warning("no lease yet: %s", error)
                self._missing = str(error)
                is_node = isinstance(error, NodeUnavailable)
                await asyncio.sleep(_NODE_AWAY_SECONDS if is_node else _RECOVERY_SECONDS)
        logger.info("the lease is held", extra={"lease_owner": self._owner})

    async def _until_lost(self) -> None:
        loop, renew_time = asyncio.get_running_loop(), 0.0
        with suppress(StoreUnavailable, OutcomeUnknown):
            while self.owner:
                if loop.time() >= renew_time:
                    renew_time = loop.time() + self._seconds / 3.5
                    if not await self._store.renew_lease(self._owner, self._seconds):
                        break
                await asyncio.sleep(min(_LOOK_SECONDS, self._seconds / 3.5))
        logger.warning("the lease is lost", extra={"lease_owner": self._owner})
        self._lost, self._owner = self._owner, 0


class Sweeper:
    """Looks for due orders that nobody holds, and for those that only the record says are held here."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        executor: Executor,
        lease: Lease,
        *,
        can_work: Callable[[], bool],
        hints_work: Callable[[], bool],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`can_work` tells whether orders can be executed at all: without a node they only expire.

        `hints_work` tells whether the queue is up: while it is not, new orders are taken at once.
        """
        self._seconds = settings.sweep_seconds
        self._most_seconds = settings.retry_cap_seconds + _MARGIN_SECONDS
        """How long anything is put off, at the most."""
        self._store = store
        self._executor = executor
        self._lease = lease
        self._can_work = can_work
        self._hints_work = hints_work
        self._jitter = jitter
        self._hastens = False
        """There were orders to hasten, and may be more."""
        self._trouble = Trouble(logger, "the sweep is put off", "the sweep goes on")

    async def run(self) -> None:
        """Sweep for ever."""
        sweeps = 0
        while True:
            await asyncio.sleep(self._seconds * (0.75 + 0.5 * self._jitter()))
            sweeps += 1
            if not self._lease.owner:
                continue
            try:
                await self._sweep(own=sweeps % 8 == 0, late=sweeps % 64 == 0 or self._hastens)
                self._trouble.works()
            except (StoreUnavailable, OutcomeUnknown) as error:
                self._trouble.fails(error)
                await asyncio.sleep(_RECOVERY_SECONDS)

    async def _sweep(self, *, own: bool, late: bool) -> None:
        owner = self._lease.owner
        if late:
            hastened = await self._store.hasten_orders(self._most_seconds)
            # It takes so many at a time; the next sweep goes on.
            self._hastens = hastened > 0
            if hastened:
                logger.warning("the database's clock was ahead: %d orders were due too late", hastened)
        if freed := await self._store.free_dead_owners(owner):
            sweeper_reclaimed_total.inc(freed)
            logger.warning("freed the leases of %d dead workers", freed)
        can_work = self._can_work()
        if own and can_work:
            # What we hold on record and do not know of: the answer to a claim or to a write was lost.
            leased = await self._store.leased_orders(owner)
            await self._executor.take(order_id for order_id in leased if not self._executor.holds(order_id))
        if (room := self._executor.room) > 0:
            hint_seconds = _HINT_SECONDS if self._hints_work() else 0.0
            # To expire takes no node.
            due = await self._store.due_orders(room, hint_seconds, expired_only=not can_work)
            if due:
                sweeper_offered_total.inc(await self._executor.take(due))
