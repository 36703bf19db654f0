"""The listening socket that a supervisor opened for this daemon: whoever waits in its queue outlives the daemon.

One rule: the socket's own address counts, not the one in the settings, and it is judged as that would be.

Theory.  systemd passes descriptors from 3 on and says in LISTEN_FDS how many, and in LISTEN_PID to whom
(sd_listen_fds(3)); supervisord's fcgi-program makes the socket descriptor 0, and its configuration says so in
PERDURE_LISTEN_FD.  The variables are taken out of the environment: descriptors are passed once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from worker import runtime
from worker.settings import is_loopback

FIRST_PASSED: Final = 3
"""Where systemd begins to count: after standard input, output and error."""
STANDARD_MAX: Final = 2
"""Standard error: the last that every process has."""
DESCRIPTORS_MAX: Final = 2**31 - 1


def passed_listener(environ: MutableMapping[str, str], *, token: str) -> int | None:
    """The descriptor to listen on; None where this process binds its own address.  Raises Fatal."""
    descriptor = _descriptor(environ, os.getpid())
    if descriptor is None:
        return None
    refuse_open_listener(descriptor, token=token)
    return _taken(descriptor)


def _taken(descriptor: int) -> int:
    """The same socket, as this process's alone: not for whatever it may start, and nowhere that it stays open."""
    if descriptor > STANDARD_MAX:
        os.set_inheritable(descriptor, False)
        return descriptor
    # libuv never closes standard input, where supervisord puts it: whoever finishes streams would keep newcomers
    # waiting in a queue that nobody looks at any more.
    taken, nothing = os.dup(descriptor), os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    return taken


def _descriptor(environ: MutableMapping[str, str], pid: int) -> int | None:
    said, count, receiver = (environ.pop(name, "") for name in ("PERDURE_LISTEN_FD", "LISTEN_FDS", "LISTEN_PID"))
    environ.pop("LISTEN_FDNAMES", None)
    if said:
        return _number("PERDURE_LISTEN_FD", said)
    if not count or receiver != str(pid):
        return None
    if _number("LISTEN_FDS", count) != 1:
        raise runtime.Fatal(
            runtime.EXIT_CONFIGURATION,
            f"{count} sockets were passed, and a daemon listens on one; leave one ListenStream= in the socket unit",
        )
    return FIRST_PASSED


def _number(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) > DESCRIPTORS_MAX:
        raise runtime.Fatal(runtime.EXIT_CONFIGURATION, f"{name}: {text!r} is no number; it comes from a supervisor")
    return int(text)


def _address(descriptor: int) -> str:
    """The host that a passed socket listens on."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as passed:
            if passed.family in (socket.AF_INET, socket.AF_INET6) and passed.type == socket.SOCK_STREAM:
                return str(passed.getsockname()[0])
    except OSError:
        pass  # It is closed, or not a socket at all.
    raise runtime.Fatal(
        runtime.EXIT_CONFIGURATION,
        f"descriptor {descriptor}, which was passed, is not a TCP socket; "
        "name one as ListenStream=HOST:PORT, or set PERDURE_LISTEN and pass none",
    )


def refuse_open_listener(descriptor: int, *, token: str) -> None:
    """Raises Fatal where other machines reach a passed socket and need no token."""
    host = _address(descriptor)
    if not token and not is_loopback(host):
        raise runtime.Fatal(
            runtime.EXIT_CONFIGURATION,
            f"the socket that was passed listens on {host}, which other machines reach; set PERDURE_TOKEN, or let it "
            "listen on 127.0.0.1",
        )
