"""The client commands: each connects, asks, prints. They return the exit code."""

from __future__ import annotations

import asyncio
import select
import sys
from uuid import uuid4

from rich.console import Console

from cli.render import asked, order_table, print_decision, print_details, print_event
from client import (
    Order,
    OrderClient,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    OrderType,
    TooManyOrders,
    Unavailable,
)
from client.json_text import decision_json, details_json, event_text, json_bytes, order_json

_OK, _NOT_CONFIRMED = 0, 1
_LOOK_SECONDS = 2.0
"""Between two looks whether the server of a watch is there."""


async def submit(
    server: str,
    spec: OrderSpec,
    *,
    request_id: str | None,
    watch: bool,
    json: bool,
) -> int:
    """Submit an order; with `watch`, follow it and return 0 only if it is CONFIRMED.

    Where it may have been submitted without an answer, a note of the error says how to submit it again.
    """
    request_id = uuid4().hex if request_id is None else request_id
    expiry = "" if spec.expire_time is None else f" --expire-time {spec.expire_time.isoformat()}"
    again = f"to submit it again safely, add --request-id {request_id}{expiry}"
    async with OrderClient(server) as client:
        try:
            order = await client.submit(spec, request_id=request_id)
        except Unavailable as error:
            if not isinstance(error, TooManyOrders):
                error.add_note(again)
            raise
        except asyncio.CancelledError:
            _say(f"the order may have been submitted; {again}")
            raise
        try:
            if json:
                _print_json(order_json(order))
            else:
                again = " (submitted before)" if order.deduplicated else ""
                Console(highlight=False, soft_wrap=True).print(
                    f"order {order.order_id}{again}: {order.spec.side} {asked(order.spec)}"
                )
        except OSError as error:
            # It is stored all the same, and by its id alone it can be watched or cancelled.
            raise OSError(error.errno, f"{error.strerror}; order {order.order_id} is submitted") from None
        return await _follow(client, order, 0, json=json) if watch else _OK


async def watch(server: str, order_id: str, after_sequence: int, *, json: bool) -> int:
    """Follow an order to its end and return 0 only if it is CONFIRMED."""
    async with OrderClient(server) as client:
        # The watch itself would wait for an unreachable server for as long as it takes.
        order = (await client.get(order_id)).order
        return await _follow(client, order, after_sequence, json=json)


async def quote(server: str, spec: OrderSpec, *, json: bool) -> int:
    async with OrderClient(server) as client:
        decision = await client.quote(spec)
    if json:
        _print_json(decision_json(decision))
    else:
        print_decision(_console(), decision, spec)
    return _OK


async def get(server: str, order_id: str, *, json: bool) -> int:
    async with OrderClient(server) as client:
        details = await client.get(order_id)
    if json:
        _print_json(details_json(details))
    else:
        print_details(_console(), details)
    return _OK


async def list_orders(
    server: str, statuses: list[OrderStatus], types: list[OrderType], limit: int, *, json: bool
) -> int:
    """Print the newest `limit` orders; as JSON, one a line."""
    orders: list[Order] = []
    if limit > 0:
        async with OrderClient(server) as client:
            async for order in client.list(statuses=statuses, types=types, page_size=min(limit, 500)):
                if json:
                    _print_json(order_json(order))
                orders.append(order)
                if len(orders) == limit:
                    break
    if not json:
        console = _console()
        if orders:
            console.print(order_table(orders, console.width))
        else:
            console.print("no orders", style="dim")
    return _OK


async def cancel(server: str, order_id: str, *, json: bool) -> int:
    async with OrderClient(server) as client:
        order = await client.cancel(order_id)
    if json:
        _print_json(order_json(order))
    else:
        Console(highlight=False).print(f"order {order.order_id}: {order.status}")
    return _OK


async def _follow(client: OrderClient, order: Order, after_sequence: int, *, json: bool) -> int:
    console = Console(highlight=False)
    before: OrderEvent | None = None
    status = order.status
    following = asyncio.current_task()
    assert following is not None
    telling = asyncio.create_task(_tell_absence(client))
    # It ends by itself only because nobody reads any more.
    telling.add_done_callback(lambda ended: None if ended.cancelled() else following.cancel())
    try:
        async for event in client.watch(order.order_id, after_sequence):
            status = event.status
            if json:
                _print_line(event_text(event))
            else:
                print_event(console, event, order.spec, before)
            before = event
    except asyncio.CancelledError:
        if telling.done() and not telling.cancelled():
            telling.result()
        raise
    finally:
        telling.cancel()
        await asyncio.wait([telling])
    return _OK if status is OrderStatus.CONFIRMED else _NOT_CONFIRMED


async def _tell_absence(client: OrderClient) -> None:
    """Say on stderr when the server cannot be reached, which a watch waits out, and when it can again.

    Raises BrokenPipeError when nobody reads what is printed any more: the next event may be days away.
    """
    absence: str | None = None
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if _reader_has_left():
            raise BrokenPipeError
        before, absence = absence, await client.unready_reason()
        if absence is not None and before is None:
            _say(f"waiting for the server; the watch goes on when it is back ({absence})")
        elif absence is None and before is not None:
            _say("the server is back")


def _reader_has_left() -> bool:
    output = select.poll()
    try:
        output.register(sys.stdout, 0)
    except (OSError, ValueError):
        return False  # it is no file, or closed
    return any(event & select.POLLERR for _, event in output.poll(0))


def _say(sentence: str) -> None:
    print(f"order-engine: {sentence}", file=sys.stderr, flush=True)  # noqa: T201


def _print_json(value: object) -> None:
    _print_line(json_bytes(value).decode())


def _print_line(line: str) -> None:
    """Print it at once, so that a reader of the stream sees it now."""
    print(line, flush=True)  # noqa: T201


def _console() -> Console:
    """Return a console as wide as the terminal; a pipe has no width, so lines may be long there."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
