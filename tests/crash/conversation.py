"""One client with one conversation, which knows of every request how much of its answer it has read.

One rule: an attempt is one request on a connection of its own, and its mark is in the ledger row it makes: the name of
the client (`User-Agent`) ends in the attempt's number.  So a row and what was promised about it meet without guessing.

Theory.  The conversation grows by an answer only when it was read to its end; `attempt` before that sends the same
bytes again, as SDKs do.  Three protocols, streamed or not, with a session id of the client's own or with none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from daemon.identity import derived_id
from tests.clients import API_KEY, RawAnswer, RawClient
from worker.protocol import Protocol

MARK: Final = "attempt-"
PATHS: Final[dict[Protocol, str]] = {
    "messages": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
}
STREAM_ENDS: Final[dict[Protocol, bytes]] = {
    "messages": b'"type":"message_stop"}\n\n',
    "chat": b"data: [DONE]\n\n",
    "responses": b"event: response.completed\n",
}
"""With these bytes a streamed answer is complete for its reader (the last is only the beginning of the event)."""
ID_HEADERS: Final[dict[Protocol, str]] = {
    "messages": "x-claude-code-session-id",
    "chat": "session-id",
    "responses": "session-id",
}


@dataclass(eq=False)
class Attempt:
    """What a client knows about one request.  Times are monotonic seconds, 0 for what never came."""

    number: int
    conversation: Conversation
    text: str
    sent_at: float = 0.0
    first_byte_at: float = 0.0
    last_byte_at: float = 0.0
    status: int = 0
    session: str = ""
    """`x-perdure-session`, if that much of the answer was read."""
    over: bool = False
    daemon: str = "daemon"
    """Whom it was sent to."""

    @property
    def mark(self) -> str:
        return f"{MARK}{self.number}"

    def note(self, answer: RawAnswer) -> None:
        """Take what was read of the answer."""
        self.status = answer.status
        self.session = answer.header("x-perdure-session") or self.session
        if answer.complete:
            self.last_byte_at = time.monotonic()


@dataclass(eq=False)
class Conversation:
    protocol: Protocol
    name: str = ""
    """The session id this client mints; empty: it sends none."""
    model: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0
    session: str = ""
    """The session of its turns; known to it from the first answer on."""

    def __post_init__(self) -> None:
        self.model = self.model or ("claude-sonnet-4-6" if self.protocol == "messages" else "gpt-5")

    @property
    def expected_session(self) -> str:
        """What can be known of the id without any answer: that of a session its client named."""
        return derived_id(ID_HEADERS[self.protocol], self.name) if self.name else ""

    def send(self, client: RawClient, attempt: Attempt, *, stream: bool) -> None:
        attempt.sent_at = time.monotonic()
        client.send("POST", PATHS[self.protocol], self._headers(attempt), self._body(attempt.text, stream))

    def exchange(self, client: RawClient, attempt: Attempt, *, stream: bool) -> RawAnswer:
        """Send a turn, read what comes of the answer, and go on from it if it is whole."""
        self.send(client, attempt, stream=stream)
        if client.read_first_byte():
            attempt.first_byte_at = time.monotonic()
        answer = client.read()
        attempt.note(answer)
        if answer.complete and answer.status == 200:
            self.believe(attempt, answer)
        return answer

    def believe(self, attempt: Attempt, answer: RawAnswer) -> None:
        """The turn was answered: it and its answer are what the next one continues."""
        spoken = _STREAMED[self.protocol] if _is_stream(answer) else _WHOLE[self.protocol]
        self.history += [self._user(attempt.text), *spoken(answer.body)]
        self.turns += 1

    def _headers(self, attempt: Attempt) -> list[tuple[str, str]]:
        headers = [("content-type", "application/json"), ("user-agent", f"{attempt.mark}/1")]
        if self.protocol == "messages":
            headers += [("anthropic-version", "2023-06-01"), ("x-api-key", API_KEY)]
        else:
            headers.append(("authorization", f"Bearer {API_KEY}"))
        if self.name:
            headers.append((ID_HEADERS[self.protocol], self.name))
        return headers

    def _body(self, text: str, stream: bool) -> bytes:
        messages = [*self.history, self._user(text)]
        body: dict[str, Any] = {"model": self.model, "stream": stream}
        if self.protocol == "messages":
            # The cache breakpoint stands on the newest block only, as coding agents move it.
            block = messages[-1]["content"][0] | {"cache_control": {"type": "ephemeral"}}
            body |= {"max_tokens": 8192, "messages": [*self.history, {"role": "user", "content": [block]}]}
        elif self.protocol == "chat":
            body |= {"messages": messages} | ({"stream_options": {"include_usage": True}} if stream else {})
        else:
            body |= {"input": messages}
        return json.dumps(body).encode()

    def _user(self, text: str) -> dict[str, Any]:
        content = [{"type": "text", "text": text}] if self.protocol == "messages" else text
        return {"role": "user", "content": content}


def _is_stream(answer: RawAnswer) -> bool:
    return answer.header("content-type").startswith("text/event-stream")


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.split(b"\n"):
        data = line.removeprefix(b"data: ")
        if data != line and data != b"[DONE]":
            yield json.loads(data)


def _messages_streamed(body: bytes) -> list[dict[str, Any]]:
    deltas = [event["delta"]["text"] for event in _events(body) if event["type"] == "content_block_delta"]
    return [{"role": "assistant", "content": [{"type": "text", "text": "".join(deltas)}]}]


def _messages_whole(body: bytes) -> list[dict[str, Any]]:
    blocks = json.loads(body)["content"]
    return [{"role": "assistant", "content": [{"type": "text", "text": block["text"]} for block in blocks]}]


def _chat_streamed(body: bytes) -> list[dict[str, Any]]:
    deltas = [choice["delta"].get("content") or "" for event in _events(body) for choice in event["choices"]]
    return [{"role": "assistant", "content": "".join(deltas)}]


def _chat_whole(body: bytes) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": json.loads(body)["choices"][0]["message"]["content"]}]


def _responses_streamed(body: bytes) -> list[dict[str, Any]]:
    return next(list(e["response"]["output"]) for e in _events(body) if e["type"] == "response.completed")


def _responses_whole(body: bytes) -> list[dict[str, Any]]:
    return list(json.loads(body)["output"])


_Spoken = Callable[[bytes], list[dict[str, Any]]]
_STREAMED: Final[dict[Protocol, _Spoken]] = {
    "messages": _messages_streamed,
    "chat": _chat_streamed,
    "responses": _responses_streamed,
}
_WHOLE: Final[dict[Protocol, _Spoken]] = {
    "messages": _messages_whole,
    "chat": _chat_whole,
    "responses": _responses_whole,
}
