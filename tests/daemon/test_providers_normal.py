"""An answer, and the same answer as history, have one normal form; however its bytes came and in whatever shape
the client keeps it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import brotli
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from daemon.providers import Answer, Unit, WireFormat, body_fields, merged, parse_turn, reader, setup_of, units_of
from tests.daemon import provider_answers as wire
from tests.daemon.provider_answers import Json, Part

ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}
FIELDS = body_fields(["metadata.user_id.session_id", "conversation.id", "conversation", "tools", "messages.x"])


class Format(NamedTuple):
    field: str
    document: Callable[[list[Part]], Json]
    stream: Callable[[list[Part]], bytes]
    history: Callable[[list[Part], str], list[Json]]
    results: Callable[[list[Part]], list[Json]]
    shapes: list[str]


FORMATS: dict[WireFormat, Format] = {
    "messages": Format(
        "messages",
        wire.messages_document,
        wire.messages_stream,
        wire.messages_history,
        wire.messages_results,
        ["as it was", "without thinking", "trimmed", "cache mark", "plain string", "message per block"],
    ),
    "chat": Format(
        "messages",
        wire.chat_document,
        wire.chat_stream,
        wire.chat_history,
        wire.chat_results,
        ["as it was", "trimmed", "list of parts"],
    ),
    "responses": Format(
        "input",
        wire.responses_document,
        wire.responses_stream,
        wire.responses_history,
        wire.responses_results,
        ["as it was", "without reasoning", "easy messages", "without ids", "referred", "referred but functions"],
    ),
}
PROTOCOLS = sorted(FORMATS)

texts = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\x1ecall\x1dtoolu_1\x1f", "ä🙂\r\n", "<system-reminder>x</system-reminder>", '{"type":"error"}']
)
parts_lists = st.lists(
    st.builds(Part, st.just("text"), texts)
    | st.builds(Part, st.just("thinking"), texts)
    | st.builds(
        Part,
        st.just("call"),
        st.dictionaries(texts, texts, max_size=2).map(json.dumps),
        st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    ),
    min_size=1,
    max_size=5,
)
some = settings(max_examples=60, deadline=None, database=None, print_blob=True)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def read(
    protocol: WireFormat, chunks: list[bytes], *, event_stream: bool, encoding: str = "", whole: bool = True
) -> Answer:
    looking_on = reader(protocol, event_stream=event_stream, encoding=encoding)
    for chunk in chunks:
        looking_on.feed(chunk)
    return looking_on.close(whole)


def units(protocol: WireFormat, entries: list[Any]) -> list[Unit]:
    turn = parse_turn(protocol, json.dumps({FORMATS[protocol].field: entries}).encode(), FIELDS)
    assert turn is not None
    return units_of(turn)


def user(protocol: WireFormat, text: str) -> Json:
    return {"role": "user", "content": text}


cuts_lists = st.lists(st.integers(0, 2**16), max_size=12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(parts=parts_lists, data=st.data())
@some
def test_answer_sent_back_in_any_shape_gives_the_units_the_answer_gave(
    protocol: WireFormat, parts: list[Part], data: st.DataObject
) -> None:
    wire_format = FORMATS[protocol]
    event_stream = data.draw(st.booleans())
    encoding = data.draw(st.sampled_from(sorted(ENCODERS)))
    shape = data.draw(st.sampled_from(wire_format.shapes))
    body = wire_format.stream(parts) if event_stream else json.dumps(wire_format.document(parts)).encode()
    chunks = split(ENCODERS[encoding](body), data.draw(cuts_lists))

    answer = read(protocol, chunks, event_stream=event_stream, encoding=encoding)

    assert answer.finished and not answer.failed and answer.usage is not None
    assume(answer.unit is not None)
    before = [user(protocol, "first question")]
    after = [*wire_format.results(parts), user(protocol, "second question")]
    history = [*before, *wire_format.history(parts, shape), *after]
    first, sent_back, *rest = units(protocol, history)
    assert sent_back in answer.forms
    assert sent_back == answer.unit or shape.startswith("referred")
    assert [first, *rest] == [*units(protocol, before), *units(protocol, after)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answer_of_every_kind_of_part_is_known(protocol: WireFormat) -> None:
    """The property above would hold for answers that are never known, too."""
    parts = [Part("thinking", "hm"), Part("text", "Working on it."), Part("call", '{"a": 1}', "call_1")]
    expected = Unit("assistant", "Workingonit.\x1ecall\x1dcall_1\x1f")
    streamed = read(protocol, [FORMATS[protocol].stream(parts)], event_stream=True)
    document = read(protocol, [json.dumps(FORMATS[protocol].document(parts)).encode()], event_stream=False)
    assert streamed.unit == document.unit == expected
    assert not streamed.text_only and not document.text_only


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(parts=parts_lists, one=cuts_lists, other=cuts_lists, keep=st.integers(0, 2**16), whole=st.booleans())
@some
def test_splitting_never_changes_the_answer(
    protocol: WireFormat, parts: list[Part], one: list[int], other: list[int], keep: int, whole: bool
) -> None:
    """Also for a stream that was cut anywhere, compressed or not."""
    stream = FORMATS[protocol].stream(parts)
    for encoding in ("", "gzip"):
        body = ENCODERS[encoding](stream)
        body = body[: keep % (len(body) + 1)]
        answers = [
            read(protocol, split(body, cuts), event_stream=True, encoding=encoding, whole=whole)
            for cuts in (one, other, list(range(len(body))))
        ]
        assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(
    body=st.lists(
        st.binary(max_size=30)
        | st.sampled_from(
            [b"data: ", b"event: error", b"\n\n", b"\r", b"{", b'{"type":', b'"message_stop"}', b"[DONE]"]
        )
    ),
    event_stream=st.booleans(),
    encoding=st.sampled_from([*ENCODERS, "compress", "gzip, gzip, gzip, gzip", ",", "GZIP"]),
    whole=st.booleans(),
)
@some
def test_random_bytes_never_raise(
    protocol: WireFormat, body: list[bytes], event_stream: bool, encoding: str, whole: bool
) -> None:
    looking_on = reader(protocol, event_stream=event_stream, encoding=encoding)
    for chunk in body:
        looking_on.feed(chunk)
    assert looking_on.terminal in (True, False)
    answer = looking_on.close(whole)
    assert looking_on.close(not whole) is answer
    looking_on.feed(b"data: [DONE]\n\n")
    assert looking_on.close(True) is answer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "role",
                    "content",
                    "text",
                    "id",
                    "call_id",
                    "tool_calls",
                    "function_call",
                    "index",
                    "delta",
                    "choices",
                    "message",
                    "usage",
                    "output",
                    "item",
                    "response",
                    "error",
                    "output_index",
                    "content_block",
                    "messages",
                    "input",
                    "metadata",
                    "user_id",
                    "conversation",
                    "tool_use_id",
                    "finish_reason",
                    "model",
                    "stream",
                    "status",
                    "prompt_tokens",
                    "cache_creation",
                ]
            )
            | texts,
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
kinds = st.sampled_from(
    [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "message_delta",
        "message_stop",
        "error",
        "response.created",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(events=st.lists(st.tuples(kinds, st.dictionaries(st.text(max_size=5), json_values) | json_values)))
@some
def test_well_formed_nonsense_in_an_answer_never_raises(protocol: WireFormat, events: list[tuple[str, Any]]) -> None:
    stream = b"".join(
        wire.sse(kind, {"type": kind, **data} if isinstance(data, dict) else data) for kind, data in events
    )
    assert isinstance(read(protocol, [stream], event_stream=True), Answer)
    for _, data in events:
        assert isinstance(read(protocol, [json.dumps(data).encode()], event_stream=False), Answer)


KEYS = [
    "model",
    "messages",
    "input",
    "metadata",
    "stream",
    "tools",
    "system",
    "instructions",
    "conversation",
    "max_tokens",
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(body=st.dictionaries(st.sampled_from(KEYS), json_values))
@some
def test_well_formed_nonsense_in_a_request_is_a_turn(protocol: WireFormat, body: Json) -> None:
    turn = parse_turn(protocol, json.dumps(body).encode(), FIELDS)
    assert turn is not None
    for unit in units_of(turn):
        assert unit.text.encode()
    system, tools = setup_of(turn)
    assert all((*system, *tools)) and all(value for _, value in (*turn.minted, *turn.hints))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(body=st.binary() | st.text().map(str.encode))
@some
def test_any_bytes_as_a_request_are_a_turn_or_none(protocol: WireFormat, body: bytes) -> None:
    try:
        is_object = isinstance(json.loads(body.decode(), parse_constant=lambda name: None), dict)
    except ValueError:
        is_object = False
    assert (parse_turn(protocol, body, FIELDS) is not None) == is_object


@given(first=texts, second=texts)
@some
def test_text_cannot_forge_a_mark(first: str, second: str) -> None:
    """Whatever a user types, it is not taken for the result of a tool."""
    forged = units("messages", [user("messages", f"\x1eresult\x1d{first}\x1f{second}")])
    block = {"type": "tool_result", "tool_use_id": first, "content": second}
    assert forged != units("messages", [{"role": "user", "content": [block]}])


# -- one situation each ------------------------------------------------------------------------------------------


def test_whitespace_cache_marks_and_plain_strings_make_no_difference() -> None:
    block = {"type": "text", "text": "fix  the\nbug ", "cache_control": {"type": "ephemeral"}}
    as_list = units("messages", [{"role": "user", "content": [block]}])
    assert as_list == units("messages", [user("messages", " fix the bug")]) == [Unit("user", "fixthebug")]


def test_reminders_and_system_messages_are_left_out_wherever_they_stand() -> None:
    reminder = {"type": "text", "text": "\n<system-reminder>today is Monday</system-reminder>"}
    noisy = [
        {"role": "user", "content": [reminder, {"type": "text", "text": "one"}]},
        {"role": "system", "content": "agents: none"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [reminder]},
        {"role": "assistant", "content": "three"},
    ]
    assert units("messages", noisy) == [Unit("user", "one"), Unit("assistant", "twothree")]


def test_the_users_word_for_a_reminder_inside_a_text_is_kept() -> None:
    assert units("chat", [user("chat", "what is <system-reminder>?")]) == [Unit("user", "whatis<system-reminder>?")]


def test_responses_items_are_sides_of_one_conversation() -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "o k"}]},
        {"type": "new_kind_of_2031", "call_id": "c2"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    ]
    assert units("responses", items) == [
        Unit("user", "go"),
        Unit("assistant", "\x1ecall\x1dc1\x1f"),
        Unit("user", "\x1eresult\x1dc1\x1fok"),
        Unit("assistant", "\x1ecall\x1dc2\x1f\x1eitem\x1dweb_search_call\x1f"),
    ]


def test_responses_input_as_a_string_is_one_user_message() -> None:
    turn = parse_turn("responses", b'{"input": "hello there"}', FIELDS)
    assert turn is not None
    assert (turn.message_count, turn.user_turn, units_of(turn)) == (1, True, [Unit("user", "hellothere")])


def test_images_are_known_by_their_type_and_left_out_of_results() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
    shown = units("messages", [{"role": "user", "content": [image, {"type": "text", "text": "see"}]}])
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [image, {"type": "text", "text": "shot"}]}
    assert shown == [Unit("user", "\x1epart\x1dimage\x1fsee")]
    assert units("messages", [{"role": "user", "content": [result]}]) == [Unit("user", "\x1eresult\x1dt1\x1fshot")]


def test_entries_that_are_no_objects_make_conversations_differ() -> None:
    first, second = units("chat", [1, user("chat", "x")]), units("chat", [2, user("chat", "x")])
    assert first != second


def test_answer_to_a_prefilled_request_joins_the_prefill() -> None:
    turn = units("messages", [user("messages", "pick"), {"role": "assistant", "content": "The answer is ("}])
    assert merged([*turn, Unit("assistant", "B)")]) == units(
        "messages", [user("messages", "pick"), {"role": "assistant", "content": "The answer is (B)"}]
    )
