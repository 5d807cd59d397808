"""Orders of any tokens, sides, amounts and prices; and texts that are no price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import Phase, settings
from hypothesis import strategies as st

from engine.domain.amounts import MAX_AMOUNT, parse_price
from engine.domain.order import OrderSpec, Route, RouteLeg, Side
from engine.domain.order_types import MARKET, OrderType
from engine.domain.tokens import Token

NO_DECIMALS: Final = [
    "NaN",
    "sNaN",
    "Infinity",
    "1e400",
    "1E5",
    "1_000",
    "1,5",
    "１５０",  # noqa: RUF001  full-width digits
    "-1",
    "+1",
    "−1",  # noqa: RUF001  a minus sign, not a hyphen
    " 1",
    "1\n",
    ".5",
    "5.",
    "0x10",
    "9" * 100_000 + ".",
]
"""Texts that are no plain decimal."""

ALL_PHASES: Final = tuple(Phase)
GENERATE: Final = (Phase.generate,)
"""Enough for a mutant: the least example of what it does wrong is of no use."""

tokens = st.builds(Token, st.just("TOKEN"), st.just("mint"), st.integers(0, 18))
amounts = st.one_of(
    st.integers(1, MAX_AMOUNT), st.integers(0, 63).map(lambda bits: 2**bits), st.integers(1, 1_000)
)
price_texts = st.one_of(
    # In quintillionths, written with all zeros and some more.
    st.builds(
        lambda value, width: f"{value // 10**18:0{width}}.{value % 10**18:018}",
        st.one_of(
            st.integers(1, 10**38 - 1),
            st.integers(0, 37).map(lambda zeros: 10**zeros),
            st.integers(1, 10**6).map(lambda cents: cents * 10**16),
        ),
        st.integers(1, 20),
    ),
    st.integers(1, 10**20 - 1).map(str),
)
prices = price_texts.map(parse_price)


def checked(phases: Sequence[Phase]) -> settings:
    """Reproducible everywhere, and no time limit: a slow machine is not a wrong result."""
    return settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
    )


def a_spec(
    side: Side, amount: int, input_token: Token, output_token: Token, order_type: OrderType = MARKET
) -> OrderSpec:
    return OrderSpec(side, amount, input_token, output_token, type=order_type)


def a_route(input_amount: int, output_amount: int) -> Route:
    """Return a route of one leg; thresholds are of no account here."""
    leg = RouteLeg("Raydium", "raydium_cpmm", "pool", input_amount, output_amount)
    return Route((leg,), input_amount, output_amount, 0)
