"""What people read: sessions in order, page by page, and one in full by any of its names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from tests.worker.writing import STARTED_AT, booking, claim, naming, row, snapshot_write, write
from worker import records
from worker.ledger import Sums, sums_of_day, sums_of_session
from worker.protocol import Booking, Key
from worker.records import (
    RELATIVES_SHOWN,
    By,
    CostPages,
    Group,
    account_of,
    costs_of,
    page_of_sessions,
    rows_of,
    totals_of,
)
from worker.store import Reader, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "perdure.db")
    yield opened
    opened.close()


@pytest.fixture
def reader(store: Store) -> Iterator[Reader]:
    opened = Reader(store.path)
    yield opened
    opened.close()


def put(store: Store, *bodies: Booking) -> None:
    store.commit([write(body) for body in bodies], live=frozenset(), now=0)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 50])
def test_pages_give_every_session_once_the_latest_first(store: Store, reader: Reader, limit: int) -> None:
    # Four sessions, two of them last seen in the same millisecond.
    put(store, booking(1, "a"), booking(2, "b"), booking(2, "c"), booking(3, "d"))
    found: list[str] = []
    after = ""
    while True:
        page = page_of_sessions(reader.execute, after, limit)
        found += [record.session.session_id for record in page.records]
        after = page.after
        if not after:
            break
    assert found == ["d", "c", "b", "a"]


@pytest.mark.parametrize("after", ["²", "9" * 400, "-1:a", "a:b", ":", "½:"])
def test_page_mark_that_is_none_starts_from_the_newest(store: Store, reader: Reader, after: str) -> None:
    put(store, booking(1, "a"))
    assert len(page_of_sessions(reader.execute, after, 10).records) == 1


def test_record_has_the_rows_that_its_snapshot_has_not(store: Store, reader: Reader) -> None:
    put(store, *(booking(number) for number in range(5)))
    store.commit([write(claim()), write(snapshot_write(position=3))], live=frozenset(), now=0)
    record = page_of_sessions(reader.execute, "", 10).records[0]
    assert [one.position for one in record.rows] == [4, 5]
    assert record.sums.turns == 5 and record.sums.cost_nanousd == 5_000


def test_session_named_but_without_rows_has_empty_sums(store: Store, reader: Reader) -> None:
    store.commit([write(claim())], live=frozenset(), now=STARTED_AT)
    record = page_of_sessions(reader.execute, "", 10).records[0]
    assert record.sums.turns == 0 and record.rows == []


def test_account_is_found_by_id_alias_and_beginning(store: Store, reader: Reader) -> None:
    put(store, booking(1, "abcdef-one"))
    continued = naming("proposed-elsewhere", confirmed=False, continues=["chain-abcdef-one-1"])
    put(store, Booking(naming=continued, row=row(2, "proposed-elsewhere"), epoch=0, seen=9))
    for name in ("abcdef-one", "proposed-elsewhere", "abcdef"):
        account = account_of(reader.execute, name, 10)
        assert account is not None, name
        assert account.record.session.session_id == "abcdef-one"
        assert account.aliases == ["proposed-elsewhere"]
        assert [one.position for one in account.newest] == [2, 1]
    assert account_of(reader.execute, "abcde", 10) is None, "too short to be meant"


def child(session_id: str, parent: str, number: int = 1, **row_fields: Any) -> Booking:
    named = naming(session_id, confirmed=False, parent=parent)
    return Booking(naming=named, row=row(number, session_id, **row_fields), epoch=0, seen=9)


def test_tree_counts_sub_agents_and_theirs_with_their_side_calls(store: Store, reader: Reader) -> None:
    put(store, booking(1, "mother"), child("one", "mother"), child("two", "mother"), child("of two", "two"))
    put(store, child("two", "mother", 2, kind="side"), booking(1, "stranger"))

    costs = {
        record.session.session_id: (record.sums.cost_nanousd, record.tree.cost_nanousd)
        for record in page_of_sessions(reader.execute, "", 10).records
    }

    assert costs == {
        "mother": (1_000, 5_000),
        "one": (1_000, 1_000),
        "two": (2_000, 3_000),
        "of two": (1_000, 1_000),
        "stranger": (1_000, 1_000),
    }


def test_session_is_not_started_by_one_that_it_started_itself(store: Store, reader: Reader) -> None:
    """Whatever clients say: a tree of costs has a root."""
    put(store, child("one", "two"), child("two", "one"))

    records = page_of_sessions(reader.execute, "", 10).records

    assert {r.session.session_id: (r.session.parent_session_id, r.tree.cost_nanousd) for r in records} == {
        "one": ("two", 1_000),
        "two": (None, 2_000),
    }


def test_tree_of_a_sub_agent_whose_mother_never_came_is_its_own(store: Store, reader: Reader) -> None:
    put(store, child("one", "never seen"))

    (record,) = page_of_sessions(reader.execute, "", 10).records

    assert (record.session.parent_session_id, record.tree.cost_nanousd) == ("never seen", 1_000)


def test_account_shows_its_relatives_the_newest_first_and_not_all(store: Store, reader: Reader) -> None:
    put(store, booking(1, "mother-1"))
    put(store, *(child(f"child-{number:03}", "mother-1", number) for number in range(1, RELATIVES_SHOWN + 3)))
    fork = naming("fork-1", confirmed=False, header_name="h", continues=["chain-mother-1-1"])
    put(store, Booking(naming=fork, row=row(1, "fork-1"), epoch=0, seen=9))

    account, forked = (account_of(reader.execute, name, 10) for name in ("mother-1", "fork-1"))

    assert account is not None and forked is not None
    assert len(account.children) == RELATIVES_SHOWN
    assert account.children[0] == f"child-{RELATIVES_SHOWN + 2:03}"
    assert account.forks == ["fork-1"] and forked.record.session.forked_from == "mother-1"
    assert (forked.children, forked.forks) == ([], [])


def test_account_by_a_beginning_that_two_share_is_none(store: Store, reader: Reader) -> None:
    put(store, booking(1, "abcdef-one"), booking(1, "abcdef-two"))
    assert account_of(reader.execute, "abcdef", 10) is None


@pytest.mark.parametrize("name", ["", "%", "' OR 1=1 --", "abcdef%", "\x00"])
def test_account_of_a_stranger_is_none(store: Store, reader: Reader, name: str) -> None:
    put(store, booking(1, "abcdef-one"))
    assert account_of(reader.execute, name, 10) is None


def test_account_shows_every_key(store: Store, reader: Reader) -> None:
    keys = [Key(kind="header", name="x-session-id", value="v"), Key(kind="answer", name="", value="h")]
    put(store, Booking(naming=naming(keys=keys), row=row(1), epoch=0, seen=9))
    account = account_of(reader.execute, "session-1", 10)
    assert account is not None
    assert account.keys == [("header", "x-session-id", "v"), ("answer", "", "h")]


# -- sums and rows --------------------------------------------------------------------------------------------------

DAY: Final = 86_400_000
USED: Final = (
    booking(1, "a", cost_nanousd=7, account="one", client="codex"),
    booking(2, "a", kind="side", model="model-2", cost_nanousd=3, account="one"),
    booking(3, "a", kind="warmup", cost_nanousd=None, started_at=STARTED_AT + DAY, account="one"),
    booking(1, "b", status="error", usage=None, cost_nanousd=None, provider="openai", account="two"),
    booking(2, "b", settled=False, account="two", started_at=STARTED_AT + 3 * DAY),
)
"""Every kind and status of rows, on three days."""


def summed(groups: list[Group], by: str) -> Sums:
    total = Sums()
    for group in groups:
        total = total.plus(group.sums) if group.by == by else total
    return total


def test_costs_every_list_adds_up_to_the_total_and_that_to_the_rows(store: Store, reader: Reader) -> None:
    put(store, *USED)
    expected = Sums()
    for one in USED:
        expected = expected.plus(sums_of_day(one.row))

    groups = costs_of(reader.execute)

    assert {by: summed(groups, by) for by in get_args(By)} == dict.fromkeys(get_args(By), expected)
    assert expected.turns == len(USED) and expected.cost_nanousd == 10
    days = [group.name for group in groups if group.by == "day"]
    assert days == ["2025-06-15", "2025-06-16", "2025-06-18"]
    accounts = {group.name: group.sums.cost_nanousd for group in groups if group.by == "account"}
    assert accounts == {"one": 10, "two": 0}
    kinds = {group.name: group.sums.turns for group in groups if group.by == "kind"}
    assert kinds == {"turn": 3, "side": 1, "warmup": 1}


def test_costs_since_a_day_are_of_it_and_the_days_after(store: Store, reader: Reader) -> None:
    put(store, *USED)
    assert summed(costs_of(reader.execute, "2025-06-16"), "total").turns == 2
    assert summed(costs_of(reader.execute, "2025-06-16"), "model").turns == 2
    assert costs_of(reader.execute, "2025-06-19") == [Group("total", "", Sums())]


def test_costs_of_a_row_that_was_settled_under_another_model_name_that_one_alone(store: Store, reader: Reader) -> None:
    put(store, booking(1, settled=False, model="asked-for"), booking(1, model="answered"))
    assert [group.name for group in costs_of(reader.execute) if group.by == "model"] == ["answered"]


def test_costs_and_totals_of_rows_that_were_removed_by_age_stay(store: Store, reader: Reader) -> None:
    put(store, *(booking(number) for number in range(1, 9)))
    store.commit([write(claim()), write(snapshot_write(position=8))], live=frozenset(), now=0)
    before, totals = costs_of(reader.execute), totals_of(reader.execute)
    assert store.roll_up(0, before=STARTED_AT + DAY, live=frozenset()).rows == 7
    assert costs_of(reader.execute) == before and totals_of(reader.execute) == totals
    assert summed(before, "total").turns == 8


def test_totals_count_turns_of_conversations_and_money_of_all(store: Store, reader: Reader) -> None:
    put(store, *USED)
    expected = Sums()
    for one in USED:
        expected = expected.plus(sums_of_session(one.row))

    schema, sessions, sums = totals_of(reader.execute)

    assert (schema, sessions, sums) == (store.schema, 2, expected)
    assert (sums.turns, sums.cost_nanousd) == (3, 10)


def test_costs_of_an_empty_store_are_a_total_of_nothing(store: Store, reader: Reader) -> None:
    assert costs_of(reader.execute) == [Group("total", "", Sums())]


def test_cost_pages_hold_one_moment_whatever_is_written_meanwhile(
    store: Store, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "GROUPS_PER_PAGE", 3)
    put(store, *USED)
    whole, pages = costs_of(reader.execute), CostPages()

    first, after = pages.page(reader.execute, "", "") or ([], "")
    found = list(first)
    put(store, booking(9, "a", cost_nanousd=100))
    while after:
        page, after = pages.page(reader.execute, "", after) or ([], "")
        assert 0 < len(page) <= 3
        found += page

    assert found == whole
    assert costs_of(reader.execute) != whole


@pytest.mark.parametrize("mark", ["9:3", "1", "1:", "1:x", "1:²", ":3", "x:3", "1:" + "9" * 400])
def test_cost_page_of_a_mark_that_is_not_ours_is_none(store: Store, reader: Reader, mark: str) -> None:
    assert CostPages().page(reader.execute, "", mark) is None


def test_cost_pages_keep_only_some_lists(store: Store, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "GROUPS_PER_PAGE", 3)
    put(store, *USED)
    pages = CostPages()
    marks = [(pages.page(reader.execute, "", "") or ([], ""))[1] for _ in range(records.LISTS_KEPT + 1)]
    assert [pages.page(reader.execute, "", mark) is None for mark in marks] == [True, *[False] * records.LISTS_KEPT]


@pytest.mark.parametrize("per_look", [1, 2, 100])
def test_rows_come_once_each_in_the_order_of_their_entry(
    store: Store, reader: Reader, monkeypatch: pytest.MonkeyPatch, per_look: int
) -> None:
    monkeypatch.setattr(records, "ROWS_PER_LOOK", per_look)
    put(store, *USED)
    entered = [one.row.event_id for one in USED]
    assert [one.event_id for one in rows_of(reader.execute)] == entered
    assert [one.event_id for one in rows_of(reader.execute, session_id="a")] == entered[:3]
    assert [one.event_id for one in rows_of(reader.execute, since=STARTED_AT + DAY)] == [entered[2], entered[4]]
    assert [one.event_id for one in rows_of(reader.execute, since=STARTED_AT + DAY, session_id="b")] == [entered[4]]


def test_rows_of_an_empty_store_are_none(store: Store, reader: Reader) -> None:
    assert list(rows_of(reader.execute)) == []
