"""A state directory on a real file system that is full, or read-only, for a while."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from daemon.app import FLUSH_SECONDS
from daemon.spill import Write
from daemon.spillfiles import SpillFiles
from tests.conftest import Tell
from tests.crash.checker import answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt, Conversation
from tests.crash.crowd import NAMED, Crowd
from tests.crash.test_left_behind import say
from tests.faults.outdoors import PACE_SECONDS, SEED, assert_all_stored
from tests.processes import DEADLINE_SECONDS, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.worker.writing import booking
from worker.protocol import Command

SIZE_BYTES: Final = 4 * 1024 * 1024
"""Room for the store and a short log."""
PIECE_BYTES: Final = 4_096
"""A page of a tmpfs, its smallest piece."""

pytestmark = [
    pytest.mark.crash,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system"),
]


class SmallDisk:
    """A tmpfs of its own, to be filled and made read-only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """To the last page."""
        with self._filler.open("ab", buffering=0) as file:
            while os.statvfs(self.path).f_bavail:
                file.write(b"x" * PIECE_BYTES)

    def spare(self, size: int) -> None:
        """Leave so many bytes of a disk that is full."""
        os.truncate(self._filler, self._filler.stat().st_size - size)

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as made:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=700", "perdure-test", made], capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            yield SmallDisk(Path(made))
        finally:
            subprocess.run(["umount", "--lazy", made], check=True)


@contextlib.contextmanager
def gateway_on(disk: SmallDisk, provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, tick_seconds=0.3, state_dir=disk.path) as gateway:
        gateway.database = disk.path / "perdure.db"
        yield gateway


def test_file_system_that_fills_up_costs_no_answer_and_all_is_stored_once_there_is_space(
    disk: SmallDisk, tell: Tell
) -> None:
    with (
        ScriptedProvider() as provider,
        gateway_on(disk, provider) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(10)
        disk.fill()
        gateway.wait_status("degraded")
        crowd.wait_for_attempts(30)
        # A worker that starts on a full disk waits for space, as one that runs does.
        gateway.kill("worker")
        start = gateway.log_size("worker")
        disk.fill()
        gateway.launch("worker")
        eventually(lambda: "can not be opened now" in gateway.log("worker", start), what=gateway.logs)
        crowd.wait_for_attempts(30)
        assert gateway.is_running("worker") and (gateway.readyz() or {})["status"] == "degraded"
        disk.free()
        gateway.wait_ready()
        crowd.silence()
        assert_all_stored(gateway, provider, crowd)
        tell(f"a file system of {SIZE_BYTES >> 20} MB, full for a while: {len(crowd.attempts)} turns, all stored once")


def test_daemon_told_to_stop_while_the_worker_can_not_write_keeps_its_writes_elsewhere(disk: SmallDisk) -> None:
    with ScriptedProvider() as provider, gateway_on(disk, provider) as gateway:
        gateway.start()
        talk = Conversation("messages", "on-a-read-only-disk")
        attempts: list[Attempt] = []
        say(gateway, [talk], attempts)
        gateway.kill("worker")
        disk.remount("ro")
        start = gateway.log_size("worker")
        gateway.launch("worker")
        eventually(lambda: "trying again" in gateway.log("worker", start), what=gateway.logs)
        for _ in range(2):
            say(gateway, [talk], attempts)
        assert gateway.stop("daemon", FLUSH_SECONDS + DEADLINE_SECONDS) == 0
        [path] = (gateway.directory / "run" / "spill").iterdir()
        disk.remount("rw")
        gateway.start()
        eventually(lambda: not path.exists(), what=gateway.logs)
        say(gateway, [talk], attempts)
        found = settled_findings(gateway, attempts, answers_by_mark(provider.answers))
        found.add(check_totals(gateway))
        assert found.are_good and len(gateway.rows()) == len(attempts), str(found)


def test_writes_that_do_not_fit_on_a_full_file_system_are_kept_in_the_next_place(
    disk: SmallDisk, tmp_path: Path
) -> None:
    places = [disk.path / "spill", tmp_path / "run" / "spill"]
    places[0].mkdir(mode=0o700)
    disk.fill()
    disk.spare(PIECE_BYTES)
    writes = [Write(Command.END, booking(number)) for number in range(100)]
    path = SpillFiles(places, logging.getLogger("daemon")).keep(writes)
    assert path.parent == places[1]
    assert not [*places[0].iterdir()], "what did not fit is taken back"
    disk.free()
    assert SpillFiles(places, logging.getLogger("daemon")).keep(writes).parent == places[0]


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_worker_with_its_first_database_to_make_waits_for_a_file_system_that_takes_none(
    disk: SmallDisk, fault: str
) -> None:
    with ScriptedProvider() as provider, gateway_on(disk, provider) as gateway:
        if fault == "full":
            disk.fill()
        else:
            disk.remount("ro")
        gateway.launch("worker")
        eventually(lambda: "trying again" in gateway.log("worker"), what=gateway.logs)
        assert gateway.is_running("worker")
        if fault == "full":
            disk.free()
        else:
            disk.remount("rw")
        gateway.start()


def test_worker_started_while_its_file_system_is_read_only_goes_on_when_it_can_be_written_again(
    disk: SmallDisk,
) -> None:
    with (
        ScriptedProvider() as provider,
        gateway_on(disk, provider) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(20)
        gateway.kill("worker")
        disk.remount("ro")
        start = gateway.log_size("worker")
        gateway.launch("worker")
        eventually(lambda: "trying again" in gateway.log("worker", start), what=gateway.logs)
        crowd.wait_for_attempts(20)
        assert gateway.is_running("worker")
        disk.remount("rw")
        gateway.wait_ready()
        crowd.silence()
        assert_all_stored(gateway, provider, crowd)
