"""OrderClient: the order API over gRPC, made convenient and safe to repeat."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from random import random
from typing import Final, Protocol, Self, TypeVar
from uuid import UUID, uuid4

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from client.backoff import Backoff
from client.convert import (
    DetailsMessage,
    check_order_id,
    check_request_id,
    check_sendable,
    check_sequence,
    decision_of,
    details_of,
    order_of,
    receipt_of,
    shown,
    spec_to_message,
    status_to_message,
    submitted_order_of,
    type_to_message,
    write_spec,
)
from client.errors import (
    InternalError,
    InvalidOrder,
    OrderClosed,
    OrderError,
    OrderNotFound,
    ServerUnavailable,
    TooManyOrders,
    Unavailable,
    error_of_call,
    error_of_status,
)
from client.link import Links
from client.order import (
    Order,
    OrderDetails,
    OrderEvent,
    OrderPage,
    OrderSpec,
    OrderStatus,
    OrderType,
    Receipt,
    RoutingDecision,
    Submission,
    SubmittedOrder,
)
from client.watches import Listener, Watcher, Watches, is_cancelled
from engine.coalesce import Coalescer

SERVICE_NAME: Final = "orders.v1.OrderService"
MAX_TRIES: Final = 5
"""Of one call. With the backoff between them they span about a restart of the server."""
SUBMIT_BATCH: Final = 500
"""Most orders of one BatchSubmitOrders; the contract allows 1,000."""
SUBMIT_CONCURRENCY: Final = 2
"""Batches under way at once: one fills and is encoded while the server stores the other."""
GET_CONCURRENCY: Final = 4
"""The same of reads: two that a frozen server keeps are not to keep all others."""
GET_BATCH: Final = 100
"""Most orders of one BatchGetOrders, as the contract has it."""
INTERVAL_SECONDS: Final = 0.004
"""Between two batches, or two requests to watch, when they follow each other: a gRPC message costs as much as
what ten orders add to it. The first after a pause does not wait."""
_ATTEMPT_SECONDS: Final = 4.0
"""How long one server is waited for: of several, the next attempt mostly meets another one."""
_LEAVING_SECONDS: Final = 1.0
"""How long a client that is left on an error waits for what is under way."""

_ORDER_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
"""As the server spells it, whose answers name the order."""

_CHANNEL_OPTIONS: Final = (
    # The default is to wait up to two minutes before trying a server that was restarted again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Find out about a peer that is gone without a word.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Batches of answers, and pages of 500 orders with their texts.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # The target may name several servers; calls go to those that are there, in turn.
    ("grpc.lb_policy_name", "round_robin"),
    # Two clients of one process are two connections.
    ("grpc.use_local_subchannel_pool", 1),
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Answer = TypeVar("Answer")
RequestIn = TypeVar("RequestIn", bound=Message, contravariant=True)
ResponseOut = TypeVar("ResponseOut", bound=Message, covariant=True)


class _Method(Protocol[RequestIn, ResponseOut]):
    def __call__(self, request: RequestIn, *, timeout: float | None = None) -> Awaitable[ResponseOut]: ...


class OrderClient:
    """A connection to the order service. An async context manager; share one in a whole program.

    Calls are repeated when that is safe, up to a bound: reads and cancels when the server cannot be
    reached, submits always under a request_id. What stays refused or unavailable is raised as one of
    `client.errors`. Concurrent submits travel together, and so do reads; all watches share one stream.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        links: Sequence[str] = (),
        links_take_turns: bool = True,
        timeout_seconds: float = 10.0,
        observe_batch: Callable[[int], None] | None = None,
        random: Callable[[], float] = random,
    ) -> None:
        """`target` is "host:port" of the server, or of several "ipv4:address:port,address:port".

        `links` are the Unix sockets of servers on this host: submits, reads and watches go there, past gRPC;
        in turn, or to the first, for which the others stand in.
        `timeout_seconds` bounds each call, all its repetitions included. `observe_batch` is told how
        many orders each BatchSubmitOrders carried. `random` answers numbers in [0, 1) that spread retries.
        """
        self._target = target
        self._links = Links(links, take_turns=links_take_turns) if links else None
        # Several servers take turns, and who follows from the first event on makes one that did not store the
        # order read twice: what there is after it, and whether there is such an order.
        self._is_one_server = (len(links) == 1 or not links_take_turns) if links else "," not in target
        self._timeout_seconds = timeout_seconds
        self._attempt_seconds = min(timeout_seconds, _ATTEMPT_SECONDS)
        self._observe_batch = observe_batch
        self._random = random
        # A request_id is this client's own 128 random bits and a number.
        self._name = uuid4().hex
        self._numbers = count(1)
        self._checks: set[asyncio.Task[None]] = set()
        self._under_way: deque[_Submit] = deque()
        """In the order in which their time is up; some of them may be answered."""
        self._timer: asyncio.TimerHandle | None = None
        """Ends the first of them: one for all, for a timer takes 3 us and is hardly ever needed."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._channel = grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
        self._stub = orders_pb2_grpc.OrderServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._watches = Watches(
            self._stub.WatchOrders if self._links is None else self._links.watch,
            random=self._random,
            interval_seconds=INTERVAL_SECONDS,
        )
        self._submits: Coalescer[pb.SubmitOrderRequest, pb.SubmitOrderResponse] = Coalescer(
            self._submit_batch,
            max_batch=SUBMIT_BATCH,
            max_concurrent=SUBMIT_CONCURRENCY,
            interval_seconds=INTERVAL_SECONDS,
            observe=self._observe_batch,
        )
        self._gets: Coalescer[str, pb.GetOrderResponse] = Coalescer(
            self._get_batch, max_batch=GET_BATCH, max_concurrent=GET_CONCURRENCY
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._watches.close()
        for check in self._checks:
            check.cancel()
        if self._checks:
            await asyncio.wait(self._checks)
        # Who leaves on an error, as by Ctrl-C, is not to wait for a server that does not answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(None if kind is None else _LEAVING_SECONDS):
                await self._submits.drain()
                await self._gets.drain()
        if self._links is not None:
            self._links.close()
        await self._channel.close()

    # ---- Submit ----------------------------------------------------------------------------------

    async def submit(self, spec: OrderSpec, *, request_id: str | None = None) -> SubmittedOrder:
        """Submit one order; return it as it stands. Execution goes on by itself: `watch` it.

        A limit or sniper order is PENDING until its trigger fires, and can be cancelled until SUBMITTED.

        The same `request_id` (1 to 64 printable ASCII characters) with the same order answers the same
        order, for ever; with None the client makes one. An Unavailable that is raised in the end
        carries it as `request_id`: submit again with it, for the order may have been stored.

        Raises InvalidOrder, RequestIdReused, TooManyOrders, Unavailable; TypeError for a float.
        """
        return submitted_order_of(await self._submitted(self._submit_request(spec, request_id)))

    def submit_then(
        self, spec: OrderSpec, then: Callable[[Receipt | Exception], None], *, request_id: str | None = None
    ) -> None:
        """Submit one order as `submit` does, for one who submits thousands: without a task for each.

        `then` is told that the order was accepted, or what `submit` would raise. It may not raise.
        Raises InvalidOrder and TypeError for what cannot even be sent.
        """

        def tell(answer: pb.SubmitOrderResponse | Exception) -> None:
            then(answer if isinstance(answer, Exception) else receipt_of(answer))

        self._submit(self._submit_request(spec, request_id), tell)

    async def submit_many(
        self, orders: Iterable[OrderSpec | Submission]
    ) -> list[SubmittedOrder | OrderError]:
        """Submit many orders; return for each, in order, the order or why it was not accepted.

        One that is refused does not refuse its neighbours. A Submission brings its own request_id.
        Raises TypeError for a float, before any is sent.
        """
        requests: list[pb.SubmitOrderRequest | InvalidOrder] = []
        for order in orders:
            spec, request_id = (
                (order.spec, order.request_id) if isinstance(order, Submission) else (order, None)
            )
            try:
                requests.append(self._submit_request(spec, request_id))
            except InvalidOrder as error:
                requests.append(error)  # what cannot even be sent is one order's refusal too
        sent = iter(
            await asyncio.gather(
                *(self._submitted(request) for request in requests if not isinstance(request, InvalidOrder)),
                return_exceptions=True,
            )
        )
        results = [request if isinstance(request, InvalidOrder) else next(sent) for request in requests]
        answers: list[SubmittedOrder | OrderError] = []
        for result in results:
            if isinstance(result, OrderError):
                answers.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                answers.append(submitted_order_of(result))
        return answers

    def _submit_request(self, spec: OrderSpec, request_id: str | None) -> pb.SubmitOrderRequest:
        if request_id is None:
            request_id = f"{self._name}-{next(self._numbers)}"
        else:
            check_request_id(request_id)
        request = pb.SubmitOrderRequest(request_id=request_id)
        write_spec(spec, request.spec)
        return request

    def _submitted(self, request: pb.SubmitOrderRequest) -> asyncio.Future[pb.SubmitOrderResponse]:
        future: asyncio.Future[pb.SubmitOrderResponse] = self._loop.create_future()

        def settle(answer: pb.SubmitOrderResponse | Exception) -> None:
            if future.done():
                return  # its caller was cancelled
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        self._submit(request, settle)
        return future

    def _submit(
        self, request: pb.SubmitOrderRequest, then: Callable[[pb.SubmitOrderResponse | Exception], None]
    ) -> None:
        under_way = self._under_way
        while under_way and under_way[0].answered:
            under_way.popleft()
        submit = _Submit(self._loop, self._submits, self._random, request, self._timeout_seconds, then)
        under_way.append(submit)
        if self._timer is None:
            self._timer = self._loop.call_at(submit.end_time, self._time_out)
        submit.attempt()

    def _time_out(self) -> None:
        """End those whose time is up. They all have as long, so the first of them is the next to end."""
        under_way = self._under_way
        while under_way and (under_way[0].answered or under_way[0].end_time <= self._loop.time()):
            under_way.popleft().time_out()
        self._timer = self._loop.call_at(under_way[0].end_time, self._time_out) if under_way else None

    async def _submit_batch(
        self, requests: list[pb.SubmitOrderRequest]
    ) -> Sequence[pb.SubmitOrderResponse | Exception]:
        batch = pb.BatchSubmitOrdersRequest(requests=requests)
        try:
            if self._links is None:
                response = await self._call(self._stub.BatchSubmitOrders, batch, self._attempt_seconds)
            else:
                response = await self._links.submit(batch, self._attempt_seconds)
        except OrderError as error:
            return _for_each(error, len(requests))
        if len(response.results) != len(requests):
            return _miscounted(len(requests))
        answers: list[pb.SubmitOrderResponse | Exception] = []
        for result in response.results:
            if result.HasField("response"):
                answer = result.response
                if self._is_one_server and not answer.deduplicated:
                    self._watches.accepted(answer.order)
                answers.append(answer)
            else:
                answers.append(error_of_status(result.error))
        return answers

    # ---- Read ------------------------------------------------------------------------------------

    async def quote(self, spec: OrderSpec) -> RoutingDecision:
        """Return what each pool offers for the order now, and the route that would be chosen.

        Of a limit or sniper order, too: what is offered now, whether or not it would execute at that.

        Raises InvalidOrder, NoRoute, Unavailable; TypeError for a float amount or price.
        """
        request = pb.GetQuoteRequest(spec=spec_to_message(spec))
        return decision_of((await self._ask(self._stub.GetQuote, request)).decision)

    async def get(self, order_id: str) -> OrderDetails:
        """Return the order as it stands and the routing decision of each attempt.

        Raises InvalidOrder for what is no order_id, OrderNotFound, Unavailable.
        """
        return details_of(await self.get_message(order_id))

    async def get_message(self, order_id: str) -> DetailsMessage:
        """Return what `get` returns as it came, for one who passes it on (`client.json_text`)."""
        check_order_id(order_id)
        return await self._bounded(lambda: self._gets(order_id))

    async def _get_batch(self, order_ids: list[str]) -> Sequence[pb.GetOrderResponse | Exception]:
        batch = pb.BatchGetOrdersRequest(order_ids=order_ids)
        try:
            if self._links is None:
                response = await self._call(self._stub.BatchGetOrders, batch, self._attempt_seconds)
            else:
                response = await self._links.get(batch, self._attempt_seconds)
        except OrderError as error:
            return _for_each(error, len(order_ids))
        if len(response.results) != len(order_ids):
            return _miscounted(len(order_ids))
        return [
            result.response if result.HasField("response") else error_of_status(result.error)
            for result in response.results
        ]

    async def list_page(
        self,
        *,
        statuses: Iterable[OrderStatus] = (),
        types: Iterable[OrderType] = (),
        page_size: int = 50,
        page_token: str = "",
    ) -> OrderPage:
        """Return one page of orders, newest first; `page_token` is the page before's `next_page_token`.

        Only orders in one of `statuses` and of one of `types`, all if they are empty. Pages that follow each
        other are asked for with the same.

        Raises InvalidOrder for a page_token that is none, Unavailable.
        """
        check_sendable(page_token, "page_token", "must be the next_page_token of the page before")
        request = pb.ListOrdersRequest(
            page_size=page_size,
            page_token=page_token,
            statuses=[status_to_message(status) for status in statuses],
            types=[type_to_message(order_type) for order_type in types],
        )
        response = await self._ask(self._stub.ListOrders, request)
        return OrderPage(
            tuple(order_of(order) for order in response.orders), response.next_page_token or None
        )

    async def list(
        self,
        *,
        statuses: Iterable[OrderStatus] = (),
        types: Iterable[OrderType] = (),
        page_size: int = 50,
    ) -> AsyncIterator[Order]:
        """Go through all orders, newest first; pages are fetched as they are needed.

        The limit orders that wait for their price:

            client.list(statuses=[OrderStatus.PENDING], types=[OrderType.LIMIT])
        """
        wanted_statuses, wanted_types = tuple(statuses), tuple(types)
        page_token: str | None = ""
        while page_token is not None:
            page = await self.list_page(
                statuses=wanted_statuses, types=wanted_types, page_size=page_size, page_token=page_token
            )
            for order in page.orders:
                yield order
            page_token = page.next_page_token

    async def watch(self, order_id: str, after_sequence: int = 0) -> AsyncGenerator[OrderEvent, None]:
        """Follow the order's events after `after_sequence`, past ones first, to the closing one.

        Every event comes once and in sequence. A limit or sniper order may be PENDING again, which its
        failure_message explains; the watch goes on. A lost connection is made again for as long as it
        takes, and the watch goes on where it was; use `asyncio.timeout` to give up. Watching, and
        leaving, never affect the order.

        Raises OrderNotFound; SequenceAhead if the order has fewer events than `after_sequence`, InvalidOrder
        if it is no sequence.
        """
        order_id = _spelled(order_id)
        check_sequence(after_sequence)
        reader = self._watches.join(order_id, after_sequence)
        try:
            if unchecked := self._watches.unchecked(order_id):
                await self._check(order_id, unchecked)
            async for event in reader:
                yield event
        finally:
            reader.close()

    def follow(
        self,
        order_id: str,
        after_sequence: int,
        on_event: Callable[[bytes], None],
        on_end: Callable[[OrderError | None], None],
    ) -> Listener:
        """Watch as `watch` does, for one who watches thousands of orders: without a task for each.

        `on_event` is told each event as JSON text (made once for all who follow the order), the first perhaps
        before this returns, `on_end` why no more come: None after the closing one, else what `watch` would
        raise. Neither may raise.
        Raises OrderNotFound for what is no order_id, InvalidOrder for what is no sequence.
        """
        order_id = _spelled(order_id)
        check_sequence(after_sequence)
        listener = self._watches.listen(order_id, after_sequence, on_event, on_end)
        if unchecked := self._watches.unchecked(order_id):
            check = self._loop.create_task(self._check(order_id, unchecked))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        return listener

    async def _check(self, order_id: str, watchers: Iterable[Watcher]) -> None:
        """Refuse those of the order's watchers that are ahead of its record."""
        # What else is wrong with the order, its stream tells.
        with suppress(OrderError):
            self._watches.refuse_ahead(watchers, (await self.get(order_id)).order.sequence)

    async def unready_reason(self, timeout_seconds: float = 1.0) -> str | None:
        """Return None if the server answers and says that it serves, else a sentence why it does not."""
        request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
        try:
            response = await self._call(self._health.Check, request, timeout_seconds)
        except OrderError as error:
            return f"gRPC server {self._target}: {error.message}"
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            return f"gRPC server {self._target} is not serving"
        if self._links is not None:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._links.check()
            except ServerUnavailable as error:
                return f"by its link {error.message}"
            except TimeoutError:
                return f"by its link the server gave no answer within {timeout_seconds:g} s"
        return None

    @property
    def watched_order_count(self) -> int:
        return self._watches.order_count

    # ---- Cancel ----------------------------------------------------------------------------------

    async def cancel(self, order_id: str) -> Order:
        """Cancel the order; on return it is CANCELLED.

        Raises InvalidOrder for what is no order_id; OrderNotFound; OrderInFlight or OrderClosed when it came
        too late; Unavailable.
        """
        check_order_id(order_id)
        request = pb.CancelOrderRequest(order_id=order_id)
        tries = 0

        async def once() -> pb.CancelOrderResponse:
            nonlocal tries
            tries += 1
            return await self._call(self._stub.CancelOrder, request, self._attempt_seconds)

        try:
            return order_of((await self._bounded(once)).order)
        except OrderClosed:
            if tries > 1:
                # It may have been this call that closed it: by a try whose answer was lost.
                order = (await self.get(order_id)).order
                if order.status is OrderStatus.CANCELLED:
                    return order
            raise

    # ---- Calls -----------------------------------------------------------------------------------

    async def _ask(self, method: _Method[Request, Response], request: Request) -> Response:
        """Call a method that may be repeated."""
        return await self._bounded(lambda: self._call(method, request, self._timeout_seconds))

    async def _bounded(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeat the call for up to `timeout_seconds` in all."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._repeated(call)
        except TimeoutError:
            raise ServerUnavailable(f"no answer within {self._timeout_seconds:g} s") from None

    async def _repeated(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        backoff = _backoff(self._random)
        while True:
            try:
                return await call()
            except TooManyOrders:
                raise
            except Unavailable:
                if backoff.failure_count + 1 >= MAX_TRIES:
                    raise
                await asyncio.sleep(backoff.next_delay_seconds())

    async def _call(
        self, method: _Method[Request, Response], request: Request, timeout_seconds: float
    ) -> Response:
        try:
            return await method(request, timeout=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error) from None
        except grpc.aio.UsageError:
            raise ServerUnavailable("the client was closed") from None
        except asyncio.CancelledError:
            # grpc.aio tells a call that the server cancelled in this way too.
            if is_cancelled():
                raise
            raise ServerUnavailable("the server cancelled the call") from None


class _Submit:
    """One order on its way: tried, and tried again while that is safe, until it is answered or time is up."""

    __slots__ = (
        "_backoff",
        "_loop",
        "_random",
        "_request",
        "_submits",
        "_then",
        "_timeout_seconds",
        "end_time",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        submits: Coalescer[pb.SubmitOrderRequest, pb.SubmitOrderResponse],
        random: Callable[[], float],
        request: pb.SubmitOrderRequest,
        timeout_seconds: float,
        then: Callable[[pb.SubmitOrderResponse | Exception], None],
    ) -> None:
        self._loop = loop
        self._submits = submits
        self._random = random
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._then: Callable[[pb.SubmitOrderResponse | Exception], None] | None = then
        self._backoff: Backoff | None = None
        self.end_time = loop.time() + timeout_seconds

    @property
    def answered(self) -> bool:
        return self._then is None

    def attempt(self) -> None:
        if self._then is not None:
            self._submits.put(self._request, self._tried)

    def _tried(self, answer: pb.SubmitOrderResponse | BaseException) -> None:
        if isinstance(answer, Unavailable) and not isinstance(answer, TooManyOrders):
            # Not TooManyOrders: whoever submits has to slow down; repeating would only add to the load.
            if self._backoff is None:
                self._backoff = _backoff(self._random)
            if self._backoff.failure_count + 1 >= MAX_TRIES:
                self._end(answer)
            else:
                self._loop.call_later(self._backoff.next_delay_seconds(), self.attempt)
        elif isinstance(answer, pb.SubmitOrderResponse | Exception):
            self._end(answer)
        else:
            self._end(ServerUnavailable("the client was closed"))

    def time_out(self) -> None:
        """End it, unless it is answered."""
        self._end(
            ServerUnavailable(
                f"no answer within {self._timeout_seconds:g} s; submit again with the same request_id"
            )
        )

    def _end(self, answer: pb.SubmitOrderResponse | Exception) -> None:
        if self._then is None:
            return
        then, self._then = self._then, None
        if isinstance(answer, OrderError):
            answer.request_id = self._request.request_id
        then(answer)


def _for_each(error: OrderError, count: int) -> list[OrderError]:
    """Return one for each caller: an exception that is raised in many tasks is a tangle to read."""
    return [
        type(error)(error.message, reason=error.reason, retry_seconds=error.retry_seconds)
        for _ in range(count)
    ]


def _miscounted(count: int) -> list[OrderError]:
    return [InternalError("the server answered another number of orders") for _ in range(count)]


def _backoff(random: Callable[[], float]) -> Backoff:
    return Backoff(random, base_seconds=0.2)


def _spelled(order_id: str) -> str:
    """Return the order_id as the server spells it. Raises OrderNotFound."""
    if _ORDER_ID.fullmatch(order_id):
        return order_id
    try:
        return str(UUID(order_id))
    except ValueError:
        raise OrderNotFound(f"no order {shown(order_id)}: an order_id is a UUID") from None
