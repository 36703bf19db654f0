"""The sessions a daemon holds, told by hand what the worker would say, in any order."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from daemon.held import Held, Phase
from daemon.index import KeyIndex
from daemon.outbox import Body, Entry, Outbox
from daemon.sessions import Place, Sessions
from daemon.state import EMPTY, encode, fold
from worker import protocol
from worker.protocol import (
    Booking,
    Claim,
    Command,
    Hint,
    IndexEntry,
    Key,
    Lost,
    Naming,
    Reply,
    Row,
    Shape,
    SnapshotWrite,
    Usage,
    Why,
)

T = TypeVar("T")
NOON = 1_750_000_000_000
S = Naming(session_id="s", confirmed=False, why=Why(reason="the client named it"))


class Link:
    """A worker whose answers are the test's own: it keeps what is put, and never says anything by itself."""

    def __init__(self) -> None:
        self.is_heard = False
        self.outbox = Outbox(100)
        self.put_bodies: list[Body] = []

    def put(self, command: Command, body: Body) -> int:
        self.put_bodies.append(body)
        return self.outbox.put(command, body, 0.0)

    async def acknowledged(self, sequence: int) -> bool:
        if sequence in self.outbox and self.is_heard:
            await Turn()
        return sequence not in self.outbox


class Turn:
    """What a waiting coroutine awaits here: the test's next step."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Bench:
    """Sessions, their link, and the test's hand on both."""

    def __init__(self, limit: int = 1_000) -> None:
        self.link = Link()
        self.log = logging.Logger("test")
        self.warnings = Warnings()
        self.log.addHandler(self.warnings)
        self.index = KeyIndex()
        self.sessions = Sessions(index=self.index, early_key=bytes(32), log=self.log, limit=limit)
        self.sessions.start(self.link)

    def hold(self, naming: Naming = S, aside: str = "") -> Place:
        """Hold without waiting for the claim."""
        return done(self.sessions.hold(naming, aside))

    def holding(self, naming: Naming) -> Coroutine[Any, Any, Place]:
        """Hold, up to the wait for the claim."""
        self.link.is_heard = True
        waiting = self.sessions.hold(naming)
        waiting.send(None)
        return waiting

    def begin(self, naming: Naming, row: Row) -> Place:
        """Hold, and book what begins."""
        place = self.hold(naming)
        self.sessions.begun(place.held, place.naming, row)
        return place

    def claims(self) -> list[Claim]:
        return [body for body in self.link.put_bodies if isinstance(body, Claim)]

    def owned(self, naming: Naming = S, **reply: Any) -> Held:
        held = self.hold(naming).held
        self.answer(**{"session_id": naming.session_id, "epoch": 1, "owned": True, **reply})
        return self.sessions.current(held)

    def held_ids(self) -> list[str]:
        return list(self.sessions._held)

    def settle(self, held: Held, row: Row) -> Booking:
        booking = Booking(naming=held.naming, row=row, epoch=held.epoch, seen=held.position)
        self.sessions.settled(held, held.naming, row)
        self.link.put(Command.END, booking)
        return booking

    def answer(self, body: Body | None = None, **reply: Any) -> None:
        """Acknowledge a write: the oldest one, or the one with that body."""
        entry = next(e for e in self.unanswered() if body is None or e.body is body)
        self.link.outbox.acked(entry.sequence)
        self.sessions.acknowledged(entry, Reply(sequence=entry.sequence, **reply))

    def adopt(self, naming: Naming, row: Row, **reply: Any) -> None:
        """Send what a daemon that has ended left behind, and acknowledge it."""
        command = Command.END if row.is_settled else Command.BEGIN
        booking = Booking(naming=naming, row=row, epoch=1, seen=0)
        self.link.outbox.adopt(command, booking, 0.0)
        self.answer(booking, **reply)

    def unanswered(self) -> list[Entry]:
        outbox = self.link.outbox
        return [*outbox._in_flight.values(), *outbox._unsent.values()]


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


def row(position: int, *, settled_as: int = 0) -> Row:
    return Row(
        event_id=f"event-{position:04}",
        session_id="s",
        kind="turn",
        status="complete",
        started_at=NOON + position * 60_000,
        ended_at=NOON + position * 60_000 + 1,
        provider="p",
        protocol="messages",
        model="m",
        usage=Usage(input_tokens=position, cache_read_tokens=7 * (position % 2), cache_write_5m_tokens=5),
        cap_ceiling=266_666,
        position=settled_as,
    )


def ledger(*positions: int) -> list[Row]:
    return [row(position, settled_as=position) for position in positions]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- claims ------------------------------------------------------------------------------------------------------------


def test_hold_of_an_unknown_session_claims_it_once(bench: Bench) -> None:
    bench.hold()
    bench.hold()

    assert [type(body) for body in bench.link.put_bodies] == [Claim]


def test_hold_while_the_worker_is_heard_goes_on_with_the_claims_answer(bench: Bench) -> None:
    bench.link.is_heard = True
    holding = bench.sessions.hold(S)
    holding.send(None)

    bench.answer(session_id="s", epoch=3, owned=True, why=Why(reason="because"))
    held, naming, _ = done(holding)

    assert (held.phase, held.epoch) == (Phase.OWNED, 3)
    assert (naming.confirmed, naming.why.reason) == (True, "because")


def test_claim_answered_with_another_id_renames_the_session(bench: Bench) -> None:
    held = bench.hold().held

    bench.answer(session_id="canonical", epoch=1, owned=True)

    assert bench.sessions.current(held).session_id == "canonical"
    assert bench.hold()[0] is bench.sessions.current(held)


def test_claim_answered_with_a_known_session_joins_both(bench: Bench) -> None:
    known = bench.owned(Naming(session_id="canonical", confirmed=False))
    held = bench.hold().held
    bench.sessions.settled(held, held.naming, row(1))

    bench.answer(session_id="canonical", epoch=1, owned=True)

    assert bench.sessions.current(held) is known
    assert "event-0001" in known.pending
    assert bench.sessions.counts()["held"] == 1


def test_claim_with_snapshot_and_rows_folds_them(bench: Bench) -> None:
    rows = ledger(1, 2, 3, 4)
    snapshot = encode(fold(EMPTY, rows[:2]), 5)

    held = bench.owned(generation=5, position=2, snapshot=snapshot, rows=rows[2:])

    assert held.base == fold(EMPTY, rows)
    assert held.is_dirty


def test_claim_with_nothing_after_the_snapshot_is_clean(bench: Bench) -> None:
    snapshot = encode(fold(EMPTY, ledger(1)), 5)

    held = bench.owned(generation=5, position=1, snapshot=snapshot)

    assert (held.generation, held.is_dirty) == (5, False)
    assert bench.sessions.flush() == 0


def test_claim_with_more_rows_asks_for_the_next_page(bench: Bench) -> None:
    rows = ledger(1, 2, 3)
    held = bench.owned(rows=rows[:2], more=True)
    assert held.is_idle is False

    asked = bench.link.put_bodies[-1]
    assert isinstance(asked, Claim) and asked.after == 2
    bench.answer(session_id="s", epoch=1, owned=True, rows=rows[2:])

    assert held.phase is Phase.OWNED
    assert held.base == fold(EMPTY, rows)


def test_claim_whose_owner_changed_between_pages_is_not_taken(bench: Bench) -> None:
    rows = ledger(1, 2, 3)
    held = bench.owned(rows=rows[:2], more=True)

    bench.answer(session_id="s", epoch=3, owned=True, rows=rows[2:])

    assert held.phase is Phase.LOST
    assert bench.sessions.flush() == 0


def test_claim_with_a_damaged_snapshot_asks_for_all_rows_and_warns_once(bench: Bench) -> None:
    rows = ledger(1, 2)
    damaged = replace(encode(fold(EMPTY, rows[:1]), 5), bust_rate_ema=0.123)

    held = bench.owned(generation=5, position=1, snapshot=damaged, rows=rows[1:])
    asked = bench.link.put_bodies[-1]
    assert isinstance(asked, Claim) and asked.after == 0
    bench.answer(session_id="s", epoch=1, owned=True, generation=5, snapshot=damaged, rows=rows)

    assert held.base == fold(EMPTY, rows)
    assert held.is_dirty
    assert len(bench.warnings.texts) == 1


def test_row_placed_while_the_claim_is_on_its_way_is_not_forgotten(bench: Bench) -> None:
    held = bench.owned()
    bench.sessions.lost(Lost(session_id="s", epoch=2))
    bench.hold()
    booking = bench.settle(held, row(2))

    bench.answer(booking, session_id="s", epoch=3, position=2, rows=ledger(1))
    bench.answer(session_id="s", epoch=3, owned=True, rows=ledger(1))

    assert held.base == fold(EMPTY, ledger(1, 2))


# -- losing and claiming again -----------------------------------------------------------------------------------------


def test_lost_session_is_claimed_again_by_its_next_turn(bench: Bench) -> None:
    held = bench.owned()
    bench.sessions.lost(Lost(session_id="s", epoch=2))
    assert held.phase is Phase.LOST

    bench.hold()
    bench.answer(session_id="s", epoch=3, owned=True, rows=ledger(1))

    assert (held.phase, held.epoch, held.position) == (Phase.OWNED, 3, 1)


def test_lost_of_an_older_epoch_changes_nothing(bench: Bench) -> None:
    held = bench.owned(epoch=4)

    bench.sessions.lost(Lost(session_id="s", epoch=3))

    assert held.phase is Phase.OWNED


def test_booking_answered_from_a_newer_epoch_loses_the_session(bench: Bench) -> None:
    held = bench.owned()
    booking = bench.settle(held, row(1))

    bench.answer(booking, session_id="s", epoch=2, owned=False, position=1)

    assert held.phase is Phase.LOST


def test_claim_again_at_the_same_epoch_keeps_what_is_not_stored(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    gap = bench.settle(held, row(3))
    latch(held, "local")
    bench.answer(gap, session_id="s", epoch=1, owned=True, position=3)

    bench.sessions.flush()
    assert held.phase is Phase.LOST

    bench.hold()
    bench.answer(session_id="s", epoch=1, owned=True, rows=ledger(1, 2, 3))

    assert held.base is not None and held.base.warming.disabled == "local"
    assert (held.phase, held.position, held.is_dirty) == (Phase.OWNED, 3, True)


def test_welcome_of_another_store_forgets_all_states(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1, 2))
    bench.sessions.begun(held, replace(held.naming, keys=[Key(kind="request", name="chain", value="x")]), row(1))
    welcome = protocol.Welcome(boot="w", incarnation="new", hash_key="ab" * 32, version="0", schema=1)

    bench.sessions.welcomed(welcome, new_store=True)

    assert (held.phase, held.base, held.generation) == (Phase.LOST, None, 0)
    assert bench.index.continued(["x"]) == ""
    assert bench.sessions.flush() == 0


# -- bookings ----------------------------------------------------------------------------------------------------------


def test_settled_turn_is_part_of_the_state_before_it_is_placed(bench: Bench) -> None:
    held = bench.owned()

    bench.settle(held, row(1))

    assert held.state.gradient == fold(EMPTY, [row(1)]).gradient
    assert (held.position, held.is_dirty) == (0, False)


def test_acks_out_of_order_fold_in_the_order_of_positions(bench: Bench) -> None:
    held = bench.owned()
    first, second = bench.settle(held, row(1)), bench.settle(held, row(2))

    bench.answer(second, session_id="s", epoch=1, owned=True, position=2)
    assert held.position == 0
    bench.answer(first, session_id="s", epoch=1, owned=True, position=1)

    assert held.base == fold(EMPTY, ledger(1, 2))


def test_row_told_twice_is_folded_once(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    booking = bench.settle(held, row(2))

    bench.answer(booking, session_id="s", epoch=1, owned=True, position=2, rows=ledger(1))

    assert held.base == fold(EMPTY, ledger(1, 2))


def test_refused_claim_can_be_made_again(bench: Bench) -> None:
    held = bench.hold().held
    (entry,) = bench.unanswered()
    bench.link.outbox.acked(entry.sequence)

    bench.sessions.refused(entry, "too large")
    bench.hold()

    assert held.phase is Phase.CLAIMING
    assert len(bench.link.put_bodies) == 2


# -- hints -------------------------------------------------------------------------------------------------------------


def with_hint(session_id: str, value: str, **fields: Any) -> Naming:
    hints = [Hint("session", "x-house-session", value), Hint("field", "prompt_cache_key", value)]
    return Naming(session_id=session_id, confirmed=False, hints=hints, **fields)


def owned_with_hint(bench: Bench, value: str) -> Held:
    naming = with_hint("known", value)
    held = bench.owned(naming)
    bench.sessions.begun(held, replace(naming, keys=[Key(kind="request", name="chain", value="x")]), row(1))
    return held


def test_request_with_the_hint_of_an_owned_session_goes_on_without_asking(bench: Bench) -> None:
    held = owned_with_hint(bench, "v1")

    assert bench.hold(with_hint("drawn", "v1", continues=["x"])).held is held
    assert len(bench.claims()) == 1


def test_request_with_another_hint_asks_whether_it_is_a_fork(bench: Bench) -> None:
    """Only the worker knows what that header turned out to mean."""
    owned_with_hint(bench, "v1")
    waiting = bench.holding(with_hint("drawn", "v2", continues=["x"]))

    bench.answer(session_id="drawn", epoch=1, owned=True)

    assert done(waiting).held.session_id == "drawn"


def test_request_whose_other_hint_said_nothing_is_of_the_session_it_goes_on_from(bench: Bench) -> None:
    held = owned_with_hint(bench, "v1")
    waiting = bench.holding(with_hint("drawn", "v2", continues=["x"]))
    bench.answer(session_id="known", epoch=1, owned=True)
    place = done(waiting)
    assert (place.held, held.phase) == (held, Phase.OWNED)
    bench.sessions.begun(held, place.naming, row(2))

    again = bench.hold(with_hint("drawn-2", "v3", continues=["x"]))

    assert (again.held, len(bench.claims())) == (held, 2), "a header that changes with every request is asked for once"


def test_request_with_another_field_alone_goes_on_without_asking(bench: Bench) -> None:
    held = owned_with_hint(bench, "v1")
    field = Naming(
        session_id="drawn", confirmed=False, hints=[Hint("field", "prompt_cache_key", "v2")], continues=["x"]
    )

    assert bench.hold(field).held is held


# -- one session, one proposal -----------------------------------------------------------------------------------------


def test_turns_that_continue_an_unconfirmed_session_propose_its_id(bench: Bench) -> None:
    """Or the store makes two sessions of them, and the daemon takes each for the other's alias."""
    held, naming, _ = bench.hold(Naming(session_id="first", confirmed=False))
    bench.sessions.begun(held, replace(naming, keys=[Key(kind="request", name="chain", value="x")]), row(1))

    again, proposed, _ = bench.hold(Naming(session_id="second", confirmed=False, continues=["x"]))

    assert again is held
    assert proposed.session_id == "first"


def test_claim_of_a_recognised_session_asks_for_that_session(bench: Bench) -> None:
    held = bench.owned(Naming(session_id="known", confirmed=False))
    bench.sessions.begun(held, replace(held.naming, keys=[Key(kind="request", name="chain", value="x")]), row(1))
    bench.sessions.lost(Lost(session_id="known", epoch=2))

    bench.hold(Naming(session_id="drawn", confirmed=False, continues=["x"]))

    asked = bench.link.put_bodies[-1]
    assert isinstance(asked, Claim)
    assert (asked.naming.session_id, asked.naming.confirmed) == ("known", True)


def test_claim_that_is_not_answered_falls_back_on_the_index_and_its_late_answer_joins_both(bench: Bench) -> None:
    """The worker falls silent over the very first request after a restart."""
    bench.sessions.indexed([IndexEntry(kind="answer", value="x", session_id="known")])
    bench.link.is_heard = True
    holding = bench.sessions.hold(Naming(session_id="drawn", confirmed=False, continues=["x"]))
    holding.send(None)

    bench.link.is_heard = False
    held, naming, _ = done(holding)

    assert (held.session_id, naming.session_id, naming.confirmed) == ("known", "known", True)
    assert "continues" in naming.why.reason
    first, second = (body for body in bench.link.put_bodies if isinstance(body, Claim))
    bench.answer(first, session_id="known", epoch=1, owned=True)
    bench.answer(second, session_id="known", epoch=1, owned=True)
    assert bench.held_ids() == ["known"]
    assert (bench.sessions.current(held), held.phase) == (held, Phase.OWNED)


def test_claim_that_is_not_answered_and_not_in_the_index_keeps_its_own_id(bench: Bench) -> None:
    bench.link.is_heard = True
    holding = bench.sessions.hold(Naming(session_id="drawn", confirmed=False, continues=["x"]))
    holding.send(None)

    bench.link.is_heard = False
    held, naming, _ = done(holding)

    assert (held.session_id, naming.session_id, naming.confirmed) == ("drawn", "drawn", False)


# -- what a request is to its session ----------------------------------------------------------------------------------

AGENT = Shape(system="l1 l2 l3 l4", tools="t1 t2 t3 t4", opening="fix it")
TITLE = Shape(system="n1 n2", tools="", opening="fix it")
HELPER = Shape(system="h1 h2 h3", tools="u1 u2", opening="find it")


def of_client(shape: Shape | None = AGENT, **fields: Any) -> Naming:
    """A request whose client named its session."""
    why = Why(reason="the client named it", origin="header x-session-id", confidence="certain")
    return Naming(session_id="s", confirmed=False, header_name="x-session-id", shape=shape, why=why, **fields)


def side_row(position: int) -> Row:
    return replace(row(position), kind="side")


def test_hold_of_what_shows_itself_to_be_aside_claims_nothing(bench: Bench) -> None:
    place = bench.hold(of_client(), "a probe: it asks for no more than one token")

    assert (place.role, place.held.phase, bench.claims()) == ("side", Phase.LOST, [])
    assert (place.naming.session_id, place.naming.why.origin) == ("s", "header x-session-id")
    assert "a probe" in place.naming.why.reason and place.naming.why.confidence == "likely"


def test_hold_of_what_is_aside_leaves_the_owner_alone(bench: Bench) -> None:
    held = bench.owned(of_client())

    place = bench.hold(of_client(TITLE), "it asks for a title")

    assert (place.held, held.phase, len(bench.claims())) == (held, Phase.OWNED, 1)


@pytest.mark.parametrize(("shape", "role"), [(TITLE, "side"), (HELPER, "child"), (AGENT, "turn"), (None, "turn")])
def test_hold_of_an_owned_session_judges_by_itself(bench: Bench, shape: Shape | None, role: str) -> None:
    held = bench.owned(of_client())
    bench.begin(of_client(), row(1))
    assert held.shape == replace(AGENT, is_confirmed=True)

    place = bench.hold(of_client(shape, is_opening=True))

    assert (place.role, place.held, len(bench.claims())) == (role, held, 1)
    assert held.phase is Phase.OWNED


def test_hold_judges_by_what_the_claim_says_the_session_is_set_up_with(bench: Bench) -> None:
    bench.owned(of_client(), shape=AGENT)

    assert bench.hold(of_client(TITLE, is_opening=True)).role == "side"


@pytest.mark.parametrize(("shape", "role"), [(TITLE, "side"), (HELPER, "child")])
def test_hold_whose_claim_is_answered_with_another_role_owns_nothing(bench: Bench, shape: Shape, role: str) -> None:
    waiting = bench.holding(of_client(shape))

    bench.answer(session_id="s", epoch=4, owned=False, role=role, why=Why(reason="other tools"))
    place = done(waiting)

    assert (place.role, place.held.phase, place.held.epoch) == (role, Phase.LOST, 0)
    assert "other tools" in place.naming.why.reason and "header x-session-id" in place.naming.why.reason
    assert place.held.besides == {}


def test_hold_of_a_turn_that_waits_on_a_side_calls_claim_claims_for_itself(bench: Bench) -> None:
    side, turn = bench.holding(of_client(TITLE)), bench.holding(of_client())
    assert len(bench.claims()) == 1

    bench.answer(session_id="s", epoch=4, role="side", why=Why(reason="no tools"))
    assert done(side).role == "side"
    turn.send(None)
    assert bench.claims()[1].naming.shape == AGENT
    bench.answer(session_id="s", epoch=5, owned=True)

    place = done(turn)
    assert (place.role, place.held.phase, place.held.epoch) == ("turn", Phase.OWNED, 5)


def test_hold_of_a_side_call_that_waits_on_a_turns_claim_is_judged_by_it(bench: Bench) -> None:
    turn, side = bench.holding(of_client()), bench.holding(of_client(TITLE, is_opening=True))

    bench.answer(session_id="s", epoch=1, owned=True, shape=AGENT)

    assert (done(turn).role, done(side).role, len(bench.claims())) == ("turn", "side", 1)


def test_claim_of_a_lost_session_shows_its_history(bench: Bench) -> None:
    """Or the worker takes a turn without tools for a call beside the conversation."""
    bench.owned(of_client())
    bench.sessions.lost(Lost(session_id="s", epoch=2))

    bench.hold(of_client(continues=["a2", "a1"]))

    naming = bench.claims()[-1].naming
    assert (naming.session_id, naming.confirmed, naming.continues) == ("s", True, ["a2", "a1"])


def test_hold_judges_by_the_history_of_turns_and_of_calls_beside_them(bench: Bench) -> None:
    last_word, helper = replace(AGENT, tools=""), replace(HELPER, tools="")
    held = bench.owned(of_client(), shape=AGENT)
    for settled, value in ((row(1), "a1"), (side_row(2), "aside-1")):
        bench.sessions.settled(held, of_client(keys=[Key(kind="history", name="chain", value=value)]), settled)

    assert bench.hold(of_client(last_word, continues=["a1"])).role == "turn"
    assert bench.hold(of_client(last_word, continues=["a9"])).role == "side"
    assert bench.hold(of_client(helper, continues=["aside-1"])).role == "child"
    assert bench.hold(of_client(helper, continues=["a9"])).role == "side"


def test_turn_goes_on_over_what_the_turn_before_it_went_on_from(bench: Bench) -> None:
    """What another daemon answered is known by the histories that clients send."""
    bench.owned(of_client(), shape=AGENT)
    bench.hold(of_client(continues=["a2", "a1"]))

    assert bench.hold(of_client(replace(AGENT, tools=""), continues=["x", "a2"])).role == "turn"


def test_side_call_that_begins_changes_nothing_of_the_session(bench: Bench) -> None:
    held = bench.owned(of_client(), shape=AGENT)

    bench.sessions.begun(held, of_client(HELPER), side_row(1))

    assert held.shape == AGENT


def test_side_call_that_ends_is_no_part_of_the_state(bench: Bench) -> None:
    held = bench.owned(of_client(), shape=AGENT)
    before = held.state

    booking = bench.settle(held, side_row(1))
    assert replace(held.state, position=0) == before
    bench.answer(booking, session_id="s", epoch=1, owned=True, role="side", position=1)

    assert held.base is not None and held.base.gradient == EMPTY.gradient
    assert (held.position, held.pending) == (1, {})


def test_turn_that_was_booked_as_a_side_call_is_taken_out_of_the_state(bench: Bench) -> None:
    held = bench.owned(of_client())
    booking = bench.settle(held, row(1))
    assert held.state.gradient != EMPTY.gradient

    bench.answer(booking, session_id="s", epoch=1, owned=True, role="side", position=1)

    assert held.state.gradient == EMPTY.gradient
    assert held.position == 1


def test_claim_never_answered_leaves_the_judgement_to_the_worker(bench: Bench) -> None:
    """What came here without the worker's word may itself have been beside the conversation."""
    bench.owned(of_client(), shape=AGENT)
    bench.sessions.lost(Lost(session_id="s", epoch=2))

    place = bench.hold(of_client(TITLE, continues=["a1"]))

    assert place.role == "turn"
    assert (place.naming.is_judged, place.naming.confirmed, place.naming.continues) == (False, True, ["a1"])


def test_booking_answered_with_a_shape_corrects_what_was_taken_for_the_sessions(bench: Bench) -> None:
    held = bench.hold(of_client()).held
    bench.sessions.begun(held, of_client(HELPER), row(1))
    first, second = bench.settle(held, row(1)), bench.settle(held, row(2))

    bench.answer(first, session_id="s", role="side", position=1, shape=AGENT)
    bench.answer(second, session_id="s", position=2)

    assert held.shape == AGENT


def test_turn_of_an_owned_session_is_judged_and_offers_no_more_of_its_history(bench: Bench) -> None:
    bench.owned(of_client(), shape=replace(AGENT, is_confirmed=True))

    place = bench.hold(of_client(continues=["a1"]))

    assert (place.naming.is_judged, place.naming.continues) == (True, [])


def test_turn_of_a_session_that_may_have_begun_with_a_side_call_offers_its_history(bench: Bench) -> None:
    bench.owned(of_client(), shape=AGENT)

    place = bench.hold(of_client(continues=["a1"]))

    assert (place.naming.is_judged, place.naming.continues) == (True, ["a1"])


# -- snapshots ---------------------------------------------------------------------------------------------------------


def latch(held: Held, text: str) -> None:
    assert held.base is not None
    held.base = replace(held.base, warming=replace(held.base.warming, disabled=text))
    held.generation += 1


def snapshots(bench: Bench) -> list[SnapshotWrite]:
    return [body for body in bench.link.put_bodies if isinstance(body, SnapshotWrite)]


def test_flush_of_a_dirty_session_writes_its_base(bench: Bench) -> None:
    held = bench.owned(epoch=4, rows=ledger(1))

    assert bench.sessions.flush() == 1
    (write,) = snapshots(bench)
    assert held.base is not None
    assert (write.epoch, write.snapshot) == (4, encode(held.base, held.generation))


def test_flush_with_a_snapshot_in_flight_writes_no_second_one(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    bench.sessions.flush()
    latch(held, "newer")

    assert bench.sessions.flush() == 0
    assert len(snapshots(bench)) == 1


def test_flush_of_more_than_its_bound_writes_the_others_next_time(bench: Bench) -> None:
    for name in "abcde":
        bench.owned(Naming(session_id=name, confirmed=False), rows=ledger(1))

    written = [bench.sessions.flush(2) for _ in range(4)]

    assert written == [2, 2, 1, 0]
    assert [write.session_id for write in snapshots(bench)] == list("abcde")


def test_snapshot_acknowledged_cleans_its_generation(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    bench.sessions.flush()

    bench.answer(session_id="s", epoch=1, owned=True, generation=held.generation)

    assert not held.is_dirty
    assert bench.sessions.flush() == 0


def test_snapshot_acknowledged_leaves_a_newer_change_dirty(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    bench.sessions.flush()
    latch(held, "newer")

    bench.answer(session_id="s", epoch=1, owned=True, generation=1)

    assert held.is_dirty
    assert bench.sessions.flush() == 1


def test_snapshot_refused_to_a_former_owner_loses_the_session(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    bench.sessions.flush()

    bench.answer(session_id="s", epoch=2, owned=False, generation=1)

    assert held.phase is Phase.LOST
    assert bench.sessions.flush() == 0


def test_snapshot_of_an_earlier_epoch_acknowledged_late_changes_nothing(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    bench.sessions.flush()
    (late,) = snapshots(bench)
    bench.sessions.lost(Lost(session_id="s", epoch=2))
    bench.hold()
    bench.answer(bench.link.put_bodies[-1], session_id="s", epoch=3, owned=True, rows=ledger(1))

    bench.answer(late, session_id="s", epoch=3, owned=False, generation=1)

    assert (held.phase, held.is_dirty) == (Phase.OWNED, True)


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_eviction_lets_the_least_recently_used_clean_session_go() -> None:
    bench = Bench(limit=2)
    clean = [bench.owned(Naming(session_id=name, confirmed=False)) for name in ("a", "b", "c")]

    assert bench.held_ids() == ["b", "c"]
    assert bench.sessions.current(clean[0]) is clean[0]


def test_eviction_never_drops_a_dirty_session() -> None:
    bench = Bench(limit=2)
    for name in ("a", "b"):
        bench.owned(Naming(session_id=name, confirmed=False), rows=ledger(1))

    bench.owned(Naming(session_id="c", confirmed=False))

    assert bench.sessions.counts() == {"held": 3, "dirty": 2}


def test_eviction_lets_a_dirty_session_go_that_was_lost() -> None:
    """Its state is its new owner's to write; kept here it would be kept for ever."""
    bench = Bench(limit=2)
    held = [bench.owned(Naming(session_id=name, confirmed=False), rows=ledger(1)) for name in ("a", "b")]
    assert all(each.is_dirty for each in held)
    bench.sessions.lost(Lost(session_id="b", epoch=2))

    bench.owned(Naming(session_id="c", confirmed=False))

    assert bench.held_ids() == ["a", "c"]


@pytest.mark.parametrize("kept_by", ["a turn in flight", "a row without a position", "a claim"])
def test_eviction_never_drops_a_session_in_use(kept_by: str) -> None:
    bench = Bench(limit=1)
    naming = Naming(session_id="a", confirmed=False)
    if kept_by == "a claim":
        bench.hold(naming)
    else:
        held = bench.owned(naming)
        held.turns_in_flight = int(kept_by == "a turn in flight")
        if kept_by == "a row without a position":
            bench.settle(held, row(1))

    bench.hold(Naming(session_id="b", confirmed=False))

    assert bench.sessions.counts()["held"] == 2


# -- what was found between the lines ----------------------------------------------------------------------------------


def test_end_under_a_former_name_is_placed_after_names_were_forgotten(bench: Bench) -> None:
    """A correction of any sessions makes daemons forget what ids became of which."""
    held = bench.hold().held
    booking = bench.settle(held, row(1))
    claim = next(body for body in bench.link.put_bodies if isinstance(body, Claim))
    bench.answer(claim, session_id="canonical", epoch=1, owned=True)
    bench.sessions.amended()
    bench.answer(booking, session_id="canonical", epoch=1, owned=True, position=1)

    now = bench.sessions.current(held)

    assert (dict(now.pending), now.position) == ({}, 1)


def test_two_that_go_on_from_one_answer_without_the_worker_are_two(bench: Bench) -> None:
    answered = replace(S, session_id="a", keys=[Key(kind="answer", name="chain", value="A1")])
    bench.owned(answered)
    bench.index.learn("a", answered.keys)
    bench.link.is_heard = False

    def going(number: int) -> Naming:
        key = Key(kind="request", name="chain", value=f"R{number}")
        return Naming(session_id=f"drawn{number}", confirmed=False, continues=["A1"], keys=[key], chain_length=3)

    first = bench.hold(going(1))
    first.held.turns_in_flight += 1
    second = bench.hold(going(2))

    assert (first.held.session_id, second.held.session_id) == ("a", "drawn2")


# -- a turn that another daemon outran ---------------------------------------------------------------------------------


_ENDED = replace(row(2), session_id="known")
_OPENED = replace(_ENDED, status="interrupted", ended_at=0, usage=None)


def outrun(bench: Bench) -> tuple[Place, Booking]:
    """An owner takes a turn for its session's next one, without asking, and books it."""
    held = owned_with_hint(bench, "v1")
    bench.link.is_heard = True
    place = bench.hold(with_hint("drawn", "v1", continues=["x"], keys=[Key(kind="request", name="chain", value="y")]))
    assert place.held is held
    begun = Booking(naming=place.naming, row=_OPENED, epoch=1, seen=0)
    held.turns_in_flight += 1
    bench.sessions.begun(held, place.naming, begun.row)
    bench.link.put(Command.BEGIN, begun)
    return place, begun


def test_turn_that_an_owner_decided_alone_carries_the_id_of_a_fork(bench: Bench) -> None:
    place, _ = outrun(bench)
    assert (place.naming.session_id, place.naming.drawn_id, place.naming.continues) == ("known", "drawn", ["x"])


def test_turn_that_an_owner_decided_alone_tells_of_which_request_it_would_be_a_retry(bench: Bench) -> None:
    owned_with_hint(bench, "v1")
    bench.link.is_heard = True
    assert bench.hold(with_hint("drawn", "v1", continues=["x"], retry="r")).naming.retry == "r"


def test_outrun_turn_goes_on_in_a_session_of_its_own(bench: Bench) -> None:
    place, begun = outrun(bench)
    event_id = begun.row.event_id

    bench.answer(begun, session_id="drawn", forked=True)

    fork = bench.sessions.current(place.held, event_id)
    assert (fork.session_id, fork.turns_in_flight, place.held.turns_in_flight) == ("drawn", 1, 0)
    assert bench.sessions.current(place.held).session_id == "known"
    assert bench.index.continued(["y"]) == "", "what both hold, only the worker can tell apart"

    bench.sessions.settled(place.held, place.naming, _ENDED)
    assert (set(fork.pending), set(place.held.pending)) == ({event_id}, set())


def test_outrun_turn_that_ended_before_the_worker_said_so_moves_to_its_own_session(bench: Bench) -> None:
    place, begun = outrun(bench)
    place.held.turns_in_flight -= 1
    bench.settle(place.held, _ENDED)
    bench.answer(begun, session_id="drawn", forked=True)

    fork = bench.sessions.current(place.held, begun.row.event_id)
    assert (set(fork.pending), fork.turns_in_flight, place.held.turns_in_flight) == ({begun.row.event_id}, 0, 0)


def test_turn_that_an_owner_took_of_a_session_that_was_joined_meanwhile_is_no_fork(bench: Bench) -> None:
    """All of the session is another's by now, this turn and those before it."""
    place, begun = outrun(bench)
    bench.answer(begun, session_id="whole", epoch=2)
    whole = bench.sessions.current(place.held, begun.row.event_id)
    assert (whole.session_id, whole.turns_in_flight, whole.phase, whole.forks) == ("whole", 1, Phase.LOST, {})
    assert "known" not in bench.held_ids()


def test_begin_told_again_after_its_end_places_what_is_pending(bench: Bench) -> None:
    """Its end was acknowledged for a session that is part of this one since."""
    held = bench.owned()
    begun = Booking(naming=held.naming, row=replace(row(1), ended_at=0, status="interrupted"), epoch=1, seen=0)
    bench.link.put(Command.BEGIN, begun)
    bench.settle(held, row(1))
    bench.answer(begun, session_id="s", epoch=1, owned=True, position=1)
    assert (held.position, held.pending) == (1, {})


def test_turn_of_a_session_that_was_asked_for_carries_no_fork(bench: Bench) -> None:
    waiting = bench.holding(Naming(session_id="drawn", confirmed=False, continues=["x"]))
    bench.answer(session_id="known", epoch=1, owned=True)
    assert done(waiting).naming.drawn_id == ""


def test_turn_that_an_owner_took_while_the_worker_is_not_heard_carries_no_fork(bench: Bench) -> None:
    """It will be told late, when others may have gone on from it: that makes it no branch."""
    owned_with_hint(bench, "v1")
    assert bench.hold(with_hint("drawn", "v1", continues=["x"])).naming.drawn_id == ""


def test_session_of_ours_that_turns_out_to_be_of_a_longer_one_is_claimed_again(bench: Bench) -> None:
    held = bench.owned(S)
    begun = bench.settle(held, row(1))
    bench.answer(begun, session_id="longer", epoch=1, position=7)

    found = bench.sessions.current(held)
    assert (found.session_id, found.phase, found.base) == ("longer", Phase.LOST, None)


def test_claim_answered_after_its_session_became_part_of_another_does_not_bring_it_back(bench: Bench) -> None:
    """Its answer is older than the booking's, whatever came first."""
    held = bench.hold().held
    (claim,) = bench.claims()
    bench.answer(bench.settle(held, row(1)), session_id="longer", epoch=1, position=1)

    bench.answer(claim, session_id="s", epoch=1, owned=True)

    assert bench.held_ids() == ["longer"]
    assert bench.sessions.current(held).phase is Phase.LOST
    bench.hold(replace(S, session_id="longer", confirmed=True))
    assert len(bench.claims()) == 2


def test_claim_answered_after_its_session_became_part_of_one_that_is_ours_changes_nothing(bench: Bench) -> None:
    ours = bench.owned(replace(S, session_id="longer"))
    held = bench.hold().held
    claim = bench.claims()[-1]
    bench.answer(bench.settle(held, row(1)), session_id="longer", epoch=1, position=1)

    bench.answer(claim, session_id="s", epoch=1, owned=True)

    assert bench.held_ids() == ["longer"]
    assert (bench.sessions.current(held), ours.phase, ours.position) == (ours, Phase.OWNED, 1)


def test_booking_answered_after_its_session_became_part_of_another_does_not_bring_it_back(bench: Bench) -> None:
    held = bench.owned(S)
    late, told = bench.settle(held, row(1)), bench.settle(held, row(2))
    bench.answer(told, session_id="longer", epoch=1, position=2)

    bench.answer(late, session_id="s", epoch=1, position=1)

    found = bench.sessions.current(held)
    assert (bench.held_ids(), found.phase, found.pending) == (["longer"], Phase.LOST, {})


# -- what daemons left behind ------------------------------------------------------------------------------------------


def test_adopted_turn_of_a_session_held_here_is_folded_in(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))

    bench.adopt(S, row(2), session_id="s", epoch=1, owned=True, position=2)

    assert held.base == fold(EMPTY, ledger(1, 2))
    assert (held.phase, held.turns_in_flight, held.pending) == (Phase.OWNED, 0, {})


def test_adopted_turn_of_an_earlier_epoch_does_not_take_the_session_away(bench: Bench) -> None:
    held = bench.owned(epoch=4, rows=ledger(1))

    bench.adopt(S, row(2), session_id="s", epoch=4, owned=False, position=2)

    assert held.phase is Phase.OWNED


def test_adopted_turn_that_turned_out_to_be_a_fork_leaves_no_turn_in_flight(bench: Bench) -> None:
    held = bench.owned(rows=ledger(1))
    drawn = replace(S, confirmed=True, drawn_id="drawn")

    bench.adopt(drawn, replace(row(2), ended_at=0), session_id="drawn", epoch=0)
    bench.adopt(drawn, row(2), session_id="drawn", epoch=0, position=1)

    assert (held.turns_in_flight, held.phase) == (0, Phase.OWNED)
    assert bench.held_ids() == ["s"]


def test_adopted_turn_of_a_session_nobody_holds_here_changes_nothing(bench: Bench) -> None:
    bench.adopt(S, row(1), session_id="elsewhere", epoch=1, position=1)

    assert bench.held_ids() == []
