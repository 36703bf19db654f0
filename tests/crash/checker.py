"""Compares what clients were promised with what is stored.

One rule: the checker knows only what clients have read and what the provider has told; it never trusts a total that it
can add up itself.

Theory.  A client that reads the first byte of an answer was promised one ledger row; one that reads the last byte was
promised that row complete, with the provider's usage to the token.  Both promises need the worker's word, for which
a request waits 250 ms at most.  So a client that waited longer than that, or whose daemon did not hear the worker, has
no promise if that very daemon is then killed: what is lost of such an attempt is *excused*, and counted; every other
loss is one.  Nothing may ever be stored twice, wrongly, or under another session, whoever was killed.
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


@dataclass
class Findings:
    """What a check found.  `lost`, `doubled` and `wrong` are sentences; none is good."""

    facts: int = 0
    excused: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def are_good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def add(self, other: Findings) -> None:
        self.facts += other.facts
        self.excused += other.excused
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
    excused_from_seconds: float = inf,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> Findings:
    """Every attempt against its row.

    `excused_from_seconds`: an attempt that took as long may be lost; `aliases`: names that sessions had for a while,
    where the worker was away.
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
        _check_first_byte(found, attempt, own, excused_from_seconds)
        _check_last_byte(found, attempt, own, answered, excused_from_seconds)
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
    excused_from_seconds: float = inf,
    worker_was_away: bool = False,
) -> Findings:
    """`check_attempts` on what is stored now, or soon: a daemon may still be delivering what it kept."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        found = check_attempts(
            attempts,
            gateway.rows(after=first_row),
            answers,
            excused_from_seconds=excused_from_seconds,
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
        found.facts += 1
        if record.sums != _sum(sums_of_session(row) for row in own):
            found.wrong.append(f"session {record.session.session_id}: {record.sums} is not the sum of its rows")
        settled = sorted((row for row in own if row.is_settled), key=lambda row: row.position)
        if [row.position for row in settled] != list(range(1, len(settled) + 1)):
            found.wrong.append(f"session {record.session.session_id}: positions {[row.position for row in settled]}")
        afresh = replace(record, session=replace(record.session, snapshot=None), rows=settled)
        if session_object(record, {}) != session_object(afresh, {}):
            found.wrong.append(f"session {record.session.session_id}: its state is not that of its rows")
    found.wrong += [f"session {session_id}: rows without a session" for session_id in by_session]
    days = _sum(Sums(*values) for values in gateway.query(f"SELECT {', '.join(Sums._fields)} FROM day_total"))
    if days != _sum(map(sums_of_day, rows)):
        found.wrong.append("the days' totals are not the sum of the ledger")
    if gateway.query("PRAGMA integrity_check") != [("ok",)]:
        found.wrong.append("integrity_check")
    if gateway.query("PRAGMA foreign_key_check"):
        found.wrong.append("foreign_key_check")
    return found


def excused_from(gateway: Gateway, daemon: str, log_start: int) -> float:
    """From how many seconds on an attempt may be lost with a daemon that was killed just now."""
    said = gateway.log(daemon, log_start)
    return 0.0 if "not heard" in said or "degraded" in said else ACK_WAIT_SECONDS


def _check_first_byte(found: Findings, attempt: Attempt, own: list[Row], excused_from_seconds: float) -> None:
    if not attempt.first_byte_at or attempt.status == REFUSED:
        return
    found.facts += 1
    if not own:
        if attempt.first_byte_at - attempt.sent_at >= excused_from_seconds:
            found.excused += 1
        else:
            found.lost.append(f"{attempt.mark}: its first byte was read, and it has no row")


def _check_last_byte(
    found: Findings, attempt: Attempt, own: list[Row], answered: Answered | None, excused_from_seconds: float
) -> None:
    if not attempt.last_byte_at or attempt.status != 200:
        return
    found.facts += 1
    assert answered is not None, f"{attempt.mark} was answered by nobody"
    if not any(row.status == "complete" and row.usage == answered.usage for row in own):
        if attempt.last_byte_at - attempt.sent_at >= excused_from_seconds:
            found.excused += 1
        else:
            found.lost.append(f"{attempt.mark}: answered to its end with {answered.usage}, stored is {own}")


def _check_session(found: Findings, attempt: Attempt, row: Row, aliases: Mapping[str, str]) -> None:
    """One conversation, one session: that which the client named, or which its first whole answer told.

    Before that answer a conversation without a name has nothing that would prove a repeated request to be the same.
    """
    talk = attempt.conversation
    for known in (aliases.get(attempt.session, attempt.session), talk.session, talk.expected_session):
        if known and known != row.session_id:
            found.wrong.append(f"{attempt.mark}: told session {known}, stored under {row.session_id}")
    if attempt.last_byte_at:
        talk.session = talk.session or row.session_id


def _check_usage(found: Findings, attempt: Attempt, row: Row, answered: Answered | None) -> None:
    """No row tells more than the provider did; a complete one tells all of it."""
    told = (answered.usage if answered else None) or Usage()
    stored = row.usage or Usage()
    kinds = Usage.__struct_fields__
    if any(getattr(stored, kind) > getattr(told, kind) for kind in kinds):
        found.wrong.append(f"{attempt.mark}: the provider told {told}, stored is {stored}")
    if row.status == "complete" and stored != told:
        found.wrong.append(f"{attempt.mark}: complete with {stored}, the provider told {told}")


def _sum(parts: Iterable[Sums]) -> Sums:
    return reduce(Sums.plus, parts, NOTHING)
