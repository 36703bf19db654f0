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
    Amend,
    Booking,
    Claim,
    Key,
    KeyKind,
    Lost,
    Merge,
    Naming,
    Reply,
    Row,
    Shape,
    SnapshotWrite,
    Usage,
    Why,
)
from worker.stored import HOLDERS_MAX

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


def test_keep_of_a_session_that_became_part_of_another_is_fenced_though_owner_and_epoch_are_the_same(
    tables: MemoryTables,
) -> None:
    """Its positions are none of the other's."""
    claim(tables)
    book(tables, SETTLED)
    claim(tables, named("longer"))
    book(tables, event(2), named("longer"))
    tables.sessions["longer"] = replace(tables.sessions["longer"], epoch=1)
    tables.aliases["gone"] = "longer"
    snapshot = encode(replace(EMPTY, position=5), 9)

    reply = told(do(tables, SnapshotWrite(session_id="gone", epoch=1, snapshot=snapshot)))

    assert (reply.session_id, reply.owned) == ("longer", False)
    assert tables.sessions["longer"].snapshot is None


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
    assert "continues" in reply.why.reason
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


# -- what a request is to its session ----------------------------------------------------------------------------------

AGENT = Shape(system="l1 l2 l3 l4", tools="t1 t2 t3 t4", opening="fix it")
TITLE = Shape(system="n1 n2", tools="", opening="fix it")
HELPER = Shape(system="h1 h2 h3", tools="u1 u2", opening="find it")


def confirmed(shape: Shape) -> Shape:
    """As it stands in a session whose turns have a history."""
    return replace(shape, is_confirmed=True)


def of_client(session_id: str = "s", shape: Shape | None = AGENT, **fields: Any) -> Naming:
    """A request whose client named its session, and that its daemon judged to be what its row says."""
    values = {
        "header_name": "x-session-id",
        "header_session_id": session_id,
        "shape": shape,
        "is_judged": True,
        "why": Why(reason="the client named it", origin="header x-session-id", confidence="certain"),
        **fields,
    }
    return named(session_id, **values)


def begin(tables: MemoryTables, number: int, naming: Naming, **fields: Any) -> Reply:
    return book(tables, replace(OPEN, event_id=f"event-{number:04}", **fields), naming)


@pytest.mark.parametrize(("shape", "role"), [(TITLE, "side"), (HELPER, "child")])
def test_claim_of_what_is_no_turn_claims_nothing(tables: MemoryTables, shape: Shape, role: str) -> None:
    claim(tables, of_client())
    book(tables, event(1), of_client())
    before = tables.sessions["s"]

    outcome = do(tables, Claim(naming=of_client(shape=shape, is_opening=True)), boot="d2")

    reply = told(outcome)
    assert (reply.role, reply.session_id, reply.owned, reply.snapshot, reply.rows) == (role, "s", False, None, [])
    assert (reply.why.origin, reply.why.confidence) == ("header x-session-id", "likely")
    assert reply.why.reason
    assert outcome.lost == [] and tables.sessions["s"] == before


def test_claim_of_a_turn_says_what_the_session_is_set_up_with(tables: MemoryTables) -> None:
    assert claim(tables, of_client()).shape is None
    begin(tables, 1, of_client())

    reply = claim(tables, of_client(), boot="d2")

    assert (reply.role, reply.shape, reply.owned) == ("turn", confirmed(AGENT), True)


def test_claim_without_a_shape_is_a_turn_whatever_it_holds(tables: MemoryTables) -> None:
    begin(tables, 1, of_client())

    assert claim(tables, of_client(shape=None), boot="d2").role == "turn"


def test_claim_over_the_sessions_history_is_a_turn_and_over_another_is_not(tables: MemoryTables) -> None:
    book(tables, SETTLED, of_client(keys=keys(("history", "a1"))))
    last_word = replace(AGENT, tools="")

    assert claim(tables, of_client(shape=last_word, continues=["a1"]), boot="d2").role == "turn"
    assert claim(tables, of_client(shape=last_word, continues=["a9"]), boot="d3").role == "side"


def test_claim_that_goes_on_from_a_side_call_is_a_sub_agents(tables: MemoryTables) -> None:
    begin(tables, 1, of_client())
    book(tables, event(2, kind="side"), of_client(shape=TITLE, keys=keys(("history", "aside-1"))))
    helper = replace(HELPER, tools="")

    assert claim(tables, of_client(shape=helper, continues=["aside-1"]), boot="d2").role == "child"
    assert claim(tables, of_client(shape=helper, continues=["a9"]), boot="d2").role == "side"


def test_book_of_a_side_call_leaves_the_session_as_it_was(tables: MemoryTables) -> None:
    claim(tables, of_client())
    book(tables, SETTLED, of_client(keys=keys(("history", "a1")), chain_length=4))
    before = tables.sessions["s"]

    side = event(2, kind="side", model="small", message_count=1, started_at=NOON + 60_000)
    reply = book(tables, side, of_client(shape=TITLE, keys=keys(("history", "a2")), chain_length=2), boot="d2")

    assert tables.sessions["s"] == replace(before, last_position=2)
    assert (reply.role, reply.position, reply.rows) == ("side", 2, [])
    assert tables.session_sums["s"].turns == 1
    assert tables.session_sums["s"].cost_nanousd == 200


def test_book_of_a_side_call_names_its_session_all_the_same(tables: MemoryTables) -> None:
    """Nothing else may have come under that id yet."""
    header = Key(kind="header", name="x-session-id", value="s")

    book(tables, event(1, kind="side"), of_client(keys=[header, *keys(("history", "a1"), ("answer", "a2"))]))

    assert list(tables.keys) == [("header", "s", "x-session-id", "s")]


def test_book_of_an_opening_that_turns_out_to_be_beside_the_conversation_moves_its_sums(tables: MemoryTables) -> None:
    """The title is asked for first, when nothing shows what the session is set up with."""
    title = of_client(shape=TITLE, is_opening=True)
    begin(tables, 1, title)
    begin(tables, 2, of_client(is_opening=True))

    reply = book(tables, SETTLED, title)

    row = tables.rows["event-0001"]
    assert (reply.role, row.kind, row.position, row.why.confidence) == ("side", "side", 1, "likely")
    assert "header x-session-id" in row.why.reason
    sums = tables.session_sums["s"]
    assert (sums.turns, sums.output_tokens, sums.cost_nanousd) == (1, 0, 100)
    turns = {day.kind: (day_sums.turns, day_sums.output_tokens) for day, day_sums in tables.day_sums.items()}
    assert turns == {"turn": (1, 0), "side": (1, 7)}


@pytest.mark.parametrize(
    ("shape", "is_opening"),
    [(AGENT, True), (TITLE, False), (None, True)],
    ids=["alike", "not an opening", "without a shape"],
)
def test_book_of_another_turns_end_stays_a_turn(tables: MemoryTables, shape: Shape | None, *, is_opening: bool) -> None:
    naming = of_client(shape=shape, is_opening=is_opening)
    begin(tables, 1, naming)
    begin(tables, 2, of_client())
    assert tables.sessions["s"].shape == confirmed(AGENT)

    assert book(tables, SETTLED, naming).role == "turn"
    assert tables.rows["event-0001"].kind == "turn"


@pytest.mark.parametrize("is_opening", [True, False])
@pytest.mark.parametrize("shape", [TITLE, HELPER])
def test_book_of_what_its_daemon_could_not_judge_is_judged_on_its_entry(
    tables: MemoryTables, shape: Shape, *, is_opening: bool
) -> None:
    """A sub-agent's too is booked beside the conversation: its daemon gave it this session already."""
    begin(tables, 1, of_client())
    before = tables.sessions["s"]
    unjudged = of_client(shape=shape, is_judged=False, is_opening=is_opening, keys=keys(("history", "a1")))

    reply = begin(tables, 2, unjudged)

    row = tables.rows["event-0002"]
    assert (reply.role, row.kind, row.why.confidence) == ("side", "side", "likely")
    assert "header x-session-id" in row.why.reason
    assert (tables.sessions["s"], tables.session_sums["s"].turns) == (before, 1)

    ended = book(tables, event(2), unjudged)
    assert (ended.role, ended.why, tables.rows["event-0002"].kind) == ("side", row.why, "side")
    assert (tables.session_sums["s"].turns, tables.session_sums["s"].cost_nanousd) == (1, 100)
    assert tables.histories("a1", 9) == [], "no turn goes on from it"


def test_book_of_what_its_daemon_could_not_judge_tells_it_what_the_session_is_set_up_with(
    tables: MemoryTables,
) -> None:
    assert begin(tables, 1, of_client(is_judged=False)).shape == confirmed(AGENT)
    assert begin(tables, 2, of_client(shape=TITLE, is_judged=False)).shape == confirmed(AGENT)
    assert begin(tables, 3, of_client()).shape is None, "it knew"


def test_book_of_what_its_daemon_judged_to_be_a_turn_is_one(tables: MemoryTables) -> None:
    begin(tables, 1, of_client())

    assert begin(tables, 2, of_client(shape=HELPER)).role == "turn"
    assert tables.sessions["s"].shape == confirmed(HELPER)


def test_book_of_an_end_that_came_alone_is_judged_if_its_daemon_could_not(tables: MemoryTables) -> None:
    begin(tables, 1, of_client())

    assert book(tables, event(2), of_client(shape=TITLE, is_judged=False)).role == "side"
    assert book(tables, event(3), of_client(shape=AGENT, is_judged=False)).role == "turn"


def test_book_of_an_end_judged_again_and_told_again_changes_nothing(tables: MemoryTables) -> None:
    title = of_client(shape=TITLE, is_opening=True)
    begin(tables, 1, title)
    begin(tables, 2, of_client(is_opening=True))
    first, sums = book(tables, SETTLED, title), dict(tables.session_sums)

    assert book(tables, SETTLED, title) == first
    assert tables.session_sums == sums


# -- sub-agents and forks ----------------------------------------------------------------------------------------------


def test_resolve_of_a_sub_agent_records_the_session_that_started_it(tables: MemoryTables) -> None:
    book(tables, event(1), of_client("mother"))
    book(tables, event(2, session_id="d"), named("daughter", parent="mother"))
    book(tables, event(3, session_id="g"), named("granddaughter", parent="daughter"))

    parents = {session.session_id: session.parent_session_id for session in tables.sessions.values()}
    assert parents == {"mother": None, "daughter": "mother", "granddaughter": "daughter"}


def test_resolve_of_a_sub_agent_whose_mother_was_renamed_records_her_own_id(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("mother", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("alias", continues=["a1"]))

    claim(tables, named("daughter", parent="alias"))

    assert tables.sessions["daughter"].parent_session_id == "mother"


@pytest.mark.parametrize("parent", ["", "d"])
def test_resolve_of_a_session_that_started_itself_has_no_mother(tables: MemoryTables, parent: str) -> None:
    claim(tables, named("d", parent=parent))

    assert tables.sessions["d"].parent_session_id is None


def converse(tables: MemoryTables, session_id: str, *answers: str, is_named: bool) -> None:
    """Turns of a session, each with its answer."""
    for place, value in enumerate(answers):
        kind: KeyKind = "history" if is_named else "answer"
        make = of_client if is_named else named
        naming = make(session_id, keys=keys((kind, value)), chain_length=2 * place + 2)
        book(tables, replace(SETTLED, event_id=f"event-{session_id}-{place:04}", session_id=session_id), naming)


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("continues", [["a2", "a1"], ["x", "a1"]], ids=["head", "earlier"])
def test_resolve_of_a_new_id_over_a_known_history_is_a_fork(
    tables: MemoryTables, continues: list[str], *, is_named: bool
) -> None:
    converse(tables, "s", "a1", "a2", is_named=is_named)

    reply = claim(tables, of_client("new", continues=continues))

    assert (reply.session_id, tables.sessions["new"].forked_from) == ("new", "s")
    assert reply.why.reason.endswith("a fork of s") and reply.why.confidence == "certain"
    assert tables.sessions["new"].epoch == 1 and tables.session_sums.get("new") is None, "money is never inherited"


def test_resolve_of_an_unnamed_history_that_turns_off_earlier_is_a_fork(tables: MemoryTables) -> None:
    converse(tables, "s", "a1", "a2", is_named=False)

    reply = claim(tables, named("new", continues=["x", "a1"]))

    assert (reply.session_id, tables.sessions["new"].forked_from) == ("new", "s")


def test_resolve_of_an_unnamed_request_over_a_named_history_is_a_fork_and_not_that_session(
    tables: MemoryTables,
) -> None:
    converse(tables, "s", "a1", is_named=True)

    assert claim(tables, named("new", continues=["a1"])).session_id == "new"
    assert tables.sessions["new"].forked_from == "s"


def test_resolve_of_a_history_that_two_sessions_share_is_nobodys_fork(tables: MemoryTables) -> None:
    converse(tables, "s", "a1", is_named=True)
    converse(tables, "t", "a1", is_named=True)

    claim(tables, of_client("new", continues=["a1"]))

    assert tables.sessions["new"].forked_from is None


def test_resolve_of_a_fork_of_a_fork_goes_back_to_the_nearer_one(tables: MemoryTables) -> None:
    converse(tables, "s", "a1", is_named=True)
    claim(tables, of_client("fork", continues=["a1"]))
    converse(tables, "fork", "b2", is_named=True)

    claim(tables, of_client("new", continues=["b2", "a1"]))

    assert tables.sessions["new"].forked_from == "fork"


def test_resolve_of_what_goes_on_from_a_side_call_is_no_fork(tables: MemoryTables) -> None:
    book(tables, event(1, kind="side"), of_client(keys=keys(("history", "aside-1"))))

    claim(tables, of_client("new", continues=["aside-1"]))

    assert tables.sessions["new"].forked_from is None


def test_resolve_of_a_known_session_is_not_made_a_fork_later(tables: MemoryTables) -> None:
    converse(tables, "s", "a1", is_named=True)
    claim(tables, of_client("t"))

    reply = claim(tables, of_client("t", continues=["a1"]), boot="d2")

    assert tables.sessions["t"].forked_from is None
    assert "fork" not in reply.why.reason


# -- conversations that the provider keeps -----------------------------------------------------------------------------


def respond(tables: MemoryTables, number: int, response: str, *, after: str = "", session_id: str = "s") -> Reply:
    """A request that goes on from a response, and its answer."""
    asked = named(session_id, continues=[after] if after else [], retry=f"retry {number}")
    row = event(number, session_id=session_id, started_at=NOON + number)
    begun = replace(row, status="interrupted", ended_at=0, usage=None, cost_nanousd=None)
    book(tables, begun, replace(asked, keys=keys(("retry", f"retry {number}"), ("request", f"request {number}"))))
    return book(tables, row, replace(asked, keys=keys(("retry", f"retry {number}"), ("answer", response))))


def test_resolve_of_a_response_that_goes_on_finds_its_session(tables: MemoryTables) -> None:
    respond(tables, 1, "resp_1")

    assert respond(tables, 2, "resp_2", after="resp_1", session_id="drawn").session_id == "s"
    assert respond(tables, 3, "resp_3", after="resp_2", session_id="drawn-2").session_id == "s"


def test_resolve_of_a_branch_from_an_older_response_is_a_fork(tables: MemoryTables) -> None:
    respond(tables, 1, "resp_1")
    respond(tables, 2, "resp_2", after="resp_1")

    reply = respond(tables, 3, "resp_3", after="resp_1", session_id="branch")

    assert (reply.session_id, tables.sessions["branch"].forked_from) == ("branch", "s")
    assert respond(tables, 4, "resp_4", after="resp_2", session_id="drawn").session_id == "s"
    assert respond(tables, 5, "resp_5", after="resp_3", session_id="drawn-2").session_id == "branch"


def test_resolve_of_a_response_that_goes_on_twice_is_a_retry(tables: MemoryTables) -> None:
    respond(tables, 1, "resp_1")
    respond(tables, 2, "resp_2", after="resp_1")

    assert claim(tables, named("drawn", continues=["resp_1"], retry="retry 2")).session_id == "s"


def test_resolve_of_a_response_after_a_history_told_in_full_finds_its_session(tables: MemoryTables) -> None:
    """Its first answers are known by their content and by their ids."""
    for number, length in ((1, 2), (2, 4)):
        both = keys(("answer", f"link {number}"), ("answer", f"resp_{number}"))
        book(tables, event(number), named("s", keys=both, chain_length=length))

    assert respond(tables, 3, "resp_3", after="resp_2", session_id="drawn").session_id == "s"
    assert respond(tables, 4, "resp_4", after="resp_3", session_id="drawn-2").session_id == "s"


def test_resolve_of_a_history_told_in_full_after_responses_is_a_fork(tables: MemoryTables) -> None:
    """What was said between is not known by its content: a wrong split, and no wrong merge."""
    first = keys(("answer", "link 1"), ("answer", "resp_1"))
    book(tables, event(1), named("s", keys=first, chain_length=2))
    respond(tables, 2, "resp_2", after="resp_1")

    claim(tables, named("drawn", continues=["link 2", "link 1"]))

    assert tables.sessions["drawn"].forked_from == "s"


def test_book_of_an_older_responses_end_late_leaves_the_newer_ones_known(tables: MemoryTables) -> None:
    """A chain of unknown length: only the requests tell which answer is the newest."""
    respond(tables, 1, "resp_1")
    asked = named("s", continues=["resp_1"], keys=keys(("retry", "retry 2"), ("request", "request 2")))
    begin(tables, 2, asked)
    respond(tables, 3, "resp_3", after="resp_2")

    book(tables, event(2), replace(asked, keys=keys(("retry", "retry 2"), ("answer", "resp_2"))))

    assert respond(tables, 4, "resp_4", after="resp_3", session_id="drawn").session_id == "s"
    assert {place[:2] for place in tables.keys} == {("retry", "retry 4"), ("answer", "resp_4")}


def test_book_of_a_long_and_a_shorter_answer_late_keeps_the_longer(tables: MemoryTables) -> None:
    late = named("s", keys=keys(("answer", "link 1"), ("answer", "resp_1")), chain_length=2)
    book(tables, event(2), named("s", keys=keys(("answer", "link 2"), ("answer", "resp_2")), chain_length=4))

    book(tables, event(1), late)

    assert {place[1] for place in tables.keys} == {"link 2", "resp_2"}
    assert tables.histories("resp_1", 9) == ["s"], "what went on from it is a fork"


# -- what is said of it all --------------------------------------------------------------------------------------------


def test_book_of_a_named_session_records_why(tables: MemoryTables) -> None:
    book(tables, SETTLED, of_client(), seen=0)

    assert tables.sessions["s"].why == of_client().why


def test_claim_that_proves_itself_says_by_what(tables: MemoryTables) -> None:
    converse(tables, "s", "a1", is_named=False)
    by_content = Why(reason="a new conversation", origin="content", confidence="likely")

    reply = claim(tables, named("drawn", continues=["a1"], why=by_content))

    assert (reply.why.origin, reply.why.confidence) == ("content", "proven")


@pytest.mark.parametrize("length", [0, 512])
def test_reason_of_a_fork_fits_a_frame_however_long_the_requests_is(tables: MemoryTables, length: int) -> None:
    converse(tables, "s", "a1", is_named=True)

    reply = claim(tables, of_client("new", continues=["a1"], why=Why(reason="x" * length)))

    assert 0 < len(reply.why.reason) <= 512


def test_history_of_a_named_session_names_nothing(tables: MemoryTables) -> None:
    converse(tables, "s", "a1", "a2", is_named=True)

    assert {place[0] for place in tables.keys} == set()
    assert tables.sessions["s"].fingerprint is None


# -- told late, and held by many ---------------------------------------------------------------------------------------


def test_claim_of_a_turn_that_a_later_one_went_through_finds_the_session(tables: MemoryTables) -> None:
    """While the worker was away, two daemons answered in turns, and the later one tells first."""
    book(tables, replace(SETTLED, event_id="event-1"), named("s", keys=keys(("answer", "a1")), chain_length=2))
    later = named("s", continues=["a2", "u2", "a1", "u1"], keys=keys(("answer", "a3")), chain_length=6)
    book(tables, replace(SETTLED, event_id="event-3"), later)

    reply = claim(tables, named("drawn", continues=["a1", "u1"], keys=keys(("request", "u2")), chain_length=3))
    other = claim(tables, named("other", continues=["a1", "u1"], keys=keys(("request", "w2")), chain_length=3))

    assert reply.session_id == "s"
    assert other.session_id == "other", "that one turned off"
    assert tables.sessions["other"].forked_from == "s"


def test_claim_without_a_name_never_finds_what_a_named_session_went_through(tables: MemoryTables) -> None:
    by_client = {"header_name": "x-session-id", "header_session_id": "v"}
    book(tables, replace(SETTLED, event_id="event-1"), named("s", keys=keys(("history", "a1")), **by_client))
    later = named("s", continues=["a2", "u2", "a1", "u1"], keys=keys(("history", "a3")), **by_client)
    book(tables, replace(SETTLED, event_id="event-3"), later)

    assert claim(tables, named("drawn", continues=["a1", "u1"], keys=keys(("request", "u2")))).session_id == "drawn"


def test_value_held_by_many_is_kept_for_no_more_of_them(tables: MemoryTables) -> None:
    """A program that asks the same and is answered the same every minute must not make each turn slower."""
    for number in range(3 * HOLDERS_MAX):
        event = f"event-{number:03}"
        book(tables, replace(SETTLED, event_id=event), named(f"s{number}", keys=keys(("answer", "ok")), chain_length=2))

    assert len(tables.holders(["answer"], "ok")) == HOLDERS_MAX
    assert claim(tables, named("drawn", continues=["ok"])).session_id == "drawn"


def test_claims_of_two_that_go_on_from_one_answer_at_once_are_two(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))

    first, second, again = (
        claim(tables, named(f"drawn-{place}", continues=["a1", "u1"], keys=keys(("request", link)), chain_length=3))
        for place, link in enumerate(("left", "right", "left"))
    )

    assert [first.session_id, second.session_id, again.session_id] == ["s", "drawn-1", "s"]


def test_late_end_of_a_request_that_was_repeated_keeps_the_answer_of_the_other(tables: MemoryTables) -> None:
    """The client went on from either: it had both."""
    chained = {"continues": ["a1", "u1"], "chain_length": 3}
    for event, at in (("event-1", 10), ("event-2", 20)):
        opened = replace(OPEN, event_id=event, started_at=at)
        book(tables, opened, named("s", keys=keys(("request", "u2")), **chained))
    for event, at, link in (("event-2", 20, "retried"), ("event-1", 10, "late")):
        settled = replace(SETTLED, event_id=event, started_at=at, ended_at=30)
        book(tables, settled, named("s", keys=keys(("answer", link)), chain_length=4))

    for link in ("retried", "late"):
        assert claim(tables, named("drawn", continues=[link, "u2", "a1"])).session_id == "s"


def test_begin_of_the_conversation_sets_aside_what_came_before_it(tables: MemoryTables) -> None:
    """A memory extraction, or an agent's warm-up, that nothing told from the session's first turn."""
    book(tables, OPEN, of_client(shape=HELPER, is_opening=True))
    book(tables, SETTLED, of_client(shape=HELPER, is_opening=True, keys=keys(("history", "h1"))))
    claim(tables, of_client(shape=HELPER, is_opening=True), boot="d1")
    bigger = replace(AGENT, tools=f"{AGENT.tools} t5 t6")

    begun = replace(OPEN, event_id="event-2")
    outcome = do(tables, Booking(naming=of_client(shape=bigger, is_opening=True), row=begun, epoch=1, seen=9), "d2")

    session = tables.sessions["s"]
    assert (session.shape, session.snapshot, session.owner) == (bigger, None, "")
    assert [(boot, lost.session_id) for boot, lost in outcome.lost] == [("d1", "s")]
    assert tables.rows[SETTLED.event_id].kind == "side"
    assert tables.session_sums["s"].turns == 1
    assert tables.holds_history("aside h1", "s") and not tables.holds_history("h1", "s")


# -- two go on from one answer at the same moment ----------------------------------------------------------------------

OWNERS = Naming(
    session_id="s",
    confirmed=True,
    drawn_id="drawn",
    continues=["a1"],
    keys=keys(("request", "x")),
    chain_length=3,
    why=Why(reason="continues", origin="content", confidence="proven"),
)
"""The naming of a turn that the session's owner took for its next one without asking."""


def opened(number: int) -> Row:
    return replace(OPEN, event_id=f"event-{number:04}")


@pytest.fixture
def outrun(tables: MemoryTables) -> MemoryTables:
    """d1 owned the session and has just decided alone; but d2 has claimed it for another turn from the same answer."""
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("s"), "d1")
    asked = named("d2s", continues=["a1"], keys=keys(("request", "y")), chain_length=3)
    assert claim(tables, asked, "d2").session_id == "s"
    return tables


def test_book_of_an_owners_turn_that_was_outrun_is_a_fork(outrun: MemoryTables) -> None:
    reply = book(outrun, opened(2), OWNERS, boot="d1", epoch=1, seen=1)

    assert reply.session_id == "drawn"
    assert reply.rows == []
    assert outrun.rows["event-0002"].session_id == "drawn"
    assert outrun.sessions["drawn"].forked_from == "s"
    assert "a fork of s" in reply.why.reason
    assert [holder.session_id for holder in outrun.holders(["request"], "x")] == ["drawn"]
    assert outrun.sessions["s"].owner == "d2"


def test_book_of_an_outrun_turn_that_the_present_owner_brings_for_a_daemon_that_has_ended_is_a_fork(
    outrun: MemoryTables,
) -> None:
    assert book(outrun, opened(2), OWNERS, boot="d2", epoch=1, seen=1).session_id == "drawn"


def test_book_of_a_turn_that_nobody_outran_brought_by_another_daemon_is_the_sessions(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("s"), "d1")
    assert book(tables, opened(2), OWNERS, boot="d2", epoch=1).session_id == "s"
    assert "drawn" not in tables.sessions


def test_book_of_an_outrun_turns_end_and_of_both_again_stay_with_the_fork(outrun: MemoryTables) -> None:
    book(outrun, opened(2), OWNERS, boot="d1", epoch=1, seen=1)
    ended = replace(OWNERS, keys=keys(("answer", "a2x")))
    for _ in range(2):
        assert book(outrun, event(2), ended, boot="d1", epoch=1, seen=1).session_id == "drawn"
        assert book(outrun, opened(2), OWNERS, boot="d1", epoch=1, seen=1).session_id == "drawn"
    assert outrun.session_sums["drawn"].turns == 1
    assert claim(outrun, named("next", continues=["a2x"]), "d2").session_id == "drawn"


def test_book_of_an_outrun_turn_whose_begin_was_lost_is_a_fork_too(outrun: MemoryTables) -> None:
    assert book(outrun, event(2), replace(OWNERS, keys=keys(("answer", "a2x"))), boot="d1").session_id == "drawn"


def test_book_of_an_owners_turn_after_the_other_is_answered_is_a_fork(outrun: MemoryTables) -> None:
    book(
        outrun,
        event(9),
        Naming(session_id="s", confirmed=True, keys=keys(("answer", "a2y")), chain_length=4),
        boot="d2",
    )
    assert book(outrun, opened(2), OWNERS, boot="d1", epoch=1).session_id == "drawn"


def test_book_of_an_owners_turn_that_nobody_outran_is_the_sessions(tables: MemoryTables) -> None:
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("s"), "d1")
    assert book(tables, opened(2), OWNERS, boot="d1", epoch=1).session_id == "s"
    assert "drawn" not in tables.sessions


def test_book_of_the_same_request_that_another_daemon_was_asked_too_is_the_sessions(tables: MemoryTables) -> None:
    """A client that had no answer in time asked again elsewhere."""
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("s"), "d1")
    claim(tables, named("d2s", continues=["a1"], keys=keys(("request", "x")), chain_length=3), "d2")
    assert book(tables, opened(2), OWNERS, boot="d1", epoch=1).session_id == "s"


def test_book_of_the_same_request_that_another_daemon_answered_to_nobody_is_the_sessions(tables: MemoryTables) -> None:
    """A client had no patience with one daemon and asked the one before again, which had not heard that it lost it."""
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("s"), "d1")
    claim(tables, named("d2s", continues=["a1"], keys=keys(("request", "x")), retry="r", chain_length=3), "d2")
    answered = Naming(session_id="s", confirmed=True, keys=keys(("answer", "a2"), ("retry", "r")), chain_length=4)
    book(tables, event(9), answered, boot="d2")
    assert book(tables, opened(2), replace(OWNERS, retry="r"), boot="d1", epoch=1).session_id == "s"
    assert "drawn" not in tables.sessions


def test_book_of_an_owners_turn_that_a_later_one_went_through_is_the_sessions(tables: MemoryTables) -> None:
    """The worker fell silent over it: another daemon answered the turn after it, and was heard first."""
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    claim(tables, named("s"), "d1")
    later = named("d2s", continues=["a2x", "x", "a1"], keys=keys(("request", "z")), chain_length=5)
    assert claim(tables, later, "d2").session_id == "s"
    answered = Naming(
        session_id="s", confirmed=True, continues=["a2x", "x", "a1"], keys=keys(("answer", "a3")), chain_length=6
    )
    book(tables, event(9), answered, boot="d2")
    assert book(tables, opened(2), OWNERS, boot="d1", epoch=1).session_id == "s"


def test_book_of_an_owners_turn_in_an_older_store_is_the_sessions(tables: MemoryTables) -> None:
    """A backup was put back that knows neither the answer nor this owner."""
    book(tables, SETTLED, named("s", keys=keys(("answer", "a0")), chain_length=1))
    claim(tables, named("s"), "d0")
    assert book(tables, opened(2), OWNERS, boot="d1", epoch=7).session_id == "s"


def test_claim_sent_again_after_its_turn_began_leaves_the_turn_in_its_place(tables: MemoryTables) -> None:
    """Claim and begin were committed, and the worker was killed before it said so: both come once more."""
    asked = Claim(naming=named("s", keys=keys(("request", "q1")), chain_length=1))
    begun = named("s", keys=keys(("request", "q1")), chain_length=1)
    for _ in range(2):
        do(tables, asked)
        book(tables, OPEN, begun)
    do(tables, asked)
    assert [holder.event_id for holder in tables.holders(["request"], "q1")] == [OPEN.event_id]


def test_claim_sent_again_after_its_turn_was_answered_brings_no_request_back(tables: MemoryTables) -> None:
    asked = Claim(naming=named("s", keys=keys(("request", "q1")), chain_length=1))
    do(tables, asked)
    book(tables, OPEN, named("s", keys=keys(("request", "q1")), chain_length=1))
    book(tables, SETTLED, named("s", keys=keys(("answer", "a1")), chain_length=2))
    do(tables, asked)
    assert tables.holders(["request"], "q1") == []


def test_book_of_a_forks_end_after_an_operator_merged_it_is_of_the_session_it_was_merged_into(
    outrun: MemoryTables,
) -> None:
    book(outrun, opened(2), OWNERS, boot="d1", epoch=1, seen=1)
    book(outrun, event(5), named("t", keys=keys(("answer", "t1")), chain_length=2))
    do(outrun, Amend(request="r", act=Merge(session_id="drawn", into="t")), "command")

    ended = replace(OWNERS, keys=keys(("answer", "a2x")))
    assert book(outrun, event(2), ended, boot="d1", epoch=1, seen=1).session_id == "t"
    assert outrun.rows["event-0002"].session_id == "t"
