"""Anthropic's Messages API: its turns, its event stream, its answers.

One rule: a list of content blocks is read by the same function whether it is history or an answer.

Theory of operation.  A stream is `message_start` with the prompt's usage, then blocks by index, each started, grown
by deltas and stopped, then `message_delta` with the usage as it ended, then `message_stop`.  Only a block's start
tells its kind and a tool call's id; only text deltas matter after that.
"""

from __future__ import annotations

from typing import Final

import msgspec

from daemon.providers.base import ABSENT, ASSISTANT, USER, Answer, Turn, Unit
from daemon.providers.body import CommonBody, Named, hints_in, is_streamed, limit_in, model_of
from daemon.providers.fields import (
    Field,
    Object,
    id_at,
    is_id,
    natural_at,
    object_at,
    object_of,
    objects_in,
    string_under,
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
    other_forms,
    part_text,
    result_text,
    said,
    squeeze,
    unreadable,
)
from daemon.providers.setup import texts_in
from daemon.providers.sse import Event
from daemon.providers.usage import Tally

BILLING: Final = "x-anthropic-billing-header:"
"""Claude Code's first system block: a checksum and a version for the provider, new with every request."""
TOOL_NAME_PATHS: Final = (("name",), ("type",))
PLAIN_BLOCKS: Final = frozenset({*TEXT_PARTS, "tool_use"})
"""What every client keeps of an answer: those that know nothing of the provider's own tools drop the other blocks."""


class Body(CommonBody):
    messages: Field = None
    system: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT


def turn_of(body: Body, minted: Named) -> Turn:
    entries = tuple(body.messages) if isinstance(body.messages, list) else ()
    account = string_under(body.metadata, ("user_id", "account_uuid"))
    return Turn(
        protocol="messages",
        model=model_of(body),
        stream=is_streamed(body),
        message_count=len(entries),
        user_turn=is_user_turn(entries, read_entry),
        minted=minted,
        hints=hints_in(body),
        account_claim=account if is_id(account) else "",
        output_limit=limit_in(body.max_tokens),
        thinks=string_under(body.thinking, ("type",)) == "enabled",
        system=body.system,
        tools=body.tools,
        entries=entries,
    )


def system_texts(turn: Turn) -> list[str]:
    """Messages of the role system among the others are reminders, and none of these."""
    return [text for text in texts_in(value_of(turn.system)) if not text.startswith(BILLING)]


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
    content = document.get("content")
    reading = _read_content(content, ASSISTANT)
    unit = _unit(reading, failed=failed)
    plain = [block for block in objects_in(content) if text_at(block, "type") in PLAIN_BLOCKS]
    return Answer(
        usage=tally.exclusive(),
        finished=not failed,
        failed=failed,
        unit=unit,
        other_forms=other_forms(unit, [_unit(_read_content(plain, ASSISTANT), failed=failed)]),
        text_only=not reading.has_call,
        response_id=id_at(document, "id"),
    )


def _unit(reading: Reading, *, failed: bool) -> Unit | None:
    return Unit(ASSISTANT, reading.text) if reading.text and not failed else None


class Stream:
    """A streamed answer, event by event."""

    def __init__(self) -> None:
        self.terminal = False
        self._failed = False
        self._response_id = ""
        self._tally = Tally()
        self._draft = Draft()
        self._plain = Draft()

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
        self._plain.known &= self._draft.known
        unit = self._draft.unit() if finished else None
        return Answer(
            usage=self._tally.exclusive(),
            finished=finished,
            failed=self._failed,
            unit=unit,
            other_forms=other_forms(unit, [self._plain.unit()] if finished else []),
            text_only=not self._draft.has_call,
            response_id=self._response_id,
        )

    def _start_block(self, data: Object) -> None:
        index = natural_at(data, "index")
        block = object_at(data, "content_block")
        kind = text_at(block, "type")
        if index is None:
            self._draft.known = False
            return
        self._draft.has_call |= _is_call(kind)
        for draft in (self._draft, self._plain) if kind in PLAIN_BLOCKS else (self._draft,):
            if kind in TEXT_PARTS:
                draft.add((index,), squeeze(text_at(block, TEXT_PARTS[kind])))
            else:
                draft.put((index,), _block_text(block, ASSISTANT))

    def _grow_block(self, data: Object) -> None:
        index = natural_at(data, "index")
        text = squeeze(text_at(object_at(data, "delta"), "text"))
        if index is None:
            self._draft.known = False
        else:
            self._draft.add((index,), text)
            self._plain.add((index,), text)
