"""An operator's corrections: two sessions that are one, one session that is two, and taking either back.  What is to
be forgotten is `worker.forget`.

One rule: a correction moves what is there and invents nothing.  Every row is in exactly one session before and after,
sums move by the rows' own figures, and what was done is written down together with the sessions as they were.

Theory of operation.  Each verb first judges, and refuses in words; then it writes, all in the transaction of its batch.
A merge pours one session into another and leaves the first one's id as an alias; a split founds a session on some rows
of another; an undo looks at the images that a change left, and gives back what still is where the change put it.

The states that daemons hold are folds over rows in the order of their positions, and here positions change.  So every
session that a correction touches loses its snapshot and its owner and gets an epoch above any it ever had under either
name: whoever held it has to claim it again, and folds all its rows.  What daemons remember of names they forget when
they hear that there is a new change (`protocol.Pong`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from worker.adopt import adopt
from worker.correction import Refused, Told, by_start, known_as, refuse_running, session_at
from worker.forget import forget
from worker.ledger import Sums, sums_of_session
from worker.protocol import Adopt, Amend, Amended, Forget, Key, KeyKind, Lost, Merge, Row, Split, Undo, Warm, Why
from worker.stored import Amendment, Image, KeptKey, Placed, Seen, Session, Tables
from worker.switch import warm

REASON_CHARACTERS_MAX: Final = 512
"""Of a row's reason, which holds those before it."""
REFUSAL_CHARACTERS_MAX: Final = 512
"""What the protocol lets a text have."""
ORIGIN: Final = "operator"


class Correction(NamedTuple):
    """What came of an AMEND, and which former owners are to be told."""

    amended: Amended
    lost: list[tuple[str, Lost]]


def amend(tables: Tables, body: Amend, *, live: frozenset[str], now: int) -> Correction:
    """Do what the operator asks, or say why not.  A request that was done before is only told again."""
    done = tables.amendment_asked(body.request)
    if done is not None:
        return Correction(_told(done), [])
    entry = Amendment(
        number=tables.newest_amendment() + 1,
        request=body.request,
        at=now,
        verb="undo",
        session_id="",
        other_id="",
        moved=0,
    )
    if isinstance(body.act, Adopt):
        (entry, lost), adopted = adopt(tables, body.act, entry)
        return Correction(replace(_told(entry), adopted=adopted), lost)
    try:
        entry, lost = _done(tables, body.act, entry, live)
    except Refused as refused:
        # It names what was asked for, which may be as long as any text may be.
        return Correction(Amended(refusal=str(refused)[:REFUSAL_CHARACTERS_MAX]), [])
    return Correction(_told(entry), lost)


def _done(tables: Tables, act: Merge | Split | Undo | Forget | Warm, entry: Amendment, live: frozenset[str]) -> Told:
    match act:
        case Merge():
            return merge(tables, act, entry)
        case Split():
            return split(tables, act, entry, live=live)
        case Undo():
            return undo(tables, act, entry, live=live)
        case Forget():
            return forget(tables, act, entry, live=live)
        case Warm():
            return warm(tables, act, entry)


# -- merge ---------------------------------------------------------------------------------------------------------


def merge(tables: Tables, act: Merge, entry: Amendment) -> Told:
    """All of one session becomes another's.  Requests under way settle there too: the id they know is an alias now."""
    source, into = session_at(tables, act.session_id), session_at(tables, act.into)
    if source.session_id == into.session_id:
        raise Refused(f"{source.session_id} is one session already: nothing to merge")
    before = [_image(tables, source), _image(tables, into)]
    entry = replace(entry, verb="merge", session_id=source.session_id, other_id=into.session_id, before=before)

    own, others = tables.rows_of(into.session_id), tables.rows_of(source.session_id)
    rows = [*own, *(replace(row, why=_why_moved(entry, row.why)) for row in others)]
    last_position = place(tables, into.session_id, sorted(rows, key=by_start))
    pour(tables, source, into)
    lost = _nobodys(tables, [(known_of_both(tables, source, into), last_position)], [source, into])
    tables.drop_session(source.session_id)
    tables.put_alias(source.session_id, into.session_id)

    entry = replace(entry, moved=len(others))
    tables.put_amendment(entry)
    return entry, lost


def known_of_both(tables: Tables, source: Session, into: Session) -> Session:
    """What is known of both: what changes with every turn, of the one with the later turn."""
    later, earlier = _later_first(source, into)
    ours = {source.session_id, into.session_id}
    parents = [known_as(tables, each.parent_session_id) for each in (into, source)]
    origins = [known_as(tables, each.forked_from) for each in (into, source)]
    return replace(
        into,
        # One that goes back to either would make sessions each other's parents, and count costs twice.
        parent_session_id=next((each for each in parents if each and not ours & _ancestors(tables, each)), None),
        forked_from=next((each for each in origins if each and each not in ours), None),
        client=later.client or earlier.client,
        account=later.account or earlier.account,
        model=later.model or earlier.model,
        message_count=later.message_count,
        first_seen_at=min(source.first_seen_at, into.first_seen_at),
        last_seen_at=later.last_seen_at,
        chain_length=later.chain_length,
        fingerprint=later.fingerprint or earlier.fingerprint,
        shape=later.shape or earlier.shape,
        header_name=into.header_name or source.header_name,
        header_session_id=into.header_session_id or source.header_session_id,
        warm=into.warm or source.warm,
        warm_reset_at=max(into.warm_reset_at, source.warm_reset_at),
    )


def pour(tables: Tables, source: Session, into: Session) -> None:
    """All that belongs to a session but its rows goes to another, which keeps its own where both have one."""
    _move_rolled(tables, tables.rolled(source.session_id), source.session_id, into.session_id)
    held = {_place_of(key) for key in tables.keys_of(into.session_id)}
    for key in tables.keys_of(source.session_id):
        tables.drop_key(key, source.session_id)
        if _place_of(key) not in held:
            _put_key(tables, key, into.session_id)
    for link in tables.history_of(source.session_id):
        tables.drop_history(link.value, source.session_id)
        tables.put_history(link.value, into.session_id, link.event_id)
    hints = tables.hints_of(source.session_id)
    for name, seen in _joined_hints(source, hints, into, tables.hints_of(into.session_id)).items():
        tables.put_hint(into.session_id, name, seen)
    for name in hints:
        tables.drop_hint(source.session_id, name)
    for alias in tables.aliases_of(source.session_id):
        _point(tables, alias, into.session_id)
    _adopt(tables, tables.children_of(source.session_id), tables.forks_of(source.session_id), into.session_id)


def _joined_hints(
    source: Session, hints: Mapping[str, Seen], into: Session, others: Mapping[str, Seen]
) -> dict[str, Seen]:
    """A hint's last value is the one of the later turn."""
    later, _ = _later_first(source, into)
    return {**others, **hints} if later is source else {**hints, **others}


def _adopt(tables: Tables, children: Iterable[str], forks: Iterable[str], session_id: str) -> None:
    for child in filter(None, map(tables.session, children)):
        tables.put_session(replace(child, parent_session_id=session_id))
    for fork in filter(None, map(tables.session, forks)):
        tables.put_session(replace(fork, forked_from=session_id))


def _ancestors(tables: Tables, session_id: str | None) -> set[str]:
    """The session and who started it, and them."""
    found: set[str] = set()
    while session_id and session_id not in found:
        found.add(session_id)
        session = tables.session(session_id)
        session_id = known_as(tables, session.parent_session_id) if session else None
    return found


# -- split ---------------------------------------------------------------------------------------------------------


def split(tables: Tables, act: Split, entry: Amendment, *, live: frozenset[str]) -> Told:
    """Some rows of a session become one of their own, with the keys that these requests gave."""
    session = session_at(tables, act.session_id)
    rows = sorted(tables.rows_of(session.session_id), key=by_start)
    going = _chosen(rows, act)
    if tables.session(act.drawn_id) or tables.alias(act.drawn_id):
        raise Refused(f"{act.drawn_id} is another session already; try again")
    refuse_running([row for row in rows if row.event_id in going], live)
    before = [_image(tables, session)]
    entry = replace(entry, verb="split", session_id=session.session_id, other_id=act.drawn_id, before=before)

    part = Session(
        session_id=act.drawn_id,
        forked_from=session.session_id,
        client=session.client,
        account=session.account,
        first_seen_at=session.first_seen_at,
        last_seen_at=session.last_seen_at,
        shape=session.shape,
        why=_why_moved(entry, session.why),
    )
    tables.put_session(part)
    _part_names(tables, session.session_id, part.session_id, going)
    places = []
    for each in (session, part):
        own = [row for row in rows if (row.event_id in going) is (each is part)]
        moved = [replace(row, why=_why_moved(entry, row.why)) for row in own] if each is part else own
        last_position = place(tables, each.session_id, sorted(moved, key=lambda row: row.position))
        places.append((_chained(tables, session, _described(each, own), before[0]), last_position))
    lost = _nobodys(tables, places, [session])

    entry = replace(entry, moved=len(going))
    tables.put_amendment(entry)
    return entry, lost


def _chosen(rows: Sequence[Row], act: Split) -> set[str]:
    """The rows that are to go."""
    known = {row.event_id for row in rows}
    named = {*act.events, *([act.first_event] if act.first_event else [])}
    for event_id in sorted(named - known):
        raise Refused(f"no turn {event_id} in session {act.session_id}; `perdure show {act.session_id}` lists them")
    if not named:
        raise Refused("no turns are named to be split off")
    first = next((by_start(row) for row in rows if row.event_id == act.first_event), None)
    chosen = {*act.events, *(row.event_id for row in rows if first and by_start(row) >= first)}
    if chosen == known:
        raise Refused("these are all turns of the session: nothing would be left of it")
    return chosen


def _part_names(tables: Tables, session_id: str, part_id: str, going: set[str]) -> None:
    """What the requests that go have taught goes with them, except for what their client named the session by."""
    for key in tables.keys_of(session_id):
        if key.event_id in going and key.kind in _CHAIN:
            tables.drop_key(key, session_id)
            _put_key(tables, key, part_id)
    for link in tables.history_of(session_id):
        if link.event_id in going:
            tables.drop_history(link.value, session_id)
            tables.put_history(link.value, part_id, link.event_id)


def _described(session: Session, rows: Sequence[Row]) -> Session:
    """What the turns that a session has tell of it; `rows` in the order of their start, at least one."""
    newest = next((row for row in reversed(rows) if row.kind == "turn"), None)
    return replace(
        session,
        model=newest.model if newest else session.model,
        message_count=newest.message_count if newest else 0,
        first_seen_at=rows[0].started_at,
        last_seen_at=(newest or rows[-1]).started_at,
    )


def _chained(tables: Tables, origin: Session, session: Session, before: Image) -> Session:
    """A part that has a chain key goes on with what it was; one whose keys went with the other's, or were replaced by
    the other's turns, is found again by the newest of its own answers that nobody else has."""
    if any(key.kind in _CHAIN for key in tables.keys_of(session.session_id)):
        return replace(session, chain_length=origin.chain_length, fingerprint=origin.fingerprint)
    name = next((key.name for key in before.keys if key.kind in _CHAIN), None)
    if name is None:
        return session
    session = replace(session, chain_length=0, fingerprint=None)
    # Of what is kept beside chain values every one begins with a word and a space.
    values = {link.event_id: link.value for link in tables.history_of(session.session_id) if " " not in link.value}
    rows = tables.rows_of(session.session_id)
    turns = (row for row in rows if row.kind == "turn" and row.is_settled and row.event_id in values)
    newest = max(turns, key=by_start, default=None)
    if newest is None or tables.holders(["answer"], values[newest.event_id]):
        return session
    value = values[newest.event_id]
    tables.put_key(Key(kind="answer", name=name, value=value), session.session_id, newest.event_id, newest.started_at)
    return replace(session, fingerprint=value)


# -- undo ----------------------------------------------------------------------------------------------------------


def undo(tables: Tables, act: Undo, entry: Amendment, *, live: frozenset[str]) -> Told:
    """What a change moved goes back, as far as it still is where the change put it; newer turns stay where they are."""
    change = _undoable(tables, act.change)
    images = {image.session.session_id: image for image in change.before}
    homes = {event_id: name for name, image in images.items() for event_id in image.rows}
    both = (change.session_id, change.other_id)
    rows = [row for session_id in both for row in tables.rows_of(session_id)]
    back = [row for row in rows if homes.get(row.event_id, row.session_id) != row.session_id]
    refuse_running(back, live)
    former = [session for session in map(tables.session, both) if session is not None]
    if change.verb == "merge":
        tables.drop_alias(change.session_id)
        tables.put_session(images[change.session_id].session)

    _names_back(tables, change, images, homes)
    places = []
    for session_id in both:
        own = [row for row in rows if homes.get(row.event_id, row.session_id) == session_id]
        returned = [_as_before(change, row, images) for row in sorted(own, key=lambda row: _was_at(row, images))]
        last_position = place(tables, session_id, returned)
        newer = [row for row in own if row.event_id not in homes]
        places.append((_session_before(tables, session_id, images.get(session_id), newer), last_position))
    lost = _nobodys(tables, places, former)
    stayed = sum(row.session_id == change.other_id and row.event_id not in homes for row in rows)
    if change.verb == "split" and not tables.rows_of(change.other_id):
        # The id was told to clients and to daemons: it goes on as an alias.
        source, into = session_at(tables, change.other_id), session_at(tables, change.session_id)
        pour(tables, source, into)
        tables.drop_session(source.session_id)
        tables.put_alias(source.session_id, into.session_id)

    entry = replace(entry, session_id=change.session_id, other_id=change.other_id, moved=len(back), stayed=stayed)
    tables.put_amendment(entry)
    tables.put_amendment(replace(change, undone_by=entry.number, before=[]))
    return entry, lost


def _undoable(tables: Tables, number: int) -> Amendment:
    change = tables.amendment(number)
    if change is None:
        raise Refused(f"there is no change {number}; `perdure session log` lists them")
    if change.verb == "undo":
        raise Refused(f"change {number} is an undo itself; merge or split again instead")
    if change.verb == "forget":
        remedy = "a backup of before still holds it, and `perdure restore` goes back to that with everything"
        raise Refused(f"change {number} forgot a session, and what is forgotten is gone; {remedy}")
    if change.verb.startswith("warm"):
        raise Refused(f"change {number} is one of keep-alive; `perdure warm --on | --off | --reset` changes it again")
    if change.undone_by is not None:
        raise Refused(f"change {number} is undone already, by change {change.undone_by}")
    if change.verb == "adopt":
        remedy = "`perdure session forget ID` forgets a session that it brought"
        raise Refused(f"change {number} was an import, which can not be taken back; {remedy}")
    if not change.before:
        raise Refused(f"change {number} can not be undone any more: what it moved was forgotten since")
    later = tables.standing_after(number, [change.session_id, change.other_id])
    if later:
        raise Refused(f"change {later} is newer and of the same sessions; undo {later} first")
    is_there = tables.session(change.other_id) is not None
    source = tables.alias(change.session_id) if change.verb == "merge" else tables.session(change.session_id)
    if not is_there or source is None:
        raise Refused(f"a session of change {number} is gone: it can not be undone any more")
    return change


def _as_before(change: Amendment, row: Row, images: Mapping[str, Image]) -> Row:
    """With the reason it had, unless it was given another since."""
    placed = _placed(row, images)
    return replace(row, why=placed.why) if placed and row.why == _why_moved(change, placed.why) else row


def _was_at(row: Row, images: Mapping[str, Image]) -> tuple[int, int]:
    """In the order there was; what was settled or made since comes after it."""
    placed = _placed(row, images)
    return (placed.position if placed and placed.position else _LAST, row.position)


def _placed(row: Row, images: Mapping[str, Image]) -> Placed | None:
    return next((image.rows[row.event_id] for image in images.values() if row.event_id in image.rows), None)


def _session_before(tables: Tables, session_id: str, image: Image | None, newer: Sequence[Row]) -> Session:
    """The session as it was; where turns came since, with what these told of it."""
    current = session_at(tables, session_id)
    if image is None:
        return _described(current, sorted(newer, key=by_start)) if newer else current
    before = replace(
        image.session,
        parent_session_id=known_as(tables, image.session.parent_session_id),
        forked_from=known_as(tables, image.session.forked_from),
        epoch=current.epoch,
    )
    if not newer:
        return before
    return replace(
        current,
        parent_session_id=before.parent_session_id,
        forked_from=before.forked_from,
        first_seen_at=before.first_seen_at,
        header_name=before.header_name,
        header_session_id=before.header_session_id,
    )


def _names_back(tables: Tables, change: Amendment, images: Mapping[str, Image], homes: Mapping[str, str]) -> None:
    both = (change.session_id, change.other_id)
    for session_id, other_id in (both, both[::-1]):
        _keys_back(tables, session_id, images.get(session_id), images.get(other_id), homes)
        _history_back(tables, session_id, images.get(session_id), images.get(other_id), homes)
    for session_id, image in images.items():
        _restore_names(tables, session_id, image, homes)
    if change.verb == "merge":
        source, into = images[change.session_id], images[change.other_id]
        _move_rolled(tables, source.rolled, change.other_id, change.session_id)
        _hints_back(tables, source, into)
        for alias in source.aliases:
            if tables.alias(alias) == change.other_id:
                _point(tables, alias, change.session_id)
        children = [each for each in tables.children_of(change.other_id) if each in source.children]
        forks = [each for each in tables.forks_of(change.other_id) if each in source.forks]
        _adopt(tables, children, forks, change.session_id)


def _keys_back(
    tables: Tables, session_id: str, own: Image | None, other: Image | None, homes: Mapping[str, str]
) -> None:
    """Take from a session the keys that the change brought, or that belong to requests which leave it."""
    kept = {_place_of(key) for key in own.keys} if own else set()
    taken = {_place_of(key) for key in other.keys} if other else set()
    was_open = {event_id for image in (own, other) if image for event_id, at in image.rows.items() if not at.position}
    for key in tables.keys_of(session_id):
        if _place_of(key) in kept or not (_place_of(key) in taken or key.event_id in homes):
            continue
        tables.drop_key(key, session_id)
        if key.event_id in was_open:
            _put_key(tables, key, homes[key.event_id])


def _history_back(
    tables: Tables, session_id: str, own: Image | None, other: Image | None, homes: Mapping[str, str]
) -> None:
    kept = set(own.history) if own else set()
    taken = set(other.history) if other else set()
    for link in tables.history_of(session_id):
        home = homes.get(link.event_id, session_id)
        if link not in kept and (link in taken or home != session_id):
            tables.drop_history(link.value, session_id)
            if link not in taken:
                tables.put_history(link.value, home, link.event_id)


def _restore_names(tables: Tables, session_id: str, image: Image, homes: Mapping[str, str]) -> None:
    """What it had and has no more.  Chain keys only where no newer turn has given others: an older one would let a
    conversation that turned off there go on as this one."""
    keys = tables.keys_of(session_id)
    held = {_place_of(key) for key in keys}
    has_newer = any(key.kind in _CHAIN and key.event_id not in homes for key in keys)
    for key in image.keys:
        if _place_of(key) not in held and not (key.kind in _CHAIN and has_newer):
            _put_key(tables, key, session_id)
    for link in image.history:
        tables.put_history(link.value, session_id, link.event_id)


def _hints_back(tables: Tables, source: Image, into: Image) -> None:
    hints = _joined_hints(source.session, source.hints, into.session, into.hints)
    for name, seen in tables.hints_of(into.session.session_id).items():
        if seen != hints.get(name):
            continue  # A newer turn came with it.
        if name in into.hints:
            tables.put_hint(into.session.session_id, name, into.hints[name])
        else:
            tables.drop_hint(into.session.session_id, name)
    for name, seen in source.hints.items():
        tables.put_hint(source.session.session_id, name, seen)


# -- helpers -------------------------------------------------------------------------------------------------------


def _image(tables: Tables, session: Session) -> Image:
    session_id = session.session_id
    return Image(
        session=replace(session, snapshot=None),
        rows={row.event_id: Placed(row.position, row.why) for row in tables.rows_of(session_id)},
        keys=tables.keys_of(session_id),
        history=tables.history_of(session_id),
        hints=tables.hints_of(session_id),
        aliases=tables.aliases_of(session_id),
        children=tables.children_of(session_id),
        forks=tables.forks_of(session_id),
        rolled=tables.rolled(session_id),
    )


def place(tables: Tables, session_id: str, rows: Sequence[Row], *, after: int = 0) -> int:
    """Make these the session's rows, in this order, behind those up to a position; gives the last position.  Days count
    them as before."""
    position = after
    for row in rows:
        position += row.is_settled
        placed = replace(row, session_id=session_id, position=position if row.is_settled else 0)
        if row.session_id != session_id:
            if tables.has_ping(session_id, row.window_started_at):
                placed = replace(placed, window_started_at=0)  # The window has its ping.
            tables.add_to_session(row.session_id, Sums().minus(sums_of_session(row)))
            tables.add_to_session(session_id, sums_of_session(row))
        if placed != tables.row(row.event_id):
            tables.put_row(placed)
    return position


def _move_rolled(tables: Tables, sums: Sums, source_id: str, into_id: str) -> None:
    """What is left of rows that were removed by age moves as they would have."""
    for session_id, moved in ((source_id, Sums().minus(sums)), (into_id, sums)):
        if sums != Sums():
            tables.add_to_rolled(session_id, moved)
            tables.add_to_session(session_id, moved)


def _nobodys(
    tables: Tables, places: Iterable[tuple[Session, int]], former: Sequence[Session]
) -> list[tuple[str, Lost]]:
    """Store sessions whose positions were given anew, to be claimed and folded again; and tell who owned them."""
    epoch = 1 + max(session.epoch for session in former)
    for session, last_position in places:
        tables.put_session(replace(session, epoch=epoch, owner="", last_position=last_position))
        tables.drop_snapshot(session.session_id)
    return [(each.owner, Lost(session_id=each.session_id, epoch=epoch)) for each in former if each.owner]


def _why_moved(change: Amendment, before: Why) -> Why:
    """A row that was moved says so, and what it said before."""
    words = "merged" if change.verb == "merge" else "split"
    reason = f"{words} from {change.session_id} by the operator (change {change.number}); before: {before.reason}"
    return Why(reason=reason[:REASON_CHARACTERS_MAX], origin=ORIGIN, confidence="certain")


def _told(entry: Amendment) -> Amended:
    return Amended(
        change=entry.number,
        verb=entry.verb,
        session_id=entry.session_id,
        other_id=entry.other_id,
        moved=entry.moved,
        stayed=entry.stayed,
    )


def _later_first(source: Session, into: Session) -> tuple[Session, Session]:
    return (source, into) if source.last_seen_at > into.last_seen_at else (into, source)


def _point(tables: Tables, alias: str, session_id: str) -> None:
    tables.drop_alias(alias)
    tables.put_alias(alias, session_id)


def _put_key(tables: Tables, key: KeptKey, session_id: str) -> None:
    tables.put_key(Key(kind=key.kind, name=key.name, value=key.value), session_id, key.event_id, key.at)


def _place_of(key: KeptKey) -> tuple[str, str, str]:
    return key.kind, key.name, key.value


_CHAIN: Final[tuple[KeyKind, ...]] = ("answer", "request", "retry")
_LAST: Final = 2**62
"""After every position."""
