"""The nouns: an order, what was asked, what happened, what was offered.

All frozen: a change is a new value. Amounts are integers in base units; an amount's token is the
spec's input_token or output_token. Times are aware datetimes in UTC.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from engine.domain.amounts import format_price
from engine.domain.frozen import frozen, replace
from engine.domain.order_types import MARKET, OrderType
from engine.domain.pools.pool import FeeSide
from engine.domain.tokens import Token


class Side(StrEnum):
    BUY = "buy"
    """Exact output: receives exactly `amount` of output_token."""
    SELL = "sell"
    """Exact input: spends exactly `amount` of input_token."""


class OrderStatus(StrEnum):
    """Where an order is in its life. lifecycle.py holds the table of moves between them."""

    PENDING = "pending"
    """Accepted; waits for a worker or, perhaps again, for its trigger. A worker's claim moves it on."""
    ROUTING = "routing"
    """Comparing venues. The worker that holds the lease moves it on."""
    BUILDING = "building"
    """Route chosen; building and signing. The worker that holds the lease moves it on."""
    SUBMITTED = "submitted"
    """Signed transaction recorded; it may be on the network. Only proof from the chain moves it on."""
    CONFIRMED = "confirmed"
    """Closed: the swap is on chain."""
    FAILED = "failed"
    """Closed: nothing was swapped and nothing can be."""
    CANCELLED = "cancelled"
    """Closed on the client's request, before broadcast."""
    EXPIRED = "expired"
    """Closed by expire_time, before broadcast."""


class FailureReason(StrEnum):
    """Why an attempt did not succeed; on a closed order, why it failed."""

    NO_ROUTE = "no_route"
    SLIPPAGE_EXCEEDED = "slippage_exceeded"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    VENUE_REJECTED = "venue_rejected"
    TRANSACTION_REVERTED = "transaction_reverted"
    TRANSACTION_EXPIRED = "transaction_expired"
    INTERNAL = "internal"


class AttemptOutcome(StrEnum):
    """How a recorded transaction ended. None, while it may still land."""

    LANDED = "landed"
    REVERTED = "reverted"
    EXPIRED = "expired"


@frozen
class OrderSpec:
    """What the client asked for. Never changes."""

    side: Side
    amount: int
    """Of input_token if SELL, of output_token if BUY."""
    input_token: Token
    output_token: Token
    slippage_bps: int | None = None
    """None: the server's default, whatever it is when the order is built."""
    expire_time: datetime | None = None
    """None: never."""
    type: OrderType = MARKET

    @property
    def sells(self) -> bool:
        """Whether `amount` is of input_token, exactly what is spent."""
        return self.side is Side.SELL

    @property
    def waits(self) -> bool:
        """Whether it rests until its type's trigger fires."""
        return self.type.trigger(self) is not None

    def slippage_bps_or(self, default_bps: int) -> int:
        """Return the slippage that the order allows, which is `default_bps` where it names none."""
        return default_bps if self.slippage_bps is None else self.slippage_bps

    @property
    def amount_token(self) -> Token:
        return self.input_token if self.side is Side.SELL else self.output_token


class Quote(NamedTuple):
    """What one pool offers for the whole amount. A tuple, as every pool makes one for every order."""

    venue: str
    """As users read it: "Raydium", "Meteora"."""
    kind: str
    """The venue's program: "raydium_cpmm"."""
    pool: str
    """Base58 address."""
    input_amount: int | None = None
    """None if refused."""
    output_amount: int | None = None
    """None if refused."""
    fee_ppm: int = 0
    """Hundredths of a basis point of the leg the fee is taken from."""
    price_impact_ppm: int = 0
    refusal: str | None = None
    """Why the pool cannot fill the order; None if it can."""
    fee_amount: int = 0
    """Base units of the leg that fee_side names; part of its amount if that is the input."""
    fee_side: FeeSide = FeeSide.INPUT


@frozen
class RouteLeg:
    """One swap of a route."""

    venue: str
    kind: str
    pool: str
    input_amount: int
    output_amount: int
    threshold_amount: int | None = None
    """As the route's, of this leg alone; None in decisions from before legs had their own: the route's."""
    fee_ppm: int = 0
    price_impact_ppm: int = 0
    fee_amount: int = 0
    fee_side: FeeSide = FeeSide.INPUT


@frozen
class Route:
    """How an order is to be filled: by one leg, by several that share it, or by two hops."""

    legs: tuple[RouteLeg, ...]
    """The largest first; of two hops, the first one first."""
    input_amount: int
    """Of all legs that take input_token; quoted."""
    output_amount: int
    """Of all legs that give output_token; quoted."""
    threshold_amount: int
    """Least output (SELL) or most input (BUY) the programs will accept on chain."""
    price_impact_ppm: int = 0
    """How far the legs move their pools' prices, on average by amount; of two hops, both together."""
    gap_amount: int | None = None
    """No way to fill the order through these pools is better by more than this: base units of the output
    (SELL) or of the input (BUY). None in decisions from before it was reckoned."""
    gap_ppm: int = 0
    """The same in millionths of the best there could be (SELL), of the input (BUY), rounded up."""
    middle_token: Token | None = None
    """What the first of two hops gives and the second takes; None unless there are two."""

    @property
    def venue(self) -> str:
        return self.legs[0].venue

    def tokens_of_leg(self, at: int, input_token: Token, output_token: Token) -> tuple[Token, Token]:
        """Return what the leg at this place takes and what it gives; the tokens are the order's."""
        if self.middle_token is None:
            return input_token, output_token
        return (input_token, self.middle_token) if at == 0 else (self.middle_token, output_token)


@frozen
class RoutingDecision:
    """What every pool offered for one attempt, what was chosen, and why."""

    attempt: int
    slot: int
    """The slot whose pool accounts were quoted, after the swaps that were under way."""
    quotes: tuple[Quote, ...]
    """Best first, refusals last."""
    route: Route | None
    """None if no pool could fill the order."""
    reason: str


@frozen
class Attempt:
    """One signed transaction of an order. Recorded before it is broadcast."""

    attempt: int
    tx_hash: str
    """Base58 of the first signature: the transaction's id on the network."""
    raw_transaction: bytes
    """The signed bytes. Only these are ever sent, however often."""
    last_valid_block_height: int
    """It can land up to and including this block height."""


@frozen
class OrderEvent:
    """One transition of one order, complete in itself."""

    order_id: UUID
    sequence: int
    """1, 2, 3 ... per order, without gaps."""
    status: OrderStatus
    attempt: int
    create_time: datetime | None = None
    """The database's clock; None until it is stored."""
    venue: str | None = None
    input_amount: int | None = None
    """Quoted until CONFIRMED, then realised."""
    output_amount: int | None = None
    tx_hash: str | None = None
    failure_reason: FailureReason | None = None
    """On FAILED why; on ROUTING and on a later PENDING, why the attempt before did not succeed."""
    failure_message: str | None = None
    """The same for people; on a later PENDING also, why the order was not attempted."""
    decision: RoutingDecision | None = None
    """On the event that a routing decision led to; None on all others."""


@frozen
class WatchedEvent:
    """An event that is on record, with what it takes to write its amounts in whole tokens."""

    event: OrderEvent
    """Without its decision: every pool's quote is for those who ask for the order."""
    input_token: Token
    output_token: Token
    side: Side = Side.SELL
    route: Route | None = None
    """On BUILDING: how the order is to be filled."""


@frozen
class Order:
    """An order as it stands."""

    order_id: UUID
    spec: OrderSpec
    status: OrderStatus = OrderStatus.PENDING
    sequence: int = 1
    """Of its latest event. Every write is conditional on it."""
    attempt: int = 1
    venue: str | None = None
    input_amount: int | None = None
    output_amount: int | None = None
    tx_hash: str | None = None
    failure_reason: FailureReason | None = None
    failure_message: str | None = None
    route: Route | None = None
    """While BUILDING, and after; None before."""
    open_attempt: Attempt | None = None
    """The transaction that may still land; None if there is none."""
    create_time: datetime | None = None
    update_time: datetime | None = None
    forgiven_attempts: int = 0
    """Attempts from before it last returned to waiting: RetryPolicy's max_attempts does not count them."""


def watched(event: OrderEvent, order: Order) -> WatchedEvent:
    """Return an event as watchers are told of it; `order` is what it, or one stored with it, has left."""
    route = None
    if event.status is OrderStatus.BUILDING and event.decision is not None:
        route = event.decision.route
    told = replace(event, create_time=event.create_time or order.update_time, decision=None)
    return WatchedEvent(told, order.spec.input_token, order.spec.output_token, order.spec.side, route)


def price_of(
    input_token: Token, output_token: Token, input_amount: int | None, output_amount: int | None
) -> str | None:
    """Return output_token per input_token as decimal text; None while there are no amounts."""
    if not input_amount or output_amount is None:
        return None
    return format_price(input_amount, output_amount, input_token, output_token)
