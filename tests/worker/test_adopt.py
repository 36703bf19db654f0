"""Sessions of another gateway: adopted once, added once, on the store in SQL and on the simulation's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.worker.test_amend import Desk, desk
from tests.worker.writing import STARTED_AT, naming, row, snapshot
from worker.adopt import figures_of, judge
from worker.backup import verify
from worker.batch import Write
from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import (
    Act,
    Adopt,
    Adopted,
    Adoption,
    Amend,
    Amended,
    Booking,
    Claim,
    Forget,
    Key,
    Lost,
    Merge,
    Naming,
    SnapshotWrite,
    Split,
    Undo,
)
from worker.retention import KEPT_ROWS_IDLE, roll_up
from worker.store import Store

__all__ = ["desk"]

HEADER = Key(kind="header", name="x-session-id", value="minted")
DAY = DayKey("2025-06-15", "turn", "anthropic", "m-1", "c", "")
PAST = {"turns": 3, "cache_read_tokens": 500, "cache_write_tokens": 60, "output_tokens": 7, "cost_nanousd": 9_000}


def adoption(foreign_id: str = "ses_1", session_id: str = "here", **changes: Any) -> Adoption:
    whole: dict[str, Any] = {
        "keys": [HEADER],
        "header_name": HEADER.name,
        "header_session_id": HEADER.value,
        "fingerprint": "lore:0a1b",
        "client": "c",
        "provider": "anthropic",
        "model": "m-1",
        "message_count": 6,
        "first_seen_at": STARTED_AT - 1_000,
        "last_seen_at": STARTED_AT,
        "snapshot": snapshot(1, last_turn_at=STARTED_AT),
        **PAST,
    }
    return Adoption(foreign_id=foreign_id, session_id=session_id, **(whole | changes))


def adopt(desk: Desk, *sessions: Adoption, request: str = "") -> Amended:
    return desk.amend(Adopt(source="lore", sessions=list(sessions)), request=request)


def outcomes(amended: Amended) -> list[str]:
    return [each.outcome for each in amended.adopted]


def named(**changes: Any) -> Naming:
    """What the client of `adoption` says next."""
    return naming("here", header_name=HEADER.name, header_session_id=HEADER.value, keys=[HEADER], **changes)


# -- once --------------------------------------------------------------------------------------------------------------


def test_adopted_session_is_known_by_its_name_its_state_and_its_past(desk: Desk) -> None:
    amended = adopt(desk, adoption())

    assert (amended.change, amended.verb, amended.moved) == (1, "adopt", 1)
    assert amended.adopted == [
        Adopted(session_id="here", outcome="new", is_calibrated=True, is_alias=True, turns=3, cost_nanousd=9_000)
    ]
    session = desk.session("here")
    assert (session.header_session_id, session.fingerprint, session.model) == ("minted", "lore:0a1b", "m-1")
    assert (session.first_seen_at, session.last_seen_at, session.last_position) == (STARTED_AT - 1_000, STARTED_AT, 0)
    assert session.snapshot == snapshot(1, last_turn_at=STARTED_AT)
    assert (session.why.origin, session.why.confidence) == ("import lore", "certain")
    assert desk.tables.alias("ses_1") == "here" and desk.tables.named(HEADER.name, HEADER.value, 2) == ["here"]
    past = Sums(turns=3, cache_read_tokens=500, cache_write_tokens=60, output_tokens=7, cost_nanousd=9_000, priced=3)
    assert desk.tables.rolled("here") == past
    assert desk.memory.session_sums["here"] == past
    assert desk.memory.day_sums == desk.memory.day_rolled == {DAY: past}


def test_next_turn_of_its_client_goes_on_from_the_imported_state(desk: Desk) -> None:
    adopt(desk, adoption())

    claimed = desk.apply(Claim(naming=named())).replies[0][1]
    desk.turn(1, "here", named=named())

    assert (claimed.session_id, claimed.owned, claimed.position) == ("here", True, 0)
    assert claimed.snapshot is not None and claimed.snapshot.last_known_input == 240
    assert (desk.session("here").last_position, desk.memory.session_sums["here"].turns) == (1, 4)


@pytest.mark.parametrize("request_id", ["same", "another"])
def test_same_import_again_changes_nothing(desk: Desk, request_id: str) -> None:
    first = adopt(desk, adoption(), adoption("ses_2", "there", keys=[]), request="same")
    before = everything(desk)

    again = adopt(desk, adoption(), adoption("ses_2", "there", keys=[]), request=request_id)

    assert everything(desk) == before
    assert (again.change, again.moved) == ((first.change, 2) if request_id == "same" else (0, 0))
    assert outcomes(again) == ([] if request_id == "same" else ["unchanged", "unchanged"])


def test_later_file_adds_the_difference_and_an_older_one_nothing(desk: Desk) -> None:
    adopt(desk, adoption())
    later = adoption(turns=5, cost_nanousd=9_500, last_seen_at=STARTED_AT + 10)

    assert adopt(desk, later).adopted[0].turns == 2
    assert outcomes(adopt(desk, adoption())) == ["unchanged"]
    assert outcomes(adopt(desk, later)) == ["unchanged"]
    assert desk.memory.session_sums["here"] == figures_of(later)
    assert desk.memory.day_sums[DAY].cost_nanousd == 9_500


def test_figure_that_fell_lowers_no_sum_and_is_not_added_when_it_rises_again(desk: Desk) -> None:
    adopt(desk, adoption(turns=10))
    adopt(desk, adoption(turns=4, output_tokens=8))
    adopt(desk, adoption(turns=11))

    assert (desk.memory.session_sums["here"].turns, desk.memory.session_sums["here"].output_tokens) == (11, 8)


def test_judging_tells_what_adopting_does_and_changes_nothing(desk: Desk) -> None:
    for each in (adoption(), adoption(turns=4), adoption(turns=4)):
        before = everything(desk)
        told = judge(desk.tables, "lore", each).told
        assert everything(desk) == before
        assert adopt(desk, each).adopted == [told]


# -- what is known here already ----------------------------------------------------------------------------------------


def test_session_that_had_turns_here_keeps_its_state_and_gets_its_past(desk: Desk) -> None:
    desk.turn(1, "here", named=named())
    epoch = desk.apply(Claim(naming=named())).replies[0][1].epoch
    desk.apply(SnapshotWrite(session_id="here", epoch=epoch, snapshot=snapshot(4, position=1)))

    amended, lost = desk.amending(Adopt(source="lore", sessions=[adoption()]))

    assert (outcomes(amended), amended.adopted[0].is_calibrated, lost) == (["joined"], False, [])
    session = desk.session("here")
    assert session.snapshot is not None and (session.snapshot.generation, session.owner) == (4, "boot-1")
    assert (session.first_seen_at, session.last_seen_at) == (STARTED_AT - 1_000, STARTED_AT + 1)
    assert (desk.memory.session_sums["here"].turns, desk.tables.alias("ses_1")) == (4, "here")


def test_later_calibration_is_taken_until_the_first_turn_here(desk: Desk) -> None:
    adopt(desk, adoption())
    claimed = desk.apply(Claim(naming=named())).replies[0][1]
    newer = snapshot(1, last_turn_at=STARTED_AT + 5, last_known_input=999)

    amended, lost = desk.amending(Adopt(source="lore", sessions=[adoption(snapshot=newer)]))

    # Whoever holds it holds the state as it was.
    assert lost == [("boot-1", Lost(session_id="here", epoch=claimed.epoch + 1))]
    assert (amended.adopted[0].is_calibrated, desk.session("here").owner) == (True, "")
    stored = desk.session("here").snapshot
    assert stored is not None and (stored.generation, stored.last_known_input) == (2, 999)

    older = snapshot(1, last_turn_at=STARTED_AT + 1)
    assert outcomes(adopt(desk, adoption(snapshot=older))) == ["unchanged"]
    desk.turn(1, "here", named=named())
    newest = snapshot(1, last_turn_at=STARTED_AT + 9)
    assert outcomes(adopt(desk, adoption(snapshot=newest))) == ["unchanged"]
    assert desk.session("here").snapshot == stored


def test_turn_that_still_runs_counts_as_one_here(desk: Desk) -> None:
    adopt(desk, adoption())
    desk.turn(1, "here", named=named(), settled=False)
    amended = adopt(desk, adoption(snapshot=snapshot(1, last_turn_at=STARTED_AT + 5)))
    assert not amended.adopted[0].is_calibrated


def test_foreign_id_that_means_something_here_is_no_alias(desk: Desk) -> None:
    desk.turn(1, "taken")
    amended = adopt(desk, adoption("taken"), adoption("here"))
    assert [each.is_alias for each in amended.adopted] == [False, False]
    assert desk.tables.alias("taken") is None


def test_sessions_that_started_each_other_are_not_each_others_parents(desk: Desk) -> None:
    adopt(desk, adoption("a", "one", keys=[], parent="two"), adoption("b", "two", keys=[], parent="one"))
    assert (desk.session("one").parent_session_id, desk.session("two").parent_session_id) == ("two", None)


# -- corrections -------------------------------------------------------------------------------------------------------


def test_merged_session_takes_its_past_along_and_gets_the_difference_of_a_later_file(desk: Desk) -> None:
    adopt(desk, adoption())
    desk.turn(1, "other")
    desk.merge("here", "other")
    assert adopt(desk, adoption(turns=5)).adopted[0].session_id == "other"
    assert (desk.memory.session_sums["other"].turns, desk.tables.rolled("other").turns) == (6, 5)

    # What came since stays where it was put.
    assert not desk.amend(Undo(change=2)).refusal
    assert [desk.memory.session_sums[name].turns for name in ("here", "other")] == [3, 3]


def test_forgotten_session_is_not_brought_back_and_its_money_stays(desk: Desk) -> None:
    adopt(desk, adoption())
    days = desk.memory.day_sums.copy()
    assert not desk.amend(Forget(session_id="ses_1", drawn_id="blank")).refusal

    before = everything(desk)
    assert outcomes(adopt(desk, adoption(turns=9))) == ["forgotten"]

    assert everything(desk) == before and desk.known() == []
    assert desk.memory.day_sums == days and desk.memory.session_sums["blank"].turns == 3
    assert "ses_1" not in repr(before["openings"])


def test_import_is_not_undone_and_says_what_helps(desk: Desk) -> None:
    adopt(desk, adoption())
    assert "session forget" in desk.amend(Undo(change=1)).refusal


def test_daemons_keep_what_they_remember_of_names(desk: Desk) -> None:
    body = Amend(request="r", act=Adopt(source="lore", sessions=[adoption()]))
    assert desk.apply(body).changes == 0


# -- whatever is done in whatever order --------------------------------------------------------------------------------

FOREIGN = ("f0", "f1", "f2")
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(("adopt", "adopt", "turn", "turn", "merge", "split", "undo", "forget", "roll")),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=24,
)


@given(deeds=DEEDS)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_any_imports_among_turns_and_corrections_keep_every_sum(deeds: list[tuple[str, int, int]]) -> None:
    desk = Desk()
    most: dict[str, Sums] = {}
    for number, (deed, one, two) in enumerate(deeds, 1):
        before = total(desk)
        sessions = [*desk.known(), "nobody"]
        session, other = sessions[one % len(sessions)], sessions[two % len(sessions)]
        match deed:
            case "adopt":
                each = adoption(FOREIGN[one % 3], f"s{one % 2}", turns=two, cost_nanousd=one * two)
                changed = adopt(desk, each)
                if "forgotten" not in outcomes(changed):
                    own = most.get(each.foreign_id, Sums())
                    most[each.foreign_id] = Sums(*map(max, own, figures_of(each)))
                assert adopt(desk, each).change == 0
            case "turn":
                desk.turn(number, f"s{one % 4}")
            case "merge":
                desk.amend(Merge(session_id=session, into=other))
            case "split":
                events = sorted(each.event_id for each in desk.memory.rows_of(session))[:1]
                desk.amend(Split(session_id=session, drawn_id=f"d{number}", events=events or ["none"]))
            case "undo":
                desk.amend(Undo(change=1 + one))
            case "forget":
                desk.amend(Forget(session_id=session, drawn_id=f"d{number}", tree=True))
            case _:
                for tables in (desk.memory, desk.sql):
                    roll_up(tables, 0, before=STARTED_AT + 10**9, live=frozenset())
                desk.memory.commit()
        assert all(new >= old for new, old in zip(total(desk), before, strict=True))
        check(desk, most)


def total(desk: Desk) -> Sums:
    found = Sums()
    for sums in desk.memory.day_sums.values():
        found = found.plus(sums)
    return found


def check(desk: Desk, most: dict[str, Sums]) -> None:
    """Total = rolled + rows, for every session and every day; and all that was imported is in them, once."""
    memory = desk.memory
    sessions, days = dict(memory.session_rolled), dict(memory.day_rolled)
    imported = total(desk)
    for each in memory.rows.values():
        sessions[each.session_id] = sessions.get(each.session_id, Sums()).plus(sums_of_session(each))
        days[day_key(each)] = days.get(day_key(each), Sums()).plus(sums_of_day(each))
    assert without_nothing(memory.session_sums) == without_nothing(sessions)
    assert without_nothing(memory.day_sums) == without_nothing(days)
    assert set(sessions) <= set(memory.sessions)
    of_rows = [sums for key, sums in memory.day_sums.items() if key != DAY]
    for sums in of_rows:
        imported = imported.minus(sums)
    expected = Sums()
    for sums in most.values():
        expected = expected.plus(sums)
    assert imported == expected


def without_nothing(sums: dict[Any, Sums]) -> dict[Any, Sums]:
    return {key: each for key, each in sums.items() if each != Sums()}


# -- a real store ------------------------------------------------------------------------------------------------------


def test_store_stays_whole_through_import_turns_merge_forgetting_and_retention(tmp_path: Path) -> None:
    path = tmp_path / "perdure.db"
    store = Store(path)
    numbers = iter(range(1, 1_000))

    def do(body: Any) -> None:
        store.commit([Write("boot-1", next(numbers), body)], live=frozenset(), now=STARTED_AT)

    imported = [adoption(f"ses_{n}", f"here-{n}", keys=[], header_name="", turns=n, parent="here-0") for n in range(9)]
    do(Amend(request="a", act=Adopt(source="lore", sessions=imported)))
    for number in range(1, 7):
        session = f"here-{number % 3}"
        do(Booking(naming=naming(session), row=row(number, session), epoch=1, seen=0))
    acts: tuple[Act, ...] = (Merge(session_id="here-1", into="here-2"), Forget(session_id="here-3", drawn_id="blank"))
    for number, act in enumerate(acts):
        do(Amend(request=f"b{number}", act=act))
    do(Amend(request="c", act=Adopt(source="lore", sessions=[replace(each, turns=20) for each in imported])))
    store.roll_up(0, before=STARTED_AT + 10**9, live=frozenset())
    store.close()

    held = verify(path, lambda _: (), lambda *_: None)
    # All but the forgotten one have had twenty turns there; these six came here.
    assert (held.turns, held.sessions) == (8 * 20 + 3 + 6, 7)
    assert held.rows >= KEPT_ROWS_IDLE


def everything(desk: Desk) -> dict[str, Any]:
    memory = desk.memory
    tables = ("sessions", "aliases", "rows", "keys", "session_sums", "day_sums", "session_rolled", "day_rolled")
    return {name: dict(getattr(memory, name)) for name in (*tables, "amendments", "openings")}
