"""What the judge of the fault tests says of orders that wait for a price: limit and sniper orders.

    W1  no swap gives worse than the order's limit, by what pools gained and lost on the ledger
    W2  after a cancel was answered OK, nothing executes
    W3  nothing fires that never crossed, by what simnet's history says a pool would have given
    W4  what crossed for two slots fires, and is executed if that lasts
    W5  what expires does so on time, and does not fire after

When a slot was, the looks of a bystander tell. What pools give in a slot is in force from some moment of it
until some moment of the next one in which that changed. In doubt the judge says nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.e2e.faults.checker import EventRow, LandedRow, OrderRow, Record

VIEW_SLOTS: Final = 2
"""How old the prices may be on which an order is fired. A tick under way takes a new order in, and what is in
memory then is of the slot before the one in which the order was accepted; where that one has just begun and
was not read yet, of the slot before that."""
STALE_SECONDS: Final = 5.0
"""The same where the engine was disturbed: a process that was frozen goes on with what it had."""
CROSSING_SLOTS: Final = 2
FIRE_SECONDS: Final = 1.0
"""How long after those slots, or after what disturbed the engine then, an order may still be found waiting:
fired, it has to be taken up. It takes a fraction of that; machines are slow at times."""
LASTING_SECONDS: Final = 5.0
"""For how long a condition must hold for its order to be executed, whatever was tried before."""

_CLOCK_SECONDS: Final = 0.1

_DECIMALS: Final = {
    "So11111111111111111111111111111111111111112": 9,
    "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v": 6,
    "Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB": 6,
    "DezXAZ8z7PnrnRJjz3wXBoRgixCa6xjnB7YaB1pPB263": 5,
    "JUPyiwrYJFskUPiHa7hkeR8VUtAeFoSYbKedZNsDvCN": 6,
    "4k3Dyjzvzp8eMZWUXbBCjEvwSkkk59S5iCNLY3QrkX6R": 6,
}
"""Of tokens that everybody knows. Of others it is on record."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What an order asks for. Amounts are base units."""

    side: str
    amount: int
    input_mint: str
    output_mint: str
    input_decimals: int | None = None
    output_decimals: int | None = None
    expire_time: float | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What the best pool would have given for an order's whole amount, from that slot until the next offer.

    None: no pool could fill it.
    """

    slot: int
    input_amount: int | None
    output_amount: int | None


@dataclass(frozen=True, slots=True)
class CancelAnswer:
    """A cancel that was answered."""

    order_id: str
    accepted: bool
    """OK; else it came too late."""
    time: float
    """When the answer was there."""


def check_waiting(
    record: Record, events: Mapping[str, Sequence[EventRow]], landed: Mapping[str, Sequence[LandedRow]]
) -> Iterator[str]:
    """Yield every broken promise. `events` and `landed` are the record's, by order."""
    clock = _Slots(record)
    orders = {row.order_id: row for row in record.orders}
    yield from _cancelled_for_good(record, orders, landed, clock)
    for order in record.orders:
        yield from _expired_on_time(order, events.get(order.order_id, ()))
        if order.type == "market" or order.spec is None:
            continue
        yield from _within_limit(order, landed.get(order.order_id, ()))
        offers = record.offers.get(order.order_id)
        # What pools held, the history does not tell: that is for a test to see.
        if offers is not None and "min_liquidity" not in order.terms:
            story = _Story(order, events.get(order.order_id, ()), offers, clock)
            yield from _fired_for_a_reason(story, landed.get(order.order_id, ()))
            yield from _no_crossing_missed(story, record.room)


def is_met(order: OrderRow, paid: int, got: int, room: Fraction = Fraction(0)) -> bool:
    """Return whether these amounts are within the order's limit, by so much to spare at least."""
    spec = order.spec
    assert spec is not None
    whole_paid = Fraction(paid, 10 ** _decimals(spec.input_mint, spec.input_decimals))
    whole_got = Fraction(got, 10 ** _decimals(spec.output_mint, spec.output_decimals))
    if order.type == "limit":
        return whole_got >= Fraction(order.terms["limit_price"]) * whole_paid * (1 + room)
    if "max_price" in order.terms:
        return whole_paid * (1 + room) <= Fraction(order.terms["max_price"]) * whole_got
    return True


def _decimals(mint: str, recorded: int | None) -> int:
    return _DECIMALS[mint] if recorded is None else recorded


class _Slots:
    """When slots were, by the looks of the bystander."""

    def __init__(self, record: Record) -> None:
        self.disturbed = record.disturbed
        notes = record.bystander.slots
        self._times = [time for time, _ in notes]
        self._slots = [slot for _, slot in notes]
        self._first_looks: dict[int, float] = {}
        for time, slot in notes:
            self._first_looks.setdefault(slot, time)

    @property
    def last(self) -> int:
        return self._slots[-1]

    def at_least(self, moment: float) -> int:
        """Return a slot that had begun by that moment."""
        # A look's slot was read after its time, and before the time of the next look.
        return self._slots[max(0, bisect_right(self._times, moment) - 2)]

    def at_most(self, moment: float) -> int:
        """Return a slot that the chain had not passed at that moment."""
        place = bisect_right(self._times, moment)
        return self._slots[place] if place < len(self._slots) else self._slots[-1] + 1

    def begin(self, slot: int) -> float | None:
        """Return a moment before which the slot had begun, or just began; None if nobody saw it."""
        return self._first_looks.get(slot)

    def is_whole(self, start: float, end: float) -> bool:
        """Return whether the engine was undisturbed all that time."""
        return all(end < since or until < start for since, until in self.disturbed)

    def latest(self, moment: float, seconds: float) -> float:
        """Return when so many seconds have passed since that moment in which the engine was undisturbed."""
        latest = moment + seconds
        for since, until in sorted(self.disturbed):
            if since < latest and until > moment:
                latest = max(latest, until + seconds)
        return latest


class _Story:
    """One order that waits: what happened to it, and what was there for it."""

    def __init__(
        self, order: OrderRow, events: Sequence[EventRow], offers: Sequence[Offer], clock: _Slots
    ) -> None:
        self.order = order
        self.events = events
        self.clock = clock
        self._offers = offers
        self._slots = [offer.slot for offer in offers]

    def met(self, slot: int, room: Fraction = Fraction(0)) -> bool:
        """Return whether the condition held at the end of a slot, or from a change after it on."""
        place = bisect_right(self._slots, slot)
        if not place:
            return False
        offer = self._offers[place - 1]
        if offer.input_amount is None or offer.output_amount is None:
            return False
        return is_met(self.order, offer.input_amount, offer.output_amount, room)

    def ever_met(self, first: int, last: int) -> bool:
        """Return whether the condition held at any time from one slot to another."""
        return self.met(first) or any(self.met(slot) for slot in self._slots if first < slot <= last)

    def waits(self) -> Iterator[tuple[float, EventRow | None]]:
        """Yield since when the order waited, and the event that ended it; None: none did."""
        for index, event in enumerate(self.events):
            if event.status == "pending":
                yield event.commit_time, self.events[index + 1] if index + 1 < len(self.events) else None

    def oldest_view(self, moment: float) -> int:
        """Return the oldest slot whose prices somebody may have acted on at that moment."""
        if not self.clock.is_whole(moment - STALE_SECONDS, moment):
            moment -= STALE_SECONDS
        return self.clock.at_least(moment) - VIEW_SLOTS


def _within_limit(order: OrderRow, landed: Sequence[LandedRow]) -> Iterator[str]:
    assert order.spec is not None
    for row in landed:
        if row.failed:
            continue
        paid, got = row.gained.get(order.spec.input_mint, 0), -row.gained.get(order.spec.output_mint, 0)
        if paid <= 0 or got <= 0 or not is_met(order, paid, got):
            yield (
                f"W1: transaction {row.signature} of order {order.order_id} paid {paid} for {got};"
                f" it asks for {order.terms}"
            )


def _cancelled_for_good(
    record: Record,
    orders: Mapping[str, OrderRow],
    landed: Mapping[str, Sequence[LandedRow]],
    clock: _Slots,
) -> Iterator[str]:
    for answer in record.cancels:
        order = orders.get(answer.order_id)
        if not answer.accepted or order is None:
            continue
        if order.status != "cancelled":
            yield f"W2: the cancel of order {order.order_id} was answered OK; it is {order.status}"
        for row in landed.get(order.order_id, ()):
            if not row.failed:
                yield f"W2: order {order.order_id} was executed; its cancel was answered OK"
            elif row.slot > clock.at_most(answer.time):
                yield (
                    f"W2: transaction {row.signature} of order {order.order_id} landed in slot {row.slot},"
                    " after its cancel was answered OK"
                )


def _expired_on_time(order: OrderRow, events: Sequence[EventRow]) -> Iterator[str]:
    if order.spec is None or order.spec.expire_time is None:
        return
    for event in events:
        starts = (event.previous_status, event.status) == ("pending", "routing")
        if starts and event.write_time >= order.spec.expire_time:
            yield f"W5: order {order.order_id} was taken up at {event.write_time}, after it expired"
        # One that waits expires by the database's clock. One that is being executed, by what its worker takes
        # for that.
        slack = 0.0 if event.previous_status == "pending" else _CLOCK_SECONDS
        if event.status == "expired" and event.write_time + slack < order.spec.expire_time:
            yield f"W5: order {order.order_id} expired at {event.write_time}, too early"


def _fired_for_a_reason(story: _Story, landed: Sequence[LandedRow]) -> Iterator[str]:
    order = story.order
    for since, event in story.waits():
        if event is None or event.status != "routing":
            continue
        first, last = story.oldest_view(since), story.clock.at_most(event.commit_time)
        if not story.ever_met(first, last):
            yield (
                f"W3: order {order.order_id} was fired (event {event.sequence}) and from slot {first} to"
                f" {last} its condition never held"
            )
    if story.events:
        first = story.oldest_view(story.events[0].commit_time)
        for row in landed:
            if not row.failed and not story.ever_met(first, row.slot):
                yield f"W3: order {order.order_id} was executed, and its condition never held"


def _no_crossing_missed(story: _Story, room: Fraction) -> Iterator[str]:
    order, clock = story.order, story.clock
    for since, event in story.waits():
        until = None if event is None else event.commit_time
        missed = _missed(story, room, since, until)
        if missed is not None:
            end = "waits still" if event is None else f"was {event.status} at {event.commit_time:.3f}"
            yield (
                f"W4: the condition of order {order.order_id} held in slots {missed} and {missed + 1}, from"
                f" {clock.begin(missed)} on; it {end}"
            )
    if order.status != "confirmed" and story.events:
        lasted = _longest(story, room)
        if lasted >= LASTING_SECONDS:
            yield f"W4: order {order.order_id} is {order.status}; its condition held for {lasted:.1f} s"


def _whole_slots(clock: _Slots, since: float, until: float | None) -> range:
    """Return the slots that lie within a time, all of each."""
    end = clock.last if until is None else clock.at_least(until)
    return range(clock.at_most(since) + 1, end)


def _crossings(story: _Story, room: Fraction, since: float, until: float | None) -> Iterator[int]:
    """Yield slots in which, as in the one before, the condition held while the order waited, undisturbed."""
    clock = story.clock
    in_a_row = 0
    for slot in _whole_slots(clock, since, until):
        in_a_row = in_a_row + 1 if story.met(slot, room) else 0
        begin, end = clock.begin(slot - CROSSING_SLOTS + 1), clock.begin(slot + 1)
        if (
            in_a_row >= CROSSING_SLOTS
            and begin is not None
            and end is not None
            and clock.is_whole(begin, end)
        ):
            yield slot


def _missed(story: _Story, room: Fraction, since: float, until: float | None) -> int | None:
    """Return the first of two slots in which the condition held and nobody fired the order; None: none."""
    clock = story.clock
    over = until if until is not None else clock.begin(clock.last)
    for slot in _crossings(story, room, since, until):
        end = clock.begin(slot + 1)
        if over is not None and end is not None and over > clock.latest(end, FIRE_SECONDS):
            return slot - CROSSING_SLOTS + 1
    return None


def count_crossings(record: Record) -> int:
    """Return how often an order that waited crossed, with no excuse for missing it."""
    clock = _Slots(record)
    count = 0
    for order in record.orders:
        offers = record.offers.get(order.order_id)
        if offers is None or "min_liquidity" in order.terms:
            continue
        events = [event for event in record.events if event.order_id == order.order_id]
        story = _Story(order, events, offers, clock)
        for since, event in story.waits():
            # As it was fired in the first of these slots, or soon after, they need not lie before that.
            until = None if event is None else event.commit_time + 1.0
            count += next(_crossings(story, record.room, since, until), None) is not None
    return count


def _longest(story: _Story, room: Fraction) -> float:
    """Return for how long at a time the condition held while the order was open and the engine whole."""
    clock = story.clock
    last = story.events[-1]
    until = last.commit_time if last.status in ("cancelled", "expired", "failed") else None
    longest, start = 0.0, None
    for slot in _whole_slots(clock, story.events[0].commit_time, until):
        begin, end = clock.begin(slot), clock.begin(slot + 1)
        if begin is None or end is None:
            continue
        if not story.met(slot, room) or not clock.is_whole(begin, end):
            start = None
            continue
        start = begin if start is None else start
        longest = max(longest, end - start)
    return longest
