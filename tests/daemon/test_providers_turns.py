"""What is read from a request: little, tolerantly, and nothing from what is not a JSON object."""

from __future__ import annotations

import json
from typing import Any

import pytest

from daemon.providers import Turn, WireFormat, parse_turn, units_of
from daemon.providers.base import ID_CHARACTERS_MAX, MODEL_CHARACTERS_MAX

PROTOCOLS: list[WireFormat] = ["messages", "chat", "responses"]


def turn_of(protocol: WireFormat, **fields: Any) -> Turn:
    turn = parse_turn(protocol, json.dumps(fields).encode())
    assert turn is not None
    return turn


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"{} {}",
        b'{"model": "x"',
        b'{"model": "\xff"}',
        b'{"messages": ["\xff"], "input": ["\xff"]}',
        b'{"model": nope}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": ' + b'{"a":' * 100_000,
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_body_that_is_no_object_is_no_turn(protocol: WireFormat, body: bytes) -> None:
    assert parse_turn(protocol, body) is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrong", [None, 1, -1.5, True, "x", [], ["x"], {}, {"id": 1}])
def test_fields_of_a_wrong_type_count_as_absent(protocol: WireFormat, wrong: Any) -> None:
    turn = turn_of(protocol, model=[wrong], stream=[wrong], metadata=wrong, conversation=[wrong], tools=wrong)
    assert turn == Turn(protocol=protocol)
    turn = turn_of(protocol, messages=wrong if wrong != ["x"] else 1, metadata={"user_id": wrong})
    assert (turn.message_count, turn.minted, turn.account_claim, turn.has_state) == (0, (), "", False)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_model_and_stream_are_read(protocol: WireFormat) -> None:
    turn = turn_of(protocol, model="m" * 1000, stream=True)
    assert (turn.protocol, turn.model, turn.stream) == (protocol, "m" * MODEL_CHARACTERS_MAX, True)
    assert not turn_of(protocol, stream="true").stream


def test_session_id_and_account_are_read_from_the_json_in_user_id() -> None:
    user_id = json.dumps({"device_id": "d", "account_uuid": "acc-1", "session_id": "ses-1"})
    turn = turn_of("messages", metadata={"user_id": user_id})
    assert turn.minted == (("metadata.user_id.session_id", "ses-1"),)
    assert turn.account_claim == "acc-1"


@pytest.mark.parametrize(
    "user_id",
    [
        "user_x_session_y",
        "{",
        "[]",
        '{"session_id": 5}',
        '{"session_id": ""}',
        '{"session_id": null}',
        "[" * 100_000,
        json.dumps({"session_id": "s" * (ID_CHARACTERS_MAX + 1)}),
    ],
    ids=lambda text: text[:20],
)
def test_user_id_that_holds_no_session_id_mints_nothing(user_id: str) -> None:
    turn = turn_of("messages", metadata={"user_id": user_id})
    assert (turn.minted, turn.account_claim) == ((), "")


@pytest.mark.parametrize(
    ("fields", "state_id"),
    [
        ({"previous_response_id": "resp_1"}, "resp_1"),
        ({"conversation": "conv_1"}, "conv_1"),
        ({"conversation": {"id": "conv_2"}}, "conv_2"),
        ({"previous_response_id": None, "conversation": None}, ""),
        ({"previous_response_id": "", "conversation": {}}, ""),
    ],
)
def test_responses_state_is_seen(fields: dict[str, Any], state_id: str) -> None:
    turn = turn_of("responses", input=[], **fields)
    assert (turn.has_state, turn.state_id) == (bool(state_id), state_id)


def test_state_id_too_long_to_keep_is_still_state() -> None:
    turn = turn_of("responses", previous_response_id="r" * (ID_CHARACTERS_MAX + 1))
    assert (turn.has_state, turn.state_id) == (True, "")


USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]}
RESULT_WITH_TEXT = {"role": "user", "content": [*RESULT["content"], {"type": "text", "text": "summarise"}]}
REMINDER = {"role": "user", "content": "<system-reminder>x</system-reminder>"}
SYSTEM = {"role": "system", "content": "agents"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], False),
        ([USER], True),
        ([USER, SYSTEM], True),
        ([USER, ASSISTANT], False),
        ([USER, ASSISTANT, RESULT], False),
        ([USER, ASSISTANT, RESULT, REMINDER, SYSTEM], False),
        ([USER, ASSISTANT, RESULT_WITH_TEXT], False),
        ([USER, ASSISTANT, USER], True),
        ([{"role": "user", "content": [{"type": "image", "source": {}}]}], True),
    ],
)
def test_messages_user_turn_is_the_users_own_word(messages: list[Any], expected: bool) -> None:
    turn = turn_of("messages", messages=messages)
    assert (turn.user_turn, turn.message_count) == (expected, len(messages))


@pytest.mark.parametrize(
    ("newest", "expected"),
    [(USER, True), ({"role": "tool", "tool_call_id": "c", "content": "ok"}, False), (ASSISTANT, False)],
)
def test_chat_user_turn_is_the_users_own_word(newest: Any, expected: bool) -> None:
    assert turn_of("chat", messages=[USER, ASSISTANT, newest]).user_turn is expected


@pytest.mark.parametrize(
    ("newest", "expected"),
    [(USER, True), ({"type": "function_call_output", "call_id": "c", "output": "ok"}, False), (ASSISTANT, False)],
)
def test_responses_user_turn_is_the_users_own_word(newest: Any, expected: bool) -> None:
    assert turn_of("responses", input=[USER, ASSISTANT, newest]).user_turn is expected


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "\\ude00\\ud83d"])
def test_body_with_half_a_character_is_a_turn_all_the_same(half: str) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "cut %s here"}]}' % half.encode()

    turn = parse_turn("messages", body)

    assert turn is not None
    assert [unit.role for unit in units_of(turn)] == ["user"]
    assert "cut" in units_of(turn)[0].text


def test_body_with_a_whole_emoji_keeps_it_beside_half_a_character() -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00 and \\ud83d"}]}'

    turn = parse_turn("messages", body)

    assert turn is not None
    assert units_of(turn)[0].text.startswith("\U0001f600")
