"""Where the campaign's processes come from: one parent that has imported both programs, and forks a child for each.

One rule: a child is a process like any other — its own memory, its own signals, killed by its own id — that has only
not read its own modules; from there on it runs the program's `main`.

Theory.  A campaign starts tens of thousands of programs, and importing them is nine tenths of each start.  The parent
has no thread and no open database, so that forking it is safe.  It says the child's process id, keeps a dead child's
id from being given away until its status was asked for, and takes all children with it when nobody speaks to it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import daemon.__main__
import worker.__main__
from tests.crash.faults import FAULTS
from tests.crash.marked import Control, Order, mark
from tests.crash.points import Point
from tests.processes import DEADLINE_SECONDS, HOST, Gateway
from tests.provider import ScriptedProvider

PORTS: Final = range(10_000, 20_000)
"""Below those of other tests, and far below those that the kernel gives away."""
PORTS_EACH: Final = 50
ROOT: Final = Path(__file__).resolve().parents[2]


class Nursery:
    """A context manager: the parent lives while it is entered.  For one thread."""

    def __enter__(self) -> Self:
        self._claim, self._ports = _own_ports()
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(DEADLINE_SECONDS)
        self._parent.stdout.close()
        self._claim.close()

    def free_ports(self, names: Sequence[str]) -> dict[str, int]:
        """A port for each, nobody's now and no other campaign's later."""
        return dict(zip(names, filter(_is_free, self._ports), strict=False))

    def start(self, **wanted: Any) -> Child:
        return Child(self, self._ask(verb="start", **wanted))

    def status(self, pid: int) -> int:
        """A dead child's exit status, as `subprocess` says it."""
        return self._ask(verb="status", pid=pid)

    def _ask(self, **request: Any) -> int:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(request) + "\n")
        return int(self._parent.stdout.readline())


class Child:
    """What a `Gateway` uses of a process, for one that is not this process's own child."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float) -> int:
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _ended(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._descriptor], [], [], timeout)[0]:
            os.close(self._descriptor)
            self.returncode = self._nursery.status(self.pid)
        return self.returncode


class MarkedGateway(Gateway):
    """A gateway whose processes come from a nursery, each with a control file.  `faults`: rules taken away."""

    def __init__(
        self, provider: ScriptedProvider, nursery: Nursery, *, faults: Sequence[str] = (), **settings: Any
    ) -> None:
        super().__init__(provider, **settings)
        # A port is free whenever its daemon was killed: a campaign beside this one must not take it then.
        self.ports = nursery.free_ports(self.daemons)
        self._nursery = nursery
        self._faults = faults
        self._orders = 0

    def arm(self, name: str, point: Point, passing: int, others: Sequence[str] = ()) -> None:
        """Have a process die at a point, and others with it in the same moment."""
        self._orders += 1
        pids = [self.pid(other) for other in others if self.is_running(other)]
        self._control(name).arm(Order(self._orders, point, passing, pids))

    def disarm(self, name: str) -> bool:
        """Take the order back; True if it was carried out."""
        return self._control(name).disarm()

    def wait_gone(self, name: str, deadline_seconds: float) -> bool:
        """True once a process has ended; False if it has not in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[name].wait(deadline_seconds)
        return not self.is_running(name)

    def _control(self, name: str) -> Control:
        return Control(self.directory / f"{name}.order")

    def _start(self, name: str) -> None:
        assert not self.is_running(name), f"{name} is running"
        listen = {} if name == "worker" else {"PERDURE_LISTEN": f"{HOST}:{self.ports[name]}"}
        child = self._nursery.start(
            program="worker" if name == "worker" else "daemon",
            control=str(self.directory / f"{name}.order"),
            log=str(self.directory / f"{name}.log"),
            directory=str(self.directory),
            environment=self.environment | listen,
            faults=list(self._faults),
        )
        self._processes[name] = cast("subprocess.Popen[bytes]", child)


def _own_ports() -> tuple[socket.socket, range]:
    """A block of ports that is this process's while the socket is open: its name in the kernel is the claim."""
    for block in PORTS[::PORTS_EACH]:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0perdure crash ports {block}")
        except OSError:
            claim.close()
        else:
            return claim, range(block, block + PORTS_EACH)
    raise RuntimeError("every block of ports is taken")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((HOST, port)):
        return True
    return False


# -- in the parent -------------------------------------------------------------------------------------------------


def serve() -> int:
    """Fork as asked, until nobody asks any more; in a child, what its program's main gives."""
    gc.freeze()
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if request["verb"] == "start":
            pid = os.fork()
            if not pid:
                return _become(request)
            children.add(pid)
            answer = pid
        else:
            _, status = os.waitpid(request["pid"], 0)
            children.discard(request["pid"])
            answer = os.waitstatus_to_exitcode(status)
        print(answer, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return 0


def _become(request: dict[str, Any]) -> int:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, place)
    os.close(log)
    os.close(nothing)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    mark(request["program"], Control(Path(request["control"])))
    for fault in request["faults"]:
        FAULTS[fault]()
    return worker.__main__.main() if request["program"] == "worker" else daemon.__main__.main()


if __name__ == "__main__":
    sys.exit(serve())
