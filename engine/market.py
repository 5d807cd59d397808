"""The market as this process sees it: every pool and the wallet, refreshed in bulk once a slot.

Orders are quoted from memory. However many orders there are, a slot costs one JSON-RPC batch, and only
accounts whose bytes changed are decoded. While nobody asks it rests, and who asks first waits for a refresh.
Who quotes now and then only, refreshes when it quotes.

Swaps that are under way, here or in other workers, count as done when the next order is priced: else all
orders of a moment would go for the one pool that is best, each as if it were alone, and have each other
reverted.

Tokens with a symbol are always followed. Another one is learned when an order names it, and forgotten when no
order has for a while; as long as there is one, the node tells of every pool that opens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import inf
from typing import Any, Final
from uuid import UUID

import msgspec
from solders.pubkey import Pubkey

from engine.domain import routing
from engine.domain.errors import EngineError, NodeUnavailable, NoRoute
from engine.domain.order import FailureReason, OrderSpec, Route, RoutingDecision, Side
from engine.domain.pools.pool import Clock, Pool, SwapError
from engine.domain.routing import Detour, Limits, PoolOffer
from engine.domain.routing.sweep import marginal_price
from engine.domain.tokens import SOL, TOKENS, USDC, Token, find_token
from engine.settings import Settings
from engine.solana.accounts import CLOCK, token_amount
from engine.solana.instructions import Instruction
from engine.solana.programs import (
    ASSOCIATED_TOKEN_PROGRAM,
    CLOCK_SYSVAR,
    SYSTEM_PROGRAM,
    TOKEN_PROGRAM,
    associated_token_account,
)
from engine.solana.rpc import MAX_ACCOUNTS, NodeClient, ProgramChange, ProgramWatch, RpcError
from engine.solana.transactions import (
    FEE_RESERVE,
    Blockhash,
    Footprint,
    called_instruction,
    fits,
    swap_instructions,
)
from engine.solana.wire import WireError
from engine.telemetry import Trouble
from engine.venues import VENUE_BY_PROGRAM, VENUES
from engine.venues.venue import PoolKeys, Venue

logger = logging.getLogger(__name__)

STALE_SECONDS: Final = 5.0
"""Older than this, prices and balances are not traded on."""
_PRICED_LAMPORTS: Final = 100_000_000
"""So many are sold, in thought, to tell what a lamport is worth: thousands of times what a leg costs."""
DISCOVERY_SECONDS: Final = 60.0
"""How often to look for pools that are new."""
FORGET_SECONDS: Final = 300.0
"""How long a learned token is followed that no order names any more."""
MOST_LEARNED: Final = 5_000
"""Tokens that are followed at a time beside those with a symbol: each slot reads what there is of all."""
_FEW: Final = 20
"""So many tokens' pools are asked for one by one; of more, every pool's mints are read instead."""
_RETRY_SECONDS: Final = 0.5
_REFRESH_SECONDS: Final = 0.1
"""Refreshes are at least so far apart. A slot takes 0.4 s; simulated ones can be shorter than is any use."""
_REST_SECONDS: Final = 1.5
"""How much farther apart they are while nobody asks: a third of STALE_SECONDS, with the refresh itself."""
_ASKED_SECONDS: Final = 1.0
"""For so long after somebody asked, prices are refreshed with every slot."""
_MATTERS_PPM: Final = 300
_MATTERS_COUNT: Final = 4
"""By how much swaps under way move a pool's price, or how many they are, before the next order is priced on
that. It is a small part of the slippage that orders allow."""
_LANDING_SLOTS: Final = 2
"""What was sent is taken to have landed, or never to, in what the pools are so many slots later."""


@dataclass(frozen=True, slots=True)
class RouteRules:
    """What a route may be like."""

    max_legs: int = 3
    """Swaps an order may be split into, as far as one transaction holds them."""
    leg_lamports: int = 100_000
    """What each further swap must gain beside its fees."""
    priority_fee_micro_lamports: int = 0
    """Per compute unit."""
    middle_tokens: tuple[Token, ...] = (SOL, USDC)
    """Where two hops may meet."""

    @classmethod
    def of(cls, settings: Settings) -> RouteRules:
        return cls(
            settings.max_route_legs,
            settings.leg_lamports,
            settings.priority_fee_micro_lamports,
            tuple(token for name in settings.middle_tokens.split(",") if (token := find_token(name.strip()))),
        )


class SwapUnderWay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A swap that is decided and not yet in what is read of its pool."""

    pool: str
    """Its address."""
    a_to_b: bool
    """Whether it takes the pool's first token."""
    input_amount: int
    """Base units."""
    price_impact_ppm: int


class _Listing:
    """A pool that is traded: what never changes of it, and how it is now."""

    __slots__ = (
        "_further",
        "_further_count",
        "_further_ppm",
        "accounts",
        "address",
        "expected",
        "is_known",
        "keys",
        "leg_lamports",
        "mints",
        "offers",
        "reads_vaults",
        "venue",
    )

    def __init__(self, venue: Venue[Any], keys: PoolKeys, leg_lamports: int, *, reads_vaults: bool) -> None:
        self.venue = venue
        self.keys = keys
        self.leg_lamports = leg_lamports
        self.reads_vaults = reads_vaults
        """Whether somebody asks what it holds."""
        self.address = str(keys.pool)
        self.mints = (str(keys.mint_a), str(keys.mint_b))
        self.accounts: tuple[Pubkey, ...] = ()
        """What is read of it; changes where the price decides which tick or bin arrays are next."""
        self.is_known = True
        """Whether these are what it takes to quote it; False while what was read last does not say."""
        self.offers: tuple[PoolOffer, PoolOffer] | None = None
        """b to a, and a to b; None while the pool cannot be read."""
        self.expected: tuple[PoolOffer, PoolOffer] | None = None
        """The same after the swaps that are under way; None: there are none."""
        self._further: list[int]
        """Input amounts of swaps under way that are not in `expected` yet: b to a, and a to b."""
        self._further_count: int
        self._further_ppm: int
        """By how many millionths they move the price."""
        self._clear_further()

    def offer(self, a_to_b: bool) -> PoolOffer | None:
        """Return what is there; None while the pool cannot be read."""
        return None if self.offers is None else self.offers[a_to_b]

    def expected_offer(self, a_to_b: bool) -> PoolOffer | None:
        """Return what an order has to reckon with: what is there, or less after the swaps under way.

        Never more: they may come later than the order, or not at all, and then it would be reverted.
        """
        if self.offers is None or self.expected is None:
            return self.offer(a_to_b)
        offer, expected = self.offers[a_to_b], self.expected[a_to_b]
        (output, price), (expected_output, expected_price) = offer.price(), expected.price()
        return expected if expected_output * price <= output * expected_price else offer

    def wanted(self, known: Mapping[Pubkey, bytes]) -> tuple[Pubkey, ...]:
        """Return what is to be read of it, by what is known of it."""
        try:
            accounts = self.venue.quote_accounts(self.keys, known)
        except Exception as error:
            self.is_known = False
            self._fail(error)
            return self.accounts or (self.keys.pool,)
        self.is_known = True
        if not self.reads_vaults:
            return accounts
        return tuple(dict.fromkeys((*accounts, self.keys.vault_a, self.keys.vault_b)))

    def read(self, accounts: Mapping[Pubkey, bytes]) -> None:
        """Take over the pool's accounts as they are now."""
        if not self.is_known:
            return
        try:
            self.offers = self._offers_of(self.venue.pool(self.keys, accounts))
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Offer nothing until it can be read again: one pool, whatever is in it, is not to stop the others.

        It was closed, or changed by a newer program into something we do not know.
        """
        logger.warning("pool %s of %s cannot be read: %r", self.address, self.venue.kind, error)
        self.offers = None

    def add_expected(self, swap: SwapUnderWay) -> None:
        """Note a swap that is under way."""
        self._further[swap.a_to_b] += swap.input_amount
        self._further_count += 1
        self._further_ppm += swap.price_impact_ppm

    def reckon_expected(self, clock: Clock) -> bool:
        """Take the swaps that were noted as done, if together they matter; say whether they do.

        A pool that is another with each order has its curve reckoned anew for each, which costs more than
        the order's own quotes.
        """
        if self._further_ppm < _MATTERS_PPM and self._further_count < _MATTERS_COUNT:
            return False
        # Together, one swap each way: each by itself would be exact only if they landed in this order.
        for a_to_b, amount in enumerate(self._further):
            offers = self.expected or self.offers
            # What is more than it takes reverts, and changes nothing.
            if amount and offers is not None:
                with suppress(SwapError):
                    swap = offers[a_to_b].pool.swap_exact_in(bool(a_to_b), amount, clock)
                    self.expected = self._offers_of(swap.pool)
        self._clear_further()
        return True

    def expect_nothing(self) -> None:
        self.expected = None
        self._clear_further()

    def _clear_further(self) -> None:
        self._further = [0, 0]
        self._further_count = self._further_ppm = 0

    def _offers_of(self, pool: Pool) -> tuple[PoolOffer, PoolOffer]:
        name, kind, address = self.venue.name, self.venue.kind, self.address
        return (
            PoolOffer(name, kind, address, False, pool, self.leg_lamports),
            PoolOffer(name, kind, address, True, pool, self.leg_lamports),
        )


@dataclass(slots=True)
class _Expected:
    """The swaps of an order that is under way."""

    swaps: Sequence[tuple[_Listing, SwapUnderWay]]
    end_time: float
    """When to forget them, by the monotonic clock, if nobody says before that they have landed."""
    landed_slot: int | None = None
    """From which slot on they are in what the pools are, or never will be; None: they are not sent yet."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """When the accounts in memory were read."""

    slot: int
    clock: Clock
    blockhash: Blockhash
    monotonic_seconds: float


class _Offers:
    """What the pools of a pair offer at this moment: worked out when first asked for, then known."""

    def __init__(
        self,
        by_pair: Mapping[tuple[str, str], Sequence[tuple[_Listing, bool]]],
        middle_tokens: Sequence[Token],
        offer_of: Callable[[_Listing, bool], PoolOffer | None],
    ) -> None:
        """`offer_of` tells what a pool offers one way (True: its token a is the input), if anything."""
        self._by_pair = by_pair
        self._middle_tokens = middle_tokens
        self._offer_of = offer_of
        self._offers: dict[tuple[str, str], list[PoolOffer]] = {}
        self._detours: dict[tuple[str, str], list[Detour]] = {}

    def of(self, input_mint: str, output_mint: str) -> list[PoolOffer]:
        pair = (input_mint, output_mint)
        offers = self._offers.get(pair)
        if offers is None:
            offers = self._offers[pair] = [
                offer
                for listing, a_to_b in self._by_pair.get(pair, ())
                if (offer := self._offer_of(listing, a_to_b)) is not None
            ]
        return offers

    def detours(self, input_mint: str, output_mint: str, clock: Clock) -> list[Detour]:
        """Return the ways through a middle token. Until they are forgotten, `clock` is always the same."""
        pair = (input_mint, output_mint)
        detours = self._detours.get(pair)
        if detours is None:
            detours = self._detours[pair] = [
                Detour(token, first, second, clock)
                for token in self._middle_tokens
                if token.mint not in pair
                and (first := self.of(input_mint, token.mint))
                and (second := self.of(token.mint, output_mint))
            ]
        return detours

    def forget(self, one_mint: str, other_mint: str) -> None:
        """Forget what this pair's pools offer in either direction, and detours with a hop through them."""
        pools = {one_mint, other_mint}
        self._offers.pop((one_mint, other_mint), None)
        self._offers.pop((other_mint, one_mint), None)
        # A hop is from a token of the order's to one that is neither.
        for pair in [pair for pair in self._detours if len(pools.intersection(pair)) == 1]:
            del self._detours[pair]

    def clear(self) -> None:
        self._offers.clear()
        self._detours.clear()


class Market:
    """Follows the pools of the tokens we know, and one wallet's balances.

    `run` does the following; everything else answers from memory at once. A market without a wallet
    quotes and nothing more.
    """

    def __init__(
        self,
        node: NodeClient,
        wallet: Pubkey | None = None,
        *,
        rules: RouteRules = RouteRules(),
        venues: Sequence[Venue[Any]] = VENUES,
        tokens: Sequence[Token] = TOKENS,
        discovery_seconds: float = DISCOVERY_SECONDS,
        unix_seconds: Callable[[], float] = time.time,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._wallet = wallet
        self._rules = rules
        self._venues = venues
        self._discovery_seconds = discovery_seconds
        self._unix_seconds = unix_seconds
        self._monotonic_seconds = monotonic_seconds
        self._mints = {token.mint: Pubkey.from_string(token.mint) for token in tokens}
        self._known_mints = {bytes(mint) for mint in self._mints.values()}
        self._always = frozenset(self._mints)
        """Mints of the tokens that are followed whether orders name them or not."""
        self._learned: dict[str, float] = {}
        """Mints of tokens that are followed as long as orders name them, and when one last did."""
        self._has_learned = asyncio.Event()
        self._learning = asyncio.Lock()
        self._token_accounts = (
            {}
            if wallet is None
            else {text: associated_token_account(wallet, mint) for text, mint in self._mints.items()}
        )
        self._by_address: dict[str, _Listing] = {}
        self._by_pair: dict[tuple[str, str], list[tuple[_Listing, bool]]] = {}
        self._by_account: dict[Pubkey, list[_Listing]] = {}
        # Of this moment: worked out when first asked for, forgotten when pools or prices change.
        self._offers = _Offers(self._by_pair, rules.middle_tokens, _Listing.offer)
        self._expected_offers = _Offers(self._by_pair, rules.middle_tokens, _Listing.expected_offer)
        self._lamport_prices: dict[str, float] = {}
        self._footprints: dict[tuple[str, bool], Footprint] = {}
        self._footprints_around: dict[tuple[Token, ...], Footprint] = {}
        # A market without a wallet measures transactions of anybody's.
        self._measured_wallet = Pubkey.from_bytes(bytes([7]) * 32) if wallet is None else wallet
        self._expected: dict[UUID, _Expected] = {}
        """By order_id."""
        self._expecting: set[_Listing] = set()
        """Pools through which they go."""
        self._price_trouble = Trouble(logger, "prices cannot be read", "prices are read again")
        self._listing_trouble = Trouble(logger, "pools cannot be listed", "pools are listed again")
        self._reads: list[list[Pubkey]] = []
        self._texts: dict[Pubkey, str] = {}
        self._data: dict[Pubkey, bytes] = {}
        self._lamports = 0
        self._moment: _Moment | None = None
        self._due = asyncio.Event()
        """It is time for a refresh."""
        self._asked = asyncio.Event()
        self._asked_time = float("-inf")
        """When somebody last asked for prices, by the loop's clock."""
        self.is_at_rest = False
        """Slots have passed that no refresh was for: nobody asked."""
        self._refreshing = asyncio.Lock()
        self._refreshed = asyncio.Event()
        self._refresh_count = 0
        self._wanted: dict[str, None] = {}
        """Mints that somebody wants learned."""
        self._is_wanted = asyncio.Event()

    async def run(self, *, follow: bool = True) -> None:
        """Follow the market for ever; failures of the node are waited out.

        Without `follow`, only which pools there are; `refresh` then reads their prices.
        """
        await self._until_done(self._discover, self._listing_trouble)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discover_new_pools())
            if follow:
                self._due.set()
                tasks.create_task(self._learn_wanted())
                tasks.create_task(self._follow_openings())
                tasks.create_task(self._follow_slots())
                tasks.create_task(self._refresh_when_due())

    async def refresh(self, max_age_seconds: float) -> None:
        """Return once prices are at most so old, however many ask at once. Raises NodeUnavailable."""
        async with self._refreshing:
            if self._reads and (self._moment is None or self._age(self._moment) > max_age_seconds):
                await self._refresh()

    async def wake(self) -> None:
        """Return once prices are as fresh as they are kept while orders come; then they are so already.

        Where the node is away they stay as they are: those that are too old are refused to whoever uses them.
        """
        self._note_asked()
        if self.is_at_rest:
            async with self._refreshing:
                # However many wait here, the first one reads for all.
                if self.is_at_rest:
                    with suppress(EngineError):
                        await self._refresh()
                    self.is_at_rest = False

    async def learn(self, tokens: Iterable[Token]) -> None:
        """Return once these tokens are followed and their pools have been read; mostly that is so already.

        Raises NodeUnavailable, also where it follows as many as it can, and asks anew the next time.
        """
        if not (unknown := self._unknown(tokens)):
            return
        async with self._learning:
            new = [mint for mint in unknown if mint not in self._learned]
            if not new:
                return
            if len(self._learned) + len(new) > MOST_LEARNED:
                raise NodeUnavailable(f"{MOST_LEARNED} tokens are followed, which is as many as can be")
            for mint in new:
                self._add(mint)
            try:
                await self._discover(new if len(new) <= _FEW else None)
                async with self._refreshing:
                    await self._refresh()
            except RpcError as error:
                self._forget(new)
                raise NodeUnavailable(f"the Solana node does not tell of a token's pools: {error}") from error
            except BaseException:
                self._forget(new)
                raise
            # Only now: whoever finds a token learned relies on its pools having been read.
            self._learned.update(dict.fromkeys(new, self._monotonic_seconds()))
            self._has_learned.set()

    def learn_soon(self, tokens: Iterable[Token]) -> None:
        """Have these tokens learned while others wait for nothing; until then nothing of them is traded."""
        if unknown := self._unknown(tokens):
            self._wanted.update(dict.fromkeys(unknown))
            self._is_wanted.set()

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

    async def wait_ready(self) -> None:
        """Return once prices are here."""
        while not self.ready:
            await self.next_refresh()

    async def next_refresh(self, after: int | None = None) -> int:
        """Return the number of the refresh after that one, once it is done; after the latest, if None."""
        self._note_asked()
        seen = self._refresh_count if after is None else after
        while self._refresh_count <= seen:
            await self._refreshed.wait()
        return self._refresh_count

    # ---- What is known now

    @property
    def ready(self) -> bool:
        """Prices and balances are here, and fresh."""
        return self._moment is not None and self._age(self._moment) <= STALE_SECONDS

    @property
    def slot(self) -> int:
        """The slot that prices and balances are of. Raises NodeUnavailable when they are too old."""
        return self._now().slot

    @property
    def blockhash(self) -> Blockhash:
        """A recent blockhash. Raises NodeUnavailable when it is too old."""
        return self._now().blockhash

    @property
    def pool_count(self) -> int:
        """Pools that can be quoted."""
        return sum(listing.offers is not None for listing in self._by_address.values())

    @property
    def wallet_lamports(self) -> int:
        """All that the wallet has of SOL, fees and rent included. Raises NodeUnavailable."""
        self._now()
        return self._lamports

    def wallet_balance(self, token: Token) -> int:
        """Return what the wallet can spend of a token, in base units; of SOL, all but fees and rent.

        Raises NodeUnavailable when it is not known, or too long ago.
        """
        self._now()
        if token == SOL:
            return max(0, self._lamports - FEE_RESERVE)
        data = self._data.get(self._token_accounts[token.mint])
        return 0 if data is None else token_amount(data)

    def price_bound(
        self,
        input_token: Token,
        output_token: Token,
        side: Side,
        amount: int,
        reach: int = routing.REACH,
    ) -> float:
        """Return a price that no order of this amount to `reach` times as much exceeds now.

        Base units of output per base unit of input; 0.0 where nothing trades. Raises NodeUnavailable on
        prices too old.
        """
        pair = (input_token.mint, output_token.mint)
        offers = self._offers.of(*pair)
        # A way round takes two legs.
        clock = self._now().clock
        detours = self._offers.detours(*pair, clock) if self._rules.max_legs > 1 else ()
        return routing.price_bound(side, amount, clock, offers, detours, reach)

    def liquidity(self, input_token: Token, output_token: Token) -> int:
        """Return what the pair's pools that are open hold of input_token together, in base units.

        Raises NodeUnavailable, also where it was never asked for before: the next refresh reads it.
        """
        clock, total, is_known = self._now().clock, 0, True
        for listing, a_to_b in self._by_pair.get((input_token.mint, output_token.mint), ()):
            if listing.offers is None or listing.offers[a_to_b].curve(clock).best_price == inf:
                continue
            if not listing.reads_vaults:
                listing.reads_vaults = True
                self._read_for(listing, self._data)
                self._plan_reads()
            vault = self._data.get(listing.keys.vault_a if a_to_b else listing.keys.vault_b)
            if vault is None:
                is_known = False
            else:
                total += token_amount(vault)
        if not is_known:
            raise NodeUnavailable("the Solana node has not told yet what the pools hold")
        return total

    def liquidity_for(self, spec: OrderSpec) -> int:
        """Return the liquidity of the order's pair if its type asks for any. Raises NodeUnavailable."""
        return self.liquidity(spec.input_token, spec.output_token) if spec.type.least_liquidity else 0

    def decide(self, spec: OrderSpec, attempt: int, slippage_bps: int) -> RoutingDecision:
        """Quote every pool of the order's pair and choose a route that one transaction holds.

        Swaps that are expected count for what they take, though not for an order that waits for its price:
        what is there, it may have.
        Raises NodeUnavailable on prices too old.
        """
        moment = self._now()
        known = self._offers if spec.waits else self._expected_offers
        offers = known.of(spec.input_token.mint, spec.output_token.mint)
        detours = known.detours(spec.input_token.mint, spec.output_token.mint, moment.clock)
        priced = spec.output_token if spec.side is Side.SELL else spec.input_token
        lamport_price = self._lamport_price(priced.mint)
        limits = Limits(
            self._rules.max_legs, lamport_price, partial(self._fits, spec.input_token, spec.output_token)
        )
        return routing.decide(spec, attempt, moment.slot, moment.clock, offers, slippage_bps, limits, detours)

    def _lamport_price(self, mint: str) -> float:
        """Return how many base units of a token a lamport is worth, where some are sold; 0 if none tells.

        Of a token that has no pool with SOL, by its price in one that has.
        """
        price = self._lamport_prices.get(mint)
        if price is None:
            price = 1.0 if mint == SOL.mint else self._rate(SOL.mint, mint, _PRICED_LAMPORTS)
            if not price:
                for token in self._rules.middle_tokens:
                    if token.mint != mint and (rate := self._rate(SOL.mint, token.mint, _PRICED_LAMPORTS)):
                        price = max(price, rate * self._rate(token.mint, mint, rate * _PRICED_LAMPORTS))
            self._lamport_prices[mint] = price
        return price

    def _rate(self, input_mint: str, output_mint: str, amount: float) -> float:
        """Return the price at which the last of so much goes to all pools together; 0 if they take less.

        Not that of any one pool: next to nothing makes one of any price, and of great depth at that price.
        """
        clock = self._now().clock
        curves = [offer.curve(clock) for offer in self._offers.of(input_mint, output_mint)]
        price = marginal_price(curves, amount, Side.SELL) if curves else None
        return 0.0 if price is None else 1 / price**2

    # ---- Swaps under way

    def expect(self, order_id: UUID, spec: OrderSpec, route: Route) -> Sequence[SwapUnderWay]:
        """Take the order's swaps as done from now on, and return them.

        Raises NodeUnavailable on prices too old.
        """
        swaps = []
        for at, leg in enumerate(route.legs):
            takes, _ = route.tokens_of_leg(at, spec.input_token, spec.output_token)
            listing = self._by_address.get(leg.pool)
            if listing is not None:  # else it is not traded any more
                a_to_b = listing.mints[0] == takes.mint
                swaps.append(SwapUnderWay(leg.pool, a_to_b, leg.input_amount, leg.price_impact_ppm))
        self.expect_swaps([(order_id, swaps)])
        return swaps

    def expect_swaps(
        self, orders: Sequence[tuple[UUID, Sequence[SwapUnderWay]]], *, seconds: float = inf
    ) -> None:
        """Take these orders' swaps as done from now on, and for so long at most.

        Those of pools that are not traded here do not matter. Raises NodeUnavailable on prices too old.
        """
        clock = self._now().clock
        end_time = self._monotonic_seconds() + seconds
        changed: dict[_Listing, None] = {}
        for order_id, swaps in orders:
            known = [
                (listing, swap) for swap in swaps if (listing := self._by_address.get(swap.pool)) is not None
            ]
            for listing, swap in known:
                listing.add_expected(swap)
                changed[listing] = None
            self._expected[order_id] = _Expected(known, end_time)
        self._expecting.update(changed)
        for listing in changed:
            if listing.reckon_expected(clock):
                self._expected_offers.forget(*listing.mints)

    def expect_sent(self, order_id: UUID) -> int | None:
        """The order's transaction was handed to the node: its swaps are soon in what is read of the pools.

        Return from which slot on; None: it has none under way.
        """
        if order_id not in self._expected:
            return None
        landed_slot = self._node.newest_slot + _LANDING_SLOTS
        self.expect_landed(order_id, landed_slot)
        return landed_slot

    def expect_landed(self, order_id: UUID, slot: int) -> None:
        """From that slot on the order's swaps are in what the pools are, or never will be."""
        expected = self._expected.get(order_id)
        if expected is not None:
            expected.landed_slot = slot

    def expect_nothing(self, order_id: UUID) -> bool:
        """The order is not under way any more; the next refresh goes by that.

        Return whether it was still expected, and not to have landed by some slot.
        """
        expected = self._expected.pop(order_id, None)
        return expected is not None and expected.landed_slot is None

    def _expect_again(self, moment: _Moment) -> None:
        """Take the swaps that are not in what was just read as done once more."""
        for listing in self._expecting:
            listing.expect_nothing()
        self._expected_offers.clear()
        self._expecting.clear()
        for order_id, expected in list(self._expected.items()):
            has_landed = expected.landed_slot is not None and expected.landed_slot <= moment.slot
            if has_landed or expected.end_time <= moment.monotonic_seconds:
                del self._expected[order_id]
                continue
            for listing, swap in expected.swaps:
                listing.add_expected(swap)
                self._expecting.add(listing)
        for listing in self._expecting:
            listing.reckon_expected(moment.clock)

    # ---- What a route takes

    def swap_instructions(self, spec: OrderSpec, route: Route, wallet: Pubkey) -> list[Instruction]:
        """Return the instructions that fill the order by this route, wrapping included.

        Raises NoRoute when a pool of the route is not traded any more.
        """
        sells = spec.side is Side.SELL
        swaps = []
        for at, leg in enumerate(route.legs):
            listing = self._listing(leg.pool)
            takes, gives = (
                self._mints[token.mint]
                for token in route.tokens_of_leg(at, spec.input_token, spec.output_token)
            )
            threshold = route.threshold_amount if leg.threshold_amount is None else leg.threshold_amount
            swaps.append(
                listing.venue.swap_instruction(
                    listing.keys,
                    self._data,
                    a_to_b=listing.keys.mint_a == takes,
                    side=spec.side,
                    amount=leg.input_amount if sells else leg.output_amount,
                    threshold_amount=threshold,
                    owner=wallet,
                    input_account=associated_token_account(wallet, takes),
                    output_account=associated_token_account(wallet, gives),
                )
            )
        return swap_instructions(
            wallet,
            self._mints[spec.input_token.mint],
            self._mints[spec.output_token.mint],
            spec.amount if sells else route.threshold_amount,
            *swaps,
            middle_mint=None if route.middle_token is None else self._mints[route.middle_token.mint],
        )

    def _fits(
        self,
        input_token: Token,
        output_token: Token,
        legs: Sequence[PoolOffer],
        middle_token: Token | None = None,
    ) -> bool:
        """Return whether one transaction holds legs through these pools."""
        tokens = (
            (input_token, output_token) if middle_token is None else (input_token, middle_token, output_token)
        )
        footprints = [self._footprint_around(tokens)]
        for at, offer in enumerate(legs):
            takes, gives = (input_token, output_token) if middle_token is None else tokens[at : at + 2]
            footprints.append(self._footprint(offer, takes, gives))
        return fits(
            self._measured_wallet,
            footprints,
            sum([self._listing(offer.address).venue.compute_units for offer in legs]),
        )

    def _footprint_around(self, tokens: tuple[Token, ...]) -> Footprint:
        footprint = self._footprints_around.get(tokens)
        if footprint is None:
            mints = [self._mints[token.mint] for token in tokens]
            around = swap_instructions(
                self._measured_wallet,
                mints[0],
                mints[-1],
                1,
                middle_mint=mints[1] if len(mints) == 3 else None,
            )
            footprint = self._footprints_around[tokens] = Footprint.of(around)
        return footprint

    def _footprint(self, offer: PoolOffer, takes: Token, gives: Token) -> Footprint:
        key = (offer.address, offer.a_to_b)
        footprint = self._footprints.get(key)
        if footprint is None:
            listing = self._listing(offer.address)
            wallet = self._measured_wallet
            swap = listing.venue.swap_instruction(
                listing.keys,
                self._data,
                a_to_b=offer.a_to_b,
                side=Side.SELL,
                amount=1,
                threshold_amount=1,
                owner=wallet,
                input_account=associated_token_account(wallet, self._mints[takes.mint]),
                output_account=associated_token_account(wallet, self._mints[gives.mint]),
            )
            footprint = self._footprints[key] = Footprint.of([swap])
        return footprint

    def compute_units(self, route: Route) -> int:
        """Return what the route's swaps use at most. Raises NoRoute when a pool is not traded any more."""
        return sum(self._listing(leg.pool).venue.compute_units for leg in route.legs)

    def _listing(self, address: str) -> _Listing:
        listing = self._by_address.get(address)
        if listing is None:
            raise NoRoute(f"pool {address} is not traded any more")
        return listing

    # ---- Following

    def _now(self) -> _Moment:
        moment = self._moment
        if moment is None:
            raise NodeUnavailable("the Solana node has not told any prices yet")
        age = self._age(moment)
        if age > STALE_SECONDS:
            raise NodeUnavailable(f"the Solana node has told no prices for {age:.0f} s")
        return moment

    def _age(self, moment: _Moment) -> float:
        return self._monotonic_seconds() - moment.monotonic_seconds

    def _note_asked(self) -> None:
        self._asked_time = asyncio.get_running_loop().time()
        self._asked.set()

    async def _follow_slots(self) -> None:
        """Have prices refreshed with every slot while somebody asks for them, else now and then."""
        loop, slot = asyncio.get_running_loop(), None
        while True:
            if loop.time() - self._asked_time <= _ASKED_SECONDS:
                slot = await self._node.next_slot(slot)
            else:
                self.is_at_rest = True
                self._asked.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REST_SECONDS):
                        await self._asked.wait()
            self._due.set()
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _refresh_when_due(self) -> None:
        while True:
            await self._due.wait()
            # Slots that pass while a refresh is under way are worth one more together.
            self._due.clear()
            await self._until_done(self._refresh_alone, self._price_trouble)

    async def _discover_new_pools(self) -> None:
        while True:
            await asyncio.sleep(self._discovery_seconds)
            await self._until_done(self._discover, self._listing_trouble)
            long_ago = self._monotonic_seconds() - FORGET_SECONDS
            self._forget([mint for mint, named in self._learned.items() if named < long_ago])

    async def _learn_wanted(self) -> None:
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            wanted, self._wanted = list(self._wanted), {}
            # One that the node refuses to tell of is not to keep the others from being learned.
            for mints in (wanted, *([mint] for mint in wanted)):
                try:
                    await self.learn([Token(mint, mint, 0) for mint in mints])
                except NodeUnavailable as error:
                    logger.info("tokens that orders name are not known yet: %s", error)
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    if len(mints) == len(wanted):
                        break

    async def _follow_openings(self) -> None:
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
                        await self._until_done(self._discover_learned, self._listing_trouble)
                    elif str(change.address) not in self._by_address:
                        self._open(change)
                    if not self._learned:
                        break
            self._has_learned.clear()

    def _open(self, change: ProgramChange) -> None:
        venue = next(venue for venue in self._venues if venue.program == change.program)
        start, length = venue.mints_slice
        mints = change.data[start : start + length]
        if mints[:32] in self._known_mints and mints[32:] in self._known_mints:
            self._list(venue, change.address, change.data)
            self._plan_reads()
            # Read it at once, and not when the next slot has passed.
            self._due.set()

    async def _until_done(self, work: Callable[[], Awaitable[None]], trouble: Trouble) -> None:
        while True:
            try:
                await work()
            except EngineError as error:
                trouble.fails(error)
            else:
                trouble.works()
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _refresh_alone(self) -> None:
        async with self._refreshing:
            await self._refresh()
            if self._asked.is_set():
                self.is_at_rest = False

    async def _discover_learned(self) -> None:
        await self._discover(list(self._learned))

    async def _discover(self, mints: Sequence[str] | None = None) -> None:
        """Find the pools of tokens we know, or of these among them.

        In two passes for any number of pools: the mints of every one, then those that count, whole.
        """
        keys = None if mints is None else [bytes(self._mints[mint]) for mint in mints]
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
                for address, mints in found
                if mints[:32] in self._known_mints
                and mints[32:] in self._known_mints
                and str(address) not in self._by_address
            ]
            _, accounts = await self._node.multiple_accounts(new)
            for address, account in zip(new, accounts, strict=True):
                # Its opening may have been announced meanwhile.
                if account is not None and str(address) not in self._by_address:
                    self._list(venue, address, account.data)
        self._plan_reads()
        logger.info("trading %d pools", len(self._by_address))

    def _list(self, venue: Venue[Any], address: Pubkey, data: bytes) -> None:
        try:
            keys = venue.keys(address, data)
        except WireError as error:
            logger.warning("pool %s of %s is passed over: %s", address, venue.kind, error)
            return
        if keys is None:
            return
        priority_fee = venue.compute_units * self._rules.priority_fee_micro_lamports // 1_000_000
        mint_a, mint_b = str(keys.mint_a), str(keys.mint_b)
        listing = _Listing(
            venue,
            keys,
            self._rules.leg_lamports + priority_fee,
            # Who waits for a new token asks what its pools hold.
            reads_vaults=mint_a not in self._always or mint_b not in self._always,
        )
        self._by_address[listing.address] = listing
        self._by_pair.setdefault((mint_a, mint_b), []).append((listing, True))
        self._by_pair.setdefault((mint_b, mint_a), []).append((listing, False))
        self._read_for(listing, {address: data})

    def _read_for(self, listing: _Listing, known: Mapping[Pubkey, bytes]) -> bool:
        """Read for a pool what it wants by what is known of it; say whether that is another set than before.

        Arrays that it has no more use for are forgotten: what is not read any more grows old.
        """
        wanted = listing.wanted(known)
        if wanted == listing.accounts:
            return False
        self._read_instead(listing, wanted)
        return True

    def _read_instead(self, listing: _Listing, wanted: tuple[Pubkey, ...]) -> None:
        before = listing.accounts
        listing.accounts = wanted
        for account in wanted:
            if account not in before:
                self._by_account.setdefault(account, []).append(listing)
        for account in before:
            if account not in wanted:
                readers = self._by_account[account]
                readers.remove(listing)
                if not readers:
                    del self._by_account[account]
                    self._texts.pop(account, None)
                    self._data.pop(account, None)

    def _add(self, mint: str) -> None:
        """Begin to follow a token."""
        key = self._mints[mint] = Pubkey.from_string(mint)
        self._known_mints.add(bytes(key))
        if self._wallet is not None:
            self._token_accounts[mint] = associated_token_account(self._wallet, key)

    def _forget(self, mints: Collection[str]) -> None:
        """Follow tokens no longer."""
        if not mints:
            return
        keys = set()
        for mint in mints:
            self._learned.pop(mint, None)
            keys.add(key := self._mints.pop(mint))
            self._known_mints.discard(bytes(key))
            account = self._token_accounts.pop(mint, None)
            if account is not None:
                self._texts.pop(account, None)
                self._data.pop(account, None)
        for listing in list(self._by_address.values()):
            if keys.isdisjoint((listing.keys.mint_a, listing.keys.mint_b)):
                continue
            del self._by_address[listing.address]
            for way, a_to_b in ((listing.mints, True), (listing.mints[::-1], False)):
                self._by_pair[way].remove((listing, a_to_b))
                if not self._by_pair[way]:
                    del self._by_pair[way]
            self._read_instead(listing, ())
        for known in (
            self._offers,
            self._expected_offers,
            self._lamport_prices,
            self._footprints,
        ):
            known.clear()
        self._footprints_around.clear()
        self._plan_reads()

    def _plan_reads(self) -> None:
        """Share out what to read. A pool's accounts stay together, so that they are all of one slot."""
        own = [CLOCK_SYSVAR]
        if self._wallet is not None:
            own += [self._wallet, *self._token_accounts.values()]
        reads = [dict.fromkeys(own)]
        for listing in self._by_address.values():
            wanted = dict.fromkeys((*reads[-1], *listing.accounts))
            if len(wanted) > MAX_ACCOUNTS:
                wanted = dict.fromkeys(listing.accounts)
                reads.append(wanted)
            reads[-1] = wanted
        self._reads = [list(wanted) for wanted in reads]

    async def _refresh(self) -> None:
        """Read every account once, in one JSON-RPC batch, and decode those that changed."""
        reads = self._reads
        # The turn of the loop that they share makes them one request.
        blockhash, answers = await asyncio.gather(
            self._node.latest_blockhash(),
            asyncio.gather(*(self._node.multiple_accounts(chunk) for chunk in reads)),
        )
        # What was forgotten meanwhile would stay, and be taken for read when it is followed again.
        wanted = None if self._reads is reads else set(chain.from_iterable(self._reads))
        changed: dict[_Listing, None] = {}
        slots = []
        for chunk, (slot, accounts) in zip(reads, answers, strict=True):
            slots.append(slot)
            for address, account in zip(chunk, accounts, strict=True):
                if account is not None and self._texts.get(address) == account.encoded[0]:
                    continue  # most of them
                if wanted is not None and address not in wanted:
                    continue
                # Compared with None, an address takes 3 us.
                if self._wallet is not None and address == self._wallet:
                    self._lamports = 0 if account is None else account.lamports
                    continue
                # One without data is none: anybody can send lamports to where a pool has no account yet.
                if account is not None and account.encoded[0]:
                    self._data[address] = account.data
                    self._texts[address] = account.data_base64
                elif self._texts.pop(address, None) is not None:
                    del self._data[address]
                else:
                    continue
                changed.update(dict.fromkeys(self._by_account.get(address, ())))
        # New arrays are read from the next refresh on, with the rest of their pool: all of one slot.
        moved = [listing for listing in changed if self._read_for(listing, self._data)]
        if moved:
            self._plan_reads()
        for listing in changed:
            listing.read(self._data)
        slot = min(slots)
        moment = _Moment(slot, self._chain_clock(slot), blockhash, self._monotonic_seconds())
        self._moment = moment
        self._expect_again(moment)
        for known in (self._offers, self._lamport_prices, self._footprints):
            known.clear()
        self._refresh_count += 1
        # Wakes those who wait now; who asks later waits for the next one.
        self._refreshed.set()
        self._refreshed.clear()

    def _chain_clock(self, slot: int) -> Clock:
        data = self._data.get(CLOCK_SYSVAR)
        if data is None:
            return Clock(slot, int(self._unix_seconds()))
        sysvar = CLOCK.decode(data)
        return Clock(sysvar.slot, sysvar.unix_timestamp)


_MOVE_TOKENS: Final = frozenset({TOKEN_PROGRAM, SYSTEM_PROGRAM, ASSOCIATED_TOKEN_PROGRAM})
_INSUFFICIENT_FUNDS: Final = 1
"""An error of each of these."""


def explain_error(err: Any, raw_transaction: bytes) -> tuple[FailureReason, str]:
    """Return what the chain's error of our transaction means for its order, with a sentence for its user.

    `err` is a TransactionError as JSON, as getSignatureStatuses and getTransaction have it. One that keeps a
    transaction from landing at all (no fee, an old blockhash) is not among them.
    """
    name = next(iter(err)) if isinstance(err, dict) else err
    if name == "InsufficientFundsForRent":
        return FailureReason.INSUFFICIENT_FUNDS, "the wallet has too little SOL for the fees"
    if name != "InstructionError":
        return FailureReason.TRANSACTION_REVERTED, f"the transaction was reverted: {err}"
    index, cause = err["InstructionError"]
    program, data = called_instruction(raw_transaction, index) or (None, b"")
    code = cause.get("Custom") if isinstance(cause, dict) else None
    venue = None if program is None else VENUE_BY_PROGRAM.get(program)
    if venue is not None and isinstance(code, int):
        return venue.failure_reason(code, data)
    if program in _MOVE_TOKENS and code == _INSUFFICIENT_FUNDS:
        return FailureReason.INSUFFICIENT_FUNDS, "the wallet has too little of the input token"
    return (
        FailureReason.TRANSACTION_REVERTED,
        f"the transaction was reverted: instruction {index} ended with {cause}",
    )
