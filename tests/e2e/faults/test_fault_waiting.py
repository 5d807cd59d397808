"""The judge of orders that wait judged: a record in which all is well, and each promise broken in it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest

from tests.e2e.faults.checker import (
    SLOT_OF_HEIGHT_0,
    AttemptRow,
    Bystander,
    EventRow,
    LandedRow,
    OrderRow,
    Record,
    check,
)
from tests.e2e.faults.waiting import CancelAnswer, Offer, Spec

START = 1000.0  # Unix seconds; one slot takes a tenth of a second
FIRST = SLOT_OF_HEIGHT_0 + 5000
SOL, TOKEN = "So11111111111111111111111111111111111111112", "launched"
SELL = Spec("sell", 10**9, SOL, TOKEN, None, 6)
BUY = Spec("buy", 100 * 10**6, SOL, TOKEN, None, 6)
PRICES = ((0, 90), (30, 110), (60, 90), (100, 120), (200, 90))
"""From which slot on, and how many whole tokens a SOL brings then. 100 are asked for."""
FIRED = ("pending", "routing", "building", "submitted", "confirmed")


def time_of(slot: int) -> float:
    return START + slot / 10


def order(
    name: str,
    *steps: tuple[str, float],
    spec: Spec = SELL,
    order_type: str = "limit",
    terms: dict[str, str] | None = None,
) -> Record:
    """Return the record of one order, whose statuses were committed in these slots."""
    sells = spec.side == "sell"
    events, attempt, before = [], 1, None
    attempts: list[AttemptRow] = []
    landed: list[LandedRow] = []
    for number, (status, slot) in enumerate(steps, start=1):
        tx_hash = f"tx-{name}-{attempt}" if status in ("submitted", "confirmed") else None
        if status == "submitted":
            last_block = FIRST + int(slot) + 150 - SLOT_OF_HEIGHT_0
            attempts.append(AttemptRow(name, attempt, f"tx-{name}-{attempt}", last_block, None))
        if before == "submitted":
            reverted = status != "confirmed"
            attempts[-1] = replace(attempts[-1], outcome="reverted" if reverted else "landed")
            price = dict(PRICES)[max(at for at, _ in PRICES if at <= slot)]
            paid, got = (10**9, price * 10**6) if sells else (100 * 10**9 // price, 100 * 10**6)
            gained = {} if reverted else {SOL: paid, TOKEN: -got}
            at = FIRST + int(slot) - (20 if reverted else 0)
            memo = f"{name}:{attempt}"
            landed.append(
                LandedRow(f"tx-{name}-{attempt}", at, int(time_of(int(slot))), reverted, memo, gained)
            )
            attempt += reverted
        events.append(EventRow(name, number, before, status, attempt, tx_hash, time_of(0) + slot / 10))
        before = status
    terms = {"limit_price": "100"} if terms is None else terms
    return Record(
        answers=[],
        watches=[],
        orders=[OrderRow(name, None, steps[-1][0], len(steps), order_type, terms, spec)],
        events=[replace(event, write_time=event.commit_time - 0.001) for event in events],
        attempts=attempts,
        landed=landed,
        bystander=Bystander(),
        finalized_slots=16,
        offers={name: offers(spec)},
    )


def offers(spec: Spec) -> list[Offer]:
    """Return what there was for an order, before its pool opened too."""
    found = [Offer(FIRST - 50, None, None)]
    for slot, price in PRICES:
        paid, got = (10**9, price * 10**6) if spec.side == "sell" else (100 * 10**9 // price, 100 * 10**6)
        found.append(Offer(FIRST + slot, paid, got))
    return found


def steps(*slots: float) -> list[tuple[str, float]]:
    return list(zip(FIRED, slots, strict=True))


def healthy() -> Record:
    """Return a record of orders that were filled, cancelled, expired, put back, or never had a chance."""
    back = [*steps(5, 31, 31.1, 31.1, 61)[:-1], ("pending", 61.0), *steps(0, 101, 101.1, 101.1, 103)[1:]]
    expiring = replace(SELL, expire_time=time_of(20))
    parts = [
        order("sold", *steps(5, 31, 31.1, 31.1, 33)),
        order("bought", *steps(5, 31, 31.1, 31.1, 33), spec=BUY),
        order("sniped", *steps(5, 31, 31.1, 31.1, 33), order_type="sniper", terms={"max_price": "0.01"}),
        order("opened", *steps(-60, -1, -0.9, -0.9, 1), order_type="sniper", terms={}),
        order("at once", *steps(35, 36, 36.1, 36.1, 38)),
        order("back", *back),
        order("cancelled", ("pending", 5), ("cancelled", 20)),
        order("expired", ("pending", 5), ("expired", 20.5), spec=expiring),
        order("dear", ("pending", 5), ("cancelled", 250), terms={"limit_price": "121"}),
        order(
            "looked", ("pending", 5), ("routing", 30.9), ("pending", 31), *steps(0, 32, 32.1, 32.1, 35)[1:]
        ),
    ]
    # The pool of this one opens late: before that nothing is had for it.
    parts[3].offers["opened"] = [Offer(FIRST - 100, None, None), Offer(FIRST - 2, 10**9, 90 * 10**6)]
    record = parts[0]
    for part in parts[1:]:
        for name in ("orders", "events", "attempts", "landed"):
            getattr(record, name).extend(getattr(part, name))
        record.offers |= part.offers
    for index, row in enumerate(record.landed):
        if row.signature == "tx-opened-1":
            record.landed[index] = replace(row, gained={SOL: 10**9, TOKEN: -90 * 10**6})
    record.bystander = Bystander(
        slots=[(time_of(slot) + part, FIRST + slot) for slot in range(-100, 300) for part in (0.01, 0.06)],
        transactions={row.signature: 1e9 for row in record.landed},
    )
    record.cancels = [
        CancelAnswer("cancelled", True, time_of(20)),
        CancelAnswer("dear", True, time_of(250)),
        CancelAnswer("sold", False, time_of(33)),
    ]
    return record


def test_a_record_in_which_all_is_well_is_passed() -> None:
    assert check(healthy()) == []


Planted = Callable[[Record], None]
PLANTED: list[object] = []


def planted(broken: str, what: str) -> Callable[[Planted], Planted]:
    """Keep the mutation as one that breaks that promise."""

    def keep(mutation: Planted) -> Planted:
        PLANTED.append(pytest.param(broken, mutation, id=f"{broken} {what}"))
        return mutation

    return keep


def change(rows: list, order_id: str, number: int = 0, **changes: object) -> None:  # type: ignore[type-arg]
    """Change one of an order's rows."""
    found = [index for index, row in enumerate(rows) if row.order_id == order_id]
    rows[found[number]] = replace(rows[found[number]], **changes)


def change_landed(record: Record, signature: str, **changes: object) -> None:
    [index] = [index for index, row in enumerate(record.landed) if row.signature == signature]
    record.landed[index] = replace(record.landed[index], **changes)  # type: ignore[arg-type]


def drop_offers(record: Record, order_id: str, *slots: int) -> None:
    """Take away what was to be had from these slots on: what was there before went on."""
    gone = {FIRST + slot for slot in slots}
    record.offers[order_id] = [offer for offer in record.offers[order_id] if offer.slot not in gone]


def story(record: Record, order_id: str, *moves: tuple[str, float]) -> None:
    """Give an order other events."""
    found = [index for index, row in enumerate(record.events) if row.order_id == order_id]
    statuses = [None, *(status for status, _ in moves)]
    rows = [
        EventRow(order_id, number, before, status, 1, None, time_of(0) + slot / 10, time_of(0) + slot / 10)
        for number, ((before, status), (_, slot)) in enumerate(
            zip(pairwise(statuses), moves, strict=True), start=1
        )
        if status is not None
    ]
    record.events[found[0] : found[-1] + 1] = rows
    change(record.orders, order_id, status=rows[-1].status, sequence=len(rows))


@planted("P4", "a market order goes back to waiting")
def _(record: Record) -> None:
    change(record.orders, "back", type="market")


@planted("P4", "an order goes back to waiting while it is built")
def _(record: Record) -> None:
    story(
        record, "dear", ("pending", 5), ("routing", 31), ("building", 31), ("pending", 32), ("cancelled", 33)
    )


@planted("W1", "a sale brought a base unit less than its limit")
def _(record: Record) -> None:
    change_landed(record, "tx-sold-1", gained={SOL: 10**9, TOKEN: -(100 * 10**6 - 1)})


@planted("W1", "a purchase cost a base unit more than its limit")
def _(record: Record) -> None:
    change_landed(record, "tx-bought-1", gained={SOL: 10**9 + 1, TOKEN: -100 * 10**6})


@planted("W1", "a sniper paid more than its price")
def _(record: Record) -> None:
    change_landed(record, "tx-sniped-1", gained={SOL: 10**9, TOKEN: -(100 * 10**6 - 1)})


@planted("W1", "a swap exchanged nothing")
def _(record: Record) -> None:
    change_landed(record, "tx-opened-1", gained={})


@planted("W2", "an order whose cancel was answered OK is executed")
def _(record: Record) -> None:
    record.cancels.append(CancelAnswer("sold", True, time_of(20)))


@planted("W2", "an order whose cancel was answered OK waits still")
def _(record: Record) -> None:
    story(record, "cancelled", ("pending", 5))


@planted("W2", "a transaction lands after the cancel was answered, and fails")
def _(record: Record) -> None:
    record.cancels.append(CancelAnswer("back", True, time_of(20)))


@planted("W3", "an order fires that never crossed")
def _(record: Record) -> None:
    story(record, "dear", ("pending", 5), ("routing", 40), ("pending", 41), ("cancelled", 250))


@planted("W3", "an order fires before it crosses")
def _(record: Record) -> None:
    change(record.events, "sold", 1, commit_time=time_of(27))


@planted("W3", "an order fires on what was there long before it was accepted")
def _(record: Record) -> None:
    change(record.events, "sold", 0, commit_time=time_of(65))
    change(record.events, "sold", 1, commit_time=time_of(70))


@planted("W3", "an order fires again on what was there before it waited again")
def _(record: Record) -> None:
    change(record.events, "back", 4, commit_time=time_of(70))
    change(record.events, "back", 5, commit_time=time_of(75))


@planted("W3", "a sniper fires before its pool opens")
def _(record: Record) -> None:
    change(record.events, "opened", 1, commit_time=time_of(-5))


@planted("W3", "an order is executed that never crossed")
def _(record: Record) -> None:
    drop_offers(record, "sold", 30, 100)


@planted("W4", "a crossing is missed")
def _(record: Record) -> None:
    story(record, "cancelled", ("pending", 5), ("cancelled", 60))


@planted("W4", "a crossing of two slots is missed")
def _(record: Record) -> None:
    record.offers["cancelled"][3:] = [replace(offers(SELL)[3], slot=FIRST + 32)]
    story(record, "cancelled", ("pending", 5), ("cancelled", 60))


@planted("W4", "an order fires long after it crossed")
def _(record: Record) -> None:
    change(record.events, "sold", 1, commit_time=time_of(59))


@planted("W4", "an order that waits to the end crossed")
def _(record: Record) -> None:
    story(record, "cancelled", ("pending", 5))


@planted("W4", "a crossing is missed by an order that waited again")
def _(record: Record) -> None:
    story(record, "dear", ("pending", 5), ("routing", 101), ("pending", 102), ("cancelled", 250))
    change(record.orders, "dear", terms={"limit_price": "115"})


@planted("W4", "an order is tried again and again while it crosses, and never executed")
def _(record: Record) -> None:
    tries = [(status, float(at)) for at in range(100, 200, 10) for status in ("routing", "pending")]
    story(
        record,
        "dear",
        ("pending", 5),
        *[(s, at + 1 + (s == "pending")) for s, at in tries],
        ("cancelled", 250),
    )
    change(record.orders, "dear", terms={"limit_price": "115"})


@planted("W5", "an order is taken up after it expired")
def _(record: Record) -> None:
    change(record.orders, "sold", spec=replace(SELL, expire_time=time_of(30)))


@planted("W5", "an order expires too early")
def _(record: Record) -> None:
    change(record.orders, "expired", spec=replace(SELL, expire_time=time_of(25)))


@pytest.mark.parametrize(("broken", "mutation"), PLANTED)
def test_a_broken_promise_is_found(broken: str, mutation: Planted) -> None:
    record = healthy()
    mutation(record)
    assert broken in {line.partition(":")[0] for line in check(record)}


@pytest.mark.parametrize(
    ("excuse", "mutation"),
    [
        ("it lasted for one slot", lambda record: touch(record, 31)),
        ("the engine was disturbed", lambda record: record.disturbed.append((time_of(25), time_of(200)))),
        ("others may have come before", lambda record: setattr(record, "room", Fraction(11, 100))),
    ],
)
def test_a_crossing_that_is_missed_is_excused(excuse: str, mutation: Planted) -> None:
    record = healthy()
    story(record, "cancelled", ("pending", 5), ("cancelled", 60))
    assert check(record) != []
    mutation(record)
    assert check(record) == [], excuse


def touch(record: Record, until: int) -> None:
    """Let the price leave again after that slot."""
    record.offers["cancelled"][3:] = [replace(offers(SELL)[3], slot=FIRST + until)]
