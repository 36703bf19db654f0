"""The trace's id: taken from a valid `traceparent` and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.trace import trace_id_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize("value", [f"00-{TRACE}-{PARENT}-01", f" 00-{TRACE}-{PARENT}-ff ", f"cc-{TRACE}-{PARENT}-01-x"])
@pytest.mark.parametrize("name", ["traceparent", "TraceParent"])
def test_valid_header_tells_its_trace(name: str, value: str) -> None:
    assert trace_id_of([("accept", "*/*"), (name, value)]) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}x-{PARENT}-01",
        "Bearer sk-secret",
    ],
)
def test_header_that_is_not_valid_tells_none(value: str) -> None:
    assert trace_id_of([("traceparent", value)]) is None


def test_no_header_and_two_headers_tell_none() -> None:
    assert trace_id_of([]) is None
    assert trace_id_of([("traceparent", f"00-{TRACE}-{PARENT}-01")] * 2) is None


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.*"))
def test_id_is_one_by_its_form_whatever_comes(value: str) -> None:
    found = trace_id_of([("traceparent", value)])
    assert found is None or (len(found) == 32 and set(found) <= set("0123456789abcdef"))
