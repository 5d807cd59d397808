"""Genesis and market: the same seed makes the same world, and prices stay near one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.domain.pools.meteora_damm_v2 import CollectFeeMode
from engine.domain.pools.pool import Clock
from engine.domain.tokens import SOL, USDC
from engine.solana.instructions import transfer_lamports
from engine.venues import VENUES
from engine.venues.meteora_damm_v2 import POOL
from simnet.accounts import rent_exempt_minimum
from simnet.bank import View
from simnet.chain import FIRST_SLOT
from simnet.genesis import make_genesis
from simnet.market import Market
from tests.simnet_wallets import NOON, SigningWallet, open_chain


def pools_after(seed: int, slots: int) -> dict[bytes, bytes]:
    """Return every account's bytes after so many slots of the market alone."""
    genesis = make_genesis(seed)
    market, view = Market(genesis, seed, 2, FIRST_SLOT), View(genesis.accounts)
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 1 + slots):
        market.move(view, slot, Clock(slot, NOON))
    return {address: account.data for address, account in {**genesis.accounts, **view.changed}.items()}


def test_the_same_seed_makes_the_same_genesis() -> None:
    one, other = make_genesis(7), make_genesis(7)
    assert one.accounts == other.accounts
    assert [pool.name for pool in one.pools] == [pool.name for pool in other.pools]
    assert make_genesis(8).accounts != one.accounts


def test_the_same_seed_and_slot_make_the_same_prices() -> None:
    assert pools_after(3, 300) == pools_after(3, 300)
    assert pools_after(3, 300) != pools_after(4, 300)
    assert pools_after(3, 300) != pools_after(3, 301)


def test_the_worlds_price_is_a_function_of_seed_and_slot_alone() -> None:
    genesis = make_genesis(5)
    walked = Market(genesis, 5, 1, FIRST_SLOT)
    pool = genesis.pools[0]
    prices = [walked.world_price(pool, FIRST_SLOT + step) for step in range(2000)]
    jumped = Market(genesis, 5, 1, FIRST_SLOT)
    for step in (1999, 3, 700):
        assert jumped.world_price(pool, FIRST_SLOT + step) == prices[step]


def test_every_venue_trades_the_main_pairs_and_every_pair_is_traded_on_two_at_least() -> None:
    genesis = make_genesis(1)
    kinds: dict[tuple[str, str], set[str]] = {}
    for pool in genesis.pools:
        kinds.setdefault((pool.base.symbol, pool.quote.symbol), set()).add(pool.venue.kind)
    for main_pair in (("SOL", "USDC"), ("SOL", "BONK"), ("USDT", "USDC")):
        assert kinds[main_pair] == {venue.kind for venue in VENUES}
        modes = {
            POOL.decode(genesis.accounts[bytes(pool.keys.pool)].data).collect_fee_mode
            for pool in genesis.pools
            if pool.venue.kind == "meteora_damm_v2" and (pool.base.symbol, pool.quote.symbol) == main_pair
        }
        assert modes == {CollectFeeMode.COMPOUNDING, CollectFeeMode.OUTPUT}
    assert all(len(traded_on) >= 2 for traded_on in kinds.values())
    assert len({pool.keys.pool for pool in genesis.pools}) == len(genesis.pools)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prices_begin_at_105_move_with_every_slot_and_stay_near_one_another(seed: int) -> None:
    genesis = make_genesis(seed)
    market, view = Market(genesis, seed, 1, FIRST_SLOT), View(genesis.accounts)
    pools = [pool for pool in genesis.pools if (pool.base, pool.quote) == (SOL, USDC)]
    first = [market.price(view, pool) * 1000 for pool in pools]
    assert all(105 < price < 106 for price in first)
    changes = 0
    for slot in range(FIRST_SLOT + 1, FIRST_SLOT + 1001):
        before = dict(view.changed)
        market.move(view, slot, Clock(slot, NOON))
        changes += view.changed != before
        prices = [market.price(view, pool) for pool in pools]
        assert max(prices) / min(prices) < 1.01
    # All but the slots whose turn it is for pools in bins, which move when the price leaves one.
    assert changes > 800
    last = [market.price(view, pool) * 1000 for pool in pools]
    assert last != first
    assert all(95 < price < 116 for price in last)


async def test_lamports_where_a_pool_has_no_account_change_nothing_for_it(tmp_path: Path) -> None:
    async with open_chain(tmp_path, market_pools=2) as net:
        alice = SigningWallet(1)
        await net.fund(alice, SOL, 10**13)
        absent = {
            key
            for pool in net.pools
            for key in pool.venue.quote_accounts(pool.keys, net.accounts_of(pool))
            if bytes(key) not in net.chain.accounts
        }
        assert absent
        for key in absent:
            sent = alice.sign([transfer_lamports(alice.pubkey, key, 10**6)], net.blockhash)
            assert await net.land(sent) is None
        before = net.rpc.simnet_pools([])
        for _ in range(30):
            net.chain.advance()
        assert net.rpc.simnet_pools([]) != before


async def test_a_wallet_is_funded_where_its_token_account_was_sent_lamports_before(tmp_path: Path) -> None:
    async with open_chain(tmp_path) as net:
        alice, reserve = SigningWallet(1), rent_exempt_minimum(165)
        await net.fund(alice, SOL, 10**13)
        for number, lamports in enumerate((10**6, 10**7), 2):
            bob = SigningWallet(number)
            for token in (USDC, SOL):
                account = bob.token_account(token)
                sent = alice.sign([transfer_lamports(alice.pubkey, account, lamports)], net.blockhash)
                assert await net.land(sent) is None
                net.rpc.simnet_fund([{"wallet": str(bob.pubkey), "mint": token.mint, "amount": 5}])
                # Of wrapped SOL, what is beyond the reserve is balance.
                wrapped = max(0, lamports - reserve) if token is SOL else 0
                assert net.tokens(account) == 5 + wrapped
                assert net.lamports(account) == max(lamports, reserve) + (5 if token is SOL else 0)


async def test_a_pool_that_is_pushed_comes_back_unless_it_is_held(tmp_path: Path) -> None:
    async with open_chain(tmp_path, market_pools=2) as net:
        pool = net.pools[0]

        def price() -> float:
            return net.chain.market.price(View(net.chain.accounts), pool)

        before = price()
        net.rpc.simnet_move_price([{"pool": pool.name, "bps": 500, "hold": True}])
        pushed = price()
        assert pushed / before == pytest.approx(1.05, abs=0.001)
        for _ in range(30):
            net.chain.advance()
        assert price() == pushed
        net.rpc.simnet_move_price([{"pool": pool.name, "hold": False}])
        for _ in range(30):
            net.chain.advance()
        assert price() / before == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("kind", [venue.kind for venue in VENUES])
@pytest.mark.parametrize("bps", [-700, -30, 45, 600])
async def test_a_pool_of_any_kind_is_pushed_to_a_price(tmp_path: Path, kind: str, bps: int) -> None:
    async with open_chain(tmp_path) as net:
        pool = net.pool(kind, SOL, USDC)

        def price() -> float:
            return net.chain.market.price(View(net.chain.accounts), pool)

        before = price()
        net.rpc.simnet_move_price([{"pool": pool.name, "bps": bps}])
        factor = 1 + bps / 10_000
        # A pool in bins comes to the bin that the price is in: these are 20 basis points wide.
        assert price() / before == pytest.approx(factor if pool.a_is_base else 1 / factor, abs=0.0025)
