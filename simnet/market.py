"""Prices move with every slot: an outside trader brings a few pools a slot to what the world pays.

What the world pays is a pure function of (seed, slot): noise of several octaves, each sixteen times slower
and four times as strong as the one before, which looks like a random walk at every scale and never runs away.
Which pools are traded with is a function of the slot. So the same seed and slot give the same prices, however
long a slot is, as long as nobody else trades; and a pool that somebody pushed is back in line soon after.

A trade is a real swap: it pays the pool's fee and moves tokens between the vaults and the trader's accounts.
Only square roots and single operations of IEEE 754 are used, which are exact to the last bit everywhere.
"""

from __future__ import annotations

from hashlib import blake2b
from math import sqrt
from typing import Final

from solders.pubkey import Pubkey

from engine.domain.pools.pool import Clock, Pool, SwapError
from engine.domain.tokens import BONK, JUP, RAY, SOL, USDC, USDT, Token
from simnet.accounts import Account, is_made, token_balance, with_token_balance
from simnet.bank import Accounts, View
from simnet.genesis import PRICES, Genesis, GenesisPool
from simnet.programs.associated_token import address_of
from simnet.supply import SupplyError, give, token_account

_OCTAVES: Final = 5
_STEP: Final = 0.0001
"""Of the fastest octave: a basis point a slot."""
_TOKEN_SCALE: Final = {SOL: 1.0, USDC: 0.0, USDT: 0.02, BONK: 2.0, JUP: 1.5, RAY: 1.5}
"""How lively a token's price is."""
_POOL_OCTAVES: Final = 3
_POOL_SCALE: Final = 0.7
"""How far a pool strays from the world's price by itself: by some 10 basis points."""
_LEAST_MOVE: Final = 0.00001
"""Smaller moves are not worth a trade."""
_PUSH_TRADES: Final = 40


def read_pool(accounts: Accounts, pool: GenesisPool) -> tuple[Pool, dict[Pubkey, bytes]]:
    """Return a pool as those accounts have it, and the ones it consists of."""

    def find(key: Pubkey) -> bytes | None:
        account = accounts.get(bytes(key))
        return account.data if is_made(account) else None

    found = pool.venue.accounts(pool.keys, find)
    return pool.venue.pool(pool.keys, found), found


class Market:
    """Knows the pools and trades with them."""

    def __init__(self, genesis: Genesis, seed: int, pools_per_slot: int, first_slot: int) -> None:
        """`pools_per_slot` is how many pools are traded with in each slot; 0: prices stand still."""
        self.pools = list(genesis.pools)
        """All there are: it trades with those of genesis, of whose tokens the world knows a price."""
        self.held: set[bytes] = set()
        """Addresses of the pools it leaves alone."""
        self._by_address = {bytes(pool.keys.pool): pool for pool in genesis.pools}
        self._traded = genesis.pools
        self._pools_per_slot = pools_per_slot
        self._trader = bytes(genesis.market)
        self._noise = _Noise(seed, first_slot)

    def find(self, address: bytes) -> GenesisPool | None:
        return self._by_address.get(address)

    def add(self, pool: GenesisPool) -> None:
        """Take notice of a pool that has been opened since."""
        self.pools.append(pool)
        self._by_address[bytes(pool.keys.pool)] = pool

    def world_price(self, pool: GenesisPool, slot: int) -> float:
        """Return what the pool's token a is worth in its token b to the world in that slot, in base units."""
        value = self._value(pool.base, slot) / self._value(pool.quote, slot)
        value *= 1 + _POOL_SCALE * self._noise.at(pool.name, slot, _POOL_OCTAVES)
        return value if pool.a_is_base else 1 / value

    def move(self, view: View, slot: int, clock: Clock) -> None:
        """Trade with the pools whose turn it is in this slot."""
        for turn in range(self._pools_per_slot):
            pool = self._traded[(slot * self._pools_per_slot + turn) % len(self._traded)]
            if bytes(pool.keys.pool) not in self.held:
                self._trade(view, pool, self.world_price(pool, slot), clock)

    def push(self, view: View, pool: GenesisPool, bps: int, clock: Clock) -> None:
        """Move the price of the pool's base token by so many basis points, in as many trades as it takes."""
        before = self.price(view, pool)
        factor = 1 + bps / 10_000
        aim = target = before * factor if pool.a_is_base else before / factor
        for _ in range(_PUSH_TRADES):
            if not self._trade(view, pool, aim, clock):
                return
            now = self.price(view, pool)
            if (now >= target) is (target > before):
                return
            # Fees that grow with the price's way keep the trader from going all of it.
            aim *= target / now

    def price(self, view: View, pool: GenesisPool) -> float:
        """Return what the pool asks for its token a in its token b, in base units, before fees."""
        return _ratio(read_pool(view, pool)[0])

    def _value(self, token: Token, slot: int) -> float:
        """Return picodollars a base unit."""
        scale = _TOKEN_SCALE[token]
        moved = 1 + scale * self._noise.at(token.symbol, slot, _OCTAVES) if scale else 1.0
        return PRICES[token] * moved / float(10**token.decimals)

    def _trade(self, view: View, pool: GenesisPool, target: float, clock: Clock) -> bool:
        """Swap so much that the price comes near the target; say whether it was worth it."""
        keys = pool.keys
        state, accounts = read_pool(view, pool)
        moves = target / _ratio(state)
        if abs(moves - 1) < _LEAST_MOVE:
            return False
        a_to_b = moves < 1
        mint_in, mint_out = (keys.mint_a, keys.mint_b) if a_to_b else (keys.mint_b, keys.mint_a)
        vault_in, vault_out = (keys.vault_a, keys.vault_b) if a_to_b else (keys.vault_b, keys.vault_a)
        amount = _amount_until(state, a_to_b, target, pool.fee_ppm, clock)
        try:
            swap = state.swap_exact_in(a_to_b, amount, clock)
        except SwapError:
            return False
        paid_from, paid_to = (address_of(self._trader, bytes(mint)) for mint in (mint_in, mint_out))
        payer = view.get(paid_from)
        lacking = swap.input_amount - (0 if payer is None else token_balance(payer))
        if lacking > 0:
            # Of a token launched since, it has none.
            try:
                give(view, self._trader, bytes(mint_in), lacking)
            except SupplyError:
                return False
        view.put(paid_to, token_account(view, self._trader, bytes(mint_out)))
        vaults = (keys.vault_a, keys.vault_b)
        for key, data in pool.venue.written(keys, accounts, a_to_b, swap).items():
            if key not in vaults:
                before = view.existing(bytes(key))
                view.put(bytes(key), Account(before.lamports, before.owner, data))
        for address, change in (
            (paid_from, -swap.input_amount),
            (bytes(vault_in), swap.input_amount),
            (bytes(vault_out), -swap.output_amount),
            (paid_to, swap.output_amount),
        ):
            account = view.existing(address)
            view.put(address, with_token_balance(account, token_balance(account) + change))
        return True


class _Noise:
    """Smooth random curves over slots, all 0 at the first: a pure function of (seed, name, slot)."""

    def __init__(self, seed: int, first_slot: int) -> None:
        self._key = seed.to_bytes(8, "little")
        self._first_slot = first_slot
        self._origins: dict[str, float] = {}
        self._points: dict[tuple[str, int], tuple[int, float, float]] = {}
        self._newest: dict[str, tuple[int, float]] = {}

    def at(self, name: str, slot: int, octaves: int) -> float:
        """Return the deviation from where the curve began, as a fraction of one."""
        newest = self._newest.get(name)
        if newest is not None and newest[0] == slot:
            return newest[1]
        origin = self._origins.get(name)
        if origin is None:
            origin = self._origins[name] = self._sum(name, self._first_slot, octaves)
        deviation = self._sum(name, slot, octaves) - origin
        self._newest[name] = (slot, deviation)
        return deviation

    def _sum(self, name: str, slot: int, octaves: int) -> float:
        total = 0.0
        strength = _STEP
        period = 1
        for octave in range(octaves):
            at = slot // period
            known = self._points.get((name, octave))
            if known is None or known[0] != at:
                # Walking on, the end of the stretch before is the start of this one.
                start = (
                    known[2] if known is not None and known[0] == at - 1 else self._point(name, octave, at)
                )
                known = (at, start, self._point(name, octave, at + 1))
                self._points[name, octave] = known
            _, start, end = known
            total += strength * (start + (end - start) * (slot % period / period))
            strength *= 4
            period *= 16
        return total

    def _point(self, name: str, octave: int, at: int) -> float:
        """Return a number from -1 to 1."""
        digest = blake2b(f"{name} {octave} {at}".encode(), digest_size=6, key=self._key).digest()
        return int.from_bytes(digest, "little") / (1 << 47) - 1


def _ratio(state: Pool) -> float:
    output, input_ = state.price(True)
    return output / input_


def _amount_until(state: Pool, a_to_b: bool, target: float, fee_ppm: int, clock: Clock) -> int:
    """Return the input, fee included, that brings the price of token a in token b to the target.

    More precisely: until the next unit would get the target price less the pool's usual fee; for so long it
    pays to trade. A pool in bins ends within a bin of it.
    """
    wanted = (target if a_to_b else 1 / target) * (1 - fee_ppm / 1_000_000)
    # Segments count in 1/sqrt(output per input).
    end = 1 / sqrt(wanted)
    amount = 0.0
    for segment in state.segments(a_to_b, clock):
        if segment.start >= end:
            break
        amount += segment.jump or segment.slope * (min(segment.end, end) - segment.start)
    return int(amount)
