"""JSON written by strangers, read field by field.

One rule: a field that is absent and a field of the wrong type are the same thing, and nothing here raises.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from daemon.providers.base import ID_CHARACTERS_MAX

Object = dict[str, Any]
Field = list[msgspec.Raw] | dict[str, msgspec.Raw] | str | int | float | bool | None
"""Any JSON value, its inside not decoded: it makes a typed decoder tolerant of wrong types in a single pass."""


def value_of(data: bytes | str | msgspec.Raw) -> object:
    """The JSON value in `data`; None if it cannot be read, as for null."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        pass
    try:
        return msgspec.json.decode(whole_characters(data.encode() if isinstance(data, str) else bytes(data)))
    except (ValueError, RecursionError):
        return None


def whole_characters(data: bytes) -> bytes:
    """A copy without halves of characters.  JavaScript cuts texts between the two halves of an emoji and writes what
    is left as an escape, which is good JSON to most and an error to a strict parser."""
    return _HALVES.sub(_REPLACEMENT, data)


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
    value = source.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


_HALVES: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_REPLACEMENT: Final = rb"\\ufffd"
