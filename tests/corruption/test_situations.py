"""Damage met while perdure runs or is looked at: everybody is told what to run, and nobody by a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec
import pytest

from daemon.state import decode
from tests.worker.peer import Peer, WorkerProcess, short_directory
from tests.worker.writing import booking, claim, write
from worker.protocol import Command, IndexRequest, Snapshot
from worker.records import account_of
from worker.runtime import EXIT_CONFIGURATION
from worker.store import Reader, Store, StoreRefused
from worker.tables import SESSION_COLUMNS, DamagedRow, session_of

PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
REMEDY: Final = "perdure restore FILE"
BAD_TEXT: Final = "CAST(x'fffe' AS TEXT)"


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made


def run_sql(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    list(connection.execute(sql))
    connection.close()


def test_worker_that_reads_a_damaged_row_while_it_runs_ends_with_the_command(directory: Path) -> None:
    with WorkerProcess(directory) as worker, Peer(worker.address) as peer:
        peer.write(Command.END, booking(), 1)
        run_sql(directory / "perdure.db", "UPDATE ledger SET cost_nanousd = 1")
        peer.send(Command.CLAIM, claim(), 2)
        status, said = worker.end()
    assert (status, said.splitlines()[-1].count(REMEDY)) == (EXIT_CONFIGURATION, 1), said
    assert "Traceback" not in said


def test_worker_that_reads_a_key_that_is_no_text_ends_with_the_command(directory: Path) -> None:
    with WorkerProcess(directory) as worker, Peer(worker.address) as peer:
        peer.write(Command.END, booking(), 1)
        run_sql(directory / "perdure.db", f"UPDATE session_key SET value = {BAD_TEXT}")
        peer.send(Command.INDEX, IndexRequest())
        status, said = worker.end()
    assert (status, said.splitlines()[-1].count(REMEDY)) == (EXIT_CONFIGURATION, 1), said


def test_command_line_that_meets_a_damaged_row_says_the_command(directory: Path) -> None:
    store = Store(directory / "perdure.db")
    store.commit([write(booking())], live=frozenset(), now=1)
    store.close()
    run_sql(directory / "perdure.db", "UPDATE ledger SET cost_nanousd = 1")
    environ = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory)}
    for arguments in (["sessions", "--json"], ["show", "session-1"]):
        done = subprocess.run([PERDURE, *arguments], env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == EXIT_CONFIGURATION
        assert len(done.stderr.splitlines()) == 1 and REMEDY in done.stderr


@pytest.mark.parametrize("fact", ["incarnation", "hash_key"])
def test_store_whose_facts_are_no_texts_is_refused_with_the_command(directory: Path, fact: str) -> None:
    path = directory / "perdure.db"
    Store(path).close()
    run_sql(path, f"UPDATE meta SET value = {BAD_TEXT} WHERE name = '{fact}'")
    with pytest.raises(StoreRefused, match=REMEDY):
        Store(path)


def test_store_whose_log_of_corrections_can_not_be_read_is_refused_with_the_command(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large to be checked at its start: the worker's first question finds it."""
    path = directory / "perdure.db"
    Store(path).close()
    connection = apsw.Connection(str(path))
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'session_change'")
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4_096)
        file.write(b"\xff")
    monkeypatch.setattr("worker.store.CHECK_BYTES_MAX", 0)
    with pytest.raises(StoreRefused, match=REMEDY):
        Store(path)


def test_alias_of_a_session_that_is_not_there_is_damage_and_not_a_traceback(directory: Path) -> None:
    path = directory / "perdure.db"
    Store(path).close()
    run_sql(path, "PRAGMA foreign_keys = OFF; INSERT INTO session_alias VALUES ('former', 'nobody')")
    reader = Reader(path)
    with pytest.raises(DamagedRow, match=r"'nobody'.*is not there"):
        account_of(reader.execute, "former", 10)
    reader.close()


@pytest.mark.parametrize("column", ["epoch", "last_position"])
def test_fence_of_another_type_is_a_damaged_row(column: str) -> None:
    with pytest.raises(DamagedRow, match="session-1"):
        session_of(values_with(column, "text"))


@pytest.mark.parametrize("column", ["generation", "snapshot_position", "last_layer", "bust_rate_ema"])
def test_snapshot_of_another_type_travels_as_one_that_nobody_believes(column: str) -> None:
    """As it is, it would make the frame one that its receiver refuses, again and again."""
    snapshot = session_of(values_with(column, "text")).snapshot
    assert snapshot is not None
    assert msgspec.convert(msgspec.to_builtins(snapshot), Snapshot) == snapshot
    restored = decode(snapshot)
    assert (restored.gradient, restored.warming) == (None, None)


def values_with(column: str, value: object) -> tuple[Any, ...]:
    """A session's columns; in one of them stands what its table allows nobody to write."""
    sound: dict[str, Any] = dict.fromkeys(SESSION_COLUMNS, 0)
    sound |= {"session_id": "session-1", "shape": None, "reason": "", "origin": "", "confidence": ""}
    sound |= {"warm": "", "generation": 1, "bust_rate_ema": 0.5, "inter_bust_interval_ema": 1.0}
    sound |= {"resolved_conversation_ttl": b"5m", "warmup_state": b"{}"}
    return tuple({**sound, column: value}.values())
