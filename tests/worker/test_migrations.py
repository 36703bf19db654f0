"""Migrations: each step whole or not at all, the same schema by every way, and nothing lost on it."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from worker import store as store_module
from worker.store import Reader, Store, StoreBusy, StoreRefused

TWELVE = {
    "fingerprint",
    "header_session_id",
    "header_name",
    "resolved_conversation_ttl",
    "warmup_state",
    "dynamic_context_cap",
    "bust_rate_ema",
    "inter_bust_interval_ema",
    "last_layer",
    "last_known_input",
    "last_turn_at",
    "last_bust_at",
}
STEPS = store_module._steps()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perdure.db"


def at_schema(path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a database as the program of that schema made it."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_steps", lambda: STEPS[:version])
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL")
        store_module._migrate(connection, path, 0)
        connection.close()


def columns(path: Path) -> set[str]:
    connection = apsw.Connection(str(path))
    found = {name for _, name, *_ in connection.execute("PRAGMA table_info(session_state)")}
    connection.close()
    return found


def schema(path: Path) -> tuple[int, set[tuple[str, ...]], list[tuple[object, ...]]]:
    connection = apsw.Connection(str(path))
    version = next(iter(connection.execute("PRAGMA user_version")))[0]
    objects = {tuple(row) for row in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema")}
    details = [row for (_, name, *_) in sorted(objects, key=str) for row in connection.execute(_DETAILS, (name,))]
    connection.close()
    return version, objects, details


_DETAILS = 'SELECT ?1, name, type, "notnull", dflt_value, pk FROM pragma_table_info(?1)'


def put_old_rows(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(
        "INSERT INTO session_state (session_id, first_seen_at, last_seen_at, epoch, client) "
        "VALUES ('old', 5, 6, 7, 'c');"
        "INSERT INTO session_total (session_id, turns, cost_nanousd) VALUES ('old', 3, 4000);"
        "INSERT INTO session_alias VALUES ('former', 'old')"
    )
    connection.close()


def test_steps_are_numbered_without_a_gap() -> None:
    assert [int(name[:4]) for name, _ in STEPS] == list(range(1, len(STEPS) + 1))


def test_schema_1_lacks_exactly_the_twelve_columns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 1, monkeypatch)
    before = columns(path)
    Store(path).close()
    assert columns(path) - before == TWELVE
    assert not before & TWELVE


def test_schema_reached_step_by_step_equals_a_fresh_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_schema(path, 1, monkeypatch)
    for version in range(2, len(STEPS) + 1):
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "_steps", lambda known=version: STEPS[:known])
            Store(path).close()
    fresh = tmp_path / "fresh.db"
    Store(fresh).close()
    assert schema(path) == schema(fresh)


@pytest.mark.parametrize("failing", range(1, len(STEPS) + 1))
def test_step_that_fails_in_its_middle_leaves_the_version_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    at_schema(path, failing - 1, monkeypatch)
    before = schema(path)
    name, sql = STEPS[failing - 1]
    broken = [*STEPS[: failing - 1], (name, f"{sql}\nINSERT INTO no_such_table VALUES (1);"), *STEPS[failing:]]
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_steps", lambda: broken)
        with pytest.raises(StoreRefused, match="no_such_table"):
            Store(path)
    assert schema(path) == before
    Store(path).close()
    assert schema(path)[0] == len(STEPS)


def test_step_without_space_is_busy_and_goes_through_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 1, monkeypatch)
    name, sql = STEPS[1]
    full = [*STEPS[:1], (name, f"{sql}\nPRAGMA max_page_count = 1; CREATE TABLE t AS SELECT zeroblob(99999) AS x;")]
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_steps", lambda: full)
        with pytest.raises(StoreBusy):
            Store(path)
    assert schema(path)[0] == 1
    Store(path).close()
    assert schema(path)[0] == 2


def test_data_of_schema_1_survives_with_what_a_person_expects(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 1, monkeypatch)
    put_old_rows(path)
    Store(path).close()
    reader = Reader(path)
    session = reader.tables.session("old")
    assert session is not None
    assert (session.epoch, session.client, session.first_seen_at, session.snapshot) == (7, "c", 5, None)
    assert list(reader.execute("SELECT turns, cost_nanousd FROM session_total")) == [(3, 4000)]
    defaults = (
        "SELECT resolved_conversation_ttl, warmup_state, inter_bust_interval_ema, last_bust_at FROM session_state"
    )
    assert list(reader.execute(defaults)) == [("5m", None, -1.0, 0)]
    assert reader.tables.alias("former") == "old"
    reader.close()


def test_copy_of_the_former_schema_is_kept_and_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 1, monkeypatch)
    put_old_rows(path)
    before = schema(path)
    Store(path).close()
    copy = path.with_name("perdure.db.schema-1")
    assert schema(copy) == before
    connection = apsw.Connection(str(copy))
    assert list(connection.execute("SELECT session_id FROM session_state")) == [("old",)]
    connection.close()


def test_copy_that_was_cut_short_is_made_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 1, monkeypatch)
    partial = path.with_name("perdure.db.schema-1.partial")
    partial.write_bytes(b"half a copy")
    Store(path).close()
    assert not partial.exists()
    assert schema(path.with_name("perdure.db.schema-1"))[0] == 1


def test_fresh_database_needs_no_copy(path: Path) -> None:
    Store(path).close()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
