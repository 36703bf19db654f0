"""Group commit: what one transaction does to the store, and what each sender is told.

One rule: everything that decides over a write is here, and in `roles` and `hints`, and is pure; `Tables` is the store
as they see it.  Nothing here knows sockets, clocks or SQL.

Theory of operation.  `apply` takes the writes that arrived while the last commit ran, in the order of arrival, inside
one transaction.  Writes may be lost, repeated, late and reordered, so each rule below makes one of these harmless:

- resend: a daemon sends a write until it is acknowledged; applying it again changes nothing.
- status (`supersedes`): a row only goes from open to settled, once.  A late BEGIN never reopens a settled row.
- epoch (`is_fenced`): a snapshot is taken only from the session's present owner, at its present epoch.
- generation (`is_newer`): a snapshot never replaces one of the same or a later generation.

Sums move by the difference that a row made, so usage counts exactly once however often it is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from worker import hints, late
from worker.amend import amend
from worker.forget import blank_row
from worker.ledger import Sums, day_key, sums_of_day, sums_of_session
from worker.protocol import (
    ROWS_PER_REPLY_MAX,
    Amend,
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
    Why,
)
from worker.roles import Role, role_of, said_of_side, shape_after, takes_over
from worker.stored import CLAIMED, HOLDERS_MAX, Holder, Session, Tables
from worker.switch import is_on

CLAIMED_MILLISECONDS: Final = 5_000
"""How long a claim may go before its turn's begin: they are sent in one breath."""
ANCESTORS_MAX: Final = 32
"""Sub-agents of sub-agents; real ones go two or three deep."""
RETRY_MILLISECONDS: Final = 10 * 60 * 1000
"""How long the same body again may be a retry.  SDKs give up on a request after ten minutes."""
WHY_CHARACTERS_MAX: Final = 512
"""What the protocol lets a text have: one that is put together of a peer's must travel too."""


class Write(Struct, frozen=True):
    """One write as it arrived: who sent it (a boot id), under which sequence, and what."""

    boot: str
    sequence: int
    body: Claim | Booking | SnapshotWrite | Amend


class Outcome(Struct, frozen=True):
    """What to tell whom once the transaction is durable."""

    replies: list[tuple[str, Reply]]
    lost: list[tuple[str, Lost]]
    changes: int = 0
    """Number of the newest change by an operator, if there was one, of which sessions requests were given, and…"""
    warming: int = 0
    """…of whether their caches are kept warm."""


def apply(tables: Tables, writes: Iterable[Write], *, live: frozenset[str], now: int) -> Outcome:
    """Do the writes, in order.  `live`: boots the worker hears; `now`: Unix milliseconds, for display only."""
    replies: list[tuple[str, Reply]] = []
    lost: list[tuple[str, Lost]] = []
    told: dict[tuple[str, str], int] = {}
    changes = warming = 0
    for write in writes:
        match write.body:
            case Claim():
                reply, former = claim(tables, write.body, write, live=live, now=now)
                if former:
                    lost.append((former, Lost(session_id=reply.session_id, epoch=reply.epoch)))
            case Booking():
                reply, parted = book(tables, write.body, write, live=live, told=told)
                lost += parted
            case Amend():
                amended, owners = amend(tables, write.body, live=live, now=now)
                reply = Reply(sequence=write.sequence, session_id=amended.other_id, amended=amended)
                lost += owners
                if amended.verb.startswith("warm"):
                    warming = max(warming, amended.change)
                elif amended.verb != "adopt":  # What is new to the store has other names than what anybody remembers.
                    changes = max(changes, amended.change)
                told.clear()  # Positions are given anew.
            case _:
                reply = keep(tables, write.body, write)
        replies.append((write.boot, reply))
    return Outcome(replies, lost, changes, warming)


def claim(tables: Tables, body: Claim, write: Write, *, live: frozenset[str], now: int) -> tuple[Reply, str]:
    """Make the sender the owner; say what is known.  Also gives the boot that owned the session before, or ''.

    A request that is no turn of the session is only told so: it claims nothing.

    The former owner is told, once, and not asked; where it does not hear, the fence holds.  Everything its finished
    turns taught is in the ledger: the last snapshot and the rows since are the whole state already, and no claim ever
    waits for a slow or dead daemon.
    """
    session, why = resolve(tables, body.naming, at=now, live=live)
    role, beside = _role(tables, session, body.naming)
    if role != "turn":
        why = replace(body.naming.why, reason=beside, confidence="likely")
        return _reply(tables, session, write, session.last_position, why=why, role=role), ""
    for key in body.naming.keys:
        if key.kind == "request" and not body.naming.is_named and not _has_begun(tables, session, body.naming, key):
            # Until the turn begins this stands for it: of two that go on from one answer at once, one is a fork.
            tables.put_key(key, session.session_id, f"{CLAIMED}{write.boot}", now)
    late.note_passed(tables, session, body.naming, f"{CLAIMED}{write.boot}")
    former = ""
    if session.owner != write.boot:
        former = session.owner
        session = replace(session, owner=write.boot, epoch=session.epoch + 1)
        tables.put_session(session)
    snapshot = session.snapshot
    position = (snapshot.position if snapshot else 0) if body.after < 0 else body.after
    return _reply(tables, session, write, position, why=why, claimed=True), former


def book(
    tables: Tables, body: Booking, write: Write, *, live: frozenset[str], told: dict[tuple[str, str], int]
) -> tuple[Reply, list[tuple[str, Lost]]]:
    """Enter a row, open or settled.  A row counts whoever sends it: the fence guards snapshots, never money.

    `told`: up to which position each sender was told of each session by this batch already.  A backlog was written
    before anything of it was heard, and would else be told the same rows with every write of it.
    """
    before = tables.row(body.row.event_id)
    home = tables.session(before.session_id) if before is not None else None
    if before is not None and home is not None and home.forgotten_at:
        return _settle_forgotten(tables, home, before, body, write), []
    if before is None and is_ping_to_send(body.row) and not may_send(tables, body):
        # Its sender waits for this word, and will not come again with its end.
        return Reply(sequence=write.sequence, session_id=body.naming.session_id, entered=False), []
    session, why = resolve(tables, body.naming, at=body.row.started_at, live=live)
    is_fork = _is_outrun(tables, session, body, before, live=live)
    if is_fork:
        session, why = _fork(tables, session, body)
    parted: list[tuple[str, Lost]] = []
    is_entered = before is None and body.row.kind == "turn" and not is_fork
    part = late.part_gone_through(tables, session, body) if is_entered else None
    # Positions are given here alone, and only to settled rows.
    row = replace(body.row, session_id=session.session_id, why=why or body.row.why, position=0)
    row = replace(row, window_started_at=_window_of(tables, row, before))
    if supersedes(row, before):
        row = _judged(tables, session, body.naming, row, before)
        if row.is_settled:
            session = replace(session, last_position=session.last_position + 1)
            row = replace(row, position=session.last_position)
        tables.put_row(row)
        _move_sums(tables, before, row)
        continues = _goes_on(tables, session, body.naming)
        if row.kind == "turn" and before is None and _is_taken_over(session, body.naming, continues=continues):
            session, parted = _set_aside(tables, session, body.naming, row)
        tables.put_session(_learned(session, body.naming, row, is_entered=before is None, continues=continues))
        _learn_keys(tables, session, body.naming, row)
        if row.kind == "turn" and before is None:
            hints.learn(tables, session, body.naming)
            late.note_passed(tables, session, body.naming, row.event_id)
        parted += _part(tables, body.naming)
        session = tables.session(session.session_id) or session
        part = part or late.part_going_through(tables, session, body)
        if part is not None and row.kind == "turn":
            session, former = late.join(tables, session, part)
            row = tables.row(row.event_id) or row
            parted += former
    elif before is not None:
        row = before
    place = (write.boot, session.session_id)
    # A call beside the conversation folds nothing, so its sender is told nothing.
    seen = max(0 if is_fork else body.seen, told.get(place, 0)) if body.row.kind != "side" else session.last_position
    reply = _reply(tables, session, write, seen, why=row.why, position=row.position, epoch=body.epoch)
    if body.row.kind != "side":
        told[place] = reply.rows[-1].position if reply.rows else seen
    return (
        replace(
            reply,
            forked=is_fork,
            role="side" if row.kind == "side" else "turn",
            # Who did not know what the session is set up with when it claimed it may know now.
            shape=None if body.naming.is_judged else session.shape,
            # The sender has its own row; only what others settled is news.
            rows=[other for other in reply.rows if other.event_id != row.event_id],
        ),
        parted,
    )


def _settle_forgotten(tables: Tables, home: Session, before: Row, body: Booking, write: Write) -> Reply:
    """A row of a session that was forgotten comes again, or ends only now: it counts, and teaches nothing.

    Its sender hears what makes it let go of the session: an epoch above any that it can have held it at.
    """
    row = blank_row(body.row, home.session_id, 0)
    if supersedes(row, before):
        row = replace(row, position=home.last_position + 1)
        tables.put_session(replace(home, last_position=row.position))
        tables.put_row(row)
        _move_sums(tables, before, row)
    else:
        row = before
    return Reply(
        sequence=write.sequence,
        session_id=body.naming.session_id,
        epoch=tables.epoch_forgotten(),
        role="side" if row.kind == "side" else "turn",
        position=row.position,
    )


def keep(tables: Tables, body: SnapshotWrite, write: Write) -> Reply:
    """Store a snapshot, if its sender owns the session and it is newer than the one stored."""
    session = tables.session(tables.alias(body.session_id) or body.session_id)
    if session is None:
        # The session is gone, or the store was replaced by an older one: the sender must claim again.
        return Reply(sequence=write.sequence, session_id=body.session_id)
    # Of a session that was joined with another it tells in positions that are none of the other's, and the two epochs
    # may be one number.
    fenced = is_fenced(session, body, write.boot) or session.session_id != body.session_id
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


def may_send(tables: Tables, body: Booking) -> bool:
    """A ping is the first of its window, its sender owns the session yet, and nobody switched it off: the one place
    where all of this is known."""
    row = body.row
    session = tables.session(_canonical(tables, body.naming.session_id))
    if session is None or session.forgotten_at or not row.window_started_at:
        return False
    is_owner = session.owner == row.boot and session.epoch == body.epoch
    is_first = not tables.has_ping(session.session_id, row.window_started_at)
    return is_owner and is_first and is_on(tables.switch(), session)


# -- identity ------------------------------------------------------------------------------------------------------


def resolve(tables: Tables, naming: Naming, *, at: int, live: frozenset[str]) -> tuple[Session, Why | None]:
    """The session a naming means, created if there is none; and why, where the store had to decide (else None)."""
    canonical = _canonical(tables, naming.session_id)
    session = tables.session(canonical)
    if session is None and naming.drawn_id and tables.is_forgotten(canonical):
        # Taken for the next turn of a session that its owner had not heard was forgotten: it begins one.
        canonical = _canonical(tables, naming.drawn_id)
        session = tables.session(canonical)
    if session is not None:
        return session, None
    if not naming.confirmed:
        by_name = naming.is_named
        found, why = _named_otherwise(tables, naming) if by_name else _recognised(tables, naming, at=at, live=live)
        if found is not None:
            # Also for a claim: what was booked under the proposed id before its answer came must find the session
            # when the keys have moved on.
            tables.put_alias(naming.session_id, found.session_id)
            return found, why
    origin = _forked_from(tables, naming)
    session = Session(
        session_id=canonical,
        parent_session_id=_parent(tables, naming, canonical),
        forked_from=origin,
        first_seen_at=at,
        last_seen_at=at,
        client=naming.client,
        account=naming.account,
        epoch=tables.epoch_forgotten(),
        header_name=naming.header_name or None,
        header_session_id=naming.header_session_id or None,
        why=naming.why,
    )
    tables.put_session(session)
    reason = f"{naming.why.reason}; a fork of {origin}"
    return session, replace(naming.why, reason=reason[:WHY_CHARACTERS_MAX]) if origin else None


def _is_outrun(tables: Tables, session: Session, body: Booking, before: Row | None, *, live: frozenset[str]) -> bool:
    """The sender owned the session and took a turn for its next one without asking, but another daemon went on from the
    same answer and was first here.  What a claim would have said then holds: the second one is a fork."""
    naming = body.naming
    if not naming.drawn_id:
        return False
    if before is not None:
        # An operator may have merged it since.
        return before.session_id == (tables.alias(naming.drawn_id) or naming.drawn_id) != session.session_id
    # Whose row it is counts, not who brings it: that may be another daemon, for one that has ended.
    if session.owner in ("", body.row.boot) or not _goes_on(tables, session, naming):
        return False  # Nobody was faster; or an older store was put back, which does not know the answer.
    found, _ = _proven(tables, naming, at=body.row.started_at, live=live)
    passed, _ = late.told_late(tables, naming)
    return session.session_id not in found | passed


def _fork(tables: Tables, origin: Session, body: Booking) -> tuple[Session, Why]:
    """The session of its own that an outrun turn begins."""
    naming = body.naming
    reason = f"another turn went on from the same answer first; a fork of {origin.session_id}"
    why = replace(naming.why, reason=reason[:WHY_CHARACTERS_MAX])
    session_id = tables.alias(naming.drawn_id) or naming.drawn_id
    session = tables.session(session_id) or Session(
        session_id=session_id,
        parent_session_id=origin.parent_session_id,
        forked_from=origin.session_id,
        first_seen_at=body.row.started_at,
        last_seen_at=body.row.started_at,
        client=naming.client,
        account=naming.account,
        epoch=tables.epoch_forgotten(),
        why=why,
    )
    tables.put_session(session)
    return session, why


def _named_otherwise(tables: Tables, naming: Naming) -> tuple[Session | None, Why | None]:
    """The one session that came with one of the request's names beside another one, which is not in the request."""
    if naming.parent:
        return None, None  # Agents' names are names within a session.
    found = {session_id for key in naming.keys for session_id in tables.named(key.name, key.value, 2)}
    return (tables.session(found.pop()), naming.why) if len(found) == 1 else (None, None)


def _recognised(tables: Tables, naming: Naming, *, at: int, live: frozenset[str]) -> tuple[Session | None, Why | None]:
    """The one session whose conversation this request provably continues or repeats, or that a learned header names.

    Sessions holding the same value are content-equal strangers.  A hint that only one of them came with tells which
    speaks; else nothing does, and a wrong split is preferred to a wrong merge.
    """
    found, why = _proven(tables, naming, at=at, live=live)
    if len(found) > 1:
        found = hints.chosen(tables, found, naming.hints)
    passed, why_passed = late.told_late(tables, naming)
    if passed and not passed & found:
        # A turn that went through this very request outweighs what holds only a beginning of it.
        found, why = passed, why_passed
    found = {each for each in found if not hints.denied(tables, each, naming)}
    if len(found) == 1:
        return tables.session(found.pop()), why
    named, header = hints.named_by_header(tables, naming)
    if named:
        reason = f"it holds an answer of this session, and its value of {header}, a header learned to name sessions"
        origin = f"learned header {header}"
        why = Why(reason=reason[:WHY_CHARACTERS_MAX], origin=origin[:WHY_CHARACTERS_MAX], confidence="likely")
        return tables.session(named), why
    return None, None


def _proven(tables: Tables, naming: Naming, *, at: int, live: frozenset[str]) -> tuple[set[str], Why]:
    """The sessions of which this request's content says that it is theirs."""
    repeated: set[str] = set()
    if naming.retry:
        holders = tables.holders(["retry"], naming.retry)
        repeated = {holder.session_id for holder in holders if _is_retry(tables, holder, at=at, live=live)}
    answered: set[str] = set()
    continued: set[str] = set()
    for value in naming.continues:
        answered = {
            holder.session_id
            for holder in tables.holders(["answer"], value)
            if not _is_busy(tables, holder.session_id, naming, at=at, live=live)
        }
        requests = tables.holders(["request"], value)
        continued = answered | {holder.session_id for holder in requests if _is_over(tables, holder, at=at, live=live)}
        if continued:
            break
    # The whole conversation, repeated, outweighs the beginning of one that never got its answer: an opening that was
    # cut off and asked again in other words stays behind as such a beginning.
    found = repeated if repeated and not answered else continued | repeated
    reason = "repeats a request of this session" if repeated else "continues the conversation of this session"
    return found, Why(reason=reason, origin=naming.why.origin, confidence="proven")


def _forked_from(tables: Tables, naming: Naming) -> str | None:
    """The session whose history, up to some answer, is the beginning of this new one's; only if one alone has it."""
    for value in naming.continues:
        holders = tables.histories(value, 2)
        if holders:
            return holders[0] if len(holders) == 1 else None
    return None


def _parent(tables: Tables, naming: Naming, session_id: str) -> str | None:
    """Who started the session; nobody whom it started itself, whatever clients say."""
    parent = above = tables.alias(naming.parent) or naming.parent
    for _ in range(ANCESTORS_MAX):
        if above == session_id:
            return None
        found = tables.session(above) if above else None
        if found is None or not found.parent_session_id:
            return parent or None
        above = found.parent_session_id
    return None


def _role(tables: Tables, session: Session, naming: Naming) -> tuple[Role, str]:
    """What a request is to the session its client named, and why."""
    if naming.shape is None or session.shape is None:
        return "turn", ""
    return role_of(
        session.shape,
        naming.shape,
        is_opening=naming.is_opening,
        is_spoken=naming.is_spoken,
        continues=_goes_on(tables, session, naming),
        continues_aside=any(tables.holds_history(_ASIDE + value, session.session_id) for value in naming.continues),
    )


def _has_begun(tables: Tables, session: Session, naming: Naming, key: Key) -> bool:
    """A claim that comes once more, after its turn: what stands for that must stay, and must not come back once it is
    answered."""
    begun = [holder for value, holder in tables.requests(session.session_id) if value == key.value]
    rows = [tables.row(holder.event_id) for holder in begun]
    return 0 < naming.chain_length < session.chain_length or any(row and not row.is_settled for row in rows)


def _goes_on(tables: Tables, session: Session, naming: Naming) -> bool:
    return any(tables.holds_history(value, session.session_id) for value in naming.continues)


def _judged(tables: Tables, session: Session, naming: Naming, row: Row, before: Row | None) -> Row:
    """A turn that turns out to be none is booked beside the conversation, a sub-agent's too: it is too late for another
    session then.

    It is judged on its entry, if the daemon did not know the session as the store does.  A call beside the conversation
    may also come first, when nothing shows yet what the session is set up with; when it ends the conversation has
    usually begun, and tells.
    """
    if row.kind != "turn":
        return row
    if before is not None and before.kind == "side":
        return replace(row, kind="side", why=before.why)
    is_due = not naming.is_judged if before is None else row.is_settled and naming.is_opening
    role, beside = _role(tables, session, naming) if is_due else ("turn", "")
    if role == "turn":
        return row
    reason = said_of_side(naming.why.origin, beside)[:WHY_CHARACTERS_MAX]
    return replace(row, kind="side", why=replace(row.why, reason=reason, confidence="likely"))


def _is_taken_over(session: Session, naming: Naming, *, continues: bool) -> bool:
    if session.shape is None or naming.shape is None:
        return False
    return takes_over(session.shape, naming.shape, continues=continues)


def _set_aside(tables: Tables, session: Session, naming: Naming, taking: Row) -> tuple[Session, list[tuple[str, Lost]]]:
    """What came before the conversation was beside it, though nothing showed that then.  Its rows change their kind, so
    the state is folded anew: the session is nobody's until its next turn."""
    for row in tables.rows_of(session.session_id):
        if row.kind == "turn" and row.event_id != taking.event_id:
            reason = said_of_side(naming.why.origin, "it came before the session's first turn")[:WHY_CHARACTERS_MAX]
            beside = replace(row, kind="side", why=replace(row.why, reason=reason, confidence="likely"))
            tables.put_row(beside)
            _move_sums(tables, row, beside)
    for link in tables.history_of(session.session_id):
        tables.drop_history(link.value, session.session_id)
        tables.put_history(f"{_ASIDE}{link.value.removeprefix(_ASIDE)}", session.session_id, link.event_id)
    tables.drop_snapshot(session.session_id)
    lost = [(session.owner, Lost(session_id=session.session_id, epoch=session.epoch + 1))] if session.owner else []
    return replace(session, owner="", epoch=session.epoch + 1, snapshot=None, shape=None), lost


def _is_retry(tables: Tables, holder: Holder, *, at: int, live: frozenset[str]) -> bool:
    """The earlier request is over, and not for long.  One still in flight has a twin, not a retry."""
    return abs(at - holder.at) <= RETRY_MILLISECONDS and _is_over(tables, holder, at=at, live=live)


def _is_over(tables: Tables, holder: Holder, *, at: int, live: frozenset[str]) -> bool:
    if holder.event_id.startswith(CLAIMED):
        return holder.event_id.removeprefix(CLAIMED) not in live or abs(at - holder.at) > CLAIMED_MILLISECONDS
    row = tables.row(holder.event_id)
    # A row that is gone was settled, long ago (`worker.retention`).
    return row is None or row.is_settled or row.boot not in live


def _is_busy(tables: Tables, session_id: str, naming: Naming, *, at: int, live: frozenset[str]) -> bool:
    """Another request goes on from the session's last answer at this moment: this one goes another way.  Unless it is
    the same again, or goes on from that one: its client has the answer then, whatever was not told yet."""
    own = {*naming.continues, *(key.value for key in naming.keys if key.kind == "request")}
    return any(
        value not in own and not _is_over(tables, holder, at=at, live=live)
        for value, holder in tables.requests(session_id)
    )


def _learned(session: Session, naming: Naming, row: Row, *, is_entered: bool, continues: bool) -> Session:
    """What a row says about its session.  Its end repeats what its entry said, perhaps after a newer row's."""
    if naming.why.confidence == "certain" and session.why.confidence != "certain":
        session = replace(session, why=naming.why)  # It began with a guess, as with a call beside the conversation.
    if row.kind != "turn":
        return session
    chained = [key.value for key in naming.keys if key.kind in ("answer", "request")]
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
            shape=shape_after(session.shape, naming.shape, goes_on=continues or not naming.is_opening)
            if naming.shape
            else session.shape,
        )
    return replace(
        session,
        chain_length=max(session.chain_length, naming.chain_length),
        fingerprint=chained[0] if chained and newest else session.fingerprint,
        header_name=session.header_name or naming.header_name or None,
        header_session_id=session.header_session_id or naming.header_session_id or None,
    )


def _learn_keys(tables: Tables, session: Session, naming: Naming, row: Row) -> None:
    """Record the keys.  Chain keys replace those of a shorter or equal chain; a known answer replaces all others.

    The answer key of the turn before stays until the new turn is answered, so that a repeated request still finds
    its session after everything was killed.
    """
    for key in naming.keys:
        if key.kind in ("answer", "history"):
            value = key.value if row.kind == "turn" else _ASIDE + key.value
            tables.put_history(value, session.session_id, row.event_id)
    if row.kind != "turn":
        naming = replace(naming, keys=[key for key in naming.keys if key.kind in ("header", "body")])
    kinds = {key.kind for key in naming.keys}
    if kinds & set(_CHAIN):
        if 0 < naming.chain_length < session.chain_length:
            return
        # Of two answers to one request the client goes on from either: one that was asked for later stays.
        is_answer = "answer" in kinds and not _has_later_answer(tables, session, row)
        # Where the provider keeps the history, the length is not known (0), and a newer request tells a late answer.
        if naming.chain_length or not is_answer or not _has_newer_request(tables, session, row):
            tables.drop_keys(session.session_id, _CHAIN if is_answer else _UNANSWERED)
    for key in naming.keys:
        if key.kind != "history" and not _is_common(tables, key, session.session_id):
            tables.put_key(key, session.session_id, row.event_id, row.started_at)


def _has_later_answer(tables: Tables, session: Session, row: Row) -> bool:
    return any(key.kind == "answer" and key.at > row.started_at for key in tables.keys_of(session.session_id))


def _is_common(tables: Tables, key: Key, session_id: str) -> bool:
    """So many others hold the value that it is nobody's: one more holder would tell nothing."""
    others = [each for each in tables.holders([key.kind], key.value) if each.session_id != session_id]
    return key.kind in _CHAIN and len(others) >= HOLDERS_MAX


def _has_newer_request(tables: Tables, session: Session, row: Row) -> bool:
    keys = tables.keys_of(session.session_id)
    return any(key.kind in _UNANSWERED and key.event_id != row.event_id for key in keys)


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
_ASIDE: Final = "aside "
"""Before what is kept of the answers to calls beside a conversation: a sub-agent's goes on from them, no turn does."""


def is_ping_to_send(row: Row) -> bool:
    return row.kind == "warmup" and not row.is_settled


def _window_of(tables: Tables, row: Row, before: Row | None) -> int:
    """That of its entry, which an operator may have moved since.  An end whose entry is not here, as after a restore,
    counts in any case, and for a window only if it is the first there."""
    if row.kind != "warmup":
        return 0
    if before is not None:
        return before.window_started_at
    return 0 if tables.has_ping(row.session_id, row.window_started_at) else row.window_started_at


# -- helpers -------------------------------------------------------------------------------------------------------


def _canonical(tables: Tables, session_id: str) -> str:
    return tables.alias(session_id) or session_id


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
    why: Why | None,
    role: Role = "turn",
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
        role=role,
        shape=session.shape if claimed else None,
        why=why or Why(),
        generation=session.snapshot.generation if session.snapshot else 0,
        position=seen if claimed else position,
        snapshot=snapshot,
        rows=rows[:ROWS_PER_REPLY_MAX],
        more=len(rows) > ROWS_PER_REPLY_MAX,
    )
