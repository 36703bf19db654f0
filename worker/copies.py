"""A directory of backups, named by their time, of which the newest stay; and the note that says when the last was made.

One rule: nothing is removed that this database's own backups are not known to be, and nothing at all before a newer one
was proved good.

Theory of operation.  A backup gets its name only once it was read to its last row (`worker.backup`), so whatever bears
such a name was verified.  What may be removed must bear one, be a regular file, still open as a store of ours, and have
the same key for hashes: that is made with a database, and stays its own over upgrades and restores.  A second database
may use the same directory.  A file that is anybody else's, or damaged, is neither removed nor counted.

Names are times, and clocks may be wrong.  One that was ahead once leaves names of the future: they are not counted as
the newest, or a year of backups would be removed as older than they; they stay until somebody looks.

While it is made a backup has one name, whatever its time: two at once are refused, and what a kill leaves behind is
used again by the next one instead of piling up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from worker.backup import NAME_BEGINNING, Contents, Judge, Progress, backup
from worker.runtime import EXIT_UNAVAILABLE, EXIT_USAGE, Fatal
from worker.store import key_at_rest

NOTE: Final = "last-backup.json"
"""In the state directory."""
NOTE_BYTES_MAX: Final = 64 * 1024
"""Of the note, when it is read: a path has 4 KiB at most, each byte of it written with up to six."""


class LastBackup(Struct, frozen=True, kw_only=True):
    """What the note says."""

    at: int
    """Unix milliseconds at which it was begun: what came later is not in it."""
    path: str
    bytes: int
    turns: int


class Into(Struct, frozen=True, kw_only=True):
    """What a backup into a directory did."""

    path: Path
    contents: Contents
    removed: list[Path]
    """Backups that were older than those to keep."""
    kept: int
    """Backups of this database that are there now, the new one included."""
    warnings: list[str]
    """What did not go as it should; the backup is good all the same."""


def backup_into(database: Path, directory: Path, *, keep: int, at: float, judge: Judge, progress: Progress) -> Into:
    """Add a backup to a directory, then remove what is older than the `keep` newest; 0 keeps all.  `at`: now, in Unix
    seconds.  Raises as `backup`; then nothing was removed."""
    if not directory.is_dir():
        # Not made here: where a disk is not mounted, that would fill the one below it, night after night.
        raise Fatal(EXIT_USAGE, f"{directory}: no such directory; make it, or mount what belongs there")
    path = directory / name_at(at)
    if path.exists():
        raise Fatal(EXIT_UNAVAILABLE, f"{path}: was made in this very second; run it again")
    contents = backup(database, path, force=False, judge=judge, progress=progress, partial=directory / _PARTIAL)
    own, warnings = _own_backups(directory, path)
    removed, more = _removed(own[keep:] if keep else [])
    kept = len(own) - len(removed)
    return Into(path=path, contents=contents, removed=removed, kept=kept, warnings=[*warnings, *more])


def name_at(seconds: float) -> str:
    return f"{NAME_BEGINNING}{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%SZ}.db"


def note(state: Path, last: LastBackup) -> None:
    """Write down that a backup was made.  Raises OSError."""
    path = state / NOTE
    fresh = path.with_name(f"{NOTE}.{os.getpid()}")
    owner = state.stat()
    try:
        # What a kill left under that name goes, and no link is followed: root may write here for another user.
        fresh.unlink(missing_ok=True)
        with fresh.open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(last), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            if os.geteuid() == 0:
                # Root made the backup; those who tell of it run as the directory's owner.
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


def last_backup(state: Path) -> LastBackup | None:
    """What the note says; None where there is none that can be read."""
    try:
        with (state / NOTE).open("rb") as file:
            return _notes.decode(file.read(NOTE_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None


def _own_backups(directory: Path, made: Path) -> tuple[list[Path], list[str]]:
    """This database's backups, the newest first, `made` at their head; and what there is to say of the others."""
    key = key_at_rest(made)
    named = sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
    own, ahead = [made], list[Path]()
    for path in named:
        if path == made or path.is_symlink() or not path.is_file() or key_at_rest(path) != key:
            continue
        (ahead if path.name > made.name else own).append(path)
    if not ahead:
        return own, []
    said = f"{len(ahead)} backups bear a time that is yet to come, {ahead[0].name} the last; they are never removed"
    return own, [f"{directory}: {said}: look at the clock, then at them"]


def _removed(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Remove them, the oldest first; what can not be removed is said."""
    removed, warnings = [], []
    for path in reversed(paths):
        try:
            path.unlink(missing_ok=True)
            removed.append(path)
        except OSError as error:
            warnings.append(f"{path}: can not be removed ({error.strerror}); check owner and mode of its directory")
    return removed, warnings


_NAME: Final = re.compile(rf"{NAME_BEGINNING}\d{{8}}T\d{{6}}Z\.db")
_PARTIAL: Final = "perdure-backup.partial"
_notes: Final = msgspec.json.Decoder(LastBackup)
