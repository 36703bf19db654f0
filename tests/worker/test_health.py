"""Who counts as hung: a worker that holds its lock and has not shown itself for long, a daemon that was called in vain
again and again; and no other process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from worker import runtime
from worker.health import (
    CALLS_MAX,
    SILENT_SECONDS,
    TICK_SECONDS,
    Heart,
    Silences,
    end_hung_daemons,
    has_run_on,
    hung_worker,
    parent_of,
)
from worker.rollcall import CALL_SECONDS, call, room_of, socket_name
from worker.standing import Called


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


def test_time_in_which_the_listener_did_not_run_condemns_nobody() -> None:
    assert has_run_on(100.0, 100.0 + TICK_SECONDS + CALL_SECONDS), "a call of one that hangs takes its time"
    assert not has_run_on(100.0, 100.0 + SILENT_SECONDS), "all were stopped, and the worker goes on a moment later"


def called(pid: int, *, is_heard: bool) -> list[Called]:
    return [Called(instance=f"daemon-{pid}", pid=pid, is_heard=is_heard)]


def test_daemon_that_never_answers_has_hung() -> None:
    silences = Silences()
    found = [silences.hung(called(5, is_heard=False)) for _ in range(CALLS_MAX)]
    assert found == [[]] * (CALLS_MAX - 1) + [called(5, is_heard=False)]


def test_daemon_that_answers_once_in_a_while_is_busy() -> None:
    silences = Silences()
    for _ in range(3):
        for _ in range(CALLS_MAX - 1):
            assert silences.hung(called(5, is_heard=False)) == []
        assert silences.hung(called(5, is_heard=True)) == []


def test_silence_of_a_predecessor_is_not_its_successors() -> None:
    silences = Silences()
    for pid in range(CALLS_MAX):
        assert silences.hung(called(100 + pid, is_heard=False)) == []


def test_daemon_that_was_gone_begins_anew() -> None:
    silences = Silences()
    for _ in range(CALLS_MAX - 1):
        assert silences.hung(called(5, is_heard=False)) == []
    assert silences.hung([]) == []
    assert silences.hung(called(5, is_heard=False)) == []


def test_daemon_whose_process_nobody_knows_is_left_alone() -> None:
    silences = Silences()
    assert [silences.hung(called(0, is_heard=False)) for _ in range(2 * CALLS_MAX)] == [[]] * 2 * CALLS_MAX


def test_parent_of_a_process_is_told_and_of_none_there_is_none() -> None:
    assert parent_of(os.getpid()) == os.getppid()
    assert parent_of(2**22 + 1) is None


LISTENS: Final = (
    "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True);"
    "time.sleep(600)"
)


def test_daemon_that_hangs_under_another_supervisor_is_left_to_it(tmp_path: Path) -> None:
    """Nobody would start it again: this process is its parent, and not the parent of this process."""
    room = room_of(str(tmp_path))
    room.mkdir()
    command = [sys.executable, "-c", LISTENS, str(room / socket_name("daemon-1"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            silences = Silences()
            for _ in range(CALLS_MAX - 1):
                assert silences.hung(called(process.pid, is_heard=False)) == []
            assert parent_of(process.pid) == os.getpid()
            end_hung_daemons(silences, str(tmp_path), logging.getLogger("test"))
            assert process.poll() is None
            (hung,) = silences.hung(call(str(tmp_path), 0.1))
            assert hung.pid == process.pid, "it was condemned, and spared"
        finally:
            process.kill()
