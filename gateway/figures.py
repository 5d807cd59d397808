"""Answers as figures on /metrics, by method and route."""

from __future__ import annotations

from functools import cache
from typing import Any

from engine.telemetry import request_seconds, requests_total


def tell_answer(method: str, route: str, code: int, seconds: float) -> None:
    """Count the answer and the time it took. `method` is "ANY" where the route is unknown."""
    name = f"{method} {route}"
    _counter(name, code).inc()
    _timer(name).observe(seconds)


# Looking a labelled figure up takes longer than counting.
@cache
def _counter(method: str, code: int) -> Any:
    return requests_total.labels(method, str(code))


@cache
def _timer(method: str) -> Any:
    return request_seconds.labels(method)
