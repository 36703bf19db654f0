"""The wire formats of the providers, behind one door.

One rule: nothing outside this package knows what a provider's JSON looks like, and nothing in it does I/O.

A wire format is a body's type and a few functions, one file per format; the functions here choose among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from daemon.providers import chat, messages, responses
from daemon.providers.base import ASSISTANT, Answer, AnswerReader, Turn, Unit, WireFormat
from daemon.providers.body import BodyFields, CommonBody, Named, fields_for
from daemon.providers.errors import error_body
from daemon.providers.fields import Object, is_crowded, is_id, whole_characters
from daemon.providers.normal import MARK, Reading, merged, units_from
from daemon.providers.reader import DocumentReader, EventReader, Stream
from daemon.providers.setup import Setup, setup_from

__all__ = [
    "ASSISTANT",
    "MARK",
    "Answer",
    "AnswerReader",
    "BodyFields",
    "Setup",
    "Turn",
    "Unit",
    "WireFormat",
    "body_fields",
    "error_body",
    "is_id",
    "merged",
    "parse_turn",
    "reader",
    "setup_of",
    "units_of",
]


class _Format(NamedTuple):
    body_type: type[CommonBody]
    turn_of: Callable[[Any, Named], Turn]
    """From a body of that type, and what it mints."""
    system_texts: Callable[[Turn], Iterable[str]]
    tool_name_paths: Sequence[Sequence[str]]
    read_entry: Callable[[msgspec.Raw], Reading]
    read_document: Callable[[Object], Answer]
    stream: Callable[[], Stream]


_FORMATS: Final[dict[WireFormat, _Format]] = {
    "messages": _Format(
        messages.Body,
        messages.turn_of,
        messages.system_texts,
        messages.TOOL_NAME_PATHS,
        messages.read_entry,
        messages.read_document,
        messages.Stream,
    ),
    "chat": _Format(
        chat.Body,
        chat.turn_of,
        chat.system_texts,
        chat.TOOL_NAME_PATHS,
        chat.read_entry,
        chat.read_document,
        chat.Stream,
    ),
    "responses": _Format(
        responses.Body,
        responses.turn_of,
        responses.system_texts,
        responses.TOOL_NAME_PATHS,
        responses.read_entry,
        responses.read_document,
        responses.Stream,
    ),
}


def body_fields(paths: Sequence[str]) -> BodyFields:
    """`paths`: where clients put the ids of their sessions, as keys joined by dots, the most trusted place first."""
    return BodyFields({protocol: fields_for(paths, wire.body_type) for protocol, wire in _FORMATS.items()})


def parse_turn(protocol: WireFormat, body: bytes, fields: BodyFields) -> Turn | None:
    """The request in `body`; None if that is not a JSON object, or has more values than are read of any.  Fields of a
    wrong type count as absent."""
    if is_crowded(body):
        return None
    try:
        # The parser skips over texts it is not asked for without looking whether they are UTF-8.
        body.decode("utf-8")
        return _turn_in(protocol, body, fields)
    except UnicodeDecodeError:
        return None
    except (ValueError, RecursionError):
        pass
    try:
        return _turn_in(protocol, whole_characters(body), fields)
    except (ValueError, RecursionError):
        return None


def _turn_in(protocol: WireFormat, body: bytes, fields: BodyFields) -> Turn:
    """Raises ValueError or RecursionError if the body is not a JSON object."""
    wanted = fields.formats[protocol]
    head = wanted.decoder.decode(body)
    return _FORMATS[protocol].turn_of(head, wanted.minted_in(head))


def setup_of(turn: Turn) -> Setup:
    """The instructions and tools of a request, decoded now."""
    wire = _FORMATS[turn.protocol]
    return setup_from(wire.system_texts(turn), turn.tools, wire.tool_name_paths)


def units_of(turn: Turn) -> list[Unit]:
    """The conversation in normal form.  An answer goes on from it as `merged([*units_of(turn), answer.unit])`."""
    return units_from(turn.entries, _FORMATS[turn.protocol].read_entry)


def reader(protocol: WireFormat, *, event_stream: bool, encoding: str) -> AnswerReader:
    """Reads the copy of one answer; `encoding` is its content-encoding header, empty if there is none."""
    wire = _FORMATS[protocol]
    if event_stream:
        return EventReader(encoding, wire.stream())
    return DocumentReader(encoding, wire.read_document)
