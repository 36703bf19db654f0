"""Old ledger rows: which go, that nothing misses them, that their figures stay, and that nobody waits for it."""

from __future__ import annotations

import logging
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import zmq
from msgspec.structs import replace

from daemon import state as states
from daemon.state import EMPTY
from tests.conftest import Tell
from tests.worker.peer import Peer, WorkerProcess, wait_until
from tests.worker.test_amend import Desk
from tests.worker.writing import STARTED_AT, booking, claim, naming, row, write
from worker import tables
from worker.batch import Outcome
from worker.ledger import Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import Booking, Claim, Command, Key, Merge, Ping, Row, Snapshot, SnapshotWrite, Split, Undo
from worker.retention import (
    BUSY_SECONDS,
    DAY_MILLISECONDS,
    KEPT_ROWS,
    PAUSE_SECONDS,
    PAUSE_SHARE,
    ROWS_PER_SLICE,
    SESSIONS_PER_SLICE,
    START_SECONDS,
    WALK_SECONDS,
    Aging,
    Schedule,
    Slice,
    going,
    last_going,
    roll_up,
)
from worker.server import SHOWN_ROWS, Server
from worker.store import Reader, Store, StoreBusy, StoreRefused
from worker.tables import ROW_COLUMNS, row_of

AFTER_ALL = STARTED_AT * 2
"""A limit that makes every row an old one."""
NOBODY: frozenset[str] = frozenset()
SEEDS = range(24)


# -- which rows go -----------------------------------------------------------------------------------------------------


def aging(**changes: Any) -> Aging:
    """A session of 200 rows, all in its snapshot, in use since."""
    known = Aging(1, "s", first_seen_at=0, last_seen_at=10_000, last_position=200, snapshot_position=200)
    return known._replace(**changes)


def rows_at(*starts: int, boot: str = "gone") -> list[Row]:
    return [
        row(number, "s", started_at=start, ended_at=start, position=number, boot=boot)
        for number, start in enumerate(starts, 1)
    ]


def positions_going(session: Aging, rows: list[Row], *, before: int = 1_000) -> list[int]:
    return [each.position for each in going(session, rows, before=before, live=frozenset({"live"}))]


def test_row_as_old_as_the_limit_stays_and_an_older_one_goes() -> None:
    assert positions_going(aging(), rows_at(998, 999, 1_000, 1_001)) == [1, 2]


def test_row_that_ended_after_the_limit_stays() -> None:
    [one] = rows_at(999)
    assert positions_going(aging(), [replace(one, ended_at=1_000)]) == []


def test_row_behind_one_that_stays_stays_so_that_no_gap_is_left() -> None:
    assert positions_going(aging(), rows_at(1, 2_000, 1, 1)) == [1]


def test_row_that_no_snapshot_knows_stays() -> None:
    assert positions_going(aging(snapshot_position=2), rows_at(1, 1, 1)) == [1, 2]
    assert positions_going(aging(snapshot_position=0), rows_at(1, 1, 1)) == []


def test_row_of_a_daemon_that_is_known_stays() -> None:
    old, held = rows_at(1), rows_at(1, 1, boot="live")
    assert positions_going(aging(), [*old, *held[1:]]) == [1]


def test_newest_rows_of_a_session_in_use_stay_however_old() -> None:
    assert last_going(aging(), 1_000) == 200 - KEPT_ROWS


def test_last_row_of_an_idle_session_stays() -> None:
    assert last_going(aging(last_seen_at=999), 1_000) == 199


def test_session_that_is_shown_in_full_stays_so_while_it_is_in_use() -> None:
    assert KEPT_ROWS >= SHOWN_ROWS


@pytest.mark.parametrize("position", [-1, 2**62])
def test_absurd_snapshot_position_takes_no_newest_row(position: int) -> None:
    assert last_going(aging(snapshot_position=position), 1_000) == max(0, min(position, 200 - KEPT_ROWS))


# -- when --------------------------------------------------------------------------------------------------------------

DAY = 24 * 3_600


def schedule(days: int = 1) -> Schedule:
    return Schedule(days, wall=10 * DAY_MILLISECONDS, monotonic=100.0)


def before(planned: Schedule, *, wall_days: float, uptime_days: float) -> float:
    """The limit in days, on a machine whose wall and monotonic clocks say this."""
    limit = planned.before(wall=int(wall_days * DAY_MILLISECONDS), monotonic=100.0 + uptime_days * DAY)
    return limit / DAY_MILLISECONDS


def test_limit_goes_with_the_clocks() -> None:
    assert before(schedule(), wall_days=13, uptime_days=3) == 12


def test_wall_clock_that_jumps_ahead_ages_nothing() -> None:
    assert before(schedule(), wall_days=5_000, uptime_days=3) == 12


def test_wall_clock_that_was_ahead_at_the_start_ages_nothing_once_it_is_set_right() -> None:
    assert before(schedule(), wall_days=2, uptime_days=3) == 1


def test_zero_days_keep_everything() -> None:
    assert not schedule(0).is_due(1e12)


def test_first_slice_waits_until_daemons_have_greeted() -> None:
    assert not schedule().is_due(100.0 + START_SECONDS - 0.01)
    assert schedule().is_due(100.0 + START_SECONDS)


@pytest.mark.parametrize(("seconds", "pause"), [(0.0001, PAUSE_SECONDS), (0.5, 0.5 * PAUSE_SHARE)])
def test_slice_is_paid_for_by_a_pause_that_grows_with_it(seconds: float, pause: float) -> None:
    planned = schedule()
    planned.did(Slice(9, 7, is_last=False), seconds=seconds, monotonic=200.0)
    assert not planned.is_due(200.0 + pause - 0.01)
    assert planned.is_due(200.0 + pause)
    assert planned.after == 7


def test_walk_that_is_over_begins_anew_a_day_later_and_says_what_it_removed() -> None:
    planned = schedule()
    assert planned.did(Slice(9, 7, is_last=False), seconds=0, monotonic=200.0) == 0
    assert planned.did(Slice(2, 8, is_last=True), seconds=0, monotonic=201.0) == 11
    assert planned.after == 0
    assert not planned.is_due(201.0 + WALK_SECONDS - 1) and planned.is_due(201.0 + WALK_SECONDS)
    assert planned.did(Slice(1, 3, is_last=True), seconds=0, monotonic=9e9) == 1


def test_slice_that_failed_is_tried_again_later_at_the_same_place() -> None:
    planned = schedule()
    planned.did(Slice(9, 7, is_last=False), seconds=0, monotonic=200.0)
    planned.failed(201.0)
    assert not planned.is_due(201.0 + BUSY_SECONDS - 0.01) and planned.is_due(201.0 + BUSY_SECONDS)
    assert planned.after == 7


# -- on a real store ---------------------------------------------------------------------------------------------------


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pd-") as name:
        yield Path(name)


@pytest.fixture
def store(directory: Path) -> Iterator[Store]:
    opened = Store(directory / "perdure.db")
    yield opened
    opened.close()


def commit(store: Store, *bodies: Any, boot: str = "boot-1") -> Outcome:
    writes = [write(body, number, boot) for number, body in enumerate(bodies, 1)]
    return store.commit(writes, live=frozenset({boot}), now=STARTED_AT)


def settle(store: Store, session: str, count: int) -> None:
    """A session with that many settled rows, and a snapshot that knows all of them."""
    commit(store, claim(session), *(booking(number, session) for number in range(1, count + 1)))
    known = states.fold(EMPTY, stored_rows(store.path, session))
    commit(store, SnapshotWrite(session_id=session, epoch=1, snapshot=states.encode(known, 1)))


def stored_rows(path: Path, session: str = "") -> list[Row]:
    reader = Reader(path)
    try:
        where = "WHERE session_id = ?" if session else ""
        sql = f"SELECT {', '.join(ROW_COLUMNS)} FROM ledger {where} ORDER BY session_id, position"
        return [row_of(values) for values in reader.execute(sql, (session,) if session else ())]
    finally:
        reader.close()


def sums_in(path: Path, table: str) -> dict[tuple[Any, ...], Sums]:
    reader = Reader(path)
    try:
        found = list(reader.execute(f"SELECT * FROM {table}"))
    finally:
        reader.close()
    width = len(Sums._fields)
    return {values[:-width]: Sums(*values[-width:]) for values in found}


def check(path: Path) -> None:
    """total = rolled + the rows that are there, for every session and every day; and no gap among them."""
    sessions, days = sums_in(path, "session_rolled"), sums_in(path, "day_rolled")
    positions: defaultdict[str, list[int]] = defaultdict(list)
    for each in stored_rows(path):
        sessions[(each.session_id,)] = sessions.get((each.session_id,), Sums()).plus(sums_of_session(each))
        days[day_key(each)] = days.get(day_key(each), Sums()).plus(sums_of_day(each))
        positions[each.session_id] += [each.position] if each.is_settled else []
    assert sums_in(path, "session_total") == sessions
    assert sums_in(path, "day_total") == days
    for session_id, found in positions.items():
        assert found == list(range(found[0], found[-1] + 1)), session_id


def walk(store: Store, *, before: int = AFTER_ALL, live: frozenset[str] = NOBODY) -> list[Slice]:
    slices, after, is_over = [], 0, False
    while not is_over:
        slices.append(store.roll_up(after, before=before, live=live))
        after, is_over = slices[-1].after, slices[-1].is_last
    return slices


def test_old_rows_go_in_slices_and_every_sum_stays(store: Store) -> None:
    for number in range(3):
        settle(store, f"s{number}", 150 + number)
    totals = sums_in(store.path, "session_total"), sums_in(store.path, "day_total")

    slices = walk(store)

    assert [each.rows for each in slices] == [100, 100, 100, 100, 50]
    assert len(stored_rows(store.path)) == 3
    assert (sums_in(store.path, "session_total"), sums_in(store.path, "day_total")) == totals
    check(store.path)


def test_no_slice_removes_or_looks_at_more_than_its_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting(tables.SqliteTables):
        def sessions_after(self, number: int, limit: int) -> list[Aging]:
            asked.append(limit)
            return super().sessions_after(number, limit)

    commit(store, *(booking(1, f"s{number:04}") for number in range(2 * SESSIONS_PER_SLICE + 5)))
    settle(store, "large", 3 * ROWS_PER_SLICE)
    monkeypatch.setattr(store, "_tables", Counting(store._db))

    slices = walk(store)

    assert len(slices) == 5 and set(asked) == {SESSIONS_PER_SLICE}
    assert [each.rows for each in slices] == [0, 0, ROWS_PER_SLICE, ROWS_PER_SLICE, ROWS_PER_SLICE - 1]


def test_first_session_of_all_with_more_rows_than_a_slice_does_not_end_the_walk(store: Store) -> None:
    settle(store, "only", 2 * ROWS_PER_SLICE + 10)
    assert [each.rows for each in walk(store)] == [100, 100, 9]


def test_rows_are_read_only_as_far_as_they_go(store: Store) -> None:
    settle(store, "s", 300)
    read: list[int] = []

    class Counting(tables.SqliteTables):
        def rows_from_the_first(self, session_id: str, position: int) -> Any:
            for each in super().rows_from_the_first(session_id, position):
                read.append(each.position)
                yield each

    roll_up(Counting(store._db), 0, before=STARTED_AT + 4, live=NOBODY)
    assert read == [1, 2, 3]


def plan(store: Store, sql: str, bindings: tuple[Any, ...]) -> str:
    return " / ".join(str(found[3]) for found in store._db.execute(f"EXPLAIN QUERY PLAN {sql}", bindings))


def test_old_rows_are_found_and_removed_by_an_index(store: Store) -> None:
    by_index = "INDEX ledger_by_session (session_id=? AND position>? AND position<?)"
    assert plan(store, tables._ROWS_FROM_THE_FIRST, ("s", 9)) == f"SEARCH ledger USING {by_index}"
    assert plan(store, tables._DROP_ROWS, ("s", 9)) == f"SEARCH ledger USING COVERING {by_index}"
    in_order = "SEARCH session_state USING INTEGER PRIMARY KEY (rowid>?)"
    assert plan(store, tables._SESSIONS_AFTER, (0, 9)) == in_order


def test_open_row_and_rows_after_the_snapshot_stay(store: Store) -> None:
    settle(store, "s", 60)
    commit(store, booking(61, "s"), booking(62, "s", settled=False))
    walk(store)
    assert [each.position for each in stored_rows(store.path)] == [0, 61]
    check(store.path)


def test_side_calls_and_errors_are_rolled_up_under_their_own_kind(store: Store) -> None:
    settle(store, "s", 3)
    commit(store, booking(4, "s", kind="side", cost_nanousd=7), booking(5, "s", status="error", usage=None))
    known = states.fold(EMPTY, stored_rows(store.path, "s"))
    commit(store, SnapshotWrite(session_id="s", epoch=1, snapshot=states.encode(known, 2)))
    commit(store, booking(6, "s"))
    walk(store)
    assert [each.position for each in stored_rows(store.path)] == [6]
    assert sums_in(store.path, "session_rolled")[("s",)][:2] == (4, 0)
    assert {key[1] for key in sums_in(store.path, "day_rolled")} == {"turn", "side"}
    check(store.path)


def test_end_that_is_sent_again_by_a_known_daemon_counts_once(store: Store) -> None:
    """Its clock is years late: what it writes is old at once."""
    late = [booking(number, "s", boot="slow", started_at=9, ended_at=10) for number in (1, 2, 3)]
    commit(store, claim("s"), *late, boot="slow")
    known = states.fold(EMPTY, stored_rows(store.path, "s"))
    commit(store, SnapshotWrite(session_id="s", epoch=1, snapshot=states.encode(known, 1)), boot="slow")

    walk(store, live=frozenset({"slow"}))
    commit(store, *late, boot="slow")

    assert sums_in(store.path, "session_total")[("s",)].turns == 3
    check(store.path)


def test_conversation_whose_last_request_is_long_gone_is_still_continued(store: Store) -> None:
    """A request that was cut off leaves a key; that its row is gone must not look as if it were still under way."""
    settle(store, "s", 2)
    opened = [Key(kind="request", name="", value="asked")]
    entered = Booking(naming=naming("s", keys=opened, chain_length=3), row=row(3, "s", boot="b"), epoch=1, seen=9)
    commit(store, entered, boot="b")
    for number in range(4, 6):
        commit(store, Booking(naming=naming("s"), row=row(number, "s"), epoch=1, seen=9))
    known = states.fold(EMPTY, stored_rows(store.path, "s"))
    commit(store, SnapshotWrite(session_id="s", epoch=1, snapshot=states.encode(known, 3)))
    walk(store)
    assert "event-s-000003" not in {each.event_id for each in stored_rows(store.path)}

    stranger = naming("t", confirmed=False, continues=["asked"])
    outcome = commit(store, Claim(naming=stranger))

    assert outcome.replies[0][1].session_id == "s"


def test_damaged_snapshot_is_rebuilt_from_the_rows_there_are(store: Store) -> None:
    settle(store, "s", 200)
    store.roll_up(0, before=AFTER_ALL, live=NOBODY)
    store._db.execute("UPDATE session_state SET last_known_input = 7, warmup_checksum = 7")

    outcome = commit(store, Claim(naming=naming("s"), after=0))

    rows = outcome.replies[0][1].rows
    assert [each.position for each in rows] == list(range(101, 201))
    snapshot = store._tables.session("s")
    assert snapshot is not None and snapshot.snapshot is not None
    rebuilt = states.rebuild(states.decode(snapshot.snapshot), rows)
    assert rebuilt.position == 200 and rebuilt.gradient.last_turn_at


def test_slice_without_the_right_to_write_is_busy_and_changes_nothing(store: Store) -> None:
    settle(store, "s", 60)
    store._db.set_busy_timeout(0)
    other = apsw.Connection(str(store.path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        store.roll_up(0, before=AFTER_ALL, live=NOBODY)
    other.close()
    assert len(stored_rows(store.path)) == 60
    assert walk(store)[0].rows == 59


def test_damaged_row_is_refused_and_not_added_up(store: Store) -> None:
    settle(store, "s", 60)
    store._db.execute("UPDATE ledger SET cost_nanousd = 1 WHERE position = 7")
    with pytest.raises(StoreRefused, match="ledger row 'event-s-000007'"):
        store.roll_up(0, before=AFTER_ALL, live=NOBODY)
    assert not sums_in(store.path, "session_rolled")


# -- corrections, and whatever else happens meanwhile ------------------------------------------------------------------


class Office(Desk):
    """A desk where rows grow old."""

    def snapshot(self, session_id: str) -> None:
        """As its owner stores it: the state of the snapshot before and the rows since."""
        reply = self.apply(Claim(naming=naming(session_id))).replies[0][1]
        state = folded(reply.snapshot, reply.rows)
        kept = states.encode(state, 1 + reply.generation)
        self.apply(SnapshotWrite(session_id=reply.session_id, epoch=reply.epoch, snapshot=kept))

    def grow_old(self, before: int = AFTER_ALL) -> Slice:
        done = roll_up(self.memory, 0, before=before, live=NOBODY)
        self.memory.commit()
        self.db.execute("BEGIN")
        # Their places in the walk differ, after a correction, and tell nothing else.
        assert roll_up(self.sql, 0, before=before, live=NOBODY)._replace(after=done.after) == done
        self.db.execute("COMMIT")
        return done

    def check(self) -> None:
        """total = rolled + rows, in both stores; of each session the rows that are there have no gap."""
        memory = self.memory
        sessions, days = dict(memory.session_rolled), dict(memory.day_rolled)
        for each in memory.rows.values():
            sessions[each.session_id] = sessions.get(each.session_id, Sums()).plus(sums_of_session(each))
            days[day_key(each)] = days.get(day_key(each), Sums()).plus(sums_of_day(each))
        assert known(memory.session_sums) == known(sessions)
        assert known(memory.day_sums) == known(days)
        assert all(min(sums) >= 0 for sums in memory.session_rolled.values())
        names = ", ".join(Sums._fields)
        rolled = self.db.execute(f"SELECT session_id, {names} FROM session_rolled")
        assert known({name: Sums(*sums) for name, *sums in rolled}) == known(memory.session_rolled)
        for session in memory.sessions.values():
            rows = memory.rows_after(session.session_id, 0, 9_999)
            last = session.last_position
            assert [each.position for each in rows] == list(range(last - len(rows) + 1, last + 1))

    def turns_of(self, session_id: str) -> int:
        return self.memory.session_sums[session_id].turns


def known(sums: dict[Any, Sums]) -> dict[Any, Sums]:
    return {key: each for key, each in sums.items() if each != Sums()}


def folded(snapshot: Snapshot | None, rows: list[Row]) -> states.SessionState:
    return states.rebuild(states.decode(snapshot), rows) if snapshot else states.fold(EMPTY, rows)


@pytest.fixture
def office() -> Office:
    """Two sessions, of which all rows but the last are gone."""
    made = Office()
    for number in range(1, 7):
        made.turn(number, "ab"[number % 2])
    for session_id in "ab":
        made.snapshot(session_id)
    assert made.grow_old().rows == 4
    made.check()
    return made


def test_merged_session_has_the_figures_of_rows_that_are_gone_of_both(office: Office) -> None:
    office.merge("a", "b")
    assert office.turns_of("b") == 6 and "a" not in office.memory.session_sums
    office.check()


def test_merge_that_is_undone_gives_the_figures_of_gone_rows_back(office: Office) -> None:
    totals = dict(office.memory.session_sums)
    amended = office.merge("a", "b")
    office.amend(Undo(change=amended.change))
    assert office.memory.session_sums == totals
    office.check()


def test_merge_that_is_undone_after_more_rows_went_leaves_those_where_they_were(office: Office) -> None:
    amended = office.merge("a", "b")
    office.snapshot("b")
    assert office.grow_old().rows == 1
    assert not office.amend(Undo(change=amended.change)).refusal
    assert office.turns_of("a") + office.turns_of("b") == 6
    office.check()


def test_split_leaves_the_figures_of_gone_rows_with_the_session_they_were_of(office: Office) -> None:
    office.turn(7, "a")
    amended = office.split("a", 7)
    assert (office.turns_of("a"), office.turns_of("drawn")) == (3, 1)
    office.check()
    office.amend(Undo(change=amended.change))
    assert office.turns_of("a") == 4
    office.check()


def test_split_that_is_undone_after_some_of_its_rows_went_loses_no_figure(office: Office) -> None:
    office.turn(7, "a")
    office.turn(8, "a")
    amended = office.split("a", 7, 8)
    office.snapshot("drawn")
    assert office.grow_old().rows == 1
    office.amend(Undo(change=amended.change))
    assert office.memory.alias("drawn") == "a" and office.turns_of("a") == 5
    office.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_while_rows_grow_old_no_sum_moves_and_no_replay_misses_one(seed: int, tell: Tell) -> None:
    """The truth is what was ever booked: no total differs from it, and a claim gives the state of all of it, unless
    a correction gave the rows that are left another order."""
    rng, office, removed = random.Random(seed), Office(), 0
    booked: dict[str, Row] = {}
    is_amended = False
    for number in range(1, 90):
        session_id = rng.choice("abc")
        match rng.choice(("turn", "turn", "turn", "side", "open", "snapshot", "snapshot", "old", "old", "amend")):
            case "snapshot" if office.memory.session(session_id):
                office.snapshot(session_id)
            case "old":
                removed += office.grow_old(rng.choice((STARTED_AT + number - 5, AFTER_ALL))).rows
            case "amend" if seed % 2:
                act = a_correction(office, rng, number)
                removed += office.grow_old().rows
                is_amended = not office.amend(act).refusal or is_amended
            case "turn" | "side" | "open" as kind:
                office.turn(number, session_id, settled=kind != "open", kind="side" if kind == "side" else "turn")
                [entered] = [each for each in office.memory.rows.values() if each.event_id.endswith(f"{number:06}")]
                booked[entered.event_id] = entered
        office.check()
        assert total(office.memory.day_sums.values()) == total(map(sums_of_day, booked.values())), f"seed {seed}"
        assert total(office.memory.session_sums.values()) == total(map(sums_of_session, booked.values()))
        if not is_amended:
            check_states(office, booked)
    assert removed, f"seed {seed}: nothing grew old"


def check_states(office: Office, booked: dict[str, Row]) -> None:
    for session in list(office.memory.sessions.values()):
        own = [each for each in booked.values() if each.session_id == session.session_id and each.is_settled]
        reply = office.apply(Claim(naming=naming(session.session_id))).replies[0][1]
        truth = states.fold(EMPTY, sorted(own, key=lambda each: each.position))
        assert folded(reply.snapshot, reply.rows) == truth


def a_correction(office: Office, rng: random.Random, number: int) -> Merge | Split | Undo:
    names = sorted({*office.memory.sessions, *office.memory.aliases}) or ["nobody"]
    one, other = rng.choice(names), rng.choice(names)
    events = [each.event_id for each in office.memory.rows_of(office.memory.alias(one) or one)] or ["none"]
    merge, split = Merge(session_id=one, into=other), Split(session_id=one, drawn_id=f"d{number}", events=events[:1])
    return rng.choice((merge, split, Undo(change=rng.randint(1, 6))))


def total(sums: Any) -> Sums:
    result = Sums()
    for each in sums:
        result = result.plus(each)
    return result


# -- in the worker's loop ----------------------------------------------------------------------------------------------


@pytest.fixture
def server(store: Store, directory: Path) -> Iterator[Server]:
    """A server whose loop the test turns by hand."""
    made = Server(
        store,
        f"ipc://{directory}/w.sock",
        version="0",
        boot="worker-1",
        log=logging.getLogger("worker"),
        beat=lambda: None,
        ledger_days=400,
    )
    made._retention._due_at = 0
    made._bind()
    yield made
    made._close()


def test_write_that_waits_goes_first(server: Server, store: Store, directory: Path) -> None:
    settle(store, "s", 60)
    with Peer(f"ipc://{directory}/w.sock", greet=False) as peer:
        peer.send(Command.PING, Ping())
        wait_until(lambda: server._socket.poll(0), "the ping has arrived")
        server._roll_up()
        assert len(stored_rows(store.path)) == 60

        server._gather()
        server._commit()
        assert not server._socket.poll(0, zmq.POLLIN)
        server._roll_up()
    assert len(stored_rows(store.path)) < 60


def test_write_that_could_not_be_committed_goes_first_too(server: Server, store: Store) -> None:
    settle(store, "s", 60)
    server._kept = [write(booking(61, "s"))]
    server._roll_up()
    assert len(stored_rows(store.path)) == 60


def test_full_disk_makes_the_next_slice_wait_and_ends_nobody(server: Server, store: Store) -> None:
    settle(store, "s", 60)
    store._db.set_busy_timeout(0)
    other = apsw.Connection(str(store.path))
    other.execute("BEGIN IMMEDIATE")
    server._roll_up()
    other.close()
    server._roll_up()
    assert len(stored_rows(store.path)) == 60, "it is not yet time to try again"


@pytest.mark.system
def test_process_rolls_up_what_is_older_than_it_was_told(directory: Path) -> None:
    store = Store(directory / "perdure.db")
    settle(store, "s", 120)
    totals = sums_in(store.path, "session_total")
    store.close()
    with WorkerProcess(directory, PERDURE_LEDGER_DAYS="1") as worker, Peer(worker.address) as peer:
        wait_until(lambda: len(stored_rows(store.path)) == 1, "the old rows are gone", 60)
        reply = peer.write(Command.END, booking(121, "s"), 1)
        assert reply.position == 121
    assert sums_in(store.path, "session_total")[("s",)].turns == totals[("s",)].turns + 1
    check(store.path)
