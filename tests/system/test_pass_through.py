"""Bytes are the client's: what one side sends is what the other side gets, through the whole gateway.

One rule: compared are bytes, not meanings; what may differ (Host, hop-by-hop headers, the session's header) is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.clients import API_KEY, ChatTalk, RawAnswer, RawClient
from tests.processes import Gateway, eventually, free_ports
from tests.provider import Arrived, Canned, ScriptedProvider
from tests.system.turns import MODELS, PATHS, WIRES, body_of, headers_of, send_turn, take_turn
from worker.protocol import Protocol

pytestmark = pytest.mark.system

BODY_BYTES: Final = 64 * 1024
"""PERDURE_BODY_BYTES of these tests: of no concern to what is no turn."""
UPLOAD_BYTES: Final = 20 * BODY_BYTES
CUT_SIZES: Final = (1, 30, 5_000, 300_000)
"""Bytes of an answer that come before it is cut: in one piece, and in several."""
Headers = Sequence[tuple[str, str]]

ODD_HEADERS: Final[Headers] = (
    ("X-oDD", "1"),
    ("x-Second", " spaces  inside, and after"),
    ("X-oDD", "2"),
    ("Cookie", "a=1; b=2"),
    ("X-Empty", ""),
    ("baggage", "x" * 30_000),
    ("X-oDD", "3"),
    ("Accept-Encoding", "gzip, br;q=0.1"),
    ("x-stainless-retry-count", "1"),
)
ODD_ANSWER_HEADERS: Final[Headers] = (
    ("Set-Cookie", "a=1; Path=/"),
    ("set-cookie", "b=2"),
    ("X-RateLimit-Odd", " 7"),
    ("content-TYPE", "application/json; charset=utf-8"),
    ("x-Empty", ""),
    ("Location", "http://elsewhere.test/%2F?x=1"),
    ("x-long", "y" * 30_000),
)
HOP_BY_HOP: Final[Headers] = (
    ("Connection", "keep-alive, x-mine"),
    ("x-mine", "for one hop"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Proxy-Authorization", "Basic eDp5"),
)
ODD_TARGETS: Final = (
    "/v1/files?limit=10&after=%2Fa%20b",
    "/v1//files/../%2e%2E/x",
    "/v1/files?",
    "/v1/files?a=b?c=d&&=",
    "/v1/%C3%A9?%ff=+",
    "/unknown;p=1/path",
    "/",
    "/" + "long/" * 2_000,
)

every_wire = pytest.mark.parametrize("wire", WIRES)
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=17) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    with Gateway(provider, body_bytes=BODY_BYTES) as running:
        running.start()
        yield running


@contextmanager
def sending(provider: ScriptedProvider, canned: Canned) -> Iterator[None]:
    """The provider answers everything with this."""
    provider.script(lambda request: canned)
    try:
        yield
    finally:
        provider.script(None)


def end_to_end(headers: Headers, *, without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """What is not about one connection; values without the blanks around them, which HTTP does not count."""
    return [
        (name, value.strip()) for name, value in headers if name.lower() not in {"host", "transfer-encoding", *without}
    ]


def assert_arrived(request: Arrived, method: str, target: str, headers: Headers, body: bytes) -> None:
    assert (request.method, request.target) == (method, target)
    assert end_to_end(request.headers, without=["content-length"]) == end_to_end(headers)
    assert request.body == body


# -- requests


@every_wire
def test_turn_reaches_the_provider_byte_for_byte(gateway: Gateway, provider: ScriptedProvider, wire: Protocol) -> None:
    # Blanks, the order of keys, doubled keys and escapes are nothing that a parser would keep.
    history = "input" if wire == "responses" else "messages"
    body = (
        b' {"max_tokens": 5e1,\r\n "unknown":\t[1.0, 1E400, -0, "\\u00e9\\/"], "model":"%s",\n'
        b' "%s" : [{"role":"user" , "content":"\xc3\xa9 \\ud83d\\ude00"}], "unknown": {} ,"max_tokens":50 }  '
    ) % (MODELS[wire].encode(), history.encode())
    headers = [*headers_of(wire, "bytes-of-a-turn"), *ODD_HEADERS]
    target = PATHS[wire] + "?beta=true&x=%41%2f"
    with gateway.client() as client:
        answer = client.ask("POST", target, [*headers, *HOP_BY_HOP], body)
    assert answer.status == 200 and answer.header("x-perdure-session")
    assert_arrived(provider.requests[-1], "POST", target, _spelt_once(headers), body)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"])
@pytest.mark.parametrize("target", ODD_TARGETS, ids=range(len(ODD_TARGETS)))
def test_unknown_path_reaches_the_provider_byte_for_byte(
    gateway: Gateway, provider: ScriptedProvider, method: str, target: str
) -> None:
    body = bytes(range(256)) if method in ("POST", "PUT", "PATCH") else None
    headers = [("authorization", f"Bearer {API_KEY}"), *ODD_HEADERS]
    with gateway.client() as client:
        answer = client.ask(method, target, [*headers, *HOP_BY_HOP], body)
    assert answer.status == 404 and answer.complete and not answer.header("x-perdure-session")
    assert_arrived(provider.requests[-1], method, target, _spelt_once(headers), body or b"")


def _spelt_once(headers: Headers) -> list[tuple[str, str]]:
    """Doubled headers in the spelling of the first: what the client's library makes of them."""
    spelling: dict[str, str] = {}
    return [(spelling.setdefault(name.lower(), name), value) for name, value in headers]


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("target", ["/v1/files", "/v1/audio/transcriptions", "/anthropic/v1/files"])
def test_upload_larger_than_a_turn_may_be_is_passed_on(
    gateway: Gateway, provider: ScriptedProvider, framing: str, target: str
) -> None:
    body = bytes(range(256)) * (UPLOAD_BYTES // 256)
    headers = [("authorization", f"Bearer {API_KEY}"), ("content-type", "multipart/form-data; boundary=x")]
    with gateway.client() as client:
        if framing == "chunks":
            pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
            chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            sent = chunks + b"0\r\nX-Trailer: 1\r\n\r\n"
            answer = client.ask("POST", target, [*headers, ("transfer-encoding", "chunked")], sent)
        else:
            answer = client.ask("POST", target, headers, body)
    assert answer.status == 404
    assert_arrived(provider.requests[-1], "POST", target.removeprefix("/anthropic"), headers, body)


@every_wire
def test_turn_sent_in_chunks_is_a_turn(gateway: Gateway, provider: ScriptedProvider, wire: Protocol) -> None:
    body = body_of(wire, "hello")
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    headers = [*headers_of(wire), ("transfer-encoding", "chunked")]
    with gateway.client() as client:
        answer = client.ask("POST", PATHS[wire], headers, chunked)
    assert answer.status == 200 and answer.header("x-perdure-session")
    assert provider.requests[-1].body == body


# -- answers


@every_wire
@pytest.mark.parametrize("is_turn", [False, True], ids=["pass", "turn"])
@pytest.mark.parametrize("status", [200, 202, 302, 404, 429, 529])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_answer_reaches_the_client_byte_for_byte(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, is_turn: bool, status: int, framing: str
) -> None:
    pieces = [b'{ "odd" : ', bytes(range(256)), b"", b" }\r\n"]
    body = [piece for piece in pieces if piece] if framing == "chunks" else b"".join(pieces)
    canned = Canned(status=status, headers=ODD_ANSWER_HEADERS, body=body)
    path = PATHS[wire] if is_turn else PATHS[wire] + "/beside"
    with sending(provider, canned):
        direct = ask_direct(provider, path, wire)
        with gateway.client() as client:
            answer = client.ask("POST", path, headers_of(wire), body_of(wire, "hello"))
    assert answer.status == status and answer.complete and answer.body == direct.body == b"".join(pieces)
    mark = [("x-perdure-session", answer.header("x-perdure-session"))] if is_turn else []
    assert bool(answer.header("x-perdure-session")) is is_turn
    assert _comparable(answer.headers) == [*_comparable(direct.headers), *mark]


@every_wire
@pytest.mark.parametrize("status", [200, 429])
def test_session_header_of_a_provider_that_is_a_perdure_itself_is_replaced(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol, status: int
) -> None:
    theirs = [("X-Perdure-Session", "theirs"), ("x-between", "kept"), ("x-perdure-session", "theirs-too")]
    with sending(provider, Canned(status=status, headers=theirs, body=b"{}")), gateway.client() as client:
        answer = take_turn(client, wire, "hello")
    marks = [value for name, value in answer.headers if name.lower() == "x-perdure-session"]
    assert len(marks) == 1 and answer.header("x-between") == "kept"
    eventually(lambda: marks[0] in {row.session_id for row in gateway.rows()[-1:]}, what=f"{marks[0]} is ours")


def ask_direct(provider: ScriptedProvider, path: str, wire: Protocol) -> RawAnswer:
    """The same request without a gateway between."""
    with RawClient("127.0.0.1", provider.port) as client:
        return client.ask("POST", path, headers_of(wire), body_of(wire, "hello"))


def _comparable(headers: Headers) -> list[tuple[str, str]]:
    """What two answers of the provider have in common: not what it numbers or dates."""
    numbered = end_to_end(headers, without=("date", "cf-ray", "request-id", "x-request-id", "connection"))
    return [(name, re.sub(r"=[0-9a-f]+[.-][0-9a-f]+;", "=numbered;", value)) for name, value in numbered]


@every_wire
def test_event_is_seen_before_the_provider_sends_the_next(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol
) -> None:
    gate = f"after-first-{wire}"
    with gateway.client() as client:
        send_turn(client, wire, f"hold:{gate} words:5", stream=True)
        provider.wait_held(gate)
        assert client.read_until(b"tok-")
        assert not provider.answers[-1].complete
        provider.release(gate)
        answer = client.read()
    assert answer.complete and b"word5" in answer.body


@every_wire
def test_stream_through_the_gateway_is_the_stream_of_the_provider(gateway: Gateway, wire: Protocol) -> None:
    """Two providers of one seed say the same to the same request."""
    text = "words:200"
    with ScriptedProvider(seed=23) as one, ScriptedProvider(seed=23) as other:
        with RawClient("127.0.0.1", one.port) as client:
            direct = take_turn(client, wire, text, stream=True)
        with Gateway(other) as through:
            through.start()
            with through.client() as client:
                passed = take_turn(client, wire, text, stream=True)
    assert passed.complete and passed.body == direct.body


@every_wire
def test_document_that_is_cut_reaches_the_client_to_its_last_byte(wire: Protocol) -> None:
    """Nothing is held back that no end will follow."""
    with ScriptedProvider(seed=23) as one, ScriptedProvider(seed=23) as other, Gateway(other) as through:
        through.start()
        for size in CUT_SIZES:
            text = f"big:{2 * CUT_SIZES[-1]} cut-after:{size}"
            with RawClient("127.0.0.1", one.port) as client:
                direct = take_turn(client, wire, text)
            with through.client() as client:
                passed = take_turn(client, wire, text)
            assert not passed.complete and len(passed.body) == len(direct.body) == size
            assert passed.body == direct.body


# -- routes


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prefix", "wire"), [("/anthropic", "messages"), ("/openai", "chat"), ("/openai", "responses")]
)
def test_prefix_names_the_provider_and_is_taken_off(
    gateway: Gateway, provider: ScriptedProvider, prefix: str, wire: Protocol, stream: bool
) -> None:
    with gateway.client() as client:
        answer = client.ask("POST", prefix + PATHS[wire], headers_of(wire), body_of(wire, "hello", stream=stream))
    assert answer.status == 200 and answer.header("x-perdure-session")
    assert provider.requests[-1].target == PATHS[wire]
    assert gateway.rows()[-1].provider == prefix[1:]


def test_each_provider_gets_what_is_its_own() -> None:
    with ScriptedProvider() as claude, ScriptedProvider() as gpt:
        with Gateway(claude, anthropic_url=claude.url + "/v1/", openai_url=gpt.url + "/v1") as gateway:
            gateway.start()
            with gateway.client() as client:
                for wire in WIRES:
                    assert take_turn(client, wire, "hello").status == 200
                assert client.ask("GET", "/v1/models", [("x-api-key", "k")]).json()["has_more"] is False
                assert client.ask("GET", "/v1/models", [("authorization", "Bearer k")]).json()["object"] == "list"
                count = client.ask(
                    "POST", "/v1/messages/count_tokens", headers_of("messages"), body_of("messages", "hello")
                )
                assert count.json()["input_tokens"] > 0 and not count.header("x-perdure-session")
        assert [request.target for request in claude.requests] == [
            *("/v1/messages", "/v1/models", "/v1/messages/count_tokens")
        ]
        assert [request.target for request in gpt.requests] == ["/v1/chat/completions", "/v1/responses", "/v1/models"]


def test_provider_of_the_configuration_is_reached_by_its_name(provider: ScriptedProvider, tmp_path: Path) -> None:
    configuration = tmp_path / "perdure.toml"
    configuration.write_text(f'[providers]\nlocal = "{provider.url}/v1"\n')
    nowhere = "http://127.0.0.1:1"
    with Gateway(provider, config=configuration, anthropic_url=nowhere, openai_url=nowhere) as gateway:
        gateway.start()
        with ChatTalk(f"{gateway.url}/local", "of-the-configuration") as talk:
            assert talk.say("hello").session
        [row] = gateway.rows()
        assert (row.provider, row.status) == ("local", "complete")


@streamed_or_not
def test_connection_is_used_again_after_every_kind_of_answer(gateway: Gateway, stream: bool) -> None:
    with gateway.client() as client:
        for wire in WIRES:
            assert take_turn(client, wire, "hello", stream=stream).complete
            assert client.ask("GET", "/v1/models", headers_of(wire)).status == 200
            assert client.ask("GET", "/healthz").status == 200
            assert client.ask("POST", PATHS[wire], headers_of(wire), b"no JSON").status == 400
            assert take_turn(client, wire, "fail-429", stream=stream).status == 429


def test_nobody_at_the_other_end_is_said_in_the_words_of_the_path() -> None:
    [port] = free_ports(1)
    with ScriptedProvider() as provider, Gateway(provider, openai_url=f"http://127.0.0.1:{port}") as gateway:
        gateway.start()
        with gateway.client() as client:
            answer = client.ask("POST", "/v1/embeddings", headers_of("chat"), b"{}")
            assert answer.status == 502 and json.loads(answer.body)["error"]["type"] == "server_error"
            assert take_turn(client, "messages", "hello").status == 200
