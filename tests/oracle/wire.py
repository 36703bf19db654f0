"""The three wire formats: histories as clients write them into requests, answers as providers send them.

One rule: shapes and field order are those of the real APIs; how one and the same history is written is a `Style`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.oracle.speech import Dialogue, Entry, Part, trimmed, without_thinking

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a client writes one request; none of it changes what was said."""

    plain_strings: bool = False
    """A message of one text is a string, not a list with one block."""
    reminder: str = ""
    """What stands before the user's first words: made anew on resume."""
    cache_mark: str = "last"
    """Which user message carries `cache_control`: `first`, `last` or none."""
    system_among: str = ""
    """A message of role `system` after the first one."""
    trims: bool = False
    drops_thinking: bool = False
    reverses_keys: bool = False

    def dumps(self, body: Json) -> bytes:
        return json.dumps(_reversed(body) if self.reverses_keys else body, ensure_ascii=False).encode()


def drawn_style(rng: random.Random, **fixed: Any) -> Style:
    """Any style: clients change theirs between two requests of one conversation."""
    chosen: Json = {
        "plain_strings": rng.random() < 0.5,
        "cache_mark": rng.choice(("first", "last", "")),
        "trims": rng.random() < 0.3,
        "drops_thinking": rng.random() < 0.3,
        "reverses_keys": rng.random() < 0.2,
    }
    return Style(**{**chosen, **fixed})


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


def _spoken(entry: Entry, style: Style) -> tuple[Part, ...]:
    parts = trimmed(entry.parts) if style.trims else entry.parts
    kept = without_thinking(parts) if style.drops_thinking else parts
    return kept or parts


# -- Messages --------------------------------------------------------------------------------------------------------


def messages_history(dialogue: Dialogue, style: Style) -> list[Json]:
    users = [number for number, entry in enumerate(dialogue.entries) if entry.role == "user"]
    marked = {"first": users[:1], "last": users[-1:]}.get(style.cache_mark, [])
    written: list[Json] = []
    for number, entry in enumerate(dialogue.entries):
        blocks = _messages_blocks(entry, style, is_first=number == 0)
        if number in marked:
            blocks[-1] = {**blocks[-1], "cache_control": {"type": "ephemeral"}}
        elif style.plain_strings and len(blocks) == 1 and blocks[0]["type"] == "text":
            written.append({"role": entry.role, "content": blocks[0]["text"]})
            continue
        written.append({"role": entry.role, "content": blocks})
    if style.system_among:
        written.insert(1, {"role": "system", "content": style.system_among})
    return written


def _messages_blocks(entry: Entry, style: Style, *, is_first: bool) -> list[Json]:
    if entry.role == "assistant":
        return [messages_block(part) for part in _spoken(entry, style)]
    if entry.results:
        return [
            {"tool_use_id": call_id, "type": "tool_result", "content": text, "is_error": False}
            for call_id, text in entry.results
        ]
    reminders = [{"type": "text", "text": style.reminder}] if is_first and style.reminder else []
    return [*reminders, {"type": "text", "text": entry.text}]


def messages_block(part: Part) -> Json:
    match part.kind:
        case "text":
            return {"type": "text", "text": part.text}
        case "thinking":
            return {"type": "thinking", "thinking": part.text, "signature": "c2lnbmF0dXJl"}
        case _:
            return {"type": "tool_use", "id": part.call_id, "name": "Bash", "input": json.loads(part.text)}


# -- Chat ------------------------------------------------------------------------------------------------------------


def chat_history(dialogue: Dialogue, style: Style) -> list[Json]:
    written: list[Json] = []
    for entry in dialogue.entries:
        if entry.role == "assistant":
            written.append(chat_message(_spoken(entry, style)))
        elif entry.results:
            written += [{"role": "tool", "tool_call_id": call, "content": text} for call, text in entry.results]
        elif style.plain_strings:
            written.append({"role": "user", "content": entry.text})
        else:
            written.append({"role": "user", "content": [{"type": "text", "text": entry.text}]})
    if style.system_among:
        written.insert(1, {"role": "system", "content": style.system_among})
    return written


def chat_message(parts: tuple[Part, ...]) -> Json:
    text = "".join(part.text for part in parts if part.kind == "text")
    calls = [
        {"id": part.call_id, "type": "function", "function": {"name": "bash", "arguments": part.text}}
        for part in parts
        if part.kind == "call"
    ]
    message: Json = {"role": "assistant", "content": text or None}
    return {**message, "tool_calls": calls} if calls else message


# -- Responses -------------------------------------------------------------------------------------------------------


def responses_history(dialogue: Dialogue, style: Style, after: int = 0) -> list[Json]:
    """The items from the entry `after` on: with the provider's own state only the new ones are sent."""
    written: list[Json] = []
    for number, entry in enumerate(dialogue.entries[after:], start=after):
        if entry.role == "assistant":
            written += [responses_item(part, f"{number}{place}") for place, part in enumerate(_spoken(entry, style))]
        elif entry.results:
            written += [
                {"type": "function_call_output", "call_id": call, "output": text} for call, text in entry.results
            ]
        else:
            content: Any = entry.text if style.plain_strings else [{"type": "input_text", "text": entry.text}]
            written.append({"type": "message", "role": "user", "content": content})
    return written


def responses_item(part: Part, number: str) -> Json:
    match part.kind:
        case "text":
            content = [{"type": "output_text", "text": part.text, "annotations": []}]
            return {
                "id": f"msg_{number}",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": content,
            }
        case "thinking":
            summary = [{"type": "summary_text", "text": part.text}]
            return {"id": f"rs_{number}", "type": "reasoning", "summary": summary, "encrypted_content": "ZW5j"}
        case _:
            call = {"id": f"fc_{number}", "type": "function_call", "status": "completed", "name": "exec_command"}
            return {**call, "call_id": part.call_id, "arguments": part.text}


# -- answers ---------------------------------------------------------------------------------------------------------


def answer_document(wire: str, parts: tuple[Part, ...], answer_id: str) -> bytes:
    return json.dumps(_document(wire, parts, answer_id), ensure_ascii=False).encode()


def answer_events(wire: str, parts: tuple[Part, ...], answer_id: str) -> list[bytes]:
    """The events of a stream, the one that ends it last."""
    events = {"messages": _messages_events, "chat": _chat_events, "responses": _responses_events}[wire]
    return list(events(parts, answer_id))


def _document(wire: str, parts: tuple[Part, ...], answer_id: str) -> Json:
    match wire:
        case "messages":
            usage = {
                "input_tokens": 9,
                "cache_creation_input_tokens": 30,
                "cache_read_input_tokens": 400,
                "output_tokens": 7,
            }
            head: Json = {"id": answer_id, "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
            return {**head, "content": [*map(messages_block, parts)], "stop_reason": "end_turn", "usage": usage}
        case "chat":
            choice = {"index": 0, "message": chat_message(parts), "finish_reason": "stop"}
            usage = {"prompt_tokens": 400, "completion_tokens": 7, "total_tokens": 407}
            return {"id": answer_id, "object": "chat.completion", "model": "gpt-5", "choices": [choice], "usage": usage}
        case _:
            items = [responses_item(part, f"{answer_id}{place}") for place, part in enumerate(parts)]
            usage = {"input_tokens": 400, "output_tokens": 7, "total_tokens": 407}
            head = {"id": answer_id, "object": "response", "status": "completed", "error": None, "model": "gpt-5"}
            return {**head, "output": items, "usage": usage}


_EMPTY: Final[dict[str, Json]] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "call": {"input": {}},
}
"""What a block holds before its deltas come."""


def _event(name: str, data: Json) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _messages_events(parts: tuple[Part, ...], answer_id: str) -> Iterator[bytes]:
    whole = _document("messages", (), answer_id)
    yield _event("message_start", {"type": "message_start", "message": {**whole, "stop_reason": None}})
    for index, part in enumerate(parts):
        block = messages_block(part)
        started = {"type": "content_block_start", "index": index, "content_block": {**block, **_EMPTY[part.kind]}}
        yield _event("content_block_start", started)
        name, field = {
            "text": ("text_delta", "text"),
            "thinking": ("thinking_delta", "thinking"),
            "call": ("input_json_delta", "partial_json"),
        }[part.kind]
        delta = {"type": name, field: part.text}
        yield _event("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})
        yield _event("content_block_stop", {"type": "content_block_stop", "index": index})
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}
    yield _event("message_delta", ended)
    yield _event("message_stop", {"type": "message_stop"})


def _chat_events(parts: tuple[Part, ...], answer_id: str) -> Iterator[bytes]:
    def chunk(delta: Json, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        head = {"id": answer_id, "object": "chat.completion.chunk", "model": "gpt-5"}
        return f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n".encode()

    yield chunk({"role": "assistant", "content": ""})
    calls = [part for part in parts if part.kind == "call"]
    for part in parts:
        if part.kind == "text":
            yield chunk({"content": part.text})
    for index, part in enumerate(calls):
        function = {"name": "bash", "arguments": part.text}
        yield chunk({"tool_calls": [{"index": index, "id": part.call_id, "type": "function", "function": function}]})
    yield chunk({}, "tool_calls" if calls else "stop")
    yield b"data: [DONE]\n\n"


def _responses_events(parts: tuple[Part, ...], answer_id: str) -> Iterator[bytes]:
    whole = _document("responses", parts, answer_id)
    opened = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield _event("response.created", {"type": "response.created", "response": opened})
    for index, item in enumerate(whole["output"]):
        done = {"type": "response.output_item.done", "output_index": index, "item": item}
        yield _event("response.output_item.done", done)
    yield _event("response.completed", {"type": "response.completed", "response": whole})
