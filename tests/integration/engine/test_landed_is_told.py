"""The node client hears from a real simnet what landed of a wallet, and hears again after it was away."""

from __future__ import annotations

from asyncio import create_task, timeout
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from solders.signature import Signature

from engine.domain.pools.pool import Clock
from engine.settings import Settings
from engine.solana import rpc
from engine.solana.instructions import memo, transfer_lamports
from engine.solana.rpc import NodeClient, TransactionRecord
from simnet.accounts import Account
from simnet.bank import View
from simnet.node import Node
from simnet.transaction import Transaction
from tests.simnet_wallets import SigningWallet

ALICE, BOB = SigningWallet(1), SigningWallet(2)


@asynccontextmanager
async def ticking(settings: Settings) -> AsyncIterator[Node]:
    """A node whose slots pass."""
    async with Node(settings) as node, timeout(20):
        slots = create_task(node.run())
        yield node
        slots.cancel()


async def until(client: NodeClient, condition: Callable[[], bool]) -> None:
    """Wait for slots until it is so."""
    while not condition():
        await client.next_slot(None)


def fund(view: View, _clock: Clock) -> None:
    for wallet in (ALICE, BOB):
        view.put(wallet.address, Account(10**12))


def sent(node: Node, raw: bytes) -> str:
    node.chain.accept(Transaction(raw))
    return str(Signature.from_bytes(raw[1:65]))


async def test_what_landed_is_told_as_it_would_be_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "_RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr(rpc, "_POLL_SECONDS", 0.01)
    settings = Settings(
        simnet_port=0, simnet_market_pools=0, simnet_slot_ms=10, simnet_data_dir=str(tmp_path)
    )
    awaited: set[str] = set()
    told: dict[str, TransactionRecord] = {}
    async with ticking(settings) as node:
        port = node.port
        node.chain.change(fund)
        client = NodeClient(node.url, node.ws_url)
        client.follow_landed(str(ALICE.pubkey), "confirmed", awaited, told.__setitem__)
        await client.__aenter__()
        await until(client, lambda: client.tells_landed)
        blockhash = node.chain.blockhash(node.chain.slot)
        sent(node, ALICE.sign([memo("of another process", ALICE.pubkey)], blockhash))
        other = sent(node, BOB.sign([memo("of another wallet", BOB.pubkey)], blockhash))
        signatures = [
            sent(node, ALICE.sign([memo("landed", ALICE.pubkey)], blockhash)),
            sent(node, ALICE.sign([transfer_lamports(ALICE.pubkey, BOB.pubkey, 2**62)], blockhash)),
        ]
        awaited.update(signatures, [other])
        await until(client, lambda: len(told) == 2)
        assert [told[signature] for signature in signatures] == await client.transactions(signatures)
        assert [told[signature].err for signature in signatures] == [
            None,
            {"InstructionError": [0, {"Custom": 1}]},
        ]
    async with ticking(replace(settings, simnet_port=port)) as node:
        await until(client, lambda: client.tells_landed)
        raw = ALICE.sign([memo("again", ALICE.pubkey)], node.chain.blockhash(node.chain.slot))
        signature = sent(node, raw)
        awaited.add(signature)
        await until(client, lambda: len(told) == 3)
        assert [told[signature]] == await client.transactions([signature])
        await client.__aexit__(None, None, None)
