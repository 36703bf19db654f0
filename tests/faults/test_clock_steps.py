"""Wall clocks that step by hours, each process's on its own: order is by position, and what is shown is sane."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final

import pytest

from tests.conftest import Tell
from tests.crash.crowd import NAMED, Crowd
from tests.faults.outdoors import PACE_SECONDS, SEED, Outdoors, assert_all_stored
from tests.faults.program import Weather
from tests.processes import eventually
from tests.provider import ScriptedProvider
from tests.system.turns import send_turn

HOUR: Final = 3_600.0
STEPS: Final = (
    {"daemon": 2 * HOUR, "daemon-2": -2 * HOUR, "worker": 0.0},
    {"daemon": -26 * HOUR, "daemon-2": HOUR, "worker": 5 * HOUR},
    {"daemon": 0.0, "daemon-2": 0.0, "worker": -5 * HOUR},
)
"""By how much the clocks are off, one after the other."""
FARTHEST: Final = 26 * HOUR

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_clocks_that_step_by_hours_cost_nothing_and_turn_nothing_around(tell: Tell) -> None:
    began = time.time()
    with (
        ScriptedProvider() as provider,
        Outdoors(provider, under={name: Weather() for name in STEPS[0]}, daemons=2, tick_seconds=0.2) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
        Crowd(gateway, SEED + 1, speakers=NAMED, daemon="daemon-2", pace_seconds=PACE_SECONDS) as other,
    ):
        gateway.start()
        crowd.open()
        other.open()
        for clocks in STEPS:
            crowd.wait_for_attempts(10)
            for name, seconds in clocks.items():
                gateway.set(name, Weather(clock_seconds=seconds))
            crowd.wait_for_attempts(10)
            other.wait_for_attempts(10)
        crowd.silence()
        other.silence()
        gateway.wait_ready()
        assert_all_stored(gateway, provider, crowd, other)
        rows = gateway.rows()
        lies = [row for row in rows if not began - FARTHEST <= row.started_at / 1000 <= time.time() + FARTHEST]
        assert lies == [] and all(row.ended_at >= row.started_at for row in rows)
        # They did step: within sessions rows stand in an order that is not that of their times.
        by_session: dict[str, list[int]] = {row.session_id: [] for row in rows}
        for row in sorted(rows, key=lambda row: row.position):
            by_session[row.session_id].append(row.started_at)
        assert any(times != sorted(times) for times in by_session.values())
        for shown in gateway.sessions():
            for name in ("first_seen_at", "last_turn_at"):
                at = datetime.fromisoformat(shown[name]).timestamp()
                assert began - FARTHEST <= at <= time.time() + FARTHEST, (name, shown)
        tell(f"clocks stepped {len(STEPS)} times by up to {FARTHEST / HOUR:.0f} h: {len(rows)} turns, in their order")


@pytest.mark.parametrize(("seconds", "sessions"), [(-HOUR / 20, 1), (HOUR / 20, 1), (HOUR / 2, 2)])
def test_request_sent_again_is_the_same_conversation_while_a_retry_may_come_and_then_no_more(
    seconds: float, sessions: int
) -> None:
    calm = {"daemon": Weather(), "worker": Weather()}
    with ScriptedProvider() as provider, Outdoors(provider, under=calm) as gateway:
        gateway.start()
        with gateway.client() as client:
            send_turn(client, "messages", "stall:never-answered", stream=True)
            provider.wait_held("never-answered")
        eventually(lambda: [row.ended_at > 0 for row in gateway.rows()] == [True])
        # The worker's clock decides; the daemon's times are those of the rows.
        for name in calm:
            gateway.set(name, Weather(clock_seconds=seconds))
        with gateway.client() as client:
            send_turn(client, "messages", "stall:never-answered", stream=True)
            provider.wait_held("never-answered")
            provider.release("never-answered")
            assert client.read().status == 200
        eventually(lambda: len(gateway.rows()) == 2)
        assert len(gateway.sessions()) == sessions
