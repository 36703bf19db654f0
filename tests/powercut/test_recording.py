"""The recording file system beside the real one: the same files, and syncs of the directory where there are some."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from tests.powercut import workload
from tests.powercut.campaign import scratch_folder
from tests.powercut.images import Deleted, DirectorySynced, Disk, Image, Truncated, Written
from tests.powercut.recording import SHARED_MEMORY, recording
from tests.powercut.workload import DATABASE, everyday, migrating, small
from worker.store import Store

LOG_HEADER_BYTES = 32
SEEDS = range(3)


def files_of(folder: Path) -> Image:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(SHARED_MEMORY)}


def replayed(run: workload.Run) -> Image:
    """The folder if all that was done came to the disk."""
    disk = Disk(run.before)
    for operation in run.operations:
        disk.apply(operation)
    return disk.image(disk.pending())


@pytest.mark.parametrize("script", [everyday, small, migrating(1, killed=True)], ids=["everyday", "small", "migration"])
def test_recorded_operations_make_the_very_files_that_are_there(script: workload.Script) -> None:
    with scratch_folder() as folder:
        run = script(folder, random.Random(1))
        assert replayed(run) == files_of(folder)


@pytest.mark.parametrize("seed", SEEDS)
def test_everyday_run_writes_over_an_earlier_log_and_cuts_it_and_deletes_it(seed: int) -> None:
    """Without these the cuts would show nothing of them."""
    with scratch_folder() as folder:
        run = everyday(folder, random.Random(seed))
    headers = [each.number for each in run.operations if isinstance(each, Written) and _is_log_header(each)]
    assert max(map(headers.count, headers)) >= 2, "no log was begun anew over an older one"
    assert any(isinstance(each, Truncated) and each.size == 0 for each in run.operations)
    assert Deleted(f"{DATABASE}-wal") in run.operations


def _is_log_header(written: Written) -> bool:
    return written.offset == 0 and len(written.data) == LOG_HEADER_BYTES


def test_directory_is_noted_as_synced_as_often_as_the_unix_file_system_opens_it_to_sync() -> None:
    with scratch_folder() as folder, _directories_opened() as opened, recording(folder) as recorded:
        store = Store(folder / DATABASE)
        workload.commit(store, [], now=1)
        store.close()
        Store(folder / DATABASE).close()
        deleting = apsw.Connection(str(folder / "other.db"))
        deleting.execute("PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; CREATE TABLE t (x)")
        deleting.close()
    assert recorded.operations.count(DirectorySynced()) == len(opened)
    assert len({name.rpartition("-")[2] for name in opened}) == 2, f"not both journal and log in {opened}"


@contextmanager
def _directories_opened() -> Iterator[list[str]]:
    """The files for whose sake SQLite opens their directory: it does so only to sync it."""
    unix, opened = apsw.VFS("asking", "unix"), list[str]()
    original = unix.xGetSystemCall("openDirectory")
    assert original is not None
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int))
    call = kind(original)

    def noting(path: bytes, descriptor: object) -> int:
        opened.append(path.decode())
        return int(call(path, descriptor))

    noted = kind(noting)
    assert unix.xSetSystemCall("openDirectory", ctypes.cast(noted, ctypes.c_void_p).value or 0)
    try:
        yield opened
    finally:
        unix.xSetSystemCall("openDirectory", original)
        unix.unregister()


def test_default_file_system_is_as_before_when_the_recording_ends() -> None:
    with scratch_folder() as folder, scratch_folder() as other:
        with recording(folder) as recorded:
            Store(folder / DATABASE).close()
            operations = recorded.position
            Store(other / DATABASE).close()
            assert recorded.position == operations, "another folder is not recorded"
        Store(folder / DATABASE).close()
        assert recorded.position == operations > 0
        assert "recording" not in apsw.vfs_names()
