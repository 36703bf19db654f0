"""Processes that hang (SIGSTOP) instead of dying: the others go on, and nothing that was said meanwhile is missing."""

from __future__ import annotations

import time
from typing import Final

import pytest

from tests.conftest import Tell
from tests.crash.checker import answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt
from tests.crash.crowd import Crowd
from tests.processes import Gateway
from tests.provider import ScriptedProvider

HANG_SECONDS: Final = 20.0
ANSWER_SECONDS_MAX: Final = 5.0
"""Each wait for a worker that hangs is 250 ms and a turn has three; the rest is for a loaded machine."""
PACE_SECONDS: Final = 0.05
"""Six clients at this pace are up to a hundred turns a second."""
SEED: Final = 5

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_worker_hanging_for_20_seconds_under_load_fails_no_request_and_loses_nothing(tell: Tell) -> None:
    with (
        ScriptedProvider() as provider,
        Gateway(provider, tick_seconds=0.5) as gateway,
        Crowd(gateway, SEED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(20)
        gateway.pause("worker")
        hangs_until = time.monotonic() + HANG_SECONDS
        gateway.wait_status("degraded")
        while time.monotonic() < hangs_until:
            crowd.wait_for_attempts(20)
            assert (gateway.readyz() or {})["status"] == "degraded"
        gateway.resume("worker")
        gateway.wait_ready()
        crowd.wait_for_attempts(20)
        crowd.silence()
        _assert_all_answered(crowd.attempts)
        answers = answers_by_mark(provider.answers)
        found = settled_findings(gateway, crowd.attempts, answers, worker_was_away=True)
        found.add(check_totals(gateway))
        assert found.are_good, str(found)
        assert found.facts > 200
        count = len(crowd.attempts)
        tell(f"worker stopped for {HANG_SECONDS} s: {count} turns, all answered, {found.facts} facts, all there")


def test_daemon_hanging_does_not_hinder_another_and_its_turns_arrive_afterwards() -> None:
    with (
        ScriptedProvider() as provider,
        Gateway(provider, daemons=2, tick_seconds=0.5) as gateway,
        Crowd(gateway, SEED, daemon="daemon", pace_seconds=PACE_SECONDS) as hanging,
        Crowd(gateway, SEED + 1, daemon="daemon-2", pace_seconds=PACE_SECONDS) as served,
    ):
        gateway.start()
        hanging.open("in-mid-stream")
        provider.wait_held("in-mid-stream")
        served.open()
        served.wait_for_attempts(10)
        gateway.pause("daemon")
        provider.release("in-mid-stream")
        hanging_since = sum(attempt.over for attempt in hanging.attempts)
        served.wait_for_attempts(100)
        served.silence()
        answers = answers_by_mark(provider.answers)
        meanwhile = settled_findings(gateway, served.attempts, answers)
        assert meanwhile.are_good, str(meanwhile)
        assert "not heard" not in gateway.log("daemon-2")
        assert sum(attempt.over for attempt in hanging.attempts) == hanging_since
        gateway.resume("daemon")
        hanging.wait_for_attempts(20)
        hanging.silence()
        _assert_all_answered(served.attempts)
        assert {attempt.status for attempt in hanging.attempts} == {200}
        answers = answers_by_mark(provider.answers)
        found = settled_findings(gateway, [*hanging.attempts, *served.attempts], answers)
        found.add(check_totals(gateway))
        assert found.are_good, str(found)


def _assert_all_answered(attempts: list[Attempt]) -> None:
    assert {attempt.status for attempt in attempts} == {200}
    slowest = max(attempts, key=lambda attempt: attempt.last_byte_at - attempt.sent_at)
    assert all(attempt.last_byte_at for attempt in attempts)
    assert slowest.last_byte_at - slowest.sent_at < ANSWER_SECONDS_MAX, slowest.mark
