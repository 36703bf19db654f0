"""What is said to a service manager, over a real datagram socket: when, how often, and that nobody waits for it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.worker.peer import short_directory
from worker.notify import PULSE_SECONDS, STATUS_CHARACTERS_MAX, WORD_SECONDS, Notifier, from_environment


class Ear:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """Every message since it was asked last, in lines."""
        found = []
        try:
            while True:
                found.append(self.socket.recv(65_536).decode("utf-8").split("\n"))
        except BlockingIOError:
            return found


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as made:
        yield made


@pytest.fixture
def ear(directory: Path) -> Iterator[Ear]:
    made = Ear(str(directory / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notifier(directory: Path, ear: Ear, clock: Clock) -> Iterator[Notifier]:
    with closing(Notifier(str(directory / "notify"), watchdog_seconds=20.0, clock=clock)) as made:
        yield made


def test_words_are_those_of_sd_notify(notifier: Notifier, ear: Ear) -> None:
    notifier.busy("opening", within_seconds=60.0)
    notifier.ready("ready: 2 daemons")
    notifier.reloading()
    notifier.stopping("draining", within_seconds=1.5)
    opening, ready, reloading, stopping = ear.heard()
    assert opening == ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=opening"]
    assert ready == ["READY=1", "STATUS=ready: 2 daemons"]
    assert reloading[0] == "RELOADING=1"
    name, _, value = reloading[1].partition("=")
    assert name == "MONOTONIC_USEC" and 0 <= time.monotonic() - int(value) / 1e6 < 10
    assert stopping == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=1500000", "STATUS=draining"]


def test_pulse_is_sent_about_once_a_second_however_often_the_loop_goes_round(
    notifier: Notifier, ear: Ear, clock: Clock
) -> None:
    for _ in range(1_000):
        notifier.pulse(lambda: "ready")
        clock.now += PULSE_SECONDS / 100
    assert len(ear.heard()) == 10


def test_status_is_sent_when_it_is_another_one_and_the_newest_is_not_lost(
    notifier: Notifier, ear: Ear, clock: Clock
) -> None:
    said = []
    for status in ("one", "one", "two", "three", "three"):
        notifier.pulse(lambda status=status: status)  # type: ignore[misc]
        clock.now += PULSE_SECONDS / 2
    clock.now += PULSE_SECONDS
    notifier.pulse(lambda: "three")
    for words in ear.heard():
        assert words[0] == "WATCHDOG=1"
        said += words[1:]
    assert said == ["STATUS=one", "STATUS=two", "STATUS=three"]


def test_watchdog_that_is_short_is_fed_in_time(directory: Path, ear: Ear, clock: Clock) -> None:
    with closing(Notifier(str(directory / "notify"), watchdog_seconds=1.0, clock=clock)) as notifier:
        for _ in range(20):
            heard = 0
            for _ in range(5):
                notifier.pulse()
                clock.now += 0.2
                heard += len(ear.heard())
            assert heard >= 2, "more than one in a second"


def test_nobody_asked_for_signs_of_life_and_none_are_sent(directory: Path, ear: Ear, clock: Clock) -> None:
    with closing(Notifier(str(directory / "notify"), clock=clock)) as notifier:
        notifier.pulse(lambda: "ready")
        clock.now += 10
        notifier.pulse(lambda: "ready")
    assert ear.heard() == [["STATUS=ready"]]


def test_abstract_address_is_spoken_to(clock: Clock) -> None:
    name = f"perdure-test-{os.getpid()}-{time.monotonic_ns()}"
    ear = Ear(f"\0{name}")
    with closing(Notifier(f"@{name}", clock=clock)) as notifier:
        notifier.ready("ready")
    assert ear.heard() == [["READY=1", "STATUS=ready"]]
    ear.socket.close()


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here", "vsock:2:1234", "/" + "x" * 200])
def test_without_a_service_manager_nothing_is_said_and_nothing_fails(address: str) -> None:
    with closing(Notifier(address, watchdog_seconds=1.0)) as notifier:
        notifier.ready("ready")
        notifier.reloading()
        notifier.pulse(lambda: "ready")
        notifier.stopping("stopping")


def test_service_manager_that_does_not_read_is_not_waited_for(notifier: Notifier, ear: Ear, clock: Clock) -> None:
    started = time.monotonic()
    for number in range(10_000):
        notifier.pulse(lambda number=number: f"status {number}")  # type: ignore[misc]
        clock.now += PULSE_SECONDS
    assert time.monotonic() - started < WORD_SECONDS, "ten thousand signs of life into a queue that is full"
    assert 0 < len(ear.heard()) < 10_000


def test_status_of_any_length_and_content_is_one_line(notifier: Notifier, ear: Ear) -> None:
    notifier.ready("a\nREADY=0\x1b[2J" + "x" * 10_000)
    ((ready, status),) = ear.heard()
    assert ready == "READY=1"
    assert status.startswith("STATUS=a READY=0 [2Jxxx") and len(status) == len("STATUS=") + STATUS_CHARACTERS_MAX


def test_environment_is_read_once_and_left_to_no_child(directory: Path, ear: Ear) -> None:
    environ = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "77", "A": "b"}
    with closing(from_environment(environ, pid=77)) as notifier:
        notifier.pulse()
    assert environ == {"A": "b"}
    assert ear.heard() == [["WATCHDOG=1"]]


def test_watchdog_of_another_process_is_not_ours_to_feed(directory: Path, ear: Ear) -> None:
    environ = {"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "77"}
    with closing(from_environment(environ, pid=78)) as notifier:
        notifier.pulse()
    assert ear.heard() == []


def test_environment_that_makes_no_sense_is_nobody(ear: Ear) -> None:
    with closing(from_environment({"NOTIFY_SOCKET": "nonsense", "WATCHDOG_USEC": "soon"})) as notifier:
        notifier.pulse(lambda: "ready")
    assert ear.heard() == []
