"""Which worker counts as hung: one that holds its lock and has not shown itself for long, and no other process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import runtime
from worker.health import SILENT_SECONDS, Heart, hung_worker


@pytest.fixture
def held_lock(tmp_path: Path) -> Iterator[Path]:
    lock = tmp_path / "perdure.lock"
    descriptor = runtime.lock_file(lock, "nothing")
    yield lock
    os.close(descriptor)


def test_worker_that_beats_is_well(tmp_path: Path, held_lock: Path) -> None:
    Heart(tmp_path).beat()

    assert hung_worker(tmp_path, held_lock, time.monotonic() + SILENT_SECONDS / 2) is None


def test_worker_that_stopped_beating_has_hung(tmp_path: Path, held_lock: Path) -> None:
    Heart(tmp_path).beat()

    assert hung_worker(tmp_path, held_lock, time.monotonic() + SILENT_SECONDS + 1) == os.getpid()


def test_process_that_does_not_hold_the_lock_is_left_alone(tmp_path: Path) -> None:
    """The worker is dead, and its pid may be anybody's by now."""
    Heart(tmp_path).beat()
    (tmp_path / "perdure.lock").write_text(f"{os.getpid()}\n", "ascii")

    assert hung_worker(tmp_path, tmp_path / "perdure.lock", time.monotonic() + SILENT_SECONDS + 1) is None


def test_worker_that_still_starts_is_left_alone(tmp_path: Path, held_lock: Path) -> None:
    """It holds the lock, checks a large database, and has not begun its loop."""
    assert hung_worker(tmp_path, held_lock, time.monotonic() + SILENT_SECONDS + 1) is None


@pytest.mark.parametrize("text", ["", "12", "x y", "1 2 3"])
def test_beat_that_can_not_be_read_condemns_nobody(tmp_path: Path, held_lock: Path, text: str) -> None:
    (tmp_path / "worker.beat").write_text(text, "ascii")

    assert hung_worker(tmp_path, held_lock, time.monotonic() + SILENT_SECONDS + 1) is None


def test_heart_on_a_full_disk_does_not_stop_the_loop_it_tells_of(tmp_path: Path) -> None:
    (tmp_path / "worker.beat").symlink_to("/dev/full")

    Heart(tmp_path).beat()


def test_heart_beats_in_place_so_that_a_disk_that_fills_up_later_does_not_stop_it(tmp_path: Path) -> None:
    heart = Heart(tmp_path)
    heart.beat()
    before = (tmp_path / "worker.beat").stat()

    heart.beat()

    after = (tmp_path / "worker.beat").stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
