"""Do the loops of worker and daemons go round?  One that has not for long is ended: its supervisor starts it anew.

One rule: only what has certainly stopped is ended, and by SIGKILL, which also ends what was stopped: a worker that
holds its lock and has stopped showing that it is alive, a daemon of this supervisor that was called again and again and
never answered.  Nothing that was acknowledged is lost by that.

Theory.  supervisord sees that a process is there, not that it works.  So the worker's loop writes its pid and the time
into a file about once a second, and this program, a listener of supervisord's ticks, reads it.  The time is the
system's monotonic clock, which all processes share and nobody sets.  Daemons, which must not wait for a disk, are
called (`worker/rollcall.py`), and calls are counted: a daemon is not condemned by time that passed while nobody called
it.  Neither is anybody by time in which this program itself did not run, because the machine slept or a terminal
stopped everything: they go on in whatever order, and are given a tick to show themselves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from logging import Logger
from pathlib import Path
from typing import Final

from supervisor import childutils

from worker import runtime
from worker.logs import start_logging
from worker.rollcall import CALL_SECONDS, call
from worker.settings import BadSettings, load
from worker.standing import Called

TICK_SECONDS: Final = 5.0
"""How often supervisord has this program look."""
SILENT_SECONDS: Final = 15.0
"""Silence after which the worker's loop counts as hung: three times the slowest commit seen on a sick disk."""
CALLS_MAX: Final = 6
"""Calls in a row that a daemon may leave unanswered, a tick apart: half a minute, as systemd's watchdog gives it
(WatchdogSec= in systemd/perdure-daemon@.service)."""
AWAY_SECONDS: Final = TICK_SECONDS + CALL_SECONDS + 3.0
"""Between two looks: after a longer one it was not only the others that stood still."""


class Heart:
    """The worker's side: `beat` shows that its loop goes round."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._descriptor = -1

    def beat(self) -> None:
        # Always the same bytes in place, so that it also beats on a full disk, and of one length, so that a reader
        # never sees the end of a longer one.  A heart that can not be written must not stop the loop it tells of.
        with contextlib.suppress(OSError):
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.pwrite(self._descriptor, f"{os.getpid():10} {time.monotonic():20.3f}\n".encode(), 0)


def hung_worker(directory: Path, lock: Path, now: float) -> int | None:
    """The pid of a worker that has not shown itself for too long; None while all is well or there is none."""
    try:
        pid, beaten_at = (directory / _NAME).read_text("ascii").split()
        silent_seconds = now - float(beaten_at)
    except (OSError, ValueError):
        return None
    if silent_seconds <= SILENT_SECONDS or runtime.lock_holder(lock) != int(pid):
        return None
    return int(pid)


class Silences:
    """How many calls in a row each daemon has left unanswered."""

    def __init__(self) -> None:
        self._unanswered: dict[int, int] = {}
        """By pid."""

    def hung(self, called: Iterable[Called]) -> list[Called]:
        """Take the outcome of a call of all; those that have been silent for too long."""
        known, self._unanswered = self._unanswered, {}
        silent = [each for each in called if each.pid and not each.is_heard]
        for each in silent:
            self._unanswered[each.pid] = known.get(each.pid, 0) + 1
        return [each for each in silent if self._unanswered[each.pid] >= CALLS_MAX]


def main() -> int:
    """Listen to supervisord's ticks on standard input, until it closes."""
    runtime.die_with_parent()
    try:
        settings = load({}, os.environ)
    except BadSettings as error:
        runtime.leave("perdure health", runtime.Fatal(runtime.EXIT_CONFIGURATION, str(error)))
    log = start_logging("health", settings.log_level, settings.log_format)
    silences, looked_at = Silences(), time.monotonic()
    while True:
        childutils.listener.wait(sys.stdin, sys.stdout)
        now = time.monotonic()
        if has_run_on(looked_at, now):
            _end_hung_worker(Path(settings.runtime_dir), settings.lock, now, log)
        end_hung_daemons(silences, settings.runtime_dir, log)
        looked_at = now
        childutils.listener.ok(sys.stdout)


def has_run_on(looked_at: float, now: float) -> bool:
    """Whether this program was there between two looks, as it must have been to see others stand still."""
    return now - looked_at <= AWAY_SECONDS


def _end_hung_worker(directory: Path, lock: Path, now: float, log: Logger) -> None:
    pid = hung_worker(directory, lock, now)
    if pid is not None:
        log.warning("the worker (pid %d) has hung for over %.0f s: killed", pid, SILENT_SECONDS)
        os.kill(pid, signal.SIGKILL)


def end_hung_daemons(silences: Silences, runtime_dir: str, log: Logger) -> None:
    """Only children of the supervisor that this program is a child of: nobody else would start them again."""
    for each in silences.hung(call(runtime_dir)):
        if parent_of(each.pid) == os.getppid():
            told = "the daemon %s (pid %d) has not answered %d calls, %.0f s apart: killed"
            log.warning(told, each.instance, each.pid, CALLS_MAX, TICK_SECONDS)
            os.kill(each.pid, signal.SIGKILL)


def parent_of(pid: int) -> int | None:
    """None where there is no such process any more."""
    try:
        # The name, in brackets, may hold anything; what follows it are numbers.
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


_NAME: Final = "worker.beat"

if __name__ == "__main__":
    sys.exit(main())
