"""What files look like to whoever scrapes: sizes and the last backup, told cheaply and whatever is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.copies import NOTE, LastBackup, note
from worker.measuring import Files
from worker.metrics import WorkerMetrics, families_of

AT_MS = 1_760_000_000_500


def gauges(files: Files, metrics: WorkerMetrics) -> dict[str, float]:
    files.measure(metrics)
    return {family.name: family.samples[0].value for family in families_of(metrics.registry) if family.type == "gauge"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "perdure.db"
    path.write_bytes(b"x" * 12_345)
    return path


def backed_up(state: Path, at: int = AT_MS) -> None:
    note(state, LastBackup(at=at, path="/b/x.db", bytes=1, turns=1))


def test_sizes_are_those_of_the_file_and_its_file_system(database: Path) -> None:
    found = gauges(Files(database), WorkerMetrics())
    assert found["perdure_database_bytes"] == 12_345
    assert 0 < found["perdure_disk_free_bytes"] <= found["perdure_disk_bytes"]


def test_last_backup_follows_its_note(database: Path) -> None:
    files, metrics = Files(database), WorkerMetrics()
    assert gauges(files, metrics)["perdure_last_backup_timestamp_seconds"] == 0
    backed_up(database.parent)
    assert gauges(files, metrics)["perdure_last_backup_timestamp_seconds"] == AT_MS / 1000
    backed_up(database.parent, AT_MS + 60_000)
    assert gauges(files, metrics)["perdure_last_backup_timestamp_seconds"] == AT_MS / 1000 + 60
    (database.parent / NOTE).unlink()
    assert gauges(files, metrics)["perdure_last_backup_timestamp_seconds"] == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"at": "x"}', '{"at": 1}', "\0" * 100_000, "[" * 70_000])
def test_note_that_says_nothing_is_no_backup(database: Path, text: str) -> None:
    (database.parent / NOTE).write_text(text)
    assert gauges(Files(database), WorkerMetrics())["perdure_last_backup_timestamp_seconds"] == 0


def test_note_is_read_only_when_it_is_another_one(database: Path) -> None:
    backed_up(database.parent)
    files, metrics = Files(database), WorkerMetrics()
    gauges(files, metrics)
    path = database.parent / NOTE
    before = path.stat()
    # The same file by all that stat tells, with nothing readable in it: whoever opened it would see.
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert gauges(files, metrics)["perdure_last_backup_timestamp_seconds"] == AT_MS / 1000


def test_files_that_are_gone_leave_the_figures_of_before(database: Path) -> None:
    files, metrics = Files(database), WorkerMetrics()
    gauges(files, metrics)
    database.unlink()
    assert gauges(files, metrics)["perdure_database_bytes"] == 12_345
