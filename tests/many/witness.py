"""The request daemon with a witness in it: a line for what it knew of a session, and when, in a file.

One rule: a witness writes down and changes nothing; what was done or known before a byte leaves is in the file before
that byte.

Theory.  From outside nobody sees what a daemon knows of a session.  So the real program runs here with two of its parts
watched: its sessions, asked up to which ledger row the state is folded without a gap when a turn is begun and when its
BEGIN was acknowledged; and its link, for waits that were given up.  The clock is the machine's monotonic one, which all
processes share, so a line can be held against what a client has seen.

Run by its path, as `python -P tests/many/witness.py NAME`, in a gateway's directory.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Final
from unittest.mock import patch

from daemon import __main__ as program
from daemon import app
from daemon.held import Held, Phase
from daemon.outbox import Body, Entry
from daemon.sessions import Sessions
from daemon.worker_client import WorkerClient
from worker.protocol import Booking, Claim, Command, Naming, Reply, Row

FILE: Final = "testimony"
"""One for all daemons, in the gateway's directory: a line is one write, and appended whole."""


class Pen:
    def __init__(self, daemon: str) -> None:
        self._daemon = daemon
        self._file = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **facts: Any) -> None:
        line = {"what": what, "at": time.monotonic(), "daemon": self._daemon, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class WatchedSessions(Sessions):
    def __init__(self, pen: Pen, **parts: Any) -> None:
        super().__init__(**parts)
        self._pen = pen

    def begun(self, held: Held, naming: Naming, row: Row) -> None:
        super().begun(held, naming, row)
        self._pen.write("begin", mark=row.client, knows=_known(held), owned=held.phase is Phase.OWNED)

    def acknowledged(self, entry: Entry, reply: Reply) -> None:
        super().acknowledged(entry, reply)
        match entry.body:
            case Booking(row=row) if entry.command is Command.BEGIN:
                held = self._at(reply.session_id)
                self._pen.write("begun", mark=row.client, knows=_known(held) if held else 0)
            case Booking(row=row):
                self._pen.write("ended", mark=row.client, status=row.status, waited=_seconds_since(entry))
            case Claim(after=after) if after < 0 and reply.role == "turn":
                self._pen.write("claimed", epoch=reply.epoch, waited=_seconds_since(entry))


class WatchedLink(WorkerClient):
    def __init__(self, pen: Pen, **parts: Any) -> None:
        super().__init__(**parts)
        self._pen = pen
        self._marks: dict[int, str] = {}

    def put(self, command: Command, body: Body) -> int:
        sequence = super().put(command, body)
        if isinstance(body, Booking):
            self._marks[sequence] = body.row.client
        return sequence

    async def acknowledged(self, sequence: int) -> bool:
        asked, was_heard = time.monotonic(), self.is_heard
        committed = await super().acknowledged(sequence)
        if not committed and sequence in self._marks:
            waited = time.monotonic() - asked
            self._pen.write("given up", mark=self._marks[sequence], waited=waited, heard=was_heard)
        return committed


def _known(held: Held) -> int:
    """Up to which position the state is folded without a gap: the base, and what waits for a claim's answer."""
    known = held.position
    while known + 1 in held.placed:
        known += 1
    return known


def _seconds_since(entry: Entry) -> float:
    return time.monotonic() - entry.put_at


def main() -> int:
    pen = Pen(sys.argv[1])

    def sessions(**parts: Any) -> WatchedSessions:
        return WatchedSessions(pen, **parts)

    def link(**parts: Any) -> WatchedLink:
        return WatchedLink(pen, **parts)

    with patch.object(app, "Sessions", sessions), patch.object(app, "WorkerClient", link):
        return program.main()


if __name__ == "__main__":
    sys.exit(main())
