"""What a row adds to the sums, and to which day."""

from __future__ import annotations

from msgspec.structs import replace

from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import Row, Usage

NOON = 1_750_000_000_000
TURN = Row(
    event_id="event-0001",
    session_id="s",
    kind="turn",
    status="complete",
    started_at=NOON,
    ended_at=NOON + 1,
    provider="p",
    protocol="messages",
    model="m",
    client="c",
    account="a",
    usage=Usage(input_tokens=1, cache_read_tokens=2, cache_write_5m_tokens=3, cache_write_1h_tokens=4, output_tokens=5),
    cost_nanousd=6,
)


def test_sums_of_a_turn_hold_its_tokens_and_its_price() -> None:
    expected = Sums(
        turns=1, input_tokens=1, cache_read_tokens=2, cache_write_tokens=7, output_tokens=5, cost_nanousd=6, priced=1
    )

    assert sums_of_session(TURN) == sums_of_day(TURN) == expected


def test_sums_of_a_side_call_charge_the_session_with_money_alone() -> None:
    side = replace(TURN, kind="side")

    assert sums_of_session(side) == Sums(cost_nanousd=6, priced=1)
    assert sums_of_day(side).turns == 1


def test_sums_of_an_unpriced_row_are_not_free() -> None:
    assert sums_of_day(replace(TURN, cost_nanousd=None)).unpriced == 1
    assert sums_of_day(replace(TURN, cost_nanousd=0)).priced == 1


def test_sums_of_a_row_without_usage_count_the_turn() -> None:
    assert sums_of_day(replace(TURN, usage=None, cost_nanousd=None)) == Sums(turns=1, unpriced=1)


def test_sums_of_an_interrupted_turn_say_so() -> None:
    assert sums_of_session(replace(TURN, status="interrupted")).interrupted == 1


def test_sums_of_no_row_are_nothing() -> None:
    assert sums_of_session(None) == sums_of_day(None) == Sums()


def test_minus_of_what_was_added_leaves_nothing() -> None:
    assert sums_of_day(TURN).plus(Sums(turns=3)).minus(sums_of_day(TURN)) == Sums(turns=3)


def test_day_key_of_a_row_is_its_utc_day_of_start() -> None:
    assert day_key(TURN) == DayKey("2025-06-15", "turn", "p", "m", "c", "a")


def test_day_key_at_midnight_belongs_to_the_new_day() -> None:
    midnight = 1_750_032_000_000

    assert day_key(replace(TURN, started_at=midnight - 1)).day == "2025-06-15"
    assert day_key(replace(TURN, started_at=midnight)).day == "2025-06-16"


def test_day_key_of_an_absurd_clock_is_the_last_day_there_is() -> None:
    assert day_key(replace(TURN, started_at=2**53)).day == "9999-12-31"
