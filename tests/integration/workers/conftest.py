from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.domain.tokens import SOL, USDC
from engine.settings import Settings
from engine.solana.transactions import Wallet
from tests.integration.workers.executing import Worker, worker_of
from tests.simnet_process import Simnet


@pytest.fixture(scope="module")
async def wallet(simnet: Simnet) -> Wallet:
    return await simnet.make_wallet({SOL: 10_000 * 10**9, USDC: 1_000_000 * 10**6})


@pytest.fixture
async def worker(settings: Settings, simnet: Simnet, wallet: Wallet) -> AsyncIterator[Worker]:
    """A worker that takes what it is told to take, and retries at once."""
    async with worker_of(settings, simnet, wallet, retry_base_seconds=0.0) as worker:
        yield worker
