"""Order types between this package's nouns and the contract's messages."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import grpc
import pytest
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

from client import InvalidOrder, OrderClient, OrderNotFound, OrderSpec, OrderType, Side
from client.convert import order_of, spec_to_message
from client.order_client import SUBMIT_BATCH
from client.order_types import TYPE_FIELDS

MARKET = OrderSpec(Side.SELL, "1.5", "SOL", "USDC")
LIMIT = replace(MARKET, type=OrderType.LIMIT, limit_price="150")
SNIPER = replace(MARKET, type=OrderType.SNIPER)


def read_back(message: pb.OrderSpec) -> OrderSpec:
    return order_of(pb.Order(spec=message)).spec


@pytest.mark.parametrize(
    "spec",
    [
        MARKET,
        LIMIT,
        replace(LIMIT, side=Side.BUY, limit_price="0.000000000000000001"),
        SNIPER,
        replace(SNIPER, min_liquidity="10"),
        replace(SNIPER, max_price="0.001"),
        replace(SNIPER, min_liquidity="10", max_price="0.001"),
    ],
)
def test_an_order_of_each_type_reads_back_as_it_was_written(spec: OrderSpec) -> None:
    message = spec_to_message(spec)
    assert message.WhichOneof("type") == spec.type
    assert read_back(pb.OrderSpec.FromString(message.SerializeToString())) == spec


@pytest.mark.parametrize("order_type", [known for known in OrderType if known is not OrderType.UNKNOWN])
def test_the_fields_of_a_type_are_those_of_its_message(order_type: OrderType) -> None:
    message = pb.OrderSpec.DESCRIPTOR.fields_by_name[order_type].message_type
    assert message is not None
    assert list(TYPE_FIELDS[order_type]) == [field.name for field in message.fields]
    assert TYPE_FIELDS[order_type].keys() <= {field.name for field in fields(OrderSpec)}


def test_every_type_is_told() -> None:
    assert TYPE_FIELDS.keys() == set(OrderType)


@pytest.mark.parametrize(
    ("spec", "path", "told"),
    [
        (replace(MARKET, limit_price="150"), "spec.limit.limit_price", "a field of limit orders"),
        (replace(MARKET, max_price="1"), "spec.sniper.max_price", "a field of sniper orders"),
        (replace(LIMIT, limit_price=None), "spec.limit.limit_price", "is missing"),
        (replace(LIMIT, min_liquidity=3), "spec.sniper.min_liquidity", "and this is a limit order"),
        (replace(SNIPER, limit_price=Decimal(1)), "spec.limit.limit_price", "and this is a sniper order"),
        (replace(MARKET, type=OrderType.UNKNOWN), "spec.type", "unknown to this client"),
    ],
)
def test_a_field_of_another_type_has_its_line(spec: OrderSpec, path: str, told: str) -> None:
    with pytest.raises(InvalidOrder, match=told) as refused:
        spec_to_message(spec)
    assert [line.field for line in refused.value.violations] == [path]
    assert refused.value.message.startswith(path.rpartition(".")[2])


def test_every_field_that_does_not_fit_is_told_at_once() -> None:
    with pytest.raises(InvalidOrder) as refused:
        spec_to_message(replace(LIMIT, limit_price=None, min_liquidity="1", max_price="1"))
    assert {line.field for line in refused.value.violations} == {
        "spec.limit.limit_price",
        "spec.sniper.min_liquidity",
        "spec.sniper.max_price",
    }


DECIMALS = [("limit_price", LIMIT), ("min_liquidity", SNIPER), ("max_price", SNIPER)]


@pytest.mark.parametrize(("name", "spec"), DECIMALS)
@pytest.mark.parametrize(
    ("given", "sent"), [("0.10", "0.10"), (Decimal("1E-7"), "0.0000001"), (Decimal("2e3"), "2000"), (7, "7")]
)
def test_prices_are_taken_digit_by_digit(name: str, spec: OrderSpec, given: Any, sent: str) -> None:
    message = spec_to_message(replace(spec, **{name: given}))
    assert getattr(read_back(message), name) == sent


@pytest.mark.parametrize(("name", "spec"), DECIMALS)
@pytest.mark.parametrize("given", [0.1, True, float("nan")])
def test_a_price_that_is_a_float_is_refused_by_name(name: str, spec: OrderSpec, given: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} was {given!r}, a {type(given).__name__}"):
        spec_to_message(replace(spec, **{name: given}))


@pytest.mark.parametrize(("name", "spec"), DECIMALS)
@pytest.mark.parametrize("given", [Decimal("NaN"), Decimal("-Infinity"), Decimal("1e999999")])
def test_a_price_without_plain_text_has_its_line(name: str, spec: OrderSpec, given: Any) -> None:
    with pytest.raises(InvalidOrder) as refused:
        spec_to_message(replace(spec, **{name: given}))
    assert [line.field for line in refused.value.violations] == [f"spec.{spec.type}.{name}"]


@pytest.mark.parametrize(("name", "spec"), DECIMALS)
def test_an_empty_price_is_refused_and_not_taken_for_none(name: str, spec: OrderSpec) -> None:
    empty: dict[str, Any] = {name: ""}
    with pytest.raises(InvalidOrder, match=f'{name} was ""; must be a plain decimal number') as refused:
        spec_to_message(replace(spec, **empty))
    assert [line.field for line in refused.value.violations] == [f"spec.{spec.type}.{name}"]


@pytest.mark.parametrize(
    "expire_time",
    [
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(hours=-12))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=12))),
    ],
)
def test_a_time_that_is_none_in_utc_has_its_line(expire_time: datetime) -> None:
    with pytest.raises(
        InvalidOrder, match="expire_time must be a time between the years 1 and 9999"
    ) as refused:
        spec_to_message(replace(MARKET, expire_time=expire_time))
    assert [line.field for line in refused.value.violations] == ["spec.expire_time"]


@pytest.mark.parametrize("text", ["\udcff", "S\ud83dOL", "x" * 1000 + "\ude00"])
@pytest.mark.parametrize(
    ("spec", "path"),
    [(MARKET, f"spec.{name}") for name in ("amount", "input_token", "output_token")]
    + [(spec, f"spec.{spec.type}.{name}") for name, spec in DECIMALS],
)
def test_text_that_utf8_cannot_hold_is_refused_by_its_field(spec: OrderSpec, path: str, text: str) -> None:
    changed: dict[str, Any] = {path.rpartition(".")[2]: text}
    with pytest.raises(InvalidOrder, match="must be text that UTF-8 can hold") as refused:
        spec_to_message(replace(spec, **changed))
    assert [line.field for line in refused.value.violations] == [path]
    assert len(refused.value.message.encode()) < 160, "it can be told, and not at length"


def test_each_text_that_utf8_cannot_hold_is_told() -> None:
    with pytest.raises(InvalidOrder) as refused:
        spec_to_message(replace(LIMIT, input_token="\ud800", limit_price="\udfff"))
    assert [line.field for line in refused.value.violations] == ["spec.input_token", "spec.limit.limit_price"]


@pytest.mark.parametrize(
    ("spec", "path"),
    [(MARKET, f"spec.{name}") for name in ("amount", "input_token", "output_token")]
    + [(spec, f"spec.{spec.type}.{name}") for name, spec in DECIMALS],
)
def test_text_that_is_too_long_to_be_right_is_refused_by_its_field(spec: OrderSpec, path: str) -> None:
    name = path.rpartition(".")[2]
    longest: dict[str, Any] = {name: "9" * 64}
    assert getattr(read_back(spec_to_message(replace(spec, **longest))), name) == "9" * 64
    too_long: dict[str, Any] = {name: "9" * 65}
    with pytest.raises(InvalidOrder, match="must be at most 64 characters") as refused:
        spec_to_message(replace(spec, **too_long))
    assert [line.field for line in refused.value.violations] == [path]
    assert refused.value.message.startswith(f'{name} was "999')


@pytest.mark.parametrize("given", [10**64, Decimal("0." + "1" * 64)])
def test_numbers_are_no_longer_than_texts(given: int | Decimal) -> None:
    with pytest.raises(InvalidOrder, match="must be at most 64 characters"):
        spec_to_message(replace(LIMIT, limit_price=given))


def test_a_batch_of_the_longest_orders_is_one_that_the_server_takes() -> None:
    emoji = "\N{MONEY BAG}" * 64
    spec = OrderSpec(
        Side.SELL,
        emoji,
        emoji,
        emoji,
        10_000,
        datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC),
        OrderType.SNIPER,
        min_liquidity=emoji,
        max_price=emoji,
    )
    one = pb.SubmitOrderRequest(request_id="~" * 64, spec=spec_to_message(spec))
    batch = pb.BatchSubmitOrdersRequest(requests=[one] * SUBMIT_BATCH)
    assert batch.ByteSize() <= 1 << 20


async def test_a_name_that_utf8_cannot_hold_is_refused_without_asking() -> None:
    async with OrderClient("127.0.0.1:1") as client:
        for ask, field in (
            (client.get("\udcff"), "order_id"),
            (client.cancel("\udcff"), "order_id"),
            (client.list_page(page_token="\udcff"), "page_token"),
        ):
            with pytest.raises(InvalidOrder) as refused:
                await ask
            assert [line.field for line in refused.value.violations] == [field]
            assert refused.value.message.encode()
        with pytest.raises(OrderNotFound) as unknown:
            await anext(client.watch("\udcff"))
        assert unknown.value.message.encode()


def test_a_type_newer_than_this_client_reads_as_unknown() -> None:
    # Field 99, a message: one more order type in the oneof.
    newer = pb.OrderSpec.FromString(
        pb.OrderSpec(side=pb.SIDE_SELL, amount="1").SerializeToString() + b"\x9a\x06\x02\x0a\x00"
    )
    assert read_back(newer).type is OrderType.UNKNOWN


def test_an_order_that_names_no_type_is_a_market_order() -> None:
    assert read_back(pb.OrderSpec(side=pb.SIDE_SELL, amount="1")).type is OrderType.MARKET


class Listing(orders_pb2_grpc.OrderServiceServicer):
    """Answers two pages."""

    def __init__(self) -> None:
        self.requests: list[pb.ListOrdersRequest] = []

    async def ListOrders(  # noqa: N802
        self, request: pb.ListOrdersRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> pb.ListOrdersResponse:
        self.requests.append(request)
        return pb.ListOrdersResponse(next_page_token="" if request.page_token else "next")


async def test_every_page_is_asked_for_with_the_types() -> None:
    server, listing = grpc.aio.server(), Listing()  # type: ignore[abstract]
    orders_pb2_grpc.add_OrderServiceServicer_to_server(listing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with OrderClient(f"127.0.0.1:{port}") as client:
        types = iter([OrderType.LIMIT, OrderType.SNIPER])
        assert [order async for order in client.list(types=types)] == []
    await server.stop(0)
    assert [list(request.types) for request in listing.requests] == [
        [pb.ORDER_TYPE_LIMIT, pb.ORDER_TYPE_SNIPER]
    ] * 2
