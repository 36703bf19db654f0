"""A SQLite file system that writes down what reaches the disk: every write, truncate, sync, creation and deletion.

One rule: it changes nothing.  Each call goes to SQLite's own unix file system, and is noted once that has done it.

Theory of operation.  A `Recording` stands before the unix file system as the default one, so the store opens its files
through it without knowing.  Renames, deletions and syncs of the directory that the program does by itself, beside
SQLite, are noted too.  Files are numbered as they are created: a name may come to mean another file, and what is
written through an old handle belongs to the old one.

What syncs the directory is not a call of this interface.  The unix file system does it in two places, so these are
noted as such: at the first sync of a journal or log that was opened to be created, and in a deletion that asks for it.
A test asks the unix file system itself.  Shared memory never comes here, and is gone after a cut.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import apsw

from tests.powercut.images import Created, Deleted, DirectorySynced, Operation, Renamed, Synced, Truncated, Written

StrPath = str | os.PathLike[str]

SHARED_MEMORY: Final = "-shm"
_JOURNALS: Final = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL


@contextmanager
def recording(folder: Path) -> Iterator[Recording]:
    """Note all that is done to the files of a folder, by SQLite and beside it."""
    recorded = Recording(folder)
    with ExitStack() as stack:
        stack.callback(_RecordingVFS(recorded).unregister)
        for name, noting in recorded.beside_sqlite.items():
            stack.enter_context(mock.patch.object(os, name, _then(getattr(os, name), noting)))
        yield recorded


class Recording:
    """The folder as it was, and the operations since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = [file for file in sorted(folder.iterdir()) if not file.name.endswith(SHARED_MEMORY)]
        self.before = {file.name: file.read_bytes() for file in files}
        self.operations: list[Operation] = []
        self._numbers = {name: number for number, name in enumerate(self.before)}
        self._files = len(self._numbers)
        self.beside_sqlite: dict[str, Callable[..., None]] = {
            "rename": self._renamed,
            "replace": self._renamed,
            "unlink": self._deleted,
            "remove": self._deleted,
            "fsync": self._synced,
        }

    @property
    def position(self) -> int:
        """Operations so far."""
        return len(self.operations)

    def note(self, operation: Operation) -> None:
        self.operations.append(operation)

    def holds(self, path: StrPath) -> bool:
        return Path(path).parent == self.folder

    def opened(self, name: str) -> int:
        """The number of the file that has this name, a new one if there was none."""
        if name not in self._numbers:
            self._numbers[name] = self._files
            self._files += 1
            self.note(Created(name, self._numbers[name]))
        return self._numbers[name]

    def deleted(self, name: str) -> None:
        if self._numbers.pop(name, None) is not None:
            self.note(Deleted(name))

    def _renamed(self, old: StrPath, new: StrPath) -> None:
        if self.holds(old):
            before, after = Path(old).name, Path(new).name
            self._numbers[after] = self._numbers.pop(before)
            self.note(Renamed(before, after, self._numbers[after]))

    def _deleted(self, path: StrPath) -> None:
        if self.holds(path):
            self.deleted(Path(path).name)

    def _synced(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if os.path.samestat(found, self.folder.stat()):
            self.note(DirectorySynced())
        elif stat.S_ISREG(found.st_mode):
            for name, number in self._numbers.items():
                if os.path.samestat(found, (self.folder / name).stat()):
                    self.note(Synced(number))


class _RecordingVFS(apsw.VFS):
    def __init__(self, recorded: Recording) -> None:
        super().__init__("recording", "unix", makedefault=True)
        self._recorded = recorded

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        if path is None or not self._recorded.holds(path):
            return apsw.VFSFile("unix", name, flags)
        return _RecordingFile(name, flags, self._recorded, Path(path).name)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        if self._recorded.holds(filename):
            self._recorded.deleted(Path(filename).name)
            if syncdir:
                self._recorded.note(DirectorySynced())


class _RecordingFile(apsw.VFSFile):
    def __init__(self, path: Any, flags: list[int], recorded: Recording, name: str) -> None:
        super().__init__("unix", path, flags)
        self._recorded = recorded
        self._number = recorded.opened(name)
        self._is_read_only = bool(flags[1] & apsw.SQLITE_OPEN_READONLY)
        self._directory_is_due = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _JOURNALS)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._recorded.note(Written(self._number, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._recorded.note(Truncated(self._number, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._recorded.note(Synced(self._number))
        if self._directory_is_due:
            self._directory_is_due = False
            self._recorded.note(DirectorySynced())

    def xLock(self, level: int) -> None:  # noqa: N802
        try:
            super().xLock(level)
        except apsw.IOError:
            if not self._is_read_only:
                raise
            # A reader that closes tries for the writer's lock, and SQLite takes a no.  Here it would be raised later.
            raise apsw.BusyError("opened for reading") from None


def _then(call: Callable[..., Any], noting: Callable[..., None]) -> Callable[..., Any]:
    def both(*arguments: Any, **named: Any) -> Any:
        result = call(*arguments, **named)
        noting(*arguments)
        return result

    return both
