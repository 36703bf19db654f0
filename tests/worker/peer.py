"""A worker to talk to, in a thread or as a process, and a peer that talks to it over a real DEALER.

One rule: nothing here waits without a deadline, and what was started is gone afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import zmq

from worker import protocol
from worker.protocol import Command, Message
from worker.server import Server
from worker.store import Store

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 10.0


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        pause.wait(0.005)


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's path."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Peer:
    """One DEALER; greets unless told not to."""

    def __init__(self, address: str, boot: bytes = b"", *, greet: bool = True, receive_limit: int = 1_000) -> None:
        self.boot = boot or f"peer-{secrets.token_hex(6)}".encode()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.ROUTING_ID, self.boot)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, receive_limit)
        self._socket.setsockopt(zmq.SNDTIMEO, int(PATIENCE_SECONDS * 1000))
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MESSAGE_BYTES_MAX)
        self._socket.connect(address)
        if greet:
            self.welcome = self.hello()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close(linger=0)
        self._context.term()

    def hello(self) -> protocol.Welcome:
        text = self.boot.decode("latin-1")
        self.send(Command.HELLO, protocol.Hello(boot=text, instance=text, version="0", pid=os.getpid()))
        body = self.expect(Command.WELCOME).body
        assert isinstance(body, protocol.Welcome)
        return body

    def send(self, command: Command, body: protocol.Body, sequence: int = 0) -> None:
        self.send_frames(protocol.encode(command, body, sequence))

    def send_frames(self, frames: list[bytes]) -> None:
        self._socket.send_multipart(frames)

    def receive(self, seconds: float = PATIENCE_SECONDS) -> Message:
        assert self._socket.poll(int(seconds * 1000)), f"nothing heard within {seconds} s"
        return protocol.decode(self._socket.recv_multipart(), protocol.FROM_WORKER)

    def expect(self, command: Command, sequence: int | None = None) -> Message:
        """The next message of that kind; others are passed over."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            message = self.receive(max(0.001, deadline - time.monotonic()))
            if message.command is command and sequence in (None, message.sequence):
                return message

    def write(self, command: Command, body: protocol.Body, sequence: int) -> protocol.Reply:
        self.send(command, body, sequence)
        return self.replies({sequence})[sequence]

    def replies(self, sequences: set[int]) -> dict[int, protocol.Reply]:
        found: dict[int, protocol.Reply] = {}
        while not sequences <= set(found):
            body = self.expect(Command.ACK).body
            assert isinstance(body, protocol.Acks)
            found |= {reply.sequence: reply for reply in body.replies}
        return found

    def is_committing(self) -> bool:
        self.send(Command.PING, protocol.Ping())
        body = self.expect(Command.PONG).body
        assert isinstance(body, protocol.Pong)
        return body.committing

    def query(self, sequence: int = 7, **fields: Any) -> protocol.Answer:
        self.send(Command.QUERY, protocol.Query(**fields), sequence)
        body = self.expect(Command.ANSWER, sequence).body
        assert isinstance(body, protocol.Answer)
        return body


class ThreadedWorker:
    """The server and its store in a thread of this process, for tests that reach into either."""

    def __init__(self, directory: Path) -> None:
        self.address = f"ipc://{directory}/w.sock"
        self.store = Store.__new__(Store)
        self.failure: BaseException | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(directory / "perdure.db",))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the worker does not stop"
        if self.failure is not None:
            raise self.failure

    def _run(self, path: Path) -> None:
        # SQLite's connection and the socket belong to the thread that uses them.
        try:
            self.store = Store(path)
            log = logging.getLogger("worker")
            self.server = Server(
                self.store, self.address, version="0", boot=secrets.token_hex(8), log=log, beat=lambda: None
            )
            self._ready.set()
            self.server.run()
            self.store.close()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that judges
            self.failure = error


class WorkerProcess:
    """`python -m worker`, killed at the end whatever happens."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.address = f"ipc://{directory}/run/worker.sock"
        self._environment = {"PATH": os.environ["PATH"], "PERDURE_STATE_DIR": str(directory), **settings}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker"], cwd=ROOT, env=self._environment, stderr=subprocess.PIPE
        )

    def end(self) -> tuple[int, str]:
        """Wait for the process to end by itself; its exit status and what it said."""
        _, said = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, said.decode()
