"""The store on real files: what is refused and stays as it was, what a commit promises, what a SIGKILL leaves."""

from __future__ import annotations

import contextlib
import gc
import random
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from msgspec.structs import replace

from tests.conftest import Tell
from tests.worker.writing import booking, claim, naming, row, snapshot_write, write
from worker import store as store_module
from worker.batch import Outcome, Write
from worker.protocol import Booking, Shape, Why
from worker.records import account_of
from worker.store import APPLICATION_ID, CHECKPOINT_PAGES, Reader, Store, StoreBusy, StoreRefused, WriteRejected
from worker.tables import DamagedRow

ROOT = Path(__file__).resolve().parents[2]
KILLS = 30
PAGE_BYTES = 4_096
SCHEMA = len(store_module._steps())
NOW = 1_750_000_000_000


def commit(store: Store, *writes: Write) -> Outcome:
    return store.commit(writes, live=frozenset({"boot-1"}), now=NOW)


def raw(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path))


def pragma(connection: apsw.Connection, name: str) -> object:
    return next(iter(connection.execute(f"PRAGMA {name}")))[0]


def images(path: Path) -> dict[str, bytes]:
    """The database and what may wait beside it, byte for byte (a `-shm` or an empty log may appear)."""
    names = [path.name, f"{path.name}-wal", f"{path.name}-journal"]
    found = {name: path.with_name(name) for name in names if path.with_name(name).exists()}
    return {name: file.read_bytes() for name, file in found.items() if file.stat().st_size}


def events(path: Path) -> set[str]:
    reader = Reader(path)
    try:
        return {event for (event,) in reader.execute("SELECT event_id FROM ledger")}
    finally:
        reader.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perdure.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    with contextlib.suppress(apsw.ConnectionClosedError):
        opened.close()


# -- opening -------------------------------------------------------------------------------------------------------


def test_store_new_is_ours_and_empty(store: Store, path: Path) -> None:
    other = raw(path)
    assert pragma(other, "application_id") == APPLICATION_ID
    assert pragma(other, "user_version") == store.schema == SCHEMA
    assert len(store.hash_key) == 64 and len(store.incarnation) == 32
    assert store.keys_before(2**62, 10).entries == []


def test_store_pragmas_are_what_durability_needs(store: Store) -> None:
    values = {name: pragma(store._db, name) for name in ("journal_mode", "synchronous", "foreign_keys", "mmap_size")}
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "mmap_size": 0}
    assert pragma(store._db, "trusted_schema") == 0
    assert pragma(store._db, "cell_size_check") == 1
    assert pragma(store._db, "secure_delete") == 1
    assert pragma(store._db, "wal_autocheckpoint") == 0


def test_store_reopened_keeps_incarnation_key_and_rows(path: Path) -> None:
    first = Store(path)
    commit(first, write(booking()))
    first.close()
    assert not Path(f"{path}-wal").exists()
    second = Store(path)
    assert (second.incarnation, second.hash_key) == (first.incarnation, first.hash_key)
    assert len(second.keys_before(2**62, 10).entries) == 1
    second.close()


def test_store_text_file_refused_untouched(path: Path) -> None:
    path.write_text("Dear diary, this is not a database at all.\n" * 200)
    before = images(path)
    with pytest.raises(StoreRefused, match=r"not a SQLite database.*PERDURE_STATE_DIR"):
        Store(path)
    assert images(path) == before


def test_store_of_another_program_refused_untouched(path: Path) -> None:
    other = raw(path)
    other.execute("PRAGMA application_id = 77; CREATE TABLE t (x)")
    other.close()
    before = images(path)
    with pytest.raises(StoreRefused, match="another program"):
        Store(path)
    assert images(path) == before


def test_store_nameless_database_with_tables_refused_untouched(path: Path) -> None:
    other = raw(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    before = images(path)
    with pytest.raises(StoreRefused, match="another program"):
        Store(path)
    assert images(path) == before


def test_store_newer_schema_refused_untouched(path: Path) -> None:
    Store(path).close()
    newer = raw(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    before = images(path)
    with pytest.raises(StoreRefused, match=rf"newer perdure .schema 99, this one knows {SCHEMA}.*upgrade"):
        Store(path)
    assert images(path) == before


def test_store_newer_schema_only_in_the_log_refused_untouched(path: Path) -> None:
    """After a SIGKILL the header of the file is older than its log: only a connection that reads both sees it."""
    Store(path).close()
    run_killed(f"import apsw; c = apsw.Connection({str(path)!r}); c.execute('PRAGMA user_version = 99')")
    assert Path(f"{path}-wal").stat().st_size > 0
    assert path.read_bytes()[60:64] == SCHEMA.to_bytes(4, "big"), "the file's own header must not say it yet"
    before = images(path)
    with pytest.raises(StoreRefused, match="schema 99"):
        Store(path)
    assert images(path) == before


def test_reader_that_meets_a_file_in_use_waits_for_it(path: Path) -> None:
    """For whoever reads the log anew after a kill, for a moment."""
    Store(path).close()
    other = raw(path)
    list(other.execute("PRAGMA locking_mode = EXCLUSIVE"))
    other.execute("UPDATE meta SET value = '1' WHERE name = 'clean'")
    done = threading.Timer(0.2, other.close)
    done.start()
    try:
        assert events(path) == set()
    finally:
        done.join()


def test_store_with_damaged_page_refused_untouched_after_unclean_stop(path: Path) -> None:
    fill(path)
    set_clean(path, "0")
    damage(path)
    before = images(path)
    with pytest.raises(StoreRefused, match=r"damaged.*put a backup in its place"):
        Store(path)
    assert images(path) == before


def test_store_with_damaged_page_and_log_of_a_killed_process_refused_untouched(path: Path) -> None:
    fill(path)
    run_killed(
        "from pathlib import Path; from worker.store import Store; from tests.worker.writing import *; "
        f"s = Store(Path({str(path)!r})); s.commit([write(booking(1, 'late'))], live=frozenset(), now=1)"
    )
    damage(path)
    before = images(path)
    assert f"{path.name}-wal" in before
    with pytest.raises(StoreRefused, match="damaged"):
        Store(path)
    assert images(path) == before


def test_store_damage_found_while_running_leaves_the_file_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    damage(path)
    monkeypatch.setattr(store_module, "CHECK_BYTES_MAX", 0)
    store = Store(path)
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="damaged"):
        commit(store, *(write(booking(number, f"session-{number}", settled=False)) for number in range(400)))
    store.abandon()
    assert path.read_bytes() == before
    with pytest.raises(StoreRefused, match="damaged"):
        Store(path)


TAMPERING = {
    "a table dropped": ("DROP TABLE session_alias", "without session_alias"),
    "the facts' own table dropped": ("DROP TABLE meta", "without meta"),
    "an index dropped": ("DROP INDEX ledger_by_session", "without ledger_by_session"),
    "all facts gone": ("DELETE FROM meta", "incarnation is missing"),
    "a key that is no number": ("UPDATE meta SET value = 'my key' WHERE name = 'hash_key'", "hash_key is missing or"),
    "a version it has outgrown": ("PRAGMA user_version = 1", "duplicate column"),
}


@pytest.mark.parametrize(("sql", "message"), TAMPERING.values(), ids=TAMPERING.keys())
def test_store_tampered_with_by_hand_refused_untouched_with_one_line(path: Path, sql: str, message: str) -> None:
    """SQLite finds nothing wrong with such a file: it is a sound database, only not the one that was made."""
    fill(path)
    other = raw(path)
    list(other.execute(sql))
    other.close()
    before = images(path)
    with pytest.raises(StoreRefused, match=message) as caught:
        Store(path)
    assert len(str(caught.value).splitlines()) == 1
    # A connection that was forgotten open moves its log into the file when it goes.
    del caught
    gc.collect()
    assert images(path) == before


def test_store_whose_place_a_directory_takes_refused_with_one_line(path: Path) -> None:
    (path / "kept").mkdir(parents=True)
    with pytest.raises(StoreRefused, match="not a file; move it away") as caught:
        Store(path)
    assert len(str(caught.value).splitlines()) == 1
    assert [found.name for found in path.iterdir()] == ["kept"]


def test_commit_after_a_table_was_dropped_by_hand_is_refused_and_the_rest_stays(store: Store, path: Path) -> None:
    commit(store, write(booking(1)))
    other = raw(path)
    other.execute("DROP TABLE session_total")
    other.close()
    with pytest.raises(StoreRefused, match=r"damaged.*session_total"):
        commit(store, write(booking(2)))
    store.abandon()
    assert [event for (event,) in raw(path).execute("SELECT event_id FROM ledger")] == ["event-session-1-000001"]


def test_store_clean_stop_skips_the_check_of_what_is_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    monkeypatch.setattr(store_module, "CHECK_BYTES_MAX", path.stat().st_size - 1)
    monkeypatch.setattr(store_module, "_check", lambda *_: pytest.fail("checked after a clean stop"))
    Store(path).close()


def test_store_unclean_stop_is_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).abandon()
    checked: list[Path] = []
    monkeypatch.setattr(store_module, "_check", lambda _db, path: checked.append(path))
    monkeypatch.setattr(store_module, "CHECK_BYTES_MAX", 0)
    Store(path).close()
    assert checked == [path]


def test_store_of_another_program_in_mid_transaction_refused_untouched(path: Path) -> None:
    """Its journal would have to be rolled back before it can be read: not by us."""
    run_killed(
        f"import apsw; c = apsw.Connection({str(path)!r}); "
        "c.execute('CREATE TABLE t (x); PRAGMA cache_size = 1; BEGIN'); "
        "[c.execute('INSERT INTO t VALUES (zeroblob(9000))') for _ in range(50)]"
    )
    before = images(path)
    assert f"{path.name}-journal" in before
    with pytest.raises(StoreRefused):
        Store(path)
    assert images(path) == before


def test_store_beside_hot_journal_of_its_birth_opens(path: Path) -> None:
    """The file as it is after page 1 was written and before the journal was removed."""
    leave_birth_journal(path)
    store = Store(path)
    assert store.schema == SCHEMA
    store.close()
    assert pragma(raw(path), "integrity_check") == "ok"


def leave_birth_journal(path: Path) -> None:
    script = f"""
import apsw, os, shutil, signal
class Files(apsw.VFS):
    def __init__(self): super().__init__("killing", "")
    def xOpen(self, name, flags): return File(name, flags)
    def xDelete(self, name, sync):
        os.kill(os.getpid(), signal.SIGKILL)
class File(apsw.VFSFile):
    def __init__(self, name, flags): super().__init__("", name, flags)
vfs = Files()
apsw.Connection({str(path)!r}, vfs="killing").execute("PRAGMA journal_mode = WAL")
"""
    run_killed(script)
    assert Path(f"{path}-journal").stat().st_size > 0 and path.stat().st_size == PAGE_BYTES


# -- committing ----------------------------------------------------------------------------------------------------


def test_commit_that_fails_in_the_middle_keeps_nothing(store: Store, path: Path) -> None:
    """Turns whose sums leave 64 bits: the last write of the batch is refused by SQLite, the first goes with it."""
    overflow_session(store, "full")
    with pytest.raises(WriteRejected):
        commit(store, write(booking(1, "good")), write(booking(2, "full", cost_nanousd=2**50)))
    assert "event-good-000001" not in events(path)
    commit(store, write(booking(1, "good")))
    assert "event-good-000001" in events(path)


def overflow_session(store: Store, session: str) -> None:
    commit(store, write(booking(1, session)))
    store._db.execute("UPDATE session_total SET cost_nanousd = ? WHERE session_id = ?", (2**63 - 1, session))


def test_commit_with_disk_full_is_busy_and_goes_through_later(store: Store, path: Path) -> None:
    commit(store, write(booking(1)))
    pages = pragma(store._db, "page_count")
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    batch = [write(booking(number, f"s-{number}")) for number in range(300)]
    with pytest.raises(StoreBusy, match="Full"):
        commit(store, *batch)
    assert len(events(path)) == 1
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert len(commit(store, *batch).replies) == 300
    assert len(events(path)) == 301


def test_commit_while_another_program_holds_the_lock_is_busy(store: Store, path: Path) -> None:
    store._db.set_busy_timeout(1)
    other = raw(path)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        commit(store, write(booking()))
    other.execute("ROLLBACK")
    commit(store, write(booking()))
    assert len(events(path)) == 1


@pytest.mark.parametrize(
    "change",
    ["cost_nanousd = cost_nanousd & ~64", "origin = 'operator'", "origin = ''", "confidence = 'certain'"],
)
def test_ledger_row_that_was_changed_is_refused_for_writer_and_reader(store: Store, path: Path, change: str) -> None:
    why = Why(reason="continues", origin="content", confidence="proven")
    commit(store, write(booking(why=why)))
    assert [row.why for row in store._tables.rows_after("session-1", 0, 9)] == [why]
    store._db.execute(f"UPDATE ledger SET {change}")
    with pytest.raises(StoreRefused, match=r"damaged.*ledger row"):
        commit(store, write(booking()))
    reader = Reader(path)
    with pytest.raises(DamagedRow):
        account_of(reader.execute, "session-1", 10)
    reader.close()


@pytest.mark.parametrize("change", ["origin = 'x'", "confidence = 'x'", "confidence = 'proven'"])
def test_ledger_row_without_a_why_is_refused_once_it_has_one(store: Store, change: str) -> None:
    """Columns that came later count where something stands in them."""
    commit(store, write(booking()))
    store._db.execute(f"UPDATE ledger SET {change}")
    with pytest.raises(DamagedRow):
        store._tables.rows_after("session-1", 0, 9)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"system": 7}', "[" * 5_000, "\x00"])
def test_session_whose_shape_is_damaged_is_read_without_it(store: Store, path: Path, text: str) -> None:
    commit(store, write(booking()))
    store._db.execute("UPDATE session_state SET shape = ?, confidence = 'sure'", (text,))
    reader = Reader(path)
    session = reader.tables.session("session-1")
    assert session is not None and (session.shape, session.why) == (None, Why())
    reader.close()


def test_session_comes_back_with_all_that_is_known_of_it(store: Store) -> None:
    shape = Shape(system="l1 l2", tools="t1", opening="o")
    why = Why(reason="the client named it", origin="header x-session-id", confidence="certain")
    named = naming("child", header_name="x-session-id", header_session_id="v", parent="mother", shape=shape, why=why)
    commit(store, write(Booking(naming=named, row=row(1, "child"), epoch=0, seen=9)))
    session = store._tables.session("child")
    assert session is not None
    assert (session.shape, session.why, session.parent_session_id) == (replace(shape, is_confirmed=True), why, "mother")


def test_snapshot_comes_back_as_it_was_written(store: Store) -> None:
    body = snapshot_write(bust_rate_ema=0.1, warmup_state='{"a":1}', last_known_input=2**62)
    commit(store, write(claim()), write(body))
    reply = commit(store, write(claim(), 3)).replies[0][1]
    assert reply.snapshot == body.snapshot


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_index_pages_give_every_key_once_newest_first(store: Store, limit: int) -> None:
    commit(store, *(write(booking(number, f"s-{number}")) for number in range(6)))
    values: list[str] = []
    before = 2**62
    while before != -1:
        page = store.keys_before(before, limit)
        values += [entry.value for entry in page.entries]
        before = page.before
    assert values == [f"chain-s-{number}-{number}" for number in reversed(range(6))]


# -- reading beside it ---------------------------------------------------------------------------------------------


def test_reader_sees_what_is_committed_and_holds_nobody_up(store: Store, path: Path) -> None:
    for number in range(3):
        commit(store, write(booking(number)))
    reader = Reader(path)
    rows = reader.execute("SELECT event_id FROM ledger")
    next(rows)
    commit(store, write(booking(3)))  # with the read still open
    assert len(list(rows)) == 2, "an open read sees one moment"
    assert len(list(reader.execute("SELECT event_id FROM ledger"))) == 4
    reader.close()


def test_reader_can_not_write(store: Store, path: Path) -> None:
    reader = Reader(path)
    with pytest.raises(StoreBusy):
        list(reader.execute("DELETE FROM ledger"))
    reader.close()


def test_reader_that_takes_too_long_is_stopped(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "READ_LIMIT_STEPS", 100_000)
    reader = Reader(path)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(StoreBusy, match="too long"):
        list(reader.execute(endless))
    assert list(reader.execute("SELECT 1")) == [(1,)]
    reader.close()


def test_reader_without_database_says_what_to_run(path: Path) -> None:
    with pytest.raises(StoreRefused, match="perdure up"):
        Reader(path)


def test_log_stays_bounded_under_load(store: Store) -> None:
    largest = 0
    for number in range(0, 60_000, 2_000):
        commit(store, *(write(booking(n, f"s-{n % 7}", settled=False)) for n in range(number, number + 2_000)))
        if store.wal_pages() >= CHECKPOINT_PAGES:
            store.checkpoint()
            assert store.wal_pages() == 0
        largest = max(largest, store.wal_bytes())
    assert largest < 4 * CHECKPOINT_PAGES * PAGE_BYTES


# -- SIGKILL -------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from tests.worker.writing import booking, write
from worker.store import Store
path, first = Path(sys.argv[1]), int(sys.argv[2])
store = Store(path)
print("open", flush=True)
for batch in range(first, first + 1_000_000):
    writes = [write(booking(batch * 10 + n, f"s-{n % 3}")) for n in range(1 + batch % 7)]
    store.commit(writes, live=frozenset(), now=1)
    print(" ".join(w.body.row.event_id for w in writes), flush=True)
    if batch % 20 == 0:
        store.checkpoint()
"""


@pytest.mark.crash
@pytest.mark.slow
def test_store_after_sigkills_in_mid_commit_is_whole_and_has_all_that_was_acknowledged(path: Path, tell: Tell) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for kill in range(KILLS):
        acknowledged |= write_until_killed(path, kill * 1_000_000, after_lines=chance.randrange(1, 60))
        check_whole(path)
        missing = acknowledged - events(path)
        assert not missing, f"seed {seed}, kill {kill}: {len(missing)} acknowledged rows are gone"
    assert len(acknowledged) > KILLS
    tell(f"worker killed in mid-commit, seed {seed}: {KILLS} times, {len(acknowledged)} acknowledged rows, all there")


def write_until_killed(path: Path, first: int, after_lines: int) -> set[str]:
    """Run a writer as fast as it can; SIGKILL it after so many commits.  What it said is what it acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", WRITER, str(path), str(first)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"open\n"
        lines = [process.stdout.readline() for _ in range(after_lines)]
    finally:
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.stdout.close()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    # A line without its end was cut by the kill: its commit had returned, but nobody was told.
    said = b"".join(lines) + rest[: rest.rfind(b"\n") + 1]
    return {event.decode() for event in said.split()}


def check_whole(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in images(path):
        shutil.copy(path.with_name(name), copy / name)
    connection = raw(copy / path.name)
    assert pragma(connection, "integrity_check") == "ok"
    assert list(connection.execute("PRAGMA foreign_key_check")) == []
    totals = "SELECT sum(turns), sum(cost_nanousd) FROM"
    ledger = list(connection.execute("SELECT count(*), sum(cost_nanousd) FROM ledger"))
    assert list(connection.execute(f"{totals} session_total")) == ledger
    assert list(connection.execute(f"{totals} day_total")) == ledger
    connection.close()


# -- helpers -------------------------------------------------------------------------------------------------------


def run_killed(script: str) -> None:
    """Run a script that ends in SIGKILL, its own or ours, so that nothing is tidied up behind it."""
    killing = f"{script}\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", killing], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def fill(path: Path) -> None:
    store = Store(path)
    commit(store, *(write(booking(n, f"session-{n}")) for n in range(400)))
    store.close()


def set_clean(path: Path, value: str) -> None:
    connection = raw(path)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'clean'", (value,))
    connection.close()


def damage(path: Path) -> None:
    """Overwrite the first page of the sessions and of their index, which every write and every check reads."""
    connection = raw(path)
    found = connection.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'session_state'")
    roots = [root for (root,) in found]
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close()
    with path.open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * PAGE_BYTES)
            file.write(b"\xff" * 64)
