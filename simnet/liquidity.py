"""How much a pool holds, changed at its present price: both sides by one factor, from nowhere or to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from engine.domain.pools.meteora_damm_v2 import CollectFeeMode, MeteoraDammV2Pool
from engine.domain.pools.pool import U64_MAX, Pool
from engine.venues import meteora_damm_v2
from simnet.accounts import Account, token_balance, with_token_change
from simnet.bank import View
from simnet.genesis import GenesisPool
from simnet.market import read_pool
from simnet.supply import SupplyError, change_supply


class LiquidityError(ValueError):
    """This pool cannot hold so much; the message says why."""


def _keep(_state: Pool, data: bytes, _amount_a: int, _amount_b: int) -> bytes:
    """Its reserves are what its vaults hold, less fees that it keeps count of."""
    return data


def _meteora_damm_v2(state: Pool, data: bytes, amount_a: int, amount_b: int) -> bytes:
    assert isinstance(state, MeteoraDammV2Pool)
    if state.collect_fee_mode is not CollectFeeMode.COMPOUNDING:
        raise LiquidityError("the liquidity of a pool with a price range cannot be changed here")
    return meteora_damm_v2.POOL.patch(
        data,
        token_a_amount=amount_a,
        token_b_amount=amount_b,
        liquidity=state.liquidity * amount_b // state.token_b_amount,
    )


_PATCHES: Final[Mapping[str, Callable[[Pool, bytes, int, int], bytes]]] = {
    "raydium_cpmm": _keep,
    "raydium_amm_v4": _keep,
    "meteora_damm_v2": _meteora_damm_v2,
}
"""How a pool account says that there are other reserves: of token a, and of token b."""

KINDS: Final = tuple(_PATCHES)
"""Kinds of pools whose liquidity can be changed: those of constant product over the whole range."""


def quote_reserve(view: View, pool: GenesisPool) -> int:
    """Return the base units of the quote token that a pool of one of KINDS trades with."""
    reserve_b, reserve_a = read_pool(view, pool)[0].price(True)
    return reserve_b if pool.a_is_base else reserve_a


def set_liquidity(view: View, pool: GenesisPool, quote_amount: int) -> None:
    """Bring a pool to so many base units of the quote token. Raises LiquidityError, with nothing changed.

    The price stays, but for less than a base unit.
    """
    patch = _PATCHES.get(pool.venue.kind)
    if patch is None:
        raise LiquidityError(
            f"the liquidity of {pool.venue.kind} cannot be changed; of {', '.join(KINDS)} it can"
        )
    keys = pool.keys
    state = read_pool(view, pool)[0]
    reserve_b, reserve_a = state.price(True)
    before = reserve_b if pool.a_is_base else reserve_a
    amount_a, amount_b = (reserve * quote_amount // before for reserve in (reserve_a, reserve_b))
    account = view.existing(bytes(keys.pool))
    changes = {
        bytes(vault): (bytes(mint), amount - reserve)
        for vault, mint, amount, reserve in (
            (keys.vault_a, keys.mint_a, amount_a, reserve_a),
            (keys.vault_b, keys.mint_b, amount_b, reserve_b),
        )
    }
    vaults = {address: view.existing(address) for address in changes}
    if min(amount_a, amount_b) < 1:
        raise LiquidityError("that is less than a base unit on one side")
    if any(token_balance(vaults[address]) + change > U64_MAX for address, (_, change) in changes.items()):
        raise LiquidityError("a vault cannot hold so much")
    data = patch(state, account.data, amount_a, amount_b)
    # On a view of its own, so that nothing is changed where one of two supplies cannot be.
    above = View(view)
    for address, (mint, change) in changes.items():
        try:
            change_supply(above, mint, change)
        except SupplyError as error:
            raise LiquidityError(str(error)) from None
        above.put(address, with_token_change(vaults[address], change))
    if data != account.data:
        above.put(bytes(keys.pool), Account(account.lamports, account.owner, data))
    view.changed.update(above.changed)
