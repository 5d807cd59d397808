"""Answers the calls of OrderService."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from struct import Struct
from typing import Any, Final
from uuid import UUID

import grpc
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

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
    StoreUnavailable,
)
from engine.domain.lifecycle import CANCELLABLE, CLOSED, Cancelled, apply
from engine.domain.order import Order, OrderStatus, WatchedEvent
from engine.domain.order_ids import make_order_id
from engine.domain.retry import RetryPolicy
from engine.hints import Hints
from engine.market import Market
from engine.queue import OrderBroker
from engine.settings import Settings
from engine.storage.postgres import NewOrder, OrderDetails, Store, Submitted
from engine.telemetry import stage_seconds, transitions_total
from server.admission import Admission
from server.convert import (
    Fields,
    FindToken,
    decision_fields,
    event_fields,
    fingerprint,
    order_fields,
    order_id_from_proto,
    order_to_proto,
    page_token_from_proto,
    page_token_to_proto,
    realised_slippage_ppm,
    request_id_from_proto,
    spec_from_proto,
    statuses_from_proto,
    tokens_named,
    types_from_proto,
)
from server.refusals import refusals, to_status
from server.tokens import Tokens
from server.watches import Ended, Subscription, Watches

_MAX_BATCH: Final = 1000
_MAX_GET_BATCH: Final = 100
_MAX_GET_BYTES: Final = 3_000_000
"""Of their answers together, mostly routing decisions: gRPC's clients take 4 MB unless told otherwise."""
_ENTROPY: Final = Struct(">Q")
"""Of an order's id: 64 bits."""
_PAGE: Final = 50
_MAX_PAGE: Final = 500
_NO_RETRY: Final = RetryPolicy()
"""A cancel leads to no retry; `apply` asks for a policy all the same."""

_QUOTE_AGE_SECONDS: Final = 0.1
"""Prices of quotes are at most so old; quotes that come closer together share what was read."""

_REQUEST_BYTES: Final = 512
_WATCH_BYTES: Final = 64
"""What a request of watches, and each of its orders, takes in memory beyond the bytes it came in."""

_accepted = transitions_total.labels(OrderStatus.PENDING.value)
_accept_seconds = stage_seconds.labels("accept")
"""Of each order, like all stages: a batch counts once for every order in it."""

Context = grpc.aio.ServicerContext[Any, Any]


class OrderService(orders_pb2_grpc.OrderServiceServicer):
    def __init__(
        self,
        settings: Settings,
        store: Store,
        broker: OrderBroker,
        hints: Hints,
        market: Market,
        watches: Watches,
        admission: Admission,
        tokens: Tokens,
    ) -> None:
        self._settings = settings
        self._store = store
        self._broker = broker
        self._hints = hints
        self._market = market
        self._watches = watches
        self._admission = admission
        self._tokens = tokens

    # ---- Submitting ----------------------------------------------------------------------------

    async def SubmitOrder(  # noqa: N802
        self, request: pb.SubmitOrderRequest, context: Context
    ) -> pb.SubmitOrderResponse:
        async with refusals(context):
            (result,) = await self._submit([request])
            if isinstance(result, Exception):
                raise result
            return pb.SubmitOrderResponse(**_submitted_fields(result))
        raise AssertionError("refusals ends the call")

    async def BatchSubmitOrders(  # noqa: N802
        self, request: pb.BatchSubmitOrdersRequest, context: Context
    ) -> pb.BatchSubmitOrdersResponse:
        async with refusals(context):
            return await self.submit_batch(request)
        raise AssertionError("refusals ends the call")

    async def submit_batch(self, request: pb.BatchSubmitOrdersRequest) -> pb.BatchSubmitOrdersResponse:
        """Raises what refuses all of them."""
        count = len(request.requests)
        if not 1 <= count <= _MAX_BATCH:
            raise InvalidOrder(
                [FieldViolation("requests", f"were {count}; must be between 1 and {_MAX_BATCH}")]
            )
        results: list[Any] = [
            {"error": to_status(result)}
            if isinstance(result, Exception)
            else {"response": _submitted_fields(result)}
            for result in await self._submit(request.requests)
        ]
        return pb.BatchSubmitOrdersResponse(results=results)

    async def _submit(self, requests: Sequence[pb.SubmitOrderRequest]) -> list[Submitted | Exception]:
        start = time.perf_counter()
        if self._watches.draining:
            raise Draining("the server is restarting; send the order again with the same request_id")
        results: list[Submitted | Exception | None] = []
        orders: dict[int, NewOrder] = {}
        unanswered = await self._learn_tokens([request.spec for request in requests])
        # For all of them at once: it is a system call.
        entropy = _ENTROPY.iter_unpack(secrets.token_bytes(_ENTROPY.size * len(requests)))
        for index, (request, (random_bits,)) in enumerate(zip(requests, entropy, strict=True)):
            try:
                orders[index] = _new_order(request, self._tokens.find, random_bits)
                results.append(None)
            except InvalidOrder as error:
                # What the chain was not asked about is not the client's mistake.
                results.append(unanswered if unanswered and self._names_unknown(request.spec) else error)
        refused: dict[int, NewOrder] = {}
        with self._admission.admit([order.spec.waits for order in orders.values()]) as full:
            for index, refusal in zip(list(orders), full, strict=True):
                if refusal is not None:
                    results[index] = refusal
                    refused[index] = orders.pop(index)
            stored = await self._store.submit.many(list(orders.values()))
        new: list[Order] = []
        for index, answer in zip(orders, stored, strict=True):
            results[index] = answer
            if isinstance(answer, Submitted) and not answer.deduplicated:
                new.append(answer.order)
        # Before anybody is told of them, who would then watch them or move them.
        self._watches.stored(new)
        # What waits for its trigger is for its monitor to find. The client's answer does not wait for
        # Redis: the order is stored, and the sweeper finds it.
        if due := [order.order_id for order in new if not order.spec.waits]:
            self._broker.offer_soon(due)
        _accepted.inc(len(new))
        if refused:
            # What was accepted before stays accepted: a repeated request is answered, full or not.
            try:
                replays = await self._store.replays(list(refused.values()))
            except EngineError as error:
                results = [error if index in refused else result for index, result in enumerate(results)]
            else:
                for index, order in refused.items():
                    results[index] = replays.get(order.order_id, results[index])
        seconds = time.perf_counter() - start
        for _ in requests:
            _accept_seconds.observe(seconds)
        return [result for result in results if result is not None]

    async def _learn_tokens(self, specs: Sequence[pb.OrderSpec]) -> NodeUnavailable | None:
        """Look up the mints that orders name and nobody knows yet; return why that was not possible."""
        unknown = [name for spec in specs for name in tokens_named(spec) if self._tokens.find(name) is None]
        if unknown:
            try:
                await self._tokens.learn(unknown)
            except NodeUnavailable as error:
                return error
        return None

    def _names_unknown(self, spec: pb.OrderSpec) -> bool:
        return any(name and self._tokens.find(name) is None for name in tokens_named(spec))

    # ---- Pricing and reading --------------------------------------------------------------------

    async def GetQuote(  # noqa: N802
        self, request: pb.GetQuoteRequest, context: Context
    ) -> pb.GetQuoteResponse:
        async with refusals(context):
            if (unanswered := await self._learn_tokens([request.spec])) is not None:
                raise unanswered
            spec = spec_from_proto(request.spec, find=self._tokens.find)
            slippage_bps = spec.slippage_bps_or(self._settings.slippage_bps)
            await self._market.learn((spec.input_token, spec.output_token))
            await self._market.refresh(_QUOTE_AGE_SECONDS)
            decision = self._market.decide(spec, 0, slippage_bps)
            if decision.route is None:
                raise NoRoute(decision.reason)
            return pb.GetQuoteResponse(decision=pb.RoutingDecision(**decision_fields(decision, spec)))
        raise AssertionError("refusals ends the call")

    async def GetOrder(  # noqa: N802
        self, request: pb.GetOrderRequest, context: Context
    ) -> pb.GetOrderResponse:
        async with refusals(context):
            order_id = order_id_from_proto(request.order_id)
            return pb.GetOrderResponse(**_details_fields(order_id, await self._store.details(order_id)))
        raise AssertionError("refusals ends the call")

    async def BatchGetOrders(  # noqa: N802
        self, request: pb.BatchGetOrdersRequest, context: Context
    ) -> pb.BatchGetOrdersResponse:
        async with refusals(context):
            return await self.get_batch(request)
        raise AssertionError("refusals ends the call")

    async def get_batch(self, request: pb.BatchGetOrdersRequest) -> pb.BatchGetOrdersResponse:
        """Raises what refuses all of them."""
        count = len(request.order_ids)
        if not 1 <= count <= _MAX_GET_BATCH:
            raise InvalidOrder(
                [FieldViolation("order_ids", f"were {count}; must be between 1 and {_MAX_GET_BATCH}")]
            )
        results: list[Any] = []
        wanted: dict[int, UUID] = {}
        for index, text in enumerate(request.order_ids):
            try:
                wanted[index] = order_id_from_proto(text)
                results.append(None)
            except InvalidOrder as error:
                results.append({"error": to_status(error)})
        found = await self._store.details.many(list(wanted.values()))
        size = 0
        for (index, order_id), details in zip(wanted.items(), found, strict=True):
            try:
                response = pb.GetOrderResponse(**_details_fields(order_id, details))
                # The first one always, however many decisions an order has seen.
                if size and size + response.ByteSize() > _MAX_GET_BYTES:
                    raise StoreUnavailable(f"the answer is full; ask for order {order_id} again")
                size += response.ByteSize()
                results[index] = {"response": response}
            except Exception as error:
                results[index] = {"error": to_status(error)}
        return pb.BatchGetOrdersResponse(results=results)

    async def ListOrders(  # noqa: N802
        self, request: pb.ListOrdersRequest, context: Context
    ) -> pb.ListOrdersResponse:
        async with refusals(context):
            if request.page_size < 0:
                raise InvalidOrder(
                    [FieldViolation("page_size", f"was {request.page_size}; must not be negative")]
                )
            size = min(request.page_size or _PAGE, _MAX_PAGE)
            before = page_token_from_proto(request.page_token)
            statuses = statuses_from_proto(request.statuses)
            types = types_from_proto(request.types)
            # One more than asked for tells whether there is a next page.
            orders = await self._store.list_orders(size + 1, before, statuses, types)
            page = orders[:size]
            return pb.ListOrdersResponse(
                orders=[order_to_proto(order) for order in page],
                next_page_token=page_token_to_proto(page[-1].order_id) if len(orders) > size else "",
            )
        raise AssertionError("refusals ends the call")

    async def _get(self, order_id: UUID) -> Order:
        order = await self._store.get(order_id)
        if order is None:
            raise OrderNotFound(order_id)
        return order

    # ---- Cancelling -----------------------------------------------------------------------------

    async def CancelOrder(  # noqa: N802
        self, request: pb.CancelOrderRequest, context: Context
    ) -> pb.CancelOrderResponse:
        async with refusals(context):
            order = await self._cancel(order_id_from_proto(request.order_id))
            return pb.CancelOrderResponse(order=order_to_proto(order))
        raise AssertionError("refusals ends the call")

    async def _cancel(self, order_id: UUID) -> Order:
        while True:
            order = await self._get(order_id)
            if order.status in CLOSED:
                raise OrderClosed(order_id, order.status.value)
            if order.status not in CANCELLABLE:
                raise OrderInFlight(order_id)
            transition = apply(order, Cancelled(), _NO_RETRY)
            cancelled = await self._store.advance([transition])
            if cancelled is not None:
                transitions_total.labels(cancelled.status.value).inc()
                # With its event: a worker's hint of what the order did before may come later, and look newer.
                self._hints.tell(cancelled, [transition.event])
                return await self._get(order_id)
            # A worker moved it meanwhile. It moves a few times at most, and then the answer is clear.

    # ---- Watching -------------------------------------------------------------------------------

    async def WatchOrder(  # noqa: N802
        self, request: pb.WatchOrderRequest, context: Context
    ) -> AsyncIterator[pb.WatchOrderResponse]:
        async with refusals(context):
            order_id, after_sequence = _watch_from_proto(request)
            with self._watches.subscribe() as subscription:
                subscription.watch(order_id, after_sequence)
                async for events, ended in subscription.events():
                    for watched in events:
                        yield pb.WatchOrderResponse(event=pb.OrderEvent(**event_fields(watched)))
                    for end in ended:
                        if end.error is not None:
                            raise end.error
                        return

    async def WatchOrders(  # noqa: N802
        self, requests: AsyncIterator[pb.WatchOrdersRequest], context: Context
    ) -> AsyncIterator[pb.WatchOrdersResponse]:
        async with refusals(context):
            with self._watches.subscribe() as subscription:
                listening = asyncio.create_task(_listen(requests, subscription))
                try:
                    async for events, ended in subscription.events():
                        if listening.done():
                            listening.result()
                        yield news_to_proto(events, ended)
                finally:
                    listening.cancel()
                    # What the client's half of the stream ended with is told by the call itself.
                    await asyncio.wait([listening])


async def _listen(requests: AsyncIterator[pb.WatchOrdersRequest], subscription: Subscription) -> None:
    try:
        async for request in requests:
            listen(request, subscription)
            await subscription.room()
    except Exception:
        # Any news will do: with them the call sees how this ended. Without, it would be deaf for ever.
        subscription.refuse("", InvalidOrder([]))
        raise


def listen(request: pb.WatchOrdersRequest, subscription: Subscription) -> None:
    """Have watched what the request asks for, and no longer what it says so of."""
    order_count = len(request.watch) + len(request.unwatch)
    size = _REQUEST_BYTES + _WATCH_BYTES * order_count + request.ByteSize()
    subscription.ask(_steps(request, subscription), size)


def _steps(request: pb.WatchOrdersRequest, subscription: Subscription) -> Iterator[None]:
    for watch in request.watch:
        try:
            subscription.watch(*_watch_from_proto(watch))
        except InvalidOrder as error:
            subscription.refuse(watch.order_id, error)
        yield
    for order_id in request.unwatch:
        try:
            subscription.unwatch(order_id_from_proto(order_id))
        except InvalidOrder as error:
            subscription.refuse(order_id, error)
        yield


def news_to_proto(news: Sequence[WatchedEvent], ended: Sequence[Ended]) -> pb.WatchOrdersResponse:
    events: list[Any] = [event_fields(watched) for watched in news]
    return pb.WatchOrdersResponse(
        events=events,
        ended=[
            pb.WatchEnded(order_id=end.order_id, status=None if end.error is None else to_status(end.error))
            for end in ended
        ],
    )


def _new_order(request: pb.SubmitOrderRequest, find: FindToken, random_bits: int) -> NewOrder:
    wrong: list[FieldViolation] = []
    spec = request_id = None
    try:
        spec = spec_from_proto(request.spec, find=find)
    except InvalidOrder as error:
        wrong += error.violations
    try:
        request_id = request_id_from_proto(request.request_id)
    except InvalidOrder as error:
        wrong += error.violations
    if wrong or spec is None:
        raise InvalidOrder(wrong)
    order_id = make_order_id(time.time_ns() // 1_000_000, random_bits)
    return NewOrder(order_id, spec, request_id, fingerprint(spec))


def _details_fields(order_id: UUID, details: OrderDetails | Exception | None) -> Fields:
    """Raises what was found instead of them, OrderNotFound where that is nothing."""
    if isinstance(details, Exception):
        raise details
    if details is None:
        raise OrderNotFound(order_id)
    order, decisions = details.order, details.decisions
    return {
        "order": order_fields(order),
        "routing_decisions": [decision_fields(decision, order.spec) for decision in decisions],
        "realised_slippage_ppm": realised_slippage_ppm(order, decisions),
    }


def _submitted_fields(submitted: Submitted) -> Fields:
    return {"order": order_fields(submitted.order), "deduplicated": submitted.deduplicated}


def _watch_from_proto(request: pb.WatchOrderRequest) -> tuple[UUID, int]:
    order_id = order_id_from_proto(request.order_id)
    if request.after_sequence < 0:
        raise InvalidOrder(
            [FieldViolation("after_sequence", f"was {request.after_sequence}; must not be negative")]
        )
    return order_id, request.after_sequence
