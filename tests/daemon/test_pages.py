"""What people read of sessions and corrections: sentences that are right for one, for many, and for none."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.pages import changed_page, forgotten_page


def forgotten(rows: int, sub_agents: int = 0) -> dict[str, Any]:
    return {
        "change": 4,
        "verb": "forget",
        "session_id": "one",
        "sub_agents": sub_agents,
        "rows_kept": rows,
        "no_longer_undoable": [],
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (0, "change 4: forgot one; it had no rows"),
        (1, "change 4: forgot one; 1 row stays in the sums, under no name"),
        (1_200, "change 4: forgot one; 1,200 rows stay in the sums, under no name"),
    ],
)
def test_forgetting_says_what_stays(rows: int, said: str) -> None:
    assert forgotten_page(forgotten(rows)).splitlines()[0] == said


def test_forgetting_a_tree_names_its_sub_agents() -> None:
    assert forgotten_page(forgotten(0, 2)).startswith("change 4: forgot one and 2 sub-agents; they had no rows")


@pytest.mark.parametrize(
    ("stayed", "said"),
    [
        (0, "one and two"),
        (1, "one and two; 1 row made since stays in two"),
        (2, "one and two; 2 rows made since stay in two"),
    ],
)
def test_undoing_says_what_is_not_taken_back(stayed: int, said: str) -> None:
    shown = {"change": 5, "verb": "undo", "undoes": 3, "moved": 1, "stayed": stayed}
    page = changed_page(shown | {"session_id": "one", "other_id": "two"})
    assert page == f"change 5: took back change 3, 1 row between {said}"
