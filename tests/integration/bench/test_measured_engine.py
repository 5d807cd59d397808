"""The bench against the whole engine: every shape of load, and what the processes say of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from bench.__main__ import STANDARD
from bench.load import Scenario
from bench.measure import Server, measure, server_of_launcher
from bench.processes import all_processes, engine_processes
from bench.stack import StackError, own_server

BODIES: list[dict[str, object]] = [
    {"side": "sell", "amount": 0.1, "inputToken": "SOL", "outputToken": "USDC"},
    {"side": "buy", "amount": "0.05", "inputToken": "USDC", "outputToken": "SOL"},
]
PARTS = {"up", "postgres", "valkey", "simnet", "server", "workers", "gateway"}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Server]:
    async with own_server() as server:
        yield server


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.05)


def small(mode: str) -> Scenario:
    return Scenario(
        name=mode, mode=mode, order_count=60, concurrency=4, rate=200.0, watch_fraction=0.5, batch=20
    )


@pytest.mark.parametrize("mode", [scenario.mode for scenario in STANDARD])
async def test_every_order_is_confirmed_and_every_watcher_sees_every_event(server: Server, mode: str) -> None:
    result = await measure(small(mode), server, BODIES, 30.0, lambda _: None)

    assert result.accepted_count == 60
    assert result.finals == {"confirmed": 60}
    assert result.refused == {}
    watched = 60 if mode == "closed" else 32  # Every other one, and the last four.
    assert (result.watched_count, result.complete_count) == (watched, watched)
    assert set(result.watch_ends) == {"OK" if mode == "grpc" else "1000"}
    assert result.accept_ms is not None
    assert result.confirm_ms is not None
    assert result.accept_ms.count == 60
    assert result.confirm_ms.count == watched
    assert result.confirm_ms.p50 > result.accept_ms.p50 > 0
    assert result.accepted_per_second >= result.confirmed_per_second > 0


async def test_costs_stages_and_batches_are_those_of_the_run(server: Server) -> None:
    result = await measure(small("closed"), server, BODIES, 30.0, lambda _: None)

    assert set(result.costs) == PARTS
    assert result.costs["workers"].cpu_ms_per_order > 0
    assert all(cost.rss_peak_mb > 1 for cost in result.costs.values())
    counts = {stage.name: stage.count for stage in result.stages}
    assert counts["accept"] == counts["total"] == 60
    assert [stage.name for stage in result.stages][-1] == "total"
    submitted = next(edge for edge in result.edges if edge.name == "submit")
    assert submitted.item_count == 60
    assert submitted.batch_count <= 60


async def test_the_engine_that_runs_on_a_data_folder_is_found_again(server: Server) -> None:
    again = server_of_launcher(server.processes["up"], server.name)
    assert again == server
    with pytest.raises(LookupError, match="runs no gateway"):
        server_of_launcher(os.getpid())


async def test_the_command_measures_two_servers_in_turn_and_writes_json(
    server: Server, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "bench", "--url", server.target.urls[0], "--name", "one"),
        *("--process", f"workers={server.processes['workers']}", "--metrics", server.metrics_urls[-1]),
        *("--against", server.target.urls[0], "--against-name", "two", "--pairs", "2"),
        *("--orders", "20", "--no-warm-up", "--mode", "closed", "--json", str(report)),
        stdout=PIPE,
        stderr=PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()

    results = json.loads(report.read_text())["results"]
    assert [result["server"] for result in results] == ["one", "two", "one", "two"]
    assert all(result["finals"] == {"confirmed": 20} for result in results)
    assert [list(result["costs"]) for result in results] == [["workers"], [], ["workers"], []]
    assert "ratio of pairs" in out.decode()
    assert "confirmed/s" in out.decode()
    assert "one: closed (2/2): 20 accepted, 20 seen to close" in err.decode()


async def test_somebodys_own_services_are_left_alone() -> None:
    with pytest.MonkeyPatch.context() as environment:
        for name in ("DB_HOST", "REDIS_HOST", "SOLANA_RPC_URL", "WALLET_PATH"):
            environment.setenv(name, "/nowhere")
        async with own_server() as server:
            assert set(server.processes) == PARTS


async def test_the_engine_ends_with_the_bench_even_if_that_is_killed() -> None:
    bench = await create_subprocess_exec(sys.executable, "-m", "bench", "--no-warm-up", stderr=DEVNULL)

    def children() -> list[int]:
        return [stat.pid for stat in all_processes().values() if stat.parent == bench.pid]

    await until(lambda: any(engine_processes(pid).keys() == PARTS for pid in children()))
    parts = engine_processes(children()[0]).values()
    bench.kill()
    await bench.wait()
    await until(lambda: not all_processes().keys() & set(parts))


async def test_an_engine_that_does_not_start_says_why() -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("COMMITMENT", "processed")
        with pytest.raises(StackError, match=r'did not start; it said:\n.*COMMITMENT was "processed"'):
            async with own_server():
                pass


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--url", "https://example.com"], '"https://example.com" is not an address such as'),
        (["--url", "http://127.0.0.1:1", "--process", "server"], '"server" is not NAME=PID'),
        (["--url", "http://127.0.0.1:1", "--mode", "grpc"], "gRPC needs --grpc"),
        (
            ["--mode", "watchers", "--sockets", "10000000000"],
            "10,000,000,000 sockets need 10,000,000,500 open files",
        ),
        (["--mode", "stored", "--stored", "1000000000000"], "1,000,000,100,000 orders take"),
        (["--data-dir", "nowhere"], "no `order-engine up` runs on nowhere"),
    ],
)
async def test_what_cannot_be_measured_is_one_clear_sentence(arguments: list[str], sentence: str) -> None:
    process = await create_subprocess_exec(
        sys.executable, "-m", "bench", *arguments, stdout=PIPE, stderr=PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    assert err.decode().startswith("bench: ")
    assert sentence in err.decode()
    assert err.decode().count("\n") == 1
