"""OpenAI's Chat Completions API: a reply as a body or as a stream of chunks.

One rule: pure; field for field what the real API sends to a plain request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.provider.reply import Event, Reply, to_json
from worker.protocol import Usage

_FINISH_REASONS: Final = {"end": "stop", "tool": "tool_calls", "length": "length"}


def body(reply: Reply) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": None, "annotations": []}
    if reply.tool:
        message["tool_calls"] = [_tool_call(reply)]
    finish = _FINISH_REASONS[reply.stop]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    usage = {"usage": _usage(reply.usage)} if reply.tells_usage else {}
    return to_json(_head(reply, "chat.completion") | {"choices": [choice]} | usage)


def events(reply: Reply) -> Iterator[Event]:
    """Usage comes only when asked for, in a chunk of its own without choices."""
    asked = bool((reply.dialog.request.get("stream_options") or {}).get("include_usage"))
    yield _delta(reply, asked, {"role": "assistant", "content": "", "refusal": None})
    for text in reply.deltas():
        yield _delta(reply, asked, {"content": text}, is_delta=True)
        if reply.breaks:
            error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
            yield Event(b"data: " + to_json({"error": error}) + b"\n\n", is_last=True)
            return
    for call in _tool_call_deltas(reply):
        yield _delta(reply, asked, {"tool_calls": [call]}, is_delta=True)
    yield _delta(reply, asked, {}, finish_reason=_FINISH_REASONS[reply.stop])
    if asked and reply.tells_usage:
        chunk = _head(reply, "chat.completion.chunk") | {"choices": [], "usage": _usage(reply.usage)}
        yield Event(b"data: " + to_json(chunk) + b"\n\n", tells=reply.usage)
    yield Event(b"data: [DONE]\n\n", is_last=True)


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": reply.id("chatcmpl-"),
        "object": kind,
        "created": reply.created_at,
        "model": reply.dialog.model,
        "service_tier": "default",
        "system_fingerprint": "fp_" + f"{reply.seed:010x}"[-10:],
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """OpenAI counts what came from the cache among the prompt's tokens."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tool_call(reply: Reply) -> dict[str, Any]:
    assert reply.tool is not None
    function = {"name": reply.tool.name, "arguments": reply.tool.arguments_json}
    return {"id": reply.id("call_"), "type": "function", "function": function}


def _tool_call_deltas(reply: Reply) -> Iterator[dict[str, Any]]:
    """Id and name first, then the arguments in pieces."""
    if reply.tool is None:
        return
    opening = _tool_call(reply)
    opening["function"]["arguments"] = ""
    yield {"index": 0} | opening
    middle = len(reply.tool.arguments_json) // 2
    for part in (reply.tool.arguments_json[:middle], reply.tool.arguments_json[middle:]):
        yield {"index": 0, "function": {"arguments": part}}


def _delta(
    reply: Reply, asked: bool, delta: dict[str, Any], *, finish_reason: str | None = None, is_delta: bool = False
) -> Event:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    chunk = _head(reply, "chat.completion.chunk") | {"choices": [choice]} | ({"usage": None} if asked else {})
    return Event(b"data: " + to_json(chunk) + b"\n\n", is_delta=is_delta)
