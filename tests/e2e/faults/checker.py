"""The judge of the fault tests: re-derives the engine's promises from four records, and trusts none alone.

    what clients were answered          Record.answers
    what watchers were shown, in order  Record.watches
    the database, read by plain SQL     Record.orders, events, attempts
    simnet's ledger, read-only          Record.landed; Record.bystander knows when what was there

Nothing of the engine is imported: a mistake made there must not be made here again. The promises, beside
those to orders that wait, which waiting.py judges:

    P1  nothing accepted is lost         P5  no invented status
    P2  no order executes twice          P6  on record before the world knows
    P3  same key, same order             P7  never two transactions of one order that can both land
    P4  every status once, in order

Times are Unix seconds of one machine's clock.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from tests.e2e.faults.waiting import CancelAnswer, Offer, Spec, check_waiting

CLOSED: Final = frozenset({"confirmed", "failed", "cancelled", "expired"})
MOVES: Final = {
    None: {"pending"},
    "pending": {"routing", "failed", "cancelled", "expired"},
    "routing": {"pending", "routing", "building", "failed", "cancelled", "expired"},
    "building": {"routing", "submitted", "failed", "cancelled", "expired"},
    "submitted": {"pending", "routing", "confirmed", "failed"},
}
"""What may follow what, as the contract says it. None: before the first event. Only what waits for a price
goes back to pending."""

SLOT_OF_HEIGHT_0: Final = 412_128_000 - 390_000_000
"""simnet's slots and block heights keep this distance."""
_UNRECORDED_SLOTS: Final = 10
"""How many empty slots simnet may have shown that its ledger does not name yet."""
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


# ---- What was seen from outside ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """A submit that was answered with an order, the first time or again."""

    request_id: str
    order_id: str


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as a watcher was shown it."""

    sequence: int
    status: str
    tx_hash: str | None = None


@dataclass(slots=True)
class Watch:
    """One watcher's log, over all its reconnects."""

    name: str
    order_id: str
    seen: list[Seen] = field(default_factory=list)
    finished: bool = False
    """It was told that nothing more will come."""
    connects: int = 0

    @property
    def cursor(self) -> int:
        return self.seen[-1].sequence if self.seen else 0


@dataclass(slots=True)
class Bystander:
    """When what was first seen on the ledger, by somebody who looked all the time."""

    slots: list[tuple[float, int]] = field(default_factory=list)
    """(time, newest slot on record), in the order of time."""
    transactions: dict[str, float] = field(default_factory=dict)
    """Signature -> when it was there already."""

    def slot_at_most(self, moment: float) -> int | None:
        """Return a slot that the chain had not passed at that moment; None if nobody looked later."""
        low, high = 0, len(self.slots)
        while low < high:
            middle = (low + high) // 2
            if self.slots[middle][0] < moment:
                low = middle + 1
            else:
                high = middle
        return self.slots[low][1] + _UNRECORDED_SLOTS if low < len(self.slots) else None


# ---- What is on record ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderRow:
    order_id: str
    request_id: str | None
    status: str
    sequence: int
    type: str = "market"
    terms: Mapping[str, str] = field(default_factory=dict)
    """The type's own, as decimal text by name."""
    spec: Spec | None = None


@dataclass(frozen=True, slots=True)
class EventRow:
    order_id: str
    sequence: int
    previous_status: str | None
    status: str
    attempt: int
    tx_hash: str | None
    commit_time: float
    """When the transaction that wrote it committed."""
    write_time: float = 0.0
    """When that transaction began."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    order_id: str
    attempt: int
    tx_hash: str
    last_valid_block_height: int
    outcome: str | None


@dataclass(frozen=True, slots=True)
class LandedRow:
    """A transaction on the ledger."""

    signature: str
    slot: int
    block_time: int
    failed: bool
    """On chain with an error: it had no effect."""
    memo: str | None
    gained: Mapping[str, int] = field(default_factory=dict)
    """By mint, in base units, what token accounts of others than its payer gained; less than 0: lost."""


@dataclass(slots=True)
class Record:
    """Everything there is to judge by."""

    answers: list[Answer]
    watches: list[Watch]
    orders: list[OrderRow]
    events: list[EventRow]
    attempts: list[AttemptRow]
    landed: list[LandedRow]
    bystander: Bystander
    finalized_slots: int
    """How many slots after its own a transaction can no longer be undone."""
    cancels: list[CancelAnswer] = field(default_factory=list)
    offers: dict[str, list[Offer]] = field(default_factory=dict)
    """By order, from simnet's history; of orders that are not here nothing is said about prices."""
    disturbed: list[tuple[float, float]] = field(default_factory=list)
    """From when to when somebody who follows prices or stores orders was away, or may have been."""
    room: Fraction = Fraction(0)
    """How much better than its limit a price must be for an order to have no excuse: what others that wait
    beside it may take away before it."""


def read_database(conninfo: str) -> tuple[list[OrderRow], list[EventRow], list[AttemptRow]]:
    """Read what the database says. It must have been run with track_commit_timestamp on."""
    with psycopg.connect(conninfo, autocommit=False) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        orders = connection.execute(
            "SELECT order_id::text, request_id, status::text, sequence, type, coalesce(terms, '{}'),"
            " side::text, amount, input_mint, output_mint, input_decimals, output_decimals,"
            " extract(epoch FROM expire_time)::double precision FROM orders"
        ).fetchall()
        events = connection.execute(
            "SELECT order_id::text, sequence, previous_status::text, status::text, attempt, tx_hash,"
            " extract(epoch FROM pg_xact_commit_timestamp(xmin))::double precision,"
            " extract(epoch FROM create_time)::double precision"
            " FROM order_events ORDER BY order_id, sequence"
        ).fetchall()
        attempts = connection.execute(
            "SELECT order_id::text, attempt, tx_hash, last_valid_block_height, outcome::text"
            " FROM attempts ORDER BY order_id, attempt"
        ).fetchall()
    return (
        [
            OrderRow(row[0], row[1], row[2], row[3], row[4], row[5], Spec(row[6], int(row[7]), *row[8:]))
            for row in orders
        ],
        [EventRow(*row) for row in events],
        [AttemptRow(*row) for row in attempts],
    )


def read_ledger(file: Path) -> list[LandedRow]:
    """Read every transaction on simnet's ledger, in the order of execution."""
    with closing(_open(file)) as connection:
        rows = connection.execute(
            "SELECT signature, slot, block_time, error IS NOT NULL, memo, raw, meta"
            " FROM transactions ORDER BY sequence"
        ).fetchall()
    return [
        LandedRow(base58(row[0]), row[1], row[2], bool(row[3]), row[4], _gained(row[5], row[6]))
        for row in rows
    ]


def _gained(raw: bytes, meta: bytes) -> dict[str, int]:
    """Return what others than the payer gained of each mint."""
    message = raw[1 + 64 * raw[0] :]
    # A version, if there is one, then three counts, then how many keys; the first one pays.
    keys = message[5 if message[0] & 0x80 else 4 :]
    balances: list[Any] = msgspec.msgpack.decode(meta)[4]
    gained: Counter[str] = Counter()
    for _, mint, owner, _, before, after in balances:
        if owner != keys[:32]:
            gained[base58(mint)] += (after or 0) - (before or 0)
    return dict(gained)


class LedgerWatch:
    """Keeps a bystander's notes; `look` as often as times are to be exact."""

    def __init__(self, file: Path) -> None:
        self.notes = Bystander()
        self._connection = _open(file)
        self._sequence = 0

    def look(self, clock: float) -> None:
        """Note what is on the ledger. `clock` is the time now, taken before."""
        # The transactions first: the slot that is noted is then no older than they are.
        rows = self._connection.execute(
            "SELECT sequence, signature FROM transactions WHERE sequence > ? ORDER BY sequence",
            (self._sequence,),
        ).fetchall()
        for sequence, signature in rows:
            self._sequence = sequence
            self.notes.transactions[base58(signature)] = clock
        row = self._connection.execute("SELECT slot FROM chain").fetchone()
        if row is not None:
            self.notes.slots.append((clock, row[0]))

    def close(self) -> None:
        self._connection.close()


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)


def base58(data: bytes) -> str:
    """Return bytes in base58, as signatures are written."""
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


# ---- The judgement ----------------------------------------------------------------------------------


def check(record: Record) -> list[str]:
    """Return every broken promise, each with the order it was broken for. Empty: all were kept."""
    facts = _Facts(record)
    return [
        *_nothing_lost(facts),
        *_executed_once(facts),
        *_same_key_same_order(facts),
        *_every_status_once(facts),
        *_watchers_saw_it_all(facts),
        *_recorded_first(facts),
        *_no_overlap(facts),
        *check_waiting(record, facts.events, facts.landed),
    ]


def describe(record: Record, order_id: str) -> str:
    """Return all that is known of an order, for whoever has to find out what happened."""
    facts = _Facts(record)
    lines = [f"order {order_id}"]
    lines += [f"  {answer}" for answer in record.answers if answer.order_id == order_id]
    lines += [f"  {row}" for row in (facts.orders.get(order_id),) if row is not None]
    lines += [f"  {row}" for row in (*facts.events[order_id], *facts.attempts[order_id])]
    for landed in facts.landed[order_id]:
        lines.append(f"  {landed}, seen {record.bystander.transactions.get(landed.signature)}")
    lines += [f"  {watch}" for watch in record.watches if watch.order_id == order_id]
    lines += [f"  {answer}" for answer in record.cancels if answer.order_id == order_id]
    lines += [f"  {offer}" for offer in record.offers.get(order_id, ())]
    return "\n".join(lines)


class _Facts:
    """The record, by order."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.orders = {row.order_id: row for row in record.orders}
        self.events: defaultdict[str, list[EventRow]] = defaultdict(list)
        for event in record.events:
            self.events[event.order_id].append(event)
        self.attempts: defaultdict[str, list[AttemptRow]] = defaultdict(list)
        for attempt in record.attempts:
            self.attempts[attempt.order_id].append(attempt)
        self.landed: defaultdict[str, list[LandedRow]] = defaultdict(list)
        for landed in record.landed:
            self.landed[_named(landed.memo)[0]].append(landed)


def _named(memo: str | None) -> tuple[str, int]:
    """Return the order and the attempt that a memo names; ("", 0) if it names none."""
    order_id, _, attempt = (memo or "").partition(":")
    return (order_id, int(attempt)) if attempt.isdecimal() else ("", 0)


def _nothing_lost(facts: _Facts) -> Iterator[str]:
    for order_id in dict.fromkeys(answer.order_id for answer in facts.record.answers):
        if order_id not in facts.orders:
            yield f"P1: order {order_id} was accepted and is not stored"
    for order in facts.orders.values():
        if order.status not in CLOSED:
            yield f"P1: order {order.order_id} was never closed; it is {order.status}"


def _executed_once(facts: _Facts) -> Iterator[str]:
    for order_id in facts.landed.keys() - facts.orders.keys():
        for landed in facts.landed[order_id]:
            yield f"P2: transaction {landed.signature} is of no order (memo {landed.memo!r})"
    for order in facts.orders.values():
        landed_rows = facts.landed[order.order_id]
        executed = [row for row in landed_rows if not row.failed]
        if len(executed) > 1:
            yield f"P2: order {order.order_id} was executed {len(executed)} times"
        if order.status == "confirmed" and not executed:
            yield f"P2: order {order.order_id} is confirmed and is not on the ledger"
        if order.status in CLOSED - {"confirmed"} and executed:
            yield f"P2: order {order.order_id} is {order.status} and was executed"
        on_ledger = {row.signature: row for row in landed_rows}
        for attempt in facts.attempts[order.order_id]:
            there = on_ledger.get(attempt.tx_hash)
            truth = "expired" if there is None else "reverted" if there.failed else "landed"
            if attempt.outcome != truth and not (attempt.outcome is None and order.status not in CLOSED):
                yield (
                    f"P2: attempt {attempt.attempt} of order {order.order_id} is recorded as"
                    f" {attempt.outcome}; the ledger says {truth}"
                )


def _same_key_same_order(facts: _Facts) -> Iterator[str]:
    answered: defaultdict[str, set[str]] = defaultdict(set)
    for answer in facts.record.answers:
        answered[answer.request_id].add(answer.order_id)
    stored = {row.request_id: row.order_id for row in facts.record.orders if row.request_id is not None}
    for request_id, order_ids in answered.items():
        if len(order_ids) > 1:
            yield f"P3: request {request_id} was answered with {len(order_ids)} orders: {sorted(order_ids)}"
        for order_id in order_ids:
            if stored.get(request_id) != order_id:
                yield f"P3: request {request_id} was answered with order {order_id}, stored is another"
    for stored_id, count in Counter(row.request_id for row in facts.record.orders).items():
        if stored_id is not None and count > 1:
            yield f"P3: request {stored_id} is stored {count} times"


def _every_status_once(facts: _Facts) -> Iterator[str]:
    for order_id in facts.events.keys() - facts.orders.keys():
        yield f"P4: there are events of an order {order_id} that is not stored"
    for order in facts.orders.values():
        events = facts.events[order.order_id]
        if [event.sequence for event in events] != list(range(1, order.sequence + 1)):
            yield (
                f"P4: order {order.order_id} stands at {order.sequence},"
                f" its events are {[event.sequence for event in events]}"
            )
            continue
        before: str | None = None
        for event in events:
            if event.previous_status != before:
                yield (
                    f"P4: event {event.sequence} of order {order.order_id} follows {event.previous_status},"
                    f" the one before it says {before}"
                )
            if event.status not in MOVES.get(before, ()):
                yield f"P4: order {order.order_id} went from {before} to {event.status}"
            if event.status == "pending" and before is not None and order.type == "market":
                yield f"P4: order {order.order_id} went back to waiting; a market order waits for nothing"
            before = event.status
        if before != order.status:
            yield f"P4: order {order.order_id} is {order.status}, its last event says {before}"


def _watchers_saw_it_all(facts: _Facts) -> Iterator[str]:
    for watch in facts.record.watches:
        who = f"{watch.name} of order {watch.order_id}"
        truth = {
            event.sequence: Seen(event.sequence, event.status, event.tx_hash)
            for event in facts.events[watch.order_id]
        }
        for seen in watch.seen:
            if truth.get(seen.sequence) != seen:
                yield f"P5: {who} saw {seen}; on record is {truth.get(seen.sequence)}"
        sequences = [seen.sequence for seen in watch.seen]
        if sequences != list(range(1, len(sequences) + 1)):
            yield f"P4: {who} saw {sequences}"
        elif not watch.finished:
            yield f"P4: {who} was never told the end; it saw {sequences} of {len(truth)}"
        elif len(sequences) != len(truth):
            yield f"P4: {who} was told that {len(sequences)} events are all; there are {len(truth)}"


def _recorded_first(facts: _Facts) -> Iterator[str]:
    recorded = {row.tx_hash: row for row in facts.record.attempts}
    submitted = {
        event.tx_hash: event for event in facts.record.events if event.status == "submitted" and event.tx_hash
    }
    for landed in facts.record.landed:
        attempt, event = recorded.get(landed.signature), submitted.get(landed.signature)
        if attempt is None or event is None:
            yield f"P6: transaction {landed.signature} (memo {landed.memo!r}) is on the ledger, not on record"
            continue
        if _named(landed.memo) != (attempt.order_id, attempt.attempt):
            yield f"P6: transaction {landed.signature} says {landed.memo!r}, on record it is {attempt}"
        # A block's time is in whole seconds, rounded down; a bystander is more exact.
        latest = min(landed.block_time + 1.0, facts.record.bystander.transactions.get(landed.signature, 1e18))
        if event.commit_time > latest:
            yield (
                f"P6: transaction {landed.signature} of order {attempt.order_id} was on the ledger by"
                f" {latest:.3f} and was recorded at {event.commit_time:.3f}"
            )


def _no_overlap(facts: _Facts) -> Iterator[str]:
    submitted = {
        (event.order_id, event.attempt): event for event in facts.record.events if event.status == "submitted"
    }
    slots = {row.signature: row.slot for row in facts.record.landed}
    for order_id, attempts in facts.attempts.items():
        for earlier, later in pairwise(sorted(attempts, key=lambda row: row.attempt)):
            event = submitted.get((order_id, later.attempt))
            if event is None:
                yield f"P7: attempt {later.attempt} of order {order_id} has no event"
                continue
            slot = facts.record.bystander.slot_at_most(event.commit_time)
            if slot is None:
                continue
            landed_slot = slots.get(earlier.tx_hash)
            # One that failed on chain is dead once that is final, any other when its blockhash is too old.
            dead_after = (
                earlier.last_valid_block_height + SLOT_OF_HEIGHT_0
                if landed_slot is None
                else landed_slot + facts.record.finalized_slots - 1
            )
            if slot <= dead_after:
                yield (
                    f"P7: attempt {later.attempt} of order {order_id} was recorded at slot {slot} at the"
                    f" latest; attempt {earlier.attempt} could still land until slot {dead_after}"
                )
