"""What is read from a request: little, tolerantly, and nothing from what is not a JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.providers import Turn, WireFormat, body_fields, parse_turn, setup_of, units_of
from daemon.providers.base import ID_CHARACTERS_MAX, MODEL_CHARACTERS_MAX
from daemon.providers.setup import LINE_CHARACTERS_MAX, SETUP_LINES_MAX, TEXT_CHARACTERS_MAX, TOOLS_MAX

PROTOCOLS: list[WireFormat] = ["messages", "chat", "responses"]
PATHS = ("metadata.user_id.session_id", "client_metadata.thread_id", "conversation.id", "conversation")


def turn_of(protocol: WireFormat, paths: Sequence[str] = PATHS, **fields: Any) -> Turn:
    turn = parse_turn(protocol, json.dumps(fields).encode(), body_fields(paths))
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
    assert parse_turn(protocol, body, body_fields(PATHS)) is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrong", [None, 1, -1.5, True, "x", [], ["x"], {}, {"id": 1}])
def test_fields_of_a_wrong_type_count_as_absent(protocol: WireFormat, wrong: Any) -> None:
    turn = turn_of(protocol, model=[wrong], stream=[wrong], metadata=wrong, conversation=[wrong])
    assert turn == Turn(protocol=protocol)
    turn = turn_of(protocol, messages=wrong if wrong != ["x"] else 1, metadata={"user_id": [wrong]})
    assert (turn.message_count, turn.minted, turn.hints, turn.account_claim) == (0, (), (), "")
    turn = turn_of(protocol, prompt_cache_key=[wrong], previous_response_id=[wrong], client_metadata=wrong)
    assert (turn.minted, turn.hints, turn.has_state, turn.state_id) == ((), (), False, "")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrong", [None, 1, True, [], [1], [[]], {}, {"id": 1}, [{"content": 5}], [None]])
def test_setup_of_a_wrong_type_counts_as_absent(protocol: WireFormat, wrong: Any) -> None:
    turn = turn_of(protocol, system=wrong, instructions=wrong, tools=wrong, messages=[wrong], input=[wrong])
    assert setup_of(turn) == ((), ())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_number_that_no_program_can_hold_counts_as_absent(protocol: WireFormat) -> None:
    for number in (b"1e999", b"9" * 5000):
        body = b'{"model": %s, "stream": %s, "max_tokens": %s, "metadata": %s, "max_output_tokens": %s}'
        turn = parse_turn(protocol, body % ((number,) * 5), body_fields(PATHS))
        assert turn is not None
        assert (turn.model, turn.stream, turn.output_limit, turn.hints) == ("", False, None, ())


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
        "{",
        "[]",
        "null",
        "\ud83d",
        '{"session_id": 5}',
        '{"session_id": ""}',
        '{"session_id": null}',
        "[" * 100_000,
        json.dumps({"session_id": "s" * (ID_CHARACTERS_MAX + 1), "account_uuid": "a" * (ID_CHARACTERS_MAX + 1)}),
    ],
    ids=lambda text: text[:20],
)
def test_user_id_that_holds_no_session_id_mints_nothing(user_id: str) -> None:
    turn = turn_of("messages", metadata={"user_id": user_id})
    assert (turn.minted, turn.account_claim) == ((), "")


@pytest.mark.parametrize("value", ["", "a\x00b", "line\nbreak", "s" * (ID_CHARACTERS_MAX + 1)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_value_that_is_no_usable_id_names_nothing(protocol: WireFormat, value: str) -> None:
    turn = turn_of(protocol, ["thread"], thread=value, prompt_cache_key=value, metadata={"user_id": value})
    assert (turn.minted, turn.hints) == ((), ())


def test_ids_are_given_in_the_order_of_the_configured_places() -> None:
    body = {"b": "2", "a": {"x": {"y": "1"}}, "c": {"d": 5}, "e e": {"ü": "3"}, "class": "4", "__init__": "5"}
    paths = ["e e.ü", "a.x.y", "b", "c.d", "not.there", "b.deeper", "a", "class", "__init__"]
    expected = (("e e.ü", "3"), ("a.x.y", "1"), ("b", "2"), ("class", "4"), ("__init__", "5"))
    assert turn_of("chat", paths, **body).minted == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_place_inside_a_field_that_is_read_anyway_is_found_too(protocol: WireFormat) -> None:
    paths = ["model", "metadata.thread", "conversation", "tools.id", "input", "messages.id"]
    turn = turn_of(
        protocol, paths, model="m", metadata={"thread": "t"}, conversation="c", input="i", messages={"id": "n"}
    )
    assert dict(turn.minted) == {
        "model": "m",
        "metadata.thread": "t",
        "conversation": "c",
        "input": "i",
        "messages.id": "n",
    }
    assert turn.model == "m"


def test_texts_on_the_way_to_an_id_are_looked_into_as_often_as_the_path_says() -> None:
    inner = json.dumps({"deep": json.dumps({"er": "found"})})
    assert turn_of("chat", ["a.b.deep.er"], a={"b": inner}).minted == (("a.b.deep.er", "found"),)
    assert turn_of("chat", ["a.b.deep"], a=inner).minted == ()


def test_no_configured_place_mints_nothing() -> None:
    user_id = json.dumps({"session_id": "ses-1"})
    turn = turn_of("messages", [], metadata={"user_id": user_id}, conversation="c")
    assert (turn.minted, turn.hints) == ((), ())


def test_codex_thread_is_read_from_its_client_metadata() -> None:
    body: dict[str, Any] = {
        "prompt_cache_key": "01-key",
        "client_metadata": {"session_id": "01-parent", "thread_id": "01-own"},
    }
    turn = turn_of("responses", input=[], **body)
    assert turn.minted == (("client_metadata.thread_id", "01-own"),)
    assert turn.hints == (("prompt_cache_key", "01-key"),)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("user_id", "is_hint"),
    [
        ("user_x_session_y", True),
        ("12345", True),
        ("{", True),
        ('["a"]', True),
        ("{}", False),
        ('{"device_id": "d"}', False),
        ('  {"session_id": "s"}', False),
    ],
)
def test_user_id_in_plain_text_is_a_hint_and_an_object_is_none(
    protocol: WireFormat, user_id: str, is_hint: bool
) -> None:
    turn = turn_of(protocol, prompt_cache_key="app", metadata={"user_id": user_id})
    expected = [("prompt_cache_key", "app")] + ([("metadata.user_id", user_id)] if is_hint else [])
    assert list(turn.hints) == expected


@pytest.mark.parametrize(
    ("protocol", "fields", "expected"),
    [
        ("messages", {"max_tokens": 1}, 1),
        ("messages", {"max_output_tokens": 1}, None),
        ("chat", {"max_tokens": 7}, 7),
        ("chat", {"max_tokens": 7, "max_completion_tokens": 0}, 0),
        ("chat", {"max_tokens": 7, "max_completion_tokens": None}, 7),
        ("responses", {"max_output_tokens": 64_000}, 64_000),
        ("responses", {"max_tokens": 7}, None),
        ("messages", {"max_tokens": True}, None),
        ("messages", {"max_tokens": -1}, None),
        ("messages", {"max_tokens": 1.5}, None),
        ("messages", {"max_tokens": "1"}, None),
        ("messages", {}, None),
    ],
)
def test_output_limit_is_a_natural_number_under_the_formats_own_name(
    protocol: WireFormat, fields: dict[str, Any], expected: int | None
) -> None:
    assert turn_of(protocol, **fields).output_limit == expected


@pytest.mark.parametrize(
    ("fields", "state_id", "minted"),
    [
        ({"previous_response_id": "resp_1"}, "resp_1", ()),
        ({"conversation": "conv_1"}, "", (("conversation", "conv_1"),)),
        ({"conversation": {"id": "conv_2"}}, "", (("conversation.id", "conv_2"),)),
        ({"previous_response_id": "resp_1", "conversation": "conv_1"}, "resp_1", (("conversation", "conv_1"),)),
    ],
)
def test_responses_state_is_seen(fields: dict[str, Any], state_id: str, minted: Any) -> None:
    turn = turn_of("responses", input=[], **fields)
    assert (turn.has_state, turn.state_id, turn.minted) == (True, state_id, minted)


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": None, "conversation": None},
        {"previous_response_id": "", "conversation": {}},
        {"previous_response_id": 5, "conversation": {"id": ""}},
    ],
)
def test_responses_without_an_id_of_its_state_has_none(fields: dict[str, Any]) -> None:
    turn = turn_of("responses", input=[], **fields)
    assert (turn.has_state, turn.state_id, turn.minted) == (False, "", ())


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

    turn = parse_turn("messages", body, body_fields(PATHS))

    assert turn is not None
    assert [unit.role for unit in units_of(turn)] == ["user"]
    assert "cut" in units_of(turn)[0].text


def test_body_with_a_whole_emoji_keeps_it_beside_half_a_character() -> None:
    body = b'{"messages": [{"role": "user", "content": "\\ud83d\\ude00 and \\ud83d"}]}'

    turn = parse_turn("messages", body, body_fields(PATHS))

    assert turn is not None
    assert units_of(turn)[0].text.startswith("\U0001f600")


BILLING = {"type": "text", "text": "x-anthropic-billing-header: cc_version=9.9.9.abc; cch=00000;"}


def test_messages_setup_is_the_system_blocks_without_the_billing_one() -> None:
    agent = {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}
    rules = {"type": "text", "text": "\n  Work \t carefully.\r\n\n \n- and  fast\n"}
    tools = [
        {"name": "Bash", "input_schema": {}},
        {"type": "web_search_1", "name": "web_search"},
        {"type": "computer_1"},
    ]
    messages = [{"role": "system", "content": "a reminder"}, {"role": "user", "content": "hi"}]
    setup = setup_of(turn_of("messages", system=[BILLING, agent, rules], tools=tools, messages=messages))
    assert setup.system == ("You are an agent.", "Work carefully.", "- and fast")
    assert setup.tools == ("Bash", "web_search", "computer_1")


def test_messages_setup_of_a_plain_text_is_the_same_as_of_one_block() -> None:
    text = "You are an agent.\nBe brief."
    as_text = setup_of(turn_of("messages", system=text))
    assert as_text == setup_of(turn_of("messages", system=[{"type": "text", "text": text}]))
    assert as_text == (("You are an agent.", "Be brief."), ())


def test_chat_setup_is_the_leading_system_messages() -> None:
    messages = [
        {"role": "system", "content": "one"},
        {"role": "developer", "content": [{"type": "text", "text": "two"}, {"type": "image_url"}]},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "a reminder"},
    ]
    function = {"type": "function", "function": {"name": "read_file", "parameters": {}}}
    tools = [function, {"type": "custom", "custom": {"name": "patch"}}, {"type": "web_search"}]
    setup = setup_of(turn_of("chat", messages=messages, tools=tools))
    assert setup == (("one", "two"), ("read_file", "patch", "web_search"))


def test_responses_setup_is_the_instructions_and_the_leading_items() -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "permissions"}]},
        {"role": "system", "content": "style"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"role": "developer", "content": "a reminder"},
    ]
    tools = [{"type": "function", "name": "exec", "parameters": {}}, {"type": "web_search"}, 5, {"name": 5}, "x", {}]
    setup = setup_of(turn_of("responses", instructions="You are\nan agent", input=items, tools=tools))
    assert setup == (("You are", "an agent", "permissions", "style"), ("exec", "web_search"))
    assert setup_of(turn_of("responses", input="hi")) == ((), ())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_setup_is_bounded_in_lines_tools_and_characters(protocol: WireFormat) -> None:
    text = "\n".join(["w" * (LINE_CHARACTERS_MAX + 1)] * 2 + ["x"] * (2 * SETUP_LINES_MAX))
    system = [{"role": "system", "content": text}]
    tools = [{"name": "n" * 1_000, "function": {"name": "n" * 1_000}}] * (TOOLS_MAX + 1)
    setup = setup_of(turn_of(protocol, system=text, messages=system, input=system, tools=tools))
    assert [len(line) for line in setup.system[:3]] == [LINE_CHARACTERS_MAX, LINE_CHARACTERS_MAX, 1]
    assert (len(setup.system), len(setup.tools)) == (SETUP_LINES_MAX, TOOLS_MAX)
    assert {len(name) for name in setup.tools} == {ID_CHARACTERS_MAX}


def test_setup_looks_no_further_into_a_text_than_its_limit() -> None:
    text = "\n" * TEXT_CHARACTERS_MAX + "beyond"
    assert setup_of(turn_of("messages", system=text)).system == ()


def test_setup_with_half_a_character_is_read_all_the_same() -> None:
    body = b'{"system": "cut \\ud83d here", "tools": [{"name": "a\\ude00"}]}'
    turn = parse_turn("messages", body, body_fields(PATHS))
    assert turn is not None
    assert setup_of(turn) == (("cut \ufffd here",), ("a\ufffd",))
