"""Calls of OrderService over a real channel, and what its errors say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from engine.settings import Settings
from simnet.node import Node

UNKNOWN = "01890000-0000-7000-8000-000000000000"

Stub = Any
"""orders_pb2_grpc.OrderServiceStub on an asynchronous channel."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a google.rpc.Status says."""

    code: str
    reason: str
    message: str
    fields: Mapping[str, str]
    """BadRequest's descriptions by field."""
    retry_seconds: float | None


@asynccontextmanager
async def simnet() -> AsyncIterator[Settings]:
    """A node whose market rests."""
    node_settings = Settings(simnet_port=0, simnet_slot_ms=100, simnet_market_pools=0)
    async with Node(node_settings) as node:
        producing = asyncio.ensure_future(node.run())
        yield replace(node_settings, solana_rpc_url=node.url, solana_ws_url=node.ws_url)
        producing.cancel()
        await asyncio.wait([producing])


@asynccontextmanager
async def stub_of(settings: Settings) -> AsyncIterator[Stub]:
    async with grpc.aio.insecure_channel(f"{settings.grpc_host}:{settings.grpc_port}") as channel:
        yield orders_pb2_grpc.OrderServiceStub(channel)


def spec(**changes: Any) -> pb.OrderSpec:
    asked: dict[str, Any] = {
        "side": pb.SIDE_SELL,
        "amount": "1.5",
        "input_token": "SOL",
        "output_token": "USDC",
    } | changes
    return pb.OrderSpec(**asked)


def submit(request_id: str = "", **changes: Any) -> pb.SubmitOrderRequest:
    return pb.SubmitOrderRequest(spec=spec(**changes), request_id=request_id)


async def refusal(call: Awaitable[Any]) -> Refusal:
    """Await a call that must be refused, and return what it is told."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(20):
            await call
    error = caught.value
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status came with {error}"
    assert error.code().value[0] == status.code
    return refusal_of(status)


def refusal_of(status: status_pb2.Status) -> Refusal:
    """Unpack a status: one ErrorInfo of our domain, perhaps BadRequest, perhaps RetryInfo."""
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    unpacked = {
        kind.DESCRIPTOR.name: detail.Unpack(kind)
        for kind in (info, bad_request, retry)
        for detail in status.details
        if detail.Is(kind.DESCRIPTOR)
    }
    assert len(unpacked) == len(status.details)
    assert info.domain == "orders.v1"
    return Refusal(
        code_pb2.Code.Name(status.code),
        info.reason,
        status.message,
        {line.field: line.description for line in bad_request.field_violations},
        retry.retry_delay.ToTimedelta().total_seconds() if "RetryInfo" in unpacked else None,
    )
