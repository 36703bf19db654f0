"""Clients for system and crash tests: conversations over the official SDKs, and HTTP on a bare socket.

One rule: a client believes only what it has read: a conversation grows by an answer that came to its end, and by
nothing else, so that `say` with the same text after a failure sends the same request again.

Theory.  The three talks keep their history as their users do: Anthropic's with the cache breakpoint on the newest user
message, OpenAI's with the whole input, or with `previous_response_id` alone.  `RawClient` is for tests that care about
single bytes: it stops reading exactly where it is told, knows where a body ends, and says whether it got there.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import anthropic
import openai

from worker.protocol import Usage

API_KEY: Final = "key-for-tests"
TIMEOUT_SECONDS: Final = 20.0
"""Longest wait of a client for one answer: a test that needs more hangs."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One answer as the SDK gave it."""

    text: str
    session: str
    """`x-perdure-session`, empty when the response has none."""
    usage: Usage | None
    """In four disjoint kinds, whatever the provider; None if it told none."""
    tool_call_ids: tuple[str, ...]
    headers: Mapping[str, str]
    """Names in lower case."""


class _Talk:
    """A conversation: what all three kinds have in common."""

    _client: anthropic.Anthropic | openai.OpenAI

    def __init__(self, model: str) -> None:
        self.model = model
        self.history: list[dict[str, Any]] = []

    def say(self, text: str, stream: bool = False) -> Said:
        """Send a user's text and read the answer to its end."""
        return self._exchange([self._user(text)], stream)

    def answer_tools(self, said: Said, result: str = "tool-ok", stream: bool = False) -> Said:
        """Send the results of the tool calls of an answer."""
        return self._exchange(self._tool_results(said.tool_call_ids, result), stream)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, news: list[dict[str, Any]], stream: bool) -> Said:
        said, answer = self._send([*self.history, *news], stream)
        self.history += [*news, *answer]
        return said

    def _user(self, text: str) -> dict[str, Any]:
        return {"role": "user", "content": text}

    def _tool_results(self, call_ids: Iterable[str], result: str) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _send(self, messages: list[dict[str, Any]], stream: bool) -> tuple[Said, list[dict[str, Any]]]:
        raise NotImplementedError


class AnthropicTalk(_Talk):
    """As Claude Code talks: session id in its header, the cache breakpoint on the newest message."""

    _client: anthropic.Anthropic

    def __init__(
        self,
        base_url: str,
        session_id: str | None = None,
        *,
        api_key: str = API_KEY,
        model: str = "claude-sonnet-4-6",
        cache_ttl: str | None = "5m",
        max_retries: int = 0,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        self._cache_ttl = cache_ttl
        self._extra = dict(extra or {})
        self._client = anthropic.Anthropic(
            base_url=base_url,
            api_key=api_key,
            max_retries=max_retries,
            timeout=TIMEOUT_SECONDS,
            default_headers=_headers(headers, "x-claude-code-session-id", session_id),
            http_client=anthropic.DefaultHttpxClient(trust_env=False),
        )

    def _user(self, text: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": text}]}

    def _tool_results(self, call_ids: Iterable[str], result: str) -> list[dict[str, Any]]:
        return [
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": each, "content": result} for each in call_ids],
            }
        ]

    def _send(self, messages: list[dict[str, Any]], stream: bool) -> tuple[Said, list[dict[str, Any]]]:
        sent: Any = messages if self._cache_ttl is None else [*messages[:-1], _marked(messages[-1], self._cache_ttl)]
        wish: Any = {"max_tokens": 8192, **self._extra, "model": self.model, "messages": sent}
        if stream:
            with self._client.messages.stream(**wish) as events:
                message, headers = events.get_final_message(), events.response.headers
                events.until_done()
        else:
            raw = self._client.messages.with_raw_response.create(**wish)
            message, headers = raw.parse(), raw.headers
        if message.stop_reason is None:
            raise Truncated("no stop_reason")
        content = [_sendable(block) for block in message.content]
        said = Said(
            text="".join(block.text for block in message.content if block.type == "text"),
            session=headers.get("x-perdure-session", ""),
            usage=_anthropic_usage(message.usage),
            tool_call_ids=tuple(block.id for block in message.content if block.type == "tool_use"),
            headers=_plain(headers),
        )
        return said, [{"role": "assistant", "content": content}]


class ChatTalk(_Talk):
    """Chat Completions with the whole history, asking for usage in streams."""

    _client: openai.OpenAI

    def __init__(
        self,
        base_url: str,
        session_id: str | None = None,
        *,
        api_key: str = API_KEY,
        model: str = "gpt-5",
        max_retries: int = 0,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        self._extra = dict(extra or {})
        self._client = _openai_client(base_url, api_key, max_retries, _headers(headers, "session-id", session_id))

    def _tool_results(self, call_ids: Iterable[str], result: str) -> list[dict[str, Any]]:
        return [{"role": "tool", "tool_call_id": each, "content": result} for each in call_ids]

    def _send(self, messages: list[dict[str, Any]], stream: bool) -> tuple[Said, list[dict[str, Any]]]:
        wish: Any = {**self._extra, "model": self.model, "messages": messages}
        if stream:
            wish["stream"] = True
            wish.setdefault("stream_options", {"include_usage": True})
        raw = self._client.chat.completions.with_raw_response.create(**wish)
        if stream:
            message, usage = _gather_chunks(raw.parse())
        else:
            completion = raw.parse()
            message, usage = completion.choices[0].message.to_dict(mode="json"), completion.usage
        answer = {name: message[name] for name in ("role", "content", "tool_calls") if message.get(name) is not None}
        said = Said(
            text=answer.get("content", ""),
            session=raw.headers.get("x-perdure-session", ""),
            usage=usage and _openai_usage(usage.prompt_tokens, usage.prompt_tokens_details, usage.completion_tokens),
            tool_call_ids=tuple(call["id"] for call in answer.get("tool_calls", [])),
            headers=_plain(raw.headers),
        )
        return said, [answer]


class ResponsesTalk(_Talk):
    """Responses with the whole input, or `stateful`: only what is new, after `previous_response_id`."""

    _client: openai.OpenAI

    def __init__(
        self,
        base_url: str,
        session_id: str | None = None,
        *,
        api_key: str = API_KEY,
        model: str = "gpt-5",
        stateful: bool = False,
        max_retries: int = 0,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        self._stateful = stateful
        self._previous: str | None = None
        self._seen = 0
        self._extra = dict(extra or {})
        self._client = _openai_client(base_url, api_key, max_retries, _headers(headers, "session-id", session_id))

    def _tool_results(self, call_ids: Iterable[str], result: str) -> list[dict[str, Any]]:
        return [{"type": "function_call_output", "call_id": each, "output": result} for each in call_ids]

    def _send(self, messages: list[dict[str, Any]], stream: bool) -> tuple[Said, list[dict[str, Any]]]:
        wish: Any = {**self._extra, "model": self.model, "input": messages[self._seen :]}
        if self._previous is not None:
            wish["previous_response_id"] = self._previous
        if stream:
            wish["stream"] = True
        raw = self._client.responses.with_raw_response.create(**wish)
        response = _last_response(raw.parse()) if stream else raw.parse()
        output = [item.to_dict(mode="json") for item in response.output]
        if self._stateful:
            self._previous = response.id
            self._seen = len(messages) + len(output)
        usage = response.usage
        said = Said(
            text=response.output_text,
            session=raw.headers.get("x-perdure-session", ""),
            usage=usage and _openai_usage(usage.input_tokens, usage.input_tokens_details, usage.output_tokens),
            tool_call_ids=tuple(item["call_id"] for item in output if item["type"] == "function_call"),
            headers=_plain(raw.headers),
        )
        return said, output


class Truncated(Exception):
    """A stream ended without the event that ends an answer.  Some SDKs take that for a normal end."""


def _openai_client(base_url: str, api_key: str, max_retries: int, headers: dict[str, str]) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=base_url.rstrip("/") + "/v1",
        api_key=api_key,
        max_retries=max_retries,
        timeout=TIMEOUT_SECONDS,
        default_headers=headers,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def _headers(more: Mapping[str, str] | None, name: str, session_id: str | None) -> dict[str, str]:
    return {**(more or {}), **({name: session_id} if session_id is not None else {})}


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _marked(message: dict[str, Any], ttl: str) -> dict[str, Any]:
    """A copy with the cache breakpoint on its last block; the history keeps none, because the breakpoint moves."""
    control = {"type": "ephemeral"} if ttl == "5m" else {"type": "ephemeral", "ttl": ttl}
    *blocks, last = message["content"]
    return {**message, "content": [*blocks, {**last, "cache_control": control}]}


def _sendable(block: Any) -> dict[str, Any]:
    """A content block as clients send it back: without what only answers have."""
    fields = ("type", "text") if block.type == "text" else ("type", "id", "name", "input")
    return {name: getattr(block, name) for name in fields}


def _anthropic_usage(usage: Any) -> Usage | None:
    if usage is None:
        return None
    written = usage.cache_creation_input_tokens or 0
    long_lived = usage.cache_creation.ephemeral_1h_input_tokens if usage.cache_creation else 0
    return Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cache_read_input_tokens or 0,
        cache_write_5m_tokens=written - long_lived,
        cache_write_1h_tokens=long_lived,
        output_tokens=usage.output_tokens,
    )


def _openai_usage(prompt_tokens: int, details: Any, output_tokens: int) -> Usage:
    cached = (details.cached_tokens or 0) if details else 0
    return Usage(input_tokens=prompt_tokens - cached, cache_read_tokens=cached, output_tokens=output_tokens)


def _gather_chunks(chunks: Any) -> tuple[dict[str, Any], Any]:
    """The message and usage of a stream of chat chunks."""
    content, calls, usage, finished = "", dict[int, dict[str, Any]](), None, False
    with chunks:
        for chunk in chunks:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                finished = finished or choice.finish_reason is not None
                content += choice.delta.content or ""
                for part in choice.delta.tool_calls or []:
                    _add_call(calls, part)
    if not finished:
        raise Truncated("no finish_reason")
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    return message | ({"tool_calls": list(calls.values())} if calls else {}), usage


def _add_call(calls: dict[int, dict[str, Any]], part: Any) -> None:
    if part.id:
        calls[part.index] = {
            "id": part.id,
            "type": "function",
            "function": {"name": part.function.name, "arguments": ""},
        }
    calls[part.index]["function"]["arguments"] += part.function.arguments or ""


def _last_response(events: Any) -> Any:
    with events:
        for event in events:
            if event.type in ("response.completed", "response.incomplete"):
                response = event.response
                break
            if event.type in ("response.failed", "error"):
                raise Truncated(event.type)
        else:
            raise Truncated("no response.completed")
        # To the end of the body, so that a test that goes on finds the exchange finished.
        for _ in events:
            pass
    return response


@dataclass(frozen=True, kw_only=True)
class RawAnswer:
    """What a bare socket read of one response."""

    status: int
    """0: not even a whole header block."""
    headers: tuple[tuple[str, str], ...]
    body: bytes
    """Without its transfer coding, otherwise as it came."""
    complete: bool
    """Read to the last byte, as its framing says."""
    fault: str
    """Why it is not complete: "closed", "reset", "deadline" or "framing"; else empty."""

    def header(self, name: str) -> str:
        return next((value for given, value in self.headers if given.lower() == name.lower()), "")

    def json(self) -> Any:
        return json.loads(self.body)


class _Cut(Exception):
    """No more bytes; the argument is the fault."""


class RawClient:
    """One HTTP/1.1 connection.  Every call has a deadline; after a fault it is of no more use."""

    def __init__(self, host: str, port: int, *, deadline_seconds: float = 10.0) -> None:
        self._deadline_seconds = deadline_seconds
        self._host = f"{host}:{port}"
        self._socket = socket.create_connection((host, port), timeout=deadline_seconds)
        self._read = bytearray()
        """Bytes of the current response, from its first one on."""
        self._method = ""

    def send(
        self, method: str, target: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None
    ) -> None:
        """Send a request; Host and Content-Length are added unless given."""
        given = {name.lower() for name, _ in headers}
        fields = list(headers)
        if "host" not in given:
            fields.insert(0, ("Host", self._host))
        if body is not None and not given & {"content-length", "transfer-encoding"}:
            fields.append(("Content-Length", str(len(body))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self._method = method
        self._socket.settimeout(self._deadline_seconds)
        self._socket.sendall(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (body or b""))

    def post(self, target: str, value: Any, headers: Sequence[tuple[str, str]] = ()) -> None:
        """Send a JSON body with the headers of an Anthropic client."""
        usual = (("content-type", "application/json"), ("anthropic-version", "2023-06-01"), ("x-api-key", API_KEY))
        given = {name.lower() for name, _ in headers}
        fields = [*(field for field in usual if field[0] not in given), *headers]
        self.send("POST", target, fields, json.dumps(value).encode())

    def read_first_byte(self) -> bytes:
        """Take exactly one byte of the response from the kernel; empty if none comes."""
        try:
            self._fill(1, self._deadline(), at_most=1)
        except _Cut:
            return b""
        return bytes(self._read[:1])

    def read_until(self, needle: bytes) -> bool:
        """Read on until the response holds these bytes; False if it ends before."""
        deadline = self._deadline()
        try:
            while needle not in self._read:
                self._fill(len(self._read) + 1, deadline)
        except _Cut:
            return False
        return True

    def read(self) -> RawAnswer:
        """Read to the last byte of the body and no further, or to the cut."""
        deadline = self._deadline()
        status, headers, body, fault = 0, tuple[tuple[str, str], ...](), bytearray(), ""
        try:
            status, headers, start = self._read_head(deadline)
            end = self._read_body(status, headers, start, body, deadline)
            del self._read[:end]
        except _Cut as cut:
            fault = str(cut)
        except ValueError:
            fault = "framing"
        return RawAnswer(status=status, headers=headers, body=bytes(body), complete=not fault, fault=fault)

    def ask(
        self, method: str, target: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None
    ) -> RawAnswer:
        """Send, and read the whole answer."""
        self.send(method, target, headers, body)
        return self.read()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deadline(self) -> float:
        return time.monotonic() + self._deadline_seconds

    def _fill(self, size: int, deadline: float, at_most: int = 65536) -> None:
        """Have at least so many bytes of the response."""
        while len(self._read) < size:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(at_most)
            except TimeoutError:
                raise _Cut("deadline") from None
            except ConnectionError:
                raise _Cut("reset") from None
            if not data:
                raise _Cut("closed")
            self._read += data

    def _find(self, needle: bytes, start: int, deadline: float) -> int:
        while (found := self._read.find(needle, start)) < 0:
            self._fill(len(self._read) + 1, deadline)
        return found

    def _read_head(self, deadline: float) -> tuple[int, tuple[tuple[str, str], ...], int]:
        """Status, headers, and where the body starts; interim responses are passed over."""
        end = self._find(b"\r\n\r\n", 0, deadline)
        line, *fields = self._read[:end].decode("latin-1").split("\r\n")
        version, status, *_ = line.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        headers = tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
        if 100 <= int(status) < 200:
            del self._read[: end + 4]
            return self._read_head(deadline)
        return int(status), headers, end + 4

    def _read_body(
        self, status: int, headers: Sequence[tuple[str, str]], start: int, body: bytearray, deadline: float
    ) -> int:
        """Where the body ends.  `body` also holds what came before a cut."""
        known = {name.lower(): value for name, value in headers}
        if self._method == "HEAD" or status in (204, 304):
            return start
        if "chunked" in known.get("transfer-encoding", "").lower():
            return self._read_chunks(start, body, deadline)
        return self._read_bytes(
            start, body, deadline, int(known["content-length"]) if "content-length" in known else None
        )

    def _read_bytes(self, start: int, body: bytearray, deadline: float, size: int | None) -> int:
        """A body with a length, or without one: up to the close."""
        try:
            self._fill(start + size if size is not None else 2**62, deadline)
        except _Cut as cut:
            body += self._read[start:]
            if size is not None or str(cut) != "closed":
                raise
            return len(self._read)
        assert size is not None
        body += self._read[start : start + size]
        return start + size

    def _read_chunks(self, position: int, body: bytearray, deadline: float) -> int:
        while True:
            end = self._find(b"\r\n", position, deadline)
            size = int(self._read[position:end].partition(b";")[0], 16)
            position = end + 2
            if size == 0:
                break
            try:
                self._fill(position + size + 2, deadline)
            except _Cut:
                body += self._read[position : position + size]
                raise
            body += self._read[position : position + size]
            position += size + 2
        # Trailers, if any, and the empty line.
        while (end := self._find(b"\r\n", position, deadline)) != position:
            position = end + 2
        return end + 2
