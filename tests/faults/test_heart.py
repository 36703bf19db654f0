"""The worker's heart beats often enough for a disk whose every fsync takes five seconds."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.faults.faulty import Call, Error, FaultyDisk
from tests.worker.peer import Peer, short_directory
from tests.worker.writing import booking
from worker import server as server_module
from worker.health import SILENT_SECONDS
from worker.protocol import Command
from worker.server import Server
from worker.store import Store

SLOW_SYNC_SECONDS: Final = 5.0
WRITES: Final = 40
DEADLINE_SECONDS: Final = 30.0


class CountingDisk(FaultyDisk):
    """Counts the fsyncs of a running loop, and those since its last beat."""

    def __init__(self) -> None:
        super().__init__(syncing=False)
        self.total = 0
        self.most = 0
        """Without a beat between them."""
        self._since_beat = 0
        self._is_watched = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the loop runs.  A store that is being opened has no heart yet, and one that is closed needs none."""
        self._is_watched = True
        yield
        self._is_watched = False

    def beat(self) -> None:
        self._since_beat = 0

    def _fails(self, call: Call) -> Error | None:
        if call == "xSync" and self._is_watched:
            self.total += 1
            self._since_beat += 1
            self.most = max(self.most, self._since_beat)
        return super()._fails(call)


@pytest.fixture
def disk() -> Iterator[CountingDisk]:
    with contextlib.closing(CountingDisk()) as made:
        yield made


def test_worker_beats_between_any_fsyncs_that_together_would_look_like_a_hang(
    disk: CountingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every turn of the loop is a late one, as on such a disk; and every commit is worth a checkpoint.
    monkeypatch.setattr(server_module, "REST_SECONDS", 0.0)
    monkeypatch.setattr(server_module, "CHECKPOINT_PAGES", 1)
    with short_directory() as directory:
        talk_to_worker(directory, disk)
    assert disk.total > WRITES, "nothing was committed and checkpointed"
    assert disk.most * SLOW_SYNC_SECONDS < SILENT_SECONDS, f"{disk.most} fsyncs without a beat"


def talk_to_worker(directory: Path, disk: CountingDisk) -> None:
    address = f"ipc://{directory}/w.sock"
    made: list[Server] = []
    ready = threading.Event()

    def run() -> None:
        store = Store(directory / "perdure.db")
        log = logging.getLogger("worker")
        made.append(Server(store, address, version="0", boot="boot", log=log, beat=disk.beat))
        with disk.watched():
            ready.set()
            made[0].run()
        store.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(DEADLINE_SECONDS)
        with Peer(address) as peer:
            for number in range(WRITES):
                peer.write(Command.END, booking(number), number + 1)
    finally:
        made[0].stop()
        thread.join(DEADLINE_SECONDS)
