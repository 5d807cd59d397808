"""The accounts before the first slot: mints, pools of every venue, and the few wallets that simnet acts with.

Everything follows from the seed: the same seed makes the same addresses and the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from engine.domain.tokens import BONK, JUP, RAY, SOL, TOKENS, USDC, USDT, Token
from engine.venues import VENUES, meteora_damm_v2
from engine.venues.venue import NewAccount, PoolKeys, Venue
from simnet.accounts import (
    TOKEN,
    Account,
    new_mint,
    new_token_account,
    rent_exempt_minimum,
    token_balance,
    token_mint,
    token_owner,
)
from simnet.programs.associated_token import address_of

PRICES: Final = {
    SOL: 105_500_000_000_000,
    USDC: 1_000_000_000_000,
    USDT: 999_700_000_000,
    BONK: 22_700_000,
    JUP: 482_000_000_000,
    RAY: 2_140_000_000_000,
}
"""Picodollars a whole token, about which the market moves."""

FEES_PPM: Final = (2500, 1000, 3000, 500)
"""By the index of a pool's configuration."""

_PAIRS: Final[tuple[tuple[Token, Token, tuple[int, ...]], ...]] = (
    # Thousands of dollars on each side, for each figure one pool of every venue that trades the pair.
    (SOL, USDC, (4200, 1100)),
    (SOL, USDT, (1500,)),
    (SOL, BONK, (700,)),
    (SOL, JUP, (600,)),
    (SOL, RAY, (500,)),
    (USDT, USDC, (3000,)),
    (BONK, USDC, (450,)),
    (JUP, USDC, (800,)),
    (RAY, USDC, (650,)),
)

_MAIN_PAIRS: Final = frozenset({(SOL, USDC), (SOL, BONK), (USDT, USDC)})
_FOR_MAIN_PAIRS: Final = frozenset({"meteora_dlmm", "raydium_amm_v4", "raydium_clmm"})
"""Kinds that trade the main pairs alone, with one pool: most have arrays of 10 kB to be read every slot."""
_DEPTH_PERCENT: Final[Mapping[str, int]] = {
    "meteora_damm_v2": 100,
    "meteora_dlmm": 10,
    "raydium_amm_v4": 60,
    "raydium_clmm": 8,
    "raydium_cpmm": 77,
}
"""How much of a pair's depth a venue has, by kind; others half of it. In bins and ticks it goes farther."""
_RANGE_DEPTH_PERCENT: Final = 9
"""The same of the one pool for each main pair that Meteora DAMM v2 trades in a price range."""
_RANGE_TIER: Final = 3
"""Its configuration: one that no pool of the same program and pair has."""

_FAUCET_LAMPORTS: Final = 500_000_000 * 10**9
_MARKET_HOLDS: Final = 10**18
"""Base units of each token. A fee at a time it all ends up in the pools, after years."""


@dataclass(frozen=True, slots=True)
class GenesisPool:
    """A pool, and what the market knows of it."""

    name: str
    """Its address, as text."""
    venue: Venue[Any]
    keys: PoolKeys
    base: Token
    quote: Token
    a_is_base: bool
    """Whether the program's first mint is the pair's first token."""
    fee_ppm: int


@dataclass(frozen=True, slots=True)
class Genesis:
    accounts: dict[bytes, Account]
    pools: tuple[GenesisPool, ...]
    faucet: Keypair
    """Pays airdrops."""
    market: Pubkey
    """Trades with the pools."""
    fee_collector: bytes
    """Where fees go, so that no lamport is lost."""


def wallet_of(seed: int, name: str) -> Keypair:
    """Return the keypair of one of simnet's own wallets."""
    return Keypair.from_seed(sha256(f"simnet {seed} {name}".encode()).digest())


def make_genesis(seed: int) -> Genesis:
    """Return the chain before its first slot."""
    faucet = wallet_of(seed, "faucet")
    market = wallet_of(seed, "market").pubkey()
    fee_collector = bytes(wallet_of(seed, "fees").pubkey())
    accounts: dict[bytes, Account] = {
        bytes(faucet.pubkey()): Account(_FAUCET_LAMPORTS),
        bytes(market): Account(10**9),
        fee_collector: Account(10**9),
    }
    for token in TOKENS:
        mint = _key(token)
        accounts[address_of(bytes(market), mint)] = new_token_account(mint, bytes(market), _MARKET_HOLDS)

    pools = []
    for base, quote, depths in _PAIRS:
        for rank, depth in enumerate(depths):
            for order, venue in enumerate(VENUES):
                if venue.kind in _FOR_MAIN_PAIRS and (rank or (base, quote) not in _MAIN_PAIRS):
                    continue
                # Depths and fees differ, so that which venue is best depends on the size.
                tier = (rank * len(VENUES) + order) % len(FEES_PPM)
                dollars = depth * _DEPTH_PERCENT.get(venue.kind, 50) * 10**13
                amounts = _amounts(base, quote, dollars)
                pools.append(make_pool(venue, venue.new_pool, base, quote, amounts, tier, accounts))
        if (base, quote) in _MAIN_PAIRS:
            dollars = depths[0] * _RANGE_DEPTH_PERCENT * 10**13
            make = meteora_damm_v2.VENUE.new_range_pool
            amounts = _amounts(base, quote, dollars)
            pools.append(make_pool(meteora_damm_v2.VENUE, make, base, quote, amounts, _RANGE_TIER, accounts))

    for token in TOKENS:
        supply = sum(
            token_balance(account)
            for account in accounts.values()
            if account.owner == TOKEN and token_mint(account) == _key(token)
        )
        accounts[_key(token)] = new_mint(token.decimals, supply)
    return Genesis(accounts, tuple(pools), faucet, market, fee_collector)


def _key(token: Token) -> bytes:
    return bytes(Pubkey.from_string(token.mint))


def _amounts(base: Token, quote: Token, picodollars: int) -> tuple[int, int]:
    base_amount, quote_amount = (picodollars * 10**token.decimals // PRICES[token] for token in (base, quote))
    return base_amount, quote_amount


def make_pool(
    venue: Venue[Any],
    make: Callable[..., tuple[Pubkey, dict[Pubkey, NewAccount]]],
    base: Token,
    quote: Token,
    amounts: tuple[int, int],
    tier: int,
    accounts: dict[bytes, Account],
) -> GenesisPool:
    """Return a new pool that `make`, of its venue, makes; what it consists of is added to the accounts.

    `amounts` are base units of base and quote; `tier` (an index into FEES_PPM) tells pools of one pair and
    program apart. Supplies of mints are left as they are.
    """
    pool, made = make(
        Pubkey.from_string(base.mint), Pubkey.from_string(quote.mint), *amounts, FEES_PPM[tier], index=tier
    )
    for address, new in made.items():
        account = Account(rent_exempt_minimum(len(new.data)), bytes(new.owner), new.data)
        if account.owner == TOKEN:
            # Again, as a wrapped-SOL vault's lamports are its balance.
            account = new_token_account(token_mint(account), token_owner(account), token_balance(account))
        accounts[bytes(address)] = account
    keys = venue.keys(pool, made[pool].data)
    assert keys is not None
    return GenesisPool(str(pool), venue, keys, base, quote, str(keys.mint_a) == base.mint, FEES_PPM[tier])
