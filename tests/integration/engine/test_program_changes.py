"""The node client hears of accounts that change, from a real simnet, and hears again after it was away."""

from __future__ import annotations

from asyncio import timeout
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from solders.pubkey import Pubkey

from engine.domain.pools.pool import Clock
from engine.settings import Settings
from engine.solana import rpc
from engine.solana.rpc import NodeClient, ProgramChange, ProgramWatch
from engine.venues import VENUES
from simnet.accounts import Account
from simnet.bank import View
from simnet.genesis import GenesisPool
from simnet.node import Node

PROGRAM, OTHER = (Pubkey.from_bytes(bytes([number]) * 32) for number in (9, 8))
ADDRESS = Pubkey.from_bytes(bytes([7]) * 32)


def put(node: Node, data: bytes, program: Pubkey = PROGRAM, address: Pubkey = ADDRESS) -> None:
    """Make or change an account between two slots."""

    def act(view: View, _clock: Clock) -> None:
        view.put(bytes(address), Account(10**7, bytes(program), data))

    node.chain.change(act)


def pushed(node: Node, pool: GenesisPool, view: View, clock: Clock) -> None:
    node.chain.market.push(view, pool, 500, clock)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(simnet_port=0, simnet_market_pools=0, simnet_data_dir=str(tmp_path))


@pytest.fixture
async def node(settings: Settings) -> AsyncIterator[Node]:
    async with Node(settings) as node:
        yield node


async def test_accounts_that_fit_a_watch_are_told_as_they_change(node: Node) -> None:
    watches = [
        ProgramWatch(PROGRAM, 6, b"ab"),
        ProgramWatch(OTHER, 2),
    ]
    async with (
        timeout(10),
        NodeClient(node.url, node.ws_url) as client,
        aclosing(client.program_changes(watches)) as changes,
    ):
        assert await anext(changes) is None
        for data in (b"abcdef", b"abcdefg", b"xbcdef", b"ab"):
            put(node, data)
        put(node, b"abXdef")
        put(node, b"no", OTHER)
        assert [await anext(changes) for _ in range(3)] == [
            ProgramChange(PROGRAM, ADDRESS, b"abcdef"),
            ProgramChange(PROGRAM, ADDRESS, b"abXdef"),
            ProgramChange(OTHER, ADDRESS, b"no"),
        ]


async def test_a_swap_is_told_of_its_pool_with_the_mints_of_every_venue(node: Node) -> None:
    watches = [
        ProgramWatch(venue.program, venue.pool_filter.data_size, venue.pool_filter.prefix) for venue in VENUES
    ]
    async with (
        timeout(20),
        NodeClient(node.url, node.ws_url) as client,
        aclosing(client.program_changes(watches)) as changes,
    ):
        assert await anext(changes) is None
        told = {}
        for venue in VENUES:
            pool = next(pool for pool in node.chain.market.pools if pool.venue is venue)
            node.chain.change(partial(pushed, node, pool))
            change = await anext(changes)
            assert change is not None
            start, length = venue.mints_slice
            told[change.address] = (change.program, change.data[start : start + length])
            mints = bytes(pool.keys.mint_a) + bytes(pool.keys.mint_b)
            assert told[pool.keys.pool] == (venue.program, mints)


async def test_after_a_restart_of_the_node_it_is_told_to_list_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_RECONNECT_SECONDS", 0.01)
    async with Node(settings) as node:
        port = node.port
        client = await NodeClient(node.url, node.ws_url).__aenter__()
        changes = client.program_changes([ProgramWatch(PROGRAM, 2)])
        async with timeout(10):
            assert await anext(changes) is None
            put(node, b"ab")
            assert await anext(changes) == ProgramChange(PROGRAM, ADDRESS, b"ab")
    async with Node(replace(settings, simnet_port=port)) as again, timeout(20):
        assert await anext(changes) is None
        assert await client.program_accounts(
            PROGRAM, data_size=2, data_slice=(1, 1), commitment="processed"
        ) == [(ADDRESS, b"b")]
        put(again, b"ac")
        assert await anext(changes) == ProgramChange(PROGRAM, ADDRESS, b"ac")
        await changes.aclose()
        await client.__aexit__(None, None, None)


async def test_accounts_are_listed_by_what_they_contain(node: Node) -> None:
    venue = VENUES[0]
    pools = [pool for pool in node.chain.market.pools if pool.venue is venue]
    mint = pools[0].keys.mint_a
    offset, _ = venue.mints_slice
    async with NodeClient(node.url, node.ws_url) as client:
        found = await client.program_accounts(
            venue.program,
            data_size=venue.pool_filter.data_size,
            prefix=venue.pool_filter.prefix,
            contains=(offset, bytes(mint)),
            data_slice=(offset, 32),
        )
    assert {address for address, _ in found} == {pool.keys.pool for pool in pools if pool.keys.mint_a == mint}
    assert {data for _, data in found} == {bytes(mint)}
