"""The whole node: chain, JSON-RPC, WebSocket, health and metrics, from settings."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from engine.addresses import listen
from engine.process import StartupError
from engine.settings import Settings, SettingsError
from engine.telemetry import render_metrics
from simnet.bank import Bank
from simnet.chain import FIRST_SLOT, Chain, Timing
from simnet.faults import FaultError, parse_faults
from simnet.genesis import make_genesis
from simnet.history import History
from simnet.http import HttpConnections, answer, json_answer
from simnet.ledger import Ledger, LedgerError
from simnet.market import Market
from simnet.programs import all_programs
from simnet.rpc import Rpc
from simnet.ws import Sockets

logger = logging.getLogger(__name__)

_PORT_ATTEMPTS: Final = 50
_LATE_SECONDS: Final = 5.0


class Node:
    """Serves while its `async with` block runs; `run` produces the slots.

    Raises StartupError or SettingsError, with a sentence for the user, where it cannot.
    """

    def __init__(self, settings: Settings, *, unix_seconds: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._unix_seconds = unix_seconds
        self._stack = AsyncExitStack()
        self._slot_time = 0.0
        self._loop: asyncio.AbstractEventLoop
        self.chain: Chain
        self.port = settings.simnet_port
        """Of JSON-RPC; 0 becomes the one that was chosen. The WebSocket is on the next one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port + 1}"

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def run(self) -> None:
        """Produce slots, for ever."""
        await self.chain.run()

    async def _open(self) -> None:
        settings = self._settings
        try:
            faults = parse_faults(settings.simnet_faults)
        except FaultError as error:
            raise SettingsError(f"SIMNET_FAULTS: {error}") from None
        folder = Path(settings.simnet_data_dir or self._temporary_folder())
        genesis = make_genesis(settings.simnet_seed)
        try:
            ledger = Ledger(folder)
        except LedgerError as error:
            raise StartupError(str(error)) from None
        progress = ledger.progress()
        if progress is not None and progress.seed != settings.simnet_seed:
            ledger.close()
            raise SettingsError(
                f"SIMNET_SEED was {settings.simnet_seed}, but the ledger in {folder} was made with"
                f" {progress.seed}; use that seed or another SIMNET_DATA_DIR"
            )
        self.chain = Chain(
            genesis,
            Bank(all_programs(), genesis.fee_collector),
            Market(genesis, settings.simnet_seed, settings.simnet_market_pools, FIRST_SLOT),
            ledger,
            seed=settings.simnet_seed,
            timing=Timing(
                slot_seconds=settings.simnet_slot_ms / 1000,
                confirmed_slots=settings.simnet_confirmed_slots,
                finalized_slots=settings.simnet_finalized_slots,
                landing_slots=settings.simnet_landing_slots,
                landing_jitter_slots=settings.simnet_landing_jitter_slots,
                blockhash_blocks=settings.simnet_blockhash_blocks,
            ),
            faults=faults,
            unix_seconds=self._unix_seconds,
            launch_slots=settings.simnet_launch_slots,
        )
        self._stack.callback(self.chain.close)
        self.chain.start()
        self._loop = asyncio.get_running_loop()
        self.chain.listeners.append(self._note_slot)
        self._note_slot()
        history_slots = settings.simnet_history_slots
        history = History(self.chain, history_slots) if history_slots else None
        await self._listen(Rpc(self.chain, genesis.faucet, history), Sockets(self.chain))
        logger.info("listening", extra={"port": self.port, "slot": self.chain.slot, "ledger": str(folder)})

    def _temporary_folder(self) -> str:
        return self._stack.enter_context(tempfile.TemporaryDirectory(prefix="simnet-"))

    async def _listen(self, rpc: Rpc, sockets: Sockets) -> None:
        def serve(method: str, path: str, body: bytes) -> bytes | Coroutine[Any, Any, bytes]:
            if method != "POST":
                return self._probe(path, rpc)
            answered = rpc.answer(body)
            return json_answer(answered) if isinstance(answered, list) else _json_answer_of(answered)

        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        connections = HttpConnections(serve, tasks)
        # Last in, first out: nobody new is let in before those who are here are told to go.
        self._stack.callback(connections.close)
        self._stack.push_async_callback(sockets.close)
        for server in await self._bind(connections, sockets):
            self._stack.callback(server.close)

    async def _bind(self, http: HttpConnections, sockets: Sockets) -> tuple[asyncio.Server, asyncio.Server]:
        """Take two neighbouring ports: the settings' or, where that is 0, any."""
        loop = asyncio.get_running_loop()
        host = self._settings.host
        wanted = self._settings.simnet_port
        for _ in range(1 if wanted else _PORT_ATTEMPTS):
            try:
                first = await loop.create_server(http, sock=listen(host, wanted))
            except OSError as error:
                raise StartupError(f"SIMNET_PORT {wanted} cannot be used: {error.strerror}") from None
            self.port = first.sockets[0].getsockname()[1]
            try:
                return first, await loop.create_server(sockets, sock=listen(host, self.port + 1))
            except (OSError, OverflowError) as error:
                first.close()
                if wanted:
                    raise StartupError(
                        f"port {wanted + 1}, for WebSocket next to SIMNET_PORT, cannot be used: {error}"
                    ) from None
        raise StartupError("no two neighbouring ports are free for simnet")

    def _probe(self, path: str, rpc: Rpc) -> bytes:
        if path == "/health":
            return answer(b"ok")
        if path == "/healthz":
            reason = self._reason_not_ready()
            return answer(b"ok\n") if reason is None else answer(f"{reason}\n".encode(), status=503)
        if path == "/metrics":
            rpc.count_answered()
            metrics, content_type = render_metrics()
            return answer(metrics, content_type=content_type)
        return answer(b"JSON-RPC by POST; GET /health, /healthz, /metrics\n", status=404)

    def _note_slot(self) -> None:
        self._slot_time = self._loop.time()

    def _reason_not_ready(self) -> str | None:
        if not self.chain.producing:
            return None
        late = self._loop.time() - self._slot_time
        if late > _LATE_SECONDS + self.chain.timing.slot_seconds:
            return f"no slot for {late:.0f} s"
        return None


async def _json_answer_of(pieces: Coroutine[Any, Any, list[bytes]]) -> bytes:
    return json_answer(await pieces)
