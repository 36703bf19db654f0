"""A former owner that nobody told: the worker is killed between a claim's acknowledgement and the word to the one
before.  Its snapshots are refused by the epoch alone; with that rule taken away the newer state is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from tests.crash.conversation import Attempt, Conversation
from tests.crash.nursery import MarkedGateway, Nursery
from tests.crash.points import Point
from tests.processes import DEADLINE_SECONDS
from tests.provider import ScriptedProvider

TURNS_BEFORE: Final = 5
"""More than after it, so that the former owner's generation is the higher one."""
TICK_SECONDS: Final = 3_600.0
"""Only stopping writes snapshots: both daemons have one to write."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_former_owner_that_was_not_told_overwrites_nothing() -> None:
    assert _turns_in_snapshot([]) == TURNS_BEFORE + 2


def test_without_the_fence_a_former_owner_that_was_not_told_overwrites_what_is_newer() -> None:
    assert _turns_in_snapshot(["no_fence"]) == TURNS_BEFORE


def _turns_in_snapshot(faults: Sequence[str]) -> int:
    """How many of the conversation's turns the last snapshot knows after everything was stopped in order."""
    with (
        Nursery() as nursery,
        ScriptedProvider() as provider,
        MarkedGateway(provider, nursery, faults=faults, daemons=2, tick_seconds=TICK_SECONDS) as gateway,
    ):
        gateway.start()
        talk = Conversation("messages", "handed-over")
        for number in range(TURNS_BEFORE):
            _say(gateway, talk, number, "daemon")
        gateway.arm("worker", Point.IN_HAND_OVER, 1)
        _say(gateway, talk, TURNS_BEFORE, "daemon-2")
        assert gateway.wait_gone("worker", DEADLINE_SECONDS) and gateway.disarm("worker")
        gateway.start()
        _say(gateway, talk, TURNS_BEFORE + 1, "daemon-2")
        for name in ("daemon-2", "daemon"):
            assert gateway.stop(name) == 0
        ((last, snapshot),) = gateway.query("SELECT last_position, snapshot_position FROM session_state")
        assert last == TURNS_BEFORE + 2
        return int(snapshot)


def _say(gateway: MarkedGateway, talk: Conversation, number: int, daemon: str) -> None:
    with gateway.client(daemon) as client:
        assert talk.exchange(client, Attempt(number, talk, f"question {number}"), stream=True).complete
