"""Is the worker's loop going round?  If not for long, end it: whoever supervises it starts it anew.

One rule: only a worker that holds its lock and has stopped showing that it is alive is ended, and by SIGKILL, which
also ends what was stopped; nothing that it had acknowledged is lost by that.

Theory.  supervisord sees that a process is there, not that it works.  So the loop writes its pid and the time into a
file about once a second, and this program, a listener of supervisord's ticks, reads it.  The time is the system's
monotonic clock, which all processes share and nobody sets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from supervisor import childutils

from worker import runtime
from worker.logs import start_logging
from worker.settings import BadSettings, load

SILENT_SECONDS: Final = 15.0
"""Silence after which the loop counts as hung: three times the slowest commit seen on a sick disk."""


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


def main() -> int:
    """Listen to supervisord's ticks on standard input, until it closes."""
    runtime.die_with_parent()
    try:
        settings = load({}, os.environ)
    except BadSettings as error:
        runtime.leave("perdure health", runtime.Fatal(runtime.EXIT_CONFIGURATION, str(error)))
    log = start_logging("health", settings.log_level, settings.log_format)
    while True:
        childutils.listener.wait(sys.stdin, sys.stdout)
        pid = hung_worker(Path(settings.runtime_dir), settings.lock, time.monotonic())
        if pid is not None:
            log.warning("the worker (pid %d) has hung for over %.0f s: killed", pid, SILENT_SECONDS)
            os.kill(pid, signal.SIGKILL)
        childutils.listener.ok(sys.stdout)


_NAME: Final = "worker.beat"

if __name__ == "__main__":
    sys.exit(main())
