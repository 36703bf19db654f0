"""OpenAI's Chat Completions API, and the many servers that imitate it.

One rule: in a message the text stands before the tool calls, whatever order they arrived in.

Theory of operation.  A stream is chunks of the same shape: deltas of one message's fields, then a finish reason, then
(only if asked for) a chunk without choices that holds the usage, then `[DONE]`.  Imitators leave out the last two,
send ids again in every chunk or not at all, so a finish reason and a clean end will do for an end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from daemon.providers.base import ABSENT, ASSISTANT, USER, Answer, Turn, Unit
from daemon.providers.body import CommonBody, Named, hints_in, is_streamed, limit_in, model_of
from daemon.providers.fields import Field, Object, id_at, natural_at, object_at, object_of, objects_in, text_at
from daemon.providers.normal import (
    LEFT_OUT,
    SYSTEM_ROLES,
    Draft,
    Reading,
    call_mark,
    content_text,
    is_user_turn,
    other_forms,
    result_text,
    said,
    squeeze,
    unreadable,
)
from daemon.providers.setup import leading_texts
from daemon.providers.sse import Event
from daemon.providers.usage import Tally

RESULT_ROLES: Final = frozenset({"tool", "function"})

# Places in a message: its text, its refusal, its calls.
TEXT: Final = 0
REFUSAL: Final = 1
CALLS: Final = 2

THOUGHTS_BEGIN: Final = "<think>"
THOUGHTS_END: Final = "</think>"

TOOL_NAME_PATHS: Final = (("function", "name"), ("custom", "name"), ("type",))


class Body(CommonBody):
    messages: Field = None
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT


def turn_of(body: Body, minted: Named) -> Turn:
    entries = tuple(body.messages) if isinstance(body.messages, list) else ()
    return Turn(
        protocol="chat",
        model=model_of(body),
        stream=is_streamed(body),
        message_count=len(entries),
        user_turn=is_user_turn(entries, read_entry),
        minted=minted,
        hints=hints_in(body),
        output_limit=limit_in(body.max_completion_tokens, body.max_tokens),
        tools=body.tools,
        entries=entries,
    )


def system_texts(turn: Turn) -> Iterator[str]:
    return leading_texts(turn.entries)


def read_entry(entry: msgspec.Raw) -> Reading:
    """One message of a request, in normal form."""
    message = object_of(entry)
    if message is None:
        return unreadable(entry)
    role = text_at(message, "role")
    if role in SYSTEM_ROLES:
        return LEFT_OUT
    if role in RESULT_ROLES:
        call_id = text_at(message, "tool_call_id") or text_at(message, "name")
        return Reading(USER, result_text(call_id, message.get("content")), has_result=True)
    if role == "assistant":
        return _read_assistant(message)
    return Reading(USER, content_text(message.get("content"), USER))


def _read_assistant(message: Object) -> Reading:
    calls = _call_ids(message)
    spoken = content_text(message.get("content"), ASSISTANT) + said(text_at(message, "refusal"), ASSISTANT)
    return Reading(ASSISTANT, spoken + "".join(map(call_mark, calls)), has_call=bool(calls))


def _call_ids(message: Object) -> list[str]:
    """The ids of a message's calls; the old single `function_call` has none and is known by its name."""
    ids = [text_at(call, "id") for call in objects_in(message.get("tool_calls"))]
    function = object_at(message, "function_call")
    return [*ids, text_at(function, "name")] if function else ids


def read_document(document: Object) -> Answer:
    """A whole answer that was not streamed."""
    tally = _tally_of(document)
    failed = document.get("error") is not None
    messages = [object_at(choice, "message") for choice in objects_in(document.get("choices"))]
    readings = [_read_assistant(message) for message in messages]
    unit = None if failed or len(messages) != 1 else _unit(messages[0], readings[0])
    return Answer(
        usage=tally.inclusive(),
        finished=not failed,
        failed=failed,
        unit=unit,
        other_forms=other_forms(unit, [_without_thoughts(unit)]),
        text_only=not any(reading.has_call for reading in readings),
        response_id=id_at(document, "id"),
    )


def _unit(message: Object, reading: Reading) -> Unit | None:
    """A call without an id gets one from the client, which cannot be known here."""
    return Unit(ASSISTANT, reading.text) if reading.text and all(_call_ids(message)) else None


def _without_thoughts(unit: Unit | None) -> Unit | None:
    """Where a server writes the reasoning into the text, most clients cut it out before they send the text back."""
    if unit is None or not unit.text.startswith(THOUGHTS_BEGIN):
        return None
    _, end, rest = unit.text.partition(THOUGHTS_END)
    return Unit(unit.role, rest) if end and rest else None


def _tally_of(source: Object) -> Tally:
    tally = Tally()
    _note_usage(tally, source)
    return tally


def _note_usage(tally: Tally, source: Object) -> None:
    tally.note_inclusive(object_at(source, "usage"), prompt="prompt", answer="completion")


class Stream:
    """A streamed answer, chunk by chunk."""

    def __init__(self) -> None:
        self.terminal = False
        self._failed = False
        self._has_finish_reason = False
        self._response_id = ""
        self._tally = Tally()
        self._draft = Draft()
        self._call_ids: dict[int, str] = {}

    def hear(self, event: Event) -> None:
        if event.data is not None and event.data.startswith(b"[DONE]"):
            self.terminal = True
            return
        chunk = object_of(event.data) if event.data is not None else None
        self._draft.known &= chunk is not None
        chunk = chunk or {}
        self._failed |= chunk.get("error") is not None or event.name == "error"
        self._response_id = self._response_id or id_at(chunk, "id")
        _note_usage(self._tally, chunk)
        for choice in objects_in(chunk.get("choices")):
            self._hear_choice(choice)

    def answer(self, whole: bool) -> Answer:
        ended = self.terminal or (whole and self._has_finish_reason)
        finished = ended and not self._failed
        unit = self._draft.unit() if finished and all(self._call_ids.values()) else None
        return Answer(
            usage=self._tally.inclusive(),
            finished=finished,
            failed=self._failed,
            unit=unit,
            other_forms=other_forms(unit, [_without_thoughts(unit)]),
            text_only=not self._draft.has_call,
            response_id=self._response_id,
        )

    def _hear_choice(self, choice: Object) -> None:
        if choice.get("index", 0) != 0:
            # Of several choices the client sends back one, and does not say which.
            self._draft.known = False
        self._has_finish_reason |= bool(text_at(choice, "finish_reason"))
        delta = object_at(choice, "delta")
        self._draft.add((TEXT,), content_text(delta.get("content"), ASSISTANT))
        self._draft.add((REFUSAL,), squeeze(text_at(delta, "refusal")))
        for call in objects_in(delta.get("tool_calls")):
            self._hear_call(call)
        function = text_at(object_at(delta, "function_call"), "name")
        if function:
            self._draft.call((CALLS,), function)

    def _hear_call(self, call: Object) -> None:
        index, call_id = natural_at(call, "index"), text_at(call, "id")
        self._draft.has_call = True
        if index is None:
            self._draft.known = False
        else:
            self._call_ids[index] = call_id or self._call_ids.get(index, "")
            self._draft.put((CALLS, index), call_mark(self._call_ids[index]))
