"""The store as `batch` sees it, in SQL: one statement per question.

One rule: this file decides nothing.  It turns values into rows and rows into values, and refuses a row whose checksum
does not match, since what it would say about money could not be trusted.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, Protocol, get_args

import msgspec
from msgspec.structs import asdict, replace

from worker.idle import Idle
from worker.ledger import DayKey, Sums
from worker.protocol import (
    COUNT_MAX,
    MILLISECONDS_MAX,
    WARMUP_CHARACTERS_MAX,
    Count,
    HandSet,
    HandSetting,
    Id,
    Key,
    KeyKind,
    Row,
    Shape,
    Snapshot,
    Switch,
    Text,
    Usage,
    Why,
)
from worker.retention import Aging
from worker.stored import HOLDERS_MAX, Amendment, Holder, Image, KeptKey, Lesson, Link, Opening, Seen, Session

Value = int | float | str | None


class Connection(Protocol):
    """The part of an apsw connection that is used here."""

    def execute(self, sql: str, bindings: Any = ()) -> Iterator[tuple[Any, ...]]: ...


class DamagedRow(Exception):
    """A ledger row's checksum does not match its content."""


class SqliteTables:
    """`batch.Tables` on a connection that is inside a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._execute = connection.execute

    def session(self, session_id: str) -> Session | None:
        found = self._first(f"SELECT {SESSION_LIST} FROM session_state WHERE session_id = ?", session_id)
        return session_of(found) if found else None

    def put_session(self, session: Session) -> None:
        self._execute(_PUT_SESSION, _session_values(session))

    def put_snapshot(self, session_id: str, snapshot: Snapshot) -> None:
        self._execute(_PUT_SNAPSHOT, (*msgspec.structs.astuple(snapshot), session_id))

    def alias(self, session_id: str) -> str | None:
        found = self._first(_ALIAS, session_id)
        if found is not None and not found[1]:
            # Taken for an id it would become a session's; no frame may hold it, if it is long.
            raise DamagedRow(f"session alias {session_id!r:.80} of a session that is not there")
        return found[0] if found else None

    def put_alias(self, alias: str, session_id: str) -> None:
        self._execute("INSERT INTO session_alias (alias, session_id) VALUES (?, ?)", (alias, session_id))

    def row(self, event_id: str) -> Row | None:
        found = self._first(f"SELECT {_ROW_LIST} FROM ledger WHERE event_id = ?", event_id)
        return row_of(found) if found else None

    def put_row(self, row: Row) -> None:
        values = _row_values(row)
        self._execute(_PUT_ROW, (*values, _checksum(values)))

    def rows_after(self, session_id: str, position: int, limit: int) -> list[Row]:
        found = self._execute(_ROWS_AFTER, (session_id, position, limit))
        return [row_of(values) for values in found]

    def holders(self, kinds: Sequence[KeyKind], value: str) -> list[Holder]:
        found: list[Holder] = []
        for kind in kinds:
            found += [Holder(*values) for values in self._execute(_HOLDERS, (kind, value, HOLDERS_MAX + 1))]
        return found

    def named(self, name: str, value: str, limit: int) -> list[str]:
        found = [self._execute(_NAMED, (kind, value, name, limit)) for kind in ("header", "body")]
        return [session_id for rows in found for (session_id,) in rows][:limit]

    def requests(self, session_id: str) -> list[tuple[str, Holder]]:
        found = self._execute(_REQUESTS, (session_id,))
        return [(value, Holder(session_id, event_id, at)) for value, event_id, at in found]

    def put_key(self, key: Key, session_id: str, event_id: str, at: int) -> None:
        self._execute(_PUT_KEY, (key.kind, key.name, key.value, session_id, event_id, at))

    def drop_keys(self, session_id: str, kinds: Sequence[KeyKind]) -> None:
        for kind in kinds:
            self._execute("DELETE FROM session_key WHERE session_id = ? AND kind = ?", (session_id, kind))

    def histories(self, value: str, limit: int) -> list[str]:
        found = self._execute("SELECT session_id FROM session_history WHERE value = ? LIMIT ?", (value, limit))
        return [session_id for (session_id,) in found]

    def holds_history(self, value: str, session_id: str) -> bool:
        found = self._first("SELECT 1 FROM session_history WHERE value = ? AND session_id = ?", value, session_id)
        return found is not None

    def put_history(self, value: str, session_id: str, event_id: str) -> None:
        self._execute(_PUT_HISTORY, (value, session_id, event_id))

    def hint(self, session_id: str, name: str) -> Seen | None:
        found = self._first("SELECT value, turns FROM session_hint WHERE session_id = ? AND name = ?", session_id, name)
        return Seen(*found) if found else None

    def put_hint(self, session_id: str, name: str, seen: Seen) -> None:
        self._execute(_PUT_HINT, (session_id, name, *seen))

    def hinted(self, name: str, value: str, limit: int) -> list[str]:
        found = self._execute(
            "SELECT session_id FROM session_hint WHERE name = ? AND value = ? LIMIT ?", (name, value, limit)
        )
        return [session_id for (session_id,) in found]

    def lesson(self, client: str, name: str) -> Lesson:
        found = self._first(
            "SELECT conversations, contradicted FROM learned_header WHERE client = ? AND name = ?", client, name
        )
        return Lesson(found[0], bool(found[1])) if found else Lesson()

    def put_lesson(self, client: str, name: str, lesson: Lesson) -> None:
        self._execute(_PUT_LESSON, (client, name, *lesson))

    def add_to_session(self, session_id: str, sums: Sums) -> None:
        self._execute(_ADD_TO_SESSION, (session_id, *sums))

    def add_to_day(self, day: DayKey, sums: Sums) -> None:
        self._execute(_ADD_TO_DAY, (*day, *sums))

    # -- what only retention needs -----------------------------------------------------------------------------------

    def sessions_after(self, number: int, limit: int) -> list[Aging]:
        return [Aging(*values) for values in self._execute(_SESSIONS_AFTER, (number, limit))]

    def rows_from_the_first(self, session_id: str, position: int) -> Generator[Row]:
        for values in self._execute(_ROWS_FROM_THE_FIRST, (session_id, position)):
            yield row_of(values)

    def drop_rows(self, session_id: str, position: int) -> None:
        self._execute(_DROP_ROWS, (session_id, position))

    def add_to_rolled(self, session_id: str, sums: Sums) -> None:
        self._execute(_ADD_TO_ROLLED, (session_id, *sums))

    def add_to_rolled_day(self, day: DayKey, sums: Sums) -> None:
        self._execute(_ADD_TO_ROLLED_DAY, (*day, *sums))

    def drop_links(self, session_id: str, events: Sequence[str]) -> None:
        self._execute(_DROP_LINKS, (session_id, _encoder.encode(events).decode()))

    # -- what only forgetting idle sessions needs --------------------------------------------------------------------

    def idle_after(self, seen_at: int, number: int, before: int) -> Generator[Idle]:
        for values in self._execute(_IDLE_AFTER, (seen_at, number, before)):
            yield Idle(*values)

    def idle(self, session_id: str) -> Idle | None:
        found = self._first(f"SELECT {_IDLE_LIST} FROM session_state WHERE session_id = ?", session_id)
        return Idle(*found) if found else None

    def child_after(self, session_id: str, number: int) -> Idle | None:
        found = self._first(_CHILD_AFTER, session_id, number)
        return Idle(*found) if found else None

    def newest_rows(self, session_id: str) -> list[Row]:
        found = (self._first(sql, session_id) for sql in (_NEWEST_SETTLED, _NEWEST_OPEN))
        return [row_of(values) for values in found if values]

    def open_rows(self, session_id: str, limit: int) -> list[Row]:
        return [row_of(values) for values in self._execute(_OPEN_ROWS, (session_id, limit))]

    def drop_row(self, event_id: str) -> None:
        self._execute("DELETE FROM ledger WHERE event_id = ?", (event_id,))

    def drop_some_history(self, session_id: str, limit: int) -> int:
        return self._count(_DROP_SOME_HISTORY, session_id, limit)

    def drop_some_hints(self, session_id: str, limit: int) -> int:
        return self._count(_DROP_SOME_HINTS, session_id, limit)

    def some_aliases(self, session_id: str, limit: int) -> list[str]:
        found = self._execute("SELECT alias FROM session_alias WHERE session_id = ? LIMIT ?", (session_id, limit))
        return [alias for (alias,) in found]

    def drop_some_keys(self, session_id: str, limit: int) -> int:
        return self._count(_DROP_SOME_KEYS, session_id, limit)

    def drop_some_images(self, session_id: str, limit: int) -> int:
        return self._count(_DROP_SOME_IMAGES, session_id, limit)

    def drop_old_images(self, before: int, limit: int) -> int:
        return self._count(_DROP_OLD_IMAGES, before, limit)

    def raise_epoch_floor(self, epoch: int) -> None:
        if epoch > self._epoch_floor():
            self._execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('epoch_floor', ?)", (str(epoch),))

    # -- what only keeping caches warm needs -------------------------------------------------------------------------

    def has_ping(self, session_id: str, window_started_at: int) -> bool:
        return self._first(_PING, session_id, window_started_at) is not None

    def switch(self) -> Switch:
        found = self._first("SELECT value FROM meta WHERE name = 'warming'")
        try:
            return _switches.decode(found[0]) if found else Switch()
        except (ValueError, RecursionError):
            raise DamagedRow("its switch for keep-alive") from None  # It decides over money.

    def put_switch(self, switch: Switch) -> None:
        text = _encoder.encode(replace(switch, sessions=[], latches=[])).decode()
        self._execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('warming', ?)", (text,))

    def hand_set(self, limit: int) -> list[HandSet]:
        try:
            return msgspec.convert(list(self._execute(_HAND_SET, (limit,))), list[HandSet])
        except ValueError:
            raise DamagedRow("what was said of a session's keep-alive") from None

    # -- what only corrections need ----------------------------------------------------------------------------------

    def rolled(self, session_id: str) -> Sums:
        found = self._first(f"SELECT {', '.join(Sums._fields)} FROM session_rolled WHERE session_id = ?", session_id)
        return Sums(*found) if found else Sums()

    def drop_session(self, session_id: str) -> None:
        self._execute("DELETE FROM session_rolled WHERE session_id = ?", (session_id,))
        self._execute("DELETE FROM session_total WHERE session_id = ?", (session_id,))
        self._execute("DELETE FROM session_state WHERE session_id = ?", (session_id,))

    def drop_snapshot(self, session_id: str) -> None:
        self._execute(_PUT_SNAPSHOT, (*_NO_SNAPSHOT, session_id))

    def rows_of(self, session_id: str) -> list[Row]:
        found = self._execute(f"SELECT {_ROW_LIST} FROM ledger WHERE session_id = ?", (session_id,))
        return [row_of(values) for values in found]

    def keys_of(self, session_id: str) -> list[KeptKey]:
        columns = ", ".join(KeptKey._fields)
        found = self._execute(f"SELECT {columns} FROM session_key WHERE session_id = ? ORDER BY id", (session_id,))
        return [KeptKey(*values) for values in found]

    def drop_key(self, key: KeptKey, session_id: str) -> None:
        place = (key.kind, key.value, key.name, session_id)
        self._execute("DELETE FROM session_key WHERE kind = ? AND value = ? AND name = ? AND session_id = ?", place)

    def history_of(self, session_id: str) -> list[Link]:
        found = self._execute(
            "SELECT value, event_id FROM session_history WHERE session_id = ? ORDER BY value", (session_id,)
        )
        return [Link(*values) for values in found]

    def drop_history(self, value: str, session_id: str) -> None:
        self._execute("DELETE FROM session_history WHERE value = ? AND session_id = ?", (value, session_id))

    def hints_of(self, session_id: str) -> dict[str, Seen]:
        found = self._execute("SELECT name, value, turns FROM session_hint WHERE session_id = ?", (session_id,))
        return {name: Seen(value, turns) for name, value, turns in found}

    def drop_hint(self, session_id: str, name: str) -> None:
        self._execute("DELETE FROM session_hint WHERE session_id = ? AND name = ?", (session_id, name))

    def aliases_of(self, session_id: str) -> list[str]:
        return self._ids("SELECT alias FROM session_alias WHERE session_id = ? ORDER BY alias", session_id)

    def drop_alias(self, alias: str) -> None:
        self._execute("DELETE FROM session_alias WHERE alias = ?", (alias,))

    def children_of(self, session_id: str) -> list[str]:
        return self._ids(
            "SELECT session_id FROM session_state WHERE parent_session_id = ? ORDER BY session_id", session_id
        )

    def forks_of(self, session_id: str) -> list[str]:
        return self._ids("SELECT session_id FROM session_state WHERE forked_from = ? ORDER BY session_id", session_id)

    def amendment(self, number: int) -> Amendment | None:
        found = self._first(f"SELECT {_AMENDMENT_LIST} FROM session_change WHERE id = ?", number)
        return _amendment_of(found) if found else None

    def amendment_asked(self, request: str) -> Amendment | None:
        found = self._first(f"SELECT {_AMENDMENT_LIST} FROM session_change WHERE request = ?", request)
        return _amendment_of(found) if found else None

    def newest_amendment(self) -> int:
        found = self._first("SELECT coalesce(max(id), 0) FROM session_change")
        number = int(found[0]) if found else 0
        if not _is_count(number, COUNT_MAX - 1):
            raise DamagedRow(f"session change {number}")
        return number

    def standing_after(self, number: int, session_ids: Sequence[str]) -> int:
        marks = ", ".join("?" * len(session_ids))
        found = self._first(
            "SELECT coalesce(max(id), 0) FROM session_change "
            "WHERE id > ? AND verb <> 'undo' AND verb NOT LIKE 'warm %' AND undone_by IS NULL "
            f"AND (session_id IN ({marks}) OR other_id IN ({marks}))",
            number,
            *session_ids,
            *session_ids,
        )
        return int(found[0]) if found else 0

    def put_amendment(self, amendment: Amendment) -> None:
        *values, before = (getattr(amendment, name) for name in _AMENDMENT_FIELDS)
        self._execute(_PUT_AMENDMENT, (*values, _encoder.encode(before).decode()))

    def amendments_of(self, session_id: str) -> list[int]:
        found = self._execute("SELECT id FROM session_change WHERE session_id = ?1 OR other_id = ?1", (session_id,))
        return [number for (number,) in found]

    def amendments_with_images(self) -> list[int]:
        found = self._execute("SELECT id FROM session_change WHERE before <> '[]' ORDER BY id")
        return [number for (number,) in found]

    # -- what only forgetting needs ----------------------------------------------------------------------------------

    def is_forgotten(self, session_id: str) -> bool:
        sql = "SELECT 1 FROM session_change WHERE session_id = ? AND verb = 'forget'"
        return self._first(sql, session_id) is not None

    def epoch_forgotten(self) -> int:
        found = self._first("SELECT max(epoch) FROM session_change WHERE epoch > 0")
        epoch = (found[0] if found else None) or 0
        if not _is_count(epoch, COUNT_MAX - 1):
            raise DamagedRow("session change: its epoch")  # Every session that begins would get it.
        return max(int(epoch), self._epoch_floor())

    # -- what only imports need --------------------------------------------------------------------------------------

    def adopted(self, source: str, foreign_id: str) -> Opening | None:
        found = self._first(_ADOPTED, source, foreign_id)
        return Opening(found[0], found[1], Sums(*found[2:])) if found else None

    def put_adopted(self, source: str, foreign_id: str, opening: Opening) -> None:
        self._execute(_PUT_ADOPTED, (source, foreign_id, opening.session_id, opening.at, *opening.sums))

    def forget_adopted(self, session_id: str) -> None:
        self._execute("UPDATE session_adopted SET session_id = NULL WHERE session_id = ?", (session_id,))

    def _epoch_floor(self) -> int:
        found = self._first("SELECT value FROM meta WHERE name = 'epoch_floor'")
        if found is None:
            return 0
        if not found[0].isdecimal() or not _is_count(int(found[0]), COUNT_MAX // 2 + 1):
            raise DamagedRow("its epoch_floor")  # Every session that begins would get it.
        return int(found[0])

    def _count(self, sql: str, *bindings: Value) -> int:
        """How many rows a statement gives: one for each that it changed."""
        return sum(1 for _ in self._execute(sql, bindings))

    def _ids(self, sql: str, session_id: str) -> list[str]:
        return [found for (found,) in self._execute(sql, (session_id,))]

    def _first(self, sql: str, *bindings: Value) -> tuple[Any, ...] | None:
        return next(iter(self._execute(sql, bindings)), None)


def session_of(values: tuple[Any, ...]) -> Session:
    """A session from the columns SESSION_COLUMNS."""
    identity: dict[str, Any] = dict(zip(_IDENTITY_COLUMNS, values, strict=False))
    if not all(_is_count(identity[name], COUNT_MAX - 1) for name in ("epoch", "last_position")):
        # The fence and the order of rows: no daemon can judge them, and no frame may hold them.
        raise DamagedRow(f"session {identity['session_id']!r:.80}")
    if not _is_id(identity["session_id"]):
        raise DamagedRow(f"session {identity['session_id']!r:.80}: its id")
    if identity["warm"] not in get_args(HandSetting) or not _is_count(identity["warm_reset_at"], MILLISECONDS_MAX):
        raise DamagedRow(f"session {identity['session_id']!r:.80}: what was said of its keep-alive")
    why = _why_of({name: identity.pop(name) for name in _WHY_FIELDS})
    shape = _shape_of(identity.pop("shape"))
    image = values[len(_IDENTITY_COLUMNS) :]
    return Session(**identity, why=why, shape=shape, snapshot=_snapshot_of(image) if image[0] else None)


def _session_values(session: Session) -> tuple[Value, ...]:
    named = {**asdict(session), **asdict(session.why)}
    named["shape"] = _encoder.encode(session.shape).decode() if session.shape else None
    return tuple(named[name] for name in _IDENTITY_COLUMNS)


def _shape_of(text: str | None) -> Shape | None:
    """A damaged one costs a session its measure for calls beside it, until its next turn."""
    try:
        return _shapes.decode(text) if text else None
    except (ValueError, RecursionError):
        return None


def _why_of(values: dict[str, Any]) -> Why:
    """What no version could have written must not keep the rest from being read."""
    try:
        return msgspec.convert(values, Why)
    except ValueError:
        return Why()


def _amendment_of(values: tuple[Any, ...]) -> Amendment:
    """An operator's correction.  Raises DamagedRow: one that is undone wrongly would be worse than none."""
    named: dict[str, Any] = dict(zip(_AMENDMENT_FIELDS, values, strict=True))
    try:
        # What no frame may hold would take every acknowledgement in its frame with it.
        msgspec.convert([named[name] for name in ("number", "moved", "stayed")], list[Count])
        msgspec.convert([named[name] for name in ("verb", "session_id", "other_id")], list[Text])
        return Amendment(**{**named, "before": _images.decode(named["before"])})
    except (ValueError, RecursionError):
        raise DamagedRow(f"session change {named['number']!r:.80}") from None


def _snapshot_of(image: tuple[Any, ...]) -> Snapshot:
    """A damaged one must still travel, to be judged by the daemon: a value that no frame may hold becomes one that no
    state may.  Refused there, it would take every acknowledgement in its frame with it, again and again."""
    named: dict[str, Any] = dict(zip(_SNAPSHOT_FIELDS, image, strict=True))
    if not _is_count(named["generation"], COUNT_MAX // 2) or not named["generation"]:
        named["generation"] = 1
    if not _is_count(named["position"], COUNT_MAX):
        named["position"] = COUNT_MAX
    for name in ("warmup_state", "resolved_conversation_ttl"):
        text = named[name]
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
            named[name] = text if len(text) <= WARMUP_CHARACTERS_MAX else None
    try:
        return msgspec.convert(named, Snapshot)
    except ValueError:
        # A column of another type than its table allows: there is no group to keep.
        places = {name: named[name] for name in ("generation", "position")}
        return Snapshot(**{**dict.fromkeys(_SNAPSHOT_FIELDS), "gradient_checksum": 0, "warmup_checksum": 0, **places})


def _is_id(value: object) -> bool:
    try:
        msgspec.convert(value, Id)
    except ValueError:
        return False
    return True


def _is_count(value: object, largest: int) -> bool:
    return isinstance(value, int) and 0 <= value <= largest


def row_of(values: tuple[Any, ...]) -> Row:
    """A ledger row from the columns ROW_COLUMNS.  Raises DamagedRow."""
    *content, checksum = values
    if _checksum(tuple(content)) != checksum:
        raise DamagedRow(f"ledger row {content[0]!r:.80}")
    named: dict[str, Any] = dict(zip(_ROW_FIELDS, content, strict=True))
    tokens = {name: named.pop(name) for name in _USAGE_FIELDS}
    usage = None if tokens["output_tokens"] is None else Usage(**tokens)
    why = _why_of({name: named.pop(name) for name in _WHY_FIELDS})
    named["user_turn"], named["text_only"] = bool(named["user_turn"]), bool(named["text_only"])
    return Row(**named, usage=usage, why=why)


def _row_values(row: Row) -> tuple[Value, ...]:
    of = {**dict.fromkeys(_USAGE_FIELDS, row.usage), **dict.fromkeys(_WHY_FIELDS, row.why)}
    return tuple(getattr(of.get(name, row), name, None) for name in _ROW_FIELDS)


def _checksum(values: tuple[Value, ...]) -> int:
    # Columns that came later count only where something stands in them: rows that were written before keep their sums.
    while len(values) > _FIRST_ROW_FIELDS and not values[-1]:
        values = values[:-1]
    # JSON, not repr: true and 1 must not differ between what was bound and what SQLite gives back.
    return zlib.crc32(_encoder.encode([int(v) if isinstance(v, bool) else v for v in values]))


_encoder: Final = msgspec.json.Encoder()
_shapes: Final = msgspec.json.Decoder(Shape)
_images: Final = msgspec.json.Decoder(list[Image])
_switches: Final = msgspec.json.Decoder(Switch)

_USAGE_FIELDS: Final = Usage.__struct_fields__
_WHY_FIELDS: Final = Why.__struct_fields__
_ROW_FIELDS: Final = (
    "event_id",
    "session_id",
    "position",
    "kind",
    "status",
    "started_at",
    "ended_at",
    "provider",
    "protocol",
    "model",
    "client",
    "account",
    "boot",
    "reason",
    "http_status",
    *_USAGE_FIELDS,
    "cost_nanousd",
    "price_version",
    "message_count",
    "cap_ceiling",
    "layer",
    "user_turn",
    "text_only",
    "origin",
    "confidence",
    "window_started_at",
)
_FIRST_ROW_FIELDS: Final = _ROW_FIELDS.index("text_only") + 1
ROW_COLUMNS: Final = (*_ROW_FIELDS, "checksum")
_SNAPSHOT_FIELDS: Final = Snapshot.__struct_fields__
_IDENTITY_COLUMNS: Final = (
    *(name for name in Session.__struct_fields__ if name not in ("snapshot", "why")),
    *_WHY_FIELDS,
)
_SNAPSHOT_COLUMNS: Final = tuple("snapshot_position" if name == "position" else name for name in _SNAPSHOT_FIELDS)
SESSION_COLUMNS: Final = (*_IDENTITY_COLUMNS, *_SNAPSHOT_COLUMNS)

_NO_SNAPSHOT: Final = (0, 0, 0, -1.0, -1.0, 0, 0, 0, 0, 0, "5m", None, 0)
"""The columns of a session that has none, as they are born."""
_AMENDMENT_FIELDS: Final = Amendment.__struct_fields__
_AMENDMENT_COLUMNS: Final = tuple("id" if name == "number" else name for name in _AMENDMENT_FIELDS)
_AMENDMENT_LIST: Final = ", ".join(_AMENDMENT_COLUMNS)

_ROW_LIST: Final = ", ".join(ROW_COLUMNS)
_AS_BYTES: Final = frozenset({"warmup_state", "resolved_conversation_ttl"})
"""Texts that the daemon judges: one that is not UTF-8 must be read too."""
SESSION_LIST: Final = ", ".join(f"CAST({name} AS BLOB)" if name in _AS_BYTES else name for name in SESSION_COLUMNS)


def _upsert(table: str, columns: Sequence[str], key: Sequence[str]) -> str:
    changed = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    marks = ", ".join("?" * len(columns))
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changed}"
    )


def _adding(table: str, key: Sequence[str]) -> str:
    columns = (*key, *Sums._fields)
    changed = ", ".join(f"{name} = {name} + excluded.{name}" for name in Sums._fields)
    marks = ", ".join("?" * len(columns))
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changed}"
    )


_ALIAS: Final = (
    "SELECT session_id, EXISTS (SELECT 1 FROM session_state WHERE session_id = session_alias.session_id) "
    "FROM session_alias WHERE alias = ?"
)
_PUT_SESSION: Final = _upsert("session_state", _IDENTITY_COLUMNS, ("session_id",))
_PUT_SNAPSHOT: Final = (
    f"UPDATE session_state SET {', '.join(f'{name} = ?' for name in _SNAPSHOT_COLUMNS)} WHERE session_id = ?"
)
_PUT_ROW: Final = _upsert("ledger", ROW_COLUMNS, ("event_id",))
_ROWS_AFTER: Final = f"SELECT {_ROW_LIST} FROM ledger WHERE session_id = ? AND position > ? ORDER BY position LIMIT ?"
_HOLDERS: Final = "SELECT session_id, event_id, at FROM session_key WHERE kind = ? AND value = ? LIMIT ?"
_NAMED: Final = "SELECT session_id FROM session_key WHERE kind = ? AND value = ? AND name = ? LIMIT ?"
_REQUESTS: Final = "SELECT value, event_id, at FROM session_key WHERE session_id = ? AND kind = 'request'"
_PUT_KEY: Final = _upsert(
    "session_key", ("kind", "name", "value", "session_id", "event_id", "at"), ("kind", "value", "name", "session_id")
)
_PUT_HISTORY: Final = (
    "INSERT INTO session_history (value, session_id, event_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
)
_PUT_HINT: Final = _upsert("session_hint", ("session_id", "name", "value", "turns"), ("session_id", "name"))
_PUT_LESSON: Final = _upsert("learned_header", ("client", "name", "conversations", "contradicted"), ("client", "name"))
_PING: Final = (
    "SELECT 1 FROM ledger WHERE session_id = ? AND window_started_at = ? AND window_started_at > 0 AND kind = 'warmup'"
)
_HAND_SET: Final = (
    "SELECT session_id, warm, warm_reset_at FROM session_state WHERE warm <> '' ORDER BY session_id LIMIT ?"
)
_PUT_AMENDMENT: Final = _upsert("session_change", _AMENDMENT_COLUMNS, ("id",))
_ADOPTED: Final = (
    f"SELECT session_id, at, {', '.join(Sums._fields)} FROM session_adopted WHERE source = ? AND foreign_id = ?"
)
_PUT_ADOPTED: Final = _upsert(
    "session_adopted", ("source", "foreign_id", "session_id", "at", *Sums._fields), ("source", "foreign_id")
)
_ADD_TO_SESSION: Final = _adding("session_total", ("session_id",))
_ADD_TO_DAY: Final = _adding("day_total", DayKey._fields)
_ADD_TO_ROLLED: Final = _adding("session_rolled", ("session_id",))
_ADD_TO_ROLLED_DAY: Final = _adding("day_rolled", DayKey._fields)
# What was forgotten is folded by nobody: none of its rows has to wait for a snapshot.
_SNAPSHOT_POSITION: Final = "CASE forgotten_at WHEN 0 THEN snapshot_position ELSE last_position END"
# By rowid: the oldest first, and one page after the other.
_SESSIONS_AFTER: Final = (
    f"SELECT {', '.join(('rowid', *Aging._fields[1:-1]))}, {_SNAPSHOT_POSITION} "
    "FROM session_state WHERE rowid > ? ORDER BY rowid LIMIT ?"
)
_ROWS_FROM_THE_FIRST: Final = (
    f"SELECT {_ROW_LIST} FROM ledger WHERE session_id = ? AND position BETWEEN 1 AND ? ORDER BY position"
)
_DROP_ROWS: Final = "DELETE FROM ledger WHERE session_id = ? AND position BETWEEN 1 AND ?"
_DROP_LINKS: Final = (
    "DELETE FROM session_history WHERE session_id = ?1 AND event_id IN (SELECT value FROM json_each(?2)) "
    "AND value NOT IN (SELECT value FROM session_key WHERE session_id = ?1)"
)
_IDLE_LIST: Final = ", ".join(("rowid", *Idle._fields[1:]))
_IDLE_AFTER: Final = (
    f"SELECT {_IDLE_LIST} FROM session_state WHERE (last_seen_at, rowid) > (?, ?) AND last_seen_at < ? "
    "ORDER BY last_seen_at, rowid"
)
_CHILD_AFTER: Final = (
    f"SELECT {_IDLE_LIST} FROM session_state WHERE parent_session_id = ? AND rowid > ? ORDER BY rowid LIMIT 1"
)
_NEWEST_SETTLED: Final = (
    f"SELECT {_ROW_LIST} FROM ledger WHERE session_id = ? AND position > 0 ORDER BY position DESC LIMIT 1"
)
_OPEN: Final = f"SELECT {_ROW_LIST} FROM ledger WHERE session_id = ? AND position = 0"
_NEWEST_OPEN: Final = f"{_OPEN} ORDER BY rowid DESC LIMIT 1"
_OPEN_ROWS: Final = f"{_OPEN} ORDER BY rowid LIMIT ?"


def _dropping_some(table: str, column: str) -> str:
    some = f"SELECT {column} FROM {table} WHERE session_id = ?1 LIMIT ?2"
    return f"DELETE FROM {table} WHERE session_id = ?1 AND {column} IN ({some}) RETURNING 1"


_DROP_SOME_HISTORY: Final = _dropping_some("session_history", "value")
_DROP_SOME_HINTS: Final = _dropping_some("session_hint", "name")
_DROP_SOME_KEYS: Final = _dropping_some("session_key", "id")
# By its size in bytes, which is known without the value being read.
_HAS_IMAGES: Final = "octet_length(before) > 2"
_DROP_SOME_IMAGES: Final = (
    "UPDATE session_change SET before = '[]' WHERE id IN (SELECT id FROM session_change "
    f"WHERE (session_id = ?1 OR other_id = ?1) AND {_HAS_IMAGES} LIMIT ?2) RETURNING 1"
)
_DROP_OLD_IMAGES: Final = (
    "UPDATE session_change SET before = '[]' WHERE id IN (SELECT id FROM session_change "
    "WHERE before <> '[]' AND at < ?1 LIMIT ?2) RETURNING 1"
)
