"""Conversations without an id that go from daemon to daemon while the worker is away, told in an unlucky order."""

from __future__ import annotations

import pytest

from tests.crash.conversation import Attempt, Conversation
from tests.processes import Gateway, eventually
from tests.provider import Script, ScriptedProvider
from worker.protocol import Protocol

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("protocol", ["messages", "responses"])
def test_conversation_opened_without_the_worker_and_gone_on_elsewhere_is_one_session_whoever_tells_first(
    protocol: Protocol,
) -> None:
    turns = 3
    with ScriptedProvider() as provider, Gateway(provider, daemons=2) as gateway:
        gateway.start()
        gateway.kill("worker")
        talk = Conversation(protocol)
        told = [_say(gateway, talk, number, gateway.daemons[min(number, 1)]) for number in range(turns)]
        # The daemon that has the opening is the last to tell.
        gateway.pause("daemon")
        gateway.start_worker()
        eventually(lambda: len(_complete(gateway)) == turns - 1, what="the second daemon has told")
        gateway.resume("daemon")
        eventually(lambda: len(_complete(gateway)) == turns, what="both daemons have told")
        gateway.wait_ready()
        told.append(_say(gateway, talk, turns, "daemon"))
        rows = gateway.rows()
        aliases = dict(gateway.query("SELECT alias, session_id FROM session_alias"))
        assert len({row.session_id for row in rows}) == 1, [(row.client, row.session_id, row.why) for row in rows]
        assert {aliases.get(session, session) for session in told} == {rows[0].session_id}


def test_turn_told_late_belongs_to_the_conversation_that_went_through_it_not_to_an_opening_that_was_cut() -> None:
    with ScriptedProvider() as provider, Gateway(provider, daemons=3) as gateway:
        gateway.start()
        talk = Conversation("chat")
        # The same opening twice at once: two sessions, of which one never gets its answer.
        provider.script(
            lambda request: Script(hold="never") if request.header("user-agent") == "attempt-100/1" else None
        )
        with gateway.client() as cut:
            talk.send(cut, Attempt(100, talk, "question 0"), stream=True)
            assert cut.read_until(b"delta")
            _say(gateway, talk, 0, "daemon-2")
        eventually(lambda: all(row.is_settled for row in gateway.rows()), what="the opening is cut")
        _say(gateway, talk, 1, "daemon-2")
        gateway.kill("worker")
        _say(gateway, talk, 2, "daemon-3")
        _say(gateway, talk, 3, "daemon-2")
        gateway.pause("daemon-3")
        gateway.start_worker()
        eventually(lambda: "attempt-4" in _complete(gateway), what="the later turn is told")
        gateway.resume("daemon-3")
        eventually(lambda: "attempt-3" in _complete(gateway), what="the earlier turn is told")
        by_mark = {row.client: row.session_id for row in gateway.rows()}
        opening_that_was_cut = by_mark.pop("attempt-100")
        assert len(set(by_mark.values())) == 1, by_mark
        assert opening_that_was_cut not in by_mark.values()


def _say(gateway: Gateway, talk: Conversation, number: int, daemon: str) -> str:
    """One turn; the session it was told."""
    with gateway.client(daemon) as client:
        answer = talk.exchange(client, Attempt(number + 1, talk, f"question {number}"), stream=False)
    assert answer.complete
    return answer.header("x-perdure-session")


def _complete(gateway: Gateway) -> list[str]:
    return [row.client for row in gateway.rows() if row.status == "complete"]
