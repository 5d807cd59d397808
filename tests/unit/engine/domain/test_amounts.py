"""Decimal text in and out of base units: hostile tables, exact properties, and mutants they must catch."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from engine.domain.amounts import (
    MAX_AMOUNT,
    format_amount,
    format_price,
    least_output,
    most_input,
    parse_amount,
    parse_price,
)
from engine.domain.tokens import BONK, SOL, TOKENS, USDC, Token

U64 = 2**64 - 1
WHOLE = Token("WHOLE", "mint-0", 0)
FINE = Token("FINE", "mint-18", 18)

Parse = Callable[[str, Token], int]
Format = Callable[[int, Token], str]
FormatPrice = Callable[[int, int, Token, Token], str]

# Reproducible everywhere, and no time limit: a slow machine is not a wrong result.
checked = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, report_multiple_bugs=False
)

amounts = st.one_of(
    st.integers(1, U64),
    st.integers(0, 63).map(lambda bits: 2**bits),
    st.integers(0, 19).map(lambda zeros: 10**zeros),
)
tokens = st.sampled_from((*TOKENS, WHOLE, FINE))


@pytest.mark.parametrize(
    ("text", "token", "amount"),
    [
        ("1", SOL, 10**9),
        ("1.5", SOL, 1_500_000_000),
        ("0.000000001", SOL, 1),
        ("0.1", USDC, 100_000),
        ("10", BONK, 1_000_000),
        ("007", USDC, 7_000_000),
        ("1.500000000000", USDC, 1_500_000),  # Zeros beyond the token's decimals change nothing.
        ("1.000000000000000000", WHOLE, 1),
        ("18446744073.709551615", SOL, U64),
        ("18446744073709551615", WHOLE, U64),
        ("18.446744073709551615", FINE, U64),
    ],
)
def test_plain_decimals_are_taken_exactly(text: str, token: Token, amount: int) -> None:
    assert parse_amount(text, token) == amount


NO_DECIMALS = [
    "",
    " ",
    " 1 ",
    "1 ",
    "\t1",
    "1\n",
    "1\x00",
    "-1",
    "+1",
    "--1",
    "-0",
    "NaN",
    "nan",
    "sNaN",
    "Infinity",
    "inf",
    "-inf",
    "1e5",
    "1E5",
    "1e400",
    "1e-3",
    "1e300000",
    "1_000",
    "1,5",
    "1,000.0",
    "1'000",
    "0x10",
    "1/3",
    ".5",
    "5.",
    ".",
    "1.2.3",
    "1. 5",
    "１",  # noqa: RUF001  full-width digit one
    "١",  # noqa: RUF001  Arabic-Indic digit one
    "1.５",  # noqa: RUF001
    "²",
    "Ⅷ",
    "1\u200b",
    "−1",  # noqa: RUF001  a minus sign, not a hyphen
    "one",
    "null",
    "9" * 100_000 + ".",
    "1" + "x" * 100_000,
]


@pytest.mark.parametrize("text", NO_DECIMALS)
def test_whatever_is_not_a_plain_decimal_is_refused_with_what_would_do(text: str) -> None:
    for parse in (lambda: parse_amount(text, SOL), lambda: parse_price(text)):
        with pytest.raises(ValueError, match="must be a plain decimal number") as refused:
            parse()
        assert len(str(refused.value)) < 120, "hostile text is not echoed at length"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.123456789012345678901234567890", "has 30 decimals; at most 18"),
        ("1." + "0" * 19, "has 19 decimals; at most 18"),
        ("1." + "1" * 100_000, "has 100000 decimals; at most 18"),
        ("1" * 21, "has 21 digits before the point; at most 20"),
        ("1" + "0" * 30, "has 31 digits before the point; at most 20"),
        ("0" * 21 + ".5", "has 21 digits before the point; at most 20"),
        ("9" * 100_000 + "." + "9" * 100_000, "has 100000 digits before the point; at most 20"),
    ],
)
def test_a_plain_decimal_that_is_too_long_is_refused_with_the_limit_it_breaks(
    text: str, sentence: str
) -> None:
    for parse in (lambda: parse_amount(text, SOL), lambda: parse_price(text)):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            parse()


@pytest.mark.parametrize(
    ("text", "token", "sentence"),
    [
        ("0", SOL, "was 0; must be greater than zero"),
        ("0.0", SOL, "was 0.0; must be greater than zero"),
        ("0.000000000000", SOL, "was 0.000000000000; must be greater than zero"),
        ("0.0000000001", SOL, "was 0.0000000001; SOL has at most 9 decimals"),
        ("1.0000001", USDC, "was 1.0000001; USDC has at most 6 decimals"),
        ("1.5", WHOLE, "was 1.5; WHOLE has at most 0 decimals"),
        (
            "18446744073.709551616",
            SOL,
            "was 18446744073.709551616; at most 18446744073.709551615 SOL fit on chain",
        ),
        (
            "18446744073709551616",
            WHOLE,
            "was 18446744073709551616; at most 18446744073709551615 WHOLE fit on chain",
        ),
        (
            "99999999999999999999",
            SOL,
            "was 99999999999999999999; at most 18446744073.709551615 SOL fit on chain",
        ),
    ],
)
def test_a_decimal_that_cannot_be_traded_is_refused_with_its_bound(
    text: str, token: Token, sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        parse_amount(text, token)
    assert str(refused.value) == sentence


def test_the_largest_amount_is_what_the_chain_can_hold() -> None:
    assert MAX_AMOUNT == U64


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("150.5", "150.5"),
        ("150", "150"),
        ("100", "100"),
        ("007.50", "7.5"),
        ("0100.00", "100"),
        ("1.000000000000000000", "1"),
        ("0.000000000000000001", "0.000000000000000001"),
        ("99999999999999999999.999999999999999999", "99999999999999999999.999999999999999999"),
    ],
)
def test_a_price_is_kept_as_written_without_the_zeros_that_change_nothing(text: str, kept: str) -> None:
    price = parse_price(text)
    assert price == Decimal(text)
    assert f"{price:f}" == kept


@pytest.mark.parametrize("text", ["0", "000", "0.0", "0.000000000000000000"])
def test_a_price_of_zero_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"was {text}; must be greater than zero")):
        parse_price(text)


@pytest.mark.parametrize(
    ("price", "inverse", "least", "most"),
    [
        # 2 SOL for USDC at 150.5 a SOL, and 301 USDC for SOL.
        ("150.5", False, 301_000_000, 2_000_000_000),
        # The same, but what a USDC costs in SOL.
        ("0.0078125", True, 256_000_000, 2_351_562_500),
        # Not a whole number of base units: always so that the price is kept.
        ("0.0000007", False, 2, 430_000_000_000_000_000),
        ("300.0000001", False, 600_000_001, 1_003_333_332),
        ("0.003333333333333333", True, 600_000_001, 1_003_333_333),
    ],
)
def test_a_limit_is_the_last_base_unit_that_keeps_the_price(
    price: str, inverse: bool, least: int, most: int
) -> None:
    assert least_output(2 * 10**9, Decimal(price), SOL, USDC, inverse=inverse) == least
    assert most_input(301 * 10**6, Decimal(price), SOL, USDC, inverse=inverse) == most


@pytest.mark.parametrize(
    ("amount", "token", "text"),
    [
        (1, SOL, "0.000000001"),
        (1_500_000_000, SOL, "1.5"),
        (10**9, SOL, "1"),
        (10**11, SOL, "100"),
        (0, SOL, "0"),
        (U64, SOL, "18446744073.709551615"),
        (100, WHOLE, "100"),
        (1, FINE, "0.000000000000000001"),
    ],
)
def test_base_units_are_written_as_whole_tokens_without_trailing_zeros(
    amount: int, token: Token, text: str
) -> None:
    assert format_amount(amount, token) == text


@pytest.mark.parametrize(
    ("input_amount", "output_amount", "price"),
    [
        (10**9, 150_000_000, "150"),
        (10**9, 149_250_001, "149.250001"),
        (3 * 10**9, 10**6, "0.333333333333"),
        (3 * 10**9, 2 * 10**6, "0.666666666667"),
        (U64, 1, "0.0000000000000000542101086243"),
        (1, U64, "18446744073700000000000"),
        (2 * 10**12, 10**3 + 2, "0.000000501"),
        # Ties go to the even digit: 1.000000000005 and ...015.
        (10**15, 1_000_000_000_005, "1"),
        (10**15, 1_000_000_000_015, "1.00000000002"),
    ],
)
def test_a_price_is_output_per_input_to_twelve_digits(
    input_amount: int, output_amount: int, price: str
) -> None:
    assert format_price(input_amount, output_amount, SOL, USDC) == price


# ---- Properties: each is shown to fail on a mutant --------------------------------------------------


def check_round_trip(format_: Format, parse: Parse) -> None:
    @checked
    @given(amounts, tokens)
    def holds(amount: int, token: Token) -> None:
        text = format_(amount, token)
        assert parse(text, token) == amount
        assert not re.search(r"\.$|\.\d*0$|^0\d|[^0-9.]", text), "the one canonical spelling"

    holds()


def check_parses_exactly_or_refuses(parse: Parse) -> None:
    plain = st.from_regex(r"\A[0-9]{1,21}(\.[0-9]{1,19})?\Z")
    hostile = st.text(st.sampled_from("0123456789.+-eE_ ,xnaif１٣\n\t"), max_size=24)  # noqa: RUF001

    @checked
    @given(st.one_of(plain, hostile, st.text(max_size=24)), tokens)
    def holds(text: str, token: Token) -> None:
        try:
            amount = parse(text, token)
        except ValueError:
            return
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)
        assert Fraction(text) * 10**token.decimals == amount
        assert 1 <= amount <= U64

    holds()


def check_price(format_price_: FormatPrice) -> None:
    @checked
    @given(amounts, amounts, tokens, tokens)
    def holds(input_amount: int, output_amount: int, input_token: Token, output_token: Token) -> None:
        text = format_price_(input_amount, output_amount, input_token, output_token)
        assert re.fullmatch(r"[0-9]+(\.[0-9]*[1-9])?", text), "plain decimal text"
        digits = text.replace(".", "").strip("0")
        assert 1 <= len(digits) <= 12
        exact = Fraction(output_amount, 10**output_token.decimals) / Fraction(
            input_amount, 10**input_token.decimals
        )
        # Half a unit in the twelfth significant digit.
        assert abs(Fraction(text) - exact) <= exact * Fraction(5, 10**12)

    holds()


Limit = Callable[..., int]
GENERATE = settings(checked, phases=[Phase.explicit, Phase.generate])
"""Enough for a mutant."""

plain_prices = st.one_of(
    st.integers(1, 10**38 - 1).map(lambda value: f"{value // 10**18}.{value % 10**18:018}"),
    st.integers(1, 10**6).map(lambda cents: f"{cents // 100:04}.{cents % 100:02}"),
    st.integers(1, 10**20 - 1).map(str),
)


def check_parses_prices_exactly_or_refuses(
    parse: Callable[[str], Decimal], repeatable: settings = checked
) -> None:
    hostile = st.text(st.sampled_from("0123456789.+-eE_ ,xnaif１٣\n\t"), max_size=24)  # noqa: RUF001

    @repeatable
    @given(st.one_of(plain_prices, hostile, st.text(max_size=24)))
    # What is drawn also depends on which modules are imported; mutants are to be caught whichever are.
    @example("12345678901234567890.123456789012345678")
    @example("0100.50")
    @example("1e5")
    def holds(text: str) -> None:
        try:
            price = parse(text)
        except ValueError:
            return
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)
        assert Fraction(price) == Fraction(text) > 0
        spelled = f"{price:f}"
        assert not re.search(r"\.$|\.\d*0$|^0\d|[^0-9.]", spelled), "the one shortest spelling"
        assert parse(spelled) == price

    holds()


def check_limits(least: Limit, most: Limit, repeatable: settings = checked) -> None:
    @repeatable
    @given(amounts, plain_prices.map(Decimal), tokens, tokens, st.booleans())
    def holds(amount: int, price: Decimal, input_token: Token, output_token: Token, inverse: bool) -> None:
        per_input = 1 / Fraction(price) if inverse else Fraction(price)
        per_unit = per_input * Fraction(10**output_token.decimals, 10**input_token.decimals)
        terms = (amount, price, input_token, output_token)
        assert least(*terms, inverse=inverse) == ceil(amount * per_unit)
        assert most(*terms, inverse=inverse) == floor(amount / per_unit)
        if not inverse:
            assert least(*terms) == ceil(amount * per_unit)
            assert most(*terms) == floor(amount / per_unit)

    holds()


def test_whatever_price_is_parsed_is_exact_and_everything_else_is_refused() -> None:
    check_parses_prices_exactly_or_refuses(parse_price)


def test_a_limit_is_exact_for_all_tokens_and_both_directions() -> None:
    check_limits(least_output, most_input)


def _price_as_written(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise ValueError(text) from error


@pytest.mark.parametrize(
    "mutant",
    [
        _price_as_written,
        lambda text: Decimal(repr(float(text))),
        lambda text: Context(prec=28).plus(parse_price(text)),
        lambda text: Decimal(text.rstrip("0").rstrip(".")) if parse_price(text) else Decimal(0),
    ],
    ids=["as written", "through a float", "to 28 digits", "without the zeros of whole numbers"],
)
def test_the_price_parsing_property_catches(mutant: Callable[[str], Decimal]) -> None:
    with pytest.raises((AssertionError, ArithmeticError)):
        check_parses_prices_exactly_or_refuses(mutant, GENERATE)


def _by_floats(
    amount: int, price: Decimal, input_token: Token, output_token: Token, *, inverse: bool = False
) -> int:
    per_input = 1 / float(price) if inverse else float(price)
    return ceil(amount * per_input * 10.0 ** (output_token.decimals - input_token.decimals))


def _by_decimals(
    amount: int, price: Decimal, input_token: Token, output_token: Token, *, inverse: bool = False
) -> int:
    per_input = 1 / price if inverse else price
    return ceil((amount * per_input).scaleb(output_token.decimals - input_token.decimals))


@pytest.mark.parametrize(
    ("least", "most"),
    [
        (_by_floats, most_input),
        (_by_decimals, most_input),
        (lambda *terms, inverse=False: least_output(*terms), most_input),
        (least_output, lambda *terms, inverse=False: most_input(*terms, inverse=not inverse)),
        (lambda *terms, inverse=False: least_output(*terms, inverse=inverse) - 1, most_input),
        (least_output, lambda *terms, inverse=False: most_input(*terms, inverse=inverse) + 1),
        (most_input, most_input),
    ],
    ids=["floats", "28 digits", "never inverse", "inverse inverted", "less", "more", "of the other side"],
)
def test_the_limit_property_catches(least: Limit, most: Limit) -> None:
    with pytest.raises(AssertionError):
        check_limits(least, most, GENERATE)


def test_formatting_and_parsing_round_trip() -> None:
    check_round_trip(format_amount, parse_amount)


def test_whatever_is_parsed_is_exact_and_everything_else_is_refused() -> None:
    check_parses_exactly_or_refuses(parse_amount)


def test_a_price_is_exact_to_twelve_digits() -> None:
    check_price(format_price)


def _format_as_float(amount: int, token: Token) -> str:
    text = f"{amount / 10**token.decimals:.{token.decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format_stripping_whole_zeros(amount: int, token: Token) -> str:
    return format_amount(amount, token).rstrip("0") or "0"


def _parse_as_float(text: str, token: Token) -> int:
    return int(float(text) * 10**token.decimals)


def _parse_as_decimal(text: str, token: Token) -> int:
    try:
        amount = int(Decimal(text).scaleb(token.decimals))
    except (ArithmeticError, OverflowError) as error:
        raise ValueError(text) from error
    if not 1 <= amount <= U64:
        raise ValueError(text)
    return amount


def _parse_without_upper_bound(text: str, token: Token) -> int:
    try:
        return parse_amount(text, token)
    except ValueError as error:
        if "fit on chain" not in str(error):
            raise
        return int(Fraction(text) * 10**token.decimals)


def _price_as_float(input_amount: int, output_amount: int, input_token: Token, output_token: Token) -> str:
    return str((output_amount / 10**output_token.decimals) / (input_amount / 10**input_token.decimals))


def _price_in_base_units(input_amount: int, output_amount: int, *_: Token) -> str:
    return format_price(input_amount, output_amount, SOL, SOL)


def _price_to_eleven_digits(
    input_amount: int, output_amount: int, input_token: Token, output_token: Token
) -> str:
    price = Decimal(format_price(input_amount, output_amount, input_token, output_token))
    text = f"{Decimal(f'{price:.10e}'):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@pytest.mark.parametrize("mutant", [_format_as_float, _format_stripping_whole_zeros])
def test_the_round_trip_property_catches(mutant: Format) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_round_trip(mutant, parse_amount)


@pytest.mark.parametrize("mutant", [_parse_as_float, _parse_as_decimal, _parse_without_upper_bound])
def test_the_parsing_property_catches(mutant: Parse) -> None:
    with pytest.raises((AssertionError, OverflowError)):
        check_parses_exactly_or_refuses(mutant)


@pytest.mark.parametrize("mutant", [_price_as_float, _price_in_base_units, _price_to_eleven_digits])
def test_the_price_property_catches(mutant: FormatPrice) -> None:
    with pytest.raises(AssertionError):
        check_price(mutant)
