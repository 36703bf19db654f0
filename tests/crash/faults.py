"""perdure with a rule taken away, to see that the campaign would notice.

One rule: each of these is one rule less and nothing else; a campaign on it must find something lost, doubled or wrong.

`synchronous` is not among them: what a killed process has written is the kernel's, synced or not.  Only a power cut
takes it, and that is another test's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import apsw

from daemon.worker_client import WorkerClient
from worker import batch
from worker.batch import Outcome, Write, apply
from worker.protocol import Command, SnapshotWrite
from worker.server import Server
from worker.store import Store

DISK_SECONDS: Final = 0.02
"""A good disk's sync; without it an acknowledgement has hardly left when everything is on the disk."""


def acknowledge_before_commit() -> None:
    """Tell the senders while the transaction is still open, and have a disk on which its end takes a moment."""
    tell = Server._tell

    def commit(store: Store, writes: Sequence[Write], *, live: frozenset[str], now: int) -> Outcome:
        store._db.execute("BEGIN IMMEDIATE")
        return apply(store._tables, writes, live=live, now=now)

    def told(server: Server, outcome: Outcome) -> None:
        tell(server, outcome)
        time.sleep(DISK_SECONDS)
        with contextlib.suppress(apsw.SQLError):
            server._store._db.execute("COMMIT")

    _without(Store, "commit", commit)
    _without(Server, "_tell", told)


def no_status_rule() -> None:
    """A row that is told again is entered again."""
    _without(batch, "supersedes", lambda *_: True)


def no_generation_rule() -> None:
    """A snapshot replaces any other."""
    _without(batch, "is_newer", lambda *_: True)


def no_fence() -> None:
    """Anybody's snapshot is taken."""
    _without(batch, "is_fenced", lambda *_: False)


def late_snapshots() -> None:
    """A wire, not a missing rule: every snapshot arrives a second time, after the next one of its session."""
    send = WorkerClient._send
    before: dict[str, tuple[SnapshotWrite, int]] = {}

    def sent(client: WorkerClient, command: Command, body: Any, sequence: int = 0) -> bool:
        is_sent = send(client, command, body, sequence)
        if isinstance(body, SnapshotWrite) and is_sent:
            late = before.get(body.session_id)
            before[body.session_id] = (body, sequence)
            if late:
                send(client, command, *late)
        return is_sent

    _without(WorkerClient, "_send", sent)


def _without(owner: Any, name: str, instead: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, instead)


FAULTS: Final[Mapping[str, Callable[[], None]]] = MappingProxyType(
    {
        fault.__name__: fault
        for fault in (acknowledge_before_commit, no_status_rule, no_generation_rule, no_fence, late_snapshots)
    }
)
