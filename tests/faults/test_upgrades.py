"""Upgrades in place: one program is replaced by one of another version, and the other lives on with what it holds.

One rule: what lives on is never restarted, and nobody of those who talk to it notices: one session each, every turn
once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import Final

import pytest
from msgspec.structs import replace

from tests.crash.conversation import PATHS, Attempt, Conversation
from tests.crash.crowd import NAMED, Crowd
from tests.crash.former import former_versions, put_back
from tests.faults.outdoors import PACE_SECONDS, SEED, Outdoors, assert_all_stored, counted
from tests.faults.program import NEWS, Weather
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from worker.census import FORGET_SECONDS
from worker.server import REST_SECONDS

HALF_AN_HOUR: Final = 1_800.0
"""Longer than anything is remembered by time."""
TURNS: Final = 25
PATRONS_FROM: Final = 10_000_000
"""Their attempts are numbered apart from those of any crowd."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as running:
        yield running


class Patrons:
    """Clients who were there before an upgrade and stay: of each protocol one that names its session and one that does
    not."""

    def __init__(self, gateway: Gateway) -> None:
        self.attempts: list[Attempt] = []
        self._gateway = gateway
        self._talks = [Conversation(protocol, name) for protocol in PATHS for name in ("", f"patron-{protocol}")]

    def speak(self, daemon: str = "daemon") -> list[str]:
        """A turn of each; gives the sessions that they were told."""
        told: list[str] = []
        for talk in self._talks:
            number = PATRONS_FROM + len(self.attempts)
            self.attempts.append(Attempt(number, talk, f"question {number}", daemon=daemon))
            with self._gateway.client(daemon) as client:
                assert talk.exchange(client, self.attempts[-1], stream=bool(number % 2)).complete
            told.append(self.attempts[-1].session)
        return told

    def sessions(self) -> list[set[str]]:
        """All that each of them was ever told, by its name of now: under load a claim may be answered too late for its
        turn, which then goes by the id that was proposed."""
        aliases = dict(self._gateway.query("SELECT alias, session_id FROM session_alias"))
        return [
            {aliases.get(each.session, each.session) for each in self.attempts if each.conversation is talk}
            for talk in self._talks
        ]


# -- another worker under a daemon that lives on -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_away", "is_migrating"),
    [(False, False), (True, False), (True, True)],
    ids=["at once", "half an hour later", "half an hour later, and it migrates"],
)
def test_later_worker_takes_over_from_one_whose_daemon_holds_sessions_and_writes(
    provider: ScriptedProvider, is_away: bool, is_migrating: bool
) -> None:
    calm = {"worker": Weather(), "daemon": Weather()}
    with (
        Outdoors(provider, under=calm, tick_seconds=0.2) as gateway,
        Crowd(gateway, SEED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        patrons = Patrons(gateway)
        before, daemon = patrons.speak(), gateway.pid("daemon")
        crowd.open()
        crowd.wait_for_attempts(TURNS)
        assert gateway.stop("worker") == 0
        stored = {record.session.session_id for record in gateway.records()}
        if is_away:
            _let_half_an_hour_pass(gateway, crowd)
            assert patrons.speak() == before
        if is_migrating:
            _put_back(gateway)
        gateway.set("worker", Weather(is_later=True))
        gateway.start_worker()
        gateway.wait_ready()
        assert patrons.speak() == before
        crowd.wait_for_attempts(TURNS)
        eventually(lambda: counted(gateway, "perdure_refused_answers") > 1, what=gateway.logs)
        crowd.silence()
        assert_all_stored(gateway, provider, crowd, patrons)
        assert stored <= {record.session.session_id for record in gateway.records()}
        assert gateway.pid("daemon") == daemon and gateway.log("daemon").count(NEWS.decode()) == 1
        assert gateway.query("PRAGMA user_version") == [(former_versions().stop,)]
        assert len(list(gateway.directory.glob("perdure.db.schema-*"))) == is_migrating
        assert gateway.stop("daemon") == 0 and gateway.stop("worker") == 0


def _let_half_an_hour_pass(gateway: Outdoors, crowd: Crowd) -> None:
    """Without a worker, while turns are answered, and for the daemon's own clocks."""
    gateway.wait_status("degraded")
    crowd.wait_for_attempts(TURNS)
    gateway.set("daemon", Weather(clock_seconds=HALF_AN_HOUR, uptime_seconds=HALF_AN_HOUR))
    crowd.wait_for_attempts(TURNS)
    assert counted(gateway, "perdure_outbox_writes") > 2 * TURNS
    assert counted(gateway, "perdure_outbox_oldest_seconds") > HALF_AN_HOUR


def _put_back(gateway: Gateway) -> None:
    """The database as the version before would have left it."""
    present = gateway.database.rename(gateway.database.with_name("present"))
    put_back(present, gateway.database, former_versions()[-1])
    present.unlink()


# -- another daemon beside one that lives on -----------------------------------------------------------------------


@pytest.mark.parametrize("joining", ["later", "earlier"])
def test_daemon_of_another_version_joins_and_takes_sessions_that_the_old_one_owns(
    provider: ScriptedProvider, joining: str
) -> None:
    is_later = joining == "later"
    old, new = Weather(is_later=not is_later), Weather(is_later=is_later)
    with (
        Outdoors(
            provider, under={"worker": old, "daemon": old, "daemon-2": new}, daemons=2, tick_seconds=0.2
        ) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
        Crowd(gateway, SEED + 1, speakers=NAMED, daemon="daemon-2", pace_seconds=PACE_SECONDS) as other,
    ):
        gateway.start_worker()
        gateway.start_daemon("daemon")
        gateway.wait_status("ready", "daemon")
        patrons = Patrons(gateway)
        before = patrons.speak("daemon")
        crowd.open()
        crowd.wait_for_attempts(TURNS)
        gateway.start_daemon("daemon-2")
        gateway.wait_status("ready", "daemon-2")
        other.open()
        for daemon in ("daemon-2", "daemon"):
            patrons.speak(daemon)
        other.wait_for_attempts(TURNS)
        _stop_for_half_an_hour(gateway, "daemon")
        patrons.speak("daemon-2")
        gateway.resume("daemon")
        patrons.speak("daemon")
        crowd.wait_for_attempts(TURNS)
        crowd.silence()
        other.silence()
        gateway.wait_ready()
        assert_all_stored(gateway, provider, crowd, other, patrons)
        assert patrons.sessions() == [{session} for session in before]
        # One that has not heard yet that it lost a session may answer a turn of it without a claim: that costs nothing.
        assert min(_epochs(gateway, before)) > 1, "nobody took over anything"
        # One that was forgotten counts on from where it was: nothing twice, nothing gone.
        eventually(lambda: _turns_counted(gateway) == len(gateway.rows()), what=lambda: str(_turns_counted(gateway)))
        assert gateway.stop("daemon") == 0 and gateway.stop("daemon-2") == 0


def _stop_for_half_an_hour(gateway: Outdoors, daemon: str) -> None:
    """A daemon that neither speaks nor hears while its own clocks and the worker's go on, until it is forgotten."""
    gateway.pause(daemon)
    for name in (daemon, "worker"):
        sky = gateway.skies[name]
        sky.set(replace(sky.now(), clock_seconds=HALF_AN_HOUR, uptime_seconds=HALF_AN_HOUR))
    first = eventually(lambda: _latest_beat(gateway, time.monotonic() + FORGET_SECONDS))
    # That may have been at the beginning of a round; silent daemons are forgotten at its end.
    eventually(lambda: _latest_beat(gateway, first + REST_SECONDS / 2))


def _latest_beat(gateway: Gateway, after: float) -> float:
    """When the worker showed itself, by its own clock; 0: not after that moment."""
    _pid, at = (gateway.directory / "run" / "worker.beat").read_text("ascii").split()
    return float(at) if float(at) > after else 0.0


def _epochs(gateway: Gateway, session_ids: Sequence[str]) -> set[int]:
    return {record.session.epoch for record in gateway.records() if record.session.session_id in session_ids}


def _turns_counted(gateway: Gateway) -> float:
    """Of all daemons, as one scrape of any of them shows it."""
    _status, text = gateway.get("/metrics", "daemon-2") or (0, b"")
    return sum(float(found) for found in re.findall(r"^perdure_turns_total{.*} (\S+)$", text.decode(), re.MULTILINE))
