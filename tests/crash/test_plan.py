"""The plan of a campaign and its report: pure, so seen without killing anything."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from tests.crash.__main__ import main
from tests.crash.checker import Findings
from tests.crash.points import MARKS, Episode, Point, Setup, Strike, Victim, plan, possible
from tests.crash.report import Report, document, table


def strikes(episodes: list[Episode]) -> list[Strike]:
    return [strike for episode in episodes for strike in episode.strikes]


def test_plan_of_one_seed_twice_is_one_plan_and_of_two_seeds_two() -> None:
    assert list(plan(1, 500)) == list(plan(1, 500))
    assert strikes(list(plan(1, 500))) != strikes(list(plan(2, 500)))


def test_plan_of_fewer_cycles_is_the_beginning_of_the_plan_of_more() -> None:
    fewer, more = list(plan(3, 130)), list(plan(3, 1_000))
    assert fewer[:-1] == more[: len(fewer) - 1]
    assert strikes(fewer) == strikes(more)[:130]
    assert all(episode.first_cycle == sum(len(e.strikes) for e in fewer[:place]) for place, episode in enumerate(fewer))


def test_plan_has_every_strike_equally_often_and_one_in_a_round_at_the_supervisor() -> None:
    counts = Counter(strikes(list(plan(4, 10_000))))
    assert set(counts) == set(possible())
    others = [count for strike, count in counts.items() if strike.victim is not Victim.SUPERVISORD]
    assert max(others) - min(others) <= 1
    supervised = sum(count for strike, count in counts.items() if strike.victim is Victim.SUPERVISORD)
    assert 0.015 < supervised / 10_000 < 0.025


def test_plan_gives_hand_overs_daemons_to_happen_between() -> None:
    for episode in plan(5, 2_000):
        needed = max((MARKS[strike.point].daemons for strike in episode.strikes if strike.point in MARKS), default=1)
        assert episode.daemons >= needed
        assert (episode.setup is Setup.TOGETHER) == (episode.daemons > 1) or episode.setup is Setup.SUPERVISED


def test_plan_of_chosen_victims_and_points_has_no_others() -> None:
    found = strikes(list(plan(6, 50, [Victim.BOTH], [Point.ANY, Point.IN_COMMIT])))
    assert len(found) == 50
    assert set(found) == {Strike(Victim.BOTH, Point.ANY), Strike(Victim.BOTH, Point.IN_COMMIT)}


def test_plan_of_a_victim_that_is_never_at_these_points_is_refused() -> None:
    with pytest.raises(SystemExit):
        main(["--victims", "daemon", "--points", "in-commit"])


def test_report_adds_up_and_shows_what_was_lost() -> None:
    total = Report(7)
    for lost in ([], ["attempt-9: gone"]):
        one = Report(7, cycles=2, episodes=1, attempts=10, answered=9, findings=Findings(lost=list(lost)))
        one.strikes[Strike(Victim.BOTH, Point.IN_COMMIT)] = 2
        one.findings.checked["identity"] = 10
        total.add(one)
    said = document(total, version="1", date="today", command="c", seconds=1.0)
    assert (said["cycles"], said["facts_checked"], said["lost"]) == (4, 20, ["attempt-9: gone"])
    assert said["cycles_by_victim_and_point"] == {"both": {"in-commit": 4}}
    assert not total.is_good
    assert "attempt-9: gone" in table(total)


def test_report_of_a_failed_cycle_is_not_good_even_without_words() -> None:
    assert not Report(1, failed_cycles=[3]).is_good
    assert Report(1).is_good


def test_chance_of_an_episode_does_not_depend_on_the_others() -> None:
    one, other = islice(plan(8, 100), 2)
    assert one.chance(8).random() == one.chance(8).random() != other.chance(8).random()
