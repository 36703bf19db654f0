"""The wire formats of the providers, behind one door.

One rule: nothing outside this package knows what a provider's JSON looks like, and nothing in it does I/O.

A wire format is four functions, one file per format; `parse_turn`, `units_of` and `reader` choose among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from daemon.providers import chat, messages, responses
from daemon.providers.base import Answer, AnswerReader, Turn, Unit, WireFormat
from daemon.providers.errors import error_body
from daemon.providers.fields import Object, whole_characters
from daemon.providers.normal import Reading, merged, units_from
from daemon.providers.reader import DocumentReader, EventReader, Stream

__all__ = [
    "Answer",
    "AnswerReader",
    "Turn",
    "Unit",
    "WireFormat",
    "error_body",
    "merged",
    "parse_turn",
    "reader",
    "units_of",
]


class _Format(NamedTuple):
    parse_turn: Callable[[bytes], Turn]
    read_entry: Callable[[msgspec.Raw], Reading]
    read_document: Callable[[Object], Answer]
    stream: Callable[[], Stream]


_FORMATS: Final[dict[WireFormat, _Format]] = {
    "messages": _Format(messages.parse_turn, messages.read_entry, messages.read_document, messages.Stream),
    "chat": _Format(chat.parse_turn, chat.read_entry, chat.read_document, chat.Stream),
    "responses": _Format(responses.parse_turn, responses.read_entry, responses.read_document, responses.Stream),
}


def parse_turn(protocol: WireFormat, body: bytes) -> Turn | None:
    """The request in `body`; None if that is not a JSON object.  Fields of a wrong type count as absent."""
    try:
        # The parser skips over texts it is not asked for without looking whether they are UTF-8.
        body.decode("utf-8")
        return _FORMATS[protocol].parse_turn(body)
    except UnicodeDecodeError:
        return None
    except (ValueError, RecursionError):
        pass
    try:
        return _FORMATS[protocol].parse_turn(whole_characters(body))
    except (ValueError, RecursionError):
        return None


def units_of(turn: Turn) -> list[Unit]:
    """The conversation in normal form.  An answer goes on from it as `merged([*units_of(turn), answer.unit])`."""
    return units_from(turn.entries, _FORMATS[turn.protocol].read_entry)


def reader(protocol: WireFormat, *, event_stream: bool, encoding: str) -> AnswerReader:
    """Reads the copy of one answer; `encoding` is its content-encoding header, empty if there is none."""
    wire = _FORMATS[protocol]
    if event_stream:
        return EventReader(encoding, wire.stream())
    return DocumentReader(encoding, wire.read_document)
