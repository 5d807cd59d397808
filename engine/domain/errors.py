"""What can go wrong, as one tree. The first question is always: did it happen?

    EngineError
    +-- Refused               no, and asking again the same way will not help
    |   +-- InvalidOrder          a field is malformed; one line for each
    |   +-- OrderNotFound
    |   +-- RequestIdReused       the request_id belongs to a different order
    |   +-- OrderInFlight         cancel came too late: a transaction may be on the network
    |   +-- OrderClosed           cancel came too late: the order has ended
    |   +-- NoRoute               no pool can fill it
    |   +-- SequenceAhead         a cursor beyond the record
    +-- Unavailable           no; ask again later
    |   +-- TooManyOrders
    |   +-- StoreUnavailable
    |   +-- OrderNotReadable      a newer version wrote it: another process may know what this one does not
    |   +-- NodeUnavailable
    |   +-- Draining
    +-- OutcomeUnknown        perhaps: settle it by reading, never by doing it again

`reason` is the word clients see (ErrorInfo.reason); messages say what was wrong and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID


class EngineError(Exception):
    reason: ClassVar[str] = "INTERNAL"


class Refused(EngineError):
    """It did not happen, and will not by asking again."""


class Unavailable(EngineError):
    """It did not happen; it may, if asked again."""


class OutcomeUnknown(EngineError):
    """It may have happened. Settle by reading the record, never by repeating."""

    reason = "OUTCOME_UNKNOWN"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    field: str
    """As the contract spells it: "spec.amount"."""
    description: str


class InvalidOrder(Refused):
    reason = "INVALID_ORDER"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{line.field} {line.description}" for line in violations))


class OrderNotFound(Refused):
    reason = "ORDER_NOT_FOUND"

    def __init__(self, order_id: UUID | str) -> None:
        super().__init__(f"no order {order_id}")


class RequestIdReused(Refused):
    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(f'request_id "{request_id}" was used for a different order; choose a new one')


class OrderInFlight(Refused):
    reason = "ORDER_IN_FLIGHT"

    def __init__(self, order_id: UUID) -> None:
        super().__init__(
            f"order {order_id} cannot be cancelled: its transaction may already be on the network"
        )


class OrderClosed(Refused):
    reason = "ORDER_CLOSED"

    def __init__(self, order_id: UUID, status: str) -> None:
        super().__init__(f"order {order_id} cannot be cancelled: it is already {status}")


class NoRoute(Refused):
    reason = "NO_ROUTE"


class SequenceAhead(Refused):
    reason = "SEQUENCE_AHEAD"

    def __init__(self, order_id: UUID, after_sequence: int, last_sequence: int) -> None:
        super().__init__(
            f"after_sequence was {after_sequence}, but the last event of order {order_id} is {last_sequence}"
        )


class TooManyOrders(Unavailable):
    reason = "TOO_MANY_ORDERS"

    def __init__(self, message: str, retry_seconds: float) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message)


class StoreUnavailable(Unavailable):
    reason = "STORE_UNAVAILABLE"


class OrderNotReadable(Unavailable):
    # What to do is the same, and the word is one that clients of every version know.
    reason = "STORE_UNAVAILABLE"

    def __init__(self, order_id: UUID) -> None:
        self.order_id = order_id
        super().__init__(
            f"order {order_id} is of a kind that this version does not know: ask a newer one, or later"
        )


class NodeUnavailable(Unavailable):
    reason = "NODE_UNAVAILABLE"


class TooManyTokens(Unavailable):
    """More are named by orders than can be followed at a time."""

    # What to do is the same as where the node cannot tell of one.
    reason = "NODE_UNAVAILABLE"


class Draining(Unavailable):
    reason = "DRAINING"
