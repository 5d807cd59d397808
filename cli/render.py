"""What the client commands print: tables and lines for people, JSON for scripts."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import (
    Order,
    OrderDetails,
    OrderEvent,
    OrderSpec,
    OrderStatus,
    OrderType,
    Quote,
    Route,
    RoutingDecision,
)

_STATUS_STYLES = {
    "pending": "dim",
    "confirmed": "bold green",
    "failed": "bold red",
    "cancelled": "bold yellow",
    "expired": "bold yellow",
}
_LONGEST_SYMBOL = 12  # characters; what is longer is a mint address
_EVERY_COLUMN = 100  # characters; a narrower terminal gets the columns that matter most


def print_event(console: Console, event: OrderEvent, spec: OrderSpec, before: OrderEvent | None) -> None:
    """Print a line for an event: sequence, status, and what it says that the one before did not."""
    beginning = Text(f"{event.sequence:>3}  ").append(_status(event.status))
    indent = 3 + 2 + 9 + 2
    # A pipe's reader wants one line an event, and all of it.
    room = console.width - indent if console.is_terminal else None
    news = Text("  ").join(_news(event, spec, before, room))
    lines = news.wrap(console, room) if room is not None and room > 0 else [news]
    if news:
        beginning.append(" " * (indent - len(beginning)))
        for line in lines:
            line.rstrip()
        beginning += Text("\n" + " " * indent).join(lines)
    console.print(beginning, soft_wrap=True)


def _news(event: OrderEvent, spec: OrderSpec, before: OrderEvent | None, room: int | None) -> list[Text]:
    known = before or OrderEvent(event.order_id, 0, OrderStatus.PENDING)
    found: list[Text] = []
    if event.attempt != known.attempt:
        found.append(Text(f"attempt {event.attempt}", "dim"))
    if event.venue and event.venue != known.venue:
        found.append(Text(event.venue, "cyan"))
    if event.input_amount and event.output_amount:
        amounts = (event.input_amount, event.output_amount, event.price)
        if amounts != (known.input_amount, known.output_amount, known.price):
            found.append(Text(_swapped(event.input_amount, event.output_amount, spec)))
            if event.price:
                found.append(Text(f"at {event.price}", "dim"))
        elif event.status is OrderStatus.CONFIRMED:
            found.append(Text("as quoted", "dim"))
    if event.tx_hash and event.tx_hash != known.tx_hash:
        whole = room is None or len(event.tx_hash) <= room - len("tx ")
        found.append(Text(f"tx {event.tx_hash if whole else _abbreviated(event.tx_hash, 8)}", "dim"))
    if event.status is OrderStatus.PENDING and event.failure_message:
        # Nothing failed: the market moved away before the swap had landed.
        return [*found, Text("waits again", "yellow").append(f": {event.failure_message}", "default")]
    is_told = event.failure_message == known.failure_message and event.attempt == known.attempt
    if event.failure_reason and (event.status is OrderStatus.FAILED or not is_told):
        reason = Text(event.failure_reason, "red")
        # Attempts that fail alike say so once.
        if event.failure_message and event.failure_message != known.failure_message:
            reason.append(f": {event.failure_message}", "default")
        found.append(reason)
    return found


def order_table(orders: list[Order], width: int) -> Table:
    """Return a table that fits `width` characters, from 80 on, without cutting anything off.

    Of an order that waits for its moment, or did, the type and the condition are in a line of their own.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    every = width >= _EVERY_COLUMN
    for title in ("order", "created", "status") if every else ("order", "status"):
        table.add_column(title, no_wrap=True)
    table.add_column("swap", overflow="fold")
    if every:
        table.add_column("venue", overflow="fold")
    for order in orders:
        cells: dict[str, Text | str] = {
            "order": order.order_id,
            "created": _short(order.create_time) if order.create_time else "",
            "status": _status(order.status),
            "swap": _swap_cell(order),
            "venue": order.venue or "",
        }
        table.add_row(*(cells[str(column.header)] for column in table.columns))
    return table


def _swap_cell(order: Order) -> Text:
    cell = Text((order.status == "confirmed" and _filled(order)) or _swap(order.spec, whole=False))
    if order.spec.type is not OrderType.MARKET:
        cell.append(f"\n{order.spec.type}: {_condition(order.spec)}", "dim")
    return cell


def print_details(console: Console, details: OrderDetails) -> None:
    """Print an order field by field, then how each attempt was routed."""
    order, spec = details.order, details.order.spec
    failed = f"{order.failure_reason}: {order.failure_message or ''}" if order.failure_reason else None
    output_token, input_token = _token(spec.output_token), _token(spec.input_token)
    per_input, per_output = f"{output_token} per {input_token}", f"{input_token} per {output_token}"
    waits = order.failure_message if order.status == "pending" else None
    for title, value in (
        ("order", order.order_id),
        ("status", _status(order.status)),
        ("type", spec.type),
        ("asked", f"{spec.side} {asked(spec, whole=True)}"),
        ("limit price", spec.limit_price and f"{spec.limit_price} {per_input}, at least"),
        ("liquidity", spec.min_liquidity and f"{spec.min_liquidity} {input_token}, at least"),
        ("max price", spec.max_price and f"{spec.max_price} {per_output}, at most"),
        ("slippage", None if spec.slippage_bps is None else f"{spec.slippage_bps} bps"),
        ("expires", _long(spec.expire_time)),
        ("venue", order.venue),
        ("filled" if order.status == "confirmed" else "quoted", _filled(order)),
        ("quoted", _against_quoted(details)),
        ("price", order.price and f"{order.price} {per_input}"),
        ("transaction", order.tx_hash),
        ("failed", failed),
        ("waits again", waits),
        ("attempt", str(order.attempt)),
        ("created", _long(order.create_time)),
        ("updated", _long(order.update_time)),
    ):
        if value:
            # The terminal breaks a line that is too long; what is copied from it is whole.
            console.print(Text.assemble((f"{title:<13}", "dim"), value), soft_wrap=True)
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
    leg = f"pays {_token(spec.output_token)}" if sells else f"costs {_token(spec.input_token)}"
    for column in (leg, "price", "fee %", "impact %"):
        table.add_column(column, justify="right", overflow="fold")
    for quote in decision.quotes:
        table.add_row(*_quote_cells(quote, sells, quote.pool in chosen), style="dim" if quote.refusal else "")
    if decision.quotes:
        console.print(table)
    else:
        console.print(title, style="dim")
    if decision.route:
        _print_route(console, decision.route, spec)
    if decision.reason:
        console.print(decision.reason, style="dim", highlight=False)


def _print_route(console: Console, route: Route, spec: OrderSpec) -> None:
    """Print the route's legs, if there are several, and what it promises."""
    sells = spec.side == "sell"
    if len(route.legs) > 1:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("leg", "pool", "swap"):
            table.add_column(title, no_wrap=title != "swap", overflow="fold")
        for title in ("at least" if sells else "at most", "fee", "impact %"):
            table.add_column(title, justify="right", overflow="fold")
        for number, leg in enumerate(route.legs, start=1):
            table.add_row(
                f"{number} {leg.venue}",
                _abbreviated(leg.pool, 4),
                f"{leg.input_amount} {_token(leg.input_token)} -> "
                f"{leg.output_amount} {_token(leg.output_token)}",
                leg.threshold_amount,
                f"{leg.fee_amount} {_token(leg.fee_token)}",
                _percent(leg.price_impact_ppm),
            )
        console.print(table)
    token = _token(spec.output_token if sells else spec.input_token)
    whole = route.output_amount if sells else route.input_amount
    promises = [
        f"{'pays' if sells else 'costs'} {whole} {token}",
        f"{'at least' if sells else 'at most'} {route.threshold_amount}",
        f"impact {_percent(route.price_impact_ppm)} %",
    ]
    if len(route.legs) == 1:
        promises.append(f"fee {route.legs[0].fee_amount} {_token(route.legs[0].fee_token)}")
    if route.gap_amount is not None:
        better = f"{route.gap_amount} {token} ({route.gap_ppm / 100:.2f} bps)"
        promises.append(f"proved within {better} of the best there is")
    console.print("; ".join(promises), highlight=False)


def asked(spec: OrderSpec, *, whole: bool = False) -> str:
    """Say what an order asks for, and when: "1.5 SOL -> USDC", "SOL -> 10 USDC at 150 or better".

    Mint addresses are shortened unless it is to be `whole`.
    """
    return " ".join(filter(None, (_swap(spec, whole=whole), _condition(spec))))


def _swap(spec: OrderSpec, *, whole: bool) -> str:
    shown = str if whole else _token
    if spec.side == "sell":
        return f"{spec.amount} {shown(spec.input_token)} -> {shown(spec.output_token)}"
    return f"{shown(spec.input_token)} -> {spec.amount} {shown(spec.output_token)}"


def _condition(spec: OrderSpec) -> str:
    """Say when an order executes; nothing for one that does so at once."""
    match spec.type:
        case OrderType.MARKET:
            return ""
        case OrderType.LIMIT:
            return f"at {spec.limit_price} or better"
        case OrderType.SNIPER:
            token = _token(spec.input_token)
            liquidity = f" with {spec.min_liquidity} {token} or more" if spec.min_liquidity else ""
            price = f", at {spec.max_price} {token} each at most" if spec.max_price else ""
            return f"when it opens{liquidity}{price}"
    return "on a condition that this version does not know"


def _quote_cells(quote: Quote, sells: bool, chosen: bool) -> list[Text | str]:
    mark = Text("*" if chosen else "", "bold green")
    cells: list[Text | str] = [mark, quote.venue, _abbreviated(quote.pool, 4)]
    if quote.refusal:
        return [*cells, Text(quote.refusal, "red")]
    return [
        *cells,
        (quote.output_amount if sells else quote.input_amount) or "",
        quote.price or "",
        _percent(quote.fee_ppm),
        _percent(quote.price_impact_ppm),
    ]


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:.2f}"


def _against_quoted(details: OrderDetails) -> str | None:
    """Say what was quoted, and how much worse or better the order was filled."""
    slippage_ppm = details.realised_slippage_ppm
    route = details.routing_decisions[-1].route if details.routing_decisions else None
    if slippage_ppm is None or route is None:
        return None
    quoted = _swapped(route.input_amount, route.output_amount, details.order.spec)
    if slippage_ppm == 0:
        return f"{quoted}, and so it was filled"
    return f"{quoted}; filled {abs(slippage_ppm) / 100:.2f} bps {'worse' if slippage_ppm > 0 else 'better'}"


def _filled(order: Order) -> str | None:
    if not order.input_amount or not order.output_amount:
        return None
    return _swapped(order.input_amount, order.output_amount, order.spec)


def _swapped(input_amount: str, output_amount: str, spec: OrderSpec) -> str:
    return f"{input_amount} {_token(spec.input_token)} -> {output_amount} {_token(spec.output_token)}"


def _token(name: str) -> str:
    """Return a symbol as it is, a mint address shortened."""
    return name if len(name) <= _LONGEST_SYMBOL else _abbreviated(name, 4)


def _status(status: OrderStatus) -> Text:
    return Text(status, _STATUS_STYLES.get(status, ""))


def _abbreviated(name: str, kept: int) -> str:
    """Return an address or a hash by its first and last `kept` characters."""
    return f"{name[:kept]}..{name[-kept:]}"


def _long(time: datetime | None) -> str | None:
    if time is None:
        return None
    # At either end of what a datetime holds, local time is beyond it.
    with suppress(OverflowError):
        time = time.astimezone()
    return time.isoformat(sep=" ", timespec="milliseconds")


def _short(time: datetime) -> str:
    """Return the local time of today, the date of other days."""
    local = time.astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%d %b %y")
