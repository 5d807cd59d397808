"""Tokens: symbol, mint address, decimals.

Those that are known by a symbol are listed here; any other token of the chain is known by its mint address,
which then stands for the symbol too. Mint addresses are those of Solana mainnet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Token:
    symbol: str
    """As users read it; of a token that is not listed here, its mint."""
    mint: str
    """Base58 address of the mint account."""
    decimals: int
    """One whole token is 10**decimals base units."""


SOL: Final = Token("SOL", "So11111111111111111111111111111111111111112", 9)
USDC: Final = Token("USDC", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", 6)
USDT: Final = Token("USDT", "Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB", 6)
BONK: Final = Token("BONK", "DezXAZ8z7PnrnRJjz3wXBoRgixCa6xjnB7YaB1pPB263", 5)
JUP: Final = Token("JUP", "JUPyiwrYJFskUPiHa7hkeR8VUtAeFoSYbKedZNsDvCN", 6)
RAY: Final = Token("RAY", "4k3Dyjzvzp8eMZWUXbBCjEvwSkkk59S5iCNLY3QrkX6R", 6)

TOKENS: Final = (SOL, USDC, USDT, BONK, JUP, RAY)

_BY_NAME: Final = {token.symbol: token for token in TOKENS} | {token.mint: token for token in TOKENS}


def find_token(symbol_or_mint: str) -> Token | None:
    """Return the token of that symbol (case matters) or mint address; None if it is not known."""
    return _BY_NAME.get(symbol_or_mint)


def token_of_mint(mint: str, decimals: int) -> Token:
    """Return the token of a mint address whose decimals are known from the chain."""
    return _BY_NAME.get(mint) or Token(mint, mint, decimals)
