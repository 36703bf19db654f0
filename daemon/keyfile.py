"""The store's hash key, kept beside the worker's socket for daemons that start while the worker is away.

One rule: the file is a copy.  The worker's greeting decides, and what can not be read or written here costs no request.

Theory of operation.  Without the key a daemon can not tell a conversation that names nothing from any other, and one
that was restarted during an outage would begin all of them anew, for good.  The key lives in the database, whose
directory a daemon may not be allowed to read; the runtime directory is this user's alone, and gone after a reboot.  A
copy that is older than the store leads to hashes that nobody holds, so nothing is taken for what it is not.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path


class KeyFile:
    def __init__(self, path: Path, log: logging.Logger) -> None:
        self._path = path
        self._log = log

    def read(self) -> bytes | None:
        try:
            key = bytes.fromhex(self._path.read_text("ascii"))
        except (OSError, ValueError):
            return None
        return key if len(key) == KEY_BYTES else None

    def keep(self, key: bytes) -> None:
        """Put the key in place of any other; several daemons may do so at once."""
        if self.read() == key:
            return
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            # The worker makes it for its socket; on another machine than the worker's nobody else does.
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(key.hex())
            partial.replace(self._path)
        except OSError as error:
            self._log.warning("%s: %s; a restart without the worker will not know conversations", self._path, error)


KEY_BYTES = 32
