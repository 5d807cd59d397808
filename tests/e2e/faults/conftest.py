from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from tests.e2e.faults.cluster import Cluster, running
from tests.e2e.faults.load import Load


@pytest.fixture(scope="module")
async def _cluster() -> AsyncIterator[Cluster]:
    async with running() as cluster:
        yield cluster


@pytest.fixture
async def cluster(_cluster: Cluster) -> Cluster:
    """The whole engine with two workers, all of it up; one for the tests of a file."""
    await _cluster.heal()
    return _cluster


@pytest.fixture
async def load(cluster: Cluster, request: pytest.FixtureRequest) -> AsyncIterator[Load]:
    """Clients of the cluster, who ask for the same in every run."""
    name: str = request.node.name[-50:]
    async with Load(cluster.rest_url, cluster.grpc_target, name, random.Random(name)) as load:
        yield load
