"""What it cost, for people: lists that fit, the beginnings of long ones, and the rows themselves."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.bills import DAYS_SHOWN, ENTRIES_SHOWN, costs_page, row_cells, row_tones, rows_table
from daemon.columns import Paint, Screen, cells
from daemon.views import costs_object
from worker.ledger import Sums
from worker.records import By, Group

FIGURES = (123_456, 0, 10**9, 10**12, 7, 5, 1_234_560_000_000, 9, 1)
SUMS = Sums(*FIGURES)
LISTS: tuple[By, ...] = ("day", "kind", "provider", "model", "client", "account")


def shown(count: int) -> dict[str, Any]:
    groups = [Group("total", "", SUMS)]
    for by in LISTS:
        groups += [Group(by, f"{by}-{number:03}-模型-with-a-long-name-of-its-own", SUMS) for number in range(count)]
    return costs_object(groups, {"account-000-模型-with-a-long-name-of-its-own": "Ann"})


@pytest.mark.parametrize("width", [80, 132])
@pytest.mark.parametrize("by", ["", "model"])
def test_page_fits(width: int, by: str) -> None:
    page = costs_page(shown(30), since="2026-01-31", by=by, screen=Screen(width))
    assert max(map(cells, page.splitlines())) <= width
    assert "SINCE 2026-01-31" in page and "$1,234.56" in page


def test_page_shows_the_beginnings_of_lists_and_where_the_rest_is() -> None:
    page = costs_page(shown(30), since="", by="", screen=Screen())
    assert f"and {30 - DAYS_SHOWN} more: `perdure costs --by day`" in page
    assert f"and {30 - ENTRIES_SHOWN} more: `perdure costs --by account`" in page
    assert "BY KIND" not in page and "\nAnn " in page
    assert page.index("day-029") < page.index("day-028"), "the newest day is the first"


def test_page_of_one_list_is_whole() -> None:
    page = costs_page(shown(30), since="", by="kind", screen=Screen())
    assert all(f"kind-{number:03}" in page for number in range(30)) and "BY DAY" not in page


def test_page_of_nothing_says_so() -> None:
    assert "nothing yet" in costs_page(costs_object([Group("total", "", Sums())], {}), since="", by="", screen=Screen())


@pytest.mark.parametrize("with_session", [True, False])
def test_rows_fit_and_what_went_wrong_is_coloured(with_session: bool) -> None:
    row = {
        "started_at": "2026-11-30T12:00:00.000Z",
        "session_id": "a" * 32,
        "kind": "warmup",
        "status": "interrupted",
        "settled": True,
        "model": "claude-sonnet-4-5-20250929",
        "input_tokens": 1,
        "cache_read_tokens": 2,
        "cache_write_tokens": 3,
        "output_tokens": None,
        "cost_nanousd": 1_234_560_000_000,
    }
    line = rows_table(Screen(), with_session=with_session).line(row_cells(row, with_session=with_session))
    assert cells(line) <= 80 and "interrupted" in line and ("aaaaaaaa" in line) is with_session
    table = rows_table(Screen(paint=Paint(is_on=True)), with_session=with_session)
    tones = row_tones(row, with_session=with_session)
    assert "\x1b[33minterrupted\x1b[0m" in table.line(row_cells(row, with_session=with_session), tones=tones)
    assert row_tones(row | {"status": "complete"}, with_session=with_session) == {}
