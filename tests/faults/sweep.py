"""A workload of the store, gone through once for every call that it makes of the disk, with that call failing.

One rule: whatever fails, what was acknowledged is there, what was not is there whole or not at all, and when the fault
is over the store holds exactly what a healthy one would.

Theory.  A `Desk` treats its store as the worker does: what StoreBusy refused is kept and tried again; StoreRefused ends
the process, and the store is opened anew.  Any other exception is a fault of the store.  A *scene* begins with an
image of files and acts on them; its states after each commit are known from a run without a fault.  At the first
refusal of each step the files are copied as a SIGKILL would leave them; opened again, they must hold the state before
or after the commit that was refused.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import apsw

from tests.faults.faulty import CODES, Call, Fault, FaultyDisk
from tests.worker.writing import booking, claim, row, snapshot_write, write
from worker.batch import Write
from worker.protocol import Amend, Merge, Split, Undo
from worker.records import account_of, page_of_sessions
from worker.retention import ROWS_PER_SLICE, Slice
from worker.store import Reader, Store, StoreBusy, StoreRefused

NOW: Final = 1_750_000_100_000
AFTER_ALL: Final = 2 * NOW
"""A limit that makes every row an old one."""
LIVE: Final = frozenset({"boot-1"})
TRIES: Final = 3
"""Of a step under a fault; a lasting one is over before the last."""

T = TypeVar("T")
State = tuple[tuple[object, ...], ...]


class Desk:
    """Uses one store as the worker's loop does, without the loop."""

    def __init__(self, path: Path, disk: FaultyDisk, fault: Fault | None) -> None:
        self.path = path
        self.states: list[State] = []
        """Before the first commit, and after each; only while there is no fault."""
        self.acknowledged = 0
        self.refused: list[str] = []
        """What StoreRefused said: the worker would have exited 78."""
        self.at_refusal: Callable[[Desk], None] = lambda desk: None
        self._disk = disk
        self._fault = fault
        self._store: Store | None = None

    def storm(self) -> None:
        """From here on calls are counted, and the fault is armed."""
        self._disk.arm(self._fault)

    def open(self) -> None:
        self._until_done(lambda: None)
        self._remember()

    def commit(self, *writes: Write) -> None:
        self._until_done(lambda: self.store.commit(writes, live=LIVE, now=NOW + self.acknowledged))
        self.acknowledged += 1
        self._remember()

    def roll_up(self) -> None:
        """Old rows go, a slice after the other, each acknowledged as a commit is."""
        after, is_over = 0, False
        while not is_over:
            done = self._until_done(partial(self._slice, after))
            after, is_over = done.after, done.is_last
            self.acknowledged += 1
            self._remember()

    def checkpoint(self) -> None:
        self._until_done(lambda: self.store.checkpoint())

    def read(self) -> tuple[object, ...]:
        """What people are shown, through a reader of its own, and the index that daemons are given."""
        return (*self._until_done(self._shown), self._until_done(lambda: self.store.keys_before(2**62, 100)))

    def calm(self) -> None:
        self._disk.calm()

    def close(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            store.close()

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store(self.path)
        return self._store

    def _slice(self, after: int) -> Slice:
        return self.store.roll_up(after, before=AFTER_ALL, live=frozenset())

    def _shown(self) -> tuple[object, ...]:
        reader = Reader(self.path)
        try:
            page = page_of_sessions(reader.execute, "", 100)
            accounts = [account_of(reader.execute, each.session.session_id, 50) for each in page.records]
            return page.records, accounts, list(reader.execute("SELECT count(*) FROM ledger"))
        finally:
            reader.close()

    def _until_done(self, step: Callable[[], T]) -> T:
        for attempt in range(TRIES):
            if attempt == TRIES - 1:
                self._disk.calm()
            try:
                assert self.store.path == self.path
                return step()
            except StoreBusy:
                pass
            except StoreRefused as refusal:
                self.refused.append(str(refusal))
                if self._store is not None:
                    store, self._store = self._store, None
                    store.abandon()
            if attempt == 0:
                with self._disk.calmed():
                    self.at_refusal(self)
        raise AssertionError("refused, with the disk as good as ever")

    def _remember(self) -> None:
        if self._fault is None:
            with self._disk.calmed():
                self.states.append(contents(self.path))


class Careless(Desk):
    """Takes a refused commit for done: what the sweep must notice."""

    def commit(self, *writes: Write) -> None:
        with contextlib.suppress(StoreBusy):
            self.store.commit(writes, live=LIVE, now=NOW + self.acknowledged)
        self.acknowledged += 1


# -- scenes


class Scene(NamedTuple):
    name: str
    act: Callable[[Desk], None]
    image: str = ""
    """The files it begins with; empty: none."""


def opening(desk: Desk) -> None:
    desk.storm()
    desk.open()
    desk.commit(write(booking(90), 90))
    desk.close()


def writing(desk: Desk) -> None:
    """Commits of each kind, of one and of many writes."""
    desk.open()
    desk.storm()
    for batch in BATCHES:
        desk.commit(*batch)


def checkpointing(desk: Desk) -> None:
    desk.open()
    desk.commit(*BATCHES[0])
    desk.storm()
    desk.checkpoint()
    desk.commit(*BATCHES[1])
    desk.checkpoint()
    desk.commit(*BATCHES[2])


def reading(desk: Desk) -> None:
    desk.open()
    desk.commit(*BATCHES[0])
    desk.storm()
    before = desk.read()
    desk.commit(*BATCHES[2])
    after = desk.read()
    desk.calm()
    assert before != after == desk.read(), "a reader under the fault was shown something else"


def aging(desk: Desk) -> None:
    """A session whose old rows take two slices: the first is full."""
    desk.open()
    desk.commit(
        write(claim("aged")),
        *(write(booking(n, "aged", boot="gone")) for n in range(1, AGED_TURNS + 1)),
        write(snapshot_write("aged", position=AGED_TURNS)),
    )
    desk.storm()
    desk.roll_up()
    desk.commit(write(booking(AGED_TURNS + 1, "aged")))


def closing(desk: Desk) -> None:
    desk.open()
    desk.commit(*BATCHES[0])
    desk.storm()
    desk.close()


def _amend(number: int, act: Merge | Split | Undo) -> Write:
    return Write("boot-1", number, Amend(request=f"request-{number}", act=act))


BATCHES: Final[Sequence[Sequence[Write]]] = (
    [write(claim(), 1)],
    [write(booking(11, settled=False), 2)],
    [write(booking(11), 3), write(snapshot_write(generation=5), 4)],
    [write(booking(20 + n, f"session-{n % 3}"), 20 + n) for n in range(30)],
    [_amend(50, Merge(session_id="session-2", into="session-0"))],
    [_amend(51, Split(session_id="session-1", drawn_id="session-9", first_event=row(11).event_id))],
    [_amend(52, Undo(change=1))],
)
AGED_TURNS: Final = ROWS_PER_SLICE + 11
SCENES: Final = (
    Scene("a fresh store", opening),
    Scene("a store that was closed", opening, "closed"),
    Scene("a store that was killed", opening, "killed"),
    Scene("an old schema", opening, "old"),
    Scene("commits", writing, "closed"),
    Scene("checkpoints", checkpointing, "closed"),
    Scene("reads", reading, "closed"),
    Scene("old rows", aging, "closed"),
    Scene("a close", closing, "closed"),
)


# -- running


@dataclass(frozen=True)
class Sweep:
    """Goes through scenes.  `images` holds a directory per image; each run is in `work`, afresh."""

    disk: FaultyDisk
    work: Path
    images: Path

    def calls_of(self, scene: Scene) -> tuple[dict[Call, int], list[State]]:
        """What a scene asks of the disk, by kind; and its states, the last one twice if nothing was committed."""
        with self._desk(scene, None, Desk) as desk:
            scene.act(desk)
            calls = dict(self.disk.calls)
        return calls, [*desk.states, contents(desk.path)]

    def run(self, scene: Scene, fault: Fault, states: Sequence[State], kind: type[Desk] = Desk) -> Desk:
        """One fault in one scene.  AssertionError, or what the store raised, where the rule does not hold."""
        with self._desk(scene, fault, kind) as desk:
            desk.at_refusal = lambda refused: self._judge(refused, states)
            scene.act(desk)
            assert self.disk.failed, "there was no such call"
            self.disk.calm()
            desk.open()
        assert contents(desk.path) == states[-1], "the fault is over, and the store is not what it should be"
        return desk

    @contextlib.contextmanager
    def _desk(self, scene: Scene, fault: Fault | None, kind: type[Desk]) -> Iterator[Desk]:
        shutil.rmtree(self.work, ignore_errors=True)
        if scene.image:
            shutil.copytree(self.images / scene.image, self.work)
        else:
            self.work.mkdir()
        desk = kind(self.work / "perdure.db", self.disk, fault)
        try:
            yield desk
        finally:
            self.disk.calm()
            desk.close()

    def _judge(self, desk: Desk, states: Sequence[State]) -> None:
        """As after a SIGKILL at this moment: copied aside, and opened by the next worker."""
        aside = self.work / "killed"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for file in self.work.glob("perdure.db*"):
            shutil.copy(file, aside)
        copy = aside / desk.path.name
        Store(copy).close()
        assert contents(copy) in states[desk.acknowledged : desk.acknowledged + 2], (
            f"killed after {desk.acknowledged} acknowledged commits, it holds neither their state nor the next"
        )


def faults_of(calls: dict[Call, int], numbers_max: int) -> Iterator[Fault]:
    """Each way to fail each call, once and from then on.  Of each kind, all numbers, or so many of them, evenly."""
    for call, error in CODES:
        count = calls.get(call, 0)
        step = max(1, -(-count // numbers_max))
        for number in range(1, count + 1, step):
            for lasting in (False, True):
                yield Fault(call=call, error=error, number=number, lasting=lasting)


def contents(path: Path) -> State:
    """Everything that is stored but what a store says of itself; fails for a damaged one."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        assert list(db.execute("PRAGMA integrity_check")) == [("ok",)]
        assert list(db.execute("PRAGMA foreign_key_check")) == []
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        return tuple(
            (table, *values)
            for table in tables
            if table != "meta"
            for values in sorted(db.execute(f'SELECT * FROM "{table}"'), key=repr)
        )
    finally:
        db.close()
