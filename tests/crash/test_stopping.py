"""SIGTERM: what is in flight ends well, what changed is written, and a start afterwards changes nothing."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.crash.checker import check_totals
from tests.crash.conversation import Attempt, Conversation
from tests.processes import Gateway, eventually
from tests.provider import ScriptedProvider

CLAIMED: Final = frozenset({"epoch", "owner", "client", "last_seen_at", "message_count"})
"""Columns that a claim and an open row move (an attempt's mark is its client's name); no snapshot does."""

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_daemon_told_to_stop_in_mid_stream_ends_the_stream_flushes_and_exits_0() -> None:
    # The tick is an hour: only stopping writes a snapshot.
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=3_600) as gateway:
        gateway.start()
        talk = Conversation("messages", "stopped")
        attempt = Attempt(1, talk, "question hold:open words:30")
        with gateway.client() as client:
            talk.send(client, attempt, stream=True)
            assert client.read_until(b"content_block_delta")
            gateway.terminate("daemon")
            eventually(lambda: _is_refused(gateway), what="new connections are refused")
            assert gateway.is_running("daemon")
            provider.release("open")
            answer = client.read()
        assert answer.complete
        assert b"message_stop" in answer.body
        assert gateway.wait_stopped("daemon") == 0
        [row] = gateway.rows()
        assert (row.status, row.usage) == ("complete", provider.answers[0].usage)
        [(generation, position)] = gateway.query("SELECT generation, snapshot_position FROM session_state")
        assert (generation, position) == (1, 1)
        assert gateway.stop("worker") == 0
        assert check_totals(gateway).are_good


def test_daemon_told_to_stop_gives_a_stream_no_more_than_the_drain_limit() -> None:
    with ScriptedProvider() as provider, Gateway(provider, drain_seconds=0.5) as gateway:
        gateway.start()
        talk = Conversation("messages", "endless")
        with gateway.client() as client:
            talk.send(client, Attempt(1, talk, "question hold:never"), stream=True)
            assert client.read_until(b"content_block_delta")
            assert gateway.stop("daemon") == 0
            assert not client.read().complete
        [row] = gateway.rows()
        assert (row.status, row.is_settled) == ("interrupted", True)


def test_start_after_a_stop_flushes_nothing_that_did_not_change() -> None:
    with ScriptedProvider() as provider, Gateway(provider, tick_seconds=0.2) as gateway:
        gateway.start()
        asked, left = Conversation("messages", "asked-again"), Conversation("chat", "left-alone")
        for number in range(3):
            _say(gateway, asked, 10 + number)
            _say(gateway, left, 20 + number)
        assert gateway.stop("daemon") == 0
        assert gateway.stop("worker") == 0
        before = _session_rows(gateway)
        gateway.start()
        with gateway.client() as client:
            asked.send(client, Attempt(30, asked, "question hold:open"), stream=True)
            assert client.read_until(b"content_block_delta")
            # The session is restored and held now.  A snapshot of another one shows that a tick has passed.
            other = Conversation("responses", "new")
            _say(gateway, other, 40)
            eventually(lambda: _session_rows(gateway)[other.expected_session]["generation"] == 1, what="a tick")
            after = _session_rows(gateway)
            provider.release("open")
            assert client.read().complete
        assert after[left.expected_session] == before[left.expected_session]
        held, stored = after[asked.expected_session], before[asked.expected_session]
        assert {name for name in held if held[name] != stored[name]} <= CLAIMED
        # One turn more is one generation more: the comparison above was not of a session that is never written.
        generation = stored["generation"] + 1
        eventually(lambda: _session_rows(gateway)[asked.expected_session]["generation"] == generation, what="a flush")


def _say(gateway: Gateway, talk: Conversation, number: int) -> None:
    with gateway.client() as client:
        assert talk.exchange(client, Attempt(number, talk, f"question {number}"), stream=True).complete


def _is_refused(gateway: Gateway) -> bool:
    try:
        gateway.client().close()
    except ConnectionError:
        return True
    return False


def _session_rows(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Every column of every session, by its id."""
    names = [name for _, name, *_ in gateway.query("PRAGMA table_info(session_state)")]
    rows = gateway.query(f"SELECT {', '.join(names)} FROM session_state")
    return {row["session_id"]: row for row in (dict(zip(names, values, strict=True)) for values in rows)}
