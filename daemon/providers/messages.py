"""Anthropic's Messages API: its turns, its event stream, its answers.

One rule: a list of content blocks is read by the same function whether it is history or an answer.

Theory of operation.  A stream is `message_start` with the prompt's usage, then blocks by index, each started, grown
by deltas and stopped, then `message_delta` with the usage as it ended, then `message_stop`.  Only a block's start
tells its kind and a tool call's id; only text deltas matter after that.
"""

from __future__ import annotations

from typing import Final

import msgspec

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
    TEXT_PARTS,
    Draft,
    Reading,
    call_mark,
    is_user_turn,
    mark,
    part_text,
    result_text,
    said,
    squeeze,
    unreadable,
)
from daemon.providers.sse import Event
from daemon.providers.usage import Tally


class _Body(msgspec.Struct):
    model: Field = None
    stream: Field = None
    messages: Field = None
    metadata: Field = None


_decoder: Final = msgspec.json.Decoder(_Body)


def parse_turn(body: bytes) -> Turn:
    """Raises ValueError or RecursionError if the body is not a JSON object."""
    head = _decoder.decode(body)
    entries = tuple(head.messages) if isinstance(head.messages, list) else ()
    user = _user_claims(head.metadata)
    session_id = id_at(user, "session_id")
    return Turn(
        protocol="messages",
        model=head.model[:MODEL_CHARACTERS_MAX] if isinstance(head.model, str) else "",
        stream=head.stream is True,
        message_count=len(entries),
        user_turn=is_user_turn(entries, read_entry),
        minted=(("metadata.user_id.session_id", session_id),) if session_id else (),
        account_claim=id_at(user, "account_uuid"),
        entries=entries,
    )


def _user_claims(metadata: Field) -> Object:
    """`metadata.user_id` is one string by contract; some clients write a JSON object into it."""
    user_id = value_of(metadata["user_id"]) if isinstance(metadata, dict) and "user_id" in metadata else None
    return (object_of(user_id) if isinstance(user_id, str) else None) or {}


def read_entry(entry: msgspec.Raw) -> Reading:
    """One message of a request, in normal form."""
    message = object_of(entry)
    if message is None:
        return unreadable(entry)
    role = text_at(message, "role")
    if role in SYSTEM_ROLES:
        return LEFT_OUT
    return _read_content(message.get("content"), ASSISTANT if role == "assistant" else USER)


def _read_content(content: object, role: str) -> Reading:
    if isinstance(content, str):
        return Reading(role, said(content, role))
    blocks = objects_in(content)
    kinds = [text_at(block, "type") for block in blocks]
    return Reading(
        role,
        "".join(_block_text(block, role) for block in blocks),
        has_call=any(_is_call(kind) for kind in kinds),
        has_result="tool_result" in kinds,
    )


def _block_text(block: Object, role: str) -> str:
    kind = text_at(block, "type")
    if _is_call(kind):
        return call_mark(text_at(block, "id"))
    if kind == "tool_result":
        return result_text(text_at(block, "tool_use_id"), block.get("content"))
    if kind.endswith("tool_result"):
        # The provider's own tools: results are encrypted or huge, and never the client's to write.
        return mark("result", text_at(block, "tool_use_id"))
    return part_text(block, role)


def _is_call(kind: str) -> bool:
    """`tool_use`, `server_tool_use`, `mcp_tool_use`."""
    return kind.endswith("tool_use")


def read_document(document: Object) -> Answer:
    """A whole answer that was not streamed."""
    tally = Tally()
    tally.note_exclusive(object_at(document, "usage"))
    failed = document.get("error") is not None
    reading = _read_content(document.get("content"), ASSISTANT)
    return Answer(
        usage=tally.exclusive(),
        finished=not failed,
        failed=failed,
        unit=Unit(ASSISTANT, reading.text) if reading.text and not failed else None,
        text_only=not reading.has_call,
        response_id=id_at(document, "id"),
    )


class Stream:
    """A streamed answer, event by event."""

    def __init__(self) -> None:
        self.terminal = False
        self._failed = False
        self._response_id = ""
        self._tally = Tally()
        self._draft = Draft()

    def hear(self, event: Event) -> None:
        data = object_of(event.data) if event.data is not None else None
        self._draft.known &= data is not None
        data = data or {}
        match text_at(data, "type") or event.name:
            case "message_start":
                message = object_at(data, "message")
                self._response_id = id_at(message, "id")
                self._tally.note_exclusive(object_at(message, "usage"))
            case "content_block_start":
                self._start_block(data)
            case "content_block_delta":
                self._grow_block(data)
            case "message_delta":
                self._tally.note_exclusive(object_at(data, "usage"))
            case "message_stop":
                self.terminal = True
            case "error":
                self.terminal = self._failed = True

    def answer(self, whole: bool) -> Answer:
        """`whole` says nothing here: a stream without its last event was cut, however politely."""
        finished = self.terminal and not self._failed
        return Answer(
            usage=self._tally.exclusive(),
            finished=finished,
            failed=self._failed,
            unit=self._draft.unit() if finished else None,
            text_only=not self._draft.has_call,
            response_id=self._response_id,
        )

    def _start_block(self, data: Object) -> None:
        index = natural_at(data, "index")
        block = object_at(data, "content_block")
        kind = text_at(block, "type")
        if index is None:
            self._draft.known = False
        elif _is_call(kind):
            self._draft.call((index,), text_at(block, "id"))
        elif kind in TEXT_PARTS:
            self._draft.add((index,), squeeze(text_at(block, TEXT_PARTS[kind])))
        else:
            self._draft.put((index,), _block_text(block, ASSISTANT))

    def _grow_block(self, data: Object) -> None:
        index = natural_at(data, "index")
        text = text_at(object_at(data, "delta"), "text")
        if index is None:
            self._draft.known = False
        else:
            self._draft.add((index,), squeeze(text))
