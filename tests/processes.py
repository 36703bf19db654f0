"""perdure as real processes: a worker and its daemons on a private state directory, to be killed, paused and read.

One rule: a test may do to these processes whatever the world does; but what it started is gone when the test is over,
and none of it has left a traceback in a log.

Theory.  `Gateway` runs the programs as a supervisor would, without being one: nothing restarts unless a test says so.
Their environment holds PATH and PERDURE_* alone.  What is stored is read as `perdure sessions --json` reads it: from
the database, read-only, by code of this process, so that it can be read with every process dead.  A failing test shows
the logs, because they are added to its exception.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self, TypeVar

from daemon.views import session_object
from tests.clients import RawClient
from tests.provider import ScriptedProvider
from worker.protocol import Row
from worker.records import Record, page_of_sessions
from worker.store import Reader
from worker.tables import ROW_COLUMNS, row_of

HOST: Final = "127.0.0.1"
PORTS_EACH: Final = 3_000
_FIRST_PORT: Final = 20_000 + PORTS_EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4)
PORTS: Final = range(_FIRST_PORT, _FIRST_PORT + PORTS_EACH)
"""Below the range that the kernel gives to outgoing connections, and apart for test runners that work side by side: a
port is free for a moment whenever a process is killed."""
DEADLINE_SECONDS: Final = 15.0
"""Longest wait for anything that takes about a second on an idle machine; a loaded one is ten times slower."""
POLL_SECONDS: Final = 0.005
"""How often a condition is looked at that nobody announces."""
PAGE_SESSIONS: Final = 500
LOG_CHARACTERS_SHOWN: Final = 4_000
"""Of the end of each log, in a failure's message."""

T = TypeVar("T")


def eventually(
    condition: Callable[[], T], deadline_seconds: float = DEADLINE_SECONDS, what: str | Callable[[], str] = ""
) -> T:
    """The first true value of a condition; AssertionError if there is none in time."""
    deadline = time.monotonic() + deadline_seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {deadline_seconds} seconds: {said or condition}")
        time.sleep(POLL_SECONDS)
    return value


class Gateway:
    """A worker and one or more daemons.  Processes have names: "worker", "daemon", and then "daemon-2", "daemon-3", …

    As a context manager it starts nothing by itself and leaves nothing behind.  `settings` are those of
    `worker.settings`, by name: `Gateway(provider, tick_seconds=0.2)`.  `programs`: by a process's name, the command
    that is run in its place.
    """

    def __init__(
        self,
        provider: ScriptedProvider,
        *,
        daemons: int = 1,
        programs: Mapping[str, Sequence[str]] = MappingProxyType({}),
        **settings: object,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
        self.database = self.directory / "perdure.db"
        self.daemons = ["daemon", *(f"daemon-{number}" for number in range(2, daemons + 1))]
        self.ports = dict(zip(self.daemons, free_ports(daemons), strict=True))
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PERDURE_STATE_DIR": str(self.directory),
            "PERDURE_RUNTIME_DIR": str(self.directory / "run"),
            "PERDURE_ANTHROPIC_URL": provider.url,
            "PERDURE_OPENAI_URL": provider.url,
            **{f"PERDURE_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._programs = programs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()
        logs = self.logs()
        if error is not None:
            error.add_note(logs)
        tracebacks = [name for name in self._log_names() if "Traceback" in self.log(name)]
        shutil.rmtree(self.directory, ignore_errors=True)
        assert error is not None or not tracebacks, f"a traceback in the log of {', '.join(tracebacks)}\n{logs}"

    # -- running -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The first daemon's origin."""
        return self.url_of("daemon")

    @property
    def port(self) -> int:
        return self.ports["daemon"]

    def url_of(self, daemon: str) -> str:
        return f"http://{HOST}:{self.ports[daemon]}"

    def start(self) -> None:
        """Start what is not running, and return once every daemon is ready."""
        for name in ("worker", *self.daemons):
            if not self.is_running(name):
                self._start(name)
        self.wait_ready()

    def start_worker(self) -> None:
        self._start("worker")

    def launch(self, name: str) -> None:
        """Start a process and look no further: one that is to refuse."""
        self._start(name)

    def start_daemon(self, name: str = "daemon") -> None:
        """Start one daemon, and return once it listens: with a worker it is ready soon, without one degraded."""
        self._start(name)
        eventually(lambda: self.readyz(name), what=lambda: f"{name} listens\n{self.logs()}")

    def is_running(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process at once; returns when it is gone."""
        process = self._processes[name]
        process.send_signal(number)
        process.wait(DEADLINE_SECONDS)

    def kill_all(self) -> None:
        """SIGKILL everything, as close together as signals can be sent; returns when all are gone."""
        for process in self._processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self._processes.values():
            process.wait(DEADLINE_SECONDS)

    def terminate(self, name: str) -> None:
        """SIGTERM, without waiting for the end."""
        self._processes[name].terminate()

    def stop(self, name: str, deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """SIGTERM; the exit status."""
        self.terminate(name)
        return self.wait_stopped(name, deadline_seconds)

    def wait_stopped(self, name: str, deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """Return once a process has ended by itself; its exit status."""
        return self._processes[name].wait(deadline_seconds)

    def pause(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    def client(self, daemon: str = "daemon", *, deadline_seconds: float = DEADLINE_SECONDS) -> RawClient:
        """A new connection to a daemon; close it yourself."""
        return RawClient(HOST, self.ports[daemon], deadline_seconds=deadline_seconds)

    # -- looking -----------------------------------------------------------------------------------------------------

    def wait_ready(self, deadline_seconds: float = DEADLINE_SECONDS, status: str = "ready") -> None:
        """Return once every daemon says so of itself."""
        for name in self.daemons:
            self.wait_status(status, name, deadline_seconds)

    def wait_status(self, status: str, daemon: str = "daemon", deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Return once a daemon's /readyz says "ready", "degraded" or "unready"."""
        eventually(
            lambda: (self.readyz(daemon) or {}).get("status") == status,
            deadline_seconds,
            lambda: f"{daemon} {status}; it is {self.readyz(daemon)}\n{self.logs()}",
        )

    def readyz(self, daemon: str = "daemon") -> dict[str, Any] | None:
        """What /readyz says; None when nobody answers."""
        found = self.get("/readyz", daemon)
        return json.loads(found[1]) if found else None

    def get(self, path: str, daemon: str = "daemon") -> tuple[int, bytes] | None:
        """Status and body of a GET; None when nobody answers."""
        connection = http.client.HTTPConnection(HOST, self.ports[daemon], timeout=DEADLINE_SECONDS)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def sessions(self) -> list[dict[str, Any]]:
        """The objects of `perdure sessions --json`, newest first, as they are committed now."""
        return [session_object(record, {}) for record in self.records()]

    def session(self, session_id: str) -> dict[str, Any]:
        """One of them by its id."""
        return next(shown for shown in self.sessions() if shown["session_id"] == session_id)

    def records(self) -> list[Record]:
        found: list[Record] = []
        with self.reader() as reader:
            after = ""
            while not found or after:
                page = page_of_sessions(reader.execute, after, PAGE_SESSIONS)
                found += page.records
                after = page.after
                if not page.records:
                    break
        return found

    def rows(self, after: int = 0) -> list[Row]:
        """The ledger in the order of entry: all of it, or what was entered after the first so many rows."""
        sql = f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger WHERE rowid > ? ORDER BY rowid"
        return [row_of(values) for values in self.query(sql, (after,))]

    def query(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self.reader() as reader:
            return list(reader.execute(sql, bindings))

    @contextlib.contextmanager
    def reader(self) -> Iterator[Reader]:
        reader = Reader(self.database)
        try:
            yield reader
        finally:
            reader.close()

    def log(self, name: str, start: int = 0) -> str:
        """What a process has logged, its former lives included; from a byte on that `log_size` told before."""
        return (self.directory / f"{name}.log").read_bytes()[start:].decode("utf-8", "replace")

    def log_size(self, name: str) -> int:
        return (self.directory / f"{name}.log").stat().st_size

    def logs(self) -> str:
        """The ends of all logs, for a failure's message."""
        parts = [f"--- {name} ---\n{self.log(name)[-LOG_CHARACTERS_SHOWN:]}" for name in self._log_names()]
        return "\n".join(parts)

    def _log_names(self) -> Sequence[str]:
        return sorted(path.stem for path in self.directory.glob("*.log"))

    def _start(self, name: str) -> None:
        assert not self.is_running(name), f"{name} is running"
        environment = dict(self.environment)
        if name != "worker":
            environment["PERDURE_LISTEN"] = f"{HOST}:{self.ports[name]}"
        with (self.directory / f"{name}.log").open("ab") as log:
            program = "worker" if name == "worker" else "daemon"
            self._processes[name] = subprocess.Popen(
                self._programs.get(name, [sys.executable, "-P", "-m", program]),
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def free_ports(count: int) -> list[int]:
    """Ports nobody listens at now, to be bound again and again by processes that are killed.

    Below the range that the kernel gives to outgoing connections: one of these would make the restart fail."""
    found: set[int] = set()
    while len(found) < count:
        port = secrets.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            found.add(port)
    return sorted(found)
