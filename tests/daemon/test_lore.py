"""Rows of Lore's database: what they mean here, what is refused, and that no content ends the reader."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.gradient import Gradient
from daemon.identity import derived_id
from daemon.lore import LATER, OPTIONAL, REQUIRED, Reading, Refusal, nanodollars, read_row
from daemon.state import decode
from daemon.warming import Warming
from tests.lore_files import CLAUDE, NOW, SAID, WARMUP, session
from worker import protocol
from worker.protocol import FROM_DAEMON, Adopt, Amend, Command
from worker.settings import Settings

HEADERS = frozenset(Settings().session_headers)


def read(**changes: Any) -> Reading | Refusal:
    row = {**session(), "first_message_at": NOW - 86_400_000, "model": "m-1", "provider": "anthropic", "rivals": 0}
    return read_row(row | changes, now=NOW, session_headers=HEADERS)


def understood(**changes: Any) -> Reading:
    found = read(**changes)
    assert isinstance(found, Reading), found
    return found


def refused(**changes: Any) -> str:
    found = read(**changes)
    assert isinstance(found, Refusal), found
    return found.reason


# -- what it means -----------------------------------------------------------------------------------------------------


def test_session_gets_the_id_that_its_clients_next_request_proposes() -> None:
    found = understood()
    adoption = found.adoption
    assert adoption.session_id == derived_id(CLAUDE, "minted-ses_1")
    assert [(key.kind, key.name, key.value) for key in adoption.keys] == [("header", CLAUDE, "minted-ses_1")]
    assert (found.is_found_again, found.notes, adoption.client) == (True, (), "claude-code")
    assert (adoption.foreign_id, adoption.fingerprint) == ("ses_1", "lore:0a1b2c")
    assert (adoption.first_seen_at, adoption.last_seen_at) == (NOW - 86_400_000, NOW - 5_000)


def test_calibration_comes_in_our_units_and_with_a_checksum_that_holds() -> None:
    snapshot = understood().adoption.snapshot
    assert snapshot is not None
    restored = decode(snapshot)
    assert (restored.warnings, restored.position, snapshot.generation) == ((), 0, 1)
    assert restored.gradient == Gradient(
        dynamic_context_cap=150_000,
        bust_rate_ema=0.35,
        inter_bust_interval_ema=120.0,
        last_layer=1,
        last_known_input=80_000,
        last_turn_at=NOW - 5_000,
        last_bust_at=NOW - 60_000,
    )
    assert restored.warming == Warming(
        ttl="1h", last_warmup_at=NOW - 200_000, break_warmups=3, hits=1, forced=True, text_only_run=2
    )


def test_figures_are_lores_and_money_is_both_its_costs_with_the_warmups_counted_once() -> None:
    adoption = understood().adoption
    assert adoption.cost_nanousd == 1_750_000_000
    tokens = (adoption.input_tokens, adoption.cache_read_tokens, adoption.cache_write_tokens, adoption.output_tokens)
    assert (adoption.turns, tokens) == (12, (700, 90_000, 8_000, 600))


def test_session_that_never_learned_anything_has_no_state() -> None:
    bare = {name: value for name, value in session().items() if name in REQUIRED}
    found = read_row(bare | {"consecutive_text_only_turns": 0}, now=NOW, session_headers=HEADERS)
    assert isinstance(found, Reading) and found.adoption.snapshot is None
    assert found.adoption.last_seen_at == NOW - 1_000
    assert any("schema 73" in note for note in found.notes)


def test_warming_that_can_not_be_read_starts_afresh_beside_its_ttl() -> None:
    for text in ("{", "[]", '"x"', '{"warmupCount": -1}', '{"lastWarmupAt": 1e99}', "[" * 5_000):
        found = understood(warmup_state=text)
        assert found.notes == ("warmup_state is unreadable; warming starts afresh",)
        assert found.adoption.snapshot is not None
        assert decode(found.adoption.snapshot).warming == Warming(ttl="1h", text_only_run=2)


def test_latch_of_lores_is_not_taken_over() -> None:
    found = understood(warmup_state=json.dumps(WARMUP | {"disabled": True}))
    assert "judged anew" in found.notes[0]
    assert found.adoption.snapshot is not None
    warming = decode(found.adoption.snapshot).warming
    assert warming is not None and warming.disabled is None


def test_header_that_does_not_name_sessions_here_is_kept_and_said() -> None:
    found = understood(header_name="X-Lore-Session-Id")
    assert (found.is_found_again, found.adoption.header_name) == (False, "x-lore-session-id")
    assert "PERDURE_SESSION_HEADERS" in found.notes[0]


@pytest.mark.parametrize("name", ["authorization", "x-auth-session", "cookie", "x-api-key", "x-session-token"])
def test_header_that_may_hold_a_credential_is_neither_kept_nor_shown(name: str) -> None:
    found = understood(header_name=name, header_session_id="sk-very-secret")
    assert "sk-very-secret" not in repr(found)
    assert (found.adoption.keys, found.adoption.header_name, found.is_found_again) == ([], "", False)
    assert found.adoption.session_id == derived_id("lore session", "ses_1")


def test_sub_agent_hangs_on_the_id_that_its_parent_gets() -> None:
    child = {"session_id": "child", "parent_session_id": "ses_1", "is_subagent": 1}
    named = {"parent_header_name": CLAUDE, "parent_header_session_id": "minted-ses_1"}
    assert understood(**child, **named).adoption.parent == understood().adoption.session_id
    unnamed = understood(header_name=None, header_session_id=None)
    nobodys = {"parent_header_name": None, "parent_header_session_id": None}
    assert understood(**child, **nobodys).adoption.parent == unnamed.adoption.session_id


def test_sub_agent_under_its_parents_header_gets_an_id_of_its_own() -> None:
    found = understood(session_id="child", is_subagent=1, rivals=1)
    assert (found.adoption.keys, found.adoption.session_id) == ([], derived_id("lore session", "child"))
    assert "sub-agent" in found.notes[0]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conversation_cost": math.inf}, "conversation_cost is inf"),
        ({"conversation_cost": None}, "conversation_cost is null, not a number"),
        ({"worker_cost": -0.01}, "worker_cost is -0.01"),
        ({"worker_cost": 100_001.0}, "worker_cost is 100001.0"),
        ({"conversation_turns": -1}, "conversation_turns is -1"),
        ({"conversation_turns": 1.5}, "not a whole number"),
        ({"conversation_turns": "many"}, "a text of 4, not a number"),
        ({"cache_read_tokens": 2**41}, "cache_read_tokens"),
        ({"bust_rate_ema": 1.1}, "bust_rate_ema"),
        ({"bust_rate_ema": -0.5}, "bust_rate_ema"),
        ({"bust_rate_ema": math.nan}, "bust_rate_ema is nan"),
        ({"inter_bust_interval_ema": 1e15}, "inter_bust_interval_ema"),
        ({"dynamic_context_cap": 1e12}, "dynamic_context_cap"),
        ({"last_layer": 5}, "last_layer is 5"),
        ({"resolved_conversation_ttl": "2h"}, "neither 5m nor 1h"),
        ({"resolved_conversation_ttl": None}, "neither 5m nor 1h"),
        ({"last_turn_at": NOW // 1_000}, "no time in milliseconds"),
        ({"last_turn_at": NOW + 2 * 86_400_000}, "in the future"),
        ({"last_bust_at": -1}, "last_bust_at is -1"),
        ({"updated_at": 0, "last_turn_at": 0}, "when it was used"),
        ({"session_id": None}, "session_id is empty"),
        ({"session_id": b"blob"}, "not a text"),
        ({"session_id": "x" * 600}, "no name"),
        ({"header_session_id": "a\x00b"}, "no name"),
        ({"header_session_id": "\ufffd"}, "no name"),
        ({"rivals": 1}, "another session goes by the same"),
    ],
    ids=str,
)
def test_row_that_can_not_be_understood_is_refused_with_the_column_and_why(changes: dict[str, Any], words: str) -> None:
    assert words in refused(**changes)


def test_reasons_never_hold_what_stands_in_a_text() -> None:
    for name in (*REQUIRED, *LATER):
        if name != "session_id":
            assert SAID not in repr(read(**{name: f"{SAID}\x00"})), name


def test_time_a_little_ahead_is_a_clock_and_not_damage() -> None:
    understood(last_turn_at=NOW + 3_600_000)


# -- whatever a row holds ----------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.sampled_from(("5m", "1h", "", "{}", '{"warmupCount": 2}', 0, 1, -1, 0.5, NOW, NOW // 1_000, CLAUDE)),
)
COLUMNS = (*REQUIRED, *LATER, *OPTIONAL, "first_message_at", "model", "provider", "rivals")


@given(damage=st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6))
@settings(max_examples=600, deadline=None, derandomize=True)
def test_any_content_is_understood_whole_or_refused_and_what_is_understood_travels(damage: dict[str, Any]) -> None:
    found = read(**damage)
    if isinstance(found, Refusal):
        assert found.reason and len(found.reason) < 500
        return
    body = Amend(request="r", act=Adopt(source="lore", sessions=[found.adoption]))
    assert protocol.decode(protocol.encode(Command.AMEND, body), FROM_DAEMON).body == body
    snapshot = found.adoption.snapshot
    if snapshot is not None:
        restored = decode(snapshot)
        assert not restored.warnings and restored.is_complete


@given(first=st.floats(0, 100_000), second=st.floats(0, 100_000))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_money_is_exact_to_half_a_nanodollar_and_rounds_half_to_even(first: float, second: float) -> None:
    exact = (Fraction(first) + Fraction(second)) * 10**9
    assert nanodollars(first, second) == round(exact)


@pytest.mark.parametrize(("dollars", "expected"), [(0.1, 100_000_000), (2**-30, 1), (5e-324, 0), (1e5, 10**14)])
def test_money_of_one_amount(dollars: float, expected: int) -> None:
    assert nanodollars(dollars) == expected


@pytest.mark.parametrize(("dollars", "expected"), [(1 / 1024, 976_562), (3 / 1024, 2_929_688)])
def test_money_on_a_half_goes_to_the_even_side(dollars: float, expected: int) -> None:
    assert abs(Fraction(dollars) * 10**9 - expected) == Fraction(1, 2)
    assert nanodollars(dollars) == expected
