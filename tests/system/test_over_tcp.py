"""Worker and daemons that speak over TCP, under CURVE: everything works, and nobody else gets in or reads along."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.conversation import Attempt, Conversation
from tests.processes import HOST, Gateway, eventually, free_ports
from tests.provider import ScriptedProvider
from worker.curve import make_keys
from worker.runtime import EXIT_CONFIGURATION

PERDURE = str(Path(sys.executable).with_name("perdure"))


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as made:
        yield made


@pytest.fixture
def keys() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    yield made / "keys"
    shutil.rmtree(made)


@pytest.fixture
def gateway(provider: ScriptedProvider, keys: Path) -> Iterator[Gateway]:
    subprocess.run([PERDURE, "keys", str(keys)], check=True, capture_output=True, timeout=30)
    url = f"tcp://{HOST}:{free_ports(1)[0]}"
    with Gateway(provider, daemons=2, worker_url=url, curve_dir=keys) as made:
        yield made


class Talk:
    """One conversation, whose turns go to the daemons that are named."""

    def __init__(self, gateway: Gateway, name: str = "over-tcp") -> None:
        self._gateway = gateway
        self._conversation = Conversation("messages", name)
        self._number = 0

    def say(self, text: str, daemon: str) -> str:
        """The session of a turn that is answered."""
        self._number += 1
        attempt = Attempt(self._number, self._conversation, text)
        with self._gateway.client(daemon) as client:
            answer = self._conversation.exchange(client, attempt, stream=True)
        assert answer.complete and answer.status == 200
        return attempt.session


def strangers(gateway: Gateway) -> float:
    found = gateway.get("/metrics")
    assert found is not None
    lines = [line for line in found[1].decode().splitlines() if line.startswith("perdure_strangers_total")]
    return float(lines[0].split()[1])


def test_conversation_over_two_daemons_and_kills_of_all_is_one_session(gateway: Gateway) -> None:
    gateway.start()
    talk = Talk(gateway)
    sessions = [talk.say("one", "daemon"), talk.say("two", "daemon-2")]
    gateway.kill("worker")
    gateway.start()
    sessions += [talk.say("three", "daemon"), talk.say("four", "daemon-2")]
    # What the worker did not confirm in time would die with its daemon.
    eventually(lambda: [row.status for row in gateway.rows()] == ["complete"] * 4, what="all turns arrive")
    gateway.kill_all()
    gateway.start()
    sessions.append(talk.say("five", "daemon-2"))
    assert len(set(sessions)) == 1
    assert gateway.session(sessions[0])["turns"] == 5


def test_corrections_of_the_command_line_reach_the_worker(gateway: Gateway, keys: Path) -> None:
    gateway.start()
    one, other = Talk(gateway, "one").say("hello", "daemon"), Talk(gateway, "other").say("hello", "daemon")
    environ = {name: value for name, value in gateway.environment.items() if name != "PERDURE_LISTEN"}
    run = subprocess.run(
        [PERDURE, "session", "merge", one, other], env=environ, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 0, run.stderr
    assert len(gateway.sessions()) == 1


def test_daemon_whose_key_the_worker_does_not_know_answers_degraded_and_says_why(gateway: Gateway, keys: Path) -> None:
    public = keys / "daemons" / "daemon.public"
    known = public.read_bytes()
    public.unlink()
    gateway.start_worker()
    gateway.start_daemon()
    eventually(lambda: "does not accept our key" in str(gateway.readyz()), what=lambda: str(gateway.readyz()))
    session = Talk(gateway).say("hello", "daemon")

    public.write_bytes(known)
    gateway.wait_status("ready")
    eventually(lambda: [row.status for row in gateway.rows()] == ["complete"], what="the turn arrives")
    assert gateway.rows()[0].session_id == session
    assert strangers(gateway) > 0
    assert gateway.log("worker").count("turned away") == 1
    assert gateway.log("daemon").count("does not accept our key") == 1


def test_daemon_that_expects_another_worker_answers_degraded_and_says_why(gateway: Gateway, keys: Path) -> None:
    other = keys.parent / "other"
    make_keys(other)
    gateway.start_worker()
    shutil.copy(other / "worker.public", keys / "worker.public")
    gateway.start_daemon()
    eventually(lambda: "hangs up on us" in str(gateway.readyz()), what=lambda: str(gateway.readyz()))
    assert Talk(gateway).say("hello", "daemon")
    assert gateway.log("daemon").count("hangs up on us") == 1


def test_program_without_its_keys_refuses_to_start_with_the_remedy(gateway: Gateway, keys: Path) -> None:
    shutil.rmtree(keys)
    for name in ("worker", "daemon"):
        gateway.launch(name)
        assert gateway.wait_stopped(name) == EXIT_CONFIGURATION
        assert "`perdure keys DIRECTORY` makes keys" in gateway.log(name)


def test_worker_whose_port_is_taken_tries_again_later(gateway: Gateway) -> None:
    port = int(gateway.environment["PERDURE_WORKER_URL"].rpartition(":")[2])
    with socket.create_server((HOST, port)):
        gateway.start_worker()
        assert gateway.wait_stopped("worker") == 75


def test_who_reads_along_sees_neither_names_nor_the_hash_key(provider: ScriptedProvider, keys: Path) -> None:
    make_keys(keys)
    inside, outside = free_ports(2)
    address = f"tcp://{HOST}:{inside}"
    with Wire(outside, inside) as wire, Gateway(provider, worker_url=address, curve_dir=keys) as gateway:
        gateway.start_worker()
        gateway.environment["PERDURE_WORKER_URL"] = f"tcp://{HOST}:{outside}"
        gateway.start_daemon()
        gateway.wait_status("ready")
        session = Talk(gateway, "a-name-on-the-wire").say("hello", "daemon")
        [(hash_key,)] = gateway.query("SELECT value FROM meta WHERE name = 'hash_key'")
        eventually(lambda: [row.status for row in gateway.rows()] == ["complete"], what="the turn arrives")
    seen = bytes(wire.seen)
    assert len(seen) > 1_000
    for secret in (hash_key, session, "a-name-on-the-wire", "claude-sonnet", "perdure/1"):
        assert secret.encode() not in seen


class Wire:
    """A forwarder that keeps what passes, both ways."""

    def __init__(self, port: int, target: int) -> None:
        self.seen = bytearray()
        self._target = target
        self._listener = socket.create_server((HOST, port))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Wire:
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in [self._listener, *self._sockets]:
            each.close()
        for thread in self._threads:
            thread.join(10)

    def _begin(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection((HOST, self._target))
            self._sockets += [near, far]
            self._begin(self._pass, near, far)
            self._begin(self._pass, far, near)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return
