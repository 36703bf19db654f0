"""What is running when the power goes: scripts for the real store, recorded with what it promised and when.

One rule: a script only plays the worker (commit, checkpoint, slice, close) and the world (kill, reader); what reaches
the disk is the store's doing.

Theory of operation.  Each commit is a *promise*: from the moment it returned every disk must hold its state, and from
the moment it began a disk may.  The state is all tables as the running store shows them; the facts beside it are told
from the writes alone, so a store that forgets while it runs is found too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import apsw

from tests.powercut.facts import Facts, totals_of
from tests.powercut.images import Disk, Image, Operation, selections
from tests.powercut.recording import Recording, recording
from tests.powercut.traffic import BOOTS, Traffic
from tests.worker.test_migrations import put_old_rows, put_rows_of_schema_2
from tests.worker.writing import booking, write
from worker import retention
from worker import store as store_module
from worker.batch import Outcome, Write
from worker.store import Store, WriteRejected

DATABASE: Final = "perdure.db"
SPILLING_CACHE_PAGES: Final = 10
"""With so few pages in memory a transaction goes to the log before it is committed, as a large one does."""
NOW: Final = 1_750_000_000_000
SLICE_ROWS: Final = 4
"""Old rows that a slice removes.  So few that a walk over all of them takes some, and one ends in mid-session."""
AFTER_ALL: Final = 2 * NOW
"""A limit that makes every row an old one."""
NEWEST_SCHEMA: Final = len(store_module._steps())

State = dict[str, list[tuple[Any, ...]]]
"""All rows by table."""


class Promise(NamedTuple):
    """One commit, or one slice of the walk over old rows."""

    began: int
    """Operations before it, and…"""
    kept_from: int
    """…before it was acknowledged."""
    writes: Sequence[Write]
    now: int
    state: State
    facts: Facts
    is_slice: bool = False


class Copy(NamedTuple):
    """What a migration keeps of the database before it."""

    name: str
    state: State


class Run(NamedTuple):
    """A recorded workload."""

    name: str
    before: Image
    operations: Sequence[Operation]
    promises: Sequence[Promise]
    """The first one is what was there before it all."""
    identity: tuple[str, str]
    identity_from: int
    """Operations after which the store had told who it is."""
    copy: Copy | None = None


Script = Callable[[Path, random.Random], Run]


def everyday(folder: Path, draw: random.Random, *, acknowledging_early: bool = False) -> Run:
    """A store from its creation on: all that a worker does to it, in a drawn order."""
    with recording(folder) as recorded:
        stage = Stage(recorded, draw, acknowledging_early=acknowledging_early)
        parts: list[Sequence[Callable[[], None]]] = [
            [stage.checkpoint, stage.commit, stage.commit],
            [stage.checkpoint_beside_a_reader, stage.commit, stage.checkpoint],
            [stage.reopen, stage.commit],
            [stage.kill, stage.commit, stage.checkpoint],
            [stage.merge, stage.commit],
            [stage.age, stage.slice, stage.commit, stage.slice, stage.kill, stage.slice],
            [stage.refuse, stage.kill, stage.commit],
        ]
        draw.shuffle(parts)
        # A long log first: what is written into it after its checkpoint has frames of before behind it.
        for step in (stage.commit, stage.commit, stage.checkpoint, stage.commit, *(step for p in parts for step in p)):
            step()
        stage.close()
        return stage.run("everyday")


def small(folder: Path, draw: random.Random, *, acknowledging_early: bool = False) -> Run:
    """Some commits and a checkpoint, in a store that was there before."""
    Store(folder / DATABASE).close()
    with recording(folder) as recorded:
        stage = Stage(recorded, draw, acknowledging_early=acknowledging_early)
        for step in (stage.commit, stage.commit, stage.checkpoint, stage.commit, stage.commit):
            step()
        stage.store.abandon()
        return stage.run("small")._replace(identity_from=0)


def aging(folder: Path, draw: random.Random) -> Run:
    """Old rows go, in slices, between two checkpoints."""
    Store(folder / DATABASE).close()
    with recording(folder) as recorded:
        stage = Stage(recorded, draw)
        for step in (stage.age, stage.checkpoint, stage.slice, stage.slice, stage.checkpoint, stage.slice):
            step()
        stage.store.abandon()
        return stage.run("aging")._replace(identity_from=0)


def after_a_cut(run: Run) -> Script:
    """The worker starts on what a cut of another run left, and goes on: in a log that has a torn end."""

    def script(folder: Path, draw: random.Random) -> Run:
        disk, position = Disk(run.before), draw.randrange(len(run.operations))
        for operation in run.operations[:position]:
            disk.apply(operation)
        for name, content in disk.image(draw.choice(list(islice(selections(disk.pending(), draw), 9)))).items():
            (folder / name).write_bytes(content)
        with recording(folder) as recorded:
            stage = Stage(recorded, draw)
            for turn in range(3):
                stage.commit_writes([write(booking(turn, "after-the-cut", settled=turn > 1))])
            stage.checkpoint()
            stage.commit_writes([write(booking(1, "after-the-cut"))])
            stage.store.abandon()
            return stage.run(f"after cut {position} of {run.name}")

    return script


def migrating(version: int, *, killed: bool) -> Script:
    """A database of an earlier schema, left by a program that was stopped or killed, is opened by this one."""

    def script(folder: Path, draw: random.Random) -> Run:
        old = _make_old(folder / DATABASE, version, killed=killed)
        with recording(folder) as recorded:
            stage = Stage(recorded, draw)
            stage.commit()
            stage.close()
            run = stage.run(f"migration from schema {version}{', killed' if killed else ''}")
        return run._replace(identity_from=0, copy=Copy(f"{DATABASE}.schema-{version}", old))

    return script


class Stage:
    """The store on which a script is played, and what it promised so far."""

    def __init__(self, recorded: Recording, draw: random.Random, *, acknowledging_early: bool = False) -> None:
        self._recorded = recorded
        self._draw = draw
        self._acknowledging_early = acknowledging_early
        self._traffic = Traffic(draw)
        self.store = Store(recorded.folder / DATABASE)
        self._identity = (self.store.incarnation, self.store.hash_key)
        self._identity_from = recorded.position
        facts = Facts({}, {}, {}, frozenset(), before=totals_of(self.store._db.execute))
        self.promises = [Promise(0, 0, [], NOW, state_of(self.store), facts)]

    def run(self, name: str) -> Run:
        recorded = self._recorded
        return Run(name, recorded.before, recorded.operations, self.promises, self._identity, self._identity_from)

    def commit(self) -> None:
        self.commit_writes(self._traffic.batch(self._draw.choice((1, 2, 4, 12))))

    def merge(self) -> None:
        """Of sessions that exist by then."""
        self.commit_writes(self._traffic.claims())
        self.commit_writes(self._traffic.merge())

    def age(self) -> None:
        """Rows that may go: a daemon told of them, and of its state after them, and is gone."""
        self.commit_writes(self._traffic.departed())

    def slice(self) -> None:
        began, now = self._recorded.position, NOW + len(self.promises)
        facts = self.promises[-1].facts.after_slice(SLICE_ROWS)
        promise = Promise(began, began, [], now, {}, facts, is_slice=True)
        redo(self.store, promise)
        kept_from = began if self._acknowledging_early else self._recorded.position
        self.promises.append(promise._replace(kept_from=kept_from, state=state_of(self.store)))

    def checkpoint(self) -> None:
        self.store.checkpoint()

    def checkpoint_beside_a_reader(self) -> None:
        """Who reads an older state lets only a part of the log into the database."""
        reader = apsw.Connection(str(self.store.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            reader.execute("BEGIN; SELECT count(*) FROM ledger")
            self.commit()
            self.store.checkpoint()
            self.commit()
        finally:
            reader.close()

    def refuse(self) -> None:
        """A batch that goes to the log in part before it is found unfit and rolled back."""
        self.store._db.execute(f"PRAGMA cache_size = {SPILLING_CACHE_PAGES}")
        writes = self._traffic.unfit(self._draw.randrange(10, 30))
        before = self._recorded.position
        try:
            commit(self.store, writes, NOW)
        except WriteRejected:
            assert self._recorded.position > before, "nothing of it came to the log: it shows nothing"
        else:
            raise AssertionError("a batch with a value that is no text was taken")

    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.store.path)

    def kill(self) -> None:
        self.store.abandon()
        self.store = Store(self.store.path)

    def close(self) -> None:
        self.store.close()

    def commit_writes(self, writes: list[Write]) -> None:
        began, now = self._recorded.position, NOW + len(self.promises)
        self._traffic.heard(writes, commit(self.store, writes, now))
        kept_from = began if self._acknowledging_early else self._recorded.position
        facts = self.promises[-1].facts.after(writes)
        self.promises.append(Promise(began, kept_from, writes, now, state_of(self.store), facts))


def commit(store: Store, writes: Sequence[Write], now: int) -> Outcome:
    return store.commit(writes, live=frozenset(BOOTS), now=now)


def redo(store: Store, promise: Promise) -> None:
    """What a promise was made for, on another store or once more."""
    if not promise.is_slice:
        commit(store, promise.writes, promise.now)
        return
    with mock.patch.object(retention, "ROWS_PER_SLICE", SLICE_ROWS):
        # From the first session, as a worker begins that was started anew.
        store.roll_up(0, before=AFTER_ALL, live=frozenset(BOOTS))


def state_of(store: Store) -> State:
    return tables_of(store._db)


def tables_of(connection: apsw.Connection) -> State:
    """All that is in a database, but what it says of itself, and the numbers of keys: one that is sent again may get
    another, and only their order means anything."""
    found = {name: _rows_of(connection, name) for name in _names_of(connection) if name != "meta"}
    found["session_key"] = [row[1:] for row in found["session_key"]]
    return {name: rows if name == "session_key" else sorted(rows, key=repr) for name, rows in found.items()}


def _names_of(connection: apsw.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]


def _rows_of(connection: apsw.Connection, table: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]


@contextmanager
def pragma_replaced(pragma: str, other: str) -> Iterator[None]:
    """The store works with another setting than it should."""
    pragmas = [other if each == pragma else each for each in store_module._PRAGMAS]
    assert other in pragmas
    with mock.patch.object(store_module, "_PRAGMAS", tuple(pragmas)):
        yield


def _make_old(path: Path, version: int, *, killed: bool) -> State:
    """Left in the state in which the program of that schema leaves it."""
    steps = store_module._steps()
    with mock.patch.object(store_module, "_steps", return_value=steps[:version]):
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL")
        store_module._migrate(connection, path, 0)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, int(killed))
        (put_old_rows if version == 1 else put_rows_of_schema_2)(path)
        found = tables_of(connection)
        connection.close()
    return found
