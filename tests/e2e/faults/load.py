"""Clients of every kind, who never give up and write down what they were told.

They submit over REST and gRPC under a request_id, again with the same one after any error, at times after an
answer too, or with another amount, which must be refused. They watch over WebSocket, over gRPC and with
the Python client; a watch that is cut goes on from its cursor. What no client should ever meet, whatever
breaks, goes into `complaints`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Literal, Self

import aiohttp
import grpc
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from client import OrderClient, OrderError
from tests.e2e.faults.checker import CLOSED, Answer, Record, Seen, Watch
from tests.e2e.faults.waiting import CancelAnswer

Door = Literal["REST", "gRPC"]
DOORS: Final[tuple[Door, ...]] = ("REST", "gRPC")
WatchKind = Literal["WebSocket", "gRPC", "client"]
_Follow = Callable[[Watch, bool], Awaitable[None]]
WATCH_KINDS: Final[tuple[WatchKind, ...]] = ("WebSocket", "gRPC", "client")

_PAIRS: Final = (
    ("SOL", "USDC", 2.0),
    ("USDC", "SOL", 200.0),
    ("SOL", "USDT", 1.0),
    ("USDC", "JUP", 100.0),
    ("RAY", "USDC", 50.0),
    ("BONK", "SOL", 1_000_000.0),
)
"""What is swapped, and how much of the input token at most."""

_DOLLARS: Final = {"SOL": 105.5, "USDC": 1.0, "USDT": 1.0, "BONK": 0.0000227, "JUP": 0.482, "RAY": 2.14}
"""What a token is worth in simnet, about."""

_MINTS: Final = {
    "SOL": "So11111111111111111111111111111111111111112",
    "USDC": "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v",
    "USDT": "Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB",
    "JUP": "JUPyiwrYJFskUPiHa7hkeR8VUtAeFoSYbKedZNsDvCN",
    "RAY": "4k3Dyjzvzp8eMZWUXbBCjEvwSkkk59S5iCNLY3QrkX6R",
    "BONK": "DezXAZ8z7PnrnRJjz3wXBoRgixCa6xjnB7YaB1pPB263",
}
_PATIENCE_SECONDS: Final = (0.3, 1.0, 5.0)
"""How long a client waits for an answer before it asks again; the first is for those in a hurry."""

_STATUS: Final = {value: name.removeprefix("ORDER_STATUS_").lower() for name, value in pb.OrderStatus.items()}
_COMES_BACK: Final = {1000, 1001, 1006, 1012, 1013}
"""Close codes after which a WebSocket client connects again, or is done."""
_DETAILS: Final = "grpc-status-details-bin"
"""In the trailers of an error that the server itself answered; one of the connection has none."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    request_id: str
    side: str
    amount: str
    input_token: str
    output_token: str
    slippage_bps: int | None = None
    expire_time: str | None = None
    """RFC 3339, as JSON has it and as protobuf reads it."""
    type: str = "market"
    terms: Mapping[str, str] = field(default_factory=dict)
    """The type's own, as the contract names them."""


class Load:
    """Use as `async with`; leaving the block drops whatever is under way."""

    def __init__(self, rest_url: str, grpc_target: str, name: str, random_numbers: random.Random) -> None:
        """`name` tells these clients' request_ids from others'."""
        self.answers: list[Answer] = []
        self.watches: list[Watch] = []
        self.cancels: list[CancelAnswer] = []
        self.complaints: list[str] = []
        self.retry_count = 0
        """Submits that were repeated because something broke."""
        self._rest_url = rest_url
        self._grpc_target = grpc_target
        self._name = name
        self._random = random_numbers
        self._count = 0
        self._watching: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        options = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]
        self._channel = grpc.aio.insecure_channel(
            self._grpc_target, options=[*options, ("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub = orders_pb2_grpc.OrderServiceStub(self._channel)
        self._client = OrderClient(self._grpc_target)
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._watching:
            task.cancel()
        if self._watching:
            await asyncio.wait(self._watching)
        await self._client.__aexit__(None, None, None)
        await self._channel.close()
        await self._http.close()

    # ---- Submitting

    def request(self, *, odd: bool = False) -> Request:
        """Return a new request for some swap.

        An `odd` one may expire, wait for a price that is there or is not, or ask for more than there is.
        """
        self._count += 1
        input_token, output_token, most = self._random.choice(_PAIRS)
        side = self._random.choice(("sell", "sell", "buy"))
        share = self._random.uniform(0.1, 1.0)
        if side == "buy":
            # So much of the output token as the input would bring, roughly.
            most = {"SOL": 1.0, "USDC": 100.0, "USDT": 100.0, "JUP": 100.0}[output_token]
        expire_time = slippage_bps = None
        if odd and self._random.random() < 0.05:
            most *= 10**7
        if odd and self._random.random() < 0.1:
            expire_time = seconds_from_now(self._random.uniform(0.2, 3.0))
        if odd and self._random.random() < 0.2:
            slippage_bps = self._random.choice((5, 100, 1000))
        request = Request(
            f"{self._name}-{self._count}",
            side,
            f"{most * share:.2f}",
            input_token,
            output_token,
            slippage_bps,
            expire_time,
        )
        if not odd or self._random.random() >= 0.2:
            return request
        price = _DOLLARS[input_token] / _DOLLARS[output_token] * self._random.choice((0.8, 0.98, 1.0, 1.05))
        return replace(
            request,
            type="limit",
            terms={"limit_price": f"{price:.12f}"},
            # Its price may never come.
            expire_time=expire_time or seconds_from_now(self._random.uniform(1.0, 6.0)),
        )

    def waiting_request(
        self,
        amount: str,
        output_token: str,
        *,
        side: str = "sell",
        order_type: str = "limit",
        expire_time: str | None = None,
        **terms: str,
    ) -> Request:
        """Return a new request for a swap of SOL that waits for its `terms`."""
        self._count += 1
        request_id = f"{self._name}-{self._count}"
        return Request(request_id, side, amount, "SOL", output_token, None, expire_time, order_type, terms)

    async def submit(self, request: Request, door: Door | None = None) -> str:
        """Submit until there is an answer, and return the order_id. With no `door`, through either."""
        first = True
        while True:
            if not first:
                self.retry_count += 1
                await asyncio.sleep(self._random.uniform(0.02, 0.3))
            first = False
            through = self._random.choice(DOORS) if door is None else door
            order_id = await self._try_submit(request, through)
            if order_id is not None:
                self.answers.append(Answer(request.request_id, order_id))
                return order_id

    async def submit_differently(self, request: Request) -> None:
        """Use the same request_id for another amount: it must be refused."""
        other = replace(request, amount=f"{float(request.amount) + 0.01:.2f}")
        try:
            async with asyncio.timeout(5.0):
                if self._random.random() < 0.5:
                    status, body = await self._post(other)
                    if status < 300:
                        self._complain(f"P3: {other} was answered with {body}")
                else:
                    response = await self._stub.SubmitOrder(_message(other))
                    self._complain(f"P3: {other} was answered with {response.order.order_id}")
        except (aiohttp.ClientError, grpc.aio.AioRpcError, TimeoutError):
            pass  # Refused, or not answered.

    async def cancel(self, order_id: str) -> bool | None:
        """Ask for a cancel, once. True: it is cancelled. False: it came too late. None: no answer."""
        try:
            async with asyncio.timeout(5.0):
                await self._stub.CancelOrder(pb.CancelOrderRequest(order_id=order_id))
            accepted = True
        except TimeoutError:
            return None
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                return None
            accepted = False
        self.cancels.append(CancelAnswer(order_id, accepted, time.time()))
        return accepted

    async def cancel_until_answered(self, order_id: str) -> bool:
        """Ask for a cancel until there is an answer; return whether it is cancelled."""
        while (accepted := await self.cancel(order_id)) is None:  # noqa: ASYNC110
            await asyncio.sleep(self._random.uniform(0.02, 0.3))
        return accepted

    async def _try_submit(self, request: Request, door: Door) -> str | None:
        try:
            async with asyncio.timeout(self._random.choice(_PATIENCE_SECONDS)):
                if door == "REST":
                    status, body = await self._post(request)
                    if status in (200, 202):
                        return str(json.loads(body)["orderId"])
                    if status not in (429, 503, 504):
                        raise AssertionError(f"{request} was refused over REST: {status} {body}")
                    return None
                response = await self._stub.SubmitOrder(_message(self._spelled(request)))
                return str(response.order.order_id)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if _is_answer(error) and code not in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            ):
                raise AssertionError(f"{request} was refused over gRPC: {code} {error.details()}") from None
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        return None

    def _spelled(self, request: Request) -> Request:
        """Return the same request in other words: they mean the same order."""
        amount = self._random.choice((request.amount, request.amount + "0", request.amount.removesuffix("0")))
        tokens = [
            _MINTS.get(token, token) if self._random.random() < 0.2 else token
            for token in (request.input_token, request.output_token)
        ]
        return replace(request, amount=amount, input_token=tokens[0], output_token=tokens[1])

    async def _post(self, request: Request) -> tuple[int, str]:
        request = self._spelled(request)
        body: dict[str, object] = {
            "side": request.side,
            "amount": self._random.choice((request.amount, float(request.amount))),
            "inputToken": request.input_token,
            "outputToken": request.output_token,
        }
        if request.slippage_bps is not None:
            body["slippageBps"] = request.slippage_bps
        if request.expire_time is not None:
            body["expireTime"] = request.expire_time
        if request.type != "market":
            body["type"] = request.type
            body |= {_camel_case(name): value for name, value in request.terms.items()}
        async with self._http.post(
            f"{self._rest_url}/api/orders/execute",
            json=body,
            headers={"Idempotency-Key": request.request_id},
        ) as answer:
            return answer.status, await answer.text()

    # ---- Watching

    def watch(self, order_id: str, kind: WatchKind, *, restless: bool = False) -> Watch:
        """Follow the order to its end in the background. A `restless` watcher hangs up now and then."""
        watch = Watch(f"{kind} watcher {len(self.watches)}", order_id)
        self.watches.append(watch)
        follow: dict[WatchKind, _Follow] = {
            "WebSocket": self._over_websocket,
            "gRPC": self._over_grpc,
            "client": self._with_client,
        }
        task = asyncio.get_running_loop().create_task(self._follow(watch, follow[kind], restless))
        self._watching.add(task)
        task.add_done_callback(self._watched)
        return watch

    def _watched(self, task: asyncio.Task[None]) -> None:
        self._watching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._complain(f"a watcher met {error!r}")

    async def watched_to_the_end(self, watches: Sequence[Watch] | None = None) -> None:
        """Return when the watchers (all) have been told the end."""
        while not all(watch.finished for watch in watches or self.watches):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _follow(self, watch: Watch, follow: _Follow, restless: bool) -> None:
        while not watch.finished:
            watch.connects += 1
            await follow(watch, restless and self._random.random() < 0.7)
            if not watch.finished:
                await asyncio.sleep(self._random.uniform(0.02, 0.2))

    async def _over_websocket(self, watch: Watch, hangs_up: bool) -> None:
        url = f"{self._rest_url}/api/orders/{watch.order_id}/ws?after={watch.cursor}"
        try:
            async with self._http.ws_connect(url) as socket:
                async for message in socket:
                    event = json.loads(message.data)
                    watch.seen.append(Seen(event["sequence"], event["status"], event.get("txHash")))
                    if hangs_up:
                        return
                code = socket.close_code
                watch.finished = code == 1000
                if code not in _COMES_BACK and code is not None:
                    self._complain(f"P4: {watch.name} of order {watch.order_id} was closed with {code}")
        except aiohttp.WSServerHandshakeError as error:
            if error.status != 503:
                self._complain(f"P4: {watch.name} of order {watch.order_id} was refused with {error.status}")
        except (aiohttp.ClientError, OSError):
            pass

    async def _over_grpc(self, watch: Watch, hangs_up: bool) -> None:
        request = pb.WatchOrderRequest(order_id=watch.order_id, after_sequence=watch.cursor)
        call = self._stub.WatchOrder(request)
        try:
            async for response in call:
                event = response.event
                watch.seen.append(Seen(event.sequence, _STATUS[event.status], event.tx_hash or None))
                if hangs_up:
                    return
            watch.finished = True
        except grpc.aio.AioRpcError as error:
            if _is_answer(error) and error.code() is not grpc.StatusCode.UNAVAILABLE:
                self._complain(
                    f"P4: {watch.name} of order {watch.order_id}: {error.code()} {error.details()}"
                )
        finally:
            call.cancel()

    async def _with_client(self, watch: Watch, hangs_up: bool) -> None:
        try:
            async for event in self._client.watch(watch.order_id, watch.cursor):
                watch.seen.append(Seen(event.sequence, event.status.value, event.tx_hash))
                if hangs_up and event.status.value not in CLOSED:
                    return
            watch.finished = True
        except OrderError as error:
            self._complain(f"P4: {watch.name} of order {watch.order_id}: {error!r}")

    # ---- Telling

    def add_to(self, record: Record) -> Record:
        """Return the record with what these clients were told."""
        return replace(
            record, answers=list(self.answers), watches=list(self.watches), cancels=list(self.cancels)
        )

    def _complain(self, text: str) -> None:
        self.complaints.append(f"complaint: {text}")


def _message(request: Request) -> pb.SubmitOrderRequest:
    spec = pb.OrderSpec(
        side=pb.SIDE_SELL if request.side == "sell" else pb.SIDE_BUY,
        amount=request.amount,
        input_token=request.input_token,
        output_token=request.output_token,
        slippage_bps=request.slippage_bps,
    )
    if request.expire_time is not None:
        spec.expire_time.FromJsonString(request.expire_time)
    if request.type == "limit":
        spec.limit.CopyFrom(pb.LimitOrder(**request.terms))
    elif request.type == "sniper":
        spec.sniper.CopyFrom(pb.SniperOrder(**request.terms))
    return pb.SubmitOrderRequest(request_id=request.request_id, spec=spec)


def seconds_from_now(seconds: float) -> str:
    """Return a time as a request has it."""
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _is_answer(error: grpc.aio.AioRpcError) -> bool:
    return any(key == _DETAILS for key, _ in error.trailing_metadata() or ())
