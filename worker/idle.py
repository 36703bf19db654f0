"""Sessions that nobody came back to: which of them go, with all that belongs to them, and in what order.

One rule: no figure that anybody can still see moves by it.  What the rows of such a session had added to the days stays
(`day_rolled`); a session goes with its whole tree or not at all; and whoever holds it yet does no harm.

Theory of operation.  Once a day, after the walk over old rows, a worker goes over the sessions that had no turn since
the limit, the longest idle first.  Of each that has no parent it looks at the whole tree.  If all rows in it are older
than the limit, and none is of a daemon that is known now (`worker.retention` says why), the tree goes, from its root
down: what a session has cost with its sub-agents is shown with the session, and while it is there its tree is whole.

A session may have any number of rows, links and names.  These go first, a slice at a time, its rows but the last, and
what names it at the end: until the last slice takes the session itself it is one that may be come back to, and knows
its place in its ledger.  A walk that is cut short by a restart begins anew and finds less.

Who comes back later begins anew: under the same id, if its client names it, else as another session.  A daemon that
still holds what is gone, since its clock was years off or it never ran its cache full, is told that it lost it; one
that does not hear finds a session whose epoch is above any that was ever given to the former one (`epoch_floor`), so
that nothing of the two is mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from enum import Enum
from itertools import islice, takewhile
from typing import Final, NamedTuple, Protocol

from worker.protocol import COUNT_MAX, Lost, Row
from worker.retention import Rolling, may_go, roll_rows

PIECES_PER_SLICE: Final = 100
"""Sessions looked at, rows, links and names removed in one transaction: each is a few pages far apart."""
IMAGES_PER_SLICE: Final = 2
"""What the sessions of a correction were is one value, of megabytes for large ones."""
EPOCH_MAX: Final = COUNT_MAX // 2
"""What no session reaches by being claimed.  One with a greater epoch is damaged, and stays: all that begin after it
was gone would begin above."""


class Idle(NamedTuple):
    """What tells of a session whether it is idle.  `number` is its place in the table."""

    number: int
    session_id: str
    parent_session_id: str | None
    last_seen_at: int
    last_position: int
    snapshot_position: int
    epoch: int
    owner: str


class Stage(Enum):
    """What the walk does, as one sentence."""

    SEEKING = "the longest idle session that has no parent is found, and…"
    LOOKING = "…every session below it is looked at, and if all are idle…"
    REMOVING = "…they go, from the root down, and the next one is sought; if there is none…"
    TIDYING = "…what old corrections remember of sessions goes, and the walk is over"


class Place(NamedTuple):
    """Where the walk stands between two slices."""

    seen_at: int = -(2**62)
    number: int = 0
    """The last session that was found, by the time of its last turn and its place in the table."""
    stage: Stage = Stage.SEEKING
    root: str = ""
    path: tuple[tuple[str, int], ...] = ()
    """From the root down: a session, and the number of its last child that was dealt with.  Empty: the root itself is
    next."""


class Forgotten(NamedTuple):
    """What one slice did, and where the next one goes on."""

    rows: int
    sessions: int
    lost: list[tuple[str, Lost]]
    """Which daemons owned what is gone."""
    place: Place
    is_last: bool


class Tables(Rolling, Protocol):
    """The store, inside one transaction."""

    def idle_after(self, seen_at: int, number: int, before: int) -> Generator[Idle]:
        """Sessions whose last turn began before, the longest idle first; read only as far as it is iterated."""
        ...

    def idle(self, session_id: str) -> Idle | None: ...
    def child_after(self, session_id: str, number: int) -> Idle | None: ...
    def newest_rows(self, session_id: str) -> list[Row]:
        """The settled row with the last position, and the open one that was entered last."""
        ...

    def open_rows(self, session_id: str, limit: int) -> list[Row]: ...
    def rows_after(self, session_id: str, position: int, limit: int) -> list[Row]: ...
    def drop_row(self, event_id: str) -> None: ...
    def drop_snapshot(self, session_id: str) -> None: ...
    def drop_some_history(self, session_id: str, limit: int) -> int:
        """Up to so many; gives how many, as the others do."""
        ...

    def drop_some_hints(self, session_id: str, limit: int) -> int: ...
    def drop_some_keys(self, session_id: str, limit: int) -> int: ...
    def some_aliases(self, session_id: str, limit: int) -> list[str]: ...
    def drop_alias(self, alias: str) -> None: ...
    def forget_adopted(self, session_id: str) -> None: ...
    def drop_some_images(self, session_id: str, limit: int) -> int:
        """Of changes by an operator: what the sessions were before, without which they are not undone."""
        ...

    def drop_old_images(self, before: int, limit: int) -> int: ...
    def drop_session(self, session_id: str) -> None: ...
    def raise_epoch_floor(self, epoch: int) -> None: ...


def forget_idle(tables: Tables, place: Place, *, before: int, live: frozenset[str]) -> Forgotten:
    """One slice of the walk: sessions without anything since `before` (Unix milliseconds) go.  `live`: the boots that
    the worker knows."""
    walk = _Walk(tables, place, before, live)
    while walk.room > 0 and not walk.is_last:
        walk.step()
    return walk.done()


class _Walk:
    """One slice.  What it writes and where it stands count only if its transaction is committed."""

    def __init__(self, tables: Tables, place: Place, before: int, live: frozenset[str]) -> None:
        self._tables = tables
        self._before = before
        self._live = live
        self._seen_at, self._number, self._stage, self._root, path = place
        self._path = list(path)
        self._rows = self._sessions = 0
        self._lost: list[tuple[str, Lost]] = []
        self.room = PIECES_PER_SLICE
        self.is_last = False

    def step(self) -> None:
        match self._stage:
            case Stage.SEEKING:
                self._seek()
            case Stage.LOOKING:
                self._look()
            case Stage.REMOVING:
                self._remove()
            case Stage.TIDYING:
                self._tidy()

    def done(self) -> Forgotten:
        place = Place(self._seen_at, self._number, self._stage, self._root, tuple(self._path))
        return Forgotten(self._rows, self._sessions, self._lost, Place() if self.is_last else place, self.is_last)

    # -- the stages --------------------------------------------------------------------------------------------------

    def _seek(self) -> None:
        with closing(self._tables.idle_after(self._seen_at, self._number, self._before)) as found:
            for session in found:
                self.room -= 1
                self._seen_at, self._number = session.last_seen_at, session.number
                if self._is_root(session) and self._is_idle(session):
                    self._stage, self._root, self._path = Stage.LOOKING, session.session_id, [(session.session_id, 0)]
                    return
                if self.room <= 0:
                    return
        self._stage, self.room = Stage.TIDYING, 0

    def _tidy(self) -> None:
        self.is_last = self._tables.drop_old_images(self._before, IMAGES_PER_SLICE) < IMAGES_PER_SLICE
        self.room = 0

    def _look(self) -> None:
        child = self._next()
        if child is None:
            if not self._path:
                self._stage = Stage.REMOVING
        elif self._is_idle(child):
            self._descend(child)
        else:
            self._stage = Stage.SEEKING

    def _remove(self) -> None:
        is_root = not self._path
        session = self._tables.idle(self._root) if is_root else self._next()
        if session is None:
            if not self._path:
                self._stage = Stage.SEEKING
            return
        if self._is_idle(session):
            if self._clear(session):
                self._descend(session)
                return
            if self.room <= 0:
                if is_root:
                    # It takes more than this slice, and somebody may come back to one below it meanwhile.
                    self._stage, self._path = Stage.LOOKING, [(self._root, 0)]
                return
        # Somebody came back to it since it was looked at: it stays, and what is below it.
        if is_root:
            self._stage = Stage.SEEKING
        else:
            self._path[-1] = (self._path[-1][0], session.number)

    def _next(self) -> Idle | None:
        """The next child of the session that the path ends at; without one the path gets shorter."""
        self.room -= 1
        child = self._tables.child_after(*self._path[-1])
        if child is None:
            self._path.pop()
        return child

    def _descend(self, session: Idle) -> None:
        if self._path:
            self._path[-1] = (self._path[-1][0], session.number)
        self._path.append((session.session_id, 0))

    # -- one session -------------------------------------------------------------------------------------------------

    def _is_root(self, session: Idle) -> bool:
        return not session.parent_session_id or self._tables.idle(session.parent_session_id) is None

    def _is_idle(self, session: Idle) -> bool:
        if session.last_seen_at >= self._before or session.epoch > EPOCH_MAX:
            return False
        return all(map(self._may_go, self._tables.newest_rows(session.session_id)))

    def _may_go(self, row: Row) -> bool:
        return may_go(row, before=self._before, live=self._live)

    def _clear(self, session: Idle) -> bool:
        """Remove all of it there is room for; True: the session is gone."""
        tables, session_id = self._tables, session.session_id
        if not (self._clear_settled(session) and self._clear_open(session_id)):
            return False
        drops: Sequence[Callable[[str, int], int]] = (
            tables.drop_some_history,
            tables.drop_some_hints,
            self._drop_some_aliases,
            tables.drop_some_keys,
        )
        for drop in drops:
            self.room -= drop(session_id, self.room)
            if self.room <= 0:
                return False
        self.room -= tables.drop_some_images(session_id, IMAGES_PER_SLICE) * (PIECES_PER_SLICE // IMAGES_PER_SLICE)
        if self.room <= 0:
            return False
        self._roll(session_id, tables.rows_after(session_id, 0, 1))
        tables.forget_adopted(session_id)
        tables.raise_epoch_floor(session.epoch + 1)
        tables.drop_session(session_id)
        self._sessions += 1
        if session.owner:
            self._lost.append((session.owner, Lost(session_id=session_id, epoch=session.epoch + 1)))
        return True

    def _clear_settled(self, session: Idle) -> bool:
        """All settled rows but the last, by which the state is placed; True: there is no other any more."""
        tables, session_id, last = self._tables, session.session_id, session.last_position
        with closing(tables.rows_from_the_first(session_id, last - 1)) as rows:
            gone = list(islice(takewhile(self._may_go, rows), self.room))
        if gone:
            self._roll(session_id, gone)
            if gone[-1].position > session.snapshot_position:
                # Its state would be told with rows missing.  Whoever comes back yet folds it from the last row.
                tables.drop_snapshot(session_id)
        left = tables.rows_after(session_id, 0, 1)
        return self.room > 0 and all(row.position >= last and self._may_go(row) for row in left)

    def _clear_open(self, session_id: str) -> bool:
        """Rows whose daemon died: nobody ends them any more."""
        found = self._tables.open_rows(session_id, self.room)
        gone = [row for row in found if self._may_go(row)]
        self._roll(session_id, gone)
        return self.room > 0 and len(gone) == len(found)

    def _drop_some_aliases(self, session_id: str, limit: int) -> int:
        aliases = self._tables.some_aliases(session_id, limit)
        for alias in aliases:
            self._tables.forget_adopted(alias)
            self._tables.drop_alias(alias)
        return len(aliases)

    def _roll(self, session_id: str, rows: Sequence[Row]) -> None:
        roll_rows(self._tables, session_id, rows)
        for row in rows:
            self._tables.drop_row(row.event_id)
        self._rows += len(rows)
        self.room -= len(rows)
