"""A database of every earlier schema, with what its program had written: opened by this one, with a copy kept; and a
newer one, left as it is.

One rule: what is compared is the same before and after: who there is, what names them, every sum and every row.

Theory.  The tables are made by the steps that had landed then, and filled by the statements of then: each column by
name, those alone that the schema has.  So a step that would lose or change something has something to lose.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from tests.worker.test_backup import images, quiet, whole
from tests.worker.test_migrations import SCHEMA_2_ROW, STEPS, at_schema
from worker import store as store_module
from worker.backup import verify
from worker.store import Reader, Store, StoreRefused
from worker.stored import Amendment

SCHEMAS: Final = range(1, len(STEPS))
SESSIONS: Final = 5
ROWS_EACH: Final = 4
SUMS: Final = {
    "turns": ROWS_EACH,
    "interrupted": 1,
    "input_tokens": 10 * (ROWS_EACH - 1),
    "cache_read_tokens": 200 * (ROWS_EACH - 1),
    "cache_write_tokens": 30 * (ROWS_EACH - 1),
    "output_tokens": 4 * (ROWS_EACH - 1),
    "cost_nanousd": 1_000 * (ROWS_EACH - 1),
    "priced": ROWS_EACH - 1,
    "unpriced": 1,
}
"""Of a session whose last row is open."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "perdure.db"


def put(db: apsw.Connection, table: str, **values: Any) -> None:
    """A row of those of these columns that the table has."""
    there = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}
    known = {name: value for name, value in values.items() if name in there}
    if there:
        names, marks = ", ".join(known), ", ".join("?" * len(known))
        db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(known.values()))


def fill(path: Path) -> None:
    """What a worker of that schema would have written of five sessions, one of them another's sub-agent."""
    db = apsw.Connection(str(path))
    for number in range(SESSIONS):
        put_session(db, f"s{number}", parent="s0" if number == 1 else None)
    day = {
        "day": "2025-06-15",
        "kind": "turn",
        "provider": "anthropic",
        "model": "model-1",
        "client": "c",
        "account": "a",
    }
    rolled = dict.fromkeys(SUMS, 7)
    both = {name: SESSIONS * figure + (rolled[name] if has_rolled(db) else 0) for name, figure in SUMS.items()}
    put(db, "day_total", **day, **both)
    put(db, "day_rolled", **day, **rolled)
    db.close()


def has_rolled(db: apsw.Connection) -> bool:
    return bool(list(db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'session_rolled'")))


def put_session(db: apsw.Connection, session_id: str, *, parent: str | None) -> None:
    put(
        db,
        "session_state",
        session_id=session_id,
        parent_session_id=parent,
        client="c",
        account="a",
        model="model-1",
        message_count=9,
        first_seen_at=1_750_000_000_000,
        last_seen_at=1_750_000_000_003,
        chain_length=8,
        epoch=4,
        owner="boot-1",
        last_position=ROWS_EACH - 1,
        generation=2,
        snapshot_position=2,
        reason="the client named it: header x-session-id",
        fingerprint=f"answer-{session_id}",
        header_name="x-session-id",
        header_session_id=f"name-{session_id}",
        resolved_conversation_ttl="1h",
        warmup_state="{}",
        dynamic_context_cap=150_000,
        last_known_input=240,
        last_turn_at=1_750_000_000_003,
    )
    for number in range(1, ROWS_EACH + 1):
        put_row(db, session_id, number)
    is_first = session_id == "s0"
    rolled = dict.fromkeys(SUMS, 7) if is_first and has_rolled(db) else dict.fromkeys(SUMS, 0)
    put(db, "session_total", session_id=session_id, **{name: SUMS[name] + rolled[name] for name in SUMS})
    if any(rolled.values()):
        put(db, "session_rolled", session_id=session_id, **rolled)
    for kind, name, value in (("header", "x-session-id", "name"), ("answer", "", "answer"), ("request", "", "asked")):
        put(
            db,
            "session_key",
            kind=kind,
            name=name,
            value=f"{value}-{session_id}",
            session_id=session_id,
            event_id="e",
            at=5,
        )
    put(db, "session_alias", alias=f"former-{session_id}", session_id=session_id)
    for value in ("answer", "earlier"):
        put(db, "session_history", value=f"{value}-{session_id}", session_id=session_id, event_id="e")
    put(db, "session_hint", session_id=session_id, name="x-chat", value="v", turns=3)


def put_row(db: apsw.Connection, session_id: str, number: int) -> None:
    row = {**SCHEMA_2_ROW, "event_id": f"event-{session_id}-{number}", "session_id": session_id, "position": number}
    if number == ROWS_EACH:
        tokens = [name for name in row if name.endswith("_tokens")]
        row |= {"position": 0, "ended_at": 0, "status": "interrupted", **dict.fromkeys((*tokens, "cost_nanousd"))}
    checksum = zlib.crc32(json.dumps(list(row.values()), separators=(",", ":")).encode())
    put(db, "ledger", **row, checksum=checksum)


def facts(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that must be as it was: the columns of the first schema, those of the second where it has them, and what
    stands in every table that only counts or names."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    found = {}
    for table in ("session_state", "ledger", "session_total", "day_total", "session_rolled", "day_rolled", *NAMES):
        if table in there:
            columns = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
            found[table] = [tuple(columns), *sorted(db.execute(f"SELECT * FROM {table}"), key=str)]
    found["meta"] = sorted(db.execute("SELECT name, value FROM meta WHERE name IN ('incarnation', 'hash_key')"))
    db.close()
    return found


NAMES: Final = ("session_key", "session_alias", "session_history", "session_hint", "learned_header")


def assert_kept(before: dict[str, list[tuple[Any, ...]]], after: dict[str, list[tuple[Any, ...]]]) -> None:
    for table, (columns, *rows) in before.items():
        if table == "meta":
            assert after[table] == [columns, *rows]
            continue
        now, *found = after[table]
        places = [now.index(name) for name in columns]
        assert sorted((tuple(row[place] for place in places) for row in found), key=str) == sorted(rows, key=str), table


@pytest.mark.parametrize("schema", SCHEMAS)
def test_database_of_an_earlier_schema_opens_as_it_was_with_a_copy_of_it(
    path: Path, schema: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_schema(path, schema, monkeypatch)
    fill(path)
    before = facts(path)
    assert len(before["session_state"]) == SESSIONS + 1
    turns = verify(path, whole, quiet).turns

    store = Store(path)
    assert store.schema == len(STEPS)
    sessions = [store._tables.session(f"s{number}") for number in range(SESSIONS)]
    store.close()

    assert_kept(before, facts(path))
    assert all(session is not None and session.epoch == 4 for session in sessions)
    assert [session.parent_session_id for session in sessions if session] == [None, "s0", None, None, None]
    done = verify(path, whole, quiet)
    assert (done.turns, done.sessions, done.rows) == (turns, SESSIONS, SESSIONS * ROWS_EACH)
    copy = path.with_name(f"perdure.db.schema-{schema}")
    assert facts(copy) == before and verify(copy, whole, quiet).schema == schema


@pytest.mark.parametrize("schema", SCHEMAS)
def test_copy_of_an_earlier_schema_is_taken_again_when_the_store_is_another_by_then(
    path: Path, schema: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upgraded, gone back, used, and upgraded again: the copy of then would miss what was stored in between."""
    at_schema(path, schema, monkeypatch)
    fill(path)
    former = path.read_bytes()
    Store(path).close()
    for left in path.parent.glob("perdure.db*"):
        if "schema" not in left.name:
            left.unlink()
    path.write_bytes(former)
    db = apsw.Connection(str(path))
    put_session(db, "since", parent=None)
    db.execute("UPDATE day_total SET " + ", ".join(f"{name} = {name} + {figure}" for name, figure in SUMS.items()))
    db.close()
    before = facts(path)
    Store(path).close()
    assert facts(path.with_name(f"perdure.db.schema-{schema}")) == before


def test_migration_that_is_tried_again_does_not_copy_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies in its migration is started again and again: each copy of a gigabyte would take its time."""
    at_schema(path, 1, monkeypatch)
    fill(path)
    copies: list[Path] = []
    copy = store_module._copy

    def counting(db: apsw.Connection, target: Path, told: Callable[[float], None]) -> None:
        copies.append(target)
        copy(db, target, told)

    monkeypatch.setattr(store_module, "_copy", counting)
    broken = [*STEPS[:1], (STEPS[1][0], "SELECT no_such_column FROM meta")]
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "_steps", lambda: broken)
            with pytest.raises(StoreRefused):
                Store(path)
    assert len(copies) == 1


def test_log_of_corrections_of_schema_3_is_told_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_schema(path, 3, monkeypatch)
    db = apsw.Connection(str(path))
    put(
        db,
        "session_change",
        id=1,
        request="r",
        at=5,
        verb="merge",
        session_id="a",
        other_id="b",
        moved=2,
        stayed=0,
        before="[]",
    )
    db.close()
    Store(path).close()
    reader = Reader(path)
    change = reader.tables.amendment(1)
    reader.close()
    assert isinstance(change, Amendment) and (change.verb, change.moved, change.before) == ("merge", 2, [])
    assert (change.session_id, change.other_id, change.at) == ("a", "b", 5)


@pytest.mark.parametrize("newer", [len(STEPS) + 1, 99])
def test_database_of_a_newer_schema_is_refused_and_not_one_byte_moves(path: Path, newer: int) -> None:
    Store(path).close()
    fill(path)
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA user_version = {newer}")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    before = images(path.parent)
    for open_it in (Store, Reader):
        with pytest.raises(StoreRefused, match="newer perdure"):
            open_it(path)
    assert images(path.parent) == before
