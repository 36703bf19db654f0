"""The database of a Lore gateway, as a file that is read and never changed.

One rule: not one byte of the file or its log moves, whoever else has it open.

Theory of operation.  It is read by the system's SQLite, which is good enough to look (`worker.store` writes with one of
its own).  Where a log stands beside the file, Lore may be running: a read-only connection sees what is committed in it,
as of one moment, and Lore goes on.  Where none does, the file is all there is, and it is opened as one that nobody
changes, so that SQLite leaves nothing beside it; if somebody did all the same, that is seen afterwards.

Columns are asked for by name, as the file's own schema has them: what a session costs and is called, and nothing of
what was said in it.  Of the messages only the time of the first and the model of the first answer are asked for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from daemon.lore import IDENTITY_SCHEMA, LATER, OPTIONAL, REQUIRED, SCHEMA_KNOWN, SCHEMA_MIN
from worker.runtime import EXIT_CONFIGURATION, EXIT_UNAVAILABLE, EXIT_USAGE, Fatal

BUSY_SECONDS: Final = 5.0
"""How long a Lore that holds the file alone for a moment is waited for."""
ROWS_PER_LOOK: Final = 200
"""Rows fetched at once: memory does not grow with the file."""


class LoreFile:
    """An open one.  `version`: its schema; `count`: rows of `session_state`."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db
        self.version = self._version()
        self._columns = self._checked()
        (self.count,) = db.execute("SELECT count(*) FROM session_state").fetchone()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every session, in the order of the file, as of one moment."""
        cursor = self._db.execute(_statement(self._columns, self._messages()))
        names = [name for name, *_ in cursor.description]
        while found := cursor.fetchmany(ROWS_PER_LOOK):
            yield from (dict(zip(names, values, strict=True)) for values in found)

    def _version(self) -> int:
        if not {"schema_version", "session_state"} <= self._names("sqlite_schema"):
            raise Fatal(EXIT_CONFIGURATION, f"{self.path}: not a Lore database; name the one that Lore writes")
        (version,) = self._db.execute("SELECT max(version) FROM schema_version").fetchone()
        if not isinstance(version, int):
            raise Fatal(EXIT_CONFIGURATION, f"{self.path}: a Lore database that does not say its schema")
        if version < SCHEMA_MIN:
            remedy = "start a newer Lore on it once, which brings it up to date"
            said = f"{self.path}: a Lore database of schema {version}, this reads {SCHEMA_MIN} and later"
            raise Fatal(EXIT_CONFIGURATION, f"{said}; {remedy}")
        return version

    def _checked(self) -> list[str]:
        columns = self._names("pragma_table_info('session_state')")
        needed = (*REQUIRED, *(LATER if self.version >= IDENTITY_SCHEMA else ()))
        missing = [name for name in needed if name not in columns]
        if missing:
            newer = f"this knows {SCHEMA_KNOWN}" if self.version > SCHEMA_KNOWN else "it should have them"
            said = f"{self.path}: a Lore database of schema {self.version} without {', '.join(missing)}"
            raise Fatal(EXIT_CONFIGURATION, f"{said} ({newer}); upgrade perdure, or name another file")
        return [name for name in (*REQUIRED, *LATER, *OPTIONAL) if name in columns]

    def _messages(self) -> str:
        """Where the first message of a session is told of; '' where nothing does."""
        if {"session_id", "first_message_at", "first_assistant_metadata"} <= self._columns_of("session_rollup"):
            return _ROLLUP
        needed = {"session_id", "role", "created_at", "metadata"}
        return _MESSAGES if needed <= self._columns_of("temporal_messages") else ""

    def _columns_of(self, table: str) -> set[str]:
        return self._names(f"pragma_table_info('{table}')")

    def _names(self, source: str) -> set[str]:
        return {name for (name,) in self._db.execute(f"SELECT name FROM {source}")}


@contextmanager
def lore_file(path: Path) -> Iterator[LoreFile]:
    """Raises Fatal for what is no Lore database, can not be read, or was changed meanwhile."""
    if not path.is_file():
        raise Fatal(EXIT_USAGE, f"{path}: no such file; name Lore's database")
    is_quiet = not _log(path)
    before = _stamp(path)
    try:
        mode = "immutable=1" if is_quiet else "mode=ro"
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_SECONDS)
        try:
            # A text that is none must be read too, to be refused.
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            yield LoreFile(path, db)
        finally:
            db.close()
    except sqlite3.OperationalError as error:
        remedy = "let Lore finish (start and stop it once), check owner and mode of file and directory, and try again"
        raise Fatal(EXIT_UNAVAILABLE, f"{path}: can not be read now ({error}); {remedy}") from error
    except sqlite3.DatabaseError as error:
        raise Fatal(EXIT_CONFIGURATION, f"{path}: not a Lore database, or damaged ({error}); name another") from error
    if is_quiet and (_log(path) or _stamp(path) != before):
        raise Fatal(EXIT_UNAVAILABLE, f"{path}: was changed while it was read; run it again, nothing counts twice")


def _log(path: Path) -> bool:
    """Whether something stands beside the file that belongs to it: a log, or a change that was cut short."""
    beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
    return any(each.exists() and each.stat().st_size for each in beside)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _statement(columns: list[str], messages: str) -> str:
    named = "header_name" in columns
    shown = [f"s.{name}" for name in columns]
    if messages:
        shown += [
            "m.first_message_at",
            f"{_of_metadata('modelID')} AS model",
            f"{_of_metadata('providerID')} AS provider",
        ]
    if named:
        shown.append(_RIVALS.format(agents="s.is_subagent, " if "is_subagent" in columns else ""))
    joined = f" LEFT JOIN ({messages}) m ON m.session_id = s.session_id" if messages else ""
    if named and "parent_session_id" in columns:
        shown += ["p.header_name AS parent_header_name", "p.header_session_id AS parent_header_session_id"]
        joined += " LEFT JOIN session_state p ON p.session_id = s.parent_session_id"
    return f"SELECT {', '.join(shown)} FROM session_state s{joined} ORDER BY s.rowid"


def _of_metadata(name: str) -> str:
    """The answer's own, or that of the request before it, which Lore writes one level deeper."""
    paths = (f"$.{name}", f"$.model.{name}")
    found = ", ".join(f"json_extract(m.metadata, '{path}')" for path in paths)
    return f"CASE WHEN json_valid(m.metadata) THEN coalesce({found}) END"


_ROLLUP: Final = (
    "SELECT session_id, min(first_message_at) AS first_message_at, max(first_assistant_metadata) AS metadata "
    "FROM session_rollup GROUP BY session_id"
)
# With a lone min(), SQLite takes the other columns from the row that has it.
_MESSAGES: Final = (
    "SELECT session_id, min(created_at) AS first_message_at, metadata FROM temporal_messages "
    "WHERE role = 'assistant' GROUP BY session_id"
)
_RIVALS: Final = (
    "row_number() OVER (PARTITION BY lower(s.header_name), s.header_session_id "
    "ORDER BY {agents}s.last_turn_at DESC, s.updated_at DESC, s.session_id) - 1 AS rivals"
)
