"""Files of writes that outlive their daemon: what is kept, what is read of damaged ones, who reads them."""

from __future__ import annotations

import fcntl
import logging
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.spill import Newer, NotOurs, Write, lines_of, promised, write_of
from daemon.spillfiles import CanNotKeep, SpillFile, SpillFiles, spill_directories
from tests.worker.writing import booking
from worker.protocol import Booking, Command
from worker.settings import Settings

WRITES = [Write(Command.BEGIN if number % 2 else Command.END, booking(number)) for number in range(1, 7)]
FIRST, *LINES = lines_of(WRITES)
WHOLE = b"".join([FIRST, *LINES])


def files_in(*directories: Path) -> SpillFiles:
    return SpillFiles(directories, logging.getLogger("daemon"))


def all_of(file: SpillFile, lines: int = 4) -> list[Write]:
    writes: list[Write] = []
    while not file.at_end:
        writes += file.read(lines)
    return writes


def taken(files: SpillFiles) -> SpillFile:
    file = files.oldest()
    assert file is not None
    return file


def all_in(files: SpillFiles) -> list[Write]:
    file = taken(files)
    try:
        return all_of(file)
    finally:
        file.close()


def put(directory: Path, content: bytes, name: str = "00000001.writes") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_bytes(content)
    return path


# -- lines -----------------------------------------------------------------------------------------------------------


def test_writes_come_back_as_they_were_and_in_their_order() -> None:
    assert promised(FIRST) == len(WRITES)
    assert [write_of(line) for line in LINES] == WRITES


def test_file_torn_at_any_byte_gives_the_writes_before_the_tear_and_is_not_whole(tmp_path: Path) -> None:
    first, *lines = lines_of(WRITES[:3])
    ends = [len(first) + sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    path = put(tmp_path, b"".join([first, *lines]))
    for length in reversed(range(len(first), ends[-1])):
        os.truncate(path, length)
        file = taken(files_in(tmp_path))
        assert all_of(file) == WRITES[: sum(end <= length for end in ends[1:])]
        assert not file.is_whole, "also where it was cut at the end of a line"
        file.close()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), bits=st.integers(1, 255))
def test_a_wrong_byte_costs_the_lines_it_hits_and_never_gives_another_write(at: int, bits: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[at] ^= bits
    first, *lines = bytes(damaged).splitlines(keepends=True)
    found = [write for write in map(write_of, lines) if write is not None]
    assert all(write in WRITES for write in found)
    if at >= len(FIRST):
        assert promised(first) == len(WRITES)
        # Its own line, and the next one if it was the break between them.
        assert len(found) >= len(WRITES) - 2 and found != WRITES


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_write(line: bytes) -> None:
    assert write_of(line) is None
    assert write_of(line + b"\n") is None
    with pytest.raises((NotOurs, Newer)):
        promised(line)


@pytest.mark.parametrize(
    "first", [b"", b"perdure-spill/1\n", b"perdure-spill/1 3", b"perdure-spill/0 3\n", b"perdure-spill/1 -3\n"]
)
def test_first_line_of_another_kind_is_not_ours(first: bytes) -> None:
    with pytest.raises(NotOurs):
        promised(first)


def test_line_of_a_command_that_is_no_row_is_no_write() -> None:
    text = b'SNAPSHOT {"session_id": "s"}'
    assert write_of(b"%08x %s\n" % (zlib.crc32(text), text)) is None


# -- files -----------------------------------------------------------------------------------------------------------


def test_kept_file_is_its_owners_alone_and_is_read_by_one_at_a_time(tmp_path: Path) -> None:
    place = tmp_path / "state" / "spill"
    path = files_in(place).keep(WRITES)
    assert (path.stat().st_mode & 0o777, place.stat().st_mode & 0o777) == (0o600, 0o700)
    files, others = files_in(place), files_in(place)
    file = taken(files)
    assert others.oldest() is None, "two read it"
    assert all_of(file) == WRITES and file.is_whole
    file.close()
    file = taken(others)
    all_of(file)
    others.end(file)
    assert not path.exists()
    assert files.oldest() is None


def test_lock_on_a_file_that_another_daemon_has_ended_meanwhile_reads_nothing(tmp_path: Path) -> None:
    path = files_in(tmp_path / "spill").keep(WRITES)
    files = files_in(tmp_path / "spill")
    with path.open("rb") as late:
        path.unlink()
        assert not files._is_for_us(path, late.fileno())


def test_file_that_is_being_written_is_left_to_its_writer(tmp_path: Path) -> None:
    path = put(tmp_path / "spill", b"")
    files = files_in(tmp_path / "spill")
    assert files.oldest() is None
    with path.open("r+b") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(WHOLE[:200])
        writer.flush()
        assert files.oldest() is None
        writer.write(WHOLE[200:])
    assert all_in(files) == WRITES


def test_oldest_file_is_read_first_whichever_directory_it_is_in(tmp_path: Path) -> None:
    state, run = tmp_path / "state", tmp_path / "run"
    first = files_in(run).keep(WRITES[:2])
    second = files_in(state, run).keep(WRITES[2:4])
    third = files_in(run).keep(WRITES[4:])
    files = files_in(state, run)
    read = []
    for _ in range(3):
        file = taken(files)
        read.append((file.path, all_of(file)))
        files.end(file)
    assert read == [(first, WRITES[:2]), (second, WRITES[2:4]), (third, WRITES[4:])]


def test_directory_that_takes_nothing_is_passed_over_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    path = files_in(tmp_path / "state" / "spill", tmp_path / "run" / "spill").keep(WRITES)
    assert path.parent == tmp_path / "run" / "spill"


def test_no_directory_that_takes_anything_is_said_with_the_reason_of_each(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(CanNotKeep, match=r"state/spill: Not a directory.*; .*open: others can write to it"):
        files_in(tmp_path / "state" / "spill", tmp_path / "open").keep(WRITES)


def test_damaged_file_is_put_aside_and_neither_read_again_nor_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = WHOLE.replace(LINES[2], LINES[2].replace(b"model-1", b"model-2"))
    path = put(tmp_path / "spill", broken)
    files = files_in(tmp_path / "spill")
    file = taken(files)
    assert all_of(file) == WRITES[:2] + WRITES[3:]
    files.end(file)
    aside = path.with_suffix(".damaged")
    assert aside.read_bytes() == broken and not path.exists()
    assert "5 of its 6 writes were stored" in caplog.text
    assert files.oldest() is None
    assert files.keep(WRITES).name == "00000002.writes", "its number stays its own"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"perdure-spill/2 1\nwhatever comes then\n", "written by a newer perdure"),
        (b"#!/bin/sh\necho hello\n", "holds no writes of perdure"),
        (b"x" * 5_000_000, "holds no writes of perdure"),
    ],
)
def test_file_that_is_not_for_us_is_left_as_it_is_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, said: str
) -> None:
    path = put(tmp_path / "spill", content)
    ours = put(tmp_path / "spill", WHOLE, "00000002.writes")
    put(tmp_path / "spill", WHOLE, "notes.txt")
    files = files_in(tmp_path / "spill")
    for _ in range(3):
        file = taken(files)
        assert file.path == ours
        file.close()
    assert path.read_bytes() == content
    assert caplog.text.count(said) == 1


def test_what_is_no_plain_file_of_this_user_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "spill"
    elsewhere = put(tmp_path / "elsewhere", WHOLE)
    place.mkdir()
    (place / "00000001.writes").symlink_to(elsewhere)
    os.mkfifo(place / "00000002.writes")
    (place / "00000003.writes").mkdir()
    if os.geteuid() == 0:
        os.chown(put(place, WHOLE, "00000004.writes"), 4_711, 4_711)
    files = files_in(place)
    assert files.oldest() is None and files.oldest() is None
    assert caplog.text.count("is left alone") == len(list(place.iterdir()))


def test_file_that_can_not_be_removed_is_not_read_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files_in(tmp_path / "spill").keep(WRITES)
    files = files_in(tmp_path / "spill")
    file = taken(files)
    all_of(file)

    def refuse(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    files.end(file)
    assert files.oldest() is None
    assert "can not be removed: Read-only file system" in caplog.text


def test_directories_are_the_own_one_and_then_what_outlives_a_restart_of_the_machine() -> None:
    places = Settings(state_dir="/state", runtime_dir="/run/perdure")
    assert spill_directories(places) == [Path("/state/spill"), Path("/run/perdure/spill")]
    own = Settings(state_dir="/state", runtime_dir="/run/perdure", spill_dir="/own")
    assert spill_directories(own)[0] == Path("/own")


def test_everything_a_row_can_hold_survives(tmp_path: Path) -> None:
    odd = booking(1, "säßion \N{SNOWMAN} \u2028", model="a\nb\r\x00\x1f", client="\u0085 and a line\u2029break")
    assert isinstance(odd, Booking)
    path = files_in(tmp_path / "spill").keep([Write(Command.END, odd)])
    assert path.read_bytes().count(b"\n") == 2
    assert all_in(files_in(tmp_path / "spill")) == [Write(Command.END, odd)]
