"""A headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Nothing it does by itself may reach for the internet.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One tab. `complaints` is whatever the page threw, logged as an error or was refused by its policy."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last_id = 0
        self.complaints: list[str] = []
        self.requests: list[str] = []
        """Addresses the page asked for."""

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        await self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(await self._socket.recv())
            if message.get("id") == self._last_id:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    async def run(self, script: str) -> Any:
        """Return what the JavaScript expression is, promises awaited."""
        answer = await self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 20.0) -> Any:
        """Return the expression's value once it is true."""
        try:
            async with asyncio.timeout(seconds):
                while not (value := await self.run(script)):  # noqa: ASYNC110 - the page sets no event
                    await asyncio.sleep(0.03)
                return value
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"not so after {seconds:g} s: {script}\n{text}") from None

    async def open(self, address: str) -> None:
        await self.command("Page.navigate", url=address)
        await self.until("document.readyState === 'complete'")

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message["method"]:
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["source"] != "network":
                self.complaints.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])


@asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A new browser with an empty profile and one tab."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="oe-browser-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
            stderr=asyncio.subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        try:
            async with asyncio.timeout(30):
                port = await _port(Path(profile) / "DevToolsActivePort")
                address = await _first_page(port)
            async with connect(address, max_size=None) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.command(f"{domain}.enable")
                yield page
        finally:
            # The processes of one that ends in peace may still write to the profile when it is gone.
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _port(file: Path) -> int:
    while True:
        if file.exists() and (lines := file.read_text().split()):  # noqa: ASYNC240
            return int(lines[0])
        await asyncio.sleep(0.03)


async def _first_page(port: int) -> str:
    import aiohttp

    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                for target in await answer.json(content_type=None):
                    if target["type"] == "page":
                        return str(target["webSocketDebuggerUrl"])
            await asyncio.sleep(0.03)
