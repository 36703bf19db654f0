"""The keys that the daemons of one host share beside the worker's socket: a copy of the store's, and an early one.

One rule: the store's key here is a copy.  The worker's greeting decides, and what can not be read or written here costs
no request.

Theory of operation.  Without the key a daemon can not tell a conversation that names nothing from any other, and one
that was restarted during an outage would begin all of them anew, for good.  The key lives in the database, whose
directory a daemon may not be allowed to read; the runtime directory is this user's alone, and gone after a reboot.  A
copy that is older than the store leads to hashes that nobody holds, so nothing is taken for what it is not.

Until the first daemon of a host has heard a worker there is no copy either, and turns are answered all the same.  They
are hashed with an early key, drawn by whoever answers first and shared by all: else a daemon that is killed in its
first second would take with it what its conversations could be recognised by.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final


class KeyFile:
    """`path`: of the copy; the early key lies beside it."""

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path = path
        self._early_path = path.with_name("early.key")
        self._log = log

    def read(self) -> bytes | None:
        return _read(self._path)

    def keep(self, key: bytes) -> None:
        """Put the key in place of any other; several daemons may do so at once."""
        if self.read() == key:
            return
        try:
            self._write_aside(key).replace(self._path)
        except OSError as error:
            self._log.warning("%s: %s; a restart without the worker will not know conversations", self._path, error)

    def early(self) -> bytes | None:
        """The key that turns of this host were hashed with before a worker was heard; None if none lately were."""
        try:
            age_seconds = time.time() - self._early_path.stat().st_mtime
        except OSError:
            return None
        return _read(self._early_path) if age_seconds < EARLY_SECONDS else None

    def share_early(self, drawn: bytes) -> bytes:
        """The early key of this host: `drawn`, unless another daemon was first."""
        found = self.early()
        if found is not None:
            return found
        try:
            partial = self._write_aside(drawn)
            try:
                if self._early_path.exists():  # Too old, or not a key.
                    self._early_path.unlink(missing_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.link(partial, self._early_path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            self._log.warning("%s: %s; a restart will not know what is said before", self._early_path, error)
        return self.early() or drawn

    def _write_aside(self, key: bytes) -> Path:
        """A file of the key alone, whole and not yet in anybody's way."""
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        # The worker makes it for its socket; on another machine than the worker's nobody else does.
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.hex())
        return partial


def _read(path: Path) -> bytes | None:
    try:
        key = bytes.fromhex(path.read_text("ascii"))
    except (OSError, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None


KEY_BYTES: Final = 32
EARLY_SECONDS: Final = 24 * 3600.0
"""How long conversations that began before a worker was heard are looked for: every request that names nothing is
hashed twice for it, and who goes on with one does so within a day."""
