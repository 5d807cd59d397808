"""What /proc says, and whose it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import (
    Meter,
    Stat,
    all_processes,
    environment,
    launcher_pid,
    parse_stat,
    part_name,
    pss_bytes,
    tree,
)

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["python", "a b", "a) S 1 (b", "()", ""])
def test_a_stat_line_is_read_whatever_the_program_is_called(name: str) -> None:
    fields = f"S 7 {'0 ' * 9}300 40 5 6 {'0 ' * 6}250 " + "0 " * 28
    stat = parse_stat(f"4242 ({name}) {fields}")
    assert stat == Stat(4242, name, 7, 351 / TICK, 250 * PAGE)


def test_this_process_is_among_all_and_its_figures_are_plausible() -> None:
    own = all_processes()[os.getpid()]
    assert own.parent == os.getppid()
    assert own.cpu_seconds > 0
    assert own.rss_bytes > 2**20
    shared = pss_bytes(os.getpid())
    assert shared is not None
    assert 2**20 < shared <= own.rss_bytes * 2


def test_there_is_no_pss_of_a_process_that_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert pss_bytes(child.pid) is None


PROCESSES = {
    pid: Stat(pid, name, parent, 1.0, 1)
    for pid, name, parent in [
        (1, "init", 0),
        (10, "up", 1),
        (11, "postgres", 10),
        (12, "workers", 10),
        (21, "backend", 11),
        (22, "worker", 12),
        (23, "worker", 12),
        (30, "stranger", 1),
    ]
}


@pytest.mark.parametrize(
    ("root", "without", "pids"),
    [
        (12, [], {12, 22, 23}),
        (10, [], {10, 11, 12, 21, 22, 23}),
        (10, [10, 11, 12], {10}),
        (10, [12], {10, 11, 21}),
        (99, [], set()),
    ],
)
def test_a_tree_is_a_process_and_all_that_descends_from_it_but_other_trees(
    root: int, without: list[int], pids: set[int]
) -> None:
    assert {stat.pid for stat in tree(PROCESSES, root, without)} == pids


def test_the_meter_counts_the_cpu_of_children_that_have_ended() -> None:
    meter = Meter({"tests": os.getpid()})
    meter.start()
    # Works until it has used a fifth of a second itself; /proc counts in ticks of a hundredth.
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    costs, busy_seconds = meter.finish()
    assert costs["tests"].cpu_seconds >= 0.15
    assert costs["tests"].rss_peak_bytes >= 2**20
    assert busy_seconds >= 0.15


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/bin/python3", "-m", "server"], "server"),
        (["python", "-P", "-m", "gateway"], "gateway"),
        (["python", "-X", "dev", "-m", "workers"], "workers"),
        (["python", "-m", "workers.child"], None),
        (["python", "-m", "cli", "up"], None),
        (["/wheels/bin/postgres", "-D", "/data"], "postgres"),
        (["/wheels/bin/valkey-server unixsocket:/data/valkey.sock"], "valkey"),
        (["/usr/bin/redis-server *:6379"], "valkey"),
        (["bash"], None),
        ([], None),
    ],
)
def test_a_part_of_the_engine_is_known_by_its_command_line(command: list[str], name: str | None) -> None:
    assert part_name(command) == name


def test_a_launcher_is_found_by_its_lock_while_it_runs(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no `order-engine up` runs on"):
        launcher_pid(tmp_path)
    lock = tmp_path / "lock"
    lock.write_text(f"{os.getpid()}\n")
    assert launcher_pid(tmp_path) == os.getpid()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    lock.write_text(f"{child.pid}\n")
    with pytest.raises(LookupError, match="has ended"):
        launcher_pid(tmp_path)


def test_a_process_can_be_asked_for_its_environment() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print('started', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PORT": "3000", "ODD": "a=b"},
    ) as child:
        assert child.stdout is not None
        # A program that has only just been started has no environment in /proc yet.
        assert child.stdout.readline() == b"started\n"
        assert environment(child.pid).items() >= {"PORT": "3000", "ODD": "a=b"}.items()
        child.communicate(b"\n")
