"""JSON written by strangers, read field by field.

One rule: a field that is absent and a field of the wrong type are the same thing, and nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

from daemon.providers.base import ID_CHARACTERS_MAX

T = TypeVar("T")
Object = dict[str, Any]
Field = list[msgspec.Raw] | dict[str, msgspec.Raw] | str | int | float | bool | None
"""Any JSON value, its inside not decoded: it makes a typed decoder tolerant of wrong types in a single pass."""


VALUES_MAX: Final = 2_000_000
"""In one JSON text that is read.  A context of a million tokens has about as many at most; and one of two bytes takes
eighty in memory, so that 32 MB of brackets, which gzip makes of 32 KB, would take 800."""

NO_IDS: Final = frozenset({"", "0", "-", "undefined", "null", "none", "nil", "nan", "true", "false", "default"})


def value_of(data: bytes | str | msgspec.Raw) -> object:
    """The JSON value in `data`; None if it cannot be read, as for null."""
    return _decoded(data, _value_decoder)


def shallow(value: Field | msgspec.Raw) -> Field:
    """A value with its inside still undecoded; None if it cannot be read."""
    return _decoded(value, _shallow_decoder) if isinstance(value, msgspec.Raw) else value


def string_under(value: Field | msgspec.Raw, keys: Sequence[str] = ()) -> str:
    """The string that these keys lead to, one object inside the other; empty if there is none.

    A string on the way is looked into as well: some clients write a JSON object where the API wants a text.
    """
    found = shallow(value)
    for key in keys:
        if isinstance(found, str):
            found = _decoded(found, _shallow_decoder)
        inner = found.get(key) if isinstance(found, dict) else None
        found = shallow(inner)
    return found if isinstance(found, str) else ""


def is_id(text: str) -> bool:
    """Whether a text may name something; what programs write where they have nothing to say names nothing."""
    return 0 < len(text) <= ID_CHARACTERS_MAX and text.isprintable() and text.strip().lower() not in NO_IDS


def whole_characters(data: bytes) -> bytes:
    """A copy without halves of characters.  JavaScript cuts texts between the two halves of an emoji and writes what
    is left as an escape, which is good JSON to most and an error to a strict parser."""
    return _HALVES.sub(_REPLACEMENT, data)


def is_crowded(data: bytes | str | msgspec.Raw) -> bool:
    """Whether there may be more values in a text than are read.  A text can not have more of them than bytes; what
    stands in its strings counts too, since telling it apart would take a parser.  What is still raw is a part of a text
    that was looked at, and may be as large as that: it is not copied."""
    if len(data) <= VALUES_MAX or isinstance(data, msgspec.Raw):
        return False
    text = data.encode() if isinstance(data, str) else data
    return sum(map(text.count, (b",", b"[", b"{"))) > VALUES_MAX


def object_of(data: bytes | str | msgspec.Raw) -> Object | None:
    """The JSON object in `data`; None if it holds anything else."""
    value = value_of(data)
    return value if isinstance(value, dict) else None


def text_at(source: Object, key: str) -> str:
    value = source.get(key)
    return value if isinstance(value, str) else ""


def id_at(source: Object, key: str) -> str:
    value = text_at(source, key)
    return value if len(value) <= ID_CHARACTERS_MAX else ""


def object_at(source: Object, key: str) -> Object:
    value = source.get(key)
    return value if isinstance(value, dict) else {}


def objects_in(value: object) -> list[Object]:
    """The objects in a list; anything else in it, and anything that is not a list, is no object."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def natural_at(source: Object, key: str) -> int | None:
    """A whole number from 0 up; JSON's true is an int in Python and none here."""
    return natural_of(source.get(key))


def natural_of(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _decoded(data: bytes | str | msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T | None:
    if is_crowded(data):
        return None
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError):
        pass
    try:
        return decoder.decode(whole_characters(data.encode() if isinstance(data, str) else bytes(data)))
    except (ValueError, RecursionError):
        return None


_value_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder()
_shallow_decoder: Final[msgspec.json.Decoder[Field]] = msgspec.json.Decoder(Field)


_HALVES: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_REPLACEMENT: Final = rb"\\ufffd"
