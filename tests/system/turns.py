"""One turn as a bare client sends it, in each wire format: for tests that look at bytes, heads and connections.

One rule: what is sent is what real clients send, so that routing, identity and usage are those of real turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from tests.clients import API_KEY, RawAnswer, RawClient
from worker.protocol import Protocol, Row, Usage

WIRES: Final[tuple[Protocol, ...]] = ("messages", "chat", "responses")
PATHS: Final[dict[Protocol, str]] = {
    "messages": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
}
MODELS: Final[dict[Protocol, str]] = {"messages": "claude-sonnet-4-6", "chat": "gpt-5", "responses": "gpt-5"}
SESSION_HEADERS: Final[dict[Protocol, str]] = {
    "messages": "x-claude-code-session-id",
    "chat": "x-session-id",
    "responses": "session-id",
}


def headers_of(wire: Protocol, session: str = "") -> list[tuple[str, str]]:
    """The headers of a client that speaks this format; without a session it names none."""
    credential = ("x-api-key", API_KEY) if wire == "messages" else ("authorization", f"Bearer {API_KEY}")
    named = [(SESSION_HEADERS[wire], session)] if session else []
    version = [("anthropic-version", "2023-06-01")] if wire == "messages" else []
    return [("content-type", "application/json"), credential, *version, *named]


def body_of(wire: Protocol, text: str, *, stream: bool = False, **more: Any) -> bytes:
    """A request of one user message."""
    wish: dict[str, Any] = {"model": MODELS[wire], "stream": stream}
    history = [{"role": "user", "content": text}]
    if wire == "messages":
        wish |= {"max_tokens": 2**31, "messages": history}
    elif wire == "chat":
        wish |= {"messages": history} | ({"stream_options": {"include_usage": True}} if stream else {})
    else:
        wish |= {"input": history}
    return json.dumps(wish | more).encode()


def send_turn(
    client: RawClient,
    wire: Protocol,
    text: str,
    *,
    session: str = "",
    stream: bool = False,
    headers: Sequence[tuple[str, str]] = (),
    **more: Any,
) -> None:
    body = body_of(wire, text, stream=stream, **more)
    client.send("POST", PATHS[wire], [*headers_of(wire, session), *headers], body)


def take_turn(client: RawClient, wire: Protocol, text: str, **more: Any) -> RawAnswer:
    """Send, and read the whole answer."""
    send_turn(client, wire, text, **more)
    return client.read()


def error_kind(wire: Protocol, answer: RawAnswer) -> str:
    """The type in an error of this format; fails for any other shape."""
    error = answer.json()
    if wire == "messages":
        assert error["type"] == "error" and error["error"].keys() >= {"type", "message"}
    else:
        assert error.keys() == {"error"} and error["error"].keys() >= {"type", "message", "param", "code"}
    return str(error["error"]["type"])


def sum_of_rows(rows: Sequence[Row]) -> Usage:
    known = [row.usage for row in rows if row.usage is not None]
    return Usage(**{name: sum(getattr(usage, name) for usage in known) for name in Usage.__struct_fields__})
