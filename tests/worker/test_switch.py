"""Keep-alive as the worker sees it: one ping per session and window, by the owner, and only where it is switched on.

One rule: every step is done on the store in SQL and on the simulation's, which must answer and hold the same (`Desk`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import apsw
import pytest
from msgspec.structs import replace

from tests.worker.test_amend import Desk, ping_row
from tests.worker.writing import STARTED_AT, USAGE, naming, row, write
from worker import switch as switches
from worker.ledger import Sums, sums_of_session
from worker.protocol import (
    Amend,
    Booking,
    Claim,
    Forget,
    HandSet,
    HandSetting,
    Reply,
    Row,
    Split,
    Undo,
    Warm,
    WarmTo,
)
from worker.store import Store, StoreRefused, WriteRejected

OTHER_BOOT: Final = "boot-2"
EPOCH: Final = 1


class Keeper(Desk):
    """A desk with one session that has a turn, is owned by boot-1 at epoch 1, and whose cache is to be kept warm."""

    def __init__(self) -> None:
        super().__init__()
        self.turn(1, "a")
        self.apply(Claim(naming=naming("a")))
        self.warm("on")

    def warm(self, to: WarmTo, session: str = "") -> Any:
        return self.amend(Warm(to=to, session_id=session))

    def begin(self, number: int = 2, *, window: int = 1, boot: str = "boot-1", epoch: int = EPOCH) -> Reply:
        opened = ping_row(number, "a", window=window, boot=boot)
        return self.book(opened, boot=boot, epoch=epoch)

    def book(self, booked: Row, *, boot: str = "boot-1", epoch: int = EPOCH, session: str = "a") -> Reply:
        body = Booking(naming=naming(session), row=booked, epoch=epoch, seen=0)
        return self.apply(body, boot=boot).replies[0][1]

    def pings(self) -> list[Row]:
        return [each for each in self.memory.rows.values() if each.kind == "warmup"]


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def ended(opened: Row) -> Row:
    return replace(opened, status="complete", ended_at=opened.started_at + 1, usage=USAGE, cost_nanousd=700)


# -- one per session and window ------------------------------------------------------------------------------------


def test_second_ping_of_a_window_is_refused_and_nothing_of_it_is_kept(keeper: Keeper) -> None:
    assert keeper.begin(2).entered
    assert not keeper.begin(3).entered
    assert [each.event_id for each in keeper.pings()] == [keeper.event(2)]


def test_ping_that_never_ended_has_had_its_window(keeper: Keeper) -> None:
    """Its daemon was killed between the commit and the ping, or after it."""
    keeper.begin(2)
    reply = keeper.apply(Claim(naming=naming("a")), boot=OTHER_BOOT).replies[0][1]
    assert not keeper.begin(3, boot=OTHER_BOOT, epoch=reply.epoch).entered
    assert keeper.begin(4, window=2, boot=OTHER_BOOT, epoch=reply.epoch).entered


def test_begin_that_is_sent_again_hears_that_it_was_entered(keeper: Keeper) -> None:
    assert [keeper.begin(2).entered for _ in range(3)] == [True] * 3
    assert len(keeper.pings()) == 1


def test_ping_of_a_daemon_that_is_not_the_owner_any_more_is_refused(keeper: Keeper) -> None:
    reply = keeper.apply(Claim(naming=naming("a")), boot=OTHER_BOOT).replies[0][1]
    assert not keeper.begin(2).entered
    assert not keeper.begin(2, boot=OTHER_BOOT, epoch=EPOCH).entered, "its epoch is of before"
    assert keeper.begin(2, boot=OTHER_BOOT, epoch=reply.epoch).entered


def test_ping_without_a_window_or_a_session_is_refused_and_makes_none(keeper: Keeper) -> None:
    opened = ping_row(2, "a", window=1)
    assert not keeper.book(replace(opened, window_started_at=0)).entered
    assert not keeper.book(replace(opened, session_id="gone"), session="gone").entered
    assert keeper.known() == ["a"]


def test_end_counts_whatever_became_of_its_begin(keeper: Keeper) -> None:
    """After a restore the begin is gone for good; and a window that has a ping by then must not cost the money."""
    first, second = (ended(ping_row(number, "a", window=1)) for number in (2, 3))
    keeper.book(first)
    reply = keeper.book(second)
    assert reply.entered and reply.position == 3
    assert [each.window_started_at for each in keeper.pings()] == [STARTED_AT + 1, 0]
    total = sums_of_session(row(1)).plus(sums_of_session(first)).plus(sums_of_session(second))
    assert keeper.memory.session_sums["a"] == total
    assert not keeper.begin(4).entered


def test_ping_moves_no_turns_and_is_part_of_the_cost(keeper: Keeper) -> None:
    before = keeper.memory.session_sums["a"]
    keeper.begin(2)
    keeper.book(ended(ping_row(2, "a", window=1)))
    assert keeper.memory.session_sums["a"].minus(before) == Sums(cost_nanousd=700, priced=1)


def test_store_itself_takes_no_second_row_of_a_window(tmp_path: Path) -> None:
    store = Store(tmp_path / "perdure.db")
    try:
        opened = [ping_row(number, "s", window=1) for number in (1, 2)]
        store.commit([write(Claim(naming=naming("s")))], live=frozenset(), now=0)
        store._db.execute("BEGIN")
        store._tables.put_row(opened[0])
        with pytest.raises(apsw.ConstraintError, match="UNIQUE"):
            store._tables.put_row(opened[1])
        store._db.execute("ROLLBACK")
    finally:
        store.close()


# -- the switch ----------------------------------------------------------------------------------------------------


def test_nothing_is_sent_that_was_not_switched_on(keeper: Keeper) -> None:
    keeper.warm("off")
    assert not keeper.begin(2).entered
    keeper.warm("on")
    assert keeper.begin(2).entered


def test_fresh_store_is_switched_off() -> None:
    desk = Desk()
    assert desk.sql.switch() == desk.memory.switch()
    assert not desk.sql.switch().is_on and not desk.sql.switch().change


@pytest.mark.parametrize(("all_of_them", "own"), [("on", "off"), ("off", "on")])
def test_word_about_one_session_counts_whatever_the_switch_says(
    keeper: Keeper, all_of_them: WarmTo, own: WarmTo
) -> None:
    keeper.warm(all_of_them)
    keeper.warm(own, "a")
    assert keeper.begin(2).entered == (own == "on")
    keeper.warm("reset", "a")
    assert keeper.begin(3).entered == (all_of_them == "on")


def test_reset_of_all_leaves_none_that_is_set_by_hand(keeper: Keeper) -> None:
    keeper.turn(5, "b")
    keeper.warm("off", "a")
    keeper.warm("reset", "b")
    amended = keeper.warm("reset")
    assert (amended.verb, amended.moved) == ("warm reset", 1)
    assert keeper.sql.hand_set(9) == []
    assert keeper.sql.switch().reset_at == STARTED_AT and keeper.sql.switch().is_on


def test_session_that_is_merged_brings_what_was_said_of_it(keeper: Keeper) -> None:
    keeper.turn(5, "b")
    keeper.warm("off", "b")
    keeper.merge("b", "a")
    assert keeper.sql.hand_set(9) == [HandSet("a", "off", 0)]


def test_only_so_many_sessions_are_set_by_hand(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "HAND_SET_MAX", 1)
    keeper.turn(5, "b")
    keeper.warm("off", "a")
    assert "by hand already" in keeper.warm("on", "b").refusal
    assert not keeper.warm("on", "a").refusal


def test_unknown_session_is_refused_in_words(keeper: Keeper) -> None:
    assert "no session goes by gone" in keeper.warm("off", "gone").refusal


def test_change_is_audited_and_its_number_goes_to_the_daemons(keeper: Keeper) -> None:
    body = Amend(request="asked-twice", act=Warm(to="off", session_id="a"))
    outcomes = [keeper.apply(body, boot="command-1") for _ in range(2)]
    told = [outcome.replies[0][1].amended for outcome in outcomes]
    assert told[0] == told[1] and told[0] is not None and (told[0].verb, told[0].session_id) == ("warm off", "a")
    assert outcomes[0].warming == told[0].change == keeper.sql.switch().change
    assert outcomes[0].changes == 0, "names mean what they meant"
    assert keeper.session("a").owner == "boot-1"
    assert "keep-alive" in keeper.amend(Undo(change=told[0].change)).refusal


def test_change_of_keep_alive_stands_in_the_way_of_no_undo(keeper: Keeper) -> None:
    keeper.turn(5, "b")
    merged = keeper.merge("b", "a")
    keeper.warm("off", "a")
    assert keeper.amend(Undo(change=merged.change)).verb == "undo"


# -- rows that move ------------------------------------------------------------------------------------------------


def test_row_that_moves_takes_its_window_with_it_unless_that_has_its_ping(keeper: Keeper) -> None:
    """Two sessions may have pings of windows that began in the same millisecond."""
    keeper.turn(5, "b")
    assert keeper.ping(2, "a", window=1) and keeper.ping(6, "b", window=1)
    merged = keeper.merge("b", "a")
    assert keeper.row(2).window_started_at and not keeper.row(6).window_started_at
    keeper.amend(Undo(change=merged.change))
    assert keeper.row(6).session_id == "b" and not keeper.row(6).window_started_at
    part = keeper.split("a", 2)
    assert keeper.row(2).session_id == part.other_id and keeper.row(2).window_started_at


def test_end_of_a_ping_that_was_moved_meanwhile_keeps_it_where_it_is(keeper: Keeper) -> None:
    keeper.turn(5, "b")
    keeper.ping(6, "b", window=1)
    keeper.begin(2, window=1)
    keeper.merge("a", "b")
    keeper.book(ended(ping_row(2, "a", window=1)))
    assert keeper.row(2).session_id == "b" and keeper.row(2).is_settled and not keeper.row(2).window_started_at
    assert keeper.row(6).window_started_at == STARTED_AT + 1


def test_sessions_with_pings_of_one_window_are_forgotten_into_one(keeper: Keeper) -> None:
    keeper.apply(Booking(naming=naming("b", parent="a"), row=row(5, "b"), epoch=0, seen=0))
    assert keeper.ping(2, "a", window=1) and keeper.ping(6, "b", window=1)
    assert not keeper.amend(Forget(session_id="a", drawn_id="blank", tree=True), live=frozenset()).refusal
    assert {keeper.row(number).session_id for number in (2, 6)} == {"blank"}
    assert not keeper.begin(7).entered, "nobody is there to be kept warm"
    assert keeper.known() == []


def test_split_leaves_the_setting_where_it_was_said(keeper: Keeper) -> None:
    keeper.warm("off", "a")
    keeper.turn(5, "a")
    keeper.amend(Split(session_id="a", drawn_id="part", events=[keeper.event(5)]))
    assert keeper.sql.hand_set(9) == [HandSet("a", "off", 0)]


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE session_state SET warm_reset_at = -1, warm = 'on'",
        "UPDATE session_state SET warm_reset_at = 9223372036854775807, warm = 'on'",
        "INSERT OR REPLACE INTO meta (name, value) VALUES ('warming', '{')",
        """INSERT OR REPLACE INTO meta (name, value) VALUES ('warming', '{"change": -4}')""",
    ],
)
def test_damaged_setting_is_refused_and_never_guessed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "perdure.db"
    store = Store(path)
    store.commit([write(Claim(naming=naming("s")))], live=frozenset(), now=0)
    store.close()
    db = apsw.Connection(str(path))
    list(db.execute(damage))
    db.close()
    with pytest.raises(StoreRefused, match="damaged"):
        Store(path).switch()


def test_setting_that_no_version_knows_is_not_stored(tmp_path: Path) -> None:
    store = Store(tmp_path / "perdure.db")
    unknown: Any = "loud"
    settings: list[HandSetting] = ["", "on", "off", "auto"]
    try:
        store.commit([write(Claim(naming=naming("s")))], live=frozenset(), now=0)
        session = store._tables.session("s")
        assert session is not None
        for setting in settings:
            store._transaction(lambda: store._tables.put_session(replace(session, warm=setting)))  # noqa: B023
        with pytest.raises(WriteRejected):
            store._transaction(lambda: store._tables.put_session(replace(session, warm=unknown)))
    finally:
        store.close()
