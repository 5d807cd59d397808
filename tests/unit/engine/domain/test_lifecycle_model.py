"""The exhaustive check: the design holds in every world, and each way to build it wrong is found.

`lifecycle_model` explains the world and its invariants.
"""

from __future__ import annotations

import pytest

from engine.domain.order import OrderStatus
from tests.unit.engine.domain.lifecycle_model import OF_WAITING, Broken, Invariant, Walk, explore

TWICE = Invariant.NEVER_TWO_SWAPS

CAUGHT = [
    (Broken.SENT_BEFORE_RECORDED, TWICE),
    (Broken.SENT_BEFORE_RECORDED, Invariant.ON_RECORD_FIRST),
    (Broken.TIMEOUT_IS_EXPIRY, TWICE),
    (Broken.STATUS_BEFORE_HEIGHT, TWICE),
    (Broken.TIP_HEIGHT, TWICE),
    (Broken.HEIGHT_OFF_BY_ONE, TWICE),
    (Broken.UNCONDITIONAL_WRITE, TWICE),
    (Broken.UNCONDITIONAL_WRITE, Invariant.GAPLESS),
    (Broken.SIGNED_AGAIN_ON_RESEND, TWICE),
    (Broken.SIGNED_AGAIN_ON_RESEND, Invariant.NO_OVERLAP),
    (Broken.REVERT_BEFORE_FINAL, TWICE),
    (Broken.LANDED_BEFORE_FINAL, Invariant.CONFIRMED_IFF_LANDED),
    (Broken.CANCEL_SUBMITTED, Invariant.CLOSED_IS_OVER),
    (Broken.CANCEL_SUBMITTED, Invariant.CONFIRMED_IFF_LANDED),
    (Broken.CANCEL_SUBMITTED, Invariant.LEGAL_MOVES),
    (Broken.EXPIRE_SUBMITTED, Invariant.CLOSED_IS_OVER),
    (Broken.EXPIRE_SUBMITTED, Invariant.CONFIRMED_IFF_LANDED),
    (Broken.EXPIRE_SUBMITTED, Invariant.LEGAL_MOVES),
    (Broken.CLAIMED_WHILE_RESTING, Invariant.FIRED_FIRST),
    (Broken.HELD_WHILE_RESTING, Invariant.FIRED_FIRST),
    (Broken.FIRED_AS_NOT_SEEN, Invariant.FIRED_FIRST),
    (Broken.WAITS_WITHOUT_PROOF, TWICE),
    (Broken.WAITS_WITHOUT_PROOF, Invariant.NO_OVERLAP),
    (Broken.WAITS_WITHOUT_PROOF, Invariant.NOTHING_OUT_WHILE_PENDING),
    (Broken.ATTEMPT_USED_AGAIN, Invariant.OWN_ATTEMPT_NUMBERS),
]


@pytest.fixture(scope="module", params=[False, True], ids=["market", "waits"])
def walk(request: pytest.FixtureRequest) -> Walk:
    walk = explore(waits=request.param)
    print(f"\nas designed: {walk}")  # noqa: T201  How much was covered is worth a line.
    return walk


def test_every_invariant_holds_in_every_world(walk: Walk) -> None:
    assert walk.broken is None, "; ".join(walk.story)


def test_the_walk_went_everywhere(walk: Walk) -> None:
    assert set(walk.statuses) == set(OrderStatus)
    assert walk.world_count > 50_000, "a model that covers less has lost some of its moves"


def test_from_every_world_the_order_can_still_be_closed(walk: Walk) -> None:
    assert walk.stuck_count == 0


@pytest.mark.parametrize(
    ("broken", "invariant"),
    CAUGHT,
    ids=lambda value: value.name.lower(),
)
def test_a_broken_variant_is_caught(broken: Broken, invariant: Invariant) -> None:
    walk = explore(broken, (invariant,), waits=broken in OF_WAITING)
    print(f"\n{broken}: {walk}")  # noqa: T201
    assert walk.broken is invariant


def test_every_broken_variant_is_tried() -> None:
    assert {broken for broken, _ in CAUGHT} == set(Broken)
