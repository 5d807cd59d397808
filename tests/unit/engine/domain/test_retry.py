"""Backoff: bounded, growing, fully jittered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain.retry import RetryPolicy

Delay = Callable[[RetryPolicy, int, float], float]

LARGEST_RANDOM = 1 - 2**-53
"""The largest value that random.random() returns."""


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (5, 8.0), (6, 10.0), (7, 10.0)]
)
def test_the_longest_wait_doubles_with_each_attempt_up_to_the_cap(attempt: int, longest: float) -> None:
    policy = RetryPolicy(base_seconds=0.5, cap_seconds=10.0)
    assert policy.delay_seconds(attempt, 1.0) == longest
    assert policy.delay_seconds(attempt, 0.25) == longest / 4


def test_jitter_is_full_so_a_crowd_spreads_down_to_no_wait_at_all() -> None:
    assert RetryPolicy().delay_seconds(3, 0.0) == 0.0


def test_an_absurd_attempt_number_waits_for_the_cap_and_does_not_overflow() -> None:
    assert RetryPolicy(cap_seconds=10.0).delay_seconds(10**9, 1.0) == 10.0


def test_three_attempts_unless_told_otherwise() -> None:
    assert RetryPolicy().max_attempts == 3


def check_delay(delay_seconds: Delay) -> None:
    @settings(max_examples=200, deadline=None, derandomize=True, database=None, report_multiple_bugs=False)
    @given(
        st.one_of(st.integers(1, 8), st.integers(1, 5000)),
        st.floats(0.0, LARGEST_RANDOM),
        st.floats(0.001, 60.0),
        st.floats(0.001, 600.0),
    )
    def holds(attempt: int, random: float, base_seconds: float, cap_seconds: float) -> None:
        policy = RetryPolicy(base_seconds=base_seconds, cap_seconds=cap_seconds)
        wait = delay_seconds(policy, attempt, random)
        assert 0.0 <= wait <= cap_seconds
        assert wait <= base_seconds * 2.0 ** min(attempt - 1, 1000)
        # Waits never shrink with attempts, and scale with the random number alone.
        assert delay_seconds(policy, attempt + 1, random) >= wait
        assert wait == pytest.approx(random * delay_seconds(policy, attempt, 1.0))

    holds()


def test_every_wait_is_within_its_bounds() -> None:
    check_delay(RetryPolicy.delay_seconds)


def _uncapped(policy: RetryPolicy, attempt: int, random: float) -> float:
    return random * policy.base_seconds * 2.0 ** min(attempt - 1, 60)


def _half_jitter(policy: RetryPolicy, attempt: int, random: float) -> float:
    return (0.5 + random / 2) * policy.delay_seconds(attempt, 1.0)


def _one_step_ahead(policy: RetryPolicy, attempt: int, random: float) -> float:
    return policy.delay_seconds(attempt + 1, random)


@pytest.mark.parametrize("mutant", [_uncapped, _half_jitter, _one_step_ahead])
def test_the_bounds_catch(mutant: Delay) -> None:
    with pytest.raises(AssertionError):
        check_delay(mutant)
