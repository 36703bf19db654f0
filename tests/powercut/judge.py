"""Open a disk that a cut left, with the real store, and say what is wrong with it.

One rule: only the store's own ways in are taken, and whatever stops them is the finding.

Theory of operation.  A disk must open, be sound, and show exactly the state of the last acknowledged commit, or of the
one that was under way.  Then comes what daemons on other machines do when the worker is back: everything that was not
acknowledged is sent again, and what was sent earlier may arrive late, out of order.  After that the state must be the
one that the same writes made where no power was cut; and one more commit must go through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from tests.powercut.facts import totals_of
from tests.powercut.images import Image
from tests.powercut.traffic import can_come_late
from tests.powercut.workload import DATABASE, Copy, Promise, Run, State, commit, redo, state_of, tables_of
from tests.worker.writing import booking, write
from worker.store import Store, StoreBusy, StoreRefused, WriteRejected
from worker.tables import DamagedRow, SqliteTables

STOPPED: Final = (StoreRefused, StoreBusy, WriteRejected, DamagedRow, apsw.Error)


class Verdict(NamedTuple):
    """What a disk turned out to be."""

    states: frozenset[int]
    """Promises whose state it shows: several where a commit changed nothing."""
    identity: tuple[str, str]
    faults: Sequence[str]
    facts: int
    """How many were looked for: rows of the state, and what the writes alone tell."""

    @property
    def has_opened(self) -> bool:
        return bool(self.identity[0])


class Judge:
    """Opens disks in a folder of its own."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._numbers = count()
        self._late = [write for promise in run.promises for write in promise.writes if can_come_late(write)]

    def judge(self, image: Image, acknowledged: int) -> Verdict:
        """`acknowledged`: the last promise that this disk must keep."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        for name, content in image.items():
            (folder / name).write_bytes(content)
        try:
            store = Store(folder / DATABASE)
        except STOPPED as error:
            return Verdict(frozenset(), ("", ""), [f"does not open: {error!r}"], 0)
        try:
            return self._opened(store, acknowledged)
        except STOPPED as error:
            return Verdict(frozenset(), ("", ""), [f"opens, and stops: {error!r}"], 0)
        finally:
            store.abandon()
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    def _opened(self, store: Store, acknowledged: int) -> Verdict:
        promises = self._run.promises
        faults = list(_unsound(store._db))
        state = state_of(store)
        states = frozenset(number for number, promise in enumerate(promises) if promise.state == state)
        identity = (store.incarnation, store.hash_key)
        promise = promises[max(states, default=acknowledged)]
        faults += _untrue(store, promise)
        if self._run.copy is not None:
            faults += _unlike(store.path.with_name(self._run.copy.name), self._run.copy)
        faults += self._going_on(store, acknowledged)
        return Verdict(states, identity, faults, len(promise.facts) + sum(map(len, promise.state.values())))

    def _going_on(self, store: Store, acknowledged: int) -> Iterator[str]:
        promises = self._run.promises
        for promise in promises[acknowledged + 1 :]:
            redo(store, promise)
        commit(store, self._late, promises[-1].now)
        yield from (f"in the end, {each}" for each in differences(state_of(store), promises[-1].state))
        yield from (f"in the end, {each}" for each in _untrue(store, promises[-1]))
        one_more = booking(1, "one-more")
        commit(store, [write(one_more)], promises[-1].now)
        if SqliteTables(store._db).row(one_more.row.event_id) is None:
            yield "one more commit leaves nothing"


def differences(found: State, due: State) -> Iterator[str]:
    for table in sorted(found.keys() | due.keys()):
        more = [row for row in found.get(table, []) if row not in due.get(table, [])]
        less = [row for row in due.get(table, []) if row not in found.get(table, [])]
        if more or less:
            yield f"{table} has {more}, not {less}"


def _unsound(connection: apsw.Connection) -> Iterator[str]:
    for check in ("integrity_check", "foreign_key_check"):
        found = [tuple(row) for row in connection.execute(f"PRAGMA {check}")]
        if found not in ([], [("ok",)]):
            yield f"{check}: {found[:3]}"


def _untrue(store: Store, promise: Promise) -> Iterator[str]:
    return promise.facts.untrue(SqliteTables(store._db), totals_of(store._db.execute))


def _unlike(path: Path, copy: Copy) -> Iterator[str]:
    """What is wrong with the copy that a migration made: it must be there before anything changed."""
    if not path.exists():
        yield f"migrated, without {path.name}"
        return
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        yield from _unsound(connection)
        yield from (f"{path.name}: {each}" for each in differences(tables_of(connection), copy.state))
    finally:
        connection.close()
