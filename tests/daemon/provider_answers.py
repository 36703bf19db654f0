"""Answers and histories in the three wire formats, built from one script.

One rule: shapes, field order and event order are those of the real APIs; the texts are the test's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

ANTHROPIC_USAGE: Json = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 4000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    "output_tokens": 1,
    "service_tier": "standard",
}
CHAT_USAGE: Json = {
    "prompt_tokens": 1000,
    "completion_tokens": 50,
    "total_tokens": 1050,
    "prompt_tokens_details": {"cached_tokens": 900, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 20},
}
RESPONSES_USAGE: Json = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 900},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 1050,
}


@dataclass(frozen=True)
class Part:
    """`kind` is text, thinking or call; a call's `text` is its arguments as JSON."""

    kind: str
    text: str
    call_id: str = ""


def sse(name: str, data: object, end: str = "\n") -> bytes:
    head = f"event: {name}{end}" if name else ""
    body = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"{head}data: {body}{end}{end}".encode()


def pieces_of(text: str, size: int = 5) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


# -- Messages ----------------------------------------------------------------------------------------------------


def messages_block(part: Part) -> Json:
    match part.kind:
        case "text":
            return {"type": "text", "text": part.text, "citations": None}
        case "thinking":
            return {"type": "thinking", "thinking": part.text, "signature": "c2ln"}
        case _:
            return {"type": "tool_use", "id": part.call_id, "name": "Bash", "input": json.loads(part.text)}


def messages_document(parts: list[Part], usage: Json = ANTHROPIC_USAGE) -> Json:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [messages_block(part) for part in parts],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def messages_stream(parts: list[Part], usage: Json = ANTHROPIC_USAGE, *, end: str = "\n") -> bytes:
    started = {**messages_document([], usage), "stop_reason": None}
    events = [sse("message_start", {"type": "message_start", "message": started}, end)]
    events.append(sse("ping", {"type": "ping"}, end))
    for index, part in enumerate(parts):
        empty: Json = {"call": {"input": {}}}.get(part.kind, {part.kind: ""})
        opened = {"type": "content_block_start", "index": index, "content_block": {**messages_block(part), **empty}}
        events.append(sse("content_block_start", opened, end))
        for piece in pieces_of(part.text):
            delta = {
                "text": {"type": "text_delta", "text": piece},
                "thinking": {"type": "thinking_delta", "thinking": piece},
                "call": {"type": "input_json_delta", "partial_json": piece},
            }[part.kind]
            events.append(
                sse("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}, end)
            )
        events.append(sse("content_block_stop", {"type": "content_block_stop", "index": index}, end))
    stopped = {"stop_reason": "end_turn", "stop_sequence": None}
    ended = {"type": "message_delta", "delta": stopped, "usage": {"output_tokens": 50}}
    events.append(sse("message_delta", ended, end))
    events.append(sse("message_stop", {"type": "message_stop"}, end))
    return b"".join(events)


def messages_history(parts: list[Part], shape: str) -> list[Json]:
    """The answer as clients send it back."""
    blocks = [messages_block(part) for part in parts if shape == "as it was" or part.kind != "thinking"]
    if shape == "trimmed":
        blocks = [{**block, "text": block["text"].strip()} if "text" in block else block for block in blocks]
    if shape == "cache mark" and blocks:
        blocks[-1] = {**blocks[-1], "cache_control": {"type": "ephemeral"}}
    if shape == "plain string" and all("text" in block for block in blocks):
        return [{"role": "assistant", "content": "".join(block["text"] for block in blocks)}]
    if shape == "message per block":
        return [{"role": "assistant", "content": [block]} for block in blocks]
    return [{"role": "assistant", "content": blocks}]


def messages_results(parts: list[Part]) -> list[Json]:
    blocks = [
        {"type": "tool_result", "tool_use_id": part.call_id, "content": "done", "is_error": False}
        for part in parts
        if part.kind == "call"
    ]
    return [{"role": "user", "content": blocks}] if blocks else []


# -- Chat --------------------------------------------------------------------------------------------------------


def chat_message(parts: list[Part]) -> Json:
    calls = [
        {"id": part.call_id, "type": "function", "function": {"name": "bash", "arguments": part.text}}
        for part in parts
        if part.kind == "call"
    ]
    text = "".join(part.text for part in parts if part.kind == "text")
    message: Json = {"role": "assistant", "content": text or None, "refusal": None}
    return {**message, "tool_calls": calls} if calls else message


def chat_document(parts: list[Part], usage: Json = CHAT_USAGE) -> Json:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5",
        "choices": [{"index": 0, "message": chat_message(parts), "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
    }


def chat_chunk(choices: list[Json], usage: Json | None = None) -> bytes:
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}
    return sse("", {**chunk, "choices": choices, "usage": usage})


def chat_delta(delta: Json, finish_reason: str | None = None) -> bytes:
    return chat_chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])


def chat_stream(parts: list[Part], usage: Json | None = CHAT_USAGE, *, done: bool = True) -> bytes:
    events = [chat_delta({"role": "assistant", "content": "", "refusal": None})]
    calls = 0
    for part in parts:
        if part.kind == "call":
            function = {"name": "bash", "arguments": ""}
            opened = {"index": calls, "id": part.call_id, "type": "function", "function": function}
            events.append(chat_delta({"tool_calls": [opened]}))
            for piece in pieces_of(part.text):
                events.append(chat_delta({"tool_calls": [{"index": calls, "function": {"arguments": piece}}]}))
            calls += 1
        else:
            field = "content" if part.kind == "text" else "reasoning_content"
            events.extend(chat_delta({field: piece}) for piece in pieces_of(part.text))
    events.append(chat_delta({}, "tool_calls" if calls else "stop"))
    if usage is not None:
        events.append(chat_chunk([], usage))
    if done:
        events.append(sse("", "[DONE]"))
    return b"".join(events)


def chat_history(parts: list[Part], shape: str) -> list[Json]:
    message = chat_message(parts)
    if shape == "trimmed" and message["content"]:
        message["content"] = message["content"].strip()
    if shape == "list of parts" and message["content"]:
        message["content"] = [{"type": "text", "text": piece} for piece in pieces_of(message["content"])]
    return [message]


def chat_results(parts: list[Part]) -> list[Json]:
    return [{"role": "tool", "tool_call_id": part.call_id, "content": "done"} for part in parts if part.kind == "call"]


# -- Responses ---------------------------------------------------------------------------------------------------


def responses_item(part: Part, number: int) -> Json:
    match part.kind:
        case "text":
            content = [{"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}]
            message = {"id": f"msg_{number}", "type": "message", "status": "completed", "role": "assistant"}
            return {**message, "content": content}
        case "thinking":
            summary = [{"type": "summary_text", "text": part.text}]
            return {"id": f"rs_{number}", "type": "reasoning", "summary": summary, "encrypted_content": "ZW5j"}
        case _:
            call = {"id": f"fc_{number}", "type": "function_call", "status": "completed", "name": "exec_command"}
            return {**call, "call_id": part.call_id, "arguments": part.text}


def responses_document(parts: list[Part], usage: Json | None = RESPONSES_USAGE, status: str = "completed") -> Json:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": "gpt-5",
        "output": [responses_item(part, number) for number, part in enumerate(parts)],
        "usage": usage,
    }


def responses_stream(
    parts: list[Part], usage: Json = RESPONSES_USAGE, *, last: str = "completed", items_in_last: bool = True
) -> bytes:
    opened = responses_document([], None, "in_progress")
    events: list[tuple[str, Json]] = [
        ("response.created", {"response": opened}),
        ("response.in_progress", {"response": opened}),
    ]
    for number, part in enumerate(parts):
        item = responses_item(part, number)
        place = {"output_index": number, "item_id": item["id"]}
        started = {**item, "status": "in_progress", **({"content": []} if part.kind == "text" else {})}
        events.append(("response.output_item.added", {"output_index": number, "item": started}))
        name = {"text": "output_text", "thinking": "reasoning_summary_text", "call": "function_call_arguments"}
        for piece in pieces_of(part.text):
            events.append((f"response.{name[part.kind]}.delta", {**place, "content_index": 0, "delta": piece}))
        events.append((f"response.{name[part.kind]}.done", {**place, "content_index": 0, "text": part.text}))
        events.append(("response.output_item.done", {"output_index": number, "item": item}))
    ended = responses_document(parts if items_in_last else [], usage, last)
    events.append((f"response.{last}", {"response": ended}))
    return b"".join(
        sse(name, {"type": name, "sequence_number": number, **data}) for number, (name, data) in enumerate(events)
    )


def responses_history(parts: list[Part], shape: str) -> list[Json]:
    items = [responses_item(part, number) for number, part in enumerate(parts)]
    if shape == "without reasoning":
        items = [item for item in items if item["type"] != "reasoning"]
    if shape.startswith("referred"):
        kept = {"function_call"} if shape == "referred but functions" else set()
        items = [item if item["type"] in kept else {"type": "item_reference", "id": item["id"]} for item in items]
    if shape == "easy messages":
        items = [
            {"role": "assistant", "content": item["content"][0]["text"]} if item["type"] == "message" else item
            for item in items
        ]
    if shape == "without ids":
        items = [{name: value for name, value in item.items() if name != "id"} for item in items]
    return items


def responses_results(parts: list[Part]) -> list[Json]:
    return [
        {"type": "function_call_output", "call_id": part.call_id, "output": "done"}
        for part in parts
        if part.kind == "call"
    ]
