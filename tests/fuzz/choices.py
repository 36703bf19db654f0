"""Decisions read from bytes, and values of any type made by such decisions.

One rule: any bytes are good, and the same ones make the same; where they end, the first choice is taken.

Theory.  What has a shape (a list of writes, a row's new value) is hardly ever hit by changed bytes.  So for such
targets the bytes are not the input but the choices that make it: a changed byte is another choice, and the input
stays whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

INTEGERS: Final = (0, 1, -1, 2, 3, 7, 255, 256, 1_000, 2**31 - 1, 2**31, 2**40 - 1, 2**40, 2**50, 2**53, 2**63 - 1)
TEXTS: Final = ("", "a", "b", "0", "null", "\0", "\n", "é", "\U0001f600", "\x1e", "../x", "' OR 1=1 --", "NaN", "x:1")
FLOATS: Final = (0.0, -1.0, 0.5, 1.0, -0.0, 1e-300, 1e308, -1e308, 3.0e15, 0.1)
ITEMS_MAX: Final = 3
"""Of a list, as a rule; one in eight is as long as it may be."""
LONG_LIST: Final = 40
UNBOUNDED: Final = 5_000
"""Characters of a text that has no limit of its own."""


class Choices:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_spent(self) -> bool:
        return self._at >= len(self._data)

    def number(self, below: int) -> int:
        size = 1 if below <= 256 else 8
        taken = self.raw(size)
        return int.from_bytes(taken, "big") % below

    def pick(self, options: Sequence[T]) -> T:
        return options[self.number(len(options))]

    def flag(self) -> bool:
        return bool(self.number(2))

    def raw(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.ljust(size, b"\0")


Pools = Mapping[str, Sequence[Any]]
"""By a field's name: what is usually chosen for it, or for each entry of its list, so that inputs speak of the same
things."""


def made(shape: type[T], choices: Choices, pools: Pools) -> T:
    """A value of that type within all limits that stand on it, the limits themselves as likely as anything."""
    kind = _kind_of(shape)  # type: ignore[arg-type]  # every class can be hashed
    value: T = _made(kind, choices, pools, "")
    return value


@lru_cache(maxsize=64)
def _kind_of(shape: Hashable) -> inspect.Type:
    return inspect.type_info(shape)


def _made(kind: inspect.Type, choices: Choices, pools: Pools, name: str) -> Any:
    if name in pools and choices.number(8):
        usual = choices.pick(pools[name])
        # One name may stand for what may be empty in one message, and not in another: no frame brings that.
        if not isinstance(kind, inspect.StrType) or len(usual) >= (kind.min_length or 0):
            return usual
    match kind:
        case inspect.StructType(cls=shape, fields=fields):
            return shape(**_fields(fields, choices, pools))
        case inspect.UnionType(types=types):
            return _made(choices.pick(types), choices, pools, name)
        case inspect.LiteralType(values=values):
            return choices.pick(values)
        case inspect.BoolType():
            return choices.flag()
        case inspect.NoneType():
            return None
        case inspect.IntType(ge=low, le=high):
            return _integer(choices, -(2**63) if low is None else low, 2**63 - 1 if high is None else high)
        case inspect.FloatType():
            return choices.pick(FLOATS)
        case inspect.StrType(min_length=least, max_length=most):
            return _text(choices, least or 0, UNBOUNDED if most is None else most)
        case inspect.ListType(item_type=item, max_length=most):
            return [_made(item, choices, pools, name) for _ in range(_length(choices, most))]
        case inspect.TupleType(item_types=items):
            return tuple(_made(item, choices, pools, "") for item in items)
        case inspect.RawType():
            return msgspec.Raw(choices.pick((b"null", b"{}", b"[1,2]", b'"text"')))
        case _:
            raise NotImplementedError(kind)


def _fields(fields: Sequence[inspect.Field], choices: Choices, pools: Pools) -> dict[str, Any]:
    """Every second field that has a default keeps it."""
    given = [each for each in fields if each.required or choices.flag()]
    return {each.name: _made(each.type, choices, pools, each.name) for each in given}


def _integer(choices: Choices, low: int, high: int) -> int:
    way = choices.number(4)
    if way == 0:
        return min(max(choices.pick(INTEGERS), low), high)
    if way == 1:
        return choices.pick((low, high))
    return low + choices.number(high - low + 1) if way == 2 else min(max(choices.number(256), low), high)


def _text(choices: Choices, least: int, most: int) -> str:
    way = choices.number(8)
    if way == 7:
        text = choices.pick(("x", "é", "\U0001f600", "\0", '"')) * most
    elif way > 4:
        text = choices.raw(choices.number(24)).decode("latin-1")
    else:
        text = choices.pick(TEXTS)
    return (text + "x" * least)[: max(least, min(len(text), most))]


def _length(choices: Choices, most: int | None) -> int:
    longest = LONG_LIST if most is None else min(most, LONG_LIST)
    return longest if choices.number(16) == 15 else min(choices.number(ITEMS_MAX + 1), longest)
