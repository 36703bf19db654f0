"""supervisord as `perdure up` runs it: it hears of a child's death when it happens, passes SIGHUP on, and goes on
listening while daemons are replaced.

One rule: supervisord does what its manual says, with two exceptions.  To it SIGHUP means "start everything anew"
(`supervisorctl reload` still does), to an operator "read the configuration again", which the programs do by themselves.
And it closes the daemons' socket when the last of them is gone; but if another one is to come, who connects meanwhile
can wait for it.

Theory.  supervisord takes turns.  A turn waits up to a second for anything to read, starts what is to be started, and
then looks who has died; a signal was meant to end the wait, but since Python 3.5 a wait goes on after a signal.  The
end of a child's output does end it, a moment too early: a process closes its files before it can be seen to be dead. So
a death was noticed one second late, and what replaces it was started one second after that.  Here a signal writes a
byte that ends the wait: of the two seconds one is left, and that one is wanted, because it is the only brake on a
program that dies at once, again and again.

A socket that is open while nobody accepts makes clients wait, for ever if need be.  So it is kept open only while a
daemon is there or is about to be started, and for a moment after the last was told to stop, since a restart is a stop
and a start to supervisord, too.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final

from supervisor import loggers, supervisord
from supervisor.medusa import asyncore_25 as loop
from supervisor.states import RUNNING_STATES, SIGNALLABLE_STATES, ProcessStates, SupervisorStates

from worker import runtime


class Supervisor(supervisord.Supervisor):  # type: ignore[misc]  # it has no types
    """Takes SIGHUP out of supervisord's hands and gives it to worker and daemons, each of which goes on as it is."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._is_reload_wanted = False
        self._listener: Any = None
        """supervisord counts who has the socket, and closes it at zero: this is one of them."""
        self._daemons_wanted_at = 0.0

    def runforever(self) -> None:
        """supervisord has just set its own handlers."""
        signal.signal(signal.SIGHUP, self._want_reload)
        try:
            super().runforever()
        finally:
            # One that starts anew in this process binds the address again.
            self._listener = None

    def _want_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._is_reload_wanted = True

    def handle_signal(self) -> None:
        """The end of every turn."""
        if self._is_reload_wanted:
            self._is_reload_wanted = False
            self._reload_programs()
        self._keep_listening(time.monotonic())
        super().handle_signal()

    def _keep_listening(self, now: float) -> None:
        group = self.process_groups.get("daemon")
        if group and self.options.mood == SupervisorStates.SHUTDOWN and group.socket_manager.is_prepared():
            # Nobody will come: who connects now is refused, and does not wait for streams that still run.
            group.socket_manager.socket.close()
        if group and self.options.mood >= SupervisorStates.RUNNING:
            if any(is_wanted(daemon) for daemon in group.processes.values()):
                self._daemons_wanted_at = now
            if now - self._daemons_wanted_at <= LISTEN_SECONDS:
                if self._listener is None:
                    self._listener = group.socket_manager.get_socket()
                return
        self._listener = None

    def _reload_programs(self) -> None:
        self.options.logger.info("received SIGHUP: worker and daemons read their settings again")
        # supervisorctl can take a group out.
        groups = [self.process_groups[name] for name in ("worker", "daemon") if name in self.process_groups]
        for program in (program for group in groups for program in group.processes.values()):
            if program.state in SIGNALLABLE_STATES:
                program.signal(signal.SIGHUP)


def is_wanted(process: Any) -> bool:
    """Whether a process is there, or is started by supervisord's next turn."""
    if process.state == ProcessStates.EXITED:
        return process.exitstatus not in process.config.exitcodes
    return process.state in (*RUNNING_STATES, ProcessStates.STOPPING)


class Ear:
    """In supervisord's loop, what reads the bytes that signals write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readable(self) -> bool:
        """Asked at the beginning of a turn.  Bytes of the turn before are read now and not in the wait: the death
        they tell of has just been seen, and must not hasten the turn that starts the successor."""
        self.handle_read_event()
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        try:
            os.read(self._descriptor, 4096)
        except BlockingIOError:
            return  # Nothing was signalled.


def hear_signals() -> None:
    """Let every signal end the loop's wait."""
    # supervisorctl's reload closes every descriptor from 5 on.  With what was inherited gone, the pipe's are 3 and 4.
    os.closerange(3, _INHERITED_MAX)
    hears, tells = os.pipe()
    os.set_blocking(hears, False)
    os.set_blocking(tells, False)
    assert (hears, tells) == (3, 4), (hears, tells)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    loop.socket_map[hears] = Ear(hears)


def outlive_full_disks() -> None:
    """A line that can not be logged is lost, and the supervisor goes on.  Its own answer to that is a traceback on
    standard error, which in the background is a file on the same disk: that fails too, and takes everything down."""
    emit = loggers.RotatingFileHandler.emit

    def emit_or_lose(handler: Any, record: Any) -> None:
        with suppress(OSError, ValueError):  # The other one is a stream's that could not be opened anew.
            emit(handler, record)

    loggers.RotatingFileHandler.emit = emit_or_lose
    loggers.Handler.handleError = lambda _handler: None


def be_child_of(supervisor: int) -> None:
    """What a child is from its first moment on, and stays as the program that it becomes."""
    # Deaf to SIGHUP until it listens for it: one that has just been started must not die of it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Until it is another program the supervisor's own handler would take this signal, and forget it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Programs ask for this too, but only when they have been read: until then a supervisor's death would go unnoticed.
    runtime.die_with(supervisor)


LISTEN_SECONDS: Final = 3.0
"""How long the socket outlives the last daemon that was told to stop: two turns, and time for an order to start one."""
_INHERITED_MAX: Final = 256
"""Descriptors a shell or make may have left open for its children; they use the lowest."""

if __name__ == "__main__":
    # The token stands in its environment, for its children.
    runtime.keep_memory_private()
    hear_signals()
    outlive_full_disks()
    os.register_at_fork(after_in_child=partial(be_child_of, os.getpid()))
    supervisord.Supervisor = Supervisor
    supervisord.main()
