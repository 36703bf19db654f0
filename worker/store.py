"""The SQLite database: opening it safely, migrating it, committing to it, reading it.

One rule: only this file knows SQLite, only one connection writes, and nothing here repairs anything silently.

Theory of operation.  Under the state directory's lock the file is first looked at through a read-only connection, so
that one which is not ours, or newer than this program, is refused untouched: opening it for writing would already
change it.  Then the one writing connection is opened in WAL mode with `synchronous=FULL`: a commit that returned is
fsynced.  The writer owns checkpoints, outside any commit that somebody waits for, so that a reader can never make the
log grow for ever.

Errors are classed by what can be done: `StoreRefused` (exit 78, says what to run), `StoreBusy` (full disk, read-only,
I/O: keep what was not committed and try again), `WriteRejected` (refuse that write, commit the others).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from worker.batch import Outcome, Write, apply
from worker.protocol import IndexEntry, IndexPage, KeyKind
from worker.tables import DamagedRow, SqliteTables

APPLICATION_ID: Final = 0x50455244
"""'PERD': says that a file is ours."""

WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""The write-ahead log is cut back to this size after a checkpoint that emptied it."""
CHECKPOINT_PAGES: Final = 2_000
"""Pages in the log from which a checkpoint is worth its fsyncs even under load: 8 MB."""
QUICK_CHECK_BYTES_MAX: Final = 256 * 1024 * 1024
"""After an unclean stop a database up to this size is checked before use: about a second; a larger one by command."""
BUSY_MILLISECONDS: Final = 2_000
READ_LIMIT_STEPS: Final = 50_000_000
"""Virtual machine steps one read may take, some seconds: a reader that never ends starves checkpoints."""

T = TypeVar("T")


class StoreRefused(Exception):
    """The database can not be used as it is; the message says why and what to do.  The file is untouched."""


class StoreBusy(Exception):
    """The database can not be written now; nothing of the batch was kept by it."""


class WriteRejected(Exception):
    """SQLite does not take what one of the writes holds; nothing of the batch was kept by it."""


class Store:
    """The one writing connection.  Raises StoreRefused where the file must not be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._wal_pages = 0
        found = _look(path, checking=True)
        with _refusing(path):
            self._db = apsw.Connection(str(path))
            try:
                self._prepare(found)
            except apsw.Error:
                self.abandon()
                raise
        self._tables = SqliteTables(self._db)
        self.incarnation = self._meta("incarnation")
        self.hash_key = self._meta("hash_key")
        self.schema = _user_version(self._db)
        self.changes = self._tables.newest_amendment()
        """Number of the newest change by an operator when it was opened."""

    def commit(self, writes: Sequence[Write], *, live: frozenset[str], now: int) -> Outcome:
        """One transaction: all of the writes, fsynced when this returns, or none (StoreBusy, StoreRefused,
        WriteRejected)."""

        def work() -> Outcome:
            return apply(self._tables, writes, live=live, now=now)

        return self._transaction(work)

    def keys_before(self, before: int, limit: int) -> IndexPage:
        """The newest identity keys, a page of them, for the daemons' index."""
        with _refusing(self.path):
            found = list(self._db.execute(_KEYS_BEFORE, (before, limit)))
        entries = [IndexEntry(kind=kind, value=value, session_id=session) for _, kind, value, session in found]
        return IndexPage(entries=entries, before=found[-1][0] if len(found) == limit else -1)

    def wal_pages(self) -> int:
        return self._wal_pages

    def wal_bytes(self) -> int:
        """Size of the log file, as statx says it: the file itself is SQLite's alone to open."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> None:
        """Move what readers allow from the log into the database.  Called when nobody waits for a commit."""
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._wal_pages = 0
        except _DAMAGE as error:
            raise StoreRefused(_damaged(self.path, error)) from error
        except _TRANSIENT:
            return  # The log keeps everything; the next idle moment tries again.

    def close(self) -> None:
        """Empty the log into the database and close: the next start finds one clean file."""
        try:
            self._db.execute("UPDATE meta SET value = '1' WHERE name = 'clean'")
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error:
            pass  # A full disk at the end: the log holds all of it, the next start reads it.
        self._db.close()

    def abandon(self) -> None:
        """Close a database that was found damaged as it is: not one byte of it moves any more."""
        self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._db.close(True)

    def _prepare(self, found: _Found) -> None:
        db = self._db
        for pragma in _PRAGMAS:
            list(db.execute(pragma))
        # SQLite's own automatic checkpoint would run inside a commit that daemons wait for.
        db.wal_autocheckpoint(0)
        db.set_wal_hook(self._count_wal)
        _migrate(db, self.path, found.version)
        db.execute("UPDATE meta SET value = '0' WHERE name = 'clean'")

    def _count_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _transaction(self, work: Callable[[], T]) -> T:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result = work()
            self._db.execute("COMMIT")
        except (*_DAMAGE, DamagedRow, UnicodeDecodeError) as error:
            raise StoreRefused(_damaged(self.path, error)) from error
        except _TRANSIENT as error:
            raise StoreBusy(f"{type(error).__name__}: {error}") from error
        except _UNFIT as error:
            # The name alone: what SQLite or Python say of it may quote the value.
            raise WriteRejected(f"a value that can not be stored ({type(error).__name__})") from error
        finally:
            if self._db.in_transaction:
                self._rollback()
        return result

    def _rollback(self) -> None:
        try:
            self._db.execute("ROLLBACK")
        except apsw.Error as error:
            # SQLite rolls back by itself after a full disk or an I/O error; then there is nothing left to do.
            if self._db.in_transaction:
                raise StoreBusy(f"cannot roll back: {error}") from error

    def _meta(self, name: str) -> str:
        return str(next(iter(self._db.execute("SELECT value FROM meta WHERE name = ?", (name,))))[0])


class Reader:
    """A read-only connection for people and dashboards: sees committed state, never checkpoints, never waits long."""

    def __init__(self, path: Path) -> None:
        found = _look(path)
        if not found.version:
            raise StoreRefused(f"{path}: no database there yet; `perdure up` makes one")
        with _refusing(path):
            self._db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            list(self._db.execute("PRAGMA query_only = ON"))
        self._db.set_busy_timeout(BUSY_MILLISECONDS)
        self.tables = SqliteTables(self._db)

    def execute(self, sql: str, bindings: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Rows of one statement.  Raises StoreRefused for a damaged file, StoreBusy when it takes too long."""
        steps = 0

        def over_limit() -> bool:
            nonlocal steps
            steps += _PROGRESS_STEPS
            return steps > READ_LIMIT_STEPS

        self._db.set_progress_handler(over_limit, _PROGRESS_STEPS)
        try:
            yield from self._db.execute(sql, bindings)
        except apsw.InterruptError as error:
            raise StoreBusy("the read took too long and was stopped") from error
        except (*_DAMAGE, UnicodeDecodeError) as error:
            raise StoreRefused(_damaged(Path(self._db.filename), error)) from error
        except apsw.Error as error:
            raise StoreBusy(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        self._db.close()


# -- opening -------------------------------------------------------------------------------------------------------


class _Found:
    """What a look at the file said.  version 0: there is none yet."""

    def __init__(self, version: int, clean: bool) -> None:
        self.version = version
        self.clean = clean


def _look(path: Path, *, checking: bool = False) -> _Found:
    """Judge the file through a read-only connection.  Raises StoreRefused; never changes the file."""
    if path.exists() and not path.is_file():
        raise StoreRefused(f"{path}: not a file; move it away or point PERDURE_STATE_DIR elsewhere")
    if not path.exists() or path.stat().st_size == 0:
        return _Found(0, clean=True)
    with _refusing(path):
        try:
            return _look_through(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY), path, checking)
        except apsw.ReadOnlyError as error:
            if getattr(error, "extendedresult", 0) != apsw.SQLITE_READONLY_ROLLBACK:
                raise
            # A journal waits to be rolled back.  Ours has one only before it is in WAL mode, while it is being made:
            # killed there, it holds nothing yet.  Read past the journal, this is seen without touching either file.
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            return _look_through(apsw.Connection(f"{path.as_uri()}?immutable=1", flags=flags), path, checking=False)


def _look_through(db: apsw.Connection, path: Path, checking: bool) -> _Found:
    try:
        found = _judge(db, path)
        if checking and not found.clean and path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
            _quick_check(db, path)
        return found
    finally:
        db.close()


def _judge(db: apsw.Connection, path: Path) -> _Found:
    ours = next(iter(db.execute("PRAGMA application_id")))[0]
    version = _user_version(db)
    known = len(_steps())
    if ours != APPLICATION_ID:
        tables = next(iter(db.execute("SELECT count(*) FROM sqlite_schema")))[0]
        if ours or tables or version:
            raise StoreRefused(
                f"{path}: a database of another program (application id {ours:#x}); "
                "move it away or point PERDURE_STATE_DIR elsewhere"
            )
        return _Found(0, clean=True)
    if version > known:
        raise StoreRefused(
            f"{path}: written by a newer perdure (schema {version}, this one knows {known}); "
            "upgrade perdure, or restore a backup that this version made"
        )
    missing = _schema_names(version) - {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    if missing:
        raise StoreRefused(_damaged(path, f"without {', '.join(sorted(missing))}"))
    facts = dict(db.execute("SELECT name, value FROM meta")) if version else {}
    for name, form in _FACTS.items() if version else ():
        if not form(facts.get(name, "")):
            raise StoreRefused(_damaged(path, f"its {name} is missing or wrong"))
    return _Found(version, clean=facts.get("clean") == "1")


class _refusing:  # noqa: N801 - reads as a clause
    """Turn SQLite's word on opening into a refusal with a remedy, or into something to wait for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, apsw.NotADBError):
            raise StoreRefused(
                f"{self._path}: not a SQLite database; move it away or point PERDURE_STATE_DIR elsewhere"
            ) from error
        if isinstance(error, _DAMAGE):
            raise StoreRefused(_damaged(self._path, error)) from error
        if isinstance(error, apsw.CantOpenError | apsw.PermissionsError | apsw.AuthError):
            raise StoreRefused(f"{self._path}: can not be opened; check owner and mode of the directory") from error
        if isinstance(error, _TRANSIENT):
            raise StoreBusy(f"{type(error).__name__}: {error}") from error


def _quick_check(db: apsw.Connection, path: Path) -> None:
    found = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise StoreRefused(_damaged(path, " ".join(str(found[0]).split())[:200]))


def _damaged(path: Path, why: object) -> str:
    return (
        f"{path}: damaged ({why}); move it away, put a backup in its place and start the worker again: "
        "daemons go on, and keep what they could not store"
    )


# -- migrations ----------------------------------------------------------------------------------------------------


def _steps() -> list[tuple[str, str]]:
    """The migration steps in order: (file name, SQL)."""
    folder = resources.files("worker") / "migrations"
    return sorted((entry.name, entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".sql"))


def _schema_names(version: int) -> set[str]:
    """The tables and indexes that a database of that version has."""
    fresh = apsw.Connection(":memory:")
    for _name, sql in _steps()[:version]:
        fresh.execute(sql)
    return {name for (name,) in fresh.execute("SELECT name FROM sqlite_schema")}


def _migrate(db: apsw.Connection, path: Path, version: int) -> None:
    """Bring the schema up to date, a transaction per step that includes its version: never half applied."""
    steps = _steps()
    if 0 < version < len(steps):
        _copy_before_migration(db, path, version)
    for number, (_name, sql) in enumerate(steps[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            # To its end: a statement that gives a row would stop there, and the rest of the step be left out.
            list(db.execute(sql))
            if number == 1:
                _sign(db)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def _sign(db: apsw.Connection) -> None:
    """Make the store ours: its incarnation and its key for hashes are as old as its first schema."""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    facts = {"incarnation": secrets.token_hex(16), "hash_key": secrets.token_hex(32), "clean": "1"}
    for name, value in facts.items():
        db.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))


def _copy_before_migration(db: apsw.Connection, path: Path, version: int) -> None:
    copy = path.with_name(f"{path.name}.schema-{version}")
    if not copy.exists():
        partial = copy.with_name(copy.name + ".partial")
        partial.unlink(missing_ok=True)
        db.execute("VACUUM INTO ?", (str(partial),))
        partial.rename(copy)


def _user_version(db: apsw.Connection) -> int:
    return int(next(iter(db.execute("PRAGMA user_version")))[0])


_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError)
"""A statement of ours that does not fit the schema (SQLError) says that the schema is not the one it was."""
_UNFIT: Final = (
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.RangeError,
    apsw.TooBigError,
    OverflowError,
    UnicodeEncodeError,
)
_TRANSIENT: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.NoMemError,
)
_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
)
_FACTS: Final = {
    "incarnation": re.compile("[0-9a-f]{32}").fullmatch,
    "hash_key": re.compile("[0-9a-f]{64}").fullmatch,
}
"""What a store must say of itself, and its form: judged before the file is opened for writing."""
_PROGRESS_STEPS: Final = 10_000
_PRELOADED: Final[tuple[KeyKind, ...]] = ("answer", "request", "retry")
_KEYS_BEFORE: Final = (
    "SELECT id, kind, value, session_id FROM session_key "
    f"WHERE id < ? AND kind IN ({', '.join(repr(kind) for kind in _PRELOADED)}) ORDER BY id DESC LIMIT ?"
)
