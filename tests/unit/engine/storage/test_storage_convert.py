"""Decisions as text: what is written now, and what was written before routes had more than one leg."""

from __future__ import annotations

import json

from engine.domain.order import Quote, Route, RouteLeg, RoutingDecision
from engine.domain.pools.pool import FeeSide
from engine.domain.tokens import USDC
from engine.storage.convert import decision_from_text, decision_to_json, route_from_text

# As it stood in a database before.
OLD = """
{"attempt": 1, "slot": 412128006, "quotes": [
  {"venue": "Raydium", "kind": "raydium_cpmm", "pool": "Fdyh", "input_amount": 1500000000, "output_amount": 158075905,
   "fee_ppm": 1000, "price_impact_ppm": 71, "refusal": null},
  {"venue": "Meteora", "kind": "meteora_damm_v2", "pool": "6B3N", "input_amount": null, "output_amount": null,
   "fee_ppm": 0, "price_impact_ppm": 0, "refusal": "is empty"}],
 "route": {"legs": [{"venue": "Raydium", "kind": "raydium_cpmm", "pool": "Fdyh", "input_amount": 1500000000,
   "output_amount": 158075905}], "input_amount": 1500000000, "output_amount": 158075905,
   "threshold_amount": 157285525},
 "reason": "why"}
"""  # noqa: E501

LEG = RouteLeg("Raydium", "raydium_cpmm", "Fdyh", 10, 20, 19, 2500, 12, 1, FeeSide.OUTPUT)
DECISION = RoutingDecision(
    attempt=2,
    slot=7,
    quotes=(Quote("Raydium", "raydium_cpmm", "Fdyh", 10, 20, 2500, 12, None, 1, FeeSide.OUTPUT),),
    route=Route((LEG, LEG), 20, 2**64 - 1, 38, 12, 3, 1, USDC),
    reason="why",
)


def test_decision_survives_the_database() -> None:
    stored = decision_to_json(DECISION)
    assert stored is not None
    assert decision_from_text(stored.decode()) == DECISION


def test_a_quote_is_stored_with_all_its_fields_in_their_order() -> None:
    stored = decision_to_json(DECISION)
    assert stored is not None
    row = ["Raydium", "raydium_cpmm", "Fdyh", 10, 20, 2500, 12, None, 1, "output"]
    assert json.loads(stored)["quotes"] == [row]
    assert len(row) == len(Quote._fields)


def test_decision_from_before_still_reads() -> None:
    decision = decision_from_text(OLD)
    assert decision.quotes == (
        Quote("Raydium", "raydium_cpmm", "Fdyh", 1_500_000_000, 158_075_905, 1000, 71),
        Quote("Meteora", "meteora_damm_v2", "6B3N", refusal="is empty"),
    )
    leg = RouteLeg("Raydium", "raydium_cpmm", "Fdyh", 1_500_000_000, 158_075_905)
    assert decision.route == Route((leg,), 1_500_000_000, 158_075_905, 157_285_525)
    assert leg.threshold_amount is None, "that of the route"
    assert decision.route.gap_amount is None, "not reckoned"
    assert decision.route.tokens_of_leg(0, USDC, USDC) == (USDC, USDC)


def test_decision_without_a_route_has_none() -> None:
    assert route_from_text("null") is None
