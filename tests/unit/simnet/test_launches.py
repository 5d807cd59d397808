"""Launches: a pure function of seed and index, done in their slots and done again after a kill."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Clock
from engine.domain.tokens import SOL, USDC, Token
from engine.solana.accounts import MINT
from engine.solana.instructions import transfer_lamports
from engine.solana.programs import CLOCK_SYSVAR
from simnet import launches
from simnet.accounts import rent_exempt_minimum
from simnet.bank import View
from simnet.chain import FIRST_SLOT
from simnet.genesis import GenesisPool, make_genesis
from simnet.launches import Launch, pool_of, scheduled_launch
from simnet.liquidity import KINDS, LiquidityError, quote_reserve, set_liquidity
from tests.simnet_wallets import OpenChain, SigningWallet, open_chain, supply_held

ALICE = SigningWallet(1)
SLOTS = 40
"""From one launch to the next."""


def launch(index: int, seed: int = 1) -> Launch:
    return scheduled_launch(seed, index, SLOTS, FIRST_SLOT)


def advance_to(net: OpenChain, slot: int) -> None:
    while net.chain.slot < slot:
        net.chain.advance()


def reserve(net: OpenChain, pool: GenesisPool) -> int:
    return quote_reserve(View(net.chain.accounts), pool)


def price(net: OpenChain, pool: GenesisPool) -> float:
    return net.chain.market.price(View(net.chain.accounts), pool)


def supply(net: OpenChain, token: Token) -> int:
    return MINT.decode(net.chain.accounts[bytes(Pubkey.from_string(token.mint))].data).supply


# ---- The schedule


def test_a_launch_follows_from_seed_and_index_alone() -> None:
    late = [launch(index) for index in (50, 3, 7)]
    assert late == [launch(index) for index in (50, 3, 7)]
    assert len({launch(index, seed).mint for index in range(100) for seed in (1, 2)}) == 200
    assert len({pool_of(launch(index)).keys.pool for index in range(20)}) == 20


def test_launches_are_of_every_kind_and_size_that_is_promised() -> None:
    launches = [launch(index) for index in range(36)]
    assert {each.kind for each in launches} == set(KINDS) == {
        "raydium_cpmm",
        "raydium_amm_v4",
        "meteora_damm_v2",
    }  # fmt: skip
    assert {(each.kind, each.decimals) for each in launches} == {
        (kind, decimals) for kind in KINDS for decimals in (5, 6, 9)
    }
    assert [each.quote for each in launches[:4]] == [SOL, SOL, SOL, USDC]
    for each in launches:
        least, most = (5 * 10**9, 40 * 10**9) if each.quote == SOL else (527 * 10**6, 4220 * 10**6)
        assert least <= each.quote_amount <= most
        assert [slot - each.slot for slot, _ in each.growth] == [4, 12]
        assert [amount // each.quote_amount for _, amount in each.growth] == [3, 10]


@pytest.mark.parametrize("launch_slots", [1, 2, 3, 10, 300])
def test_a_pool_grows_in_slots_of_their_own_however_close_launches_are(launch_slots: int) -> None:
    each = scheduled_launch(1, 4, launch_slots, FIRST_SLOT)
    slots = [each.slot, *(slot for slot, _ in each.growth)]
    assert slots == sorted(set(slots))


# ---- On the chain


async def test_a_mint_is_there_a_launch_before_its_pool(tmp_path: Path) -> None:
    async with open_chain(tmp_path, launch_slots=SLOTS) as net:
        for index in range(4):
            each = launch(index)
            pool = bytes(pool_of(each).keys.pool)
            mint = MINT.decode(net.chain.accounts[each.mint].data)
            assert (mint.decimals, mint.supply) == (each.decimals, 0)
            assert launch(index + 1).mint not in net.chain.accounts
            advance_to(net, each.slot - 1)
            assert pool not in net.chain.accounts
            assert net.chain.market.find(pool) is None
            net.chain.advance()
            assert net.chain.market.find(pool) is not None
            assert supply(net, each.base) == each.base_amount


async def test_liquidity_grows_at_the_same_price_and_supplies_are_what_is_held(tmp_path: Path) -> None:
    async with open_chain(tmp_path, launch_slots=SLOTS, market_pools=2) as net:
        for index in range(4):
            each = launch(index)
            pool = pool_of(each)
            advance_to(net, each.slot)
            assert reserve(net, pool) == each.quote_amount
            opening = price(net, pool)
            for slot, quote_amount in each.growth:
                advance_to(net, slot - 1)
                assert reserve(net, pool) < quote_amount
                net.chain.advance()
                assert reserve(net, pool) == quote_amount
                assert price(net, pool) == pytest.approx(opening, rel=1e-9)
            for token in (each.base, each.quote):
                assert supply(net, token) == supply_held(net.chain.accounts, token)


@pytest.mark.parametrize("index", range(4))
async def test_lamports_where_a_launch_will_have_its_accounts_do_not_keep_it_from_opening(
    tmp_path: Path, index: int
) -> None:
    each = launch(index)
    keys = pool_of(each).keys
    async with open_chain(tmp_path / "undisturbed", launch_slots=SLOTS) as net:
        advance_to(net, each.growth[-1][0])
        expected = net.chain.accounts
    async with open_chain(tmp_path / "one", launch_slots=SLOTS) as net:
        await net.fund(ALICE, SOL, 10**13)
        # Its own mint may be there by now; that of the next one is not.
        for key in (Pubkey.from_bytes(launch(index + 1).mint), keys.pool, keys.vault_a, keys.vault_b):
            sent = ALICE.sign([transfer_lamports(ALICE.pubkey, key, 10**6)], net.blockhash)
            assert await net.land(sent) is None
    async with open_chain(tmp_path / "one", launch_slots=SLOTS) as net:
        assert net.chain.market.find(bytes(keys.pool)) is None
        assert not [told for told in net.rpc._methods["simnet_launches"]([]) if told["open"]]
        advance_to(net, each.growth[-1][0])
        for account in map(bytes, (keys.pool, keys.vault_a, keys.vault_b)):
            assert net.chain.accounts[account] == expected[account]
        for mint in (each.mint, launch(index + 1).mint):
            assert net.chain.accounts[mint] == expected[mint]


async def test_lamports_beyond_its_reserve_stay_in_an_account_that_is_made(tmp_path: Path) -> None:
    each = launch(0)
    keys = pool_of(each).keys
    async with open_chain(tmp_path, launch_slots=SLOTS) as net:
        await net.fund(ALICE, SOL, 10**13)
        for key in (keys.pool, keys.vault_a, keys.vault_b):
            sent = ALICE.sign([transfer_lamports(ALICE.pubkey, key, 10**9)], net.blockhash)
            assert await net.land(sent) is None
        advance_to(net, each.slot)
        base_vault, quote_vault = (
            (keys.vault_a, keys.vault_b) if pool_of(each).a_is_base else (keys.vault_b, keys.vault_a)
        )
        assert net.lamports(keys.pool) == net.lamports(base_vault) == 10**9
        assert net.tokens(base_vault) == each.base_amount
        # Wrapped SOL: beyond the reserve it is balance, as in any account that is made.
        assert net.lamports(quote_vault) == 10**9 + each.quote_amount
        assert net.tokens(quote_vault) == 10**9 + each.quote_amount - rent_exempt_minimum(165)


async def test_a_pool_with_more_in_it_than_it_would_grow_to_stays_as_it_is(tmp_path: Path) -> None:
    async with open_chain(tmp_path, launch_slots=SLOTS) as net:
        each = launch(0)
        advance_to(net, each.slot)
        much = 20 * each.quote_amount
        net.chain.change(lambda view, _: set_liquidity(view, pool_of(each), much))
        advance_to(net, each.growth[-1][0])
        assert reserve(net, pool_of(each)) == much


async def test_no_launches_are_no_accounts(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        advance_to(net, FIRST_SLOT + 3)
        assert net.chain.accounts.keys() - make_genesis(1).accounts.keys() == {bytes(CLOCK_SYSVAR)}
        assert net.chain.launches.listed(net.chain.slot, 10) == []


@pytest.mark.parametrize("index", range(3), ids=lambda index: launch(index).kind)
async def test_what_a_launched_pool_quotes_is_what_a_swap_does(tmp_path: Path, index: int) -> None:
    async with open_chain(tmp_path, launch_slots=SLOTS) as net:
        each = launch(index)
        pool = pool_of(each)
        base, quote = each.base, each.quote
        await net.fund(ALICE, SOL, 10**13)
        advance_to(net, each.slot - 1)
        for a_to_b, side, amount in (
            (not pool.a_is_base, Side.SELL, each.quote_amount // 7),
            (pool.a_is_base, Side.SELL, each.base_amount // 100),
            (not pool.a_is_base, Side.BUY, each.base_amount // 50),
        ):
            paid, received = (base, quote) if a_to_b is pool.a_is_base else (quote, base)
            # The first lands in the very slot that the pool opens in.
            opened = bytes(pool.keys.pool) in net.chain.accounts
            if opened:
                state = pool.venue.pool(pool.keys, net.accounts_of(pool))
                swap_of = state.swap_exact_in if side is Side.SELL else state.swap_exact_out
                quoted = swap_of(a_to_b, amount, Clock(net.chain.slot + 1, net.chain.block_time))
                threshold = quoted.output_amount if side is Side.SELL else quoted.input_amount
            else:
                threshold = 1
            swap = ALICE.swap(pool, paid, received, side, amount, threshold)
            held = net.tokens(ALICE.token_account(base))
            assert await net.land(ALICE.sign(swap, net.blockhash)) is None
            if opened:
                change = quoted.output_amount if received == base else -quoted.input_amount
                assert net.tokens(ALICE.token_account(base)) - held == change
                assert pool.venue.pool(pool.keys, net.accounts_of(pool)) == quoted.pool


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("bps", [-500, 2500])
async def test_the_price_of_a_launched_token_is_moved_like_any(tmp_path: Path, index: int, bps: int) -> None:
    async with open_chain(tmp_path, launch_slots=SLOTS) as net:
        each = launch(index)
        pool = pool_of(each)
        advance_to(net, each.slot)
        before = price(net, pool)
        net.rpc.simnet_move_price([{"pool": pool.name, "bps": bps}])
        factor = 1 + bps / 10_000
        assert price(net, pool) / before == pytest.approx(factor if pool.a_is_base else 1 / factor, abs=1e-3)
        for token in (each.base, each.quote):
            assert supply(net, token) == supply_held(net.chain.accounts, token)


async def test_a_request_takes_no_longer_where_many_wait(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        for index in range(1, 301):
            waiting = msgspec.structs.replace(
                launch(0), index=index, requested=True, mint=index.to_bytes(32, "big"), slot=FIRST_SLOT + 5
            )
            net.chain.launch(waiting)
        assert len(net.chain.launches.waiting_pools) == 300
        made = launches._parts.cache_info().misses
        net.rpc._methods["simnet_launch"]([{"quoteAmount": 10**10, "slots": 5}])
        assert launches._parts.cache_info().misses - made <= 2
        advance_to(net, FIRST_SLOT + 5)
        assert len(net.chain.market.pools) == len(net.pools) + 301
        assert net.chain.launches.waiting_pools == set()


# ---- Liquidity


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [1, 99, 100, 350])
async def test_liquidity_is_set_at_the_present_price(tmp_path: Path, kind: str, percent: int) -> None:
    async with open_chain(tmp_path) as net:
        pool = net.pool(kind, SOL, USDC)
        net.rpc.simnet_move_price([{"pool": pool.name, "bps": 150}])
        before = price(net, pool)
        wanted = reserve(net, pool) * percent // 100
        net.chain.change(lambda view, _: set_liquidity(view, pool, wanted))
        assert reserve(net, pool) == wanted
        assert price(net, pool) == pytest.approx(before, rel=1e-8)
        for token in (SOL, USDC):
            assert supply(net, token) == supply_held(net.chain.accounts, token)
        # It still swaps, both ways.
        for token in (SOL, USDC):
            await net.fund(ALICE, token, 10**13)
        for paid, received in ((SOL, USDC), (USDC, SOL)):
            swap = ALICE.swap(pool, paid, received, Side.SELL, 10**6, 1)
            assert await net.land(ALICE.sign(swap, net.blockhash)) is None


async def test_liquidity_that_cannot_be_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        view = View(net.chain.accounts)
        for kind in ("raydium_clmm", "meteora_dlmm"):
            with pytest.raises(LiquidityError, match=kind):
                set_liquidity(view, net.pool(kind, SOL, USDC), 10**9)
        ranged = [
            pool
            for pool in net.pools
            if pool.venue.kind == "meteora_damm_v2" and (pool.base, pool.quote) == (SOL, USDC)
        ][-1]
        with pytest.raises(LiquidityError, match="price range"):
            set_liquidity(view, ranged, 10**9)
        for amount in (0, 10**19):
            with pytest.raises(LiquidityError):
                set_liquidity(view, net.pool("raydium_cpmm", SOL, USDC), amount)
        assert view.changed == {}


# ---- Going on after an end


async def test_launches_lost_with_the_process_come_back_just_the_same(tmp_path: Path) -> None:
    async with open_chain(tmp_path, launch_slots=3, slot_seconds=0.01) as net:
        # Fewer slots than go on record together: the ledger has seen none of them.
        advance_to(net, FIRST_SLOT + 7)
        lost, slot = dict(net.chain.accounts), net.chain.slot
        pools = [pool.name for pool in net.chain.market.pools]
    async with open_chain(tmp_path, launch_slots=3, slot_seconds=0.01) as again:
        kept = again.chain.accounts_at(slot)
        assert {key: kept.get(key) for key in lost} == lost
        assert [pool.name for pool in again.chain.market.pools][: len(pools)] == pools


async def test_launches_on_record_and_requests_that_wait_are_taken_up_again(tmp_path: Path) -> None:
    async with open_chain(tmp_path, launch_slots=SLOTS) as net:
        advance_to(net, FIRST_SLOT + 2 * SLOTS)
        template = launch(0)
        for index, (mint, wait) in enumerate(((b"a" * 32, 0), (b"b" * 32, 30)), 1):
            net.chain.launch(
                msgspec.structs.replace(
                    template, index=index, requested=True, mint=mint, tier=1, slot=net.chain.slot + wait
                )
            )
        pools, due = [pool.name for pool in net.chain.market.pools], net.chain.slot + 30
    async with open_chain(tmp_path, launch_slots=SLOTS) as again:
        assert sorted(pool.name for pool in again.chain.market.pools) == sorted(pools)
        first, second = again.chain.launches.requested
        assert (first.mint, second.mint) == (b"a" * 32, b"b" * 32)
        advance_to(again, due - 1)
        assert again.chain.market.find(bytes(pool_of(second).keys.pool)) is None
        again.chain.advance()
        assert again.chain.market.find(bytes(pool_of(second).keys.pool)) is not None
    async with open_chain(tmp_path) as other:
        # With another schedule, what was opened stays.
        names = {pool.name for pool in other.chain.market.pools}
        assert {*pools, pool_of(second).name} <= names
