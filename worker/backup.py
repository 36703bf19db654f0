"""Backup and restore: a copy of the database that is read to its last row before it counts, in either direction.

One rule: nothing takes a name that somebody relies on, and nothing that is there is touched, before the copy that is to
have it was proved good.

Theory of operation.  Both ways are the same three steps: copy under a name that means nothing, verify the copy, give it
its name.  A backup runs in a process of its own and not in the worker's loop, where nothing long may run; so it works
with the worker dead, too.  It reads through a read-only connection, and what it costs the worker is a log that can not
be cut back while it copies, and the disk's attention.  The verification reads the copy alone.

A restore is decided in one moment: when the verified copy gets the name that `finish_restore` looks for.  Until then
nothing has changed; from then on whoever comes next under the lock finishes it.  What was there is kept with its log.
"""

from __future__ import annotations

import fcntl
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import Row, Snapshot
from worker.records import totals_of
from worker.runtime import EXIT_UNAVAILABLE, EXIT_USAGE, Fatal
from worker.store import (
    FILE_SUFFIXES,
    Reader,
    StoreBusy,
    StoreRefused,
    copy_database,
    damaged,
    finish_restore,
    move_durably,
    renew,
    staged_restore,
)
from worker.tables import ROW_COLUMNS, SESSION_COLUMNS, SESSION_LIST, DamagedRow, row_of, session_of

ROWS_PER_LOOK: Final = 2_000
"""Ledger rows verified between two looks at how far it is: some hundredths of a second."""
UNLIMITED_STEPS: Final = 2**62
"""For reading a copy: nobody waits for its reader."""

NAME_BEGINNING: Final = "perdure-"
"""Of a backup that is named by its time; the names' order is that of the times."""

Progress = Callable[[str, float], None]
"""Told what is being done, and how much of that is done, from 0 to 1."""
Judge = Callable[[Snapshot], Sequence[str]]
"""What is wrong with a snapshot, in words.  Only the daemon's side can tell."""


class Contents(Struct, frozen=True, kw_only=True):
    """What a database holds that was read to its last row."""

    incarnation: str
    schema: int
    sessions: int
    turns: int
    rows: int
    """Of the ledger."""
    newest_at: int
    """Unix milliseconds at which the row entered last began; 0 if there is none."""
    damaged_snapshots: int
    """Sessions whose state is folded from their rows again: nothing is lost, so nothing is refused."""


class Restored(Struct, frozen=True, kw_only=True):
    """What a restore did."""

    contents: Contents
    kept: Path | None
    """The database that was there before, under its new name."""
    was_readable: bool
    newest_at: int
    turns: int
    """What it held, if that could be read; as in `Contents`."""


def backup(
    database: Path, file: Path, *, force: bool, judge: Judge, progress: Progress, partial: Path | None = None
) -> Contents:
    """Copy the database to `file`; `partial`: its name until it is proved good, in the same directory.  Raises Fatal,
    StoreRefused for a database that is damaged or not there, StoreBusy for one that can not be read now."""
    _refuse_place(database, file, force)
    with _partial(partial or file.with_name(f"{file.name}.partial")) as copy:
        _copy(database, copy, progress)
        contents = _verified(copy, database, judge, progress)
        # Once more: it took its time, and what came there meanwhile is somebody's.
        _refuse_place(database, file, force)
        with _writing(file):
            move_durably(copy, file)
    return contents


def restore(file: Path, database: Path, *, stamp: str, judge: Judge, progress: Progress) -> Restored:
    """Put the backup `file` in the database's place; the caller holds the worker's lock.  `stamp`: a name for this
    moment.  Raises Fatal, and StoreRefused for a file that is no good backup."""
    _refuse_source(file)
    with _writing(database):
        finish_restore(database)
    if any(database.parent.glob(f"{database.name}.before-restore-{stamp}*")):
        raise Fatal(EXIT_UNAVAILABLE, f"{database}: was restored in this very second; run it again")
    if database.exists() and file.samefile(database):
        raise Fatal(EXIT_USAGE, f"{file}: this is the database in use; name a backup of it")
    with _partial(database.with_name(f"{database.name}.restoring.partial")) as partial:
        with _telling_that_nothing_changed():
            _copy(file, partial, progress)
            contents = _verified(partial, file, judge, progress)
        glimpse = _glimpse(database)
        try:
            with _writing(database):
                renew(partial)
                move_durably(partial, staged_restore(database, stamp))
                kept = finish_restore(database)
        except Fatal as fatal:
            if partial.exists():
                raise
            remedy = "the restore is decided all the same: the worker's next start, or another restore, finishes it"
            raise Fatal(fatal.status, f"{str(fatal).partition('; ')[0]}; {remedy}") from fatal
    newest_at, turns = glimpse or (0, 0)
    return Restored(contents=contents, kept=kept, was_readable=glimpse is not None, newest_at=newest_at, turns=turns)


def verify(path: Path, judge: Judge, progress: Progress) -> Contents:
    """Read all of a database, as it is at one moment.  Raises StoreRefused for any damage."""
    reader = Reader(path, steps_max=UNLIMITED_STEPS)
    try:
        # One moment's, where somebody writes meanwhile: sums are of the rows that are read.
        list(reader.execute("BEGIN"))
        progress("checking its structure", 0.0)
        _check_structure(reader, path)
        rows = _check_sums(reader, path, progress)
        schema, sessions, sums = totals_of(reader.execute)
        return Contents(
            incarnation=str(_value(reader, "SELECT value FROM meta WHERE name = 'incarnation'")),
            schema=schema,
            sessions=sessions,
            turns=sums.turns,
            rows=rows,
            newest_at=_newest_at(reader),
            damaged_snapshots=_damaged_snapshots(reader, judge),
        )
    except DamagedRow as error:
        raise StoreRefused(damaged(path, error)) from error
    finally:
        reader.close()


# -- verifying -----------------------------------------------------------------------------------------------------


def _check_structure(reader: Reader, path: Path) -> None:
    found = str(_value(reader, "PRAGMA integrity_check(1)"))
    if found != "ok":
        raise StoreRefused(damaged(path, " ".join(found.split())[:200]))
    for table, _row, parent, _key in reader.execute("PRAGMA foreign_key_check"):
        raise StoreRefused(damaged(path, f"a row of {table} whose {parent} is not there"))
    if "forgotten_at" in _columns(reader, "session_state"):
        for (session_id,) in reader.execute(_NAMED_BLANK):
            raise StoreRefused(damaged(path, f"session {session_id!r:.80} is shown as forgotten, and is not"))


def _check_sums(reader: Reader, path: Path, progress: Progress) -> int:
    """Every ledger row by its checksum, and all sums by the rows; gives how many rows there are.

    Sums outlive the rows they are of: total = what was rolled up + the rows that are there, exactly.
    """
    count = int(_value(reader, "SELECT count(*) FROM ledger"))
    rolled = "session_rolled" if _columns(reader, "session_rolled") else ""
    days = _days(reader, "day_rolled") if rolled else defaultdict(Sums)
    for session_id, rows in groupby(_telling(_rows(reader), count, progress), attrgetter("session_id")):
        total = Sums()
        for row in rows:
            total = total.plus(sums_of_session(row))
            days[day_key(row)] = days[day_key(row)].plus(sums_of_day(row))
        _check_session(reader, path, session_id, total, rolled)
    for (session_id,) in reader.execute(_WITHOUT_ROWS):
        _check_session(reader, path, session_id, Sums(), rolled)
    if _days(reader, "day_total") != {day: sums for day, sums in days.items() if any(sums)}:
        raise StoreRefused(damaged(path, "the sums of its days are not those of its rows"))
    return count


def _check_session(reader: Reader, path: Path, session_id: str, rows: Sums, rolled: str) -> None:
    """`rolled`: the table of what was rolled up; '' where a former schema has none."""
    expected = rows.plus(_sums_of(reader, rolled, session_id)) if rolled else rows
    if _sums_of(reader, "session_total", session_id) != expected:
        raise StoreRefused(damaged(path, f"the sums of session {session_id!r:.80} are not those of its rows"))


def _sums_of(reader: Reader, table: str, session_id: str) -> Sums:
    sql = f"SELECT {', '.join(Sums._fields)} FROM {table} WHERE session_id = ?"
    return next((Sums(*found) for found in reader.execute(sql, (session_id,))), Sums())


def _days(reader: Reader, table: str) -> defaultdict[DayKey, Sums]:
    """But those at which nothing is left: the row was settled as one of another model, or kind."""
    keys = len(DayKey._fields)
    found = reader.execute(f"SELECT {', '.join((*DayKey._fields, *Sums._fields))} FROM {table}")
    days = {DayKey(*values[:keys]): Sums(*values[keys:]) for values in found}
    return defaultdict(Sums, {day: sums for day, sums in days.items() if any(sums)})


def _rows(reader: Reader) -> Iterator[Row]:
    """The whole ledger, session by session.  Columns that a former schema lacks are empty texts in its rows."""
    there = _columns(reader, "ledger")
    columns = ", ".join(name if name in there else "''" for name in ROW_COLUMNS)
    return map(row_of, reader.execute(f"SELECT {columns} FROM ledger ORDER BY session_id"))


def _telling(rows: Iterator[Row], count: int, progress: Progress) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number % ROWS_PER_LOOK == 0:
            progress("checking its rows", number / count)
        yield row


def _damaged_snapshots(reader: Reader, judge: Judge) -> int:
    if not set(SESSION_COLUMNS) <= _columns(reader, "session_state"):
        return 0  # A former schema: it is judged when it is read, after its migration.
    sessions = map(session_of, reader.execute(f"SELECT {SESSION_LIST} FROM session_state"))
    return sum(1 for session in sessions if session.snapshot is not None and judge(session.snapshot))


def _columns(reader: Reader, table: str) -> set[str]:
    return {name for (name,) in reader.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def _newest_at(reader: Reader) -> int:
    return int(next(iter(reader.execute("SELECT started_at FROM ledger ORDER BY rowid DESC LIMIT 1")), (0,))[0])


def _value(reader: Reader, sql: str) -> Any:
    return next(iter(reader.execute(sql)))[0]


# -- places and words ----------------------------------------------------------------------------------------------


def _refuse_place(database: Path, file: Path, force: bool) -> None:
    """What can be said before anything is copied."""
    place = file.resolve()
    if place.is_dir():
        raise Fatal(EXIT_USAGE, f"{file}: a directory; name a file in it")
    if place.exists() and not place.is_file():
        raise Fatal(EXIT_USAGE, f"{file}: not a file that may be replaced; name another")
    if not place.parent.is_dir():
        raise Fatal(EXIT_USAGE, f"{file}: there is no directory {place.parent}; make it, or name another file")
    if place.name.startswith(database.name) and place.parent == database.parent.resolve():
        raise Fatal(EXIT_USAGE, f"{file}: a name that perdure gives itself; name a file elsewhere")
    if place.exists() and database.exists() and place.samefile(database):
        raise Fatal(EXIT_USAGE, f"{file}: this is the database in use; name a file elsewhere")
    if place.exists() and not force:
        raise Fatal(EXIT_USAGE, f"{file}: is there already; name another file, or add --force to replace it")


def _refuse_source(file: Path) -> None:
    """What can be no backup, whatever it holds."""
    remedy = "name a file that `perdure backup` made"
    if file.is_dir():
        newest = max(file.glob(f"{NAME_BEGINNING}*.db"), default=None)
        raise Fatal(EXIT_USAGE, f"{file}: a directory; {f'its newest backup is {newest}' if newest else remedy}")
    if file.is_symlink() and not file.exists():
        raise Fatal(EXIT_USAGE, f"{file}: a link to what is not there; {remedy}")
    if not file.exists():
        raise Fatal(EXIT_USAGE, f"{file}: no such file; {remedy}")
    if not file.is_file():
        raise Fatal(EXIT_USAGE, f"{file}: a device, a pipe or a socket; {remedy}")
    if file.name.endswith(FILE_SUFFIXES[1:]):
        whole = file.with_name(file.name.rpartition("-")[0])
        raise Fatal(EXIT_USAGE, f"{file}: belongs to {whole} and is nothing without it; {remedy}")
    if not file.stat().st_size:
        raise StoreRefused(f"{file}: an empty file; nothing was changed; {remedy}")


def _copy(source: Path, partial: Path, progress: Progress) -> None:
    with _writing(partial), _speaking_of(source, partial):
        copy_database(source, partial, lambda done: progress("copying", done))


def _verified(copy: Path, original: Path, judge: Judge, progress: Progress) -> Contents:
    with _speaking_of(original, copy):
        return verify(copy, judge, progress)


def _glimpse(database: Path) -> tuple[int, int] | None:
    """Newest row and turns of a database that may be damaged, or not there."""
    try:
        reader = Reader(database)
    except (StoreRefused, StoreBusy):
        return None
    try:
        return _newest_at(reader), totals_of(reader.execute)[2].turns
    except (StoreRefused, StoreBusy):
        return None
    finally:
        reader.close()


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """An empty file that is this process's alone, to be moved to its place, and gone if it comes to nothing.

    One that a kill left behind is used again; its lock, which went with its process, tells it from one in use.
    """
    with _writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _own(descriptor, path)
        _drop(path, FILE_SUFFIXES[1:])
        try:
            yield path
        except BaseException:
            _drop(path, FILE_SUFFIXES)
            raise
    finally:
        os.close(descriptor)


def _own(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, whoever held it may have moved it to its place: then it is a finished backup.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            os.ftruncate(descriptor, 0)
            return
    except (BlockingIOError, FileNotFoundError):
        pass  # Said below, as of the third case.
    except OSError as error:
        raise Fatal(EXIT_UNAVAILABLE, f"{path}: {error.strerror}; name a place on another file system") from error
    raise Fatal(EXIT_UNAVAILABLE, f"{path}: another process is writing it; try again when that one is done")


def _drop(path: Path, suffixes: Sequence[str]) -> None:
    for suffix in suffixes:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say which place can not be written, and what to do."""
    remedy = "make room there, or name another place, and run it again; nothing was changed"
    try:
        yield
    except StoreBusy as error:
        raise Fatal(EXIT_UNAVAILABLE, f"{path}: can not be made now ({error}); {remedy}") from error
    except OSError as error:
        raise Fatal(EXIT_UNAVAILABLE, f"{path}: {error.strerror}; {remedy}") from error


@contextmanager
def _speaking_of(original: Path, copy: Path) -> Iterator[None]:
    """A person knows the file that was named, not the copy that was found to be damaged."""
    try:
        yield
    except StoreRefused as error:
        raise StoreRefused(str(error).replace(str(copy), str(original), 1)) from error


@contextmanager
def _telling_that_nothing_changed() -> Iterator[None]:
    """The remedy of a refused backup is another one, whatever the remedy for a database in use would be."""
    try:
        yield
    except StoreRefused as error:
        fault = str(error).partition("; ")[0]
        remedy = "nothing was changed; name a backup that is whole and not newer than this perdure"
        raise StoreRefused(f"{fault}; {remedy}") from error


_NAMED_BLANK: Final = (
    "SELECT session_id FROM session_state WHERE forgotten_at <> 0 AND (header_name IS NOT NULL OR first_seen_at <> 0 "
    "OR session_id IN (SELECT session_id FROM session_key UNION ALL SELECT session_id FROM session_alias))"
)
_WITHOUT_ROWS: Final = (
    "SELECT session_id FROM session_state WHERE NOT EXISTS "
    "(SELECT 1 FROM ledger WHERE ledger.session_id = session_state.session_id)"
)
