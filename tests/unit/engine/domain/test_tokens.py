"""Tokens are found by symbol or mint, and every mint is a real address."""

from __future__ import annotations

import pytest

from engine.domain.tokens import SOL, TOKENS, Token, find_token

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token.symbol)
def test_a_token_is_found_by_symbol_and_by_mint(token: Token) -> None:
    assert find_token(token.symbol) is token
    assert find_token(token.mint) is token


@pytest.mark.parametrize("name", ["", "sol", "Sol", " SOL", "SOL ", "DOGE", SOL.mint.lower(), SOL.mint[:-1]])
def test_nothing_else_names_a_token(name: str) -> None:
    assert find_token(name) is None


def test_no_two_tokens_share_a_name() -> None:
    assert len({name for token in TOKENS for name in (token.symbol, token.mint)}) == 2 * len(TOKENS)


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token.symbol)
def test_a_mint_is_the_base58_of_32_bytes(token: Token) -> None:
    number = 0
    for character in token.mint:
        number = number * 58 + ALPHABET.index(character)
    leading_zeros = len(token.mint) - len(token.mint.lstrip("1"))
    assert leading_zeros + (number.bit_length() + 7) // 8 == 32


@pytest.mark.parametrize(
    ("symbol", "decimals"), [("SOL", 9), ("USDC", 6), ("USDT", 6), ("BONK", 5), ("JUP", 6), ("RAY", 6)]
)
def test_decimals_are_those_of_the_mint_on_mainnet(symbol: str, decimals: int) -> None:
    token = find_token(symbol)
    assert token is not None
    assert token.decimals == decimals
