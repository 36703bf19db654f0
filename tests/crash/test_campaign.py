"""Fifty random kills with every fact checked after each; and a killed conversation beside one that nobody killed."""

from __future__ import annotations

import os
from typing import Any, Final

import pytest

from tests.conftest import Tell
from tests.crash.campaign import TICK_SECONDS, Campaign
from tests.crash.conversation import Attempt, Conversation
from tests.processes import Gateway
from tests.provider import ScriptedProvider
from worker.protocol import Protocol

CYCLES: Final = 50
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


def test_campaign_of_random_kills_loses_and_doubles_nothing(tell: Tell) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=TICK_SECONDS) as gateway:
        report = Campaign(provider, gateway, seed).run(CYCLES)
        print(report)
        found = report.findings
        tell(f"kill campaign, seed {seed}: {report.cycles} cycles, {found.facts} facts, {found}")
        assert report.findings.are_good, str(report)
        assert report.cycles == CYCLES
        # On a machine so slow that most of the promises are excused nothing would be shown.
        assert report.findings.excused < report.findings.facts / 10, str(report)


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
