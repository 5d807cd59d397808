"""Amounts and prices: decimal text outside, integers in base units inside, binary floating point nowhere.

An amount is a u64 on chain, so 1 .. 2**64 - 1 base units. A price that a client names is a Decimal, exactly
what was written, and meets amounts as a fraction of integers.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

from engine.domain.tokens import Token

MAX_AMOUNT: Final = 2**64 - 1
"""In base units."""

# Length and shape are checked before anything parses the text: `int(Decimal("1e300000"))` takes
# seconds, and Decimal accepts "1_000", " 1 " and full-width digits.
_PLAIN: Final = re.compile(r"([0-9]+)(?:\.([0-9]+))?", re.ASCII)
_MOST_DIGITS: Final = 20
"""Before the point: as many as 2**64 - 1 has."""
_MOST_DECIMALS: Final = 18
_PRICE: Final = Context(prec=12, rounding=ROUND_HALF_EVEN)


def parse_amount(text: str, token: Token) -> int:
    """Return the base units that a decimal number of whole tokens stands for.

    Raises ValueError with a sentence for the user: not a plain decimal, longer than any, more decimals
    than the token has, zero, or more than 2**64 - 1 base units.
    """
    _check_decimal(text)
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    if len(fraction) > token.decimals:
        raise ValueError(f"was {text}; {token.symbol} has at most {token.decimals} decimals")
    amount = int(whole + fraction.ljust(token.decimals, "0"))
    if amount == 0:
        raise ValueError(f"was {text}; must be greater than zero")
    if amount > MAX_AMOUNT:
        raise ValueError(
            f"was {text}; at most {format_amount(MAX_AMOUNT, token)} {token.symbol} fit on chain"
        )
    return amount


def parse_price(text: str) -> Decimal:
    """Return the price that plain decimal text stands for, without trailing zeros.

    Raises ValueError with a sentence for the user: not a plain decimal, longer than any, or zero.
    """
    _check_decimal(text)
    price = Decimal(text.rstrip("0").rstrip(".") if "." in text else text)
    if not price:
        raise ValueError(f"was {text}; must be greater than zero")
    return price


def least_output(
    input_amount: int, price: Decimal, input_token: Token, output_token: Token, *, inverse: bool = False
) -> int:
    """Return the least output in base units by which the input brings the price, rounded up.

    The price is output_token per input_token in whole tokens; `inverse`: the other way round.
    """
    output, input_ = _ratio(price, input_token, output_token, inverse)
    return -(-input_amount * output // input_)


def most_input(
    output_amount: int, price: Decimal, input_token: Token, output_token: Token, *, inverse: bool = False
) -> int:
    """Return the most input in base units for which the output is had at the price, rounded down.

    The price is output_token per input_token in whole tokens; `inverse`: the other way round.
    """
    output, input_ = _ratio(price, input_token, output_token, inverse)
    return output_amount * input_ // output


def _ratio(price: Decimal, input_token: Token, output_token: Token, inverse: bool) -> tuple[int, int]:
    """Return how many base units of output go for how many of input at the price."""
    numerator, denominator = price.as_integer_ratio()
    if inverse:
        numerator, denominator = denominator, numerator
    return numerator * 10**output_token.decimals, denominator * 10**input_token.decimals


def _check_decimal(text: str) -> None:
    plain = _PLAIN.fullmatch(text)
    if plain is None:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise ValueError(f'was "{shown}"; must be a plain decimal number such as "1.5"')
    digits, decimals = len(plain[1]), len(plain[2] or "")
    if digits > _MOST_DIGITS:
        raise ValueError(f"has {digits} digits before the point; at most {_MOST_DIGITS}")
    if decimals > _MOST_DECIMALS:
        raise ValueError(f"has {decimals} decimals; at most {_MOST_DECIMALS}")


def format_amount(amount: int, token: Token) -> str:
    """Return base units as whole tokens, in plain decimal without trailing zeros: 1500000 -> "1.5"."""
    digits = str(amount).rjust(token.decimals + 1, "0")
    whole, fraction = (
        digits[: len(digits) - token.decimals],
        digits[len(digits) - token.decimals :].rstrip("0"),
    )
    return f"{whole}.{fraction}" if fraction else whole


def format_price(input_amount: int, output_amount: int, input_token: Token, output_token: Token) -> str:
    """Return output_token per input_token as plain decimal text, to 12 significant digits.

    Amounts are in base units, greater than zero.
    """
    scaled_output = Decimal(output_amount).scaleb(input_token.decimals - output_token.decimals)
    price = _PRICE.divide(scaled_output, Decimal(input_amount))
    text = f"{price:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
