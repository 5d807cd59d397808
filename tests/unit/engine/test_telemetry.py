"""Logs are one JSON line an entry; metrics and health are served over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Histogram as PrometheusHistogram

from engine import telemetry
from engine.coalesce import Coalescer
from engine.settings import SettingsError

ORDER_ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.fixture
def _logging_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    chatty = {name: logging.getLogger(name).level for name in telemetry._CHATTY}
    yield
    logging.setLogRecordFactory(logging.LogRecord)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name, before in chatty.items():
        logging.getLogger(name).setLevel(before)


def entry_of(**fields: Any) -> dict[str, Any]:
    record = logging.makeLogRecord({"name": "engine.test", "levelname": "INFO", **fields})
    line = telemetry.JsonFormatter("server").format(record)
    assert "\n" not in line
    assert "\r" not in line

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    entry: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return entry


def test_an_entry_tells_when_how_grave_which_process_and_what() -> None:
    entry = entry_of(msg="%d orders", args=(3,), created=1_700_000_000.25)
    assert entry == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "INFO",
        "process": "server",
        "logger": "engine.test",
        "message": "3 orders",
    }


def test_an_entry_carries_the_order_id_and_any_other_extra() -> None:
    entry = entry_of(msg="claimed", order_id=ORDER_ID, attempt=2, venues=["Raydium", "Meteora"])
    assert entry["order_id"] == str(ORDER_ID)
    assert entry["attempt"] == 2
    assert entry["venues"] == ["Raydium", "Meteora"]


def test_line_breaks_in_logged_text_cannot_forge_an_entry() -> None:
    text = 'x\r\n{"level":"ERROR"}\u2028\u0085\x1b[2J'
    entry = entry_of(msg=text, order_id=text)
    assert entry["message"] == text
    assert entry["order_id"] == text


def test_numbers_that_json_cannot_spell_stay_readable() -> None:
    assert entry_of(msg="m", price=float("nan"))["price"] == "nan"


def test_an_extra_cannot_replace_what_every_entry_says() -> None:
    assert entry_of(msg="m", level="DEBUG", time="never")["level"] == "INFO"


def test_an_exception_is_kept_with_its_traceback() -> None:
    try:
        raise ValueError("bad amount")
    except ValueError:
        entry = entry_of(msg="failed", exc_info=sys.exc_info())
    assert entry["error"].startswith("Traceback")
    assert entry["error"].endswith("ValueError: bad amount")


def test_a_trouble_is_told_once_for_each_reason_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = telemetry.Trouble(logging.getLogger("tests"), "nothing is read", "it is read again")
    trouble.works()
    for error in (OSError("refused"), OSError("refused"), TimeoutError(), TimeoutError()):
        trouble.fails(error)
    for _ in range(2):
        trouble.works()
    trouble.fails(OSError("refused"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "nothing is read: refused"),
        ("WARNING", "nothing is read: TimeoutError"),
        ("INFO", "it is read again"),
        ("WARNING", "nothing is read: refused"),
    ]


async def test_what_happens_to_many_orders_is_told_of_one_and_then_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_TALLY_SECONDS", 0.01)
    tally = telemetry.Tally(logging.getLogger("tests"), logging.WARNING, "letting go")
    for reason in ("refused", "broke", "is gone"):
        tally.note(OSError(reason), ORDER_ID)
    assert [record.getMessage() for record in caplog.records] == ["letting go: refused"]
    assert vars(caplog.records[0])["order_id"] == ORDER_ID
    async with asyncio.timeout(10):
        while len(caplog.records) < 2 or tally._timer is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    tally.note(OSError("again"), ORDER_ID)
    assert [record.getMessage() for record in caplog.records[1:]] == [
        "letting go: is gone (2 more orders)",
        "letting go: again",
    ]


@pytest.mark.usefixtures("_logging_put_back")
def test_configured_logging_writes_lines_to_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure_logging("workers", "INFO")
    telemetry.configure_logging("workers", "INFO")
    logger = logging.getLogger("engine.test")
    logger.debug("too quiet")
    logging.getLogger("taskiq.receiver").info("one for each message")
    logger.info("heard", extra={"order_id": ORDER_ID})
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["heard"]
    assert json.loads(lines[0])["process"] == "workers"


class _Pieces(io.StringIO):
    """What is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str, /) -> int:
        if text:
            self.pieces.append(text)
        return len(text)


@pytest.fixture
def pieces(_logging_put_back: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a process whose logging is configured writes to stderr."""
    stream = _Pieces()
    monkeypatch.setattr(sys, "stderr", stream)
    telemetry.configure_logging("workers", "INFO")
    return stream.pieces


async def test_lines_of_one_turn_of_the_loop_are_written_together(pieces: list[str]) -> None:
    logger = logging.getLogger("engine.test")
    logger.info("first")
    logger.info("second")
    assert pieces == []
    await asyncio.sleep(0)
    logger.info("third")
    await asyncio.sleep(0)
    said = [[json.loads(line)["message"] for line in piece.splitlines()] for piece in pieces]
    assert said == [["first", "second"], ["third"]]


async def test_a_warning_is_written_at_once_with_what_was_said_before_it(pieces: list[str]) -> None:
    logger = logging.getLogger("engine.test")
    logger.info("before")
    logger.warning("trouble")
    assert [json.loads(line)["message"] for line in "".join(pieces).splitlines()] == ["before", "trouble"]
    await asyncio.sleep(0)
    assert len("".join(pieces).splitlines()) == 2


async def test_no_piece_is_more_than_a_pipe_takes_as_one(pieces: list[str]) -> None:
    logger = logging.getLogger("engine.test")
    for number in range(100):
        logger.info("%s", "x" * (number * 10), extra={"number": number})
    logger.info("%s", "x" * 5000)
    logger.info("last")
    await asyncio.sleep(0)
    assert len(pieces) < 25
    assert all(piece.endswith("\n") for piece in pieces)
    assert [len(piece) > 4096 for piece in pieces].count(True) == 1  # what is longer in itself
    lines = [json.loads(line) for line in "".join(pieces).splitlines()]
    assert [line["number"] for line in lines[:100]] == list(range(100))
    assert lines[-1]["message"] == "last"


def test_what_is_logged_without_a_loop_is_written_at_once(pieces: list[str]) -> None:
    logging.getLogger("engine.test").info("%(what)s", {"what": "alone"})
    assert [json.loads(piece)["message"] for piece in pieces] == ["alone"]


def test_what_a_loop_left_is_written_by_the_next_one(pieces: list[str]) -> None:
    logger = logging.getLogger("engine.test")
    ended = asyncio.new_event_loop()

    def say_the_last() -> None:
        logger.info("last of one")
        ended.stop()

    ended.call_soon(say_the_last)
    ended.run_forever()
    ended.close()
    assert pieces == []

    async def say_the_first() -> None:
        logger.info("first of another")
        await asyncio.sleep(0)
        said = [json.loads(line)["message"] for line in "".join(pieces).splitlines()]
        assert said == ["last of one", "first of another"]

    with asyncio.Runner() as runner:
        runner.run(say_the_first())


def test_what_a_loop_left_is_written_at_the_processes_end() -> None:
    script = (
        "import asyncio, logging, sys\nfrom engine.telemetry import configure_logging\n"
        "configure_logging('workers', 'INFO')\n"
        "async def main(): logging.getLogger('engine.test').info('last'); sys.exit(3)\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 3
    assert json.loads(ended.stderr)["message"] == "last"


def sample(name: str, **labels: str) -> float:
    value = telemetry.render_metrics()[0].decode()
    label_text = ",".join(f'{key}="{text}"' for key, text in labels.items())
    wanted = f"{name}{{{label_text}}} " if labels else f"{name} "
    for line in value.splitlines():
        if line.startswith(wanted):
            return float(line.removeprefix(wanted))
    return 0.0


async def test_a_coalescer_reports_its_batches_by_edge() -> None:
    async def perform(items: list[int]) -> list[int]:
        return items

    coalescer = Coalescer(perform, observe=telemetry.observe_batch("test"))
    first, second = coalescer(1), coalescer(2)
    assert [await first, await second] == [1, 2]
    assert sample("order_engine_batch_size_sum", edge="test") == 2
    assert sample("order_engine_batch_size_count", edge="test") == 1


def test_a_histogram_is_what_prometheus_clients_would_be() -> None:
    bounds, values = (0.001, 0.25, 1, 120), (0.0, 0.001, 0.0011, 1, 1.5, 120, 121, 1e9)
    theirs = CollectorRegistry()
    usual = PrometheusHistogram("told", "About.", ["stage"], buckets=bounds, registry=theirs)
    ours = telemetry.Histogram("order_engine_told", "About.", "stage", bounds)
    try:
        for stage in ("route", 'a "\n\\'):
            for value in values:
                usual.labels(stage).observe(value)
                ours.labels(stage).observe(value)
        ours.labels("idle")
        usual.labels("idle")
        told = [line for line in telemetry.render_metrics()[0].decode().splitlines() if "_told" in line]
    finally:
        REGISTRY.unregister(ours)
    expected = generate_latest(theirs).decode().replace("told", "order_engine_told").splitlines()
    assert told == expected


@pytest.mark.parametrize("labels", [(), ("reason",), ("method", "code")])
def test_a_counter_is_what_prometheus_clients_would_be(labels: tuple[str, ...]) -> None:
    theirs = CollectorRegistry()
    usual = PrometheusCounter("told", "About.", labels, registry=theirs)
    ours = telemetry.Counter("order_engine_told", "About.", labels)
    try:
        for count in (1, 2**53):
            for text in ("a", 'a "\n\\') if labels else ():
                values = [text] * len(labels)
                usual.labels(*values).inc(count)
                ours.labels(*values).inc(count)
            if not labels:
                usual.inc(count)
                ours.inc(count)
        if labels:
            usual.labels(*["never"] * len(labels))
            ours.labels(*["never"] * len(labels))
            with pytest.raises(ValueError, match="has the labels"):
                ours.labels("one", "two", "three")
        told = [line for line in telemetry.render_metrics()[0].decode().splitlines() if "_told" in line]
    finally:
        REGISTRY.unregister(ours)
    assert told == generate_latest(theirs).decode().replace("told", "order_engine_told").splitlines()


async def test_healthz_follows_readiness_and_metrics_are_served() -> None:
    reason: str | None = "waiting for PostgreSQL"
    async with (
        telemetry.ProbeServer("127.0.0.1", 0, lambda: reason) as probe,
        aiohttp.ClientSession(f"http://127.0.0.1:{probe.port}") as session,
    ):
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (503, "waiting for PostgreSQL\n")
        reason = None
        async with session.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")
        async with session.get("/metrics") as answer:
            assert answer.status == 200
            assert answer.content_type == "text/plain"
            body = await answer.text()
    assert "# TYPE order_engine_stage_seconds histogram" in body
    assert "process_cpu_seconds_total" in body
    assert "_created" not in body


async def test_a_port_in_use_is_refused() -> None:
    async with telemetry.ProbeServer("127.0.0.1", 0, lambda: None) as first:
        with pytest.raises(
            SettingsError, match=f"port 127.0.0.1:{first.port} .* cannot be bound: it is in use"
        ):
            async with telemetry.ProbeServer("127.0.0.1", first.port, lambda: None):
                raise AssertionError("two servers on one port")
