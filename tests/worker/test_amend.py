"""An operator's corrections, on the store in SQL and on the simulation's: what moves, what stays, what comes back."""

from __future__ import annotations

from itertools import count
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.simulation.model import MemoryTables
from tests.worker.writing import STARTED_AT, USAGE, naming, row, snapshot
from worker import batch
from worker import store as store_module
from worker.batch import Outcome, Write
from worker.ledger import Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import (
    Act,
    Amend,
    Amended,
    Booking,
    Claim,
    Forget,
    Hint,
    Key,
    KeyKind,
    Lost,
    Merge,
    Naming,
    Row,
    SnapshotWrite,
    Split,
    Undo,
    Warm,
    Why,
)
from worker.stored import Session, Tables
from worker.tables import ROW_COLUMNS, SESSION_COLUMNS, SqliteTables, row_of, session_of

LIVE = frozenset({"boot-1"})


def ping_row(number: int, session: str, *, window: int, boot: str = "boot-1") -> Row:
    """An open one."""
    return row(number, session, settled=False, kind="warmup", boot=boot, window_started_at=STARTED_AT + window)


class Desk:
    """A store in SQL and one in memory, which are told the same and must answer the same."""

    def __init__(self) -> None:
        self.memory = MemoryTables()
        self.db = apsw.Connection(":memory:")
        self.db.execute("PRAGMA foreign_keys = ON")
        for _name, step in store_module._steps():
            list(self.db.execute(step))
        self.sql = SqliteTables(self.db)
        self._numbers = count(1)

    @property
    def tables(self) -> Tables:
        return self.sql

    def apply(self, body: Any, *, live: frozenset[str] = LIVE, boot: str = "boot-1", now: int = STARTED_AT) -> Outcome:
        writes = [Write(boot, next(self._numbers), body)]
        told = batch.apply(self.memory, writes, live=live, now=now)
        self.memory.commit()
        self.db.execute("BEGIN")
        assert batch.apply(self.sql, writes, live=live, now=now) == told
        self.db.execute("COMMIT")
        assert dump_of_memory(self.memory) == dump_of_sql(self.db)
        return told

    def turn(
        self,
        number: int,
        session: str,
        *,
        settled: bool = True,
        continues: int = 0,
        kind: str = "turn",
        boot: str = "boot-1",
        named: Naming | None = None,
    ) -> Row:
        """One turn, begun and perhaps ended, of a conversation whose chain is made of the turns' numbers."""
        known = named or naming(session, continues=[f"answer-{continues}"] if continues else [])
        entered = row(number, session, settled=False, boot=boot, kind=kind, message_count=number)
        keys = [Key(kind="request", name="chain", value=f"request-{number}")]
        begun = replace(known, keys=[*known.keys, *keys], chain_length=2 * number - 1)
        reply = self.apply(Booking(naming=begun, row=entered, epoch=1, seen=0)).replies[0][1]
        if settled:
            self.end(number, reply.session_id, named=known, kind=kind, boot=boot)
        return row(number, session)

    def end(
        self, number: int, session: str, *, named: Naming | None = None, kind: str = "turn", boot: str = "boot-1"
    ) -> None:
        known = replace(named or naming(session), session_id=session, confirmed=True)
        keys = [Key(kind="answer", name="chain", value=f"answer-{number}")]
        ended = replace(known, keys=[*known.keys, *keys], chain_length=2 * number)
        settled = row(number, session, boot=boot, kind=kind, message_count=number)
        # The id of the row is that of its beginning, whatever the session is called now.
        event = next(each for each in self.memory.rows if each.endswith(f"{number:06d}"))
        self.apply(Booking(naming=ended, row=replace(settled, event_id=event), epoch=1, seen=0))

    def ping(self, number: int, session: str, *, window: int = 1, settled: bool = True, boot: str = "boot-1") -> bool:
        """A keep-alive by the session's owner, of the window of that turn; whether it might be sent."""
        if not self.sql.switch().is_on:
            self.amend(Warm(to="on"))
        epoch = self.apply(Claim(naming=naming(session)), boot=boot).replies[0][1].epoch
        opened = ping_row(number, session, window=window, boot=boot)
        reply = self.apply(Booking(naming=naming(session), row=opened, epoch=epoch, seen=0), boot=boot).replies[0][1]
        if settled and reply.entered:
            ended = replace(opened, status="complete", ended_at=opened.started_at + 1, usage=USAGE, cost_nanousd=1_000)
            self.apply(Booking(naming=naming(session), row=ended, epoch=epoch, seen=0), boot=boot)
        return reply.entered

    def amend(self, act: Act, *, request: str = "", live: frozenset[str] = LIVE) -> Amended:
        return self.amending(act, request=request, live=live)[0]

    def amending(
        self, act: Act, *, request: str = "", live: frozenset[str] = LIVE
    ) -> tuple[Amended, list[tuple[str, Lost]]]:
        body = Amend(request=request or f"request-{next(self._numbers)}", act=act)
        outcome = self.apply(body, live=live, boot="command-1")
        amended = outcome.replies[0][1].amended
        assert amended is not None
        return amended, outcome.lost

    def merge(self, source: str, into: str) -> Amended:
        return self.amend(Merge(session_id=source, into=into))

    def split(self, session: str, *numbers: int, first: int = 0, drawn: str = "drawn") -> Amended:
        events = [self.event(number) for number in numbers]
        first_event = self.event(first) if first else ""
        return self.amend(Split(session_id=session, drawn_id=drawn, first_event=first_event, events=events))

    def event(self, number: int) -> str:
        return next(each for each in self.memory.rows if each.endswith(f"{number:06d}"))

    def row(self, number: int) -> Row:
        return self.memory.rows[self.event(number)]

    def session(self, session_id: str) -> Session:
        found = self.sql.session(session_id)
        assert found is not None
        return found

    def known(self) -> list[str]:
        """The ids of all sessions but those that stand for forgotten ones."""
        return sorted(name for name, session in self.memory.sessions.items() if not session.forgotten_at)

    def numbers_of(self, session_id: str) -> list[int]:
        """The session's turns in the order of their positions."""
        rows = sorted(self.memory.rows_of(session_id), key=lambda each: each.position)
        return [int(each.event_id[-6:]) for each in rows]

    def recognises(self, number: int) -> str:
        """The session of a request that goes on from that turn's answer."""
        known = Naming(session_id="stranger", confirmed=False, continues=[f"answer-{number}"])
        found, _ = batch.resolve(self.memory, known, at=STARTED_AT, live=LIVE)
        self.memory.rollback()
        return found.session_id


@pytest.fixture
def desk() -> Desk:
    return Desk()


# -- merge -------------------------------------------------------------------------------------------------------------


def test_merge_leaves_one_session_with_all_rows_in_the_order_of_their_start(desk: Desk) -> None:
    for number, session in ((1, "a"), (2, "b"), (3, "a"), (4, "b")):
        desk.turn(number, session)

    amended = desk.merge("a", "b")

    assert (amended.refusal, amended.change, amended.moved) == ("", 1, 2)
    assert desk.tables.session("a") is None and desk.tables.alias("a") == "b"
    assert desk.numbers_of("b") == [1, 2, 3, 4]
    assert [desk.row(number).position for number in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert desk.session("b").last_position == 4


def test_merge_says_on_each_moved_row_where_it_was_and_why(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")
    before = desk.row(2).why

    desk.merge("a", "b")

    assert desk.row(1).why == Why(
        reason="merged from a by the operator (change 1); before: ", origin="operator", confidence="certain"
    )
    assert desk.row(2).why == before


def test_merge_takes_what_changes_with_each_turn_from_the_later_one(desk: Desk) -> None:
    desk.turn(5, "a")
    desk.turn(2, "b")

    desk.merge("a", "b")

    merged = desk.session("b")
    assert (merged.first_seen_at, merged.last_seen_at) == (STARTED_AT + 2, STARTED_AT + 5)
    assert (merged.message_count, merged.chain_length) == (5, 10)


def test_merge_makes_both_nobodys_above_every_epoch_there_was(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")
    for boot in ("boot-1", "boot-2", "boot-1", "boot-2"):
        desk.apply(Claim(naming=naming("a")), boot=boot)
    desk.apply(Claim(naming=naming("b")), boot="boot-1")
    desk.apply(SnapshotWrite(session_id="b", epoch=1, snapshot=snapshot(3)), boot="boot-1")

    _, lost = desk.amending(Merge(session_id="a", into="b"))

    assert lost == [("boot-2", Lost(session_id="a", epoch=5)), ("boot-1", Lost(session_id="b", epoch=5))]
    merged = desk.session("b")
    assert (merged.owner, merged.epoch, merged.snapshot) == ("", 5, None)


def test_merge_while_a_turn_runs_settles_it_on_the_merged_session(desk: Desk) -> None:
    desk.turn(1, "a", settled=False)
    desk.turn(2, "b")

    desk.merge("a", "b")
    desk.end(1, "a")

    assert desk.row(1).session_id == "b" and desk.row(1).is_settled
    assert desk.numbers_of("b") == [2, 1]


def test_merged_conversations_both_go_on_in_one_session(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")

    desk.merge("a", "b")

    assert desk.recognises(1) == desk.recognises(2) == "b"


def test_merge_of_a_parent_into_its_child_has_no_session_start_itself(desk: Desk) -> None:
    desk.turn(1, "parent")
    desk.turn(2, "child", named=naming("child", parent="parent"))
    desk.turn(3, "grandchild", named=naming("grandchild", parent="child"))

    desk.merge("parent", "grandchild")

    assert desk.session("grandchild").parent_session_id is None
    assert desk.session("child").parent_session_id == "grandchild"


def test_merge_hands_over_sub_agents_forks_aliases_and_hints(desk: Desk) -> None:
    hint = Hint("session", "x-session", "hashed")
    desk.turn(1, "a", named=naming("a", hints=[hint]))
    desk.turn(2, "b")
    desk.turn(3, "child", named=naming("child", parent="a"))
    desk.turn(4, "fork", continues=1)
    desk.turn(5, "proposed", named=Naming(session_id="proposed", confirmed=False, continues=["answer-1"]))
    assert desk.tables.alias("proposed") == "a" and desk.session("fork").forked_from == "a"

    desk.merge("a", "b")

    assert desk.session("child").parent_session_id == desk.session("fork").forked_from == "b"
    assert desk.tables.alias("proposed") == "b"
    assert desk.tables.hints_of("b") == {"x-session": ("hashed", 1)}


def test_merge_leaves_every_window_its_ping(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")
    assert desk.ping(3, "a", window=1) and desk.ping(4, "b", window=1) and desk.ping(5, "a", window=2)

    assert not desk.merge("a", "b").refusal

    assert desk.session("b").last_position == 5
    assert not desk.ping(6, "b", window=1) and not desk.ping(7, "b", window=2)
    assert desk.ping(8, "b", window=3)


def test_merge_sent_again_is_done_once(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")
    first = desk.amend(Merge(session_id="a", into="b"), request="one")
    before = dump_of_sql(desk.db)

    assert desk.amend(Merge(session_id="a", into="b"), request="one") == first
    assert dump_of_sql(desk.db) == before


# -- split -------------------------------------------------------------------------------------------------------------


def test_split_from_a_turn_takes_it_and_all_that_began_after_it(desk: Desk) -> None:
    for number in (1, 2, 3, 4):
        desk.turn(number, "a")

    amended = desk.split("a", first=3)

    assert (amended.other_id, amended.moved) == ("drawn", 2)
    assert (desk.numbers_of("a"), desk.numbers_of("drawn")) == ([1, 2], [3, 4])
    assert [desk.row(number).position for number in (1, 2, 3, 4)] == [1, 2, 1, 2]
    part = desk.session("drawn")
    assert (part.forked_from, part.message_count, part.last_seen_at) == ("a", 4, STARTED_AT + 4)
    assert (desk.session("a").message_count, desk.session("a").last_seen_at) == (2, STARTED_AT + 2)


def test_split_conversations_each_go_on_in_their_own_session(desk: Desk) -> None:
    """Two conversations that were taken for one: of the older, only its history tells where it was."""
    for number in (1, 2, 3, 4):
        desk.turn(number, "a")

    desk.split("a", 2, 4)

    assert (desk.recognises(3), desk.recognises(4)) == ("a", "drawn")


def test_split_leaves_the_name_its_client_gave_where_it_was(desk: Desk) -> None:
    header = Key(kind="header", name="x-session-id", value="minted")
    named = naming("a", header_name="x-session-id", header_session_id="minted", keys=[header])
    desk.turn(1, "a", named=named)
    desk.turn(2, "a", named=named)

    desk.split("a", 2)

    assert [key.kind for key in desk.tables.keys_of("a") if key.kind == "header"] == ["header"]
    assert desk.session("drawn").header_name is None


def test_split_of_a_turn_that_still_runs_is_refused_until_its_daemon_is_gone(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "a", settled=False)

    assert "still running" in desk.split("a", 2).refusal
    gone = desk.amend(Split(session_id="a", drawn_id="drawn", events=[desk.event(2)]), live=frozenset())
    assert not gone.refusal


# -- undo --------------------------------------------------------------------------------------------------------------


def test_undone_merge_leaves_newer_turns_where_they_are_and_counts_them(desk: Desk) -> None:
    desk.turn(1, "a")
    desk.turn(2, "b")
    desk.merge("a", "b")
    desk.turn(3, "b")
    desk.turn(4, "a")

    amended = desk.amend(Undo(change=1))

    assert (amended.refusal, amended.moved, amended.stayed) == ("", 1, 2)
    assert (desk.numbers_of("a"), desk.numbers_of("b")) == ([1], [2, 3, 4])
    assert desk.session("b").message_count == 4
    # What goes on from an answer that newer turns left behind is a fork, as ever.
    assert [desk.recognises(number) for number in (1, 2, 4)] == ["a", "stranger", "b"]


def test_undone_merge_gives_back_a_turn_that_ran_through_it(desk: Desk) -> None:
    desk.turn(1, "b")
    desk.turn(2, "a", settled=False)
    desk.merge("a", "b")
    assert "still running" in desk.amend(Undo(change=1)).refusal
    desk.end(2, "a")

    desk.amend(Undo(change=1))

    assert (desk.numbers_of("a"), desk.recognises(2)) == ([2], "a")
    assert (desk.numbers_of("b"), desk.recognises(1)) == ([1], "b")


def test_undone_split_with_newer_turns_keeps_the_new_session_for_them(desk: Desk) -> None:
    for number in (1, 2):
        desk.turn(number, "a")
    desk.split("a", 2)
    desk.turn(3, "drawn")

    amended = desk.amend(Undo(change=1))

    assert (amended.moved, amended.stayed) == (1, 1)
    assert (desk.numbers_of("a"), desk.numbers_of("drawn")) == ([1, 2], [3])


def test_undone_split_leaves_the_drawn_id_as_an_alias(desk: Desk) -> None:
    for number in (1, 2):
        desk.turn(number, "a")
    desk.split("a", 2)
    desk.amend(Undo(change=1))

    assert desk.tables.session("drawn") is None and desk.tables.alias("drawn") == "a"


def test_undo_of_a_change_with_a_newer_one_is_refused_by_its_number(desk: Desk) -> None:
    for number, session in ((1, "a"), (2, "b"), (3, "c")):
        desk.turn(number, session)
    desk.merge("a", "b")
    desk.merge("b", "c")

    assert "change 2 is newer" in desk.amend(Undo(change=1)).refusal
    assert not desk.amend(Undo(change=2)).refusal
    assert not desk.amend(Undo(change=1)).refusal
    assert [desk.numbers_of(session) for session in "abc"] == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (Merge(session_id="a", into="a"), "one session already"),
        (Merge(session_id="nobody", into="a"), "no session goes by nobody"),
        (Split(session_id="nobody", drawn_id="new", events=["event-x"]), "no session goes by nobody"),
        (Split(session_id="a", drawn_id="new", events=["event-x"]), "no turn event-x"),
        (Split(session_id="a", drawn_id="new"), "no turns are named"),
        (Split(session_id="a", drawn_id="new", events=["event-a-000001", "event-a-000002"]), "all turns"),
        (Split(session_id="a", drawn_id="new", first_event="event-a-000001"), "all turns"),
        (Split(session_id="a", drawn_id="c", events=["event-a-000001"]), "another session already"),
        (Undo(change=9), "no change 9"),
        (Undo(change=1), "undone already, by change 2"),
        (Undo(change=2), "an undo itself"),
    ],
)
def test_wrong_request_is_refused_in_words_and_changes_nothing(desk: Desk, act: Act, words: str) -> None:
    for number, session in ((1, "a"), (2, "a"), (3, "b"), (4, "c")):
        desk.turn(number, session)
    desk.merge("b", "c")
    desk.amend(Undo(change=1))
    before = dump_of_sql(desk.db)

    amended, lost = desk.amending(act)

    assert words in amended.refusal and not amended.change and not lost
    assert dump_of_sql(desk.db) == before


# -- whatever is done in whatever order --------------------------------------------------------------------------------

SESSIONS = ("s0", "s1", "s2", "s3")
HINTS = [Hint("session", "x-one", "v1"), Hint("session", "x-one", "v2"), Hint("field", "user", "v3")]
NUMBERS = st.integers(0, 11)
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(
            ("begin", "end", "end", "end", "claim", "merge", "split", "undo", "forget", "try merge", "try split")
        ),
        NUMBERS,
        NUMBERS,
        NUMBERS,
    ),
    max_size=30,
)


@given(deeds=DEEDS)
@settings(max_examples=250, deadline=None, derandomize=True)
def test_any_corrections_among_bookings_keep_every_sum_and_every_row(deeds: list[tuple[str, int, int, int]]) -> None:
    desk = Desk()
    for number, (deed, one, two, three) in enumerate(deeds, 1):
        act = act_of(desk, deed.removeprefix("try "), number, one, two, three)
        if act is None:
            book(desk, deed, number, one, two, three)
            check(desk)
            continue
        before, days = dump_of_sql(desk.db), desk.memory.day_sums.copy()
        amended = desk.amend(act)
        check(desk)
        if deed.startswith("try ") and not amended.refusal:
            undone = desk.amend(Undo(change=amended.change))
            assert (undone.refusal, undone.moved, undone.stayed) == ("", amended.moved, 0)
            check(desk)
            returned = dump_of_sql(desk.db)
            if isinstance(act, Split):
                assert returned["aliases"].pop(act.drawn_id) == amended.session_id
            assert returned == before
        assert desk.memory.day_sums == days


def act_of(desk: Desk, deed: str, number: int, one: int, two: int, three: int) -> Act | None:
    sessions = sorted({*desk.known(), *desk.memory.aliases}) or ["nobody"]
    session = sessions[one % len(sessions)]
    match deed:
        case "merge":
            return Merge(session_id=session, into=sessions[two % len(sessions)])
        case "split":
            meant = desk.memory.alias(session) or session
            events = sorted(row.event_id for row in desk.memory.rows_of(meant)) or ["none"]
            chosen = {events[two % len(events)], events[three % len(events)]}
            first = events[two % len(events)] if number % 2 else ""
            return Split(session_id=session, drawn_id=f"d{number}", first_event=first, events=sorted(chosen))
        case "undo":
            return Undo(change=1 + one % 6)
        case "forget":
            return Forget(session_id=session, drawn_id=f"d{number}", tree=two % 3 > 0)
    return None


def book(desk: Desk, deed: str, number: int, one: int, two: int, three: int) -> None:
    """A write of a daemon over few names, so that they meet."""
    sessions = sorted({*SESSIONS, *desk.known(), *desk.memory.aliases})
    kinds: tuple[KeyKind, ...] = ("request", "answer", "header", "history")
    named = Naming(
        session_id=sessions[one % len(sessions)],
        confirmed=two % 3 > 0,
        continues=[f"link-{two % 5}", f"link-{three % 5}"],
        keys=[Key(kind=kinds[(one + two) % 4], name="chain", value=f"link-{three % 7}")],
        chain_length=two,
        parent=[*desk.known(), "not-seen"][three % (1 + len(desk.known()))] if two % 2 else "",
        hints=HINTS[three % 3 :][:2],
    )
    if deed == "claim":
        desk.apply(Claim(naming=named), boot=f"boot-{two % 2}")
        return
    settled = row(one, "any", settled=deed == "end", kind=("turn", "turn", "side")[three % 3], cost_nanousd=None)
    started_at = STARTED_AT + 40_000_000 * (two % 4)
    entered = replace(settled, session_id=named.session_id, started_at=started_at, boot="boot-9")
    usage = USAGE if deed == "end" and three % 4 else None
    desk.apply(Booking(naming=named, row=replace(entered, usage=usage), epoch=1, seen=0))


def check(desk: Desk) -> None:
    """Every sum is that of its rows, every row is somewhere, every id ever told means something."""
    memory = desk.memory
    sessions: dict[str, Sums] = {}
    days: dict[Any, Sums] = {}
    for each in memory.rows.values():
        assert each.session_id in memory.sessions
        sessions[each.session_id] = sessions.get(each.session_id, Sums()).plus(sums_of_session(each))
        days[day_key(each)] = days.get(day_key(each), Sums()).plus(sums_of_day(each))
    assert {k: v for k, v in memory.session_sums.items() if v != Sums()} == {
        k: v for k, v in sessions.items() if v != Sums()
    }
    assert {k: v for k, v in memory.day_sums.items() if v != Sums()} == days
    for session in memory.sessions.values():
        settled = [each.position for each in memory.rows_of(session.session_id) if each.is_settled]
        assert sorted(settled) == list(range(1, session.last_position + 1))
        assert session.session_id not in (session.parent_session_id, session.forked_from)
    assert set(memory.aliases.values()) <= set(memory.sessions)
    assert not set(memory.aliases) & set(memory.sessions)
    assert list(desk.db.execute("PRAGMA foreign_key_check")) == []


# -- all there is, but whose a session is and what of its state was stored ---------------------------------------------


def dump_of_memory(tables: MemoryTables) -> dict[str, Any]:
    return {
        "sessions": {name: _bare(session) for name, session in tables.sessions.items()},
        "aliases": dict(tables.aliases),
        "rows": dict(tables.rows),
        "keys": dict(tables.keys),
        "history": dict(tables.history),
        "hints": dict(tables.hints),
        "session_sums": {name: sums for name, sums in tables.session_sums.items() if sums != Sums()},
        "day_sums": dict(tables.day_sums),
        "session_rolled": {name: sums for name, sums in tables.session_rolled.items() if sums != Sums()},
        "day_rolled": dict(tables.day_rolled),
        "openings": dict(tables.openings),
    }


def dump_of_sql(db: apsw.Connection) -> dict[str, Any]:
    sums = ", ".join(Sums._fields)
    sessions = [session_of(each) for each in db.execute(f"SELECT {', '.join(SESSION_COLUMNS)} FROM session_state")]
    rows = [row_of(each) for each in db.execute(f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger")]
    keys = db.execute("SELECT kind, value, name, session_id, event_id, at FROM session_key")
    totals = db.execute(f"SELECT session_id, {sums} FROM session_total")
    rolled = db.execute(f"SELECT session_id, {sums} FROM session_rolled")
    rolled_days = db.execute(f"SELECT day, kind, provider, model, client, account, {sums} FROM day_rolled")
    openings = db.execute(f"SELECT source, foreign_id, session_id, at, {sums} FROM session_adopted")
    days = db.execute(f"SELECT day, kind, provider, model, client, account, {sums} FROM day_total")
    return {
        "sessions": {session.session_id: _bare(session) for session in sessions},
        "aliases": dict(db.execute("SELECT alias, session_id FROM session_alias")),
        "rows": {each.event_id: each for each in rows},
        "keys": {tuple(each[:4]): tuple(each[4:]) for each in keys},
        "history": {(v, s): e for v, s, e in db.execute("SELECT value, session_id, event_id FROM session_history")},
        "hints": {(s, n): (v, t) for s, n, v, t in db.execute("SELECT * FROM session_hint")},
        "session_sums": {name: Sums(*each) for name, *each in totals if Sums(*each) != Sums()},
        "day_sums": {tuple(each[:6]): Sums(*each[6:]) for each in days},
        "session_rolled": {name: Sums(*each) for name, *each in rolled if Sums(*each) != Sums()},
        "day_rolled": {tuple(each[:6]): Sums(*each[6:]) for each in rolled_days},
        "openings": {tuple(each[:2]): (*each[2:4], Sums(*each[4:])) for each in openings},
    }


def _bare(session: Session) -> Session:
    return replace(session, owner="", epoch=0, snapshot=None)
