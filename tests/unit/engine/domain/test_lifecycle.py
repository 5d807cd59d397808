"""Every status with every status, every fact and every step, against tables written out here."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from typing import get_args
from uuid import UUID

import pytest

from engine.domain.lifecycle import (
    CANCELLABLE,
    CLOSED,
    RETRYABLE,
    TRANSITIONS,
    Cancelled,
    Claimed,
    Fact,
    IllegalTransition,
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
    found_on_chain,
    next_step,
)
from engine.domain.order import (
    Attempt,
    AttemptOutcome,
    FailureReason,
    Order,
    OrderSpec,
    OrderStatus,
    Quote,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
)
from engine.domain.order_types import LimitOrder
from engine.domain.retry import RetryPolicy
from engine.domain.tokens import SOL, USDC

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = RetryPolicy(max_attempts=3, base_seconds=0.5, cap_seconds=10.0)
SPEC = OrderSpec(Side.SELL, 10**9, SOL, USDC)
SPECS = {"market": SPEC, "limit": replace(SPEC, type=LimitOrder(Decimal(150)))}
LEG = RouteLeg("Raydium", "raydium_cpmm", "pool", 10**9, 150_000_000)
ROUTE = Route((LEG,), 10**9, 150_000_000, 149_250_000)
QUOTE = Quote("Raydium", "raydium_cpmm", "pool", 10**9, 150_000_000)
DECISION = RoutingDecision(1, 77, (QUOTE,), ROUTE, "only pool")
REFUSED = RoutingDecision(1, 77, (QUOTE._replace(refusal="empty"),), None, "no pool has liquidity")
ATTEMPT = Attempt(1, "hash-1", b"signed bytes", 900)

# What the design says, written out as people read it.
PENDING, ROUTING, BUILDING, SUBMITTED = "pending", "routing", "building", "submitted"
CONFIRMED, FAILED, CANCELLED, EXPIRED = "confirmed", "failed", "cancelled", "expired"
LEGAL = {
    (PENDING, ROUTING),
    (PENDING, FAILED),
    (PENDING, CANCELLED),
    (PENDING, EXPIRED),
    (ROUTING, PENDING),
    (ROUTING, ROUTING),
    (ROUTING, BUILDING),
    (ROUTING, FAILED),
    (ROUTING, CANCELLED),
    (ROUTING, EXPIRED),
    (BUILDING, ROUTING),
    (BUILDING, SUBMITTED),
    (BUILDING, FAILED),
    (BUILDING, CANCELLED),
    (BUILDING, EXPIRED),
    (SUBMITTED, PENDING),
    (SUBMITTED, ROUTING),
    (SUBMITTED, CONFIRMED),
    (SUBMITTED, FAILED),
}

FACTS: dict[str, Fact] = {
    "claimed": Claimed(),
    "routed": Routed(DECISION),
    "not routed": NotRouted(REFUSED),
    "unmet": Unmet(DECISION, "the whole amount would be filled at 150 now; the limit is 151"),
    "not built, retryable": NotBuilt(FailureReason.SLIPPAGE_EXCEEDED, "price moved"),
    "not built, definitive": NotBuilt(FailureReason.INSUFFICIENT_FUNDS, "wallet is empty"),
    "signed": Signed(ATTEMPT),
    "landed": Landed(10**9, 149_999_000),
    "reverted, retryable": Reverted(FailureReason.SLIPPAGE_EXCEEDED, "price moved"),
    "reverted, definitive": Reverted(FailureReason.VENUE_REJECTED, "pool is paused"),
    "lapsed": Lapsed(),
    "cancelled": Cancelled(),
    "timed out": TimedOut(),
}

# (status, fact) -> (with attempts left, on the last attempt). Not listed: refused.
EFFECTS = {
    (PENDING, "claimed"): (ROUTING, ROUTING),
    (ROUTING, "routed"): (BUILDING, BUILDING),
    (ROUTING, "not routed"): (ROUTING, FAILED),
    (PENDING, "not built, retryable"): (ROUTING, FAILED),
    (ROUTING, "not built, retryable"): (ROUTING, FAILED),
    (BUILDING, "not built, retryable"): (ROUTING, FAILED),
    (PENDING, "not built, definitive"): (FAILED, FAILED),
    (ROUTING, "not built, definitive"): (FAILED, FAILED),
    (BUILDING, "not built, definitive"): (FAILED, FAILED),
    (BUILDING, "signed"): (SUBMITTED, SUBMITTED),
    (SUBMITTED, "landed"): (CONFIRMED, CONFIRMED),
    (SUBMITTED, "reverted, retryable"): (ROUTING, FAILED),
    (SUBMITTED, "reverted, definitive"): (FAILED, FAILED),
    (SUBMITTED, "lapsed"): (ROUTING, FAILED),
    (PENDING, "cancelled"): (CANCELLED, CANCELLED),
    (ROUTING, "cancelled"): (CANCELLED, CANCELLED),
    (BUILDING, "cancelled"): (CANCELLED, CANCELLED),
    (PENDING, "timed out"): (EXPIRED, EXPIRED),
    (ROUTING, "timed out"): (EXPIRED, EXPIRED),
    (BUILDING, "timed out"): (EXPIRED, EXPIRED),
}
EFFECTS_ON = {
    "market": EFFECTS,
    # It waits for its price again, and whatever attempts it had are forgiven.
    "limit": EFFECTS
    | {
        (ROUTING, "unmet"): (PENDING, PENDING),
        (SUBMITTED, "reverted, retryable"): (PENDING, PENDING),
    },
}
LISTED = [(kind, *effect) for kind, effects in EFFECTS_ON.items() for effect in effects]


def an_order(
    status: OrderStatus | str,
    *,
    kind: str = "market",
    attempt: int = 1,
    forgiven_attempts: int = 0,
    expire_time: datetime | None = None,
) -> Order:
    """Return an order as it would stand in that status, on that attempt."""
    status = OrderStatus(status)
    order = Order(
        UUID(int=7),
        replace(SPECS[kind], expire_time=expire_time),
        status=status,
        sequence=40,
        attempt=attempt,
        forgiven_attempts=forgiven_attempts,
    )
    if attempt > 1:
        order = replace(
            order,
            venue="Raydium",
            failure_reason=FailureReason.NO_ROUTE,
            failure_message="attempt before found no route",
        )
    if status in (OrderStatus.BUILDING, OrderStatus.SUBMITTED, OrderStatus.CONFIRMED):
        order = replace(
            order,
            route=ROUTE,
            venue="Raydium",
            input_amount=ROUTE.input_amount,
            output_amount=ROUTE.output_amount,
            failure_reason=None,
            failure_message=None,
        )
    if status is OrderStatus.SUBMITTED:
        order = replace(order, tx_hash=ATTEMPT.tx_hash, open_attempt=replace(ATTEMPT, attempt=attempt))
    return order


@pytest.mark.parametrize(("before", "after"), list(product(OrderStatus, OrderStatus)))
def test_a_move_is_legal_if_and_only_if_the_design_lists_it(before: OrderStatus, after: OrderStatus) -> None:
    assert (after in TRANSITIONS[before]) == ((before.value, after.value) in LEGAL)


def test_a_closed_status_is_one_that_nothing_leaves() -> None:
    assert {CONFIRMED, FAILED, CANCELLED, EXPIRED} == CLOSED


def test_only_before_broadcast_can_an_order_be_cancelled() -> None:
    assert {PENDING, ROUTING, BUILDING} == CANCELLABLE


def test_retryable_is_what_a_fresh_quote_may_get_past() -> None:
    assert {"no_route", "slippage_exceeded", "transaction_expired"} == RETRYABLE


def test_every_fact_is_in_the_table() -> None:
    assert {type(fact) for fact in FACTS.values()} == set(get_args(Fact))


@pytest.mark.parametrize(("kind", "status", "name"), list(product(SPECS, OrderStatus, FACTS)))
def test_a_fact_moves_an_order_as_listed_and_is_refused_elsewhere(
    kind: str, status: OrderStatus, name: str
) -> None:
    fact, listed = FACTS[name], EFFECTS_ON[kind].get((status.value, name))
    orders = [an_order(status, kind=kind, attempt=attempt) for attempt in (1, POLICY.max_attempts)]
    if listed is None:
        for order in orders:
            with pytest.raises(IllegalTransition):
                apply(order, fact, POLICY)
        return
    # With attempts left, and on the last one.
    assert tuple(apply(order, fact, POLICY).order.status for order in orders) == listed


@pytest.mark.parametrize(("kind", "status", "name"), LISTED)
@pytest.mark.parametrize("attempt", [1, 3])
def test_every_transition_is_one_event_one_sequence_on_and_complete_in_itself(
    kind: str, status: str, name: str, attempt: int
) -> None:
    before = an_order(status, kind=kind, attempt=attempt)
    transition = apply(before, FACTS[name], POLICY, random=0.5)
    order, event = transition.order, transition.event

    assert transition.before is before
    assert order.sequence == event.sequence == before.sequence + 1
    assert order.spec is before.spec
    # Whoever reads the event alone knows all that the order shows at that moment.
    for field in (
        "order_id",
        "status",
        "attempt",
        "venue",
        "input_amount",
        "output_amount",
        "tx_hash",
        "failure_reason",
        "failure_message",
    ):
        assert getattr(event, field) == getattr(order, field), field
    assert event.create_time is None, "only the database tells the time"


@pytest.mark.parametrize(("kind", "status", "name"), LISTED)
@pytest.mark.parametrize("attempt", [1, 3])
def test_an_order_has_an_open_attempt_while_submitted_and_only_then(
    kind: str, status: str, name: str, attempt: int
) -> None:
    transition = apply(an_order(status, kind=kind, attempt=attempt), FACTS[name], POLICY)
    submitted = transition.order.status is OrderStatus.SUBMITTED
    assert (transition.order.open_attempt is not None) == submitted
    assert (transition.opened is not None) == submitted
    assert (transition.closed is not None) == (status == SUBMITTED)


@pytest.mark.parametrize(("kind", "status", "name"), LISTED)
@pytest.mark.parametrize("attempt", [1, 3])
def test_a_reason_is_given_when_failed_or_trying_or_waiting_again_and_never_otherwise(
    kind: str, status: str, name: str, attempt: int
) -> None:
    event = apply(an_order(status, kind=kind, attempt=attempt), FACTS[name], POLICY).event
    again = event.status in (OrderStatus.ROUTING, OrderStatus.PENDING) and name != "claimed"
    explained = event.status is OrderStatus.FAILED or again
    assert (event.failure_message is not None) == explained
    # That its price is not there is no failure.
    assert (event.failure_reason is not None) == (explained and name != "unmet")


@pytest.mark.parametrize(
    ("fact", "reason", "message"),
    [
        (FACTS["reverted, definitive"], "venue_rejected", "pool is paused"),
        (FACTS["reverted, retryable"], "slippage_exceeded", "price moved"),
        (
            FACTS["lapsed"],
            "transaction_expired",
            "transaction hash-1 was not included before its blockhash expired",
        ),
    ],
)
def test_a_failed_order_says_why(fact: Fact, reason: str, message: str) -> None:
    event = apply(an_order(SUBMITTED, attempt=3), fact, POLICY).event
    assert (event.status, event.failure_reason, event.failure_message) == (FAILED, reason, message)


@pytest.mark.parametrize("reason", FailureReason)
def test_a_reason_is_retried_if_and_only_if_it_is_retryable(reason: FailureReason) -> None:
    after = apply(an_order(BUILDING), NotBuilt(reason, "why"), POLICY).order
    assert after.status == (ROUTING if reason in RETRYABLE else FAILED)
    assert after.attempt == (2 if reason in RETRYABLE else 1)


@pytest.mark.parametrize("attempt", [1, 2, 3, 4, 9])
def test_attempts_are_spent_one_at_a_time_and_no_more_than_the_policy_grants(attempt: int) -> None:
    after = apply(an_order(ROUTING, attempt=attempt), NotRouted(REFUSED), POLICY).order
    if attempt < POLICY.max_attempts:
        assert (after.status, after.attempt) == (ROUTING, attempt + 1)
    else:
        assert (after.status, after.attempt) == (FAILED, attempt)


@pytest.mark.parametrize(("attempt", "longest"), [(1, 0.5), (2, 1.0)])
def test_a_retry_rests_for_its_backoff_and_nothing_else_rests(attempt: int, longest: float) -> None:
    routing = an_order(ROUTING, attempt=attempt)
    assert apply(routing, NotRouted(REFUSED), POLICY, random=0.5).delay_seconds == longest / 2
    assert apply(routing, NotRouted(REFUSED), POLICY, random=0.0).delay_seconds == 0.0
    assert apply(routing, Routed(DECISION), POLICY, random=0.5).delay_seconds == 0.0


def test_closing_never_rests() -> None:
    assert apply(an_order(SUBMITTED, attempt=3), Lapsed(), POLICY, random=0.9).delay_seconds == 0.0


@pytest.mark.parametrize(
    ("fact", "outcome"),
    [
        (Landed(1, 1), AttemptOutcome.LANDED),
        (FACTS["reverted, retryable"], AttemptOutcome.REVERTED),
        (FACTS["reverted, definitive"], AttemptOutcome.REVERTED),
        (Lapsed(), AttemptOutcome.EXPIRED),
    ],
)
def test_proof_closes_the_open_attempt_with_its_outcome(fact: Fact, outcome: AttemptOutcome) -> None:
    assert apply(an_order(SUBMITTED), fact, POLICY).closed is outcome


def test_a_route_is_kept_for_building_and_its_decision_travels_on_the_event() -> None:
    transition = apply(an_order(ROUTING), Routed(DECISION), POLICY)
    order = transition.order
    assert (order.route, order.venue) == (ROUTE, "Raydium")
    assert (order.input_amount, order.output_amount) == (ROUTE.input_amount, ROUTE.output_amount)
    assert transition.event.decision is DECISION


def test_a_refused_routing_is_kept_too_with_its_reason() -> None:
    event = apply(an_order(ROUTING), NotRouted(REFUSED), POLICY).event
    assert event.decision is REFUSED
    assert event.failure_message == "no pool has liquidity"


def test_a_routed_fact_without_a_route_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="needs a route"):
        apply(an_order(ROUTING), Routed(REFUSED), POLICY)


def test_a_later_attempt_starts_clean_of_the_one_before() -> None:
    again = apply(an_order(SUBMITTED), Lapsed(), POLICY).order
    assert (again.attempt, again.route, again.open_attempt) == (2, None, None)
    assert again.tx_hash == "hash-1", "the latest attempt's, until there is a newer one"
    rebuilt = apply(again, Routed(replace(DECISION, attempt=2)), POLICY).order
    assert (rebuilt.tx_hash, rebuilt.failure_reason, rebuilt.failure_message) == (None, None, None)


# ---- Waiting again -----------------------------------------------------------------------------------


def test_an_order_that_waits_for_nothing_never_returns_to_waiting() -> None:
    with pytest.raises(IllegalTransition, match="a market order waits for nothing"):
        apply(an_order(ROUTING), FACTS["unmet"], POLICY)


@pytest.mark.parametrize("attempt", [1, 2, 3, 7])
def test_an_order_whose_price_is_not_there_waits_again_and_keeps_its_attempts_number(attempt: int) -> None:
    transition = apply(an_order(ROUTING, kind="limit", attempt=attempt), FACTS["unmet"], POLICY, 0.9)
    order, event = transition.order, transition.event
    # No transaction has the number.
    assert (order.status, order.attempt, order.forgiven_attempts) == (PENDING, attempt, attempt - 1)
    assert (order.route, order.open_attempt) == (None, None)
    assert (transition.opened, transition.closed, transition.delay_seconds) == (None, None, 0.0)
    assert event.decision is DECISION, "what there was to be had is told"
    assert event.failure_reason is None
    assert event.failure_message == "the whole amount would be filled at 150 now; the limit is 151"


@pytest.mark.parametrize("attempt", [1, 2, 3, 7])
def test_an_order_whose_price_went_away_before_it_landed_waits_again_on_a_new_attempt(attempt: int) -> None:
    before = an_order(SUBMITTED, kind="limit", attempt=attempt)
    transition = apply(before, FACTS["reverted, retryable"], POLICY, 0.9)
    order, event = transition.order, transition.event
    # Its transaction keeps the number it had.
    assert (order.status, order.attempt, order.forgiven_attempts) == (PENDING, attempt + 1, attempt)
    assert (order.route, order.open_attempt) == (None, None)
    assert (transition.opened, transition.delay_seconds) == (None, 0.0)
    assert transition.closed is AttemptOutcome.REVERTED
    assert (event.failure_reason, event.failure_message) == ("slippage_exceeded", "price moved")
    assert event.tx_hash == "hash-1", "the transaction it is about"


def test_an_order_that_waits_spends_an_attempt_on_a_transaction_that_lapsed() -> None:
    again = apply(an_order(SUBMITTED, kind="limit"), Lapsed(), POLICY).order
    assert (again.status, again.attempt, again.forgiven_attempts) == (ROUTING, 2, 0)
    last = apply(an_order(SUBMITTED, kind="limit", attempt=3), Lapsed(), POLICY).order
    assert (last.status, last.attempt) == (FAILED, 3)


@pytest.mark.parametrize("name", ["unmet", "reverted, retryable"])
def test_an_order_that_waited_again_has_all_its_attempts_and_their_backoff_before_it(name: str) -> None:
    status = ROUTING if name == "unmet" else SUBMITTED
    order = apply(an_order(status, kind="limit", attempt=3), FACTS[name], POLICY).order
    order = apply(order, Claimed(), POLICY).order
    numbers, delays = [], []
    while order.status is OrderStatus.ROUTING:
        order = apply(order, Routed(DECISION), POLICY).order
        order = apply(order, Signed(replace(ATTEMPT, attempt=order.attempt)), POLICY).order
        numbers.append(order.attempt)
        lapsed = apply(order, Lapsed(), POLICY, random=0.5)
        order = lapsed.order
        delays.append(lapsed.delay_seconds)
    first = 3 if name == "unmet" else 4
    assert numbers == [first, first + 1, first + 2], "none is used a second time"
    assert delays == [0.25, 0.5, 0.0]
    assert order.status is OrderStatus.FAILED


def test_forgiven_attempts_are_kept_until_it_waits_again() -> None:
    order = an_order(BUILDING, kind="limit", attempt=5, forgiven_attempts=4)
    order = apply(order, FACTS["not built, retryable"], POLICY).order
    assert (order.status, order.attempt, order.forgiven_attempts) == (ROUTING, 6, 4)
    order = apply(order, FACTS["unmet"], POLICY).order
    assert (order.status, order.attempt, order.forgiven_attempts) == (PENDING, 6, 5)


def test_an_order_taken_up_again_starts_clean_of_what_came_before_it_waited() -> None:
    waiting = apply(an_order(SUBMITTED, kind="limit"), FACTS["reverted, retryable"], POLICY).order
    event = apply(waiting, Claimed(), POLICY).event
    assert (event.status, event.attempt) == (ROUTING, 2)
    assert (event.venue, event.input_amount, event.output_amount, event.tx_hash) == (None, None, None, None)
    assert (event.failure_reason, event.failure_message) == (None, None)


def test_signing_records_the_bytes_and_their_hash() -> None:
    transition = apply(an_order(BUILDING), Signed(ATTEMPT), POLICY)
    assert transition.opened is ATTEMPT
    assert transition.order.open_attempt is ATTEMPT
    assert transition.order.tx_hash == ATTEMPT.tx_hash


def test_landing_replaces_the_quoted_amounts_by_the_realised_ones() -> None:
    order = apply(an_order(SUBMITTED), Landed(10**9, 149_999_000), POLICY).order
    assert (order.input_amount, order.output_amount) == (10**9, 149_999_000)


@pytest.mark.parametrize(
    ("status", "step", "when_expired"),
    [
        (PENDING, Step.START, Step.EXPIRE),
        (ROUTING, Step.ROUTE, Step.EXPIRE),
        (BUILDING, Step.BUILD, Step.EXPIRE),
        (SUBMITTED, Step.SETTLE, Step.SETTLE),
        (CONFIRMED, Step.STOP, Step.STOP),
        (FAILED, Step.STOP, Step.STOP),
        (CANCELLED, Step.STOP, Step.STOP),
        (EXPIRED, Step.STOP, Step.STOP),
    ],
)
def test_the_next_step_depends_on_status_and_expiry_alone(
    status: str, step: Step, when_expired: Step
) -> None:
    tick = timedelta(microseconds=1)
    assert next_step(an_order(status), NOW) is step
    assert next_step(an_order(status, expire_time=NOW + tick), NOW) is step
    assert next_step(an_order(status, expire_time=NOW), NOW) is when_expired
    assert next_step(an_order(status, expire_time=NOW - tick), NOW) is when_expired
    assert next_step(an_order(status, attempt=2, expire_time=NOW), NOW) is when_expired


@pytest.mark.parametrize("status", OrderStatus)
def test_the_next_step_is_never_one_whose_facts_would_be_refused(status: OrderStatus) -> None:
    facts_of = {
        Step.START: ["claimed"],
        Step.ROUTE: ["routed", "not routed", "unmet", "not built, definitive"],
        Step.BUILD: ["signed", "not built, retryable", "not built, definitive"],
        Step.SETTLE: ["landed", "reverted, retryable", "reverted, definitive", "lapsed"],
        Step.EXPIRE: ["timed out"],
        Step.STOP: [],
    }
    for expire_time in (None, NOW):
        order = an_order(status, kind="limit", expire_time=expire_time)
        for name in facts_of[next_step(order, NOW)]:
            assert apply(order, FACTS[name], POLICY).order.sequence == order.sequence + 1


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(
    ("status", "path"),
    [
        (PENDING, [ROUTING, BUILDING, SUBMITTED]),
        (ROUTING, [BUILDING, SUBMITTED]),
        (BUILDING, [SUBMITTED]),
        (SUBMITTED, [ROUTING, BUILDING, SUBMITTED]),
    ],
)
@pytest.mark.parametrize("attempt", [1, 3, 50])
def test_an_order_found_on_chain_is_followed_to_the_proof_of_that_transaction(
    kind: str, status: str, path: list[str], attempt: int
) -> None:
    order = an_order(status, kind=kind, attempt=attempt)
    found = Attempt(7, "found", b"its bytes", 900)
    moves = found_on_chain(order, DECISION, found)
    assert [move.order.status for move in moves] == path
    assert [move.event.sequence for move in moves] == [41 + number for number in range(len(path))]
    assert moves[0].before == order
    # The transaction on record was given up, so this is of the attempt after it, whatever its memo says.
    number = attempt + (status == SUBMITTED)
    assert moves[-1].opened == moves[-1].order.open_attempt == replace(found, attempt=number)
    assert [move.closed for move in moves if move.closed] == [AttemptOutcome.EXPIRED] * (status == SUBMITTED)
    # Whoever looks for due orders finds it.
    assert moves[-1].lets_go
    assert next_step(moves[-1].order, NOW) is Step.SETTLE


@pytest.mark.parametrize("status", sorted(CLOSED))
def test_a_closed_order_stays_closed_whatever_is_found(status: OrderStatus) -> None:
    with pytest.raises(IllegalTransition):
        found_on_chain(an_order(status), DECISION, ATTEMPT)
