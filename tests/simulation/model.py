"""The store as `batch` sees it, in dictionaries: what the simulation's worker commits to.

One rule: it answers every question of `batch.Tables` as the SQLite tables do; `tests/worker/test_tables_model.py`
compares the two.

Theory of operation.  All values are immutable, so a transaction is a journal of what each place held before: a
rollback puts it back, a commit forgets it.  The journal also tells the checks what a write changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from worker.batch import Holder, Session
from worker.ledger import DayKey, Sums
from worker.protocol import Key, KeyKind, Row, Snapshot

KeyPlace = tuple[KeyKind, str, str, str]
"""Kind, value, name, session id."""


class Change(NamedTuple):
    """One place of one table, before it was written."""

    table: str
    place: Any
    before: Any


class MemoryTables:
    """`batch.Tables`; every write belongs to a transaction that `commit` or `rollback` ends."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.aliases: dict[str, str] = {}
        self.rows: dict[str, Row] = {}
        self.keys: dict[KeyPlace, tuple[str, int]] = {}
        """Event id and time by place, oldest place first."""
        self.session_sums: dict[str, Sums] = {}
        self.day_sums: dict[DayKey, Sums] = {}
        self._events: dict[str, tuple[str, ...]] = {}
        self.journal: list[Change] = []

    def commit(self) -> None:
        self.journal.clear()

    def rollback(self) -> None:
        for table, place, before in reversed(self.journal):
            if before is None:
                getattr(self, table).pop(place, None)
            else:
                getattr(self, table)[place] = before
        self.journal.clear()

    # -- batch.Tables ------------------------------------------------------------------------------------------------

    def session(self, session_id: str) -> Session | None:
        return self.sessions.get(session_id)

    def put_session(self, session: Session) -> None:
        stored = self.sessions.get(session.session_id)
        self._put("sessions", session.session_id, replace(session, snapshot=stored.snapshot if stored else None))

    def put_snapshot(self, session_id: str, snapshot: Snapshot) -> None:
        stored = self.sessions.get(session_id)
        if stored is not None:
            self._put("sessions", session_id, replace(stored, snapshot=snapshot))

    def alias(self, session_id: str) -> str | None:
        return self.aliases.get(session_id)

    def put_alias(self, alias: str, session_id: str) -> None:
        assert alias not in self.aliases
        assert session_id in self.sessions
        self._put("aliases", alias, session_id)

    def row(self, event_id: str) -> Row | None:
        return self.rows.get(event_id)

    def put_row(self, row: Row) -> None:
        assert row.session_id in self.sessions
        stored = self.rows.get(row.event_id)
        if stored is not None and stored.session_id != row.session_id:
            others = tuple(event for event in self._events[stored.session_id] if event != row.event_id)
            self._put("_events", stored.session_id, others)
        if stored is None or stored.session_id != row.session_id:
            self._put("_events", row.session_id, (*self._events.get(row.session_id, ()), row.event_id))
        self._put("rows", row.event_id, row)

    def rows_after(self, session_id: str, position: int, limit: int) -> list[Row]:
        found = [self.rows[event_id] for event_id in self._events.get(session_id, ())]
        return sorted((row for row in found if row.position > position), key=lambda row: row.position)[:limit]

    def holders(self, kinds: Sequence[KeyKind], value: str) -> list[Holder]:
        found = sorted(
            (kinds.index(kind), name, session_id, said)
            for (kind, held, name, session_id), said in self.keys.items()
            if held == value and kind in kinds
        )
        return [Holder(session_id, event_id, at) for _, _, session_id, (event_id, at) in found]

    def put_key(self, key: Key, session_id: str, event_id: str, at: int) -> None:
        assert session_id in self.sessions
        self._put("keys", (key.kind, key.value, key.name, session_id), (event_id, at))

    def drop_keys(self, session_id: str, kinds: Sequence[KeyKind]) -> None:
        for place in [place for place in self.keys if place[3] == session_id and place[0] in kinds]:
            self.journal.append(Change("keys", place, self.keys.pop(place)))

    def add_to_session(self, session_id: str, sums: Sums) -> None:
        assert session_id in self.sessions
        self._put("session_sums", session_id, self.session_sums.get(session_id, Sums()).plus(sums))

    def add_to_day(self, day: DayKey, sums: Sums) -> None:
        self._put("day_sums", day, self.day_sums.get(day, Sums()).plus(sums))

    def _put(self, table: str, place: Any, value: Any) -> None:
        stored = getattr(self, table)
        self.journal.append(Change(table, place, stored.get(place)))
        stored[place] = value
