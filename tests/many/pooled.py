"""Clients that keep their connections, as SDKs do, and know whose fault a failure is.

One rule: a request fails if it was sent on a new connection and not answered to its end, or if its answer was cut.  One
that was sent on a kept connection which closed before the first byte of an answer is sent once more, on a new one: the
connection was stale, and nobody had read the request.

Theory.  This is what clients may do by the rules of HTTP, and what their users do not notice.  Each client has a
session of its own and one connection at a time, which some use only once; it asks without pause or, as people do, after
longer than an idle connection lives in a daemon that is told to stop.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.clients import RawAnswer, RawClient
from tests.processes import DEADLINE_SECONDS, HOST
from tests.system.turns import WIRES, send_turn

PATIENCE_SECONDS: Final = 20.0
PAUSES_SECONDS: Final = (0.0, 0.02, 0.1, 2.5)
"""Between two requests of a client, in turn: the last is longer than `IDLE_DRAIN_SECONDS`."""

SINGLE_USE_EVERY: Final = 3
"""Of so many clients one makes a connection for every request."""


class Failure(NamedTuple):
    client_port: int
    """Of the connection it came on."""
    what: str


class Connection(RawClient):
    @property
    def port(self) -> int:
        """The client's own, by which the kernel knows the connection."""
        return int(self._socket.getsockname()[1])


class Client:
    """One user: asks, and keeps the connection for the next time if the answer allows it."""

    def __init__(self, name: str, choose: Callable[[], int], *, keeps: bool) -> None:
        self.stale = 0
        """Kept connections that were closed meanwhile."""
        self.kept = 0
        """Requests on a connection that had answered one before."""
        self._name = name
        self._choose = choose
        self._keeps = keeps
        self._connection: Connection | None = None

    def ask(self, wire_number: int, text: str, *, stream: bool) -> Failure | None:
        """Send a turn and read its answer; what went wrong, if anything did."""
        if self._connection is not None:
            self.kept += 1
            answer = self._exchange(self._connection, wire_number, text, stream=stream)
            if answer is not None:
                return self._judged(self._connection, answer)
            self.stale += 1
            self.close()
        try:
            self._connection = Connection(HOST, self._choose(), deadline_seconds=PATIENCE_SECONDS)
        except OSError as error:
            return Failure(0, f"{self._name}: not connected: {error}")
        answer = self._exchange(self._connection, wire_number, text, stream=stream)
        if answer is None:
            failure = Failure(self._connection.port, f"{self._name}: a new connection was closed without an answer")
            self.close()
            return failure
        return self._judged(self._connection, answer)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, connection: Connection, wire_number: int, text: str, *, stream: bool) -> RawAnswer | None:
        """None: the connection ended before the first byte of an answer."""
        try:
            send_turn(connection, WIRES[wire_number % len(WIRES)], text, session=self._name, stream=stream)
        except OSError:
            return None
        return connection.read() if connection.read_first_byte() else None

    def _judged(self, connection: Connection, answer: RawAnswer) -> Failure | None:
        failure = None
        if answer.status != 200 or not answer.complete:
            fault = f"{self._name}: status {answer.status}, {answer.fault or 'complete'}: {answer.body[-200:]!r}"
            failure = Failure(connection.port, fault)
        if failure or not self._keeps or answer.header("connection").lower() == "close":
            self.close()
        return failure


class Load:
    """A context manager: while it is entered, clients ask.  `failures` and the counts are complete after it."""

    def __init__(self, seed: int, clients: int, choose: Callable[[random.Random], int]) -> None:
        self.failures: list[Failure] = []
        self._asked = count()
        self.answered = 0
        self._changed = threading.Condition()
        self._is_over = threading.Event()
        self._clients: list[Client] = []
        self._threads: list[threading.Thread] = []
        for number in range(clients):
            chance = random.Random(f"{seed}/{number}")
            is_kept = number % SINGLE_USE_EVERY > 0
            client = Client(f"client-{seed}-{number}", _drawing(choose, chance), keeps=is_kept)
            self._clients.append(client)
            self._threads.append(threading.Thread(target=self._work, args=(number, client, chance), daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS + DEADLINE_SECONDS)
        for client in self._clients:
            client.close()
        assert error is not None or not any(thread.is_alive() for thread in self._threads), "a client hangs"

    @property
    def stale(self) -> int:
        return sum(client.stale for client in self._clients)

    @property
    def kept(self) -> int:
        return sum(client.kept for client in self._clients)

    def wait_for_answers(self, more: int) -> None:
        """Return when so many more requests were answered."""
        with self._changed:
            wanted = self.answered + more
            assert self._changed.wait_for(lambda: self.answered >= wanted, 2 * DEADLINE_SECONDS), "nobody is answered"

    def _work(self, number: int, client: Client, chance: random.Random) -> None:
        pause_seconds = PAUSES_SECONDS[number % len(PAUSES_SECONDS)]
        while not self._is_over.wait(pause_seconds):
            text = f"question {number}-{next(self._asked)} words:{chance.randint(1, 30)}"
            failure = client.ask(number, text, stream=bool(chance.getrandbits(1)))
            with self._changed:
                if failure:
                    self.failures.append(failure)
                else:
                    self.answered += 1
                self._changed.notify_all()


def connections_of(pid: int, port: int) -> set[int]:
    """The clients' ports of the connections to this port that a process has accepted; it must stand still."""
    inodes = {link.name for link in map(_target, Path(f"/proc/{pid}/fd").iterdir()) if link.name.startswith("socket:")}
    found: set[int] = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
        if local == port and f"socket:[{fields[9]}]" in inodes:
            found.add(remote)
    return found - {0}


def accepts(port: int) -> bool:
    """Somebody listens there."""
    try:
        with socket.create_connection((HOST, port), timeout=DEADLINE_SECONDS):
            return True
    except OSError:
        return False


def said(failures: Sequence[Failure]) -> str:
    return "\n".join(failure.what for failure in failures)


def _drawing(choose: Callable[[random.Random], int], chance: random.Random) -> Callable[[], int]:
    return lambda: choose(chance)


def _target(link: Path) -> Path:
    return Path(str(link.readlink()))
