"""What is read of a request's body: a few fields, in one pass, whatever else it holds.

One rule: a body is parsed once.  What is not needed of it is skipped over, and what is needed only sometimes stays
undecoded until somebody asks.

Theory of operation.  Each wire format names its fields in a type on top of `CommonBody`.  The places where clients
put their session ids are a setting, so the first key of each such place is added to those types when settings are
read (`fields_for`), and the decoder made then finds them on its only way through the body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from daemon.providers.base import ABSENT, MODEL_CHARACTERS_MAX, WireFormat
from daemon.providers.fields import is_id, natural_of, object_of, shallow, string_under

USER_ID: Final = "metadata.user_id"
PROMPT_CACHE_KEY: Final = "prompt_cache_key"

Named = tuple[tuple[str, str], ...]
"""Pairs of a name and its value."""


class CommonBody(Struct):
    """What the bodies of all wire formats have in common.  Raw takes any value, so that no type is a wrong one."""

    model: Raw = ABSENT
    stream: Raw = ABSENT
    metadata: Raw = ABSENT
    prompt_cache_key: Raw = ABSENT
    tools: Raw = ABSENT


class Place(NamedTuple):
    """Where a session id may stand in the bodies of one wire format."""

    path: str
    """As it was configured, which is the name of what is found there."""
    attribute: str
    """Of the body's type: holds the value of the path's first key."""
    further: tuple[str, ...]
    """The keys after it."""


class FormatFields(NamedTuple):
    decoder: msgspec.json.Decoder[Any]
    places: tuple[Place, ...]

    def minted_in(self, body: CommonBody) -> Named:
        """(path, value) of every place that holds a usable id, in the order of configuration."""
        values = ((place.path, string_under(getattr(body, place.attribute), place.further)) for place in self.places)
        return tuple((path, value) for path, value in values if is_id(value))


class BodyFields(Struct, frozen=True):
    """The configured places of session ids, ready to be found.  Made once for each reading of the settings."""

    formats: Mapping[WireFormat, FormatFields]


def fields_for(paths: Sequence[str], body_type: type[CommonBody]) -> FormatFields:
    """The type of a body with the first key of every path in it, as a decoder."""
    keys = [tuple(path.split(".")) for path in paths]
    attributes = {name: name for name in body_type.__struct_fields__}
    # A key may be any text, an attribute may not: the added ones have names of their own.
    added = {first: f"at_{index}" for index, (first, *_) in enumerate(keys) if first not in attributes}
    attributes |= added
    extended = msgspec.defstruct(
        "ExtendedBody",
        [(attribute, Raw, ABSENT) for attribute in added.values()],
        bases=(body_type,),
        rename={attribute: key for key, attribute in added.items()},
    )
    places = tuple(Place(path, attributes[each[0]], each[1:]) for path, each in zip(paths, keys, strict=True))
    return FormatFields(msgspec.json.Decoder(extended), places)


def model_of(body: CommonBody) -> str:
    return string_under(body.model)[:MODEL_CHARACTERS_MAX]


def is_streamed(body: CommonBody) -> bool:
    return shallow(body.stream) is True


def hints_in(body: CommonBody) -> Named:
    """What applications may well share between conversations.  A user id that is a JSON object is none of these: it
    holds ids of several kinds, and the configured places tell which of them names a session."""
    user_id = string_under(body.metadata, ("user_id",))
    found = (
        (PROMPT_CACHE_KEY, string_under(body.prompt_cache_key)),
        (USER_ID, user_id if object_of(user_id) is None else ""),
    )
    return tuple((name, value) for name, value in found if is_id(value))


def limit_in(*candidates: Raw) -> int | None:
    """The first of the fields that is a natural number."""
    numbers = (natural_of(shallow(candidate)) for candidate in candidates)
    return next((number for number in numbers if number is not None), None)
