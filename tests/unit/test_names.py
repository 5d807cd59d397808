"""One word per thing: the contract, the domain and the database spell it the same.

JSON is the contract's names in camelCase; that the gateway makes it so mechanically is tested with it.
"""

from __future__ import annotations

import re
from dataclasses import fields
from enum import Enum
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from orders.v1 import orders_pb2

from engine.domain import order as domain
from engine.domain.order_types import ORDER_TYPES, OrderType, TriggerKind
from engine.storage.migrate import read_migrations
from engine.storage.postgres import QUERIES, NewOrder

MESSAGES: dict[str, Descriptor] = dict(orders_pb2.DESCRIPTOR.message_types_by_name)
MIGRATIONS = "\n".join(migration.text for migration in read_migrations())

ONLY_IN_CONTRACT = {
    **dict.fromkeys(ORDER_TYPES, "a oneof has one field for each order type; the domain's is `type`"),
    "price": "worked out of input_amount and output_amount, never kept beside them",
}
ONLY_IN_CONTRACT_OF = {
    "Quote": {"fee_token": "what fee_side names, as a token"},
    "RouteLeg": {
        "fee_token": "what fee_side names, as a token",
        "input_token": "the order's, or the route's middle_token",
        "output_token": "the same",
    },
    "OrderEvent": {"legs": "those of its decision's route"},
}
ONLY_IN_DOMAIN = {
    "OrderSpec": {"type": "the name of the contract's oneof"},
    "Order": {
        "route": "told with its attempt, in routing_decisions",
        "open_attempt": "the signed bytes are nobody's business but the engine's",
        "forgiven_attempts": "how many more there may be is the engine's business; events tell of each",
    },
    "OrderEvent": {"decision": "told of the order, in routing_decisions"},
    "Quote": {"fee_side": "told as fee_token"},
    "RouteLeg": {"fee_side": "told as fee_token"},
}
ONLY_IN_DATABASE = {
    "input_mint": "a token is its mint address there; symbols are only for reading",
    "output_mint": "the same",
    "request_fingerprint": "NewOrder.fingerprint, on a row that is an order and not a request",
    "closed_status": "an index's view of status",
    "jsonb_decision": "decision, of events from before it was kept as text",
    "previous_status": "the status of the event before, for the constraint on transitions",
    "due_time": "when a worker should look next: of the queue, not of the order",
    "lease_owner": "which worker holds it: the same",
    "terms": "the fields of the order's type, which has one class for each name",
    "input_decimals": "of the token, where the program does not know it by its mint",
    "output_decimals": "the same",
    "trigger_kind": "Trigger.kind, of a type's trigger and not of the order",
    "trigger_level": "Trigger.level: the same",
    "trigger_size": "where the order's amount stands among the levels",
    "resting": "whether a pending order waits for its trigger or for a worker: of the queue",
    "interruptions": "how many workers the order outlived without moving: of its claim",
}
NOT_IN_DATABASE = {
    "input_token": "input_mint",
    "output_token": "output_mint",
    "fingerprint": "request_fingerprint",
    "spec": "its fields are columns of the order",
    "route": "in the event's decision",
    "open_attempt": "the row of attempts without an outcome",
}
NOT_COLUMNS = {
    "before": "the order_id that a page starts after",
    "limit": "how many rows are wanted",
    "due_limit": "how many of those that are due, of all that are wanted",
    "after_sequence": "the contract's word for a watcher's cursor",
    "after_level": "the trigger_level that a page of resting orders starts after",
    "after_order_id": "the order_id that it starts after, among equal levels",
    "part_level": "up to which trigger_level, for each part of a group's amounts",
    "least_amount": "RestingGroup.least_amount: where the first part begins",
    "expected_sequence": "the sequence that a move was decided from",
    "decisions": "how many routing decisions are wanted",
    "rests": "whether nobody is to hold the order for now",
    "delay_seconds": "Transition.delay_seconds",
    "most_seconds": "how long anything is put off at the most",
    "hint_seconds": "how long a new order is left to its hint",
    "lease_seconds": "the setting",
    "lock_class": "the first half of an advisory lock's key",
}
"""Parameters of queries.sql, and fields of their rows, that name no column."""


def names_of(kind: Any) -> set[str]:
    return set(kind._fields) if issubclass(kind, tuple) else {field.name for field in fields(kind)}


def tables() -> dict[str, set[str]]:
    """The columns of each table, as the migrations make them."""
    text = MIGRATIONS
    kinds = (
        "uuid|text|bytea|bigint|integer|smallint|numeric|double precision|boolean|jsonb|timestamptz|"
        + "|".join(re.findall(r"^CREATE TYPE (\w+) AS ENUM", text, re.MULTILINE))
    )
    found = {
        table: set(re.findall(rf"^    (\w+) +(?:{kinds})\b", body, re.MULTILINE))
        for table, body in re.findall(r"^CREATE TABLE (\w+) \((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    }
    for table, body in re.findall(r"^ALTER TABLE (\w+)$(.*?);$", text, re.MULTILINE | re.DOTALL):
        for before, after in re.findall(r"^    RENAME COLUMN (\w+) TO (\w+)", body, re.MULTILINE):
            found[table] = found[table] - {before} | {after}
        found[table] |= set(re.findall(r"^    ADD COLUMN (\w+) ", body, re.MULTILINE))
    return found


def row_types() -> dict[str, set[str]]:
    """The fields of each type of row that travels to a statement."""
    types = re.findall(r"^CREATE TYPE (\w+) AS \((.*?)\);$", MIGRATIONS, re.MULTILINE | re.DOTALL)
    return {
        name: {field.split()[0] for field in re.sub(r"\s+", " ", body).strip().split(", ")}
        for name, body in types
    }


def words_of(query: str) -> set[str]:
    """What a statement is told: its parameters, and of one that is an array of rows the fields of those."""
    rows = row_types()
    told = re.findall(r"%\((\w+)\)[bt](?:::(\w+)\[\])?", QUERIES[query])
    return set().union(*(rows.get(kind, {name}) for name, kind in told))


@pytest.mark.parametrize(
    "kind",
    [
        domain.OrderSpec,
        domain.Order,
        domain.OrderEvent,
        domain.Quote,
        domain.Route,
        domain.RouteLeg,
        domain.RoutingDecision,
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_contract_and_the_domain_use_the_same_words(kind: Any) -> None:
    told = {field.name for field in MESSAGES[kind.__name__].fields}
    known = names_of(kind)
    excepted = ONLY_IN_CONTRACT_OF.get(kind.__name__, {}).keys()
    assert told - known - ONLY_IN_CONTRACT.keys() == excepted
    assert known - told == ONLY_IN_DOMAIN.get(kind.__name__, {}).keys()


@pytest.mark.parametrize("kind", ORDER_TYPES.values(), ids=ORDER_TYPES)
def test_an_order_type_has_the_terms_of_its_message_in_the_contract(kind: type[OrderType]) -> None:
    message = MESSAGES["OrderSpec"].fields_by_name[kind.name].message_type
    assert message is MESSAGES[kind.__name__]
    assert {field.name for field in MESSAGES[kind.__name__].fields} == names_of(kind)


def test_every_order_type_of_the_contract_is_one_of_the_domain() -> None:
    told = [field.name for field in MESSAGES["OrderSpec"].oneofs_by_name["type"].fields]
    assert told == list(ORDER_TYPES)
    words = [value.name for value in orders_pb2.DESCRIPTOR.enum_types_by_name["OrderType"].values]
    assert words[1:] == [f"ORDER_TYPE_{name.upper()}" for name in ORDER_TYPES]


def test_the_tables_are_found() -> None:
    assert tables().keys() == {
        "lease_owners", "orders", "order_events", "attempts", "monitors", "news_key", "place", "wallets",
    }  # fmt: skip
    assert tables()["monitors"] == {"trigger_kind", "lease_owner", "expire_time"}
    assert {"closed_status", "create_time", "trigger_level", "resting", "terms"} < tables()["orders"]
    assert tables()["attempts"] == {
        "order_id", "attempt", "tx_hash", "raw_transaction", "last_valid_block_height", "outcome",
        "create_time",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        ("orders", [domain.Order, domain.OrderSpec, NewOrder]),
        ("order_events", [domain.OrderEvent]),
        ("attempts", [domain.Attempt]),
    ],
)
def test_the_database_and_the_domain_use_the_same_words(table: str, kinds: list[Any]) -> None:
    columns = tables()[table]
    known = set().union(*map(names_of, kinds))
    # An attempt is of an order, and ends; the domain says the one by holding it, the other by AttemptOutcome.
    of_the_row = {"attempts": {"order_id", "outcome", "create_time"}}.get(table, set())
    assert columns - known - of_the_row <= ONLY_IN_DATABASE.keys()
    # What changes with every event is kept with it, and not with the order a second time.
    elsewhere = tables()["order_events"] if table == "orders" else set()
    assert known - columns - elsewhere <= NOT_IN_DATABASE.keys()


def test_every_exception_is_one() -> None:
    """A word that has been brought in line leaves its list."""
    columns = set().union(*tables().values())
    told = {field.name for message in MESSAGES.values() for field in message.fields}
    known = set().union(
        *map(names_of, (domain.Order, domain.OrderSpec, domain.OrderEvent, domain.Attempt, NewOrder))
    )
    assert columns >= ONLY_IN_DATABASE.keys()
    assert not known & ONLY_IN_DATABASE.keys()
    assert known >= NOT_IN_DATABASE.keys()
    assert not columns & NOT_IN_DATABASE.keys()
    assert told >= ONLY_IN_CONTRACT.keys()
    assert not known & ONLY_IN_CONTRACT.keys()
    assert set().union(*map(words_of, QUERIES)) >= NOT_COLUMNS.keys()
    assert not columns & NOT_COLUMNS.keys()


@pytest.mark.parametrize("query", QUERIES)
def test_a_parameter_is_called_like_its_column(query: str) -> None:
    columns = set().union(*tables().values())
    assert words_of(query) <= columns | NOT_COLUMNS.keys()


def test_every_row_type_is_some_statement_s() -> None:
    kinds = set().union(*(re.findall(r"::(\w+)\[\]", query) for query in QUERIES.values()))
    assert len(row_types()) >= 7
    assert row_types().keys() <= kinds


@pytest.mark.parametrize(
    ("enum", "prefix", "type_name"),
    [
        (domain.OrderStatus, "ORDER_STATUS_", "order_status"),
        (domain.FailureReason, "FAILURE_REASON_", "failure_reason"),
        (domain.Side, "SIDE_", "order_side"),
        (domain.AttemptOutcome, None, "attempt_outcome"),
        (TriggerKind, None, "trigger_kind"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_enums_have_the_same_members_everywhere(enum: type[Enum], prefix: str | None, type_name: str) -> None:
    words = [member.value for member in enum]
    assert [member.name.lower() for member in enum] == words
    if prefix is not None:
        told = orders_pb2.DESCRIPTOR.enum_types_by_name[enum.__name__].values
        assert [value.name for value in told][1:] == [prefix + word.upper() for word in words]
        assert (told[0].name, told[0].number) == (f"{prefix}UNSPECIFIED", 0)
    text = MIGRATIONS
    (body,) = re.findall(rf"^CREATE TYPE {type_name} AS ENUM \((.*?)^\);", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^    '(\w+)'", body, re.MULTILINE) == words
