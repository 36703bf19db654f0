"""The gateway without its worker: requests are answered, and when it comes everything arrives exactly once."""

from __future__ import annotations

import pytest

from tests.clients import RawAnswer
from tests.crash.checker import answers_by_mark, check_totals, settled_findings
from tests.crash.conversation import Attempt, Conversation
from tests.crash.crowd import NAMED, Crowd
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider
from tests.system.turns import sum_of_rows
from worker.protocol import Protocol

SEED = 9
PACE_SECONDS = 0.02
OUTBOX_WRITES = 100
PROTOCOLS: tuple[Protocol, ...] = ("messages", "chat", "responses")

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_worker_absent_at_start_turns_are_answered_and_arrive_once_when_it_comes() -> None:
    with (
        ScriptedProvider() as provider,
        Gateway(provider, tick_seconds=0.2) as gateway,
        Crowd(gateway, SEED, speakers=NAMED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start_daemon()
        gateway.wait_status("degraded")
        crowd.open()
        crowd.wait_for_attempts(60)
        crowd.silence()
        assert not gateway.database.exists()
        without = list(crowd.attempts)
        assert {attempt.status for attempt in without} == {200}
        # The id that a client named is the same one that the store will know.
        assert all(attempt.session == attempt.conversation.expected_session for attempt in without)
        gateway.start_worker()
        gateway.wait_ready()
        _assert_everything_arrived(provider, gateway, crowd)
        crowd.open()
        crowd.wait_for_attempts(20)
        crowd.silence()
        _assert_everything_arrived(provider, gateway, crowd)


def test_worker_killed_under_load_turns_are_answered_and_arrive_once_when_it_is_back() -> None:
    with (
        ScriptedProvider() as provider,
        Gateway(provider, tick_seconds=0.2) as gateway,
        Crowd(gateway, SEED, pace_seconds=PACE_SECONDS) as crowd,
    ):
        gateway.start()
        crowd.open()
        crowd.wait_for_attempts(30)
        gateway.kill("worker")
        crowd.wait_for_attempts(200)
        assert (gateway.readyz() or {})["status"] == "degraded"
        gateway.start()
        crowd.wait_for_attempts(30)
        crowd.silence()
        assert {attempt.status for attempt in crowd.attempts} == {200}
        _assert_everything_arrived(provider, gateway, crowd)


def test_outbox_full_turns_are_refused_in_the_providers_shape_until_the_worker_is_back() -> None:
    with ScriptedProvider() as provider, Gateway(provider, outbox_writes=OUTBOX_WRITES) as gateway:
        gateway.start()
        talks = [Conversation(protocol, f"full-{protocol}") for protocol in PROTOCOLS]
        attempts: list[Attempt] = []

        def ask(talk: Conversation, text: str) -> RawAnswer:
            attempts.append(Attempt(len(attempts), talk, text))
            with gateway.client() as client:
                return talk.exchange(client, attempts[-1], stream=len(attempts) % 2 == 0)

        assert [ask(talk, "before").status for talk in talks] == [200, 200, 200]
        gateway.kill("worker")
        # An open and a settled row for each turn.
        answered = [ask(talks[number % 3], f"meanwhile {number}") for number in range(OUTBOX_WRITES // 2)]
        assert {answer.status for answer in answered} == {200}
        for talk in talks:
            _assert_refused(talk.protocol, ask(talk, "too much"))
        gateway.start()
        # A worker that is back has first to take what was kept for it.
        eventually(lambda: ask(talks[0], "too much").status == 200)
        assert [ask(talk, "too much").status for talk in talks[1:]] == [200, 200]
        found = settled_findings(gateway, attempts, answers_by_mark(provider.answers), worker_was_away=True)
        found.add(check_totals(gateway))
        assert found.are_good, str(found)
        assert len(gateway.rows()) == sum(attempt.status == 200 for attempt in attempts)


def test_unnamed_conversation_begun_before_any_worker_is_one_session_from_then_on() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=0.2) as gateway:
        gateway.start_daemon()
        gateway.wait_status("degraded")
        talks = [Conversation(protocol) for protocol in PROTOCOLS]
        attempts: list[Attempt] = []
        _say_to_all(gateway, talks, attempts, 3)
        assert not gateway.database.exists()
        gateway.start_worker()
        gateway.wait_ready()
        _say_to_all(gateway, talks, attempts, 3)
        _assert_one_session_each(provider, gateway, talks, attempts)


def test_unnamed_conversation_on_a_restarted_daemon_whose_worker_hangs_keeps_its_session() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=0.2) as gateway:
        gateway.start()
        talks = [Conversation(protocol) for protocol in PROTOCOLS]
        attempts: list[Attempt] = []
        _say_to_all(gateway, talks, attempts, 2)
        gateway.kill("daemon")
        # Ready: the new daemon knows the newest keys, but holds none of the sessions.
        gateway.start()
        for talk in talks:
            gateway.pause("worker")
            # The first of these turns finds out that the worker is silent, the second knows.
            _say_to_all(gateway, [talk], attempts, 2)
            gateway.resume("worker")
            gateway.wait_ready()
        _say_to_all(gateway, talks, attempts, 1)
        _assert_one_session_each(provider, gateway, talks, attempts)


def _say_to_all(gateway: Gateway, talks: list[Conversation], attempts: list[Attempt], turns: int) -> None:
    """So many turns of each conversation in turn, all answered to their end."""
    for _ in range(turns):
        for talk in talks:
            attempts.append(Attempt(len(attempts), talk, f"question {len(attempts)}"))
            with gateway.client() as client:
                answer = talk.exchange(client, attempts[-1], stream=len(attempts) % 2 == 0)
            assert (answer.status, answer.complete) == (200, True)


def _assert_one_session_each(
    provider: ScriptedProvider, gateway: Gateway, talks: list[Conversation], attempts: list[Attempt]
) -> None:
    """Its clients were told one id for each conversation, and by that id it is stored, whole."""
    told = {talk.protocol: {attempt.session for attempt in attempts if attempt.conversation is talk} for talk in talks}
    assert all(len(sessions) == 1 for sessions in told.values()), told
    # No alias is looked up: the id that was told is the one that is stored.
    found = settled_findings(gateway, attempts, answers_by_mark(provider.answers))
    found.add(check_totals(gateway))
    assert found.are_good, str(found)
    assert {shown["session_id"] for shown in gateway.sessions()} == set().union(*told.values())
    assert gateway.query("SELECT count(*) FROM session_state") == [(len(talks),)]
    assert sum_of_rows(gateway.rows()) == provider.usage_total()
    assert len(gateway.rows()) == len(attempts)


def _assert_refused(protocol: Protocol, answer: RawAnswer) -> None:
    assert answer.status == 503
    assert int(answer.header("retry-after")) > 0
    body = answer.json()
    assert body["error"]["message"]
    assert (body.get("type") == "error") == (protocol == "messages")


def _assert_everything_arrived(provider: ScriptedProvider, gateway: Gateway, crowd: Crowd) -> None:
    found = settled_findings(gateway, crowd.attempts, answers_by_mark(provider.answers), worker_was_away=True)
    found.add(check_totals(gateway))
    assert found.are_good, str(found)
    assert len(gateway.rows()) == len(crowd.attempts)
