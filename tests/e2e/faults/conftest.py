from __future__ import annotations

import random
from collections.abc import AsyncIterator, Generator

import pytest

from tests.e2e.faults.cluster import Cluster, running
from tests.e2e.faults.load import Load


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell, with a failure, what was done to the cluster and what its processes said."""
    report = yield
    cluster = item.funcargs.get("cluster")
    if report.failed and isinstance(cluster, Cluster):
        report.sections.append(("What was done", cluster.report()))
    return report


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
