"""Ways to get any curve wrong, as its swaps show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.domain.pools.pool import Clock, Swap

Classes = Sequence[type[Any]]


def change(
    patch: pytest.MonkeyPatch, classes: Classes, method: str, wrong: Callable[[bool, Swap], Swap]
) -> None:
    """Have the method of every curve return what `wrong` makes of a_to_b and its swap."""
    for curve in classes:
        original = getattr(curve, method)

        def changed(pool: Any, a_to_b: bool, amount: int, clock: Clock, original: Any = original) -> Swap:
            return wrong(a_to_b, original(pool, a_to_b, amount, clock))

        patch.setattr(curve, method, changed)


def pay_one_more(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    change(
        patch, classes, "swap_exact_in", lambda _, swap: replace(swap, output_amount=swap.output_amount + 1)
    )


def ask_one_more(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    change(
        patch, classes, "swap_exact_out", lambda _, swap: replace(swap, input_amount=swap.input_amount + 1)
    )


def ask_one_less(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    change(
        patch, classes, "swap_exact_out", lambda _, swap: replace(swap, input_amount=swap.input_amount - 1)
    )


def ask_a_tenth_more(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        return replace(swap, input_amount=swap.input_amount * 11 // 10)

    change(patch, classes, "swap_exact_out", wrong)


def keep_the_change(patch: pytest.MonkeyPatch, classes: Classes) -> None:
    def wrong(a_to_b: bool, swap: Swap) -> Swap:
        return replace(swap, output_amount=max(0, swap.output_amount - swap.input_amount % 1_000))

    change(patch, classes, "swap_exact_in", wrong)
