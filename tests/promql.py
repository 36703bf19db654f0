"""As much of PromQL as the shipped alerts use: enough to find every metric and label in them, and to evaluate them.

One rule: what is not understood is an error, never a guess; so an expression that needs more fails its test loudly.

Theory.  A scrape is a mapping from name and labels to a value; a window is two of them, its beginning and its end, so
`increase` and `changes` are differences over the whole window, however long the brackets say it is.  Operators match
series by equal labels, as Prometheus does without `on` and `ignoring`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

Labels: TypeAlias = frozenset[tuple[str, str]]
Scrape: TypeAlias = dict[tuple[str, Labels], float]
Vector: TypeAlias = dict[Labels, float]
Value: TypeAlias = Vector | float

TOKEN: Final = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)(?![\w:])|(?P<word>[a-zA-Z_][\w:]*)|(?P<text>"[^"]*")|(?P<span>\[\d+[smhd]\])"""
    r"""|(?P<sign>=~|==|[<>(){},=/*+-]))"""
)
COMPARED: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": float.__lt__,
    ">": float.__gt__,
    "==": float.__eq__,
}
OVER_TIME: Final = ("increase", "rate", "changes")


class Selector(NamedTuple):
    """A metric in an expression, and the labels that it is asked for by."""

    name: str
    labels: tuple[str, ...]


class Window(NamedTuple):
    """Two scrapes some time apart, and the time of the second."""

    before: Scrape
    after: Scrape
    now: float
    seconds: float = 1.0


class Expression:
    """One parsed and evaluated from left to right; precedence: or, and, comparison, difference, division."""

    def __init__(self, text: str, window: Window | None = None) -> None:
        self.selectors: list[Selector] = []
        self.grouped: set[str] = set()
        """Labels named by aggregations."""
        self._window = window or Window({}, {}, 0.0)
        self._tokens = list(_tokens(text))
        self.value = self._either()
        assert not self._tokens, f"not understood: {self._tokens}"

    @property
    def fires(self) -> bool:
        return bool(self.value) if isinstance(self.value, dict) else True

    # -- from the loosest to the tightest

    def _either(self) -> Value:
        value = self._both()
        while self._take("or"):
            value = {**_vector(self._both()), **_vector(value)}
        return value

    def _both(self) -> Value:
        value = self._compared()
        while self._take("and"):
            other = _vector(self._compared())
            value = {labels: each for labels, each in _vector(value).items() if labels in other}
        return value

    def _compared(self) -> Value:
        value = self._difference()
        for sign, holds in COMPARED.items():
            if self._take(sign):
                return _filtered(value, self._difference(), holds)
        return value

    def _difference(self) -> Value:
        value = self._ratio()
        while self._take("-"):
            value = _joined(value, self._ratio(), float.__sub__)
        return value

    def _ratio(self) -> Value:
        value = self._atom()
        while self._take("/"):
            value = _joined(value, self._atom(), lambda a, b: a / b if b else float("nan"))
        return value

    def _atom(self) -> Value:
        if self._take("("):
            return self._closed(self._either())
        token = self._tokens.pop(0)
        if token[0].isdigit():
            return float(token)
        if token == "time":
            self._expect("(", ")")
            return self._window.now
        if token == "sum":
            return self._sum()
        if token == "absent":
            self._expect("(")
            return {frozenset(): 1.0} if not self._closed(self._either()) else {}
        if token in OVER_TIME:
            self._expect("(")
            return self._closed(self._over_time(token))
        return self._selected(token, self._window.after)

    def _sum(self) -> Vector:
        self._expect("without", "(")
        without = {self._tokens.pop(0)}
        while self._take(","):
            without.add(self._tokens.pop(0))
        self._expect(")", "(")
        self.grouped |= without
        sums: Vector = {}
        for labels, value in _vector(self._closed(self._either())).items():
            rest = frozenset(pair for pair in labels if pair[0] not in without)
            sums[rest] = sums.get(rest, 0.0) + value
        return sums

    def _over_time(self, function: str) -> Vector:
        name, at = self._tokens.pop(0), len(self.selectors)
        tokens = list(self._tokens)
        after = self._selected(name, self._window.after)
        self._tokens = tokens
        before = self._selected(name, self._window.before)
        del self.selectors[at + 1 :]
        assert self._tokens.pop(0)[0] == "[", "a span of time"
        if function == "changes":
            return {labels: float(labels in before and before[labels] != value) for labels, value in after.items()}
        seconds = self._window.seconds if function == "rate" else 1.0
        return {labels: (value - before.get(labels, 0.0)) / seconds for labels, value in after.items()}

    def _selected(self, name: str, scrape: Scrape) -> Vector:
        assert re.fullmatch(r"[a-z_]+", name), name
        wanted: list[tuple[str, str, str]] = []
        if self._take("{"):
            while not self._take("}"):
                label, sign, text = (self._tokens.pop(0) for _ in range(3))
                assert sign in ("=", "=~"), sign
                wanted.append((label, sign, text.strip('"')))
                self._take(",")
        self.selectors.append(Selector(name, tuple(label for label, _, _ in wanted)))
        return {labels: value for (n, labels), value in scrape.items() if n == name and _matches(dict(labels), wanted)}

    # -- tokens

    def _take(self, token: str) -> bool:
        if not self._tokens or self._tokens[0] != token:
            return False
        self._tokens.pop(0)
        return True

    def _expect(self, *tokens: str) -> None:
        for token in tokens:
            assert self._take(token), f"{token!r} is missing before {self._tokens[:3]}"

    def _closed(self, value: Value) -> Value:
        self._expect(")")
        return value


def _tokens(text: str) -> Iterable[str]:
    place = 0
    while text[place:].strip():
        found = TOKEN.match(text, place)
        assert found, f"not understood: {text[place:]!r}"
        place = found.end()
        yield found[0].strip()


def _matches(labels: dict[str, str], wanted: list[tuple[str, str, str]]) -> bool:
    return all(
        (re.fullmatch(text, labels.get(label, "")) is not None) if sign == "=~" else labels.get(label, "") == text
        for label, sign, text in wanted
    )


def _vector(value: Value) -> Vector:
    assert isinstance(value, dict), "a vector"
    return value


def _joined(one: Value, other: Value, work: Callable[[float, float], float]) -> Value:
    if not isinstance(one, dict) and not isinstance(other, dict):
        return work(one, other)
    if not isinstance(other, dict):
        return {labels: work(value, other) for labels, value in _vector(one).items()}
    if not isinstance(one, dict):
        return {labels: work(one, value) for labels, value in other.items()}
    return {labels: work(value, other[labels]) for labels, value in one.items() if labels in other}


def _filtered(one: Value, other: Value, holds: Callable[[float, float], bool]) -> Vector:
    found = _joined(one, other, lambda a, b: float(holds(float(a), float(b))))
    return {labels: _vector(one)[labels] for labels, kept in _vector(found).items() if kept}
