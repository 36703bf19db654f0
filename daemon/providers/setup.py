"""What an agent sets a conversation up with: its instructions and its tools.

One rule: nothing is decoded until somebody asks, for only a request whose headers leave open who speaks needs it.

Theory of operation.  Main conversation, sub-agents and side calls of one client share its session id but not their
instructions and tools.  These differ a little from request to request too (a date, a folder, a tool more), so they
are given as lines and names, of which most stay the same, and not as one text to be compared as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from typing import Final, NamedTuple

from msgspec import Raw

from daemon.providers.base import ID_CHARACTERS_MAX
from daemon.providers.fields import Object, object_of, objects_in, shallow, string_under, text_at
from daemon.providers.normal import SYSTEM_ROLES, TEXT_PARTS

SETUP_LINES_MAX: Final = 2_000
"""Lines of instructions that count.  The longest seen have 40 KB, some hundreds of lines."""
LINE_CHARACTERS_MAX: Final = 500
"""Of one line: a paragraph is one line to most agents, and its beginning tells it from others."""
TEXT_CHARACTERS_MAX: Final = SETUP_LINES_MAX * LINE_CHARACTERS_MAX
"""Of one text, so that one of 64 MB is not split into lines."""
TOOLS_MAX: Final = 500
"""Tools that count.  Agents have about 25, and some hundreds with many servers of tools attached."""


class Setup(NamedTuple):
    system: tuple[str, ...]
    """The lines of what the client says as system, without the blank ones, each with single spaces."""
    tools: tuple[str, ...]
    """The tools' names, in the client's order."""


def setup_from(texts: Iterable[str], tools: Raw, name_paths: Sequence[Sequence[str]]) -> Setup:
    """`name_paths`: where a tool's name may stand in it, the best place first."""
    entries = shallow(tools)
    listed = entries[:TOOLS_MAX] if isinstance(entries, list) else []
    names = (_first_string(tool, name_paths) for tool in listed)
    lines = (line for text in texts for line in _lines_of(text))
    return Setup(tuple(islice(lines, SETUP_LINES_MAX)), tuple(name for name in names if name))


def leading_texts(entries: Iterable[Raw]) -> Iterator[str]:
    """The texts of the system's messages before anybody else speaks; later ones are reminders."""
    messages = (object_of(entry) or {} for entry in entries)
    for message in takewhile(_is_system, messages):
        yield from texts_in(message.get("content"))


def texts_in(content: object) -> list[str]:
    """The texts of a content, which is a string or a list of parts."""
    if isinstance(content, str):
        return [content]
    parts = [part for part in objects_in(content) if text_at(part, "type") in TEXT_PARTS]
    return [text_at(part, TEXT_PARTS[text_at(part, "type")]) for part in parts]


def _is_system(message: Object) -> bool:
    return text_at(message, "role") in SYSTEM_ROLES


def _lines_of(text: str) -> Iterator[str]:
    lines = (" ".join(line.split()) for line in text[:TEXT_CHARACTERS_MAX].splitlines())
    return (line[:LINE_CHARACTERS_MAX] for line in lines if line)


def _first_string(tool: Raw, paths: Sequence[Sequence[str]]) -> str:
    known = shallow(tool)
    return next((name for path in paths if (name := string_under(known, path))), "")[:ID_CHARACTERS_MAX]
