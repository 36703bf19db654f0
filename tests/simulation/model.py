"""The store as `batch` sees it, in dictionaries: what the simulation's worker commits to.

One rule: it answers every question of `batch.Tables` as the SQLite tables do; `tests/worker/test_tables_model.py`
compares the two.

Theory of operation.  All values are immutable, so a transaction is a journal of what each place held before: a
rollback puts it back, a commit forgets it.  The journal also tells the checks what a write changed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from worker.idle import Idle
from worker.ledger import DayKey, Sums
from worker.protocol import HandSet, Key, KeyKind, Row, Snapshot, Switch
from worker.retention import Aging
from worker.stored import Amendment, Holder, KeptKey, Lesson, Link, Opening, Seen, Session

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
        self.history: dict[tuple[str, str], str] = {}
        """Event id by value and session id."""
        self.hints: dict[tuple[str, str], Seen] = {}
        self.lessons: dict[tuple[str, str], Lesson] = {}
        self.session_sums: dict[str, Sums] = {}
        self.day_sums: dict[DayKey, Sums] = {}
        self.session_rolled: dict[str, Sums] = {}
        self.day_rolled: dict[DayKey, Sums] = {}
        self.amendments: dict[int, Amendment] = {}
        self.openings: dict[tuple[str, str], Opening] = {}
        self.floor: dict[str, int] = {}
        self.switches: dict[str, Switch] = {}
        self.numbers: dict[str, int] = {}
        """The place of each session in its table; the last one's is given again when it is gone, as SQLite does."""
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
        if stored is None:
            self._put("numbers", session.session_id, 1 + max(self.numbers.values(), default=0))
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

    def named(self, name: str, value: str, limit: int) -> list[str]:
        found = [place for place in self.keys if place[0] in ("header", "body") and place[1:3] == (value, name)]
        return [session_id for *_, session_id in sorted(found, key=lambda place: place[0] != "header")][:limit]

    def requests(self, session_id: str) -> list[tuple[str, Holder]]:
        held = ((place, said) for place, said in self.keys.items() if place[0] == "request" and place[3] == session_id)
        return [(value, Holder(session_id, event_id, at)) for (_, value, _, _), (event_id, at) in held]

    def put_key(self, key: Key, session_id: str, event_id: str, at: int) -> None:
        assert session_id in self.sessions
        self._put("keys", (key.kind, key.value, key.name, session_id), (event_id, at))

    def drop_keys(self, session_id: str, kinds: Sequence[KeyKind]) -> None:
        for place in [place for place in self.keys if place[3] == session_id and place[0] in kinds]:
            self.journal.append(Change("keys", place, self.keys.pop(place)))

    def holds_history(self, value: str, session_id: str) -> bool:
        return (value, session_id) in self.history

    def histories(self, value: str, limit: int) -> list[str]:
        return sorted(session_id for held, session_id in self.history if held == value)[:limit]

    def put_history(self, value: str, session_id: str, event_id: str) -> None:
        assert session_id in self.sessions
        if (value, session_id) not in self.history:
            self._put("history", (value, session_id), event_id)

    def hint(self, session_id: str, name: str) -> Seen | None:
        return self.hints.get((session_id, name))

    def put_hint(self, session_id: str, name: str, seen: Seen) -> None:
        assert session_id in self.sessions
        self._put("hints", (session_id, name), seen)

    def hinted(self, name: str, value: str, limit: int) -> list[str]:
        found = sorted(each for (each, held), seen in self.hints.items() if held == name and seen.value == value)
        return found[:limit]

    def lesson(self, client: str, name: str) -> Lesson:
        return self.lessons.get((client, name), Lesson())

    def put_lesson(self, client: str, name: str, lesson: Lesson) -> None:
        self._put("lessons", (client, name), lesson)

    def add_to_session(self, session_id: str, sums: Sums) -> None:
        assert session_id in self.sessions
        self._put("session_sums", session_id, self.session_sums.get(session_id, Sums()).plus(sums))

    def add_to_day(self, day: DayKey, sums: Sums) -> None:
        self._put("day_sums", day, self.day_sums.get(day, Sums()).plus(sums))

    # -- what only keeping caches warm needs -------------------------------------------------------------------------

    def has_ping(self, session_id: str, window_started_at: int) -> bool:
        rows = (self.rows[event_id] for event_id in self._events.get(session_id, ()))
        return any(row.kind == "warmup" and row.window_started_at == window_started_at > 0 for row in rows)

    def switch(self) -> Switch:
        return self.switches.get("all", Switch())

    def put_switch(self, switch: Switch) -> None:
        self._put("switches", "all", replace(switch, sessions=[], latches=[]))

    def hand_set(self, limit: int) -> list[HandSet]:
        found = sorted((each for each in self.sessions.values() if each.warm), key=lambda each: each.session_id)
        return [HandSet(each.session_id, each.warm, each.warm_reset_at) for each in found[:limit]]

    # -- what only retention needs -----------------------------------------------------------------------------------

    def sessions_after(self, number: int, limit: int) -> list[Aging]:
        found = [
            Aging(
                self.numbers[session.session_id],
                session.session_id,
                session.first_seen_at,
                session.last_seen_at,
                session.last_position,
                session.last_position if session.forgotten_at else session.snapshot.position if session.snapshot else 0,
            )
            for session in self.sessions.values()
        ]
        return sorted(each for each in found if each.number > number)[:limit]

    def rows_from_the_first(self, session_id: str, position: int) -> Generator[Row]:
        yield from (row for row in self.rows_after(session_id, 0, position) if row.position <= position)

    def drop_rows(self, session_id: str, position: int) -> None:
        gone = [row.event_id for row in self.rows_from_the_first(session_id, position)]
        self._put("_events", session_id, tuple(each for each in self._events[session_id] if each not in gone))
        for event_id in gone:
            self._drop("rows", event_id)

    def add_to_rolled(self, session_id: str, sums: Sums) -> None:
        assert session_id in self.sessions
        self._put("session_rolled", session_id, self.rolled(session_id).plus(sums))

    def add_to_rolled_day(self, day: DayKey, sums: Sums) -> None:
        self._put("day_rolled", day, self.day_rolled.get(day, Sums()).plus(sums))

    def drop_links(self, session_id: str, events: Sequence[str]) -> None:
        named = {key.value for key in self.keys_of(session_id)}
        for link in self.history_of(session_id):
            if link.event_id in events and link.value not in named:
                self.drop_history(link.value, session_id)

    # -- what only forgetting idle sessions needs --------------------------------------------------------------------

    def idle_after(self, seen_at: int, number: int, before: int) -> Generator[Idle]:
        found = sorted(self._idle(), key=lambda each: (each.last_seen_at, each.number))
        yield from (each for each in found if (seen_at, number) < (each.last_seen_at, each.number) < (before, 0))

    def idle(self, session_id: str) -> Idle | None:
        return next((each for each in self._idle() if each.session_id == session_id), None)

    def child_after(self, session_id: str, number: int) -> Idle | None:
        found = (each for each in self._idle() if each.parent_session_id == session_id and each.number > number)
        return next(found, None)

    def newest_rows(self, session_id: str) -> list[Row]:
        settled, opened = self.rows_after(session_id, 0, 2**62), self.open_rows(session_id, 2**62)
        return [*settled[-1:], *opened[-1:]]

    def open_rows(self, session_id: str, limit: int) -> list[Row]:
        return [row for row in self.rows.values() if row.session_id == session_id and not row.position][:limit]

    def drop_row(self, event_id: str) -> None:
        session_id = self.rows[event_id].session_id
        self._put("_events", session_id, tuple(each for each in self._events[session_id] if each != event_id))
        self._drop("rows", event_id)

    def drop_some_history(self, session_id: str, limit: int) -> int:
        links = sorted(self.history_of(session_id), key=lambda link: (link.event_id, link.value))
        return self._drop_some("history", ((link.value, session_id) for link in links), limit)

    def drop_some_hints(self, session_id: str, limit: int) -> int:
        return self._drop_some("hints", ((session_id, name) for name in sorted(self.hints_of(session_id))), limit)

    def some_aliases(self, session_id: str, limit: int) -> list[str]:
        return self.aliases_of(session_id)[:limit]

    def drop_some_keys(self, session_id: str, limit: int) -> int:
        places = ((key.kind, key.value, key.name, session_id) for key in self.keys_of(session_id))
        return self._drop_some("keys", places, limit)

    def drop_some_images(self, session_id: str, limit: int) -> int:
        of_it = (each for each in self.amendments.values() if session_id in (each.session_id, each.other_id))
        return self._drop_images(of_it, limit)

    def drop_old_images(self, before: int, limit: int) -> int:
        return self._drop_images((each for each in self.amendments.values() if each.at < before), limit)

    def raise_epoch_floor(self, epoch: int) -> None:
        self._put("floor", "epoch", max(epoch, self.floor.get("epoch", 0)))

    def _idle(self) -> list[Idle]:
        return sorted(
            Idle(
                self.numbers[session.session_id],
                session.session_id,
                session.parent_session_id,
                session.last_seen_at,
                session.last_position,
                session.snapshot.position if session.snapshot else 0,
                session.epoch,
                session.owner,
            )
            for session in self.sessions.values()
        )

    def _drop_some(self, table: str, places: Iterable[Any], limit: int) -> int:
        some = list(places)[:limit]
        for place in some:
            self._drop(table, place)
        return len(some)

    def _drop_images(self, amendments: Iterable[Amendment], limit: int) -> int:
        some = [each for each in amendments if each.before][:limit]
        for each in some:
            self.put_amendment(replace(each, before=[]))
        return len(some)

    # -- what only corrections need ----------------------------------------------------------------------------------

    def rolled(self, session_id: str) -> Sums:
        return self.session_rolled.get(session_id, Sums())

    def drop_session(self, session_id: str) -> None:
        assert not (self.rows_of(session_id) or self.keys_of(session_id) or self.history_of(session_id))
        assert not (self.hints_of(session_id) or self.aliases_of(session_id))
        self._drop("session_sums", session_id)
        self._drop("session_rolled", session_id)
        self._drop("sessions", session_id)
        self._drop("numbers", session_id)

    def drop_snapshot(self, session_id: str) -> None:
        self._put("sessions", session_id, replace(self.sessions[session_id], snapshot=None))

    def rows_of(self, session_id: str) -> list[Row]:
        return [self.rows[event_id] for event_id in self._events.get(session_id, ())]

    def keys_of(self, session_id: str) -> list[KeptKey]:
        return [
            KeptKey(kind, name, value, *said)
            for (kind, value, name, holder), said in self.keys.items()
            if holder == session_id
        ]

    def drop_key(self, key: KeptKey, session_id: str) -> None:
        self._drop("keys", (key.kind, key.value, key.name, session_id))

    def history_of(self, session_id: str) -> list[Link]:
        links = [Link(value, event_id) for (value, holder), event_id in self.history.items() if holder == session_id]
        return sorted(links)

    def drop_history(self, value: str, session_id: str) -> None:
        self._drop("history", (value, session_id))

    def hints_of(self, session_id: str) -> dict[str, Seen]:
        return {name: seen for (holder, name), seen in self.hints.items() if holder == session_id}

    def drop_hint(self, session_id: str, name: str) -> None:
        self._drop("hints", (session_id, name))

    def aliases_of(self, session_id: str) -> list[str]:
        return sorted(alias for alias, meant in self.aliases.items() if meant == session_id)

    def drop_alias(self, alias: str) -> None:
        self._drop("aliases", alias)

    def children_of(self, session_id: str) -> list[str]:
        return sorted(each for each, session in self.sessions.items() if session.parent_session_id == session_id)

    def forks_of(self, session_id: str) -> list[str]:
        return sorted(each for each, session in self.sessions.items() if session.forked_from == session_id)

    def amendment(self, number: int) -> Amendment | None:
        return self.amendments.get(number)

    def amendment_asked(self, request: str) -> Amendment | None:
        return next((each for each in self.amendments.values() if each.request == request), None)

    def newest_amendment(self) -> int:
        return max(self.amendments, default=0)

    def standing_after(self, number: int, session_ids: Sequence[str]) -> int:
        standing = (
            each
            for each in self.amendments.values()
            if each.verb != "undo" and not each.verb.startswith("warm ") and each.undone_by is None
        )
        met = (each.number for each in standing if {each.session_id, each.other_id} & set(session_ids))
        return max((each for each in met if each > number), default=0)

    def put_amendment(self, amendment: Amendment) -> None:
        self._put("amendments", amendment.number, amendment)

    def amendments_of(self, session_id: str) -> list[int]:
        return [each.number for each in self.amendments.values() if session_id in (each.session_id, each.other_id)]

    def amendments_with_images(self) -> list[int]:
        return sorted(each.number for each in self.amendments.values() if each.before)

    # -- what only forgetting needs ----------------------------------------------------------------------------------

    def is_forgotten(self, session_id: str) -> bool:
        return any(each.session_id == session_id and each.verb == "forget" for each in self.amendments.values())

    def epoch_forgotten(self) -> int:
        return max(self.floor.get("epoch", 0), *(each.epoch for each in self.amendments.values()), 0)

    # -- what only imports need --------------------------------------------------------------------------------------

    def adopted(self, source: str, foreign_id: str) -> Opening | None:
        return self.openings.get((source, foreign_id))

    def put_adopted(self, source: str, foreign_id: str, opening: Opening) -> None:
        self._put("openings", (source, foreign_id), opening)

    def forget_adopted(self, session_id: str) -> None:
        for place, opening in [*self.openings.items()]:
            if opening.session_id == session_id:
                self._put("openings", place, opening._replace(session_id=None))

    def _drop(self, table: str, place: Any) -> None:
        stored = getattr(self, table)
        if place in stored:
            self.journal.append(Change(table, place, stored.pop(place)))

    def _put(self, table: str, place: Any, value: Any) -> None:
        stored = getattr(self, table)
        self.journal.append(Change(table, place, stored.get(place)))
        stored[place] = value
