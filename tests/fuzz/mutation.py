"""Inputs made from inputs: bytes, numbers, tokens and JSON values changed, each in a way that strangers might.

One rule: the same source of chance and the same inputs give the same result.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

INPUT_BYTES_MAX: Final = 64 * 1024
"""Of one input: larger ones find little that smaller ones do not, and what they do has tests of its own."""
CHANGES: Final = (1, 1, 1, 2, 2, 3, 4, 6)
"""How many changes an input gets: few, so that what the parent reached is reached again."""
SPAN_BYTES_MAX: Final = 64
BEGINNING_BYTES: Final = 16
DEPTH: Final = 1_200
"""Beyond what parsers follow by recursion."""

NUMBERS: Final = (
    *(b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"1099511627776", b"1099511627777", b"9007199254740993"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"-9223372036854775809"),
    *(b"0.5", b"1e308", b"1e400", b"-0.0", b"1e-400", b"NaN", b"Infinity", b"9" * 400, b"9" * 5_000),
)
VALUES: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e308, 2**31, 2**40, 2**40 + 1, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400),
    *("", "\0", "\ud800", "\U0001f600", "x" * 600, "0", "null", "\n", [], {}, [[]], [None], {"": {}}, float("nan")),
)
WAYS_DEEP: Final = (b"[" * DEPTH, b"[" * DEPTH + b"]" * DEPTH, b'{"a":' * DEPTH + b"1" + b"}" * DEPTH)
_NUMBER: Final = re.compile(rb"-?\d+")
_OPENING: Final = re.compile(rb"[{\[]")
_DOCUMENTS_LOOKED_AT: Final = 50


def mutated(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    """`other`: another input, to take parts from; `tokens`: words that mean something to who reads."""
    for _ in range(rng.choice(CHANGES)):
        data = rng.choice(_WAYS)(rng, data, other, tokens)
    return data[:INPUT_BYTES_MAX]


def _flip(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    place, changed = _place(rng, data), bytearray(data)
    if changed:
        changed[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    place, new = _place(rng, data), rng.randbytes(rng.choice((1, 1, 2, 4)))
    return data[:place] + new + data[place + len(new) :]


def _insert_token(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    place = _place(rng, data)
    return data[:place] + _token(rng, tokens) + data[place:]


def _replace_by_token(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + _token(rng, tokens) + data[end:]


def _remove(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _repeat(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _splice(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _borrow(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    place, (start, end) = _place(rng, data), _span(rng, other)
    return data[:place] + other[start:end] + data[place:]


def _number(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    number = rng.choice(found)
    return data[: number.start()] + rng.choice(NUMBERS) + data[number.end() :]


def _json(rng: random.Random, data: bytes, other: bytes, tokens: Sequence[bytes]) -> bytes:
    """One value changed in a document that stands somewhere in the input."""
    begins = [found.start() for found in _OPENING.finditer(data)][:_DOCUMENTS_LOOKED_AT]
    if not begins:
        return data
    start = rng.choice(begins)
    text = data[start:].decode("latin-1")
    try:
        document, length = json.JSONDecoder().raw_decode(text)
        changed = json.dumps(_changed(rng, document), ensure_ascii=rng.random() < 0.8)
    except (ValueError, RecursionError):
        return data
    return data[:start] + changed.encode("latin-1", "replace") + data[start + length :]


def _changed(rng: random.Random, value: Any) -> Any:
    """The value with one of those in it replaced, removed, or put under another name."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    place = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    way = rng.random()
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    if way < 0.6:
        changed[place] = _changed(rng, value[place])
    elif way < 0.75:
        del changed[place]
    elif isinstance(changed, list):
        changed.insert(rng.randrange(len(changed) + 1), value[place])
    else:
        changed[rng.choice(list(value))] = value[place]
    return changed


def _token(rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    pool = rng.choice((tokens, tokens, NUMBERS, WAYS_DEEP)) if tokens else NUMBERS
    return rng.choice(pool)


def _place(rng: random.Random, data: bytes) -> int:
    """Every fourth one near the beginning, which decides what becomes of the rest, however long that has grown."""
    return rng.randint(0, len(data) if rng.randrange(4) else min(len(data), BEGINNING_BYTES))


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + rng.randint(1, rng.choice((4, 16, SPAN_BYTES_MAX, 4_096))))


Way = Callable[[random.Random, bytes, bytes, Sequence[bytes]], bytes]
_WAYS: Final[tuple[Way, ...]] = (
    *(_flip, _overwrite, _insert_token, _replace_by_token, _remove, _repeat, _splice, _borrow),
    *(_number, _number, _json, _json, _json),
)
