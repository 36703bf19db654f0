"""A request to the Messages API once more, with no answer wanted: the same bytes but for two fields.

One rule: what is not one of the two fields stays byte for byte, since the provider's cache is found by it; a body of
which that can not be shown is not sent at all.

Theory of operation.  The two fields are looked for as text and replaced there, since writing the JSON anew would change
spaces, escapes and the order of keys.  The same words may stand deeper inside, as in a tool's schema: so each edited
body is read again, and is the right one if its outermost fields are those of before, but for that one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from daemon.providers.base import Turn
from daemon.providers.fields import object_of, shallow, text_at, value_of
from daemon.providers.messages import BILLING
from daemon.providers.setup import texts_in

PLACES_MAX: Final = 16
"""Places tried for one field: real bodies have one or two."""
CHECKSUM: Final = "cch="
"""Stands in Claude Code's first system block where that signs the body."""

Fields = dict[str, Raw]


def ping_body(body: bytes, output_tokens: int) -> bytes | None:
    """The request again, which is to write so many tokens and no stream; None where that can not be made of it."""
    fields = _fields(body)
    if fields is None or "max_tokens" not in fields:
        return None
    edited = _with(body, fields, "max_tokens", str(output_tokens).encode())
    if edited is None or bytes(fields.get("stream", b"false")) == b"false":
        return edited
    return _with(edited, {**fields, "max_tokens": Raw(str(output_tokens).encode())}, "stream", b"false")


def is_signed(turn: Turn, headers: Iterable[tuple[str, str]]) -> bool:
    """The client has put a checksum or a signature over its request: nobody else may change a byte."""
    if any(text.startswith(BILLING) and CHECKSUM in text for text in texts_in(value_of(turn.system))):
        return True
    named = [(name.lower(), value) for name, value in headers]
    signs = any(word in name for name, _ in named for word in _SIGNING)
    return signs or any(name == "authorization" and value.startswith(_SIGNED) for name, value in named)


def blames_limit(answer: bytes) -> bool:
    """A refusal says that it is for the number of tokens to write."""
    found = object_of(answer)
    error = found.get("error") if found else None
    return isinstance(error, dict) and "max_tokens" in text_at(error, "message")


def _fields(body: bytes) -> Fields | None:
    found = shallow(Raw(body))
    if not isinstance(found, dict):
        return None
    try:
        # As it is, and not with halves of characters made whole: those bytes are not the client's.
        return _decoder.decode(body)
    except (ValueError, RecursionError):
        return None


def _with(body: bytes, fields: Fields, name: str, value: bytes) -> bytes | None:
    """The body with another value of one field."""
    wanted = {**fields, name: Raw(value)}
    field = re.compile(rb'"' + name.encode() + rb'"\s*:\s*(' + re.escape(bytes(fields[name])) + rb")")
    places: Sequence[re.Match[bytes]] = list(field.finditer(body))
    for place in (*places[:PLACES_MAX], *places[PLACES_MAX:][-PLACES_MAX:]):
        edited = body[: place.start(1)] + value + body[place.end(1) :]
        if _fields(edited) == wanted:
            return edited
    return None


_decoder: Final = msgspec.json.Decoder(Fields)
_SIGNING: Final = ("signature", "digest", "content-md5")
_SIGNED: Final = ("AWS4-", "Signature ")
