"""The store as `batch` sees it, in SQL: one statement per question.

One rule: this file decides nothing.  It turns values into rows and rows into values, and refuses a row whose checksum
does not match, since what it would say about money could not be trusted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import asdict

from worker.batch import Holder, Session
from worker.ledger import DayKey, Sums
from worker.protocol import COUNT_MAX, WARMUP_CHARACTERS_MAX, Key, KeyKind, Row, Snapshot, Usage

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
        values = asdict(session)
        self._execute(_PUT_SESSION, tuple(values[name] for name in _IDENTITY_COLUMNS))

    def put_snapshot(self, session_id: str, snapshot: Snapshot) -> None:
        self._execute(_PUT_SNAPSHOT, (*msgspec.structs.astuple(snapshot), session_id))

    def alias(self, session_id: str) -> str | None:
        found = self._first("SELECT session_id FROM session_alias WHERE alias = ?", session_id)
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
            found += [Holder(*values) for values in self._execute(_HOLDERS, (kind, value))]
        return found

    def put_key(self, key: Key, session_id: str, event_id: str, at: int) -> None:
        self._execute(_PUT_KEY, (key.kind, key.name, key.value, session_id, event_id, at))

    def drop_keys(self, session_id: str, kinds: Sequence[KeyKind]) -> None:
        for kind in kinds:
            self._execute("DELETE FROM session_key WHERE session_id = ? AND kind = ?", (session_id, kind))

    def add_to_session(self, session_id: str, sums: Sums) -> None:
        self._execute(_ADD_TO_SESSION, (session_id, *sums))

    def add_to_day(self, day: DayKey, sums: Sums) -> None:
        self._execute(_ADD_TO_DAY, (*day, *sums))

    def _first(self, sql: str, *bindings: Value) -> tuple[Any, ...] | None:
        return next(iter(self._execute(sql, bindings)), None)


def session_of(values: tuple[Any, ...]) -> Session:
    """A session from the columns SESSION_COLUMNS."""
    identity = dict(zip(_IDENTITY_COLUMNS, values, strict=False))
    if not (0 <= identity["epoch"] < COUNT_MAX and 0 <= identity["last_position"] < COUNT_MAX):
        # The fence and the order of rows: no daemon can judge them, and no frame may hold them.
        raise DamagedRow(f"session {identity['session_id']!r:.80}")
    image = values[len(_IDENTITY_COLUMNS) :]
    return Session(**identity, snapshot=_snapshot_of(image) if image[0] else None)


def _snapshot_of(image: tuple[Any, ...]) -> Snapshot:
    """A damaged one must still travel, to be judged by the daemon: a value that no frame may hold becomes one that no
    state may.  Refused there, it would take every acknowledgement in its frame with it, again and again."""
    named: dict[str, Any] = dict(zip(_SNAPSHOT_FIELDS, image, strict=True))
    if not 0 < named["generation"] <= COUNT_MAX // 2:
        named["generation"] = 1
    if not 0 <= named["position"] <= COUNT_MAX:
        named["position"] = COUNT_MAX
    for name in ("warmup_state", "resolved_conversation_ttl"):
        text = named[name]
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
            named[name] = text if len(text) <= WARMUP_CHARACTERS_MAX else None
    return Snapshot(**named)


def row_of(values: tuple[Any, ...]) -> Row:
    """A ledger row from the columns ROW_COLUMNS.  Raises DamagedRow."""
    *content, checksum = values
    if _checksum(tuple(content)) != checksum:
        raise DamagedRow(f"ledger row {content[0]!r:.80}")
    named: dict[str, Any] = dict(zip(_ROW_FIELDS, content, strict=True))
    tokens = {name: named.pop(name) for name in _USAGE_FIELDS}
    usage = None if tokens["output_tokens"] is None else Usage(**tokens)
    named["user_turn"], named["text_only"] = bool(named["user_turn"]), bool(named["text_only"])
    return Row(**named, usage=usage)


def _row_values(row: Row) -> tuple[Value, ...]:
    return tuple(
        getattr(row.usage, name, None) if name in _USAGE_FIELDS else getattr(row, name) for name in _ROW_FIELDS
    )


def _checksum(values: tuple[Value, ...]) -> int:
    # JSON, not repr: true and 1 must not differ between what was bound and what SQLite gives back.
    return zlib.crc32(_encoder.encode([int(v) if isinstance(v, bool) else v for v in values]))


_encoder: Final = msgspec.json.Encoder()

_USAGE_FIELDS: Final = Usage.__struct_fields__
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
)
ROW_COLUMNS: Final = (*_ROW_FIELDS, "checksum")
_SNAPSHOT_FIELDS: Final = Snapshot.__struct_fields__
_IDENTITY_COLUMNS: Final = tuple(name for name in Session.__struct_fields__ if name != "snapshot")
_SNAPSHOT_COLUMNS: Final = tuple("snapshot_position" if name == "position" else name for name in _SNAPSHOT_FIELDS)
SESSION_COLUMNS: Final = (*_IDENTITY_COLUMNS, *_SNAPSHOT_COLUMNS)

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


_PUT_SESSION: Final = _upsert("session_state", _IDENTITY_COLUMNS, ("session_id",))
_PUT_SNAPSHOT: Final = (
    f"UPDATE session_state SET {', '.join(f'{name} = ?' for name in _SNAPSHOT_COLUMNS)} WHERE session_id = ?"
)
_PUT_ROW: Final = _upsert("ledger", ROW_COLUMNS, ("event_id",))
_ROWS_AFTER: Final = f"SELECT {_ROW_LIST} FROM ledger WHERE session_id = ? AND position > ? ORDER BY position LIMIT ?"
_HOLDERS: Final = "SELECT session_id, event_id, at FROM session_key WHERE kind = ? AND value = ?"
_PUT_KEY: Final = _upsert(
    "session_key", ("kind", "name", "value", "session_id", "event_id", "at"), ("kind", "value", "name", "session_id")
)
_ADD_TO_SESSION: Final = _adding("session_total", ("session_id",))
_ADD_TO_DAY: Final = _adding("day_total", DayKey._fields)
