import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Side(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SIDE_UNSPECIFIED: _ClassVar[Side]
    SIDE_BUY: _ClassVar[Side]
    SIDE_SELL: _ClassVar[Side]

class OrderStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_STATUS_UNSPECIFIED: _ClassVar[OrderStatus]
    ORDER_STATUS_PENDING: _ClassVar[OrderStatus]
    ORDER_STATUS_ROUTING: _ClassVar[OrderStatus]
    ORDER_STATUS_BUILDING: _ClassVar[OrderStatus]
    ORDER_STATUS_SUBMITTED: _ClassVar[OrderStatus]
    ORDER_STATUS_CONFIRMED: _ClassVar[OrderStatus]
    ORDER_STATUS_FAILED: _ClassVar[OrderStatus]
    ORDER_STATUS_CANCELLED: _ClassVar[OrderStatus]
    ORDER_STATUS_EXPIRED: _ClassVar[OrderStatus]

class FailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_REASON_UNSPECIFIED: _ClassVar[FailureReason]
    FAILURE_REASON_NO_ROUTE: _ClassVar[FailureReason]
    FAILURE_REASON_SLIPPAGE_EXCEEDED: _ClassVar[FailureReason]
    FAILURE_REASON_INSUFFICIENT_FUNDS: _ClassVar[FailureReason]
    FAILURE_REASON_VENUE_REJECTED: _ClassVar[FailureReason]
    FAILURE_REASON_TRANSACTION_REVERTED: _ClassVar[FailureReason]
    FAILURE_REASON_TRANSACTION_EXPIRED: _ClassVar[FailureReason]
    FAILURE_REASON_INTERNAL: _ClassVar[FailureReason]
SIDE_UNSPECIFIED: Side
SIDE_BUY: Side
SIDE_SELL: Side
ORDER_STATUS_UNSPECIFIED: OrderStatus
ORDER_STATUS_PENDING: OrderStatus
ORDER_STATUS_ROUTING: OrderStatus
ORDER_STATUS_BUILDING: OrderStatus
ORDER_STATUS_SUBMITTED: OrderStatus
ORDER_STATUS_CONFIRMED: OrderStatus
ORDER_STATUS_FAILED: OrderStatus
ORDER_STATUS_CANCELLED: OrderStatus
ORDER_STATUS_EXPIRED: OrderStatus
FAILURE_REASON_UNSPECIFIED: FailureReason
FAILURE_REASON_NO_ROUTE: FailureReason
FAILURE_REASON_SLIPPAGE_EXCEEDED: FailureReason
FAILURE_REASON_INSUFFICIENT_FUNDS: FailureReason
FAILURE_REASON_VENUE_REJECTED: FailureReason
FAILURE_REASON_TRANSACTION_REVERTED: FailureReason
FAILURE_REASON_TRANSACTION_EXPIRED: FailureReason
FAILURE_REASON_INTERNAL: FailureReason

class OrderSpec(_message.Message):
    __slots__ = ("side", "amount", "input_token", "output_token", "slippage_bps", "expire_time", "market")
    SIDE_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SLIPPAGE_BPS_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MARKET_FIELD_NUMBER: _ClassVar[int]
    side: Side
    amount: str
    input_token: str
    output_token: str
    slippage_bps: int
    expire_time: _timestamp_pb2.Timestamp
    market: MarketOrder
    def __init__(self, side: _Optional[_Union[Side, str]] = ..., amount: _Optional[str] = ..., input_token: _Optional[str] = ..., output_token: _Optional[str] = ..., slippage_bps: _Optional[int] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., market: _Optional[_Union[MarketOrder, _Mapping]] = ...) -> None: ...

class MarketOrder(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Order(_message.Message):
    __slots__ = ("order_id", "spec", "status", "failure_reason", "failure_message", "venue", "price", "input_amount", "output_amount", "tx_hash", "attempt", "sequence", "create_time", "update_time")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_REASON_FIELD_NUMBER: _ClassVar[int]
    FAILURE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VENUE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    INPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TX_HASH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    spec: OrderSpec
    status: OrderStatus
    failure_reason: FailureReason
    failure_message: str
    venue: str
    price: str
    input_amount: str
    output_amount: str
    tx_hash: str
    attempt: int
    sequence: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, order_id: _Optional[str] = ..., spec: _Optional[_Union[OrderSpec, _Mapping]] = ..., status: _Optional[_Union[OrderStatus, str]] = ..., failure_reason: _Optional[_Union[FailureReason, str]] = ..., failure_message: _Optional[str] = ..., venue: _Optional[str] = ..., price: _Optional[str] = ..., input_amount: _Optional[str] = ..., output_amount: _Optional[str] = ..., tx_hash: _Optional[str] = ..., attempt: _Optional[int] = ..., sequence: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class OrderEvent(_message.Message):
    __slots__ = ("order_id", "sequence", "status", "failure_reason", "failure_message", "venue", "price", "input_amount", "output_amount", "tx_hash", "attempt", "create_time")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_REASON_FIELD_NUMBER: _ClassVar[int]
    FAILURE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VENUE_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    INPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TX_HASH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    sequence: int
    status: OrderStatus
    failure_reason: FailureReason
    failure_message: str
    venue: str
    price: str
    input_amount: str
    output_amount: str
    tx_hash: str
    attempt: int
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, order_id: _Optional[str] = ..., sequence: _Optional[int] = ..., status: _Optional[_Union[OrderStatus, str]] = ..., failure_reason: _Optional[_Union[FailureReason, str]] = ..., failure_message: _Optional[str] = ..., venue: _Optional[str] = ..., price: _Optional[str] = ..., input_amount: _Optional[str] = ..., output_amount: _Optional[str] = ..., tx_hash: _Optional[str] = ..., attempt: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SubmitOrderRequest(_message.Message):
    __slots__ = ("spec", "request_id")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    spec: OrderSpec
    request_id: str
    def __init__(self, spec: _Optional[_Union[OrderSpec, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class SubmitOrderResponse(_message.Message):
    __slots__ = ("order", "deduplicated")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    order: Order
    deduplicated: bool
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ..., deduplicated: _Optional[bool] = ...) -> None: ...

class BatchSubmitOrdersRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SubmitOrderRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[SubmitOrderRequest, _Mapping]]] = ...) -> None: ...

class BatchSubmitOrdersResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchSubmitOrdersResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchSubmitOrdersResult, _Mapping]]] = ...) -> None: ...

class BatchSubmitOrdersResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: SubmitOrderResponse
    error: _status_pb2.Status
    def __init__(self, response: _Optional[_Union[SubmitOrderResponse, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class GetQuoteRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: OrderSpec
    def __init__(self, spec: _Optional[_Union[OrderSpec, _Mapping]] = ...) -> None: ...

class GetQuoteResponse(_message.Message):
    __slots__ = ("decision",)
    DECISION_FIELD_NUMBER: _ClassVar[int]
    decision: RoutingDecision
    def __init__(self, decision: _Optional[_Union[RoutingDecision, _Mapping]] = ...) -> None: ...

class RoutingDecision(_message.Message):
    __slots__ = ("attempt", "slot", "quotes", "route", "reason")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    QUOTES_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    slot: int
    quotes: _containers.RepeatedCompositeFieldContainer[Quote]
    route: Route
    reason: str
    def __init__(self, attempt: _Optional[int] = ..., slot: _Optional[int] = ..., quotes: _Optional[_Iterable[_Union[Quote, _Mapping]]] = ..., route: _Optional[_Union[Route, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Quote(_message.Message):
    __slots__ = ("venue", "kind", "pool", "input_amount", "output_amount", "price", "fee_ppm", "price_impact_ppm", "refusal")
    VENUE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    INPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    FEE_PPM_FIELD_NUMBER: _ClassVar[int]
    PRICE_IMPACT_PPM_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    venue: str
    kind: str
    pool: str
    input_amount: str
    output_amount: str
    price: str
    fee_ppm: int
    price_impact_ppm: int
    refusal: str
    def __init__(self, venue: _Optional[str] = ..., kind: _Optional[str] = ..., pool: _Optional[str] = ..., input_amount: _Optional[str] = ..., output_amount: _Optional[str] = ..., price: _Optional[str] = ..., fee_ppm: _Optional[int] = ..., price_impact_ppm: _Optional[int] = ..., refusal: _Optional[str] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("legs", "input_amount", "output_amount", "price", "threshold_amount")
    LEGS_FIELD_NUMBER: _ClassVar[int]
    INPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    legs: _containers.RepeatedCompositeFieldContainer[RouteLeg]
    input_amount: str
    output_amount: str
    price: str
    threshold_amount: str
    def __init__(self, legs: _Optional[_Iterable[_Union[RouteLeg, _Mapping]]] = ..., input_amount: _Optional[str] = ..., output_amount: _Optional[str] = ..., price: _Optional[str] = ..., threshold_amount: _Optional[str] = ...) -> None: ...

class RouteLeg(_message.Message):
    __slots__ = ("venue", "kind", "pool", "input_amount", "output_amount")
    VENUE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    INPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    venue: str
    kind: str
    pool: str
    input_amount: str
    output_amount: str
    def __init__(self, venue: _Optional[str] = ..., kind: _Optional[str] = ..., pool: _Optional[str] = ..., input_amount: _Optional[str] = ..., output_amount: _Optional[str] = ...) -> None: ...

class GetOrderRequest(_message.Message):
    __slots__ = ("order_id",)
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    def __init__(self, order_id: _Optional[str] = ...) -> None: ...

class GetOrderResponse(_message.Message):
    __slots__ = ("order", "routing_decisions")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ROUTING_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    order: Order
    routing_decisions: _containers.RepeatedCompositeFieldContainer[RoutingDecision]
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ..., routing_decisions: _Optional[_Iterable[_Union[RoutingDecision, _Mapping]]] = ...) -> None: ...

class ListOrdersRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "statuses")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    statuses: _containers.RepeatedScalarFieldContainer[OrderStatus]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., statuses: _Optional[_Iterable[_Union[OrderStatus, str]]] = ...) -> None: ...

class ListOrdersResponse(_message.Message):
    __slots__ = ("orders", "next_page_token")
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[Order]
    next_page_token: str
    def __init__(self, orders: _Optional[_Iterable[_Union[Order, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelOrderRequest(_message.Message):
    __slots__ = ("order_id",)
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    def __init__(self, order_id: _Optional[str] = ...) -> None: ...

class CancelOrderResponse(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: Order
    def __init__(self, order: _Optional[_Union[Order, _Mapping]] = ...) -> None: ...

class WatchOrderRequest(_message.Message):
    __slots__ = ("order_id", "after_sequence")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    after_sequence: int
    def __init__(self, order_id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class WatchOrderResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: OrderEvent
    def __init__(self, event: _Optional[_Union[OrderEvent, _Mapping]] = ...) -> None: ...

class WatchOrdersRequest(_message.Message):
    __slots__ = ("watch", "unwatch")
    WATCH_FIELD_NUMBER: _ClassVar[int]
    UNWATCH_FIELD_NUMBER: _ClassVar[int]
    watch: WatchOrderRequest
    unwatch: str
    def __init__(self, watch: _Optional[_Union[WatchOrderRequest, _Mapping]] = ..., unwatch: _Optional[str] = ...) -> None: ...

class WatchOrdersResponse(_message.Message):
    __slots__ = ("events", "ended")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[OrderEvent]
    ended: _containers.RepeatedCompositeFieldContainer[WatchEnded]
    def __init__(self, events: _Optional[_Iterable[_Union[OrderEvent, _Mapping]]] = ..., ended: _Optional[_Iterable[_Union[WatchEnded, _Mapping]]] = ...) -> None: ...

class WatchEnded(_message.Message):
    __slots__ = ("order_id", "status")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    status: _status_pb2.Status
    def __init__(self, order_id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
