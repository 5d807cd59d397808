"""A small world around the real lifecycle, walked through every interleaving.

The question is whether an order can ever be swapped twice, be called closed while its transaction
can still land, or lose an event, whatever fails and in whatever order things happen. Tests that
pick a few orders of events cannot answer it; walking all of them in a small world can.

The world holds one order:

    record      what PostgreSQL holds: the order, a row for each attempt, the count of events
    chain       a tip that grows block by block, the part of it that is final, the transactions that
                were sent, and the ones that were included, with or without an error
    workers     two of them, each somewhere in its loop
    monitors    of an order that waits for its price: two, each with what it saw of it last

From each world, `moves` lists everything that may happen next: a worker makes one step, a worker
crashes, a block is produced, a block becomes final, the network includes a transaction (it swaps, or
reverts), a fork undoes an inclusion that was not final, the client cancels, a monitor sees that the
order's price is there, or fires the order for what it saw. `explore` follows all of
them, breadth first, and looks at every world for a broken invariant; the first it finds comes with
the shortest story that leads to it.

What is deliberately pessimistic:

- Both workers may hold the order at any time: a lease may have lapsed, a worker may have slept.
- Between finding something out and writing it down a worker may be overtaken by anything.
- A sent transaction may be lost, or included at any later time for as long as it is valid.
- Asked for a status, the node may not know yet of an inclusion that is not final; a fork may undo it.
- Two transactions signed at the same height differ.
- Two monitors may follow the same order, each may be late, and what they see may be over when it is fired.

`final` stands for the commitment that the settings name: what is final is never undone.

One thing is taken for granted: of what is final the node knows. From one that lags behind, or whose history
begins later, workers/settlement.py concludes nothing.

What to do and what comes of it is decided by `next_step` and `apply` of the engine itself; the model
adds what surrounds them: the conditional write, the conditional fire, and the order of record, send,
height, status.
`Broken` lists ways to get those wrong. Each must break an invariant, or the model would prove nothing.

Run it:  python -m tests.unit.engine.domain.lifecycle_model [variant]
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from engine.domain.lifecycle import (
    Cancelled,
    Claimed,
    Fact,
    Landed,
    Lapsed,
    NotBuilt,
    NotRouted,
    Reverted,
    Routed,
    Signed,
    Step,
    TimedOut,
    Unmet,
    apply,
    next_step,
)
from engine.domain.order import (
    Attempt,
    FailureReason,
    Order,
    OrderSpec,
    OrderStatus,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
)
from engine.domain.order_types import LimitOrder
from engine.domain.retry import RetryPolicy
from engine.domain.tokens import SOL, USDC

# Small enough to walk through, large enough for two attempts to be signed, to expire and to overlap.
LIFETIME: Final = 1
"""A transaction signed at height h can be included by a block built on heights h to h + LIFETIME."""
MAX_HEIGHT: Final = 4
"""Where the chain ends. What cannot be seen to expire before is not signed."""
WAITING_MAX_HEIGHT: Final = 3
"""The same where the order waits. Time for one transaction after another that reverted."""
MAX_UNMET_SEQUENCE: Final = 4
"""Beyond it an order finds its price: it could return to waiting for ever. Up to here, twice."""
POLICY: Final = RetryPolicy(max_attempts=2)

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""The clock shows one second a block."""
EXPIRE_TIMES: Final = (None, EPOCH + timedelta(seconds=2))
WAITING_EXPIRE_TIMES: Final = EXPIRE_TIMES[1:]
"""Until then everything happens that happens to an order that never expires."""

_SPEC = OrderSpec(Side.SELL, 1, SOL, USDC)
_WAITING_SPEC = replace(_SPEC, type=LimitOrder(Decimal(1)))
_ROUTE = Route((RouteLeg("Raydium", "raydium_cpmm", "pool", 1, 1),), 1, 1, 1)
_ROUTED = Routed(RoutingDecision(1, 0, (), _ROUTE, "best"))
_NOT_ROUTED = NotRouted(RoutingDecision(1, 0, (), None, "no pool"))
_UNMET = Unmet(RoutingDecision(1, 0, (), None, "no pool"), "no pool can fill the order now")
_NOT_BUILT = NotBuilt(FailureReason.SLIPPAGE_EXCEEDED, "price moved")
_REFUSED = NotBuilt(FailureReason.INSUFFICIENT_FUNDS, "wallet is empty")
_LANDED = Landed(1, 1)
_REVERTED = Reverted(FailureReason.SLIPPAGE_EXCEEDED, "price moved")


class Broken(StrEnum):
    """Ways to build it wrong."""

    SENT_BEFORE_RECORDED = "sent before recorded"
    TIMEOUT_IS_EXPIRY = "timeout taken as expiry"
    STATUS_BEFORE_HEIGHT = "status read before the finalized height"
    TIP_HEIGHT = "expiry judged by the tip's height"
    HEIGHT_OFF_BY_ONE = "expiry one block early"
    CANCEL_SUBMITTED = "cancel after SUBMITTED"
    EXPIRE_SUBMITTED = "expire_time after SUBMITTED"
    UNCONDITIONAL_WRITE = "write without the sequence condition"
    SIGNED_AGAIN_ON_RESEND = "signed again on resend"
    REVERT_BEFORE_FINAL = "revert believed before it is final"
    LANDED_BEFORE_FINAL = "landing believed before it is final"
    CLAIMED_WHILE_RESTING = "claimed while it rests"
    HELD_WHILE_RESTING = "held on to while it rests"
    FIRED_AS_NOT_SEEN = "fired without the sequence condition"
    WAITS_WITHOUT_PROOF = "back to waiting while its transaction is open"
    ATTEMPT_USED_AGAIN = "same attempt number after a revert"


OF_WAITING: Final = frozenset(
    {
        Broken.CLAIMED_WHILE_RESTING,
        Broken.HELD_WHILE_RESTING,
        Broken.FIRED_AS_NOT_SEEN,
        Broken.WAITS_WITHOUT_PROOF,
        Broken.ATTEMPT_USED_AGAIN,
    }
)
"""Those that only an order that waits can suffer from."""


FINAL: Final = -1
"""In place of a height, once no fork can undo it: where it was matters no more."""


class Inclusion(NamedTuple):
    tx: int
    height: int
    """Of the including block, or FINAL."""
    swapped: bool
    """False: included with an error, so without effect."""


class Row(NamedTuple):
    """An attempt on record."""

    tx: int
    open: bool


Worker = tuple[str | int, ...]
"""Where a worker is in its loop, and the order as it last read or wrote it."""
IDLE: Final[Worker] = ()
HOLDS: Final = "holds"  # (order)
KNOWS: Final = "knows"  # (order, fact): found out, not yet written
SENT: Final = "sent"  # (order): asks for the finalized height next
LOOKS: Final = "looks"  # (order, expired): read the height, asks for the status next
SAW_NOTHING: Final = "saw nothing"  # (order): only where the status is read first

UNWATCHED: Final = -1
"""In place of the order that a monitor saw."""
NOBODY: Final = (UNWATCHED, UNWATCHED)


class World(NamedTuple):
    """Orders, facts and transactions stand as numbers, so that worlds are quick to compare."""

    order: int
    rows: tuple[Row, ...]
    event_count: int
    height: int
    final_height: int
    sent: frozenset[int]
    included: frozenset[Inclusion]
    workers: tuple[Worker, ...]
    resting: bool = False
    """The record's: it is not due before it expires."""
    seen: bool = False
    """Nobody's, for an invariant to look at: some monitor saw the price of the order as it stands."""
    monitors: tuple[int, int] = NOBODY
    """The order as each saw it when its price was there, and has not yet fired it."""


Value = TypeVar("Value")
Move = tuple[str, World]


class Numbered(Generic[Value]):
    """Equal values get equal numbers."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self._numbers: dict[Value, int] = {}

    def number(self, value: Value) -> int:
        number = self._numbers.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


class Model:
    """The moves of the world, as designed or broken in one way.

    `waits`: of an order that waits for its price.
    """

    def __init__(self, broken: Broken | None = None, *, waits: bool = False) -> None:
        self.broken = broken
        self.waits = waits
        self.max_height = WAITING_MAX_HEIGHT if waits else MAX_HEIGHT
        self.orders: Numbered[Order] = Numbered()
        self.facts: Numbered[Fact] = Numbered()
        self.txs: Numbered[Attempt] = Numbered()
        self._applied: dict[tuple[int, int], tuple[int, int | None, bool]] = {}

    def starts(self) -> Iterator[World]:
        for expire_time in WAITING_EXPIRE_TIMES if self.waits else EXPIRE_TIMES:
            spec = replace(_WAITING_SPEC if self.waits else _SPEC, expire_time=expire_time)
            order = self.orders.number(Order(UUID(int=1), spec))
            yield World(order, (), 1, 0, 0, frozenset(), frozenset(), (IDLE, IDLE), resting=self.waits)

    def moves(self, world: World) -> Iterator[Move]:
        """Yield everything that may happen next."""
        for name, after in self._all_moves(world):
            yield name, self._still_watched(after) if self.waits else after

    def _all_moves(self, world: World) -> Iterator[Move]:
        yield from self._chain_moves(world)
        yield from self._client_moves(world)
        yield from self._monitor_moves(world)
        for index in (0, 1):
            worker, other = world.workers[index], world.workers[1 - index]
            if index == 1 and worker == other:
                continue  # The same moves again.
            for name, after, next_worker in self._worker_moves(world, worker):
                yield name, after._replace(workers=self._still_working(after, next_worker, other))

    # ---- The chain and the client ------------------------------------------------------------------

    def _chain_moves(self, world: World) -> Iterator[Move]:
        if world.height < self.max_height:
            yield "a block is produced", world._replace(height=world.height + 1)
        if world.final_height < world.height:
            yield "a block becomes final", _finalized(world)
        included = {inclusion.tx for inclusion in world.included}
        for tx in world.sent - included:
            if world.height <= self.txs.values[tx].last_valid_block_height:
                for swapped in (True, False):
                    inclusion = Inclusion(tx, world.height + 1, swapped)
                    name = f"tx {tx} {'swaps' if swapped else 'reverts'}"
                    yield name, world._replace(included=world.included | {inclusion})
        for inclusion in world.included:
            if inclusion.height != FINAL:
                yield (
                    f"a fork undoes tx {inclusion.tx}",
                    world._replace(included=world.included - {inclusion}),
                )

    def _client_moves(self, world: World) -> Iterator[Move]:
        order = self.orders.values[world.order]
        cancellable = {OrderStatus.PENDING, OrderStatus.ROUTING, OrderStatus.BUILDING}
        if order.status in cancellable:
            after = self._write(world, world.order, self.facts.number(Cancelled()))
            assert after is not None
            yield "the client cancels", after
        elif self.broken is Broken.CANCEL_SUBMITTED and order.status is OrderStatus.SUBMITTED:
            yield "the client cancels", self._close_regardless(world, OrderStatus.CANCELLED)

    # ---- The monitors ------------------------------------------------------------------------------

    def _monitor_moves(self, world: World) -> Iterator[Move]:
        """See that the price is there; in a later move, fire."""
        for index in (0, 1):
            saw, other = world.monitors[index], world.monitors[1 - index]
            if index == 1 and saw == other:
                continue  # The same moves again.
            if saw != UNWATCHED:
                after = world._replace(monitors=(UNWATCHED, other))
                fires = self._fires(world, saw)
                yield "fired", after._replace(resting=False) if fires else after
            elif world.resting:
                yield "the price is seen", world._replace(monitors=(world.order, other), seen=True)

    def _fires(self, world: World, saw: int) -> bool:
        as_seen = self.orders.values[saw].sequence == self.orders.values[world.order].sequence
        return (
            world.resting
            and (as_seen or self.broken is Broken.FIRED_AS_NOT_SEEN)
            and not _expired(self.orders.values[world.order], world)
        )

    def _still_watched(self, world: World) -> World:
        """Forget what monitors saw that is over: to fire that does nothing."""
        if world.monitors == NOBODY:
            return world
        if self.broken is Broken.FIRED_AS_NOT_SEEN:
            watched = list(world.monitors)
        else:
            watched = [saw if world.resting and saw == world.order else UNWATCHED for saw in world.monitors]
        # The monitors are alike, so which of them is first does not matter.
        return world._replace(monitors=(min(watched), max(watched)))

    # ---- A worker's loop ---------------------------------------------------------------------------

    def _worker_moves(self, world: World, worker: Worker) -> Iterator[tuple[str, World, Worker]]:
        if worker == IDLE:
            yield from self._claim(world)
            return
        yield "a worker crashes", world, IDLE
        place, held = worker[0], int(worker[1])
        if place == HOLDS:
            yield from self._do_next_step(world, held)
        elif place == KNOWS:
            yield from self._write_and_go_on(world, held, int(worker[2]))
        elif place == SENT:
            yield from self._look_up_first(world, held)
        elif place == LOOKS:
            for name, fact in self._statuses(world, held, expired=bool(worker[2])):
                yield name, world, self._holding(held) if fact is None else (KNOWS, held, self._fact(fact))
        elif place == SAW_NOTHING:
            expired = world.final_height > self._open_attempt(held).last_valid_block_height
            yield "height read", world, (KNOWS, held, self._fact(Lapsed())) if expired else (HOLDS, held)

    def _claim(self, world: World) -> Iterator[tuple[str, World, Worker]]:
        step = self._next_step(world, world.order)
        if step is Step.STOP:
            return
        due = not world.resting or _expired(self.orders.values[world.order], world)
        if not due and self.broken is not Broken.CLAIMED_WHILE_RESTING:
            return
        if step is Step.START:
            # One statement: it takes the order and moves it to ROUTING.
            yield from self._write_and_go_on(world, world.order, self._fact(Claimed()))
        else:
            yield "a worker claims", world._replace(resting=False), (HOLDS, world.order)

    def _do_next_step(self, world: World, held: int) -> Iterator[tuple[str, World, Worker]]:
        order = self.orders.values[held]
        match self._next_step(world, held):
            case Step.ROUTE:
                yield "routed", world, (KNOWS, held, self._fact(_ROUTED))
                if not self.waits:
                    yield "not routed", world, (KNOWS, held, self._fact(_NOT_ROUTED))
                elif order.sequence <= MAX_UNMET_SEQUENCE:
                    yield "unmet", world, (KNOWS, held, self._fact(_UNMET))
            case Step.BUILD:
                if world.height + LIFETIME < self.max_height:
                    tx = self._sign(world, order)
                    signed = (KNOWS, held, self._fact(Signed(self.txs.values[tx])))
                    if self.broken is Broken.SENT_BEFORE_RECORDED:
                        yield f"tx {tx} signed and sent", world._replace(sent=world.sent | {tx}), signed
                    else:
                        yield f"tx {tx} signed", world, signed
                yield "not built", world, (KNOWS, held, self._fact(_NOT_BUILT))
                if not self.waits:
                    # It ends an order that waits no differently.
                    yield "refused", world, (KNOWS, held, self._fact(_REFUSED))
            case Step.SETTLE:
                if self.broken is Broken.EXPIRE_SUBMITTED and _expired(order, world):
                    if world.order == held:
                        yield "expired", self._close_regardless(world, OrderStatus.EXPIRED), IDLE
                    return
                if self.broken is Broken.WAITS_WITHOUT_PROOF and world.order == held:
                    yield "the price is gone", self._close_regardless(world, OrderStatus.PENDING), IDLE
                tx = self.txs.number(self._open_attempt(held))
                if self.broken is Broken.SIGNED_AGAIN_ON_RESEND and tx in world.sent:
                    tx = self._sign(world, order)
                yield f"tx {tx} sent", world._replace(sent=world.sent | {tx}), (SENT, held)
                yield f"tx {tx} sent and lost", world, (SENT, held)
            case Step.EXPIRE:
                yield "expired", world, (KNOWS, held, self._fact(TimedOut()))
            case step:
                raise AssertionError(f"a worker holds an order to {step}")

    def _look_up_first(self, world: World, held: int) -> Iterator[tuple[str, World, Worker]]:
        """Read the finalized height; only then, in a later move, the status."""
        last_valid = self._open_attempt(held).last_valid_block_height
        if self.broken is Broken.STATUS_BEFORE_HEIGHT:
            for name, fact in self._statuses(world, held, expired=False):
                yield (
                    name,
                    world,
                    (SAW_NOTHING, held) if fact is None else (KNOWS, held, self._fact(fact)),
                )
            return
        if self.broken is Broken.TIMEOUT_IS_EXPIRY:
            yield "no answer", world, (KNOWS, held, self._fact(Lapsed()))
        height = world.height if self.broken is Broken.TIP_HEIGHT else world.final_height
        expired = height > last_valid or (self.broken is Broken.HEIGHT_OFF_BY_ONE and height == last_valid)
        yield "height read", world, (LOOKS, held, int(expired))

    def _statuses(self, world: World, held: int, *, expired: bool) -> Iterator[tuple[str, Fact | None]]:
        """Yield what the node may answer about the open transaction, and what it proves (None: nothing)."""
        tx = self.txs.number(self._open_attempt(held))
        found = next((inclusion for inclusion in world.included if inclusion.tx == tx), None)
        final = found is not None and found.height == FINAL
        if found is not None:
            believed = final or self.broken is (
                Broken.LANDED_BEFORE_FINAL if found.swapped else Broken.REVERT_BEFORE_FINAL
            )
            yield "status found", (_LANDED if found.swapped else _REVERTED) if believed else None
        if not final:
            # Not on chain, or the node does not know of it yet.
            yield "no status", Lapsed() if expired else None

    # ---- The record --------------------------------------------------------------------------------

    def _write_and_go_on(self, world: World, held: int, fact: int) -> Iterator[tuple[str, World, Worker]]:
        name = f"{type(self.facts.values[fact]).__name__} written"
        after = self._write(world, held, fact)
        if after is None:
            yield f"{name}: refused", world, IDLE
        else:
            yield name, after, self._holding(after.order)

    def _write(self, world: World, held: int, fact: int) -> World | None:
        """Return the world after the write, or None if the record has moved on from `held`."""
        overwrites = self.broken is Broken.UNCONDITIONAL_WRITE and not self._closed(world.order)
        if self.orders.values[world.order].sequence != self.orders.values[held].sequence and not overwrites:
            return None
        order, opened, closed = self._apply(held, fact)
        rows = tuple(Row(row.tx, False) for row in world.rows) if closed else world.rows
        if opened is not None:
            rows = (*rows, Row(opened, True))
        return world._replace(
            order=order,
            rows=rows,
            event_count=world.event_count + 1,
            resting=self.orders.values[order].status is OrderStatus.PENDING,
            seen=False,
        )

    def _still_working(self, world: World, *workers: Worker) -> tuple[Worker, ...]:
        """Return the workers, without those that were overtaken and have nothing to send.

        Such a worker ends with a refused write, whatever it does before: nothing else can come of it.
        """
        if self.broken is not Broken.UNCONDITIONAL_WRITE:
            workers = tuple(
                IDLE if worker and self._harmless(world, worker) else worker for worker in workers
            )
        # The workers are alike, so which of them is first does not matter.
        return tuple(sorted(workers))

    def _harmless(self, world: World, worker: Worker) -> bool:
        place, held = worker[0], int(worker[1])
        overtaken = held != world.order
        return overtaken and (place == KNOWS or self.orders.values[held].open_attempt is None)

    def _apply(self, held: int, fact: int) -> tuple[int, int | None, bool]:
        key = (held, fact)
        if key not in self._applied:
            transition = apply(self.orders.values[held], self.facts.values[fact], POLICY)
            order = transition.order
            if self.broken is Broken.ATTEMPT_USED_AGAIN and order.status is OrderStatus.PENDING:
                order = replace(order, attempt=transition.before.attempt)
            opened = None if transition.opened is None else self.txs.number(transition.opened)
            self._applied[key] = self.orders.number(order), opened, transition.closed is not None
        return self._applied[key]

    def _close_regardless(self, world: World, status: OrderStatus) -> World:
        """Be done with an order's transaction while it is open: what `apply` refuses to do."""
        order = self.orders.values[world.order]
        waits = status is OrderStatus.PENDING
        after = replace(
            order,
            status=status,
            sequence=order.sequence + 1,
            attempt=order.attempt + waits,
            open_attempt=None,
        )
        return world._replace(
            order=self.orders.number(after),
            rows=tuple(Row(row.tx, False) for row in world.rows),
            event_count=world.event_count + 1,
            resting=waits,
            seen=False,
        )

    def _sign(self, world: World, order: Order) -> int:
        """Return a transaction that nobody else has."""
        taken = world.sent | {row.tx for row in world.rows}
        for worker in world.workers:
            if worker and worker[0] == KNOWS:
                fact = self.facts.values[int(worker[2])]
                if isinstance(fact, Signed):
                    taken |= {self.txs.number(fact.attempt)}
        last_valid = world.height + LIFETIME
        copy = 0
        while True:
            tx = self.txs.number(
                Attempt(order.attempt, f"{order.attempt}/{last_valid}/{copy}", b"", last_valid)
            )
            if tx not in taken:
                return tx
            copy += 1

    def _next_step(self, world: World, held: int) -> Step:
        return next_step(self.orders.values[held], EPOCH + timedelta(seconds=world.height))

    def _holding(self, order: int) -> Worker:
        rests = self.orders.values[order].status is OrderStatus.PENDING
        lets_go = rests and self.broken is not Broken.HELD_WHILE_RESTING
        return IDLE if lets_go or self._closed(order) else (HOLDS, order)

    def _closed(self, order: int) -> bool:
        return self.orders.values[order].status in _CLOSED

    def _open_attempt(self, order: int) -> Attempt:
        attempt = self.orders.values[order].open_attempt
        assert attempt is not None, "SUBMITTED without an open transaction"
        return attempt

    def _fact(self, fact: Fact) -> int:
        return self.facts.number(fact)


def _finalized(world: World) -> World:
    height = world.final_height + 1
    included = {
        inclusion._replace(height=FINAL) if inclusion.height <= height else inclusion
        for inclusion in world.included
    }
    return world._replace(final_height=height, included=frozenset(included))


def _expired(order: Order, world: World) -> bool:
    expire_time = order.spec.expire_time
    return expire_time is not None and EPOCH + timedelta(seconds=world.height) >= expire_time


# ---- Invariants: written without the lifecycle's own tables --------------------------------------------

_CLOSED: Final = {
    OrderStatus.CONFIRMED,
    OrderStatus.FAILED,
    OrderStatus.CANCELLED,
    OrderStatus.EXPIRED,
}
_BEFORE_BROADCAST: Final = {OrderStatus.FAILED, OrderStatus.CANCELLED, OrderStatus.EXPIRED}
_LEGAL: Final[Mapping[OrderStatus, set[OrderStatus]]] = {
    OrderStatus.PENDING: {OrderStatus.ROUTING} | _BEFORE_BROADCAST,
    OrderStatus.ROUTING: {OrderStatus.ROUTING, OrderStatus.BUILDING} | _BEFORE_BROADCAST,
    OrderStatus.BUILDING: {OrderStatus.ROUTING, OrderStatus.SUBMITTED} | _BEFORE_BROADCAST,
    OrderStatus.SUBMITTED: {OrderStatus.ROUTING, OrderStatus.CONFIRMED, OrderStatus.FAILED},
}
_WAITS_AGAIN: Final = {OrderStatus.ROUTING, OrderStatus.SUBMITTED}
"""From where an order that waits may return to PENDING."""

Holds = Callable[[Model, World, World], bool]
"""Given a world and the one before it."""


def _swaps(world: World) -> list[Inclusion]:
    return [inclusion for inclusion in world.included if inclusion.swapped]


def _can_land(model: Model, world: World) -> set[int]:
    """Return the sent transactions that the network may yet include."""
    done = {inclusion.tx for inclusion in world.included if inclusion.height == FINAL}
    done |= {inclusion.tx for inclusion in world.included if inclusion.swapped}
    return {tx for tx in world.sent - done if world.height <= model.txs.values[tx].last_valid_block_height}


def _never_two_swaps(model: Model, world: World, before: World) -> bool:
    return len(_swaps(world)) <= 1


def _confirmed_iff_landed(model: Model, world: World, before: World) -> bool:
    order, swaps = model.orders.values[world.order], _swaps(world)
    if order.status is OrderStatus.CONFIRMED:
        return (
            len(swaps) == 1
            and swaps[0].height == FINAL
            and model.txs.values[swaps[0].tx].tx_hash == order.tx_hash
        )
    # A swap on chain belongs to the open attempt, which is followed to CONFIRMED.
    return all(order.open_attempt == model.txs.values[swap.tx] for swap in swaps)


def _closed_is_over(model: Model, world: World, before: World) -> bool:
    order = model.orders.values[world.order]
    return order.status not in _CLOSED or not _can_land(model, world)


def _no_overlap(model: Model, world: World, before: World) -> bool:
    return len(_can_land(model, world) | {swap.tx for swap in _swaps(world)}) <= 1


def _on_record_first(model: Model, world: World, before: World) -> bool:
    return world.sent <= {row.tx for row in world.rows}


def _one_open_attempt(model: Model, world: World, before: World) -> bool:
    opened = model.orders.values[world.order].open_attempt
    return [row.tx for row in world.rows if row.open] == (
        [] if opened is None else [model.txs.number(opened)]
    )


def _gapless(model: Model, world: World, before: World) -> bool:
    return model.orders.values[world.order].sequence == world.event_count


def _legal_moves(model: Model, world: World, before: World) -> bool:
    if world.event_count == before.event_count:
        return world.order == before.order
    was, now = model.orders.values[before.order].status, model.orders.values[world.order].status
    if now is OrderStatus.PENDING:
        return model.waits and was in _WAITS_AGAIN
    return now in _LEGAL.get(was, set())


def _fired_first(model: Model, world: World, before: World) -> bool:
    was, now = model.orders.values[before.order], model.orders.values[world.order]
    if not model.waits or was.status is not OrderStatus.PENDING:
        return True
    if world.order == before.order:
        # Whoever holds it as it rests is to close it.
        return (HOLDS, world.order) not in world.workers or _expired(now, world)
    return before.seen or now.status is not OrderStatus.ROUTING


def _nothing_out_while_pending(model: Model, world: World, before: World) -> bool:
    order = model.orders.values[world.order]
    return order.status is not OrderStatus.PENDING or not (_can_land(model, world) or _swaps(world))


def _own_attempt_numbers(model: Model, world: World, before: World) -> bool:
    return len({model.txs.values[row.tx].attempt for row in world.rows}) == len(world.rows)


class Invariant(StrEnum):
    NEVER_TWO_SWAPS = "never two swaps"
    CONFIRMED_IFF_LANDED = "CONFIRMED if and only if exactly one transaction landed"
    CLOSED_IS_OVER = "nothing of a closed order can still land"
    NO_OVERLAP = "two transactions are never both able to land"
    ON_RECORD_FIRST = "what was sent is on record"
    ONE_OPEN_ATTEMPT = "at most one open transaction, the order's own"
    GAPLESS = "sequences without gaps"
    LEGAL_MOVES = "only legal transitions"
    FIRED_FIRST = "what waits is taken up only when its price was seen as it stands"
    NOTHING_OUT_WHILE_PENDING = "nothing of a pending order can still land"
    OWN_ATTEMPT_NUMBERS = "no two transactions have one attempt number"


_HOLDS: Final[Mapping[Invariant, Holds]] = {
    Invariant.NEVER_TWO_SWAPS: _never_two_swaps,
    Invariant.CONFIRMED_IFF_LANDED: _confirmed_iff_landed,
    Invariant.CLOSED_IS_OVER: _closed_is_over,
    Invariant.NO_OVERLAP: _no_overlap,
    Invariant.ON_RECORD_FIRST: _on_record_first,
    Invariant.ONE_OPEN_ATTEMPT: _one_open_attempt,
    Invariant.GAPLESS: _gapless,
    Invariant.LEGAL_MOVES: _legal_moves,
    Invariant.FIRED_FIRST: _fired_first,
    Invariant.NOTHING_OUT_WHILE_PENDING: _nothing_out_while_pending,
    Invariant.OWN_ATTEMPT_NUMBERS: _own_attempt_numbers,
}


# ---- The walk ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Walk:
    """What was seen."""

    world_count: int = 0
    move_count: int = 0
    statuses: Counter[OrderStatus] = field(default_factory=Counter)
    """How many worlds had the order in each status."""
    broken: Invariant | None = None
    story: list[str] = field(default_factory=list)
    """The shortest way to the broken world."""
    stuck_count: int = 0
    """Worlds from which the order cannot be closed any more. Counted for the design alone."""

    def __str__(self) -> str:
        seen = f"{self.world_count:,} worlds, {self.move_count:,} moves"
        if self.broken is None:
            counts = ", ".join(f"{status} {count:,}" for status, count in sorted(self.statuses.items()))
            return f"{seen}: every invariant holds ({counts})"
        return f'{seen}: broken is "{self.broken}": ' + "; ".join(self.story)


def explore(
    broken: Broken | None = None,
    invariants: tuple[Invariant, ...] = tuple(Invariant),
    *,
    waits: bool = False,
) -> Walk:
    """Walk every world there is, or up to the first that breaks one of `invariants`."""
    model, walk = Model(broken, waits=waits), Walk()
    holds = [(invariant, _HOLDS[invariant]) for invariant in invariants]
    came_from: dict[World, tuple[World, str] | None] = dict.fromkeys(model.starts())
    leads_to: dict[World, list[World]] = {}
    queue = deque(came_from)
    while queue:
        world = queue.popleft()
        for name, after in model.moves(world):
            walk.move_count += 1
            if broken is None:
                leads_to.setdefault(after, []).append(world)
            if after in came_from and after.order == world.order:
                continue
            for invariant, invariant_holds in holds:
                if not invariant_holds(model, after, world):
                    walk.broken = invariant
                    walk.story = [*_story(came_from, world), name]
                    walk.world_count = len(came_from)
                    return walk
            if after not in came_from:
                came_from[after] = (world, name)
                queue.append(after)
    walk.world_count = len(came_from)
    walk.statuses.update(model.orders.values[world.order].status for world in came_from)
    if broken is None:
        walk.stuck_count = len(came_from) - len(_leading_to_closed(model, came_from, leads_to))
    return walk


def _story(came_from: Mapping[World, tuple[World, str] | None], world: World) -> list[str]:
    names = []
    while (step := came_from[world]) is not None:
        world, name = step
        names.append(name)
    return names[::-1]


def _leading_to_closed(
    model: Model, worlds: Mapping[World, object], leads_to: Mapping[World, list[World]]
) -> set[World]:
    reached = {world for world in worlds if model.orders.values[world.order].status in _CLOSED}
    queue = deque(reached)
    while queue:
        for before in leads_to.get(queue.popleft(), ()):
            if before not in reached:
                reached.add(before)
                queue.append(before)
    return reached


if __name__ == "__main__":
    variant = Broken(sys.argv[1]) if len(sys.argv) > 1 else None
    for of_waiting in (False, True) if variant is None else (variant in OF_WAITING,):
        print(explore(variant, waits=of_waiting))  # noqa: T201
