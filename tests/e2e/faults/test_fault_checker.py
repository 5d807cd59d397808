"""The judge of the fault tests judged: a record in which all is well, and each promise broken in it once."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest

from tests.e2e.faults.checker import (
    SLOT_OF_HEIGHT_0,
    Answer,
    AttemptRow,
    Bystander,
    EventRow,
    LandedRow,
    OrderRow,
    Record,
    Seen,
    Watch,
    base58,
    check,
)

START = 1000.0  # Unix seconds; one slot takes a tenth of a second
FIRST_SLOT = SLOT_OF_HEIGHT_0 + 5000
FINALIZED_SLOTS = 16


def time_of(slot: int) -> float:
    return START + (slot - FIRST_SLOT) / 10


def height_of(slot: int) -> int:
    return slot - SLOT_OF_HEIGHT_0


def events(order_id: str, *steps: tuple[str, int, str | None, int]) -> list[EventRow]:
    """Return events of (status, attempt, tx_hash, slot in which it was committed)."""
    rows: list[EventRow] = []
    for number, (status, attempt, tx_hash, slot) in enumerate(steps, start=1):
        before = rows[-1].status if rows else None
        rows.append(EventRow(order_id, number, before, status, attempt, tx_hash, time_of(slot)))
    return rows


def watched(name: str, rows: list[EventRow]) -> Watch:
    seen = [Seen(row.sequence, row.status, row.tx_hash) for row in rows]
    return Watch(name, rows[0].order_id, seen, finished=True, connects=2)


def healthy() -> Record:
    """Return a record of four orders: confirmed, after an attempt that expired or reverted too; cancelled."""
    at = FIRST_SLOT
    once = events(
        "once",
        ("pending", 1, None, at),
        ("routing", 1, None, at + 1),
        ("building", 1, None, at + 2),
        ("submitted", 1, "tx-once", at + 2),
        ("confirmed", 1, "tx-once", at + 5),
    )
    again = events(
        "again",
        ("pending", 1, None, at),
        ("routing", 1, None, at + 1),
        ("building", 1, None, at + 2),
        ("submitted", 1, "tx-again-1", at + 2),
        ("routing", 2, None, at + 170),
        ("building", 2, None, at + 175),
        ("submitted", 2, "tx-again-2", at + 175),
        ("confirmed", 2, "tx-again-2", at + 180),
    )
    reverted = events(
        "reverted",
        ("pending", 1, None, at),
        ("routing", 1, None, at + 1),
        ("building", 1, None, at + 2),
        ("submitted", 1, "tx-reverted-1", at + 2),
        ("routing", 2, None, at + 30),
        ("building", 2, None, at + 35),
        ("submitted", 2, "tx-reverted-2", at + 35),
        ("confirmed", 2, "tx-reverted-2", at + 40),
    )
    cancelled = events("cancelled", ("pending", 1, None, at), ("cancelled", 1, None, at + 1))
    lives = (once, again, reverted, cancelled)
    landed = [
        landed_at("tx-once", at + 3, "once:1"),
        landed_at("tx-reverted-1", at + 4, "reverted:1", failed=True),
        landed_at("tx-reverted-2", at + 37, "reverted:2"),
        landed_at("tx-again-2", at + 177, "again:2"),
    ]
    return Record(
        answers=[Answer(f"key-{rows[0].order_id}", rows[0].order_id) for rows in lives]
        + [Answer("key-once", "once")],
        watches=[watched(f"watcher of {rows[0].order_id}", rows) for rows in lives],
        orders=[OrderRow(r[0].order_id, f"key-{r[0].order_id}", r[-1].status, len(r)) for r in lives],
        events=[event for rows in lives for event in rows],
        attempts=[
            AttemptRow("once", 1, "tx-once", height_of(at + 150), "landed"),
            AttemptRow("again", 1, "tx-again-1", height_of(at + 150), "expired"),
            AttemptRow("again", 2, "tx-again-2", height_of(at + 320), "landed"),
            AttemptRow("reverted", 1, "tx-reverted-1", height_of(at + 150), "reverted"),
            AttemptRow("reverted", 2, "tx-reverted-2", height_of(at + 180), "landed"),
        ],
        landed=landed,
        bystander=Bystander(
            slots=[(time_of(slot), slot) for slot in range(at, at + 400)],
            transactions={row.signature: time_of(row.slot) + 0.02 for row in landed},
        ),
        finalized_slots=FINALIZED_SLOTS,
    )


def landed_at(signature: str, slot: int, memo: str, *, failed: bool = False) -> LandedRow:
    return LandedRow(signature, slot, int(time_of(slot)), failed, memo)


def test_a_record_in_which_all_is_well_is_passed() -> None:
    assert check(healthy()) == []


Planted = Callable[[Record], None]


def planted(broken: str, what: str) -> Callable[[Planted], Planted]:
    """Keep the mutation as one that breaks that promise."""

    def keep(mutation: Planted) -> Planted:
        PLANTED.append(pytest.param(broken, mutation, id=f"{broken} {what}"))
        return mutation

    return keep


PLANTED: list[object] = []


def change(rows: list, order_id: str, number: int = 0, **changes: object) -> None:  # type: ignore[type-arg]
    """Change one of an order's rows."""
    found = [index for index, row in enumerate(rows) if row.order_id == order_id]
    rows[found[number]] = replace(rows[found[number]], **changes)


@planted("P1", "an accepted order is not stored")
def _(record: Record) -> None:
    record.answers.append(Answer("key-lost", "lost"))


@planted("P1", "an order stays open")
def _(record: Record) -> None:
    change(record.orders, "once", status="submitted", sequence=4)


@planted("P2", "an order is executed twice")
def _(record: Record) -> None:
    record.landed.append(landed_at("tx-again-1", FIRST_SLOT + 178, "again:1"))


@planted("P2", "an order is executed twice under one attempt")
def _(record: Record) -> None:
    record.landed.append(landed_at("tx-other", FIRST_SLOT + 178, "once:1"))


@planted("P2", "a confirmed order is not on the ledger")
def _(record: Record) -> None:
    del record.landed[0]


@planted("P2", "a confirmed order's only transaction failed")
def _(record: Record) -> None:
    record.landed[0] = replace(record.landed[0], failed=True)


@planted("P2", "a cancelled order was executed")
def _(record: Record) -> None:
    record.landed.append(landed_at("tx-cancelled", FIRST_SLOT + 3, "cancelled:1"))


@planted("P2", "a transaction is of no order")
def _(record: Record) -> None:
    record.landed.append(landed_at("tx-stray", FIRST_SLOT + 3, "nobody:1"))


@planted("P2", "a transaction names nothing")
def _(record: Record) -> None:
    record.landed[0] = replace(record.landed[0], memo=None)


@planted("P2", "an outcome on record is not the ledger's")
def _(record: Record) -> None:
    change(record.attempts, "again", 0, outcome="reverted")


@planted("P2", "an outcome of a closed order is missing")
def _(record: Record) -> None:
    change(record.attempts, "once", 0, outcome=None)


@planted("P3", "one key is answered with two orders")
def _(record: Record) -> None:
    record.answers.append(Answer("key-once", "again"))


@planted("P3", "a key is answered with an order stored under another")
def _(record: Record) -> None:
    change(record.orders, "once", request_id="key-other")


@planted("P3", "one key is stored twice")
def _(record: Record) -> None:
    change(record.orders, "again", request_id="key-once")


@planted("P4", "an event is missing")
def _(record: Record) -> None:
    record.events.remove(next(event for event in record.events if event.status == "building"))


@planted("P4", "an event comes twice")
def _(record: Record) -> None:
    record.events.insert(0, record.events[0])


@planted("P4", "events belong to no order")
def _(record: Record) -> None:
    record.events += events("nobody", ("pending", 1, None, FIRST_SLOT))


@planted("P4", "an order skips a status")
def _(record: Record) -> None:
    change(record.events, "cancelled", 1, status="confirmed")


@planted("P4", "an order is cancelled after it was submitted")
def _(record: Record) -> None:
    change(record.events, "once", 4, status="cancelled")
    change(record.orders, "once", status="cancelled")


@planted("P4", "an event does not follow the one before")
def _(record: Record) -> None:
    change(record.events, "once", 3, previous_status="routing")


@planted("P4", "an order says other than its last event")
def _(record: Record) -> None:
    change(record.orders, "cancelled", status="expired")


@planted("P4", "a watcher misses an event")
def _(record: Record) -> None:
    del record.watches[0].seen[2]


@planted("P4", "a watcher sees an event twice")
def _(record: Record) -> None:
    record.watches[0].seen.insert(2, record.watches[0].seen[1])


@planted("P4", "a watcher sees events out of order")
def _(record: Record) -> None:
    seen = record.watches[0].seen
    seen[1], seen[2] = seen[2], seen[1]


@planted("P4", "a watcher misses the first event")
def _(record: Record) -> None:
    del record.watches[0].seen[0]


@planted("P4", "a watcher is told the end too early")
def _(record: Record) -> None:
    del record.watches[0].seen[-1]


@planted("P4", "a watcher is never told the end")
def _(record: Record) -> None:
    record.watches[0].finished = False


@planted("P5", "a watcher sees a status that is not on record")
def _(record: Record) -> None:
    record.watches[0].seen[-1] = Seen(5, "failed", "tx-once")


@planted("P5", "a watcher sees another transaction")
def _(record: Record) -> None:
    record.watches[0].seen[-1] = Seen(5, "confirmed", "tx-again-2")


@planted("P5", "a watcher sees an event beyond the record")
def _(record: Record) -> None:
    record.watches[3].seen.append(Seen(3, "expired"))


@planted("P6", "a transaction has no attempt")
def _(record: Record) -> None:
    del record.attempts[0]


@planted("P6", "a transaction has no event")
def _(record: Record) -> None:
    change(record.events, "once", 3, tx_hash="tx-other")


@planted("P6", "a transaction is recorded after a bystander saw it")
def _(record: Record) -> None:
    change(record.events, "once", 3, commit_time=time_of(FIRST_SLOT + 3) + 0.05)


@planted("P6", "a transaction is recorded after its block, and no bystander saw it")
def _(record: Record) -> None:
    record.bystander.transactions.clear()
    change(record.events, "once", 3, commit_time=int(time_of(FIRST_SLOT + 3)) + 1.1)


@planted("P6", "a transaction names another attempt")
def _(record: Record) -> None:
    record.landed[3] = replace(record.landed[3], memo="again:1")


@planted("P7", "a second transaction is recorded before the first expired")
def _(record: Record) -> None:
    change(record.events, "again", 6, commit_time=time_of(FIRST_SLOT + 50))


@planted("P7", "a second transaction is recorded at the last block of the first")
def _(record: Record) -> None:
    # Ten slots that simnet may have shown without having them on record are allowed for.
    change(record.events, "again", 6, commit_time=time_of(FIRST_SLOT + 140))


@planted("P7", "a second transaction is recorded before the first one's failure was final")
def _(record: Record) -> None:
    change(record.events, "reverted", 6, commit_time=time_of(FIRST_SLOT + 9))


@planted("P7", "a second transaction has no event")
def _(record: Record) -> None:
    change(record.events, "again", 6, attempt=1)


@pytest.mark.parametrize(("broken", "mutation"), PLANTED)
def test_a_broken_promise_is_found(broken: str, mutation: Planted) -> None:
    record = deepcopy(healthy())
    mutation(record)
    assert broken in {line.partition(":")[0] for line in check(record)}


def test_signatures_are_written_as_solana_writes_them() -> None:
    # https://datatracker.ietf.org/doc/html/draft-msporny-base58-03, section 5
    assert base58(b"Hello World!") == "2NEpo7TZRRrLZSi2U"
    assert base58(bytes.fromhex("0000287fb4cd")) == "11233QC4"
