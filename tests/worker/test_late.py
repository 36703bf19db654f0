"""Turns that are told in another order than they were asked in: a conversation is one session in the end, and strangers
of equal words stay apart.  On the store in SQL and on the simulation's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Final

import pytest
from msgspec.structs import replace

from tests.worker.test_amend import Desk
from tests.worker.writing import STARTED_AT, row, snapshot
from worker.ledger import Sums, sums_of_session
from worker.protocol import Booking, Claim, Hint, Key, Naming, Reply, Row, SnapshotWrite, Split

LIVE: Final = frozenset({"d1", "d2", "d3"})


class Talk:
    """One conversation without a name, of which each turn is answered by some daemon, alone, under an id of its own."""

    def __init__(self, desk: Desk, word: str = "") -> None:
        self.desk = desk
        self._word = word
        """What makes its answers others than those of the same questions elsewhere."""

    def begin(self, number: int, session: str, boot: str = "d1", **changes: Any) -> Reply:
        return self._book(row(number, settled=False, boot=boot, event_id=self.event(number)), number, session, changes)

    def end(self, number: int, session: str, boot: str = "d1", **changes: Any) -> Reply:
        return self._book(row(number, boot=boot, event_id=self.event(number)), number, session, changes)

    def claim(self, number: int, session: str, boot: str = "d1") -> Reply:
        named = self.naming(number, session, is_answered=False)
        return self.desk.apply(Claim(naming=named), live=LIVE, boot=boot, now=STARTED_AT + number).replies[0][1]

    def tell(self, number: int, session: str, boot: str = "d1") -> Reply:
        self.begin(number, session, boot)
        return self.end(number, session, boot)

    def naming(self, number: int, session: str, *, is_answered: bool, **changes: Any) -> Naming:
        before = [
            link for each in range(number - 1, 0, -1) for link in (f"answer {self._word}{each}", f"question {each}")
        ]
        link = f"answer {self._word}{number}" if is_answered else f"question {number}"
        named = Naming(
            session_id=session,
            confirmed=False,
            continues=before,
            keys=[Key(kind="answer" if is_answered else "request", name="chain", value=link)],
            chain_length=2 * number if is_answered else 2 * number - 1,
            is_opening=number == 1,
        )
        return replace(named, **changes)

    def known_as(self, number: int, boots: Sequence[str]) -> str:
        """The id that the daemon which answers a turn knows the conversation by."""
        return f"of {boots[number - 1]}"

    def event(self, number: int) -> str:
        return f"turn-{self._word}{number}"

    def sessions(self) -> list[str]:
        """Of its turns that are stored, in their order."""
        rows = [each for each in self.desk.memory.rows.values() if each.event_id.startswith(f"turn-{self._word}")]
        return [each.session_id for each in sorted(rows, key=lambda each: each.event_id)]

    def _book(self, told: Row, number: int, session: str, changes: dict[str, Any]) -> Reply:
        named = self.naming(number, session, is_answered=told.is_settled, **changes)
        body = Booking(naming=named, row=replace(told, session_id=session), epoch=1, seen=0)
        return self.desk.apply(body, live=LIVE, boot=told.boot).replies[0][1]


class KeptTalk(Talk):
    """A conversation whose history its provider keeps: a request has the id of the response before, no more."""

    def naming(self, number: int, session: str, *, is_answered: bool, **changes: Any) -> Naming:
        if is_answered:
            keys = [Key(kind="answer", name="chain", value=f"{kind} {number}") for kind in ("message", "response")]
        else:
            keys = [Key(kind="request", name="chain", value=f"question {number}")]
        before = [f"response {number - 1}"] if number > 1 else []
        named = Naming(session_id=session, confirmed=False, continues=before, keys=keys, is_opening=number == 1)
        return replace(named, **changes)

    def known_as(self, number: int, boots: Sequence[str]) -> str:
        """A daemon that did not answer the turn before does not know that it has answered an earlier one."""
        while number > 1 and boots[number - 2] == boots[number - 1]:
            number -= 1
        return f"from {number} on"


@pytest.fixture
def talk() -> Talk:
    return Talk(Desk())


def sums_are_the_rows(desk: Desk) -> bool:
    return all(
        desk.memory.session_sums[name] == reduce(Sums.plus, map(sums_of_session, desk.memory.rows_of(name)), Sums())
        for name in desk.known()
    )


def by_position(desk: Desk, session_id: str) -> list[Row]:
    return sorted(desk.memory.rows_of(session_id), key=lambda each: each.position)


# -- one conversation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_told", ["begun", "claimed"])
def test_answer_told_after_the_turn_that_went_on_from_it_joins_both_in_the_session_that_began_first(
    talk: Talk, first_told: str
) -> None:
    """The worker died after the first daemon's begins; when it is back the second daemon tells first."""
    talk.begin(1, "first")
    talk.begin(2, "first")
    assert talk.claim(3, "second", "d2").session_id == "second"
    if first_told == "begun":
        talk.tell(3, "second", "d2")
    talk.end(1, "first")
    talk.end(2, "first")
    talk.tell(3, "second", "d2")

    assert talk.sessions() == ["first", "first", "first"]
    assert talk.desk.memory.aliases == {"second": "first"}
    assert talk.desk.known() == ["first"]
    assert sums_are_the_rows(talk.desk)
    assert talk.claim(4, "drawn", "d3").session_id == "first"


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3, 4))))
@pytest.mark.parametrize("boots", [("d1", "d2", "d1", "d2"), ("d1", "d1", "d2", "d3"), ("d1", "d2", "d3", "d1")])
@pytest.mark.parametrize("kind", [Talk, KeptTalk])
def test_conversation_of_which_each_daemon_knew_its_own_turns_alone_is_one_session_in_whatever_order_they_tell(
    kind: type[Talk], order: tuple[int, ...], boots: tuple[str, ...]
) -> None:
    """Each daemon tells its own turns in the order in which it answered them."""
    talk = kind(Desk())
    for number in told_by_their_daemons(order, boots):
        talk.tell(number, talk.known_as(number, boots), boots[number - 1])
    assert set(talk.sessions()) == {talk.sessions()[0]}
    assert sums_are_the_rows(talk.desk)
    assert talk.claim(5, "drawn", "d3").session_id == talk.sessions()[0]


def told_by_their_daemons(order: tuple[int, ...], boots: tuple[str, ...]) -> Iterator[int]:
    """An order of daemons, made one in which no daemon tells a later turn before an earlier one of its own."""
    own = {boot: iter(sorted(n for n in order if boots[n - 1] == boot)) for boot in boots}
    for number in order:
        yield next(own[boots[number - 1]])


def test_turn_that_goes_on_from_an_answer_another_part_gave_joins_both(talk: Talk) -> None:
    """The first daemon knows its own turns alone: the third is of the session that it knows by the first."""
    talk.claim(1, "first")
    talk.claim(2, "second", "d2")
    talk.tell(2, "second", "d2")
    talk.end(3, "first")
    assert set(talk.sessions()) == {talk.sessions()[0]}
    talk.tell(1, "first")
    assert set(talk.sessions()) == {talk.sessions()[0]} and len(talk.sessions()) == 3
    assert sums_are_the_rows(talk.desk)


def test_conversation_whose_opening_was_claimed_by_a_daemon_that_was_killed_is_found_by_its_answers(
    talk: Talk,
) -> None:
    """The index of another one knows nothing but that claim, and the worker is too slow to say more."""
    talk.claim(1, "abandoned", "killed")
    talk.tell(1, "first", "d2")
    talk.tell(2, "first", "d2")
    talk.begin(3, "abandoned", "d3", confirmed=True)
    assert set(talk.sessions()) == {talk.sessions()[0]}
    assert talk.desk.known() == [talk.sessions()[0]]


def test_end_told_before_its_begin_joins_the_parts_though_its_claim_still_stands(talk: Talk) -> None:
    talk.claim(1, "abandoned", "killed")
    talk.tell(1, "first", "d2")
    talk.tell(2, "first", "d2")
    talk.claim(3, "abandoned", "d3")
    talk.end(3, "abandoned", "d3", confirmed=True)
    assert set(talk.sessions()) == {talk.sessions()[0]}


def test_join_keeps_positions_and_the_snapshot_of_the_session_that_began_first_and_leaves_it_to_nobody(
    talk: Talk,
) -> None:
    talk.claim(3, "second", "d2")
    talk.begin(1, "first")
    talk.begin(2, "first")
    talk.end(1, "first")
    epoch = talk.claim(2, "first").epoch
    kept = SnapshotWrite(session_id="first", epoch=epoch, snapshot=snapshot(3, position=1))
    talk.desk.apply(kept, live=LIVE, boot="d1")
    named = talk.naming(2, "first", is_answered=True)
    ended = Booking(naming=named, row=row(2, "first", boot="d1", event_id=talk.event(2)), epoch=epoch, seen=0)

    outcome = talk.desk.apply(ended, live=LIVE, boot="d1")

    assert [each.event_id[-1] for each in by_position(talk.desk, "first")] == ["1", "2"]
    whole = talk.desk.session("first")
    assert whole.snapshot is not None and whole.snapshot.generation == 3
    assert (whole.owner, whole.last_position) == ("", 2)
    assert {boot: (lost.session_id, lost.epoch) for boot, lost in outcome.lost} == {
        "d1": ("first", whole.epoch),
        "d2": ("second", whole.epoch),
    }
    assert not outcome.replies[0][1].owned


def test_row_that_was_joined_says_so_and_what_it_said_before(talk: Talk) -> None:
    talk.begin(2, "first")
    talk.tell(3, "second", "d2")
    talk.end(2, "first")
    why = talk.desk.memory.rows[talk.event(3)].why
    assert why.reason.startswith("its conversation is this session's, which was stored in another order; before: ")
    assert why.confidence == "proven"


def test_turn_under_way_in_a_part_that_was_joined_settles_in_the_whole(talk: Talk) -> None:
    talk.begin(2, "first")
    talk.begin(3, "second", "d2")
    talk.end(2, "first")
    reply = talk.end(3, "second", "d2")
    assert (reply.session_id, reply.owned) == ("first", False)
    assert talk.sessions() == ["first", "first"]
    assert talk.claim(4, "drawn", "d3").session_id == "first"


def test_answer_told_again_after_the_parts_were_joined_changes_nothing(talk: Talk) -> None:
    talk.begin(2, "first")
    talk.tell(3, "second", "d2")
    talk.end(2, "first")
    before = dict(talk.desk.memory.rows)
    talk.end(2, "first")
    assert talk.desk.memory.rows == before


# -- strangers of equal words ------------------------------------------------------------------------------------------


def test_session_that_went_on_by_itself_is_another_than_one_that_goes_on_from_the_same_answer(talk: Talk) -> None:
    """A client turned off: both are real, and neither is the other's part."""
    talk.begin(2, "first")
    talk.tell(3, "second", "d2")
    other = Talk(talk.desk, "other ")
    on_its_own = replace(
        other.naming(3, "first", is_answered=False),
        continues=["answer 2", "question 2", "answer 1", "question 1"],
        keys=[Key(kind="request", name="chain", value="another question")],
    )
    begun = row(3, "first", settled=False, boot="d1", event_id="turn-other 3")
    talk.desk.apply(Booking(naming=on_its_own, row=begun, epoch=1, seen=0), live=LIVE, boot="d1")
    talk.end(2, "first")
    assert talk.sessions() == ["first", "second", "first"]


def test_fork_that_the_store_made_stays_one_whatever_it_goes_on_from(talk: Talk) -> None:
    talk.tell(1, "first")
    talk.begin(2, "fork", "d2", confirmed=True)
    assert talk.sessions() == ["first", "fork"]
    assert talk.desk.session("fork").forked_from == "first"


@pytest.mark.parametrize("busy", ["first", "second"])
def test_part_that_goes_on_by_itself_stays_apart_from_a_turn_that_goes_on_from_it(talk: Talk, busy: str) -> None:
    talk.claim(1, "first")
    talk.claim(2, "second", "d2")
    talk.tell(2, "second", "d2")
    before = ["answer 2", "question 2", "answer 1", "question 1"] if busy == "second" else ["answer 1", "question 1"]
    other = replace(
        talk.naming(3, busy, is_answered=False),
        continues=before,
        keys=[Key(kind="request", name="chain", value="another question")],
    )
    begun = row(3, busy, settled=False, boot="d3", event_id="other turn")
    talk.desk.apply(Booking(naming=other, row=begun, epoch=1, seen=0), live=LIVE, boot="d3")
    talk.end(3, "first")
    assert talk.sessions() == ["second", "first"]


def test_session_that_gave_another_answer_stays_apart_from_a_turn_that_goes_on_without_it(talk: Talk) -> None:
    talk.claim(2, "second", "d2")
    talk.tell(2, "second", "d2")
    other = replace(talk.naming(2, "first", is_answered=True), keys=[Key(kind="answer", name="chain", value="no 2")])
    told = row(2, "first", event_id="other turn")
    talk.desk.apply(Booking(naming=other, row=told, epoch=1, seen=0), live=LIVE, boot="d1")
    talk.begin(3, "first")
    assert talk.sessions() == ["second", "first"]


def test_part_that_an_operator_split_off_stays_apart(talk: Talk) -> None:
    talk.tell(1, "first")
    talk.tell(2, "first")
    split = Split(session_id="first", drawn_id="part", first_event=talk.event(2), events=[])
    assert not talk.desk.amend(split).refusal
    talk.begin(3, "first", confirmed=True)
    assert talk.sessions() == ["first", "part", "first"]


def test_answer_of_equal_words_that_was_asked_for_later_than_whatever_went_through_it_is_another_conversations(
    talk: Talk,
) -> None:
    talk.tell(3, "second", "d2")
    late = row(9, "first", event_id="turn-2", started_at=STARTED_AT + 99, ended_at=STARTED_AT + 100)
    named = talk.naming(2, "first", is_answered=True)
    talk.desk.apply(Booking(naming=named, row=late, epoch=1, seen=0), live=LIVE, boot="d1")
    assert talk.sessions() == ["first", "second"]


def test_answer_that_two_sessions_went_through_belongs_to_neither(talk: Talk) -> None:
    talk.begin(2, "first")
    talk.tell(3, "second", "d2")
    third = replace(
        talk.naming(3, "third", is_answered=True),
        keys=[Key(kind="answer", name="chain", value="another answer")],
    )
    told = row(3, "third", boot="d3", event_id="turn-3 of another")
    talk.desk.apply(Booking(naming=third, row=told, epoch=1, seen=0), live=LIVE, boot="d3")
    talk.end(2, "first")
    assert talk.desk.known() == ["first", "second", "third"]


def test_answer_that_another_session_gave_too_belongs_to_nobody_elses_rest(talk: Talk) -> None:
    talk.begin(2, "first")
    talk.tell(3, "second", "d2")
    double = talk.naming(2, "double", is_answered=True)
    told = row(9, "double", boot="d3", event_id="double", started_at=STARTED_AT + 99, ended_at=STARTED_AT + 100)
    talk.desk.apply(Booking(naming=double, row=told, epoch=1, seen=0), live=LIVE, boot="d3")
    talk.end(2, "first")
    assert talk.desk.known() == ["double", "first", "second"]


@pytest.mark.parametrize(
    "changes",
    [{"header_name": "x-id", "header_session_id": "1"}, {"parent": "mother"}],
    ids=["named by its client", "started by another session"],
)
def test_part_that_is_somebody_elses_by_name_stays_apart(talk: Talk, changes: dict[str, str]) -> None:
    talk.begin(2, "first")
    talk.begin(3, "second", "d2", **changes)
    talk.end(3, "second", "d2", **changes)
    talk.end(2, "first")
    assert talk.sessions() == ["first", "second"]


def test_part_that_a_believed_header_calls_another_stays_apart(talk: Talk) -> None:
    for number in range(8):
        for turn in range(3):
            hint = Hint(kind="session", name="x-chat", value=f"v{number}")
            known = Naming(session_id=f"lesson {number}", confirmed=False, client="c", hints=[hint])
            told = row(100 * number + turn, f"lesson {number}", event_id=f"lesson {number} {turn}")
            talk.desk.apply(Booking(naming=known, row=told, epoch=1, seen=0), live=LIVE, boot="d3")
    ours, theirs = (  # type: dict[str, Any], dict[str, Any]
        {"client": "c", "hints": [Hint(kind="session", name="x-chat", value=value)]} for value in ("ours", "theirs")
    )
    talk.begin(2, "first", **ours)
    talk.begin(3, "second", "d2", **theirs)
    talk.end(3, "second", "d2", **theirs)
    talk.end(2, "first", **ours)
    assert talk.sessions() == ["first", "second"]


def test_opening_alone_is_found_by_its_answer_and_not_by_its_words(talk: Talk) -> None:
    talk.tell(2, "second", "d2")
    assert talk.begin(1, "first").session_id == "first"
    assert talk.desk.known() == ["first", "second"]
    talk.end(1, "first")
    assert set(talk.sessions()) == {"first"}
