"""The real store, driven through years of days: commits, checkpoints, and every night the real walks of retention.

One rule: only time is played.  Files, transactions, fsyncs and sums are those of a worker; and every month all of it is
held against a model that has seen nothing but the writes.

Theory of operation.  A worker's loop does three things: it commits what has come, it looks at the log now and then, and
where nobody waits it takes a slice of retention.  Here a day is all of its commits and then one night, in which the
schedule, told that as much time went by as it asks for, takes its slices one after the other until it is done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from daemon.state import EMPTY, encode
from daemon.verbs.keeping import faults_of
from tests.year.traffic import DAY_MILLISECONDS, FIGURES, Traffic
from worker.backup import verify
from worker.batch import Outcome, Write
from worker.idle import Place
from worker.protocol import Claim, Naming, SnapshotWrite
from worker.retention import WALK_SECONDS, Schedule
from worker.store import CHECKPOINT_PAGES, Reader, Store

DAYS_PER_MONTH: Final = 30
CONVERSATIONS_PER_COMMIT: Final = 10
GROWTH_MAX: Final = 1.2
"""Of the file, over what it was a month after the first sessions had grown old enough to go: months differ."""


class Loss(AssertionError):
    """Something is not as it must be."""


@dataclass
class Month:
    """What one month left behind."""

    number: int
    rows: int = 0
    """Of the ledger, that are there."""
    sessions: int = 0
    bytes: int = 0
    free_bytes: int = 0
    wal_bytes: int = 0
    """Of the log, at its largest."""
    slices: int = 0
    slice_milliseconds: float = 0.0
    """Of retention, the slowest."""
    work_milliseconds: float = 0.0
    """The same in the processor's time, whatever else the machine does."""
    commit_milliseconds: float = 0.0
    booked: int = 0
    """Rows there ever were: what the sums are of."""

    def line(self) -> str:
        return (
            f"{self.number:>5} {self.booked:>9,} {self.rows:>8,} {self.sessions:>8,} {self.bytes / 2**20:>8.1f} "
            f"{self.free_bytes / 2**20:>6.1f} {self.wal_bytes / 2**20:>6.1f} {self.slices:>6,} "
            f"{self.slice_milliseconds:>8.1f} {self.work_milliseconds:>7.1f} {self.commit_milliseconds:>9.1f}  exact"
        )


HEAD: Final = "month    booked     rows sessions file, MB   free log, MB slices slice ms work ms commit ms  sums"


@dataclass
class Calendar:
    """Days of one store.  `grows_old`: whether anything goes."""

    path: Path
    traffic: Traffic
    ledger_days: int
    session_days: int
    told: Callable[[str], None]
    grows_old: bool = True
    waits_for_disk: bool = True
    """Off, nothing is fsynced: as fast as the processor, for what is not about the disk."""
    months: list[Month] = field(default_factory=list)

    def run(self, days: int) -> None:
        store = Store(self.path)
        if not self.waits_for_disk:
            list(store._db.execute("PRAGMA synchronous = OFF"))
        wall = self.traffic.begins_at
        limits = (self.ledger_days, self.session_days) if self.grows_old else (0, 0)
        schedule = Schedule(*limits, wall=wall, monotonic=0.0)
        self.told(HEAD)
        month = Month(1)
        try:
            for day in range(days):
                self._day(store, day, month)
                self._night(store, schedule, day + 1, month)
                if (day + 1) % DAYS_PER_MONTH == 0:
                    self._close(store, month, day + 1)
                    month = Month(month.number + 1)
        finally:
            store.close()
        self._verify()

    # -- a day ---------------------------------------------------------------------------------------------------------

    def _day(self, store: Store, day: int, month: Month) -> None:
        """Conversations in groups: what arrives while one commit is fsynced is in the next."""
        came = self.traffic.day(day)
        while group := list(islice(came, CONVERSATIONS_PER_COMMIT)):
            self._commit(store, [write for _, _, writes in group for write in writes], month)
            owners = [(session_id, boot) for session_id, boot, _ in group]
            self._flush(store, owners, month)

    def _flush(self, store: Store, owners: list[tuple[str, str]], month: Month) -> None:
        """Their owners' snapshots, as on the tick."""
        asked = [Write(boot, 1, Claim(naming=Naming(session_id=each, confirmed=True))) for each, boot in owners]
        told: list[Write] = []
        for boot, reply in self._commit(store, asked, month).replies:
            session = store._tables.session(reply.session_id)
            assert session is not None
            known = encode(replace(EMPTY, position=session.last_position), reply.generation + 1)
            told.append(Write(boot, 2, SnapshotWrite(session_id=reply.session_id, epoch=reply.epoch, snapshot=known)))
        self._commit(store, told, month)

    def _commit(self, store: Store, writes: list[Write], month: Month) -> Outcome:
        started = time.monotonic()
        outcome = store.commit(writes, live=frozenset(write.boot for write in writes), now=0)
        month.commit_milliseconds = max(month.commit_milliseconds, 1_000 * (time.monotonic() - started))
        self._look_at_log(store, month)
        return outcome

    def _look_at_log(self, store: Store, month: Month) -> None:
        month.wal_bytes = max(month.wal_bytes, store.wal_bytes())
        if store.wal_pages() >= CHECKPOINT_PAGES:
            store.checkpoint()

    # -- a night -------------------------------------------------------------------------------------------------------

    def _night(self, store: Store, schedule: Schedule, day: int, month: Month) -> None:
        wall = self.traffic.begins_at + day * DAY_MILLISECONDS
        monotonic, end = day * WALK_SECONDS, (day + 1) * WALK_SECONDS
        live = frozenset({f"boot-{(day - 1) // 30}-{number}" for number in range(9)})
        place = Place()
        while True:
            monotonic = max(monotonic, schedule._due_at)
            if not schedule.is_due(monotonic) or monotonic >= end:
                return
            before = schedule.before(wall=wall, monotonic=monotonic)
            started, worked = time.monotonic(), time.thread_time()
            if schedule.is_over_sessions:
                forgot = store.forget_idle(place, before=before, live=live)
                place = forgot.place
                seconds = time.monotonic() - started
                schedule.forgot(forgot.sessions, is_last=forgot.is_last, seconds=seconds, monotonic=monotonic)
            else:
                done = store.roll_up(schedule.after, before=before, live=live)
                seconds = time.monotonic() - started
                schedule.did(done, seconds=seconds, monotonic=monotonic)
            month.slices += 1
            month.work_milliseconds = max(month.work_milliseconds, 1_000 * (time.thread_time() - worked))
            month.slice_milliseconds = max(month.slice_milliseconds, 1_000 * seconds)
            self._look_at_log(store, month)

    # -- a month -------------------------------------------------------------------------------------------------------

    def _close(self, store: Store, month: Month, day: int) -> None:
        store.checkpoint()
        month.booked = sum(figures["rows"] for figures in self.traffic.days.values())
        with reading(self.path) as reader:
            month.rows = reader.one("SELECT count(*) FROM ledger")
            month.sessions = reader.one("SELECT count(*) FROM session_state")
            month.bytes = reader.one("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            month.free_bytes = reader.one(
                "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
            )
            stored = reader.days()
        expected = {name: +figures for name, figures in self.traffic.days.items()}
        if stored != expected:
            wrong = sorted(name for name in {*stored, *expected} if stored.get(name) != expected.get(name))
            raise Loss(f"month {month.number}: the sums of {len(wrong)} days are not those booked, first {wrong[0]}")
        self.months.append(month)
        self.told(month.line())
        self._judge(month, day)

    def _judge(self, month: Month, day: int) -> None:
        """Once as much goes as comes, the file stays as large as it was; and what is there is not too old to be."""
        settled = max(self.ledger_days, self.session_days) + DAYS_PER_MONTH
        former = next((each for each in self.months if each.number * DAYS_PER_MONTH >= settled), None)
        if former is not None and month.bytes > GROWTH_MAX * former.bytes:
            raise Loss(f"month {month.number}: {month.bytes:,} bytes, {former.bytes:,} in month {former.number}")

    def _verify(self) -> None:
        contents = verify(self.path, faults_of, lambda _what, _done: None)
        self.told(
            f"read to the last row: {contents.turns:,} turns, {contents.rows:,} rows, {contents.sessions:,} sessions"
        )


class reading:  # noqa: N801 - reads as a clause
    """What the store says, through a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._reader = Reader(path)

    def __enter__(self) -> reading:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def one(self, sql: str) -> int:
        return int(next(iter(self._reader.execute(sql)))[0])

    def days(self) -> dict[str, Counter[str]]:
        sums = "turns, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, cost_nanousd"
        columns = ", ".join(f"sum({name})" for name in sums.split(", "))
        found: Iterator[tuple[object, ...]] = self._reader.execute(f"SELECT day, {columns} FROM day_total GROUP BY day")
        return {str(day): +Counter(dict(zip(FIGURES, map(_whole, values), strict=True))) for day, *values in found}


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
