"""Tokens that are launched: a mint first, later a pool with little in it, and later still more.

Those on a schedule are a pure function of (seed, index), so is what happens in a slot: a slot that has to be
done again does them again. Launch i opens `launch_slots` after launch i - 1, the first one `launch_slots`
after the chain's first slot, and its mint is made when the launch before it opens, so that orders for it can
be there first. Those on request follow from the seed, from how many were requested before, and from what
was asked; the ledger keeps them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import msgspec
from solders.pubkey import Pubkey

from engine.domain.tokens import SOL, USDC, Token, find_token
from engine.venues import VENUE_BY_KIND
from simnet.accounts import Account, is_made, new_mint, with_lamports_of
from simnet.bank import View
from simnet.genesis import FEES_PPM, PRICES, GenesisPool, make_pool, wallet_of
from simnet.liquidity import KINDS, LiquidityError, quote_reserve, set_liquidity
from simnet.supply import SupplyError, change_supply

logger = logging.getLogger(__name__)

_DECIMALS: Final = (6, 9, 5)
_USDC_EVERY: Final = 4
"""Every fourth launch is for USDC, the others for SOL."""
_LEAST_TENTHS, _MOST_TENTHS = 50, 400
"""Of a SOL, that a pool opens with; the same worth of USDC."""
_GROWTH: Final = ((3, 1), (10, 3))
"""Later liquidity, as a multiple of the opening one, and when: tenths of launch_slots after it."""
_SCHEDULED_TIER: Final = 0
REQUESTED_TIERS: Final = range(1, len(FEES_PPM))
"""What tells pools of one pair and program apart; the first is for scheduled launches alone."""


class Launch(msgspec.Struct, frozen=True):
    """A token and its pool. Amounts are base units."""

    index: int
    """0, 1, 2 ... of those on schedule; 1, 2, 3 ... of those on request."""
    requested: bool
    mint: bytes
    decimals: int
    quote_mint: str
    kind: str
    """Of the pool's program."""
    tier: int
    base_amount: int
    """Of the launched token, that the pool opens with; so is the next of the quote token."""
    quote_amount: int
    slot: int
    """When the pool opens."""
    growth: tuple[tuple[int, int], ...] = ()
    """Slots, and what the pool then has of the quote token, at the price it has then; if not more already."""

    @property
    def base(self) -> Token:
        """The launched token. Nobody has given it a symbol: that is its mint's address."""
        mint = str(Pubkey.from_bytes(self.mint))
        return find_token(mint) or Token(mint, mint, self.decimals)

    @property
    def quote(self) -> Token:
        token = find_token(self.quote_mint)
        assert token is not None
        return token


def scheduled_launch(seed: int, index: int, launch_slots: int, first_slot: int) -> Launch:
    """Return launch `index` (0, 1, 2 ...) of a schedule."""
    slot = first_slot + (index + 1) * launch_slots
    quote = USDC if index % _USDC_EVERY == _USDC_EVERY - 1 else SOL
    tenths, base_tokens = _draw(seed, f"launch {index}", _MOST_TENTHS - _LEAST_TENTHS + 1)
    quote_amount = (_LEAST_TENTHS + tenths) * PRICES[SOL] * 10**quote.decimals // PRICES[quote] // 10
    decimals = usual_decimals(index)
    return Launch(
        index=index,
        requested=False,
        mint=bytes(wallet_of(seed, f"launch {index}").pubkey()),
        decimals=decimals,
        quote_mint=quote.mint,
        kind=usual_kind(index),
        tier=_SCHEDULED_TIER,
        base_amount=base_tokens * 10**decimals,
        quote_amount=quote_amount,
        slot=slot,
        growth=tuple(
            (slot + after, factor * quote_amount)
            for (factor, _), after in zip(_GROWTH, _growth_slots(launch_slots), strict=True)
        ),
    )


def usual_decimals(index: int) -> int:
    # Shifted by one after each round, so that every kind comes to have all of them.
    return _DECIMALS[(index + index // len(_DECIMALS)) % len(_DECIMALS)]


def usual_kind(index: int) -> str:
    return KINDS[index % len(KINDS)]


def _draw(seed: int, name: str, below: int) -> tuple[int, int]:
    """Return a number from 0 to below - 1, and whole tokens from 10**5 to 10**8."""
    digest = blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    first, second, third = (int.from_bytes(digest[at:end], "little") for at, end in ((0, 3), (3, 6), (6, 8)))
    return first % below, (100 + second % 900) * 10 ** (3 + third % 3)


def _growth_slots(launch_slots: int) -> list[int]:
    """Return how many slots after its opening a pool grows: each in its own, however short it all is."""
    return [max(step, launch_slots * tenths // 10) for step, (_, tenths) in enumerate(_GROWTH, 1)]


@lru_cache(maxsize=256)
def _parts(launch: Launch) -> tuple[GenesisPool, Mapping[bytes, Account]]:
    """Return the launch's pool, and the accounts that it opens with."""
    venue = VENUE_BY_KIND[launch.kind]
    accounts: dict[bytes, Account] = {}
    amounts = (launch.base_amount, launch.quote_amount)
    pool = make_pool(venue, venue.new_pool, launch.base, launch.quote, amounts, launch.tier, accounts)
    return pool, accounts


def pool_of(launch: Launch) -> GenesisPool:
    """Return the launch's pool, open or not."""
    return _parts(launch)[0]


class Launches:
    """What is launched when."""

    def __init__(self, seed: int, launch_slots: int, first_slot: int) -> None:
        """`launch_slots` is how far launches on schedule are apart; 0: there are none."""
        self.requested: list[Launch] = []
        """In the order of the requests."""
        self._seed = seed
        self._launch_slots = launch_slots
        self._first_slot = first_slot
        self._growth_slots = _growth_slots(launch_slots)
        self._waiting: dict[int, list[Launch]] = {}
        """Requested ones, by the slot that they open in."""
        self.waiting_pools: set[Pubkey] = set()
        """Addresses of the pools that these will open."""

    def restore(
        self, requested: Iterable[Launch], accounts: Mapping[bytes, Account], slot: int
    ) -> Iterator[GenesisPool]:
        """Take up again what was requested up to a slot; yield the pools that were opened."""
        for launch in requested:
            self.take_up(launch, slot)
        opened = [launch for launch in self.requested if launch.slot <= slot]
        index, due = 0, self._due(slot)
        # Beyond what is due, too: another schedule may have been kept before.
        while is_made(accounts.get((launch := self._scheduled(index)).mint)) or index < due:
            opened.append(launch)
            index += 1
        for launch in sorted(opened, key=lambda launch: launch.slot):
            pool = pool_of(launch)
            if is_made(accounts.get(bytes(pool.keys.pool))):
                yield pool

    def make(self, view: View, launch: Launch, slot: int) -> GenesisPool | None:
        """Make the mint of a new request, and its pool if it is due already; return that.

        Raises SupplyError.
        """
        _make_mint(view, launch)
        return _open(view, launch) if launch.slot <= slot else None

    def take_up(self, launch: Launch, slot: int) -> None:
        """Take notice of a request that is on record; its pool opens in its slot if that is to come."""
        self.requested.append(launch)
        if launch.slot > slot:
            self._waiting.setdefault(launch.slot, []).append(launch)
            self.waiting_pools.add(pool_of(launch).keys.pool)

    def act(self, view: View, slot: int) -> list[GenesisPool]:
        """Do what is due in a slot; return the pools it opened."""
        opened = []
        if self._waiting:
            for launch in self._waiting.pop(slot, ()):
                self.waiting_pools.discard(pool_of(launch).keys.pool)
                opened.append(_open_if_possible(view, launch))
        if self._launch_slots:
            passed = slot - self._first_slot
            index, since = divmod(passed, self._launch_slots)
            if not since:
                _make_mint(view, self._scheduled(index))
                if index:
                    opened.append(_open_if_possible(view, self._scheduled(index - 1)))
            for step, after in enumerate(self._growth_slots):
                index, since = divmod(passed - after, self._launch_slots)
                if not since and index > 0:
                    _grow(view, self._scheduled(index - 1), step)
        return [pool for pool in opened if pool is not None]

    def new_mint_address(self, index: int) -> bytes:
        """Return the mint of request `index` (1, 2, 3 ...), where it names none."""
        return bytes(wallet_of(self._seed, f"requested launch {index}").pubkey())

    def usual_base_tokens(self, index: int) -> int:
        """Return how many whole tokens the pool of request `index` opens with where it names no price."""
        return _draw(self._seed, f"requested launch {index}", 1)[1]

    def listed(self, slot: int, count: int) -> list[Launch]:
        """Return the newest `count` launches up to a slot and the next `count` after it, by their slots."""
        due = self._due(slot)
        scheduled = range(max(0, due - count), due + count) if self._launch_slots else ()
        launches = [*self.requested, *map(self._scheduled, scheduled)]
        launches.sort(key=lambda launch: launch.slot)
        before = [launch for launch in launches if launch.slot <= slot]
        after = [launch for launch in launches if launch.slot > slot]
        return before[-count:] + after[:count]

    def _scheduled(self, index: int) -> Launch:
        return scheduled_launch(self._seed, index, self._launch_slots, self._first_slot)

    def _due(self, slot: int) -> int:
        """Return how many scheduled launches have opened up to a slot."""
        return (slot - self._first_slot) // self._launch_slots if self._launch_slots else 0


def _make_mint(view: View, launch: Launch) -> None:
    existing = view.get(launch.mint)
    if not is_made(existing):
        view.put(launch.mint, with_lamports_of(new_mint(launch.decimals, 0), existing))


def _open(view: View, launch: Launch) -> GenesisPool | None:
    """Open the launch's pool, unless it is open. Raises SupplyError, with nothing changed."""
    pool, accounts = _parts(launch)
    if is_made(view.get(bytes(pool.keys.pool))):
        return None
    above = View(view)
    # It lacks where this schedule was not kept when the launch before opened.
    _make_mint(above, launch)
    change_supply(above, launch.mint, launch.base_amount)
    change_supply(above, bytes(Pubkey.from_string(launch.quote_mint)), launch.quote_amount)
    for address, account in accounts.items():
        existing = above.get(address)
        # A configuration that pools share may be there.
        if not is_made(existing):
            above.put(address, with_lamports_of(account, existing))
    view.changed.update(above.changed)
    return pool


def _open_if_possible(view: View, launch: Launch) -> GenesisPool | None:
    try:
        return _open(view, launch)
    except SupplyError as error:
        logger.warning("launch %s is left out: %s", launch.base.mint, error)
        return None


def _grow(view: View, launch: Launch, step: int) -> None:
    pool = pool_of(launch)
    quote_amount = launch.growth[step][1]
    if not is_made(view.get(bytes(pool.keys.pool))) or quote_reserve(view, pool) >= quote_amount:
        return
    try:
        set_liquidity(view, pool, quote_amount)
    except LiquidityError as error:
        logger.warning("launch %s does not grow: %s", launch.base.mint, error)
