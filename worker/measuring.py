"""What the worker's files look like from outside, for whoever scrapes: sizes, room, the last backup.

One rule: nothing is opened but the note of the last backup, and that only when it is another one than before.  A
database that is opened and closed beside SQLite loses its locks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from worker.copies import NOTE, last_backup
from worker.metrics import WorkerMetrics


class Files:
    """The files of one store."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._note_seen: tuple[int, int, int] | None = None
        self._backup_at = 0.0

    def measure(self, metrics: WorkerMetrics) -> None:
        """Set the gauges.  What can not be told now keeps its value: a sick disk must not end a scrape."""
        with suppress(OSError):
            metrics.database_bytes.set(os.stat(self._database).st_size)
        with suppress(OSError):
            found = os.statvfs(self._database.parent)
            metrics.disk_bytes.set(found.f_blocks * found.f_frsize)
            metrics.disk_free_bytes.set(found.f_bavail * found.f_frsize)
        metrics.last_backup.set(self._last_backup())

    def _last_backup(self) -> float:
        """Unix time; 0 if there is none."""
        state = self._database.parent
        try:
            found = os.stat(state / NOTE)
        except OSError:
            self._note_seen = None
            return 0.0
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen != self._note_seen:
            note = last_backup(state)
            self._backup_at = note.at / 1000 if note is not None else 0.0
            self._note_seen = seen
        return self._backup_at
