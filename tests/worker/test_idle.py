"""Idle sessions: which go, that nothing of them is left, that no figure moves, and what becomes of who comes back."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import replace

from tests.conftest import Tell
from tests.daemon.test_sessions import Bench
from tests.worker.peer import Peer, WorkerProcess, wait_until
from tests.worker.test_amend import Desk, dump_of_memory, dump_of_sql
from tests.worker.test_backup import quiet, whole
from tests.worker.test_retention import AFTER_ALL, DAY, NOBODY, commit, settle, stored_rows, sums_in, total
from tests.worker.writing import STARTED_AT, booking, claim, naming, row, snapshot_write
from worker import idle, tables
from worker.backup import verify
from worker.batch import Write
from worker.idle import EPOCH_MAX, PIECES_PER_SLICE, Forgotten, Place, forget_idle
from worker.ledger import Sums, sums_of_day, sums_of_session
from worker.protocol import Booking, Claim, Command, Hello, Hint, Key, Lost, Merge, Row, Undo
from worker.retention import DAY_MILLISECONDS, START_SECONDS, WALK_SECONDS, Schedule, Slice, roll_up
from worker.server import Server
from worker.store import Store
from worker.stored import Opening

SEEDS: Final = range(24)


class Office(Desk):
    """A desk whose sessions are forgotten once nobody came back to them."""

    def forget(self, *, before: int = AFTER_ALL, live: frozenset[str] = NOBODY) -> Forgotten:
        """The whole walk."""
        done = Forgotten(0, 0, [], Place(), is_last=False)
        for _ in range(2_000):
            more = self.slice(done.place, before=before, live=live)
            done = more._replace(
                rows=done.rows + more.rows, sessions=done.sessions + more.sessions, lost=[*done.lost, *more.lost]
            )
            if done.is_last:
                return done
        raise AssertionError("it comes to no end")

    def slice(self, place: Place, *, before: int = AFTER_ALL, live: frozenset[str] = NOBODY) -> Forgotten:
        """One slice of it, in both stores."""
        done = forget_idle(self.memory, place, before=before, live=live)
        self.memory.commit()
        self.db.execute("BEGIN")
        assert forget_idle(self.sql, place, before=before, live=live) == done
        self.db.execute("COMMIT")
        assert dump_of_memory(self.memory) == dump_of_sql(self.db)
        assert not list(self.db.execute("PRAGMA foreign_key_check"))
        return done

    def ids(self) -> set[str]:
        return set(self.memory.sessions)

    def check(self) -> None:
        """total = rolled + the rows that are there, for every session that is and for every day there was."""
        memory = self.memory
        for session_id in memory.sessions:
            own = total(map(sums_of_session, memory.rows_of(session_id))).plus(memory.rolled(session_id))
            assert memory.session_sums.get(session_id, Sums()) == own, session_id
        assert memory.session_sums.keys() | memory.session_rolled.keys() <= memory.sessions.keys()
        kept = total(memory.day_rolled.values()).plus(total(map(sums_of_day, memory.rows.values())))
        assert total(memory.day_sums.values()) == kept

    def tree_costs(self) -> dict[str, int]:
        """Of each session, what is shown with it."""

        def cost(session_id: str) -> int:
            below = sum(map(cost, self.memory.children_of(session_id)))
            return self.memory.session_sums.get(session_id, Sums()).cost_nanousd + below

        return {session_id: cost(session_id) for session_id in self.memory.sessions}


@pytest.fixture
def office() -> Office:
    return Office()


def with_tree(office: Office, *, depth: int = 3, children: int = 2, turns: int = 2) -> None:
    """A root, its children and theirs: root, root.0, root.0.0, …"""
    numbers = iter(range(1, 10_000))

    def grow(name: str, parent: str, levels: int) -> None:
        for _ in range(turns):
            office.turn(next(numbers), name, named=naming(name, parent=parent))
        for number in range(children if levels > 1 else 0):
            grow(f"{name}.{number}", name, levels - 1)

    grow("root", "", depth)


# -- which go ----------------------------------------------------------------------------------------------------------


def test_idle_session_goes_and_its_days_stay(office: Office) -> None:
    for number in range(1, 4):
        office.turn(number, "s", kind="side" if number == 2 else "turn")
    days = dict(office.memory.day_sums)
    done = office.forget()
    assert (done.sessions, done.rows, office.ids()) == (1, 3, set())
    assert office.memory.day_sums == days == office.memory.day_rolled
    office.check()


def test_session_with_a_turn_since_the_limit_stays_whole(office: Office) -> None:
    office.turn(1, "s")
    office.turn(2, "s")
    before = dump_of_memory(office.memory)
    assert office.forget(before=STARTED_AT + 2).sessions == 0
    assert dump_of_memory(office.memory) == before


@pytest.mark.parametrize("kind", ["side", "warmup"])
def test_session_with_another_request_since_the_limit_stays(office: Office, kind: str) -> None:
    office.turn(1, "s")
    if kind == "warmup":
        office.ping(2, "s")
    else:
        office.turn(2, "s", kind=kind)
    assert office.session("s").last_seen_at == STARTED_AT + 1, "it is no turn"
    assert office.forget(before=STARTED_AT + 2).sessions == 0
    assert office.numbers_of("s") == [1, 2]


@pytest.mark.parametrize("settled", [True, False])
def test_session_with_a_row_of_a_daemon_that_is_known_stays(office: Office, settled: bool) -> None:
    """Its clock may be years late: it would send the row again, or end it."""
    office.turn(1, "s")
    office.turn(2, "s", settled=settled, boot="known")
    assert office.forget(live=frozenset({"known"})).sessions == 0
    assert office.numbers_of("s") == ([1, 2] if settled else [2, 1])
    assert office.forget().sessions == 1


def test_session_of_an_absurd_epoch_stays(office: Office) -> None:
    """All that begin after it was gone would begin above."""
    office.turn(1, "s")
    for each in (office.memory, office.sql):
        session = each.session("s")
        assert session is not None
        each.put_session(replace(session, epoch=EPOCH_MAX + 1))
    office.memory.commit()
    assert office.forget().sessions == 0


@pytest.mark.parametrize("active", ["root", "root.1", "root.0.1"])
def test_tree_with_one_session_in_use_stays_whole(office: Office, active: str) -> None:
    with_tree(office)
    office.turn(99, active, named=naming(active))
    before = dump_of_memory(office.memory)
    assert office.forget(before=STARTED_AT + 99).sessions == 0
    assert dump_of_memory(office.memory) == before


def test_idle_tree_goes_whole_and_its_neighbour_stays(office: Office) -> None:
    with_tree(office)
    office.turn(98, "other")
    assert office.forget(before=STARTED_AT + 98).sessions == 7
    assert office.ids() == {"other"}
    office.check()


def test_child_whose_parent_was_never_seen_is_a_root(office: Office) -> None:
    office.turn(1, "s", named=naming("s", parent="never seen"))
    assert office.forget().sessions == 1


@pytest.mark.parametrize("pieces", [3, 7, 50])
def test_no_tree_that_is_still_shown_ever_costs_less(
    office: Office, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    with_tree(office)
    costs, sizes = office.tree_costs(), set[int]()
    monkeypatch.setattr(idle, "PIECES_PER_SLICE", pieces)
    place, is_over = Place(), False
    while not is_over:
        done = office.slice(place)
        place, is_over = done.place, done.is_last
        shown = office.tree_costs()
        assert shown == {session_id: costs[session_id] for session_id in shown}
        office.check()
        sizes.add(len(shown))
    assert sizes >= {0} and (len(sizes) > 2 or pieces == 50)


def test_tree_that_is_come_back_to_between_two_slices_stays_from_there_on(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tree(office, turns=20)
    costs = office.tree_costs()
    monkeypatch.setattr(idle, "PIECES_PER_SLICE", 9)
    done = office.slice(Place(), before=STARTED_AT + 999)
    while not done.rows:
        done = office.slice(done.place, before=STARTED_AT + 999)
    assert office.ids() >= {"root"}, "its rows are on their way out"
    office.turn(999, "root.1.1", named=naming("root.1.1"))
    while not done.is_last:
        done = office.slice(done.place, before=STARTED_AT + 999)
    assert len(office.ids()) == 7
    assert office.tree_costs()["root"] == costs["root"] + 1_000
    office.check()


# -- that nothing of them is left --------------------------------------------------------------------------------------


def everything(office: Office) -> None:
    """A session that has something in every table."""
    hints = [Hint(kind="session", name="x-chat", value="h")]
    for number in range(1, 4):
        office.turn(number, "s", named=naming("s", hints=hints, keys=[Key(kind="header", name="x", value="v")]))
    office.turn(4, "t")
    office.merge("t", "s")
    office.turn(5, "s", settled=False, boot="dead")
    office.apply(claim("s"))
    reply = office.apply(Claim(naming=naming("s"))).replies[0][1]
    office.apply(snapshot_write("s", epoch=reply.epoch, position=2, generation=1))


def test_nothing_is_left_of_a_session_in_any_table(office: Office) -> None:
    everything(office)
    for each in (office.memory, office.sql):
        each.put_adopted("lore", "f", Opening("s", 0, Sums(turns=1)))
        each.put_adopted("lore", "g", Opening("t", 0, Sums(turns=1)))
    office.memory.commit()
    assert {table for table, count in mentions(office).items() if not count} == {"session_rolled"}
    roll_up(office.sql, 0, before=AFTER_ALL, live=NOBODY)
    roll_up(office.memory, 0, before=AFTER_ALL, live=NOBODY)
    assert mentions(office)["session_rolled"] == 1
    office.forget()
    assert {table for table, count in mentions(office).items() if count} == {"session_change"}
    assert next(iter(office.db.execute("SELECT count(*) FROM session_adopted")))[0] == 2, "imported once is imported"
    assert list(office.db.execute("SELECT DISTINCT before FROM session_change")) == [("[]",)], "the log, not the images"
    office.check()


def mentions(office: Office) -> dict[str, int]:
    """How often each table that can name a session does."""
    tables = [name for (name,) in office.db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    found = {}
    for table in tables:
        columns = {name for _, name, *_ in office.db.execute(f"PRAGMA table_info({table})")}
        if "session_id" in columns:
            sql = f"SELECT count(*) FROM {table} WHERE session_id IN ('s', 't')"
            found[table] = next(iter(office.db.execute(sql)))[0]
    return found


def test_change_of_sessions_that_are_gone_can_not_be_undone_and_says_so(office: Office) -> None:
    everything(office)
    office.forget()
    office.turn(9, "s")
    office.turn(10, "t")
    assert "can not be undone any more" in office.amend(Undo(change=1)).refusal
    office.check()


def test_images_of_an_old_change_go_though_its_sessions_are_in_use(office: Office) -> None:
    everything(office)
    office.turn(99, "s")
    assert office.forget(before=STARTED_AT + 50).sessions == 0
    change = office.memory.amendment(1)
    assert change is not None and change.before == []
    assert "can not be undone any more" in office.amend(Undo(change=1)).refusal


def test_backup_after_sessions_went_is_good_and_its_totals_are_those_of_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "perdure.db")
    for number in range(3):
        settle(store, f"s{number}", 20)
    before = verify(store.path, whole, quiet)
    done = store.forget_idle(Place(), before=AFTER_ALL, live=NOBODY)
    assert done.sessions, "some of them"
    after = verify(store.path, whole, quiet)
    assert (after.turns, after.sessions) == (before.turns, 3 - done.sessions)
    assert after.rows == before.rows - done.rows
    store.close()


# -- in small steps ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "perdure.db")
    yield opened
    opened.close()


def counts(store: Store) -> dict[str, int]:
    tables = ("ledger", "session_history", "session_key", "session_alias", "session_hint", "session_state")
    return {table: next(iter(store._db.execute(f"SELECT count(*) FROM {table}")))[0] for table in tables}


def test_session_with_any_number_of_things_goes_in_bounded_slices(store: Store) -> None:
    settle(store, "s", 250)
    commit(store, *(booking(number, "s", settled=False) for number in range(300, 410)))
    with store._db:
        for number in range(250):
            store._tables.put_history(f"link-{number}", "s", "an event that is long gone")
            store._tables.put_alias(f"alias-{number}", "s")
            store._tables.put_key(Key(kind="header", name="x", value=str(number)), "s", "e", 1)
    sizes, place, is_over = [counts(store)], Place(), False
    while not is_over:
        done = store.forget_idle(place, before=AFTER_ALL, live=NOBODY)
        place, is_over = done.place, done.is_last
        sizes.append(counts(store))
    assert set(sizes[-1].values()) == {0}
    for table in ("ledger", "session_alias", "session_key"):
        assert max(a[table] - b[table] for a, b in pairwise(sizes)) <= PIECES_PER_SLICE
    # What a row left in the history goes with it.
    assert max(a["session_history"] - b["session_history"] for a, b in pairwise(sizes)) <= 200


def test_what_is_removed_is_found_by_an_index(store: Store) -> None:
    """Each table that names a session has one that begins with it: SQLite also asks every one of them by it, for its
    foreign keys, when the session itself goes."""
    for table, columns in referring(store).items():
        sql = f"SELECT 1 FROM {table} WHERE session_id = ?"
        plan = " / ".join(str(found[3]) for found in store._db.execute(f"EXPLAIN QUERY PLAN {sql}", ("s",)))
        assert plan.startswith("SEARCH"), (table, columns, plan)
    for sql, index in (
        (idle_sql("_IDLE_AFTER", "1", "1", "9"), "session_state_by_last_seen"),
        (idle_sql("_CHILD_AFTER", "'s'", "1"), "session_state_by_parent"),
        (idle_sql("_NEWEST_SETTLED", "'s'"), "ledger_by_session"),
        (idle_sql("_NEWEST_OPEN", "'s'"), "ledger_by_session"),
        (idle_sql("_OPEN_ROWS", "'s'", "9"), "ledger_by_session"),
        (idle_sql("_DROP_LINKS", "'s'", "'[]'"), "session_history_by_session (session_id=? AND event_id=?)"),
    ):
        plan = " / ".join(str(found[3]) for found in store._db.execute(f"EXPLAIN QUERY PLAN {sql}"))
        assert index in plan and "TEMP B-TREE FOR ORDER" not in plan, (sql, plan)


def idle_sql(name: str, *values: str) -> str:
    sql: str = getattr(tables, name)
    for number, value in enumerate(values, start=1):
        sql = sql.replace(f"?{number}", value) if f"?{number}" in sql else sql.replace("?", value, 1)
    return sql


def referring(store: Store) -> dict[str, set[str]]:
    """The tables that name a session, and their columns."""
    tables = [name for (name,) in store._db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    columns = {table: {name for _, name, *_ in store._db.execute(f"PRAGMA table_info({table})")} for table in tables}
    return {table: names for table, names in columns.items() if "session_id" in names}


# -- links that go with their rows -------------------------------------------------------------------------------------


def links(office: Office, session_id: str) -> list[str]:
    return [link.value for link in office.memory.history_of(session_id)]


def test_links_go_with_the_rows_that_made_them(office: Office) -> None:
    for number in range(1, 7):
        office.turn(number, "s", continues=number - 1)
    reply = office.apply(Claim(naming=naming("s"))).replies[0][1]
    office.apply(snapshot_write("s", epoch=reply.epoch, position=6, generation=1))
    for each in (office.memory, office.sql):
        roll_up(each, 0, before=AFTER_ALL, live=NOBODY)
    office.memory.commit()
    assert dump_of_memory(office.memory) == dump_of_sql(office.db)
    assert links(office, "s") == ["answer-6"]
    assert office.recognises(6) == "s"


def test_link_that_still_names_a_session_stays_though_its_row_is_gone(office: Office) -> None:
    """The newest row is a call beside the conversation: the last turn's answer is what the next one goes on from."""
    office.turn(1, "s")
    office.turn(2, "s", kind="side")
    reply = office.apply(Claim(naming=naming("s"))).replies[0][1]
    office.apply(snapshot_write("s", epoch=reply.epoch, position=2, generation=1))
    for each in (office.memory, office.sql):
        roll_up(each, 0, before=AFTER_ALL, live=NOBODY)
    office.memory.commit()
    assert office.numbers_of("s") == [2]
    assert "answer-1" in links(office, "s")


# -- who comes back ----------------------------------------------------------------------------------------------------


def test_named_session_that_comes_back_begins_anew_above_all_epochs_it_had(office: Office) -> None:
    for boot in ("boot-1", "boot-2", "boot-3"):
        office.apply(claim("s"), boot=boot)
    office.turn(1, "s")
    former = office.session("s").epoch
    office.forget()
    reply = office.apply(claim("s"), boot="boot-4").replies[0][1]
    assert reply.epoch > former + 1 and (reply.generation, reply.rows, reply.snapshot) == (0, [], None)
    office.turn(2, "s")
    assert office.memory.session_sums["s"].turns == 1
    office.check()


def test_unnamed_conversation_that_comes_back_is_another_session(office: Office) -> None:
    office.turn(1, "s")
    assert office.recognises(1) == "s"
    office.forget()
    assert office.recognises(1) == "stranger"


@pytest.mark.parametrize("known", [0, 3, 29])
def test_session_that_is_come_back_to_before_it_is_gone_knows_its_place(
    office: Office, monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    """No snapshot knew all its rows when they went: what is folded again is its last rows, without a gap after that."""
    for number in range(1, 30):
        office.turn(number, "s")
    if known:
        reply = office.apply(Claim(naming=naming("s"))).replies[0][1]
        office.apply(snapshot_write("s", epoch=reply.epoch, position=known, generation=1))
    monkeypatch.setattr(idle, "PIECES_PER_SLICE", 10)
    done = office.slice(Place())
    done = office.slice(done.place)
    assert done.rows and "s" in office.ids()
    reply = office.apply(Claim(naming=naming("s")), boot="boot-2").replies[0][1]
    assert (reply.snapshot is None) == (known < 29)
    after = known if reply.snapshot else 29 - len(reply.rows)
    assert [each.position for each in reply.rows] == list(range(after + 1, 30))
    office.turn(30, "s")
    assert office.memory.session_sums["s"].turns == 30
    office.check()


class Pair:
    """A daemon's sessions and a worker's store, without sockets between them."""

    def __init__(self) -> None:
        self.daemon, self.office = Bench(), Office()

    def turn(self, number: int, *, hears: bool = True) -> None:
        """A turn of session s; what was written is acknowledged at its end."""
        self.daemon.link.is_heard = False
        known = naming("s", confirmed=True, header_name="x", header_session_id="s")
        place = self.daemon.begin(known, row(number, "s", settled=False))
        begun = Booking(naming=place.naming, row=row(number, "s", settled=False), epoch=place.held.epoch, seen=0)
        self.daemon.link.put(Command.BEGIN, begun)
        self.talk(hears=hears)
        self.daemon.settle(self.daemon.sessions.current(place.held), row(number, "s"))
        self.talk(hears=hears)
        self.daemon.sessions.flush()
        self.talk(hears=hears)

    def talk(self, *, hears: bool = True) -> None:
        while waiting := self.daemon.unanswered():
            entry = waiting[0]
            outcome = self.office.apply(entry.body)
            self.daemon.link.outbox.acked(entry.sequence)
            reply = replace(outcome.replies[0][1], sequence=entry.sequence)
            self.daemon.sessions.acknowledged(entry, reply)
            for _, lost in outcome.lost if hears else ():
                self.daemon.sessions.lost(lost)

    def forget(self, *, hears: bool) -> None:
        done = self.office.forget()
        assert done.lost == [("boot-1", Lost(session_id="s", epoch=done.lost[0][1].epoch))]
        if hears:
            self.daemon.sessions.lost(done.lost[0][1])


@pytest.mark.parametrize("hears", [True, False])
def test_daemon_that_holds_what_is_gone_does_no_harm(hears: bool) -> None:
    """Its clock was years late, say.  Its next turns are booked once, on the session anew, and its state comes to be
    that of the rows there are."""
    pair = Pair()
    for number in range(1, 6):
        pair.turn(number)
    pair.forget(hears=hears)
    for number in range(6, 9):
        pair.turn(number)
        pair.office.check()
    memory = pair.office.memory
    assert memory.session_sums["s"].turns == 3 and total(memory.day_sums.values()).turns == 8
    session = memory.sessions["s"]
    assert session.snapshot is not None and session.snapshot.position == session.last_position == 3
    assert pair.daemon.sessions._held["s"].position == 3


def test_snapshot_of_what_is_gone_is_not_owned_and_makes_nothing(office: Office) -> None:
    office.turn(1, "s")
    office.apply(claim("s"))
    office.forget()
    reply = office.apply(snapshot_write("s", epoch=1)).replies[0][1]
    assert not reply.owned and office.ids() == set()


# -- whatever else happens meanwhile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_while_sessions_go_no_figure_moves(
    seed: int, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth of the days is what was ever booked; of a session, what was booked since it began."""
    rng, office, removed = random.Random(seed), Office(), 0
    monkeypatch.setattr(idle, "PIECES_PER_SLICE", rng.choice((3, 10, 100)))
    booked: dict[str, Row] = {}
    place = Place()
    for number in range(1, 120):
        session_id = rng.choice(("a", "a.b", "a.b.c", "d", "d.e"))
        match rng.choice(("turn", "turn", "turn", "side", "open", "claim", "old", "slice", "slice", "slice", "merge")):
            case "claim":
                office.apply(claim(session_id))
            case "old":
                for each in (office.memory, office.sql):
                    roll_up(each, 0, before=STARTED_AT + number - 9, live=NOBODY)
                office.memory.commit()
            case "slice":
                done = office.slice(place, before=STARTED_AT + number - rng.choice((0, 3)))
                place = Place() if done.is_last else done.place
                removed += done.sessions
            case "merge" if rng.random() < 0.3:
                office.amend(rng.choice((Merge(session_id=session_id, into="d"), Undo(change=rng.randint(1, 3)))))
            case "turn" | "side" | "open" as kind:
                parent, _, _ = session_id.rpartition(".")
                named = naming(session_id, parent=parent)
                side = "side" if kind == "side" else "turn"
                office.turn(number, session_id, settled=kind != "open", kind=side, named=named)
                [entered] = [each for each in office.memory.rows.values() if each.event_id.endswith(f"{number:06}")]
                booked[entered.event_id] = entered
        office.check()
        assert total(office.memory.day_sums.values()) == total(map(sums_of_day, booked.values())), f"seed {seed}"
    removed += office.forget().sessions
    assert office.ids() == set() and removed
    assert total(office.memory.day_rolled.values()) == total(map(sums_of_day, booked.values())), f"seed {seed}"


# -- when --------------------------------------------------------------------------------------------------------------


def schedule(days: int, session_days: int) -> Schedule:
    return Schedule(days, session_days, wall=10_000 * DAY_MILLISECONDS, monotonic=100.0)


def walked(planned: Schedule, now: float) -> None:
    planned.did(Slice(0, 0, is_last=True), seconds=0, monotonic=now)


@pytest.mark.parametrize(("days", "session_days", "limit"), [(400, 730, 730), (400, 30, 400)])
def test_walk_over_sessions_follows_the_one_over_rows_and_never_takes_what_rows_are_kept_of(
    days: int, session_days: int, limit: int
) -> None:
    planned = schedule(days, session_days)
    assert not planned.is_over_sessions
    walked(planned, 200.0)
    assert planned.is_over_sessions and planned.is_due(201.0)
    assert planned.before(wall=10_000 * DAY_MILLISECONDS, monotonic=201.0) == (10_000 - limit) * DAY_MILLISECONDS
    assert planned.forgot(3, is_last=False, seconds=0, monotonic=201.0) == 0
    assert planned.forgot(4, is_last=True, seconds=0, monotonic=202.0) == 7
    assert not planned.is_over_sessions and not planned.is_due(202.0 + WALK_SECONDS - 1)
    assert planned.is_due(202.0 + WALK_SECONDS)
    assert planned.before(wall=10_000 * DAY_MILLISECONDS, monotonic=202.0) == (10_000 - days) * DAY_MILLISECONDS


@pytest.mark.parametrize(("days", "session_days"), [(400, 0), (0, 730)])
def test_sessions_are_kept_where_nothing_is_to_go(days: int, session_days: int) -> None:
    planned = schedule(days, session_days)
    walked(planned, 200.0)
    assert not planned.is_over_sessions
    assert planned.is_due(100.0 + START_SECONDS + 2 * DAY) == bool(days)


@pytest.mark.parametrize("limits", [(400, 0), (500, 900), (0, 730)])
def test_limits_that_change_in_the_middle_of_a_walk_begin_it_anew(limits: tuple[int, int]) -> None:
    """No walk goes on by a limit that is none."""
    planned = schedule(400, 730)
    walked(planned, 200.0)
    assert planned.is_over_sessions
    planned.keep(*limits, monotonic=300.0)
    assert not planned.is_over_sessions and planned.is_due(300.0 + START_SECONDS) == bool(limits[0])
    assert planned.before(wall=10_000 * DAY_MILLISECONDS, monotonic=300.0) == (10_000 - limits[0]) * DAY_MILLISECONDS
    walked(planned, 310.0)
    assert planned.is_over_sessions == bool(limits[0] and limits[1])


# -- in the worker's loop ----------------------------------------------------------------------------------------------


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    """A server whose loop the test turns by hand."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as directory:
        made = Server(
            store,
            f"ipc://{directory}/w.sock",
            version="0",
            boot="worker-1",
            log=logging.getLogger("worker"),
            beat=lambda: None,
            ledger_days=400,
            session_days=730,
        )
        made._retention._due_at = 0
        made._bind()
        yield made
        made._close()


def test_owner_of_what_is_gone_is_told_and_operators_read_how_much_went(
    server: Server, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    # Rows of long ago, whose daemon is gone; the session's owner is not.
    old = [booking(number, "s", started_at=9, ended_at=10) for number in (1, 2)]
    commit(store, *old, boot="dead")
    with Peer(server._address, greet=False) as peer, caplog.at_level(logging.INFO, "worker"):
        boot = peer.boot.decode()
        peer.send(Command.HELLO, Hello(boot=boot, instance=boot, version="0", pid=1))
        wait_until(lambda: server._socket.poll(0), "the greeting has arrived")
        server._gather()
        store.commit([Write(boot, 1, claim("s"))], live=NOBODY, now=9)
        for _ in range(4):
            server._retention._due_at = 0
            server._roll_up()
        lost = peer.expect(Command.LOST).body
    assert isinstance(lost, Lost) and lost.session_id == "s"
    assert "1 sessions were idle for longer than is kept" in caplog.text
    assert counts(store)["session_state"] == 0


@pytest.mark.system
def test_process_forgets_sessions_that_were_idle_for_longer_than_it_was_told() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as name:
        directory = Path(name)
        store = Store(directory / "perdure.db")
        settle(store, "s", 120)
        commit(store, booking(1, "t", settled=False))
        days = sums_in(store.path, "day_total")
        store.close()
        with (
            WorkerProcess(directory, PERDURE_LEDGER_DAYS="1", PERDURE_SESSION_DAYS="1") as worker,
            Peer(worker.address),
        ):
            wait_until(lambda: not stored_rows(store.path), "all is gone", 60)
        assert sums_in(store.path, "session_total") == {} and sums_in(store.path, "day_total") == days
        assert verify(store.path, whole, quiet).turns == 121
