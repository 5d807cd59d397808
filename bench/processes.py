"""What processes cost: CPU time and memory of whole process trees, read from /proc (Linux).

Source of the fields: proc(5).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

_KINDS: Final = ("simnet", "server", "workers", "gateway")
"""Processes that are started as `python -m NAME`."""


@dataclass(frozen=True, slots=True)
class Stat:
    """One line of /proc/PID/stat."""

    pid: int
    name: str
    parent: int
    cpu_seconds: float
    """User and system, with that of children that have ended and were waited for."""
    rss_bytes: int


def parse_stat(line: str) -> Stat:
    """Read /proc/PID/stat. The name is in parentheses and may itself contain any of them, and spaces."""
    pid, _, rest = line.partition(" (")
    name, _, rest = rest.rpartition(") ")
    fields = rest.split()
    ticks = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return Stat(int(pid), name, int(fields[1]), ticks / _TICKS_PER_SECOND, int(fields[21]) * _PAGE_BYTES)


def all_processes() -> dict[int, Stat]:
    """Return every process there is now."""
    found = {}
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            try:
                stat = parse_stat((PROC / entry.name / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended in between.
            found[stat.pid] = stat
    return found


def tree(processes: Mapping[int, Stat], root: int, without: Collection[int] = ()) -> Iterator[Stat]:
    """Yield `root` and what descends from it, but not the trees of `without`."""
    children: dict[int, list[int]] = {}
    for stat in processes.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in processes and (pid == root or pid not in without):
            yield processes[pid]
            waiting.extend(children.get(pid, ()))


def pss_bytes(pid: int) -> int | None:
    """Return the proportional set size: shared pages count in parts. None where it may not be read."""
    try:
        text = (PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one process tree, over one run."""

    cpu_seconds: float
    rss_peak_bytes: int
    """Highest seen. Shared memory counts once a process."""
    pss_bytes: int | None
    """At the end. Shared memory counts once. None where it may not be read."""


class Meter:
    """Measures process trees from `start` to `finish`; `sample` in between finds the peaks."""

    def __init__(self, roots: Mapping[str, int]) -> None:
        """`roots`: name to pid. A tree within another's counts for its own name alone."""
        self._roots = dict(roots)
        self._cpu_before: dict[str, float] = {}
        self._rss_peak: dict[str, int] = dict.fromkeys(roots, 0)
        self._busy_before = 0.0

    def start(self) -> None:
        self._busy_before = machine_busy_seconds()
        self._cpu_before = {name: cpu for name, (cpu, _) in self.sample().items()}

    def sample(self) -> dict[str, tuple[float, int]]:
        """Return CPU seconds so far and RSS bytes now, by name."""
        processes = all_processes()
        now = {}
        for name, root in self._roots.items():
            stats = list(tree(processes, root, self._roots.values()))
            rss = sum(stat.rss_bytes for stat in stats)
            self._rss_peak[name] = max(self._rss_peak[name], rss)
            now[name] = sum(stat.cpu_seconds for stat in stats), rss
        return now

    def finish(self) -> tuple[dict[str, Cost], float]:
        """Return each tree's cost, and how many CPU seconds the whole machine was busy meanwhile."""
        busy = machine_busy_seconds() - self._busy_before
        now = self.sample()
        processes = all_processes()
        costs = {}
        for name, root in self._roots.items():
            sizes = [pss_bytes(stat.pid) for stat in tree(processes, root, self._roots.values())]
            known = [size for size in sizes if size is not None]
            costs[name] = Cost(
                now[name][0] - self._cpu_before[name],
                self._rss_peak[name],
                sum(known) if len(known) == len(sizes) else None,
            )
        return costs, busy


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process tree, now."""

    rss_bytes: int
    """Shared memory counts once a process."""
    pss_bytes: int
    """Shared memory counts once. Where it may not be read, RSS."""


def memory(roots: Mapping[str, int]) -> dict[str, Memory]:
    """Return the memory of process trees by name; a tree within another's counts for its own name alone."""
    processes = all_processes()
    found = {}
    for name, root in roots.items():
        stats = list(tree(processes, root, roots.values()))
        pss = [pss_bytes(stat.pid) for stat in stats]
        found[name] = Memory(
            sum(stat.rss_bytes for stat in stats),
            sum(stat.rss_bytes if size is None else size for stat, size in zip(stats, pss, strict=True)),
        )
    return found


def machine_busy_seconds() -> float:
    """Return the CPU seconds that were not idle, of all processors since boot."""
    first = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in first[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND


# ---- A running `order-engine up` --------------------------------------------------------------------


def launcher_pid(data_folder: Path) -> int:
    """Return the pid of the `order-engine up` that runs on that folder. Raises LookupError."""
    try:
        pid = int((data_folder / "lock").read_text().strip())
    except (OSError, ValueError):
        raise LookupError(f"no `order-engine up` runs on {data_folder}") from None
    if not (PROC / str(pid)).exists():
        raise LookupError(f"the `order-engine up` on {data_folder} (process {pid}) has ended")
    return pid


def engine_processes(launcher: int) -> dict[str, int]:
    """Return the parts that a launcher runs, name to pid, itself as "up"; of several "server-1" and so on."""
    found: dict[str, list[int]] = {"up": [launcher]}
    for stat in sorted(all_processes().values(), key=lambda stat: stat.pid):
        if stat.parent == launcher:
            name = part_name(_words(stat.pid))
            if name is not None:
                found.setdefault(name, []).append(stat.pid)
    return {
        name if len(pids) == 1 else f"{name}-{number}": pid
        for name, pids in found.items()
        for number, pid in enumerate(pids, start=1)
    }


def part_name(command: list[str]) -> str | None:
    """Return which part of the engine runs as that command line; None for anything else."""
    if not command:
        return None
    for flag, module in pairwise(command):
        if flag == "-m" and module in _KINDS:
            return module
    # A Valkey shows its address after its name: "/path/valkey-server unixsocket:...".
    program = Path(command[0].split(" ", 1)[0]).name
    if program in ("valkey-server", "redis-server"):
        return "valkey"
    return "postgres" if program == "postgres" else None


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with."""
    pairs = (PROC / str(pid) / "environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _words(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
