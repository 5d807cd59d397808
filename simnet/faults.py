"""What goes wrong, how often: as a node and a network really misbehave.

Whether a fault strikes a transaction depends on the seed and its signature alone: the same bytes meet
the same fate however often they are sent, and a run can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Final

_CHANCE_BYTES: Final = 6
_CHANCES: Final = 1 << 8 * _CHANCE_BYTES


class FaultError(ValueError):
    """A fault's name or figure cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities from 0 to 1, and how many slots the slow ones take."""

    drop: float = 0.0
    """Accepted, answered with its signature, and never lands."""
    delay: float = 0.0
    """Lands `delay_slots` later than it would; too late, if its blockhash has expired by then."""
    delay_slots: int = 20
    error: float = 0.0
    """Accepted, and lands, but the answer is an error."""
    revert: float = 0.0
    """Lands as a failure: exceeded slippage, whatever its swap would have given."""
    status_lag: float = 0.0
    """Lands, but is not reported for `status_lag_slots`; reported at the latest when it is finalized,
    as on a real node: a null status below the finalized slot means that it will never land."""
    status_lag_slots: int = 8

    @property
    def any(self) -> bool:
        """Say whether any of them can strike."""
        return bool(self.drop or self.delay or self.error or self.revert or self.status_lag)

    def changed(self, changes: dict[str, Any]) -> Faults:
        """Return these faults with some figures replaced. Raises FaultError."""
        known = {each.name: each.default for each in fields(Faults)}
        for name, value in changes.items():
            if name not in known:
                raise FaultError(f'there is no fault "{name}"; there are {", ".join(known)}')
            slots = isinstance(known[name], int)
            if isinstance(value, bool) or not isinstance(value, int if slots else int | float):
                raise FaultError(f"{name} was {value!r}; must be a {'whole ' if slots else ''}number")
            if value < 0 or (not slots and value > 1):
                raise FaultError(f"{name} was {value}; must be {'0 or more' if slots else 'from 0 to 1'}")
        return replace(self, **changes)


def parse_faults(text: str) -> Faults:
    """Return the faults of a setting such as "drop=0.01,delay=0.05,delay_slots=20". Raises FaultError."""
    changes: dict[str, Any] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            changes[name] = int(value) if name.endswith("_slots") else float(value)
        except ValueError:
            raise FaultError(f'"{part.strip()}" is not name=number') from None
        if not equals:
            raise FaultError(f'"{part.strip()}" is not name=number')
    return Faults().changed(changes)


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one transaction."""

    dropped: bool
    delay_slots: int
    answered_with_error: bool
    reverted: bool
    status_lag_slots: int


_NOTHING: Final = Fate(False, 0, False, False, 0)


def fate_of(signature: bytes, seed: int, faults: Faults, jitter_slots: int) -> Fate:
    """Return what happens to a transaction. `jitter_slots` is the most its landing varies by."""
    if not (jitter_slots or faults.any):
        return _NOTHING
    digest = blake2b(signature, digest_size=6 * _CHANCE_BYTES, key=seed.to_bytes(8, "little")).digest()
    drop, delay, error, revert, lag, jitter = (
        int.from_bytes(digest[at : at + _CHANCE_BYTES], "little") / _CHANCES
        for at in range(0, len(digest), _CHANCE_BYTES)
    )
    return Fate(
        dropped=drop < faults.drop,
        delay_slots=int(jitter * (jitter_slots + 1)) + (faults.delay_slots if delay < faults.delay else 0),
        answered_with_error=error < faults.error,
        reverted=revert < faults.revert,
        status_lag_slots=faults.status_lag_slots if lag < faults.status_lag else 0,
    )
