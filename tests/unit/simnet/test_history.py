"""The history of prices: the best single pool at the end of each slot, for as many slots as is set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Clock, SwapError
from engine.domain.tokens import SOL, USDC
from simnet.bank import View
from simnet.chain import FIRST_SLOT, Chain
from simnet.genesis import GenesisPool
from simnet.history import Best, History
from simnet.launches import pool_of, scheduled_launch
from simnet.market import read_pool
from tests.simnet_wallets import NOON, OpenChain, SigningWallet, open_chain

ALICE = SigningWallet(1)
SOL_MINT, USDC_MINT = (Pubkey.from_string(token.mint) for token in (SOL, USDC))


def best_now(chain: Chain, input_mint: Pubkey, output_mint: Pubkey, side: Side, amount: int) -> Best:
    """Look at every pool as it is now."""
    found: list[tuple[int, GenesisPool, int, int]] = []
    for pool in chain.market.pools:
        if {pool.keys.mint_a, pool.keys.mint_b} != {input_mint, output_mint}:
            continue
        state, _ = read_pool(chain.accounts, pool)
        a_to_b, clock = pool.keys.mint_a == input_mint, Clock(chain.slot, chain.block_time)
        try:
            if side is Side.SELL:
                swap = state.swap_exact_in(a_to_b, amount, clock)
                found.append((swap.output_amount, pool, swap.input_amount, swap.output_amount))
            else:
                swap = state.swap_exact_out(a_to_b, amount, clock)
                found.append((-swap.input_amount, pool, swap.input_amount, swap.output_amount))
        except SwapError:
            pass
    if not found:
        return Best(chain.slot, None, 0, 0)
    _, pool, input_amount, output_amount = max(found, key=lambda each: each[0])
    return Best(chain.slot, pool, input_amount, output_amount)


def pair_of(chain: Chain, *mints: Pubkey) -> dict[bytes, Any]:
    """Return everything that pools of a pair consist of, as it is now."""
    return {
        bytes(key): chain.accounts[bytes(key)]
        for pool in chain.market.pools
        if {pool.keys.mint_a, pool.keys.mint_b} == set(mints)
        for key in (pool.keys.pool, pool.keys.vault_a, pool.keys.vault_b)
    }


@pytest.mark.parametrize(
    ("side", "amount"), [(Side.SELL, 3 * 10**9), (Side.SELL, 4000 * 10**9), (Side.BUY, 25 * 10**6)]
)
async def test_history_tells_what_could_be_seen_in_each_slot_that_changed_a_pool(
    tmp_path: Path, side: Side, amount: int
) -> None:
    async with open_chain(tmp_path, market_pools=1) as net:
        await net.fund(ALICE, SOL, 10**13)
        history = History(net.chain, 1000)
        asked = (SOL_MINT, USDC_MINT, side, amount)
        seen = [best_now(net.chain, *asked)]
        for step in range(120):
            before = pair_of(net.chain, SOL_MINT, USDC_MINT)
            if step % 7 == 3:
                swap = ALICE.swap(net.pools[step % 4], SOL, USDC, Side.SELL, 10**10, 1)
                await net.land(ALICE.sign(swap, net.blockhash))
            else:
                net.chain.advance()
            if step % 10 == 5:
                # Between two slots, it belongs to the one that is shown.
                net.rpc.simnet_move_price([{"pool": net.pools[step % 3].name, "bps": step - 60}])
            if pair_of(net.chain, SOL_MINT, USDC_MINT) != before:
                seen.append(best_now(net.chain, *asked))
        assert 30 < len(seen) < 110
        assert history.best(*asked, 0, 1000) == seen
        assert len({best[2:] for best in seen}) > 10
        # A page after another.
        after = seen[20].slot
        assert history.best(*asked, after, 5) == seen[21:26]


async def test_what_no_pool_can_fill_is_told_as_none(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        history = History(net.chain, 10)
        nothing = [Best(net.chain.slot, None, 0, 0)]
        assert history.best(SOL_MINT, USDC_MINT, Side.BUY, 10**18, 0, 10) == nothing
        assert history.best(SOL_MINT, ALICE.pubkey, Side.BUY, 1, 0, 10) == nothing


async def test_a_launched_token_has_a_history_from_its_opening_on(tmp_path: Path) -> None:
    async with open_chain(tmp_path, launch_slots=20) as net:
        history = History(net.chain, 100)
        launch = scheduled_launch(1, 0, 20, FIRST_SLOT)
        asked = (SOL_MINT, Pubkey.from_bytes(launch.mint), Side.SELL, 10**9)
        for _ in range(30):
            net.chain.advance()
        told = history.best(*asked, 0, 100)
        # Nothing at first, then the opening and both times that it grows.
        assert [(best.slot, best.pool and best.pool.name) for best in told] == [
            (FIRST_SLOT, None),
            *((slot, pool_of(launch).name) for slot in (launch.slot, launch.slot + 2, launch.slot + 6)),
        ]
        outputs = [best.output_amount for best in told]
        assert outputs == sorted(set(outputs))


async def test_no_more_slots_are_remembered_than_is_set(tmp_path: Path) -> None:
    async with open_chain(tmp_path, market_pools=3) as net:
        history = History(net.chain, 20)
        asked = (SOL_MINT, USDC_MINT, Side.SELL, 10**9)
        seen = {net.chain.slot: best_now(net.chain, *asked)}
        for _ in range(90):
            net.chain.advance()
            seen[net.chain.slot] = best_now(net.chain, *asked)
        told = history.best(*asked, 0, 1000)
        assert told[0].slot == history.first_slot == net.chain.slot - 20
        # All of them are right, the oldest too, whose pools may have changed long before it.
        assert told == [seen[best.slot] for best in told]
        assert all(len(known.states) <= 22 for known in history._by_account.values())


async def test_each_slot_is_looked_at_with_its_own_clock(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        history = History(net.chain, 100)
        ranged = next(pool for pool in net.pools if pool.fee_ppm == 500 and "v2" in pool.venue.kind)
        times = iter((NOON + 1, NOON + 5, NOON + 500, NOON + 501))
        net.chain._unix_seconds = lambda: next(times)
        mints = (ranged.keys.mint_a, ranged.keys.mint_b)
        seen = [best_now(net.chain, *mints, Side.SELL, 10**9)]
        for _ in range(4):
            net.chain.advance()
            # Its fee depends on how much the price has moved of late.
            net.chain.change(lambda view, clock: _push_all(net, mints, view, clock))
            seen.append(best_now(net.chain, *mints, Side.SELL, 10**9))
        assert history.best(*mints, Side.SELL, 10**9, 0, 10) == seen


def _push_all(net: OpenChain, mints: tuple[Pubkey, Pubkey], view: View, clock: Clock) -> None:
    for pool in net.pools:
        if {pool.keys.mint_a, pool.keys.mint_b} == set(mints):
            net.chain.market.push(view, pool, 300, clock)
