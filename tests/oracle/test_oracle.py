"""A crowd of all clients at once, with all that can go wrong; and proof that the oracle would find what is wrong."""

from __future__ import annotations

import pytest

from daemon import identity
from tests.conftest import Tell
from tests.oracle import __main__ as command
from tests.oracle.crowd import Crowd
from tests.oracle.lookalikes import run_pairs
from tests.oracle.truth import FalseMerge, Truth, Verdict
from worker import batch

CONVERSATIONS = 5_000
PAIRS_UNTIL_FOUND = 500
"""A rule whose absence goes unnoticed for so long is not needed, or the pairs are not alike enough."""
SEED = 20_260_301


@pytest.mark.slow
def test_thousands_of_conversations_at_once_are_never_merged(tell: Tell) -> None:
    tell(f"oracle: seed {SEED}")
    crowd = Crowd(SEED)
    verdict = crowd.live(crowd.anybody(CONVERSATIONS))
    for line in verdict.lines():
        tell(f"oracle: {line}")

    assert sum(verdict.conversations.values()) >= CONVERSATIONS
    assert verdict.wrong == []


def test_one_seed_twice_has_one_history() -> None:
    runs = [Crowd(7), Crowd(7)]
    told = [list(crowd.live(crowd.anybody(50)).lines()) for crowd in runs]

    assert told[0] == told[1]
    stories = [[str(sent) for each in crowd.truth.conversations for sent in each.sent] for crowd in runs]
    assert [line[:40] for line in stories[0]] == [line[:40] for line in stories[1]]


def test_crowd_meets_what_it_is_for() -> None:
    crowd = Crowd(11)
    verdict = crowd.live(crowd.anybody(600))
    met = set(verdict.requests)

    assert {"retry of the same body", "retry without stream", "next day", "first turn after compaction"} <= met
    assert {"first turn of a fork", "sub-agent's first turn", "title", "memory", "first turn of a branch"} <= met
    assert len(verdict.conversations) > 12
    assert crowd.desk.away_until > 0 and crowd.life.day > 2


def test_without_the_account_in_the_chain_strangers_are_found_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "account_root", lambda *_: "nobody's")

    assert_a_merge_is_found()


def test_without_the_rule_that_two_holders_prove_nothing_a_merge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    proven = batch._proven

    def first_of_many(*args: object, **facts: object) -> object:
        found, why = proven(*args, **facts)  # type: ignore[arg-type]
        return set(sorted(found)[:1]), why

    monkeypatch.setattr(batch, "_proven", first_of_many)

    assert_a_merge_is_found()


def assert_a_merge_is_found() -> None:
    with pytest.raises(FalseMerge, match="holds two conversations") as found:
        run_pairs(1, PAIRS_UNTIL_FOUND)
    assert "look-alike" in str(found.value)


def test_truth_counts_a_split_and_blames_it_only_where_it_must_not_be() -> None:
    crowd = Crowd(3, trouble="none")
    crowd.live(crowd.anybody(60))
    named = next(each for each in crowd.truth.conversations if each.is_named and len(each.sent) > 2)
    elsewhere = next(sent.event_id for each in crowd.truth.conversations if each is not named for sent in each.sent[:1])
    stranger = crowd.truth.conversations.index(
        next(each for each in crowd.truth.conversations if each.sent and each.sent[0].event_id == elsewhere)
    )
    crowd.truth.conversations.pop(stranger)
    named.sent[-1].event_id = elsewhere

    verdict = Truth.judge(crowd.truth)

    assert verdict.split[named.client] == 1
    assert any("its client named was split" in wrong for wrong in verdict.wrong)


@pytest.mark.parametrize(("wrong", "status"), [([], 0), (["a conversation is in two sessions"], 1)])
def test_command_that_has_a_finding_fails(wrong: list[str], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_pairs", lambda _seed, _pairs: Verdict(wrong=wrong))

    assert command.main(["--pairs", "1"]) == status
