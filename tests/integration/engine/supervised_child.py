"""A child process for the supervisor's tests: writes its pid, then does what it is told.

python supervised_child.py <parent pid> <folder> <index> (run | refuse | ignore)

While there is a file <folder>/away it refuses too, and leaves a mark in <folder>/<index>.refused.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from engine.process import UNUSABLE, die_with_parent

parent, folder, index, what = sys.argv[1:]
die_with_parent(int(parent))
signals = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
if what == "refuse":
    print("nothing to work with")  # noqa: T201
    sys.exit(UNUSABLE)
if (Path(folder) / "away").exists():
    (Path(folder) / f"{index}.refused").touch()
    sys.exit(UNUSABLE)
with (Path(folder) / index).open("a") as pids:
    pids.write(f"{os.getpid()}\n")
while True:
    number = signal.sigwait(signals)
    if what == "run":
        (Path(folder) / f"{index}.stopped").write_text(signal.Signals(number).name)
        sys.exit(0)
