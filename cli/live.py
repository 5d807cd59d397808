"""What `order-engine up` shows while it runs: a calm view in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cli.launcher import Part

Figures = dict[tuple[str, str], float]
"""(metric, status or type) -> value, as `cli.probe.figures` returns them."""

_TERMINAL_SECONDS = 1.0
_LINES_SECONDS = 10.0


class LiveView:
    """Orders a second, open and resting orders, and the health of each part."""

    def __init__(
        self,
        parts: Sequence[Part],
        sources: Sequence[Callable[[], Awaitable[Figures | None]]],
        clock: Callable[[], float] = time.monotonic,
        worker_sources: Sequence[Callable[[], Awaitable[Figures | None]]] = (),
    ) -> None:
        """`sources` answer the figures of each process, None if it is away; `clock` is in seconds.

        `worker_sources` are those of the workers: what is pending by them had been accepted before.
        """
        self._parts = parts
        self._sources = (*sources, *worker_sources)
        self._accepting_count = len(sources)
        self._clock = clock
        self._before: list[Figures | None] = [None for _ in self._sources]
        self._before_time = clock()
        self.per_second: dict[str, float] = defaultdict(float)
        """Transitions a second into each status."""
        self.open_count = 0
        self.resting: dict[str, int] = {}
        """Orders that wait for their trigger, by type; of types that have any."""
        self.interval_seconds = _TERMINAL_SECONDS
        self._show: Callable[[], None] = lambda: None

    async def refresh(self) -> None:
        """Fetch the figures and show them."""
        found = await asyncio.gather(*(source() for source in self._sources))
        now = self._clock()
        elapsed = max(now - self._before_time, 1e-9)
        moved: dict[str, float] = defaultdict(float)
        for index, after in enumerate(found):
            before = self._before[index]
            if after is None:
                continue
            for (metric, status), value in after.items():
                if metric != "transitions_total" or before is None:
                    continue
                if status == "pending" and index >= self._accepting_count:
                    continue
                # A process that was started again counts from zero.
                moved[status] += max(0.0, value - before.get((metric, status), 0.0)) / elapsed
            self._before[index] = after
        self.per_second = moved
        # Each server counts all of them.
        counted: dict[tuple[str, str], float] = defaultdict(float)
        for figures in filter(None, found):
            for key, value in figures.items():
                counted[key] = max(counted[key], value)
        self.open_count = round(counted["orders", "open"])
        self.resting = {
            order_type: round(count)
            for (metric, order_type), count in sorted(counted.items())
            if metric == "resting_orders" and count
        }
        self._before_time = now
        self._show()

    def line(self) -> Text:
        """Return the figures as one line."""
        return Text.assemble(
            "  accepted ",
            (f"{self.per_second['pending']:.1f}/s", "bold"),
            "   confirmed ",
            (f"{self.per_second['confirmed']:.1f}/s", "bold green"),
            "   failed ",
            (f"{self.per_second['failed']:.1f}/s", "bold red" if self.per_second["failed"] else "bold"),
            "   open ",
            (f"{self.open_count}", "bold"),
        )

    def resting_line(self) -> Text | None:
        """Return how many orders wait for their trigger, as one line; None if none does."""
        if not self.resting:
            return None
        each = ", ".join(f"{order_type} {count:,}" for order_type, count in self.resting.items())
        return Text.assemble("  resting ", (f"{sum(self.resting.values()):,}", "bold"), f" ({each})")

    def lines(self) -> list[Text]:
        """Return the lines of figures there are."""
        return [line for line in (self.line(), self.resting_line()) if line is not None]

    def health(self) -> Text:
        """Return each part with a mark: green while it is ready, else with the reason."""
        line = Text("  ")
        for part in self._parts:
            line.append("● " if part.ready else "○ ", "green" if part.ready else "bold red")
            line.append(part.name)
            if not part.ready:
                line.append(f" ({part.state})", "red")
            elif part.restart_count:
                line.append(f" (restarted {part.restart_count}x)", "yellow")
            line.append("   ")
        return line

    def attach(self, show: Callable[[], None], interval_seconds: float) -> None:
        """Have `show` called after each refresh, every `interval_seconds`."""
        self._show = show
        self.interval_seconds = interval_seconds


@contextmanager
def live_view(view: LiveView, console: Console) -> Iterator[None]:
    """Show the view while the block runs: in place in a terminal, elsewhere a line whenever it differs."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            view.attach(
                lambda: live.update(Text("\n").join([*view.lines(), view.health()]), refresh=True),
                _TERMINAL_SECONDS,
            )
            yield
        return
    shown = ""

    def show() -> None:
        nonlocal shown
        if (line := "   ".join(line.plain.strip() for line in view.lines())) != shown:
            console.print(line, markup=False)
            shown = line

    view.attach(show, _LINES_SECONDS)
    yield
