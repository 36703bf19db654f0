"""A directory of backups: the newest stay, nothing of anybody else's goes, and nothing goes for one that failed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.worker.test_backup import fill, quiet, run_sql, whole
from worker import copies
from worker.copies import Into, LastBackup, backup_into, last_backup, name_at, note
from worker.runtime import EXIT_UNAVAILABLE, EXIT_USAGE, Fatal
from worker.store import StoreRefused

NOON: Final = 1_796_040_000.0
DAY: Final = 24 * 3_600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    fill(tmp_path / "state" / "perdure.db", 3)
    return tmp_path / "state" / "perdure.db"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


def add(path: Path, directory: Path, *, day: float, keep: int = 3) -> Into:
    return backup_into(path, directory, keep=keep, at=NOON + day * DAY, judge=whole, progress=quiet)


def names(directory: Path) -> list[str]:
    return sorted(found.name for found in directory.iterdir())


def of_days(*days: float) -> list[str]:
    return [name_at(NOON + day * DAY) for day in days]


def test_name_is_the_time_in_utc() -> None:
    assert name_at(NOON) == "perdure-20261130T120000Z.db"


def test_newest_stay_and_the_oldest_goes(path: Path, directory: Path) -> None:
    removed = [add(path, directory, day=day).removed for day in range(6)]
    assert names(directory) == of_days(3, 4, 5)
    assert [[found.name for found in each] for each in removed] == [[], [], [], *([name] for name in of_days(0, 1, 2))]


def test_fewer_to_keep_than_before_removes_the_others_at_once(path: Path, directory: Path) -> None:
    for day in range(5):
        add(path, directory, day=day, keep=9)
    done = add(path, directory, day=5, keep=1)
    assert names(directory) == of_days(5) and done.kept == 1
    assert [found.name for found in done.removed] == of_days(0, 1, 2, 3, 4), "the oldest first"


def test_nothing_goes_where_no_number_to_keep_is_named(path: Path, directory: Path) -> None:
    for day in range(4):
        add(path, directory, day=day, keep=0)
    assert names(directory) == of_days(0, 1, 2, 3)


def test_what_this_command_did_not_make_stays(path: Path, directory: Path, tmp_path: Path) -> None:
    """Whatever it is called: of another program, of another perdure, a link, a directory, or by another name."""
    old = of_days(-5, -6, -7, -8, -9, -10)
    add(path, directory, day=-20)
    shutil.copy(directory / of_days(-20)[0], directory / "perdure-before-the-move.db")
    os.link(directory / of_days(-20)[0], tmp_path / "linked.db")
    (directory / old[0]).write_text("Dear diary")
    fill(tmp_path / "other.db", 1)
    shutil.copy(tmp_path / "other.db", directory / old[1])
    (directory / old[2]).symlink_to(tmp_path / "linked.db")
    (directory / old[3]).mkdir()
    shutil.copy(path, directory / old[4])
    run_sql(directory / old[4], "PRAGMA application_id = 7")
    shutil.copy(path, directory / old[5])
    run_sql(directory / old[5], "PRAGMA user_version = 99")

    done = add(path, directory, day=0, keep=1)

    assert [found.name for found in done.removed] == of_days(-20)
    assert names(directory) == sorted([*old, "perdure-before-the-move.db", *of_days(0)])


def test_damaged_backup_is_neither_counted_nor_removed(path: Path, directory: Path) -> None:
    for day in range(3):
        add(path, directory, day=day, keep=9)
    torn = directory / of_days(1)[0]
    torn.write_bytes(torn.read_bytes()[: 4096 * 3])
    done = add(path, directory, day=3, keep=2)
    assert names(directory) == of_days(1, 2, 3) and done.kept == 2


def test_backups_of_before_a_restore_are_this_databases_too(path: Path, directory: Path) -> None:
    """It has another incarnation then, and the same key."""
    add(path, directory, day=0)
    run_sql(path, "UPDATE meta SET value = printf('%032x', 1) WHERE name = 'incarnation'")
    assert [found.name for found in add(path, directory, day=1, keep=1).removed] == of_days(0)


def test_backup_that_fails_removes_nothing(path: Path, directory: Path) -> None:
    for day in range(3):
        add(path, directory, day=day)
    run_sql(path, "UPDATE ledger SET cost_nanousd = 1 WHERE rowid = 2")
    with pytest.raises(StoreRefused, match="damaged"):
        add(path, directory, day=3, keep=1)
    assert names(directory) == of_days(0, 1, 2)


def test_backups_of_a_clock_that_was_ahead_neither_go_nor_crowd_out_the_others(path: Path, directory: Path) -> None:
    for day in (0, 1, 3_650, 3_651):
        add(path, directory, day=day, keep=9)
    done = add(path, directory, day=2, keep=2)
    assert names(directory) == of_days(1, 2, 3_650, 3_651)
    assert done.kept == 2 and "2 backups bear a time that is yet to come" in done.warnings[0]


def test_two_at_once_are_refused_and_what_a_kill_left_is_used_again(path: Path, directory: Path) -> None:
    partial = directory / "perdure-backup.partial"
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Fatal, match="another process is writing it") as caught:
            add(path, directory, day=0)
        assert caught.value.status == EXIT_UNAVAILABLE
    partial.write_bytes(b"half a backup, whose process was killed")
    add(path, directory, day=1)
    assert names(directory) == of_days(1)


def test_second_one_of_a_second_replaces_nothing(path: Path, directory: Path) -> None:
    add(path, directory, day=0)
    before = (directory / of_days(0)[0]).read_bytes()
    with pytest.raises(Fatal, match="in this very second") as caught:
        add(path, directory, day=0)
    assert caught.value.status == EXIT_UNAVAILABLE
    assert (directory / of_days(0)[0]).read_bytes() == before


def test_file_that_came_while_the_backup_was_made_is_not_replaced(path: Path, directory: Path) -> None:
    name = directory / of_days(0)[0]

    def meanwhile(what: str, _done: float) -> None:
        if what != "copying":
            name.write_text("somebody's")

    with pytest.raises(Fatal, match="is there already"):
        backup_into(path, directory, keep=1, at=NOON, judge=whole, progress=meanwhile)
    assert name.read_text() == "somebody's" and names(directory) == of_days(0)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_directory_that_is_none_is_not_made(path: Path, directory: Path, name: str) -> None:
    (directory / "file").write_text("")
    with pytest.raises(Fatal, match="make it, or mount what belongs there") as caught:
        add(path, directory / name, day=0)
    assert caught.value.status == EXIT_USAGE
    assert names(directory) == ["file"]


def test_backup_that_can_not_be_removed_is_told_and_the_new_one_stays(
    path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(path, directory, day=0)
    unlink = Path.unlink

    def refuses(self: Path, missing_ok: bool = False) -> None:
        if self.name in of_days(0):
            raise PermissionError(1, "Operation not permitted")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    done = add(path, directory, day=1, keep=1)
    assert names(directory) == of_days(0, 1) and done.kept == 2 and done.removed == []
    assert "can not be removed (Operation not permitted)" in done.warnings[0]


# -- the note of the last ----------------------------------------------------------------------------------------------

LAST: Final = LastBackup(at=1_796_040_000_123, path="/mnt/backups/b.db", bytes=4_096, turns=7)


def test_note_is_read_as_it_was_written_and_replaces_the_one_before(tmp_path: Path) -> None:
    note(tmp_path, LastBackup(at=1, path="x" * 4_000, bytes=1, turns=1))
    note(tmp_path, LAST)
    assert last_backup(tmp_path) == LAST
    assert json.loads((tmp_path / "last-backup.json").read_text()) == {
        "at": 1_796_040_000_123,
        "path": "/mnt/backups/b.db",
        "bytes": 4_096,
        "turns": 7,
    }
    assert names(tmp_path) == ["last-backup.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"at": 1}', b"[]", b"\xff", b"[" * 100_000])
def test_note_that_says_nothing_is_none(tmp_path: Path, content: bytes) -> None:
    assert last_backup(tmp_path) is None
    (tmp_path / "last-backup.json").write_bytes(content)
    assert last_backup(tmp_path) is None


def test_note_that_can_not_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note(tmp_path, LAST)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        note(tmp_path, LastBackup(at=9, path="", bytes=9, turns=9))
    assert last_backup(tmp_path) == LAST and names(tmp_path) == ["last-backup.json"]


def test_note_follows_no_link_that_somebody_laid(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root's")
    (tmp_path / f"{copies.NOTE}.{os.getpid()}").symlink_to(victim)
    note(tmp_path, LAST)
    assert victim.read_text() == "root's" and last_backup(tmp_path) == LAST
