"""Turns that are told late: while the worker is away daemons answer alone, and tell afterwards in another order than
they were asked in.

One rule: sessions become one here only where a turn of one went through the very answer that the other gave, and
neither went another way.

Theory of operation.  A turn carries the links of what it goes on from.  Where the store does not know them, they are
noted beside its session: as *passed* if an earlier part of the conversation is known, as *before* if nothing is and the
session begins with this turn.  When the turns between are told, by the daemons that answered them, the notes say where
they belong: a request that was gone through finds its session at once, and an answer shows the session that went
through it to be another part of the same conversation.  The id that was first stays, the other is an alias of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from worker import hints
from worker.amend import known_of_both, place, pour
from worker.correction import by_start
from worker.protocol import Booking, KeyKind, Lost, Naming, Row, Why
from worker.stored import CLAIMED, Session, Tables

BEFORE_MAX: Final = 32
"""Links kept of what lies before a session's first turn: an outage of some turns, not a conversation of years."""
REASON_CHARACTERS_MAX: Final = 512
"""What the protocol lets a text have."""


def note_passed(tables: Tables, session: Session, naming: Naming, event_id: str) -> None:
    """Note what lies between the session's last known answer and this turn: while the worker was away other daemons may
    have answered there, and will tell."""
    if naming.is_named:
        return  # What its client names is found by that name alone.
    passed: list[str] = []
    for value in naming.continues:
        if tables.holds_history(value, session.session_id):
            break
        passed.append(value)
    else:
        # Nothing of it is known: a conversation that began elsewhere, however long ago; or one of which another daemon
        # will tell the beginning.
        if session.last_position <= 1:
            for value in passed[:BEFORE_MAX]:
                tables.put_history(_BEFORE + value, session.session_id, event_id)
        return
    for value in passed:
        tables.put_history(_PASSED + value, session.session_id, event_id)


def told_late(tables: Tables, naming: Naming) -> tuple[set[str], Why]:
    """The sessions of which a later turn was told first, by another daemon: it went through this very request.

    An opening is not looked for: the same first words are anybody's.
    """
    own = [key.value for key in naming.keys if key.kind == "request" and not naming.is_opening]
    reason = "a later turn of this session goes on from it, and was stored before"
    return _gone_through(tables, own), Why(reason=reason, origin=naming.why.origin, confidence="proven")


def part_going_through(tables: Tables, session: Session, body: Booking) -> Session | None:
    """The session that has another part of this one's conversation: a turn of it went through the answer told here.

    None if there are several, or if this one went on by itself: then the other is another conversation, of equal words.
    """
    naming, row = body.naming, body.row
    if naming.is_named or row.kind != "turn" or not row.is_settled:
        return None
    answers = [key.value for key in naming.keys if key.kind == "answer"]
    found = _gone_through(tables, answers) - {session.session_id}
    if len(found) != 1:
        return None
    other = tables.session(found.pop())
    if other is None or _is_stranger(tables, other, session) or hints.denied(tables, other.session_id, naming):
        return None
    if row.started_at >= _newest(tables, other, answers):
        return None
    # Where it went on by itself the answer is not its last one, or another request goes on from it at this moment.
    is_last = all(tables.holders(["answer"], value) for value in answers) and not tables.requests(session.session_id)
    holders = {holder for value in answers for holder in tables.histories(value, 2)}
    return other if is_last and holders == {session.session_id} else None


def part_gone_through(tables: Tables, session: Session, body: Booking) -> Session | None:
    """The session that gave the answer which a turn of this one goes on from: its daemon did not know that one.

    None if either went on by itself, or if that was for the store to say and it has said otherwise.
    """
    naming = body.naming
    if naming.is_named or (naming.confirmed and session.forked_from):
        return None
    for value in naming.continues:
        found = tables.histories(value, 2)
        if found:
            break
    else:
        return None
    # Of this session's own answer there is nothing to be said.
    found = [each for each in found if not tables.holds_history(value, session.session_id)]
    other = tables.session(found[0]) if len(found) == 1 and tables.holders(["answer"], value) else None
    if other is None or _is_stranger(tables, other, session) or hints.denied(tables, other.session_id, naming):
        return None
    own = {*naming.continues, *(key.value for key in naming.keys)}
    is_last = {key.value for key in tables.keys_of(session.session_id) if key.kind == "answer"} <= {*naming.continues}
    # An end that is told before its begin does not say what was claimed for it.
    claimed = f"{CLAIMED}{body.row.boot}"
    asked = [request for request, holder in tables.requests(session.session_id) if holder.event_id != claimed]
    asked += [request for request, _ in tables.requests(other.session_id)]
    return other if is_last and own.issuperset(asked) else None


def join(tables: Tables, one: Session, other: Session) -> tuple[Session, list[tuple[str, Lost]]]:
    """Make two parts of a conversation one session, that which began first; also gives the former owners of both, who
    are to be told.

    The rows of the other come behind those that are there, whose positions stay, and so does the session's snapshot.
    Turns that are under way settle there too: the id that they know is an alias from now on.
    """
    into, source = sorted((one, other), key=lambda part: (part.last_position == 0, part.first_seen_at))
    # There are none yet where its first turn was claimed for, and has not begun.
    rows = sorted(tables.rows_of(source.session_id), key=_place_of)
    for first in rows[:1]:
        reason = f"its conversation is this session's, which was stored in another order; before: {first.why.reason}"
        rows[0] = replace(first, why=replace(first.why, reason=reason[:REASON_CHARACTERS_MAX], confidence="proven"))
    last_position = place(tables, into.session_id, rows, after=into.last_position)
    longest = max((into, source), key=lambda part: (part.chain_length, part.last_seen_at))
    if any(key.kind == "answer" for key in tables.keys_of(longest.session_id)):
        # As when the next answer of one session is told.
        tables.drop_keys(into.session_id if longest is source else source.session_id, _CHAIN)
    pour(tables, source, into)
    # Whoever held one of them holds a part: all is claimed again.
    epoch = 1 + max(into.epoch, source.epoch)
    whole = replace(known_of_both(tables, source, into), owner="", epoch=epoch, last_position=last_position)
    tables.put_session(whole)
    tables.drop_session(source.session_id)
    tables.put_alias(source.session_id, into.session_id)
    return whole, [(part.owner, Lost(session_id=part.session_id, epoch=epoch)) for part in (into, source) if part.owner]


def _gone_through(tables: Tables, values: Iterable[str]) -> set[str]:
    return {
        session_id
        for value in values
        for word in (_PASSED, _BEFORE)
        for session_id in tables.histories(word + value, 2)
    }


def _is_stranger(tables: Tables, other: Session, session: Session) -> bool:
    """What its client named, what somebody else started, and what an operator has put where it is."""
    is_placed = tables.standing_after(0, [other.session_id, session.session_id])
    return bool(other.header_session_id or is_placed) or other.parent_session_id != session.parent_session_id


def _newest(tables: Tables, other: Session, answers: Sequence[str]) -> int:
    """When a turn began that may have gone through these answers: what was asked for after it is of another
    conversation."""
    notes = {word + value for value in answers for word in (_PASSED, _BEFORE)}
    noted = (tables.row(link.event_id) for link in tables.history_of(other.session_id) if link.value in notes)
    began = (row.started_at for row in noted if row is not None)
    claimed = (holder.at for _, holder in tables.requests(other.session_id))
    return max([other.last_seen_at, *began, *claimed])


def _place_of(row: Row) -> tuple[int, tuple[int, str]]:
    """In the order of positions; what is open comes last."""
    return (row.position if row.is_settled else _LAST, by_start(row))


_CHAIN: Final[tuple[KeyKind, ...]] = ("answer", "request", "retry")
_LAST: Final = 2**62
"""After every position."""
_PASSED: Final = "passed "
"""Before what is kept of turns that a later one went through, and that were not told yet."""
_BEFORE: Final = "before "
"""Before what is kept of the turns that lie before a session's first, of which nothing was known."""
