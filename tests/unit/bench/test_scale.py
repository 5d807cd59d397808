"""What the scenarios of scale compute from what they saw."""

from __future__ import annotations

import resource

import pytest

from bench.scale import _need_files, spread_ms


def test_the_spread_is_from_the_first_told_to_the_last_of_the_slowest_event() -> None:
    told = [[0.0, 1.000, 2.000], [0.5, 1.004, 2.010], [0.9, 1.001, 2.003]]
    assert spread_ms(told) == pytest.approx(10.0)


def test_what_was_there_before_the_watchers_has_no_spread() -> None:
    assert spread_ms([[0.0], [5.0]]) == 0.0
    assert spread_ms([[0.0, 1.0], []]) == 0.0


def test_more_sockets_than_open_files_are_allowed_is_one_clear_sentence() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no limit here")
    with pytest.raises(ValueError, match=rf"sockets need .* at most {hard:,} are allowed \(ulimit -Hn\)"):
        _need_files(hard)


def test_the_soft_limit_is_raised_for_the_sockets_that_are_wanted() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 600
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        _need_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 700
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
