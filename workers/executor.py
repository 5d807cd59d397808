"""Carries orders from claim to end: asks `next_step`, does it, writes down what became known, repeats.

An order that was begun by a worker that died takes the same path from wherever it stands. Every
write is conditional on the order's sequence, so a worker that was overtaken finds out and lets go. In
doubt an order is let go here: the record has it, and the sweeper brings it back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from engine.domain.amounts import format_amount
from engine.domain.errors import NodeUnavailable, NoRoute, OutcomeUnknown, StoreUnavailable, TooManyTokens
from engine.domain.lifecycle import (
    CLOSED,
    Claimed,
    Fact,
    NotBuilt,
    NotRouted,
    Routed,
    Signed,
    Step,
    TimedOut,
    Transition,
    Unmet,
    apply,
    next_step,
)
from engine.domain.order import FailureReason, Order, OrderEvent, OrderStatus, RoutingDecision, Side
from engine.domain.retry import RetryPolicy
from engine.domain.tokens import SOL
from engine.hints import Hints
from engine.market import Market
from engine.settings import Settings
from engine.solana.transactions import RENT_OF_WALLET, Wallet, build_swap, swap_fee
from engine.storage.postgres import SUSPECT_INTERRUPTIONS, Claim, Store
from engine.telemetry import Tally, leases_held, retries_total, stage_seconds, transitions_total
from workers.neighbours import Neighbours
from workers.settlement import Settlement

_NODE_AWAY_SECONDS: Final = 1.0
"""How long an order rests while the node cannot be reached. It uses up no attempt."""
_DEFECT_SECONDS: Final = 10.0
"""How long an order rests after an error that nobody expected."""
_OPEN_HINT_SECONDS: Final = 0.008
"""How long the hint of an order that goes on may wait for others to travel with: at 100 orders/s it mostly
finds one of an order that closed. A message less is a wake-up less here, in Redis and in each server."""

_AT_ONCE: Final = 32
"""Orders that are started in one turn of the loop where there are other workers. Each takes a third of a
millisecond, and it is between turns that workers tell each other which swaps they have begun."""

_LOOK_SECONDS: Final = 0.005
"""Between two looks whether an order is alone that is executed apart from all others."""

_ANY_TIME: Final = datetime.min.replace(tzinfo=UTC)

_TRANSITIONS: Final = {status: transitions_total.labels(status.value) for status in OrderStatus}
_ROUTE_SECONDS, _BUILD_SECONDS, _RECORD_SECONDS, _TOTAL_SECONDS = (
    stage_seconds.labels(stage) for stage in ("route", "build", "record", "total")
)

logger = logging.getLogger(__name__)


class Executor:
    """Executes up to `max_in_flight` orders at a time, each as a task of its own. Use as `async with`.

    Leaving the block lets go of whatever is still being executed; the record has it all.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        market: Market,
        wallet: Wallet,
        settlement: Settlement,
        hints: Hints,
        neighbours: Neighbours,
        *,
        lease_owner: Callable[[], int],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`lease_owner` tells the number this process holds leases under now."""
        self._settings = settings
        self._policy = RetryPolicy(
            settings.max_attempts, settings.retry_base_seconds, settings.retry_cap_seconds
        )
        self._store = store
        self._market = market
        self._wallet = wallet
        self._settlement = settlement
        self._hints = hints
        self._neighbours = neighbours
        self._lease_owner = lease_owner
        self._jitter = jitter
        self._group = asyncio.TaskGroup()
        self._held: dict[UUID, asyncio.Task[None] | None] = {}
        """Orders this process is executing; None while their claim is under way."""
        self._settling: set[UUID] = set()
        """Those of them whose transaction is out: nothing that happens here can end them otherwise."""
        self._suspects: deque[UUID] = deque()
        """Orders to be executed apart from all others, held by nobody until then."""
        self._isolating: asyncio.Task[None] | None = None
        """Executes them; nothing else is taken up meanwhile."""
        self._untold: dict[UUID, OrderEvent] = {}
        """Events by which claims made orders ROUTING. Each is told with the next one: its order is SUBMITTED
        a statement later, and one hint and one message do for both."""
        self._resting = Tally(logger, logging.INFO, "resting")
        self._letting_go = Tally(logger, logging.WARNING, "letting go")
        leases_held.set_function(lambda: len(self._held))

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_all_go()
        await self._group.__aexit__(kind, error, trace)

    # ---- Which orders ----------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more orders can be taken up."""
        return 0 if self._isolating else self._settings.max_in_flight - len(self._held)

    def holds(self, order_id: UUID) -> bool:
        return order_id in self._held

    async def take(self, order_ids: Iterable[UUID]) -> int:
        """Claim those of the orders that are due and nobody's, and start executing them.

        Returns how many it got, once all claims are answered. Raises StoreUnavailable or OutcomeUnknown
        when claims were not answered: those orders are not executed here, whatever the record says.
        """
        if not (owner := self._lease_owner()):
            raise StoreUnavailable("no lease is held to claim orders under")
        if self._isolating:
            # For another worker or a later sweep; some may have been given to this one already.
            others = [order_id for order_id in order_ids if order_id not in self._held]
            await self._store.postpone.many([(order_id, owner, 0.0) for order_id in others])
            return 0
        wanted = [order_id for order_id in dict.fromkeys(order_ids) if order_id not in self._held]
        self._held.update(dict.fromkeys(wanted))
        taken, failure = 0, None
        suspects: list[UUID] = []
        claiming = self._store.claim.many([(order_id, owner) for order_id in wanted])
        try:
            claims = await asyncio.shield(claiming)
            at_once = _AT_ONCE if self._neighbours.are_there else max(1, len(wanted))
            for at in range(0, len(wanted), at_once):
                if at:
                    await asyncio.sleep(0)
                if self._lease_owner() != owner:
                    # It was lost meanwhile, and what was claimed under it with it.
                    claims[at:] = [StoreUnavailable("the lease was lost")] * (len(wanted) - at)
                for order_id, claim in zip(wanted[at:][:at_once], claims[at:][:at_once], strict=True):
                    if isinstance(claim, Claim):
                        if not claim.is_suspect:
                            taken += 1
                            self._start(claim)
                            continue
                        suspects.append(order_id)
                    del self._held[order_id]
                    if isinstance(claim, Exception):
                        failure = claim
        except asyncio.CancelledError:
            left = [
                order_id for order_id in wanted if order_id in self._held and self._held[order_id] is None
            ]
            for order_id in left:
                del self._held[order_id]
            # The claim goes on: what it gets, nobody here would ever execute.
            self._group.create_task(self._give_back(left, owner, claiming))
            raise
        if suspects:
            self._set_aside(suspects)
        if failure is not None:
            raise failure
        return taken

    async def _give_back(self, order_ids: Sequence[UUID], owner: int, claiming: Awaitable[object]) -> None:
        await claiming
        given = [(order_id, owner, 0.0) for order_id in order_ids if order_id not in self._held]
        await self._store.postpone.many(given)

    def _start(self, claim: Claim) -> None:
        order_id = claim.order.order_id
        task = self._held[order_id] = self._group.create_task(self._execute(claim))
        # Not at the end of the task: one that is cancelled before its first step has none.
        task.add_done_callback(partial(self._let_go, order_id))

    # ---- Orders that workers do not survive --------------------------------------------------------

    def _set_aside(self, order_ids: Sequence[UUID]) -> None:
        """Have suspects executed one at a time, each while nothing else could end with it.

        Nobody holds those that wait: they are not to be blamed for the end of one that does not.
        """
        self._suspects += order_ids
        if self._isolating is None:
            self._isolating = self._group.create_task(self._isolate())
            self._isolating.add_done_callback(self._end_isolation)

    def _end_isolation(self, _task: asyncio.Task[None]) -> None:
        self._isolating = None
        self._suspects.clear()

    async def _isolate(self) -> None:
        try:
            while self._suspects:
                await self._calm()
                order_id, owner = self._suspects.popleft(), self._lease_owner()
                claim = await self._store.claim_apart(order_id, owner) if owner else None
                if claim is not None and order_id not in self._held and self._lease_owner() == owner:
                    logger.warning(
                        "executed apart: its last %d workers ended",
                        claim.interruptions,
                        extra={"order_id": order_id},
                    )
                    self._start(claim)
            await self._calm()
        except (StoreUnavailable, OutcomeUnknown) as error:
            logger.warning("left to the sweeper: %s", error)

    async def _calm(self) -> None:
        """Return once nothing is executed but what has its transaction out."""
        while len(self._held) > len(self._settling):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    def _let_go(self, order_id: UUID, _task: asyncio.Task[None]) -> None:
        del self._held[order_id]
        self._untold.pop(order_id, None)
        if self._market.under_way.let_go(order_id):
            self._neighbours.ended(order_id)

    def let_all_go(self) -> None:
        """Stop executing, at once. Nothing is lost: what was decided is on record, or will be again."""
        if self._isolating is not None:
            self._isolating.cancel()
        for task in self._held.values():
            if task is not None:
                task.cancel()

    async def wait_idle(self) -> None:
        """Return when nothing is being executed; what was to be executed apart is left to others."""
        if self._isolating is not None:
            self._isolating.cancel()
        while tasks := [task for task in self._held.values() if task is not None]:
            await asyncio.wait(tasks)

    # ---- The story of one order --------------------------------------------------------------------

    async def _execute(self, claim: Claim) -> None:
        claimed = order = claim.order
        if claim.started:
            _TRANSITIONS[claimed.status].inc()
            self._untold[claimed.order_id] = OrderEvent(
                claimed.order_id, claimed.sequence, claimed.status, claimed.attempt, claimed.update_time
            )
        try:
            if claimed.status is OrderStatus.PENDING:
                # By the database's clock, which is the one that counts, it has expired.
                await self._advance(self._apply(order, TimedOut()))
                return
            if claim.interruptions > SUSPECT_INTERRUPTIONS and order.open_attempt is None:
                # The last of them had nothing else to do. With a transaction out it is only followed.
                why = f"executing it ended {claim.interruptions} workers"
                await self._advance(self._apply(order, NotBuilt(FailureReason.INTERNAL, why)))
                return
            while (after := await self._perform(next_step(order, self._now(order)), order)) is not None:
                order = after
        except NodeUnavailable as error:
            self._resting.note(error, claimed.order_id)
            self._hints.publish([claimed.order_id])
            await self._postpone(claimed.order_id, _NODE_AWAY_SECONDS)
        except (StoreUnavailable, OutcomeUnknown) as error:
            # The sweeper finds out where it stands, here or elsewhere.
            self._letting_go.note(error, claimed.order_id)
        except Exception:
            logger.exception("unexpected error", extra={"order_id": claimed.order_id})
            await self._contain(order)

    def _now(self, order: Order) -> datetime:
        """Return the time for `next_step`, which looks at it where the order can expire."""
        return _ANY_TIME if order.spec.expire_time is None else self._store.now()

    async def _contain(self, order: Order) -> None:
        """End an order that our own defect keeps from going on, unless its transaction is out."""
        try:
            if order.status is not OrderStatus.SUBMITTED:
                await self._advance(self._apply(order, NotBuilt(FailureReason.INTERNAL, "internal error")))
                return
        except Exception:
            logger.exception("cannot be ended either", extra={"order_id": order.order_id})
        # It is followed to its proof, again and again if need be.
        await self._postpone(order.order_id, _DEFECT_SECONDS)

    async def _perform(self, step: Step, order: Order) -> Order | None:
        """Do the step and return the order after it; None when there is nothing more to do with it here."""
        match step:
            case Step.START:
                return await self._advance(self._apply(order, Claimed()))
            case Step.ROUTE:
                return await self._route(order)
            case Step.BUILD:
                # Begun by a worker that is gone: the route it chose is on record.
                return await self._advance(self._apply(order, self._sign(order)))
            case Step.SETTLE:
                self._settling.add(order.order_id)
                try:
                    outcome = await self._settlement.settle(order, self._on_sent)
                    return await self._advance(self._apply(order, outcome))
                finally:
                    self._settling.discard(order.order_id)
            case Step.EXPIRE:
                return await self._advance(self._apply(order, TimedOut()))
            case Step.STOP:
                return None

    async def _route(self, order: Order) -> Order | None:
        start = time.perf_counter()
        spec = order.spec
        try:
            await self._market.learn((spec.input_token, spec.output_token))
        except TooManyTokens as error:
            # As where no pool trades the pair: it is tried again, though not for ever.
            decision = RoutingDecision(order.attempt, self._market.slot, (), None, str(error))
            return await self._advance(
                self._apply(order, Unmet(decision, str(error)) if spec.waits else NotRouted(decision))
            )
        await self._market.wake()
        if next_step(order, self._now(order)) is Step.EXPIRE:
            # It took the node that long to tell of a token or of prices.
            return await self._advance(self._apply(order, TimedOut()))
        slippage_bps = spec.slippage_bps_or(self._settings.slippage_bps)
        decision = self._market.decide(spec, order.attempt, slippage_bps)
        # Its quotes are on record.
        logger.info(
            "%s",
            decision.reason,
            extra={"order_id": order.order_id, "attempt": order.attempt, "slot": decision.slot},
        )
        if spec.waits:
            # What its monitor saw may be over, or not yet be seen here.
            liquidity = self._market.liquidity_for(spec)
            if (reason := spec.type.unmet(spec, decision.route, liquidity)) is not None:
                return await self._advance(self._apply(order, Unmet(decision, reason)))
        if decision.route is None:
            return await self._advance(self._apply(order, NotRouted(decision)))
        routed = self._apply(order, Routed(decision))
        _ROUTE_SECONDS.observe(time.perf_counter() - start)
        built = self._sign(routed.order)
        if isinstance(built, Signed):
            swaps = self._market.under_way.add(order.order_id, spec, decision.route)
            self._neighbours.begun(order.order_id, swaps)
        # Building takes a fraction of a millisecond: both transitions are recorded by one statement.
        after = await self._advance(routed, self._apply(routed.order, built))
        if after is None and isinstance(built, Signed) and next_step(order, self._now(order)) is Step.EXPIRE:
            # That took so long. If it was superseded instead, so is what this leads to.
            return order
        return after

    def _on_sent(self, order_id: UUID) -> None:
        slot = self._market.under_way.sent(order_id)
        if slot is not None:
            self._neighbours.landed(order_id, slot)

    def _sign(self, order: Order) -> Signed | NotBuilt:
        """Build and sign the order's transaction. Nothing is sent. Raises NodeUnavailable."""
        start = time.perf_counter()
        spec, route = order.spec, order.route
        if route is None:
            return NotBuilt(FailureReason.NO_ROUTE, "the chosen route is not on record")
        needed = spec.amount if spec.side is Side.SELL else route.threshold_amount
        held = self._market.wallet_balance(spec.input_token)
        if held < needed:
            token = spec.input_token
            return NotBuilt(
                FailureReason.INSUFFICIENT_FUNDS,
                f"needs {format_amount(needed, token)} {token.symbol}, the wallet has"
                f" {format_amount(held, token)} to spend",
            )
        try:
            compute_units = self._market.compute_units(route)
            priority_fee = self._settings.priority_fee_micro_lamports
            lamports, fee = self._market.wallet_lamports, swap_fee(compute_units, priority_fee)
            if lamports != fee and lamports < fee + RENT_OF_WALLET:
                # The network would not even take it: it would be waited for until its blockhash is too old.
                enough = format_amount(fee + RENT_OF_WALLET, SOL)
                return NotBuilt(
                    FailureReason.INSUFFICIENT_FUNDS,
                    f"needs {enough} SOL for the network's fee and its own rent, the wallet has"
                    f" {format_amount(lamports, SOL)}",
                )
            attempt = build_swap(
                self._wallet,
                self._market.swap_instructions(spec, route, self._wallet.pubkey),
                self._market.blockhash,
                order.order_id,
                order.attempt,
                compute_units=compute_units,
                priority_fee_micro_lamports=priority_fee,
            )
        except NoRoute as error:
            return NotBuilt(FailureReason.NO_ROUTE, str(error))
        _BUILD_SECONDS.observe(time.perf_counter() - start)
        return Signed(attempt)

    # ---- Writing it down ---------------------------------------------------------------------------

    def _apply(self, order: Order, fact: Fact) -> Transition:
        return apply(order, fact, self._policy, self._jitter())

    async def _advance(self, *transitions: Transition) -> Order | None:
        """Record transitions of one order together. None: it was superseded, or rests, or is closed."""
        start = time.perf_counter()
        last = transitions[-1]
        order = await self._store.advance(transitions)
        if order is None:
            # Cancelled, or another worker was quicker: what happened is on record, and not ours to do.
            logger.info("superseded", extra={"order_id": last.order.order_id})
            return None
        _RECORD_SECONDS.observe(time.perf_counter() - start)
        for transition in transitions:
            self._tell(transition)
        events = [transition.event for transition in transitions]
        if (untold := self._untold.pop(order.order_id, None)) is not None:
            events.insert(0, untold)
        self._hints.tell(order, events, within_seconds=0.0 if order.status in CLOSED else _OPEN_HINT_SECONDS)
        return None if last.lets_go else order

    def _tell(self, transition: Transition) -> None:
        before, order = transition.before, transition.order
        _TRANSITIONS[order.status].inc()
        if order.attempt > before.attempt and order.failure_reason is not None:
            retries_total.labels(order.failure_reason.value).inc()
        if order.status in CLOSED and order.create_time is not None:
            lived = (self._store.now() - order.create_time).total_seconds()
            _TOTAL_SECONDS.observe(max(0.0, lived))
        # What went well is on record and was announced by its decision; what did not is worth a line.
        level = logging.DEBUG if order.failure_reason is None else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(
                level,
                "%s -> %s",
                before.status.value,
                order.status.value,
                extra={
                    "order_id": order.order_id,
                    "sequence": order.sequence,
                    "attempt": order.attempt,
                    "tx_hash": order.tx_hash,
                    "failure_reason": order.failure_reason,
                    "failure_message": order.failure_message,
                },
            )

    async def _postpone(self, order_id: UUID, delay_seconds: float) -> None:
        try:
            await self._store.postpone((order_id, self._lease_owner(), delay_seconds))
        except (StoreUnavailable, OutcomeUnknown) as error:
            self._letting_go.note(error, order_id)
