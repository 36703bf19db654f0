"""Group commit: what one transaction does to the store, and what each sender is told.

One rule: everything that decides over a write is here and is pure; `Tables` is the store as this file sees it, kept by
SQLite in the worker and by dictionaries in the simulation.  Nothing here knows sockets, clocks or SQL.

Theory of operation.  `apply` takes the writes that arrived while the last commit ran, in the order of arrival, inside
one transaction.  Writes may be lost, repeated, late and reordered, so each rule below makes one of these harmless:

- resend: a daemon sends a write until it is acknowledged; applying it again changes nothing.
- status (`supersedes`): a row only goes from open to settled, once.  A late BEGIN never reopens a settled row.
- epoch (`is_fenced`): a snapshot is taken only from the session's present owner, at its present epoch.
- generation (`is_newer`): a snapshot never replaces one of the same or a later generation.

Sums move by the difference that a row made, so usage counts exactly once however often it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from worker.ledger import DayKey, Sums, day_key, sums_of_day, sums_of_session
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
    Snapshot,
    SnapshotWrite,
)

RETRY_MILLISECONDS: Final = 10 * 60 * 1000
"""How long the same body again may be a retry.  SDKs give up on a request after ten minutes."""


class Session(Struct, frozen=True, kw_only=True):
    """A session as the store knows it: identity, ownership, and the last snapshot of its state."""

    session_id: str
    parent_session_id: str | None = None
    forked_from: str | None = None
    client: str = ""
    account: str = ""
    model: str = ""
    message_count: int = 0
    first_seen_at: int
    last_seen_at: int
    chain_length: int = 0
    epoch: int = 0
    owner: str = ""
    last_position: int = 0
    reason: str = ""
    fingerprint: str | None = None
    header_session_id: str | None = None
    header_name: str | None = None
    snapshot: Snapshot | None = None


class Holder(Struct, frozen=True):
    """A session that holds a chain value, and the request that gave it."""

    session_id: str
    event_id: str
    at: int


class Tables(Protocol):
    """The store, inside one transaction."""

    def session(self, session_id: str) -> Session | None: ...
    def put_session(self, session: Session) -> None: ...
    def put_snapshot(self, session_id: str, snapshot: Snapshot) -> None: ...
    def alias(self, session_id: str) -> str | None: ...
    def put_alias(self, alias: str, session_id: str) -> None: ...
    def row(self, event_id: str) -> Row | None: ...
    def put_row(self, row: Row) -> None: ...
    def rows_after(self, session_id: str, position: int, limit: int) -> list[Row]: ...
    def holders(self, kinds: Sequence[KeyKind], value: str) -> list[Holder]: ...
    def put_key(self, key: Key, session_id: str, event_id: str, at: int) -> None: ...
    def drop_keys(self, session_id: str, kinds: Sequence[KeyKind]) -> None: ...
    def add_to_session(self, session_id: str, sums: Sums) -> None: ...
    def add_to_day(self, day: DayKey, sums: Sums) -> None: ...


class Write(Struct, frozen=True):
    """One write as it arrived: who sent it (a boot id), under which sequence, and what."""

    boot: str
    sequence: int
    body: Claim | Booking | SnapshotWrite


class Outcome(Struct, frozen=True):
    """What to tell whom once the transaction is durable."""

    replies: list[tuple[str, Reply]]
    lost: list[tuple[str, Lost]]


def apply(tables: Tables, writes: Iterable[Write], *, live: frozenset[str], now: int) -> Outcome:
    """Do the writes, in order.  `live`: boots the worker hears; `now`: Unix milliseconds, for display only."""
    replies: list[tuple[str, Reply]] = []
    lost: list[tuple[str, Lost]] = []
    told: dict[tuple[str, str], int] = {}
    for write in writes:
        match write.body:
            case Claim():
                reply, former = claim(tables, write.body, write, live=live, now=now)
                if former:
                    lost.append((former, Lost(session_id=reply.session_id, epoch=reply.epoch)))
            case Booking():
                reply, parted = book(tables, write.body, write, live=live, told=told)
                lost += parted
            case _:
                reply = keep(tables, write.body, write)
        replies.append((write.boot, reply))
    return Outcome(replies, lost)


def claim(tables: Tables, body: Claim, write: Write, *, live: frozenset[str], now: int) -> tuple[Reply, str]:
    """Make the sender the owner; say what is known.  Also gives the boot that owned the session before, or ''.

    The former owner is told, once, and not asked; where it does not hear, the fence holds.  Everything its finished
    turns taught is in the ledger: the last snapshot and the rows since are the whole state already, and no claim ever
    waits for a slow or dead daemon.
    """
    session, reason = resolve(tables, body.naming, at=now, live=live)
    former = ""
    if session.owner != write.boot:
        former = session.owner
        session = replace(session, owner=write.boot, epoch=session.epoch + 1)
        tables.put_session(session)
    snapshot = session.snapshot
    position = (snapshot.position if snapshot else 0) if body.after < 0 else body.after
    return _reply(tables, session, write, position, reason=reason, claimed=True), former


def book(
    tables: Tables, body: Booking, write: Write, *, live: frozenset[str], told: dict[tuple[str, str], int]
) -> tuple[Reply, list[tuple[str, Lost]]]:
    """Enter a row, open or settled.  A row counts whoever sends it: the fence guards snapshots, never money.

    `told`: up to which position each sender was told of each session by this batch already.  A backlog was written
    before anything of it was heard, and would else be told the same rows with every write of it.
    """
    session, reason = resolve(tables, body.naming, at=body.row.started_at, live=live)
    before = tables.row(body.row.event_id)
    parted: list[tuple[str, Lost]] = []
    # Positions are given here alone, and only to settled rows.
    row = replace(body.row, session_id=session.session_id, reason=reason or body.row.reason, position=0)
    if supersedes(row, before):
        if row.is_settled:
            session = replace(session, last_position=session.last_position + 1)
            row = replace(row, position=session.last_position)
        tables.put_row(row)
        _move_sums(tables, before, row)
        tables.put_session(_learned(session, body.naming, row, is_entered=before is None))
        _learn_keys(tables, session, body.naming, row)
        parted = _part(tables, body.naming)
        session = tables.session(session.session_id) or session
    elif before is not None:
        row = before
    place = (write.boot, session.session_id)
    seen = max(body.seen, told.get(place, 0))
    reply = _reply(tables, session, write, seen, reason=row.reason, position=row.position, epoch=body.epoch)
    told[place] = reply.rows[-1].position if reply.rows else seen
    # The sender has its own row; only what others settled is news.
    return replace(reply, rows=[other for other in reply.rows if other.event_id != row.event_id]), parted


def keep(tables: Tables, body: SnapshotWrite, write: Write) -> Reply:
    """Store a snapshot, if its sender owns the session and it is newer than the one stored."""
    session = tables.session(tables.alias(body.session_id) or body.session_id)
    if session is None:
        # The session is gone, or the store was replaced by an older one: the sender must claim again.
        return Reply(sequence=write.sequence, session_id=body.session_id)
    fenced = is_fenced(session, body, write.boot)
    if not fenced and is_newer(session, body.snapshot):
        tables.put_snapshot(session.session_id, body.snapshot)
    return Reply(
        sequence=write.sequence,
        session_id=session.session_id,
        epoch=session.epoch,
        owned=not fenced,
        generation=body.snapshot.generation,
    )


# -- the rules that carry the durability, each by name -------------------------------------------------------------


def supersedes(row: Row, before: Row | None) -> bool:
    """A row is entered once as open and settled once; nothing reopens it and nothing settles it again."""
    return before is None or (row.is_settled and not before.is_settled)


def is_fenced(session: Session, write: SnapshotWrite, boot: str) -> bool:
    """The sender is not the owner at the present epoch: another daemon may know more."""
    return session.owner != boot or session.epoch != write.epoch


def is_newer(session: Session, snapshot: Snapshot) -> bool:
    return session.snapshot is None or snapshot.generation > session.snapshot.generation


# -- identity ------------------------------------------------------------------------------------------------------


def resolve(tables: Tables, naming: Naming, *, at: int, live: frozenset[str]) -> tuple[Session, str]:
    """The session a naming means, created if there is none; and why, where the store had to decide ('' otherwise)."""
    canonical = tables.alias(naming.session_id) or naming.session_id
    session = tables.session(canonical)
    if session is not None:
        return session, ""
    if not naming.confirmed:
        found, reason = _continued(tables, naming, at=at, live=live)
        if found is not None:
            # Also for a claim: what was booked under the proposed id before its answer came must find the session
            # when the keys have moved on.
            tables.put_alias(naming.session_id, found.session_id)
            return found, reason
    session = Session(
        session_id=canonical,
        first_seen_at=at,
        last_seen_at=at,
        client=naming.client,
        account=naming.account,
        header_name=naming.header_name or None,
        header_session_id=naming.header_session_id or None,
        reason=naming.reason,
    )
    tables.put_session(session)
    return session, ""


def _continued(tables: Tables, naming: Naming, *, at: int, live: frozenset[str]) -> tuple[Session | None, str]:
    """The one session whose conversation this request provably continues or repeats.

    Two sessions holding the same value are content-equal strangers: nothing tells which one speaks, and a wrong split
    is preferred to a wrong merge.
    """
    repeated: set[str] = set()
    if naming.retry:
        holders = tables.holders(["retry"], naming.retry)
        repeated = {holder.session_id for holder in holders if _is_retry(tables, holder, at=at, live=live)}
    answered: set[str] = set()
    continued: set[str] = set()
    for value in naming.continues:
        answered = {holder.session_id for holder in tables.holders(["answer"], value)}
        continued = answered | {holder.session_id for holder in tables.holders(["request"], value)}
        if continued:
            break
    # The whole conversation, repeated, outweighs the beginning of one that never got its answer: an opening that was
    # cut off and asked again in other words stays behind as such a beginning.
    found = repeated if repeated and not answered else continued | repeated
    if len(found) != 1:
        return None, ""
    reason = "repeats a request of this session" if repeated else "continues the conversation of this session"
    return tables.session(found.pop()), reason


def _is_retry(tables: Tables, holder: Holder, *, at: int, live: frozenset[str]) -> bool:
    """The earlier request is over, and not for long.  One still in flight has a twin, not a retry."""
    row = tables.row(holder.event_id)
    if row is None or abs(at - holder.at) > RETRY_MILLISECONDS:
        return False
    return row.is_settled or row.boot not in live


def _learned(session: Session, naming: Naming, row: Row, *, is_entered: bool) -> Session:
    """What a row says about its session.  Its end repeats what its entry said, perhaps after a newer row's."""
    if row.kind != "turn":
        return session
    chained = [key.value for key in naming.keys if key.kind in _CHAIN and key.kind != "retry"]
    newest = naming.chain_length >= session.chain_length
    if is_entered:
        session = replace(
            session,
            client=row.client or session.client,
            account=row.account or session.account,
            model=row.model or session.model,
            message_count=row.message_count,
            first_seen_at=min(session.first_seen_at, row.started_at),
            last_seen_at=row.started_at,
        )
    return replace(
        session,
        chain_length=max(session.chain_length, naming.chain_length),
        fingerprint=chained[-1] if chained and newest else session.fingerprint,
        header_name=session.header_name or naming.header_name or None,
        header_session_id=session.header_session_id or naming.header_session_id or None,
    )


def _learn_keys(tables: Tables, session: Session, naming: Naming, row: Row) -> None:
    """Record the keys.  Chain keys replace those of a shorter or equal chain; a known answer replaces all others.

    The answer key of the turn before stays until the new turn is answered, so that a repeated request still finds
    its session after everything was killed.
    """
    kinds = {key.kind for key in naming.keys}
    if kinds & set(_CHAIN):
        if naming.chain_length < session.chain_length:
            return
        tables.drop_keys(session.session_id, _CHAIN if "answer" in kinds else _UNANSWERED)
    for key in naming.keys:
        tables.put_key(key, session.session_id, row.event_id, row.started_at)


def _part(tables: Tables, naming: Naming) -> list[tuple[str, Lost]]:
    """Sessions that hold one answer between them are nobody's: a daemon decides alone for what it owns, and the one
    that knows of a single holder would take the other's conversation for its own."""
    lost: list[tuple[str, Lost]] = []
    for key in naming.keys:
        holders = {h.session_id for h in tables.holders(["answer"], key.value)} if key.kind == "answer" else set()
        if len(holders) < 2:
            continue
        for session in filter(None, map(tables.session, sorted(holders))):
            if session.owner:
                lost.append((session.owner, Lost(session_id=session.session_id, epoch=session.epoch + 1)))
                tables.put_session(replace(session, owner="", epoch=session.epoch + 1))
    return lost


_UNANSWERED: Final[tuple[KeyKind, ...]] = ("request", "retry")
_CHAIN: Final[tuple[KeyKind, ...]] = ("answer", *_UNANSWERED)


# -- helpers -------------------------------------------------------------------------------------------------------


def _move_sums(tables: Tables, before: Row | None, row: Row) -> None:
    if before is not None and before.session_id != row.session_id:
        tables.add_to_session(before.session_id, Sums().minus(sums_of_session(before)))
        tables.add_to_session(row.session_id, sums_of_session(row))
    else:
        tables.add_to_session(row.session_id, sums_of_session(row).minus(sums_of_session(before)))
    if before is not None and day_key(before) != day_key(row):
        tables.add_to_day(day_key(before), Sums().minus(sums_of_day(before)))
        before = None
    tables.add_to_day(day_key(row), sums_of_day(row).minus(sums_of_day(before)))


def _reply(
    tables: Tables,
    session: Session,
    write: Write,
    seen: int,
    *,
    reason: str,
    position: int = 0,
    epoch: int = 0,
    claimed: bool = False,
) -> Reply:
    rows = tables.rows_after(session.session_id, seen, ROWS_PER_REPLY_MAX + 1) if session.last_position > seen else []
    snapshot = session.snapshot if claimed else None
    return Reply(
        sequence=write.sequence,
        session_id=session.session_id,
        epoch=session.epoch,
        owned=session.owner == write.boot and (claimed or session.epoch == epoch),
        reason=reason,
        generation=session.snapshot.generation if session.snapshot else 0,
        position=seen if claimed else position,
        snapshot=snapshot,
        rows=rows[:ROWS_PER_REPLY_MAX],
        more=len(rows) > ROWS_PER_REPLY_MAX,
    )
