"""Events come out as they went in, whatever the line ends and however the bytes are split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.providers.sse import EVENT_BYTES_MAX, Event, EventSplitter


def events_of(*chunks: bytes) -> list[Event]:
    splitter = EventSplitter()
    return [event for chunk in chunks for event in splitter.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [Event("", b"a")]),
        (b"data:a\r\n\r\n", [Event("", b"a")]),
        (b"data: a\r\rdata: b\r\r", [Event("", b"a"), Event("", b"b")]),
        (b"event: x\ndata:  a\ndata: b\n\n", [Event("x", b" a\nb")]),
        (b"event: x\r\ndata: a\r\ndata: b\r\n\r\n", [Event("x", b"a\nb")]),
        (b": comment\n\nid: 1\nretry: 5\n\n", []),
        (b"event: lonely\n\ndata: a\n\n", [Event("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("", b"a")]),
        (b"data\n\n", [Event("", b"")]),
        (b"data: a\n", []),
        (b"\n\n\n", []),
    ],
)
def test_stream_is_split_into_events(stream: bytes, expected: list[Event]) -> None:
    assert events_of(stream) == expected
    assert events_of(*(bytes([byte]) for byte in stream)) == expected


def test_cr_ends_an_event_without_waiting_for_what_may_follow() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: a\r\n\r") == [Event("", b"a")]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\ndata: b\r\n\r\n") == [Event("", b"b")]


@given(
    st.lists(
        st.sampled_from([b"data: ", b"event: x", b"\n", b"\r", b"\r\n", b"\n\n", "ä".encode(), b":", b"z", b"\xff"])
    ),
    st.lists(st.integers(0, 200)),
)
@settings(max_examples=200, deadline=None, database=None, print_blob=True)
def test_split_anywhere_gives_the_same_events(pieces: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(pieces)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    assert events_of(*chunks) == events_of(stream)


def test_event_over_the_limit_loses_its_data_and_keeps_its_name() -> None:
    piece = b"x" * (1024 * 1024)
    splitter = EventSplitter()
    splitter.feed(b"event: big\ndata: ")
    for _ in range(EVENT_BYTES_MAX // len(piece)):
        assert splitter.feed(piece) == []
    assert splitter.feed(b"\ndata: more\n") == []
    assert splitter.feed(b"\ndata: next\n\n") == [Event("big", None), Event("", b"next")]


def test_event_of_many_lines_over_the_limit_is_skipped_too() -> None:
    line = b"data: " + b"x" * 65_536 + b"\n"
    splitter = EventSplitter()
    for _ in range(EVENT_BYTES_MAX // len(line) + 1):
        splitter.feed(line)
    assert splitter.feed(b"\n") == [Event("", None)]


def test_flush_gives_the_event_that_lacked_its_blank_line() -> None:
    for stream in (b"event: x\ndata: a", b"event: x\ndata: a\n", b"event: x\r\ndata: a\r"):
        splitter = EventSplitter()
        assert splitter.feed(stream) == []
        assert splitter.flush() == [Event("x", b"a")]
        assert splitter.flush() == []
