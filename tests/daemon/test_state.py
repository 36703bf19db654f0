"""A state returns from its snapshot as it was, or not at all; what is lost comes back from the ledger."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.gradient import Gradient
from daemon.state import EMPTY, Restored, SessionState, decode, encode, fold, observe, rebuild
from daemon.warming import GAP_BINS, Warming
from worker.protocol import Command, Row, Snapshot, SnapshotWrite, Usage
from worker.protocol import decode as decode_frames
from worker.protocol import encode as encode_frames

NOON = 1_750_000_000_000

counts = st.sampled_from([0, 0, 1, 900, 45_000, 180_000])
usages = st.none() | st.builds(
    Usage,
    input_tokens=counts,
    cache_read_tokens=counts,
    cache_write_5m_tokens=counts,
    cache_write_1h_tokens=counts,
    output_tokens=counts,
)
rows_without_position = st.builds(
    Row,
    event_id=st.just("event-0001"),
    session_id=st.just("s"),
    kind=st.sampled_from(["turn", "turn", "turn", "side", "warmup"]),
    status=st.just("complete"),
    started_at=st.integers(NOON - 3_600_000, NOON + 36_000_000),
    ended_at=st.just(NOON),
    provider=st.just("p"),
    protocol=st.sampled_from(["messages", "messages", "chat"]),
    model=st.just("m"),
    usage=usages,
    cap_ceiling=st.sampled_from([0, 90_000, 266_666, 2**50]),
    layer=st.integers(0, 4),
    user_turn=st.booleans(),
    text_only=st.booleans(),
)


def numbered(rows: list[Row]) -> list[Row]:
    return [msgspec.structs.replace(row, position=place) for place, row in enumerate(rows, start=1)]


ledgers = st.lists(rows_without_position, max_size=40).map(numbered)


def turn(position: int, *, written: int = 900, read: int = 100) -> Row:
    return Row(
        event_id="event-0001",
        session_id="s",
        kind="turn",
        status="complete",
        started_at=NOON + position * 60_000,
        ended_at=NOON + position * 60_000 + 1,
        provider="p",
        protocol="messages",
        model="m",
        usage=Usage(input_tokens=5, cache_read_tokens=read, cache_write_5m_tokens=written),
        cap_ceiling=266_666,
        layer=1,
        position=position,
    )


LEDGER = [turn(1, read=0), turn(2), turn(3, read=0), turn(4, read=0), turn(5, written=3), turn(6, written=5, read=7)]
STATE = fold(EMPTY, LEDGER)
SNAPSHOT = encode(STATE, generation=3)


def changed(**values: object) -> Snapshot:
    return msgspec.structs.replace(SNAPSHOT, **values)


def only_warning(restored: Restored) -> str:
    assert len(restored.warnings) == 1, restored.warnings
    return restored.warnings[0]


def text_with(**values: object) -> str:
    return json.dumps({**json.loads(str(SNAPSHOT.warmup_state)), **values})


# -- round trips ---------------------------------------------------------------------------------------------------


def test_state_snapshot_shows_every_value_in_its_column() -> None:
    assert (SNAPSHOT.generation, SNAPSHOT.position) == (3, 6)
    assert {name: getattr(SNAPSHOT, name) for name in Gradient.__struct_fields__} == msgspec.structs.asdict(
        STATE.gradient
    )
    assert SNAPSHOT.resolved_conversation_ttl == "1h"
    content = json.loads(str(SNAPSHOT.warmup_state))
    assert content["version"] == 2
    assert set(content) == {"version", *Warming.__struct_fields__} - {"ttl"}


def test_state_restored_from_its_snapshot_is_the_same_without_a_warning() -> None:
    restored = decode(SNAPSHOT)
    assert restored == Restored(gradient=STATE.gradient, warming=STATE.warming, position=6)
    assert restored.is_complete
    assert rebuild(restored, []) == STATE


def test_text_of_the_former_version_is_read_without_a_warning_and_knows_of_no_failed_ping() -> None:
    content = json.loads(str(SNAPSHOT.warmup_state))
    for name in ("is_break_cold", "ping_failures", "ping_place", "ping_failed_at"):
        del content[name]
    former = json.dumps({**content, "version": 1})
    checksum = zlib.crc32(f"6 1h {former}".encode())

    restored = decode(changed(warmup_state=former, warmup_checksum=checksum))

    assert restored == Restored(gradient=STATE.gradient, warming=STATE.warming, position=6)


def test_state_of_a_session_without_turns_survives() -> None:
    assert rebuild(decode(encode(EMPTY, generation=1)), []) == EMPTY


@settings(deadline=None)
@given(ledger=ledgers)
def test_state_restored_at_any_row_and_folded_on_is_the_same(ledger: list[Row]) -> None:
    whole = fold(EMPTY, ledger)
    for cut in range(len(ledger) + 1):
        restored = decode(encode(fold(EMPTY, ledger[:cut]), generation=1))
        assert restored.warnings == ()
        assert rebuild(restored, ledger[cut:]) == whole
        assert rebuild(restored, ledger) == whole, "rows that are folded in already must not count twice"


@settings(deadline=None)
@given(ledger=ledgers)
def test_state_first_flush_after_a_restore_changes_nothing(ledger: list[Row]) -> None:
    snapshot = encode(fold(EMPTY, ledger), generation=8)
    frames = encode_frames(Command.SNAPSHOT, SnapshotWrite(session_id="s", epoch=1, snapshot=snapshot))
    message = decode_frames(frames, {Command.SNAPSHOT: SnapshotWrite})
    assert isinstance(message.body, SnapshotWrite)
    again = encode(rebuild(decode(message.body.snapshot), []), generation=8)
    assert msgspec.json.encode(again) == msgspec.json.encode(snapshot)


@settings(deadline=None)
@given(ledger=ledgers, lost=st.sampled_from(["gradient", "warming", "both"]), data=st.data())
def test_state_group_lost_at_any_row_is_rebuilt_equal(ledger: list[Row], lost: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ledger)))
    snapshot = encode(fold(EMPTY, ledger[:cut]), generation=1)
    if lost != "warming":
        snapshot = msgspec.structs.replace(snapshot, bust_rate_ema=math.nan)
    if lost != "gradient":
        snapshot = msgspec.structs.replace(snapshot, warmup_state="{", resolved_conversation_ttl="2m")
    restored = decode(snapshot)
    assert (restored.gradient is None, restored.warming is None) == (lost != "warming", lost != "gradient")
    assert not restored.is_complete
    assert rebuild(restored, ledger) == fold(EMPTY, ledger)


def test_state_row_without_a_position_is_folded_but_moves_none() -> None:
    after = observe(STATE, msgspec.structs.replace(turn(9), position=0))
    assert (after.position, after.warming.turns) == (6, 7)


def test_state_late_row_takes_the_position_not_back() -> None:
    assert observe(STATE, turn(2)).position == 6


def test_state_that_a_mad_clock_made_is_rebuilt_equal() -> None:
    mad = msgspec.structs.replace(turn(7), started_at=2**52)
    state = observe(STATE, mad)
    restored = decode(encode(state, generation=1))
    assert (restored.gradient, restored.warming) == (None, None)
    assert rebuild(restored, [*LEDGER, mad]) == state


# -- damage to the gradient ----------------------------------------------------------------------------------------

BAD_GRADIENTS = [
    *[(name, value) for name in Gradient.__struct_fields__ for value in (None, "7", math.nan, math.inf, -3, 10**30)],
    ("dynamic_context_cap", 100_000_001),
    ("dynamic_context_cap", 2.0),
    ("dynamic_context_cap", True),
    ("last_known_input", 100_000_001),
    ("bust_rate_ema", 1.01),
    ("bust_rate_ema", -0.5),
    ("inter_bust_interval_ema", -0.5),
    ("inter_bust_interval_ema", 10.1 * 365.25 * 86_400),
    ("last_layer", 5),
    ("last_turn_at", 7_258_118_400_001),
    ("last_bust_at", 7_258_118_400_001),
]


@pytest.mark.parametrize(("name", "value"), BAD_GRADIENTS)
def test_gradient_with_an_impossible_value_is_rejected_alone(name: str, value: object) -> None:
    restored = decode(changed(**{name: value}))
    assert (restored.gradient, restored.warming, restored.position) == (None, STATE.warming, 6)
    warning = only_warning(restored)
    assert warning.startswith("gradient state")
    assert name in warning
    assert "rebuilt from the ledger" in warning
    assert rebuild(restored, LEDGER) == STATE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dynamic_context_cap", 131_000),
        ("bust_rate_ema", 0.25),
        ("inter_bust_interval_ema", -1.0),
        ("last_layer", 0),
        ("last_known_input", 0),
        ("last_turn_at", 0),
        ("last_bust_at", 0),
        ("gradient_checksum", 0),
    ],
)
def test_gradient_with_a_plausible_value_never_written_is_rejected_by_its_checksum(name: str, value: object) -> None:
    restored = decode(changed(**{name: value}))
    assert (restored.gradient, restored.warming) == (None, STATE.warming)
    assert "gradient_checksum" in only_warning(restored)


# -- damage to the warming state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [None, "", "10m", "5M", 5, "x" * 5_000, "\ud800"])
def test_ttl_that_is_neither_counts_as_five_minutes_and_the_evidence_stays(ttl: object) -> None:
    restored = decode(changed(resolved_conversation_ttl=ttl))
    assert restored.warming == msgspec.structs.replace(STATE.warming, ttl="5m")
    assert restored.gradient == STATE.gradient
    warning = only_warning(restored)
    assert warning.startswith("warming state")
    assert "resolved_conversation_ttl" in warning
    assert "5m" in warning
    assert len(warning) < 200


def test_ttl_damaged_with_altered_evidence_rejects_the_group() -> None:
    restored = decode(changed(resolved_conversation_ttl="10m", warmup_state=text_with(hits=9)))
    assert restored.warming is None
    assert rebuild(restored, LEDGER) == STATE


def test_ttl_changed_to_the_other_one_is_rejected_by_the_checksum() -> None:
    restored = decode(changed(resolved_conversation_ttl="5m"))
    assert (restored.warming, restored.gradient) == (None, STATE.gradient)
    assert "warmup_checksum" in only_warning(restored)
    assert rebuild(restored, LEDGER) == STATE


BAD_TEXTS = [
    None,
    7,
    "",
    "null",
    "[]",
    "{}",
    "{",
    '{"version":' + "[" * 100_000,
    "\ud800",
    '{"version":NaN}',
    text_with(version=3),
    text_with(version=True),
    text_with(version=1),
    text_with(surprise=1),
    json.dumps({"version": 1}),
    text_with(hits=-1),
    text_with(hits=None),
    text_with(hits="1"),
    text_with(turns=1.5),
    text_with(turns=10**40),
    text_with(last_warmup_at=10**15),
    text_with(window_started_at=True),
    text_with(forced=1),
    text_with(disabled=["no"]),
    text_with(disabled="x" * 201),
    text_with(recent_cold=[False] * 21),
    text_with(recent_cold=[0]),
    text_with(gap_counts=[0] * (GAP_BINS - 1)),
    text_with(gap_counts=[0] * (GAP_BINS + 1)),
    text_with(gap_counts=[-1] * GAP_BINS),
]


@pytest.mark.parametrize("text", BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_warmup_text_unreadable_starts_afresh_beside_the_ttl(text: object) -> None:
    restored = decode(changed(warmup_state=text))
    assert restored == Restored(
        gradient=STATE.gradient, warming=Warming(ttl="1h"), position=6, warnings=restored.warnings
    )
    warning = only_warning(restored)
    assert warning.startswith("warming state")
    assert "warmup_state" in warning
    assert "afresh" in warning
    assert len(warning) < 400


def test_warmup_text_without_a_field_is_unreadable() -> None:
    for name in Warming.__struct_fields__:
        content = json.loads(str(SNAPSHOT.warmup_state))
        if content.pop(name, None) is not None:
            restored = decode(changed(warmup_state=json.dumps(content)))
            assert restored.warming == Warming(ttl="1h")
            assert name in only_warning(restored)


def test_warmup_text_altered_but_valid_is_rejected_by_the_checksum() -> None:
    restored = decode(changed(warmup_state=text_with(hits=9)))
    assert restored.warming is None
    assert "warmup_checksum" in only_warning(restored)


def test_warmup_text_and_ttl_damaged_reject_the_group_with_one_warning() -> None:
    restored = decode(changed(warmup_state="{", resolved_conversation_ttl="never"))
    assert (restored.warming, restored.gradient) == (None, STATE.gradient)
    warning = only_warning(restored)
    assert "warmup_state" in warning and "resolved_conversation_ttl" in warning


def test_warmup_text_unreadable_beside_a_damaged_gradient_is_rebuilt_with_it() -> None:
    restored = decode(changed(warmup_state="{", last_layer=9))
    assert (restored.gradient, restored.warming, restored.position) == (None, None, 0)
    assert len(restored.warnings) == 2
    assert rebuild(restored, LEDGER) == STATE


# -- damage to both ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [-1, None, "6", 6.0, True, math.nan, 10**12, 5, 7])
def test_position_damaged_rejects_both_groups(position: object) -> None:
    restored = decode(changed(position=position))
    assert (restored.gradient, restored.warming, restored.position) == (None, None, 0)
    assert [warning.split()[0] for warning in restored.warnings] == ["gradient", "warming"]
    assert rebuild(restored, LEDGER) == STATE


def is_valid(state: SessionState) -> bool:
    for group in (state.gradient, state.warming):
        assert msgspec.convert(msgspec.structs.asdict(group), type(group)) == group
    return 0 <= state.position <= len(LEDGER)


garbage: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 10),
    st.floats(),
    st.text(),
    st.binary(),
    st.sampled_from(BAD_TEXTS),
    st.sampled_from([10**400, -(2**63), 5e-324, "5m", "1h"]),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)),
)


@settings(deadline=None, max_examples=300)
@given(damage=st.dictionaries(st.sampled_from(Snapshot.__struct_fields__), garbage, min_size=1, max_size=3))
def test_snapshot_with_any_field_damaged_lets_nothing_invalid_through(damage: dict[str, Any]) -> None:
    restored = decode(changed(**damage))
    groups = [group for group in (restored.gradient, restored.warming) if group is not None]
    assert is_valid(rebuild(restored, LEDGER))
    assert restored.gradient in (None, STATE.gradient)
    assert restored.warming in (
        None,
        STATE.warming,
        msgspec.structs.replace(STATE.warming, ttl="5m"),
        Warming(ttl="1h"),
        Warming(ttl="5m"),
    )
    assert restored.position == (6 if groups else 0)
    assert len(restored.warnings) == 2 - len(groups) + (restored.warming not in (None, STATE.warming))
    assert all(len(warning) < 500 for warning in restored.warnings)


@settings(deadline=None, max_examples=300)
@given(text=st.text() | st.binary().map(repr), cut=st.integers(0, 400))
def test_warmup_text_spoiled_anywhere_never_passes(text: str, cut: int) -> None:
    original = str(SNAPSHOT.warmup_state)
    spoiled = original[:cut] + text + original[cut + len(text) + 1 :]
    restored = decode(changed(warmup_state=spoiled))
    assert restored.gradient == STATE.gradient
    assert restored.warming in ((STATE.warming,) if spoiled == original else (None, Warming(ttl="1h")))
