"""Seeds in the suite, and proof that they would find what they are for: with a rule taken away, runs fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daemon.outbox import IN_FLIGHT_MAX, Entry, Outbox
from daemon.sessions import Sessions
from tests.conftest import Tell
from tests.simulation.world import World, run
from worker import batch, protocol, roles

SEEDS = 1_000
SEEDS_PER_TEST = 100
SEEDS_UNTIL_FOUND = 300
"""A rule whose absence goes unnoticed for so long is not needed, or the runs are too tame."""


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_seeds_with_all_rules_lose_nothing(first: int, tell: Tell) -> None:
    tell(f"simulation: seeds {first} to {first + SEEDS_PER_TEST - 1}")
    for seed in range(first, first + SEEDS_PER_TEST):
        with named_when_it_fails(seed):
            assert run(seed) == []


def test_one_seed_twice_has_one_history() -> None:
    worlds = [World(3), World(3)]
    for world in worlds:
        world.live()

    first, second = (world.store.tables for world in worlds)
    assert first.rows and first.rows == second.rows
    assert first.sessions == second.sessions


def test_seeds_meet_the_situations_the_checks_are_for() -> None:
    seen: Counter[str] = Counter()
    for seed in range(80):
        world = World(seed)
        world.live()
        seen.update(world.checks.seen)
        seen["joined"] += len(world.store.tables.aliases)
        seen["never ended"] += sum(not row.is_settled for row in world.store.tables.rows.values())
        seen["changed hands"] += sum(session.epoch > 2 for session in world.store.tables.sessions.values())

    often = (
        "latches",
        "pings",
        "owned",
        "fenced",
        "joined",
        "never ended",
        "adopted",
        "changed hands",
        "forks",
        "aside as side",
    )
    assert all(seen[name] > 10 for name in often) and seen["judged again"], seen


def test_without_the_epoch_fence_an_acknowledged_latch_is_lost(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    monkeypatch.setattr(batch, "is_fenced", lambda *_: False)

    assert_found("acknowledged_latch_stays", tell)


def test_without_the_generation_rule_an_acknowledged_latch_is_lost(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    monkeypatch.setattr(batch, "is_newer", lambda *_: True)

    assert_found("acknowledged_latch_stays", tell)


def test_without_the_status_rule_seen_usage_is_lost(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    monkeypatch.setattr(batch, "supersedes", lambda *_: True)

    assert_found("seen_usage_is_stored", tell)


def test_without_the_workers_rule_a_window_is_pinged_twice(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    monkeypatch.setattr(batch, "may_send", lambda *_: True)

    assert_found("one_ping_per_window", tell)


def test_without_a_likeness_to_the_session_turns_are_taken_for_side_calls(
    monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    monkeypatch.setattr(roles, "alike", lambda *_: False)

    assert_found("turn_is_a_turn", tell)


def test_without_a_proof_of_content_a_fork_names_a_stranger(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    monkeypatch.setattr(batch, "_forked_from", lambda tables, _naming: next(iter(tables.sessions), None))

    assert_found("fork_names_its_origin", tell)


def test_without_the_resend_a_turn_is_never_settled(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    def only_unsent(outbox: Outbox, _now: float) -> Entry | None:
        has_room = outbox._unsent and len(outbox._in_flight) < IN_FLIGHT_MAX
        return next(iter(outbox._unsent.values())) if has_room else None

    monkeypatch.setattr(Outbox, "next_due", only_unsent)
    monkeypatch.setattr(Outbox, "resend_all", lambda _outbox: None)

    assert_found("living_daemons_row_is_settled", tell)


def test_without_what_stopped_daemons_left_behind_a_turn_is_never_settled(
    monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    monkeypatch.setattr(Outbox, "own", lambda _outbox: [])

    assert_found("living_daemons_row_is_settled", tell)


def test_with_a_dirty_flag_instead_of_a_generation_the_owners_state_is_not_stored(
    monkeypatch: pytest.MonkeyPatch, tell: Tell
) -> None:
    careful = Sessions._snapshotted

    def any_ack_cleans(sessions: Sessions, write: protocol.SnapshotWrite, reply: protocol.Reply) -> None:
        careful(sessions, write, reply)
        held = sessions._at(write.session_id)
        if held is not None and reply.owned and write.epoch == held.epoch:
            held.acked_generation = held.generation

    monkeypatch.setattr(Sessions, "_snapshotted", any_ack_cleans)

    assert_found("owners_state_is_stored", tell)


def assert_found(check: str, tell: Tell) -> None:
    """Some run says so, by what a client or a daemon lost; not only by the rule's own words."""
    found: Counter[str] = Counter()
    for seed in range(SEEDS_UNTIL_FOUND):
        found.update(violation.check for violation in run(seed))
        if found[check]:
            tell(f"negative control: {check} is violated by seed {seed}")
            return
    pytest.fail(f"{SEEDS_UNTIL_FOUND} seeds without it found only {dict(found)}")


@contextmanager
def named_when_it_fails(seed: int) -> Iterator[None]:
    passed = False
    try:
        yield
        passed = True
    finally:
        if not passed:
            print(f"reproduce: python -m tests.simulation --seeds 1 --from {seed}")
