"""What a service manager hears of a process: that it is ready, what it is doing, and that its loop goes round.

One rule: nobody waits for the service manager.  Where there is none nothing is sent, and what it does not take at once
is lost, save the few words that change what it thinks of us.

Theory.  systemd names a datagram socket in NOTIFY_SOCKET; each message is lines of NAME=value (sd_notify(3)), written
here by hand, since that is all the protocol there is.  The variables are taken out of the environment: they are meant
for this process, and a child that spoke in its name would be believed.  `pulse` is called by the loop that does the
work, as often as that goes round; so the watchdog that it feeds sees a loop that hangs, and not only a process that
died.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

PULSE_SECONDS: Final = 1.0
"""How often, at most, a status or a sign of life is sent."""
PULSES_PER_WATCH: Final = 4
"""Signs of life within the time after which their absence is fatal."""
WORD_SECONDS: Final = 2.0
"""How long a word that must arrive waits for room in the service manager's queue."""
STATUS_CHARACTERS_MAX: Final = 300
"""Of a status line: it is one line of `systemctl status`."""


class Notifier:
    """Speaks to one service manager, or to nobody when the address is empty.  Raises nothing."""

    def __init__(
        self, address: str = "", watchdog_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _socket_address(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        self._clock = clock
        self._is_watched = watchdog_seconds > 0
        self._rest_seconds = min(PULSE_SECONDS, watchdog_seconds / PULSES_PER_WATCH or PULSE_SECONDS)
        self._pulse_at = self._status_at = 0.0
        self._status = ""

    def ready(self, status: str) -> None:
        """The start, or the reading of settings, is over: what is promised holds from now on."""
        self._say("READY=1", *self._told(status))

    def reloading(self) -> None:
        """Settings are read again; `ready` says when that is over."""
        # The time lets systemd tell which of two reloads this is (Type=notify-reload).
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self, status: str, *, within_seconds: float = 0.0) -> None:
        """The end has begun; it may take so long."""
        self._say("STOPPING=1", *_extension(within_seconds), *self._told(status))

    def busy(self, status: str, *, within_seconds: float) -> None:
        """Something that takes long keeps a start or an end from being over; it may take so long from now."""
        self._say(*_extension(within_seconds), *self._told(status))

    def pulse(self, status: Callable[[], str] | None = None) -> None:
        """The loop goes round.  Called as often as one likes; sent about once a second, with the status if it is
        another than before."""
        now = self._clock()
        if self._socket is None or now < self._pulse_at:
            return
        self._pulse_at = now + self._rest_seconds
        words = ["WATCHDOG=1"] if self._is_watched else []
        if status is not None and now >= self._status_at:
            self._status_at = now + PULSE_SECONDS
            text = status()
            words += self._told(text) if text != self._status else ()
        if words:
            self._say(*words, patience_seconds=0.0)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _told(self, status: str) -> tuple[str]:
        self._status = status
        line = "".join(character if character.isprintable() else " " for character in status)
        return (f"STATUS={line[:STATUS_CHARACTERS_MAX]}",)

    def _say(self, *words: str, patience_seconds: float = WORD_SECONDS) -> None:
        if self._socket is None:
            return
        self._socket.settimeout(patience_seconds)
        # It may be gone, or its queue full: it starts us, we do not depend on it.
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(words).encode("utf-8", "replace"), self._address)


def from_environment(environ: MutableMapping[str, str], pid: int | None = None) -> Notifier:
    """The service manager that started this process, by the variables that it left; they are removed."""
    address = environ.pop("NOTIFY_SOCKET", "")
    limit, watched = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    is_ours = watched in ("", str(os.getpid() if pid is None else pid))
    return Notifier(address, int(limit) / 1_000_000 if limit.isdecimal() and is_ours else 0.0)


def _socket_address(address: str) -> str:
    """As the system takes it: a leading @ stands for the NUL of an abstract socket.  Other kinds are not spoken to."""
    if address.startswith("@"):
        return f"\0{address[1:]}"
    return address if address.startswith("/") else ""


def _extension(seconds: float) -> tuple[str, ...]:
    return (f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}",) if seconds else ()
