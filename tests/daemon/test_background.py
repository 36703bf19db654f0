"""A gateway that a command has started is all there before the command goes on."""

from __future__ import annotations

import time

import pytest

from daemon.verbs import background
from worker import rollcall
from worker.settings import Settings
from worker.standing import Called, DaemonStanding


def called(number: int, state: str) -> Called:
    standing = DaemonStanding(instance=f"daemon-{number}", pid=number, version="0", state=state)
    return Called(instance=f"daemon-{number}", pid=number, is_heard=True, standing=standing)


def test_wait_for_the_others_ends_when_all_that_are_to_be_are_running(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        [called(0, "running")],
        [called(0, "running"), called(1, "starting")],
        [called(0, "running"), Called(instance="daemon-1", pid=1, is_heard=False, standing=None)],
        [called(0, "running"), called(1, "running")],
    ]
    monkeypatch.setattr(rollcall, "call", lambda _directory: answers.pop(0))
    background._wait_for_the_others(Settings(daemons=2), time.monotonic() + 60)
    assert answers == []


def test_wait_for_the_others_is_for_none_of_them_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def nobody(directory: str) -> list[Called]:
        calls.append(directory)
        return []

    monkeypatch.setattr(rollcall, "call", nobody)
    background._wait_for_the_others(Settings(daemons=2), time.monotonic() + 0.1)
    assert calls
