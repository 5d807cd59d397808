"""The table of errors: what each of the domain's is on the wire."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import UUID

import pytest
from google.rpc import code_pb2, error_details_pb2
from prometheus_client import REGISTRY

from engine.domain.errors import (
    Draining,
    EngineError,
    FieldViolation,
    InvalidOrder,
    NodeUnavailable,
    NoRoute,
    OrderClosed,
    OrderInFlight,
    OrderNotFound,
    OrderNotReadable,
    OutcomeUnknown,
    Refused,
    RequestIdReused,
    SequenceAhead,
    StoreUnavailable,
    TooManyOrders,
    TooManyTokens,
    Unavailable,
)
from server.refusals import CODES, to_status

ORDER_ID = UUID(int=7)

TABLE: list[tuple[EngineError, str, str]] = [
    (InvalidOrder([FieldViolation("spec.amount", "was -1")]), "INVALID_ARGUMENT", "INVALID_ORDER"),
    (OrderNotFound(ORDER_ID), "NOT_FOUND", "ORDER_NOT_FOUND"),
    (RequestIdReused("mine"), "ALREADY_EXISTS", "REQUEST_ID_REUSED"),
    (OrderInFlight(ORDER_ID), "FAILED_PRECONDITION", "ORDER_IN_FLIGHT"),
    (OrderClosed(ORDER_ID, "confirmed"), "FAILED_PRECONDITION", "ORDER_CLOSED"),
    (NoRoute("no pool trades it"), "FAILED_PRECONDITION", "NO_ROUTE"),
    (SequenceAhead(ORDER_ID, 9, 2), "OUT_OF_RANGE", "SEQUENCE_AHEAD"),
    (TooManyOrders("as many as are taken", 2.0), "RESOURCE_EXHAUSTED", "TOO_MANY_ORDERS"),
    (StoreUnavailable("PostgreSQL is away"), "UNAVAILABLE", "STORE_UNAVAILABLE"),
    (OrderNotReadable(ORDER_ID), "UNAVAILABLE", "STORE_UNAVAILABLE"),
    (NodeUnavailable("the node is away"), "UNAVAILABLE", "NODE_UNAVAILABLE"),
    (TooManyTokens("as many as can be"), "UNAVAILABLE", "NODE_UNAVAILABLE"),
    (Draining("come back"), "UNAVAILABLE", "DRAINING"),
    (OutcomeUnknown("the connection broke"), "UNAVAILABLE", "OUTCOME_UNKNOWN"),
]


def _refused(reason: str) -> float:
    return REGISTRY.get_sample_value("order_engine_refusals_total", {"reason": reason}) or 0.0


def leaves(kind: type[EngineError]) -> Iterator[type[EngineError]]:
    """Errors of the domain that nothing is more precise than."""
    children = [child for child in kind.__subclasses__() if child.__module__ == EngineError.__module__]
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


@pytest.mark.parametrize(("error", "code", "reason"), TABLE, ids=lambda value: type(value).__name__)
def test_an_error_has_its_code_and_its_reason(error: EngineError, code: str, reason: str) -> None:
    refused = _refused(reason)
    status = to_status(error)
    assert _refused(reason) == refused + 1
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (code_pb2.Code.Name(status.code), info.reason, info.domain) == (code, reason, "orders.v1")
    assert status.message == str(error)
    extra = {InvalidOrder: "BadRequest", TooManyOrders: "RetryInfo"}.get(type(error))
    assert [detail.TypeName() for detail in status.details[1:]] == ([f"google.rpc.{extra}"] if extra else [])


def test_every_error_of_the_domain_is_in_the_table() -> None:
    assert set(leaves(EngineError)) == {type(error) for error, _, _ in TABLE} == set(CODES)


@pytest.mark.parametrize("error", [KeyError("swordfish"), Refused("swordfish"), Unavailable("swordfish")])
def test_an_error_that_nobody_expected_is_logged_and_tells_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    refused = _refused("INTERNAL")
    with caplog.at_level(logging.ERROR):
        status = to_status(error)
    assert _refused("INTERNAL") == refused + 1
    assert (code_pb2.Code.Name(status.code), status.message) == ("INTERNAL", "internal error")
    assert b"swordfish" not in status.SerializeToString()
    assert "swordfish" in caplog.text


def test_retry_info_says_when_to_come_back() -> None:
    retry = error_details_pb2.RetryInfo()
    to_status(TooManyOrders("full", 1.5)).details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.5
