"""What the engine quotes from a pool's accounts is what simnet executes, to the last unit, for every pool."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from engine.domain.order import Side
from engine.domain.pools.pool import Clock, Swap, SwapError
from engine.domain.tokens import SOL, Token
from simnet.genesis import GenesisPool, make_genesis
from tests.simnet_wallets import OpenChain, SigningWallet, open_chain

ALICE = SigningWallet(1)
POOLS = [
    pytest.param(place, id=f"{pool.venue.kind}-{pool.base.symbol}-{pool.quote.symbol}-{pool.fee_ppm}")
    for place, pool in enumerate(make_genesis(1).pools)
]
RICH = 10**16
SWAPS = 24


def _quote(net: OpenChain, pool: GenesisPool, a_to_b: bool, side: Side, amount: int) -> Swap | int:
    """Return the swap, or the custom error it would end with."""
    state = pool.venue.pool(pool.keys, net.accounts_of(pool))
    swap_of = state.swap_exact_in if side is Side.SELL else state.swap_exact_out
    try:
        return swap_of(a_to_b, amount, Clock(net.chain.slot + 1, net.chain.block_time))
    except SwapError as error:
        return pool.venue.error_code(error.reason)


def _held(net: OpenChain, token: Token) -> int:
    return net.lamports(ALICE.pubkey) if token == SOL else net.tokens(ALICE.token_account(token))


@pytest.mark.parametrize("place", POOLS)
async def test_swaps_of_any_size_give_what_was_quoted(tmp_path: Path, place: int) -> None:
    random = Random(place)
    async with open_chain(tmp_path) as net:
        pool = net.pools[place]
        for token in {SOL, pool.base, pool.quote}:
            await net.fund(ALICE, token, RICH)
        done = 0
        for _ in range(SWAPS):
            if random.random() < 0.25:
                net.rpc.simnet_move_price([{"pool": pool.name, "bps": random.randint(-300, 300)}])
            a_to_b, side = random.random() < 0.5, random.choice(list(Side))
            paid, received = (pool.base, pool.quote) if a_to_b is pool.a_is_base else (pool.quote, pool.base)
            vault = pool.keys.vault_a if a_to_b is (side is Side.SELL) else pool.keys.vault_b
            # From a few units to a third of what the pool holds, every order of magnitude as often.
            amount = max(1, int(net.tokens(vault) / 3 * 10 ** -random.uniform(0, 9)))
            quoted = _quote(net, pool, a_to_b, side, amount)
            had = {token: _held(net, token) for token in (SOL, paid, received)}
            threshold = 10**9
            if isinstance(quoted, Swap):
                # To the unit: one worse and it would be refused.
                threshold = quoted.output_amount if side is Side.SELL else quoted.input_amount
            swap = ALICE.swap(pool, paid, received, side, amount, threshold, net.accounts_of(pool))
            error = await net.land(ALICE.sign(swap, net.blockhash))
            if isinstance(quoted, int):
                ((_, reverted),) = error.items()
                assert reverted[1] == {"Custom": quoted}
                continue
            assert error is None, (a_to_b, side, amount)
            done += 1
            for token, change in ((paid, -quoted.input_amount), (received, quoted.output_amount)):
                fee = 5000 if token == SOL else 0
                assert _held(net, token) - had[token] == change - fee, (a_to_b, side, amount)
            assert pool.venue.pool(pool.keys, net.accounts_of(pool)) == quoted.pool
        assert done > SWAPS // 2
