"""Logs and metrics: JSON lines on stderr, Prometheus figures, and the port they are served on.

Every metric's name is here and nowhere else. They live in prometheus_client's default registry, which
adds the process's CPU seconds and memory by itself. Each process has a registry of its own and
serves it on its own port.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate, islice
from types import TracebackType
from typing import Any, Final, Self, TextIO
from uuid import UUID

import msgspec
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from engine.addresses import listen, with_port
from engine.settings import SettingsError

# ---- Logs ----------------------------------------------------------------------------------------

_UNSAID: Final[dict[str, Any]] = {
    "pathname": "(unknown file)",
    "filename": "(unknown file)",
    "module": "Unknown module",
    "lineno": 0,
    "funcName": None,
    "thread": None,
    "threadName": None,
    "process": None,
    "processName": None,
    "relativeCreated": 0.0,
}
"""What no line of ours says of a record: who called, and from which thread."""


class _Record(logging.LogRecord):
    """A record for whose making nobody looks for what is unsaid: 2 us instead of 4.6."""

    def __init__(
        self,
        name: str,
        level: int,
        _pathname: str,
        _lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        _func: str | None = None,
        sinfo: str | None = None,
    ) -> None:
        self.__dict__.update(_UNSAID)
        self.name = name
        self.msg = msg
        # A single dict has the values of %(name)s.
        self.args = args[0] if args and type(args[0]) is dict and len(args) == 1 else args
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.exc_info = exc_info
        self.exc_text = None
        self.stack_info = sinfo
        self.created = now = time.time()
        self.msecs = now % 1 * 1000


_STANDARD_COUNT: Final = len(_Record("", 0, "", 0, "", None, None).__dict__)
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""What every record has. Whatever else a record carries came through `extra=`."""

_CHATTY: Final = ("taskiq", "aiohttp.access", "asyncio")
"""Libraries that write a line for each message or request at INFO."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time, level, process, logger, message, then what `extra=` gave.

    JSON escapes CR, LF and, since it is kept to ASCII, every other character that could start a line
    or steer a terminal: no logged text can forge a second entry.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._second = 0
        self._second_text = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._second_text = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"
        entry: dict[str, Any] = {
            "time": f"{self._second_text}.{int((record.created - second) * 1000):03}Z",
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        # What came through `extra=` was added last.
        for name, value in islice(record.__dict__.items(), _STANDARD_COUNT, None):
            if name not in _STANDARD and name not in entry:
                entry[name] = _plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            entry["error"] = self.formatException(record.exc_info)
        line = _encode_line(entry)
        return line.decode() if line.isascii() else json.dumps(entry, default=str)


_encode_line: Final = msgspec.json.Encoder(enc_hook=str).encode
"""A fifth of what json.dumps takes, but it leaves what is not ASCII as it is."""


def _plain(value: Any) -> Any:
    # NaN and infinity have no spelling in JSON; readers of the log would refuse the whole line.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


_WHOLE_BYTES: Final = 4096
"""What a pipe takes in one piece, beside other processes' lines (PIPE_BUF of Linux)."""


class LineHandler(logging.Handler):
    """Writes the lines of one turn of the event loop together: alone, each takes 3 us more, beside others 10.

    A warning or worse is written at once, with all that was said before it, and so is what is logged without
    a loop. At the process's end logging itself has the rest written.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        """Said and not written yet."""
        self._told: asyncio.AbstractEventLoop | None = None
        """The loop that is to write them in its next turn."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._lines.append(line + "\n")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or record.levelno >= logging.WARNING:
            self.flush()
        elif loop is not self._told:
            # A loop that has ended meanwhile was told in vain.
            self._told = loop
            loop.call_soon(self.flush)

    def flush(self) -> None:
        self.acquire()
        try:
            lines, self._lines, self._told = self._lines, [], None
            for whole in _whole(lines):
                self._stream.write(whole)
            if lines:
                self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more
        finally:
            self.release()


def _whole(lines: list[str]) -> Iterator[str]:
    """Yield the lines, as many at a time as are written in one piece."""
    together: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > _WHOLE_BYTES and together:
            yield "".join(together)
            together, size = [], len(line)
        together.append(line)
    yield "".join(together)


def configure_logging(process: str, level: str) -> None:
    """Send all logging to stderr as JSON lines that carry this process's name.

    `level` is DEBUG, INFO, WARNING or ERROR. Say which order a line is about with
    `extra={"order_id": order_id}`. Calling it again replaces what the call before set up.
    """
    # Nor is it looked for (docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.setLogRecordFactory(_Record)
    handler = LineHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "DEBUG" else logging.WARNING)


# ---- Metrics -------------------------------------------------------------------------------------

# The moment each series was made is of no use here and doubles the lines of /metrics.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Histogram(Collector):
    """What prometheus_client's is, for one label and one thread.

    An observation takes 0.2 us; of that one's, which locks twice, 1.2, and an order makes seven.
    """

    def __init__(self, name: str, documentation: str, label: str, buckets: tuple[float, ...]) -> None:
        """`buckets` are the upper bounds, rising and without the last, which is infinite."""
        self._about = name, documentation
        self._label = label
        self._bounds = buckets
        self._series: dict[str, Series] = {}
        REGISTRY.register(self)

    def labels(self, value: str) -> Series:
        """Return the series of this label, which is there from now on."""
        return self._series.setdefault(value, Series(self._bounds))

    def describe(self) -> list[HistogramMetricFamily]:
        return [HistogramMetricFamily(*self._about, labels=[self._label])]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        (family,) = self.describe()
        bounds = [_bound_text(bound) for bound in (*self._bounds, math.inf)]
        for value, series in self._series.items():
            family.add_metric([value], list(zip(bounds, accumulate(series.counts), strict=True)), series.sum)
        yield family


class Series:
    """What was observed under one label."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket alone."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counter(Collector):
    """What prometheus_client's is, for one thread: 0.1 us instead of 1.3, four times an order."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._about = name, documentation
        self._labels = labels
        self._counts: dict[tuple[str, ...], Count] = {}
        if not labels:
            self.labels()
        REGISTRY.register(self)

    def labels(self, *values: object) -> Count:
        """Return the count of these labels, which is there from now on."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._about[0]} has the labels {self._labels}, not {values}")
        return self._counts.setdefault(tuple(map(str, values)), Count())

    def inc(self, amount: int = 1) -> None:
        """Count where there are no labels."""
        self.labels().inc(amount)

    def describe(self) -> list[CounterMetricFamily]:
        return [CounterMetricFamily(*self._about, labels=self._labels)]

    def collect(self) -> Iterator[CounterMetricFamily]:
        (family,) = self.describe()
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        yield family


class Count:
    """How often something happened."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


open_orders = Gauge(
    "order_engine_orders",
    "Orders that are open and do not rest, counted no further than MAX_OPEN_ORDERS.",
    ["status"],
)
oldest_due_seconds = Gauge(
    "order_engine_oldest_due_seconds",
    "For how long the oldest attempt has been due of an order that is open and does not rest.",
)
resting_orders = Gauge(
    "order_engine_resting_orders", "Orders that wait for their trigger, by type.", ["type"]
)
transitions_total = Counter(
    "order_engine_transitions", "Transitions committed, by status reached.", ["status"]
)
refusals_total = Counter(
    "order_engine_refusals", "Calls, and orders of a batch, that a server refused, by reason.", ["reason"]
)
requests_total = Counter(
    "order_engine_requests",
    "Calls answered, by method (of REST with its route: GET /api/orders) and by status code.",
    ["method", "code"],
)
request_seconds = Histogram(
    "order_engine_request_seconds",
    "Time to answer a REST request, by method with its route.",
    "method",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
open_websockets = Gauge("order_engine_open_websockets", "WebSockets that follow an order now.")
events_sent_total = Counter("order_engine_events_sent", "Events written to WebSockets.")
retries_total = Counter("order_engine_retries", "Attempts that led to another, by reason.", ["reason"])

stage_seconds = Histogram(
    "order_engine_stage_seconds",
    "Time an order spent in a stage: accept, queue, route, build, record, broadcast, land, total.",
    "stage",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
batch_size = Histogram(
    "order_engine_batch_size",
    "Items that crossed a process boundary together, by edge.",
    "edge",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)

sweeper_offered_total = Counter("order_engine_sweeper_offered", "Due orders the sweeper offered again.")
sweeper_reclaimed_total = Counter(
    "order_engine_sweeper_reclaimed", "Leases of dead workers the sweeper freed."
)
leases_held = Gauge("order_engine_leases_held", "Orders this process holds the lease of.")
neighbours = Gauge("order_engine_neighbours", "Other workers that this one hears of.")
open_watches = Gauge("order_engine_open_watches", "Orders being watched through this process.")

monitor_leads = Gauge(
    "order_engine_monitor_leads", "1 where this process follows what triggers wait for, by kind.", ["kind"]
)
monitor_fired_total = Counter(
    "order_engine_monitor_fired", "Orders whose trigger was found to hold, by kind.", ["kind"]
)
monitor_tick_seconds = Histogram(
    "order_engine_monitor_tick_seconds",
    "Time to look for orders whose trigger holds, once a slot, by kind.",
    "kind",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)

queue_messages_total = Counter(
    "order_engine_queue_messages",
    "Messages of the order queue, by what became of them: run, reclaimed, dropped.",
    ["result"],
)
hints_dropped_total = Counter(
    "order_engine_hints_dropped",
    "Hints lost, by reason: publish_failed, offer_failed, malformed. Orders are late by them, never lost.",
    ["reason"],
)
redis_up = Gauge(
    "order_engine_redis_up", "1 while Redis answers, else 0, by what it is used for: queue, hints.", ["use"]
)
node_errors_total = Counter(
    "order_engine_node_errors", "Failed calls to the Solana node, by reason.", ["reason"]
)


def _bound_text(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def observe_batch(edge: str) -> Callable[[int], None]:
    """Return what tells `batch_size` the size of each batch over this edge; for Coalescer(observe=...)."""
    return batch_size.labels(edge).observe


def render_metrics() -> tuple[bytes, str]:
    """Return the body and the content type of a /metrics answer."""
    return generate_latest(), CONTENT_TYPE_LATEST


# ---- Troubles ------------------------------------------------------------------------------------


class Trouble:
    """Tells the log once that something fails and why, again for another reason, and once that it works.

    What is tried every second would else fill the log with one line, and nothing would say that it is over.
    """

    def __init__(self, logger: logging.Logger, fails: str, works: str) -> None:
        self._logger = logger
        self._fails = fails
        self._works = works
        self._reason: str | None = None

    def fails(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._reason:
            self._reason = reason
            self._logger.warning("%s: %s", self._fails, reason)

    def works(self) -> None:
        if self._reason is not None:
            self._reason = None
            self._logger.info("%s", self._works)


class Tally:
    """Tells the log of what happens to many orders at once: of one, then once a second of how many more.

    What the last of them met stands for all: it is mostly one service that is away.
    """

    def __init__(self, logger: logging.Logger, level: int, text: str) -> None:
        self._logger = logger
        self._level = level
        self._text = text
        self._count = 0
        """That were not told of."""
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception

    def note(self, error: Exception, order_id: UUID) -> None:
        if self._timer is None:
            self._logger.log(self._level, "%s: %s", self._text, error, extra={"order_id": order_id})
            self._wait()
        else:
            self._count += 1
            self._error = error

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TALLY_SECONDS, self._tell)

    def _tell(self) -> None:
        self._timer, count, self._count = None, self._count, 0
        if count:
            self._logger.log(self._level, "%s: %s (%d more orders)", self._text, self._error, count)
            self._wait()


_TALLY_SECONDS: Final = 1.0


# ---- Probes --------------------------------------------------------------------------------------


def health_answer(reason: str | None) -> web.Response:
    """Return the answer to /healthz: 200 if `reason` is None, else 503 with the reason."""
    return web.Response(text="ok\n") if reason is None else web.Response(text=f"{reason}\n", status=503)


def metrics_answer() -> web.Response:
    """Return the answer to /metrics."""
    body, content_type = render_metrics()
    return web.Response(body=body, headers={"Content-Type": content_type})


class ProbeServer:
    """Serves /healthz and /metrics while its `async with` block runs.

    `ready` returns None when the process does its work, else the reason why not. It is asked for
    every probe and must not wait for anything.
    """

    def __init__(self, host: str, port: int, ready: Callable[[], str | None]) -> None:
        self._host = host
        self._ready = ready
        self._runner: web.AppRunner | None = None
        self.port = port
        """Bound port; 0 becomes the one that was chosen when the block is entered."""

    async def __aenter__(self) -> Self:
        """Raise SettingsError when the port cannot be bound."""
        app = web.Application()
        app.add_routes([web.get("/healthz", self._healthz), web.get("/metrics", self._metrics)])
        # A scrape under way at shutdown gets a second to finish.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, listen(self._host, self.port)).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingsError(
                f"port {with_port(self._host, self.port)} for /metrics and /healthz cannot be bound:"
                " it is in use, or not ours"
            ) from error
        self.port = runner.addresses[0][1]
        self._runner = runner
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _request: web.Request) -> web.Response:
        return health_answer(self._ready())

    async def _metrics(self, _request: web.Request) -> web.Response:
        return metrics_answer()
