"""Everything a provider can answer: its bytes reach the client unchanged, and the ledger says what became of the turn.

One rule: each case is a line of a table.  A whole answer is passed on whole, one that is cut looks cut, and where there
is none the client is told so in the provider's own shape; none of it harms the next turn.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import pytest

from daemon import app, http_server, upstream
from daemon.upstream import HEAD_BYTES_MAX, Upstream
from tests.clients import RawAnswer
from tests.daemon.raw_http import Peer, a_client, answering, run, until
from tests.daemon.test_gateway_gates import a_stage, reading
from tests.processes import HOST, Gateway, eventually
from tests.provider import Arrived, Canned, ScriptedProvider, Verbatim
from tests.system.test_bad_requests import BareClient, growing_less_than, rows_of, unharmed
from tests.system.turns import PATHS, WIRES, body_of, error_kind, headers_of, take_turn
from worker.protocol import Command, Protocol, Row, Status, Usage

pytestmark = pytest.mark.system

MEGABYTE: Final = 1024 * 1024
LINE_BYTES: Final = 10 * MEGABYTE
LINE_GROWTH_BYTES_MAX: Final = 8 * LINE_BYTES
"""Of the daemon while a line of that size is read: gathered, decoded, parsed, normalised, each once or twice."""
HEAD_GROWTH_BYTES_MAX: Final = 16 * MEGABYTE
"""Of the daemon while it refuses a head: a few times what it reads of it."""
UPLOAD_BYTES: Final = 8 * MEGABYTE
"""More than the buffers between client and provider hold: the answer comes while it is on its way."""
SILENCE_SECONDS: Final = 600.0
"""No limit of ours may be shorter: so long do the most patient clients wait."""

every_wire = pytest.mark.parametrize("wire", WIRES)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=37) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    """Leaving it fails if there is a traceback in a log."""
    with Gateway(provider) as running:
        running.start()
        yield running


@pytest.fixture(autouse=True)
def _unharmed(gateway: Gateway, provider: ScriptedProvider) -> Iterator[None]:
    with unharmed(gateway, provider):
        yield


@pytest.fixture
def session(request: pytest.FixtureRequest) -> str:
    """A name for the test's own session."""
    return re.sub(r"\W+", "-", request.node.name)[:200]


# -- heads, framing, ends

Then = Literal["keep", "close", "reset"]


class Case(NamedTuple):
    sent: bytes
    then: Then
    status: int
    body: bytes
    row: Status
    """What the ledger says of it."""
    complete: bool = True


DOCUMENT: Final = b'{"id": "x", "type": "message", "usage": {"input_tokens": 3, "output_tokens": 5}}'
ZIPPED: Final = gzip.compress(DOCUMENT * 100)
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"


def with_length(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def in_chunks(*pieces: bytes, trailer: bytes = b"") -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n%b\r\n" % trailer


def whole(sent: bytes, body: bytes = DOCUMENT, *, status: int = 200, then: Then = "keep") -> Case:
    return Case(sent, then, status, body, "complete" if status < 400 else "error")


def cut(sent: bytes, body: bytes, *, then: Then = "close") -> Case:
    return Case(sent, then, 200, body, "interrupted", complete=False)


def none(sent: bytes, *, then: Then = "close") -> Case:
    """Nothing that can be passed on: the answer is ours."""
    return Case(sent, then, 502, b"", "error")


def status_line(text: bytes) -> bytes:
    return b"HTTP/1.1 " + text + b"\r\n"


ANSWERS: Final[dict[str, Case]] = {
    "as it should be": whole(OK + with_length(DOCUMENT)),
    "in chunks": whole(OK + in_chunks(DOCUMENT[:7], DOCUMENT[7:])),
    "empty": whole(OK + with_length(b""), b""),
    "empty in chunks": whole(OK + in_chunks(), b""),
    "until the end of the connection": whole(OK + b"\r\n" + DOCUMENT, then="close"),
    "HTTP/1.0": whole(b"HTTP/1.0 200 OK\r\n\r\n" + DOCUMENT, then="close"),
    "with trailers": whole(OK + in_chunks(DOCUMENT, trailer=b"X-Checksum: 1\r\n")),
    # Before the answer, and without a body.
    "100 before it": whole(status_line(b"100 Continue") + b"\r\n" + OK + with_length(DOCUMENT)),
    "103 before it, often": whole(
        (status_line(b"103 Early Hints") + b"Link: </a>\r\n\r\n") * 50 + OK + with_length(DOCUMENT)
    ),
    "103 and no more": none(status_line(b"103 Early Hints") + b"\r\n"),
    "103 without end": none((status_line(b"103 Early Hints") + b"Link: </a>\r\n\r\n") * (HEAD_BYTES_MAX // 20)),
    "101": none(status_line(b"101 Switching Protocols") + b"Upgrade: x\r\nConnection: upgrade\r\n\r\nhello"),
    "204": whole(status_line(b"204 No Content") + b"X: 1\r\n\r\n", b"", status=204),
    "205": whole(status_line(b"205 Reset Content") + with_length(b""), b"", status=205),
    "304": whole(status_line(b"304 Not Modified") + b"ETag: x\r\nContent-Length: 77\r\n\r\n", b"", status=304),
    # Elsewhere: passed on, never followed.
    **{
        str(status): whole(
            status_line(b"%d Elsewhere" % status) + b"Location: /v1/elsewhere\r\n" + with_length(b"there"),
            b"there",
            status=status,
        )
        for status in (300, 301, 302, 303, 307, 308)
    },
    # Other statuses.
    "529": whole(
        status_line(b"529 Over~loaded \xe9") + b"Retry-After: 7\r\n" + with_length(b"later"), b"later", status=529
    ),
    "599": whole(status_line(b"599") + with_length(b"odd"), b"odd", status=599),
    "999": whole(status_line(b"999 Request Denied") + with_length(b"odd"), b"odd", status=999),
    "099": none(status_line(b"099 Odd") + with_length(b"odd")),
    "1000": none(status_line(b"1000 Odd") + with_length(b"odd")),
    "no status": none(status_line(b"OK") + with_length(b"odd")),
    # No HTTP.
    "nothing": none(b""),
    "nothing, and a reset": none(b"", then="reset"),
    "garbage": none(b"\x16\x03\x01\xff" * 100),
    "garbage that stays": none(b"SSH-2.0-OpenSSH_9.2\r\n", then="keep"),
    "HTTP/0.9": none(DOCUMENT),
    "HTTP/2": none(b"HTTP/2 200 OK\r\n" + with_length(DOCUMENT)),
    "half a head": none(OK),
    "half a head, and a reset": none(OK, then="reset"),
    # Lengths that lie.
    "a length too long": cut(OK + b"Content-Length: 999\r\n\r\n" + DOCUMENT, DOCUMENT),
    "a length too long, and a reset": cut(OK + b"Content-Length: 999\r\n\r\n" + DOCUMENT, DOCUMENT, then="reset"),
    "a negative length": none(OK + b"Content-Length: -2\r\n\r\nok"),
    "no number": none(OK + b"Content-Length: two\r\n\r\nok"),
    "two lengths": none(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
    "two equal lengths": none(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    "length and chunks": none(OK + b"Content-Length: 2\r\n" + in_chunks(b"ok")),
    "a length for one hop": whole(OK + b"Connection: content-length\r\n" + with_length(DOCUMENT)),
    "a body with 204": none(status_line(b"204 No Content") + with_length(b"odd")),
    # Chunks that are none, and codings that nobody undoes.
    "chunks without end": cut(OK + CHUNKED + b"2\r\nok\r\n", b"ok"),
    "half a chunk": cut(OK + CHUNKED + b"9\r\nok", b"ok"),
    "half a chunk, and a reset": cut(OK + CHUNKED + b"9\r\nok", b"ok", then="reset"),
    "no chunk size": none(OK + CHUNKED + b"two\r\nok\r\n0\r\n\r\n"),
    "a coding nobody knows": none(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    "a coding until the end": none(OK + b"Transfer-Encoding: gzip\r\n\r\nok"),
    "cut by a reset": cut(OK + b"\r\n" + DOCUMENT, DOCUMENT, then="reset"),
    # Headers.
    "a header of 60 KB": whole(OK + b"X-Policy: " + b"x" * 60_000 + b"\r\n" + with_length(DOCUMENT)),
    "ten headers of 60 KB": whole(OK + (b"X-Policy: " + b"x" * 60_000 + b"\r\n") * 10 + with_length(DOCUMENT)),
    "a header too large": none(OK + b"X: " + b"x" * 200_000 + b"\r\n" + with_length(DOCUMENT)),
    "1,000 headers": whole(OK + b"".join(b"X-%d: 1\r\n" % n for n in range(1_000)) + with_length(DOCUMENT)),
    "too many headers": none(OK + b"X: 1\r\n" * 5_000 + with_length(DOCUMENT)),
    "doubled headers": whole(OK + b"X: 1\r\nx: 2\r\nX: 1\r\nServer: a\r\nServer: b\r\n" + with_length(DOCUMENT)),
    "bytes that are no text": whole(OK + b"X-Odd: \xff\xfe \xc3\xa9\r\n" + with_length(DOCUMENT)),
    "NUL in a header": none(OK + b"X: a\0b\r\n" + with_length(DOCUMENT)),
    "a carriage return in a header": none(OK + b"X: a\rSet-Cookie: evil\r\n" + with_length(DOCUMENT)),
    "a name with a blank": none(OK + b"X Y: 1\r\n" + with_length(DOCUMENT)),
    # Encodings that break: the client's to find out.
    "gzip": whole(OK + b"Content-Encoding: gzip\r\n" + with_length(ZIPPED), ZIPPED),
    "gzip that is broken in the middle": whole(
        OK + b"Content-Encoding: gzip\r\n" + with_length(ZIPPED[:50] + bytes(50)), ZIPPED[:50] + bytes(50)
    ),
    "gzip that ends in the middle": whole(
        OK + b"Content-Encoding: gzip\r\n" + with_length(ZIPPED[:-20]), ZIPPED[:-20]
    ),
    "gzip that is cut": cut(
        OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(ZIPPED) + ZIPPED[:40], ZIPPED[:40]
    ),
    "gzip that is none": whole(OK + b"Content-Encoding: gzip\r\n" + with_length(DOCUMENT)),
    "an encoding nobody knows": whole(OK + b"Content-Encoding: x, y\r\n" + with_length(DOCUMENT)),
    "a stream that is none": whole(b"HTTP/1.1 404 No\r\nContent-Type: text/event-stream\r\n" + in_chunks(b"\xff" * 999),
                                   b"\xff" * 999, status=404),
}  # fmt: skip
every_answer = pytest.mark.parametrize("case", ANSWERS.values(), ids=ANSWERS)


@every_wire
@every_answer
def test_answer_of_any_kind_to_a_turn(
    gateway: Gateway, provider: ScriptedProvider, case: Case, wire: Protocol, session: str
) -> None:
    arrived = len(provider.requests)
    provider.script(always(Verbatim(data=case.sent, then=case.then)))
    with gateway.client() as client:
        answer = take_turn(client, wire, "hello", session=session)
        provider.script(None)
        assert_passed_on(case, wire, answer)
        assert len(provider.requests) == arrived + 1, "asked twice, or went elsewhere"
        if case.complete:
            assert take_turn(client, wire, "on the same connection", session="ordinary").complete
        else:
            assert answer.fault in ("closed", "reset")
    row = settled_row(gateway, wire, session)
    assert (row.status, row.http_status) == (case.row, case.status)
    assert answer.header("x-perdure-session") == row.session_id


@every_answer
def test_answer_of_any_kind_to_what_is_no_turn(gateway: Gateway, provider: ScriptedProvider, case: Case) -> None:
    arrived = len(provider.requests)
    provider.script(always(Verbatim(data=case.sent, then=case.then)))
    with gateway.client() as client:
        answer = client.ask("GET", "/v1/files", headers_of("chat"))
    assert_passed_on(case, "chat", answer)
    assert len(provider.requests) == arrived + 1
    assert not answer.header("x-perdure-session")


def assert_passed_on(case: Case, wire: Protocol, answer: RawAnswer) -> None:
    assert (answer.status, answer.complete) == (case.status, case.complete), answer
    if case.status == 502:
        assert error_kind(wire, answer) in ("api_error", "server_error")
        return
    assert answer.body == case.body
    mine = {"x-perdure-session", "connection", "transfer-encoding", "content-length"}
    assert [field for field in answer.headers if field[0].lower() not in mine] == headers_sent(case.sent)


def headers_sent(data: bytes) -> list[tuple[str, str]]:
    """The headers of the final answer in these bytes, without those about one connection."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 1"):
        return headers_sent(rest)
    fields = [line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:]]
    hop = {"connection", "transfer-encoding", "content-length"}
    return [(name, value.strip()) for name, _, value in fields if name.lower() not in hop]


def settled_row(gateway: Gateway, wire: Protocol, session: str) -> Row:
    [row] = eventually(lambda: rows_of(gateway, wire, session), what=f"a row of {session}")
    return row


def test_answer_longer_than_its_length_is_taken_at_its_word_or_not_at_all(
    gateway: Gateway, provider: ScriptedProvider, session: str
) -> None:
    """Whether the rest arrives with the answer or after it is chance; it is never passed on."""
    provider.script(lambda request: Verbatim(data=OK + with_length(DOCUMENT) + b"and more", then="close"))
    with gateway.client() as client:
        answer = take_turn(client, "messages", "hello", session=session)
    assert answer.complete and b"and more" not in answer.body
    assert answer.status == 502 or (answer.status, answer.body) == (200, DOCUMENT)


def test_head_without_end_costs_no_memory(gateway: Gateway, provider: ScriptedProvider, session: str) -> None:
    endless = OK + (b"X: " + b"x" * 60_000 + b"\r\n") * 1_000
    provider.script(lambda request: Verbatim(data=endless))
    with growing_less_than(gateway, HEAD_GROWTH_BYTES_MAX), gateway.client() as client:
        assert take_turn(client, "chat", "hello", session=session).status == 502


# -- cookies


@every_wire
def test_cookie_is_passed_on_and_never_kept(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    cookies = [("Set-Cookie", "a=1; Path=/; HttpOnly"), ("set-cookie", "b=2; Max-Age=99999"), ("Set-Cookie", "=;;")]
    provider.script(lambda request: Canned(headers=cookies, body=b"{}"))
    with gateway.client() as client:
        for own in ([], [("Cookie", "mine=1; b=3")], []):
            answer = take_turn(client, wire, "hello", session=session, headers=own)
            assert [field for field in answer.headers if field in cookies] == cookies
            sent = [field for field in provider.requests[-1].headers if field[0].lower() == "cookie"]
            assert sent == own


# -- streams, cut everywhere

ENDS: Final[dict[Protocol, bytes]] = {
    "messages": b"event: message_stop",
    "chat": b"data: [DONE]",
    "responses": b"event: response.completed",
}
TOOLS: Final[dict[Protocol, Any]] = {
    "messages": [{"name": "Bash", "input_schema": {"properties": {"command": {}}}}],
    "chat": [{"type": "function", "function": {"name": "Bash", "parameters": {"properties": {"command": {}}}}}],
    "responses": [{"type": "function", "name": "Bash", "parameters": {"properties": {"command": {}}}}],
}


@every_wire
@pytest.mark.parametrize("said", ["hello", "use-tool:1"], ids=["text", "tool"])
def test_stream_cut_at_any_event_looks_cut_and_is_booked_as_far_as_it_came(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, said: str, session: str
) -> None:
    events = events_of(gateway, wire, said)
    kinds = {re.sub(rb"\d+", b"", event.partition(b"\n")[0])[:40] for event in events}
    assert len(kinds) > 4 or wire == "chat"
    for count in range(len(events) + 1):
        name = f"{session}-{count}"
        with gateway.client() as client:
            answer = take_turn(client, wire, f"{said} cut-after:{count}", session=name, stream=True, tools=TOOLS[wire])
        assert (answer.status, answer.complete, answer.body.count(b"\n\n")) == (200, False, count)
        row = settled_row(gateway, wire, name)
        ended = ENDS[wire] in answer.body
        assert (row.status, row.usage) == ("complete" if ended else "interrupted", provider.answers[-1].usage)


@every_wire
def test_stream_cut_within_any_event_looks_cut_and_is_booked_as_far_as_it_came(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    events = events_of(gateway, wire, "hello")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + CHUNKED
    for number, event in enumerate(events):
        # The last byte is the blank line's: without it no event has ended.
        for part in (event[: len(event) // 2], event[:-1]):
            name = f"{session}-{number}-{len(part)}"
            came = b"".join(events[:number]) + part
            data = head + b"%x\r\n%b\r\n" % (len(came), came)
            provider.script(always(Verbatim(data=data, then="reset" if number % 2 else "close")))
            with gateway.client() as client:
                answer = take_turn(client, wire, "hello", session=name, stream=True)
            assert (answer.status, answer.complete, answer.body) == (200, False, came)
            ended = ENDS[wire] in b"".join(events[:number])
            assert settled_row(gateway, wire, name).status == ("complete" if ended else "interrupted")


def always(answer: Verbatim) -> Callable[[Arrived], Verbatim]:
    return lambda request: answer


def events_of(gateway: Gateway, wire: Protocol, said: str) -> list[bytes]:
    """The events of a whole stream."""
    with gateway.client() as client:
        answer = take_turn(client, wire, said, session="whole", stream=True, tools=TOOLS[wire])
    assert answer.complete and ENDS[wire] in answer.body
    return [event + b"\n\n" for event in answer.body.split(b"\n\n") if event]


# -- an event of 10 MB

LINE_USAGE: Final = Usage(input_tokens=7, output_tokens=11)


def event(fields: dict[str, Any]) -> bytes:
    return f"event: {fields['type']}\ndata: {json.dumps(fields)}\n\n".encode()


def line_of_10_mb(wire: Protocol) -> bytes:
    """A stream with one event that is far larger than the others."""
    text = "x" * LINE_BYTES
    tokens = {"input_tokens": 7, "output_tokens": 11}
    if wire == "messages":
        start = {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 7}}}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": tokens}
        return b"".join(event(each) for each in (start, block, delta, end, {"type": "message_stop"}))
    if wire == "chat":
        delta = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
        usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 11}}
        return b"".join(f"data: {json.dumps(each)}\n\n".encode() for each in (delta, usage)) + b"data: [DONE]\n\n"
    delta = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": text}
    end = {"type": "response.completed", "response": {"id": "r", "output": [], "usage": tokens}}
    return event(delta) + event(end)


@every_wire
def test_line_of_10_mb_is_passed_on_and_read(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    stream = line_of_10_mb(wire)
    provider.script(lambda request: Canned(headers=[("content-type", "text/event-stream")], body=[stream]))
    with growing_less_than(gateway, LINE_GROWTH_BYTES_MAX), gateway.client() as client:
        answer = take_turn(client, wire, "hello", session=session, stream=True)
    assert answer.complete and answer.body == stream
    row = settled_row(gateway, wire, session)
    assert (row.status, row.usage) == ("complete", LINE_USAGE)


# -- an answer before the request was read


class HastyProvider:
    """Answers 413 as soon as it has seen a head, and reads no further."""

    def __init__(self, then: Literal["waits", "half-closes", "closes"]) -> None:
        self._then = then
        self._listener = socket.create_server((HOST, 0))
        self._taken: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        # Only this wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        for taken in [self._listener, *self._taken]:
            taken.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._taken.append(connection)
                self._refuse(connection)

    def _refuse(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (data := connection.recv(1_000)):
            head += data
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Type: application/json\r\n" + with_length(DOCUMENT))
        if self._then == "half-closes":
            connection.shutdown(socket.SHUT_WR)
        elif self._then == "closes":
            connection.close()


@contextmanager
def hasty(then: Literal["waits", "half-closes", "closes"]) -> Iterator[HastyProvider]:
    running = HastyProvider(then)
    try:
        yield running
    finally:
        running.close()


@pytest.mark.parametrize("then", ["waits", "half-closes", "closes"])
def test_answer_that_comes_while_the_request_is_sent_is_passed_on(
    provider: ScriptedProvider, then: Literal["waits", "half-closes", "closes"]
) -> None:
    body = body_of("messages", "x" * UPLOAD_BYTES)
    # A provider that closes without reading resets the connection, and may take its own answer with it.
    possible = (413, 502) if then == "closes" else (413,)
    with hasty(then) as other, Gateway(provider, anthropic_url=other.url) as gateway:
        gateway.start()
        for path in (PATHS["messages"], "/anthropic/v1/files"):
            with BareClient(HOST, gateway.port) as client:
                length = ("content-length", str(len(body)))
                client.send("POST", path, [*headers_of("messages", "hasty"), length])
                client.put(body)
                answer = client.read()
            assert answer.complete and answer.status in possible
            assert answer.status == 502 or answer.body == DOCUMENT
        row = settled_row(gateway, "messages", "hasty")
        assert row.status == "error" and row.http_status in possible


# -- silence


def test_no_limit_on_the_way_of_an_answer_is_shorter_than_ten_minutes() -> None:
    async def limits() -> Sequence[float | None]:
        running = Upstream()
        found = running._session.timeout
        await running.close()
        return found.total, found.sock_read, found.ceil_threshold

    total, silence, _ = asyncio.run(limits())
    assert total is None, "an answer may take as long as it goes on"
    assert silence == upstream.SILENCE_LIMIT_SECONDS > SILENCE_SECONDS
    assert http_server.SILENCE_LIMIT_SECONDS >= SILENCE_SECONDS
    assert http_server.IDLE_LIMIT_SECONDS > SILENCE_SECONDS, "an unused connection is closed by its client first"


@pytest.fixture
def compressed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes of silence take a moment."""
    monkeypatch.setattr(upstream, "CONNECT_LIMIT_SECONDS", 0.05)
    monkeypatch.setattr(app, "Upstream", partial(Upstream, silence_limit_seconds=0.05))


@every_wire
@pytest.mark.usefixtures("compressed_time")
def test_provider_that_stays_silent_is_a_504_in_its_shape(wire: Protocol) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()

    async def scenario() -> None:
        async with a_stage(silent) as stage, a_client(stage.port) as client, reading(client) as read:
            await stage.ask(client, PATHS[wire])
            await read.until(b"}}")
            head, _, body = read.seen.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 504 ") and b"x-perdure-session" in head
            assert json.loads(body)["error"]["type"] == ("timeout_error" if wire == "messages" else "server_error")
            [row] = stage.worker.rows(Command.END)
            assert (row.status, row.http_status) == ("error", 504)

    run(scenario())


@every_wire
@pytest.mark.usefixtures("compressed_time")
def test_provider_that_falls_silent_in_mid_answer_is_cut(wire: Protocol) -> None:
    async def scenario() -> None:
        sent = OK + CHUNKED + b"3\r\nabc\r\n"
        async with a_stage(answering(sent)) as stage, a_client(stage.port) as client:
            await stage.ask(client, PATHS[wire])
            seen = await client.rest()
            assert seen.endswith(b"3\r\nabc\r\n"), "no final chunk"
            await until(lambda: bool(stage.worker.rows(Command.END)))
            [row] = stage.worker.rows(Command.END)
            assert (row.status, row.http_status) == ("interrupted", 200)

    run(scenario())
