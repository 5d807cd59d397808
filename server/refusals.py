"""How an error travels: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo (AIP-193)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

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
    RequestIdReused,
    SequenceAhead,
    StoreUnavailable,
    TooManyOrders,
    TooManyTokens,
)
from engine.telemetry import refusals_total

DOMAIN: Final = "orders.v1"

CODES: Final[Mapping[type[EngineError], int]] = {
    InvalidOrder: code_pb2.INVALID_ARGUMENT,
    OrderNotFound: code_pb2.NOT_FOUND,
    RequestIdReused: code_pb2.ALREADY_EXISTS,
    OrderInFlight: code_pb2.FAILED_PRECONDITION,
    OrderClosed: code_pb2.FAILED_PRECONDITION,
    NoRoute: code_pb2.FAILED_PRECONDITION,
    SequenceAhead: code_pb2.OUT_OF_RANGE,
    TooManyOrders: code_pb2.RESOURCE_EXHAUSTED,
    StoreUnavailable: code_pb2.UNAVAILABLE,
    OrderNotReadable: code_pb2.UNAVAILABLE,
    NodeUnavailable: code_pb2.UNAVAILABLE,
    TooManyTokens: code_pb2.UNAVAILABLE,
    Draining: code_pb2.UNAVAILABLE,
    # To the client it is the same: ask again, with the same request_id.
    OutcomeUnknown: code_pb2.UNAVAILABLE,
}

logger = logging.getLogger(__name__)


def to_status(error: Exception) -> status_pb2.Status:
    """Return what the client is told. Errors that nobody expected are logged and tell nothing of ours."""
    code = CODES.get(type(error)) if isinstance(error, EngineError) else None
    if code is None or not isinstance(error, EngineError):
        refusals_total.labels("INTERNAL").inc()
        logger.error("unexpected error", exc_info=error)
        return _status(code_pb2.INTERNAL, "internal error", _info("INTERNAL"))
    refusals_total.labels(error.reason).inc()
    details: list[Message] = [_info(error.reason)]
    if isinstance(error, InvalidOrder):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description
                    )
                    for violation in error.violations
                ]
            )
        )
    if isinstance(error, TooManyOrders):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_seconds * 1000))
        details.append(retry)
    return _status(code, str(error), *details)


@asynccontextmanager
async def refusals(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """End the call with the status of whatever error comes up in the block."""
    try:
        yield
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except Exception as error:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))


class Decoding(grpc.aio.ServerInterceptor):
    """Has what is no message refused by the method it came for.

    What a deserializer raises, gRPC answers with UNKNOWN and words of Python, and logs as a fault of ours.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return handler._replace(request_deserializer=partial(_decode, handler.request_deserializer))


class _Undecodable:
    """Stands in for the request; whatever is read of it refuses it."""

    def __getattr__(self, name: str) -> NoReturn:
        how = "must be the message that the method takes, with text in UTF-8"
        raise InvalidOrder([FieldViolation("request", f"cannot be decoded; {how}")])


def _decode(deserialize: Callable[[bytes], Any], request: bytes) -> Any:
    try:
        return deserialize(request)
    except DecodeError:
        return _Undecodable()


def _info(reason: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)


def _status(code: int, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status
