"""What must be in the store after these writes were acknowledged, told from the writes alone.

One rule: the store is not asked what it should hold.  A row is what its sender said, settled if any of its writes was;
sums are the sums of the rows, also of those that went by age; whoever was named is found by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from tests.powercut.traffic import GONE, HEADER, NAMED
from worker.batch import Write
from worker.ledger import NOTHING, Sums, sums_of_day, sums_of_session
from worker.protocol import Amend, Booking, Merge, Row, SnapshotWrite
from worker.stored import Tables


class Totals(NamedTuple):
    """A store's own sums."""

    rows: int
    by_session: dict[str, Sums]
    by_day: Sums
    """Over all days."""
    rolled: dict[str, Sums]
    """Of rows that are gone, by session, and…"""
    rolled_by_day: Sums
    """…over all days."""


class Facts:
    """Facts so far; `after` gives those with some more writes."""

    def __init__(
        self,
        rows: dict[str, Row],
        snapshots: dict[str, int],
        merged: dict[str, str],
        gone: frozenset[str],
        before: Totals,
    ) -> None:
        self._before = before
        """What was there already."""
        self._gone = gone
        """Of the rows those that went by age."""
        self._rows = rows
        self._snapshots = snapshots
        """Newest generation sent by session: no store holds a later one."""
        self._merged = merged

    def after(self, writes: Sequence[Write]) -> Facts:
        found = Facts(dict(self._rows), dict(self._snapshots), dict(self._merged), self._gone, self._before)
        for write in writes:
            match write.body:
                case Booking(row=row):
                    if row.event_id not in found._rows or (row.is_settled and not found._rows[row.event_id].is_settled):
                        found._rows[row.event_id] = row
                case SnapshotWrite(session_id=session_id, snapshot=snapshot):
                    found._snapshots[session_id] = max(found._snapshots.get(session_id, 0), snapshot.generation)
                case Amend(act=Merge(session_id=source, into=into)):
                    found._merged[source] = into
        return found

    def after_slice(self, size: int) -> Facts:
        """So many old rows went, if there were as many: session by session the oldest first, and never the last."""
        aged: dict[str, list[str]] = {}
        for row in self._rows.values():
            if row.boot == GONE:
                aged.setdefault(row.session_id, []).append(row.event_id)
        going = [event_id for events in aged.values() for event_id in events[:-1] if event_id not in self._gone]
        return Facts(self._rows, self._snapshots, self._merged, self._gone.union(going[:size]), self._before)

    def __len__(self) -> int:
        return len(self._rows) + 2 * len(self._sessions()) + len(self._merged)

    def untrue(self, tables: Tables, totals: Totals) -> Iterator[str]:
        """What a store says otherwise, in words."""
        gone = [self._rows[event_id] for event_id in self._gone]
        for row in self._rows.values():
            found = tables.row(row.event_id)
            if row.event_id in self._gone:
                if found is not None:
                    yield f"row {row.event_id} is still there"
            elif found is None or _told(found) != _told(replace(row, session_id=self._now(row.session_id))):
                yield f"row {row.event_id}: {found and _told(found)}, not {_told(row)}"
        if totals.rows != len(self._rows) - len(gone) + self._before.rows:
            yield f"{totals.rows} rows, not {len(self._rows)} without {len(gone)} and {self._before.rows}"
        for session_id in self._sessions():
            yield from self._untrue_of(session_id, tables, totals)
        by_day = _sum([self._before.by_day, *map(sums_of_day, self._rows.values())])
        if totals.by_day != by_day:
            yield f"days: {totals.by_day}, not {by_day}"
        if totals.rolled_by_day != (rolled := _sum([self._before.rolled_by_day, *map(sums_of_day, gone)])):
            yield f"days, of rows that are gone: {totals.rolled_by_day}, not {rolled}"
        for name in sorted({row.session_id for row in self._rows.values()} & set(NAMED)):
            if tables.named(HEADER, name, 2) != [self._now(name)]:
                yield f"{name} is not found by its name"
        for source, into in self._merged.items():
            if tables.alias(source) != into or tables.session(source) is not None:
                yield f"{source} is not merged into {into}"

    def _untrue_of(self, session_id: str, tables: Tables, totals: Totals) -> Iterator[str]:
        session = tables.session(session_id)
        if session is None:
            yield f"{session_id} is gone"
            return
        due = [row for row in self._rows.values() if self._now(row.session_id) == session_id]
        if totals.by_session.get(session_id) != (sums := _sum(map(sums_of_session, due))):
            yield f"{session_id}: {totals.by_session.get(session_id)}, not {sums}"
        gone = [row for row in due if row.event_id in self._gone]
        if totals.rolled.get(session_id, NOTHING) != (sums := _sum(map(sums_of_session, gone))):
            yield f"{session_id}, of rows that are gone: {totals.rolled.get(session_id)}, not {sums}"
        positions = [row.position for row in tables.rows_after(session_id, 0, len(due) + 1)]
        if positions != list(range(len(gone) + 1, sum(row.is_settled for row in due) + 1)):
            yield f"{session_id}: settled rows at {positions}"
        if session.snapshot and session.snapshot.generation > self._snapshots.get(session_id, 0):
            yield f"{session_id}: a snapshot that nobody sent"

    def _sessions(self) -> list[str]:
        return sorted({self._now(row.session_id) for row in self._rows.values()})

    def _now(self, session_id: str) -> str:
        return self._merged.get(session_id, session_id)


def totals_of(execute: Callable[[str], Iterable[tuple[Any, ...]]]) -> Totals:
    columns, totals = (", ".join(form.format(name) for name in Sums._fields) for form in ("{}", "coalesce(sum({}), 0)"))
    ((rows,),) = execute("SELECT count(*) FROM ledger")
    by_session, rolled = (
        {name: Sums(*sums) for name, *sums in execute(f"SELECT session_id, {columns} FROM {table}")}
        for table in ("session_total", "session_rolled")
    )
    by_day, rolled_by_day = (
        Sums(*sums) for table in ("day_total", "day_rolled") for sums in execute(f"SELECT {totals} FROM {table}")
    )
    return Totals(rows, by_session, by_day, rolled, rolled_by_day)


def _told(row: Row) -> tuple[object, ...]:
    return (row.session_id, row.kind, row.status, row.started_at, row.ended_at, row.usage, row.cost_nanousd)


def _sum(all_sums: Iterable[Sums]) -> Sums:
    found = NOTHING
    for sums in all_sums:
        found = found.plus(sums)
    return found
