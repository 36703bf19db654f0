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
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import msgspec
from msgspec.structs import replace

from worker.batch import Outcome, Write, apply
from worker.idle import Forgotten, Place, forget_idle
from worker.protocol import HAND_SET_MAX, IndexEntry, IndexPage, KeyKind, Switch
from worker.retention import Slice, roll_up
from worker.tables import DamagedRow, SqliteTables
from worker.wal import hides_commits

APPLICATION_ID: Final = 0x50455244
"""'PERD': says that a file is ours."""

WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""The write-ahead log is cut back to this size after a checkpoint that emptied it."""
CHECKPOINT_PAGES: Final = 2_000
"""Pages in the log from which a checkpoint is worth its fsyncs even under load: 8 MB."""
CHECK_BYTES_MAX: Final = 32 * 1024 * 1024
"""A database up to this size is checked at every start: 0.15 s.  A bit that went wrong at rest is seen nowhere else: an
index that has lost an entry answers, only not with everything."""
CHECK_UNCLEAN_BYTES_MAX: Final = 256 * 1024 * 1024
"""After an unclean stop one up to this size is, too: a second.  Larger ones are checked with every backup."""
BUSY_MILLISECONDS: Final = 2_000
READ_LIMIT_STEPS: Final = 50_000_000
"""Virtual machine steps one read may take, some seconds: a reader that never ends starves checkpoints."""
COPY_PAGES: Final = 256
"""Pages copied in one step, between which it is told how far the copy is: 1 MB."""
COPY_SYNC_STEPS: Final = 8
"""Steps after which what was copied is written to the disk.  Left to the system it would pile up to gigabytes, and the
worker's next fsync wait for all of them."""

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
        self._wal_pages = self._wal_seen = 0
        with _refusing(path):
            finish_restore(path)
        found = _look(path, checking=True)
        with _refusing(path):
            self._db = apsw.Connection(str(path))
            try:
                self._prepare(found)
                self._tables = SqliteTables(self._db)
                self.incarnation = self._meta("incarnation")
                self.hash_key = self._meta("hash_key")
                self.schema = _user_version(self._db)
                self.changes = self._tables.newest_amendment()
                """Number of the newest change by an operator when it was opened, and…"""
                self.warming = self._tables.switch().change
                """…of the newest of whether caches are kept warm."""
            except (apsw.Error, DamagedRow, UnicodeDecodeError):
                self.abandon()
                raise

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
            try:
                entries = msgspec.convert([key[1:] for key in found], list[IndexEntry])
            except ValueError:
                # No frame may hold it: a daemon would refuse the page, and never have its index.
                raise DamagedRow("a session key") from None
        return IndexPage(entries=entries, before=found[-1][0] if len(found) == limit else -1)

    def switch(self) -> Switch:
        """Whether caches are kept warm, as it is committed now."""
        with _refusing(self.path):
            return replace(self._tables.switch(), sessions=self._tables.hand_set(HAND_SET_MAX))

    def roll_up(self, after: int, *, before: int, live: frozenset[str]) -> Slice:
        """One slice of the walk that removes old ledger rows, in a transaction of its own (raises as `commit`)."""

        def work() -> Slice:
            return roll_up(self._tables, after, before=before, live=live)

        return self._transaction(work)

    def forget_idle(self, place: Place, *, before: int, live: frozenset[str]) -> Forgotten:
        """One slice of the walk that removes idle sessions, likewise."""

        def work() -> Forgotten:
            return forget_idle(self._tables, place, before=before, live=live)

        return self._transaction(work)

    def wal_pages(self) -> int:
        """Pages that came to the log since the last checkpoint looked at it."""
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
            self._wal_seen, _moved = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._wal_pages = 0
        except _DAMAGE as error:
            raise StoreRefused(damaged(self.path, error)) from error
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
        # Changed in any case, also where it stands so already, which SQLite would not write: a log that can only be
        # read is found out here, where the store is opened again, and not at every commit for ever.
        db.execute("BEGIN IMMEDIATE; UPDATE meta SET value = '' WHERE name = 'clean'")
        db.execute("UPDATE meta SET value = '0' WHERE name = 'clean'; COMMIT")

    def _count_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        # While somebody reads for long, like a backup, the log does not begin anew, and a checkpoint goes through all
        # of it: tried again with every commit, it would take longer and longer.
        self._wal_pages = pages - self._wal_seen if pages > self._wal_seen else pages
        return apsw.SQLITE_OK

    def _transaction(self, work: Callable[[], T]) -> T:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result = work()
            self._db.execute("COMMIT")
        except (*_DAMAGE, DamagedRow, UnicodeDecodeError) as error:
            raise StoreRefused(damaged(self.path, error)) from error
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

    def __init__(self, path: Path, *, steps_max: int = READ_LIMIT_STEPS) -> None:
        self._steps_max = steps_max
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
            return steps > self._steps_max

        self._db.set_progress_handler(over_limit, _PROGRESS_STEPS)
        try:
            yield from self._db.execute(sql, bindings)
        except apsw.InterruptError as error:
            raise StoreBusy("the read took too long and was stopped") from error
        except (*_DAMAGE, UnicodeDecodeError) as error:
            raise StoreRefused(damaged(Path(self._db.filename), error)) from error
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
            try:
                uri = f"{path.absolute().as_uri()}?immutable=1"
                return _look_through(apsw.Connection(uri, flags=flags), path, checking=False)
            except (apsw.NotADBError, apsw.CorruptError):
                # A power cut tore its first page: whatever is left of that, SQLite rolls it back to an empty file.
                if _rolls_back_to_nothing(path):
                    return _Found(0, clean=True)
                raise


def _rolls_back_to_nothing(path: Path) -> bool:
    """The journal's header says that there was not one page when its transaction began."""
    with Path(f"{path}-journal").open("rb") as journal:
        header = journal.read(20)
    return header[:8] == _JOURNAL_MAGIC and header[16:] == bytes(4)


def _look_through(db: apsw.Connection, path: Path, checking: bool) -> _Found:
    # Whoever comes first after a kill reads the log anew, and has the file alone for that moment.
    db.set_busy_timeout(BUSY_MILLISECONDS)
    try:
        found = _judge(db, path)
        if checking:
            _check_log(db, path)
        if checking and path.stat().st_size <= (CHECK_BYTES_MAX if found.clean else CHECK_UNCLEAN_BYTES_MAX):
            _check(db, path)
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
        raise StoreRefused(damaged(path, f"without {', '.join(sorted(missing))}"))
    facts = dict(db.execute("SELECT name, value FROM meta")) if version else {}
    for name, form in _FACTS.items() if version else ():
        if not form(facts.get(name, "")):
            raise StoreRefused(damaged(path, f"its {name} is missing or wrong"))
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
        if isinstance(error, (*_DAMAGE, DamagedRow, UnicodeDecodeError)):
            raise StoreRefused(damaged(self._path, error)) from error
        if isinstance(error, apsw.PermissionsError | apsw.AuthError | PermissionError) or (
            isinstance(error, apsw.CantOpenError) and _is_closed_to_us(self._path)
        ):
            raise StoreRefused(f"{self._path}: can not be opened; check owner and mode of the directory") from error
        if isinstance(error, (*_TRANSIENT, OSError)):
            raise StoreBusy(f"{type(error).__name__}: {error}") from error


def _is_closed_to_us(path: Path) -> bool:
    """Whether a file that can not be opened never can be.  Else it is the world, for now: no descriptor left, no space
    for a new file, an I/O error, a file system that became read-only; SQLite has one word for all of these."""
    try:
        if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
            return False
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return True
    except OSError:
        return False
    # The directory, too: the log is made beside the file.
    is_open = os.access(path.parent, os.R_OK | os.W_OK | os.X_OK)
    return not is_open or (path.exists() and not os.access(path, os.R_OK | os.W_OK))


def _check_log(db: apsw.Connection, path: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    frames, _moved = db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    page = int(next(iter(db.execute("PRAGMA page_size")))[0])
    if log.exists() and hides_commits(log, max(0, frames), page):
        raise StoreRefused(damaged(path, f"its log is broken after frame {frames}, and commits stand behind that"))


def _check(db: apsw.Connection, path: Path) -> None:
    # Not quick_check: it takes a third of the time, and does not compare indexes with their tables.
    found = [row[0] for row in db.execute("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        said = " ".join(str(found[0]).split())[:200]
        # A page that the disk does not give is told as a finding like any other, and is none of the file's.
        code = _UNREAD_PAGE.search(said)
        if code and int(code[1]) & _PRIMARY_CODE == apsw.SQLITE_IOERR:
            raise StoreBusy(said)
        raise StoreRefused(damaged(path, said))


def damaged(path: Path, why: object) -> str:
    return (
        f"{path}: damaged ({why}); put a backup in its place with `perdure restore FILE` and start the worker again: "
        "daemons go on, and keep what they could not store"
    )


# -- copies --------------------------------------------------------------------------------------------------------


def copy_database(source: Path, target: Path, progress: Callable[[float], None]) -> None:
    """Copy a database as it is at one moment, whatever writes to it meanwhile; `target` is a new or an empty file.

    One read transaction around all steps: without it each would see what was committed since, and begin again from the
    first page.  Its price is that the log of a busy worker can not be cut back before the copy is done.
    """
    reader = Reader(source)
    try:
        list(reader.execute("BEGIN"))
        list(reader.execute("SELECT 1 FROM meta LIMIT 1"))
        with _refusing(target):
            _copy(reader._db, target, progress)
    finally:
        reader.close()


def key_at_rest(path: Path) -> str | None:
    """The key for hashes of a store that nobody has open; None for anything else.  Nothing comes to stand beside it."""
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    try:
        db = apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=flags)
        try:
            found = _judge(db, path)
            return next((str(key) for (key,) in db.execute(_KEY)), None) if found.version else None
        finally:
            db.close()
    except (StoreRefused, apsw.Error, UnicodeDecodeError):
        return None


def move_durably(source: Path, target: Path) -> None:
    """Give a finished file its name, in an order that a power cut can not turn around."""
    _sync(source)
    source.rename(target)
    _sync(target.parent)


def renew(path: Path) -> None:
    """Make a copy a store of its own: what daemons remember of the one it was taken from is not true of it.

    Another incarnation tells them so.  No session keeps its owner, and every epoch is above all that may have been
    given since the copy was made: a snapshot that is still on its way tells of rows that this store does not have.
    """
    with _refusing(path):
        db = apsw.Connection(str(path))
        try:
            with db:
                db.execute("UPDATE meta SET value = ? WHERE name = 'incarnation'", (secrets.token_hex(16),))
                db.execute("UPDATE session_state SET owner = '', epoch = epoch + ?", (_EPOCHS_PASSED,))
                db.execute(_RAISE_EPOCH_FLOOR, (_EPOCHS_PASSED,))
                db.execute("UPDATE meta SET value = '1' WHERE name = 'clean'")
        finally:
            db.close()


def staged_restore(path: Path, stamp: str) -> Path:
    """The name of a checked copy that is to replace the database: once it is there, the restore is decided."""
    return path.with_name(f"{path.name}.restoring-{stamp}")


def finish_restore(path: Path) -> Path | None:
    """Put a staged copy in the database's place; tells under which name the old one was kept, None if there was none.

    Every step may be cut short by a kill or a power cut, and is then taken by whoever comes next under the lock: the
    worker, or another restore.  Nobody opens the new file beside the old one's log, which SQLite would play into it.
    """
    kept = None
    for staged in sorted(path.parent.glob(f"{path.name}.restoring-*")):
        stamp = staged.name.removeprefix(f"{path.name}.restoring-")
        kept = path.with_name(f"{path.name}.before-restore-{stamp}")
        for suffix in FILE_SUFFIXES:
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.rename(kept.with_name(kept.name + suffix))
        _sync(path.parent)
        move_durably(staged, path)
    return kept if kept is not None and kept.exists() else None


def _copy(db: apsw.Connection, target: Path, progress: Callable[[float], None]) -> None:
    copy = apsw.Connection(str(target))
    try:
        # Until it is moved to its place nobody believes it: it needs neither a journal nor SQLite's own fsyncs.
        for pragma in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF"):
            list(copy.execute(pragma))
        with copy.backup("main", db, "main") as backup:
            steps = 0
            while not backup.done:
                backup.step(COPY_PAGES)
                steps += 1
                if steps % COPY_SYNC_STEPS == 0:
                    _sync(target)
                progress(1 - backup.remaining / max(1, backup.page_count))
        # One file, readable also from where nothing can be written: in WAL mode it would want a log beside it.
        list(copy.execute("PRAGMA journal_mode = DELETE"))
    finally:
        copy.close()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- migrations ----------------------------------------------------------------------------------------------------


def _steps() -> list[tuple[str, str]]:
    """The migration steps in order: (file name, SQL)."""
    folder = resources.files("worker") / "migrations"
    return sorted((entry.name, entry.read_text("utf-8")) for entry in folder.iterdir() if entry.name.endswith(".sql"))


def known_schema() -> int:
    """The newest that this program knows."""
    return len(_steps())


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
    # A migration that is tried again finds its copy; after one that was gone back on there is more to be kept by now.
    if _state_of(copy) != _state_of(path):
        partial = copy.with_name(copy.name + ".partial")
        for suffix in FILE_SUFFIXES:
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
        _copy(db, partial, lambda _: None)
        move_durably(partial, copy)


def _state_of(path: Path) -> list[Any]:
    """What tells whether two files hold the same: whose it is, and the newest of what is only ever added."""
    if not path.exists():
        return []
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        try:
            return [list(db.execute(sql)) for sql in _TELLING]
        except apsw.Error:
            return []  # A copy that can not be read is none.


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
    apsw.ProtocolError,
)
_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}",
    f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}",
    # What is forgotten must not be found in the file: pages that hold it no more are written over.
    "PRAGMA secure_delete = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA mmap_size = 0",
)
_FACTS: Final = {
    "incarnation": re.compile("[0-9a-f]{32}").fullmatch,
    "hash_key": re.compile("[0-9a-f]{64}").fullmatch,
}
"""What a store must say of itself, and its form: judged before the file is opened for writing."""
_JOURNAL_MAGIC: Final = bytes.fromhex("d9d505f920a163d7")
_UNREAD_PAGE: Final = re.compile(r"unable to get the page\. error code=(\d+)")
_PRIMARY_CODE: Final = 0xFF
"""An extended code of SQLite's holds the primary one in its last byte."""
_PROGRESS_STEPS: Final = 10_000
FILE_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
"""A database and what SQLite keeps beside it.  The database first: without it nobody opens the others."""
_EPOCHS_PASSED: Final = 2**20
"""More claims than one session sees between a backup and its return, and a millionth of the greatest epoch."""
_TELLING: Final = (
    "SELECT value FROM meta WHERE name = 'incarnation'",
    "SELECT max(rowid) FROM session_state",
    "SELECT max(rowid) FROM ledger",
    "SELECT sum(turns), sum(interrupted), sum(cost_nanousd) FROM day_total",
)
_RAISE_EPOCH_FLOOR: Final = (
    "INSERT OR REPLACE INTO meta (name, value) "
    "SELECT 'epoch_floor', coalesce(max(CAST(value AS INTEGER)), 0) + ? FROM meta WHERE name = 'epoch_floor'"
)
_KEY: Final = "SELECT value FROM meta WHERE name = 'hash_key'"
_PRELOADED: Final[tuple[KeyKind, ...]] = ("answer", "request", "retry")
_KEYS_BEFORE: Final = (
    "SELECT id, kind, value, session_id FROM session_key "
    f"WHERE id < ? AND kind IN ({', '.join(repr(kind) for kind in _PRELOADED)}) ORDER BY id DESC LIMIT ?"
)
