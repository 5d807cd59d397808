"""JSON-RPC of launches: which there are, another one on request, and more or less in a pool."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isfinite
from typing import Any, Final

from solders.pubkey import Pubkey

from engine.domain.tokens import SOL, TOKENS, Token, find_token
from simnet.accounts import is_made, is_mint, mint_decimals
from simnet.chain import Chain
from simnet.launches import (
    REQUESTED_TIERS,
    Launch,
    pool_of,
    usual_decimals,
    usual_kind,
)
from simnet.liquidity import KINDS, LiquidityError, set_liquidity
from simnet.questions import invalid, parse_address, parse_named, parse_options, parse_whole
from simnet.shapes import Json, address_text
from simnet.supply import SupplyError

_MOST_LISTED: Final = 100
_USUALLY_LISTED: Final = 10
_MOST_DECIMALS: Final = 12
_MOST_SLOTS: Final = 10_000_000
_MOST_AMOUNT: Final = 2**63 - 1


class LaunchRpc:
    """Methods that only a simulation can have."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.methods: dict[str, Callable[[list[Any]], Any]] = {
            "simnet_launch": self.simnet_launch,
            "simnet_launches": self.simnet_launches,
            "simnet_liquidity": self.simnet_liquidity,
        }

    def simnet_launches(self, params: list[Any]) -> list[Json]:
        """{count}: the newest launches, and the next ones; so many of each, by the slots they open in."""
        count = parse_whole(parse_options(params, 0).get("count", _USUALLY_LISTED), "count", 1, _MOST_LISTED)
        return [self._launch_json(each) for each in self._chain.launches.listed(self._chain.slot, count)]

    def simnet_launch(self, params: list[Any]) -> Json:
        """{quote, quoteAmount, price, kind, decimals, mint, slots}: launch a token; returns the launch.

        Its pool opens `slots` slots from now (0, or left out: at once) with `quoteAmount` base units of the
        token `quote` (a symbol, SOL if left out), at `price` quote tokens a launched token. The mint is made
        at once; `mint` names one there is instead, for another pool of the same token. Whatever else is left
        out follows from the seed and how many were launched on request before.
        """
        asked = parse_named(params, "quoteAmount")
        launches = self._chain.launches
        index = len(launches.requested) + 1
        quote = _quote(asked.get("quote", SOL.symbol))
        quote_amount = parse_whole(asked["quoteAmount"], "quoteAmount", 1, _MOST_AMOUNT)
        slots = parse_whole(asked.get("slots", 0), "slots", 0, _MOST_SLOTS)
        kind = asked.get("kind", usual_kind(index))
        if kind not in KINDS:
            raise invalid(f"kind must be one of {', '.join(KINDS)}")
        mint, decimals = self._mint(asked, index)
        if mint == bytes(Pubkey.from_string(quote.mint)):
            raise invalid("mint is the quote token's own")
        if "price" in asked:
            whole_quote = Fraction(quote_amount, 10**quote.decimals)
            base_amount = int(whole_quote / _price(asked["price"]) * 10**decimals)
        else:
            base_amount = launches.usual_base_tokens(index) * 10**decimals
        if not 1 <= base_amount <= _MOST_AMOUNT:
            raise invalid(
                f"the pool would open with {base_amount} base units of the launched token;"
                f" must be from 1 to {_MOST_AMOUNT}: change price, quoteAmount or decimals"
            )
        launch = self._with_free_tier(
            lambda tier: Launch(
                index=index,
                requested=True,
                mint=mint,
                decimals=decimals,
                quote_mint=quote.mint,
                kind=kind,
                tier=tier,
                base_amount=base_amount,
                quote_amount=quote_amount,
                slot=self._chain.slot + slots,
            )
        )
        try:
            self._chain.launch(launch)
        except SupplyError as error:
            raise invalid(str(error)) from None
        return self._launch_json(launch)

    def simnet_liquidity(self, params: list[Any]) -> Json:
        """{pool, quoteAmount}: bring a pool to so many base units of its quote token, at its present price.

        More than now or less; both sides change, from nowhere. Returns what the pool then trades with.
        """
        asked = parse_named(params, "pool", "quoteAmount")
        pool = self._chain.market.find(parse_address(asked["pool"]))
        if pool is None:
            raise invalid("there is no such pool; simnet_pools lists them")
        quote_amount = parse_whole(asked["quoteAmount"], "quoteAmount", 1, _MOST_AMOUNT)
        try:
            self._chain.change(lambda view, _clock: set_liquidity(view, pool, quote_amount))
        except LiquidityError as error:
            raise invalid(str(error)) from None
        return {"slot": self._chain.slot, "pool": pool.name, "quoteAmount": str(quote_amount)}

    def _mint(self, asked: Json, index: int) -> tuple[bytes, int]:
        """Return the launched token's mint address and its decimals."""
        if "mint" not in asked:
            decimals = asked.get("decimals", usual_decimals(index))
            return self._chain.launches.new_mint_address(index), parse_whole(
                decimals, "decimals", 0, _MOST_DECIMALS
            )
        mint = parse_address(asked["mint"])
        account = self._chain.accounts.get(mint)
        if account is None or not is_mint(account):
            raise invalid(f"{address_text(mint)} is no mint; leave mint out for a new one")
        decimals = mint_decimals(account)
        if asked.get("decimals", decimals) != decimals:
            raise invalid(f"decimals of that mint are {decimals}")
        return mint, decimals

    def _with_free_tier(self, make: Callable[[int], Launch]) -> Launch:
        """Return the launch as the first pool of its token, kind and quote that there is not yet."""
        waiting = self._chain.launches.waiting_pools
        for tier in REQUESTED_TIERS:
            launch = make(tier)
            pool = pool_of(launch).keys.pool
            if not is_made(self._chain.accounts.get(bytes(pool))) and pool not in waiting:
                return launch
        raise invalid(
            f"there are {len(REQUESTED_TIERS)} such pools of that token already; take another kind or quote"
        )

    def _launch_json(self, launch: Launch) -> Json:
        pool = pool_of(launch)
        price = Fraction(launch.quote_amount, 10**launch.quote.decimals) / Fraction(
            launch.base_amount, 10**launch.decimals
        )
        return {
            "index": launch.index,
            "requested": launch.requested,
            "mint": address_text(launch.mint),
            "decimals": launch.decimals,
            "quote": launch.quote.symbol,
            "pool": pool.name,
            "venue": pool.venue.name,
            "kind": launch.kind,
            "slot": launch.slot,
            "open": is_made(self._chain.accounts.get(bytes(pool.keys.pool))),
            "price": float(price),
            "baseAmount": str(launch.base_amount),
            "quoteAmount": str(launch.quote_amount),
            "liquidity": [{"slot": slot, "quoteAmount": str(amount)} for slot, amount in launch.growth],
        }


def _quote(asked: Any) -> Token:
    token = find_token(asked) if isinstance(asked, str) else None
    if token is None:
        raise invalid(f"quote must be one of {', '.join(each.symbol for each in TOKENS)}")
    return token


def _price(asked: Any) -> Fraction:
    """Return a price given as a number or as decimal text."""
    try:
        # A float first: text of a few letters can name a number that no memory holds.
        if isinstance(asked, bool) or not isinstance(asked, int | float | str):
            raise ValueError
        rough = float(asked)
        if not isfinite(rough) or not 1e-18 <= rough <= 1e18:
            raise ValueError
        return Fraction(str(asked))
    except (ValueError, OverflowError):
        raise invalid("price must be a number from 1e-18 to 1e18") from None
