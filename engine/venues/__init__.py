"""Where orders are filled: one file a program, found by being here.

To add a venue, add a file with a `VENUE` (venue.py says what that is). Nothing lists it;
tests/contract/test_venue_contract.py tests it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Final

from engine.venues.venue import Venue


def _found() -> tuple[Venue[Any], ...]:
    names = sorted(module.name for module in iter_modules(__path__) if module.name != "venue")
    return tuple(import_module(f"{__name__}.{name}").VENUE for name in names)


VENUES: Final = _found()
"""Every venue, in the order of their files' names."""

VENUE_BY_PROGRAM: Final = {venue.program: venue for venue in VENUES}
VENUE_BY_KIND: Final = {venue.kind: venue for venue in VENUES}
