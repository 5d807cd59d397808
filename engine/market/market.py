"""The market as this process sees it: every pool and the wallet, refreshed in bulk once a slot.

Orders are quoted from memory. However many orders there are, a slot costs one JSON-RPC batch, and only
accounts whose bytes changed are decoded. While nobody asks it rests, and who asks first waits for a refresh.
Who quotes now and then only, refreshes when it quotes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final

from solders.pubkey import Pubkey

from engine.domain import routing
from engine.domain.errors import EngineError, NodeUnavailable
from engine.domain.order import OrderSpec, Route, RoutingDecision, Side
from engine.domain.pools.pool import Clock
from engine.domain.routing import Limits
from engine.domain.routing.sweep import marginal_price
from engine.domain.tokens import SOL, TOKENS, Token
from engine.market.accounts import Accounts
from engine.market.discovery import DISCOVERY_SECONDS, Discovery
from engine.market.listing import Listing
from engine.market.moment import Moment, Now
from engine.market.offers import Offers
from engine.market.patience import until_done
from engine.market.pools import Pools
from engine.market.route_instructions import RouteInstructions
from engine.market.rules import DEFAULT_RULES, RouteRules
from engine.market.under_way import SwapsUnderWay
from engine.solana.accounts import CLOCK, token_amount
from engine.solana.instructions import Instruction
from engine.solana.programs import CLOCK_SYSVAR
from engine.solana.rpc import NodeClient
from engine.solana.transactions import FEE_RESERVE, Blockhash
from engine.telemetry import Trouble
from engine.venues import VENUES
from engine.venues.venue import Venue

logger = logging.getLogger(__name__)

_PRICED_LAMPORTS: Final = 100_000_000
"""So many are sold, in thought, to tell what a lamport is worth: thousands of times what a leg costs."""
_REFRESH_SECONDS: Final = 0.1
"""Refreshes are at least so far apart. A slot takes 0.4 s; simulated ones can be shorter than is any use."""
_REST_SECONDS: Final = 1.5
"""How much farther apart they are while nobody asks: a third of STALE_SECONDS, with the refresh itself."""
_ASKED_SECONDS: Final = 1.0
"""For so long after somebody asked, prices are refreshed with every slot."""


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
        rules: RouteRules = DEFAULT_RULES,
        venues: Sequence[Venue[Any]] = VENUES,
        tokens: Sequence[Token] = TOKENS,
        discovery_seconds: float = DISCOVERY_SECONDS,
        unix_seconds: Callable[[], float] = time.time,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._rules = rules
        self._unix_seconds = unix_seconds
        self._now = Now(monotonic_seconds)
        self._due = asyncio.Event()
        """It is time for a refresh."""
        self._accounts = Accounts(wallet)
        self._pools = Pools(self._accounts)
        self._discovery = Discovery(
            node,
            wallet,
            self._pools,
            self._accounts,
            rules=rules,
            venues=venues,
            tokens=tokens,
            seconds=discovery_seconds,
            monotonic_seconds=monotonic_seconds,
            read_now=self._read_now,
            read_soon=self._due.set,
            forget_offers=self._forget_offers,
        )
        # Of this moment: worked out when first asked for, forgotten when pools or prices change.
        self._offers = Offers(self._pools.by_pair, rules.middle_tokens, Listing.offer)
        self._expected_offers = Offers(self._pools.by_pair, rules.middle_tokens, Listing.expected_offer)
        self._lamport_prices: dict[str, float] = {}
        self._instructions = RouteInstructions(
            self._pools,
            self._discovery.mints,
            self._accounts.data,
            # A market without a wallet measures transactions of anybody's.
            Pubkey.from_bytes(bytes([7]) * 32) if wallet is None else wallet,
        )
        self.under_way: Final = SwapsUnderWay(node, self._pools, self._expected_offers, self._now)
        """Swaps that `decide` takes as done."""
        self._trouble = Trouble(logger, "prices cannot be read", "prices are read again")
        self._asked = asyncio.Event()
        self._asked_time = float("-inf")
        """When somebody last asked for prices, by the loop's clock."""
        self.is_at_rest = False
        """Slots have passed that no refresh was for: nobody asked."""
        self._refreshing = asyncio.Lock()
        self._refreshed = asyncio.Event()
        self._refresh_count = 0

    async def run(self, *, follow: bool = True) -> None:
        """Follow the market for ever; failures of the node are waited out.

        Without `follow`, only which pools there are; `refresh` then reads their prices.
        """
        await self._discovery.find_pools()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discovery.follow_pools())
            if follow:
                self._due.set()
                tasks.create_task(self._discovery.learn_wanted())
                tasks.create_task(self._discovery.follow_openings())
                tasks.create_task(self._discovery.choose_when_crowded())
                tasks.create_task(self._follow_slots())
                tasks.create_task(self._refresh_when_due())

    async def refresh(self, max_age_seconds: float) -> None:
        """Return once prices are at most so old, however many ask at once. Raises NodeUnavailable."""
        async with self._refreshing:
            if self._accounts.reads and self._now.age > max_age_seconds:
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

        Raises NodeUnavailable, and asks anew the next time; TooManyTokens, with as many followed as can be.
        """
        await self._discovery.learn(tokens)

    def learn_soon(self, tokens: Iterable[Token]) -> None:
        """Have these tokens learned while others wait for nothing; until then nothing of them is traded."""
        self._discovery.learn_soon(tokens)

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
        return self._now.is_fresh

    @property
    def slot(self) -> int:
        """The slot that prices and balances are of. Raises NodeUnavailable when they are too old."""
        return self._now.get().slot

    @property
    def blockhash(self) -> Blockhash:
        """A recent blockhash. Raises NodeUnavailable when it is too old."""
        return self._now.get().blockhash

    @property
    def pool_count(self) -> int:
        """Pools that can be quoted."""
        return sum(listing.offers is not None for listing in self._pools.traded)

    @property
    def wallet_lamports(self) -> int:
        """All that the wallet has of SOL, fees and rent included. Raises NodeUnavailable."""
        self._now.get()
        return self._accounts.wallet_lamports

    def wallet_balance(self, token: Token) -> int:
        """Return what the wallet can spend of a token, in base units; of SOL, all but fees and rent.

        Raises NodeUnavailable when it is not known, or too long ago.
        """
        self._now.get()
        if token == SOL:
            return max(0, self._accounts.wallet_lamports - FEE_RESERVE)
        data = self._accounts.data.get(self._discovery.token_accounts[token.mint])
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
        clock = self._now.get().clock
        detours = self._offers.detours(*pair, clock) if self._rules.max_legs > 1 else ()
        return routing.price_bound(side, amount, clock, offers, detours, reach)

    def liquidity(self, input_token: Token, output_token: Token) -> int:
        """Return what the pair's pools that are open hold of input_token together, in base units.

        Raises NodeUnavailable, also where it was never asked for before: the next refresh reads it.
        """
        clock, total, is_known = self._now.get().clock, 0, True
        for listing, a_to_b in self._pools.by_pair.get((input_token.mint, output_token.mint), ()):
            if listing.offers is None or listing.offers[a_to_b].curve(clock).best_price == inf:
                continue
            if not listing.reads_vaults:
                listing.reads_vaults = True
                self._accounts.read_more(listing)
            vault = self._accounts.data.get(listing.vault_of(input_token.mint))
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

        Swaps under way count for what they take. Raises NodeUnavailable on prices too old.
        """
        moment = self._now.get()
        offers = self._expected_offers.of(spec.input_token.mint, spec.output_token.mint)
        detours = self._expected_offers.detours(spec.input_token.mint, spec.output_token.mint, moment.clock)
        priced = spec.output_token if spec.side is Side.SELL else spec.input_token
        lamport_price = self._lamport_price(priced.mint)
        limits = Limits(
            self._rules.max_legs,
            lamport_price,
            partial(self._instructions.fits, spec.input_token, spec.output_token),
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
        clock = self._now.get().clock
        curves = [offer.curve(clock) for offer in self._offers.of(input_mint, output_mint)]
        price = marginal_price(curves, amount, Side.SELL) if curves else None
        return 0.0 if price is None else 1 / price**2

    # ---- What a route takes

    def swap_instructions(self, spec: OrderSpec, route: Route, wallet: Pubkey) -> list[Instruction]:
        """Return the instructions that fill the order by this route, wrapping included.

        Raises NoRoute when a pool of the route is not traded any more.
        """
        return self._instructions.of(spec, route, wallet)

    def compute_units(self, route: Route) -> int:
        """Return what the route's swaps use at most. Raises NoRoute when a pool is not traded any more."""
        return self._instructions.compute_units(route)

    # ---- Following

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
            await until_done(self._refresh_alone, self._trouble)

    async def _refresh_alone(self) -> None:
        async with self._refreshing:
            await self._refresh()
            if self._asked.is_set():
                self.is_at_rest = False

    async def _read_now(self) -> None:
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        """Read every account once, in one JSON-RPC batch, and decode those that changed."""
        reads = self._accounts.reads
        # The turn of the loop that they share makes them one request.
        blockhash, answers = await asyncio.gather(
            self._node.latest_blockhash(),
            asyncio.gather(*(self._node.multiple_accounts(group) for group in reads)),
        )
        slot = self._accounts.take(reads, answers)
        moment = Moment(slot, self._chain_clock(slot), blockhash, self._now.monotonic_seconds())
        self._now.set(moment)
        self.under_way.read(moment)
        self._offers.clear()
        self._lamport_prices.clear()
        self._instructions.forget_swaps()
        self._refresh_count += 1
        # Wakes those who wait now; who asks later waits for the next one.
        self._refreshed.set()
        self._refreshed.clear()

    def _forget_offers(self) -> None:
        self._offers.clear()
        self._expected_offers.clear()
        self._lamport_prices.clear()
        self._instructions.forget()

    def _chain_clock(self, slot: int) -> Clock:
        data = self._accounts.data.get(CLOCK_SYSVAR)
        if data is None:
            return Clock(slot, int(self._unix_seconds()))
        sysvar = CLOCK.decode(data)
        return Clock(sysvar.slot, sysvar.unix_timestamp)
