"""A short stretch of simulated years: the file stays bounded, no sum moves; and what it would take to miss either."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.year.__main__ import BEGINS_AT
from tests.year.calendar import Calendar, Loss
from tests.year.traffic import Traffic
from worker import retention
from worker.idle import PIECES_PER_SLICE
from worker.ledger import Sums, day_key, sums_of_day
from worker.protocol import Row
from worker.retention import ROWS_PER_SLICE
from worker.store import WAL_LIMIT_BYTES, StoreRefused
from worker.tables import SqliteTables

DAYS: Final = 150
LEDGER_DAYS: Final = 20
SESSION_DAYS: Final = 40
SEED: Final = 5


def a_stretch(directory: Path, days: int = DAYS, *, grows_old: bool = True) -> Calendar:
    traffic = Traffic(SEED, sessions_per_day=2, turns=2, begins_at=BEGINS_AT)
    path = directory / "perdure.db"
    calendar = Calendar(path, traffic, LEDGER_DAYS, SESSION_DAYS, print, grows_old=grows_old, waits_for_disk=False)
    calendar.run(days)
    return calendar


def test_store_that_grows_old_stays_bounded_and_exact(tmp_path: Path) -> None:
    calendar = a_stretch(tmp_path)
    last = calendar.months[-1]
    assert last.booked > 2 * last.rows, "most of what was booked is gone"
    assert calendar.traffic.made > 2 * last.sessions
    assert max(month.wal_bytes for month in calendar.months) < WAL_LIMIT_BYTES
    assert sum(month.slices for month in calendar.months) > DAYS


def test_store_in_which_nothing_grows_old_is_seen_to_grow(tmp_path: Path) -> None:
    with pytest.raises(Loss, match=r"month \d: [\d,]+ bytes"):
        a_stretch(tmp_path, grows_old=False)


def test_days_that_were_not_kept_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of rows that went are no part of what a backup adds up then."""
    monkeypatch.setattr(SqliteTables, "add_to_rolled_day", lambda *_: None)
    with pytest.raises(StoreRefused, match="the sums of its days are not those of its rows"):
        a_stretch(tmp_path, 60)


def test_sum_that_moves_when_its_rows_go_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roll = retention.roll_rows

    def and_forget(tables: SqliteTables, session_id: str, rows: list[Row]) -> None:
        roll(tables, session_id, rows)
        for row in rows[:1]:
            tables.add_to_day(day_key(row), Sums().minus(sums_of_day(row)))

    monkeypatch.setattr(retention, "roll_rows", and_forget)
    with pytest.raises(Loss, match="days are not those booked"):
        a_stretch(tmp_path, 60)


def test_slices_are_of_a_hundred_things() -> None:
    """What the figures of a slice's length were measured with."""
    assert (ROWS_PER_SLICE, PIECES_PER_SLICE) == (100, 100)
