"""Keys and the door: what is made, what is refused, and who gets in over real sockets."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.worker.peer import short_directory, wait_until
from worker.curve import KNOCKS_PER_TURN_MAX, DaemonKeys, Door, daemon_keys, make_keys, worker_keys
from worker.runtime import EXIT_CONFIGURATION, EXIT_USAGE, Fatal

TCP = "tcp://127.0.0.1:7374"
HEARD_MILLISECONDS = 10_000
UNHEARD_MILLISECONDS = 500


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made / "keys"


@pytest.fixture
def house(directory: Path) -> Iterator[House]:
    make_keys(directory)
    with House(directory) as made:
        yield made


class House:
    """A ROUTER behind a door that says back what it hears, in a thread."""

    def __init__(self, directory: Path) -> None:
        self.turned_away = 0
        self._context = zmq.Context()
        keys = worker_keys(TCP, str(directory))
        assert keys is not None
        self._door = Door(self._context, keys, self._count, logging.getLogger("worker"))
        self._router = self._context.socket(zmq.ROUTER)
        self._door.guard(self._router)
        self.address = f"tcp://127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> House:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _count(self) -> None:
        self.turned_away += 1

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._door.socket, zmq.POLLIN)
        poller.register(self._router, zmq.POLLIN)
        while not self._over.is_set():
            ready = dict(poller.poll(20))
            self._door.answer()
            if self._router in ready:
                self._router.send_multipart(self._router.recv_multipart())
        self._router.close(linger=0)
        self._door.close()
        self._context.term()


def is_heard(address: str, keys: DaemonKeys | None, milliseconds: int = HEARD_MILLISECONDS) -> bool:
    """Whether a peer with these keys gets its word back."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
            socket.setsockopt(zmq.CURVE_SERVERKEY, keys.worker)
        socket.connect(address)
        socket.send(b"knock")
        return bool(socket.poll(milliseconds)) and socket.recv() == b"knock"


def keys_in(directory: Path) -> DaemonKeys:
    found = daemon_keys(TCP, str(directory))
    assert found is not None
    return found


def test_made_keys_belong_together_and_secrets_are_their_users_alone(directory: Path) -> None:
    made = make_keys(directory)

    assert sorted(path.relative_to(directory).as_posix() for path in made) == [
        "daemon.secret",
        "daemons/daemon.public",
        "worker.public",
        "worker.secret",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.suffix == ".secret"} == {0o600}
    daemon, worker = keys_in(directory), worker_keys(TCP, str(directory))
    assert worker is not None
    assert daemon.worker == worker.own.public
    assert daemon.own.public == (directory / "daemons" / "daemon.public").read_bytes().strip()


def test_ipc_needs_no_keys() -> None:
    assert daemon_keys("ipc:///r/worker.sock", "") is None
    assert worker_keys("ipc:///r/worker.sock", "/not/there") is None


def test_keys_that_are_there_are_never_replaced(directory: Path) -> None:
    make_keys(directory)
    before = {path: path.read_bytes() for path in directory.rglob("*.*")}
    with pytest.raises(Fatal, match="is there already") as caught:
        make_keys(directory)
    assert caught.value.status == EXIT_USAGE
    assert {path: path.read_bytes() for path in directory.rglob("*.*")} == before


@pytest.mark.parametrize("name", ["worker", "daemon", "../up", "a b", "x.public"])
def test_further_machine_of_an_unfit_name_is_refused(directory: Path, name: str) -> None:
    made = make_keys(directory)
    with pytest.raises(Fatal) as caught:
        make_keys(directory, name)
    assert caught.value.status == EXIT_USAGE
    assert sorted(path for path in directory.rglob("*") if path.is_file()) == sorted(made)


def test_further_machine_without_a_workers_keys_is_refused(directory: Path) -> None:
    with pytest.raises(Fatal, match="no worker's keys are there yet") as caught:
        make_keys(directory, "laptop")
    assert caught.value.status == EXIT_USAGE
    assert not directory.exists()


BAD_SECRETS = {
    "not there": (None, 0o600, "No such file"),
    "empty": (b"", 0o600, "is not a key"),
    "too short": (b"a" * 39, 0o600, "is not a key"),
    "too long": (b"a" * 60, 0o600, "is not a key"),
    "of no alphabet": (b"\xff" * 40, 0o600, "is not a key"),
    "beyond 32 bytes": (b"#" * 40, 0o600, "is not a key"),
    "readable by everybody": (b"a" * 40, 0o644, "everybody can read"),
}


@pytest.mark.parametrize(("content", "mode", "said"), BAD_SECRETS.values(), ids=BAD_SECRETS.keys())
def test_secret_that_is_none_is_refused_with_the_remedy(
    directory: Path, content: bytes | None, mode: int, said: str
) -> None:
    make_keys(directory)
    secret = directory / "daemon.secret"
    secret.unlink()
    if content is not None:
        secret.write_bytes(content)
        secret.chmod(mode)
    with pytest.raises(Fatal, match=said) as caught:
        daemon_keys(TCP, str(directory))
    assert caught.value.status == EXIT_CONFIGURATION
    assert content is None or len(content) < 40 or content.decode("latin-1")[:40] not in str(caught.value)


def test_peer_with_a_known_key_is_heard_and_one_with_another_is_turned_away(house: House, directory: Path) -> None:
    stranger = directory.parent / "stranger"
    make_keys(stranger)
    keys = keys_in(stranger)._replace(worker=keys_in(directory).worker)

    assert is_heard(house.address, keys_in(directory))
    assert not is_heard(house.address, keys, UNHEARD_MILLISECONDS)
    assert house.turned_away > 0


def test_peer_without_keys_is_not_heard(house: House) -> None:
    assert not is_heard(house.address, None, UNHEARD_MILLISECONDS)


def test_peer_that_expects_another_worker_is_not_heard(house: House, directory: Path) -> None:
    other = directory.parent / "other"
    make_keys(other)
    assert not is_heard(house.address, keys_in(directory)._replace(worker=keys_in(other).worker), UNHEARD_MILLISECONDS)


def test_key_that_is_added_or_taken_away_counts_from_the_next_connection_on(house: House, directory: Path) -> None:
    secret, public = make_keys(directory, "laptop")
    there = directory.parent / "there"
    (there / "daemons").mkdir(parents=True)
    (there / "daemon.secret").write_bytes(secret.read_bytes())
    (there / "daemon.secret").chmod(0o600)
    (there / "worker.public").write_bytes((directory / "worker.public").read_bytes())

    assert is_heard(house.address, keys_in(there))
    public.unlink()
    assert not is_heard(house.address, keys_in(there), UNHEARD_MILLISECONDS)


def test_one_damaged_public_key_does_not_shut_out_the_others(house: House, directory: Path) -> None:
    (directory / "daemons" / "aaa.public").write_bytes(b"nonsense")
    assert is_heard(house.address, keys_in(directory))


def test_strangers_are_logged_once_each_and_counted_every_time(
    house: House, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "daemons" / "daemon.public").unlink()
    for _ in range(2):
        assert not is_heard(house.address, keys_in(directory), UNHEARD_MILLISECONDS)
    wait_until(lambda: house.turned_away >= 2, "both are counted")
    assert [record.getMessage().count("turned away") for record in caplog.records] == [1]


def test_crowd_at_the_door_is_asked_about_in_turns_of_the_loop() -> None:
    """The worker commits between them."""
    assert 0 < KNOCKS_PER_TURN_MAX <= 1_000


def test_stranger_who_knocks_while_no_descriptor_is_left_is_turned_away(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the worker lives: anybody can open connections until there are no more."""
    make_keys(directory)
    keys = worker_keys(TCP, str(directory))
    assert keys is not None
    with zmq.Context() as context:
        door = Door(context, keys._replace(daemons=_Unlistable(directory)), lambda: None, logging.getLogger("worker"))
        assert door._judged([b"1.0", b"1", b"perdure", b"127.0.0.1", b"", b"CURVE", bytes(32)])[2] == b"400"
        door.close()
    assert "Too many open files" in caplog.text


class _Unlistable(type(Path())):  # type: ignore[misc]  # the kind of path of this system
    def glob(self, _pattern: str) -> Iterator[Path]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_peer_that_comes_back_while_its_old_connection_still_counts_is_heard(house: House, directory: Path) -> None:
    """Whatever stands between has forgotten the connection; this end has not."""
    keys = keys_in(directory)
    with zmq.Context() as context:
        former = named_peer(context, house.address, keys)
        assert knocks(former)
        present = named_peer(context, house.address, keys)
        assert knocks(present)
        former.close(linger=0)
        present.close(linger=0)


def knocks(peer: zmq.Socket[bytes]) -> bool:
    peer.send(b"knock")
    return bool(peer.poll(HEARD_MILLISECONDS)) and peer.recv() == b"knock"


def named_peer(context: zmq.Context[zmq.Socket[bytes]], address: str, keys: DaemonKeys) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.ROUTING_ID, b"the same")
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.own.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.own.public)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.worker)
    socket.connect(address)
    return socket
