"""One table from reasons to codes: complete, and as the architecture has it."""

from __future__ import annotations

import client.errors
import engine.domain.errors as domain
from client import InternalError, OrderError, Refused, ServerUnavailable, TooManyOrders, Unavailable
from gateway.problems import CODE_OF, code_of, problem_of_error


def reasons(tree: type[domain.EngineError] | type[OrderError]) -> set[str]:
    found = {tree.reason} if "reason" in vars(tree) else set()
    for kind in tree.__subclasses__():
        # A part's own errors, such as the node client's, never leave the server under their own name.
        if kind.__module__ == tree.__module__:
            found |= reasons(kind)
    return found


def test_every_reason_the_engine_gives_has_its_code() -> None:
    # What is not known to have happened is told as unavailable: ask again with the same request_id.
    assert reasons(domain.EngineError) - {"OUTCOME_UNKNOWN"} <= set(CODE_OF)


def test_every_reason_of_the_client_has_its_code() -> None:
    assert reasons(client.errors.OrderError) - {"UNAVAILABLE"} <= set(CODE_OF)


def test_a_reason_newer_than_the_table_is_known_by_what_it_means() -> None:
    assert code_of(Refused("no", reason="NEWER")) == 409
    assert code_of(Unavailable("later", reason="NEWER")) == 503
    assert code_of(InternalError("oops", reason="NEWER")) == 500
    assert code_of(OrderError("oops", reason="NEWER")) == 500


def test_come_back_times_are_whole_seconds_and_never_zero() -> None:
    assert problem_of_error(TooManyOrders("full", retry_seconds=2.2)).headers["retry-after"] == "3"
    assert problem_of_error(TooManyOrders("full", retry_seconds=0.01)).headers["retry-after"] == "1"
    assert problem_of_error(ServerUnavailable("away")).headers["retry-after"] == "1"
    assert "retry-after" not in problem_of_error(InternalError("oops")).headers
