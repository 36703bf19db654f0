"""How worker and daemons stand: told from memory, whatever daemons say of themselves."""

from __future__ import annotations

import math

import msgspec
import pytest

from worker.census import Census
from worker.protocol import COUNT_MAX, Family, Hello, Sample
from worker.standing import Commits, DaemonStanding, Durations


@pytest.mark.parametrize(
    ("durations", "expected"),
    [
        ([], Commits()),
        ([3.0], Commits(count=1, p50_seconds=3.0, p99_seconds=3.0)),
        ([2.0, 1.0], Commits(count=2, p50_seconds=1.0, p99_seconds=2.0)),
        (range(100, 0, -1), Commits(count=100, p50_seconds=50.0, p99_seconds=99.0)),
        (range(1, 201), Commits(count=100, p50_seconds=150.0, p99_seconds=199.0)),
    ],
)
def test_shares_are_those_of_the_newest(durations: list[float], expected: Commits) -> None:
    known = Durations(limit=100)
    for seconds in durations:
        known.add(seconds)
    assert known.commits() == expected


def daemon(instance: str, **changes: object) -> Hello:
    return msgspec.convert(
        {"boot": f"boot-{instance}", "instance": instance, "version": "7", "pid": 5} | changes, Hello
    )


def gauges(writes: float, oldest: float) -> list[Family]:
    return [
        Family("perdure_outbox_writes", "gauge", "help", [Sample("perdure_outbox_writes", [], writes)]),
        Family("perdure_outbox_oldest_seconds", "gauge", "help", [Sample("perdure_outbox_oldest_seconds", [], oldest)]),
    ]


def test_census_tells_of_every_daemon_and_of_no_command() -> None:
    census = Census()
    census.greet("boot-two", daemon("two", started_at=70), 0.0)
    census.greet("boot-one", daemon("one"), 1.0)
    census.greet("boot-command", daemon("command", is_daemon=False), 1.0)
    census.peers["boot-two"].metrics = gauges(3.0, 1.5)
    census.peers["boot-two"].state = "draining"
    census.heard("boot-one", 4.0)

    assert census.standing(5.0) == [
        DaemonStanding(instance="one", pid=5, version="7", silent_seconds=1.0),
        DaemonStanding(
            instance="two",
            pid=5,
            version="7",
            started_at=70,
            state="draining",
            silent_seconds=5.0,
            outbox_writes=3,
            outbox_oldest_seconds=1.5,
        ),
    ]


def test_daemon_that_left_is_not_told_of() -> None:
    census = Census()
    census.greet("boot-one", daemon("one"), 0.0)
    census.leave("boot-one")
    assert census.standing(0.0) == []


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_absurd_figures_of_a_daemon_are_told_as_ones_that_can_be_read(figure: float) -> None:
    census = Census()
    census.greet("boot-one", daemon("one"), 0.0)
    census.peers["boot-one"].metrics = gauges(figure, figure)
    told = census.standing(0.0)[0]
    assert 0 <= told.outbox_writes <= COUNT_MAX
    assert msgspec.json.decode(msgspec.json.encode(told), type=DaemonStanding) == told
