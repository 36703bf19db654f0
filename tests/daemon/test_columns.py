"""Tables for people: nothing is wider than it was asked to be, whatever stands in it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.columns import (
    Column,
    Paint,
    Screen,
    Table,
    ago,
    brief,
    cells,
    cut,
    facts,
    money,
    plain,
    short,
    span,
    widths_of,
)

COLUMNS = (
    Column("ID", 6, 20, "id"),
    Column("NAME", 10, 30),
    Column("KIND", 6, is_dispensable=True),
    Column("COST", 9, form="figure"),
)
LEAST = 6 + 10 + 9 + 2

printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=60)


@given(st.integers(LEAST, 200), st.tuples(printable, printable, printable, printable))
def test_line_is_never_wider_than_asked(width: int, texts: tuple[str, ...]) -> None:
    table = Table(COLUMNS, width)
    assert cells(table.header) <= width
    assert cells(table.line(texts)) <= width


@given(st.integers(LEAST, 200))
def test_columns_grow_together_up_to_what_they_can_use(width: int) -> None:
    widths = widths_of(COLUMNS, width)
    used = sum(widths) + sum(map(bool, widths)) - 1
    assert used == width or widths == [20, 30, 6, 9] or (widths[2] == 0 and used <= width)
    columns = zip(COLUMNS, widths, strict=True)
    assert all(column.width <= got <= max(column.width, column.most) or not got for column, got in columns)


def test_column_that_can_be_done_without_goes_where_there_is_no_room() -> None:
    assert Table(COLUMNS, LEAST).header.split() == ["ID", "NAME", "COST"]
    assert Table(COLUMNS, LEAST + 7).header.split() == ["ID", "NAME", "KIND", "COST"]


def test_figures_stand_to_the_right_and_what_is_cut_says_so_but_an_id() -> None:
    table = Table(COLUMNS, LEAST + 7)
    assert table.line(["0123456789", "claude-sonnet-4-5", "turn", "$1.00"]) == "012345 claude-so… turn       $1.00"


def test_wide_and_combining_characters_count_as_the_terminal_counts_them() -> None:
    assert (cells("模型"), cells("e\u0301"), cells("a")) == (4, 1, 1)
    assert cut("模型模型", 6) == "模型…" and cells(cut("模型模型", 6)) == 5
    assert cut("模型模型", 8) == "模型模型"
    table = Table([Column("NAME", 5), Column("N", 1)], 7)
    assert [cells(table.line([text, 1])) for text in ("模型模型", "ab", "e\u0301")] == [7, 7, 7]


def test_colours_take_no_room_and_none_are_there_without_a_wish() -> None:
    coloured = Table(COLUMNS, 80, Paint(is_on=True)).line(["a", "b", "c", "d"], tones={1: "bad"})
    bare = Table(COLUMNS, 80).line(["a", "b", "c", "d"], tones={1: "bad"})
    assert "\x1b[31mb\x1b[0m" in coloured and "\x1b" not in bare
    assert re.sub(r"\x1b\[\d*m", "", coloured) == bare


@given(printable, st.integers(40, 120))
def test_facts_keep_every_word_and_wrap_beside_the_name(text: str, width: int) -> None:
    shown = facts([("Name", text)], Screen(width)).splitlines()
    assert "".join(line[12:] for line in shown).replace(" ", "") == plain(text).replace(" ", "")
    assert all(cells(line) <= width or " " not in line[12:].strip() for line in shown)


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert plain("a\x1b[2Jb\n\u202e") == "a?[2Jb??"
    assert plain(None) == plain("") == "-"


@pytest.mark.parametrize(
    ("nanousd", "shown"),
    [
        (None, "unknown"),
        (0, "$0.0000"),
        (123_450_000, "$0.1235"),
        (9_999_949_999, "$9.9999"),
        (9_999_950_001, "$10.00"),
        (1_234_560_000_000, "$1,234.56"),
        (9_999_994_999_999, "$9,999.99"),
        (9_999_995_000_001, "$10,000"),
        (999_999_000_000_000, "$999,999"),
        (1_234_567_000_000_000, "$1.23M"),
    ],
)
def test_money(nanousd: int | None, shown: str) -> None:
    assert money(nanousd) == shown


@given(st.integers(0, 10**17))
def test_money_and_counts_fit_their_columns(number: int) -> None:
    assert len(money(number)) <= 9
    assert len(short(number / 1_000)) <= 5


def test_times() -> None:
    assert [span(seconds) for seconds in (-5, 59, 60, 7_200, 90_000)] == ["0s", "59s", "1m", "2h", "1d"]
    assert [brief(seconds) for seconds in (0.0000412, 0.00123, 0.25, 3.21)] == ["41 µs", "1.23 ms", "250 ms", "3.21 s"]
    assert ago(None, 0) == "never" and ago("1970-01-01T00:00:10Z", 75) == "1m"
