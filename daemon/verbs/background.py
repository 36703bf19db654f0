"""A gateway in the background: is one there, start one, stop it.

One rule: what is found is proved before it is used or stopped: who answers must say that it is perdure, and who is told
to stop is the process that holds the supervisor's socket, by the kernel's word and not by a file with a number in it.

Theory.  A gateway that a command started must outlive it: the next command goes on with the same sessions.  So it gets
a session of its own, and no parent but init; it takes no terminal, no working directory and no variables that are not
perdure's or the system's along, least of all the keys that agents find in theirs.  Whoever starts one holds a lock
until it is ready; others wait for that and find it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import urlsplit

from daemon.verbs.running import STOP_MARGIN_SECONDS, become, supervision, url_here
from daemon.verbs.screen import say
from worker import rollcall, runtime
from worker.runtime import Fatal
from worker.settings import Settings

START_SECONDS: Final = 30.0
"""How long a start may take: it takes one or two seconds, and ten times that on a loaded machine."""
ANSWER_SECONDS: Final = 5.0
"""How long a gateway may take to say that it is one: a daemon that needs more has other worries than a new client."""
ANSWER_BYTES_MAX: Final = 65_536
"""More than any answer of ours; whoever else listens there may send without end."""
WORKER_STOP_SECONDS: Final = 30
"""What supervisord.conf gives the worker, after the daemons have stopped."""
OTHERS_SECONDS: Final = 10.0
"""How long the daemons after the first may take: they start at once, and are half a second apart on a busy machine."""
LOOK_SECONDS: Final = 0.05
"""Between two looks at something that nobody announces."""
QUIET_SECONDS: Final = 1.5
"""How long to wait without a word."""


class Readiness(NamedTuple):
    status: str
    checks: dict[str, Any]

    @property
    def answers_turns(self) -> bool:
        return self.status in ("ready", "degraded")

    def __str__(self) -> str:
        return ", ".join(f"{name} {state}" for name, state in self.checks.items() if state != "ok") or "all is well"


class Launched(NamedTuple):
    pid: int
    log: Path


def look(settings: Settings) -> Readiness | None:
    """What the gateway that listens at our address says of itself; None if nobody listens.  Raises Fatal if it is
    another program."""
    try:
        alive = _get(settings, "/healthz")
        said = (_get(settings, "/readyz") or {}) if alive else {}
    except TimeoutError:
        # The supervisor listens before its daemons run, and between two of them.
        return Readiness("silent", {"daemon": "does not answer"})
    if alive is None:
        return None
    if alive.get("program") != "perdure":
        raise Fatal(
            runtime.EXIT_UNAVAILABLE,
            f"{settings.listen}: another program listens there; stop it, or set PERDURE_LISTEN to another port",
        )
    checks = said.get("checks")
    return Readiness(str(said.get("status")), checks if isinstance(checks, dict) else {})


def ensure(settings: Settings, options: argparse.Namespace) -> Readiness:
    """Return once a gateway answers turns, started if there was none.  Raises Fatal."""
    if (found := look(settings)) and found.answers_turns:
        return found
    state = runtime.private_directory(Path(settings.state_dir))
    deadline = time.monotonic() + START_SECONDS
    with _one_at_a_time(state / "up.lock", deadline):
        return _started(settings, options, deadline)


def _started(settings: Settings, options: argparse.Namespace, deadline: float) -> Readiness:
    launched: Launched | None = None
    refused: Fatal | None = None
    quiet_until = time.monotonic() + QUIET_SECONDS
    while True:
        if (found := look(settings)) and found.answers_turns:
            if launched:
                _wait_for_the_others(settings, min(deadline, time.monotonic() + OTHERS_SECONDS))
                say(f"started on {settings.listen}; it goes on when this command ends, `perdure down` stops it")
            return found
        try:
            if launched and _has_ended(launched.pid):
                said, launched = _last_line(launched.log), None
                raise Fatal(runtime.EXIT_UNAVAILABLE, f"the gateway has ended at once: {said}")
            if not found and not launched:
                launched = _launch(settings, options)
        except Fatal as fatal:
            # One that somebody else starts or stops has lock, socket and port before or after it answers.
            if fatal.status != runtime.EXIT_UNAVAILABLE or supervisor_pid(settings) is None:
                raise
            refused = fatal
        if refused and time.monotonic() > quiet_until:
            quiet_until = deadline
            say(f"{refused}; waiting for that to change, {START_SECONDS:.0f} s at most")
        if time.monotonic() > deadline:
            raise refused or Fatal(
                runtime.EXIT_UNAVAILABLE,
                f"{settings.listen}: no gateway was ready within {START_SECONDS:.0f} s ({found or 'nobody answers'}); "
                f"the logs in {settings.state_dir}/log say why",
            )
        time.sleep(LOOK_SECONDS)


def stop(settings: Settings) -> bool:
    """Stop what `perdure up` started, and return when it is gone; False if there is nothing.  Raises Fatal."""
    if (pid := supervisor_pid(settings)) is None:
        if (holder := runtime.lock_holder(settings.lock)) is not None:
            raise Fatal(
                runtime.EXIT_UNAVAILABLE,
                f"the worker (pid {holder}) in {settings.state_dir} was not started by `perdure up`; "
                "stop it where it was started",
            )
        return False
    handle = _handle(pid)
    os.kill(pid, signal.SIGTERM)
    limit_seconds = settings.drain_seconds + STOP_MARGIN_SECONDS + WORKER_STOP_SECONDS
    quiet_until, deadline = time.monotonic() + QUIET_SECONDS, time.monotonic() + limit_seconds
    while not _has_ended(pid, handle):
        now = time.monotonic()
        if now > deadline:
            raise Fatal(
                runtime.EXIT_UNAVAILABLE,
                f"the supervisor (pid {pid}) has not stopped within {limit_seconds:.0f} s; its log is "
                f"{settings.state_dir}/log/supervisord.log, `kill -9 {pid}` ends it and loses nothing",
            )
        if quiet_until and now > quiet_until:
            quiet_until = 0.0
            say(f"running answers have {settings.drain_seconds:g} s to finish; Ctrl-C stops waiting, not stopping")
        time.sleep(LOOK_SECONDS)
    return True


def supervisor_pid(settings: Settings) -> int | None:
    """The supervisor of this runtime directory; None if there is none.

    The kernel keeps, with a listening socket, who it was that began to listen."""
    path = Path(settings.runtime_dir) / "sv.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, _uid, _gid = _CREDENTIALS.unpack(credentials)
    return int(pid)


@contextmanager
def _one_at_a_time(path: Path, deadline: float) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Fatal(
                        runtime.EXIT_UNAVAILABLE,
                        f"{path}: another command has been starting the gateway for {START_SECONDS:.0f} s; try again",
                    ) from None
                time.sleep(LOOK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _wait_for_the_others(settings: Settings, deadline: float) -> None:
    """One daemon answers.  Whoever asks now is answered by any of them, so wait for all, but for none for long."""
    while time.monotonic() < deadline:
        called = rollcall.call(settings.runtime_dir)
        running = [each for each in called if each.standing is not None and each.standing.state == "running"]
        if len(running) >= settings.daemons:
            return
        time.sleep(LOOK_SECONDS)


def _launch(settings: Settings, options: argparse.Namespace) -> Launched:
    """Start `perdure up` as nobody's child.  Returns when it has become the supervisor; raises the Fatal that kept it
    from that."""
    hears, tells = os.pipe()
    log = Path(settings.state_dir) / "log" / "up.log"
    sys.stdout.flush()
    sys.stderr.flush()
    middle = os.fork()
    if middle == 0:
        os.close(hears)
        os.setsid()
        if os.fork():
            os._exit(0)
        _become_gateway(settings, options, log, tells)
    os.close(tells)
    os.waitpid(middle, 0)
    # The end of file comes when the pipe's other end is closed: by becoming another program, or by ending.
    with os.fdopen(hears, encoding="utf-8", errors="replace") as pipe:
        pid, _, refusal = pipe.read().partition("\n")
    if refusal:
        status, _, message = refusal.partition(" ")
        raise Fatal(int(status), message)
    if not pid:
        raise Fatal(runtime.EXIT_UNAVAILABLE, "no process could be started; see `ulimit -u` and what memory is left")
    return Launched(int(pid), log)


def _become_gateway(settings: Settings, options: argparse.Namespace, log: Path, tells: int) -> NoReturn:
    """In the new process: nothing returns from here."""
    try:
        os.write(tells, f"{os.getpid()}\n".encode())
        # Relative to where the command was given, and no longer once this process has moved away.
        config = os.path.abspath(path) if (path := options.config or os.environ.get("PERDURE_CONFIG")) else ""
        module, environ = supervision(settings, argparse.Namespace(**{**vars(options), "config": config}))
        if settings.ca_file:
            environ["PERDURE_CA_FILE"] = os.path.abspath(settings.ca_file)
        _leave_terminal(log)
        become(module, {name: value for name, value in environ.items() if _is_taken_along(name)})
    except Fatal as fatal:
        os.write(tells, f"{fatal.status} {fatal}".encode())
    except OSError as error:
        os.write(tells, f"{runtime.EXIT_CONFIGURATION} {error.filename or log}: {error.strerror}".encode())
    finally:
        os._exit(runtime.EXIT_INTERNAL)


def _leave_terminal(log: Path) -> None:
    os.chdir(log.parent)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    # A shell without job control makes what it runs in the background deaf to Ctrl-C; supervisord is to hear it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_taken_along(name: str) -> bool:
    return name in _SYSTEM_VARIABLES or name.startswith(("PERDURE_", "LC_", "XDG_"))


def _handle(pid: int) -> int | None:
    """What tells of a process's end, whoever reaps it; None where the kernel has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _has_ended(pid: int, handle: int | None = None) -> bool:
    """Also of a process that nobody has reaped: the init of a container may not."""
    own = _handle(pid) if handle is None else handle
    if own is None:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False
    try:
        return bool(select.select([own], [], [], 0)[0])
    finally:
        if handle is None:
            os.close(own)


def _get(settings: Settings, path: str) -> dict[str, Any] | None:
    """What is answered, {} if that is no JSON object, None if nobody is there.  Raises TimeoutError."""
    where = urlsplit(url_here(settings))
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        said = json.loads(connection.getresponse().read(ANSWER_BYTES_MAX))
    except ConnectionError:
        return None  # Refused, or cut by a gateway that stops.
    except TimeoutError:
        raise  # It is an OSError too, but says nothing of who listens.
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return said if isinstance(said, dict) else {}


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text("utf-8", "replace").split("\n")
        for line in reversed(lines):
            if line.strip():
                return f"{line.strip()} ({log})"
    return f"{log} says no more"


_CREDENTIALS: Final = struct.Struct("3i")
"""pid, uid and gid, as SO_PEERCRED gives them."""
_SYSTEM_VARIABLES: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"}
)
"""What programs expect of a system, beside perdure's own."""
