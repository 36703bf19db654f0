"""Anthropic's Messages API: a reply as a body or as a stream of events.

One rule: pure; field for field what the real API sends to a plain request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.provider.reply import Event, Reply, to_json
from worker.protocol import Usage

_STOP_REASONS: Final = {"end": "end_turn", "tool": "tool_use", "length": "max_tokens"}


def body(reply: Reply) -> bytes:
    return to_json(_message(reply, _content(reply), _STOP_REASONS[reply.stop], reply.told_usage))


def events(reply: Reply) -> Iterator[Event]:
    """The prompt's usage comes first with the first token, the whole usage with the end."""
    first = _at_start(reply.usage) if reply.tells_usage else None
    yield _event("message_start", {"message": _message(reply, [], None, first)}, tells=first)
    for index, block in enumerate(_content(reply)):
        yield _event("content_block_start", {"index": index, "content_block": _opening(block)})
        if index == 0:
            yield _event("ping", {})
        for delta in _block_deltas(reply, block):
            yield _event("content_block_delta", {"index": index, "delta": delta}, is_delta=True)
            if reply.breaks:
                error = {"type": "overloaded_error", "message": "Overloaded"}
                yield _event("error", {"error": error}, is_last=True)
                return
        yield _event("content_block_stop", {"index": index})
    ending = {"delta": {"stop_reason": _STOP_REASONS[reply.stop], "stop_sequence": None}}
    usage = {"usage": _cumulative(reply.usage)} if reply.tells_usage else {}
    yield _event("message_delta", ending | usage, tells=reply.told_usage)
    yield _event("message_stop", {}, is_last=True)


def _message(reply: Reply, content: list[Any], stop_reason: str | None, usage: Usage | None) -> dict[str, Any]:
    message = {
        "model": reply.dialog.model,
        "id": reply.id("msg_01"),
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "stop_details": None,
    }
    return message if usage is None else message | {"usage": _usage(usage)}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "service_tier": "standard",
    }


def _cumulative(usage: Usage) -> dict[str, int]:
    """The end of a stream repeats the prompt's counts, but not how its cache writes are split."""
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "output_tokens": usage.output_tokens,
    }


def _at_start(usage: Usage) -> Usage:
    return Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_5m_tokens=usage.cache_write_5m_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=min(1, usage.output_tokens),
    )


def _content(reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    if reply.tool:
        tool = {"type": "tool_use", "id": reply.id("toolu_01"), "name": reply.tool.name}
        blocks.append(tool | {"input": dict(reply.tool.arguments)})
    return blocks


def _opening(block: dict[str, Any]) -> dict[str, Any]:
    return {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}


def _block_deltas(reply: Reply, block: dict[str, Any]) -> Iterator[dict[str, str]]:
    if block["type"] == "text":
        for text in reply.deltas():
            yield {"type": "text_delta", "text": text}
    elif reply.tool:
        middle = len(reply.tool.arguments_json) // 2
        for part in ("", reply.tool.arguments_json[:middle], reply.tool.arguments_json[middle:]):
            yield {"type": "input_json_delta", "partial_json": part}


def _event(name: str, fields: dict[str, Any], **marks: Any) -> Event:
    return Event(b"event: " + name.encode() + b"\ndata: " + to_json({"type": name} | fields) + b"\n\n", **marks)
