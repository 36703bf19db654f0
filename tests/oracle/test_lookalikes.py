"""Pairs as alike as can be: none of them is ever one session."""

from __future__ import annotations

import pytest

from tests.conftest import Tell
from tests.oracle.crowd import Crowd
from tests.oracle.lookalikes import KINDS, Speaker, drawn_voice, run_pairs

PAIRS = 5_000
SEED = 20_260_302


@pytest.mark.slow
def test_thousands_of_pairs_are_never_one(tell: Tell) -> None:
    tell(f"look-alikes: seed {SEED}")
    verdict = run_pairs(SEED, PAIRS)
    for line in verdict.lines():
        tell(f"look-alikes: {line}")

    assert sum(verdict.conversations.values()) == 2 * PAIRS
    assert len(verdict.conversations) == len(KINDS)
    assert verdict.wrong == []


@pytest.mark.parametrize("name", KINDS)
def test_pair_differs_and_is_two_sessions(name: str) -> None:
    crowd = Crowd(5, trouble="none")
    one, other = KINDS[name](crowd.life, drawn_voice(crowd.life))
    assert one != other

    facts = [crowd.truth.conversation(name, is_named=voice.is_named, is_shared=True) for voice in (one, other)]
    crowd.live(iter([Speaker(crowd.life, fact, voice).live() for fact, voice in zip(facts, (one, other), strict=True)]))

    sessions = [{sent.session_id for sent in fact.sent} for fact in facts]
    assert all(sessions)
    assert sessions[0].isdisjoint(sessions[1])
