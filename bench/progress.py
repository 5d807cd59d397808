"""How a run stands while it runs: a bar in a terminal, a line at the end of it elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.load import Run

Update = Callable[[int, str], None]
"""Told how much is done, and what to say about it."""


class Screen:
    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        self._console.print(line, markup=False)

    @contextmanager
    def shown(self, title: str, total: int) -> Iterator[Update]:
        """Show `title` and how much of `total` is done while the block runs."""
        last = ""
        columns = (
            TextColumn("{task.description:<52}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(title, total=total, said="")

            def update(done: int, said: str) -> None:
                nonlocal last
                last = said
                bar.update(task, completed=done, said=said)

            yield update
        if not self._console.is_terminal:
            self.say(f"{title}: {last}" if last else title)

    @contextmanager
    def run(self, title: str, order_count: int) -> Iterator[Callable[[Run], None]]:
        """Show how a run of so many orders stands."""
        with self.shown(title, order_count) as update:
            yield lambda run: update(run.accepted_count, _said(run))


def _said(run: Run) -> str:
    refused = f", {sum(run.refused.values()):,} refused" if run.refused else ""
    return f"{run.accepted_count:,} accepted{refused}, {run.closed_count:,} seen to close"
