"""A frozen class is what a frozen dataclass is, however it is made."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass, replace
from typing import Any

import pytest

from engine.domain import frozen as frozen_classes
from engine.domain.frozen import frozen


@frozen
class Pair:
    """Two things."""

    left: int
    right: str = "right"
    known: list[int] = field(init=False, compare=False, repr=False, default_factory=list)

    def both(self) -> str:
        return f"{self.left} {self.right}"


@dataclass(frozen=True, slots=True)
class Usual:
    left: int
    right: str = "right"


@pytest.mark.parametrize(
    "pair", [Pair(1), Pair(1, "right"), Pair(left=1, right="right"), replace(Pair(2), left=1)]
)
def test_it_is_made_like_any_dataclass(pair: Pair) -> None:
    assert type(pair) is Pair
    assert is_dataclass(pair)
    assert pair == Pair(1)
    assert hash(pair) == hash(Usual(1))
    assert repr(pair) == "Pair(left=1, right='right')"
    assert pair.both() == "1 right"
    assert [each.name for each in fields(pair)] == ["left", "right", "known"]
    assert pickle.loads(pickle.dumps(pair)) == copy.deepcopy(pair) == pair


@pytest.mark.parametrize("arguments", [(), (1, "right", [])])
def test_wrong_arguments_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        Pair(*arguments)


def test_it_is_replaced_like_any_dataclass() -> None:
    pair = Pair(2, "other")
    pair.known.append(1)
    for replaced in (frozen_classes.replace(pair, left=1), replace(pair, left=1)):
        assert type(replaced) is Pair
        assert replaced == Pair(1, "other")
        assert replaced.known == []
    assert frozen_classes.replace(pair, left=3, right="right") == Pair(3)
    assert pair == Pair(2, "other")
    with pytest.raises(TypeError):
        frozen_classes.replace(pair, middle=1)


def test_a_field_may_have_any_name() -> None:
    @frozen
    class Named:
        opened: int = 1
        closed: int = 2
        change: int = 3
        create: int = 4
        same: int = 5

    assert frozen_classes.replace(Named(), same=6) == Named(same=6) == Named(1, 2, 3, 4, 6)


def test_it_cannot_be_changed() -> None:
    pair = Pair(1)
    for name in ("left", "right", "known"):
        with pytest.raises(FrozenInstanceError):
            setattr(pair, name, 2)
        with pytest.raises(FrozenInstanceError):
            delattr(pair, name)
    assert not hasattr(pair, "__dict__")


def test_what_a_factory_makes_is_each_ones_own() -> None:
    assert Pair(1).known is not Pair(1).known


def test_a_factory_for_a_field_that_can_be_given_is_refused() -> None:
    class Given:
        known: list[int] = field(default_factory=list)

    with pytest.raises(TypeError, match="known"):
        frozen(Given)
