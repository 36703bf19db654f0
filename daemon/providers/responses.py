"""OpenAI's Responses API: its turns, its event stream, its answers.

One rule: an item is read by the same function whether it is history or an answer.

Theory of operation.  A conversation is a flat list of items: messages, calls, outputs, reasoning and more kinds every
year, so an item of an unknown kind is known by its `call_id` if it has one and by its type if not.  A stream grows
items piece by piece, repeats each one complete when it is done, and ends with an event that holds the whole response.
Some servers leave the items out of that last event, so the complete items are kept until it comes.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from daemon.providers.base import ASSISTANT, MODEL_CHARACTERS_MAX, USER, Answer, Turn, Unit
from daemon.providers.fields import (
    Field,
    Object,
    id_at,
    natural_at,
    object_at,
    object_of,
    objects_in,
    text_at,
    value_of,
)
from daemon.providers.normal import (
    LEFT_OUT,
    SYSTEM_ROLES,
    Draft,
    Reading,
    call_mark,
    content_text,
    is_user_turn,
    mark,
    merged,
    result_text,
    unreadable,
)
from daemon.providers.sse import Event
from daemon.providers.usage import Tally

ENDED: Final = frozenset({"completed", "incomplete"})
"""States of a response that is an answer; the others are on their way, cancelled or failed."""
LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
HEARD_EVENTS: Final = LAST_EVENTS | {"response.created", "response.output_item.done"}
"""The others, nearly all of a stream, only grow what these repeat: they are not even decoded."""


class _Body(msgspec.Struct):
    model: Field = None
    stream: Field = None
    input: Field = None
    previous_response_id: Field = None
    conversation: Field = None


_decoder: Final = msgspec.json.Decoder(_Body)
_NULL: Final = msgspec.Raw(b"null")


def parse_turn(body: bytes) -> Turn:
    """Raises ValueError or RecursionError if the body is not a JSON object."""
    head = _decoder.decode(body)
    entries = _entries(head.input)
    state_id = _state_id(head)
    return Turn(
        protocol="responses",
        model=head.model[:MODEL_CHARACTERS_MAX] if isinstance(head.model, str) else "",
        stream=head.stream is True,
        message_count=len(entries),
        user_turn=is_user_turn(entries, read_entry),
        has_state=bool(state_id),
        state_id=id_at({"id": state_id}, "id"),
        entries=entries,
    )


def _entries(source: Field) -> tuple[msgspec.Raw, ...]:
    if isinstance(source, str):
        return (msgspec.Raw(msgspec.json.encode({"role": "user", "content": source})),)
    return tuple(source) if isinstance(source, list) else ()


def _state_id(head: _Body) -> str:
    if isinstance(head.previous_response_id, str) and head.previous_response_id:
        return head.previous_response_id
    if isinstance(head.conversation, str):
        return head.conversation
    if isinstance(head.conversation, dict):
        conversation_id = value_of(head.conversation.get("id", _NULL))
        return conversation_id if isinstance(conversation_id, str) else ""
    return ""


def read_entry(entry: msgspec.Raw) -> Reading:
    """One item of a request, in normal form."""
    item = object_of(entry)
    return unreadable(entry) if item is None else _read_item(item)


def _read_item(item: Object) -> Reading:
    kind, role, call_id = text_at(item, "type"), text_at(item, "role"), text_at(item, "call_id")
    if role in SYSTEM_ROLES or kind == "reasoning":
        return LEFT_OUT
    if role or kind == "message":
        side = ASSISTANT if role == "assistant" else USER
        return Reading(side, content_text(item.get("content"), side))
    if kind.endswith("_output"):
        result = result_text(call_id or text_at(item, "id"), item.get("output"))
        return Reading(USER, result, has_result=True)
    is_call = kind.endswith("_call")
    return Reading(ASSISTANT, call_mark(call_id) if call_id else mark("item", kind), has_call=is_call)


def read_document(document: Object) -> Answer:
    """A whole response, as it is answered without a stream and at the end of one."""
    tally = Tally()
    tally.note_inclusive(object_at(document, "usage"), prompt="input", answer="output")
    status = text_at(document, "status")
    failed = status == "failed" or document.get("error") is not None
    readings = [_read_item(item) for item in objects_in(document.get("output"))]
    return Answer(
        usage=tally.inclusive(),
        finished=not failed,
        failed=failed,
        unit=_unit(readings) if status in ENDED and not failed else None,
        text_only=not any(reading.has_call for reading in readings),
        response_id=id_at(document, "id"),
    )


def _unit(readings: list[Reading]) -> Unit | None:
    """The items as one unit; outputs of the provider's own tools among them make two sides, which no answer has."""
    units = merged(Unit(reading.role, reading.text) for reading in readings)
    return units[0] if len(units) == 1 and units[0].role == ASSISTANT else None


class Stream:
    """A streamed answer, event by event."""

    def __init__(self) -> None:
        self.terminal = False
        self._answer = Answer()
        self._draft = Draft()

    def hear(self, event: Event) -> None:
        if event.name.startswith("response.") and event.name not in HEARD_EVENTS:
            return
        data = object_of(event.data) if event.data is not None else None
        self._draft.known &= data is not None
        data = data or {}
        kind = text_at(data, "type") or event.name
        response = object_at(data, "response")
        if kind == "response.created":
            self._answer = Answer(response_id=id_at(response, "id"))
        elif kind == "response.output_item.done":
            self._hear_item(data)
        elif kind in LAST_EVENTS:
            self.terminal = True
            self._answer = self._last_answer(response, failed=kind in ("response.failed", "error"))

    def answer(self, whole: bool) -> Answer:
        """`whole` says nothing here: a stream without its last event was cut, however politely."""
        return self._answer if self.terminal else replace(self._answer, text_only=not self._draft.has_call)

    def _hear_item(self, data: Object) -> None:
        index = natural_at(data, "output_index")
        reading = _read_item(object_at(data, "item"))
        self._draft.has_call |= reading.has_call
        if index is None or (reading.text and reading.role == USER):
            self._draft.known = False
        else:
            self._draft.put((index,), reading.text)

    def _last_answer(self, response: Object, *, failed: bool) -> Answer:
        """What the last event says, the items from the earlier ones where it leaves them out."""
        said = read_document(response)
        failed = failed or said.failed
        unit = said.unit if objects_in(response.get("output")) else self._draft.unit()
        return replace(
            said,
            finished=not failed,
            failed=failed,
            unit=None if failed else unit,
            text_only=said.text_only and not self._draft.has_call,
            response_id=said.response_id or self._answer.response_id,
        )
