"""What a client sees, and what the ledger says, when the provider, the client or the request is not as it should be.

One rule: real processes and bare sockets; a fault is a sentence of the contract's table, and its test ends with a look
into the ledger.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anthropic
import openai
import pytest

from tests.clients import AnthropicTalk, ChatTalk, ResponsesTalk
from tests.crash.conversation import Attempt, Conversation
from tests.processes import HOST, Gateway, eventually
from tests.provider import Answered, Canned, ScriptedProvider
from tests.provider.wire import HEAD_BYTES_MAX
from tests.system.turns import PATHS, WIRES, body_of, error_kind, headers_of, send_turn, take_turn
from worker.protocol import Protocol, Row, Status, Usage

pytestmark = pytest.mark.system

BODY_BYTES: Final = 256 * 1024
"""PERDURE_BODY_BYTES of these tests."""
MEGABYTE: Final = 1024 * 1024
LARGE_BYTES: Final = 4 * MEGABYTE
LARGE_MESSAGES: Final = 100_000
BIG_MEGABYTES: Final = 200
BIG_ANSWER_BYTES: Final = BIG_MEGABYTES * MEGABYTE
GROWTH_BYTES_MAX: Final = 60 * 1024 * 1024
"""Of the daemon's memory while a big answer passes: a document is read up to 32 MiB for its usage, plus buffers."""
BIG_USAGE: Final = Usage(input_tokens=11, output_tokens=50_000_000)
ANSWER_SECONDS: Final = 60.0
OVERTAKING_TURNS: Final = 20
CUTS: Final = 20
SERVER_ERRORS: Final = (anthropic.InternalServerError, openai.InternalServerError)
TOKEN: Final = "token-of-the-gateway"

every_wire = pytest.mark.parametrize("wire", WIRES)
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=13) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, body_bytes=BODY_BYTES) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def roomy(provider: ScriptedProvider) -> Iterator[Gateway]:
    """A gateway that takes bodies of the size it does by itself."""
    with Gateway(provider) as running:
        running.start()
        yield running


@pytest.fixture
def session(request: pytest.FixtureRequest) -> str:
    """A name for the test's own session."""
    return re.sub(r"\W+", "-", request.node.name)


def rows_of(gateway: Gateway, session: str) -> list[Row]:
    """The ledger of the session that a client named."""
    ids = {
        shown["session_id"]: shown["header_session_id"]
        for shown in gateway.sessions()
        if shown["header_session_id"] == session
    }
    return [row for row in gateway.rows() if row.session_id in ids]


def settled_row(gateway: Gateway, session: str) -> Row:
    """The only row of a session, once it is settled."""

    def found() -> Row | None:
        rows = rows_of(gateway, session)
        assert len(rows) <= 1, rows
        return rows[0] if rows and rows[0].is_settled else None

    row = eventually(found, what=f"a settled row of {session}")
    assert row is not None
    return row


def fate(row: Row) -> tuple[Status, int]:
    return row.status, row.http_status


def answered_to(provider: ScriptedProvider, text: str) -> Answered:
    """The provider's account of the newest request that said this."""
    return [answered for answered in provider.answers if answered.user_text == text][-1]


@contextmanager
def sending(provider: ScriptedProvider, canned: Canned) -> Iterator[Canned]:
    """The provider answers everything with this."""
    provider.script(lambda request: canned)
    try:
        yield canned
    finally:
        provider.script(None)


# -- the provider


@every_wire
@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503, 529])
def test_refusal_of_the_provider_is_passed_on_as_it_is(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, status: int, session: str
) -> None:
    body = b'{"error": {"type":"as they say it",  "message":"\xc3\xa4"}}'
    head = [("Content-Type", "application/json"), ("Retry-After", "17"), ("x-should-retry", "true")]
    with sending(provider, Canned(status=status, headers=head, body=body)), gateway.client() as client:
        answer = take_turn(client, wire, "hello", session=session)
    assert (answer.status, answer.body, answer.complete) == (status, body, True)
    assert [answer.header(name) for name, _ in head] == [value for _, value in head]
    row = settled_row(gateway, session)
    assert fate(row) == ("error", status) and row.usage is None and row.cost_nanousd is None
    assert answer.header("x-perdure-session") == row.session_id


@every_wire
@pytest.mark.parametrize(("marker", "status"), [("drop", 502), ("garbage", 502)])
def test_provider_that_gives_no_answer_is_a_502_in_its_own_shape(
    gateway: Gateway, wire: Protocol, marker: str, status: int, session: str
) -> None:
    with gateway.client() as client:
        answer = take_turn(client, wire, marker, session=session, stream=True)
    assert answer.status == status and answer.complete
    assert answer.header("content-type") == "application/json"
    assert error_kind(wire, answer) in ("api_error", "server_error")
    row = settled_row(gateway, session)
    assert fate(row) == ("error", status)
    assert answer.header("x-perdure-session") == row.session_id


def test_provider_that_is_down_is_a_502_that_sdks_understand(session: str) -> None:
    with ScriptedProvider() as gone:
        pass
    with Gateway(gone) as gateway:
        gateway.start()
        for wire in WIRES:
            with gateway.client() as client:
                answer = take_turn(client, wire, "hello", session=f"{session}-{wire}")
            assert answer.status == 502 and error_kind(wire, answer) in ("api_error", "server_error")
            row = settled_row(gateway, f"{session}-{wire}")
            assert fate(row) == ("error", 502) and answer.header("x-perdure-session") == row.session_id
        with gateway.client() as client:
            assert client.ask("GET", "/v1/models", headers_of("chat")).status == 502
        for kind in (AnthropicTalk, ChatTalk, ResponsesTalk):
            with kind(gateway.url) as talk, pytest.raises(SERVER_ERRORS, match="can not be reached"):
                talk.say("hello")


@every_wire
def test_cut_stream_looks_cut_to_the_client_and_keeps_what_came_before(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    text = "cut-after:4"
    # The last bytes and the cut arrive together or one after the other, as it happens: both must end alike.
    for number in range(CUTS):
        with gateway.client() as client:
            answer = take_turn(client, wire, text, session=f"{session}-{number}", stream=True)
        assert answer.status == 200 and not answer.complete and answer.fault in ("closed", "reset")
        assert answer.body.count(b"\n\n") == 4, f"cut {number}: what came before the cut is lost"
        row = settled_row(gateway, f"{session}-{number}")
        assert fate(row) == ("interrupted", 200)
        assert row.usage == answered_to(provider, text).usage


@every_wire
def test_cut_document_looks_cut_to_the_client(gateway: Gateway, wire: Protocol, session: str) -> None:
    with gateway.client() as client:
        answer = take_turn(client, wire, "cut-after:30", session=session)
    assert answer.status == 200 and not answer.complete and len(answer.body) == 30
    assert fate(settled_row(gateway, session)) == ("interrupted", 200)


@every_wire
def test_stream_that_ends_in_an_error_event_is_an_error(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    with gateway.client() as client:
        answer = take_turn(client, wire, "sse-error", session=session, stream=True)
    assert answer.status == 200 and answer.complete and b"error" in answer.body
    row = settled_row(gateway, session)
    assert fate(row) == ("error", 200)
    assert row.usage == answered_to(provider, "sse-error").usage


@every_wire
def test_document_that_is_no_json_is_complete_and_of_unknown_usage(
    gateway: Gateway, wire: Protocol, session: str
) -> None:
    with gateway.client() as client:
        answer = take_turn(client, wire, "json-garbage", session=session)
    assert answer.status == 200 and answer.complete and answer.body.startswith(b"<html>")
    row = settled_row(gateway, session)
    assert fate(row) == ("complete", 200)
    assert row.usage is None and row.cost_nanousd is None


@every_wire
def test_stalled_provider_costs_nobody_else_anything(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    with gateway.client() as stalled, gateway.client() as other:
        send_turn(stalled, wire, f"stall:{session}", session=session)
        provider.wait_held(session)
        assert take_turn(other, wire, "hello", session=f"{session}-other").complete
        assert rows_of(gateway, session)[0].status == "interrupted"
        provider.release(session)
        assert stalled.read().complete
    assert fate(settled_row(gateway, session)) == ("complete", 200)


@pytest.mark.parametrize("count", [10**12, 2**40, 2**41, 2**53, 2**64, -1, 1.5, True, "7", None, [], 1e300])
@every_wire
def test_absurd_count_of_tokens_does_not_keep_a_turn_from_being_booked(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, count: object, session: str
) -> None:
    names = ("input_tokens", "prompt_tokens", "output_tokens", "completion_tokens", "cache_read_input_tokens")
    body = json.dumps({"id": "x", "content": [], "choices": [], "output": [], "usage": dict.fromkeys(names, count)})
    with sending(provider, Canned(body=body.encode())), gateway.client() as client:
        answer = take_turn(client, wire, "hello", session=session)
    assert answer.complete and answer.body == body.encode()
    assert fate(settled_row(gateway, session)) == ("complete", 200)
    assert "refused" not in gateway.log("worker")


def test_answer_with_a_broken_head_is_a_502(gateway: Gateway, provider: ScriptedProvider, session: str) -> None:
    canned = Canned(headers=[("content-type", "text/plain"), ("x-long", "x" * (HEAD_BYTES_MAX // 2))], body=b"hello")
    with sending(provider, canned), gateway.client() as client:
        answer = take_turn(client, "chat", "hello", session=session)
    assert answer.status == 502 and error_kind("chat", answer) == "server_error"
    assert fate(settled_row(gateway, session)) == ("error", 502)


# -- the client


@every_wire
def test_client_that_leaves_in_mid_stream_ends_the_providers_work(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    text = f"hold:{session}"
    with gateway.client() as client:
        send_turn(client, wire, text, session=session, stream=True)
        provider.wait_held(session)
        assert client.read_until(b"Done")
    provider.wait_until(lambda: answered_to(provider, text).ended)
    assert answered_to(provider, text).client_closed
    row = settled_row(gateway, session)
    assert fate(row) == ("interrupted", 200)
    assert row.usage == answered_to(provider, text).usage


@every_wire
def test_client_that_leaves_before_the_answer_ends_the_providers_work(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    text = f"stall:{session}"
    with gateway.client() as client:
        send_turn(client, wire, text, session=session)
        provider.wait_held(session)
    provider.wait_until(lambda: answered_to(provider, text).ended)
    row = settled_row(gateway, session)
    assert fate(row) == ("interrupted", 0) and row.usage is None


@streamed_or_not
def test_slow_client_of_a_big_answer_costs_no_memory(
    gateway: Gateway, provider: ScriptedProvider, stream: bool, session: str
) -> None:
    big = big_stream() if stream else big_document()
    provider.script(lambda request: big if request.header("x-claude-code-session-id") == session else None)
    pid = gateway.pid("daemon")
    try:
        with gateway.client() as other, socket.create_connection((HOST, gateway.port), ANSWER_SECONDS) as slow:
            assert take_turn(other, "messages", "hello", session=f"{session}-other", stream=stream).complete
            forget_peak(pid)
            before = peak_bytes(pid)
            slow.sendall(last_request_of(session, stream))
            assert slow.recv(1) == b"H"
            provider.wait_until(lambda: sent_to(provider, session) > 0)
            sent = -1
            while sent != (sent := sent_to(provider, session)):
                # Others are served meanwhile, and have overtaken it once nothing of it moves any more.
                for _ in range(OVERTAKING_TURNS):
                    assert take_turn(other, "messages", "hello", session=f"{session}-other").complete
            assert sent < BIG_ANSWER_BYTES / 4, "the provider is not stopped by a client that does not read"
            assert read_to_end(slow) > BIG_ANSWER_BYTES
    finally:
        provider.script(None)
    assert peak_bytes(pid) - before < GROWTH_BYTES_MAX
    row = settled_row(gateway, session)
    # A document of that size is not read for its usage; an event stream is, however long it is.
    assert fate(row) == ("complete", 200) and (row.usage == BIG_USAGE) is stream


def big_document() -> Canned:
    pieces = [b'{"type":"message","content":[{"type":"text","text":"', *[b"x" * MEGABYTE] * BIG_MEGABYTES, b'"}]}']
    return Canned(body=pieces)


def big_stream() -> Canned:
    usage = {"input_tokens": BIG_USAGE.input_tokens, "output_tokens": BIG_USAGE.output_tokens}
    delta = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 4_000})
    pieces = [
        event("message_start", message={"id": "m", "usage": {"input_tokens": BIG_USAGE.input_tokens}}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *[delta * (MEGABYTE // len(delta) + 1)] * BIG_MEGABYTES,
        event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage),
        event("message_stop"),
    ]
    return Canned(headers=[("content-type", "text/event-stream")], body=pieces)


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | fields)}\n\n".encode()


def last_request_of(session: str, stream: bool) -> bytes:
    """A turn after whose answer the connection is closed."""
    body = body_of("messages", "a big answer", stream=stream)
    headers = [*headers_of("messages", session), ("host", "localhost"), ("connection", "close")]
    fields = "".join(f"{name}: {value}\r\n" for name, value in [*headers, ("content-length", str(len(body)))])
    return f"POST {PATHS['messages']} HTTP/1.1\r\n{fields}\r\n".encode() + body


def sent_to(provider: ScriptedProvider, session: str) -> int:
    return sum(
        answered.bytes_sent
        for answered in provider.answers
        if answered.request.header("x-claude-code-session-id") == session
    )


def read_to_end(connection: socket.socket) -> int:
    """How many bytes come until the orderly end."""
    total, buffer = 0, bytearray(MEGABYTE)
    while count := connection.recv_into(buffer):
        total += count
    return total


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most memory a process held since its peak was forgotten."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


# -- the request

HISTORY: Final = [{"role": "user", "content": "hello"}]
NO_TURNS: Final[dict[str, bytes]] = {
    "empty": b"",
    "half an object": b'{"model": "m", "messages": [',
    "no JSON": b"hello=world",
    "a list": b"[]",
    "a text": b'"hello"',
    "null": b"null",
    "a number": b"17",
    "not UTF-8": b'{"model": "m\xff"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 40_000,
    "a deep field": b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "bytes": bytes(range(256)),
    "gzip": gzip.compress(b'{"model": "m"}'),
}
WRONG_TYPES: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "model a number": {"model": 5, "messages": HISTORY, "input": HISTORY},
    "model very long": {"model": "m" * 100_000, "messages": 7, "input": 7},
    "model missing": {"messages": HISTORY, "input": HISTORY},
    "history a number": {"model": "m", "messages": 7, "input": 7},
    "history an object": {"model": "m", "messages": {"role": "user"}, "input": {"role": "user"}},
    "history of numbers": {"model": "m", "messages": [1, None, "x"], "input": [1, None, "x"]},
    "history of lists": {"model": "m", "messages": [[[]]], "input": [[[]]]},
    "history empty": {"model": "m", "messages": [], "input": []},
    "stream a text": {"model": "m", "messages": HISTORY, "input": HISTORY, "stream": "yes"},
    "metadata a list": {"model": 1, "messages": HISTORY, "input": HISTORY, "metadata": [1], "user": {}},
    "ids of wrong types": {"model": 1, "input": HISTORY, "previous_response_id": 7, "conversation": [], "store": 1},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}], "input": "\ud800"},
    "half a character in an id": {"model": 1, "metadata": {"user_id": "\ud800"}, "prompt_cache_key": "\udfff"},
    "NUL": {"model": "\0", "messages": 1, "input": 1},
}


@every_wire
@pytest.mark.parametrize("body", NO_TURNS.values(), ids=NO_TURNS)
def test_body_that_is_no_object_is_the_providers_to_refuse(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, body: bytes, session: str
) -> None:
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers_of(wire, session), body)
        assert answer.status == 400 and answer.complete
        error_kind(wire, answer)
        assert provider.requests[-1].body == body
        assert take_turn(client, wire, "hello", session=session).status == 200
    assert [row.status for row in rows_of(gateway, session)] == ["complete"]


@every_wire
@pytest.mark.parametrize("wish", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_object_of_wrong_types_reaches_the_provider_and_is_booked(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, wish: dict[str, Any], session: str
) -> None:
    body = json.dumps(wish).encode()
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers_of(wire, session), body)
        assert 400 <= answer.status < 500 and answer.complete
        error_kind(wire, answer)
        assert provider.requests[-1].body == body
        assert take_turn(client, wire, "hello", session=session).status == 200
    assert rows_of(gateway, session)[-1].status == "complete"
    assert {row.status for row in rows_of(gateway, session)[:-1]} <= {"error"}


@every_wire
@streamed_or_not
def test_text_cut_within_an_emoji_is_part_of_a_conversation_like_any_other(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, stream: bool
) -> None:
    body = body_of(wire, "the first half only: \ud83d", stream=stream)
    assert b"\\ud83d" in body
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers_of(wire), body)
    assert (answer.status, answer.complete) == (200, True)
    assert provider.requests[-1].body == body
    assert_booked(gateway, answer.header("x-perdure-session"), [provider.answers[-1].usage])
    talk = Conversation(wire)
    said = [say_unnamed(gateway, talk, f"{text} {stream}", stream) for text in ("again: \ud83d", "on", "\ude00 and on")]
    assert len(set(said)) == 1 and said[0] != answer.header("x-perdure-session")
    assert_booked(gateway, said[0], [answered.usage for answered in provider.answers[-3:]])


@every_wire
def test_large_body_without_an_id_is_a_turn_like_any_other(
    roomy: Gateway, provider: ScriptedProvider, wire: Protocol
) -> None:
    large = "x" * LARGE_BYTES
    body = body_of(wire, large, stream=True)
    with roomy.client() as client:
        answer = client.ask("POST", PATHS[wire], headers_of(wire), body)
    assert (answer.status, answer.complete) == (200, True)
    assert provider.requests[-1].body == body
    assert_booked(roomy, answer.header("x-perdure-session"), [provider.answers[-1].usage])
    talk = Conversation(wire)
    said = [say_unnamed(roomy, talk, text, stream) for text, stream in ((f"once more {large}", False), ("on", True))]
    assert len(provider.requests[-1].body) > LARGE_BYTES and len(set(said)) == 1
    assert_booked(roomy, said[0], [answered.usage for answered in provider.answers[-2:]])


def test_large_body_is_read_while_others_are_answered(roomy: Gateway, provider: ScriptedProvider) -> None:
    history = [{"role": ("user", "assistant")[n % 2], "content": f"message {n}"} for n in range(LARGE_MESSAGES)]
    body = body_of("chat", "", messages=history)
    assert len(body) > LARGE_BYTES
    arrived = len(provider.requests)
    waits = []
    with sending(provider, Canned(body=b"{}")), roomy.client() as large, roomy.client() as other:
        large.send("POST", PATHS["chat"], headers_of("chat"), body)
        while len(provider.requests) == arrived:
            asked = time.monotonic()
            assert other.ask("GET", "/healthz").status == 200
            waits.append(time.monotonic() - asked)
        assert large.read().header("x-perdure-session")
    # Read in the loop, nearly all of that time would be one wait of the other one.
    assert max(waits) < sum(waits) / 2, f"of {sum(waits):.3f} s one answer took {max(waits):.3f} s"


def say_unnamed(gateway: Gateway, talk: Conversation, text: str, stream: bool) -> str:
    """The session of a turn, answered to its end, of a conversation that names none."""
    with gateway.client() as client:
        answer = talk.exchange(client, Attempt(talk.turns, talk, text), stream=stream)
    assert (answer.status, answer.complete) == (200, True)
    return answer.header("x-perdure-session")


def assert_booked(gateway: Gateway, session_id: str, usages: list[Usage | None]) -> None:
    """The ledger of a session is these turns, complete."""

    def found() -> list[tuple[Status, Usage | None]]:
        return [(row.status, row.usage) for row in gateway.rows() if row.session_id == session_id]

    eventually(lambda: found() == [("complete", usage) for usage in usages], what=lambda: f"{usages}, not {found()}")


@every_wire
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/JSON;x"])
def test_content_type_of_a_turn_is_the_providers_business(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, content_type: str, session: str
) -> None:
    headers = [("content-type", content_type), *headers_of(wire, session)[1:]]
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers, body_of(wire, "hello"))
    assert answer.status == 200 and answer.header("x-perdure-session")
    assert provider.requests[-1].header("content-type") == content_type


@every_wire
def test_body_over_the_limit_is_a_413_and_nothing_is_sent(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    arrived = len(provider.requests)
    body = body_of(wire, "x" * BODY_BYTES)
    chunked = [*headers_of(wire, session), ("transfer-encoding", "chunked")]
    for headers, sent in ((headers_of(wire, session), body), (chunked, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))):
        with gateway.client() as client:
            answer = client.ask("POST", PATHS[wire], headers, sent)
        assert answer.status == 413 and answer.complete
        assert error_kind(wire, answer) in ("request_too_large", "invalid_request_error")
        assert "PERDURE_BODY_BYTES" in answer.json()["error"]["message"]
    assert len(provider.requests) == arrived
    assert rows_of(gateway, session) == []


@every_wire
def test_body_just_within_the_limit_is_a_turn(gateway: Gateway, wire: Protocol, session: str) -> None:
    padding = BODY_BYTES - len(body_of(wire, ""))
    body = body_of(wire, "x" * padding)
    assert len(body) == BODY_BYTES
    with gateway.client() as client:
        assert client.ask("POST", PATHS[wire], headers_of(wire, session), body).status == 200


@every_wire
def test_body_with_broken_framing_is_a_400(gateway: Gateway, wire: Protocol, session: str) -> None:
    headers = [*headers_of(wire, session), ("transfer-encoding", "chunked")]
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers, b"5\r\nhelloXXXX\r\n")
    assert answer.status == 400 and answer.complete
    assert rows_of(gateway, session) == []


@pytest.mark.parametrize("name", ["chatgpt-account-id", "user-agent", "authorization", "session-id", "cookie"])
@pytest.mark.parametrize("value", ["caf\xc3\xa9", "caf\xe9 \xff", "\x80" * 300], ids=["UTF-8", "no UTF-8", "long"])
def test_header_that_is_no_text_harms_nobody(gateway: Gateway, name: str, value: str, session: str) -> None:
    headers = [field for field in headers_of("responses") if field[0] != name]
    with gateway.client() as client:
        answer = client.ask("POST", PATHS["responses"], [*headers, (name, value)], body_of("responses", session))
        assert answer.status == 200 and answer.complete
        rows = [row for row in gateway.rows() if row.session_id == answer.header("x-perdure-session")]
        assert [row.status for row in rows] == ["complete"]
        assert take_turn(client, "responses", "hello", session=session).complete


@pytest.mark.parametrize("path", ["/v1/responses", "/openai/v1/responses"])
def test_websocket_is_refused_so_that_the_client_uses_http(
    gateway: Gateway, provider: ScriptedProvider, path: str
) -> None:
    arrived = len(provider.requests)
    upgrade = [("connection", "Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-version", "13")]
    with gateway.client() as client:
        answer = client.ask("GET", path, [*headers_of("responses"), *upgrade, ("sec-websocket-key", "eA==")])
    assert answer.status == 426 and answer.complete
    error_kind("responses", answer)
    assert len(provider.requests) == arrived


def test_head_of_the_root_is_answered_here(gateway: Gateway, provider: ScriptedProvider) -> None:
    arrived = len(provider.requests)
    with gateway.client() as client:
        answer = client.ask("HEAD", "/")
        assert (answer.status, answer.body, answer.complete) == (200, b"", True)
        assert client.ask("HEAD", "/").status == 200, "the connection goes on"
    assert len(provider.requests) == arrived


# -- the token

GUARDED_TARGETS: Final = (
    "/",
    "/metrics",
    "/api/sessions",
    "/api/sessions/someone",
    "/api/sessions?/healthz",
    "/ui",
    "/v1/models",
    "/v1/messages",
    "/openai/v1/responses",
    "/unknown",
    # Not the two that are open, however they may look.
    "/healthz/",
    "/readyzz",
    "/v1/healthz",
    "/readyz/../api/sessions",
    "/%68ealthz",
    "//healthz",
)


@pytest.fixture(scope="module")
def guarded(provider: ScriptedProvider) -> Iterator[Gateway]:
    """A gateway that asks for a token."""
    with Gateway(provider, token=TOKEN) as running:
        running.start()
        yield running


@every_wire
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN.upper(), TOKEN + " x", "caf\xe9"])
def test_request_without_the_token_is_a_401_and_nothing_is_sent(
    guarded: Gateway, provider: ScriptedProvider, wire: Protocol, token: str | None
) -> None:
    arrived = len(provider.requests)
    headers = [] if token is None else [("x-perdure-token", token)]
    with guarded.client() as client:
        answer = take_turn(client, wire, "hello", headers=headers)
        assert answer.status == 401 and error_kind(wire, answer) == "authentication_error"
        assert TOKEN not in answer.body.decode()
        for path in ("/v1/models", "/api/sessions", "/metrics"):
            assert client.ask("GET", path, [*headers_of(wire), *headers]).status == 401
    assert len(provider.requests) == arrived
    assert guarded.sessions() == [] or all(shown["turns"] for shown in guarded.sessions())


@every_wire
@pytest.mark.parametrize("name", ["x-perdure-token", "X-Perdure-Token"])
def test_token_is_accepted_and_not_passed_on(
    guarded: Gateway, provider: ScriptedProvider, wire: Protocol, name: str
) -> None:
    with guarded.client() as client:
        assert take_turn(client, wire, "hello", headers=[(name, TOKEN)]).status == 200
        assert client.ask("GET", "/v1/models", [*headers_of(wire), (name, TOKEN)]).status == 200
    for request in provider.requests[-2:]:
        assert "x-perdure-token" not in {given.lower() for given, _ in request.headers}


@pytest.mark.parametrize("token", [None, "wrong", TOKEN])
def test_health_is_told_to_everybody_whether_or_not_they_have_the_token(guarded: Gateway, token: str | None) -> None:
    headers = [] if token is None else [("x-perdure-token", token)]
    with guarded.client() as client:
        assert client.ask("GET", "/healthz", headers).json()["status"] == "alive"
        assert client.ask("GET", "/readyz?verbose", headers).json()["status"] == "ready"
        assert client.ask("HEAD", "/readyz", headers).status == 200


@pytest.mark.parametrize("target", GUARDED_TARGETS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
def test_everything_but_health_is_closed_without_the_token(
    guarded: Gateway, provider: ScriptedProvider, method: str, target: str
) -> None:
    arrived = len(provider.requests)
    with guarded.client() as client:
        answer = client.ask(method, target, headers_of("messages"))
        assert answer.status == 401 and TOKEN not in answer.body.decode()
    assert len(provider.requests) == arrived
