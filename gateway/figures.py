"""Answers as figures on /metrics, by route and code."""

from __future__ import annotations

from functools import cache
from typing import Any

from engine.telemetry import request_seconds, requests_total


def tell_answer(method: str, route: str, code: int, seconds: float) -> None:
    """Count the answer and the time it took. `method` is "ANY" where the route is unknown."""
    _counter(f"{method} {route}", code).inc()
    _timer(route).observe(seconds)


# Looking a labelled figure up takes longer than counting.
@cache
def _counter(method: str, code: int) -> Any:
    return requests_total.labels(method, str(code))


@cache
def _timer(route: str) -> Any:
    return request_seconds.labels(route)
