"""The sessions a daemon holds when an operator moves turns and names between them."""

from __future__ import annotations

from daemon.held import Phase
from daemon.state import EMPTY, fold
from tests.daemon.test_sessions import Bench, S, ledger, row
from worker.protocol import IndexEntry, Lost, Naming


def test_positions_given_anew_leave_the_state_that_the_ledger_folds_to() -> None:
    """A row told before, with a position of then, must not be folded at a place that is another row's now."""
    bench = Bench()
    held = bench.owned(rows=ledger(1, 2))
    booking = bench.settle(held, row(4))
    bench.answer(booking, session_id="s", epoch=1, owned=True, position=4)
    assert list(held.placed) == [4]
    bench.sessions.lost(Lost(session_id="s", epoch=2))

    # Of the three rows before it two are another session's now, and one more was settled since.
    moved = [row(3, settled_as=1), row(4, settled_as=2)]
    bench.hold()
    bench.answer(session_id="s", epoch=3, owned=True, rows=moved)
    later = bench.settle(held, row(5))
    bench.answer(later, session_id="s", epoch=3, owned=True, position=3)
    latest = bench.settle(held, row(6))
    bench.answer(latest, session_id="s", epoch=3, owned=True, position=4)

    assert held.phase is Phase.OWNED
    assert held.state == fold(EMPTY, [*moved, row(5, settled_as=3), row(6, settled_as=4)])


def test_acknowledgement_from_before_positions_were_given_anew_places_nothing() -> None:
    """It may overtake the answer to a claim that was made after it."""
    bench = Bench()
    held = bench.owned(rows=ledger(1))
    bench.sessions.lost(Lost(session_id="s", epoch=2))
    bench.hold()
    early = bench.settle(held, row(2))
    bench.answer(early, session_id="s", epoch=1, owned=True, position=2)

    bench.answer(session_id="s", epoch=3, owned=True, rows=[row(2, settled_as=1)])

    assert held.state == fold(EMPTY, [row(2, settled_as=1)])
    assert not held.placed


def test_late_acknowledgement_from_before_positions_were_given_anew_places_nothing() -> None:
    bench = Bench()
    held = bench.owned(rows=ledger(1))
    early = bench.settle(held, row(2))
    bench.sessions.lost(Lost(session_id="s", epoch=2))
    bench.hold()
    claim = bench.link.put_bodies[-1]
    bench.answer(claim, session_id="s", epoch=3, owned=True, rows=[row(2, settled_as=1)])

    bench.answer(early, session_id="s", epoch=1, owned=True, position=2)

    assert held.state == fold(EMPTY, [row(2, settled_as=1)])
    assert not held.pending


def test_names_are_forgotten_when_an_operator_changed_something() -> None:
    bench = Bench()
    bench.hold()
    bench.answer(session_id="merged", epoch=1, owned=True)
    bench.sessions.indexed([IndexEntry("answer", "link", "merged")])
    assert bench.hold()[0].session_id == "merged"

    bench.sessions.amended()

    assert bench.hold()[0].session_id == S.session_id
    assert bench.index.continued(["link"]) == ""
    assert bench.hold(Naming(session_id="new", confirmed=False, continues=["link"]))[0].session_id == "new"
