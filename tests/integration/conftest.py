from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.simnet_process import Simnet, running_simnet


@pytest.fixture(scope="module")
async def simnet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simnet]:
    """A simnet process that a module's tests share."""
    async with running_simnet(tmp_path_factory.mktemp("simnet")) as simnet:
        yield simnet
