"""What size does: work that grows with it and no faster, memory that does not grow with it at all.

Lines that run are counted, which tells the same on every machine.  What runs in C has no lines; there processor time is
compared with a factor that tells a square from a line, however busy the machine.
"""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from daemon.app import rules_of
from daemon.cost import Prices
from daemon.providers import Answer, WireFormat, parse_turn, reader
from daemon.providers.fields import VALUES_MAX
from tests.fuzz.bodies import LINES_MAX, read
from tests.fuzz.coverage import Edges
from worker.settings import Settings

BYTES: Final = 4_000
TIMES: Final = 8
SQUARE: Final = TIMES * TIMES
SECONDS: Final = 0.2
"""Less than that is too short to be compared."""
MB: Final = 1024 * 1024


def messages(entry: bytes) -> Callable[[int], bytes]:
    return lambda size: b'{"model":"m","messages":[' + entry * (size // len(entry)) + b'{"role":"user"}]}'


def text(piece: bytes, role: bytes = b"user") -> Callable[[int], bytes]:
    head = b'{"messages":[{"role":"%b","content":"' % role
    return lambda size: head + piece * (size // len(piece)) + b'"}]}'


def around(before: bytes, piece: bytes, after: bytes) -> Callable[[int], bytes]:
    return lambda size: before + piece * (size // len(piece)) + after


GROWING: Final = {
    "empty messages": messages(b"{},"),
    "messages that are none": messages(b"0,"),
    "messages to and fro": messages(b'{"role":"user","content":"a"},{"role":"assistant","content":"b"},'),
    "reminders": text(b"<system-reminder>x</system-reminder>"),
    "reminders without an end": text(b"<system-reminder>"),
    "space before reminders": text(b" "),
    "halves of characters": text(b"\\ud83d"),
    "escapes": text(b"\\u0000"),
    "a prompt that asks for a title": text(b"generate a "),
    "lines of a prompt": text(b"generat title\\n", b"system"),
    "depth": around(b'{"messages":', b"[", b""),
    "depth that ends": lambda size: b'{"a":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
    "tools": around(b'{"messages":[{"role":"user","content":"a"}],"tools":[', b'{"name":"a"},', b"{}]}"),
    "the same key again": around(b"{", b'"model":"m",', b'"messages":[{"role":"user","content":"a"}]}'),
    "a user id of quotes": around(b'{"metadata":{"user_id":"{\\"session_id\\":\\"', b"\\\\", b'\\"}"}}'),
    "parts": around(b'{"messages":[{"role":"user","content":[', b'{"type":"text","text":"a"},', b"{}]}]}"),
}


@pytest.mark.parametrize("grown", GROWING.values(), ids=GROWING)
@pytest.mark.parametrize("wire", ["messages", "chat"])
def test_work_for_a_body_grows_as_its_size(wire: WireFormat, grown: Callable[[int], bytes]) -> None:
    (few, brief), (many, long) = (cost_of(wire, grown(size)) for size in (BYTES, TIMES * BYTES))
    assert many <= 1.2 * TIMES * few + LINES_MAX
    assert long <= max(SECONDS, SQUARE / 2 * brief), f"{brief:.3f} s and {long:.3f} s"


def cost_of(wire: WireFormat, body: bytes) -> tuple[int, float]:
    """Lines that run, and seconds of the processor when nobody counts them."""
    headers = [("x-api-key", "k"), ("x-session-id", "s-1")]
    rules, prices, edges = rules_of(Settings()), Prices(), Edges()
    started = time.thread_time()
    read(wire, headers, body, rules, prices)
    seconds = time.thread_time() - started
    with edges.watching():
        read(wire, headers, body, rules, prices)
    return edges.lines, seconds


# -- memory --------------------------------------------------------------------------------------------------------


def peak_mb(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] // MB
    finally:
        tracemalloc.stop()


def read_all(chunks: Iterator[bytes], *, event_stream: bool, encoding: str = "") -> Answer:
    looking_on = reader("messages", event_stream=event_stream, encoding=encoding)
    for chunk in chunks:
        looking_on.feed(chunk)
    return looking_on.close(whole=True)


def test_event_of_100_mb_is_not_kept() -> None:
    def stream() -> Iterator[bytes]:
        yield b"event: content_block_delta\ndata: "
        yield from (b"x" * 65_536 for _ in range(100 * MB // 65_536))
        yield b'\n\ndata: {"type":"message_delta","usage":{"output_tokens":7}}\n\ndata: {"type":"message_stop"}\n\n'

    found: list[Answer] = []
    assert peak_mb(lambda: found.append(read_all(stream(), event_stream=True))) < 64
    assert found[0].usage is not None and found[0].usage.output_tokens == 7 and found[0].unit is None


def test_document_of_100_mb_is_not_kept() -> None:
    pieces = (b"x" * 65_536 for _ in range(100 * MB // 65_536))
    found: list[Answer] = []
    assert peak_mb(lambda: found.append(read_all(pieces, event_stream=False))) < 80
    assert found == [Answer(finished=True)]


@pytest.mark.parametrize("is_stream", [True, False])
def test_answer_of_nothing_but_brackets_takes_no_more_than_itself(is_stream: bool) -> None:
    """Some KB that gzip unfolds to 12 MB, each two bytes of which would be a list of eighty."""
    brackets = b'{"content":[' + b"[]," * (4 * MB) + b"[]]}"
    packed = gzip.compress(b"data: " + brackets + b"\n\n" if is_stream else brackets)
    assert len(packed) < 32_768
    del brackets
    assert peak_mb(lambda: read_all(iter([packed]), event_stream=is_stream, encoding="gzip")) < 100


def test_request_of_more_values_than_are_read_is_no_turn() -> None:
    rules = rules_of(Settings())

    def body(count: int) -> bytes:
        return b'{"messages":[' + b"0," * count + b"0]}"

    crowded = body(VALUES_MAX)
    assert peak_mb(lambda: parse_turn("messages", crowded, rules.fields)) < 16
    assert parse_turn("messages", crowded, rules.fields) is None
    assert parse_turn("messages", body(1_000), rules.fields) is not None


def test_request_of_one_text_of_32_mb_is_a_turn() -> None:
    body = b'{"messages":[{"role":"user","content":"' + b"x" * (32 * MB) + b'"}]}'
    turn = parse_turn("messages", body, rules_of(Settings()).fields)
    assert turn is not None and turn.message_count == 1
