"""simnet as a process: what it told of survives kill -9, and it starts and stops as every process does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from solders.signature import Signature

from engine.settings import Settings, settings_as_environ
from engine.solana.accounts import MINT
from engine.solana.instructions import memo, transfer_lamports
from simnet import base58
from simnet.ledger import FILE_NAME, LedgerReader
from tests.simnet_wallets import SigningWallet

ALICE, BOB = SigningWallet(1), SigningWallet(2)
PROCESSED = {"commitment": "processed"}
_ROOT = Path(__file__).parents[3]


class Process:
    """A running `python -m simnet`."""

    def __init__(self, child: asyncio.subprocess.Process, session: aiohttp.ClientSession, port: int) -> None:
        self.child = child
        self._session = session
        self._url = f"http://127.0.0.1:{port}"

    async def call(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        async with self._session.post(self._url, json=body) as response:
            answer = await response.json()
        assert "error" not in answer, answer
        return answer["result"]

    async def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        await self.child.wait()

    async def blockhash(self) -> bytes:
        return base58.decode((await self.call("getLatestBlockhash", PROCESSED))["value"]["blockhash"])

    async def send(self, raw: bytes) -> str:
        options = {"encoding": "base64", "skipPreflight": True}
        return str(await self.call("sendTransaction", b64encode(raw).decode(), options))

    async def statuses(self, signatures: list[str]) -> list[Any]:
        answer = await self.call("getSignatureStatuses", signatures, {"searchTransactionHistory": True})
        value: list[Any] = answer["value"]
        return value

    async def landed(self, signature: str) -> None:
        """Return once the transaction has."""
        async with asyncio.timeout(20):
            while True:
                (status,) = await self.statuses([signature])
                if status is not None:
                    return
                await asyncio.sleep(0.01)


def environ(folder: Path, port: int, **settings: Any) -> dict[str, str]:
    figures = {"simnet_port": port, "simnet_slot_ms": 10, "simnet_data_dir": str(folder), **settings}
    return os.environ | settings_as_environ(Settings(**figures))


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Process]:
    """Run it on ports it chooses itself, which its log tells."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "simnet",
        cwd=_ROOT,
        env=environ(folder, 0, **settings),
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    try:
        async with asyncio.timeout(20):
            line = await child.stderr.readline()
        entry = json.loads(line)
        assert entry["message"] == "listening", line
        async with aiohttp.ClientSession() as session:
            yield Process(child, session, entry["port"])
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_what_was_told_survives_kill_9(tmp_path: Path) -> None:
    sent: dict[str, bytes] = {}
    told: dict[str, Any] = {}
    async with running(tmp_path) as simnet:
        for wallet in (ALICE, BOB):
            await simnet.call("simnet_fund", {"wallet": str(wallet.pubkey), "mint": "SOL", "amount": 10**12})
    for _ in range(4):
        async with running(tmp_path) as simnet:
            if told:
                for before, now in zip(
                    list(told.values())[-200:], await simnet.statuses(list(told)[-200:]), strict=True
                ):
                    assert (now["slot"], now["err"]) == (before["slot"], before["err"])
            async with asyncio.timeout(20):
                while True:
                    blockhash = await simnet.blockhash()
                    for number in range(10):
                        raw = ALICE.sign(
                            [
                                transfer_lamports(ALICE.pubkey, BOB.pubkey, 1),
                                memo(f"{len(sent)}:{number}", ALICE.pubkey),
                            ],
                            blockhash,
                        )
                        sent[await simnet.send(raw)] = raw
                    statuses = await simnet.statuses(list(sent)[-200:])
                    told |= {
                        signature: status
                        for signature, status in zip(list(sent)[-200:], statuses, strict=True)
                        if status is not None
                    }
                    height = await simnet.call("getBlockHeight", PROCESSED)
                    if sum(status is not None for status in statuses) > 40:
                        break
            # With transactions on their way, in the middle of a slot.
            await simnet.kill()
        reader = LedgerReader(tmp_path / FILE_NAME)
        on_record = {str(Signature.from_bytes(each.signature)): each for each in reader.page(limit=100_000)}
        reader.close()
        assert all(on_record[signature].slot == status["slot"] for signature, status in told.items())
        async with running(tmp_path) as again:
            assert await again.call("getBlockHeight", PROCESSED) >= height
            valid = await again.call("isBlockhashValid", base58.encode(blockhash), PROCESSED)
            assert valid["value"] is True
            # Sent again, what had landed lands no second time.
            for signature in list(told)[-5:]:
                await again.send(sent[signature])
            marker = await again.send(ALICE.sign([memo("marker", ALICE.pubkey)], await again.blockhash()))
            await again.landed(marker)
            balance = (await again.call("getBalance", str(BOB.pubkey), PROCESSED))["value"]
            await again.kill()
        reader = LedgerReader(tmp_path / FILE_NAME)
        page = reader.page(limit=100_000)
        reader.close()
        assert len({each.signature for each in page}) == len(page)
        assert [each.sequence for each in page] == list(range(1, len(page) + 1))
        transfers = sum(each.memo != "marker" and each.error is None for each in page)
        assert balance == 10**12 + transfers


async def test_launches_survive_kill_9_and_those_that_wait_open_in_their_slots(tmp_path: Path) -> None:
    figures = {"simnet_launch_slots": 20, "simnet_market_pools": 1}
    async with running(tmp_path, **figures) as simnet:
        waiting = await simnet.call("simnet_launch", {"quoteAmount": 10**10, "slots": 60})
        at_once = await simnet.call("simnet_launch", {"quoteAmount": 10**10})
        async with asyncio.timeout(20):
            while True:
                told = await simnet.call("simnet_launches", {"count": 100})
                if sum(each["open"] for each in told) > 2:
                    break
        # With slots shown that are not on record.
        await simnet.kill()
    opened = [each for each in told if each["open"]]
    async with running(tmp_path, **figures) as again:
        now = await again.call("simnet_launches", {"count": 100})
        assert [each for each in now if each["slot"] <= opened[-1]["slot"]] == opened
        assert at_once in opened
        pools = {each["pool"]: each for each in await again.call("simnet_pools")}
        assert pools.keys() >= {each["pool"] for each in opened}
        await again.call("simnet_advance", {"slots": 60})
        assert {**waiting, "open": True} in await again.call("simnet_launches", {"count": 100})
        mint = await again.call("getAccountInfo", waiting["mint"], {"encoding": "base64", **PROCESSED})
        supply = MINT.decode(b64decode(mint["value"]["data"][0])).supply
        assert supply == int(waiting["baseAmount"])


async def test_sigterm_ends_it_in_good_order_and_it_goes_on_later(tmp_path: Path) -> None:
    async with running(tmp_path) as simnet:
        slot = await simnet.call("getSlot", PROCESSED)
        simnet.child.terminate()
        async with asyncio.timeout(15):
            assert await simnet.child.wait() == 0
    async with running(tmp_path) as again:
        assert await again.call("getSlot", PROCESSED) >= slot


def _listener_next_to_a_free_port() -> socket.socket:
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        try:
            socket.create_server(("127.0.0.1", listener.getsockname()[1] - 1)).close()
        except OSError:
            # Some connection's own end, as likely as not.
            listener.close()
        else:
            return listener


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"simnet_faults": "drip=1"}, 'SIMNET_FAULTS: there is no fault "drip"'),
        ({"simnet_seed": 2}, "SIMNET_SEED was 2, but the ledger"),
        ({"simnet_port": "taken"}, "cannot be used"),
        ({"simnet_port": "neighbour taken"}, "for WebSocket next to SIMNET_PORT, cannot be used"),
        ({"simnet_data_dir": "/dev/null/ledger"}, "cannot keep its ledger"),
    ],
)
async def test_what_it_cannot_start_with_is_one_sentence_and_exit_code_2(
    tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    if "simnet_seed" in settings:
        async with running(tmp_path):
            pass
    with _listener_next_to_a_free_port() as listener:
        taken = listener.getsockname()[1]
        given = dict(settings)
        port = given.pop("simnet_port", "free")
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "simnet"],
            cwd=_ROOT,
            env=environ(
                Path(given.pop("simnet_data_dir", tmp_path)),
                {"taken": taken, "neighbour taken": taken - 1, "free": 0}[port],
                **given,
            ),
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 2
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
