"""What the client commands print."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from cli.render import asked, order_table, print_decision, print_details, print_event
from client import (
    FailureReason,
    Order,
    OrderDetails,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    OrderType,
    Quote,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
)

SPEC = OrderSpec(Side.SELL, "1.5", "SOL", "USDC")
MINT = "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
LIMIT = replace(SPEC, type=OrderType.LIMIT, limit_price="150")
SNIPER = OrderSpec(Side.SELL, "1", "SOL", MINT, type=OrderType.SNIPER, min_liquidity="10", max_price="0.001")
ORDER = Order(
    order_id="0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77",
    spec=SPEC,
    status=OrderStatus.CONFIRMED,
    sequence=5,
    venue="Raydium",
    price="105.123456789012345678",
    input_amount="1.5",
    output_amount="157.685185",
    tx_hash="5KtP",
    create_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)
DECISION = RoutingDecision(
    slot=77,
    quotes=(
        Quote("Raydium", "raydium_cpmm", "AAAA1111BBBB", "1.5", "157.685185", "105.12", 2500, 1234),
        Quote("Meteora", "meteora_damm_v2", "CCCC1111DDDD", refusal="too shallow"),
    ),
    reason="Raydium pays 0.2 % more",
    route=Route(
        legs=(
            RouteLeg(
                "Raydium",
                "raydium_cpmm",
                "AAAA1111BBBB",
                "1.5",
                "157.685185",
                "SOL",
                "USDC",
                "156.896759",
                "0.00375",
                "SOL",
                2500,
                1234,
            ),
        ),
        input_amount="1.5",
        output_amount="157.685185",
        price="105.12",
        threshold_amount="156.9",
        price_impact_ppm=1234,
        gap_amount="0.000016",
        gap_ppm=1,
    ),
    attempt=1,
)


def _printed(what: Table) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


EVENT = OrderEvent(
    ORDER.order_id, 3, OrderStatus.BUILDING, 1, "Raydium", "105.123456789", "1.5", "157.685185"
)
SUBMITTED = replace(EVENT, sequence=4, status=OrderStatus.SUBMITTED, tx_hash="5" * 88)


def _event(event: OrderEvent, before: OrderEvent | None = None, width: int | None = 80) -> list[str]:
    """Return the lines of an event, in a terminal so wide, or in a pipe."""
    console = Console(
        file=StringIO(), width=width, force_terminal=width is not None, color_system=None, highlight=False
    )
    print_event(console, event, SPEC, before)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_an_event_is_a_line_with_what_is_known() -> None:
    (line,) = _event(EVENT)
    assert line == "  3  building   Raydium  1.5 SOL -> 157.685185 USDC  at 105.123456789"


def test_an_event_does_not_repeat_what_the_one_before_said() -> None:
    assert _event(SUBMITTED, EVENT) == ["  4  submitted  tx 55555555..55555555"]
    confirmed = replace(SUBMITTED, sequence=5, status=OrderStatus.CONFIRMED)
    assert _event(confirmed, SUBMITTED) == ["  5  confirmed  as quoted"]
    better = replace(confirmed, output_amount="158", price="105.333333333")
    assert _event(better, SUBMITTED) == ["  5  confirmed  1.5 SOL -> 158 USDC  at 105.333333333"]


@pytest.mark.parametrize("width", [120, None])
def test_a_transaction_is_whole_where_it_fits(width: int | None) -> None:
    assert _event(SUBMITTED, EVENT, width) == ["  4  submitted  tx " + "5" * 88]


def test_an_event_of_a_later_attempt_says_why_and_attempts_that_fail_alike_say_it_once() -> None:
    why = "no pool can fill it " * 6
    second = OrderEvent(
        "id", 3, OrderStatus.ROUTING, 2, failure_reason=FailureReason.NO_ROUTE, failure_message=why
    )
    lines = _event(second, OrderEvent("id", 2, OrderStatus.ROUTING))
    assert lines[0].startswith("  3  routing    attempt 2  no_route: no pool can fill it")
    assert all(line.startswith(" " * 16 + "no pool") or line[16:].strip() for line in lines[1:])
    assert max(map(len, lines)) <= 80
    assert " ".join(" ".join(lines).split()).endswith(why.strip())
    third = replace(second, sequence=4, attempt=3)
    assert _event(third, second) == ["  4  routing    attempt 3  no_route"]
    failed = replace(third, sequence=5, status=OrderStatus.FAILED)
    assert _event(failed, third) == ["  5  failed     no_route"]


def test_in_a_pipe_an_event_is_one_line_however_long() -> None:
    failed = OrderEvent("id", 5, OrderStatus.FAILED, failure_message="why " * 100,
                        failure_reason=FailureReason.INTERNAL)  # fmt: skip
    assert len(_event(failed, width=None)) == 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (SPEC, "1.5 SOL -> USDC"),
        (OrderSpec(Side.BUY, "10", "SOL", "USDC"), "SOL -> 10 USDC"),
        (LIMIT, "1.5 SOL -> USDC at 150 or better"),
        (replace(LIMIT, side=Side.BUY, amount="10"), "SOL -> 10 USDC at 150 or better"),
        (
            SNIPER,
            "1 SOL -> 7xKX..gAsU when it opens with 10 SOL or more, at 0.001 SOL each at most",
        ),
        (replace(SNIPER, max_price=None), "1 SOL -> 7xKX..gAsU when it opens with 10 SOL or more"),
        (
            replace(SNIPER, min_liquidity=None),
            "1 SOL -> 7xKX..gAsU when it opens, at 0.001 SOL each at most",
        ),
        (replace(SNIPER, min_liquidity=None, max_price=None), "1 SOL -> 7xKX..gAsU when it opens"),
        (
            replace(SPEC, type=OrderType.UNKNOWN),
            "1.5 SOL -> USDC on a condition that this version does not know",
        ),
    ],
)
def test_what_is_asked_shows_which_leg_is_exact_and_when_it_is_to_be(spec: OrderSpec, said: str) -> None:
    assert asked(spec) == said


def test_an_event_of_an_order_that_waits_again_says_why() -> None:
    again = OrderEvent("id", 5, OrderStatus.PENDING, failure_message="a SOL brings 149.2 USDC again, not 150")
    assert _event(again, OrderEvent("id", 4, OrderStatus.ROUTING)) == [
        "  5  pending    waits again: a SOL brings 149.2 USDC again, not 150"
    ]
    reverted = replace(again, failure_reason=FailureReason.SLIPPAGE_EXCEEDED)
    assert _event(reverted, SUBMITTED) == _event(again, SUBMITTED)
    assert _event(OrderEvent("id", 1, OrderStatus.PENDING)) == ["  1  pending"]


def test_the_list_has_a_line_for_each_order() -> None:
    lines = _printed(order_table([ORDER, ORDER], 140)).strip().splitlines()
    assert len(lines) == 3
    assert "157.685185 USDC" in lines[1]
    assert "Raydium" in lines[1]


def test_an_order_is_one_line_of_the_list_in_a_narrow_terminal_too() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(order_table([ORDER], 80))
    title, line = captured.get().splitlines()
    assert title.split() == ["order", "status", "swap"]
    assert line.rstrip() == f"{ORDER.order_id}  confirmed  1.5 SOL -> 157.685185 USDC"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_an_order_with_a_condition_shows_it_with_its_type_in_the_list(width: int) -> None:
    console = Console(width=width)
    resting = [replace(ORDER, spec=spec, status=OrderStatus.PENDING, venue=None) for spec in (LIMIT, SNIPER)]
    with console.capture() as captured:
        console.print(order_table([*resting, replace(ORDER, spec=LIMIT)], width))
    said = " ".join(captured.get().split())
    assert "1.5 SOL -> USDC" in said
    assert "limit: at 150 or better" in said
    assert "1 SOL -> 7xKX..gAsU" in said
    # A long condition goes on in the next lines; in a wide terminal other columns are in between.
    words = iter(said.split())
    assert all(
        word in words
        for word in [
            "sniper:",
            "when",
            "it",
            "opens",
            "with",
            "10",
            "SOL",
            "or",
            "more,",
            "at",
            "0.001",
            "SOL",
        ]
    )
    assert said.endswith("limit: at 150 or better")
    assert max(map(len, captured.get().splitlines())) <= width


def test_details_of_a_resting_order_show_its_condition_with_units_and_its_mint_whole() -> None:
    console = Console(width=200)
    message = "the price moved away"
    order = replace(ORDER, spec=SNIPER, status=OrderStatus.PENDING, failure_message=message, price=None)
    with console.capture() as captured:
        print_details(console, OrderDetails(order, ()))
        print_details(console, OrderDetails(replace(order, spec=LIMIT, price="149"), ()))
    lines = captured.get().splitlines()
    assert "type         sniper" in lines
    assert (
        f"asked        sell 1 SOL -> {MINT} when it opens with 10 SOL or more, at 0.001 SOL each at most"
        in lines
    )
    assert "liquidity    10 SOL, at least" in lines
    assert "max price    0.001 SOL per 7xKX..gAsU, at most" in lines
    assert "waits again  the price moved away" in lines
    assert "limit price  150 USDC per SOL, at least" in lines


def test_mints_are_short_wherever_a_route_is_shown() -> None:
    assert DECISION.route is not None
    leg = replace(DECISION.route.legs[0], output_token=MINT, fee_token=MINT)
    console = Console(width=160)
    with console.capture() as captured:
        for legs in ((leg,), (leg, leg)):
            print_decision(console, replace(DECISION, route=replace(DECISION.route, legs=legs)), SNIPER)
    assert "pays 7xKX..gAsU" in captured.get()
    assert "fee 0.00375 7xKX..gAsU" in captured.get()
    assert MINT not in captured.get()


def test_quotes_are_shown_best_first_with_the_chosen_one_marked_and_refusals_explained() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        print_decision(console, DECISION, SPEC)
    raydium, meteora, route, reason = captured.get().rstrip().splitlines()[-4:]
    assert raydium.split() == ["*", "Raydium", "AAAA..BBBB", "157.685185", "105.12", "0.25", "0.12"]
    assert "too shallow" in meteora
    assert route == (
        "pays 157.685185 USDC; at least 156.9; impact 0.12 %; fee 0.00375 SOL; "
        "proved within 0.000016 USDC (0.01 bps) of the best there is"
    )
    assert reason.strip() == "Raydium pays 0.2 % more"


def test_a_buy_is_quoted_by_what_it_costs() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        print_decision(console, DECISION, OrderSpec(Side.BUY, "157.685185", "SOL", "USDC"))
    assert "costs SOL" in captured.get()
    assert ["*", "Raydium", "AAAA..BBBB", "1.5"] in [line.split()[:4] for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [80, 100])
def test_nothing_is_cut_off_in_a_terminal_of_the_usual_width(width: int) -> None:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(order_table([ORDER], width))
        print_decision(console, DECISION, SPEC)
    assert "…" not in captured.get()


def test_details_show_the_order_and_how_it_was_routed() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        print_details(console, OrderDetails(ORDER, (DECISION,)))
    assert "sell 1.5 SOL -> USDC" in captured.get()
    assert "attempt 1, slot 77" in captured.get()


@pytest.mark.parametrize(
    ("slippage_ppm", "told"),
    [
        (0, "quoted       1.5 SOL -> 157.685185 USDC, and so it was filled"),
        (1234, "quoted       1.5 SOL -> 157.685185 USDC; filled 12.34 bps worse"),
        (-50, "quoted       1.5 SOL -> 157.685185 USDC; filled 0.50 bps better"),
    ],
)
def test_what_was_quoted_stands_against_what_was_filled(slippage_ppm: int, told: str) -> None:
    console = Console(width=140)
    with console.capture() as captured:
        print_details(console, OrderDetails(ORDER, (DECISION,), slippage_ppm))
    assert told in captured.get()


def test_the_legs_of_a_route_are_shown_with_what_each_accepts_at_least() -> None:
    route = DECISION.route
    assert route is not None
    hop = RouteLeg(
        "Meteora", "meteora_dlmm", "CCCC1111DDDD", "158", "3.2", "USDC", "JUP", "3.1", "0.1", "USDC", 100, 5
    )
    console = Console(width=140)
    with console.capture() as captured:
        two_hops = replace(route, legs=(*route.legs, hop), middle_token="USDC")
        print_decision(console, replace(DECISION, quotes=(), route=two_hops), SPEC)
    lines = captured.get().splitlines()
    assert lines[0] == "attempt 1, slot 77"
    assert lines[2].split() == [
        *("1", "Raydium", "AAAA..BBBB", "1.5", "SOL", "->", "157.685185", "USDC"),
        *("156.896759", "0.00375", "SOL", "0.12"),
    ]
    assert lines[3].split() == [
        *("2", "Meteora", "CCCC..DDDD", "158", "USDC", "->", "3.2", "JUP", "3.1", "0.1", "USDC", "0.00"),
    ]


FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "expire_time", "shown"),
    [
        ("Asia/Tokyo", LAST, "9999-12-31 23:59:59.999+00:00"),
        ("America/New_York", FIRST, "0001-01-01 00:00:00.000+00:00"),
        ("America/New_York", LAST, "9999-12-31 18:59:59.999-05:00"),
    ],
)
def test_a_time_that_is_none_in_the_local_zone_is_shown_in_utc(
    zone: str, expire_time: datetime, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(width=80)
    order = replace(ORDER, spec=replace(SPEC, expire_time=expire_time))
    try:
        with monkeypatch.context() as patch, console.capture() as captured:
            patch.setenv("TZ", zone)
            time.tzset()
            print_details(console, OrderDetails(order, ()))
    finally:
        time.tzset()
    assert f"expires      {shown}\n" in captured.get()


def test_what_is_copied_from_the_details_is_whole_in_a_narrow_terminal() -> None:
    order = replace(ORDER, tx_hash="5" * 88)
    console = Console(width=80)
    with console.capture() as captured:
        print_details(console, OrderDetails(order, ()))
    assert "transaction  " + "5" * 88 in captured.get().splitlines()
