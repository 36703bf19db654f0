"""Checkpoints beside a reader that stays, as a backup does: seldom enough, and made good when it has gone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import apsw
import pytest

from tests.worker.writing import booking, write
from worker.store import CHECKPOINT_PAGES, Store

PAGE_BYTES = 4_096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "perdure.db")
    yield opened
    opened.close()


@pytest.fixture
def reader(store: Store) -> Iterator[apsw.Connection]:
    """It began when nothing was in the log."""
    store.checkpoint()
    opened = apsw.Connection(str(store.path), flags=apsw.SQLITE_OPEN_READONLY)
    list(opened.execute("BEGIN; SELECT count(*) FROM meta"))
    yield opened
    opened.close()


def fill_log(store: Store, numbers: Iterator[int], pages: int) -> None:
    while store.wal_pages() < pages:
        batch = [next(numbers) for _ in range(3)]
        store.commit([write(booking(n, f"s-{n % 99}", settled=False)) for n in batch], live=frozenset(), now=1)


def test_log_that_a_reader_keeps_long_is_not_gone_through_with_every_commit(
    store: Store, reader: apsw.Connection
) -> None:
    numbers = count(1)
    fill_log(store, numbers, CHECKPOINT_PAGES)
    store.checkpoint()
    store.commit([write(booking(next(numbers), "s-1"))], live=frozenset(), now=1)

    assert store.wal_bytes() > CHECKPOINT_PAGES * PAGE_BYTES, "the reader keeps it"
    assert 0 < store.wal_pages() < CHECKPOINT_PAGES // 10


def test_log_begins_anew_once_the_reader_has_gone(store: Store, reader: apsw.Connection) -> None:
    numbers = count(1)
    fill_log(store, numbers, CHECKPOINT_PAGES)
    store.checkpoint()
    reader.close()
    fill_log(store, numbers, 1)
    store.checkpoint()
    before = store.wal_bytes()
    fill_log(store, numbers, CHECKPOINT_PAGES // 2)

    assert store.wal_bytes() <= before, "the log is written from its beginning again"
    assert store.wal_pages() >= CHECKPOINT_PAGES // 2, "and all of it is counted"
