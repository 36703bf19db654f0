"""What both programs need of the operating system: exit statuses, signals, directories, the lock.

One rule: nothing here knows what perdure is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import grp
import os
import resource
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from worker import logs

EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_INTERNAL: Final = 70
EXIT_UNAVAILABLE: Final = 75
"""The lock is held, or what is asked for is not reachable now: try later."""
EXIT_CONFIGURATION: Final = 78
"""Configuration or schema: trying again changes nothing."""


class Fatal(Exception):
    """The program can not go on; the message is one line with the remedy."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NotNow(Fatal):
    """The world does not allow it at the moment; who can wait may try again."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_UNAVAILABLE, message)


def place_of(error: BaseException) -> str:
    """An exception in one line that quotes nothing: its kind, and where it was raised."""
    places = traceback.extract_tb(error.__traceback__)
    where = f" at {places[-1].filename}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{where}"


def keep_memory_private() -> None:
    """Leave no memory behind in a crash, and show none to other programs of the same user: there are keys and prompts
    in it.

    Both are needed.  A core that goes to a collector (a `core_pattern` that begins with |) is written whatever the
    limit says; and what can not be dumped can not be traced either, nor its environment be read, where the token is.
    Only root may still look inside (`gdb -p`, `py-spy dump`).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0)


def take_descriptors() -> None:
    """Have as many as the system lets us: a shell's usual 1,024 are half as many streams, and ZeroMQ ends a process
    that has none left for a peer."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when a supervisor that started us dies: an orphan would hold lock and port."""
    if os.environ.get("SUPERVISOR_ENABLED"):
        die_with(os.getppid())


def die_with(parent: int) -> None:
    """The same, for a parent that is known: also if it died before this was asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner may enter; take one that is there if nobody else can put anything into it.
    Raises Fatal where that is impossible."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        link, found = path.lstat(), path.stat()
    except OSError as error:
        raise _refusal(path, error, "name a directory that can be written") from None
    if not os.access(path, os.W_OK | os.X_OK):
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise NotNow(f"{path}: {os.strerror(errno.EROFS)}")
        raise Fatal(EXIT_CONFIGURATION, f"{path}: can not be written; check its owner and mode")
    # Whoever owns it, or the link that leads there, could put files in the place of ours.  Links of root are those of
    # service managers and administrators.
    if found.st_uid != os.geteuid() or link.st_uid not in (os.geteuid(), _ROOT):
        raise Fatal(EXIT_CONFIGURATION, f"{path}: belongs to another user; run perdure as that user, or name another")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Fatal(EXIT_CONFIGURATION, f"{path}: others can write to it; `chmod go-w` it, or name another directory")
    return path


def group_named(name: str) -> int:
    """A group's number.  Raises Fatal where there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise Fatal(EXIT_CONFIGURATION, f"PERDURE_GROUP: no group is called {name!r}; `groupadd` makes one") from None


def share(path: Path, group: int, mode: int) -> None:
    """Let a group have what was its owner's alone.  Raises Fatal."""
    try:
        os.chown(path, -1, group)
        path.chmod(mode)
    except OSError as error:
        raise Fatal(
            EXIT_CONFIGURATION,
            f"{path}: {error.strerror}; PERDURE_GROUP must be a group of the worker's user, who owns it",
        ) from None


def lock_file(path: Path, remedy: str) -> int:
    """Hold a file's place for this process: the guard of what only one may use.  Gives a descriptor to keep open.

    The lock goes with the process, however it dies.  Its file names the holder for people; it is never removed, since
    a lock on a removed file guards nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refusal(path, error, "it must be a file that can be written") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Fatal(
            EXIT_UNAVAILABLE,
            f"{path.parent}: another perdure worker (pid {holder or 'unknown'}) works here; stop it, or {remedy}",
        ) from None
    # Written over what is there, and cut then: on a full disk a file that is cut first may stay empty.  Where there is
    # no room even for the first name, the lock holds all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0))
    return descriptor


def _refusal(path: Path, error: OSError, remedy: str) -> Fatal:
    """What the system's word means for a process that needs this path."""
    if error.errno in PASSING:
        return NotNow(f"{path}: {error.strerror}")
    return Fatal(EXIT_CONFIGURATION, f"{path}: {error.strerror}; {remedy}")


def lock_holder(lock: Path) -> int | None:
    """The process that holds a `lock_file`, None where nobody does or the system does not tell.

    Looked up, not tried: whoever tries a lock holds it for a moment, and a worker starting in that moment is refused.
    """
    try:
        inode, pid = str(lock.stat().st_ino), lock.read_text("ascii").strip()
        held = [line.split() for line in Path("/proc/locks").read_text("ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return None
    found = any(words[1] == "FLOCK" and words[4] == pid and words[5].split(":")[-1] == inode for words in held)
    return int(pid) if found else None


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM and SIGINT.  Handlers only set a flag or write a byte: work happens in the loop."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def leave(program: str, fatal: Fatal) -> NoReturn:
    """End the process with one line and an exit status of its own."""
    print(logs.last_line(program, str(fatal), fatal.status), file=sys.stderr, flush=True)  # noqa: T201 - what is read
    sys.exit(fatal.status)


_ROOT: Final = 0
_PR_SET_PDEATHSIG: Final = 1
PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})
"""A disk that is full, read-only or sick, or a system out of descriptors, may be well again."""
_PR_SET_DUMPABLE: Final = 4
