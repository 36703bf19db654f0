"""OpenAI's Responses API: a reply as a body or as a stream of numbered events.

One rule: pure; field for field what the real API sends to a plain request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.provider.reply import Event, Reply, to_json
from worker.protocol import Usage

_CONTENT: Final = {"output_index": 0, "content_index": 0}


def body(reply: Reply) -> bytes:
    return to_json(finished(reply))


def finished(reply: Reply) -> dict[str, Any]:
    """The whole response object, as the last event and the body have it."""
    output = [item for item in (_message(reply), _tool_call(reply)) if item]
    incomplete = {"reason": "max_output_tokens"} if reply.stop == "length" else None
    usage = {"usage": _usage(reply.usage)} if reply.tells_usage else {}
    status = "incomplete" if incomplete else "completed"
    return _response(reply) | {"status": status, "incomplete_details": incomplete, "output": output} | usage


def events(reply: Reply) -> Iterator[Event]:
    for number, (name, fields, marks) in enumerate(_steps(reply)):
        data = to_json({"type": name, "sequence_number": number} | fields)
        yield Event(b"event: " + name.encode() + b"\ndata: " + data + b"\n\n", **marks)


Step = tuple[str, dict[str, Any], dict[str, Any]]
"""(event, its fields, what `Event` is to know about it)"""


def _steps(reply: Reply) -> Iterator[Step]:
    yield "response.created", {"response": _response(reply)}, {}
    yield "response.in_progress", {"response": _response(reply)}, {}
    for name, fields, marks in _message_steps(reply):
        yield name, fields, marks
        if marks and reply.breaks:
            error = {"code": "server_error", "message": "The server had an error", "param": None}
            yield "error", error, {"is_last": True}
            return
    yield from _tool_steps(reply)
    end = "response.incomplete" if reply.stop == "length" else "response.completed"
    yield end, {"response": finished(reply)}, {"tells": reply.told_usage, "is_last": True}


def _message_steps(reply: Reply) -> Iterator[Step]:
    message = _message(reply)
    if message is None:
        return
    opening = message | {"status": "in_progress", "content": []}
    text = _CONTENT | {"item_id": message["id"]}
    yield "response.output_item.added", {"output_index": 0, "item": opening}, {}
    yield "response.content_part.added", text | {"part": message["content"][0] | {"text": ""}}, {}
    for delta in reply.deltas():
        yield "response.output_text.delta", text | {"delta": delta, "logprobs": []}, {"is_delta": True}
    yield "response.output_text.done", text | {"text": reply.text, "logprobs": []}, {}
    yield "response.content_part.done", text | {"part": message["content"][0]}, {}
    yield "response.output_item.done", {"output_index": 0, "item": message}, {}


def _tool_steps(reply: Reply) -> Iterator[Step]:
    call = _tool_call(reply)
    if call is None:
        return
    index = {"output_index": 1 if reply.text else 0}
    item = index | {"item_id": call["id"]}
    yield "response.output_item.added", index | {"item": call | {"status": "in_progress", "arguments": ""}}, {}
    middle = len(call["arguments"]) // 2
    for part in (call["arguments"][:middle], call["arguments"][middle:]):
        yield "response.function_call_arguments.delta", item | {"delta": part}, {"is_delta": True}
    done = item | {"name": call["name"], "arguments": call["arguments"]}
    yield "response.function_call_arguments.done", done, {}
    yield "response.output_item.done", index | {"item": call}, {}


def _response(reply: Reply) -> dict[str, Any]:
    """The response object at its beginning."""
    request = reply.dialog.request
    return {
        "id": reply.id("resp_", 48),
        "object": "response",
        "created_at": reply.created_at,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "model": reply.dialog.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": request.get("previous_response_id"),
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": request.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": request.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """OpenAI counts what came from the cache among the input tokens."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
    }


def _message(reply: Reply) -> dict[str, Any] | None:
    if not reply.text:
        return None
    status = "incomplete" if reply.stop == "length" else "completed"
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": reply.text}
    return {"id": reply.id("msg_", 48), "type": "message", "status": status, "content": [part], "role": "assistant"}


def _tool_call(reply: Reply) -> dict[str, Any] | None:
    if reply.tool is None:
        return None
    call = {"id": reply.id("fc_", 48), "type": "function_call", "status": "completed", "call_id": reply.id("call_")}
    return call | {"name": reply.tool.name, "arguments": reply.tool.arguments_json}
