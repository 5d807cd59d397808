"""Rows become values here, each by itself: one that this version cannot read concerns its order alone.

A newer version writes types, tokens and terms that this one does not know, and while one takes the place of
the other both run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from engine.domain.errors import OrderNotReadable

Result = TypeVar("Result")

_MOST_TOLD: Final = 1_000
"""Orders that the log names. Whoever reads it knows by then, and they are met again at every look."""

logger = logging.getLogger(__name__)


class Rows:
    """Reads rows whose first column is the order's id; logs each order that cannot be read once."""

    def __init__(self) -> None:
        self._told: set[UUID] = set()

    def read(
        self, rows: Sequence[Sequence[Any]], convert: Callable[[Sequence[Any]], Result]
    ) -> list[Result | OrderNotReadable]:
        """Return what each row says; the error in its place where it cannot be read."""
        results: list[Result | OrderNotReadable] = []
        for row in rows:
            try:
                results.append(convert(row))
            except Exception:
                results.append(OrderNotReadable(row[0]))
                self._tell(row[0])
        return results

    def _tell(self, order_id: UUID) -> None:
        if order_id not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(order_id)
            logger.exception("an order cannot be read and is left out", extra={"order_id": order_id})


def readable(results: Sequence[Result | OrderNotReadable]) -> list[Result]:
    """Return those that could be read."""
    return [result for result in results if not isinstance(result, OrderNotReadable)]
