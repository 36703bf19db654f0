"""A session whose stored state was damaged while everything was stopped: the next turn works, one warning says so.

One rule: damage costs its own group at most; totals and the other group go on as if nothing had been.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, Final, NamedTuple

import pytest
from msgspec.structs import replace

from daemon.views import session_object
from tests.crash.conversation import Attempt, Conversation
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider

TURNS_BEFORE: Final = 3

pytestmark = [pytest.mark.crash, pytest.mark.slow]


class Damage(NamedTuple):
    name: str
    group: str
    """The group it is in, as the warning names it."""
    column: str
    value: object


DAMAGES: Final = (
    Damage("warmup-not-json", "warming", "warmup_state", "{not json"),
    Damage("warmup-of-another-shape", "warming", "warmup_state", "[1, 2]"),
    Damage("ttl-banana", "warming", "resolved_conversation_ttl", "banana"),
    Damage("rate-nan", "gradient", "bust_rate_ema", float("nan")),
    Damage("interval-infinite", "gradient", "inter_bust_interval_ema", float("inf")),
    Damage("rate-absurd", "gradient", "bust_rate_ema", 1e300),
    Damage("cap-negative", "gradient", "dynamic_context_cap", -5),
    Damage("layer-absurd", "gradient", "last_layer", 99),
    Damage("input-plausible-but-wrong", "gradient", "last_known_input", 4_711),
)


def test_damaged_state_of_a_session_costs_one_warning_and_no_more_than_its_group() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=0.2) as gateway:
        gateway.start()
        talks = {damage: Conversation("messages", damage.name) for damage in DAMAGES}
        for number in range(TURNS_BEFORE):
            for talk in talks.values():
                _say(gateway, talk, number)
        assert gateway.stop("daemon") == 0
        assert gateway.stop("worker") == 0
        before = {damage: gateway.session(talk.expected_session) for damage, talk in talks.items()}
        _damage(gateway, talks)
        log_start = gateway.log_size("daemon")
        gateway.start()
        for talk in talks.values():
            _say(gateway, talk, TURNS_BEFORE)
            _say(gateway, talk, TURNS_BEFORE + 1)
        # The next snapshot makes the damage good.
        eventually(lambda: not any("warnings" in shown for shown in gateway.sessions()), what="all are whole again")
        log = gateway.log("daemon", log_start)
        for damage, talk in talks.items():
            warnings = [line for line in log.splitlines() if "WARNING" in line and talk.expected_session in line]
            assert len(warnings) == 1, (damage, warnings)
            assert f"{damage.group} state is damaged" in warnings[0]
            _assert_kept(gateway, damage, talk, before[damage])


def _assert_kept(gateway: Gateway, damage: Damage, talk: Conversation, before: dict[str, Any]) -> None:
    shown = gateway.session(talk.expected_session)
    rows = sorted((r for r in gateway.rows() if r.session_id == talk.expected_session), key=lambda row: row.position)
    assert shown["turns"] == len(rows) == TURNS_BEFORE + 2
    assert shown["output_tokens"] == sum(row.usage.output_tokens for row in rows if row.usage) > before["output_tokens"]
    assert shown["cost_nanousd"] > before["cost_nanousd"] > 0
    # Kept or rebuilt, each group says what the whole ledger says; only evidence of warming may have begun anew.
    record = next(r for r in gateway.records() if r.session.session_id == talk.expected_session)
    afresh = session_object(replace(record, session=replace(record.session, snapshot=None), rows=rows), {})
    assert shown["gradient"] == afresh["gradient"], damage
    assert shown["resolved_conversation_ttl"] == before["resolved_conversation_ttl"] == "5m"
    if damage.group == "gradient":
        assert shown["warmup"] == afresh["warmup"], damage


def _say(gateway: Gateway, talk: Conversation, number: int) -> None:
    with gateway.client() as client:
        answer = talk.exchange(client, Attempt(number, talk, f"question {number} words:20"), stream=True)
    assert (answer.status, answer.complete) == (200, True)
    assert answer.header("x-perdure-session") == talk.expected_session


def _damage(gateway: Gateway, talks: dict[Damage, Conversation]) -> None:
    with closing(sqlite3.connect(gateway.database)) as db, db:
        for damage, talk in talks.items():
            changed = db.execute(
                f"UPDATE session_state SET {damage.column} = ? WHERE session_id = ?",
                (damage.value, talk.expected_session),
            )
            assert changed.rowcount == 1
