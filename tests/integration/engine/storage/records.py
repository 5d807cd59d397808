"""Puts orders into the record, the way the server and the workers do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from itertools import count
from typing import Final
from uuid import UUID

from engine.domain.lifecycle import (
    Cancelled,
    Claimed,
    Fact,
    Landed,
    NotBuilt,
    Routed,
    Signed,
    TimedOut,
    Transition,
    Unmet,
    apply,
)
from engine.domain.order import (
    Attempt,
    FailureReason,
    Order,
    OrderSpec,
    OrderStatus,
    RoutingDecision,
    Side,
)
from engine.domain.order_ids import make_order_id
from engine.domain.order_types import MARKET, LimitOrder, OrderType
from engine.domain.retry import RetryPolicy
from engine.domain.tokens import SOL, USDC, Token
from engine.storage.postgres import NewOrder, Store
from tests.serving import decision

SPEC: Final = OrderSpec(Side.SELL, 1_500_000_000, SOL, USDC)
LIMIT: Final = LimitOrder(Decimal(150))
UNMET: Final = Unmet(decision(), "the limit is 150")
_ids = count(1)


def new_order(
    request_id: str | None = None,
    *,
    amount: int = SPEC.amount,
    expire_time: datetime | None = None,
    side: Side = Side.SELL,
    type: OrderType = MARKET,  # noqa: A002
    tokens: tuple[Token, Token] = (SOL, USDC),
) -> NewOrder:
    """An order not stored yet; each one's id is later than the ids before it."""
    number = next(_ids)
    spec = OrderSpec(side, amount, *tokens, expire_time=expire_time, type=type)
    # Like the server's: the same for the same content.
    fingerprint = sha256(repr(spec).encode()).digest()
    return NewOrder(
        make_order_id(1_700_000_000_000 + number, number * 0x9E3779B97F4A7C15), spec, request_id, fingerprint
    )


def signed(order_id: UUID, attempt: int = 1) -> Signed:
    """A transaction with a hash of its own."""
    return Signed(Attempt(attempt, f"{order_id.hex}{attempt:04}", order_id.bytes, 1000))


def path_to(status: OrderStatus, order_id: UUID) -> Sequence[Fact]:
    """What happens to an order on its way to a status."""
    to_submitted: list[Fact] = [Claimed(), Routed(decision()), signed(order_id)]
    paths: dict[OrderStatus, list[Fact]] = {
        OrderStatus.PENDING: [],
        OrderStatus.ROUTING: to_submitted[:1],
        OrderStatus.BUILDING: to_submitted[:2],
        OrderStatus.SUBMITTED: to_submitted,
        OrderStatus.CONFIRMED: [*to_submitted, Landed(94_786_730, 10_000_000)],
        OrderStatus.FAILED: [NotBuilt(FailureReason.INSUFFICIENT_FUNDS, "the wallet is empty")],
        OrderStatus.CANCELLED: [Cancelled()],
        OrderStatus.EXPIRED: [TimedOut()],
    }
    return paths[status]


def transitions(order: Order, *facts: Fact, random: float = 0.0) -> list[Transition]:
    """The facts one after the other, as the moves that they make."""
    moves = []
    for fact in facts:
        move = apply(order, fact, RetryPolicy(), random)
        moves.append(move)
        order = move.order
    return moves


async def advance(store: Store, order: Order, *facts: Fact) -> Order:
    """Store each fact's transition, one statement each."""
    for transition in transitions(order, *facts):
        moved = await store.advance([transition])
        assert moved is not None
        order = moved
    return order


async def stored(store: Store, status: OrderStatus = OrderStatus.PENDING, **asked: object) -> Order:
    """A new order that has been brought to a status."""
    order = (await store.submit(new_order(**asked))).order  # type: ignore[arg-type]
    return await advance(store, order, *path_to(status, order.order_id))


async def exists(store: Store, order_id: UUID) -> Order:
    """The order as the record has it."""
    order = await store.get(order_id)
    assert order is not None
    return order


async def decisions_of(store: Store, order_id: UUID) -> Sequence[RoutingDecision]:
    """Every routing decision of the order on record, oldest first."""
    details = await store.details(order_id)
    assert details is not None
    assert details.order == await store.get(order_id)
    return details.decisions
