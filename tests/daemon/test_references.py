"""An answer comes back in many shapes: each that real clients send finds the session again, and nothing else does.

One rule: a case is an answer as its provider gives it, and the same answer as a client sends it back.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pytest

from daemon.app import rules_of
from daemon.chain import HashKeys
from daemon.identity import answered, known_from, naming_of
from daemon.index import KeyIndex
from daemon.providers import Answer, WireFormat, parse_turn, reader
from tests.daemon.provider_answers import Json, Part, responses_document, responses_history, responses_results, sse
from tests.simulation.model import MemoryTables
from worker import batch
from worker.batch import Write
from worker.protocol import Booking, Lost, Row
from worker.settings import Settings

KEYS: Final = HashKeys(store=bytes(range(32)), early=bytes(32))
RULES: Final = rules_of(Settings())
NOON: Final = 1_750_000_000_000
FIRST: Final[Json] = {"role": "user", "content": "what is the capital of France?"}
SECOND: Final[Json] = {"role": "user", "content": "and of Spain?"}


class Store:
    """The worker's rules over a store in memory, and the index of the daemon before it."""

    def __init__(self) -> None:
        self.tables = MemoryTables()
        self.index = KeyIndex()
        self.lost: list[Lost] = []
        self._requests = 0

    def ask(self, wire: WireFormat, entries: Sequence[Any], answer: Answer | None, **fields: Any) -> str:
        """The session of a request, which is answered so; None: the request fails."""
        self._requests += 1
        body = json.dumps({"input" if wire == "responses" else "messages": list(entries), **fields}).encode()
        turn = parse_turn(wire, body, RULES.fields)
        assert turn is not None
        known = known_from([], turn, body, KEYS, RULES)
        naming = naming_of(known, f"drawn-{self._requests}")
        row = Row(
            event_id=f"event-{self._requests:04}",
            session_id=naming.session_id,
            kind="turn",
            status="interrupted",
            started_at=NOON,
            provider="p",
            protocol=wire,
            model="m",
            boot="d1",
        )
        indexed = self.index.continued(naming.continues)
        session_id = self._book(Booking(naming=naming, row=row, epoch=0, seen=0))
        assert indexed in ("", session_id)
        self.index.learn(session_id, naming.keys)
        ended = naming if answer is None else answered(naming, known, answer)
        status: Any = "error" if answer is None else "complete"
        settled = {"status": status, "ended_at": NOON + 1}
        self._book(Booking(naming=ended, row=Row(**{**_fields(row), **settled}), epoch=0, seen=0))
        self.index.learn(session_id, ended.keys)
        return session_id

    def origin(self, session_id: str) -> str | None:
        return self.tables.sessions[session_id].forked_from

    def _book(self, booking: Booking) -> str:
        outcome = batch.apply(self.tables, [Write("d1", 1, booking)], live=frozenset({"d1"}), now=NOON)
        self.lost += [lost for _, lost in outcome.lost]
        return outcome.replies[0][1].session_id


def _fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__struct_fields__}


# -- answers -------------------------------------------------------------------------------------------------------


def document(wire: WireFormat, content: Any, **fields: Any) -> Answer:
    """`content`: what the API calls content (Messages), message (Chat), output (Responses)."""
    shape: dict[WireFormat, Json] = {
        "messages": {"id": "msg_1", "type": "message", "role": "assistant", "content": content},
        "chat": {"id": "chatcmpl-1", "choices": [{"index": 0, "message": content, "finish_reason": "stop"}]},
        "responses": {"id": "resp_1", "status": "completed", "output": content},
    }
    looking_on = reader(wire, event_stream=False, encoding="")
    looking_on.feed(json.dumps({**shape[wire], **fields}).encode())
    return looking_on.close(True)


def stream(wire: WireFormat, content: Any, **fields: Any) -> Answer:
    looking_on = reader(wire, event_stream=True, encoding="")
    for data in STREAMS[wire](content, fields):
        looking_on.feed(sse(data.get("type", ""), data))
    return looking_on.close(True)


def messages_events(blocks: list[Json], fields: Json) -> list[Json]:
    events: list[Json] = [{"type": "message_start", "message": {"id": "msg_1", "content": [], **fields}}]
    for index, block in enumerate(blocks):
        empty = {"text": ""} if block["type"] == "text" else {}
        events.append({"type": "content_block_start", "index": index, "content_block": {**block, **empty}})
        if block["type"] == "text":
            delta = {"type": "text_delta", "text": block["text"]}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    return [*events, {"type": "message_stop"}]


def chat_events(message: Json, fields: Json) -> list[Json]:
    calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or [])]
    delta = {**message, "tool_calls": calls} if calls else message
    ends = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    return [{"id": "chatcmpl-1", "choices": each, **fields} for each in ([{"index": 0, "delta": delta}], ends)]


def responses_events(items: list[Json], fields: Json) -> list[Json]:
    """The last event leaves the items out: then the earlier ones must do."""
    done = [
        {"type": "response.output_item.done", "output_index": index, "item": item} for index, item in enumerate(items)
    ]
    last = {"id": "resp_1", "status": "completed", "output": [], **fields}
    return [*done, {"type": "response.completed", "response": last}]


STREAMS: Final[dict[WireFormat, Callable[[Any, Json], list[Json]]]] = {
    "messages": messages_events,
    "chat": chat_events,
    "responses": responses_events,
}
every_reader = pytest.mark.parametrize("read", [document, stream])
Read = Callable[..., Answer]


# -- the shapes ----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    name: str
    wire: WireFormat
    given: Any
    sent_back: list[Json]
    """The answer as history, and what the client adds to it before the user speaks again."""


PARIS: Final = "It is Paris."
CALL: Final[Json] = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CHAT_RESULT: Final[Json] = {"role": "tool", "tool_call_id": "call_1", "content": "Paris"}
TEXT: Final[Json] = {"type": "text", "text": PARIS}
THINKING: Final[Json] = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
REDACTED: Final[Json] = {"type": "redacted_thinking", "data": "eA=="}
SEARCH: Final[Json] = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
FOUND: Final[Json] = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"title": "a"}]}
CITED: Final[Json] = {**TEXT, "citations": [{"type": "web_search_result_location", "url": "u"}]}
TOOL_USE: Final[Json] = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
TOOL_RESULT: Final[Json] = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Paris"}
REASONING: Final[Json] = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "eA=="}
OUTPUT_TEXT: Final[Json] = {"type": "output_text", "text": PARIS, "annotations": [{"type": "url_citation"}]}
MESSAGE: Final[Json] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": "final_answer",
    "content": [OUTPUT_TEXT],
}
FUNCTION: Final[Json] = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"}
FUNCTION_OUTPUT: Final[Json] = {"type": "function_call_output", "call_id": "call_1", "output": "Paris"}
CUSTOM: Final[Json] = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "patch", "input": "x"}
CUSTOM_OUTPUT: Final[Json] = {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"}
SHELL: Final[Json] = {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_3", "action": {"type": "exec"}}
SHELL_OUTPUT: Final[Json] = {"type": "local_shell_call_output", "call_id": "call_3", "output": "done"}
WEB: Final[Json] = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}}
MCP: Final[Json] = {"type": "mcp_call", "id": "mcp_1", "name": "look", "arguments": "{}", "output": "Paris"}
MCP_TOOLS: Final[Json] = {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": []}
APPROVAL: Final[Json] = {"type": "mcp_approval_request", "id": "mcpr_1", "name": "look", "arguments": "{}"}
APPROVED: Final[Json] = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
IMAGE: Final[Json] = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AAAA"}


def says(content: Any, **fields: Any) -> Json:
    return {"role": "assistant", "content": content, **fields}


def reference(item: Json) -> Json:
    return {"type": "item_reference", "id": item["id"]}


def without(item: Json, *names: str) -> Json:
    return {name: value for name, value in item.items() if name not in names}


CASES: Final = [
    Case("call with null", "chat", says(None, tool_calls=[CALL]), [says(None, tool_calls=[CALL]), CHAT_RESULT]),
    Case("call with empty text", "chat", says(None, tool_calls=[CALL]), [says("", tool_calls=[CALL]), CHAT_RESULT]),
    Case("call without content", "chat", says("", tool_calls=[CALL]), [
        {"role": "assistant", "tool_calls": [CALL]}, CHAT_RESULT,
    ]),
    Case("one part for a string", "chat", says(PARIS), [says([TEXT])]),
    Case("string for one part", "chat", says([TEXT]), [says(PARIS)]),
    Case("refusal as a field", "chat", says(None, refusal="No."), [says(None, refusal="No.")]),
    Case("refusal as a part", "chat", says(None, refusal="No."), [says([{"type": "refusal", "refusal": "No."}])]),
    Case("reasoning echoed", "chat", says(PARIS, reasoning_content="hm"), [says(PARIS, reasoning_content="hm")]),
    Case("reasoning dropped", "chat", says(PARIS, reasoning="hm", reasoning_details=[{"text": "hm"}]), [says(PARIS)]),
    Case("thoughts kept in the text", "chat", says(f"<think>\nhm</think>\n\n{PARIS}"), [
        says(f"<think>\nhm</think>\n\n{PARIS}"),
    ]),
    Case("thoughts cut out of the text", "chat", says(f"<think>\nhm</think>\n\n{PARIS}"), [says(PARIS)]),
    Case("thoughts cut out before a call", "chat", says("<think>hm</think>", tool_calls=[CALL]), [
        says("", tool_calls=[CALL]), CHAT_RESULT,
    ]),
    Case("the old function call", "chat", says(None, function_call={"name": "look", "arguments": "{}"}), [
        says(None, function_call={"name": "look", "arguments": "{ }"}),
        {"role": "function", "name": "look", "content": "Paris"},
    ]),
    Case("text trimmed", "chat", says(f"\n{PARIS}  \n"), [says(PARIS)]),
    Case("thinking kept", "messages", [THINKING, REDACTED, TEXT], [says([THINKING, REDACTED, TEXT])]),
    Case("thinking dropped", "messages", [THINKING, REDACTED, TEXT], [says([TEXT])]),
    Case("thinking dropped before a call", "messages", [THINKING, TOOL_USE], [
        says([TOOL_USE]), {"role": "user", "content": [TOOL_RESULT]},
    ]),
    Case("string for a block", "messages", [TEXT], [says(PARIS)]),
    Case("empty texts dropped", "messages", [{"type": "text", "text": ""}, TEXT], [says([TEXT])]),
    Case("search kept", "messages", [TEXT, SEARCH, FOUND, CITED], [says([TEXT, SEARCH, FOUND, CITED])]),
    Case("search without its findings", "messages", [TEXT, SEARCH, FOUND, CITED], [
        says([TEXT, SEARCH, {**FOUND, "content": []}, TEXT]),
    ]),
    Case("search dropped", "messages", [TEXT, SEARCH, FOUND, CITED], [says([TEXT, TEXT])]),
    Case("search dropped, one string", "messages", [TEXT, SEARCH, FOUND, CITED], [says(PARIS + PARIS)]),
    Case("search dropped before a call", "messages", [SEARCH, FOUND, TOOL_USE], [
        says([TOOL_USE]), {"role": "user", "content": [TOOL_RESULT]},
    ]),
    Case("citations dropped", "messages", [CITED], [says([TEXT])]),
    Case("an unknown kind", "messages", [{"type": "new_kind"}, TEXT], [says([{"type": "new_kind", "x": 1}, TEXT])]),
    Case("an unknown kind dropped", "messages", [{"type": "container_upload"}, TEXT], [says([TEXT])]),
    Case("items as they were", "responses", [REASONING, MESSAGE], [REASONING, MESSAGE]),
    Case("items without ids", "responses", [REASONING, MESSAGE], [without(REASONING, "id"), without(MESSAGE, "id")]),
    Case("no reasoning", "responses", [REASONING, MESSAGE], [MESSAGE]),
    Case("no phase, no annotations", "responses", [MESSAGE], [says([without(OUTPUT_TEXT, "annotations")])]),
    Case("a string for a message", "responses", [MESSAGE], [says(PARIS)]),
    Case("a refusal", "responses", [{**MESSAGE, "content": [{"type": "refusal", "refusal": "No."}]}], [
        says([{"type": "refusal", "refusal": "No."}]),
    ]),
    Case("all by reference", "responses", [REASONING, MESSAGE], [reference(REASONING), reference(MESSAGE)]),
    Case("reasoning not referred to", "responses", [REASONING, MESSAGE], [reference(MESSAGE)]),
    Case("a reference without type", "responses", [MESSAGE], [{"id": "msg_1"}]),
    Case("a reference with type null", "responses", [MESSAGE], [{"id": "msg_1", "type": None}]),
    Case("a call by reference", "responses", [REASONING, MESSAGE, FUNCTION], [
        reference(REASONING), reference(MESSAGE), reference(FUNCTION), FUNCTION_OUTPUT,
    ]),
    Case("all but the call by reference", "responses", [REASONING, MESSAGE, FUNCTION], [
        reference(REASONING), reference(MESSAGE), without(FUNCTION, "id"), FUNCTION_OUTPUT,
    ]),
    Case("a call alone", "responses", [REASONING, FUNCTION], [reference(REASONING), FUNCTION, FUNCTION_OUTPUT]),
    Case("a custom call in full", "responses", [CUSTOM], [without(CUSTOM, "id"), CUSTOM_OUTPUT]),
    Case("both kinds of call", "responses", [FUNCTION, CUSTOM], [
        FUNCTION, reference(CUSTOM), FUNCTION_OUTPUT, CUSTOM_OUTPUT,
    ]),
    Case("a shell call in full", "responses", [SHELL], [SHELL, SHELL_OUTPUT]),
    Case("a shell call by reference", "responses", [SHELL], [reference(SHELL), SHELL_OUTPUT]),
    Case("a search in full", "responses", [WEB, MESSAGE], [WEB, MESSAGE]),
    Case("a search by reference", "responses", [WEB, MESSAGE], [reference(WEB), reference(MESSAGE)]),
    Case("a search dropped", "responses", [WEB, MESSAGE], [MESSAGE]),
    Case("a search dropped, a string", "responses", [WEB, MESSAGE], [says(PARIS)]),
    Case("a server's tool in full", "responses", [MCP_TOOLS, MCP, MESSAGE], [MCP_TOOLS, MCP, MESSAGE]),
    Case("a server's tool by reference", "responses", [MCP_TOOLS, MCP, MESSAGE], [reference(MCP), reference(MESSAGE)]),
    Case("a server's tool dropped", "responses", [MCP_TOOLS, MCP, MESSAGE], [MESSAGE]),
    Case("an approval", "responses", [MCP_TOOLS, APPROVAL], [MCP_TOOLS, APPROVAL, APPROVED]),
    Case("an approval by reference", "responses", [MCP_TOOLS, APPROVAL], [reference(APPROVAL), APPROVED]),
    Case("an image in full", "responses", [IMAGE], [IMAGE]),
    Case("an image without its bytes", "responses", [IMAGE], [{"type": "image_generation_call", "id": "ig_1"}]),
    Case("an image by reference", "responses", [IMAGE], [reference(IMAGE)]),
]  # fmt: skip


@every_reader
@pytest.mark.parametrize("case", CASES, ids=[f"{case.wire}: {case.name}" for case in CASES])
def test_answer_sent_back_finds_its_session(case: Case, read: Read) -> None:
    store = Store()
    session_id = store.ask(case.wire, [FIRST], read(case.wire, case.given))

    assert store.ask(case.wire, [FIRST, *case.sent_back, SECOND], None) == session_id


@pytest.mark.parametrize("case", CASES, ids=[f"{case.wire}: {case.name}" for case in CASES])
def test_answer_streamed_or_not_has_the_same_forms(case: Case) -> None:
    assert document(case.wire, case.given).forms == stream(case.wire, case.given).forms != ()


NFC: Final = unicodedata.normalize("NFC", "Málaga")
NFD: Final = unicodedata.normalize("NFD", "Málaga")
STRANGERS: Final = [
    Case("another text", "chat", says(PARIS), [says("It is Lyon.")]),
    Case("the same letters, composed otherwise", "chat", says(NFC), [says(NFD)]),
    Case("another case", "chat", says("Paris"), [says("paris")]),
    Case("another call", "chat", says(None, tool_calls=[CALL]), [says(None, tool_calls=[{**CALL, "id": "call_9"}])]),
    Case("thoughts alone", "chat", says("<think>hm</think>"), []),
    Case("thoughts of another text", "chat", says(f"<think>hm</think>{PARIS}"), [says("hm")]),
    Case("a text that is no thought", "chat", says(f"{PARIS} <think>hm</think> Lyon."), [says("Lyon.")]),
    Case("another tool's id", "messages", [SEARCH, FOUND, TOOL_USE], [says([{**TOOL_USE, "id": "toolu_9"}])]),
    Case("a search alone", "messages", [SEARCH, FOUND], []),
    Case("another message's id", "responses", [MESSAGE], [{"type": "item_reference", "id": "msg_9"}]),
    Case("an id in other letters", "responses", [MESSAGE], [{"type": "item_reference", "id": "MSG_1"}]),
    Case("an id as a text", "responses", [MESSAGE], [says("\x1ereference\x1dmsg_1\x1f")]),
    Case("reasoning alone referred to", "responses", [REASONING, MESSAGE], [reference(REASONING)]),
    Case("one of two referred to", "responses", [MESSAGE, FUNCTION], [reference(MESSAGE)]),
    Case("another approval", "responses", [APPROVAL], [reference({"id": "mcpr_9"}), APPROVED]),
    Case("references in another order", "responses", [MESSAGE, FUNCTION], [reference(FUNCTION), reference(MESSAGE)]),
]  # fmt: skip


@every_reader
@pytest.mark.parametrize("case", STRANGERS, ids=[f"{case.wire}: {case.name}" for case in STRANGERS])
def test_history_with_another_answer_is_another_session(case: Case, read: Read) -> None:
    store = Store()
    session_id = store.ask(case.wire, [FIRST], read(case.wire, case.given))

    assert store.ask(case.wire, [FIRST, *case.sent_back, SECOND], None) != session_id


HOSTED: Final[Json] = {"type": "shell_call", "id": "sh_1", "call_id": "call_4"}
HOSTED_OUTPUT: Final[Json] = {"type": "shell_call_output", "id": "sho_1", "call_id": "call_4", "output": []}


@every_reader
@pytest.mark.parametrize(
    "sent_back",
    [[HOSTED, HOSTED_OUTPUT, MESSAGE], [HOSTED, MESSAGE], [reference(HOSTED), HOSTED_OUTPUT, reference(MESSAGE)]],
    ids=["in full", "its output dropped", "by reference"],
)
def test_answer_of_two_sides_is_known_by_its_request_and_by_its_other_forms(sent_back: list[Json], read: Read) -> None:
    store = Store()
    answer = read("responses", [HOSTED, HOSTED_OUTPUT, MESSAGE])
    session_id = store.ask("responses", [FIRST], answer, store=True)

    assert answer.unit is None
    assert len(answer.forms) == 2
    assert store.ask("responses", [FIRST, *sent_back, SECOND], None) == session_id


@every_reader
def test_answer_that_is_not_stored_can_not_be_referred_to(read: Read) -> None:
    kept, unkept = (read("responses", [MESSAGE, FUNCTION], store=is_stored) for is_stored in (True, False))

    assert [form.text for form in kept.forms if "reference" in form.text]
    assert unkept.forms == kept.forms[:1]


@every_reader
def test_answer_whose_items_have_no_ids_can_not_be_referred_to(read: Read) -> None:
    answer = read("responses", [without(REASONING, "id"), without(MESSAGE, "id"), FUNCTION])

    assert not [form for form in answer.forms if "reference" in form.text]
    assert read("responses", [without(REASONING, "id"), MESSAGE]).forms == read("responses", [MESSAGE]).forms


@every_reader
def test_answer_with_an_error_has_no_forms(read: Read) -> None:
    assert read("responses", [MESSAGE], error={"message": "x"}).forms == ()
    assert read("responses", [MESSAGE], status="failed").forms == ()


@pytest.mark.parametrize("last", ["response.failed", "error"])
def test_stream_that_ends_with_an_error_has_no_forms_whatever_it_says_beside(last: str) -> None:
    looking_on = reader("responses", event_stream=True, encoding="")
    looking_on.feed(sse(last, {"type": last, "response": {"status": "completed", "output": [MESSAGE]}}))

    assert looking_on.close(True).forms == ()


@pytest.mark.parametrize("broken", ["cut", "garbled"])
def test_stream_that_was_not_understood_has_no_forms(broken: str) -> None:
    events = [sse(data["type"], data) for data in messages_events([SEARCH, FOUND, TEXT], {})]
    looking_on = reader("messages", event_stream=True, encoding="")
    for event in events[:-1] if broken == "cut" else [events[0], b"data: {nonsense\n\n", *events[1:]]:
        looking_on.feed(event)

    answer = looking_on.close(True)

    assert answer.forms == ()
    assert answer.finished == (broken == "garbled")


def test_thoughts_without_words_are_no_form_of_their_own() -> None:
    assert len(document("chat", says("<think>hm</think>")).forms) == 1


# -- whole conversations -------------------------------------------------------------------------------------------

SHAPES: Final = ["as it was", "without ids", "without reasoning", "easy messages", "referred", "referred but functions"]
TURNS: Final = 6


def answer_of(number: int) -> list[Part]:
    call = [Part("call", "{}", f"call_{number}")] if number % 2 else []
    return [Part("thinking", "hm"), Part("text", f"answer {number}"), *call]


def named_apart(items: list[Json], number: int) -> list[Json]:
    return [{**item, "id": f"{item['id']}_{number}"} if "id" in item else item for item in items]


def told(store: Store, shape_of: Callable[[int], str]) -> list[str]:
    """The sessions of a conversation's turns, each answer sent back in a shape of its own."""
    history: list[Json] = []
    sessions = []
    for number in range(TURNS):
        parts = answer_of(number)
        history.append({"role": "user", "content": f"question {number}"})
        output = named_apart(responses_document(parts)["output"], number)
        sessions.append(store.ask("responses", history, document("responses", output)))
        history += [*named_apart(responses_history(parts, shape_of(number)), number), *responses_results(parts)]
    return sessions


@pytest.mark.parametrize("shape", SHAPES)
def test_conversation_sent_back_in_one_shape_is_one_session(shape: str) -> None:
    store = Store()

    assert len(set(told(store, lambda number: shape))) == 1
    assert store.lost == []


@pytest.mark.parametrize("seed", range(10))
def test_conversation_whose_answers_come_back_each_in_a_shape_of_its_own_is_one_session(seed: int) -> None:
    rng = random.Random(seed)
    shapes = [rng.choice(SHAPES) for _ in range(TURNS)]

    assert len(set(told(Store(), shapes.__getitem__))) == 1, shapes


def test_conversation_told_twice_to_the_letter_is_two_sessions_until_an_answer_is_shared() -> None:
    """Ids are made for one answer; the same ids in two sessions are a provider's that makes none worth the name."""
    store = Store()
    first = store.ask("responses", [FIRST], document("responses", [MESSAGE]))
    second = store.ask("responses", [FIRST], document("responses", [MESSAGE]))

    assert first != second
    for sent_back in (MESSAGE, reference(MESSAGE)):
        assert store.ask("responses", [FIRST, sent_back, SECOND], None) not in (first, second)


def test_conversation_with_equal_texts_goes_on_by_its_own_references() -> None:
    store = Store()
    first = store.ask("responses", [FIRST], document("responses", [MESSAGE], id="resp_1"))
    other = {**MESSAGE, "id": "msg_2"}
    second = store.ask("responses", [FIRST], document("responses", [other], id="resp_2"))

    assert store.ask("responses", [FIRST, reference(MESSAGE), SECOND], None) == first
    assert store.ask("responses", [FIRST, reference(other), SECOND], None) == second
    assert store.ask("responses", [FIRST, MESSAGE, SECOND], None) not in (first, second)


def test_conversation_saved_without_ids_and_taken_up_again_is_a_fork() -> None:
    """It was told by references; what it said is known of its first answer alone."""
    store = Store()
    texts = [{**MESSAGE, "id": f"msg_{number}", "content": f"answer {number}"} for number in range(2)]
    session_id = store.ask("responses", [FIRST], document("responses", texts[:1]))
    store.ask("responses", [FIRST, reference(texts[0]), SECOND], document("responses", texts[1:]))
    again = [FIRST, without(texts[0], "id"), SECOND, without(texts[1], "id"), {"role": "user", "content": "go on"}]

    taken_up = store.ask("responses", again, None)

    assert taken_up != session_id
    assert store.origin(taken_up) == session_id


@pytest.mark.parametrize("sent_back", [[MESSAGE], [reference(MESSAGE)]], ids=["in full", "by reference"])
def test_retry_of_a_turn_that_was_answered_in_either_form_is_its_session(sent_back: list[Json]) -> None:
    store = Store()
    session_id = store.ask("responses", [FIRST], document("responses", [MESSAGE]))
    again = [FIRST, *sent_back, SECOND]

    for answer in (document("responses", [FUNCTION]), None):
        assert store.ask("responses", again, answer) == session_id


# -- what was never answered ---------------------------------------------------------------------------------------

JOINED: Final[dict[str, Callable[[str, str], list[Json]]]] = {
    "as neighbours": lambda old, new: [{"role": "user", "content": old}, {"role": "user", "content": new}],
    "as one message": lambda old, new: [{"role": "user", "content": f"{old}\n\n{new}"}],
    "as two parts": lambda old, new: [{"role": "user", "content": [{**TEXT, "text": old}, {**TEXT, "text": new}]}],
}
joined = pytest.mark.parametrize("join", JOINED.values(), ids=JOINED)


@joined
def test_words_added_to_a_turn_that_failed_go_on_from_the_answer_before(join: Callable[[str, str], list[Json]]) -> None:
    store = Store()
    begun = [FIRST, says(PARIS)]
    session_id = store.ask("chat", [FIRST], document("chat", says(PARIS)))

    assert store.ask("chat", [*begun, *join("and of Spain?", "")], None) == session_id
    assert store.ask("chat", [*begun, *join("and of Spain?", "hello?")], document("chat", says("Madrid"))) == session_id
    assert store.ask("chat", [*begun, *join("and of Spain?", "hello?"), says("Madrid"), SECOND], None) == session_id


def test_words_added_after_a_part_of_the_answer_go_on_from_the_turn_that_was_cut() -> None:
    store = Store()
    session_id = store.ask("chat", [FIRST], None)

    assert store.ask("chat", [FIRST, says("It is P"), {"role": "user", "content": "go on"}], None) == session_id


@joined
def test_words_added_to_an_opening_that_failed_open_a_new_session(join: Callable[[str, str], list[Json]]) -> None:
    """On purpose: `daemon.providers.normal` says why."""
    store = Store()
    failed = store.ask("chat", [FIRST], None)

    opened = store.ask("chat", join(FIRST["content"], "hello?"), document("chat", says(PARIS)))

    assert opened != failed
    assert store.ask("chat", [*join(FIRST["content"], "hello?"), says(PARIS), SECOND], None) == opened


def test_answer_without_words_proves_nothing() -> None:
    store = Store()
    session_id = store.ask("chat", [FIRST], document("chat", says(PARIS)))
    begun = [FIRST, says(PARIS), SECOND]

    assert document("chat", says(" \n")).forms == ()
    assert store.ask("chat", begun, document("chat", says(""))) == session_id
    assert store.ask("chat", [*begun, says(""), {"role": "user", "content": "well?"}], None) == session_id
