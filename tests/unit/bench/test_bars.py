"""Limits, and what keeps them."""

from __future__ import annotations

import pytest

from bench.__main__ import STANDARD
from bench.bars import RATIOS, Bar, finding


@pytest.mark.parametrize(
    ("bar", "said", "holds", "breaks"),
    [
        (Bar(3.0, at_least=True), ">= 3", (3.0, 99.0), (2.99, 0.0)),
        (Bar(0.4), "<= 0.4", (0.4, 0.0), (0.41, 99.0)),
    ],
)
def test_a_bar_holds_at_its_limit_and_on_one_side_of_it(
    bar: Bar, said: str, holds: tuple[float, ...], breaks: tuple[float, ...]
) -> None:
    assert str(bar) == said
    assert all(map(bar.holds, holds))
    assert not any(map(bar.holds, breaks))


def test_a_finding_is_the_median_with_its_range() -> None:
    found = finding("burst", "confirmed/s", [5.0, 1.0, 3.0], Bar(2.0, at_least=True))
    assert (found.value, found.least, found.most, found.holds) == (3.0, 1.0, 5.0, True)


def test_what_has_no_bar_neither_holds_nor_fails() -> None:
    assert finding("burst", "accepted/s", [5.0]).holds is None


def test_every_ratio_is_of_a_scenario_that_is_run() -> None:
    assert {mode for mode, _ in RATIOS} <= {scenario.mode for scenario in STANDARD}
