"""What pools would have given, slot by slot: a witness of prices that knows nothing of who traded at them.

Kept in memory, from the start of the process on, for as many slots as is set. A pool is
kept as each slot left it that changed it; a change between two slots belongs to the first of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

from solders.pubkey import Pubkey

from engine.domain.order import Side
from engine.domain.pools.pool import Clock, Pool, Swap, SwapError
from simnet.accounts import Account
from simnet.chain import Chain
from simnet.genesis import GenesisPool
from simnet.market import read_pool


class Best(NamedTuple):
    """The best single pool for a whole amount, at the end of a slot."""

    slot: int
    pool: GenesisPool | None
    """None: no pool could fill it; then both amounts are 0."""
    input_amount: int
    output_amount: int


class _State(NamedTuple):
    """A pool from one slot on, until the next state."""

    slot: int
    curve: Pool


_slot_of = attrgetter("slot")


class _Known:
    """What is known of a pool: its states, oldest first."""

    def __init__(self, pool: GenesisPool) -> None:
        self.pool = pool
        self.states: list[_State] = []


class History:
    """Follows a chain that has started."""

    def __init__(self, chain: Chain, slots: int) -> None:
        """`slots` is how many are remembered, 1 or more."""
        self._chain = chain
        self._slots = slots
        self._by_pair: dict[frozenset[Pubkey], list[_Known]] = {}
        self._by_account: dict[bytes, _Known] = {}
        self._pool_count = 0
        self._times: dict[int, int] = {}
        """Slots that are remembered, and their unix seconds."""
        chain.watchers.append(self._on_changes)
        self._on_changes({bytes(pool.keys.pool): Account(0) for pool in chain.market.pools})

    @property
    def first_slot(self) -> int:
        """The oldest that is remembered."""
        return next(iter(self._times))

    def best(
        self, input_mint: Pubkey, output_mint: Pubkey, side: Side, amount: int, after: int, limit: int
    ) -> list[Best]:
        """Return the best pool at the end of each slot after `after` that changed any pool of the pair.

        The oldest slot that is remembered counts as one. `amount` is base units: of the input if SELL, of the
        output if BUY. At most `limit` of them, the oldest.
        """
        known = self._by_pair.get(frozenset((input_mint, output_mint)), [])
        first = self.first_slot
        slots = {max(first, state.slot) for each in known for state in each.states}
        slots.add(first)
        return [
            self._best_at(slot, known, input_mint, side, amount)
            for slot in sorted(slot for slot in slots if slot > after)[:limit]
        ]

    def _best_at(self, slot: int, known: list[_Known], input_mint: Pubkey, side: Side, amount: int) -> Best:
        clock = Clock(slot, self._times[slot])
        best: tuple[GenesisPool, Swap] | None = None
        for each in known:
            place = bisect_right(each.states, slot, key=_slot_of)
            if not place:
                continue
            curve = each.states[place - 1].curve
            swap_of = curve.swap_exact_in if side is Side.SELL else curve.swap_exact_out
            try:
                swap = swap_of(each.pool.keys.mint_a == input_mint, amount, clock)
            except SwapError:
                continue
            if best is None or (swap.output_amount, -swap.input_amount) > (
                best[1].output_amount,
                -best[1].input_amount,
            ):
                best = each.pool, swap
        if best is None:
            return Best(slot, None, 0, 0)
        return Best(slot, best[0], best[1].input_amount, best[1].output_amount)

    def _on_changes(self, changed: Mapping[bytes, Account]) -> None:
        chain = self._chain
        slot = chain.slot
        self._times[slot] = chain.block_time
        while self.first_slot < slot - self._slots:
            del self._times[self.first_slot]
        self._take_in_new_pools()
        # Whatever changes a pool changes its own account or a vault; arrays never change alone.
        touched = {known: None for address in changed if (known := self._by_account.get(address)) is not None}
        for known in touched:
            states = known.states
            if states and states[-1].slot == slot:
                states.pop()
            states.append(_State(slot, read_pool(chain.accounts, known.pool)[0]))
            while len(states) > 1 and states[1].slot <= self.first_slot:
                del states[0]

    def _take_in_new_pools(self) -> None:
        pools = self._chain.market.pools
        for pool in pools[self._pool_count :]:
            known = _Known(pool)
            keys = pool.keys
            self._by_pair.setdefault(frozenset((keys.mint_a, keys.mint_b)), []).append(known)
            for key in (keys.pool, keys.vault_a, keys.vault_b):
                self._by_account[bytes(key)] = known
        self._pool_count = len(pools)
