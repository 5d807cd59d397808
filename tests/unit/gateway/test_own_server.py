"""Which server a gateway goes to first, where it has one of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.settings import Settings
from gateway.server import _own_first


@pytest.mark.parametrize(("server_count", "gateway_count"), [(1, 1), (2, 2), (2, 4), (3, 3), (3, 9)])
def test_gateways_that_are_neighbours_share_the_servers_evenly(server_count: int, gateway_count: int) -> None:
    settings = Settings(server_processes=server_count, link_folder="/run/links")
    firsts = []
    for port in range(3000, 3000 + gateway_count):
        paths = _own_first(replace(settings, port=port))
        assert sorted(paths) == settings.link_paths
        firsts.append(paths[0])
    assert {firsts.count(path) for path in settings.link_paths} == {gateway_count // server_count}


def test_without_a_folder_there_are_no_links() -> None:
    assert _own_first(Settings(server_processes=2)) == []
