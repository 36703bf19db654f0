"""The calibration follows its rules to the last digit; every expected value here is worked out by hand."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.gradient import INTERVAL_SECONDS_MAX, TOKENS_MAX, Gradient, bust_ratio, observe
from worker.protocol import Kind, Row, Usage

NOON = 1_750_000_000_000
CEILING = 266_666


def turn(
    written: int, read: int, *, at: int = NOON, ceiling: int = CEILING, kind: Kind = "turn", layer: int = 0
) -> Row:
    return Row(
        event_id="event-0001",
        session_id="s",
        kind=kind,
        status="complete",
        started_at=at,
        ended_at=at + 1,
        provider="anthropic",
        protocol="messages",
        model="m",
        usage=Usage(input_tokens=7, cache_read_tokens=read, cache_write_5m_tokens=written, output_tokens=50),
        cap_ceiling=ceiling,
        layer=layer,
    )


def observed(*rows: Row, start: Gradient | None = None) -> Gradient:
    gradient = start or Gradient()
    for row in rows:
        gradient = observe(gradient, row)
    return gradient


def with_usage(row: Row, usage: Usage | None) -> Row:
    return msgspec.structs.replace(row, usage=usage)


def test_gradient_first_turn_is_measured_whole() -> None:
    row = with_usage(
        turn(0, 0, layer=2),
        Usage(
            input_tokens=10,
            cache_read_tokens=200,
            cache_write_5m_tokens=500,
            cache_write_1h_tokens=100,
            output_tokens=9,
        ),
    )
    assert observed(row) == Gradient(
        dynamic_context_cap=CEILING,  # 0.75 lies between 0.3 and 0.8
        bust_rate_ema=0.75,  # both kinds of writes: 600 of 800
        inter_bust_interval_ema=-1.0,
        last_layer=2,
        last_known_input=810,
        last_turn_at=NOON,
        last_bust_at=NOON,
    )


@pytest.mark.parametrize("kind", ["side", "warmup"])
def test_gradient_row_beside_the_conversation_changes_nothing(kind: Kind) -> None:
    before = observed(turn(600, 200))
    assert observe(before, turn(900, 0, kind=kind, layer=3, at=NOON + 1)) is before


def test_gradient_turn_without_usage_changes_nothing() -> None:
    before = observed(turn(600, 200))
    assert observe(before, with_usage(turn(1, 1, layer=3), None)) is before


def test_gradient_turn_without_cache_updates_the_facts_but_neither_rate_nor_cap() -> None:
    before = observed(turn(100, 900), turn(600, 200))
    after = observe(before, turn(0, 0, at=NOON + 5, layer=1, ceiling=1_000))
    expected = msgspec.structs.replace(before, last_layer=1, last_known_input=7, last_turn_at=NOON + 5)
    assert after == expected


def test_gradient_turn_without_cache_starts_an_unset_cap_at_the_ceiling() -> None:
    after = observed(turn(0, 0))
    assert (after.dynamic_context_cap, after.bust_rate_ema) == (CEILING, -1.0)


def test_gradient_bust_rate_is_seven_parts_old_and_three_new() -> None:
    after = observed(turn(1000, 0), turn(0, 1000), turn(500, 500))
    assert after.bust_rate_ema == pytest.approx(0.7 * 0.7 + 0.3 * 0.5)  # 1.0, 0.7, 0.64


def test_gradient_rate_of_zero_is_a_rate_and_not_an_unknown_one() -> None:
    assert observed(turn(0, 1000), turn(1000, 0)).bust_rate_ema == pytest.approx(0.3)


@pytest.mark.parametrize(("written", "is_bust"), [(500, False), (501, True)])
def test_gradient_turn_is_a_bust_above_half(written: int, is_bust: bool) -> None:
    assert (observed(turn(written, 1000 - written)).last_bust_at == NOON) is is_bust


def test_gradient_intervals_between_busts_are_averaged_in_seconds() -> None:
    after = observed(
        turn(900, 100, at=NOON),
        turn(0, 1000, at=NOON + 50_000),  # no bust: the interval goes on
        turn(900, 100, at=NOON + 100_000),
    )
    assert after.inter_bust_interval_ema == 100.0
    after = observed(turn(900, 100, at=NOON + 300_500), start=after)
    assert after.inter_bust_interval_ema == pytest.approx(0.7 * 100 + 0.3 * 200.5)
    assert after.last_bust_at == NOON + 300_500


def test_gradient_clock_set_back_between_busts_feeds_no_interval() -> None:
    after = observed(turn(900, 100, at=NOON), turn(900, 100, at=NOON - 1))
    assert (after.inter_bust_interval_ema, after.last_bust_at) == (-1.0, NOON - 1)
    after = observed(turn(900, 100, at=NOON + 59_999), start=after)
    assert after.inter_bust_interval_ema == 60.0


def test_gradient_clock_set_from_1970_to_today_feeds_no_interval() -> None:
    after = observed(turn(900, 100, at=60_000), turn(900, 100, at=NOON))
    assert after.inter_bust_interval_ema == -1.0


def test_gradient_simultaneous_busts_are_zero_seconds_apart() -> None:
    assert observed(turn(900, 100), turn(900, 100)).inter_bust_interval_ema == 0.0


@pytest.mark.parametrize(
    ("rate", "interval", "cap"),
    [
        # The turn itself has the same ratio as the average so far, and is no bust where the interval is to stay.
        (0.81, None, 180_000),
        (0.80, None, 200_000),
        (0.30, None, 200_000),
        (0.29, None, 210_000),
        (0.40, 119.9, 190_000),
        (0.40, 120.0, 200_000),
        (0.40, 600.0, 200_000),
        (0.40, 600.1, 206_000),
        (0.10, 60.0, 199_500),  # 210,000 less 5 %
        (0.10, 3600.0, 216_300),  # 210,000 and 3 %
    ],
)
def test_gradient_cap_moves_by_rate_and_by_interval(rate: float, interval: float | None, cap: int) -> None:
    start = Gradient(
        dynamic_context_cap=200_000,
        bust_rate_ema=rate,
        inter_bust_interval_ema=-1.0 if interval is None else interval,
    )
    written = round(rate * 100)
    after = observed(turn(written, 100 - written), start=start)
    assert after.bust_rate_ema == pytest.approx(rate)
    assert after.dynamic_context_cap == cap


@pytest.mark.parametrize(("written", "cap"), [(29, 210_000), (30, 200_000), (80, 200_000), (81, 180_000)])
def test_gradient_cap_rests_on_the_thresholds_themselves(written: int, cap: int) -> None:
    start = Gradient(dynamic_context_cap=200_000)  # the first ratio is the average, with no rounding between
    assert observed(turn(written, 100 - written), start=start).dynamic_context_cap == cap


def test_gradient_cap_shrinks_by_both_where_busts_are_many_and_close() -> None:
    start = Gradient(
        dynamic_context_cap=200_000, bust_rate_ema=1.0, inter_bust_interval_ema=60.0, last_bust_at=NOON - 60_000
    )
    assert observed(turn(1, 0), start=start).dynamic_context_cap == 171_000  # × 0.90 × 0.95


def test_gradient_cap_uses_the_interval_that_this_very_bust_completes() -> None:
    after = observed(turn(1, 0, at=NOON), turn(1, 0, at=NOON + 30_000))
    assert after.dynamic_context_cap == 205_199  # 266,666 × 0.90 = 239,999.4; 239,999 × 0.855 = 205,199.1


def test_gradient_cap_is_rounded_down_once_per_turn() -> None:
    start = Gradient(dynamic_context_cap=199_999, bust_rate_ema=0.1, inter_bust_interval_ema=60.0)
    # 199,999 × 1.05 × 0.95 = 199,499.0025; rounding between the factors as well would give 199,498.
    assert observed(turn(1, 9), start=start).dynamic_context_cap == 199_499


def test_gradient_first_turn_that_writes_all_starts_at_the_ceiling_and_shrinks() -> None:
    assert observed(turn(1, 0)).dynamic_context_cap == 239_999


def test_gradient_cap_stays_between_floor_and_ceiling() -> None:
    assert observed(*[turn(1, 0)] * 20).dynamic_context_cap == 130_000
    assert observed(*[turn(0, 1)] * 20).dynamic_context_cap == CEILING


def test_gradient_ceiling_below_the_floor_is_the_cap() -> None:
    assert observed(*[turn(1, 0, ceiling=90_000)] * 3).dynamic_context_cap == 90_000


def test_gradient_lower_ceiling_of_another_model_takes_the_cap_down() -> None:
    assert observed(turn(0, 1), turn(0, 1, ceiling=150_000)).dynamic_context_cap == 150_000


def test_gradient_unknown_price_leaves_the_cap_alone() -> None:
    assert observed(turn(1, 0, ceiling=0)).dynamic_context_cap == 0
    before = observed(turn(1, 0))
    assert observe(before, turn(1, 0, ceiling=0)).dynamic_context_cap == before.dynamic_context_cap == 239_999


def test_gradient_ceiling_of_a_model_for_nearly_nothing_stays_in_range() -> None:
    assert observed(turn(0, 1, ceiling=10**15)).dynamic_context_cap == TOKENS_MAX


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, -2.0, 1.1])
def test_gradient_impossible_average_cannot_be_made(value: float) -> None:
    with pytest.raises(ValueError, match="bust_rate_ema"):
        Gradient(bust_rate_ema=value)
    with pytest.raises(ValueError, match="inter_bust_interval_ema"):
        Gradient(inter_bust_interval_ema=value if value < 1 else value * INTERVAL_SECONDS_MAX)


def test_bust_ratio_without_cache_is_none() -> None:
    assert bust_ratio(Usage(input_tokens=500)) is None
    assert bust_ratio(Usage(cache_read_tokens=300, cache_write_1h_tokens=100)) == 0.25


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            turn,
            st.integers(0, 400_000),
            st.integers(0, 400_000),
            at=st.integers(0, 2 * NOON),
            ceiling=st.integers(0, 2**53),
        ),
        max_size=30,
    )
)
def test_gradient_any_rows_leave_values_in_range(rows: list[Row]) -> None:
    after = observed(*rows)
    assert msgspec.convert(msgspec.structs.asdict(after), Gradient) == after
    ceiling = min(rows[-1].cap_ceiling, TOKENS_MAX) if rows else 0
    if ceiling and rows[-1].usage and bust_ratio(rows[-1].usage) is not None:
        assert min(130_000, ceiling) <= after.dynamic_context_cap <= ceiling
