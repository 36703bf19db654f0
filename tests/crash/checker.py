"""Compares what clients were promised with what is stored.

One rule: the checker knows only what clients have read and what the provider has told; it never trusts a total that it
can add up itself.

Theory.  A client that reads the first byte of an answer was promised one ledger row; one that reads the last byte was
promised that row complete, with the provider's usage to the token.  Both promises need the worker's word, for which
a request waits 250 ms at most.  So a client that waited longer than that, or whose daemon did not hear the worker, has
no promise if that very daemon is then killed: what is lost of such an attempt is *excused*, and counted; every other
loss is one.  Nothing may ever be stored twice, wrongly, or under another session, whoever was killed; and what was once
seen in the store stays there as it was (`Memory`), so that a later kill can not take what an earlier check has seen.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import inf
from types import MappingProxyType
from typing import Final

from msgspec.structs import replace

from daemon.views import session_object
from daemon.worker_client import ACK_WAIT_SECONDS
from tests.crash.conversation import MARK, Attempt
from tests.processes import DEADLINE_SECONDS, POLL_SECONDS, Gateway
from tests.provider import Answered
from worker.ledger import NOTHING, Sums, sums_of_day, sums_of_session
from worker.protocol import Row, Usage

REFUSED: Final = 503
"""perdure's own word for a turn that it does not let in: its outbox is full, and no row is promised."""


@dataclass(frozen=True)
class Excuse:
    """Why something may be lost with a daemon that was killed: it was answered without the worker's word."""

    slower_than_seconds: float = ACK_WAIT_SECONDS
    """A client that waited as long for its byte may have got it unconfirmed."""
    after: float = inf
    """Monotonic seconds: from here on the worker was not heard."""

    def covers(self, attempt: Attempt, byte_at: float) -> bool:
        return byte_at - attempt.sent_at >= self.slower_than_seconds or byte_at >= self.after

    @property
    def reason(self) -> str:
        return "answered unconfirmed, then its daemon was killed"


@dataclass
class Findings:
    """What a check found.  `lost`, `doubled` and `wrong` are sentences; none is good."""

    checked: Counter[str] = field(default_factory=Counter)
    """Facts, by what they are about."""
    excuses: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def facts(self) -> int:
        return self.checked.total()

    @property
    def excused(self) -> int:
        return self.excuses.total()

    @property
    def are_good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def add(self, other: Findings) -> None:
        self.checked += other.checked
        self.excuses += other.excuses
        self.lost += other.lost
        self.doubled += other.doubled
        self.wrong += other.wrong

    def __str__(self) -> str:
        faults = [*self.lost, *self.doubled, *self.wrong]
        return "\n".join(faults) or f"{self.facts} facts, nothing lost"


def answers_by_mark(answers: Iterable[Answered]) -> dict[str, Answered]:
    """The provider's side of each attempt that reached it."""
    return {answered.request.header("user-agent").removesuffix("/1"): answered for answered in answers}


def check_attempts(
    attempts: Iterable[Attempt],
    rows: Iterable[Row],
    answers: Mapping[str, Answered],
    *,
    excuses: Mapping[str, Excuse] = MappingProxyType({}),
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> Findings:
    """Every attempt against its row.

    `excuses`: by daemon, for those that were killed; `aliases`: names that sessions had for a while, where the worker
    was away.
    """
    found = Findings()
    by_mark: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_mark[row.client].append(row)
    for attempt in attempts:
        own = by_mark[attempt.mark]
        answered = answers.get(attempt.mark)
        if len(own) > 1:
            found.doubled.append(f"{attempt.mark}: {len(own)} rows")
        excuse = excuses.get(attempt.daemon)
        found.checked["one row at most"] += 1
        _check_first_byte(found, attempt, own, excuse)
        _check_last_byte(found, attempt, own, answered, excuse)
        for row in own:
            _check_session(found, attempt, row, aliases)
            _check_usage(found, attempt, row, answered)
    return found


def settled_findings(
    gateway: Gateway,
    attempts: Sequence[Attempt],
    answers: Mapping[str, Answered],
    *,
    first_row: int = 0,
    excuses: Mapping[str, Excuse] = MappingProxyType({}),
    worker_was_away: bool = False,
) -> Findings:
    """`check_attempts` on what is stored now, or soon: a daemon may still be delivering what it kept."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = check_attempts(
            attempts,
            gateway.rows(after=first_row),
            answers,
            excuses=excuses,
            aliases=dict(gateway.query("SELECT alias, session_id FROM session_alias")) if worker_was_away else {},
        )
        if found.are_good or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def check_totals(gateway: Gateway) -> Findings:
    """Sums, states and the file itself, against the ledger.  Nothing may be in flight."""
    found = Findings()
    rows = gateway.rows()
    by_session: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_session[row.session_id].append(row)
    for mark, count in Counter(row.client for row in rows if row.client.startswith(MARK)).items():
        if count > 1:
            found.doubled.append(f"{mark}: {count} rows")
    for record in gateway.records():
        own = by_session.pop(record.session.session_id, [])
        found.checked["sums of a session"] += 1
        if record.sums != _sum(sums_of_session(row) for row in own):
            found.wrong.append(f"session {record.session.session_id}: {record.sums} is not the sum of its rows")
        settled = sorted((row for row in own if row.is_settled), key=lambda row: row.position)
        if [row.position for row in settled] != list(range(1, len(settled) + 1)):
            found.wrong.append(f"session {record.session.session_id}: positions {[row.position for row in settled]}")
        found.checked["state is that of the rows"] += 1
        afresh = replace(record, session=replace(record.session, snapshot=None), rows=settled)
        if session_object(record, {}) != session_object(afresh, {}):
            found.wrong.append(f"session {record.session.session_id}: its state is not that of its rows")
    found.wrong += [f"session {session_id}: rows without a session" for session_id in by_session]
    found.checked["sums of the days"] += 1
    days = _sum(Sums(*values) for values in gateway.query(f"SELECT {', '.join(Sums._fields)} FROM day_total"))
    if days != _sum(map(sums_of_day, rows)):
        found.wrong.append("the days' totals are not the sum of the ledger")
    found.checked["the file itself"] += 2
    if gateway.query("PRAGMA integrity_check") != [("ok",)]:
        found.wrong.append("integrity_check")
    if gateway.query("PRAGMA foreign_key_check"):
        found.wrong.append("foreign_key_check")
    return found


def excuse_of(gateway: Gateway, daemon: str, log_start: int, worker_gone_at: float = inf) -> Excuse:
    """What excuses a loss with a daemon that was killed just now.  `worker_gone_at`: since when the campaign knows the
    worker to be away; where only the daemon says so, it may have been all the time."""
    if not _is_unheard(gateway, daemon, log_start):
        return Excuse()
    return Excuse(after=0.0 if worker_gone_at == inf else worker_gone_at)


def _is_unheard(gateway: Gateway, daemon: str, log_start: int) -> bool:
    """It has said that it does not hear the worker."""
    said = gateway.log(daemon, log_start)
    return "not heard" in said or "degraded" in said


class Memory:
    """What was seen in the store, over all checks of one state directory: none of it may ever change or go back."""

    def __init__(self) -> None:
        self._settled: dict[str, tuple[object, ...]] = {}
        self._marks: dict[str, tuple[int, ...]] = {}
        self._total = NOTHING

    def check(self, gateway: Gateway) -> Findings:
        found = Findings()
        rows = {row.event_id: row for row in gateway.rows()}
        for event_id, before in self._settled.items():
            row = rows.get(event_id)
            found.checked["a settled row stays"] += 1
            if row is None:
                found.lost.append(f"{before}: it was stored, and is there no more")
            elif _settled_part(row) != before:
                found.wrong.append(f"{before}: it was settled, and is now {_settled_part(row)}")
        self._settled = {row.event_id: _settled_part(row) for row in rows.values() if row.is_settled}
        self._check_marks(gateway, found)
        total = _sum(sums_of_session(row) for row in rows.values())
        found.checked["totals never fall"] += 1
        if any(now < before for name, now, before in zip(Sums._fields, total, self._total, strict=True) if name in _UP):
            found.wrong.append(f"totals were {self._total} and are {total}")
        self._total = total
        return found

    def _check_marks(self, gateway: Gateway, found: Findings) -> None:
        """Epoch, generation and positions of each session."""
        for session_id, *marks in gateway.query(f"SELECT session_id, {', '.join(_RISING)} FROM session_state"):
            before = self._marks.get(session_id, (0,) * len(_RISING))
            found.checked["epoch, generation, positions never fall"] += 1
            if any(now < then for now, then in zip(marks, before, strict=True)):
                found.wrong.append(f"session {session_id}: {_RISING} were {before} and are {marks}")
            self._marks[session_id] = tuple(marks)


def _settled_part(row: Row) -> tuple[object, ...]:
    """What of a settled row is for good; under which session it stands is not, if two turn out to be one."""
    return (row.event_id, row.client, row.status, row.usage, row.cost_nanousd, row.ended_at)


def _check_first_byte(found: Findings, attempt: Attempt, own: list[Row], excuse: Excuse | None) -> None:
    if not attempt.first_byte_at or attempt.status == REFUSED:
        return
    found.checked["identity at the first byte"] += 1
    if not own:
        _miss(found, excuse, attempt, attempt.first_byte_at, "its first byte was read, and it has no row")


def _check_last_byte(
    found: Findings, attempt: Attempt, own: list[Row], answered: Answered | None, excuse: Excuse | None
) -> None:
    if not attempt.last_byte_at or attempt.status != 200:
        return
    found.checked["usage at the last byte"] += 1
    assert answered is not None, f"{attempt.mark} was answered by nobody"
    if not any(row.status == "complete" and row.usage == answered.usage for row in own):
        said = f"answered to its end with {answered.usage}, stored is {own}"
        _miss(found, excuse, attempt, attempt.last_byte_at, said)


def _miss(found: Findings, excuse: Excuse | None, attempt: Attempt, byte_at: float, said: str) -> None:
    if excuse is not None and excuse.covers(attempt, byte_at):
        found.excuses[excuse.reason] += 1
    else:
        found.lost.append(f"{attempt.mark} at {attempt.daemon}: {said}")


def _check_session(found: Findings, attempt: Attempt, row: Row, aliases: Mapping[str, str]) -> None:
    """One conversation, one session: that which the client named, or which its first whole answer told.

    Before that answer a conversation without a name has nothing that would prove a repeated request to be the same.
    """
    talk = attempt.conversation
    found.checked["one session for a conversation"] += 1
    for told in (attempt.session, talk.session, talk.expected_session):
        known = aliases.get(told, told)
        if known and known != row.session_id:
            said = f"told session {known}, stored under {row.session_id} ({row.why.reason})"
            found.wrong.append(f"{attempt.mark} at {attempt.daemon}, {talk.protocol} {talk.name!r}: {said}")
    if attempt.last_byte_at:
        talk.session = talk.session or row.session_id


def _check_usage(found: Findings, attempt: Attempt, row: Row, answered: Answered | None) -> None:
    """No row tells more than the provider did; a complete one tells all of it."""
    found.checked["no usage but the provider's"] += 1
    told = (answered.usage if answered else None) or Usage()
    stored = row.usage or Usage()
    kinds = Usage.__struct_fields__
    if any(getattr(stored, kind) > getattr(told, kind) for kind in kinds):
        found.wrong.append(f"{attempt.mark}: the provider told {told}, stored is {stored}")
    if row.status == "complete" and stored != told:
        found.wrong.append(f"{attempt.mark}: complete with {stored}, the provider told {told}")


def _sum(parts: Iterable[Sums]) -> Sums:
    return reduce(Sums.plus, parts, NOTHING)


_RISING: Final = ("epoch", "generation", "snapshot_position", "last_position")
_UP: Final = frozenset(Sums._fields) - {"interrupted", "unpriced"}
"""Sums that only rise; the others count rows that are not settled yet, too."""
