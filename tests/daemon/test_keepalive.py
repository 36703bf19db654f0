"""When a ping is sent, and for which reason it is not: worked out by hand, and as properties of any state there is."""

from __future__ import annotations

import math
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from daemon.keepalive import (
    ARRIVAL_SECONDS,
    BREAKER_SECONDS,
    EVIDENCE,
    MARGIN_SECONDS,
    SENTENCES,
    WINDOW_SECONDS,
    Facts,
    Reason,
    breaker_until,
    chance_of_return,
    decide,
    stakes_of,
    survival,
    ttl_after,
)
from daemon.warming import GAP_BINS, GAP_EDGES_SECONDS, TTLS, Ttl, Warming, observe, place_of
from tests.daemon.test_warming import COLD, NOON, WARM, row
from worker.protocol import HandSetting, Usage

PING: Final = 3_000_000
SAVES: Final = 34_500_000
"""A hundred thousand tokens at 0.30 and 3.75 dollars a million: eleven and a half pings."""
SOON: Final = WINDOW_SECONDS["5m"] - MARGIN_SECONDS["5m"]


def counts(**by_edge: int) -> tuple[int, ...]:
    """Pauses by the edge they are below, in seconds: counts(s300=2)."""
    found = [0] * GAP_BINS
    for edge, count in by_edge.items():
        found[GAP_EDGES_SECONDS.index(int(edge[1:]))] = count
    return tuple(found)


def facts(warming: Warming | None = None, **changes: Any) -> Facts:
    known = Warming(turns=9, window_started_at=NOON, last_user_turn_at=NOON)
    values: dict[str, Any] = {
        "warming": warming or known,
        "ttl": "5m",
        "age_seconds": SOON,
        "idle_seconds": SOON,
        "ping_nanousd": PING,
        "saves_nanousd": SAVES,
    }
    return Facts(**{**values, **changes})


# -- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl", "due"), [("5m", 255.0), ("1h", 3_300.0)])
def test_ping_is_due_shortly_before_the_end_of_the_window(ttl: Ttl, due: float) -> None:
    assert decide(facts(ttl=ttl, age_seconds=0.0)).wait_seconds == due
    assert decide(facts(ttl=ttl, age_seconds=due - 1)) == (False, 1.0, None)
    assert decide(facts(ttl=ttl, age_seconds=due)).send
    latest = WINDOW_SECONDS[ttl] - ARRIVAL_SECONDS
    assert decide(facts(ttl=ttl, age_seconds=latest)).send
    assert decide(facts(ttl=ttl, age_seconds=latest + 0.1)).reason == "expired"


def test_eleven_pings_pay_in_one_pause_and_the_twelfth_does_not() -> None:
    warming = facts().warming
    verdicts = [decide(facts(replace(warming, break_warmups=sent))).send for sent in range(14)]
    assert verdicts == [True] * 11 + [False] * 3


# -- evidence ------------------------------------------------------------------------------------------------------


def test_survival_is_linear_between_the_edges() -> None:
    known = counts(s300=3, s3600=1)
    assert survival(known, 0) == survival(known, 240) == 1.0
    assert survival(known, 270) == pytest.approx(1.0 - 0.75 / 2)
    assert survival(known, 300) == survival(known, 2_700) == pytest.approx(0.25)
    assert survival(known, 3_150) == pytest.approx(0.125)
    assert survival(known, 3_600) == survival(known, 10**6) == 0.0


def test_pauses_longer_than_every_edge_never_run_out() -> None:
    assert survival((*(0,) * (GAP_BINS - 1), 5), 10**7) == 1.0
    assert survival((0,) * GAP_BINS, 10**7) == 1.0


def test_chance_of_return_is_the_sum_of_its_signs() -> None:
    # No pause known: S is 1, which says that the user stays away for longer than any; half of the pauses are breaks.
    assert chance_of_return(facts()) == pytest.approx(1 / (1 + math.exp(-2.0 - 0.5 + 0.0)))
    text_only = replace(facts().warming, text_only_run=4)
    assert chance_of_return(facts(text_only)) == pytest.approx(1 / (1 + math.exp(-2.5 + 2.0)))
    young = replace(facts().warming, turns=5)
    assert chance_of_return(facts(young)) == pytest.approx(1 / (1 + math.exp(-2.5 + 0.3)))
    # All pauses were shorter: nobody was ever away for so long, and none of them was a break.
    gone = replace(facts().warming, gap_counts=counts(s30=20))
    assert chance_of_return(facts(gone)) == pytest.approx(1 / (1 + math.exp(-2.0 + 4.0 + 1.5)))


def test_pauses_of_other_sessions_count_until_there_are_enough_of_its_own() -> None:
    quick = counts(s30=100)
    own = replace(facts().warming, gap_counts=counts(s600=20))
    alone, crowd = facts(own), facts(own, host_gaps=quick)
    assert chance_of_return(alone) == chance_of_return(crowd)
    assert chance_of_return(facts(host_gaps=quick)) < chance_of_return(facts())


def test_user_who_has_gone_is_not_waited_for_unless_an_operator_says_so() -> None:
    gone = replace(facts().warming, gap_counts=counts(s30=20), text_only_run=7)
    assert decide(facts(gone)).reason == "unlikely"
    assert decide(facts(gone, setting="on")).send
    assert decide(facts(replace(gone, forced=True))).send
    assert decide(facts(replace(gone, forced=True), setting="auto")).reason == "unlikely"


# -- reasons -------------------------------------------------------------------------------------------------------

PROVOKED: Final[dict[Reason, dict[str, Any]]] = {
    "provider": {"speaks_messages": False},
    "sub-agent": {"is_child": True},
    "signed": {"is_signed": True},
    "layer": {"layer": 4},
    "subscription": {"is_subscription": True},
    "by-hand": {"setting": "off"},
    "credential": {"latch": "credential"},
    "thinking": {"latch": "thinking"},
    "backoff": {"latch": "backoff"},
    "breaker": {"latch": "breaker"},
    "few-turns": {"warming": Warming(turns=2, window_started_at=NOON)},
    "no-cache": {"ttl": None},
    "no-request": {"has_request": False},
    "no-price": {"ping_nanousd": None},
    "break-even": {"warming": Warming(turns=9, window_started_at=NOON, break_warmups=11)},
    "cold": {"warming": Warming(turns=9, window_started_at=NOON, is_break_cold=True)},
    "expired": {"age_seconds": 299.0},
    "unlikely": {"warming": Warming(turns=9, window_started_at=NOON, text_only_run=7, gap_counts=counts(s30=20))},
}


def test_every_reason_has_a_sentence_and_a_way_to_it() -> None:
    assert PROVOKED.keys() == SENTENCES.keys() == set(get_args(Reason))


@pytest.mark.parametrize("reason", PROVOKED)
def test_reason_is_given_and_an_operators_word_overrides_evidence_alone(reason: Reason) -> None:
    provoked = facts(**PROVOKED[reason])
    assert decide(provoked) == (False, 0.0, reason)
    if reason != "by-hand":  # Which is an operator's word itself.
        forced = decide(replace(provoked, setting="on"))
        assert forced.send if reason in EVIDENCE else forced.reason == reason


def test_latch_of_a_session_counts_until_an_operator_resets_it() -> None:
    disabled = replace(facts().warming, disabled="too dear")
    assert decide(facts(disabled)).reason == "by-hand"
    assert decide(facts(disabled, setting="auto")).send


def test_breaker_opens_after_three_failures_of_one_model_and_upstream_and_closes_by_time_or_reset() -> None:
    nothing = Usage(input_tokens=9)
    warming = Warming()
    for failed in range(1, 5):
        warming = observe(warming, row(nothing, kind="warmup", at=NOON + failed))
        assert bool(breaker_until(warming, place_of("p", "m"), 0)) == (failed >= 3)
    assert breaker_until(warming, place_of("p", "m"), 0) == NOON + 4 + int(1_000 * BREAKER_SECONDS)
    assert breaker_until(warming, place_of("p", "other"), 0) == 0
    assert breaker_until(warming, place_of("p", "m"), NOON + 4) == 0, "reset"
    worked = observe(warming, row(WARM, kind="warmup", at=NOON + 9))
    assert breaker_until(worked, place_of("p", "m"), 0) == 0


def test_ping_that_was_cut_off_counts_neither_way() -> None:
    warming = Warming()
    for at in range(3):
        cut = replace(row(None, kind="warmup", at=NOON + at), status="interrupted")
        warming = observe(warming, cut)
    assert (warming.ping_failures, warming.break_warmups) == (0, 3)


def test_ping_that_found_the_cache_cold_is_the_last_of_its_pause() -> None:
    warming = observe(facts().warming, row(COLD, kind="warmup", at=NOON + 255_000))
    assert decide(facts(warming)).reason == "cold"
    assert decide(facts(warming, setting="on")).reason == "cold"
    back = observe(warming, row(WARM, at=NOON + 300_000))
    assert not back.is_break_cold


# -- money ---------------------------------------------------------------------------------------------------------


def dollars_3_15(usage: Usage) -> int:
    """A model at 3 dollars a million tokens of input, as a tenth, 1.25 times and twice that."""
    short, long = 3_750 * usage.cache_write_5m_tokens, 6_000 * usage.cache_write_1h_tokens
    return 3_000 * usage.input_tokens + 300 * usage.cache_read_tokens + short + long


def test_stakes_are_a_read_of_what_is_cached_and_the_rest_against_writing_it_again() -> None:
    usage = Usage(input_tokens=10, cache_read_tokens=900, cache_write_5m_tokens=100, output_tokens=5_000)
    assert stakes_of(usage, "5m", dollars_3_15) == (30_000 + 300_000, 3_750_000 - 300_000)
    assert stakes_of(usage, "1h", dollars_3_15) == (30_000 + 300_000, 6_000_000 - 300_000)
    assert stakes_of(usage, "5m", lambda _: None) == (None, None)


def test_window_is_that_of_the_shortest_write_and_stays_where_nothing_is_written() -> None:
    both = Usage(cache_write_5m_tokens=1, cache_write_1h_tokens=9)
    assert ttl_after(both, "1h") == "5m"
    assert ttl_after(Usage(cache_write_1h_tokens=9), "5m") == "1h"
    assert ttl_after(Usage(cache_read_tokens=9), "1h") == "1h"
    assert ttl_after(Usage(), None) is None


# -- whatever the state --------------------------------------------------------------------------------------------

TALLIES = st.integers(0, 60)
WARMINGS = st.builds(
    Warming,
    break_warmups=TALLIES,
    is_break_cold=st.booleans(),
    disabled=st.sampled_from([None, "why"]),
    forced=st.booleans(),
    gap_counts=st.tuples(*[st.integers(0, 5)] * GAP_BINS),
    turns=TALLIES,
    text_only_run=TALLIES,
    window_started_at=st.sampled_from([0, NOON]),
)
ANY = st.builds(
    Facts,
    warming=WARMINGS,
    speaks_messages=st.booleans(),
    ttl=st.sampled_from([None, *TTLS]),
    age_seconds=st.floats(-10, 4_000),
    idle_seconds=st.floats(-10, 40_000),
    ping_nanousd=st.none() | st.integers(0, 10**7),
    saves_nanousd=st.none() | st.integers(-5, 10**8),
    layer=st.integers(0, 4),
    is_child=st.booleans(),
    is_signed=st.booleans(),
    is_subscription=st.booleans(),
    setting=st.sampled_from(get_args(HandSetting)),
    latch=st.sampled_from([None, None, "credential", "thinking", "backoff", "breaker"]),
    has_request=st.booleans(),
)


@given(ANY)
def test_verdict_is_one_of_three_and_what_is_sent_is_safe_and_pays(any_facts: Facts) -> None:
    verdict = decide(any_facts)
    assert [verdict.send, verdict.wait_seconds > 0, verdict.reason is not None].count(True) == 1
    if verdict.send:
        assert any_facts.ping_nanousd and any_facts.saves_nanousd and any_facts.ttl
        sent = any_facts.warming.break_warmups + 1
        assert sent * any_facts.ping_nanousd <= any_facts.saves_nanousd, "past break-even"
        assert any_facts.age_seconds < WINDOW_SECONDS[any_facts.ttl]
        assert any_facts.speaks_messages and any_facts.warming.turns >= 3
        assert not (any_facts.is_child or any_facts.is_signed or any_facts.is_subscription or any_facts.latch)
        assert any_facts.layer < 4 and any_facts.setting != "off"


@given(ANY)
def test_operators_word_changes_nothing_but_what_was_evidence(any_facts: Facts) -> None:
    plain, forced = (decide(replace(any_facts, setting=setting)) for setting in ("auto", "on"))
    assert forced == plain or (plain.reason in EVIDENCE and forced.send)


@given(ANY, st.floats(0, 40_000), st.floats(0, 40_000))
def test_survival_never_rises(any_facts: Facts, one: float, other: float) -> None:
    known = any_facts.warming.gap_counts
    early, late = sorted((one, other))
    assert 1.0 >= survival(known, early) >= survival(known, late) >= 0.0
