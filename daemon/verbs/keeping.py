"""The verbs that keep safe: `backup`, `restore`.

One rule: a backup only reads the store; a restore takes the worker's place, under its lock.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from daemon.state import decode
from daemon.verbs.parsing import Verbs, add_verb, positive
from daemon.verbs.progress import Progress, progress_bar
from daemon.verbs.reading import moment
from daemon.verbs.screen import say, tell
from worker import backup as backups
from worker import copies, runtime
from worker.protocol import Snapshot
from worker.runtime import Fatal
from worker.settings import Settings

BACKUP_NICENESS: Final = 10
"""What reads a gigabyte must not take the processor from what answers requests."""


def add(verbs: Verbs) -> None:
    verb = partial(add_verb, verbs)
    place = ("state_dir",)
    does = "copy the database, also while it is written, and prove the copy"
    made = verb("backup", "perdure backup --into /mnt/backups --keep 14", does, place, act=backup)
    made.add_argument("file", metavar="FILE", type=Path, nargs="?", help="the backup")
    made.add_argument("--force", action="store_true", help="replace FILE where it is there already")
    made.add_argument("--into", metavar="DIRECTORY", type=Path, help="instead of FILE: add one named by its time")
    made.add_argument(
        "--keep", metavar="N", type=positive, help="then remove this database's backups there but the N newest"
    )
    put_back = verb(
        "restore", "perdure restore /mnt/backups/perdure-2026-01-31.db", "go back to a backup", place, act=restore
    )
    put_back.add_argument("file", metavar="FILE", type=Path, help="the backup")
    for each in (made, put_back):
        each.add_argument("--json", action="store_true", help="for programs")


def backup(settings: Settings, options: argparse.Namespace) -> int:
    """Copy the database, whatever runs, and prove the copy."""
    _check_usage(options)
    if not settings.database.exists():
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"{settings.database}: no database there yet; `perdure up` makes one")
    os.nice(BACKUP_NICENESS)
    started, at = time.monotonic(), time.time()
    with progress_bar() as progress:
        done = _backed_up(settings, options, at, progress)
    seconds, size = time.monotonic() - started, done.path.stat().st_size
    warnings = [*done.warnings, *_noted(settings, done, at, size)]
    shown = {"path": str(done.path), "bytes": size, "seconds": round(seconds, 3), **_contents(done.contents)}
    line = f"{done.path}: {_held(done.contents)}, {size:,} bytes, read to the last row, in {seconds:.1f} s"
    if options.into is not None:
        shown |= {"kept": done.kept, "removed": [str(path) for path in done.removed]}
        line += f"; {done.kept} kept there, {len(done.removed)} removed"
    if options.json:
        print(json.dumps({**shown, "warnings": warnings}, indent=2))
    else:
        tell(line)
    if warnings:
        # It is no failure: the backup is there and good.
        say(f"warning: {'; '.join(warnings)}")
    return runtime.EXIT_OK


def _check_usage(options: argparse.Namespace) -> None:
    remedy = "`perdure backup --help` says more"
    if (options.file is None) == (options.into is None):
        raise Fatal(runtime.EXIT_USAGE, f"name either FILE or --into DIRECTORY; {remedy}")
    if options.into is None and options.keep is not None:
        raise Fatal(runtime.EXIT_USAGE, f"--keep goes with --into DIRECTORY: a FILE has no older ones; {remedy}")
    if options.into is not None and options.force:
        raise Fatal(runtime.EXIT_USAGE, f"--force goes with FILE: what --into adds replaces nothing; {remedy}")


def _backed_up(settings: Settings, options: argparse.Namespace, at: float, progress: Progress) -> copies.Into:
    if options.into is None:
        made = backups.backup(settings.database, options.file, force=options.force, judge=faults_of, progress=progress)
        return copies.Into(path=options.file, contents=made, removed=[], kept=1, warnings=[])
    keep = options.keep or 0
    return copies.backup_into(settings.database, options.into, keep=keep, at=at, judge=faults_of, progress=progress)


def _noted(settings: Settings, done: copies.Into, at: float, size: int) -> list[str]:
    """Write down that it was made; gives what is to be said where that could not be."""
    path, turns = str(done.path.resolve()), done.contents.turns
    try:
        copies.note(Path(settings.state_dir), copies.LastBackup(at=int(1_000 * at), path=path, bytes=size, turns=turns))
    except OSError as error:
        told = f"{settings.state_dir}/{copies.NOTE}: {error.strerror}; the backup is good, and not known to `status`"
        return [f"{told}: check owner and mode of the directory"]
    return []


def restore(settings: Settings, options: argparse.Namespace) -> int:
    """Put a backup in the database's place, and keep what was there."""
    runtime.private_directory(Path(settings.state_dir))
    holder = runtime.lock_holder(settings.lock)
    if holder is not None:
        alone = "`perdure ctl stop worker`, `systemctl stop perdure-worker`"
        remedy = f"stop perdure first (`perdure down`, or the worker alone: {alone})"
        raise Fatal(runtime.EXIT_UNAVAILABLE, f"{settings.state_dir}: the worker runs (pid {holder}); {remedy}")
    lock = runtime.lock_file(settings.lock, "restore into another PERDURE_STATE_DIR")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with progress_bar() as progress:
        done = backups.restore(options.file, settings.database, stamp=stamp, judge=faults_of, progress=progress)
    os.close(lock)
    shown = {
        "path": str(options.file),
        **_contents(done.contents),
        "kept": str(done.kept) if done.kept else None,
        "replaced": {"newest_row_at": moment(done.newest_at), "turns": done.turns} if done.was_readable else None,
    }
    if options.json:
        print(json.dumps(shown, indent=2))
    else:
        tell(_restored_page(options.file, done))
    return runtime.EXIT_OK


def _contents(found: backups.Contents) -> dict[str, Any]:
    shown = {name: getattr(found, name) for name in backups.Contents.__struct_fields__ if name != "newest_at"}
    return {**shown, "newest_row_at": moment(found.newest_at)}


def _restored_page(file: Path, done: backups.Restored) -> str:
    newest = moment(done.contents.newest_at) or "never"
    lines = [f"Restored  {file}: {_held(done.contents)}, the newest of {newest}"]
    if done.kept:
        lines.append(f"Kept      {done.kept}: delete it once nothing in it is missed")
        lines.append(f"Gap       {_gap(done)}")
    lines.append("Next      start the worker (`perdure up`, `perdure ctl start worker`);")
    lines.append("          daemons that ran on tell it what they had not seen stored")
    return "\n".join(lines)


def _gap(done: backups.Restored) -> str:
    """What the database had that the backup has not."""
    if not done.was_readable:
        return "unknown: what was there can not be read"
    more = done.turns - done.contents.turns
    if more <= 0 and done.newest_at <= done.contents.newest_at:
        return "none"
    return f"{max(0, more):,} turns are in the kept database alone, the newest of {moment(done.newest_at)}"


def _held(contents: backups.Contents) -> str:
    folded = f" ({contents.damaged_snapshots} to be folded anew)" if contents.damaged_snapshots else ""
    return f"{contents.turns:,} turns in {contents.sessions:,} sessions{folded}"


def faults_of(snapshot: Snapshot) -> Sequence[str]:
    return decode(snapshot).warnings
