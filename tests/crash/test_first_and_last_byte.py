"""Identity before the first byte, usage before the last: everything is killed the moment a client has read it.

One rule: what a client has read proves what is stored; nothing is waited for after the kill.

Theory.  A commit takes a millisecond, and so does an answer: a first byte that did not wait would hardly be caught.  So
the worker hesitates (SIGSTOP) from the moment the provider is asked, for less than a request waits for it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.clients import RawAnswer
from tests.conftest import Tell
from tests.crash.checker import answers_by_mark, excuse_of
from tests.crash.conversation import STREAM_ENDS, Attempt, Conversation
from tests.processes import Gateway
from tests.provider import Arrived, ScriptedProvider
from worker.protocol import Protocol, Row

KILLS = 25
TRIES_MAX = 100
HESITATION_SECONDS = 0.05
"""A try proves nothing when the machine was so slow that the worker's word may not have been waited for."""
PROTOCOLS: tuple[Protocol, ...] = ("messages", "chat", "responses")
SEED = 20_251

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def test_identity_is_committed_when_the_first_byte_arrives(tell: Tell) -> None:
    kinds = _kinds(SEED)
    with ScriptedProvider() as provider, Gateway(provider) as gateway:
        proven = 0
        cut: tuple[Attempt, bool, str] | None = None
        for number in range(TRIES_MAX):
            gateway.start()
            if cut:
                provider.script(None)
                _assert_same_session_again(gateway, *cut)
                cut = None
            log_start = gateway.log_size("daemon")
            talk, stream = kinds[number % len(kinds)]
            attempt = Attempt(number, talk, f"question {number}")
            provider.script(_hesitating(gateway))
            read = _killed_at_first_byte(gateway, attempt, stream)
            if excuse_of(gateway, "daemon", log_start).covers(attempt, attempt.first_byte_at):
                continue
            row = _one_row(gateway, attempt)
            _assert_identity(gateway, talk, row, read.header("x-perdure-session"))
            proven += 1
            # Once answered a request without a name would be no retry, though its client has not read the answer.
            cut = (attempt, stream, row.session_id) if talk.name or row.status != "complete" else None
            if proven == KILLS:
                tell(f"everything killed at the first byte, seed {SEED}: {proven} times, each identity was there")
                return
        pytest.fail(f"only {proven} of {TRIES_MAX} tries were fast enough to prove anything")


def test_usage_is_committed_when_the_last_byte_arrives(tell: Tell) -> None:
    kinds = _kinds(SEED + 1)
    with ScriptedProvider() as provider, Gateway(provider) as gateway:
        proven = 0
        for number in range(TRIES_MAX):
            gateway.start()
            log_start = gateway.log_size("daemon")
            talk, stream = kinds[number % len(kinds)]
            attempt = Attempt(number, talk, f"question {number}")
            _killed_at_last_byte(gateway, attempt, stream)
            if excuse_of(gateway, "daemon", log_start).covers(attempt, attempt.last_byte_at):
                continue
            row = _one_row(gateway, attempt)
            told = answers_by_mark(provider.answers)[attempt.mark].usage
            assert (row.status, row.usage) == ("complete", told)
            shown = gateway.session(row.session_id)
            assert (shown["turns"], shown["interrupted"]) == (1, 0)
            assert told is not None
            assert (shown["input_tokens"], shown["output_tokens"]) == (told.input_tokens, told.output_tokens)
            assert (shown["cache_read_tokens"], shown["cache_write_tokens"]) == (
                told.cache_read_tokens,
                told.cache_write_tokens,
            )
            assert shown["cost_nanousd"] == row.cost_nanousd != 0
            proven += 1
            if proven == KILLS:
                tell(f"everything killed at the last byte, seed {SEED + 1}: {proven} times, each usage was there")
                return
        pytest.fail(f"only {proven} of {TRIES_MAX} tries were fast enough to prove anything")


def _kinds(seed: int) -> list[tuple[Conversation, bool]]:
    """Each try's conversation, all new: every protocol, named and not, streamed and not, in a drawn order."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    kinds = [(protocol, named, stream) for protocol in PROTOCOLS for named in (0, 1) for stream in (False, True)]
    drawn = [kind for _ in range(-(-TRIES_MAX // len(kinds))) for kind in chance.sample(kinds, len(kinds))]
    return [(Conversation(p, f"mine-{seed}-{i}" if named else ""), s) for i, (p, named, s) in enumerate(drawn)]


def _hesitating(gateway: Gateway) -> Callable[[Arrived], None]:
    """For the provider to call when a request has arrived: its begin is on the way to the worker by then."""

    def hesitate(_request: Arrived) -> None:
        gateway.pause("worker")
        threading.Timer(HESITATION_SECONDS, gateway.resume, ["worker"]).start()

    return hesitate


def _killed_at_first_byte(gateway: Gateway, attempt: Attempt, stream: bool) -> RawAnswer:
    """Gives what had left for the client by then, which may be no more than that byte."""
    with gateway.client() as client:
        attempt.conversation.send(client, attempt, stream=stream)
        assert client.read_first_byte()
        attempt.first_byte_at = time.monotonic()
        gateway.kill_all()
        return client.read()


def _killed_at_last_byte(gateway: Gateway, attempt: Attempt, stream: bool) -> None:
    protocol = attempt.conversation.protocol
    with gateway.client() as client:
        attempt.conversation.send(client, attempt, stream=stream)
        if stream:
            assert client.read_until(STREAM_ENDS[protocol])
        else:
            assert client.read().complete
        attempt.last_byte_at = time.monotonic()
        gateway.kill_all()


def _assert_same_session_again(gateway: Gateway, cut: Attempt, stream: bool, session_id: str) -> None:
    """The same request again, as an SDK sends it: its session is the one of the request that was cut."""
    again = Attempt(TRIES_MAX + cut.number, cut.conversation, cut.text)
    with gateway.client() as client:
        answer = cut.conversation.exchange(client, again, stream=stream)
    assert answer.header("x-perdure-session") == session_id, gateway.rows()


def _one_row(gateway: Gateway, attempt: Attempt) -> Row:
    rows = [row for row in gateway.rows() if row.client == attempt.mark]
    assert len(rows) == 1, rows
    return rows[0]


def _assert_identity(gateway: Gateway, talk: Conversation, row: Row, told: str) -> None:
    assert told in ("", row.session_id)
    assert row.session_id == (talk.expected_session or row.session_id)
    assert gateway.session(row.session_id)["turns"] == 1
    kinds = {kind for (kind,) in gateway.query("SELECT kind FROM session_key WHERE session_id = ?", (row.session_id,))}
    # The whole answer may have been settled by then: its key has taken the place of the request's.
    assert kinds == {"header"} if talk.name else kinds in ({"request", "retry"}, {"answer"}), kinds
