"""Ordinary requests and answers with something wrong in them, made by a generator.

One rule: whatever it makes, the client gets an answer or an orderly end, nothing of ours is a 500, no log has a
traceback, every row is settled, and the next ordinary turn is served.

Theory.  The tables of bad requests and bad answers hold what we could think of; this holds what we could not.  Damage
is done to bytes (anywhere, framing included), to values (JSON of other types), to headers (doubled, removed, changed)
and to time (pieces of any size).  The examples are the same in every run, so a failure can be run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.processes import HOST, Gateway, eventually
from tests.provider import Canned, ScriptedProvider, Verbatim
from tests.system.test_bad_answers import ZIPPED, always, events_of, in_chunks, with_length
from tests.system.test_bad_requests import BareClient, chunked, unharmed
from tests.system.turns import PATHS, WIRES, body_of, headers_of, take_turn
from worker.protocol import Protocol

pytestmark = pytest.mark.system

DAMAGES_MAX: Final = 4
PIECES_MAX: Final = 6
HEARING_SECONDS: Final = 0.1
"""How long a client waits before it takes its damaged request for an incomplete one, and hangs up."""
OURS: Final = b"perdure failed"
"""What every 500 of ours says."""

Fields = list[tuple[str, str]]

every_wire = pytest.mark.parametrize("wire", WIRES)


def tries(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider(seed=41) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ScriptedProvider) -> Iterator[Gateway]:
    """Leaving it fails if there is a traceback in a log."""
    with Gateway(provider) as running:
        running.start()
        yield running
        eventually(lambda: all(row.is_settled for row in running.rows()), what="all rows are settled")


@pytest.fixture(autouse=True)
def _unharmed(gateway: Gateway, provider: ScriptedProvider) -> Iterator[None]:
    with unharmed(gateway, provider):
        yield


# -- damage


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """These bytes with something wrong in them: in the head, or in the body, which is as likely to be hit."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, DAMAGES_MAX))):
        body_at = max(data.find(b"\r\n\r\n"), 0)
        start = draw(st.integers(0, body_at) | st.integers(body_at, len(data)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        kind = draw(st.sampled_from(("flip", "replace", "insert", "remove", "repeat", "cut")))
        if kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "replace":
            data[start:end] = draw(st.binary(max_size=20))
        elif kind == "insert":
            data[start:start] = draw(st.sampled_from((b"\r\n", b"\r\n\r\n", b"\0", b":", b"{", b"[", b'"', b"\xff")))
        elif kind == "remove":
            del data[start:end]
        elif kind == "repeat":
            data[start:start] = data[start:end]
        elif kind == "cut" and draw(st.integers(0, 3)) == 3:
            del data[start:]
    return bytes(data)


@st.composite
def in_pieces(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """These bytes as several writes."""
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=PIECES_MAX)))
    bounds = [0, *cuts, len(whole)]
    return [whole[start:end] for start, end in pairwise(bounds) if end > start]


def values() -> st.SearchStrategy[Any]:
    """JSON of any type, its odd corners included."""
    odd: st.SearchStrategy[Any] = st.sampled_from(
        (None, True, -1, 0.5, 2**70, "", "\0", "\ud800", [], {}, [[]], {"": {}}, "x" * 300)
    )
    texts = st.text(max_size=8)
    return st.recursive(
        odd | st.integers() | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    )


@st.composite
def with_other_values(draw: st.DrawFn, document: Any) -> Any:
    """The document with one value replaced, somewhere."""
    places: Sequence[Any] = list(document) if isinstance(document, dict) else range(len(document))
    place = draw(st.sampled_from(places))
    inner = document[place]
    deeper = isinstance(inner, dict | list) and inner and draw(st.booleans())
    changed = draw(with_other_values(inner)) if deeper else draw(values())
    if isinstance(document, dict):
        return {**document, place: changed}
    return [*document[:place], changed, *document[place + 1 :]]


@st.composite
def with_other_headers(draw: st.DrawFn, headers: Fields) -> Fields:
    """Some doubled, some gone, some with another value, in another order."""
    found: Fields = []
    for name, value in draw(st.permutations(headers)):
        kind = draw(st.sampled_from(("same", "same", "same", "doubled", "gone", "changed", "respelt")))
        changed = draw(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=12))
        found += {
            "same": [(name, value)],
            "doubled": [(name, value), (name.title(), changed)],
            "gone": [],
            "changed": [(name, changed)],
            "respelt": [(name.upper(), value)],
        }[kind]
    return found


# -- requests


def request_of(wire: Protocol, headers: Fields, body: bytes, *, in_chunks: bool = False) -> bytes:
    framing = "Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {len(body)}"
    fields = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "x"), *headers])
    head = f"POST {PATHS[wire]} HTTP/1.1\r\n{fields}{framing}\r\n\r\n".encode("latin-1")
    return head + (chunked(body) if in_chunks else body)


def assert_survived(gateway: Gateway, pieces: Sequence[bytes]) -> None:
    """The request gets an answer that is not a failure of ours, or an orderly end; and others go on."""
    with BareClient(HOST, gateway.port) as client:
        for piece in pieces:
            client.put(piece)
        if not client.hears_within(HEARING_SECONDS):
            client.half_close()
        answer = client.read()
    assert answer.fault in ("", "closed"), answer
    assert answer.status < 500, answer
    with gateway.client() as client:
        assert take_turn(client, "chat", "hello", session="ordinary").status == 200


def accept_everything(provider: ScriptedProvider) -> None:
    provider.script(lambda request: Canned(body=b"{}"))


@every_wire
def test_request_with_damaged_bytes_harms_nobody(gateway: Gateway, provider: ScriptedProvider, wire: Protocol) -> None:
    accept_everything(provider)
    wholes = [
        request_of(wire, headers_of(wire, "damaged"), body_of(wire, "hello"), in_chunks=chunks)
        for chunks in (False, True)
    ]

    @tries(80)
    @given(st.sampled_from(wholes).flatmap(damaged).flatmap(in_pieces))
    def every_example(pieces: list[bytes]) -> None:
        assert_survived(gateway, pieces)

    every_example()


@every_wire
def test_request_with_other_values_and_headers_harms_nobody(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol
) -> None:
    accept_everything(provider)
    talk = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}, {"role": "assistant", "content": "yes"}]
    history: dict[str, Any] = {"input" if wire == "responses" else "messages": [*talk, *talk]}
    document = json.loads(body_of(wire, "", stream=False, metadata={"user_id": "{}"}, **history))

    @tries(100)
    @given(with_other_values(document), with_other_headers(headers_of(wire, "damaged")))
    def every_example(changed: Any, headers: Fields) -> None:
        assert_survived(gateway, [request_of(wire, headers, json.dumps(changed).encode())])

    every_example()


# -- answers


def answers_of(gateway: Gateway, wire: Protocol) -> list[bytes]:
    """Whole answers, from the status line on: a document, a stream, a compressed document."""
    with gateway.client() as client:
        document = take_turn(client, wire, "hello").body
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nX-Some: 1\r\n"
    return [
        head % b"application/json" + with_length(document),
        head % b"text/event-stream" + in_chunks(*events_of(gateway, wire, "hello")),
        head % b"application/json" + b"Content-Encoding: gzip\r\n" + with_length(ZIPPED),
    ]


@every_wire
def test_answer_with_damaged_bytes_harms_nobody(gateway: Gateway, provider: ScriptedProvider, wire: Protocol) -> None:
    wholes = answers_of(gateway, wire)
    ends = st.sampled_from(("close", "reset"))

    @tries(100)
    @given(st.sampled_from(wholes).flatmap(damaged).flatmap(in_pieces), ends, st.booleans())
    def every_example(pieces: list[bytes], then: Any, stream: bool) -> None:
        provider.script(always(Verbatim(data=pieces, then=then)))
        with gateway.client() as client:
            answer = take_turn(client, wire, "hello", session="damaged", stream=stream)
        provider.script(None)
        assert answer.status >= 200 and answer.fault in ("", "closed", "reset"), answer
        assert OURS not in answer.body, answer
        with gateway.client() as client:
            assert take_turn(client, wire, "hello", session="ordinary").status == 200

    every_example()


@every_wire
def test_answer_in_pieces_of_any_size_arrives_as_it_was_sent(
    gateway: Gateway, provider: ScriptedProvider, wire: Protocol
) -> None:
    whole = answers_of(gateway, wire)[1]
    provider.script(always(Verbatim(data=whole)))
    with gateway.client() as client:
        expected = take_turn(client, wire, "hello", session="in-pieces", stream=True).body

    @tries(25)
    @given(in_pieces(whole))
    def every_example(pieces: list[bytes]) -> None:
        provider.script(always(Verbatim(data=pieces)))
        with gateway.client() as client:
            answer = take_turn(client, wire, "hello", session="in-pieces", stream=True)
        assert answer.complete and answer.body == expected

    every_example()
    assert {row.status for row in gateway.rows()[-25:]} == {"complete"}
