"""The files that a sweep begins with: a store that was closed, one that was killed, and one of the first schema.

One rule: the program itself makes them, as it makes them in the field.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from tests.faults.sweep import LIVE, NOW
from tests.worker.writing import booking, write
from worker import store as store_module
from worker.store import Store


def make_images(images: Path) -> None:
    """A directory for each, with its `perdure.db`."""
    with_turns(new_file(images, "closed")).close()
    # Without its last checkpoint the log stays as a SIGKILL leaves it.
    with_turns(new_file(images, "killed")).abandon()
    of_the_first_schema(new_file(images, "old"))


def new_file(images: Path, name: str) -> Path:
    directory = images / name
    directory.mkdir(parents=True)
    return directory / "perdure.db"


def with_turns(path: Path) -> Store:
    store = Store(path)
    for number in range(12):
        store.commit([write(booking(number, f"session-{number % 3}"), number)], live=LIVE, now=NOW)
    return store


def of_the_first_schema(path: Path) -> None:
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN")
    _name, sql = store_module._steps()[0]
    db.execute(sql)
    store_module._sign(db)
    db.execute("PRAGMA user_version = 1; COMMIT")
    db.execute(
        "INSERT INTO session_state (session_id, first_seen_at, last_seen_at, epoch, client) "
        "VALUES ('old', 5, 6, 7, 'c');"
        "INSERT INTO session_total (session_id, turns, cost_nanousd) VALUES ('old', 3, 4000)"
    )
    db.close()
