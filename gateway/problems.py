"""Refusals as HTTP: one table from reasons to codes, one shape (problem+json, RFC 9457)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from client import InvalidOrder, OrderError, OrderSpec, Refused, Unavailable
from client.json_text import camel

CODE_OF: Final[Mapping[str, int]] = {
    # The contract's reasons.
    "INVALID_ORDER": 400,
    "SEQUENCE_AHEAD": 400,
    "ORDER_NOT_FOUND": 404,
    "NO_ROUTE": 409,
    "ORDER_CLOSED": 409,
    "ORDER_IN_FLIGHT": 409,
    "REQUEST_ID_REUSED": 422,
    "TOO_MANY_ORDERS": 429,
    "INTERNAL": 500,
    "DRAINING": 503,
    "NODE_UNAVAILABLE": 503,
    "STORE_UNAVAILABLE": 503,
    # Those of HTTP itself.
    "BAD_REQUEST": 400,
    "ORIGIN_NOT_ALLOWED": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "CONTENT_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "UPGRADE_REQUIRED": 426,
    "HEADERS_TOO_LARGE": 431,
}

API_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""For every answer that is not a page; pages bring their own."""

_FIELD_NAMES: Final = {
    "afterSequence": "after",
    "requestId": "Idempotency-Key",
    "pageSize": "limit",
    "statuses": "status",
    "types": "type",
}
"""Fields of the contract that REST spells otherwise."""

_CONTRACT_NAME: Final = re.compile(r'"[^"]*"|\b[a-z]+(?:_[a-z]+)+\b')
"""In a text; what is quoted there is the client's own."""
_CONTRACT_NAMES: Final = frozenset(field.name for field in fields(OrderSpec)) | {
    "after_sequence",
    "next_page_token",
    "order_id",
    "page_size",
    "page_token",
    "request_id",
}

_encode = msgspec.json.Encoder().encode


class HttpRefusal(Exception):
    """The request was refused before anything was asked of the order service."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.headers = dict(headers or {})


class InvalidFields(InvalidOrder):
    """Refused here, and not by the order service: fields have the names that the client gave them."""


def code_of(error: OrderError) -> int:
    """Return the HTTP code of an error; a reason newer than this table is known by what it means."""
    code = CODE_OF.get(error.reason)
    if code is not None:
        return code
    if isinstance(error, Refused):
        return 409
    return 503 if isinstance(error, Unavailable) else 500


def problem_of_error(error: OrderError) -> Response:
    code = code_of(error)
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    if code in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_seconds or 1.0)))
    if code == 503 and error.request_id is not None:
        # The order may have been stored. With this key a second try cannot buy twice.
        extra["requestId"] = error.request_id
    message, lines = error.message, [(line.field, line.description) for line in error.violations]
    if not isinstance(error, InvalidFields):
        lines = [(_field_name(name), in_own_names(text)) for name, text in lines]
        message = "; ".join(f"{name} {text}" for name, text in lines) or in_own_names(message)
    if lines:
        extra["errors"] = [{"field": name, "message": text} for name, text in lines]
    return problem(code, error.reason, message, headers, extra)


def problem_of_refusal(refusal: HttpRefusal) -> Response:
    return problem(CODE_OF[refusal.reason], refusal.reason, refusal.message, headers=refusal.headers)


def problem(
    code: int,
    reason: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """Return a problem+json answer; clients that know only success and message find these too."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(code).phrase,
        "status": code,
        "detail": message,
        "success": False,
        "message": message,
        "reason": reason,
    }
    return Response(
        _encode(body | dict(extra or {})),
        code,
        headers,
        media_type="application/problem+json",
    )


def raw(answer: Response, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the answer as it goes over the wire, for where no application answers; `headers` go first."""
    lines = [b"HTTP/1.1 %d %s" % (answer.status_code, HTTPStatus(answer.status_code).phrase.encode())]
    lines += [b"%b: %b" % header for header in (*headers, *answer.raw_headers, *API_HEADERS)]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


def _field_name(field: str) -> str:
    """ "spec.input_token" -> "inputToken", "spec.limit.limit_price" -> "limitPrice"."""
    name = camel(field.rpartition(".")[2])
    return _FIELD_NAMES.get(name, name)


def in_own_names(text: str) -> str:
    """Return a text of the order service's with the names that REST has for what it names.

    "send the order again with the same request_id" -> "... with the same Idempotency-Key".
    """
    return _CONTRACT_NAME.sub(
        lambda found: _field_name(found[0]) if found[0] in _CONTRACT_NAMES else found[0], text
    )
