"""The store: every SQL statement is run here, and many orders travel in each.

Callers hand in one order at a time and await its result; the edges coalesce. Nothing here decides:
transitions come from engine.domain.lifecycle and are written on the condition that the order still stands at
the sequence they were decided from.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from operator import itemgetter
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import psycopg

from engine.coalesce import Coalescer
from engine.domain.errors import OrderNotReadable, OutcomeUnknown, RequestIdReused, StoreUnavailable
from engine.domain.frozen import replace
from engine.domain.lifecycle import CLOSED, Transition
from engine.domain.order import Order, OrderSpec, OrderStatus, RoutingDecision, Side, WatchedEvent
from engine.domain.order_types import ORDER_TYPES, TriggerKind
from engine.domain.tokens import Token
from engine.settings import Settings
from engine.storage.connection import ByteaArray, Connection, Int8Array, JsonArray, UuidArray
from engine.storage.convert import (
    decimals_to_row,
    decision_from_text,
    decision_to_json,
    event_from_row,
    order_from_row,
    route_from_text,
    side_from_text,
    terms_to_text,
    token_from_row,
    uuid_ceiling,
)
from engine.storage.rows import Rows, readable

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOCK_CLASS: Final = 0x6F726472  # "ordr": the first half of a worker's advisory lock
_MAX_BATCH: Final = 256
MOST_EVENTS: Final = 100
"""Of one order that are read at a time."""
MOST_DECISIONS: Final = 500
"""Of one order that are told of, as the contract says: one that waits for its price may be tried again for
days, and what each try takes, 1 to 5 kB, has to fit a message."""
_INTERVAL_SECONDS: Final = 0.003
"""Between two writes over one edge: a statement costs as much as ten of the orders in it. At 1 ms the slowest
answers come a tenth sooner at 100 orders/s, and an order costs a fortieth more where many come."""
SUSPECT_INTERRUPTIONS: Final = 3
"""An order whose workers ended so often in a row is executed apart from all others: any may be why."""
_ANY_INTERRUPTIONS: Final = 1_000_000

_NOT_READABLE_SECONDS: Final = 5.0
"""How long an order that was claimed and cannot be read is left to others."""

logger = logging.getLogger(__name__)


def _read_queries() -> dict[str, str]:
    text = (resources.files("engine.storage") / "queries.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], (query.strip() for query in parts[1::2]), strict=True))


QUERIES: Final = _read_queries()
"""The text of queries.sql by name."""


@dataclass(frozen=True, slots=True)
class NewOrder:
    """An order that is about to be stored."""

    order_id: UUID
    spec: OrderSpec
    request_id: str | None
    """None: the client wants no idempotency."""
    fingerprint: bytes
    """SHA-256 of what was asked."""


@dataclass(frozen=True, slots=True)
class Submitted:
    order: Order
    deduplicated: bool
    """True if the request_id was known and nothing new was stored."""


@dataclass(frozen=True, slots=True)
class OrderDetails:
    order: Order
    decisions: Sequence[RoutingDecision]
    """The latest MOST_DECISIONS, oldest first."""


@dataclass(frozen=True, slots=True)
class Position:
    sequence: int
    """Of its latest event."""
    closed: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """Orders that are open and do not rest, whether or not a worker has them."""

    count: int
    oldest_due_seconds: float
    """For how long the oldest has been due: since when its attempt could begin. 0: none is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the record is kept."""

    recorded: str | None
    """In which database it says it is; None: it does not say yet."""
    here: str
    """In which it is."""
    last_kept: datetime
    """What was recorded before then is on record."""
    now: datetime
    """By the same clock."""
    has_open_orders: bool
    wallets: tuple[str, ...]
    """Base58 addresses that orders were signed for with."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is on record of a transaction and of the order that it names."""

    is_open: bool | None
    """Whether the order is; None: there is no such order."""
    on_record: bool
    """The transaction is."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An order that this worker holds now."""

    order: Order
    started: bool
    """The claim made it ROUTING. A PENDING order that it did not start has expired."""
    interruptions: int
    """How many workers ended while executing it, one after the other, since it last moved on."""

    @property
    def is_suspect(self) -> bool:
        """Whether it is to be executed apart from all others."""
        return self.interruptions >= SUSPECT_INTERRUPTIONS


@dataclass(frozen=True, slots=True)
class Lead:
    """This worker's turn to follow a kind of trigger."""

    orders_wait: bool
    """Whether any orders wait for it."""


@dataclass(frozen=True, slots=True)
class RestingGroup:
    """Orders that rest, of one pair, side and size: the whole part of the amount's binary logarithm."""

    input_token: Token
    output_token: Token
    side: Side
    size: int
    lowest_level: float
    """Trigger.level of the first of them to fire."""

    @property
    def least_amount(self) -> int:
        """The least amount that an order of this size has, in base units."""
        return 1 << self.size


Move = Sequence[Transition]
"""One or more transitions of one order that follow from each other; stored together or not at all."""


class Store:
    """Orders in PostgreSQL. An async context manager; connects when first used.

    An order that a newer version wrote and this one cannot read fails nobody but who asks for it.

    Any method may raise StoreUnavailable (nothing happened, ask again later); writes may raise
    OutcomeUnknown (read the order to learn what happened).
    """

    def __init__(
        self, settings: Settings, observe: Callable[[str], Callable[[int], None]] | None = None
    ) -> None:
        """`observe(edge)` returns what is told the size of each of that edge's batches."""
        self._connections = {
            edge: Connection(settings.database, edge)
            for edge in (
                "submit",
                "read",
                "watch",
                "list",
                "claim",
                "advance",
                "sweep",
                "lease",
                *TriggerKind,
            )
        }

        def sizes(edge: str) -> Callable[[int], None] | None:
            return observe(edge) if observe is not None else None

        self.submit: Final = Coalescer(
            _contained(self._submit),
            max_batch=_MAX_BATCH,
            interval_seconds=_INTERVAL_SECONDS,
            observe=sizes("submit"),
        )
        """NewOrder -> Submitted. Raises RequestIdReused."""
        self.get: Final[Coalescer[UUID, Order | None]] = Coalescer(
            self._get, max_batch=_MAX_BATCH, observe=sizes("get")
        )
        """order_id -> Order | None. Raises OrderNotReadable."""
        self.details: Final[Coalescer[UUID, OrderDetails | None]] = Coalescer(
            self._details, max_batch=_MAX_BATCH, observe=sizes("details")
        )
        """order_id -> OrderDetails | None. Raises OrderNotReadable."""
        self.events_after: Final[Coalescer[tuple[UUID, int], Sequence[WatchedEvent]]] = Coalescer(
            self._events_after, max_batch=_MAX_BATCH, observe=sizes("events")
        )
        """(order_id, after_sequence) -> the events after it, in sequence. Raises OrderNotReadable."""
        self.position: Final = Coalescer(self._position, max_batch=_MAX_BATCH)
        """order_id -> Position | None: where it stands, None if there is no such order."""
        self.claim: Final = Coalescer(
            self._claim, max_batch=_MAX_BATCH, interval_seconds=_INTERVAL_SECONDS, observe=sizes("claim")
        )
        """(order_id, lease_owner) -> Claim | None: None if it is not due or another has it.

        One that SUSPECT_INTERRUPTIONS workers did not survive is not held by this: see `claim_apart`.
        """
        self.advance: Final = Coalescer(
            _contained(self._advance),
            max_batch=_MAX_BATCH,
            interval_seconds=_INTERVAL_SECONDS,
            observe=sizes("advance"),
        )
        """Move -> Order | None: the order after it, None if it was superseded and nothing is stored.

        Its update_time is the create_time of the move's events.
        """
        self.take_monitor: Final = Coalescer(self._take_monitors)
        """(kind, lease_owner, lease_seconds) -> Lead | None: follow what this kind of trigger waits for, or
        go on with it; None while another worker does."""
        self.postpone: Final = Coalescer(self._postpone, max_batch=_MAX_BATCH)
        """(order_id, lease_owner, delay_seconds) -> None: put down for a while, unchanged."""
        self._rows = Rows()
        self._breaks_before_lease = 0
        self.last_opened: tuple[UUID, str] | None = None
        """The order and the hash of the last transaction that was recorded here."""
        # Until the first renewal answers, the host's clock stands in.
        self._clock = (datetime.now(UTC), time.monotonic())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Reads are not waited for: their callers are gone.
        await self.drain()
        for connection in self._connections.values():
            await connection.close()

    async def drain(self) -> None:
        """Return once all writes that were handed in are answered."""
        for edge in (self.submit, self.claim, self.advance, self.take_monitor, self.postpone):
            await edge.drain()

    # ---- Submitting and reading --------------------------------------------------------------

    async def _submit(self, orders: list[NewOrder]) -> Sequence[Submitted | Exception]:
        rows = [
            (
                order.order_id,
                order.request_id,
                order.fingerprint,
                order.spec.type.name,
                order.spec.side.value,
                str(order.spec.amount),
                order.spec.input_token.mint,
                order.spec.output_token.mint,
                order.spec.slippage_bps,
                order.spec.expire_time,
                terms_to_text(order.spec),
                decimals_to_row(order.spec.input_token),
                decimals_to_row(order.spec.output_token),
                *_trigger_columns(order.spec),
            )
            for order in orders
        ]
        try:
            stored = dict(await self._write("submit", "submit_orders", {"orders": rows}))
        except OutcomeUnknown as unknown:
            # The connection broke around the COMMIT. What the record holds, happened.
            stored = {
                # What a newer worker has brought to where it cannot be read is stored all the same.
                order.order_id: order.create_time if isinstance(order, Order) else None
                for order in await self._read_orders("submit", [order.order_id for order in orders])
            }
            if not stored:
                raise StoreUnavailable("the order may not be stored: send it again") from unknown
        replays = await self.replays([order for order in orders if order.order_id not in stored])
        results: list[Submitted | Exception] = []
        for order in orders:
            if order.order_id in stored:
                moment = stored[order.order_id]
                fresh = Order(order.order_id, order.spec, create_time=moment, update_time=moment)
                results.append(Submitted(fresh, deduplicated=False))
            else:
                lost = StoreUnavailable("the order was not stored: send it again")
                results.append(replays.get(order.order_id, lost))
        return results

    async def replays(self, orders: Sequence[NewOrder]) -> dict[UUID, Submitted | Exception]:
        """Return, by order_id, those whose request_id is taken: the order it names, or RequestIdReused."""
        if not any(order.request_id for order in orders):
            return {}
        wanted = [order.request_id for order in orders if order.request_id is not None]
        rows = await self._read("submit", "orders_by_request_id", {"request_id": wanted})
        known = {request_id: (order_id, fingerprint) for request_id, order_id, fingerprint in rows}
        same = {
            order.order_id: known[order.request_id][0]
            for order in orders
            if order.request_id in known and known[order.request_id][1] == order.fingerprint
        }
        found = await self._read_orders("submit", list(set(same.values())))
        standing = {order.order_id: order for order in found}
        results: dict[UUID, Submitted | Exception] = {}
        for order in orders:
            if order.order_id in same:
                found_order = standing[same[order.order_id]]
                # Nothing is stored anew for one that cannot be read: it is told when it can be.
                results[order.order_id] = (
                    Submitted(found_order, deduplicated=True)
                    if isinstance(found_order, Order)
                    else found_order
                )
            elif order.request_id in known:
                results[order.order_id] = RequestIdReused(str(order.request_id))
        return results

    async def _get(self, order_ids: list[UUID]) -> Sequence[Order | OrderNotReadable | None]:
        # It exists: who asks for it is told why it cannot be shown, and the others are answered.
        found = {order.order_id: order for order in await self._read_orders("read", order_ids)}
        return [found.get(order_id) for order_id in order_ids]

    async def _details(self, order_ids: list[UUID]) -> Sequence[OrderDetails | OrderNotReadable | None]:
        values = {"order_id": list(set(order_ids)), "decisions": MOST_DECISIONS}
        rows = await self._read("read", "get_orders", values)
        details = self._rows.read(rows, _details_from_row)
        found = {row[0]: each for row, each in zip(rows, details, strict=True)}
        return [found.get(order_id) for order_id in order_ids]

    async def _read_orders(self, edge: str, order_ids: Iterable[UUID]) -> list[Order | OrderNotReadable]:
        values = {"order_id": list(set(order_ids)), "decisions": 0}
        rows = await self._read(edge, "get_orders", values)
        return self._rows.read(rows, lambda row: order_from_row(row[:-1]))

    async def list_orders(
        self,
        limit: int,
        before: UUID | None = None,
        statuses: Iterable[OrderStatus] = (),
        types: Iterable[str] = (),
    ) -> list[Order]:
        """Return up to `limit` orders older than `before`, newest first, of those statuses and types.

        None of either: all of them.
        """
        orders: list[Order] = []
        before = before or uuid_ceiling()
        wanted, asked = set(statuses) or set(OrderStatus), set(types) or set(ORDER_TYPES)
        while True:
            order_ids = await self._list_order_ids(limit, before, wanted, asked)
            orders += readable(await self._read_orders("list", order_ids))
            # A page that lacks those that cannot be read would look like the last one: it is filled up.
            if len(order_ids) < limit or len(orders) >= limit:
                return sorted(orders, key=lambda order: order.order_id, reverse=True)[:limit]
            before = order_ids[-1]

    async def _list_order_ids(
        self, limit: int, before: UUID, wanted: set[OrderStatus], asked: set[str]
    ) -> list[UUID]:
        """Return the orders of a page, newest first, read or not."""
        page: dict[str, Any] = {"before": before, "limit": limit}
        order_ids: set[UUID] = set()

        async def add(query: str, **values: Any) -> None:
            order_ids.update([row[0] for row in await self._read("list", query, page | values)])

        if len(wanted) == len(OrderStatus) and not set(ORDER_TYPES) - asked:
            await add("list_orders")
        else:
            closed = [status.value for status in OrderStatus if status in wanted & CLOSED]
            still_open = [status.value for status in OrderStatus if status in wanted - CLOSED]
            if closed:
                await add("list_closed_orders", status=closed, type=list(asked))
            if still_open:
                await add("list_open_orders", status=still_open, type=list(asked))
            if OrderStatus.PENDING in wanted:
                await add("list_resting_orders", type=list(asked))
        return sorted(order_ids, reverse=True)[:limit]

    async def backlog(self, limit: int) -> Backlog:
        """Return how many orders are open and do not rest, counting no further than `limit`."""
        ((count, seconds),) = await self._read("list", "backlog", {"limit": limit})
        return Backlog(count, max(0.0, seconds or 0.0))

    async def resting_orders_count(self) -> dict[str, int]:
        """Return how many orders wait for their trigger, by type. Reads an entry of an index for each."""
        return dict(await self._read("list", "resting_orders_count", {}))

    # ---- Watching -----------------------------------------------------------------------------

    async def _events_after(
        self, cursors: list[tuple[UUID, int]]
    ) -> Sequence[Sequence[WatchedEvent] | OrderNotReadable]:
        values = {"watched": list(set(cursors)), "limit": MOST_EVENTS}
        rows = await self._read("watch", "events_after", values)
        events: dict[UUID, dict[int, WatchedEvent | OrderNotReadable]] = {}
        for row, watched in zip(rows, self._rows.read(rows, _watched_from_row), strict=True):
            events.setdefault(row[0], {})[row[1]] = watched
        results = []
        for order_id, after_sequence in cursors:
            found = events.get(order_id, {})
            news: list[WatchedEvent | OrderNotReadable] = []
            # Not all that were found: some may be those after another watcher's cursor, behind a gap.
            while (each := found.get(after_sequence + len(news) + 1)) is not None:
                news.append(each)
            results.append(_up_to_not_readable(news))
        return results

    async def _position(self, order_ids: list[UUID]) -> Sequence[Position | None]:
        rows = await self._read("watch", "order_positions", {"order_id": order_ids})
        found = {order_id: Position(sequence, closed) for order_id, sequence, closed in rows}
        return [found.get(order_id) for order_id in order_ids]

    async def moved_orders(self, cursors: Mapping[bytes, int]) -> list[bytes]:
        """Return which of the orders have events after their cursor. Each is its id's 16 bytes."""
        return await self._keys_of("moved_orders", cursors)

    async def lacking_orders(self, cursors: Mapping[bytes, int]) -> list[bytes]:
        """Return which of the orders have no event at their cursor: the record lacks what it once had."""
        return await self._keys_of("lacking_orders", cursors)

    async def _keys_of(self, query: str, cursors: Mapping[bytes, int]) -> list[bytes]:
        values = {
            "order_id": UuidArray(cursors),
            "after_sequence": Int8Array([cursor.to_bytes(8) for cursor in cursors.values()]),
        }
        return [order_id.bytes for (order_id,) in await self._read("watch", query, values)]

    # ---- Executing ----------------------------------------------------------------------------

    async def claim_apart(self, order_id: UUID, lease_owner: int) -> Claim | None:
        """Claim an order however many workers did not survive it; None if it is not due or another has it."""
        (claim,) = await self._claim([(order_id, lease_owner)], _ANY_INTERRUPTIONS)
        return claim

    async def _claim(
        self, claims: list[tuple[UUID, int]], interruptions: int = SUSPECT_INTERRUPTIONS
    ) -> Sequence[Claim | None]:
        lease_owner = claims[-1][1]
        # A claim made under a number this process has lost meanwhile takes nothing.
        order_ids = [order_id for order_id, owner in claims if owner == lease_owner]
        rows = await self._write(
            "claim",
            "claim_orders",
            {
                "order_id": order_ids,
                "lease_owner": lease_owner,
                "type": list(ORDER_TYPES),
                "interruptions": interruptions,
            },
        )
        claimed: dict[UUID, Claim] = {}
        not_readable = []
        for row, claim in zip(rows, self._rows.read(rows, _claim_from_row), strict=True):
            if isinstance(claim, OrderNotReadable):
                not_readable.append((row[0], lease_owner, _NOT_READABLE_SECONDS))
            else:
                claimed[row[0]] = claim
        if not_readable:
            await self._put_down(not_readable)
        return [claimed.pop(order_id, None) if owner == lease_owner else None for order_id, owner in claims]

    async def _put_down(self, claims: list[tuple[UUID, int, float]]) -> None:
        """Leave orders that are claimed and cannot be executed here to others, who may know more."""
        try:
            await self._postpone(claims)
        except (StoreUnavailable, OutcomeUnknown) as error:
            # They are among leased_orders, which nobody executes here: they are claimed and put down again.
            logger.warning("orders that cannot be read stay claimed for now: %s", error)

    async def _advance(self, moves: list[Move]) -> Sequence[Order | None]:
        # Of two moves of one order only the first can be right; the second would break the statement.
        first: dict[UUID, Move] = {}
        for move in moves:
            first.setdefault(move[0].before.order_id, move)
        # Everybody locks orders in the same order, or two statements could wait for each other.
        in_order = [first[order_id] for order_id in sorted(first)]
        rows = await self._write("advance", "advance_orders", _advance_values(in_order))
        moved = dict(rows)
        results: list[Order | None] = []
        for move in moves:
            order_id = move[0].before.order_id
            is_stored = order_id in moved and first[order_id] is move
            if is_stored and (attempt := move[-1].opened) is not None:
                self.last_opened = (order_id, attempt.tx_hash)
            results.append(replace(move[-1].order, update_time=moved[order_id]) if is_stored else None)
        return results

    async def _postpone(self, items: list[tuple[UUID, int, float]]) -> Sequence[None]:
        groups: dict[tuple[int, float], list[UUID]] = {}
        for order_id, lease_owner, delay_seconds in items:
            groups.setdefault((lease_owner, delay_seconds), []).append(order_id)
        for (lease_owner, delay_seconds), order_ids in groups.items():
            await self._write(
                "sweep",
                "postpone_orders",
                {"order_id": order_ids, "lease_owner": lease_owner, "delay_seconds": delay_seconds},
            )
        return [None] * len(items)

    # ---- Waiting for triggers -----------------------------------------------------------------

    async def _take_monitors(self, asked: list[tuple[TriggerKind, int, float]]) -> Sequence[Lead | None]:
        kinds_of_lease: dict[tuple[int, float], list[str]] = {}
        for kind, lease_owner, lease_seconds in asked:
            kinds_of_lease.setdefault((lease_owner, lease_seconds), []).append(kind.value)
        leads: dict[tuple[str, int], Lead] = {}
        for (lease_owner, lease_seconds), kinds in kinds_of_lease.items():
            values = {"trigger_kind": kinds, "lease_owner": lease_owner, "lease_seconds": lease_seconds}
            for taken, orders_wait in await self._write("sweep", "take_monitors", values):
                leads[taken, lease_owner] = Lead(orders_wait)
        return [leads.get((kind.value, lease_owner)) for kind, lease_owner, _ in asked]

    async def leave_monitor(self, kind: TriggerKind, lease_owner: int) -> None:
        """Leave it to the other workers at once."""
        values = {"trigger_kind": kind.value, "lease_owner": lease_owner}
        await self._write(kind.value, "leave_monitor", values)

    async def resting_groups(self, kind: TriggerKind) -> list[RestingGroup]:
        """Return every group that has orders which wait for this kind of trigger.

        Costs as much as there are groups, however many orders there are.
        """
        rows = await self._read(kind.value, "resting_groups", {"trigger_kind": kind.value})
        # What is not known here cannot be followed: it waits for a newer version's monitor.
        return readable(self._rows.read(rows, _group_from_row))

    async def resting_orders(
        self,
        kind: TriggerKind,
        group: RestingGroup,
        levels: Sequence[float],
        limit: int,
        after: Order | None = None,
    ) -> list[Order]:
        """Return up to `limit` orders of the group that `levels` reach, lowest level first.

        The group's amounts are cut into as many equal parts as there are levels, one for each. `after` is the
        last one of the page before; among equal levels older ones come first.
        """
        after_trigger = None if after is None else after.spec.type.trigger(after.spec)
        values: dict[str, Any] = {
            "trigger_kind": kind.value,
            "input_mint": group.input_token.mint,
            "output_mint": group.output_token.mint,
            "side": group.side.value,
            "trigger_size": group.size,
            "trigger_level": max(levels),
            "part_level": list(levels),
            "least_amount": float(group.least_amount),
            "after_level": -1.0 if after_trigger is None else after_trigger.level,
            "after_order_id": _FIRST if after is None else after.order_id,
            "limit": limit,
        }
        orders: list[Order] = []
        while True:
            rows = await self._read(kind.value, "resting_orders", values)
            orders += readable(self._rows.read(rows, _resting_from_row))
            # A page that lacks those that cannot be read would look like the last one, and what is behind
            # them would not fire: it is filled up.
            if len(rows) < limit or len(orders) >= limit:
                return orders[:limit]
            values |= {"after_order_id": rows[-1][0], "after_level": rows[-1][-1]}

    async def fire(
        self, kind: TriggerKind, orders: Sequence[Order], lease_owners: Sequence[int | None] = ()
    ) -> list[UUID]:
        """Make orders whose triggers hold due; return those that still waited as they stand here.

        `lease_owners` says who holds each from then on, None or nothing: nobody.
        """
        owners = lease_owners or [None] * len(orders)
        # In the order of their ids, as all that is locked.
        fired = sorted(
            [(order.order_id, order.sequence, owner) for order, owner in zip(orders, owners, strict=True)],
            key=itemgetter(0),
        )
        rows = await self._write(kind.value, "fire_orders", {"fired": fired})
        return [row[0] for row in rows]

    # ---- Leases -------------------------------------------------------------------------------

    async def due_orders(self, limit: int, hint_seconds: float, *, expired_only: bool = False) -> list[UUID]:
        """Return orders that are due and nobody's that is alive, then those that rested until they expired.

        New ones come after `hint_seconds`; with `expired_only` come none but those that rested.
        """
        values = {
            "limit": limit,
            # A few places are for what expired, however many others are due.
            "due_limit": 0 if expired_only else limit - limit // 8,
            "hint_seconds": hint_seconds,
            # What cannot be claimed here must not take the place of what can.
            "type": list(ORDER_TYPES),
        }
        rows = await self._read("sweep", "due_orders", values)
        return [row[0] for row in rows]

    async def leased_orders(self, lease_owner: int) -> list[UUID]:
        """Return the open orders that the record says this worker holds."""
        rows = await self._read("sweep", "leased_orders", {"lease_owner": lease_owner})
        return [row[0] for row in rows]

    async def hasten_orders(self, most_seconds: float) -> int:
        """Make those orders due that are put off for longer than that; return how many those were."""
        return len(await self._write("sweep", "hasten_orders", {"most_seconds": most_seconds}))

    async def start_lease_owner(self, lease_seconds: float) -> int:
        """Register a worker process and return its number; its leases live while the connection does."""
        rows = await self._write(
            "lease", "start_lease_owner", {"lease_seconds": lease_seconds, "lock_class": _LOCK_CLASS}
        )
        self._breaks_before_lease = self.break_count
        return int(rows[0][0])

    async def renew_lease(self, lease_owner: int, lease_seconds: float) -> bool:
        """Keep all of a worker's leases; False if the worker has been declared dead meanwhile."""
        rows = await self._write(
            "lease", "renew_lease", {"lease_owner": lease_owner, "lease_seconds": lease_seconds}
        )
        if rows:
            self._clock = (rows[0][0], time.monotonic())
        return bool(rows)

    async def end_lease_owner(self, lease_owner: int) -> None:
        """Free whatever the worker still holds, and its advisory lock."""
        await self._write("lease", "end_lease_owner", {"lease_owner": lease_owner, "lock_class": _LOCK_CLASS})
        await self._connections["lease"].close()

    @property
    def is_same_database(self) -> bool:
        """Whether it can only be the database that gave the last lease: no connection broke since."""
        return self.break_count == self._breaks_before_lease

    @property
    def break_count(self) -> int:
        """How many connections have broken so far. The next ones may be to another database."""
        return sum([connection.break_count for connection in self._connections.values()])

    async def free_dead_owners(self, lease_owner: int) -> int:
        """Free the leases of workers that are gone; return how many workers that were."""
        rows = await self._write(
            "sweep", "free_dead_owners", {"lease_owner": lease_owner, "lock_class": _LOCK_CLASS}
        )
        return len(rows)

    # ---- Where the record is kept -------------------------------------------------------------

    async def place(self) -> Place:
        """Return in which database the record is, and in which it was."""
        ((recorded, last_kept, now, has_open_orders, wallets),) = await self._read("sweep", "place", {})
        try:
            ((here,),) = await self._read("sweep", "place_here", {})
        except psycopg.Error as error:
            # Some who run PostgreSQL for others keep it to themselves.
            logger.debug("whether the database is another one cannot be told: %s", error)
            here = recorded or ""
        return Place(recorded, here, last_kept, now, has_open_orders, tuple(wallets))

    async def set_place(self, here: str, wallet: str) -> None:
        """Note that the record is kept here from now on, and that orders are signed for with this wallet."""
        await self._write("sweep", "set_place", {"place": here, "wallet": wallet})

    async def known_transactions(self, named: Sequence[tuple[UUID, str]]) -> list[Known]:
        """Return, for transactions and the orders that they name, what is on record of both; in order."""
        order_ids, tx_hashes = [order_id for order_id, _ in named], [tx_hash for _, tx_hash in named]
        rows = await self._read("sweep", "known_transactions", {"order_id": order_ids, "tx_hash": tx_hashes})
        return [Known(*row) for row in rows]

    # ---- The database's clock -----------------------------------------------------------------

    def now(self) -> datetime:
        """Return the database's time, the only clock that decides expiry; as of the last lease renewal."""
        database_time, read_at = self._clock
        return database_time + timedelta(seconds=time.monotonic() - read_at)

    # ---- Statements ---------------------------------------------------------------------------

    async def _read(self, edge: str, query: str, values: dict[str, Any]) -> list[Any]:
        return await self._connections[edge].run(QUERIES[query], values, reads=True)

    async def _write(self, edge: str, query: str, values: dict[str, Any]) -> list[Any]:
        return await self._connections[edge].run(QUERIES[query], values)


def _details_from_row(row: Sequence[Any]) -> OrderDetails:
    return OrderDetails(order_from_row(row[:-1]), [decision_from_text(text) for text in row[-1]])


def _claim_from_row(row: Sequence[Any]) -> Claim:
    *columns_of_order, started, interruptions = row
    return Claim(order_from_row(columns_of_order), started, interruptions)


def _resting_from_row(row: Sequence[Any]) -> Order:
    """The level it rests at, the last column, is the cursor's alone."""
    return order_from_row(row[:-1])


def _group_from_row(row: Sequence[Any]) -> RestingGroup:
    _, input_mint, output_mint, side, size, lowest_level, input_decimals, output_decimals = row
    return RestingGroup(
        token_from_row(input_mint, input_decimals),
        token_from_row(output_mint, output_decimals),
        side_from_text(side),
        size,
        lowest_level,
    )


def _watched_from_row(row: Sequence[Any]) -> WatchedEvent:
    *columns_of_event, input_mint, input_decimals, output_mint, output_decimals, side, route = row
    return WatchedEvent(
        event_from_row(columns_of_event),
        token_from_row(input_mint, input_decimals),
        token_from_row(output_mint, output_decimals),
        side_from_text(side),
        None if route is None else route_from_text(route),
    )


def _up_to_not_readable(
    news: list[WatchedEvent | OrderNotReadable],
) -> Sequence[WatchedEvent] | OrderNotReadable:
    """Return the events before the first that cannot be read, for none may be left out; at it, the error."""
    events: list[WatchedEvent] = []
    for each in news:
        if isinstance(each, OrderNotReadable):
            return events or each
        events.append(each)
    return events


def _contained(
    perform: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
) -> Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]]:
    """Return `perform` such that an item the database refuses for good fails alone.

    One statement stores all of a batch or nothing, so after a refusal the items can be asked one by one.
    """

    async def perform_contained(items: list[Item]) -> Sequence[Result | Exception]:
        try:
            return await perform(items)
        except psycopg.Error as refusal:
            if len(items) == 1:
                return [refusal]
        return [result for item in items for result in await perform_contained([item])]

    return perform_contained


def _advance_values(moves: Iterable[Move]) -> dict[str, list[Any]]:
    """Return moves as the rows of advance_orders."""
    positions, events, opened, closed = [], [], [], []
    decisions, raw_transactions = JsonArray(), ByteaArray()
    for move in moves:
        before, last = move[0].before, move[-1]
        after = last.order
        positions.append(
            (
                after.order_id,
                before.sequence,
                after.sequence,
                after.status.value,
                after.attempt,
                last.lets_go,
                last.delay_seconds,
            )
        )
        for transition in move:
            event = transition.event
            events.append(
                (
                    event.order_id,
                    event.sequence,
                    transition.before.status.value,
                    event.status.value,
                    event.attempt,
                    event.venue,
                    None if event.input_amount is None else str(event.input_amount),
                    None if event.output_amount is None else str(event.output_amount),
                    event.tx_hash,
                    None if event.failure_reason is None else event.failure_reason.value,
                    event.failure_message,
                )
            )
            decisions.append(decision_to_json(event.decision))
            if (attempt := transition.opened) is not None:
                opened.append(
                    (
                        event.order_id,
                        attempt.attempt,
                        attempt.tx_hash,
                        None,
                        attempt.last_valid_block_height,
                    )
                )
                raw_transactions.append(attempt.raw_transaction)
            if transition.closed is not None:
                # The attempt that ended is the one the order stood at before this transition.
                closed.append((event.order_id, transition.before.attempt, transition.closed.value))
    return {
        "moves": positions,
        "events": events,
        "decision": decisions,
        "opened": opened,
        "raw_transaction": raw_transactions,
        "closed": closed,
    }


def _trigger_columns(spec: OrderSpec) -> tuple[str | None, int | None, float | None]:
    trigger = spec.type.trigger(spec)
    if trigger is None:
        return None, None, None
    return trigger.kind.value, spec.amount.bit_length() - 1, trigger.level


_FIRST: Final = UUID(int=0)
