"""SQLite's file system with faults: the n-th call of a kind fails as a sick, full or read-only disk lets it fail.

One rule: a fault is what the operating system does, in the code that SQLite's own `unix` VFS gives for it; what SQLite
and the store make of it is theirs.

Theory.  The functions of the `unix` VFS are replaced in place, so the store opens it without knowing, and SQLite sees a
code and nothing else: a VFS written in Python would also raise where SQLite itself passes over a code.  Calls of each
kind are counted from the moment a fault is armed.  Real fsyncs may be left out: what an fsync is worth is shown
elsewhere, and a sweep over every call does thousands.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int64, c_void_p, cast
from typing import Any, Final, Literal

import apsw
from msgspec import Struct

Call = Literal["xOpen", "xDelete", "xAccess", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xShmMap"]
Error = Literal["EIO", "ENOSPC", "EROFS", "short"]

CODES: Final[dict[tuple[Call, Error], int]] = {
    ("xOpen", "EIO"): apsw.SQLITE_CANTOPEN,
    ("xOpen", "EROFS"): apsw.SQLITE_CANTOPEN,
    ("xDelete", "EIO"): apsw.SQLITE_IOERR_DELETE,
    ("xAccess", "EIO"): apsw.SQLITE_IOERR_ACCESS,
    ("xRead", "EIO"): apsw.SQLITE_IOERR_READ,
    ("xWrite", "EIO"): apsw.SQLITE_IOERR_WRITE,
    ("xWrite", "ENOSPC"): apsw.SQLITE_FULL,
    ("xWrite", "short"): apsw.SQLITE_FULL,
    ("xTruncate", "EIO"): apsw.SQLITE_IOERR_TRUNCATE,
    ("xSync", "EIO"): apsw.SQLITE_IOERR_FSYNC,
    ("xFileSize", "EIO"): apsw.SQLITE_IOERR_FSTAT,
    ("xLock", "EIO"): apsw.SQLITE_IOERR_LOCK,
    ("xShmMap", "EIO"): apsw.SQLITE_IOERR_SHMMAP,
    ("xShmMap", "ENOSPC"): apsw.SQLITE_IOERR_SHMSIZE,
}
"""What can fail, how, and what `unix` says then.  Of a read-only file system only opening differs: a write is an I/O
error there, and a file that is there is opened for reading.  A read that is too short is no fault of a disk but the end
of a file: damage, which is another matter."""


SECTOR_BYTES: Final = 512
"""No write is cut within one: a file gets its space, and a disk its data, in larger pieces."""


class Fault(Struct, frozen=True, kw_only=True):
    """The `number`-th such call from now on fails: that one, or it and all after it."""

    call: Call
    error: Error
    number: int = 1
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.error} at {self.call} {self.number}{' and later' if self.lasting else ''}"


class FaultyDisk:
    """Stands before the `unix` VFS from its making until `close`.  Calm until it is given a fault."""

    def __init__(self, *, syncing: bool = True) -> None:
        self.calls: Counter[Call] = Counter()
        """Since the fault was armed; and how many of them failed."""
        self.failed = 0
        self.sync_seconds = 0.0
        """How long every fsync takes."""
        self._syncing = syncing
        self._fault: Fault | None = None
        self._is_counting = False
        self._vfs = _unix()
        self._own = _Vfs.from_buffer_copy(self._vfs)
        self._tables: dict[int, _Methods] = {}
        for name, act in (("xOpen", self._open), ("xDelete", self._delete), ("xAccess", self._access)):
            setattr(self._vfs, name, _TYPES[name](act))

    def close(self) -> None:
        """Give the VFS its own functions back."""
        # Files that a failed test left open still call ours: these are never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
        for name in _OF_VFS:
            setattr(self._vfs, name, getattr(self._own, name))

    def arm(self, fault: Fault | None) -> None:
        """Count from now on, and fail that call."""
        self._fault, self._is_counting = fault, True
        self.calls.clear()
        self.failed = 0

    def calm(self) -> None:
        """Nothing fails any more, and nothing is counted."""
        self._fault, self._is_counting = None, False

    @contextlib.contextmanager
    def calmed(self) -> Iterator[None]:
        """Calm for a look from outside, which counts for nothing."""
        before = self._fault, self._is_counting
        self.calm()
        try:
            yield
        finally:
            self._fault, self._is_counting = before

    def _fails(self, call: Call) -> Error | None:
        """Count a call; how it fails, if it does."""
        fault = self._fault
        self.calls[call] += self._is_counting
        if fault is None or fault.call != call or self.calls[call] < fault.number:
            return None
        if self.calls[call] > fault.number and not fault.lasting:
            return None
        self.failed += 1
        return fault.error

    # -- of the VFS

    def _open(self, vfs: int, name: bytes | None, file: int, flags: int, said: int) -> int:
        error = self._fails("xOpen")
        if error == "EROFS" and flags & apsw.SQLITE_OPEN_READWRITE:
            # A file that can not be opened for writing is opened for reading, by `unix` itself.
            flags = flags & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        elif error == "EIO":
            cast(file, POINTER(_File))[0].methods = None
            return CODES["xOpen", error]
        code = int(self._own.xOpen(vfs, name, file, flags, said))
        opened = cast(file, POINTER(_File))[0]
        if opened.methods:
            opened.methods = ctypes.addressof(self._table(opened.methods))
        return code

    def _delete(self, vfs: int, name: bytes | None, sync_directory: int) -> int:
        error = self._fails("xDelete")
        return CODES["xDelete", error] if error else int(self._own.xDelete(vfs, name, sync_directory))

    def _access(self, vfs: int, name: bytes | None, flags: int, said: int) -> int:
        error = self._fails("xAccess")
        return CODES["xAccess", error] if error else int(self._own.xAccess(vfs, name, flags, said))

    # -- of its files

    def _table(self, methods: int) -> _Methods:
        """The table of `unix` with our functions before its own; one for all files of a kind."""
        if methods not in self._tables:
            own = cast(methods, POINTER(_Methods))[0]
            table = _Methods.from_buffer_copy(own)
            for call in ("xRead", "xTruncate", "xFileSize", "xLock", "xShmMap"):
                setattr(table, call, _TYPES[call](self._failing(call, getattr(own, call))))
            table.xWrite = _TYPES["xWrite"](self._writing(own.xWrite))
            table.xSync = _TYPES["xSync"](self._syncing_by(own.xSync))
            self._tables[methods] = table
        return self._tables[methods]

    def _failing(self, call: Any, own: Callable[..., int]) -> Callable[..., int]:
        def act(*arguments: Any) -> int:
            error = self._fails(call)
            return CODES[call, error] if error else own(*arguments)

        return act

    def _writing(self, own: Callable[..., int]) -> Callable[..., int]:
        def act(file: int, data: int, amount: int, offset: int) -> int:
            error = self._fails("xWrite")
            if error == "short":
                own(file, data, amount // 2 // SECTOR_BYTES * SECTOR_BYTES, offset)
            return CODES["xWrite", error] if error else own(file, data, amount, offset)

        return act

    def _syncing_by(self, own: Callable[..., int]) -> Callable[..., int]:
        def act(file: int, flags: int) -> int:
            error = self._fails("xSync")
            if error:
                return CODES["xSync", error]
            if self.sync_seconds:
                time.sleep(self.sync_seconds)  # The fault itself: a disk that takes its time.
            return own(file, flags) if self._syncing else apsw.SQLITE_OK

        return act


# -- SQLite's structures, as its C interface fixes them

_TYPES: Final[dict[str, Any]] = {
    "xOpen": CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p),
    "xDelete": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int),
    "xAccess": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_void_p),
    "xRead": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64),
    "xWrite": CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64),
    "xTruncate": CFUNCTYPE(c_int, c_void_p, c_int64),
    "xSync": CFUNCTYPE(c_int, c_void_p, c_int),
    "xFileSize": CFUNCTYPE(c_int, c_void_p, c_void_p),
    "xLock": CFUNCTYPE(c_int, c_void_p, c_int),
    "xShmMap": CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, c_void_p),
}
_OF_VFS: Final = ("xOpen", "xDelete", "xAccess")
_OF_FILES: Final = (
    *("xClose", "xRead", "xWrite", "xTruncate", "xSync", "xFileSize", "xLock", "xUnlock", "xCheckReservedLock"),
    *("xFileControl", "xSectorSize", "xDeviceCharacteristics"),
    *("xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch"),
)


class _Vfs(Structure):
    """sqlite3_vfs, as far as it is used."""

    _fields_ = (
        ("version", c_int),
        ("file_bytes", c_int),
        ("path_bytes", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("application", c_void_p),
        *((name, _TYPES[name]) for name in _OF_VFS),
    )


class _Methods(Structure):
    """sqlite3_io_methods."""

    _fields_ = (("version", c_int), *((name, _TYPES.get(name, c_void_p)) for name in _OF_FILES))


class _File(Structure):
    """sqlite3_file."""

    _fields_ = (("methods", c_void_p),)


def _unix() -> _Vfs:
    """The structure of the default VFS itself."""
    found = c_void_p()
    db = apsw.Connection(":memory:")
    db.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(found))
    db.close()
    vfs: _Vfs = cast(found, POINTER(_Vfs))[0]
    assert vfs.name == b"unix"
    return vfs
