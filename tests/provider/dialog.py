"""What a request says, whatever its wire format: a prompt in units, the newest user text, the wishes.

One rule: pure, and as strict as the providers are: a body they would refuse is refused here, with a status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.provider.prompt_cache import Breakpoint

Protocol = Literal["messages", "count_tokens", "chat", "responses"]
ANTHROPIC_BODY_BYTES_MAX: Final = 32 * 1024 * 1024
"""Anthropic's documented limit of a request."""
REMINDER: Final = "<system-reminder>"


class Refused(Exception):
    """The provider would not take this request."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Dialog:
    protocol: Protocol
    request: Mapping[str, Any]
    model: str
    stream: bool
    units: Sequence[str]
    breakpoints: Sequence[Breakpoint]
    user_text: str
    tool_results: int
    """Tool results that came after the newest user text."""
    tools: Sequence[Mapping[str, Any]]
    output_tokens_max: int | None


def read_dialog(protocol: Protocol, body: bytes, stored: Mapping[str, Sequence[str]]) -> Dialog:
    """Understand a body.  `stored` holds the units of earlier Responses answers by id.  Raises Refused."""
    if protocol in ("messages", "count_tokens") and len(body) > ANTHROPIC_BODY_BYTES_MAX:
        raise Refused(413, "Request exceeds the maximum size")
    request = _object(body)
    _require(request, "model", str)
    _require(request, "stream", bool, optional=True)
    history = _HISTORIES[protocol]
    messages = request.get(history)
    if protocol == "responses" and isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise Refused(400, f"{history}: Input should be a valid list")
    if protocol == "messages":
        _require(request, "max_tokens", int)
    user_text, tool_results = _newest_user_text(messages)
    return Dialog(
        protocol=protocol,
        request=request,
        model=request["model"],
        stream=request.get("stream") is True,
        units=[_preamble(protocol, request), *_earlier(protocol, request, stored), *map(unit_of, messages)],
        breakpoints=_breakpoints(request, messages),
        user_text=user_text,
        tool_results=tool_results,
        tools=[tool for tool in request.get("tools") or [] if isinstance(tool, dict)],
        output_tokens_max=_output_tokens_max(request),
    )


def unit_of(message: Mapping[str, Any]) -> str:
    """A message as text: equal for equal meaning, so without breakpoints, and a plain string as one text block."""
    content = message.get("content")
    if isinstance(content, str):
        message = {**message, "content": [{"type": "text", "text": content}]}
    return _canonical(message)


_HISTORIES: Final = {"messages": "messages", "count_tokens": "messages", "chat": "messages", "responses": "input"}


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The request body is not valid JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "The request body is not a JSON object")
    return value


def _require(request: Mapping[str, Any], name: str, kind: type, *, optional: bool = False) -> None:
    if name not in request and optional:
        return
    if not isinstance(request.get(name), kind):
        raise Refused(400, f"{name}: {'Input should be valid' if name in request else 'Field required'}")


def _earlier(protocol: Protocol, request: Mapping[str, Any], stored: Mapping[str, Sequence[str]]) -> Sequence[str]:
    previous = request.get("previous_response_id")
    if protocol != "responses" or not previous:
        return []
    if previous not in stored:
        raise Refused(400, f"Previous response with id '{previous}' not found.", "previous_response_not_found")
    # The earlier request's tools and instructions are not carried over: each request brings its own.
    return stored[previous][1:]


def _preamble(protocol: Protocol, request: Mapping[str, Any]) -> str:
    """The unit before the conversation."""
    system = request.get("instructions") if protocol == "responses" else request.get("system")
    return unit_of({"tools": request.get("tools"), "content": system})


def _breakpoints(request: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> list[Breakpoint]:
    """At most one per unit, the last one in it: a unit is the smallest piece that is cached."""
    holders = [
        [*_list(request.get("tools")), *_list(request.get("system"))],
        *(_list(m.get("content")) for m in messages),
    ]
    found = [(index, ttl) for index, blocks in enumerate(holders) if (ttl := _ttl(blocks))]
    whole = _ttl([request])
    return [*(mark for mark in found if mark[0] != len(messages)), (len(messages), whole)] if whole else found


def _ttl(blocks: Sequence[Any]) -> str:
    """The TTL of the last breakpoint among some blocks, empty when there is none."""
    marks = [block["cache_control"] for block in blocks if isinstance(block, dict) and block.get("cache_control")]
    if not marks:
        return ""
    return "1h" if isinstance(marks[-1], dict) and marks[-1].get("ttl") == "1h" else "5m"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _newest_user_text(messages: Sequence[Mapping[str, Any]]) -> tuple[str, int]:
    tool_results = 0
    for message in reversed(messages):
        tool_results += _tool_results(message)
        if message.get("role") == "user" and (text := _text(message.get("content"))):
            return text, tool_results
    return "", tool_results


def _tool_results(message: Mapping[str, Any]) -> int:
    if message.get("role") == "tool" or message.get("type") in ("function_call_output", "custom_tool_call_output"):
        return 1
    blocks = _list(message.get("content"))
    return sum(isinstance(block, dict) and block.get("type") == "tool_result" for block in blocks)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = [
        block["text"] for block in _list(content) if isinstance(block, dict) and isinstance(block.get("text"), str)
    ]
    return "\n".join(text for text in texts if not text.lstrip().startswith(REMINDER))


def _output_tokens_max(request: Mapping[str, Any]) -> int | None:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(request.get(name), int):
            return int(request[name])
    return None


def _canonical(value: Any) -> str:
    return json.dumps(_bare(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _bare(item) for name, item in value.items() if name != "cache_control"}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return value
