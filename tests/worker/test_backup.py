"""Backup and restore on real files: one moment's copy, proved to its last row, and a restore that nothing can halve."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import apsw
import pytest

from daemon.state import EMPTY, encode
from daemon.verbs.keeping import faults_of
from tests.worker.test_migrations import at_schema, put_old_rows
from tests.worker.writing import booking, claim, snapshot_write, write
from worker import backup as backups
from worker import store as store_module
from worker.backup import Contents, Restored
from worker.batch import Write
from worker.protocol import Snapshot, SnapshotWrite
from worker.runtime import EXIT_USAGE, Fatal
from worker.store import APPLICATION_ID, Reader, Store, StoreRefused

STAMP: Final = "20260131T120000Z"
SESSIONS: Final = 40


def quiet(_what: str, _done: float) -> None: ...


def whole(_snapshot: Snapshot) -> Sequence[str]:
    return ()


def back_up(path: Path, file: Path, *, force: bool = False) -> Contents:
    return backups.backup(path, file, force=force, judge=whole, progress=quiet)


def restore(file: Path, path: Path, stamp: str = STAMP) -> Restored:
    return backups.restore(file, path, stamp=stamp, judge=whole, progress=quiet)


def commit(store: Store, *writes: Write) -> None:
    store.commit(writes, live=frozenset({"boot-1"}), now=1)


def fill(path: Path, sessions: int = SESSIONS) -> None:
    store = Store(path)
    commit(store, *(write(booking(number, f"session-{number}")) for number in range(sessions)))
    store.close()


def run_sql(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    list(connection.execute(sql))
    connection.close()


def events(path: Path) -> set[str]:
    reader = Reader(path)
    try:
        return {event for (event,) in reader.execute("SELECT event_id FROM ledger")}
    finally:
        reader.close()


def images(directory: Path) -> dict[str, bytes]:
    """Every file, but what a reader may leave: a `-shm`, an empty log."""
    found = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    return {name: content for name, content in found.items() if content and not name.endswith("-shm")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "perdure.db"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "perdure-backup.db"


# -- backup --------------------------------------------------------------------------------------------------------


def test_backup_while_rows_are_committed_is_one_moment_and_does_not_begin_again(
    path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    monkeypatch.setattr(store_module, "COPY_PAGES", 1)
    store = Store(path)
    before, told = events(path), list[float]()

    def commit_meanwhile(what: str, done: float) -> None:
        if what == "copying":
            told.append(done)
            assert len(told) < 500, "it begins again and again"
            commit(store, write(booking(len(told), "late")))

    made = backups.backup(path, file, force=False, judge=whole, progress=commit_meanwhile)
    assert len(told) > 10 and told == sorted(told), "each step took it further"
    assert events(file) == before and made.rows == len(before)
    assert len(events(path)) == len(before) + len(told)
    store.close()


def test_verification_of_a_database_that_is_written_meanwhile_reads_one_moment(path: Path) -> None:
    store = Store(path)
    try:
        store.commit([write(booking(number)) for number in range(5)], live=frozenset(), now=1)
        written: list[str] = []

        def write_meanwhile(what: str, _done: float) -> None:
            written.append(what)
            store.commit([write(booking(100 + len(written), "other"))], live=frozenset(), now=1)

        # Its moment is that of its first read, before which it told that it begins.
        assert backups.verify(path, faults_of, write_meanwhile).rows == 5 + 1
        assert "checking its rows" in written
        assert backups.verify(path, faults_of, lambda *_: None).rows == 5 + len(written)
    finally:
        store.close()


def test_backup_takes_what_is_only_in_the_log(path: Path, file: Path) -> None:
    store = Store(path)
    commit(store, write(booking(1)))
    assert b"event-session-1-000001" not in path.read_bytes()
    assert back_up(path, file).turns == 1
    store.close()


def test_backup_is_one_private_file_that_needs_nothing_beside_it(path: Path, file: Path) -> None:
    fill(path)
    made = back_up(path, file)
    assert [found.name for found in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes()[18:20] == b"\x01\x01", "not in WAL mode: that would want a directory that can be written"
    assert (made.sessions, made.turns, made.rows, made.damaged_snapshots) == (SESSIONS, SESSIONS, SESSIONS, 0)
    assert made.newest_at > 0 and len(made.incarnation) == 32


@pytest.mark.parametrize("force", [False, True])
def test_backup_onto_what_is_no_file_is_refused_and_leaves_it(path: Path, file: Path, force: bool) -> None:
    fill(path)
    os.mkfifo(file)
    with pytest.raises(Fatal, match="not a file that may be replaced") as caught:
        back_up(path, file, force=force)
    assert caught.value.status == EXIT_USAGE
    assert file.is_fifo()


def test_backup_into_a_directory_that_is_not_there_says_so(path: Path, file: Path) -> None:
    fill(path)
    with pytest.raises(Fatal, match="there is no directory") as caught:
        back_up(path, file.parent / "missing" / file.name)
    assert caught.value.status == EXIT_USAGE


def test_backup_onto_a_file_that_is_there_wants_to_be_told(path: Path, file: Path) -> None:
    fill(path)
    file.write_text("last year's accounts")
    with pytest.raises(Fatal, match=r"is there already.*--force") as caught:
        back_up(path, file)
    assert caught.value.status == EXIT_USAGE
    assert file.read_text() == "last year's accounts"
    back_up(path, file, force=True)
    assert len(events(file)) == SESSIONS


@pytest.mark.parametrize("name", ["perdure.db", "perdure.db-wal", "perdure.db.restoring-1", "."])
def test_backup_in_a_place_of_perdures_own_is_refused(path: Path, name: str) -> None:
    fill(path)
    before = images(path.parent)
    with pytest.raises(Fatal, match="name a file"):
        back_up(path, path.parent / name, force=True)
    assert images(path.parent) == before


def test_backup_beside_another_to_the_same_file_waits_for_its_turn(path: Path, file: Path) -> None:
    fill(path)
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half of another")
        other.flush()
        with pytest.raises(Fatal, match="another process is writing it"):
            back_up(path, file)
        assert partial.read_bytes() == b"half of another"
    # That one was killed: what it left is nobody's.
    back_up(path, file)
    assert [found.name for found in file.parent.iterdir()] == [file.name]


def test_backup_that_finds_a_finished_one_under_the_name_it_opened_leaves_it_alone(
    path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process moved its file away between this one's opening and locking of it."""
    fill(path)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(b"the other's whole backup")
    lock = fcntl.flock

    def lock_late(descriptor: int, operation: int) -> None:
        partial.rename(file)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(Fatal, match="another process"):
        back_up(path, file)
    assert file.read_bytes() == b"the other's whole backup"


DAMAGES: Final = {
    "a ledger row": ("UPDATE ledger SET output_tokens = output_tokens + 1 WHERE rowid = 7", "ledger row"),
    "a session's sums": ("UPDATE session_total SET cost_nanousd = cost_nanousd - 1", "sums"),
    "a day's sums": ("UPDATE day_total SET output_tokens = output_tokens + 1", "sums"),
    "a session's sums gone": ("DELETE FROM session_total", "sums"),
    "a day gone": ("DELETE FROM day_total", "sums"),
    "a row gone": ("DELETE FROM ledger WHERE rowid = 7", "sums"),
    "a row rolled up twice": ("INSERT INTO session_rolled (session_id, turns) VALUES ('session-9', 1)", "sums"),
    "a day rolled up twice": ("INSERT INTO day_rolled SELECT * FROM day_total", "sums"),
    "a session gone": (
        "PRAGMA foreign_keys = OFF; DELETE FROM session_state WHERE session_id = 'session-9'",
        "session_state is not there",
    ),
    "a session said to be forgotten": ("UPDATE session_state SET forgotten_at = 1", "is shown as forgotten"),
    "an epoch": ("UPDATE session_state SET epoch = -1 WHERE session_id = 'session-9'", "session 'session-9'"),
}


@pytest.mark.parametrize(("sql", "fault"), DAMAGES.values(), ids=DAMAGES)
def test_backup_of_a_damaged_database_is_refused_with_the_command_and_leaves_nothing(
    path: Path, file: Path, sql: str, fault: str
) -> None:
    fill(path)
    run_sql(path, sql)
    with pytest.raises(StoreRefused, match=rf"{path}: damaged .*{fault}.*perdure restore FILE"):
        back_up(path, file)
    assert list(file.parent.iterdir()) == []


def test_backup_of_an_index_that_says_otherwise_than_its_table_is_refused(path: Path, file: Path) -> None:
    """Each value is sound by itself: only the comparison tells."""
    fill(path)
    damage_index(path, b"chain-session-9-9", b"chain-session-9-8")
    with pytest.raises(StoreRefused, match=r"damaged .*index"):
        back_up(path, file)


def damage_index(path: Path, old: bytes, new: bytes) -> None:
    """Change the last place where a value stands: the index is made after its table."""
    content = bytearray(path.read_bytes())
    place = content.rindex(old)
    content[place : place + len(old)] = new
    path.write_bytes(content)


def test_backup_of_damaged_snapshots_is_made_and_counts_them(path: Path, file: Path) -> None:
    """They are folded again from their rows: nothing is lost."""
    store = Store(path)
    for number in range(3):
        commit(store, write(booking(number, f"session-{number}")), write(claim(f"session-{number}"), 2))
    commit(store, *(write(snapshot_write(f"session-{number}"), 3 + number) for number in range(2)))
    store.close()
    found = backups.backup(path, file, force=False, judge=lambda s: ["damaged"], progress=quiet)
    assert (found.damaged_snapshots, found.sessions) == (2, 3)


def put_old_session(path: Path) -> None:
    """As schema 1 has them, without a row: its sums are of nothing."""
    put_old_rows(path)
    run_sql(path, "UPDATE session_total SET turns = 0, cost_nanousd = 0")


def test_backup_of_a_row_that_was_settled_as_another_models_is_good(path: Path, file: Path) -> None:
    """The day's sums of the model it began with are left at nothing."""
    store = Store(path)
    commit(store, write(booking(1, settled=False, model="asked-for")), write(booking(1, model="answered-by"), 2))
    store.close()
    assert back_up(path, file).turns == 1


def test_backup_after_old_rows_were_rolled_up_is_good(path: Path, file: Path) -> None:
    store = Store(path)
    for number in range(1, 9):
        commit(store, write(booking(number)))
    commit(store, write(claim("session-1")), write(snapshot_write(position=8), 2))
    store.roll_up(0, before=2**53, live=frozenset())
    store.close()
    made = back_up(path, file)
    assert made.turns == 8 and made.rows < 8


def test_backup_of_a_former_schema_is_verified_too(path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program was upgraded, and its worker not yet started."""
    at_schema(path, 1, monkeypatch)
    put_old_session(path)
    assert back_up(path, file).schema == 1
    run_sql(
        path,
        "INSERT INTO ledger VALUES ('event-old', 'old', 1, 'turn', 'complete', 5, 6, 'p', 'chat', 'm', 'c', 'a', 'b',"
        " '', 200, 1, 1, 1, 1, 1, 9, '', 1, 0, 0, 1, 1, 4711)",
    )
    with pytest.raises(StoreRefused, match="ledger row 'event-old'"):
        back_up(path, file, force=True)


# -- restore -------------------------------------------------------------------------------------------------------


def test_restore_gives_the_backup_and_keeps_the_rest_with_its_log(path: Path, file: Path) -> None:
    fill(path)
    back_up(path, file)
    store = Store(path)
    commit(store, write(booking(77, "later", started_at=1_760_000_000_000, ended_at=1_760_000_000_001)))
    leave_unclean(store, path)
    done = restore(file, path)
    assert done.kept == path.with_name(f"perdure.db.before-restore-{STAMP}")
    assert "event-later-000077" in events(done.kept), "it was only in the log"
    assert (done.was_readable, done.turns, done.newest_at) == (True, SESSIONS + 1, 1_760_000_000_000)
    assert done.contents.turns == SESSIONS
    Store(path).close()
    assert len(events(path)) == SESSIONS
    assert path.stat().st_mode & 0o777 == 0o600


def leave_unclean(store: Store, path: Path) -> None:
    """As a SIGKILL leaves it: with a log that nobody has emptied."""
    log = path.with_name(f"{path.name}-wal")
    content = path.read_bytes(), log.read_bytes()
    store.abandon()
    path.write_bytes(content[0])
    log.write_bytes(content[1])


def test_restore_makes_another_store_of_the_same_key_that_nobody_owns_anything_in(path: Path, file: Path) -> None:
    store = Store(path)
    commit(store, write(claim("session-1")))
    before = store._tables.session("session-1")
    assert before is not None and (before.owner, before.epoch) == ("boot-1", 1)
    back_up(path, file)
    store.close()
    restore(file, path)
    restored = Store(path)
    assert restored.hash_key == store.hash_key
    assert restored.incarnation != store.incarnation
    after = restored._tables.session("session-1")
    assert after is not None and after.owner == "" and after.epoch > before.epoch
    restored.close()


def test_restored_store_refuses_a_snapshot_of_rows_that_went_with_the_database_before(path: Path, file: Path) -> None:
    """It was not yet acknowledged, and its sender still is the owner as the backup knows it."""
    store = Store(path)
    commit(store, write(claim("session-1")), write(booking(1), 2))
    back_up(path, file)
    commit(store, *(write(booking(number), number) for number in range(2, 9)))
    late = snapshot_write("session-1", epoch=1, position=8, generation=9)
    store.close()
    restore(file, path)
    restored = Store(path)
    commit(restored, write(late))
    session = restored._tables.session("session-1")
    assert session is not None and (session.snapshot, session.last_position) == (None, 1)
    restored.close()


NOT_GOOD: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "a damaged row": (lambda file: run_sql(file, "UPDATE ledger SET cost_nanousd = 1 WHERE rowid = 3"), "damaged"),
    "a page of nothing": (lambda file: file.write_bytes(file.read_bytes()[:-4096] + bytes(4096)), "damaged"),
    "half of it": (lambda file: file.write_bytes(file.read_bytes()[: 4096 * 9]), "damaged"),
    "a newer schema": (lambda file: run_sql(file, "PRAGMA user_version = 99"), "newer perdure"),
    "another program's": (lambda file: run_sql(file, "PRAGMA application_id = 7"), "another program"),
    "a text": (lambda file: file.write_text("Dear diary, " * 900), "not a SQLite database"),
    "nothing at all": (lambda file: file.write_bytes(b""), "an empty file"),
}


@pytest.mark.parametrize(("spoil", "fault"), NOT_GOOD.values(), ids=NOT_GOOD)
def test_restore_of_what_is_no_good_backup_changes_nothing(
    path: Path, file: Path, spoil: Callable[[Path], object], fault: str
) -> None:
    fill(path)
    back_up(path, file)
    spoil(file)
    before = images(path.parent)
    with pytest.raises(StoreRefused, match=rf"{file}: .*{fault}.*nothing was changed"):
        restore(file, path)
    assert images(path.parent) == before


NO_FILE: Final[dict[str, tuple[str, Callable[[Path], object]]]] = {
    "no such file; name a file that `perdure backup` made": ("nowhere.db", lambda place: place),
    "a directory; name a file": ("backups", Path.mkdir),
    "a link to what is not there": ("link.db", lambda place: place.symlink_to("nowhere.db")),
    "a device, a pipe or a socket": ("pipe.db", os.mkfifo),
    "belongs to .*copy.db and is nothing without it": ("copy.db-wal", lambda place: place.write_bytes(b"log")),
}


@pytest.mark.parametrize(("said", "made"), NO_FILE.items(), ids=NO_FILE)
def test_restore_of_what_can_be_no_backup_says_what_it_is(
    path: Path, tmp_path: Path, said: str, made: tuple[str, Callable[[Path], object]]
) -> None:
    name, make = made
    make(tmp_path / name)
    with pytest.raises(Fatal, match=f"{name}: {said}") as refused:
        restore(tmp_path / name, path)
    assert refused.value.status == EXIT_USAGE


def test_restore_of_a_directory_names_the_newest_backup_in_it(path: Path, tmp_path: Path) -> None:
    for name in ("perdure-20260131T030000Z.db", "perdure-20260201T030000Z.db", "other.db"):
        (tmp_path / name).touch()
    with pytest.raises(Fatal, match=r"a directory; its newest backup is .*/perdure-20260201T030000Z\.db"):
        restore(tmp_path, path)


def test_restore_of_the_database_itself_is_refused(path: Path) -> None:
    fill(path)
    with pytest.raises(Fatal, match="the database in use"):
        restore(path, path)
    assert len(events(path)) == SESSIONS


def test_restore_where_nothing_was_needs_nothing(path: Path, file: Path) -> None:
    fill(path)
    back_up(path, file)
    path.unlink()
    done = restore(file, path)
    assert (done.kept, done.was_readable) == (None, False)
    assert len(events(path)) == SESSIONS


@pytest.mark.parametrize("spoil", [b"\xff" * 8192, b"", b"Dear diary"], ids=["damaged", "empty", "text"])
def test_restore_over_a_damaged_database_keeps_it_too(path: Path, file: Path, spoil: bytes) -> None:
    fill(path)
    back_up(path, file)
    path.write_bytes(spoil)
    done = restore(file, path)
    assert done.kept is not None and done.kept.read_bytes() == spoil
    assert not done.was_readable
    assert len(events(path)) == SESSIONS


def test_restore_twice_in_a_second_keeps_both(path: Path, file: Path) -> None:
    fill(path)
    back_up(path, file)
    restore(file, path)
    with pytest.raises(Fatal, match="in this very second"):
        restore(file, path)
    restore(file, path, stamp="20260131T120001Z")
    assert len([*path.parent.glob("*.before-restore-2026*Z")]) == 2


def test_restore_of_a_former_schema_is_migrated_at_the_next_start(
    path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_schema(file, 1, monkeypatch)
    put_old_session(file)
    restore(file, path)
    store = Store(path)
    assert store.schema == len(store_module._steps())
    session = store._tables.session("old")
    assert session is not None and session.epoch > 7
    store.close()


def test_snapshots_are_judged_by_the_rules_of_those_who_read_them(path: Path, file: Path) -> None:
    """As the command line hands them in: one of these two has checksums that were never computed."""
    store = Store(path)
    commit(store, write(claim("good")), write(claim("bad"), 2), write(snapshot_write("bad"), 3))
    commit(store, write(SnapshotWrite(session_id="good", epoch=1, snapshot=encode(EMPTY, 1)), 4))
    store.close()
    assert backups.backup(path, file, force=False, judge=faults_of, progress=quiet).damaged_snapshots == 1


class Cut(Exception):
    """The power went."""


@pytest.mark.parametrize("finisher", ["worker", "restore"])
def test_restore_cut_short_at_any_step_is_finished_or_never_was(
    path: Path, tmp_path: Path, file: Path, finisher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    back_up(path, file)
    cuts = 0
    while True:
        state = tmp_path / f"{finisher}-{cuts}"
        state.mkdir()
        place = state / path.name
        fill(place)
        store = Store(place)
        commit(store, write(booking(1, "later")))
        leave_unclean(store, place)
        later = events(place)
        with monkeypatch.context() as patch:
            left = cut_after(patch, cuts)
            with contextlib.suppress(Cut):
                restore(file, place)
        if not left():
            assert cuts >= 6, "there is more than that to cut"
            return
        if finisher == "restore":
            restore(file, place, stamp="20260131T120001Z")
        Store(place).close()
        assert_restored_or_never(place, later, must_be=finisher == "restore")
        cuts += 1


def cut_after(patch: pytest.MonkeyPatch, steps: int) -> Callable[[], bool]:
    """Let so many changes of names and fsyncs happen; tells whether one more was wanted."""
    done = 0
    rename, sync = Path.rename, os.fsync

    def passing() -> None:
        nonlocal done
        done += 1
        if done > steps:
            raise Cut

    def renaming(self: Path, target: Path) -> Path:
        passing()
        return rename(self, target)

    def syncing(descriptor: int) -> None:
        passing()
        sync(descriptor)

    patch.setattr(Path, "rename", renaming)
    patch.setattr(os, "fsync", syncing)
    return lambda: done > steps


def assert_restored_or_never(place: Path, later: set[str], *, must_be: bool) -> None:
    """Either the backup with all that was before beside it, or all that was before: nothing in between."""
    kept = [found for found in place.parent.glob("*.before-restore-*Z") if events(found) == later]
    if events(place) == later:
        assert not kept and not must_be
    else:
        assert len(events(place)) == SESSIONS
        assert len(kept) == 1
    assert not list(place.parent.glob("*.restoring-*"))


def test_store_beside_a_half_made_copy_opens_as_it_is(path: Path) -> None:
    """A restore that was killed while it copied has decided nothing."""
    fill(path)
    path.with_name("perdure.db.restoring.partial").write_bytes(b"half a copy")
    Store(path).close()
    assert len(events(path)) == SESSIONS


def test_application_id_of_a_backup_is_ours(path: Path, file: Path) -> None:
    fill(path)
    back_up(path, file)
    assert file.read_bytes()[68:72] == APPLICATION_ID.to_bytes(4, "big")


def test_restore_that_fails_once_it_is_decided_says_so(path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    back_up(path, file)
    sync = store_module._sync

    def fails(place: Path) -> None:
        sync(place)
        if place == path.parent:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store_module, "_sync", fails)
    with pytest.raises(Fatal, match="the restore is decided all the same") as caught:
        backups.restore(file, path, stamp="1", judge=whole, progress=quiet)
    assert "nothing was changed" not in str(caught.value)


def test_backup_onto_the_database_itself_under_another_name_is_refused(path: Path, file: Path) -> None:
    fill(path)
    file.symlink_to(path)
    with pytest.raises(Fatal, match=r"the database in use|a name that perdure gives itself"):
        back_up(path, file, force=True)
    file.unlink()
    os.link(path, file)
    with pytest.raises(Fatal, match="the database in use"):
        back_up(path, file, force=True)
