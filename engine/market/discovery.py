"""Finds the pools of the tokens that are followed, and which tokens those are.

Tokens with a symbol are always followed. Another one is learned when an order names it, and forgotten when no
order has for a while; as long as there is one, the node tells of every pool that opens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence, Set
from contextlib import aclosing
from itertools import chain
from typing import Any, Final

from solders.pubkey import Pubkey

from engine.domain.errors import NodeUnavailable, TooManyTokens
from engine.domain.tokens import Token
from engine.market.accounts import Accounts
from engine.market.listing import Listing
from engine.market.patience import RETRY_SECONDS, until_done
from engine.market.pools import Pools
from engine.market.rules import RouteRules
from engine.solana.accounts import TOKEN_ACCOUNT, token_amount
from engine.solana.programs import associated_token_account
from engine.solana.rpc import Account, NodeClient, ProgramChange, ProgramWatch, RpcError
from engine.solana.wire import WireError
from engine.telemetry import Trouble
from engine.venues.venue import Venue

logger = logging.getLogger(__name__)

DISCOVERY_SECONDS: Final = 60.0
"""How often to look for pools that are new."""
FORGET_SECONDS: Final = 300.0
"""How long a learned token is followed that no order names any more."""
MOST_LEARNED: Final = 5_000
"""Tokens that are followed at a time beside those with a symbol: each slot reads what there is of all."""
_CHOOSE_SECONDS: Final = 1.0
"""How long to rest after the pools of a crowded pair were compared: anybody can open one after the other."""
_FEW: Final = 20
"""So many tokens' pools are asked for one by one; of more, every pool's mints are read instead."""


class Discovery:
    """Follows tokens, and puts the pools they trade in into `pools`."""

    def __init__(
        self,
        node: NodeClient,
        wallet: Pubkey | None,
        pools: Pools,
        accounts: Accounts,
        *,
        rules: RouteRules,
        venues: Sequence[Venue[Any]],
        tokens: Sequence[Token],
        seconds: float,
        monotonic_seconds: Callable[[], float],
        read_now: Callable[[], Awaitable[None]],
        read_soon: Callable[[], None],
        forget_offers: Callable[[], None],
    ) -> None:
        """`read_now` returns once all that is planned has been read; `read_soon` does not wait for it.

        `forget_offers` is told when pools are not traded any more that were before.
        """
        self._node = node
        self._wallet = wallet
        self._pools = pools
        self._accounts = accounts
        self._rules = rules
        self._venues = venues
        self._seconds = seconds
        self._monotonic_seconds = monotonic_seconds
        self._read_now = read_now
        self._read_soon = read_soon
        self._forget_offers = forget_offers
        self.mints: Final[dict[str, Pubkey]] = {}
        """Of all tokens that are followed."""
        self.token_accounts: Final[dict[str, Pubkey]] = {}
        """The wallet's, by mint."""
        self._known_mints: set[bytes] = set()
        for token in tokens:
            self._follow(token.mint)
        self._always = {mint: place for place, mint in enumerate(self.mints)}
        """Mints of the tokens that are followed whether orders name them or not, best known first."""
        self._learned: dict[str, float] = {}
        """Mints of tokens that are followed as long as orders name them, and when one last did."""
        self._has_learned = asyncio.Event()
        self._learning = asyncio.Lock()
        self._wanted: dict[str, None] = {}
        """Mints that somebody wants learned."""
        self._is_wanted = asyncio.Event()
        self._is_crowded = asyncio.Event()
        """A pool has opened whose pair has as many as are traded."""
        self._told_count = 0
        """Of pools that are traded, as the log was told."""
        self._trouble = Trouble(logger, "pools cannot be listed", "pools are listed again")
        self._full = Trouble(logger, "not all tokens that orders name are followed", "they all are again")

    # ---- Tokens

    async def learn(self, tokens: Iterable[Token]) -> None:
        """Return once these tokens are followed and their pools have been read; mostly that is so already.

        Raises NodeUnavailable, and asks anew the next time; TooManyTokens, with as many followed as can be.
        """
        if not (unknown := self._unknown(tokens)):
            return
        async with self._learning:
            wanted = [mint for mint in unknown if mint not in self._learned]
            new = wanted[: max(0, MOST_LEARNED - len(self._learned))]
            if new:
                await self._learn(new)
            if len(new) < len(wanted):
                raise TooManyTokens(f"{MOST_LEARNED} tokens are followed, which is as many as can be")

    async def _learn(self, new: Sequence[str]) -> None:
        for mint in new:
            self._follow(mint)
        try:
            is_other = await self._discover(new if len(new) <= _FEW else None)
            await self._read_now()
            if is_other:
                # Of pools that were chosen instead of others it is known now which arrays to read.
                await self._read_now()
        except RpcError as error:
            self.forget(new)
            raise NodeUnavailable(f"the Solana node does not tell of a token's pools: {error}") from error
        except BaseException:
            self.forget(new)
            raise
        # Only now: whoever finds a token learned relies on its pools having been read.
        self._learned.update(dict.fromkeys(new, self._monotonic_seconds()))
        self._has_learned.set()

    def learn_soon(self, tokens: Iterable[Token]) -> None:
        """Have these tokens learned while others wait for nothing; until then nothing of them is traded."""
        if unknown := self._unknown(tokens):
            self._wanted.update(dict.fromkeys(unknown))
            self._is_wanted.set()

    def forget(self, mints: Collection[str]) -> None:
        """Follow learned tokens no longer."""
        if not mints:
            return
        keys = set()
        for mint in mints:
            self._learned.pop(mint, None)
            keys.add(key := self.mints.pop(mint))
            self._known_mints.discard(bytes(key))
            account = self.token_accounts.pop(mint, None)
            if account is not None:
                self._accounts.remove(account)
        self._pools.remove(keys)
        self._forget_offers()
        self._accounts.plan()

    def _unknown(self, tokens: Iterable[Token]) -> list[str]:
        """Return the mints of those that are not followed; of the others, note that they are named."""
        now = self._monotonic_seconds()
        unknown: dict[str, None] = {}
        for token in tokens:
            if token.mint in self._learned:
                self._learned[token.mint] = now
            elif token.mint not in self._always:
                unknown[token.mint] = None
        return list(unknown)

    def _follow(self, mint: str) -> None:
        key = self.mints[mint] = Pubkey.from_string(mint)
        self._known_mints.add(bytes(key))
        if self._wallet is not None:
            account = self.token_accounts[mint] = associated_token_account(self._wallet, key)
            self._accounts.add(account)

    # ---- For ever

    async def find_pools(self) -> None:
        """Find what pools there are, however long the node is away."""
        await until_done(self._discover, self._trouble)

    async def follow_pools(self) -> None:
        """Look for new pools now and then."""
        while True:
            await asyncio.sleep(self._seconds)
            await until_done(self._discover, self._trouble)
            long_ago = self._monotonic_seconds() - FORGET_SECONDS
            self.forget([mint for mint, named in self._learned.items() if named < long_ago])

    async def learn_wanted(self) -> None:
        """Learn what `learn_soon` was told."""
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            wanted, self._wanted = list(self._wanted), {}
            # One that the node refuses to tell of is not to keep the others from being learned.
            for mints in (wanted, *([mint] for mint in wanted)):
                try:
                    await self.learn([Token(mint, mint, 0) for mint in mints])
                except TooManyTokens as error:
                    self._full.fails(error)
                    break
                except NodeUnavailable as error:
                    logger.info("tokens that orders name are not known yet: %s", error)
                    await asyncio.sleep(RETRY_SECONDS)
                else:
                    self._full.works()
                    if len(mints) == len(wanted):
                        break

    async def follow_openings(self) -> None:
        """Take up pools as they open, as long as there are tokens that were learned."""
        watches = [
            ProgramWatch(venue.program, venue.pool_filter.data_size, venue.pool_filter.prefix)
            for venue in self._venues
        ]
        while True:
            await self._has_learned.wait()
            async with aclosing(self._node.program_changes(watches)) as changes:
                async for change in changes:
                    if change is None:
                        # What opened before the announcements stood was not told.
                        await until_done(self._discover_learned, self._trouble)
                    elif str(change.address) not in self._pools:
                        self._open(change)
                    if not self._learned:
                        # Before the announcements end, which takes a moment: meanwhile one may be learned.
                        self._has_learned.clear()
                        break

    async def choose_when_crowded(self) -> None:
        """Choose anew which pools are traded as others open, and not only now and then."""
        while True:
            await self._is_crowded.wait()
            self._is_crowded.clear()
            await until_done(self._choose, self._trouble)
            self._read_soon()
            await asyncio.sleep(_CHOOSE_SECONDS)

    def _open(self, change: ProgramChange) -> None:
        venue = next(venue for venue in self._venues if venue.program == change.program)
        start, length = venue.mints_slice
        mints = change.data[start : start + length]
        if mints[:32] in self._known_mints and mints[32:] in self._known_mints:
            self._list(venue, change.address, change.data)
            if self._pools.find(str(change.address)) is None and str(change.address) in self._pools:
                # It may hold more than those that are traded of its pair.
                self._is_crowded.set()
            self._accounts.plan()
            # Read it at once, and not when the next slot has passed.
            self._read_soon()

    # ---- Pools

    async def _discover_learned(self) -> None:
        await self._discover(list(self._learned))

    async def _discover(self, mints: Sequence[str] | None = None) -> bool:
        """Find the pools of tokens we know, or of these among them; say whether others are traded instead.

        In two passes for any number of pools: the mints of every one, then those that count, whole.
        """
        keys = None if mints is None else [bytes(self.mints[mint]) for mint in mints]
        for venue in self._venues:
            start, _ = venue.mints_slice
            # A mint is a pool's first or its second.
            places = [(start + offset, key) for key in keys or () for offset in (0, 32)]
            answers = await asyncio.gather(
                *(
                    self._node.program_accounts(
                        venue.program,
                        data_size=venue.pool_filter.data_size,
                        prefix=venue.pool_filter.prefix,
                        contains=place,
                        data_slice=venue.mints_slice,
                        # One that has just opened is not confirmed yet.
                        commitment="processed",
                    )
                    for place in ([None] if keys is None else places)
                )
            )
            found = dict(chain.from_iterable(answers)).items()
            new = [
                address
                for address, its_mints in found
                if its_mints[:32] in self._known_mints
                and its_mints[32:] in self._known_mints
                and str(address) not in self._pools
            ]
            _, accounts = await self._node.multiple_accounts(new)
            for address, account in zip(new, accounts, strict=True):
                # Its opening may have been announced meanwhile.
                if account is not None and str(address) not in self._pools:
                    self._list(venue, address, account.data)
        is_other = await self._choose(None if mints is None else frozenset(mints))
        if (count := len(self._pools.traded)) != self._told_count:
            self._told_count = count
            logger.info("trading %d pools", count)
        return is_other

    def _list(self, venue: Venue[Any], address: Pubkey, data: bytes) -> None:
        try:
            keys = venue.keys(address, data)
        except WireError as error:
            logger.warning("pool %s of %s is passed over: %s", address, venue.kind, error)
            return
        if keys is None:
            return
        priority_fee = venue.compute_units * self._rules.priority_fee_micro_lamports // 1_000_000
        listing = Listing(
            venue,
            keys,
            self._rules.leg_lamports + priority_fee,
            # Who waits for a new token asks what its pools hold.
            reads_vaults=any(str(mint) not in self._always for mint in (keys.mint_a, keys.mint_b)),
        )
        self._pools.add(listing, data)

    async def _choose(self, mints: Set[str] | None = None) -> bool:
        """Of pairs with more pools than are traded, trade those that hold the most of the better known token.

        Of the other one its maker may have any amount. `mints`: only of pairs with one of these. Plans anew
        what is read, and says whether others are traded than before.
        """
        pairs = self._pools.crowded(mints)
        answers = await asyncio.gather(*(self._node.multiple_accounts(self._vaults(pair)) for pair in pairs))
        changed = False
        for pools, (_, vaults) in zip(pairs, answers, strict=True):
            amounts = {each: _amount(vault) for each, vault in zip(pools, vaults, strict=True)}
            changed |= self._pools.trade_best(sorted(pools, key=amounts.__getitem__, reverse=True))
        if changed:
            self._forget_offers()
        # In the same turn of the loop: a refresh in between would take what it reads of those that left.
        self._accounts.plan()
        return changed

    def _vaults(self, pools: Sequence[Listing]) -> list[Pubkey]:
        """Return where a pair's pools hold the better known of its tokens."""
        better_known = min(pools[0].mints, key=lambda mint: self._always.get(mint, len(self._always)))
        return [pool.vault_of(better_known) for pool in pools]


def _amount(vault: Account | None) -> int:
    data = b"" if vault is None else vault.data
    return token_amount(data) if len(data) >= TOKEN_ACCOUNT.size else 0
