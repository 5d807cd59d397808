"""`order-engine up`, as a newcomer meets it: one command, a first order, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import redis

from cli import probe
from engine.settings import Settings
from tests.ipv6 import needs_ipv6

ROOT = Path(__file__).parents[2]
ANY_PORTS = dict.fromkeys(
    ("PORT", "GRPC_PORT", "SERVER_METRICS_PORT", "WORKERS_METRICS_PORT", "SIMNET_PORT"), "0"
)
NOBODY = 65534
PROCESSES = ("postgres", "valkey-server", "simnet", "server", "workers", "gateway")

ProcessesIn = Callable[[Path], list[str]]
Until = Callable[..., Awaitable[None]]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that only its owner may enter, with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="oe-up-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Up:
    """A running `order-engine up`, started in `home` with its data folder there."""

    def __init__(self, process: Process, home: Path) -> None:
        self.process = process
        self.home = home
        self.output = ""

    async def read_until(self, text: str, seconds: float = 90.0) -> None:
        """Read its output until it has said `text`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            while text not in self.output:
                line = await self.process.stdout.readline()
                assert line, f"it ended before it said {text!r}:\n{self.output}"
                self.output += line.decode()

    async def left(self, seconds: float = 60.0) -> int:
        """Read its output no longer, press Ctrl-C, and return its exit code once it has ended."""
        self.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    async def ended(self, seconds: float = 60.0) -> int:
        async with asyncio.timeout(seconds):
            rest, _ = await self.process.communicate()
        self.output += rest.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    @property
    def server(self) -> str:
        """host:port of its gRPC server."""
        found = re.search(r"gRPC, (\S+:\d+)", self.output)
        assert found is not None, self.output
        return found[1]

    @property
    def gateway(self) -> str:
        found = re.search(r"Console +(http://\S+)/", self.output)
        assert found is not None, self.output
        return found[1]

    async def order_engine(self, *arguments: str) -> tuple[int, str, str]:
        """Run a client command against it; return exit code, stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli", *arguments, "--server", self.server),
            stdout=PIPE,
            stderr=PIPE,
            cwd=self.home,
            env=environ(),
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


def environ(**settings: str) -> dict[str, str]:
    """Return this environment with those settings and nobody's services, and this checkout importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DB_", "REDIS_"))}
    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "generated"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **ANY_PORTS, **settings}


@asynccontextmanager
async def up(
    home: Path, *arguments: str, python: Sequence[str] = (sys.executable,), **settings: str
) -> AsyncIterator[Up]:
    """Run `order-engine up`; whatever becomes of the test, it is gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(*python, "-m", "cli", "up", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        cwd=home,
        env=environ(**settings),
        process_group=0,  # as a shell starts it in a terminal
    )
    try:
        yield Up(process, home)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


@pytest.fixture
def ordinary_user(home: Path) -> list[str]:
    """The command that runs Python as an unprivileged user, who owns `home`."""
    if os.geteuid() != 0:
        return [sys.executable]  # That is who runs the tests.
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv to become an ordinary user with")
    os.chown(home, NOBODY, NOBODY)
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # The virtual environment's own interpreter may be in a home of root's that others cannot enter.
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = [*become, python]
        # It has to start itself again by its name too, as the launcher does.
        probe = "import cli.up, client, subprocess, sys\n"
        probe += "subprocess.run([sys.executable, '-c', ''], check=True)"
        found = subprocess.run([*command, "-c", probe], capture_output=True, cwd=home, env=_with_packages())
        if found.returncode == 0:
            return command
    pytest.skip("an ordinary user of this machine cannot run this Python")


def _with_packages() -> dict[str, str]:
    found = environ()
    found["PYTHONPATH"] += os.pathsep + sysconfig.get_path("purelib")
    return found


async def test_first_order_crash_restart_and_a_clean_end(
    home: Path, processes_in: ProcessesIn, until: Until
) -> None:
    async with up(home, "--data-dir", "data") as first:
        await first.read_until("watch <orderId>")
        running = "\n".join(processes_in(home))
        for name in PROCESSES:
            assert name in running
        assert (home / "data" / "wallet.json").stat().st_mode & 0o777 == 0o600

        code, said, err = await first.order_engine("submit", "sell", "1.5", "SOL", "USDC", "-w", "--json")
        assert (code, err) == (0, "")
        order, *events = [json.loads(line) for line in said.splitlines()]
        statuses = [event["status"] for event in events]
        assert (statuses[0], statuses[-1]) == ("pending", "confirmed")
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        wallet = (home / "data" / "wallet.json").read_text()

        # A second one would use the same files: refused, and the first does not notice.
        async with up(home, "--data-dir", "data") as second:
            assert await second.ended() == 2
            assert second.output == (
                f"order-engine: data is in use by another `order-engine up` (process {first.process.pid}); "
                "stop it, or choose another --data-dir\n"
            )
        port = first.gateway.rpartition(":")[2]
        async with up(home, "--data-dir", "other", PORT=port) as second:
            assert await second.ended() == 2
            assert second.output == (
                f"order-engine: port {port} is in use; stop what listens there, or set another PORT\n"
            )

        # The launcher ends without a word: so does everything.
        first.process.kill()
        await first.ended()
        await until(lambda: not processes_in(home))

    async with up(home, "--data-dir", "data", "--workers", "2") as again:
        await again.read_until("watch <orderId>")
        assert "up to date" in again.output
        assert (home / "data" / "wallet.json").read_text() == wallet
        code, said, _ = await again.order_engine("get", order["orderId"], "--json")
        assert (code, json.loads(said)["status"]) == (0, "confirmed")

        # One that dies comes back by itself, and it is said.
        [gateway] = [line for line in processes_in(home) if line.endswith("-m gateway")]
        os.kill(int(gateway.split()[0]), signal.SIGKILL)
        await again.read_until("gateway is ready again")
        assert "gateway was ended by SIGKILL; starting it again" in again.output

        [postgres] = [line for line in processes_in(home) if "/bin/postgres -D" in line]
        os.kill(int(postgres.split()[0]), signal.SIGKILL)
        await again.read_until("postgres is ready again")

        code, said, _ = await again.order_engine("submit", "buy", "20", "SOL", "USDC", "--watch")
        assert code == 0
        assert "confirmed" in said.splitlines()[-1]

        again.process.terminate()
        assert await again.ended() == 0
        assert "stopped; the data are in data" in again.output
        assert processes_in(home) == []
        assert not (home / "data" / "run").exists(), "sockets of what runs no more"


async def test_of_several_servers_and_gateways_each_serves_and_one_may_die(
    home: Path, processes_in: ProcessesIn
) -> None:
    async with up(home, "--data-dir", "data", "--servers", "2", "--gateways", "2") as engine:
        await engine.read_until("watch <orderId>")
        grpc_ports = re.search(r"gRPC, 127\.0\.0\.1:(\d+) to (\d+) ", engine.output)
        rest_ports = re.search(r"console, http://127\.0\.0\.1:(\d+) to (\d+) ", engine.output)
        assert grpc_ports is not None
        assert rest_ports is not None
        assert [int(ports[2]) - int(ports[1]) for ports in (grpc_ports, rest_ports)] == [1, 1]
        servers = [int(line.split()[0]) for line in processes_in(home) if line.endswith("-m server")]
        assert len(servers) == 2

        [first] = [pid for pid in servers if f"GRPC_PORT={grpc_ports[1]}\0" in _environ_of(pid)]
        os.kill(first, signal.SIGKILL)
        await engine.read_until("server-1 was ended by SIGKILL")
        # The other server takes what comes through either gateway.
        gateways = [f"http://127.0.0.1:{port}" for port in rest_ports.groups()]
        order_ids = [await asyncio.to_thread(_submit, gateway) for gateway in gateways]
        await engine.read_until("server-1 is ready again")
        for order_id in order_ids:
            code, said, _ = await engine.order_engine("watch", order_id)
            assert code == 0, said
        engine.process.terminate()
        assert await engine.ended() == 0
        assert processes_in(home) == []


@needs_ipv6
async def test_everything_listens_at_an_ipv6_address(home: Path, processes_in: ProcessesIn) -> None:
    async with up(home, "--ephemeral", "--servers", "2", HOST="::") as engine:
        await engine.read_until("watch <orderId>")
        assert engine.gateway.startswith("http://[::1]:")
        assert engine.server.startswith("[::1]:")
        order_id = await asyncio.to_thread(_submit, engine.gateway)
        code, said, _ = await engine.order_engine("watch", order_id)
        assert code == 0, said
        engine.process.terminate()
        assert await engine.ended() == 0
        assert processes_in(home) == []


def _environ_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def _submit(gateway: str) -> str:
    """Submit an order to the gateway at that address; return its id."""
    body = json.dumps({"side": "sell", "amount": 1, "inputToken": "SOL", "outputToken": "USDC"}).encode()
    request = urllib.request.Request(
        f"{gateway}/api/orders/execute", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["orderId"])


async def test_the_client_commands_read_cancel_and_refuse(home: Path) -> None:
    async with up(home, "--ephemeral", TMPDIR=str(home)) as engine:
        await engine.read_until("watch <orderId>")

        code, said, _ = await engine.order_engine("quote", "sell", "1.5", "SOL", "USDC")
        assert code == 0
        assert "Raydium" in said
        assert "Meteora" in said
        code, said, _ = await engine.order_engine("quote", "sell", "1.5", "SOL", "USDC", "--json")
        assert json.loads(said)["route"]["inputAmount"] == "1.5"

        code, said, _ = await engine.order_engine(
            "submit", "sell", "0.5", "SOL", "USDC", "--request-id", "mine", "--watch"
        )
        assert code == 0
        order_id = said.split()[1].rstrip(":")
        code, said, _ = await engine.order_engine(
            "submit", "sell", "0.5", "SOL", "USDC", "--request-id", "mine"
        )
        assert (code, said) == (0, f"order {order_id} (submitted before): sell 0.5 SOL -> USDC\n")
        code, said, err = await engine.order_engine(
            "submit", "sell", "0.6", "SOL", "USDC", "--request-id", "mine"
        )
        assert (code, said) == (1, "")
        assert 'request_id "mine" was used for a different order' in err

        code, said, _ = await engine.order_engine("watch", order_id, "--after", "3", "--json")
        assert code == 0
        assert json.loads(said.splitlines()[0])["sequence"] == 4
        code, said, _ = await engine.order_engine("get", order_id)
        assert code == 0
        assert "attempt 1, slot" in said
        code, said, _ = await engine.order_engine("list", "--status", "confirmed", "--json")
        assert [json.loads(line)["orderId"] for line in said.splitlines()] == [order_id]
        code, said, _ = await engine.order_engine("list", "--status", "failed")
        assert (code, said) == (0, "no orders\n")

        code, _, err = await engine.order_engine("cancel", order_id)
        assert code == 1
        assert err == f"order-engine: order {order_id} cannot be cancelled: it is already confirmed\n"
        code, _, err = await engine.order_engine("submit", "sell", "0", "SOL", "USDC")
        assert (code, err) == (1, "order-engine: amount was 0; must be greater than zero\n")
        code, _, err = await engine.order_engine("get", "0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77")
        assert (code, err) == (1, "order-engine: no order 0198c2f0-5b7e-7d31-a4c2-9f6e2b1d8a77\n")

        # Ctrl-C in a terminal is a signal to the whole process group. The launcher alone is in it.
        os.killpg(engine.process.pid, signal.SIGINT)
        assert await engine.ended() == 0
        assert " ended " not in engine.output
    assert os.listdir(home) == [], "nothing is kept"


async def test_orders_rest_and_are_filled_when_their_time_has_come(
    home: Path, free_port: Callable[[], int]
) -> None:
    node = free_port()
    quiet = {"SIMNET_SLOT_MS": "100", "SIMNET_MARKET_POOLS": "0", "SIMNET_LAUNCH_SLOTS": "0"}
    async with (
        up(home, "--ephemeral", SIMNET_PORT=str(node), **quiet) as engine,
        aiohttp.ClientSession() as http,
    ):
        await engine.read_until("watch <orderId>")
        launch = await probe.call(
            "127.0.0.1",
            node,
            "simnet_launch",
            [{"quote": "SOL", "quoteAmount": 2 * 10**10, "price": 0.001, "slots": 10**6}],
        )

        # One over REST, the others on the command line.
        asked = {"side": "sell", "amount": 1.5, "inputToken": "SOL", "outputToken": "USDC"}
        body = {**asked, "type": "limit", "limitPrice": 108.25}
        async with http.post(f"{engine.gateway}/api/orders/execute", json=body) as answer:
            limit = (await answer.json())["orderId"]
            assert answer.status == 202
        code, said, _ = await engine.order_engine(
            "submit", "sell", "1", "SOL", launch["mint"], "--sniper", "--min-liquidity", "5", "--json"
        )
        sniper = json.loads(said)["orderId"]
        assert code == 0
        code, said, _ = await engine.order_engine(
            "submit", "buy", "100", "SOL", "USDC", "--limit", "500", "--json"
        )
        far = json.loads(said)["orderId"]
        await engine.read_until("resting 3 (limit 2, sniper 1)")
        code, said, _ = await engine.order_engine("list", "--type", "limit", "--json")
        listed = [json.loads(line) for line in said.splitlines()]
        assert [(order["orderId"], order["status"], order["limitPrice"]) for order in listed] == [
            (far, "pending", 500),
            (limit, "pending", 108.25),
        ]

        # What they wait for comes, at once for both.
        pair = {"pair": "SOL/USDC", "bps": 500}
        await probe.call("127.0.0.1", node, "simnet_move_price", [pair])
        opening = {"mint": launch["mint"], "quote": "SOL", "quoteAmount": 10**10, "price": 0.001}
        await probe.call("127.0.0.1", node, "simnet_launch", [{**opening, "kind": "raydium_cpmm"}])
        for order_id in (limit, sniper):
            url = f"{engine.gateway.replace('http', 'ws')}/api/orders/{order_id}/ws"
            async with asyncio.timeout(30), http.ws_connect(url) as socket:
                events = [json.loads(message.data) async for message in socket]
            assert [event["status"] for event in events] == [
                "pending", "routing", "building", "submitted", "confirmed",
            ]  # fmt: skip
            if order_id == limit:
                assert float(events[-1]["outputAmount"]) >= 1.5 * 108.25

        code, _, _ = await engine.order_engine("cancel", far)
        assert code == 0
        code, said, _ = await engine.order_engine("watch", far, "--json")
        assert [json.loads(line)["status"] for line in said.splitlines()] == ["pending", "cancelled"]
        engine.process.terminate()
        assert await engine.ended() == 0


async def test_an_ordinary_user_runs_it_too(
    home: Path, ordinary_user: list[str], processes_in: ProcessesIn, until: Until
) -> None:
    environment = _with_packages()
    async with up(
        home, "--data-dir", "data", python=ordinary_user, PYTHONPATH=environment["PYTHONPATH"], HOME=str(home)
    ) as engine:
        await engine.read_until("watch <orderId>")
        if os.geteuid() == 0:
            owners = {(home / "data" / name).stat().st_uid for name in ("postgres", "valkey", "wallet.json")}
            assert owners == {NOBODY}
        code, _, _ = await engine.order_engine("submit", "sell", "1", "SOL", "USDC", "--watch")
        assert code == 0
        engine.process.send_signal(signal.SIGHUP)  # its terminal was closed
        assert await engine.ended() == 0
        await until(lambda: not processes_in(home))


async def test_it_ends_in_order_though_nobody_reads_what_it_says(
    home: Path, processes_in: ProcessesIn, until: Until
) -> None:
    """As of `order-engine up | tee log`, whose reader Ctrl-C ends at the same moment."""
    async with up(home, "--data-dir", "data") as engine:
        await engine.read_until("watch <orderId>")
        assert await engine.left() == 0
        await until(lambda: not processes_in(home))
    assert not (home / "data" / "run").exists()


async def test_services_that_are_named_are_used_instead(home: Path, settings: Settings) -> None:
    (home / ".env").write_text(
        f"DB_HOST={settings.db_host}\nDB_PORT={settings.db_port}\nDB_USERNAME={settings.db_username}\n"
        f"DB_PASSWORD={settings.db_password}\nDB_NAME={settings.db_name}\n"
        f"REDIS_HOST={settings.redis_host}\nREDIS_PORT={settings.redis_port}\n"
        f"REDIS_PASSWORD={settings.redis_password}\n"
    )
    async with up(home, "--data-dir", "data") as engine:
        await engine.read_until("watch <orderId>")
        code, _, _ = await engine.order_engine("submit", "sell", "1", "SOL", "USDC", "--watch")
        assert code == 0
        assert not (home / "data" / "postgres").exists()
        assert not (home / "data" / "valkey").exists()
        with redis.Redis.from_url(settings.redis_url) as client:
            assert client.dbsize() > 0
        engine.process.terminate()
        assert await engine.ended() == 0


# ---- Refusals: one sentence, exit code 2, and nothing left running ---------------------------------


async def _refusal(home: Path, processes_in: ProcessesIn, **settings: str) -> str:
    async with up(home, "--data-dir", "data", **settings) as engine:
        assert await engine.ended() == 2
        assert processes_in(home) == []
    *before, last = engine.output.splitlines()
    assert [line for line in before if line.startswith("order-engine:")] == []
    return last


async def test_an_unreachable_postgres_is_named(home: Path, processes_in: ProcessesIn) -> None:
    said = await _refusal(home, processes_in, DB_HOST="127.0.0.1", DB_PORT="1")
    assert said.startswith("order-engine: PostgreSQL at 127.0.0.1:1 cannot be used: ")


async def test_an_unreachable_redis_is_named(home: Path, processes_in: ProcessesIn) -> None:
    said = await _refusal(home, processes_in, REDIS_HOST="127.0.0.1", REDIS_PORT="1")
    assert said.startswith("order-engine: Redis at 127.0.0.1:1 cannot be used: ")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/?api-key=secret", "http://user:secret@127.0.0.1:1/a b"])
async def test_an_unreachable_node_is_named(home: Path, processes_in: ProcessesIn, url: str) -> None:
    said = await _refusal(home, processes_in, SOLANA_RPC_URL=url)
    assert said.startswith("order-engine: SOLANA_RPC_URL http://127.0.0.1:1 cannot be reached: ")
    assert "secret" not in said


async def test_who_is_no_node_is_named(home: Path, processes_in: ProcessesIn) -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is no HTTP")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        place = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        said = await _refusal(home, processes_in, SOLANA_RPC_URL=f"{place}/?api-key=secret")
    assert said == f"order-engine: SOLANA_RPC_URL {place} is not a Solana node"


async def test_a_wallet_that_cannot_be_read_is_named_before_anything_starts(
    home: Path, processes_in: ProcessesIn
) -> None:
    async with up(home, WALLET_PATH="nowhere.json") as engine:
        assert await engine.ended() == 2
        assert processes_in(home) == []
    (said,) = engine.output.splitlines()
    assert said.startswith("order-engine: ")
    assert "nowhere.json" in said


async def test_a_redis_that_is_too_old_is_refused(home: Path, processes_in: ProcessesIn) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            about = b"# Server\r\nredis_version:6.2.14\r\n"
            writer.write(b"$%d\r\n%s\r\n" % (len(about), about))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as old:
        port = str(old.sockets[0].getsockname()[1])
        said = await _refusal(home, processes_in, REDIS_HOST="127.0.0.1", REDIS_PORT=port)
    assert said == f"order-engine: Redis at 127.0.0.1:{port} is version 6.2.14; 7.0 or later is needed"


async def test_a_postgres_that_is_too_old_is_refused(home: Path, processes_in: ProcessesIn) -> None:
    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Requests for encryption (8 bytes) are declined; what follows is the start of the session.
        while len(await reader.read(4096)) == 8:
            writer.write(b"N")
        writer.write(message(b"R", bytes(4)))
        told = {"server_version": "14.9", "client_encoding": "UTF8"}
        for name, value in (
            told | dict.fromkeys(("default_transaction_read_only", "in_hot_standby"), "off")
        ).items():
            writer.write(message(b"S", f"{name}\0{value}\0".encode()))
        writer.write(message(b"Z", b"I"))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as old:
        port = str(old.sockets[0].getsockname()[1])
        said = await _refusal(home, processes_in, DB_HOST="127.0.0.1", DB_PORT=port)
    assert said == "order-engine: PostgreSQL is version 14; 15 or newer is needed"


async def test_a_setting_that_makes_no_sense_is_refused(home: Path, processes_in: ProcessesIn) -> None:
    said = await _refusal(home, processes_in, SLIPPAGE_BPS="many")
    assert said == 'order-engine: SLIPPAGE_BPS was "many"; must be a whole number'


async def test_a_stop_while_it_starts_leaves_nothing(home: Path, processes_in: ProcessesIn) -> None:
    async with up(home, "--data-dir", "data") as engine:
        await engine.read_until("PostgreSQL")
        engine.process.terminate()
        assert await engine.ended() == 0
        assert processes_in(home) == []
