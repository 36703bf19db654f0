"""Forgetting: what goes, what stays, and that whoever goes on begins anew; on the store in SQL and the simulation's."""

from __future__ import annotations

import re
from typing import Any

import apsw
import pytest
from msgspec.structs import replace

from tests.worker.test_amend import LIVE, Desk, desk, dump_of_sql
from tests.worker.writing import STARTED_AT, naming, row, snapshot
from worker.ledger import Sums
from worker.protocol import Booking, Claim, Forget, Hint, Key, Lost, Merge, Naming, Reply, SnapshotWrite, Undo, Why
from worker.retention import going
from worker.stored import Session

__all__ = ["desk"]

BLANK = "blank"
HEADER = Key(kind="header", name="x-session-id", value="minted-by-client")


def named(session: str = "secretly", **changes: Any) -> Naming:
    """What a client that names its session says."""
    known = {"header_name": HEADER.name, "header_session_id": HEADER.value, "keys": [HEADER]}
    return naming(session, **{**known, **changes})


def forget(desk: Desk, session: str, *, tree: bool = False, live: frozenset[str] = LIVE) -> list[tuple[str, Lost]]:
    amended, lost = desk.amending(Forget(session_id=session, drawn_id=BLANK, tree=tree), live=live)
    assert not amended.refusal
    return lost


def texts_of(db: apsw.Connection, *, but: tuple[str, ...] = ()) -> str:
    """Every value of every table; but event ids, which the tests' own make of the session's."""
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    told = repr([list(db.execute(f"SELECT * FROM {name}")) for name in tables if name not in but])
    return re.sub(r"event-[\w-]+", "", told)


# -- what goes ---------------------------------------------------------------------------------------------------------


def test_forgotten_session_is_told_of_nowhere_but_in_the_log(desk: Desk) -> None:
    why = Why(reason="the client named it: header x-session-id", origin="header x-session-id", confidence="certain")
    hint = Hint("session", "x-trace-session", "hashed-hint")
    desk.turn(1, "secretly", named=named(client="curious", account="of-somebody", hints=[hint], why=why))
    desk.turn(2, "secretly", named=named(continues=["answer-1"]))
    desk.turn(3, "proposed", named=Naming(session_id="proposed", confirmed=False, keys=[HEADER], header_name="x"))
    desk.apply(Claim(naming=naming("secretly")))
    desk.apply(SnapshotWrite(session_id="secretly", epoch=1, snapshot=snapshot(3)))
    assert desk.tables.alias("proposed") == "secretly"

    forget(desk, "proposed")

    left = texts_of(desk.db, but=("session_change",))
    for erased in ("secretly", "proposed", HEADER.value, "hashed-hint", "answer-", "request-", "curious", why.reason):
        assert erased not in left, erased
    assert desk.known() == []
    (entry,) = desk.db.execute("SELECT verb, session_id, other_id, moved, before FROM session_change")
    assert entry == ("forget", "secretly", "", 3, "[]")


def test_forgotten_id_is_taken_out_of_what_others_say(desk: Desk) -> None:
    desk.turn(1, "origin")
    desk.turn(2, "fork", continues=1, settled=False)
    for number, session in ((3, "other"), (4, "origin")):
        desk.turn(number, session)
    desk.split("origin", 4, drawn="part")
    desk.merge("part", "other")
    assert "a fork of origin" in desk.row(2).why.reason and "split from origin" in desk.row(4).why.reason

    forget(desk, "origin")

    assert "origin" not in texts_of(desk.db, but=("session_change", "sqlite_schema"))
    assert desk.session("fork").forked_from is None
    assert "a fork of a forgotten session" in desk.row(2).why.reason
    assert "split from a forgotten session by the operator" in desk.row(4).why.reason


def test_changes_whose_images_held_it_lose_them_and_can_not_be_undone_any_more(desk: Desk) -> None:
    for number, session in ((1, "a"), (2, "b"), (3, "c"), (4, "d")):
        desk.turn(number, session)
    desk.merge("a", "b")
    desk.split("b", 1, drawn="part")  # Its keys are in the image of change 1, which names neither.
    desk.merge("c", "d")

    forget(desk, "part")

    assert "answer-1'" not in texts_of(desk.db)
    for number in (1, 2):
        assert "can not be undone any more" in desk.amend(Undo(change=number)).refusal
    assert not desk.amend(Undo(change=3)).refusal


def test_image_of_another_session_only_loses_the_forgotten_name(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")
    desk.turn(3, "fork", continues=1)
    desk.merge("a", "b")

    forget(desk, "fork")

    assert "fork" not in texts_of(desk.db, but=("session_change",))
    assert not desk.amend(Undo(change=1)).refusal
    assert desk.recognises(1) == "a"


def test_sub_agents_are_forgotten_with_their_session_only_where_that_is_meant(desk: Desk) -> None:
    desk.turn(1, "root")
    desk.turn(2, "child", named=naming("child", parent="root"))
    desk.turn(3, "grandchild", named=naming("grandchild", parent="child"))
    desk.turn(4, "other")

    refused = desk.amend(Forget(session_id="root", drawn_id=BLANK))
    assert "2 sub-agents" in refused.refusal and "--tree" in refused.refusal
    amended = desk.amend(Forget(session_id="root", drawn_id=BLANK, tree=True))

    assert (amended.change, amended.moved, amended.stayed) == (3, 1, 2)
    assert desk.known() == ["other"]
    log = list(desk.db.execute("SELECT session_id, moved FROM session_change ORDER BY id"))
    assert log == [("grandchild", 1), ("child", 1), ("root", 1)]


def test_session_with_a_running_turn_is_forgotten_when_its_daemon_is_gone(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "a", settled=False)
    before = dump_of_sql(desk.db)

    assert "still running" in desk.amend(Forget(session_id="a", drawn_id=BLANK)).refusal
    assert dump_of_sql(desk.db) == before
    forget(desk, "a", live=frozenset())
    assert desk.known() == []


@pytest.mark.parametrize(
    ("session", "drawn", "words"),
    [("nobody", BLANK, "no session goes by nobody"), ("a", "b", "try again"), (BLANK, "new", "no session goes by")],
)
def test_wrong_request_is_refused_in_words(desk: Desk, session: str, drawn: str, words: str) -> None:
    for number, each in ((1, "a"), (2, "b"), (3, "c")):
        desk.turn(number, each)
    forget(desk, "c")
    assert words in desk.amend(Forget(session_id=session, drawn_id=drawn)).refusal


def test_request_sent_again_is_done_once_and_told_the_same(desk: Desk) -> None:
    desk.turn(1, "a")
    act = Forget(session_id="a", drawn_id=BLANK)
    first = desk.amend(act, request="one")
    desk.turn(2, "a")
    before = dump_of_sql(desk.db)

    assert desk.amend(act, request="one") == first
    assert dump_of_sql(desk.db) == before


def test_what_was_forgotten_can_not_be_undone_and_the_remedy_is_a_backup(desk: Desk) -> None:
    desk.turn(1, "a")
    forget(desk, "a")
    assert "perdure restore" in desk.amend(Undo(change=1)).refusal


# -- what stays --------------------------------------------------------------------------------------------------------


def test_money_and_tokens_stay_in_every_sum(desk: Desk) -> None:
    for number, session in ((1, "a"), (2, "a"), (3, "b")):
        desk.turn(number, session, kind="side" if number == 2 else "turn")
    desk.memory.add_to_rolled("a", Sums(turns=7, cost_nanousd=70, priced=7))
    desk.memory.add_to_session("a", Sums(turns=7, cost_nanousd=70, priced=7))
    desk.sql.add_to_rolled("a", Sums(turns=7, cost_nanousd=70, priced=7))
    desk.sql.add_to_session("a", Sums(turns=7, cost_nanousd=70, priced=7))
    before = dump_of_sql(desk.db)

    forget(desk, "a")

    after = dump_of_sql(desk.db)
    assert after["day_sums"] == before["day_sums"]
    assert after["session_sums"] == {BLANK: before["session_sums"]["a"], "b": before["session_sums"]["b"]}
    assert desk.memory.rolled(BLANK) == desk.sql.rolled(BLANK) == Sums(turns=7, cost_nanousd=70, priced=7)


def test_cost_of_a_forgotten_sub_agent_stays_in_its_parents_tree(desk: Desk) -> None:
    desk.turn(1, "root")
    desk.turn(2, "child", named=naming("child", parent="root"))
    desk.turn(3, "grandchild", named=naming("grandchild", parent="child"))
    for number, session in enumerate(("grandchild", "child")):
        act = Forget(session_id=session, drawn_id=f"blank-{number}")
        assert not desk.amend(act).refusal

    assert desk.known() == ["root"]
    tree = desk.db.execute(
        "WITH RECURSIVE tree (id) AS (SELECT 'root' UNION "
        "SELECT session_id FROM session_state JOIN tree ON parent_session_id = tree.id) SELECT count(*) FROM tree"
    )
    assert list(tree) == [(3,)]


@pytest.mark.parametrize("ending", ["again", "only now"])
def test_row_that_comes_after_it_was_forgotten_counts_once_and_teaches_nothing(desk: Desk, ending: str) -> None:
    desk.turn(1, "a", named=named("a"))
    desk.turn(2, "a", named=named("a"), settled=ending == "again")
    desk.apply(Claim(naming=naming("a")))
    forget(desk, "a", live=frozenset())
    before = dump_of_sql(desk.db)

    body = Booking(
        naming=named("a", confirmed=True, keys=[HEADER, Key(kind="answer", name="chain", value="answer-2")]),
        row=row(2, "a", message_count=2),
        epoch=1,
        seen=1,
    )
    replies = [desk.apply(body).replies[0][1] for _ in range(2)]

    after = dump_of_sql(desk.db)
    assert (desk.row(2).session_id, desk.row(2).is_settled) == (BLANK, True)
    assert (after["sessions"].keys(), after["keys"], after["history"]) == ({BLANK}, {}, {})
    assert sum(sums.turns for sums in after["day_sums"].values()) == 2
    assert ending == "only now" or after == before
    assert replies[0].position == replies[1].position == desk.row(2).position
    is_let_go(replies[0], epoch=1)


def is_let_go(reply: Reply, epoch: int) -> None:
    """What a daemon that holds the session at an epoch hears as: it is not yours any more."""
    assert not reply.owned and reply.epoch > epoch


def test_old_rows_of_what_was_forgotten_go_with_age_though_no_snapshot_knows_them(desk: Desk) -> None:
    for number in (1, 2, 3):
        desk.turn(number, "a")
    forget(desk, "a")
    (aging,) = desk.sql.sessions_after(0, 9)
    assert desk.memory.sessions_after(0, 9)[0][1:] == aging[1:]

    rows = desk.sql.rows_after(BLANK, 0, 9)
    gone = going(aging, rows, before=STARTED_AT + 10**9, live=frozenset())
    assert [each.position for each in gone] == [1, 2]


# -- whoever goes on ---------------------------------------------------------------------------------------------------


def test_conversation_without_an_id_that_goes_on_is_a_new_session(desk: Desk) -> None:
    desk.turn(1, "a")
    assert desk.recognises(1) == "a"
    forget(desk, "a")
    assert desk.recognises(1) == "stranger"


def test_turn_that_the_owner_took_for_the_next_one_begins_the_session_it_drew(desk: Desk) -> None:
    """It had not heard yet: its turn must not bring the forgotten id back."""
    desk.turn(1, "a")
    forget(desk, "a")

    under = naming("a", confirmed=True, drawn_id="drawn", continues=["answer-1"])
    for settled in (False, True):
        outcome = desk.apply(Booking(naming=under, row=row(2, "a", settled=settled), epoch=1, seen=1))
        assert outcome.replies[0][1].session_id == "drawn"
    assert desk.known() == ["drawn"]


def test_named_session_that_goes_on_begins_anew_above_what_daemons_hold(desk: Desk) -> None:
    desk.turn(1, "a", named=named("a"))
    claimed = desk.apply(Claim(naming=named("a"))).replies[0][1]
    lost = forget(desk, "a")
    assert lost == [("boot-1", Lost(session_id="a", epoch=claimed.epoch + 1))]

    fresh = desk.apply(Claim(naming=named("a"))).replies[0][1]

    # A claim at the epoch that its sender still knows would say: what you hold is all there is.
    assert fresh.owned and fresh.epoch > claimed.epoch
    assert (fresh.position, fresh.rows, fresh.snapshot) == (0, [], None)
    assert isinstance(desk.session("a"), Session) and desk.session("a").header_session_id == HEADER.value


def test_snapshot_of_what_was_forgotten_is_not_kept(desk: Desk) -> None:
    desk.turn(1, "a", named=named("a"))
    epoch = desk.apply(Claim(naming=named("a"))).replies[0][1].epoch
    forget(desk, "a")

    reply = desk.apply(SnapshotWrite(session_id="a", epoch=epoch, snapshot=snapshot(3))).replies[0][1]
    assert not reply.owned and desk.known() == []
    desk.apply(Claim(naming=named("a")))
    desk.apply(SnapshotWrite(session_id="a", epoch=epoch, snapshot=snapshot(3)))
    assert desk.session("a").snapshot is None


def test_former_name_of_a_merged_session_begins_anew_above_what_daemons_hold(desk: Desk) -> None:
    epoch = 0
    for number, session in ((1, "b"), (2, "a")):
        desk.turn(number, session)
        for boot in ("boot-1", "boot-2", "boot-1"):
            epoch = desk.apply(Claim(naming=naming(session)), boot=boot).replies[0][1].epoch
    desk.amend(Merge(session_id="a", into="b"))
    forget(desk, "b")
    assert desk.apply(Claim(naming=replace(naming("a"), confirmed=True))).replies[0][1].epoch > epoch
