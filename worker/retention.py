"""Old ledger rows: which of them go, what stays of them, and when there is time for it.

One rule: a row only goes when nothing can ask for it any more, and its figures stay in the sums for good.

Theory of operation.  The ledger grows by a row with every request, and only its newest rows are ever read again.  So a
worker walks over the sessions once a day, the oldest first, a slice at a time, and removes rows from the beginning of
each session's ledger up to the first that has to stay:

- it is younger than the limit;
- the session's snapshot does not know it yet: the state is that snapshot and the rows after it (`state`), and no replay
  may miss one.  Open rows have no position, and stay;
- it is one of the session's newest (`KEPT_ROWS`), which `perdure show` lists, which a correction works on, and from
  which a state is folded again whose snapshot turned out to be damaged;
- its daemon is known now, and might send it again.  Daemons send only what they hold in memory, and what is gone would
  be entered anew; but for that one with a clock years late would have to be stopped for minutes between a write and
  its acknowledgement, while another one finishes more turns of that session and stores its state.

What remains of a session is its newest rows, without a gap.  The links of its history go with the rows that made them:
what goes on from an answer that old is a session of its own, and not known as a fork any more.  Totals are of all rows
there ever were, and never move here: what the rows had added to them is added up beside them, so that *total = rolled
+ the rows that are there* is exact for every session and every day, and whoever checks a database or a backup can add
up all of it.  Sessions that nobody comes back to go as a whole, later (`worker.idle`).

The age of rows is told by clocks, and a clock may be wrong.  The schedule goes by the earlier of two: the wall's, and
what it was at start plus the time that went by since.  One that jumps ahead ages nothing; one that was ahead at start
stops when it is set right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice, takewhile
from typing import Final, NamedTuple, Protocol

from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import Row

ROWS_PER_SLICE: Final = 100
"""Rows removed in one transaction: each changes two or three pages far apart.  At 1 GB it is 3 ms of work, and an fsync
of 190 pages."""
SESSIONS_PER_SLICE: Final = 100
"""Sessions looked at in one transaction, where nothing of them is to go: a page or two are read of each."""
KEPT_ROWS: Final = 50
"""Newest settled rows that a session in use keeps, however old: as many as are shown of one."""
KEPT_ROWS_IDLE: Final = 1
"""Of one without a turn since the limit: it says when and with what the session ended."""
START_SECONDS: Final = 5.0
"""After a start, so that daemons have greeted: they call every second."""
PAUSE_SECONDS: Final = 0.25
"""Between two slices, at least: who comes with a write meets few of them."""
PAUSE_SHARE: Final = 20
"""A slice is followed by a pause as many times its own length: on a slow disk the work takes longer, not more of it."""
WALK_SECONDS: Final = 24 * 3_600.0
"""From one walk to the next: limits are in days."""
BUSY_SECONDS: Final = 60.0
"""After a slice for which there was no space: what is removed needs room in the log first."""
DAY_MILLISECONDS: Final = 24 * 3_600 * 1_000


class Aging(NamedTuple):
    """What tells how much of a session's ledger may go.  `number` is its place in the walk."""

    number: int
    session_id: str
    first_seen_at: int
    last_seen_at: int
    last_position: int
    snapshot_position: int


class Slice(NamedTuple):
    """What one transaction did, and where the next one goes on: after that session, if the walk is not over."""

    rows: int
    after: int
    is_last: bool


class Rolling(Protocol):
    """The store, inside one transaction, for whoever removes rows."""

    def rows_from_the_first(self, session_id: str, position: int) -> Generator[Row]:
        """Settled rows up to a position, oldest position first; read only as far as it is iterated."""
        ...

    def drop_links(self, session_id: str, events: Sequence[str]) -> None:
        """What a session's history has from these requests, but for what names it yet."""
        ...

    def add_to_rolled(self, session_id: str, sums: Sums) -> None: ...
    def add_to_rolled_day(self, day: DayKey, sums: Sums) -> None: ...


class Tables(Rolling, Protocol):
    """The store, inside one transaction."""

    def sessions_after(self, number: int, limit: int) -> list[Aging]: ...
    def drop_rows(self, session_id: str, position: int) -> None:
        """The settled rows up to and with a position."""
        ...


def roll_up(tables: Tables, after: int, *, before: int, live: frozenset[str]) -> Slice:
    """One slice of the walk: remove what is older than `before` (Unix milliseconds) and may go.  `live`: the boots that
    the worker knows, also those it has not heard for a while."""
    sessions = tables.sessions_after(after, SESSIONS_PER_SLICE)
    removed = 0
    for session in sessions:
        removed += _roll_up(tables, session, ROWS_PER_SLICE - removed, before=before, live=live)
        if removed == ROWS_PER_SLICE:
            return Slice(removed, after, is_last=False)  # There may be more of this session.
        after = session.number
    return Slice(removed, after, is_last=len(sessions) < SESSIONS_PER_SLICE)


def going(session: Aging, rows: Iterable[Row], *, before: int, live: frozenset[str]) -> Iterator[Row]:
    """Of a session's settled rows, oldest position first, those that go."""
    last = last_going(session, before)
    return takewhile(lambda row: row.position <= last and may_go(row, before=before, live=live), rows)


def may_go(row: Row, *, before: int, live: frozenset[str]) -> bool:
    return max(row.started_at, row.ended_at) < before and row.boot not in live


def last_going(session: Aging, before: int) -> int:
    """The last position that may go; 0: none."""
    if session.first_seen_at >= before:
        return 0
    kept = KEPT_ROWS if session.last_seen_at >= before else KEPT_ROWS_IDLE
    return max(0, min(session.snapshot_position, session.last_position - kept))


def roll_rows(tables: Rolling, session_id: str, rows: Sequence[Row]) -> None:
    """Keep what rows that go had added to the sums, and let go what a session's history has from them."""
    days: defaultdict[DayKey, Sums] = defaultdict(Sums)
    total = Sums()
    for row in rows:
        total = total.plus(sums_of_session(row))
        days[day_key(row)] = days[day_key(row)].plus(sums_of_day(row))
    if rows:
        tables.add_to_rolled(session_id, total)
        tables.drop_links(session_id, [row.event_id for row in rows])
    for day, sums in days.items():
        tables.add_to_rolled_day(day, sums)


class Schedule:
    """When the next slice is due, of which walk, where it begins, and what is old by then.

    First the walk over old rows, then, where `session_days` says so, the one over idle sessions (`worker.idle`); a day
    later again.  `days` 0: everything is kept.  A session does not go before its rows.  `wall` is Unix milliseconds,
    `monotonic` seconds.
    """

    def __init__(self, days: int, session_days: int = 0, *, wall: int, monotonic: float) -> None:
        self._limit_to(days, session_days)
        self._wall = wall
        self._monotonic = monotonic
        self._due_at = monotonic + START_SECONDS
        self._removed = 0
        self.after = 0
        self.is_over_sessions = False
        """The walk over rows is done; this is the other."""

    def keep(self, days: int, session_days: int, *, monotonic: float) -> None:
        """Other limits from now on; what is old by them is looked for soon, and from the beginning."""
        self._limit_to(days, session_days)
        self.after, self.is_over_sessions = 0, False
        self._due_at = min(self._due_at, monotonic + START_SECONDS)

    def is_due(self, monotonic: float) -> bool:
        return self._limit > 0 and monotonic >= self._due_at

    def before(self, *, wall: int, monotonic: float) -> int:
        """What started and ended before this is old, for the walk that is due."""
        now = min(wall, self._wall + int(1_000 * (monotonic - self._monotonic)))
        return now - (self._idle_limit if self.is_over_sessions else self._limit)

    def did(self, done: Slice, *, seconds: float, monotonic: float) -> int:
        """Take note of a slice that took some seconds; gives what its whole walk removed, once that is over."""
        self.after = 0 if done.is_last else done.after
        return self._did(done.rows, done.is_last, seconds, monotonic)

    def forgot(self, sessions: int, *, is_last: bool, seconds: float, monotonic: float) -> int:
        """The same of the walk over idle sessions, whose place is kept by whoever takes it."""
        return self._did(sessions, is_last, seconds, monotonic)

    def failed(self, monotonic: float) -> None:
        """The store can not be written now; who has a write for it says so."""
        self._due_at = monotonic + BUSY_SECONDS

    def _limit_to(self, days: int, session_days: int) -> None:
        self._limit = days * DAY_MILLISECONDS
        self._idle_limit = max(days, session_days) * DAY_MILLISECONDS if days and session_days else 0

    def _did(self, removed: int, is_last: bool, seconds: float, monotonic: float) -> int:
        self._removed += removed
        pause = max(PAUSE_SECONDS, PAUSE_SHARE * seconds)
        if not is_last:
            self._due_at = monotonic + pause
            return 0
        is_more = self._idle_limit > 0 and not self.is_over_sessions
        self._due_at = monotonic + (pause if is_more else WALK_SECONDS)
        self.is_over_sessions = is_more
        removed, self._removed = self._removed, 0
        return removed


def _roll_up(tables: Tables, session: Aging, room: int, *, before: int, live: frozenset[str]) -> int:
    """Remove up to `room` rows of one session; gives how many."""
    last = last_going(session, before)
    if not last:
        return 0
    with closing(tables.rows_from_the_first(session.session_id, last)) as rows:
        gone = list(islice(going(session, rows, before=before, live=live), room))
    if not gone:
        return 0
    roll_rows(tables, session.session_id, gone)
    tables.drop_rows(session.session_id, gone[-1].position)
    return len(gone)
