"""Migrations: each step whole or not at all, the same schema by every way, and nothing lost on it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.worker.writing import naming, row, write
from worker import store as store_module
from worker.protocol import Booking, Usage, Why
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
    """Make or migrate a database as the program of that schema did."""
    before = schema(path)[0] if path.exists() else 0
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_steps", lambda: STEPS[:version])
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL")
        store_module._migrate(connection, path, before)
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


def test_schema_1_lacks_exactly_the_twelve_columns_of_schema_2(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 1, monkeypatch)
    before = columns(path)
    at_schema(path, 2, monkeypatch)
    assert columns(path) - before == TWELVE
    assert not before & TWELVE


def test_schema_reached_step_by_step_equals_a_fresh_one(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in range(1, len(STEPS) + 1):
        at_schema(path, version, monkeypatch)
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
    assert schema(path)[0] == len(STEPS)


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


SCHEMA_2_ROW: dict[str, Any] = {
    "event_id": "event-old-1",
    "session_id": "old",
    "position": 3,
    "kind": "turn",
    "status": "complete",
    "started_at": 1_750_000_000_000,
    "ended_at": 1_750_000_000_001,
    "provider": "anthropic",
    "protocol": "messages",
    "model": "model-1",
    "client": "c",
    "account": "a",
    "boot": "boot-1",
    "reason": "the client named it: header x-session-id",
    "http_status": 200,
    "input_tokens": 10,
    "cache_read_tokens": 200,
    "cache_write_5m_tokens": 30,
    "cache_write_1h_tokens": 0,
    "output_tokens": 4,
    "cost_nanousd": 1_000,
    "price_version": "p",
    "message_count": 5,
    "cap_ceiling": 266_666,
    "layer": 0,
    "user_turn": 1,
    "text_only": 0,
}
"""All columns of that schema but the checksum, in their order."""


def put_rows_of_schema_2(path: Path) -> None:
    open_row = {**SCHEMA_2_ROW, "event_id": "event-old-2", "position": 0, "ended_at": 0, "status": "interrupted"}
    open_row |= dict.fromkeys(("input_tokens", "cache_read_tokens", "output_tokens", "cost_nanousd"))
    open_row |= dict.fromkeys(("cache_write_5m_tokens", "cache_write_1h_tokens"))
    connection = apsw.Connection(str(path))
    connection.execute(
        "INSERT INTO session_state (session_id, first_seen_at, last_seen_at, reason) VALUES ('old', 5, 6, 'because')"
    )
    for old in (SCHEMA_2_ROW, {**open_row, "text_only": 1}):
        checksum = zlib.crc32(json.dumps(list(old.values()), separators=(",", ":")).encode())
        names, marks = ", ".join(old), ", ".join("?" * len(old))
        connection.execute(f"INSERT INTO ledger ({names}, checksum) VALUES ({marks}, ?)", (*old.values(), checksum))
    for kind, value in (("answer", "a2"), ("request", "q3"), ("header", "h")):
        connection.execute(
            "INSERT INTO session_key (kind, name, value, session_id, event_id, at) VALUES (?, 'n', ?, 'old', 'e', 5)",
            (kind, value),
        )
    connection.close()


def test_rows_of_schema_2_keep_their_checksums_and_say_what_they_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_schema(path, 2, monkeypatch)
    put_rows_of_schema_2(path)
    Store(path).close()
    reader = Reader(path)
    settled, opened = (reader.tables.row(f"event-old-{number}") for number in (1, 2))
    assert settled is not None and opened is not None
    assert settled.why == Why(reason="the client named it: header x-session-id")
    assert (settled.cost_nanousd, settled.position, settled.text_only, settled.usage) == (
        1_000,
        3,
        False,
        Usage(input_tokens=10, cache_read_tokens=200, cache_write_5m_tokens=30, output_tokens=4),
    )
    assert (opened.usage, opened.is_settled, opened.text_only) == (None, False, True)
    session = reader.tables.session("old")
    assert session is not None and (session.why, session.shape) == (Why(reason="because"), None)
    reader.close()


def test_answers_of_schema_2_become_the_sessions_history(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 2, monkeypatch)
    put_rows_of_schema_2(path)
    Store(path).close()
    reader = Reader(path)
    assert [reader.tables.histories(value, 9) for value in ("a2", "q3", "h")] == [["old"], [], []]
    assert [holder.session_id for holder in reader.tables.holders(["answer"], "a2")] == ["old"]
    reader.close()


def test_row_of_schema_2_that_is_settled_by_this_version_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 2, monkeypatch)
    put_rows_of_schema_2(path)
    store = Store(path)
    why = Why(reason="repeats a request", origin="content", confidence="proven")
    named = naming("old", why=why)
    body = Booking(naming=named, row=row(1, "old", event_id="event-old-2", why=why), epoch=0, seen=9)
    store.commit([write(body)], live=frozenset(), now=0)
    store.close()
    reader = Reader(path)
    settled = reader.tables.row("event-old-2")
    assert settled is not None and (settled.is_settled, settled.why) == (True, why)
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
