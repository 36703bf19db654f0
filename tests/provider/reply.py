"""What the model says to a dialog, before it has a wire format; and the two things a wire format makes of it.

One rule: pure and deterministic: the same seed, request number and dialog give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from tests.provider.dialog import Dialog
from tests.provider.prompt_cache import CHARACTERS_PER_TOKEN, output_tokens
from tests.provider.script import Script
from worker.protocol import Usage

BIG_TEXT_CHARACTERS: Final = 64 * 1024
"""From here on a text is streamed in large deltas instead of words: what matters then is volume."""
BIG_DELTA_CHARACTERS: Final = 4 * 1024
FIRST_CREATED_AT: Final = 1_760_000_000
"""Answers are dated by their number from this Unix time on, not by a clock: equal runs give equal bytes."""


class Event(NamedTuple):
    """One server-sent event."""

    data: bytes
    tells: Usage | None = None
    """The usage as a reader knows it after this event."""
    is_delta: bool = False
    """Carries text of the answer."""
    is_last: bool = False
    """Ends the answer for whoever knows the protocol."""


@dataclass(frozen=True, kw_only=True)
class Canned:
    """A whole answer, ready to send.  A list of bodies is sent as so many chunks."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = (("content-type", "application/json"),)
    body: bytes | Sequence[bytes] = b""
    tells: Usage | None = None


@dataclass(frozen=True, kw_only=True)
class Verbatim:
    """Bytes instead of an answer, from the status line on: what a program sends that is broken, odd or malicious."""

    data: bytes | Sequence[bytes]
    """Pieces are written one after the other."""
    then: Literal["keep", "close", "reset"] = "keep"
    """What becomes of the connection: the next request is read from it, it ends, or it breaks."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    name: str
    arguments: Mapping[str, str]

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments)


@dataclass(frozen=True, kw_only=True)
class Reply:
    seed: int
    number: int
    dialog: Dialog
    text: str
    tool: ToolCall | None
    usage: Usage
    tells_usage: bool
    stop: Literal["end", "tool", "length"]
    breaks: bool
    """Ends with an error event after its first delta."""

    def id(self, prefix: str, digits: int = 24) -> str:
        return prefix + hashlib.sha256(f"{self.seed}/{self.number}/{prefix}".encode()).hexdigest()[:digits]

    @property
    def created_at(self) -> int:
        return FIRST_CREATED_AT + self.number

    @property
    def told_usage(self) -> Usage | None:
        return self.usage if self.tells_usage else None

    def deltas(self) -> Iterator[str]:
        if len(self.text) < BIG_TEXT_CHARACTERS:
            yield from re.findall(r"\s*\S+", self.text)
        else:
            for start in range(0, len(self.text), BIG_DELTA_CHARACTERS):
                yield self.text[start : start + BIG_DELTA_CHARACTERS]


def compose(dialog: Dialog, script: Script, prompt: Usage, seed: int, number: int) -> Reply:
    """Let the model speak.  `prompt` is the usage of the prompt alone."""
    token = "tok-" + hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:12]
    tool = _tool_call(dialog, token) if dialog.tool_results < script.tool_calls else None
    text = "Working." if tool else _text(script, token)
    stop: Literal["end", "tool", "length"] = "tool" if tool else "end"
    if dialog.output_tokens_max is not None and output_tokens(text) > dialog.output_tokens_max:
        # One character less than the tokens hold, because counting rounds up.
        text = text[: max(0, dialog.output_tokens_max * CHARACTERS_PER_TOKEN - 1)]
        tool, stop = None, "length"
    spoken = output_tokens(text + (tool.arguments_json if tool else ""))
    return Reply(
        seed=seed,
        number=number,
        dialog=dialog,
        text=text,
        tool=tool,
        usage=Usage(
            input_tokens=prompt.input_tokens,
            cache_read_tokens=prompt.cache_read_tokens,
            cache_write_5m_tokens=prompt.cache_write_5m_tokens,
            cache_write_1h_tokens=prompt.cache_write_1h_tokens,
            output_tokens=spoken,
        ),
        tells_usage=not script.no_usage,
        stop=stop,
        breaks=script.sse_error,
    )


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _text(script: Script, token: str) -> str:
    """Holds the token, so that no two conversations are answered alike, and a character of more than one byte."""
    if script.big_bytes:
        return (token + " ").ljust(script.big_bytes, "x")[: script.big_bytes]
    if script.words:
        return " ".join([token, *(f"word{i}" for i in range(2, script.words + 1))])
    return f"Done ✓ {token} is my answer."


def _tool_call(dialog: Dialog, token: str) -> ToolCall:
    """A harmless call of the shell if the client has one, else of its first tool."""
    functions = [tool.get("function", tool) for tool in dialog.tools]
    named = {str(f["name"]): f for f in functions if isinstance(f, dict) and "name" in f}
    name = next((known for known in _SHELLS if known in named), next(iter(named), "Bash"))
    schema = named.get(name, {})
    parameters = schema.get("input_schema") or schema.get("parameters") or {}
    argument = "cmd" if "cmd" in parameters.get("properties", {}) else "command"
    return ToolCall(name=name, arguments={argument: f"echo {token}"})


_SHELLS: Final = ("Bash", "bash", "shell", "exec_command")
