"""The rules of group commit, one by one, on the model of the store."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from daemon.state import EMPTY, encode
from tests.simulation.model import MemoryTables
from worker import batch
from worker.batch import RETRY_MILLISECONDS, Outcome, Write
from worker.protocol import (
    ROWS_PER_REPLY_MAX,
    Booking,
    Claim,
    Key,
    KeyKind,
    Lost,
    Naming,
    Reply,
    Row,
    SnapshotWrite,
    Usage,
)

NOON = 1_750_000_000_000
OPEN = Row(
    event_id="event-0001",
    session_id="s",
    kind="turn",
    status="interrupted",
    started_at=NOON,
    provider="p",
    protocol="messages",
    model="m",
    boot="d1",
)
SETTLED = replace(
    OPEN, status="complete", ended_at=NOON + 1, usage=Usage(input_tokens=5, output_tokens=7), cost_nanousd=100
)
S = Naming(session_id="s", confirmed=False)


@pytest.fixture
def tables() -> MemoryTables:
    return MemoryTables()


def do(tables: MemoryTables, body: Any, boot: str = "d1", live: frozenset[str] = frozenset({"d1", "d2"})) -> Outcome:
    return batch.apply(tables, [Write(boot, 1, body)], live=live, now=NOON)


def told(outcome: Outcome) -> Reply:
    ((_, reply),) = outcome.replies
    return reply


def claim(tables: MemoryTables, naming: Naming = S, boot: str = "d1", after: int = -1) -> Reply:
    return told(do(tables, Claim(naming=naming, after=after), boot))


def book(
    tables: MemoryTables, row: Row, naming: Naming = S, *, boot: str = "d1", seen: int = 0, epoch: int = 0
) -> Reply:
    return told(do(tables, Booking(naming=naming, row=row, epoch=epoch, seen=seen), boot))


def keep(tables: MemoryTables, generation: int, *, epoch: int, boot: str = "d1", position: int = 0) -> Reply:
    snapshot = encode(replace(EMPTY, position=position), generation)
    return told(do(tables, SnapshotWrite(session_id="s", epoch=epoch, snapshot=snapshot), boot))


def named(session_id: str, **fields: Any) -> Naming:
    return Naming(session_id=session_id, confirmed=False, **fields)


def keys(*pairs: tuple[KeyKind, str]) -> list[Key]:
    return [Key(kind=kind, name="chain", value=value) for kind, value in pairs]


def event(number: int, **fields: Any) -> Row:
    return replace(SETTLED, event_id=f"event-{number:04}", **fields)


def stored_generation(tables: MemoryTables) -> int:
    snapshot = tables.sessions["s"].snapshot
    return snapshot.generation if snapshot else 0


# -- claims and epochs -------------------------------------------------------------------------------------------------


def test_claim_of_an_unknown_session_makes_it_and_owns_it(tables: MemoryTables) -> None:
    reply = claim(tables)

    assert (reply.session_id, reply.epoch, reply.owned, reply.snapshot) == ("s", 1, True, None)
    assert tables.sessions["s"].owner == "d1"


def test_claim_again_by_the_owner_keeps_its_epoch(tables: MemoryTables) -> None:
    claim(tables)

    assert claim(tables).epoch == 1


def test_claim_by_another_raises_the_epoch_and_tells_the_former_owner(tables: MemoryTables) -> None:
    claim(tables)

    outcome = do(tables, Claim(naming=S), boot="d2")

    assert told(outcome).epoch == 2
    assert outcome.lost == [("d1", Lost(session_id="s", epoch=2))]


def test_claim_brings_the_snapshot_and_only_the_rows_after_it(tables: MemoryTables) -> None:
    claim(tables)
    for number in range(3):
        book(tables, event(number))
    keep(tables, 4, epoch=1, position=2)

    reply = claim(tables, boot="d2")

    assert reply.snapshot is not None
    assert (reply.generation, reply.position) == (4, 2)
    assert [row.position for row in reply.rows] == [3]


def test_claim_after_a_position_brings_all_rows_after_it(tables: MemoryTables) -> None:
    claim(tables)
    for number in range(3):
        book(tables, event(number))
    keep(tables, 4, epoch=1, position=2)

    assert [row.position for row in claim(tables, after=0).rows] == [1, 2, 3]


def test_claim_of_more_rows_than_a_page_says_so(tables: MemoryTables) -> None:
    for number in range(ROWS_PER_REPLY_MAX + 1):
        book(tables, event(number), seen=number)

    first = claim(tables)
    second = claim(tables, after=first.rows[-1].position)

    assert (len(first.rows), first.more) == (ROWS_PER_REPLY_MAX, True)
    assert (len(second.rows), second.more) == (1, False)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_book_of_an_open_row_gives_no_position(tables: MemoryTables) -> None:
    assert book(tables, OPEN).position == 0
    assert tables.session_sums["s"].interrupted == 1


def test_book_of_a_settled_row_gives_the_next_position(tables: MemoryTables) -> None:
    book(tables, OPEN)

    assert book(tables, SETTLED).position == 1
    assert book(tables, event(2)).position == 2


def test_book_of_a_settlement_again_changes_nothing(tables: MemoryTables) -> None:
    first = book(tables, SETTLED)
    sums = dict(tables.session_sums)

    again = book(tables, SETTLED)

    assert again == first
    assert tables.session_sums == sums
    assert tables.sessions["s"].last_position == 1


def test_book_of_a_late_begin_never_reopens_its_row(tables: MemoryTables) -> None:
    book(tables, SETTLED)

    book(tables, OPEN)

    assert tables.rows["event-0001"].is_settled
    assert tables.session_sums["s"].interrupted == 0


def test_book_of_another_settlement_keeps_the_first(tables: MemoryTables) -> None:
    book(tables, SETTLED)

    book(tables, replace(SETTLED, status="error", cost_nanousd=999))

    assert tables.rows["event-0001"].cost_nanousd == 100
    assert tables.session_sums["s"].cost_nanousd == 100


def test_book_of_a_row_that_changed_its_day_moves_the_days_sums(tables: MemoryTables) -> None:
    book(tables, OPEN)

    book(tables, replace(SETTLED, model="n"))

    turns = {day.model: sums.turns for day, sums in tables.day_sums.items()}
    assert turns == {"m": 0, "n": 1}


def test_book_by_a_stale_owner_counts_and_says_that_it_is_not_owned(tables: MemoryTables) -> None:
    claim(tables)
    claim(tables, boot="d2")

    reply = book(tables, SETTLED, epoch=1)

    assert (reply.owned, reply.epoch, reply.position) == (False, 2, 1)
    assert tables.session_sums["s"].turns == 1


def test_book_brings_what_others_settled_but_not_its_own_row(tables: MemoryTables) -> None:
    book(tables, event(1), boot="d2")

    reply = book(tables, event(2), seen=0)

    assert [row.event_id for row in reply.rows] == ["event-0001"]


@pytest.mark.parametrize("others", [0, 300])
def test_book_of_a_backlog_in_one_batch_tells_each_row_once(tables: MemoryTables, others: int) -> None:
    """All of it was written before anything was heard: each write says that its sender has seen nothing."""
    backlog = 500
    for number in range(others):
        book(tables, event(9_000 + number), boot="d2", seen=number)
    writes = [Write("d1", n, Booking(naming=S, row=event(n), epoch=0, seen=0)) for n in range(backlog)]

    for _sent in ("first", "again"):
        outcome = batch.apply(tables, writes, live=frozenset(), now=NOON)
        replies = [reply for _, reply in outcome.replies]
        told_positions = [row.position for reply in replies for row in reply.rows]
        assert len(told_positions) == len(set(told_positions)) <= backlog + others
        placed = {reply.position for reply in replies} | set(told_positions)
        assert placed == set(range(1, backlog + others + 1))


def test_book_of_two_senders_in_one_batch_tells_each_what_the_other_settled(tables: MemoryTables) -> None:
    writes = [Write(boot, 1, Booking(naming=S, row=event(n), epoch=0, seen=0)) for n, boot in enumerate(("d1", "d2"))]

    (_, first), (_, second) = batch.apply(tables, writes, live=frozenset(), now=NOON).replies

    assert [row.position for row in first.rows] == []
    assert [row.position for row in second.rows] == [1]


def test_book_of_an_older_turns_end_after_a_newer_turn_leaves_the_session_as_the_newer_said(
    tables: MemoryTables,
) -> None:
    older = replace(OPEN, model="old", message_count=3)
    newer = event(2, model="new", message_count=5, started_at=NOON + 60_000)
    book(tables, older)
    book(tables, replace(newer, ended_at=0, status="interrupted", usage=None, cost_nanousd=None))
    book(tables, newer)

    book(tables, replace(SETTLED, model="old", message_count=3))

    session = tables.sessions["s"]
    assert (session.model, session.message_count, session.last_seen_at) == ("new", 5, NOON + 60_000)
    assert (session.first_seen_at, session.last_position) == (NOON, 2)


def test_book_of_a_position_the_sender_made_up_ignores_it(tables: MemoryTables) -> None:
    book(tables, replace(OPEN, position=7))

    assert tables.rows["event-0001"].position == 0


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_keep_by_the_owner_stores_the_snapshot(tables: MemoryTables) -> None:
    claim(tables)

    reply = keep(tables, 3, epoch=1)

    assert (reply.owned, reply.generation, stored_generation(tables)) == (True, 3, 3)


def test_keep_by_a_former_owner_is_fenced(tables: MemoryTables) -> None:
    claim(tables)
    claim(tables, boot="d2")

    reply = keep(tables, 9, epoch=1)

    assert (reply.owned, stored_generation(tables)) == (False, 0)


def test_keep_by_the_owner_at_an_older_epoch_is_fenced(tables: MemoryTables) -> None:
    for boot in ("d1", "d2", "d1"):
        claim(tables, boot=boot)

    assert not keep(tables, 9, epoch=1).owned
    assert keep(tables, 9, epoch=3).owned


@pytest.mark.parametrize("generation", [4, 5])
def test_keep_of_a_generation_that_is_not_newer_is_owned_but_changes_nothing(
    tables: MemoryTables, generation: int
) -> None:
    claim(tables)
    keep(tables, 5, epoch=1, position=8)

    reply = keep(tables, generation, epoch=1, position=1)

    snapshot = tables.sessions["s"].snapshot
    assert reply.owned and reply.generation == generation
    assert snapshot is not None and snapshot.position == 8


def test_keep_of_an_unknown_session_is_not_owned(tables: MemoryTables) -> None:
    assert not keep(tables, 1, epoch=1).owned


# -- identity ----------------------------------------------------------------------------------------------------------


def test_resolve_of_a_continued_conversation_finds_its_session(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))

    reply = claim(tables, named("drawn", continues=["a1"]))

    assert reply.session_id == "s"
    assert "continues" in reply.reason
    assert tables.aliases == {"drawn": "s"}


def test_resolve_of_an_alias_finds_its_session(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("drawn", continues=["a1"]))

    assert book(tables, event(2), named("drawn")).session_id == "s"
    assert "drawn" not in tables.sessions


def test_book_of_an_answer_that_another_session_holds_makes_both_nobodys(tables: MemoryTables) -> None:
    """Each daemon knows of one holder, and would take what continues the other's conversation for its own."""
    claim(tables, boot="d1")
    claim(tables, named("t"), boot="d2")
    book(tables, event(1), named("s", keys=keys(("answer", "a1")), chain_length=2), boot="d1", epoch=1)

    body = Booking(
        naming=named("t", keys=keys(("answer", "a1")), chain_length=2), row=event(2, session_id="t"), epoch=1, seen=0
    )
    outcome = do(tables, body, boot="d2")

    assert sorted(outcome.lost) == [("d1", Lost(session_id="s", epoch=2)), ("d2", Lost(session_id="t", epoch=2))]
    assert [(tables.sessions[name].owner, tables.sessions[name].epoch) for name in "st"] == [("", 2), ("", 2)]
    assert (told(outcome).owned, told(outcome).position) == (False, 1)
    assert not keep(tables, 1, epoch=1).owned


def test_book_of_an_answer_that_nobodys_sessions_hold_tells_nobody_again(tables: MemoryTables) -> None:
    for number, session_id in enumerate(("s", "t")):
        claim(tables, named(session_id))
        book(tables, event(number), named(session_id, keys=keys(("answer", "a1")), chain_length=2), epoch=1)

    again = Booking(naming=named("t", keys=keys(("answer", "a1")), chain_length=2), row=event(3), epoch=1, seen=0)

    assert do(tables, again).lost == []


def test_resolve_of_a_value_two_sessions_hold_makes_a_third(tables: MemoryTables) -> None:
    for number, session_id in enumerate(("s", "t")):
        book(tables, event(number), named(session_id, keys=keys(("answer", "a1")), chain_length=2))

    assert claim(tables, named("drawn", continues=["a1"])).session_id == "drawn"


def test_resolve_of_a_confirmed_id_the_store_lost_makes_it_again(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))

    reply = claim(tables, Naming(session_id="told", confirmed=True, continues=["a1"]))

    assert reply.session_id == "told"


def test_resolve_of_a_repeated_failed_request_finds_its_session(tables: MemoryTables) -> None:
    failed = replace(SETTLED, status="error")
    book(tables, failed, named("s", keys=keys(("retry", "r"), ("request", "q")), chain_length=1))

    assert claim(tables, named("drawn", retry="r")).session_id == "s"


def test_resolve_of_a_repeated_answered_opening_is_a_new_session(tables: MemoryTables) -> None:
    book(tables, OPEN, named("s", keys=keys(("retry", "r"), ("request", "q")), chain_length=1))
    book(tables, SETTLED, named("s", keys=keys(("answer", "a")), chain_length=2))

    assert claim(tables, named("drawn", retry="r")).session_id == "drawn"


def test_resolve_of_a_repeated_request_whose_answer_was_not_read_is_its_session(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("retry", "r"), ("answer", "a2")), chain_length=4))

    assert claim(tables, named("drawn", retry="r", continues=["a1"])).session_id == "s"


def test_resolve_of_a_repeated_turn_is_its_session_beside_an_opening_that_was_never_answered(
    tables: MemoryTables,
) -> None:
    """The opening was cut off and asked again with another `stream`; later a turn's answer was not read."""
    book(tables, OPEN, named("cut-off", keys=keys(("retry", "r0"), ("request", "q1")), chain_length=1))
    book(tables, event(2), named("s", keys=keys(("retry", "r"), ("answer", "a2")), chain_length=4))

    assert claim(tables, named("drawn", retry="r", continues=["a1", "q1"])).session_id == "s"


def test_resolve_of_what_repeats_one_session_and_continues_another_is_a_new_session(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("retry", "r"), ("answer", "a2")), chain_length=4))
    book(tables, event(2), named("twin", keys=keys(("answer", "a1")), chain_length=2))

    assert claim(tables, named("drawn", retry="r", continues=["a1"])).session_id == "drawn"


@pytest.mark.parametrize(("live", "session_id"), [(frozenset({"d1"}), "drawn"), (frozenset({"d2"}), "s")])
def test_resolve_of_a_repeated_open_request_asks_whether_its_daemon_lives(
    tables: MemoryTables, live: frozenset[str], session_id: str
) -> None:
    book(tables, OPEN, named("s", keys=keys(("retry", "r")), chain_length=1))
    later = replace(OPEN, event_id="event-0002", boot="d2")

    booking = Booking(naming=named("drawn", retry="r"), row=later, epoch=0, seen=0)

    assert told(do(tables, booking, "d2", live)).session_id == session_id


def test_resolve_of_a_repeated_request_after_too_long_is_a_new_session(tables: MemoryTables) -> None:
    book(tables, replace(SETTLED, status="error"), named("s", keys=keys(("retry", "r")), chain_length=1))
    late = event(2, started_at=NOON + RETRY_MILLISECONDS + 1)

    assert book(tables, late, named("drawn", retry="r")).session_id == "drawn"


def test_keys_of_an_answer_replace_the_requests(tables: MemoryTables) -> None:
    book(tables, OPEN, named("s", keys=keys(("retry", "r"), ("request", "q")), chain_length=1))

    book(tables, SETTLED, named("s", keys=keys(("answer", "a")), chain_length=2))

    assert {place[:2] for place in tables.keys} == {("answer", "a")}


def test_keys_of_a_request_keep_the_answer_before(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a")), chain_length=2))

    book(tables, event(2), named("s", keys=keys(("retry", "r"), ("request", "q")), chain_length=3))

    assert {place[0] for place in tables.keys} == {"answer", "retry", "request"}


def test_keys_of_a_shorter_chain_that_comes_late_are_ignored(tables: MemoryTables) -> None:
    book(tables, event(2), named("s", keys=keys(("answer", "new")), chain_length=4))

    book(tables, event(1), named("s", keys=keys(("answer", "old")), chain_length=2))

    assert {place[1] for place in tables.keys} == {"new"}


def test_apply_of_several_writes_answers_each_in_order(tables: MemoryTables) -> None:
    writes = [Write("d1", 7, Claim(naming=S)), Write("d2", 9, Booking(naming=S, row=SETTLED, epoch=0, seen=0))]

    outcome = batch.apply(tables, writes, live=frozenset(), now=NOON)

    assert [(boot, reply.sequence) for boot, reply in outcome.replies] == [("d1", 7), ("d2", 9)]
