"""What both programs say to a service manager, and what they take from it: real processes on a real notify socket.

One rule: the manager here is only a socket that listens; what a real systemd makes of it is in test_systemd.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.clients import RawClient
from tests.processes import HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import send_turn, take_turn

pytestmark = pytest.mark.system

WATCH_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 2.5
"""No sign of life for so long is none: one comes at least every 1.5 seconds."""
HANGING: Final = """
import runpy, signal, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))
runpy.run_module({program!r}, run_name="__main__", alter_sys=True)
"""
"""The program itself, whose loop alone, of all its threads, stands still when it gets a signal."""


class Manager:
    """A service manager's ear."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.words: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def listen(self, seconds: float) -> list[str]:
        """What is said within that time."""
        before = len(self.words)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                self.words += self._socket.recv(65_536).decode("utf-8").split("\n")
            except TimeoutError:
                break
        return self.words[before:]

    def wait_for(self, condition: Callable[[str], bool], what: str) -> None:
        """Return once such a word was said, among all that was."""

        def said() -> bool:
            self.listen(0.05)
            return any(map(condition, self.words))

        eventually(said, what=lambda: f"{what}: {self.words}")

    def forget(self) -> None:
        self.listen(0.01)
        self.words.clear()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    programs = {name: [sys.executable, "-P", "-c", HANGING.format(program=name)] for name in ("worker", "daemon")}
    with Gateway(provider, programs=programs, drain_seconds=7) as running:
        yield running


def watch(gateway: Gateway, manager: Manager, name: str) -> None:
    """Start one program under the manager; the other one has none."""
    watched = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(int(WATCH_SECONDS * 1_000_000))}
    gateway.environment |= watched
    gateway.launch(name)
    for variable in watched:
        del gateway.environment[variable]


def test_worker_is_ready_once_it_can_be_connected_to_and_not_before(gateway: Gateway, manager: Manager) -> None:
    watch(gateway, manager, "worker")
    manager.wait_for(lambda word: word == "READY=1", "ready")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(gateway.directory / "run" / "worker.sock"))
    assert gateway.database.exists()
    ready = manager.words.index("READY=1")
    assert f"STATUS=opening {gateway.database}" in manager.words[:ready]
    assert any(word.startswith("EXTEND_TIMEOUT_USEC=") for word in manager.words[:ready])
    assert manager.words[ready + 1] == "STATUS=ready: 0 daemons, 0 writes stored, 0 waiting"


def test_worker_that_can_not_begin_never_says_that_it_is_ready(gateway: Gateway, manager: Manager) -> None:
    gateway.launch("worker")
    eventually(lambda: (gateway.directory / "run" / "worker.sock").exists(), what="the first worker")
    second = [sys.executable, "-P", "-m", "worker"]
    environ = gateway.environment | {"NOTIFY_SOCKET": str(manager.path)}
    done = subprocess.run(second, env=environ, stderr=subprocess.DEVNULL, timeout=20, check=False)
    assert done.returncode == 75
    assert "READY=1" not in manager.listen(0.1) + manager.words


def test_worker_tells_whom_it_serves_and_how_much_it_stored(gateway: Gateway, manager: Manager) -> None:
    watch(gateway, manager, "worker")
    gateway.start()
    with gateway.client() as client:
        assert take_turn(client, "chat", "hello").status == 200
    manager.wait_for(lambda word: word == "STATUS=ready: 1 daemon, 3 writes stored, 0 waiting", "what it stored")
    assert gateway.stop("worker") == 0
    manager.wait_for(lambda word: word == "STOPPING=1", "its end")
    assert manager.words[-1] == "STATUS=moving the log into the database"


def test_daemon_is_ready_when_it_listens_and_knows_the_worker(gateway: Gateway, manager: Manager) -> None:
    gateway.start_worker()
    watch(gateway, manager, "daemon")
    manager.wait_for(lambda word: word == "READY=1", "ready")
    readyz = gateway.readyz()
    assert readyz is not None and readyz["status"] == "ready"
    ready = manager.words.index("READY=1")
    assert [word for word in manager.words[:ready] if word.startswith("STATUS=starting")]
    assert manager.words[ready + 1] == "STATUS=ready: 0 requests, 0 sessions"


def test_daemon_without_a_worker_is_ready_after_its_patience_and_says_what_is_missing(
    gateway: Gateway, manager: Manager
) -> None:
    watch(gateway, manager, "daemon")
    manager.wait_for(lambda word: word == "READY=1", "ready")
    status = manager.words[manager.words.index("READY=1") + 1]
    assert status == "STATUS=degraded (worker not there, index not loaded): 0 requests, 0 sessions"
    with gateway.client() as client:
        assert take_turn(client, "chat", "hello").status == 200
    manager.wait_for(lambda word: "1 session, 3 writes not acknowledged for" in word, "what waits")
    gateway.start_worker()
    manager.wait_for(lambda word: word == "STATUS=ready: 0 requests, 1 session", "all is well again")


def test_daemon_that_reloads_says_when_that_is_over(gateway: Gateway, manager: Manager) -> None:
    gateway.start_worker()
    watch(gateway, manager, "daemon")
    manager.wait_for(lambda word: word == "READY=1", "ready")
    manager.forget()
    os.kill(gateway.pid("daemon"), signal.SIGHUP)
    manager.wait_for(lambda word: word == "READY=1", "ready again")
    assert manager.words.index("RELOADING=1") < manager.words.index("READY=1")
    stamp = next(word for word in manager.words if word.startswith("MONOTONIC_USEC="))
    assert 0 < time.monotonic() - int(stamp.partition("=")[2]) / 1e6 < 60


def test_daemon_asked_to_stop_says_how_long_it_may_take_and_what_it_waits_for(
    gateway: Gateway, manager: Manager, provider: ScriptedProvider
) -> None:
    gateway.start_worker()
    watch(gateway, manager, "daemon")
    manager.wait_for(lambda word: word == "READY=1", "ready")
    with gateway.client() as client:
        send_turn(client, "chat", "hold:stopping words:40", stream=True)
        manager.wait_for(lambda word: word.startswith("STATUS=ready: 1 request"), "a request")
        gateway.terminate("daemon")
        manager.wait_for(lambda word: word.startswith("STATUS=draining: 1 request"), "it drains")
        provider.release("stopping")
        assert client.read().status == 200
    assert gateway.wait_stopped("daemon") == 0
    stopping = manager.words.index("STOPPING=1")
    name, _, microseconds = manager.words[stopping + 1].partition("=")
    # The drain limit, the last flush, and some.
    assert name == "EXTEND_TIMEOUT_USEC" and int(microseconds) >= (7 + 10) * 1_000_000


@pytest.mark.parametrize("hang", [signal.SIGSTOP, signal.SIGUSR1])
@pytest.mark.parametrize("name", ["worker", "daemon"])
def test_loop_that_stands_still_gives_no_sign_of_life(
    gateway: Gateway, manager: Manager, name: str, hang: signal.Signals
) -> None:
    """SIGSTOP: the whole process; SIGUSR1: the loop alone, with every other thread going on."""
    watch(gateway, manager, name)
    manager.wait_for(lambda word: word == "READY=1", "ready")
    manager.forget()
    manager.wait_for(lambda word: word == "WATCHDOG=1", "a sign of life")
    os.kill(gateway.pid(name), hang)
    manager.forget()
    assert manager.listen(SILENCE_SECONDS) == []
    if hang is signal.SIGSTOP:
        gateway.resume(name)
        manager.wait_for(lambda word: word == "WATCHDOG=1", "it lives again")


# -- the listening socket ------------------------------------------------------------------------------------------


def with_socket(passed: socket.socket, gateway: Gateway, **environ: str) -> subprocess.Popen[bytes]:
    """A daemon that is given a listening socket as systemd gives it: descriptor 3, and our pid in LISTEN_PID."""
    program = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, '-P', '-m', 'daemon'])\n"
    )
    with (gateway.directory / "passed.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", program, str(passed.fileno())],
            env=gateway.environment | {"LISTEN_FDS": "1"} | environ,
            pass_fds=[passed.fileno()],
            stdout=log,
            stderr=log,
        )


def test_daemon_listens_on_the_socket_that_was_passed_and_its_queue_outlives_it(gateway: Gateway) -> None:
    gateway.start_worker()
    with socket.create_server((HOST, 0)) as passed:
        port = passed.getsockname()[1]
        for _ in range(2):
            # Whoever comes while no daemon runs waits in the queue of the socket.
            with RawClient(HOST, port) as early:
                send_turn(early, "chat", "hello", session="waiting")
                daemon = with_socket(passed, gateway)
                try:
                    answer = early.read()
                    assert answer.status == 200, gateway.logs()
                    # The variables are meant for this process alone.
                    assert b"LISTEN_FDS=" not in answer.body
                    daemon.terminate()
                    assert daemon.wait(20) == 0
                finally:
                    daemon.kill()
                    daemon.wait(10)
    (session,) = gateway.sessions()
    assert session["turns"] == 2


def test_sockets_passed_to_another_process_are_not_taken(gateway: Gateway) -> None:
    gateway.environment |= {"LISTEN_FDS": "1", "LISTEN_PID": "1"}
    gateway.start()
    with gateway.client() as client:
        assert take_turn(client, "chat", "hello").status == 200


@pytest.mark.parametrize(
    ("host", "environ", "said"),
    [
        ("0.0.0.0", {}, "set PERDURE_TOKEN"),
        (HOST, {"LISTEN_FDS": "2"}, "a daemon listens on one"),
        (HOST, {"LISTEN_FDS": "some"}, "is no number"),
        ("", {}, "is not a TCP socket"),
    ],
)
def test_socket_that_can_not_be_listened_on_is_refused_with_status_78(
    gateway: Gateway, host: str, environ: dict[str, str], said: str
) -> None:
    passed = socket.create_server((host, 0)) if host else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with passed:
        daemon = with_socket(passed, gateway, **environ)
        assert daemon.wait(20) == 78
    log = gateway.log("passed")
    assert said in log and log.count("\n") == 1


def test_daemon_behind_an_open_socket_answers_those_who_have_the_token(gateway: Gateway) -> None:
    gateway.start_worker()
    with socket.create_server(("0.0.0.0", 0)) as passed:
        daemon = with_socket(passed, gateway, PERDURE_TOKEN="a-token")
        try:
            with RawClient(HOST, passed.getsockname()[1]) as client:
                answer = take_turn(client, "chat", "hello", headers=[("x-perdure-token", "a-token")])
                assert answer.status == 200
        finally:
            daemon.kill()
            daemon.wait(10)
