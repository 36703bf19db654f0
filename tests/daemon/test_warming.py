"""The evidence about cache and pauses is counted as the rules say; every expected value here is worked out by hand."""

from __future__ import annotations

import msgspec
import pytest

from daemon.warming import GAP_BINS, GAP_EDGES_SECONDS, Warming, observe
from worker.protocol import Kind, Protocol, Row, Usage

NOON = 1_750_000_000_000
COLD = Usage(input_tokens=3, cache_write_5m_tokens=900)
WARM = Usage(input_tokens=3, cache_read_tokens=900, cache_write_5m_tokens=30)
UNCACHED = Usage(input_tokens=900)


def row(
    usage: Usage | None = WARM,
    *,
    at: int = NOON,
    kind: Kind = "turn",
    protocol: Protocol = "messages",
    user_turn: bool = True,
    text_only: bool = True,
) -> Row:
    return Row(
        event_id="event-0001",
        session_id="s",
        kind=kind,
        status="complete",
        started_at=at,
        ended_at=at + 5_000,
        provider="p",
        protocol=protocol,
        model="m",
        usage=usage,
        user_turn=user_turn,
        text_only=text_only,
    )


def observed(*rows: Row, start: Warming | None = None) -> Warming:
    warming = start or Warming()
    for each in rows:
        warming = observe(warming, each)
    return warming


def turns(pattern: str, start: Warming | None = None) -> Warming:
    """A turn per letter: c cold, w warm."""
    return observed(*(row(COLD if letter == "c" else WARM) for letter in pattern), start=start)


# -- TTL -----------------------------------------------------------------------------------------------------------


def test_ttl_does_not_move_before_five_turns() -> None:
    assert turns("cccc").ttl == "5m"
    assert turns("ccccc").ttl == "1h"


def test_ttl_goes_to_an_hour_above_forty_percent_and_at_once() -> None:
    assert turns("ccwww").ttl == "5m"  # 2 of 5 are 40 %, not more
    assert turns("ccwwwc").ttl == "1h"  # 3 of 6


def test_ttl_looks_at_the_last_twenty_turns_only() -> None:
    after = turns("c" * 20 + "w" * 12)
    assert after.recent_cold == (True,) * 8 + (False,) * 12
    assert after.ttl == "1h"


def test_ttl_comes_back_below_twenty_percent_for_three_turns_running() -> None:
    after = turns("c" * 20 + "w" * 16)  # 4 of 20 are 20 %, not less
    assert (after.ttl, after.cold_low_run) == ("1h", 0)
    after = turns("ww", start=after)
    assert (after.ttl, after.cold_low_run) == ("1h", 2)
    assert turns("w", start=after).ttl == "5m"


def test_ttl_run_below_twenty_percent_broken_by_a_cold_turn_starts_again() -> None:
    start = Warming(ttl="1h", recent_cold=(False,) * 4 + (True,) + (False,) * 2)
    after = turns("ww", start=start)  # 1 of 8, 1 of 9
    assert after.cold_low_run == 2
    after = turns("c", start=after)  # 2 of 10 are 20 %
    assert (after.ttl, after.cold_low_run) == ("1h", 0)
    after = turns("ww", start=after)  # 2 of 11, 2 of 12
    assert (after.ttl, after.cold_low_run) == ("1h", 2)


def test_ttl_run_counts_no_turn_before_the_fifth() -> None:
    assert turns("wwww").cold_low_run == 0
    assert turns("wwwww").cold_low_run == 1


def test_ttl_between_the_thresholds_stays_what_it_is() -> None:
    for ttl in ("5m", "1h"):
        start = msgspec.convert({"ttl": ttl, "recent_cold": [True, False, False]}, Warming)
        assert turns("w", start=start).ttl == ttl
        assert turns("ww", start=start).ttl == ttl  # 1 of 5 are 20 %


@pytest.mark.parametrize("protocol", ["chat", "responses"])
def test_ttl_of_other_protocols_is_not_judged(protocol: Protocol) -> None:
    after = observed(*[row(COLD, protocol=protocol)] * 6)
    assert (after.ttl, after.recent_cold, after.turns) == ("5m", (), 6)


def test_ttl_turn_is_cold_only_if_it_wrote_and_read_nothing() -> None:
    hour = Usage(cache_write_1h_tokens=1)
    after = observed(row(UNCACHED), row(WARM), row(COLD), row(hour), row(Usage(cache_read_tokens=5)))
    assert after.recent_cold == (False, False, True, True, False)


def test_ttl_counts_tool_continuations_too() -> None:
    assert observed(*[row(COLD, user_turn=False)] * 5).ttl == "1h"


# -- gaps ----------------------------------------------------------------------------------------------------------


def bins_of(warming: Warming) -> dict[int, int]:
    return {place: count for place, count in enumerate(warming.gap_counts) if count}


def test_gap_edges_are_the_twenty_of_the_model() -> None:
    minute, hour = 60, 3600
    assert GAP_EDGES_SECONDS[:4] == (10, 20, 30, 45)
    assert GAP_EDGES_SECONDS[4:16] == tuple(
        int(minutes * minute) for minutes in (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45)
    )
    assert GAP_EDGES_SECONDS[16:] == tuple(int(hours * hour) for hours in (1, 1.5, 2, 4))
    assert GAP_BINS == 21


@pytest.mark.parametrize(
    ("gap_ms", "place"),
    [
        (0, 0),
        (10_000, 0),  # as long as the edge: not past it
        (10_001, 1),
        (59_999, 4),
        (300_000, 9),
        (300_001, 10),
        (14_400_000, 19),
        (14_400_001, 20),
        (9_000_000_000, 20),
    ],
)
def test_gap_between_user_turns_is_counted_in_its_bin(gap_ms: int, place: int) -> None:
    after = observed(row(), row(at=NOON + gap_ms))
    assert bins_of(after) == {place: 1}
    assert after.gaps == 1


def test_gap_before_the_first_user_turn_does_not_exist() -> None:
    assert observed(row()).gaps == 0


def test_gap_of_a_clock_set_back_is_not_counted_and_the_next_one_is() -> None:
    after = observed(row(), row(at=NOON - 1))
    assert after.gaps == 0
    assert bins_of(observed(row(at=NOON + 14_999), start=after)) == {1: 1}


def test_gap_ignores_tool_continuations() -> None:
    after = observed(row(), row(at=NOON + 50_000, user_turn=False), row(at=NOON + 100_000))
    assert bins_of(after) == {6: 1}  # 100 s, up to two minutes
    assert after.last_user_turn_at == NOON + 100_000


def test_gap_is_counted_for_every_protocol() -> None:
    assert observed(row(protocol="chat"), row(protocol="chat", at=NOON + 1)).gaps == 1


# -- warm-ups ------------------------------------------------------------------------------------------------------


def test_warmup_is_counted_and_moves_the_window() -> None:
    after = observed(row(), row(kind="warmup", at=NOON + 270_000), row(kind="warmup", at=NOON + 540_000))
    assert after == msgspec.structs.replace(
        observed(row()), last_warmup_at=NOON + 540_000, break_warmups=2, window_started_at=NOON + 540_000
    )


def test_warmup_without_usage_is_counted_but_moves_no_window() -> None:
    after = observed(row(), row(None, kind="warmup", at=NOON + 270_000))
    assert (after.break_warmups, after.last_warmup_at, after.window_started_at) == (1, NOON + 270_000, NOON)


def test_warmup_whose_turn_reads_is_a_hit_and_the_break_ends() -> None:
    after = observed(row(), row(kind="warmup", at=NOON + 1), row(at=NOON + 2))
    assert (after.hits, after.break_warmups) == (1, 0)
    assert observed(row(at=NOON + 3), start=after).hits == 1


def test_warmup_whose_turn_reads_nothing_is_no_hit() -> None:
    after = observed(row(), row(kind="warmup", at=NOON + 1), row(COLD, at=NOON + 2))
    assert (after.hits, after.break_warmups) == (0, 0)


def test_warmup_outlives_a_tool_continuation() -> None:
    after = observed(row(), row(kind="warmup", at=NOON + 1), row(at=NOON + 2, user_turn=False))
    assert (after.hits, after.break_warmups) == (0, 1)


# -- the rest ------------------------------------------------------------------------------------------------------


def test_warming_side_call_changes_nothing() -> None:
    before = turns("cwcwc")
    assert observe(before, row(COLD, kind="side", at=NOON + 9)) is before


def test_warming_turn_without_usage_changes_nothing() -> None:
    before = turns("cwcwc")
    assert observe(before, row(None, at=NOON + 9)) is before


def test_warming_text_only_run_ends_with_a_tool_call() -> None:
    after = observed(row(), row())
    assert (after.turns, after.text_only_run) == (2, 2)
    after = observed(row(text_only=False), start=after)
    assert (after.turns, after.text_only_run) == (3, 0)


def test_warming_window_starts_with_the_request_that_touched_the_cache() -> None:
    after = observed(row(COLD), row(UNCACHED, at=NOON + 9, user_turn=False))
    assert after.window_started_at == NOON
    assert observed(row(at=NOON + 20, user_turn=False), start=after).window_started_at == NOON + 20


def test_warming_switches_survive_turns() -> None:
    after = observed(row(), row(kind="warmup"), start=Warming(disabled="too dear", forced=True))
    assert (after.disabled, after.forced) == ("too dear", True)
