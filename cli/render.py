"""What the client commands print: tables and lines for people, JSON for scripts.

JSON is spelled as the REST API spells it: camelCase names, prices as numbers, amounts as text, and what is
not known left out.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import Order, OrderDetails, OrderEvent, OrderSpec, Quote, RoutingDecision

_STATUS_STYLES = {
    "pending": "dim",
    "confirmed": "bold green",
    "failed": "bold red",
    "cancelled": "bold yellow",
    "expired": "bold yellow",
}


def print_json(value: Any) -> None:
    """Print one line of JSON, at once, so that a reader of the stream sees it now."""
    print(msgspec.json.encode(value).decode(), flush=True)  # noqa: T201


def plain(value: Any) -> Any:
    """Return dataclasses as dicts of what is known."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if not is_dataclass(value):
        return value
    found = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if item is not None:
            first, *rest = field.name.split("_")
            name = first + "".join(word.capitalize() for word in rest)
            # The engine's own decimal text, never through binary floating point.
            found[name] = msgspec.Raw(item.encode()) if field.name == "price" else plain(item)
    return found


def order_json(order: Order) -> dict[str, Any]:
    """Return the order with its spec's fields beside its own, as they are in a POST."""
    found: dict[str, Any] = plain(order)
    spec = found.pop("spec")
    return {"orderId": found.pop("orderId"), "status": found.pop("status"), **spec, **found}


def details_json(details: OrderDetails) -> dict[str, Any]:
    return order_json(details.order) | {"routingDecisions": plain(details.routing_decisions)}


def event_line(event: OrderEvent, spec: OrderSpec) -> Text:
    """Return one event as a line: sequence, status, and what was known at that point."""
    line = Text(f"{event.sequence:>3}  ")
    line.append(f"{event.status:<10}", _STATUS_STYLES.get(event.status, ""))
    if event.attempt > 1:
        line.append(f"  attempt {event.attempt}", "dim")
    if event.venue:
        line.append(f"  {event.venue}", "cyan")
    if event.input_amount and event.output_amount:
        line.append(f"  {event.input_amount} {spec.input_token} -> {event.output_amount} {spec.output_token}")
    if event.price:
        line.append(f"  at {event.price}", "dim")
    if event.tx_hash:
        line.append(f"  tx {event.tx_hash}", "dim")
    if event.failure_reason:
        line.append(f"  {event.failure_reason}", "red")
    if event.failure_message:
        line.append(f": {event.failure_message}")
    return line


def order_table(orders: list[Order]) -> Table:
    """Return a table that fits 80 columns; amounts are folded before anything is cut off."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("order", "created", "status"):
        table.add_column(title, no_wrap=True)
    table.add_column("swap", overflow="fold")
    table.add_column("venue", overflow="fold")
    for order in orders:
        table.add_row(
            order.order_id,
            _short(order.create_time) if order.create_time else "",
            Text(order.status, _STATUS_STYLES.get(order.status, "")),
            _filled(order) if order.status == "confirmed" else asked(order.spec),
            order.venue or "",
        )
    return table


def print_details(console: Console, details: OrderDetails) -> None:
    """Print an order field by field, then how each attempt was routed."""
    order = details.order
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("order", order.order_id)
    table.add_row("status", Text(order.status, _STATUS_STYLES.get(order.status, "")))
    table.add_row("asked", f"{order.spec.side} {asked(order.spec)}")
    if order.spec.slippage_bps is not None:
        table.add_row("slippage", f"{order.spec.slippage_bps} bps")
    if order.spec.expire_time is not None:
        table.add_row("expires", order.spec.expire_time.isoformat())
    if order.venue:
        table.add_row("venue", order.venue)
    if order.input_amount and order.output_amount:
        table.add_row("filled" if order.status == "confirmed" else "quoted", _filled(order))
    if order.price:
        table.add_row("price", f"{order.price} {order.spec.output_token} per {order.spec.input_token}")
    if order.tx_hash:
        table.add_row("transaction", order.tx_hash)
    if order.failure_reason:
        table.add_row("failed", f"{order.failure_reason}: {order.failure_message or ''}")
    table.add_row("attempt", str(order.attempt))
    for title, time in (("created", order.create_time), ("updated", order.update_time)):
        if time is not None:
            table.add_row(title, time.astimezone().isoformat(sep=" ", timespec="milliseconds"))
    console.print(table)
    for decision in details.routing_decisions:
        console.print()
        print_decision(console, decision, order.spec)


def print_decision(console: Console, decision: RoutingDecision, spec: OrderSpec) -> None:
    """Print what each pool offered, best first, and which was chosen."""
    about = f"attempt {decision.attempt}" if decision.attempt else f"{spec.side} {asked(spec)}"
    title = f"{about}, slot {decision.slot}"
    chosen = {leg.pool for leg in decision.route.legs} if decision.route else set()
    sells = spec.side == "sell"
    table = Table(title=title, title_justify="left", title_style="dim")
    table.box, table.header_style, table.pad_edge = None, "dim", False
    table.add_column("")
    table.add_column("venue", no_wrap=True)
    table.add_column("pool", no_wrap=True)
    # The other leg is the same for all.
    leg = f"pays {spec.output_token}" if sells else f"costs {spec.input_token}"
    for column in (leg, "price", "fee %", "impact %"):
        table.add_column(column, justify="right", overflow="fold")
    for quote in decision.quotes:
        table.add_row(*_quote_cells(quote, sells, quote.pool in chosen), style="dim" if quote.refusal else "")
    console.print(table)
    if decision.reason:
        console.print(decision.reason, style="dim", highlight=False)


def asked(spec: OrderSpec) -> str:
    """Say what an order asks for: "1.5 SOL -> USDC"; for a buy, "SOL -> 10 USDC"."""
    if spec.side == "sell":
        return f"{spec.amount} {spec.input_token} -> {spec.output_token}"
    return f"{spec.input_token} -> {spec.amount} {spec.output_token}"


def _quote_cells(quote: Quote, sells: bool, chosen: bool) -> list[Text | str]:
    mark = Text("*" if chosen else "", "bold green")
    cells: list[Text | str] = [mark, quote.venue, f"{quote.pool[:4]}..{quote.pool[-4:]}"]
    if quote.refusal:
        return [*cells, Text(quote.refusal, "red")]
    return [
        *cells,
        (quote.output_amount if sells else quote.input_amount) or "",
        quote.price or "",
        f"{quote.fee_ppm / 10_000:.2f}",
        f"{quote.price_impact_ppm / 10_000:.2f}",
    ]


def _filled(order: Order) -> str:
    if not order.input_amount or not order.output_amount:
        return ""
    return f"{order.input_amount} {order.spec.input_token} -> {order.output_amount} {order.spec.output_token}"


def _short(time: datetime) -> str:
    """Return the local time of today, the date of other days."""
    local = time.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%d %b %y")
