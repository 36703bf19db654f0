"""What an operator wants forgotten: a session, and whatever names it, recognises it or tells of it.

One rule: money is not forgotten.  Every ledger row stays, and so does every sum that it is part of; but nothing leads
from the session to them, nor back.

Theory of operation.  The rows are moved to a *blank* session with an id that nobody knows: no total goes down, and a
row that a daemon sends again, because it did not hear that it is stored, is met there and counts once.  Of a row stays
what sums are made of.  Its client and its account stay too, since the sums of a day are kept by them, and tell of many
sessions.  The blank session stands where the forgotten one stood under the session that started it, whose cost with its
sub-agents would else go down.

Then all that belonged to the session goes: keys, history, hints, aliases, its own row; the images of it that
corrections left, which therefore can not be undone any more; and its id, where the reasons of others hold it.  The log
keeps the id, the time and how many rows there were: without these it would be no log.

Whoever goes on with the conversation begins anew.  A session that a client names gets the same id again, which is a
hash of that name; daemons may still hold what they knew under it.  So no session begins at an epoch that any forgotten
one ever had: what daemons hold is of another epoch then, and is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from worker.correction import Refused, Told, by_start, known_as, refuse_running, session_at
from worker.ledger import Sums, sums_of_session
from worker.protocol import Forget, Lost, Row, Why
from worker.stored import Amendment, Image, Placed, Session, Tables

UNNAMED: Final = "a forgotten session"
"""What reasons say where they said which."""


def forget(tables: Tables, act: Forget, entry: Amendment, *, live: frozenset[str]) -> Told:
    """Forget a session, and its sub-agents where they are meant too."""
    root = session_at(tables, act.session_id)
    below = _below(tables, root)
    if below and not act.tree:
        count = "a sub-agent" if len(below) == 1 else f"{len(below)} sub-agents"
        raise Refused(f"{root.session_id} has {count}; forget them with it (--tree), or one by one before it")
    if tables.session(act.drawn_id) or tables.alias(act.drawn_id):
        raise Refused(f"{act.drawn_id} is another session already; try again")
    going = [*below, root]  # The log's newest entry, which is what is told, is of the one that was asked for.
    rows = {each.session_id: tables.rows_of(each.session_id) for each in going}
    refuse_running((row for own in rows.values() for row in own), live)

    ids = {name for each in going for name in (each.session_id, *tables.aliases_of(each.session_id))}
    _erase_images(tables, ids, going, {row.event_id for own in rows.values() for row in own})
    kin = _kin(tables, going, ids)
    blank = Session(
        session_id=act.drawn_id,
        parent_session_id=known_as(tables, root.parent_session_id),
        first_seen_at=0,
        last_seen_at=0,
        forgotten_at=max(1, entry.at),
    )
    tables.put_session(blank)
    _keep_rows(tables, blank, going, [row for own in rows.values() for row in own])
    entries = _entries(entry, going, rows)
    for each, written in zip(going, entries, strict=True):
        _orphan(tables, each, blank)
        _erase(tables, each.session_id)
        tables.put_amendment(written)
    for session_id in kin:
        _unname(tables, session_id, ids)
    lost = [(each.owner, Lost(session_id=each.session_id, epoch=each.epoch + 1)) for each in going if each.owner]
    return entries[-1], lost


def blank_row(row: Row, session_id: str, position: int) -> Row:
    """What stays of a row: what sums are made of, and by whom it is known when it comes again."""
    return replace(
        row,
        session_id=session_id,
        position=position,
        why=Why(),
        http_status=0,
        message_count=0,
        cap_ceiling=0,
        layer=0,
        user_turn=True,
        text_only=True,
        window_started_at=0,
    )


# -- what goes -----------------------------------------------------------------------------------------------------


def _below(tables: Tables, root: Session) -> list[Session]:
    """The sub-agents of a session, and theirs, the lowest first."""
    found: dict[str, Session] = {}
    waiting = [root.session_id]
    while waiting:
        for child in filter(None, map(tables.session, tables.children_of(waiting.pop()))):
            # Sessions may say that they started each other.
            if child.session_id not in found and child.session_id != root.session_id and not child.forgotten_at:
                found[child.session_id] = child
                waiting.append(child.session_id)
    return [*reversed(found.values())]


def _erase(tables: Tables, session_id: str) -> None:
    """All that belonged to it, and itself."""
    for alias in tables.aliases_of(session_id):
        tables.forget_adopted(alias)
        tables.drop_alias(alias)
    tables.forget_adopted(session_id)
    for key in tables.keys_of(session_id):
        tables.drop_key(key, session_id)
    for link in tables.history_of(session_id):
        tables.drop_history(link.value, session_id)
    for name in tables.hints_of(session_id):
        tables.drop_hint(session_id, name)
    tables.drop_session(session_id)


def _orphan(tables: Tables, session: Session, blank: Session) -> None:
    """Nobody was forked from it, and it started nobody; what stays of its sub-agents that were forgotten before, whose
    cost is part of a tree still, hangs on what stays of it."""
    for fork in filter(None, map(tables.session, tables.forks_of(session.session_id))):
        tables.put_session(replace(fork, forked_from=None))
    for child in filter(None, map(tables.session, tables.children_of(session.session_id))):
        if child.forgotten_at:
            tables.put_session(replace(child, parent_session_id=blank.session_id))


def _erase_images(tables: Tables, ids: set[str], going: Sequence[Session], events: set[str]) -> None:
    """Of earlier changes: an image of a session holds its keys, and those of sessions that came out of it later."""
    values = {key.value for each in going for key in tables.keys_of(each.session_id)}
    values |= {link.value for each in going for link in tables.history_of(each.session_id)}
    told = _telling(ids)
    for number in tables.amendments_with_images():
        change = tables.amendment(number)
        assert change is not None
        is_of_it = {change.session_id, change.other_id} & ids
        if is_of_it or any(_holds(image, ids, events, values) for image in change.before):
            tables.put_amendment(replace(change, before=[]))
        else:
            before = [_image_without(image, ids, told) for image in change.before]
            if before != change.before:
                tables.put_amendment(replace(change, before=before))


def _holds(image: Image, ids: set[str], events: set[str], values: set[str]) -> bool:
    held = {key.value for key in image.keys} | {link.value for link in image.history}
    return bool({image.session.session_id, *image.aliases} & ids or image.rows.keys() & events or held & values)


def _image_without(image: Image, ids: set[str], told: re.Pattern[str]) -> Image:
    """Of another session, which may have started it, or have been forked from it."""
    session = image.session
    return replace(
        image,
        session=replace(
            session,
            parent_session_id=None if session.parent_session_id in ids else session.parent_session_id,
            forked_from=None if session.forked_from in ids else session.forked_from,
            why=_without(session.why, told),
        ),
        rows={event_id: Placed(at.position, _without(at.why, told)) for event_id, at in image.rows.items()},
        children=[each for each in image.children if each not in ids],
        forks=[each for each in image.forks if each not in ids],
    )


def _kin(tables: Tables, going: Sequence[Session], ids: set[str]) -> set[str]:
    """Sessions whose reasons may name one that goes: its forks, and what it had rows from or gave rows to."""
    found = {fork for each in going for fork in tables.forks_of(each.session_id)}
    for number in {number for name in ids for number in tables.amendments_of(name)}:
        change = tables.amendment(number)
        if change is not None:
            found |= {known_as(tables, each) or "" for each in (change.session_id, change.other_id)}
    return found - {each.session_id for each in going}


def _unname(tables: Tables, session_id: str, ids: set[str]) -> None:
    """Take the forgotten ids out of a session's reasons, and its rows'."""
    session = tables.session(session_id)
    if session is None:
        return
    told = _telling(ids)
    tables.put_session(replace(session, why=_without(session.why, told)))
    for row in tables.rows_of(session_id):
        if told.search(row.why.reason):
            tables.put_row(replace(row, why=_without(row.why, told)))


def _telling(ids: set[str]) -> re.Pattern[str]:
    """How reasons tell of a session: "a fork of", "merged from", "and says that"."""
    names = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    return re.compile(rf"\b(of|from|that) (?:{names})(?![\w-])")


def _without(why: Why, told: re.Pattern[str]) -> Why:
    return replace(why, reason=told.sub(rf"\1 {UNNAMED}", why.reason)[:REASON_CHARACTERS_MAX])


# -- what stays ----------------------------------------------------------------------------------------------------


def _keep_rows(tables: Tables, blank: Session, going: Sequence[Session], rows: Iterable[Row]) -> None:
    """The rows, in the order of their start and not of their sessions, with all that they and former ones add up to."""
    rolled, total, position = Sums(), Sums(), 0
    for each in going:
        rolled = rolled.plus(tables.rolled(each.session_id))
    for row in sorted(rows, key=by_start):
        position += row.is_settled
        total = total.plus(sums_of_session(row))
        tables.put_row(blank_row(row, blank.session_id, position if row.is_settled else 0))
    tables.put_session(replace(blank, last_position=position))
    tables.add_to_session(blank.session_id, total.plus(rolled))
    if rolled != Sums():
        tables.add_to_rolled(blank.session_id, rolled)


def _entries(entry: Amendment, going: Sequence[Session], rows: Mapping[str, Sequence[Row]]) -> list[Amendment]:
    """One for each session, that of the root last."""
    epoch = 1 + max(each.epoch for each in going)
    entries = [
        replace(
            entry,
            number=entry.number + place,
            request=f"{entry.request} {place}",
            verb="forget",
            session_id=each.session_id,
            moved=len(rows[each.session_id]),
            epoch=epoch,
        )
        for place, each in enumerate(going)
    ]
    return [*entries[:-1], replace(entries[-1], request=entry.request, stayed=len(going) - 1)]


REASON_CHARACTERS_MAX: Final = 512
"""What the protocol lets a text have."""
