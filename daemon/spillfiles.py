"""Where writes lie that outlived their daemon: files in a directory, each of them read by one daemon at a time.

One rule: only who holds a file's lock reads it, and only its end, or the loss of what can not be read, is decided here;
every other file in the directory is left alone.

Theory of operation.  A file is made under its lock and fsynced, with its directory, before its daemon ends.  The lock
goes with whoever holds it, however it dies, so a file whose lock is free is whole or was never finished, and belongs to
whoever takes the lock.  That one removes it once all of it is stored; a kill before that has the writes sent twice,
which changes nothing (`worker.batch`).  Files are numbered, since the clock may step, and the oldest is read first.

The state directory comes first: it outlives a restart of the machine, which may well be what a daemon was stopped for.
When its disk is full, the runtime directory is usually memory and has room.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from daemon import spill
from daemon.spill import Write
from worker.runtime import Fatal, private_directory
from worker.settings import Settings


class CanNotKeep(Exception):
    """There is no directory that takes a file; the message says why, of each."""


class SpillFiles:
    """The files in these directories, the best to write to first."""

    def __init__(self, directories: Sequence[Path], log: logging.Logger) -> None:
        self._directories = directories
        self._log = log
        self._left_alone: set[Path] = set()
        """What is nothing for us, said once."""

    def keep(self, writes: Sequence[Write]) -> Path:
        """Write a file that is there for good.  Raises CanNotKeep."""
        troubles: list[str] = []
        numbers = [_number(path) for directory in self._directories for path in _names(directory)]
        for directory in self._directories:
            try:
                path = _made(private_directory(directory), max(numbers, default=0) + 1, writes)
                with contextlib.suppress(OSError):
                    _sync(directory.parent)  # Where the directory is new.  It may be one that we may not even read.
                return path
            except OSError as error:
                troubles.append(f"{directory}: {error.strerror}")
            except Fatal as fatal:
                troubles.append(str(fatal))
        raise CanNotKeep("; ".join(troubles))

    def oldest(self) -> SpillFile | None:
        """The oldest file that nobody reads, for us to read; close it or end it."""
        found = [path for directory in self._directories for path in _names(directory) if path.suffix == SUFFIX]
        self._left_alone.intersection_update(found)
        for path in sorted(found, key=_number):
            if path not in self._left_alone:
                file = self._opened(path)
                if file is not None:
                    return file
        return None

    def end(self, file: SpillFile) -> None:
        """All that could be read is stored: remove the file.  One that holds more is kept under another name."""
        path = file.path
        try:
            if file.is_whole:
                path.unlink(missing_ok=True)
            else:
                aside = path.with_suffix(DAMAGED_SUFFIX)
                path.rename(aside)
                told = (aside, file.count, file.promised)
                self._log.error("%s: it is damaged; %d of its %d writes were stored, the others can not be read", *told)
            _sync(path.parent)
        except OSError as error:
            # It would be sent once more with every look.
            self._leave_alone(path, f"all of it is stored, but it can not be removed: {error.strerror}")
        file.close()

    def _opened(self, path: Path) -> SpillFile | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._leave_alone(path, f"{error.strerror}")
            return None
        if not self._is_for_us(path, descriptor):
            os.close(descriptor)
            return None
        file = os.fdopen(descriptor, "rb")
        promised = self._promised(path, file)
        if promised is None:
            file.close()
            return None
        return SpillFile(path, file, promised)

    def _is_for_us(self, path: Path, descriptor: int) -> bool:
        """Take the lock of an open file, if it is one to be read here."""
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            # Whose file it is says who wrote it: nobody else may tell the worker what is to be stored.
            self._leave_alone(path, "it is not a file of this user")
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # Another daemon reads it, or writes it.
        except OSError as error:
            self._leave_alone(path, f"it can not be locked: {error.strerror}")
            return False
        found = os.fstat(descriptor)
        # Another daemon may have ended it meanwhile, or not have begun to write it.
        return found.st_nlink > 0 and found.st_size > 0

    def _promised(self, path: Path, file: BinaryIO) -> int | None:
        """How many writes a file says it has; None if they are not for us to read."""
        try:
            return spill.promised(file.readline(spill.LINE_BYTES_MAX))
        except spill.Newer:
            self._leave_alone(path, "it was written by a newer perdure, which will read it")
        except spill.NotOurs:
            self._leave_alone(path, "it holds no writes of perdure")
        except OSError as error:
            self._leave_alone(path, f"{error.strerror}")
        return None

    def _leave_alone(self, path: Path, why: str) -> None:
        self._left_alone.add(path)
        self._log.warning("%s is left alone: %s", path, why)


class SpillFile:
    """One file, while its lock is ours."""

    def __init__(self, path: Path, file: BinaryIO, promised: int) -> None:
        self.path = path
        self.promised = promised
        self.count = 0
        """Writes that were read."""
        self.at_end = False
        self._file = file
        self._is_damaged = False

    @property
    def is_whole(self) -> bool:
        return self.count == self.promised and not self._is_damaged

    def read(self, lines: int) -> list[Write]:
        """The writes of the next so many lines."""
        writes: list[Write] = []
        for _ in range(lines):
            line = self._line()
            if not line:
                self.at_end = True
                break
            write = spill.write_of(line)
            if write is None:
                self._is_damaged = True
            else:
                writes.append(write)
        self.count += len(writes)
        return writes

    def close(self) -> None:
        """Give up the lock."""
        self._file.close()

    def _line(self) -> bytes:
        try:
            return self._file.readline(spill.LINE_BYTES_MAX)
        except OSError:
            # A sick disk: what was read counts, the rest is kept.
            self._is_damaged = True
            return b""


def spill_directories(settings: Settings) -> list[Path]:
    """Where to write, the best first; and where to look."""
    own = [Path(settings.spill_dir)] if settings.spill_dir else []
    return [*own, *(Path(place) / "spill" for place in (settings.state_dir, settings.runtime_dir) if place)]


def _made(directory: Path, number: int, writes: Sequence[Write]) -> Path:
    """A new file, on the disk; raises OSError and leaves none."""
    path, descriptor = _created(directory, number)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Whoever looks at it in this moment gives it back at once, since it is empty.
            fcntl.flock(file, fcntl.LOCK_EX)
            file.writelines(spill.lines_of(writes))
            file.flush()
            os.fsync(file.fileno())
            _sync(directory)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return path


def _created(directory: Path, number: int) -> tuple[Path, int]:
    """A file that was not there before, with this number or, if another daemon was faster, a later one."""
    for later in itertools.count(number):
        path = directory / f"{later:0{DIGITS}}{SUFFIX}"
        with contextlib.suppress(FileExistsError):
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    raise AssertionError("numbers do not end")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(directory: Path) -> Iterator[Path]:
    """Our files in a directory, the damaged ones too: none if there is no such directory, or it is not for us."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    yield from (directory / name for name in names if _NAME.fullmatch(name))


def _number(path: Path) -> int:
    return int(path.stem)


SUFFIX: Final = ".writes"
DAMAGED_SUFFIX: Final = ".damaged"
DIGITS: Final = 8
"""Of a file's number, so that a directory lists them in their order."""
_NAME: Final = re.compile(rf"[0-9]{{{DIGITS},12}}\.(writes|damaged)")
