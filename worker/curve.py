"""CURVE: keys for `tcp://`, and the door that only known keys pass.

One rule: without keys nothing crosses a network, and a secret is read from a file that others can not read.

Theory of operation.  One directory (`PERDURE_CURVE_DIR`) holds what a machine needs, and may be the same on all:

    worker.public, worker.secret    the worker's pair; daemons know the public half and take no other for it
    daemon.secret                   what daemons of this machine prove themselves with
    daemons/NAME.public             whom the worker lets in

A file is one line, a key in Z85.  The socket asks the door about each peer's key while they shake hands (ZeroMQ's
ZAP), in the worker's own loop; the library's authenticator would bring a thread and an event loop into it.  The files
are looked at then, so a key that is added or taken away counts from the peer's next connection on, without a restart.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from worker.runtime import EXIT_CONFIGURATION, EXIT_USAGE, Fatal

KEY_CHARACTERS: Final = 40
"""32 bytes in Z85."""
DAEMON_KEYS_MAX: Final = 1_000
"""Files of one directory that are looked at while a peer waits."""
HEARTBEAT_MILLISECONDS: Final = 1_000
HEARTBEAT_TIMEOUT_MILLISECONDS: Final = 5_000
"""Longer than a daemon's patience with a silent worker: what is only slow is not cut."""
KNOCKS_PER_TURN_MAX: Final = 100
"""Peers asked about in one turn of the worker's loop: strangers must not keep it from commits."""
STRANGERS_MAX: Final = 1_000
"""Unknown keys that were logged; further ones are only counted."""


class Pair(NamedTuple):
    public: bytes
    secret: bytes


class DaemonKeys(NamedTuple):
    """What a daemon needs: its own pair and the worker's public key."""

    own: Pair
    worker: bytes


class WorkerKeys(NamedTuple):
    """What the worker needs: its own pair, and the directory of the public keys that it lets in."""

    own: Pair
    daemons: Path


def daemon_keys(worker_url: str, directory: str) -> DaemonKeys | None:
    """The keys to reach a worker with; None where none are needed.  Raises Fatal."""
    if not worker_url.startswith("tcp://"):
        return None
    place = Path(directory)
    return DaemonKeys(_pair(place / "daemon.secret"), _read(place / "worker.public"))


def worker_keys(worker_url: str, directory: str) -> WorkerKeys | None:
    """The keys to listen with; None where none are needed.  Raises Fatal."""
    if not worker_url.startswith("tcp://"):
        return None
    place = Path(directory)
    return WorkerKeys(_pair(place / "worker.secret"), place / "daemons")


def make_keys(directory: Path, daemon: str = "") -> list[Path]:
    """Make the worker's pair and one for daemons, or one for a further machine's daemons; the files that were made.
    Raises Fatal rather than replace a key."""
    if not daemon:
        names = {"worker": directory / "worker.public", "daemon": directory / "daemons" / "daemon.public"}
    elif not (directory / "worker.public").exists():
        raise Fatal(
            EXIT_USAGE, f"{directory}: no worker's keys are there yet; `perdure keys {directory}` makes them first"
        )
    elif daemon.isidentifier() and daemon not in ("worker", "daemon"):
        names = {daemon: directory / "daemons" / f"{daemon}.public"}
    else:
        raise Fatal(EXIT_USAGE, f"{daemon!r}: a name of letters, digits and _, other than worker and daemon")
    made: list[Path] = []
    for name, public in names.items():
        made += [directory / f"{name}.secret", public]
    for path in made:
        if path.exists():
            raise Fatal(EXIT_USAGE, f"{path}: is there already, and replacing it would shut out who uses it")
    try:
        (directory / "daemons").mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, public in names.items():
            public_key, secret_key = zmq.curve_keypair()
            _write(directory / f"{name}.secret", secret_key, 0o600)
            _write(public, public_key, 0o644)
    except OSError as error:
        raise Fatal(EXIT_CONFIGURATION, f"{directory}: {error.strerror}; it must be a directory to write to") from None
    return made


def over_tcp(socket: zmq.Socket[bytes]) -> None:
    """What a connection between machines needs on both ends: one whose other end is gone without a word is given up.
    Else its routing id would be taken, and its daemon not heard, for the quarter of an hour that the kernel tries."""
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MILLISECONDS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MILLISECONDS)


class Door:
    """Answers, for a ROUTER of the same context, whether a peer's key is known.  Make it before the ROUTER binds."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: WorkerKeys,
        turned_away: Callable[[], None],
        log: logging.Logger,
    ) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind("inproc://zeromq.zap.01")
        self._keys = keys
        self._turned_away = turned_away
        self._log = log
        self._strangers: set[bytes] = set()

    def guard(self, router: zmq.Socket[bytes]) -> None:
        """Let nobody without a known key speak to this socket."""
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._keys.own.secret)
        router.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.own.public)
        router.setsockopt(zmq.ZAP_DOMAIN, b"perdure")
        # A connection may be gone for its daemon alone: the next one under that name is it.
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)

    def answer(self) -> None:
        """Answer whoever asks; the socket asks for one peer at a time."""
        for _ in range(KNOCKS_PER_TURN_MAX):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.socket.send_multipart(self._judged(frames))

    def close(self) -> None:
        self.socket.close(linger=0)

    def _judged(self, frames: list[bytes]) -> list[bytes]:
        """The reply to one request, in the frames of ZAP 1.0."""
        version, request, _domain, address, _identity, mechanism, *credentials = frames
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
        if key and key in self._known():
            return [version, request, b"200", b"OK", b"", b""]
        self._turned_away()
        if key not in self._strangers and len(self._strangers) < STRANGERS_MAX:
            self._strangers.add(key)
            self._log.warning(
                "turned away a peer at %s: its key %s is in none of %s/*.public (further tries are only counted)",
                address.decode("ascii", "replace"),
                key.decode("ascii"),
                self._keys.daemons,
            )
        return [version, request, b"400", b"unknown key", b"", b""]

    def _known(self) -> set[bytes]:
        known: set[bytes] = set()
        try:
            found = sorted(self._keys.daemons.glob("*.public"))[:DAEMON_KEYS_MAX]
        except OSError as error:
            # No descriptor is left, or the disk is sick: who knocks is turned away, and knocks again.
            self._log.warning("%s: %s", self._keys.daemons, error.strerror)
            return known
        for path in found:
            try:
                known.add(_read(path))
            except Fatal as fatal:
                self._log.warning("%s", fatal)
        return known


def _pair(path: Path) -> Pair:
    secret = _read(path, is_secret=True)
    return Pair(zmq.curve_public(secret), secret)


def _read(path: Path, *, is_secret: bool = False) -> bytes:
    """One key.  Raises Fatal where it is not there, is none, or is a secret that everybody can read."""
    remedy = "`perdure keys DIRECTORY` makes keys, PERDURE_CURVE_DIR names where they are"
    try:
        with path.open("rb") as file:
            if is_secret and stat.S_IMODE(os.fstat(file.fileno()).st_mode) & stat.S_IRWXO:
                raise Fatal(
                    EXIT_CONFIGURATION, f"{path}: everybody can read this secret; chmod 600 it, or make new keys"
                )
            key = file.read(KEY_CHARACTERS + 2).strip()
    except OSError as error:
        raise Fatal(EXIT_CONFIGURATION, f"{path}: {error.strerror}; {remedy}") from None
    try:
        if len(key) != KEY_CHARACTERS or len(z85.decode(key)) != KEY_BYTES:
            raise ValueError
    except (ValueError, KeyError, struct.error):
        raise Fatal(EXIT_CONFIGURATION, f"{path}: is not a key; {remedy}") from None
    return key


def _write(path: Path, key: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key + b"\n")


KEY_BYTES: Final = 32
