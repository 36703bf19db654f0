"""A program that kills itself at a marked point, and what tells it to.

One rule: the programs know nothing of this.  Their own functions are wrapped from outside, before they start; until a
mark is armed they do what they always do, and an armed one ends them with a SIGKILL, which nothing can catch.

Theory.  A campaign arms a mark by writing a small file: which point, at which passing, and who else dies in the same
moment.  The process looks at it whenever it passes a point.  Inside SQLite the points are every statement (its trace)
and every write, sync and truncation of a file (a VFS), named by what the store is doing at that time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

import worker.store
from daemon.app import Daemon
from daemon.booking import Booking
from daemon.gateway import Gateway
from daemon.http_server import Incoming
from daemon.sessions import Sessions
from daemon.worker_client import WorkerClient
from tests.crash.points import Point, Program
from worker.protocol import Command
from worker.server import Server
from worker.store import Store

CHECKPOINT_PAGES: Final = 60
"""Pages in the log from which a marked worker checkpoints under load: the product waits for 2,000, which takes a
cycle longer than everything else in it."""


class Order(msgspec.Struct, frozen=True):
    """What a process is told: to die at this passing of this point, and to take others with it."""

    number: int
    point: str
    passing: int
    others: list[int] = []
    """Process ids, killed first."""


class Control:
    """The file through which orders come: one for each process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._struck = path.with_name(f"{path.name}.struck")

    def arm(self, order: Order) -> None:
        self._struck.unlink(missing_ok=True)
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_bytes(msgspec.json.encode(order))
        partial.replace(self._path)

    def disarm(self) -> bool:
        """Take the order back; True if it was carried out."""
        self._path.unlink(missing_ok=True)
        return self._struck.exists()

    def read(self) -> Order | None:
        if not os.path.exists(self._path):  # Nearly always, and much cheaper than an error.
            return None
        try:
            return _orders.decode(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def carry_out(self, order: Order) -> None:
        try:
            os.replace(self._path, self._struck)
        except FileNotFoundError:
            return  # Taken back in this very moment.
        for pid in order.others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


class Marks:
    """Counts passings of the armed point, and dies at the one that was ordered."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._order: Order | None = None
        self._passed = 0
        self._doing: Point | None = None
        self._thread = threading.get_ident()
        self.vfs = _MarkedVfs(self)
        """To be kept for as long as the process lives."""

    def passing(self, point: Point) -> None:
        order = self._control.read()
        if order is None or order.point != point:
            return
        if self._order is None or self._order.number != order.number:
            self._order, self._passed = order, 0
        self._passed += 1
        if self._passed >= order.passing:
            self._control.carry_out(order)

    @contextlib.contextmanager
    def doing(self, point: Point) -> Iterator[None]:
        """What SQLite does in here happens at this point."""
        before, self._doing = self._doing, point
        try:
            yield
        finally:
            self._doing = before

    def statement(self, *_: object) -> bool:
        """An execution trace: called before every statement of the writing connection."""
        if self._doing is not None:
            self.passing(self._doing)
        return True

    def touched(self) -> None:
        """A file of the database is about to change."""
        # Reads for people run in another thread, and change nothing but their own temporary files.
        if self._doing is not None and threading.get_ident() == self._thread:
            self.passing(Point.IN_COMMIT if self._doing is Point.IN_TRANSACTION else self._doing)


def mark(program: Program, control: Control) -> None:
    """Wrap what the program is made of.  Called once, in a process that then becomes the program."""
    marks = Marks(control)
    if program == "worker":
        _mark_store(marks)
        _mark_server(marks)
    else:
        _mark_turns(marks)
        _mark_sessions(marks)


# -- the worker ----------------------------------------------------------------------------------------------------


def _mark_store(marks: Marks) -> None:
    prepare, migrate, copy, commit = (
        Store._prepare,
        worker.store._migrate,
        worker.store._copy_before_migration,
        Store.commit,
    )

    def prepared(store: Store, found: Any) -> None:
        store._db.exec_trace = marks.statement
        with marks.doing(Point.IN_OPENING):
            prepare(store, found)

    def migrated(db: apsw.Connection, path: Path, version: int) -> None:
        with marks.doing(Point.IN_MIGRATION):
            migrate(db, path, version)

    def copied(db: apsw.Connection, path: Path, version: int) -> None:
        with marks.doing(Point.IN_COPY):
            copy(db, path, version)

    def committed(store: Store, *writes: Any, **how: Any) -> Any:
        marks.passing(Point.BEFORE_COMMIT)
        with marks.doing(Point.IN_TRANSACTION):
            outcome = commit(store, *writes, **how)
        marks.passing(Point.AFTER_COMMIT)
        return outcome

    _replace(Store, "_prepare", prepared)
    _replace(worker.store, "_migrate", migrated)
    _replace(worker.store, "_copy_before_migration", copied)
    _replace(Store, "commit", committed)
    _replace(Store, "checkpoint", _inside(marks, Point.IN_CHECKPOINT, Store.checkpoint))
    _replace(Store, "close", _inside(marks, Point.IN_CLOSING, Store.close))


def _mark_server(marks: Marks) -> None:
    acknowledge, send = Server._acknowledge, Server._send

    def acknowledged(server: Server, boot: str, replies: Any) -> None:
        acknowledge(server, boot, replies)
        marks.passing(Point.BETWEEN_ACKS)

    def sent(server: Server, boot: str, command: Command, *rest: Any) -> None:
        if command is Command.LOST:
            marks.passing(Point.IN_HAND_OVER)
        send(server, boot, command, *rest)

    _replace(Server, "_acknowledge", acknowledged)
    _replace(Server, "_send", sent)
    _replace(worker.server, "CHECKPOINT_PAGES", CHECKPOINT_PAGES)


class _MarkedVfs(apsw.VFS):
    """The system's own, and a word before every change of a file."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        super().__init__("marked", _BASE, makedefault=True)

    def xOpen(self, name: Any, flags: Any) -> Any:  # noqa: N802 - SQLite's word
        return _MarkedFile(self._marks, name, flags)


class _MarkedFile(apsw.VFSFile):
    def __init__(self, marks: Marks, name: Any, flags: Any) -> None:
        self._marks = marks
        super().__init__(_BASE, name, flags)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._marks.touched()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._marks.touched()
        super().xSync(flags)

    def xLock(self, level: int) -> None:  # noqa: N802
        try:
            super().xLock(level)
        except apsw.IOError:
            # SQLite expects this of a file that is only read, and goes on; an error of Python's it would not get over.
            raise apsw.BusyError from None

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._marks.touched()
        super().xTruncate(size)


# -- the daemon ----------------------------------------------------------------------------------------------------


def _mark_turns(marks: Marks) -> None:
    _replace(Booking, "begin", _before_and_after(marks, Booking.begin, after=Point.TURN_BEGUN))
    _replace(Booking, "settle", _before_and_after(marks, Booking.settle, after=Point.TURN_ENDED))
    for owner, name, before, after in (
        (Incoming, "start", Point.FIRST_BYTE, Point.FIRST_BYTE),
        (Incoming, "write", Point.IN_STREAM, None),
        (Gateway, "_settle", None, Point.LAST_BYTE),
    ):
        _replace(owner, name, _awaited(marks, getattr(owner, name), before, after))


def _mark_sessions(marks: Marks) -> None:
    put = WorkerClient.put

    def kept(client: WorkerClient, command: Command, body: Any) -> int:
        if command is Command.SNAPSHOT:
            marks.passing(Point.IN_FLUSH)
        return put(client, command, body)

    _replace(WorkerClient, "put", kept)
    _replace(Sessions, "_claimed", _before_and_after(marks, Sessions._claimed, before=Point.IN_CLAIM))
    _replace(
        Sessions,
        "lost",
        _before_and_after(marks, Sessions.lost, before=Point.SESSION_LOST, after=Point.SESSION_LOST),
    )
    become = Daemon._become

    def became(daemon: Daemon, phase: Any) -> None:
        become(daemon, phase)
        if daemon._own.is_draining or phase.name == "DRAINING":
            marks.passing(Point.IN_STOPPING)

    _replace(Daemon, "_become", became)


# -- wrapping ------------------------------------------------------------------------------------------------------


def _replace(owner: Any, name: str, wrapped: Any) -> None:
    """A name that is not there any more must fail here, not leave a point that nobody passes."""
    assert hasattr(owner, name), f"{owner} has no {name}"
    setattr(owner, name, wrapped)


def _inside(marks: Marks, point: Point, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        with marks.doing(point):
            return function(*arguments)

    return wrapped


def _before_and_after(
    marks: Marks, function: Callable[..., Any], *, before: Point | None = None, after: Point | None = None
) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            marks.passing(before)
        result = function(*arguments, **named)
        if after:
            marks.passing(after)
        return result

    return wrapped


def _awaited(
    marks: Marks, function: Callable[..., Awaitable[Any]], before: Point | None, after: Point | None
) -> Callable[..., Awaitable[Any]]:
    async def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            marks.passing(before)
        result = await function(*arguments, **named)
        if after:
            marks.passing(after)
        return result

    return wrapped


_orders: Final = msgspec.json.Decoder(Order)
_BASE: Final[str] = apsw.vfs_names()[0]
"""By name: the empty name means the default, which the marked one becomes."""
