"""Processes at their limits: out of descriptors, out of memory.  They go on, or die and are started again."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
import zmq

from tests.clients import RawClient
from tests.conftest import Tell
from tests.crash.checker import answers_by_mark, check_totals, excuse_of, settled_findings
from tests.crash.crowd import NAMED, Crowd
from tests.faults.outdoors import PACE_SECONDS, SEED, Outdoors, assert_all_stored
from tests.faults.program import Weather
from tests.processes import HOST, Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import WIRES, take_turn
from tests.worker.peer import Peer
from worker import protocol
from worker.protocol import Command

FILES_MAX: Final = 64
"""Both programs need about two dozen."""
CROWD_CONNECTIONS: Final = 150
SPAN_SECONDS: Final = 2.0
"""How long a process is watched.  One that spins takes all of it."""
BUSY_SHARE_MAX: Final = 0.5
LOG_LINES_MAX: Final = 20
MEMORY_BYTES: Final = 96 * 1024 * 1024
"""Beyond what a process has at its start: a few dozen of the largest frames, and two or three of the bodies below."""
BIG_BYTES: Final = 40 * 1024 * 1024
FLOODS: Final = 4
FLOOD_BYTES_MAX: Final = 8 * MEMORY_BYTES
FLOOD_SECONDS: Final = 60.0
"""Longest wait for a flood, which takes a second on an idle machine."""
BIG_BODIES: Final = 8

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


# -- descriptors


def test_daemon_out_of_descriptors_serves_whom_it_has_rests_and_recovers(provider: ScriptedProvider) -> None:
    with (
        Outdoors(provider, under={"daemon": Weather(files_max=FILES_MAX)}) as gateway,
        gateway_client(gateway) as early,
    ):
        assert take_turn(early, "messages", "before", session="early").status == 200
        start = gateway.log_size("daemon")
        with contextlib.ExitStack() as crowd:
            for _ in range(CROWD_CONNECTIONS):
                crowd.enter_context(socket.create_connection((HOST, gateway.port)))
            eventually(lambda: files_of(gateway.pid("daemon")) >= FILES_MAX - 2)
            assert busy_share(gateway.pid("daemon")) < BUSY_SHARE_MAX, "it spins"
            # Whom it has already it answers, with the connection to the provider that it has.
            assert early.ask("GET", "/healthz").status == 200
            assert take_turn(early, "messages", "meanwhile", session="early").status == 200
        eventually(lambda: files_of(gateway.pid("daemon")) < FILES_MAX / 2)
        for wire in WIRES:
            with gateway.client() as late:
                assert take_turn(late, wire, "after", session=f"late-{wire}").status == 200
        assert gateway.log("daemon", start).count("\n") <= LOG_LINES_MAX, gateway.log("daemon", start)
        assert len(gateway.rows()) == 2 + len(WIRES)


def test_worker_that_dies_of_too_many_peers_costs_no_answer_and_loses_nothing(provider: ScriptedProvider) -> None:
    """ZeroMQ ends the process when there is no descriptor for a peer at an `ipc://` address."""
    with (
        Outdoors(provider, under={"worker": Weather(files_max=FILES_MAX)}, tick_seconds=0.3) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(10)
        with Supervisor(gateway, "worker") as supervisor:
            with many_peers(gateway, CROWD_CONNECTIONS):
                eventually(lambda: supervisor.restarts)
                crowd.wait_for_attempts(10)
            gateway.wait_ready()
        crowd.silence()
        assert_all_stored(gateway, provider, crowd)


def test_programs_take_as_many_descriptors_as_they_may_have(provider: ScriptedProvider) -> None:
    modest = Weather(files_max=FILES_MAX, may_take_more=True)
    with (
        Outdoors(provider, under={"worker": modest, "daemon": modest}) as gateway,
        gateway_client(gateway) as client,
        contextlib.ExitStack() as crowd,
        many_peers(gateway, CROWD_CONNECTIONS),
    ):
        for _ in range(CROWD_CONNECTIONS):
            crowd.enter_context(socket.create_connection((HOST, gateway.port)))
        eventually(lambda: min(files_of(gateway.pid(name)) for name in ("worker", "daemon")) > CROWD_CONNECTIONS)
        assert take_turn(client, "messages", "meanwhile", session="one").status == 200
        assert (gateway.readyz() or {})["status"] == "ready"


@contextlib.contextmanager
def gateway_client(gateway: Gateway) -> Iterator[RawClient]:
    """Of a gateway that was started for it."""
    gateway.start()
    with gateway.client() as client:
        yield client


@contextlib.contextmanager
def many_peers(gateway: Gateway, count: int) -> Iterator[None]:
    context = zmq.Context(io_threads=1)
    context.setsockopt(zmq.MAX_SOCKETS, 2 * count)
    sockets = [context.socket(zmq.DEALER) for _ in range(count)]
    try:
        for each in sockets:
            each.setsockopt(zmq.LINGER, 0)
            each.connect(worker_address(gateway))
        yield
    finally:
        for each in sockets:
            each.close(linger=0)
        context.term()


def worker_address(gateway: Gateway) -> str:
    return f"ipc://{gateway.directory}/run/worker.sock"


def files_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def busy_share(pid: int) -> float:
    """Of a span of time, how much of it a process was computing."""
    before = cpu_ticks(pid)
    threading.Event().wait(SPAN_SECONDS)
    ticks_per_second = 100  # Of Linux, on every machine in use.
    return (cpu_ticks(pid) - before) / ticks_per_second / SPAN_SECONDS


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# -- memory


def test_worker_flooded_beyond_its_memory_loses_nothing(provider: ScriptedProvider, tell: Tell) -> None:
    with (
        Outdoors(provider, under={"worker": Weather(memory_bytes=MEMORY_BYTES)}, tick_seconds=0.3) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(10)
        with Supervisor(gateway, "worker") as supervisor:
            with Flood(gateway) as flood:
                eventually(lambda: supervisor.restarts or flood.sent_bytes > FLOOD_BYTES_MAX, FLOOD_SECONDS)
            crowd.wait_for_attempts(10)
            gateway.wait_ready()
        crowd.silence()
        assert_all_stored(gateway, provider, crowd)
        tell(f"a worker flooded with {flood.sent_bytes >> 20} MB: {supervisor.restarts} restarts, all stored once")


def test_daemon_flooded_beyond_its_memory_loses_nothing(provider: ScriptedProvider, tell: Tell) -> None:
    with (
        Outdoors(provider, under={"daemon": Weather(memory_bytes=MEMORY_BYTES)}, tick_seconds=0.3) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(10)
        with Supervisor(gateway, "daemon") as supervisor:
            flooders = [threading.Thread(target=send_big_body, args=(gateway,)) for _ in range(BIG_BODIES)]
            for each in flooders:
                each.start()
            for each in flooders:
                each.join()
            gateway.wait_ready()
            crowd.wait_for_attempts(10)
        crowd.silence()
        found = settled_findings(
            gateway,
            crowd.attempts,
            answers_by_mark(provider.answers),
            excuses={"daemon": excuse_of(gateway, "daemon", 0)},
        )
        found.add(check_totals(gateway))
        assert found.are_good, str(found)
        tell(f"{BIG_BODIES} bodies of {BIG_BYTES >> 20} MB: {supervisor.restarts} restarts of the daemon, {found}")


class Supervisor:
    """Starts a process again when it has ended, as supervisord does."""

    def __init__(self, gateway: Gateway, name: str) -> None:
        self.restarts = 0
        self._gateway = gateway
        self._name = name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self._look()

    def _look(self) -> None:
        if not self._gateway.is_running(self._name):
            self.restarts += 1
            self._gateway.launch(self._name)


class Flood:
    """Peers that send the worker the largest frames it takes, and read nothing."""

    def __init__(self, gateway: Gateway) -> None:
        self.sent_bytes = 0
        self._address = worker_address(gateway)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(FLOODS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        padding = b" " * (protocol.MESSAGE_BYTES_MAX - 1_000)
        frames = protocol.encode(Command.PING, protocol.Ping())
        with Peer(self._address, f"flood-{secrets.token_hex(4)}".encode(), greet=False) as peer:
            while not self._over.is_set():
                with contextlib.suppress(zmq.Again):
                    peer.send_frames([*frames[:-1], frames[-1] + padding])
                    self.sent_bytes += len(padding)


def send_big_body(gateway: Gateway) -> None:
    """Whatever comes of it."""
    with contextlib.suppress(OSError), gateway.client() as client:
        take_turn(client, "messages", "x" * BIG_BYTES, session=f"big-{secrets.token_hex(4)}")
