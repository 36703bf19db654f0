"""A worker whose disk is sick: requests go on, nothing is acknowledged that is not stored, and it does not exit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from tests.conftest import Tell
from tests.crash.crowd import NAMED, Crowd
from tests.faults.faulty import Fault
from tests.faults.outdoors import PACE_SECONDS, SEED, Outdoors, assert_all_stored, counted
from tests.faults.program import Weather
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider

STORMS: Final = (
    Fault(call="xWrite", error="ENOSPC", lasting=True),
    Fault(call="xSync", error="EIO", lasting=True),
    Fault(call="xWrite", error="short", number=3, lasting=True),
)
CLOSED: Final = (
    Fault(call="xOpen", error="EIO", lasting=True),
    Fault(call="xRead", error="EIO", lasting=True),
    Fault(call="xOpen", error="EROFS", lasting=True),
)
"""In these a worker can not even open its store."""
SLOW_SYNC_SECONDS: Final = 5.0
ANSWER_SECONDS_MAX: Final = 5.0
"""A turn waits three times, each time 250 ms at most; the rest is for a loaded machine."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


def test_disk_that_refuses_every_write_costs_no_answer_and_everything_arrives_when_it_is_well(
    provider: ScriptedProvider, tell: Tell
) -> None:
    with (
        Outdoors(provider, under={"worker": Weather()}, tick_seconds=0.3) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        pid = gateway.pid("worker")
        crowd.open()
        for storm in STORMS:
            crowd.wait_for_attempts(10)
            start = gateway.log_size("worker")
            gateway.set("worker", Weather(disk=storm))
            gateway.wait_status("degraded")
            before = len(gateway.rows())
            crowd.wait_for_attempts(40)
            assert len(gateway.rows()) == before and counted(gateway, "perdure_worker_up") == 0
            assert gateway.log("worker", start).count("can not be written") == 1, "logged with every try"
            gateway.set("worker", Weather())
            gateway.wait_ready()
        assert gateway.is_running("worker") and gateway.pid("worker") == pid
        crowd.silence()
        assert_all_stored(gateway, provider, crowd)
        assert counted(gateway, "perdure_unacknowledged_answers") > 0
        tell(f"a worker's disk that refused writes {len(STORMS)} times: {len(crowd.attempts)} turns, all stored once")


def test_worker_that_can_not_open_its_store_waits_for_the_disk_and_does_not_exit(provider: ScriptedProvider) -> None:
    with (
        Outdoors(provider, under={"worker": Weather()}, tick_seconds=0.3) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(10)
        for storm in CLOSED:
            gateway.kill("worker")
            start = gateway.log_size("worker")
            gateway.set("worker", Weather(disk=storm))
            gateway.launch("worker")
            eventually(partial(_tries_again, gateway, start))
            crowd.wait_for_attempts(10)
            assert gateway.is_running("worker") and (gateway.readyz() or {})["status"] == "degraded"
            gateway.set("worker", Weather())
            gateway.wait_ready()
        crowd.silence()
        assert_all_stored(gateway, provider, crowd)


def test_fsync_of_five_seconds_costs_250_ms_once_and_loses_nothing(provider: ScriptedProvider, tell: Tell) -> None:
    with (
        Outdoors(provider, under={"worker": Weather()}, tick_seconds=3_600) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(20)
        gateway.set("worker", Weather(sync_seconds=SLOW_SYNC_SECONDS))
        gateway.wait_status("degraded")
        crowd.wait_for_attempts(100)
        gateway.set("worker", Weather())
        gateway.wait_ready()
        crowd.silence()
        slowest = max(attempt.last_byte_at - attempt.sent_at for attempt in crowd.attempts)
        assert slowest < ANSWER_SECONDS_MAX
        assert_all_stored(gateway, provider, crowd)
        assert counted(gateway, "perdure_unacknowledged_answers") > 0
        tell(f"fsyncs of {SLOW_SYNC_SECONDS} s: {len(crowd.attempts)} turns, slowest answer {slowest:.2f} s")


def _tries_again(gateway: Gateway, start: int) -> bool:
    return gateway.log("worker", start).count("can not be opened now") > 1
