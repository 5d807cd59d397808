"""Mints that orders name: how they are looked up, what is no mint, and for how long that is remembered."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.errors import NodeUnavailable
from engine.domain.tokens import SOL, Token
from engine.solana.accounts import MINT, TOKEN_ACCOUNT, Mint, TokenAccount
from engine.solana.programs import SYSTEM_PROGRAM, TOKEN_PROGRAM
from engine.solana.rpc import NodeClient
from server.tokens import MISS_SECONDS, Tokens
from tests.fake_node import FakeNode

KEY = Pubkey.from_bytes(bytes([7]) * 32)
A_MINT = MINT.encode(Mint(0, KEY, 10**9, 5))


class Chain(FakeNode):
    """A node that has the accounts it is given, and a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[str, tuple[bytes, Pubkey]] = {}
        self.seconds = 0.0
        self.answers["getMultipleAccounts"] = self._accounts

    def _accounts(self, params: list[Any]) -> dict[str, Any]:
        found = [self.accounts.get(address) for address in params[0]]
        value = [
            None
            if account is None
            else {"data": [b64encode(account[0]).decode(), "base64"], "lamports": 1, "owner": str(account[1])}
            for account in found
        ]
        return {"result": {"context": {"slot": 1}, "value": value}}

    def asked_for(self) -> list[int]:
        """How many accounts each call was for."""
        return [len(call["params"][0]) for request in self.requests for call in request]


@pytest.fixture
async def chain() -> AsyncIterator[Chain]:
    async with Chain() as chain:
        yield chain


@pytest.fixture
async def client(chain: Chain) -> AsyncIterator[NodeClient]:
    async with NodeClient(chain.url, chain.ws_url) as client:
        yield client


@pytest.fixture
def tokens(chain: Chain, client: NodeClient) -> Tokens:
    return Tokens(client, monotonic_seconds=lambda: chain.seconds)


def address(number: int) -> str:
    return str(Pubkey.from_bytes(number.to_bytes(32, "big")))


async def test_a_mint_is_learned_once(chain: Chain, tokens: Tokens) -> None:
    chain.accounts[address(9)] = (A_MINT, TOKEN_PROGRAM)
    for _ in range(2):
        await tokens.learn([address(9), address(9), "SOL", SOL.mint, "not an address"])
    assert tokens.find(address(9)) == Token(address(9), address(9), 5)
    assert chain.asked_for() == [1]


@pytest.mark.parametrize(
    ("data", "owner"),
    [
        pytest.param(TOKEN_ACCOUNT.encode(TokenAccount(KEY, KEY, 1)), TOKEN_PROGRAM, id="a balance"),
        pytest.param(b"\1" * 355, TOKEN_PROGRAM, id="several signers"),
        pytest.param(A_MINT + b"\0", TOKEN_PROGRAM, id="a byte too many"),
        pytest.param(A_MINT[:-1], TOKEN_PROGRAM, id="a byte too few"),
        pytest.param(bytes(MINT.size), TOKEN_PROGRAM, id="room for a mint"),
        pytest.param(A_MINT, SYSTEM_PROGRAM, id="of another program"),
    ],
)
async def test_what_is_no_mint_is_no_token(data: bytes, owner: Pubkey, chain: Chain, tokens: Tokens) -> None:
    chain.accounts[address(9)] = (data, owner)
    await tokens.learn([address(9)])
    assert tokens.find(address(9)) is None


async def test_many_who_ask_at_once_share_a_call(chain: Chain, tokens: Tokens) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(tokens.learn([address(1), address(number // 2 + 2)]))
    # A call takes a hundred names, some of them the same.
    assert sorted(chain.asked_for()) == [26, 26, 26, 26]


async def test_while_the_node_is_slow_a_few_calls_wait_for_it(chain: Chain, tokens: Tokens) -> None:
    chain.hold = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for number in range(1, 60):
            group.create_task(tokens.learn([address(number)]))
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0.001)
        chain.hold.set()
    assert len(chain.asked_for()) <= 8
    assert sum(chain.asked_for()) == 59


async def test_what_is_not_there_is_looked_for_again_after_some_seconds(chain: Chain, tokens: Tokens) -> None:
    await tokens.learn([address(9)])
    chain.accounts[address(9)] = (A_MINT, TOKEN_PROGRAM)
    for _ in range(200):
        await tokens.learn([address(9)])
    assert (tokens.find(address(9)), chain.asked_for()) == (None, [1])
    chain.seconds += MISS_SECONDS
    await tokens.learn([address(9)])
    assert tokens.find(address(9)) is not None
    assert chain.asked_for() == [1, 1]


async def test_as_many_are_remembered_as_there_is_room_for(chain: Chain, client: NodeClient) -> None:
    tokens = Tokens(client, most_kept=3, monotonic_seconds=lambda: chain.seconds)
    for number in range(1, 5):
        chain.accounts[address(number)] = (A_MINT, TOKEN_PROGRAM)
    await tokens.learn(map(address, range(1, 9)))
    assert [number for number in range(1, 9) if tokens.find(address(number))] == [2, 3, 4]
    await tokens.learn(map(address, [2, 6, 7, 8]))
    assert chain.asked_for() == [8], "all of these are remembered"
    await tokens.learn(map(address, [1, 5]))
    assert chain.asked_for() == [8, 2]


async def test_a_node_that_refuses_is_one_that_is_away(chain: Chain, tokens: Tokens) -> None:
    answer = chain.answers["getMultipleAccounts"]
    chain.answers["getMultipleAccounts"] = lambda params: {"error": {"code": -32602, "message": "too many"}}
    with pytest.raises(NodeUnavailable, match="too many"):
        await tokens.learn([address(9)])
    # Nothing is known of it: it is asked for again at once.
    chain.answers["getMultipleAccounts"] = answer
    chain.accounts[address(9)] = (A_MINT, TOKEN_PROGRAM)
    await tokens.learn([address(9)])
    assert tokens.find(address(9)) is not None
