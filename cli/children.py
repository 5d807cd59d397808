"""Child processes of the launcher: started, watched and stopped; none outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_CHILD = str(Path(__file__).with_name("child.py"))
_LARGEST_LOG = 16 * 1024 * 1024  # bytes; a longer one is set aside


def in_front(
    program: Sequence[str], orphan_signal: signal.Signals = signal.SIGKILL, identity: str = "same"
) -> list[str]:
    """Return the command that runs `program` tied to this process; see cli/child.py for `identity`."""
    return [sys.executable, "-I", "-S", _CHILD, str(os.getpid()), str(int(orphan_signal)), identity, *program]


class Child:
    """One process at a time, of one program; it can be spawned again after it ended.

    Spawn from the main thread: the tie to the launcher is to the spawning thread.
    """

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        orphan_signal: signal.Signals = signal.SIGKILL,
        identity: str = "same",
    ) -> None:
        """`stop_signal` asks it to end, `orphan_signal` is what it gets when the launcher has gone."""
        self.name = name
        self.log = log
        self._program = [str(part) for part in program]
        self._environ = environ
        self._cwd = cwd
        self._stop_signal = stop_signal
        self._orphan_signal = orphan_signal
        self._identity = identity
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code of the last process, negative for a signal; None while it runs or before the first."""
        return self._process.poll() if self._process is not None else None

    def spawn(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self._is_long():
            self.log.replace(self._aside)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                in_front(self._program, self._orphan_signal, self._identity),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=None if self._environ is None else dict(self._environ),
                start_new_session=True,  # Ctrl-C in the terminal is for the launcher alone.
            )

    def trim_log(self) -> None:
        """Set a long log aside, in the place of the one before, though its process writes on.

        What it writes in the moment between is lost. Raises OSError where there is no room for two.
        """
        if self._is_long():
            copy = self._aside.with_suffix(".part")
            shutil.copyfile(self.log, copy)
            # It appends: its next line is the first.
            os.truncate(self.log, 0)
            copy.replace(self._aside)
            self._log_start = 0

    def _is_long(self) -> bool:
        return self.log.exists() and self.log.stat().st_size > _LARGEST_LOG

    @property
    def _aside(self) -> Path:
        return self.log.with_suffix(".log.1")

    def last_words(self) -> str:
        """Return what the current or last process logged last, if that may be why it ended; else "".

        It may be a line that is no log record, and the message of one whose level is ERROR or worse.
        """
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 4096))
                lines = log.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(last)
            return str(record["message"]) if record["level"] in ("ERROR", "CRITICAL") else ""
        return last

    def logged(self, text: str) -> bool:
        """Say whether the current or last process logged `text` lately."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - 65536))
                return text.encode() in log.read()
        except FileNotFoundError:
            return False

    def stop(self, seconds: float = 15.0) -> None:
        """Ask the process to end, wait up to `seconds`, then kill it. Return once it is gone."""
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """SIGKILL; return once it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
