"""Rows to domain values and back. The only file that knows both shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import msgspec

from engine.domain.order import (
    Attempt,
    FailureReason,
    Order,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    Quote,
    Route,
    RoutingDecision,
    Side,
)
from engine.domain.order_types import MARKET, ORDER_TYPES
from engine.domain.pools.pool import FeeSide
from engine.domain.tokens import Token, find_token, token_of_mint


class _QuoteObject(msgspec.Struct, frozen=True):
    """A Quote of a decision from before they were arrays of its fields, which was stored by their names."""

    venue: str
    kind: str
    pool: str
    input_amount: int | None = None
    output_amount: int | None = None
    fee_ppm: int = 0
    price_impact_ppm: int = 0
    refusal: str | None = None
    fee_amount: int = 0
    fee_side: FeeSide = FeeSide.INPUT


class _StoredDecision(msgspec.Struct, frozen=True):
    attempt: int
    slot: int
    reason: str
    route: Route | None
    quotes: tuple[Quote | _QuoteObject, ...]


_STATUS = {status.value: status for status in OrderStatus}
_REASON = {reason.value: reason for reason in FailureReason}
_SIDE = {side.value: side for side in Side}
_encode_decision = msgspec.json.Encoder().encode
_decode_decision = msgspec.json.Decoder(_StoredDecision).decode
_encode_terms = msgspec.json.Encoder().encode
_decode_terms = msgspec.json.Decoder(dict[str, str]).decode
_decode_route: Callable[[str], Route | None] = msgspec.json.Decoder(Route | None).decode


def decision_to_json(decision: RoutingDecision | None) -> bytes | None:
    """Return the JSON of a decision: an object, in which each quote is an array of its fields."""
    if decision is None:
        return None
    return _encode_decision(decision)


def decision_from_text(text: str) -> RoutingDecision:
    stored = _decode_decision(text)
    quotes = [
        quote if isinstance(quote, Quote) else Quote(*msgspec.structs.astuple(quote))
        for quote in stored.quotes
    ]
    return RoutingDecision(stored.attempt, stored.slot, tuple(quotes), stored.route, stored.reason)


def route_from_text(text: str) -> Route | None:
    """Return the route of a decision's text; None where no pool could fill the order."""
    return _decode_route(text)


def side_from_text(text: str) -> Side:
    return _SIDE[text]


def token_from_row(mint: str, decimals: int | None) -> Token:
    """Raises LookupError for a token that was known to this program once, and is not any more."""
    if decimals is not None:
        return token_of_mint(mint, decimals)
    token = find_token(mint)
    if token is None:
        raise LookupError(f"no token with mint {mint}")
    return token


def decimals_to_row(token: Token) -> int | None:
    return token.decimals if find_token(token.mint) is None else None


def terms_to_text(spec: OrderSpec) -> str | None:
    terms = spec.type.terms(spec.input_token)
    return _encode_terms(terms).decode() if terms else None


def order_from_row(row: Sequence[Any]) -> Order:
    """Return the order of a get_orders or claim_orders row."""
    (
        order_id,
        type_name,
        terms,
        side,
        amount,
        input_mint,
        input_decimals,
        output_mint,
        output_decimals,
        slippage_bps,
        expire_time,
        status,
        sequence,
        attempt,
        forgiven_attempts,
        create_time,
        update_time,
        venue,
        input_amount,
        output_amount,
        tx_hash,
        failure_reason,
        failure_message,
        decision,
        open_tx_hash,
        open_raw_transaction,
        open_last_valid_block_height,
    ) = row
    input_token = token_from_row(input_mint, input_decimals)
    output_token = token_from_row(output_mint, output_decimals)
    open_attempt = None
    if open_tx_hash is not None:
        open_attempt = Attempt(attempt, open_tx_hash, open_raw_transaction, open_last_valid_block_height)
    return Order(
        order_id=order_id,
        spec=OrderSpec(
            side=_SIDE[side],
            amount=int(amount),
            input_token=input_token,
            output_token=output_token,
            slippage_bps=slippage_bps,
            expire_time=expire_time,
            type=MARKET
            if terms is None and type_name == MARKET.name
            else ORDER_TYPES[type_name].read(_decode_terms(terms or "{}"), input_token, output_token),
        ),
        status=_STATUS[status],
        sequence=sequence,
        attempt=attempt,
        forgiven_attempts=forgiven_attempts,
        venue=venue,
        input_amount=None if input_amount is None else int(input_amount),
        output_amount=None if output_amount is None else int(output_amount),
        tx_hash=tx_hash,
        failure_reason=None if failure_reason is None else _REASON[failure_reason],
        failure_message=failure_message,
        route=None if decision is None else decision_from_text(decision).route,
        open_attempt=open_attempt,
        create_time=create_time,
        update_time=update_time,
    )


def event_from_row(row: Sequence[Any]) -> OrderEvent:
    """Return the event of an events_after row."""
    (
        order_id,
        sequence,
        status,
        attempt,
        create_time,
        venue,
        input_amount,
        output_amount,
        tx_hash,
        failure_reason,
        failure_message,
    ) = row
    return OrderEvent(
        order_id=order_id,
        sequence=sequence,
        status=_STATUS[status],
        attempt=attempt,
        create_time=create_time,
        venue=venue,
        input_amount=None if input_amount is None else int(input_amount),
        output_amount=None if output_amount is None else int(output_amount),
        tx_hash=tx_hash,
        failure_reason=None if failure_reason is None else _REASON[failure_reason],
        failure_message=failure_message,
    )


def uuid_ceiling() -> UUID:
    """Return the id that every order id is less than."""
    return UUID(int=(1 << 128) - 1)
