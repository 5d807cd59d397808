"""What the client commands print."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from cli.render import asked, details_json, event_line, order_json, order_table, print_decision, print_details
from client import (
    FailureReason,
    Order,
    OrderDetails,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    Quote,
    Route,
    RouteLeg,
    RoutingDecision,
    Side,
)

SPEC = OrderSpec(Side.SELL, "1.5", "SOL", "USDC")
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
        legs=(RouteLeg("Raydium", "raydium_cpmm", "AAAA1111BBBB", "1.5", "157.685185"),),
        input_amount="1.5",
        output_amount="157.685185",
        price="105.12",
        threshold_amount="156.9",
    ),
    attempt=1,
)


def _printed(what: Table) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def test_json_is_spelled_as_the_rest_api_spells_it() -> None:
    text = msgspec.json.encode(order_json(ORDER)).decode()
    assert json.loads(text, parse_float=str) == {
        "orderId": "0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77",
        "status": "confirmed",
        "side": "sell",
        "amount": "1.5",
        "inputToken": "SOL",
        "outputToken": "USDC",
        "type": "market",
        "sequence": 5,
        "attempt": 1,
        "venue": "Raydium",
        "price": "105.123456789012345678",
        "inputAmount": "1.5",
        "outputAmount": "157.685185",
        "txHash": "5KtP",
        "createTime": "2026-01-02T03:04:05Z",
    }
    assert '"price":105.123456789012345678' in text, "a number, and every digit of it"


def test_details_hold_every_routing_decision() -> None:
    found = details_json(OrderDetails(ORDER, (DECISION,)))
    assert [decision["slot"] for decision in found["routingDecisions"]] == [77]


def test_an_event_is_one_line_with_what_is_known() -> None:
    line = event_line(
        OrderEvent("id", 3, OrderStatus.BUILDING, 1, "Raydium", "105.5", "1.5", "158.25"), SPEC
    ).plain
    assert line.split() == ["3", "building", "Raydium", "1.5", "SOL", "->", "158.25", "USDC", "at", "105.5"]


def test_an_event_of_a_later_attempt_says_why() -> None:
    event = OrderEvent(
        "id",
        5,
        OrderStatus.ROUTING,
        2,
        failure_reason=FailureReason.SLIPPAGE_EXCEEDED,
        failure_message="it moved",
    )
    assert event_line(event, SPEC).plain.split() == [
        "5",
        "routing",
        "attempt",
        "2",
        "slippage_exceeded:",
        "it",
        "moved",
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [(SPEC, "1.5 SOL -> USDC"), (OrderSpec(Side.BUY, "10", "SOL", "USDC"), "SOL -> 10 USDC")],
)
def test_what_is_asked_shows_which_leg_is_exact(spec: OrderSpec, said: str) -> None:
    assert asked(spec) == said


def test_the_list_has_a_line_for_each_order() -> None:
    lines = _printed(order_table([ORDER, ORDER])).strip().splitlines()
    assert len(lines) == 3
    assert "157.685185 USDC" in lines[1]


def test_quotes_are_shown_best_first_with_the_chosen_one_marked_and_refusals_explained() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        print_decision(console, DECISION, SPEC)
    raydium, meteora, reason = captured.get().rstrip().splitlines()[-3:]
    assert raydium.split() == ["*", "Raydium", "AAAA..BBBB", "157.685185", "105.12", "0.25", "0.12"]
    assert "too shallow" in meteora
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
        console.print(order_table([ORDER]))
        print_decision(console, DECISION, SPEC)
    assert "…" not in captured.get()


def test_details_show_the_order_and_how_it_was_routed() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        print_details(console, OrderDetails(ORDER, (DECISION,)))
    assert "sell 1.5 SOL -> USDC" in captured.get()
    assert "attempt 1, slot 77" in captured.get()
