"""Which daemons of this machine are there, and which of them answer: each has a socket of its own to be called at.

One rule: who is there is told by the kernel, what it is doing by itself; whoever is silent is still counted.

Theory.  All daemons share one address, so nobody can ask one of them over HTTP; and what the worker knows of them is
out of reach while the worker hangs.  So each listens in a directory beside the worker's socket as well, and tells
whoever connects how it stands, from the loop that answers requests (`daemon/presence.py`).  A connection to one that
hangs is made by the kernel all the same, which also says whose it is.  No disk is in between: a file that is written
once a second would make a daemon look hung, or hang, when only the disk does.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from worker.standing import Called, DaemonStanding

CALL_SECONDS: Final = 2.0
"""How long a daemon may take to answer: a loop that goes round does in milliseconds, on a busy machine in a second."""
WORD_BYTES_MAX: Final = 65_536
"""More than any daemon says of itself."""
NAME_CHARACTERS_MAX: Final = 64
"""Of a daemon's name, as a file's: a socket's path has 107 bytes, and what surrounds it takes up to 40."""


def socket_name(instance: str) -> str:
    """A file's name for a daemon's."""
    return f"{quote(instance, safe=_PLAIN)[:NAME_CHARACTERS_MAX]}{_SUFFIX}"


def room_of(runtime_dir: str) -> Path:
    """Where a daemon of this runtime directory can be called: a directory that is its user's alone, as that one is."""
    return Path(runtime_dir) / "daemons"


def call(runtime_dir: str, patience_seconds: float = CALL_SECONDS) -> list[Called]:
    """Every daemon of this machine, all called at once.  Raises nothing: a directory that is closed to us has none."""
    calls: dict[socket.socket, _Call] = {}
    try:
        for room in _rooms(runtime_dir):
            calls |= dict(_connected(room))
        _listen(calls, time.monotonic() + patience_seconds)
    finally:
        for each in calls:
            each.close()
    return sorted((made.result() for made in calls.values()), key=lambda called: called.instance)


@contextmanager
def reachable(directory: Path) -> Iterator[str]:
    """A directory by a path that is short enough for a socket's, however long its own is.  Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class _Call:
    def __init__(self, instance: str, pid: int) -> None:
        self._instance = instance
        self._pid = pid
        self._is_heard = False
        self._word = bytearray()

    def hear(self, connection: socket.socket) -> bool:
        """Take what has come; whether there is more to come."""
        try:
            piece = connection.recv(WORD_BYTES_MAX)
        except BlockingIOError:
            return True
        except OSError:
            piece = b""
        # Also the end alone is a sign of life: a daemon that has no descriptor left hangs up at once.
        self._is_heard = True
        self._word += piece
        return bool(piece) and len(self._word) < WORD_BYTES_MAX

    def result(self) -> Called:
        try:
            standing = msgspec.json.decode(bytes(self._word), type=DaemonStanding)
        except msgspec.DecodeError:
            standing = None
        return Called(instance=self._instance, pid=self._pid, is_heard=self._is_heard, standing=standing)


def _rooms(runtime_dir: str) -> list[Path]:
    """Units of systemd give daemons a runtime directory of their own beside the worker's (systemd/README.md).  It is
    looked at only where nobody but root could have put it there: else anybody's sockets would be believed."""
    own, beside = room_of(runtime_dir), room_of(f"{runtime_dir}-daemon")
    try:
        parent = beside.parent.parent.stat()
    except OSError:
        return [own]
    return [own, beside] if parent.st_uid == 0 and not parent.st_mode & 0o022 else [own]


def _connected(room: Path) -> Iterator[tuple[socket.socket, _Call]]:
    try:
        with reachable(room) as place:
            for name in sorted(os.listdir(room)):
                connection = _connection(f"{place}/{name}") if name.endswith(_SUFFIX) else None
                if connection is not None:
                    yield connection, _Call(unquote(name.removesuffix(_SUFFIX)), _listener(connection))
    except OSError:
        return  # No daemon was ever there, or it is another user's.


def _connection(path: str) -> socket.socket | None:
    """None where nobody is there any more."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    # A queue that is full is a sign of life of nobody, but of somebody who is there.
    if connection.connect_ex(path) not in (0, errno.EAGAIN):
        connection.close()
        return None
    return connection


def _listener(connection: socket.socket) -> int:
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return 0
    return int(_CREDENTIALS.unpack(credentials)[0])


def _listen(calls: Mapping[socket.socket, _Call], deadline: float) -> None:
    with selectors.DefaultSelector() as open_calls:
        for connection, made in calls.items():
            if _is_connected(connection):
                open_calls.register(connection, selectors.EVENT_READ, made)
        while open_calls.get_map() and (left_seconds := deadline - time.monotonic()) > 0:
            for key, _events in open_calls.select(left_seconds):
                if not key.data.hear(key.fileobj):
                    open_calls.unregister(key.fileobj)


def _is_connected(connection: socket.socket) -> bool:
    """One that found the queue full would look like one that was hung up on."""
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


_SUFFIX: Final = ".sock"
_PLAIN: Final = "@:+="
"""What may stand in a file's name as it is, beside letters, digits and _.-~"""
_CREDENTIALS: Final = struct.Struct("3i")
"""pid, uid and gid, as SO_PEERCRED gives them."""
