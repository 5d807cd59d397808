"""What the launcher asks its children over HTTP: are you ready, how much have you done."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from engine.addresses import with_port

_SAMPLE = re.compile(
    rb'^order_engine_(?:(orders|transitions_total)\{status|(resting_orders)\{type)="(\w+)"\} (\S+)$',
    re.MULTILINE,
)


async def request(host: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """GET, or POST `body` as JSON; return status and body.

    Raises OSError when there is no answer within 5 s.
    """
    method = "GET" if body is None else "POST"
    # HTTP/1.0: the answer is not chunked, and ends with the connection.
    head = f"{method} {path} HTTP/1.0\r\nHost: {with_port(host, port)}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    try:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(head.encode() + b"\r\n" + (body or b""))
                answer = await reader.read()
            finally:
                writer.close()
    except TimeoutError:
        raise OSError(f"no answer from {with_port(host, port)}") from None
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    words = head_bytes.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise OSError(f"{with_port(host, port)} does not speak HTTP")
    return int(words[1]), content


async def unready_reason(host: str, port: int) -> str | None:
    """Return None if /healthz says that the process is ready, else why it is not."""
    try:
        status, body = await request(host, port, "/healthz")
    except OSError as error:
        return str(error) or "no answer"
    return None if status == 200 else body.decode(errors="replace").strip() or f"HTTP {status}"


async def call(host: str, port: int, method: str, params: Any) -> Any:
    """Call a JSON-RPC method and return its result. Raises OSError if it fails."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    _, content = await request(host, port, "/", body)
    answer = json.loads(content)
    if "error" in answer:
        raise OSError(f"{method}: {answer['error'].get('message')}")
    return answer["result"]


async def figures(host: str, port: int) -> dict[tuple[str, str], float] | None:
    """Return (metric, label) -> value of the orders there are, those that rest and the transitions so far.

    The label is a status, of those that rest a type. None if there is no answer.
    """
    try:
        _, body = await request(host, port, "/metrics")
    except OSError:
        return None
    return {
        ((by_status or by_type).decode(), label.decode()): float(value)
        for by_status, by_type, label, value in _SAMPLE.findall(body)
    }
