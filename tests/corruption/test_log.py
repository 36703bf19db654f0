"""When a log is broken in its middle, and when it only ends as a kill or a power cut ends it.

One rule: what the writer and the disk may rightly leave is opened, whatever it looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.corruption.damage import FRAME_BYTES, LOG_HEADER_BYTES
from tests.worker.test_backup import leave_unclean
from tests.worker.writing import booking, write
from worker.store import Reader, Store, StoreRefused

COMMITS: Final = 5
"""After the one that notes that the stop will be unclean."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "perdure.db"


def make_killed(path: Path) -> list[int]:
    """A database with several commits in its log; gives the frame after each commit."""
    Store(path).close()
    store = Store(path)
    ends = [frames_of(path)]
    for number in range(COMMITS):
        store.commit([write(booking(number, f"session-{number}"))], live=frozenset(), now=1)
        ends.append(frames_of(path))
    leave_unclean(store, path)
    return ends


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def frames_of(path: Path) -> int:
    return (log_of(path).stat().st_size - LOG_HEADER_BYTES) // FRAME_BYTES


def change(path: Path, work: Callable[[bytearray], None]) -> None:
    content = bytearray(log_of(path).read_bytes())
    work(content)
    log_of(path).write_bytes(content)
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)


def frame(number: int) -> slice:
    start = LOG_HEADER_BYTES + number * FRAME_BYTES
    return slice(start, start + FRAME_BYTES)


def rows(path: Path) -> int:
    Store(path).close()
    reader = Reader(path)
    try:
        return int(next(iter(reader.execute("SELECT count(*) FROM ledger")))[0])
    finally:
        reader.close()


def test_log_of_a_killed_worker_opens_with_all_its_commits(path: Path) -> None:
    make_killed(path)
    assert rows(path) == COMMITS


@pytest.mark.parametrize("commit", range(COMMITS))
def test_log_broken_before_its_last_commit_is_refused_untouched(path: Path, commit: int) -> None:
    ends = make_killed(path)

    def flip(content: bytearray) -> None:
        content[frame(ends[commit]).start - 900] ^= 4

    change(path, flip)
    before = path.read_bytes(), log_of(path).read_bytes()
    with pytest.raises(StoreRefused, match=r"damaged .its log is broken after frame \d+.*perdure restore FILE"):
        Store(path)
    assert (path.read_bytes(), log_of(path).read_bytes()) == before


def test_log_whose_last_commit_lacks_any_frame_or_its_end_is_what_a_power_cut_leaves(path: Path) -> None:
    ends = make_killed(path)
    whole = path.read_bytes(), log_of(path).read_bytes()
    assert ends[-1] - ends[-2] > 3
    for lost in range(ends[-2], ends[-1]):
        for cut in (partial(zero, lost), partial(truncate, lost)):
            path.write_bytes(whole[0])
            log_of(path).write_bytes(whole[1])
            change(path, cut)
            assert rows(path) == COMMITS - 1


def zero(number: int, content: bytearray) -> None:
    """The others reached the disk before it."""
    content[frame(number)] = bytes(FRAME_BYTES)


def truncate(number: int, content: bytearray) -> None:
    del content[frame(number).start + 100 :]


def test_log_that_was_begun_anew_before_the_frames_of_its_former_use_opens(path: Path) -> None:
    Store(path).close()
    store = Store(path)
    for number in range(COMMITS):
        store.commit([write(booking(number, f"session-{number}"))], live=frozenset(), now=1)
    used = frames_of(path)
    store.checkpoint()
    store.commit([write(booking(9, "session-9"))], live=frozenset(), now=1)
    assert frames_of(path) == used, "it was overwritten from its beginning"
    leave_unclean(store, path)
    assert rows(path) == COMMITS + 1


@pytest.mark.parametrize("content", [b"", b"\x00" * 5, b"\xff" * 64, bytes(9_000)], ids=["none", "few", "ff", "zeros"])
def test_log_of_nothing_is_none(path: Path, content: bytes) -> None:
    Store(path).close()
    log_of(path).write_bytes(content)
    assert rows(path) == 0


def test_bit_flipped_in_the_header_of_a_log_hides_no_commit(path: Path) -> None:
    """SQLite takes nothing of such a log, as of one that a power cut tore."""
    make_killed(path)
    whole = path.read_bytes(), log_of(path).read_bytes()
    unseen = []
    for bit in range(8 * LOG_HEADER_BYTES):
        path.write_bytes(whole[0])
        log_of(path).write_bytes(whole[1])
        change(path, lambda content, bit=bit: _flip(content, bit))  # type: ignore[misc]
        try:
            if rows(path) != COMMITS:
                unseen.append(bit)
        except StoreRefused:
            pass
    assert unseen == []


def _flip(content: bytearray, bit: int) -> None:
    content[bit // 8] ^= 1 << bit % 8
