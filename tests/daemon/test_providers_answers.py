"""What is read from an answer: its usage, its end, its failure."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from daemon.providers import Answer, Unit, WireFormat, reader
from daemon.providers.reader import DOCUMENT_BYTES_MAX
from daemon.providers.sse import EVENT_BYTES_MAX
from tests.daemon import provider_answers as wire
from tests.daemon.provider_answers import ANTHROPIC_USAGE, Part
from worker.protocol import Usage

TEXT = [Part("text", "hello world")]
CALL = [Part("text", "on it"), Part("call", '{"a": "b"}', "call_1")]
ANTHROPIC_READ = Usage(
    input_tokens=12,
    cache_read_tokens=4000,
    cache_write_5m_tokens=100,
    cache_write_1h_tokens=200,
    output_tokens=50,
)
OPENAI_READ = Usage(input_tokens=100, cache_read_tokens=900, output_tokens=50)
STREAMS: dict[WireFormat, bytes] = {
    "messages": wire.messages_stream(TEXT),
    "chat": wire.chat_stream(TEXT),
    "responses": wire.responses_stream(TEXT),
}
PROTOCOLS = sorted(STREAMS)


def streamed(protocol: WireFormat, *chunks: bytes, whole: bool = True) -> Answer:
    looking_on = reader(protocol, event_stream=True, encoding="")
    for chunk in chunks:
        looking_on.feed(chunk)
    return looking_on.close(whole)


def document(protocol: WireFormat, value: Any, whole: bool = True) -> Answer:
    looking_on = reader(protocol, event_stream=False, encoding="identity")
    looking_on.feed(value if isinstance(value, bytes) else json.dumps(value).encode())
    assert not looking_on.terminal
    return looking_on.close(whole)


# -- the good case -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "usage", "response_id"),
    [("messages", ANTHROPIC_READ, "msg_1"), ("chat", OPENAI_READ, "chatcmpl-1"), ("responses", OPENAI_READ, "resp_1")],
)
def test_stream_read_to_its_end_is_known(protocol: WireFormat, usage: Usage, response_id: str) -> None:
    assert streamed(protocol, STREAMS[protocol]) == Answer(
        usage=usage,
        finished=True,
        unit=Unit("assistant", "helloworld"),
        other_forms=(Unit("assistant", "\x1ereference\x1dmsg_0\x1f"),) if protocol == "responses" else (),
        response_id=response_id,
    )


@pytest.mark.parametrize(
    ("protocol", "value", "usage"),
    [
        ("messages", wire.messages_document(CALL, {**ANTHROPIC_USAGE, "output_tokens": 50}), ANTHROPIC_READ),
        ("chat", wire.chat_document(CALL), OPENAI_READ),
        ("responses", wire.responses_document(CALL), OPENAI_READ),
    ],
)
def test_document_read_to_its_end_is_known(protocol: WireFormat, value: Any, usage: Usage) -> None:
    answer = document(protocol, value)
    assert (answer.usage, answer.finished, answer.failed, answer.text_only) == (usage, True, False, False)
    assert answer.unit == Unit("assistant", "onit\x1ecall\x1dcall_1\x1f")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_terminal_is_seen_with_the_last_byte_of_the_last_event_and_not_before(protocol: WireFormat) -> None:
    looking_on = reader(protocol, event_stream=True, encoding="")
    looking_on.feed(STREAMS[protocol][:-1])
    assert not looking_on.terminal
    looking_on.feed(STREAMS[protocol][-1:])
    assert looking_on.terminal
    assert looking_on.close(False).finished


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_follows_the_last_event_is_not_heard(protocol: WireFormat) -> None:
    more = wire.sse("error", {"type": "error", "error": {"message": "x"}})
    assert streamed(protocol, STREAMS[protocol] + more, more) == streamed(protocol, STREAMS[protocol])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_gives_the_same_answer(end: str) -> None:
    looking_on = reader("messages", event_stream=True, encoding="")
    for byte in wire.messages_stream(TEXT, end=end):
        looking_on.feed(bytes([byte]))
    assert looking_on.terminal
    assert looking_on.close(True) == streamed("messages", STREAMS["messages"])


# -- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("protocol", ["messages", "responses"])
def test_stream_without_its_last_event_is_not_finished_however_it_ended(protocol: WireFormat, whole: bool) -> None:
    cut = STREAMS[protocol][: STREAMS[protocol].rindex(b"event: ")]
    answer = streamed(protocol, cut, whole=whole)
    assert (answer.finished, answer.failed, answer.unit) == (False, False, None)


def test_messages_stream_cut_after_its_start_keeps_the_usage_seen() -> None:
    start = STREAMS["messages"].split(b"\n\n")[0] + b"\n\n"
    assert streamed("messages", start, whole=False).usage == Usage(
        input_tokens=12, cache_read_tokens=4000, cache_write_5m_tokens=100, cache_write_1h_tokens=200, output_tokens=1
    )


def test_chat_stream_without_done_is_finished_by_its_finish_reason_and_a_clean_end() -> None:
    stream = wire.chat_stream(TEXT, done=False)
    assert streamed("chat", stream, whole=True).unit == Unit("assistant", "helloworld")
    assert not streamed("chat", stream, whole=False).finished
    assert not streamed("chat", stream[: stream.index(b'"finish_reason": "stop"')], whole=True).finished


def test_last_event_without_its_blank_line_counts_if_the_body_is_whole() -> None:
    stream = STREAMS["messages"].rstrip(b"\n")
    assert streamed("messages", stream, whole=True).finished
    assert not streamed("messages", stream, whole=False).finished


def test_incomplete_response_is_finished_and_known() -> None:
    answer = streamed("responses", wire.responses_stream(TEXT, last="incomplete"))
    assert (answer.finished, answer.failed, answer.unit) == (True, False, Unit("assistant", "helloworld"))


def test_response_whose_last_event_leaves_its_items_out_is_known_from_the_earlier_events() -> None:
    answer = streamed("responses", wire.responses_stream(CALL, items_in_last=False))
    assert answer == streamed("responses", wire.responses_stream(CALL))
    assert answer.unit == Unit("assistant", "onit\x1ecall\x1dcall_1\x1f")
    assert not answer.text_only


def test_response_still_on_its_way_has_no_unit() -> None:
    for status in ("queued", "in_progress", "cancelled"):
        answer = document("responses", wire.responses_document(TEXT, None, status))
        assert (answer.usage, answer.finished, answer.unit) == (None, True, None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"id": "x"', b"null"])
def test_document_that_is_no_object_is_not_finished(protocol: WireFormat, body: bytes) -> None:
    assert document(protocol, body) == Answer()


def test_document_that_was_cut_is_not_finished() -> None:
    body = json.dumps(wire.chat_document(TEXT)).encode()
    assert document("chat", body[:-1], whole=False) == Answer()
    odd = document("chat", body, whole=False)
    assert (odd.usage, odd.finished, odd.unit) == (OPENAI_READ, False, None)


# -- failure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "event", "is_terminal"),
    [
        ("messages", wire.sse("error", {"type": "error", "error": {"type": "overloaded_error"}}), True),
        ("responses", wire.sse("error", {"type": "error", "code": "server_error", "message": "x"}), True),
        ("responses", wire.sse("error", {"error": {"message": "x"}}), True),
        (
            "responses",
            wire.sse("response.failed", {"type": "response.failed", "response": {"status": "failed"}}),
            True,
        ),
        ("chat", wire.sse("", {"error": {"message": "x"}}), False),
    ],
)
def test_error_event_in_a_stream_is_a_failure(protocol: WireFormat, event: bytes, is_terminal: bool) -> None:
    begun = STREAMS[protocol].split(b"\n\n")[0] + b"\n\n"
    looking_on = reader(protocol, event_stream=True, encoding="")
    looking_on.feed(begun + event)
    assert looking_on.terminal is is_terminal
    answer = looking_on.close(True)
    assert (answer.failed, answer.finished, answer.unit) == (True, False, None)


@pytest.mark.parametrize(
    ("protocol", "value"),
    [
        ("messages", {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}),
        ("chat", {"error": {"message": "x", "type": "server_error"}}),
        ("chat", {"error": "x"}),
        ("responses", {"error": {"message": "x"}}),
        ("responses", wire.responses_document([], None, "failed")),
    ],
)
def test_error_document_is_a_failure(protocol: WireFormat, value: Any) -> None:
    answer = document(protocol, value)
    assert (answer.failed, answer.finished, answer.usage) == (True, False, None)


# -- usage -------------------------------------------------------------------------------------------------------


def messages_usage(*usages: Any) -> Usage | None:
    start = wire.sse("message_start", {"type": "message_start", "message": {"usage": usages[0]}})
    deltas = [wire.sse("message_delta", {"type": "message_delta", "usage": usage}) for usage in usages[1:]]
    return streamed("messages", start, *deltas).usage


def test_messages_usage_last_value_wins_field_by_field_and_is_never_added() -> None:
    assert messages_usage(
        {"input_tokens": 5, "cache_read_input_tokens": 7, "output_tokens": 1},
        {"output_tokens": 20},
        {"output_tokens": 30, "input_tokens": 6, "cache_read_input_tokens": None},
    ) == Usage(input_tokens=6, cache_read_tokens=7, output_tokens=30)


@pytest.mark.parametrize(
    ("usage", "short", "long"),
    [
        ({"cache_creation_input_tokens": 10}, 10, 0),
        ({"cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, 6, 4),
        (
            {
                "cache_creation_input_tokens": 10,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            },
            6,
            4,
        ),
        ({"cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4}}, 3, 4),
    ],
)
def test_messages_cache_writes_are_split_by_lifetime_and_the_rest_is_short(usage: Any, short: int, long: int) -> None:
    assert messages_usage(usage) == Usage(cache_write_5m_tokens=short, cache_write_1h_tokens=long)


@pytest.mark.parametrize("wrong", [True, -1, 1.5, "7", None, [], {}, 2**40 + 1, 10**30])
def test_usage_that_is_no_count_is_ignored(wrong: Any) -> None:
    assert messages_usage({"input_tokens": wrong, "output_tokens": wrong}) is None
    assert messages_usage({"input_tokens": 5}, {"input_tokens": wrong}) == Usage(input_tokens=5)
    assert document("chat", {"usage": {"prompt_tokens": 9, "prompt_tokens_details": wrong}}).usage == Usage(
        input_tokens=9
    )


@pytest.mark.parametrize(
    ("prompt", "cached", "written", "expected"),
    [
        (100, 0, 0, Usage(input_tokens=100, output_tokens=1)),
        (100, 60, 0, Usage(input_tokens=40, cache_read_tokens=60, output_tokens=1)),
        (
            100,
            60,
            30,
            Usage(input_tokens=10, cache_read_tokens=60, cache_write_5m_tokens=30, output_tokens=1),
        ),
        (50, 60, 0, Usage(input_tokens=0, cache_read_tokens=60, output_tokens=1)),
    ],
)
def test_openai_cached_tokens_are_counted_once(prompt: int, cached: int, written: int, expected: Usage) -> None:
    details = {"cached_tokens": cached, "cache_write_tokens": written}
    chat = {"prompt_tokens": prompt, "completion_tokens": 1, "prompt_tokens_details": details}
    responses = {"input_tokens": prompt, "output_tokens": 1, "input_tokens_details": details}
    assert document("chat", {"usage": chat}).usage == expected
    assert document("responses", {"usage": responses}).usage == expected
    assert streamed("chat", wire.chat_stream(TEXT, chat)).usage == expected
    assert streamed("responses", wire.responses_stream(TEXT, responses)).usage == expected


def test_chat_stream_that_was_not_asked_for_usage_has_none() -> None:
    answer = streamed("chat", wire.chat_stream(TEXT, None))
    assert (answer.usage, answer.finished) == (None, True)


# -- units that cannot be known ----------------------------------------------------------------------------------


def test_several_choices_have_no_unit() -> None:
    value = wire.chat_document(TEXT)
    second = {**value["choices"][0], "index": 1}
    assert document("chat", {**value, "choices": [value["choices"][0], second]}).unit is None
    chunk = wire.chat_chunk([{"index": 1, "delta": {"content": "x"}, "finish_reason": None}])
    answer = streamed("chat", chunk + wire.chat_stream(TEXT))
    assert (answer.finished, answer.unit) == (True, None)


def test_chat_call_without_an_id_has_no_unit_but_is_a_call() -> None:
    nameless = [Part("call", "{}", "")]
    for answer in (
        streamed("chat", wire.chat_stream(nameless)),
        document("chat", wire.chat_document(nameless)),
    ):
        assert (answer.finished, answer.unit, answer.text_only) == (True, None, False)


def test_chat_server_that_repeats_a_calls_id_names_it_once() -> None:
    delta = wire.chat_delta({"tool_calls": [{"index": 0, "id": "c1", "function": {"arguments": "{"}}]})
    answer = streamed("chat", delta, delta, delta, wire.chat_delta({}, "tool_calls"))
    assert answer.unit == Unit("assistant", "\x1ecall\x1dc1\x1f")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answer_without_words_has_no_unit(protocol: WireFormat) -> None:
    """Clients leave it out of the history, and so would the normal form."""
    silent = {
        "messages": wire.messages_stream([Part("thinking", "hm")]),
        "chat": wire.chat_stream([Part("thinking", "hm")]),
        "responses": wire.responses_stream([Part("thinking", "hm")]),
    }[protocol]
    answer = streamed(protocol, silent)
    assert (answer.finished, answer.unit) == (True, None)


@pytest.mark.parametrize("name", [b"", b"event: content_block_delta\n", b"event: ping\n"])
def test_event_that_cannot_be_read_leaves_usage_but_no_unit(name: bytes) -> None:
    broken = name + b'data: {"type": "content_block_delta", \n\n'
    answer = streamed("messages", broken, STREAMS["messages"])
    assert (answer.finished, answer.usage, answer.unit) == (True, ANTHROPIC_READ, None)


# -- limits ------------------------------------------------------------------------------------------------------


def test_event_of_10_mb_in_small_pieces_is_read() -> None:
    response = wire.responses_document([Part("text", "x" * 10_000_000)])
    last = wire.sse("response.completed", {"type": "response.completed", "response": response})
    looking_on = reader("responses", event_stream=True, encoding="")
    for start in range(0, len(last), 4096):
        looking_on.feed(last[start : start + 4096])
    answer = looking_on.close(True)
    assert answer.unit is not None
    assert len(answer.unit.text) == 10_000_000


def test_last_event_too_large_to_hold_still_ends_the_answer() -> None:
    piece = b"x" * 65_536
    looking_on = reader("responses", event_stream=True, encoding="")
    tracemalloc.start()
    looking_on.feed(b"event: response.completed\ndata: ")
    for _ in range(2 * EVENT_BYTES_MAX // len(piece)):
        looking_on.feed(piece)
    looking_on.feed(b"\n\n")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert looking_on.terminal
    assert looking_on.close(True) == Answer(finished=True)
    assert peak < 2 * EVENT_BYTES_MAX


def test_document_over_the_limit_is_given_up() -> None:
    looking_on = reader("chat", event_stream=False, encoding="")
    piece = b" " * (1024 * 1024)
    for _ in range(DOCUMENT_BYTES_MAX // len(piece) + 1):
        looking_on.feed(piece)
    looking_on.feed(json.dumps(wire.chat_document(TEXT)).encode())
    assert looking_on.close(True) == Answer(finished=True)


@pytest.mark.parametrize("event_stream", [True, False])
@pytest.mark.parametrize("encoding", ["compress", "gzip", "dcb", "gzip, gzip, gzip, gzip"])
def test_encoding_unknown_or_broken_makes_the_answer_unknown(event_stream: bool, encoding: str) -> None:
    looking_on = reader("messages", event_stream=event_stream, encoding=encoding)
    looking_on.feed(STREAMS["messages"])
    assert not looking_on.terminal
    assert looking_on.close(True) == Answer(finished=True)
    cut = reader("messages", event_stream=event_stream, encoding=encoding)
    cut.feed(STREAMS["messages"])
    assert cut.close(False) == Answer()
