"""The normal form of a conversation: what stays the same however a client sends it back.

One rule: an answer, and the same answer as history in a later request, give the same text; different answers do not.

Theory of operation.  Clients do not send history back as they got it: they join text blocks or split them, trim
lines, drop thinking, write a tool's arguments anew, move cache marks, add reminders and take them out again.  So a
unit's text is its texts in order without any whitespace; tool calls and results are marks that carry only their id;
what is not text is a mark that carries only its type; reasoning, reminders and the system's messages are left out.
Neighbours on the same side are one unit, since clients disagree on where a message ends.

What clients disagree on in whole, and what no single text can hold therefore, are the `other_forms` of an answer: each
is a text of its own, and a later request may go on from any of them.

Neighbours being one, a request that was never answered is no beginning of the next one, where the client sends the
user's old words and the new ones side by side.  Within a conversation the answer before them proves whose it is.  An
opening stays behind, on purpose: all that the two share is a user's first words, which are the same in the many
conversations that one outage cuts off at once, and joining those would be worse than leaving a session that holds
nothing but an error.

A mark is built from separators that Unicode counts as whitespace.  Removing whitespace therefore removes them from
every text and every id, so no text can forge a mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Final, NamedTuple

import msgspec

from daemon.providers.base import ASSISTANT, USER, Unit
from daemon.providers.fields import Object, objects_in, text_at

SYSTEM_ROLES: Final = frozenset({"system", "developer"})
REMINDER: Final = "<system-reminder>"
REMINDER_END: Final = "</system-reminder>"
_REMINDER: Final = re.compile(rf"\s*{REMINDER}")
TEXT_PARTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of part that hold text, and the field that holds it."""
REASONING_PARTS: Final = frozenset({"thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text"})

MARK: Final = "\x1e"
"""Begins a mark; no text has it in normal form."""
DRAFT_CHARACTERS_MAX: Final = 32 * 1024 * 1024
"""Text gathered of one answer.  The longest answers that models give are under 2 MB; more is not worth its memory."""


class Reading(NamedTuple):
    """One message or item in normal form; empty text: it is left out."""

    role: str
    text: str
    has_call: bool = False
    has_result: bool = False


LEFT_OUT: Final = Reading(USER, "")

Read = Callable[[msgspec.Raw], Reading]


def units_from(entries: Iterable[msgspec.Raw], read: Read) -> list[Unit]:
    return merged(Unit(reading.role, reading.text) for reading in map(read, entries))


def merged(units: Iterable[Unit]) -> list[Unit]:
    """Units without the empty ones, neighbours of the same side as one."""
    spoken = (unit for unit in units if unit.text)
    return [Unit(role, "".join(unit.text for unit in side)) for role, side in groupby(spoken, lambda unit: unit.role)]


def other_forms(unit: Unit | None, forms: Iterable[Unit | None]) -> tuple[Unit, ...]:
    """Those that are known and differ from the unit, each once."""
    return tuple(dict.fromkeys(form for form in forms if form is not None and form != unit))


def is_user_turn(entries: Sequence[msgspec.Raw], read: Read) -> bool:
    """The newest entry that counts is the user's own."""
    readings = map(read, reversed(entries))
    newest = next((reading for reading in readings if reading.text), LEFT_OUT)
    return bool(newest.text) and newest.role == USER and not newest.has_result


def squeeze(text: str) -> str:
    return "".join(text.split())


def mark(kind: str, name: str = "") -> str:
    return f"{MARK}{squeeze(kind)}\x1d{squeeze(name)}\x1f"


def said(text: str, role: str) -> str:
    """A text of that side.  Only what clients add to the user's side can be a reminder, and only at its beginning, from
    the one mark to the other: what stands after it was said."""
    if role == USER:
        text = text[_reminders_end(text) :]
    return squeeze(text)


def _reminders_end(text: str) -> int:
    """Where the reminders at a text's beginning end.  Looks at every character once, however many there are."""
    end = 0
    while (begun := _REMINDER.match(text, end)) and (found := text.find(REMINDER_END, begun.end())) >= 0:
        end = found + len(REMINDER_END)
    return end


def content_text(content: object, role: str) -> str:
    """A message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return said(content, role)
    return "".join(part_text(part, role) for part in objects_in(content))


def part_text(part: Object, role: str) -> str:
    kind = text_at(part, "type")
    if kind in TEXT_PARTS:
        return said(text_at(part, TEXT_PARTS[kind]), role)
    return "" if kind in REASONING_PARTS else mark("part", kind)


def call_mark(call_id: str) -> str:
    return mark("call", call_id)


def result_text(call_id: str, content: object) -> str:
    """A tool's result: its texts only, since clients shrink and drop the images in it."""
    texts = content if isinstance(content, str) else [part for part in objects_in(content) if _is_text(part)]
    return mark("result", call_id) + content_text(texts, USER)


def unreadable(entry: msgspec.Raw) -> Reading:
    """An entry that is no object stands for itself: left out, it would make different conversations equal."""
    return Reading(USER, mark("unreadable", bytes(entry).decode("utf-8", "replace")))


def _is_text(part: Object) -> bool:
    return text_at(part, "type") in TEXT_PARTS


class Draft:
    """An answer's unit in the making: pieces of text and marks, each at its place in the answer."""

    def __init__(self) -> None:
        self.known: bool = True
        """Nothing that belongs to the answer was lost on the way."""
        self.has_call: bool = False
        self._pieces: dict[tuple[int, ...], list[str]] = {}
        self._characters = 0

    def add(self, place: tuple[int, ...], piece: str) -> None:
        """Append a piece, in normal form already."""
        if piece and self._has_room(len(piece)):
            self._pieces.setdefault(place, []).append(piece)

    def put(self, place: tuple[int, ...], piece: str) -> None:
        """Set what stands at a place: some servers repeat a call's id in every delta of it."""
        if piece and self._has_room(len(piece)):
            self._pieces[place] = [piece]

    def call(self, place: tuple[int, ...], call_id: str) -> None:
        self.has_call = True
        self.put(place, call_mark(call_id))

    def unit(self) -> Unit | None:
        text = "".join("".join(pieces) for _, pieces in sorted(self._pieces.items()))
        return Unit(ASSISTANT, text) if self.known and text else None

    def _has_room(self, characters: int) -> bool:
        self._characters += characters
        if self._characters > DRAFT_CHARACTERS_MAX:
            self.known = False
            self._pieces.clear()
        return self.known
