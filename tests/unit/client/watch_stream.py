"""The far end of a WatchOrders stream, in memory: keeps a record and answers as the server does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2
from orders.v1 import orders_pb2 as pb

LAST = pb.ORDER_STATUS_CONFIRMED


@dataclass
class Record:
    """Orders with the events they have had and, in all, will have."""

    lengths: dict[str, int]
    """How many events each order will have; the last one closes it."""
    happened: dict[str, int] = field(default_factory=dict)
    chunk: int = 3
    """Events of one order in one message."""
    calls: list[Call] = field(default_factory=list)
    refusal: grpc.aio.AioRpcError | None = None
    """What each new stream ends with at once."""
    ends: dict[str, status_pb2.Status] = field(default_factory=dict)
    """Orders that cannot be read just now, and what watchers are told."""
    answers: list[pb.WatchOrdersResponse] | None = None
    """What each new stream answers, whatever it is asked, before it breaks with INTERNAL."""
    opened_count: int = 0

    def open(self) -> Any:
        self.opened_count += 1
        call = Call(self)
        self.calls.append(call)
        if self.refusal is not None:
            call.cut(self.refusal)
        return call

    def emit(self, order_id: str) -> None:
        """One more event happens, if any is left."""
        self.happened[order_id] = min(self.happened.get(order_id, 0) + 1, self.lengths[order_id])
        for call in self.calls:
            call.wake.set()

    def cut(self) -> None:
        """Every stream breaks."""
        for call in self.calls:
            call.cut(broken(grpc.StatusCode.UNAVAILABLE))
        self.calls.clear()

    def event(self, order_id: str, sequence: int) -> pb.OrderEvent:
        status = LAST if sequence == self.lengths[order_id] else pb.ORDER_STATUS_ROUTING
        return pb.OrderEvent(order_id=order_id, sequence=sequence, status=status, attempt=1)


class Call:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.wake = asyncio.Event()
        self.requests: list[pb.WatchOrdersRequest] = []
        self._cursors: dict[str, int] = {}
        self._error: grpc.aio.AioRpcError | None = None
        self._ended = self._cancelled = False
        self._answers = None if record.answers is None else iter(record.answers)

    async def write(self, request: pb.WatchOrdersRequest) -> None:
        # A write takes turns of the loop, in which other things happen.
        await asyncio.sleep(0)
        if self._error is not None or self._ended:
            raise asyncio.InvalidStateError("RPC already finished.")
        self.requests.append(request)
        for watch in request.watch:
            self._cursors[watch.order_id] = watch.after_sequence
        for order_id in request.unwatch:
            self._cursors.pop(order_id, None)
        self.wake.set()

    async def read(self) -> object:
        if self._answers is not None:
            await asyncio.sleep(0)
            answer = next(self._answers, None)
            if answer is None:
                raise broken(grpc.StatusCode.INTERNAL)
            return answer
        while True:
            if self._cancelled:
                raise asyncio.CancelledError
            if self._error is not None:
                raise self._error
            if self._ended:
                return grpc.aio.EOF
            response = self._response()
            if response.events or response.ended:
                await asyncio.sleep(0)
                return response
            self.wake.clear()
            await self.wake.wait()

    def cancel(self) -> bool:
        self._cancelled = True
        self.wake.set()
        return True

    def cut(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error
        self.wake.set()

    def end(self) -> None:
        self._ended = True
        self.wake.set()

    def _response(self) -> pb.WatchOrdersResponse:
        response = pb.WatchOrdersResponse()
        for order_id, cursor in list(self._cursors.items()):
            happened = self.record.happened.get(order_id, 0)
            status = self.record.ends.get(order_id)
            if status is None and order_id not in self.record.lengths:
                status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no such order")
            elif status is None and cursor > happened:
                status = status_pb2.Status(code=code_pb2.OUT_OF_RANGE, message="ahead")
            if status is None:
                for sequence in range(cursor + 1, min(happened, cursor + self.record.chunk) + 1):
                    response.events.append(self.record.event(order_id, sequence))
                    self._cursors[order_id] = sequence
                if self._cursors[order_id] < self.record.lengths[order_id]:
                    continue
            response.ended.add(order_id=order_id, status=status)
            del self._cursors[order_id]
        return response


def broken(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="cut")
