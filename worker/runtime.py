"""What both programs need of the operating system: exit statuses, logging, signals, directories, the lock.

One rule: nothing here knows what perdure is for.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

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


def start_logging(program: str, level: str) -> logging.Logger:
    """Log to standard error, one event a line: time, level, program[pid], text."""
    handler = logging.StreamHandler(sys.stderr)
    form = f"%(asctime)s.%(msecs)03dZ %(levelname)s {program}[{os.getpid()}] %(message)s"
    formatter = logging.Formatter(form, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    # Libraries speak up only when something is wrong.
    root.setLevel(logging.WARNING)
    for name in ("daemon", "worker"):
        logging.getLogger(name).setLevel(level.upper())
    return logging.getLogger(program)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when a supervisor that started us dies: an orphan would hold lock and port."""
    if os.environ.get("SUPERVISOR_ENABLED") and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner may enter.  Raises Fatal where that is impossible."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Fatal(EXIT_CONFIGURATION, f"{path}: {error.strerror}; name a directory that can be written") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise Fatal(EXIT_CONFIGURATION, f"{path}: can not be written; check its owner and mode")
    return path


def lock_file(path: Path, remedy: str) -> int:
    """Hold a file's place for this process: the guard of what only one may use.  Gives a descriptor to keep open.

    The lock goes with the process, however it dies.  Its file names the holder for people; it is never removed, since
    a lock on a removed file guards nothing.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Fatal(EXIT_CONFIGURATION, f"{path}: {error.strerror}; it must be a file that can be written") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Fatal(
            EXIT_UNAVAILABLE,
            f"{path.parent}: another perdure worker (pid {holder or 'unknown'}) works here; stop it, or {remedy}",
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


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
    print(f"{program}: {fatal}", file=sys.stderr, flush=True)  # noqa: T201 - the line a person reads
    sys.exit(fatal.status)


_PR_SET_PDEATHSIG: Final = 1
