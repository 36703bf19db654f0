"""Everything a network can send: what goes in, what comes out, and that it harms nobody.

One rule: each case is a line of a table.  Whatever its bytes, the client gets an answer or an orderly end, nothing of
ours is a 500, no log has a traceback, and the next ordinary turn is served.

Theory.  A request has one of three fates.  It is *booked*: a turn, which reaches the provider byte for byte and has
one row in the ledger.  It is *passed*: no turn of any conversation, and the provider's to judge.  Or it is *refused*
here, because where it ends is not certain, or because it is larger than anything that is read.
"""

from __future__ import annotations

import gzip
import json
import re
import select
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import brotli
import pytest
import zstandard

from daemon.http_server import HEAD_BYTES_MAX, HEADER_BYTES_MAX, HEADERS_MAX
from daemon.identity import derived_id
from tests.clients import RawAnswer, RawClient
from tests.processes import HOST, Gateway, eventually
from tests.provider import Arrived, Canned, ScriptedProvider
from tests.system.turns import (
    MODELS,
    PATHS,
    SESSION_HEADERS,
    WIRES,
    body_of,
    error_kind,
    headers_of,
    send_turn,
    take_turn,
)
from worker.protocol import Protocol, Row

pytestmark = pytest.mark.system

Fate = Literal["booked", "passed", "refused"]

MEGABYTE: Final = 1024 * 1024
BODY_BYTES_MAX: Final = 64 * MEGABYTE
"""PERDURE_BODY_BYTES as it is by itself."""
DEPTH: Final = 10_000
LARGE_GROWTH_BYTES_MAX: Final = 4 * BODY_BYTES_MAX + 8 * MEGABYTE
"""Of the daemon while it holds the largest body: in pieces, whole, its text, and what is on its way out; and some for
everything else."""
REFUSED_GROWTH_BYTES_MAX: Final = 16 * MEGABYTE
"""Of the daemon while it refuses something: nearly nothing was kept of it."""
ROUNDS: Final = 5
"""So often everything is sent to see what stays in memory."""
STAYING_BYTES_MAX: Final = 8 * MEGABYTE
"""What may stay after all that: sessions that were new, and what allocators keep."""

every_wire = pytest.mark.parametrize("wire", WIRES)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=31) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    """Leaving it fails if there is a traceback in a log."""
    with Gateway(provider, hosts="x") as running:
        running.start()
        yield running


@pytest.fixture
def session(request: pytest.FixtureRequest) -> str:
    """A name for the test's own session."""
    return re.sub(r"\W+", "-", request.node.name)[:200]


@pytest.fixture(autouse=True)
def _unharmed(gateway: Gateway, provider: ScriptedProvider) -> Iterator[None]:
    with unharmed(gateway, provider):
        yield


@contextmanager
def unharmed(gateway: Gateway, provider: ScriptedProvider) -> Iterator[None]:
    """After whatever happened, the same process serves the next turn, and has nothing to complain of itself."""
    start, pid = gateway.log_size("daemon"), gateway.pid("daemon")
    yield
    provider.script(None)
    with gateway.client() as client:
        assert take_turn(client, "messages", "hello", session="ordinary").status == 200
    log = gateway.log("daemon", start)
    assert gateway.is_running("daemon") and gateway.pid("daemon") == pid
    assert "Traceback" not in log and " ERROR " not in log, log


class BareClient(RawClient):
    """Sends what nobody should."""

    def put(self, data: bytes) -> None:
        """The other end may refuse it before it has read it all."""
        self._socket.settimeout(self._deadline_seconds)
        with suppress(ConnectionError):
            self._socket.sendall(data)

    def __enter__(self) -> Self:
        return self

    def hears_within(self, seconds: float) -> bool:
        """Something came: bytes, or the end of the connection."""
        return bool(select.select([self._socket], [], [], seconds)[0])

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)


def bare_client(gateway: Gateway) -> BareClient:
    return BareClient(HOST, gateway.port)


def rows_of(gateway: Gateway, wire: Protocol, session: str) -> list[Row]:
    """The ledger of a session that its client named, as soon as nothing of it is open."""
    session_id = derived_id(SESSION_HEADERS[wire], session)

    def found() -> list[Row]:
        return [row for row in gateway.rows() if row.session_id == session_id]

    eventually(lambda: all(row.is_settled for row in found()), what=f"the rows of {session} are settled")
    return found()


def newest(provider: ScriptedProvider, arrived: int) -> list[Arrived]:
    """What reached the provider since there were so many requests."""
    return provider.requests[arrived:]


@contextmanager
def accepting(provider: ScriptedProvider) -> Iterator[None]:
    """A provider that takes everything, and does not look at it."""
    provider.script(lambda request: Canned(body=b"{}"))
    try:
        yield
    finally:
        provider.script(None)


def assert_refused(answer: RawAnswer) -> None:
    """An error in a shape that both kinds of SDK read: of what was no HTTP nobody knows which one it is for."""
    error = answer.json()["error"]
    assert answer.complete and error["type"] and error["message"]


# -- framing: one line, headers, and how the body ends


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def as_it_is(body: bytes) -> bytes:
    return body


class Case(NamedTuple):
    fate: Fate
    status: int
    fields: Sequence[bytes] = ()
    """Headers beside those of an ordinary turn."""
    framed: Callable[[bytes], bytes] | None = None
    """What follows the head, made of the turn's body; None: the body, and its length among the headers."""
    line: bytes = b"POST {path} HTTP/1.1"
    target: bytes = b"{path}"
    """What the provider gets for it."""
    goes_on: bool = True
    """The connection can be used for the next request."""


def booked(*fields: bytes, **more: Any) -> Case:
    return Case("booked", 200, fields, **more)


def passed(*fields: bytes, **more: Any) -> Case:
    return Case("passed", 404, fields, **more)


def refused(*fields: bytes, status: int = 400, **more: Any) -> Case:
    return Case("refused", status, fields, **({"goes_on": False} | more))


CHUNKED: Final = b"Transfer-Encoding: chunked"
LYING_LENGTHS: Final = ("-5", "+5", "0x5", "1_0", "5.0", "5 5", "5, 5", "", "five", "9" * 30, "\u0665")
FRAMING: Final[dict[str, Case]] = {
    "as it should be": booked(),
    "chunks": booked(CHUNKED, framed=chunked),
    "chunks of one byte": booked(CHUNKED, framed=lambda b: b"".join(b"1\r\n%c\r\n" % c for c in b) + b"0\r\n\r\n"),
    "chunks with extensions": booked(CHUNKED, framed=lambda b: b'%x;a="b";c\r\n%b\r\n0;d\r\n\r\n' % (len(b), b)),
    "chunks in capitals": booked(b"TRANSFER-ENCODING: CHUNKED", framed=chunked),
    "trailers": booked(CHUNKED, framed=lambda b: chunked(b)[:-2] + b"X-Trailer: 1\r\nx-other: 2\r\n\r\n"),
    "trailer with a length": refused(CHUNKED, framed=lambda b: chunked(b)[:-2] + b"Content-Length: 3\r\n\r\n"),
    "trailers without end": refused(
        CHUNKED, framed=lambda b: chunked(b)[:-2] + b"X: 1\r\n" * 10_000 + b"\r\n", status=431
    ),
    # Lengths that lie.
    **{f"length {lie[:9]!r}": refused(f"Content-Length: {lie}".encode(), framed=as_it_is) for lie in LYING_LENGTHS},
    "two lengths": refused(b"Content-Length: 5", b"Content-Length: 6", framed=as_it_is),
    "two equal lengths": refused(b"Content-Length: 5", b"Content-Length: 5", framed=lambda b: b[:5]),
    "length and chunks": refused(b"Content-Length: 5", CHUNKED, framed=chunked),
    "chunks and length": refused(CHUNKED, b"Content-Length: 5", framed=chunked),
    "length too short": refused(b"Content-Length: 10", framed=as_it_is),
    # Two readers that disagree on where a request ends are how a second one is smuggled in.
    "chunks twice": refused(CHUNKED, CHUNKED, framed=chunked),
    "a coding nobody knows": refused(b"Transfer-Encoding: xchunked", framed=chunked),
    "a coding that stays on": refused(b"Transfer-Encoding: gzip, chunked", framed=chunked, goes_on=True),
    "chunks that are not last": refused(b"Transfer-Encoding: chunked, gzip", framed=chunked),
    "identity": refused(b"Transfer-Encoding: identity", b"Content-Length: 5", framed=as_it_is),
    "a blank before the colon": refused(b"Transfer-Encoding : chunked", framed=chunked),
    "a coding behind a control character": refused(b"Transfer-Encoding: \x0bchunked", framed=chunked),
    "a coding on a line of its own": refused(b"Transfer-Encoding:\r\n chunked", framed=chunked),
    "a header on two lines": refused(b"X: a\r\n b"),
    "a line break alone": refused(b"X: a\nContent-Length: 5", framed=as_it_is),
    "a carriage return alone": refused(b"X: a\rContent-Length: 5"),
    "NUL in a header": refused(b"X: a\0b"),
    "a name with a blank": refused(b"X Y: 1"),
    "no name": refused(b": 1"),
    "no colon": refused(b"X"),
    "two hosts": refused(b"Host: y"),
    "a chunk of negative size": refused(CHUNKED, framed=lambda b: b"-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk of 2^68 bytes": refused(CHUNKED, framed=lambda b: b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with a prefix": refused(CHUNKED, framed=lambda b: b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunks with bare line ends": refused(CHUNKED, framed=lambda b: b"5\nhello\n0\n\n"),
    "a chunk longer than it says": refused(CHUNKED, framed=lambda b: b"2\r\nhello\r\n0\r\n\r\n"),
    # Large heads.
    "a header of 10 KB": booked(b"X-Big: " + b"x" * 10_240),
    "a header just small enough": booked(b"X-Big: " + b"x" * (HEADER_BYTES_MAX - 100)),
    "a header too large": refused(b"X-Big: " + b"x" * (HEADER_BYTES_MAX + 1), status=431),
    "1,000 headers": booked(*(b"X-%d: %d" % (number, number) for number in range(1_000))),
    "1,000 equal headers": booked(*[b"X-Same: 1"] * 1_000),
    "too many headers": refused(*(b"X-%d: 1" % number for number in range(HEADERS_MAX)), status=431),
    "a head too large": refused(*[b"X: " + b"x" * 60_000] * (HEAD_BYTES_MAX // 60_000 + 20), status=431),
    "a head of 60 MB": refused(*[b"X: " + b"x" * 60_000] * 1_000, status=431),
    "a line too long": refused(line=b"POST /" + b"x" * HEADER_BYTES_MAX + b" HTTP/1.1", status=431),
    # Doubled headers.
    "two content types": refused(b"Content-Type: text/plain"),
    "two credentials": booked(b"x-api-key: another", b"authorization: Bearer another", b"x-api-key: a third"),
    "two beta flags": booked(b"anthropic-beta: a", b"Anthropic-Beta: b", b"anthropic-beta: a"),
    # Expectations, versions, methods, targets.
    "an expectation nobody knows": booked(b"Expect: a-teapot"),
    "HTTP/1.0": booked(line=b"POST {path} HTTP/1.0", goes_on=False),
    "HTTP/1.0 that goes on": booked(b"Connection: keep-alive", line=b"POST {path} HTTP/1.0"),
    "HTTP/1.0 in chunks": booked(CHUNKED, framed=chunked, line=b"POST {path} HTTP/1.0", goes_on=False),
    "HTTP/3.0": refused(line=b"POST {path} HTTP/3.0"),
    "HTTP/1.2": refused(line=b"POST {path} HTTP/1.2"),
    "HTTP/2 by prior knowledge": refused(line=b"PRI * HTTP/2.0"),
    "HTTP/2 by upgrade": booked(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"),
    "another protocol": refused(line=b"SSH-2.0-OpenSSH_9.2"),
    "TLS": refused(line=b"\x16\x03\x01\x00\xfb\x01\x00\x00\xf7\x03\x03"),
    "a method that does not exist": refused(line=b"BREW {path} HTTP/1.1"),
    "a method in lower case": refused(line=b"post {path} HTTP/1.1"),
    "a long method": refused(line=b"X" * 5_000 + b" {path} HTTP/1.1"),
    "TRACE": passed(line=b"TRACE {path} HTTP/1.1"),
    "GET with a body": passed(line=b"GET {path} HTTP/1.1"),
    "CONNECT": refused(line=b"CONNECT elsewhere:443 HTTP/1.1", framed=lambda b: b"", goes_on=True),
    "everything": refused(line=b"OPTIONS * HTTP/1.1", goes_on=True),
    "an absolute target": booked(line=b"POST http://api.anthropic.com{path}?x=%41 HTTP/1.1", target=b"{path}?x=%41"),
    "an absolute target of any scheme": booked(line=b"POST ftp://somewhere{path} HTTP/1.1"),
    "an absolute target without a port": refused(line=b"POST http://elsewhere:port{path} HTTP/1.1"),
    "a target with an encoded query": booked(
        line=b"POST {path}?a=%2F%2e&&b=+%20?&= HTTP/1.1", target=b"{path}?a=%2F%2e&&b=+%20?&="
    ),
    "an encoded path": passed(line=b"POST /v1/%6Dessages//../x HTTP/1.1", target=b"/v1/%6Dessages//../x"),
    "a fragment": passed(line=b"POST /v1/x#y HTTP/1.1", target=b"/v1/x#y"),
    "brackets": booked(line=b"POST {path}?[x]={y} HTTP/1.1", target=b"{path}?[x]={y}"),
    "a target that is no path": refused(line=b"POST v1/messages HTTP/1.1"),
    "a target with a blank": refused(line=b"POST /v1/mess ages HTTP/1.1"),
    "a target that is not ASCII": refused(line=b"POST /v1/\xc3\xa9 HTTP/1.1"),
    "a target with NUL": refused(line=b"POST /v1/\0 HTTP/1.1"),
    "no target": refused(line=b"POST  HTTP/1.1"),
    "blank lines before": booked(line=b"\r\n\r\nPOST {path} HTTP/1.1"),
    "hop-by-hop names that are not": booked(b"Connection: keep-alive, content-length, content-type, host"),
}


def each_with_its_wires() -> Iterator[object]:
    """What is refused before anybody knows what it is about needs no more than one wire format."""
    for number, (name, case) in enumerate(FRAMING.items()):
        for wire in (WIRES[number % len(WIRES)],) if case.fate == "refused" else WIRES:
            yield pytest.param(case, wire, id=f"{name}-{wire}")


def bytes_of(case: Case, wire: Protocol, session: str) -> bytes:
    body = body_of(wire, "hello")
    usual = [f"{name}: {value}".encode() for name, value in [("Host", "x"), *headers_of(wire, session)]]
    length = [b"Content-Length: %d" % len(body)] if case.framed is None else []
    head = [filled(case.line, wire), *usual, *case.fields, *length, b"", b""]
    return b"\r\n".join(head) + (case.framed or as_it_is)(body)


def filled(template: bytes, wire: Protocol) -> bytes:
    return template.replace(b"{path}", PATHS[wire].encode())


@pytest.mark.parametrize(("case", "wire"), [*each_with_its_wires()])
def test_request_of_any_framing_has_its_fate(
    gateway: Gateway, provider: ScriptedProvider, case: Case, wire: Protocol, session: str
) -> None:
    arrived = len(provider.requests)
    with bare_client(gateway) as client:
        client.put(bytes_of(case, wire, session))
        answer = client.read()
        assert (answer.status, answer.complete) == (case.status, True), answer
        assert bool(answer.header("x-perdure-session")) is (case.fate == "booked")
        if case.fate == "refused":
            assert_refused(answer)
            assert newest(provider, arrived) == []
        else:
            [request] = newest(provider, arrived)
            assert request.body == body_of(wire, "hello")
            assert request.target.encode() == filled(case.target, wire)
        if case.goes_on:
            assert take_turn(client, wire, "on the same connection", session="ordinary").status == 200
        else:
            assert client.read().fault == "closed"
    assert [row.status for row in rows_of(gateway, wire, session)] == ["complete"] * (case.fate == "booked")


def test_everything_over_and_over_leaves_nothing_in_memory(gateway: Gateway, session: str) -> None:
    send_all_framings(gateway, session)
    before = memory_bytes(gateway, "VmRSS")
    for _ in range(ROUNDS):
        send_all_framings(gateway, session)
    assert memory_bytes(gateway, "VmRSS") - before < STAYING_BYTES_MAX


def send_all_framings(gateway: Gateway, session: str) -> None:
    for case in FRAMING.values():
        with bare_client(gateway) as client:
            client.put(bytes_of(case, "chat", session))
            assert client.read().status == case.status


# -- slowly, in part, all at once


@every_wire
@pytest.mark.parametrize("case", [FRAMING["as it should be"], FRAMING["trailers"]], ids=["length", "chunks"])
def test_request_sent_byte_by_byte_is_a_turn_like_any_other(
    gateway: Gateway, provider: ScriptedProvider, case: Case, wire: Protocol, session: str
) -> None:
    with bare_client(gateway) as client:
        for byte in bytes_of(case, wire, session):
            client.put(bytes([byte]))
        answer = client.read()
    assert (answer.status, answer.complete) == (200, True)
    assert provider.requests[-1].body == body_of(wire, "hello")
    assert [row.status for row in rows_of(gateway, wire, session)] == ["complete"]


@every_wire
@pytest.mark.parametrize("ending", ["closed", "half-closed"])
@pytest.mark.parametrize("case", [FRAMING["as it should be"], FRAMING["chunks"]], ids=["length", "chunks"])
def test_half_a_request_is_none(
    gateway: Gateway, provider: ScriptedProvider, case: Case, wire: Protocol, ending: str, session: str
) -> None:
    arrived = len(provider.requests)
    whole = bytes_of(case, wire, session)
    body_at = whole.index(b"\r\n\r\n") + 4
    for size in (1, 20, body_at - 2, body_at, body_at + 3, len(whole) - 1):
        with bare_client(gateway) as client:
            client.put(whole[:size])
            if ending == "half-closed":
                client.half_close()
                answer = client.read()
                assert answer.fault == "closed" and answer.status == 0
    assert newest(provider, arrived) == [] and rows_of(gateway, wire, session) == []


@every_wire
def test_half_a_request_waits_without_harm_to_others(gateway: Gateway, wire: Protocol, session: str) -> None:
    whole = bytes_of(FRAMING["chunks"], wire, session)
    with bare_client(gateway) as slow, gateway.client() as other:
        slow.put(whole[:-20])
        assert take_turn(other, wire, "hello", session=f"{session}-other").complete
        slow.put(whole[-20:])
        assert slow.read().complete


@every_wire
def test_pipelined_turns_are_answered_in_their_order(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    arrived = len(provider.requests)
    with gateway.client() as client:
        for number in range(5):
            send_turn(client, wire, f"words:{number + 1}", session=session, stream=number % 2 == 1)
        answers = [client.read() for _ in range(5)]
    assert all(answer.complete and answer.status == 200 for answer in answers)
    assert [f"word{number + 1}".encode() in answer.body for number, answer in enumerate(answers)][1:] == [True] * 4
    assert [b"words:%d" % (n + 1) in request.body for n, request in enumerate(newest(provider, arrived))] == [True] * 5
    assert len(rows_of(gateway, wire, session)) == 5


@every_wire
def test_garbage_behind_a_turn_ends_the_connection_and_no_more(gateway: Gateway, wire: Protocol, session: str) -> None:
    with bare_client(gateway) as client:
        send_turn(client, wire, "hello", session=session)
        assert client.read().complete
        client.put(b"\0garbage\r\n\r\n" * 1_000)
        assert_refused(client.read())
        assert client.read().fault == "closed"
    assert [row.status for row in rows_of(gateway, wire, session)] == ["complete"]


@every_wire
def test_client_that_expects_to_be_told_is_told_to_go_on(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    body = body_of(wire, "hello")
    headers = [*headers_of(wire, session), ("Expect", "100-Continue"), ("content-length", str(len(body)))]
    with bare_client(gateway) as client:
        client.send("POST", PATHS[wire], headers)
        assert client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.put(body)
        assert client.read().status == 200
        assert take_turn(client, wire, "hello", session="ordinary").status == 200
    assert not any(name.lower() == "expect" for name, _ in provider.requests[-2].headers)


@every_wire
def test_client_that_expects_to_be_told_hears_at_once_that_its_body_is_too_large(
    gateway: Gateway, wire: Protocol, session: str
) -> None:
    length = ("content-length", str(BODY_BYTES_MAX + 1))
    with gateway.client() as client:
        client.send("POST", PATHS[wire], [*headers_of(wire, session), ("Expect", "100-continue"), length])
        assert client.read_until(b"PERDURE_BODY_BYTES") and not client.read_until(b"100 Continue")
        answer = client.read()
    assert answer.status == 413 and error_kind(wire, answer)


# -- sizes


@every_wire
def test_body_one_byte_over_the_limit_is_a_413_and_is_not_kept(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    arrived = len(provider.requests)
    with growing_less_than(gateway, REFUSED_GROWTH_BYTES_MAX), bare_client(gateway) as client:
        client.send("POST", PATHS[wire], [*headers_of(wire, session), ("content-length", str(BODY_BYTES_MAX + 1))])
        for _ in range(BODY_BYTES_MAX // MEGABYTE):
            client.put(b"x" * MEGABYTE)
        client.put(b"x")
        answer = client.read()
        assert answer.status == 413 and answer.complete and error_kind(wire, answer)
        assert take_turn(client, wire, "on the same connection", session="ordinary").status == 200
    assert len(newest(provider, arrived)) == 1 and rows_of(gateway, wire, session) == []


def test_body_of_64_mib_is_a_turn_and_memory_is_bounded(
    gateway: Gateway, provider: ScriptedProvider, session: str
) -> None:
    body = body_of("messages", "x" * (BODY_BYTES_MAX - len(body_of("messages", ""))))
    assert len(body) == BODY_BYTES_MAX
    with accepting(provider), growing_less_than(gateway, LARGE_GROWTH_BYTES_MAX), gateway.client() as client:
        assert client.ask("POST", PATHS["messages"], headers_of("messages", session), body).status == 200
    assert provider.requests[-1].body == body
    assert [row.status for row in rows_of(gateway, "messages", session)] == ["complete"]


@contextmanager
def growing_less_than(gateway: Gateway, limit_bytes: int) -> Iterator[None]:
    """The daemon's memory has no peak meanwhile that is so much higher than before."""
    Path(f"/proc/{gateway.pid('daemon')}/clear_refs").write_text("5")
    before = memory_bytes(gateway, "VmHWM")
    yield
    assert memory_bytes(gateway, "VmHWM") - before < limit_bytes


def memory_bytes(gateway: Gateway, name: str) -> int:
    text = Path(f"/proc/{gateway.pid('daemon')}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found
    return int(found[1]) * 1024


# -- what the body says


FIELDS: Final[dict[Protocol, Sequence[str]]] = {
    "messages": ("model", "messages", "system", "tools", "metadata", "stream", "max_tokens", "thinking"),
    "chat": ("model", "messages", "tools", "user", "stream", "stream_options", "max_tokens", "prompt_cache_key"),
    "responses": (
        *("model", "input", "instructions", "tools", "stream", "metadata", "client_metadata"),
        *("previous_response_id", "conversation", "prompt_cache_key", "store"),
    ),
}
ODD_VALUES: Final[Sequence[Any]] = (
    *(None, True, 0, -1, 1.5, 2**70, "", "x", "\ud800", "\0", [], [1], [[]], [None], {}, {"": 0}, {"x": {}}),
    *([{"role": 1, "content": 2}], [{"role": "user"}], [{"role": "user", "content": [1, {"type": []}]}]),
    *([{"role": "user", "content": {"type": "text"}}], [{"type": 7, "content": {}}], [{"id": [], "type": None}]),
    *({"user_id": 5}, {"user_id": "{"}, {"user_id": '{"session_id": []}'}, {"id": 7}, ["model"] * 100),
)


@every_wire
def test_field_of_any_type_is_the_providers_to_judge_and_the_turn_is_booked(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, session: str
) -> None:
    bodies = [json.loads(body_of(wire, "hello")) | {field: value} for field in FIELDS[wire] for value in ODD_VALUES]
    sent = [json.dumps(body).encode() for body in bodies]
    arrived = len(provider.requests)
    with accepting(provider), gateway.client() as client:
        for body in sent:
            answer = client.ask("POST", PATHS[wire], headers_of(wire, session), body)
            assert (answer.status, answer.body) == (200, b"{}"), body
    assert [request.body for request in newest(provider, arrived)] == sent
    turns = [body for body in bodies if has_conversation(wire, body)]
    assert 0 < len(turns) < len(bodies)
    assert [row.status for row in rows_of(gateway, wire, session)] == ["complete"] * len(turns)


def has_conversation(wire: Protocol, body: Mapping[str, Any]) -> bool:
    said = body["input" if wire == "responses" else "messages"]
    return (isinstance(said, list) and bool(said)) or (wire == "responses" and isinstance(said, str))


NOTHING_SAID: Final[Sequence[tuple[Protocol, dict[str, Any]]]] = (
    ("messages", {}),
    ("messages", {"model": "claude-sonnet-4-6", "max_tokens": 9}),
    ("messages", {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": []}),
    ("messages", {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": "hello"}),
    ("chat", {"model": "gpt-5", "messages": {}}),
    ("chat", {"model": "gpt-5", "input": "hello"}),
    ("responses", {"model": "gpt-5"}),
    ("responses", {"model": "gpt-5", "instructions": "Be short.", "input": None}),
    ("responses", {"model": "gpt-5", "input": [], "previous_response_id": ""}),
)


@pytest.mark.parametrize(("wire", "body"), NOTHING_SAID)
def test_body_without_a_conversation_is_the_providers_to_refuse_and_opens_no_session(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, body: dict[str, Any], session: str
) -> None:
    before = len(gateway.sessions())
    with gateway.client() as client:
        for named in (session, ""):
            answer = client.ask("POST", PATHS[wire], headers_of(wire, named), json.dumps(body).encode())
            assert answer.status == 400 and error_kind(wire, answer)
            assert not answer.header("x-perdure-session")
        assert take_turn(client, wire, "hello", session=f"{session}-next").status == 200
    assert provider.requests[-2].body == json.dumps(body).encode()
    assert rows_of(gateway, wire, session) == [] and len(gateway.sessions()) == before + 1


KEPT_ELSEWHERE: Final[Sequence[tuple[Protocol, dict[str, Any]]]] = (
    ("messages", {"messages": [{"role": "user", "content": "hello"}]}),
    ("responses", {"model": "gpt-5", "input": "hello"}),
    ("responses", {"model": "gpt-5", "previous_response_id": "resp_1"}),
    ("responses", {"model": "gpt-5", "conversation": {"id": "conv_1"}}),
    ("responses", {"prompt": {"id": "pmpt_1", "version": "2"}}),
)


@pytest.mark.parametrize(("wire", "body"), KEPT_ELSEWHERE)
def test_body_whose_conversation_or_model_is_known_elsewhere_is_a_turn(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, body: dict[str, Any], session: str
) -> None:
    # Where the body names a session as well, that one has it.
    before = len(gateway.rows())
    with accepting(provider), gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers_of(wire, session), json.dumps(body).encode())
    assert answer.header("x-perdure-session")
    assert [row.status for row in gateway.rows(before)] == ["complete"]


def with_text(wire: Protocol, inside: bytes) -> bytes:
    """A turn whose only text is what stands for HERE, in bytes."""
    return body_of(wire, "HERE").replace(b"HERE", inside)


def with_field(wire: Protocol, field: bytes) -> bytes:
    return body_of(wire, "hello")[:-1] + b", " + field + b"}"


BODIES: Final[dict[str, tuple[Fate, Callable[[Protocol], bytes]]]] = {
    "empty": ("passed", lambda wire: b""),
    "blanks": ("passed", lambda wire: b" \r\n\t" * 100),
    "cut": ("passed", lambda wire: body_of(wire, "hello")[:-1]),
    "with more behind": ("passed", lambda wire: body_of(wire, "hello") + b"{}"),
    "two objects": ("passed", lambda wire: body_of(wire, "hello") * 2),
    "in single quotes": ("passed", lambda wire: body_of(wire, "hello").replace(b'"', b"'")),
    "no JSON": ("passed", lambda wire: b"model=hello&stream=true"),
    "a list of one": ("passed", lambda wire: b"[" + body_of(wire, "hello") + b"]"),
    "in UTF-16": ("passed", lambda wire: body_of(wire, "hello").decode().encode("utf-16")),
    "not UTF-8 in a text": ("passed", lambda wire: with_text(wire, b"\xff\xfe")),
    "not UTF-8 in a name": ("passed", lambda wire: with_field(wire, b'"\xc3": 1')),
    "half a character": ("passed", lambda wire: with_text(wire, b"\xf0\x9f\x98")),
    "a surrogate in UTF-8": ("passed", lambda wire: with_text(wire, b"\xed\xa0\x80")),
    "a control character in a text": ("passed", lambda wire: with_text(wire, b"a\0b")),
    "a wrong escape": ("passed", lambda wire: with_text(wire, b"\\x41")),
    "deep lists": ("passed", lambda wire: b"[" * DEPTH + b"]" * DEPTH),
    "deep objects": ("passed", lambda wire: b'{"a":' * DEPTH + b"1" + b"}" * DEPTH),
    "escapes": ("booked", lambda wire: with_text(wire, b"\\u0000\\ud83d\\ude00\\/")),
    "half an emoji": ("booked", lambda wire: with_text(wire, b"\\ud83d")),
    "two keys of one name": ("booked", lambda wire: with_field(wire, b'"model": "another", "stream": false')),
    "a key a thousand times": ("booked", lambda wire: with_field(wire, b", ".join([b'"x": [1, {}]'] * 1_000))),
    "history twice": ("booked", lambda wire: with_field(wire, body_of(wire, "again")[1:-1])),
    "keys without names": ("booked", lambda wire: with_field(wire, b'"": "", " ": {"": {}}')),
    "100,000 keys": ("booked", lambda wire: with_field(wire, b", ".join(b'"%d":0' % n for n in range(100_000)))),
    "100,000 messages": ("booked", lambda wire: with_field(wire, history_of(wire, b"{}", 100_000))),
    "a text of 5 MB": ("booked", lambda wire: with_text(wire, b"x" * 5_000_000)),
    "numbers without end": ("booked", lambda wire: with_field(wire, b'"x": [1e999, -0, 1' + b"0" * 5_000 + b"]")),
}


def history_of(wire: Protocol, entry: bytes, count: int) -> bytes:
    return b'"%s": [%s]' % (b"input" if wire == "responses" else b"messages", b", ".join([entry] * count))


@every_wire
@pytest.mark.parametrize(("fate", "make"), BODIES.values(), ids=BODIES)
def test_body_of_any_kind_reaches_the_provider_byte_for_byte(
    gateway: Gateway,
    provider: ScriptedProvider,
    fate: Fate,
    make: Callable[[Protocol], bytes],
    wire: Protocol,
    session: str,
) -> None:
    body = make(wire)
    arrived = len(provider.requests)
    with accepting(provider), gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers_of(wire, session), body)
    assert (answer.status, answer.body) == (200, b"{}")
    assert bool(answer.header("x-perdure-session")) is (fate == "booked")
    assert [request.body for request in newest(provider, arrived)] == [body]
    assert [row.status for row in rows_of(gateway, wire, session)] == ["complete"] * (fate == "booked")


@every_wire
@pytest.mark.parametrize("place", ["history", "content", "tools", "metadata", "unknown"])
@pytest.mark.parametrize("brackets", [b"[]", b'{"a":}'], ids=["lists", "objects"])
def test_field_that_is_10000_deep_costs_at_most_its_booking(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, place: str, brackets: bytes, session: str
) -> None:
    deep = brackets[:-1] * DEPTH + b"1" + brackets[-1:] * DEPTH
    fields = {
        "history": history_of(wire, deep, 1),
        "content": history_of(wire, b'{"role": "user", "content": ' + deep + b"}", 1),
        "tools": b'"tools": ' + deep,
        "metadata": b'"metadata": ' + deep,
        "unknown": b'"unknown": ' + deep,
    }
    body = with_field(wire, fields[place])
    with accepting(provider), gateway.client() as client:
        assert client.ask("POST", PATHS[wire], headers_of(wire, session), body).status == 200
    assert provider.requests[-1].body == body
    assert len(rows_of(gateway, wire, session)) <= 1


# -- compressed bodies

ENCODERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "identity": as_it_is,
    "gzip, br": lambda body: brotli.compress(gzip.compress(body)),
}
every_encoding = pytest.mark.parametrize(("encoding", "encode"), ENCODERS.items(), ids=ENCODERS)


@every_wire
@every_encoding
def test_compressed_turn_is_booked_and_arrives_as_it_was_sent(
    gateway: Gateway,
    provider: ScriptedProvider,
    encoding: str,
    encode: Callable[[bytes], bytes],
    wire: Protocol,
    session: str,
) -> None:
    body = encode(body_of(wire, "hello"))
    headers = [*headers_of(wire, session), ("Content-Encoding", encoding)]
    with accepting(provider), gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers, body)
    request = provider.requests[-1]
    assert request.body == body and request.header("content-encoding") == encoding
    assert answer.header("x-perdure-session") == derived_id(SESSION_HEADERS[wire], session)
    assert [(row.status, row.model) for row in rows_of(gateway, wire, session)] == [("complete", MODELS[wire])]


@every_wire
@every_encoding
def test_compressed_turn_without_an_id_continues_its_conversation(
    gateway: Gateway,
    provider: ScriptedProvider,
    encoding: str,
    encode: Callable[[bytes], bytes],
    wire: Protocol,
    session: str,
) -> None:
    opening = {"role": "user", "content": f"a conversation of its own: {session}"}
    with gateway.client() as client:
        first = take_turn(client, wire, opening["content"])
        assert first.status == 200
        said = [opening, {"role": "assistant", "content": provider.answers[-1].text}, {"role": "user", "content": "on"}]
        body = body_of(wire, "", stream=False, **{"input" if wire == "responses" else "messages": said})
        with accepting(provider):
            headers = [*headers_of(wire), ("content-encoding", encoding)]
            second = client.ask("POST", PATHS[wire], headers, encode(body))
    assert second.header("x-perdure-session") == first.header("x-perdure-session") != ""


@every_wire
@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        pytest.param("gzip", lambda body: gzip.compress(body)[:-4], id="cut"),
        pytest.param("gzip", as_it_is, id="not compressed"),
        pytest.param("br", gzip.compress, id="another encoding"),
        pytest.param("compress", as_it_is, id="unknown"),
        pytest.param("gzip, br, zstd, gzip", gzip.compress, id="too many"),
        pytest.param("gzip", lambda body: gzip.compress(bytes(BODY_BYTES_MAX + 1)), id="bomb"),
        pytest.param("br", lambda body: brotli.compress(bytes(4 * BODY_BYTES_MAX), quality=1), id="bomb of brotli"),
    ],
)
def test_compressed_body_that_can_not_be_read_is_passed_on_unbooked(
    gateway: Gateway,
    provider: ScriptedProvider,
    encoding: str,
    encode: Callable[[bytes], bytes],
    wire: Protocol,
    session: str,
) -> None:
    body = encode(body_of(wire, "hello"))
    headers = [*headers_of(wire, session), ("content-encoding", encoding)]
    with (
        accepting(provider),
        growing_less_than(gateway, LARGE_GROWTH_BYTES_MAX),
        gateway.client() as client,
    ):
        answer = client.ask("POST", PATHS[wire], headers, body)
    request = provider.requests[-1]
    assert request.body == body and request.header("content-encoding") == encoding
    assert (answer.status, answer.body) == (200, b"{}") and not answer.header("x-perdure-session")
    assert rows_of(gateway, wire, session) == []
