"""`perdure up` as a gateway: the console command, its supervisor, and both programs, nothing of it marked.

One rule: of these processes only the supervisor is this file's to start; the others are the supervisor's, and are
looked up by their parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from daemon.app import FLUSH_SECONDS, IDLE_DRAIN_SECONDS
from tests.crash.nursery import Nursery
from tests.processes import DEADLINE_SECONDS, HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from worker.runtime import lock_holder

SUPERVISOR: Final = "supervisor"
PERDURE: Final = str(Path(sys.executable).with_name("perdure"))
UP_SECONDS: Final = 60.0
"""Five programs start one after the other: two seconds on an idle machine."""
DRAIN_SECONDS: Final = 2.0
"""A stream that a supervisor's death has cut loose is not to keep a cycle waiting."""


class SupervisedGateway(Gateway):
    """All daemons behind one socket, under the name "daemon"."""

    def __init__(self, provider: ScriptedProvider, nursery: Nursery, *, daemons: int = 1, **settings: Any) -> None:
        super().__init__(provider, daemons=1, drain_seconds=DRAIN_SECONDS, **settings)
        self.ports = nursery.free_ports(self.daemons)
        self.environment |= {"PERDURE_LISTEN": f"{HOST}:{self.port}", "PERDURE_DAEMONS": str(daemons)}
        if "PYTHONPATH" in os.environ:  # A copy of the programs is being tested.
            self.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self._logs = self.directory / "log"
        self._count = daemons
        self._seen: set[int] = set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._seen |= set(self.children())
        for pid in self._seen:
            if _is_ours(pid, self.directory):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().__exit__(kind, error, trace)

    def start(self) -> None:
        """Return once it is ready, whether or not it ran before."""
        if not self.is_running(SUPERVISOR):
            self.start_supervisor()
        eventually(lambda: len(self.children()) == 2 + self._count, UP_SECONDS, lambda: f"all is up\n{self.logs()}")
        self.wait_ready(UP_SECONDS)
        self._seen |= set(self.children())

    def start_supervisor(self) -> None:
        """Return at once: its programs are still to come."""
        with (self.directory / "up.log").open("ab") as log:
            self._processes[SUPERVISOR] = subprocess.Popen(
                [PERDURE, "up"],
                env=self.environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill_supervisor(self) -> set[int]:
        """SIGKILL it alone; gives the processes that it leaves behind, which the kernel has told to stop."""
        orphans = set(self.children())
        self._seen |= orphans
        self.kill(SUPERVISOR)
        return orphans

    def wait_orphans_gone(self, orphans: set[int]) -> list[str]:
        """Return once they have ended; what is not as it should be then, in words."""
        patience = DEADLINE_SECONDS + IDLE_DRAIN_SECONDS + DRAIN_SECONDS + FLUSH_SECONDS
        eventually(lambda: not any(map(_is_alive, orphans)), patience, lambda: f"orphans end\n{self.logs()}")
        wrong = []
        if lock_holder(self.directory / "perdure.lock") is not None:
            wrong.append("the lock is held after everybody is gone")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if probe.connect_ex((HOST, self.port)) == 0:
                wrong.append("the port is served after everybody is gone")
        return wrong

    def end(self) -> int:
        """Ctrl-C; the exit status."""
        self._processes[SUPERVISOR].send_signal(signal.SIGINT)
        return self.wait_stopped(SUPERVISOR, UP_SECONDS)

    def children(self) -> list[int]:
        if not self.is_running(SUPERVISOR):
            return []
        pid = self.pid(SUPERVISOR)
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def log(self, name: str, start: int = 0) -> str:
        if name != "daemon":
            return (self._logs / f"{name}.log").read_bytes()[start:].decode("utf-8", "replace")
        return "".join(path.read_text("utf-8", "replace") for path in sorted(self._logs.glob("daemon-*.log")))[start:]

    def log_size(self, name: str) -> int:
        return len(self.log(name))

    def _log_names(self) -> list[str]:
        return sorted(path.stem for path in self._logs.glob("*.log"))


def _is_alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_ours(pid: int, directory: Path) -> bool:
    """It still runs in this gateway's name: the number may be another's by now."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"PERDURE_STATE_DIR={directory}".encode() in environment
