"""What can go wrong, as one tree. The first question is always: did it happen?

    OrderError
    +-- Refused                 no, and asking again the same way will not help
    |   +-- InvalidOrder            a field is malformed; `violations` has a line for each
    |   +-- OrderNotFound
    |   +-- RequestIdReused         the request_id belongs to a different order
    |   +-- OrderInFlight           cancel came too late: a transaction may be on the network
    |   +-- OrderClosed             cancel came too late: the order has ended
    |   +-- NoRoute                 no pool can fill the order
    |   +-- SequenceAhead           a cursor beyond the record
    +-- Unavailable             ask again; a submit with the same `request_id`, for it may have happened
    |   +-- TooManyOrders           certainly not stored; `retry_seconds` says when to come back
    |   +-- NodeUnavailable         the engine has no fresh market data
    |   +-- ServerUnavailable       no answer, or its store is away, or it is restarting
    +-- InternalError           the server's fault; the text names nothing internal

`reason` is the word of the contract (google.rpc.ErrorInfo.reason), `message` is for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailer in which a google.rpc.Status travels."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    field: str
    """As the contract spells it: "spec.amount"."""
    description: str


class OrderError(Exception):
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if reason:
            self.reason = reason
        self.violations = tuple(violations)
        self.retry_seconds = retry_seconds
        self.request_id: str | None = None
        """Of the submit this is about: submit again with it, and nothing can be bought twice."""


class Refused(OrderError):
    """It did not happen, and will not by asking again."""


class InvalidOrder(Refused):
    reason = "INVALID_ORDER"


class OrderNotFound(Refused):
    reason = "ORDER_NOT_FOUND"


class RequestIdReused(Refused):
    reason = "REQUEST_ID_REUSED"


class OrderInFlight(Refused):
    reason = "ORDER_IN_FLIGHT"


class OrderClosed(Refused):
    reason = "ORDER_CLOSED"


class NoRoute(Refused):
    reason = "NO_ROUTE"


class SequenceAhead(Refused):
    reason = "SEQUENCE_AHEAD"


class Unavailable(OrderError):
    """Ask again, a submit with the same request_id."""

    reason = "UNAVAILABLE"


class TooManyOrders(Unavailable):
    reason = "TOO_MANY_ORDERS"


class NodeUnavailable(Unavailable):
    reason = "NODE_UNAVAILABLE"


class ServerUnavailable(Unavailable):
    reason = "STORE_UNAVAILABLE"


class InternalError(OrderError):
    """Not the caller's fault."""


_KINDS: Final[tuple[type[OrderError], ...]] = (
    InvalidOrder,
    OrderNotFound,
    RequestIdReused,
    OrderInFlight,
    OrderClosed,
    NoRoute,
    SequenceAhead,
    TooManyOrders,
    NodeUnavailable,
    ServerUnavailable,
)
_BY_REASON: Final = {kind.reason: kind for kind in _KINDS} | {"DRAINING": ServerUnavailable}

# For an answer without ErrorInfo (a proxy's, or the transport's own), and for reasons newer than this client.
_BY_CODE: Final[dict[int, type[OrderError]]] = {
    code_pb2.INVALID_ARGUMENT: InvalidOrder,
    code_pb2.NOT_FOUND: OrderNotFound,
    code_pb2.ALREADY_EXISTS: RequestIdReused,
    code_pb2.FAILED_PRECONDITION: Refused,
    code_pb2.OUT_OF_RANGE: SequenceAhead,
    code_pb2.RESOURCE_EXHAUSTED: TooManyOrders,
    code_pb2.UNAVAILABLE: ServerUnavailable,
    code_pb2.DEADLINE_EXCEEDED: ServerUnavailable,
    # A call that a restarting server or a broken connection cut short.
    code_pb2.CANCELLED: ServerUnavailable,
    code_pb2.ABORTED: ServerUnavailable,
}


def error_of_status(status: status_pb2.Status) -> OrderError:
    """Return the error that a google.rpc.Status other than OK stands for."""
    reason: str | None = None
    violations: list[FieldViolation] = []
    retry_seconds: float | None = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            violations += [
                FieldViolation(line.field, line.description) for line in bad_request.field_violations
            ]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry_info = error_details_pb2.RetryInfo()
            detail.Unpack(retry_info)
            retry_seconds = retry_info.retry_delay.ToNanoseconds() / 1e9
    kind = _BY_REASON.get(reason or "") or _BY_CODE.get(status.code, InternalError)
    return kind(status.message, reason=reason, violations=violations, retry_seconds=retry_seconds)


def error_of_call(error: grpc.aio.AioRpcError) -> OrderError:
    """Return the error that a failed RPC stands for."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return error_of_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    code: int = error.code().value[0]
    return error_of_status(status_pb2.Status(code=code, message=error.details() or error.code().name.lower()))
