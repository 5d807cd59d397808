"""The life of an order. Read this file first.

    PENDING -> ROUTING -> BUILDING -> SUBMITTED -> CONFIRMED     (or FAILED, CANCELLED, EXPIRED)

An order whose type has a trigger (limit, sniper) rests as PENDING until a monitor fires it, and returns to
PENDING when the market has moved away before it could be executed.

Everything that affects an order's status is here, and nothing here does I/O. The rules:

1. `next_step` says what to do with an order as it stands. It answers the same on the first run
   and after a crash: recovery is the loop's first iteration.
2. Doing it yields a fact (one of the dataclasses below). `apply` turns order + fact into the
   order after it and the one event that tells of it. Nothing else makes an order.
3. A move that TRANSITIONS does not list raises IllegalTransition. The database refuses it too.
4. A transaction is recorded (Signed -> SUBMITTED) before its first byte leaves.
5. From SUBMITTED only proof from the chain leads on: it landed, it failed for good, or it can
   never land. No answer, a timeout, a cancel or expire_time prove nothing.
6. `sequence` grows by one with every transition. A write is conditional on the sequence it was
   decided from, so of two workers that hold the same order one is refused.

The model check (tests/unit/engine/domain/test_lifecycle_model.py) walks every interleaving of two
workers, two monitors, crashes, lost sends, cancels, expiry and blocks through `next_step` and `apply`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, auto
from typing import Any, Final

from engine.domain.frozen import frozen, replace
from engine.domain.order import (
    Attempt,
    AttemptOutcome,
    FailureReason,
    Order,
    OrderEvent,
    OrderStatus,
    RoutingDecision,
)
from engine.domain.retry import RetryPolicy

PENDING, ROUTING, BUILDING, SUBMITTED = (
    OrderStatus.PENDING,
    OrderStatus.ROUTING,
    OrderStatus.BUILDING,
    OrderStatus.SUBMITTED,
)
CONFIRMED, FAILED, CANCELLED, EXPIRED = (
    OrderStatus.CONFIRMED,
    OrderStatus.FAILED,
    OrderStatus.CANCELLED,
    OrderStatus.EXPIRED,
)

TRANSITIONS: Final[Mapping[OrderStatus, frozenset[OrderStatus]]] = {
    PENDING: frozenset({ROUTING, FAILED, CANCELLED, EXPIRED}),
    ROUTING: frozenset({PENDING, ROUTING, BUILDING, FAILED, CANCELLED, EXPIRED}),
    BUILDING: frozenset({ROUTING, SUBMITTED, FAILED, CANCELLED, EXPIRED}),
    # Not CANCELLED, not EXPIRED: a transaction cannot be recalled.
    SUBMITTED: frozenset({PENDING, ROUTING, CONFIRMED, FAILED}),
    CONFIRMED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
    EXPIRED: frozenset(),
}

CLOSED: Final = frozenset(status for status, after in TRANSITIONS.items() if not after)
CANCELLABLE: Final = frozenset(status for status, after in TRANSITIONS.items() if CANCELLED in after)

RETRYABLE: Final = frozenset(
    {
        FailureReason.NO_ROUTE,
        FailureReason.SLIPPAGE_EXCEEDED,
        FailureReason.TRANSACTION_EXPIRED,
    }
)
"""What a fresh quote, or the same one a little later, may get past. The others are definitive."""


class IllegalTransition(Exception):
    """A move that TRANSITIONS does not list. Always a defect of ours."""


class Step(Enum):
    """What to do next with an order."""

    START = auto()
    """Take it up: PENDING -> ROUTING. A worker's claim does this in the same statement."""
    ROUTE = auto()
    """Quote the venues and choose a route, or find that there is none."""
    BUILD = auto()
    """Build and sign the transaction of the chosen route."""
    SETTLE = auto()
    """Send the recorded bytes (again) and look for proof of their outcome."""
    EXPIRE = auto()
    """Close it: expire_time has passed and nothing was broadcast."""
    STOP = auto()
    """Nothing: it is closed."""


_STEPS: Final[Mapping[OrderStatus, Step]] = {
    PENDING: Step.START,
    ROUTING: Step.ROUTE,
    BUILDING: Step.BUILD,
}


def next_step(order: Order, now: datetime) -> Step:
    """Return what to do with the order as it stands; `now` is the database's clock."""
    if order.status in CLOSED:
        return Step.STOP
    if order.status is SUBMITTED:
        # Before expire_time is looked at: an open transaction is followed to its proof.
        return Step.SETTLE
    if order.spec.expire_time is not None and now >= order.spec.expire_time:
        return Step.EXPIRE
    return _STEPS[order.status]


# ---- Facts: what became known by doing a step ----------------------------------------------------


@frozen
class Claimed:
    """A worker took the order up."""


@frozen
class Routed:
    """A route was chosen."""

    decision: RoutingDecision


@frozen
class NotRouted:
    """No pool can fill the order now."""

    decision: RoutingDecision


@frozen
class Unmet:
    """Its type has a trigger, which does not hold now: the route there is, if any, is not good enough."""

    decision: RoutingDecision
    reason: str


@frozen
class NotBuilt:
    """No transaction could be built; nothing was sent."""

    reason: FailureReason
    message: str


@frozen
class Signed:
    """The transaction is signed and about to be recorded. It has not been sent."""

    attempt: Attempt


@frozen
class Landed:
    """Seen on chain without error. Amounts are what was really exchanged, in base units."""

    input_amount: int
    output_amount: int


@frozen
class Reverted:
    """Seen on chain with an error, finalized: it had no effect and never will."""

    reason: FailureReason
    message: str


@frozen
class Lapsed:
    """Proved dead: finalized block height is beyond its last valid one, and it is not on chain."""


@frozen
class Cancelled:
    """The client's cancel."""


@frozen
class TimedOut:
    """expire_time passed before broadcast."""


Fact = (
    Claimed
    | Routed
    | NotRouted
    | Unmet
    | NotBuilt
    | Signed
    | Landed
    | Reverted
    | Lapsed
    | Cancelled
    | TimedOut
)

_KNOWABLE: Final[Mapping[type[Fact], frozenset[OrderStatus]]] = {
    Claimed: frozenset({PENDING}),
    Routed: frozenset({ROUTING}),
    NotRouted: frozenset({ROUTING}),
    Unmet: frozenset({ROUTING}),
    # Not SUBMITTED: it would open a second transaction beside the first.
    NotBuilt: frozenset({PENDING, ROUTING, BUILDING}),
    Signed: frozenset({BUILDING}),
    Landed: frozenset({SUBMITTED}),
    Reverted: frozenset({SUBMITTED}),
    Lapsed: frozenset({SUBMITTED}),
    Cancelled: CANCELLABLE,
    TimedOut: frozenset({PENDING, ROUTING, BUILDING}),
}
"""In which statuses a fact can become known. The move alone does not tell: SUBMITTED -> ROUTING is
right for Lapsed and would be a second swap for NotBuilt."""


@frozen
class Transition:
    """One move of an order: what it was, what it is, the event that tells of it."""

    before: Order
    order: Order
    event: OrderEvent
    delay_seconds: float = 0.0
    """How long the order rests before it is due again."""
    opened: Attempt | None = None
    """To be recorded with this transition."""
    closed: AttemptOutcome | None = None
    """How the open attempt ended with this transition; None: not by this one."""

    @property
    def lets_go(self) -> bool:
        """Nobody holds the order after it: between attempts, while it waits for its trigger, once closed."""
        return self.delay_seconds > 0 or self.order.status in CLOSED or self.order.status is PENDING


def apply(order: Order, fact: Fact, policy: RetryPolicy, random: float = 0.0) -> Transition:
    """Return the transition that `fact` makes of `order`.

    `random` in [0, 1) spreads retries. Raises IllegalTransition when the fact cannot come of the
    order's status: the caller acted on a state that `next_step` did not ask for.
    """
    if order.status not in _KNOWABLE[type(fact)]:
        raise IllegalTransition(f"order {order.order_id}: {type(fact).__name__} while {order.status}")
    match fact:
        case Claimed():
            # What came before it waited again is told by the events before.
            return _move(
                order,
                ROUTING,
                venue=None,
                input_amount=None,
                output_amount=None,
                tx_hash=None,
                **_UNEXPLAINED,
            )
        case Routed(decision):
            route = decision.route
            if route is None:
                raise IllegalTransition("a Routed fact needs a route")
            return _move(
                order,
                BUILDING,
                decision=decision,
                route=route,
                venue=route.venue,
                input_amount=route.input_amount,
                output_amount=route.output_amount,
                # A later attempt starts clean; the events keep why the one before it ended.
                tx_hash=None,
                **_UNEXPLAINED,
            )
        case NotRouted(decision):
            return _retry_or_fail(
                order, FailureReason.NO_ROUTE, decision.reason, policy, random, decision=decision
            )
        case Unmet(decision, reason):
            return _wait_again(order, None, reason, decision=decision)
        case NotBuilt(reason, message):
            return _retry_or_fail(order, reason, message, policy, random)
        case Signed(attempt):
            return _move(order, SUBMITTED, opened=attempt, tx_hash=attempt.tx_hash, open_attempt=attempt)
        case Landed(input_amount, output_amount):
            return _move(
                order,
                CONFIRMED,
                closed=AttemptOutcome.LANDED,
                input_amount=input_amount,
                output_amount=output_amount,
                open_attempt=None,
            )
        case Reverted(FailureReason.SLIPPAGE_EXCEEDED as reason, message) if order.spec.waits:
            # The market moved away before it landed.
            return _wait_again(order, reason, message, closed=AttemptOutcome.REVERTED)
        case Reverted(reason, message):
            return _retry_or_fail(order, reason, message, policy, random, closed=AttemptOutcome.REVERTED)
        case Lapsed():
            return _retry_or_fail(
                order,
                FailureReason.TRANSACTION_EXPIRED,
                f"transaction {order.tx_hash} was not included before its blockhash expired",
                policy,
                random,
                closed=AttemptOutcome.EXPIRED,
            )
        case Cancelled():
            return _move(order, CANCELLED, **_UNEXPLAINED)
        case TimedOut():
            return _move(order, EXPIRED, **_UNEXPLAINED)


def found_on_chain(order: Order, decision: RoutingDecision, attempt: Attempt) -> list[Transition]:
    """Return the moves of an open order to SUBMITTED, with a transaction that is on chain and not on record.

    A transaction is recorded before it is sent. So only a record that was put back from a backup lacks one,
    and the moves that led to it. From there on the order is followed to its proof like any other.
    `decision` has the route that the transaction took. Raises IllegalTransition for a closed order.
    """
    moves: list[Transition] = []
    while not moves or order.status is not SUBMITTED:
        fact: Fact
        match order.status:
            case OrderStatus.PENDING:
                fact = Claimed()
            case OrderStatus.ROUTING:
                fact = Routed(replace(decision, attempt=order.attempt))
            case OrderStatus.BUILDING:
                fact = Signed(replace(attempt, attempt=order.attempt))
            case _:
                # The one on record was given up before another was made.
                fact = Lapsed()
        moves.append(apply(order, fact, _WITHOUT_END))
        order = moves[-1].order
    # Nobody holds it, and it may have rested for a price: it is due at once.
    return [*moves[:-1], replace(moves[-1], delay_seconds=_AT_ONCE)]


_WITHOUT_END: Final = RetryPolicy(max_attempts=2**31)
"""What was tried has been tried: no limit ends an order that was executed."""
_AT_ONCE: Final = 1e-6
"""A rest by which an order is let go of, and due."""

_UNEXPLAINED: Final[Mapping[str, Any]] = {"failure_reason": None, "failure_message": None}
"""Takes away why the attempt before did not succeed: it is not why the order moves now."""


def _retry_or_fail(
    order: Order,
    reason: FailureReason,
    message: str,
    policy: RetryPolicy,
    random: float,
    *,
    decision: RoutingDecision | None = None,
    closed: AttemptOutcome | None = None,
) -> Transition:
    changes: dict[str, Any] = {"failure_reason": reason, "failure_message": message}
    if closed is not None:
        changes["open_attempt"] = None
    spent = order.attempt - order.forgiven_attempts
    if reason not in RETRYABLE or spent >= policy.max_attempts:
        return _move(order, FAILED, decision=decision, closed=closed, **changes)
    return _move(
        order,
        ROUTING,
        delay_seconds=policy.delay_seconds(spent, random),
        decision=decision,
        closed=closed,
        attempt=order.attempt + 1,
        route=None,
        **changes,
    )


def _wait_again(
    order: Order,
    reason: FailureReason | None,
    message: str,
    *,
    decision: RoutingDecision | None = None,
    closed: AttemptOutcome | None = None,
) -> Transition:
    """Return the move back to where the order's trigger is waited for. What came before is forgiven."""
    if not order.spec.waits:
        raise IllegalTransition(f"order {order.order_id}: a {order.spec.type.name} order waits for nothing")
    # A transaction has its number for good.
    attempt = order.attempt if closed is None else order.attempt + 1
    return _move(
        order,
        PENDING,
        decision=decision,
        closed=closed,
        attempt=attempt,
        forgiven_attempts=attempt - 1,
        route=None,
        open_attempt=None,
        failure_reason=reason,
        failure_message=message,
    )


def _move(
    before: Order,
    status: OrderStatus,
    *,
    delay_seconds: float = 0.0,
    decision: RoutingDecision | None = None,
    opened: Attempt | None = None,
    closed: AttemptOutcome | None = None,
    **changes: Any,
) -> Transition:
    """Return the move to `status`; `changes` are the order's other fields that differ after it."""
    if status not in TRANSITIONS[before.status]:
        raise IllegalTransition(f"order {before.order_id}: {before.status} -> {status}")
    after = replace(before, status=status, sequence=before.sequence + 1, **changes)
    # By position, as names take a third longer; it has no create_time before it is stored.
    event = OrderEvent(
        after.order_id,
        after.sequence,
        status,
        after.attempt,
        None,
        after.venue,
        after.input_amount,
        after.output_amount,
        after.tx_hash,
        after.failure_reason,
        after.failure_message,
        decision,
    )
    return Transition(before, after, event, delay_seconds, opened, closed)
