"""Latches of credentials and upstreams: what sets them, how long they last, what opens them."""

from __future__ import annotations

from typing import Final

import pytest

from daemon.latches import (
    BACKOFF_MILLISECONDS,
    CREDENTIAL_MILLISECONDS,
    LIMIT_MILLISECONDS,
    REMEMBERED_MAX,
    Latches,
    name_of,
    seconds_of,
)
from worker.protocol import LATCHES_MAX, Latch

NOON: Final = 1_750_000_000_000
FIRST, LONGEST = BACKOFF_MILLISECONDS


def latched(*statuses: int, now: int = NOON, retry_after: float = 0.0) -> Latches:
    latches = Latches()
    for status in statuses:
        latches.answered(status, "key", "account-1", "anthropic", retry_after=retry_after, now=now)
    return latches


@pytest.mark.parametrize("status", [401, 403])
def test_credential_that_was_refused_is_left_alone_for_a_day(status: int) -> None:
    latches = latched(status)
    for upstream in ("anthropic", "another"):
        assert latches.of("key", upstream, thinks=False, now=NOON + CREDENTIAL_MILLISECONDS - 1) == "credential"
    assert latches.of("other-key", "anthropic", thinks=False, now=NOON) is None
    assert latches.of("key", "anthropic", thinks=False, now=NOON + CREDENTIAL_MILLISECONDS) is None


def test_turn_that_goes_well_opens_what_it_disproves() -> None:
    assert latched(401, 200).of("key", "anthropic", thinks=False, now=NOON) is None
    assert latched(529, 200).of("key", "anthropic", thinks=False, now=NOON) is None
    assert latched(401, 400).of("key", "anthropic", thinks=False, now=NOON) == "credential", "it disproves nothing"


@pytest.mark.parametrize("status", [0, 429, 500, 503, 529])
def test_upstream_that_fails_is_left_alone_for_longer_each_time(status: int) -> None:
    latches, now, pauses = Latches(), NOON, []
    for _ in range(9):
        latches.answered(status, "key", "a", "anthropic", now=now)
        latches.answered(status, "key", "a", "anthropic", now=now)  # At the same time, as a crowd of turns is.
        until = latches.shown(now)[0].until
        pauses.append(until - now)
        assert latches.of("other-key", "anthropic", thinks=False, now=until - 1) == "backoff"
        assert latches.of("key", "another", thinks=False, now=now) is None
        now = until
        assert latches.of("key", "anthropic", thinks=False, now=now) is None
    assert pauses == [min(LONGEST, FIRST * 2**n) for n in range(9)]


def test_upstream_says_itself_how_long_up_to_a_bound() -> None:
    for asked, kept in ((900.0, 900_000), (10.0**9, LONGEST), (0.0, FIRST)):
        assert latched(429, retry_after=asked).shown(NOON)[0].until == NOON + kept


def test_upstream_that_wants_a_token_bars_those_that_think() -> None:
    latches = Latches()
    assert not latches.wants_a_token("anthropic", NOON)
    latches.refused_limit("anthropic", NOON)
    assert latches.wants_a_token("anthropic", NOON)
    assert latches.of("key", "anthropic", thinks=True, now=NOON) == "thinking"
    assert latches.of("key", "anthropic", thinks=False, now=NOON) is None
    assert not latches.wants_a_token("anthropic", NOON + LIMIT_MILLISECONDS)


def test_shown_are_those_in_force_with_scope_reason_and_end_and_a_reset_opens_all() -> None:
    latches = latched(401, 529)
    latches.refused_limit("local", NOON)
    shown = latches.shown(NOON)
    assert [(each.scope, each.name) for each in shown] == [
        ("credential", "account-1"),
        ("upstream", "anthropic"),
        ("upstream", "local"),
    ]
    assert all(each.reason and each.until > NOON for each in shown)
    assert latches.shown(NOON + CREDENTIAL_MILLISECONDS) == []
    latches.reset()
    assert latches.shown(NOON) == []
    assert not latches.wants_a_token("local", NOON)


def test_only_so_many_are_remembered_and_told() -> None:
    latches = Latches()
    for number in range(REMEMBERED_MAX + 5):
        latches.answered(401, f"key-{number}", "a" * 600, "anthropic", now=NOON)
    assert latches.of("key-4", "anthropic", thinks=False, now=NOON) is None
    assert latches.of("key-5", "anthropic", thinks=False, now=NOON) == "credential"
    told: list[Latch] = latches.shown(NOON)
    assert len(told) == LATCHES_MAX and len(told[0].name) == 512


def test_credential_is_remembered_by_a_name_that_does_not_hold_it() -> None:
    assert name_of("sk-ant-api03-abc", b"k") == name_of("sk-ant-api03-abc", b"k") != name_of("sk-ant-api03-abc", b"l")
    assert "abc" not in name_of("sk-ant-api03-abc", b"k")
    assert name_of("\udcff", b"k")


def test_retry_after_is_read_in_seconds() -> None:
    assert [seconds_of(text) for text in ("30", "", "-1", "Wed, 21 Oct", "1e3", "9" * 400)] == [30.0, 0, 0, 0, 0, 0]
