from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.settings import Settings
from tests.serving import Worker, gateway, order_server, with_grpc_port


@pytest.fixture
async def served(
    settings: Settings, free_port: Callable[[], int], services_folder: Path
) -> AsyncIterator[Settings]:
    """Settings of a server that runs, and that gateways reach as with `order-engine up`."""
    settings = replace(
        with_grpc_port(settings, free_port),
        link_folder=str(services_folder / "links"),
        allowed_origins="https://desk.example.com",
    )
    async with order_server(settings):
        yield settings


@pytest.fixture
async def base(served: Settings) -> AsyncIterator[str]:
    """ "127.0.0.1:<port>" of a gateway that runs."""
    async with gateway(served) as (host, _):
        yield host


@pytest.fixture
async def worker(served: Settings) -> AsyncIterator[Worker]:
    async with Worker(served) as worker:
        yield worker
