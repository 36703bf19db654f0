"""Two hundred kills with every fact checked after each; what a campaign would find with a rule taken away; and a killed
conversation beside one that nobody killed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.conftest import Tell
from tests.crash.conversation import Attempt, Conversation
from tests.crash.episodes import JOBS, run, run_episode
from tests.crash.nursery import Nursery
from tests.crash.points import TICKS_SECONDS, Episode, Point, Setup, Strike, Victim, plan, possible
from tests.processes import Gateway
from tests.provider import ScriptedProvider
from worker.protocol import Protocol

CYCLES: Final = 200
SEED: Final = 1
"""Of the episodes with a rule taken away."""
CYCLES_UNTIL_FOUND: Final = 48
"""A rule whose absence goes unnoticed for so long is not needed, or the campaign is too tame."""
CYCLES_TAKEN: Final = 3
MISSED_MAX: Final = CYCLES // 5
"""How many points may not be come to in time: with more, the campaign is not the one that its report tells of."""
TURNS: Final = 6
PROTOCOLS: Final[tuple[Protocol, ...]] = ("messages", "chat", "responses")
TIMED_FIELDS: Final = ("last_turn_at", "last_bust_at", "inter_bust_interval_ema")
"""Of the gradient: what depends on the clock, and so differs between any two runs."""
TOTALS: Final = (
    "session_id",
    "turns",
    "interrupted",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
    "cost_nanousd",
    "message_count",
    "model",
    "resolved_conversation_ttl",
)

pytestmark = [pytest.mark.crash, pytest.mark.slow]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


def test_campaign_of_kills_at_every_point_loses_and_doubles_nothing(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    began = time.monotonic()
    report = run(list(plan(seed, CYCLES)), seed, JOBS)
    print(report)
    found = report.findings
    seconds = time.monotonic() - began
    tell(f"kill campaign, seed {seed}: {report.cycles} cycles, {found.facts} facts, {found}, {seconds:.0f} s")
    assert report.is_good, str(report)
    assert report.cycles == CYCLES
    # Every point was meant; that some are not come to in time is a slow machine's, that most are is the campaign's.
    assert {strike.point for strike in report.strikes} == set(Point)
    assert set(report.strikes) >= {strike for strike in possible() if strike.victim is not Victim.SUPERVISORD}
    assert report.missed.total() < MISSED_MAX, report.missed
    # On a machine so slow that most of the promises are excused nothing would be shown.
    assert found.excused < found.facts / 10, str(report)


@pytest.mark.parametrize(
    ("faults", "strike"),
    [
        (["acknowledge_before_commit"], Strike(Victim.WORKER, Point.IN_COMMIT)),
        (["no_status_rule"], Strike(Victim.WORKER, Point.AFTER_COMMIT)),
        (["late_snapshots", "no_generation_rule"], Strike(Victim.WORKER, Point.BETWEEN_TURNS)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else "",
)
def test_campaign_with_a_rule_taken_away_finds_it(
    faults: list[str], strike: Strike, nursery: Nursery, tell: Tell
) -> None:
    """The fence, without which nothing is lost that a client was promised, is in `test_hand_over`."""
    for first in range(0, CYCLES_UNTIL_FOUND, CYCLES_TAKEN):
        report = run_episode(_aimed(strike, first), SEED, nursery, faults)
        if not report.is_good:
            said = next(iter([*report.findings.lost, *report.findings.doubled, *report.findings.wrong]))
            tell(f"negative control: {' and '.join(faults)}, found in cycle {first + report.cycles}: {said[:100]}")
            return
    pytest.fail(f"{CYCLES_UNTIL_FOUND} cycles found nothing")


def test_campaign_on_a_wire_that_repeats_snapshots_late_finds_nothing(nursery: Nursery) -> None:
    """The fault beside which the generation rule is taken away is none by itself."""
    episode = _aimed(Strike(Victim.WORKER, Point.BETWEEN_TURNS), 0)
    report = run_episode(episode, SEED, nursery, ["late_snapshots"])
    assert report.is_good and report.cycles == CYCLES_TAKEN, str(report)


def _aimed(strike: Strike, first: int) -> Episode:
    """An episode in which snapshots are written all the time: those that the generation rule is for come with them."""
    numbers = filter(_has_many_snapshots, itertools.count())
    number = next(itertools.islice(numbers, first // CYCLES_TAKEN, None))
    return Episode(number, Setup.ALONE, (strike,) * CYCLES_TAKEN, first_cycle=first)


def _has_many_snapshots(number: int) -> bool:
    return Episode(number, Setup.ALONE, ()).tick_seconds(SEED) == min(TICKS_SECONDS)


def test_state_after_kills_between_turns_is_that_of_a_run_without() -> None:
    killed = _run_script(kill_before_turns={1, 2, 4})
    assert killed == _run_script(kill_before_turns=set())
    assert {shown["turns"] for shown in killed.values()} == {TURNS}
    assert any(shown["gradient"]["bust_rate_ema"] > 0 for shown in killed.values())


def _run_script(kill_before_turns: set[int]) -> dict[str, dict[str, Any]]:
    """The same conversations, turn by turn; everything is killed before some of the turns.  What is shown by name."""
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=3_600) as gateway:
        talks = [Conversation(protocol, f"scripted-{protocol}") for protocol in PROTOCOLS]
        gateway.start()
        for turn in range(TURNS):
            if turn in kill_before_turns:
                gateway.kill_all()
                gateway.start()
            for place, talk in enumerate(talks):
                text = f"question {turn} words:{10 + turn}{' cold' if turn == 3 else ''}"
                with gateway.client() as client:
                    answer = talk.exchange(client, Attempt(100 * turn + place, talk, text), stream=turn % 2 == 0)
                assert answer.header("x-perdure-session") == talk.expected_session
        assert gateway.stop("daemon") == 0
        return {shown["header_session_id"]: _lasting(shown) for shown in gateway.sessions()}


def _lasting(shown: dict[str, Any]) -> dict[str, Any]:
    gradient = {name: value for name, value in shown["gradient"].items() if name not in TIMED_FIELDS}
    return {name: shown[name] for name in TOTALS} | {"gradient": gradient}
