"""What the benchmark of routes prints holds together."""

from __future__ import annotations

import random

import pytest

from bench import routing
from bench.routing import _cpmm, _gains, _grid, _mixed, _problem, _simnet_offers, _simnet_rows, _times
from engine.domain.order import Side
from engine.domain.routing.choice import direct_route
from engine.venues import VENUES


@pytest.mark.parametrize("seed", range(4))
def test_no_grid_beats_the_split_over_all_pools(seed: int) -> None:
    chance = random.Random(seed)
    for pools in ([_cpmm(chance) for _ in range(8)], _mixed(chance)):
        problem = _problem(pools, chance)
        route = direct_route(
            Side.SELL, problem.spec.amount, routing.NOW, problem.offers, None, 50, routing.ALL_LEGS
        )
        assert route is not None
        assert _grid(problem) <= route.output_amount + (route.gap_amount or 0)


def test_ten_pools_with_bins_are_shared_out_to_a_ten_thousandth_of_a_basis_point() -> None:
    chance = random.Random(1)
    for _ in range(100):
        # In seven of these the margin stands in a bin, whose pool is worth nothing beyond it.
        problem = _problem(_mixed(chance), chance)
        route = direct_route(
            Side.SELL, problem.spec.amount, routing.NOW, problem.offers, None, 50, routing.ALL_LEGS
        )
        assert route is not None
        assert route.gap_amount is not None
        assert route.gap_amount <= route.output_amount * 1e-8 + 10


def test_mixed_pools_have_the_segments_that_are_said() -> None:
    pools = _mixed(random.Random(1))
    counts = [sum(1 for _ in pool.segments(True, routing.NOW)) for pool in pools]
    assert len(pools) == 10
    assert 200 <= sum(counts) <= 260


def test_every_figure_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "ROUNDS", 1)
    chance = random.Random(2)
    problems = [_problem([_cpmm(chance) for _ in range(8)], chance) for _ in range(3)]
    assert len(_gains(problems)) == 4
    assert len(_times(problems)) == 5
    rows = list(_simnet_rows(_simnet_offers(seed=1), chance))
    assert len(rows) == 2 + 3 * len(VENUES)
    assert all(sell > 0 and buy > 0 for _, sell, buy in rows)
