"""Tables for people: what fits a line, and how figures are written short.

One rule: a line of a table is never wider than it was asked to be, whatever stands in it.  The widths are known before
the first line, so that a table can be printed while it is read.

Theory.  Every column has the least it needs and the most it can use.  What is left of the line goes to those that can
use it, a character at a time; where not even the least fits, columns that can be done without are left out.  Widths are
those of a terminal's cells: some characters take two, some none.  Colours take none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple

WIDTH: Final = 80
"""Where nobody says how wide a line may be: what every terminal has."""
LABEL_WIDTH: Final = 12
"""Of the names in a list of facts."""
WIDTH_MAX: Final = 200
"""No table uses more of a very wide terminal."""

Tone = Literal["good", "poor", "bad", "dim", "head"]


class Paint(NamedTuple):
    """Colours, where somebody sees them."""

    is_on: bool = False

    def __call__(self, text: str, tone: Tone | None) -> str:
        return f"\x1b[{_CODES[tone]}m{text}\x1b[0m" if self.is_on and tone and text else text


PLAIN: Final = Paint()


class Screen(NamedTuple):
    """Where it is shown."""

    width: int = WIDTH
    paint: Paint = PLAIN


class Column(NamedTuple):
    """`most`: it grows to so much, where there is room; `is_dispensable`: it goes where there is too little."""

    title: str
    width: int
    most: int = 0
    form: Literal["text", "figure", "id"] = "text"
    """Figures stand to the right.  Of an id, its beginning is one too: no mark says that it goes on."""
    is_dispensable: bool = False


class Table:
    """Lines of equal columns, figures to the right."""

    def __init__(self, columns: Sequence[Column], width: int = WIDTH, paint: Paint = PLAIN) -> None:
        self._widths = widths_of(columns, width)
        self._columns = columns
        self._paint = paint

    @property
    def header(self) -> str:
        titles = [column.title for column in self._columns]
        return self.line(titles, tones=dict.fromkeys(range(len(titles)), "head"))

    def line(self, texts: Iterable[object], *, tones: Mapping[int, Tone] | None = None) -> str:
        """One row.  `tones`: by a column's number."""
        shown: list[str] = []
        for number, (column, width, text) in enumerate(zip(self._columns, self._widths, texts, strict=True)):
            if width:
                text = cut(str(text), width, "" if column.form == "id" else "…")
                blank = " " * (width - cells(text))
                painted = self._paint(text, (tones or {}).get(number))
                shown.append(blank + painted if column.form == "figure" else painted + blank)
        return " ".join(shown).rstrip()


def widths_of(columns: Sequence[Column], width: int) -> list[int]:
    """Each column's share of a line; 0 for one that is left out."""
    widths = [column.width for column in columns]
    for number in reversed(range(len(columns))):
        if _line_width(widths) > width and columns[number].is_dispensable:
            widths[number] = 0
    room = width - _line_width(widths)
    while room > 0:
        growing = [n for n, column in enumerate(columns) if 0 < widths[n] < column.most]
        if not growing:
            break
        for number in growing[:room]:
            widths[number] += 1
        room -= len(growing[:room])
    return widths


def facts(lines: Iterable[tuple[str, object]], screen: Screen) -> str:
    """Names and what they are, one a line; what is longer goes on below itself."""
    shown: list[str] = []
    for name, text in lines:
        first, *more = wrapped(plain(text), max(_TEXT_MIN, screen.width - LABEL_WIDTH))
        label = name + " " * (LABEL_WIDTH - cells(name))
        shown.append((screen.paint(name, "head") + label[len(name) :] + first).rstrip())
        shown += [" " * LABEL_WIDTH + part for part in more]
    return "\n".join(shown)


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines, cut at spaces where there are any.  A word that is longer than a line, like a path, stays whole:
    whoever copies it wants all of it."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def fitted(text: str, width: int) -> str:
    """Sentences and lists as wide as that: what is longer goes on below itself, indented."""
    lines: list[str] = []
    for line in text.split("\n"):
        inner = line.lstrip(" ")
        indent = " " * (len(line) - len(inner))
        first, *more = wrapped(inner, max(_TEXT_MIN, width - len(indent) - len(_HANGING)))
        lines += [line] if cells(line) <= width else [indent + first, *(indent + _HANGING + part for part in more)]
    return "\n".join(lines)


# -- texts ---------------------------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """What clients send must not command the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)) if text not in (None, "") else "-"


def cells(text: str) -> int:
    """How much of a terminal's line it takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def cut(text: str, width: int, mark: str = "…") -> str:
    """Not more of it than fits, with a mark where something is missing."""
    if cells(text) <= width:
        return text
    kept, taken = "", 0
    for character in text:
        taken += _cells(character)
        if taken > width - len(mark):
            break
        kept += character
    return kept + mark


# -- figures -------------------------------------------------------------------------------------------------------


def short(count: float) -> str:
    """Four characters at most, and the unit's letter."""
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit and value < 99.5 else f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}T"


def money(nanousd: int | None) -> str:
    """Nine characters at most, up to a billion dollars: small sums to a hundredth of a cent, large ones in dollars."""
    if nanousd is None:
        return "unknown"
    dollars = nanousd / 1e9
    if dollars < 9.99995:
        return f"${dollars:.4f}"
    if dollars < 9_999.995:
        return f"${dollars:,.2f}"
    return f"${dollars:,.0f}" if dollars < 999_999.5 else f"${dollars / 1e6:,.2f}M"


def ago(moment: str | None, now: float) -> str:
    """How long ago, in the largest whole unit."""
    if moment is None:
        return "never"
    return span(now - datetime.fromisoformat(moment).timestamp())


def span(seconds: float) -> str:
    """A time in its largest whole unit."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def brief(seconds: float) -> str:
    """A short time, as of a commit: three digits are enough."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def many(count: int, one: str, more: str = "") -> str:
    return f"1 {one}" if count == 1 else f"{count:,} {more or one + 's'}"


def _line_width(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + len(shown) - 1


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


_HANGING: Final = "  "
_TEXT_MIN: Final = 20
"""Cells for a text beside its name, however narrow the terminal."""
_CODES: Final[dict[Tone, str]] = {"good": "32", "poor": "33", "bad": "31", "dim": "2", "head": "1"}
