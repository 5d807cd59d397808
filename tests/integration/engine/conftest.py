from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.solana.rpc import NodeClient
from engine.solana.transactions import Wallet
from tests.integration.engine.on_simnet import RICH
from tests.simnet_process import Simnet


@pytest.fixture
async def node(simnet: Simnet) -> AsyncIterator[NodeClient]:
    async with NodeClient(simnet.url, simnet.ws_url) as client:
        yield client


@pytest.fixture
async def wallet(simnet: Simnet) -> Wallet:
    return await simnet.make_wallet(RICH)
