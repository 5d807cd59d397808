"""The nouns of the order API, as a program that uses it sees them.

All frozen. Amounts and prices are decimal text in whole tokens, never floats: "1.5". What is not
(yet) known is None. Times are aware datetimes in UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final


class Side(StrEnum):
    BUY = "buy"
    """Exact output: receives exactly `amount` of output_token."""
    SELL = "sell"
    """Exact input: spends exactly `amount` of input_token."""


class OrderType(StrEnum):
    """When to execute. Until then a limit or a sniper order is PENDING, for days if need be."""

    MARKET = "market"
    """Now, at the best price."""
    LIMIT = "limit"
    """Once the whole amount is to be had at `limit_price` or better, and never worse."""
    SNIPER = "sniper"
    """As soon as there is a way to buy output_token, or the pair's pools have grown to `min_liquidity`."""
    UNKNOWN = "unknown"
    """A type newer than this client. Only read, never submitted."""


class OrderStatus(StrEnum):
    PENDING = "pending"
    """Accepted; waits for a worker or for its trigger, perhaps again."""
    ROUTING = "routing"
    """Comparing venues."""
    BUILDING = "building"
    """Venue chosen; building and signing the transaction."""
    SUBMITTED = "submitted"
    """A signed transaction is recorded and may be on the network. No longer cancellable."""
    CONFIRMED = "confirmed"
    """Closed: the swap is on chain."""
    FAILED = "failed"
    """Closed: nothing was swapped and nothing can be."""
    CANCELLED = "cancelled"
    """Closed on request, before broadcast."""
    EXPIRED = "expired"
    """Closed by expire_time, before broadcast."""
    UNKNOWN = "unknown"
    """A status newer than this client. The order is open."""

    @property
    def closed(self) -> bool:
        """Nothing follows: no further event will come."""
        return self in CLOSED


CLOSED: Final = frozenset(
    {OrderStatus.CONFIRMED, OrderStatus.FAILED, OrderStatus.CANCELLED, OrderStatus.EXPIRED}
)


class FailureReason(StrEnum):
    NO_ROUTE = "no_route"
    SLIPPAGE_EXCEEDED = "slippage_exceeded"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    VENUE_REJECTED = "venue_rejected"
    TRANSACTION_REVERTED = "transaction_reverted"
    TRANSACTION_EXPIRED = "transaction_expired"
    INTERNAL = "internal"
    UNKNOWN = "unknown"
    """A reason newer than this client."""


@dataclass(frozen=True, slots=True)
class OrderSpec:
    """What is asked for, and when: a market order unless `type` says otherwise.

    Sell 1.5 SOL now; once a SOL brings 150 USDC or more; for a new token, as soon as it is to be had:

        OrderSpec(Side.SELL, "1.5", "SOL", "USDC")
        OrderSpec(Side.SELL, "1.5", "SOL", "USDC", type=OrderType.LIMIT, limit_price="150")
        OrderSpec(Side.SELL, "1", "SOL", mint, type=OrderType.SNIPER, min_liquidity="10", max_price="0.001")
    """

    side: Side
    amount: str | int | Decimal
    """Of input_token if SELL, of output_token if BUY. A float is refused: 0.1 has no exact float."""
    input_token: str
    """Symbol ("SOL"), or the base58 address of any mint: new tokens have no symbol."""
    output_token: str
    slippage_bps: int | None = None
    """Worst acceptable move from the quoted price, in basis points. None: the server's default."""
    expire_time: datetime | None = None
    """Aware. The order expires if not broadcast by then. None: never."""
    type: OrderType = OrderType.MARKET
    limit_price: str | int | Decimal | None = None
    """LIMIT, needed: output_token per input_token, the least that an input token must bring, all fees, price
    impact and splits counted in. No float, as `amount`."""
    min_liquidity: str | int | Decimal | None = None
    """SNIPER: whole input_token that the pair's open pools must hold together. None: any route that fills the
    order will do, also one over another token."""
    max_price: str | int | Decimal | None = None
    """SNIPER: input_token per output_token, the most that an output token may cost, everything counted in.
    The reverse of `limit_price` and of every other price here: one divided by it. None: any price."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One order of `submit_many` that brings its own request_id."""

    spec: OrderSpec
    request_id: str


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it stood when it was read."""

    order_id: str
    spec: OrderSpec
    status: OrderStatus
    sequence: int
    """Of its latest event: watch from here to see only what comes next."""
    attempt: int = 1
    venue: str | None = None
    price: str | None = None
    """output_token per input_token. Quoted until CONFIRMED, then realised."""
    input_amount: str | None = None
    output_amount: str | None = None
    tx_hash: str | None = None
    failure_reason: FailureReason | None = None
    failure_message: str | None = None
    create_time: datetime | None = None
    update_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class SubmittedOrder(Order):
    deduplicated: bool = False
    """True if the request_id had been seen before and nothing new was created."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """That an order was accepted, and no more of it than that."""

    order_id: str
    status: OrderStatus
    deduplicated: bool = False
    """True if the request_id had been seen before and nothing new was created."""


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """One step of an order's life, complete in itself."""

    order_id: str
    sequence: int
    """1, 2, 3 ... per order, without gaps."""
    status: OrderStatus
    attempt: int = 1
    venue: str | None = None
    price: str | None = None
    input_amount: str | None = None
    output_amount: str | None = None
    tx_hash: str | None = None
    failure_reason: FailureReason | None = None
    """Why it FAILED; on a ROUTING event of a later attempt, why the one before did not succeed."""
    failure_message: str | None = None
    """The same for people; on a PENDING event after the first one, why the order waits again."""
    create_time: datetime | None = None
    legs: tuple[RouteLeg, ...] = ()
    """On BUILDING: those of the route that was chosen. Empty otherwise."""


@dataclass(frozen=True, slots=True)
class Quote:
    """What one pool offers for the whole amount."""

    venue: str
    kind: str
    """The venue's program: "raydium_cpmm"."""
    pool: str
    """Base58 address."""
    input_amount: str | None = None
    output_amount: str | None = None
    price: str | None = None
    fee_ppm: int = 0
    """Hundredths of a basis point of the leg the fee is taken from."""
    price_impact_ppm: int = 0
    refusal: str | None = None
    """Why the pool cannot fill it; None if it can."""
    fee_amount: str | None = None
    """In fee_token; part of the input if that is its token, already deducted from the output otherwise."""
    fee_token: str | None = None
    """Symbol."""


@dataclass(frozen=True, slots=True)
class RouteLeg:
    """One swap of a route."""

    venue: str
    kind: str
    """The venue's program: "raydium_cpmm"."""
    pool: str
    """Base58 address."""
    input_amount: str
    output_amount: str
    input_token: str
    """Symbol, as is the next: the order's, but for the middle token of two hops."""
    output_token: str
    threshold_amount: str
    """Least output (SELL) or most input (BUY) that the program accepts on chain."""
    fee_amount: str
    """In fee_token; part of the input if that is its token, already deducted from the output otherwise."""
    fee_token: str
    """Symbol."""
    fee_ppm: int = 0
    price_impact_ppm: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """How an order is filled, in one transaction: by one leg, by several that share it, or by two hops."""

    legs: tuple[RouteLeg, ...]
    """The largest first; of two hops, the first one first."""
    input_amount: str
    output_amount: str
    price: str
    threshold_amount: str
    """Least output (SELL) or most input (BUY) that the programs accept on chain."""
    price_impact_ppm: int = 0
    """How far the legs move their pools' prices, on average by amount."""
    gap_amount: str | None = None
    """Proved: no way to share the order out over these pools is better by more than this, in tokens of the
    output (SELL) or of the input (BUY). None in decisions from before it was reckoned."""
    gap_ppm: int = 0
    """The same in millionths, rounded up."""
    middle_token: str | None = None
    """Symbol of what the first of two hops gives and the second takes; None unless there are two."""


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """What every pool offered, what was chosen, and why."""

    slot: int
    """The slot whose pool accounts were quoted, after the swaps that were under way."""
    quotes: tuple[Quote, ...]
    """Best first, refusals last; of a pair up to 32."""
    reason: str
    route: Route | None = None
    """None if no pool could fill the order."""
    attempt: int | None = None
    """Which attempt of the order this was for; None for a quote without an order."""


@dataclass(frozen=True, slots=True)
class OrderDetails:
    order: Order
    routing_decisions: tuple[RoutingDecision, ...]
    """One for each attempt that was routed, the latest 500, oldest first. The last one's route is what was
    quoted."""
    realised_slippage_ppm: int | None = None
    """How much worse than quoted a CONFIRMED order was filled, in millionths; None until then."""


@dataclass(frozen=True, slots=True)
class OrderPage:
    orders: tuple[Order, ...]
    """Newest first."""
    next_page_token: str | None = None
    """None on the last page."""
