"""Sessions that come from another gateway: who they are here, and what their past adds to the sums.

One rule: an import adds, and adds once.  What a session's figures have added so far is kept with it; the same file
again adds nothing, a later one the difference, and no sum ever goes down.

Theory of operation.  The past of a session has no ledger rows here.  Its figures stand where those of rows that were
removed by age stand, beside the totals (`session_rolled`, `day_rolled`), on the day of the session's last turn there:
*total = rolled + rows* holds by construction.  Its state stands as a snapshot of position 0, before every row, and is
taken only as long as the session has had no turn here: what these taught is worth more than what was known elsewhere.

A session that its client names gets the id that this name makes here, so the client's next request goes on with it.
What was forgotten here stays forgotten, whatever is imported again.

`judge` only reads, so the command line tells beforehand what an import would do.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

from msgspec.structs import replace

from worker.correction import Told, known_as
from worker.ledger import NOTHING, DayKey, Sums, day_of
from worker.protocol import Adopt, Adopted, Adoption, Confidence, Key, Lost, Outcome, Snapshot, Why
from worker.stored import Amendment, Opening, Session, Tables

ANCESTORS_MAX: Final = 32
"""Sub-agents of sub-agents; real ones go two or three deep."""
EVENT: Final = "imported"
"""Stands for the request that gave a key."""


class Plan(NamedTuple):
    """What is to become of an adoption."""

    outcome: Outcome
    session_id: str
    session: Session | None
    """The one that it joins; None where it is to be made."""
    added: Sums
    is_calibrated: bool
    is_alias: bool

    @property
    def is_due(self) -> bool:
        return self.outcome not in ("unchanged", "forgotten")

    @property
    def told(self) -> Adopted:
        return Adopted(
            session_id=self.session_id,
            outcome=self.outcome,
            is_calibrated=self.is_calibrated,
            is_alias=self.is_alias,
            turns=self.added.turns,
            cost_nanousd=self.added.cost_nanousd,
        )


def adopt(tables: Tables, act: Adopt, entry: Amendment) -> tuple[Told, list[Adopted]]:
    """Take sessions over; what became of each, in their order."""
    lost: list[tuple[str, Lost]] = []
    told: list[Adopted] = []
    moved = 0
    for each in act.sessions:
        plan = judge(tables, act.source, each)
        if plan.is_due:
            lost += _carry_out(tables, act.source, each, plan, entry.at)
            moved += 1
        told.append(plan.told)
    entry = replace(entry, verb="adopt", session_id=act.source, moved=moved)
    if not moved:
        return (replace(entry, number=0), lost), told  # Nothing was changed, so nothing is logged.
    tables.put_amendment(entry)
    return (entry, lost), told


def judge(tables: Tables, source: str, each: Adoption) -> Plan:
    """What an adoption would do; changes nothing."""
    known = tables.adopted(source, hashed(source, each.foreign_id))
    if known is not None and known.session_id is None:
        return Plan("forgotten", "", None, NOTHING, is_calibrated=False, is_alias=False)
    wanted = known.session_id if known is not None and known.session_id else each.session_id
    session_id = known_as(tables, wanted) or wanted
    session = tables.session(session_id)
    added = _difference(figures_of(each), known.sums if known else NOTHING)
    is_alias = each.foreign_id != session_id and tables.alias(each.foreign_id) is None
    is_alias = is_alias and tables.session(each.foreign_id) is None
    if session is not None and session.forgotten_at:
        return Plan("forgotten", "", None, NOTHING, is_calibrated=False, is_alias=False)
    snapshot = each.snapshot
    if session is None:
        # One that was imported and is gone since, by its age, comes back for new figures only.
        outcome: Outcome = "new" if known is None else "updated" if any(added) else "unchanged"
        is_kept = outcome != "unchanged"
        is_calibrated = is_kept and snapshot is not None and snapshot.position == 0
        return Plan(outcome, session_id, None, added, is_calibrated=is_calibrated, is_alias=is_kept and is_alias)
    is_calibrated = _is_newer(tables, session, snapshot)
    is_more = known is None or any(added) or is_calibrated or is_alias
    outcome = "joined" if known is None else "updated" if is_more else "unchanged"
    return Plan(outcome, session_id, session, added, is_calibrated=is_calibrated, is_alias=is_alias)


def figures_of(each: Adoption) -> Sums:
    """What its past adds up to.  Nobody knows how many of its requests had a price; that some had, is known."""
    return Sums(
        turns=each.turns,
        input_tokens=each.input_tokens,
        cache_read_tokens=each.cache_read_tokens,
        cache_write_tokens=each.cache_write_tokens,
        output_tokens=each.output_tokens,
        cost_nanousd=each.cost_nanousd,
        priced=max(each.turns, 1) if each.cost_nanousd else 0,
        unpriced=0 if each.cost_nanousd else each.turns,
    )


def hashed(source: str, foreign_id: str) -> str:
    """What an imported session is known by: of one that is forgotten, the id itself must not stay."""
    return hashlib.sha256(f"{source}\0{foreign_id}".encode("utf-8", "surrogatepass")).hexdigest()


def _difference(now: Sums, before: Sums) -> Sums:
    """Never below zero: a figure that is smaller than it was adds nothing."""
    return Sums(*(max(0, new - old) for new, old in zip(now, before, strict=True)))


def _is_newer(tables: Tables, session: Session, snapshot: Snapshot | None) -> bool:
    """Whether the imported state may take the place of what is stored: it stands before every row, there has been no
    turn here, not even one that still runs, and it is another one, and no older."""
    if snapshot is None or snapshot.position or session.last_position or tables.rows_after(session.session_id, -1, 1):
        return False
    stored = session.snapshot
    if stored is None:
        return True
    is_same = replace(stored, generation=snapshot.generation) == snapshot
    return not is_same and (snapshot.last_turn_at or 0) >= (stored.last_turn_at or 0)


# -- doing it ------------------------------------------------------------------------------------------------------


def _carry_out(tables: Tables, source: str, each: Adoption, plan: Plan, at: int) -> list[tuple[str, Lost]]:
    session = plan.session or _made(tables, source, each, plan.session_id)
    lost: list[tuple[str, Lost]] = []
    if plan.session is not None:
        session = _joined(session, each, has_turns=bool(session.last_position))
    if plan.is_calibrated and session.owner:
        # Who holds it holds another state: it has to claim again.
        lost.append((session.owner, Lost(session_id=session.session_id, epoch=session.epoch + 1)))
        session = replace(session, owner="", epoch=session.epoch + 1)
    tables.put_session(session)
    if plan.is_calibrated and each.snapshot is not None:
        generation = 1 + (session.snapshot.generation if session.snapshot else 0)
        tables.put_snapshot(session.session_id, replace(each.snapshot, generation=generation))
    for key in each.keys:
        if session.session_id not in tables.named(key.name, key.value, NAMED_MAX):
            _put_key(tables, key, session, each)
    if plan.is_alias:
        tables.put_alias(each.foreign_id, session.session_id)
    _add(tables, each, session.session_id, plan.added)
    foreign_id = hashed(source, each.foreign_id)
    before = tables.adopted(source, foreign_id)
    sums = (before.sums if before else NOTHING).plus(plan.added)
    tables.put_adopted(source, foreign_id, Opening(session.session_id, at, sums))
    return lost


def _made(tables: Tables, source: str, each: Adoption, session_id: str) -> Session:
    names = f"header {each.header_name}" if each.header_name else "nothing that its requests hold"
    reason = f"imported from {source.capitalize()}, named by {names}"
    confidence: Confidence = "certain" if each.header_name else "likely"
    return Session(
        session_id=session_id,
        parent_session_id=_parent(tables, each, session_id),
        client=each.client,
        model=each.model,
        message_count=each.message_count,
        first_seen_at=each.first_seen_at,
        last_seen_at=each.last_seen_at,
        epoch=tables.epoch_forgotten(),
        fingerprint=each.fingerprint or None,
        header_name=each.header_name or None,
        header_session_id=each.header_session_id or None,
        why=Why(reason=reason[:REASON_CHARACTERS_MAX], origin=f"import {source}", confidence=confidence),
    )


def _joined(session: Session, each: Adoption, *, has_turns: bool) -> Session:
    """What it had learned elsewhere stands behind what is known here."""
    return replace(
        session,
        client=session.client or each.client,
        model=(session.model or each.model) if has_turns else (each.model or session.model),
        message_count=session.message_count if has_turns else max(session.message_count, each.message_count),
        first_seen_at=min(session.first_seen_at, each.first_seen_at),
        last_seen_at=session.last_seen_at if has_turns else max(session.last_seen_at, each.last_seen_at),
        fingerprint=session.fingerprint or each.fingerprint or None,
        header_name=session.header_name or each.header_name or None,
        header_session_id=session.header_session_id or each.header_session_id or None,
    )


def _parent(tables: Tables, each: Adoption, session_id: str) -> str | None:
    """Who started it; nobody whom it started itself, whatever the file says."""
    parent = above = known_as(tables, each.parent)
    for _ in range(ANCESTORS_MAX):
        if above == session_id:
            return None
        found = tables.session(above) if above else None
        if found is None:
            return parent
        above = known_as(tables, found.parent_session_id)
    return None


def _put_key(tables: Tables, key: Key, session: Session, each: Adoption) -> None:
    tables.put_key(key, session.session_id, EVENT, each.last_seen_at)


def _add(tables: Tables, each: Adoption, session_id: str, added: Sums) -> None:
    if not any(added):
        return
    day = DayKey(day_of(each.last_seen_at), "turn", each.provider, each.model, each.client, "")
    tables.add_to_session(session_id, added)
    tables.add_to_rolled(session_id, added)
    tables.add_to_day(day, added)
    tables.add_to_rolled_day(day, added)


NAMED_MAX: Final = 8
"""Sessions that one name is looked for with: two already are rare."""
REASON_CHARACTERS_MAX: Final = 512
"""What the protocol lets a text have."""
