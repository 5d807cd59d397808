"""The market in memory: what it reads, when it reads again, and when it no longer trusts itself."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from engine.domain.errors import NodeUnavailable, NoRoute
from engine.domain.order import FailureReason, OrderSpec, RoutingDecision, Side
from engine.domain.order_types import LimitOrder
from engine.domain.pools.pool import Clock
from engine.domain.pools.raydium_clmm import sqrt_price_at_tick
from engine.domain.pools.raydium_cpmm import RaydiumCpmmPool
from engine.domain.tokens import BONK, SOL, USDC, Token
from engine.market import Market, RouteRules, explain_error
from engine.market.moment import STALE_SECONDS
from engine.settings import Settings
from engine.solana.accounts import CLOCK, TOKEN_ACCOUNT, ClockSysvar, TokenAccount
from engine.solana.instructions import Instruction, Names, memo
from engine.solana.programs import (
    CLOCK_SYSVAR,
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    associated_token_account,
)
from engine.solana.rpc import NodeClient
from engine.solana.transactions import FEE_RESERVE, Blockhash, Wallet, build_swap
from engine.venues import VENUE_BY_KIND, VENUES
from engine.venues.meteora_damm_v2 import POOL
from engine.venues.raydium_clmm import (
    BITMAP_EXTENSION,
    POOL_STATE,
    TICK_ARRAY,
    TICKS_PER_ARRAY,
    TickArrayState,
    tick_array_address,
    tick_array_start,
)
from engine.venues.raydium_cpmm import RaydiumCpmm, RaydiumCpmmKeys
from engine.venues.venue import NewAccount, Venue
from tests.fake_node import FakeNode

RAYDIUM, METEORA = VENUE_BY_KIND["raydium_cpmm"], VENUE_BY_KIND["meteora_damm_v2"]
CLMM = VENUE_BY_KIND["raydium_clmm"]
WALLET = Wallet(Keypair.from_seed(bytes(range(32))))
BLOCKHASH = "F26fH1L1SnpfDCZweDcexzJHaqUvmG6uqRWQ1X1975Bw"
ONE_SOL = OrderSpec(Side.SELL, 10**9, SOL, USDC)
ORDER_ID = UUID(int=1)


def _mint(token: Token) -> Pubkey:
    return Pubkey.from_string(token.mint)


class Chain:
    """Accounts behind a FakeNode."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.slot = 100
        self.accounts: dict[str, NewAccount] = {}
        self.lamports: dict[str, int] = {}
        self.program_reads: list[dict[str, Any]] = []
        node.answers = {
            "getSlot": lambda params: {"result": self.slot},
            "getLatestBlockhash": self._blockhash,
            "getMultipleAccounts": self._multiple_accounts,
            "getProgramAccounts": self._program_accounts,
        }

    def add(self, address: Pubkey, account: NewAccount) -> None:
        self.accounts[str(address)] = account

    def add_pool(
        self,
        venue: Venue[Any],
        tokens: tuple[Pubkey, Pubkey] = (_mint(SOL), _mint(USDC)),
        amounts: tuple[int, int] = (1_000 * 10**9, 100_000 * 10**6),
        *,
        fee_ppm: int = 2_500,
        index: int = 0,
    ) -> Pubkey:
        pool, accounts = venue.new_pool(*tokens, *amounts, fee_ppm, index=index)
        for address, account in accounts.items():
            self.add(address, account)
        return pool

    def set_amount(self, vault: Pubkey, amount: int) -> None:
        account = self.accounts[str(vault)]
        self.add(vault, NewAccount(account.owner, TOKEN_ACCOUNT.patch(account.data, amount=amount)))

    async def pass_slot(self) -> None:
        self.slot += 1
        await self.node.announce(self.slot)

    def _blockhash(self, params: list[Any]) -> dict[str, Any]:
        value = {"blockhash": BLOCKHASH, "lastValidBlockHeight": self.slot + 150}
        return {"result": {"context": {"slot": self.slot}, "value": value}}

    def _multiple_accounts(self, params: list[Any]) -> dict[str, Any]:
        assert len(params[0]) <= 100
        value = [self._account(address) for address in params[0]]
        return {"result": {"context": {"slot": self.slot}, "value": value}}

    def _account(self, address: str) -> dict[str, Any] | None:
        account = self.accounts.get(address)
        if account is None and address not in self.lamports:
            return None
        data = b"" if account is None else account.data
        return {
            "data": [b64encode(data).decode(), "base64"],
            "owner": str(SYSTEM_PROGRAM if account is None else account.owner),
            "lamports": self.lamports.get(address, 1),
        }

    def _program_accounts(self, params: list[Any]) -> dict[str, Any]:
        program, options = params
        self.program_reads.append(options)
        size = options["filters"][0]["dataSize"]
        contents = [
            (wanted["memcmp"]["offset"], b64decode(wanted["memcmp"]["bytes"]))
            for wanted in options["filters"][1:]
        ]
        start = options["dataSlice"]["offset"]
        end = start + options["dataSlice"]["length"]
        return {
            "result": [
                {
                    "pubkey": address,
                    "account": {"data": [b64encode(account.data[start:end]).decode(), "base64"]},
                }
                for address, account in self.accounts.items()
                if str(account.owner) == program
                and len(account.data) == size
                and all(account.data.startswith(content, offset) for offset, content in contents)
            ]
        }


@pytest.fixture
async def chain() -> AsyncIterator[Chain]:
    async with FakeNode() as node:
        yield Chain(node)


@asynccontextmanager
async def _running(chain: Chain, *, follows: bool = True, **options: Any) -> AsyncIterator[Market]:
    """Run a market on the chain; on entry it is ready and, if it `follows` them, told of slots."""
    async with NodeClient(chain.node.url, chain.node.ws_url) as client:
        market = Market(client, WALLET.pubkey, **options)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(market.run())
            await market.wait_ready()
            if follows:
                await chain.node.subscribed.wait()
            yield market
            following.cancel()


async def _see_slot(market: Market, chain: Chain) -> None:
    """Let a slot pass and return once the market has seen it."""
    await chain.pass_slot()
    while market.slot < chain.slot:
        await market.next_refresh()


# ---- What is traded ------------------------------------------------------------------------------


async def test_pools_of_every_venue_are_quoted_and_the_best_is_chosen(chain: Chain) -> None:
    raydium, meteora = chain.add_pool(RAYDIUM), chain.add_pool(METEORA, fee_ppm=500)
    async with _running(chain) as market:
        decision = market.decide(ONE_SOL, 1, 50)
        assert [offer.pool for offer in decision.quotes] == [str(meteora), str(raydium)]
        assert decision.route is not None
        assert decision.route.venue == "Meteora"
        assert decision.slot == market.slot == chain.slot
        assert market.pool_count == 2


@pytest.mark.parametrize("venue", [RAYDIUM, METEORA], ids=lambda venue: venue.kind)
async def test_a_pool_is_quoted_both_ways(chain: Chain, venue: Venue[Any]) -> None:
    chain.add_pool(venue)
    async with _running(chain) as market:
        sold = market.decide(ONE_SOL, 1, 50).route
        bought = market.decide(OrderSpec(Side.SELL, 100 * 10**6, USDC, SOL), 1, 50).route
        assert sold is not None
        assert bought is not None
        assert 99 * 10**6 < sold.output_amount < 100 * 10**6
        assert 99 * 10**7 < bought.output_amount < 10**9


async def test_only_mints_are_read_of_pools_whose_tokens_are_unknown(chain: Chain) -> None:
    known = chain.add_pool(RAYDIUM)
    unknown = chain.add_pool(RAYDIUM, (_mint(SOL), Pubkey.from_bytes(bytes([9]) * 32)))
    async with _running(chain) as market:
        assert market.pool_count == 1
    read = {address for request in chain.node.requests for call in request for address in _asked(call)}
    assert str(known) in read
    assert str(unknown) not in read
    assert [options["dataSlice"]["length"] for options in chain.program_reads] == [64] * len(VENUES)


def _asked(call: Mapping[str, Any]) -> list[str]:
    return list(call["params"][0]) if call["method"] == "getMultipleAccounts" else []


async def test_pair_without_a_pool_has_no_route(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    async with _running(chain) as market:
        decision = market.decide(OrderSpec(Side.SELL, 10**5, BONK, USDC), 1, 50)
        assert decision.route is None
        assert decision.reason == "no pool trades BONK for USDC"


async def test_pools_that_are_new_are_found(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    async with _running(chain, discovery_seconds=0.01) as market:
        chain.add_pool(METEORA)
        while market.pool_count < 2:
            await _see_slot(market, chain)
        assert len(market.decide(ONE_SOL, 1, 50).quotes) == 2


async def test_of_many_pools_those_are_traded_that_hold_the_most_of_the_better_known_token(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.market.pools.MOST_POOLS", 3)
    # Of a token that anybody can have made, one can hold any amount.
    pools = [
        chain.add_pool(RAYDIUM, amounts=(sol * 10**9, 10**15 // sol), index=index)
        for index, sol in enumerate((5, 1, 4, 2, 3))
    ]
    elsewhere = chain.add_pool(RAYDIUM, (_mint(SOL), _mint(BONK)))
    async with _running(chain, discovery_seconds=0.01) as market:
        assert market.pool_count == 4

        def quoted() -> set[str]:
            return {quote.pool for quote in market.decide(ONE_SOL, 1, 50).quotes}

        assert quoted() == {str(pools[at]) for at in (0, 2, 4)}
        # A slot reads nothing of the others.
        await _see_slot(market, chain)
        read = {account for call in chain.node.requests[-1] for account in _asked(call)}
        assert read.isdisjoint(map(str, (pools[1], pools[3])))
        assert read.issuperset(map(str, (pools[0], pools[2], pools[4], elsewhere)))

        richer = chain.add_pool(METEORA, amounts=(6 * 10**9, 10**9))
        while str(richer) not in quoted():
            await _see_slot(market, chain)
        assert quoted() == {str(pools[0]), str(pools[2]), str(richer)}

        # One that grows is traded again.
        for pool, amount in ((richer, 1), (pools[4], 7 * 10**9)):
            venue = RAYDIUM if pool is pools[4] else METEORA
            keys = venue.keys(pool, chain.accounts[str(pool)].data)
            assert keys is not None
            chain.set_amount(keys.vault_a if keys.mint_a == _mint(SOL) else keys.vault_b, amount)
        while str(pools[4]) not in quoted():
            await _see_slot(market, chain)
        assert quoted() == {str(pools[at]) for at in (0, 2, 4)}


async def test_closed_pool_is_not_quoted_any_more(chain: Chain) -> None:
    gone, stays = chain.add_pool(RAYDIUM), chain.add_pool(METEORA)
    async with _running(chain) as market:
        del chain.accounts[str(gone)]
        await _see_slot(market, chain)
        assert [offer.pool for offer in market.decide(ONE_SOL, 1, 50).quotes] == [str(stays)]


async def test_pool_that_cannot_be_read_does_not_disturb_the_others(chain: Chain) -> None:
    stays = chain.add_pool(METEORA)
    odd = chain.add_pool(RAYDIUM)
    account = chain.accounts[str(odd)]
    # A creator_fee_on that no program version we know writes.
    chain.add(odd, NewAccount(account.owner, account.data[:389] + b"\x09" + account.data[390:]))
    async with _running(chain) as market:
        assert [offer.pool for offer in market.decide(ONE_SOL, 1, 50).quotes] == [str(stays)]


@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_a_pool_that_becomes_unreadable_is_not_quoted_until_it_can_be_read_again(
    chain: Chain, venue: Venue[Any]
) -> None:
    odd, stays = chain.add_pool(venue), chain.add_pool(METEORA, index=1)
    account = chain.accounts[str(odd)]
    async with _running(chain) as market:
        quoted = {quote.pool for quote in market.decide(ONE_SOL, 1, 50).quotes}
        for data in (account.data[:100], b"\0"):
            chain.add(odd, NewAccount(account.owner, data))
            await _see_slot(market, chain)
            assert [quote.pool for quote in market.decide(ONE_SOL, 1, 50).quotes] == [str(stays)]
            chain.add(odd, account)
            await _see_slot(market, chain)
            assert (
                {quote.pool for quote in market.decide(ONE_SOL, 1, 50).quotes}
                == quoted
                == {str(odd), str(stays)}
            )


@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.kind)
async def test_lamports_at_an_address_that_has_no_account_change_nothing(
    chain: Chain, venue: Venue[Any]
) -> None:
    """Anybody can send them: to a bitmap extension that a pool does not need, to arrays it has not yet."""
    chain.add_pool(venue)
    if venue is CLMM:
        # As those pools are that are older than their extension.
        for address, account in list(chain.accounts.items()):
            if account.data[:8] == BITMAP_EXTENSION.discriminator:
                del chain.accounts[address]
    async with _running(chain) as market:
        quotes = market.decide(ONE_SOL, 1, 50).quotes
        read = {address for request in chain.node.requests for call in request for address in _asked(call)}
        missing = read - chain.accounts.keys() - {str(WALLET.pubkey), str(CLOCK_SYSVAR)}
        chain.lamports |= dict.fromkeys(missing, 890_880)
        for _ in range(2):
            await _see_slot(market, chain)
            assert market.decide(ONE_SOL, 1, 50).quotes == quotes
            assert market.wallet_balance(USDC) == 0
    assert str(associated_token_account(WALLET.pubkey, _mint(USDC))) in missing
    # Where it stood before anybody looked.
    async with _running(chain) as market:
        assert market.decide(ONE_SOL, 1, 50).quotes == quotes
        assert market.wallet_balance(USDC) == 0


# ---- Following -----------------------------------------------------------------------------------


async def test_next_slots_prices_are_quoted(chain: Chain) -> None:
    pool = chain.add_pool(RAYDIUM)
    keys = RAYDIUM.keys(pool, chain.accounts[str(pool)].data)
    assert keys is not None
    usdc_vault = keys.vault_a if keys.mint_a == _mint(USDC) else keys.vault_b
    async with _running(chain) as market:
        before = market.decide(ONE_SOL, 1, 50).route
        chain.set_amount(usdc_vault, 200_000 * 10**6)
        await _see_slot(market, chain)
        after = market.decide(ONE_SOL, 1, 50).route
        assert before is not None
        assert after is not None
        assert after.output_amount in (2 * before.output_amount, 2 * before.output_amount + 1)


class CountingRaydium(RaydiumCpmm):
    decoded: ClassVar[list[Pubkey]] = []

    def pool(self, keys: RaydiumCpmmKeys, accounts: Mapping[Pubkey, bytes]) -> RaydiumCpmmPool:
        self.decoded.append(keys.pool)
        return super().pool(keys, accounts)


async def test_only_accounts_whose_bytes_changed_are_decoded(chain: Chain) -> None:
    moves = chain.add_pool(RAYDIUM, index=0)
    rests = chain.add_pool(RAYDIUM, index=1)
    keys = RAYDIUM.keys(moves, chain.accounts[str(moves)].data)
    assert keys is not None
    CountingRaydium.decoded.clear()
    async with _running(chain, venues=[CountingRaydium()]) as market:
        assert sorted(map(str, CountingRaydium.decoded)) == sorted([str(moves), str(rests)])
        CountingRaydium.decoded.clear()
        await _see_slot(market, chain)
        assert CountingRaydium.decoded == []
        chain.set_amount(keys.vault_a, 5)
        await _see_slot(market, chain)
        assert CountingRaydium.decoded == [moves]


async def test_a_slot_costs_one_request_whatever_the_number_of_orders(chain: Chain) -> None:
    for index in range(30):
        chain.add_pool(RAYDIUM, index=index)
        chain.add_pool(RAYDIUM, (_mint(SOL), _mint(BONK)), index=index)
    async with _running(chain) as market:
        asked = len(chain.node.requests)
        for _ in range(500):
            market.decide(ONE_SOL, 1, 50)
        assert len(chain.node.requests) == asked
        await _see_slot(market, chain)
        assert len(chain.node.requests) == asked + 1
        # Chunked for the node's limit, with a pool's accounts always in one chunk: of one slot.
        chunks = [set(_asked(call)) for call in chain.node.requests[-1] if _asked(call)]
        assert len(chunks) == 3
        for offer in market.decide(ONE_SOL, 1, 50).quotes:
            pool = Pubkey.from_string(offer.pool)
            keys = RAYDIUM.keys(pool, chain.accounts[offer.pool].data)
            assert keys is not None
            wanted = {str(address) for address in RAYDIUM.quote_accounts(keys, {})}
            assert any(wanted <= chunk for chunk in chunks)


async def test_tick_arrays_are_read_as_the_price_comes_near_them_and_no_longer_than_it_is(
    chain: Chain,
) -> None:
    address = chain.add_pool(CLMM)
    pool = chain.accounts[str(address)]
    keys = CLMM.keys(address, pool.data)
    assert keys is not None
    span = TICKS_PER_ARRAY * keys.tick_spacing
    start = tick_array_start(POOL_STATE.decode(pool.data).tick_current, keys.tick_spacing)
    arrays = [tick_array_address(address, start + step * span) for step in range(-1, 5)]
    bitmap = int.from_bytes(POOL_STATE.decode(pool.data).tick_array_bitmap, "little")
    for step, array in enumerate(arrays[3:], 2):
        # There are three arrays; three more farther up have nothing in them.
        chain.add(array, NewAccount(CLMM.program, _tick_array(address, start + step * span)))
        bitmap |= 1 << start // span + step + 512
    with_bits = POOL_STATE.patch(pool.data, tick_array_bitmap=bitmap.to_bytes(128, "little"))
    chain.add(address, NewAccount(CLMM.program, with_bits))

    def read() -> list[Pubkey]:
        asked = [address for call in chain.node.requests[-1] for address in _asked(call)]
        return [array for array in arrays if str(array) in asked]

    async with _running(chain, venues=[CLMM]) as market:
        assert read() == arrays[:4]
        assert market.decide(ONE_SOL, 1, 50).route is not None
        tick = start + span
        moved = POOL_STATE.patch(with_bits, tick_current=tick, sqrt_price_x64=sqrt_price_at_tick(tick))
        chain.add(address, NewAccount(CLMM.program, moved))
        await _see_slot(market, chain)
        await _see_slot(market, chain)
        assert read() == arrays[:5]
        tick = start + 3 * span
        moved = POOL_STATE.patch(with_bits, tick_current=tick, sqrt_price_x64=sqrt_price_at_tick(tick))
        chain.add(address, NewAccount(CLMM.program, moved))
        await _see_slot(market, chain)
        await _see_slot(market, chain)
        assert read() == arrays[2:]
        # Back where it was: what was read of the arrays before is not trusted, it is read again.
        chain.add(address, NewAccount(CLMM.program, with_bits))
        await _see_slot(market, chain)
        assert market.decide(ONE_SOL, 1, 50).route is None
        await _see_slot(market, chain)
        assert read() == arrays[:4]
        assert market.decide(ONE_SOL, 1, 50).route is not None


def _tick_array(pool: Pubkey, start: int) -> bytes:
    return TICK_ARRAY.encode(TickArrayState(pool, start, bytes(10_080), 0))


async def test_market_comes_back_after_the_node_was_away(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    async with _running(chain) as market:
        chain.node.http_status = 503
        await chain.pass_slot()
        chain.node.asked.clear()
        await chain.node.asked.wait()
        chain.node.http_status = 200
        await _see_slot(market, chain)
        assert market.decide(ONE_SOL, 1, 50).route is not None


# ---- Trust ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", ["one too few", "no base64"])
async def test_market_comes_back_after_the_node_answered_garbage(
    chain: Chain, garbage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.market.patience.RETRY_SECONDS", 0.01)
    chain.add_pool(RAYDIUM)
    async with _running(chain) as market:
        right = chain.node.answers["getMultipleAccounts"]
        wrong_count, asked_again = 0, asyncio.Event()

        def wrong(params: list[Any]) -> dict[str, Any]:
            nonlocal wrong_count
            wrong_count += 1
            if wrong_count == 3:
                asked_again.set()
            answer: dict[str, Any] = right(params)
            if garbage == "one too few":
                answer["result"]["value"].pop()
            else:
                answer["result"]["value"] = [
                    None if each is None else each | {"data": ["abc", "base64"]}
                    for each in answer["result"]["value"]
                ]
            return answer

        chain.node.answers["getMultipleAccounts"] = wrong
        await chain.pass_slot()
        await asked_again.wait()
        chain.node.answers["getMultipleAccounts"] = right
        while market.slot < chain.slot:
            await market.next_refresh()
        assert market.decide(ONE_SOL, 1, 50).route is not None


async def test_old_prices_are_not_traded_on(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    now = [1_000.0]
    async with _running(chain, monotonic_seconds=lambda: now[0]) as market:
        now[0] += STALE_SECONDS
        assert market.ready
        now[0] += 1
        assert not market.ready
        for ask in (
            lambda: market.decide(ONE_SOL, 1, 50),
            lambda: market.blockhash,
            lambda: market.slot,
            lambda: market.wallet_balance(SOL),
        ):
            with pytest.raises(NodeUnavailable, match="no prices for 6 s"):
                ask()


async def test_nothing_is_quoted_before_anything_is_known() -> None:
    market = Market(NodeClient("http://127.0.0.1:1", "ws://127.0.0.1:1"), WALLET.pubkey)
    assert not market.ready
    with pytest.raises(NodeUnavailable, match="any prices yet"):
        market.decide(ONE_SOL, 1, 50)


async def test_blockhash_is_of_the_slot(chain: Chain) -> None:
    async with _running(chain) as market:
        assert market.blockhash == Blockhash(BLOCKHASH, chain.slot + 150)


async def test_pools_open_by_the_chains_clock_where_it_tells_it(chain: Chain) -> None:
    pool = chain.add_pool(METEORA)
    account = chain.accounts[str(pool)]
    chain.add(pool, NewAccount(account.owner, POOL.patch(account.data, activation_point=2_000)))
    for now, usable in ((1_999, False), (2_000, True)):
        chain.add(
            CLOCK_SYSVAR, NewAccount(SYSTEM_PROGRAM, CLOCK.encode(ClockSysvar(chain.slot, 0, 0, 0, now)))
        )
        async with _running(chain) as market:
            assert (market.decide(ONE_SOL, 1, 50).route is not None) is usable


# ---- Rest ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _resting(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Market]:
    """Run a market that rests from the beginning, and does not refresh by itself."""
    monkeypatch.setattr("engine.market.market._ASKED_SECONDS", -1.0)
    monkeypatch.setattr("engine.market.market._REST_SECONDS", 3600.0)
    monkeypatch.setattr("engine.market.market._REFRESH_SECONDS", 0.0)
    async with _running(chain, follows=False) as market:
        while not market.is_at_rest:  # noqa: ASYNC110
            await asyncio.sleep(0)
        yield market


async def test_who_asks_while_it_rests_waits_for_prices_of_now(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = chain.add_pool(RAYDIUM)
    keys = RAYDIUM.keys(pool, chain.accounts[str(pool)].data)
    assert keys is not None
    async with _resting(chain, monkeypatch) as market:
        before = market.decide(ONE_SOL, 1, 50).route
        chain.slot += 100
        chain.set_amount(keys.vault_b, 50_000 * 10**6)
        requests = len(chain.node.requests)
        # Not told of the slot: nobody followed.
        await asyncio.gather(*(market.wake() for _ in range(5)))
        after = market.decide(ONE_SOL, 1, 50).route
        assert market.slot == chain.slot
        # One may have been under way: the last one for this test, which asked whether it is ready.
        assert len(chain.node.requests) <= requests + 2
    assert before is not None
    assert after is not None
    assert after.output_amount != before.output_amount


async def test_who_asks_while_it_rests_and_the_node_is_away_has_what_was_known(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.add_pool(RAYDIUM)
    async with _resting(chain, monkeypatch) as market:
        chain.node.http_status = 503
        await asyncio.gather(*(market.wake() for _ in range(5)))
        assert market.decide(ONE_SOL, 1, 50).route is not None


async def test_while_it_rests_prices_are_read_now_and_then(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.add_pool(RAYDIUM)
    monkeypatch.setattr("engine.market.market._ASKED_SECONDS", -1.0)
    monkeypatch.setattr("engine.market.market._REST_SECONDS", 0.01)
    async with _running(chain, follows=False) as market:
        chain.slot += 1
        while market.slot < chain.slot:
            chain.node.asked.clear()
            await chain.node.asked.wait()
            await asyncio.sleep(0)


async def test_a_token_that_is_forgotten_during_a_refresh_is_traded_once_it_is_learned_again(
    chain: Chain,
) -> None:
    mint = Pubkey.from_bytes(bytes([9] * 32))
    token = Token(str(mint), str(mint), 9)
    chain.add_pool(RAYDIUM, (_mint(SOL), mint))
    async with _running(chain) as market:
        spec = OrderSpec(Side.SELL, 10**9, SOL, token)
        await market.learn((token,))
        learned = market.decide(spec, 1, 50)
        assert learned.route is not None
        read_before = dict(market._accounts.data)

        chain.node.hold = asyncio.Event()
        chain.node.asked.clear()
        refreshing = asyncio.create_task(market._refresh_alone())
        await chain.node.asked.wait()
        market._discovery.forget([token.mint])
        chain.node.hold.set()
        await refreshing
        chain.node.hold = None
        assert len(market._accounts.data) < len(read_before)

        await market.learn((token,))
        assert market.decide(spec, 1, 50) == learned
        assert market._accounts.data == read_before


# ---- Swaps under way -----------------------------------------------------------------------------


def _outputs(decision: RoutingDecision) -> dict[str, int | None]:
    return {quote.pool: quote.output_amount for quote in decision.quotes}


async def test_a_swap_under_way_counts_as_done_until_it_is_in_what_was_read(chain: Chain) -> None:
    raydium, meteora = chain.add_pool(RAYDIUM), chain.add_pool(METEORA, fee_ppm=10_000)
    waits = replace(ONE_SOL, type=LimitOrder(Decimal(1)))
    bought = OrderSpec(Side.BUY, 10**9, USDC, SOL)
    async with _running(chain) as market:
        alone, bought_alone = market.decide(ONE_SOL, 1, 50), market.decide(bought, 1, 50)
        assert alone.route is not None
        assert [leg.pool for leg in alone.route.legs] == [str(raydium)]
        offers = market._pools.get(str(raydium)).offers
        assert offers is not None
        a_to_b = _mint(SOL) == market._pools.get(str(raydium)).keys.mint_a
        clock = Clock(market.slot, 0)
        after = offers[a_to_b].pool.swap_exact_in(a_to_b, 10**9, clock).pool

        market.under_way.add(ORDER_ID, ONE_SOL, alone.route)
        behind = market.decide(ONE_SOL, 1, 50)
        assert _outputs(behind) == {
            str(meteora): _outputs(alone)[str(meteora)],
            str(raydium): after.quote_exact_in(a_to_b, 10**9, clock).output_amount,
        }
        # The way back would be cheaper by it, and is not until it has landed.
        assert market.decide(bought, 1, 50).quotes == bought_alone.quotes
        # Who waits for a price waits for one that can be had.
        assert _outputs(market.decide(waits, 1, 50)) == _outputs(behind)

        # As long as it is not sent, nothing that is read has it.
        for _ in range(4):
            await _see_slot(market, chain)
            assert _outputs(market.decide(ONE_SOL, 1, 50)) == _outputs(behind)
        market.under_way.sent(ORDER_ID)
        await _see_slot(market, chain)
        assert _outputs(market.decide(ONE_SOL, 1, 50)) == _outputs(behind)
        await _see_slot(market, chain)
        assert _outputs(market.decide(ONE_SOL, 1, 50)) == _outputs(alone)


async def test_swaps_of_an_order_that_was_let_go_are_not_expected_any_more(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    async with _running(chain) as market:
        alone = market.decide(ONE_SOL, 1, 50)
        assert alone.route is not None
        market.under_way.add(ORDER_ID, ONE_SOL, alone.route)
        market.under_way.let_go(ORDER_ID)
        market.under_way.sent(ORDER_ID)
        await _see_slot(market, chain)
        assert market.decide(ONE_SOL, 1, 50).quotes == alone.quotes


async def test_orders_of_one_moment_share_the_pools(chain: Chain) -> None:
    pools = [chain.add_pool(venue, index=index) for venue in (RAYDIUM, METEORA) for index in range(2)]
    async with _running(chain, rules=RouteRules(max_legs=1)) as market:
        chosen: Counter[str] = Counter()
        for number in range(100):
            decision = market.decide(ONE_SOL, 1, 50)
            assert decision.route is not None
            chosen[decision.route.legs[0].pool] += 1
            market.under_way.add(UUID(int=number), ONE_SOL, decision.route)
        assert sorted(chosen.values()) == [25, 25, 25, 25]
        # Seen anew they are taken together, which comes to the same within rounding.
        one_by_one = _outputs(decision)
        await _see_slot(market, chain)
        together = _outputs(market.decide(ONE_SOL, 1, 50))
        for pool in map(str, pools):
            assert together[pool] == pytest.approx(one_by_one[pool], rel=0.002)


async def test_swaps_under_way_count_on_ways_through_a_middle_token_too(chain: Chain) -> None:
    first = chain.add_pool(RAYDIUM, (_mint(BONK), _mint(SOL)), (10**12 * 10**5, 200 * 10**9))
    second = chain.add_pool(METEORA)
    sold = OrderSpec(Side.SELL, 10**9 * 10**5, BONK, USDC)
    waits = replace(sold, type=LimitOrder(Decimal("1e-9")))

    def exactly(pool: Pubkey, token: Token, amount: int, taken: int) -> int:
        """Return what the pool gives for an amount of the token once it has taken that much of it before."""
        listing = market._pools.get(str(pool))
        a_to_b = _mint(token) == listing.keys.mint_a
        assert listing.offers is not None
        after = listing.offers[a_to_b].pool.swap_exact_in(a_to_b, taken, Clock(market.slot, 0)).pool
        return after.quote_exact_in(a_to_b, amount, Clock(market.slot, 0)).output_amount

    async with _running(chain, rules=RouteRules(max_legs=2, middle_tokens=(SOL,))) as market:
        alone = market.decide(sold, 1, 50).route
        directly = market.decide(ONE_SOL, 1, 50).route
        assert alone is not None
        assert directly is not None
        assert [leg.pool for leg in alone.legs] == [str(first), str(second)]

        # One that goes through the second hop's pool alone ...
        market.under_way.add(ORDER_ID, ONE_SOL, directly)
        behind = market.decide(sold, 1, 50).route
        assert behind is not None
        assert behind.legs[0] == alone.legs[0]
        passed_on = alone.legs[1].input_amount
        assert behind.legs[1].output_amount == exactly(second, SOL, passed_on, 10**9)
        # ... and one of the same way.
        market.under_way.add(UUID(int=2), sold, behind)
        last = market.decide(sold, 1, 50).route
        assert last is not None
        assert last.legs[0].output_amount == exactly(first, BONK, sold.amount, sold.amount)
        assert last.legs[1].output_amount < behind.legs[1].output_amount
        assert market.decide(waits, 1, 50).route == last

        for number in (1, 2):
            market.under_way.let_go(UUID(int=number))
        await _see_slot(market, chain)
        assert market.decide(sold, 1, 50).route == alone


async def test_a_swap_that_a_pool_would_refuse_changes_nothing(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    async with _running(chain) as market:
        alone = market.decide(ONE_SOL, 1, 50)
        assert alone.route is not None
        (leg,) = alone.route.legs
        market.under_way.add(
            ORDER_ID, ONE_SOL, replace(alone.route, legs=(replace(leg, input_amount=2**64),))
        )
        assert market.decide(ONE_SOL, 1, 50).quotes == alone.quotes


# ---- The wallet ----------------------------------------------------------------------------------


async def test_wallet_balance_is_what_can_be_spent(chain: Chain) -> None:
    chain.lamports[str(WALLET.pubkey)] = 5 * 10**9
    chain.add(
        associated_token_account(WALLET.pubkey, _mint(USDC)),
        NewAccount(TOKEN_PROGRAM, TOKEN_ACCOUNT.encode(TokenAccount(_mint(USDC), WALLET.pubkey, 42))),
    )
    async with _running(chain) as market:
        assert market.wallet_balance(SOL) == 5 * 10**9 - FEE_RESERVE
        assert market.wallet_balance(USDC) == 42
        assert market.wallet_balance(BONK) == 0
        chain.lamports[str(WALLET.pubkey)] = 1
        await _see_slot(market, chain)
        assert market.wallet_balance(SOL) == 0


# ---- What a route takes --------------------------------------------------------------------------


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("venue", [RAYDIUM, METEORA], ids=lambda venue: venue.kind)
async def test_routes_instructions_ask_the_program_for_what_was_quoted(
    chain: Chain, venue: Venue[Any], side: Side
) -> None:
    pool = chain.add_pool(venue)
    spec = OrderSpec(side, 10**9 if side is Side.SELL else 100 * 10**6, SOL, USDC)
    async with _running(chain) as market:
        route = market.decide(spec, 1, 50).route
        assert route is not None
        made = market.swap_instructions(spec, route, WALLET.pubkey)
        assert market.compute_units(route) == venue.compute_units
    (swap,) = (instruction for instruction in made if instruction.program_id == venue.program)
    accounts = {associated_token_account(WALLET.pubkey, mint): mint for mint in (_mint(SOL), _mint(USDC))}
    call = venue.read_swap([meta.pubkey for meta in swap.accounts], bytes(swap.data), accounts)
    assert (call.pool, call.side, call.amount) == (pool, side, spec.amount)
    assert call.threshold_amount == route.threshold_amount
    assert accounts[call.input_account] == _mint(SOL)
    keys = venue.keys(pool, chain.accounts[str(pool)].data)
    assert keys is not None
    assert call.a_to_b is (keys.mint_a == _mint(SOL))
    # Exactly what the swap may take is wrapped.
    wrapped = next(instruction for instruction in made if instruction.program_id == SYSTEM_PROGRAM)
    most = spec.amount if side is Side.SELL else route.threshold_amount
    assert int.from_bytes(bytes(wrapped.data)[4:], "little") == most


async def test_route_through_an_unknown_pool_cannot_be_built(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    async with _running(chain) as market:
        route = market.decide(ONE_SOL, 1, 50).route
        assert route is not None
    elsewhere = Market(NodeClient("http://127.0.0.1:1", "ws://127.0.0.1:1"), WALLET.pubkey)
    with pytest.raises(NoRoute, match="not traded any more"):
        elsewhere.swap_instructions(ONE_SOL, route, WALLET.pubkey)
    with pytest.raises(NoRoute, match="not traded any more"):
        elsewhere.compute_units(route)


def test_rules_of_routes_are_the_settings() -> None:
    settings = Settings(
        max_route_legs=2, leg_lamports=7, priority_fee_micro_lamports=9, middle_tokens="USDC, BONK"
    )
    assert RouteRules.of(settings) == RouteRules(2, 7, 9, (USDC, BONK))


async def test_legs_cost_what_the_rules_say_in_tokens_of_the_order(chain: Chain) -> None:
    # Of 1,000 SOL in each of two pools a hundred lose some per cent to the price's own movement; a second leg
    # would win half of that back, about 4 SOL.
    for index in (0, 1):
        chain.add_pool(RAYDIUM, index=index)
    for spec in (
        OrderSpec(Side.SELL, 100 * 10**9, SOL, USDC),
        OrderSpec(Side.SELL, 10_000 * 10**6, USDC, SOL),
        OrderSpec(Side.BUY, 9_000 * 10**6, SOL, USDC),
        OrderSpec(Side.BUY, 90 * 10**9, USDC, SOL),
    ):
        for sol, legs in ((1, 2), (10, 1)):
            async with _running(chain, rules=RouteRules(leg_lamports=sol * 10**9)) as market:
                route = market.decide(spec, 1, 50).route
                assert route is not None
                assert len(route.legs) == legs


@pytest.mark.parametrize("absurd", [(100, 2 * 10**11), (2 * 10**12, 100)], ids=["dear", "cheap"])
async def test_a_pool_that_takes_next_to_nothing_does_not_say_what_a_leg_costs(
    chain: Chain, absurd: tuple[int, int]
) -> None:
    for index in (0, 1):
        chain.add_pool(RAYDIUM, index=index)
    async with _running(chain) as market:
        price = market._lamport_price(USDC.mint)
        assert 0.099 < price < 0.101
        assert market._lamport_price(SOL.mint) == 1.0
    # The deepest of all at its own price.
    chain.add_pool(RAYDIUM, amounts=absurd, index=2)
    async with _running(chain) as market:
        assert abs(market._lamport_price(USDC.mint) / price - 1) < 0.01
        legs = market.decide(OrderSpec(Side.SELL, 100 * 10**9, SOL, USDC), 1, 50).route
        assert legs is not None
        assert len(legs.legs) >= 2


async def test_a_token_without_a_pool_with_sol_is_priced_by_way_of_another(chain: Chain) -> None:
    chain.add_pool(RAYDIUM)
    chain.add_pool(RAYDIUM, (_mint(USDC), _mint(BONK)), (10**11, 10**14))
    async with _running(chain) as market:
        assert 0.99 < market._lamport_price(BONK.mint) / (market._lamport_price(USDC.mint) * 1000) < 1.01
        assert market._lamport_price(str(Pubkey.default())) == 0.0


async def test_priority_fee_of_a_legs_computing_is_part_of_its_cost(chain: Chain) -> None:
    for index in (0, 1):
        chain.add_pool(RAYDIUM, index=index)
    spec = OrderSpec(Side.SELL, 100 * 10**9, SOL, USDC)
    fee_of_ten_sol = 10 * 10**9 * 10**6 // RAYDIUM.compute_units
    for fee, legs in ((0, 2), (fee_of_ten_sol, 1)):
        rules = RouteRules(leg_lamports=0, priority_fee_micro_lamports=fee)
        async with _running(chain, rules=rules) as market:
            route = market.decide(spec, 1, 50).route
            assert route is not None
            assert len(route.legs) == legs


async def test_market_without_a_wallet_shares_orders_out_as_well(chain: Chain) -> None:
    for index in (0, 1):
        chain.add_pool(RAYDIUM, index=index)
    async with NodeClient(chain.node.url, chain.node.ws_url) as client:
        market = Market(client)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(market.run())
            await market.wait_ready()
            route = market.decide(OrderSpec(Side.SELL, 100 * 10**9, SOL, USDC), 0, 50).route
            following.cancel()
    assert route is not None
    assert len(route.legs) == 2


# ---- What an error means -------------------------------------------------------------------------


def _signed(*instructions: Instruction) -> bytes:
    return build_swap(
        WALLET,
        instructions,
        Blockhash(BLOCKHASH, 1),
        UUID(int=1),
        1,
        compute_units=1,
        priority_fee_micro_lamports=1,
    ).raw_transaction


TRANSACTION = _signed(
    Instruction(Names(RAYDIUM.program, ()), b""),
    Instruction(Names(METEORA.program, ()), b""),
    Instruction(Names(SYSTEM_PROGRAM, ()), b""),
    memo("x", WALLET.pubkey),
)
ON_RAYDIUM, ON_METEORA, ON_SYSTEM, ON_MEMO = 2, 3, 4, 5


@pytest.mark.parametrize(
    ("err", "reason", "message"),
    [
        ({"InstructionError": [ON_RAYDIUM, {"Custom": 6005}]}, FailureReason.SLIPPAGE_EXCEEDED, "Raydium"),
        ({"InstructionError": [ON_METEORA, {"Custom": 6002}]}, FailureReason.SLIPPAGE_EXCEEDED, "Meteora"),
        ({"InstructionError": [ON_METEORA, {"Custom": 6005}]}, FailureReason.VENUE_REJECTED, "6005"),
        ({"InstructionError": [ON_RAYDIUM, {"Custom": 6002}]}, FailureReason.VENUE_REJECTED, "6002"),
        ({"InstructionError": [ON_RAYDIUM, {"Custom": 1}]}, FailureReason.INSUFFICIENT_FUNDS, "too little"),
        ({"InstructionError": [ON_SYSTEM, {"Custom": 1}]}, FailureReason.INSUFFICIENT_FUNDS, "too little"),
        ({"InstructionError": [ON_MEMO, {"Custom": 1}]}, FailureReason.TRANSACTION_REVERTED, "instruction 5"),
        (
            {"InstructionError": [ON_RAYDIUM, "ProgramFailedToComplete"]},
            FailureReason.TRANSACTION_REVERTED,
            "ProgramFailedToComplete",
        ),
        ({"InstructionError": [99, {"Custom": 1}]}, FailureReason.TRANSACTION_REVERTED, "instruction 99"),
        (
            {"InsufficientFundsForRent": {"account_index": 1}},
            FailureReason.INSUFFICIENT_FUNDS,
            "SOL",
        ),
        ({"DuplicateInstruction": 3}, FailureReason.TRANSACTION_REVERTED, "DuplicateInstruction"),
    ],
    ids=str,
)
def test_chain_error_is_explained_by_the_program_that_raised_it(
    err: Any, reason: FailureReason, message: str
) -> None:
    explained = explain_error(err, TRANSACTION)
    assert explained[0] is reason
    assert message in explained[1]
