"""What the launcher reads of its children's /metrics."""

from __future__ import annotations

import asyncio

from cli.probe import figures

METRICS = b"""# HELP order_engine_orders Orders that are open and do not rest.
# TYPE order_engine_orders gauge
order_engine_orders{status="open"} 1300.0
order_engine_resting_orders{type="limit"} 1200.0
order_engine_resting_orders{type="sniper"} 4.0
order_engine_transitions_total{status="pending"} 7.0
order_engine_retries_total{reason="no_route"} 1.0
order_engine_resting_orders{status="limit"} 9.0
process_cpu_seconds_total 1.5
"""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + METRICS)
    writer.close()


async def test_figures_are_those_by_status_and_by_type() -> None:
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert await figures("127.0.0.1", port) == {
            ("orders", "open"): 1300.0,
            ("resting_orders", "limit"): 1200.0,
            ("resting_orders", "sniper"): 4.0,
            ("transitions_total", "pending"): 7.0,
        }
    assert await figures("127.0.0.1", port) is None
